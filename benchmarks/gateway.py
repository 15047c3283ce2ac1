"""Measures a WebSocket server from inside its own process, while clients in another one keep it busy.

So the CPU time is the server's alone; rates and latencies are what the clients saw.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import gateway_clients
import msgspec
from measure import Meter, Sample, check, rss

WARM_UP = 20
"""Connections before the measurement, so that what is made once is not counted."""


class Clients:
    """The process with the clients. It takes a step each time it is told to, and says what came of it."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def step(self) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("the clients ended before their work did")
        return msgspec.json.decode(line)


@contextlib.asynccontextmanager
async def _clients(url: str, connections: int, count: int) -> AsyncGenerator[Clients]:
    script = str(Path(__file__).with_name("gateway_clients.py"))
    process = await asyncio.create_subprocess_exec(
        sys.executable, script, url, str(connections), str(count), stdin=PIPE, stdout=PIPE
    )
    try:
        clients = Clients(process)
        await clients.step()
        yield clients
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


async def round_trips(url: str, connections: int, n: int) -> Sample:
    """So many round trips, shared by so many connections that wait for each answer before they send again."""
    gateway_clients.raise_limit()
    async with _clients(url, connections, n) as clients:
        await clients.step()
        with Meter() as meter:
            result = await clients.step()
    check(result["ops"], n // connections * connections)
    meter.wall = result["wall"]
    return meter.sample(result["ops"], p50_us=result["p50_us"], p99_us=result["p99_us"])


async def idle(url: str, n: int) -> Sample:
    """So many connections that say nothing: what opening one takes, and what it holds."""
    gateway_clients.raise_limit()
    async with _clients(url, WARM_UP, 0) as clients:
        await clients.step()
    async with _clients(url, n, 0) as clients:
        before = rss()
        with Meter() as meter:
            result = await clients.step()
        check(result["connections"], n)
        return meter.sample(n, bytes_each=(rss() - before) / n)
