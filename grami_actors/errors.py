"""Every way a request or an actor can fail, sorted by cause. Floor 0.

The tree::

    GramiError                      root; has an ``error_code`` of the wire protocol
    ├── Reject                      a handler answers "no" without failing its actor
    ├── ProtocolError               the message itself is wrong (docs/protocol.md, errors)
    ├── PermissionDenied            no rule allows it
    ├── LimitReached                too much, too often or too many at once; the code says what
    ├── DestinationNotFound         no route for this name or message type
    ├── AgentUnavailable            the actor is stopped, stopping or was never there
    ├── AgentCrashed                the actor died with this message in hand
    ├── AgentExecutionFailed        the handler raised
    ├── ToolExecutionFailed         the tool raised
    ├── ToolTimeout                 the tool's own time limit passed
    ├── UpstreamError               a service behind a tool or model failed
    │   └── RateLimited             it takes no more calls for a while
    ├── JobError                    a job is not there, not accepted, or not in a state for that
    ├── QuotaExceeded               the request has spent its budget
    ├── DeadlineExceeded            the request's deadline passed; its outcome is unknown
    ├── Cancelled                   the request was cancelled
    ├── MailboxFull                 the mailbox's bound is reached
    ├── ShuttingDown                the server takes no new work
    ├── StartFailed                 ``spawn`` could not start the actor
    ├── NameTaken                   the name is in use in this system
    ├── WouldDeadlock               a blocking wait on an event loop's thread
    │   └── AskCycle                actors wait for each other in a circle
    ├── KillRefused                 this lane cannot kill what runs on it
    ├── ConfigError                 a setting is unknown or has a wrong value
    ├── ServerNotFound              no running Growth Manager could be found
    └── ConnectionLost              the connection ended before the answer came

An error never carries a traceback over the wire; ``INTERNAL_ERROR`` names an ``error_ref`` that
stands in the server's log.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Any


class ErrorCode(StrEnum):
    """The error codes of the wire protocol, exactly those that docs/protocol.md lists."""

    INVALID_JSON = "INVALID_JSON"
    INVALID_MESSAGE = "INVALID_MESSAGE"
    UNKNOWN_TYPE = "UNKNOWN_TYPE"
    VALIDATION_FAILED = "VALIDATION_FAILED"
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
    UNSUPPORTED_ENCODING = "UNSUPPORTED_ENCODING"
    UNSUPPORTED_VERSION = "UNSUPPORTED_VERSION"
    UNSUPPORTED_FEATURE = "UNSUPPORTED_FEATURE"
    DUPLICATE_ID = "DUPLICATE_ID"
    IDEMPOTENCY_KEY_REUSED = "IDEMPOTENCY_KEY_REUSED"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    INVALID_TOKEN = "INVALID_TOKEN"
    TOKEN_EXPIRED = "TOKEN_EXPIRED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    DESTINATION_NOT_FOUND = "DESTINATION_NOT_FOUND"
    AGENT_UNAVAILABLE = "AGENT_UNAVAILABLE"
    AGENT_CRASHED = "AGENT_CRASHED"
    AGENT_EXECUTION_FAILED = "AGENT_EXECUTION_FAILED"
    TOOL_EXECUTION_FAILED = "TOOL_EXECUTION_FAILED"
    TOOL_TIMEOUT = "TOOL_TIMEOUT"
    UPSTREAM_ERROR = "UPSTREAM_ERROR"
    UPSTREAM_RATE_LIMITED = "UPSTREAM_RATE_LIMITED"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CANCELLED = "CANCELLED"
    RATE_LIMITED = "RATE_LIMITED"
    TOO_MANY_INFLIGHT = "TOO_MANY_INFLIGHT"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    TOPIC_NOT_FOUND = "TOPIC_NOT_FOUND"
    UNRECOVERABLE_POSITION = "UNRECOVERABLE_POSITION"
    JOB_NOT_FOUND = "JOB_NOT_FOUND"
    JOB_NOT_CANCELABLE = "JOB_NOT_CANCELABLE"
    JOB_NOT_AWAITING_INPUT = "JOB_NOT_AWAITING_INPUT"
    JOB_REJECTED = "JOB_REJECTED"
    SLOW_CONSUMER = "SLOW_CONSUMER"
    SHUTTING_DOWN = "SHUTTING_DOWN"
    INTERNAL_ERROR = "INTERNAL_ERROR"


RETRYABLE: frozenset[str] = frozenset(
    {
        ErrorCode.AGENT_UNAVAILABLE,
        ErrorCode.AGENT_CRASHED,
        ErrorCode.TOOL_TIMEOUT,
        ErrorCode.UPSTREAM_ERROR,
        ErrorCode.UPSTREAM_RATE_LIMITED,
        ErrorCode.DEADLINE_EXCEEDED,
        ErrorCode.RATE_LIMITED,
        ErrorCode.TOO_MANY_INFLIGHT,
        ErrorCode.RESOURCE_EXHAUSTED,
        ErrorCode.SLOW_CONSUMER,
        ErrorCode.SHUTTING_DOWN,
        ErrorCode.INTERNAL_ERROR,
    }
)
"""Codes after which the same request may succeed when it is sent again."""


def describe(error: BaseException) -> str:
    """One line about an exception, without its traceback."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - an exception may bring code of its own that fails
        text = "(its text cannot be read)"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def in_words(error: BaseException | None) -> str:
    """What an answer that is an error says; empty for none."""
    if error is None:
        return ""
    return error.message if isinstance(error, GramiError) else describe(error)


class GramiError(Exception):
    """The root of all errors of this package.

    Attributes:
        error_code: the code that a client is answered (a member of :class:`ErrorCode`, or a newer
            code that a newer server sent).
        param: the path of the faulty field (``$.platform``), where there is one.
        retry_after_ms: how long to wait before the next try, in milliseconds, where it is known.
    """

    error_code: str = ErrorCode.INTERNAL_ERROR

    def __init__(
        self,
        message: str = "",
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(message)
        if code is not None:
            self.error_code = code
        self.param = param
        self.retry_after_ms = retry_after_ms

    @property
    def message(self) -> str:
        """The text for a person."""
        return str(self.args[0]) if self.args else ""

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed when it is sent again."""
        return self.error_code in RETRYABLE


class Reject(GramiError):
    """Raised by a handler to answer its caller with an error; the actor goes on unharmed.

    The code is one of :class:`ErrorCode`; over the wire any other becomes AGENT_EXECUTION_FAILED.
    """

    error_code = ErrorCode.AGENT_EXECUTION_FAILED

    def __init__(self, code: str, message: str = "", *, param: str | None = None) -> None:
        super().__init__(message or code, code=code, param=param)


class ProtocolError(GramiError):
    """The message itself is wrong; the code says how."""

    error_code = ErrorCode.INVALID_MESSAGE


class PermissionDenied(GramiError):
    """No rule allows this principal, or this agent on its behalf, to do that; whether it exists is not told."""

    error_code = ErrorCode.PERMISSION_DENIED


class LimitReached(GramiError):
    """Too much, too often or too many at once; the same may succeed later.

    Args:
        message: the text for a person.
        limit: the name of the setting.
        details: as for every error.
    """

    error_code = ErrorCode.RATE_LIMITED

    def __init__(self, message: str = "", *, limit: str = "", **details: Any) -> None:
        super().__init__(message, **details)
        self.limit = limit


class DestinationNotFound(GramiError):
    """No agent, tool or route has this name, or none handles this message type."""

    error_code = ErrorCode.DESTINATION_NOT_FOUND


class AgentUnavailable(GramiError):
    """The actor is stopped, stopping, or gave up after too many restarts."""

    error_code = ErrorCode.AGENT_UNAVAILABLE


class AgentCrashed(GramiError):
    """The actor died while it handled this message; whether the work was done is unknown."""

    error_code = ErrorCode.AGENT_CRASHED


class AgentExecutionFailed(GramiError):
    """The handler raised an exception; it is the ``__cause__`` where it is known."""

    error_code = ErrorCode.AGENT_EXECUTION_FAILED


class ToolExecutionFailed(GramiError):
    """The tool raised an exception; it is the ``__cause__`` where it is known."""

    error_code = ErrorCode.TOOL_EXECUTION_FAILED


class ToolTimeout(GramiError):
    """The tool did not answer within its own time limit; whether it acted is unknown."""

    error_code = ErrorCode.TOOL_TIMEOUT


class UpstreamError(GramiError):
    """A service behind a tool or a model failed or could not be reached."""

    error_code = ErrorCode.UPSTREAM_ERROR


class RateLimited(UpstreamError):
    """A service behind a tool or model takes no more calls for a while (HTTP 429).

    Args:
        message: the text for a person.
        retry_after: seconds until it takes calls again.
        details: as for every error.
    """

    error_code = ErrorCode.UPSTREAM_RATE_LIMITED

    def __init__(self, message: str = "", *, retry_after: float | None = None, **details: Any) -> None:
        super().__init__(message, **details)
        if retry_after is not None:
            self.retry_after_ms = math.ceil(retry_after * 1000)  # rounded down, it would be tried too early


class JobError(GramiError):
    """A job is not there, is not accepted, is in no state for what is wanted, or ended in no other way."""

    error_code = ErrorCode.JOB_REJECTED


class QuotaExceeded(GramiError):
    """A limit of the request's budget is crossed; the request is ended."""

    error_code = ErrorCode.QUOTA_EXCEEDED


class DeadlineExceeded(GramiError):
    """The deadline passed before the answer came; the outcome is unknown, not a failure."""

    error_code = ErrorCode.DEADLINE_EXCEEDED


class Cancelled(GramiError):
    """The request was cancelled by its sender."""

    error_code = ErrorCode.CANCELLED


class MailboxFull(GramiError):
    """The mailbox has reached its bound, and its policy is to refuse."""

    error_code = ErrorCode.RESOURCE_EXHAUSTED


class ShuttingDown(GramiError):
    """The system is stopping and takes no new work."""

    error_code = ErrorCode.SHUTTING_DOWN


class StartFailed(GramiError):
    """The actor could not be started: its constructor or ``on_start`` raised (the cause)."""

    error_code = ErrorCode.AGENT_UNAVAILABLE


class NameTaken(GramiError):
    """Another actor of this system has this name."""


class WouldDeadlock(GramiError):
    """A blocking wait was tried on the thread of an event loop; await it instead."""

    error_code = ErrorCode.AGENT_EXECUTION_FAILED


class AskCycle(WouldDeadlock):
    """Actors wait for each other in a circle, which the message names in order."""


class KillRefused(GramiError):
    """What runs on this lane cannot be killed; stop it, or use another lane."""


class ConfigError(GramiError):
    """A setting is unknown, or its value cannot be used."""


class ServerNotFound(GramiError):
    """No running Growth Manager could be found; the message says where was looked."""


class ConnectionLost(GramiError):
    """The connection ended before the answer came; whether the work was done is unknown."""

    error_code = ErrorCode.AGENT_UNAVAILABLE


def error_from_code(
    code: str, message: str, *, param: str | None = None, retry_after_ms: int | None = None
) -> GramiError:
    """Build the exception that stands for an error received over the wire."""
    kind = _BY_CODE.get(code, GramiError)
    return kind(message, code=code, param=param, retry_after_ms=retry_after_ms)


_BY_CODE: dict[str, type[GramiError]] = (
    {
        kind.error_code: kind
        for kind in (
            PermissionDenied,
            LimitReached,
            DestinationNotFound,
            AgentUnavailable,
            AgentCrashed,
            AgentExecutionFailed,
            ToolExecutionFailed,
            ToolTimeout,
            UpstreamError,
            RateLimited,
            QuotaExceeded,
            DeadlineExceeded,
            Cancelled,
            MailboxFull,
            ShuttingDown,
        )
    }
    | dict.fromkeys(
        (
            ErrorCode.INVALID_JSON,
            ErrorCode.INVALID_MESSAGE,
            ErrorCode.UNKNOWN_TYPE,
            ErrorCode.VALIDATION_FAILED,
            ErrorCode.UNSUPPORTED_ENCODING,
            ErrorCode.UNSUPPORTED_VERSION,
            ErrorCode.UNSUPPORTED_FEATURE,
            ErrorCode.DUPLICATE_ID,
            ErrorCode.MESSAGE_TOO_LARGE,
            ErrorCode.IDEMPOTENCY_KEY_REUSED,
            ErrorCode.UNAUTHENTICATED,
            ErrorCode.INVALID_TOKEN,
            ErrorCode.TOKEN_EXPIRED,
            ErrorCode.TOPIC_NOT_FOUND,
            ErrorCode.UNRECOVERABLE_POSITION,
        ),
        ProtocolError,
    )
    | dict.fromkeys(
        (
            ErrorCode.JOB_NOT_FOUND,
            ErrorCode.JOB_NOT_CANCELABLE,
            ErrorCode.JOB_NOT_AWAITING_INPUT,
            ErrorCode.JOB_REJECTED,
        ),
        JobError,
    )
)
