"""A swarm and its gateway in one simulated run: what a Growth Manager is in a real one. Floor 14."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import cached_property
from types import TracebackType
from typing import Any, Literal, Self

from msgspec.structs import replace

from grami_actors.catalog import Catalog
from grami_actors.client import Client
from grami_actors.config import Config
from grami_actors.credentials import Authority
from grami_actors.gateway.memory import MemoryGateway
from grami_actors.handshake import Settings
from grami_actors.history import AnyEntry, History
from grami_actors.job_requests import JOBS
from grami_actors.jobs.opening import Jobs, plan_of
from grami_actors.manager import package_version
from grami_actors.permissions import Permissions
from grami_actors.policy import Policy
from grami_actors.simulation.faults import Injector
from grami_actors.simulation.loop import VirtualLoop
from grami_actors.simulation.rules import PROFILES
from grami_actors.simulation.schedule import Schedule
from grami_actors.simulation.system import SimulatedSystem
from grami_actors.simulation.witness import Witness
from grami_actors.swarm import Swarm
from grami_actors.system import ActorSystem

_SETTINGS = Settings(url="memory", token=None, retry_for=0.0, open_timeout=5.0, tls=None, encoding="json")


class Setup:
    """What all runs of one swarm share: made once.

    Args:
        swarm: what is run.
        faults: the name of a profile of faults.
        most_seconds: of virtual time, after which a run has failed.
    """

    def __init__(self, swarm: Swarm, faults: str = "none", most_seconds: float = 86_400.0) -> None:
        self.swarm = swarm
        self.profile = PROFILES[faults]
        self.most_seconds = most_seconds
        self.config = Config()
        self.policy = Policy(Authority(), Permissions(()), self.config.rates)
        self.version = package_version()
        for tool in swarm.tools:
            with contextlib.suppress(Exception):  # its calls say what is wrong with it
                tool.load()  # when it is first called, that would need a thread

    @cached_property
    def catalog(self) -> Catalog:
        """The message types that clients may send."""
        return self.swarm.catalog()


class Scene:
    """A system on which something is played, real or simulated: what happens in it, and what is to go wrong.

    Args:
        system: the actors.
        watch: called with each entry of the history, as it comes; if given.

    Attributes:
        called: what the script calls the client at the end of a connection.
    """

    def __init__(self, system: ActorSystem, watch: Callable[[Any], object] | None) -> None:
        self.system = system
        self.history = History(system.bus, system.now, watch)
        self.called: Callable[[str], str] = str
        self._faults: Injector | None = None

    @property
    def faults(self) -> Injector:
        """What is to go wrong; costs nothing as long as nobody asks for it."""
        if self._faults is None:
            self._faults = Injector(self.system, self.history, lambda name: self.called(name)).__enter__()  # noqa: PLW0108 - it is set later
        return self._faults

    @property
    def unused(self) -> tuple[str, ...]:
        """The faults of the script that never struck, in words."""
        return () if self._faults is None else tuple(self._faults.unused)

    def end_faults(self) -> None:
        """Let nothing go wrong any more."""
        if self._faults is not None:
            self._faults.__exit__(None, None, None)


class World(Scene):
    """One run: enter it to start the swarm; leaving it stops everything.

    Args:
        setup: what is run.
        schedule: its decisions.
        loop: its time.
        watched: whether somebody wants to see each entry of its history, as it comes.

    Attributes:
        on_entry: called with each, then.
    """

    mode: Literal["live", "simulated"] = "simulated"

    def __init__(self, setup: Setup, schedule: Schedule, loop: VirtualLoop, *, watched: bool = False) -> None:
        self.seed = schedule.seed
        self.witness = Witness()
        self.on_entry: Callable[[Any], object] | None = None
        super().__init__(SimulatedSystem(loop, schedule.rng, self.witness), self._watch if watched else None)
        self._schedule = schedule
        self._setup = setup
        self._gateway: MemoryGateway | None = None
        self._jobs: Jobs | None = None

    def _watch(self, entry: AnyEntry) -> None:
        if self.on_entry is not None:
            self.on_entry(entry)

    async def __aenter__(self) -> Self:
        await self.system.__aenter__()
        swarm, config = self._setup.swarm, self._setup.config
        await swarm.start(self.system)
        self._jobs = Jobs(self.system, plan_of(swarm, config), None)
        if self._jobs.needed:  # else nothing of it is to be seen in the history
            await self._jobs.open(JOBS)
        if self._setup.profile.chances:
            self.faults.draw(self._setup.profile, self._schedule)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end_faults()
        try:
            if self._gateway is not None:
                await self._gateway.close()
            if self._jobs is not None:
                await self._jobs.close(self._setup.config.drain_timeout)
        finally:
            await self.system.close()

    def client(self, retry_for: float = 0.0) -> Client:
        """A client that has not connected yet; seconds in which it tries to come back when it is cut off."""
        if self._gateway is None:
            setup = self._setup
            self._gateway = MemoryGateway(self.system, setup.catalog, setup.config, setup.policy, setup.version)
        return Client(replace(_SETTINGS, retry_for=retry_for), self._gateway.connect)
