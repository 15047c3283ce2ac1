"""The Growth Manager: a swarm behind a gateway, published so that clients find it. Floor 13."""

from __future__ import annotations

import contextlib
import os
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Self

from grami_actors.config import Config
from grami_actors.discovery import ServerState, read_state, remove_state, write_state
from grami_actors.errors import ConfigError
from grami_actors.gateway.server import Gateway
from grami_actors.swarm import Swarm
from grami_actors.system import ActorSystem
from grami_actors.telemetry import Metrics

VARIABLE = "GRAMI_PORT"
_PUBLISHED: list[str | None] = []
"""What GRAMI_PORT was before, and the ports of this process's servers: as global as the variable itself."""


def package_version() -> str:
    """The installed version of this package."""
    try:
        return version("grami_actors")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "0+unknown"


class GrowthManager:
    """One running server.

    ::

        async with GrowthManager(swarm) as manager:
            print(manager.url)

    Entering starts the system, the swarm and the gateway, and publishes the address: ``GRAMI_PORT`` in this
    process (children inherit it) and the state file. Leaving undoes it in reverse: no new requests, those in
    flight end, then the agents stop, the last started first.

    Args:
        swarm: what to run.
        config: the settings.
        publish: whether to write the state file and ``GRAMI_PORT``.
        system: the system to run in, not yet entered; made if not given.

    Raises (on entering):
        ConfigError: the address cannot be bound, or the state directory not written.
        StartFailed: an agent, a tool or the model could not start.
    """

    def __init__(
        self, swarm: Swarm, config: Config | None = None, *, publish: bool = True, system: ActorSystem | None = None
    ) -> None:
        self.swarm = swarm
        self.config = config or Config()
        self.system = system or ActorSystem(threads=self.config.threads)
        self.metrics = Metrics(self.system.bus, self.system.depths)
        self.port = 0
        self.url = ""
        self._publish = publish
        self._state: ServerState | None = None
        self._replaced: ServerState | None = None
        self._gateway: Gateway | None = None

    async def __aenter__(self) -> Self:
        catalog = self.swarm.catalog()
        await self.system.__aenter__()
        try:
            await self.swarm.start(self.system)
            self._gateway = gateway = Gateway(self.system, catalog, self.config, self.metrics.text, package_version())
            self.port = await self._open(gateway)
            self.url = gateway.url(self.port)
            if self._publish:
                self._announce()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _open(self, gateway: Gateway) -> int:
        try:
            return await gateway.open()
        except OSError as error:
            where = f"{self.config.host}:{self.config.port}"
            raise ConfigError(f"cannot listen on {where}: {error.strerror or error}") from error

    @property
    def replaces(self) -> ServerState | None:
        """A server that runs now and is named by the state file that this one would overwrite."""
        state = read_state(self.config.state_dir)
        return state if state is not None and state.alive and state.pid != os.getpid() else None

    def _announce(self) -> None:
        self._replaced = self.replaces
        self._state = state = ServerState(self.url, self.port, os.getpid())
        try:
            write_state(self.config.state_dir, state)
        except OSError as error:
            self._state = None
            raise ConfigError(f"the state directory {self.config.state_dir} cannot be written: {error}") from error
        if not _PUBLISHED:
            _PUBLISHED.append(os.environ.get(VARIABLE))
        _PUBLISHED.append(str(self.port))
        os.environ[VARIABLE] = str(self.port)

    def _withdraw(self, state: ServerState) -> None:
        remove_state(self.config.state_dir, state)
        if self._replaced is not None and self._replaced.alive and read_state(self.config.state_dir) is None:
            with contextlib.suppress(OSError):  # the directory may be gone by now
                write_state(self.config.state_dir, self._replaced)
        _PUBLISHED.remove(str(state.port))
        last = _PUBLISHED[-1]
        if len(_PUBLISHED) == 1:
            _PUBLISHED.clear()
        if last is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = last

    async def close(self) -> None:
        """Stop serving; see the class."""
        if self._state is not None:
            state, self._state = self._state, None
            self._withdraw(state)
        try:
            if self._gateway is not None:
                await self._gateway.close()
        finally:
            await self.system.close()
