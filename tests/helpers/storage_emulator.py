"""An emulator of Google Cloud Storage on this machine."""

import contextlib
import http.server
import logging
import threading
import unittest.mock
from collections.abc import Iterator
from http import HTTPStatus

from gcp_storage_emulator import server as emulator
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects

_alone = threading.Lock()


class _ThreadingServer(http.server.ThreadingHTTPServer):
    """Answers requests at the same time. The emulator's own server loses connections if a client opens many of them."""

    request_queue_size = 256
    daemon_threads = True


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

    return handle


@contextlib.contextmanager
def storage_emulator() -> Iterator[str]:
    """Context manager that runs the emulator with an empty bucket "team". Yields its address."""
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    for _, handlers in emulator.HANDLERS:
        for method, handler in handlers.items():
            if handler in (objects.insert, objects.delete):
                handlers[method] = _conditional(handler)
    with unittest.mock.patch.object(emulator.server, "HTTPServer", _ThreadingServer):
        server = emulator.create_server("localhost", 0, in_memory=True, default_bucket="team")
        server.start()
    yield f"http://localhost:{server._api._httpd.server_address[1]}"
    server.stop()


def environment(address: str) -> dict[str, str]:
    """Returns the environment variables with which a process uses the emulator."""
    return {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "anon",
    }
