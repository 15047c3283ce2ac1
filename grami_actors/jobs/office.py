"""The actor ``jobs``: accepts jobs, has them wait, starts each in its turn, and answers about them. Floor 12.

Rule 1: a job that was acknowledged is written down. What waits and what has a slot is known by heart, and read again
        from the store by an instance that takes over.
Rule 2: a slot is free when the actor of the attempt is gone, which is when nothing of the attempt is alive.
Rule 3: what somebody may not see is as what does not exist.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, Literal

import msgspec
from msgspec.structs import replace as replaced

from grami_actors.actor import Actor
from grami_actors.errors import (
    DestinationNotFound,
    ErrorCode,
    GramiError,
    JobError,
    LimitReached,
    ProtocolError,
)
from grami_actors.future import Future, current_scope
from grami_actors.job import Cancellation, Job, JobEvent, State, digest_of, new_id
from grami_actors.job_requests import (
    REQUEST,
    AnswerJob,
    CancelJob,
    GetJob,
    JobEnded,
    ListJobs,
    Piece,
    ReadEvents,
    ReadOutput,
    RetryJob,
    SubmitJob,
    SubmitRequest,
    ended,
)
from grami_actors.jobs.actor import GiveInput, JobActor, StopJob
from grami_actors.jobs.admission import Queue
from grami_actors.jobs.clerk import JobClerk
from grami_actors.jobs.failpoints import reached
from grami_actors.jobs.logs import read_artifact, read_log
from grami_actors.jobs.service import Service
from grami_actors.jobs.store import Change, Search, Stale, StoreError
from grami_actors.jobs.verdicts import cancelled, overdue
from grami_actors.messages import Envelope, Terminated, type_name
from grami_actors.ref import Ref
from grami_actors.restarts import RestartPolicy
from grami_actors.router import Fanout
from grami_actors.telemetry import JobsFound, JobsLeft

AGAIN = 1.0
"""Seconds after which an attempt whose actor gave up gets another one."""

WAKES = (0.0, 1.0, 10.0, 60.0)
"""Seconds before each try to tell an agent of a job's end; then it is given up, and the operator is told."""

LOOK_EVERY = 0.2
"""Seconds between two looks at an output that somebody waits for."""

TOLD_WITHIN = 1.0
"""Seconds that an answer to a cancel waits for the job to be stopping; that it is to end is written down before."""

OUTPUT_PIECE = 262_144


class Look(msgspec.Struct, frozen=True):
    """Something is due."""


class Launch(msgspec.Struct, frozen=True):
    """An attempt needs an actor again."""

    job: str


class Halt(msgspec.Struct, frozen=True):
    """The server ends: start nothing more, have those end that cannot outlive it, and answer when they have."""

    everything: bool = False


class JobOffice(Actor):
    """Keeps the queue.

    Args:
        service: what it shares with the actors of the attempts.
    """

    mailbox: ClassVar[int] = 20_000
    overflow = "wait"
    concurrency: ClassVar[int] = 20_000  # whoever waits for news of a job is a handler at work
    listed = False
    restart = RestartPolicy(pause=1.0)

    def __init__(self, service: Service) -> None:
        super().__init__()
        self._service = service
        self._queue = Queue(service.plan.bounds)
        self._actors: dict[str, Ref[Any]] = {}
        self._launching = False
        self._halted = False

    async def on_start(self) -> None:
        """Read what there is to do, and go on with it."""
        service = self._service
        found = await service.ledger.read(lambda store: (store.open_jobs(), store.unwoken()))
        for job in found[0]:
            if job.state.alive:
                self._queue.occupy(job)
                await self._launch(job.id)
            else:
                self._queue.enqueue(job)
        for job in found[1]:
            self._aside(self._wake(job))
        if found[0]:
            running = sum(job.state.alive for job in found[0])
            service.system.bus.publish(JobsFound(running, len(found[0]) - running))
        await self.spawn(JobClerk, service, self._cell.ref, name="clerk")
        self.after(0.0, Look(), key=Look)

    def on_receive(self, message: Any) -> Any:
        """Answer."""
        return self._HANDLERS[type(message)](self, message)

    def _aside(self, work: Coroutine[Any, Any, None]) -> None:
        self._cell.runtime.begin(work)

    # --- accepting ---

    async def _submit(self, wanted: SubmitJob) -> Job:
        service = self._service
        tool = service.tool_of(wanted.tool)
        try:
            arguments = await self._converted(tool, wanted.arguments)
        except ImportError as error:
            raise JobError(f"the tool {wanted.tool} cannot be imported: {error}") from error
        return await self._accept(
            _new(
                wanted,
                tool=tool.name,
                arguments=arguments,
                digest=digest_of(tool.name, arguments),
                terms=tool.terms,
                runner=tool.runner,
                parent=wanted.parent or _parent(),
            )
        )

    async def _converted(self, tool: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments as JSON has them, with the defaults; checked against the tool's schema."""
        if not tool.loaded and not self._service.system.simulated:
            await asyncio.to_thread(tool.load)
        converted: dict[str, Any] = msgspec.to_builtins(tool.convert(arguments), str_keys=True)
        return converted

    async def _submit_request(self, wanted: SubmitRequest) -> Job:
        name = f"{REQUEST}{type_name(type(wanted.message))}"
        tool = self._service.tools.get(name)
        if tool is None:
            raise DestinationNotFound(f"this swarm has no messages as in {name!r}")
        arguments = {"message": msgspec.to_builtins(wanted.message, str_keys=True), "to": wanted.to}
        digest = digest_of(tool.name, arguments)
        return await self._accept(
            _new(wanted, tool=tool.name, arguments=arguments, digest=digest, terms=tool.terms, parent=_parent())
        )

    async def _accept(self, job: Job) -> Job:
        service, order, now = self._service, job.order, self._service.time()
        if order.wake:
            self._check_wake(order.wake)
        due = max(now, order.not_before or now)
        deadline = min((each for each in (order.deadline, job.terms.deadline) if each is not None), default=None)
        job = replaced(
            job,
            id=new_id(now, self.random),
            created_at=now,
            due_at=due,
            expires_at=None if deadline is None else due + deadline,
            queue_expires_at=None if job.terms.queue_timeout is None else due + job.terms.queue_timeout,
        )
        try:
            if order.idempotency_key is not None:
                known = await service.ledger.read(lambda store: store.standing(job))
                if known is not None:
                    return known
            self._queue.check(job.tool, job.owner, job.terms)
            written = service.ledger.do(lambda store: store.add(job))
            written.add_done_callback(self._written)  # also when whoever asked for it is gone by then
            return (await asyncio.shield(written))[0]
        except StoreError as error:
            text = f"the job could not be written down, and was not accepted: {error}"
            raise LimitReached(text, code=ErrorCode.RESOURCE_EXHAUSTED, limit="store", retry_after_ms=1000) from error

    def _written(self, written: asyncio.Future[tuple[Job, bool]]) -> None:
        """A job is accepted: it waits for its turn."""
        if written.cancelled() or written.exception() is not None or self._cell.actor is not self:
            return  # an instance that took over has read it
        accepted, new = written.result()
        reached("office.after_accept")
        if new:
            self._queue.enqueue(accepted)
            self._look()

    def _check_wake(self, name: str) -> None:
        try:
            self._woken(name, JobEnded("", "", ""))
        except DestinationNotFound as error:
            raise ProtocolError(error.message, code=ErrorCode.VALIDATION_FAILED, param="$.wake") from None

    def _woken(self, name: str, message: JobEnded) -> Any:
        """Who is told. Raises DestinationNotFound: nobody has this name, or has a handler for that."""
        found = self._cell.runtime.resolve(name, message)
        cells = found.cells() if isinstance(found, Fanout) else (found,)
        # Names of ours are names, too, and our actors fail of a message that they do not know.
        if any(JobEnded not in getattr(each.spec.kind, "handlers", ()) for each in cells):
            raise DestinationNotFound(f"there is no agent {name!r} that handles JobEnded, to be told of the job's end")
        return found

    # --- starting ---

    def _look(self, _: Any = None) -> None:
        """See what is due, as soon as there is time: many submits make one look."""
        if not self._launching and not self._halted:
            self._launching = True
            self._aside(self._fill())

    async def _fill(self) -> None:
        """Start what may start, end what waited for too long, and set the timer for the next look."""
        try:
            now = self._service.time()
            for job in self._queue.overdue(now):
                if self._queue.remove(job.id):  # else somebody cancelled it while another one was written down
                    await self._finish(overdue(job, now))
            while not self._halted and (first := self._queue.next(self._service.time())) is not None:
                await self._launch(first.id)
        finally:
            self._launching = False
        due = self._queue.next_due()
        if due is not None:
            self.after(max(0.0, due - self._service.time()), Look(), key=Look)

    async def _launch(self, job: str) -> None:
        try:
            ref = await self.spawn(JobActor, self._service, job, name=job)
        except GramiError as error:
            if not self._halted:
                self._service.doubt(f"the job {job} cannot be started now: {error.message}")
                self.after(AGAIN, Launch(job), key=("launch", job))
            return
        self._actors[job] = ref
        self.watch(ref)

    async def _launch_again(self, wanted: Launch) -> None:
        if not self._halted:
            await self._launch(wanted.job)

    async def _finish(self, change: Change) -> Job:
        """End a job that waits."""
        over = await self._service.surely(lambda store: store.change(change))
        self._after(over)
        return over

    def on_terminated(self, terminated: Terminated) -> Any:
        """The actor of an attempt is gone: see what became of the job."""
        name = terminated.name.rpartition("/")[2]
        self._actors.pop(name, None)
        over = self._service.left.pop(name, None)
        if over is None:
            return self._left(name)
        self._queue.release(name)
        self._after(over)
        self._look()
        return None

    async def _left(self, name: str) -> None:
        """An actor is gone, and left its job unfinished, it seems."""
        job = await self._service.surely(lambda store: store.get(name))
        if job is not None and job.state.alive:
            if not self._halted:
                self.after(AGAIN, Launch(name), key=("launch", name))
            return
        self._queue.release(name)
        if job is not None and not job.state.terminal:
            if job.cancellation is not None:
                await self._finish(cancelled(job, self._service.time()))
            else:
                self._queue.enqueue(job)
        elif job is not None:
            self._after(job)
        self._look()

    def _after(self, job: Job) -> None:
        """A job is at its end."""
        if job.order.wake and not job.woken:
            self._aside(self._wake(job))

    async def _wake(self, job: Job) -> None:
        """Tell an agent of a job's end, until it has heard."""
        failure: BaseException | None = None
        for wait in WAKES:
            await asyncio.sleep(wait)
            try:
                await self._woken(job.order.wake, ended(job)).ask(ended(job))
            except Exception as error:  # noqa: BLE001 - whatever the agent raises
                failure = error
            else:
                break
        else:
            self._service.doubt(f"{job.order.wake} could not be told of the end of the job {job.id}: {failure}")
        await self._service.surely(lambda store: store.amend(job.id, {"woken": True}))

    # --- what is asked about a job ---

    async def _known(self, job: str, owner: str | None) -> Job:
        return _seen(await self._service.ledger.read(lambda store: store.get(job)), job, owner)

    async def _get(self, wanted: GetJob) -> Job:
        return await self._known(wanted.job, wanted.owner)

    async def _list(self, wanted: ListJobs) -> list[Job]:
        search = Search(
            owner=wanted.owner, states=wanted.states, tool=wanted.tool, before=wanted.before, limit=wanted.limit
        )
        return await self._service.ledger.read(lambda store: store.find(search))

    async def _cancel(self, wanted: CancelJob) -> Job:
        job = await self._known(wanted.job, wanted.owner)
        if job.state.terminal:
            raise JobError(f"the job {job.id} is {job.state} already", code=ErrorCode.JOB_NOT_CANCELABLE)
        # To its end, also when whoever asked for it goes away or has no more time.
        return await asyncio.shield(self._cancel_tree(job, "user", force=wanted.force))

    async def _cancel_tree(self, job: Job, reason: Literal["user", "parent"], *, force: bool) -> Job:
        """A job, and what it caused."""
        service, known = self._service, job.cancellation
        wish = Cancellation(service.time(), reason, force) if known is None else replaced(known, force=force)
        if known is None or force:
            job = await service.surely(lambda store: store.amend(job.id, {"cancellation": wish}))
        if self._queue.remove(job.id):
            done = await self._finish(cancelled(job, service.time()))
        else:
            done = await self._stopping(job.id, StopJob(reason, force))
        for child in await service.ledger.read(lambda store: store.children(job.id)):
            with contextlib.suppress(Stale):
                await self._cancel_tree(child, "parent", force=force)
        return done

    async def _stopping(self, job: str, wanted: StopJob) -> Job:
        """Have an attempt end; the job as it is when that is written down, or a moment later."""
        actor, until = self._actors.get(job), self.now() + TOLD_WITHIN
        if actor is not None:  # else it is being started, and will read that it is to end
            # Without a deadline: the wish is written down. And who comes too late with it is no dead letter.
            with contextlib.suppress(GramiError):
                actor._cell.post_always(Envelope(wanted, Future()))
        while True:
            with self._service.listening(job) as news:
                found, left = await self._known(job, None), until - self.now()
                if found.state is State.STOPPING or found.state.terminal or left <= 0:
                    return found
                await news(left)

    async def _answer(self, wanted: AnswerJob) -> Job:
        job = await self._known(wanted.job, wanted.owner)
        actor = self._actors.get(job.id)
        if actor is None or job.state is not State.INPUT_REQUIRED:
            text = f"the job {job.id} is {job.state} and waits for no input"
            raise JobError(text, code=ErrorCode.JOB_NOT_AWAITING_INPUT)
        answered: Job = await self.ask(actor, GiveInput(wanted.answer, wanted.by))
        return answered

    async def _retry(self, wanted: RetryJob) -> Job:
        job = await self._known(wanted.job, wanted.owner)
        if not job.state.terminal or job.expired:
            why = "its arguments are not kept any more" if job.expired else f"it is {job.state}: cancel it first"
            raise JobError(f"the job {job.id} cannot be submitted again: {why}")
        order = replaced(job.order, idempotency_key=None, not_before=None)
        tool = self._service.tools.get(job.tool)
        if tool is None:
            raise DestinationNotFound(f"there is no tool {job.tool!r} any more")
        scopes = job.scopes if wanted.scopes is None else wanted.scopes
        return await self._accept(_new(job, order=order, terms=tool.terms, runner=tool.runner, scopes=scopes))

    async def _events(self, wanted: ReadEvents) -> list[JobEvent]:
        service, until = self._service, self.now() + wanted.wait
        while True:
            with service.listening(wanted.job) as news:
                found, events = await service.ledger.read(
                    lambda store: (store.get(wanted.job), store.events(wanted.job, wanted.after, wanted.limit))
                )
                job, left = _seen(found, wanted.job, wanted.owner), until - self.now()
                if events or job.seq > wanted.after or job.state.terminal or left <= 0:
                    return events
                await news(left)

    async def _read(self, wanted: ReadOutput) -> Piece:
        until = self.now() + wanted.wait
        while True:
            job = await self._known(wanted.job, wanted.owner)
            piece = await self._piece(job, wanted)
            if piece.data or piece.end or self.now() >= until:
                return piece
            await asyncio.sleep(LOOK_EVERY)

    async def _piece(self, job: Job, wanted: ReadOutput) -> Piece:
        limit = max(1, min(wanted.limit, OUTPUT_PIECE))
        attempt = wanted.attempt or job.attempt
        over = attempt < job.attempt or not job.state.alive
        if wanted.artifact:
            if wanted.artifact not in job.artifacts:
                known = ", ".join(job.artifacts) or "none"
                text = f"the job {job.id} has no artifact {wanted.artifact!r}; it has {known}"
                raise JobError(text, code=ErrorCode.JOB_NOT_FOUND, param="$.artifact")
            folder = self._service.folder / job.id / "artifacts"
            work: Callable[[], Piece] = lambda: read_artifact(folder, wanted.artifact, wanted.offset, limit)  # noqa: E731
        else:
            folder = self._service.folder_of(job.id, attempt)
            work = lambda: replaced(read_log(folder, wanted.offset, limit, over=over), attempt=attempt)  # noqa: E731
        try:
            return work() if self._service.system.simulated else await asyncio.to_thread(work)
        except FileNotFoundError as error:
            raise JobError(f"{error} any more", code=ErrorCode.JOB_NOT_FOUND, param="$.artifact") from error

    async def _halt(self, halt: Halt) -> None:
        self._halted = True
        under_way = await self._service.ledger.read(lambda store: store.open_jobs())
        mortal = {
            each.id: self._actors[each.id]
            for each in under_way
            if each.id in self._actors
            and (halt.everything or each.runner == "inside" or each.terms.on_server_exit == "stop")
        }
        if under_way:
            others = [job.state.alive for job in under_way if job.id not in mortal]
            self._service.system.bus.publish(JobsLeft(sum(others), len(others) - sum(others), len(mortal)))
        for actor in mortal.values():
            actor.tell(StopJob("shutdown"))
        while any(each in self._actors for each in mortal):  # noqa: ASYNC110 - the end of the server, and of all events
            await asyncio.sleep(LOOK_EVERY / 10)

    _HANDLERS: ClassVar[dict[type, Callable[[Any, Any], Any]]] = {
        SubmitJob: _submit,
        SubmitRequest: _submit_request,
        GetJob: _get,
        ListJobs: _list,
        CancelJob: _cancel,
        AnswerJob: _answer,
        RetryJob: _retry,
        ReadEvents: _events,
        ReadOutput: _read,
        Look: _look,
        Launch: _launch_again,
        Halt: _halt,
    }


def _seen(found: Job | None, job: str, owner: str | None) -> Job:
    """A job, for this owner. Raises JobError: for them there is none."""
    if found is None or owner not in {None, found.owner}:
        raise JobError(f"there is no job {job}", code=ErrorCode.JOB_NOT_FOUND, param="$.job_id")
    return found


def _new(source: Any, **fields: Any) -> Job:
    """A job that is not accepted yet, with what the source has of it."""
    taken = {name: getattr(source, name) for name in Job.__struct_fields__ if hasattr(source, name)}
    kept = ("tool", "arguments", "owner", "scopes", "digest", "order", "terms", "runner", "parent")
    return Job(id="", created_at=0.0, due_at=0.0, **{name: taken[name] for name in kept if name in taken} | fields)


def _parent() -> str:
    """The job that the message being handled belongs to."""
    scope = current_scope()
    while scope is not None and scope.parent is not None:
        scope = scope.parent
    return "" if scope is None else scope.job
