"""The command line with input that is wrong, hostile or half: what it refuses, and what never reaches a terminal."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import typer
from rich.text import Text

from grami_actors.cli.app import _Safe, kept_clear, print_json
from grami_actors.cli.replay import check_page
from grami_actors.errors import ConfigError
from grami_actors.history import Framed
from grami_actors.recording.account import Account, Frames
from grami_actors.recording.request import encoded
from grami_actors.recording.tape import End, Tape, header
from tests.test_cli import SMALL, grami, start, together

NOISY = '''
import os
from grami_actors import Agent, Message, Swarm, handles
from grami_actors.scenario import Play, scenario

class Say(Message):
    text: str

class Loud(Agent):
    @handles(Say)
    async def say(self, message: Say) -> str:
        print("noise of an agent")
        return message.text

swarm = Swarm([Loud])

@scenario
async def noisy(play: Play) -> None:
    """A \\x1b[31mred\\x9b32m title."""
    print("noise of a scenario")
    os.write(1, b"noise below Python\\n")
    ann = await play.client("ann\\x1b[35m")
    play.check("it \\x1b]0;owned\\x07 answers", await ann.request(Say(text="\\x1b[31mred\\x9b32m")) == "", "\\ud800")
'''


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("noisy") / "noisy.py"
    path.write_text(NOISY)
    return path


FAILING = """
from grami_actors import Agent, Message, Swarm, handles
from grami_actors.model import Model
from grami_actors.scenario import Play, scenario

class Ask(Message):
    pass

class Leave(Message):
    pass

class Breaks(Model):
    name = "breaks"

    async def stream(self, prompt):
        yield "one"
        raise RuntimeError("it broke")

class Writer(Agent):
    @handles(Ask)
    async def ask(self, message: Ask) -> object:
        return await self.generate("hello")

    @handles(Leave)
    async def leave(self, message: Leave) -> None:
        raise SystemExit(5)

swarm = Swarm([Writer], model=Breaks())

@scenario
async def fails(play: Play) -> None:
    ann = await play.client("ann")
    for message in (Ask(), Leave()):
        try:
            await ann.request(message)
        except Exception:
            pass

@scenario
async def exits(play: Play) -> None:
    raise SystemExit(0)
"""


# --- options that contradict each other ---


def test_options_that_would_be_ignored_are_refused(tmp_path: Path) -> None:
    simulate = ("run", SMALL, "passes", "--simulate")
    calls = (
        (*simulate, "--record", "run.jsonl"),
        (*simulate, "--seed", "1", "--seeds", "2"),
        (*simulate, "--seed", "1", "--jobs", "2"),
        ("run", SMALL, "passes", "--html", "run.jsonl", "--record", "run.jsonl"),
    )
    said = ("leave out --simulate", "leave out --seeds and --jobs", "leave out --seeds and --jobs", "would overwrite")
    for ended, text in zip(together(*calls, cwd=tmp_path), said, strict=True):
        assert (ended.code, ended.out) == (2, "")
        assert text in ended.words
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_cannot_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    recording = tmp_path / "run.jsonl"
    recording.touch()
    with pytest.raises(typer.BadParameter, match="would overwrite"):
        check_page(tmp_path / "other" / ".." / "run.jsonl", recording)
    with pytest.raises(ConfigError, match="there is no folder"):
        check_page(tmp_path / "other" / "page.html", None)
    with pytest.raises(ConfigError, match="it is a folder"):
        check_page(tmp_path)
    check_page(tmp_path / "page.html", recording)
    check_page(recording)
    check_page(None, recording)
    assert recording.read_bytes() == b""


# --- standard output ---


def test_with_json_nothing_else_is_on_standard_output(noisy: Path) -> None:
    simulate = ("run", noisy, "--json", "--simulate")
    calls = (("run", noisy, "--json"), (*simulate, "--seeds", "2", "--jobs", "1"), (*simulate, "--seed", "1"))
    for ended in together(*calls, cwd=noisy.parent):
        assert ended.code == 1
        (line,) = ended.out.splitlines()
        assert "?" in json.dumps(json.loads(line)), "half a character has no bytes in UTF-8"
        for noise in ("noise of an agent", "noise of a scenario", "noise below Python"):
            assert noise in ended.err
        assert not set("\x1b\x9b\x07") & set(ended.err)


def test_a_transcript_steers_no_terminal(noisy: Path) -> None:
    live, simulated = together(("run", noisy), ("run", noisy, "--simulate", "--seed", "1"), cwd=noisy.parent)
    for ended in (live, simulated):
        assert not set("\x1b\x9b\x07") & set(ended.out + ended.err)
        assert "ann␛[35m" in ended.out
        assert "answers" in ended.out


def test_a_console_keeps_its_own_colours_and_nobody_elses() -> None:
    file = io.StringIO()
    console = _Safe(file=file, force_terminal=True, color_system="standard", width=80)
    console.print(Text("a\x1b[2Jb\u202ec\ud800d", "red"), Text("ok"))
    assert file.getvalue().count("\x1b") == 2
    assert "a␛[2Jb�c�" in file.getvalue()


def test_half_a_character_is_no_end_of_a_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"text": "half \ud800"})
    assert json.loads(capsys.readouterr().out) == {"text": "half ?"}


def test_standard_output_is_given_back_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with kept_clear(wanted=True):
            sys.stdout.write("noise\n")
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    sys.stdout.write("mine\n")
    assert capfd.readouterr() == ("mine\n", "noise\n")


# --- recordings ---


def test_a_recording_that_lost_lines_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(
        b"\n".join(map(encoded, (header(SMALL), Framed(at=0.1, connection="connection-1", way="open"), End(2)))) + b"\n"
    )
    with pytest.raises(ConfigError, match="line 3: the end of 2 entries, but there are 1: lines were lost or added"):
        list(Tape(path))


def test_a_file_without_an_end_is_no_recording() -> None:
    with pytest.raises(ConfigError, match="is no recording"):
        Tape(Path("/dev/zero"))


def test_a_client_that_was_gone_at_the_end_is_told_nothing() -> None:
    account = Account([Framed(at=1.0, connection="connection-1", way="in", frame={"type": "cancel"})])
    gone = {"id": "1", "status": "error", "error_code": "CANCELLED", "type": "response"}
    assert Frames(account).came("connection-1", gone, 1.0) is None
    assert Frames(account).came("connection-1", gone, 0.5) is not None
    assert Frames(account).came("connection-1", {**gone, "error_code": "AGENT_CRASHED"}, 1.0) is not None


@pytest.mark.slow
def test_a_recording_that_ctrl_c_ended_is_played_without_a_difference(tmp_path: Path) -> None:
    call = ("run", SMALL, "never_ends", "--record", "run.jsonl")
    process = start(*call, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "sleep" in line:
            break
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 130
    ended = grami("replay", "run.jsonl", "--json", cwd=tmp_path)
    assert (ended.code, ended.err) == (0, ""), ended
    assert msgspec.json.decode(ended.out)["same"]


# --- what fails ---


def test_a_failing_model_and_an_agent_that_exits_are_played_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "failing.py"
    path.write_text(FAILING)
    ran = grami("run", path, "fails", "--record", "run.jsonl", cwd=tmp_path)
    assert "it broke" in ran.out
    ended = grami("replay", "run.jsonl", cwd=tmp_path)
    assert ended.code == 0, ended.out


def test_a_scenario_that_exits_has_failed(tmp_path: Path) -> None:
    path = tmp_path / "failing.py"
    path.write_text(FAILING)
    for more in ((), ("--simulate", "--seed", "1")):
        ended = grami("run", path, "exits", "--json", *more, cwd=tmp_path)
        assert ended.code == 1
        assert "SystemExit: 0 (failing.py:" in ended.out
