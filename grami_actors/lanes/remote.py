"""The system as an actor in a worker process sees it: everything that is not here is an errand. Floor 9.

An errand is a frame to the parent, which does it in the scope of the message in hand; the thread that reads the pipe
settles what is waited for, so a plain handler may block where a coroutine awaits.
"""

from __future__ import annotations

import math
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable, Hashable
from typing import Any

from grami_actors.budget import Budget
from grami_actors.cell import ASK_TIMEOUT, Cell
from grami_actors.errors import GramiError
from grami_actors.future import Future, Stream, current
from grami_actors.lanes.channel import Channel
from grami_actors.lanes.codec import CannotCross, Find
from grami_actors.lanes.pipe import (
    LONGEST_TIME,
    Ask,
    Call,
    Cancel,
    Done,
    Emit,
    Failed,
    Forget,
    Limit,
    Progress,
    Refused,
    Told,
    Wait,
)
from grami_actors.messages import Envelope, Scope
from grami_actors.ref import Ref
from grami_actors.spec import Spec
from grami_actors.telemetry import Bus, Event, ToolCalled


class _Elsewhere:
    """The lane of an actor on the other side: it has no use for time here."""

    def lend(self, future: Future[Any]) -> None:
        """Take no turn."""


class Remote:
    """What a ref or a name refers to: an actor on the other side of the pipe."""

    at_work: Envelope | None = None
    concurrency = 1
    lane = _Elsewhere()

    def __init__(self, runtime: WorkerRuntime, name: str, number: int = 0) -> None:
        self.runtime = runtime
        self.name = name
        self.number = number
        self.waits: dict[Future[Any], Envelope] = {}
        self.ref: Ref[Any] = Ref(self)

    @property
    def address(self) -> Any:
        """How the parent finds it."""
        return self.ref if self.number else self.name

    @property
    def mailbox(self) -> Remote:
        """Looks like a mailbox for who asks whether it is closed."""
        return self

    @property
    def closed(self) -> bool:
        """Whether it is stopped."""
        return bool(self.runtime.do("gone", self.address))

    @property
    def actor(self) -> Any:
        """What Pykka makes a proxy of."""
        raise GramiError(f"a proxy does not reach out of a worker process: ask {self.name} instead")

    def now(self) -> float:
        """Seconds on the system's clock."""
        return self.runtime.now()

    def tell(self, message: Any) -> None:
        """Send without waiting for an answer."""
        self.runtime.do("tell", self.address, message, False)

    def tell_detached(self, message: Any) -> None:
        """The same, but the message does not belong to the request being handled."""
        self.runtime.do("tell", self.address, message, True)

    async def send(self, message: Any) -> None:
        """The same, but wait for room."""
        future = self.runtime.begin("send", self.address, message)
        future.bind(self, _scope(), math.inf, inside=True)
        await self._forgetting(future)

    def ask(
        self,
        message: Any,
        timeout: float | None = None,
        future: Future[Any] | None = None,
        budget: Budget | None = None,
    ) -> Future[Any]:
        """Send and get the future of the answer."""
        future = Future() if future is None else future
        here = current.get()
        scope = None if here is None else here.scope
        # The parent keeps the deadline; this one is for who blocks here.
        limit = ASK_TIMEOUT if timeout is None and (scope is None or scope.deadline == math.inf) else timeout
        future.bind(self, scope, math.inf if limit is None else self.now() + limit, inside=here is not None)
        if future.error() is None:
            self._send_ask(message, timeout, future, budget)
        return future

    def _send_ask(self, message: Any, timeout: float | None, future: Future[Any], budget: Budget | None) -> None:
        runtime = self.runtime
        try:
            packed = [runtime.channel.codec.pack(each) for each in (self.address, message, budget)]
            errand = runtime.channel.expect(future)
            to, message, limits = packed
            seconds = None if timeout is None else _seconds(timeout)
            stream = isinstance(future, Stream)
            runtime.channel.send(Ask(runtime.number(), errand, to, message, seconds, limits, stream))
        except CannotCross as refused:
            future.fail(refused)
        else:
            self._forgetting(future)

    def _forgetting(self, future: Future[Any]) -> Future[Any]:
        future.on_cancel(lambda _: self.runtime.channel.forget(future))
        return future

    def bury(self, envelope: Envelope, reason: str, details: str = "") -> None:
        """Publish a dead letter."""
        self.runtime.do("bury", self.address, envelope.message)


class Waits(dict[Future[Any], Envelope]):
    """What the actor waits for. The parent is told, since only it sees who waits for whom."""

    def __init__(self, runtime: WorkerRuntime) -> None:
        self._runtime = runtime

    def __setitem__(self, future: Any, envelope: Envelope) -> None:
        super().__setitem__(future, envelope)
        self._tell(future, begins=True)

    def pop(self, future: Any, *default: Any) -> Any:
        """Take one out."""
        if future in self:
            self._tell(future, begins=False)
        return super().pop(future, *default)

    def _tell(self, future: Any, *, begins: bool) -> None:
        errand = getattr(future, "errand", None)
        if errand is not None:
            self._runtime.channel.send(Wait(self._runtime.number(), errand, begins))


class Sink:
    """Where the chunks of the message in hand go."""

    def __init__(self, runtime: WorkerRuntime, number: int) -> None:
        self._runtime = runtime
        self._number = number
        self.refused: GramiError | None = None

    def started(self, source: str) -> None:
        """The parent has said so."""

    def emit(self, data: Any) -> None:
        """Deliver one chunk. Raises what the chunk before was refused with."""
        if self.refused is not None:
            raise self.refused
        channel = self._runtime.channel
        channel.send(Emit(self._number, channel.codec.pack(data)))

    def progress(self, fraction: float, message: str) -> None:
        """Report progress."""
        self._runtime.channel.send(Progress(self._number, float(fraction), str(message)))


class Meter:
    """The meter of the message in hand, which is the parent's."""

    def __init__(self, runtime: WorkerRuntime) -> None:
        self._runtime = runtime

    def charge(self, **amounts: Any) -> None:
        """Count. Raises QuotaExceeded."""
        self._runtime.do("charge", amounts)

    def check_depth(self, depth: int) -> None:
        """The parent does, for every ask."""


class Clocks:
    """The timers of the actor, which are the parent's."""

    def __init__(self, runtime: WorkerRuntime) -> None:
        self._runtime = runtime

    def set(self, seconds: float, message: Any, key: Hashable, every: float | None = None) -> Any:
        """Set one. Raises ValueError."""
        return self._runtime.do("timer", seconds, message, key, every)

    def cancel(self, key: Hashable) -> bool:
        """Cancel one."""
        return bool(self._runtime.do("cancel_timer", key))


class WorkerBus(Bus):
    """Hands on what tools report; nothing else happens in a worker that somebody could listen to."""

    def __init__(self, runtime: WorkerRuntime) -> None:
        super().__init__()
        self._runtime = runtime
        self.watched = False

    def __contains__(self, kind: object) -> bool:
        return self.watched and kind is ToolCalled

    def publish(self, event: Event) -> None:
        """Tell the parent."""
        channel = self._runtime.channel
        channel.send(Told(channel.codec.pack(event)))


class Inner(Cell):
    """The actor's cell in the worker. How a message ends is decided by the cell in the parent."""

    def __init__(self, runtime: Any, lane: Any, spec: Spec, remote: Remote) -> None:
        super().__init__(runtime, lane, spec, remote.name, remote.number, None)
        self.concurrency = 1
        self.waits = Waits(runtime)
        self.timers = Clocks(runtime)
        self.failure: BaseException | None = None
        self._worker: WorkerRuntime = runtime
        # Who sends to itself goes through its mailbox, which the parent has.
        self.tell = remote.tell  # type: ignore[method-assign]
        self.tell_detached = remote.tell_detached  # type: ignore[method-assign]
        self.send = remote.send  # type: ignore[method-assign]
        self.ask = remote.ask  # type: ignore[method-assign, assignment]

    def succeed(self, envelope: Envelope, value: Any) -> None:
        """The handler returned."""
        self._ended(envelope)
        self._worker.done(value)

    def fail(self, envelope: Envelope, error: BaseException, actor: Any) -> None:
        """The handler raised."""
        self._ended(envelope)
        self.failure = error
        self._worker.failed_with(error)

    def _ended(self, envelope: Envelope) -> None:
        if self.at_work is envelope:
            self.at_work = None

    def discard(self, envelope: Envelope, reason: str, error: GramiError) -> None:
        """The message was over before it was taken."""
        self._worker.failed_with(error)


class WorkerRuntime:
    """The system, as far as an actor in a worker sees it."""

    def __init__(self, connection: socket.socket, find: Find) -> None:
        self.channel = Channel(connection, find, self.refer)
        self.bus = WorkerBus(self)
        self.id = ""
        self.cell: Inner | None = None
        self.in_hand: Envelope | None = None
        self._number = 0
        self._offset = 0.0
        self._sinks: dict[int, Sink] = {}
        self._calls: dict[int, Envelope] = {}

    def refer(self, name: str, number: int) -> Ref[Any]:
        """The ref of an actor."""
        if self.cell is not None and self.cell.number == number:
            return self.cell.ref
        return Remote(self, name, number).ref

    def wall(self) -> float:
        """Seconds since 1970."""
        return time.time()

    def new_random(self, actor: str) -> random.Random:
        """Dice of its own for an actor."""
        return random.Random()

    def new_trace_id(self) -> str:
        """32 hex digits."""
        return secrets.token_hex(16)

    def now(self) -> float:
        """Seconds on the system's clock, which is set with every message."""
        return time.monotonic() + self._offset

    def number(self) -> int:
        """The number of the message that the calling handler has in hand; 0 for what a handler left behind."""
        return self._number if self.in_hand is not None and current.get() is self.in_hand else 0

    # --- messages ---

    def arrived(self, call: Call) -> Envelope:
        """The envelope of a message; on the thread that reads, so that it can be cancelled from now on."""
        self._set_clock(call.now)
        scope = None
        if call.facts is not None:
            facts = call.facts
            scope = Scope(deadline=facts.deadline, trace_id=facts.trace_id)
            scope.above = facts.depth
            scope.sampled = facts.sampled
            if facts.streamed:
                scope.sink = self._sinks[call.number] = Sink(self, call.number)
            if facts.metered:
                scope.meter = Meter(self)
        self.bus.watched = call.watched
        # Nobody is answered through it: succeed() and fail() of the cell do that. It says that there is somebody.
        reply_to: Any = self if call.expects_reply else None
        # The message itself is read where it is handled: it may import a module, which takes its time.
        envelope = self._calls[call.number] = Envelope(None, reply_to, call.sender, scope)
        if call.facts is not None:
            envelope.span = call.facts.span
        return envelope

    def _set_clock(self, now: float) -> None:
        self._offset = now - time.monotonic()

    def take(self, number: int, envelope: Envelope, now: float | None = None) -> None:
        """A message or hook is in hand."""
        if now is not None:
            self._set_clock(now)
        self._number = number
        self.in_hand = envelope

    def cancel(self, order: Cancel) -> None:
        """Cancel a message that arrived."""
        envelope = self._calls.get(order.number)
        if envelope is not None and envelope.scope is not None:
            envelope.scope.cancel(order.reason)

    def refused(self, order: Refused) -> None:
        """A chunk was not taken."""
        sink = self._sinks.get(order.number)
        if sink is not None:
            sink.refused = order.reason

    def done(self, value: Any) -> None:
        """What is in hand returned."""
        try:
            self.channel.send(Done(self._close(), self.channel.codec.pack(value)))
        except CannotCross as refused:
            self.channel.send(Failed(self._last, self.channel.codec.pack(refused)))

    def failed_with(self, error: BaseException) -> None:
        """What is in hand raised."""
        try:
            self.channel.send(Failed(self._close(), self.channel.codec.pack(error)))
        except CannotCross as refused:
            self.channel.send(Failed(self._last, self.channel.codec.pack(refused)))

    def _close(self) -> int:
        self._last = number = self._number
        self._number = 0
        self.in_hand = None
        self._sinks.pop(number, None)
        self._calls.pop(number, None)
        return number

    # --- what actors use ---

    def begin(self, what: str, *arguments: Any) -> Future[Any]:
        """Have the parent do something."""
        return self.channel.do(self.number(), what, *arguments)

    def do(self, what: str, *arguments: Any) -> Any:
        """Have the parent do something, and wait for it: a round trip."""
        future = self.begin(what, *arguments)
        # Not get(), which refuses to block a loop: here the loop has nothing else to do, and the reader is a thread.
        arrived = threading.Event()
        future.on_done(arrived.set)
        arrived.wait()
        error = future.error()
        if error is not None:
            raise error
        return future.value()

    def resolve(self, to: str, message: Any, by: Cell | None = None) -> Remote:
        """The actor of this name; whether there is one, and it may be sent to, is known when something is sent."""
        return Remote(self, to)

    def limit(self, scope: Scope, seconds: float, reason: GramiError) -> Callable[[], None]:
        """Cancel the message in hand in ``seconds``: the parent does, and kills what does not end."""
        errand = self.channel.number()
        self.channel.send(Limit(self.number(), errand, _seconds(seconds), self.channel.codec.pack(reason)))
        return lambda: self.channel.send(Forget(errand))

    def watch_for(self, to: str | Ref[Any], watcher: Cell) -> None:
        """Tell this actor when another is gone."""
        self.do("watch", to)

    def unwatch_for(self, to: str | Ref[Any], watcher: Cell) -> None:
        """Take that back."""
        self.do("unwatch", to)

    def stop_soon(self, cell: Any, grace: float | None = None, *, by_itself: bool = False) -> Future[Any]:
        """Begin to stop an actor."""
        return self.begin("stop", None if by_itself else _address(cell))

    def subscribers(self, topic: str, by: Cell | None = None) -> tuple[Any, ...]:
        """Who gets what is published to a topic."""
        return tuple(ref._cell for ref in self.do("subscribers", topic))

    def subscribe(self, pattern: str, cell: Cell, by: Cell | None = None) -> None:
        """Add this actor to them."""
        self.do("subscribe", pattern)

    def unsubscribe(self, pattern: str, cell: Cell) -> bool:
        """Take it away."""
        return bool(self.do("unsubscribe", pattern))

    def __getattr__(self, name: str) -> Any:
        # The rest of the system: its children, gates, timers, events and loop.
        raise GramiError(f"{name!r} is not for actors on the process lane; {_INSTEAD.get(name, _IN_GENERAL)}")


_IN_GENERAL = "have an actor on another lane do it, and ask that one"
_INSTEAD = {
    "spawn": "let an actor on another lane start it: children of a worker process would end with it",
    "spawn_spec": "let an actor on another lane start it: children of a worker process would end with it",
    "gate": "ask a tool on the loop lane, which waits at the gate and then does the work",
    "observe": "let an actor on another lane observe, and tell this one",
    "after": "use self.after or self.every, which send this actor a message",
}


def _seconds(seconds: float) -> float:
    """A time that a frame can have."""
    return min(max(0.0, float(seconds)), LONGEST_TIME)


def _scope() -> Scope | None:
    here = current.get()
    return None if here is None else here.scope


def _address(cell: Any) -> Any:
    return cell.address if isinstance(cell, Remote) else cell.ref
