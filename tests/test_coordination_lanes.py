"""Every pattern from an agent on any lane, with members on all of them."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from grami_actors import ActorSystem, Agent, GramiError, Message, Reject, handles
from grami_actors.coordination import (
    AnswerQuestion,
    Ballot,
    Bidder,
    Blackboard,
    Journal,
    Judge,
    NextSpeaker,
    People,
    Question,
    Rounds,
    Rules,
    SagaFailed,
    Sagas,
    Speak,
    Step,
    ask_person,
    contract,
    debate,
    gather,
    group_chat,
    handoff,
    map_reduce,
    parallel,
    pipeline,
    saga,
    update,
    vote,
)
from tests.conftest import on, running

LANES = ("loop", "thread", "process")
MEMBERS = [f"member_{lane}" for lane in LANES]


class Go(Message, tag="lanes.go"):
    pattern: str


class Do(Message, tag="lanes.do"):
    key: str


class Undo(Message, tag="lanes.undo"):
    key: str


class Member(Bidder):
    """Does whatever a pattern asks of a member."""

    @handles(Do)
    def do(self, do: Do) -> str:
        if do.key.endswith("/no"):
            raise Reject("AGENT_EXECUTION_FAILED", "no")
        return do.key

    @handles(Undo)
    def undo(self, undo: Undo) -> None:
        """Nothing is left of it."""

    @handles(Speak)
    def speak(self, speak: Speak) -> str:
        return f"{self.name} {len(speak.turns)}"

    @handles(NextSpeaker)
    def choose(self, asked: NextSpeaker) -> str:
        return asked.members[-1]

    @handles(Judge)
    def judge(self, judge: Judge) -> str:
        return f"after {len(judge.turns)}"

    @handles(Ballot)
    def vote(self, ballot: Ballot) -> str:
        return ballot.options[0]

    def bid(self, call: Any) -> int:
        return 1 + MEMBERS.index(self.name)

    def perform(self, award: Any) -> str:
        return f"{self.name} did {award.task}"


class ThreadMember(Member):
    lane = "thread"


class ProcessMember(Member):
    lane = "process"


class Caller(Agent):
    """Has several work together, in each way that there is."""

    @handles(Go)
    async def go(self, go: Go) -> Any:
        return await getattr(self, f"by_{go.pattern}")()

    async def by_pipeline(self) -> Any:
        return await pipeline(self, Do("x"), MEMBERS[0], *((name, Do) for name in MEMBERS[1:]))

    async def by_parallel(self) -> Any:
        return [each.value for each in await parallel(self, dict.fromkeys(MEMBERS, Do("x")))]

    async def by_gather(self) -> Any:
        return [each.value for each in await gather(self, dict.fromkeys(MEMBERS, Do("x")), want=2)]

    async def by_map_reduce(self) -> Any:
        return await map_reduce(self, MEMBERS[2], map(Do, "abc"), operator.add, "")

    async def by_group_chat(self) -> Any:
        return (await group_chat(self, MEMBERS, "?", MEMBERS[1], Rules(turns=2)))[-1].said

    async def by_debate(self) -> Any:
        return (await debate(self, MEMBERS, MEMBERS[2], "?", Rounds(most=2))).decision

    async def by_vote(self) -> Any:
        return (await vote(self, MEMBERS, Ballot("?", ("yes", "no")), quorum=3)).tally.counts

    async def by_contract(self) -> Any:
        return await contract(self, "it", MEMBERS[::-1])

    async def by_topic(self) -> Any:
        return await contract(self, "it", "nobody.hears.it")

    async def by_update(self) -> Any:
        return (await update(self, "board", "n", lambda n: (n or 0) + 1)).value

    async def by_ask_person(self) -> Any:
        return (await ask_person(self, Question("q", "?"))).answer

    async def by_saga(self) -> Any:
        return len(await saga(self, [Step(name, name, Do, Undo) for name in MEMBERS]))

    async def by_failing(self) -> Any:
        try:
            return await saga(self, [*(Step(name, name, Do, Undo) for name in MEMBERS), Step("no", MEMBERS[2], Do)])
        except SagaFailed as failed:
            return failed.failed, failed.undone, failed.stuck

    async def by_handoff(self) -> None:
        handoff(self, MEMBERS[1], Do("x"))


class ThreadCaller(Caller):
    lane = "thread"


class ProcessCaller(Caller):
    lane = "process"


FOUND = {
    "pipeline": "x",
    "parallel": ["x", "x", "x"],
    "gather": ["x", "x"],
    "map_reduce": "abc",
    "group_chat": "member_process 1",
    "debate": "after 6",
    "vote": {"yes": 3.0, "no": 0.0},
    "contract": "member_loop did it",
    "update": 1,
    "ask_person": "yes",
    "saga": 3,
    "failing": ("no", tuple(MEMBERS[::-1]), {}),
}


@asynccontextmanager
async def cast(lane: str) -> AsyncIterator[ActorSystem]:
    async with running() as system:
        for kind, name in zip((Member, ThreadMember, ProcessMember), MEMBERS, strict=True):
            await system.spawn(kind, name=name)
        await system.spawn(Blackboard, Journal(), name="board")
        await system.spawn(People, Journal(), name="people")
        await system.spawn(Sagas, Journal(), name="sagas")
        callers = {"loop": Caller, "thread": ThreadCaller, "process": ProcessCaller}
        await system.spawn(callers[lane], name="caller")
        yield system


async def person_answers(system: ActorSystem) -> None:
    while True:
        try:
            await system.ask("people", AnswerQuestion("q", "yes"))
        except GramiError:  # nobody has asked it yet
            await asyncio.sleep(0)
            continue
        return


@pytest.mark.slow
@pytest.mark.parametrize("lane", LANES)
async def test_every_pattern_is_usable_from_an_agent_on_any_lane(lane: str) -> None:
    async with cast(lane) as system:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(person_answers(system))
            assert {pattern: await system.ask("caller", Go(pattern)) for pattern in FOUND} == FOUND
        with pytest.raises(GramiError, match="nobody was asked"):
            await system.ask("caller", Go("topic"))


@pytest.mark.parametrize("lane", LANES[:2])
async def test_a_request_is_handed_over_from_any_lane_but_that_of_processes(lane: str) -> None:
    async with running() as system:
        await system.spawn(on(lane, Caller), name="caller")
        await system.spawn(Member, name=MEMBERS[1])
        assert await system.ask("caller", Go("handoff")) == "x"
