"""Frames that wait for who reads a stream or a subscription. Floor 3."""

from __future__ import annotations

import asyncio

from grami_actors.conversation import Frame
from grami_actors.errors import ErrorCode, GramiError, MailboxFull

UNREAD = 10_000
"""Frames that may wait for whoever reads a stream or a subscription."""


class Inbox:
    """Frames for one reader; an error is raised behind them. Bounded."""

    __slots__ = ("_queue",)

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Frame | GramiError] = asyncio.Queue()

    def put(self, frame: Frame | GramiError) -> None:
        """Add one; from the one too many on they are lost, and the reader is told."""
        size = self._queue.qsize()
        if size < UNREAD or isinstance(frame, GramiError):
            self._queue.put_nowait(frame)
        elif size == UNREAD:
            self._queue.put_nowait(MailboxFull(f"{UNREAD} frames were not read", code=ErrorCode.SLOW_CONSUMER))

    async def get(self, until: float | None = None) -> Frame:
        """The next one. Raises GramiError; TimeoutError when there is none until then (on the loop's clock)."""
        if until is None or not self._queue.empty():
            frame = await self._queue.get()
        else:
            async with asyncio.timeout_at(until):
                frame = await self._queue.get()
        if isinstance(frame, GramiError):
            raise frame
        return frame
