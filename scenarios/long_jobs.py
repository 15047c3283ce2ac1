"""Long jobs under supervision: one is cancelled, one fails and resumes from its checkpoint, an agent is woken.

Play it:  grami run scenarios/long_jobs.py
Serve it: grami serve scenarios/long_jobs.py, then: grami jobs submit encode frames=50 --attach
"""

from __future__ import annotations

import asyncio

from grami_actors import Agent, Message, Swarm, ToolExecutionFailed, handles, tool
from grami_actors.jobs import JobContext, JobEnded, Order, Retry
from grami_actors.scenario import Play, scenario


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


@scenario(simulated=False)
async def a_job_is_retried_from_its_checkpoint(play: Play) -> None:
    """The first attempt fails in the middle; the second goes on there, and the studio is woken."""
    ada = await play.client("ada")
    began = await ada.request(Encode(frames=10))
    play.check("the second attempt began where the first one broke", began == [0, 5], str(began))
    await play.expect("studio: job_ended")
    play.check("the studio was told of the film", await ada.request(Finished()) == 1)


@scenario(simulated=False)
async def a_job_is_cancelled(play: Play) -> None:
    """What would take an hour is over at once."""
    ada = await play.client("ada")
    play.check("it is cancelled", await ada.request(Listen()) == "CANCELLED")
