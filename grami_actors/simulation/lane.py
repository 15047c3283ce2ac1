"""The lane of a simulation: each message that an actor takes is a step of the schedule. Floor 14.

All lanes are this one: there are no threads and no worker processes here. What blocks on another lane is one step here,
which takes no time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from grami_actors.cell import Cell
from grami_actors.future import Future
from grami_actors.lanes.loop import LoopLane
from grami_actors.messages import Envelope
from grami_actors.simulation.loop import VirtualLoop
from grami_actors.simulation.schedule import Choice

ACTORS = 1 << 40
"""Numbers of steps that are an actor's: behind those of all tasks."""


class SimulatedLane(LoopLane):
    """The loop lane, but for who takes the next message: the schedule of the loop chooses.

    Args:
        loop: the running loop.
        witness: sees each message as it is taken.
    """

    def __init__(self, loop: VirtualLoop, witness: Callable[[Cell, Envelope], object]) -> None:
        super().__init__(loop, loop.time)
        self._witness = witness
        self._steps = loop
        self._offered: set[Cell] = set()

    def wake(self, cell: Cell) -> None:
        """Let the schedule choose this actor."""
        if cell not in self._offered:
            self._offered.add(cell)
            self._steps.offer(Choice(ACTORS + cell.number, cell.name, partial(self._step, cell)))

    def lend(self, future: Future[Any]) -> None:
        """Nothing: whose turn it is, the schedule says."""

    def _step(self, cell: Cell) -> None:
        self._offered.discard(cell)
        if cell.paused or cell.working >= cell.concurrency:  # it is woken when that has changed
            return
        envelope = cell.mailbox.take()
        if envelope is None:
            return
        cell.mailbox.measure()
        self._witness(cell, envelope)
        self._context.copy().run(self._handle, cell, envelope)
        if not cell.paused and cell.working < cell.concurrency and not cell.mailbox.rest():
            self.wake(cell)

    def _handle(self, cell: Cell, envelope: Envelope) -> None:
        rest = cell.handle(envelope, self._steps.time())
        if rest is not None:
            self._begin(cell, rest)

    def _begin(self, cell: Cell, rest: Coroutine[Any, Any, None]) -> None:
        cell.working += 1
        task: asyncio.Task[Any] = self._steps.begin(self._finish(cell, rest))
        if cell.port is None:
            cell.port = set()
        cell.port.add(task)
