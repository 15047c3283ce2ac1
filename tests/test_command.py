"""Command lines as tools: what becomes of their places, what is refused, and what a called one leaves behind."""

from __future__ import annotations

import os
import signal
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grami_actors import Agent, Message, Swarm, handles
from grami_actors.errors import ErrorCode, ProtocolError, ToolExecutionFailed, ToolTimeout
from grami_actors.jobs.commands import MOST_OUTPUT, Command, command
from tests.conftest import serving


class Colour(Enum):
    RED = "-red"


def line(argv: list[str], arguments: dict[str, Any], **options: Any) -> list[str]:
    return command("c", argv, **options).fill(arguments)


def refused(argv: list[str], arguments: dict[str, Any], **options: Any) -> ProtocolError:
    with pytest.raises(ProtocolError) as error:
        line(argv, arguments, **options)
    assert error.value.error_code == ErrorCode.VALIDATION_FAILED
    return error.value


# --- places ---


@pytest.mark.parametrize(
    ("element", "arguments", "becomes"),
    [
        ("{a}", {"a": "x y; $(z) *"}, ["x y; $(z) *"]),
        ("--a={a}", {"a": "-x"}, ["--a=-x"]),
        ("{a}x{b}", {"a": 3, "b": 0.5}, ["3x0.5"]),
        ("{{{a}}}", {"a": True}, ["{true}"]),
        ("{{a}}{a}", {"a": ""}, ["{a}"]),
        ("{a}", {"a": ""}, [""]),
        ("{a}", {"a": None}, []),
        ("--a={a}", {"a": None}, []),
        ("{a}", {"a": []}, []),
        ("{a}", {"a": ["x", "", "y z"]}, ["x", "", "y z"]),
        ("{a}", {"a": ["{b}", "%s"]}, ["{b}", "%s"]),
    ],
)
def test_a_place_becomes_what_stands_for_it(element: str, arguments: dict[str, Any], becomes: list[str]) -> None:
    alone = element == "{a}"
    types: dict[str, Any] = {"str": str, "int": int, "float": float, "bool": bool, "NoneType": str | None}
    kinds = {key: list[str] if alone and isinstance(each, list) else types[type(each).__name__]
             for key, each in arguments.items()}  # fmt: skip
    assert line(["p", element, "end"], arguments, parameters=kinds) == ["p", *becomes, "end"]


@given(st.text().filter(lambda text: "\0" not in text), st.lists(st.text().filter(lambda text: "\0" not in text)))
def test_what_is_given_is_always_whole_arguments_and_nothing_else(text: str, many: list[str]) -> None:
    found = line(["p", "a{text}b", "{many}"], {"text": text, "many": many}, dashes=("many",),
                 parameters={"text": str, "many": list[str]})  # fmt: skip
    assert found == ["p", f"a{text}b", *many]


def test_a_default_stands_for_what_is_not_given_and_the_schema_says_so() -> None:
    scale = command(
        "scale",
        ["ffmpeg", "-vf", "scale={width}", "{more}"],
        description="Makes it another size.",
        parameters={"width": (Annotated[int, msgspec.Meta(ge=16)], 640), "more": (str | None, None)},
    )
    assert scale.fill({}) == ["ffmpeg", "-vf", "scale=640"]
    assert scale.fill({"width": 20, "more": "x"}) == ["ffmpeg", "-vf", "scale=20", "x"]
    told = scale.describe()
    assert told.description == "Makes it another size."
    assert b'"default":640' in msgspec.json.encode(told)
    for wrong in ({"width": 3}, {"width": "wide"}, {"height": 3}):
        with pytest.raises(ProtocolError) as error:
            scale.fill(wrong)
        assert error.value.error_code == ErrorCode.VALIDATION_FAILED


# --- what is refused ---


@pytest.mark.parametrize("value", ["-", "-x", "--output=/etc/passwd"])
def test_what_would_be_an_option_is_refused_unless_it_is_declared(value: str) -> None:
    assert "option" in refused(["p", "{a}"], {"a": value}, parameters={"a": str}).message
    assert refused(["p", "{a}"], {"a": ["x", value]}, parameters={"a": list[str]}).param == "$.arguments.a"
    assert refused(["p", "{a}{b}"], {"a": "", "b": value}, parameters={"a": str, "b": str})
    assert line(["p", "{a}"], {"a": value}, parameters={"a": str}, dashes=("a",)) == ["p", value]
    assert line(["p", "./{a}"], {"a": value}, parameters={"a": str}) == ["p", f"./{value}"]


def test_a_negative_number_is_an_option_too_and_what_the_command_chose_itself_is_none() -> None:
    assert refused(["p", "{a}"], {"a": -1}, parameters={"a": int})
    assert line(["p", "{a}"], {"a": "-v"}, parameters={"a": Literal["-v", "-q"]}) == ["p", "-v"]
    assert line(["p", "{a}"], {"a": "-red"}, parameters={"a": Colour}) == ["p", "-red"]


@pytest.mark.parametrize("argv", [["p", "{a}"], ["p", "--x={a}"]])
def test_a_nul_byte_is_refused(argv: list[str]) -> None:
    error = refused(argv, {"a": "x\0y"}, parameters={"a": str})
    assert ("NUL" in error.message, error.param) == (True, "$.arguments.a")


@pytest.mark.parametrize(
    ("argv", "options", "words"),
    [
        ([], {}, "first argument is its program"),
        (["{a}"], {"parameters": {"a": str}}, "first argument is its program"),
        (["p", "{a}"], {}, "'a' is none of its parameters"),
        (["p"], {"parameters": {"a": str}}, "'a' is in none of its arguments"),
        (["p", "{a}"], {"parameters": {"a": dict[str, str]}}, "cannot be written as text"),
        (["p", "{a}"], {"parameters": {"a": list[list[str]]}}, "cannot be written as text"),
        (["p", "x{a}"], {"parameters": {"a": list[str]}}, "has to stand alone"),
        (["p", "{a}"], {"parameters": {"a": str}, "dashes": ("b",)}, "no parameter 'b'"),
        (["p", "{}"], {}, "braces doubled"),
        (["p", "{a.b}"], {"parameters": {"a": str}}, "braces doubled"),
        (["p", "{a!r}"], {"parameters": {"a": str}}, "braces doubled"),
        (["p", "{a:>9}"], {"parameters": {"a": str}}, "braces doubled"),
    ],
)
def test_a_command_that_makes_no_sense_cannot_be_declared(argv: list[str], options: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        command("c", argv, **options)


# --- one that is called ---


class Run(Message):
    tool: str
    arguments: dict[str, Any]


class Caller(Agent):
    @handles(Run)
    async def run(self, message: Run) -> Any:
        return await self.call(message.tool, **message.arguments)


COMMANDS = [
    command("shell", ["sh", "-c", "{text}"], parameters={"text": str}),
    command("hasty", ["sh", "-c", "{text}"], parameters={"text": str}, timeout=0.2),
    command("environment", ["env"], env={"MINE": "yes"}),
]


async def called(tool: str, **arguments: Any) -> Any:
    async with serving(Swarm([Caller], COMMANDS)) as manager:
        return await manager.system.ask("caller", Run(tool, arguments))


async def test_a_called_command_answers_with_the_end_of_all_that_it_printed() -> None:
    answer = await called("shell", text="echo out; echo err >&2")
    assert (answer.exit_code, answer.output) == (0, "out\nerr\n")
    answer = await called("shell", text=f"head -c {MOST_OUTPUT + 5} /dev/zero; echo end")
    assert (len(answer.output), answer.output[-4:]) == (MOST_OUTPUT, "end\n")


async def test_a_called_command_that_fails_says_its_code_and_its_last_words() -> None:
    with pytest.raises(ToolExecutionFailed, match="exit code 3: no luck"):
        await called("shell", text="echo first; echo no luck; exit 3")


async def test_a_called_command_has_what_it_needs_of_the_environment_and_no_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GRAMI_TOKEN", "grami_secret")
    monkeypatch.setenv("SOME_PASSWORD", "secret")
    output = (await called("environment")).output
    names = {each.partition("=")[0] for each in output.splitlines()}
    assert {"PATH", "MINE"} <= names
    assert not names & {"GRAMI_TOKEN", "SOME_PASSWORD"}
    assert "secret" not in output


async def test_a_called_command_that_is_too_slow_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    started = "sleep 600 & echo $! >>pids; (setsid sleep 600 & echo $! >>pids); wait"
    with pytest.raises(ToolTimeout):
        await called("hasty", text=f"cd {tmp_path}; {started}")
    pids = [int(each) for each in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2
    assert [pid for pid in pids if alive(pid)] == []


async def test_a_called_command_is_over_when_its_own_process_is_whoever_still_has_its_output(tmp_path: Path) -> None:
    answer = await called("shell", text=f"setsid sleep 600 & echo $! >{tmp_path}/pid; echo done")
    assert answer.output == "done\n"
    assert not alive(int((tmp_path / "pid").read_text()))


async def test_a_called_command_waits_for_nobody_that_it_does_not_find(tmp_path: Path) -> None:
    text = f"(env -i setsid sh -c 'sleep 600 & echo $! >{tmp_path}/pid'); sleep 0.1; echo done"
    try:
        assert (await called("shell", text=text)).output == "done\n"
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_command_is_a_tool_whose_jobs_run_outside() -> None:
    made = COMMANDS[0]
    assert isinstance(made, Command)
    assert (made.name, made.runner, made.import_path()) == ("shell", "outside", "")
    assert os.sep not in made.import_path()
