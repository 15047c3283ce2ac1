"""What one connection owes its client: an answer for every request, in the order that its mode asks for. Floor 2.

Rule 1: every open request has exactly one :class:`Slot`, and ends with exactly one terminal frame; nothing follows it.
Rule 2: ``seq`` grows by one per frame of an id, from 1. What cannot be encoded leaves no gap.
Rule 3: without an id, answers go out in request order; they wait, encoded, for those before them.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import msgspec

from grami_actors.encoding import Encoding
from grami_actors.errors import RETRYABLE, ErrorCode, GramiError, describe
from grami_actors.frames import (
    Chunk,
    ErrorResponse,
    Header,
    PlainError,
    PlainSuccess,
    Progress,
    RequestId,
    Response,
    Started,
)

_CODES = frozenset(map(str, ErrorCode))


class Slot:
    """One request that has no terminal frame yet."""

    __slots__ = (
        "answer",
        "begun_at",
        "dropped",
        "id",
        "key",
        "message_type",
        "pending",
        "progress",
        "seq",
        "started",
        "stream",
    )

    def __init__(self, key: int, request_id: RequestId | msgspec.UnsetType, header: Header | None, now: float) -> None:
        self.key = key
        self.id = request_id
        self.stream = header is not None and header.stream and request_id is not msgspec.UNSET
        self.message_type = "" if header is None else header.type
        self.begun_at = now
        self.seq = 0
        self.progress = 0.0
        self.pending: str | None = None  # words of a progress that waits for room
        self.started = False
        self.dropped = 0
        self.answer: bytes | None = None


class Answers:
    """The requests of one connection that have no terminal frame yet, and the frames that wait to be sent.

    Args:
        encoding: of the frames.
        now: seconds on any clock; all other ``now`` are on the same.

    Attributes:
        held_bytes: plain refusals that wait for an earlier answer; they count like unsent output. Plain answers that
            wait count as requests in flight instead: whoever reads loses none.
    """

    def __init__(self, encoding: Encoding, now: float) -> None:
        self.held_bytes = 0
        self._active_at = now
        self._encoding = encoding
        self._encode = encoding.encode
        self._slots: dict[int, Slot] = {}
        self._by_id: dict[str | int, Slot] = {}
        self._plain: deque[Slot] = deque()
        self._out: list[bytes] = []
        self._last_key = 0

    def _open(self, header: Header, now: float) -> Slot:
        self._last_key += 1
        slot = Slot(self._last_key, header.id, header, now)
        self._slots[slot.key] = slot
        if header.id is msgspec.UNSET:
            self._plain.append(slot)
        else:
            self._by_id[header.id] = slot
        return slot

    def started(self, key: int, source: str) -> None:
        """An agent began to work on the request."""
        slot = self._slots.get(key)
        if slot is not None and slot.stream and not slot.started:
            slot.started = True
            self._add(slot, Started(slot.id, slot.seq + 1, source))  # type: ignore[arg-type]

    def chunk(self, key: int, data: Any, *, room: bool = True) -> None:
        """A part of the answer; counted instead of sent when there is no ``room``. Late ones are ignored."""
        slot = self._slots.get(key)
        if slot is None or not slot.stream:
            return
        if not room:
            slot.dropped += 1
            return
        self._tell_progress(slot)
        if not self._add(slot, Chunk(slot.id, slot.seq + 1, data)):  # type: ignore[arg-type]
            slot.dropped += 1

    def drop(self, key: int, count: int) -> None:
        """Count chunks that were dropped before they came here."""
        slot = self._slots.get(key)
        if slot is not None and slot.stream:
            slot.dropped += count

    def progress(self, key: int, fraction: float, message: str, *, room: bool = True) -> None:
        """How far the request is. Never falls, never leaves 0 to 1; without ``room`` only the last is told."""
        slot = self._slots.get(key)
        if slot is None or not slot.stream:
            return
        try:
            number, words = float(fraction), str(message)
        except Exception:  # noqa: BLE001 - an agent may report anything, with code of its own that fails
            return
        # A NaN compares false with everything, and would stay for ever.
        number = number if math.isfinite(number) else 0.0
        slot.progress = max(slot.progress, min(number, 1.0))
        slot.pending = words
        if room:
            self._tell_progress(slot)

    def relieve(self) -> None:
        """There is room again: tell the progress that waited for it."""
        for slot in self._slots.values():
            self._tell_progress(slot)

    def _tell_progress(self, slot: Slot) -> None:
        if slot.pending is not None:
            words, slot.pending = slot.pending, None
            self._add(slot, Progress(slot.id, slot.seq + 1, slot.progress, words))  # type: ignore[arg-type]

    def finish(
        self, key: int, value: Any, error: GramiError | None, now: float, *, replayed: bool = False
    ) -> Slot | None:
        """End a request with its one terminal frame; ``None`` if it was ended before."""
        slot = self._slots.pop(key, None)
        if slot is None:
            return None
        self._active_at = now  # nobody is idle who just got an answer
        if slot.id is not msgspec.UNSET:
            del self._by_id[slot.id]
        self._answer(slot, value, error, now, replayed=replayed)
        return slot

    def _answer_at_once(
        self, request_id: RequestId | msgspec.UnsetType, value: Any, error: GramiError | None, now: float
    ) -> None:
        """Answer a message that opens nothing; in plain mode in its turn."""
        slot = Slot(0, request_id, None, now)
        if request_id is msgspec.UNSET:
            self._plain.append(slot)
        self._answer(slot, value, error, now)

    def _answer(self, slot: Slot, value: Any, error: GramiError | None, now: float, *, replayed: bool = False) -> None:
        try:
            frame = self._encode(_terminal(slot, value, error, now, replayed=replayed))
        except Exception as flaw:  # noqa: BLE001 - an answer may bring code of its own that fails while it is encoded
            name = self._encoding.name
            unfit = f"the answer, a {type(value).__name__}, cannot be sent as {name}: {describe(flaw)}"
            told = error or GramiError(unfit, code=ErrorCode.AGENT_EXECUTION_FAILED)
            frame = self._encode(_terminal(slot, None, _sendable(told), now))
        if slot.id is not msgspec.UNSET:
            self._out.append(frame)
            return
        slot.answer = frame
        self.held_bytes += len(frame) if slot.key == 0 else 0
        while self._plain and (answer := self._plain[0].answer) is not None:
            self.held_bytes -= len(answer) if self._plain.popleft().key == 0 else 0
            self._out.append(answer)

    def _add(self, slot: Slot, frame: Any) -> bool:
        """Send a frame before the terminal; ``False``, and no gap in ``seq``, if it cannot be encoded."""
        try:
            self._out.append(self._encode(frame))
        except Exception:  # noqa: BLE001 - an agent may emit anything, with code of its own that fails
            return False
        slot.seq += 1
        return True

    def data_to_send(self) -> list[bytes]:
        """The frames to send now, in order; they are handed over once."""
        out, self._out = self._out, []
        return out

    @property
    def inflight(self) -> tuple[int, ...]:
        """The keys of the requests that have no terminal frame yet."""
        return tuple(self._slots)


def _sendable(error: GramiError) -> GramiError:
    """The same error in words that are surely text: a lone surrogate, say, has no UTF-8."""
    words = error.message.encode("utf-8", "replace").decode()
    return GramiError(words, code=error.error_code, retry_after_ms=error.retry_after_ms)


def _code(error: GramiError) -> str:
    """The code that is sent; one that a handler made up is not in the protocol's list."""
    return error.error_code if error.error_code in _CODES else ErrorCode.AGENT_EXECUTION_FAILED


def _terminal(slot: Slot, value: Any, error: GramiError | None, now: float, *, replayed: bool = False) -> Any:
    if slot.id is msgspec.UNSET:
        return PlainSuccess(value) if error is None else PlainError(_code(error), error.message)
    duration = max(0, round((now - slot.begun_at) * 1000))
    if error is None:
        return Response(slot.id, slot.seq + 1, "success", value, duration, slot.dropped, replayed)
    return ErrorResponse(
        id=slot.id,
        seq=slot.seq + 1,
        status="error",
        error_code=_code(error),
        message=error.message,
        retryable=_code(error) in RETRYABLE,
        duration_ms=duration,
        retry_after_ms=msgspec.UNSET if error.retry_after_ms is None else error.retry_after_ms,
        param=msgspec.UNSET if error.param is None else error.param,
        replayed=replayed or msgspec.UNSET,
    )
