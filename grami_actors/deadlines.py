"""When asks end that nobody answers. Floor 3.

Nearly every ask is answered long before its deadline, so a timer for each would be made in vain, and cost more than
the ask. Instead each is written down, and looked at once after :data:`TICK` seconds: what is settled by then is
forgotten, and only what is left goes into a heap, with one timer for its earliest entry.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import math
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

TICK = 0.01
"""Seconds after which an ask that was not answered is looked at; one that ends earlier gets a timer of its own."""

SPARSE = 64
"""A heap is swept when it has doubled since the last time, but not while it is smaller than this."""


class Expiring(Protocol):
    """What has a deadline."""

    deadline: float

    def done(self) -> bool:
        """Whether it has ended, so that its deadline means nothing any more."""

    def expire(self) -> None:
        """The deadline has passed."""


class Deadlines:
    """Expires what is not done at its deadline, on the loop's thread; ``add`` may be called from any thread.

    Args:
        loop: the running loop.
        clock: seconds, monotonic; what deadlines are counted in.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float]) -> None:
        self._loop = loop
        self._clock = clock
        self._thread = threading.get_ident()
        self._young: deque[Expiring] = deque()
        self._old: list[tuple[float, int, Expiring]] = []
        self._number = itertools.count()
        self._sweep_at = SPARSE
        self._ticking = False
        self._timer: asyncio.TimerHandle | None = None

    def add(self, expiring: Expiring, remaining: float) -> None:
        """Have it expire in ``remaining`` seconds, which is when its deadline comes."""
        if remaining <= TICK:
            self._call(max(0.0, remaining), self._end, expiring)
            return
        self._young.append(expiring)
        if not self._ticking:
            self._ticking = True
            self._call(TICK, self._tick)

    def _call(self, delay: float, callback: Callable[..., object], *args: object) -> None:
        if threading.get_ident() == self._thread:
            self._loop.call_later(delay, callback, *args)
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed: whoever waits has its own clock
                self._loop.call_soon_threadsafe(self._loop.call_later, delay, callback, *args)

    @staticmethod
    def _end(expiring: Expiring) -> None:
        if not expiring.done():
            expiring.expire()

    def _tick(self) -> None:
        # Cleared before the entries are read: whoever adds one from now on asks for another tick.
        self._ticking = False
        young = self._young
        for _ in range(len(young)):
            expiring = young.popleft()
            if not expiring.done():
                heapq.heappush(self._old, (expiring.deadline, next(self._number), expiring))
        if len(self._old) > self._sweep_at:
            self._old = [entry for entry in self._old if not entry[2].done()]
            heapq.heapify(self._old)
            self._sweep_at = max(SPARSE, 2 * len(self._old))
        self._expire()

    def _expire(self) -> None:
        now = self._clock()
        while self._old and (self._old[0][0] <= now or self._old[0][2].done()):
            self._end(heapq.heappop(self._old)[2])
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._old:
            self._timer = self._loop.call_later(self._old[0][0] - now, self._expire)

    def earliest(self) -> float:
        """The first deadline that ends something, of those that are more than a tick old."""
        while self._old and self._old[0][2].done():
            heapq.heappop(self._old)
        return self._old[0][0] if self._old else math.inf

    def close(self) -> None:
        """Forget everything."""
        if self._timer is not None:
            self._timer.cancel()
        self._young.clear()
        self._old.clear()
