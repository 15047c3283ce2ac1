"""What pytest runs: scenarios, and async tests that play with a swarm, live and in simulation. Floor 16."""

from __future__ import annotations

import asyncio
import inspect
import os
import shlex
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest

from grami_actors.errors import ConfigError, GramiError
from grami_actors.manager import GrowthManager
from grami_actors.scenario.explore import as_text, play_on, shortest_of, texts, unused
from grami_actors.scenario.lines import how_short, never_struck
from grami_actors.scenario.play import CheckFailed, Mode, Play, Result, ScenarioFunction, modes_of, seeds_of
from grami_actors.scenario.plugin import SEEDS, Later
from grami_actors.scenario.pristine import Pristine
from grami_actors.scenario.script import load, problem_of
from grami_actors.scenario.stage import acted, play_one
from grami_actors.simulation.rules import PROFILES
from grami_actors.simulation.run import Runner, series
from grami_actors.simulation.world import Setup
from grami_actors.swarm import Swarm

# --- scenarios ---


class ScenarioFile(pytest.Module):
    """A scenario script, loaded as ``grami run`` loads it.

    Attributes:
        pristine: its state when it was loaded, with which each of its scenarios begins.
    """

    pristine: Pristine

    def _getobj(self) -> ModuleType:
        try:
            with _model("live"):
                module = load(self.path).module
        except ConfigError as error:
            raise self.CollectError(str(error)) from None
        self.pristine = Pristine(module)
        return module


def scenarios(module: pytest.Module, function: FunctionType) -> list[pytest.Item]:
    """The tests of a scenario: one for each mode that is wanted."""
    problem = problem_of(function)
    if any(each.name == "parametrize" for each in getattr(function, "pytestmark", ())):
        problem = "is called with `play` and nothing else: parametrize a test"
    if problem:
        raise module.CollectError(f"{module.path}: the scenario {function.__name__} {problem}")
    option = module.config.option
    wanted = {"live": option.grami_live, "simulated": option.grami_seeds != 0}
    return [
        Scenario.from_parent(module, name=f"{function.__name__}[{mode}]", function=function, mode=mode)
        for mode in modes_of(function)
        if wanted[mode]
    ]


class Scenario(pytest.Item):
    """A scenario, to be played in one mode.

    Args:
        name: of the test.
        parent: the file.
        function: the scenario.
        mode: where it is played.
    """

    def __init__(self, name: str, parent: pytest.Module, *, function: ScenarioFunction, mode: Mode) -> None:
        super().__init__(name, parent)
        self.obj = function
        self._file = parent
        self._mode = mode
        marks = getattr(function, "pytestmark", ())
        self.own_markers.extend(each for each in marks if mode == "simulated" or each.name != "simulated")
        if mode == "simulated" and self.get_closest_marker("simulated") is None:
            self.add_marker("simulated")

    def runtest(self) -> None:
        """Play it."""
        module = self._file.obj
        swarm = _checked(getattr(module, "swarm", None), self.path)
        pristine = self._file.pristine if isinstance(self._file, ScenarioFile) else Pristine(module)
        if self._mode == "live":
            problem = play_live(self, swarm, self.obj, pristine)
        else:
            again = ("grami", "run", os.path.relpath(self.path), self.obj.__name__, "--simulate", "--seed")
            problem = play_simulated(
                self, swarm, self.obj, pristine, again if isinstance(self._file, ScenarioFile) else ()
            )
        if problem:
            pytest.fail(problem, pytrace=False)

    def reportinfo(self) -> tuple[Path, int, str]:
        """Where it stands."""
        return self.path, inspect.unwrap(self.obj).__code__.co_firstlineno - 1, self.name


# --- tests ---


class Clock:
    """The time of a swarm, virtual in a simulation."""

    def __init__(self, play: Play) -> None:
        self._play = play

    def now(self) -> float:
        """Seconds since the test began."""
        return self._play.now()

    async def at(self, seconds: float) -> None:
        """Wait until so many seconds have passed since the test began; no longer if they have."""
        await self._play.at(seconds)

    async def sleep(self, seconds: float) -> None:
        """Wait for so many seconds."""
        await asyncio.sleep(seconds)


class Played:
    """An async test as a plain function, which plays it: on a real server, or in simulation if it is marked so.

    Args:
        item: the test.
        function: of the test.
        waiting: what its fixtures gave, for which there is a real one as long as it runs.
    """

    def __init__(
        self, item: pytest.Function, function: Callable[..., Coroutine[Any, Any, Any]], waiting: list[Later]
    ) -> None:
        self._item = item
        self._function = function
        self._waiting = waiting
        self._raised: BaseException | None = None

    def __call__(self, **given: Any) -> None:
        """Play it.

        Raises:
            BaseException: what the test raises; in simulation, in the shortest run found that fails.
        """
        item = self._item

        async def test(play: Play) -> None:
            await self._act(play, given)

        swarm = _checked(self._waiting[0].swarm, item.path)
        pristine = Pristine(item.module)  # as its fixtures left them
        if item.get_closest_marker("simulated") is not None:
            problem = play_simulated(item, swarm, test, pristine)
            if problem and self._raised is not None:
                self._raised.add_note(problem)
        elif item.config.option.grami_live:
            problem = play_live(item, swarm, test, pristine)
        else:
            pytest.skip("--no-grami-live")
        if problem:
            raise self._raised or pytest.fail.Exception(problem, pytrace=False)

    async def _act(self, play: Play, given: dict[str, Any]) -> None:
        self._raised = None
        real = {"play": play, "connect": play.client, "clock": Clock(play)}
        for each in self._waiting:
            each.real = real[each.name]
        try:
            await self._function(
                **{name: each.real if isinstance(each, Later) else each for name, each in given.items()}
            )
        except CheckFailed:
            raise
        except pytest.fail.Exception as error:  # no Exception, for which alone a run fails
            self._raised = error
            raise AssertionError(error.msg) from error
        except (Exception, pytest.skip.Exception) as error:
            self._raised = error
            raise
        finally:
            for each in self._waiting:
                each.real = None


# --- playing ---


def play_live(item: pytest.Item, swarm: Swarm, function: ScenarioFunction, pristine: Pristine) -> str:
    """Play on a real server; what was wrong, or nothing."""
    shown: list[Any] = []

    async def on_manager() -> Result:
        async with GrowthManager(swarm, publish=False) as manager:
            return await play_one(manager, function, shown.append)

    try:
        with _untouched(pristine), _model("live"):
            result = asyncio.run(on_manager())
    except GramiError as error:
        return f"the swarm did not start or stop: {error.error_code}: {error.message}"
    _warn(item, result.unused)
    if result.passed:
        return ""
    item.add_report_section("call", "transcript", "\n".join(texts(shown)))
    failed = [as_text(each).strip() for each in result.checks if not each.passed]
    return "\n".join([*failed, *([result.error] if result.error else [])])


def play_simulated(
    item: pytest.Item, swarm: Swarm, function: ScenarioFunction, pristine: Pristine, again: Sequence[str] = ()
) -> str:
    """Play in simulation until a seed fails; what was wrong, or nothing.

    Args:
        item: the test, whose options and mark say which seeds, and with which faults.
        swarm: what is played with.
        function: what is played.
        pristine: the state with which each run begins.
        again: the command that plays a seed again, without the seed; that of pytest if it is not given.
    """
    seeds, faults = _asked(item, seeds_of(function))

    def make(show: Callable[[Any], None] | None) -> Runner:
        return Runner(Setup(swarm, faults), acted(function, show), pristine.restore)

    with _untouched(pristine), _model("simulated"), series():
        outcomes = play_on(make(None), seeds)
        last = outcomes[-1]
        if last.failure is None:
            _warn(item, unused(outcomes))
            return ""
        shortest, transcript = shortest_of(make, last)
    failure = shortest.failure or last.failure
    command = [*(again or ("pytest", item.nodeid, "--grami-seed")), str(last.seed)]
    if faults != "none":
        command += ["--faults" if again else "--grami-faults", faults]
    return "\n".join(
        [
            f"seed {last.seed} fails: {failure.kind}: {failure.text}",
            *transcript,
            how_short(len(shortest.decisions.picks), len(shortest.decisions.strikes)),
            *([f"faults {never_struck(left)}"] if (left := unused(outcomes)) else []),
            f"play it again: {shlex.join(command)}",
        ]
    )


def _warn(item: pytest.Item, faults: Sequence[str]) -> None:
    if faults:
        item.warn(pytest.PytestWarning(f"faults {never_struck(faults)}"))


def _asked(item: pytest.Item, enough: int | None) -> tuple[range, str]:
    """The seeds, and the profile of faults. What a long scenario says is ``enough`` holds for a whole session, too."""
    option = item.config.option
    mark = item.get_closest_marker("simulated")
    try:
        seeds, faults = (SEEDS, "none") if mark is None else _simulated(*mark.args, **mark.kwargs)
    except TypeError as error:
        raise pytest.fail.Exception(f"@pytest.mark.{str(error).lstrip('_')}", pytrace=False) from None
    seeds = seeds if option.grami_seeds is None else option.grami_seeds
    seeds = seeds if enough is None else min(seeds, enough)
    faults = option.grami_faults or faults
    if faults not in PROFILES:
        pytest.fail(f"{faults!r} is no profile of faults; there are {', '.join(PROFILES)}", pytrace=False)
    if not seeds:
        pytest.skip("no seeds to play")
    one = option.grami_seed
    return range(seeds) if one is None else range(one, one + 1), faults


def _simulated(seeds: int = SEEDS, faults: str = "none") -> tuple[int, str]:
    return seeds, faults


def _checked(swarm: object, path: Path) -> Swarm:
    if not isinstance(swarm, Swarm):
        pytest.fail(f"{path.name} has no `swarm = Swarm(agents=[...], tools=[...])`", pytrace=False)
    return swarm


@contextmanager
def _untouched(pristine: Pristine) -> Iterator[None]:
    """Leave nothing to the next test of what this one changes in modules."""
    pristine.restore()
    try:
        yield
    finally:
        pristine.restore()


@contextmanager
def _model(mode: Mode) -> Iterator[None]:
    """Let scripted answers stand for the model: in a simulation always, live if no other one is asked for."""
    with pytest.MonkeyPatch.context() as patch:
        if mode == "simulated" or not os.environ.get("GRAMI_MODEL"):
            patch.setenv("GRAMI_MODEL", "scripted")
        yield
