"""One run of a small swarm: requests at the same time, what came of each, and what was done for it."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, ClassVar, NamedTuple

from grami_actors import Agent, DeadlineExceeded, GramiError, Message, Swarm, handles
from grami_actors.cell import CONNECTION
from grami_actors.simulation.run import Failure
from grami_actors.simulation.world import World

WITHIN = 4.0
"""Seconds for a request."""

MEMBER = 1.5
"""Seconds for each member that a pattern asks, where it is told."""

SETTLED = 120.0
"""Seconds after which nothing may be at work any more: longer than all that a saga tries."""

SLACK = 0.02
"""Seconds by which a deadline may be late: it is looked at every tick."""


class Ledger:
    """What was done, by whom, for which key; kept outside of the actors, which may die."""

    def __init__(self) -> None:
        self.done: Counter[tuple[str, str]] = Counter()
        self.last: dict[str, float] = {}
        self.refused: set[str] = set()
        self.changes: list[int] = []

    def clear(self) -> None:
        self.__init__()  # type: ignore[misc]

    def note(self, by: Agent, key: str) -> None:
        """Somebody did something; a key is that of the request, and more after a stroke."""
        self.done[by.name, key] += 1
        self.last[key.partition("/")[0]] = by.now()

    def by(self, key: str) -> list[str]:
        """Who did something for a key, in the order in which they were first."""
        return [who for who, what in self.done if what == key]


LEDGER = Ledger()


class Work(Message, tag="sim.work"):
    key: str
    trail: tuple[str, ...] = ()


class Undo(Message, tag="sim.undo"):
    key: str


class Go(Message, tag="sim.go"):
    key: str


class Worker(Agent):
    """Takes its time, and then does what is written down."""

    @handles(Work)
    async def work(self, work: Work) -> tuple[str, ...]:
        await asyncio.sleep(0.01)
        LEDGER.note(self, work.key)
        return (*work.trail, self.name)


class Ann(Worker): ...


class Bob(Worker): ...


class Cat(Worker): ...


class Boss(Agent):
    """Has two requests at work at a time, so that some wait and some overlap."""

    concurrency: ClassVar[int] = 2


WORKERS = (Ann, Bob, Cat)
NAMES = ("ann", "bob", "cat")


class Request(NamedTuple):
    """One request and what came of it; who gave up has neither an answer nor an error."""

    key: str
    answer: Any
    error: GramiError | None
    gave_up: bool
    begun: float
    ended: float


class Trial:
    """The requests of one run."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.requests: list[Request] = []

    async def ask(self, key: str) -> None:
        """Ask the boss from outside, and note what comes of it."""
        system, begun = self.world.system, self.world.system.now()
        answer, error, gave_up = None, None, False
        try:
            answer = await system.ask("boss", Go(key), timeout=WITHIN)
        except GramiError as failure:
            error = failure
        except asyncio.CancelledError:
            gave_up = True
        self.requests.append(Request(key, answer, error, gave_up, begun, system.now()))

    @property
    def struck(self) -> int:
        """How many faults there were."""
        return sum(self.world.faults.counts.values())

    def problems(self) -> Iterator[str]:
        """What is wrong with the requests, and with what is left of them."""
        # Who is restarted more often than that rests, longer than a request may take.
        few_crashes = self.world.faults.counts.keys() == {"crash"} and self.struck < 3
        for each in self.requests:
            if each.ended - each.begun > WITHIN + SLACK:
                yield f"{each.key} took {each.ended - each.begun:.3f} s of {WITHIN}"
            if LEDGER.last.get(each.key, 0.0) > each.ended:
                yield f"somebody worked on {each.key} after it had ended"
            if each.error is not None and not self.struck:
                yield f"{each.key} failed without a fault: {each.error!r}"
            if few_crashes and isinstance(each.error, DeadlineExceeded):
                yield f"{each.key} was never told of a crash"
        yield from left_at_work(self.world)


def left_at_work(world: World) -> Iterator[str]:
    """Whoever still does something, or has mail, or waits."""
    for name, cell in world.system.table.cells.items():
        if name.startswith(CONNECTION):
            continue
        if cell.working or cell.at_work is not None or len(cell.mailbox) or cell.mailbox.parked or cell.waits:
            yield f"{name} is at work: {cell.working}, {cell.at_work}, {len(cell.mailbox)}, {cell.waits}"
        if cell.state != "running":
            yield f"{name} is {cell.state}"
    deadlines = world.system.deadlines
    pending = [each for each in (*deadlines._young, *(entry[2] for entry in deadlines._old)) if not each.done()]
    if pending:
        yield f"{len(pending)} asks are open"
    if world.faults._held:
        yield "a message is still held"


async def three_at_once(trial: Trial) -> None:
    """Three requests at the same time, of which one is given up, at a time that the seed says."""
    draw = random.Random(f"who gives up {trial.world.seed}")
    tasks = [asyncio.get_running_loop().create_task(trial.ask(f"r{number}")) for number in range(3)]
    await asyncio.sleep(draw.choice((0.0, 0.005, 0.015, 0.025)))
    draw.choice(tasks).cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():  # before it began
            task.result()  # what is neither an answer nor a GramiError


Script = Callable[[Trial], Coroutine[Any, Any, None]]
Check = Callable[[Trial], Iterator[str]]


class Pattern(NamedTuple):
    """One way of working together.

    Attributes:
        swarm: who takes part.
        check: what else must be true at the end.
        play: what is asked of it.
        most: how often one member may do one thing.
    """

    swarm: Swarm
    check: Check
    play: Script = three_at_once
    most: int = 1

    async def act(self, world: World) -> Failure | None:
        """Play it, wait until nothing can happen any more, and look."""
        trial = Trial(world)
        await self.play(trial)
        await asyncio.sleep(SETTLED)
        problems = [*trial.problems(), *self.check(trial)]
        problems += [f"{who} did {key} {n} times" for (who, key), n in LEDGER.done.items() if n > self.most]
        SEEN.update("answered" if each.answer is not None else "not answered" for each in trial.requests)
        SEEN["faults"] += trial.struck
        return Failure("check", "; ".join(problems)) if problems else None


SEEN: Counter[str] = Counter()
"""How many requests were answered, how many were not, and the faults: a check of what never happens proves nothing."""
