"""Server, shim and job are killed at each place where it matters; the outside witness and the store must agree."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from grami_actors.errors import GramiError
from grami_actors.job import State
from tests.job_witness import Trial, slots_are_free, trial

pytestmark = pytest.mark.slow

AT_ONCE = 4
"""Trials at the same time: most of each is waiting."""

SUBMITTED = [
    *(f"ledger.{when}_commit:{nth}" for when in ("before", "after") for nth in (1, 2, 3, 4)),
    "office.after_accept:1",
    "actor.after_claim:1",
    "outside.before_spawn:1",
    "outside.after_spawn:1",
    "actor.before_end:1",
]
"""Where the server dies in the course of a job that is submitted, and in which passage. A job is accepted, claimed,
said to run and ended by one commit each."""

CANCELLED = [
    *(f"ledger.{when}_commit:{nth}" for when in ("before", "after") for nth in (4, 5, 6)),
    "actor.after_stop:1",
    "actor.before_end:1",
]
"""The same of one that is cancelled when it runs: wanted, being stopped, and ended."""

SHIM = {
    "before_run": (State.SUCCEEDED, ["start", "end"]),
    "after_run": (State.LOST, []),
    "before_exit": (State.LOST, ["start", "end"]),
    "after_exit": (State.SUCCEEDED, ["start", "end"]),
}
"""Where the shim dies; what becomes of a job that may be done once, and what the witness sees of it."""


@asynccontextmanager
async def served(folder: Path, failpoint: str = "", **settings: int):
    """A trial with a server that dies at a fail point, if there is one, and a client."""
    async with asyncio.timeout(50), trial(folder, **settings) as test:
        assert await test.start(failpoint and f"{failpoint}:kill9")
        yield test


async def each_of(places: Sequence[str], work: Callable[[str], Awaitable[None]]) -> None:
    """Do something with each of some places, some at the same time."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(place: str) -> None:
        async with turns:
            try:
                await work(place)
            except BaseException as error:
                error.add_note(f"killed at {place}")
                raise

    async with asyncio.TaskGroup() as group:
        for place in places:
            group.create_task(one(place))


async def dies(test: Trial) -> None:
    """Have the server die at its fail point, and start it again without."""
    assert await test.gone() == -signal.SIGKILL
    assert await test.start()


def seen(test: Trial, job: str = "") -> list[str]:
    """What the witness saw of a job."""
    return [each.what for each in test.lines(job=job)]


# --- the server ---


async def test_a_job_is_done_once_wherever_its_server_is_killed(tmp_path: Path) -> None:
    async def killed_at(place: str) -> None:
        async with served(tmp_path / place, place, jobs_running=1) as test:
            submitted = asyncio.create_task(test.submit("task", "the-key", lines=3))
            await dies(test)
            job = await submitted
            assert (await test.over(job.id)).state is State.SUCCEEDED
            assert seen(test) == ["start", "end"]
            assert (await test.submit("task", "the-key", lines=3)).id == job.id
            assert await slots_are_free(test, 1)
            assert test.faults() == []

    await each_of(SUBMITTED, killed_at)


async def test_a_cancel_that_was_written_down_is_done_wherever_the_server_is_killed(tmp_path: Path) -> None:
    async def killed_at(place: str) -> None:
        async with served(tmp_path / place, place, jobs_running=1) as test:
            job = await test.submit("task", "the-key", gate=str(tmp_path / "never"))
            await test.until(lambda: test.job(job.id).state is State.RUNNING and test.lines("start"))
            with suppress(GramiError):  # the server may die before it answers
                await job.cancel(force=True)
            assert await test.gone() == -signal.SIGKILL
            wanted = test.job(job.id).cancellation is not None
            assert await test.start()
            if not wanted:
                assert test.client is not None
                await test.client.jobs.job(job.id).cancel(force=True)
            assert (await test.over(job.id)).state is State.CANCELLED
            assert seen(test) == ["start"]
            assert await slots_are_free(test, 1)
            assert test.faults() == []

    await each_of(CANCELLED, killed_at)


async def test_a_cancel_by_force_is_still_one_by_force_when_the_server_was_killed_meanwhile(tmp_path: Path) -> None:
    async with served(tmp_path, "actor.after_stop:1") as test:
        job = await test.submit("stubborn", "the-key")
        await test.until(lambda: test.job(job.id).state is State.RUNNING and test.lines("start"))
        with suppress(GramiError):
            await job.cancel(force=True)
        await dies(test)
        over = await test.over(job.id)
        assert over.state is State.CANCELLED
        assert over.exit is not None
        assert over.exit.forced
        assert not test.lines("term"), "it was not asked before"
        assert test.faults() == []


async def test_a_server_that_dies_while_it_takes_jobs_up_again_loses_none(tmp_path: Path) -> None:
    async with served(tmp_path) as test:
        gate = tmp_path / "gate"
        jobs = [await test.submit(tool, tool, gate=str(gate)) for tool in ("task", "work", "task_again")]
        running = [(await test.started(job.id)).pid for job in jobs]
        for failpoint in ("outside.before_adopt:1:kill9", "outside.before_adopt:2:kill9"):
            await test.kill()
            await test.start(failpoint)
            assert await test.gone() == -signal.SIGKILL
        assert await test.start()
        gate.touch()
        assert [(await test.over(job.id)).state for job in jobs] == [State.SUCCEEDED] * 3
        assert sorted(each.pid for each in test.lines("start")) == sorted(running)
        assert test.faults() == []


# --- the shim ---


async def test_a_job_whose_shim_is_killed_is_lost_unless_nothing_of_it_ran_or_its_end_is_known(tmp_path: Path) -> None:
    async def killed_at(place: str) -> None:
        state, witnessed = SHIM[place]
        async with served(tmp_path / place, f"shim.{place}:1") as test:
            job = await test.submit("task", "the-key", lines=3)
            if place == "before_run":  # each shim of this server dies there
                await test.until(lambda: test.job(job.id).state is State.BACKOFF)
                await test.kill()
                assert await test.start()
            assert (await test.over(job.id)).state is state
            assert seen(test) == witnessed
            assert test.faults() == []

    await each_of(list(SHIM), killed_at)


async def test_a_job_that_was_just_forked_is_killed_with_its_shim_and_repeated_if_it_may_be(tmp_path: Path) -> None:
    async with served(tmp_path, "shim.after_fork:1") as test:
        once = await test.submit("task", "once", gate=str(tmp_path / "never"))
        twice = await test.submit("work_again", "twice", gate=str(tmp_path / "never"))
        assert [(await test.over(job.id)).state for job in (once, twice)] == [State.LOST, State.LOST]
        assert (test.job(once.id).attempt, test.job(twice.id).attempt) == (1, 2)
        assert "end" not in seen(test)
        assert test.faults() == []


async def test_a_shim_that_is_killed_while_its_job_runs_takes_it_along(tmp_path: Path) -> None:
    async with served(tmp_path, jobs_running=4) as test:
        gate = tmp_path / "gate"
        tools = ("task", "work", "task_again", "work_again")
        jobs = [await test.submit(tool, tool, gate=str(gate), lines=2) for tool in tools]
        for job in jobs:
            await test.started(job.id)
            os.kill(test.shim(job.id), signal.SIGKILL)
        for job in jobs[2:]:
            await test.started(job.id, 2)
        gate.touch()
        ended = [await test.over(job.id) for job in jobs]
        assert [each.state for each in ended] == [State.LOST, State.LOST, State.SUCCEEDED, State.SUCCEEDED]
        assert [seen(test, job.id) for job in jobs] == [["start"]] * 2 + [["start", "start", "end"]] * 2
        assert await slots_are_free(test, 4)
        assert test.faults() == []


# --- the job ---


async def test_how_a_job_ended_is_said_as_the_witness_saw_it(tmp_path: Path) -> None:
    ways = {"0": State.SUCCEEDED} | dict.fromkeys(("7", "255", "SEGV", "KILL", "TERM", "ABRT"), State.FAILED)
    async with served(tmp_path) as test:
        jobs = {}
        for tool in ("task", "work"):
            for how in ways:
                jobs[await test.submit(tool, f"{tool}-{how}", how=how, lines=2)] = how
        jobs[await test.submit("work", "raise", how="raise", lines=2)] = "raise"
        for job, how in jobs.items():
            assert (await test.over(job.id)).state is ways.get(how, State.FAILED)
        assert len(test.lines("end")) == len(jobs)
        assert test.faults() == []


async def test_a_job_that_is_killed_by_somebody_has_failed_by_that_signal(tmp_path: Path) -> None:
    async with served(tmp_path) as test:
        for tool in ("task", "work"):
            job = await test.submit(tool, tool, gate=str(tmp_path / "never"))
            os.kill((await test.started(job.id)).pid, signal.SIGKILL)
            over = await test.over(job.id)
            assert over.state is State.FAILED
            assert over.exit is not None
            assert over.exit.signal == signal.SIGKILL
        assert test.faults() == []


# --- while no server is there ---


async def test_what_a_job_does_while_no_server_is_there_is_known_to_the_next(tmp_path: Path) -> None:
    async with served(tmp_path, jobs_running=6) as test:
        now, later = tmp_path / "now", tmp_path / "later"
        gates = {"ends": now, "fails": now, "stays": later, "lost": later, "again": later}
        tools = {"fails": "work", "lost": "work", "again": "work_again"}
        jobs = {}
        for name, gate in gates.items():
            how = "7" if name == "fails" else "0"
            jobs[name] = await test.submit(tools.get(name, "task"), name, gate=str(gate), how=how, lines=5)
        jobs["steps"] = await test.submit("say", "steps", lines=30)
        running = {name: (await test.started(job.id)).pid for name, job in jobs.items()}
        shims = [test.shim(jobs[name].id) for name in ("lost", "again")]
        await test.kill()
        now.touch()
        for shim in shims:
            os.kill(shim, signal.SIGKILL)
        ended = [jobs[name].id for name in ("ends", "fails", "steps")]
        await test.until(lambda: all(test.attempt(job, 1).finished for job in ended))
        assert await test.start()
        await test.started(jobs["again"].id, 2)
        later.touch()
        over = {name: await test.over(job.id) for name, job in jobs.items()}
        wanted = {"fails": State.FAILED, "lost": State.LOST}
        assert {name: job.state for name, job in over.items()} == {
            name: wanted.get(name, State.SUCCEEDED) for name in jobs
        }
        assert test.lines("start", jobs["stays"].id)[0].pid == running["stays"]
        assert over["steps"].result == 30
        assert test.faults() == []


async def test_a_job_that_is_asked_to_end_is_made_to_though_its_server_is_killed_meanwhile(tmp_path: Path) -> None:
    async with served(tmp_path) as test:
        job = await test.submit("stubborn", "the-key")
        await test.until(lambda: test.job(job.id).state is State.RUNNING and test.lines("start"))
        await job.cancel()
        await test.until(lambda: test.lines("term"))
        await test.kill()
        await test.until(lambda: not test.living())
        assert test.attempt(job.id, 1).finished
        assert await test.start()
        over = await test.over(job.id)
        assert over.state is State.CANCELLED
        assert over.exit is not None
        assert over.exit.forced
        assert test.faults() == []


async def test_a_deploy_leaves_what_survives_stops_what_cannot_and_keeps_the_queue(tmp_path: Path) -> None:
    async with served(tmp_path, jobs_running=2) as test:
        gate = tmp_path / "gate"
        stays = await test.submit("task", "stays", gate=str(gate), lines=2)
        stopped = await test.submit("mortal", "stopped", gate=str(gate))
        for job in (stays, stopped):
            await test.until(lambda job=job: test.job(job.id).state is State.RUNNING and test.lines("start", job.id))
        waits = await test.submit("task", "waits", lines=2)
        assert test.server is not None
        test.server.terminate()
        assert await test.gone() == 128 + signal.SIGTERM
        assert {job: each.state for job, each in test.jobs().items()} == {
            stays.id: State.RUNNING,
            stopped.id: State.LOST,
            waits.id: State.QUEUED,
        }
        assert test.living(stays.id)
        assert not test.living(stopped.id)
        assert await test.start()
        gate.touch()
        assert (await test.over(stays.id)).state is State.SUCCEEDED
        assert (await test.over(waits.id)).state is State.SUCCEEDED
        assert len(test.lines("start")) == 3
        assert test.faults() == []


async def test_what_cannot_outlive_its_server_ends_with_it_however_that_ends(tmp_path: Path) -> None:
    async with served(tmp_path) as test:
        job = await test.submit("mortal", "stopped", gate=str(tmp_path / "never"))
        await test.started(job.id)
        await test.kill()
        await test.until(lambda: not test.living())
        assert await test.start()
        assert (await test.over(job.id)).state is State.LOST
        assert seen(test) == ["start"]
        assert test.faults() == []
