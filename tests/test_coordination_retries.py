"""Asking again, and telling a topic: what the patterns share."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grami_actors import Agent, AgentUnavailable, DestinationNotFound, Message, Reject, handles
from grami_actors.coordination.blackboard import Blackboard, WriteEntry
from grami_actors.coordination.journal import Journal
from grami_actors.coordination.retries import Retries, ask_again, latest
from grami_actors.permissions import Permissions, Rule
from grami_actors.telemetry import DeadLetter
from tests.conftest import Gate, Recorder, running
from tests.test_coordination_contract_net import Doer

times = st.floats(0, 1e6)


@given(times, times, st.integers(1, 5000))
def test_a_pause_never_shrinks_and_never_exceeds_the_longest(shortest: float, more: float, failures: int) -> None:
    retries = Retries(shortest=shortest, longest=shortest + more)
    assert retries.pause(1) == shortest
    assert shortest <= retries.pause(failures) <= retries.pause(failures + 1) <= shortest + more


@pytest.mark.parametrize(
    "wrong",
    [{"tries": 0}, {"timeout": 0.0}, {"timeout": math.nan}, {"shortest": -1.0}, {"shortest": 2.0, "longest": 1}],
)
def test_retries_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="makes no sense"):
        Retries(**wrong)


class Work(Message, tag="test.work"):
    """Something that may be done twice."""


class Fragile(Agent):
    """Hangs until it is killed, the first time."""

    def __init__(self, gates: list[Gate]) -> None:
        self.gates = gates

    @handles(Work)
    async def work(self, _: Work) -> str:
        if self.gates:
            await self.gates.pop().wait_async()
        return "done"


async def test_whoever_is_killed_is_asked_again() -> None:
    async with running() as system:
        gate = Gate()
        await system.spawn(Doer, name="doer")
        await system.spawn(Fragile, [gate], name="fragile")
        asked = asyncio.create_task(system.ask("doer", lambda by: ask_again(by, "fragile", Work(), None)))
        await gate.until_entered()
        system.kill("fragile")
        assert await asked == "done"


async def test_whoever_stays_away_is_an_error_as_soon_as_there_is_no_time_to_ask_again() -> None:
    asked = []

    class Away(Agent):
        @handles(Work)
        def work(self, _: Work) -> None:
            asked.append(self.name)
            raise AgentUnavailable("away")

    async with running() as system:
        await system.spawn(Doer, name="doer")
        await system.spawn(Away, name="away")
        with pytest.raises(AgentUnavailable, match="away"):
            await system.ask("doer", lambda by: ask_again(by, "away", Work(), 0.2))
        assert len(asked) == 3, "after 0, 0.05 and 0.15 seconds"


async def test_an_answer_that_is_an_error_and_a_name_that_leads_nowhere_are_not_asked_again() -> None:
    class No(Agent):
        @handles(Work)
        def work(self, _: Work) -> None:
            raise Reject("RATE_LIMITED", "no")

    async with running() as system:
        await system.spawn(Doer, name="doer")
        await system.spawn(No, name="no")
        with pytest.raises(Reject):
            await system.ask("doer", lambda by: ask_again(by, "no", Work(), None))
        with pytest.raises(DestinationNotFound):
            await system.ask("doer", lambda by: ask_again(by, "nowhere", Work(), None))


async def test_an_ask_ends_with_its_request_or_its_own_time_or_after_thirty_seconds() -> None:
    async with running(clock=lambda: 100.0) as system:
        await system.spawn(Doer, name="doer")

        async def times(by: Any) -> list[float]:
            return [latest(by, None), latest(by, 5.0), latest(by, 500.0)]

        assert await system.ask("doer", times, timeout=50.0) == [150.0, 105.0, 150.0]
        told: list[float] = []

        async def tell(by: Any) -> None:
            told.extend(await times(by))

        system.tell("doer", tell)
        await system.ask("doer", times)
        assert told == [130.0, 105.0, 600.0]


async def test_what_nobody_may_publish_is_a_dead_letter_and_was_written_nevertheless() -> None:
    rules = (Rule(send=("*",), to=("*",)),)
    async with running(permissions=Permissions(rules)) as system:
        letters = Recorder(system, DeadLetter)
        await system.spawn(Blackboard, Journal(), name="board")
        assert (await system.ask("board", WriteEntry("a", 1))).done
        letter = await letters.first(DeadLetter)
        assert (letter.to, letter.reason) == ("board", "rejected")
