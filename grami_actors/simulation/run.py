"""One simulated run, from its seed to what came of it. Floor 14."""

from __future__ import annotations

import contextlib
import gc
import random
import traceback
from collections.abc import Callable, Coroutine, Iterator
from pathlib import PurePath
from typing import Any

import msgspec

from grami_actors.deadlines import Deadlines
from grami_actors.errors import ErrorCode, GramiError, describe
from grami_actors.gateway.memory import MemoryGateway
from grami_actors.simulation.deadlock import explain, holders, waiting
from grami_actors.simulation.leaks import Nondeterminism, sealed, sealing
from grami_actors.simulation.loop import Endless, Livelock, SimulatedTask, Stuck, VirtualLoop, unseen
from grami_actors.simulation.schedule import Decisions, Schedule
from grami_actors.simulation.stalls import Hang, watched, watching
from grami_actors.simulation.world import Setup, World
from grami_actors.system import ActorSystem

Act = Callable[[World], Coroutine[Any, Any, "Failure | None"]]
"""What is played in a world; says what was wrong, if something was."""

PATIENCE = 600.0
"""Seconds of virtual time in which nothing happened but that somebody looked at a clock."""


class Failure(msgspec.Struct, frozen=True):
    """Why a run failed.

    Attributes:
        kind: ``check``, ``error``, ``deadlock``, ``livelock``, ``endless``, ``hang`` or ``nondeterminism``.
        text: what was wrong.
        known_by: what a run that fails in the same way has in common: the check that failed first, or the error.
    """

    kind: str
    text: str
    known_by: str = ""


class Outcome(msgspec.Struct, frozen=True):
    """What came of one run.

    Attributes:
        seed: its seed.
        failure: why it failed; ``None`` if it passed.
        digest: what it was, and when: equal runs have equal digests.
        order: who was told what, in which order.
        seconds: of virtual time.
        steps: that were chosen.
        messages: that were taken.
        choices: that the schedule had.
        decisions: what sets it apart from the plainest run.
        unused: the faults of the script that never struck, in words.
    """

    seed: int
    failure: Failure | None
    digest: str
    order: str
    seconds: float
    steps: int
    messages: int
    choices: int
    decisions: Decisions
    unused: tuple[str, ...] = ()


class Runner:
    """Plays one act, again and again.

    Args:
        setup: in which world.
        act: what is played.
        fresh: called before each run: everything is to be as it was before the first.
    """

    def __init__(self, setup: Setup, act: Act, fresh: Callable[[], object] | None = None) -> None:
        self._setup = setup
        self._act = act
        self._fresh = fresh

    def run(
        self, schedule: Schedule, *, watched: bool = False, seen: Callable[[World], object] | None = None
    ) -> Outcome:
        """Play it once.

        Args:
            schedule: its decisions.
            watched: whether somebody wants to see each entry of its history, as it comes.
            seen: gets the world when it is over.
        """
        if self._fresh is not None:
            self._fresh()
        gc.collect(1)  # what the last run left; while it is in the processor's caches that is cheap
        loop = VirtualLoop(schedule, (Deadlines, MemoryGateway), self._setup.most_seconds)
        world = World(self._setup, schedule, loop, watched=watched)
        loop.idle = idle = _Idle(world, loop, watched=watched)
        collecting = gc.isenabled()
        gc.disable()  # what it finds, and when, is not of the seed; it is swept between runs
        try:
            failure = idle.explained(self._play(loop, world))
        finally:
            if collecting:
                gc.enable()
        if seen is not None:
            seen(world)
        told = None if failure is None else failure.kind
        return Outcome(
            seed=schedule.seed,
            failure=failure,
            digest=world.witness.digest(round(loop.elapsed, 6), told),
            order=world.witness.order,
            seconds=loop.elapsed,
            steps=loop.steps,
            messages=world.witness.count,
            choices=schedule.choices,
            decisions=schedule.decisions,
            unused=world.unused,
        )

    def _play(self, loop: VirtualLoop, world: World) -> Failure | None:
        try:
            # Dice of their own: what the runtime throws for names of spans must not change what is decided.
            with holders(), watched(loop), sealed(random.Random(f"grami_actors others {world.seed}")):
                return loop.run(self._perform(world, loop))
        except Nondeterminism as leak:
            return Failure("nondeterminism", str(leak))
        except Stuck as stuck:
            return Failure("deadlock", str(stuck))
        except (Livelock, Endless) as busy:
            return Failure(type(busy).__name__.lower(), str(busy))
        except Hang as hang:
            return Failure("hang", str(hang))
        except KeyboardInterrupt:  # somebody wants to stop all of it
            raise
        except BaseException as error:  # noqa: BLE001 - a script that calls exit() ends a run, not the command
            return Failure("error", f"{describe(error)}{place(error)}")

    async def _perform(self, world: World, loop: VirtualLoop) -> Failure | None:
        async with world:
            failure = await self._act(world)
            failed = loop.failed
            if failure is None and any(cell.working for cell in world.system.table.cells.values()):
                locked(world.system, loop)  # by tells, whose end nobody awaits
        # Looked at again when all have ended: who was about to await one of them has done so.
        return failure or _forgotten(failed)


def _forgotten(failed: list[SimulatedTask]) -> Failure | None:
    """The failure of a task that nobody awaited. A GramiError is none: it is an answer that nobody wanted."""
    for task in failed:
        if unseen(task) and not isinstance(error := task.exception(), GramiError) and error is not None:
            whose = f"a task of {task.owner}" if task.owner else "a task"
            text = f"{describe(error)}{place(error)}, in {whose} that nobody awaits"
            return Failure("error", text, type(error).__name__)
    return None


class _Idle:
    """Looks whether there is anything left to wait for, when only deadlines and the like are."""

    def __init__(self, world: World, loop: VirtualLoop, *, watched: bool) -> None:
        self._waited: list[str] = []
        self._watched = watched
        self._world = world
        self._loop = loop
        self._steps = -1
        self._since = 0.0

    def __call__(self) -> None:
        loop, system = self._loop, self._world.system
        if loop.steps != self._steps and (loop.quiet or system.deadlines.earliest() <= loop.next_timer):
            self._steps, self._since = loop.steps, loop.time()
            locked(system, loop)
            if self._watched:  # it takes time, and else nobody reads it
                self._waited = waiting(system, loop)
        if loop.quiet and (not loop.timers or loop.time() - self._since > PATIENCE):
            lines = "".join(f"\n  {line}" for line in waiting(system, loop))
            raise Stuck(f"nothing can go on, and there is nothing to wait for{':' if lines else ''}{lines}")

    def explained(self, failure: Failure | None) -> Failure | None:
        """The failure; with who waited, and where, if it is that time ran out."""
        if failure is None or failure.known_by != ErrorCode.DEADLINE_EXCEEDED or not self._waited:
            return failure
        lines = "".join(f"\n  {line}" for line in self._waited)
        return msgspec.structs.replace(failure, text=f"{failure.text}; when time ran out, these waited:{lines}")


def locked(system: ActorSystem, loop: VirtualLoop) -> None:
    """Raise Stuck if some wait for each other."""
    found = explain(system, loop)
    if found is not None:
        raise Stuck(f"these wait for each other: {found}")


@contextlib.contextmanager
def series(*, unattended: bool = False) -> Iterator[None]:
    """Runs in here cost less: what watches over all of them is set up once.

    Args:
        unattended: whether nobody can have stopped them in a debugger, so that a step that waits is an error, too.
    """
    with sealing(), holders(), watching(unattended=unattended):
        yield


def place(error: BaseException) -> str:
    """Where it was raised, as ``(file:line)``."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({PurePath(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
