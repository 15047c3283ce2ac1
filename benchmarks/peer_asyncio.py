"""The limit for actors on an event loop: an ``asyncio.Queue`` and a task for each, and nothing of what actors promise.

No names, no supervision, no deadlines, no bounds; what is left is what every message must pay.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from measure import ACTORS, NAP, OUTSTANDING, RING, Meter, Run, Sample, check, overhead_ms, rss

Mail = tuple[Any, asyncio.Future[Any] | None]


class Worker:
    """A queue, and a task that hands over what is in it."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Mail] = asyncio.Queue()
        self.task = asyncio.get_running_loop().create_task(self.run())
        self.count = 0

    def tell(self, message: Any) -> None:
        self.queue.put_nowait((message, None))

    def ask(self, message: Any) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.queue.put_nowait((message, answer))
        return answer

    async def run(self) -> None:
        get, handle = self.queue.get, self.handle
        while True:
            message, answer = await get()
            result = handle(message)
            if answer is not None:
                answer.set_result(result)

    def handle(self, message: Any) -> Any:
        self.count += 1
        return self.count


class CoroutineWorker(Worker):
    """The same with a coroutine handler."""

    async def run(self) -> None:
        while True:
            message, answer = await self.queue.get()
            result = await self.work(message)
            if answer is not None:
                answer.set_result(result)

    async def work(self, message: Any) -> Any:
        self.count += 1
        return self.count


class Napper(CoroutineWorker):
    async def work(self, message: Any) -> Any:
        await asyncio.sleep(NAP)
        return message


class Asker(CoroutineWorker):
    async def work(self, message: tuple[Worker, int]) -> Any:
        to, count = message
        for number in range(count - 1):
            await to.ask(number)
        return await to.ask("last")


class Crowd(CoroutineWorker):
    async def work(self, message: tuple[list[Worker], int, int]) -> int:
        workers, outstanding, count = message
        answered = 0
        for _ in range(count // outstanding):
            answers = [workers[number % len(workers)].ask(number) for number in range(outstanding)]
            for answer in answers:
                await answer
            answered += len(answers)
        return answered


class Hop(Worker):
    next: Worker
    done: asyncio.Event

    def handle(self, message: int) -> None:
        if message == 0:
            self.done.set()
        else:
            self.next.tell(message - 1)


async def tell(n: int) -> Sample:
    worker = Worker()
    with Meter() as meter:
        for number in range(n - 1):
            worker.tell(number)
        check(await worker.ask("last"), n)
    return meter.sample(n)


async def tell_thread(n: int) -> Sample:
    worker, loop = Worker(), asyncio.get_running_loop()

    async def last() -> Any:
        return await worker.ask("last")

    def send() -> Any:
        for number in range(n - 1):
            loop.call_soon_threadsafe(worker.tell, number)
        return asyncio.run_coroutine_threadsafe(last(), loop).result()

    with Meter() as meter:
        check(await asyncio.to_thread(send), n)
    return meter.sample(n)


async def _ask(kind: Callable[[], Worker], n: int) -> Sample:
    worker, asker = kind(), Asker()
    with Meter() as meter:
        check(await asker.ask((worker, n)), n)
    return meter.sample(n)


async def ask(n: int) -> Sample:
    return await _ask(Worker, n)


async def ask_coroutine(n: int) -> Sample:
    return await _ask(CoroutineWorker, n)


async def _crowd(kind: Callable[[], Worker], outstanding: int, n: int) -> Meter:
    workers, asker = [kind() for _ in range(ACTORS)], Crowd()
    with Meter() as meter:
        check(await asker.ask((workers, outstanding, n)), n)
    return meter


async def outstanding(n: int) -> Sample:
    return (await _crowd(Worker, OUTSTANDING, n)).sample(n)


async def fan_out(n: int) -> Sample:
    meter = await _crowd(Napper, ACTORS, n)
    return meter.sample(n, overhead_ms=overhead_ms(meter, n // ACTORS, NAP))


async def _hops(actors: int, n: int) -> Sample:
    done = asyncio.Event()
    hops = [Hop() for _ in range(actors)]
    for number, hop in enumerate(hops):
        hop.next, hop.done = hops[(number + 1) % actors], done
    await asyncio.sleep(0)
    with Meter() as meter:
        hops[0].tell(n - 1)
        await done.wait()
    return meter.sample(n)


async def ping_pong(n: int) -> Sample:
    return await _hops(2, n)


async def ring(n: int) -> Sample:
    return await _hops(RING, n)


async def _spawned(n: int) -> tuple[list[Worker], Sample]:
    before = rss()
    with Meter() as meter:
        workers = [Worker() for _ in range(n)]
        await asyncio.sleep(0)  # a task that has not begun to wait is not an idle actor yet
    return workers, meter.sample(n, bytes_each=(rss() - before) / n)


async def spawn(n: int) -> Sample:
    _, sample = await _spawned(n)
    return sample


async def million(n: int) -> Sample:
    workers, sample = await _spawned(n)
    with Meter() as meter:
        for worker in workers:
            check(await worker.ask("awake?"), 1)
    sample.extra["ask_cpu_us"] = meter.cpu / n * 1e6
    return sample


async def stop(n: int) -> Sample:
    tasks = [Worker().task for _ in range(n)]
    await asyncio.sleep(0)
    with Meter() as meter:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
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
}
