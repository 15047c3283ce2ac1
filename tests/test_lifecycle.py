"""The life of actors and of families: who is started, restarted and stopped when, and who hears of it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from typing import Any

import pykka
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from grami_actors.actor import Actor
from grami_actors.cell import Cell
from grami_actors.errors import (
    AgentCrashed,
    AgentUnavailable,
    GramiError,
    MailboxFull,
    Reject,
    ShuttingDown,
    StartFailed,
)
from grami_actors.future import Future
from grami_actors.messages import Terminated
from grami_actors.recovery import ChildGaveUp
from grami_actors.ref import ActorDead, Ref
from grami_actors.restarts import Directive, RestartPolicy
from grami_actors.spec import Keep, Strategy
from grami_actors.supervisor import Child, Supervisor
from grami_actors.system import ActorSystem
from grami_actors.telemetry import (
    ActorFailed,
    ActorGaveUp,
    ActorRestarted,
    ActorResumed,
    ActorStopped,
    ActorSuspended,
    DeadLetter,
)
from tests.conftest import LANES, Gate, Recorder, on, running, turns_until

AT_ONCE = RestartPolicy(intensity=1_000, shortest=0.0, longest=0.0)
STRATEGIES: tuple[Strategy, ...] = ("one_for_one", "one_for_all", "rest_for_one")


class Life(Actor):
    """Writes down what happens to it, and does what it is told."""

    restart = AT_ONCE

    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self.log = log
        self.count = 0

    @property
    def short(self) -> str:
        return self.name.rpartition("/")[2]

    def on_start(self) -> None:
        self.log.append(f"+{self.short}")

    def on_stop(self) -> None:
        self.log.append(f"-{self.short}")

    def on_receive(self, message: Any) -> Any:
        if isinstance(message, BaseException):
            raise message
        if message == "stop":
            self.stop()
        self.count += 1
        return self.count


def family(lane: str, log: list[str], count: int, keep: Keep = "permanent") -> list[Child]:
    return [Child(on(lane, Life), log, name=str(number), keep=keep) for number in range(count)]


def head(strategy: Strategy = "one_for_one", **options: Any) -> type[Any]:
    """A supervisor whose children may fail as often as they like, unless told otherwise."""
    return type("Head", (Supervisor,), {"strategy": strategy, "children_restart": AT_ONCE, **options})


# --- families ---


@given(st.data(), st.sampled_from(STRATEGIES), st.integers(1, 4), st.sampled_from(LANES), st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_strategy_says_who_is_stopped_in_reverse_and_started_in_order_when_a_child_fails(
    data: st.DataObject, strategy: Strategy, count: int, lane: str, by_itself: bool
) -> None:
    async def play() -> None:
        log: list[str] = []
        failing = data.draw(st.integers(0, count - 1))
        async with running() as system:
            restarted = Recorder(system, ActorRestarted)
            await system.spawn(head(strategy), *family(lane, log, count), name="head")
            assert log == [f"+{number}" for number in range(count)]
            log.clear()
            for number in range(count):
                await system.ask(f"head/{number}", "count")
            system.tell(f"head/{failing}", "stop" if by_itself else ValueError("fail"))
            group = {
                "one_for_one": [failing],
                "one_for_all": list(range(count)),
                "rest_for_one": list(range(failing, count)),
            }[strategy]
            await restarted.until(lambda events: len(events) == len(group))
            stopped = [number for number in reversed(group) if by_itself or number != failing]
            assert log == [*(f"-{number}" for number in stopped), *(f"+{number}" for number in group)]
            assert [event.actor for event in restarted.events] == [f"head/{number}" for number in group]
            for number in range(count):
                assert await system.ask(f"head/{number}", "count") == (1 if number in group else 2)

    asyncio.run(play())


@pytest.mark.parametrize("end", ["fails", "stops itself", "is stopped"])
@pytest.mark.parametrize("keep", ["permanent", "transient", "temporary"])
async def test_how_a_child_is_kept_says_when_it_is_restarted(lane: str, keep: Keep, end: str) -> None:
    log: list[str] = []
    again = (keep == "permanent" and end != "is stopped") or (keep == "transient" and end == "fails")
    async with running() as system:
        events = Recorder(system, ActorRestarted, ActorStopped)
        await system.spawn(head(), *family(lane, log, 1, keep), name="head")
        ended = system.watch("head/0")
        if end == "is stopped":
            assert await system.stop("head/0")
        else:
            system.tell("head/0", ValueError("fail") if end == "fails" else "stop")
        first = (await events.until(lambda seen: seen))[0]
        assert (type(first), first.actor) == (ActorRestarted if again else ActorStopped, "head/0")
        if again:
            assert not ended.done()
            assert await system.ask("head/0", "count") == 1
        else:
            assert await ended == Terminated("head/0", "failed" if end == "fails" else "stopped")
            assert await system.stop("head/0" if again else "head")
        assert log == ["+0", *([] if end == "fails" else ["-0"]), *(["+0"] if again else [])]


@given(st.integers(0, 5), st.sampled_from(LANES))
@settings(max_examples=20, deadline=None)
def test_children_are_started_in_order_and_stopped_in_reverse_and_their_parent_last(count: int, lane: str) -> None:
    async def play() -> None:
        log: list[str] = []

        class Head(Supervisor):
            def on_stop(self) -> None:
                log.append("-head")

        async with running() as system:
            await system.spawn(Head, *family(lane, log, count), name="head")
            await system.stop("head")
            numbers = range(count)
            assert log == [
                *(f"+{number}" for number in numbers),
                *(f"-{number}" for number in reversed(numbers)),
                "-head",
            ]
            assert [info.name for info in system.tree()] == ["router"]

    asyncio.run(play())


async def test_a_child_that_cannot_be_started_fails_the_start_of_the_family_and_the_others_are_stopped(
    lane: str,
) -> None:
    log: list[str] = []

    class Broken(Life):
        def on_start(self) -> None:
            raise ValueError("cannot start")

    async with running() as system:
        children = [*family(lane, log, 2), Child(on(lane, Broken), log, name="broken")]
        with pytest.raises(StartFailed, match="head could not be started: StartFailed: head/broken"):
            await system.spawn(head(), *children, name="head")
        assert log == ["+0", "+1", "-1", "-0"]
        assert [info.name for info in system.tree()] == ["router"]


async def test_a_supervisor_can_be_given_a_child_later_and_takes_nothing_else(lane: str) -> None:
    log: list[str] = []
    async with running() as system:
        await system.spawn(head("one_for_all"), *family(lane, log, 1), name="head")
        ref = await system.ask("head", Child(on(lane, Life), log, name="late"))
        assert ref.name == "head/late"
        with pytest.raises(GramiError, match="it takes a Child, not a str"):
            await system.ask("head", "child")
        restarted = Recorder(system, ActorRestarted)
        system.tell("head/0", ValueError("fail"))
        await restarted.until(lambda events: len(events) == 2)
        assert log == ["+0", "+late", "-late", "+0", "+late"]


@given(st.lists(st.integers(0, 2), min_size=1, max_size=6), st.integers(0, 3), st.sampled_from(LANES))
@settings(max_examples=40, deadline=None)
def test_the_restarts_of_all_children_together_are_counted_and_one_too_many_fails_their_parent(
    failures: list[int], intensity: int, lane: str
) -> None:
    async def play() -> None:
        log: list[str] = []
        policy = RestartPolicy(intensity=intensity, period=1_000.0, shortest=0.0, longest=0.0)
        async with running() as system:
            events = Recorder(system, ActorRestarted, ActorGaveUp)
            await system.spawn(head(children_restart=policy, restart=AT_ONCE), *family(lane, log, 3), name="head")
            for number, child in enumerate(failures[: intensity + 1]):
                log.clear()
                system.tell(f"head/{child}", ValueError("fail"))
                if number < intensity:
                    await events.until(lambda seen, number=number: len(seen) == number + 1)
                    assert events.events[-1].actor == f"head/{child}"
                else:
                    await events.until(lambda seen: any(event.actor == "head" for event in seen))
                    gave_up = next(event for event in events.events if isinstance(event, ActorGaveUp))
                    assert (gave_up.actor, gave_up.failures) == (f"head/{child}", intensity + 1)
                    others = [each for each in (2, 1, 0) if each != child]
                    assert log == [*(f"-{each}" for each in others), "+0", "+1", "+2"]
            assert len(system.table.cells["head"].children) == 3

    asyncio.run(play())


async def test_a_family_whose_head_fails_too_often_is_stopped_and_so_on_up_the_tree(lane: str) -> None:
    log: list[str] = []
    never = RestartPolicy(intensity=0, shortest=0.0, longest=0.0)
    async with running() as system:
        gave_up = Recorder(system, ActorGaveUp)
        inner = Child(head(children_restart=never), *family(lane, log, 2), name="inner")
        await system.spawn(head(children_restart=never, restart=never), inner, name="outer")
        ends = [system.watch(name) for name in ("outer", "outer/inner", "outer/inner/0", "outer/inner/1")]
        system.tell("outer/inner/0", ValueError("fail"))
        assert [(await end).reason for end in ends] == ["failed", "failed", "failed", "stopped"]
        assert [event.actor for event in gave_up.events] == ["outer/inner/0", "outer/inner", "outer"]
        assert [info.name for info in system.tree()] == ["router"]


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
async def test_the_rest_of_a_group_that_cannot_be_restarted_is_not_left_in_between(
    lane: str, strategy: Strategy
) -> None:
    """The parent shrugs at a child that gave up; the siblings that were taken down with it must live or end."""
    log: list[str] = []
    policy = RestartPolicy(intensity=0, shortest=0.0, longest=0.0)
    shrug = RestartPolicy(directives={ChildGaveUp: "resume"})
    async with running() as system:
        await system.spawn(head(strategy, children_restart=policy, restart=shrug), *family(lane, log, 3), name="head")
        siblings = [system.table.cells[f"head/{number}"] for number in (1, 2)]
        end = system.watch("head/0")
        failed = Recorder(system, ActorFailed)
        system.tell("head/0", ValueError("fail"))
        assert (await end).reason == "failed"
        await failed.until(lambda events: any(event.actor == "head" for event in events))
        await system._lifecycle.close()
        assert {cell.state for cell in siblings} <= {"running", "stopped"}


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_a_member_may_be_stopped_while_its_group_is_restarted(lane: str, strategy: Strategy) -> None:
    log: list[str] = []
    gates = [Gate(), Gate()]
    gates[0].opened.set()
    starts = itertools.count()

    class Slow(Life):
        async def on_start(self) -> None:
            await gates[next(starts)].wait_async()
            super().on_start()

    async with running() as system:
        children = [*family(lane, log, 1), Child(on(lane, Slow), log, name="slow"), *family(lane, log, 3)[2:]]
        await system.spawn(head(strategy), *children, name="head")
        restarted = Recorder(system, ActorRestarted)
        system.tell("head/slow", ValueError("fail"))
        await gates[1].until_entered()
        assert await system.stop("head/2")
        gates[1].opened.set()
        expected = ["head/0", "head/slow"] if strategy == "one_for_all" else ["head/slow"]
        await restarted.until(lambda events: {event.actor for event in events} >= set(expected))
        for name in ("head/0", "head/slow"):
            await system.ask(name, "count")
        assert [event.actor for event in restarted.events] == expected
        assert list(system.table.cells["head"].children) == ["head/0", "head/slow"]


async def test_a_failure_before_it_takes_over_the_restart_of_those_behind_it(lane: str) -> None:
    """rest_for_one: the second is being restarted with the third when the first fails."""
    log: list[str] = []
    gates = [Gate(), Gate(), Gate()]
    gates[0].opened.set()
    gates[2].opened.set()
    starts = itertools.count()

    class Slow(Life):
        async def on_start(self) -> None:
            await gates[next(starts)].wait_async()
            super().on_start()

    async with running() as system:
        children = [*family(lane, log, 1), Child(on(lane, Slow), log, name="slow"), *family(lane, log, 3)[2:]]
        await system.spawn(head("rest_for_one"), *children, name="head")
        restarted = Recorder(system, ActorRestarted)
        system.tell("head/slow", ValueError("fail"))
        await gates[1].until_entered()
        system.tell("head/0", ValueError("fail"))
        gates[1].opened.set()
        await restarted.until(
            lambda events: [event.actor for event in events][-3:] == ["head/0", "head/slow", "head/2"]
        )
        for name in ("head/0", "head/slow", "head/2"):
            assert await system.ask(name, "count") == 1


async def test_a_child_that_is_spawned_while_its_parent_is_taken_down_does_not_outlive_the_instance(lane: str) -> None:
    """As a task does that a handler left behind."""
    gate = Gate()

    class Slow(Life):
        async def on_stop(self) -> None:
            await gate.wait_async()

    async with running() as system:
        restarted = Recorder(system, ActorRestarted)
        ref = await system.spawn(head(restart=AT_ONCE), Child(on(lane, Slow), [], name="slow"), name="head")
        system.kill(ref)
        await gate.until_entered()
        with contextlib.suppress(ShuttingDown):
            await system.spawn(on(lane, Life), [], name="late", parent=ref._cell)
        gate.opened.set()
        await restarted.first(ActorRestarted)
        assert list(ref._cell.children) == ["head/slow"]


async def test_a_child_that_gives_up_while_its_parent_starts_fails_the_parent_when_it_has_started(lane: str) -> None:
    first = [True]

    class Parent(Actor):
        restart = AT_ONCE

        async def on_start(self) -> None:
            if first.pop() if first else False:
                ref = await self.spawn(on(lane, Life, restart=RestartPolicy(intensity=0)), [], name="child")
                end = system.watch(ref)
                ref.tell(ValueError("fail"))
                await end

        def on_receive(self, message: Any) -> Any:
            return message

    async with running() as system:
        failed, restarted = Recorder(system, ActorFailed), Recorder(system, ActorRestarted)
        ref = await system.spawn(Parent, name="parent")
        await restarted.first(ActorRestarted)
        assert await system.ask(ref, "?") == "?"
        assert [event.actor for event in failed.events] == ["parent/child", "parent"]
        assert "ChildGaveUp" in failed.events[1].error


async def test_what_a_child_of_a_start_that_failed_did_is_forgotten_with_it() -> None:
    """A child gives up, then the start itself fails: the next start begins with a clean slate."""
    starts = itertools.count()

    class Parent(Life):
        async def on_start(self) -> None:
            if next(starts) == 1:
                ref = await self.spawn(
                    type("Brief", (Life,), {"restart": RestartPolicy(intensity=0)}), [], name="child"
                )
                end = system.watch(ref)
                ref.tell(ValueError("fail"))
                await end
                raise ValueError("cannot start")

    async with running() as system:
        restarted = Recorder(system, ActorRestarted)
        ref = await system.spawn(Parent, [], name="parent")
        ref.tell(ValueError("fail"))
        await restarted.first(ActorRestarted)
        await system.ask(ref, "count")
        await system._lifecycle.close()
        assert len(restarted.events) == 1


# --- what follows a failure ---


@pytest.mark.parametrize("directive", ["resume", "restart", "stop", "escalate"])
async def test_the_directive_of_the_closest_class_says_what_follows_a_failure(lane: str, directive: Directive) -> None:
    log: list[str] = []
    other: Directive = "stop" if directive != "stop" else "resume"
    policy = RestartPolicy(
        intensity=9, shortest=0.0, longest=0.0, directives={LookupError: directive, Exception: other}
    )

    class Parent(Actor):
        restart = AT_ONCE

        async def on_start(self) -> None:
            log.append("+parent")
            await self.spawn(on(lane, Life, restart=policy), log, name="child")

    async with running() as system:
        restarted = Recorder(system, ActorRestarted)
        await system.spawn(Parent, name="parent")
        end = system.watch("parent/child")
        assert await system.ask("parent/child", "count") == 1
        with pytest.raises(KeyError):
            await system.ask("parent/child", KeyError("a LookupError"))
        if directive in {"stop", "escalate"}:
            assert (await end).reason == "failed"
        if directive == "stop":
            await system._lifecycle.close()
            assert system.table.cells["parent"].children == {}
            assert (log, restarted.events) == (["+parent", "+child"], [])
            return
        if directive == "escalate":
            await restarted.until(lambda events: events[-1].actor == "parent" if events else False)
        assert await system.ask("parent/child", "count") == (2 if directive == "resume" else 1)
        assert [event.actor for event in restarted.events] == {
            "resume": [],
            "restart": ["parent/child"],
            "escalate": ["parent"],
        }[directive]


async def test_a_failing_message_is_delivered_once_more_before_all_others_if_the_policy_says_so(lane: str) -> None:
    seen: list[Any] = []

    class Shaky(Actor):
        restart = RestartPolicy(shortest=0.0, longest=0.0, redeliver=True)

        async def on_receive(self, message: Any) -> Any:
            await gate.wait_async()
            seen.append(message)
            if seen.count("shaky") == 1:
                raise ValueError("the first time")
            return message

    gate = Gate()
    async with running() as system:
        letters = Recorder(system, DeadLetter)
        ref = await system.spawn(on(lane, Shaky))
        shaky = ref.ask("shaky", block=False)
        await gate.until_entered()
        others = [ref.ask(number, block=False) for number in range(3)]
        gate.opened.set()
        assert await shaky == "shaky"
        assert [await other for other in others] == [0, 1, 2]
        assert seen == ["shaky", "shaky", 0, 1, 2]
        assert (letters.events, ref._cell.restarts) == ([], 1)


@pytest.mark.parametrize("ask", [True, False])
async def test_a_message_that_fails_twice_is_poison_and_says_so_once_with_its_traceback(lane: str, ask: bool) -> None:
    policy = RestartPolicy(shortest=0.0, longest=0.0, redeliver=True)
    async with running() as system:
        letters, failed = Recorder(system, DeadLetter), Recorder(system, ActorFailed)
        ref = await system.spawn(on(lane, Life, restart=policy), [])
        poison = ValueError("poison")
        if ask:
            with pytest.raises(ValueError, match="poison"):
                await ref.ask(poison, block=False)
        else:
            ref.tell(poison)
        assert await system.ask(ref, "count") == 1
        letter = await letters.first(DeadLetter)
        assert (letter.message, letter.reason) == (poison, "poison")
        assert "Traceback" in letter.details
        assert "ValueError: poison" in letter.details
        assert (len(letters.events), len(failed.events)) == (1, 2)


# --- suspend, drain, stop ---


async def test_a_suspended_actor_keeps_its_mail_until_it_is_resumed(lane: str) -> None:
    async with running() as system:
        events = Recorder(system, ActorSuspended, ActorResumed)
        ref = await system.spawn(on(lane, Life), [], name="life")
        assert not system.resume(ref)
        assert system.suspend("life")
        assert not system.suspend("life")
        asked = [ref.ask("count", block=False) for _ in range(3)]
        await asyncio.sleep(0)
        assert not any(each.done() for each in asked)
        assert system.tree()[-1].state == "suspended"
        assert system.resume("life")
        assert [await each for each in asked] == [1, 2, 3]
        assert [type(event) for event in events.events] == [ActorSuspended, ActorResumed]


async def test_a_suspended_actor_can_be_stopped_and_its_mail_is_not_lost(lane: str) -> None:
    log: list[str] = []
    async with running() as system:
        letters = Recorder(system, DeadLetter)
        ref = await system.spawn(on(lane, Life), log, name="life")
        system.suspend(ref)
        ref.tell("told")
        asked = ref.ask("asked", block=False)
        assert await system.stop(ref)
        with pytest.raises(ActorDead):
            await asked
        assert [letter.message for letter in letters.events] == ["told"]
        assert log == ["+life", "-life"]


async def test_a_failure_while_it_is_being_suspended_restarts_the_actor_which_stays_suspended(lane: str) -> None:
    gate = Gate()

    class Slow(Life):
        async def on_receive(self, message: Any) -> Any:
            if message == "fail":
                await gate.wait_async()
                raise ValueError("fail")
            return super().on_receive(message)

    async with running() as system:
        restarted = Recorder(system, ActorRestarted)
        ref = await system.spawn(on(lane, Slow), [], name="life")
        ref.tell("fail")
        await gate.until_entered()
        assert system.suspend(ref)
        gate.opened.set()
        await restarted.first(ActorRestarted)
        asked = ref.ask("count", block=False)
        await turns_until(lambda: ref._cell.state == "suspended")
        assert system.resume(ref)
        assert await asked == 1


@pytest.mark.parametrize("keep", ["permanent", "transient", "temporary"])
async def test_a_drained_actor_handles_its_backlog_and_takes_no_more_however_it_is_kept(lane: str, keep: Keep) -> None:
    log: list[str] = []
    gate = Gate()

    class Slow(Life):
        async def on_receive(self, message: Any) -> Any:
            await gate.wait_async()
            return super().on_receive(message)

    async with running() as system:
        letters = Recorder(system, DeadLetter)
        await system.spawn(head(), Child(on(lane, Slow), log, name="life", keep=keep), name="head")
        ref = system.table.cells["head/life"].ref
        asked = [ref.ask("count", block=False) for _ in range(3)]
        await gate.until_entered()
        draining = asyncio.create_task(system.drain("head/life", timeout=2.0))
        await asyncio.sleep(0)
        with pytest.raises(ActorDead):
            ref.tell("late")
        gate.opened.set()
        assert [await each for each in asked] == [1, 2, 3]
        assert await draining
        assert (ref._cell.state, letters.events) == ("stopped", [])
        assert log == ["+life", "-life"]


async def test_a_drain_that_takes_too_long_is_a_stop_and_says_so() -> None:
    gate = Gate()

    class Slow(Life):
        async def on_receive(self, message: Any) -> Any:
            await gate.wait_async()

    async with running() as system:
        letters = Recorder(system, DeadLetter)
        ref = await system.spawn(Slow, [], name="life")
        ref.tell("in hand")
        await gate.until_entered()
        ref.tell("queued")
        draining = asyncio.create_task(system.drain("life", timeout=0.01))
        await letters.first(DeadLetter)
        gate.opened.set()
        assert not await draining
        assert [letter.message for letter in letters.events] == ["queued"]


async def test_a_drain_whose_backlog_was_not_handled_says_so(lane: str) -> None:
    async with running() as system:
        letters = Recorder(system, DeadLetter)
        ref = await system.spawn(on(lane, Life, restart=RestartPolicy(intensity=0)), [], name="life")
        system.suspend(ref)
        for message in (ValueError("gives up"), "left", "behind"):
            ref.tell(message)
        draining = asyncio.create_task(system.drain("life"))
        await asyncio.sleep(0)
        system.resume(ref)
        assert await draining is False
        assert [letter.message for letter in letters.events] == ["left", "behind"]


async def test_a_message_that_fails_while_the_actor_drains_is_still_delivered_once_more(lane: str) -> None:
    seen: list[Any] = []

    class Shaky(Actor):
        restart = RestartPolicy(shortest=0.0, longest=0.0, redeliver=True)

        def on_receive(self, message: Any) -> None:
            seen.append(message)
            if seen.count("shaky") == 1:
                raise ValueError("the first time")

    async with running() as system:
        letters = Recorder(system, DeadLetter)
        ref = await system.spawn(on(lane, Shaky), name="shaky")
        system.suspend(ref)
        ref.tell("shaky")
        ref.tell("after")
        draining = asyncio.create_task(system.drain("shaky"))
        await asyncio.sleep(0)
        system.resume(ref)
        assert await draining
        assert (seen, letters.events) == (["shaky", "shaky", "after"], [])


async def test_a_permanent_child_that_stops_itself_ends_the_message_in_hand_before_it_is_restarted(lane: str) -> None:
    log: list[str] = []
    gate = Gate()

    class Slow(Life):
        async def on_receive(self, message: Any) -> Any:
            if message == "stop":
                self.stop()
                await gate.wait_async()
                log.append("handled")
            return super().on_receive(message if message != "stop" else None)

    async with running() as system:
        restarted = Recorder(system, ActorRestarted)
        await system.spawn(head(), Child(on(lane, Slow), log, name="slow"), name="head")
        asked = system.table.cells["head/slow"].ask("stop")
        await gate.until_entered()
        for _ in range(20):
            await asyncio.sleep(0)
        assert log == ["+slow"], "the message is still in hand"
        gate.opened.set()
        assert await asked == 1
        await restarted.first(ActorRestarted)
        assert log == ["+slow", "handled", "-slow", "+slow"]


async def test_an_actor_that_stops_itself_handles_nothing_after_the_message_in_hand(lane: str) -> None:
    seen: list[Any] = []

    class Quitting(Actor):
        def on_receive(self, message: Any) -> None:
            seen.append(message)
            if message == "stop":
                self.stop()

    async with running() as system:
        letters = Recorder(system, DeadLetter)
        ref = await system.spawn(on(lane, Quitting))
        end = system.watch(ref)
        system.suspend(ref)
        for message in ("before", "stop", *range(10)):
            ref.tell(message)
        system.resume(ref)
        assert (await end).reason == "stopped"
        assert seen == ["before", "stop"]
        assert [letter.message for letter in letters.events] == list(range(10))


async def test_what_the_message_in_hand_raises_while_the_actor_is_stopped_is_not_swallowed(lane: str) -> None:
    gate = Gate()

    class Slow(Actor):
        async def on_receive(self, message: Any) -> None:
            await gate.wait_async()
            raise ValueError("last words")

    async with running() as system:
        failed = Recorder(system, ActorFailed)
        ref = await system.spawn(on(lane, Slow))
        ref.tell("in hand")
        await gate.until_entered()
        stopping = asyncio.create_task(system.stop(ref))
        await asyncio.sleep(0)
        gate.opened.set()
        assert await stopping
        assert ["ValueError: last words" in event.error for event in failed.events] == [True]


@pytest.mark.parametrize("error", [ValueError, RuntimeError, SystemExit])
async def test_whoever_spawns_what_is_stopped_while_it_starts_is_told_so_whatever_the_start_makes_of_it(
    error: type[BaseException],
) -> None:
    gate = Gate()

    class Stubborn(Life):
        async def on_start(self) -> None:
            try:
                await gate.wait_async()
            except asyncio.CancelledError:
                raise error("my own way") from None

    async with running() as system:
        spawning = asyncio.create_task(system.spawn(Stubborn, [], name="life"))
        await gate.until_entered()
        await system.stop("life")
        with pytest.raises(StartFailed):
            await spawning
        assert [info.name for info in system.tree()] == ["router"]


# --- watching ---


class Watcher(Actor):
    """Watches whom it is told to, and keeps what it hears."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Any] = []

    def on_receive(self, message: Any) -> Any:
        if isinstance(message, Ref):
            self.watch(message)
        elif isinstance(message, tuple):
            self.unwatch(message[0])
        else:
            return self.heard
        return None

    def on_terminated(self, terminated: Terminated) -> None:
        self.heard.append(terminated)


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("reason", ["stopped", "failed", "unknown"])
async def test_the_end_of_an_actor_is_told_exactly_once_with_its_reason_to_all_who_watch(
    lane: str, reason: str, times: int
) -> None:
    async with running() as system:
        watchers = [await system.spawn(on(lane, Watcher)) for _ in range(2)]
        ref = await system.spawn(on(lane, Life, restart=RestartPolicy(intensity=0)), [], name="life")
        if reason == "unknown":
            await system.stop(ref)
        for watcher in watchers:
            for _ in range(times if reason != "unknown" else 1):
                await watcher.ask(ref, block=False)
        outside = [system.watch(ref) for _ in range(3)]
        await asyncio.sleep(0)  # a watcher on a thread asks the home loop
        if reason == "stopped":
            await system.stop(ref)
        elif reason == "failed":
            ref.tell(ValueError("fail"))
        assert [await end for end in outside] == [Terminated("life", reason)] * 3
        for watcher in watchers:
            await asyncio.sleep(0)
            assert await watcher.ask("heard?", block=False) == [Terminated("life", reason)]


async def test_whoever_no_longer_watches_hears_nothing(lane: str) -> None:
    async with running() as system:
        watcher = await system.spawn(on(lane, Watcher))
        ref = await system.spawn(on(lane, Life), [], name="life")
        await watcher.ask(ref, block=False)
        await watcher.ask((ref,), block=False)
        await asyncio.sleep(0)
        await system.stop(ref)
        assert await watcher.ask("heard?", block=False) == []


async def test_a_restart_is_no_end(lane: str) -> None:
    async with running() as system:
        restarted = Recorder(system, ActorRestarted)
        ref = await system.spawn(on(lane, Life), [], name="life")
        end = system.watch("life")
        ref.tell(ValueError("fail"))
        await restarted.first(ActorRestarted)
        assert not end.done()
        await system.stop(ref)
        assert (await end).reason == "stopped"


async def test_the_end_of_another_is_heard_before_the_mail_that_waits(lane: str) -> None:
    heard: list[Any] = []
    gate = Gate()

    class Busy(Actor):
        async def on_receive(self, message: Any) -> None:
            if message == "watch":
                self.watch("life")
            elif message == "hold":
                await gate.wait_async()
            else:
                heard.append(message)

        def on_terminated(self, terminated: Terminated) -> None:
            heard.append(terminated.name)

    async with running() as system:
        await system.spawn(on(lane, Life), [], name="life")
        ref = await system.spawn(on(lane, Busy))
        await ref.ask("watch", block=False)
        ref.tell("hold")
        await gate.until_entered()
        ref.tell("mail")
        await system.stop("life")
        gate.opened.set()
        await ref.ask("last", block=False)
        assert heard == ["life", "mail", "last"]


async def test_an_actor_that_lives_long_does_not_remember_who_watched_it_and_is_gone(lane: str) -> None:
    async with running() as system:
        ref = await system.spawn(on(lane, Life), [], name="life")
        for _ in range(10):
            watcher = await system.spawn(on(lane, Watcher))
            await watcher.ask(ref, block=False)
            await asyncio.sleep(0)
            await system.stop(watcher)
        assert not ref._cell.watchers


# --- anything, in any order ---


class Shared:
    """What the actors of one run have in common."""

    def __init__(self) -> None:
        self.handled: list[int] = []
        self.starts_to_fail: Counter[str] = Counter()
        self.cells: list[Cell] = []


class Citizen(Actor):
    """Lets others run in the middle of everything."""

    restart = AT_ONCE

    def __init__(self, shared: Shared) -> None:
        super().__init__()
        self.shared = shared

    async def on_start(self) -> None:
        self.shared.cells.append(self._cell)
        await asyncio.sleep(0)
        if self.shared.starts_to_fail[self.name] > 0:
            self.shared.starts_to_fail[self.name] -= 1
            raise ValueError("cannot start")

    async def on_stop(self) -> None:
        await asyncio.sleep(0)

    def on_receive(self, message: tuple[str, int]) -> Any:
        what, number = message
        self.shared.handled.append(number)
        if what == "slow":
            return self.slowly(number)
        if what == "fail":
            raise ValueError(number)
        if what == "reject":
            raise Reject("QUOTA_EXCEEDED", "no")
        if what == "stop":
            self.stop()
        return number

    async def slowly(self, number: int) -> int:
        for _ in range(3):
            await asyncio.sleep(0)
        return number


DEEDS = ("ok", "slow", "fail", "reject", "stop")
NAMES = ("head", "head/a", "head/b", "head/c", "head/inner", "head/inner/x", "head/inner/y", "alone")


class Society(RuleBasedStateMachine):
    """A small tree of actors to which anything happens; all on the loop, so that a run can be repeated."""

    threads = False

    @initialize(
        strategies=st.tuples(st.sampled_from(STRATEGIES), st.sampled_from(STRATEGIES)),
        intensities=st.tuples(st.integers(0, 4), st.integers(0, 4)),
        keeps=st.lists(st.sampled_from(["permanent", "transient", "temporary"]), min_size=6, max_size=6),
        threads=st.lists(st.booleans(), min_size=5, max_size=5),
        redeliver=st.booleans(),
    )
    def begin(
        self,
        strategies: tuple[Strategy, Strategy],
        intensities: tuple[int, int],
        keeps: list[Keep],
        threads: list[bool],
        redeliver: bool,
    ) -> None:
        self.runner = asyncio.Runner()
        self.system = ActorSystem(slow_turn=None)
        self.shared = Shared()
        self.numbers = itertools.count()
        self.told: dict[int, str] = {}
        self.asked: dict[int, Future[Any]] = {}
        self.redeliver = redeliver
        self.waiting: list[Future[bool]] = []
        self.kinds = [
            on(
                "thread" if self.threads and thread else "loop",
                Citizen,
                restart=RestartPolicy(intensity=1_000, shortest=0.0, longest=0.0, redeliver=redeliver),
            )
            for thread in threads
        ]
        restarts = [RestartPolicy(intensity=each, period=1_000.0, shortest=0.0, longest=0.0) for each in intensities]

        def citizen(name: str, number: int) -> Child:
            return Child(self.kinds[number], self.shared, name=name, keep=keeps[number])

        inner = head(strategies[1], children_restart=restarts[1], restart=AT_ONCE)
        children = [citizen("a", 0), citizen("b", 1)]
        children.append(Child(inner, citizen("x", 2), citizen("y", 3), name="inner", keep=keeps[5]))
        children.append(citizen("c", 4))
        outer = head(strategies[0], children_restart=restarts[0], restart=AT_ONCE)

        async def build() -> None:
            await self.system.__aenter__()
            self.letters = Recorder(self.system, DeadLetter)
            await self.system.spawn(outer, *children, name="head")
            await self.system.spawn(self.kinds[0], self.shared, name="alone")

        self.runner.run(build())

    def play(self, act: Any) -> Any:
        async def once() -> Any:
            return act()

        return self.runner.run(once())

    def cell(self, name: str) -> Cell | None:
        return self.system.table.cells.get(name)

    @rule(name=st.sampled_from(NAMES[1:]), what=st.sampled_from(DEEDS), ask=st.booleans())
    def send(self, name: str, what: str, ask: bool) -> None:
        cell = self.cell(name)
        if cell is None or cell.spec.kind not in self.kinds:
            return
        number = next(self.numbers)
        if ask:
            self.asked[number] = self.play(lambda: cell.ask((what, number)))
            return
        try:
            self.play(lambda: cell.tell((what, number)))
        except (MailboxFull, AgentUnavailable):
            return
        self.told[number] = what

    @rule(name=st.sampled_from(NAMES), times=st.integers(1, 2))
    def fail_starts(self, name: str, times: int) -> None:
        if self.cell(name) is not None:
            self.shared.starts_to_fail[name] = times

    @rule(name=st.sampled_from(NAMES))
    def stop(self, name: str) -> None:
        cell = self.cell(name)
        if cell is not None:
            self.waiting.append(self.play(lambda: self.system.stop_soon(cell)))

    @rule(name=st.sampled_from(NAMES))
    def suspend(self, name: str) -> None:
        cell = self.cell(name)
        if cell is not None:
            self.play(lambda: self.system.suspend(cell.ref))

    @rule(name=st.sampled_from(NAMES))
    def resume(self, name: str) -> None:
        cell = self.cell(name)
        if cell is not None:
            self.play(lambda: self.system.resume(cell.ref))

    @rule(name=st.sampled_from(NAMES))
    def fail_from_outside(self, name: str) -> None:
        cell = self.cell(name)
        if cell is not None and cell.lane.name == "loop":
            self.play(lambda: self.system.kill(cell.ref))

    @rule(parent=st.sampled_from(["head", "head/inner", ""]), kind=st.integers(0, 4), fails=st.booleans())
    def spawn(self, parent: str, kind: int, fails: bool) -> None:
        above = self.cell(parent)
        if parent and above is None:
            return
        name = f"late-{next(self.numbers)}"
        if fails:
            self.shared.starts_to_fail[f"{parent}/{name}" if parent else name] = 1

        async def spawned() -> None:
            await self.system.spawn(self.kinds[kind], self.shared, name=name, parent=above)

        with contextlib.suppress(StartFailed, ShuttingDown):
            self.runner.run(spawned())

    @rule(turns=st.integers(1, 6))
    def turn(self, turns: int) -> None:
        async def loop() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        self.runner.run(loop())

    def busy(self) -> list[tuple[str, str]]:
        cells = self.system.table.cells.values()
        return [
            (cell.name, cell.state)
            for cell in cells
            if cell.working or cell.state not in {"running", "suspended"} or cell.mailbox.statistics().depth
        ]

    @rule()
    def let_it_come_to_rest(self) -> None:
        self.runner.run(self.rest())
        self.check()

    async def rest(self) -> None:
        try:
            async with asyncio.timeout(3):
                while True:
                    for cell in tuple(self.system.table.cells.values()):
                        self.system.resume(cell.ref)
                    if not self.busy() and not self.system._lifecycle._tasks:
                        await asyncio.sleep(0.001)  # what a thread has sent home may be on its way
                        if not self.busy() and not self.system._lifecycle._tasks:
                            return
                    await asyncio.sleep(0.0005)
        except TimeoutError:
            raise AssertionError(f"stuck: {self.busy()}") from None

    def check(self) -> None:
        living = set(self.system.table.cells.values())
        for cell in {*living, *self.shared.cells}:
            assert cell.state == ("running" if cell in living else "stopped"), (cell.name, cell.state)
            assert (cell.recovery, cell.paused and cell in living) == (None, False), cell.name
            assert cell.parent is None or cell not in living or cell.parent in living, cell.name
            assert cell.parent is None or (cell in cell.parent.children.values()) is (cell in living)
        ours = {ref for ref in pykka.ActorRegistry.get_all() if ref._cell.runtime is self.system}
        assert ours == {cell.ref for cell in living if cell.spec.kind.listed}
        assert all(future.done() for future in self.waiting)
        handled = Counter(self.shared.handled)
        letters = Counter((letter.message[1], letter.reason) for letter in self.letters.events)
        most = 2 if self.redeliver else 1
        for number, what in self.told.items():
            times = handled[number]
            ends = {reason: letters[number, reason] for reason in ("stopped", "poison", "rejected")}
            lost = {"stopped": 1, "poison": 0, "rejected": 0}
            if times == 0:
                assert ends == lost, (number, what, ends)
            elif what == "reject":
                assert (times, ends) == (1, {**lost, "stopped": 0, "rejected": 1}), (number, what, times, ends)
            elif not self.redeliver or (what != "fail" and sum(ends.values()) == 0):
                assert times <= most, (number, what, times)
                # One that fails while its actor is being stopped is called rejected.
                assert ends["stopped"] == ends["poison"] == 0, (number, what, times, ends)
                assert ends["rejected"] <= (what == "fail"), (number, what, times, ends)
            else:  # it failed, or was killed in the middle: once more, unless the actor ended before that
                assert sum(ends.values()) == 1, (number, what, times, ends)
                assert times <= (1 if ends["stopped"] else 2), (number, what, times, ends)
        for number, future in self.asked.items():
            assert future.done(), number
            assert letters[number, "stopped"] == letters[number, "rejected"] == 0
            if future.error() is None:
                assert future.value() == number
                assert 1 <= handled[number] <= most
            elif isinstance(future.error(), ActorDead):
                assert handled[number] <= 1 or self.redeliver
            else:
                assert isinstance(future.error(), (ValueError, Reject, AgentCrashed)), future.error()
                assert 1 <= handled[number] <= most

    def teardown(self) -> None:
        if not hasattr(self, "runner"):
            return
        try:
            self.runner.run(self.rest())
            self.check()
        finally:
            try:
                self.runner.run(asyncio.wait_for(self.system.close(), 10))
            finally:
                self.runner.close()
        self.check()


class MixedSociety(Society):
    """The same with some of them on threads."""

    threads = True


Society.TestCase.settings = MixedSociety.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestSociety = Society.TestCase
TestMixedSociety = MixedSociety.TestCase
