"""One client, as an actor: frames in, answers out. Floor 12.

The reader hands every frame to this actor's mailbox and never waits for an agent. The rules of the wire are
those of :class:`~grami_actors.protocol.ServerProtocol`; here its decisions become scopes, timers and bytes.

A client that does not read: past the bound of its outbox chunks are dropped, only the last progress is kept, answers
and events wait unencoded (their requests are still in flight), and nothing more is read from it. When it then takes
nothing for :data:`STALL` seconds, what waits is answered with SLOW_CONSUMER and the connection is closed with 4508.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from grami_actors.answers import Slot
from grami_actors.errors import (
    AgentExecutionFailed,
    AgentUnavailable,
    Cancelled,
    ErrorCode,
    GramiError,
    LimitReached,
    ShuttingDown,
    describe,
)
from grami_actors.frames import CLOSE_CONNECTION_LIMIT, CLOSE_RESTART, CLOSE_SLOW_CONSUMER
from grami_actors.gateway.attachments import Attachments, Moved, Page
from grami_actors.gateway.feed import HISTORY_BYTES, Entry, Missed
from grami_actors.gateway.house import Guest, House, Socket
from grami_actors.gateway.replays import Work, fingerprint
from grami_actors.gateway.request import (
    Advance,
    Answer,
    Began,
    Drain,
    FrameCame,
    Greet,
    Leave,
    Piece,
    Request,
    Room,
    Shut,
    Tick,
    answered,
    spent,
)
from grami_actors.gateway.writing import FLUSH, Writing
from grami_actors.messages import Envelope
from grami_actors.principals import ANONYMOUS, Principal
from grami_actors.protocol import Accepted, Authenticated, CancelRequest, Control, ServerProtocol
from grami_actors.restarts import RestartPolicy
from grami_actors.router import Forward
from grami_actors.telemetry import ConnectionAuthenticated, FramePassed, LimitHit, RequestFinished
from grami_actors.trace_context import Trace

STALL = 2.0
"""Seconds without a frame taken after which a reader with too much to read is slow: a burst alone proves nothing."""

MOST_HELD = 2 * HISTORY_BYTES
"""Bytes of events that may be held back for a slow reader; all that wait for an event share it."""


class Connection(Writing):
    """The actor of one client.

    Args:
        socket: where frames are written.
        house: what all connections share.
        guest: who it is.
    """

    mailbox = 16
    overflow = "wait"
    listed = False
    restart = RestartPolicy(intensity=0)  # its state is the socket's: a fault ends the connection

    def __init__(self, socket: Socket, house: House, guest: Guest) -> None:
        super().__init__(socket, guest, house.setting.limits.outbox_bytes)
        self.opened_at = now = self._now()
        self.protocol = ServerProtocol(self.name, house.setting, now, guest.encoding, guest.principal)
        self.attachments = Attachments(self._cell, self, house.watch, guest.encoding)
        self.received = 0
        self.counted_for = ""
        self._house = house
        self._requests: dict[int, Request] = {}
        self._held: deque[Answer | Entry] = deque()
        self._held_bytes = 0
        self._leaving: Leave | None = None
        # A message, and not on_start: without a hook there is no task for the start.
        self._cell.mailbox.put_first(Envelope(Greet()))

    def _on_greet(self, _: Greet) -> None:
        if self.guest.refused is not None:
            self.protocol.close(*self.guest.refused)
        elif self.protocol.principal is not None:
            self._welcome(self.protocol.principal)

    def _welcome(self, principal: Principal) -> None:
        try:
            self._house.authenticated(self, principal)
        except LimitReached as full:
            self.protocol.close(CLOSE_CONNECTION_LIMIT, full.message)
            return
        if ConnectionAuthenticated in (bus := self._cell.runtime.bus):
            bus.publish(ConnectionAuthenticated(self.name, principal.name, principal.scopes))

    def on_receive(self, message: Any) -> None:
        """Take one event, then hand what it produced to the writer."""
        if self._closing and type(message) is FrameCame:
            return
        self._RECEIVERS[type(message)](self, message)
        self._flush()

    def _flush(self) -> None:
        self.hand_over()
        if self._closing:
            return
        if (self.outbox.size or self.protocol.held_bytes) and self._too_slow(self._now()):
            self._give_up()
        elif self.protocol.close_code is not None:
            self.close(self.protocol.close_code, self.protocol.close_reason)

    def hand_over(self) -> None:
        """Hand to the writer what the protocol has to send."""
        frames = self.protocol.data_to_send()
        if frames and not self._closing:
            self.outbox.add(frames, self._now())
            if not self._writing:
                self._write()

    def _too_slow(self, now: float) -> bool:
        outbox = self.outbox
        return (
            (outbox.congested and outbox.stalled(now) > STALL)
            or outbox.age(now) > self._house.setting.limits.outbox_seconds
            or self.protocol.held_bytes > 2 * self._house.setting.limits.outbox_bytes
            or self._held_bytes > MOST_HELD
        )

    # --- what is looked at from outside, without a message ---

    def overdue(self, now: float) -> bool:
        """Whether a :class:`Tick` would do something."""
        return self.protocol.overdue(now) or self._too_slow(now)

    @property
    def congested(self) -> bool:
        """Whether the client does not read what it is sent: nothing more is to be read from it."""
        return not self._closing and self.outbox.congested

    # --- frames ---

    def _on_frame(self, came: FrameCame) -> None:
        self.received += 1
        if FramePassed in (bus := self._cell.runtime.bus):
            bus.publish(FramePassed(self.name, "in", came.frame, self.guest.encoding))
        action = self.protocol.receive(came.frame, self._now())
        if isinstance(action, Accepted):
            self._forward(action)
        elif action is None:
            if self.protocol.refusals:
                self._report_refusals()
        elif isinstance(action, CancelRequest):
            if (request := self._requests.get(action.key)) is not None:
                request.cancel(Cancelled("the client cancelled the request"))
        elif isinstance(action, Control):
            self._control(action)
        else:
            self._on_authenticated(action)

    def _report_refusals(self) -> None:
        bus = self._cell.runtime.bus
        for code, limit in self.protocol.refusals:
            if limit and LimitHit in bus:
                bus.publish(LimitHit(limit, self._who()))
            if RequestFinished in bus:
                bus.publish(RequestFinished(self.name, "", code, 0.0, self._who()))
        self.protocol.refusals.clear()

    def _who(self) -> str:
        principal = self.protocol.principal
        return "" if principal is None else principal.name

    def _on_authenticated(self, action: Authenticated) -> None:
        for topic in action.lost:
            self._house.feed.unsubscribe(topic, self._cell)
        self._welcome(action.principal)

    # --- requests ---

    def _begin(self, asked: Accepted | Control, trace: Trace, *, stream: bool) -> tuple[Request, Request | Work] | None:
        """Make the scope of a request, and count it; with what is to be done for it, which others may wait for too.

        ``None`` if nothing is to be done: it is refused, or its idempotency key stands for something that was.
        """
        place = digest = found = None
        try:
            if asked.idempotency_key is not None:
                who = self.protocol.principal or ANONYMOUS
                place, digest = (who.name, who.scopes, asked.idempotency_key), fingerprint(asked)
                found = self._house.replays.find(place, digest)
            self._house.admit()
        except GramiError as refused:
            bus = self._cell.runtime.bus
            if isinstance(refused, LimitReached) and LimitHit in bus:
                bus.publish(LimitHit(refused.limit, self._who()))
            self._finish(asked.key, None, refused)
            return None
        request = self._open(asked, trace, stream=stream)
        if place is None or digest is None:
            return request, request
        if found is not None:
            found.join(request, replayed=True)
            return None
        try:
            work = self._house.replays.begin(place, digest, request)
        except GramiError as refused:
            request.fail(refused)
            return None
        work.join(request, replayed=False)
        self._cell.runtime.deadlines.add(work, asked.timeout)
        return request, work

    def _open(self, asked: Accepted | Control, trace: Trace, *, stream: bool) -> Request:
        runtime = self._cell.runtime
        deadline = runtime.now() + asked.timeout
        request = Request(self._cell, self._house, asked.key, deadline, trace, runtime.new_trace_id)
        request.principal = self.protocol.principal
        if stream:
            request.stream = True
            request.sink = request
        self._requests[asked.key] = request
        runtime.deadlines.add(request, asked.timeout)
        return request

    def _forward(self, accepted: Accepted) -> None:
        begun = self._begin(accepted, accepted.trace, stream=accepted.stream)
        if begun is None:
            return
        request, work = begun
        request.envelope = Envelope(accepted.message, work, self.name, work, self._now())
        try:
            self._house.router.tell(Forward(request.envelope, accepted.to))
        except GramiError as closed:
            work.fail(closed)

    def _control(self, control: Control) -> None:
        begun = self._begin(control, Trace(), stream=False)
        if begun is None:
            return
        request, work = begun
        try:
            doing = self._house.control(self, control, work)
        except GramiError as refused:
            work.fail(refused)
            return
        if doing is not None:
            self.start_task(answered(doing, request))

    def _on_began(self, began: Began) -> None:
        self.protocol.started(began.key, began.source)

    def _has_room(self) -> bool:
        """Whether there is room for more; if there is not, :class:`Room` will come."""
        if self._held or self.outbox.congested:
            self._crowded = True
            return False
        return True

    def ready(self) -> bool:
        """Whether it goes on, and there is room."""
        return not self._closing and self._has_room()

    def _on_piece(self, piece: Piece) -> None:
        self.protocol.chunk(piece.key, piece.data, room=self._has_room())

    def _on_advance(self, advance: Advance) -> None:
        self.protocol.progress(advance.key, advance.fraction, advance.message, room=self._has_room())

    def _on_answer(self, answer: Answer) -> None:
        if self._has_room():
            self._tell_answer(answer)
        else:
            self._held.append(answer)

    def _on_event(self, entry: Entry) -> None:
        if self._has_room():
            self._push(entry)
        else:
            self._hold((entry,))

    def _hold(self, entries: Sequence[Entry]) -> None:
        self._held.extend(entries)
        self._held_bytes += sum(len(entry.frame) for entry in entries)

    def _push(self, entry: Entry) -> None:
        if frame := entry.encoded(self.guest.encoding):
            self.protocol.push(frame)

    def _on_missed(self, missed: Missed) -> None:
        self._hold(missed.entries)
        self._on_room(Room())

    def _on_room(self, _: Room) -> None:
        self.protocol.relieve()
        self.hand_over()
        while self._held and not self.outbox.congested:
            held = self._held.popleft()
            if isinstance(held, Entry):
                self._held_bytes -= len(held.frame)
                self._push(held)
            else:
                self._tell_answer(held)
            self.hand_over()
        self._crowded = bool(self._held)
        if not self._held:
            self.attachments.on_room()

    def _tell_answer(self, answer: Answer) -> None:
        self.protocol.drop(answer.key, answer.dropped)
        self._finish(answer.key, answer.value, answer.error, replayed=answer.replayed)

    def _finish(self, key: int, value: Any, error: BaseException | None, *, replayed: bool = False) -> None:
        now = self._now()
        told = None if error is None else self._as_answer(error)
        slot = self.protocol.finish(key, value, told, now, replayed=replayed)
        request = self._requests.pop(key, None)
        self._report(slot, request, "ok" if told is None else told.error_code)
        if request is not None:
            request.release()
        if self._leaving is not None and not self._requests:
            self.protocol.close(self._leaving.code, self._leaving.reason)

    def _report(self, slot: Slot | None, request: Request | None, outcome: str) -> None:
        bus, now = self._cell.runtime.bus, self._now()  # another now: the answer took time to encode
        if slot is not None and RequestFinished in bus:
            took = now - slot.begun_at
            bus.publish(RequestFinished(self.name, slot.message_type, outcome, took, self._who(), *spent(request, now)))

    def _as_answer(self, error: BaseException) -> GramiError:
        """What a client is told about an exception: what an agent raised, but never a traceback."""
        if isinstance(error, GramiError):
            if error.error_code != ErrorCode.INTERNAL_ERROR:
                return error
            return GramiError(self._house.fault(error))
        return AgentExecutionFailed(f"the agent failed: {describe(error)}")

    def _on_moved(self, moved: Moved) -> None:
        self.attachments.on_moved(moved)

    def _on_page(self, page: Page) -> None:
        self.attachments.on_page(page)

    # --- its end ---

    def _on_tick(self, _: Tick) -> None:
        self.protocol.tick(self._now())

    def _give_up(self) -> None:
        """The client does not read."""
        slow = GramiError("the answers before this one were not read", code=ErrorCode.SLOW_CONSUMER)
        held, self._held = self._held, deque()
        for each in held:
            if isinstance(each, Answer):
                self._finish(each.key, None, slow)
        self.hand_over()
        self.close(CLOSE_SLOW_CONSUMER, "SLOW_CONSUMER: the answers were not read")

    def _on_drain(self, drain: Drain) -> None:
        self.protocol.goaway(drain.reason, drain.limit, drain.jitter_ms)
        self._cell.runtime.after(drain.patience, self._leave_when_idle)

    def _leave_when_idle(self, *, last: bool = False) -> None:
        with contextlib.suppress(AgentUnavailable):  # it left by itself
            self._cell.post_always(Envelope(Leave(CLOSE_RESTART, "the server is restarting", last)))

    def _on_leave(self, leave: Leave) -> None:
        self._leaving = leave
        if not self._requests:
            self.protocol.close(leave.code, leave.reason)
        elif leave.last:
            self._give_up()

    def _on_shut(self, shut: Shut) -> None:
        self.protocol.draining = True
        for request in tuple(self._requests.values()):
            request.cancel(ShuttingDown("the server shut down before the answer was ready; the outcome is unknown"))
        # The answers of those requests are in the mailbox before this message.
        self._cell.post_always(Envelope(Leave(shut.code, shut.reason)))
        self._cell.runtime.after(FLUSH, lambda: self._leave_when_idle(last=True))

    async def on_failure(self, *_: Any) -> None:
        """A fault of ours: the client is told with 1011, RFC 6455 section 7.4.1."""
        await self._socket.close(1011, "internal error")
        await self.on_stop()

    async def on_stop(self) -> None:
        """The client is gone: cancel what it asked for, soon or after a while."""
        self._closing = True
        self._house.feed.forget(self._cell)
        self.attachments.close()
        self._abandon()
        self.outbox.give_up()
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks))
        # Where the actor is stopped by somebody else the client is still there.
        await self._socket.close(1001, "the connection's actor was stopped")

    def _abandon(self) -> None:
        requests, self._requests = self._requests, {}
        gone = Cancelled("the client disconnected")
        for request in requests.values():
            self._report(self.protocol.finish(request.key, None, gone, self._now()), request, gone.error_code)
            request.lost = True
            if request.stream and request.owns_work and self._house.stream_grace:
                self._house.orphan(request)
            else:
                request.cancel(gone)
                request.release()

    _RECEIVERS: ClassVar[dict[type, Callable[[Connection, Any], Any]]] = {
        Greet: _on_greet,
        FrameCame: _on_frame,
        Answer: _on_answer,
        Piece: _on_piece,
        Advance: _on_advance,
        Began: _on_began,
        Entry: _on_event,
        Missed: _on_missed,
        Room: _on_room,
        Moved: _on_moved,
        Page: _on_page,
        Tick: _on_tick,
        Drain: _on_drain,
        Leave: _on_leave,
        Shut: _on_shut,
    }
