"""Everything that happens, as events; logs, metrics and traces are subscribers. Floor 2.

An event is a frozen Struct listed in this file. A :class:`Bus` belongs to one system. Whoever emits asks
``Kind in bus`` first, so an event that nobody wants is never built::

    if MessageHandled in bus:
        bus.publish(MessageHandled(...))

The library logs nothing by itself: :func:`grami_actors.logs.log_to` attaches the log lines,
:class:`grami_actors.metrics.Metrics` the numbers, :func:`grami_actors.tracing.trace_to` the spans.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec
from loguru import logger

logger.disable("grami_actors")


class Event(msgspec.Struct, frozen=True):
    """The base of all events. Durations are in seconds, names are actor names."""


class ActorStarted(Event, frozen=True):
    """``on_start`` succeeded; the actor takes messages."""

    actor: str
    kind: str
    lane: str


class ActorFailed(Event, frozen=True):
    """A handler or hook raised something that is not an answer. ``details`` is the traceback, for logs only."""

    actor: str
    error: str
    details: str


class ActorRestarted(Event, frozen=True):
    """A fresh instance took over the mailbox, ``delay`` seconds after the failure."""

    actor: str
    restarts: int
    delay: float


class ActorGaveUp(Event, frozen=True):
    """The restart intensity was exceeded: the actor is stopped and its parent told."""

    actor: str
    failures: int


class ActorPaused(Event, frozen=True):
    """The restart intensity was exceeded: the actor rests for ``seconds``, and is unavailable meanwhile."""

    actor: str
    seconds: float


class ActorStopped(Event, frozen=True):
    """The actor is gone; its name is free."""

    actor: str
    leaked: bool = False


class MessageSent(Event, frozen=True):
    """A message was put into a mailbox."""

    sender: str
    to: str
    message: Any
    expects_reply: bool


class MessageHandled(Event, frozen=True):
    """A handler finished.

    Attributes:
        actor: whose it is.
        sender: who sent the message; empty from outside.
        message: the message.
        queue_wait: seconds in the mailbox.
        duration: seconds in the handler, with all that it waited for.
        outcome: ``"ok"`` or an error code.
        result: what was answered.
        scope: that of the message; ``None`` outside any request.
        span: 16 hex digits that name this handling in traces, if somebody needed them by now.
        cause: the same of the handling that sent the message, if both belong to a request, or neither does.
        asked: whether an answer was wanted.
        error: the text of the error that was answered.
        taken_at: seconds on the system's clock when the handler began; the event may come a while after its end.
        handed: whether the handler gave the request to another, who is the one to answer now.
        steps: when its coroutine began, and went on after it had waited, on the system's clock, if :attr:`Bus.stepped`.
    """

    actor: str
    sender: str
    message: Any
    queue_wait: float
    duration: float
    outcome: str
    result: Any = None
    scope: Any = None
    span: str = ""
    cause: str = ""
    asked: bool = False
    error: str = ""
    taken_at: float = 0.0
    handed: bool = False
    steps: Any = None


class ToolCalled(Event, frozen=True):
    """A tool function returned or raised. ``outcome`` is ``"ok"`` or an error code."""

    tool: str
    caller: str
    queue_wait: float
    duration: float
    outcome: str


class DeadLetter(Event, frozen=True):
    """A message that will not be handled, and why. ``details`` is the traceback of a poison message."""

    to: str
    sender: str
    message: Any
    reason: str
    details: str = ""


class ActorSuspended(Event, frozen=True):
    """The actor takes no messages until it is resumed."""

    actor: str


class ActorResumed(Event, frozen=True):
    """The actor takes messages again."""

    actor: str


class SlowTurn(Event, frozen=True):
    """A handler keeps the thread of the event loop, and everybody else on it, waiting. ``where`` is file and line."""

    actor: str
    where: str
    seconds: float


class ConnectionOpened(Event, frozen=True):
    """A WebSocket handshake succeeded."""

    connection: str
    peer: str


class ConnectionAuthenticated(Event, frozen=True):
    """The connection has a principal (``anonymous`` where none is asked for), with the scopes it was granted."""

    connection: str
    principal: str
    scopes: Any = frozenset()


class FramePassed(Event, frozen=True):
    """A frame came from a client, or was handed to its socket. It may hold a token.

    Attributes:
        connection: the client's.
        way: ``in`` or ``out``.
        frame: text or bytes, as on the wire.
        encoding: that of the connection (:class:`grami_actors.encoding.Encoding`).
    """

    connection: str
    way: str
    frame: Any
    encoding: Any


class ConnectionRefused(Event, frozen=True):
    """A handshake was refused, for instance for its Origin or Host."""

    peer: str
    reason: str


class ConnectionClosed(Event, frozen=True):
    """The connection ended, with its close code (RFC 6455 section 7.4) and counts."""

    connection: str
    code: int
    reason: str
    received: int
    sent: int
    duration: float


class RequestFinished(Event, frozen=True):
    """A client's request got its one answer, or its client went away (``CANCELLED``).

    Attributes:
        connection: the client's.
        principal: its name.
        message_type: the type on the wire.
        to: the actor that handled it; empty if none did.
        outcome: ``"ok"`` or an error code.
        duration: seconds from the frame to the answer.
        queue_wait: seconds of it in that actor's mailbox.
        handling: seconds of it in that actor's handler, with all that it waited for.
        scope: its scope, which knows its trace.
    """

    connection: str
    message_type: str
    outcome: str
    duration: float
    principal: str = ""
    to: str = ""
    queue_wait: float = 0.0
    handling: float = 0.0
    scope: Any = None


class LimitHit(Event, frozen=True):
    """Somebody was refused because of a limit. ``limit`` is the name of the setting, ``who`` a principal or address."""

    limit: str
    who: str


class Published(Event, frozen=True):
    """A message was published to a topic."""

    topic: str
    sender: str
    message: Any


class JobChanged(Event, frozen=True):
    """Something happened to a job, and is written down.

    Attributes:
        job: its id.
        tool: its tool.
        owner: whose it is.
        state: where it is now.
        seq: of its last event.
        told: whether an event tells of it; else the state is the one of before.
    """

    job: str
    tool: str
    owner: str
    state: str
    seq: int
    told: bool = True


class LoopLagged(Event, frozen=True):
    """How many seconds late the event loop came to something that was due; told several times a second."""

    seconds: float


class InternalError(Event, frozen=True):
    """A fault of ours; the client was told ``error_ref`` only."""

    error_ref: str
    details: str


class Listening(Event, frozen=True):
    """The gateway accepts connections."""

    url: str


class Reloaded(Event, frozen=True):
    """Files were read again, and what they hold is in use."""

    what: str


class JobsFound(Event, frozen=True):
    """A server starts, and takes up jobs that are not at their end: so many that run, and so many that wait."""

    running: int
    waiting: int


class JobsLeft(Event, frozen=True):
    """A server stops: so many jobs go on without it, so many wait for the next one, and so many are ended first."""

    running: int
    waiting: int
    ending: int


class DiceMade(Event, frozen=True):
    """An actor has dice of its own from now on, which this seed throws again."""

    actor: str
    seed: int


class Noted(Event, frozen=True):
    """Something else for the account of a run (:mod:`grami_actors.history`): a fault, a check, an answer of a model."""

    entry: Any


class Doubted(Event, frozen=True):
    """The server runs with something that its operator should look at."""

    text: str


def family(actor: str) -> str:
    """The name that an actor shares with its pool and its children: ``writer`` for ``writer-2/child-17``.

    There are as many as a program has kinds of actors, so that metrics and spans can be named after them. A number
    behind a dash at the end of a name is always taken for that of an instance.
    """
    root = actor.partition("/")[0]
    pool = root.rstrip("0123456789")
    return pool[:-1] if pool != root and len(pool) > 1 and pool[-1] == "-" else root


Listener = Callable[[Any], None]


class Clock(Protocol):
    """Stands between a cell and its handlers while a profile runs, or faults are put in; from any thread.

    See :class:`grami_actors.profiling.Profile` and :class:`grami_actors.simulation.faults.Injector`.
    """

    def sent(self, cell: Any, envelope: Any) -> None:
        """An envelope is about to be put into the mailbox of a cell."""

    def handle(self, cell: Any, envelope: Any) -> Any:
        """Do the part of :meth:`grami_actors.cell.Cell.handle` that runs the handler."""

    def given(self, cell: Any, envelope: Any) -> bool:
        """Whether a message is to be given to a worker process now."""

    def handled(self, cell: Any, envelope: Any) -> None:
        """The handler of a message ended, here or in a worker process."""


class Bus(dict[type[Event], tuple[Listener, ...]]):
    """Hands events to whoever subscribed to their kind. Subscribers run in the emitter's thread and must be quick.

    It is the dict of listeners by kind itself, so that ``Kind in bus`` costs no Python call where nobody listens.

    Attributes:
        timed: whether anybody listens to what happens for every message. Only then are messages looked at and timed.
        clocked: what measures handlers, while a profile runs.
        stepped: whether it is noted when handlers go on after they have waited.
    """

    timed = False
    stepped = False
    clocked: Clock | None = None

    def subscribe(self, listener: Listener, *kinds: type[Event]) -> Callable[[], None]:
        """Call ``listener(event)`` for every event of these kinds (all, if none is named).

        Returns:
            a function that ends the subscription.
        """
        chosen = kinds or tuple(Event.__subclasses__())
        for kind in chosen:
            self[kind] = (*self.get(kind, ()), listener)
        subscribed = list(chosen)
        self._changed()

        def unsubscribe() -> None:
            while subscribed:
                kind = subscribed.pop()
                left = list(self.get(kind, ()))
                left.remove(listener)
                if left:
                    self[kind] = tuple(left)
                else:
                    del self[kind]
            self._changed()

        return unsubscribe

    def _changed(self) -> None:
        self.timed = MessageSent in self or MessageHandled in self or self.clocked is not None

    def clock(self, clock: Clock | None) -> None:
        """Have handlers measured from now on; ``None`` for no longer."""
        self.clocked = clock
        self._changed()

    def publish(self, event: Event) -> None:
        """Hand an event to its subscribers; one that raises is reported and hurts nobody else."""
        for listener in self.get(type(event), ()):
            try:
                listener(event)
            except Exception:  # noqa: BLE001 - a subscriber must not break what it watches
                logger.opt(exception=True).error("a telemetry subscriber failed on {}", type(event).__name__)
