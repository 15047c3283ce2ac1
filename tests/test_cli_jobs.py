"""``grami jobs``: what it prints where, what it ends with, and that whatever a job says, it only says."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import struct
import sys
import tempfile
import termios
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from typer.testing import CliRunner

from grami_actors import Swarm, tool
from grami_actors.cli.app import app
from grami_actors.cli.job_output import last_lines
from grami_actors.cli.job_screen import print_jobs
from grami_actors.cli.jobs import beyond
from grami_actors.client import Client, connect
from grami_actors.job import new_id
from grami_actors.job_client import RemoteJob
from grami_actors.job_context import JobContext
from grami_actors.jobs.commands import command
from tests.conftest import free_port, serving

ROOT = Path(__file__).parents[1]
ODD = "no space [left] on \x1b[2Jthe device"
OPEN: dict[str, asyncio.Event] = {}
"""What jobs wait for, by name."""


@tool(job=True, concurrency=100)
async def play(steps: list[list[Any]], ctx: JobContext) -> Any:
    """Does what it is told to, step by step."""
    for what, *how in steps:
        if what == "return":
            return how[0]
        if what == "fail":
            raise ValueError(ODD)
        if what == "wait":
            await OPEN.setdefault(how[0], asyncio.Event()).wait()
        elif what == "ask_input":
            await ctx.ask_input(how[0])
        else:
            getattr(ctx, what)(*how)
    return None


@tool(job=True)
async def echo(arguments: dict[str, Any]) -> Any:
    return arguments


SHELL = command("shell", ["sh", "-c", "{text}"], parameters={"text": str})


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: bytes
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)

    @property
    def words(self) -> str:
        return " ".join(self.out.decode().split())


def environment(**extra: str) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("GRAMI_", "COV_"))}
    return plain | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"} | extra


TOGETHER = """
import json, os, sys
from grami_actors.cli import main
folder, calls = sys.argv[1:]
children = []
for number, arguments in enumerate(json.loads(calls)):
    children.append(os.fork())
    if not children[-1]:
        for descriptor in (1, 2):
            os.dup2(os.open(f"{folder}/{number}.{descriptor}", os.O_WRONLY | os.O_CREAT, 0o600), descriptor)
        sys.argv = ["grami", "jobs", *arguments]
        main()
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""
"""Runs commands as a process each, of which only the first has to import anything."""


def read(folder: Path, number: int) -> tuple[bytes, str]:
    """What one of them wrote."""
    return (folder / f"{number}.1").read_bytes(), (folder / f"{number}.2").read_text()


def files(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir()}


class Shell:
    """Runs ``grami jobs`` beside a server."""

    def __init__(self, grami: Client, url: str, cwd: Path) -> None:
        self.grami = grami
        self.cwd = cwd
        self._environment = environment(GRAMI_URL=url)

    async def add(self, *steps: list[Any]) -> RemoteJob:
        """A job that does these steps."""
        return await self.grami.jobs.submit("play", {"steps": steps})

    async def over(self, *steps: list[Any]) -> RemoteJob:
        """A job that did them."""
        return await self.until(await self.add(*steps), "SUCCEEDED", "FAILED")

    async def until(self, job: RemoteJob, *states: str) -> RemoteJob:
        """Wait until it is in one of these states."""
        async with contextlib.aclosing(job.events()) as events:
            async for event in events:
                if event.data.get("state") in states:
                    break
        await job.refresh()
        return job

    async def start(self, *arguments: str, **options: Any) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        options = {"stdin": asyncio.subprocess.DEVNULL, "stdout": pipe, "stderr": pipe} | options
        command = (sys.executable, "-m", "grami_actors", "jobs", *arguments)
        return await asyncio.create_subprocess_exec(*command, cwd=self.cwd, env=self._environment, **options)

    async def __call__(self, *arguments: str) -> Ended:
        return (await self.all(arguments))[0]

    async def all(self, *calls: tuple[str, ...]) -> list[Ended]:
        """Several at the same time."""
        with tempfile.TemporaryDirectory() as folder:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", TOGETHER, folder, json.dumps(calls)),
                cwd=self.cwd,
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
            )
            try:
                codes = json.loads((await process.communicate())[0])
            finally:
                if process.returncode is None:
                    process.kill()
            return [Ended(code, *read(Path(folder), number)) for number, code in enumerate(codes)]


@asynccontextmanager
async def shell(cwd: Path) -> AsyncIterator[Shell]:
    OPEN.clear()
    async with serving(Swarm([], [play, echo, SHELL])) as manager, connect(manager.url) as grami:
        yield Shell(grami, manager.url, cwd)


class Screen:
    """A terminal that a command is started in, and the keyboard in front of it."""

    def __init__(self, columns: int) -> None:
        self.ours, self.theirs = pty.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.shown = b""
        self._more = asyncio.Event()

    def _read(self) -> None:
        self.shown += os.read(self.ours, 65_536)
        self._more.set()

    async def until(self, words: bytes) -> None:
        while words not in self.shown:
            self._more.clear()
            await self._more.wait()

    def type(self, text: bytes) -> None:
        os.write(self.ours, text)

    @contextmanager
    def __call__(self) -> Iterator[dict[str, int]]:
        loop = asyncio.get_running_loop()
        loop.add_reader(self.ours, self._read)
        try:
            yield {"stdin": self.theirs, "stdout": self.theirs, "stderr": self.theirs}
        finally:
            loop.remove_reader(self.ours)
            os.close(self.ours)
            os.close(self.theirs)


@asynccontextmanager
async def on_screen(run: Shell, *arguments: str) -> AsyncIterator[tuple[Screen, asyncio.subprocess.Process]]:
    """A command at a terminal; it leads its session, so that Ctrl-C reaches it."""
    screen = Screen(80)
    run._environment = {**run._environment, "TERM": "xterm-256color"}
    run._environment.pop("COLUMNS", None)
    with screen() as ends:
        process = await run.start(
            *arguments, start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0), **ends
        )
        try:
            yield screen, process
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


# --- new jobs ---


@pytest.mark.slow
async def test_submit_prints_the_id_alone_and_hands_over_all_that_was_said(tmp_path: Path) -> None:
    (tmp_path / "more.json").write_text('{"arguments": {"trees": [1, 2]}}')
    async with shell(tmp_path) as run:
        before = time.time()
        plain, full, waited, unknown, wrong = await run.all(
            ("submit", "play", "steps=[]"),
            (
                *("submit", "echo", "--arguments", "@more.json", "--key", "k1"),
                *("--priority", "-3", "--at", "+2h", "--deadline", "3h", "--concurrency-key", "gpu", "--json"),
            ),
            ("submit", "echo", 'arguments={"film": "a.mp4"}', "--wait"),
            ("submit", "absent"),
            ("submit", "echo", "arguments=3"),
        )
        await run.grami.jobs.get(plain.out.decode().strip())
    assert (plain.code, plain.err, full.code, full.err) == (0, "", 0, "")
    view = full.data
    assert (view["tool"], view["arguments"]) == ("echo", {"arguments": {"trees": [1, 2]}})
    assert (view["state"], view["priority"]) == ("QUEUED", -3)
    due = datetime.fromisoformat(view["due_at"]).timestamp()
    assert 7_200 <= due - before < 7_230
    assert (waited.code, waited.data) == (0, {"film": "a.mp4"})
    assert " is SUCCEEDED" in waited.err
    assert (unknown.code, unknown.err[:27]) == (1, "error DESTINATION_NOT_FOUND")
    assert (wrong.code, wrong.err[:23]) == (1, "error VALIDATION_FAILED")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("frames",), "'frames' is not KEY=VALUE"),
        (("--arguments", "[1]"), "it is not a JSON object"),
        (("--arguments", "{"), "it is not a JSON object"),
        (("--arguments", "@absent.json"), "absent.json cannot be read: No such file or directory"),
        (("--at", "tomorrow"), "'tomorrow' is not a time such as 2026-12-24T18:00"),
        (("--at", "+soon"), "'soon' is not a time such as 90"),
        (("--deadline", "0"), "'0' is not a time such as 90"),
        (("--deadline", "-5"), "'-5' is not a time such as 90"),
        (("--priority", "1001"), "1001 is not in the range"),
    ],
)
def test_what_no_job_can_have_is_refused_before_anybody_is_asked(arguments: tuple[str, ...], words: str) -> None:
    ended = CliRunner().invoke(app, ["jobs", "submit", "render", *arguments])
    assert ended.exit_code == 2
    assert words in " ".join(ended.output.replace("│", " ").split())


# --- jobs that there are ---


@pytest.mark.slow
async def test_list_shows_the_latest_first_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    async with shell(tmp_path) as run:
        first = await run.over(["return", 1])
        second = await run.until(await run.add(["progress", 0.25, ""], ["wait", "x"]), "RUNNING")
        third = await run.over(["fail"])
        table, some, running, none = await run.all(
            ("list",),
            ("list", "--limit", "2", "--json"),
            ("list", "--state", "running", "--state", "QUEUED", "--tool", "play", "--json"),
            ("list", "--tool", "absent"),
        )
    lines = [line.split() for line in table.out.decode().splitlines()]
    assert lines[0] == ["id", "tool", "state", "done", "age", "took"]
    assert [line[:3] for line in lines[1:]] == [
        [third.id, "play", "FAILED"], [second.id, "play", "RUNNING"], [first.id, "play", "SUCCEEDED"],
    ]  # fmt: skip
    assert ([each["job_id"] for each in some.data["jobs"]], some.data["more"]) == ([third.id, second.id], True)
    assert [each["job_id"] for each in running.data["jobs"]] == [second.id]
    assert (none.code, none.out) == (0, b"")
    assert "grami jobs submit TOOL" in none.err


@pytest.mark.slow
async def test_list_has_all_of_many_pages_once(tmp_path: Path) -> None:
    async with shell(tmp_path) as run:
        jobs = [(await run.add()).id for _ in range(250)]
        every, some = await run.all(("list", "--all", "--json"), ("list", "--limit", "200", "--json"))
    assert [each["job_id"] for each in every.data["jobs"]] == jobs[::-1]
    assert [each["job_id"] for each in some.data["jobs"]] == jobs[:49:-1]


@given(st.floats(0, 1e10), st.randoms(use_true_random=False), st.integers(4, 30))
@example(0.0, None, 29)
def test_no_id_is_as_great_as_what_stands_for_the_greatest_that_begins_so(at, dice, length) -> None:
    found = new_id(at, dice) if dice else "job_" + "z" * 26
    assert found < beyond(found[:length])


def test_a_pipe_gets_a_line_for_each_job_with_its_whole_id(capsys: pytest.CaptureFixture[str]) -> None:
    job, tool = f"job_{'x' * 26}", "render" * 30
    print_jobs([{"job_id": job, "tool": tool, "state": "QUEUED", "created_at": "2026-11-23T14:00:00Z"}] * 2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [[job, tool, "QUEUED"]] * 2


@pytest.mark.slow
async def test_show_tells_all_and_what_to_do(tmp_path: Path) -> None:
    async with shell(tmp_path) as run:
        failed = (await run.over(["artifact", "film [1].mp4", "x" * 2048], ["fail"])).id
        asks = (await run.until(await run.add(["ask_input", "Which [one]?"]), "INPUT_REQUIRED")).id
        told, data, asked, shortened, nothing = await run.all(
            *(("show", failed), ("show", failed, "--json"), ("show", asks)),
            *(("show", asks[4:-1], "--json"), ("show", "job_zz")),
        )
    for words in ("film [1].mp4 (2 KiB)", f"grami jobs logs {failed}", "no space [left] on \u241b[2Jthe device"):
        assert words in told.words
    assert data.data["error"]["error_code"] == "TOOL_EXECUTION_FAILED"
    assert "Which [one]?" in asked.words
    assert f"grami jobs input {asks} ANSWER" in asked.words
    assert shortened.data["job_id"] == asks
    assert nothing.code == 1
    assert nothing.err.startswith("error JOB_NOT_FOUND: there is no job that begins with 'job_zz'")


@pytest.mark.slow
async def test_cancel_retry_and_input_say_where_the_job_is_then(tmp_path: Path) -> None:
    async with shell(tmp_path) as run:
        waits = (await run.until(await run.add(["wait", "x"]), "RUNNING")).id
        done = (await run.over(["return", 1])).id
        asks = [await run.until(await run.add(["ask_input", n], ["wait", "y"]), "INPUT_REQUIRED") for n in (1, 2)]
        ended, late, again, text, number, refused = await run.all(
            *(("cancel", waits, "--wait", "--force", "--json"), ("cancel", done), ("retry", done)),
            *(("input", asks[0].id, "quite [a] few"), ("input", asks[1].id, '{"n": 3}', "--json")),
            ("input", done, "x"),
        )
        await run.grami.jobs.get(again.out.decode().strip())
    assert (ended.code, ended.data["state"]) == (0, "CANCELLED")
    assert (late.code, late.err[:24]) == (1, "error JOB_NOT_CANCELABLE")
    assert late.err.endswith(f"\nHow it ended: grami jobs show {done}\n")
    assert (text.code, text.err) == (0, f"{asks[0].id} is RUNNING\n")
    assert number.data["state"] == "RUNNING"
    assert (refused.code, refused.err[:28]) == (1, "error JOB_NOT_AWAITING_INPUT")


# --- attach ---


@pytest.mark.slow
async def test_attach_ends_as_the_job_does_and_tells_a_pipe_what_happened(tmp_path: Path) -> None:
    async with shell(tmp_path) as run:
        good = await run.over(["progress", 0.5, "frame [1]"], ["artifact", "a.png", "x" * 10], ["return", "done"])
        bad = await run.over(["fail"])
        gone = await run.until(await run.add(["wait", "x"]), "RUNNING")
        await gone.cancel(force=True)
        await run.until(gone, "CANCELLED")
        won, lost, cancelled, lines = await run.all(
            *(("attach", job.id) for job in (good, bad, gone)), ("attach", gone.id, "--json", "--after", "1")
        )
    assert (won.code, lost.code, cancelled.code, lines.code) == (0, 1, 3, 3)
    assert (won.out, lost.out, cancelled.out) == (b'"done"\n', b"", b"")
    said = [line.partition("  ")[2] if line[2:3] == ":" else line for line in won.err.splitlines()]
    assert said[:3] == ["QUEUED", "STARTING attempt 1", "RUNNING"]
    assert {" 50%  frame [1]", "artifact a.png (10 B)"} <= set(said)
    assert "no space [left] on \u241b[2Jthe device" in lost.err
    told = [json.loads(line) for line in lines.out.splitlines()]
    assert [each["seq"] for each in told[:-1]] == list(range(2, told[-1]["seq"] + 1))
    assert (told[-1]["job_id"], told[-1]["state"]) == (gone.id, "CANCELLED")


@pytest.mark.slow
async def test_attach_asks_at_the_terminal_shows_a_bar_and_leaves_the_screen_in_order(tmp_path: Path) -> None:
    async with shell(tmp_path) as run:
        job = await run.add(
            ["wait", "a"], ["progress", 0.4, "the\nframe [4]"], ["wait", "b"], ["ask_input", "Delete [all]\x1b[2J?"],
            ["wait", "c"], ["return", 7],
        )  # fmt: skip
        async with on_screen(run, "attach", job.id) as (screen, process):
            await screen.until(b"RUNNING")
            OPEN["a"].set()
            await screen.until(b"the frame [4]")
            OPEN["b"].set()
            await screen.until(b"answer: ")
            screen.type(b'\n{"yes": true}\n')
            await screen.until(b"answered by")
            OPEN["c"].set()
            assert await process.wait() == 0
            await screen.until(b"SUCCEEDED")
    assert b"40%" in screen.shown
    assert "Delete [all]\u241b[2J?".encode() in screen.shown
    assert b"\x1b[2J" not in screen.shown
    assert screen.shown.rfind(b"\x1b[?25h") > screen.shown.rfind(b"\x1b[?25l"), "the cursor is there again"


@pytest.mark.slow
async def test_a_question_that_somebody_else_answers_is_asked_no_more(tmp_path: Path) -> None:
    async with shell(tmp_path) as run:
        job = await run.add(["ask_input", "Which?"], ["wait", "x"])
        async with on_screen(run, "attach", job.id) as (screen, process):
            await screen.until(b"answer: ")
            await job.answer("that")
            await screen.until(b"answered by")
            assert b"answered by" not in screen.shown.rpartition(b"answer: ")[2].partition(b"\n")[0]
            await job.cancel(force=True)
            assert await process.wait() == 3


@pytest.mark.slow
async def test_ctrl_c_leaves_and_says_how_to_come_back_and_the_job_goes_on(tmp_path: Path) -> None:
    async with shell(tmp_path) as run:
        job = await run.add(["wait", "x"])
        async with on_screen(run, "attach", job.id) as (screen, process):
            await screen.until(b"attempt 1")
            screen.type(b"\x03")
            assert await process.wait() == 130
            await screen.until(b"grami jobs cancel")
        assert (await job.refresh()).state == "RUNNING"
    assert f"grami jobs attach {job.id}".encode() in screen.shown


# --- output ---


@pytest.mark.slow
async def test_logs_are_the_bytes_as_they_are_and_end_with_the_job(tmp_path: Path) -> None:
    data = b"one\r\n\xff\xfe\x1b[2Jtwo\nthree\nno end"
    (tmp_path / "data").write_bytes(data)
    async with shell(tmp_path) as run:
        job = await run.grami.jobs.submit("shell", {"text": f"cat {tmp_path}/data"})
        await run.until(job, "SUCCEEDED")
        whole, followed, tail, lines = await run.all(
            *(("logs", job.id), ("logs", job.id, "-f"), ("logs", job.id, "--tail", "2")),
            ("logs", job.id, "--tail", "1", "--json"),
        )
        async with on_screen(run, "logs", job.id) as (screen, process):
            assert await process.wait() == 0
            await screen.until(b"no end")
    assert (whole.code, whole.out, whole.err) == (0, data, "")
    assert followed.out == data
    assert tail.out == b"three\nno end"
    assert lines.data == {"offset": len(data) - 6, "bytes": 6, "text": "no end"}
    assert "\u241b[2Jtwo".encode() in screen.shown


@given(st.binary(max_size=40).map(lambda data: data.replace(b"a", b"\n")), st.integers(0, 12))
def test_the_last_lines_are_those_of_tail(data: bytes, count: int) -> None:
    lines = data.split(b"\n")
    ends = [line + b"\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
    expected = b"".join(ends[-count:]) if count else b""
    got = last_lines(data, count)
    assert (data if got is None else got) == expected
    assert (got is None) == (len(ends) <= count and count > 0)


@pytest.mark.slow
async def test_artifacts_are_listed_fetched_whole_and_never_overwrite_unasked(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"old")
    name = "film [1].mp4"
    async with shell(tmp_path) as run:
        job, bare = (await run.over(["artifact", name, "x" * 768])).id, (await run.over()).id
        listed, as_json, none, named, kept, forced, printed, absent = await run.all(
            *(("artifact", job), ("artifact", job, "--json"), ("artifact", bare), ("artifact", job, name)),
            *(("artifact", job, name, "-o", "there"), ("artifact", job, name, "-o", "other", "--force", "--json")),
            *(("artifact", job, name, "-o", "-"), ("artifact", job, "film")),
        )
    assert "film [1].mp4 768 B" in listed.words
    assert as_json.data == {"job_id": job, "artifacts": {name: 768}}
    assert (none.code, none.err) == (0, f"{bare} made no files\n")
    assert (named.code, named.err) == (0, "wrote film [1].mp4 (768 B)\n")
    assert ((tmp_path / name).read_bytes(), printed.out) == (b"x" * 768, b"x" * 768)
    assert (kept.code, (tmp_path / "there").read_bytes()) == (1, b"old")
    assert "there is there already: give --force" in kept.err
    assert forced.data == {"job_id": job, "name": name, "file": "other", "bytes": 768}
    assert (absent.code, "it has film [1].mp4" in " ".join(absent.err.replace("│", " ").split())) == (2, True)
    assert files(tmp_path) == {name, "there", "other"}


# --- a server that is killed ---

SERVED = """
from grami_actors import Swarm
from grami_actors.jobs.commands import command

swarm = Swarm([], [command("shell", ["sh", "-c", "{text}"], parameters={"text": str})])
"""


async def served(folder: Path, port: int) -> tuple[asyncio.subprocess.Process, str]:
    """A server in a process of its own that listens, and its URL."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "grami_actors", "serve", "swarm.py", "--port", str(port), "--state-dir", "state"),
        cwd=folder,
        env=environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    return process, json.loads(await process.stdout.readline())["url"]


@pytest.mark.slow
async def test_who_follows_a_job_goes_on_when_the_server_is_killed_and_started_again(tmp_path: Path) -> None:
    (tmp_path / "swarm.py").write_text(SERVED)
    port = free_port()
    server, url = await served(tmp_path, port)
    try:
        async with asyncio.timeout(40):
            async with connect(url) as grami:
                run = Shell(grami, url, tmp_path)
                text = f"echo one; until test -e {tmp_path}/go; do sleep 0.02; done; echo two"
                job = await grami.jobs.submit("shell", {"text": text})
            attached, logs = await run.start("attach", job.id), await run.start("logs", job.id, "-f")
            assert logs.stdout is not None
            assert attached.stderr is not None
            assert await logs.stdout.readline() == b"one\n"
            while b"RUNNING" not in await attached.stderr.readline():
                pass
            server.kill()
            await server.wait()
            server, _ = await served(tmp_path, port)
            (tmp_path / "go").touch()
            (result, _), (rest, _) = await asyncio.gather(attached.communicate(), logs.communicate())
    finally:
        server.kill()
        await server.wait()
    assert (attached.returncode, logs.returncode) == (0, 0)
    assert json.loads(result) == {"exit_code": 0, "output": "one\ntwo\n"}
    assert rest == b"two\n"


# --- help ---


@pytest.mark.parametrize(
    "command", ["submit", "list", "show", "attach", "logs", "artifact", "input", "cancel", "retry"]
)
def test_each_command_has_an_example(command: str) -> None:
    ended = CliRunner().invoke(app, ["jobs", command, "--help"])
    assert ended.exit_code == 0
    assert f"For example: grami jobs {command} " in " ".join(ended.output.split())


def test_the_group_alone_teaches_with_an_example() -> None:
    ended = CliRunner().invoke(app, ["jobs"], env={"COLUMNS": "80"})
    assert "grami jobs submit render frames=250   run a tool; prints the job's id" in ended.output
    assert "grami jobs attach job_01k9            follow it; Ctrl-C leaves it running" in ended.output
