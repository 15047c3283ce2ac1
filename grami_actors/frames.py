"""The frames of grami/1 as Structs, both ways. Floor 1; docs/protocol.md is their text."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

PROTOCOL_VERSION = 1
BAD_MESSAGES_IN_A_ROW = 100
"""After so many bad messages without a good one between, a client is cut off (4429)."""

LONGEST_REASON = 123
"""Bytes of the reason of a close frame (RFC 6455, section 5.5.1: 125 with the code)."""

CLOSE_UNSUPPORTED_DATA = 1003
CLOSE_RESTART = 1012
CLOSE_UNAUTHENTICATED = 4401
CLOSE_FORBIDDEN = 4403
CLOSE_AUTH_TIMEOUT = 4408
CLOSE_TOKEN_EXPIRED = 4419
CLOSE_ABUSE = 4429
CLOSE_CONNECTION_LIMIT = 4430
CLOSE_SLOW_CONSUMER = 4508
CLOSE_IDLE = 4513


def close_code(error_code: str) -> int:
    """What a connection is closed with whose token was refused: one that expired can be renewed."""
    return CLOSE_TOKEN_EXPIRED if error_code == "TOKEN_EXPIRED" else CLOSE_UNAUTHENTICATED


ADMIN_TYPES = frozenset(
    f"admin.{kind}" for kind in ("connections", "actors", "stats", "profile", "disconnect", "drain")
)
"""Control messages for administrators (docs/protocol.md, section 4)."""

RequestId = Annotated[str, msgspec.Meta(max_length=128)] | int


class Limits(msgspec.Struct, frozen=True):
    """What one connection may do.

    Attributes:
        max_message_bytes: a larger frame closes the connection (1009).
        max_unauthenticated_bytes: the same, before the client has authenticated.
        max_nesting: levels of objects and arrays in one frame.
        max_inflight: requests without an answer yet; one more gets TOO_MANY_INFLIGHT.
        max_subscriptions: topics and attached jobs at the same time; one more gets RESOURCE_EXHAUSTED.
        outbox_bytes: unsent output; past it chunks are dropped, past twice it the connection is closed (4508).
        outbox_seconds: how long a frame may stay unsent (4508).
        request_timeout_ms: the deadline of a request that names none.
        max_timeout_ms: the longest deadline a request may ask for.
        auth_timeout: seconds that a client has to authenticate (4408).
        token_grace: seconds that a connection stays after its token expired (4419).
        idle_timeout: seconds without a frame, a request at work, a subscription or an attached job (4513); 0 for none.
    """

    max_message_bytes: int = 1_048_576
    max_unauthenticated_bytes: int = 16_384
    max_nesting: int = 64
    max_inflight: int = 64
    max_subscriptions: int = 128
    outbox_bytes: int = 1_048_576
    outbox_seconds: float = 30.0
    request_timeout_ms: int = 60_000
    max_timeout_ms: int = 600_000
    auth_timeout: float = 10.0
    token_grace: float = 30.0
    idle_timeout: float = 0.0


class Meta(msgspec.Struct):
    """The part of ``meta`` that means something; the rest is skipped, not built."""

    traceparent: msgspec.Raw = msgspec.Raw()
    tracestate: msgspec.Raw = msgspec.Raw()


class Header(msgspec.Struct):
    """The fields that any request may carry (docs/protocol.md, section 2)."""

    type: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    id: RequestId | msgspec.UnsetType = msgspec.UNSET
    to: Annotated[str, msgspec.Meta(max_length=256)] = ""
    stream: bool = False
    background: bool = False
    timeout_ms: Annotated[int, msgspec.Meta(gt=0)] | None = None
    idempotency_key: Annotated[str, msgspec.Meta(min_length=1, max_length=128)] | None = None
    meta: Meta | None = None


Token = Annotated[str, msgspec.Meta(max_length=8192)]
TopicName = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
JobId = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class Hello(msgspec.Struct):
    """``hello``: the client introduces itself and may then get connection-wide frames."""

    protocol: int = PROTOCOL_VERSION
    client: dict[str, Any] | None = None
    token: Token | None = None


class Auth(msgspec.Struct):
    """``auth``: the client authenticates, or renews its token."""

    token: Token


class Cancel(msgspec.Struct):
    """``cancel``: end a request that is in flight, or a job."""

    request_id: RequestId | None = None
    job_id: JobId | None = None


class Position(msgspec.Struct, frozen=True):
    """Where a client is in what was published: all up to ``offset`` of the server's ``epoch`` it has seen."""

    epoch: Annotated[str, msgspec.Meta(max_length=64)]
    offset: Annotated[int, msgspec.Meta(ge=0)]


class Subscribe(msgspec.Struct):
    """``subscribe``: hear what is published to the topics of a pattern, and what was missed since a position."""

    topic: TopicName
    recover: Position | None = None


class Unsubscribe(msgspec.Struct):
    """``unsubscribe``: take a subscription back."""

    topic: TopicName


class Publish(msgspec.Struct):
    """``publish``: hand data to everybody who hears the topic."""

    topic: TopicName
    data: Any


class JobSubmit(msgspec.Struct):
    """``job.submit``: have a tool run as a job; its fields are those of :class:`grami_actors.job.Order`."""

    tool: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    arguments: dict[str, Any] = {}
    priority: Annotated[int, msgspec.Meta(ge=-1000, le=1000)] = 0
    concurrency_key: Annotated[str, msgspec.Meta(max_length=128)] = ""
    not_before: Annotated[str, msgspec.Meta(max_length=64, extra_json_schema={"format": "date-time"})] | None = None
    deadline_ms: Annotated[int, msgspec.Meta(gt=0, le=2**53)] | None = None
    detached: bool = False
    wake: Annotated[str, msgspec.Meta(max_length=256)] = ""


class JobGet(msgspec.Struct):
    """``job.get``: look at a job."""

    job_id: JobId


class JobList(msgspec.Struct):
    """``job.list``: the latest jobs first, without their arguments and results."""

    states: tuple[str, ...] = ()
    tool: Annotated[str, msgspec.Meta(max_length=256)] = ""
    before: Annotated[str, msgspec.Meta(max_length=128)] = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=200)] = 50


class JobCancel(msgspec.Struct):
    """``job.cancel``: have a job end; with ``force`` at once."""

    job_id: JobId
    force: bool = False


class JobInput(msgspec.Struct):
    """``job.input``: answer the question of a job."""

    job_id: JobId
    answer: Any


class JobRetry(msgspec.Struct):
    """``job.retry``: submit again what a job did that is at its end."""

    job_id: JobId


class JobRead(msgspec.Struct):
    """``job.read``: a part of the log of a job, or of a file that it made."""

    job_id: JobId
    artifact: Annotated[str, msgspec.Meta(max_length=256)] = ""
    attempt: Annotated[int, msgspec.Meta(ge=0)] = 0
    offset: Annotated[int, msgspec.Meta(ge=0, le=2**53)] = 0
    limit: Annotated[int, msgspec.Meta(ge=4, le=262_144)] = 65_536
    wait_ms: Annotated[int, msgspec.Meta(ge=0, le=30_000)] = 0


class JobAttach(msgspec.Struct):
    """``job.attach``: hear what happened to a job after an event, and what happens from now on."""

    job_id: JobId
    after_seq: Annotated[int, msgspec.Meta(ge=0, le=2**53)] = 0


class JobDetach(msgspec.Struct):
    """``job.detach``: hear no more of it."""

    job_id: JobId


JOB_CONTROLS: dict[str, type[msgspec.Struct]] = {
    "job.submit": JobSubmit,
    "job.get": JobGet,
    "job.list": JobList,
    "job.cancel": JobCancel,
    "job.input": JobInput,
    "job.retry": JobRetry,
    "job.read": JobRead,
    "job.attach": JobAttach,
    "job.detach": JobDetach,
}
"""Control messages about jobs, and their fields (docs/protocol.md, section 4)."""


class OnlyId(msgspec.Struct):
    """What can be said of a message that is otherwise wrong."""

    id: RequestId | msgspec.UnsetType = msgspec.UNSET


# --- frames to the client ---


class PlainSuccess(msgspec.Struct):
    """The plain answer, exactly these two keys."""

    data: Any
    status: Literal["success"] = "success"


class PlainError(msgspec.Struct):
    """The plain error, exactly these three keys."""

    error_code: str
    message: str
    status: Literal["error"] = "error"


class Response(msgspec.Struct, tag="response", tag_field="type", omit_defaults=True):
    """The terminal frame of a request that succeeded."""

    id: str | int
    seq: int
    status: str
    data: Any
    duration_ms: int
    chunks_dropped: int = 0
    replayed: bool = False


class ErrorResponse(msgspec.Struct, tag="response", tag_field="type"):
    """The terminal frame of a request that failed."""

    id: str | int
    seq: int
    status: str
    error_code: str
    message: str
    retryable: bool
    duration_ms: int
    retry_after_ms: int | msgspec.UnsetType = msgspec.UNSET
    param: str | msgspec.UnsetType = msgspec.UNSET
    replayed: bool | msgspec.UnsetType = msgspec.UNSET


class Started(msgspec.Struct, tag="response.started", tag_field="type"):
    """An agent began to work on a streamed request."""

    id: str | int
    seq: int
    source: str = msgspec.field(name="from")


class Progress(msgspec.Struct, tag="response.progress", tag_field="type"):
    """How far a streamed request is, from 0 to 1; it never falls."""

    id: str | int
    seq: int
    progress: float
    message: str


class Chunk(msgspec.Struct, tag="response.chunk", tag_field="type"):
    """A part of the answer of a streamed request."""

    id: str | int
    seq: int
    data: Any


class Welcome(msgspec.Struct, tag="welcome", tag_field="type"):
    """The answer to ``hello``."""

    connection_id: str
    principal: str
    server: dict[str, str]
    limits: dict[str, int]
    reconnect_jitter_ms: int
    id: RequestId | msgspec.UnsetType = msgspec.UNSET
    protocol: int = PROTOCOL_VERSION


class Pong(msgspec.Struct, tag="pong", tag_field="type"):
    """The answer to ``ping``."""

    id: RequestId | msgspec.UnsetType = msgspec.UNSET


class Event(msgspec.Struct, tag="event", tag_field="type"):
    """Something was published to a topic that the client hears; offsets grow over all topics of an epoch."""

    topic: str
    epoch: str
    offset: int
    data: Any


class JobEvent(msgspec.Struct, tag="job.event", tag_field="type"):
    """Something happened to a job that the client is attached to; ``seq`` is its place among all events of the job."""

    job_id: str
    seq: int
    at: str
    attempt: int
    kind: str
    data: dict[str, Any]


class JobDetached(msgspec.Struct, tag="job.detached", tag_field="type"):
    """The client hears no more of a job that is not at its end: it is gone, or not this client's any more."""

    job_id: str
    error_code: str
    message: str


class Delay(msgspec.Struct):
    """Between how many milliseconds a client picks its own at random."""

    min: int
    max: int


class Goaway(msgspec.Struct, tag="goaway", tag_field="type"):
    """The server is about to close: send nothing new here, and come back after a while."""

    reason: str
    reconnect_after_ms: Delay
    close_in_ms: int
