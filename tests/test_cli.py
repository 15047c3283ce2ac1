"""The command line, as real processes: what it prints where, how it ends, and what it leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect as websocket_connect

from grami_actors import ConnectionLost, connect

ROOT = Path(__file__).parents[1]
SMALL = ROOT / "tests" / "scripts" / "small.py"
COMMANDS = (
    *("serve", "run", "send", "describe", "config", "doctor", "profile", "token", "top", "validate"),
    *("jobs", "state"),
)
PATIENCE = 30.0


class Ended(NamedTuple):
    """How a process ended."""

    code: int
    out: str
    err: str

    @property
    def words(self) -> str:
        """What it said to a person, without frames and line breaks."""
        return " ".join(re.sub(r"[─│╭╮╰╯]", " ", self.out + " " + self.err).split())


def environment(**extra: str) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("GRAMI_", "COV_"))}
    return plain | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"} | extra


def start(
    *arguments: str | Path, cwd: Path, env: dict[str, str] | None = None, **options: Any
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "grami_actors", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=cwd, env=environment(**(env or {})), stdin=subprocess.DEVNULL, text=True, **options
    )


def grami(*arguments: str | Path, cwd: Path, env: dict[str, str] | None = None) -> Ended:
    return together(arguments, cwd=cwd, env=env)[0]


def together(*calls: Sequence[str | Path], cwd: Path, env: dict[str, str] | None = None) -> list[Ended]:
    """Run several commands at the same time, which is quicker than one after another."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [start(*arguments, cwd=cwd, env=env, **pipes) for arguments in calls]
    try:
        said = [process.communicate(timeout=PATIENCE) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [Ended(process.returncode, *each) for process, each in zip(processes, said, strict=True)]


class Served:
    """A server that runs as a process of its own."""

    def __init__(self, *arguments: str | Path, cwd: Path, env: dict[str, str] | None = None) -> None:
        self.cwd = cwd
        self.state_file = cwd / ".grami" / "growth-manager.json"
        self._log = cwd / "server.log"
        with self._log.open("w") as log:
            self.process = start("serve", *arguments, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=log)
        assert self.process.stdout is not None
        self.first_line = self.process.stdout.readline()
        self.where: dict[str, Any] = json.loads(self.first_line) if self.first_line else {}

    @property
    def log(self) -> str:
        return self._log.read_text()

    def ask(self, *arguments: str | Path) -> Ended:
        return grami(*arguments, cwd=self.cwd)

    def ask_all(self, *calls: Sequence[str | Path]) -> list[Ended]:
        return together(*calls, cwd=self.cwd)

    def end(self, number: signal.Signals) -> tuple[int, str]:
        """Send a signal; the exit code, and what else it wrote to standard output."""
        self.process.send_signal(number)
        assert self.process.stdout is not None
        rest = self.process.stdout.read()
        return self.process.wait(PATIENCE), rest


@contextmanager
def serving(*arguments: str | Path, cwd: Path, env: dict[str, str] | None = None) -> Iterator[Served]:
    served = Served(*arguments, cwd=cwd, env=env)
    try:
        yield served
    finally:
        served.process.kill()
        served.process.wait()
        assert served.process.stdout is not None
        served.process.stdout.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(SMALL, cwd=tmp_path_factory.mktemp("server")) as served:
        yield served


# --- help ---


@pytest.fixture(scope="module")
def helps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """What every command says about itself; asked for at the same time."""
    cwd = tmp_path_factory.mktemp("help")
    names = ("", *COMMANDS)
    return dict(zip(names, together(*([*name.split(), "--help"] for name in names), cwd=cwd), strict=True))


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_help_is_printed_to_standard_output_and_is_no_error(command: str, helps: dict[str, Ended]) -> None:
    assert helps[command].code == 0
    assert helps[command].err == ""
    assert "Usage:" in helps[command].out


def test_the_help_of_the_program_lists_every_command(helps: dict[str, Ended]) -> None:
    for command in COMMANDS:
        assert re.search(rf"│ {command} +\w+", helps[""].out)


@pytest.mark.parametrize(
    ("command", "lessons"),
    [
        ("serve", ["first line on standard output is JSON", "grami describe", "swarm = Swarm(...)", "Ctrl-C"]),
        ("run", ["exit code is 1 when a check fails", "all if none is named"]),
        ("send", ["grami send content_request platform=instagram", "tool:hashtags", "A value that is JSON"]),
        ("describe", ["message types, agents and tools"]),
    ],
)
def test_the_help_of_a_command_teaches_how_to_use_it(command: str, lessons: list[str], helps: dict[str, Ended]) -> None:
    for lesson in lessons:
        assert lesson in helps[command].words


@pytest.mark.parametrize(
    ("command", "default"),
    [("serve", "127.0.0.1"), ("send", "GRAMI_URL"), ("describe", "state file")],
)
def test_the_help_tells_the_defaults(command: str, default: str, helps: dict[str, Ended]) -> None:
    assert default in helps[command].words


@pytest.mark.parametrize("command", ["run", "send"])
def test_the_help_shows_an_example(command: str, helps: dict[str, Ended]) -> None:
    assert f"grami {command} " in helps[command].words.partition("Usage:")[2].replace(f"grami_actors {command}", "")


def test_version_prints_one_line(tmp_path: Path) -> None:
    ended = grami("--version", cwd=tmp_path)
    assert ended.code == 0
    assert re.fullmatch(r"\d+[.+]\S+\n", ended.out)
    assert ended.err == ""


# --- serve ---


def test_the_first_line_of_serve_says_where_and_the_state_file_says_the_same(server: Served) -> None:
    assert server.where == {
        "event": "listening",
        "url": f"ws://127.0.0.1:{server.where['port']}/ws",
        "port": server.where["port"],
        "pid": server.process.pid,
    }
    state = json.loads(server.state_file.read_text())
    assert state.pop("token"), "who may read the file is the operator"
    assert state == {name: server.where[name] for name in ("url", "port", "pid")}
    assert server.state_file.parent.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_serve_in_order(number: signal.Signals, tmp_path: Path) -> None:
    env = {"GRAMI_DRAIN_TIMEOUT": "0.1"}
    with serving(SMALL, cwd=tmp_path, env=env) as served, websocket_connect(served.where["url"], proxy=None) as client:
        client.send('{"type":"sleep","id":1,"stream":true}')
        assert [json.loads(client.recv())["type"] for _ in "12"] == ["response.started", "response.progress"]
        code, rest = served.end(number)
        assert json.loads(client.recv())["error_code"] == "SHUTTING_DOWN"
        with pytest.raises(ConnectionClosedError) as closed:
            client.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
    assert code == 128 + number
    assert rest == "", "one line and no more"
    assert not served.state_file.exists()
    assert "listening on" in served.log
    assert "connection-1 closed with 1012" in served.log
    assert served.log.rstrip().endswith("stopped")
    assert "Traceback" not in served.log


def test_an_administrator_ends_serve_in_order_and_a_wrong_token_is_told_what_to_do(tmp_path: Path) -> None:
    env = {"GRAMI_AUTH": "keys", "GRAMI_DRAIN_TIMEOUT": "0.1"}
    with serving(SMALL, cwd=tmp_path, env=env) as served:
        wrong = grami("describe", cwd=tmp_path, env={"GRAMI_TOKEN": f"grami_{'0' * 12}_{'x' * 43}"})
        assert (wrong.code, wrong.out) == (1, "")
        assert wrong.words.startswith("error INVALID_TOKEN: ")
        assert "Set GRAMI_TOKEN to a token of this server" in wrong.words
        assert served.ask("send", "admin.drain").out == '{"draining":true}\n'
        assert served.process.wait(PATIENCE) == 0
        assert not served.state_file.exists()
        assert served.log.rstrip().endswith("stopped")


def test_serve_logs_requests_that_are_slower_than_the_setting_says(tmp_path: Path) -> None:
    with serving(SMALL, cwd=tmp_path, env={"GRAMI_SLOW_REQUEST_MS": "1"}) as served:
        assert served.ask("send", "sleep", "--timeout", "0.05").code == 1
        assert re.search(r"slow request: sleep to sleeper from operator took 0\.\d+ s", served.log), served.log


def test_a_second_signal_ends_serve_at_once(tmp_path: Path) -> None:
    with serving(SMALL, cwd=tmp_path) as served, websocket_connect(served.where["url"], proxy=None) as client:
        client.send('{"type":"sleep","id":1,"stream":true}')
        client.recv()
        served.process.send_signal(signal.SIGINT)
        # Its drain waits for the sleeper; until then new requests are refused, which shows that it has begun.
        answer: dict[str, Any] = {}
        while answer.get("error_code") != "SHUTTING_DOWN":
            client.send('{"type":"greet","name":"x"}')
            answer = json.loads(client.recv())
        code, _ = served.end(signal.SIGINT)
    assert code == 130
    assert not served.state_file.exists()


def test_a_killed_server_leaves_a_file_that_is_recognised_as_stale(tmp_path: Path) -> None:
    with serving(SMALL, cwd=tmp_path) as served:
        served.process.kill()
        served.process.wait()
        assert served.state_file.exists()
        ended = served.ask("describe")
        assert ended.code == 1
        assert ended.out == ""
        assert "stale" in ended.err
        assert str(served.process.pid) in ended.err
        assert "grami serve" in ended.err
        assert "Traceback" not in ended.err


async def test_a_client_outlives_the_death_of_its_server(tmp_path: Path) -> None:
    with serving(SMALL, cwd=tmp_path) as first:
        async with connect(first.where["url"]) as client:
            frames = client.stream("sleep")
            assert (await anext(frames)).type == "response.started"
            first.process.kill()
            with pytest.raises(ConnectionLost):
                assert [frame.type async for frame in frames] == ["response.progress"]
            with serving(SMALL, "--port", str(first.where["port"]), cwd=tmp_path) as second:
                assert second.where["port"] == first.where["port"]
                assert (await client.request("greet", name="Ann"))["text"] == "Hello, Ann"


def test_a_second_server_warns_that_it_takes_the_place_of_the_first(server: Served, tmp_path: Path) -> None:
    shutil.copytree(server.state_file.parent, tmp_path / ".grami")
    with serving(SMALL, cwd=tmp_path) as second:
        assert f"process {server.process.pid}" in second.log
        assert second.end(signal.SIGINT)[0] == 130
    # The first still runs: clients find it again.
    assert json.loads(second.state_file.read_text())["pid"] == server.process.pid


def test_the_log_can_be_json_lines(tmp_path: Path) -> None:
    with serving(SMALL, "--log-json", "--log-level", "debug", cwd=tmp_path) as served:
        served.end(signal.SIGINT)
    records = [json.loads(line)["record"] for line in served.log.splitlines()]
    assert {record["level"]["name"] for record in records} >= {"INFO", "DEBUG"}
    assert any("listening on" in record["message"] for record in records)


def test_a_port_in_use_is_named_in_the_error(server: Served, tmp_path: Path) -> None:
    port = server.where["port"]
    ended = grami("serve", SMALL, "--port", str(port), cwd=tmp_path)
    assert ended.code == 1
    assert ended.out == ""
    assert f"cannot listen on 127.0.0.1:{port}" in ended.err
    assert "in use" in ended.err.lower()
    assert "Traceback" not in ended.err
    assert not (tmp_path / ".grami" / "growth-manager.json").exists()


def test_a_server_that_cannot_start_does_not_say_that_clients_will_find_it(server: Served) -> None:
    ended = server.ask("serve", SMALL, "--port", str(server.where["port"]))
    assert (ended.code, ended.out) == (1, "")
    assert "clients will find this one" not in ended.err
    assert server.ask("send", "greet", "name=x").code == 0, "the state file still names the one that runs"


def test_a_state_directory_that_cannot_be_made_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / ".grami").write_text("a file stands where the directory should be")
    ended = grami("serve", SMALL, cwd=tmp_path)
    assert ended.code == 1
    assert ended.out == ""
    assert ".grami" in ended.err
    assert "cannot listen" not in ended.err


def test_a_wrong_setting_is_named(tmp_path: Path) -> None:
    ended = grami("serve", SMALL, cwd=tmp_path, env={"GRAMI_MAX_INFLIHGT": "many"})
    assert (ended.code, ended.out) == (1, "")
    assert "GRAMI_MAX_INFLIHGT is not a setting; did you mean 'max_inflight'" in ended.words
    assert "Traceback" not in ended.err


def test_a_wrong_option_is_a_mistake_in_the_call(tmp_path: Path) -> None:
    level, port = together(("run", SMALL, "--log-level", "LOUD"), ("serve", SMALL, "--port", "70000"), cwd=tmp_path)
    assert (level.code, level.out, port.code, port.out) == (2, "", 2, "")
    assert "'LOUD' is not a log level" in level.words
    assert "WARNING" in level.words
    assert "65535" in port.words


# --- files that cannot be used ---


def test_a_file_that_cannot_be_a_swarm_is_told_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("x = 1\n")
    (tmp_path / "swarm.txt").write_text("x = 1\n")
    (tmp_path / "none.py").write_text("from grami_actors import Swarm\nswarm = Swarm([])\n")
    expected = {
        ("run", "empty.py"): "empty.py defines no `swarm = Swarm(agents=[...], tools=[...])`",
        ("serve", "swarm.txt"): "swarm.txt is not a Python file",
        ("run", "none.py"): "none.py has no scenario: mark an async function with @scenario",
        ("run", SMALL, "pases"): "has no scenario 'pases'; it has passes, fails, raises, never_ends",
    }
    for ended, words in zip(together(*expected, cwd=tmp_path), expected.values(), strict=True):
        assert (ended.code, ended.out) == (1, "")
        assert words in ended.words
        assert "Traceback" not in ended.err


BROKEN = {
    "a syntax error": ("def f(:\n    pass\n", "SyntaxError"),
    "an exception": ('raise ValueError("boom while it was imported")\n', "boom while it was imported"),
    "a reserved name": (
        "from grami_actors import Message\nclass Ping(Message):\n    x: int\n",
        "the message type 'ping' is reserved",
    ),
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """What is said to files that cannot be loaded."""
    cwd = tmp_path_factory.mktemp("broken")
    for number, (text, _) in enumerate(BROKEN.values()):
        (cwd / f"broken{number}.py").write_text(text)
    calls = [(("serve", "run")[number % 2], f"broken{number}.py") for number in range(len(BROKEN))]
    return dict(zip(BROKEN, together(*calls, cwd=cwd), strict=True))


@pytest.mark.parametrize("flaw", BROKEN)
def test_a_file_that_cannot_be_loaded_is_named_with_its_error(flaw: str, broken: dict[str, Ended]) -> None:
    assert (broken[flaw].code, broken[flaw].out) == (1, "")
    assert f"broken{list(BROKEN).index(flaw)}.py" in broken[flaw].err
    assert BROKEN[flaw][1] in broken[flaw].err


@pytest.mark.parametrize("flaw", BROKEN)
def test_a_file_that_cannot_be_loaded_gives_no_wall_of_frames(flaw: str, broken: dict[str, Ended]) -> None:
    assert "typer" not in broken[flaw].err
    assert "importlib" not in broken[flaw].err
    assert len(broken[flaw].err.splitlines()) <= 10


def test_a_file_can_import_its_neighbours_and_have_typed_messages(tmp_path: Path) -> None:
    (tmp_path / "words.py").write_text("GREETING = 'from the neighbour'\n")
    shutil.copy(SMALL, tmp_path / "copy.py")
    with (tmp_path / "copy.py").open("a") as file:
        file.write("\n\n@scenario\nasync def imports(play: Play) -> None:\n    from words import GREETING\n")
        file.write("    play.check(GREETING, GREETING)\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    ended = grami("run", "../copy.py", "imports", cwd=elsewhere)
    assert ended.code == 0, ended.err
    assert "from the neighbour" in ended.out


# --- send ---


def test_send_prints_the_answer_and_nothing_else(server: Served) -> None:
    ended = server.ask("send", "greet", "name=Ann", "mood=glad", "times=2")
    assert ended == (0, '{"text":"Hello, Ann; Hello, Ann"}\n', "")


def test_a_value_is_json_or_else_text(server: Served) -> None:
    quoted, text, number, tool = server.ask_all(
        ("send", "greet", 'name="5"'),
        ("send", "greet", "name=a=b and {c"),
        ("send", "greet", "name=5"),
        ("send", "tool_call", "--to=tool:add", 'arguments={"first": 1, "second": 2}'),
    )
    assert json.loads(quoted.out)["text"] == "Hello, 5"
    assert json.loads(text.out)["text"] == "Hello, a=b and {c"
    assert (number.code, number.out) == (1, "")
    assert "VALIDATION_FAILED" in number.err
    assert "$.name" in number.err
    assert (tool.code, tool.out) == (0, "3\n")


def test_the_server_can_be_given_by_url_and_by_variable(server: Served, tmp_path: Path) -> None:
    found, nowhere = together(
        ("send", "greet", "name=x", "--url", server.where["url"]), ("send", "greet", "name=x"), cwd=tmp_path
    )
    assert found.code == 0
    assert (nowhere.code, nowhere.out) == (1, "")
    assert "no Growth Manager found" in nowhere.words
    assert "Traceback" not in nowhere.err
    assert grami("send", "greet", "name=x", cwd=tmp_path, env={"GRAMI_PORT": str(server.where["port"])}).code == 0


def test_send_to_a_server_that_does_not_answer_says_so(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        ended = grami("send", "greet", "--url", f"ws://127.0.0.1:{port}/ws", cwd=tmp_path)
    assert (ended.code, ended.out) == (1, "")
    assert f"no Growth Manager answers at ws://127.0.0.1:{port}/ws" in ended.words
    assert "Traceback" not in ended.err


@pytest.fixture(scope="module")
def streamed(server: Served) -> list[Ended]:
    """The same streamed request, told to a person and to a machine."""
    request = ("send", "greet", "name=Ann", "--stream")
    return server.ask_all(request, (*request, "--json"))


def test_a_streamed_answer_is_alone_on_standard_output(streamed: list[Ended]) -> None:
    assert (streamed[0].code, streamed[0].out) == (0, '{"text":"Hello, Ann"}\n')
    assert "greeter" in streamed[0].err
    assert "50%  thinking [of] a word" in streamed[0].err
    assert "\x1b" not in streamed[0].err


def test_a_streamed_answer_shows_its_chunks_in_a_pipe_too(streamed: list[Ended]) -> None:
    assert "Hello, Ann" in streamed[0].err


def test_a_streamed_answer_as_json_is_a_frame_a_line_and_nothing_else(streamed: list[Ended]) -> None:
    frames = [json.loads(line) for line in streamed[1].out.splitlines()]
    assert (streamed[1].code, streamed[1].err) == (0, "")
    kinds = [frame["type"] for frame in frames]
    assert kinds == ["response.started", "response.progress", "response.chunk", "response.chunk", "response"]
    assert frames[-1]["data"] == {"text": "Hello, Ann"}


def test_a_frame_is_printed_as_it_came(streamed: list[Ended]) -> None:
    assert set(json.loads(streamed[1].out.splitlines()[0])) == {"type", "id", "seq", "from"}


def test_an_error_of_the_server_is_one_line_on_standard_error(server: Served) -> None:
    extras: list[tuple[str, ...]] = [(), ("--stream",), ("--stream", "--json")]
    for extra, ended in zip(extras, server.ask_all(*(("send", "refuse", *extra) for extra in extras)), strict=True):
        assert ended.code == 1
        assert "UPSTREAM_ERROR" in ended.err
        assert "no [greeting] today" in ended.err, "square brackets are text"
        assert "Traceback" not in ended.err
        assert '"status":"success"' not in ended.out
        if "--stream" not in extra:
            assert ended.out == ""
            assert len(ended.err.splitlines()) == 1


def test_a_deadline_that_passes_is_an_error(server: Served) -> None:
    ended = server.ask("send", "sleep", "--timeout", "0.05")
    assert (ended.code, ended.out) == (1, "")
    assert "DEADLINE_EXCEEDED" in ended.err
    assert "Traceback" not in ended.err


def test_a_wrong_call_of_send_is_explained(server: Served) -> None:
    expected: dict[tuple[str, ...], str] = {
        ("greet", "name"): "'name' is not KEY=VALUE",
        ("greet", "to=x"): "'to' is not a field of a message",
        ("greet", "--timeout", "0"): "--timeout",
        (): "Missing argument 'TYPE'",
    }
    answers = server.ask_all(*(("send", *arguments) for arguments in expected))
    for ended, words in zip(answers, expected.values(), strict=True):
        assert (ended.code, ended.out) == (2, "")
        assert words in ended.words


UNEXPECTED: dict[str, tuple[str, ...]] = {
    "a field named timeout": ("greet", "name=x", "timeout=3"),
    "text that is not UTF-8": ("greet", os.fsdecode(b"name=\xff")),
    "nesting that never ends": ("greet", "name=" + "[" * 5_000, "--timeout", "5"),
}


@pytest.fixture(scope="module")
def unexpected(server: Served) -> dict[str, Ended]:
    answers = server.ask_all(*(("send", *arguments) for arguments in UNEXPECTED.values()))
    return dict(zip(UNEXPECTED, answers, strict=True))


@pytest.mark.parametrize("case", UNEXPECTED)
def test_send_never_shows_a_traceback(case: str, unexpected: dict[str, Ended]) -> None:
    assert unexpected[case].code in {0, 1, 2}
    assert "Traceback" not in unexpected[case].err


def test_a_field_named_timeout_is_sent_or_refused_in_words_for_users(unexpected: dict[str, Ended]) -> None:
    ended = unexpected["a field named timeout"]
    assert ended.code in {0, 2}
    assert "TypeError" not in ended.err


def test_ping_can_be_sent(server: Served) -> None:
    assert server.ask("send", "ping").code == 0


def test_ctrl_c_ends_a_waiting_send(server: Served) -> None:
    process = start(
        "send",
        "sleep",
        "--stream",
        cwd=server.cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stderr is not None
    assert "began" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err


# --- describe ---


@pytest.fixture(scope="module")
def described(server: Served) -> list[Ended]:
    """What describe tells a person, and a machine."""
    return server.ask_all(("describe",), ("describe", "--json"))


def test_describe_shows_types_agents_and_tools(described: list[Ended], server: Served) -> None:
    told = described[0]
    assert (told.code, told.err) == (0, "")
    assert server.where["url"] in told.out
    for words in ("greet", "name: string", "greeter", "Greets people.", "sleeper", "tool:NAME", "add"):
        assert words in told.words
    assert "times: integer = 1" in told.words
    assert "first: integer, second: integer = 1" in told.words
    assert "no_such_module_at_all" in told.words, "why a tool cannot be used"
    assert "not for tables" not in told.out
    assert "\x1b" not in told.out


def test_describe_shows_square_brackets(described: list[Ended]) -> None:
    assert "Add two numbers, as list[int] would not." in described[0].words


def test_describe_shows_the_values_that_a_field_can_have(described: list[Ended]) -> None:
    assert "mood: any" not in described[0].words


def test_describe_shows_defaults_as_they_are_written_in_a_request(described: list[Ended]) -> None:
    assert 'mood: glad | sad = "glad"' in described[0].words
    assert "arguments: object = {}" in described[0].words


def test_describe_with_json_prints_one_document(described: list[Ended]) -> None:
    told = described[1]
    assert (told.code, told.err) == (0, "")
    offered = json.loads(told.out)
    assert set(offered) == {"protocol", "types", "agents", "tools"}
    assert {each["name"]: each["instances"] for each in offered["agents"]} == {"greeter": 2, "sleeper": 1}
    assert next(each for each in offered["tools"] if each["name"] == "absent")["error"]


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory: pytest.TempPathFactory) -> list[Ended]:
    return together(("describe", "--json"), ("serve", "nowhere.py"), cwd=tmp_path_factory.mktemp("mistakes"))


def test_describe_without_a_server_says_what_to_do(mistakes: list[Ended]) -> None:
    assert (mistakes[0].code, mistakes[0].out) == (1, "")
    assert "grami serve" in mistakes[0].words
    assert "Traceback" not in mistakes[0].err


def test_a_file_that_does_not_exist_is_named(mistakes: list[Ended]) -> None:
    assert (mistakes[1].code, mistakes[1].out) == (1, "")
    assert "there is no file nowhere.py" in mistakes[1].words
    assert "Traceback" not in mistakes[1].err


def test_a_mistake_of_the_user_is_not_called_an_internal_error(mistakes: list[Ended]) -> None:
    for ended in mistakes:
        assert "INTERNAL_ERROR" not in ended.err


# --- run ---


class Played(NamedTuple):
    """How the scenarios of the small swarm were played, each in a directory that was empty."""

    passes: Ended
    fails: Ended
    raises: Ended
    left: list[str]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    cwd = tmp_path_factory.mktemp("run")
    calls = (("run", SMALL, "passes"), ("run", SMALL, "passes", "fails"), ("run", SMALL, "raises"))
    ended = together(*calls, cwd=cwd)
    return Played(*ended, [path.name for path in cwd.iterdir()])


def test_a_scenario_that_passes_ends_with_0_and_leaves_nothing(played: Played) -> None:
    assert (played.passes.code, played.passes.err) == (0, "")
    assert "passes: A greeting is polite." in played.passes.out
    assert "✓ it greets by name" in played.passes.out
    assert "1/1" in played.passes.out
    assert "fails" not in played.passes.out
    assert "\x1b" not in played.passes.out
    assert played.left == []


def test_a_failed_check_ends_with_1(played: Played) -> None:
    assert played.fails.code == 1
    assert "✗ it is long: it has 10 letters" in played.fails.out
    assert "0/1" in played.fails.out
    assert "Traceback" not in played.fails.out + played.fails.err


def test_a_scenario_that_raises_ends_with_1_and_the_error(played: Played) -> None:
    assert played.raises.code == 1
    assert "LookupError: nobody is here" in played.raises.words


def test_run_with_json_prints_the_results_and_nothing_else(server: Served) -> None:
    state = server.state_file.read_bytes()
    ended = server.ask("run", SMALL, "passes", "fails", "raises", "--json", "--log-level", "INFO")
    assert ended.code == 1
    results = json.loads(ended.out)
    assert [(each["scenario"], each["passed"]) for each in results] == [
        ("passes", True),
        ("fails", False),
        ("raises", False),
    ]
    assert results[1]["checks"] == [{"text": "it is long", "passed": False, "details": "it has 10 letters"}]
    assert re.fullmatch(r"LookupError: nobody is here \(small\.py:\d+\)", results[2]["error"])
    assert "it greets by name" in ended.err, "the transcript goes to standard error"
    assert "connection-1 opened" in ended.err, "and so does the log"
    assert server.state_file.read_bytes() == state, "the server of this directory is not disturbed"


def test_ctrl_c_during_run_ends_it_in_order_tells_what_there_was_and_leaves_no_process(tmp_path: Path) -> None:
    command = ("run", SMALL, "passes", "never_ends")
    process = start(*command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "sleep" in line:
            break
    process.send_signal(signal.SIGINT)
    summary, err = process.communicate(timeout=5)
    assert process.returncode == 130
    assert err == "stopped in never_ends\n"
    assert re.search(r"✓ +passes +1/1", summary)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    with contextlib.suppress(FileNotFoundError):
        assert list(tmp_path.iterdir()) == []


def test_output_into_a_closed_pipe_is_no_traceback(server: Served) -> None:
    process = start("describe", "--json", cwd=server.cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    process.wait(PATIENCE)
    assert "Traceback" not in err


def test_help_names_the_commands_as_a_newcomer_meets_them_and_its_paragraphs_flow(tmp_path: Path) -> None:
    everything, serve = together(["--help"], ["serve", "--help"], cwd=tmp_path)
    listed = [name for name in re.findall(r"^│ (\w+) ", everything.out, re.MULTILINE) if name in COMMANDS]
    everyday = ["run", "serve", "send", "describe", "doctor", "top", "profile", "validate", "config"]
    assert listed == [*everyday, "jobs", "state", "token"]
    assert all(len(line) > 60 for line in serve.out.splitlines()[5:8]), "lines are as long as the terminal is wide"
