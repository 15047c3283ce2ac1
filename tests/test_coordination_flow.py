"""Work that goes through several hands: pipelines, several at once, map and reduce, requests that are handed over."""

from __future__ import annotations

import asyncio
import itertools
import operator
import threading
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grami_actors import (
    Actor,
    Agent,
    AgentCrashed,
    AgentExecutionFailed,
    AgentUnavailable,
    AskCycle,
    Budget,
    Cancelled,
    DeadlineExceeded,
    DestinationNotFound,
    GramiError,
    MailboxFull,
    Message,
    Reject,
    Swarm,
    connect,
    emit,
    handles,
)
from grami_actors.coordination import Each, gather, handoff, map_reduce, parallel, pipeline
from grami_actors.coordination.asks import Asks
from grami_actors.errors import QuotaExceeded, RateLimited
from grami_actors.future import Future
from grami_actors.messages import Envelope
from grami_actors.telemetry import ConnectionClosed, DeadLetter, MessageSent, RequestFinished
from tests.conftest import LANES, Gate, Recorder, on, raw, running, serving, tell, turns_until
from tests.members import FAILURES, Caller, HandsOver, Member, playing

SOON = 0.02
"""Seconds after which a member that hangs is too slow."""


def names(outcomes: Any) -> list[str]:
    return [each.name for each in outcomes]


# --- pipeline ---


async def test_each_stage_of_a_pipeline_gets_what_the_one_before_answered() -> None:
    async with playing(one="answer", two="answer") as cast:
        assert await cast.play(lambda actor: pipeline(actor, "x", "one", ("two", str.upper))) == "two: ONE: X"
        assert cast.heard == [("one", "x"), ("two", "ONE: X")]


async def test_a_pipeline_without_stages_answers_its_message() -> None:
    async with playing() as cast:
        assert await cast.play(lambda actor: pipeline(actor, "x")) == "x"


@pytest.mark.parametrize(("way", "code"), FAILURES.items())
async def test_a_stage_that_gives_no_answer_ends_the_pipeline_with_an_error_that_names_it(way: str, code: str) -> None:
    async with playing(one="answer", two=way, three="answer") as cast:
        with pytest.raises(GramiError, match="stage 2 of 3, two: ") as caught:
            await cast.play(lambda actor: pipeline(actor, "x", "one", "two", "three", timeout=SOON))
        assert caught.value.error_code == code
        assert caught.value.__cause__ is not None
        assert "three" not in dict(cast.heard)


async def test_a_stage_may_be_a_ref() -> None:
    async with playing(one="answer") as cast:
        ref = cast.system.table.cells["one"].ref
        assert await cast.play(lambda actor: pipeline(actor, "x", ref)) == "one: x"


# --- parallel ---


async def test_asking_several_at_once_gives_what_became_of_each_in_the_order_of_asking() -> None:
    async with playing(good="answer", **{way: way for way in FAILURES}) as cast:
        asked = dict.fromkeys(cast.ways, "x")
        outcomes = await cast.play(lambda actor: parallel(actor, asked, timeout=SOON))
        assert names(outcomes) == ["good", *FAILURES]
        assert [each.ok for each in outcomes] == [True] + [False] * len(FAILURES)
        assert outcomes[0].value == "good: x"
        assert [each.error.error_code for each in outcomes[1:]] == list(FAILURES.values())


async def test_one_member_may_be_asked_twice() -> None:
    async with playing(one="answer") as cast:
        outcomes = await cast.play(lambda actor: parallel(actor, [("one", "x"), ("one", "y")]))
        assert [each.value for each in outcomes] == ["one: x", "one: y"]


async def test_asking_nobody_is_answered_at_once() -> None:
    async with playing() as cast:
        assert await cast.play(lambda actor: parallel(actor, {})) == []
        assert await cast.play(lambda actor: gather(actor, {})) == []


async def test_a_pool_of_all_is_a_member_like_others() -> None:
    async with playing(one="answer", two="answer") as cast:
        for name in ("one", "two"):
            cast.system.table.join("all", cast.system.table.cells[name], strategy="broadcast")
        [outcome] = await cast.play(lambda actor: parallel(actor, {"all": "x"}))
        assert outcome.value == ["one: x", "two: x"]


@pytest.mark.parametrize("lane", LANES)
async def test_several_are_asked_from_any_lane(lane: str) -> None:
    async with playing(one="answer", two="raise") as cast:
        await cast.system.spawn(on(lane, Caller), name="other")
        await cast.system.spawn(on("thread", Member), cast, name="far")
        cast.ways["far"] = ["answer"]
        work = partial(parallel, asked={"one": "x", "two": "x", "far": "x"})
        assert [each.ok for each in await cast.system.ask("other", work)] == [True, False, True]


# --- gather ---


async def test_all_answers_are_given_in_the_order_of_asking() -> None:
    async def release(actor: Member, _: Any) -> str:
        actor.cast.gate.opened.set()
        return "second"

    async with playing(slow="late", quick=release) as cast:
        outcomes = await cast.play(lambda actor: gather(actor, {"slow": "x", "quick": "x"}))
        assert [each.value for each in outcomes] == ["slow: x", "second"]


@pytest.mark.parametrize(("way", "code"), [each for each in FAILURES.items() if each[0] != "hang"])
async def test_where_all_are_wanted_the_first_failure_is_the_error_and_cancels_the_rest(way: str, code: str) -> None:
    async with playing(slow="hang", bad=way) as cast:
        with pytest.raises(GramiError, match=r"^bad: ") as caught:
            await cast.play(lambda actor: gather(actor, {"slow": "x", "bad": "x"}))
        assert caught.value.error_code == code
        assert cast.cancelled == [name for name, _ in cast.heard if name == "slow"]


async def test_the_first_answer_cancels_the_rest() -> None:
    async with playing(slow="hang", bad="raise", good="answer") as cast:
        [outcome] = await cast.play(lambda actor: gather(actor, {"slow": 1, "bad": 1, "good": 1}, want="first"))
        assert outcome.value == "good: 1"
        assert cast.cancelled == ["slow"]


async def test_where_none_answers_the_error_names_each() -> None:
    async with playing(**{way: way for way in FAILURES}) as cast:
        with pytest.raises(AgentExecutionFailed) as caught:
            await cast.play(lambda actor: gather(actor, dict.fromkeys(FAILURES, 1), want="first", timeout=SOON))
        assert all(f"{way}: " in caught.value.message for way in FAILURES)


async def test_an_error_of_several_has_their_code_if_it_is_the_same() -> None:
    async with playing(one="reject", two="reject") as cast:
        with pytest.raises(GramiError, match="one: not now; two: not now") as caught:
            await cast.play(lambda actor: gather(actor, {"one": 1, "two": 1}, want="first"))
        assert caught.value.error_code == "RATE_LIMITED"
        assert caught.value.retryable


async def test_an_error_that_names_a_member_says_when_to_try_again() -> None:
    async def limited(*_: Any) -> None:
        raise RateLimited("too many", retry_after=2.0)

    async with playing(one=limited) as cast:
        with pytest.raises(RateLimited, match="one: too many") as caught:
            await cast.play(lambda actor: gather(actor, {"one": 1}))
        assert caught.value.retry_after_ms == 2000


async def test_what_a_member_raised_is_an_error_of_ours_also_outside_of_handlers() -> None:
    async with playing(one="raise") as cast:
        actor = cast.system.table.cells["caller"].actor
        [outcome] = await parallel(actor, {"one": 1})
        assert isinstance(outcome.error, AgentExecutionFailed)
        assert outcome.error.message == "one failed: ValueError: broken"


async def test_a_quorum_that_cannot_be_reached_any_more_does_not_wait_for_the_rest() -> None:
    async with playing(slow="hang", one="reject", two="reject", good="answer") as cast:
        with pytest.raises(GramiError, match="one: not now; two: not now"):
            await cast.play(lambda actor: gather(actor, dict.fromkeys(cast.ways, 1), want=3))
        assert cast.cancelled == ["slow"]


@pytest.mark.parametrize("want", [0, 3, -1, "quorum"])
async def test_more_than_are_asked_or_none_cannot_be_wanted(want: Any) -> None:
    async with playing(one="answer", two="answer") as cast:
        with pytest.raises(ValueError, match="cannot be wanted"):
            await cast.play(lambda actor: gather(actor, {"one": 1, "two": 1}, want=want))
        assert cast.heard == []


async def test_an_answer_that_comes_after_the_decision_is_a_dead_letter() -> None:
    async with playing(late="late", good="answer") as cast:
        [outcome] = await cast.play(lambda actor: gather(actor, {"late": 1, "good": 1}, want="first"))
        assert outcome.name == "good"
        cast.gate.opened.set()
        letter = await cast.letters.first(DeadLetter)
        assert (letter.to, letter.reason) == ("late", "late_reply")


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["answer", "late", *FAILURES]), min_size=1, max_size=6), st.data())
def test_exactly_as_many_answers_as_are_wanted_or_an_error_and_nothing_left_at_work(
    ways: list[str], data: st.DataObject
) -> None:
    members = {f"m{number}": way for number, way in enumerate(ways)}
    want = data.draw(st.integers(1, len(ways)))
    good = [name for name, way in members.items() if way == "answer"]

    async def scenario() -> None:
        async with playing(**members) as cast:
            asked = dict.fromkeys(members, 1)
            try:
                outcomes = await cast.play(lambda actor: gather(actor, asked, want=want, timeout=SOON))
            except GramiError as error:
                assert len(good) < want
                named = [name for name in members if f"{name}: " in error.message]
                assert len(named) == len(members) - want + 1
                assert not set(named) & set(good)
            else:
                assert len(outcomes) == want <= len(good)
                assert names(outcomes) == [name for name in good if name in names(outcomes)]
            heard = [name for name, _ in cast.heard]
            assert sorted(heard) == sorted(set(heard)), "nobody was asked twice"

    asyncio.run(scenario())


async def test_a_cancelled_request_leaves_nothing_at_work() -> None:
    async with playing(one="hang", two="hang") as cast:
        for work in (
            lambda actor: gather(actor, {"one": 1, "two": 1}),
            lambda actor: parallel(actor, {"one": 1, "two": 1}),
            lambda actor: map_reduce(actor, "one", [1], operator.add, 0),
            lambda actor: pipeline(actor, 1, "two"),
        ):
            cast.heard.clear()
            cast.cancelled.clear()
            future = cast.system.table.cells["caller"].ask(work)
            await turns_until(lambda: cast.heard)
            future.cancel()
            await turns_until(cast.quiet)
            assert sorted(cast.cancelled) == sorted(name for name, _ in cast.heard)
            with pytest.raises(Cancelled):
                await future


async def test_the_deadline_of_the_request_ends_whatever_it_waits_for() -> None:
    async with playing(one="hang") as cast:
        with pytest.raises(DeadlineExceeded):
            await cast.play(lambda actor: gather(actor, {"one": 1}, timeout=10), timeout=SOON)
        assert cast.cancelled == ["one"]


async def test_a_caller_that_is_killed_leaves_nothing_at_work() -> None:
    async with playing(one="hang", two="hang") as cast:
        future = cast.system.table.cells["caller"].ask(lambda actor: gather(actor, {"one": 1, "two": 1}))
        await turns_until(lambda: len(cast.heard) == 2)
        cast.system.kill("caller")
        with pytest.raises(AgentCrashed):
            await future
        await turns_until(cast.quiet)
        assert sorted(cast.cancelled) == ["one", "two"]


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_a_member_that_is_killed_or_stopped_at_work_has_failed(how: str) -> None:
    async with playing(one="hang", two="answer") as cast:
        future = cast.system.table.cells["caller"].ask(lambda actor: parallel(actor, {"one": 1, "two": 1}))
        await turns_until(lambda: len(cast.heard) == 2)
        if how == "kill":
            cast.system.kill("one")
        else:
            await cast.system.stop("one", grace=0.01)
        one, two = await future
        assert isinstance(one.error, (AgentCrashed, AgentUnavailable))
        assert two.ok


async def test_the_budget_of_the_request_is_drawn_from() -> None:
    async with playing(one="answer", two="answer", three="answer") as cast:
        with pytest.raises(QuotaExceeded):
            await cast.play(lambda actor: gather(actor, dict.fromkeys(cast.ways, 1)), budget=Budget(messages=3))
        outcomes = await cast.play(lambda actor: gather(actor, {"one": 1}), budget=Budget(messages=2))
        assert outcomes[0].ok


async def test_a_member_that_asks_back_is_told_of_the_circle_and_hangs_nobody() -> None:
    async with playing(one="ask back", two="answer") as cast:
        one, two = await cast.play(lambda actor: parallel(actor, {"one": 1, "two": 1}))
        assert isinstance(one.error, AskCycle) or isinstance(one.error.__cause__, AskCycle)
        assert two.ok


async def test_who_has_answered_may_ask_the_one_who_asked() -> None:
    """The answer is there, and whoever waits for it has not woken yet: that is no circle."""
    done = Gate()

    class Other(Actor):
        def on_receive(self, message: Any) -> Any:
            return "hi" if message == "hello" else self.later()

        async def later(self) -> None:
            await self.ask("caller", quick)
            done.opened.set()

    async def quick(_: Actor) -> str:
        return "quick"

    async def work(actor: Actor) -> Any:
        future = actor.ask("other", "hello")
        actor.tell("other", "later", detached=True)
        return await future

    async with running() as system:
        await system.spawn(Caller, name="caller")
        await system.spawn(Other, name="other")
        assert await system.ask("caller", work) == "hi"
        await done.opened.reached()


async def test_who_is_refused_again_and_again_does_not_keep_the_loop() -> None:
    turns = itertools.count()

    async def work(actor: Actor) -> int:
        task = asyncio.create_task(counting())
        with Asks(actor) as asks:
            for number in range(50):
                asks.ask(number, "nobody", 1)
                await asks.next()
        task.cancel()
        return next(turns)

    async def counting() -> None:
        while True:
            next(turns)
            await asyncio.sleep(0)

    async with playing() as cast:
        assert await cast.play(work) >= 45


# --- map_reduce ---


@pytest.mark.slow
@given(st.lists(st.integers(), max_size=20), st.integers(1, 5), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_answers_are_always_folded_in_order_and_never_more_than_the_width_are_begun(
    items: list[int], width: int, chance: Any
) -> None:
    begun: list[int] = []
    folded: list[int] = []
    most = 0

    class Worker(Actor):
        concurrency = 100

        async def on_receive(self, message: int) -> int:
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            return message

    def each() -> Any:
        nonlocal most
        for item in items:
            begun.append(item)
            most = max(most, len(begun) - len(folded))
            yield item

    def fold(so_far: list[int], answer: int) -> list[int]:
        folded.append(answer)
        return [*so_far, answer]

    async def scenario() -> None:
        async with running() as system:
            await system.spawn(Worker, name="worker")
            await system.spawn(Caller, name="caller")
            work = partial(map_reduce, to="worker", items=each(), fold=fold, initial=[], each=Each(width=width))
            assert await system.ask("caller", work) == items

    asyncio.run(scenario())
    assert most <= width


async def test_an_item_that_fails_ends_everything_and_is_named() -> None:
    async with playing(worker=["answer", "raise", "answer"]) as cast:
        with pytest.raises(AgentExecutionFailed, match="item 1, worker: ") as caught:
            await cast.play(
                lambda actor: map_reduce(actor, "worker", itertools.count(), lambda *both: both, None, Each(width=1))
            )
        assert isinstance(caught.value.__cause__, AgentExecutionFailed)
        assert [message for _, message in cast.heard] == [0, 1]


async def test_items_that_fail_are_left_out_where_that_is_wanted() -> None:
    left_out: list[tuple[int, str]] = []
    async with playing(worker=["answer", "reject", "crash", "raise", "answer"]) as cast:
        each = Each(width=2, skip=lambda number, error: left_out.append((number, error.error_code)))
        work = partial(map_reduce, to="worker", items=range(5), fold=lambda all_, one: [*all_, one], initial=[])
        assert await cast.play(partial(work, each=each)) == ["worker: 0", "worker: 4"]
        assert sorted(left_out) == [(1, "RATE_LIMITED"), (2, "AGENT_CRASHED"), (3, "AGENT_EXECUTION_FAILED")]


async def test_an_item_is_tried_again_as_often_as_said_and_only_when_that_may_help() -> None:
    async with playing(worker=["crash", "hang", "answer"], wrong="raise", busy="reject") as cast:
        work = partial(map_reduce, fold=operator.add, initial="", each=Each(attempts=3, timeout=SOON))
        assert await cast.play(partial(work, to="worker", items=["x"])) == "worker: x"
        with pytest.raises(AgentExecutionFailed):
            await cast.play(partial(work, to="wrong", items=["x"]))
        with pytest.raises(GramiError, match="not now"):
            await cast.play(partial(work, to="busy", items=["x"]))
        asked = [name for name, _ in cast.heard]
        assert [asked.count(name) for name in ("worker", "wrong", "busy")] == [3, 1, 3]


async def test_nothing_is_tried_again_unless_that_is_asked_for() -> None:
    async with playing(worker="crash") as cast:
        with pytest.raises(AgentCrashed):
            await cast.play(lambda actor: map_reduce(actor, "worker", ["x"], operator.add, ""))
        assert cast.heard == [("worker", "x")]


async def test_a_fold_that_raises_cancels_the_items_that_are_begun() -> None:
    async with playing(worker=["answer", "hang"]) as cast:
        with pytest.raises(ZeroDivisionError):
            await cast.play(lambda actor: map_reduce(actor, "worker", ["x"] * 3, lambda *_: 1 // 0, 0))


@pytest.mark.parametrize("wrong", [{"width": 0}, {"attempts": 0}])
def test_a_width_or_number_of_attempts_below_one_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Each(**wrong)


# --- handoff ---


class Desk(Actor):
    """Hands every request over, and goes on."""

    restart = Member.restart

    def __init__(self, to: str = "other") -> None:
        super().__init__()
        self.to = to
        self.refused: list[GramiError] = []

    async def on_receive(self, message: Any) -> Any:
        if message == "alive":
            return "alive"
        try:
            handoff(self, self.to, message)
        except GramiError as refused:
            self.refused.append(refused)
            raise
        if message == "twice":
            handoff(self, self.to, message)
        if message == "raise":
            raise ValueError("after the handoff")
        return "no answer"


class Blocking(Actor):
    lane = "thread"

    def on_receive(self, message: Any) -> Any:
        handoff(self, "other", message)


@pytest.mark.parametrize("kind", [Desk, on("thread", Desk), Blocking])
async def test_whoever_a_request_is_handed_to_answers_it_and_the_first_is_free_at_once(kind: type[Actor]) -> None:
    async with playing(other="late") as cast:
        await cast.system.spawn(kind, name="desk")
        cell = cast.system.table.cells["desk"]
        future = cell.ask("x")
        await cast.gate.until_entered()
        await turns_until(lambda: not (cell.at_work or cell.working))
        assert not future.done()
        if kind is not Blocking:
            assert await cast.system.ask("desk", "alive") == "alive"
        cast.gate.opened.set()
        assert await future == "other: x"
        assert cast.letters.events == []


async def test_what_the_first_raises_after_a_handoff_fails_it_but_is_no_answer() -> None:
    async with playing(other="answer") as cast:
        await cast.system.spawn(Desk, name="desk")
        sent = Recorder(cast.system, MessageSent)
        assert await cast.system.ask("desk", "raise") == "other: raise"
        assert [(each.sender, each.to) for each in sent.events] == [("", "desk"), ("desk", "other")]
        assert await cast.system.ask("desk", "twice") == "other: twice"
        assert cast.heard == [("other", "raise"), ("other", "twice")]


@pytest.mark.parametrize(("way", "code"), FAILURES.items())
async def test_whoever_fails_with_a_request_in_hand_fails_the_request(way: str, code: str) -> None:
    async with playing(other=way) as cast:
        await cast.system.spawn(Desk, name="desk")
        with pytest.raises((GramiError, ValueError)) as caught:
            await cast.system.ask("desk", "x", timeout=SOON if way == "hang" else 5)
        assert getattr(caught.value, "error_code", "AGENT_EXECUTION_FAILED") == code
        await turns_until(cast.quiet)


async def test_an_error_after_a_handoff_names_whoever_failed() -> None:
    async with playing(other="raise") as cast:
        await cast.system.spawn(Desk, name="desk")
        [outcome] = await cast.play(lambda actor: parallel(actor, {"desk": "x"}))
        assert "other failed" in outcome.error.message


async def test_a_cancelled_request_is_cancelled_wherever_it_was_handed() -> None:
    async with playing(other="hang") as cast:
        await cast.system.spawn(Desk, name="desk")
        future = cast.system.table.cells["desk"].ask("x")
        await cast.gate.until_entered()
        future.cancel()
        await turns_until(cast.quiet)
        assert cast.cancelled == ["other"]


async def test_a_request_that_is_refused_elsewhere_has_not_moved() -> None:
    async with playing(other="answer") as cast:
        for name, to in (("lost", "nobody"), ("full", "small"), ("quick", "other")):
            await cast.system.spawn(Desk, to, name=name)
        small = await cast.system.spawn(type("Small", (Member,), {"mailbox": 1}), cast, name="small")
        cast.ways["small"] = ["hang"]
        small.tell("first")
        await cast.gate.until_entered()
        small.tell("second")
        with pytest.raises(DestinationNotFound):
            await cast.system.ask("lost", "x")
        future = cast.system.table.cells["full"].ask("x")
        with pytest.raises(MailboxFull):
            await future
        assert future._target is cast.system.table.cells["full"]
        with pytest.raises(QuotaExceeded):
            await cast.system.ask("quick", "x", budget=Budget(messages=1))
        assert cast.heard == [("small", "first")]
        cast.gate.opened.set()


async def test_a_request_waits_for_room_where_that_is_the_policy_and_is_withdrawn_when_it_is_cancelled() -> None:
    async with playing() as cast:
        await cast.system.spawn(Desk, name="desk")
        kind = type("Small", (Member,), {"mailbox": 1, "overflow": "wait"})
        cast.ways["other"] = ["hang"]
        other = (await cast.system.spawn(kind, cast, name="other"))._cell
        other.tell("first")
        await cast.gate.until_entered()
        other.tell("second")
        futures = [cast.system.table.cells["desk"].ask(message) for message in ("x", "y")]
        await turns_until(lambda: other.mailbox.statistics().parked == 2)
        futures[0].cancel()
        assert other.mailbox.statistics().parked == 1
        cast.ways["other"] = ["answer"]
        cast.gate.opened.set()
        assert await futures[1] == "other: y"
        assert [message for _, message in cast.heard] == ["first", "second", "y"]


async def test_a_tell_has_no_request_to_hand_over() -> None:
    async with playing(other="answer") as cast:
        ref = await cast.system.spawn(Desk, name="desk")
        ref.tell("x")
        letter = await cast.letters.first(DeadLetter)
        assert (letter.to, letter.reason) == ("desk", "rejected")
        assert cast.heard == []


async def test_what_a_handler_left_behind_cannot_hand_over_what_was_answered() -> None:
    refused = []

    async def late(actor: Actor, answered: asyncio.Event) -> None:
        await answered.wait()
        with pytest.raises(GramiError, match="no request to hand over") as caught:
            handoff(actor, "other", "x")
        refused.append(caught.value)

    async with playing(other="answer") as cast:
        answered = asyncio.Event()
        tasks = []

        async def work(actor: Actor) -> str:
            tasks.append(asyncio.create_task(late(actor, answered)))
            return "answer"

        assert await cast.play(work) == "answer"
        answered.set()
        await tasks[0]
        assert refused
        assert cast.heard == []


async def test_a_pool_gives_the_request_to_one_and_a_pool_of_all_is_refused() -> None:
    async with playing(one="answer", two="answer") as cast:
        await cast.system.spawn(Desk, "some", name="desk")
        await cast.system.spawn(Desk, "all", name="crier")
        for name in ("one", "two"):
            cell = cast.system.table.cells[name]
            cast.system.table.join("some", cell, strategy="round_robin")
            cast.system.table.join("all", cell, strategy="broadcast")
        assert [await cast.system.ask("desk", 1) for _ in range(2)] == ["one: 1", "two: 1"]
        with pytest.raises(GramiError, match="one answer"):
            await cast.system.ask("crier", 1)


@pytest.mark.parametrize("lane", LANES)
async def test_a_request_that_is_handed_to_who_waits_for_it_is_a_circle(lane: str) -> None:
    async with playing(between="answer") as cast:
        kind = on(lane, Desk)
        await cast.system.spawn(kind, "caller", name="desk")
        for first in ("desk", "between"):
            cast.ways["between"] = [lambda actor, _: actor_asks(actor, "desk")]
            with pytest.raises(AskCycle, match="caller -> "):
                await cast.play(lambda actor, first=first: actor_asks(actor, first), timeout=5)
            if first == "desk":
                assert "caller" in str(cast.system.table.cells["desk"].actor.refused.pop())


async def actor_asks(actor: Actor, to: str) -> Any:
    return await actor.ask(to, 1)


async def test_who_has_its_answer_or_left_it_behind_waits_for_nobody() -> None:
    async with playing(other="answer") as cast:
        await cast.system.spawn(Desk, name="desk")
        other = cast.system.table.cells["other"]

        async def work(actor: Actor) -> Any:
            answered, left = Future[Any](), Future[Any]()
            answered.set_result("not read yet")
            answered._target = left._target = actor._cell
            other.waits |= {answered: other.at_work, left: Envelope("of a handler that has ended")}
            try:
                return await actor.ask("desk", "x")
            finally:
                other.waits.clear()

        assert await cast.play(work) == "other: x"


async def test_a_request_that_was_handed_over_holds_up_whom_it_was_handed_to_and_not_who_did_that() -> None:
    """The caller waits for the other, no more for the desk: the other may ask the desk, and not the caller."""
    async with playing(other="answer") as cast:
        await cast.system.spawn(Desk, name="desk")
        cast.ways["other"] = [lambda actor, message: actor.ask(message, "alive")]
        assert await cast.play(lambda actor: parallel(actor, {"desk": "desk"}), timeout=5)
        [outcome] = await cast.play(lambda actor: parallel(actor, {"desk": "caller"}), timeout=5)
        assert isinstance(outcome.error, AskCycle)


@pytest.mark.slow
async def test_a_worker_process_cannot_hand_a_request_over_and_says_so() -> None:
    async with running() as system:
        await system.spawn(HandsOver, name="desk")
        with pytest.raises(GramiError, match="ask other instead"):
            await system.ask("desk", "x")


async def test_a_request_can_be_handed_to_an_actor_of_another_thread() -> None:
    where: list[int] = []

    class Far(Actor):
        lane = "thread"

        def on_receive(self, message: Any) -> Any:
            where.append(threading.get_ident())
            return message

    async with running() as system:
        await system.spawn(Desk, name="desk")
        await system.spawn(Far, name="other")
        assert await system.ask("desk", "x") == "x"
        assert where != [threading.get_ident()]


class Question(Message):
    text: str


class Reception(Agent):
    @handles(Question)
    def receive(self, question: Question) -> None:
        emit("reception")
        handoff(self, "expert", Question(question.text.upper()))


class Expert(Agent):
    @handles(Question)
    async def answer(self, question: Question) -> str:
        emit("expert")
        if question.text == "NO":
            raise Reject("VALIDATION_FAILED", "no")
        return question.text


async def test_a_client_gets_the_answer_and_the_chunks_of_whoever_its_request_was_handed_to() -> None:
    async with serving(Swarm([Reception, Expert])) as manager, connect(manager.url) as client:
        frames = [frame async for frame in client.stream(Question("why"), to="reception")]
        assert [frame.data for frame in frames if frame.type == "response.chunk"] == ["reception", "expert"]
        assert {frame.id for frame in frames} == {frames[0].id}
        assert await client.request(Question("how"), to="reception") == "HOW"
        with pytest.raises(GramiError) as caught:
            await client.request(Question("no"), to="reception")
        assert caught.value.error_code == "VALIDATION_FAILED"


async def test_a_streaming_request_that_was_handed_over_may_finish_when_its_client_has_gone() -> None:
    gate = Gate()

    class Slow(Agent, name="expert"):
        @handles(Question)
        async def answer(self, question: Question) -> str:
            await gate.wait_async()
            return question.text

    async with serving(Swarm([Reception, Slow]), stream_grace=30) as manager:
        told = Recorder(manager.system, ConnectionClosed, RequestFinished)
        async with raw(manager) as socket:
            await tell(socket, type="question", text="x", to="reception", id=1, stream=True)
            await gate.until_entered()
        await told.first(ConnectionClosed)
        assert not manager.system.table.cells["expert"].at_work.scope.done()
        gate.opened.set()
        await told.first(RequestFinished)
