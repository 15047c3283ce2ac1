"""The workloads, done by grami_actors, through what it exports."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from measure import ACTORS, NAP, OUTSTANDING, RING, Meter, Run, Sample, check, overhead_ms, rss

from grami_actors import Actor, ActorSystem, Ref, RestartPolicy

LIMIT = 600.0


class Sink(Actor):
    """Counts what it is told, and answers with the count."""

    mailbox = 1_000_000

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def on_receive(self, message: Any) -> int:
        self.count += 1
        return self.count


class SlowSink(Sink):
    """The same with a coroutine handler."""

    async def on_receive(self, message: Any) -> int:  # type: ignore[override]
        self.count += 1
        return self.count


class Napper(Actor):
    """Waits a moment before it answers."""

    async def on_receive(self, message: Any) -> Any:
        await asyncio.sleep(NAP)
        return message


class Asker(Actor):
    """Asks another one after another."""

    async def on_receive(self, message: tuple[Ref[Any], int]) -> Any:
        to, count = message
        for number in range(count - 1):
            await self.ask(to, number)
        return await self.ask(to, "last")


class Crowd(Actor):
    """Asks many at once, in rounds, and waits for all answers of a round."""

    async def on_receive(self, message: tuple[list[Ref[Any]], int, int]) -> int:
        refs, outstanding, count = message
        answered = 0
        for _ in range(count // outstanding):
            answers = [self.ask(refs[number % len(refs)], number) for number in range(outstanding)]
            for answer in answers:
                await answer
            answered += len(answers)
        return answered


class Hop(Actor):
    """Passes a number on, one less each time; at zero it says so."""

    def __init__(self, done: asyncio.Event) -> None:
        super().__init__()
        self.done = done
        self.next: Ref[Any] | None = None

    def on_receive(self, message: Any) -> None:
        if not isinstance(message, int):
            self.next = message
        elif message == 0:
            self.done.set()
        else:
            assert self.next is not None
            self.tell(self.next, message - 1)


class Fragile(Actor):
    """Fails at every message."""

    restart = RestartPolicy(intensity=1_000_000, period=0.001, shortest=0.0, longest=0.0, jitter=0.0)
    born = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).born += 1

    def on_receive(self, message: Any) -> None:
        raise ValueError(message)


class Breaker(Actor):
    """Makes another fail, again and again: the next question is answered by its next instance."""

    async def on_receive(self, message: tuple[Ref[Any], int]) -> None:
        to, count = message
        for number in range(count):
            with contextlib.suppress(Exception):
                await self.ask(to, number)


async def tell(n: int) -> Sample:
    async with ActorSystem() as system:
        ref = await system.spawn(Sink)
        with Meter() as meter:
            for number in range(n - 1):
                ref.tell(number)
            check(await system.ask(ref, "last", timeout=LIMIT), n)
    return meter.sample(n)


async def tell_thread(n: int) -> Sample:
    async with ActorSystem() as system:
        ref = await system.spawn(Sink)

        def send() -> Any:
            for number in range(n - 1):
                ref.tell(number)
            return ref.ask("last", timeout=LIMIT)

        with Meter() as meter:
            check(await asyncio.to_thread(send), n)
    return meter.sample(n)


async def _ask(kind: type[Actor], n: int) -> Sample:
    async with ActorSystem() as system:
        sink, asker = await system.spawn(kind), await system.spawn(Asker)
        with Meter() as meter:
            check(await system.ask(asker, (sink, n), timeout=LIMIT), n)
    return meter.sample(n)


async def ask(n: int) -> Sample:
    return await _ask(Sink, n)


async def ask_coroutine(n: int) -> Sample:
    return await _ask(SlowSink, n)


async def _crowd(kind: type[Actor], outstanding: int, n: int) -> Meter:
    async with ActorSystem() as system:
        refs = [await system.spawn(kind) for _ in range(ACTORS)]
        asker = await system.spawn(Crowd)
        with Meter() as meter:
            check(await system.ask(asker, (refs, outstanding, n), timeout=LIMIT), n)
    return meter


async def outstanding(n: int) -> Sample:
    return (await _crowd(Sink, OUTSTANDING, n)).sample(n)


async def fan_out(n: int) -> Sample:
    meter = await _crowd(Napper, ACTORS, n)
    return meter.sample(n, overhead_ms=overhead_ms(meter, n // ACTORS, NAP))


async def _hops(actors: int, n: int) -> Sample:
    async with ActorSystem() as system:
        done = asyncio.Event()
        refs = [await system.spawn(Hop, done) for _ in range(actors)]
        for number, ref in enumerate(refs):
            ref.tell(refs[(number + 1) % actors])
        with Meter() as meter:
            refs[0].tell(n - 1)
            await done.wait()
    return meter.sample(n)


async def ping_pong(n: int) -> Sample:
    return await _hops(2, n)


async def ring(n: int) -> Sample:
    return await _hops(RING, n)


async def _spawned(n: int) -> tuple[ActorSystem, list[Ref[Any]], Sample]:
    # Entered and never left: what comes after the measurement is not waited for.
    system = await contextlib.AsyncExitStack().enter_async_context(ActorSystem())
    await system.spawn(Sink)
    before = rss()
    with Meter() as meter:
        refs = [await system.spawn(Sink) for _ in range(n)]
    return system, refs, meter.sample(n, bytes_each=(rss() - before) / n)


async def spawn(n: int) -> Sample:
    _, _, sample = await _spawned(n)
    return sample


async def million(n: int) -> Sample:
    system, refs, sample = await _spawned(n)
    with Meter() as meter:
        for ref in refs:
            check(await system.ask(ref, "awake?"), 1)
    sample.extra["ask_cpu_us"] = meter.cpu / n * 1e6
    return sample


async def stop(n: int) -> Sample:
    async with ActorSystem() as system:
        for _ in range(n):
            await system.spawn(Sink)
        with Meter() as meter:
            await system.close()
    return meter.sample(n)


async def restart(n: int) -> Sample:
    async with ActorSystem() as system:
        fragile, breaker = await system.spawn(Fragile), await system.spawn(Breaker)
        with Meter() as meter:
            await system.ask(breaker, (fragile, n), timeout=LIMIT)
        check(Fragile.born >= n, expected=True)
    return meter.sample(n)


RUNS: dict[str, Run] = {
    "tell": tell,
    "tell-thread": tell_thread,
    "ask": ask,
    "ask-coroutine": ask_coroutine,
    "outstanding": outstanding,
    "ping-pong": ping_pong,
    "ring": ring,
    "spawn-small": spawn,
    "spawn-large": spawn,
    "million": million,
    "fan-out": fan_out,
    "stop": stop,
    "restart": restart,
}
