"""The gateway's side of one TCP connection, and the count of all of them. Floor 12.

The library gives no answer to five questions that an open network asks: how many sockets are there, counting those
that never finish their handshake; since when does a message arrive, if it drips in a byte at a time; how large may
the next message be, now that the client has said who it is; who reads the pongs that a flood of pings is answered
with; and when is a connection over whose client got its close frame and does not hang up. What is used of the
library's inside for that is pinned in tests/test_socket.py.
"""

from __future__ import annotations

import asyncio
import ipaddress
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from typing import Any

from websockets.asyncio.server import Server, ServerConnection
from websockets.exceptions import InvalidState
from websockets.server import ServerProtocol

from grami_actors.gateway.house import Guest

HANDSHAKES = 256
"""Sockets above the limit that are let in, to hear in HTTP that the server is full, or that it is alive."""

HANDSHAKES_OF_ONE = 16
"""The same for one address: a client that holds its sockets in the handshake must not take them all."""

UNREAD_PONGS = 65_536
"""Bytes of pongs that may wait for a client which reads nothing; the library itself has no limit."""


class Sockets:
    """All TCP connections of a listener, also those that are still in their WebSocket handshake.

    With TLS they count from the end of its handshake on: bound that with the listener's ``ssl_handshake_timeout``.

    Args:
        max_connections: WebSocket connections that the server takes; :data:`HANDSHAKES` more sockets are let in, and
            any further one is cut off without a word.
        clock: seconds, of a clock that never goes back.
        most_of_one: the same for one address other than this machine's, with :data:`HANDSHAKES_OF_ONE` more.

    Attributes:
        open: how many there are.
        admitted: how many of them were let in as WebSocket connections.
    """

    def __init__(self, max_connections: int, clock: Callable[[], float], most_of_one: int = sys.maxsize) -> None:
        self.clock = clock
        self.open = 0
        self.admitted = 0
        self.opening: set[WebSocket] = set()
        self._most = max_connections + HANDSHAKES
        self._most_of_one = most_of_one + HANDSHAKES_OF_ONE
        self._addresses: Counter[str] = Counter()

    @property
    def connection_factory(self) -> Any:
        """What ``serve(create_connection=...)`` takes: makes a :class:`WebSocket` that is counted here."""
        return partial(WebSocket, sockets=self)

    def from_address(self, address: str) -> int:
        """How many sockets an address has open; none, as far as anybody should care, if it is this machine's own.

        All addresses of an IPv6 network of 64 bits are one: a single client has that many (RFC 4291 section 2.5.4).
        """
        return self._addresses[_place(address)]

    def enter(self, address: str) -> bool:
        """Count a new socket; whether there is room for it."""
        place = _place(address)
        if self.open >= self._most or (place and self._addresses[place] >= self._most_of_one):
            return False
        self.open += 1
        if place:
            self._addresses[place] += 1
        return True

    def end_handshakes(self) -> None:
        """Cut off all that did not finish theirs."""
        for connection in tuple(self.opening):
            connection.transport.abort()

    def leave(self, address: str) -> None:
        """Count a socket less."""
        self.open -= 1
        if place := _place(address):
            self._addresses[place] -= 1
            if not self._addresses[place]:
                del self._addresses[place]


class WebSocket(ServerConnection):
    """The library's connection, which also knows who it counts for and since when a message arrives.

    After the handshake its ``request`` and ``response`` are emptied: nobody reads them again, a token may be in them,
    and they are a quarter of what an idle connection holds. Take what you need of them in ``process_request``.

    Attributes:
        address: the client's, without the port, an IPv4 address always as such; empty for a local socket.
        guest: who it is, as the handshake said.
    """

    # Beside the library's own attributes in one dict, these would be the few that make it a large one: 1.5 KB more.
    __slots__ = (
        "_admitted",
        "_began",
        "_counted",
        "_deaf_since",
        "_hang_up",
        "_most_unsent",
        "_sockets",
        "_was_deaf",
        "address",
        "guest",
    )

    def __init__(self, protocol: ServerProtocol, server: Server, *, sockets: Sockets, **settings: Any) -> None:
        super().__init__(protocol, server, **settings)
        self.address = ""
        self.guest = Guest()
        self._sockets = sockets
        self._counted = self._admitted = False
        self._began: float | None = None
        self._deaf_since: float | None = None
        self._was_deaf = False
        self._hang_up: asyncio.TimerHandle | None = None
        self._most_unsent = 0
        # The parser asks this before each frame, and so tells where frames begin. The buffer would not: it is empty
        # in the middle of a frame too, once the header is taken from it.
        protocol.reader.at_eof = self._next_frame  # type: ignore[method-assign]

    @property
    def receiving_since(self) -> float | None:
        """When the first byte of a message came whose last one did not, by the clock of the sockets.

        ``None`` between two messages, and while the server itself does not read; the time in which it did not is
        left out. A control frame in the middle of a message (RFC 6455 section 5.4) changes nothing.
        """
        return self._began if self._deaf_since is None else None

    @property
    def last_code(self) -> int | None:
        """What the server closed it with, whether or not the client confirmed it; else what it ended with."""
        sent = self.protocol.close_sent
        return self.close_code if sent is None else sent.code

    def admit(self) -> None:
        """Count it as a WebSocket connection, from its handshake to its end."""
        self._admitted = True
        self._sockets.admitted += 1

    def allow(self, size: int) -> None:
        """Set how many bytes a message may have, from the next frame on; a larger one closes with 1009."""
        self.protocol.max_message_size = size

    def write(self, frame: bytes, *, text: bool) -> bool:
        """Send one message, without a task: as the library's own ``broadcast`` does, but with backpressure.

        Args:
            frame: the message, encoded.
            text: whether it goes into a text frame.

        Returns:
            whether to wait with ``drain`` before the next one: more is unsent than the transport likes.

        Raises:
            websockets.exceptions.InvalidState: the connection is closed, or about to be.
        """
        if self.transport.is_closing():
            raise InvalidState("the transport is closed")
        if text:
            self.protocol.send_text(frame)
        else:
            self.protocol.send_binary(frame)
        self.send_data()
        return self.paused

    def _next_frame(self) -> Generator[None, None, bool]:
        reader = self.protocol.reader
        if self.protocol.current_size is None:  # not in the middle of a fragmented message
            self._began = None
        if self.protocol.eof_sent and self._hang_up is None and self.close_timeout is not None:
            self._hang_up = self.loop.call_later(self.close_timeout, self.transport.abort)
        while not reader.buffer:
            if reader.eof:
                return True
            yield
        if self._began is None:
            self._began = self._sockets.clock()
        if self.paused and self.transport.get_write_buffer_size() > self._most_unsent:
            self.transport.abort()
        return False

    def pause_writing(self) -> None:
        """Let whoever sends wait; what the library answers by itself does not, so that is bounded from here on."""
        super().pause_writing()
        self._most_unsent = self.transport.get_write_buffer_size() + UNREAD_PONGS

    async def keepalive(self) -> None:
        """Ping as the library does, but hold nobody to a pong that the server itself did not read."""
        assert self.ping_interval is not None
        while True:
            await asyncio.sleep(self.ping_interval)
            pong = await self.ping()
            while not await self._in_time(pong):
                if not self._was_deaf:
                    async with self.send_context():
                        self.protocol.fail(1011, "keepalive ping timeout")

    async def _in_time(self, pong: Awaitable[float]) -> bool:
        self._was_deaf = self._deaf_since is not None
        try:
            async with asyncio.timeout(self.ping_timeout):
                await asyncio.shield(pong)
        except TimeoutError:
            return False
        return True

    def _stop_reading(self) -> None:
        self._was_deaf = True
        self._deaf_since = self._sockets.clock()
        self.transport.pause_reading()

    def _read_on(self) -> None:
        if self._began is not None and self._deaf_since is not None:
            self._began += self._sockets.clock() - self._deaf_since
        self._deaf_since = None
        self.transport.resume_reading()

    async def handshake(self, *args: Any, **settings: Any) -> None:
        """Perform the opening handshake, and forget what was said in it."""
        try:
            await super().handshake(*args, **settings)
        finally:
            self._sockets.opening.discard(self)
        # Emptied, not dropped: the parser holds the request until the connection ends.
        for said in (self.request, self.response):
            if said is not None:
                said.headers.clear()
        if self.request is not None:
            self.request.path = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a new socket, or cut it off if there are too many."""
        self.address = _address(transport.get_extra_info("peername"))
        self._counted = self._sockets.enter(self.address)
        if not self._counted:
            # No task, no answer: what is left of it is gone when this returns.
            transport.abort()  # type: ignore[attr-defined]
            return
        self._sockets.opening.add(self)
        super().connection_made(transport)
        self.recv_messages.pause = self._stop_reading
        self.recv_messages.resume = self._read_on

    def connection_lost(self, exc: Exception | None) -> None:
        """Count it no longer."""
        self._sockets.opening.discard(self)
        if self._counted:
            self._sockets.leave(self.address)
            self._sockets.admitted -= self._admitted
            super().connection_lost(exc)
        if self._hang_up is not None:
            self._hang_up.cancel()


def _address(peer: Any) -> str:
    if not isinstance(peer, tuple):
        return ""
    address = str(peer[0])
    # A listener for both families sees IPv4 clients as ::ffff:192.0.2.1 (RFC 4291 section 2.5.5.2).
    return address.removeprefix("::ffff:") if "." in address else address


def _place(address: str) -> str:
    """What an address is counted as; empty if it is this machine's own."""
    if not address or (found := ipaddress.ip_address(address)).is_loopback:
        return ""
    return address if found.version == 4 else f"{int(found) >> 64:x}::/64"  # noqa: PLR2004
