"""The actor contract on the process lane, whose actors must stand at the top of a module. See test_contract.py."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import pykka
import pytest
from hypothesis import HealthCheck, given, settings
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
    MailboxFull,
    Reject,
    StartFailed,
    WouldDeadlock,
)
from grami_actors.system import ActorSystem
from grami_actors.telemetry import (
    ActorFailed,
    ActorGaveUp,
    ActorRestarted,
    ActorStopped,
    DeadLetter,
    MessageHandled,
)
from tests import process_actors as actors
from tests.conftest import Gate, Recorder, running

LOGS = (actors.Log, actors.AsyncLog)


class Keeper(Actor):
    """What workers ask to be held by, and tell what they did."""

    concurrency = 100

    def __init__(self, gate: Gate, told: list[Any], news: asyncio.Event) -> None:
        super().__init__()
        self.gate, self.told, self.news = gate, told, news

    async def on_receive(self, message: Any) -> Any:
        if message == "hold":
            await self.gate.wait_async()
            return message
        self.told.append(message)
        self.news.set()
        return message


class House:
    """A system with a keeper at its gate."""

    def __init__(self, system: ActorSystem) -> None:
        self.system = system
        self.gate = Gate()
        self.told: list[Any] = []
        self.news = asyncio.Event()

    async def hears(self, message: Any) -> None:
        while message not in self.told:
            self.news.clear()
            await self.news.wait()


@asynccontextmanager
async def a_house(**options: Any) -> AsyncIterator[House]:
    async with running(**options) as system:
        house = House(system)
        await system.spawn(Keeper, house.gate, house.told, house.news, name="gate")
        yield house


class Playground:
    """One system on a loop of its own, so that hypothesis need not start a worker for every example."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.system = ActorSystem()
        self.play(self.system.__aenter__())

    def play(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def close(self) -> None:
        self.play(self.system.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture(scope="module")
def playground() -> Iterator[Playground]:
    ground = Playground()
    yield ground
    ground.close()


# --- S1 order ---


async def test_s1_every_one_of_many_sending_threads_keeps_its_order() -> None:
    async with running() as system:
        ref = await system.spawn(actors.Log)
        loop = asyncio.get_running_loop()

        def send(thread: int) -> None:
            for number in range(100):
                ref.tell((thread, number))

        with ThreadPoolExecutor(8) as pool:
            await asyncio.gather(*(loop.run_in_executor(pool, send, thread) for thread in range(8)))
        seen = await system.ask(ref, "read")
        for thread in range(8):
            assert [number for sender, number in seen if sender == thread] == list(range(100))


@given(plan=st.lists(st.tuples(st.integers(0, 1), st.sampled_from(["tell", "ask", "fail"])), max_size=30))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_s1_and_s2_any_mix_is_handled_in_order_and_each_ask_answered_once(
    playground: Playground, plan: list[tuple[int, str]]
) -> None:
    async def play() -> None:
        system = playground.system
        refs = [await kept(system, kind) for kind in LOGS]
        asked: list[tuple[Any, Any]] = []
        for number, (receiver, how) in enumerate(plan):
            if how == "tell":
                refs[receiver].tell(number)
            else:
                message = number if how == "ask" else Reject("CANCELLED", str(number))
                asked.append((refs[receiver].ask(message, block=False), number))
        for future, number in asked:
            try:
                assert await future == number
            except Reject as rejected:
                assert rejected.message == str(number)  # noqa: PT017 - both are right
        for receiver, ref in enumerate(refs):
            expected = [number for number, (to, how) in enumerate(plan) if to == receiver and how != "fail"]
            seen = await system.ask(ref, "read")
            assert seen[len(seen) - len(expected) :] == expected
            assert len(seen) == sizes[receiver] + len(expected)
            sizes[receiver] = len(seen)

    sizes = SIZES.setdefault(playground, [0, 0])
    playground.play(play())


SIZES: dict[Playground, list[int]] = {}


async def kept(system: ActorSystem, kind: type[Any]) -> Any:
    """The actor of a class that the examples share."""
    name = kind.__name__.lower()
    return system.table.cells[name].ref if name in system.table.cells else await system.spawn(kind, name=name)


# --- S2 never lost silently ---


async def test_s2_what_is_queued_when_an_actor_stops_becomes_dead_letters_and_failed_asks() -> None:
    async with a_house() as house:
        letters = Recorder(house.system, DeadLetter)
        ref = await house.system.spawn(actors.Held)
        in_hand = ref.ask("hold", block=False)
        await house.gate.until_entered()
        ref.tell("told")
        asked = ref.ask("asked", block=False)
        stopping = asyncio.create_task(house.system.stop(ref))
        with pytest.raises(ActorDead):
            await asked
        house.gate.opened.set()
        assert await in_hand == "hold"
        assert await stopping is True
        assert [(letter.message, letter.reason) for letter in letters.events] == [("told", "stopped")]
        with pytest.raises(pykka.ActorDeadError):
            ref.tell("late")


async def test_s2_asks_that_race_a_stop_are_each_answered_exactly_once() -> None:
    async with running() as system:
        ref = await system.spawn(actors.Log)
        loop = asyncio.get_running_loop()
        start = threading.Barrier(3)

        def ask(_: int) -> list[Any]:
            start.wait()
            answers = []
            for number in range(200):
                try:
                    answers.append(ref.ask(number))
                except ActorDead:
                    answers.append(None)
            return answers

        with ThreadPoolExecutor(3) as pool:
            asking = [loop.run_in_executor(pool, ask, thread) for thread in range(2)]
            await loop.run_in_executor(pool, start.wait)
            await system.stop(ref)
            for answers in await asyncio.gather(*asking):
                alive = [answer for answer in answers if answer is not None]
                assert len(answers) == 200
                assert alive == list(range(len(alive)))


async def test_s2_a_late_reply_is_a_dead_letter() -> None:
    async with a_house() as house:
        letters = Recorder(house.system, DeadLetter)
        ref = await house.system.spawn(actors.Stubborn)
        future = ref.ask("hold", block=False, timeout=60)
        await house.gate.until_entered()
        future.cancel()
        with pytest.raises(Cancelled):
            await future
        assert (await letters.first(DeadLetter)).reason == "late_reply"


# --- S3 deadlines ---


async def test_s3_an_ask_ends_at_its_deadline_and_says_the_outcome_is_unknown() -> None:
    async with a_house() as house:
        ref = await house.system.spawn(actors.Held)
        with pytest.raises(DeadlineExceeded, match="unknown") as caught:
            await house.system.ask(ref, "hold", timeout=0.1)
        assert isinstance(caught.value, pykka.Timeout)
        with pytest.raises(DeadlineExceeded):
            await asyncio.to_thread(ref.ask, "hold", timeout=0.1)
        assert await house.system.ask(ref, "alive") == "alive"


async def test_s3_an_expired_message_is_not_handled() -> None:
    now = [0.0]
    async with a_house(clock=lambda: now[0]) as house:
        handled = Recorder(house.system, MessageHandled)
        ref = await house.system.spawn(actors.Held, name="held")
        first = ref.ask("hold", block=False, timeout=1_000)
        await house.gate.until_entered()
        second = ref.ask("second", block=False, timeout=5)
        third = ref.ask("third", block=False, timeout=1_000)
        now[0] = 10.0
        house.gate.opened.set()
        assert await first == "hold"
        with pytest.raises(DeadlineExceeded):
            await second
        assert await third == "third"
        assert [event.message for event in handled.events if event.actor == "held"] == ["hold", "third"]


async def test_s3_every_ask_made_in_a_worker_inherits_deadline_and_trace_and_cannot_extend_them() -> None:
    async with running() as system:
        await system.spawn(actors.Deadline, name="inner")
        await system.spawn(actors.Middle, "inner", name="middle")
        ref = await system.spawn(actors.Deadlines)
        before = system.now()
        inherited, longer, shorter = await system.ask(ref, "?", timeout=2)
        assert before + 2 <= inherited <= system.now() + 2
        assert longer == inherited
        assert shorter < inherited
        future = system.table.cells["middle"].ask("?")
        assert (await future)[1:] == (future.trace_id, 1)


# --- S4 to S6: failure and restart ---


@pytest.mark.parametrize("kind", LOGS)
async def test_s4_a_failure_by_tell_and_by_ask_both_restart_and_the_ask_gets_the_error(kind: type[Any]) -> None:
    async with running() as system:
        events = Recorder(system, ActorRestarted)
        failures = Recorder(system, ActorFailed)
        ref = await system.spawn(kind)
        await system.ask(ref, "kept")
        with pytest.raises(ValueError, match="by ask"):
            await system.ask(ref, ValueError("by ask"))
        await events.until(lambda seen: len(seen) == 1)
        assert await system.ask(ref, "read") == []
        ref.tell(ValueError("by tell"))
        await events.until(lambda seen: len(seen) == 2)
        assert await system.ask(ref, "read") == []
        assert "on_receive" in failures.events[0].details, "the worker's traceback is in the log"


async def test_s4_reject_answers_the_caller_and_leaves_the_actor_alone() -> None:
    async with running() as system:
        events = Recorder(system, ActorFailed)
        ref = await system.spawn(actors.Log)
        await system.ask(ref, "kept")
        with pytest.raises(Reject) as caught:
            await system.ask(ref, Reject("QUOTA_EXCEEDED", "not today"))
        assert (caught.value.error_code, caught.value.message) == ("QUOTA_EXCEEDED", "not today")
        assert await system.ask(ref, "read") == ["kept"]
        assert events.events == []


@pytest.mark.parametrize("kind", [actors.Middle, actors.MiddlePlain])
async def test_s4_an_error_that_came_by_an_ask_does_not_fail_the_asking_actor(kind: type[Any]) -> None:
    async with running() as system:
        events = Recorder(system, ActorFailed)
        await system.spawn(actors.Log, name="log")
        ref = await system.spawn(kind, name="middle")
        with pytest.raises(AgentExecutionFailed, match="log failed: ValueError: deep") as caught:
            await system.ask(ref, ValueError("deep"))
        assert isinstance(caught.value.__cause__, ValueError)
        await system.ask("log", "restarted")
        assert [event.actor for event in events.events] == ["log"]


async def test_s5_too_many_failures_stop_the_actor_and_its_mail_is_not_lost() -> None:
    async with running() as system:
        events = Recorder(system, ActorGaveUp, ActorRestarted, ActorStopped)
        ref = await system.spawn(actors.Twice)
        for _ in range(3):
            with pytest.raises(ValueError, match="again"):
                await system.ask(ref, ValueError("again"))
        await events.first(ActorStopped)
        assert [type(event) for event in events.events] == [ActorRestarted, ActorRestarted, ActorGaveUp, ActorStopped]
        with pytest.raises(ActorDead):
            await system.ask(ref, "read")


async def test_s6_a_restart_keeps_ref_name_and_mail_but_not_the_state_or_the_failing_message() -> None:
    async with a_house() as house:
        ref = await house.system.spawn(actors.Small, name="fragile")
        await house.system.ask(ref, "before")
        pid = await house.system.ask(ref, "pid")
        held = ref.ask("hold", block=False)
        await house.gate.until_entered()
        ref.tell(ValueError("broken"))
        ref.tell(1)
        ref.tell(2)
        house.gate.opened.set()
        await held
        assert await house.system.ask("fragile", "read") == [1, 2]
        assert await house.system.ask("fragile", "pid") != pid
        assert ref.is_alive()
        assert next(info for info in house.system.tree() if info.name == "fragile").restarts == 1


async def test_on_failure_runs_on_the_failed_instance_with_the_exception_itself() -> None:
    async with a_house() as house:
        ref = await house.system.spawn(actors.Careful)
        ref.tell("state")
        ref.tell(ValueError("cause"))
        assert await house.system.ask(ref, "read") == []
        assert house.told == [(["state"], "ValueError", "cause", True)]


# --- S9 start is honest ---


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), asyncio.CancelledError(), KeyboardInterrupt()])
async def test_s9_an_actor_that_cannot_start_leaves_nothing_behind(error: BaseException) -> None:
    async with running() as system:
        with pytest.raises(StartFailed, match=f"broken could not be started: .*{type(error).__name__}"):
            await system.spawn(actors.Broken, error, name="broken")
        with pytest.raises(DestinationNotFound):
            await system.ask("broken", "?")
        assert [info.name for info in system.tree()] == ["router"]


async def test_s9_spawn_returns_only_after_an_async_on_start_has_ended() -> None:
    async with a_house() as house:
        ref = await house.system.spawn(actors.Slow)
        assert await house.system.ask(ref, "read") == ["starting"]


# --- S10 stop, and kill ---


async def test_s10_stop_waits_for_the_message_in_hand_and_for_an_async_on_stop() -> None:
    async with a_house() as house:
        ref = await house.system.spawn(actors.Held)
        in_hand = ref.ask("hold", block=False)
        await house.gate.until_entered()
        stopping = asyncio.create_task(house.system.stop(ref))
        house.gate.opened.set()
        assert await in_hand == "hold"
        assert await stopping
        assert house.told == ["on_stop"]


@pytest.mark.parametrize("how", ["hang", "hang in C"])
async def test_s10_a_handler_that_does_not_end_is_killed_by_the_stop_and_nothing_leaks(how: str) -> None:
    async with a_house() as house:
        events = Recorder(house.system, ActorStopped)
        failures = Recorder(house.system, ActorFailed)
        ref = await house.system.spawn(actors.Deadly)
        in_hand = ref.ask(how, block=False)
        await house.hears("hanging")
        assert await house.system.stop(ref, grace=0.02)
        assert not events.events[0].leaked
        assert failures.events == []
        with pytest.raises(ActorDead):
            await in_hand


async def test_s10_drain_handles_the_backlog_first() -> None:
    async with a_house() as house:
        letters = Recorder(house.system, DeadLetter)
        ref = await house.system.spawn(actors.Log)
        asked = [ref.ask(number, block=False) for number in range(20)]
        assert await house.system.drain(ref)
        assert [await future for future in asked] == list(range(20))
        assert letters.events == []


async def test_an_actor_can_stop_itself_and_be_stopped_from_another_thread() -> None:
    async with running() as system:
        events = Recorder(system, ActorStopped)
        ref = await system.spawn(actors.Quitter)
        assert await system.ask(ref, "quit") == "bye"
        await events.first(ActorStopped)
        other = await system.spawn(actors.Log)
        assert await asyncio.to_thread(other.stop) is True
        assert await asyncio.to_thread(other.stop) is False


async def test_a_killed_handler_answers_its_caller_and_the_actor_is_restarted_with_its_mail() -> None:
    async with a_house() as house:
        events = Recorder(house.system, ActorRestarted)
        ref = await house.system.spawn(actors.Held, name="held")
        in_hand = ref.ask("hold", block=False)
        await house.gate.until_entered()
        waiting = ref.ask("next", block=False)
        house.system.kill("held")
        with pytest.raises(AgentCrashed):
            await in_hand
        await events.first(ActorRestarted)
        assert await waiting == "next"


# --- S12 watch ---


async def test_s12_a_worker_is_told_exactly_once_that_another_is_gone_also_if_it_was_gone_before() -> None:
    async with a_house() as house:
        system = house.system
        watcher = await system.spawn(actors.Watcher)
        watched = await system.spawn(actors.Log, name="watched")
        unwatched = await system.spawn(actors.Held, name="unwatched")
        await system.ask(watcher, ("watch", watched))
        await system.ask(watcher, ("watch", "watched"))
        await system.ask(watcher, ("watch", unwatched))
        await system.ask(watcher, ("unwatch", unwatched))
        await system.stop(watched)
        await system.stop(unwatched)
        await house.hears("watched")
        await system.ask(watcher, ("watch", watched))
        while len(house.told) < 3:
            house.news.clear()
            await house.news.wait()
        assert await system.ask(watcher, "read") == [("watched", "stopped"), ("watched", "unknown")]


async def test_s12_who_watches_a_worker_is_told_exactly_once() -> None:
    async with running() as system:
        ref = await system.spawn(actors.Twice, name="twice")
        ends = [system.watch(ref), system.watch("twice")]
        for _ in range(3):
            ref.tell(ValueError("again"))
        assert [(await end).reason for end in ends] == ["failed", "failed"]


# --- S13 bounded mailbox ---


@pytest.mark.parametrize(
    ("kind", "expected", "letters"),
    [(actors.DropOldest, [3, 4, 5], [0, 1, 2]), (actors.DropNewest, [0, 1, 2], [3, 4, 5])],
)
async def test_s13_dropping_policies_make_dead_letters(kind: Any, expected: list[int], letters: list[int]) -> None:
    async with a_house() as house:
        dead = Recorder(house.system, DeadLetter)
        handled = Recorder(house.system, MessageHandled)
        ref = await house.system.spawn(kind, name="small")
        held = ref.ask("hold", block=False)
        await house.gate.until_entered()
        for number in range(6):
            ref.tell(number)
        house.gate.opened.set()
        await held
        await handled.until(lambda events: len([event for event in events if event.actor == "small"]) == 4)
        assert await house.system.ask(ref, "read") == expected
        assert [letter.message for letter in dead.events] == letters


async def test_s13_rejecting_raises_at_the_sender_and_a_full_ask_fails_at_once() -> None:
    async with a_house() as house:
        ref = await house.system.spawn(actors.Small)
        held = ref.ask("hold", block=False)
        await house.gate.until_entered()
        for number in range(3):
            ref.tell(number)
        with pytest.raises(MailboxFull, match="holds 3 messages"):
            ref.tell(3)
        with pytest.raises(MailboxFull):
            await ref.ask(4, block=False)
        house.gate.opened.set()
        await held


async def test_s13_a_worker_that_sends_waits_for_room_and_is_admitted_in_order() -> None:
    async with a_house() as house:
        ref = await house.system.spawn(actors.Waiting, name="small")
        held = ref.ask("hold", block=False)
        await house.gate.until_entered()
        sender = await house.system.spawn(actors.Teller)
        sending = sender.ask(("send", "small", 8), block=False)
        house.gate.opened.set()
        await held
        await sending
        asks = [ref.ask(number, block=False) for number in range(100, 110)]
        assert [await future for future in asks] == list(range(100, 110))
        assert await house.system.ask(ref, "read") == [*range(8), *range(100, 110)]


# --- S15 containment, S16 isolation ---


@pytest.mark.parametrize("kind", LOGS)
@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), asyncio.CancelledError(), GeneratorExit()])
async def test_s15_what_ends_processes_elsewhere_ends_only_this_actor(kind: type[Any], error: BaseException) -> None:
    async with running() as system:
        ref = await system.spawn(kind)
        with pytest.raises(AgentCrashed):
            await system.ask(ref, error)
        assert await system.ask(ref, "restarted") == "restarted"


async def test_s16_two_systems_share_no_names_topics_or_workers() -> None:
    async with running() as one, running() as two:
        first, second = [await system.spawn(actors.Teller, name="same") for system in (one, two)]
        await one.ask(first, ("subscribe", "news"))
        assert await one.ask("same", ("publish", "news", ("echo", 1))) == 1
        assert await two.ask("same", ("publish", "news", ("echo", 1))) == 0
        await one.close()
        assert await two.ask(second, ("echo", "alive")) == "alive"
        with pytest.raises(AgentUnavailable):
            await one.ask(first, ("echo", "?"))


# --- S17 blocking is an error ---


async def test_s17_a_blocking_ask_on_a_loop_raises_at_once() -> None:
    async with running() as system:
        ref = await system.spawn(actors.Log)
        with pytest.raises(WouldDeadlock, match="block=False"):
            ref.ask("x")


async def test_s17_an_actor_that_asks_itself_is_told_so() -> None:
    async with running() as system:
        ref = await system.spawn(actors.Narcissus, name="narcissus")
        with pytest.raises(AskCycle, match="narcissus -> narcissus"):
            await system.ask(ref, "go")


@pytest.mark.parametrize("kind", [actors.Middle, actors.MiddlePlain])
async def test_s17_a_circle_of_asks_across_processes_is_reported_as_the_circle(kind: type[Any]) -> None:
    async with running() as system:
        await asyncio.gather(*(system.spawn(kind, to, name=name) for name, to in ("ab", "bc", "ca")))
        with pytest.raises(AskCycle, match=r"c -> a -> b -> c|a -> b -> c -> a|b -> c -> a -> b"):
            await system.ask("a", "round")


async def test_s17_an_ask_that_nobody_waits_for_is_no_circle() -> None:
    async with running() as system:
        await system.spawn(actors.Caller, name="caller")
        await system.spawn(actors.Answerer, name="answerer")
        assert await system.ask("caller", "go") == "went"
        assert await system.ask("answerer", "?") == "who"


# --- S18 cancel ---


async def test_s18_cancelling_an_ask_cancels_everything_it_caused_in_all_processes() -> None:
    async with a_house() as house:
        failures = Recorder(house.system, ActorFailed)
        await house.system.spawn(actors.Held, name="log")
        ref = await house.system.spawn(actors.Middle)
        future = ref.ask("hold", block=False)
        await house.gate.until_entered()
        future.cancel()
        with pytest.raises(Cancelled):
            await future
        await house.hears("noticed")
        assert await house.system.ask("log", "next") == "next"
        assert await house.system.ask(ref, "through") == "through"
        assert failures.events == []


async def test_s18_a_plain_handler_sees_that_it_is_cancelled() -> None:
    async with a_house() as house:
        ref = await house.system.spawn(actors.HeldPlain)
        future = ref.ask("hold", block=False)
        await house.hears("holding")
        future.cancel()
        await house.hears("noticed")
        assert await house.system.ask(ref, "next") == "next"


async def test_s18_a_request_that_is_cancelled_before_its_coroutine_begins_leaves_the_worker_alive() -> None:
    async with a_house() as house:
        ref = await house.system.spawn(actors.BegunTooLate)
        future = ref.ask("hold", block=False)
        await house.hears("holding")
        future.cancel()
        await house.hears("noticed")
        assert await house.system.ask(ref, "next") == "next"
        assert ref._cell.restarts == 0


@given(cancelled=st.lists(st.booleans(), min_size=1, max_size=20))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_s18_whatever_is_cancelled_every_ask_has_exactly_one_answer(
    playground: Playground, cancelled: list[bool]
) -> None:
    async def play() -> None:
        ref = await kept(playground.system, actors.Held)
        asked = [ref.ask(number, block=False) for number in range(len(cancelled))]
        await asyncio.sleep(0)
        for future, cancel in zip(asked, cancelled, strict=True):
            if cancel:
                future.cancel()
        for number, (future, cancel) in enumerate(zip(asked, cancelled, strict=True)):
            if cancel and isinstance(future.error(), Cancelled):
                continue
            assert await future == number
        assert await playground.system.ask(ref, "alive") == "alive"

    playground.play(play())


# --- S19 concurrency is declared ---


async def test_s19_concurrency_is_that_many_workers_each_with_an_instance_of_its_own() -> None:
    async with a_house() as house:
        ref = await house.system.spawn(actors.Wide)
        asked = [ref.ask("hold", block=False) for _ in range(4)]
        await house.gate.until_entered()
        assert house.system.table.cells["gate"].working <= 2
        house.gate.opened.set()
        pids = {(await future)[0] for future in asked}
        assert len(pids) == 2
        with pytest.raises(ValueError, match="both"):
            await house.system.ask(ref, ValueError("both"))
        assert await house.system.ask(ref, "pid") not in pids
