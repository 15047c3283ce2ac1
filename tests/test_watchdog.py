"""Who keeps the loop waiting is named, with the place where it stands, once; whoever only waits is not."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from grami_actors.actor import Actor
from grami_actors.system import ActorSystem
from grami_actors.telemetry import SlowTurn
from grami_actors.watchdog import Watchdog
from tests.conftest import Gate, on, running, turns_until

SLOW = 0.02


class Seen:
    """Collects slow turns, and lets a handler that blocks the loop wait for one, on the loop's own thread."""

    def __init__(self, system: ActorSystem) -> None:
        self.events: list[SlowTurn] = []
        self.arrived = threading.Semaphore(0)
        self.unsubscribe = system.bus.subscribe(self.add, SlowTurn)

    def add(self, event: SlowTurn) -> None:
        self.events.append(event)
        self.arrived.release()

    def block(self) -> bool:
        """Keep the thread until there is one more."""
        return self.arrived.acquire(timeout=10)


class Blocking(Actor):
    """Calls what it is told, in its handler."""

    def on_receive(self, message: Callable[[], Any]) -> Any:
        return message()


class AsyncBlocking(Actor):
    """The same in a coroutine that let the loop go before."""

    async def on_receive(self, message: Callable[[], Any]) -> Any:
        await asyncio.sleep(0)
        result = message()
        await asyncio.sleep(0)
        return result


@asynccontextmanager
async def watched() -> AsyncIterator[tuple[ActorSystem, Seen]]:
    async with running(slow_turn=SLOW) as system:
        yield system, Seen(system)


def line_of(function: Callable[..., Any], text: str) -> int:
    lines, first = inspect.getsourcelines(function)
    return first + next(number for number, line in enumerate(lines) if text in line)


@pytest.mark.parametrize("kind", [Blocking, AsyncBlocking])
async def test_a_handler_that_blocks_the_loop_is_named_with_its_line_and_that_of_what_it_called(kind: Any) -> None:
    async with watched() as (system, seen):
        await system.spawn(kind, name="sleeper")
        assert await system.ask("sleeper", seen.block)
        (event,) = seen.events
        assert event.actor == "sleeper"
        assert event.seconds >= SLOW
        handler = f"test_watchdog.py:{line_of(kind.on_receive, 'message()')} {kind.__name__}.on_receive"
        assert event.where.startswith(f"{handler}, in threading.py:")
        assert "Semaphore.acquire" in event.where or "Condition.wait" in event.where


async def test_a_handler_that_is_busy_itself_is_named_with_one_line() -> None:
    class Busy(Actor):
        def on_receive(self, message: Any) -> None:
            while not seen.events:
                pass  # busy

    async with watched() as (system, seen):
        await system.spawn(Busy, name="busy")
        await system.ask("busy", "go")
        where = seen.events[0].where
        first = line_of(Busy.on_receive, "while")
        name = "test_a_handler_that_is_busy_itself_is_named_with_one_line.<locals>.Busy.on_receive"
        assert where in {f"test_watchdog.py:{line} {name}" for line in (first, first + 1)}


@pytest.mark.parametrize("kind", [Blocking, AsyncBlocking])
async def test_a_turn_is_reported_once_however_long_it_lasts_and_the_next_one_again(kind: Any) -> None:
    async with watched() as (system, seen):
        await system.spawn(kind, name="sleeper")
        for turn in (1, 2):

            def long() -> bool:
                assert seen.block()
                return seen.arrived.acquire(timeout=6 * SLOW)  # there is no second one to wait for

            assert await system.ask("sleeper", long) is False
            assert len(seen.events) == turn


async def test_a_coroutine_that_blocks_in_two_turns_is_reported_for_each() -> None:
    class Twice(Actor):
        async def on_receive(self, message: Any) -> None:
            assert seen.block()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert seen.block()

    async with watched() as (system, seen):
        await system.spawn(Twice, name="twice")
        await system.ask("twice", "go")
        lines = [event.where.partition(" ")[0] for event in seen.events]
        first = line_of(Twice.on_receive, "seen.block()")
        assert lines == [f"test_watchdog.py:{first}", f"test_watchdog.py:{first + 3}"]


class Looks(Watchdog):
    """Tells how often it looked, so that a test need not sleep."""

    def __init__(self, *args: Any) -> None:
        self.count = 0
        super().__init__(*args)

    def _look(self, seen: Any) -> Any:
        found = super()._look(seen)
        self.count += 1
        return found


async def test_a_handler_that_awaits_for_long_is_no_slow_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()

    class Patient(Actor):
        async def on_receive(self, message: Any) -> None:
            await gate.wait_async()

    monkeypatch.setattr("grami_actors.system.Watchdog", Looks)
    async with watched() as (system, seen):
        await system.spawn(Patient, name="patient")
        asked = asyncio.ensure_future(system.ask("patient", "go"))
        await gate.until_entered()
        before = system._watchdog.count
        await turns_until(lambda: system._watchdog.count >= before + 10)
        gate.opened.set()
        await asked
        assert seen.events == []


async def test_a_handler_that_works_in_small_steps_and_lets_the_loop_go_is_no_slow_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Fair(Actor):
        async def on_receive(self, message: Any) -> None:
            before = system._watchdog.count
            while system._watchdog.count < before + 10:
                sum(range(100))
                await asyncio.sleep(0)

    monkeypatch.setattr("grami_actors.system.Watchdog", Looks)
    async with watched() as (system, seen):
        await system.spawn(Fair, name="fair")
        await system.ask("fair", "go")
        assert seen.events == []


async def test_many_short_handlers_in_a_row_are_no_slow_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    class Short(Actor):
        mailbox = 1_000_000

        def on_receive(self, message: Any) -> int:
            sum(range(20))
            count: int = system._watchdog.count
            return count

    monkeypatch.setattr("grami_actors.system.Watchdog", Looks)
    async with watched() as (system, seen):
        ref = await system.spawn(Short, name="short")
        before = system._watchdog.count
        while system._watchdog.count < before + 10:
            for _ in range(1_000):
                ref.tell("go")
            await system.ask(ref, "go")
        assert seen.events == []


async def test_a_handler_on_a_thread_may_block() -> None:
    gate = Gate()

    def hold() -> None:
        gate.hold()

    async with watched() as (system, seen):
        await system.spawn(on("thread", Blocking), name="thread")
        asked = asyncio.ensure_future(system.ask("thread", hold))
        await gate.until_entered()
        await system.spawn(Blocking, name="loop")
        await system.ask("loop", seen.block)
        gate.opened.set()
        await asked
        assert [event.actor for event in seen.events] == ["loop"]


async def test_what_blocks_the_loop_outside_of_handlers_is_nobodys_slow_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grami_actors.system.Watchdog", Looks)
    async with watched() as (system, seen):
        await system.spawn(Blocking, name="idle")
        before = system._watchdog.count
        while system._watchdog.count < before + 10:
            pass
        assert seen.events == []


async def test_nobody_looks_while_nobody_wants_to_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grami_actors.system.Watchdog", Looks)
    async with watched() as (system, seen):
        seen.unsubscribe()
        await system.spawn(Blocking, name="sleeper")
        assert not await system.ask("sleeper", lambda: seen.arrived.acquire(timeout=4 * SLOW))
        assert system._watchdog.count <= 1


async def test_the_watching_thread_ends_with_the_system_and_is_not_there_if_it_is_not_wanted() -> None:
    def watching() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "grami-watchdog"]

    assert watching() == []
    async with running():
        assert len(watching()) == 1
    assert watching() == []
    async with running(slow_turn=None):
        assert watching() == []


async def test_what_was_reported_is_not_kept_alive_when_nobody_wants_to_know_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Big:
        pass

    monkeypatch.setattr("grami_actors.system.Watchdog", Looks)
    async with watched() as (system, seen):
        await system.spawn(Blocking, name="sleeper")
        big = Big()
        gone = weakref.ref(big)

        def block(big: Big = big) -> bool:
            found = seen.block()
            seen.unsubscribe()
            return found

        assert await system.ask("sleeper", block)
        del big, block
        assert not await asyncio.to_thread(seen.arrived.acquire, timeout=3 * SLOW)
        gc.collect()
        assert gone() is None
