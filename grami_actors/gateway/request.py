"""One request of a client, and what is told to the actor of its connection. Floor 12."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import msgspec

from grami_actors.cell import Cell
from grami_actors.encoding import Frame
from grami_actors.errors import AgentUnavailable, GramiError
from grami_actors.future import Interrupt
from grami_actors.messages import Envelope, Scope
from grami_actors.principals import Principal
from grami_actors.trace_context import Trace

BACKLOG = 1_000
"""Events that may wait for a connection's actor before chunks and progress are dropped."""


class Greet(msgspec.Struct, frozen=True):
    """The handshake said who it is, or that it is to go: the first message of its connection."""


class FrameCame(msgspec.Struct, frozen=True):
    """The client sent a frame."""

    frame: Frame


class Tick(msgspec.Struct, frozen=True):
    """Look at the clock: something is overdue."""


class Room(msgspec.Struct, frozen=True):
    """The client has read: there is room for what was held back."""


class Drain(msgspec.Struct, frozen=True):
    """Take no new requests, and close when there are none, but not before ``patience`` seconds.

    Attributes:
        reason: for the client.
        patience: seconds.
        limit: seconds after which it is closed in any case.
        jitter_ms: within how many milliseconds the client is asked to come back.
    """

    reason: str
    patience: float
    limit: float
    jitter_ms: int


class Shut(msgspec.Struct, frozen=True):
    """End the requests in flight with SHUTTING_DOWN, and close."""

    code: int
    reason: str


class Leave(msgspec.Struct, frozen=True):
    """Close, when the last request has its answer; ``last``: or when its answer is not read."""

    code: int
    reason: str
    last: bool = False


class Began(msgspec.Struct, frozen=True):
    """An agent began to work on a request."""

    key: int
    source: str


class Piece(msgspec.Struct, frozen=True):
    """An agent emitted a chunk."""

    key: int
    data: Any


class Advance(msgspec.Struct, frozen=True):
    """An agent reported progress."""

    key: int
    fraction: float
    message: str


class Answer(msgspec.Struct, frozen=True):
    """A request has its answer: a value, or an error."""

    key: int
    value: Any
    error: BaseException | None
    dropped: int = 0
    replayed: bool = False


class Desk(Protocol):
    """What a request needs of its gateway."""

    def leave(self, request: Request) -> None:
        """Count one request less. On the home loop."""


class Request(Scope):
    """One request: its scope, and where its answer, chunks and progress go: into the connection's mailbox.

    Args:
        cell: the connection's.
        key: what the connection's protocol calls it.
        deadline: seconds on the system's clock.
        trace: where it comes from.
        make_trace_id: if it comes from nowhere.

    Attributes:
        principal: whose request it is, in all that it causes.
        remote_parent: the span of the client that sent it.
        sampled: whether its spans are to be kept.
        tracestate: carried on as it is.
        envelope: the message, as it was sent to its agent.
        stream: whether the client reads chunks and progress.
        replayed: whether others had asked for the same before.
        lost: whether the client went away without an answer.
    """

    envelope: Envelope | None = None
    principal: Principal | None = None
    stream: bool = False
    replayed: bool = False
    lost: bool = False
    tracestate: str = ""
    _admitted: bool = True
    _began: bool = False
    _dropped: int = 0

    def __init__(
        self,
        cell: Cell,
        desk: Desk,
        key: int,
        deadline: float,
        trace: Trace,
        make_trace_id: Callable[[], str],
    ) -> None:
        super().__init__(deadline=deadline, trace_id=trace.trace_id or make_trace_id)
        if trace.trace_id:
            self.remote_parent = trace.parent
            self.sampled = trace.sampled
            self.tracestate = trace.state
        self.key = key
        self._cell = cell
        self._desk = desk
        self._once = [None]

    def after(self) -> Callable[[float, Callable[[], object]], object]:
        """What calls back on the home loop, after so many seconds; from any thread."""
        return self._cell.runtime.after

    @property
    def owns_work(self) -> bool:
        """Whether the work is under way, and ends with it; with an idempotency key others may wait for the same."""
        return bool(self._once) and self.envelope is not None and self.envelope.scope is self

    def release(self) -> None:
        """It is answered: it counts no more. On the home loop; twice is once."""
        if self._admitted:
            self._admitted = False
            self.close()
            self._desk.leave(self)

    def _post(self, message: Any) -> bool:
        try:
            # Answers are bounded by the requests in flight, chunks by the outbox: the mailbox takes them all.
            self._cell.post_always(Envelope(message))
        except AgentUnavailable:
            return False
        return True

    def answer(self, value: Any, error: BaseException | None, *, replayed: bool = False) -> bool:
        """End it; ``False`` if that was done before."""
        try:
            self._once.pop()  # atomic: of two answers that race, one wins
        except IndexError:
            return False
        if not self.lost and self._post(Answer(self.key, value, error, self._dropped, replayed)):
            return True
        # The client is gone, and with it the actor that would count it out.
        self._cell.runtime.after(0.0, self.release)
        return False

    def set_result(self, value: Any) -> bool:
        """The request succeeded."""
        return self.answer(value, None)

    def fail(self, error: BaseException) -> bool:
        """The request failed."""
        return self.answer(None, error)

    def _end(self, reason: GramiError) -> None:
        self.answer(None, reason)

    def started(self, source: str) -> None:
        """An agent began to work; only the first is told."""
        if not self._began:
            self._began = True
            self._post(Began(self.key, source))

    def emit(self, data: Any) -> None:
        """An agent emitted a chunk; dropped and counted when the connection does not keep up."""
        if len(self._cell.mailbox) > BACKLOG:
            self._dropped += 1
        else:
            self._post(Piece(self.key, data))

    def progress(self, fraction: float, message: str) -> None:
        """An agent reported progress; left out when the connection does not keep up."""
        if len(self._cell.mailbox) <= BACKLOG:
            self._post(Advance(self.key, fraction, message))


async def answered(work: Coroutine[Any, Any, Any], request: Request) -> None:
    """Answer a request with what a coroutine returns or raises; it ends with the request."""
    request.on_cancel(Interrupt())
    try:
        request.set_result(await work)
    except BaseException as error:  # noqa: BLE001 - whatever it is becomes the answer
        request.fail(error)


def spent(request: Request | None, now: float) -> tuple[str, float, float, Any]:
    """Who handled a request, how long it waited for that, how long that took, and its scope; all in seconds."""
    envelope = None if request is None else request.envelope
    if envelope is None or envelope.receiver is None or not envelope.taken_at:
        return "", 0.0, 0.0, request
    return envelope.receiver.name, envelope.taken_at - envelope.sent_at, now - envelope.taken_at, request
