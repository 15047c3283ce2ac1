"""The plugin for pytest: scenarios are collected as tests, and async tests get a swarm to play with. Floor 16.

Whoever has this package loads it with every run of pytest. So it imports nothing of the runtime: what plays is in
:mod:`grami_actors.scenario.items`, which is imported when there is something to play.
"""

from __future__ import annotations

import argparse
import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from grami_actors.scenario.clients import PlayClient
    from grami_actors.scenario.items import Clock, ScenarioFile
    from grami_actors.scenario.play import Play
    from grami_actors.swarm import Swarm

SEEDS = 20
"""Seeds of a simulation, if nobody says how many."""

_MARKED = re.compile(rb"^@scenario\b", re.MULTILINE)


# --- options ---


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the plugin."""
    group = parser.getgroup("grami", "agents and scenarios (grami_actors)")
    group.addoption(
        "--grami-seeds",
        type=_number,
        metavar="N",
        help=f"play simulations on the seeds 0 to N-1: each is another order of what happens; 0 plays none. Default: "
        f"what @pytest.mark.simulated(seeds=...) says, else {SEEDS}.",
    )
    group.addoption(
        "--grami-seed",
        type=_number,
        metavar="S",
        help="play simulations on this seed only, to see a failure again.",
    )
    group.addoption(
        "--grami-faults",
        metavar="PROFILE",
        help="what goes wrong in simulations, as for `grami run --faults`. Default: what "
        "@pytest.mark.simulated(faults=...) says, else none.",
    )
    group.addoption(
        "--grami-live",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether to play on real servers, too: each on a free port of this machine.",
    )


def _number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 on")
    return int(text)


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark."""
    config.addinivalue_line(
        "markers",
        f"simulated(seeds={SEEDS}, faults='none'): play an async test that uses play, connect or clock in virtual "
        "time, once for each seed, until one fails.",
    )


# --- scenarios as tests ---


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> ScenarioFile | None:
    """Collect the scenario scripts of a folder."""
    if parent.session.isinitpath(file_path):  # pytest takes it for a test module, and asks below how to load it
        return None
    return _script(file_path, parent)


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> ScenarioFile | None:
    """Collect a scenario script that is named on the command line."""
    return _script(module_path, parent)


def _script(path: Path, parent: pytest.Collector) -> ScenarioFile | None:
    if path.suffix != ".py" or any(path.match(pattern) for pattern in parent.config.getini("python_files")):
        return None
    text = path.read_bytes()
    if b"grami_actors" not in text or not _MARKED.search(text):
        return None
    from grami_actors.scenario.items import ScenarioFile  # noqa: PLC0415 - only where there is a scenario

    return ScenarioFile.from_parent(parent, path=path)


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Collector, obj: object) -> list[pytest.Item] | None:
    """Make the tests of a scenario: one live, one simulated."""
    if not isinstance(collector, pytest.Module) or not inspect.isfunction(obj):
        return None
    if not hasattr(obj, "__grami_scenario__"):
        return None
    from grami_actors.scenario.items import scenarios  # noqa: PLC0415 - only where there is a scenario

    return scenarios(collector, obj)


# --- fixtures ---


class Later:
    """What a fixture gives, before there is a loop to make the real one in; while the test runs it does what that does.

    Args:
        name: of the fixture.
        swarm: what the test is played with.
    """

    def __init__(self, name: str, swarm: object) -> None:
        self.name = name
        self.swarm = swarm
        self.real: Any = None

    def __getattr__(self, name: str) -> Any:
        __tracebackhide__ = True
        return getattr(self._there(), name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Do what the real one does."""
        __tracebackhide__ = True
        return self._there()(*args, **options)

    def _there(self) -> Any:
        __tracebackhide__ = True
        if self.real is None:
            # An AttributeError, for those who only look whether something is there.
            raise AttributeError(f"`{self.name}` works while its test runs, not before: use it in the test")
        return self.real


@pytest.fixture
def swarm(request: pytest.FixtureRequest) -> Swarm:
    """The swarm that `play`, `connect` and `clock` start: the module's `swarm = Swarm(...)`.

    Write a fixture of this name for another one.
    """
    found: Swarm | None = getattr(request.module, "swarm", None)
    if found is None:
        pytest.fail(
            f"{request.path.name} has no `swarm = Swarm(agents=[...], tools=[...])`, and there is no fixture `swarm`",
            pytrace=False,
        )
    return found


@pytest.fixture
def play(swarm: Swarm) -> Play:
    """A swarm that runs, to be talked to and to be asked what happened: `async def test_it(play):`.

    `await play.client("alice")` connects a client, `await play.system.ask("writer", Draft(...))` asks an agent,
    `play.check("it is short", len(text) < 280)` notes what should be so, `await play.expect("alice -> writer: draft")`
    waits for a message. The swarm is the module's `swarm`, on a real server; with @pytest.mark.simulated it is in a
    simulation.
    """
    return Later("play", swarm)  # type: ignore[return-value]


@pytest.fixture
def connect(swarm: Swarm) -> Callable[[str], Awaitable[PlayClient]]:
    """What connects a client to the swarm of `play`, until the test ends.

    `alice = await connect("alice")`, and then `await alice.request("draft", niche="tea")`.
    """
    return Later("connect", swarm)


@pytest.fixture
def clock(swarm: Swarm) -> Clock:
    """The time of the swarm, virtual in a simulation: `clock.now()`, `await clock.at(60)`, `await clock.sleep(3600)`.

    `now` and `at` are in seconds since the test began.
    """
    return Later("clock", swarm)  # type: ignore[return-value]


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Run an async test that uses one of the fixtures; all others are none of ours."""
    # By value, not by name: who has a fixture of the same name gets that one, and somebody else runs the test.
    waiting = [each for each in pyfuncitem.funcargs.values() if isinstance(each, Later)]
    if not waiting:
        return (yield)
    given = pyfuncitem.obj
    # pytest-asyncio, in its auto mode, has made a plain function of it.
    function = given if inspect.iscoroutinefunction(given) else inspect.unwrap(given)
    if not inspect.iscoroutinefunction(function) or hasattr(given, "hypothesis"):
        names = ", ".join(sorted({each.name for each in waiting}))
        pytest.fail(f"{names}: for a test that is an `async def`, without @given", pytrace=False)
    from grami_actors.scenario.items import Played  # noqa: PLC0415 - only where there is something to play

    # A plain function takes its place, so that no other plugin wants to run it on a loop of its own.
    pyfuncitem.obj = Played(pyfuncitem, function, waiting)
    try:
        return (yield)
    finally:
        pyfuncitem.obj = given
