"""The clerk of the office: submits what is scheduled, and clears away what was kept for long enough. Floor 12."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from grami_actors.actor import Actor
from grami_actors.errors import GramiError
from grami_actors.job_requests import SubmitJob
from grami_actors.jobs.service import Service
from grami_actors.jobs.state_dir import discard, retire
from grami_actors.jobs.store import Firing, StoreError
from grami_actors.ref import Ref
from grami_actors.schedules import Schedule

CLEAN_EVERY = 300.0
"""Seconds between two looks for what is kept long enough."""

LONGEST_WAIT = 3_600.0
"""Seconds after which a schedule is looked at, even if it is not due: the clock on the wall may have been set."""

SCHEDULER = "scheduler"
"""The owner of jobs that nobody submitted."""


class Clean(msgspec.Struct, frozen=True):
    """See what is kept long enough."""


class Due(msgspec.Struct, frozen=True):
    """See whether a schedule fires."""

    name: str


class JobClerk(Actor):
    """Does what has its time.

    Args:
        service: what it shares with the office.
        office: where jobs are submitted.
    """

    listed = False

    def __init__(self, service: Service, office: Ref[Any]) -> None:
        super().__init__()
        self._service = service
        self._office = office
        self._schedules = {each.name: each for each in service.plan.schedules}
        self._next: dict[str, float] = {}

    async def on_start(self) -> None:
        """Read when each schedule fires next; one that is new, or was changed, begins now."""
        known = {each.name: each for each in await self._service.ledger.read(lambda store: store.firings())}
        now = self._wall()
        for name, schedule in self._schedules.items():
            found = known.get(name)
            fits = found is not None and found.spec == schedule.spec
            self._next[name] = found.next_at if found is not None and fits else schedule.next_after(now)
            self._arm(name)
        self.every(CLEAN_EVERY, Clean())

    def _wall(self) -> float:
        # What people call noon moves with their clock, so schedules do.
        return self.utc_now().timestamp()

    def _arm(self, name: str) -> None:
        wait = min(LONGEST_WAIT, max(0.0, self._next[name] - self._wall()))
        self.after(wait, Due(name), key=("due", name))

    async def on_receive(self, message: Any) -> None:
        """One thing after another."""
        if isinstance(message, Due):
            await self._fire(self._schedules[message.name])
        elif isinstance(message, Clean):
            await self._clean()

    async def _fire(self, schedule: Schedule) -> None:
        firings, next_at = schedule.due(self._next[schedule.name], self._wall())
        try:
            for at in firings:
                await self._submit(schedule, at)
        except GramiError as error:
            # Under its key it is submitted once, however often this is tried.
            self._service.doubt(f"the schedule {schedule.name} could not submit its job: {error.message}")
            if error.retryable or error.retry_after_ms:
                self.after(60.0, Due(schedule.name), key=("due", schedule.name))
                return
        self._next[schedule.name] = next_at
        await self._service.surely(lambda store: store.fire(Firing(schedule.name, schedule.spec, next_at)))
        self._arm(schedule.name)

    async def _submit(self, schedule: Schedule, at: float) -> None:
        submit = SubmitJob(
            tool=schedule.tool, arguments=schedule.arguments, order=schedule.ordered(at), owner=SCHEDULER
        )
        await self.ask(self._office, submit)

    async def _clean(self) -> None:
        service, now = self._service, self._service.time()
        try:
            while retired := await service.ledger.do(lambda store: retire(store, now, service.plan.keep)):
                if not service.system.simulated:
                    await asyncio.to_thread(discard, service.folder, retired)
        except StoreError as error:
            service.doubt(f"jobs that are over cannot be cleared away now: {error.message}")
