"""Everything that happens, as events; logs and metrics are subscribers. Floor 2.

An event is a frozen Struct listed in this file. A :class:`Bus` belongs to one system. Whoever emits asks
``Kind in bus`` first, so an event that nobody wants is never built::

    if MessageHandled in bus:
        bus.publish(MessageHandled(...))

The library logs nothing by itself: :func:`log_to` attaches the log lines, :class:`Metrics` the numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

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
    """A handler finished. ``outcome`` is ``"ok"`` or an error code."""

    actor: str
    sender: str
    message: Any
    queue_wait: float
    duration: float
    outcome: str
    result: Any = None


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
    """The connection has a principal (``anonymous`` where none is asked for)."""

    connection: str
    principal: str


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
    """A client's request got its one answer. ``outcome`` is ``"ok"`` or an error code."""

    connection: str
    message_type: str
    outcome: str
    duration: float


class InternalError(Event, frozen=True):
    """A fault of ours; the client was told ``error_ref`` only."""

    error_ref: str
    details: str


class Listening(Event, frozen=True):
    """The gateway accepts connections."""

    url: str


Listener = Callable[[Any], None]


class Bus(dict[type[Event], tuple[Listener, ...]]):
    """Hands events to whoever subscribed to their kind. Subscribers run in the emitter's thread and must be quick.

    It is the dict of listeners by kind itself, so that ``Kind in bus`` costs no Python call where nobody listens.

    Attributes:
        timed: whether anybody listens to what happens for every message. Only then are messages looked at and timed.
    """

    timed = False

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
        self.timed = MessageSent in self or MessageHandled in self

    def publish(self, event: Event) -> None:
        """Hand an event to its subscribers; one that raises is reported and hurts nobody else."""
        for listener in self.get(type(event), ()):
            try:
                listener(event)
            except Exception:  # noqa: BLE001 - a subscriber must not break what it watches
                logger.opt(exception=True).error("a telemetry subscriber failed on {}", type(event).__name__)


# --- logging -----------------------------------------------------------------------------------------------


def _dead(event: DeadLetter) -> str:
    kind = type(event.message).__name__
    return f"dead letter: {kind} from {event.sender or 'outside'} to {event.to}: {event.reason}"


_LINES: dict[type[Event], tuple[str, Callable[[Any], str]]] = {
    Listening: ("INFO", lambda e: f"listening on {e.url}"),
    ConnectionOpened: ("INFO", lambda e: f"connection {e.connection} opened from {e.peer}"),
    ConnectionAuthenticated: ("INFO", lambda e: f"connection {e.connection} authenticated as {e.principal}"),
    ConnectionRefused: ("WARNING", lambda e: f"handshake from {e.peer} refused: {e.reason}"),
    ConnectionClosed: (
        "INFO",
        lambda e: (
            f"connection {e.connection} closed with {e.code}{f' ({e.reason})' if e.reason else ''} after "
            f"{e.duration:.1f} s: {e.received} received, {e.sent} sent"
        ),
    ),
    ActorStarted: ("DEBUG", lambda e: f"{e.actor} started on the {e.lane} lane"),
    ActorFailed: ("ERROR", lambda e: f"{e.actor} failed: {e.error}\n{e.details}".rstrip()),
    ActorRestarted: ("WARNING", lambda e: f"{e.actor} restarted after {e.delay * 1000:.0f} ms (restart {e.restarts})"),
    ActorGaveUp: ("ERROR", lambda e: f"{e.actor} failed {e.failures} times in a row and is not restarted again"),
    ActorPaused: ("ERROR", lambda e: f"{e.actor} failed too often and rests for {e.seconds:.0f} s"),
    ActorStopped: (
        "DEBUG",
        lambda e: f"{e.actor} stopped{'; what it was doing could not be ended' * e.leaked}",
    ),
    DeadLetter: ("WARNING", lambda e: f"{_dead(e)}\n{e.details}".rstrip()),
    ActorSuspended: ("INFO", lambda e: f"{e.actor} is suspended"),
    ActorResumed: ("INFO", lambda e: f"{e.actor} goes on"),
    SlowTurn: (
        "WARNING",
        lambda e: f"{e.actor} has kept the event loop waiting for {e.seconds * 1000:.0f} ms, at {e.where}",
    ),
    ToolCalled: (
        "DEBUG",
        lambda e: f"tool {e.tool} for {e.caller}: {e.outcome} in {e.duration * 1000:.1f} ms",
    ),
    InternalError: ("ERROR", lambda e: f"internal error {e.error_ref}\n{e.details}"),
}


def log_to(bus: Bus) -> Callable[[], None]:
    """Write a log line (loguru) for every event worth one; returns a function that ends it."""

    def write(event: Event) -> None:
        level, line = _LINES[type(event)]
        logger.opt(depth=2).bind(event=type(event).__name__).log(level, "{}", line(event))

    return bus.subscribe(write, *_LINES)


def configure_logging(level: str = "INFO", *, as_json: bool = False) -> None:
    """Send the log to standard error, as text or as one JSON object a line. For programs, not libraries."""
    logger.remove()
    logger.enable("grami_actors")
    text = "<dim>{time:HH:mm:ss.SSS}</dim> <level>{level: <7}</level> {message}"
    # diagnose prints the values of variables into tracebacks: secrets would reach the log.
    if as_json:
        logger.add(sys.stderr, level=level, serialize=True, diagnose=False, backtrace=False)
    else:
        logger.add(sys.stderr, level=level, format=text, diagnose=False, backtrace=False)


# --- metrics -----------------------------------------------------------------------------------------------

_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Counts events for Prometheus, in a registry of its own; ``text`` is the exposition format.

    Args:
        bus: where the events come from.
        depths: gives the number of messages in the mailbox of every actor by name, asked for at each scrape.
    """

    def __init__(self, bus: Bus, depths: Callable[[], Iterable[tuple[str, int]]]) -> None:
        # Imported here because it takes longer to import than the whole core, and only servers need it.
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram  # noqa: PLC0415

        self._registry = registry = CollectorRegistry()
        self._finished: dict[tuple[str, str], tuple[Any, Any]] = {}
        self._depths = depths
        self._connections = Gauge("grami_connections", "Open connections", registry=registry)
        self._connected = Counter("grami_connections_opened", "Connections opened", registry=registry)
        self._refused = Counter("grami_connections_refused", "Handshakes refused", registry=registry)
        self._requests = Counter("grami_requests", "Requests answered", ["type", "outcome"], registry=registry)
        self._latency = Histogram(
            "grami_request_seconds", "Time from request to answer", ["type"], registry=registry, buckets=_BUCKETS
        )
        self._calls = Counter("grami_tool_calls", "Tool calls", ["tool", "outcome"], registry=registry)
        self._tool_time = Histogram(
            "grami_tool_seconds", "Time in the tool's function", ["tool"], registry=registry, buckets=_BUCKETS
        )
        self._tool_wait = Histogram(
            "grami_tool_queue_wait_seconds", "Time a call waited", ["tool"], registry=registry, buckets=_BUCKETS
        )
        self._failures = Counter("grami_actor_failures", "Failures of actors", ["actor"], registry=registry)
        self._restarts = Counter("grami_actor_restarts", "Restarts of actors", ["actor"], registry=registry)
        self._letters = Counter("grami_dead_letters", "Messages that were not handled", ["reason"], registry=registry)
        self._depth = Gauge("grami_mailbox_depth", "Messages queued now", ["actor"], registry=registry)
        self._subscribe(bus)

    def _subscribe(self, bus: Bus) -> None:
        bus.subscribe(self._on_opened, ConnectionOpened)
        bus.subscribe(lambda _: self._connections.dec(), ConnectionClosed)
        bus.subscribe(lambda _: self._refused.inc(), ConnectionRefused)
        bus.subscribe(self._on_request, RequestFinished)
        bus.subscribe(self._on_tool, ToolCalled)
        bus.subscribe(lambda e: self._failures.labels(e.actor).inc(), ActorFailed)
        bus.subscribe(lambda e: self._restarts.labels(e.actor).inc(), ActorRestarted)
        bus.subscribe(lambda e: self._letters.labels(e.reason).inc(), DeadLetter)

    def _on_opened(self, _: ConnectionOpened) -> None:
        self._connections.inc()
        self._connected.inc()

    def _on_request(self, event: RequestFinished) -> None:
        # The library looks a labelled metric up under a lock, which costs more than to count.
        key = event.message_type, event.outcome
        counted = self._finished.get(key)
        if counted is None:
            counted = self._requests.labels(*key), self._latency.labels(event.message_type)
            self._finished[key] = counted
        counted[0].inc()
        counted[1].observe(event.duration)

    def _on_tool(self, event: ToolCalled) -> None:
        self._calls.labels(event.tool, event.outcome).inc()
        self._tool_time.labels(event.tool).observe(event.duration)
        self._tool_wait.labels(event.tool).observe(event.queue_wait)

    def text(self) -> bytes:
        """The metrics in Prometheus's text exposition format, version 0.0.4."""
        from prometheus_client import generate_latest  # noqa: PLC0415

        self._depth.clear()
        for name, depth in self._depths():
            self._depth.labels(name).set(depth)
        return generate_latest(self._registry)
