"""The contract on failure, over every lane: directives (S5), restarts in place (S6), strategies (S7), poison (S8)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grami_actors.actor import Actor
from grami_actors.cell import ActorDead
from grami_actors.errors import AgentExecutionFailed, DestinationNotFound, NameTaken, StartFailed
from grami_actors.messages import Terminated
from grami_actors.restarts import Directive, RestartPolicy
from grami_actors.spec import Keep, Strategy
from grami_actors.supervisor import Child, Supervisor
from grami_actors.system import ActorSystem, specify
from grami_actors.telemetry import (
    ActorFailed,
    ActorGaveUp,
    ActorRestarted,
    ActorStopped,
    DeadLetter,
    MessageHandled,
)
from tests.conftest import LANES, Gate, Recorder, on, running
from tests.test_contract import AT_ONCE, Held, Log

ALWAYS = RestartPolicy(intensity=1_000, shortest=0.0, longest=0.0)
"""Restarts at once, however often."""

lanes = st.sampled_from(LANES)


class Member(Log):
    """One of several children; writes what happens to it into a journal that they share."""

    restart = ALWAYS

    def __init__(self, journal: list[str]) -> None:
        super().__init__()
        self.journal = journal

    def note(self, mark: str) -> None:
        self.journal.append(mark + self.name.rpartition("/")[2])

    def on_receive(self, message: Any) -> Any:
        if message == "quit":
            self.stop()
            return "quit"
        return super().on_receive(message)

    def on_start(self) -> None:
        self.note("+")

    def on_stop(self) -> None:
        self.note("-")

    def on_failure(self, *_: Any) -> None:
        self.note("!")


def team(lane: str, journal: list[str], names: str, **options: Any) -> type[Any]:
    """A supervisor with a member for each letter."""
    options.setdefault("children_restart", ALWAYS)
    children = tuple(Child(on(lane, Member), journal, name=name) for name in names)
    return on(lane, Supervisor, children=children, restart=AT_ONCE, **options)


def children_of(system: ActorSystem, parent: str) -> list[str]:
    found = next(info for info in system.tree() if info.name == parent)
    return [child.name.removeprefix(f"{parent}/") for child in found.children]


def count(kind: type[Any], events: list[Any]) -> int:
    return sum(isinstance(event, kind) for event in events)


# --- S5 directives ---


def policy(**directives: Any) -> RestartPolicy:
    kinds = {"value": ValueError, "lookup": LookupError, "key": KeyError, "any": Exception, "exit": SystemExit}
    chosen = {kinds[name]: directive for name, directive in directives.items()}
    return RestartPolicy(shortest=0.0, longest=0.0, directives=chosen)


async def test_s5_resume_keeps_the_instance_with_its_state_and_its_mail(lane: str) -> None:
    async with running() as system:
        events = Recorder(system, ActorFailed, ActorRestarted)
        ref = await system.spawn(on(lane, Log, restart=policy(value="resume")))
        for message in ("before", ValueError("by tell"), "between"):
            ref.tell(message)
        with pytest.raises(ValueError, match="by ask"):
            await system.ask(ref, ValueError("by ask"))
        ref.tell("after")
        assert await system.ask(ref, "read") == ["before", "between", "after"]
        assert [type(event) for event in events.events] == [ActorFailed, ActorFailed]


async def test_s5_stop_ends_the_actor_and_leaves_its_parent_alone(lane: str) -> None:
    journal: list[str] = []
    gate = Gate()

    class Breaking(Held):
        restart = policy(value="stop")

        async def on_receive(self, message: Any) -> Any:
            await super().on_receive(message)
            raise ValueError("breaks")

    parent = on(
        lane,
        Supervisor,
        children=(Child(on(lane, Breaking), gate, name="x"), Child(on(lane, Member), journal, name="y")),
    )
    async with running() as system:
        events = Recorder(system, DeadLetter, ActorRestarted)
        await system.spawn(parent, name="team")
        gone = system.watch("team/x")
        asked = system.resolve("team/x", None).ask("hold")
        await gate.until_entered()
        system.tell("team/x", "queued")
        gate.opened.set()
        with pytest.raises(ValueError, match="breaks"):
            await asked
        assert await gone == Terminated("team/x", "failed")
        with pytest.raises(DestinationNotFound):
            await system.ask("team/x", "?")
        assert await system.ask("team/y", "fine") == "fine"
        assert [(type(event), event.message, event.reason) for event in events.events] == [
            (DeadLetter, "queued", "stopped")
        ]


async def test_s5_escalate_ends_the_actor_and_fails_its_parent(lane: str) -> None:
    journal: list[str] = []
    children = (
        Child(on(lane, Log, restart=policy(value="escalate")), name="x"),
        Child(on(lane, Member), journal, name="y"),
    )
    async with running() as system:
        events = Recorder(system, ActorRestarted)
        await system.spawn(on(lane, Supervisor, children=children, restart=AT_ONCE), name="team")
        await system.ask("team/x", "kept")
        with pytest.raises(ValueError, match="up"):
            await system.ask("team/x", ValueError("up"))
        await events.first(ActorRestarted)
        assert [event.actor for event in events.events] == ["team"]
        assert journal == ["+y", "-y", "+y"]
        assert await system.ask("team/x", "read") == []


@pytest.mark.parametrize(
    ("error", "directive"),
    [
        (KeyError("itself"), "restart"),
        (IndexError("its base"), "resume"),
        (ValueError("a base further up"), "stop"),
        (SystemExit(1), "resume"),
        (KeyboardInterrupt(), "restart"),  # none of the classes: the default
    ],
)
async def test_s5_the_directive_of_the_closest_class_counts_and_restart_is_the_default(
    lane: str, error: BaseException, directive: Directive
) -> None:
    rules = policy(any="stop", lookup="resume", key="restart", exit="resume")
    async with running() as system:
        events = Recorder(system, ActorRestarted, ActorStopped)
        ref = await system.spawn(on(lane, Log, restart=rules))
        await system.ask(ref, "state")
        ref.tell(error)
        if directive == "stop":
            await events.first(ActorStopped)
            assert not ref.is_alive()
        else:
            assert await system.ask(ref, "read") == (["state"] if directive == "resume" else [])
            assert count(ActorRestarted, events.events) == (directive == "restart")


@pytest.mark.parametrize("directive", ["restart", "stop", "escalate"])
async def test_s5_a_failed_instance_that_goes_is_told_so_whatever_follows(lane: str, directive: Directive) -> None:
    journal: list[str] = []
    async with running() as system:
        events = Recorder(system, ActorRestarted, ActorStopped)
        ref = await system.spawn(on(lane, Member, restart=policy(value=directive)), journal, name="m")
        ref.tell(ValueError("fails"))
        await events.until(len)
        assert journal[:2] == ["+m", "!m"]


async def test_s5_the_delay_doubles_up_to_its_bound_and_starts_over_after_a_healthy_period(lane: str) -> None:
    now = [0.0]
    slow = RestartPolicy(intensity=10, period=10.0, shortest=0.001, longest=0.004, jitter=0.0)
    async with running(clock=lambda: now[0]) as system:
        events = Recorder(system, ActorRestarted)
        ref = await system.spawn(on(lane, Log, restart=slow))
        for number, wait in enumerate((0.0, 0.1, 0.1, 0.1, 11.0, 0.1), 1):
            now[0] += wait
            ref.tell(ValueError("again"))
            await events.until(lambda seen, number=number: len(seen) == number)
        assert [event.delay for event in events.events] == [0.001, 0.002, 0.004, 0.004, 0.001, 0.002]
        assert [event.restarts for event in events.events] == [1, 2, 3, 4, 5, 6]


@given(
    gaps=st.lists(st.sampled_from([0.0, 1.0, 4.0, 5.0, 10.0]), min_size=1, max_size=8),
    intensity=st.integers(0, 3),
    lane=lanes,
)
@settings(max_examples=30, deadline=None)
def test_s5_an_actor_is_restarted_exactly_as_often_as_its_intensity_allows_in_any_period(
    gaps: list[float], intensity: int, lane: str
) -> None:
    async def play() -> None:
        now = [0.0]
        rules = RestartPolicy(intensity=intensity, period=10.0, shortest=0.0, longest=0.0)
        restarts: list[float] = []
        async with running(clock=lambda: now[0]) as system:
            events = Recorder(system, ActorRestarted, ActorStopped)
            ref = await system.spawn(on(lane, Log, restart=rules))
            for number, gap in enumerate(gaps, 1):
                now[0] += gap
                ref.tell(ValueError("fails"))
                await events.until(lambda seen, number=number: len(seen) == number)
                allowed = sum(now[0] - then < 10.0 for then in restarts) < intensity
                assert isinstance(events.events[-1], ActorRestarted if allowed else ActorStopped)
                if not allowed:
                    assert not ref.is_alive()
                    break
                restarts.append(now[0])

    asyncio.run(play())


# --- S6 restart in place ---


@given(plan=st.lists(st.tuples(st.booleans(), st.booleans()), max_size=30), lane=lanes)
@settings(max_examples=30, deadline=None)
def test_s6_every_message_is_handled_exactly_once_and_in_order_however_many_fail(
    plan: list[tuple[bool, bool]], lane: str
) -> None:
    async def play() -> None:
        handled: list[int] = []

        class Fragile(Actor):
            restart = ALWAYS

            def on_receive(self, message: Any) -> Any:
                handled.append(message)
                if message < len(plan) and plan[message][0]:
                    raise ValueError(message)
                return message

        async with running() as system:
            letters = Recorder(system, DeadLetter)
            ref = await system.spawn(on(lane, Fragile))
            asked = {}
            for number, (_, ask) in enumerate(plan):
                if ask:
                    asked[number] = ref.ask(number, block=False)
                else:
                    ref.tell(number)
            assert await system.ask(ref, len(plan)) == len(plan)
            for number, future in asked.items():
                assert future.done()
                assert (future.error() is not None) is plan[number][0]
            assert handled == list(range(len(plan) + 1))
            assert letters.events == []

    asyncio.run(play())


async def test_s6_watchers_outlive_a_restart_and_are_told_of_the_end_only(lane: str) -> None:
    class Watcher(Log):
        def on_receive(self, message: Any) -> Any:
            if message == "watch":
                return self.watch("fragile")
            return super().on_receive(message)

        def on_terminated(self, terminated: Terminated) -> None:
            self.seen.append(terminated.reason)

    async with running() as system:
        restarted = Recorder(system, ActorRestarted)
        ref = await system.spawn(on(lane, Log), name="fragile")
        watcher = await system.spawn(on(lane, Watcher))
        await system.ask(watcher, "watch")
        seen_from_outside = system.watch(ref)
        ref.tell(ValueError("restart"))
        await restarted.first(ActorRestarted)
        assert await system.ask(watcher, "read") == []
        assert not seen_from_outside.done()
        await system.stop(ref)
        assert await system.ask(watcher, "read") == ["stopped"]
        assert (await seen_from_outside).reason == "stopped"


async def test_s6_timers_of_the_old_instance_are_cancelled(lane: str) -> None:
    instances: list[int] = []
    ticks: list[int] = []

    class Ticking(Log):
        def on_start(self) -> None:
            instances.append(1)
            self.every(0.01 * len(instances), ("tick", len(instances)))

        def on_receive(self, message: Any) -> Any:
            if isinstance(message, tuple):
                ticks.append(message[1])
                return None
            return super().on_receive(message)

    async with running() as system:
        handled = Recorder(system, MessageHandled)
        ref = await system.spawn(on(lane, Ticking))
        with pytest.raises(ValueError, match="fails"):
            await system.ask(ref, ValueError("fails"))
        await system.ask(ref, "fresh")
        before = list(ticks)
        await handled.until(lambda _: ticks.count(2) == 2)
        assert ticks[len(before) :] == [2, 2]


# --- S7 strategies ---


@given(
    size=st.integers(1, 4),
    failing=st.lists(st.integers(0, 3), min_size=1, max_size=4),
    strategy=st.sampled_from(["one_for_one", "one_for_all", "rest_for_one"]),
    lane=lanes,
)
@settings(max_examples=40, deadline=None)
def test_s7_exactly_those_that_the_strategy_says_are_stopped_in_reverse_and_started_in_order(
    size: int, failing: list[int], strategy: Strategy, lane: str
) -> None:
    names = "abcd"[:size]

    def expected(place: int) -> list[str]:
        first, end = {"one_for_one": (place, place + 1), "one_for_all": (0, size), "rest_for_one": (place, size)}[
            strategy
        ]
        group, failed = names[first:end], names[place]
        return [
            f"!{failed}",
            *(f"-{name}" for name in reversed(group) if name != failed),
            *(f"+{name}" for name in group),
        ]

    async def play() -> None:
        journal: list[str] = []
        async with running() as system:
            await system.spawn(team(lane, journal, names, strategy=strategy), name="team")
            assert journal == [f"+{name}" for name in names]
            for place in (each % size for each in failing):
                journal.clear()
                system.tell(f"team/{names[place]}", ValueError("fails"))
                for name in names:  # every one of them answers again
                    assert await system.ask(f"team/{name}", "alive") == "alive"
                assert journal == expected(place)
            assert children_of(system, "team") == list(names)
            journal.clear()
        assert journal == [f"-{name}" for name in reversed(names)]

    asyncio.run(play())


async def test_s7_siblings_that_are_restarted_finish_their_message_and_keep_their_mail(lane: str) -> None:
    gate = Gate()
    handled: list[Any] = []

    class Sibling(Held):
        async def on_receive(self, message: Any) -> Any:
            handled.append(message)
            return await super().on_receive(message)

    children = (Child(on(lane, Log, restart=ALWAYS), name="x"), Child(on(lane, Sibling), gate, name="y"))
    async with running() as system:
        events = Recorder(system, ActorFailed, ActorRestarted)
        await system.spawn(
            on(lane, Supervisor, children=children, strategy="one_for_all", children_restart=ALWAYS), name="team"
        )
        y = system.resolve("team/y", None)
        held = y.ask("hold")
        await gate.until_entered()
        waiting = [y.ask(number) for number in range(3)]
        system.tell("team/x", ValueError("fails"))
        await events.first(ActorFailed)
        for _ in range(20):  # a restart that does not wait has had its chance
            await asyncio.sleep(0)
        assert len(events.events) == 1
        gate.opened.set()
        assert await held == "hold"
        assert [await future for future in waiting] == [0, 1, 2]
        assert handled == ["hold", 0, 1, 2]
        assert sorted(event.actor for event in events.events[1:]) == ["team/x", "team/y"]


@pytest.mark.parametrize(
    ("keep", "message", "restarted"),
    [
        ("permanent", ValueError("fails"), True),
        ("permanent", "quit", True),
        ("transient", ValueError("fails"), True),
        ("transient", "quit", False),
        ("temporary", ValueError("fails"), False),
        ("temporary", "quit", False),
    ],
)
async def test_s7_permanent_children_come_back_always_transient_when_they_fail_temporary_never(
    lane: str, keep: Keep, message: Any, *, restarted: bool
) -> None:
    journal: list[str] = []
    children = (
        Child(on(lane, Member), journal, name="x", keep=keep),
        Child(on(lane, Member), journal, name="y"),
    )
    async with running() as system:
        events = Recorder(system, ActorRestarted, ActorStopped)
        kind = on(lane, Supervisor, children=children, children_restart=ALWAYS)
        await system.spawn(kind, name="team")
        gone = system.watch("team/x")
        system.tell("team/x", message)
        await events.until(len)
        assert [type(event) for event in events.events] == [ActorRestarted if restarted else ActorStopped]
        assert gone.done() is not restarted
        assert children_of(system, "team") == (["x", "y"] if restarted else ["y"])
        assert journal.count("+x") == 1 + restarted
        assert "-y" not in journal


async def test_s7_a_permanent_child_that_stops_itself_ends_its_message_before_it_is_replaced(lane: str) -> None:
    gate = Gate()
    journal: list[str] = []

    class Leaving(Member):
        async def on_receive(self, message: Any) -> Any:
            if message != "leave":
                return message
            self.stop()
            await gate.wait_async()
            self.note("done by ")
            return "left"

    async with running() as system:
        await system.spawn(on(lane, Supervisor, children=(Child(on(lane, Leaving), journal, name="x"),)), name="team")
        leaving = system.resolve("team/x", None).ask("leave")
        following = system.resolve("team/x", None).ask("next")
        await gate.until_entered()
        for _ in range(20):  # a restart that does not wait has had its chance
            await asyncio.sleep(0)
        gate.opened.set()
        assert await leaving == "left"
        assert await following == "next"
        assert journal == ["+x", "done by x", "-x", "+x"]


async def test_s7_a_temporary_sibling_is_stopped_with_the_others_and_not_started_again(lane: str) -> None:
    journal: list[str] = []
    children = (
        Child(on(lane, Member), journal, name="x"),
        Child(on(lane, Member), journal, name="y", keep="temporary"),
        Child(on(lane, Member), journal, name="z"),
    )
    async with running() as system:
        kind = on(lane, Supervisor, children=children, strategy="one_for_all", children_restart=ALWAYS)
        await system.spawn(kind, name="team")
        journal.clear()
        system.tell("team/x", ValueError("fails"))
        assert [await system.ask(f"team/{name}", "alive") for name in "xz"] == ["alive", "alive"]
        assert journal == ["!x", "-z", "-y", "+x", "+z"]
        assert children_of(system, "team") == ["x", "z"]


async def test_s7_the_intensity_counts_all_children_together_and_then_fails_the_parent(lane: str) -> None:
    journal: list[str] = []
    together = RestartPolicy(intensity=2, period=5.0, shortest=0.0, longest=0.0)
    async with running() as system:
        events = Recorder(system, ActorRestarted, ActorGaveUp)
        await system.spawn(team(lane, journal, "abc", children_restart=together), name="team")
        for number, name in enumerate("abc", 1):
            system.tell(f"team/{name}", ValueError("fails"))
            await events.until(lambda seen, number=number: len(seen) == number)
        await events.until(lambda seen: len(seen) == 4)
        assert [(type(event), event.actor) for event in events.events] == [
            (ActorRestarted, "team/a"),
            (ActorRestarted, "team/b"),
            (ActorGaveUp, "team/c"),
            (ActorRestarted, "team"),
        ]
        assert journal == ["+a", "+b", "+c", "!a", "+a", "!b", "+b", "!c", "-b", "-a", "+a", "+b", "+c"]


async def test_s7_a_supervisor_that_was_restarted_counts_anew(lane: str) -> None:
    now = [0.0]
    together = RestartPolicy(intensity=1, period=5.0, shortest=0.0, longest=0.0)
    async with running(clock=lambda: now[0]) as system:
        events = Recorder(system, ActorRestarted)
        await system.spawn(team(lane, [], "a", children_restart=together), name="team")
        for number in range(1, 4):
            system.tell("team/a", ValueError("fails"))
            await events.until(lambda seen, number=number: len(seen) == number)
        assert [event.actor for event in events.events] == ["team/a", "team", "team/a"]


async def test_s7_what_a_parent_cannot_mend_goes_up_to_the_top(lane: str) -> None:
    none = RestartPolicy(intensity=0)
    journal: list[str] = []
    inner = Child(
        on(lane, Supervisor, children_restart=none), Child(on(lane, Member), journal, name="leaf"), name="inner"
    )
    outer = on(lane, Supervisor, children_restart=none, restart=AT_ONCE)
    async with running() as system:
        events = Recorder(system, ActorGaveUp, ActorRestarted)
        await system.spawn(outer, inner, name="outer")
        system.tell("outer/inner/leaf", ValueError("fails"))
        await events.until(lambda seen: len(seen) == 3)
        assert [(type(event), event.actor) for event in events.events] == [
            (ActorGaveUp, "outer/inner/leaf"),
            (ActorGaveUp, "outer/inner"),
            (ActorRestarted, "outer"),
        ]
        assert await system.ask("outer/inner/leaf", "alive") == "alive"
        assert journal == ["+leaf", "!leaf", "+leaf"]


async def test_s7_each_child_gets_its_own_grace(lane: str) -> None:
    gate = Gate()

    class Endless(Held):
        if lane == "thread":

            def on_receive(self, message: Any) -> Any:  # type: ignore[override]
                gate.hold()

    async with running() as system:
        events = Recorder(system, ActorStopped)
        child = Child(on(lane, Endless), gate, name="x", grace=0.02)
        await system.spawn(on(lane, Supervisor), child, name="team")
        system.tell("team/x", "hold")
        await gate.until_entered()
        async with asyncio.timeout(3):  # the parent itself has 5 s
            assert await system.stop("team")
        assert [event.actor for event in events.events] == ["team/x", "team"]
        gate.opened.set()


async def test_s7_a_child_with_more_grace_than_its_parent_gets_it(lane: str) -> None:
    gate = Gate()
    async with running() as system:
        events = Recorder(system, ActorStopped)
        child = Child(on(lane, Held), gate, name="x", grace=10.0)
        team = await system.spawn_spec(specify(on(lane, Supervisor), (child,), grace=0.0), name="team")
        held = system.resolve("team/x", None).ask("hold")
        await gate.until_entered()
        stopping = asyncio.create_task(system.stop(team))
        for _ in range(20):  # a stop that does not wait has had its chance
            await asyncio.sleep(0)
        gate.opened.set()
        assert await held == "hold"
        assert await stopping
        assert (events.events[0].actor, events.events[0].leaked) == ("team/x", False)


class Factory(Member):
    """Fails as often as it is told when it is made anew."""

    def __init__(self, journal: list[str], failures: Callable[[], bool]) -> None:
        super().__init__(journal)
        if failures():
            raise OSError("cannot be made")


async def test_s7_a_supervisor_survives_a_child_that_cannot_be_made_for_a_while(lane: str) -> None:
    journal: list[str] = []
    outcomes = iter([False, True, True, False])
    children = (
        Child(on(lane, Factory), journal, lambda: next(outcomes), name="x"),
        Child(on(lane, Member), journal, name="y"),
    )
    together = RestartPolicy(intensity=3, period=5.0, shortest=0.0, longest=0.0)
    async with running() as system:
        events = Recorder(system, ActorFailed, ActorRestarted)
        await system.spawn(on(lane, Supervisor, children=children, children_restart=together), name="team")
        system.tell("team/x", ValueError("fails"))
        assert await system.ask("team/x", "alive") == "alive"
        assert await system.ask("team/y", "alive") == "alive"
        assert journal == ["+x", "+y", "!x", "+x"]
        assert [(type(event), event.actor) for event in events.events] == [
            *[(ActorFailed, "team/x")] * 3,
            (ActorRestarted, "team/x"),
        ]


async def test_s7_a_child_that_can_never_be_made_again_ends_its_supervisor_and_everything_below(lane: str) -> None:
    journal: list[str] = []
    made: list[int] = []

    def once() -> bool:
        made.append(1)
        return len(made) > 1

    children = (Child(on(lane, Member), journal, name="y"), Child(on(lane, Factory), journal, once, name="x"))
    strict = RestartPolicy(intensity=1, period=5.0, shortest=0.0, longest=0.0)
    async with running() as system:
        kind = on(lane, Supervisor, children=children, children_restart=strict, restart=strict)
        ref = await system.spawn(kind, name="team")
        gone = system.watch(ref)
        system.tell("team/x", ValueError("fails"))
        assert (await gone).reason == "failed"
        assert [info.name for info in system.tree()] == ["router"]
        assert journal.count("+y") == journal.count("-y")


async def test_s7_a_child_that_cannot_be_added_leaves_the_others_alone(lane: str) -> None:
    journal: list[str] = []
    async with running() as system:
        ref = await system.spawn(team(lane, journal, "ab"), name="team")
        with pytest.raises(StartFailed):
            await system.ask(ref, Child(on(lane, Factory), journal, lambda: True, name="c"))
        with pytest.raises(NameTaken):
            await system.ask(ref, Child(on(lane, Member), journal, name="a"))
        await system.ask(ref, Child(on(lane, Member), journal, name="d"))
        assert children_of(system, "team") == ["a", "b", "d"]
        assert journal == ["+a", "+b", "+d"]


async def test_s7_children_of_a_supervisor_that_cannot_start_are_stopped_in_reverse(lane: str) -> None:
    journal: list[str] = []
    kind = team(lane, journal, "ab")
    kind.children = (*kind.children, Child(on(lane, Factory), journal, lambda: True, name="c"))
    async with running() as system:
        with pytest.raises(StartFailed):
            await system.spawn(kind, name="team")
        assert journal == ["+a", "+b", "-b", "-a"]
        assert [info.name for info in system.tree()] == ["router"]


# --- S8 poison ---

ONCE_MORE = RestartPolicy(intensity=1_000, shortest=0.0, longest=0.0, redeliver=True)


class Brittle(Actor):
    """Handles numbers; fails on one as often as the plan says."""

    restart = ONCE_MORE

    def __init__(self, plan: dict[Any, int], handled: list[Any]) -> None:
        super().__init__()
        self.plan = plan
        self.handled = handled

    def on_receive(self, message: Any) -> Any:
        self.handled.append((message, id(self)))
        if self.plan.get(message, 0) > 0:
            self.plan[message] -= 1
            raise ValueError(f"cannot digest {message}")
        return message


class AsyncBrittle(Brittle):
    async def on_receive(self, message: Any) -> Any:
        await asyncio.sleep(0)
        return super().on_receive(message)


@pytest.mark.parametrize("kind", [Brittle, AsyncBrittle])
async def test_s8_the_failing_message_is_tried_once_more_by_the_fresh_instance(lane: str, kind: type[Actor]) -> None:
    handled: list[Any] = []
    async with running() as system:
        letters = Recorder(system, DeadLetter)
        ref = await system.spawn(on(lane, kind), {1: 1}, handled)
        asked = [ref.ask(number, block=False) for number in range(4)]
        assert [await future for future in asked] == [0, 1, 2, 3]
        assert [message for message, _ in handled] == [0, 1, 1, 2, 3]
        assert handled[1][1] != handled[2][1] == handled[3][1]
        assert letters.events == []


@pytest.mark.parametrize("kind", [Brittle, AsyncBrittle])
async def test_s8_a_message_that_fails_twice_is_one_dead_letter_with_its_traceback(
    lane: str, kind: type[Actor]
) -> None:
    handled: list[Any] = []
    async with running() as system:
        letters = Recorder(system, DeadLetter)
        ref = await system.spawn(on(lane, kind), {"told": 5, "asked": 5}, handled, name="brittle")
        ref.tell("told")
        asked = ref.ask("asked", block=False)
        rest = [ref.ask(number, block=False) for number in range(3)]
        with pytest.raises(ValueError, match="cannot digest asked"):
            await asked
        assert [await future for future in rest] == [0, 1, 2]
        assert [message for message, _ in handled] == ["told", "told", "asked", "asked", 0, 1, 2]
        assert [(letter.to, letter.message, letter.reason) for letter in letters.events] == [
            ("brittle", "told", "poison"),
            ("brittle", "asked", "poison"),
        ]
        for letter in letters.events:
            assert "Traceback" in letter.details
            assert f"ValueError: cannot digest {letter.message}" in letter.details


async def test_s8_without_redelivery_a_failing_message_is_not_tried_again(lane: str) -> None:
    handled: list[Any] = []
    async with running() as system:
        ref = await system.spawn(on(lane, Brittle, restart=ALWAYS), {"bad": 5}, handled)
        ref.tell("bad")
        with pytest.raises(ValueError, match="bad"):
            await system.ask(ref, "bad")
        assert await system.ask(ref, "good") == "good"
        assert [message for message, _ in handled] == ["bad", "bad", "good"]  # once for the tell, once for the ask


@given(plan=st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=20), lane=lanes)
@settings(max_examples=30, deadline=None)
def test_s8_every_message_succeeds_within_two_tries_or_is_exactly_one_dead_letter(
    plan: list[tuple[int, bool]], lane: str
) -> None:
    async def play() -> None:
        handled: list[Any] = []
        async with running() as system:
            letters = Recorder(system, DeadLetter)
            failures = {number: times for number, (times, _) in enumerate(plan)}
            ref = await system.spawn(on(lane, Brittle), failures, handled)
            asked = {}
            for number, (_, ask) in enumerate(plan):
                if ask:
                    asked[number] = ref.ask(number, block=False)
                else:
                    ref.tell(number)
            await system.ask(ref, "end")
            poison = [number for number, (times, _) in enumerate(plan) if times >= 2]
            tries = [number for number, (times, _) in enumerate(plan) for _ in range(min(times + 1, 2))]
            assert [message for message, _ in handled] == [*tries, "end"]
            assert [(letter.message, letter.reason) for letter in letters.events] == [(n, "poison") for n in poison]
            for number, future in asked.items():
                assert (future.value(), future.error() is None) == (
                    (None, False) if number in poison else (number, True)
                )

    asyncio.run(play())


async def test_s8_an_ask_whose_failure_is_the_last_straw_gets_its_error_not_that_the_actor_is_dead(lane: str) -> None:
    strict = RestartPolicy(intensity=0, redeliver=True)
    handled: list[Any] = []
    async with running() as system:
        ref = await system.spawn(on(lane, Brittle, restart=strict), {"bad": 5}, handled)
        with pytest.raises(ValueError, match="cannot digest bad"):
            await system.ask(ref, "bad")
        assert len(handled) == 1


async def test_s8_a_message_is_tried_once_more_while_the_actor_drains(lane: str) -> None:
    gate = Gate()
    handled: list[Any] = []

    class Holding(Brittle):
        async def on_receive(self, message: Any) -> Any:
            if message == "hold":
                return await gate.wait_async()
            return super().on_receive(message)

    async with running() as system:
        letters = Recorder(system, DeadLetter)
        ref = await system.spawn(on(lane, Holding), {1: 1}, handled)
        ref.tell("hold")
        await gate.until_entered()
        asked = [ref.ask(number, block=False) for number in range(3)]
        draining = asyncio.create_task(system.drain(ref))
        await asyncio.sleep(0)
        gate.opened.set()
        assert await draining is True
        assert [await future for future in asked] == [0, 1, 2]
        assert [message for message, _ in handled] == [0, 1, 1, 2]
        assert letters.events == []


async def test_s8_a_message_of_an_instance_that_was_replaced_meanwhile_is_tried_once_more_too(lane: str) -> None:
    gates = {"first": Gate(), "second": Gate()}
    tries: list[Any] = []

    class Wide(Actor):
        concurrency = 2
        restart = ONCE_MORE

        async def on_receive(self, message: Any) -> Any:
            tries.append(message)
            if tries.count(message) > 1:
                return message
            await gates[message].wait_async()
            raise ValueError(message)

    async with running() as system:
        letters = Recorder(system, DeadLetter)
        restarts = Recorder(system, ActorRestarted)
        ref = await system.spawn(on(lane, Wide))
        first, second = (ref.ask(message, block=False) for message in gates)
        for gate in gates.values():
            await gate.until_entered()
        gates["first"].opened.set()
        assert await first == "first"
        await restarts.first(ActorRestarted)
        gates["second"].opened.set()
        assert await second == "second"
        assert letters.events == []


async def test_s4_what_an_actor_asked_for_fails_it_only_by_its_own_fault(lane: str) -> None:
    class Middle(Actor):
        restart = RestartPolicy(intensity=0)

        async def on_receive(self, message: Any) -> Any:
            try:
                return await self.ask("log", message)
            except AgentExecutionFailed:
                return "mended"

    async with running() as system:
        failures = Recorder(system, ActorFailed)
        await system.spawn(on(lane, Log, restart=ALWAYS), name="log")
        ref = await system.spawn(on(lane, Middle), name="middle")
        assert await system.ask(ref, KeyError("deep")) == "mended"
        assert await system.ask(ref, "fine") == "fine"
        assert [event.actor for event in failures.events] == ["log"]


async def test_s4_a_failure_is_told_once_whatever_the_message_came_by(lane: str) -> None:
    class Watching(Log):
        def on_terminated(self, terminated: Terminated) -> None:
            raise ValueError("by control message")

    async with running() as system:
        failures = Recorder(system, ActorFailed)
        ref = await system.spawn(on(lane, Watching, restart=ALWAYS))
        other = await system.spawn(on(lane, Log))
        ref.tell(ValueError("by tell"))
        with pytest.raises(ValueError, match="by ask"):
            await system.ask(ref, ValueError("by ask"))
        system.watch_for(other, ref._cell)
        await system.stop(other)
        assert await system.ask(ref, "alive") == "alive"
        assert [event.error for event in failures.events] == [
            "ValueError: by tell",
            "ValueError: by ask",
            "ValueError: by control message",
        ]


async def test_s5_mail_of_an_actor_that_gave_up_is_dead_letters_and_failed_asks(lane: str) -> None:
    gate = Gate()

    class Breaking(Held):
        restart = RestartPolicy(intensity=0)

        async def on_receive(self, message: Any) -> Any:
            await super().on_receive(message)
            raise ValueError("breaks")

    async with running() as system:
        letters = Recorder(system, DeadLetter)
        ref = await system.spawn(on(lane, Breaking), gate)
        ref.tell("hold")
        await gate.until_entered()
        ref.tell("told")
        asked = ref.ask("asked", block=False)
        gate.opened.set()
        with pytest.raises(ActorDead):
            await asked
        assert [(letter.message, letter.reason) for letter in letters.events] == [("told", "stopped")]
