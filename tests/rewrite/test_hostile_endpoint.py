"""Replies of an endpoint that attacks the command that asks it."""

import asyncio
import contextlib
import gzip
import io
import json
import re
import socketserver
import threading
import time
import zlib

import pytest

from igpo_jax.rewrite.__main__ import judge_lengths, read_replies
from igpo_jax.rewrite.client import LimitedClient
from igpo_jax.rewrite.endpoint import Endpoint, ask_all, check_address, check_header, without_key

PATIENCE = 12.0  # seconds; a test fails if an attack lasts longer


@contextlib.contextmanager
def serving(answer):
    """Yields the address of a server that calls `answer(send, path)` for each request. `send` sends bytes and raises OSError once
    the client has closed the connection."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            with contextlib.suppress(OSError):
                path = self.rfile.readline().split()[1].decode()
                length = 0
                while (line := self.rfile.readline().strip().lower()) != b"":
                    length = int(line.split(b":")[1]) if line.startswith(b"content-length") else length
                self.rfile.read(length)
                answer(self.request.sendall, path)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = allow_reuse_address = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()


def ask(answer, problems=1, timeout=PATIENCE, retries=0):
    """Returns the replies, {problem id: error}, and the reason why the endpoint is unavailable."""
    replies = []
    with serving(answer) as address:
        endpoint = Endpoint(address, "m", "s3cret", timeout, retries)
        conversations = [(f"p{i}", [{"role": "user", "content": "x"}]) for i in range(problems)]
        begin = time.monotonic()
        unanswered, stopped = ask_all(conversations, replies.append, endpoint, requests=1)
    assert time.monotonic() - begin < PATIENCE
    assert all(len(reason) < 300 and reason.isprintable() for reason in [*unanswered.values(), stopped])
    return replies, unanswered, stopped


def message(body: bytes, *headers: str, status: int = 200) -> bytes:
    lines = [f"HTTP/1.1 {status} x", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def completion(text="It is 1.", counts=(1, 1), finish_reason="stop") -> bytes:
    choice = {"message": {"content": text}, "finish_reason": finish_reason}
    usage = dict(zip(("prompt_tokens", "completion_tokens"), counts, strict=True))
    return json.dumps({"choices": [choice], "usage": usage}).encode()


def reason_of(body: bytes, *headers: str, status: int = 200) -> str:
    """Returns the reason why the only problem got no reply."""
    replies, unanswered, _ = ask(lambda send, _: send(message(body, *headers, status=status)))
    assert not replies
    return unanswered["p0"]


def test_a_usual_reply_is_read():
    for encoding in ((), ("Content-Encoding: identity",)):
        replies, _, stopped = ask(lambda send, _, headers=encoding: send(message(completion(), *headers)))
        assert not stopped and replies == [
            {"id": "p0", "text": "It is 1.", "refused": False, "finish_reason": "stop", "prompt_tokens": 1,
             "completion_tokens": 1, "attempts": 1}
        ]  # fmt: skip


@pytest.mark.parametrize("status", [200, 400])
def test_a_compressed_reply_is_refused_before_it_is_unpacked(status):
    bomb = gzip.compress(gzip.compress(completion("1" * (1 << 24))))
    assert len(bomb) < 4000
    assert "Content-Encoding gzip, gzip" in reason_of(bomb, "Content-Encoding: gzip, gzip", status=status)


@pytest.mark.parametrize("status", [200, 400])
def test_an_endless_reply_ends_at_the_limit(status):
    sent = 0

    def answer(send, _):
        nonlocal sent
        send(f"HTTP/1.1 {status} x\r\nContent-Type: application/json\r\n\r\n".encode())
        while sent < 1 << 26:
            send(b" " * (1 << 16))
            sent += 1 << 16

    _, unanswered, _ = ask(answer)
    assert "more than 8 MiB" in unanswered["p0"] and sent < 1 << 25


@pytest.mark.parametrize("begin", [b"", b"HTTP/1.1 200 x\r\n\r\n", b"HTTP/1.1 503 x\r\n\r\n"])
def test_a_slow_reply_ends_at_the_timeout_and_is_asked_for_again(begin):
    asked = 0

    def answer(send, _):
        nonlocal asked
        asked += 1
        send(begin)
        for _ in range(50):
            send(b"H" if not begin else b" ")
            time.sleep(0.1)

    start = time.monotonic()
    _, unanswered, _ = ask(answer, timeout=0.5, retries=1)
    assert unanswered == {"p0": "Request timed out."} and asked == 2 and time.monotonic() - start < 4


@pytest.mark.parametrize("location", ["http://127.0.0.1:9/v1/x", "/v1/elsewhere", "http://[", "//\x1b[31m"])
def test_a_redirect_is_not_followed(location):
    paths = []

    def answer(send, path):
        paths.append(path)
        send(message(b"{}", f"Location: {location}", status=307))

    _, _, stopped = ask(answer, problems=3, retries=1)
    assert "redirects" in stopped or (not location.isprintable() and "Connection error" in stopped)
    assert set(paths) == {"/v1/chat/completions"} and (len(paths) == 1 or not location.isprintable())


def test_cookies_are_not_kept():
    """Otherwise the cookies of all replies fill the memory and each request."""
    requests = []

    def answer(send, _):
        requests.append(1)
        send(message(completion(), f"Set-Cookie: a{len(requests)}={'x' * 60000}; Path=/"))

    client = LimitedClient(PATIENCE)

    async def get(address):
        async with client:
            await client.get(address)

    with serving(answer) as address:
        asyncio.run(get(address))
    assert len(requests) == 1 and not client.cookies


@pytest.mark.parametrize(
    "charset, body",
    [
        ("punycode", b"a-" + b"b" * (1 << 18)),  # its decoder takes quadratic time
        ("zlib_codec", zlib.compress(b"1" * (1 << 24))),
        ("base64", b"eA=="),
        ("idna", b"x"),
    ],
)
def test_the_charset_of_an_error_is_not_used(charset, body):
    assert reason_of(body, f"Content-Type: text/plain; charset={charset}", status=400).startswith("400: ")


BAD_VALUES = {
    "text of 1 MiB": (completion("1" * ((1 << 20) + 1)), "text has more than 1 MiB"),
    "text of 1 MiB in UTF-8": (completion("\u20ac" * (1 << 19)), "text has more than 1 MiB"),
    "text is a list": (completion(["x"]), "text"),
    "boolean count": (completion(counts=(True, 1)), "prompt_tokens"),
    "negative count": (completion(counts=(1, -1)), "completion_tokens"),
    "large count": (completion(counts=(1 << 53, 1)), "prompt_tokens"),
    "float count": (completion(counts=(1.0, 1)), "prompt_tokens"),
    "count that is not a number": (completion(counts=(float("nan"), 1)), "prompt_tokens"),
    "4300 digits": (completion().replace(b': 1,', b": 1" + b"0" * 4299 + b","), "prompt_tokens"),
    "5000 digits": (completion().replace(b': 1,', b": 1" + b"0" * 4999 + b","), "not JSON"),
    "long finish_reason": (completion(finish_reason="x" * 65), "finish_reason"),
    "finish_reason with a lone surrogate": (completion(finish_reason="\ud800"), "finish_reason"),
    "finish_reason with a control character": (completion(finish_reason="\x1b[31m"), "finish_reason"),
    "finish_reason is a number": (completion(finish_reason=1), "finish_reason"),
    "deep": (b"[" * 100_000, "not JSON"),
    "deep part": (completion().replace(b'"stop"', b"[" * 500 + b"]" * 500), "finish_reason"),
    "no object": (b"[]", "not a chat completion"),
    "no choices": (b'{"choices": []}', "not a chat completion"),
    "choices are null": (b'{"choices": null}', "not a chat completion"),
    "usage is a list": (completion().replace(b'{"prompt_tokens": 1, "completion_tokens": 1}', b"[1]"), "not a chat completion"),
    "invalid UTF-8": (b'{"a": "\xff"}', "not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_VALUES)
def test_a_reply_with_a_value_that_cannot_be_right_is_refused(name):
    body, expected = BAD_VALUES[name]
    assert expected in reason_of(body, "Content-Type: application/json")


def test_values_at_the_limits_are_kept_and_read_again():
    replies, _, _ = ask(lambda send, _: send(message(completion("\x01" * (1 << 20), (0, (1 << 53) - 1), "x" * 64))))
    assert len(replies[0]["text"]) == 1 << 20
    assert read_replies(file_of(replies)) == replies
    assert ask(lambda send, _: send(message(completion("a\ud800"))))[0][0]["text"] == "a?"


def file_of(replies: list[dict]) -> io.BytesIO:
    file = io.BytesIO("".join(json.dumps(reply) + "\n" for reply in replies).encode())
    file.name = "replies.jsonl"
    return file


REPLY = {"id": "a", "text": "1", "refused": False, "finish_reason": "stop", "prompt_tokens": None, "completion_tokens": None}
REPLY |= {"attempts": 1}


@pytest.mark.parametrize(
    "change",
    [
        {"text": "1" * ((1 << 20) + 1)},
        {"prompt_tokens": True},
        {"completion_tokens": -1},
        {"prompt_tokens": 1 << 53},
        {"attempts": True},
        {"attempts": -1},
        {"attempts": None},
        {"finish_reason": "x" * 65},
        {"text": None},
        {"refused": 1},
    ],
)
def test_a_saved_reply_is_checked_like_one_that_arrives(change):
    other, last = REPLY | {"id": "b"}, REPLY | {"id": "c"}
    assert read_replies(file_of([REPLY, other])) == [REPLY, other]
    with pytest.raises(ValueError, match=rf"line 2 is not a reply \(.*{next(iter(change))}.*\); repair or remove"):
        read_replies(file_of([REPLY, other | change, last]))


def test_a_second_reply_to_a_problem_is_refused_and_stays():
    """Otherwise the last one would count. `load_sources` refuses repeated ids, and only problems without a reply are asked."""
    file = file_of([REPLY, REPLY | {"id": "b"}, REPLY | {"text": "2"}])
    before = file.getvalue()
    with pytest.raises(ValueError, match="^replies.jsonl, line 3: the id 'a' has come before, in line 1; remove one of the two"):
        read_replies(file)
    assert file.getvalue() == before


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"error": {"message": "\ud800"}}),  # cannot be written to card.json
        json.dumps({"error": {"message": "\x1b]52;c;eA==\x07 \u202e"}}),
        '{"error": {"message": ' + "[" * 900 + "]" * 900 + "}}",
        '{"error": {"message": "' + "x" * 1_000_000 + '"}}',
        '{"error": {"message": {"a": [1]}, "code": [[1]], "param": {"a": 1}, "type": NaN}}',
        '{"error": ' + "9" * 5000 + "}",
        "[" * 100_000,
        "",
    ],
)
def test_the_message_of_an_error_becomes_one_printable_line(body):
    """`ask` checks that the reason is printable and short."""
    assert reason_of(body.encode(), status=400).startswith("400: ")


@pytest.mark.parametrize("status, headers, said", [
    (400, (), "bad key Bearer s3cret"),
    (401, (), "bad key s3cret."),
    (400, (), "x" * 190 + " s3cret"),  # its beginning would remain if the message were cut first
    (307, ("Location: http://127.0.0.1:9/v1?key=s3cret",), ""),
    (200, (f"Content-Encoding: {'x' * 47}s3cret",), ""),
])  # fmt: skip
def test_no_reason_repeats_the_key(status, headers, said):
    body = json.dumps({"error": {"message": said}}).encode()
    _, unanswered, stopped = ask(lambda send, _: send(message(body, *headers, status=status)))
    told = "".join([*unanswered.values(), stopped])
    assert "s3" not in told and ("[key" in told or "xxx" in told)


def test_a_reply_is_kept_without_the_key():
    body = completion("<think>s3cret</think>It is s3cret\ud800s3cret.", finish_reason="s3cret")
    [reply] = ask(lambda send, _: send(message(body.replace(b"<think>s", b"<think>\\u0073"))))[0]
    assert (reply["text"], reply["finish_reason"]) == ("<think>[key]</think>It is [key]?[key].", "[key]")
    assert without_key("EMPTY x", "EMPTY") == without_key("EMPTY x", "x") == without_key("EMPTY x", "") == "EMPTY x"


@pytest.mark.parametrize("address, message", [
    ("http://é..é/v1", "is no address: Invalid IDNA hostname: 'é..é'"), ("http://h\r/v1", "is no address: Invalid non-printable"),
    ("http://user:s3cret@h/v1", "has a user name or a password; give a key with --key_file instead"),
    ("https://s3cret@h/v1", "has a user name or a password"), ("http://user:s3cret/x@h/v1", "with a valid host and port"),
    ("http://h/v1?key=s3cret", "has a query"), ("http://[::1/v1", "with a valid host and port"),
    ("h:8000/v1", "begins with http:// or https://"), ("http:///v1", "begins with http:// or https://"),
])  # fmt: skip
def test_addresses_that_are_none_or_have_secrets_are_refused(address, message):
    with pytest.raises(ValueError, match=f"^--endpoint [^\n]*{re.escape(message)}") as raised:
        check_address(address)
    assert "s3cret" not in str(raised.value)
    check_address("http://[::1]:8000/@x/v1")


@pytest.mark.parametrize("value", ["s3cret\r", "s3\ncret", "s3crét", "s3cret\0"])
def test_a_key_that_cannot_be_sent_is_refused_without_showing_it(value):
    with pytest.raises(ValueError, match=r"^KEY has a line break or another character") as raised:
        check_header("KEY", value)
    assert "s3" not in str(raised.value)


def test_an_invalid_proxy_is_told_in_one_line(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://é..é")
    with pytest.raises(ValueError, match="such as HTTP_PROXY has an address that is none: Invalid IDNA hostname"):
        ask_all([], print, Endpoint("http://h/v1", "m", "s3cret", timeout=1, retries=0), requests=1)


@pytest.mark.parametrize("value", ["Mon, 01 Jan 99999999999 00:00:00 GMT", "9" * 5000, "nan", "-1", "1e999", "\xff"])
def test_a_strange_retry_after_is_no_crash(value):
    answered = message(b"{}", f"Retry-After: {value}", status=503)
    assert ask(lambda send, _: send(answered), retries=1)[1]["p0"].startswith("503: ")


class Tokenizer:
    """Tokenizer with one token per character that refuses a text as too long."""

    def __init__(self):
        self.encoded = []

    def encode(self, text):
        self.encoded.append(text)
        if "refused" in text:
            raise ValueError("too much")
        return list(text)


def test_only_texts_that_may_be_kept_are_encoded_and_one_that_the_tokenizer_refuses_is_too_long():
    judged = [
        ("rewritten", "long solution", "short"),
        ("wrong answer", "solution of a wrong one", "wrong"),
        ("rewritten", "long solution", "refused"),
        ("rewritten", "short", "long solution"),
        ("unchanged", "longer than the limit of 20", "longer than the limit of 20"),
        ("unchanged", "a", "a"),
    ]
    tokenizer = Tokenizer()
    outcomes = judge_lengths(judged, tokenizer, 2, 20)
    assert outcomes == [
        ("rewritten", 13, 5), ("wrong answer", 0, 0), ("too long", 0, 0), ("not shorter", 5, 13), ("too long", 27, 27),
        ("too short", 1, 1),
    ]  # fmt: skip
    assert not {"wrong", "solution of a wrong one"} & set(tokenizer.encoded)
