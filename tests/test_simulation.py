"""Planted faults of programs that nobody wrote for it are found, made short, and played again from their seed."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent, indent

import pytest

from grami_actors.scenario.explore import MOST_LINES, Wanted, runner_of, shortest_of, showing
from grami_actors.simulation.run import Outcome, Runner
from grami_actors.simulation.schedule import Decided, Schedule
from grami_actors.simulation.shrink import shrink

SEEDS = 1_000

HEAD = """
import asyncio
from grami_actors import Agent, Message, RestartPolicy, Swarm, handles, tool
from grami_actors.scenario import Play, scenario

AT_ONCE = RestartPolicy(3, 10.0)

class Add(Message): pass
class Read(Message): pass
class Crash(Message): pass
class Knock(Message): pass
class Go(Message):
    tag: str = ""

class Helper(Agent):
    @handles(Knock)
    async def knock(self, m: Knock) -> str:
        return "come in"

@tool
def toll(x: int) -> int:
    return x
"""


pytestmark = pytest.mark.usefixtures("in_series")


@pytest.fixture
def planted(tmp_path: Path) -> Callable[..., Runner]:
    def plant(text: str, faults: str = "none") -> Runner:
        file = tmp_path / "planted.py"
        file.write_text(HEAD + dedent(text))
        return runner_of(Wanted(str(file), "race", faults))

    return plant


def first_failure(runner: Runner, seeds: int = SEEDS) -> Outcome:
    found = next((each for each in map(runner.run, map(Schedule, range(seeds))) if each.failure), None)
    assert found is not None, f"not found within {seeds} seeds"
    return found


def found(runner: Runner, kind: str = "check") -> Outcome:
    """The first failure, which its seed replays ten times out of ten; the shortest run that fails like it."""
    first = first_failure(runner)
    assert first.failure is not None
    assert first.failure.kind == kind
    for _ in range(10):
        again = runner.run(Schedule(first.seed))
        assert (again.digest, again.failure) == (first.digest, first.failure)
    shortest = shrink(runner, first)
    again = runner.run(Decided(shortest.seed, shortest.decisions))
    assert (again.digest, again.failure) == (shortest.digest, shortest.failure)
    return shortest


# --- read, wait, write ---

WAITS = (
    "await asyncio.sleep(0)",
    "await asyncio.sleep(0.01)",
    'await self.ask("helper", Knock())',
    "await self.call(toll, x=1)",
    "await asyncio.gather(asyncio.sleep(0), asyncio.sleep(0))",
    "async with other: await asyncio.sleep(0)",
)

STATES = {
    "a module's": ("total = 0", "total"),
    "a class's": ("class Till:\n    total = 0", "Till.total"),
    "an object's": ("class Till:\n    def __init__(self): self.total = 0\ntill = Till()", "till.total"),
    "an object in a dict": ("table = {'total': 0}", "table['total']"),
}


@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("state", STATES)
def test_a_lost_update_between_two_agents_is_found(planted: Callable[..., Runner], wait: str, state: str) -> None:
    made, name = STATES[state]
    runner = planted(
        indent(made, " " * 8)
        + f"""
        other = asyncio.Lock()

        class Teller(Agent, instances=2, pool="round_robin"):
            @handles(Add)
            async def add(self, m: Add) -> None:
                {"global total" if name == "total" else ""}
                seen = {name}
                {wait}
                {name} = seen + 1

        swarm = Swarm([Teller, Helper], [toll])

        @scenario
        async def race(play: Play) -> None:
            ann, bob = await play.client("ann"), await play.client("bob")
            await asyncio.gather(ann.request("add"), bob.request("add"))
            play.check("both were counted", {name} == 2)
        """
    )
    assert len(found(runner).decisions) <= 2


def test_a_lost_update_inside_one_agent_that_handles_several_at_once_is_found(planted: Callable[..., Runner]) -> None:
    runner = planted("""
        class Account(Agent, concurrency=4):
            def __init__(self): self.total = 0

            @handles(Add)
            async def add(self, m: Add) -> None:
                seen = self.total
                await asyncio.sleep(0)
                self.total = seen + 1

            @handles(Read)
            async def read(self, m: Read) -> int:
                return self.total

        swarm = Swarm([Account])

        @scenario
        async def race(play: Play) -> None:
            ann, bob = await play.client("ann"), await play.client("bob")
            await asyncio.gather(ann.request("add"), bob.request("add"))
            play.check("both were counted", await ann.request("read") == 2)
        """)
    assert len(found(runner).decisions) <= 3


def test_what_two_agents_check_before_they_act_is_found(planted: Callable[..., Runner]) -> None:
    runner = planted("""
        class Seat(Agent):
            def __init__(self): self.taken = 0

            @handles(Add)
            def add(self, m: Add) -> None:
                self.taken += 1

            @handles(Read)
            def read(self, m: Read) -> int:
                return self.taken

        class Buyer(Agent, instances=2):
            @handles(Go)
            async def go(self, m: Go) -> bool:
                if await self.ask("seat", Read()):
                    return False
                await self.ask("seat", Add())
                return True

        swarm = Swarm([Seat, Buyer])

        @scenario
        async def race(play: Play) -> None:
            ann, bob = await play.client("ann"), await play.client("bob")
            got = await asyncio.gather(ann.request("go"), bob.request("go"))
            play.check("one of them has the seat", sum(got) == 1)
        """)
    found(runner)


# --- restarts, and orders ---

LOST_REPLY = """
    class Asker(Agent, concurrency=2):
        @handles(Add)
        async def add(self, m: Add) -> str:
            self.tell("notes", Go())
            self.came = asyncio.Event()
            WAIT
            return "here"

        @handles(Knock)
        def knock(self, m: Knock) -> None:
            self.came.set()

    class Notes(Agent, restart=AT_ONCE):
        def __init__(self): self.askers = []

        @handles(Go)
        def go(self, m: Go) -> None:
            self.askers.append("asker")
            self.tell("notes", Knock())

        @handles(Knock)
        def knock(self, m: Knock) -> None:
            for each in self.askers:
                self.tell(each, m)

        @handles(Crash)
        def crash(self, m: Crash) -> None:
            raise ValueError("on purpose")

    swarm = Swarm([Notes, Asker])

    @scenario
    async def race(play: Play) -> None:
        ann, bob = await play.client("ann"), await play.client("bob")
        async def crash() -> None:
            try:
                await bob.request("crash", timeout=1)
            except Exception:
                pass
        answer, _ = await asyncio.gather(ann.request("add"), crash())
        play.check("it was answered", answer == "here")
"""


@pytest.mark.parametrize("wait", ["await self.came.wait()", "await asyncio.wait_for(self.came.wait(), 5)"])
def test_a_reply_that_a_restart_lost_is_found(planted: Callable[..., Runner], wait: str) -> None:
    found(planted(LOST_REPLY.replace("WAIT", wait)), "error")


def test_an_order_between_two_senders_that_nobody_promised_is_found(planted: Callable[..., Runner]) -> None:
    runner = planted("""
        class First(Agent):
            @handles(Go)
            def go(self, m: Go) -> None:
                self.tell("third", Go("first"))

        class Second(Agent):
            @handles(Go)
            def go(self, m: Go) -> None:
                self.tell("third", Go("second"))

        class Third(Agent):
            heard = []

            @handles(Go)
            def go(self, m: Go) -> None:
                self.heard.append(m.tag)

        swarm = Swarm([First, Second, Third])

        @scenario
        async def race(play: Play) -> None:
            play.system.tell("first", Go())
            play.system.tell("second", Go())
            await play.eventually(lambda: len(Third.heard) == 2)
            play.check("in order", Third.heard == ["first", "second"])
        """)
    assert len(found(runner).decisions) <= 1


CAUSES = """
class Boss(Agent):
    @handles(Go)
    def go(self, m: Go) -> None:
        FIRST
        self.tell("worker", Go())

class Worker(Agent):
    @handles(Go)
    def go(self, m: Go) -> None:
        self.tell("sink", Go("worker"))

class Sink(Agent, subscribes=("orders",)):
    heard = []

    @handles(Go)
    def go(self, m: Go) -> None:
        self.heard.append(m.tag)

swarm = Swarm([Boss, Worker, Sink])

@scenario
async def race(play: Play) -> None:
    play.system.tell("boss", Go())
    await play.eventually(lambda: len(Sink.heard) == 2)
    play.check("in order", Sink.heard == ["boss", "worker"])
"""


@pytest.mark.parametrize("first", ['self.tell("sink", Go("boss"))', 'self.publish("orders", Go("boss"))'])
def test_that_a_cause_comes_before_its_effect_by_another_way_is_not_taken_for_granted(
    planted: Callable[..., Runner], first: str
) -> None:
    assert len(found(planted(CAUSES.replace("FIRST", first))).decisions) <= 2


def test_messages_of_one_sender_never_change_places_whoever_else_sends(planted: Callable[..., Runner]) -> None:
    runner = planted("""
        class One(Agent):
            @handles(Go)
            async def go(self, m: Go) -> None:
                for n in range(4):
                    self.tell("sink", Go(f"{self.name} {n}"))
                    if n % 2:
                        await asyncio.sleep(0)

        class Two(One): pass

        class Three(One): pass

        class Sink(Agent):
            heard = []

            @handles(Go)
            def go(self, m: Go) -> None:
                self.heard.append(m.tag)

        swarm = Swarm([One, Two, Three, Sink])

        @scenario
        async def race(play: Play) -> None:
            for name in ("one", "two", "three"):
                play.system.tell(name, Go())
            await play.eventually(lambda: len(Sink.heard) == 12)
            for name in ("one", "two", "three"):
                heard = [each for each in Sink.heard if each.startswith(name)]
                play.check(f"{name} in order", heard == [f"{name} {n}" for n in range(4)], str(heard))
        """)
    outcomes = [runner.run(Schedule(seed)) for seed in range(300)]
    assert [each.failure for each in outcomes if each.failure] == []
    assert len({each.order for each in outcomes}) > 250


def test_what_is_queued_before_an_actor_is_drained_is_never_overtaken_by_its_end(
    planted: Callable[..., Runner],
) -> None:
    runner = planted("""
        class Sink(Agent):
            heard = []

            @handles(Go)
            def go(self, m: Go) -> None:
                self.heard.append(m.tag)

        class Boss(Agent):
            @handles(Go)
            def go(self, m: Go) -> None:
                self.tell("sink", Go("boss"))

        swarm = Swarm([Boss, Sink])

        @scenario
        async def race(play: Play) -> None:
            await play.system.ask("boss", Go())
            play.system.tell("sink", Go("outside"))
            play.check("all of it was handled", await play.system.drain("sink"))
            play.check("both were heard", sorted(Sink.heard) == ["boss", "outside"])
        """)
    outcomes = [runner.run(Schedule(seed)) for seed in range(100)]
    assert [each.failure for each in outcomes if each.failure] == []
    assert len({each.order for each in outcomes}) == 2


def test_a_window_of_one_step_deep_in_a_long_run_is_found(planted: Callable[..., Runner]) -> None:
    found(
        planted("""
        class Walker(Agent):
            @handles(Go)
            async def go(self, m: Go) -> None:
                for n in range(20):
                    if n == 11:
                        self.tell("door", Go("open"))
                    await self.ask("helper", Knock())
                    if n == 11:
                        self.tell("door", Go("shut"))

        class Thief(Agent):
            @handles(Go)
            async def go(self, m: Go) -> bool:
                for _ in range(3):
                    await self.ask("helper", Knock())
                return await self.ask("door", Go("try"))

        class Door(Agent):
            def __init__(self): self.state = "shut"

            @handles(Go)
            def go(self, m: Go) -> bool:
                if m.tag == "try":
                    return self.state == "open"
                self.state = m.tag

        swarm = Swarm([Walker, Thief, Door, Helper])

        @scenario
        async def race(play: Play) -> None:
            walk = asyncio.ensure_future(play.system.ask("walker", Go()))
            play.check("nobody came in", not await play.system.ask("thief", Go()))
            await walk
        """)
    )


def test_histories_that_differ_only_in_ids_that_are_drawn_are_one(planted: Callable[..., Runner]) -> None:
    runner = planted("""
        class Namer(Agent):
            @handles(Go)
            def go(self, m: Go) -> None:
                self.tell("sink", Go(self._cell.runtime.new_trace_id()))
                self.tell("sink", Go(self._cell.runtime.new_trace_id()[:8] + "a"))
                self.tell("sink", Go("word"))

        class Sink(Agent):
            @handles(Go)
            def go(self, m: Go) -> None: ...

        swarm = Swarm([Namer, Sink])

        @scenario
        async def race(play: Play) -> None:
            await play.system.ask("namer", Go())
            await asyncio.sleep(1)
        """)
    outcomes = [runner.run(Schedule(seed)) for seed in range(20)]
    assert len({each.order for each in outcomes}) == 1
    assert len({each.digest for each in outcomes}) == 20


def test_a_child_that_two_handlers_make_is_found_and_the_error_behind_the_servers_is_told(
    planted: Callable[..., Runner], tmp_path: Path
) -> None:
    runner = planted("""
        class Boss(Agent, concurrency=2):
            def __init__(self): self.helper = None

            @handles(Go)
            async def go(self, m: Go) -> str:
                if self.helper is None:
                    self.helper = await self.spawn(Helper, name="helper")
                return await self.ask(self.helper, Knock())

        swarm = Swarm([Boss])

        @scenario
        async def race(play: Play) -> None:
            ann, bob = await play.client("ann"), await play.client("bob")
            await asyncio.gather(ann.request(Go()), bob.request(Go()))
        """)
    found(runner, "error")
    wanted = Wanted(str(tmp_path / "planted.py"), "race")
    _, transcript = shortest_of(lambda show: showing(wanted, show), first_failure(runner))
    assert any("growth manager  failed" in line and "'boss/helper' is taken" in line for line in transcript)


@pytest.mark.parametrize("order", [[6, 3, 1], [7, 4, 0], [5, 4, 3]])
def test_one_order_of_three_among_eight_agents_is_found(planted: Callable[..., Runner], order: list[int]) -> None:
    agents = "".join(
        f"""
        class W{n}(Agent):
            @handles(Go)
            async def go(self, m: Go) -> None:
                log.append({n})
        """
        for n in range(8)
    )
    runner = planted(f"""
        log = []
        {agents}
        swarm = Swarm([{", ".join(f"W{n}" for n in range(8))}])

        @scenario
        async def race(play: Play) -> None:
            await asyncio.gather(*(play.system.ask(f"w{{n}}", Go()) for n in range(8)))
            play.check("not in that order", [n for n in log if n in {order}] != {order})
        """)
    found(runner)


def test_what_only_a_crash_brings_about_is_found_with_that_profile_alone(planted: Callable[..., Runner]) -> None:
    shop = """
        stock = {"n": 1}

        class Shop(Agent, restart=AT_ONCE):
            @handles(Add)
            async def reserve(self, m: Add) -> None:
                stock["n"] -= 1
                await asyncio.sleep(0)
                stock["n"] += 1

        swarm = Swarm([Shop])

        @scenario
        async def race(play: Play) -> None:
            ann = await play.client("ann")
            for _ in range(3):
                try:
                    await ann.request("add")
                except Exception:
                    pass
            play.check("nothing is reserved for ever", stock["n"] == 1)
        """
    shortest = found(planted(shop, "crash"))
    assert (len(shortest.decisions.strikes), len(shortest.decisions.picks)) == (1, 0)


def test_without_faults_it_is_not_there(planted: Callable[..., Runner]) -> None:
    runner = planted("""
        swarm = Swarm([Helper])

        @scenario
        async def race(play: Play) -> None:
            play.check("it is polite", await (await play.client("ann")).request("knock") == "come in")
        """)
    assert all(runner.run(Schedule(seed)).failure is None for seed in range(50))


# --- scenarios that do what they should not ---


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        ("SystemExit(3)", "SystemExit: 3"),
        ("BaseException('odd')", "BaseException: odd"),
        ("GeneratorExit", "GeneratorExit"),
        ("asyncio.CancelledError", "CancelledError"),
        ("MemoryError", "MemoryError"),
    ],
)
def test_whatever_a_scenario_raises_fails_that_run_and_nothing_else(
    planted: Callable[..., Runner], raised: str, told: str
) -> None:
    runner = planted(f"swarm = Swarm([])\n@scenario\nasync def race(play: Play) -> None:\n    raise {raised}\n")
    failure = runner.run(Schedule(1)).failure
    assert failure is not None
    assert (failure.kind, failure.text.startswith(told)) == ("error", True)


def test_an_interrupt_is_no_failure_but_ends_everything(planted: Callable[..., Runner]) -> None:
    runner = planted("swarm = Swarm([])\n@scenario\nasync def race(play: Play) -> None:\n    raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        runner.run(Schedule(1))


def test_what_a_run_leaves_behind_does_not_reach_the_next(planted: Callable[..., Runner]) -> None:
    runner = planted("""
        kept, seen = [], []

        class Forgetful(Agent):
            @handles(Go)
            async def go(self, m: Go) -> int:
                async def numbers():
                    try:
                        yield 1
                        yield 2
                    finally:
                        await asyncio.sleep(0)
                kept.append(numbers())
                await kept[0].__anext__()
                kept.append(asyncio.create_task(asyncio.sleep(9)))
                seen.append(1)
                return len(seen)

        swarm = Swarm([Forgetful])

        @scenario
        async def race(play: Play) -> None:
            play.check("it is the first", await (await play.client("ann")).request("go") == 1)
        """)
    outcomes = [runner.run(Schedule(3)) for _ in range(5)]
    assert [each.failure for each in outcomes] == [None] * 5
    assert len({each.digest for each in outcomes}) == 1


@pytest.mark.slow
def test_hundreds_of_runs_keep_no_memory(planted: Callable[..., Runner]) -> None:
    runner = planted("""
        swarm = Swarm([Helper])

        @scenario
        async def race(play: Play) -> None:
            await asyncio.gather(*[(await play.client(name)).request("knock") for name in "ab"])
        """)

    def objects_after(runs: int) -> int:
        for seed in range(runs):
            runner.run(Schedule(seed))
        gc.collect()
        return len(gc.get_objects())

    gc.disable()
    try:
        before = objects_after(100)
        assert objects_after(300) - before < 100
    finally:
        gc.enable()


# --- told clearly ---


def test_a_run_is_only_made_shorter_as_long_as_the_same_check_fails(planted: Callable[..., Runner]) -> None:
    runner = planted("""
        seen = []

        class First(Agent):
            @handles(Go)
            def go(self, m: Go) -> None:
                seen.append(self.name)

        class Second(First): pass

        swarm = Swarm([First, Second])

        @scenario
        async def race(play: Play) -> None:
            for name in ("first", "second"):
                play.system.tell(name, Go())
            await asyncio.sleep(1)
            if seen == ["second", "first"]:
                play.check("the first comes first", False, str(seen))
            else:
                play.check("the plainest run fails in another way", False)
        """)
    outcomes = map(runner.run, map(Schedule, range(100)))
    first = next(each for each in outcomes if each.failure is not None and "comes first" in each.failure.text)
    shortest = shrink(runner, first)
    assert shortest.failure == first.failure
    assert len(shortest.decisions.picks) == 1


def test_the_transcript_of_a_livelock_is_as_long_as_can_be_read(
    planted: Callable[..., Runner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grami_actors.simulation.loop.MOST_STEPS", 5_000)
    runner = planted("""
        class Fork(Agent):
            @handles(Go)
            def take(self, m: Go) -> bool:
                return False

        class Eater(Agent):
            @handles(Knock)
            async def eat(self, m: Knock) -> None:
                while not await self.ask("fork", Go()):
                    pass

        swarm = Swarm([Fork, Eater])

        @scenario
        async def race(play: Play) -> None:
            await play.system.ask("eater", Knock())
        """)
    failed = first_failure(runner, 1)
    assert failed.failure is not None
    assert failed.failure.kind == "livelock"
    wanted = Wanted(str(tmp_path / "planted.py"), "race")
    _, transcript = shortest_of(lambda show: showing(wanted, show), failed)
    assert len(transcript) == MOST_LINES + 1
    assert "lines more" in transcript[MOST_LINES // 2]
    assert "eater -> fork" in transcript[0]
    assert "eater -> fork" in transcript[-1]


# --- tasks that nobody awaits ---

FORGETS = """
    kept = set()

    class Forgetful(Agent):
        @handles(Go)
        async def go(self, m: Go) -> None:
            async def work() -> None:
                await asyncio.sleep(0.1)
                {raises}
            task = asyncio.create_task(work())
            {then}

    swarm = Swarm([Forgetful])

    @scenario
    async def race(play: Play) -> None:
        await play.system.ask("forgetful", Go())
        await asyncio.sleep(1)
"""


@pytest.mark.parametrize("then", ["kept.add(task)", "pass", "kept.add(task); task.add_done_callback(kept.discard)"])
def test_an_error_in_a_task_that_nobody_awaits_fails_the_run(planted: Callable[..., Runner], then: str) -> None:
    runner = planted(FORGETS.format(raises="raise KeyError('tea')", then=then))
    outcomes = [runner.run(Schedule(3)) for _ in range(3)]
    failure = outcomes[0].failure
    assert failure is not None
    assert [(each.digest, each.failure) for each in outcomes] == [(outcomes[0].digest, failure)] * 3
    assert failure.kind == "error"
    assert "KeyError: 'tea'" in failure.text
    assert "planted.py:" in failure.text
    assert "a task of forgetful that nobody awaits" in failure.text


@pytest.mark.parametrize(
    ("raises", "then"),
    [
        ("raise GramiError('nobody wants it', code='NO')", "pass"),
        ("raise asyncio.CancelledError", "pass"),
        ("raise KeyError('tea')", "await asyncio.wait([task])\n            assert task.exception()"),
        ("raise KeyError('tea')", "await asyncio.gather(task, return_exceptions=True)"),
        ("raise KeyError('tea')", "await asyncio.sleep(0.2)\n            with suppress(KeyError): await task"),
        ("raise KeyError('tea')", "task.add_done_callback(lambda done: done.exception())"),
    ],
)
def test_an_answer_that_nobody_wants_or_an_error_that_somebody_saw_does_not(
    planted: Callable[..., Runner], raises: str, then: str
) -> None:
    head = "from contextlib import suppress\n    from grami_actors import GramiError\n"
    runner = planted(f"\n    {head}{FORGETS.format(raises=raises, then=then)}")
    assert [runner.run(Schedule(seed)).failure for seed in range(20)] == [None] * 20


# --- deadlocks ---

LOCKED = """
    class Tick(Message): pass
    class Move(Message):
        one: str
        other: str

    class Pulse(Agent):
        def on_start(self) -> None:
            self.every(1.0, Tick())

        @handles(Tick)
        def tick(self, m: Tick) -> None: ...

    class Bank(Agent, concurrency=2):
        def __init__(self) -> None:
            super().__init__()
            self.locks = {{name: {lock} for name in "ab"}}

        @handles(Move)
        async def move(self, m: Move) -> None:
            async with {first}:
                await asyncio.sleep(0.5)
                async with self.locks[m.other]:
                    pass

    swarm = Swarm([Pulse, Bank])

    @scenario
    async def race(play: Play) -> None:
        {script}
"""

BOTH = "await asyncio.gather(*[play.system.ask('bank', Move(*each)) for each in ('ab', 'ba')], return_exceptions=True)"
TOLD = "[play.system.tell('bank', Move(*each)) for each in ('ab', 'ba')]; await asyncio.sleep(3)"


@pytest.mark.parametrize("script", [BOTH, TOLD])
@pytest.mark.parametrize("lock", ["asyncio.Lock()", "asyncio.Semaphore(1)", "asyncio.BoundedSemaphore(1)"])
def test_a_deadlock_is_found_beside_a_heartbeat_and_when_nobody_waits_for_it(
    planted: Callable[..., Runner], script: str, lock: str
) -> None:
    runner = planted(LOCKED.format(lock=lock, first="self.locks[m.one]", script=script))
    failure = runner.run(Schedule(0)).failure
    assert failure is not None
    assert failure.kind == "deadlock"
    assert failure.text.startswith("these wait for each other: bank (")
    assert failure.text.count("planted.py:") == 2 or "-> bank" in failure.text


@pytest.mark.parametrize("script", [BOTH, TOLD])
@pytest.mark.parametrize("lock", ["asyncio.Lock()", "asyncio.Semaphore(1)"])
def test_locks_that_are_given_up_in_time_are_no_deadlock(
    planted: Callable[..., Runner], script: str, lock: str
) -> None:
    first = "self.locks[m.one], asyncio.timeout(20.0)"
    runner = planted(LOCKED.format(lock=lock, first=first, script=script))
    assert [runner.run(Schedule(seed)).failure for seed in range(5)] == [None] * 5


# --- sets of tasks ---


@pytest.mark.parametrize(
    "collect",
    [
        "return [task.result() for task in (await asyncio.wait([*map(asyncio.ensure_future, work)]))[0]]",
        "return [await task for task in {asyncio.ensure_future(each) for each in work}]",
        "return [await each for each in asyncio.as_completed(work)]",
        "return [await each for each in as_completed(work)]",
    ],
)
def test_the_order_of_a_set_of_tasks_is_the_same_in_each_run(planted: Callable[..., Runner], collect: str) -> None:
    runner = planted(f"""
        from asyncio import as_completed

        class Boss(Agent):
            @handles(Go)
            async def go(self, m: Go) -> list[str]:
                async def done(word: str) -> str:
                    await asyncio.sleep(0)
                    return word
                work = [done(word) for word in "the order of a set is another one in each process".split()]
                {collect}

        class Told(Agent):
            @handles(Go)
            def go(self, m: Go) -> None: ...

        swarm = Swarm([Boss, Told])

        @scenario
        async def race(play: Play) -> None:
            answer = await play.system.ask("boss", Go())
            await play.system.ask("told", Go(" ".join(map(str, answer))))
        """)
    kept = []  # other addresses in each run
    digests = set()
    for _ in range(10):
        digests.add(runner.run(Schedule(5)).digest)
        kept.append([object() for _ in range(997)])
    assert len(digests) == 1


def test_who_waited_where_when_time_ran_out_is_told(planted: Callable[..., Runner]) -> None:
    runner = planted("""
        class Gate(Agent):
            @handles(Go)
            async def go(self, m: Go) -> None:
                await asyncio.get_running_loop().create_future()  # nobody sets it

        swarm = Swarm([Gate])

        @scenario
        async def race(play: Play) -> None:
            await play.system.ask("gate", Go())
        """)
    outcomes = [runner.run(Schedule(0), watched=watched) for watched in (True, False)]
    assert outcomes[0].digest == outcomes[1].digest
    failure = outcomes[0].failure
    assert failure is not None
    assert (failure.kind, failure.known_by) == ("error", "DEADLINE_EXCEEDED")
    lines = failure.text.splitlines()
    assert lines[0].endswith("when time ran out, these waited:")
    assert any(each.startswith("  gate (") and each.endswith("waits for a future") for each in lines)
    assert all("planted.py:" in each for each in lines[1:])
