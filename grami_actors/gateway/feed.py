"""What is published to topics, for clients: numbered, and kept for those that come back. Floor 12.

One sequence for all topics: an event has an offset within the *epoch* of this server's run, and a client that knows the
last one it saw gets all that it missed, or is told that it cannot. Nothing is kept before the first client subscribes.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable

import msgspec

from grami_actors.cell import Cell
from grami_actors.encoding import JSON, Encoding
from grami_actors.errors import AgentUnavailable, ErrorCode, ProtocolError
from grami_actors.frames import Event, Position
from grami_actors.messages import Envelope
from grami_actors.telemetry import Bus, Published
from grami_actors.topics import Topics

HISTORY_BYTES = 1 << 26
"""Bytes of events that are kept at most, however many they are."""


class Entry:
    """One event, encoded once for all who hear it."""

    __slots__ = ("_others", "frame", "offset", "topic")

    def __init__(self, topic: str, offset: int, frame: bytes) -> None:
        self.topic = topic
        self.offset = offset
        self.frame = frame
        self._others: dict[Encoding, bytes] = {}

    def encoded(self, encoding: Encoding) -> bytes:
        """The frame in an encoding; empty if that has no words for it, as MessagePack for numbers above 64 bits."""
        if encoding is JSON:
            return self.frame
        if encoding not in self._others:
            try:
                self._others[encoding] = encoding.encode(JSON.decode(self.frame, type=Event))
            except (ValueError, OverflowError, RecursionError):
                self._others[encoding] = b""
        return self._others[encoding]


class Missed(msgspec.Struct, frozen=True):
    """What a client that came back has missed; it follows the answer to its ``subscribe``."""

    entries: list[Entry]


class Subscribed(msgspec.Struct, frozen=True):
    """The answer to ``subscribe``; what was missed follows as events, before all later ones.

    Attributes:
        topic: the pattern.
        epoch: names this run of the server.
        offset: of the last event of any topic.
        recovered: whether no event is missing; ``None`` where nothing was to be recovered.
    """

    topic: str
    epoch: str
    offset: int
    recovered: bool | None = None


class Feed:
    """The events of one server.

    Args:
        bus: where publishing is told.
        epoch: names this run.
        history: events that are kept.
    """

    def __init__(self, bus: Bus, epoch: str, history: int) -> None:
        self._bus = bus
        self._epoch = epoch
        self._most = history
        self._lock = threading.Lock()
        self._hearers: Topics[Cell] = Topics()
        self._history: deque[Entry] = deque()
        self._size = 0
        self._offset = 0
        self._unsubscribe: Callable[[], None] | None = None

    def subscribe(
        self, pattern: str, cell: Cell, recover: Position | None, answer: Callable[[Subscribed], object]
    ) -> None:
        """Let a connection hear a pattern from now on.

        In its mailbox come, in this order: what it heard before by other patterns, what ``answer`` puts there, what it
        missed since ``recover``, and what is published from now on.

        Raises:
            ProtocolError: VALIDATION_FAILED: this is no pattern; UNRECOVERABLE_POSITION: there was no such event yet.
                Nothing has changed.
        """
        matching: Topics[None] = Topics()
        try:
            matching.subscribe(pattern, None)
        except ValueError as error:
            raise ProtocolError(str(error), code=ErrorCode.VALIDATION_FAILED, param="$.topic") from None
        if self._unsubscribe is None:
            self._unsubscribe = self._bus.subscribe(self._on_published, Published)
        with self._lock:
            missed = None if recover is None else self._since(recover, matching)
            self._hearers.subscribe(pattern, cell)
            recovered = None if recover is None else missed is not None
            answer(Subscribed(pattern, self._epoch, self._offset, recovered))
            if missed:
                self._tell(cell, Missed(missed))

    def _since(self, position: Position, matching: Topics[None]) -> list[Entry] | None:
        """What a client that is at a position has missed; ``None`` if that is not known any more."""
        if position.epoch != self._epoch:
            return None
        if position.offset > self._offset:
            raise ProtocolError(
                f"the last event has the offset {self._offset}: {position.offset} is still to come",
                code=ErrorCode.UNRECOVERABLE_POSITION,
                param="$.recover.offset",
            )
        if position.offset < self._offset - len(self._history):
            return None
        return [entry for entry in self._history if entry.offset > position.offset and matching.match(entry.topic)]

    def unsubscribe(self, pattern: str, cell: Cell) -> None:
        """Take one subscription back."""
        self._hearers.unsubscribe(pattern, cell)

    def forget(self, cell: Cell) -> None:
        """A connection is gone."""
        self._hearers.remove(cell)

    def _on_published(self, event: Published) -> None:
        # In the publisher's thread.
        try:
            data = msgspec.Raw(JSON.encode(event.message))
        except Exception:  # noqa: BLE001 - an agent may publish what only agents understand
            return
        with self._lock:  # so that the order of offsets is the order in every mailbox
            self._offset += 1
            entry = Entry(event.topic, self._offset, JSON.encode(Event(event.topic, self._epoch, self._offset, data)))
            self._keep(entry)
            for cell in self._hearers.match(event.topic):
                self._tell(cell, entry)

    @staticmethod
    def _tell(cell: Cell, told: Entry | Missed) -> None:
        with contextlib.suppress(AgentUnavailable):  # it is closing, and forgotten in a moment
            cell.post_always(Envelope(told))

    def _keep(self, entry: Entry) -> None:
        self._history.append(entry)
        self._size += len(entry.frame)
        while len(self._history) > self._most or self._size > HISTORY_BYTES:
            self._size -= len(self._history.popleft().frame)

    def close(self) -> None:
        """Publishing is nothing to it any more."""
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
