"""The actor system of a replay: its lanes, deadlines and pools do what the recording says. Floor 15."""

from __future__ import annotations

import random
from typing import Any, Self

from grami_actors.cell import Cell
from grami_actors.contracts import Lane
from grami_actors.deadlines import Deadlines, Expiring
from grami_actors.permissions import Permissions
from grami_actors.recording.account import is_plumbing
from grami_actors.recording.follow import Follower
from grami_actors.router import RoutingTable
from grami_actors.simulation.lane import SimulatedLane
from grami_actors.simulation.loop import VirtualLoop
from grami_actors.simulation.system import SimulatedSystem
from grami_actors.spec import LaneName

_BY_TURN = frozenset({"least_busy", "round_robin"})


class _Deadlines(Deadlines):
    """Deadlines that pass when they passed."""

    follower: Follower

    def _end(self, expiring: Expiring) -> None:  # type: ignore[override] # it is only called as a method
        if expiring.done():
            return
        due = self.follower.passes(expiring)
        if due > self._clock():
            self._call(due - self._clock(), self._end, expiring)
        else:
            expiring.expire()


class _Table(RoutingTable):
    """Chooses among equals as it was chosen."""

    follower: Follower

    def find(self, to: str, message: Any) -> Any:
        pool = self.pools.get(self.name_of(to, message))
        if pool is not None and pool.strategy in _BY_TURN and len(pool.members) > 1:
            found = self.follower.chosen(pool.members, message)
            if found is not None:
                return found
        return super().find(to, message)


class _Lane(SimulatedLane):
    """The recording says who takes which message, and when."""

    def __init__(self, loop: VirtualLoop, follower: Follower) -> None:
        super().__init__(loop, follower.take)
        self._follower = follower

    def attach(self, cell: Cell) -> None:
        super().attach(cell)
        cell.mailbox._eager = True  # noqa: SLF001 - a message that has to wait must not keep the next from being seen

    def _step(self, cell: Cell) -> None:
        if is_plumbing(cell.name) or cell.mailbox.first:
            super()._step(cell)
            return
        if cell.paused or cell.working >= cell.concurrency:
            return
        envelope, seconds = self._follower.next(cell)
        if envelope is None:
            return
        if seconds > 0.0:
            self._steps.call_later(seconds, self.wake, cell)
            return
        cell.mailbox.withdraw(envelope)
        self._follower.take(cell, envelope)
        self._context.copy().run(self._handle, cell, envelope)
        self.wake(cell)


class System(SimulatedSystem):
    """The actors of a replay.

    Args:
        loop: of the run.
        follower: says what comes next.
        begun: seconds since 1970 when the recording began.
        permissions: the rules that clients and actors are held to.
    """

    def __init__(self, loop: VirtualLoop, follower: Follower, begun: float, permissions: Permissions) -> None:
        super().__init__(loop, random.Random("grami_actors replay"), follower.take, permissions)
        self._follower = follower
        self._begun = begun
        self.table = _Table()
        self.table.follower = follower

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self.deadlines = _Deadlines(self.loop, self.now)
        self.deadlines.follower = self._follower
        return self

    def _make_lanes(self) -> dict[LaneName, Lane[Cell]]:
        lane = _Lane(self._virtual, self._follower)
        return {"loop": lane, "thread": lane, "process": lane}

    def new_random(self, actor: str) -> random.Random:
        """The dice that the actor had."""
        seeds = self._follower.account.dice[actor]
        return random.Random(seeds.popleft()) if seeds else super().new_random(actor)

    def wall(self) -> float:
        """Seconds since 1970, as it was."""
        return self._begun + self._virtual.elapsed
