"""Jobs in virtual time: agents that submit and are woken, schedules, retries, crashes; the same in each run."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from grami_actors.agent import Agent, handles
from grami_actors.errors import GramiError
from grami_actors.job import Order, Retry
from grami_actors.job_context import JobContext
from grami_actors.job_requests import JOBS, CancelJob, GetJob, JobEnded, ListJobs, SubmitRequest
from grami_actors.jobs.commands import command
from grami_actors.messages import Message
from grami_actors.scenario.lines import Line
from grami_actors.scenario.play import Play
from grami_actors.scenario.stage import acted
from grami_actors.schedules import Schedule
from grami_actors.simulation.run import Failure, Runner
from grami_actors.simulation.schedule import Schedule as Seeded
from grami_actors.simulation.world import Setup, World
from grami_actors.swarm import Swarm
from grami_actors.tools import tool

pytestmark = pytest.mark.usefixtures("in_series")


class Go(Message):
    steps: int


class Seen(Message):
    pass


@tool(job=True, effect="resumable", retry=Retry(attempts=5, delay=10))
async def walk(steps: int, ctx: JobContext) -> int:
    for at in range(ctx.resume or 0, steps):
        await asyncio.sleep(60)
        ctx.checkpoint(at + 1)
        ctx.progress((at + 1) / steps)
        if at == 1 and ctx.attempt == 1:
            raise RuntimeError("it broke")
    return steps


@tool(job=True)
def plain(number: int) -> int:
    return number + 1


class Planner(Agent, concurrency=4):
    def on_start(self) -> None:
        self.ends: list[str] = []

    @handles(Go)
    async def go(self, go: Go) -> dict[str, Any]:
        job = await self.submit(walk, order=Order(wake="planner", idempotency_key="walk"), steps=go.steps)
        states = [event.data["state"] async for event in job.events() if event.kind == "state"]
        number = await (await self.submit(plain, number=1)).result()
        return {"result": await job.result(), "states": states, "number": number}

    @handles(JobEnded)
    def ended(self, ended: JobEnded) -> None:
        self.ends.append(ended.state)

    @handles(Seen)
    def seen(self, _: Seen) -> list[str]:
        return self.ends


SWARM = Swarm([Planner], [walk, plain])


async def works(world: World) -> Failure | None:
    async with world.client() as client:
        done = await client.request(Go(4), timeout=590)
        assert done["result"] == 4, done
        assert done["number"] == 2
        assert done["states"][-1] == "SUCCEEDED"
        assert done["states"].count("BACKOFF") == 1
        await asyncio.sleep(5)
        assert await client.request(Seen()) == ["SUCCEEDED"]
        assert [job.view.state for job in await client.jobs.list() if job.view] == ["SUCCEEDED"] * 2
    return None


@pytest.mark.slow
def test_jobs_are_the_same_in_every_run_of_a_seed() -> None:
    runner = Runner(Setup(SWARM), works)
    first = [runner.run(Seeded(seed)) for seed in range(30)]
    assert [each.failure for each in first] == [None] * 30
    assert [runner.run(Seeded(seed)).digest for seed in range(30)] == [each.digest for each in first]
    assert all(each.seconds > 240 for each in first)


def test_a_schedule_fires_each_hour_of_a_day() -> None:
    swarm = Swarm([], [plain], schedules=[Schedule("hourly", "0 * * * *", "plain", {"number": 1})])

    async def day(world: World) -> None:
        await asyncio.sleep(86_430)
        jobs = await world.system.ask(JOBS, ListJobs(limit=200))
        assert len(jobs) == 24
        assert {str(job.state) for job in jobs} == {"SUCCEEDED"}

    outcome = Runner(Setup(swarm, most_seconds=90_000), day).run(Seeded(0))
    assert outcome.failure is None, outcome.failure


@pytest.mark.slow
def test_whatever_crashes_a_job_ends_once() -> None:
    async def ends(world: World) -> None:
        async with world.client() as client:
            for _ in range(3):
                await client.request("go", steps=1, timeout=300)
            jobs = await client.jobs.list()
            assert {job.view.state for job in jobs if job.view} <= {"SUCCEEDED", "LOST", "FAILED"}
            for job in jobs:
                events = [event async for event in job.events()]
                assert [event.seq for event in events] == list(range(1, len(events) + 1))
                assert sum(event.data.get("state") in {"SUCCEEDED", "LOST", "FAILED"} for event in events) == 1

    class Boss(Agent):
        @handles(Go)
        async def go(self, _: Go) -> str:
            job = await self.submit(plain, number=1)
            with contextlib.suppress(GramiError):
                await job.result()
            return str((await job.get()).state)

    runner = Runner(Setup(Swarm([Boss], [plain]), "slow"), ends)
    outcomes = [runner.run(Seeded(seed)) for seed in range(60)]
    assert [each.failure for each in outcomes if each.failure] == []


def test_a_command_is_not_run_in_a_simulation() -> None:
    swarm = Swarm([], [command("echo", ["echo", "hello"])])

    async def try_it(world: World) -> None:
        async with world.client() as client:
            job = await client.jobs.submit("echo")
            with pytest.raises(Exception, match="stand-in"):
                await job.result()

    outcome = Runner(Setup(swarm), try_it).run(Seeded(0))
    assert outcome.failure is None, outcome.failure


def test_a_transcript_tells_what_was_wanted_of_jobs_and_how_their_attempts_went() -> None:
    shown: list[Any] = []

    async def film(play: Play) -> None:
        ada = await play.client("ada")
        assert await (await ada.jobs.submit("walk", {"steps": 3})).result() == 3
        await (await ada.jobs.submit("walk", {"steps": 9})).cancel()

    outcome = Runner(Setup(SWARM), acted(film, shown.append)).run(Seeded(0), watched=True)
    assert outcome.failure is None, outcome.failure
    lines = [each for each in shown if isinstance(each, Line)]
    first, second = dict.fromkeys(each.who for each in lines if each.who.startswith("job_"))
    assert [(each.who, each.to, each.what, each.text) for each in lines[:6]] == [
        ("ada", JOBS, "submit_job", f"walk, steps=3 ⇒ {first} QUEUED"),
        (first, "", "started", ""),
        (first, "", "ended failed", "the tool walk failed: RuntimeError: it broke"),
        (first, "", "started", ""),
        (first, "", "ended succeeded", "3"),
        ("ada", JOBS, "submit_job", f"walk, steps=9 ⇒ {second} QUEUED"),
    ]
    assert {each.what for each in lines[6:]} == {"started", "cancel_job", "ended stopped"}


def test_a_request_in_the_background_that_is_cancelled_is_over_at_once() -> None:
    class Sleeper(Agent):
        @handles(Go)
        async def go(self, _: Go) -> None:
            await asyncio.sleep(3_600)

    async def cancels(world: World) -> None:
        desk = await world.system.ask(JOBS, SubmitRequest(message=Go(1)))
        await asyncio.sleep(60)
        await world.system.ask(JOBS, CancelJob(desk.id))
        await asyncio.sleep(0.1)
        assert (await world.system.ask(JOBS, GetJob(desk.id))).state == "CANCELLED"

    outcome = Runner(Setup(Swarm([Sleeper], [plain])), cancels).run(Seeded(0))
    assert outcome.failure is None, outcome.failure
