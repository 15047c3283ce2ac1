"""The life of an actor: started honestly, restarted in place, stopped in order. Floor 9.

One lifecycle serves a whole system. It decides with :func:`grami_actors.restarts.decide` and acts through the lanes;
all its steps run on the system's home loop, whatever lane the actor is on.

Rules:

1. A restart is a :class:`Recovery`: the actor that failed, and whoever its parent's strategy takes along. They are
   taken down in reverse order and started in order; an actor that is stopped meanwhile leaves it.
2. The order of a stop is OTP's and Akka's: close the mailbox, let the message in hand end, stop the children
   in reverse order, run ``on_stop``, free the name, and only then tell whoever waits or watches.
3. What has nothing to wait for takes no task: an idle actor without hooks starts and stops in one step.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from grami_actors.actor import Actor
from grami_actors.cell import Cell
from grami_actors.context import clean_context
from grami_actors.contracts import Runtime
from grami_actors.errors import StartFailed, describe
from grami_actors.future import Future, details
from grami_actors.recovery import ALIVE, DOWN, ChildGaveUp, Recovery, group
from grami_actors.ref import ActorDead
from grami_actors.restarts import GiveUp, Restart, decide
from grami_actors.telemetry import (
    ActorFailed,
    ActorGaveUp,
    ActorPaused,
    ActorRestarted,
    ActorResumed,
    ActorStarted,
    ActorStopped,
    ActorSuspended,
    Event,
)

SHORT_GRACE = 1.0
"""Seconds that a hook which was cancelled gets to notice."""


class Lifecycle:
    """Starts, restarts and stops the actors of one system.

    Args:
        runtime: the system.
        random: gives numbers from 0 up to 1, for the jitter of the backoff.
    """

    def __init__(self, runtime: Runtime[Cell], random: Callable[[], float]) -> None:
        self._runtime = runtime
        self._random = random
        self._thread = threading.get_ident()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._hooks: dict[Cell, asyncio.Task[Any]] = {}
        # A restart must not inherit the scope of the message that failed.
        self._context = clean_context()

    def _publish(self, event: Event) -> None:
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
            self._forget(cell)
            raise
        if cell.lane.name == "loop" and cell.spec.kind.on_start is Actor.on_start:
            self._start_now(cell)
            return
        # A task of its own: whoever spawns may be cancelled, and what was begun must still be put away.
        cell.lifecycle = birth = self._task(self._begin_life(cell))
        birth.add_done_callback(lambda task: task.cancelled() or task.exception())  # asked for, though nobody may wait
        gone: asyncio.Future[object] = self._runtime.loop.create_future()
        cell.watch(gone, gone.set_result)
        try:
            await asyncio.wait((birth, gone), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self.stop(cell)
            raise
        finally:
            cell.unwatch(gone)
        if not birth.done() or birth.cancelled():
            raise StartFailed(f"{cell.name} was stopped while it started")
        if not birth.result():
            raise StartFailed(f"{cell.name} stopped itself while it started")

    def _start_now(self, cell: Cell) -> None:
        try:
            self._context.copy().run(cell.build)
        except BaseException as error:
            self._forget(cell)
            raise _start_failed(cell, error) from error
        if cell.state != "starting":
            raise StartFailed(f"{cell.name} stopped itself while it started")
        cell.born = True
        self._open(cell)

    async def _begin_life(self, cell: Cell) -> bool:
        try:
            await self._birth(cell)
        except BaseException as error:
            if _cancelled_from_outside(error):
                raise
            if cell.state == "starting":  # else it was stopped, and whoever does that puts it away
                self._discard_mail(cell)
                await self._stop_children(cell)
                self._forget(cell)
            raise _start_failed(cell, error) from error
        if cell.state != "starting":
            return False
        cell.lifecycle = None
        self._open(cell)
        return True

    def _open(self, cell: Cell) -> None:
        cell.move("started")
        if ActorStarted in self._runtime.bus:
            self._publish(ActorStarted(cell.name, cell.spec.kind.__name__, cell.lane.name))
        self._run_messages(cell)

    def _run_messages(self, cell: Cell) -> None:
        cell.lane.resume(cell)
        if cell.owed is not None:  # a child gave up while this actor was busy being started
            error, cell.owed = cell.owed, None
            self.failed(cell, error)

    async def _born_again(self, cell: Cell) -> BaseException | None:
        try:
            await self._birth(cell)
        except BaseException as error:  # S15: asyncio re-raises SystemExit, and takes CancelledError for its own
            if _cancelled_from_outside(error):
                raise
            return error
        return None

    async def _birth(self, cell: Cell) -> None:
        cell.born = False
        cell.owed = None
        cell.child_history = ()
        await cell.lane.start(cell)
        cell.born = True

    def _forget(self, cell: Cell) -> None:
        cell.move("start_failed")
        self._discard_mail(cell)
        self._runtime.release(cell)
        cell.lane.detach(cell)
        cell.terminated("failed")

    # --- failure ---

    def failed(self, cell: Cell, error: BaseException) -> None:
        """A handler of the actor failed; called on its lane."""
        cell.lane.pause(cell)
        if threading.get_ident() == self._thread:
            self._decide(cell, error)
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed: there is nothing to go on with
                self._runtime.loop.call_soon_threadsafe(self._decide, cell, error)

    def _decide(self, cell: Cell, error: BaseException) -> None:
        # With concurrency several handlers can fail at once: the first failure restarts for all.
        if cell.state not in ALIVE:
            return
        directive = cell.spec.restart.directive(error)
        self._report_failure(cell, error)
        if directive == "resume":
            if cell.state == "running":
                cell.lane.resume(cell)
        elif directive == "restart" and cell.spec.keep != "temporary":
            self._recover(cell, error)
        else:
            self._give_up(cell, error, escalates=directive == "escalate")

    def _recover(self, cell: Cell, error: BaseException | None) -> None:
        recovery = Recovery(cell, group(cell))
        for member in recovery.cells:
            if member.recovery is not None:
                member.recovery.leave(member)
            member.recovery = recovery
            self._halt(member)
        recovery.task = self._task(self._run(recovery, error))

    def _halt(self, cell: Cell) -> None:
        """Take no more messages, until it is started again."""
        if cell.lifecycle is not None:
            cell.lifecycle.cancel()
        if cell.state in ALIVE:
            cell.lane.pause(cell)
            cell.suspended = cell.state == "suspended"
            cell.move("failed")
        elif cell.state == "paused":
            cell.move("retry")

    async def _run(self, recovery: Recovery, error: BaseException | None) -> None:
        cell = recovery.failed
        if error is not None:
            cell.born = False  # a failed instance is not stopped, it is dropped
            await self._hook(cell, "on_failure", type(error), error, error.__traceback__)
        while True:
            await self._take_down(recovery)
            decision = self._ask_policy(recovery.failed)
            if isinstance(decision, GiveUp):
                if ActorGaveUp in self._runtime.bus:
                    self._publish(ActorGaveUp(recovery.failed.name, decision.failures))
                failed = recovery.failed
                for member in reversed(tuple(recovery.cells)):
                    if member is not failed:
                        self.stop(member, failed=ChildGaveUp())
                self._give_up(failed, None, escalates=True)
                return
            await self._wait_to_restart(recovery, decision)
            if await self._bring_up(recovery, decision):
                return

    async def _take_down(self, recovery: Recovery) -> None:
        for cell in reversed(tuple(recovery.cells)):
            if cell.recovery is not recovery:
                continue
            self._halt(cell)
            await self._outlives(cell.lifecycle, cell.spec.grace)
            if cell.born:  # what failed is not waited for
                await cell.lane.quiesce(cell, cell.spec.grace)
            if cell.timers is not None:
                cell.timers.cancel_all()
            await self._stop_children(cell)
            if cell.born and cell.state in DOWN:
                cell.born = False
                await self._hook(cell, "on_stop")
            if cell.spec.keep == "temporary":
                self.stop(cell)

    def _ask_policy(self, cell: Cell) -> Restart | GiveUp:
        """What follows. The parent's policy, if it has one, counts for all its children together, as in OTP."""
        parent = cell.parent
        policy = None if parent is None else parent.spec.kind.children_restart
        counts = cell if policy is None or parent is None else parent
        history = counts.history if counts is cell else counts.child_history
        decision = decide(policy or cell.spec.restart, history, self._runtime.now(), self._random())
        if isinstance(decision, Restart):
            if counts is cell:
                cell.history = decision.history
            else:
                counts.child_history = decision.history
        return decision

    async def _wait_to_restart(self, recovery: Recovery, decision: Restart) -> None:
        if decision.paused:
            for cell in recovery.cells:
                cell.move("paused")
                self._publish(ActorPaused(cell.name, decision.delay))
        await asyncio.sleep(decision.delay)
        if decision.paused:
            for cell in recovery.cells:
                cell.move("retry")

    async def _bring_up(self, recovery: Recovery, decision: Restart) -> bool:
        """Start everybody in order; ``False`` if one could not be started, which is its failure."""
        for cell in tuple(recovery.cells):
            if cell.recovery is not recovery:
                continue
            # A task of its own: stopping this actor must not end the restart of the others.
            cell.lifecycle = birth = self._task(self._born_again(cell))
            await asyncio.wait((birth,))
            if birth.cancelled() or cell.state != "restarting" or cell.recovery is not recovery:
                continue  # stopped meanwhile, maybe by its own on_start
            cell.lifecycle = None
            error = birth.result()
            if error is not None:
                self._report_failure(cell, error)
                recovery.failed = cell
                return False
            cell.restarts += 1
            cell.move("started")
            if ActorRestarted in self._runtime.bus:
                self._publish(ActorRestarted(cell.name, cell.restarts, decision.delay))
            if cell.suspended:
                cell.move("suspend")
            else:
                self._run_messages(cell)
        for cell in recovery.cells:
            cell.recovery = None
        return True

    def _report_failure(self, cell: Cell, error: BaseException) -> None:
        if ActorFailed in self._runtime.bus:
            self._publish(ActorFailed(cell.name, describe(error), details(error)))

    def _give_up(self, cell: Cell, error: BaseException | None, *, escalates: bool) -> None:
        parent = cell.parent
        self.stop(cell, failed=error or ChildGaveUp())
        if not escalates or parent is None:
            return
        error = ChildGaveUp(f"{cell.name} failed, and could not be mended")
        if parent.state in ALIVE:
            self.failed(parent, error)
        elif parent.lifecycle is not None and parent.state != "stopping":
            parent.owed = error

    # --- suspend ---

    def suspend(self, cell: Cell) -> bool:
        """Let the actor take no messages until it is resumed; ``False`` if it is not running."""
        if cell.state != "running":
            return False
        cell.lane.pause(cell)
        cell.move("suspend")
        self._publish(ActorSuspended(cell.name))
        return True

    def resume(self, cell: Cell) -> bool:
        """Undo :meth:`suspend`; ``False`` if it is not suspended."""
        if cell.state != "suspended":
            was, cell.suspended = cell.suspended, False
            return was
        cell.suspended = False
        cell.move("resume")
        self._publish(ActorResumed(cell.name))
        self._run_messages(cell)
        return True

    # --- stop ---

    def stop(
        self, cell: Cell, grace: float | None = None, *, failed: BaseException | None = None, by_itself: bool = False
    ) -> Future[bool]:
        """Begin to stop an actor, on the home loop.

        Args:
            cell: the actor.
            grace: seconds that its handler, its ``on_stop`` and its children get; its own if not given.
            failed: what its instance failed with, so ``on_failure`` is run and ``on_stop`` is not.
            by_itself: the actor asked for it; a permanent child is then restarted.

        Returns:
            the future of whether this call stopped it.
        """
        ended: Future[bool] = Future()
        if cell.state in {"stopping", "stopped"}:
            cell.watch(ended, lambda _: ended.set(False))
        elif by_itself and cell.state in ALIVE and _is_kept(cell):
            self._recover(cell, None)
            ended.set(False)
        else:
            self._begin_stop(cell, grace, ended, failed=failed)
        return ended

    def _begin_stop(
        self, cell: Cell, grace: float | None, ended: Future[bool], *, failed: BaseException | None
    ) -> None:
        cell.lane.pause(cell)  # now: the message in hand is the last one
        idle = cell.state in ALIVE and not (cell.children or cell.working or cell.at_work)
        idle = idle and cell.lane.name == "loop"
        birth = cell.lifecycle
        if birth is not None:
            birth.cancel()  # now, not when the task below first runs: it must not come back to life in between
        if cell.recovery is not None:
            cell.recovery.leave(cell)
        cell.move("stop")
        cell.watch(ended, lambda _: ended.set(True))
        hook = Actor.on_stop if failed is None else Actor.on_failure
        if idle and getattr(cell.spec.kind, hook.__name__) is hook:
            self._discard_mail(cell)
            self._end(cell, "stopped" if failed is None else "failed")
        else:
            cell.lifecycle = self._task(self._stop(cell, grace, birth, failed=failed))

    async def _stop(
        self, cell: Cell, grace: float | None, birth: asyncio.Task[Any] | None, *, failed: BaseException | None
    ) -> None:
        own = cell.spec.grace if grace is None else grace
        leaked = await self._outlives(birth, own)
        leaked |= await self._outlives(self._hooks.get(cell), own)  # of a restart that this stop put an end to
        self._discard_mail(cell)
        if failed is not None and cell.born:
            await self._hook(cell, "on_failure", type(failed), failed, failed.__traceback__, grace=own)
        quiet = await cell.lane.quiesce(cell, own) and not leaked
        await self._stop_children(cell, grace)
        if quiet and cell.born and failed is None:
            quiet = await self._hook(cell, "on_stop", grace=own)
        self._end(cell, "stopped" if failed is None else "failed", leaked=not quiet)

    def _end(self, cell: Cell, reason: str, *, leaked: bool = False) -> None:
        if cell.timers is not None:
            cell.timers.cancel_all()
        self._runtime.release(cell)
        cell.lane.detach(cell)
        cell.move("stopped")
        if ActorStopped in self._runtime.bus:
            self._publish(ActorStopped(cell.name, leaked=leaked))
        cell.terminated(reason)

    async def _stop_children(self, cell: Cell, grace: float | None = None) -> None:
        while cell.children:  # and those that were spawned meanwhile
            # A future: when this wait is cancelled, the stop of the child still goes to its end.
            await self.stop(next(reversed(cell.children.values())), grace)

    def _discard_mail(self, cell: Cell) -> None:
        for envelope in cell.mailbox.close():
            cell.discard(envelope, "stopped", ActorDead(f"{cell.name} stopped before it handled the message"))

    async def _hook(self, cell: Cell, hook: str, *args: Any, grace: float | None = None) -> bool:
        """Run a hook that may fail without consequence; ``False`` if it did not end in time."""
        if cell.lane.name == "loop" and getattr(cell.spec.kind, hook) is getattr(Actor, hook):
            return True
        task = self._hooks[cell] = self._task(self._contained(cell, hook, args))
        task.add_done_callback(lambda _: self._hooks.get(cell) is task and self._hooks.pop(cell))
        done, _ = await asyncio.wait((task,), timeout=cell.spec.grace if grace is None else grace)
        if not done:
            task.cancel()
            await self._outlives(task, SHORT_GRACE)
            return False
        error = task.result()
        if error is not None:
            self._report_failure(cell, error)
        return True

    async def _outlives(self, task: asyncio.Task[Any] | None, seconds: float) -> bool:
        """Wait for what ends, or was told to; whether it goes on all the same, and is left behind."""
        if task is None or task.done():
            return False
        await asyncio.wait((task,), timeout=seconds)
        if task.done():
            return False
        task.cancel()
        self._tasks.discard(task)
        return True

    @staticmethod
    async def _contained(cell: Cell, hook: str, args: tuple[Any, ...]) -> BaseException | None:
        try:
            await cell.lane.call(cell, hook, *args)
        except BaseException as error:  # noqa: BLE001 - S15: a hook may raise anything, and asyncio re-raises SystemExit
            return error
        return None

    async def close(self) -> None:
        """Wait for everything that is still under way."""
        while self._tasks:
            await asyncio.wait(tuple(self._tasks))


def _is_kept(cell: Cell) -> bool:
    """Whether it is restarted when it stops itself."""
    return cell.spec.keep == "permanent" and cell.parent is not None and cell.parent.state in ALIVE


def _start_failed(cell: Cell, error: BaseException) -> StartFailed:
    return StartFailed(f"{cell.name} could not be started: {describe(error)}")


def _cancelled_from_outside(error: BaseException) -> bool:
    """Whether this task itself is being cancelled, as opposed to user code that raised CancelledError."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0
