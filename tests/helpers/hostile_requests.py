"""Hostile HTTP requests to the playground."""

import json
import random
import socket
from typing import Any

from hostile_files import CODE, HTML, ODD
from mutations import VALUES, change_bytes, change_json

DECODING = {"completion_length": 8, "block_length": 8, "steps": 4}
CELLS = [["a", 1, "#102030", False], ["b\n", 0, "#aabbcc", True]]
VALID: list[tuple[str, str, dict[str, Any] | None]] = [
    ("GET", "/", None),
    ("GET", "/info", None),
    ("POST", "/generate", {"prompt": "What is the answer?", "seed": 1, "hint": "It", **DECODING}),
    (
        "POST",
        "/generate",
        {"prompt": "Hello", "chat": True, "temperature": 0.7, "cfg_scale": 1.0, "remasking": "random", **DECODING},
    ),
    ("POST", "/generate", {"template": "The answer is [MASK:4] because", "steps": 2, "cache": "prefix"}),
    ("POST", "/gif", {"frames": 2, "cells": CELLS}),
]
METHODS = ("PUT", "DELETE", "OPTIONS", "HEAD", "TRACE", "CONNECT", "GET", "POST", "X" * 3000, "")
PATHS = (
    "//",
    "/../../etc/passwd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/info?" + "x=1&" * 5000,
    "/generate/",
    "*",
    "/%00",
    "/" + "x" * 70_000,
)
LARGE = (
    {"frames": 1024, "cells": [["\n", 1, "#102030", False]] * 1024},
    {"frames": 1024, "cells": [["W" * 64, 1, "#102030", False]] * 1024},
    {"frames": 1024, "cells": [["W\n" * 32, i, "#102030", False] for i in range(1024)]},
    {"prompt": "x " * 30_000, **DECODING},
    {"prompt": "x", "completion_length": 1024, "block_length": 1024, "steps": 1024},
    {"template": "[MASK:1]" * 5000},
    {"template": "[MASK:1024]", "steps": 1},
)
HEADERS = (
    ("Host", "evil.example"), ("Host", ""), ("Host", "127.0.0.1:99999999"), ("Host", "[::1"), ("Origin", "null"), ("Origin", "http://["),
    ("Origin", "http://evil.example"), ("Content-Type", "text/plain"), ("Content-Type", "application/json; charset=utf-16"),
    ("Content-Length", "-1"), ("Content-Length", "99999999999999999999"), ("Content-Length", "5"), ("Transfer-Encoding", "chunked"),
    ("Transfer-Encoding", "x"), ("Expect", "100-continue"), ("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Cookie", "x" * 60_000),
    ("X", "\x00"), ("\xff", "x"), ("Range", "bytes=0-1"), ("Content-Encoding", "gzip"), ("X-Forwarded-For", "1.1.1.1"),
)  # fmt: skip


def hostile_request(draw: random.Random, port: int) -> tuple[bytes, bool]:
    """Returns a request, and whether it is so malformed that the server may close the connection without a reply."""
    method, path, body = draw.choice(VALID[2:] if draw.random() < 0.8 else VALID)
    headers = {"Host": f"127.0.0.1:{port}", "Content-Type": "application/json", "Connection": "close"}
    content, broken = json.dumps(body).encode() if body else b"", False
    match draw.randrange(10):
        case 0:
            name, value = draw.choice(HEADERS)
            headers[name], broken = value, name not in ("Origin", "Content-Type")
        case 1:
            method, broken = draw.choice(METHODS), True
        case 2:
            path, broken = draw.choice(PATHS), True
        case 3:
            large = draw.choice(LARGE)
            method, path, content = "POST", "/gif" if "cells" in large else "/generate", json.dumps(large).encode()
        case 4:
            content = change_bytes(content, draw)
        case _ if content:
            for _ in range(draw.choice((1, 1, 2))):
                content = change_json(
                    content, draw, [*VALUES, *HTML, *CODE, *ODD, "[MASK:9]" * 300, "[MASK:99999]", 1023, 4096]
                )
    headers = {"Content-Length": str(len(content))} | headers
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    request = head.encode("latin-1", "replace") + b"\r\n" + content
    if draw.random() < 0.05:
        request, broken = change_bytes(request, draw), True
    return request, broken


def ask(port: int, request: bytes, seconds: float, leave: bool = False) -> bytes:
    """Sends a request and returns the reply, or the part that arrived before an error or after `seconds`. If `leave` is True,
    closes the connection at once and returns b""."""
    reply = b""
    try:
        with socket.create_connection(("127.0.0.1", port), seconds) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR) if leave else None
            while not leave and (part := connection.recv(1 << 16)):
                reply += part
    except OSError:
        pass
    return reply
