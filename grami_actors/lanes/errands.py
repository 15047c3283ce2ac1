"""What a worker process has its parent do: tell, ask, watch, emit; each in the scope of the message in hand. Floor 9.

A worker's word is checked like a client's: an errand that makes no sense is an error, which ends the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import Any

from grami_actors.budget import Budget
from grami_actors.cell import Cell
from grami_actors.contracts import Runtime
from grami_actors.errors import GramiError
from grami_actors.future import Future, Stream, current
from grami_actors.guard import owned
from grami_actors.job_requests import JOBS, SubmitJob
from grami_actors.lanes.child import Child
from grami_actors.lanes.codec import CannotCross
from grami_actors.lanes.pipe import Ask, Chunk, Do, Emit, Forget, Limit, Progress, Refused, Reply, Told, Wait
from grami_actors.messages import Envelope, Scope, Terminated
from grami_actors.ref import ActorDead, Ref
from grami_actors.telemetry import ToolCalled
from grami_actors.timers import Timers

MOST_ERRANDS = 10_000
"""Errands of one worker that may be under way; one more ends it."""


class Job:
    """One message or hook in a worker's hands.

    Attributes:
        number: what the frames call it.
        envelope: the message; an empty one for a hook.
        context: where ``current`` is the envelope.
        hook: what waits for a hook; ``None`` for a message.
        over: called when it is over.
    """

    __slots__ = ("context", "envelope", "hook", "interrupt", "number", "over", "timer")

    def __init__(
        self,
        number: int,
        envelope: Envelope,
        context: contextvars.Context,
        hook: asyncio.Future[Any] | None = None,
    ) -> None:
        self.number = number
        self.envelope = envelope
        self.context = context
        self.hook = hook
        self.over: list[Callable[[], None]] = []
        self.timer: asyncio.TimerHandle | None = None
        self.interrupt: Callable[[GramiError], object] = _nothing
        context.run(current.set, envelope)


class _Relay(Stream[Any]):
    """A stream whose reader is in a worker process."""

    def __init__(self, deliver: Callable[[Any], None]) -> None:
        super().__init__()
        self._deliver = deliver

    def emit(self, data: Any) -> None:
        """Add one chunk, from any thread."""
        self._deliver(data)


class Errands:
    """Runs the errands of one worker, on the home loop.

    Args:
        cell: the actor.
        child: its worker.
        loop: the home loop.
    """

    def __init__(self, cell: Cell, child: Child, loop: asyncio.AbstractEventLoop) -> None:
        self.job: Job | None = None
        self._cell = cell
        self._child = child
        self._loop = loop
        self._thread = threading.get_ident()
        self._asked: dict[int, Future[Any]] = {}
        self._under_way: dict[int, asyncio.Task[Any] | asyncio.TimerHandle] = {}
        self._waits: dict[int, tuple[Future[Any], Envelope | None]] = {}

    def close(self) -> None:
        """The worker is gone: nobody waits for what it asked."""
        for future in tuple(self._asked.values()):
            future.cancel()
        for pending in tuple(self._under_way.values()):
            pending.cancel()
        for future, waiting in self._waits.values():
            future._end_waiting(waiting)  # noqa: SLF001 - it began to wait in here
        self._asked.clear()
        self._under_way.clear()
        self._waits.clear()

    def run(self, report: Any) -> None:
        """Do what a report wants. Raises for what makes no sense."""
        if len(self._asked) + len(self._under_way) >= MOST_ERRANDS:
            raise ValueError(f"more than {MOST_ERRANDS} errands at a time")
        _ERRANDS[type(report)](self, report)

    def _in_hand(self, number: int) -> Job | None:
        return self.job if self.job is not None and self.job.number == number else None

    def _context(self, number: int) -> contextvars.Context:
        """Where ``current`` is the message; for what a handler left behind, an empty one of this actor."""
        job = self._in_hand(number)
        if job is not None:
            return job.context
        context = contextvars.copy_context()
        context.run(current.set, Envelope(None, receiver=self._cell))
        return context

    def _at_home(self, callback: Callable[..., object], *args: Any) -> None:
        if threading.get_ident() == self._thread:
            callback(*args)
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the worker is gone
                self._loop.call_soon_threadsafe(callback, *args)

    def _reply(self, errand: int, value: Any, error: BaseException | None = None) -> None:
        try:
            self._child.send(Reply(errand, error is None, self._child.raw(value if error is None else error)))
        except CannotCross as refused:
            self._child.send(Reply(errand, ok=False, value=self._child.raw(refused)))

    # --- asking ---

    def _ask(self, report: Ask) -> None:
        future: Future[Any] = Future()
        if report.stream:
            errand = report.errand
            future = _Relay(lambda data: self._at_home(self._chunk, errand, data))
        if not (report.budget is None or isinstance(report.budget, Budget)):
            raise ValueError("this is no budget")
        self._asked[report.errand] = future
        self._context(report.number).run(self._send_ask, report, future)
        future.on_done(lambda: self._at_home(self._answered, report.errand, future))

    def _send_ask(self, report: Ask, future: Future[Any]) -> None:
        message = report.message
        try:
            if report.to == JOBS:  # which agents ask without a rule for it, as on the other lanes
                message = owned(message, self._cell) if isinstance(message, SubmitJob) else message
                destination = self._cell.runtime.resolve(JOBS, message)
            else:
                destination = self._find(report.to, message)
        except GramiError as nowhere:
            future.fail(nowhere)
        else:
            destination.ask(message, timeout=report.timeout, future=future, budget=report.budget)

    def _chunk(self, errand: int, data: Any) -> None:
        future = self._asked.get(errand)
        if future is None:
            return
        try:
            self._child.send(Chunk(errand, self._child.raw(data)))
        except CannotCross as refused:
            future.cancel(refused)

    def _answered(self, errand: int, future: Future[Any]) -> None:
        if self._asked.pop(errand, None) is not None:
            self._reply(errand, future.value(), future.error())

    def _forget(self, report: Forget) -> None:
        future = self._asked.pop(report.errand, None)
        if future is not None:
            future.cancel()
        pending = self._under_way.pop(report.errand, None)
        if pending is not None:
            pending.cancel()

    def _wait(self, report: Wait) -> None:
        if not report.begins:
            future, waiting = self._waits.pop(report.errand, (None, None))
            if future is not None:
                future._end_waiting(waiting)  # noqa: SLF001 - the handler waits over there,
            return
        future = self._asked.get(report.errand)
        if future is not None:
            # and the wait-for graph, which finds circles, is here.
            waiting = self._context(report.number).run(future._begin_waiting)  # noqa: SLF001
            self._waits[report.errand] = (future, waiting)

    def _find(self, to: Any, message: Any) -> Any:
        """Who is meant. Raises a GramiError."""
        if isinstance(message, Terminated):
            raise GramiError("only the system says that an actor is gone")
        if isinstance(to, str):
            return self._cell.runtime.resolve(to, message, self._cell)
        if isinstance(to, Ref):
            return to._cell
        raise ValueError("an actor is meant by its name or its ref")

    # --- all else ---

    def _do(self, report: Do) -> None:
        errand = _DO[report.what]
        try:
            result = self._context(report.number).run(errand, self, *report.arguments)
        except (GramiError, ValueError, TypeError, ArithmeticError) as error:
            self._reply(report.errand, None, error)
            return
        if isinstance(result, Future):
            self._asked[report.errand] = result
            result.on_done(lambda: self._at_home(self._answered, report.errand, result))
        elif asyncio.iscoroutine(result):
            task = self._loop.create_task(result, context=self._context(report.number))
            self._under_way[report.errand] = task
            task.add_done_callback(lambda _: self._finished(report.errand, task))
        else:
            self._reply(report.errand, result)

    def _finished(self, errand: int, task: asyncio.Task[Any]) -> None:
        error = None if task.cancelled() else task.exception()
        if self._under_way.pop(errand, None) is not None:
            self._reply(errand, None, error)

    def _tell(self, to: Any, message: Any, detached: bool) -> None:  # noqa: FBT001 - from a frame
        found = self._find(to, message)
        (found.tell_detached if detached else found.tell)(message)

    def _send(self, to: Any, message: Any) -> Any:
        return self._find(to, message).send(message)

    def _charge(self, amounts: dict[str, Any]) -> None:
        here = current.get()
        if here is not None and here.scope is not None and here.scope.meter is not None:
            here.scope.meter.charge(**amounts)

    def _subscribers(self, topic: str) -> list[Ref[Any]]:
        return [cell.ref for cell in self._cell.runtime.subscribers(topic, self._cell)]

    def _subscribe(self, topic: str) -> None:
        self._cell.runtime.subscribe(topic, self._cell, self._cell)

    def _unsubscribe(self, topic: str) -> bool:
        return self._cell.runtime.unsubscribe(topic, self._cell)

    def _bury(self, to: Any, message: Any) -> None:
        self._find(to, message).bury(Envelope(message, None, self._cell.name), "overflow")

    def _watch(self, to: Any) -> None:
        self._cell.runtime.watch_for(to, self._cell)

    def _unwatch(self, to: Any) -> None:
        self._cell.runtime.unwatch_for(to, self._cell)

    def _stop(self, to: Any) -> Any:
        if to is None:
            self._cell.runtime.stop_soon(self._cell, by_itself=True)
            return None
        return self._cell.runtime.stop_soon(self._find(to, None))

    def _gone(self, to: Any) -> bool:
        return bool(self._find(to, None).mailbox.closed)

    def _timers(self) -> Timers:
        if self._cell.timers is None:
            self._cell.timers = Timers(self._cell)
        timers: Timers = self._cell.timers
        return timers

    def _timer(self, seconds: float, message: Any, key: Any, every: float | None) -> Any:
        return self._timers().set(seconds, message, key, every)

    def _cancel_timer(self, key: Any) -> bool:
        return self._timers().cancel(key)

    # --- about the message in hand ---

    def _scope(self, number: int) -> Scope | None:
        job = self._in_hand(number)
        return None if job is None else job.envelope.scope

    def _emit(self, report: Emit) -> None:
        scope = self._scope(report.number)
        if scope is not None and scope.sink is not None:
            try:
                scope.sink.emit(report.data)
            except GramiError as refused:
                self._child.send(Refused(report.number, self._child.pack(refused)))

    def _progress(self, report: Progress) -> None:
        scope = self._scope(report.number)
        if scope is not None and scope.sink is not None:
            scope.sink.progress(report.fraction, report.text)

    def _told(self, report: Told) -> None:
        if not isinstance(report.event, ToolCalled):
            raise TypeError("an event that a worker has no part in")
        self._cell.bus.publish(report.event)

    def _limit(self, report: Limit) -> None:
        job = self._in_hand(report.number)
        if not isinstance(report.reason, GramiError):
            raise TypeError("a reason that is none")
        if job is None:
            return
        envelope = job.envelope
        if envelope.reply_to is None:
            # A tell shares its scope with its sender, whose request must not end with this limit.
            envelope.scope = Scope(envelope.scope)
            envelope.scope.on_cancel(job.interrupt)
        assert envelope.scope is not None
        timer = self._loop.call_later(report.seconds, envelope.scope.cancel, report.reason)
        self._under_way[report.errand] = timer
        job.over.append(lambda: self._forget(Forget(report.errand)))


class _Gone:
    """What a ref of an actor that is gone refers to."""

    state = "stopped"
    closed = True

    def __init__(self, name: str, number: int, runtime: Runtime[Cell]) -> None:
        self.name = name
        self.number = number
        self.runtime = runtime
        self.mailbox = self

    def _dead(self) -> ActorDead:
        return ActorDead(f"{self.name} is stopped and takes no more messages")

    def tell(self, message: Any) -> None:
        raise self._dead()

    tell_detached = tell

    async def send(self, message: Any) -> None:
        raise self._dead()

    def ask(
        self, message: Any, _timeout: float | None = None, future: Future[Any] | None = None, *_: Any
    ) -> Future[Any]:
        future = future or Future()
        future.fail(self._dead())
        return future

    def watch(self, key: Any, tell: Callable[[Terminated], object]) -> None:
        tell(Terminated(self.name, "unknown"))

    def unwatch(self, key: Any) -> None:
        """Nobody watches."""


def find_ref(runtime: Runtime[Cell], name: str, number: int) -> Ref[Any]:
    """The ref that a worker names; of an actor that is gone if there is none of that name and number."""
    try:
        found = runtime.resolve(name, None)
    except GramiError:
        found = None
    ref: Ref[Any] = found.ref if getattr(found, "number", None) == number else Ref(_Gone(name, number, runtime))
    return ref


def _nothing(_: GramiError) -> None:
    """Nothing is to be interrupted."""


_DO: dict[str, Callable[..., Any]] = {
    "tell": Errands._tell,  # noqa: SLF001 - of the class above
    "send": Errands._send,  # noqa: SLF001
    "charge": Errands._charge,  # noqa: SLF001
    "subscribers": Errands._subscribers,  # noqa: SLF001
    "subscribe": Errands._subscribe,  # noqa: SLF001
    "unsubscribe": Errands._unsubscribe,  # noqa: SLF001
    "bury": Errands._bury,  # noqa: SLF001
    "watch": Errands._watch,  # noqa: SLF001
    "unwatch": Errands._unwatch,  # noqa: SLF001
    "stop": Errands._stop,  # noqa: SLF001
    "gone": Errands._gone,  # noqa: SLF001
    "timer": Errands._timer,  # noqa: SLF001
    "cancel_timer": Errands._cancel_timer,  # noqa: SLF001
}
_ERRANDS: dict[type[Any], Callable[..., None]] = {
    Ask: Errands._ask,  # noqa: SLF001
    Do: Errands._do,  # noqa: SLF001
    Forget: Errands._forget,  # noqa: SLF001
    Wait: Errands._wait,  # noqa: SLF001
    Emit: Errands._emit,  # noqa: SLF001
    Progress: Errands._progress,  # noqa: SLF001
    Told: Errands._told,  # noqa: SLF001
    Limit: Errands._limit,  # noqa: SLF001
}
