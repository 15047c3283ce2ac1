"""What the actors of jobs share and what outlives each of them: store, runners, settings, time. Floor 12."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from grami_actors.errors import DestinationNotFound
from grami_actors.job import Job, RunnerName
from grami_actors.jobs.admission import Bounds
from grami_actors.jobs.ledger import Ledger
from grami_actors.jobs.requests import request_tool
from grami_actors.jobs.retention import Keep
from grami_actors.jobs.runner import Runner
from grami_actors.jobs.store import JobStore, StoreError
from grami_actors.messages import Message
from grami_actors.schedules import Schedule
from grami_actors.system import ActorSystem
from grami_actors.telemetry import Doubted, JobChanged
from grami_actors.tools import Tool

RETRY_EVERY = (0.05, 2.0)
"""Seconds between two tries to write what must be written: the first wait, and the longest."""

T = TypeVar("T")


class Plan(msgspec.Struct, frozen=True):
    """What a swarm declares about jobs, and what the settings say of them.

    Attributes:
        tools: by name.
        types: the message types that clients may send, for requests in the background.
        schedules: jobs that submit themselves.
        bounds: how many may wait and run.
        keep: for how long what is kept of jobs that are over.
    """

    tools: Mapping[str, Tool[..., Any]]
    types: Mapping[str, type[Message]]
    schedules: tuple[Schedule, ...] = ()
    bounds: Bounds = Bounds(running=16, queued=10_000)
    keep: Keep = Keep()


class Service:
    """Made once for a system; its actors are given it, and find in it all that a new instance needs.

    Args:
        system: the actors.
        plan: what there is to run.
        store: opened and closed by the ledger.
        folder: where attempts have their files; nothing is written there in a simulation.

    Attributes:
        tools: all that a job may run, by name; requests in the background among them.
        runners: by name.
        left: jobs at their end, from the actor of the attempt to the office, which takes them out.
    """

    def __init__(self, system: ActorSystem, plan: Plan, store: JobStore, folder: Path) -> None:
        self.system = system
        self.plan = plan
        self.folder = folder
        self.runners: dict[RunnerName, Runner] = {}
        self.ledger = Ledger(store, self._committed, inline=system.simulated)
        # Stored absolute, measured monotonic: the clock on the wall may be set, and fires nothing by that.
        self._began = system.wall() - system.now()
        self._waiting: defaultdict[str, set[asyncio.Future[None]]] = defaultdict(set)
        self._doubted = False
        self.left: dict[str, Job] = {}
        requests = [request_tool(system, self.ledger, name, kind) for name, kind in plan.types.items()]
        self.tools = {each.name: each for each in (*plan.tools.values(), *requests)}

    def time(self) -> float:
        """Seconds since the epoch, on a clock that only goes forward."""
        return self._began + self.system.now()

    def tool_of(self, name: str) -> Tool[..., Any]:
        """A tool that can be submitted. Raises DestinationNotFound."""
        found = self.plan.tools.get(name)
        if found is None:
            raise DestinationNotFound(f"there is no tool {name!r}", param="$.tool")
        return found

    def folder_of(self, job: str, attempt: int) -> Path:
        """Where an attempt has its files."""
        return self.folder.joinpath(job, str(attempt))

    def doubt(self, text: str) -> None:
        """Tell the operator."""
        self.system.bus.publish(Doubted(text))

    async def surely(self, write: Callable[[JobStore], T]) -> T:
        """Write what must not be lost, however long the disk is full. Raises what the store itself has to say."""
        wait, longest = RETRY_EVERY
        while True:
            try:
                done = await self.ledger.do(write)
            except StoreError as error:
                if not self._doubted:
                    self._doubted = True
                    self.doubt(f"jobs cannot be written down, and are held until they can: {error}")
                await asyncio.sleep(wait)
                wait = min(longest, wait * 2)
            else:
                self._doubted = False
                return done

    # --- who waits for news of a job ---

    def _committed(self, jobs: Iterable[Job]) -> None:
        heard = JobChanged in self.system.bus
        for job in jobs:
            if heard:
                # No event tells that an agent knows of an end, nor that somebody wants the end of a job that waits.
                told = not job.woken and (job.seq > 1 or job.cancellation is None)
                self.system.bus.publish(JobChanged(job.id, job.tool, job.owner, str(job.state), job.seq, told))
            for waiter in self._waiting.pop(job.id, ()):
                if not waiter.done():
                    waiter.set_result(None)

    @contextlib.contextmanager
    def listening(self, job: str) -> Iterator[Callable[[float], Awaitable[None]]]:
        """Hear of a job from now on: what is written while it is looked at is news, too.

        Gives what waits until something was written since, and not longer than so many seconds.
        """
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[job].add(waiter)

        async def news(wait: float) -> None:
            await asyncio.wait((waiter,), timeout=wait)

        try:
            yield news
        finally:
            waiters = self._waiting.get(job)
            if waiters is not None:
                waiters.discard(waiter)
                if not waiters:
                    del self._waiting[job]
