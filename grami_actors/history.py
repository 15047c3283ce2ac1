"""What happened in a system, in order: the one account that transcripts, recordings, reports and digests are made of.

An :class:`Entry` is plain data: it can be written to a file as one line of JSON, and read again. A :class:`History`
collects the entries of one run from the events of a system. Floor 8.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal

import msgspec

from grami_actors.cell import CONNECTION
from grami_actors.guard import ROUTER
from grami_actors.messages import type_name
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
    DeadLetter,
    Event,
    InternalError,
    MessageHandled,
    Noted,
)

Stage = Literal["started", "failed", "restarted", "gave up", "paused", "suspended", "resumed", "stopped"]


class Entry(msgspec.Struct, tag_field="kind", omit_defaults=True, kw_only=True):
    """The base of all entries; ``kind`` on paper says which one it is.

    Attributes:
        at: seconds since the run began, on the clock of the system.
    """

    at: float


class Told(Entry, tag="message", kw_only=True):
    """A message was handled; ``at`` is when its handler ended.

    Attributes:
        sender: the actor or connection that sent it; empty from outside.
        to: the actor that handled it.
        type: what the message is called on the wire.
        data: its fields, as plain data.
        sent: when it was sent.
        taken: when its handler began.
        asked: whether the sender wants an answer.
        outcome: ``ok`` or an error code.
        result: the answer, as plain data.
        error: the text of the error.
        handed: whether the handler gave the request to another, who answered it.
        trace: what names the request it belongs to; empty outside any.
        span: what names this handling.
        cause: the same of the handling that sent it; empty from outside.
        steps: when its coroutine began, and went on after it had waited, in nanoseconds since it was taken; if somebody
            recorded it.
    """

    sender: str
    to: str
    type: str
    data: Any = None
    sent: float
    taken: float
    asked: bool = False
    outcome: str = "ok"
    result: Any = None
    error: str = ""
    handed: bool = False
    trace: str = ""
    span: str = ""
    cause: str = ""
    steps: tuple[int, ...] = ()


class Lost(Entry, tag="dead_letter", kw_only=True):
    """A message became a dead letter, for a reason."""

    sender: str
    to: str
    type: str
    data: Any = None
    reason: str


class Life(Entry, tag="life", kw_only=True):
    """An actor came to another stage of its life."""

    actor: str
    stage: Stage
    text: str = ""


class Injected(Entry, tag="fault", kw_only=True):
    """A fault was put in on purpose.

    Attributes:
        fault: ``crash``, ``drop``, ``delay``, ``duplicate``, ``reorder``, ``partition``, ``stall``, ``kill``, ``fill``
            or ``model``.
        names: whom it struck: one actor, or the sender and the receiver of a message.
        text: more about it, for people.
    """

    fault: str
    names: tuple[str, ...]
    text: str = ""


class Framed(Entry, tag="frame", kw_only=True):
    """A client sent or got a frame.

    Attributes:
        connection: the name of its connection.
        way: ``in`` from the client, ``out`` to it; ``auth`` when it is known who the client is.
        frame: its content, as plain data; ``None`` for what is no object. ``open`` has none, ``auth`` tells
            ``principal`` and ``scopes``, ``close`` ``code`` and ``reason``.
        encoding: how it was encoded: ``JSON`` or ``MessagePack``.
    """

    connection: str
    way: Literal["open", "auth", "in", "out", "close"]
    frame: Any = None
    encoding: str = "JSON"


class Wrote(Entry, tag="model", kw_only=True):
    """A language model answered; ``request`` is the canonical digest of what it was asked."""

    request: str
    prompt: Any
    pieces: tuple[str, ...] = ()
    outcome: str = "ok"
    error: str = ""


class Ran(Entry, tag="tool", kw_only=True):
    """A tool was called; ``request`` is the canonical digest of its name and arguments."""

    tool: str
    request: str
    arguments: Any
    outcome: str = "ok"
    result: Any = None
    error: str = ""


class Dice(Entry, tag="dice", kw_only=True):
    """An actor threw dice of its own for the first time; ``seed`` (in hexadecimal) throws them again."""

    actor: str
    seed: str


class Remark(Entry, tag="remark", kw_only=True):
    """A word of the script: a check, or what it does to the world. ``passed`` is ``None`` where nothing was checked."""

    who: str
    text: str
    passed: bool | None = None


AnyEntry = Told | Lost | Life | Injected | Framed | Wrote | Ran | Dice | Remark

SERVER = "growth manager"
"""Who failed where it was no actor."""

_STAGES: dict[type[Event], Stage] = {
    ActorStarted: "started",
    ActorFailed: "failed",
    ActorRestarted: "restarted",
    ActorGaveUp: "gave up",
    ActorPaused: "paused",
    ActorSuspended: "suspended",
    ActorResumed: "resumed",
    ActorStopped: "stopped",
}


def plain(value: Any) -> Any:
    """A value as plain data; what is none of its own becomes the name of its type, which is the same in every run."""
    try:
        return msgspec.to_builtins(value, enc_hook=named, str_keys=True, order="deterministic")
    except (TypeError, ValueError, RecursionError):  # keys that are no names, or a thing that contains itself
        return f"<{type(value).__qualname__}>"


def named(value: Any) -> Any:
    """What is no plain data, as something that is the same in every run: the name of its type."""
    if isinstance(value, BaseException):
        return f"<{type(value).__name__}: {value}>"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return vars(value)
    return f"<{type(value).__qualname__}>"


class History:
    """Collects what happens in one system, and makes entries of it when somebody wants to see them.

    Args:
        bus: of the system.
        clock: seconds; the system's.
        listener: called with each entry as it comes.
        keep: whether to keep the entries, too.

    Attributes:
        on_change: called, if set, whenever something happened; from the thread where it did.
    """

    def __init__(
        self,
        bus: Bus,
        clock: Callable[[], float],
        listener: Callable[[AnyEntry], object] | None = None,
        *,
        keep: bool = True,
    ) -> None:
        self.on_change: Callable[[], object] | None = None
        self._bus = bus
        self._clock = clock
        self._begun_at = clock()
        self._listener = listener
        self._keep = keep
        self._entries: list[AnyEntry] = []
        self._fresh: list[tuple[float, Any]] = []
        self.end = bus.subscribe(self._on_event, MessageHandled, DeadLetter, Noted, InternalError, *_STAGES)

    def now(self) -> float:
        """Seconds since the run began."""
        return self._clock() - self._begun_at

    @property
    def entries(self) -> list[AnyEntry]:
        """All that was kept so far, in the order in which it happened."""
        # Made when they are wanted: of a thousand simulated runs, that is one.
        fresh = self._fresh[:]  # threads add to it meanwhile
        self._entries.extend(_entry(what, at, self._begun_at) for at, what in fresh)
        del self._fresh[: len(fresh)]
        return self._entries

    def add(self, entry: AnyEntry) -> None:
        """Add an entry of whoever knows more than the system's events tell, to all histories of the system."""
        self._bus.publish(Noted(entry))

    def told(self) -> Iterator[Told]:
        """The messages that were handled, in the order in which their handlers ended."""
        return (entry for entry in self.entries if isinstance(entry, Told))

    def _on_event(self, event: Any) -> None:
        kind = type(event)
        # What the router and the connections are told repeats what clients and agents say, and may hold tokens.
        if kind is MessageHandled and _is_plumbing(event.actor):
            return
        if kind is DeadLetter and _is_plumbing(event.to):
            return
        at = self._clock() - self._begun_at
        self._note(at, msgspec.structs.replace(event.entry, at=at) if kind is Noted else event)

    def _note(self, at: float, what: Any) -> None:
        if self._listener is not None:
            what = _entry(what, at, self._begun_at)
            self._listener(what)
        if self._keep:
            self._fresh.append((at, what))
        if self.on_change is not None:
            self.on_change()


def _is_plumbing(actor: str) -> bool:
    return actor == ROUTER or actor.startswith(CONNECTION)


def _entry(what: Any, at: float, begun_at: float) -> AnyEntry:
    """An event as an entry; an entry as it is."""
    if isinstance(what, MessageHandled):
        return _told(what, at, begun_at)
    if isinstance(what, DeadLetter):
        return _lost(what, at)
    if isinstance(what, InternalError):  # its client is told the reference only, and a history has no log beside it
        cause = what.details.rstrip().rpartition("\n")[2]
        return Life(at=at, actor=SERVER, stage="failed", text=f"{cause} (internal error {what.error_ref})")
    if isinstance(what, Event):
        return Life(at=at, actor=what.actor, stage=_STAGES[type(what)], text=_text(what))  # type: ignore[attr-defined]
    return what  # type: ignore[no-any-return]


def _told(event: MessageHandled, now: float, begun_at: float) -> Told:
    # A thread may be held up between the end of its handler and here: then the event comes late.
    taken = event.taken_at - begun_at if event.taken_at else now - event.duration
    scope = event.scope
    return Told(
        at=now,
        sender=event.sender,
        to=event.actor,
        type=type_name(type(event.message)),
        data=plain(event.message),
        sent=taken - event.queue_wait,
        taken=taken,
        asked=event.asked,
        outcome=event.outcome,
        result=plain(event.result),
        error=event.error,
        handed=event.handed,
        trace="" if scope is None else scope.trace_id,
        span=event.span,
        cause=event.cause,
        steps=tuple(round((each - event.taken_at) * 1e9) for each in event.steps or ()),
    )


def _lost(event: DeadLetter, now: float) -> Lost:
    message = event.message
    return Lost(
        at=now,
        sender=event.sender,
        to=event.to,
        type=type_name(type(message)),
        data=plain(message),
        reason=event.reason,
    )


def _text(event: Any) -> str:
    if isinstance(event, ActorFailed):
        return event.error
    if isinstance(event, ActorRestarted):
        return f"restart {event.restarts}"
    if isinstance(event, ActorPaused):
        return f"for {event.seconds:g} s"
    return ""
