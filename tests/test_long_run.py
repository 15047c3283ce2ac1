"""A day in the life of a supervised tree, on a clock that jumps: afterwards nothing is lost and nothing has grown."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import random
import selectors
from collections import Counter
from collections.abc import Coroutine
from typing import Any

import pytest

from grami_actors.actor import Actor
from grami_actors.cell import Cell
from grami_actors.errors import AgentUnavailable, GramiError, MailboxFull
from grami_actors.future import Future
from grami_actors.messages import Envelope, Scope
from grami_actors.restarts import RestartPolicy
from grami_actors.supervisor import Child, Supervisor
from grami_actors.system import ActorInfo, ActorSystem
from grami_actors.telemetry import ActorFailed, ActorGaveUp, ActorPaused, ActorRestarted, ActorStopped, DeadLetter
from grami_actors.timers import _Timer

HOUR = 3600.0


class NeverReady(selectors.BaseSelector):
    """A selector for a loop whose time is made up: instead of waiting it lets the clock jump."""

    def __init__(self) -> None:
        self.now = 0.0
        self._keys: dict[Any, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        key = selectors.SelectorKey(fileobj, fileobj if isinstance(fileobj, int) else fileobj.fileno(), events, data)
        self._keys[fileobj] = key
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj)

    def get_map(self) -> Any:
        return self._keys

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("nothing is ready and no timer is set: everybody waits for ever")
        if timeout > 0:
            # A float of a day has steps of about 1e-11: what is added must not be lost in them.
            self.now = max(self.now + timeout, math.nextafter(self.now, math.inf))
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on which a day is over as soon as its work is done."""

    def __init__(self) -> None:
        self._clock = NeverReady()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


def run_virtually(work: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)


class Books:
    """What happened, from the outside."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.outcomes: Counter[str] = Counter()
        self.events: Counter[str] = Counter()
        self.asked = 0
        self.crashes = 0.01
        self.lost: list[str] = []

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability


class Worker(Actor):
    """Answers after a while, asks a neighbour, sets timers, fails at random."""

    mailbox = 20
    restart = RestartPolicy(intensity=2, period=600.0, shortest=0.5, longest=30.0)

    def __init__(self, books: Books, neighbour: str = "") -> None:
        super().__init__()
        self.books = books
        self.neighbour = neighbour

    def on_start(self) -> None:
        self.every(300.0, "beat", key="beat")
        self.after(100.0, "once")
        if self.books.chance(0.02):
            raise RuntimeError("a start that fails")

    def on_receive(self, message: Any) -> Any:
        chance = self.books.chance
        if chance(self.books.crashes):
            raise RuntimeError("a crash")
        if message == "beat":
            self.after(self.books.rng.random() * 50.0, "once", key="again")
            if chance(0.5):
                self.cancel_timer("again")
            return None
        if message == "once":
            return None
        return self.work(message) if chance(0.7) else message

    async def work(self, message: Any) -> Any:
        await asyncio.sleep(self.books.rng.random() * 2.0)
        if self.neighbour and self.books.chance(0.5):
            with contextlib.suppress(GramiError):
                await self.ask(self.neighbour, message, timeout=self.books.rng.random() * 3.0)
        if self.books.chance(0.02):
            await asyncio.sleep(self.books.rng.random() * 100.0)
        return message


class WaitingWorker(Worker):
    mailbox = 2
    overflow = "wait"
    concurrency = 3


class DroppingWorker(Worker):
    mailbox = 2
    overflow = "drop_oldest"


class Parent(Worker):
    """Has a child of its own that goes with it."""

    async def on_start(self) -> None:
        super().on_start()
        child = await self.spawn(Worker, self.books, name="child")
        self.watch(child)


OFTEN = RestartPolicy(intensity=10, period=600.0, shortest=1.0, longest=60.0, pause=120.0)


class OneForOne(Supervisor):
    restart = OFTEN
    children_restart = None  # each child by its own policy


class OneForAll(Supervisor):
    strategy = "one_for_all"
    restart = OFTEN
    children_restart = RestartPolicy(intensity=3, period=600.0, shortest=1.0, longest=60.0)


class RestForOne(Supervisor):
    strategy = "rest_for_one"
    restart = OFTEN
    children_restart = RestartPolicy(intensity=3, period=600.0, shortest=1.0, longest=60.0)


NAMES = ("one", "all", "rest")
ALL = 1 + 3 * 6
"""Actors when all are up: the router, and three supervisors with four children, one of which has a child."""


async def plant(system: ActorSystem, books: Books) -> None:
    """Start the tree."""
    for name, kind in zip(NAMES, (OneForOne, OneForAll, RestForOne), strict=True):
        children = (
            Child(Worker, books, f"{name}/patient", name="worker"),
            Child(WaitingWorker, books, f"{name}/parent", name="patient"),
            Child(DroppingWorker, books, name="hasty"),
            Child(Parent, books, name="parent"),
        )
        while name not in system.table.cells:
            with contextlib.suppress(GramiError):  # its start fails at random
                await system.spawn(kind, *children, name=name)


def everybody(system: ActorSystem) -> list[str]:
    return [name for name in system.table.cells if name != "router"]


async def one_ask(system: ActorSystem, books: Books, number: int) -> None:
    """One ask from outside, and its one answer."""
    books.asked += 1
    rng = books.rng
    settled: list[int] = []
    future = system.table.cells[rng.choice(everybody(system))].ask(number, timeout=rng.choice((None, 1.0, 20.0)))
    future.on_done(lambda: settled.append(1))
    try:
        if books.chance(0.05):
            system.loop.call_later(rng.random(), future.cancel)
        if await future != number:
            books.lost.append(f"{number} was answered with something else")
        books.outcomes["value"] += 1
    except GramiError as error:
        books.outcomes[type(error).__name__] += 1
    except RuntimeError:
        books.outcomes["crash"] += 1
    finally:
        if settled != [1]:
            books.lost.append(f"{number} was answered {len(settled)} times")
        books.outcomes["ended"] += 1


async def traffic(system: ActorSystem, books: Books, until: float) -> None:
    """Ask and tell at random times, stop one actor now and then, and see to it that the tree stands again."""
    async with asyncio.TaskGroup() as asks:
        while system.now() < until:
            await asyncio.sleep(books.rng.expovariate(1 / 8.0))
            await plant(system, books)
            asks.create_task(one_ask(system, books, books.asked))
            if books.chance(0.2):
                with contextlib.suppress(AgentUnavailable, MailboxFull):
                    system.tell(books.rng.choice(everybody(system)), "once")
            if books.chance(0.02):
                await disturb(system, books)


async def disturb(system: ActorSystem, books: Books) -> None:
    name = books.rng.choice(everybody(system))
    how = books.rng.choice(("stop", "kill", "suspend", "drain", "poison"))
    books.events[how] += 1
    with contextlib.suppress(GramiError):
        if how == "stop":
            await system.stop(name.split("/")[0])
        elif how == "drain":
            await system.drain(name.split("/")[0], timeout=5.0)
        elif how == "poison":  # for a while nearly everything fails, so that policies are exceeded
            books.crashes = 0.7
            system.loop.call_later(120.0, setattr, books, "crashes", 0.01)
        elif how == "kill":
            system.kill(name)
        elif system.suspend(name):
            ref = system.table.cells[name].ref
            await asyncio.sleep(books.rng.random() * 10.0)
            system.resume(ref)


COUNTED = (Cell, Future, Scope, Envelope, _Timer, asyncio.Task, asyncio.TimerHandle, Worker)


def census(system: ActorSystem) -> dict[str, int]:
    """How many there are of each kind, garbage and the cells of other tests left out."""
    gc.collect()
    found: Counter[type] = Counter()
    for each in gc.get_objects():
        if type(each) is not Cell or each.runtime is system:
            found[type(each)] += 1
    return {kind.__name__: sum(n for each, n in found.items() if issubclass(each, kind)) for kind in COUNTED}


def size(tree: tuple[ActorInfo, ...]) -> int:
    return sum(1 + size(info.children) for info in tree)


async def quiet() -> None:
    """Let what is under way come to its end: deadlines, restarts, pauses."""
    await asyncio.sleep(400.0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_after_a_day_nothing_is_lost_and_nothing_has_grown(seed: int) -> None:
    books = Books(seed)
    seen: list[dict[str, int]] = []
    pending: list[tuple[int, int]] = []

    async def day() -> None:
        loop = asyncio.get_running_loop()
        kinds = (ActorFailed, ActorGaveUp, ActorPaused, ActorRestarted, ActorStopped, DeadLetter)
        async with ActorSystem(clock=loop.time, rng=random.Random(seed), slow_turn=None) as system:
            system.bus.subscribe(lambda event: books.events.update([type(event).__name__]), *kinds)
            for hour in (2, 12, 24):
                await traffic(system, books, hour * HOUR)
                await quiet()
                await plant(system, books)
                seen.append(census(system))
                deadlines = system.deadlines
                pending.append((len(deadlines._young) + len(deadlines._old), len(loop._scheduled)))  # type: ignore[attr-defined]
            assert loop.time() >= 24 * HOUR
            assert size(system.tree()) == ALL
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert (len(deadlines._young), len(deadlines._old)) == (0, 0)
        assert system.tree() == ()
        assert not [handle for handle in loop._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]

    run_virtually(day())
    assert books.lost == []
    assert books.outcomes.pop("ended") == books.asked == books.outcomes.total()
    assert books.asked > 5_000
    for name in ("ActorFailed", "ActorRestarted", "ActorStopped", "ActorGaveUp", "DeadLetter", "kill", "suspend"):
        assert books.events[name] > 20, books.events
    early, _, late = seen
    for counts in seen:
        # asyncio keeps a timer that was cancelled until its time has come, and with it the context of who set it.
        assert ALL <= counts["Cell"] <= ALL + 8, seen
    for kind, count in late.items():
        assert count <= early[kind] + 20, (seen, pending)
    for deadlines, timers in pending:
        assert deadlines <= 64
        assert timers <= 300
