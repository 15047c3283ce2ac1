"""What waits to be written to one socket, bounded in bytes. Floor 12."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

STALL = 2.0
"""Seconds without a frame taken after which a reader with too much to read is slow: a burst alone proves nothing."""

MOST = 16
"""Times the limit at which nobody waits for a reader any more, however short the time."""


class Outbox:
    """A queue of encoded frames. The owner asks :meth:`congested` before it adds what may be dropped.

    Args:
        limit: bytes; above it the outbox is congested. It overflowed when twice as much waits and nothing was taken
            for :data:`STALL` seconds, or when :data:`MOST` times as much waits.
    """

    __slots__ = ("_drained", "_frames", "_limit", "_moved_at", "_size")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._frames: deque[bytes] = deque()
        self._size = 0
        self._moved_at = 0.0
        self._drained: asyncio.Future[None] | None = None

    def congested(self) -> bool:
        """Whether the reader at the other end is slow: drop what may be dropped."""
        return self._size > self._limit

    def overflowed(self, held: int, now: float) -> bool:
        """Whether the reader is too slow to be kept; ``held`` bytes wait elsewhere for their turn."""
        waiting = self._size + held
        return waiting > MOST * self._limit or (waiting > 2 * self._limit and now - self._moved_at > STALL)

    def add(self, frames: Iterable[bytes], now: float) -> None:
        """Queue frames."""
        if not self._size:
            self._moved_at = now
        for frame in frames:
            self._frames.append(frame)
            self._size += len(frame)

    def next(self) -> bytes | None:
        """The next frame, if there is one. It counts until :meth:`written` says that the socket took it."""
        return self._frames.popleft() if self._frames else None

    def written(self, frame: bytes, now: float) -> None:
        """The socket took the frame."""
        self._moved_at = now
        self._size -= len(frame)
        if self._size == 0 and self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    async def drained(self) -> None:
        """Wait until everything was written."""
        if self._size:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained
