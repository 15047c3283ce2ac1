"""The jobs of a running program: opened with their state directory, and closed so that what can goes on. Floor 12."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, ClassVar, Protocol

from grami_actors.actor import Actor
from grami_actors.config import Config
from grami_actors.errors import ConfigError, ErrorCode, GramiError, ProtocolError, Reject
from grami_actors.job_requests import JOBS
from grami_actors.jobs.admission import Bounds
from grami_actors.jobs.commands import Command
from grami_actors.jobs.inside import InsideRunner
from grami_actors.jobs.memory import MemoryStore
from grami_actors.jobs.office import Halt, JobOffice
from grami_actors.jobs.outside import OutsideRunner
from grami_actors.jobs.retention import DAY, Keep
from grami_actors.jobs.service import Plan, Service
from grami_actors.jobs.sqlite import SqliteStore
from grami_actors.jobs.state_dir import StateDirectory
from grami_actors.jobs.wakes import Wakes
from grami_actors.messages import Message
from grami_actors.ref import Ref
from grami_actors.schedules import Schedule
from grami_actors.system import ActorSystem
from grami_actors.tools import Tool


class Declared(Protocol):
    """What a swarm declares."""

    tools: tuple[Tool[..., Any], ...]
    schedules: tuple[Schedule, ...]

    def types(self) -> dict[str, type[Message]]:
        """The message types that clients may send."""


def plan_of(swarm: Declared, config: Config) -> Plan:
    """What there is to run as jobs."""
    return Plan(
        tools={each.name: each for each in swarm.tools},
        types=swarm.types(),
        schedules=swarm.schedules,
        bounds=Bounds(
            running=config.jobs_running,
            queued=config.jobs_queued,
            running_per_owner=config.jobs_running_per_owner or None,
            queued_per_owner=config.jobs_queued_per_owner or None,
        ),
        keep=Keep(results=config.jobs_keep_days * DAY, keys=config.jobs_keys_days * DAY),
    )


class Jobs:
    """The jobs of one system.

    Args:
        system: entered.
        plan: what there is to run.
        state_dir: where they are kept; ``None`` for a directory that is gone afterwards, with all that still runs.
            In a simulation nothing is written.

    Raises (on :meth:`open`):
        ConfigError: the directory cannot be used, or another server has it.
    """

    def __init__(self, system: ActorSystem, plan: Plan, state_dir: Path | None) -> None:
        self._system = system
        self._plan = plan
        self._path = state_dir
        self._mortal = state_dir is None and not system.simulated
        self._opened = AsyncExitStack()
        self._office: Ref[Any] | None = None
        self._door: Ref[Any] | None = None

    @property
    def needed(self) -> bool:
        """Whether there is anything to run from the first moment on: else they are opened when somebody wants one."""
        declared = any(each.job for each in self._plan.tools.values()) or bool(self._plan.schedules)
        return declared or (self._path is not None and StateDirectory(self._path).database.exists())

    async def offer(self) -> None:
        """Open them now if they are needed, else when somebody asks for them first."""
        if self.needed:
            await self.open(JOBS)
        else:
            self._door = await self._system.spawn(JobDoor, self, name=JOBS)

    async def open(self, name: str) -> Ref[Any]:
        """Read what there is, go on with what was under way, and take jobs; returns the actor, which gets the name."""
        async with AsyncExitStack() as opened:
            service = (self._simulated if self._system.simulated else self._real)(opened)
            office = await self._system.spawn(JobOffice, service, name=name)
            self._opened = opened.pop_all()
        self._office = office
        return office

    def _simulated(self, opened: AsyncExitStack) -> Service:
        service = Service(self._system, self._plan, MemoryStore(), Path())
        opened.push_async_callback(service.ledger.close)
        # It has no other processes: what would run in one is a step of it.
        tools = {name: _stand_in(each) if isinstance(each, Command) else each for name, each in service.tools.items()}
        inside = InsideRunner(self._system, tools)
        opened.callback(inside.close)
        service.ledger.open()
        service.runners = {"inside": inside, "outside": inside}
        return service

    def _real(self, opened: AsyncExitStack) -> Service:
        path = self._path or Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="grami-jobs-")))
        directory = StateDirectory(path)
        directory.make()
        directory.lock()
        opened.callback(directory.release)
        service = Service(self._system, self._plan, SqliteStore(directory.database), directory.jobs)
        opened.push_async_callback(service.ledger.close)
        service.ledger.open()
        wakes = Wakes(directory.wake)
        opened.callback(wakes.close)
        try:
            wakes.open()
        except OSError as error:
            text = f"{wakes.path} cannot be made a pipe: {error.strerror}; remove it, or use another --state-dir"
            raise ConfigError(text) from error
        inside = InsideRunner(self._system, service.tools)
        opened.callback(inside.close)
        outside = OutsideRunner(wakes, service.tools, service.time, mortal=self._mortal)
        opened.callback(outside.close)
        service.runners = {"inside": inside, "outside": outside}
        return service

    async def close(self, grace: float) -> None:
        """Start nothing more; have those end that cannot outlive this process, for ``grace`` seconds; let go."""
        if self._door is not None:
            door, self._door = self._door, None
            await self._system.stop(door)
        if self._office is not None:
            office, self._office = self._office, None
            # Whatever it says, a store that cannot be read too: what is open is closed.
            with contextlib.suppress(GramiError):
                await self._system.ask(office, Halt(everything=self._mortal), timeout=grace)
            await self._system.stop(office)
        await self._opened.aclose()


class _StandIn(Tool[..., Any]):
    """What a command is in a simulation, where no processes are."""

    def convert(self, _arguments: dict[str, Any]) -> dict[str, Any]:
        """None: they were checked when the job was accepted."""
        return {}


def _stand_in(served: Command) -> Tool[..., Any]:
    async def run() -> None:
        text = f"commands are not run in a simulation: give the swarm a stand-in, a tool named {served.name!r}"
        raise Reject(ErrorCode.TOOL_EXECUTION_FAILED, text)

    return _StandIn(run, name=served.name, lane="loop")


class JobDoor(Actor):
    """Stands in for the office until somebody wants something of it: most programs never do.

    Args:
        jobs: not open yet.
    """

    listed = False
    mailbox: ClassVar[int] = 20_000
    concurrency: ClassVar[int] = 20_000

    def __init__(self, jobs: Jobs) -> None:
        super().__init__()
        self._jobs = jobs
        self._office: Ref[Any] | None = None
        self._opening = asyncio.Lock()

    async def on_receive(self, request: Any) -> Any:
        """Open what is behind it, and hand the request on."""
        async with self._opening:
            if self._office is None:
                try:
                    self._office = await self._jobs.open(f"{JOBS}-office")
                except ConfigError as error:
                    text = f"this server keeps no jobs: {error.message}"
                    raise ProtocolError(text, code=ErrorCode.UNSUPPORTED_FEATURE) from error
        return await self.ask(self._office, request)
