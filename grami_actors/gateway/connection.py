"""One client, as an actor: frames in, answers out. Floor 12.

The reader hands every frame to this actor's mailbox and never waits for an agent. The rules of the wire are
those of :class:`~grami_actors.protocol.ServerProtocol`; here its decisions become scopes, timers and bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import msgspec

from grami_actors.actor import Actor
from grami_actors.cell import Cell
from grami_actors.errors import (
    AgentExecutionFailed,
    AgentUnavailable,
    Cancelled,
    ErrorCode,
    GramiError,
    MailboxFull,
    ShuttingDown,
)
from grami_actors.frames import CLOSE_SLOW_CONSUMER, Limits
from grami_actors.future import begin, describe, details
from grami_actors.gateway.outbox import Outbox
from grami_actors.messages import Envelope, Scope
from grami_actors.protocol import Accepted, CancelRequest, Catalog, DescribeRequest, ServerProtocol
from grami_actors.ref import Ref
from grami_actors.restarts import RestartPolicy
from grami_actors.router import Forward
from grami_actors.telemetry import ConnectionAuthenticated, InternalError, RequestFinished

BACKLOG = 1_000
"""Events that may wait for a connection's actor before chunks and progress are dropped."""

FLUSH = 1.0
"""Seconds that the last answers get before a connection is closed for misuse."""


class Socket(Protocol):
    """What a connection needs of a WebSocket; the in-memory transport of a simulation has it too."""

    transport: asyncio.Transport

    async def send(self, message: bytes, text: bool | None = None) -> None:  # noqa: FBT001 - the library's signature
        """Send one text frame."""

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close with a code."""


class TextFrame(msgspec.Struct, frozen=True):
    """A text frame came."""

    text: str


class BinaryFrame(msgspec.Struct, frozen=True):
    """A binary frame came."""


class Drain(msgspec.Struct, frozen=True):
    """Take no new requests."""


class Shut(msgspec.Struct, frozen=True):
    """End the requests in flight with SHUTTING_DOWN, and close."""


class Leave(msgspec.Struct, frozen=True):
    """Close with 1001; sent to itself behind the last answers."""


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


class Gate(Protocol):
    """What all connections of a gateway share."""

    catalog: Catalog
    limits: Limits
    server: dict[str, str]
    router: Ref[Any]

    def admit(self) -> None:
        """Count one more request in flight. Raises MailboxFull (RESOURCE_EXHAUSTED) at the server's limit."""

    def leave(self) -> None:
        """Count one request less."""

    def error_ref(self) -> str:
        """A fresh reference that ties an answer to a log line."""


class Request(Scope):
    """One request: its scope, and where its answer, chunks and progress go: into the connection's mailbox."""

    def __init__(self, cell: Cell, key: int, deadline: float, trace_id: str | Callable[[], str]) -> None:
        super().__init__(deadline=deadline, trace_id=trace_id)
        self._cell = cell
        self._key = key
        self._once = [None]
        self._began = False
        self._dropped = 0

    def _post(self, message: Any) -> bool:
        try:
            # Answers are bounded by the requests in flight, chunks by the outbox: the mailbox takes them all.
            self._cell.post_always(Envelope(message))
        except AgentUnavailable:
            return False
        return True

    def _answer(self, value: Any, error: BaseException | None) -> bool:
        try:
            self._once.pop()  # atomic: of two answers that race, one wins
        except IndexError:
            return False
        return self._post(Answer(self._key, value, error, self._dropped))

    def set_result(self, value: Any) -> bool:
        """The request succeeded."""
        return self._answer(value, None)

    def fail(self, error: BaseException) -> bool:
        """The request failed."""
        return self._answer(None, error)

    def _end(self, reason: GramiError) -> None:
        self._answer(None, reason)

    def started(self, source: str) -> None:
        """An agent began to work; only the first is told."""
        if not self._began:
            self._began = True
            self._post(Began(self._key, source))

    def emit(self, data: Any) -> None:
        """An agent emitted a chunk; dropped and counted when the connection does not keep up."""
        if len(self._cell.mailbox) > BACKLOG:
            self._dropped += 1
        else:
            self._post(Piece(self._key, data))

    def progress(self, fraction: float, message: str) -> None:
        """An agent reported progress; left out when the connection does not keep up."""
        if len(self._cell.mailbox) <= BACKLOG:
            self._post(Advance(self._key, fraction, message))


class Connection(Actor):
    """The actor of one client. Its reader waits for room in the mailbox; answers are bounded by what was asked.

    Args:
        socket: where frames are written.
        gate: what all connections share.
    """

    mailbox = 16
    overflow = "wait"
    listed = False
    restart = RestartPolicy(intensity=0)  # its state is the socket's: a fault ends the connection

    def __init__(self, socket: Socket, gate: Gate) -> None:
        super().__init__()
        self._socket = socket
        self._gate = gate
        self._outbox = Outbox(gate.limits.outbox_bytes)
        self._protocol = ServerProtocol(self.name, gate.catalog, gate.limits, gate.server)
        self._work: dict[int, Request] = {}
        self._closing = False
        self._writing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.sent = 0
        self.closed_with = 0

    def on_start(self) -> None:
        """Say who it is."""
        bus = self._cell.runtime.bus
        if ConnectionAuthenticated in bus:
            bus.publish(ConnectionAuthenticated(self.name, self._protocol.principal))

    def _start(self, work: Any) -> None:
        task = begin(self._cell.runtime.loop, work)
        if not task.done():
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def on_receive(self, message: Any) -> None:
        """Take one event, then hand what it produced to the writer."""
        if self._closing and type(message) is TextFrame:
            return
        self._RECEIVERS[type(message)](self, message)
        frames = self._protocol.data_to_send()
        if self._closing:
            return
        now = self._cell.now()
        self._outbox.add(frames, now)
        if self._outbox.overflowed(self._protocol.held_bytes, now):
            self._close(CLOSE_SLOW_CONSUMER, "SLOW_CONSUMER: the answers were not read")
        elif self._protocol.close_code is not None:
            self._close(self._protocol.close_code, "")
        if frames and not self._writing:
            self._writing = True
            self._start(self._write())

    def _on_binary(self, _: BinaryFrame) -> None:
        self._protocol.receive_binary(self._cell.now())

    def _on_piece(self, piece: Piece) -> None:
        self._protocol.chunk(piece.key, piece.data, room=not self._outbox.congested())

    def _on_advance(self, advance: Advance) -> None:
        self._protocol.progress(advance.key, advance.fraction, advance.message, room=not self._outbox.congested())

    def _on_began(self, began: Began) -> None:
        self._protocol.started(began.key, began.source)

    # --- requests ---

    def _on_text(self, frame: TextFrame) -> None:
        action = self._protocol.receive_text(frame.text, self._cell.now())
        if isinstance(action, Accepted):
            self._forward(action)
        elif isinstance(action, CancelRequest):
            self._cancel(action.key)
        elif isinstance(action, DescribeRequest):
            self._describe(action)

    def _begin(self, key: int, timeout: float, trace_id: str = "") -> Request | None:
        """Make the scope of a request, and count it; ``None``, and an answer, if the server is full."""
        try:
            self._gate.admit()
        except MailboxFull as full:
            self._finish(key, None, full)
            return None
        runtime = self._cell.runtime
        self._work[key] = request = Request(self._cell, key, runtime.now() + timeout, trace_id or runtime.new_trace_id)
        runtime.deadlines.add(request, timeout)
        return request

    def _forward(self, accepted: Accepted) -> None:
        request = self._begin(accepted.key, accepted.timeout, accepted.trace_id)
        if request is None:
            return
        if accepted.stream:
            request.sink = request
        try:
            self._gate.router.tell(Forward(Envelope(accepted.message, request, self.name, request), accepted.to))
        except GramiError as closed:
            request.fail(closed)

    def _cancel(self, key: int) -> None:
        work = self._work.get(key)
        if work is not None:
            work.cancel(Cancelled("the client cancelled the request"))

    def _describe(self, action: DescribeRequest) -> None:
        request = self._begin(action.key, action.timeout)
        if request is None:
            return
        describe_all = self._gate.catalog.describe

        def work() -> None:
            try:
                request.set_result(describe_all())
            except BaseException as flaw:  # noqa: BLE001 - a lazy tool's module may even exit: it becomes the answer
                request.fail(flaw)

        # It may import tools, which may hang: a thread that nobody waits for, not even the end of the process.
        threading.Thread(target=work, name=f"{self.name} describe", daemon=True).start()

    def _on_answer(self, answer: Answer) -> None:
        work = self._work.pop(answer.key, None)
        if work is not None:
            self._gate.leave()
            work.close()
        self._protocol.drop(answer.key, answer.dropped)
        self._finish(answer.key, answer.value, answer.error)

    def _finish(self, key: int, value: Any, error: BaseException | None) -> None:
        now = self._cell.now()
        told = None if error is None else self._as_answer(error)
        slot = self._protocol.finish(key, value, told, now)
        bus = self._cell.runtime.bus
        if slot is not None and RequestFinished in bus:
            outcome = "ok" if told is None else told.error_code
            bus.publish(RequestFinished(self.name, slot.message_type, outcome, now - slot.begun_at))

    def _as_answer(self, error: BaseException) -> GramiError:
        """What a client is told about an exception: what an agent raised, but never a traceback."""
        if isinstance(error, GramiError):
            if error.error_code != ErrorCode.INTERNAL_ERROR:
                return error
            reference = self._gate.error_ref()
            bus = self._cell.runtime.bus
            if InternalError in bus:
                bus.publish(InternalError(reference, details(error)))
            return GramiError(f"an internal error happened; the server's log has it as {reference}")
        return AgentExecutionFailed(f"the agent failed: {describe(error)}")

    def _on_drain(self, _: Drain) -> None:
        self._protocol.draining = True

    def _on_shut(self, _: Shut) -> None:
        reason = ShuttingDown("the server shut down before the answer was ready; the outcome is unknown")
        for scope in tuple(self._work.values()):
            scope.cancel(reason)
        # The answers of those scopes are in the mailbox before this message.
        self._cell.post_always(Envelope(Leave()))

    def _on_leave(self, _: Leave) -> None:
        self._close(1001, "the server is shutting down")

    # --- the socket ---

    async def _write(self) -> None:
        # Begun when there is something to write, and usually done before it could sleep: no task waits for a quiet
        # connection, and an answer needs no turn of the loop to get from here to the socket.
        try:
            while (frame := self._outbox.next()) is not None:
                await self._socket.send(frame, text=True)
                self._outbox.written(frame, self._cell.now())
                self.sent += 1
        except Exception:  # noqa: BLE001 - the library's ConnectionClosed: the reader sees the same and ends us
            return
        finally:
            self._writing = False

    def _close(self, code: int, reason: str) -> None:
        if not self._closing:
            self._closing = True
            self.closed_with = code
            self._start(self._flush_and_close(code, reason))

    async def _flush_and_close(self, code: int, reason: str) -> None:
        if code != CLOSE_SLOW_CONSUMER:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FLUSH):
                    await self._outbox.drained()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH):
                await self._socket.close(code, reason)
                return
        # The close frame waits behind what is not read: a reader that never reads is cut off.
        self._socket.transport.abort()

    async def on_failure(self, *_: Any) -> None:
        """A fault of ours: the client is told with 1011, RFC 6455 section 7.4.1."""
        await self._socket.close(1011, "internal error")
        await self.on_stop()

    async def on_stop(self) -> None:
        """The client is gone: cancel what it asked for."""
        self._end_work()
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks))
        # Where the actor is stopped by somebody else the client is still there.
        await self._socket.close(1001, "the connection's actor was stopped")

    def _end_work(self) -> None:
        for scope in self._work.values():
            self._gate.leave()
            scope.cancel(Cancelled("the client disconnected"))
        self._work.clear()

    _RECEIVERS: ClassVar[dict[type, Callable[[Connection, Any], Any]]] = {
        TextFrame: _on_text,
        BinaryFrame: _on_binary,
        Answer: _on_answer,
        Piece: _on_piece,
        Advance: _on_advance,
        Began: _on_began,
        Drain: _on_drain,
        Shut: _on_shut,
        Leave: _on_leave,
    }
