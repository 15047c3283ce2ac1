"""``grami top`` and ``grami profile``: what they print, whatever the server says, and how they end."""

from __future__ import annotations

import asyncio
import fcntl
import io
import json
import os
import pty
import signal
import struct
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner
from websockets.asyncio.server import ServerConnection, serve

from grami_actors import Actor, Agent, Message, Swarm, handles, tool
from grami_actors.cli.app import app
from grami_actors.cli.profile import table
from grami_actors.cli.top import FOLDED, Snapshot, allot, duration, look, screen
from grami_actors.client import connect
from grami_actors.errors import GramiError
from grami_actors.gateway.admin import Admin
from grami_actors.profiling import Report
from grami_actors.system import ActorSystem
from grami_actors.telemetry import DeadLetter, LoopLagged, RequestFinished, SlowTurn
from tests.conftest import running
from tests.test_admin import Desk, connection

ROOT = Path(__file__).parents[1]


# --- a server that has little but admin.* ---


class Greet(Message):
    name: str = "Ann"


@tool(lane="loop")
def add(first: int, second: int = 1) -> int:
    return first + second


class Greeter(Agent, instances=2):
    @handles(Greet)
    async def greet(self, greet: Greet) -> str:
        return f"{greet.name} {await self.call('add', first=1)}"


class Door:
    """A WebSocket before an :class:`Admin`; refuses with a code, if it has one."""

    def __init__(self, system: ActorSystem, refusal: str = "") -> None:
        self.house = Desk(system)
        self.admin = Admin(self.house)
        self.url = ""
        self.profiling = asyncio.Event()
        self._refusal = refusal

    async def talk(self, socket: ServerConnection) -> None:
        async with asyncio.TaskGroup() as group:
            async for text in socket:
                group.create_task(self._answer(socket, json.loads(text)))

    async def _answer(self, socket: ServerConnection, asked: dict[str, Any]) -> None:
        answer = {"type": "response", "id": asked.get("id"), "seq": 1}
        if asked["type"] == "hello":
            answer |= {"type": "welcome", "connection_id": "connection-1", "principal": "ann"}
            await socket.send(msgspec.json.encode(answer), text=True)
            return
        try:
            if self._refusal:
                raise GramiError("no", code=self._refusal)
            if asked["type"] == "admin.profile":
                self.profiling.set()
            answer |= {"status": "success", "data": await self.admin.answer(asked["type"], asked)}
        except GramiError as error:
            answer |= {"status": "error", "error_code": error.error_code, "message": error.message}
        self.profiling.clear()
        await socket.send(msgspec.json.encode(answer), text=True)


@asynccontextmanager
async def door(refusal: str = "") -> AsyncIterator[Door]:
    async with running() as system:
        await Swarm([Greeter], [add]).start(system)
        opened = Door(system, refusal)
        async with serve(opened.talk, "127.0.0.1", 0) as server:
            opened.url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws"
            yield opened


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def environment(**extra: str) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("GRAMI_", "COV_"))}
    return plain | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"} | extra


async def grami(*arguments: str | Path, cwd: Path) -> Ended:
    pipe = asyncio.subprocess.PIPE
    command = [sys.executable, "-m", "grami_actors", *map(str, arguments)]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, env=environment(), stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
    )
    try:
        out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    return Ended(process.returncode or 0, out.decode(), err.decode())


def files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


class Shown:
    """What a program writes to its terminal."""

    def __init__(self, descriptor: int) -> None:
        self.text = b""
        self._descriptor = descriptor
        self._more = asyncio.Event()

    def read(self) -> None:
        self.text += os.read(self._descriptor, 65536)
        self._more.set()

    async def until(self, words: bytes) -> None:
        while words not in self.text:
            self._more.clear()
            await self._more.wait()


# --- the commands ---


@pytest.mark.slow
async def test_top_prints_one_look_for_a_pipe_and_json_for_machines(tmp_path: Path) -> None:
    async with door() as opened:
        opened.house.add(connection(1, principal="ann", inflight=2))
        bus = opened.house.system.bus
        bus.publish(RequestFinished("connection-1", "", "UNKNOWN_TYPE", 0.0))
        bus.publish(RequestFinished("connection-1", "admin.stats", "ok", 0.001))
        bus.publish(RequestFinished("connection-1", "greet", "ok", 0.012))
        bus.publish(SlowTurn("greeter-1", "small.py:9 Greeter.greet", 0.2))
        await opened.house.system.ask("greeter", Greet())
        plain, lines = await asyncio.gather(
            grami("top", "--url", opened.url, "--once", cwd=tmp_path),
            grami("top", "--url", opened.url, "--once", "--json", cwd=tmp_path),
        )
    assert (plain.code, plain.err, lines.code, lines.err) == (0, "", 0, "")
    for words in (opened.url, "greeter-1", "0/1000", "running", "12 ms", "connection-1", "small.py:9 Greeter.greet"):
        assert words in plain.out
    assert "(refused)" in plain.out
    assert "admin.stats" not in plain.out
    assert "\x1b" not in plain.out
    told = msgspec.json.decode(lines.out, type=Snapshot)
    assert {each.name for each in told.actors.actors} == {"router", "tool:add", "greeter-1", "greeter-2"}
    assert (told.stats.tools["add"].calls, told.connections.total) == (1, 1)


@pytest.mark.slow
async def test_profile_prints_a_table_and_writes_a_picture_or_folded_stacks(tmp_path: Path) -> None:
    async with door() as opened:
        system = opened.house.system

        async def busy() -> None:
            while await opened.profiling.wait():
                await system.ask("greeter", Greet())
                await asyncio.sleep(0)

        work = asyncio.create_task(busy())
        profile = ("profile", "--url", opened.url, "--seconds", "0.1")
        picture = await grami(*profile, cwd=tmp_path)
        lines = await grami(*profile, "--json", "--output", "stacks.txt", cwd=tmp_path)
        work.cancel()
    assert (picture.code, lines.code) == (0, 0)
    assert "greeter.greet" in picture.out
    assert "tool:add" in picture.out
    assert picture.err == "wrote profile.svg\n"
    assert "greeter.greet: " in (tmp_path / "profile.svg").read_text()
    report = msgspec.json.decode(lines.out, type=Report)
    assert {each.name for each in report.handlers} == {"greeter.greet", "tool:add"}
    assert (tmp_path / "stacks.txt").read_text().splitlines() == list(report.stacks)
    assert any(line.startswith("greeter.greet;tool:add ") for line in report.stacks)


async def test_whoever_may_not_look_inside_is_told_how_to() -> None:
    async with door("PERMISSION_DENIED") as opened, connect(opened.url) as client:
        with pytest.raises(GramiError, match=r"state directory .* GRAMI_TOKEN .* scope 'admin'") as refused:
            await look(client)
    assert refused.value.error_code == "PERMISSION_DENIED"


async def test_any_other_answer_is_told_as_it_is() -> None:
    async with door("SHUTTING_DOWN") as opened, connect(opened.url) as client:
        with pytest.raises(GramiError, match=r"^no$"):
            await look(client)


@pytest.mark.slow
async def test_a_refusal_ends_the_command_and_leaves_no_file(tmp_path: Path) -> None:
    async with door("PERMISSION_DENIED") as opened:
        ended = await grami("profile", "--url", opened.url, cwd=tmp_path)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("error PERMISSION_DENIED: this server lets only administrators")
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("output", "words"), [("profile.png", ".svg nor .txt"), ("absent/profile.svg", "does not exist")]
)
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_measured(output: str, words: str) -> None:
    ended = CliRunner().invoke(app, ["profile", "--output", output])
    assert ended.exit_code == 2
    assert words in " ".join(ended.output.replace("│", " ").split())


@pytest.mark.slow
async def test_top_follows_the_server_on_the_terminal_until_ctrl_c(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    loop = asyncio.get_running_loop()
    shown = Shown(ours)
    loop.add_reader(ours, shown.read)
    env = environment(TERM="xterm-256color")
    del env["COLUMNS"]
    async with door() as opened:
        command = (sys.executable, "-m", "grami_actors", "top", "--url", opened.url, "--interval", "0.1")
        process = await asyncio.create_subprocess_exec(
            *command, cwd=tmp_path, env=env, stdin=theirs, stdout=theirs, stderr=theirs
        )
        try:
            await shown.until(b"greeter-2")
            opened.house.system.bus.publish(DeadLetter("writer", "", 1, "poison"))
            await shown.until(b"poison")
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 130
            await shown.until(b"\x1b[?1049l")  # the screen from before is there again
        finally:
            if process.returncode is None:
                process.kill()
            loop.remove_reader(ours)
            os.close(ours)
            os.close(theirs)
    assert shown.text.rfind(b"\x1b[?25h") > shown.text.rfind(b"\x1b[?25l"), "so is the cursor"
    assert b"Traceback" not in shown.text


# --- the screen ---


@given(st.lists(st.integers(0, 50), max_size=6), st.integers(-5, 120))
def test_no_table_gets_more_rows_than_it_wants_or_all_together_more_than_there_are(
    wanted: list[int], room: int
) -> None:
    given_rows = allot(wanted, room)
    assert all(0 <= got <= rows for got, rows in zip(given_rows, wanted, strict=True))
    assert sum(given_rows) == min(max(0, room), sum(wanted))


def printed(snapshot: Snapshot, columns: int, lines: int | None) -> list[str]:
    console = Console(file=io.StringIO(), width=columns, height=lines)
    console.print(screen(snapshot, columns, lines))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


class Crowd(Actor):
    def __init__(self, below: int) -> None:
        super().__init__()
        self.below = below

    async def on_start(self) -> None:
        for number in range(self.below):
            await self.spawn(Crowd, 0, name=f"child-{number}")


async def snapshot_of(below: int, connections: int, requests: int, name: str = "a-name", actors: int = 1) -> Snapshot:
    async with running() as system:
        house = Desk(system)
        admin = Admin(house)
        for number in range(actors):
            await system.spawn(Crowd, below, name=f"crowd-{number}")
        house.add(*(connection(number, principal=name, outbox_bytes=10**number) for number in range(connections)))
        for number in range(requests):
            system.bus.publish(RequestFinished("connection-1", f"{name}-{number}", "ok", 10.0**-number))
            system.bus.publish(SlowTurn(name, f"{name}.py:{number}", 0.1))
            system.bus.publish(DeadLetter("", "", 1, name))
        system.bus.publish(LoopLagged(0.2))
        kinds = ("stats", "actors", "connections")
        said = {kind: await admin.answer(f"admin.{kind}", {}) for kind in kinds}
    return msgspec.convert(msgspec.to_builtins({"url": "ws://127.0.0.1:1/ws", **said}), Snapshot)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 9),
    st.integers(0, 20),
    st.integers(0, 12),
    st.text(max_size=90),
    st.sampled_from([(80, 24), (100, 40)]),
)
def test_a_screen_is_never_larger_than_the_terminal_and_has_no_control_characters(
    below: int, connections: int, requests: int, name: str, size: tuple[int, int]
) -> None:
    lines = printed(asyncio.run(snapshot_of(below, connections, requests, name)), *size)
    assert len(lines) <= size[1]
    assert all(each.isprintable() for each in lines)


async def test_a_name_cannot_steer_the_terminal() -> None:
    lines = "\n".join(printed(await snapshot_of(0, 2, 2, "\x1b[2J\x07pwn"), 100, None))
    assert "\x1b" not in lines
    assert "\x07" not in lines
    assert r"\x1b[2J\x07pwn" in lines


async def test_many_children_are_added_up_in_the_line_of_their_root_and_few_are_not() -> None:
    many = "\n".join(printed(await snapshot_of(FOLDED + 1, 0, 0), 100, None))
    assert f"crowd-0 (and {FOLDED + 1} below)" in many
    assert "child" not in many
    assert f"0/{(FOLDED + 2) * 1000}" in many
    few = "\n".join(printed(await snapshot_of(FOLDED, 0, 0), 100, None))
    assert f"crowd-0/child-{FOLDED - 1}" in few


async def test_what_does_not_fit_is_said_to_be_there() -> None:
    lines = printed(await snapshot_of(0, 20, 0, actors=40), 80, 24)
    assert any(each.startswith("actor (+") for each in lines)
    assert any(each.startswith("connection (+") for each in lines)


async def test_a_narrow_screen_leaves_columns_out_and_keeps_names() -> None:
    snapshot = await snapshot_of(0, 3, 0)
    wide, narrow = ("\n".join(printed(snapshot, columns, None)) for columns in (100, 80))
    assert "kind" in wide
    assert "age" in wide
    assert "kind" not in narrow
    assert "age" not in narrow
    assert "connection-2" in narrow


def test_durations_have_their_two_largest_units() -> None:
    seconds = (0, 59, 60, 3_600, 3_661, 90_061, 8_640_000)
    words = ["0s", "59s", "1m 0s", "1h 0m", "1h 1m", "1d 1h", "100d 0h"]
    assert [duration(each * 1000) for each in seconds] == words


def test_a_profile_without_messages_says_so() -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(table(Report(1.0, (), ())))
    assert isinstance(console.file, io.StringIO)
    assert "no message was handled" in console.file.getvalue()
