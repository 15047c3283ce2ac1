"""What a scenario can ask for: time, expectations, checks; and how its end is told."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grami_actors import Agent, Message, Swarm, handles
from grami_actors.scenario.play import Play
from grami_actors.scenario.stage import acted
from grami_actors.simulation.run import Failure, Runner, series
from grami_actors.simulation.schedule import Schedule
from grami_actors.simulation.world import Setup

Script = Callable[[Play], Awaitable[None]]


class Later(Message):
    seconds: float = 0.0


class Sleeper(Agent):
    @handles(Later)
    async def later(self, message: Later) -> float:
        await asyncio.sleep(message.seconds)
        return message.seconds


@pytest.fixture(autouse=True, scope="module")
def in_series() -> Iterator[None]:
    with series():
        yield


def failure_of(script: Script, seed: int = 0) -> Failure | None:
    return Runner(Setup(Swarm([Sleeper])), acted(script)).run(Schedule(seed)).failure  # type: ignore[arg-type]


@given(st.lists(st.floats(0, 8e4), max_size=4), st.integers(0, 20))
def test_at_never_goes_back_in_time(times: list[float], seed: int) -> None:
    async def script(play: Play) -> None:
        latest = 0.0
        for each in times:
            await play.at(each)
            latest = max(latest, each)
            assert play.now() == pytest.approx(latest)

    assert failure_of(script, seed) is None


@pytest.mark.parametrize("seed", range(5))
def test_what_is_expected_may_have_come_or_come_later_and_is_the_first(seed: int) -> None:
    async def script(play: Play) -> None:
        play.system.tell("sleeper", Later(2.0))
        play.system.tell("sleeper", Later(1.0))
        first = await play.expect("sleeper: later")
        assert (first.data["seconds"], play.now()) == (2.0, pytest.approx(2.0))
        second = await play.expect("sleeper", lambda told: told.data["seconds"] == 1.0)
        assert (second.taken - first.taken, play.now()) == (pytest.approx(2.0), pytest.approx(3.0))
        assert await play.expect("sleeper", within=0.0) == first

    assert failure_of(script, seed) is None


async def _expects(play: Play) -> None:
    await play.expect("sleeper: later", within=3)


async def _eventually(play: Play) -> None:
    await play.eventually(lambda: False, within=2, text="it rains")


async def _never(play: Play) -> None:
    play.system.tell("sleeper", Later(1.0))
    await play.never("sleeper", during=5)


@pytest.mark.parametrize(
    ("script", "text"),
    [
        (_expects, "expected sleeper: later within 3 s"),
        (_eventually, "it rains"),
        (_never, "never sleeper, during 5 s"),
    ],
)
def test_what_does_not_come_or_comes_although_it_should_not_fails_the_check(script: Script, text: str) -> None:
    assert failure_of(script) == Failure("check", text, text)


def test_what_is_eventually_so_may_be_asked_of_an_agent() -> None:
    async def script(play: Play) -> None:
        async def asked() -> bool:
            return float(await play.system.ask("sleeper", Later(0.5))) == 0.5

        await play.eventually(asked)
        await play.never(lambda: play.now() > 9, during=1)

    assert failure_of(script) is None


def test_what_holds_at_the_last_moment_only_is_seen() -> None:
    async def script(play: Play) -> None:
        begun = play.now()
        await play.eventually(lambda: play.now() >= begun + 2, within=2)

    assert failure_of(script) is None


def test_a_requirement_ends_the_scenario_and_a_check_does_not() -> None:
    seen: list[str] = []

    async def script(play: Play) -> None:
        play.check("one", condition=False, details="it is empty")
        seen.append("after the check")
        play.require("two", condition=False)
        seen.append("after the requirement")

    assert failure_of(script) == Failure("check", "one (it is empty)", "one")
    assert seen == ["after the check"]


def test_an_error_is_told_with_its_place() -> None:
    async def script(play: Play) -> None:
        raise LookupError("nobody")

    failure = failure_of(script)
    assert failure is not None
    assert failure.kind == "error"
    assert failure.text.startswith("LookupError: nobody (test_play.py:")


def test_garbage_is_not_collected_in_a_run() -> None:
    during: list[bool] = []

    async def script(_play: Play) -> None:
        during.append(gc.isenabled())

    assert failure_of(script) is None
    assert during == [False]
    assert gc.isenabled()
