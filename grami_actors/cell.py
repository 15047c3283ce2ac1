"""What stays of an actor when it is restarted. Floor 6.

There is exactly one :class:`Cell` per spawn: name, mailbox, place in the tree, state. It outlives its instances.

Rules:

1. A message is handled by one call of :meth:`Cell.handle`, on the actor's lane, and finished exactly once.
2. An exception that is a :class:`GramiError` is an *answer*; any other is a *failure* and goes to the
   supervisor, whether the message came by tell or by ask. Nothing that a handler raises leaves its cell.
3. Whatever a handler starts inherits the scope of the message it handles.
4. The way of a message is short on purpose: no lock, no object but the envelope, no clock, unless somebody asks for
   it. A tell costs about as much as an ``asyncio.Queue`` does; every call that is added here is seen in ``make bench``.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pykka
from pykka import messages as pykka_messages

from grami_actors.budget import Budget, Meter
from grami_actors.contracts import Lane, Runtime
from grami_actors.errors import AgentCrashed, GramiError, MailboxFull, describe, in_words
from grami_actors.future import AskTimeout, Future, Interrupt, current, details, handled, only_answer
from grami_actors.mailbox import Closed, Mailbox
from grami_actors.messages import Envelope, Last, Scope, Terminated
from grami_actors.ref import ActorDead, Ref
from grami_actors.spec import LIFECYCLE, Spec
from grami_actors.steps import noting
from grami_actors.telemetry import ActorFailed, DeadLetter, MessageHandled, MessageSent

CONNECTION = "connection-"
"""How the names of the actors of clients begin; no agent's name does."""

ASK_TIMEOUT = 30.0
"""Seconds an ask waits that names no limit and belongs to no request; within one, its deadline is the limit."""

_SIGNALS = frozenset({Terminated, Last})
"""What the runtime sends to an actor; nobody misses it when the actor is gone."""

CONTROL = _SIGNALS | {pykka_messages.ProxyCall, pykka_messages.ProxyGetAttr, pykka_messages.ProxySetAttr}
"""Types of messages that are not for ``on_receive``."""


class Cell:
    """What stays of an actor when it is restarted. Users hold its :class:`Ref`."""

    __slots__ = (
        "__weakref__",
        "actor",
        "at_work",
        "born",
        "bus",
        "child_history",
        "children",
        "concurrency",
        "doomed",
        "history",
        "lane",
        "lifecycle",
        "mailbox",
        "name",
        "number",
        "owed",
        "parent",
        "paused",
        "port",
        "recovery",
        "ref",
        "restarts",
        "runtime",
        "spec",
        "state",
        "suspended",
        "timers",
        "waits",
        "watchers",
        "working",
    )

    def __init__(
        self, runtime: Runtime[Cell], lane: Lane[Cell], spec: Spec, name: str, number: int, parent: Cell | None
    ) -> None:
        self.runtime = runtime
        self.bus = runtime.bus
        self.lane = lane
        self.spec = spec
        self.name = name
        self.number = number
        self.parent = parent
        self.concurrency = spec.concurrency
        self.children: dict[str, Cell] = {}
        self.state = "starting"
        self.paused = True
        self.working = 0
        self.restarts = 0
        self.history: tuple[float, ...] = ()
        self.child_history: tuple[float, ...] = ()  # where the policy of this actor counts for all its children
        self.doomed: Envelope | None = None  # what is to end as killed, whatever its handler makes of that
        self.owed: BaseException | None = None  # a failure to be seen to when it has started
        self.waits: dict[Future[Any], Envelope] = {}
        self.watchers: dict[Any, Callable[[Terminated], object]] | None = None
        self.suspended = False  # to be so again when it has been restarted
        self.timers: Any = None
        self.port: Any = None  # what the lane keeps per cell
        self.lifecycle: asyncio.Task[Any] | None = None
        self.recovery: Any = None
        self.actor: Any = None
        self.at_work: Envelope | None = None  # where one message is handled at a time: that one
        self.born = False  # whether on_start of this instance has succeeded
        self.mailbox = Mailbox(self.wake, spec.mailbox, spec.overflow, eager=lane.shared and spec.concurrency > 1)
        self.ref: Ref[Any] = Ref(self)

    def wake(self) -> None:
        """There is mail; from any thread."""
        self.lane.wake(self)

    def now(self) -> float:
        """Seconds on the system's clock."""
        return self.runtime.now()

    @property
    def load(self) -> int:
        """Messages that wait or are at work."""
        return len(self.mailbox) + self.working

    @property
    def full(self) -> bool:
        """Whether its mailbox is full, or others wait for room in it."""
        return self.mailbox.full

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
        self.actor = actor  # before its constructor, which may want a proxy to itself
        actor.__init__(*self.spec.args, **self.spec.kwargs)
        return actor

    # --- sending, from any thread ---

    def post(self, envelope: Envelope) -> None:
        """Put an envelope into the mailbox. Raises ActorDead or MailboxFull."""
        if self.bus.timed:
            self._announce(envelope)
        try:
            displaced = self.mailbox.put(envelope)
        except (Closed, MailboxFull) as refused:
            raise self._refusal(refused) from None
        if displaced is not None:
            self.discard(displaced, "overflow", self.dropped())

    def post_parked(self, envelope: Envelope, admitted: Callable[[], None] | None = None) -> None:
        """The same, but wait for room; ``admitted`` is called when there is some. Raises ActorDead."""
        if self.bus.timed:
            self._announce(envelope)
        try:
            self.mailbox.park(envelope, admitted)
        except Closed as refused:
            raise self._refusal(refused) from None

    def post_always(self, envelope: Envelope, *, first: bool = False) -> None:
        """The same whatever the bound: for what is bounded elsewhere. ``first``: before all others."""
        try:
            (self.mailbox.put_first if first else self.mailbox.put_any)(envelope)
        except Closed as refused:
            raise self._refusal(refused) from None

    def _refusal(self, refused: GramiError) -> GramiError:
        if isinstance(refused, Closed):
            return ActorDead(f"{self.name} is stopped and takes no more messages")
        return MailboxFull(f"{self.name} is busy: {refused.message}")

    def dropped(self) -> MailboxFull:
        """What a message that was displaced ends with."""
        return MailboxFull(f"{self.name} dropped the message: its mailbox is full")

    def _announce(self, envelope: Envelope) -> None:
        envelope.sent_at = self.runtime.now()
        here = handled()
        if here is not None and (here.scope is not None or envelope.scope is None):
            envelope.cause = here.trace()
        if (clock := self.bus.clocked) is not None:
            clock.sent(self, envelope)
        if MessageSent in self.bus:
            self.bus.publish(MessageSent(envelope.sender, self.name, envelope.message, envelope.reply_to is not None))

    def tell(self, message: Any) -> None:
        """Send without waiting for an answer. Raises ActorDead, MailboxFull or QuotaExceeded."""
        # As post() does it, in one piece: this is the shortest way there is, and half of it would be calls.
        here = handled()
        if here is None:
            envelope = Envelope(message, None, "", None, 0.0, self)
        else:
            envelope = Envelope(message, None, here.handler, here.scope, 0.0, self)
            if here.scope is not None and here.scope.meter is not None:
                here.scope.meter.charge(messages=1)
        if self.bus.timed:
            self._announce(envelope)
        try:
            displaced = self.mailbox.put(envelope)
        except (Closed, MailboxFull) as refused:
            raise self._refusal(refused) from None
        if displaced is not None:
            self.discard(displaced, "overflow", self.dropped())

    def tell_detached(self, message: Any) -> None:
        """The same, but the message does not belong to the request being handled."""
        here = handled()
        self.post(Envelope(message, None, "" if here is None else here.handler))

    async def send(self, message: Any) -> None:
        """Send without waiting for an answer, but wait for room where the policy is ``wait``."""
        envelope = _envelope(message)
        if self.spec.overflow != "wait" or not self.full:
            self.post(envelope)
            return
        # Waiting for room is waiting: it has a deadline, and a circle of it is an error.
        admitted: Future[None] = Future()
        admitted.bind(self, envelope.scope, self.now() + ASK_TIMEOUT, True)
        self.runtime.deadlines.add(admitted, ASK_TIMEOUT)
        self.post_parked(envelope, lambda: admitted.set(None))
        try:
            await admitted
        except BaseException:
            self.mailbox.withdraw(envelope)
            raise

    def ask(
        self,
        message: Any,
        timeout: float | None = None,
        future: Future[Any] | None = None,
        budget: Budget | Meter | None = None,
    ) -> Future[Any]:
        """Send and get the future of the answer. Never raises: what goes wrong is the future's answer."""
        if future is None:
            future = Future()
        here = handled()
        now = self.runtime.now()
        if here is None:
            sender = ""
            remaining = ASK_TIMEOUT if timeout is None else timeout
            future.bind(self, None, now + remaining)
            future._trace = self.runtime.new_trace_id
        else:
            sender = here.handler
            scope = here.scope
            if timeout is not None:
                remaining = timeout
            elif scope is None or scope.deadline == math.inf:
                remaining = ASK_TIMEOUT
            else:  # a second, shorter one would surprise whoever set the first
                remaining = scope.deadline - now
            future.bind(self, scope, now + remaining, True)
        if future._outcome is None:
            envelope = Envelope(message, future, sender, future, 0.0, self)
            try:
                if budget is not None or future.meter is not None:
                    self._charge(future, budget)
                if self.mailbox.overflow == "wait" and self.mailbox.full:
                    self.post_parked(envelope)
                    future.on_cancel(lambda _: self.mailbox.withdraw(envelope))
                else:
                    self.post(envelope)
            except GramiError as refused:
                future.fail(refused)
            else:
                self.runtime.deadlines.add(future, remaining)
        return future

    @staticmethod
    def _charge(future: Future[Any], budget: Budget | Meter | None) -> None:
        meter: Any = future.meter
        if isinstance(budget, Meter):  # one that others draw from too
            future.meter = meter = budget
        elif budget is not None:
            future.meter = meter = Meter(budget, meter, on_exhausted=future.cancel, base=future.depth)
        meter.check_depth(future.depth)
        meter.charge(messages=1)

    def discard(self, envelope: Envelope, reason: str, error: GramiError) -> None:
        """End a message that will not be handled: fail its ask, or make it a dead letter."""
        reply_to = envelope.reply_to
        if envelope.failure is not None:  # it was to be tried once more
            self.bury(envelope, "poison", details(envelope.failure))
            if reply_to is not None:
                reply_to.fail(self._answer(envelope.failure))
        elif reply_to is not None:
            reply_to.fail(error)
        elif type(envelope.message) not in _SIGNALS:
            self.bury(envelope, reason)

    def bury(self, envelope: Envelope, reason: str, details: str = "") -> None:
        """Publish a dead letter."""
        if DeadLetter in self.bus:
            self.bus.publish(DeadLetter(self.name, envelope.sender, envelope.message, reason, details))

    # --- watching ---

    def watch(self, key: Any, tell: Callable[[Terminated], object]) -> None:
        """Have ``tell`` called once when the actor is gone. Twice with one key is once. On the home loop."""
        if self.state == "stopped":
            tell(Terminated(self.name, "unknown"))
            return
        if self.watchers is None:
            self.watchers = {}
        self.watchers.setdefault(key, tell)

    def unwatch(self, key: Any) -> None:
        """Take it back."""
        if self.watchers is not None:
            self.watchers.pop(key, None)

    def terminated(self, reason: str) -> None:
        """Tell the watchers."""
        watchers, self.watchers = self.watchers, None
        for tell in (watchers or {}).values():
            tell(Terminated(self.name, reason))

    # --- handling, on the lane ---

    def admits(self, envelope: Envelope, scope: Scope, now: float) -> bool:
        """Whether a message is still to be handled; what is cancelled or expired is ended here."""
        if scope.reason is not None:
            self.discard(envelope, "cancelled", scope.reason)
            return False
        if scope.deadline <= now:
            late = AskTimeout(f"the deadline passed while the message waited for {self.name}")
            self.discard(envelope, "expired", late)
            return False
        if scope.sink is not None:
            scope.sink.started(self.name)
        return True

    def handle(self, envelope: Envelope, now: float) -> Coroutine[Any, Any, None] | None:
        """Handle one message. Returns what is left to be awaited if the handler is a coroutine.

        Args:
            envelope: the message.
            now: seconds on the system's clock.
        """
        scope = envelope.scope
        if scope is not None:
            special = scope.reason is not None or scope.deadline <= now or scope.sink is not None
            if special and not self.admits(envelope, scope, now):
                return None
        if envelope.receiver is not self:
            envelope.receiver = self
        self.at_work = envelope
        current.set(envelope)
        if envelope.sent_at or self.bus.timed:
            envelope.taken_at = self.runtime.now()  # ``now`` may be that of a turn that began before it was sent
            if (clock := self.bus.clocked) is not None:
                return clock.handle(self, envelope)  # type: ignore[no-any-return]
        return self.perform(envelope)

    def perform(self, envelope: Envelope) -> Coroutine[Any, Any, None] | None:
        """Call the handler of a message that is in hand; returns what is left to be awaited."""
        message, actor = envelope.message, self.actor
        try:
            result = actor._handle_control(message) if message.__class__ in CONTROL else actor.on_receive(message)
        except BaseException as error:  # noqa: BLE001 - S15: nothing leaves the cell
            self.fail(envelope, error, actor)
            return None
        # Several times cheaper than inspect.isawaitable.
        if result is not None and hasattr(result.__class__, "__await__"):
            return self.drive(envelope, result, actor)
        self.succeed(envelope, result)
        return None

    async def drive(self, envelope: Envelope, result: Awaitable[Any], actor: Any) -> None:
        """Await what a handler of this instance returned, and finish its message."""
        envelope.receiver = self  # not all who send say so, and the handler may send too
        current.set(envelope)
        self.at_work = envelope
        scope, interrupt = envelope.scope, None
        try:
            if scope is not None:
                interrupt = Interrupt()
                scope.on_cancel(interrupt)
            if isinstance(result, pykka.Future) and not isinstance(result, Future):
                # Awaiting a future of Pykka's own blocks the thread, which may be the loop's.
                result = asyncio.get_running_loop().run_in_executor(None, result.get)
            if self.bus.stepped and asyncio.iscoroutine(result):
                result = noting(result, envelope, self.runtime.now)
            value = await result
        except BaseException as error:  # noqa: BLE001 - S15: nothing leaves the cell
            self.fail(envelope, error, actor)
        else:
            self.succeed(envelope, value)
        finally:
            if scope is not None and interrupt is not None:
                scope.forget(interrupt)

    def succeed(self, envelope: Envelope, value: Any) -> None:
        """The handler returned: answer."""
        if self.doomed is envelope:  # it was killed, and swallowed that
            self.fail(envelope, asyncio.CancelledError("killed"), self.actor)
            return
        if self.at_work is envelope:
            self.at_work = None
        if self.bus.timed:
            self._report(envelope, value, None)
        reply_to = envelope.reply_to
        if reply_to is not None and not reply_to.set_result(value):
            self.bury(envelope, "late_reply")

    def fail(self, envelope: Envelope, error: BaseException, actor: Any) -> None:
        """The handler of this instance raised: answer, and tell the supervisor if the actor failed."""
        if self.at_work is envelope:
            self.at_work = None
        answer, failure = self._judge(envelope, error)
        unheard = failure is None and not isinstance(error, GramiError) and answer is error
        if unheard and ActorFailed in self.bus:
            self.bus.publish(ActorFailed(self.name, describe(error), details(error)))  # nobody else would tell
        # With concurrency an instance that was replaced may still have handlers at work: they count no more.
        counts = failure is not None and actor is self.actor
        if self.bus.timed:
            self._report(envelope, None, answer)
        if failure is not None and self.spec.restart.redeliver:
            if envelope.failure is None and self._redeliver(envelope, failure, counts=counts):
                return
            self.bury(envelope, "poison", details(failure))
        elif envelope.reply_to is None and failure is None:
            self.bury(envelope, "rejected")
        if envelope.reply_to is not None:
            envelope.reply_to.fail(answer)
        if counts and failure is not None:
            self.runtime.failed(self, failure)

    def _redeliver(self, envelope: Envelope, failure: BaseException, *, counts: bool) -> bool:
        """Put a message back in front for the next instance."""
        envelope.failure, envelope.span = failure, ""  # the next handling is another one
        self.doomed = None  # and is not to end as this one
        if counts:
            self.lane.pause(self)  # before the message is there to be taken
        try:
            self.mailbox.put_first(envelope)
        except Closed:
            return False
        if counts:
            self.runtime.failed(self, failure)
        return True

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
            if isinstance(error, Exception):
                return error, None
            return ActorDead(f"{self.name} was stopped while it handled the message"), None
        return self._answer(error), error

    def _answer(self, error: BaseException) -> BaseException:
        """What the caller of a handler that failed is answered."""
        if isinstance(error, Exception):
            return error
        return AgentCrashed(f"{self.name} died with the message in hand ({describe(error)}); the outcome is unknown")

    def _report(self, envelope: Envelope, value: Any, error: BaseException | None) -> None:
        if (clock := self.bus.clocked) is not None:
            clock.handled(self, envelope)
        if MessageHandled not in self.bus:
            return
        outcome = "ok" if error is None else str(getattr(error, "error_code", "AGENT_EXECUTION_FAILED"))
        waited = envelope.taken_at - envelope.sent_at if envelope.sent_at else 0.0
        took = self.runtime.now() - envelope.taken_at if envelope.taken_at else 0.0
        asked = envelope.handed or envelope.reply_to is not None
        traced = envelope.scope, envelope.span, envelope.cause, asked, in_words(error), envelope.taken_at
        told = self.name, envelope.sender, envelope.message, waited, took, outcome, value
        self.bus.publish(MessageHandled(*told, *traced, envelope.handed, envelope.steps))


def _envelope(message: Any) -> Envelope:
    """A message without an answer, from whoever is at work here."""
    here = handled()
    if here is None:
        return Envelope(message)
    if here.scope is not None and here.scope.meter is not None:
        here.scope.meter.charge(messages=1)
    return Envelope(message, None, here.handler, here.scope)
