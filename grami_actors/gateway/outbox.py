"""What waits to be written to one client, bounded in bytes and age. Floor 12.

Raw transport writes are unbounded: one client that stops reading would take the server's memory. Past the bound chunks
are dropped, progress is joined, answers and events wait unencoded and no request is read; see :mod:`.connection`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

SLOWEST = 131_072
"""Bytes a second that a reader needs to take, so that one large answer on a slow line is no reason to give it up."""


class Outbox:
    """Encoded frames for one client, with one writer.

    Args:
        limit: bytes past which the reader at the other end counts as slow.

    Attributes:
        size: bytes that wait.
        congested: whether there is no room for more.
    """

    __slots__ = ("_frames", "_limit", "_moved_at", "_oldest_at", "_taking", "_waiters", "congested", "size")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._frames: deque[tuple[bytes, float]] = deque()
        self._moved_at = 0.0
        self._oldest_at = 0.0
        self._taking = 0
        self._waiters: dict[asyncio.Future[None], int] = {}
        self.size = 0
        self.congested = False

    def stalled(self, now: float) -> float:
        """Seconds since the socket last took a frame, less what the next one takes; 0 or less while nothing waits."""
        return now - self._moved_at - self._taking / SLOWEST if self.size else 0.0

    def age(self, now: float) -> float:
        """Seconds that the oldest frame has waited; 0 while nothing waits."""
        return now - self._oldest_at if self.size else 0.0

    def add(self, frames: Iterable[bytes], now: float) -> None:
        """Queue frames."""
        if not self.size:
            self._moved_at = self._oldest_at = now
        for frame in frames:
            self._frames.append((frame, now))
            self.size += len(frame)
        self.congested = self.size > self._limit

    def next(self) -> bytes | None:
        """The next frame, if there is one. It counts until :meth:`written` says that the socket took it."""
        if not self._frames:
            return None
        frame, self._oldest_at = self._frames.popleft()
        self._taking = len(frame)
        return frame

    def written(self, frame: bytes, now: float) -> None:
        """The socket took the frame."""
        self._moved_at = now
        self.size -= len(frame)
        self.congested = self.size > self._limit
        if self._frames:
            self._oldest_at = self._frames[0][1]
        if self._waiters:
            self._wake(self.size)

    async def room(self) -> None:
        """Wait until there is room for more."""
        await self._below(self._limit)

    async def drained(self) -> None:
        """Wait until everything was written."""
        await self._below(0)

    def give_up(self) -> None:
        """Nothing of it will be written any more: whoever waits need not, now or later."""
        self._frames.clear()
        self.size = 0
        self.congested = False
        self._wake(0)

    async def _below(self, size: int) -> None:
        if self.size > size:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters[waiter] = size
            try:
                await waiter
            finally:
                self._waiters.pop(waiter, None)

    def _wake(self, size: int) -> None:
        for waiter, wanted in tuple(self._waiters.items()):
            if size <= wanted and not waiter.done():
                waiter.set_result(None)
