"""Long jobs under supervision: one is cancelled, one fails and resumes from its checkpoint, an agent is woken.

Play it:  grami run scenarios/long_jobs.py
Break it: grami run scenarios/long_jobs.py whatever_happens --simulate --faults crash
Serve it: grami serve scenarios/long_jobs.py, then: grami jobs submit encode frames=50 --attach
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from grami_actors import Agent, GramiError, Message, Swarm, ToolExecutionFailed, handles, tool
from grami_actors.jobs import JobContext, JobEnded, Order, Retry
from grami_actors.scenario import Play, scenario

PATIENCE = 30.0
"""Seconds that a client waits."""

ENDS = {"SUCCEEDED", "FAILED", "CANCELLED", "TIMED_OUT", "LOST"}


class Encode(Message, tag="encode"):
    """Somebody wants a film."""

    frames: int


class Listen(Message, tag="listen"):
    """Somebody wants it, and changes their mind."""


class Finished(Message, tag="finished"):
    """Somebody asks which films there are."""


@tool(job=True, effect="resumable", retry=Retry(attempts=3, delay=0.05))
async def encode(frames: int, ctx: JobContext) -> list[int]:
    """Encodes film; the first attempt breaks in the middle of it. Answers where each attempt began."""
    began = ctx.resume["began"] if ctx.resume else []
    first = ctx.resume["next"] if ctx.resume else 0
    began = [*began, first]
    for frame in range(first, frames):
        if ctx.attempt == 1 and frame == frames // 2:
            raise ToolExecutionFailed("the disk is full")
        await asyncio.sleep(0.01)
        ctx.progress((frame + 1) / frames, f"frame {frame + 1}")
        ctx.checkpoint({"began": began, "next": frame + 1})
    return began


@tool(job=True, effect="pure")
async def listen() -> None:
    """Goes on for an hour."""
    await asyncio.sleep(3600)


class Studio(Agent, concurrency=10):
    """Has films encoded, and hears when they are."""

    def __init__(self) -> None:
        super().__init__()
        self.films: list[str] = []

    @handles(Encode)
    async def encode(self, message: Encode) -> list[int]:
        """Wait for the film."""
        job = await self.submit(encode, order=Order(wake="studio"), frames=message.frames)
        began: list[int] = await job.result()
        return began

    @handles(Listen)
    async def listen(self, message: Listen) -> str:
        """Begin, and give up as soon as it runs."""
        job = await self.submit(listen)
        async for event in job.events():
            if event.data.get("state") == "RUNNING":
                await job.cancel()
        return str((await job.get()).state)

    @handles(JobEnded)
    def ended(self, message: JobEnded) -> None:
        """It is told at least once."""
        if message.job_id not in self.films:
            self.films.append(message.job_id)

    @handles(Finished)
    def finished(self, message: Finished) -> int:
        """How many there are."""
        return len(self.films)


swarm = Swarm(agents=[Studio], tools=[encode, listen])


@scenario
async def a_job_is_retried_from_its_checkpoint(play: Play) -> None:
    """The first attempt fails in the middle; the second goes on there, and the studio is woken."""
    ada = await play.client("ada")
    began = await ada.request(Encode(frames=10))
    play.check("the second attempt began where the first one broke", began == [0, 5], str(began))
    await play.expect("studio: job_ended")
    play.check("the studio was told of the film", await ada.request(Finished()) == 1)


@scenario
async def a_job_is_cancelled(play: Play) -> None:
    """What would take an hour is over at once."""
    ada = await play.client("ada")
    play.check("it is cancelled", await ada.request(Listen()) == "CANCELLED")


@scenario
async def whatever_happens(play: Play) -> None:
    """Under any faults each job ends once, and its events have no gap; without faults the film is there."""
    ada = await play.client("ada")
    for wish in (Encode(frames=10), Listen(), Encode(frames=4)):
        try:
            await ada.request(wish, timeout=PATIENCE)
        except GramiError as error:
            play.check("she is refused for a fault, not without one", play.transcript.faults(), str(error))
    try:
        for job in await ada.jobs.list():
            with suppress(GramiError):  # most are over
                await job.cancel(force=True)
            events = [event async for event in job.events()]
            play.check("nothing of it is missing", [each.seq for each in events] == list(range(1, len(events) + 1)))
            play.check("it ended once", sum(each.data.get("state") in ENDS for each in events) == 1)
    except GramiError as error:
        play.check("she is told nothing for a fault, not without one", play.transcript.faults(), str(error))
