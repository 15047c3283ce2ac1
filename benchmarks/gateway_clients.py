"""The clients of the gateway's workloads: ``gateway_clients.py URL CONNECTIONS COUNT``, the same for every server.

A line on standard input lets it take the next step, a line on standard output says what came of it: first that it
is there, then that it has connected (and asked once on every connection), then what COUNT round trips took. It
ends with its standard input.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

TEXT = "x" * 64
AT_ONCE = 50
"""Handshakes at the same time: fewer than a listening socket holds back."""

FILES = 8_192


def raise_limit() -> None:
    """Allow this process as many open files as a thousand connections need, where there is a limit."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource  # noqa: PLC0415 - not on every platform

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < FILES:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(FILES, hard), hard))


async def _step(result: Any) -> bool:
    """Say what came of a step, wait for the word to take the next; whether it came."""
    print(json.dumps(result), flush=True)
    return bool(await asyncio.to_thread(sys.stdin.readline))


async def _ask(socket: ClientConnection, number: int) -> None:
    await socket.send(json.dumps({"type": "echo", "id": number, "text": TEXT}))
    answer = json.loads(await socket.recv())
    if answer["data"] != TEXT or answer["id"] != number:
        raise RuntimeError(f"a wrong answer: {answer}")


async def _connect(url: str, connections: int) -> list[ClientConnection]:
    room = asyncio.Semaphore(AT_ONCE)

    async def one() -> ClientConnection:
        async with room:
            return await connect(url, compression=None, proxy=None, open_timeout=60)

    return await asyncio.gather(*(one() for _ in range(connections)))


async def _load(sockets: list[ClientConnection], count: int) -> dict[str, float]:
    times: list[float] = []

    async def client(socket: ClientConnection) -> None:
        for number in range(count // len(sockets)):
            began = time.perf_counter()
            await _ask(socket, number)
            times.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*map(client, sockets))
    wall = time.perf_counter() - began
    times.sort()
    p50, p99 = times[len(times) // 2], times[len(times) * 99 // 100]
    return {"ops": len(times), "wall": wall, "p50_us": p50 * 1e6, "p99_us": p99 * 1e6}


async def main(url: str, connections: int, count: int) -> None:
    """Connect, work, wait for the end."""
    raise_limit()
    sys.stdin.readline()
    if not await _step({}):
        return
    sockets = await _connect(url, connections)
    if count:
        await asyncio.gather(*(_ask(socket, 0) for socket in sockets))
    if await _step({"connections": len(sockets)}) and count:
        await _step(await _load(sockets, count))
    await asyncio.gather(*(socket.close() for socket in sockets))


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where it is installed: the same for the clients and for every server."""
    with contextlib.suppress(ImportError):  # it does not exist for every platform
        import uvloop  # noqa: PLC0415

        return uvloop.new_event_loop
    return None


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
