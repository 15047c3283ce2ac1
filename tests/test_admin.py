"""``admin.*``: what a running server tells of itself, within bounds, and what it does when it is told to."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grami_actors import Actor
from grami_actors.errors import ErrorCode, GramiError, ProtocolError
from grami_actors.gateway.admin import (
    MOST_KEYS,
    OTHERS,
    SLOW_TURNS,
    WINDOW,
    Actors,
    Admin,
    ConnectionInfo,
    Connections,
    ServerStats,
    Stats,
    percentile,
)
from grami_actors.profiling import Report
from grami_actors.system import ActorInfo, ActorSystem
from grami_actors.telemetry import (
    Bus,
    DeadLetter,
    LimitHit,
    LoopLagged,
    MessageHandled,
    MessageSent,
    RequestFinished,
    SlowTurn,
    ToolCalled,
)
from tests.conftest import Gate, running, turns_until


def connection(number: int, **given: Any) -> ConnectionInfo:
    fields = {
        "id": f"connection-{number}", "peer": f"192.0.2.1:{number}", "principal": "anonymous", "age_ms": 1000,
        "inflight": 0, "outbox_bytes": 0, "received": 0, "sent": 0, "subscriptions": 0,
    }  # fmt: skip
    return ConnectionInfo(**(fields | given))


class Desk:
    """A house with connections of which it keeps a list."""

    def __init__(self, system: ActorSystem) -> None:
        self.system = system
        self.open: dict[str, ConnectionInfo] = {}
        self.closed: list[tuple[str, int, str]] = []
        self.drains = 0

    def add(self, *connections: ConnectionInfo) -> None:
        self.open |= {each.id: each for each in connections}

    def connections(self) -> Iterable[ConnectionInfo]:
        yield from self.open.values()

    def disconnect(self, connection_id: str, code: int, reason: str) -> bool:
        self.closed.append((connection_id, code, reason))
        return self.open.pop(connection_id, None) is not None

    def begin_drain(self) -> None:
        self.drains += 1


@asynccontextmanager
async def desk() -> AsyncIterator[tuple[Desk, Admin]]:
    async with running() as system:
        house = Desk(system)
        yield house, Admin(house)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def finished(kind: str = "greet", outcome: str = "ok", seconds: float = 0.1) -> RequestFinished:
    return RequestFinished("connection-1", kind, outcome, seconds)


# --- connections ---


async def test_connections_are_told_busiest_first_with_the_number_of_all() -> None:
    async with desk() as (house, admin):
        house.add(connection(1), connection(2, inflight=3), connection(3, inflight=1, outbox_bytes=9))
        house.add(connection(4, inflight=1), connection(5, received=8))
        told: Connections = await admin.answer("admin.connections", {"limit": 4})
    assert [each.id for each in told.connections] == ["connection-2", "connection-3", "connection-4", "connection-5"]
    assert told.total == 5


async def test_a_hundred_connections_are_told_of_where_no_limit_is_named() -> None:
    async with desk() as (house, admin):
        house.add(*map(connection, range(150)))
        told = await admin.answer("admin.connections", {})
    assert (len(told.connections), told.total) == (100, 150)


async def test_a_connection_is_closed_with_a_code_and_a_reason() -> None:
    async with desk() as (house, admin):
        house.add(connection(1), connection(2))
        assert await admin.answer("admin.disconnect", {"connection_id": "connection-1"}) == {"disconnected": True}
        again = {"connection_id": "connection-1", "code": 4429, "reason": "too much"}
        assert await admin.answer("admin.disconnect", again) == {"disconnected": False}
    assert house.closed == [
        ("connection-1", 4403, "disconnected by an administrator"),
        ("connection-1", 4429, "too much"),
    ]
    assert list(house.open) == ["connection-2"]


async def test_a_drain_is_begun() -> None:
    async with desk() as (house, admin):
        assert await admin.answer("admin.drain", {}) == {"draining": True}
    assert house.drains == 1


# --- what cannot be asked ---


@pytest.mark.parametrize(
    ("kind", "fields", "param"),
    [
        ("admin.connections", {"limit": 0}, "$.limit"),
        ("admin.connections", {"limit": "all"}, "$.limit"),
        ("admin.actors", {"limit": 10**9}, "$.limit"),
        ("admin.profile", {"seconds": 301}, "$.seconds"),
        ("admin.profile", {"seconds": 0}, "$.seconds"),
        ("admin.profile", {"seconds": "long"}, "$.seconds"),
        ("admin.profile", {"seconds": math.nan}, "$.seconds"),
        ("admin.disconnect", {}, "$.connection_id"),
        ("admin.disconnect", {"connection_id": 5}, "$.connection_id"),
        ("admin.disconnect", {"connection_id": "c", "code": 1000}, "$.code"),
        ("admin.disconnect", {"connection_id": "c", "code": 5000}, "$.code"),
        ("admin.disconnect", {"connection_id": "c", "reason": "x" * 124}, "$.reason"),
        ("admin.disconnect", {"connection_id": "c", "reason": "ä" * 62}, "$.reason"),
    ],
)
async def test_a_wrong_field_is_refused_with_its_path_and_nothing_happens(
    kind: str, fields: dict[str, Any], param: str
) -> None:
    async with desk() as (house, admin):
        house.add(connection(1))
        with pytest.raises(ProtocolError) as refused:
            await admin.answer(kind, fields)
        assert house.system.bus.clocked is None
    assert (refused.value.error_code, refused.value.param) == (ErrorCode.VALIDATION_FAILED, param)
    assert house.closed == []


async def test_a_kind_that_there_is_none_of_is_refused_with_those_that_there_are() -> None:
    async with desk() as (_, admin):
        with pytest.raises(ProtocolError, match=r"admin\.stats") as refused:
            await admin.answer("admin.everything", {})
    assert refused.value.error_code == ErrorCode.UNKNOWN_TYPE


async def test_fields_that_it_does_not_know_are_ignored() -> None:
    async with desk() as (_, admin):
        assert (await admin.answer("admin.connections", {"type": "admin.connections", "id": 1, "more": []})).total == 0


# --- actors ---


class Parent(Actor):
    async def on_start(self) -> None:
        for number in range(3):
            await self.spawn(Child, name=f"child-{number}")


class Child(Actor):
    mailbox = 10

    async def on_receive(self, gate: Gate) -> None:
        await gate.wait_async()


async def test_the_tree_is_told_with_mailboxes_most_loaded_first_and_without_connections() -> None:
    async with desk() as (house, admin):
        system = house.system
        await system.spawn(Child, name="alone")
        await system.spawn(Parent, name="team")
        await system.spawn(Child, name="connection-1")
        gate = Gate()
        for _ in range(3):
            system.tell("team/child-1", gate)
        await gate.until_entered()
        told: Actors = await admin.answer("admin.actors", {})
        gate.opened.set()
    assert [each.name for each in told.actors] == ["team", "alone", "router"]
    assert [each.name for each in told.actors[0].children] == ["team/child-1", "team/child-0", "team/child-2"]
    busy = told.actors[0].children[0]
    assert (busy.kind, busy.lane, busy.state, busy.restarts) == ("Child", "loop", "running", 0)
    assert (busy.mailbox.depth, busy.mailbox.capacity) == (2, 10)
    assert told.total == 6


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 6, 50])
async def test_no_more_actors_are_told_of_than_are_asked_for(limit: int) -> None:
    def count(actors: tuple[ActorInfo, ...]) -> int:
        return sum(1 + count(each.children) for each in actors)

    async with desk() as (house, admin):
        await house.system.spawn(Parent, name="team")
        await house.system.spawn(Child, name="alone")
        told = await admin.answer("admin.actors", {"limit": limit})
    assert count(told.actors) == min(limit, 6)
    assert told.total == 6


# --- statistics ---


async def test_all_of_the_statistics_survive_the_wire() -> None:
    async with desk() as (house, admin):
        house.add(connection(1))
        bus = house.system.bus
        for event in (
            finished(),
            finished(outcome="CANCELLED"),
            ToolCalled("add", "writer", 0.2, 0.1, "ok"),
            LoopLagged(0.01),
            SlowTurn("writer", "here.py:1", 0.3),
            DeadLetter("writer", "", 1, "stopped"),
            LimitHit("max_inflight", "ann"),
        ):
            bus.publish(event)
        told = msgspec.json.decode(msgspec.json.encode(await admin.answer("admin.stats", {})), type=ServerStats)
    assert (told.requests["greet"].count, told.requests["greet"].errors, told.requests["greet"].p50_ms) == (2, 1, 100)
    assert (told.tools["add"].calls, told.tools["add"].p99_ms, told.tools["add"].queue_p95_ms) == (1, 100, 200)
    assert told.loop_lag.max_ms == 10
    assert (told.slow_turns[0].actor, told.slow_turns[0].where, told.slow_turns[0].ms) == ("writer", "here.py:1", 300)
    assert (told.dead_letters, told.limits, told.connections) == ({"stopped": 1}, {"max_inflight": 1}, 1)


async def test_statistics_do_not_have_messages_timed_and_end_when_they_are_closed() -> None:
    async with desk() as (house, admin):
        assert not house.system.bus.timed
        assert MessageSent not in house.system.bus
        assert MessageHandled not in house.system.bus
        admin.close()
        assert RequestFinished not in house.system.bus


def test_percentiles_are_of_the_last_thousand_while_all_are_counted() -> None:
    bus = Bus()
    stats = Stats(bus)
    for _ in range(WINDOW):
        bus.publish(finished(seconds=9.0))
    for number in range(WINDOW):
        bus.publish(finished(seconds=(number + 1) / 1000))
    told = stats.snapshot(0).requests["greet"]
    assert (told.count, told.p50_ms, told.p95_ms, told.p99_ms) == (2 * WINDOW, 500, 950, 990)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1.0))
def test_a_percentile_is_always_the_smallest_value_that_so_many_do_not_exceed(values: list[float], part: float) -> None:
    found = percentile(sorted(values), part)
    assert found in values
    assert sum(value <= found for value in values) >= part * len(values)
    smaller = [value for value in values if value < found]
    assert not smaller or sum(value <= max(smaller) for value in values) < part * len(values)


def test_the_percentile_of_nothing_is_zero() -> None:
    assert percentile([], 0.5) == 0


def test_names_that_clients_make_up_are_counted_within_a_bound() -> None:
    bus = Bus()
    stats = Stats(bus)
    for number in range(MOST_KEYS + 30):
        bus.publish(finished(f"made-up-{number}"))
        bus.publish(LimitHit(f"limit-{number}", "ann"))
        bus.publish(DeadLetter("writer", "", 1, f"reason-{number}"))
        bus.publish(ToolCalled(f"tool-{number}", "", 0.0, 0.0, "ok"))
    bus.publish(finished("made-up-1"))
    told = stats.snapshot(0)
    assert told.requests[OTHERS].count == told.tools[OTHERS].calls == 30
    assert told.limits[OTHERS] == told.dead_letters[OTHERS] == 30
    assert told.requests["made-up-1"].count == 2
    assert {len(each) for each in (told.requests, told.tools, told.limits, told.dead_letters)} == {MOST_KEYS + 1}


def test_the_lag_of_the_loop_is_that_of_the_last_minute() -> None:
    bus, clock = Bus(), Clock()
    stats = Stats(bus, clock)
    bus.publish(LoopLagged(5.0))
    clock.now += 30
    bus.publish(LoopLagged(0.002))
    assert stats.snapshot(0).loop_lag.max_ms == 5000
    clock.now += 31
    assert stats.snapshot(0).loop_lag.max_ms == 2
    clock.now += 60
    assert stats.snapshot(0).loop_lag.max_ms == 0


def test_the_last_slow_turns_are_told_newest_first_with_their_age() -> None:
    bus, clock = Bus(), Clock()
    stats = Stats(bus, clock)
    for number in range(SLOW_TURNS + 5):
        bus.publish(SlowTurn(f"actor-{number}", "here.py:1", 0.2))
        clock.now += 1
    told = stats.snapshot(0).slow_turns
    assert [each.actor for each in told] == [f"actor-{number}" for number in range(SLOW_TURNS + 4, 4, -1)]
    assert [each.age_ms for each in told][:2] == [1000, 2000]


def test_the_rate_of_requests_is_that_of_the_last_ten_seconds() -> None:
    bus, clock = Bus(), Clock()
    stats = Stats(bus, clock)
    assert stats.snapshot(0).requests_per_second == 0
    clock.now += 2
    for _ in range(40):
        bus.publish(finished())
    assert stats.snapshot(0).requests_per_second == 20, "the server is two seconds old"
    clock.now += 5
    assert stats.snapshot(0).requests_per_second == pytest.approx(40 / 7, abs=0.1)
    clock.now += 6
    assert stats.snapshot(0).requests_per_second == 0
    for _ in range(5 * WINDOW):
        clock.now += 0.001
        bus.publish(finished())
    assert stats.snapshot(0).requests_per_second == pytest.approx(1000, rel=0.01)
    assert stats.snapshot(0).uptime_ms == 18_000


# --- profiles ---


async def test_a_profile_is_taken_while_the_server_works() -> None:
    class Echo(Actor):
        def on_receive(self, message: str) -> str:
            return message

    async with desk() as (house, admin):
        await house.system.spawn(Echo, name="echo")
        asked = asyncio.ensure_future(admin.answer("admin.profile", {"seconds": 0.1}))
        await turns_until(lambda: house.system.bus.clocked)
        await house.system.ask("echo", "hello")
        report: Report = await asked
        assert house.system.bus.clocked is None
    assert report.seconds >= 0.1
    assert [(each.name, each.calls) for each in report.handlers] == [("echo.str", 1)]


async def test_a_second_profile_at_the_same_time_is_refused_and_one_that_is_given_up_ends() -> None:
    async with desk() as (house, admin):
        asked = asyncio.ensure_future(admin.answer("admin.profile", {"seconds": 300}))
        await turns_until(lambda: house.system.bus.clocked)
        with pytest.raises(GramiError) as refused:
            await admin.answer("admin.profile", {})
        assert refused.value.error_code == ErrorCode.RESOURCE_EXHAUSTED
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert house.system.bus.clocked is None
        assert not house.system.bus.timed
