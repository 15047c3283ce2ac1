"""The contract of a runner: one attempt of a job, from its start to its end. Floor 12.

Variants: :mod:`.inside` (coroutines and threads of the server) and :mod:`.outside` (processes under a shim, which
outlive the server); tests/test_job_runners.py is the suite over both.

Rule 1: an attempt is started at most once: :meth:`Run.begin` of one that was begun before, by whichever server,
        starts nothing.
Rule 2: :meth:`Reports.ended` is called exactly once for each run that was begun or adopted and not left, after the last
        of the others, and when nothing of the attempt is alive.
Rule 3: all methods are called, and all reports are made, on the loop of the server.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from grami_actors.job import Exit, Job, Reason
from grami_actors.jobs.store import Note


class Attempt(msgspec.Struct, frozen=True):
    """What a run is told.

    Attributes:
        job: as it was when its turn came: ``job.attempt`` is the number, ``job.checkpoint`` what to go on from,
            ``job.imported`` how far its record was read before.
        folder: for its files; ``jobs/ID/ATTEMPT`` in the state directory. Made by the run.
    """

    job: Job
    folder: Path


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How an attempt ended.

    Attributes:
        kind: ``succeeded``; ``failed``: its code said so; ``stopped``: it was ended, for ``reason``; ``lost``: nobody
            knows; ``unstarted``: none of its code ran, and none will.
        at: when, in seconds since the epoch.
        reason: why it was ended.
        result: what it returned.
        code: of the error, for ``failed`` and ``unstarted``.
        message: in words, for a person.
        permanent: whether trying again would be of no use (arguments that do not fit, no such program).
        exit: as the shim saw it.
    """

    kind: Literal["succeeded", "failed", "stopped", "lost", "unstarted"]
    at: float
    reason: Reason = ""
    result: Any = None
    code: str = ""
    message: str = ""
    permanent: bool = False
    exit: Exit | None = None


class Reports(Protocol):
    """Is told what happens to a run."""

    def started(self, at: float) -> None:
        """Its code runs."""

    def noted(self, notes: Sequence[Note], fields: dict[str, Any]) -> Future[None]:
        """It said something; ``fields`` of the job change with it (``progress``, ``checkpoint``, ``imported``, ...).

        Returns:
            What is done when that is written down. A run that reads from a file waits for it before it reads on, so
            that what is not yet written stays there; for others it is of no concern. A run whose report is
            cancelled, or fails, reports nothing more, as if it were left.
        """

    def asks(self, question: Any, at: float, fields: dict[str, Any]) -> Future[None]:
        """It waits for input. ``fields`` and what is returned as above."""

    def ended(self, outcome: Outcome) -> None:
        """Nothing of it is alive."""


class Run(Protocol):
    """One attempt."""

    async def begin(self) -> None:
        """Start it, and return when that is certain. What goes wrong is reported as ``unstarted``, not raised.

        Cancelling this call leaves nothing half done that a later :meth:`adopt` could not find out about.
        """

    async def adopt(self) -> None:
        """Go on with what an earlier server, or an earlier actor of this one, began; report what became of it."""

    def stop(self, reason: Reason, *, force: bool = False) -> None:
        """Have it end, by the ladder: ask, after a grace SIGTERM, after another SIGKILL. Again: by force."""

    def answer(self, answer: Any, question: int) -> None:
        """Give it the input that it waits for.

        Args:
            answer: the input.
            question: which of its questions is answered, from 1. One that has its answer is given no other, so that
                whoever does not know whether an answer arrived gives it again.
        """

    def leave(self) -> None:
        """Let go of it without a report: the server ends, or the actor is replaced. What can go on goes on."""


class Runner(Protocol):
    """Makes runs."""

    def run(self, attempt: Attempt, reports: Reports) -> Run:
        """One that is neither begun nor adopted."""
