"""The actor system of a simulation: the same, on the lane, the clock and the dice of a schedule. Floor 14."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

from grami_actors.cell import Cell
from grami_actors.contracts import Lane
from grami_actors.messages import Envelope
from grami_actors.permissions import Permissions
from grami_actors.ref import Ref
from grami_actors.simulation.lane import SimulatedLane
from grami_actors.simulation.loop import VirtualLoop
from grami_actors.spec import LaneName, Spec
from grami_actors.system import ActorSystem

EPOCH = 1_767_225_600.0
"""Seconds since 1970 when a run begins: 2026-01-01 in UTC."""


class SimulatedSystem(ActorSystem):
    """An actor system whose every step is chosen.

    Args:
        loop: the loop of the run.
        rng: where names and jitter come from.
        witness: sees each message as it is taken, if given.
        permissions: the rules that clients and actors are held to.
    """

    simulated = True

    def __init__(
        self,
        loop: VirtualLoop,
        rng: random.Random,
        witness: Callable[[Cell, Envelope], object] | None = None,
        permissions: Permissions | None = None,
    ) -> None:
        super().__init__(clock=loop.time, rng=rng, slow_turn=None, permissions=permissions)
        self._virtual = loop
        self._witness = witness or _nothing

    def _make_lanes(self) -> dict[LaneName, Lane[Cell]]:
        lane = SimulatedLane(self._virtual, self._witness)
        return {"loop": lane, "thread": lane, "process": lane}

    def wall(self) -> float:
        """Seconds since 1970, as if all runs had begun at the same time of day."""
        return EPOCH + self._virtual.elapsed

    def begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task whose first step is taken with the one that begins it."""
        return self._virtual.begin(work)

    async def _spawn(self, spec: Spec, name: str | None, parent: Cell | None) -> Ref[Any]:
        ref = await super()._spawn(spec, name, parent)
        if parent is not None and parent.spec.kind.listed:
            # Others may come in between, even where nothing has to be waited for today. The runtime's own know better.
            await asyncio.sleep(0)
        return ref

    @staticmethod
    def aside(name: str, work: Callable[[], object]) -> None:  # noqa: ARG004
        """Here and now: there are no threads."""
        work()


def _nothing(_cell: Cell, _envelope: Envelope) -> None:
    """Nobody wants to see it."""
