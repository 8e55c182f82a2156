"""Stand-in for an OpenAI-compatible endpoint: python stub_endpoint.py PORT LOG DIE_AFTER.

Each question names the behavior to show: "#id [behavior] text". Logs a line "asked id" before each answer and "answered id"
after it. Dies after DIE_AFTER answers (0: never).
"""

import json
import os
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HANGS = 3.0  # seconds; longer than the tests' timeouts


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        id, behavior = re.search(r"#(\S+) \[(\w+)\]", text).groups()
        answer = re.search(r"Final answer: (.*)", text)[1]
        with server.lock:
            server.asked[id] = server.asked.get(id, 0) + 1
            first = server.asked[id] == 1
            server.write(f"asked {id} {self.headers['Authorization']} {body['model']}")
        if self.headers["Authorization"] != "Bearer s3cret" or not self.path.endswith("/v1/chat/completions"):
            return self.send(401 if self.path.endswith("/v1/chat/completions") else 404, {"error": {"message": "go away"}})
        rewritten = f"Adding up gives $x = \\boxed{{{answer}}}$."
        match behavior:
            case "fine" | "html":
                self.complete(id, rewritten if behavior == "fine" else f"<script>alert(1)</script> {rewritten}")
            case "thinks":
                self.complete(id, f"<think>is it \\boxed{{-1}}?</think>{rewritten}")
            case "leaks":
                self.complete(id, f"I was called with {self.headers['Authorization']}. {rewritten}")
            case "refuses":
                self.complete(id, None, refusal="I cannot help with that.")
            case "empty":
                self.complete(id, "")
            case "wrong":
                self.complete(id, rewritten.replace(answer, f"{answer}1"))
            case "mute":
                self.complete(id, "Adding up gives what is asked for.")
            case "long":
                self.complete(id, "It is a long way. " * 60 + rewritten)
            case "tiny":
                self.complete(id, f"\\boxed{{{answer}}}")
            case "same":
                self.complete(id, f"{'It is known that this is so, as is to be seen. ' * 4}{rewritten}")
            case "cut":
                self.complete(id, rewritten, finish_reason="length")
            case "limits" if first:
                self.send(429, {"error": {"message": "slower"}}, {"Retry-After": "0.2"})
            case "limits":
                self.complete(id, rewritten)
            case "limited":
                self.send(429, {"error": {"message": "no more today"}}, {"Retry-After": "0.1"})
            case "down":
                self.send(503, {"error": {"message": "no server"}})
            case "fails":
                self.send(500, {"error": {"message": "broken <b>"}})
            case "page":
                self.send(200, "<html>welcome</html>")
            case "hangs":
                time.sleep(HANGS)
                self.close_connection = True

    def complete(self, id, content, refusal=None, finish_reason="stop"):
        message = {"role": "assistant", "content": content, "refusal": refusal}
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        choice = {"index": 0, "message": message, "finish_reason": finish_reason}
        values = {
            "id": "c",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }
        self.send(200, values)
        with self.server.lock:
            self.server.write(f"answered {id}")
            self.server.answers += 1
            if self.server.answers == self.server.die_after:
                os._exit(1)

    def send(self, status, content, headers=None):
        page = isinstance(content, str)
        data = content.encode() if page else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "text/html" if page else "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, log: str, die_after: int):
        super().__init__(("127.0.0.1", port), Handler)
        self.lock, self.asked, self.answers, self.die_after = threading.Lock(), {}, 0, die_after
        self.log = open(log, "a")  # noqa: SIM115

    def write(self, line: str) -> None:
        self.log.write(line + "\n")
        self.log.flush()


if __name__ == "__main__":
    port, log, die_after = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    server = Server(port, log, die_after)
    print(server.server_address[1], flush=True)
    server.serve_forever()
