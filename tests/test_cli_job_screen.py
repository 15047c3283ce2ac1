"""``grami jobs``: what a person sees of jobs that are tried again, ended or lost, of output that was dropped, and of
options that hold a job back or make it the same one."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from grami_actors import Swarm, tool
from grami_actors.client import connect
from grami_actors.job import Limits, Retry
from grami_actors.job_context import JobContext
from grami_actors.jobs.commands import command
from tests.conftest import serving
from tests.test_cli_jobs import ODD, SHELL, Shell, on_screen, play

KEPT = 1_048_576


@tool(job=True, effect="idempotent", retry=Retry(attempts=2, delay=3_600.0, longest=3_600.0))
async def tomorrow() -> None:
    """Fails, and is to be tried again in an hour."""
    raise ValueError(ODD)


@tool(job=True, effect="idempotent", retry=Retry(attempts=2, delay=0.02))
async def soon(ctx: JobContext) -> int:
    """Fails the first time."""
    if ctx.attempt == 1:
        raise ValueError(ODD)
    return ctx.attempt


@tool(job=True, soft_grace=0.2)
async def stubborn(ctx: JobContext) -> None:
    """Does not look whether it is to end."""
    await asyncio.Event().wait()


LOUD = command("loud", ["sh", "-c", "{text}"], parameters={"text": str}, limits=Limits(log=KEPT))


@asynccontextmanager
async def shell(cwd: Path) -> AsyncIterator[Shell]:
    swarm = Swarm([], [play, tomorrow, soon, stubborn, LOUD, SHELL])
    async with serving(swarm) as manager, connect(manager.url) as grami:
        yield Shell(grami, manager.url, cwd)


def plain(shown: bytes) -> str:
    """What stands on a screen, without what steers it, in one line."""
    return " ".join(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", " ", shown.decode()).split())


# --- attach ---


@pytest.mark.slow
async def test_attach_shows_when_a_job_is_tried_again_and_why_at_a_terminal(tmp_path: Path) -> None:
    async with shell(tmp_path) as run:
        job = await run.grami.jobs.submit("tomorrow")
        async with on_screen(run, "attach", job.id) as (screen, process):
            await screen.until(b" until ")
            await job.cancel()
            assert await process.wait() == 3
        (due,) = [each.data["due_at"] async for each in job.events() if "due_at" in each.data]
    at = f"{datetime.fromtimestamp(due, UTC).astimezone():%H:%M:%S}"
    said = plain(screen.shown)
    why = "the tool tomorrow failed: ValueError: no space [left] on \u241b[2Jthe device"
    assert f"BACKOFF until {at} TOOL_EXECUTION_FAILED: {why}" in said
    assert b"\x1b[2J" not in screen.shown


@pytest.mark.slow
async def test_attach_shows_each_attempt_that_a_job_is_being_ended_and_that_nobody_knows_how_it_ended(
    tmp_path: Path,
) -> None:
    async with shell(tmp_path) as run:
        again = await run.grami.jobs.submit("soon")
        ended = await run.until(await run.grami.jobs.submit("stubborn"), "RUNNING")
        lost = await run.grami.jobs.submit("shell", {"text": "kill -9 $PPID; sleep 600"})
        screens = []
        for job, code in ((again, 0), (ended, 3), (lost, 1)):
            async with on_screen(run, "attach", job.id) as (screen, process):
                if job is ended:
                    await screen.until(b"RUNNING")
                    await job.cancel()
                assert await process.wait() == code
                await screen.until((f"grami jobs retry {job.id}" if job is lost else f"{job.id} is ").encode())
            screens.append(plain(screen.shown))
    tried, stopped, gone = screens
    places = [tried.find(each) for each in ("STARTING attempt 1", "BACKOFF", "STARTING attempt 2", "is SUCCEEDED")]
    assert places == sorted(places)
    assert -1 not in places
    assert re.search(r"\d\d:\d\d:\d\d STOPPING \(user\) ", stopped)
    assert f"{lost.id} is LOST" in gone
    assert "how it ended is not known: its shim was killed while it ran" in gone
    assert f"if that does no harm: grami jobs retry {lost.id}" in gone


# --- logs ---


@pytest.mark.slow
async def test_logs_say_where_output_was_dropped_and_how_much(tmp_path: Path) -> None:
    lines = 400_000  # of 8 bytes
    async with shell(tmp_path) as run:
        job = await run.grami.jobs.submit("loud", {"text": f"seq -f %07.0f 1 {lines}"})
        await run.until(job, "SUCCEEDED")
        whole, pieces, tail = await run.all(
            ("logs", job.id), ("logs", job.id, "--json"), ("logs", job.id, "--tail", "2")
        )
        async with on_screen(run, "logs", job.id) as (screen, process):
            await screen.until(b"0400000")
            assert await process.wait() == 0
    told: list[dict[str, Any]] = [json.loads(line) for line in pieces.out.splitlines()]
    dropped = sum(each.get("dropped", 0) for each in told)
    kept = "".join(each.get("text", "") for each in told)
    assert dropped + len(kept) == 8 * lines
    assert 0 < len(kept) <= KEPT
    (hole,) = (place for place, each in enumerate(told) if "dropped" in each)
    assert told[hole + 1]["offset"] == told[hole - 1]["offset"] + told[hole - 1]["bytes"] + dropped
    assert whole.out.decode() == kept
    assert whole.err == f"[{dropped / 1_048_576:.3g} MiB of output were dropped here]\n"
    assert kept.startswith("0000001\n")
    assert tail.out == b"0399999\n0400000\n"
    shown = plain(screen.shown)
    assert 0 <= shown.find("0000001") < shown.find("of output were dropped here]") < shown.find("0400000")


# --- submit, retry ---


@pytest.mark.slow
async def test_with_a_key_it_is_the_same_job_and_with_a_time_it_waits_for_it(tmp_path: Path) -> None:
    later = datetime.now(UTC).astimezone().replace(microsecond=0) + timedelta(hours=5)
    async with shell(tmp_path) as run:
        first = await run("submit", "play", "steps=[]", "--key", "k", "--at", later.replace(tzinfo=None).isoformat())
        second, other, zoned, past = await run.all(
            ("submit", "play", "steps=[]", "--key", "k", "--json"),
            ("submit", "play", 'steps=[["return", 1]]', "--key", "k"),
            ("submit", "play", "steps=[]", "--at", later.isoformat(), "--json"),
            ("submit", "play", 'steps=[["return", 2]]', "--at", "2001-01-01", "--wait"),
        )
        assert len(await run.grami.jobs.list()) == 3
    view = second.data
    assert (first.code, first.out.decode()) == (0, f"{view['job_id']}\n")
    assert (view["state"], view["idempotency_key"]) == ("QUEUED", "k")
    for each in (view, zoned.data):
        assert datetime.fromisoformat(each["due_at"]).timestamp() == later.timestamp()
    assert (other.code, other.out, other.err[:28]) == (1, b"", "error IDEMPOTENCY_KEY_REUSED")
    assert (past.code, past.out) == (0, b"2\n")


@pytest.mark.slow
async def test_retry_makes_another_job_of_one_at_its_end_and_follows_it_if_told_to(tmp_path: Path) -> None:
    async with shell(tmp_path) as run:
        steps = [["return", {"n": 1}]]
        options = ("--key", "k", "--priority", "7", "--wait")
        made = await run("submit", "play", f"steps={json.dumps(steps)}", *options)
        (old,) = await run.grami.jobs.list()
        waits = await run.until(await run.add(["wait", "x"]), "RUNNING")
        again, followed, shortened, early, unknown = await run.all(
            *(("retry", old.id, "--json"), ("retry", old.id, "--attach"), ("retry", old.id[:-2])),
            *(("retry", waits.id), ("retry", "job_zz")),
        )
        jobs = {each.id for each in await run.grami.jobs.list()}
    assert made.code == 0
    new = again.data
    assert new["job_id"] != old.id
    assert (new["tool"], new["arguments"], new["priority"]) == ("play", {"steps": steps}, 7)
    assert "idempotency_key" not in new
    assert (followed.code, followed.data) == (0, {"n": 1})
    assert re.match(r"job_\w{26}\n", followed.err)
    assert shortened.out.decode().strip() in jobs
    assert len(jobs) == 5
    assert (early.code, early.out) == (1, b"")
    assert "it is RUNNING: cancel it first" in early.err
    assert (unknown.code, unknown.err[:19]) == (1, "error JOB_NOT_FOUND")
