"""Requests that may be sent twice and are done once: idempotency keys. Floor 12.

The work belongs to its key, not to a connection: whoever sends the key again waits for the same work, or gets the same
result, on any connection of the same principal.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from grami_actors.encoding import JSON, MSGPACK
from grami_actors.errors import RETRYABLE, Cancelled, ErrorCode, GramiError, LimitReached, ProtocolError
from grami_actors.gateway.request import Request
from grami_actors.messages import Scope, new_span_id
from grami_actors.protocol import Accepted, Control

KEPT = 300.0
"""Seconds that a result is kept for whoever sends its key again."""

MOST = 10_000
"""Results that are kept; the oldest go first."""

MOST_BYTES = 1 << 26
"""Bytes of results that are kept, all together."""

Place = tuple[str, frozenset[str], str]
"""Whose key, with which rights, and the key: what one may ask for is not another's to see."""


class Work(Scope):
    """What is done for one key: the scope of it, the requests that wait for it, and then its result.

    Args:
        first: the request that began it; the work has its deadline, principal and trace.
        digest: of what was asked for.
        grace: seconds that it goes on when nobody waits any more because they lost their connections.
        clock: seconds.
        place: of its key.
        settled: where it is put when it has its result; from any thread.
    """

    def __init__(
        self,
        first: Request,
        digest: bytes,
        grace: float,
        clock: Callable[[], float],
        place: Place,
        settled: deque[Work],
    ) -> None:
        super().__init__(deadline=first.deadline, trace_id=first.trace_id)
        self.span = vars(first).setdefault("span", new_span_id())
        self.principal = first.principal
        self.remote_parent = first.remote_parent
        self.sampled = first.sampled
        self.tracestate = first.tracestate
        self.sink = self
        self.digest = digest
        self.outcome: tuple[Any, BaseException | None] | None = None
        self.ended_at = 0.0
        self.size = 0
        self.counted = False
        self.place = place
        self._settled = settled
        self._grace = grace
        self._clock = clock
        self._after = first.after()  # and nothing else of the first, which would keep its connection for minutes
        self._departures = 0
        self._guard = threading.Lock()
        self._waiting: list[Request] = []

    def join(self, request: Request, *, replayed: bool) -> None:
        """Have one more request wait for it; at once, if it is done."""
        with self._guard:
            if self.outcome is None:
                self._waiting.append(request)
                request.replayed = replayed
        if self.outcome is not None:
            request.answer(*self.outcome, replayed=replayed)
        else:
            request.on_cancel(lambda _: self._leave_it(request))

    def _leave_it(self, request: Request) -> None:
        with self._guard:
            if request in self._waiting:
                self._waiting.remove(request)
            alone = not self._waiting
            self._departures = departures = self._departures + 1
        if alone and self.outcome is None:
            if request.lost:
                self._after(self._grace, lambda: self._nobody_came_back(departures))
            else:
                self.cancel(request.reason)

    def _nobody_came_back(self, departures: int) -> None:
        if not self._waiting and departures == self._departures:  # whoever left later has a grace of its own
            self.cancel(Cancelled("the client disconnected"))

    def _settle(self, value: Any, error: BaseException | None) -> bool:
        with self._guard:
            if self.outcome is not None:
                return False
            self.ended_at = self._clock()  # first: who sees the outcome looks how old it is
            self.outcome = value, error
            waiting, self._waiting = self._waiting, []
        for request in waiting:
            request.answer(value, error, replayed=request.replayed)
        self.size = _size(value)
        self._settled.append(self)
        self.close()
        return True

    def set_result(self, value: Any) -> bool:
        """The work succeeded."""
        return self._settle(value, None)

    def fail(self, error: BaseException) -> bool:
        """The work failed."""
        return self._settle(None, error)

    def _end(self, reason: GramiError) -> None:
        self._settle(None, reason)

    def started(self, source: str) -> None:
        """An agent began to work."""
        for request in self._reading():
            request.started(source)

    def emit(self, data: Any) -> None:
        """An agent emitted a chunk."""
        for request in self._reading():
            request.emit(data)

    def progress(self, fraction: float, message: str) -> None:
        """An agent reported progress."""
        for request in self._reading():
            request.progress(fraction, message)

    def _reading(self) -> list[Request]:
        return [request for request in tuple(self._waiting) if request.stream]


class Replays:
    """The keys that were used within the last five minutes. On the home loop.

    Args:
        clock: seconds.
        grace: see :class:`Work`.
    """

    def __init__(self, clock: Callable[[], float], grace: float) -> None:
        self._clock = clock
        self._grace = grace
        self._works: dict[Place, Work] = {}
        self._bytes = 0
        self._settled: deque[Work] = deque()  # from any thread

    def find(self, place: Place, digest: bytes) -> Work | None:
        """The work that a key stands for, if it was used.

        Raises:
            ProtocolError: IDEMPOTENCY_KEY_REUSED: something else was asked for with it.
        """
        work = self._works.get(place)
        if work is None or self._stale(work):
            return None
        if work.digest != digest:
            raise ProtocolError(
                "this idempotency_key was used for another request; take a new one",
                code=ErrorCode.IDEMPOTENCY_KEY_REUSED,
                param="$.idempotency_key",
            )
        return work

    def _forget(self, place: Place) -> None:
        work = self._works.pop(place, None)
        if work is not None and work.counted:
            self._bytes -= work.size

    def begin(self, place: Place, digest: bytes, first: Request) -> Work:
        """Begin the work of a new key.

        Raises:
            LimitReached: RESOURCE_EXHAUSTED: all keys that are kept are at work.
        """
        self._make_room()
        self._forget(place)
        self._works[place] = work = Work(first, digest, self._grace, self._clock, place, self._settled)
        return work

    def _stale(self, work: Work) -> bool:
        if work.outcome is None:
            return False
        error = work.outcome[1]
        code = getattr(error, "error_code", "")
        # What may succeed the next time is done the next time.
        forgotten = error is not None and (code in RETRYABLE or code == ErrorCode.CANCELLED)
        return forgotten or self._clock() - work.ended_at > KEPT

    def _make_room(self) -> None:
        while self._settled:
            work = self._settled.popleft()
            if self._works.get(work.place) is work:
                work.counted = True
                self._bytes += work.size
        while self._works and self._stale(self._works[oldest := next(iter(self._works))]):
            self._forget(oldest)
        if len(self._works) >= MOST or self._bytes > MOST_BYTES:
            self._evict()

    def _evict(self) -> None:
        """Forget results, the oldest first, and some more than needed: looking for them takes time."""
        for place, work in tuple(self._works.items()):
            if len(self._works) < 0.9 * MOST and self._bytes < 0.9 * MOST_BYTES:
                return
            if work.counted:
                self._forget(place)
        if len(self._works) >= MOST:
            text = f"{MOST} requests with an idempotency_key are at work; try again later"
            raise LimitReached(text, code=ErrorCode.RESOURCE_EXHAUSTED, limit="replays", retry_after_ms=1000)


def _size(value: Any) -> int:
    """About how many bytes a result takes; one that cannot be sent is not what is kept."""
    try:
        return len(JSON.encode(value))
    except Exception:  # noqa: BLE001 - an answer may bring code of its own that fails while it is encoded
        return 0


def fingerprint(asked: Accepted | Control) -> bytes:
    """What was asked for, whatever the order of its fields and the encoding."""
    if isinstance(asked, Control):
        what: tuple[str, str, Any] = (asked.kind, "", asked.fields)
    else:
        what = (type(asked.message).__name__, asked.to, asked.message)
    try:
        text = JSON.encode_deterministically(what)
    except (TypeError, ValueError):  # what only MessagePack has words for has come in MessagePack
        text = MSGPACK.encode(what)
    return hashlib.sha256(text).digest()
