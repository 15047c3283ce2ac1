"""What the actor ``jobs`` is asked, and the message that tells an agent of a job's end. Floor 3.

Each request has ``owner``: only jobs of that principal are seen, and another's is as one that does not exist; ``None``
sees all (agents of the swarm, administrators). All are answered with a :class:`~grami_actors.job.Job`, if nothing else
is said, and raise :class:`~grami_actors.errors.JobError`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from grami_actors.job import Job, Order, State
from grami_actors.messages import Message

JOBS = "jobs"
"""The name of the actor."""


REQUEST = "request:"
"""How the tool of a job begins that is a client's request in the background; the message type follows."""


class JobEnded(Message, tag="job_ended"):
    """Told to the agent that ``Order.wake`` names, when a job is at its end; at least once, also after a restart.

    Attributes:
        job_id: which.
        tool: its tool.
        state: its terminal state.
        result: if it succeeded.
        error: in words, if it did not.
    """

    job_id: str
    tool: str
    state: str
    result: Any = None
    error: str = ""


class SubmitJob(msgspec.Struct, frozen=True, kw_only=True):
    """Accept a job; it is written down when the answer comes.

    Attributes:
        tool: its name.
        arguments: for it.
        order: how.
        owner: who wants it.
        scopes: of the owner.
        parent: the job that causes it; that of the message being handled, if there is one and this is empty.

    Raises (beside JOB_REJECTED: a limit of the queue is reached):
        DestinationNotFound: there is no such tool.
        ProtocolError: VALIDATION_FAILED, IDEMPOTENCY_KEY_REUSED.
    """

    tool: str
    arguments: dict[str, Any]
    order: Order = Order()
    owner: str = ""
    scopes: tuple[str, ...] = ()
    parent: str = ""


class SubmitRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Accept a client's request to run in the background; what its agent answers is the job's result.

    Attributes:
        message: the message itself, of a registered type.
        to: where it goes; the route of its type, if empty.
    """

    message: Any
    to: str = ""
    order: Order = Order()
    owner: str = ""
    scopes: tuple[str, ...] = ()


class GetJob(msgspec.Struct, frozen=True):
    """Look at a job."""

    job: str
    owner: str | None = None


class ListJobs(msgspec.Struct, frozen=True, kw_only=True):
    """The latest jobs first, as a list; see :meth:`grami_actors.jobs.store.JobStore.find`."""

    owner: str | None = None
    states: tuple[State, ...] = ()
    tool: str = ""
    before: str = ""
    limit: int = 50


class CancelJob(msgspec.Struct, frozen=True):
    """Have a job and its children end; answered when that is written down. ``force``: with SIGKILL, now.

    Raises:
        JobError: JOB_NOT_CANCELABLE: it is at its end.
    """

    job: str
    owner: str | None = None
    force: bool = False


class AnswerJob(msgspec.Struct, frozen=True):
    """Give a job the input that it waits for. Raises JobError: JOB_NOT_AWAITING_INPUT."""

    job: str
    answer: Any
    owner: str | None = None
    by: str = ""


class RetryJob(msgspec.Struct, frozen=True):
    """Accept a new job with the tool, arguments and order of one that is at its end, but without its key.

    ``scopes``: what its owner may do now; ``None``: what they might do then.
    """

    job: str
    owner: str | None = None
    scopes: tuple[str, ...] | None = None


class ReadEvents(msgspec.Struct, frozen=True):
    """Events of a job after ``after``, as a list of :class:`~grami_actors.job.JobEvent`.

    ``wait``: seconds to wait if there are none yet and the job is not at its end.
    """

    job: str
    after: int = 0
    limit: int = 1_000
    owner: str | None = None
    wait: float = 0.0


class ReadOutput(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a job's log, or of an artifact, as a :class:`Piece`.

    Attributes:
        artifact: its name; empty for the log.
        attempt: whose log; the last, if 0.
        offset: where to begin, in bytes of the whole output.
        limit: bytes at most.
        wait: seconds to wait if there is nothing more yet and the attempt goes on.
    """

    job: str
    artifact: str = ""
    attempt: int = 0
    offset: int = 0
    limit: int = 65_536
    wait: float = 0.0
    owner: str | None = None


class Piece(msgspec.Struct, frozen=True):
    """A part of an output.

    Attributes:
        data: its bytes.
        offset: where they begin: later than was asked for, if something was dropped between.
        dropped: bytes that were asked for and are not kept.
        size: bytes of the whole so far.
        end: whether nothing follows, now or later.
        attempt: whose log it is.
    """

    data: bytes
    offset: int
    dropped: int
    size: int
    end: bool
    attempt: int = 0

    @property
    def next_offset(self) -> int:
        """Where the next piece begins."""
        return self.offset + len(self.data)


def ended(job: Job) -> JobEnded:
    """What is told of a job's end."""
    error = "" if job.fault is None else job.fault.message
    return JobEnded(job.id, job.tool, str(job.state), job.result, error)
