"""The Growth Manager: a swarm behind a gateway, published so that clients find it. Floor 13."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator
from functools import cache
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Self

import msgspec

from grami_actors.api_keys import KeyStore
from grami_actors.asyncapi import document
from grami_actors.catalog import Catalog
from grami_actors.config import Config, check
from grami_actors.credentials import Authority
from grami_actors.discovery import ServerState, read_state, remove_state, write_state
from grami_actors.errors import ConfigError
from grami_actors.gateway.door import Document
from grami_actors.gateway.server import Gateway
from grami_actors.jobs.opening import Jobs, plan_of
from grami_actors.jwt_tokens import JwtVerifier
from grami_actors.metrics import Metrics
from grami_actors.permissions import Permissions
from grami_actors.policy import Policy
from grami_actors.swarm import Swarm
from grami_actors.system import ActorSystem
from grami_actors.telemetry import Doubted
from grami_actors.tracing import trace_to

TITLE = "Growth Manager"
VARIABLE = "GRAMI_PORT"
_TRACED = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""Where traces go, if anywhere: OpenTelemetry's own variables."""

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

    Raises:
        ConfigError: the settings do not fit each other, or the credentials cannot be read.

    Raises (on entering):
        ConfigError: the address cannot be bound, the certificates not used, or the state directory not written.
        StartFailed: an agent, a tool or the model could not start.
    """

    def __init__(
        self, swarm: Swarm, config: Config | None = None, *, publish: bool = True, system: ActorSystem | None = None
    ) -> None:
        self.swarm = swarm
        self.config = config or Config()
        check(self.config)
        permissions = Permissions(self.config.rules)
        self.system = system or ActorSystem(threads=self.config.threads, permissions=permissions)
        self.policy = Policy(self._authority(), permissions, self.config.rates)
        self.port = 0
        self.url = ""
        self._publish = publish
        self._state: ServerState | None = None
        self._replaced: ServerState | None = None
        self._gateway: Gateway | None = None
        self._jobs: Jobs | None = None
        self._end_traces: Callable[[], None] | None = None

    async def __aenter__(self) -> Self:
        catalog = self.swarm.catalog()
        await self.system.__aenter__()
        try:
            if any(os.environ.get(variable) for variable in _TRACED):
                self._end_traces = trace_to(self.system.bus)
            await self.swarm.start(self.system)
            plan = plan_of(self.swarm, self.config)
            self._jobs = Jobs(self.system, plan, self.config.state_dir if self._publish else None)
            await self._jobs.offer()
            documents = self._documents(catalog)
            self._gateway = Gateway(self.system, catalog, self.config, self.policy, documents, package_version())
            self.port = await self._open(self._gateway)
            self.url = self._gateway.url(self.port)
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

    def _authority(self) -> Authority:
        """Who knows the credentials that the settings ask for."""
        config = self.config
        keys = jwt = None
        if "keys" in config.auth:
            keys = KeyStore(config.keys_file or config.state_dir / "keys.json", self._doubt)
        if "jwt" in config.auth and config.jwt_keys is not None:
            jwt = JwtVerifier(
                config.jwt_keys,
                algorithms=config.jwt_algorithms,
                audience=config.jwt_audience,
                issuer=config.jwt_issuer,
                tell=self._doubt,
            )
        return Authority(keys, jwt)

    def _doubt(self, text: str) -> None:
        self.system.bus.publish(Doubted(text))

    def _documents(self, catalog: Catalog) -> dict[str, Document]:
        """What is served beside the WebSocket."""
        metrics = Metrics(
            self.system.bus, self.system.depths, outboxes=self._outboxes, known=catalog.types.__contains__
        )

        @cache
        def asyncapi() -> bytes:
            secured = self.policy.authority.required
            return msgspec.json.encode(
                document(catalog.types, title=TITLE, version=package_version(), url=self.url, secured=secured)
            )

        @cache
        def client() -> bytes:
            return resources.files("grami_actors.gateway").joinpath("client.js").read_bytes()

        return {
            "/metrics": Document("text/plain; version=0.0.4; charset=utf-8", metrics.text),
            "/asyncapi.json": Document("application/json", asyncapi),
            "/client.js": Document("text/javascript; charset=utf-8", client, open=True),
        }

    def _outboxes(self) -> Iterator[int]:
        if self._gateway is not None:
            yield from self._gateway.outboxes()

    async def drained(self) -> None:
        """Wait until an administrator wants the server to stop (``admin.drain``)."""
        if self._gateway is not None:
            await self._gateway.drained()

    def reload(self) -> None:
        """Read the certificates again, for connections to come; those that cannot be used change nothing."""
        if self._gateway is not None:
            self._gateway.reload()

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
        self._state = state = ServerState(self.url, self.port, os.getpid(), self.policy.authority.operator_token)
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
            if self._jobs is not None:
                await self._jobs.close(self.config.drain_timeout)
        finally:
            await self.system.close()
            if self._end_traces is not None:
                await asyncio.to_thread(self._end_traces)
                self._end_traces = None
