"""Who takes part in the tests of coordination: members that answer, fail, hang and answer late, and who asks them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from grami_actors.actor import Actor
from grami_actors.coordination import handoff
from grami_actors.errors import Reject
from grami_actors.restarts import RestartPolicy
from grami_actors.system import ActorSystem
from grami_actors.telemetry import DeadLetter
from tests.conftest import Gate, Recorder, running, turns_until

AT_ONCE = RestartPolicy(intensity=1000, shortest=0.0, longest=0.0)

FAILURES = {
    "raise": "AGENT_EXECUTION_FAILED",
    "crash": "AGENT_CRASHED",
    "reject": "RATE_LIMITED",
    "hang": "DEADLINE_EXCEEDED",
    "absent": "DESTINATION_NOT_FOUND",
}
"""Ways to give no answer, and what code that has."""


class Cast:
    """What members do, what they did, and the system that they are in."""

    def __init__(self, system: ActorSystem, ways: dict[str, Any]) -> None:
        self.system = system
        self.ways = {name: list(way) if isinstance(way, (list, tuple)) else [way] for name, way in ways.items()}
        self.heard: list[tuple[str, Any]] = []
        self.cancelled: list[str] = []
        self.gate = Gate()
        self.letters = Recorder(system, DeadLetter)

    async def play(self, work: Any, **options: Any) -> Any:
        """Have a handler of the caller await ``work(actor)``; then nothing may be left at work."""
        try:
            return await self.system.ask("caller", work, **options)
        finally:
            await turns_until(self.quiet)

    def quiet(self) -> bool:
        cells = self.system.table.cells.values()
        return not any(cell.waits or cell.working or cell.at_work for cell in cells if cell.name not in self.held)

    @property
    def held(self) -> set[str]:
        """Whoever ignores that it is cancelled until the gate is opened."""
        return {name for name, ways in self.ways.items() if "late" in ways and not self.gate.opened.is_set()}


class Member(Actor):
    """Does one thing after another, and goes on with the last; what is none of the words below is its answer."""

    restart = AT_ONCE

    def __init__(self, cast: Cast) -> None:
        super().__init__()
        self.cast = cast

    async def on_receive(self, message: Any) -> Any:
        cast = self.cast
        cast.heard.append((self.name, message))
        ways = cast.ways[self.name]
        way = ways.pop(0) if len(ways) > 1 else ways[0]
        if way == "raise":
            raise ValueError("broken")
        if way == "crash":
            raise SystemExit
        if way == "reject":
            raise Reject("RATE_LIMITED", "not now")
        if way == "ask back":
            return await self.ask("caller", "anything")
        if way in {"hang", "late"}:
            await self.held(way)
        if callable(way):
            return await way(self, message)
        return f"{self.name}: {message}" if way in {"answer", "late"} else way

    async def held(self, way: str) -> None:
        while not self.cast.gate.opened.is_set():
            try:
                await self.cast.gate.wait_async()
            except asyncio.CancelledError:
                self.cast.cancelled.append(self.name)
                if way == "hang":
                    raise


class Caller(Actor):
    """Does what it is sent."""

    restart = AT_ONCE

    async def on_receive(self, message: Any) -> Any:
        return await message(self)


@asynccontextmanager
async def playing(**ways: Any) -> AsyncIterator[Cast]:
    """A system with a caller, and members that do as they are told; ``absent`` ones are not there."""
    async with running() as system:
        cast = Cast(system, ways)
        await system.spawn(Caller, name="caller")
        for name, way in ways.items():
            if way != "absent":
                await system.spawn(Member, cast, name=name)
        yield cast
        cast.gate.opened.set()


class HandsOver(Actor):
    """Tries in a worker process what cannot be done there."""

    lane = "process"

    def on_receive(self, message: Any) -> Any:
        handoff(self, "other", message)
