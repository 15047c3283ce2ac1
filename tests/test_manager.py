"""The Growth Manager: published when it runs, and without a trace when it does not."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import threading
from pathlib import Path

import pytest

from grami_actors import Agent, Config, GramiError, GrowthManager, Message, StartFailed, Swarm, connect, handles, tool
from grami_actors.errors import ConfigError
from grami_actors.telemetry import ActorStarted, ActorStopped, ConnectionClosed, Listening
from tests.conftest import Gate, Recorder
from tests.swarms import small_swarm


class Greet(Message):
    pass


class Host(Agent):
    @handles(Greet)
    def greet(self, message: Greet) -> str:
        return "hello"


class Guest(Agent, instances=2):
    pass


class Unfit(Agent):
    def on_start(self) -> None:
        raise OSError("no room")


@tool(concurrency=2)
def on_a_thread(number: int) -> int:
    """Runs on a thread of its own."""
    return number


@pytest.fixture
def port_before(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("GRAMI_PORT", "4711")
    return "4711"


def config(directory: Path, **settings: object) -> Config:
    return Config(state_dir=directory / "state", drain_timeout=0.2, **settings)  # type: ignore[arg-type]


def threads_of_ours() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("tool:", "unfit", "host"))]


async def threads_end() -> None:
    while threads_of_ours():  # noqa: ASYNC110 - a thread that was let go tells nobody when it ends
        await asyncio.sleep(0)


def files(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# --- published ---


async def test_the_port_is_set_for_the_process_and_its_children_and_restored(port_before: str, tmp_path: Path) -> None:
    async with GrowthManager(small_swarm(), config(tmp_path)) as manager:
        assert os.environ["GRAMI_PORT"] == str(manager.port)
        program = "import os; print(os.environ['GRAMI_PORT'])"
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
        assert int((await child.communicate())[0]) == manager.port
        async with connect() as grami:
            assert grami.url == manager.url
    assert os.environ["GRAMI_PORT"] == port_before


async def test_a_port_that_was_not_set_is_not_set_afterwards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GRAMI_PORT", raising=False)
    async with GrowthManager(small_swarm(), config(tmp_path)):
        assert "GRAMI_PORT" in os.environ
    assert "GRAMI_PORT" not in os.environ


async def test_the_state_file_says_where_and_who_and_goes_with_the_server(port_before: str, tmp_path: Path) -> None:
    file = tmp_path / "state" / "growth-manager.json"
    async with GrowthManager(small_swarm(), config(tmp_path)) as manager:
        assert json.loads(file.read_text()) == {
            "url": manager.url,
            "port": manager.port,
            "pid": os.getpid(),
            "token": manager.policy.authority.operator_token,
        }
        assert files(file.parent) == [file.name], "no temporary file is left"
    assert not file.exists()


async def test_a_manager_that_is_not_published_touches_nothing(port_before: str, tmp_path: Path) -> None:
    async with GrowthManager(small_swarm(), config(tmp_path), publish=False):
        assert os.environ["GRAMI_PORT"] == port_before
        assert files(tmp_path) == []


async def test_a_state_file_of_another_server_is_left_alone(port_before: str, tmp_path: Path) -> None:
    file = tmp_path / "state" / "growth-manager.json"
    async with GrowthManager(small_swarm(), config(tmp_path)) as manager:
        other = json.dumps({"url": "ws://127.0.0.1:1/ws", "port": 1, "pid": os.getppid()})
        file.write_text(other)
        assert GrowthManager(small_swarm(), config(tmp_path)).replaces is not None
        await manager.close()
        assert file.read_text() == other


async def test_closing_twice_is_closing_once(port_before: str, tmp_path: Path) -> None:
    async with GrowthManager(small_swarm(), config(tmp_path)) as manager:
        await manager.close()
        await manager.close()
    assert os.environ["GRAMI_PORT"] == port_before


# --- two in one process ---


async def test_two_managers_in_one_process_do_not_disturb_each_other(tmp_path: Path) -> None:
    swarm = Swarm([Host], [on_a_thread])
    first, second = (GrowthManager(swarm, config(tmp_path / name), publish=False) for name in ("one", "two"))
    async with first, second, connect(first.url) as one, connect(second.url) as two:
        assert first.port != second.port
        assert await one.request("greet") == await two.request("greet") == "hello"
        closed = Recorder(second.system, ConnectionClosed)
        await first.close()
        assert closed.events == []
        assert await two.request("greet") == "hello"
        assert await two.request("tool_call", to="tool:on_a_thread", arguments={"number": 3}) == 3
        assert len(tuple(second._gateway.connections())) == 1


async def test_two_published_managers_that_end_in_order_leave_no_trace(port_before: str, tmp_path: Path) -> None:
    async with (
        GrowthManager(small_swarm(), config(tmp_path / "one")) as first,
        GrowthManager(small_swarm(), config(tmp_path / "two")) as second,
    ):
        assert os.environ["GRAMI_PORT"] == str(second.port)
        await second.close()
        assert os.environ["GRAMI_PORT"] == str(first.port)
    assert os.environ["GRAMI_PORT"] == port_before


async def test_of_two_published_managers_the_first_can_end_first(port_before: str, tmp_path: Path) -> None:
    async with (
        GrowthManager(small_swarm(), config(tmp_path / "one")) as first,
        GrowthManager(small_swarm(), config(tmp_path / "two")) as second,
    ):
        await first.close()
        assert os.environ["GRAMI_PORT"] == str(second.port)


async def test_of_two_managers_with_one_state_directory_the_first_leaves_the_seconds_file(tmp_path: Path) -> None:
    async with (
        GrowthManager(small_swarm(), config(tmp_path)) as first,
        GrowthManager(small_swarm(), config(tmp_path)) as second,
    ):
        await first.close()
        assert json.loads((tmp_path / "state" / "growth-manager.json").read_text())["port"] == second.port


# --- a start that fails ---


async def test_an_agent_that_cannot_start_leaves_nothing_running(port_before: str, tmp_path: Path) -> None:
    manager = GrowthManager(Swarm([Host, Unfit], [on_a_thread]), config(tmp_path))
    listening = False

    def note(_: object) -> None:
        nonlocal listening
        listening = True

    manager.system.bus.subscribe(note, Listening)
    with pytest.raises(StartFailed, match="unfit could not be started: OSError: no room"):
        await manager.__aenter__()
    assert not listening
    assert manager.port == 0
    assert manager.system.table.cells == {}
    assert os.environ["GRAMI_PORT"] == port_before
    assert files(tmp_path) == []
    await threads_end()


async def test_a_port_that_is_taken_leaves_nothing_running(port_before: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        manager = GrowthManager(Swarm([Host], [on_a_thread]), config(tmp_path, port=taken.getsockname()[1]))
        with pytest.raises(ConfigError, match="in use"):
            await manager.__aenter__()
    assert manager.system.table.cells == {}
    assert os.environ["GRAMI_PORT"] == port_before
    assert files(tmp_path) == []
    await threads_end()


async def test_a_state_directory_that_cannot_be_made_leaves_nothing_running(port_before: str, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    manager = GrowthManager(Swarm([Host], [on_a_thread]), config(tmp_path))
    with pytest.raises((OSError, GramiError), match="state"):
        await manager.__aenter__()
    assert manager.port
    assert not listens(manager.port)
    assert manager.system.table.cells == {}
    assert os.environ["GRAMI_PORT"] == port_before
    await threads_end()


async def test_a_start_that_is_cancelled_leaves_nothing_running(port_before: str, tmp_path: Path) -> None:
    entered = asyncio.Event()

    class Slow(Agent):
        async def on_start(self) -> None:
            entered.set()
            await asyncio.Event().wait()

    manager = GrowthManager(Swarm([Host, Slow], [on_a_thread]), config(tmp_path))
    starting = asyncio.create_task(manager.__aenter__())
    await entered.wait()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert manager.system.table.cells == {}
    assert os.environ["GRAMI_PORT"] == port_before
    await threads_end()


# --- the end ---


async def test_everything_stops_in_the_reverse_of_the_order_of_its_start(tmp_path: Path) -> None:
    manager = GrowthManager(Swarm([Host, Guest], [on_a_thread]), config(tmp_path), publish=False)
    started, stopped = [], []
    manager.system.bus.subscribe(lambda event: started.append(event.actor), ActorStarted)
    manager.system.bus.subscribe(lambda event: stopped.append(event.actor), ActorStopped)
    async with manager, connect(manager.url) as grami:
        await grami.request("greet")
        await manager.close()
    assert started == ["router", "tool:on_a_thread", "host", "guest-1", "guest-2", "jobs", "connection-1"]
    assert stopped == started[::-1]
    assert not listens(manager.port)
    await threads_end()


async def test_what_an_agent_does_when_it_stops_can_still_use_the_tools(tmp_path: Path) -> None:
    said = []

    class Tidy(Agent):
        async def on_stop(self) -> None:
            said.append(await self.call(on_a_thread, number=5))

    async with GrowthManager(Swarm([Tidy], [on_a_thread]), config(tmp_path), publish=False):
        pass
    assert said == [5]


async def test_a_manager_that_drains_lets_work_end(tmp_path: Path) -> None:
    gate = Gate()
    settings = Config(drain_timeout=10.0, state_dir=tmp_path)
    async with GrowthManager(small_swarm(gate), settings, publish=False) as manager, connect(manager.url) as grami:
        request = asyncio.create_task(grami.request("slow", text="in time"))
        await gate.until_entered()
        closing = asyncio.create_task(manager.close())
        gate.opened.set()
        assert await request == "in time"
        await closing
