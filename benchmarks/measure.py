"""How one run is measured: the clock, the CPU time and the memory around the operations, and nothing else."""

from __future__ import annotations

import gc
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

import msgspec
import psutil

ACTORS = 100
"""How many actors are asked at the same time, where many are."""

OUTSTANDING = 1_000
"""How many answers are waited for at the same time."""

RING = 1_000
NAP = 0.01
"""Seconds that a handler sleeps which is there to be waited for."""

Run = Callable[[int], Awaitable["Sample"]] | Callable[[int], "Sample"]
"""A workload of one peer: does its N operations, and says what they took."""


class Sample(msgspec.Struct):
    """What one run took.

    Attributes:
        ops: how many operations.
        wall: seconds by the clock.
        cpu: seconds of CPU, of all threads of the process.
        extra: what else the workload tells, such as ``bytes_each``; a key is a key of ``results.json``.
    """

    ops: int
    wall: float
    cpu: float
    extra: dict[str, float] = {}


class Meter:
    """Measures what stands in its ``with``. Garbage of the preparations is collected first, so that it is not paid for.

    Args:
        clock: where CPU time is read, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.process_time) -> None:
        self._clock = clock
        self.wall = 0.0
        self.cpu = 0.0

    def __enter__(self) -> Self:
        gc.collect()
        self.wall, self.cpu = -time.perf_counter(), -self._clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wall += time.perf_counter()
        self.cpu += self._clock()

    def sample(self, ops: int, **extra: float) -> Sample:
        """What was measured, for so many operations."""
        return Sample(ops, self.wall, self.cpu, extra)


def rss() -> int:
    """Bytes of memory that this process holds now, garbage left out."""
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def overhead_ms(meter: Meter, rounds: int, seconds: float) -> float:
    """Milliseconds that a round took beyond the ``seconds`` that its handlers slept at the same time."""
    return (meter.wall / rounds - seconds) * 1e3


def check(seen: Any, expected: Any) -> None:
    """A run that did not do its work has no speed."""
    if seen != expected:
        raise RuntimeError(f"the workload saw {seen!r} where {expected!r} was expected")
