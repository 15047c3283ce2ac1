"""The actor contract, run over every lane. Names in brackets are the lines of docs/semantics.md."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import pykka
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grami_actors.actor import Actor
from grami_actors.cell import ActorDead
from grami_actors.errors import (
    AgentCrashed,
    AgentExecutionFailed,
    AgentUnavailable,
    AskCycle,
    Cancelled,
    DeadlineExceeded,
    DestinationNotFound,
    GramiError,
    KillRefused,
    MailboxFull,
    NameTaken,
    Reject,
    ShuttingDown,
    StartFailed,
    WouldDeadlock,
)
from grami_actors.future import STREAM_BUFFER, current_scope
from grami_actors.restarts import RestartPolicy
from grami_actors.telemetry import (
    ActorFailed,
    ActorGaveUp,
    ActorPaused,
    ActorRestarted,
    ActorStopped,
    DeadLetter,
    MessageHandled,
)
from tests.conftest import LANES, Gate, Recorder, on, running

AT_ONCE = RestartPolicy(shortest=0.0, longest=0.0)


class Log(Actor):
    """Keeps what it gets; answers with it all on "read"."""

    restart = AT_ONCE

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def on_receive(self, message: Any) -> Any:
        if message == "read":
            return self.seen
        if isinstance(message, BaseException):
            raise message
        self.seen.append(message)
        return message


class AsyncLog(Log):
    """The same with a coroutine handler that lets others run in the middle."""

    async def on_receive(self, message: Any) -> Any:
        await asyncio.sleep(0)
        return super().on_receive(message)


class Held(Actor):
    """Handles "hold" until the gate opens, everything else at once."""

    restart = AT_ONCE

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gate = gate

    async def on_receive(self, message: Any) -> Any:
        if message == "hold":
            await self.gate.wait_async()
        return message


@pytest.fixture(params=[Log, AsyncLog])
def log(request: pytest.FixtureRequest, lane: str) -> type[Any]:
    return on(lane, request.param)


# --- S1 order ---


async def test_s1_messages_of_one_sender_are_handled_in_send_order(log: type[Any]) -> None:
    async with running() as system:
        ref = await system.spawn(log)
        for number in range(500):
            ref.tell(number)
        assert await system.ask(ref, "read") == list(range(500))


async def test_s1_every_one_of_many_sending_threads_keeps_its_order(log: type[Any]) -> None:
    async with running() as system:
        ref = await system.spawn(on(log.lane, log, mailbox=10_000))
        loop = asyncio.get_running_loop()

        def send(thread: int) -> None:
            for number in range(300):
                ref.tell((thread, number))

        with ThreadPoolExecutor(8) as pool:
            await asyncio.gather(*(loop.run_in_executor(pool, send, thread) for thread in range(8)))
        seen = await system.ask(ref, "read")
        for thread in range(8):
            assert [number for sender, number in seen if sender == thread] == list(range(300))


@given(plan=st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=40), lane=st.sampled_from(LANES))
@settings(max_examples=30, deadline=None)
def test_s1_order_holds_for_any_mix_of_tells_asks_and_receivers(plan: list[tuple[int, bool]], lane: str) -> None:
    async def play() -> None:
        async with running() as system:
            refs = [await system.spawn(on(lane, kind)) for kind in (Log, AsyncLog, Log)]
            asked = []
            for number, (receiver, ask) in enumerate(plan):
                if ask:
                    asked.append(refs[receiver].ask(number, block=False))
                else:
                    refs[receiver].tell(number)
            for future in asked:
                await future
            for receiver, ref in enumerate(refs):
                expected = [number for number, (to, _) in enumerate(plan) if to == receiver]
                assert await system.ask(ref, "read") == expected

    asyncio.run(play())


# --- S2 never lost silently ---


async def test_s2_what_is_queued_when_an_actor_stops_becomes_dead_letters_and_failed_asks(lane: str) -> None:
    gate = Gate()
    async with running() as system:
        letters = Recorder(system, DeadLetter)
        ref = await system.spawn(on(lane, Held), gate)
        in_hand = ref.ask("hold", block=False)
        await gate.until_entered()
        ref.tell("told")
        asked = ref.ask("asked", block=False)
        stopping = asyncio.create_task(system.stop(ref))
        with pytest.raises(ActorDead):
            await asked
        gate.opened.set()
        assert await in_hand == "hold"
        assert await stopping is True
        assert [(letter.message, letter.reason) for letter in letters.events] == [("told", "stopped")]


async def test_s2_sending_to_a_stopped_actor_is_refused_not_swallowed(lane: str) -> None:
    async with running() as system:
        ref = await system.spawn(on(lane, Log))
        await system.stop(ref)
        with pytest.raises(pykka.ActorDeadError):
            ref.tell("late")
        with pytest.raises(ActorDead):
            await ref.ask("late", block=False)
        assert await system.stop(ref) is False


@pytest.mark.parametrize("round_", range(5))
async def test_s2_asks_that_race_a_stop_are_each_answered_exactly_once(lane: str, round_: int) -> None:
    async with running() as system:
        ref = await system.spawn(on(lane, Log, mailbox=100_000))
        loop = asyncio.get_running_loop()
        start = threading.Barrier(5)

        def ask(_: int) -> list[Any]:
            start.wait()
            answers = []
            for number in range(200):
                try:
                    answers.append(ref.ask(number))
                except ActorDead:
                    answers.append(None)
            return answers

        with ThreadPoolExecutor(5) as pool:
            asking = [loop.run_in_executor(pool, ask, thread) for thread in range(4)]
            await loop.run_in_executor(pool, start.wait)
            await system.stop(ref)
            for answers in await asyncio.gather(*asking):
                assert len(answers) == 200
                alive = [answer for answer in answers if answer is not None]
                assert alive == list(range(len(alive)))


async def test_s2_a_late_reply_is_a_dead_letter(lane: str) -> None:
    gate = Gate()
    async with running() as system:
        letters = Recorder(system, DeadLetter)

        class Stubborn(Held):
            async def on_receive(self, message: Any) -> Any:
                try:
                    return await super().on_receive(message)
                except asyncio.CancelledError:
                    return "too late"

        ref = await system.spawn(on(lane, Stubborn), gate)
        future = ref.ask("hold", block=False, timeout=60)
        await gate.until_entered()
        future.cancel()
        with pytest.raises(Cancelled):
            await future
        assert (await letters.first(DeadLetter)).reason == "late_reply"
        gate.opened.set()


# --- S3 deadlines ---


async def test_s3_an_ask_ends_at_its_deadline_and_says_the_outcome_is_unknown(lane: str) -> None:
    gate = Gate()
    async with running() as system:
        ref = await system.spawn(on(lane, Held), gate)
        with pytest.raises(DeadlineExceeded, match="unknown") as caught:
            await system.ask(ref, "hold", timeout=0.02)
        assert isinstance(caught.value, pykka.Timeout)
        gate.opened.set()


async def test_s3_a_blocking_ask_ends_at_its_deadline_too(lane: str) -> None:
    gate = Gate()
    async with running() as system:
        ref = await system.spawn(on(lane, Held), gate)
        with pytest.raises(DeadlineExceeded):
            await asyncio.to_thread(ref.ask, "hold", timeout=0.02)
        gate.opened.set()


async def test_s3_an_expired_message_is_not_handled(lane: str) -> None:
    now = [0.0]
    gate = Gate()
    async with running(clock=lambda: now[0]) as system:
        handled = Recorder(system, MessageHandled)
        ref = await system.spawn(on(lane, Held), gate)
        first = ref.ask("hold", block=False, timeout=1_000)
        await gate.until_entered()
        second = ref.ask("second", block=False, timeout=5)
        third = ref.ask("third", block=False, timeout=1_000)
        now[0] = 10.0
        gate.opened.set()
        assert await first == "hold"
        with pytest.raises(DeadlineExceeded):
            await second
        assert await third == "third"
        assert [event.message for event in handled.events] == ["hold", "third"]


async def test_s3_every_ask_made_while_handling_inherits_the_deadline_and_cannot_extend_it(lane: str) -> None:
    class Inner(Actor):
        def on_receive(self, message: Any) -> Any:
            return current_scope().deadline

    class Outer(Actor):
        async def on_receive(self, message: Any) -> Any:
            return [await self.ask("inner", "?", timeout=timeout) for timeout in (None, 1_000.0, 0.5)]

    async with running() as system:
        await system.spawn(on(lane, Inner), name="inner")
        ref = await system.spawn(on(lane, Outer))
        before = system.now()
        inherited, longer, shorter = await system.ask(ref, "?", timeout=2)
        assert before + 2 <= inherited <= system.now() + 2
        assert longer == inherited
        assert shorter < inherited


# --- S4 failure is uniform; S5 and S6 restart in place ---


async def test_s4_a_failure_by_tell_and_by_ask_both_restart_and_the_ask_gets_the_error(log: type[Any]) -> None:
    async with running() as system:
        events = Recorder(system, ActorRestarted)
        ref = await system.spawn(log)
        await system.ask(ref, "kept")
        with pytest.raises(ValueError, match="by ask"):
            await system.ask(ref, ValueError("by ask"))
        await events.until(lambda seen: len(seen) == 1)
        assert await system.ask(ref, "read") == []
        ref.tell(ValueError("by tell"))
        await events.until(lambda seen: len(seen) == 2)
        assert await system.ask(ref, "read") == []


async def test_s4_reject_answers_the_caller_and_leaves_the_actor_alone(log: type[Any]) -> None:
    async with running() as system:
        events = Recorder(system, ActorFailed)
        ref = await system.spawn(log)
        await system.ask(ref, "kept")
        with pytest.raises(Reject) as caught:
            await system.ask(ref, Reject("QUOTA_EXCEEDED", "not today"))
        assert (caught.value.error_code, caught.value.message) == ("QUOTA_EXCEEDED", "not today")
        assert await system.ask(ref, "read") == ["kept"]
        assert events.events == []


async def test_s4_an_error_that_came_by_an_ask_does_not_fail_the_asking_actor(lane: str) -> None:
    class Middle(Actor):
        async def on_receive(self, message: Any) -> Any:
            return await self.ask("log", message)

    async with running() as system:
        events = Recorder(system, ActorFailed)
        await system.spawn(on(lane, Log), name="log")
        ref = await system.spawn(on(lane, Middle), name="middle")
        with pytest.raises(AgentExecutionFailed, match="log failed: ValueError: deep") as caught:
            await system.ask(ref, ValueError("deep"))
        assert isinstance(caught.value.__cause__, ValueError)
        await system.ask("log", "restarted")
        assert [event.actor for event in events.events] == ["log"]


async def test_s6_a_restart_keeps_ref_name_and_mail_but_not_the_state_or_the_failing_message(lane: str) -> None:
    gate = Gate()

    class Fragile(Log):
        async def on_receive(self, message: Any) -> Any:
            if message == "break":
                await gate.wait_async()
                raise ValueError("broken")
            return super().on_receive(message)

    async with running() as system:
        ref = await system.spawn(on(lane, Fragile), name="fragile")
        await system.ask(ref, "before")
        ref.tell("break")
        await gate.until_entered()
        for number in range(5):
            ref.tell(number)
        gate.opened.set()
        assert await system.ask("fragile", "read") == [0, 1, 2, 3, 4]
        assert ref.is_alive()
        assert next(info for info in system.tree() if info.name == "fragile").restarts == 1


async def test_s5_too_many_failures_stop_the_actor_and_its_mail_is_not_lost(lane: str) -> None:
    async with running() as system:
        events = Recorder(system, ActorGaveUp, ActorRestarted, ActorStopped)
        ref = await system.spawn(on(lane, Log, restart=RestartPolicy(intensity=2, shortest=0, longest=0)))
        for _ in range(3):
            with pytest.raises(ValueError, match="again"):
                await system.ask(ref, ValueError("again"))
        await events.first(ActorStopped)
        assert [type(event) for event in events.events] == [ActorRestarted, ActorRestarted, ActorGaveUp, ActorStopped]
        with pytest.raises(ActorDead):
            await system.ask(ref, "read")


async def test_s5_a_child_that_fails_too_often_fails_its_parent(lane: str) -> None:
    class Parent(Actor):
        restart = AT_ONCE

        async def on_start(self) -> None:
            self.child = await self.spawn(on(lane, Log, restart=RestartPolicy(intensity=0)), name="child")

        async def on_receive(self, message: Any) -> Any:
            return await self.ask(self.child, message)

    async with running() as system:
        events = Recorder(system, ActorRestarted)
        ref = await system.spawn(on(lane, Parent), name="parent")
        with pytest.raises(AgentExecutionFailed):
            await system.ask(ref, ValueError("child breaks"))
        assert (await events.first(ActorRestarted)).actor == "parent"
        assert await system.ask(ref, "fresh") == "fresh"
        assert await system.ask("parent/child", "read") == ["fresh"]


async def test_s5_a_start_that_fails_while_restarting_counts_as_a_failure(lane: str) -> None:
    starts: list[int] = []

    class Flaky(Log):
        restart = RestartPolicy(intensity=3, shortest=0, longest=0)

        def on_start(self) -> None:
            starts.append(1)
            if len(starts) in {2, 3}:
                raise OSError("not yet")

    async with running() as system:
        ref = await system.spawn(on(lane, Flaky))
        ref.tell(ValueError("fails"))
        assert await system.ask(ref, "alive") == "alive"
        assert len(starts) == 4


async def test_on_failure_runs_on_the_failed_instance_before_it_is_replaced(lane: str) -> None:
    seen: list[tuple[Any, str]] = []

    class Careful(Log):
        def on_failure(self, exception_type: Any, exception_value: Any, traceback: Any) -> None:
            seen.append((list(self.seen), str(exception_value)))

    async with running() as system:
        ref = await system.spawn(on(lane, Careful))
        ref.tell("state")
        ref.tell(ValueError("cause"))
        assert await system.ask(ref, "read") == []
        assert seen == [(["state"], "cause")]


# --- S9 start is honest ---


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), asyncio.CancelledError(), KeyboardInterrupt()])
async def test_s9_an_actor_that_cannot_start_leaves_nothing_behind(lane: str, error: BaseException) -> None:
    class Broken(Actor):
        def on_start(self) -> None:
            raise error

    async with running() as system:
        with pytest.raises(StartFailed, match="broken could not be started"):
            await system.spawn(on(lane, Broken), name="broken")
        with pytest.raises(DestinationNotFound):
            await system.ask("broken", "?")
        assert [info.name for info in system.tree()] == ["router"]
        await system.spawn(on(lane, Log), name="broken")


async def test_s9_spawn_returns_only_after_an_async_on_start_has_ended(lane: str) -> None:
    class Slow(Log):
        async def on_start(self) -> None:
            await asyncio.sleep(0)
            self.seen.append("started")

    async with running() as system:
        ref = await system.spawn(on(lane, Slow))
        assert await system.ask(ref, "read") == ["started"]


async def test_s9_two_actors_cannot_have_one_name(lane: str) -> None:
    async with running() as system:
        await system.spawn(on(lane, Log), name="one")
        with pytest.raises(NameTaken):
            await system.spawn(on(lane, Log), name="one")


# --- S10 stop ---


async def test_s10_children_stop_first_and_in_reverse_order(lane: str) -> None:
    order: list[str] = []

    class Node(Actor):
        def __init__(self, *children: str) -> None:
            super().__init__()
            self.children_names = children

        async def on_start(self) -> None:
            for child in self.children_names:
                await self.spawn(on(lane, Node), name=child)

        def on_stop(self) -> None:
            order.append(self.name)

    async with running() as system:
        await system.spawn(on(lane, Node), "a", "b", name="first")
        await system.spawn(on(lane, Node), name="second")
    assert order == ["second", "first/b", "first/a", "first"]


async def test_s10_stop_waits_for_the_message_in_hand_and_for_an_async_on_stop(lane: str) -> None:
    gate = Gate()
    ended: list[str] = []

    class Tidy(Held):
        async def on_stop(self) -> None:
            await asyncio.sleep(0)
            ended.append("on_stop")

    async with running() as system:
        ref = await system.spawn(on(lane, Tidy), gate)
        in_hand = ref.ask("hold", block=False)
        await gate.until_entered()
        stopping = asyncio.create_task(system.stop(ref))
        gate.opened.set()
        assert await in_hand == "hold"
        assert await stopping
        assert ended == ["on_stop"]


async def test_s10_a_handler_that_does_not_end_is_cancelled_on_the_loop_and_left_behind_on_a_thread(lane: str) -> None:
    gate = Gate()

    class Endless(Held):
        if lane == "thread":

            def on_receive(self, message: Any) -> Any:  # type: ignore[override]
                gate.hold()

    async with running() as system:
        events = Recorder(system, ActorStopped)
        ref = await system.spawn(on(lane, Endless), gate)
        in_hand = ref.ask("hold", block=False)
        await gate.until_entered()
        assert await system.stop(ref, grace=0.02)
        assert events.events[0].leaked is (lane == "thread")
        gate.opened.set()
        if lane == "loop":
            with pytest.raises(ActorDead):
                await in_hand


async def test_an_actor_can_stop_itself_and_be_stopped_from_another_thread(lane: str) -> None:
    class Quitter(Actor):
        def on_receive(self, message: Any) -> Any:
            self.stop()
            return "bye"

    async with running() as system:
        events = Recorder(system, ActorStopped)
        ref = await system.spawn(on(lane, Quitter))
        assert await system.ask(ref, "quit") == "bye"
        await events.first(ActorStopped)
        other = await system.spawn(on(lane, Log))
        assert await asyncio.to_thread(other.stop) is True
        assert await asyncio.to_thread(other.stop) is False


async def test_a_closing_system_starts_no_new_actors(lane: str) -> None:
    async with running() as system:
        pass
    with pytest.raises(ShuttingDown):
        await system.spawn(on(lane, Log))


# --- kill ---


async def test_a_killed_handler_answers_its_caller_and_the_actor_is_restarted(lane: str) -> None:
    gate = Gate()
    async with running() as system:
        events = Recorder(system, ActorRestarted)
        ref = await system.spawn(on(lane, Held), gate, name="held")
        in_hand = ref.ask("hold", block=False)
        await gate.until_entered()
        waiting = ref.ask("next", block=False)
        if lane == "thread":
            with pytest.raises(KillRefused, match="thread"):
                system.kill("held")
            gate.opened.set()
            assert await in_hand == "hold"
        else:
            system.kill("held")
            with pytest.raises(AgentCrashed):
                await in_hand
            await events.first(ActorRestarted)
        assert await waiting == "next"
        gate.opened.set()


# --- S13 bounded mailbox ---


@pytest.mark.parametrize(
    ("overflow", "expected", "letters"),
    [("drop_oldest", [3, 4, 5], [0, 1, 2]), ("drop_newest", [0, 1, 2], [3, 4, 5])],
)
async def test_s13_dropping_policies_make_dead_letters(
    lane: str, overflow: str, expected: list[int], letters: list[int]
) -> None:
    gate = Gate()

    class Small(Log):
        mailbox = 3

        async def on_receive(self, message: Any) -> Any:
            if message == "hold":
                return await gate.wait_async()
            return super().on_receive(message)

    async with running() as system:
        dead = Recorder(system, DeadLetter)
        handled = Recorder(system, MessageHandled)
        ref = await system.spawn(on(lane, Small, overflow=overflow))
        held = ref.ask("hold", block=False)
        await gate.until_entered()
        for number in range(6):
            ref.tell(number)
        gate.opened.set()
        await held
        await handled.until(lambda events: len(events) == 4)
        assert await system.ask(ref, "read") == expected
        assert [letter.message for letter in dead.events] == letters


async def test_s13_rejecting_raises_at_the_sender_and_a_full_ask_fails_at_once(lane: str) -> None:
    gate = Gate()
    async with running() as system:
        ref = await system.spawn(on(lane, Held, mailbox=2), gate)
        held = ref.ask("hold", block=False)
        await gate.until_entered()
        ref.tell(1)
        ref.tell(2)
        with pytest.raises(MailboxFull, match="holds 2 messages"):
            ref.tell(3)
        with pytest.raises(MailboxFull):
            await ref.ask(4, block=False)
        gate.opened.set()
        await held


async def test_s13_waiting_senders_are_admitted_in_order_and_asks_wait_for_room(lane: str) -> None:
    gate = Gate()

    class Small(Log):
        mailbox = 2
        overflow = "wait"

        async def on_receive(self, message: Any) -> Any:
            if message == "hold":
                return await gate.wait_async()
            return super().on_receive(message)

    class Sender(Actor):
        async def on_receive(self, message: Any) -> Any:
            for number in range(8):
                await self.send("small", number)

    async with running() as system:
        ref = await system.spawn(on(lane, Small), name="small")
        held = ref.ask("hold", block=False)
        await gate.until_entered()
        sender = await system.spawn(Sender)
        sending = sender.ask("go", block=False)
        gate.opened.set()
        await held
        await sending
        asks = [ref.ask(number, block=False) for number in range(100, 120)]
        assert [await future for future in asks] == list(range(100, 120))
        assert await system.ask(ref, "read") == [*range(8), *range(100, 120)]


# --- S15 containment ---


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), asyncio.CancelledError(), GeneratorExit()])
async def test_s15_what_ends_processes_elsewhere_ends_only_this_actor(log: type[Any], error: BaseException) -> None:
    async with running() as system:
        other = await system.spawn(log)
        ref = await system.spawn(log)
        with pytest.raises(AgentCrashed):
            await system.ask(ref, error)
        assert await system.ask(ref, "restarted") == "restarted"
        assert await system.ask(other, "unharmed") == "unharmed"


# --- S16 isolation ---


async def test_s16_two_systems_share_no_names_topics_or_failures(lane: str) -> None:
    class Listener(Log):
        def on_start(self) -> None:
            self.subscribe("news")

    class Speaker(Actor):
        def on_receive(self, message: Any) -> Any:
            return self.publish("news", message)

    async with running() as one, running() as two:
        first = await one.spawn(on(lane, Listener), name="same")
        second = await two.spawn(on(lane, Listener), name="same")
        await one.spawn(on(lane, Speaker), name="speaker")
        assert await one.ask("speaker", "hello") == 1
        assert await one.ask(first, "read") == ["hello"]
        assert await two.ask(second, "read") == []
        with pytest.raises(DestinationNotFound):
            await two.ask("speaker", "hello")
        await one.close()
        assert await two.ask("same", "alive") == "alive"
        with pytest.raises(AgentUnavailable):
            await one.ask(first, "?")


# --- S17 blocking is an error ---


async def test_s17_a_blocking_ask_get_or_stop_on_a_loop_raises_at_once(lane: str) -> None:
    async with running() as system:
        ref = await system.spawn(on(lane, Log))
        with pytest.raises(WouldDeadlock, match="block=False"):
            ref.ask("x")
        with pytest.raises(WouldDeadlock):
            ref.stop()
        future = ref.ask("x", block=False)
        if not future.done():
            with pytest.raises(WouldDeadlock, match="await"):
                future.get()
        assert await future == "x"


async def test_s17_an_actor_that_asks_itself_is_told_so(lane: str) -> None:
    class Narcissus(Actor):
        async def on_receive(self, message: Any) -> Any:
            return await self.ask(self._cell.ref, "me")

    async with running() as system:
        ref = await system.spawn(on(lane, Narcissus), name="narcissus")
        with pytest.raises(AskCycle, match="narcissus -> narcissus"):
            await system.ask(ref, "go")


async def test_s17_a_circle_of_asks_is_reported_as_the_circle(lane: str) -> None:
    class Link(Actor):
        def __init__(self, following: str) -> None:
            super().__init__()
            self.following = following

        async def on_receive(self, message: Any) -> Any:
            return (await asyncio.gather(self.ask(self.following, message)))[0]

    async with running() as system:
        await system.spawn(on(lane, Link), "b", name="a")
        await system.spawn(on(lane, Link), "c", name="b")
        await system.spawn(on(lane, Link), "a", name="c")
        # Whoever closes the circle reports it, and on threads that may be any of them.
        with pytest.raises(AskCycle, match=r"c -> a -> b -> c|a -> b -> c -> a|b -> c -> a -> b"):
            await system.ask("a", "round")


async def test_s17_an_ask_that_nobody_waits_for_is_no_circle(lane: str) -> None:
    class Caller(Log):
        def on_receive(self, message: Any) -> Any:
            if message == "go":
                self.later = self.ask("answerer", "?")
                return "went"
            return super().on_receive(message)

    class Answerer(Actor):
        async def on_receive(self, message: Any) -> Any:
            return await self.ask("caller", "who")

    async with running() as system:
        await system.spawn(on(lane, Caller), name="caller")
        await system.spawn(on(lane, Answerer), name="answerer")
        assert await system.ask("caller", "go") == "went"
        assert await system.ask("answerer", "?") == "who"


# --- cancellation ---


async def test_cancelling_an_ask_cancels_everything_it_caused(lane: str) -> None:
    gate = Gate()
    cancelled: list[str] = []

    class Noticing(Held):
        async def on_receive(self, message: Any) -> Any:
            try:
                return await super().on_receive(message)
            except asyncio.CancelledError:
                cancelled.append(self.name)
                raise

    class Middle(Actor):
        async def on_receive(self, message: Any) -> Any:
            try:
                return await self.ask("inner", message)
            except (asyncio.CancelledError, Cancelled):
                cancelled.append(self.name)
                raise

    async with running() as system:
        failures = Recorder(system, ActorFailed)
        handled = Recorder(system, MessageHandled)
        await system.spawn(on(lane, Noticing), gate, name="inner")
        ref = await system.spawn(on(lane, Middle), name="middle")
        future = ref.ask("hold", block=False)
        await gate.until_entered()
        future.cancel()
        await handled.until(lambda events: len(events) == 2)
        assert sorted(cancelled) == ["inner", "middle"]
        assert failures.events == []
        assert await system.ask("inner", "next") == "next"
        gate.opened.set()


# --- Pykka's own face ---


async def test_an_actor_is_a_pykka_actor_with_refs_futures_and_proxies(lane: str) -> None:
    class Counter(Actor):
        def __init__(self) -> None:
            super().__init__()
            self.count = 0

        def add(self, amount: int) -> int:
            self.count += amount
            return self.count

    async with running() as system:
        ref = await system.spawn(on(lane, Counter))
        assert isinstance(ref, pykka.ActorRef)

        def use_from_a_thread() -> list[Any]:
            proxy = ref.proxy()
            future = proxy.add(2)
            doubled = future.map(lambda count: count * 2)
            proxy.count = 40
            return [future.get(), doubled.get(), proxy.add(2).get(), pykka.get_all([proxy.count, proxy.count])]

        assert await asyncio.to_thread(use_from_a_thread) == [2, 4, 42, [42, 42]]


async def test_a_thread_handler_may_block_on_another_actor() -> None:
    class Blocking(Actor):
        lane = "thread"

        def on_receive(self, message: Any) -> Any:
            return self.ask("log", message).get()

    async with running() as system:
        await system.spawn(Log, name="log")
        ref = await system.spawn(Blocking)
        assert await system.ask(ref, "through") == "through"


async def test_concurrency_lets_that_many_handlers_interleave_and_no_more(lane: str) -> None:
    at_work = 0
    highest = 0
    lock = threading.Lock()
    gate = Gate()

    class Wide(Actor):
        concurrency = 3

        async def on_receive(self, message: Any) -> Any:
            nonlocal at_work, highest
            with lock:
                at_work += 1
                highest = max(highest, at_work)
                if at_work == 3:
                    gate.opened.set()
            await gate.wait_async()
            with lock:
                at_work -= 1

    async with running() as system:
        ref = await system.spawn(on(lane, Wide))
        await asyncio.gather(*(ref.ask(number, block=False) for number in range(12)))
        assert highest == 3


async def test_the_thread_budget_is_kept() -> None:
    async with running(threads=2) as system:
        for _ in range(2):
            await system.spawn(on("thread", Log))
        with pytest.raises(StartFailed, match="all 2 of this system"):
            await system.spawn(on("thread", Log))


# --- what an attack found ---


async def test_cancelling_who_waits_for_a_stop_does_not_cancel_the_stop(lane: str) -> None:
    gate = Gate()
    async with running() as system:
        events = Recorder(system, ActorStopped)
        ref = await system.spawn(on(lane, Held), gate, name="held")
        held = ref.ask("hold", block=False)
        await gate.until_entered()
        waiting = asyncio.create_task(system.stop(ref))
        await asyncio.sleep(0)
        waiting.cancel()
        gate.opened.set()
        assert (await events.first(ActorStopped)).actor == "held"
        assert await held == "hold"
        await system.spawn(on(lane, Log), name="held")


async def test_a_parent_that_is_stopped_while_it_recovers_takes_its_children_along(lane: str) -> None:
    gate = Gate()

    class Parent(Log):
        restart = AT_ONCE

        async def on_receive(self, message: Any) -> Any:
            if message == "spawn":
                child = await self.spawn(on(lane, Held), gate, name="child")
                child.tell("hold")
            else:
                raise ValueError("fails")

    async with running() as system:
        failed = Recorder(system, ActorFailed)
        ref = await system.spawn(on(lane, Parent), name="parent")
        await system.ask(ref, "spawn")
        await gate.until_entered()
        ref.tell("fail")
        await failed.first(ActorFailed)
        stopping = asyncio.create_task(system.stop(ref))
        await asyncio.sleep(0)
        gate.opened.set()
        assert await stopping
        assert [info.name for info in system.tree()] == ["router"]


async def test_a_start_that_fails_while_its_spawner_gives_up_leaves_nothing_behind(lane: str) -> None:
    gate = Gate()

    class Child(Log):
        async def on_stop(self) -> None:
            await gate.wait_async()

    class Parent(Actor):
        async def on_start(self) -> None:
            await self.spawn(on(lane, Child), name="child")
            raise ValueError("cannot start")

    async with running() as system:
        stopped = Recorder(system, ActorStopped)
        spawning = asyncio.create_task(system.spawn(on(lane, Parent), name="parent"))
        await gate.until_entered()
        spawning.cancel()
        with pytest.raises(asyncio.CancelledError):
            await spawning
        gate.opened.set()
        await stopped.first(ActorStopped)
        await system.close()
        assert system.tree() == ()


async def test_an_actor_that_is_stopped_while_it_starts_does_not_run_on_stop() -> None:
    gate = Gate()
    log: list[str] = []

    class Slow(Actor):
        async def on_start(self) -> None:
            try:
                await gate.wait_async()
            finally:
                log.append("on_start ended")

        def on_stop(self) -> None:
            log.append("on_stop")

    async with running() as system:
        spawning = asyncio.create_task(system.spawn(Slow, name="slow"))
        await gate.until_entered()
        await system.stop("slow")
        with pytest.raises(StartFailed, match="stopped while it started"):
            await spawning
        assert log == ["on_start ended"]
        gate.opened.set()


async def test_failures_of_the_old_instance_do_not_count_against_the_new_one(lane: str) -> None:
    gates = [Gate() for _ in range(3)]

    class Wide(Log):
        concurrency = 3
        restart = RestartPolicy(intensity=1, shortest=0, longest=0)

        async def on_receive(self, message: Any) -> Any:
            if message == "alive":
                return message
            await gates[message].wait_async()
            raise ValueError("upstream broke")

    async with running() as system:
        events = Recorder(system, ActorRestarted, ActorGaveUp)
        ref = await system.spawn(on(lane, Wide))
        asked = [ref.ask(number, block=False) for number in range(3)]
        for gate in gates:
            await gate.until_entered()
        for gate, future in zip(gates, asked, strict=True):
            gate.opened.set()
            with pytest.raises(ValueError, match="upstream"):
                await future
            await events.first(ActorRestarted)
        assert await system.ask(ref, "alive") == "alive"
        assert [type(event) for event in events.events] == [ActorRestarted]


@pytest.mark.parametrize("reason", ["cancelled", "rejected"])
async def test_a_task_group_of_asks_that_end_with_answers_is_no_failure(reason: str) -> None:
    gate = Gate()

    class Grouping(Actor):
        async def on_receive(self, message: Any) -> Any:
            async def one() -> Any:
                return await self.ask("log", message)

            async with asyncio.TaskGroup() as group:
                group.create_task(one())
                group.create_task(one())

    class Answering(Held):
        async def on_receive(self, message: Any) -> Any:
            if message == "reject":
                raise Reject("QUOTA_EXCEEDED", "no")
            return await super().on_receive(message)

    async with running() as system:
        failures = Recorder(system, ActorFailed)
        await system.spawn(Answering, gate, name="log")
        ref = await system.spawn(Grouping)
        future = ref.ask("reject" if reason == "rejected" else "hold", block=False)
        if reason == "cancelled":
            await gate.until_entered()
            future.cancel()
        with pytest.raises(GramiError) as raised:
            await future
        assert raised.value.error_code == ("QUOTA_EXCEEDED" if reason == "rejected" else "CANCELLED")
        await system.stop(ref)
        assert failures.events == []
        gate.opened.set()


async def test_a_hook_that_swallows_its_cancellation_does_not_hold_up_the_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    over = asyncio.Event()

    class Stubborn(Actor):
        async def on_stop(self) -> None:
            while not over.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await over.wait()

    monkeypatch.setattr("grami_actors.lifecycle.SHORT_GRACE", 0.01)
    async with running() as system:
        events = Recorder(system, ActorStopped)
        ref = await system.spawn(Stubborn)
        assert await system.stop(ref, grace=0.01)
        assert events.events[0].leaked
        over.set()


async def test_an_actor_whose_policy_has_a_pause_rests_and_starts_over(lane: str) -> None:
    async with running() as system:
        events = Recorder(system, ActorPaused, ActorRestarted)
        policy = RestartPolicy(intensity=1, shortest=0, longest=0, pause=0.01)
        ref = await system.spawn(on(lane, Log, restart=policy))
        for _ in range(2):
            ref.tell(ValueError("again"))
        await events.until(lambda seen: len(seen) == 3)
        assert [type(event) for event in events.events] == [ActorRestarted, ActorPaused, ActorRestarted]
        assert await system.ask(ref, "alive") == "alive"


async def test_awaiting_a_stream_as_a_whole_needs_no_room_for_its_chunks() -> None:
    class Writer(Actor):
        async def on_receive(self, message: Any) -> Any:
            for number in range(STREAM_BUFFER + 10):
                self.emit(number)
            return "whole"

    class Reader(Actor):
        async def on_receive(self, message: Any) -> Any:
            return await self.stream("writer", message)

    async with running() as system:
        await system.spawn(Writer, name="writer")
        ref = await system.spawn(Reader)
        assert await system.ask(ref, "write") == "whole"


async def test_a_kill_before_the_first_step_of_a_handler_still_answers_and_restarts() -> None:
    gate = Gate()
    async with running() as system:
        events = Recorder(system, ActorRestarted)
        ref = await system.spawn(Held, gate)
        future = ref.ask("hold", block=False)
        killed = asyncio.Event()

        def kill_when_begun() -> None:
            if ref._cell.working:
                system.kill(ref)
                killed.set()
            else:
                asyncio.get_running_loop().call_soon(kill_when_begun)

        kill_when_begun()
        await killed.wait()
        with pytest.raises(AgentCrashed):
            await future
        await events.first(ActorRestarted)
        assert await system.ask(ref, "alive") == "alive"


async def test_an_exception_that_cannot_say_what_it_is_changes_nothing(lane: str) -> None:
    class Speechless(Exception):
        def __str__(self) -> str:
            raise KeyError("no words")

    async with running() as system:
        Recorder(system, ActorFailed)
        ref = await system.spawn(on(lane, Log))
        with pytest.raises(Speechless):
            await system.ask(ref, Speechless())
        assert await system.ask(ref, "alive") == "alive"


async def test_a_task_left_behind_by_on_start_may_ask_its_own_actor(lane: str) -> None:
    answered: list[Any] = []

    class Poller(Log):
        async def on_start(self) -> None:
            self.poll = asyncio.get_running_loop().create_task(self.look())

        async def look(self) -> None:
            answered.append(await self.ask(self._cell.ref, "question"))

    if lane == "thread":
        pytest.skip("a thread's loop runs only while a handler does")
    async with running() as system:
        handled = Recorder(system, MessageHandled)
        await system.spawn(on(lane, Poller))
        await handled.first(MessageHandled)
        await asyncio.sleep(0)
    assert answered == ["question"]


async def test_what_one_actor_sets_in_its_context_is_not_for_the_next() -> None:
    secret: ContextVar[str] = ContextVar("secret", default="none")

    class Keeper(Actor):
        def on_receive(self, message: Any) -> Any:
            seen = secret.get()
            secret.set(message)
            return seen

    async with running() as system:
        first, second = await system.spawn(Keeper), await system.spawn(Keeper)
        asked = [first.ask("of the first", block=False), second.ask("of the second", block=False)]
        assert [await future for future in asked] == ["none", "none"]


async def test_killing_or_stopping_a_pool_means_all_of_it() -> None:
    async with running() as system:
        events = Recorder(system, ActorRestarted)
        for number in range(3):
            system.table.join("pool", (await system.spawn(Log, name=f"pool-{number}"))._cell)
        system.kill("pool")
        await events.until(lambda seen: len(seen) == 3)
        assert await asyncio.to_thread(lambda: asyncio.run(system.stop("pool")))
        with pytest.raises(AgentUnavailable):
            await system.ask("pool", "?")
