"""Jobs as clients see them, and what clients ask of them, in words of the wire. Pure. Floor 4; docs/protocol.md."""

from __future__ import annotations

import base64
import codecs
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec

from grami_actors.errors import ErrorCode, ProtocolError
from grami_actors.frames import JobEvent as EventFrame
from grami_actors.frames import JobList, JobRead, JobSubmit
from grami_actors.job import TERMINAL, Exit, Fault, Job, JobEvent, Order, State
from grami_actors.job_requests import ListJobs, Piece, ReadOutput, SubmitJob


class JobFault(msgspec.Struct, frozen=True):
    """Why a job did not succeed."""

    error_code: str
    message: str


class JobExit(msgspec.Struct, frozen=True, omit_defaults=True):
    """How an attempt outside of the server ended; see :class:`~grami_actors.job.Exit`."""

    code: int | None = None
    signal: int | None = None
    forced: bool = False
    strays: int = 0
    oom: bool = False
    cpu_ms: int = 0
    memory_bytes: int = 0
    log_bytes: int = 0


class JobView(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A job on the wire; what there is nothing to say about is left out.

    Attributes: those of :class:`~grami_actors.job.Job` and :class:`~grami_actors.job.Order`; and
        job_id: its id.
        status: its state in the words of the Agent2Agent protocol.
        error: its fault.
        log_bytes: of output so far.
        expired: whether its result and log were removed.
    """

    job_id: str
    tool: str
    state: str
    status: str
    attempt: int
    seq: int
    owner: str
    created_at: str
    due_at: str
    reason: str = ""
    started_at: str | None = None
    finished_at: str | None = None
    expires_at: str | None = None
    cancel_requested_at: str | None = None
    progress: float | None = None
    message: str = ""
    question: Any = None
    artifacts: dict[str, int] = {}
    log_bytes: int = 0
    result: Any = None
    error: JobFault | None = None
    exit: JobExit | None = None
    expired: bool = False
    arguments: dict[str, Any] = {}
    parent: str = ""
    idempotency_key: str | None = None
    priority: int = 0
    concurrency_key: str = ""
    not_before: str | None = None
    deadline_ms: int | None = None
    detached: bool = False
    wake: str = ""

    @property
    def terminal(self) -> bool:
        """Whether it is at its end."""
        return self.state in TERMINAL

    def outcome(self) -> Any:
        """The result of a job that succeeded; raises what :meth:`grami_actors.job.Job.outcome` does."""
        fault = None if self.error is None else Fault(self.error.error_code, self.error.message)
        return Job(
            id=self.job_id,
            tool=self.tool,
            arguments={},
            owner=self.owner,
            digest="",
            created_at=0.0,
            due_at=0.0,
            state=State(self.state),
            result=self.result,
            fault=fault,
        ).outcome()


class Output(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer to ``job.read``: ``text`` of a log and ``base64`` of a file in JSON, ``data`` in MessagePack."""

    offset: int
    next_offset: int
    dropped: int
    size: int
    end: bool
    attempt: int
    text: str | msgspec.UnsetType = msgspec.UNSET
    base64: str | msgspec.UnsetType = msgspec.UNSET
    data: bytes | msgspec.UnsetType = msgspec.UNSET


Moment = Annotated[datetime, msgspec.Meta(tz=True)]


_FIRST, _LAST = -62_135_596_800.0, 253_402_300_799.0
"""The years 1 and 9999: RFC 3339 has no others. What is far away all the same is as far as can be said."""


def rfc3339(at: float) -> str:
    """A time, in seconds since the epoch, as RFC 3339 has it: UTC, to the millisecond."""
    told = datetime.fromtimestamp(min(max(at, _FIRST), _LAST), UTC)
    return told.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _time(at: float | None) -> str | None:
    return None if at is None else rfc3339(at)


def view(job: Job, *, whole: bool = True) -> JobView:
    """A job as its owner sees it; not ``whole``: without its arguments and result, which may be large."""
    order = job.order
    return JobView(
        job_id=job.id,
        tool=job.tool,
        state=str(job.state),
        status=job.status,
        attempt=job.attempt,
        seq=job.seq,
        owner=job.owner,
        created_at=rfc3339(job.created_at),
        due_at=rfc3339(job.due_at),
        reason=job.reason,
        started_at=_time(job.started_at),
        finished_at=_time(job.finished_at),
        expires_at=_time(job.expires_at),
        cancel_requested_at=None if job.cancellation is None else _time(job.cancellation.at),
        progress=job.progress,
        message=job.message,
        question=job.question,
        artifacts=job.artifacts,
        log_bytes=job.log,
        result=job.result if whole else None,
        error=None if job.fault is None else JobFault(job.fault.code, job.fault.message),
        exit=None if job.exit is None else _exit(job.exit),
        expired=job.expired,
        arguments=job.arguments if whole else {},
        parent=job.parent,
        idempotency_key=order.idempotency_key,
        priority=order.priority,
        concurrency_key=order.concurrency_key,
        not_before=_time(order.not_before),
        deadline_ms=None if order.deadline is None else round(order.deadline * 1000),
        detached=order.detached,
        wake=order.wake,
    )


def _exit(told: Exit) -> JobExit:
    return JobExit(
        told.code, told.signal, told.forced, told.strays, told.oom, round(told.cpu * 1000), told.memory, told.log
    )


def event_frame(event: JobEvent) -> EventFrame:
    """An event as a frame."""
    return EventFrame(event.job, event.seq, rfc3339(event.at), event.attempt, event.kind, event.data)


def ends(kind: str, data: dict[str, Any]) -> bool:
    """Whether an event is the last of its job."""
    return kind == "state" and data.get("state") in TERMINAL


def output(piece: Piece, *, text: bool, artifact: bool) -> Output:
    """The answer to ``job.read``; in an encoding that is ``text``, no character of a log is cut in two."""
    data, said = piece.data, Output(piece.offset, 0, piece.dropped, piece.size, piece.end, piece.attempt)
    if not text:
        return msgspec.structs.replace(said, next_offset=piece.next_offset, data=data)
    if artifact:
        return msgspec.structs.replace(
            said, next_offset=piece.next_offset, base64=base64.b64encode(data).decode("ascii")
        )
    words, used = codecs.getincrementaldecoder("utf-8")("replace"), len(data)
    told = words.decode(data)
    held = len(words.getstate()[0])
    if held == used or piece.end:  # what is behind it may never come
        told += words.decode(b"", final=True)
    else:
        used -= held
    return msgspec.structs.replace(said, next_offset=piece.offset + used, text=told)


# --- what clients ask ---


def submission(wanted: JobSubmit, idempotency_key: str | None) -> SubmitJob:
    """What ``job.submit`` asks for; nobody's yet. Raises ProtocolError (VALIDATION_FAILED): this is no time."""
    order = Order(
        idempotency_key=idempotency_key,
        priority=wanted.priority,
        concurrency_key=wanted.concurrency_key,
        not_before=None if wanted.not_before is None else _moment(wanted.not_before),
        deadline=None if wanted.deadline_ms is None else wanted.deadline_ms / 1000,
        detached=wanted.detached,
        wake=wanted.wake,
    )
    return SubmitJob(tool=wanted.tool, arguments=wanted.arguments, order=order)


def _moment(text: str) -> float:
    try:
        return msgspec.convert(text, Moment).timestamp()
    except (msgspec.ValidationError, OverflowError, ValueError):
        raise ProtocolError(
            f"{text!r} is no time as RFC 3339 has it, such as 2030-01-31T12:00:00Z",
            code=ErrorCode.VALIDATION_FAILED,
            param="$.not_before",
        ) from None


def listing(wanted: JobList) -> ListJobs:
    """What ``job.list`` asks for. Raises ProtocolError: VALIDATION_FAILED: there is no such state."""
    return ListJobs(states=tuple(_states(wanted.states)), tool=wanted.tool, before=wanted.before, limit=wanted.limit)


def _states(names: Iterable[str]) -> Iterable[State]:
    for place, name in enumerate(names):
        try:
            yield State(name)
        except ValueError:
            raise ProtocolError(
                f"{name!r} is no state of a job: {', '.join(State)}",
                code=ErrorCode.VALIDATION_FAILED,
                param=f"$.states[{place}]",
            ) from None


def reading(wanted: JobRead) -> ReadOutput:
    """What ``job.read`` asks for."""
    return ReadOutput(
        job=wanted.job_id,
        artifact=wanted.artifact,
        attempt=wanted.attempt,
        offset=wanted.offset,
        limit=wanted.limit,
        wait=wanted.wait_ms / 1000,
    )
