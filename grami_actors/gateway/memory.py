"""A gateway without a port: its connections are two ends in memory. Floor 12.

The same actors, rules and client run over it as over a WebSocket, without a socket, a thread, a clock or dice of its
own: in a simulation what happens on a connection is the schedule's to choose. What it leaves out is what is the
network's: addresses, HTTP, TLS, pings, the rate of handshakes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import NoReturn, Self

from websockets.exceptions import ConnectionClosed, ConnectionClosedError, ConnectionClosedOK
from websockets.frames import OK_CLOSE_CODES, Close

from grami_actors.catalog import Catalog
from grami_actors.config import Config
from grami_actors.encoding import JSON, Encoding
from grami_actors.gateway.house import Guest
from grami_actors.gateway.reception import Reception
from grami_actors.policy import Policy
from grami_actors.principals import Principal
from grami_actors.system import ActorSystem
from grami_actors.telemetry import ConnectionRefused, LimitHit

ROOM = 65_536
"""Bytes that may wait for one end before the other is told to wait."""

PATIENCE = 2.0
"""Seconds that the other end has to confirm that a connection is closed, before it is cut."""


class End:
    """One end of a connection in memory; it behaves as the library's WebSocket does.

    It takes what is sent to it as it comes, but for the close frame: that comes when no more than its room is unread
    before it, and not while it is paused. What came before is still read when the connection is closed. A connection
    that is cut loses all that was not read, on both ends.

    Args:
        room: bytes that may be unread here before the other end is told to wait.
        most: bytes that one message to it may have; ``None`` for any.
    """

    def __init__(self, room: int = ROOM, most: int | None = None) -> None:
        self._room = room
        self._most = most
        self._peer = self
        self._inbox: deque[tuple[str | bytes, int]] = deque()
        self._size = 0
        self._paused = False
        self._reader: asyncio.Future[None] | None = None
        self._waiters: dict[asyncio.Future[None], None] = {}
        self._sent: Close | None = None
        self._received: Close | None = None
        self._answered = False
        self._over = False

    def join(self, peer: End) -> None:
        """Make this and another the two ends of one connection."""
        self._peer, peer._peer = peer, self

    # --- what it is ---

    @property
    def transport(self) -> Self:
        """What is cut by ``abort``: there is nothing below it."""
        return self

    @property
    def close_code(self) -> int | None:
        """What the other end closed it with, or confirmed; 1006 if it was cut, ``None`` while it is open."""
        if not self._over:
            return None
        return 1006 if self._received is None else int(self._received.code)

    @property
    def close_reason(self) -> str | None:
        """What was said with that."""
        if not self._over:
            return None
        return "" if self._received is None else self._received.reason

    @property
    def last_code(self) -> int | None:
        """What this end closed it with, whether or not the other confirmed it; else what it ended with."""
        return self.close_code if self._sent is None else int(self._sent.code)

    # --- sending ---

    def write(self, frame: bytes, *, text: bool) -> bool:
        """Send one message; whether to wait with :meth:`drain` before the next. Raises ConnectionClosed."""
        if self._over or self._sent is not None:
            self._refuse()
        return self._peer._take(frame, text=text)

    async def send(self, message: str | bytes, *, text: bool | None = None) -> None:
        """Send one message, and wait while too much is unread.

        Args:
            message: what to send.
            text: whether as a text frame; what is ``str`` is, if not given.

        Raises:
            ConnectionClosed: it was closed or cut, before or while it waited.
        """
        text = isinstance(message, str) if text is None else text
        if self.write(message.encode() if isinstance(message, str) else message, text=text):
            await self.drain()

    async def drain(self) -> None:
        """Wait until there is room at the other end. Raises ConnectionClosed."""
        peer = self._peer
        while not self._over and peer._size > peer._room:
            await self._change()
        if self._over:
            self._refuse()

    def _refuse(self) -> NoReturn:
        sent, received = self._sent, self._received
        order = self._answered if sent is not None and received is not None else None
        fine = all(close is not None and close.code in OK_CLOSE_CODES for close in (sent, received))
        error: type[ConnectionClosed] = ConnectionClosedOK if fine else ConnectionClosedError
        raise error(received, sent, order)

    # --- receiving ---

    def allow(self, size: int) -> None:
        """Let a message to it have so many bytes from now on; a larger one closes it with 1009."""
        self._most = size

    def _take(self, frame: bytes, *, text: bool) -> bool:
        size = len(frame)
        if self._most is not None and size > self._most:
            self._say(Close(1009, f"a message of {size} bytes exceeds the limit of {self._most} bytes"))
            return False
        try:
            self._inbox.append((frame.decode() if text else frame, size))
        except UnicodeDecodeError as error:
            self._say(Close(1007, f"{error.reason} at position {error.start}"))
            return False
        self._size += size
        self._wake_reader()
        return self._size > self._room

    async def recv(self) -> str | bytes:
        """The next message. Raises ConnectionClosed when there will be none. For one reader at a time."""
        while self._paused or not self._inbox:
            if self._over and not self._paused:
                self._refuse()
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        message, size = self._inbox.popleft()
        self._size -= size
        if self._size <= self._room:
            self._peer._wake()
            self._look()
        return message

    async def __aiter__(self) -> AsyncIterator[str | bytes]:
        """All messages, until it is closed normally. Raises ConnectionClosedError."""
        try:
            while True:
                yield await self.recv()
        except ConnectionClosedOK:
            return

    def pause(self) -> None:
        """Read nothing more until :meth:`resume`, as a client that hangs or has a slow line."""
        self._paused = True

    def resume(self) -> None:
        """Read on."""
        self._paused = False
        self._wake_reader()
        self._look()

    # --- its end ---

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close it, and wait for the other end to confirm that, for :data:`PATIENCE` seconds at most."""
        if not self._over and self._sent is None:
            self._say(Close(code, reason))
        if self._over:
            return
        try:
            async with asyncio.timeout(PATIENCE):
                while not self._over:
                    await self._change()
        except TimeoutError:
            self.abort()

    def abort(self) -> None:
        """Cut it: what is unread is lost, and both ends find out at once."""
        if not self._over:
            for end in (self, self._peer):
                end._inbox.clear()
                end._size = 0
            self._finish()

    def _say(self, close: Close) -> None:
        self._sent = close
        peer = self._peer
        if peer._sent is None:
            peer._look()
        else:  # both said it at the same time
            self._received, peer._received = peer._sent, close
            self._finish()

    def _look(self) -> None:
        """Confirm that the other end closes, once its close frame has come."""
        said = self._peer._sent
        if said is not None and self._sent is None and not self._over and not self._paused and self._size <= self._room:
            self._received = self._sent = self._peer._received = said
            self._answered = True
            self._finish()

    def _finish(self) -> None:
        for end in (self, self._peer):
            end._over = True
            end._wake_reader()
            end._wake()

    # --- waiting ---

    async def _change(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = None
        try:
            await waiter
        finally:
            self._waiters.pop(waiter, None)

    def _wake(self) -> None:
        for waiter in tuple(self._waiters):
            if not waiter.done():
                waiter.set_result(None)

    def _wake_reader(self) -> None:
        reader = self._reader
        if reader is not None and not self._paused and not reader.done():
            reader.set_result(None)


class ServerEnd(End):
    """The gateway's end.

    Args:
        guest: who is at the other.
        most: bytes that one message may have.
    """

    address = ""
    receiving_since = None
    """Messages come whole."""

    def __init__(self, guest: Guest, most: int) -> None:
        super().__init__(most=most)
        self.guest = guest


class MemoryGateway(Reception):
    """Takes clients of the same program; see :class:`~grami_actors.gateway.reception.Reception`.

    ::

        gateway = MemoryGateway(system, swarm.catalog(), config, policy, "0")
        async with Client(settings, gateway.connect) as client:
            await client.request("ping")
        await gateway.close()

    Its look around is a timer that there only is while there are connections.
    """

    def __init__(self, system: ActorSystem, catalog: Catalog, config: Config, policy: Policy, version: str) -> None:
        super().__init__(system, catalog, config, policy, version)
        self._serving: dict[asyncio.Task[None], None] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def connect(
        self, encoding: Encoding = JSON, *, principal: Principal | None = None, peer: str = "memory", room: int = ROOM
    ) -> End:
        """A new connection; the client's end of it.

        Args:
            encoding: of its frames.
            principal: who it is, if its handshake is to have said so.
            peer: its address, for people.
            room: bytes that may be unread by the client before the gateway is told to wait.

        Raises:
            ConnectionRefusedError: the gateway is closed, or has too many.
        """
        bus, config = self.system.bus, self._config
        if self.closing or len(self._serving) >= config.max_connections:
            reason = "the server is shutting down"
            if not self.closing:
                reason = f"{config.max_connections} connections are open, the server's limit"
                bus.publish(LimitHit("max_connections", ""))
            bus.publish(ConnectionRefused(peer, reason))
            raise ConnectionRefusedError(reason)
        most = self.first_message_bytes if principal is None else config.max_message_bytes
        here, there = ServerEnd(Guest(peer, principal, encoding), most), End(room)
        here.join(there)
        task = asyncio.get_running_loop().create_task(self._serve(here))
        self._serving[task] = None
        task.add_done_callback(self._served)
        if self._timer is None:
            self._look_later()
        return there

    def _served(self, task: asyncio.Task[None]) -> None:
        del self._serving[task]
        if not self._serving and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._most_pause, self._look_around)

    def _look_around(self) -> None:
        self._sweep()
        self._look_later()

    async def _stop_listening(self) -> None:
        while self._serving:
            await asyncio.wait(tuple(self._serving))
