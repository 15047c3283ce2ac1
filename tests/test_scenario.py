"""Scenarios: which functions are played, what a check does, and what is told about it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from grami_actors import Agent, AgentCrashed, Config, DeadlineExceeded, GrowthManager, Message, Swarm, handles, tool
from grami_actors.errors import ConfigError, KillRefused
from grami_actors.scenario import Play, scenario
from grami_actors.scenario.clients import PlayClient
from grami_actors.scenario.lines import Check, Line, Piece, summary
from grami_actors.scenario.play import Result
from grami_actors.scenario.script import Script, choose, load, run
from grami_actors.scenario.stage import acted, play_one
from grami_actors.scenario.terminal import Terminal, summarise
from grami_actors.simulation.run import Runner, series
from grami_actors.simulation.schedule import Schedule
from grami_actors.simulation.world import Setup
from tests.conftest import Gate, Grami, serving
from tests.swarms import AT_ONCE, Echo, Said, small_swarm

SMALL = Path(__file__).parent / "scripts" / "small.py"


async def played(function: Any, swarm: Swarm | None = None, **settings: Any) -> tuple[Result, list[Any]]:
    """Play one function as a scenario; how it went, and everything it showed."""
    shown: list[Any] = []
    async with serving(swarm or small_swarm(), **settings) as manager:
        result = await play_one(manager, function, shown.append)
        await clients_are_gone(manager)
    return result, shown


async def clients_are_gone(manager: GrowthManager) -> None:
    while any(name.startswith("connection") for name in manager.system.table.cells):  # noqa: ASYNC110
        await asyncio.sleep(0)


def lines(shown: list[Any]) -> list[tuple[str, str, str, str]]:
    return [(each.who, each.to, each.what, each.outcome) for each in shown if isinstance(each, Line)]


# --- files ---


def test_marking_a_function_leaves_it_as_it_was() -> None:
    async def function(play: Play) -> None: ...

    assert scenario(function) is function


def test_a_file_offers_its_swarm_and_the_functions_that_are_marked(tmp_path: Path) -> None:
    file = tmp_path / "some.py"
    file.write_text(
        "from grami_actors import Swarm\n"
        "from grami_actors.scenario import scenario\n"
        "swarm = Swarm([])\n"
        "@scenario\nasync def second(play): ...\n"
        "@scenario\nasync def first(play): ...\n"
        "async def helper(play): ...\n"
    )
    script = load(file)
    assert [each.__name__ for each in script.scenarios] == ["second", "first"], "in the order of the file"
    assert [each.__name__ for each in choose(script, ["first"])] == ["first"]
    assert choose(script, []) == script.scenarios
    with pytest.raises(ConfigError, match="no scenario 'third'; it has second, first"):
        choose(script, ["third"])
    with pytest.raises(ConfigError, match="mark an async function with @scenario"):
        choose(Script(file, Swarm([]), (), ModuleType("some")), [])


HEAD = "from grami_actors import Swarm\nfrom grami_actors.scenario import scenario\nswarm = Swarm([])\n"


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        ("def plain(play): ...", "plain is not an async function"),
        ("async def pours(play): yield", "pours is not an async function, for it has a `yield`"),
        ("async def bare(): ...", "bare is called with `play` and nothing else, and takes ()"),
        (
            "async def more(play, tmp_path): ...",
            "more is called with `play` and nothing else, and takes (play, tmp_path)",
        ),
    ],
)
def test_what_cannot_be_played_as_a_scenario_is_refused_by_name(tmp_path: Path, function: str, problem: str) -> None:
    file = tmp_path / "wrong.py"
    file.write_text(f"{HEAD}@scenario\n{function}\n")
    with pytest.raises(ConfigError, match=re.escape(f"wrong.py: the scenario {problem}")):
        load(file)


def test_a_script_of_a_package_may_import_from_it(tmp_path: Path) -> None:
    package = tmp_path / "shop_of_tests" / "scenarios"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    (package.parent / "swarms.py").write_text("from grami_actors import Swarm\nswarm = Swarm([])\n")
    (package / "some.py").write_text(
        "from ..swarms import swarm\nfrom shop_of_tests import swarms\nassert swarms.swarm is swarm\n"
    )
    assert load(package / "some.py").scenarios == ()


@pytest.mark.slow
def test_the_tools_of_a_script_of_a_package_are_found_in_other_processes(command_line: Grami, tmp_path: Path) -> None:
    package = tmp_path / "tools_of_tests"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "sevens.py").write_text("SEVEN = 7\n")
    (package / "some.py").write_text(
        dedent("""
            from grami_actors import Swarm, tool
            from grami_actors.messages import ToolCall
            from grami_actors.scenario import Play, scenario
            from .sevens import SEVEN

            @tool(lane="process")
            def beside(times: int) -> int:
                return SEVEN * times

            @tool(job=True)
            def apart(times: int) -> int:
                return SEVEN * times

            swarm = Swarm([], [beside, apart])

            @scenario
            async def counts(play: Play) -> None:
                ann = await play.client("ann")
                play.check("in a worker", await play.system.ask("tool:beside", ToolCall({"times": 2})) == 14)
                job = await ann.jobs.submit("apart", {"times": 3})
                play.check("as a job", await job.result() == 21)
            """)
    )
    ended = command_line("run", str(package / "some.py"))
    assert ended.code == 0, ended


def test_a_script_that_cannot_be_loaded_is_told_with_the_line_that_failed(tmp_path: Path) -> None:
    (tmp_path / "broken_of_tests.py").write_text("\n1 / 0\n")
    (tmp_path / "some.py").write_text("import broken_of_tests\n")
    (tmp_path / "other.py").write_text("\n\n1 / 0\n")
    with pytest.raises(ConfigError, match=r"some.py cannot be loaded: \S*broken_of_tests.py:2: ZeroDivisionError"):
        load(tmp_path / "some.py")
    with pytest.raises(ConfigError, match=r"other.py cannot be loaded: line 3: ZeroDivisionError"):
        load(tmp_path / "other.py")


def test_one_file_is_played_and_that_is_said(tmp_path: Path) -> None:
    file = tmp_path / "some.py"
    file.write_text(f"{HEAD}@scenario\nasync def first(play): ...\n")
    with pytest.raises(ConfigError, match="is a folder: name one of its files, or play all of them with `pytest "):
        load(tmp_path)
    with pytest.raises(ConfigError, match=r"has no scenario 'other.py'; play several files with pytest"):
        choose(load(file), ["other.py"])


@pytest.mark.slow
def test_the_command_finds_what_is_in_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "swarms_of_tests.py").write_text("from grami_actors import Swarm\nswarm = Swarm([])\n")
    (tmp_path / "scenarios").mkdir()
    (tmp_path / "scenarios" / "some.py").write_text(
        "from swarms_of_tests import swarm\nfrom grami_actors.scenario import scenario\n"
        "@scenario\nasync def first(play): play.check('it is played', True)\n"
    )
    # -P: an installed command has no working directory in its path.
    for more in ([], ["--simulate", "--seeds", "3"]):
        command = [sys.executable, "-P", "-m", "grami_actors", "run", "scenarios/some.py", *more]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


async def test_a_whole_file_is_played_on_one_manager_in_order(tmp_path: Path) -> None:
    shown: list[Any] = []
    script = load(SMALL)
    results = await run(script, ["passes", "fails"], Config(state_dir=tmp_path / "state"), shown.append)
    assert [(each.scenario, each.passed) for each in results] == [("passes", True), ("fails", False)]
    assert [each for each in shown if isinstance(each, Result)] == list(results)
    assert shown[0].url.startswith("ws://127.0.0.1:")
    assert not (tmp_path / "state").exists(), "a scenario's server is not published"


# --- playing ---


async def test_a_fault_that_never_struck_is_told() -> None:
    async def misspelt(play: Play) -> None:
        play.faults.crash("ecko")
        play.faults.stall("echoer-*", 0.0)
        await play.system.ask("echoer", Echo("hello"))

    result, _ = await played(misspelt)
    assert (result.passed, result.unused) == (True, ("crash before 'ecko'",))
    buffer = io.StringIO()
    summarise(Console(file=buffer, width=40), (result,))
    assert "faults in misspelt never struck: crash before 'ecko'\n" in buffer.getvalue()


async def test_without_checks_a_scenario_passes_when_it_ends() -> None:
    async def quiet(play: Play) -> None: ...

    result, shown = await played(quiet)
    assert (result.scenario, result.passed, result.checks, result.error) == ("quiet", True, (), "")
    assert shown == []


async def test_a_failed_check_fails_the_scenario_but_does_not_end_it() -> None:
    async def checking(play: Play) -> None:
        assert play.check("first", [1])
        assert not play.check("second", [], "it is empty")
        assert play.check("third", "x")

    result, shown = await played(checking)
    assert not result.passed
    assert result.error == ""
    assert (
        list(result.checks)
        == shown
        == [
            Check("first", passed=True),
            Check("second", passed=False, details="it is empty"),
            Check("third", passed=True),
        ]
    )


async def test_a_failed_requirement_ends_the_scenario() -> None:
    async def requiring(play: Play) -> None:
        play.require("first", condition=True)
        play.require("second", condition=False)
        play.check("never reached", condition=True)

    result, _ = await played(requiring)
    assert not result.passed
    assert [(each.text, each.passed) for each in result.checks] == [("first", True), ("second", False)]
    assert result.error == ""


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (LookupError("nobody"), "LookupError: nobody"),
        (DeadlineExceeded("too late"), "DEADLINE_EXCEEDED: too late"),
        (AssertionError(), "AssertionError"),
    ],
)
async def test_a_scenario_that_raises_has_failed_with_that_error(raised: Exception, told: str) -> None:
    async def raising(play: Play) -> None:
        play.check("this held", condition=True)
        raise raised

    result, _ = await played(raising)
    assert not result.passed
    assert result.error.startswith(told)


async def test_an_error_of_the_server_ends_the_scenario_unless_it_is_caught() -> None:
    async def asking(play: Play) -> None:
        ann = await play.client("ann")
        await ann.request("fail", how="raise")

    result, shown = await played(asking)
    assert result.error.startswith(
        "AGENT_EXECUTION_FAILED: the agent failed: ValueError: on purpose (test_scenario.py:"
    )
    assert shown[-2:] != []
    answers = [each for each in shown if isinstance(each, Line) and each.to == "ann"]
    assert [(each.who, each.outcome) for each in answers] == [("growth manager", "AGENT_EXECUTION_FAILED")]


async def test_a_cancelled_scenario_is_cancelled_and_its_clients_are_gone() -> None:
    gate = Gate()

    async def waiting(play: Play) -> None:
        ann = await play.client("ann")
        await ann.request("slow")

    async with serving(small_swarm(gate)) as manager:
        playing = asyncio.create_task(play_one(manager, waiting, lambda _: None))
        await gate.until_entered()
        playing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await playing
        await clients_are_gone(manager)


async def test_what_a_client_asks_and_gets_is_told_in_lines() -> None:
    async def talking(play: Play) -> None:
        ann = await play.client("ann")
        assert ann.name == "ann"
        assert await ann.request(Echo("hello", 5)) == {"text": "hello", "number": 5}
        assert await ann.request("echo", text="again") == {"text": "again", "number": 0}

    result, shown = await played(talking)
    assert result.passed
    told = [each for each in shown if isinstance(each, Line)]
    spoken = [each for each in told if each.who == "ann"]
    heard = [each for each in told if each.to == "ann"]
    assert [(each.to, each.what) for each in spoken] == [("growth manager", "echo")] * 2
    assert ["hello" in each.text and "5" in each.text for each in (spoken[0], heard[0])] == [True, True]
    assert [each.outcome for each in heard] == ["ok", "ok"]
    assert all(each.seconds is not None for each in heard)
    assert [each.at for each in told] == sorted(each.at for each in told)
    assert result.messages == len(told)


async def test_what_agents_say_to_each_other_is_told_too() -> None:
    class Go(Message):
        pass

    @tool
    def helper(word: str) -> str:
        return word * 2

    class Worker(Agent):
        @handles(Go)
        async def go(self, message: Go) -> str:
            return str(await self.call(helper, word="ab"))

    async def talking(play: Play) -> None:
        assert await (await play.client("ann")).request("go") == "abab"

    _, shown = await played(talking, Swarm([Worker], [helper]))
    assert ("worker", "tool:helper", "tool_call", "ok") in lines(shown)
    assert not [each for each in lines(shown) if "router" in each]


async def test_a_streamed_answer_is_shown_piece_by_piece_and_returned_whole() -> None:
    async def writing(play: Play) -> None:
        ann = await play.client("ann")
        data, frames = await ann.write("story", pieces=3)
        assert data == "piece 0 piece 1 piece 2 "
        assert [frame.type for frame in frames].count("response.chunk") == 3

    result, shown = await played(writing)
    assert result.passed, result.error
    pieces = [each for each in shown if isinstance(each, Piece)]
    assert [each.text for each in pieces if not each.done] == ["piece 0 ", "piece 1 ", "piece 2 "]
    assert [each.done for each in pieces][-1]
    assert len({each.key for each in pieces}) == 1


async def test_an_agent_can_be_killed_and_its_restart_is_told() -> None:
    gate = Gate()

    class Work(Message):
        wait: bool = True

    class Worker(Agent, restart=AT_ONCE):
        @handles(Work)
        async def work(self, message: Work) -> str:
            if message.wait:
                await gate.wait_async()
            return "done"

    async def killing(play: Play) -> None:
        ann = await play.client("ann")
        request = asyncio.create_task(ann.request("work"))
        await gate.until_entered()
        play.kill("worker")
        with pytest.raises(Exception, match="died with the message in hand"):
            await request
        gate.opened.set()
        play.check("it works again", await ann.request("work", wait=False) == "done")

    result, shown = await played(killing, Swarm([Worker]))
    assert result.passed, result.error
    told = [what for who, _, what, _ in lines(shown) if who == "worker"]
    assert [what for what in told if what in {"killed", "failed", "restarted"}] == ["killed", "failed", "restarted"]


async def test_what_runs_on_a_thread_cannot_be_killed_and_that_is_said() -> None:
    async def killing(play: Play) -> None:
        with pytest.raises(KillRefused, match="a thread cannot be killed"):
            play.kill("tool:double")

    result, _ = await played(killing)
    assert result.passed, result.error


async def test_several_clients_have_connections_of_their_own() -> None:
    async def crowd(play: Play) -> None:
        names = ("ann", "bob", "eve")
        clients = [await play.client(name) for name in names]
        answers = await asyncio.gather(*(each.request("echo", text=each.name) for each in clients))
        play.check("each got its own", [each["text"] for each in answers] == list(names))
        open_now = [name for name in play.system.table.cells if name.startswith("connection-")]
        play.check("three connections", len(open_now) == 3)

    result, _ = await played(crowd)
    assert result.passed


async def told_apart(play: Play) -> None:
    """Faults strike a client by its name in the script, and by that of its connection."""
    lost = play.faults.drop("ann", "echo*", times=None)
    ann, bob = await play.client("ann"), await play.client("bob")

    async def echoes(client: PlayClient) -> bool:
        with contextlib.suppress(DeadlineExceeded):
            return bool(await client.request("echo", text="hello", timeout=0.2))
        return False

    play.check("ann is lost, bob is heard", [await echoes(ann), await echoes(bob)] == [False, True])
    lost.undo()
    parted = play.faults.partition(["a?n"], "echo*")
    play.check("ann is cut off, bob is not", [await echoes(ann), await echoes(bob)] == [False, True])
    parted.undo()
    connections = sorted(each.sender for each in play.transcript.told("echo*"))
    play.faults.crash("echo*", sender=connections[0])
    with contextlib.suppress(AgentCrashed):
        await bob.request("echo", text="crashed")
    play.check("all struck", not play.faults.unused, str(play.faults.unused))


async def test_faults_know_a_client_by_what_the_script_calls_it() -> None:
    result, shown = await played(told_apart)
    assert result.passed, result
    assert ("ann", "fault: drop") in {(who, what) for who, _, what, _ in lines(shown)}
    shown.clear()
    with series():
        ended = Runner(Setup(small_swarm()), acted(told_apart, shown.append)).run(Schedule(0), watched=True)
    assert ended.failure is None
    assert ("ann", "fault: drop") in {(who, what) for who, _, what, _ in lines(shown)}


def test_a_value_is_told_in_one_short_line() -> None:
    assert summary(Said("some\n  text", 5)) == "text=some text, number=5"
    assert summary({"empty": "", "none": None, "list": [], "zero": 0}) == "zero=0"


# --- in a terminal ---


def shown_by(*events: Any, width: int = 100, **options: Any) -> str:
    file = io.StringIO()
    with Terminal(Console(file=file, width=width, **options)) as terminal:
        for event in events:
            terminal(event)
    return file.getvalue()


def test_a_line_says_when_who_to_whom_what_and_how_long() -> None:
    line = Line(1.234, "ann", "growth manager", "greet", "name=Ann", seconds=0.0123, outcome="ok")
    text = shown_by(line)
    assert text.split() == ["1.23", "ann", "→", "growth", "manager", "greet", "name=Ann", "12", "ms"]
    assert text.count("\n") == 1


def test_an_error_is_told_with_its_code_and_a_remark_without_a_listener() -> None:
    assert "UPSTREAM_ERROR" in shown_by(Line(0.0, "manager", "ann", "answer", "it is away", outcome="UPSTREAM_ERROR"))
    assert "→" not in shown_by(Line(0.0, "worker", "", "killed"))


def test_checks_say_whether_they_held_and_why_not() -> None:
    text = shown_by(
        Check("it is warm", passed=True, details="24 °C"),
        Check("it is dry", passed=False, details="it rains"),
        Check("it is light", passed=False),
    )
    assert "✓ it is warm\n" in text
    assert "✗ it is dry: it rains\n" in text
    assert "✗ it is light\n" in text


def test_a_scenario_begins_with_its_name_and_its_first_sentence() -> None:
    async def rainy(play: Play) -> None:
        """It rains all day.

        And more.
        """

    text = shown_by(rainy)
    assert "rainy: It rains all day." in text
    assert "And more" not in text


def test_without_a_terminal_there_are_no_escape_codes_and_no_half_written_text() -> None:
    text = shown_by(
        Line(0.0, "ann", "bob", "greet", "[red]not markup[/red]"),
        Piece("ann ← bob", "half of a sent"),
        Check("fine", passed=True),
        Piece("ann ← bob", "", done=True),
    )
    assert "\x1b" not in text
    assert "half of a sent" not in text
    assert "[red]not markup[/red]" in text


def test_in_a_terminal_there_is_colour_and_the_text_that_is_being_written() -> None:
    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=True, color_system="standard")
    with Terminal(console) as terminal:
        terminal(Line(0.0, "ann", "bob", "greet"))
        terminal(Piece("ann ← bob", "half of "))
        terminal(Piece("ann ← bob", "a sent"))
        terminal._writing._live.refresh()
        assert "half of a sent" in file.getvalue()
        before = len(file.getvalue())
        terminal(Piece("ann ← bob", "", done=True))
        terminal._writing._live.refresh()
        assert "half of a sent" not in file.getvalue()[before:]
    assert "\x1b[" in file.getvalue()


def test_of_a_long_text_that_is_written_the_end_is_seen_in_any_script() -> None:
    file = io.StringIO()
    with Terminal(Console(file=file, width=40, force_terminal=True, color_system=None)) as terminal:
        terminal(Piece("ann", "\u65e5\u672c\u8a9e" * 40 + " 42"))
        terminal._writing._live.refresh()
        assert " 42" in file.getvalue()


def test_a_long_line_is_one_line_with_its_end() -> None:
    line = Line(0.0, "ann", "bob", "greet", "word " * 100, seconds=0.5, outcome="ok")
    text = shown_by(line, width=60)
    assert text.count("\n") == 1
    assert text.rstrip().endswith("500 ms")


def test_in_a_file_nothing_of_a_line_is_cut_off() -> None:
    line = Line(0.0, "ann", "bob", "greet", "word " * 100 + "the end", seconds=0.5, outcome="ok")
    assert "the end" in shown_by(line, width=60)


def test_the_summary_counts_checks_and_names_errors() -> None:
    file = io.StringIO()
    checks = (Check("a", passed=True), Check("b", passed=False))
    summarise(
        Console(file=file, width=100),
        (
            Result("good", "live", passed=True, checks=checks[:1], error="", wall_seconds=0.012, messages=3),
            Result("bad", "live", passed=False, checks=checks, error="", wall_seconds=2.5, messages=30),
            Result("ugly", "live", passed=False, checks=(), error="LookupError: [no]", wall_seconds=1.0, messages=0),
        ),
    )
    rows = [line.split() for line in file.getvalue().splitlines()]
    assert ["✓", "good", "1/1", "3", "12", "ms"] in rows
    assert ["✗", "bad", "1/2", "30", "2.5", "s"] in rows
    assert "error in ugly: LookupError: [no]" in file.getvalue()
    assert "\x1b" not in file.getvalue()


async def test_a_whole_play_can_be_watched_in_a_terminal() -> None:
    file = io.StringIO()
    console = Console(file=file, width=200)

    async def talking(play: Play) -> None:
        """Somebody talks."""
        ann = await play.client("ann")
        await ann.write("story", pieces=2)
        play.check("it ended", condition=True)

    async with serving(small_swarm()) as manager:
        with Terminal(console) as terminal:
            terminal(manager)
            terminal(talking)
            result = await play_one(manager, talking, terminal)
            terminal(result)
        assert manager.url in file.getvalue()
    text = file.getvalue()
    assert "talking: Somebody talks." in text
    assert "ann → growth manager  story" in text
    assert "✓ it ended" in text
    assert "\x1b" not in text
