"""The actor: what a user subclasses, and what its handlers can do. Floor 8."""

from __future__ import annotations

from collections.abc import Hashable
from datetime import UTC, datetime
from functools import cached_property
from random import Random
from types import TracebackType
from typing import Any, ClassVar, TypeVar

import pykka

from grami_actors.budget import Budget
from grami_actors.cell import Cell
from grami_actors.errors import AgentUnavailable, GramiError, MailboxFull
from grami_actors.future import Future, Stream, current_scope
from grami_actors.gates import RateGate
from grami_actors.mailbox import CAPACITY, Overflow
from grami_actors.messages import Envelope, Last, Message, Terminated
from grami_actors.ref import Ref
from grami_actors.restarts import RestartPolicy
from grami_actors.spec import GRACE, STRATEGIES, Keep, LaneName, Spec, Strategy
from grami_actors.telemetry import Event, Published
from grami_actors.timers import Timers

A = TypeVar("A", bound="Actor")


# For the type checker a base without signatures: hooks and handlers may be coroutine functions here.
_PykkaActor: Any = pykka.Actor


class Actor(_PykkaActor):  # type: ignore[misc]
    """The base of all actors: override :meth:`on_receive`, and the hooks you need, plain or async.

    Start it with ``await system.spawn(Kind, ...)``. Class attributes set how it runs:

    * ``lane``: where its handlers run; ``"loop"``; ``"thread"``, where they may block; or ``"process"``, where they
      may also crash, and can be killed.
    * ``mailbox``: how many messages may wait; ``overflow``: what happens to one more.
    * ``concurrency``: how many handlers may interleave; on the thread lane, how many threads; on the process lane, how
      many worker processes, each with an instance of its own and nothing shared between them.
    * ``restart``: what follows a failure.
    * ``strategy``: who is restarted when a child fails; ``children_restart``: one policy for all its children
      together, as OTP's supervisors have it, instead of each child's own.
    """

    lane: ClassVar[LaneName] = "loop"
    mailbox: ClassVar[int] = CAPACITY
    overflow: ClassVar[Overflow] = "reject"
    concurrency: ClassVar[int] = 1
    restart: ClassVar[RestartPolicy] = RestartPolicy()
    strategy: ClassVar[Strategy] = "one_for_one"
    children_restart: ClassVar[RestartPolicy | None] = None
    listed: ClassVar[bool] = True
    """Whether Pykka's registry shows it."""

    _cell: Cell

    # What Pykka's constructor would make for each: an inbox, a uuid, an event, a ref. The cell has them already.
    actor_urn = property(lambda self: self._cell.ref.actor_urn)
    actor_inbox = property(lambda self: self._cell.mailbox)
    actor_stopped = property(lambda self: self._cell.ref.actor_stopped)
    _actor_ref = property(lambda self: self._cell.ref)

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        """Takes whatever it is given: ``super().__init__()`` may be called with anything, or not at all."""

    @classmethod
    def start(cls, *_args: Any, **_kwargs: Any) -> Any:
        """Refused: an actor belongs to a system. Use ``await system.spawn(Kind, ...)``."""
        raise TypeError(
            f"start {cls.__name__} with `await system.spawn({cls.__name__}, ...)`: there is no global system"
        )

    def _create_actor_inbox(self) -> Any:
        return self._cell.mailbox

    @staticmethod
    def _create_future() -> Future[Any]:
        future: Future[Any] = Future()
        return future

    def _start_actor_loop(self) -> None:
        self._cell.lane.resume(self._cell)

    def __str__(self) -> str:
        cell = getattr(self, "_cell", None)
        return type(self).__name__ if cell is None else str(cell.ref)

    def _handle_control(self, message: Any) -> Any:
        if isinstance(message, Terminated):
            return self.on_terminated(message)
        if isinstance(message, Last):
            message.reached = True
            return self._cell.runtime.stop_soon(self._cell, message.grace).done()
        return super()._handle_receive(message)  # a call through a proxy

    def on_receive(self, message: Any) -> Any:
        """Handle a message; what it returns (or its coroutine does) is the answer."""
        raise GramiError(f"{self.name} has no handler for {type(message).__name__}", code="UNKNOWN_TYPE")

    def on_start(self) -> Any:
        """Run before the first message, after each restart too; may be a coroutine function."""

    def on_stop(self) -> Any:
        """Run after the last message of an actor that is stopped; may be a coroutine function."""

    def on_failure(
        self,
        exception_type: type[BaseException] | None,
        exception_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> Any:
        """Run on the failed instance before it is replaced; may be a coroutine function."""

    def on_terminated(self, terminated: Terminated) -> Any:
        """An actor that this one watches is gone; may be a coroutine function. Comes before waiting messages."""

    # --- for use inside handlers ---

    @property
    def name(self) -> str:
        """This actor's name in its system."""
        cell = getattr(self, "_cell", None)
        return type(self).__name__ if cell is None else cell.name

    def now(self) -> float:
        """Seconds on the system's clock, which only goes forward; virtual in a simulation."""
        return self._cell.runtime.now()

    def utc_now(self) -> datetime:
        """The time of day, in UTC; virtual in a simulation."""
        return datetime.fromtimestamp(self._cell.runtime.wall(), UTC)

    @cached_property
    def random(self) -> Random:
        """Dice of this actor, which a simulation can throw again: ``self.random.choice(names)``."""
        return self._cell.runtime.new_random(self.name)

    def tell(self, to: str | Ref[Any], message: Any, *, detached: bool = False) -> None:
        """Send without waiting for an answer; the message inherits the scope unless ``detached``.

        Raises:
            DestinationNotFound, PermissionDenied, ActorDead, MailboxFull: nothing was sent.
        """
        found = self._find(to, message)
        (found.tell_detached if detached else found.tell)(message)

    async def send(self, to: str | Ref[Any], message: Any) -> None:
        """Like :meth:`tell`, but wait for room if the mailbox is full and its policy is ``wait``."""
        await self._find(to, message).send(message)

    def ask(
        self, to: str | Ref[Any], message: Any, *, timeout: float | None = None, budget: Budget | None = None
    ) -> Future[Any]:
        """Send and get the future of the answer: ``await self.ask("writer", Draft(...))``.

        Args:
            to: the name of an actor, pool or tool, or a ref.
            message: the message.
            timeout: seconds; never later than the deadline of the message being handled.
            budget: what the request, and everything it causes, may spend; also what is left of the budget of the
                message being handled.

        The future raises DeadlineExceeded, QuotaExceeded, Cancelled, AgentCrashed, AgentUnavailable,
        DestinationNotFound, PermissionDenied, MailboxFull, AskCycle, or AgentExecutionFailed (whose cause is what the
        other handler raised).
        """
        try:
            found = self._find(to, message)
        except GramiError as nowhere:
            return _failed(Future(), nowhere)
        future: Future[Any] = found.ask(message, timeout, None, budget)
        return future

    def stream(self, to: str | Ref[Any], message: Any, *, timeout: float | None = None) -> Stream[Any]:
        """Ask, and read the chunks that the other emits: ``async for chunk in self.stream(...)``."""
        stream: Stream[Any] = Stream()
        try:
            self._find(to, message).ask(message, timeout, stream)
        except GramiError as nowhere:
            _failed(stream, nowhere)
        return stream

    def _find(self, to: str | Ref[Any], message: Any) -> Any:
        return self._cell.runtime.resolve(to, message, self._cell) if isinstance(to, str) else to._cell

    async def spawn(self, kind: type[A], *args: Any, name: str | None = None, **kwargs: Any) -> Ref[A]:
        """Start a child; it is stopped with this actor. Raises StartFailed, NameTaken or QuotaExceeded."""
        charge(spawns=1)
        return await self._cell.runtime.spawn(kind, *args, name=name, parent=self._cell, **kwargs)

    def watch(self, to: str | Ref[Any]) -> None:
        """Have :meth:`on_terminated` called once when that actor is gone; soon, if it is gone already.

        Raises:
            DestinationNotFound: nothing has this name; a ref to what is gone can be watched.
        """
        self._cell.runtime.watch_for(to, self._cell)

    def unwatch(self, to: str | Ref[Any]) -> None:
        """Take :meth:`watch` back."""
        self._cell.runtime.unwatch_for(to, self._cell)

    def after(self, seconds: float, message: Any, *, key: Hashable = None) -> Hashable:
        """Send this actor a message in ``seconds``; a restart or a stop cancels that.

        Args:
            seconds: at least 0.
            message: the message.
            key: names the timer: one that is set again replaces the first.

        Returns:
            the key.
        """
        return self._timers().set(seconds, message, key)

    def every(self, seconds: float, message: Any, *, key: Hashable = None) -> Hashable:
        """Send this actor a message every ``seconds``, the first one after that time; see :meth:`after`.

        While one waits in the mailbox no other is sent.
        """
        return self._timers().set(seconds, message, key, seconds)

    def cancel_timer(self, key: Hashable) -> bool:
        """Cancel a timer, also if its message waits in the mailbox; ``False`` if there was nothing to cancel."""
        return self._timers().cancel(key)

    def _timers(self) -> Timers:
        if self._cell.timers is None:
            self._cell.timers = Timers(self._cell)
        timers: Timers = self._cell.timers
        return timers

    def gate(self, upstream: str) -> RateGate:
        """The rate gate of a service that many use: ``await self.gate("api.example.com").admit()``."""
        return self._cell.runtime.gate(upstream)

    def publish(self, topic: str, message: Message) -> int:
        """Send to every subscriber of a topic; returns to how many. A full or stopped one is skipped.

        Raises:
            ValueError: this is no topic.
            PermissionDenied: no rule allows it.
        """
        reached = 0
        subscribers = self._cell.runtime.subscribers(topic, self._cell)
        if Published in self._cell.bus:
            self._cell.bus.publish(Published(topic, self.name, message))
        for cell in subscribers:
            try:
                cell.tell(message)
            except (MailboxFull, AgentUnavailable):
                cell.bury(Envelope(message, None, self.name), "overflow")
            else:
                reached += 1
        return reached

    def subscribe(self, topic: str) -> None:
        """Get what is published to a topic, until this actor stops.

        ``*`` stands for one part of a topic and a last ``>`` for one or more: ``orders.*.paid``, ``orders.>``.

        Raises:
            ValueError: this is no topic.
            PermissionDenied: no rule allows it.
        """
        self._cell.runtime.subscribe(topic, self._cell, self._cell)

    def unsubscribe(self, topic: str) -> bool:
        """Take :meth:`subscribe` back; ``False`` if there was none."""
        return self._cell.runtime.unsubscribe(topic, self._cell)

    def observe(self, *kinds: type[Event]) -> None:
        """Be told of what happens in the system: ``self.observe(DeadLetter)``; until this actor stops.

        An event that finds this actor's mailbox full is dropped.
        """
        self._cell.runtime.observe(self._cell, *kinds)

    def emit(self, data: Any) -> None:
        """Send a chunk of the answer to whoever streams this request; without one, nothing happens."""
        emit(data)

    def progress(self, fraction: float, message: str = "") -> None:
        """Report progress, ``fraction`` from 0 to 1, to whoever streams this request."""
        progress(fraction, message)

    @property
    def cancelled(self) -> bool:
        """Whether the request being handled was cancelled; for thread handlers, which must look themselves."""
        return cancelled()

    def stop(self) -> None:
        """Stop this actor after the message in hand. A permanent child is then restarted."""
        self._cell.runtime.stop_soon(self._cell, by_itself=True)


def emit(data: Any) -> None:
    """Send a chunk of the answer to whoever streams the request being handled; without one, nothing happens."""
    scope = current_scope()
    if scope is not None and scope.sink is not None:
        scope.sink.emit(data)


def progress(fraction: float, message: str = "") -> None:
    """Report progress, ``fraction`` from 0 to 1, to whoever streams the request being handled."""
    scope = current_scope()
    if scope is not None and scope.sink is not None:
        scope.sink.progress(fraction, message)


def cancelled() -> bool:
    """Whether the request being handled was cancelled. Code that blocks a thread must look for itself."""
    scope = current_scope()
    return scope is not None and scope.reason is not None


def charge(*, messages: int = 0, tool_calls: int = 0, tokens: int = 0, cost: float = 0.0, spawns: int = 0) -> None:
    """Count something against the budget of the request being handled; without one, nothing happens.

    Raises:
        QuotaExceeded: that was too much; the request is being ended.
    """
    scope = current_scope()
    if scope is not None and scope.meter is not None:
        scope.meter.charge(messages=messages, tool_calls=tool_calls, tokens=tokens, cost=cost, spawns=spawns)


def _failed(future: Future[Any], error: GramiError) -> Future[Any]:
    future.fail(error)
    return future


def specify(
    kind: type[Actor],
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    keep: Keep = "transient",
    grace: float = GRACE,
) -> Spec:
    """How to make an actor of a class, as the class says.

    Raises:
        TypeError, ValueError: it is no actor class, or one of its attributes has a value that cannot be.
    """
    if not (isinstance(kind, type) and issubclass(kind, Actor)):
        raise TypeError(f"{kind!r} is no actor class; give the class itself, not an instance or a name")
    policy = kind.children_restart
    if kind.strategy not in STRATEGIES or not (policy is None or isinstance(policy, RestartPolicy)):
        raise ValueError(
            f"{kind.__name__}: strategy is one of {', '.join(STRATEGIES)}, and children_restart a RestartPolicy or None"
        )
    return Spec(
        kind=kind,
        args=args,
        kwargs=kwargs or {},
        lane=kind.lane,
        mailbox=kind.mailbox,
        overflow=kind.overflow,
        concurrency=kind.concurrency,
        restart=kind.restart,
        keep=keep,
        grace=grace,
    )
