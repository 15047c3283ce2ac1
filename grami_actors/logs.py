"""Log lines: which events are worth one, and how many are written. Floor 3.

Rules:

1. A line holds what a client gave only in printable characters, and no line begins like another: nobody writes
   entries of his own into the log (CWE-117). The lines of a traceback are indented.
2. Of each kind of event at most a burst of lines is written and then a few a second, so that ten thousand bad clients
   do not fill a disk. How many were left out is said.
3. No event holds a token, a key or a header, so no line does.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from loguru import logger

from grami_actors.buckets import Buckets
from grami_actors.job import TERMINAL, State
from grami_actors.principals import ANONYMOUS
from grami_actors.telemetry import (
    ActorFailed,
    ActorGaveUp,
    ActorPaused,
    ActorRestarted,
    ActorResumed,
    ActorStarted,
    ActorStopped,
    ActorSuspended,
    Bus,
    ConnectionAuthenticated,
    ConnectionClosed,
    ConnectionOpened,
    ConnectionRefused,
    DeadLetter,
    Doubted,
    Event,
    InternalError,
    JobChanged,
    JobsFound,
    JobsLeft,
    LimitHit,
    Listening,
    Reloaded,
    RequestFinished,
    SlowTurn,
    ToolCalled,
)

RATE = 5.0
"""Lines a second of one kind of event in the long run."""

BURST = 200.0
"""Lines of one kind of event at once."""

GENEROUS = 5.0
"""How many times as many are written of errors: they are our own, and seldom."""

EVERY = 10.0
"""Seconds between two lines that say how many of a kind were left out."""

_UNDER_WAY = frozenset(State) - TERMINAL
_BAD_ENDS = TERMINAL - {State.SUCCEEDED, State.CANCELLED}

LONGEST_LINE = 2_000
LONGEST_DETAILS = 50_000
"""Characters of a line, and of a traceback from its end."""


def _dead(event: DeadLetter) -> str:
    kind = type(event.message).__name__
    return f"dead letter: {kind} from {event.sender or 'outside'} to {event.to}: {event.reason}"


def _closed(event: ConnectionClosed) -> str:
    reason = f" ({event.reason})" if event.reason else ""
    counts = f"{event.received} received, {event.sent} sent"
    return f"{event.connection} closed with {event.code}{reason} after {event.duration:.1f} s: {counts}"


def _slow(event: RequestFinished) -> str:
    what = f"{event.message_type or 'a request'} to {event.to or 'nobody'} from {event.principal or event.connection}"
    rest = max(0.0, event.duration - event.queue_wait - event.handling)
    trace = "" if event.scope is None else event.scope.trace_id
    return (
        f"slow request: {what} took {event.duration:.3f} s: {event.queue_wait:.3f} s in the queue, "
        f"{event.handling:.3f} s in the handler, {rest:.3f} s elsewhere; {event.outcome}; trace {trace or 'unknown'}"
    )


_LINES: dict[type[Event], tuple[str, Callable[[Any], str]]] = {
    Listening: ("INFO", lambda e: f"listening on {e.url}"),
    Reloaded: ("INFO", lambda e: f"{e.what} reloaded"),
    JobsFound: ("INFO", lambda e: f"jobs taken up: {e.running} running, {e.waiting} waiting"),
    JobsLeft: (
        "INFO",
        lambda e: (
            f"jobs: {e.running} go on without the server, {e.waiting} wait for the next one, {e.ending} are ended"
        ),
    ),
    Doubted: ("WARNING", lambda e: e.text),
    ConnectionOpened: ("INFO", lambda e: f"{e.connection} opened from {e.peer}"),
    ConnectionAuthenticated: ("INFO", lambda e: f"{e.connection} authenticated as {e.principal}"),
    ConnectionRefused: ("WARNING", lambda e: f"handshake from {e.peer} refused: {e.reason}"),
    ConnectionClosed: ("INFO", _closed),
    RequestFinished: ("WARNING", _slow),
    LimitHit: ("WARNING", lambda e: f"{e.who} was refused: the limit {e.limit} is reached"),
    ActorStarted: ("DEBUG", lambda e: f"{e.actor} started on the {e.lane} lane"),
    ActorFailed: ("ERROR", lambda e: f"{e.actor} failed: {e.error}"),
    ActorRestarted: ("WARNING", lambda e: f"{e.actor} restarted after {e.delay * 1000:.0f} ms (restart {e.restarts})"),
    ActorGaveUp: ("ERROR", lambda e: f"{e.actor} failed {e.failures} times in a row and is not restarted again"),
    ActorPaused: ("ERROR", lambda e: f"{e.actor} failed too often and rests for {e.seconds:.0f} s"),
    ActorStopped: (
        "DEBUG",
        lambda e: f"{e.actor} stopped{'; what it was doing could not be ended' * e.leaked}",
    ),
    DeadLetter: ("WARNING", _dead),
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
    JobChanged: ("INFO", lambda e: f"{e.job} of {e.tool} for {e.owner or 'nobody'}: {e.state}"),
    InternalError: ("ERROR", lambda e: f"internal error {e.error_ref}"),
}


def printable(text: str) -> str:
    """The text with everything escaped that is no visible character or space: line ends, colours, directions."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _told(event: Event) -> str:
    """All that is written about an event; its details, if it has some, on lines of their own."""
    head = _LINES[type(event)][1](event)
    if len(head) > LONGEST_LINE:
        head = f"{head[:LONGEST_LINE]}..."
    details: str = getattr(event, "details", "")
    below = details[-LONGEST_DETAILS:].expandtabs().splitlines()
    return "\n    ".join(map(printable, (head, *below)))


class LogLines:
    """The log lines of one bus; call it to end them."""

    def __init__(self, bus: Bus, slow_after: float, clock: Callable[[], float]) -> None:
        self._slow_after = slow_after
        self._clock = clock
        self._lock = threading.Lock()  # agents and tools on threads tell of themselves there
        self._buckets = Buckets(RATE, BURST)
        self._generous = Buckets(RATE * GENEROUS, BURST * GENEROUS)
        self._left_out: dict[type[Event], tuple[int, float]] = {}  # how many, since when
        self._end = bus.subscribe(self._write, *_LINES)

    def _write(self, event: Event) -> None:
        if isinstance(event, RequestFinished) and event.duration <= self._slow_after:
            return
        if isinstance(event, ConnectionAuthenticated) and event.principal == ANONYMOUS.name:
            return  # nobody said who they are
        kind = type(event)
        level = _LINES[kind][0]
        if isinstance(event, JobChanged):
            if not event.told or (event.seq > 1 and event.state in _UNDER_WAY):
                return  # it was accepted, and is not at its end; or that it is was told
            level = "WARNING" if event.state in _BAD_ENDS else level
        now = self._clock()
        if self._left_out:
            self._tell_left_out(now, EVERY)
        if self._may_write(kind, level, now):
            logger.opt(depth=2).bind(event=kind.__name__).log(level, "{}", _told(event))

    def _may_write(self, kind: type[Event], level: str, now: float) -> bool:
        buckets = self._generous if level == "ERROR" else self._buckets
        with self._lock:
            if not buckets.take(kind, now):
                return True
            count, since = self._left_out.get(kind, (0, now))
            self._left_out[kind] = count + 1, since
            return False

    def _tell_left_out(self, now: float, age: float) -> None:
        with self._lock:
            due = {kind: left for kind, left in self._left_out.items() if now - left[1] >= age}
            for kind in due:
                del self._left_out[kind]
        for kind, (count, since) in due.items():
            line = f"... {count:,} more lines of {kind.__name__} were left out in the last {now - since:.0f} s"
            logger.bind(event=kind.__name__).log(_LINES[kind][0], "{}", line)

    def flush(self) -> None:
        """Say what was left out, where that is due; to be called about once a second, for when no more events come."""
        self._tell_left_out(self._clock(), EVERY)

    def __call__(self) -> None:
        """Write no more; what was left out is said now."""
        self._end()
        self._tell_left_out(self._clock(), 0.0)


def log_to(bus: Bus, *, slow_after: float = 5.0, clock: Callable[[], float] = time.monotonic) -> LogLines:
    """Write a log line (loguru) for every event worth one.

    Args:
        bus: where the events come from.
        slow_after: seconds; a request that takes longer gets a line.
        clock: seconds, monotonic.

    Returns:
        what ends it when it is called, and wants its ``flush()`` called about once a second.
    """
    return LogLines(bus, slow_after, clock)


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
