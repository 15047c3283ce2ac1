"""What a call to a store makes of a job, and which events tell of it. Pure. Floor 12.

The rules are those of :mod:`grami_actors.job` and :mod:`grami_actors.jobs.store`; a store only keeps what comes of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from grami_actors.errors import ErrorCode, JobError, ProtocolError
from grami_actors.job import TERMINAL, Job, JobEvent, State, Step, next_state
from grami_actors.jobs.store import BIG, Change, Note, Stale

_FIXED = frozenset({"id", "tool", "owner", "digest", "order", "parent", "created_at", "state", "attempt", "seq"})
"""What no caller sets: it never changes, or only by a step."""

_FRESH: dict[str, Any] = {
    "reason": "",
    "progress": None,
    "message": "",
    "imported": 0,
    "log": 0,
    "exit": None,
    "fault": None,
    "questions": 0,
    "answer": None,
}
"""What is of one attempt, at its beginning."""


def accepted(job: Job) -> tuple[Job, JobEvent]:
    """A new job with its first event."""
    job = replace(job, seq=1)
    return job, JobEvent(job.id, 1, job.created_at, "state", job.attempt, {"state": str(job.state)})


def known(job: Job, found: Job) -> Job:
    """What stands under the key of a job already. Raises ProtocolError: IDEMPOTENCY_KEY_REUSED."""
    if found.digest != job.digest:
        raise ProtocolError(
            f"the key {job.order.idempotency_key!r} stands for another tool or other arguments: the job {found.id}",
            code=ErrorCode.IDEMPOTENCY_KEY_REUSED,
            param="idempotency_key",
        )
    return found


def stepped(job: Job, change: Change) -> tuple[Job, JobEvent]:
    """A job after a step, and the event. Raises Stale and WrongStep."""
    if job.state in TERMINAL:
        raise Stale(f"the job {job.id} is at its end: {job.state}")
    if change.attempt is not None and change.attempt != job.attempt:
        raise Stale(f"the job {job.id} is at attempt {job.attempt}, not {change.attempt}")
    state = next_state(job.state, change.step)
    fields: dict[str, Any] = {"state": state, "seq": job.seq + 1}
    if change.step is Step.CLAIM:
        fields |= _FRESH
        fields["attempt"] = job.attempt + 1
    elif change.step is Step.STARTED:
        fields["started_at"] = change.at
    if state in TERMINAL:
        fields["finished_at"] = change.at
    if state is not State.INPUT_REQUIRED and job.question is not None:
        fields["question"] = None
    after = replace(job, **(fields | _free(change.fields)))
    return after, JobEvent(job.id, after.seq, change.at, "state", after.attempt, {"state": state.value} | change.told)


def noted(job: Job, attempt: int, notes: Sequence[Note], fields: dict[str, Any]) -> tuple[Job, list[JobEvent]]:
    """A job after what its attempt said, and the events. Raises Stale."""
    if attempt != job.attempt or not job.state.alive:
        raise Stale(f"the job {job.id} is {job.state}, at attempt {job.attempt}, not {attempt}")
    events = [
        JobEvent(job.id, seq, note.at, note.kind, attempt, note.data) for seq, note in enumerate(notes, job.seq + 1)
    ]
    return replace(job, seq=job.seq + len(notes), **_free(fields)), events


def amended(job: Job, fields: dict[str, Any]) -> Job:
    """A job with other values of what no event tells."""
    return replace(job, **_free(fields))


def emptied(job: Job) -> Job:
    """A job at its end, of which only the outcome is still to be known."""
    return replace(job, answer=None, arguments={}, checkpoint=None, result=None, artifacts={}, expired=True)


def outline(job: Job) -> Job:
    """A job without what may be of any size."""
    return replace(job, answer=None, arguments={}, checkpoint=None, question=None, result=None)


def missing(job: str) -> JobError:
    """There is no such job."""
    return JobError(f"there is no job {job!r}", code=ErrorCode.JOB_NOT_FOUND)


def _free(fields: dict[str, Any]) -> dict[str, Any]:
    if not _FIXED.isdisjoint(fields):
        raise TypeError(f"of a job cannot be set: {', '.join(sorted(_FIXED & fields.keys()))}")
    return fields


# --- how it is written down ---

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Job).decode
_encode_big = msgspec.json.Encoder().encode
_decode_big = msgspec.json.Decoder().decode


class Packed(NamedTuple):
    """A job as it is written down.

    Attributes:
        job: as it will be read.
        data: all of it but what is big.
        big: what is big and was another before, each as JSON.
    """

    job: Job
    data: bytes
    big: dict[str, bytes]


def packed(job: Job, before: Job | None) -> Packed:
    """A job that was changed, to be written down; never what could not be read again.

    Raises:
        TypeError, ValueError, OverflowError: a value of it is not of its type, or nothing that JSON can say.
    """
    big = {
        name: _encode_big(value)
        for name in BIG
        if (value := getattr(job, name)) is not (None if before is None else getattr(before, name))
    }
    data = _encode(outline(job))
    read: dict[str, Any] = {name: getattr(job, name) for name in BIG if name not in big}
    return Packed(unpacked(data, big, read), data, big)


def unpacked(data: bytes, big: Mapping[str, bytes], read: dict[str, Any] | None = None) -> Job:
    """A job that was written down. Raises ValueError: that is damaged, or was written by a later version.

    Args:
        data: see :class:`Packed`.
        big: likewise.
        read: what is big and need not be read.
    """
    values = {} if read is None else read
    for name, value in big.items():
        values[name] = _decode_big(value)
    return replace(_decode(data), **values) if values else _decode(data)


def data_of(event: JobEvent) -> bytes:
    """What an event says, as JSON. Raises TypeError, ValueError: JSON cannot say it."""
    return _encode_big(event.data)


def data_from(data: bytes) -> Any:
    """What an event said."""
    return _decode_big(data)


def told(event: JobEvent) -> JobEvent:
    """An event as it will be read. Raises as :func:`data_of`."""
    return replace(event, data=_decode_big(data_of(event)))
