"""The frames of grami/1 as Structs, both ways. Floor 1; docs/protocol.md is their text."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

PROTOCOL_VERSION = 1
CLOSE_UNSUPPORTED_DATA = 1003
CLOSE_ABUSE = 4429
CLOSE_SLOW_CONSUMER = 4508
BAD_MESSAGES_IN_A_ROW = 100
"""After so many bad messages without a good one between, a client is cut off (4429)."""

RequestId = Annotated[str, msgspec.Meta(max_length=128)] | int


class Limits(msgspec.Struct, frozen=True):
    """What one connection may do.

    Attributes:
        max_message_bytes: a larger frame closes the connection (1009).
        max_inflight: requests without an answer yet; one more gets TOO_MANY_INFLIGHT.
        outbox_bytes: unsent output; past it chunks are dropped, past twice it the connection is closed (4508).
        request_timeout_ms: the deadline of a request that names none.
        max_timeout_ms: the longest deadline a request may ask for.
    """

    max_message_bytes: int = 1_048_576
    max_inflight: int = 64
    outbox_bytes: int = 1_048_576
    request_timeout_ms: int = 60_000
    max_timeout_ms: int = 600_000


class Meta(msgspec.Struct):
    """The part of ``meta`` that means something; the rest is skipped, not built."""

    traceparent: msgspec.Raw = msgspec.Raw()


class Header(msgspec.Struct):
    """The fields that any request may carry (docs/protocol.md, section 2)."""

    type: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    id: RequestId | msgspec.UnsetType = msgspec.UNSET
    to: Annotated[str, msgspec.Meta(max_length=256)] = ""
    stream: bool = False
    background: bool = False
    timeout_ms: Annotated[int, msgspec.Meta(gt=0)] | None = None
    idempotency_key: Annotated[str, msgspec.Meta(max_length=128)] | None = None
    meta: Meta | None = None


class Hello(msgspec.Struct):
    """``hello``: the client introduces itself and may then get connection-wide frames."""

    protocol: int = PROTOCOL_VERSION
    client: dict[str, Any] | None = None


class CancelFields(msgspec.Struct):
    """``cancel``: end a request that is in flight."""

    request_id: RequestId | None = None


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
