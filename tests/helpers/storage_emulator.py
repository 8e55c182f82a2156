"""An emulator of Google Cloud Storage on this machine."""

import collections
import contextlib
import dataclasses
import http.server
import json
import logging
import math
import pathlib
import random
import re
import socket
import threading
import time
import unittest.mock
from collections.abc import Iterator
from http import HTTPStatus

from gcp_storage_emulator import server as emulator
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects

from igpo_jax.run import bucket_runs
from igpo_jax.runtime import buckets

LIST = r"/o/?(\?|$)"  # in addresses of requests for lists

_alone = threading.RLock()  # the emulator's storage is not made for several threads


def _locked(handler):
    def handle(*args, **kwargs):
        with _alone:
            return handler(*args, **kwargs)

    handle.alone = True
    return handle


def _with_generation(handler):
    """Adds the header x-goog-generation, which the emulator lacks, to a handler that reads an object. TensorStore needs it for
    changing an object."""

    def handle(request, response, storage, *args, **kwargs):
        with _alone:
            handler(request, response, storage, *args, **kwargs)
            with contextlib.suppress(NotFound):
                found = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
                response["x-goog-generation"] = found["generation"]

    handle.alone = True
    return handle


def _read_data(request_handler, query):
    """Replaces the emulator's function of this name, which takes the parts of an upload for mails and drops a carriage return at
    the end of an object."""
    kind = request_handler.headers.get("Content-Type") or ""
    if not kind.startswith("multipart/related"):
        return _read_other_data(request_handler, query)
    raw = emulator._decode_raw_data(emulator._read_raw_data(request_handler), request_handler)
    boundary = b"--" + re.search('boundary="?([^";]+)', kind)[1].encode()
    _, described, content = raw.split(boundary, 2)
    line_end = b"\r\n" if described.startswith(b"\r\n") else b"\n"
    headers, _, content = content.rpartition(line_end + boundary)[0].partition(2 * line_end)
    content_type = re.search(rb"(?i)content-type: *([^;\s]+)", headers)
    return {
        "meta": json.loads(described.partition(2 * line_end)[2]),
        "content": content,
        "content-type": content_type[1].decode() if content_type else "application/octet-stream",
    }


_read_other_data = emulator._read_data


class _ThreadingServer(http.server.ThreadingHTTPServer):
    """Answers requests at the same time. The emulator's own server loses connections if a client opens many of them."""

    request_queue_size = 256
    daemon_threads = True

    def handle_error(self, *_):
        """Prints nothing, because clients that are killed close their connections."""


def _conditional(handler):
    """Adds the condition ifGenerationMatch, which the emulator lacks, to a handler that writes or deletes an object."""

    def handle(request, response, storage, *args, **kwargs):
        [wanted] = request.query.get("ifGenerationMatch", [None])
        with _alone:
            if wanted is not None:
                name = request.params.get("object_id") or request.query["name"][0]
                try:
                    found = storage.get_file_obj(request.params["bucket_name"], name)["generation"]
                except NotFound:
                    found = "0"
                if found != wanted:
                    response.status = HTTPStatus.PRECONDITION_FAILED
                    return None
            return handler(request, response, storage, *args, **kwargs)

    handle.alone = True
    return handle


@dataclasses.dataclass
class Network:
    """What lies between the emulator and its clients. Counts requests and bytes, and makes faults."""

    unavailable: float = 0.0  # share of requests that are answered with the status 503
    cut: float = 0.0  # share of replies that end in the middle
    latency: float = 0.0  # seconds
    bytes_per_second: float = math.inf  # of all requests together
    away_until: float = 0.0  # in terms of time.monotonic; until then, connections are closed without a reply
    requests: collections.Counter = dataclasses.field(default_factory=collections.Counter)  # by method and kind
    received: int = 0  # bytes
    downloaded: int = 0  # bytes of contents of objects
    listed: int = 0  # bytes of lists of objects
    free_at: float = 0.0  # when the next byte can be sent, in terms of time.monotonic
    draw: random.Random = dataclasses.field(default_factory=lambda: random.Random(0))

    def handle(self, router, method: str) -> None:
        """Replaces `Router.handle`."""
        request = router._request_handler
        size = int(request.headers.get("Content-Length") or 0)
        kind = "list" if re.search(LIST, request.path) and method == "GET" else "other"
        self.requests[method, kind] += 1
        self.received += size
        if time.monotonic() < self.away_until:
            request.close_connection = True
            request.connection.shutdown(socket.SHUT_RDWR)
            return
        time.sleep(self.latency)
        self._transfer(size)
        if self.draw.random() < self.unavailable:
            request.rfile.read(size)
            request.send_error(503)
            return
        _handle(router, method)

    def close(self, response) -> None:
        """Replaces `Response.close`."""
        content = response._content.encode() if isinstance(response._content, str) else response._content
        self.downloaded += len(content) * bool(re.search("alt=media|/download/", response._handler.path))
        if re.search(LIST, response._handler.path) and response._handler.command == "GET":
            self.listed += len(content)
        self._transfer(len(content))
        if content and self.draw.random() < self.cut:
            handler = response._handler
            handler.send_response(response.status.value, response.status.phrase)
            for name, value in (response._headers | {"Content-Length": len(content)}).items():
                handler.send_header(name, str(value))
            handler.end_headers()
            handler.wfile.write(content[: len(content) // 2])
            handler.wfile.flush()
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
        else:
            _close(response)

    def _transfer(self, size: int) -> None:
        """Waits as long as a network of limited speed needs for `size` bytes, after those of earlier calls."""
        with _alone:
            self.free_at = max(self.free_at, time.monotonic()) + size / self.bytes_per_second
            end = self.free_at
        time.sleep(max(0.0, end - time.monotonic()))


_handle, _close = emulator.Router.handle, emulator.Response.close


@contextlib.contextmanager
def storage_emulator(network: Network | None = None) -> Iterator[str]:
    """Context manager that runs the emulator with an empty bucket "team". Yields its address."""
    network = network or Network()
    emulator.Router.handle = lambda router, method: network.handle(router, method)
    emulator.Response.close = lambda response: network.close(response)
    emulator._read_data = _read_data
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    for _, handlers in emulator.HANDLERS:
        for method, handler in handlers.items():
            if handler in (objects.insert, objects.delete):
                handlers[method] = _conditional(handler)
            elif handler in (objects.get, objects.download):
                handlers[method] = _with_generation(handler)
            elif not hasattr(handler, "alone"):
                handlers[method] = _locked(handler)
    with unittest.mock.patch.object(emulator.server, "HTTPServer", _ThreadingServer):
        server = emulator.create_server("localhost", 0, in_memory=True, default_bucket="team")
        server.start()
    try:
        yield f"http://localhost:{server._api._httpd.server_address[1]}"
    finally:
        server.stop()


@contextlib.contextmanager
def connected(address: str, monkeypatch, cache: pathlib.Path) -> Iterator:
    """Context manager in whose body this process and the processes that it starts use the emulator, and `cache` as the user's
    cache. Yields gcsfs's file system."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", address)
    monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "anon")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(buckets, "_patience", buckets.COMMAND_PATIENCE)  # `be_patient` changes it
    caches = (buckets.filesystem, buckets._small_files, bucket_runs._downloaded_settings)
    for cached in caches:
        cached.cache_clear()
    yield buckets.filesystem()
    for cached in caches:
        cached.cache_clear()
