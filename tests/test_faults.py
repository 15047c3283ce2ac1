"""Faults put in on purpose: each on the real lanes and in simulation, how often they strike, what they leave alone."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from grami_actors import Agent, Message, ScriptedModel, Swarm, connect, handles
from grami_actors.actor import Actor
from grami_actors.errors import AgentCrashed, DeadlineExceeded, GramiError, MailboxFull, UpstreamError
from grami_actors.history import History, Injected, Lost, Told
from grami_actors.model import Generate, Prompt
from grami_actors.profiling import Profile as Measured
from grami_actors.ref import ActorDead
from grami_actors.restarts import RestartPolicy
from grami_actors.simulation.faults import Injector
from grami_actors.simulation.loop import VirtualLoop
from grami_actors.simulation.rules import MOST, PROFILES, Profile
from grami_actors.simulation.schedule import Decided, Decisions, Schedule
from grami_actors.simulation.system import SimulatedSystem
from grami_actors.system import ActorSystem
from grami_actors.telemetry import MessageSent
from grami_actors.tool_actors import ModelActor
from tests.conftest import on, running, serving, turns_until
from tests.process_actors import Small

AT_ONCE = RestartPolicy(intensity=100, shortest=0.0, longest=0.0)


class Note(Message):
    n: int


class Walk(Message):
    steps: int


class Other(Message):
    pass


class Keeper(Agent, name="keeper", restart=AT_ONCE):
    """Writes down what it handles."""

    def __init__(self, seen: list[Any]) -> None:
        super().__init__()
        self.seen = seen

    @handles(Note)
    def note(self, message: Note) -> int:
        self.seen.append(message.n)
        return message.n

    @handles(Walk)
    async def walk(self, message: Walk) -> str:
        for step in range(message.steps):
            self.seen.append(step)
            await asyncio.sleep(0.001)
        return "there"

    @handles(Other)
    def other(self, _message: Other) -> str:
        return "other"


class Caller(Agent, name="caller"):
    """Sends what it is given to the keeper."""

    @handles(Walk)
    def send(self, message: Walk) -> None:
        for n in range(message.steps):
            self.tell("keeper", Note(n=n))

    @handles(Note)
    async def relay(self, message: Note) -> Any:
        return await self.ask("keeper", message, timeout=0.05)


class World:
    """A system with an injector, a history and a keeper that writes into ``seen``."""

    def __init__(self, system: ActorSystem, faults: Injector, history: History, seen: list[Any]) -> None:
        self.system, self.faults, self.history, self.seen = system, faults, history, seen

    def ask(self, message: Message, timeout: float | None = None) -> Any:
        return self.system.ask("keeper", message, timeout=timeout)

    def faulted(self) -> list[tuple[str, tuple[str, ...], str]]:
        return [(each.fault, each.names, each.text) for each in self.history.entries if isinstance(each, Injected)]

    def lost(self) -> list[str]:
        return [each.reason for each in self.history.entries if isinstance(each, Lost)]

    def account(self) -> list[Any]:
        """The history, but for the names of spans, which are another in each run."""
        entries = self.history.entries
        return [replace(each, span="", cause="") if isinstance(each, Told) else each for each in entries]


Play = Callable[[World], Awaitable[Any]]


async def _play(system: ActorSystem, play: Play, kind: type[Keeper]) -> World:
    history = History(system.bus, system.now)
    with Injector(system, history) as faults:
        world = World(system, faults, history, [])
        await system.spawn(kind, world.seen, name="keeper")
        await system.spawn(Caller, name="caller")
        await play(world)
    return world


def simulate(play: Play, schedule: Schedule | None = None, kind: type[Keeper] = Keeper) -> World:
    schedule = schedule or Schedule(0)
    loop = VirtualLoop(schedule)

    async def main() -> World:
        async with SimulatedSystem(loop, schedule.rng) as system:
            return await _play(system, play, kind)

    return loop.run(main())


def live(play: Play, kind: type[Keeper] = Keeper) -> World:
    async def main() -> World:
        async with running() as system:
            return await _play(system, play, kind)

    return asyncio.run(main())


@pytest.fixture(params=["loop", "thread", "simulated"])
def run(request: pytest.FixtureRequest) -> Callable[[Play], World]:
    if request.param == "simulated":
        return simulate
    return lambda play: live(play, on(request.param, Keeper, agent_name="keeper"))


# --- crashes ---


@pytest.mark.parametrize(
    ("when", "message", "done"),
    [
        ("before", Note(n=2), [1]),
        ("after", Note(n=2), [1, 2]),
        ("during", Note(n=2), [1, 2]),
        ("before", Walk(steps=3), [1]),
        ("during", Walk(steps=3), [1, 0, 1]),
        ("after", Walk(steps=3), [1, 0, 1, 2]),
    ],
)
def test_a_crash_comes_where_it_is_said_to_and_the_actor_goes_on(
    run: Any, when: Any, message: Message, done: list[int]
) -> None:
    async def play(world: World) -> None:
        rule = world.faults.crash("keep*", when=when, on_message=2, awaits=2)
        assert await world.ask(Note(n=1)) == 1
        with pytest.raises(AgentCrashed, match="outcome is unknown"):
            await world.ask(message)
        assert world.seen == done
        assert await world.ask(Note(n=9)) == 9
        assert rule.struck == 1

    world = run(play)
    word = "note" if isinstance(message, Note) else "walk"
    assert world.faulted() == [("crash", ("keeper",), f"{when} {word}")]
    assert [each.outcome for each in world.history.told()] == ["ok", "AGENT_CRASHED", "ok"]


def test_a_handler_that_swallows_its_crash_fails_all_the_same() -> None:
    class Stubborn(Keeper, name="keeper", restart=AT_ONCE):
        @handles(Walk)
        async def walk(self, _message: Walk) -> str:
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                await asyncio.sleep(0)
            self.seen.append("cleared away")
            return "there"

    async def play(world: World) -> None:
        world.faults.crash("keeper", when="during")
        with pytest.raises(AgentCrashed):
            await world.ask(Walk(steps=1))

    assert simulate(play, kind=Stubborn).seen == live(play, Stubborn).seen == ["cleared away"]


@pytest.mark.parametrize("when", ["before", "during", "after"])
def test_of_messages_that_are_handled_at_the_same_time_exactly_as_many_crash_as_were_to(when: Any) -> None:
    async def play(world: World) -> None:
        ref = await world.system.spawn(Busy, world.seen)
        rule = world.faults.crash("busy*", when=when, times=2)
        asked = [world.system.ask(ref, Walk(steps=2)) for _ in range(4)]
        asked.append(later(world.system.ask(ref, Walk(steps=2))))
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(isinstance(each, AgentCrashed) for each in answers) >= rule.struck == 2

    simulate(play)
    live(play)


async def later(work: Awaitable[Any]) -> Any:
    await asyncio.sleep(0.05)
    return await work


class Busy(Keeper, name="busy", restart=AT_ONCE, concurrency=4):
    pass


def test_a_message_that_is_tried_again_survives_one_crash_and_is_poison_after_two(run: Any) -> None:
    async def play(world: World) -> None:
        ref = await world.system.spawn(Again, world.seen)
        world.faults.crash("again*", when="after")
        assert await world.system.ask(ref, Note(n=1)) == 1
        world.faults.crash("again*", when="before", times=2)
        with pytest.raises(AgentCrashed):
            await world.system.ask(ref, Note(n=2))
        assert world.seen == [1, 1]

    assert run(play).lost() == ["poison"]


class Again(Keeper, name="again", restart=RestartPolicy(100, shortest=0.0, longest=0.0, redeliver=True)):
    pass


# --- what is lost ---


def test_a_dropped_ask_is_not_handled_and_ends_with_its_deadline(run: Any) -> None:
    async def play(world: World) -> None:
        rule = world.faults.drop("", "keeper")
        with pytest.raises(DeadlineExceeded):
            await world.ask(Note(n=1), timeout=0.02)
        assert await world.ask(Note(n=2)) == 2
        assert rule.struck == 1

    world = run(play)
    assert world.seen == [2]
    assert world.lost() == []
    assert world.faulted() == [("drop", ("", "keeper"), "note")]


def test_a_dropped_answer_leaves_the_work_done_and_an_error_is_an_answer_too(run: Any) -> None:
    async def play(world: World) -> None:
        world.faults.drop_reply("", "keeper", times=2)
        world.system.tell("keeper", Note(n=0))  # nobody wants an answer to it
        with pytest.raises(DeadlineExceeded):
            await world.ask(Note(n=1), timeout=0.02)
        with pytest.raises(DeadlineExceeded):
            await world.ask(Unknown(), timeout=0.02)
        with pytest.raises(GramiError, match="does not handle"):
            await world.ask(Unknown(), timeout=0.02)

    world = run(play)
    assert world.seen == [0, 1]
    assert world.lost() == []


class Unknown(Message):
    pass


@pytest.mark.parametrize("groups", [("caller", ["keep*"]), (["keep*", "x"], "caller")])
def test_two_groups_that_are_parted_hear_nothing_of_each_other_until_they_are_healed(run: Any, groups: Any) -> None:
    async def play(world: World) -> None:
        parted = world.faults.partition(*groups)
        with pytest.raises(DeadlineExceeded):
            await world.system.ask("caller", Note(n=1))
        assert await world.ask(Note(n=2)) == 2
        assert parted.struck == 1
        parted.undo()
        assert await world.system.ask("caller", Note(n=3)) == 3

    world = run(play)
    assert world.seen == [2, 3]
    assert world.faulted() == [("partition", ("caller", "keeper"), "note")]


def test_a_partition_that_comes_while_a_message_is_handled_loses_its_answer(run: Any) -> None:
    async def play(world: World) -> None:
        asked = asyncio.ensure_future(world.ask(Walk(steps=5), timeout=0.05))
        await turns_until(lambda: world.seen)
        world.faults.partition("", "keeper")
        with pytest.raises(DeadlineExceeded):
            await asked

    assert run(play).faulted()[-1:] in ([("partition", ("keeper", ""), "answer walk")], [])


# --- what comes later, twice, or in another order ---


def test_a_delayed_message_keeps_its_place_among_those_of_its_sender(run: Any) -> None:
    async def play(world: World) -> None:
        world.faults.delay("caller", "keeper", 0.02, on_message=2)
        await world.system.ask("caller", Walk(steps=5))
        assert await world.ask(Note(n=99)) == 99

    world = run(lambda world: play_until(world, play, 6))
    assert [n for n in world.seen if n != 99] == [0, 1, 2, 3, 4]
    assert world.seen.index(99) < world.seen.index(1)


async def play_until(world: World, play: Play, count: int) -> None:
    await play(world)
    while len(world.seen) < count:  # noqa: ASYNC110 - on a clock that may be virtual
        await asyncio.sleep(0.005)


def test_the_order_is_kept_however_often_messages_are_held_and_let_go(run: Any) -> None:
    async def play(world: World) -> None:
        for _ in range(5):
            world.faults.delay("caller", "keeper", 0.0, times=20)
        world.faults.delay("caller", "keeper", 0.001, on_message=7, times=None)
        await world.system.ask("caller", Walk(steps=300))

    assert run(lambda world: play_until(world, play, 300)).seen == [*range(300)]


def test_a_reordered_message_comes_after_the_next_one_of_its_sender(run: Any) -> None:
    async def play(world: World) -> None:
        world.faults.reorder("caller", "keeper", on_message=2)
        await world.system.ask("caller", Walk(steps=4))

    assert run(lambda world: play_until(world, play, 4)).seen == [0, 2, 1, 3]


def test_a_reordered_message_without_a_next_one_comes_when_its_time_is_up(run: Any) -> None:
    async def play(world: World) -> None:
        world.faults.reorder("", "keeper", 0.02)
        begun = world.system.now()
        assert await world.ask(Note(n=1)) == 1
        assert world.system.now() - begun >= 0.0199

    assert run(play).seen == [1]


def test_a_duplicated_message_is_handled_twice_and_answered_once(run: Any) -> None:
    async def play(world: World) -> None:
        world.faults.duplicate("", "keeper", kind=Note)
        assert await world.ask(Other()) == "other"
        assert await world.ask(Note(n=1)) == 1
        assert await world.ask(Note(n=2)) == 2

    world = run(play)
    assert world.seen == [1, 1, 2]
    assert world.lost() == []


def test_an_actor_that_stalls_lets_its_mailbox_grow_and_handles_everything_in_order_then(run: Any) -> None:
    async def play(world: World) -> None:
        world.faults.stall("keeper", 0.03)
        for n in range(4):
            world.system.tell("keeper", Note(n=n))
        begun = world.system.now()
        assert await world.ask(Note(n=4)) == 4
        assert world.system.now() - begun >= 0.02

    world = run(play)
    assert world.seen == [0, 1, 2, 3, 4]
    assert world.faulted() == [("stall", ("keeper",), "note 0.03 s")]


def test_what_is_held_ends_when_its_request_does_and_what_is_undone_goes_on(run: Any) -> None:
    async def play(world: World) -> None:
        held = world.faults.delay("", "keeper", 1000.0)
        with pytest.raises(DeadlineExceeded):
            await world.ask(Note(n=1), timeout=0.02)
        asked = asyncio.ensure_future(world.ask(Note(n=2)))
        await asyncio.sleep(0)
        held.undo()
        assert await asked == 2

    assert run(play).seen == [2]


@pytest.mark.parametrize("fault", ["delay", "reorder", "stall"])
def test_what_is_held_for_an_actor_that_stops_is_a_dead_letter_and_an_ask_gets_actor_dead(run: Any, fault: str) -> None:
    async def play(world: World) -> None:
        if fault == "stall":
            world.faults.stall("keeper", 1000.0)
        else:
            getattr(world.faults, fault)("", "keeper", 1000.0)
            getattr(world.faults, fault)("caller", "keeper", 1000.0)
        world.system.tell("caller", Walk(steps=1))
        asked = asyncio.ensure_future(world.ask(Note(n=2)))
        while sum(world.faults.counts.values()) < (1 if fault == "stall" else 2):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.001)
        await world.system.stop("keeper")
        with pytest.raises(ActorDead):
            await asked

    world = run(play)
    assert world.seen == []
    assert world.lost() == ["stopped"]


def test_what_is_held_when_the_injector_leaves_goes_on() -> None:
    async def main() -> None:
        async with running() as system:
            seen: list[int] = []
            await system.spawn(Keeper, seen, name="keeper")
            with Injector(system) as faults:
                faults.delay("", "keeper", 1000.0)
                asked = asyncio.ensure_future(system.ask("keeper", Note(n=1)))
                await turns_until(lambda: faults.counts["delay"])
            assert await asked == 1

    asyncio.run(main())


@pytest.mark.parametrize("fault", ["delay", "drop", "stall"])
def test_an_actor_whose_message_was_taken_out_of_its_hands_has_nothing_at_work(run: Any, fault: str) -> None:
    async def play(world: World) -> None:
        args = {"delay": ("", "keeper", 0.5), "drop": ("", "keeper"), "stall": ("keeper", 0.5)}
        getattr(world.faults, fault)(*args[fault])
        world.system.tell("keeper", Note(n=1))
        await asyncio.sleep(0.01)
        assert world.faults.counts[fault] == 1
        assert world.system.table.cells["keeper"].at_work is None

    run(play)


def test_while_the_message_of_an_interval_is_held_no_other_is_sent_and_a_dropped_one_does_not_end_it() -> None:
    async def play(world: World) -> None:
        world.faults.delay("ticker", "ticker", 1.05, on_message=1)
        world.faults.drop("ticker", "ticker", on_message=2)
        await world.system.spawn(Ticker, world.seen, name="ticker")
        await asyncio.sleep(1.39)

    assert simulate(play).seen == [1, 1]


class Ticker(Keeper, name="ticker"):
    def on_start(self) -> None:
        self.every(0.1, Note(n=1))


async def _all(world: World) -> None:
    world.faults.drop("*", "*", times=None)
    ended = world.system.watch("caller")
    watcher = await world.system.spawn(Watcher, world.seen)
    await world.system.stop("caller")
    assert (await ended).name == "caller"
    assert await world.system.drain(watcher)


class Watcher(Actor):
    def __init__(self, seen: list[Any]) -> None:
        super().__init__()
        self.seen = seen

    def on_start(self) -> None:
        self.watch("caller")

    def on_terminated(self, terminated: Any) -> None:
        self.seen.append(terminated.name)


def test_what_the_runtime_itself_sends_is_left_alone(run: Any) -> None:
    assert run(_all).seen == ["caller"]


# --- full mailboxes, the model, worker processes ---


def test_a_mailbox_that_is_filled_refuses_lets_wait_or_drops_as_its_policy_says_until_it_is_released(run: Any) -> None:
    async def play(world: World) -> None:
        waiter = await world.system.spawn(Waiter, world.seen, name="keeper-2")
        await world.system.spawn(Dropper, world.seen, name="keeper-3")
        for message in (Walk(steps=1), Note(n=8)):  # what is there already is handled
            world.system.tell(waiter, message)
        full = world.faults.fill("keeper*")
        with pytest.raises(MailboxFull):
            world.system.tell("keeper", Note(n=1))
        asked = waiter.ask(Note(n=2), block=False)
        world.system.tell("keeper-3", Note(n=3))
        await asyncio.sleep(0.05)
        assert world.seen == [0, 8]
        full.undo()
        assert await asked == 2
        assert await world.ask(Note(n=4)) == 4

    world = run(play)
    assert world.seen == [0, 8, 2, 4]
    assert world.lost() == ["overflow"]
    assert world.faults.counts == {"fill": 3}


class Waiter(Keeper, name="waiter", overflow="wait"):
    pass


class Dropper(Keeper, name="dropper", overflow="drop_oldest"):
    pass


def test_the_model_fails_as_often_as_it_is_told_to(run: Any) -> None:
    async def play(world: World) -> None:
        model = await world.system.spawn(ModelActor, ScriptedModel({"question": "words"}), name="tool:model")
        world.faults.fail_model("out of order", times=2)
        question = Generate(prompt=Prompt(text="a question"))
        for _ in range(2):
            with pytest.raises(UpstreamError, match="out of order"):
                await world.system.ask(model, question)
        assert await world.system.ask(model, question) == "words"

    assert run(play).faults.counts == {"model": 2}


@pytest.mark.slow
async def test_a_worker_process_is_killed_with_a_message_in_its_hands_and_the_other_faults_strike_it_too() -> None:
    async with running() as system:
        history = History(system.bus, system.now)
        with Injector(system, history) as faults:
            worker = await system.spawn(Small, name="small")
            first = await system.ask(worker, "pid")
            assert first != os.getpid()
            await system.spawn(Silent, name="gate")
            faults.kill("small")
            with pytest.raises(AgentCrashed):
                await system.ask(worker, "hold")
            second = await system.ask(worker, "pid")
            assert second != first
            for rule in (faults.drop, faults.drop_reply):
                rule("", "small")
                with pytest.raises(DeadlineExceeded):
                    await system.ask(worker, "pid", timeout=0.05)
            for strike in (
                lambda: faults.delay("", "small", 0.02),
                lambda: faults.stall("small", 0.02),
                lambda: faults.duplicate("", "small"),
            ):
                strike()
                assert await system.ask(worker, "pid") == second
            faults.crash("small", when="after")
            with pytest.raises(AgentCrashed):
                await system.ask(worker, "pid")
            assert await system.ask(worker, "pid") not in (first, second)
            assert faults.unused == []
    assert sum(isinstance(each, Injected) for each in history.entries) == sum(faults.counts.values()) == 7


class Silent(Actor):
    async def on_receive(self, _message: Any) -> None:
        await asyncio.Event().wait()


async def test_the_same_faults_strike_a_client_of_a_growth_manager() -> None:
    async with serving(Swarm([Echo])) as manager:
        with Injector(manager.system) as faults:
            async with connect(manager.url) as client:
                faults.drop("*", "router", times=None)
                faults.crash("echo*", sender="connection-*")
                with pytest.raises(AgentCrashed):
                    await client.request("note", n=1)
                faults.drop("connection-*", "echo*")
                with pytest.raises(DeadlineExceeded):
                    await client.request("note", n=2, timeout=0.05)
                assert await client.request("note", n=3) == 3


class Echo(Agent, name="echo", restart=AT_ONCE):
    @handles(Note)
    def note(self, message: Note) -> int:
        return message.n


# --- rules ---


def test_what_never_struck_is_told_and_what_is_undone_strikes_no_more() -> None:
    async def play(world: World) -> None:
        world.faults.crash("keper", when="after")
        world.faults.drop("caller", "keeper", kind=Other)
        world.faults.fill("nobody")
        world.faults.partition("a", ["b", "c"])
        undone = world.faults.drop("", "keeper", times=None)
        with pytest.raises(DeadlineExceeded):
            await world.ask(Note(n=1), timeout=1)
        undone.undo()
        undone.undo()
        assert await world.ask(Note(n=2)) == 2

    unused = simulate(play).faults.unused
    assert unused == ["crash after 'keper'", "drop 'caller' to 'keeper'", "fill 'nobody'", "partition 'a | b c'"]


@pytest.mark.parametrize(
    ("add", "words"),
    [
        (lambda faults: faults.crash("keeper", when="befor"), "when='befor': a crash comes before, during, after"),
        (lambda faults: faults.crash("keeper", kind="note"), "kind='note': a class of messages is meant"),
        (lambda faults: faults.drop("a", "keeper", kind=(Note, "other")), "a class of messages is meant"),
        (
            lambda faults: faults.drop("a", "keeper", on_message=0),
            "on_message=0, times=1: messages are counted from 1 on",
        ),
        (lambda faults: faults.duplicate("a", "keeper", times=-1), "on_message=1, times=-1: messages are counted"),
        (lambda faults: faults.stall("keeper", -1.0), "-1.0 seconds: no time passes backwards"),
    ],
)
def test_what_is_no_fault_is_refused_where_it_is_written(add: Callable[[Injector], object], words: str) -> None:
    async def play(world: World) -> None:
        with pytest.raises((TypeError, ValueError), match=words):
            add(world.faults)
        assert world.faults.rules == []
        assert await world.ask(Note(n=1)) == 1

    simulate(play)


def test_there_is_one_injector_or_profile_at_a_time() -> None:
    async def play(world: World) -> None:
        with pytest.raises(GramiError, match="at work"), Injector(world.system):
            pass
        with pytest.raises(GramiError, match="another profile"), Measured(world.system.bus):
            pass

    simulate(play)


@given(on_message=st.integers(1, 6), times=st.integers(0, 6), total=st.integers(0, 12), seed=st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_exactly_those_messages_are_struck_that_were_named(on_message: int, times: int, total: int, seed: int) -> None:
    async def play(world: World) -> None:
        world.faults.drop("caller", "keeper", on_message=on_message, times=times)
        await world.system.ask("caller", Walk(steps=total))
        await asyncio.sleep(1)

    seen = simulate(play, Schedule(seed)).seen
    assert seen == [n for n in range(total) if not on_message <= n + 1 < on_message + times]


@given(
    rules=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 4), st.floats(0.0, 3.0)), max_size=4),
    stalls=st.lists(st.integers(1, 9), max_size=2),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=80, deadline=None)
def test_delays_and_stalls_never_change_the_order_of_one_sender_and_lose_nothing(
    rules: list[tuple[int, int, float]], stalls: list[int], seed: int
) -> None:
    async def play(world: World) -> None:
        await world.system.spawn(Caller, name="caller-2")
        for on_message, times, seconds in rules:
            world.faults.delay("caller*", "keeper", seconds, on_message=on_message, times=times)
        for on_message in stalls:
            world.faults.stall("keeper", 0.5, on_message=on_message)
        for sender in ("caller", "caller-2"):
            world.system.tell(sender, Walk(steps=6))
            await asyncio.sleep(0.3)
        await asyncio.sleep(60)

    world = simulate(play, Schedule(seed))
    for sender in ("caller", "caller-2"):
        assert [told.data["n"] for told in world.history.told() if told.type == "note" and told.sender == sender] == [
            *range(6)
        ]


def noisy(profile: Profile, schedule: Schedule) -> Play:
    async def play(world: World) -> None:
        world.faults.draw(profile, schedule)
        asked = [world.system.ask("caller", Note(n=n), timeout=20) for n in range(8)]
        world.system.tell("caller", Walk(steps=10))
        await asyncio.gather(*asked, return_exceptions=True)
        await asyncio.sleep(30)

    return play


@given(name=st.sampled_from(sorted(PROFILES)), seed=st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_the_same_seed_brings_the_same_faults_and_the_same_history(name: str, seed: int) -> None:
    runs = []
    for _ in range(2):
        schedule = Schedule(seed)
        runs.append(simulate(noisy(PROFILES[name], schedule), schedule))
    assert runs[0].account() == runs[1].account()
    assert len(runs[0].faulted()) <= MOST
    again = Decided(seed, schedule.decisions)
    assert simulate(noisy(PROFILES[name], again), again).account() == runs[0].account()


@given(decisions=st.dictionaries(st.integers(0, 40), st.integers(0, 9)), name=st.sampled_from(sorted(PROFILES)))
@settings(max_examples=80, deadline=None)
def test_whatever_strikes_every_message_is_handled_dropped_or_a_dead_letter(
    decisions: dict[int, int], name: str
) -> None:
    sent: list[MessageSent] = []

    async def play(world: World) -> None:
        world.system.bus.subscribe(sent.append, MessageSent)
        world.faults.draw(PROFILES[name], schedule)
        for n in range(20):
            world.system.tell("keeper", Walk(steps=3) if n % 2 else Note(n=n))
        world.system.tell("caller", Walk(steps=10))
        await asyncio.sleep(1)
        await world.system.stop("keeper")
        await asyncio.sleep(60)

    schedule = Decided(1, Decisions({}, decisions))
    world = simulate(play, schedule)
    dropped = sum(fault == "drop" for fault, _, _ in world.faulted())
    handled = sum(1 for _ in world.history.told())
    assert len(world.faulted()) <= MOST
    left = sum(reason != "rejected" for reason in world.lost())  # those were handled
    assert handled + dropped + left == len(sent) + world.faults.counts["duplicate"]


def test_by_chance_nothing_strikes_connections_and_only_who_is_restarted_crashes() -> None:
    for name in ("crash", "duplicate"):
        always = Decided(1, Decisions({}, dict.fromkeys(range(50), 1)))

        async def play(world: World, name: str = name, always: Schedule = always) -> None:
            world.faults.draw(PROFILES[name], always)
            for actor in ("plain", "connection-9"):
                await world.system.spawn(Plain, name=actor)
                world.system.tell(actor, Note(n=1))
            await asyncio.sleep(1)

        struck = {"crash": [], "duplicate": [("duplicate", ("", "plain"), "note")]}
        assert simulate(play, always).faulted() == struck[name]


class Plain(Actor):
    def on_receive(self, _message: Any) -> None:
        pass


def test_each_profile_strikes_with_what_it_says_about_once_or_twice_in_20_messages() -> None:
    kinds = {
        "none": set(),
        "crash": {"crash"},
        "slow": {"delay", "stall"},
        "lossy": {"drop", "delay"},
        "duplicate": {"duplicate"},
        "chaos": {"crash", "delay", "stall", "drop", "duplicate"},
    }
    for name, profile in PROFILES.items():
        found: set[str] = set()
        struck = 0
        for seed in range(60):
            schedule = Schedule(seed)
            world = simulate(noisy(profile, schedule), schedule)
            found.update(world.faults.counts)
            struck += sum(world.faults.counts.values())
        assert found == kinds[name], name
        assert name == "none" or 60 <= struck <= 180, (name, struck)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_an_injector_without_a_rule_that_fits_changes_nothing(seed: int) -> None:
    async def play(world: World) -> None:
        world.faults.drop("nobody", "*", times=None)
        world.faults.partition("a", "b")
        await noisy(PROFILES["none"], Schedule(seed))(world)

    async def plainly(world: World) -> None:
        world.system.bus.clock(None)
        await noisy(PROFILES["none"], Schedule(seed))(world)

    struck, plain = simulate(play, Schedule(seed)), simulate(plainly, Schedule(seed))
    assert struck.account() == plain.account()
    assert any(isinstance(each, Told) for each in plain.history.entries)
