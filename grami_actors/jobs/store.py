"""The contract of a job store: the only truth about jobs. Floor 12.

Variants: :mod:`.memory` (the reference, and the one of simulations) and :mod:`.sqlite`; what a call makes of a job is
decided in :mod:`.changes`, for both; tests/test_job_store.py is the suite over both.

Rule 1: a store is used by one thread at a time, and by one server. Times are parameters: it reads no clock.
Rule 2: what is done within :meth:`JobStore.batch` is written together, or not at all. A call that raises leaves no
        trace of itself in the batch, and does not end it; nor does a batch within it that raises.
Rule 3: :meth:`~JobStore.change` and :meth:`~JobStore.note` compare the attempt before they set: what an old attempt
        says late changes nothing.
Rule 4: every event gets the next ``seq`` of its job in the batch that causes it.
Rule 5: what is given to it, and what it gives, is not changed afterwards by anybody.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

import msgspec

from grami_actors.errors import ErrorCode, GramiError
from grami_actors.job import Job, JobEvent, State, Step

MOST_EVENTS = 1_000
"""Events that one call gives at most."""

BIG = ("answer", "arguments", "checkpoint", "question", "result")
"""Attributes of a job that may be of any size, and are what JSON can say."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A step of a job.

    A claim counts ``attempt`` up, and clears what was of the one before. ``started_at`` and ``finished_at`` are set by
    the steps that they are named for, and ``question`` is cleared when nobody waits for its answer any more.

    Attributes:
        job: its id.
        step: what happens.
        at: seconds since the epoch.
        attempt: the attempt that it is about; ``None`` for whichever it is. Of a claim: the one before.
        fields: attributes of :class:`~grami_actors.job.Job` that change with it.
        told: what its ``state`` event says beside ``state``, as plain data.
    """

    job: str
    step: Step
    at: float
    attempt: int | None = None
    fields: dict[str, Any] = {}
    told: dict[str, Any] = {}


class Note(msgspec.Struct, frozen=True):
    """One event of an attempt that changes no state."""

    kind: Literal["progress", "checkpoint", "artifact", "input", "log"]
    at: float
    data: dict[str, Any]


class Stale(GramiError):
    """Another attempt is under way, or the job is at its end."""

    error_code = ErrorCode.INTERNAL_ERROR


class StoreError(GramiError):
    """The store cannot be written or read now; what the disk or the database said is in the message."""

    error_code = ErrorCode.RESOURCE_EXHAUSTED


class Firing(msgspec.Struct, frozen=True):
    """When a schedule fires next, in seconds since the epoch; ``spec`` is what was computed from."""

    name: str
    spec: str
    next_at: float


class Search(msgspec.Struct, frozen=True, kw_only=True):
    """Which jobs are looked for.

    Attributes:
        owner: whose; ``None`` for everybody's.
        states: in one of these; any, if empty.
        tool: of this tool; any, if empty.
        before: with a lesser id than this: older; from the latest, if empty.
        limit: at most so many.
    """

    owner: str | None = None
    states: Collection[State] = ()
    tool: str = ""
    before: str = ""
    limit: int = 50


class JobStore(Protocol):
    """Keeps jobs, their events, and when schedules fire."""

    def open(self) -> None:
        """Make it ready. Raises ConfigError: it is damaged, cannot be read or written, or is of a later version."""

    def close(self) -> None:
        """Let go of it; twice is once."""

    def batch(self, *, durable: bool) -> AbstractContextManager[list[Job]]:
        """Write what is done within at its end.

        It gives a list that is filled at the end: the jobs that were written, each once and as it is then, the last
        written last. A batch within another is a part of it that is written, or dropped when it raises, on its own;
        its list stays empty.

        Args:
            durable: whether it must be on the disk then, or may follow within a second. Of the outer one.

        Raises:
            StoreError: it could not be written, nothing of it was; the same may succeed later (``busy``, disk full).
        """

    # --- writing, within a batch; a value that cannot be written raises TypeError, ValueError or OverflowError ---

    def add(self, job: Job) -> tuple[Job, bool]:
        """Accept a job; with its first event. Returns what stands under its key, or its id, and whether that is new.

        Raises:
            ProtocolError: IDEMPOTENCY_KEY_REUSED: the owner's key stands for another tool or other arguments.
        """

    def change(self, change: Change) -> Job:
        """Take a step; returns the job after it.

        Raises:
            Stale: another attempt is under way, or the job is at its end.
            WrongStep: the step does not exist in its state.
            JobError: JOB_NOT_FOUND.
        """

    def note(self, job: str, attempt: int, notes: Sequence[Note], fields: dict[str, Any]) -> Job:
        """Add events of the attempt under way, and set attributes of the job with them. Raises Stale, JobError."""

    def amend(self, job: str, fields: dict[str, Any]) -> Job:
        """Set attributes that no event tells (``woken``, ``cancellation``). Raises JobError."""

    def expire(self, jobs: Collection[str]) -> None:
        """Forget results, arguments and events of jobs at their end; id, owner, key and outcome stay. No others."""

    def forget(self, jobs: Collection[str]) -> None:
        """Remove jobs at their end, with their keys. No others."""

    def fire(self, firing: Firing) -> None:
        """Set when a schedule fires next."""

    # --- reading; each may raise StoreError ---

    def get(self, job: str) -> Job | None:
        """A job; ``None`` if there is none."""

    def standing(self, job: Job) -> Job | None:
        """What :meth:`add` would give instead of accepting the job; ``None`` if nothing. Raises as that does."""

    def events(self, job: str, after: int, limit: int = MOST_EVENTS) -> list[JobEvent]:
        """Events with a greater ``seq`` than ``after``, in order; at most ``limit`` and :data:`MOST_EVENTS`."""

    def open_jobs(self) -> list[Job]:
        """All that are not at their end, in the order in which they were accepted."""

    def unwoken(self) -> list[Job]:
        """Those at their end whose agent is still to be told of it, in the order in which they were accepted."""

    def find(self, search: Search) -> list[Job]:
        """Jobs, the greatest id first, which is the latest; without what is :data:`BIG`: that may be too much."""

    def children(self, parent: str) -> list[Job]:
        """Jobs that are not at their end and were caused by this one, but for those that are detached."""

    def over(self, *, finished_before: float, expired: bool, limit: int) -> list[str]:
        """Ids of jobs that ended before then, whose results were removed already, or not; the first ended first."""

    def firings(self) -> list[Firing]:
        """When schedules fire, by name."""
