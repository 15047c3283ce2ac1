"""Messages that an actor sends itself later: on time, once, and never after they were cancelled."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from grami_actors.actor import Actor
from grami_actors.cell import Cell
from grami_actors.future import current_scope
from grami_actors.restarts import RestartPolicy
from grami_actors.spec import Spec
from grami_actors.telemetry import ActorRestarted, Bus, MessageHandled
from grami_actors.timers import MANY, Timers
from tests.conftest import Gate, Recorder, Signal, on, running, turns_until
from tests.test_messages import Switch

AT_ONCE = RestartPolicy(shortest=0.0, longest=0.0)


class Keeper(Actor):
    """Keeps what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def on_receive(self, message: Any) -> Any:
        self.seen.append(message)


class ByHand:
    """A system and a lane in one, in which time passes and messages are handled when the test says so."""

    name = "loop"
    shared = False

    def __init__(self) -> None:
        self.bus = Bus()
        self.time = 0.0
        self.agenda: list[tuple[float, int, Callable[[], object]]] = []
        self.numbers = itertools.count()
        self.cell = Cell(self, self, Spec(Keeper), "keeper", 1, None)  # type: ignore[arg-type]
        self.cell.build()

    def new_trace_id(self) -> str:
        return "t"

    def wake(self, cell: Cell) -> None:
        """The test looks for itself."""

    def now(self) -> float:
        return self.time

    def after(self, seconds: float, callback: Callable[[], object]) -> Callable[[], None]:
        entry = (self.time + seconds, next(self.numbers), callback)
        heapq.heappush(self.agenda, entry)

        def disarm() -> None:
            if entry in self.agenda:
                self.agenda.remove(entry)
                heapq.heapify(self.agenda)

        return disarm

    def advance(self, seconds: float, *, asleep: bool = False) -> None:
        """Let time pass; ``asleep``: nothing is called until it has passed."""
        end = self.time + seconds
        if asleep:
            self.time = end
        while self.agenda and self.agenda[0][0] <= end:
            at, _, callback = heapq.heappop(self.agenda)
            self.time = max(self.time, at)
            callback()
        self.time = end

    def handle(self) -> bool:
        envelope = self.cell.mailbox.take()
        if envelope is not None:
            copy_context().run(self.cell.handle, envelope, self.cell.now())
        return envelope is not None

    @property
    def seen(self) -> list[Any]:
        seen: list[Any] = self.cell.actor.seen
        return seen


EIGHTHS = st.integers(0, 40).map(lambda number: number / 8)


class Agenda(RuleBasedStateMachine):
    """Any sequence of calls beside a table of what is due when."""

    @initialize()
    def begin(self) -> None:
        self.hand = ByHand()
        self.timers = Timers(self.hand.cell)
        self.due: dict[str, tuple[float, float | None, int]] = {}
        self.queue: list[tuple[str, int]] = []
        self.expected: list[int] = []
        self.numbers = itertools.count()

    @rule(key=st.sampled_from("abc"), seconds=EIGHTHS, every=st.none() | st.integers(1, 16).map(lambda n: n / 8))
    def set(self, key: str, seconds: float, every: float | None) -> None:
        number = next(self.numbers)
        self.forget(key)
        assert self.timers.set(seconds, number, key, every) == key
        self.due[key] = (self.hand.time + seconds, every, number)

    def forget(self, key: str) -> bool:
        waited = any(each == key for each, _ in self.queue)
        self.queue = [each for each in self.queue if each[0] != key]
        return (self.due.pop(key, None) is not None) | waited

    @rule(key=st.sampled_from("abcd"))
    def cancel(self, key: str) -> None:
        assert self.timers.cancel(key) is self.forget(key)

    @rule()
    def cancel_all(self) -> None:
        self.timers.cancel_all()
        for key in "abc":
            self.forget(key)
        assert self.hand.agenda == []

    @rule(seconds=EIGHTHS, asleep=st.booleans())
    def advance(self, seconds: float, asleep: bool) -> None:
        start, end = self.hand.time, self.hand.time + seconds
        self.hand.advance(seconds, asleep=asleep)
        came = []
        for key, (due, every, number) in tuple(self.due.items()):
            if due > end:
                continue
            if not any(each == key for each, _ in self.queue):
                # Those that were late when they came are called in the order they were due, as all others are.
                came.append((due, key, number))
            if every is None:
                del self.due[key]
                continue
            following = due
            while following <= end:
                following += every
            self.due[key] = (following, every, number)
        assert start <= end
        queued = [envelope.message for envelope in self.hand.cell.mailbox._queue if envelope.scope.reason is None]
        before = [number for _, number in self.queue]
        assert queued[: len(before)] == before
        assert sorted(queued[len(before) :]) == sorted(number for _, _, number in came)
        order = {number: due for due, _, number in came}
        assert [order[number] for number in queued[len(before) :]] == sorted(order.values())
        names = {number: key for _, key, number in came}
        self.queue += [(names[number], number) for number in queued[len(before) :]]

    @rule()
    def handle(self) -> None:
        self.hand.handle()
        while len(self.hand.seen) == len(self.expected) and self.hand.handle():
            pass  # what was cancelled is passed over
        if self.queue:
            self.expected.append(self.queue.pop(0)[1])

    @invariant()
    def what_is_handled_is_what_was_due_and_not_cancelled(self) -> None:
        assert self.hand.seen == self.expected

    @invariant()
    def never_more_than_one_of_a_timer_waits(self) -> None:
        waiting = [envelope.message for envelope in self.hand.cell.mailbox._queue if envelope.scope.reason is None]
        assert len(waiting) == len(set(waiting))

    @invariant()
    def each_timer_is_armed_once_for_when_it_is_due(self) -> None:
        assert sorted(at for at, _, _ in self.hand.agenda) == sorted(due for due, _, _ in self.due.values())


Agenda.TestCase.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
TestAgenda = Agenda.TestCase


def test_a_timer_without_a_key_gets_one_of_its_own() -> None:
    hand = ByHand()
    timers = Timers(hand.cell)
    keys = [timers.set(1.0, number, None) for number in range(3)]
    assert len(set(keys)) == 3
    assert timers.cancel(keys[1])
    hand.advance(1.0)
    while hand.handle():
        pass
    assert hand.seen == [0, 2]


@pytest.mark.parametrize(("seconds", "every"), [(-0.1, None), (float("nan"), None), (1.0, 0.0), (1.0, -1.0)])
def test_a_time_that_makes_no_sense_is_refused_and_the_timer_of_that_key_goes_on(
    seconds: float, every: float | None
) -> None:
    hand = ByHand()
    timers = Timers(hand.cell)
    timers.set(1.0, "first", "key")
    with pytest.raises(ValueError, match="a timer needs seconds of at least 0"):
        timers.set(seconds, "second", "key", every)
    hand.advance(1.0)
    hand.handle()
    assert hand.seen == ["first"]


def test_an_interval_does_not_drift_however_late_it_is_noticed() -> None:
    hand, times = ByHand(), []
    timers = Timers(hand.cell)
    timers.set(1.0, "tick", "key", 1.0)
    for number in range(1, 100):
        hand.advance(number - hand.time + 0.25)  # each one is noticed late by a quarter, or more
        if number % 7:
            hand.handle()
            times.append(hand.time)
    assert [entry[0] for entry in hand.agenda] == [100.0]
    assert hand.seen == ["tick"] * len(times)


def test_timers_that_are_done_are_forgotten() -> None:
    hand = ByHand()
    timers = Timers(hand.cell)
    for number in range(10 * MANY):
        timers.set(0.0, number, number)
        hand.advance(0.0)
        hand.handle()
        assert len(timers._timers) <= MANY
    for number in range(3 * MANY):
        timers.set(1_000.0, number, ("alive", number))
    assert sum(1 for key in timers._timers if isinstance(key, tuple)) == 3 * MANY


def test_a_timer_of_a_stopped_actor_comes_to_nothing() -> None:
    hand = ByHand()
    timers = Timers(hand.cell)
    timers.set(1.0, "tick", "key", 1.0)
    hand.cell.mailbox.close()
    hand.advance(5.0)
    assert (hand.seen, hand.agenda) == ([], [])


# --- the actor on one thread, the clock on another ---


def guard_of(timers: Timers) -> Any:
    """Nobody acts between two instructions of whoever holds the lock, if there is one."""
    return getattr(timers, "_lock", None) or threading.Lock()


@pytest.mark.parametrize("every", [None, 1.0])
def test_what_was_cancelled_is_not_handled_at_whatever_instruction_of_its_coming_it_is_cancelled(
    every: float | None,
) -> None:
    wrong = []
    for moment in itertools.count(1):
        hand, told = ByHand(), []
        timers = Timers(hand.cell)
        timers.set(1.0, "tick", "key", every)
        cancel = partial(lambda timers, told: told.append(timers.cancel("key")), timers, told)
        with Switch(Timers._fire, moment, guard_of(timers), cancel) as switch:
            hand.advance(1.0)
        if not switch.happened:
            break
        hand.advance(5.0)
        while hand.handle():
            pass
        if told == [True] and hand.seen:
            wrong.append(moment)
    assert moment > 3
    assert wrong == []


def test_a_timer_may_come_at_whatever_instruction_of_its_cancellation() -> None:
    wrong = []
    for moment in itertools.count(1):
        hand = ByHand()
        timers = Timers(hand.cell)
        timers.set(1.0, "tick", "key")
        with Switch(Timers.cancel, moment, guard_of(timers), partial(hand.advance, 1.0)) as switch:
            try:
                cancelled = timers.cancel("key")
            except Exception as error:  # noqa: BLE001 - reported below
                wrong.append((moment, error))
                continue
        if not switch.happened:
            break
        while hand.handle():
            pass
        if cancelled and hand.seen:
            wrong.append((moment, hand.seen))
    assert moment > 3
    assert wrong == []


def test_a_timer_may_come_at_whatever_instruction_of_its_being_set() -> None:
    wrong = []
    for moment in itertools.count(1):
        hand = ByHand()
        timers = Timers(hand.cell)
        with Switch(Timers._arm, moment, guard_of(timers), partial(hand.advance, 0.0)) as switch:
            timers.set(0.0, "tick", "key")
        if not switch.happened:
            break
        hand.advance(0.0)
        while hand.handle():
            pass
        assert hand.seen == ["tick"]
        if timers.cancel("key"):
            wrong.append(moment)
    assert wrong == [], "it was handled, so there is nothing to cancel"


# --- on the lanes ---


class Clock(Actor):
    """Does with its timers what it is told, and keeps what they bring."""

    restart = AT_ONCE

    def __init__(self, rang: Signal, *, at_start: bool = False) -> None:
        super().__init__()
        self.rang = rang
        self.at_start = at_start
        self.seen: list[Any] = []

    def on_start(self) -> None:
        if self.at_start:
            self.after(1_000.0, "never", key="long")

    async def on_receive(self, message: Any) -> Any:
        if callable(message):
            result = message(self)
            return await result if asyncio.iscoroutine(result) else result
        if isinstance(message, BaseException):
            raise message
        if message == "seen":
            return self.seen
        self.seen.append(message)
        self.rang.set()
        return None


async def test_a_message_comes_after_its_time(lane: str) -> None:
    rang = Signal()
    async with running() as system:
        ref = await system.spawn(on(lane, Clock), rang)
        before = system.now()
        assert await system.ask(ref, lambda self: self.after(0.02, "ring")) == "timer-1"
        await rang.reached()
        assert system.now() - before >= 0.02
        assert await system.ask(ref, "seen") == ["ring"]


async def test_a_key_that_is_set_again_replaces_its_timer_and_one_that_is_cancelled_does_not_come(lane: str) -> None:
    rang = Signal()

    def plan(self: Clock) -> None:
        self.after(0.0, "replaced", key="one")
        self.after(0.001, "replacement", key="one")
        self.after(0.0, "cancelled", key="two")
        assert self.cancel_timer("two")
        assert not self.cancel_timer("two")
        assert not self.cancel_timer("three")

    async with running() as system:
        ref = await system.spawn(on(lane, Clock), rang)
        await system.ask(ref, plan)
        await rang.reached()
        assert await system.ask(ref, "seen") == ["replacement"]


async def test_a_message_that_waits_in_the_mailbox_can_still_be_cancelled(lane: str) -> None:
    rang, gate = Signal(), Gate()

    async def plan(self: Clock) -> bool:
        self.after(0.0, "cancelled", key="one")
        await gate.wait_async()
        return self.cancel_timer("one")

    async with running() as system:
        ref = await system.spawn(on(lane, Clock), rang)
        planned = ref.ask(plan, block=False)
        await gate.until_entered()
        await turns_until(lambda: len(ref._cell.mailbox))
        gate.opened.set()
        assert await planned is True
        assert await system.ask(ref, "seen") == []


async def test_while_one_waits_no_other_of_a_periodic_timer_is_sent(lane: str) -> None:
    rang, gate = Signal(), Gate()

    async def plan(self: Clock) -> None:
        self.every(0.001, "tick", key="one")
        await gate.wait_async()

    async with running() as system:
        ref = await system.spawn(on(lane, Clock), rang)
        planned = ref.ask(plan, block=False)
        await gate.until_entered()
        due = ref._cell.timers._timers["one"].due
        await turns_until(lambda: ref._cell.timers._timers["one"].due >= due + 0.005)  # five more came in vain
        assert len(ref._cell.mailbox) == 1
        gate.opened.set()
        await planned


async def test_a_periodic_handler_may_cancel_its_own_timer_and_goes_on(lane: str) -> None:
    ended = Signal()

    class Tired(Actor):
        async def on_receive(self, message: Any) -> Any:
            if message == "begin":
                self.every(0.001, "tick", key="tick")
                return None
            assert self.cancel_timer("tick")
            for _ in range(5):
                await asyncio.sleep(0)
            assert current_scope().reason is None
            assert not self.cancelled
            ended.set()
            return "whole"

    async with running() as system:
        handled = Recorder(system, MessageHandled)
        ref = await system.spawn(on(lane, Tired))
        await system.ask(ref, "begin")
        await ended.reached()
        await handled.until(lambda events: len(events) == 2)
        assert [(event.message, event.outcome) for event in handled.events] == [("begin", "ok"), ("tick", "ok")]
        assert handled.events[1].result == "whole"


@pytest.mark.parametrize("end", ["restart", "stop"])
async def test_a_restart_and_a_stop_cancel_every_timer(lane: str, end: str) -> None:
    rang, gate = Signal(), Gate()

    async def plan(self: Clock) -> None:
        self.after(0.0, "queued")
        self.after(0.005, "later")
        self.every(0.005, "often")
        await gate.wait_async()
        raise ValueError("fail")

    async with running() as system:
        restarted = Recorder(system, ActorRestarted)
        ref = await system.spawn(on(lane, Clock), rang)
        ref.tell(plan)
        await gate.until_entered()
        await turns_until(lambda: len(ref._cell.mailbox))
        gate.opened.set()
        if end == "stop":
            await system.stop(ref)
        else:
            await restarted.first(ActorRestarted)
            await system.ask(ref, lambda self: self.after(0.01, "of the new one"))
            await rang.reached()
            assert await system.ask(ref, "seen") == ["of the new one"]
        assert [each for each in ref._cell.timers._timers.values() if each.pending] == []


async def test_a_fresh_instance_sets_its_own_timers_anew(lane: str) -> None:
    async with running() as system:
        restarted = Recorder(system, ActorRestarted)
        ref = await system.spawn(on(lane, Clock), Signal(), at_start=True)
        ref.tell(ValueError("fail"))
        await restarted.first(ActorRestarted)
        assert await system.ask(ref, lambda self: self.cancel_timer("long")) is True


async def test_what_a_timer_causes_is_a_request_with_a_trace_of_its_own(lane: str) -> None:
    traces: list[str] = []
    rang = Signal()

    class Asked(Actor):
        def on_receive(self, message: Any) -> None:
            traces.append(current_scope().trace_id)

    async with running() as system:
        asked = await system.spawn(on(lane, Asked))

        class Asking(Actor):
            def on_start(self) -> None:
                self.after(0.0, 1)
                self.after(0.0, 2)

            async def on_receive(self, message: Any) -> None:
                await self.ask(asked, "?")
                if len(traces) == 2:
                    rang.set()

        await system.spawn(on(lane, Asking))
        await rang.reached()
    assert [len(trace) for trace in traces] == [32, 32]
    assert traces[0] != traces[1]
