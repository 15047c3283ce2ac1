"""The two places where a scenario is played: a real server, and a simulated world. Floor 16."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from grami_actors.client import Client, connect
from grami_actors.history import Remark
from grami_actors.manager import GrowthManager
from grami_actors.scenario.play import Ending, Mode, Play, Result, ScenarioFunction, perform
from grami_actors.simulation.run import Act, Failure
from grami_actors.simulation.world import Scene, World


class LiveStage(Scene):
    """A real server, and what happens on it from now on.

    Args:
        manager: the server, running.
        watch: called with each entry of its history, as it comes.
    """

    mode: Mode = "live"

    def __init__(self, manager: GrowthManager, watch: Callable[[Any], object] | None = None) -> None:
        super().__init__(manager.system, watch)
        self.manager = manager

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end_faults()
        self.history.end()

    def client(self, retry_for: float = 0.0) -> Client:
        """A client that has not connected yet; seconds in which it tries to come back when it is cut off."""
        return connect(self.manager.url, retry_for=retry_for)


async def play_one(manager: GrowthManager, function: ScenarioFunction, watch: Callable[[Any], None]) -> Result:
    """Play one scenario on a real server and say how it went."""
    play: Play | None = None

    def note(entry: Any) -> None:
        if play is not None:
            play.note(entry)

    with LiveStage(manager, note) as stage:
        stage.history.add(Remark(at=stage.history.now(), who="scenario", text=function.__name__))
        play = Play(stage, watch)
        ending = await perform(play, function)
        seconds = play.now()
    told = ending.passed, ending.checks, ending.error, seconds, play.lines, stage.unused
    return Result(function.__name__, "live", *told)


def acted(function: ScenarioFunction, watch: Callable[[Any], None] | None = None) -> Act:
    """A scenario, as a simulation plays it.

    Args:
        function: the scenario.
        watch: gets what it shows, as it comes.
    """

    async def act(world: World) -> Failure | None:
        play = Play(world, watch)
        world.on_entry = play.note if watch is not None else None
        return _failure(await perform(play, function))

    return act


def _failure(ending: Ending) -> Failure | None:
    if ending.passed:
        return None
    if ending.error:
        return Failure(ending.kind, ending.error, ending.error.partition(":")[0])
    failed = next(check for check in ending.checks if not check.passed)
    details = f" ({failed.details})" if failed.details else ""
    return Failure(ending.kind, f"{failed.text}{details}", failed.text)
