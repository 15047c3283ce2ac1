"""Many jobs, and one that talks for long, under servers that are killed all the time: for the tests and the soak."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

from grami_actors.client import connect
from grami_actors.errors import ServerNotFound
from grami_actors.job import State
from grami_actors.job_client import RemoteJob
from tests.job_witness import LOOK, Trial

KINDS = ("task", "task", "task", "task_again", "work", "work_again", "say")
WAYS = ("0", "0", "0", "0", "7", "7", "KILL", "SEGV")


@dataclass
class Storm:
    """What a storm was, and what is wrong after it.

    Attributes:
        kills: how often the server was killed.
        seconds: from the first job to the end of the last.
        states: how many jobs ended in which.
        faults: what is not as it must be.
    """

    kills: int
    seconds: float
    states: dict[str, int]
    faults: list[str]


async def until_killed(test: Trial, dice: random.Random, pace: float) -> None:
    """Kill the server again and again, every ``pace`` seconds or so, be it up or not; until cancelled it is there."""
    while True:
        starting = asyncio.create_task(test.start())
        try:
            # Counted from its start: some are killed before they listen, or while they take up jobs again.
            await asyncio.sleep(pace * dice.uniform(0.2, 1.8))
            await test.until(lambda: test.server is not None)
            await test.kill()
        finally:
            starting.cancel()
            with suppress(asyncio.CancelledError):
                await starting


async def storm(test: Trial, count: int, seed: int, *, kills: int, pace: float = 1.0) -> Storm:
    """Have a client submit jobs of all kinds under servers that are killed, then let all of them end.

    Args:
        test: a trial without a server.
        count: jobs.
        seed: of all that is left to chance here.
        kills: of the server, at least; the jobs are submitted during the first half of them.
        pace: seconds between two kills, more or less.
    """
    dice = random.Random(seed)
    began = time.monotonic()
    killer = asyncio.create_task(until_killed(test, random.Random(seed + 1), pace))
    turns = asyncio.Semaphore(20)

    async def one(number: int, tool: str, arguments: dict[str, Any]) -> None:
        async with turns:
            job = await test.submit(tool, f"key-{number}", **arguments)
            if number % 5 == 0:
                assert (await test.submit(tool, f"key-{number}", **arguments)).id == job.id

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            tool = dice.choice(KINDS)
            arguments = {
                "name": f"job {number} says",
                "lines": dice.choice((0, 1, 20)),
                "pause": dice.choice((0, 0.02)),
            }
            await test.until(lambda number=number: test.kills >= number * kills // (2 * count), within=600)
            group.create_task(one(number, tool, arguments if tool == "say" else arguments | {"how": dice.choice(WAYS)}))
    await test.until(lambda: test.kills >= kills, within=600)
    killer.cancel()
    with suppress(asyncio.CancelledError):
        await killer
    with contextlib.suppress(ProcessLookupError):
        await test.kill()
    assert await test.start()
    await test.until(lambda: test.over_now() == count, within=600)
    states = Counter(str(job.state) for job in test.jobs().values())
    return Storm(test.kills, time.monotonic() - began, dict(states), test.faults())


@dataclass
class Heard:
    """What came to a client of one job, over all its connections."""

    seqs: list[int]
    text: str
    kills: int
    cuts: int


async def listened(test: Trial, lines: int, pause: float, *, kills: int, cuts: int) -> tuple[RemoteJob, Heard]:
    """Have a job talk while the server is killed and the client comes back; what was heard of it.

    Args:
        test: a trial without a server.
        lines: that it prints, and tells of by events.
        pause: seconds between two of them.
        kills: how often the server is killed.
        cuts: how often the client is a new one, which knows only how far the last one came.
    """
    assert await test.start()
    job = await test.submit("say", "talker", name="it says", lines=lines, pause=pause)
    heard = Heard([], "", 0, 0)
    steps = [lines * (each + 1) // (kills + cuts + 1) for each in range(kills + cuts)]
    reader = asyncio.create_task(_hear(test, job.id, heard))
    for number, step in enumerate(steps):
        # What the witness of its folder shows is how far it is, whether or not a server is there.
        await test.until(lambda step=step: test.log(job.id, 1).count("\n") >= step, within=600)
        if number % 2 and heard.cuts < cuts:
            reader.cancel()
            with suppress(asyncio.CancelledError):
                await reader
            heard.cuts += 1
            reader = asyncio.create_task(_hear(test, job.id, heard))
        else:
            heard.kills += 1
            await test.kill()
            assert await test.start()
    await reader
    assert (await test.over(job.id)).state is State.SUCCEEDED
    return job, heard


async def _hear(test: Trial, job_id: str, heard: Heard) -> None:
    """Read events and output from where the last reader was."""
    while True:
        with suppress(ServerNotFound):  # a client that is new tries once, and the server may just be dead
            async with connect(test.url, retry_for=60.0, encoding="msgpack") as client:
                job = client.jobs.job(job_id)
                async with asyncio.TaskGroup() as group:
                    group.create_task(_hear_events(job, heard))
                    group.create_task(_hear_output(job, heard))
                return
        await asyncio.sleep(LOOK)


async def _hear_events(job: RemoteJob, heard: Heard) -> None:
    async with aclosing(job.events(heard.seqs[-1] if heard.seqs else 0)) as events:
        async for event in events:
            heard.seqs.append(event.seq)


async def _hear_output(job: RemoteJob, heard: Heard) -> None:
    async with aclosing(job.pieces(follow=True, offset=len(heard.text))) as pieces:
        async for piece in pieces:
            assert (piece.offset, piece.dropped) == (len(heard.text), 0)
            heard.text += piece.data.decode()
