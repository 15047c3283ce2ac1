"""The workloads, done by xoscar, with a pool in this process.

There an ask is a call of the method under the actor's lock, and a tell is a task of it: no mailbox, no message.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator
from typing import Any

import xoscar
from measure import ACTORS, NAP, OUTSTANDING, RING, Meter, Run, Sample, check, overhead_ms, rss


class Sink(xoscar.Actor):  # type: ignore[misc]
    """Counts what it is told, and answers with the count."""

    def __init__(self) -> None:
        self.count = 0

    def take(self, _message: Any) -> int:
        self.count += 1
        return self.count

    async def take_slowly(self, _message: Any) -> int:
        self.count += 1
        return self.count


class Napper(xoscar.Actor):  # type: ignore[misc]
    """Waits a moment before it answers."""

    async def take(self, message: Any) -> Any:
        await asyncio.sleep(NAP)
        return message


class Asker(xoscar.Actor):  # type: ignore[misc]
    """Asks, one after another or many at once."""

    async def ask(self, to: Any, count: int) -> Any:
        for number in range(count - 1):
            await to.take(number)
        return await to.take("last")

    async def ask_slowly(self, to: Any, count: int) -> Any:
        for number in range(count - 1):
            await to.take_slowly(number)
        return await to.take_slowly("last")

    async def crowd(self, refs: list[Any], outstanding: int, count: int) -> int:
        answered = 0
        for _ in range(count // outstanding):
            asks = (refs[number % len(refs)].take(number) for number in range(outstanding))
            answered += len(await asyncio.gather(*asks))
        return answered


class Hop(xoscar.Actor):  # type: ignore[misc]
    """Passes a number on, one less each time; at zero it says so."""

    def __init__(self, done: asyncio.Event) -> None:
        self.done = done
        self.following: Any = None

    def follow(self, following: Any) -> None:
        self.following = following

    async def hop(self, number: int) -> None:
        if number == 0:
            self.done.set()
        else:
            await self.following.hop.tell(number - 1)


@contextlib.asynccontextmanager
async def _pool() -> AsyncGenerator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    pool = await xoscar.create_actor_pool(f"127.0.0.1:{port}", n_process=0)
    async with pool:
        yield pool.external_address


async def tell(n: int) -> Sample:
    async with _pool() as address:
        ref = await xoscar.create_actor(Sink, address=address)
        with Meter() as meter:
            for number in range(n - 1):
                await ref.take.tell(number)
            check(await ref.take("last"), n)
    return meter.sample(n)


async def _ask(method: str, n: int) -> Sample:
    async with _pool() as address:
        sink = await xoscar.create_actor(Sink, address=address)
        asker = await xoscar.create_actor(Asker, address=address)
        with Meter() as meter:
            check(await getattr(asker, method)(sink, n), n)
    return meter.sample(n)


async def ask(n: int) -> Sample:
    return await _ask("ask", n)


async def ask_coroutine(n: int) -> Sample:
    return await _ask("ask_slowly", n)


async def _crowd(kind: type[Any], outstanding: int, n: int) -> Meter:
    async with _pool() as address:
        refs = [await xoscar.create_actor(kind, address=address) for _ in range(ACTORS)]
        asker = await xoscar.create_actor(Asker, address=address)
        with Meter() as meter:
            check(await asker.crowd(refs, outstanding, n), n)
    return meter


async def outstanding(n: int) -> Sample:
    return (await _crowd(Sink, OUTSTANDING, n)).sample(n)


async def fan_out(n: int) -> Sample:
    meter = await _crowd(Napper, ACTORS, n)
    return meter.sample(n, overhead_ms=overhead_ms(meter, n // ACTORS, NAP))


async def _hops(actors: int, n: int) -> Sample:
    async with _pool() as address:
        done = asyncio.Event()
        refs = [await xoscar.create_actor(Hop, done, address=address) for _ in range(actors)]
        for number, ref in enumerate(refs):
            await ref.follow(refs[(number + 1) % actors])
        with Meter() as meter:
            await refs[0].hop.tell(n - 1)
            await done.wait()
    return meter.sample(n)


async def ping_pong(n: int) -> Sample:
    return await _hops(2, n)


async def ring(n: int) -> Sample:
    return await _hops(RING, n)


async def spawn(n: int) -> Sample:
    async with _pool() as address:
        await xoscar.create_actor(Sink, address=address)
        before = rss()
        with Meter() as meter:
            refs = [await xoscar.create_actor(Sink, address=address) for _ in range(n)]
        return meter.sample(len(refs), bytes_each=(rss() - before) / n)


async def stop(n: int) -> Sample:
    async with _pool() as address:
        refs = [await xoscar.create_actor(Sink, address=address) for _ in range(n)]
        with Meter() as meter:
            for ref in refs:
                await xoscar.destroy_actor(ref)
    return meter.sample(n)


RUNS: dict[str, Run] = {
    "tell": tell,
    "ask": ask,
    "ask-coroutine": ask_coroutine,
    "outstanding": outstanding,
    "ping-pong": ping_pong,
    "ring": ring,
    "spawn-small": spawn,
    "spawn-large": spawn,
    "fan-out": fan_out,
    "stop": stop,
}
