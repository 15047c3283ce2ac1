"""How many schedules a second: four agents, asked from outside or by clients, and the market of ten thousand.

    python benchmarks/simulation.py [--rounds 5] [--seeds 1000] [--market]

CPU time of one process, the median of the rounds. `grami run --simulate` uses one process per processor.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from grami_actors import Agent, Message, Swarm, handles
from grami_actors.scenario import Play, script
from grami_actors.scenario.stage import acted
from grami_actors.simulation.run import Runner, series
from grami_actors.simulation.schedule import Schedule
from grami_actors.simulation.world import Setup

MARKET = Path(__file__).parents[1] / "scenarios" / "market.py"


class Read(Message):
    """Somebody wants to know what is in the store."""


class Write(Message):
    """Put something into the store."""

    value: int


class Work(Message):
    """Read, and write what comes next."""


class Store(Agent):
    """Holds a number."""

    def __init__(self) -> None:
        super().__init__()
        self.value = 0

    @handles(Read)
    def read(self, _: Read) -> int:
        """The number."""
        return self.value

    @handles(Write)
    def write(self, message: Write) -> None:
        """Another number."""
        self.value = message.value


class Ann(Agent):
    """Counts."""

    @handles(Work)
    async def work(self, _: Work) -> None:
        """One more, twice."""
        for _ in range(2):
            value = await self.ask("store", Read())
            await self.ask("store", Write(value=value + 1))


class Bob(Ann):
    """Counts too."""


class Eve(Ann):
    """Counts too."""


WORKERS = ("ann", "bob", "eve")


async def from_outside(play: Play) -> None:
    """16 messages among four agents."""
    await asyncio.gather(*(play.system.ask(name, Work()) for name in WORKERS))


async def by_clients(play: Play) -> None:
    """The same, asked by two clients over the gateway."""
    clients = [await play.client(name) for name in ("alice", "carol")]
    await asyncio.gather(*(client.request("work", to=name) for client, name in zip(clients, WORKERS, strict=False)))


def rate(swarm: Swarm, function: Callable[[Play], object], seeds: int) -> tuple[float, int]:
    """Runs per second of CPU time, and how many of them were different."""
    runner = Runner(Setup(swarm), acted(function))
    runner.run(Schedule(0))
    gc.collect()
    gc.disable()
    begun = time.process_time()
    orders = {runner.run(Schedule(seed)).order for seed in range(seeds)}
    seconds = time.process_time() - begun
    gc.enable()
    return seeds / seconds, len(orders)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--market", action="store_true", help="also one virtual hour of the market")
    options = parser.parse_args()
    swarm = Swarm([Store, Ann, Bob, Eve])
    print(f"Python {platform.python_version()}, {options.seeds} seeds, median of {options.rounds} rounds, one process")
    with series():
        for function in (from_outside, by_clients):
            found = [rate(swarm, function, options.seeds) for _ in range(options.rounds)]
            median = statistics.median(each for each, _ in found)
            print(
                f"four agents, {function.__name__.replace('_', ' ')}: {median:,.0f} schedules/s, {found[0][1]} distinct"
            )
    if options.market:
        loaded = script.load(MARKET)
        (hour,) = [each for each in loaded.scenarios if each.__name__ == "an_hour"]
        runner = Runner(Setup(loaded.swarm), acted(hour))
        wall, cpu = time.perf_counter(), time.process_time()
        outcome = runner.run(Schedule(1))
        assert outcome.failure is None, outcome.failure
        print(
            f"market of 10,000 agents: {outcome.seconds:,.0f} virtual seconds, {outcome.messages:,} messages in "
            f"{time.perf_counter() - wall:.1f} s of wall time, {time.process_time() - cpu:.1f} s of CPU time"
        )


if __name__ == "__main__":
    main()
