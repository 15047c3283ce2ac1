"""The process lane: actors in worker processes, which may crash, hang or be killed. Floor 9.

Rules:

1. An actor with ``concurrency = N`` has N workers, each with an instance of its own and nothing shared between them;
   each handles one message at a time. Queued messages stay in the mailbox, here.
2. Whatever a worker does ends one message at most. The caller gets AgentCrashed, and the supervisor what happened.
3. A handler whose request is cancelled has :data:`PATIENCE` seconds to end; then its worker is killed.
4. A restart is a fresh process. A worker of the instance before it that is still at work may end its message.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import pickle
import sys
import threading
from functools import partial
from typing import Any

import msgspec

from grami_actors.cell import Cell
from grami_actors.context import clean_context
from grami_actors.errors import GramiError, StartFailed, describe
from grami_actors.future import Future
from grami_actors.lanes.child import Child
from grami_actors.lanes.codec import CannotCross, Codec, loaded
from grami_actors.lanes.errands import Errands, Job, find_ref
from grami_actors.lanes.pipe import Begin, Call, Cancel, Done, Facts, Failed, Hook
from grami_actors.messages import Envelope, Last, Scope
from grami_actors.spec import LaneName
from grami_actors.telemetry import ToolCalled

PATIENCE = 1.0
"""Seconds that a handler gets to end after its request was cancelled."""

CLOSE_SECONDS = 10.0
"""Seconds after which a system that closes no longer waits for a process that cannot be killed."""

MEMORY = 2 * 1024**3
"""Bytes of data that a worker may have, unless told otherwise."""

_Outcome = tuple[Any, BaseException | None]
"""What a hook returned, or raised: not an exception of a task's, since asyncio lets SystemExit through those."""


class Workers(msgspec.Struct, frozen=True):
    """The limits of the worker processes of a system.

    Attributes:
        processes: how many there may be; ``None`` for twice as many as processors, but at least 8.
        memory: bytes of data that each may have (Linux); ``None`` for no limit.
        environment: variables that they get besides ``PATH``, ``HOME``, the locale and what Python needs to import.
    """

    processes: int | None = None
    memory: int | None = MEMORY
    environment: dict[str, str] = {}

    def __post_init__(self) -> None:
        if min(self.processes or 1, self.memory or 1) < 1 or self.processes == 0 or self.memory == 0:
            raise ValueError("processes and memory are whole numbers of at least 1, or None")


class _Worker:
    """A worker process with what the lane knows of it."""

    __slots__ = ("begun", "cell", "child", "errands", "generation", "retired")

    def __init__(self, cell: Cell, lane: ProcessLane, loop: asyncio.AbstractEventLoop) -> None:
        codec = Codec(loaded, partial(find_ref, cell.runtime), trusting=False)
        self.cell = cell
        self.generation = cell.actor
        self.retired = False
        self.begun = False
        self.child = Child(loop, codec, partial(lane.heard, self), partial(lane.gone, self))
        self.errands = Errands(cell, self.child, loop)

    @property
    def job(self) -> Job | None:
        return self.errands.job

    @property
    def idle(self) -> bool:
        return self.begun and self.errands.job is None and self.child.alive

    def retire(self) -> None:
        """Let it end, after the message in hand."""
        self.retired = True
        if self.errands.job is None:
            self.child.end()


class _Port:
    """What the lane keeps per cell."""

    __slots__ = ("culprit", "retired", "workers")

    def __init__(self) -> None:
        self.workers: list[_Worker] = []
        self.retired: set[_Worker] = set()
        self.culprit: _Worker | None = None

    def busy(self) -> list[_Worker]:
        return [worker for worker in (*self.workers, *self.retired) if worker.job is not None]


class ProcessLane:
    """Runs handlers in worker processes. Everything in here runs on the home loop.

    Args:
        loop: the home loop.
        options: the limits.
    """

    name: LaneName = "process"
    shared = False

    def __init__(self, loop: asyncio.AbstractEventLoop, options: Workers) -> None:
        self._loop = loop
        self._options = options
        self._limit = options.processes or max(8, 2 * (os.cpu_count() or 1))
        self._used = 0
        self._numbers = itertools.count(1)
        self._living: set[_Worker] = set()
        self._thread = threading.get_ident()
        # Handlers must not inherit the context of whoever happened to wake the lane.
        self._context = clean_context()

    def attach(self, cell: Cell) -> None:
        """Own the cell, and reserve its workers. Raises StartFailed when the budget is used up."""
        if sys.platform == "win32":
            raise StartFailed("the process lane needs POSIX; use the thread lane here")
        if self._used + cell.concurrency > self._limit:
            raise StartFailed(
                f"{cell.name} needs {cell.concurrency} worker processes, and {self._used} of the {self._limit} that "
                "this system may have are in use; ActorSystem(workers=Workers(processes=N)) allows more"
            )
        self._used += cell.concurrency
        cell.port = _Port()

    def lend(self, future: Future[Any]) -> None:
        """Nothing: its handlers run elsewhere."""

    def wake(self, cell: Cell) -> None:
        """There is mail; from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            if threading.get_ident() == self._thread:
                self._loop.call_soon(self._drain, cell, context=self._context)
            else:
                self._loop.call_soon_threadsafe(self._drain, cell, context=self._context)

    # --- messages ---

    def _drain(self, cell: Cell) -> None:
        port: _Port | None = cell.port
        cell.mailbox.measure()
        while port is not None and not cell.paused:
            worker = next((worker for worker in port.workers if worker.idle), None)
            envelope = None if worker is None else cell.mailbox.take()
            if worker is None or envelope is None:
                return
            self._context.copy().run(self._give, worker, envelope)

    def _give(self, worker: _Worker, envelope: Envelope) -> None:
        cell = worker.cell
        if envelope.message.__class__ is Last:
            cell.handle(envelope, cell.now())
            return
        scope = envelope.scope
        if scope is not None and not cell.admits(envelope, scope, cell.now()):
            return
        envelope.receiver = cell
        if cell.bus.timed:
            envelope.taken_at = cell.now()
            if (clock := cell.bus.clocked) is not None and not clock.given(cell, envelope):
                return
        job = self._begin(worker, envelope)
        try:
            worker.child.send(_call(worker, job, envelope))
        except CannotCross as refused:
            self._release(worker)
            cell.fail(envelope, refused, cell.actor)
            return
        job.interrupt = partial(self._cancelled, worker, job)
        if scope is not None:
            scope.on_cancel(job.interrupt)

    def _begin(self, worker: _Worker, envelope: Envelope, hook: asyncio.Future[Any] | None = None) -> Job:
        job = Job(next(self._numbers), envelope, self._context.copy(), hook)
        worker.errands.job = job
        worker.cell.working += 1
        worker.cell.at_work = envelope
        return job

    def _release(self, worker: _Worker) -> Job | None:
        """The worker's hands are empty, whatever became of the job."""
        job, worker.errands.job = worker.errands.job, None
        if job is None:
            return None
        if job.timer is not None:
            job.timer.cancel()
        for callback in job.over:
            callback()
        if job.envelope.scope is not None:
            job.envelope.scope.forget(job.interrupt)
        worker.cell.working -= 1
        if worker.cell.at_work is job.envelope:
            worker.cell.at_work = None
        if worker.retired:
            worker.child.end()
        return job

    def _cancelled(self, worker: _Worker, job: Job, reason: GramiError) -> None:
        """The request of a message in hand was cancelled; from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._interrupt, worker, job, reason)

    def _interrupt(self, worker: _Worker, job: Job, reason: GramiError) -> None:
        if worker.job is not job or job.timer is not None:
            return
        worker.child.send(Cancel(job.number, worker.child.pack(reason)))
        why = f"its handler did not end within {PATIENCE:g} s after it was cancelled"
        job.timer = self._loop.call_later(PATIENCE, worker.child.kill, why)

    # --- what a worker says ---

    def heard(self, worker: _Worker, report: Any) -> None:
        """A frame came from a worker. Raises for what makes no sense."""
        if not isinstance(report, (Done, Failed)):
            worker.errands.run(report)
            return
        if worker.job is None or worker.job.number != report.number:
            raise ValueError("an answer to nothing that was asked")
        if isinstance(report, Failed) and not isinstance(report.error, BaseException):
            raise TypeError("an error that is none")
        job = self._release(worker)
        assert job is not None
        if isinstance(report, Done):
            self._succeeded(worker, job, report.value)
        else:
            worker.cell.port.culprit = worker
            self._failed(worker, job, report.error)
        self._drain(worker.cell)

    @staticmethod
    def _succeeded(worker: _Worker, job: Job, value: Any) -> None:
        if job.hook is None:
            job.context.run(worker.cell.succeed, job.envelope, value)
        elif not job.hook.done():
            job.hook.set_result((value, None))

    @staticmethod
    def _failed(worker: _Worker, job: Job, error: BaseException) -> None:
        if job.hook is None:
            job.context.run(worker.cell.fail, job.envelope, error, worker.generation)
        elif not job.hook.done():
            job.hook.set_result((None, error))

    def gone(self, worker: _Worker) -> None:
        """A worker is gone."""
        self._living.discard(worker)
        cell = worker.cell
        cell.port.retired.discard(worker)
        death = worker.child.death()
        job = self._release(worker)
        worker.errands.close()
        if job is not None:
            self._failed(worker, job, death)
        elif worker.begun and not worker.retired:
            cell.runtime.failed(cell, death)

    # --- the life of an instance ---

    async def start(self, cell: Cell) -> None:
        """Start fresh workers, and make an instance and run its ``on_start`` in each."""
        port: _Port = cell.port
        self._retire(port)
        cell.actor = _stand_in(cell)
        begin = self._begin_frame(cell)
        port.workers = [_Worker(cell, self, self._loop) for _ in range(cell.concurrency)]
        try:
            _first_result(await asyncio.gather(*(self._start_worker(worker, begin) for worker in port.workers)))
            for worker in port.workers:
                if not worker.child.alive:
                    raise worker.child.death()
                worker.begun = True
        except BaseException:
            for worker in port.workers:
                worker.child.kill("its start was given up")
            raise

    @staticmethod
    def _retire(port: _Port) -> None:
        port.culprit = None
        for worker in port.workers:
            if not worker.child.gone.done():
                port.retired.add(worker)
                worker.retire()
        port.workers = []

    async def _start_worker(self, worker: _Worker, begin: Begin) -> _Outcome:
        self._living.add(worker)
        await worker.child.launch(self._options.environment)
        worker.child.send(begin)
        return await self._hook(worker, "on_start")

    def _begin_frame(self, cell: Cell) -> Begin:
        """Raises StartFailed for what cannot be started in another process."""
        kind = cell.spec.kind
        if loaded(kind.__module__, kind.__qualname__) is not kind:
            raise StartFailed(
                f"{kind.__module__}.{kind.__qualname__} cannot be imported by that name, as a worker process must; "
                "define the class at the top of a module"
            )
        try:
            # Pickle only goes this way: a worker may believe its parent, and constructor arguments (tools, partials,
            # paths) are more than messages are.
            arguments = pickle.dumps((cell.spec.args, cell.spec.kwargs))
        except Exception as error:
            raise StartFailed(f"the arguments of {kind.__qualname__} cannot be sent to a worker: {error}") from error
        return Begin(
            system=str(getattr(cell.runtime, "id", "")),
            name=cell.name,
            number=cell.number,
            kind=(kind.__module__, kind.__qualname__),
            arguments=arguments,
            files=_strays(),
            main=_main(),
            memory=self._options.memory,
        )

    async def call(self, cell: Cell, hook: str, *args: Any) -> Any:
        """Run a hook where there is an instance: ``on_failure`` where it failed, others in all workers."""
        port: _Port = cell.port
        workers = port.workers if hook != "on_failure" else [port.culprit]
        error = next((each for each in args if isinstance(each, BaseException)), None)
        ready = [worker for worker in workers if worker is not None and worker.idle]
        return _first_result(await asyncio.gather(*(self._hook(worker, hook, error) for worker in ready)))

    async def _hook(self, worker: _Worker, hook: str, error: BaseException | None = None) -> _Outcome:
        answer: asyncio.Future[_Outcome] = self._loop.create_future()
        job = self._begin(worker, Envelope(None, receiver=worker.cell), answer)
        worker.child.send(Hook(job.number, hook, worker.cell.now(), worker.child.raw(error)))
        try:
            return await answer
        except asyncio.CancelledError:
            worker.child.kill(f"{hook} did not end in time")
            raise

    def pause(self, cell: Cell) -> None:
        """Take no more messages for the cell; from any thread."""
        cell.paused = True

    def resume(self, cell: Cell) -> None:
        """Let the cell take messages."""
        cell.paused = False
        cell.mailbox.nudge()

    async def quiesce(self, cell: Cell, grace: float) -> bool:
        """Wait up to ``grace`` seconds for the handlers at work, then kill their workers."""
        port: _Port = cell.port
        over = []
        for worker in port.busy():
            assert worker.job is not None
            over.append(self._loop.create_future())
            worker.job.over.append(partial(over[-1].set_result, None))
        if over:
            _, pending = await asyncio.wait(over, timeout=grace)
            if pending:
                for worker in port.busy():
                    worker.child.kill("it was still at work when its actor was to stop")
                await asyncio.wait(pending)
        return True

    def kill(self, cell: Cell) -> None:
        """Kill its workers, and all that they started."""
        port: _Port = cell.port
        for worker in (*port.workers, *port.retired):
            worker.child.kill("it was killed")

    def detach(self, cell: Cell) -> None:
        """Let go of the cell: its workers end."""
        port: _Port | None = cell.port
        if port is not None:
            self._used -= cell.concurrency
            self._retire(port)
            for worker in port.busy():
                worker.child.kill("its actor is gone")

    async def close(self) -> None:
        """Wait until every worker is gone, for which each has been given its time."""
        if self._living:
            await asyncio.wait([worker.child.gone for worker in self._living], timeout=CLOSE_SECONDS)


def _first_result(outcomes: list[_Outcome]) -> Any:
    """What a hook came to. Raises what it raised in the first worker where it did."""
    for _, error in outcomes:
        if error is not None:
            # A coroutine may not raise the one, and the other would be taken for the cancellation of who waits.
            wrapped = isinstance(error, (StopIteration, asyncio.CancelledError))
            raise RuntimeError(describe(error)) if wrapped else error
    return outcomes[0][0] if outcomes else None


def _call(worker: _Worker, job: Job, envelope: Envelope) -> Call:
    cell, scope = worker.cell, envelope.scope
    return Call(
        number=job.number,
        message=worker.child.raw(envelope.message),
        sender=envelope.sender,
        expects_reply=envelope.reply_to is not None,
        now=cell.now(),
        facts=None if scope is None else _facts(scope, envelope.trace()),
        watched=ToolCalled in cell.bus,
    )


def _facts(scope: Scope, span: str) -> Facts:
    streamed, metered = scope.sink is not None, scope.meter is not None
    return Facts(scope.deadline, scope.trace_id, scope.depth, streamed, metered, scope.root.sampled, span)


def _stand_in(cell: Cell) -> Any:
    """Stands for this generation of instances here, and knows the class for who asks; nothing of it is ever run."""
    kind: Any = cell.spec.kind
    actor = object.__new__(kind)
    actor._cell = cell
    return actor


def _main() -> tuple[str, str]:
    """Where the main module comes from; ``("", "")`` if that is no file."""
    main = sys.modules["__main__"]
    name = getattr(getattr(main, "__spec__", None), "name", "")
    if name:  # python -m
        return "module", name
    file = getattr(main, "__file__", None)
    return ("file", file) if file else ("", "")


def _strays() -> dict[str, str]:
    """The files of modules that were loaded from a path, and cannot be imported by their name."""
    found = {}
    folders = set(sys.path)
    for name, module in tuple(sys.modules.items()):
        spec = getattr(module, "__spec__", None)
        origin = getattr(spec, "origin", None)
        if not isinstance(origin, str) or not origin.endswith(".py") or getattr(spec, "name", "") != name:
            continue
        # Plain text: there may be a thousand of them, and the loop waits.
        folder, _, file = origin.rpartition(os.sep)
        if file == "__init__.py":
            folder, _, file = folder.rpartition(os.sep)
        package, _, last = name.rpartition(".")
        if file.removesuffix(".py") != last or not (package or folder in folders):
            found[name] = origin
    return found
