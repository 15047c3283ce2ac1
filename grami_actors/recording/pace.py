"""When the handlers of a replay go on. Floor 15."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from grami_actors.history import Told
from grami_actors.simulation.loop import BEGIN, VirtualLoop


class Pace:
    """Has a handler go on when it went on.

    Args:
        loop: of the run.
        told: what is recorded of the handler.
        over: done when the run is over, and nobody is held up any more.
    """

    def __init__(self, loop: VirtualLoop, told: Told, over: asyncio.Future[Any]) -> None:
        self._loop = loop
        self._over = over
        self._left = deque(BEGIN + told.taken + each * 1e-9 for each in told.steps)

    def __call__(self) -> asyncio.Future[None] | None:
        """What is to be waited for, if it is too early."""
        if not self._left or self._over.done():
            return None
        if self._left[0] <= self._loop.time():
            self._left.popleft()
            return None
        due = self._loop.create_future()
        self._loop.call_at(self._left[0], _arrive, due)
        return due


def _arrive(due: asyncio.Future[None]) -> None:
    if not due.done():
        due.set_result(None)
