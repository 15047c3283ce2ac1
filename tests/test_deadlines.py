"""Deadlines: what is not answered ends then, exactly once and never early; what is answered is forgotten."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grami_actors.deadlines import SPARSE, TICK, Deadlines
from tests.test_messages import Switch, together


class Handle:
    """What a loop gives for a call that is to come."""

    def __init__(self, at: float, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.at = at
        self.callback: Callable[..., object] | None = callback
        self.args = args

    def cancel(self) -> None:
        self.callback = None


class Loop:
    """An event loop with a clock that stands until it is moved: the two methods that deadlines need."""

    def __init__(self) -> None:
        self.time = 0.0
        self.closed = False
        self.handles: list[Handle] = []
        self.sent: list[tuple[Callable[..., object], tuple[Any, ...]]] = []

    def now(self) -> float:
        return self.time

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Handle:
        handle = Handle(self.time + delay, callback, args)
        self.handles.append(handle)
        return handle

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any) -> None:
        if self.closed:
            raise RuntimeError("Event loop is closed")
        self.sent.append((callback, args))

    def pending(self) -> list[Handle]:
        return [handle for handle in self.handles if handle.callback is not None]

    def advance(self, seconds: float) -> None:
        end = self.time + seconds
        while True:
            sent, self.sent = self.sent, []
            for callback, args in sent:
                callback(*args)
            due = [handle for handle in self.pending() if handle.at <= end]
            if not due:
                break
            handle = min(due, key=lambda each: each.at)
            self.time = max(self.time, handle.at)
            callback, handle.callback = handle.callback, None
            callback(*handle.args)
        self.time = end
        self.handles = self.pending()


class Ask:
    """Something with a deadline, and when it passed."""

    def __init__(self, deadline: float, now: Callable[[], float]) -> None:
        self.deadline = deadline
        self.now = now
        self.answered = False
        self.expired: list[float] = []

    def done(self) -> bool:
        return self.answered or bool(self.expired)

    def expire(self) -> None:
        self.expired.append(self.now())


def made() -> tuple[Loop, Deadlines]:
    loop = Loop()
    return loop, Deadlines(loop, loop.now)  # type: ignore[arg-type]


def add(loop: Loop, deadlines: Deadlines, seconds: float) -> Ask:
    ask = Ask(loop.time + seconds, loop.now)
    deadlines.add(ask, seconds)
    return ask


delays = st.floats(-1.0, 10 * TICK) | st.floats(0.0, 100.0) | st.just(float("inf"))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), delays),
        st.tuples(st.just("answer"), st.integers(0, 30)),
        st.tuples(st.just("wait"), st.floats(0.0, 30.0) | st.floats(0.0, 3 * TICK)),
    ),
    max_size=40,
)


@given(steps)
@settings(deadline=None)
def test_what_is_not_answered_expires_exactly_once_at_its_deadline_and_what_is_answered_never(
    plan: list[tuple[str, Any]],
) -> None:
    loop, deadlines = made()
    asks: list[tuple[Ask, float]] = []
    for step, value in plan:
        if step == "add":
            asks.append((add(loop, deadlines, value), max(loop.time, loop.time + value)))
        elif step == "answer" and asks:
            asks[value % len(asks)][0].answered = True
        elif step == "wait":
            loop.advance(value)
        for ask, due in asks:
            if ask.expired:
                assert due <= ask.expired[0] <= due + 1e-9, "exactly then"
                assert len(ask.expired) == 1
            else:
                assert ask.answered or due >= loop.time - 1e-9
    before = [list(ask.expired) for ask, _ in asks if ask.answered]
    loop.advance(1_000.0)
    assert [ask.expired for ask, _ in asks if ask.answered and not ask.expired] == [[] for each in before if not each]
    assert all(len(ask.expired) == 1 for ask, due in asks if not ask.answered and due < float("inf"))


def test_those_that_are_answered_in_time_are_forgotten_and_cost_one_timer_for_all() -> None:
    loop, deadlines = made()
    gone = []
    alive = add(loop, deadlines, 1.0)  # with it in front, those behind are not seen by whoever looks at the front only
    for _ in range(1_000):
        ask = add(loop, deadlines, 30.0)
        ask.answered = True
        gone.append(weakref.ref(ask))
        assert len(loop.pending()) == 1
    loop.advance(2 * TICK)
    del ask
    gc.collect()
    assert [entry[2] for entry in deadlines._old] == [alive]
    assert (list(deadlines._young), [handle.at for handle in loop.pending()]) == ([], [1.0])
    assert not any(each() for each in gone)


@given(st.lists(st.integers(0, 200), min_size=1, max_size=30), st.integers(0, 20))
@settings(deadline=None)
def test_the_heap_never_holds_more_than_twice_what_was_ever_alive_at_once_however_many_were_answered_late(
    bursts: list[int], patience: int
) -> None:
    loop, deadlines = made()
    alive: list[Ask] = []
    most = 0
    for burst in bursts:
        for ask in alive[patience:]:
            ask.answered = True
        del alive[patience:]
        alive += [add(loop, deadlines, 1_000.0) for _ in range(burst)]
        most = max(most, len(alive))
        loop.advance(2 * TICK)
        assert len(deadlines._old) <= max(SPARSE, 2 * most)


def test_one_that_is_answered_at_the_head_of_the_heap_does_not_hold_up_those_behind_it() -> None:
    loop, deadlines = made()
    first, second = add(loop, deadlines, 1.0), add(loop, deadlines, 2.0)
    loop.advance(0.5)
    first.answered = True
    third = add(loop, deadlines, 3.0)
    loop.advance(2 * TICK)
    assert sorted(entry[2].deadline for entry in deadlines._old) == [2.0, 3.5]
    loop.advance(1.5 - 2 * TICK)
    assert (first.expired, second.expired, third.expired) == ([], [2.0], [])


def test_a_later_one_with_an_earlier_deadline_comes_first() -> None:
    loop, deadlines = made()
    late = add(loop, deadlines, 10.0)
    loop.advance(1.0)
    early = add(loop, deadlines, 2.0)
    loop.advance(2.0)
    assert (early.expired, late.expired) == ([3.0], [])
    loop.advance(7.0)
    assert late.expired == [10.0]


def test_an_expiry_may_add_and_answer_others() -> None:
    loop, deadlines = made()
    added: list[Ask] = []

    class Chain(Ask):
        def expire(self) -> None:
            super().expire()
            other.answered = True
            added.append(add(loop, deadlines, 1.0))

    chain = Chain(1.0, loop.now)
    deadlines.add(chain, 1.0)
    other = add(loop, deadlines, 1.0)
    loop.advance(5.0)
    assert (chain.expired, other.expired, [each.expired for each in added]) == ([1.0], [], [[2.0]])


def test_after_the_end_nothing_expires_and_nothing_is_kept() -> None:
    loop, deadlines = made()
    asks = [add(loop, deadlines, seconds) for seconds in (5 * TICK, 1.0, 2.0)]
    loop.advance(2 * TICK)
    asks.append(add(loop, deadlines, 3.0))
    deadlines.close()
    loop.advance(10.0)
    assert [ask.expired for ask in asks] == [[]] * 4
    assert (deadlines._old, list(deadlines._young), loop.pending()) == ([], [], [])


def test_a_loop_that_is_closed_is_no_error_for_whoever_asks_on_a_thread() -> None:
    loop, deadlines = made()
    loop.closed = True
    together(lambda: add(loop, deadlines, 0.0), lambda: add(loop, deadlines, 1.0))


# --- threads ---


@pytest.mark.parametrize("seconds", [0.0, TICK / 2, 1.0])
def test_from_another_thread_everything_goes_through_the_loop(seconds: float) -> None:
    loop, deadlines = made()
    asks: list[Ask] = []
    together(*[lambda: asks.append(add(loop, deadlines, seconds))] * 4)
    assert loop.handles == []
    loop.advance(seconds + TICK)
    assert [ask.expired for ask in asks] == [[seconds]] * 4


def test_one_that_is_added_at_whatever_instruction_of_a_tick_is_not_forgotten() -> None:
    for moment in itertools.count(1):
        loop, deadlines = made()
        first, late = add(loop, deadlines, 1.0), []
        act = lambda loop=loop, deadlines=deadlines, late=late: late.append(add(loop, deadlines, 1.0))  # noqa: E731 - as short as it gets
        with Switch(Deadlines._tick, moment, threading.Lock(), act) as switch:
            loop.advance(2 * TICK)
        if not switch.happened:
            break
        loop.advance(10.0)
        assert [len(ask.expired) for ask in (first, *late)] == [1, 1], f"at instruction {moment}"
    assert moment > 5


def test_two_that_are_added_at_once_both_expire_at_whatever_instruction_they_meet() -> None:
    for moment in itertools.count(1):
        loop, deadlines = made()
        late: list[Ask] = []
        act = lambda loop=loop, deadlines=deadlines, late=late: late.append(add(loop, deadlines, 1.0))  # noqa: E731 - as short as it gets
        with Switch(Deadlines.add, moment, threading.Lock(), act) as switch:
            first = add(loop, deadlines, 1.0)
        if not switch.happened:
            break
        loop.advance(10.0)
        assert [len(ask.expired) for ask in (first, *late)] == [1, 1], f"at instruction {moment}"
    assert moment > 5


async def test_on_a_real_loop_no_deadline_is_early_and_all_come_from_whatever_thread() -> None:
    deadlines = Deadlines(asyncio.get_running_loop(), time.monotonic)
    ended = asyncio.Event()
    asks: list[Ask] = []
    count = 60

    class Real(Ask):
        def expire(self) -> None:
            super().expire()
            if sum(len(ask.expired) for ask in asks) == count:
                ended.set()

    def ask(number: int) -> None:
        seconds = (number % 20) * TICK / 5
        one = Real(time.monotonic() + seconds, time.monotonic)
        asks.append(one)
        deadlines.add(one, seconds)

    def several(thread: int) -> None:
        for number in range(thread, count, 3):
            ask(number)

    async with asyncio.timeout(20):
        several(0)
        await asyncio.gather(asyncio.to_thread(several, 1), asyncio.to_thread(several, 2))
        await ended.wait()
    early = [one.deadline - one.expired[0] for one in asks if one.expired[0] < one.deadline]
    assert early == []
    assert [len(one.expired) for one in asks] == [1] * count
    deadlines.close()
