"""The loop lane: many actors on one asyncio event loop. Floor 7.

Rules:

1. Mailboxes are scheduled, not tasks: an idle actor owns no task and no thread. The first message in an
   idle mailbox puts its cell on the ready queue; one coalesced callback drains the queue.
2. A plain handler runs inside the drain. Only a coroutine gets a task.
3. Fairness: a cell handles at most :data:`BATCH` messages a turn, and none begins after :data:`SLICE` seconds
   of a drain, which then gives the loop back, so sockets and timers get theirs.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from grami_actors.cell import Cell, LaneName
from grami_actors.future import Delivery, current
from grami_actors.messages import Envelope

BATCH = 64
SLICE = 0.005


class LoopLane:
    """Runs handlers on the event loop that is given.

    Args:
        loop: the running loop.
        clock: seconds, monotonic; virtual in a simulation.
    """

    name: LaneName = "loop"

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float]) -> None:
        self._loop = loop
        self._clock = clock
        self._thread = threading.get_ident()
        self._ready: deque[Cell] = deque()
        self._scheduled = False
        # Handlers must not inherit the context of whoever happened to wake the lane.
        self._context = contextvars.copy_context()
        self._context.run(current.set, None)

    def attach(self, cell: Cell) -> None:
        """Own the cell from now on, paused."""
        tasks: set[asyncio.Task[None]] = set()
        cell.port = tasks

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
        ready = self._ready
        end = self._clock() + SLICE
        while ready:
            cell = ready.popleft()
            # A copy for each turn: what one actor sets in its context is not for the next.
            if self._context.copy().run(self._turn, cell, end):
                ready.append(cell)
            if self._clock() >= end:
                break
        if ready and not self._scheduled:
            self._scheduled = True
            self._schedule()

    def _turn(self, cell: Cell, end: float) -> bool:
        """Handle a batch, until ``end`` at the latest; whether there may be more to do at once."""
        take, handle = cell.mailbox.take, cell.handle
        for _ in range(BATCH):
            if cell.paused or cell.working >= cell.concurrency:
                return False
            envelope = take()
            if envelope is None:
                return False
            rest = handle(envelope)
            if rest is not None:
                self._begin(cell, rest)
            elif self._clock() >= end:
                return True
        return True

    def _begin(self, cell: Cell, rest: Coroutine[Any, Any, None]) -> None:
        cell.working += 1
        task = self._loop.create_task(self._finish(cell, rest))
        if not task.done():  # an eager task may be
            cell.port.add(task)

    async def _finish(self, cell: Cell, rest: Coroutine[Any, Any, None]) -> None:
        try:
            await rest
        finally:
            cell.port.discard(asyncio.current_task())
            cell.working -= 1
            if not cell.paused and cell.working == cell.concurrency - 1:
                cell.mailbox.nudge()

    async def call(self, cell: Cell, hook: Callable[[], Any]) -> Any:
        """Run a hook as the actor, in the calling task."""
        delivery = Delivery(cell, Envelope(None), self._clock())
        token = current.set(delivery)
        try:
            result = hook()
            return await result if inspect.isawaitable(result) else result
        finally:
            # A task that the hook leaves behind does not hold the actor up.
            delivery.active = False
            current.reset(token)

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
        for task in tuple(cell.port):
            # Not at once: a task that is cancelled before its first step would never run what finishes the message.
            self._loop.call_soon(task.cancel)

    def detach(self, cell: Cell) -> None:
        """Let go of the cell."""
