"""How a run that fails is made shorter: fewer faults, fewer preemptions. Floor 14.

1. Decisions are left out in ever smaller groups, as long as the run fails in the same way (delta debugging: Zeller and
   Hildebrandt, 2002). What is left is often no minimum: without an early decision the later ones mean something else.
2. So runs with one, two or three preemptions at random places are tried (delay-bounded scheduling: Emmi, Qadeer and
   Rakamaric, POPL 2011): most races need no more.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

from grami_actors.simulation.run import Outcome, Runner
from grami_actors.simulation.schedule import Decided, Decisions, Schedule, Sparse

MOST_SECONDS = 10.0
"""Of wall time that it may take."""

FEW = 3
"""Preemptions that are tried at random places, at most."""

TRIES = 300
"""Of each number of them."""


def shrink(runner: Runner, failed: Outcome, *, most_seconds: float = MOST_SECONDS) -> Outcome:
    """The shortest run found that fails in the same way.

    Args:
        runner: plays it.
        failed: what came of the run that failed.
        most_seconds: how long it may take.
    """
    end = time.perf_counter() + most_seconds
    best = _without(runner, failed, end)
    for few in range(1, min(FEW + 1, len(best.decisions.picks))):
        shorter = _with(runner, best, few, end)
        if shorter is not None:
            return _without(runner, shorter, end)
    return best


def _without(runner: Runner, best: Outcome, end: float) -> Outcome:
    """The run with fewer and fewer of its decisions."""
    while True:
        fewer = (Decided(best.seed, decisions) for decisions in _candidates(best.decisions))
        shorter = _tried(runner, best, fewer, end)
        if shorter is None:
            return best
        best = shorter


def _with(runner: Runner, best: Outcome, few: int, end: float) -> Outcome | None:
    """The run with so few preemptions, at other places, and no other faults; ``None`` if none was found."""
    rng = random.Random(f"grami_actors shrink {best.seed} {few}")
    tries = (
        Sparse(best.seed, best.decisions.strikes, {int(rng.random() * best.choices): rng.random() for _ in range(few)})
        for _ in range(TRIES)
    )
    return _tried(runner, best, tries, end)


def _tried(runner: Runner, best: Outcome, schedules: Iterator[Schedule], end: float) -> Outcome | None:
    """The first that fails like the best, and is shorter; ``None`` if there is none, or no time to find it."""
    for schedule in schedules:
        if time.perf_counter() > end:
            return None
        tried = runner.run(schedule)
        if _same(tried, best) and len(tried.decisions) < len(best.decisions):
            return tried
    return None


def _same(one: Outcome, other: Outcome) -> bool:
    marks = [(each.failure.kind, each.failure.known_by) for each in (one, other) if each.failure is not None]
    return len(marks) == 2 and marks[0] == marks[1]  # noqa: PLR2004


def _candidates(decisions: Decisions) -> Iterator[Decisions]:
    """The same without some of them: large parts first, and faults before preemptions."""
    every = [("strikes", key) for key in decisions.strikes] + [("picks", key) for key in decisions.picks]
    size = len(every)
    while size >= 1:
        for start in range(0, len(every), size):
            without = set(every[start : start + size])
            yield Decisions(
                {key: value for key, value in decisions.picks.items() if ("picks", key) not in without},
                {key: value for key, value in decisions.strikes.items() if ("strikes", key) not in without},
            )
        size //= 2
