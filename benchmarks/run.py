"""Measure grami_actors beside the limits of what it is built on, interleaved, on this machine: ``make bench``.

Every workload runs in turn for each peer, ROUNDS times, so that a noisy neighbour hits all of them. What counts is
the median, the CPU time per operation, and the ratio between two peers of the same round; a rate alone says more
about the machine than about the code. Writes ``benchmarks/results.json``.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pykka
from rich.console import Console
from rich.table import Table
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from grami_actors import Actor, ActorSystem, Agent, Config, GrowthManager, Message, Swarm, handles

ROUNDS = 5
RESULTS = Path(__file__).with_name("results.json")


class Sink(Actor):
    """Counts what it is told, and answers with the count."""

    mailbox = 1_000_000

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def on_receive(self, message: Any) -> int:
        self.count += 1
        return self.count


class Asker(Actor):
    """Asks another one after another."""

    async def on_receive(self, message: Any) -> None:
        to, count = message
        for number in range(count):
            await self.ask(to, number)


async def grami_tell(count: int) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Sink)
        for number in range(count):
            ref.tell(number)
        await system.ask(ref, "last")


async def grami_ask(count: int) -> None:
    async with ActorSystem() as system:
        sink, asker = await system.spawn(Sink), await system.spawn(Asker)
        await system.ask(asker, (sink, count), timeout=600)


async def queue_tell(count: int) -> None:
    queue: asyncio.Queue[int] = asyncio.Queue()

    async def consume() -> None:
        for _ in range(count):
            await queue.get()

    task = asyncio.create_task(consume())
    for number in range(count):
        queue.put_nowait(number)
    await task


async def queue_ask(count: int) -> None:
    queue: asyncio.Queue[tuple[int, asyncio.Future[int]]] = asyncio.Queue()

    async def consume() -> None:
        for _ in range(count):
            number, answer = await queue.get()
            answer.set_result(number)

    task = asyncio.create_task(consume())
    for number in range(count):
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        queue.put_nowait((number, answer))
        await answer
    await task


class PykkaSink(pykka.ThreadingActor):
    """The same on a thread of Pykka's."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def on_receive(self, message: Any) -> int:
        self.count += 1
        return self.count


async def pykka_tell(count: int) -> None:
    ref = PykkaSink.start()
    for number in range(count):
        ref.tell(number)
    await asyncio.to_thread(ref.ask, "last")
    await asyncio.to_thread(ref.stop)


async def pykka_ask(count: int) -> None:
    ref = PykkaSink.start()

    def ask() -> None:
        for number in range(count):
            ref.ask(number)

    await asyncio.to_thread(ask)
    await asyncio.to_thread(ref.stop)


class Echo(Message):
    """Say it again."""

    text: str


class Echoer(Agent):
    """Says it again."""

    @handles(Echo)
    def echo(self, message: Echo) -> str:
        return message.text


async def _round_trips(url: str, clients: int, count: int) -> None:
    request = json.dumps({"type": "echo", "text": "x" * 64})

    async def client() -> None:
        async with connect(url, compression=None, proxy=None) as socket:
            for _ in range(count // clients):
                await socket.send(request)
                await socket.recv()

    await asyncio.gather(*(client() for _ in range(clients)))


async def grami_gateway(count: int) -> None:
    async with GrowthManager(Swarm([Echoer]), Config(), publish=False) as manager:
        await _round_trips(manager.url, 64, count)


async def bare_gateway(count: int) -> None:
    decoder = msgspec.json.Decoder(Echo)

    async def echo(socket: ServerConnection) -> None:
        async for frame in socket:
            message = decoder.decode(frame)
            await socket.send(msgspec.json.encode({"status": "success", "data": message.text}), text=True)

    async with serve(echo, "127.0.0.1", 0, compression=None) as server:
        port = server.sockets[0].getsockname()[1]
        await _round_trips(f"ws://127.0.0.1:{port}", 64, count)


Run = Callable[[int], Awaitable[None]]
WORKLOADS: dict[str, tuple[int, dict[str, Run]]] = {
    "tell, end to end": (
        100_000,
        {"grami_actors": grami_tell, "asyncio.Queue and a task": queue_tell, "Pykka ThreadingActor": pykka_tell},
    ),
    "ask, one after another": (
        20_000,
        {"grami_actors": grami_ask, "asyncio.Queue and a task": queue_ask, "Pykka ThreadingActor": pykka_ask},
    ),
    "gateway round trip, 64 connections, clients included": (
        12_800,
        {"grami_actors": grami_gateway, "bare websockets and msgspec": bare_gateway},
    ),
}


class Sample(NamedTuple):
    """One run: seconds by the clock, and seconds of CPU."""

    wall: float
    cpu: float


def measure(run: Run, count: int) -> Sample:
    wall, cpu = time.perf_counter(), time.process_time()
    asyncio.run(run(count))
    return Sample(time.perf_counter() - wall, time.process_time() - cpu)


def summarise(workload: str, count: int, samples: dict[str, list[Sample]]) -> list[dict[str, Any]]:
    """A line for each peer. ``ratio_to_grami`` compares CPU times, round by round: above 1, the peer is faster."""
    ours = samples["grami_actors"]
    return [
        {
            "workload": workload,
            "peer": peer,
            "n": count,
            "median_ops_per_s": round(count / statistics.median(sample.wall for sample in each)),
            "cpu_us_per_op": round(statistics.median(sample.cpu for sample in each) / count * 1e6, 2),
            "ratio_to_grami": round(
                statistics.median(own.cpu / other.cpu for own, other in zip(ours, each, strict=True)), 2
            ),
        }
        for peer, each in samples.items()
    ]


def main() -> None:
    """Run all workloads, print a table, write the results."""
    console = Console()
    rows: list[dict[str, Any]] = []
    for workload, (count, peers) in WORKLOADS.items():
        samples: dict[str, list[Sample]] = {peer: [] for peer in peers}
        with console.status(workload):
            for _ in range(ROUNDS):
                for peer, run in peers.items():
                    samples[peer].append(measure(run, count))
        rows += summarise(workload, count, samples)
    table = Table("workload", "peer", "median /s", "CPU µs each", "CPU, ours to theirs", box=None)
    for row in rows:
        table.add_row(
            row["workload"],
            row["peer"],
            f"{row['median_ops_per_s']:,}",
            f"{row['cpu_us_per_op']}",
            f"{row['ratio_to_grami']}",
        )
    console.print(f"Python {sys.version.split()[0]}, medians of {ROUNDS} interleaved rounds")
    console.print(table)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
