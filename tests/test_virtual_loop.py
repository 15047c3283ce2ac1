"""The loop in virtual time does what asyncio's does; time only goes on when there is nothing else, and in order."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from grami_actors.simulation.leaks import Nondeterminism
from grami_actors.simulation.loop import Endless, Livelock, Stuck, VirtualLoop
from grami_actors.simulation.schedule import Schedule

Program = Callable[[], Coroutine[Any, Any, Any]]

HOUR = 3600.0
TICK = 0.001  # of the real loop


def virtual(program: Program, seed: int = 0, **options: Any) -> Any:
    return VirtualLoop(Schedule(seed), **options).run(program())


async def gathers() -> Any:
    async def one(n: int) -> int:
        await asyncio.sleep(TICK * (3 - n))
        return n

    async def bad() -> None:
        raise LookupError("bad")

    return [str(each) for each in await asyncio.gather(one(0), bad(), one(2), return_exceptions=True)]


async def waits_for_the_first() -> Any:
    tasks = [asyncio.create_task(asyncio.sleep(TICK * 20 * n, n)) for n in (1, 2, 3)]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for each in pending:
        each.cancel()
    return [each.result() for each in done], len(pending)


async def runs_out_of_time() -> Any:
    seen = []
    try:
        async with asyncio.timeout(TICK):
            await asyncio.Event().wait()
    except TimeoutError:
        seen.append("timeout")
    try:
        await asyncio.wait_for(asyncio.Event().wait(), TICK)
    except TimeoutError:
        seen.append("wait_for")
    return seen, await asyncio.wait_for(asyncio.sleep(0, "in time"), HOUR)


async def groups() -> Any:
    ended = []

    async def long() -> None:
        try:
            await asyncio.sleep(HOUR)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async def bad() -> None:
        await asyncio.sleep(TICK)
        raise LookupError("bad")

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(long())
            group.create_task(bad())
    except* LookupError as errors:
        ended.append(str(errors.exceptions[0]))
    return ended


async def queues() -> Any:
    queue: asyncio.Queue[int | None] = asyncio.Queue(2)
    seen: list[int] = []

    async def read() -> None:
        while (each := await queue.get()) is not None:
            seen.append(each)
            queue.task_done()

    reader = asyncio.create_task(read())
    for n in range(10):
        await queue.put(n)
    await queue.join()
    await queue.put(None)
    await reader
    return seen


async def conditions_and_events() -> Any:
    condition, event, room, seen = asyncio.Condition(), asyncio.Event(), asyncio.Semaphore(2), []

    async def waiter(n: int) -> None:
        async with condition:
            await condition.wait_for(event.is_set)
        async with room:
            seen.append(n)

    tasks = [asyncio.create_task(waiter(n)) for n in range(4)]
    await asyncio.sleep(TICK)
    async with condition:
        event.set()
        condition.notify_all()
    await asyncio.gather(*tasks)
    return sorted(seen)


async def as_they_come() -> Any:
    tasks = [asyncio.create_task(asyncio.sleep(TICK * 20 * n, n)) for n in (3, 1, 2)]
    return [await each for each in asyncio.as_completed(tasks)]


async def shields() -> Any:
    inner = asyncio.create_task(asyncio.sleep(TICK, "done"))
    outer = asyncio.ensure_future(asyncio.shield(inner))
    outer.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await outer
    return outer.cancelled(), await inner


async def generates() -> Any:
    closed: list[str] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            for n in range(9):
                await asyncio.sleep(0)
                yield n
        finally:
            await asyncio.sleep(0)
            closed.append("closed")

    async with contextlib.aclosing(numbers()) as source:  # type: ignore[type-var]
        async for n in source:
            if n == 2:
                break
    async for _ in numbers():
        break  # nobody closes it: the loop does
    while len(closed) < 2:  # noqa: ASYNC110
        await asyncio.sleep(0)
    return closed


async def has_contexts() -> Any:
    name = contextvars.ContextVar("name", default="nobody")

    async def ask(wanted: str) -> str:
        name.set(wanted)
        await asyncio.sleep(0)
        return name.get()

    return await asyncio.gather(ask("ann"), ask("bob")), name.get()


async def cancels() -> Any:
    async def stubborn() -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(HOUR)
        return f"asked {asyncio.current_task().cancelling()} times"  # type: ignore[union-attr]

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(TICK)
    task.cancel()
    never = asyncio.create_task(stubborn())
    never.cancel()
    await asyncio.wait([never])
    return await task, never.cancelled()


async def has_handles() -> Any:
    loop, seen = asyncio.get_running_loop(), []
    loop.call_later(TICK * 2, seen.append, "later")
    loop.call_later(TICK, seen.append, "never").cancel()
    loop.call_soon(seen.append, "soon")
    loop.call_soon(seen.append, "not at all").cancel()
    await asyncio.sleep(TICK * 4)
    return seen


PROGRAMS = (
    gathers, waits_for_the_first, runs_out_of_time, groups, queues, conditions_and_events, as_they_come, shields,
    generates, has_contexts, cancels, has_handles,
)  # fmt: skip


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_ends_as_it_does_on_asyncios_loop(program: Program) -> None:
    expected = asyncio.run(program())
    assert [virtual(program, seed) for seed in range(25)] == [expected] * 25


@given(st.lists(st.floats(0, 1e6), max_size=20), st.integers(0, 50))
def test_timers_always_fire_in_order_of_time_and_each_at_its_time(delays: list[float], seed: int) -> None:
    fired: list[tuple[float, float]] = []

    async def program() -> None:
        loop = asyncio.get_running_loop()
        for each in delays:
            when = loop.time() + each
            loop.call_at(when, lambda when=when: fired.append((loop.time(), when)))
        await asyncio.sleep(2e6)

    virtual(program, seed)
    assert [now for now, _ in fired] == [when for _, when in fired] == sorted(when for _, when in fired)
    assert len(fired) == len(delays)


@given(st.lists(st.booleans(), max_size=200), st.integers(0, 50))
@example([True] * 150, 0)  # so many that they are swept out
def test_no_timer_that_was_cancelled_ever_fires_and_every_other_exactly_once(cancelled: list[bool], seed: int) -> None:
    fired: list[int] = []

    async def program() -> int:
        loop = asyncio.get_running_loop()
        timers = [loop.call_later(1 + n % 7, fired.append, n) for n in range(len(cancelled))]
        for timer, is_cancelled in zip(timers, cancelled, strict=True):
            if is_cancelled:
                timer.cancel()
                timer.cancel()
        left = loop.timers  # type: ignore[attr-defined]
        await asyncio.sleep(8)
        return left

    assert virtual(program, seed) == cancelled.count(False)
    assert sorted(fired) == [n for n, is_cancelled in enumerate(cancelled) if not is_cancelled]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=10), st.integers(0, 1000))
def test_every_step_is_taken_exactly_once_and_those_of_one_task_in_order(lengths: list[int], seed: int) -> None:
    taken: list[tuple[int, int]] = []

    async def walk(task: int, length: int) -> None:
        for step in range(length):
            taken.append((task, step))
            await asyncio.sleep(0)

    async def program() -> None:
        await asyncio.gather(*(walk(task, length) for task, length in enumerate(lengths)))

    virtual(program, seed)
    assert sorted(taken) == [(task, step) for task, length in enumerate(lengths) for step in range(length)]
    for task, length in enumerate(lengths):
        assert [step for one, step in taken if one == task] == list(range(length))


def test_every_order_of_three_tasks_is_drawn_by_some_seed() -> None:
    async def program() -> str:
        order: list[str] = []

        async def one(name: str) -> None:
            order.append(name)

        await asyncio.gather(*map(one, "abc"))
        return "".join(order)

    assert virtual(program) == "abc", "seed 0 is the plainest run"
    assert len({virtual(program, seed) for seed in range(200)}) == 6


def test_a_day_takes_no_time() -> None:
    async def program() -> float:
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(24 * HOUR)
        return asyncio.get_running_loop().time() - began

    assert virtual(program) == 24 * HOUR


def test_who_waits_for_nothing_is_stuck_and_who_takes_too_long_is_endless() -> None:
    with pytest.raises(Stuck):
        virtual(asyncio.Event().wait)
    with pytest.raises(Endless, match="within 60 virtual seconds"):
        virtual(lambda: asyncio.sleep(61), most_seconds=60.0)
    assert virtual(lambda: asyncio.sleep(59, "in time"), most_seconds=60.0) == "in time"


def test_a_task_that_never_lets_time_go_on_is_a_livelock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grami_actors.simulation.loop.MOST_STEPS", 1_000)

    async def spin() -> None:
        while True:  # noqa: ASYNC110
            await asyncio.sleep(0)

    with pytest.raises(Livelock, match="1,000 steps"):
        virtual(spin)


async def _leaves(stubborn: bool, seen: list[str]) -> None:
    async def goes_on() -> None:
        while True:
            try:
                await asyncio.sleep(0 if stubborn else 1)
            except asyncio.CancelledError:
                seen.append("cancelled")
                if not stubborn:
                    raise

    seen.append(asyncio.create_task(goes_on()).get_name())
    await asyncio.sleep(0)


def test_in_the_plainest_run_a_new_task_begins_before_who_made_it_goes_on() -> None:
    async def program() -> list[str]:
        seen: list[str] = []

        async def begin() -> None:
            seen.append("begun")

        task = asyncio.create_task(begin())
        await asyncio.sleep(0)
        seen.append("on")
        await task
        return seen

    assert virtual(program) == asyncio.run(program()) == ["begun", "on"]


def test_what_a_program_leaves_behind_is_cancelled_and_what_does_not_end_is_dropped() -> None:
    for stubborn in (False, True):
        seen: list[str] = []
        virtual(lambda stubborn=stubborn, seen=seen: _leaves(stubborn, seen))
        assert seen.count("cancelled") == (10 if stubborn else 1), stubborn


def test_the_loop_that_was_running_before_is_running_again() -> None:
    async def outer() -> None:
        loop = asyncio.get_running_loop()
        virtual(lambda: asyncio.sleep(1))
        with pytest.raises(SystemExit):
            virtual(exits)
        assert asyncio.get_running_loop() is loop

    async def exits() -> None:
        raise SystemExit

    asyncio.run(outer())


@pytest.mark.parametrize(
    "ask",
    [
        lambda loop: loop.run_in_executor(None, int),
        lambda loop: loop.create_connection(),
        lambda loop: loop.subprocess_exec(),
        lambda loop: loop.connect_read_pipe(None, None),
        lambda loop: loop.add_signal_handler(2, int),
    ],
)
def test_there_is_no_thread_socket_process_or_signal(ask: Callable[[Any], Any]) -> None:
    async def program() -> None:
        ask(asyncio.get_running_loop())

    with pytest.raises(Nondeterminism):
        virtual(program)
