"""Requests that end before they are complete."""

import anyio
import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request

from igpo_jax.playground.server import read_json_body


@pytest.mark.parametrize("begun", [[], [{"type": "http.request", "body": b'{"prompt"', "more_body": True}]])
def test_a_client_that_leaves_within_its_request_is_no_failure_of_the_server(begun):
    messages = iter([*begun, {"type": "http.disconnect"}])

    async def receive():
        return next(messages)

    request = Request({"type": "http", "method": "POST", "headers": [(b"content-type", b"application/json")]}, receive)
    with pytest.raises(HTTPException) as raised:
        anyio.run(read_json_body, request, 100)
    assert raised.value.status_code == 400
