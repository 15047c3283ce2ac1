"""The plugin for pytest: what it collects, what it runs, what it says of failures, and what it leaves alone."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from grami_actors.errors import ConfigError
from grami_actors.scenario import items, scenario
from grami_actors.scenario.script import choose, load

pytest_plugins = "pytester"

ROOT = Path(__file__).parents[1]
NAME = items.Later.__module__  # imported here, so that the runs of pytest in here need not import it each
ONLY_OURS = ("--disable-plugin-autoload", "-p", NAME, "-p", "no:cacheprovider")


@pytest.fixture(autouse=True)
def _in_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """With this variable, pytest prints the whole of each failure once more at the end."""
    monkeypatch.delenv("CI", raising=False)


SWARM = """
import asyncio, os
import pytest
from grami_actors import Agent, Message, Swarm, handles
from grami_actors.scenario import Play, scenario

order = []

class Go(Message):
    word: str = ""

class Twice(Message):
    word: str

class First(Agent):
    @handles(Go)
    async def go(self, message: Go) -> int:
        order.append("first")
        return len(order)

class Second(Agent):
    @handles(Go)
    async def go(self, message: Go) -> int:
        order.append("second")
        return len(order)

    @handles(Twice)
    async def twice(self, message: Twice) -> str:
        return message.word * 2

async def both(play):
    await asyncio.gather(*(play.system.ask(name, Go()) for name in ("first", "second")))

swarm = Swarm([First, Second])
"""

RACE = """
@scenario
async def race(play: Play) -> None:
    await both(play)
    play.check("the first comes first", order == ["first", "second"], str(order))
"""

GOOD = """
@scenario
async def good(play: Play) -> None:
    '''All is well.'''
    play.check("it is one", await play.system.ask("first", Go()) == 1)
"""


def run(pytester: pytest.Pytester, *args: str | Path) -> pytest.RunResult:
    return pytester.runpytest_inprocess(*ONLY_OURS, *args)


def played(pytester: pytest.Pytester, text: str, *args: str, **outcomes: int) -> str:
    """What pytest says of the tests of a module, which end like this."""
    pytester.makepyfile(test_it=SWARM + text)
    result = run(pytester, *args)
    result.assert_outcomes(**outcomes)
    return str(result.stdout)


def script(pytester: pytest.Pytester, text: str, name: str = "shop.py") -> Path:
    file = pytester.path / "scenarios" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(SWARM + text)
    return file


def collected(pytester: pytest.Pytester, *args: str | Path) -> list[str]:
    result = run(pytester, "--collect-only", "-q", *args)
    return [line for line in result.outlines if "::" in line]


# --- what is collected ---


@pytest.mark.parametrize("given", ["scenarios", "scenarios/shop.py", "."])
def test_the_scenarios_of_a_script_are_two_tests_each_however_the_script_is_found(
    pytester: pytest.Pytester, given: str
) -> None:
    script(pytester, RACE + GOOD)
    assert collected(pytester, given) == [
        f"scenarios/shop.py::{name}[{mode}]" for name in ("race", "good") for mode in ("live", "simulated")
    ]


def test_files_that_only_speak_of_scenarios_are_not_even_loaded(pytester: pytest.Pytester) -> None:
    folder = script(pytester, GOOD).parent
    (folder / "words.py").write_text("'''grami_actors has @scenario'''\nraise LookupError\n")
    (folder / "other.py").write_text("from other_actors import scenario\n@scenario\ndef no(): ...\n")
    (folder / "binary.py").write_bytes(b"\xff\xfe grami_actors")
    (folder / "notes.txt").write_text("grami_actors\n@scenario\n")
    run(pytester).assert_outcomes(passed=2)


def test_tests_and_fixtures_of_a_script_that_is_named_are_collected_too(pytester: pytest.Pytester) -> None:
    file = script(pytester, GOOD + "@pytest.fixture\ndef five(): return 5\ndef test_five(five): assert five == 5\n")
    run(pytester, file).assert_outcomes(passed=3)


def test_a_test_module_may_have_scenarios_between_its_tests(pytester: pytest.Pytester) -> None:
    played(pytester, GOOD + "def test_nothing(): ...\n", passed=3)


@pytest.mark.slow
def test_names_and_marks_choose_among_scenarios(pytester: pytest.Pytester) -> None:
    script(pytester, "@pytest.mark.skip\n" + GOOD.strip() + RACE)
    assert collected(pytester, "-k", "good and live") == ["scenarios/shop.py::good[live]"]
    assert collected(pytester, "scenarios/shop.py::race[simulated]") == ["scenarios/shop.py::race[simulated]"]
    assert len(collected(pytester, "-m", "simulated")) == 2
    run(pytester, "-k", "good").assert_outcomes(skipped=2, deselected=2)


def test_the_mark_of_a_module_says_how_its_scenarios_are_simulated(pytester: pytest.Pytester) -> None:
    text = "pytestmark = pytest.mark.simulated(seeds=3)\n@scenario\nasync def it(play): print('played ' + 'once')\n"
    assert played(pytester, text, "-s", "--no-grami-live", passed=1).count("played once") == 3


@pytest.mark.slow
def test_a_scenario_is_played_where_its_mark_and_the_options_say(pytester: pytest.Pytester) -> None:
    text = "".join(f"@scenario({way}=False)\nasync def no_{way}(play): ...\n" for way in ("live", "simulated"))
    script(pytester, text)
    names = ["scenarios/shop.py::no_live[simulated]", "scenarios/shop.py::no_simulated[live]"]
    assert collected(pytester) == names
    assert collected(pytester, "--no-grami-live") == names[:1]
    assert collected(pytester, "--grami-seeds", "0") == names[1:]
    with pytest.raises(ValueError, match="live, simulated, or both"):
        scenario(live=False, simulated=False)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("def broken(:\n", "shop.py cannot be loaded: SyntaxError: invalid syntax"),
        ("del swarm\n", "shop.py defines no `swarm = Swarm(agents=[...], tools=[...])`"),
        ("@scenario\ndef plain(play): ...\n", "shop.py: the scenario plain is not an async function"),
    ],
)
def test_a_script_that_cannot_be_loaded_is_an_error_with_its_text(
    pytester: pytest.Pytester, text: str, told: str
) -> None:
    script(pytester, GOOD + text)
    result = run(pytester)
    result.assert_outcomes(errors=1)
    assert told in str(result.stdout)
    assert "grami_actors/" not in str(result.stdout), "none of our internals"


def test_a_scenario_cannot_be_parametrized_and_that_is_said(pytester: pytest.Pytester) -> None:
    mark = "import pytest\n@scenario\n@pytest.mark.parametrize('n', [1, 2])\n"
    told = played(pytester, f"{mark}async def each(play): ...\n", errors=1)
    assert "the scenario each is called with `play` and nothing else: parametrize a test" in told


def test_a_scenario_of_a_test_module_is_held_to_the_same(pytester: pytest.Pytester) -> None:
    told = played(pytester, "@scenario\ndef plain(play): ...\n", errors=1)
    assert "the scenario plain is not an async function" in told
    assert "has no `swarm" in played(pytester, GOOD + "swarm = 5\n", failed=2)


# --- how scenarios are played ---


def test_a_scenario_that_fails_live_shows_its_checks_its_error_and_its_transcript(pytester: pytest.Pytester) -> None:
    script(
        pytester,
        "@scenario(simulated=False)\n"
        "async def bad(play):\n"
        "    print('printed by the scenario')\n"
        "    ann = await play.client('ann')\n"
        "    play.check('it is doubled', await ann.request('twice', word='ab') == 'ab', 'it is not')\n"
        "    raise LookupError('nobody is here')\n",
    )
    result = run(pytester)
    result.assert_outcomes(failed=1)
    told = str(result.stdout)
    result.stdout.fnmatch_lines(["FAILED it is doubled: it is not", "LookupError: nobody is here (shop.py:*)"])
    result.stdout.fnmatch_lines(["*ann -> growth manager  twice word=ab"])
    result.stdout.fnmatch_lines(["*Captured stdout call*", "printed by the scenario"])
    assert "grami_actors/" not in told, "none of our internals"


def test_a_scenario_that_fails_in_simulation_shows_its_seed_which_fails_again(pytester: pytest.Pytester) -> None:
    script(pytester, RACE)
    result = run(pytester, "--no-grami-live")
    result.assert_outcomes(failed=1)
    result.stdout.re_match_lines(
        [
            r"seed [1-9]\d* fails: check: the first comes first \(\['second', 'first'\]\)",
            r" +0.000  somebody -> second  go .*",
            r" +0.000  somebody -> first  go .*",
            r" +FAILED the first comes first: .*",
            r"The shortest run found that fails like that is shown: 1 preemption, 0 faults\.",
            r"play it again: grami run scenarios/shop.py race --simulate --seed \d+",
        ],
        consecutive=True,
    )
    assert "grami_actors/" not in str(result.stdout), "none of our internals"
    again = next(line for line in result.outlines if "--seed" in line)
    seed = again.rpartition(" ")[2]
    run(pytester, "--no-grami-live", "--grami-seed", seed).assert_outcomes(failed=1)
    run(pytester, "--no-grami-live", "--grami-seed", "0").assert_outcomes(passed=1)


def test_a_fault_that_never_struck_is_a_warning(pytester: pytest.Pytester) -> None:
    script(pytester, GOOD + "    play.faults.crash('frist')\n")
    result = run(pytester, "-W", "default")
    result.assert_outcomes(passed=2)
    (told,) = (line for line in result.outlines if "never struck" in line)
    assert told.endswith("PytestWarning: faults never struck: crash before 'frist'")


def test_each_scenario_begins_with_the_modules_as_they_were_loaded(pytester: pytest.Pytester) -> None:
    file = script(pytester, "def test_first(): order.append('a test')\n" + GOOD + GOOD.replace("good", "again"))
    run(pytester, file, "--grami-seeds", "3").assert_outcomes(passed=5)


def test_scripts_of_the_same_name_do_not_get_mixed_up(pytester: pytest.Pytester) -> None:
    for folder, kind in (("one", "int"), ("two", "str")):
        file = pytester.path / folder / "shop.py"
        file.parent.mkdir()
        file.write_text(
            f"from __future__ import annotations\n{SWARM}\nKind = {kind}\n"
            "class Typed(Message):\n    value: Kind\n"
            "class Reader(Agent):\n"
            "    @handles(Typed)\n"
            "    async def read(self, message: Typed) -> str: return type(message.value).__name__\n"
            "swarm = Swarm([Reader])\n"
            "@scenario(simulated=False)\n"
            "async def typed(play):\n"
            f"    answer = await (await play.client('ann')).request('typed', value={kind}(5))\n"
            f"    play.check('it is its own', answer == '{kind}', answer)\n"
        )
    run(pytester).assert_outcomes(passed=2)


def test_the_model_is_the_scripted_one_unless_another_is_asked_for(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GRAMI_MODEL", raising=False)
    look = "@scenario\nasync def look(play): play.check('', False, f'{play.mode}: ' + os.environ['GRAMI_MODEL'])\n"
    file = script(pytester, "print('loaded with', os.environ['GRAMI_MODEL'])\n" + look)
    told = str(run(pytester, "-s", file).stdout)
    assert "live: scripted" in told
    assert "simulated: scripted" in told
    assert "GRAMI_MODEL" not in os.environ
    monkeypatch.setenv("GRAMI_MODEL", "some-model")
    told = str(run(pytester, file).stdout)
    assert "live: some-model" in told
    assert "simulated: scripted" in told, "a model of the outside has no place there"
    assert os.environ["GRAMI_MODEL"] == "some-model"


def test_a_swarm_that_cannot_start_is_said_without_a_traceback(pytester: pytest.Pytester) -> None:
    told = played(
        pytester,
        GOOD + "class Broken(Agent):\n    def on_start(self): raise OSError('no disk')\nswarm = Swarm([Broken])\n",
        failed=2,
    )
    assert "the swarm did not start" in told
    assert "no disk" in told
    assert "grami_actors/" not in told


# --- fixtures ---


def test_an_async_test_talks_to_a_real_server(pytester: pytest.Pytester) -> None:
    played(
        pytester,
        "async def test_real(play, connect, clock):\n"
        "    alice = await connect('alice')\n"
        "    assert await alice.request('twice', word='ab') == 'abab'\n"
        "    assert play.mode == 'live'\n"
        "    before = clock.now()\n"
        "    await clock.sleep(0.01)\n"
        "    assert 0 < before < clock.now() < 20\n"
        "    await play.expect('alice -> second: twice')\n"
        "class TestInClass:\n"
        "    @pytest.mark.parametrize('word', ['a', 'b'])\n"
        "    async def test_method(self, connect, word):\n"
        "        assert await (await connect('bob')).request('twice', word=word) == word * 2\n",
        passed=3,
    )


@pytest.mark.parametrize(
    ("mark", "args", "seeds"),
    [
        ("", (), 20),
        ("(seeds=7)", (), 7),
        ("(seeds=7)", ("--grami-seeds", "3"), 3),
        ("(7)", ("--grami-seed", "50"), 1),
    ],
)
def test_a_simulated_test_is_played_once_for_each_seed_in_virtual_time(
    pytester: pytest.Pytester, mark: str, args: tuple[str, ...], seeds: int
) -> None:
    told = played(
        pytester,
        f"@pytest.mark.simulated{mark}\n"
        "async def test_day(play, clock):\n"
        "    assert (play.mode, clock.now(), order) == ('simulated', 0, [])\n"
        "    await clock.at(86_400 / 2)\n"
        "    await clock.sleep(60)\n"
        "    assert clock.now() == 43_260\n"
        "    assert await play.system.ask('first', Go()) == 1\n"
        "    print('played ' + 'once')\n",
        "-s", *args,
        passed=1,
    )  # fmt: skip
    assert told.count("played once") == seeds


def test_a_test_that_fails_in_simulation_shows_its_own_line_and_the_seed(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_it=SWARM + "@pytest.mark.simulated\nasync def test_race(play):\n    await both(play)\n"
        "    assert order == ['first', 'second']\n"
    )
    result = run(pytester)
    result.assert_outcomes(failed=1)
    result.stdout.re_match_lines(
        [
            r">       assert order == \['first', 'second'\]",
            r"E       AssertionError: assert \['second', 'first'\] == \['first', 'second'\]",
            r"E +seed \d+ fails: .*",
            r"E +0.000  somebody -> second  go .*",
            r"E +play it again: pytest test_it.py::test_race --grami-seed \d+",
        ]
    )
    assert "grami_actors/" not in str(result.stdout), "none of our internals"
    seed = next(line for line in result.outlines if "--grami-seed" in line).rpartition(" ")[2]
    run(pytester, "--grami-seed", seed).assert_outcomes(failed=1)
    run(pytester, "--grami-seed", "0").assert_outcomes(passed=1)


@pytest.mark.slow
@pytest.mark.parametrize("mark", ["", "@pytest.mark.simulated\n"])
def test_whatever_makes_a_test_fail_or_skip_does_so_in_both_modes(pytester: pytest.Pytester, mark: str) -> None:
    bodies = {
        "check": "play.check('it is so', False, 'it is not')",
        "expect": "await play.expect('nobody', within=0.1)",
        "raises": "with pytest.raises(LookupError): pass",
        "fail": "pytest.fail('on purpose')",
        "error": "await play.system.ask('nobody', Go())",
        "skip": "pytest.skip('why not')",
    }
    text = "".join(f"{mark}async def test_{name}(play):\n    {body}\n" for name, body in bodies.items())
    told = played(pytester, text, failed=5, skipped=1)
    assert ">       with pytest.raises(LookupError): pass" in told, "the line that failed"
    for words in ("it is so", "expected nobody within 0.1 s", "DID NOT RAISE", "on purpose", "nobody"):
        assert words in told
    assert len(re.findall(r"^(?:E +)?seed 0 fails", told, re.MULTILINE)) == (5 if mark else 0)


def test_what_a_test_changes_in_modules_is_put_back(pytester: pytest.Pytester) -> None:
    test = "async def test_{}(play):\n    assert await play.system.ask('first', Go()) == 1\n"
    simulated = "@pytest.mark.simulated\n" + test
    played(pytester, test.format(1) + simulated.format(2) + test.format(3) + simulated.format(4), passed=4)


def test_a_fixture_of_the_test_swarm_takes_the_place_of_the_modules(pytester: pytest.Pytester) -> None:
    played(
        pytester,
        "module = swarm\n"
        "@pytest.fixture(params=[1, 2])\n"
        "def swarm(request): return Swarm([[First], [First, Second]][request.param - 1])\n"
        "@pytest.mark.simulated\n"
        "async def test_it(play, swarm):\n"
        "    assert swarm is not module\n"
        "    assert ('second' in play.system.table.cells) == (len(swarm.agents) == 2)\n",
        passed=2,
    )


def test_a_test_without_a_swarm_is_told_what_is_missing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it="async def test_it(play): ...")
    result = run(pytester)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["test_it.py has no `swarm = Swarm(agents=[[]...], tools=[[]...])`*"])


def test_fixtures_may_hold_on_to_ours_until_the_test_runs(pytester: pytest.Pytester) -> None:
    told = played(
        pytester,
        "@pytest.fixture\n"
        "def ask(play, connect):\n"
        "    async def ask(word):\n"
        "        assert await (await connect('ann')).request('twice', word=word) == word * 2\n"
        "        return await play.system.ask('second', Twice(word))\n"
        "    yield ask\n"
        "    assert not hasattr(play, 'mode')\n"
        "async def test_it(ask):\n"
        "    assert await ask('x') == 'xx'\n"
        "@pytest.fixture\n"
        "def early(play): return play.mode\n"
        "async def test_early(early): ...\n",
        passed=1,
        errors=1,
    )
    assert "`play` works while its test runs" in told


@pytest.mark.parametrize(
    ("text", "args", "told"),
    [
        ("def test_it(play, clock): ...\n", (), "clock, play: for a test that is an `async def`"),
        ("@pytest.mark.simulated(seed=5)\nasync def test_it(play): ...\n", (), "mark.simulated() got an unexpected"),
        ("@pytest.mark.simulated(faults='rain')\nasync def test_it(play): ...\n", (), "'rain' is no profile of faults"),
        ("@pytest.mark.simulated\nasync def test_it(play): ...\n", ("--grami-faults", "rain"), "'rain' is no profile"),
    ],
)
def test_what_cannot_be_played_is_refused_in_words(
    pytester: pytest.Pytester, text: str, args: tuple[str, ...], told: str
) -> None:
    text = played(pytester, text, *args, failed=1)
    assert told in text
    assert "grami_actors/" not in text


@pytest.mark.slow
def test_tests_that_the_options_leave_out_are_skipped_by_name(pytester: pytest.Pytester) -> None:
    text = "async def test_live(play): ...\n@pytest.mark.simulated\nasync def test_simulated(play): ...\n"
    assert "--no-grami-live" in played(pytester, text, "-rs", "--no-grami-live", passed=1, skipped=1)
    assert "no seeds to play" in played(pytester, text, "-rs", "--grami-seeds", "0", passed=1, skipped=1)
    result = run(pytester, "--grami-seeds", "many")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*'many' is no number from 0 on*"])


# --- what is none of its business ---


def test_tests_of_others_are_left_alone(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        "import pytest, inspect\n"
        "def pytest_pyfunc_call(pyfuncitem):\n"
        "    if inspect.iscoroutinefunction(pyfuncitem.obj):\n"
        "        print('theirs:', pyfuncitem.name)\n"
        "        return True\n"
    )
    told = played(
        pytester,
        "@pytest.fixture\ndef clock(): return 5\n"
        "@pytest.fixture\ndef play(): return 5\n"
        "async def test_nothing(): ...\n"
        "async def test_own(clock, play): ...\n"
        "async def test_ours(connect): print('ours')\n"
        "def test_plain(clock): assert clock == 5\n",
        "-s",
        passed=4,
    )
    assert "theirs: test_nothing" in told
    assert "theirs: test_own" in told
    assert "theirs: test_ours" not in told
    assert "ours" in told


def test_other_plugins_for_async_tests_see_a_plain_function(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        "import asyncio, functools, inspect, pytest\n"
        "@pytest.hookimpl(wrapper=True)\n"
        "def pytest_runtest_call(item):\n"  # what pytest-asyncio does in its auto mode
        "    inner = item.obj\n"
        "    @functools.wraps(inner)\n"
        "    def plain(*args, **given): return asyncio.run(inner(*args, **given))\n"
        "    item.obj = plain\n"
        "    return (yield)\n"
        "@pytest.hookimpl(tryfirst=True)\n"
        "def pytest_pyfunc_call(pyfuncitem):\n"  # what anyio does in its auto mode
        "    assert not inspect.iscoroutinefunction(pyfuncitem.obj)\n"
    )
    played(pytester, "async def test_it(play):\n    assert play.mode == 'live'\n", passed=1)


def test_whoever_installs_the_package_has_the_plugin() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert f"grami_actors = {NAME}" in setup["options.entry_points"]["pytest11"].splitlines()


def test_loading_the_plugin_imports_nothing_of_the_runtime() -> None:
    program = f"import pytest, sys; before = set(sys.modules); import {NAME}; print(*sorted(set(sys.modules) - before))"
    loaded = subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True).split()
    assert [each for each in loaded if each.startswith("grami_actors")] == [
        "grami_actors",
        "grami_actors.scenario",
        NAME,
    ]
    assert not {"asyncio", "msgspec", "pykka", "rich", "websockets"} & set(loaded)


def test_it_teaches_what_it_has(pytester: pytest.Pytester) -> None:
    result = run(pytester, "--help")
    result.stdout.fnmatch_lines(["agents and scenarios*", "*--grami-seeds=N*", "*--grami-live, --no-grami-live*"])
    run(pytester, "--markers").stdout.fnmatch_lines(["@pytest.mark.simulated(seeds=20, faults='none'): *"])
    pytester.makepyfile("def test_nothing(): ...")
    told = str(run(pytester, "--fixtures").stdout)
    for words in ("swarm --", "play --", "connect --", "clock --"):
        assert words in told


# --- grami run ---


def test_a_scenario_is_chosen_only_for_the_mode_that_it_is_marked_for(tmp_path: Path) -> None:
    file = tmp_path / "shop.py"
    file.write_text(SWARM + GOOD + "@scenario(live=False)\nasync def long(play): ...\n")
    loaded = load(file)

    def names(*args: Any) -> list[str]:
        return [each.__name__ for each in choose(loaded, *args)]

    assert names([], "live") == ["good"]
    assert names([], "simulated") == names([]) == ["good", "long"]
    with pytest.raises(ConfigError, match=r"long cannot be played like this: marked @scenario\(live=False\)"):
        names(["good", "long"], "live")


@pytest.mark.slow
def test_grami_run_says_what_it_leaves_out(tmp_path: Path) -> None:
    file = tmp_path / "shop.py"
    file.write_text(SWARM + GOOD + "@scenario(live=False)\nasync def long(play): ...\n")
    command = [sys.executable, "-m", "grami_actors", "run", str(file)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "left out, marked @scenario(live=False): long"
    assert "long" not in done.stdout
    done = subprocess.run([*command, "long"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "long cannot be played like this: marked @scenario(live=False)" in done.stderr
