"""The contract on beginning and end, over every lane: start (S9), stop (S10), control first (S11), watch (S12)."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grami_actors.actor import Actor
from grami_actors.cell import ActorDead
from grami_actors.errors import (
    AgentCrashed,
    AgentUnavailable,
    DestinationNotFound,
    KillRefused,
    NameTaken,
    ShuttingDown,
    StartFailed,
)
from grami_actors.messages import Terminated
from grami_actors.ref import Ref
from grami_actors.restarts import RestartPolicy
from grami_actors.system import ActorSystem
from grami_actors.telemetry import (
    ActorFailed,
    ActorRestarted,
    ActorResumed,
    ActorStarted,
    ActorStopped,
    ActorSuspended,
    DeadLetter,
    MessageHandled,
)
from tests.conftest import LANES, Gate, Recorder, on, running
from tests.test_contract import AT_ONCE, Held, Log

lanes = st.sampled_from(LANES)


class HeldLog(Log):
    """Handles "hold" until the gate opens; keeps everything else."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gate = gate

    async def on_receive(self, message: Any) -> Any:
        if message == "hold":
            return await self.gate.wait_async()
        return super().on_receive(message)


class Watcher(Log):
    """Watches what it is told to; keeps the ends that it is told of."""

    def on_receive(self, message: Any) -> Any:
        match message:
            case ("watch", target):
                return self.watch(target)
            case ("unwatch", target):
                return self.unwatch(target)
        return super().on_receive(message)

    def on_terminated(self, terminated: Terminated) -> None:
        self.seen.append(terminated)


async def until_stopped(system: ActorSystem, ref: Ref[Any]) -> str:
    return (await system.watch(ref)).reason


# --- S9 start is honest ---


async def test_s9_a_constructor_that_raises_leaves_nothing_behind(lane: str) -> None:
    class Broken(Log):
        def __init__(self) -> None:
            raise OSError("cannot be made")

    async with running() as system:
        events = Recorder(system, ActorStarted)
        with pytest.raises(StartFailed, match="broken could not be started: OSError: cannot be made") as caught:
            await system.spawn(on(lane, Broken), name="broken")
        assert isinstance(caught.value.__cause__, OSError)
        assert [info.name for info in system.tree()] == ["router"]
        assert events.events == []
        await system.spawn(on(lane, Log), name="broken")


async def test_s9_what_was_sent_before_a_start_that_fails_is_answered_or_a_dead_letter(lane: str) -> None:
    gate = Gate()

    class Broken(Log):
        async def on_start(self) -> None:
            await gate.wait_async()
            raise OSError("cannot start")

    async with running() as system:
        letters = Recorder(system, DeadLetter)
        starting = asyncio.create_task(system.spawn(on(lane, Broken), name="broken"))
        await gate.until_entered()
        asked = system.resolve("broken", None).ask("asked")
        system.tell("broken", "told")
        watched = system.watch("broken")
        gate.opened.set()
        with pytest.raises(StartFailed):
            await starting
        with pytest.raises(ActorDead):
            await asked
        assert [(letter.message, letter.reason) for letter in letters.events] == [("told", "stopped")]
        assert await watched == Terminated("broken", "failed")


async def test_s9_nothing_is_handled_before_on_start_has_ended(lane: str) -> None:
    gate = Gate()

    class Slow(HeldLog):
        async def on_start(self) -> None:
            await self.gate.wait_async()
            self.seen.append("started")

    async with running() as system:
        starting = asyncio.create_task(system.spawn(on(lane, Slow), gate, name="slow"))
        await gate.until_entered()
        early = system.resolve("slow", None).ask("early")
        gate.opened.set()
        ref = await starting
        assert await early == "early"
        assert await system.ask(ref, "read") == ["started", "early"]


async def test_s9_an_actor_that_is_stopped_while_it_starts_is_a_failed_start_however_its_on_start_ends(
    lane: str,
) -> None:
    gate = Gate()

    class Wrapping(Actor):
        async def on_start(self) -> None:
            try:
                await gate.wait_async()
            except asyncio.CancelledError:
                raise ConnectionError("interrupted") from None

    async with running() as system:
        starting = asyncio.create_task(system.spawn(on(lane, Wrapping), name="slow"))
        await gate.until_entered()
        stopping = asyncio.create_task(system.stop("slow"))
        with pytest.raises(StartFailed):
            await starting
        gate.opened.set()
        assert await stopping
        with pytest.raises(DestinationNotFound):
            await system.ask("slow", "?")
        await system.spawn(on(lane, Log), name="slow")


@given(
    plan=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["spawn", "break", "stop"])), max_size=15),
    lane=lanes,
)
@settings(max_examples=25, deadline=None)
def test_s9_a_name_belongs_to_exactly_one_actor_or_to_none(plan: list[tuple[str, str]], lane: str) -> None:
    class Broken(Actor):
        def on_start(self) -> None:
            raise ValueError("cannot start")

    async def play() -> None:
        alive: set[str] = set()
        async with running() as system:
            for name, step in plan:
                if step == "stop":
                    assert await stopped(system, name) is (name in alive)
                    alive.discard(name)
                elif name in alive:
                    with pytest.raises(NameTaken):
                        await system.spawn(on(lane, Log), name=name)
                elif step == "break":
                    with pytest.raises(StartFailed):
                        await system.spawn(on(lane, Broken), name=name)
                else:
                    await system.spawn(on(lane, Log), name=name)
                    alive.add(name)
                assert {info.name for info in system.tree()} == {"router", *alive}

    asyncio.run(play())


async def stopped(system: ActorSystem, name: str) -> bool:
    try:
        return await system.stop(name)
    except DestinationNotFound:
        return False


async def test_s9_a_parent_that_stops_starts_no_more_children(lane: str) -> None:
    gate = Gate()
    refused: list[str] = []

    class Parent(Log):
        async def on_receive(self, message: Any) -> Any:
            await gate.wait_async()
            try:
                await self.spawn(on(lane, Log), name="late")
            except ShuttingDown:
                refused.append("late")

    async with running() as system:
        ref = await system.spawn(on(lane, Parent), name="parent")
        ref.tell("spawn")
        await gate.until_entered()
        stopping = asyncio.create_task(system.stop(ref))
        await asyncio.sleep(0)
        gate.opened.set()
        assert await stopping
        assert refused == ["late"]
        assert [info.name for info in system.tree()] == ["router"]


# --- S10 stop, drain, kill ---


async def test_s10_an_actor_that_stops_itself_handles_nothing_after_the_message_in_hand(lane: str) -> None:
    class Quitter(Log):
        handled: list[Any] = []  # noqa: RUF012 - outlives the instance, for this test alone

        def on_receive(self, message: Any) -> Any:
            self.handled.append(message)
            if message == "quit":
                self.stop()

    async with running() as system:
        letters = Recorder(system, DeadLetter)
        ref = await system.spawn(on(lane, Quitter))
        gone = system.watch(ref)
        ref.tell("quit")
        for number in range(20):
            with contextlib.suppress(ActorDead):  # on a thread it may have stopped already
                ref.tell(number)
        await gone
        assert Quitter.handled == ["quit"]
        assert [letter.message for letter in letters.events] == list(range(len(letters.events)))


async def test_s10_what_waits_when_stop_is_called_is_not_handled_any_more(lane: str) -> None:
    gate = Gate()
    handled: list[Any] = []

    class Tidy(HeldLog):
        async def on_receive(self, message: Any) -> Any:
            handled.append(message)
            return await super().on_receive(message)

        def on_stop(self) -> None:
            handled.append("on_stop")

    async with running() as system:
        letters = Recorder(system, DeadLetter)
        ref = await system.spawn(on(lane, Tidy), gate)
        if lane == "thread":  # where the message in hand ends at any time
            ref.tell("hold")
            await gate.until_entered()
        for number in range(3):
            ref.tell(number)
        stopping = ref.stop(block=False)
        gate.opened.set()
        assert await stopping
        assert handled == ["hold"] * (lane == "thread") + ["on_stop"]
        assert [letter.message for letter in letters.events] == [0, 1, 2]


@given(plan=st.lists(st.sampled_from(["tell", "ask"]), max_size=12), when=st.integers(0, 12), lane=lanes)
@settings(max_examples=30, deadline=None)
def test_s10_drain_handles_everything_that_was_sent_before_it_and_refuses_everything_after(
    plan: list[str], when: int, lane: str
) -> None:
    async def play() -> None:
        gate = Gate()
        handled: list[Any] = []

        class Draining(Actor):
            async def on_receive(self, message: Any) -> Any:
                if message == "hold":
                    return await gate.wait_async()
                handled.append(message)
                return message

            def on_stop(self) -> None:
                handled.append("on_stop")

        async with running() as system:
            letters = Recorder(system, DeadLetter)
            ref = await system.spawn(on(lane, Draining), name="worker")
            ref.tell("hold")
            await gate.until_entered()
            asked: dict[int, Any] = {}
            draining = None
            for number, step in enumerate(plan):
                if number == when:
                    draining = await begun(system.drain("worker"))
                if draining is None:
                    if step == "ask":
                        asked[number] = ref.ask(number, block=False)
                    else:
                        ref.tell(number)
                elif step == "ask":
                    with pytest.raises(AgentUnavailable):
                        await ref.ask(number, block=False)
                else:
                    with pytest.raises(ActorDead):
                        ref.tell(number)
            gate.opened.set()
            assert await (draining or system.drain("worker")) is True
            accepted = list(range(min(when, len(plan))))
            assert handled == [*accepted, "on_stop"]
            assert {number: future.value() for number, future in asked.items()} == {number: number for number in asked}
            assert letters.events == []
            assert [info.name for info in system.tree()] == ["router"]

    asyncio.run(play())


async def begun(work: Any) -> asyncio.Task[Any]:
    """A task that has taken its first step."""
    task = asyncio.create_task(work)
    await asyncio.sleep(0)
    return task


async def test_s10_what_is_not_drained_in_time_becomes_dead_letters(lane: str) -> None:
    gate = Gate()
    async with running() as system:
        letters = Recorder(system, DeadLetter)
        ref = await system.spawn(on(lane, Held), gate, name="held")
        held = ref.ask("hold", block=False)
        await gate.until_entered()
        ref.tell("told")
        asked = ref.ask("asked", block=False)
        draining = asyncio.create_task(system.drain("held", timeout=0.01))
        with pytest.raises(ActorDead):
            await asked
        gate.opened.set()
        assert await held == "hold"
        assert await draining is False
        assert [(letter.message, letter.reason) for letter in letters.events] == [("told", "stopped")]


async def test_s10_a_drain_says_so_when_the_actor_ended_before_its_backlog(lane: str) -> None:
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
        ref.tell("never handled")
        draining = await begun(system.drain(ref))
        gate.opened.set()
        assert await draining is False
        assert [letter.message for letter in letters.events] == ["never handled"]


async def test_s10_a_drain_goes_on_through_a_restart(lane: str) -> None:
    gate = Gate()
    handled: list[Any] = []

    class Fragile(Held):
        async def on_receive(self, message: Any) -> Any:
            handled.append(message)
            if message == 1:
                raise ValueError("once")
            return await super().on_receive(message)

    async with running() as system:
        ref = await system.spawn(on(lane, Fragile), gate)
        ref.tell("hold")
        await gate.until_entered()
        for number in range(4):
            ref.tell(number)
        draining = await begun(system.drain(ref))
        gate.opened.set()
        assert await draining is True
        assert handled == ["hold", 0, 1, 2, 3]


async def test_s10_senders_that_wait_for_room_belong_to_the_backlog_of_a_drain(lane: str) -> None:
    gate = Gate()
    async with running() as system:
        ref = await system.spawn(on(lane, HeldLog, mailbox=1, overflow="wait"), gate)
        held = ref.ask("hold", block=False)
        await gate.until_entered()
        asked = [ref.ask(number, block=False) for number in range(4)]
        draining = await begun(system.drain(ref))
        gate.opened.set()
        assert await draining is True
        await held
        assert [await future for future in asked] == [0, 1, 2, 3]


async def test_s10_two_who_stop_are_both_told_but_only_one_did_it(lane: str) -> None:
    gate = Gate()
    async with running() as system:
        events = Recorder(system, ActorStopped)
        ref = await system.spawn(on(lane, Held), gate)
        ref.tell("hold")
        await gate.until_entered()
        stops = [ref.stop(block=False) for _ in range(3)]
        assert not any(future.done() for future in stops[:1])
        gate.opened.set()
        assert [await future for future in stops] == [True, False, False]
        assert len(events.events) == 1


async def test_s10_an_on_start_that_goes_on_after_a_stop_is_said_to_be_left_behind() -> None:
    gate = Gate()

    class Blocking(Actor):
        lane = "thread"

        def on_start(self) -> None:
            gate.hold()

    async with running() as system:
        events = Recorder(system, ActorStopped)
        starting = asyncio.create_task(system.spawn(Blocking, name="slow"))
        await gate.until_entered()
        await system.stop("slow", grace=0.01)
        with pytest.raises(StartFailed):
            await starting
        assert [(event.actor, event.leaked) for event in events.events] == [("slow", True)]
        gate.opened.set()


async def test_s10_a_kill_ends_what_is_in_hand_only_and_a_thread_refuses(lane: str) -> None:
    gate = Gate()
    async with running() as system:
        events = Recorder(system, ActorRestarted, DeadLetter)
        ref = await system.spawn(on(lane, HeldLog), gate, name="held")
        in_hand = ref.ask("hold", block=False)
        await gate.until_entered()
        for number in range(3):
            ref.tell(number)
        if lane == "thread":
            with pytest.raises(KillRefused, match="held runs on the thread lane"):
                system.kill("held")
            gate.opened.set()
            assert await in_hand is None
        else:
            system.kill("held")
            with pytest.raises(AgentCrashed, match="outcome is unknown"):
                await in_hand
        assert await system.ask(ref, "read") == [0, 1, 2]
        assert [type(event) for event in events.events] == [ActorRestarted] * (lane == "loop")
        gate.opened.set()


async def test_s10_killing_an_idle_actor_restarts_it() -> None:
    async with running() as system:
        events = Recorder(system, ActorFailed, ActorRestarted)
        ref = await system.spawn(Log, name="log")
        await system.ask(ref, "state")
        system.kill(ref)
        assert await system.ask(ref, "read") == []
        assert [type(event) for event in events.events] == [ActorFailed, ActorRestarted]


# --- S11 control first ---


async def test_s11_a_stop_does_not_wait_behind_messages(lane: str) -> None:
    gate = Gate()
    handled: list[Any] = []

    class Busy(Held):
        async def on_receive(self, message: Any) -> Any:
            handled.append(message)
            return await super().on_receive(message)

    async with running() as system:
        letters = Recorder(system, DeadLetter)
        ref = await system.spawn(on(lane, Busy), gate)
        ref.tell("hold")
        await gate.until_entered()
        for number in range(100):
            ref.tell(number)
        stopping = await begun(system.stop(ref))
        gate.opened.set()
        assert await stopping
        assert handled == ["hold"]
        assert [letter.message for letter in letters.events] == list(range(100))


@given(plan=st.lists(st.sampled_from(["suspend", "resume", "tell"]), max_size=15), lane=lanes)
@settings(max_examples=30, deadline=None)
def test_s11_a_suspended_actor_handles_nothing_until_it_is_resumed_and_loses_nothing(
    plan: list[str], lane: str
) -> None:
    async def play() -> None:
        async with running() as system:
            events = Recorder(system, ActorSuspended, ActorResumed)
            handled = Recorder(system, MessageHandled)
            ref = await system.spawn(on(lane, Log), name="log")
            suspended, sent, before = False, 0, 0
            for step in plan:
                if step == "tell":
                    ref.tell(sent)
                    sent += 1
                    if not suspended:
                        await handled.until(lambda seen, sent=sent: len(seen) == sent)
                        before = sent
                elif step == "suspend":
                    assert system.suspend("log") is not suspended
                    suspended = True
                else:
                    assert system.resume("log") is suspended
                    suspended, before = False, sent
                    await handled.until(lambda seen, sent=sent: len(seen) == sent)
                assert len(handled.events) == before
            system.resume("log")
            assert await system.ask(ref, "read") == list(range(sent))
            kinds = [type(event) for event in events.events]
            assert kinds == [ActorSuspended, ActorResumed] * (len(kinds) // 2)

    asyncio.run(play())


async def test_s11_suspending_lets_the_message_in_hand_end_and_a_suspended_actor_can_be_stopped(lane: str) -> None:
    gate = Gate()
    async with running() as system:
        letters = Recorder(system, DeadLetter)
        ref = await system.spawn(on(lane, Held), gate)
        in_hand = ref.ask("hold", block=False)
        await gate.until_entered()
        assert system.suspend(ref)
        ref.tell("waits")
        gate.opened.set()
        assert await in_hand == "hold"
        assert await system.stop(ref)
        assert [letter.message for letter in letters.events] == ["waits"]


async def test_s11_a_suspended_actor_that_fails_is_still_suspended_afterwards(lane: str) -> None:
    gate = Gate()
    handled: list[Any] = []

    class Breaking(Held):
        async def on_receive(self, message: Any) -> Any:
            handled.append(message)
            await super().on_receive(message)
            if message == "hold":
                raise ValueError("breaks")
            return message

    async with running() as system:
        events = Recorder(system, ActorRestarted)
        ref = await system.spawn(on(lane, Breaking), gate)
        ref.tell("hold")
        await gate.until_entered()
        assert system.suspend(ref)
        waiting = ref.ask("waits", block=False)
        gate.opened.set()
        await events.first(ActorRestarted)
        # The only sign of a message that is not handled is one sent later that is: to somebody on the same lane.
        other = await system.spawn(on(lane, Log))
        for number in range(3):
            await system.ask(other, number)
        assert handled == ["hold"]
        assert system.resume(ref)
        assert await waiting == "waits"


async def test_s11_terminated_comes_before_all_messages_that_wait_and_after_the_one_in_hand(lane: str) -> None:
    gate = Gate()

    class Watching(Watcher):
        async def on_receive(self, message: Any) -> Any:
            if message == "hold":
                await gate.wait_async()
            return super().on_receive(message)

    async with running() as system:
        ref = await system.spawn(on(lane, Watching))
        targets = [await system.spawn(on(lane, Log), name=f"target-{number}") for number in range(2)]
        for target in targets:
            await system.ask(ref, ("watch", target))
        ref.tell("hold")
        await gate.until_entered()
        for number in range(3):
            ref.tell(number)
        for target in targets:
            await system.stop(target)
        gate.opened.set()
        assert await system.ask(ref, "read") == [
            "hold",
            Terminated("target-0", "stopped"),
            Terminated("target-1", "stopped"),
            0,
            1,
            2,
        ]


async def test_s11_terminated_comes_between_two_messages_of_one_turn() -> None:
    """The loop lane hands out turns of many messages; what ends in the middle of one is known at the next message."""

    class Watching(Watcher):
        def on_receive(self, message: Any) -> Any:
            if message == "stop it":
                system.stop_soon(target._cell)
            return super().on_receive(message)

    async with running() as system:
        ref = await system.spawn(Watching)
        target = await system.spawn(Log, name="target")
        await system.ask(ref, ("watch", target))
        for message in (0, "stop it", 1, 2):
            ref.tell(message)
        assert await system.ask(ref, "read") == [0, "stop it", Terminated("target", "stopped"), 1, 2]


async def test_s11_terminated_is_never_refused_by_a_full_mailbox(lane: str) -> None:
    gate = Gate()

    class Watching(Watcher):
        mailbox = 1

        async def on_receive(self, message: Any) -> Any:
            if message == "hold":
                await gate.wait_async()
            return super().on_receive(message)

    async with running() as system:
        ref = await system.spawn(on(lane, Watching))
        targets = [await system.spawn(on(lane, Log), name=f"target-{number}") for number in range(5)]
        for target in targets:
            await system.ask(ref, ("watch", target))
        ref.tell("hold")
        await gate.until_entered()
        ref.tell("full")
        for target in targets:
            await system.stop(target)
        handled = Recorder(system, MessageHandled)
        gate.opened.set()
        await handled.until(lambda events: [event for event in events if event.message == "full"])
        seen = await system.ask(ref, "read")
        assert [each.name for each in seen[1:-1]] == [target.name for target in targets]


# --- S12 watch ---


class Ends:
    """What the watchers have to be told, as the contract says it."""

    def __init__(self, watchers: int) -> None:
        self.due: list[Counter[tuple[str, str]]] = [Counter() for _ in range(watchers)]
        self.watching: dict[str, set[int]] = {}
        self.gone: set[str] = set()

    def watch(self, watcher: int, target: str) -> None:
        if target in self.gone:
            self.due[watcher][target, "unknown"] += 1
        else:
            self.watching.setdefault(target, set()).add(watcher)

    def unwatch(self, watcher: int, target: str) -> None:
        self.watching.get(target, set()).discard(watcher)

    def end(self, target: str, reason: str) -> None:
        self.gone.add(target)
        for watcher in self.watching.pop(target, ()):
            self.due[watcher][target, reason] += 1


steps = st.tuples(
    st.sampled_from(["watch", "watch", "unwatch", "stopped", "failed", "restart", "restart watcher"]),
    st.integers(0, 2),
    st.sampled_from(["x", "y", "z"]),
)


async def happen(system: ActorSystem, ref: Ref[Any], what: str) -> None:
    """Restart an actor, or end it."""
    gone = system.watch(ref)
    if what == "restart":
        ref.tell(ValueError("restart"))
        await system.ask(ref, "alive")
        assert not gone.done()
    elif what == "stopped":
        await system.stop(ref)
    else:
        ref.tell(KeyError("the end"))
        assert (await gone).reason == "failed"


@given(plan=st.lists(steps, max_size=20), lane=lanes)
@settings(max_examples=50, deadline=None)
def test_s12_who_watches_is_told_exactly_once_with_the_reason_whatever_the_order(
    plan: list[tuple[str, int, str]], lane: str
) -> None:
    async def play() -> None:
        told: list[list[Terminated]] = [[], [], []]

        class Told(Watcher):
            restart = RestartPolicy(intensity=100, shortest=0, longest=0)

            def __init__(self, number: int) -> None:
                super().__init__()
                self.number = number

            def on_terminated(self, terminated: Terminated) -> None:
                told[self.number].append(terminated)

        class Target(Log):
            restart = RestartPolicy(intensity=100, shortest=0, longest=0, directives={KeyError: "stop"})

        ends = Ends(3)
        async with running() as system:
            watchers = [await system.spawn(on(lane, Told), number) for number in range(3)]
            targets = {name: await system.spawn(on(lane, Target), name=name) for name in "xyz"}
            for step, number, name in plan:
                if step in {"watch", "unwatch"}:
                    await system.ask(watchers[number], (step, targets[name]))
                    getattr(ends, step)(number, name)
                elif step == "restart watcher":
                    watchers[number].tell(ValueError("restart"))
                elif name not in ends.gone:
                    await happen(system, targets[name], step)
                    if step != "restart":
                        ends.end(name, step)
            for watcher in watchers:
                await system.ask(watcher, "read")
            seen = [Counter((each.name, each.reason) for each in each_told) for each_told in told]
            assert seen == ends.due

    asyncio.run(play())


async def test_s12_a_watch_from_outside_is_told_of_every_kind_of_end(lane: str) -> None:
    class Quitter(Log):
        def on_receive(self, message: Any) -> Any:
            if message == "quit":
                self.stop()
            return super().on_receive(message)

    kind = on(lane, Quitter, restart=RestartPolicy(intensity=0))
    async with running() as system:
        refs = [await system.spawn(kind, name=name) for name in ("stopped", "quits", "drained", "fails")]
        ends = [system.watch(ref) for ref in refs]
        twice = system.watch("stopped")
        await system.stop("stopped")
        system.tell("quits", "quit")
        await system.drain("drained")
        system.tell("fails", ValueError("fails"))
        assert [(await end).reason for end in ends] == ["stopped", "stopped", "stopped", "failed"]
        assert (await twice).reason == "stopped"
        assert [await until_stopped(system, ref) for ref in refs] == ["unknown"] * 4
        with pytest.raises(DestinationNotFound):
            system.watch("stopped")


async def test_s12_a_name_that_is_given_again_is_another_actor(lane: str) -> None:
    async with running() as system:
        watcher = await system.spawn(on(lane, Watcher))
        old = await system.spawn(on(lane, Log), name="worker")
        await system.ask(watcher, ("watch", "worker"))
        await system.stop(old)
        new = await system.spawn(on(lane, Log), name="worker")
        await system.stop(new)
        assert await system.ask(watcher, "read") == [Terminated("worker", "stopped")]


async def test_s12_parents_and_children_may_watch_each_other(lane: str) -> None:
    class Parent(Watcher):
        async def on_start(self) -> None:
            self.watch(
                await self.spawn(on(lane, Log, restart=RestartPolicy(directives={ValueError: "stop"})), name="x")
            )

    async with running() as system:
        ref = await system.spawn(on(lane, Parent), name="parent")
        gone = system.watch("parent/x")
        system.tell("parent/x", ValueError("fails"))
        await gone
        assert await system.ask(ref, "read") == [Terminated("parent/x", "failed")]


async def test_s12_who_drains_is_still_told(lane: str) -> None:
    gate = Gate()
    told: list[Any] = []

    class Watching(Watcher):
        async def on_receive(self, message: Any) -> Any:
            if message == "hold":
                await gate.wait_async()
            return super().on_receive(message)

        def on_terminated(self, terminated: Terminated) -> None:
            told.append(terminated.name)

    async with running() as system:
        ref = await system.spawn(on(lane, Watching))
        target = await system.spawn(on(lane, Log), name="target")
        await system.ask(ref, ("watch", target))
        ref.tell("hold")
        await gate.until_entered()
        draining = await begun(system.drain(ref))
        await system.stop(target)
        gate.opened.set()
        assert await draining
        assert told == ["target"]


async def test_s12_unwatching_what_has_just_gone_is_no_error(lane: str) -> None:
    async with running() as system:
        watcher = await system.spawn(on(lane, Watcher))
        target = await system.spawn(on(lane, Log), name="target")
        await system.ask(watcher, ("watch", "target"))
        await system.stop(target)
        await system.ask(watcher, ("unwatch", "target"))
        assert await system.ask(watcher, "read") == [Terminated("target", "stopped")]


async def test_s12_a_watcher_that_is_gone_is_forgotten(lane: str) -> None:
    async with running() as system:
        target = await system.spawn(on(lane, Log), name="target")
        for _ in range(3):
            watcher = await system.spawn(on(lane, Watcher))
            await system.ask(watcher, ("watch", target))
            await system.stop(watcher)
        assert not target._cell.watchers


async def test_s12_a_watch_that_is_given_up_is_forgotten(lane: str) -> None:
    async with running() as system:
        ref = await system.spawn(on(lane, Log))
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await system.watch(ref)
        assert not ref._cell.watchers


async def test_s10_and_s11_hold_for_an_actor_that_waits_for_its_next_instance(lane: str) -> None:
    class Slow(Log):
        restart = RestartPolicy(shortest=30.0, longest=30.0)

    async with running() as system:
        letters = Recorder(system, DeadLetter, ActorFailed)
        ref = await system.spawn(on(lane, Slow))
        gone = system.watch(ref)
        ref.tell(ValueError("fails"))
        await letters.first(ActorFailed)
        ref.tell("waits")
        assert await system.stop(ref)
        assert (await gone).reason == "stopped"
        assert [event.message for event in letters.events[1:]] == ["waits"]


async def test_s9_to_s12_hold_when_everything_happens_at_once(lane: str) -> None:
    """Many actors are asked, failed, stopped and drained in one breath: each ask is answered, each watch is told."""
    async with running() as system:
        kind = on(lane, Log, restart=AT_ONCE)
        refs = [await system.spawn(kind) for _ in range(12)]
        ends = [system.watch(ref) for ref in refs]
        asked = [ref.ask(message, block=False) for message in (1, ValueError("x"), 2) for ref in refs]
        closing = [
            asyncio.create_task(system.drain(ref) if number % 2 else system.stop(ref))
            for number, ref in enumerate(refs)
        ]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(answer, (int, ValueError, ActorDead)) for answer in answers)
        await asyncio.gather(*closing)
        assert {(await end).reason for end in ends} == {"stopped"}
        assert [info.name for info in system.tree()] == ["router"]


async def test_s12_what_is_unwatched_is_not_told_of_even_if_its_end_waits_in_the_mailbox(lane: str) -> None:
    gate, told = Gate(), []

    class Watching(Actor):
        async def on_receive(self, message: Any) -> Any:
            if message == "hold":
                await gate.wait_async()
                self.unwatch("target")

        def on_terminated(self, terminated: Terminated) -> None:
            told.append(terminated.name)

    async with running() as system:
        watcher = await system.spawn(on(lane, Watching))
        for name in ("target", "other"):
            await system.spawn(Actor, name=name)
            system.watch_for(name, watcher._cell)
        held = watcher.ask("hold", block=False)
        await gate.until_entered()
        await system.stop("target")
        await system.stop("other")
        gate.opened.set()
        await held
        await watcher.ask("anything", block=False)
        assert told == ["other"]


async def test_s10_a_drain_waits_for_all_handlers_that_are_still_at_work() -> None:
    gate = Gate()
    ended: list[str] = []

    class Slow(Actor):
        concurrency = 2

        async def on_receive(self, message: Any) -> None:
            try:
                await gate.wait_async()
                ended.append("handled")
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise

    async with running() as system:
        ref = await system.spawn(Slow, name="slow")
        system.tell(ref, "work")
        await gate.until_entered()
        assert not await system.drain(ref, timeout=0.01)
        assert ended == ["cancelled"]


@pytest.mark.parametrize("way", ["swallows", "kills itself"])
async def test_s10_what_is_killed_ends_as_killed_whatever_its_handler_makes_of_it(way: str) -> None:
    gate = Gate()

    class Stubborn(Actor):
        restart = AT_ONCE

        async def on_receive(self, message: Any) -> str:
            if message == "again":
                return "fresh"
            if way == "kills itself":
                system.kill(self.name)
            with contextlib.suppress(asyncio.CancelledError):
                await gate.wait_async()
            return "saved"

    async with running() as system:
        restarted = Recorder(system, ActorRestarted)
        ref = await system.spawn(Stubborn, name="stubborn")
        asked = ref.ask("work", block=False)
        await gate.until_entered()
        if way == "swallows":
            system.kill(ref)
        gate.opened.set()
        with pytest.raises(AgentCrashed):
            await asked
        await restarted.first(ActorRestarted)
        assert await system.ask(ref, "again") == "fresh"
