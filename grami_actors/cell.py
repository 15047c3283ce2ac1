"""What stays of an actor when it is restarted, and how others refer to it. Floor 5.

Two objects, and two contracts for what is around them:

* :class:`Cell`: name, mailbox, place in the tree, state; exactly one per spawn. It outlives its instances.
* :class:`Ref`: the handle that others hold; a Pykka ``ActorRef`` that survives restarts.
* :class:`Lane`: where handlers run. :class:`Runtime`: the system, as its actors see it.

Rules:

1. A message is handled by one call of :meth:`Cell.handle`, on the actor's lane, and finished exactly once.
2. An exception that is a :class:`GramiError` is an *answer*; any other is a *failure* and goes to the
   supervisor, whether the message came by tell or by ask. Nothing that a handler raises leaves its cell.
3. Whatever a handler starts inherits the scope of the message it handles.
"""

from __future__ import annotations

import asyncio
import math
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Literal, Protocol, TypeVar

import msgspec
import pykka

from grami_actors.errors import (
    AgentCrashed,
    AgentUnavailable,
    DeadlineExceeded,
    GramiError,
    MailboxFull,
    WouldDeadlock,
)
from grami_actors.future import (
    Delivery,
    Future,
    Party,
    Stream,
    Waiting,
    current,
    current_scope,
    describe,
    interrupter,
    only_answer,
    sender,
)
from grami_actors.mailbox import CAPACITY, Closed, Mailbox, Overflow
from grami_actors.messages import Envelope, Scope
from grami_actors.restarts import RestartPolicy
from grami_actors.telemetry import Bus, DeadLetter, MessageHandled, MessageSent

LaneName = Literal["loop", "thread"]
A = TypeVar("A", bound=pykka.Actor)

CONNECTION = "connection-"
"""How the names of the actors of clients begin; no agent's name does."""

ASK_TIMEOUT = 30.0
"""Seconds an ask waits that names no limit and belongs to no request; within one, its deadline is the limit."""

LIFECYCLE: dict[str, dict[str, str]] = {
    "starting": {"started": "running", "start_failed": "stopped", "stop": "stopping"},
    "running": {"failed": "restarting", "stop": "stopping"},
    "restarting": {"started": "running", "paused": "paused", "stop": "stopping"},
    "paused": {"retry": "restarting", "stop": "stopping"},
    "stopping": {"stopped": "stopped"},
    "stopped": {},
}
"""State, event, next state. Everything else is an error."""


class ActorDead(AgentUnavailable, pykka.ActorDeadError):
    """The actor is stopped; also a ``pykka.ActorDeadError`` for code that knows Pykka."""


class Spec(msgspec.Struct, frozen=True):
    """How to make an actor, again and again: plain data that a restart reads.

    Attributes:
        kind: the actor class.
        args: positional arguments of its constructor.
        kwargs: keyword arguments of its constructor.
        lane, mailbox, overflow, concurrency, restart: see :class:`grami_actors.actor.Actor`.
    """

    kind: type[Any]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    lane: LaneName = "loop"
    mailbox: int = CAPACITY
    overflow: Overflow = "reject"
    concurrency: int = 1
    restart: RestartPolicy = RestartPolicy()

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ValueError(f"concurrency is at least 1, not {self.concurrency}")


class Runtime(Protocol):
    """What actors need of the system they live in."""

    bus: Bus
    loop: asyncio.AbstractEventLoop

    def now(self) -> float:
        """Seconds on the system's clock."""

    def resolve(self, to: str, message: Any) -> Cell:
        """The cell that a name means for this message; raises DestinationNotFound or AgentUnavailable."""

    async def spawn(
        self, kind: type[Any], *args: Any, name: str | None = None, parent: Cell | None = None, **kwargs: Any
    ) -> Ref[Any]:
        """Start an actor."""

    def failed(self, cell: Cell, error: BaseException) -> None:
        """A handler failed; called on the actor's lane."""

    def stop_soon(self, cell: Cell) -> Future[bool]:
        """Begin to stop an actor, from any thread."""

    def after(self, seconds: float, callback: Callable[[], object]) -> Callable[[], None]:
        """Call back on the home loop; returns a function that takes it back. Both from any thread."""

    def release(self, cell: Cell) -> None:
        """Forget a stopped actor: its name, topics and place in the tree are free."""

    def subscribers(self, topic: str) -> list[Cell]:
        """Who gets what is published to a topic."""

    def subscribe(self, topic: str, cell: Cell) -> None:
        """Add one to them."""

    def new_trace_id(self) -> str:
        """32 hex digits."""


class Lane(Protocol):
    """Where handlers run. The lifecycle (supervisor) drives a lane; a lane decides nothing."""

    name: LaneName

    def attach(self, cell: Cell) -> None:
        """Own the cell from now on, paused. Raises StartFailed if there is no room."""

    def wake(self, cell: Cell) -> None:
        """There is mail; from any thread."""

    async def call(self, cell: Cell, hook: Callable[[], Any]) -> Any:
        """Run a hook (or coroutine function) where the actor's handlers run, and return its result."""

    def pause(self, cell: Cell) -> None:
        """Take no more messages for the cell; from any thread."""

    def resume(self, cell: Cell) -> None:
        """Let the cell take messages."""

    async def quiesce(self, cell: Cell, grace: float) -> bool:
        """Wait for the handlers at work to end; after ``grace`` seconds interrupt them.

        Returns:
            False if one still runs, because this lane cannot interrupt it.
        """

    def kill(self, cell: Cell) -> None:
        """End the handlers at work now. Raises KillRefused where that cannot be done."""

    def detach(self, cell: Cell) -> None:
        """Let go of the cell."""


class _Stopped:
    """Looks like the ``threading.Event`` that Pykka keeps per actor, and costs nothing."""

    __slots__ = ("_cell",)

    def __init__(self, cell: Cell) -> None:
        self._cell = cell

    def is_set(self) -> bool:
        return self._cell.mailbox.closed


class Cell:
    """What stays of an actor when it is restarted. Users hold its :class:`Ref`."""

    __slots__ = (
        "actor",
        "born",
        "children",
        "concurrency",
        "history",
        "lane",
        "lifecycle",
        "mailbox",
        "name",
        "parent",
        "paused",
        "port",
        "ref",
        "restarts",
        "runtime",
        "spec",
        "state",
        "urn",
        "waits",
        "working",
    )

    def __init__(self, runtime: Runtime, lane: Lane, spec: Spec, name: str, urn: str, parent: Cell | None) -> None:
        self.runtime = runtime
        self.lane = lane
        self.spec = spec
        self.name = name
        self.urn = urn
        self.parent = parent
        self.concurrency = spec.concurrency
        self.children: dict[str, Cell] = {}
        self.state = "starting"
        self.paused = True
        self.working = 0
        self.restarts = 0
        self.history: tuple[float, ...] = ()
        self.waits: dict[Waiting, Party] = {}
        self.port: Any = None  # what the lane keeps per cell
        self.lifecycle: asyncio.Task[Any] | None = None
        self.actor: Any = None
        self.born = False  # whether on_start of this instance has succeeded
        eager = spec.lane == "thread" and spec.concurrency > 1
        self.mailbox = Mailbox(self._wake, spec.mailbox, spec.overflow, eager=eager)
        self.ref: Ref[Any] = Ref(self)

    def _wake(self) -> None:
        self.lane.wake(self)

    def now(self) -> float:
        """Seconds on the system's clock."""
        return self.runtime.now()

    def move(self, event: str) -> None:
        """Take a step of :data:`LIFECYCLE`."""
        try:
            self.state = LIFECYCLE[self.state][event]
        except KeyError:
            raise RuntimeError(f"{self.name} is {self.state}: {event!r} is not possible") from None

    def build(self) -> Any:
        """Make a fresh instance; it knows its cell before its constructor runs."""
        kind: Any = self.spec.kind
        actor = kind.__new__(kind)
        actor._cell = self
        actor.__init__(*self.spec.args, **self.spec.kwargs)
        self.actor = actor
        self.ref._actor_weakref = weakref.ref(actor)
        return actor

    # --- sending, from any thread ---

    def post(self, envelope: Envelope, *, park: Callable[[], None] | None = None, force: bool = False) -> None:
        """Put an envelope into the mailbox. Raises ActorDead or MailboxFull."""
        bus = self.runtime.bus
        if MessageSent in bus:
            bus.publish(MessageSent(envelope.sender, self.name, envelope.message, envelope.reply_to is not None))
        try:
            displaced = self.mailbox.put(envelope, park=park, force=force)
        except Closed:
            raise ActorDead(f"{self.name} is stopped and takes no more messages") from None
        except MailboxFull as full:
            raise MailboxFull(f"{self.name} is busy: {full.message}") from None
        if displaced is not None:
            self.discard(displaced, "overflow", MailboxFull(f"{self.name} dropped the message: its mailbox is full"))

    def tell(self, message: Any, *, detached: bool = False) -> None:
        """Send without waiting for an answer."""
        self.post(Envelope(message, None, sender(), None if detached else current_scope(), self.runtime.now()))

    async def send(self, message: Any) -> None:
        """Send without waiting for an answer, but wait for room where the policy is ``wait``."""
        envelope = Envelope(message, None, sender(), current_scope(), self.runtime.now())
        if self.spec.overflow != "wait":
            self.post(envelope)
            return
        admitted: Future[None] = Future()
        self.post(envelope, park=lambda: admitted.set(None))
        if admitted.done():
            return
        # Waiting for room is waiting: it has a deadline, and a circle of it is an error.
        admitted.bind(self, Scope(envelope.scope, deadline=self.runtime.now() + ASK_TIMEOUT), inside=True)
        try:
            await admitted
        except BaseException:
            self.mailbox.withdraw(envelope)
            raise

    def ask(self, message: Any, *, timeout: float | None = None, future: Future[Any] | None = None) -> Future[Any]:
        """Send and get the future of the answer. Never raises: what goes wrong is the future's answer."""
        future = future or Future()
        now = self.runtime.now()
        delivery = current.get()
        parent = None if delivery is None else delivery.envelope.scope
        sink = future if isinstance(future, Stream) else None
        trace_id = self.runtime.new_trace_id() if parent is None else ""
        if timeout is None:
            # Within a request its deadline is the limit: a second, shorter one would surprise whoever set the first.
            timeout = ASK_TIMEOUT if parent is None or parent.deadline == math.inf else math.inf
        scope = Scope(parent, deadline=now + timeout, trace_id=trace_id, sink=sink)
        future.bind(self, scope, inside=delivery is not None)
        if scope.reason is None:
            envelope = Envelope(message, future, sender(), scope, now)
            park = _admitted if self.spec.overflow == "wait" else None
            try:
                self.post(envelope, park=park)
                if park is not None:
                    scope.on_cancel(lambda _: self.mailbox.withdraw(envelope))
            except (MailboxFull, AgentUnavailable) as refused:
                future.fail(refused)
        return future

    def discard(self, envelope: Envelope, reason: str, error: GramiError) -> None:
        """End a message that will not be handled: fail its ask, or make it a dead letter."""
        reply_to = envelope.reply_to
        if reply_to is not None and reply_to.fail(error):
            return
        if reply_to is None:
            self.bury(envelope, reason)

    def bury(self, envelope: Envelope, reason: str) -> None:
        """Publish a dead letter."""
        if DeadLetter in self.runtime.bus:
            self.runtime.bus.publish(DeadLetter(self.name, envelope.sender, envelope.message, reason))

    # --- handling, on the lane ---

    def handle(self, envelope: Envelope) -> Coroutine[Any, Any, None] | None:
        """Handle one message. Returns what is left to be awaited if the handler is a coroutine."""
        now = self.runtime.now()
        scope = envelope.scope
        if scope is not None:
            if scope.reason is not None:
                self.discard(envelope, "cancelled", scope.reason)
                return None
            if scope.deadline <= now:
                late = DeadlineExceeded(f"the deadline passed while the message waited for {self.name}")
                self.discard(envelope, "expired", late)
                return None
            if scope.sink is not None:
                scope.sink.started(self.name)
        delivery = Delivery(self, envelope, now, self.actor)
        token = current.set(delivery)
        try:
            result = self.actor._handle_receive(envelope.message)
        except BaseException as error:  # noqa: BLE001 - S15: nothing leaves the cell
            self.finish(delivery, None, error)
            return None
        finally:
            current.reset(token)
        if hasattr(type(result), "__await__"):  # several times cheaper than inspect.isawaitable
            return self._drive(delivery, result)
        self.finish(delivery, result, None)
        return None

    async def _drive(self, delivery: Delivery, result: Awaitable[Any]) -> None:
        current.set(delivery)
        scope = delivery.envelope.scope
        interrupt = interrupter() if scope is not None else None
        try:
            if scope is not None and interrupt is not None:
                scope.on_cancel(interrupt)
            value = await result
        except BaseException as error:  # noqa: BLE001 - S15: nothing leaves the cell
            self.finish(delivery, None, error)
        else:
            self.finish(delivery, value, None)
        finally:
            if scope is not None and interrupt is not None:
                scope.forget(interrupt)

    def finish(self, delivery: Delivery, value: Any, error: BaseException | None) -> None:
        """Answer, report, and tell the supervisor if the actor failed. Exactly once per delivery."""
        delivery.active = False
        envelope = delivery.envelope
        failure = None
        if error is not None:
            error, failure = self._judge(envelope, error)
        if MessageHandled in self.runtime.bus:
            self._report(delivery, value, error)
        reply_to = envelope.reply_to
        if reply_to is not None:
            awaited = reply_to.set_result(value) if error is None else reply_to.fail(error)
            if not awaited and error is None:
                self.bury(envelope, "late_reply")
        elif error is not None and failure is None:
            self.bury(envelope, "rejected")
        # With concurrency an instance that was replaced may still have handlers at work: they count no more.
        if failure is not None and delivery.actor is self.actor:
            self.runtime.failed(self, failure)

    def _judge(self, envelope: Envelope, error: BaseException) -> tuple[BaseException, BaseException | None]:
        """What the caller is answered, and what the supervisor is told."""
        if isinstance(error, GramiError):
            return error, None
        scope = envelope.scope
        if isinstance(error, asyncio.CancelledError) and scope is not None and scope.reason is not None:
            return scope.reason, None
        if isinstance(error, BaseExceptionGroup) and (answer := only_answer(error)) is not None:
            return answer, None
        if self.state in {"stopping", "stopped"}:
            return ActorDead(f"{self.name} was stopped while it handled the message"), None
        if isinstance(error, Exception):
            return error, error
        crash = AgentCrashed(f"{self.name} died with the message in hand ({describe(error)}); the outcome is unknown")
        return crash, error

    def _report(self, delivery: Delivery, value: Any, error: BaseException | None) -> None:
        envelope = delivery.envelope
        outcome = "ok" if error is None else str(getattr(error, "error_code", "AGENT_EXECUTION_FAILED"))
        self.runtime.bus.publish(
            MessageHandled(
                actor=self.name,
                sender=envelope.sender,
                message=envelope.message,
                queue_wait=delivery.started_at - envelope.sent_at,
                duration=self.runtime.now() - delivery.started_at,
                outcome=outcome,
                result=value,
            )
        )


def _admitted() -> None:
    """A parked ask needs no word: its answer is the word."""


class Ref(pykka.ActorRef[A]):
    """A handle on an actor: send to it, ask it, stop it. Stays valid when the actor is restarted.

    It is a Pykka ``ActorRef``; what differs: an ask has a deadline (30 s unless given), a blocking ask on an
    event loop's thread raises at once, and ``ask(..., block=False)`` gives a future that can be awaited.
    """

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self.actor_class = cell.spec.kind
        self.actor_urn = cell.urn
        self.actor_inbox = cell.mailbox  # type: ignore[assignment]
        self.actor_stopped = _Stopped(cell)  # type: ignore[assignment]

    @property
    def name(self) -> str:
        """The actor's name in its system."""
        return self._cell.name

    def __str__(self) -> str:
        return f"{self._cell.name} ({self.actor_urn})"

    def tell(self, message: Any) -> None:
        """Send without waiting for an answer.

        Raises:
            ActorDead: the actor is stopped (a ``pykka.ActorDeadError``).
            MailboxFull: its mailbox is full and refuses.
        """
        self._cell.tell(message)

    def ask(self, message: Any, *, block: bool = True, timeout: float | None = None) -> Any:
        """Send and wait for the answer.

        Args:
            message: the message.
            block: wait here (ordinary threads only), or return a future at once.
            timeout: the deadline in seconds from now; 30 if not given; never later than the deadline of the
                request being handled.

        Raises:
            WouldDeadlock: a blocking ask on the thread of a running event loop.
            DeadlineExceeded: no answer in time; the outcome is unknown (a ``pykka.Timeout``).
            ActorDead: the actor is stopped (a ``pykka.ActorDeadError``).
            Exception: what the actor raised.
        """
        if block and asyncio._get_running_loop() is not None:
            raise WouldDeadlock("a blocking ask on an event loop's thread would stop it; use block=False and await")
        future = self._cell.ask(message, timeout=timeout)
        return future.get() if block else future

    def stop(self, *, block: bool = True, timeout: float | None = None) -> Any:
        """Stop the actor after the message in hand; what is queued becomes dead letters.

        Returns:
            whether this call stopped it (``False``: it was dead), or with ``block=False`` the future of that.

        Raises:
            WouldDeadlock: a blocking stop on the thread of a running event loop.
        """
        if block and asyncio._get_running_loop() is not None:
            raise WouldDeadlock("a blocking stop on an event loop's thread would stop it; use block=False and await")
        future = self._cell.runtime.stop_soon(self._cell)
        return future.get(timeout=timeout) if block else future
