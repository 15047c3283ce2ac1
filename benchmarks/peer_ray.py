"""The workloads, done by Ray's actors: a process for each, and servers of Ray's between them.

So its operations cross processes, which the others' do not. Its CPU time is that of all its processes together.
The workloads with many actors are left out: each would be a process of its own, on one machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import tempfile
from collections.abc import Generator
from typing import Any

import psutil
from measure import Meter, Run, Sample, check

# It reads the environment when it is imported.
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
import ray


class Sink:
    """Counts what it is told, and answers with the count."""

    def __init__(self) -> None:
        self.count = 0

    def take(self, _message: Any) -> int:
        self.count += 1
        return self.count


class Asker:
    """Asks another one after another."""

    def ask(self, to: Any, count: int) -> Any:
        for number in range(count - 1):
            ray.get(to.take.remote(number))
        return ray.get(to.take.remote("last"))


class Gate:
    """Waits until it is opened."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()

    async def open(self) -> None:
        self.opened.set()

    async def wait(self) -> bool:
        return await self.opened.wait()


class Hop:
    """Passes a number on, one less each time; at zero it opens a gate."""

    def follow(self, following: Any, gate: Any) -> bool:
        self.following, self.gate = following, gate
        return True

    def hop(self, number: int) -> None:
        if number == 0:
            self.gate.open.remote()
        else:
            self.following.hop.remote(number - 1)


def _cpu() -> float:
    """Seconds of CPU, of this process and all that it started."""
    total = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


@contextlib.contextmanager
def _cluster() -> Generator[None]:
    # Its logs go with it: otherwise every run would leave some behind.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=100_000_000,
            _temp_dir=folder,
        )
        try:
            yield
        finally:
            ray.shutdown()


def _start(kind: type[Any], *, concurrency: int = 1) -> Any:
    actor: Any = ray.remote(kind)
    return actor.options(num_cpus=0, max_concurrency=concurrency).remote()


def tell(n: int) -> Sample:
    with _cluster():
        ref = _start(Sink)
        ray.get(ref.take.remote("awake?"))
        with Meter(_cpu) as meter:
            for number in range(n - 1):
                ref.take.remote(number)
            check(ray.get(ref.take.remote("last")), n + 1)
    return meter.sample(n)


def ask(n: int) -> Sample:
    with _cluster():
        sink, asker = _start(Sink), _start(Asker)
        ray.get(asker.ask.remote(sink, 1))
        with Meter(_cpu) as meter:
            check(ray.get(asker.ask.remote(sink, n)), n + 1)
    return meter.sample(n)


def ping_pong(n: int) -> Sample:
    with _cluster():
        gate, ping, pong = _start(Gate, concurrency=2), _start(Hop), _start(Hop)
        ray.get([ping.follow.remote(pong, gate), pong.follow.remote(ping, gate)])
        with Meter(_cpu) as meter:
            ping.hop.remote(n - 1)
            ray.get(gate.wait.remote())
    return meter.sample(n)


def _memory() -> int:
    """Bytes that only these processes hold: what they share is counted for none."""
    return sum(process.memory_full_info().uss for process in psutil.Process().children(recursive=True))


def spawn(n: int) -> Sample:
    with _cluster():
        ray.get(_start(Sink).take.remote("awake?"))
        before = _memory()
        with Meter(_cpu) as meter:
            refs = [_start(Sink) for _ in range(n)]
            ray.get([ref.take.remote("awake?") for ref in refs])
        return meter.sample(n, bytes_each=(_memory() - before) / n)


RUNS: dict[str, Run] = {
    "tell": tell,
    "ask": ask,
    "ping-pong": ping_pong,
    "spawn-small": spawn,
}
