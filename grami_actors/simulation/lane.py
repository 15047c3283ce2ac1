"""The lane of a simulation: each message that an actor takes is a step of the schedule. Floor 14.

All lanes are this one: there are no threads and no worker processes here. What blocks on another lane is one step here,
which takes no time.
"""

from __future__ import annotations

import asyncio
import itertools
import zlib
from collections.abc import Callable, Coroutine
from typing import Any

from grami_actors.cell import CONTROL, Cell
from grami_actors.future import Future
from grami_actors.lanes.loop import LoopLane
from grami_actors.messages import Envelope
from grami_actors.simulation.loop import VirtualLoop

ACTORS = 1 << 40
"""Numbers of steps that are an actor's: behind those of all tasks."""

SENDERS = 1 << 41
"""Numbers of senders, of which one is chosen: behind those of all actors."""

AMONG = 16
"""Messages that wait in a mailbox among which one is chosen; with more, the first are as good as any."""


class _Turn:
    """The next message of an actor, as a step."""

    __slots__ = ("_cell", "_take", "number", "offered", "owner")

    def __init__(self, cell: Cell, take: Callable[[Cell], object]) -> None:
        self.number = ACTORS + cell.number
        self.owner = cell.name
        self.offered = False
        self._cell = cell
        self._take = take

    def run(self) -> None:
        """Take it."""
        self.offered = False
        self._take(self._cell)


class _Mail:
    """The first message of one sender in a mailbox, as something to choose."""

    __slots__ = ("envelope", "number", "owner")

    def __init__(self, envelope: Envelope) -> None:
        self.envelope = envelope
        self.owner = envelope.sender
        self.number = SENDERS + zlib.crc32(envelope.sender.encode())


class SimulatedLane(LoopLane):
    """The loop lane, but for who takes the next message, and of which sender: the schedule of the loop chooses.

    Args:
        loop: the running loop.
        witness: sees each message as it is taken.
    """

    def __init__(self, loop: VirtualLoop, witness: Callable[[Cell, Envelope], object]) -> None:
        super().__init__(loop, loop.time)
        self._witness = witness
        self._steps = loop
        self._turns: dict[Cell, _Turn] = {}

    def wake(self, cell: Cell) -> None:
        """Let the schedule choose this actor."""
        turn = self._turns.get(cell)
        if turn is None:
            turn = self._turns[cell] = _Turn(cell, self._step)
        if not turn.offered:
            turn.offered = True
            self._steps.offer(turn)

    def detach(self, cell: Cell) -> None:
        """Let go of the cell."""
        super().detach(cell)
        self._turns.pop(cell, None)

    def lend(self, future: Future[Any]) -> None:
        """Nothing: whose turn it is, the schedule says."""

    def _step(self, cell: Cell) -> None:
        if cell.paused or cell.working >= cell.concurrency:  # it is woken when that has changed
            return
        envelope = self._next(cell)
        if envelope is None:
            return
        self._witness(cell, envelope)
        self._context.copy().run(self._handle, cell, envelope)
        if not cell.paused and cell.working < cell.concurrency and not cell.mailbox.rest():
            self.wake(cell)

    def _next(self, cell: Cell) -> Envelope | None:
        """The next message: of whichever sender, since only those of one sender have an order (S1)."""
        mailbox = cell.mailbox
        queue = mailbox.measure()
        if len(queue) > 1 and not mailbox.first and cell.spec.kind.listed:
            heads: dict[str, _Mail] = {}
            for envelope in itertools.islice(queue, AMONG):
                if envelope.message.__class__ in CONTROL:  # what stops the actor is behind all that came before
                    break
                if envelope.sender not in heads:
                    heads[envelope.sender] = _Mail(envelope)
            if len(heads) > 1:
                mails = tuple(heads.values())
                place = self._steps.choose(mails)
                if place:
                    mailbox.withdraw(mails[place].envelope)
                    return mails[place].envelope
        return mailbox.take()

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
