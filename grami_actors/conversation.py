"""The client's side of one connection, without any socket: which frame answers which request. Floor 2.

The counterpart of :class:`~grami_actors.protocol.ServerProtocol`. The owner sends what the methods return, and hands in
what comes; frames go to the inbox of their request, events to the inboxes of their subscriptions, and events of jobs to
whoever follows them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import msgspec

from grami_actors.encoding import JSON, Encoding
from grami_actors.errors import ErrorCode, GramiError, ProtocolError, error_from_code
from grami_actors.frames import PROTOCOL_VERSION, Delay, Position
from grami_actors.topics import Topics

HELLO = "hello"
"""The id of the client's own ``hello`` and ``auth``; those of requests are numbers."""


class Frame(msgspec.Struct, omit_defaults=True):
    """A frame from the server (docs/protocol.md, sections 3 and 4). Fields that it does not have are ``None``.

    One with the type ``gap`` is the client's own: events of the topic are missing before the next one.
    """

    type: str = ""
    id: str | int | None = None
    seq: int = 0
    data: Any = None
    status: str | None = None
    progress: float | None = None
    message: str | None = None
    source: str | None = msgspec.field(name="from", default=None)
    error_code: str | None = None
    retryable: bool | None = None
    retry_after_ms: int | None = None
    param: str | None = None
    duration_ms: int | None = None
    chunks_dropped: int = 0
    replayed: bool = False
    topic: str | None = None
    epoch: str | None = None
    offset: int | None = None
    connection_id: str | None = None
    principal: str | None = None
    limits: dict[str, int] | None = None
    reason: str | None = None
    reconnect_after_ms: Delay | None = None
    job_id: str | None = None
    at: str | None = None
    attempt: int | None = None
    kind: str | None = None

    def error(self) -> GramiError | None:
        """The error that it carries."""
        if self.status != "error":
            return None
        code, text = self.error_code or "", self.message or ""
        return error_from_code(code, text, param=self.param, retry_after_ms=self.retry_after_ms)


Inbox = Callable[[Frame | GramiError], object]
"""Takes the frames of one request or subscription; an error is the last that it gets."""


Asking = Callable[[Inbox], tuple[str, bytes]]
"""What makes a request: its id and its frame, for an inbox that takes the answers."""


class _Start(msgspec.Struct):
    """What of the answer to ``subscribe`` says where the server is."""

    epoch: str
    offset: int
    recovered: bool | None = None


class Hearing:
    """One subscription, over all the connections of a client.

    Args:
        topic: the pattern.
        inbox: takes its events.
        position: the last event that was seen, if there was one.

    Attributes:
        live: whether the server has it, on the connection that there is now; ``None`` before it first did. Only then
            are events for it: what comes before may be what another subscription missed.
    """

    __slots__ = ("inbox", "live", "position", "topic")

    def __init__(self, topic: str, inbox: Inbox, position: Position | None) -> None:
        self.topic = topic
        self.inbox = inbox
        self.position = position
        self.live: bool | None = None


class Following:
    """Who reads the events of a job, over all the connections of a client: each once, in order, without a gap.

    Args:
        job_id: which job.
        seq: the last event that is known.

    Attributes:
        live: whether what comes next from the server is what follows ``seq``, or was known before.
        behind: whether something came that could not be taken: another ``job.attach`` is needed.
    """

    def __init__(self, job_id: str, seq: int) -> None:
        self.job_id = job_id
        self.seq = seq
        self.live = False
        self.behind = False

    def look(self, view: Any) -> None:
        """Take the answer to ``job.attach``."""
        raise NotImplementedError

    def offer(self, frame: Frame) -> bool:
        """Take an event, if there is room."""
        raise NotImplementedError

    def fail(self, error: GramiError) -> None:
        """There will be no more."""
        raise NotImplementedError

    def hear(self, frame: Frame) -> None:
        """An event came."""
        if not self.live or frame.seq <= self.seq:
            return
        if frame.seq == self.seq + 1 and self.offer(frame):
            self.seq = frame.seq
        else:
            self.miss()

    def miss(self) -> None:
        """What came could not be taken."""
        self.live, self.behind = False, True


class Conversation:
    """What a client has asked for and not yet been answered, and what it listens to. It outlives connections.

    Args:
        encoding: of the frames.

    Attributes:
        goaway: what the server said about its end, if it did.
        welcome: what the server said to the last ``hello``.
    """

    def __init__(self, encoding: Encoding = JSON) -> None:
        self.encoding = encoding
        self.goaway: Frame | None = None
        self.welcome: Frame | None = None
        self._decode = encoding.decoder(Frame)
        self._ids = map(str, itertools.count(1))
        self._waiting: dict[str, Inbox] = {}
        self._hearings: dict[Hearing, None] = {}
        self._topics: Topics[Hearing] = Topics()
        self._followings: dict[str, list[Following]] = {}

    def ask(self, fields: dict[str, Any], inbox: Inbox) -> tuple[str, bytes]:
        """The id and the frame of a request; ``inbox`` takes its answers until :meth:`forget`.

        Raises:
            ProtocolError: MESSAGE_TOO_LARGE: the server said that it takes none so large.
        """
        request_id = next(self._ids)
        frame = self.encoding.encode({**fields, "id": request_id})
        most = ((self.welcome and self.welcome.limits) or {}).get("max_message_bytes", len(frame))
        if len(frame) > most:
            raise ProtocolError(
                f"the message has {len(frame)} bytes, and the server takes {most}", code=ErrorCode.MESSAGE_TOO_LARGE
            )
        self._waiting[request_id] = inbox
        return request_id, frame

    def forget(self, request_id: str) -> bool:
        """Its answers are not wanted any more; whether the last was still to come."""
        return self._waiting.pop(request_id, None) is not None

    def cancel(self, request_id: str) -> bytes:
        """The frame that cancels a request."""
        return self.encoding.encode({"type": "cancel", "request_id": request_id})

    def hello(self, client: dict[str, Any], token: str, inbox: Inbox) -> bytes:
        """The frame that begins a connection; ``inbox`` gets the ``welcome``, or the error."""
        self.goaway = None
        self._waiting[HELLO] = inbox
        fields = {"type": "hello", "protocol": PROTOCOL_VERSION, "client": client, "id": HELLO}
        return self.encoding.encode(fields | ({"token": token} if token else {}))

    # --- subscriptions ---

    def hear(self, hearing: Hearing) -> None:
        """Give events to a subscription, once the server has it.

        Raises:
            ProtocolError: VALIDATION_FAILED: its topic is no pattern.
        """
        try:
            self._topics.subscribe(hearing.topic, hearing)
        except ValueError as error:
            raise ProtocolError(str(error), code=ErrorCode.VALIDATION_FAILED, param="$.topic") from None
        self._hearings[hearing] = None

    def stop_hearing(self, hearing: Hearing) -> None:
        """Take that back."""
        self._hearings.pop(hearing, None)
        self._topics.remove(hearing)

    def hears(self, topic: str) -> bool:
        """Whether there is a subscription with this pattern."""
        return any(each.topic == topic for each in self._hearings)

    @property
    def hearings(self) -> tuple[Hearing, ...]:
        """All subscriptions, the oldest first."""
        return tuple(self._hearings)

    def subscribe(self, hearing: Hearing, inbox: Inbox) -> tuple[str, bytes]:
        """The id and the frame of the request that makes a subscription from where it was; ``inbox`` takes the answer.

        It gets no event before that answer: what other subscriptions hear meanwhile comes again behind it, and would
        hide what was missed before.
        """

        def answered(frame: Frame | GramiError) -> None:
            if isinstance(frame, Frame):
                try:
                    self._begin(hearing, msgspec.convert(frame.data, _Start))
                except msgspec.ValidationError as flaw:
                    frame = ProtocolError(f"the server's answer to 'subscribe' cannot be read: {flaw}")
            inbox(frame)

        hearing.live = hearing.live and False
        fields: dict[str, Any] = {"type": "subscribe", "topic": hearing.topic}
        if hearing.position is not None:
            fields["recover"] = msgspec.to_builtins(hearing.position)
        return self.ask(fields, answered)

    @staticmethod
    def _begin(hearing: Hearing, start: _Start) -> None:
        hearing.live = True
        if not start.recovered:
            hearing.position = Position(start.epoch, start.offset)
        if start.recovered is False:
            hearing.inbox(Frame(type="gap", topic=hearing.topic, epoch=start.epoch, offset=start.offset))

    # --- jobs ---

    def follow(self, following: Following) -> None:
        """Give it the events of its job."""
        known = self._followings.setdefault(following.job_id, [])
        if following not in known:
            known.append(following)

    def unfollow(self, following: Following) -> bool:
        """Take that back; whether nobody follows the job any more."""
        others = self._followings.get(following.job_id, [])
        if following in others:
            others.remove(following)
            if not others:
                del self._followings[following.job_id]
        return not others

    def follows(self, job_id: str) -> bool:
        """Whether anybody follows a job."""
        return job_id in self._followings

    @property
    def followed(self) -> tuple[str, ...]:
        """The jobs that are followed."""
        return tuple(self._followings)

    def attach(self, job_id: str, inbox: Inbox) -> tuple[str, bytes]:
        """The id and the frame of the request for all events that one who follows a job does not have.

        What comes before its answer is of an earlier one, and has gaps for those who were behind.
        """
        after = min((each.seq for each in self._followings.get(job_id, ())), default=0)

        def answered(frame: Frame | GramiError) -> None:
            if isinstance(frame, Frame):
                for each in tuple(self._followings.get(job_id, ())):
                    each.live, each.behind = True, False
                    each.look(frame.data)
            inbox(frame)

        return self.ask({"type": "job.attach", "job_id": job_id, "after_seq": after}, answered)

    def give_up(self, job_id: str, error: GramiError) -> None:
        """The server sends no events of a job."""
        for each in tuple(self._followings.get(job_id, ())):
            each.fail(error)

    # --- from the server ---

    def receive(self, data: str | bytes) -> None:
        """Take one frame; one that cannot be read is passed over."""
        try:
            frame: Frame = self._decode(data)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return
        if frame.type == "event":
            self._on_event(frame)
            return
        if frame.type == "job.event":
            for each in tuple(self._followings.get(frame.job_id or "", ())):
                each.hear(frame)
            return
        if frame.type == "job.detached":
            self.give_up(frame.job_id or "", error_from_code(frame.error_code or "", frame.message or ""))
            return
        if frame.type == "goaway":
            self.goaway = frame
        elif frame.type == "welcome":
            self.welcome = frame
        more = frame.type.startswith("response.")
        inbox = self._waiting.get(str(frame.id)) if more else self._waiting.pop(str(frame.id), None)
        if inbox is not None:
            inbox(frame.error() or frame)

    def _on_event(self, frame: Frame) -> None:
        if frame.epoch is None or frame.offset is None or frame.topic is None:
            return
        try:
            hearings = self._topics.match(frame.topic)
        except ValueError:
            return
        for hearing in hearings:
            seen = hearing.position
            # A topic that several patterns match comes once, but what one of them missed comes to all.
            if hearing.live and (seen is None or seen.epoch != frame.epoch or seen.offset < frame.offset):
                hearing.position = Position(frame.epoch, frame.offset)
                hearing.inbox(frame)

    def lose(self, error: GramiError) -> None:
        """The connection is gone: everything that waits for an answer ends; subscriptions wait for the next one."""
        waiting, self._waiting = self._waiting, {}
        for hearing in self._hearings:
            hearing.live = hearing.live and False
        for following in itertools.chain(*self._followings.values()):
            following.live = False
        for inbox in waiting.values():
            inbox(error)

    def end(self, error: GramiError) -> None:
        """There will be no other connection: subscriptions end too, and so does what follows jobs."""
        self.lose(error)
        for hearing in tuple(self._hearings):
            hearing.inbox(error)
        for job_id in self.followed:
            self.give_up(job_id, error)
