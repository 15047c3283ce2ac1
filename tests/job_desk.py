"""A stand-in for the actor of the jobs: it keeps them in dicts, and answers all that it is asked. Nothing survives it.

Its tools: ``echo`` returns its arguments; ``count`` makes ``n`` events of progress; ``ask`` asks a question, counts to
``n`` when it is answered, and returns the answer; ``hold`` runs until it is cancelled; ``print`` writes ``text`` (or
the bytes ``hex``) to its log, and keeps it as an artifact; ``fail`` fails. What runs in the background is asked of its
agent.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, ClassVar

from msgspec.structs import replace

from grami_actors import Swarm
from grami_actors.actor import Actor
from grami_actors.errors import DestinationNotFound, ErrorCode, GramiError, JobError, ProtocolError
from grami_actors.job import Fault, Job, JobEvent, State, digest_of, new_id
from grami_actors.job_requests import (
    JOBS,
    AnswerJob,
    CancelJob,
    GetJob,
    ListJobs,
    Piece,
    ReadEvents,
    ReadOutput,
    RetryJob,
    SubmitJob,
    SubmitRequest,
)
from grami_actors.manager import GrowthManager
from grami_actors.telemetry import JobChanged
from tests.conftest import serving
from tests.swarms import small_swarm

TOOLS = {"echo", "count", "ask", "hold", "print", "fail"}
LIMIT = 1_000


class Desk(Actor):
    """See the module. ``reads`` counts the events that were asked for."""

    concurrency = 1_000
    mailbox = 100_000

    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[str, Job] = {}
        self.events: dict[str, list[JobEvent]] = {}
        self.logs: dict[str, bytes] = {}
        self.files: dict[tuple[str, str], bytes] = {}
        self.keys: dict[tuple[str, str], str] = {}
        self.messages: dict[str, SubmitRequest] = {}
        self.reads = 0
        self._answers: dict[str, asyncio.Future[Any]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._moved = asyncio.Event()
        self._times = itertools.count(1)

    async def on_receive(self, message: Any) -> Any:
        return await self._HANDLERS[type(message)](self, message)

    def on_stop(self) -> None:
        for task in self._tasks.values():
            task.cancel()

    # --- what it keeps ---

    def commit(self, job: str, kind: Any, data: dict[str, Any], **changes: Any) -> Job:
        old = self.jobs[job]
        new = self.jobs[job] = replace(old, seq=old.seq + 1, **changes)
        if kind == "state":
            data = {"state": str(new.state), **data}
        self.events[job].append(JobEvent(job, new.seq, 1e9 + next(self._times), kind, new.attempt, data))
        self._moved.set()
        self._cell.runtime.bus.publish(JobChanged(job, new.tool, new.owner, str(new.state), new.seq))
        return new

    def fill(self, job: str, most: int) -> None:
        """Many events at once."""
        begun = self.jobs[job].seq + 1
        self.events[job] += [
            JobEvent(job, seq, 1e9, "progress", 1, {"message": "x" * 2_000}) for seq in range(begun, begun + most)
        ]
        self.jobs[job] = replace(self.jobs[job], seq=begun + most - 1)

    def find(self, job: str, owner: str | None) -> Job:
        found = self.jobs.get(job)
        if found is None or owner not in {None, found.owner}:
            raise JobError(f"there is no job {job!r}", code=ErrorCode.JOB_NOT_FOUND)
        return found

    def accept(self, job: Job, message: SubmitRequest | None = None) -> Job:
        key = job.order.idempotency_key
        known = None if key is None else self.keys.get((job.owner, key))
        if known is not None:
            if self.jobs[known].digest != job.digest:
                raise ProtocolError("the key stands for another job", code=ErrorCode.IDEMPOTENCY_KEY_REUSED)
            return self.jobs[known]
        if key is not None:
            self.keys[job.owner, key] = job.id
        self.jobs[job.id], self.events[job.id], self.logs[job.id] = job, [], b""
        if message is not None:
            self.messages[job.id] = message
        accepted = self.commit(job.id, "state", {})
        self._tasks[job.id] = asyncio.get_running_loop().create_task(self.run(job.id))
        return accepted

    async def run(self, job: str) -> None:
        self.commit(job, "state", {}, state=State.RUNNING, attempt=1, started_at=1e9)
        try:
            result = await self.work(self.jobs[job])
        except GramiError as error:
            fault = Fault(str(error.error_code), error.message)
            self.commit(job, "state", {}, state=State.FAILED, fault=fault, finished_at=2e9)
        else:
            self.commit(job, "state", {}, state=State.SUCCEEDED, result=result, finished_at=2e9)

    async def work(self, job: Job) -> Any:
        given = job.arguments
        if job.id in self.messages:
            wanted = self.messages[job.id]
            to = wanted.to or self._cell.runtime.table.name_of("", wanted.message)
            return await self._cell.runtime.ask(to, wanted.message)
        if job.tool == "fail":
            raise GramiError("it failed", code=ErrorCode.TOOL_EXECUTION_FAILED)
        if job.tool == "hold":
            await asyncio.Event().wait()
        if job.tool == "print":
            self.logs[job.id] = bytes.fromhex(given["hex"]) if "hex" in given else given["text"].encode()
            self.files[job.id, "out.bin"] = self.logs[job.id]
            self.commit(job.id, "artifact", {"name": "out.bin"}, artifacts={"out.bin": len(self.logs[job.id])})
        if job.tool == "ask":
            self._answers[job.id] = asyncio.get_running_loop().create_future()
            self.commit(job.id, "state", {}, state=State.INPUT_REQUIRED, question="which?")
            answer = await self._answers[job.id]
            await self.count(job.id, given.get("n", 0))
            return answer
        await self.count(job.id, given.get("n", 0))
        return given

    async def count(self, job: str, most: int) -> None:
        for number in range(most):
            self.commit(job, "progress", {"fraction": number / most, "message": ""}, progress=number / most)
            if number % 100 == 0:
                await asyncio.sleep(0)

    # --- what it is asked ---

    async def submit(self, wanted: SubmitJob) -> Job:
        if wanted.tool not in TOOLS:
            raise DestinationNotFound(f"there is no tool {wanted.tool!r}")
        digest = digest_of(wanted.tool, wanted.arguments)
        return self.accept(self.new(wanted.tool, wanted.arguments, digest, wanted))

    def new(self, tool: str, arguments: Any, digest: str, wanted: Any) -> Job:
        number = next(self._times)
        made = new_id(number, random.Random(number))
        order, scopes = wanted.order, wanted.scopes
        return Job(
            id=made,
            tool=tool,
            arguments=arguments,
            owner=wanted.owner,
            digest=digest,
            created_at=1e9,
            due_at=1e9,
            order=order,
            scopes=scopes,
        )

    async def submit_request(self, wanted: SubmitRequest) -> Job:
        tool = f"request:{wanted.message.__struct_config__.tag}"
        return self.accept(self.new(tool, {}, digest_of(tool, wanted.message), wanted), wanted)

    async def get(self, wanted: GetJob) -> Job:
        return self.find(wanted.job, wanted.owner)

    async def find_all(self, wanted: ListJobs) -> Any:
        found = sorted(self.jobs.values(), key=lambda job: job.id, reverse=True)
        return [
            job
            for job in found
            if wanted.owner in {None, job.owner}
            and (not wanted.states or job.state in wanted.states)
            and wanted.tool in {"", job.tool}
            and (not wanted.before or job.id < wanted.before)
        ][: wanted.limit]

    async def cancel(self, wanted: CancelJob) -> Job:
        if self.find(wanted.job, wanted.owner).state.terminal:
            raise JobError("it is at its end", code=ErrorCode.JOB_NOT_CANCELABLE)
        self._tasks[wanted.job].cancel()
        return self.commit(wanted.job, "state", {"reason": "user"}, state=State.CANCELLED, reason="user")

    async def answer(self, wanted: AnswerJob) -> Job:
        if self.find(wanted.job, wanted.owner).state is not State.INPUT_REQUIRED:
            raise JobError("it waits for no input", code=ErrorCode.JOB_NOT_AWAITING_INPUT)
        self._answers[wanted.job].set_result(wanted.answer)
        return self.commit(wanted.job, "state", {"answered_by": wanted.by}, state=State.RUNNING, question=None)

    async def retry(self, wanted: RetryJob) -> Job:
        old = self.find(wanted.job, wanted.owner)
        order = replace(old.order, idempotency_key=None)
        scopes = old.scopes if wanted.scopes is None else wanted.scopes
        again = SubmitJob(tool=old.tool, arguments={}, owner=old.owner, scopes=scopes)
        new = self.new(old.tool, old.arguments, old.digest, again)
        return self.accept(replace(new, order=order), self.messages.get(old.id))

    async def read_events(self, wanted: ReadEvents) -> Any:
        self.find(wanted.job, wanted.owner)
        found = self.events[wanted.job][wanted.after : wanted.after + min(wanted.limit, LIMIT)]
        self.reads += len(found)
        return found

    async def read(self, wanted: ReadOutput) -> Piece:
        job = self.find(wanted.job, wanted.owner)
        if wanted.artifact:
            if (job.id, wanted.artifact) not in self.files:
                raise JobError(f"it has no artifact {wanted.artifact!r}", code=ErrorCode.JOB_NOT_FOUND)
            whole, ended = self.files[job.id, wanted.artifact], True
        else:
            until = asyncio.get_running_loop().time() + wanted.wait
            while not (ended := self.jobs[job.id].state.terminal) and len(self.logs[job.id]) <= wanted.offset:
                self._moved.clear()
                try:
                    async with asyncio.timeout_at(until):
                        await self._moved.wait()
                except TimeoutError:
                    break
            whole = self.logs[job.id]
        data = whole[wanted.offset : wanted.offset + wanted.limit]
        end = ended and wanted.offset + len(data) >= len(whole)
        return Piece(data, wanted.offset, 0, len(whole), end, self.jobs[job.id].attempt)

    _HANDLERS: ClassVar[dict[type, Callable[..., Any]]] = {
        SubmitJob: submit,
        SubmitRequest: submit_request,
        GetJob: get,
        ListJobs: find_all,
        CancelJob: cancel,
        AnswerJob: answer,
        RetryJob: retry,
        ReadEvents: read_events,
        ReadOutput: read,
    }


@asynccontextmanager
async def working(swarm: Swarm | None = None, **settings: Any) -> AsyncIterator[tuple[GrowthManager, Desk]]:
    """A server that has jobs, and its desk."""
    async with serving(swarm or small_swarm(), **settings) as manager:
        await manager.system.stop(JOBS)  # the one that would open a state directory
        ref = await manager.system.spawn(Desk, name=JOBS)
        desk: Any = ref._actor_weakref()
        yield manager, desk
