"""The life of an actor: started honestly, restarted in place, stopped in order. Floor 7.

One supervisor serves a whole system. It decides with :func:`grami_actors.restarts.decide` and acts through
the lanes; all its steps run on the system's home loop, whatever lane the actor is on. The strategy is
one_for_one: only the actor that failed is restarted (its children go with it).

The order of a stop is OTP's and Akka's: close the mailbox, let the message in hand end, stop the children
in reverse order, run ``on_stop``, free the name, and only then tell whoever waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from grami_actors.cell import ActorDead, Cell, Runtime
from grami_actors.errors import StartFailed
from grami_actors.future import current, describe, details
from grami_actors.restarts import GiveUp, Restart, decide
from grami_actors.telemetry import (
    ActorFailed,
    ActorGaveUp,
    ActorPaused,
    ActorRestarted,
    ActorStarted,
    ActorStopped,
    Event,
)

GRACE = 5.0
"""Seconds that a stopping actor's handler and ``on_stop`` get before they are interrupted."""


SHORT_GRACE = 1.0
"""Seconds that a hook which was cancelled gets to notice."""


class ChildGaveUp(Exception):
    """A child failed more often than its policy allows; the failure escalates to its parent."""


class Supervisor:
    """Starts, restarts and stops the actors of one system.

    Args:
        runtime: the system.
        random: gives numbers from 0 up to 1, for the jitter of the backoff.
    """

    def __init__(self, runtime: Runtime, random: Callable[[], float]) -> None:
        self._runtime = runtime
        self._random = random
        self._thread = threading.get_ident()
        self._tasks: set[asyncio.Task[Any]] = set()
        # A restart must not inherit the scope of the message that failed.
        self._context = contextvars.copy_context()
        self._context.run(current.set, None)

    def _publish(self, event: Event) -> None:
        if type(event) in self._runtime.bus:
            self._runtime.bus.publish(event)

    def _task(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self._runtime.loop.create_task(work, context=self._context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- start ---

    async def start(self, cell: Cell) -> None:
        """Start an actor; returns after ``on_start`` succeeded.

        Raises:
            StartFailed: the constructor or ``on_start`` raised, or the actor was stopped meanwhile; nothing of
                it is left.
        """
        try:
            cell.lane.attach(cell)
        except StartFailed:
            cell.move("start_failed")
            self._runtime.release(cell)
            raise
        # A task of its own: whoever spawns may be cancelled, and what was begun must still be put away.
        cell.lifecycle = birth = self._task(self._begin_life(cell))
        try:
            started = await asyncio.shield(birth)
        except asyncio.CancelledError:
            if birth.cancelled():
                raise StartFailed(f"{cell.name} was stopped while it started") from None
            self.stop(cell)
            raise
        if not started:
            raise StartFailed(f"{cell.name} stopped itself while it started")

    async def _begin_life(self, cell: Cell) -> bool:
        try:
            await self._birth(cell)
        except BaseException as error:
            if _cancelled_from_outside(error):
                raise
            await self._abort(cell)
            raise StartFailed(f"{cell.name} could not be started: {describe(error)}") from error
        if cell.state != "starting":
            return False
        cell.lifecycle = None
        cell.move("started")
        self._publish(ActorStarted(cell.name, cell.spec.kind.__name__, cell.lane.name))
        cell.actor._start_actor_loop()
        return True

    async def _birth(self, cell: Cell) -> None:
        cell.born = False
        await cell.lane.call(cell, lambda: cell.build().on_start())
        cell.born = True

    async def _abort(self, cell: Cell) -> None:
        cell.move("start_failed")
        self._discard_mail(cell)
        await self._stop_children(cell)
        self._runtime.release(cell)
        cell.lane.detach(cell)

    # --- failure ---

    def failed(self, cell: Cell, error: BaseException) -> None:
        """A handler of the actor failed; called on its lane."""
        cell.lane.pause(cell)
        if threading.get_ident() == self._thread:
            self._begin_recovery(cell, error)
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed: there is nothing to go on with
                self._runtime.loop.call_soon_threadsafe(self._begin_recovery, cell, error)

    def _begin_recovery(self, cell: Cell, error: BaseException) -> None:
        # With concurrency several handlers can fail at once: the first failure restarts for all.
        if cell.state == "running":
            cell.move("failed")
            cell.lifecycle = self._task(self._recover(cell, error))

    async def _recover(self, cell: Cell, error: BaseException) -> None:
        self._report_failure(cell, error)
        await self._hook(cell, lambda: cell.actor.on_failure(type(error), error, error.__traceback__))
        await self._stop_children(cell)
        while True:
            decision = decide(cell.spec.restart, cell.history, self._runtime.now(), self._random())
            if isinstance(decision, GiveUp):
                self._publish(ActorGaveUp(cell.name, decision.failures))
                self._give_up(cell)
                return
            cell.history = decision.history
            await self._wait_to_restart(cell, decision)
            try:
                await self._birth(cell)
            except BaseException as again:
                if _cancelled_from_outside(again):
                    raise
                self._report_failure(cell, again)
                await self._stop_children(cell)
                continue
            break
        if cell.state != "restarting":  # its own on_start asked for the stop that is under way
            return
        cell.restarts += 1
        cell.move("started")
        self._publish(ActorRestarted(cell.name, cell.restarts, decision.delay))
        cell.lane.resume(cell)

    async def _wait_to_restart(self, cell: Cell, decision: Restart) -> None:
        if decision.paused:
            cell.move("paused")
            self._publish(ActorPaused(cell.name, decision.delay))
        await asyncio.sleep(decision.delay)
        if decision.paused:
            cell.move("retry")

    def _report_failure(self, cell: Cell, error: BaseException) -> None:
        if ActorFailed in self._runtime.bus:
            self._publish(ActorFailed(cell.name, describe(error), details(error)))

    def _give_up(self, cell: Cell) -> None:
        parent = cell.parent
        cell.lifecycle = None
        self.stop(cell, on_stop=False)
        if parent is not None and parent.state == "running":
            self.failed(parent, ChildGaveUp(f"{cell.name} failed too often"))

    # --- stop ---

    def stop(self, cell: Cell, grace: float = GRACE, *, on_stop: bool = True) -> asyncio.Task[bool]:
        """Begin to stop an actor, on the home loop. The task says whether this call stopped it."""
        if cell.state in {"stopping", "stopped"}:
            return self._task(self._already(cell.lifecycle))
        recovery = cell.lifecycle
        if recovery is not None:
            recovery.cancel()  # now, not when the task below first runs: it must not come back to life in between
        cell.move("stop")
        cell.lifecycle = task = self._task(self._stop(cell, grace, recovery, on_stop=on_stop))
        return task

    async def _already(self, stopping: asyncio.Task[Any] | None) -> bool:
        if stopping is not None:
            await asyncio.wait((stopping,))
        return False

    async def _stop(self, cell: Cell, grace: float, recovery: asyncio.Task[Any] | None, *, on_stop: bool) -> bool:
        if recovery is not None:
            await asyncio.wait((recovery,))
        cell.lane.pause(cell)
        self._discard_mail(cell)
        quiet = await cell.lane.quiesce(cell, grace)
        await self._stop_children(cell, grace)
        if quiet and on_stop and cell.born:
            quiet = await self._hook(cell, cell.actor.on_stop, grace)
        self._runtime.release(cell)
        cell.lane.detach(cell)
        cell.move("stopped")
        self._publish(ActorStopped(cell.name, leaked=not quiet))
        return True

    async def _stop_children(self, cell: Cell, grace: float = GRACE) -> None:
        for child in reversed(tuple(cell.children.values())):
            # Shielded: when this wait is cancelled, the stop of the child still goes to its end.
            await asyncio.shield(self.stop(child, grace))

    def _discard_mail(self, cell: Cell) -> None:
        for envelope in cell.mailbox.close():
            cell.discard(envelope, "stopped", ActorDead(f"{cell.name} stopped before it handled the message"))

    async def _hook(self, cell: Cell, hook: Callable[[], Any], grace: float = GRACE) -> bool:
        """Run a hook that may fail without consequence; ``False`` if it did not end in time."""
        task = self._task(self._contained(cell, hook))
        done, _ = await asyncio.wait((task,), timeout=grace)
        if not done:
            task.cancel()
            await asyncio.wait((task,), timeout=SHORT_GRACE)
            self._tasks.discard(task)  # one that swallows its cancellation is left behind
            return False
        error = task.result()
        if error is not None:
            self._report_failure(cell, error)
        return True

    @staticmethod
    async def _contained(cell: Cell, hook: Callable[[], Any]) -> BaseException | None:
        try:
            await cell.lane.call(cell, hook)
        except BaseException as error:  # noqa: BLE001 - S15: a hook may raise anything, and asyncio re-raises SystemExit
            return error
        return None

    async def close(self) -> None:
        """Wait for everything that is still under way."""
        while self._tasks:
            await asyncio.wait(tuple(self._tasks))


def _cancelled_from_outside(error: BaseException) -> bool:
    """Whether this task itself is being cancelled, as opposed to user code that raised CancelledError."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0
