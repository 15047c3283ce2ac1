"""The contract on messages under way, over every lane: bounds (S13), fairness (S14), circles (S17), cancel (S18)."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grami_actors.actor import Actor
from grami_actors.cell import ActorDead
from grami_actors.errors import (
    AgentCrashed,
    AskCycle,
    Cancelled,
    DeadlineExceeded,
    GramiError,
    MailboxFull,
    WouldDeadlock,
)
from grami_actors.future import current_scope
from grami_actors.lanes.loop import BATCH
from grami_actors.mailbox import Overflow
from grami_actors.messages import Envelope, Scope
from grami_actors.restarts import RestartPolicy
from grami_actors.router import Forward
from grami_actors.system import ActorSystem
from grami_actors.telemetry import ActorFailed, ActorRestarted, DeadLetter, MessageHandled, SlowTurn
from tests.conftest import LANES, Gate, Recorder, on, running
from tests.test_contract import AT_ONCE, Held, Log

lanes = st.sampled_from(LANES)


class HeldLog(Log):
    """Handles "hold" until the gate opens; keeps everything else in a list that outlives it."""

    restart = AT_ONCE

    def __init__(self, gate: Gate, handled: list[Any]) -> None:
        super().__init__()
        self.gate = gate
        self.handled = handled

    async def on_receive(self, message: Any) -> Any:
        if message == "hold":
            return await self.gate.wait_async()
        self.handled.append(message)
        return message


# --- S1 order, through the router ---


@given(plan=st.lists(st.sampled_from("ab"), max_size=30), lane=lanes)
@settings(max_examples=20, deadline=None)
def test_s1_order_holds_through_the_router_too(plan: list[str], lane: str) -> None:
    async def play() -> None:
        async with running() as system:
            for name in "ab":
                system.table.join(name, (await system.spawn(on(lane, Log), name=name))._cell)
            for number, name in enumerate(plan):
                system.tell("router", Forward(Envelope(number), name))
            handled = Recorder(system, MessageHandled)
            system.tell("router", Forward(Envelope("end"), "a"))
            system.tell("router", Forward(Envelope("end"), "b"))
            await handled.until(lambda events: sum(event.message == "end" for event in events) == 2)
            for name in "ab":
                expected = [number for number, to in enumerate(plan) if to == name]
                assert await system.ask(name, "read") == [*expected, "end"]

    asyncio.run(play())


# --- S2 never lost silently ---


@given(
    plan=st.lists(st.sampled_from(["tell", "ask", "fail", "cancel", "stop"]), max_size=20),
    lane=lanes,
)
@settings(max_examples=40, deadline=None)
def test_s2_every_message_is_handled_once_or_one_dead_letter_or_refused(plan: list[str], lane: str) -> None:
    async def play() -> None:
        gate, handled = Gate(), []

        class Fragile(HeldLog):
            restart = RestartPolicy(intensity=100, shortest=0, longest=0)

            async def on_receive(self, message: Any) -> Any:
                await super().on_receive(message)
                if message in failing:
                    raise ValueError(message)
                return message

        failing = {number for number, step in enumerate(plan) if step == "fail"}
        refused: list[Any] = []
        asked: dict[int, Any] = {}
        async with running() as system:
            letters = Recorder(system, DeadLetter)
            ref = await system.spawn(on(lane, Fragile), gate, handled)
            ref.tell("hold")
            await gate.until_entered()
            for number, step in enumerate(plan):
                if step in {"ask", "cancel"}:
                    asked[number] = ref.ask(number, block=False)
                    if step == "cancel":
                        asked[number].cancel()
                elif step == "stop":
                    ref.stop(block=False)
                else:
                    try:
                        ref.tell(number)
                    except ActorDead:
                        refused.append(number)
            gate.opened.set()
            answers = await asyncio.gather(*asked.values(), return_exceptions=True)
        told = {number for number, step in enumerate(plan) if step in {"tell", "fail"}}
        ends = Counter([*handled, *refused, *(letter.message for letter in letters.events)])
        answered = {number for number, answer in zip(asked, answers, strict=True) if answer == number}
        assert ends == Counter(told | answered)
        assert all(isinstance(answer, (int, Cancelled, ActorDead)) for answer in answers)

    asyncio.run(play())


async def test_s2_an_actor_that_observes_events_loses_none_of_its_messages_to_them(lane: str) -> None:
    gate, handled = Gate(), []

    class Observer(HeldLog):
        mailbox = 2
        overflow = "drop_oldest"

        def on_start(self) -> None:
            self.observe(ActorFailed)

    async with running() as system:
        letters = Recorder(system, DeadLetter)
        failures = Recorder(system, ActorFailed)
        ref = await system.spawn(on(lane, Observer), gate, handled)
        ref.tell("hold")
        await gate.until_entered()
        ref.tell("told")
        asked = ref.ask("asked", block=False)
        other = await system.spawn(on(lane, Log, restart=RestartPolicy(intensity=10, shortest=0, longest=0)))
        for _ in range(4):
            other.tell(ValueError("fails"))
        await failures.until(lambda events: len(events) == 4)
        gate.opened.set()
        with suppress(MailboxFull):
            async with asyncio.timeout(2):
                handled.append(await asked)
        lost = {"told", "asked"}.difference(handled).difference(letter.message for letter in letters.events)
        assert lost <= {"asked"}
        assert asked.done()


# --- S13 bounded mailbox ---


@given(
    overflow=st.sampled_from(["reject", "wait", "drop_oldest", "drop_newest"]),
    capacity=st.integers(1, 4),
    plan=st.lists(st.sampled_from(["tell", "ask"]), max_size=12),
    lane=lanes,
)
@settings(max_examples=60, deadline=None)
def test_s13_never_more_than_the_bound_and_each_message_is_handled_or_dead_or_refused(
    overflow: Overflow, capacity: int, plan: list[str], lane: str
) -> None:
    async def play() -> None:
        gate, handled = Gate(), []
        refused: list[int] = []
        asked: dict[int, Any] = {}
        async with running() as system:
            letters = Recorder(system, DeadLetter)
            ref = await system.spawn(on(lane, HeldLog, overflow=overflow, mailbox=capacity), gate, handled, name="it")
            ref.tell("hold")
            await gate.until_entered()
            for number, step in enumerate(plan):
                if step == "ask":
                    asked[number] = ref.ask(number, block=False)
                else:
                    try:
                        ref.tell(number)
                    except MailboxFull:
                        refused.append(number)
                assert len(ref._cell.mailbox) <= capacity
            gate.opened.set()
            answers = await asyncio.gather(*asked.values(), return_exceptions=True)
            await system.drain(ref)
            failed = [number for number, answer in zip(asked, answers, strict=True) if isinstance(answer, MailboxFull)]
            dead = [letter.message for letter in letters.events]
            assert sorted([*handled, *refused, *failed, *dead]) == list(range(len(plan)))
            assert {letter.reason for letter in letters.events} <= {"overflow"}
            assert [answer for answer in answers if not isinstance(answer, MailboxFull)] == [
                number for number in asked if number not in failed
            ]
            assert handled == sorted(handled)
            lost = {*refused, *failed, *dead}
            numbers = list(range(len(plan)))
            if overflow == "drop_oldest":
                assert handled == numbers[-capacity:]
                assert not refused
            elif overflow == "wait":
                assert lost == set(refused)  # tells alone: an ask waits for room
                assert lost <= {number for number in numbers if plan[number] == "tell"}
                assert (capacity >= len(plan)) <= (not lost)
            else:
                assert handled == numbers[:capacity]
                assert not (dead if overflow == "reject" else refused)

    asyncio.run(play())


async def test_s13_the_bound_is_a_thousand_unless_the_class_says_otherwise(lane: str) -> None:
    gate, handled = Gate(), []
    async with running() as system:
        ref = await system.spawn(on(lane, HeldLog), gate, handled)
        ref.tell("hold")
        await gate.until_entered()
        for number in range(1_000):
            ref.tell(number)
        with pytest.raises(MailboxFull, match="holds 1000 messages"):
            ref.tell("one more")
        gate.opened.set()
        assert await system.drain(ref)
        assert handled == list(range(1_000))


async def test_s13_threads_that_send_at_once_pass_the_bound_by_one_each_at_most(lane: str) -> None:
    gate, handled = Gate(), []
    threads, each, capacity = 4, 300, 50
    async with running() as system:
        ref = await system.spawn(on(lane, HeldLog, mailbox=capacity), gate, handled)
        ref.tell("hold")
        await gate.until_entered()
        loop = asyncio.get_running_loop()
        start = threading.Barrier(threads)

        def send(thread: int) -> int:
            start.wait()
            refused = 0
            for number in range(each):
                try:
                    ref.tell((thread, number))
                except MailboxFull:
                    refused += 1
            return refused

        with ThreadPoolExecutor(threads) as pool:
            refused = sum(await asyncio.gather(*(loop.run_in_executor(pool, send, n) for n in range(threads))))
        gate.opened.set()
        assert await system.drain(ref)
        assert len(handled) + refused == threads * each
        assert capacity <= len(handled) < capacity + threads


async def test_s13_who_gives_up_waiting_for_room_leaves_no_message_behind(lane: str) -> None:
    gate, handled = Gate(), []
    async with running() as system:
        ref = await system.spawn(on(lane, HeldLog, mailbox=1, overflow="wait"), gate, handled, name="small")
        ref.tell("hold")
        await gate.until_entered()
        ref.tell(0)
        asked = [ref.ask(number, block=False) for number in range(1, 4)]
        sends = [asyncio.create_task(ref._cell.send(number)) for number in range(4, 7)]
        await asyncio.sleep(0)
        asked[1].cancel()
        sends[1].cancel()
        await asyncio.wait((sends[1],))
        gate.opened.set()
        with pytest.raises(Cancelled):
            await asked[1]
        with pytest.raises(asyncio.CancelledError):
            await sends[1]
        assert [await asked[0], await asked[2]] == [1, 3]
        await asyncio.gather(sends[0], sends[2])
        assert await system.drain(ref)
        assert handled == [0, 1, 3, 4, 6]


async def test_s13_waiting_for_room_ends_at_the_deadline(lane: str) -> None:
    gate, handled = Gate(), []

    class Sender(Actor):
        async def on_receive(self, message: Any) -> Any:
            await self.send("small", message)

    async with running() as system:
        ref = await system.spawn(on(lane, HeldLog, mailbox=1, overflow="wait"), gate, handled, name="small")
        ref.tell("hold")
        await gate.until_entered()
        ref.tell(0)
        sender = await system.spawn(on(lane, Sender))
        with pytest.raises(DeadlineExceeded):
            await system.ask(sender, "too late", timeout=0.02)
        with pytest.raises(DeadlineExceeded):
            await system.ask(ref, "too late", timeout=0.02)
        gate.opened.set()
        assert await system.drain(ref)
        assert handled == [0]


# --- S14 fairness ---


class Clock:
    """Passes a millisecond at each look."""

    def __init__(self, step: float = 0.001) -> None:
        self.now = 0.0
        self.step = step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def turns(loop: asyncio.AbstractEventLoop, counted: list[Any]) -> list[int]:
    """How much was counted in each turn of the loop; another callback of the loop does the bookkeeping."""
    found = [0]

    def look() -> None:
        found.append(len(counted))
        if found[-1] > found[-2] or len(found) < 3:
            loop.call_soon(look)

    loop.call_soon(look)
    return found


@pytest.mark.parametrize("traced", [False, True])
async def test_s14_an_actor_handles_a_batch_at_most_before_the_others_have_their_turn(*, traced: bool) -> None:
    order: list[str] = []

    class Busy(Actor):
        def on_receive(self, message: Any) -> Any:
            order.append(self.name)

    async with running(clock=lambda: 0.0) as system:  # no time passes: only the batch ends a turn
        recorder = Recorder(system, MessageHandled) if traced else None
        refs = [await system.spawn(Busy, name=name) for name in "abc"]
        for ref in refs:
            for _ in range(200):
                ref.tell("work")
        assert all([await system.drain(ref) for ref in refs])
        assert order[: 3 * BATCH] == [name for name in "abc" for _ in range(BATCH)]
        assert recorder is None or len(recorder.events) >= 600


@pytest.mark.parametrize("way", ["tell", "ask", "coroutine"])
async def test_s14_a_drain_ends_after_five_milliseconds_and_the_loop_has_its_turn(way: str) -> None:
    handled: list[Any] = []

    class Busy(Actor):
        mailbox = 10_000

        def on_receive(self, message: Any) -> Any:
            handled.append(message)

    class AsyncBusy(Busy):
        async def on_receive(self, message: Any) -> Any:
            handled.append(message)

    async with running(clock=Clock()) as system:
        refs = [await system.spawn(AsyncBusy if way == "coroutine" else Busy) for _ in range(3)]
        seen = turns(asyncio.get_running_loop(), handled)
        asked = []
        for number in range(100):
            for ref in refs:
                if way == "ask":
                    asked.append(ref.ask(number, block=False, timeout=1_000))
                else:
                    ref.tell(number)
        await asyncio.gather(*asked)
        for ref in refs:
            assert await system.drain(ref)
        steps = [after - before for before, after in pairwise(seen)]
        assert len(handled) == 300
        assert max(steps) <= (12 if way == "ask" else 6)  # who waits for an answer may use a slice too


@pytest.mark.parametrize("asker", ["task", "handler"])
async def test_s14_an_endless_loop_of_asks_that_are_answered_at_once_lets_the_loop_have_its_turn(asker: str) -> None:
    asks: list[int] = []
    gone_round: list[int] = []
    over = asyncio.Event()

    async def ask_on(ask: Any) -> None:
        while not over.is_set() and len(asks) < 100_000:  # bounded, so that a starved loop fails and does not hang
            asks.append(await ask())

    class Asker(Actor):
        async def on_receive(self, message: Any) -> Any:
            await ask_on(lambda: self.ask("log", 1))

    async with running(clock=lambda: 0.0) as system:
        loop = asyncio.get_running_loop()
        log = await system.spawn(on("loop", Log), name="log")

        def look() -> None:
            gone_round.append(len(asks))
            if len(gone_round) == 20:
                over.set()
            else:
                loop.call_soon(look)

        loop.call_soon(look)
        if asker == "task":
            await ask_on(lambda: log.ask(1, block=False))
        else:
            await system.ask(await system.spawn(Asker), "go")
        assert max(b - a for a, b in pairwise(gone_round)) <= BATCH + 1
        assert len(asks) < 20 * (BATCH + 1)


async def test_s14_what_is_answered_at_once_does_not_stop_the_other_actors() -> None:
    progress: list[int] = []
    asks = 0

    class Asker(Actor):
        async def on_receive(self, message: Any) -> Any:
            nonlocal asks
            while len(progress) < 10 and asks < 100_000:
                asks += 1
                await self.ask("log", 1)

    class Stepping(Actor):
        def on_receive(self, message: Any) -> Any:
            progress.append(message)
            if message < 20:
                self.tell("stepping", message + 1)

    async with running(clock=Clock(0.0001)) as system:
        await system.spawn(Log, name="log")
        stepping = await system.spawn(Stepping, name="stepping")
        asker = await system.spawn(Asker)
        stepping.tell(0)
        await system.ask(asker, "go")
        assert progress[:10] == list(range(10))
        assert asks <= 10 * (BATCH + 1)


async def test_s14_who_asks_a_full_actor_again_and_again_lets_it_have_its_turn() -> None:
    """An answer that is there at once, such as a refusal, must not keep the loop either."""
    tries = 0
    handled: list[Any] = []

    class Small(Actor):
        mailbox = 1

        def on_receive(self, message: Any) -> Any:
            handled.append(message)

    async with running() as system:
        ref = await system.spawn(Small)
        ref.tell("fills it")
        while not handled and tries < 10_000:
            tries += 1
            with suppress(MailboxFull):
                await ref.ask("again", block=False)
        assert tries < 10_000


@pytest.mark.parametrize("way", ["tell", "ask", "request", "coroutine"])
async def test_s14_a_turn_that_takes_too_long_is_published_while_it_lasts_with_its_actor_and_line(way: str) -> None:
    reported = threading.Event()
    slow: list[SlowTurn] = []

    def note(event: SlowTurn) -> None:
        slow.append(event)
        reported.set()

    class Slow(Actor):
        def on_receive(self, message: Any) -> Any:
            assert reported.wait(5), "nobody said that this is slow"
            return "seen"

    class AsyncSlow(Actor):
        async def on_receive(self, message: Any) -> Any:
            assert reported.wait(5), "nobody said that this is slow"
            return "seen"

    class Middle(Actor):
        async def on_receive(self, message: Any) -> Any:
            return await self.ask("slow", message)

    async with running(slow_turn=0.01) as system:
        failures = Recorder(system, ActorFailed)
        system.bus.subscribe(note, SlowTurn)
        ref = await system.spawn(AsyncSlow if way == "coroutine" else Slow, name="slow")
        middle = await system.spawn(Middle)
        if way == "tell":
            ref.tell("work")
            await system.drain(ref)
        else:
            assert await system.ask(middle if way == "request" else ref, "work") == "seen"
        assert failures.events == []
        assert [event.actor for event in slow] == ["slow"]
        assert slow[0].seconds >= 0.01
        assert "test_contract_flow.py" in slow[0].where
        assert "Slow.on_receive" in slow[0].where


async def test_s14_a_thread_that_takes_long_keeps_nobody_waiting(lane: str) -> None:
    """On the thread lane a slow handler is its own affair: others are served, and nothing is reported."""
    gate = Gate()

    class Blocking(Actor):
        lane = "thread"

        def on_receive(self, message: Any) -> Any:
            gate.hold()
            return "done"

    class Slow(Actor):
        def on_receive(self, message: Any) -> Any:
            assert reported.wait(5)

    reported = threading.Event()
    slow: list[SlowTurn] = []

    def note(event: SlowTurn) -> None:
        slow.append(event)
        reported.set()

    async with running(slow_turn=0.01) as system:
        system.bus.subscribe(note, SlowTurn)
        blocking = (await system.spawn(Blocking, name="blocking")).ask("work", block=False)
        await gate.until_entered()
        other = await system.spawn(on(lane, Log))
        assert [await system.ask(other, number) for number in range(100)] == list(range(100))
        await system.ask(await system.spawn(Slow, name="slow"), "work")  # the report that comes, in the end
        gate.opened.set()
        assert await blocking == "done"
        assert {event.actor for event in slow} == {"slow"}


# --- S15 containment ---


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), asyncio.CancelledError(), GeneratorExit()])
@pytest.mark.parametrize("hook", ["on_receive", "on_terminated", "on_stop", "on_failure"])
async def test_s15_nothing_that_a_hook_or_a_told_handler_raises_leaves_its_actor(
    lane: str, hook: str, error: BaseException
) -> None:
    def explode(*_: Any) -> None:
        raise error

    async with running() as system:
        failures = Recorder(system, ActorFailed)
        other = await system.spawn(on(lane, Log))
        target = await system.spawn(on(lane, Log))
        ref = await system.spawn(on(lane, Log, **{hook: explode}))
        if hook == "on_failure":
            ref.tell(ValueError("fails"))
        elif hook == "on_terminated":
            system.watch_for(target, ref._cell)
            await system.stop(target)
        elif hook == "on_receive":
            ref.tell("anything")
        if hook in {"on_terminated", "on_failure"}:
            assert await system.ask(ref, "restarted") == "restarted"
        else:
            await system.drain(ref)
        assert [event.actor for event in failures.events] == [ref.name] * (1 + (hook == "on_failure"))
        assert await system.ask(other, "unharmed") == "unharmed"


# --- S16 isolation ---


async def test_s16_what_fails_stops_or_observes_in_one_system_is_nothing_to_the_other(lane: str) -> None:
    class Observer(Log):
        def on_start(self) -> None:
            self.observe(DeadLetter, ActorFailed)

    async with running() as one, running() as two:
        observers = [await system.spawn(on(lane, Observer), name="observer") for system in (one, two)]
        for system in (one, two):
            await system.spawn(on(lane, Log), name="log")
            assert system.gate("api").retry_after == 0
        one.gate("api").park(60)
        one.tell("log", ValueError("fails"))
        assert await one.ask("log", "alive") == "alive"
        seen = [await system.ask(ref, "read") for system, ref in zip((one, two), observers, strict=True)]
        assert [len(each) for each in seen] == [1, 0]
        assert two.gate("api").open
        await one.stop("log")
        assert await two.ask("log", "alive") == "alive"


# --- S17 blocking is an error ---


async def eventually(condition: Any) -> None:
    """Let the loop go round until it is so."""
    done = False
    while not done:
        await asyncio.sleep(0)
        done = bool(condition())


class Link(Actor):
    """Asks the next one, in one of the ways there are."""

    def __init__(self, following: str, way: str) -> None:
        super().__init__()
        self.following = following
        self.way = way

    def on_receive(self, message: Any) -> Any:
        if self.way == "plain":  # a plain handler that returns the future
            return self.ask(self.following, message)
        if self.way == "blocking":
            return self.ask(self.following, message).get()
        return getattr(self, self.way)(message)

    async def waits(self, message: Any) -> Any:
        return await self.ask(self.following, message)

    async def gathers(self, message: Any) -> Any:
        return (await asyncio.gather(self.ask(self.following, message)))[0]

    async def streams(self, message: Any) -> Any:
        return [chunk async for chunk in self.stream(self.following, message)]

    async def groups(self, message: Any) -> Any:
        async with asyncio.TaskGroup() as group:
            asked = group.create_task(self.waits(message))
        return asked.result()


links = st.tuples(lanes, st.sampled_from(["plain", "waits", "gathers", "streams", "groups", "blocking"])).map(
    lambda link: ("thread", "blocking") if link[1] == "blocking" else link  # elsewhere it is refused, see below
)


@given(ring=st.lists(links, min_size=1, max_size=4), before=links)
@settings(max_examples=60, deadline=None)
def test_s17_a_circle_of_any_lanes_and_ways_is_reported_as_the_circle(
    ring: list[tuple[str, str]], before: tuple[str, str]
) -> None:
    async def play() -> None:
        names = "abcd"[: len(ring)]
        async with running() as system:
            failures = Recorder(system, ActorFailed)
            for number, (lane, way) in enumerate(ring):
                following = names[(number + 1) % len(names)]
                await system.spawn(on(lane, Link), following, way, name=names[number])
            await system.spawn(on(before[0], Link), "a", before[1], name="before")
            with pytest.raises((AskCycle, ExceptionGroup)) as caught:
                await system.ask("before", "round", timeout=2)
            text = str(first_of(caught.value))
            circles = [" -> ".join(f"{names[start:]}{names[:start]}{names[start]}") for start in range(len(names))]
            assert text.rpartition(": ")[2] in circles
            assert all("WouldDeadlock" not in event.error for event in failures.events)

    asyncio.run(play())


def first_of(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def test_s17_a_circle_through_a_pool_of_all_is_a_circle_too(lane: str) -> None:
    async with running() as system:
        await system.spawn(on(lane, Link), "all", "waits", name="a")
        for number in range(2):
            cell = (await system.spawn(on(lane, Link), "a", "waits", name=f"all-{number}"))._cell
            system.table.join("all", cell, strategy="broadcast")
        with pytest.raises(AskCycle):
            await system.ask("a", "round", timeout=2)


async def test_s17_a_blocking_ask_in_a_handler_on_the_loop_is_refused_at_once(lane: str) -> None:
    async with running() as system:
        await system.spawn(on(lane, Log), name="log")
        ref = await system.spawn(on("loop", Link), "log", "blocking")
        other = await system.spawn(on(lane, Held), gate := Gate(), name="held")
        with pytest.raises(WouldDeadlock, match="await"):
            await system.ask(await system.spawn(on("loop", Link), "held", "blocking"), "hold")
        gate.opened.set()
        with suppress(WouldDeadlock):  # unless the answer was there already
            assert await system.ask(ref, "quick") == "quick"
        assert await system.ask(other, "alive") == "alive"


async def test_s17_who_waits_for_an_actor_that_waits_for_a_third_is_in_no_circle(lane: str) -> None:
    gate = Gate()
    async with running() as system:
        await system.spawn(on("loop", Held), gate, name="c")
        await system.spawn(on(lane, Link), "c", "waits", name="b")
        asking = [await system.spawn(on(each, Link), "b", "gathers") for each in (*LANES, *LANES)]
        first = system.resolve("b", None).ask("hold")
        await gate.until_entered()
        asked = [ref.ask(number, block=False) for number, ref in enumerate(asking)]
        for ref in asking:
            await eventually(lambda ref=ref: ref._cell.waits)
        gate.opened.set()
        assert await first == "hold"
        assert [await future for future in asked] == [0, 1, 2, 3]


# --- S18 cancel ---


class Chain(Actor):
    """Asks the next one along; the last one waits at the gate. Notes how each request ended."""

    def __init__(self, ended: list[tuple[str, str]], following: str, gate: Gate) -> None:
        super().__init__()
        self.ended = ended
        self.following = following
        self.gate = gate

    async def on_receive(self, message: Any) -> Any:
        try:
            if self.following:
                return await self.ask(self.following, message)
            await self.gate.wait_async()
        except (asyncio.CancelledError, Cancelled):
            self.ended.append((self.name, f"{message} cancelled"))
            raise
        self.ended.append((self.name, f"{message} done"))
        return message


async def chain(system: ActorSystem, kinds: list[str], ended: list[tuple[str, str]], gate: Gate) -> list[str]:
    names = "abcdef"[: len(kinds)]
    for number, lane in enumerate(kinds):
        await system.spawn(on(lane, Chain), ended, names[number + 1 : number + 2], gate, name=names[number])
    return list(names)


@given(kinds=st.lists(lanes, min_size=1, max_size=4), by_task=st.booleans())
@settings(max_examples=30, deadline=None)
def test_s18_cancelling_an_ask_cancels_every_handler_of_a_chain_across_lanes(
    kinds: list[str], *, by_task: bool
) -> None:
    async def play() -> None:
        ended: list[tuple[str, str]] = []
        gate = Gate()
        async with running() as system:
            handled = Recorder(system, MessageHandled)
            failures = Recorder(system, ActorFailed, DeadLetter)
            names = await chain(system, kinds, ended, gate)
            future = system.resolve("a", None).ask("work")
            waiting = asyncio.create_task(wait_for(future))
            await gate.until_entered()
            if by_task:
                waiting.cancel()
                await asyncio.wait((waiting,))
            else:
                assert future.cancel() is True
            assert future.cancel() is False
            with pytest.raises(Cancelled):
                await future
            await handled.until(lambda events: len(events) == len(names))
            assert sorted(ended) == [(name, "work cancelled") for name in names]
            gate.opened.set()
            assert await system.ask("a", "next") == "next"
            assert failures.events == []

    asyncio.run(play())


@given(
    kinds=st.lists(lanes, min_size=1, max_size=3),
    turns_before=st.integers(0, 12),
    how=st.sampled_from(["cancel", "expire", "task", "kill", "stop"]),
    opened=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_s18_there_is_exactly_one_terminal_answer_whenever_the_end_comes(
    kinds: list[str], turns_before: int, how: str, *, opened: bool
) -> None:
    async def play() -> None:
        ended: list[tuple[str, str]] = []
        answers: list[Any] = []
        gate = Gate()
        if opened:
            gate.opened.set()
        async with running() as system:
            letters = Recorder(system, DeadLetter)
            names = await chain(system, kinds, ended, gate)
            future = system.resolve("a", None).ask("work")
            future.on_done(lambda: answers.append(future.error() or future.value()))
            waiting = asyncio.create_task(wait_for(future))
            for _ in range(turns_before):
                await asyncio.sleep(0)
            if how == "cancel":
                future.cancel()
            elif how == "expire":
                future.expire()
            elif how == "task":
                waiting.cancel()
            elif how == "stop":
                stopping = system.resolve(names[-1], None).ref.stop(block=False)
            elif kinds[-1] == "loop":
                system.kill(names[-1])
            gate.opened.set()
            await asyncio.wait((waiting,))
            if how == "stop":
                await stopping
            await wait_for(future)  # a task that was cancelled before its first step waited for nothing
            for name in names[:-1]:
                with suppress(GramiError):
                    await system.ask(name, "next")
        assert len(answers) == 1
        assert answers[0] == "work" or isinstance(answers[0], GramiError)
        assert Counter(letter.message for letter in letters.events) <= Counter(["work"])
        begun = Counter(name for name, how in ended if how.startswith("work"))
        assert max(begun.values(), default=0) <= 1

    asyncio.run(play())


async def wait_for(future: Any) -> Any:
    with suppress(GramiError):
        return await future


async def test_s18_an_answer_that_is_there_is_not_taken_back(lane: str) -> None:
    async with running() as system:
        ref = await system.spawn(on(lane, Log))
        future = ref.ask("work", block=False)
        assert await future == "work"
        assert future.cancel() is False
        future.expire()
        assert future.set_result("other") is False
        assert future.fail(ValueError("other")) is False
        assert await future == "work"


async def test_s18_what_was_told_is_cancelled_with_the_request_but_not_what_was_told_detached(lane: str) -> None:
    gate, handled = Gate(), []

    class Teller(Actor):
        async def on_receive(self, message: Any) -> Any:
            self.tell("log", "told")
            self.tell("log", "detached", detached=True)
            await gate.wait_async()

    async with running() as system:
        letters = Recorder(system, DeadLetter)
        log = await system.spawn(on(lane, HeldLog), hold := Gate(), handled, name="log")
        log.tell("hold")
        await hold.until_entered()
        teller = await system.spawn(on(lane, Teller))
        future = teller.ask("go", block=False)
        await gate.until_entered()
        future.cancel()
        hold.opened.set()
        assert await system.drain(log)
        assert handled == ["detached"]
        assert [(letter.message, letter.reason) for letter in letters.events] == [("told", "cancelled")]
        gate.opened.set()


async def test_s18_a_told_handler_at_work_is_cancelled_with_the_request_and_fails_nobody(lane: str) -> None:
    gate, hold = Gate(), Gate()
    interrupted = threading.Event()

    class Told(Actor):
        async def on_receive(self, message: Any) -> Any:
            try:
                await hold.wait_async()
            except asyncio.CancelledError:
                interrupted.set()
                raise

    class Teller(Actor):
        async def on_receive(self, message: Any) -> Any:
            self.tell("told", message)
            await gate.wait_async()

    async with running() as system:
        failures = Recorder(system, ActorFailed)
        handled = Recorder(system, MessageHandled)
        await system.spawn(on(lane, Told), name="told")
        future = (await system.spawn(on(lane, Teller))).ask("work", block=False)
        await gate.until_entered()
        await hold.until_entered()
        future.cancel()
        await handled.until(lambda events: len(events) == 2)
        assert interrupted.is_set()
        assert failures.events == []
        gate.opened.set()
        hold.opened.set()


async def test_s18_a_thread_handler_that_cannot_be_interrupted_sees_that_it_is_cancelled() -> None:
    gate = Gate()
    seen: list[bool] = []

    class Blocking(Actor):
        lane = "thread"

        def on_receive(self, message: Any) -> Any:
            seen.append(self.cancelled)
            gate.hold()
            seen.append(self.cancelled)
            return "late"

    async with running() as system:
        letters = Recorder(system, DeadLetter)
        ref = await system.spawn(Blocking)
        future = ref.ask("work", block=False)
        await gate.until_entered()
        future.cancel()
        gate.opened.set()
        with pytest.raises(Cancelled):
            await future
        assert (await letters.first(DeadLetter)).reason == "late_reply"
        assert seen == [False, True]


async def test_s18_a_request_that_is_cancelled_before_its_coroutine_begins_leaves_the_actor_alive(lane: str) -> None:
    """The handler has nothing left to wait for, so nothing in it is interrupted; that must not end who runs it."""

    class Late(Actor):
        def on_receive(self, message: Any) -> Any:
            if message == "cancel":
                futures.pop().cancel()
            return self.later(message)

        async def later(self, message: Any) -> Any:
            return message

    futures: list[Any] = []
    async with running() as system:
        ref = await system.spawn(on(lane, Late))
        system.suspend(ref)
        future = ref.ask("cancel", block=False)
        futures.append(future)
        system.resume(ref)
        with pytest.raises(Cancelled):
            await future
        assert await system.ask(ref, "alive", timeout=5) == "alive"


async def test_s18_cancelling_one_of_two_asks_leaves_the_other_and_its_asker_alone(lane: str) -> None:
    gate = Gate()

    class Choosing(Actor):
        async def on_receive(self, message: Any) -> Any:
            slow, quick = self.ask("slow", "hold"), self.ask("quick", message)
            answer = await quick
            slow.cancel()
            with pytest.raises(Cancelled):
                await slow
            return answer, current_scope().reason

    async with running() as system:
        await system.spawn(on(lane, Held), gate, name="slow")
        await system.spawn(on(lane, Log), name="quick")
        assert await system.ask(await system.spawn(on(lane, Choosing)), "work") == ("work", None)
        assert await system.ask("slow", "alive") == "alive"
        gate.opened.set()


async def test_s18_leaving_a_stream_early_cancels_what_it_asked_for(lane: str) -> None:
    gate = Gate()
    ended: list[str] = []

    class Writer(Actor):
        async def on_receive(self, message: Any) -> Any:
            self.emit("first")
            try:
                await gate.wait_async()
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise

    class Reader(Actor):
        async def on_receive(self, message: Any) -> Any:
            stream = self.stream("writer", message)
            chunks = aiter(stream)
            first = await anext(chunks)
            await chunks.aclose()
            return first

    async with running() as system:
        handled = Recorder(system, MessageHandled)
        await system.spawn(on(lane, Writer), name="writer")
        assert await system.ask(await system.spawn(on(lane, Reader)), "write") == "first"
        await handled.until(lambda events: len(events) == 2)
        assert ended == ["cancelled"]
        gate.opened.set()


async def test_s18_a_request_that_is_over_starts_nothing_more(lane: str) -> None:
    handled: list[Any] = []
    gate = Gate()

    class Stubborn(Actor):
        async def on_receive(self, message: Any) -> Any:
            try:
                await gate.wait_async()
            except asyncio.CancelledError:
                try:
                    await self.ask("log", "after the end")
                except Cancelled:
                    handled.append("refused")
                self.tell("log", "told after the end")

    async with running() as system:
        letters = Recorder(system, DeadLetter)
        log = await system.spawn(on(lane, HeldLog), Gate(), handled, name="log")
        future = (await system.spawn(on(lane, Stubborn))).ask("work", block=False)
        await gate.until_entered()
        future.cancel()
        await letters.until(lambda events: [event for event in events if event.reason == "cancelled"])
        assert await system.drain(log)
        assert handled == ["refused"]
        gate.opened.set()


async def test_s18_a_scope_that_ends_reaches_asks_of_plain_scopes_too(lane: str) -> None:
    """Clients' requests are scopes without a future."""
    gate = Gate()
    async with running() as system:
        cell = (await system.spawn(on(lane, Held), gate))._cell
        scope = Scope(deadline=system.now() + 30)
        answered: list[Any] = []

        class Client:
            def set_result(self, value: Any) -> bool:
                answered.append(value)
                return True

            def fail(self, error: BaseException) -> bool:
                answered.append(error)
                return True

        handled = Recorder(system, MessageHandled)
        cell.post(Envelope("hold", Client(), scope=scope))
        await gate.until_entered()
        cell.post(Envelope("waits", Client(), scope=scope))
        assert scope.cancel(Cancelled("the client left"))
        await handled.until(len)
        assert await cell.ask("alive") == "alive"
        assert [str(each) for each in answered] == ["the client left"] * 2
        gate.opened.set()


async def test_s15_a_crash_answers_everybody_who_asked(lane: str) -> None:
    class Wide(Actor):
        concurrency = 3
        restart = AT_ONCE

        async def on_receive(self, message: Any) -> Any:
            await gates[message].wait_async()
            raise SystemExit(message)

    gates = [Gate() for _ in range(3)]
    async with running() as system:
        restarts = Recorder(system, ActorRestarted)
        ref = await system.spawn(on(lane, Wide))
        asked = [ref.ask(number, block=False) for number in range(3)]
        for gate in gates:
            await gate.until_entered()
        for gate, future in zip(gates, asked, strict=True):  # the last two when their instance was replaced
            gate.opened.set()
            with pytest.raises(AgentCrashed):
                await future
            await restarts.first(ActorRestarted)
        assert len(restarts.events) == 1
