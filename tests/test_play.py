"""What a scenario can ask for: time, expectations, checks; and how its end is told."""

from __future__ import annotations

import asyncio
import gc
import re
from collections.abc import Awaitable, Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grami_actors import Agent, DeadlineExceeded, Message, Swarm, handles
from grami_actors.scenario.play import Play
from grami_actors.scenario.stage import acted, play_one
from grami_actors.simulation.run import Failure, Runner, series
from grami_actors.simulation.schedule import Schedule
from grami_actors.simulation.world import Setup
from tests.conftest import serving

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
    failure = Runner(Setup(Swarm([Sleeper])), acted(script)).run(Schedule(seed)).failure  # type: ignore[arg-type]
    return None if failure is None else Failure(failure.kind, failure.text)


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
        (_expects, "expected sleeper: later within 3 s (there was nothing like it)"),
        (_eventually, "it rains"),
        (_never, "never sleeper, during 5 s (somebody -> sleeper: later seconds=1.0)"),
    ],
)
def test_what_does_not_come_or_comes_although_it_should_not_fails_the_check(script: Script, text: str) -> None:
    assert failure_of(script) == Failure("check", text)


@pytest.mark.parametrize(
    ("pattern", "there_was"),
    [
        ("ann -> sleepr: later", "there was ann -> sleeper: later"),
        ("ann -> sleeper: latter", "there was ann -> sleeper: later"),
        ("bob -> sleeper", "there was somebody -> sleeper: later, ann -> sleeper: later"),
        ("bob -> nobody: never", "there was nothing like it"),
    ],
)
def test_what_was_there_instead_of_what_is_expected_is_told(pattern: str, there_was: str) -> None:
    async def script(play: Play) -> None:
        ann = await play.client("ann")
        await play.system.ask("sleeper", Later(0.0))
        await ann.request(Later(0.0))
        await play.expect(pattern, within=1)

    assert failure_of(script) == Failure("check", f"expected {pattern} within 1 s ({there_was})")


def test_a_message_of_the_kind_that_is_not_the_one_that_is_meant_is_told() -> None:
    async def script(play: Play) -> None:
        await play.system.ask("sleeper", Later(0.0))
        await play.expect("sleeper: later", lambda told: told.data["seconds"] == 9.0, within=1)

    last = "`where` holds for none of 1 message, the last: somebody -> sleeper: later seconds=0.0"
    assert failure_of(script) == Failure("check", f"expected sleeper: later within 1 s ({last})")


def test_of_a_message_whose_handler_is_at_work_that_is_told() -> None:
    async def script(play: Play) -> None:
        play.system.tell("sleeper", Later(9.0))
        await play.eventually("sleeper: later", within=1)

    at_work = "sleeper is still at work on later; a message is told when its handler has ended"
    assert failure_of(script) == Failure("check", f"sleeper: later, within 1 s ({at_work})")


def test_a_condition_without_a_name_is_told_by_its_line() -> None:
    async def script(play: Play) -> None:
        await play.eventually(lambda: False, within=1)

    failure = failure_of(script)
    assert failure is not None
    assert re.fullmatch(r"what \S*test_play.py:\d+ asks, within 1 s", failure.text)


def test_what_is_neither_a_pattern_nor_a_function_is_refused() -> None:
    async def script(play: Play) -> None:
        await play.eventually(play.checks == [], within=1)  # type: ignore[arg-type]

    failure = failure_of(script)
    assert failure is not None
    assert failure.text.startswith("TypeError: True is no pattern and no function: write `lambda: ...`")


async def _forgets_to_expect(play: Play) -> None:
    play.expect("sleeper: later")


async def _forgets_to_ask(play: Play) -> None:
    ann = await play.client("ann")
    ann.request(Later(0.0))


@pytest.mark.parametrize(("script", "name"), [(_forgets_to_expect, "expect"), (_forgets_to_ask, "request")])
@pytest.mark.filterwarnings("error")
def test_a_call_that_nobody_awaits_fails_the_scenario_and_is_named(script: Script, name: str) -> None:
    failure = failure_of(script)
    assert failure is not None
    assert re.fullmatch(rf"{name}\(\) was never awaited \(test_play.py:\d+\)", failure.text)


@pytest.mark.parametrize("seed", range(5))
def test_what_a_task_awaits_is_awaited(seed: int) -> None:
    async def script(play: Play) -> None:
        ann = await play.client("ann")
        tasks = [asyncio.create_task(ann.request(Later(0.0)))]
        await asyncio.gather(ann.request(Later(0.0)), *tasks, play.at(1.0))
        ann.start(Later(0.0))
        tasks.append(asyncio.create_task(ann.request(Later(0.0))))

    assert failure_of(script, seed) is None


def test_what_waits_when_a_scenario_ends_ends_without_an_error() -> None:
    ends: list[str] = []

    async def script(play: Play) -> None:
        ann = await play.client("ann")

        async def hear() -> None:
            async for _ in ann.subscribe("news"):
                pass

        tasks = [asyncio.create_task(hear()), asyncio.create_task(ann.request(Later(99.0)))]
        for each in tasks:
            each.add_done_callback(lambda task: ends.append("cancelled" if task.cancelled() else "failed"))
        await play.at(1.0)

    assert failure_of(script) is None
    assert ends == ["cancelled", "cancelled"]


def test_who_has_left_asks_nothing_more() -> None:
    async def script(play: Play) -> None:
        ann = await play.client("ann")
        await ann.leave()
        await ann.request(Later(0.0))

    failure = failure_of(script)
    assert failure is not None
    assert failure.text.startswith("AGENT_UNAVAILABLE: ann has left (test_play.py:")


@pytest.mark.parametrize("seed", range(5))
def test_what_a_client_got_is_looked_at_when_it_comes(seed: int) -> None:
    async def script(play: Play) -> None:
        ann = await play.client("ann")
        heard: list[object] = []

        async def hear() -> None:
            async for event in ann.subscribe("news"):
                heard.append(event.data)  # noqa: PERF401 - one at a time

        hearing = asyncio.create_task(hear())
        await play.at(1.0)
        await ann.publish("news", "rain")
        await play.eventually(lambda: heard == ["rain"], within=60)
        assert play.now() == pytest.approx(1.0)
        pending = ann.start(Later(2.0))
        await play.eventually(lambda: pending.done, within=60)
        assert play.now() == pytest.approx(3.0)
        hearing.cancel()

    assert failure_of(script, seed) is None


@pytest.mark.parametrize("seed", range(5))
def test_faults_know_clients_by_their_names(seed: int) -> None:
    async def script(play: Play) -> None:
        ann, bob = await play.client("ann"), await play.client("bob", retry_for=5.0)
        delay = play.faults.delay("bob", "sleeper", 1.0, times=None)
        parted = play.faults.partition(["ann"], "sleep*")
        for _ in range(2):
            with pytest.raises(DeadlineExceeded):
                await ann.request(Later(0.0), timeout=0.5)
            assert await bob.request(Later(0.0), timeout=2.0) == 0.0
            bob.cut()
            await play.at(play.now() + 3.0)
        assert (delay.struck, parted.struck) == (2, 2)
        assert {each.names for each in play.transcript.faults() if each.fault == "delay"} == {
            ("connection-2", "sleeper"),
            ("connection-3", "sleeper"),
        }

    assert failure_of(script, seed) is None


async def _reads_no_more(play: Play) -> None:
    ann = await play.client("ann")
    ann.pause()
    pending = ann.start(Later(0.1))
    await play.expect("ann -> sleeper: later")
    await play.at(play.now() + 0.2)
    play.check("nothing came", not pending.done)
    ann.resume()
    play.check("it had only not been read", await pending == 0.1)


@pytest.mark.parametrize("seed", range(5))
def test_a_client_that_reads_no_more_gets_nothing(seed: int) -> None:
    assert failure_of(_reads_no_more, seed) is None


@pytest.mark.slow
@pytest.mark.parametrize("script", [_reads_no_more])
async def test_nor_does_it_from_a_real_server(script: Script) -> None:
    async with serving(Swarm([Sleeper])) as manager:
        result = await play_one(manager, script, lambda _: None)  # type: ignore[arg-type]
        assert result.passed, result


async def _is_cut_and_comes_back(play: Play) -> None:
    ann, bob = await play.client("ann"), await play.client("bob", retry_for=5.0)
    heard: list[object] = []

    async def hear() -> None:
        async for event in bob.subscribe("news"):
            heard.append(event.data)  # noqa: PERF401 - one at a time

    hearing = asyncio.create_task(hear())
    await play.at(0.2)
    await ann.publish("news", 1)
    await play.eventually(lambda: heard == [1])
    bob.cut()
    await ann.publish("news", 2)
    await play.eventually(lambda: heard == [1, 2], text="bob comes back, and has what he missed")
    play.check("he asks again", await bob.request(Later(0.0)) == 0.0)
    play.check("by his name", play.transcript.count("bob -> sleeper") == 1)
    hearing.cancel()


@pytest.mark.parametrize("seed", range(20))
def test_a_client_that_is_cut_off_comes_back_if_it_is_to(seed: int) -> None:
    assert failure_of(_is_cut_and_comes_back, seed) is None


@pytest.mark.slow
async def test_it_comes_back_to_a_real_server_too() -> None:
    async with serving(Swarm([Sleeper])) as manager:
        result = await play_one(manager, _is_cut_and_comes_back, lambda _: None)  # type: ignore[arg-type]
        assert result.passed, result


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

    assert failure_of(script) == Failure("check", "one (it is empty)")
    assert seen == ["after the check"]


def test_an_error_is_told_with_its_place() -> None:
    async def script(play: Play) -> None:
        raise LookupError("nobody")

    failure = failure_of(script)
    assert failure is not None
    assert failure.kind == "error"
    assert failure.text.startswith("LookupError: nobody (test_play.py:")


def test_the_place_of_an_error_is_the_line_of_the_script_whoever_raised_it() -> None:
    async def script(play: Play) -> None:
        async with asyncio.timeout(1.0):
            await play.at(2.0)

    failure = failure_of(script)
    assert failure is not None
    assert failure.text.startswith("TimeoutError (test_play.py:")


def test_the_errors_of_a_group_are_told_one_by_one() -> None:
    async def script(play: Play) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(play.system.ask("nobody", Later(0.0)))

    failure = failure_of(script)
    assert failure is not None
    assert failure.text.startswith("DESTINATION_NOT_FOUND: no agent or tool is named 'nobody' (test_play.py:")


def test_garbage_is_not_collected_in_a_run() -> None:
    during: list[bool] = []

    async def script(_play: Play) -> None:
        during.append(gc.isenabled())

    assert failure_of(script) is None
    assert during == [False]
    assert gc.isenabled()
