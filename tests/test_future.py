"""Answers that are still to come: settled once, awaited anywhere, streamed without a gap."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import operator
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pykka
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grami_actors import future as future_module
from grami_actors.deadlines import Deadlines
from grami_actors.errors import (
    AgentExecutionFailed,
    Cancelled,
    DeadlineExceeded,
    GramiError,
    MailboxFull,
    WouldDeadlock,
    describe,
)
from grami_actors.future import STREAM_BUFFER, AskTimeout, Future, Stream, details, only_answer
from grami_actors.messages import Envelope, Scope
from tests.test_messages import Switch


class Busy:
    """A lane that has no use for the time of others."""

    def lend(self, future: Any) -> None:
        """Take no turn."""


class Asked:
    """Whom a future waits for; its clock stands still."""

    name = "writer"
    lane = Busy()
    concurrency = 1

    def __init__(self) -> None:
        self.at_work: Envelope | None = None
        self.waits: dict[Future[Any], Envelope] = {}

    def now(self) -> float:
        return 100.0


def asked(kind: type[Future[Any]] = Future, *, deadline: float = math.inf, inside: bool = False) -> tuple[Any, Scope]:
    """A future of an ask, and the ask's scope, which is the future itself."""
    made = kind()
    made.bind(Asked(), None, deadline, inside=inside)
    return made, made


def watched(future: Future[Any]) -> Future[Any]:
    """As the system does with every ask: its deadline is seen to by the running loop."""
    Deadlines(asyncio.get_running_loop(), Asked().now).add(future, future.deadline - Asked().now())
    return future


@pytest.fixture
def frequent_switches() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(*calls: Callable[[], Any]) -> list[Any]:
    """Run each call on a thread of its own, all starting at once; what they returned."""
    start = threading.Barrier(len(calls))
    with ThreadPoolExecutor(len(calls)) as pool:
        return [
            each.result(20) for each in [pool.submit(lambda call=call: (start.wait(10), call())[1]) for call in calls]
        ]


async def value_of(future: Future[Any]) -> Any:
    return await future


async def value_in_time(future: Future[Any]) -> Any:
    return await watched(future)


# --- settling ---


def test_of_two_answers_one_is_the_answer_at_whatever_instruction_the_other_comes() -> None:
    for moment in itertools.count(1):
        future, told = Future[Any](), []
        act = lambda future=future, told=told: told.append(future.set_result("other"))  # noqa: E731 - as short as it gets
        with Switch(Future._settle, moment, future._lock, act) as switch:
            told.append(future.set_result("one"))
        if not switch.happened:
            break
        assert sorted(told) == [False, True], f"at instruction {moment}"
        assert future.get() == ("one" if told[-1] else "other")
    assert moment > 5


@pytest.mark.usefixtures("frequent_switches")
@pytest.mark.parametrize("round_", range(20))
def test_of_many_answers_that_race_exactly_one_is_the_answer(round_: int) -> None:
    future, _ = asked()
    errors = [GramiError(str(number)) for number in range(4)]
    answers = [lambda number=number: future.set_result(number) for number in range(4)]
    told = together(*answers, *(lambda error=error: future.fail(error) for error in errors))
    (winner,) = [number for number, first in enumerate(told) if first]
    if winner < 4:
        assert future.get() == winner
    else:
        with pytest.raises(GramiError, match=f"^{winner - 4}$"):
            future.get()


@given(st.lists(st.sampled_from(["result", "fail", "set", "set_exception", "cancel"]), min_size=1, max_size=6))
def test_the_first_answer_stays_whatever_follows(steps: list[str]) -> None:
    future, scope = asked()
    told = []
    for step in steps:
        act = {
            "result": lambda: future.set_result("value"),
            "fail": lambda: future.fail(KeyError("error")),
            "set": lambda: future.set("value"),
            "set_exception": lambda: future.set_exception((None, KeyError("error"), None)),
            "cancel": future.cancel,
        }[step]
        told.append(act())
    assert future.done()
    assert not any(told[1:])
    if steps[0] in {"result", "set"}:
        assert future.get() == "value"
    else:
        with pytest.raises(Cancelled if steps[0] == "cancel" else KeyError):
            future.get()
    assert (scope.reason is not None) is (steps[0] == "cancel")


def test_pykkas_set_exception_takes_the_exception_being_handled() -> None:
    future: Future[Any] = Future()
    try:
        raise KeyError("being handled")
    except KeyError:
        future.set_exception()
    with pytest.raises(KeyError, match="being handled"):
        future.get()
    nothing: Future[Any] = Future()
    nothing.set_exception()
    with pytest.raises(RuntimeError, match="without an exception"):
        nothing.get()
    assert isinstance(future, pykka.Future)


def test_an_actor_that_asks_gets_a_foreign_exception_wrapped_and_its_own_as_it_is() -> None:
    foreign, own = KeyError("theirs"), Cancelled("ours")
    for inside, error, expected in (
        (True, foreign, AgentExecutionFailed),
        (True, own, Cancelled),
        (False, foreign, KeyError),
    ):
        future, _ = asked(inside=inside)
        future.fail(error)
        with pytest.raises(expected) as raised:
            future.get()
        assert raised.value is error or raised.value.__cause__ is error
    assert "writer failed: KeyError: 'theirs'" in str(_wrapped(foreign))


def _wrapped(error: BaseException) -> BaseException:
    future, _ = asked(inside=True)
    future.fail(error)
    with pytest.raises(AgentExecutionFailed) as raised:
        future.get()
    return raised.value


# --- waiting ---


@pytest.mark.usefixtures("frequent_switches")
@pytest.mark.parametrize("error", [None, GramiError("no")])
@pytest.mark.parametrize("round_", range(10))
def test_any_number_of_threads_and_loops_wait_for_one_answer(round_: int, error: GramiError | None) -> None:
    future, _ = asked()

    def settle() -> Any:
        future.set_result("value") if error is None else future.fail(error)
        return outcome(future.get)

    def outcome(wait: Callable[[], Any]) -> Any:
        try:
            return wait()
        except GramiError as raised:
            return raised

    threads = [lambda: outcome(lambda: future.get(timeout=10))] * 3
    loops = [lambda: outcome(lambda: asyncio.run(several(future)))] * 3
    assert together(*threads, settle, *loops) == [error or "value"] * 7


async def several(future: Future[Any]) -> Any:
    first, second = await asyncio.gather(value_of(future), value_of(future))
    assert first is second
    return first


def test_an_answer_is_noticed_at_whatever_instruction_of_the_wait_it_comes() -> None:
    for moment in itertools.count(1):
        future, got = Future[Any](), None
        act = lambda future=future: future.set_result(1)  # noqa: E731 - as short as it gets
        with Switch(Future._add_waiter, moment, future._lock, act) as switch, contextlib.suppress(pykka.Timeout):
            got = future.get(timeout=0)
        if not switch.happened:
            break
        assert got == 1, f"at instruction {moment}"
        assert not future._waiters
    assert moment > 5


class Lingering:
    """A lock whose holder, on the thread that is named, does not go on after it has let go."""

    def __init__(self) -> None:
        self.lock, self.released, self.go = threading.Lock(), threading.Event(), threading.Event()
        self.thread: threading.Thread | None = None

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()
        if threading.current_thread() is self.thread:
            self.released.set()
            assert self.go.wait(10)


def test_a_wait_may_end_at_whatever_instruction_the_answer_tells_those_who_wait() -> None:
    for moment in itertools.count(1):
        future, lingering = Future[Any](), Lingering()
        future._lock = lingering  # type: ignore[assignment]
        waiter = threading.Event().set
        future._add_waiter(waiter)
        lingering.thread = threading.Thread(target=future.set_result, args=(1,))
        lingering.thread.start()
        assert lingering.released.wait(10)
        finish = lambda lingering=lingering: (lingering.go.set(), lingering.thread.join(10))  # noqa: E731 - as short as it gets
        try:
            with Switch(Future._remove_waiter, moment, threading.Lock(), finish) as switch:
                future._remove_waiter(waiter)
        finally:
            finish()
        assert future.get() == 1, f"at instruction {moment}"
        if not switch.happened:
            break
    assert moment > 5


async def test_a_wait_that_is_given_up_leaves_the_others_waiting() -> None:
    future, _ = asked()
    waiting = asyncio.create_task(value_of(future))
    await asyncio.sleep(0)
    with pytest.raises(pykka.Timeout):
        await asyncio.to_thread(future.get, timeout=0)
    future.set_result("value")
    async with asyncio.timeout(20):
        assert await waiting == "value"


async def test_a_loop_goes_on_while_an_answer_is_awaited() -> None:
    future, _ = asked()
    waiting = asyncio.create_task(value_of(future))
    await asyncio.sleep(0)
    assert not waiting.done()
    future.set_result("value")
    assert await waiting == "value"


async def test_a_blocking_get_on_a_loop_raises_at_once_unless_the_answer_is_there() -> None:
    future, _ = asked()
    with pytest.raises(WouldDeadlock):
        future.get()
    future.set_result("value")
    assert future.get() == "value"


def test_a_timeout_of_a_get_ends_the_wait_and_not_the_ask() -> None:
    future, scope = asked(deadline=1_000.0)
    with pytest.raises(pykka.Timeout, match="0 seconds"):
        future.get(timeout=0)
    assert (future.done(), scope.reason) == (False, None)
    future.set_result("value")
    assert future.get(timeout=0) == "value"


def test_gets_that_timed_out_leave_nothing_behind() -> None:
    future, _ = asked()
    for _ in range(10):
        with contextlib.suppress(pykka.Timeout):
            future.get(timeout=0)
    assert not future._waiters


@pytest.mark.parametrize("on_loop", [False, True])
@pytest.mark.parametrize("kind", [Future, Stream])
def test_a_deadline_that_passed_ends_every_wait_and_cancels_the_ask(kind: type[Future[Any]], on_loop: bool) -> None:
    future, scope = asked(kind, deadline=99.0)
    with pytest.raises(AskTimeout, match="writer did not answer before the deadline; the outcome is unknown"):
        asyncio.run(value_in_time(future)) if on_loop else future.get(timeout=None)
    assert isinstance(scope.reason, DeadlineExceeded)
    assert issubclass(AskTimeout, pykka.Timeout)


def test_a_deadline_that_passes_while_the_request_is_cancelled_still_gives_an_answer() -> None:
    future, request = Future[Any](), Scope(deadline=99.0)
    seen: list[BaseException] = []

    def look(_: GramiError) -> None:  # what another thread sees between the reason and this future's callback
        with pytest.raises(GramiError) as raised:
            future.get()
        seen.append(raised.value)

    request.on_cancel(look)
    future.bind(Asked(), request, math.inf, inside=False)
    request.cancel()
    assert len(seen) == 1


# --- cancelling ---


def test_cancelling_a_future_cancels_its_ask_and_what_that_caused() -> None:
    future, scope = asked()
    caused, reason = Scope(scope), Cancelled("enough")
    assert future.cancel(reason)
    assert not future.cancel()
    assert not future.set_result("late")
    assert scope.reason is caused.reason is reason
    with pytest.raises(Cancelled, match="enough"):
        future.get()


def test_a_cancelled_request_ends_the_wait_for_what_it_asked() -> None:
    root = Scope()
    future: Future[Any] = Future()
    future.bind(Asked(), root, math.inf, inside=True)
    root.cancel(Cancelled("the client left"))
    with pytest.raises(Cancelled, match="the client left"):
        future.get()


async def test_whoever_is_cancelled_while_it_waits_cancels_the_ask() -> None:
    future, scope = asked()
    waiting = asyncio.create_task(value_of(future))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert isinstance(scope.reason, Cancelled)


@given(st.booleans())
def test_an_answered_ask_leaves_its_request(by_error: bool) -> None:
    root = Scope()
    future: Future[Any] = Future()
    future.bind(Asked(), root, math.inf, inside=False)
    assert list(root._children or ()) == [future]
    future.fail(KeyError()) if by_error else future.set_result(1)
    assert not root._children


# --- map, filter, join, reduce ---


def derived(future: Future[Any], other: Future[Any]) -> list[tuple[Any, Any]]:
    """Every way to derive a future from ``[1, 2, 3]`` and ``"other"``, with its value."""
    return [
        (future.map(len), 3),
        (future.map(len).map(str), "3"),
        (future.filter(lambda item: item > 1), [2, 3]),
        (future.join(other), [[1, 2, 3], "other"]),
        (future.reduce(operator.add), 6),
        (future.reduce(operator.add, 10), 16),
        (future.filter(lambda item: item > 1).reduce(operator.add), 5),
    ]


@pytest.mark.parametrize("kind", [Future, Stream])
def test_derived_futures_can_be_had_in_a_thread(kind: type[Future[Any]]) -> None:
    (future, _), (other, _) = asked(kind), asked(kind)
    expected = derived(future, other)
    future.set_result([1, 2, 3])
    other.set_result("other")
    assert [each.get() for each, _ in expected] == [value for _, value in expected]
    assert [type(each) for each, _ in expected] == [kind] * len(expected)


async def test_derived_futures_can_be_awaited_before_the_answer_and_run_their_function_once() -> None:
    (future, _), (other, _) = asked(), asked()
    expected = derived(future, other)
    calls: list[Any] = []
    counted = future.map(calls.append)
    waiting = [asyncio.create_task(value_of(each)) for each in (counted, *(each for each, _ in expected))]
    await asyncio.sleep(0)
    future.set_result([1, 2, 3])
    other.set_result("other")
    async with asyncio.timeout(20):
        assert (await asyncio.gather(*waiting))[1:] == [value for _, value in expected]
        await counted
    assert calls == [[1, 2, 3]]


async def test_joined_answers_may_come_in_any_order() -> None:
    for order in itertools.permutations(range(3)):
        futures = [asked()[0] for _ in range(3)]
        waiting = asyncio.create_task(value_of(futures[0].join(*futures[1:])))
        for number in order:
            await asyncio.sleep(0)
            assert not waiting.done()
            futures[number].set_result(number)
        assert await waiting == [0, 1, 2]


async def test_an_error_goes_through_a_derived_future() -> None:
    future, _ = asked()
    future.fail(GramiError("no"))
    with pytest.raises(GramiError, match="no"):
        await future.map(len)
    with pytest.raises(GramiError, match="no"):
        future.map(len).get()


async def test_whoever_is_cancelled_while_it_waits_for_a_mapped_answer_cancels_the_ask() -> None:
    future, scope = asked()
    waiting = asyncio.create_task(value_of(future.map(len)))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    try:
        assert isinstance(scope.reason, Cancelled)
    finally:
        future.set_result("")  # lets the thread go


async def test_awaiting_mapped_futures_takes_no_thread_from_those_who_answer() -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    future, _ = asked()
    waiting = asyncio.create_task(value_of(future.map(len)))
    try:
        async with asyncio.timeout(0.3):
            await asyncio.sleep(0)
            await asyncio.to_thread(future.set_result, "abc")
        assert await waiting == 3
    finally:
        future.set_result("")
        await waiting


async def test_a_function_that_runs_out_of_items_is_an_error_and_not_a_hang() -> None:
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    future, _ = asked()
    future.set_result([])
    with pytest.raises((RuntimeError, StopIteration)):
        async with asyncio.timeout(0.3):
            await future.map(lambda items: next(iter(items)))


def test_cancelling_a_mapped_future_cancels_the_ask() -> None:
    future, scope = asked()
    mapped = future.map(len)
    assert mapped.cancel(Cancelled("enough"))
    assert isinstance(scope.reason, Cancelled)
    with pytest.raises(Cancelled, match="enough"):
        mapped.get()


def test_a_mapped_future_is_done_when_the_answer_is_there() -> None:
    future, _ = asked()
    mapped = future.map(len)
    assert not mapped.done()
    future.set_result("abc")
    assert mapped.done()


async def test_a_hook_of_the_users_own_does_not_block_the_loop() -> None:
    ready, hooked = threading.Event(), Future[Any]()
    hooked.set_get_hook(lambda _: ready.wait(0.3))
    asyncio.get_running_loop().call_soon(ready.set)
    assert await hooked is True


# --- streams ---


async def all_of(stream: Stream[Any], into: list[Any]) -> None:
    async for chunk in stream:
        into += [chunk]


@given(st.lists(st.integers(0, 3), max_size=20), st.booleans())
@settings(deadline=None)
def test_every_chunk_is_read_in_order_exactly_once_however_the_two_take_turns(bursts: list[int], fails: bool) -> None:
    async def play() -> None:
        stream, _ = asked(Stream)
        numbers, read = itertools.count(), []
        emitted = [next(numbers) for _ in range(bursts[0] if bursts else 0)]
        for number in emitted:  # some before anybody reads
            stream.emit(number)
        reader = asyncio.create_task(all_of(stream, read))
        for burst in bursts[1:]:
            for _ in range(burst):
                emitted.append(next(numbers))
                stream.emit(emitted[-1])
            await asyncio.sleep(0)
        assert stream.fail(GramiError("in the end")) if fails else stream.set_result("whole")
        with pytest.raises(GramiError, match="in the end") if fails else contextlib.nullcontext():
            await reader
        assert read == emitted
        if not fails:
            assert await stream == "whole"

    asyncio.run(play())


async def test_a_chunk_is_read_as_soon_as_it_comes() -> None:
    stream, _ = asked(Stream)
    chunks = aiter(stream)
    async with asyncio.timeout(20):
        for number in range(3):
            reading = asyncio.create_task(anext(chunks))
            await asyncio.sleep(0)
            assert not reading.done()
            stream.emit(number)
            assert await reading == number
        stream.set_result("whole")
        assert [chunk async for chunk in chunks] == []


async def test_the_end_may_come_while_a_chunk_is_being_worked_on() -> None:
    stream, _ = asked(Stream)
    stream.emit("last")
    async with asyncio.timeout(5):
        async for chunk in stream:
            assert chunk == "last"
            stream.set_result("whole")
            await asyncio.sleep(0)
            await asyncio.sleep(0)
    assert await stream == "whole"


async def test_a_stream_that_is_read_may_be_awaited_beside() -> None:
    stream, _ = asked(Stream)
    read: list[Any] = []
    reader = asyncio.create_task(all_of(stream, read))
    await asyncio.sleep(0)
    stream.emit(1)
    waiting = asyncio.create_task(value_of(stream))
    await asyncio.sleep(0)
    stream.emit(2)
    stream.set_result("whole")
    assert await waiting == "whole"
    await reader
    assert read == [1, 2]


@pytest.mark.usefixtures("frequent_switches")
async def test_chunks_from_another_thread_are_read_in_order_exactly_once() -> None:
    stream, _ = asked(Stream)
    read: list[Any] = []

    def produce() -> None:
        for number in range(3_000):
            stream.emit(number)
        stream.emit("end")

    producer = threading.Thread(target=produce)
    producer.start()
    async with asyncio.timeout(20):
        async for chunk in stream:
            read.append(chunk)
            if chunk == "end":
                stream.set_result("whole")
    producer.join()
    assert read == [*range(3_000), "end"]


async def read_with_a_switch_at(moment: int, waiting: int) -> tuple[list[Any], bool]:
    """Read a stream whose last chunk and end come, as if from another thread, at the reader's n-th instruction."""
    stream, _ = asked(Stream)
    read: list[Any] = []

    def end() -> None:
        if not stream.done():
            stream.emit("last")
            stream.set_result("whole")

    for number in range(waiting):
        stream.emit(number)
    with Switch(Stream.__aiter__, moment, stream._lock, end) as switch:
        reader = asyncio.create_task(all_of(stream, read))
        for _ in range(5):
            await asyncio.sleep(0)
        end()  # unless it happened
        await reader
    return read, switch.happened


def test_no_chunk_is_lost_at_whatever_instruction_of_the_reader_a_thread_emits_the_last_one() -> None:
    lost = []
    for waiting in (0, 1):
        for moment in itertools.count(1):
            read, happened = asyncio.run(read_with_a_switch_at(moment, waiting))
            if read != [*range(waiting), "last"]:
                lost.append((waiting, moment, read))
            if not happened:
                break
        assert moment > 50
    assert lost == []


async def test_leaving_a_stream_early_cancels_the_ask() -> None:
    stream, scope = asked(Stream)
    stream.emit(1)
    stream.emit(2)
    async for chunk in stream:
        assert chunk == 1
        break
    async with asyncio.timeout(20):
        with pytest.raises(Cancelled):
            await stream
    assert isinstance(scope.reason, Cancelled)


async def test_being_cancelled_while_reading_cancels_the_ask() -> None:
    stream, scope = asked(Stream)
    reader = asyncio.create_task(all_of(stream, []))
    await asyncio.sleep(0)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert isinstance(scope.reason, Cancelled)


async def test_a_deadline_ends_a_stream_after_what_had_come() -> None:
    stream, _ = asked(Stream, deadline=100.0)
    stream.emit("in time")
    read: list[Any] = []
    watched(stream)
    with pytest.raises(AskTimeout):
        await all_of(stream, read)
    assert read == ["in time"]


async def test_a_stream_that_nobody_reads_is_bounded_and_has_room_again_when_somebody_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert STREAM_BUFFER == 10_000
    monkeypatch.setattr(future_module, "STREAM_BUFFER", 3)
    stream, _ = asked(Stream)
    for number in range(3):
        stream.emit(number)
    with pytest.raises(MailboxFull, match="3 chunks"):
        stream.emit("too many")
    chunks = aiter(stream)
    assert await anext(chunks) == 0
    stream.emit(3)
    stream.set_result("whole")
    assert [chunk async for chunk in chunks] == [1, 2, 3]


async def test_awaiting_a_stream_lets_go_of_the_chunks_that_nobody_reads() -> None:
    stream, _ = asked(Stream)
    stream.emit("early")
    waiting = asyncio.create_task(value_of(stream))
    await asyncio.sleep(0)
    for number in range(STREAM_BUFFER + 1):
        stream.emit(number)
    stream.set_result("whole")
    assert await waiting == "whole"
    assert [chunk async for chunk in stream] == []


class Gauge:
    """A sink that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def started(self, source: str) -> None:
        self.told.append(source)

    def emit(self, data: Any) -> None:
        self.told.append(data)

    def progress(self, fraction: float, message: str) -> None:
        self.told.append((fraction, message))


def test_progress_of_a_streamed_ask_goes_to_the_client_and_its_chunks_do_not() -> None:
    gauge = Gauge()
    stream: Stream[Any] = Stream()
    stream.bind(Asked(), Scope(sink=gauge), math.inf, inside=True)
    assert stream.sink is stream
    stream.started("writer")
    stream.emit("chunk")
    stream.progress(0.5, "half")
    assert gauge.told == [(0.5, "half")]
    alone, _ = asked(Stream)
    alone.progress(0.5, "to nobody")


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([Cancelled("a")], "a"),
        ([asyncio.CancelledError(), Cancelled("a"), GramiError("b")], "a"),
        ([ExceptionGroup("inner", [GramiError("b")]), Cancelled("a")], "b"),
        ([Cancelled("a"), KeyError()], None),
        ([BaseExceptionGroup("inner", [KeyError(), Cancelled("a")])], None),
        ([asyncio.CancelledError()], None),
    ],
)
def test_what_a_group_of_tasks_raised_is_an_answer_only_if_it_holds_nothing_else(
    errors: list[BaseException], expected: str | None
) -> None:
    found = only_answer(BaseExceptionGroup("tasks", errors))
    assert (None if found is None else found.message) == expected


def test_an_error_in_words_has_no_traceback_and_its_details_have() -> None:
    with pytest.raises(KeyError) as raised:
        raise KeyError("key")
    assert describe(raised.value) == "KeyError: 'key'"
    assert "Traceback" in details(raised.value)
    assert __file__ in details(raised.value)
    assert describe(ValueError()) == "ValueError"
