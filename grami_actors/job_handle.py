"""A job, in the hand of an agent: ``job = await self.submit("render", frames=10)``. Floor 4."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from grami_actors.job import Job, JobEvent
from grami_actors.job_requests import AnswerJob, CancelJob, GetJob, ReadEvents, ReadOutput

WAIT = 20.0
"""Seconds that one question for news waits."""

PIECE = 262_144
"""Bytes of output that are asked for at once."""

Ask = Callable[[Any, float], Awaitable[Any]]
"""Asks the actor ``jobs``; with seconds that the answer may take."""


class JobHandle:
    """A job that was accepted. It outlives its handle, and :meth:`Agent.job` makes another one from its id.

    Args:
        ask: asks the actor that knows.
        id: of the job.

    All methods raise :class:`~grami_actors.errors.JobError` (JOB_NOT_FOUND), and what an ask raises.
    """

    def __init__(self, ask: Ask, id: str) -> None:  # noqa: A002 - its name everywhere
        self._ask = ask
        self.id = id

    def __repr__(self) -> str:
        return f"<job {self.id}>"

    async def get(self) -> Job:
        """All that is known of it now."""
        job: Job = await self._ask(GetJob(self.id), WAIT)
        return job

    async def events(self, after: int = 0) -> AsyncGenerator[JobEvent, None]:
        """What happened to it after the event ``after``, in order and without a gap, then live; until its end."""
        while True:
            events: list[JobEvent] = await self._ask(ReadEvents(self.id, after, wait=WAIT), 2 * WAIT)
            for event in events:
                yield event
                after = event.seq
            if not events:
                job = await self.get()
                if job.state.terminal and job.seq <= after:
                    return

    async def result(self) -> Any:
        """Wait for its end, and give what its tool returned.

        Raises:
            ToolExecutionFailed, ToolTimeout, Cancelled, JobError: what became of it instead.
        """
        job = await self.get()
        while not job.state.terminal:
            await self._ask(ReadEvents(self.id, job.seq, limit=1, wait=WAIT), 2 * WAIT)
            job = await self.get()
        return job.outcome()

    async def cancel(self, *, force: bool = False) -> Job:
        """Have it end; it is written down that it will, but it may take its grace. ``force``: with SIGKILL, now.

        Raises:
            JobError: JOB_NOT_CANCELABLE: it is at its end.
        """
        job: Job = await self._ask(CancelJob(self.id, force=force), WAIT)
        return job

    async def answer(self, answer: Any, by: str = "") -> Job:
        """Give it the input that it waits for. Raises JobError: JOB_NOT_AWAITING_INPUT."""
        job: Job = await self._ask(AnswerJob(self.id, answer, by=by), WAIT)
        return job

    async def output(self, *, follow: bool = False, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """What its last attempt printed, in pieces; with ``follow`` until the attempt is over."""
        while True:
            wait = WAIT if follow else 0.0
            piece = await self._ask(ReadOutput(job=self.id, offset=offset, limit=PIECE, wait=wait), 2 * WAIT)
            if piece.data:
                yield piece.data
            offset = piece.next_offset
            if piece.end or not (piece.data or follow):
                return
