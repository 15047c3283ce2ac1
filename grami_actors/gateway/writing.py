"""The half of a connection that writes to its socket, and closes it. Floor 12."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

from grami_actors.actor import Actor
from grami_actors.frames import LONGEST_REASON
from grami_actors.gateway.house import Guest, Socket
from grami_actors.gateway.outbox import Outbox
from grami_actors.gateway.request import Room
from grami_actors.messages import Envelope
from grami_actors.telemetry import FramePassed

FLUSH = 1.0
"""Seconds that the last answers get before a connection is closed for misuse."""


class Writing(Actor):
    """Writes what is in the outbox of a connection.

    Args:
        socket: where frames are written.
        guest: who is at its other end.
        limit: bytes past which that is a slow reader.

    Attributes:
        sent: frames that the socket took.
        closed_with: the close code, once it is being closed.
    """

    def __init__(self, socket: Socket, guest: Guest, limit: int) -> None:
        super().__init__()
        self._now = self._cell.runtime.now
        self.guest = guest
        self.outbox = Outbox(limit)
        self.sent = 0
        self.closed_with = 0
        self._socket = socket
        self._closing = False
        self._writing = False
        self._crowded = False
        self._tasks: set[asyncio.Task[None]] = set()

    def start_task(self, work: Coroutine[Any, Any, None]) -> None:
        """Have something done that ends with the connection."""
        task = self._cell.runtime.begin(work)
        if not task.done():
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _write(self) -> None:
        """Write until the client must read first; only that needs a task."""
        text, outbox = self.guest.encoding.text, self.outbox
        try:
            while (frame := outbox.next()) is not None:
                if self._socket.write(frame, text=text):
                    self._writing = True
                    self.start_task(self._write_on(frame))
                    return
                self._written(frame)
        except Exception:  # noqa: BLE001 - the connection is closed: the reader sees the same and ends us
            outbox.give_up()

    async def _write_on(self, frame: bytes) -> None:
        with contextlib.suppress(Exception):  # as above; the next frame will find the same
            await self._socket.drain()
        self._writing = False
        self._written(frame)
        self._write()

    def _written(self, frame: bytes) -> None:
        self.outbox.written(frame, self._now())
        self.sent += 1
        if FramePassed in (bus := self._cell.runtime.bus):
            bus.publish(FramePassed(self.name, "out", frame, self.guest.encoding))
        if self._crowded and not self.outbox.congested:
            self._crowded = False
            self._cell.post_always(Envelope(Room()))

    def close(self, code: int, reason: str) -> None:
        """Close it, when what was said before is sent."""
        if not self._closing:
            self._closing = True
            self.closed_with = code
            self.start_task(self._flush_and_close(code, reason))

    async def _flush_and_close(self, code: int, reason: str) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH):
                await self.outbox.drained()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH):
                await self._socket.close(code, reason.encode()[:LONGEST_REASON].decode("utf-8", "ignore"))
                return
        # The close frame waits behind what is not read: a reader that never reads is cut off.
        self._socket.transport.abort()

    def allow(self, size: int) -> None:
        """Let its messages have so many bytes from now on."""
        self._socket.allow(size)
