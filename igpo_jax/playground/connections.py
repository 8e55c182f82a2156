"""HTTP connections of the playground's server. The server closes a connection if its client sends or reads nothing for too
long."""

import asyncio
import collections
import functools
import ipaddress
import time
from typing import Any

import h11
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_BYTES = 1 << 16
MOST_CONNECTIONS = 128  # more than the jobs that may wait, fewer than the files that a process may open
WAIT_SECONDS = 30.0  # for a whole request, or for a client to read 64 KiB of a response


def network_of(host: str) -> str:
    """Returns the network of an address. All addresses in a network count as one client. The network of an IPv4 address is this
    address alone. The network of an IPv6 address consists of all addresses with the same first 64 bits, because one client may
    use all of them."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:  # a socket without addresses
        return host
    if isinstance(address, ipaddress.IPv6Address) and not address.ipv4_mapped:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(getattr(address, "ipv4_mapped", None) or address)


class Parser(h11.Connection):
    """Parser of a client's requests that refuses bodies in chunks. Chunks of one byte would take seconds to parse, in which no
    other client is served. Browsers send bodies of a known length."""

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request) and any(name == b"transfer-encoding" for name, _ in event.headers):
            raise h11.RemoteProtocolError("a body in chunks")
        return event


class Connection(H11Protocol):
    """An HTTP connection that is closed if its client makes the server wait for more than `WAIT_SECONDS`. If there are already
    `MOST_CONNECTIONS` connections, a new connection replaces one on which the server waits. The replaced connection belongs to
    the client with the most connections. Among this client's connections, it is the one on which the server has waited longest.
    If the server waits on none of the connections, it closes the new connection. The head of a request may have at most
    `HEAD_BYTES`."""

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self.conn = Parser(h11.SERVER, HEAD_BYTES)
        self.app: Any = functools.partial(self._serve, self.app)
        self.waits_since: float | None = None  # None while the server works for the client
        self._unread = False
        self._requests: set[object] = set()  # those on which the server works; the next may begin before the first has ended
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        others: list[Any] = [other for other in self.connections if not other.transport.is_closing()]
        if len(others) >= MOST_CONNECTIONS:
            number = collections.Counter(other.network for other in others)
            waiting = [other for other in others if other.waits_since is not None]
            order = {other: (-number[other.network], other.waits_since) for other in waiting}
            (min(waiting, key=order.__getitem__).transport if waiting else transport).abort()
        super().connection_made(transport)
        self.network = network_of(self.client[0] if self.client else "")  # kept because it takes long to find
        self._changed()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._timer:
            self._timer.cancel()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = True
        self._changed()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unread = False
        self._changed()

    async def _serve(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        async def received() -> Message:
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body"):
                self._requests.add(received)
                self._changed()
            return message

        try:
            await app(scope, received, send)
        finally:
            self._requests.discard(received)
            self._changed()

    def _changed(self) -> None:
        if self._timer:
            self._timer.cancel()
        waits = not self.transport.is_closing() and (self._unread or not self._requests)
        self.waits_since = time.monotonic() if waits else None
        self._timer = self.loop.call_later(WAIT_SECONDS, self.transport.abort) if waits else None
