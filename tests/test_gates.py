"""The gate before an upstream that asked for patience, in virtual time and with real threads."""

from __future__ import annotations

import asyncio
import math
import selectors
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grami_actors.errors import ErrorCode, GramiError, UpstreamError, WouldDeadlock
from grami_actors.gates import Gates, RateGate

# --- virtual time ---


class VirtualSelector(selectors.DefaultSelector):
    """Waits for nothing: what time a loop would spend waiting has passed at once."""

    now = 100.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "nothing will ever happen: somebody waits without a timer"
            self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose clock goes from timer to timer."""

    def __init__(self) -> None:
        self.virtual = VirtualSelector()
        super().__init__(self.virtual)
        self.timers = 0

    def time(self) -> float:
        return self.virtual.now

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:  # type: ignore[override]
        self.timers += 1
        return super().call_at(when, callback, *args, context=context)


def play(script: Callable[[VirtualLoop, RateGate], Coroutine[Any, Any, None]], **options: Any) -> None:
    """Run a script on a loop with virtual time, with a gate that has the same clock."""
    loop = VirtualLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(script(loop, RateGate(loop.time, "the model", **options)))


class Diary:
    """Callers of a gate, who went when, and who was refused when."""

    def __init__(self, gate: RateGate, clock: Callable[[], float]) -> None:
        self.gate = gate
        self.clock = clock
        self.start = clock()
        self.went: list[tuple[Any, float]] = []
        self.refused: list[tuple[Any, float, UpstreamError]] = []

    async def caller(self, name: Any, deadline: float = math.inf) -> None:
        try:
            await self.gate.admit(self.start + deadline)
        except UpstreamError as error:
            self.refused.append((name, self.time(), error))
        else:
            self.went.append((name, self.time()))

    def time(self) -> float:
        return round(self.clock() - self.start, 2)

    async def arrive(self, *names: Any, deadline: float = math.inf) -> None:
        """Start callers, and let them come to the gate."""
        self.tasks = [asyncio.ensure_future(self.caller(name, deadline)) for name in names]
        await turns()


async def turns() -> None:
    """Let the loop go round until everybody has come as far as it can without time."""
    for _ in range(5):
        await asyncio.sleep(0)


# --- one caller ---


def test_an_open_gate_lets_everybody_through_at_once() -> None:
    async def script(loop: VirtualLoop, gate: RateGate) -> None:
        diary = Diary(gate, loop.time)
        await diary.arrive(*range(5), deadline=-1.0)  # also one that is late: it does not wait
        assert diary.went == [(number, 0.0) for number in range(5)]
        assert (gate.open, gate.probing, gate.retry_after) == (True, False, 0.0)
        gate.wait()

    play(script)


def test_a_parked_gate_lets_a_caller_through_when_the_park_has_passed() -> None:
    async def script(loop: VirtualLoop, gate: RateGate) -> None:
        diary = Diary(gate, loop.time)
        gate.park(7.5)
        assert (gate.open, gate.probing, gate.retry_after) == (False, False, 7.5)
        await diary.arrive("one")
        await asyncio.sleep(7.25)
        assert (diary.went, gate.open, gate.retry_after) == ([], False, 0.25)
        await asyncio.sleep(0.5)
        assert diary.went == [("one", 7.5)]
        assert (gate.open, gate.probing, gate.retry_after) == (False, True, 0.0)

    play(script)


def test_parks_only_ever_extend() -> None:
    async def script(loop: VirtualLoop, gate: RateGate) -> None:
        for seconds, left in ((5.0, 5.0), (2.0, 5.0), (0.0, 5.0), (8.0, 8.0)):
            gate.park(seconds)
            assert gate.retry_after == left
        await asyncio.sleep(6.0)
        gate.park(1.0)
        assert gate.retry_after == 2.0

    play(script)


def test_no_park_is_longer_than_the_longest() -> None:
    async def script(loop: VirtualLoop, gate: RateGate) -> None:
        gate.park(math.inf)
        assert gate.retry_after == 60.0

    play(script, longest=60.0)
    gate = RateGate(lambda: 0.0)
    gate.park(1e9)
    assert gate.retry_after == 3600.0


@pytest.mark.parametrize("wrong", [-0.001, -math.inf, math.nan])
def test_a_park_for_less_than_no_time_or_for_what_is_no_number_is_refused(wrong: float) -> None:
    gate = RateGate(lambda: 0.0)
    with pytest.raises(ValueError, match="a number of seconds from 0 on, not"):
        gate.park(wrong)
    assert gate.open


def test_a_park_of_no_seconds_sends_a_probe_first() -> None:
    async def script(loop: VirtualLoop, gate: RateGate) -> None:
        diary = Diary(gate, loop.time)
        gate.park(0.0)
        assert gate.open
        await diary.arrive("probe", "other")
        assert (diary.went, gate.probing) == ([("probe", 0.0)], True)

    play(script)


# --- deadlines ---


def test_who_would_wait_past_its_deadline_is_refused_at_once_and_told_how_long_it_is() -> None:
    async def script(loop: VirtualLoop, gate: RateGate) -> None:
        diary = Diary(gate, loop.time)
        gate.park(2.0005)
        await diary.arrive("late", deadline=1.0)
        await diary.arrive("in time", deadline=2.001)
        ((name, when, error),) = diary.refused
        assert (name, when, error.error_code, error.retry_after_ms) == (
            "late", 0.0, ErrorCode.UPSTREAM_RATE_LIMITED, 2001,
        )  # fmt: skip
        assert isinstance(error, GramiError)
        assert error.retryable
        assert str(error) == "the model asks for patience: 2 s more, past the deadline of this call"
        await asyncio.sleep(3.0)
        assert diary.went == [("in time", 2.0)]

    play(script)


def test_a_later_park_makes_those_who_wait_wait_longer_and_refuses_those_who_cannot() -> None:
    async def script(loop: VirtualLoop, gate: RateGate) -> None:
        diary = Diary(gate, loop.time)
        gate.park(5.0)
        await diary.arrive("patient")
        await diary.arrive("hasty", deadline=6.0)
        await asyncio.sleep(3.0)
        gate.park(9.0)
        await asyncio.sleep(0.5)
        assert [(name, when, error.retry_after_ms) for name, when, error in diary.refused] == [("hasty", 3.0, 9000)]
        await asyncio.sleep(20.0)
        assert diary.went == [("patient", 12.0)]

    play(script)


def test_who_waits_for_a_probe_is_refused_at_its_deadline_and_not_before() -> None:
    async def script(loop: VirtualLoop, gate: RateGate) -> None:
        diary = Diary(gate, loop.time)
        gate.park(1.0)
        await diary.arrive("probe", "patient")
        await diary.arrive("hasty", deadline=1.5)
        await asyncio.sleep(5.0)
        assert [(name, when, error.retry_after_ms) for name, when, error in diary.refused] == [("hasty", 1.5, 500)]
        assert diary.went == [("probe", 1.0), ("patient", 2.0)]

    play(script)


# --- the probe ---


def test_one_goes_first_and_the_others_follow_in_order_when_it_reports_success() -> None:
    async def script(loop: VirtualLoop, gate: RateGate) -> None:
        diary = Diary(gate, loop.time)
        gate.park(2.0)
        await diary.arrive(*range(4))
        await asyncio.sleep(2.3)
        assert (diary.went, gate.probing) == ([(0, 2.0)], True)
        await diary.arrive("newcomer")
        gate.succeeded()
        assert (gate.open, gate.probing) == (True, False)
        await asyncio.sleep(0.1)
        assert diary.went == [(0, 2.0), (1, 2.3), (2, 2.3), (3, 2.3), ("newcomer", 2.3)]

    play(script)


def test_the_others_follow_after_a_while_when_the_probe_reports_nothing() -> None:
    async def script(loop: VirtualLoop, gate: RateGate) -> None:
        diary = Diary(gate, loop.time)
        gate.park(2.0)
        await diary.arrive(*range(3))
        await asyncio.sleep(10.0)
        assert diary.went == [(0, 2.0), (1, 3.0), (2, 3.0)]
        assert gate.open

    play(script)
    with pytest.raises(AssertionError):
        play(script, probe_timeout=3.0)


def test_a_probe_that_parks_the_gate_again_keeps_the_others_waiting_and_the_next_of_them_probes() -> None:
    async def script(loop: VirtualLoop, gate: RateGate) -> None:
        diary = Diary(gate, loop.time)
        gate.park(1.0)
        await diary.arrive(*range(4))
        await asyncio.sleep(1.5)
        gate.park(5.0)
        gate.succeeded()  # of a call from before: it opens nothing
        assert (gate.open, gate.probing, gate.retry_after) == (False, False, 5.0)
        await asyncio.sleep(5.2)
        gate.succeeded()
        await asyncio.sleep(0.1)
        assert diary.went == [(0, 1.0), (1, 6.5), (2, 6.7), (3, 6.7)]

    play(script)


def test_who_comes_first_after_the_park_probes_when_nobody_waited() -> None:
    async def script(loop: VirtualLoop, gate: RateGate) -> None:
        diary = Diary(gate, loop.time)
        gate.park(1.0)
        await asyncio.sleep(4.0)
        gate.succeeded()  # of a call from before the park: nobody has probed yet
        assert (gate.open, gate.probing) == (True, False)
        await diary.arrive("probe", "other")
        assert (diary.went, gate.open, gate.probing) == ([("probe", 4.0)], False, True)
        gate.succeeded()
        await asyncio.sleep(0.1)
        assert diary.went == [("probe", 4.0), ("other", 4.0)]

    play(script)


def test_nobody_overtakes_those_who_wait_when_the_time_comes() -> None:
    now = 0.0
    loop = VirtualLoop()  # its own time stands still for the gate: only the gate's clock says that the park has passed

    async def script() -> None:
        nonlocal now
        gate = RateGate(lambda: now)
        diary = Diary(gate, lambda: now)
        gate.park(1.0)
        await diary.arrive("first")
        now = 1.0
        await diary.arrive("second")
        assert diary.went == [("first", 1.0)]
        now = 2.5  # nothing was heard of the probe
        await diary.arrive("third")
        assert diary.went == [("first", 1.0), ("second", 2.5), ("third", 2.5)]

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(script())


def test_a_caller_that_was_to_probe_and_is_cancelled_hands_over_to_the_next() -> None:
    async def script(loop: VirtualLoop, gate: RateGate) -> None:
        diary = Diary(gate, loop.time)
        gate.park(1.0)
        await diary.arrive("cancelled", "next", "last")
        first = diary.tasks[0]
        # Admitted and cancelled in one breath: its timer is due, it has not gone yet.
        loop.call_later(1.0, lambda: (gate.open, first.cancel()))
        await asyncio.sleep(1.5)
        assert first.cancelled()
        assert (diary.went, gate.probing) == ([("next", 1.0)], True)

    play(script)


@pytest.mark.parametrize("then", ["park", "succeeded"])
def test_a_probe_that_is_cancelled_after_the_gate_moved_on_changes_nothing(then: str) -> None:
    async def script(loop: VirtualLoop, gate: RateGate) -> None:
        diary = Diary(gate, loop.time)
        gate.park(1.0)
        await diary.arrive("cancelled")
        move_on = gate.succeeded if then == "succeeded" else lambda: gate.park(3.0)
        loop.call_later(1.0, lambda: (gate.open, move_on(), diary.tasks[0].cancel()))
        await asyncio.sleep(2.0)
        assert not gate.probing
        await diary.arrive("one", "other")
        await asyncio.sleep(2.5)
        assert diary.went == ([("one", 2.0), ("other", 2.0)] if then == "succeeded" else [("one", 4.0)])

    play(script)


def test_who_stops_waiting_leaves_nothing_behind() -> None:
    async def script(loop: VirtualLoop, gate: RateGate) -> None:
        diary = Diary(gate, loop.time)
        gate.park(1.0)
        await diary.arrive("cancelled", "one")
        diary.tasks[0].cancel()
        await asyncio.sleep(0.5)
        assert len(gate._queue) == 1
        assert sum(not timer.cancelled() for timer in vars(loop)["_scheduled"]) == 1, "no timer outlives its caller"
        await asyncio.sleep(5.0)
        assert diary.went == [("one", 1.0)]
        assert len(gate._queue) == 0

    play(script)


def test_nobody_polls() -> None:
    async def script(loop: VirtualLoop, gate: RateGate) -> None:
        diary = Diary(gate, loop.time)
        gate.park(3000.0)
        await diary.arrive(*range(10))
        before = loop.timers
        await asyncio.sleep(4000.0)
        assert len(diary.went) == 10
        assert loop.timers - before <= 1 + 10, "one timer for the park, and one for the probe"

    play(script)


# --- whatever happens ---

steps = st.one_of(
    st.tuples(st.just("arrive"), st.none() | st.floats(0, 6).map(lambda x: round(x, 1))),
    st.tuples(st.just("park"), st.floats(0, 4).map(lambda x: round(x, 1))),
    st.tuples(st.just("succeeded"), st.none()),
    st.tuples(st.just("cancel"), st.integers(0, 5)),
)
plans = st.lists(st.tuples(st.sampled_from([0.0, 0.0, 0.3, 0.5, 1.0, 2.1]), steps), max_size=25)


@given(plans)
@settings(max_examples=150, deadline=None)
def test_nobody_goes_while_the_gate_is_parked_and_all_go_in_order_or_are_refused(plan: list[Any]) -> None:
    async def script(loop: VirtualLoop, gate: RateGate) -> None:
        diary = Diary(gate, loop.time)
        tasks: list[asyncio.Future[None]] = []
        parks: list[tuple[float, float]] = []
        releases: list[float] = []  # when a success was reported
        deadlines: list[float] = []
        for gap, (step, value) in plan:
            await asyncio.sleep(gap)
            now = loop.time() - diary.start
            if step == "arrive":
                deadlines.append(math.inf if value is None else now + value)
                tasks.append(asyncio.ensure_future(diary.caller(len(tasks), deadlines[-1])))
                await asyncio.sleep(0)
            elif step == "park":
                gate.park(value)
                parks.append((now, now + value))
            elif step == "cancel" and value < len(tasks):
                tasks[value].cancel()
            elif step == "succeeded":
                gate.succeeded()
                releases.append(now)
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60.0)

        assert [name for name, _ in diary.went] == sorted(name for name, _ in diary.went), "in order"
        for name, when in diary.went:
            # Woken before a park and told after it, in the same instant, is before it.
            assert not any(begin < when - 0.02 and when + 0.02 < end for begin, end in parks), "parked"
            assert when <= deadlines[name] + 0.02
        for name, when, error in diary.refused:
            parked = any(begin <= when + 0.02 and deadlines[name] < end + 0.02 for begin, end in parks)
            assert parked or when >= deadlines[name] - 0.02
            assert (error.retry_after_ms or 0) > 0
        one_at_a_time(diary, parks, releases)
        assert len(gate._queue) == 0

    play(script)


def one_at_a_time(diary: Diary, parks: list[tuple[float, float]], releases: list[float]) -> None:
    """After a park has passed, one goes; nobody else does for a second, unless a success is reported."""
    for _, end in parks:
        if any(begin <= end < other + 0.02 for begin, other in parks if other != end):
            continue  # it was extended, or another ended when it did
        after = [when for _, when in diary.went if when >= end - 0.02]
        for second in after[1:2]:
            released = any(after[0] - 0.02 <= when <= second + 0.02 for when in releases)
            parked_since = any(end - 0.02 <= begin <= second + 0.02 for begin, _ in parks)
            assert released or parked_since or second >= after[0] + 0.98


# --- threads and several loops ---


class Clock:
    """Lets a test wait until another thread has looked at the gate, and thus stands before it."""

    def __init__(self, read: Callable[[], float]) -> None:
        self.read = read
        self.looked = threading.Semaphore(0)
        self.tester = threading.get_ident()

    def __call__(self) -> float:
        if threading.get_ident() != self.tester:
            self.looked.release()
        return self.read()

    def until_somebody_waits(self, gate: RateGate) -> None:
        assert self.looked.acquire(timeout=20)
        assert gate.retry_after >= 0.0  # it looked with the lock held: now that we had the lock, it is done


def test_threads_and_loops_wait_for_one_gate_together_and_go_in_the_order_they_came() -> None:
    clock = Clock(time.monotonic)
    gate = RateGate(clock, probe_timeout=20.0)
    went: list[int] = []
    probed, followed = threading.Event(), threading.Semaphore(0)

    def gone(number: int) -> None:
        went.append(number)
        probed.set()
        followed.release()

    def wait(number: int) -> None:
        gate.wait()
        gone(number)

    async def admit(number: int) -> None:
        await gate.admit()
        gone(number)

    gate.park(0.2)
    begun = time.monotonic()
    threads = []
    for number in range(6):
        target = (lambda n=number: asyncio.run(admit(n))) if number % 2 else (lambda n=number: wait(n))
        threads.append(threading.Thread(target=target))
        threads[-1].start()
        clock.until_somebody_waits(gate)
    assert probed.wait(20)
    assert time.monotonic() >= begun + 0.2
    assert went == [0]
    assert gate.probing
    gate.succeeded()
    for thread in threads:
        thread.join()
    assert sorted(went) == list(range(6))


def test_a_thread_that_would_wait_past_its_deadline_is_refused() -> None:
    gate = RateGate(lambda: 10.0)
    gate.park(5.0)
    with pytest.raises(UpstreamError) as caught:
        gate.wait(14.9)
    assert (caught.value.error_code, caught.value.retry_after_ms) == (ErrorCode.UPSTREAM_RATE_LIMITED, 5000)
    assert len(gate._queue) == 0


def test_a_thread_that_waits_is_refused_when_a_later_park_takes_too_long() -> None:
    clock = Clock(lambda: 0.0)  # time stands still: only the park can wake it
    gate = RateGate(clock)
    gate.park(100.0)
    refused: list[UpstreamError] = []

    def wait() -> None:
        try:
            gate.wait(deadline=200.0)
        except UpstreamError as error:
            refused.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    clock.until_somebody_waits(gate)
    gate.park(300.0)
    thread.join(20)
    assert [error.retry_after_ms for error in refused] == [300_000]


def test_a_blocking_wait_on_the_thread_of_a_loop_is_refused_instead_of_stopping_it() -> None:
    async def script(loop: VirtualLoop, gate: RateGate) -> None:
        gate.park(1.0)
        with pytest.raises(WouldDeadlock, match="await admit"):
            gate.wait()
        assert len(gate._queue) == 0

    play(script)


def test_a_caller_whose_loop_is_closed_holds_nobody_up() -> None:
    now = 0.0
    gate = RateGate(lambda: now)
    gate.park(1.0)
    loop = VirtualLoop()
    gone = gate.admit()
    loop.call_soon(lambda: None)
    task = loop.create_task(gone)
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert len(gate._queue) == 1
    loop.close()
    now = 1.0
    gate.wait()
    assert gate.probing
    setattr(task, "_log_destroy_pending", False)  # noqa: B010 - it is what the test is about


@contextmanager
def impatient_threads() -> Iterator[None]:
    """Threads take turns a thousand times as often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@pytest.mark.slow
def test_callers_of_many_threads_and_loops_all_get_through_whatever_parks_and_successes_come_between() -> None:
    gate = RateGate(time.monotonic, probe_timeout=0.002)
    went = [0] * 6

    def blocking(me: int) -> None:
        for number in range(100):
            gate.wait()
            went[me] += 1
            if number % 10 == me:
                gate.park(0.001)
            elif number % 3:
                gate.succeeded()

    async def awaiting(me: int) -> None:
        async def one(number: int) -> None:
            await gate.admit()
            went[me] += 1
            if number % 10 == me:
                gate.park(0.001)
            elif number % 3:
                gate.succeeded()

        for _ in range(10):
            await asyncio.gather(*map(one, range(10)))

    targets = [lambda me=me: blocking(me) for me in range(3)]
    targets += [lambda me=me: asyncio.run(awaiting(me)) for me in range(3, 6)]
    threads = [threading.Thread(target=target) for target in targets]
    with impatient_threads():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(50)
    assert went == [100] * 6
    assert len(gate._queue) == 0


# --- all gates ---


def test_there_is_one_gate_per_upstream() -> None:
    gates = Gates(lambda: 5.0)
    one = gates.gate("model")
    assert gates.gate("model") is one
    one.park(3.0)
    assert (one.retry_after, gates.gate("search").open) == (3.0, True)
    with pytest.raises(UpstreamError, match=r"^model asks for patience: 3 s more"):
        one.wait(6.0)


def test_threads_that_ask_for_a_gate_at_the_same_time_get_the_same() -> None:
    with impatient_threads():
        for _ in range(50):
            gates, start = Gates(lambda: 0.0), threading.Barrier(4)
            found: list[RateGate] = []

            def ask(gates: Gates = gates, start: threading.Barrier = start, found: list[RateGate] = found) -> None:
                start.wait()
                found.append(gates.gate("model"))

            threads = [threading.Thread(target=ask) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(set(found)) == 1
