"""The contract on what is shared, over every lane: concurrency and pools (S19), topics, budgets, rate gates."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grami_actors.actor import Actor, charge
from grami_actors.agent import Agent, handles
from grami_actors.budget import Budget
from grami_actors.errors import (
    AgentUnavailable,
    Cancelled,
    ErrorCode,
    GramiError,
    MailboxFull,
    QuotaExceeded,
    RateLimited,
    UpstreamError,
)
from grami_actors.messages import Message, ToolCall
from grami_actors.pools import PoolStrategy
from grami_actors.restarts import RestartPolicy
from grami_actors.swarm import Swarm
from grami_actors.system import ActorSystem
from grami_actors.telemetry import ActorFailed, ActorStopped, DeadLetter, MessageHandled
from grami_actors.tools import Tool, tool
from tests.conftest import LANES, Gate, Recorder, Signal, on, running
from tests.test_contract import AT_ONCE, Held, Log

lanes = st.sampled_from(LANES)


class Work(Message):
    key: str = ""
    number: int = 0


@asynccontextmanager
async def swarm(*agents: type[Agent], tools: tuple[Tool[..., Any], ...] = ()) -> AsyncIterator[ActorSystem]:
    async with running() as system:
        await Swarm(list(agents), tools).start(system)
        yield system


def workers(
    lane: str, instances: int, strategy: PoolStrategy, answer: Callable[[Any, Work], Any], **options: Any
) -> Any:
    """An agent class named "worker" whose instances answer with ``answer(self, work)``."""

    class Worker(Agent, lane=lane, instances=instances, pool=strategy, **options):
        @handles(Work)
        def work(self, work: Work) -> Any:
            return answer(self, work)

    return Worker


# --- S19 concurrency ---


@given(width=st.integers(1, 4), messages=st.integers(0, 9), lane=lanes)
@settings(max_examples=30, deadline=None)
def test_s19_exactly_as_many_handlers_interleave_as_are_declared(width: int, messages: int, lane: str) -> None:
    async def play() -> None:
        lock = threading.Lock()
        at_work, highest = 0, 0
        full = Gate()

        class Wide(Actor):
            concurrency = width

            async def on_receive(self, message: Any) -> Any:
                nonlocal at_work, highest
                with lock:
                    at_work += 1
                    highest = max(highest, at_work)
                    if at_work == min(width, messages):
                        full.opened.set()
                await full.wait_async()
                for _ in range(5):  # whoever is one too many has had its chance
                    await asyncio.sleep(0)
                with lock:
                    at_work -= 1
                return message

        async with running() as system:
            ref = await system.spawn(on(lane, Wide))
            asked = [ref.ask(number, block=False) for number in range(messages)]
            assert [await future for future in asked] == list(range(messages))
            assert highest == min(width, messages)

    asyncio.run(play())


async def test_s19_with_concurrency_the_others_go_on_while_one_is_held(lane: str) -> None:
    gate = Gate()
    async with running() as system:
        ref = await system.spawn(on(lane, Held, concurrency=2), gate)
        held = ref.ask("hold", block=False)
        await gate.until_entered()
        assert [await system.ask(ref, number) for number in range(10)] == list(range(10))
        assert not held.done()
        gate.opened.set()
        assert await held == "hold"


# --- S19 pools ---


@given(before=st.lists(st.integers(0, 3), min_size=1, max_size=4), more=st.integers(0, 8), lane=lanes)
@settings(max_examples=30, deadline=None)
def test_s19_least_busy_always_gives_to_who_has_the_least_to_do(before: list[int], more: int, lane: str) -> None:
    async def play() -> None:
        gates = [Gate() for _ in before]
        async with running() as system:
            refs = [await system.spawn(on(lane, Held), gate) for gate in gates]
            for ref, gate, number in zip(refs, gates, before, strict=True):
                system.table.join("pool", ref._cell)
                ref.tell("hold")
                await gate.until_entered()
                for _ in range(number):
                    ref.tell("before")
            expected = list(before)
            for _ in range(more):
                system.tell("pool", "more")
                expected[expected.index(min(expected))] += 1
                assert sorted(len(ref._cell.mailbox) for ref in refs) == sorted(expected)
            for gate in gates:
                gate.opened.set()

    asyncio.run(play())


@given(instances=st.integers(1, 4), messages=st.integers(0, 12), lane=lanes)
@settings(max_examples=25, deadline=None)
def test_s19_round_robin_goes_round_in_order(instances: int, messages: int, lane: str) -> None:
    async def play() -> None:
        kind = workers(lane, instances, "round_robin", lambda self, _: self.name)
        async with swarm(kind) as system:
            answers = [await system.ask("worker", Work()) for _ in range(messages)]
            names = ["worker"] if instances == 1 else [f"worker-{number}" for number in range(1, instances + 1)]
            assert answers == [names[number % instances] for number in range(messages)]

    asyncio.run(play())


@given(keys=st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), max_size=30), instances=st.integers(1, 4), lane=lanes)
@settings(max_examples=30, deadline=None)
def test_s19_messages_with_one_key_go_to_one_instance_in_order(keys: list[str], instances: int, lane: str) -> None:
    async def play() -> None:
        seen: list[tuple[str, str, int]] = []
        kind = workers(
            lane,
            instances,
            "consistent_hash",
            lambda self, work: seen.append((work.key, self.name, work.number)),
            key="key",
        )
        async with swarm(kind) as system:
            for number, key in enumerate(keys):
                system.tell("worker", Work(key, number))
            assert await system.drain("worker")
        for key in set(keys):
            assert [number for k, _, number in seen if k == key] == [n for n, k in enumerate(keys) if k == key]
            assert len({name for k, name, _ in seen if k == key}) == 1

    asyncio.run(play())


async def test_s19_a_key_stays_with_its_instance_through_a_restart(lane: str) -> None:
    gate = Gate()
    seen: list[tuple[str, int]] = []

    class Keyed(Actor):
        restart = RestartPolicy(shortest=0.02, longest=0.02)

        async def on_receive(self, message: Any) -> Any:
            if message["number"] == 0:
                await gate.wait_async()
                raise ValueError("fails")
            seen.append((self.name, message["number"]))
            return self.name

    async with running() as system:
        for number in range(4):
            ref = await system.spawn(on(lane, Keyed), name=f"pool-{number}")
            system.table.join("pool", ref._cell, strategy="consistent_hash")
        system.tell("pool", {"key": "k", "number": 0})
        await gate.until_entered()
        failures = Recorder(system, ActorFailed)
        system.tell("pool", {"key": "k", "number": 1})
        gate.opened.set()
        await failures.first(ActorFailed)
        for number in (2, 3):  # while it restarts
            system.tell("pool", {"key": "k", "number": number})
        name = await system.ask("pool", {"key": "k", "number": 4})
        assert seen == [(name, number) for number in range(1, 5)]


async def test_s19_a_broadcast_tells_all_and_asks_all(lane: str) -> None:
    seen: list[str] = []
    kind = workers(lane, 3, "broadcast", lambda self, work: seen.append(self.name) or f"{self.name}:{work.number}")
    async with swarm(kind) as system:
        names = [f"worker-{number}" for number in (1, 2, 3)]
        assert await system.ask("worker", Work(number=7)) == [f"{name}:7" for name in names]
        system.tell("worker", Work())
        assert await system.drain("worker")
        assert Counter(seen) == Counter(names * 2)


async def test_s19_the_first_error_is_the_answer_of_a_broadcast_and_the_others_are_unharmed(lane: str) -> None:
    def answer(agent: Any, work: Work) -> str:
        if agent.name == "worker-2" and work.number:
            raise ValueError("no")
        return str(agent.name)

    async with swarm(workers(lane, 3, "broadcast", answer, restart=AT_ONCE)) as system:
        failures = Recorder(system, ActorFailed)
        with pytest.raises(ValueError, match="no"):
            await system.ask("worker", Work(number=1))
        assert await system.ask("worker", Work()) == ["worker-1", "worker-2", "worker-3"]
        assert [event.actor for event in failures.events] == ["worker-2"]


async def test_s19_cancelling_a_broadcast_cancels_all_of_it(lane: str) -> None:
    gates = [Gate() for _ in range(3)]

    class Middle(Actor):
        async def on_receive(self, message: Any) -> Any:
            return await self.ask("pool", message)

    async with running() as system:
        for number, gate in enumerate(gates):
            ref = await system.spawn(on(lane, Held), gate, name=f"pool-{number}")
            system.table.join("pool", ref._cell, strategy="broadcast")
        middle = await system.spawn(on(lane, Middle))
        for ask in (system.resolve("pool", None).ask, middle._cell.ask):
            handled = Recorder(system, MessageHandled)
            for gate in gates:
                gate.entered.clear()
            future = ask("hold")
            for gate in gates:
                await gate.until_entered()
            future.cancel()
            with pytest.raises(Cancelled):
                await future
            await handled.until(lambda events: sum(event.actor.startswith("pool-") for event in events) == 3)
            outcomes = {event.outcome for event in handled.events if event.actor.startswith("pool-")}
            assert outcomes == {ErrorCode.CANCELLED}


async def test_s19_a_pool_goes_on_with_those_that_are_left_and_says_when_none_is(lane: str) -> None:
    async with swarm(workers(lane, 3, "round_robin", lambda self, _: self.name)) as system:
        await system.stop("worker-2")
        assert {await system.ask("worker", Work()) for _ in range(4)} == {"worker-1", "worker-3"}
        assert await system.drain("worker-1")
        assert {await system.ask("worker", Work()) for _ in range(2)} == {"worker-3"}
        assert await system.stop("worker")
        with pytest.raises(AgentUnavailable):
            await system.ask("worker", Work())


async def test_s19_a_pool_that_drains_handles_what_all_of_it_has(lane: str) -> None:
    seen: list[int] = []
    async with swarm(workers(lane, 3, "least_busy", lambda _, work: seen.append(work.number))) as system:
        for number in range(60):
            system.tell("worker", Work(number=number))
        assert await system.drain("worker")
        assert sorted(seen) == list(range(60))
        with pytest.raises(AgentUnavailable):
            system.tell("worker", Work())


# --- topics ---


class Listener(Log):
    """Subscribes to patterns when it starts."""

    def __init__(self, *patterns: str) -> None:
        super().__init__()
        self.patterns = patterns

    def on_start(self) -> None:
        for pattern in self.patterns:
            self.subscribe(pattern)

    def on_receive(self, message: Any) -> Any:
        if isinstance(message, tuple):
            return self.unsubscribe(message[1])
        return super().on_receive(message)


class Speaker(Actor):
    def on_receive(self, message: Any) -> Any:
        return self.publish(*message)


def matches(pattern: str, topic: str) -> bool:
    """The rule, word by word."""
    words, wanted = topic.split("."), pattern.split(".")
    if wanted[-1] == ">":
        return len(words) >= len(wanted) and all(w in ("*", t) for w, t in zip(wanted[:-1], words, strict=False))
    return len(words) == len(wanted) and all(w in ("*", t) for w, t in zip(wanted, words, strict=True))


word = st.sampled_from(["a", "b"])
topics = st.lists(word, min_size=1, max_size=3).map(".".join)
patterns = st.tuples(st.lists(word | st.just("*"), max_size=3), st.booleans()).map(
    lambda parts: ".".join([*parts[0], *([">"] if parts[1] or not parts[0] else [])])
)


@given(
    subscribed=st.lists(st.lists(patterns, max_size=3), min_size=1, max_size=3),
    published=st.lists(topics, max_size=6),
    lane=lanes,
)
@settings(max_examples=40, deadline=None)
def test_s16_a_publication_reaches_each_subscriber_whose_pattern_matches_exactly_once(
    subscribed: list[list[str]], published: list[str], lane: str
) -> None:
    async def play() -> None:
        async with running() as system:
            listeners = [await system.spawn(on(lane, Listener), *several) for several in subscribed]
            speaker = await system.spawn(on(lane, Speaker))
            heard = [
                [topic for topic in published if any(matches(pattern, topic) for pattern in several)]
                for several in subscribed
            ]
            for topic in published:
                reached = sum(any(matches(pattern, topic) for pattern in several) for several in subscribed)
                assert await system.ask(speaker, (topic, topic)) == reached
            for listener, expected in zip(listeners, heard, strict=True):
                assert await system.ask(listener, "read") == expected

    asyncio.run(play())


async def test_s6_a_restarted_subscriber_hears_once_and_one_that_unsubscribed_or_stopped_nothing(lane: str) -> None:
    async with running() as system:
        letters = Recorder(system, DeadLetter)
        speaker = await system.spawn(on(lane, Speaker))
        restarts, leaves, stops = [await system.spawn(on(lane, Listener), "news.*") for _ in range(3)]
        restarts.tell(ValueError("fails"))
        assert await system.ask(restarts, "alive") == "alive"
        assert await system.ask(leaves, ("unsubscribe", "news.*")) is True
        assert await system.ask(leaves, ("unsubscribe", "news.*")) is False
        await system.stop(stops)
        assert await system.ask(speaker, ("news.now", "heard")) == 1
        assert await system.ask(restarts, "read") == ["alive", "heard"]
        assert await system.ask(leaves, "read") == []
        assert letters.events == []


async def test_s13_a_full_subscriber_is_skipped_with_a_dead_letter_and_the_others_hear(lane: str) -> None:
    gate = Gate()

    class Full(Held):
        mailbox = 1

        def on_start(self) -> None:
            self.subscribe("news")

    async with running() as system:
        letters = Recorder(system, DeadLetter)
        full = await system.spawn(on(lane, Full), gate, name="full")
        other = await system.spawn(on(lane, Listener), "news")
        speaker = await system.spawn(on(lane, Speaker), name="speaker")
        full.tell("hold")
        await gate.until_entered()
        assert await system.ask(speaker, ("news", 1)) == 2
        assert await system.ask(speaker, ("news", 2)) == 1
        assert await system.ask(other, "read") == [1, 2]
        assert [(each.to, each.sender, each.message, each.reason) for each in letters.events] == [
            ("full", "speaker", 2, "overflow")
        ]
        gate.opened.set()


# --- observers ---


async def test_s2_an_actor_may_collect_the_dead_letters_until_it_stops(lane: str) -> None:
    class Collector(Log):
        def on_start(self) -> None:
            self.observe(DeadLetter)

    gate = Gate()
    async with running() as system:
        letters = Recorder(system, DeadLetter)
        collector = await system.spawn(on(lane, Collector))
        for number in range(2):
            ref = await system.spawn(on(lane, Held), gate, name=f"held-{number}")
            gate.entered.clear()
            ref.tell("hold")
            await gate.until_entered()
            ref.tell("buried")
            stopping = asyncio.create_task(system.stop(ref))
            await asyncio.sleep(0)
            gate.opened.set()
            await stopping
            gate.opened.clear()
            if number == 0:
                assert await system.ask(collector, "read") == letters.events
                await system.stop(collector)
        assert [(each.to, each.message) for each in letters.events] == [("held-0", "buried"), ("held-1", "buried")]
        assert DeadLetter in system.bus  # the recorder; the collector has left
        assert len(system.bus[DeadLetter]) == 1


async def test_s6_an_observer_that_was_restarted_is_told_once(lane: str) -> None:
    class Collector(Log):
        def on_start(self) -> None:
            self.observe(ActorStopped)

    async with running() as system:
        collector = await system.spawn(on(lane, Collector))
        collector.tell(ValueError("fails"))
        assert await system.ask(collector, "alive") == "alive"
        await system.stop(await system.spawn(on(lane, Log), name="other"))
        seen = await system.ask(collector, "read")
        assert [each.actor for each in seen if each != "alive"] == ["other"]


# --- budgets ---


class Spending(Actor):
    """Does what it is told to: a plan of steps, each by name and argument."""

    async def on_receive(self, plan: Any) -> Any:
        done = 0
        for step, argument in plan:
            if step == "ask":
                done += await self.ask(*argument)
            elif step == "tell":
                self.tell(*argument)
            elif step == "spawn":
                await self.spawn(argument)
            else:
                charge(**{step: argument})
            done += 1
        return done


@asynccontextmanager
async def spenders(lane: str) -> AsyncIterator[ActorSystem]:
    """Three on the lane and one elsewhere."""
    async with running() as system:
        for name in "abc":
            await system.spawn(on(lane, Spending), name=name)
        await system.spawn(on("loop" if lane == "thread" else "thread", Spending), name="x")
        await system.spawn(on(lane, Log), name="log")
        yield system


@pytest.mark.parametrize(
    ("plan", "name", "needed"),
    [
        ([("ask", ("b", [("ask", ("x", []))]))], "messages", 3),
        ([("tell", ("log", 1)), ("tell", ("log", 2))], "messages", 3),
        ([("tokens", 5), ("ask", ("x", [("tokens", 5)]))], "tokens", 10),
        ([("cost", 0.1), ("ask", ("b", [("cost", 0.2)]))], "cost", 0.3),
        ([("tool_calls", 1), ("ask", ("x", [("tool_calls", 2)]))], "tool_calls", 3),
        ([("spawn", Log), ("ask", ("x", [("spawn", Log)]))], "spawns", 2),
        ([("ask", ("b", [("ask", ("x", [("ask", ("c", []))]))]))], "depth", 3),
    ],
)
async def test_s18_a_request_may_spend_exactly_its_budget_and_not_the_least_more(
    lane: str, plan: Any, name: str, needed: float
) -> None:
    less = needed - 0.01 if name == "cost" else needed - 1
    async with spenders(lane) as system:
        failures = Recorder(system, ActorFailed)
        assert await system.ask("a", plan, budget=Budget(**{name: needed})) > 0
        with pytest.raises(QuotaExceeded) as caught:
            await system.ask("a", plan, budget=Budget(**{name: less}))
        assert caught.value.error_code == ErrorCode.QUOTA_EXCEEDED
        assert await system.ask("a", plan) > 0  # the next request has no budget
        assert failures.events == []


async def test_s18_crossing_a_budget_ends_the_request_and_cancels_everything_it_caused(lane: str) -> None:
    gate = Gate()
    ended: list[str] = []

    class Waiting(Actor):
        async def on_receive(self, message: Any) -> Any:
            try:
                await gate.wait_async()
            except asyncio.CancelledError:
                ended.append(self.name)
                raise

    class Root(Actor):
        async def on_receive(self, message: Any) -> Any:
            waiting = self.ask("waiting", "work")
            await gate.entered.reached()
            try:
                await self.ask("x", [("tokens", 11)])
            except GramiError as error:
                ended.append(f"root: {error.error_code}")
            return await waiting

    async with spenders(lane) as system:
        handled = Recorder(system, MessageHandled)
        failures = Recorder(system, ActorFailed)
        await system.spawn(on(lane, Waiting), name="waiting")
        root = await system.spawn(on(lane, Root), name="root")
        with pytest.raises(QuotaExceeded, match="10 tokens"):
            await system.ask(root, "work", budget=Budget(tokens=10))
        await handled.until(lambda events: {"waiting", "root", "x"} <= {event.actor for event in events})
        assert "waiting" in ended
        assert failures.events == []
        gate.opened.set()


async def test_s18_a_budget_within_a_budget_draws_from_both(lane: str) -> None:
    class Middle(Actor):
        async def on_receive(self, message: Any) -> Any:
            answers = []
            for tokens in message:
                try:
                    answers.append(await self.ask("x", [("tokens", tokens)], budget=Budget(tokens=5)))
                except QuotaExceeded:
                    answers.append("inner")
            return answers

    async with spenders(lane) as system:
        middle = await system.spawn(on(lane, Middle))
        assert await system.ask(middle, [5, 6, 5], budget=Budget(tokens=16)) == [1, "inner", 1]
        with pytest.raises(QuotaExceeded, match="15 tokens"):
            await system.ask(middle, [5, 6, 5], budget=Budget(tokens=15))


async def test_s18_the_depth_of_a_budget_counts_from_where_it_was_given(lane: str) -> None:
    class Middle(Actor):
        async def on_receive(self, message: Any) -> Any:
            return await self.ask("a", [("ask", ("b", []))], budget=Budget(depth=1))

    async with spenders(lane) as system:
        assert await system.ask("a", [("ask", ("b", []))], budget=Budget(depth=1)) == 1
        middle = await system.spawn(on(lane, Middle))
        assert await system.ask(middle, "work") == 1


async def test_s18_all_of_a_broadcast_share_one_budget(lane: str) -> None:
    def answer(_: Any, work: Work) -> int:
        charge(tokens=work.number)
        return work.number

    async with swarm(workers(lane, 3, "broadcast", answer)) as system:
        assert await system.ask("worker", Work(number=2), budget=Budget(tokens=6)) == [2, 2, 2]
        with pytest.raises(QuotaExceeded):
            await system.ask("worker", Work(number=2), budget=Budget(tokens=5))


async def test_s18_what_costs_too_much_is_not_sent_not_spawned_and_not_called(lane: str) -> None:
    async with spenders(lane) as system:
        started = len(system.tree())
        for plan, budget in (
            ([("tell", ("log", "too much"))], Budget(messages=1)),
            ([("ask", ("log", "too much"))], Budget(depth=0)),
            ([("spawn", Log)], Budget(spawns=0)),
        ):
            with pytest.raises(QuotaExceeded):
                await system.ask("a", plan, budget=budget)
        assert await system.ask("log", "read") == []
        assert len(system.tree()) == started
        assert all(not info.children for info in system.tree())


async def test_s18_tools_and_agents_draw_from_the_budget_of_the_request(lane: str) -> None:
    @tool(lane=lane)
    def count(amount: int) -> int:
        charge(tokens=amount)
        return amount

    class Caller(Agent, lane=lane):
        @handles(Work)
        async def work(self, work: Work) -> int:
            return sum([await self.call(count, amount=10) for _ in range(work.number)])

    async with swarm(Caller, tools=(count,)) as system:
        assert await system.ask("caller", Work(number=3), budget=Budget(tool_calls=3, tokens=30)) == 30
        for budget in (Budget(tool_calls=2), Budget(tokens=29), Budget(messages=3)):
            with pytest.raises(QuotaExceeded):
                await system.ask("caller", Work(number=3), budget=budget)


# --- rate gates ---


class Upstream:
    """A service that answers once a while has passed."""

    def __init__(self, refusals: int, retry_after: float = 0.02) -> None:
        self.refusals = refusals
        self.retry_after = retry_after
        self.calls = 0
        self.lock = threading.Lock()
        self.called = Signal()

    def call(self, number: int) -> int:
        with self.lock:
            self.calls += 1
            self.called.set()
            if self.refusals > 0:
                self.refusals -= 1
                raise RateLimited("too many requests", retry_after=self.retry_after)
        return number


def calls(service: Upstream, lane: str, name: str = "fetch", **options: Any) -> Tool[..., Any]:
    def fetch(number: int) -> int:
        return service.call(number)

    return Tool(fetch, name=name, lane=lane, **{"upstream": "api", **options})


async def test_s3_every_caller_of_an_upstream_waits_until_it_takes_calls_again(lane: str) -> None:
    service = Upstream(refusals=2)
    async with swarm(tools=(calls(service, lane),)) as system:
        asked = [asyncio.create_task(system.ask("tool:fetch", ToolCall({"number": n}))) for n in range(5)]
        assert await asyncio.gather(*asked) == list(range(5))
        assert service.calls == 7
        assert system.gate("api").open


async def test_s3_tools_that_share_an_upstream_share_its_gate_and_others_do_not(lane: str) -> None:
    service, free = Upstream(refusals=1, retry_after=60), Upstream(refusals=0)
    tools = (calls(service, lane, "one"), calls(free, lane, "two"), calls(free, lane, "other", upstream="elsewhere"))
    async with swarm(tools=tools) as system:
        for name in ("one", "two"):
            with pytest.raises(UpstreamError, match="api asks for patience") as caught:
                await system.ask(f"tool:{name}", ToolCall({"number": 1}), timeout=5)
            assert caught.value.error_code == ErrorCode.UPSTREAM_RATE_LIMITED
            assert 50_000 < (caught.value.retry_after_ms or 0) <= 60_000
        assert (service.calls, free.calls) == (1, 0)
        assert await system.ask("tool:other", ToolCall({"number": 2}), timeout=5) == 2


async def test_s3_who_waits_for_an_upstream_can_be_cancelled(lane: str) -> None:
    service = Upstream(refusals=100, retry_after=20)
    async with swarm(tools=(calls(service, lane, concurrency=2),)) as system:
        asked = [system.resolve("tool:fetch", None).ask(ToolCall({"number": n})) for n in range(2)]
        await service.called.reached()
        for future in asked:
            future.cancel()
            with pytest.raises(Cancelled):
                await future
        assert await system.drain("tool:fetch", timeout=2)  # nobody waits there any more
        assert 1 <= service.calls <= 2


async def test_s3_a_service_that_takes_calls_again_at_once_is_called_again_at_once(lane: str) -> None:
    service = Upstream(refusals=1, retry_after=0)
    async with swarm(tools=(calls(service, lane),)) as system:
        assert await system.ask("tool:fetch", ToolCall({"number": 1}), timeout=0.5) == 1


async def test_s17_a_blocking_tool_with_an_upstream_may_block_as_any_other() -> None:
    async def inner() -> str:
        return "through"

    @tool(lane="thread")
    def plain() -> str:
        return asyncio.run(inner())

    @tool(lane="thread", upstream="api")
    def gated() -> str:
        return asyncio.run(inner())

    async with swarm(tools=(plain, gated)) as system:
        assert await system.ask("tool:plain", ToolCall()) == "through"
        assert await system.ask("tool:gated", ToolCall()) == "through"


async def test_s4_a_tool_without_an_upstream_answers_that_it_is_limited(lane: str) -> None:
    service = Upstream(refusals=1)
    async with swarm(tools=(calls(service, lane, upstream=None),)) as system:
        failures = Recorder(system, ActorFailed)
        with pytest.raises(RateLimited) as caught:
            await system.ask("tool:fetch", ToolCall({"number": 1}))
        assert caught.value.retry_after_ms == 20
        assert await system.ask("tool:fetch", ToolCall({"number": 2})) == 2
        assert failures.events == []


async def test_s13_all_of_a_broadcast_that_have_room_get_what_one_refuses(lane: str) -> None:
    gate = Gate()
    async with running() as system:
        full = await system.spawn(on(lane, Held, mailbox=1), gate, name="pool-0")
        other = await system.spawn(on(lane, Log, restart=RestartPolicy(intensity=0)), name="pool-1")
        for ref in (full, other):
            system.table.join("pool", ref._cell, strategy="broadcast")
        full.tell("hold")
        await gate.until_entered()
        full.tell("fills it")
        with pytest.raises(MailboxFull, match="pool-0"):
            system.tell("pool", "for all")
        with pytest.raises(MailboxFull, match="pool-0"):
            await system.ask("pool", "asked of all")
        assert await system.ask(other, "read") == ["for all", "asked of all"]
        gate.opened.set()
