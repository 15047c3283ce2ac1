"""The loop lane: many actors on one asyncio event loop. Floor 9.

Rules:

1. Mailboxes are scheduled, not tasks: an idle actor owns no task and no thread. The first message in an
   idle mailbox puts its cell on the ready queue; one coalesced callback drains the queue.
2. A plain handler runs inside the drain. Only a coroutine gets a task, and its first step is taken in the drain.
3. Fairness: a cell handles at most :data:`BATCH` messages a turn, and none begins after :data:`SLICE` seconds
   of a drain, which then gives the loop back, so sockets and timers get theirs.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from grami_actors.cell import CONTROL, Cell
from grami_actors.context import clean_context, hooking
from grami_actors.future import Future, begin, current
from grami_actors.messages import Envelope
from grami_actors.spec import LaneName

BATCH = 64
SLICE = 0.005


class LoopLane:
    """Runs handlers on the event loop that is given.

    Args:
        loop: the running loop.
        clock: seconds, monotonic; virtual in a simulation.
    """

    name: LaneName = "loop"
    shared = False

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float]) -> None:
        self._loop = loop
        self._clock = clock
        self._thread = threading.get_ident()
        self._ready: deque[Cell] = deque()
        self._scheduled = False
        self._busy = False
        self._beginning = False
        self._lent = 0  # turns that were handed out since the last drain by those who were about to wait
        self._lent_since = 0.0
        # Handlers must not inherit the context of whoever happened to wake the lane.
        self._context = clean_context()

    def attach(self, cell: Cell) -> None:
        """Own the cell from now on, paused."""

    def wake(self, cell: Cell) -> None:
        """Put the cell on the ready queue; from any thread, without waiting."""
        self._ready.append(cell)
        if not self._scheduled:
            self._scheduled = True
            self._schedule()

    def _schedule(self) -> None:
        if threading.get_ident() == self._thread:
            self._loop.call_soon(self._drain, context=self._context)
        else:
            self._loop.call_soon_threadsafe(self._drain, context=self._context)

    def _drain(self) -> None:
        # Cleared before the queue is read: whoever appends from now on schedules another drain.
        self._scheduled = False
        self._lent = 0
        self._run(None, self._clock())
        if self._ready and not self._scheduled:
            self._scheduled = True
            self._schedule()

    def lend(self, future: Future[Any]) -> None:
        """Use the time of a coroutine that is about to wait for an answer: hand out turns here and now.

        An ask of a plain handler is then answered before its caller would have gone to sleep, without a turn of the
        loop. The rest of the loop does not have to wait longer for that than for a drain.
        """
        if self._busy or self._lent >= BATCH or threading.get_ident() != self._thread:
            return
        if self._lent == 0:
            self._lent_since = self._clock()
        elif self._clock() - self._lent_since >= SLICE:
            return
        self._lent += 1
        self._run(future, self._lent_since)

    def _run(self, wanted: Future[Any] | None, now: float) -> None:
        """Hand out turns for a slice, or until the wanted answer is there."""
        ready, end = self._ready, now + SLICE
        self._busy = True
        try:
            while ready:
                cell = ready.popleft()
                # A copy for each turn: what one actor sets in its context is not for the next.
                if self._context.copy().run(self.turn, cell, now, end):
                    ready.append(cell)
                if wanted is not None and wanted._outcome is not None:
                    break
                now = self._clock()
                if now >= end:
                    break
        finally:
            self._busy = False

    def turn(self, cell: Cell, now: float, end: float) -> bool:  # noqa: C901, PLR0912 - in parts it is slower by half
        """Handle a batch, until ``end`` at the latest; whether there may be more to do at once."""
        if cell.paused:  # it may have no instance yet
            return False
        mailbox, clock = cell.mailbox, self._clock
        queue, receive = mailbox.measure(), cell.actor.on_receive
        plain = False  # whether the context says that a message without a scope is at work
        for _ in range(BATCH):
            if cell.paused or cell.working >= cell.concurrency:
                return False
            if mailbox.first or mailbox.parked:
                envelope = mailbox.take()
                if envelope is None:
                    return False
            elif queue:
                envelope = queue.popleft()
            elif mailbox.rest():
                return False
            else:
                continue
            message = envelope.message
            plainly = envelope.scope is None and envelope.reply_to is None
            if plainly and message.__class__ not in CONTROL and not cell.bus.timed:
                # A tell outside any request, the most frequent message: there is nothing to inherit but who sends, so
                # the context is set once for all of them, and nobody waits for what the handler returns.
                if not plain:
                    plain = True
                    current.set(Envelope(None, receiver=cell))
                cell.at_work = envelope
                try:
                    result = receive(message)
                except BaseException as error:  # noqa: BLE001 - S15: nothing leaves the cell
                    cell.fail(envelope, error, cell.actor)
                else:
                    cell.at_work = None
                    if result is not None and hasattr(result.__class__, "__await__"):
                        self._begin(cell, cell.drive(envelope, result, cell.actor))
            else:
                plain = False
                rest = cell.handle(envelope, now)
                if rest is not None:
                    self._begin(cell, rest)
            now = clock()
            if now >= end:
                return True
        return True

    def _begin(self, cell: Cell, rest: Coroutine[Any, Any, None]) -> None:
        cell.working += 1
        self._beginning = True
        try:
            task = begin(self._loop, self._finish(cell, rest))
        finally:
            self._beginning = False
        if not task.done():
            if cell.port is None:
                cell.port = set()
            cell.port.add(task)

    async def _finish(self, cell: Cell, rest: Coroutine[Any, Any, None]) -> None:
        try:
            await rest
        finally:
            cell.working -= 1
            if cell.port:
                cell.port.discard(asyncio.current_task())
            # What ends in its first step ends in its actor's turn, which goes on by itself.
            if not self._beginning and not cell.paused and cell.working == cell.concurrency - 1:
                cell.mailbox.nudge()

    async def start(self, cell: Cell) -> None:
        """Make an instance and run its ``on_start`` in the calling task."""
        await self._call(cell, lambda: cell.build().on_start())

    async def call(self, cell: Cell, hook: str, *args: Any) -> Any:
        """Run a hook of the instance in the calling task."""
        return await self._call(cell, lambda: getattr(cell.actor, hook)(*args))

    async def _call(self, cell: Cell, work: Callable[[], Any]) -> Any:
        with hooking(cell):
            result = work()
            return await result if inspect.isawaitable(result) else result

    def pause(self, cell: Cell) -> None:
        """Take no more messages for the cell."""
        cell.paused = True

    def resume(self, cell: Cell) -> None:
        """Let the cell take messages."""
        cell.paused = False
        cell.mailbox.nudge()

    async def quiesce(self, cell: Cell, grace: float) -> bool:
        """Wait up to ``grace`` seconds for the handlers at work, then cancel them and wait once more."""
        for interrupt in (False, True):
            if not cell.port:
                return True
            if interrupt:
                self.kill(cell)
            await asyncio.wait(tuple(cell.port), timeout=grace)
        return not cell.port

    def kill(self, cell: Cell) -> None:
        """Cancel the handlers at work."""
        for task in tuple(cell.port or ()):
            # Not at once: a task that is cancelled before its first step would never run what finishes the message.
            self._loop.call_soon(task.cancel)

    async def close(self) -> None:
        """Nothing is left when all actors are stopped."""

    def detach(self, cell: Cell) -> None:
        """Let go of the cell."""
