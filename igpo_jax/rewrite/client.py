"""HTTP client for an untrusted endpoint. The client limits the size of a reply and the time to receive it."""

import asyncio
import contextlib
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx2  # openai's own HTTP library
import openai

from igpo_jax.runtime.checks import require

MOST_BYTES = 1 << 23  # of a reply; a text of 1 MiB has at most 6 MiB in JSON, which may write a byte as \u0001


class LimitedClient(openai.DefaultAsyncHttpxClient):
    """HTTP client that allows at most `seconds` for a request and its whole reply. The client keeps no cookies. It does not
    follow redirects, because they would send the problems to another server."""

    def __init__(self, seconds: float):
        no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))
        super().__init__(timeout=seconds, follow_redirects=False, cookies=no_cookies, headers={"Accept-Encoding": "identity"})
        self._seconds = seconds

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Sends a request and returns the complete reply. Raises ValueError if the reply is compressed or larger than
        `MOST_BYTES`. Raises ReadTimeout if the reply takes too long. After a ReadTimeout, the openai library sends the request
        again."""
        try:
            async with asyncio.timeout(self._seconds):  # the timeouts of the library hold for each single read
                response = await super().send(request, **options | {"stream": True})
                async with contextlib.aclosing(response):
                    body = await _read(response)
        except TimeoutError:
            raise httpx2.ReadTimeout("the reply takes too long", request=request) from None
        whole = httpx2.Response(response.status_code, headers=response.headers, content=body, request=request)
        whole.encoding = "utf-8"  # otherwise the server chooses any of Python's codecs for an error, even zlib and punycode
        return whole


async def _read(response: httpx2.Response) -> bytes:
    encoding = response.headers.get("Content-Encoding", "identity")
    known = encoding.strip().lower() in ("", "identity")
    require(known, f"the reply has the Content-Encoding {encoding}, which was not asked for")
    body = bytearray()
    async for part in response.aiter_bytes():
        body += part
        require(len(body) <= MOST_BYTES, f"the reply has more than {MOST_BYTES >> 20} MiB")
    return bytes(body)
