"""What all tests share: async tests run on a fresh loop, the lanes, and events to wait on instead of sleeping."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import json
import socket as sockets
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as websocket_connect

from grami_actors.actor import Actor
from grami_actors.cli import main
from grami_actors.config import Config
from grami_actors.manager import GrowthManager
from grami_actors.simulation.run import series
from grami_actors.swarm import Swarm
from grami_actors.system import ActorSystem
from grami_actors.telemetry import Event

settings.register_profile("quick", max_examples=20)
"""For a second Python version: what the values do was tried on the first."""

LANES = ("loop", "thread")

collect_ignore = ["scripts"]
"""Scenarios that are there to fail: the tests of ``grami run`` play them."""


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    wanted = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in wanted}))
    return True


@pytest.fixture(params=LANES)
def lane(request: pytest.FixtureRequest) -> str:
    return request.param


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def words(self) -> str:
        return " ".join((self.out + self.err).split())


Grami = Callable[..., Ended]


@pytest.fixture
def command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Grami:
    """Runs ``grami`` in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["grami", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return Ended(int(ended.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def in_series() -> Iterator[None]:
    """Simulated runs that cost the same however much the other tests left behind."""
    with series():
        gc.collect()
        gc.freeze()  # the runner sweeps after each run, and need not look at all that is older
        yield
        gc.unfreeze()


def on(lane: str, kind: type[Actor], **options: Any) -> type[Any]:
    """The same actor class on another lane, or with other options."""
    return type(kind.__name__, (kind,), {"lane": lane, **options})


class Recorder:
    """Collects telemetry events, and lets a test wait for one instead of sleeping."""

    def __init__(self, system: ActorSystem, *kinds: type[Event]) -> None:
        self.events: list[Any] = []
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        system.bus.subscribe(self._add, *kinds)

    def _add(self, event: Any) -> None:
        self.events.append(event)
        self._loop.call_soon_threadsafe(self._changed.set)

    async def until(self, condition: Callable[[list[Any]], Any]) -> Any:
        while not (found := condition(self.events)):
            self._changed.clear()
            await self._changed.wait()
        return found

    async def first(self, kind: type[Event]) -> Any:
        return await self.until(lambda events: next((e for e in events if isinstance(e, kind)), None))


@asynccontextmanager
async def running(**options: Any) -> AsyncIterator[ActorSystem]:
    """A system, under a time limit that turns a hang into a failure."""
    async with asyncio.timeout(20), ActorSystem(**options) as system:
        yield system


async def turns_until(condition: Callable[[], Any]) -> None:
    """Let the loop go round until something is so that no event tells of."""
    while not condition():  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0)


class Signal(threading.Event):
    """An event that threads and coroutines of any loop can wait for."""

    def __init__(self) -> None:
        super().__init__()
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    def set(self) -> None:
        super().set()
        for loop, event in tuple(self._waiters):
            with contextlib.suppress(RuntimeError):  # that loop is closed
                loop.call_soon_threadsafe(event.set)

    async def reached(self) -> None:
        event = asyncio.Event()
        self._waiters.append((asyncio.get_running_loop(), event))
        if not self.is_set():
            await event.wait()


class Gate:
    """Holds a handler, on any lane, until the test opens it."""

    def __init__(self) -> None:
        self.entered = Signal()
        self.opened = Signal()

    def hold(self) -> None:
        """Block the calling thread (thread lane only)."""
        self.entered.set()
        assert self.opened.wait(20)

    async def wait_async(self) -> None:
        """Hold a coroutine handler."""
        self.entered.set()
        await self.opened.reached()

    async def until_entered(self) -> None:
        await self.entered.reached()


@asynccontextmanager
async def serving(swarm: Swarm, **settings: Any) -> AsyncIterator[GrowthManager]:
    """A Growth Manager on a free port, under a time limit that turns a hang into a failure."""
    settings.setdefault("drain_timeout", 0.2)
    async with asyncio.timeout(40), GrowthManager(swarm, Config(**settings), publish=False) as manager:
        yield manager


def free_port() -> int:
    with sockets.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cut(manager: GrowthManager) -> None:
    """Cut all connections of a server without a goodbye, as the death of its process does."""
    assert manager._gateway is not None
    for connection in tuple(manager._gateway._open):
        connection.transport.abort()


@asynccontextmanager
async def raw(manager: GrowthManager, **options: Any) -> AsyncIterator[ClientConnection]:
    """A bare WebSocket client, to see every frame as it is."""
    async with websocket_connect(manager.url, proxy=None, compression=None, **options) as socket:
        yield socket


async def tell(socket: ClientConnection, **message: Any) -> None:
    await socket.send(json.dumps(message))


async def heard(socket: ClientConnection) -> dict[str, Any]:
    return json.loads(await socket.recv())
