"""Deadlocks of a simulated run are found and shown as the cycle; what may still end is none."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from grami_actors.actor import Actor
from grami_actors.agent import Agent, handles
from grami_actors.deadlines import Deadlines
from grami_actors.errors import AskCycle, DeadlineExceeded
from grami_actors.messages import Message
from grami_actors.profiling import Profile
from grami_actors.simulation.deadlock import Deadlock, explain, holders, waiting
from grami_actors.simulation.loop import Stuck, VirtualLoop
from grami_actors.simulation.schedule import Schedule
from grami_actors.simulation.system import SimulatedSystem
from grami_actors.simulation.witness import Witness

HERE = str(Path(__file__).relative_to(Path.cwd())) if Path(__file__).is_relative_to(Path.cwd()) else __file__
LINES = Path(__file__).read_text().splitlines()


def line(mark: str) -> str:
    """``file:line`` of the line that ends with this mark."""
    (found,) = [number for number, text in enumerate(LINES, 1) if text.endswith(f"  # {mark}")]
    return f"{HERE}:{found}"


class Go(Message):
    whom: str = ""


class Look(Message):
    pass


class Trial:
    """One simulated run, which ends at the first deadlock."""

    def __init__(self, seed: int = 0) -> None:
        self.found: Deadlock | None = None
        self.lines: list[str] = []
        self.idle = 0
        self._schedule = Schedule(seed)
        self._loop = VirtualLoop(self._schedule, (Deadlines,))
        self._loop.idle = self._look

    def _look(self) -> None:
        self.idle += 1
        self.lines = waiting(self.system, self._loop)
        self.found = explain(self.system, self._loop)
        if self.found is not None:
            raise Stuck(str(self.found))

    def run(self, script: Callable[[SimulatedSystem], Coroutine[Any, Any, Any]]) -> Any:
        async def main() -> Any:
            async with SimulatedSystem(self._loop, self._schedule.rng, Witness()) as self.system:
                return await script(self.system)

        with holders():
            return self._loop.run(main())

    def cycle(self, script: Callable[[SimulatedSystem], Coroutine[Any, Any, Any]]) -> str:
        with pytest.raises(Stuck) as stuck:
            self.run(script)
        assert str(self.found) == str(stuck.value)
        return str(self.found)


class Pair(Agent, concurrency=2):
    """Handles two at a time, so that no circle of asks is seen at once."""

    @handles(Go)
    async def go(self, message: Go) -> Any:
        return await self.ask(message.whom, Go(whom=self.name))  # pair


async def both(system: SimulatedSystem, kind: type[Actor]) -> None:
    for name in ("a", "b"):
        await system.spawn(kind, name=name)
    await asyncio.gather(*(system.ask(name, Go(whom=other)) for name, other in ("ab", "ba") * 2))


def test_actors_with_several_handlers_that_wait_for_each_other_are_the_cycle() -> None:
    assert Trial().cycle(lambda system: both(system, Pair)) == f"a ({line('pair')}) -> b ({line('pair')}) -> a"


@pytest.mark.parametrize("seed", range(20))
def test_the_cycle_is_found_on_every_schedule(seed: int) -> None:
    trial = Trial(seed)
    names = {"a", "b"}
    trial.cycle(lambda system: both(system, Pair))
    assert trial.found is not None
    assert {each.name for each in trial.found.cycle} == names
    assert {each.what for each in trial.found.cycle} == {"an answer of a", "an answer of b"}


class Half(Agent, concurrency=2):
    @handles(Go)
    async def go(self, message: Go) -> Any:
        return await self.ask(message.whom, Look())

    @handles(Look)
    def look(self, message: Look) -> str:
        return "here"


def test_an_actor_that_has_a_handler_left_is_no_part_of_a_deadlock() -> None:
    async def script(system: SimulatedSystem) -> None:
        for name in ("a", "b"):
            await system.spawn(Half, name=name)
        await asyncio.gather(system.ask("a", Go(whom="b")), system.ask("b", Go(whom="a")))

    trial = Trial()
    trial.run(script)
    assert trial.found is None


class Locks(Agent, concurrency=4):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = asyncio.Lock(), asyncio.Lock()

    @handles(Go)
    async def go(self, message: Go) -> None:
        async with self.left:
            await asyncio.sleep(1)
            async with self.right:  # right
                pass

    @handles(Look)
    async def look(self, message: Look) -> None:
        async with self.right:
            await asyncio.sleep(1)
            async with self.left:  # left
                pass


def test_locks_that_are_taken_in_two_orders_are_a_cycle() -> None:
    async def script(system: SimulatedSystem) -> None:
        await system.spawn(Locks, name="locks")
        await asyncio.gather(system.ask("locks", Go()), system.ask("locks", Look()))

    trial = Trial()
    trial.cycle(script)
    assert trial.found is not None
    assert [each.what for each in trial.found.cycle] == ["an asyncio.Lock that locks holds"]
    assert f"locks ({line('right')}) waits for an asyncio.Lock that locks holds" in trial.lines
    assert f"locks ({line('left')}) waits for an asyncio.Lock that locks holds" in trial.lines


class Holder(Agent):
    lock: asyncio.Lock

    @handles(Go)
    async def go(self, message: Go) -> Any:
        async with self.lock:
            await asyncio.sleep(1)
            return await self.ask(message.whom, Look())  # holder

    @handles(Look)
    async def look(self, message: Look) -> None:
        async with self.lock:  # wanted
            pass


def test_a_lock_that_two_actors_share_can_close_the_cycle() -> None:
    async def script(system: SimulatedSystem) -> None:
        Holder.lock = asyncio.Lock()
        for name in ("a", "b"):
            await system.spawn(Holder, name=name)
        await system.ask("a", Go(whom="b"))

    assert Trial().cycle(script) == f"a ({line('holder')}) -> b ({line('wanted')}) -> a"


def test_a_task_that_takes_one_lock_twice_waits_for_itself() -> None:
    async def script(system: SimulatedSystem) -> None:
        lock = asyncio.Lock()
        await lock.acquire()
        await lock.acquire()  # twice

    assert Trial().cycle(script) == f"task-1 ({line('twice')}) -> task-1"


def test_a_condition_that_gets_its_lock_back_waits_for_who_holds_it() -> None:
    async def script(system: SimulatedSystem) -> None:
        condition, outer = asyncio.Condition(), asyncio.Lock()

        async def waiter() -> None:
            async with outer, condition:
                await condition.wait()  # notified

        task = asyncio.create_task(waiter())
        await asyncio.sleep(1)
        async with condition:
            condition.notify()
            async with outer:  # notifier
                pass
        await task

    assert Trial().cycle(script) == f"task-1 ({line('notifier')}) -> task-2 ({line('notified')}) -> task-1"


@pytest.mark.parametrize("way", ["gather", "group", "wait", "task", "shield"])
def test_the_cycle_is_found_through_tasks_of_the_handler(way: str) -> None:
    class Through(Agent, name="through", concurrency=2):
        @handles(Go)
        async def go(self, message: Go) -> None:
            if way == "gather":
                await asyncio.gather(asyncio.Event().wait(), self.deeper(message.whom))
            elif way == "group":
                async with asyncio.TaskGroup() as group:
                    group.create_task(self.deeper(message.whom))
            elif way == "wait":
                await asyncio.wait((asyncio.create_task(self.deeper(message.whom)),))
            elif way == "task":
                await asyncio.create_task(self.deeper(message.whom))
            else:
                await asyncio.shield(self.deeper(message.whom))

        async def deeper(self, to: str) -> None:
            await self.ask(to, Go(whom=self.name))  # deeper

    found = Trial().cycle(lambda system: both(system, Through))
    assert found == f"a ({line('deeper')}) -> b ({line('deeper')}) -> a"


def test_who_waits_for_the_first_of_several_is_not_stuck_while_one_may_come() -> None:
    async def script(system: SimulatedSystem) -> None:
        lock, event = asyncio.Lock(), asyncio.Event()
        await lock.acquire()
        tasks = [asyncio.create_task(lock.acquire()), asyncio.create_task(event.wait())]
        asyncio.get_running_loop().call_later(100, event.set)
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)

    trial = Trial()
    trial._loop._passive = frozenset({asyncio.Event})  # so that it is looked at before the event is set
    trial.run(script)
    assert trial.idle
    assert trial.found is None


class Child(Actor):
    async def on_start(self) -> None:
        await self.ask("parent", Look())  # child


class Parent(Agent):
    @handles(Go)
    async def go(self, message: Go) -> None:
        await self.spawn(Child, name="child")  # parent

    @handles(Look)
    def look(self, message: Look) -> None:
        pass


class Founder(Parent):
    async def on_start(self) -> None:
        await self.spawn(Child, name="child")  # founder


def test_a_child_that_asks_the_parent_which_waits_for_its_start_is_a_cycle() -> None:
    async def script(system: SimulatedSystem) -> None:
        await system.spawn(Parent, name="parent")
        await system.ask("parent", Go())

    assert Trial().cycle(script) == f"parent ({line('parent')}) -> parent/child ({line('child')}) -> parent"


def test_so_is_one_whose_parent_is_being_started_itself() -> None:
    found = Trial().cycle(lambda system: system.spawn(Founder, name="parent"))
    assert found == f"parent ({line('founder')}) -> parent/child ({line('child')}) -> parent"


class Narrow(Agent, mailbox=1, overflow="wait", concurrency=2):
    @handles(Go)
    async def go(self, message: Go) -> None:
        await asyncio.sleep(1)
        for _ in range(9):
            await self.send(message.whom, Go(whom=self.name))  # room


def test_actors_that_wait_for_room_in_each_others_mailboxes_are_a_cycle() -> None:
    async def script(system: SimulatedSystem) -> None:
        for name in ("a", "b"):
            await system.spawn(Narrow, name=name)
        await asyncio.gather(*(system.ask(name, Go(whom=other)) for name, other in ("ab", "ba") * 2))

    trial = Trial()
    assert trial.cycle(script) == f"a ({line('room')}) -> b ({line('room')}) -> a"
    assert f"a ({line('room')}) waits for room in the mailbox of b" in trial.lines


class Streaming(Agent, concurrency=2):
    @handles(Go)
    async def go(self, message: Go) -> None:
        async for _ in self.stream(message.whom, Go(whom=self.name)):  # stream
            pass


def test_streams_that_wait_for_each_other_are_a_cycle() -> None:
    found = Trial().cycle(lambda system: both(system, Streaming))
    assert found == f"a ({line('stream')}) -> b ({line('stream')}) -> a"


class Everybody(Agent, name="all", instances=2, pool="broadcast", concurrency=2):
    @handles(Go)
    async def go(self, message: Go) -> Any:
        return await self.ask("one", Go())  # member


class One(Agent):
    @handles(Go)
    async def go(self, message: Go) -> Any:
        return await self.gathered()

    async def gathered(self) -> Any:
        return await self.ask("pool", Go())  # asks the pool


def test_who_asks_a_pool_waits_for_each_member() -> None:
    async def script(system: SimulatedSystem) -> None:
        members = [await system.spawn(Everybody, name=f"member-{number}") for number in (1, 2)]
        for each in members:
            system.table.join("pool", each._cell, strategy="broadcast")
        await system.spawn(One, name="one")
        await system.ask("one", Go())

    found = Trial().cycle(script)
    assert found == f"one ({line('asks the pool')}) -> member-1 ({line('member')}) -> one"


def test_a_profile_that_measures_each_step_hides_no_cycle() -> None:
    async def script(system: SimulatedSystem) -> None:
        with Profile(system.bus, system.now):
            await both(system, Pair)

    assert Trial().cycle(script) == f"a ({line('pair')}) -> b ({line('pair')}) -> a"


class Wrapper:
    """Awaits for another, and knows who awaits it."""

    def __init__(self, inner: Coroutine[Any, Any, Any]) -> None:
        self.outer: Any = None
        self.inner = inner
        self.steps = inner.__await__()

    def __await__(self) -> Wrapper:
        return self

    def __next__(self) -> Any:
        return next(self.steps)


def test_nor_does_a_wrapper_of_the_users_that_knows_its_caller() -> None:
    class Wrapping(Agent, concurrency=2):
        @handles(Go)
        async def go(self, message: Go) -> Any:
            wrapper = Wrapper(self.deeper(message.whom))
            wrapper.outer = asyncio.current_task().get_coro()  # type: ignore[union-attr]
            return await wrapper

        async def deeper(self, whom: str) -> Any:
            return await self.ask(whom, Go(whom=self.name))  # wrapped

    found = Trial().cycle(lambda system: both(system, Wrapping))
    assert found == f"a ({line('wrapped')}) -> b ({line('wrapped')}) -> a"


def test_a_simple_circle_is_still_an_error_at_once() -> None:
    class Alone(Pair, concurrency=1):
        pass

    trial = Trial()
    with pytest.raises(AskCycle):
        trial.run(lambda system: both(system, Alone))
    assert trial.found is None


class Lost(Agent):
    """Asks somebody whose message is lost on the way."""

    @handles(Go)
    async def go(self, message: Go) -> Any:
        return await self.ask(message.whom, Look(), timeout=20)


async def losing(system: SimulatedSystem) -> asyncio.Task[Any]:
    """Have ``a`` ask ``b``, and lose the message on the way."""
    for name in ("a", "b"):
        await system.spawn(Lost, name=name)
    system.suspend("b")
    asked = asyncio.create_task(system.ask("a", Go(whom="b")))
    await asyncio.sleep(1)
    assert system.table.cells["b"].mailbox.take() is not None
    system.resume("b")
    return asked


@pytest.mark.parametrize("seed", range(5))
def test_a_lost_message_is_no_deadlock_for_its_deadline_ends_the_wait(seed: int) -> None:
    async def script(system: SimulatedSystem) -> None:
        asked = await losing(system)
        with pytest.raises(DeadlineExceeded):
            await asked

    trial = Trial(seed)
    trial.run(script)
    assert trial.idle
    assert trial.found is None


def test_who_waits_behind_a_lost_message_is_not_stuck_either() -> None:
    async def script(system: SimulatedSystem) -> None:
        asked = await losing(system)
        behind = asyncio.create_task(system.ask("a", Go(whom="b")))
        ends = await asyncio.gather(asked, behind, return_exceptions=True)
        assert isinstance(ends[0], DeadlineExceeded)

    trial = Trial()
    trial.run(script)
    assert trial.idle
    assert trial.found is None


def test_a_circle_that_a_lost_message_interrupts_is_none() -> None:
    async def script(system: SimulatedSystem) -> None:
        for name in ("a", "b"):
            await system.spawn(Half, name=name)
        system.suspend("b")
        lost = [asyncio.create_task(system.ask("a", Go(whom="b"))) for _ in range(2)]
        await asyncio.sleep(1)
        while system.table.cells["b"].mailbox.take():
            pass
        system.resume("b")
        behind = [asyncio.create_task(system.ask("b", Go(whom="a"))) for _ in range(2)]
        assert all(isinstance(each, DeadlineExceeded) for each in await asyncio.gather(*lost, return_exceptions=True))
        assert await asyncio.gather(*behind) == ["here", "here"]

    trial = Trial()
    trial.run(script)
    assert trial.idle
    assert trial.found is None


def test_who_waits_for_what_anybody_may_end_is_named_with_the_place() -> None:
    async def script(system: SimulatedSystem) -> None:
        event, queue, semaphore = asyncio.Event(), asyncio.Queue[int](1), asyncio.Semaphore(0)
        lock = asyncio.Lock()
        await asyncio.create_task(lock.acquire())
        waits: list[Any] = [event.wait(), queue.get(), semaphore.acquire(), lock.acquire()]

        async def wait(each: Any) -> None:
            await each  # each

        await asyncio.gather(*map(wait, waits))  # all

    trial = Trial()
    with pytest.raises(Stuck, match="no timer"):
        trial.run(script)
    assert trial.found is None
    whats = [each.partition(" waits for ")[2] for each in trial.lines]
    assert whats == [
        "4 tasks",
        "an asyncio.Event",
        "something in an asyncio.Queue",
        "an asyncio.Semaphore",
        "an asyncio.Lock that task-2 took and never released",
    ]
    assert f"({line('all')})" in trial.lines[0]
    assert all(f"({line('each')})" in each for each in trial.lines[1:])


def test_of_many_that_wait_the_first_are_named_and_the_others_counted() -> None:
    async def script(system: SimulatedSystem) -> None:
        for name in ("a", "b"):
            await system.spawn(Pair, name=name)
        rest = [(await system.spawn(Lost, name=f"rest-{number}")).name for number in range(100)]
        asks = [system.ask(name, Go(whom="a")) for name in rest]
        await asyncio.gather(*asks, *(system.ask(name, Go(whom=other)) for name, other in ("ab", "ba") * 2))

    trial = Trial()
    assert trial.cycle(script) == f"a ({line('pair')}) -> b ({line('pair')}) -> a"
    assert len(trial.lines) == 51
    assert trial.lines[-1] == "and 55 more"


def test_remembering_who_holds_a_lock_ends() -> None:
    before = asyncio.Lock.acquire
    with holders():
        assert asyncio.Lock.acquire is not before
    assert asyncio.Lock.acquire is before


# --- semaphores ---


class Permits(Agent, concurrency=4):
    """Takes two of two permits, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.permits = asyncio.Semaphore(2)

    @handles(Go)
    async def go(self, _message: Go) -> None:
        async with self.permits:
            await asyncio.sleep(0.1)
            async with self.permits:  # second permit
                pass

    @handles(Look)
    async def look(self, _message: Look) -> None:
        await self.permits.acquire()
        await self.permits.acquire()
        self.tell(self.name, Go())
        await asyncio.sleep(1)
        self.permits.release()
        self.permits.release()


async def _asked(system: SimulatedSystem, kind: type[Agent], *messages: Message) -> None:
    await system.spawn(kind, name="busy")
    await asyncio.gather(*(system.ask("busy", each) for each in messages))


def test_who_holds_all_permits_and_wants_one_more_is_in_a_cycle() -> None:
    cycle = Trial().cycle(lambda system: _asked(system, Permits, Go(), Go()))
    assert cycle == f"busy ({line('second permit')}) -> busy"


def test_a_permit_that_is_still_given_back_is_no_deadlock() -> None:
    trial = Trial()
    trial.run(lambda system: _asked(system, Permits, Look()))
    assert trial.found is None


class Signals(Agent, concurrency=4):
    """One waits until the other says that there is something; nobody holds anything."""

    def __init__(self) -> None:
        super().__init__()
        self.there = asyncio.Semaphore(0)

    @handles(Go)
    async def go(self, _message: Go) -> None:
        await self.there.acquire()
        await self.there.acquire()

    @handles(Look)
    async def look(self, _message: Look) -> None:
        self.there.release()
        with contextlib.suppress(DeadlineExceeded):
            await self.ask("silent", Look(), timeout=1.0)
        self.there.release()


async def _signalled(system: SimulatedSystem) -> None:
    await system.spawn(Silent, name="silent")
    await _asked(system, Signals, Go(), Look())


class Silent(Agent, concurrency=2):
    """Never answers."""

    @handles(Look)
    async def look(self, _message: Look) -> None:
        await asyncio.Event().wait()


def test_a_semaphore_that_others_release_is_no_lock() -> None:
    trial = Trial()
    trial.run(_signalled)
    assert trial.found is None
    assert trial.idle
