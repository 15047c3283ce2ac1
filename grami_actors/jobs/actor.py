"""One attempt of a job, as an actor: it holds the policy, and no truth. Floor 12.

Rule 1: what is true of a job is in the store, in the attempt's folder and in the locks of its processes. An instance
        that takes over after a failure reads them, and goes on.
Rule 2: every step is written down before anything is done about it (intent before act), but for what the code of the
        job does by itself, which is written down when it is heard of.
Rule 3: it ends when its attempt is over and that is written down; the office looks what became of the job.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import msgspec

from grami_actors.actor import Actor
from grami_actors.errors import ErrorCode, JobError
from grami_actors.job import Job, Reason, State, Step
from grami_actors.jobs.failpoints import reached
from grami_actors.jobs.runner import Attempt, Outcome, Run
from grami_actors.jobs.service import Service
from grami_actors.jobs.store import Change, JobStore, Note, Stale, StoreError
from grami_actors.jobs.verdicts import after, cancelled
from grami_actors.messages import Envelope
from grami_actors.restarts import RestartPolicy

_WAITING = frozenset({State.QUEUED, State.BACKOFF})


class Begin(msgspec.Struct, frozen=True):
    """Start the attempt, or go on with it."""


class StopJob(msgspec.Struct, frozen=True):
    """Have the attempt end."""

    reason: Reason
    force: bool = False


class GiveInput(msgspec.Struct, frozen=True):
    """Somebody answered. Answered with the job; raises JobError."""

    answer: Any
    by: str


class Started(msgspec.Struct, frozen=True):
    """The code of the attempt runs."""

    run: object
    at: float


class Settle(msgspec.Struct, frozen=True):
    """The beginning could not be written down."""


class Noted(msgspec.Struct, frozen=True):
    """The code said something; ``done`` is set when it is written down."""

    run: object
    notes: Sequence[Note]
    fields: dict[str, Any]
    done: asyncio.Future[None]


class Asked(msgspec.Struct, frozen=True):
    """The code waits for input; ``done`` as above."""

    run: object
    question: Any
    at: float
    fields: dict[str, Any]
    done: asyncio.Future[None]


class Ended(msgspec.Struct, frozen=True):
    """Nothing of the attempt is alive."""

    run: object
    outcome: Outcome


class Mail:
    """Reports of a run, as messages to its actor. What a run says to an instance that was replaced is dropped."""

    def __init__(self, actor: JobActor) -> None:
        self._cell = actor._cell

    def _post(self, message: Any) -> None:
        with contextlib.suppress(Exception):  # the actor is gone, and the next one reads what there is
            self._cell.post_always(Envelope(message))

    def started(self, at: float) -> None:
        """See :class:`~grami_actors.jobs.runner.Reports`; the others too."""
        self._post(Started(self, at))

    def noted(self, notes: Sequence[Note], fields: dict[str, Any]) -> asyncio.Future[None]:
        """Done when it is written down."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._post(Noted(self, notes, fields, done))
        return done

    def asks(self, question: Any, at: float, fields: dict[str, Any]) -> asyncio.Future[None]:
        """Done when it is written down."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._post(Asked(self, question, at, fields, done))
        return done

    def ended(self, outcome: Outcome) -> None:
        """It is over."""
        self._post(Ended(self, outcome))


class JobActor(Actor):
    """Runs one attempt of a job.

    Args:
        service: what all of them share.
        job: its id.
    """

    listed = False
    mailbox: ClassVar[int] = 10_000
    restart = RestartPolicy(intensity=5, period=60.0)

    def __init__(self, service: Service, job: str) -> None:
        super().__init__()
        self._service = service
        self._id = job
        self._mail = Mail(self)
        self._run: Run | None = None
        self._begun: tuple[Change, asyncio.Future[Job]] | None = None
        self._over = False
        # To read where the job is, is the first message: who starts many of them waits for none, and without a hook
        # there is no task for the start.
        self._cell.mailbox.put_first(Envelope(Begin()))

    # Without on_stop, which would cost each attempt a task: when the server ends, its runners leave all runs.

    def on_failure(self, *_: Any) -> None:
        """Another instance takes over, with a run of its own."""
        if self._run is not None and not self._over:
            self._run.leave()

    def on_receive(self, message: Any) -> Any:
        """Do what the message says, one after another."""
        if getattr(message, "run", self._mail) is self._mail:
            return self._HANDLERS[type(message)](self, message)
        if isinstance(message, Noted | Asked):
            message.done.cancel()  # of the run of an instance that was replaced: its successor has looked for itself
        return None

    async def _begin(self, _: Begin) -> None:
        found = await self._service.surely(self._claimed)
        if found is None:
            self._leave()
            return
        self._job, claimed = found
        job = self._job
        if job.state in _WAITING:
            await self._end(cancelled(job, self._service.time()))
            return
        if job.state.terminal:
            self._leave()
            return
        if claimed:
            reached("actor.after_claim")
        attempt = Attempt(job, self._service.folder_of(job.id, job.attempt))
        self._run = run = self._service.runners[job.runner].run(attempt, self._mail)
        await (run.begin() if claimed else run.adopt())
        if job.state is State.RUNNING and job.questions:
            run.answer(job.answer, job.questions)  # it is written down, and may not have been given
        if job.cancellation is not None:
            await self._stop(StopJob(job.cancellation.reason, job.cancellation.force))
        elif job.state is State.STOPPING:
            run.stop(job.reason)

    def _claimed(self, store: JobStore) -> tuple[Job, bool] | None:
        """The job, and whether it was written down just now that its next attempt is about to be started."""
        job = store.get(self._id)
        if job is None:
            return None
        if job.state not in _WAITING or job.cancellation is not None:
            return job, False
        at = self._service.time()
        if job.state is State.BACKOFF:
            store.change(Change(job=job.id, step=Step.REQUEUE, at=at))
        return store.change(Change(job=job.id, step=Step.CLAIM, at=at, attempt=job.attempt)), True

    def _started(self, started: Started) -> None:
        if self._job.state is State.STARTING and self._begun is None:
            change = self._change(Step.STARTED, at=started.at)
            # Not waited for: what follows is written behind it, and the end of a short attempt together with it.
            written = self._service.ledger.do(lambda store: store.change(change), durable=False)
            self._begun = change, written
            written.add_done_callback(self._look_again)

    def _look_again(self, written: asyncio.Future[Job]) -> None:
        if not written.cancelled() and written.exception() is not None:
            with contextlib.suppress(Exception):  # as above
                self._cell.post_always(Envelope(Settle()))

    async def _settle(self, _: object = None) -> None:
        """See that the beginning is written down."""
        if self._begun is not None:
            (change, written), self._begun = self._begun, None
            try:
                self._job = await written
            except StoreError:
                self._job = await self._service.surely(lambda store: store.change(change))

    async def _noted(self, noted: Noted) -> None:
        await self._settle()
        self._job = await self._hold(lambda store: store.note(self._id, self._job.attempt, noted.notes, noted.fields))
        _done(noted.done)

    async def _hold(self, write: Callable[[JobStore], Job]) -> Job:
        """Write what may follow within a second, unless the disk is full: then as what must be written."""
        try:
            return await self._service.ledger.do(write, durable=False)
        except StoreError:
            return await self._service.surely(write)

    async def _asked(self, asked: Asked) -> None:
        await self._settle()
        fields = {**asked.fields, "question": asked.question, "questions": self._job.questions + 1}
        if self._job.state is State.RUNNING:
            change = self._change(Step.ASK, at=asked.at, **fields)
            note = Note("input", asked.at, {"question": asked.question})
            self._job = await self._service.surely(lambda store: self._noticed(store, change, note))
        else:  # it is being stopped: nobody is to answer
            self._job = await self._hold(lambda store: store.note(self._id, self._job.attempt, (), asked.fields))
        _done(asked.done)

    async def _input(self, given: GiveInput) -> Job:
        job = self._job
        if job.state is not State.INPUT_REQUIRED or self._run is None:
            text = f"the job {job.id} is {job.state} and waits for no input"
            raise JobError(text, code=ErrorCode.JOB_NOT_AWAITING_INPUT)
        change = self._change(Step.ANSWERED, answer=given.answer)
        note = Note("input", change.at, {"answered_by": given.by})
        # To its end, also when whoever answered goes away: what is written down is given, too.
        return await asyncio.shield(self._answered(self._run, change, note))

    async def _answered(self, run: Run, change: Change, note: Note) -> Job:
        self._job = await self._service.surely(lambda store: self._noticed(store, change, note))
        run.answer(self._job.answer, self._job.questions)
        return self._job

    @staticmethod
    def _noticed(store: JobStore, change: Change, note: Note) -> Job:
        """A step, and what there is to tell beside it, as one."""
        after = store.change(change)
        return store.note(after.id, after.attempt, (note,), {})

    async def _stop(self, wanted: StopJob) -> None:
        await self._settle()
        if self._job.state.alive and self._job.state is not State.STOPPING:
            change = self._change(Step.STOP, told={"reason": wanted.reason}, reason=wanted.reason)
            with contextlib.suppress(Stale):
                self._job = await self._service.surely(lambda store: store.change(change))
            reached("actor.after_stop")
        if self._run is not None and not self._over:
            self._run.stop(wanted.reason, force=wanted.force)

    async def _ended(self, ended: Ended) -> None:
        self._over = True
        reached("actor.before_end")
        await self._end(after(self._job, ended.outcome, ended.outcome.at, self.random))

    async def _end(self, change: Change) -> None:
        begun, self._begun = self._begun, None

        def write(store: JobStore) -> Job:
            known = store.get(self._id)
            if begun is not None and known is not None and known.state is State.STARTING:  # the first try failed
                store.change(begun[0])
            return store.change(change)

        with contextlib.suppress(Stale):
            self._job = await self._service.surely(write)
            if self._job.state.terminal:
                self._service.left[self._id] = self._job
        self._leave()

    def _leave(self) -> None:
        self._over = True
        self.stop()

    def _change(
        self, step: Step, *, at: float | None = None, told: dict[str, Any] | None = None, **fields: Any
    ) -> Change:
        return Change(
            job=self._id,
            step=step,
            at=self._service.time() if at is None else at,
            attempt=self._job.attempt,
            fields=fields,
            told=told or {},
        )

    _HANDLERS: ClassVar[dict[type, Callable[[Any, Any], Any]]] = {
        Begin: _begin,
        Started: _started,
        Settle: _settle,
        Noted: _noted,
        Asked: _asked,
        Ended: _ended,
        StopJob: _stop,
        GiveInput: _input,
    }


def _done(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)
