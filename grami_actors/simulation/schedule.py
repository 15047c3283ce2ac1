"""Which step comes next, and which fault strikes: every decision of a run, drawn from its seed. Floor 14.

A decision is a number; 0 is what would happen anyway: the step that became possible first, and no fault. Only what
differs from 0 is written down, so a run is its seed, or a short list of decisions: where it was preempted, and what
struck it. That is what is made shorter when a failing run is shrunk, and what is played again.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

BY_STEP = -2.0
BY_ACTOR = -1.0

WAYS = (BY_STEP, BY_STEP, BY_STEP, BY_STEP, BY_ACTOR, BY_ACTOR, 1.0, 1.0, 0.3)
"""How a seed goes about its choices: by priorities of steps or of actors, or how often it leaves the order of arrival.

Of planted races that not every walk finds, priorities of steps found most, often by a factor of ten; those of actors
find who is starved for long, and the walk finds rare orders of many steps.
"""

HORIZONS = (20, 60, 200, 1000)
"""Steps within which the priorities change once, each."""

FIRST = 64
"""Steps among which priorities decide; with thousands to choose from, the first are as good as any."""


class Choice(Protocol):
    """What can be chosen: a step, or a sender whose message is taken before those of others.

    Attributes:
        number: of the task, actor or sender: the same in each run of one seed.
        owner: the actor whose step or message it is; empty for the script and the runtime.
    """

    number: int
    owner: str


class Step(Choice, Protocol):
    """A step that can be chosen. Sorted by its number."""

    def run(self) -> object:
        """Take it."""


class Decisions(msgspec.Struct, frozen=True):
    """What makes one run differ from the plainest: by the number of the decision, what was decided.

    Attributes:
        picks: the step that was taken, where it was not the first of those that could be taken.
        strikes: the fault that struck.
    """

    picks: dict[int, int] = {}
    strikes: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.picks) + len(self.strikes)


class Schedule:
    """The decisions of one run, as they are made.

    Seed 0 is the plainest run: everything in the order in which it became possible. The others draw how they go about
    it, since each way finds what the others miss: a random walk; a priority for each step, drawn when it becomes
    possible (partial order sampling: Yuan, Yang and Gu, CAV 2018); or priorities of actors that change a few times
    (probabilistic concurrency testing: Burckhardt et al., ASPLOS 2010).

    Args:
        seed: where they come from.

    Attributes:
        choices: that were offered.
        picks: what was taken instead of the first, by the number of the choice.
        strikes: which faults struck, by the number of the occasion.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(f"grami_actors {seed}")  # the runtime's own: names, jitter
        self._draw = random.Random(f"grami_actors schedule {seed}").random
        self._faults: random.Random | None = None
        self.picks: dict[int, int] = {}
        self.strikes: dict[int, int] = {}
        self.choices = 0
        self._struck = 0
        way = WAYS[int(self._draw() * len(WAYS))]
        self._often = way if seed else 0.0
        self._priorities: dict[str, float] = {}
        self._steps: dict[int, float] = {}
        self._changes = sorted(int(self._draw() * each) for each in HORIZONS)

    def pick(self, enabled: Sequence[Choice]) -> int:
        """The place of what to take; there are at least two."""
        number = self.choices
        self.choices = number + 1
        place = self._place(number, enabled)
        if place:
            self.picks[number] = enabled[place].number
        return place

    def _place(self, number: int, enabled: Sequence[Choice]) -> int:
        if self._often >= 0.0:
            # Only random() is the same in all versions of Python.
            if not self._often or (self._often < 1.0 and self._draw() >= self._often):
                return 0
            return int(self._draw() * len(enabled))
        return self._by_step(enabled) if self._often == BY_STEP else self._by_actor(number, enabled)

    def _by_step(self, enabled: Sequence[Choice]) -> int:
        priorities = self._steps
        best, place = -1.0, 0
        for at, choice in enumerate(enabled[:FIRST]):
            priority = priorities.get(choice.number)
            if priority is None:
                priority = priorities[choice.number] = self._draw()
            if priority > best:
                best, place = priority, at
        # To draw anew also for what else waits for the same actor, as the paper does, found no more here.
        del priorities[enabled[place].number]
        return place

    def _by_actor(self, number: int, enabled: Sequence[Choice]) -> int:
        priorities = self._priorities
        best, place = -1.0, 0
        for at, choice in enumerate(enabled[:FIRST]):
            priority = priorities.get(choice.owner)
            if priority is None:
                priority = priorities[choice.owner] = 1.0 + self._draw()
            if priority > best:
                best, place = priority, at
        if self._changes and number >= self._changes[0]:
            self._changes.pop(0)
            priorities[enabled[place].owner] = self._draw()
        return place

    def strike(self, chances: Sequence[float]) -> int:
        """Whether a fault strikes here: 0 for none, else 1 + its place in ``chances``, which sum to 1 at most."""
        number = self._struck
        self._struck = number + 1
        fault = self._which(number, chances)
        if fault:
            self.strikes[number] = fault
        return fault

    def _which(self, _number: int, chances: Sequence[float]) -> int:
        if self._faults is None:  # most runs have none, and dice are not for nothing
            self._faults = random.Random(f"grami_actors faults {self.seed}")
        drawn = self._faults.random()
        for place, chance in enumerate(chances, 1):
            drawn -= chance
            if drawn < 0.0:
                return place
        return 0

    def amount(self) -> float:
        """How much of something a fault takes, from 0 to 1."""
        # Of the decision's number, and not of the stream: a fault is to be the same when others are left out.
        return random.Random(f"grami_actors amount {self.seed} {self._struck}").random()

    @property
    def decisions(self) -> Decisions:
        """What was decided so far."""
        return Decisions(dict(self.picks), dict(self.strikes))


class Decided(Schedule):
    """A run whose decisions are given: all others are 0."""

    def __init__(self, seed: int, decisions: Decisions) -> None:
        super().__init__(seed)
        self._given: Mapping[int, int] = decisions.picks
        self._strikes: Mapping[int, int] = decisions.strikes

    def _place(self, number: int, enabled: Sequence[Choice]) -> int:
        wanted = self._given.get(number)
        if wanted is None:
            return 0
        # By what was taken, not by its place: when an earlier decision is left out, others stand before it.
        return next((place for place, choice in enumerate(enabled) if choice.number == wanted), 0)

    def _which(self, number: int, chances: Sequence[float]) -> int:
        return min(self._strikes.get(number, 0), len(chances))


class Sparse(Decided):
    """A run whose faults are given, and where it is preempted; what is taken there is whatever is drawn.

    Args:
        seed: of the run that it is tried instead of.
        strikes: the faults.
        places: of the choices, each with a number from 0 to 1.
    """

    def __init__(self, seed: int, strikes: Mapping[int, int], places: Mapping[int, float]) -> None:
        super().__init__(seed, Decisions(strikes=dict(strikes)))
        self._places = places

    def _place(self, number: int, enabled: Sequence[Choice]) -> int:
        drawn = self._places.get(number)
        return 0 if drawn is None else 1 + int(drawn * (len(enabled) - 1))
