"""A real server: clients that send nothing, little, or do not read cannot keep others out, and work ends with its client."""

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time

import pytest
import uvicorn

from igpo_jax.playground import connections, server
from igpo_jax.playground.connections import MOST_CONNECTIONS, Connection

ANIMATION = json.dumps({"frames": 1, "cells": [["a", 1, "#440154", False]]}).encode()
HEAD = b"POST /gif HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


@contextlib.contextmanager
def serving(app):
    """Yields (the server's port, a function that returns the number of open connections)."""
    config = uvicorn.Config(app, port=0, log_level="warning", lifespan="off", loop="asyncio", http=Connection, ws="none")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield running.servers[0].sockets[0].getsockname()[1], lambda: len(running.server_state.connections)
    finally:
        running.should_exit = running.force_exit = True
        thread.join()


@pytest.fixture(scope="module")
def port(model):
    with serving(server.application(model, {}, "127.0.0.1", 600)) as (port, _):
        yield port


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def status(port: int, method: str = "GET", path: str = "/info", **request) -> int:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    client.request(method, path, **request)
    response = client.getresponse()
    response.read()
    client.close()
    return response.status


def is_closed(client: socket.socket) -> bool:
    """Waits until the server ends the connection."""
    with contextlib.suppress(ConnectionError):
        while client.recv(1 << 16):
            pass
    return True


@pytest.mark.slow
def test_a_client_with_many_connections_replaces_its_own(port, monkeypatch):
    """The other client waits longest, and has one connection, of which the address is parsed once."""
    parsed = []
    monkeypatch.setattr(connections, "network_of", lambda host: parsed.append(host) or host)
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60, source_address=("127.0.0.2", 0)))
        time.sleep(0.1)
        for _ in range(2 * MOST_CONNECTIONS):
            stack.enter_context(connect(port))
        other.sendall(b"GET /info HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert other.recv(100).startswith(b"HTTP/1.1 200")
        assert parsed.count("127.0.0.2") == 1


@pytest.mark.parametrize("sent", [b"", b"GET /info HTT", HEAD % 50 + b"{"], ids=["nothing", "half a head", "half a body"])
def test_connections_that_wait_do_not_keep_others_out(port, sent):
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(connect(port)) for _ in range(220)]
        for client in waiting:
            with contextlib.suppress(ConnectionError):
                client.sendall(sent)
        assert status(port) == 200
        assert all(map(is_closed, waiting[: 220 - MOST_CONNECTIONS]))  # those that waited longest


def test_a_request_that_arrives_byte_by_byte_is_ended(port, monkeypatch):
    monkeypatch.setattr(connections, "WAIT_SECONDS", 0.5)
    with connect(port) as client, pytest.raises(ConnectionError):
        for byte in HEAD % 10**6 + b" " * 10**6:
            client.sendall(bytes([byte]))
            time.sleep(0.01)


def test_a_client_that_does_not_read_is_ended_and_one_that_waits_for_the_server_is_not(monkeypatch):
    monkeypatch.setattr(connections, "WAIT_SECONDS", 0.5)

    async def app(scope, receive, send):
        await receive()
        if scope["path"] == "/slow":
            await asyncio.sleep(1.5)  # the server works: nobody waits for the client
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(2000 if scope["path"] == "/long" else 0):
            await send({"type": "http.response.body", "body": b"0" * 65536, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    with serving(app) as (port, number):
        assert status(port, path="/slow") == 200
        with connect(port) as client:
            client.sendall(b"GET /long HTTP/1.1\r\nHost: localhost\r\n\r\n")
            while not number():
                time.sleep(0.01)
            deadline = time.monotonic() + 60
            while number():
                assert time.monotonic() < deadline
                time.sleep(0.05)


def test_a_second_request_that_is_sent_with_the_first_has_as_much_time(monkeypatch):
    monkeypatch.setattr(connections, "WAIT_SECONDS", 0.3)
    second = asyncio.Event()

    async def app(scope, receive, send):
        await receive()
        if scope["path"] == "/second":
            second.set()
            await asyncio.sleep(1)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})
        if scope["path"] == "/first":  # ends after the second has begun
            await second.wait()

    with serving(app) as (port, _), connect(port) as client:
        client.sendall(b"".join(b"GET /%s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path for path in (b"first", b"second")))
        answers = b""
        while part := client.recv(1 << 16):
            answers += part
        assert answers.count(b" 200 OK") == 2


def test_an_animation_ends_with_its_client_and_one_that_waits_never_begins(port, monkeypatch):
    begun, ended, count = threading.Event(), threading.Event(), []

    def draw(cells, frames, is_stopped):
        count.append(cells)
        begun.set()
        while not is_stopped():
            time.sleep(0.01)
        ended.set()
        raise server.CancelledError

    with monkeypatch.context() as patch:
        patch.setattr(server, "gif", draw)
        with connect(port) as first:
            first.sendall(HEAD % len(ANIMATION) + ANIMATION)
            assert begun.wait(60)
            with connect(port) as second:
                second.sendall(HEAD % len(ANIMATION) + ANIMATION)
                time.sleep(0.3)  # until it waits
            time.sleep(0.3)  # until the server has noticed that it left
        assert ended.wait(60)
        assert len(count) == 1
    headers = {"Content-Type": "application/json", "Host": "localhost"}
    assert status(port, "POST", "/gif", body=ANIMATION, headers=headers) == 200


def test_no_more_animations_wait_than_generations(port, monkeypatch):
    enough, begun = threading.Event(), threading.Event()

    def draw(cells, frames, is_stopped):
        begun.set()
        enough.wait(60)
        return b"GIF89a"

    monkeypatch.setattr(server, "gif", draw)
    monkeypatch.setattr(server, "OF_ONE_CLIENT", 2 * server.WAITING)
    with contextlib.ExitStack() as stack:
        for _ in range(server.WAITING + 1):
            stack.enter_context(connect(port)).sendall(HEAD % len(ANIMATION) + ANIMATION)
        assert begun.wait(60)
        headers = {"Content-Type": "application/json", "Host": "localhost"}
        code = status(port, "POST", "/gif", body=ANIMATION, headers=headers)
        enough.set()
    assert code == 429


@pytest.mark.parametrize("path", ["/", "/info", "/generate", "/gif", "/nothing"])
def test_a_body_of_any_length_is_refused_or_not_read(path, port):
    """Claims ten gigabytes."""
    with connect(port) as client:
        method = b"POST" if path in ("/generate", "/gif") else b"GET"
        client.sendall(HEAD.replace(b"POST /gif", method + b" " + path.encode()) % 10**10)
        with contextlib.suppress(ConnectionError):
            for _ in range(64):
                client.sendall(b" " * (1 << 16))
        with contextlib.suppress(ConnectionError):
            answer = client.recv(1 << 12)
            expected = {"/": b"200", "/info": b"200", "/nothing": b"404"}.get(path, b"413")
            assert answer.split()[1] == expected


def test_a_body_in_chunks_is_refused_before_it_is_parsed(port):
    for path in (b"/gif", b"/info"):
        with connect(port) as client:
            head = HEAD.replace(b"Content-Length: %d", b"Transfer-Encoding: chunked").replace(b"/gif", path)
            client.sendall(head + b"1\r\n \r\n" * 10)  # the body does not end
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 400 ")
            assert is_closed(client)
    assert status(port) == 200
