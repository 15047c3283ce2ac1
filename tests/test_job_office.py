"""The office: what it accepts, when it starts what, and what it says about jobs. On a real system, in real time."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from grami_actors.agent import Agent, handles
from grami_actors.config import Config
from grami_actors.errors import (
    Cancelled,
    ConfigError,
    DestinationNotFound,
    ErrorCode,
    GramiError,
    JobError,
    ProtocolError,
    ToolExecutionFailed,
    ToolTimeout,
)
from grami_actors.job import Job, Order, Retry, State
from grami_actors.job_context import JobContext
from grami_actors.job_handle import JobHandle
from grami_actors.job_requests import (
    JOBS,
    AnswerJob,
    CancelJob,
    GetJob,
    JobEnded,
    ListJobs,
    ReadEvents,
    ReadOutput,
    RetryJob,
    SubmitJob,
    SubmitRequest,
)
from grami_actors.jobs.clerk import Clean
from grami_actors.jobs.inside import InsideRunner
from grami_actors.jobs.memory import MemoryStore
from grami_actors.jobs.office import JobOffice
from grami_actors.jobs.opening import Jobs, plan_of
from grami_actors.jobs.runner import Attempt, Reports, Run
from grami_actors.jobs.service import Service
from grami_actors.jobs.sqlite import SqliteStore
from grami_actors.jobs.state_dir import StateDirectory
from grami_actors.messages import Message
from grami_actors.schedules import Schedule
from grami_actors.swarm import Swarm
from grami_actors.system import ActorSystem
from grami_actors.telemetry import Doubted, JobChanged, JobsFound, JobsLeft
from grami_actors.tools import tool
from tests.conftest import turns_until

OPEN: dict[str, asyncio.Event] = {}
"""What a job waits for, by name."""
BEGUN: list[str] = []
"""What ran, in order."""


@tool(job=True)
async def double(number: int) -> int:
    return 2 * number


@tool(job=True)
async def held(name: str) -> str:
    BEGUN.append(name)
    await OPEN.setdefault(name, asyncio.Event()).wait()
    return name


@tool(job=True, concurrency=1, queue=2)
async def narrow(name: str) -> str:
    BEGUN.append(name)
    await OPEN.setdefault(name, asyncio.Event()).wait()
    return name


@tool(job=True, effect="idempotent", retry=Retry(attempts=3, delay=0.01))
async def shaky(good: int, ctx: JobContext) -> int:
    BEGUN.append(f"attempt {ctx.attempt}")
    if ctx.attempt < good:
        raise RuntimeError(f"attempt {ctx.attempt}")
    return ctx.attempt


@tool(job=True, queue_timeout=0.05)
async def impatient() -> None:
    BEGUN.append("impatient")


@tool(job=True)
async def curious(ctx: JobContext) -> Any:
    return await ctx.ask_input({"which": ["a", "b"]})


@tool(job=True)
async def writer(lines: int, ctx: JobContext) -> None:
    for line in range(lines):
        ctx.log(f"line {line}")
    ctx.artifact("all.txt", "content")
    ctx.progress(0.5, "half")


@tool
def ordinary(text: str) -> str:
    return text.upper()


TOOLS = [double, held, narrow, shaky, impatient, curious, writer, ordinary]


class Work(Message):
    number: int


class Spawned(Message):
    name: str
    detached: bool = False


class Told(Message):
    pass


class Planner(Agent, concurrency=8):
    told: list[JobEnded]
    failures = 0

    def on_start(self) -> None:
        self.told = []

    @handles(Work)
    async def work(self, work: Work) -> int:
        self.progress(0.25, "a quarter")
        result: int = await (await self.submit(double, number=work.number)).result()
        return result

    @handles(Spawned)
    async def spawned(self, spawned: Spawned) -> str:
        job = await self.submit(held, order=Order(detached=spawned.detached), name=spawned.name)
        await job.result()
        return job.id

    @handles(JobEnded)
    def ended(self, ended: JobEnded) -> None:
        if Planner.failures:
            Planner.failures -= 1
            raise RuntimeError("not yet")
        self.told.append(ended)
        BEGUN.append(f"told of {ended.state}")


SWARM = Swarm([Planner], TOOLS)


class Desk:
    """A system with an office, and what happened in it."""

    def __init__(self, system: ActorSystem) -> None:
        self.system = system
        self.doubts: list[str] = []
        system.bus.subscribe(lambda doubted: self.doubts.append(doubted.text), Doubted)

    async def ask(self, request: Any) -> Any:
        return await self.system.ask(JOBS, request, timeout=20)

    async def submit(self, tool: str, order: Order | None = None, /, owner: str = "ann", **arguments: Any) -> JobHandle:
        order = order or Order()
        job = await self.ask(SubmitJob(tool=tool, arguments=arguments, order=order, owner=owner))
        return self.handle(job.id)

    @property
    def office(self) -> JobOffice:
        """The actor itself."""
        office: Any = self.system.table.cells[JOBS].ref._actor_weakref()
        return office

    def handle(self, job: str) -> JobHandle:
        async def ask(request: Any, _: float) -> Any:
            return await self.ask(request)

        return JobHandle(ask, job)

    async def until(self, job: str, *states: State) -> Job:
        found: Job = await self.when(GetJob(job), lambda found: found.state in states)
        return found

    async def when(self, request: Any, fits: Callable[[Any], bool]) -> Any:
        """The first answer that fits; asked again whenever something happened to a job."""
        changed = asyncio.Event()
        end = self.system.bus.subscribe(lambda _: changed.set(), JobChanged)
        try:
            while True:
                changed.clear()
                found = await self.ask(request)
                if fits(found):
                    return found
                await asyncio.wait_for(changed.wait(), 20)
        finally:
            end()


@asynccontextmanager
async def opened(folder: Path | None = None, swarm: Swarm = SWARM, **settings: Any) -> AsyncIterator[Desk]:
    OPEN.clear()
    BEGUN.clear()
    config = Config(**settings)
    async with ActorSystem() as system:
        await swarm.start(system)
        jobs = Jobs(system, plan_of(swarm, config), folder)
        await jobs.open(JOBS)
        try:
            yield Desk(system)
        finally:
            await jobs.close(5.0)


def let(*names: str) -> None:
    for name in names:
        OPEN.setdefault(name, asyncio.Event()).set()


# --- accepting ---


async def test_a_job_runs_and_its_events_have_no_gap() -> None:
    async with opened() as desk:
        job = await desk.submit("double", number=4)
        assert await job.result() == 8
        events = [event async for event in job.events()]
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        states = [event.data["state"] for event in events if event.kind == "state"]
        assert states == ["QUEUED", "STARTING", "RUNNING", "SUCCEEDED"]


async def test_a_tool_that_was_not_declared_as_a_job_can_be_one_too() -> None:
    async with opened() as desk:
        assert await (await desk.submit("ordinary", text="a")).result() == "A"


@pytest.mark.parametrize(
    ("name", "arguments", "error", "code"),
    [
        ("nothing", {}, DestinationNotFound, ErrorCode.DESTINATION_NOT_FOUND),
        ("double", {"number": "x"}, ProtocolError, ErrorCode.VALIDATION_FAILED),
        ("double", {}, ProtocolError, ErrorCode.VALIDATION_FAILED),
        ("writer", {"lines": 1, "ctx": 1}, ProtocolError, ErrorCode.VALIDATION_FAILED),
        ("request:work", {}, DestinationNotFound, ErrorCode.DESTINATION_NOT_FOUND),
    ],
)
async def test_what_cannot_be_run_is_refused_at_once(name: str, arguments: Any, error: Any, code: str) -> None:
    async with opened() as desk:
        with pytest.raises(error) as refused:
            await desk.submit(name, **arguments)
        assert refused.value.error_code == code
        assert await desk.ask(ListJobs()) == []


async def test_one_key_is_one_job_also_when_many_submit_it_at_once() -> None:
    async with opened() as desk:
        order = Order(idempotency_key="k")
        jobs = await asyncio.gather(*(desk.submit("double", order, number=1) for _ in range(50)))
        assert len({job.id for job in jobs}) == 1
        other = await desk.submit("double", order, owner="bob", number=1)
        assert other.id != jobs[0].id
        with pytest.raises(ProtocolError) as reused:
            await desk.submit("double", order, number=2)
        assert reused.value.error_code == ErrorCode.IDEMPOTENCY_KEY_REUSED


async def test_a_key_is_found_again_although_the_queue_is_full() -> None:
    async with opened(jobs_running=1, jobs_queued=0) as desk:
        order = Order(idempotency_key="k")
        job = await desk.submit("held", order, name="a")
        with pytest.raises(JobError) as full:
            await desk.submit("held", name="b")
        assert full.value.error_code == ErrorCode.JOB_REJECTED
        assert full.value.retry_after_ms
        assert (await desk.submit("held", order, name="a")).id == job.id
        let("a")
        assert await job.result() == "a"


async def test_a_tool_has_a_queue_of_its_own() -> None:
    async with opened() as desk:
        jobs = [await desk.submit("narrow", name=str(number)) for number in range(3)]
        with pytest.raises(JobError, match="narrow"):
            await desk.submit("narrow", name="3")
        assert await (await desk.submit("double", number=1)).result() == 2
        let("0", "1", "2")
        assert [await job.result() for job in jobs] == ["0", "1", "2"]


# --- whose turn it is ---


async def test_higher_priorities_come_first_and_equal_ones_in_their_order() -> None:
    async with opened(jobs_running=1) as desk:
        first = await desk.submit("held", name="first")
        await desk.until(first.id, State.RUNNING)
        for name, priority in (("a", 0), ("b", 5), ("c", 0), ("d", 5)):
            last = await desk.submit("held", Order(priority=priority), name=name)
        let("first", "a", "b", "c", "d")
        await asyncio.gather(*(desk.until(job.id, State.SUCCEEDED) for job in (first, last)))
        await asyncio.gather(*(desk.until(job.id, State.SUCCEEDED) for job in await desk.ask(ListJobs())))
        assert BEGUN == ["first", "b", "d", "a", "c"]


async def test_jobs_with_one_concurrency_key_run_one_at_a_time() -> None:
    async with opened() as desk:
        one, two = [await desk.submit("held", Order(concurrency_key="k"), name=name) for name in ("a", "b")]
        await desk.until(one.id, State.RUNNING)
        await (await desk.submit("double", number=1)).result()
        assert (await two.get()).state is State.QUEUED
        let("a", "b")
        assert await two.result() == "b"


async def test_a_job_does_not_run_before_its_time() -> None:
    async with opened() as desk:
        now = desk.system.wall()
        job = await desk.submit("double", Order(not_before=now + 0.2), number=1)
        assert (await job.get()).state is State.QUEUED
        assert await job.result() == 2
        assert (await job.get()).started_at >= now + 0.2


async def test_a_job_whose_turn_does_not_come_in_time_is_timed_out_and_never_runs() -> None:
    async with opened(jobs_running=1) as desk:
        first = await desk.submit("held", name="first")
        job = await desk.submit("impatient")
        with pytest.raises(ToolTimeout):
            await job.result()
        assert (await job.get()).reason == "queue_timeout"
        let("first")
        await first.result()
        assert BEGUN == ["first"]


async def test_a_cancel_while_those_that_waited_for_too_long_are_ended_keeps_none_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go_on, amend = threading.Event(), SqliteStore.amend

    def slow(store: SqliteStore, job: str, fields: dict[str, Any]) -> Job:
        go_on.wait(20)
        return amend(store, job, fields)

    monkeypatch.setattr(SqliteStore, "amend", slow)
    async with opened(jobs_running=1) as desk:
        await desk.submit("held", name="first")
        together = Order(not_before=desk.system.wall() + 0.1)
        one, two, three = [await desk.submit("impatient", together) for _ in range(3)]
        cancelled = asyncio.ensure_future(desk.ask(CancelJob(two.id)))
        await turns_until(lambda: desk.office._queue.waiting == 2)  # the first of them is about to be written down
        go_on.set()
        assert (await cancelled).state is State.CANCELLED
        for job in (one, three):
            await desk.until(job.id, State.TIMED_OUT)
        let("first")


async def test_a_deadline_ends_a_job_that_waits_and_one_that_runs() -> None:
    async with opened(jobs_running=1) as desk:
        running = await desk.submit("held", Order(deadline=0.1), name="never")
        waiting = await desk.submit("held", Order(deadline=0.05), name="never either")
        for job in (waiting, running):
            assert (await desk.until(job.id, State.TIMED_OUT)).reason == "deadline"


# --- failures ---


async def test_a_safe_tool_is_tried_again_and_an_unsafe_one_is_not() -> None:
    async with opened() as desk:
        assert await (await desk.submit("shaky", good=3)).result() == 3
        assert BEGUN == ["attempt 1", "attempt 2", "attempt 3"]
        job = await desk.submit("shaky", good=9)
        with pytest.raises(ToolExecutionFailed, match="attempt 3"):
            await job.result()
        assert (await job.get()).attempt == 3


async def test_a_job_at_its_end_can_be_submitted_again_and_one_under_way_cannot() -> None:
    async with opened() as desk:
        job = await desk.submit("double", Order(idempotency_key="k"), number=3)
        await job.result()
        again = await desk.ask(RetryJob(job.id))
        assert again.id != job.id
        assert again.order.idempotency_key is None
        assert await desk.handle(again.id).result() == 6
        assert (await desk.ask(RetryJob(job.id, scopes=("few",)))).scopes == ("few",)
        held_one = await desk.submit("held", name="x")
        with pytest.raises(JobError, match="cancel it first"):
            await desk.ask(RetryJob(held_one.id))


# --- cancelling ---


async def test_a_job_is_cancelled_wherever_it_is() -> None:
    async with opened(jobs_running=1) as desk:
        running = await desk.submit("held", name="r")
        waiting = await desk.submit("held", name="w")
        await desk.until(running.id, State.RUNNING)
        assert (await waiting.cancel()).state is State.CANCELLED
        assert (await running.cancel()).state is State.STOPPING
        with pytest.raises(Cancelled):
            await running.result()
        with pytest.raises(JobError) as over:
            await running.cancel()
        assert over.value.error_code == ErrorCode.JOB_NOT_CANCELABLE
        assert BEGUN == ["r"]


class SlowRunner(InsideRunner):
    """As the real one, but that nothing begins before it may."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.may = asyncio.Event()

    def run(self, attempt: Attempt, reports: Reports) -> Run:
        run = super().run(attempt, reports)
        begin = run.begin

        async def later() -> None:
            await self.may.wait()
            await begin()

        run.begin = later  # type: ignore[method-assign]
        return run


async def test_a_cancel_is_answered_though_an_attempt_takes_its_time_to_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grami_actors.jobs.office.TOLD_WITHIN", 0.05)
    async with ActorSystem() as system:
        service = Service(system, plan_of(SWARM, Config()), MemoryStore(), Path())
        service.ledger.open()
        runner = SlowRunner(system, service.tools)
        service.runners = {"inside": runner}
        office = await system.spawn(JobOffice, service, name=JOBS)
        desk = Desk(system)
        job = await desk.submit("held", name="late")
        await desk.until(job.id, State.STARTING)
        answered = await job.cancel()
        assert (answered.state, answered.cancellation and answered.cancellation.reason) == (State.STARTING, "user")
        runner.may.set()
        assert (await desk.until(job.id, State.CANCELLED)).reason == "user"
        await system.stop(office)
        await service.ledger.close()


async def test_a_cancel_reaches_the_jobs_that_a_request_caused_but_for_the_detached() -> None:
    async with opened() as desk:
        parents = [
            await desk.ask(SubmitRequest(message=Spawned(name, detached), owner="ann"))
            for name, detached in (("kept", True), ("lost", False))
        ]
        found = await desk.when(
            ListJobs(tool="held"), lambda jobs: [job.state for job in jobs] == [State.RUNNING] * len(parents)
        )
        children = {job.parent: job for job in found}
        for parent in parents:
            await desk.handle(parent.id).cancel()
        assert (await desk.until(children[parents[1].id].id, State.CANCELLED)).reason == "parent"
        assert (await desk.ask(GetJob(children[parents[0].id].id))).state is State.RUNNING
        let("kept")
        await desk.until(children[parents[0].id].id, State.SUCCEEDED)
        assert all(child.owner == "ann" for child in children.values())


@pytest.mark.slow
async def test_a_cancel_that_races_the_end_makes_exactly_one_end() -> None:
    async with opened() as desk:
        for _ in range(60):
            job = await desk.submit("double", number=1)
            try:
                await job.cancel()
            except JobError as late:
                assert late.error_code == ErrorCode.JOB_NOT_CANCELABLE  # noqa: PT017 - either may win
            found = await desk.until(job.id, State.SUCCEEDED, State.CANCELLED)
            events = [event async for event in job.events()]
            assert [event.data["state"] for event in events if event.kind == "state"].count(str(found.state)) == 1
            assert events[-1].data["state"] == str(found.state)


# --- what is said about a job ---


async def test_another_owners_job_is_as_one_that_does_not_exist() -> None:
    async with opened() as desk:
        job = await desk.submit("held", name="x")
        for request in (
            GetJob(job.id, "bob"),
            CancelJob(job.id, "bob"),
            AnswerJob(job.id, 1, "bob"),
            RetryJob(job.id, "bob"),
            ReadEvents(job.id, owner="bob"),
            ReadOutput(job=job.id, owner="bob"),
            GetJob("job_0", None),
        ):
            with pytest.raises(JobError) as hidden:
                await desk.ask(request)
            assert hidden.value.error_code == ErrorCode.JOB_NOT_FOUND
        assert await desk.ask(ListJobs(owner="bob")) == []
        assert len(await desk.ask(ListJobs(owner="ann"))) == 1


async def test_a_question_is_answered_once() -> None:
    async with opened() as desk:
        job = await desk.submit("curious")
        with pytest.raises(JobError) as early:
            await (await desk.submit("held", name="y")).answer(1)
        assert early.value.error_code == ErrorCode.JOB_NOT_AWAITING_INPUT
        assert (await desk.until(job.id, State.INPUT_REQUIRED)).question == {"which": ["a", "b"]}
        assert (await job.answer("b", by="ann")).state is State.RUNNING
        assert await job.result() == "b"


async def test_output_and_artifacts_are_read_by_offset() -> None:
    async with opened() as desk:
        job = await desk.submit("writer", lines=3)
        await job.result()
        pieces = [piece async for piece in job.output(follow=True)]
        assert b"".join(pieces) == b"line 0\nline 1\nline 2\n"
        piece = await desk.ask(ReadOutput(job=job.id, artifact="all.txt", offset=3))
        assert (piece.data, piece.end) == (b"tent", True)
        with pytest.raises(JobError, match=r"all\.txt"):
            await desk.ask(ReadOutput(job=job.id, artifact="other"))


async def test_whoever_waits_for_events_is_told_as_they_come() -> None:
    async with opened() as desk:
        job = await desk.submit("held", name="z")
        await desk.until(job.id, State.RUNNING)
        waiting = asyncio.ensure_future(desk.ask(ReadEvents(job.id, after=3, wait=10)))
        let("z")
        assert [event.data["state"] for event in await waiting] == ["SUCCEEDED"]
        assert await desk.ask(ReadEvents(job.id, after=4, wait=10)) == []


# --- whoever asks goes away ---


async def given_up(desk: Desk, request: Any, turns: int) -> None:
    """Ask, and give up after so many turns of the loop."""
    asked = asyncio.ensure_future(desk.ask(request))
    for _ in range(turns):
        await asyncio.sleep(0)
    asked.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asked


@pytest.mark.parametrize("turns", range(1, 8))
async def test_a_job_whose_client_goes_away_while_it_is_written_down_runs_or_was_never_accepted(turns: int) -> None:
    async with opened() as desk:
        await given_up(desk, SubmitJob(tool="double", arguments={"number": 1}), turns)
        for job in await desk.ask(ListJobs()):
            await desk.until(job.id, State.SUCCEEDED)


@pytest.mark.parametrize("turns", range(1, 8))
async def test_a_cancel_whose_client_goes_away_ends_the_job_or_was_never_heard_of(turns: int) -> None:
    async with opened(jobs_running=1) as desk:
        running = await desk.submit("held", name="a")
        await desk.until(running.id, State.RUNNING)
        waiting = await desk.submit("held", name="b")
        await given_up(desk, CancelJob(waiting.id), turns)
        if (await waiting.get()).cancellation is None:
            let("a", "b")
            await desk.until(waiting.id, State.SUCCEEDED)
        else:
            await desk.until(waiting.id, State.CANCELLED)


@pytest.mark.parametrize("turns", range(1, 8))
async def test_an_answer_whose_client_goes_away_is_given_or_can_be_given_by_another(turns: int) -> None:
    async with opened() as desk:
        job = await desk.submit("curious")
        await desk.until(job.id, State.INPUT_REQUIRED)
        await given_up(desk, AnswerJob(job.id, "first"), turns)
        with contextlib.suppress(JobError):
            await job.answer("second")
        assert await job.result() in {"first", "second"}


# --- agents ---


async def test_a_request_in_the_background_is_a_job_with_the_agents_progress_and_answer() -> None:
    async with opened() as desk:
        job = await desk.ask(SubmitRequest(message=Work(5), owner="ann"))
        assert job.tool == "request:work"
        assert await desk.handle(job.id).result() == 10
        events = [event async for event in desk.handle(job.id).events()]
        assert [event.data["message"] for event in events if event.kind == "progress"] == ["a quarter"]
        child = next(each for each in await desk.ask(ListJobs()) if each.tool == "double")
        assert (child.parent, child.owner) == (job.id, "ann")


async def test_an_agent_is_woken_even_if_it_fails_at_first() -> None:
    Planner.failures = 1
    async with opened() as desk:
        job = await desk.submit("double", Order(wake="planner"), number=1)
        await job.result()
        await desk.when(GetJob(job.id), lambda job: job.woken)
        assert BEGUN == ["told of SUCCEEDED"]
        with pytest.raises(ProtocolError) as nobody:
            await desk.submit("double", Order(wake="nobody"), number=1)
        assert nobody.value.param == "$.wake"


@pytest.mark.parametrize("name", [JOBS, "jobs/clerk", "router", "tool:ordinary", "sloth"])
async def test_nobody_is_woken_who_has_no_handler_for_the_end_of_a_job(name: str) -> None:
    class Sloth(Agent):
        @handles(Work)
        def work(self, _: Work) -> None:
            pass

    async with opened(swarm=Swarm([Sloth], TOOLS)) as desk:
        with pytest.raises(ProtocolError) as refused:
            await desk.submit("double", Order(wake=name), number=1)
        assert (refused.value.error_code, refused.value.param) == (ErrorCode.VALIDATION_FAILED, "$.wake")
        assert await (await desk.submit("double", number=2)).result() == 4


async def test_each_state_is_told_of_once_whoever_is_woken_by_the_end_or_wants_it() -> None:
    async with opened() as desk:
        heard: list[JobChanged] = []
        end = desk.system.bus.subscribe(heard.append, JobChanged)
        done = await desk.submit("double", Order(wake="planner"), number=1)
        await desk.when(GetJob(done.id), lambda job: job.woken)
        waits = await desk.submit("double", Order(not_before=4e9), number=1)
        await desk.ask(CancelJob(waits.id))
        end()
        assert len(heard) > len([each for each in heard if each.told])
        for job, ends in ((done, "SUCCEEDED"), (waits, "CANCELLED")):
            told = [each.state for each in heard if each.told and each.job == job.id]
            assert (told[0], told.count("QUEUED"), told[-1], told.count(ends)) == ("QUEUED", 1, ends, 1)


async def test_an_agent_is_woken_by_the_next_server_if_this_one_had_no_time(tmp_path: Path) -> None:
    class Deaf(Agent, name="planner"):
        @handles(JobEnded)
        async def ended(self, _: JobEnded) -> None:
            await asyncio.Event().wait()

    async with opened(tmp_path, Swarm([Deaf], TOOLS)) as desk:
        job = await desk.submit("double", Order(wake="planner"), number=1)
        await job.result()
    async with opened(tmp_path) as desk:
        await desk.when(GetJob(job.id), lambda job: job.woken)
        assert BEGUN == ["told of SUCCEEDED"]


# --- over the end of a server ---


async def test_what_waits_is_there_after_a_restart_and_what_ran_inside_is_lost(tmp_path: Path) -> None:
    async with opened(tmp_path, jobs_running=1) as desk:
        ran = await desk.submit("held", name="ran")
        await desk.until(ran.id, State.RUNNING)
        waits = await desk.submit("held", name="waits")
    async with opened(tmp_path) as desk:
        found = await desk.until(ran.id, State.LOST)
        assert found.fault is not None
        let("waits")
        assert await desk.handle(waits.id).result() == "waits"
        assert BEGUN == ["waits"]


async def test_a_schedule_submits_each_firing_once_also_after_a_restart(tmp_path: Path) -> None:
    swarm = Swarm([], [double], schedules=[Schedule("often", "* * * * * *", "double", {"number": 1})])
    async with opened(tmp_path, swarm) as desk:
        found = await desk.when(ListJobs(), lambda jobs: len(jobs) > 1)
    async with opened(tmp_path, swarm) as desk:
        again = await desk.when(ListJobs(), lambda jobs: len(jobs) > len(found))
        keys = [job.order.idempotency_key for job in again]
        assert len(set(keys)) == len(keys)
        assert {job.owner for job in again} == {"scheduler"}


async def test_a_server_whose_store_cannot_be_read_any_more_lets_go_of_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as desk:
        job = await desk.submit("held", name="a")
        await desk.until(job.id, State.RUNNING)
        with closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as db:
            db.execute("UPDATE jobs SET data = x'00'")
    directory = StateDirectory(tmp_path)
    directory.lock()
    directory.release()


async def test_what_stands_in_the_place_of_the_pipe_is_told_to_the_operator(tmp_path: Path) -> None:
    directory = StateDirectory(tmp_path)
    directory.make()
    directory.wake.mkdir()
    with pytest.raises(ConfigError, match=r"jobs/wake cannot be made a pipe: .*remove it"):
        async with opened(tmp_path):
            pass
    directory.lock()
    directory.release()


async def test_all_that_is_kept_for_long_enough_is_cleared_away_at_once(tmp_path: Path) -> None:
    async with opened(tmp_path, jobs_keep_days=0) as desk:
        await (await desk.submit("double", number=1)).result()
        with closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as db:
            db.execute(
                "WITH RECURSIVE n(i) AS (SELECT 2 UNION SELECT i + 1 FROM n WHERE i < 1200) INSERT INTO jobs SELECT i, "
                "id || i, owner, key, tool, parent, detached, state, ended, expired, wakes, data FROM jobs, n"
            )
        await desk.system.ask(f"{JOBS}/clerk", Clean(), timeout=20)
        with closing(sqlite3.connect(tmp_path / "jobs.db")) as db:
            assert db.execute("SELECT count(*) FROM jobs WHERE NOT expired").fetchone() == (0,)


async def test_jobs_are_opened_when_somebody_first_wants_one(tmp_path: Path) -> None:
    swarm = Swarm([], [ordinary])
    async with ActorSystem() as system:
        await swarm.start(system)
        jobs = Jobs(system, plan_of(swarm, Config()), tmp_path)
        await jobs.offer()
        assert not any(tmp_path.iterdir())  # noqa: ASYNC240 - a look
        desk = Desk(system)
        many = await asyncio.gather(*(desk.submit("ordinary", text="a") for _ in range(5)))
        assert [await job.result() for job in many] == ["A"] * 5
        async with ActorSystem() as other:
            await swarm.start(other)
            second = Jobs(other, plan_of(swarm, Config()), tmp_path)
            with pytest.raises(GramiError, match="another"):
                await second.offer()
        await jobs.close(1.0)


async def test_the_operator_is_told_of_jobs_that_go_on_without_the_server_and_of_those_that_are_found(
    tmp_path: Path,
) -> None:
    told: list[Any] = []
    config = Config(jobs_running=1)
    for _ in range(2):
        async with ActorSystem() as system:
            system.bus.subscribe(told.append, JobsFound, JobsLeft)
            await SWARM.start(system)
            jobs = Jobs(system, plan_of(SWARM, config), tmp_path)
            await jobs.open(JOBS)
            desk = Desk(system)
            if len(told) == 0:
                runs = await desk.submit("held", name="runs")
                await desk.until(runs.id, State.RUNNING)
                await desk.submit("double", number=1)
            await jobs.close(5.0)
    assert told[:2] == [JobsLeft(0, 1, 1), JobsFound(0, 1)]
