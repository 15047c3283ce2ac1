"""The routing table and the router: names, pools, types and topics."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grami_actors.actor import Actor
from grami_actors.cell import Cell
from grami_actors.errors import AgentUnavailable, DestinationNotFound, NameTaken, PermissionDenied
from grami_actors.future import Future
from grami_actors.lanes.loop import LoopLane
from grami_actors.messages import Envelope, Message, Scope, ToolCall
from grami_actors.permissions import Permissions, Rule
from grami_actors.principals import EVERYTHING, Principal
from grami_actors.router import Forward, RoutingTable
from grami_actors.spec import Spec
from grami_actors.system import ActorSystem
from tests.conftest import running


class Draft(Message):
    number: int = 0


class Review(Message):
    pass


class Keeper(Actor):
    """Keeps what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def on_receive(self, message: Any) -> Any:
        self.seen.append(message)
        return self.name, list(self.seen)


@contextmanager
def cells(count: int) -> Iterator[list[Cell]]:
    """Cells of actors that run, on a loop that does not: what they are sent stays in their mailboxes."""
    loop, system = asyncio.new_event_loop(), ActorSystem()
    try:
        made = [Cell(system, LoopLane(loop, system.now), Spec(Keeper), f"w-{n}", n, None) for n in range(count)]
        for cell in made:
            cell.state = "running"
        yield made
    finally:
        loop.close()


# --- pools ---


def test_the_name_of_a_pool_answers_also_when_all_its_members_are_gone() -> None:
    table = RoutingTable()
    table.types[Draft] = "pool"
    with cells(2) as members:
        for cell in members:
            table.join("pool", cell)
        table.remove(members[0])
        assert [table.find("pool", None) for _ in range(3)] == [members[1]] * 3
        table.remove(members[1])
        for to, message in (("pool", None), ("", Draft())):
            with pytest.raises(AgentUnavailable, match="pool is not running"):
                table.find(to, message)
        table.join("pool", members[0])
        assert table.find("", Draft()) is members[0]


def test_a_pool_may_be_read_by_any_thread_while_it_changes() -> None:
    table, failures, done = RoutingTable(), [], threading.Event()
    with cells(5) as members:
        table.join("pool", members[0])

        def read() -> None:
            while not done.is_set():
                try:
                    table.find("pool", None)
                except Exception as error:  # noqa: BLE001 - told to the test's own thread
                    failures.append(error)

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        for _ in range(300):
            for cell in members[1:]:
                table.join("pool", cell)
            for cell in members[1:]:
                table.remove(cell)
        done.set()
        for reader in readers:
            reader.join()
    assert failures == []


# --- names, types, topics ---


def test_a_name_has_one_holder_and_is_free_when_that_one_is_gone() -> None:
    table = RoutingTable()
    with cells(2) as (first, second):
        second.name = first.name
        table.claim("w-0", first)
        table.claim("w-0", first)  # it has it already
        with pytest.raises(NameTaken, match="'w-0' is taken"):
            table.claim("w-0", second)
        table.remove(second)
        assert table.find("w-0", None) is first
        table.remove(first)
        table.claim("w-0", second)
        table.remove(first)
        assert table.find("w-0", None) is second


def test_a_message_goes_by_its_name_and_without_one_by_its_type() -> None:
    table = RoutingTable()
    with cells(2) as (first, second):
        table.claim("w-0", first)
        table.claim("w-1", second)
        table.types[Draft] = "w-0"
        assert table.find("", Draft()) is first
        assert table.find("w-1", Draft()) is second
        with pytest.raises(DestinationNotFound, match="no agent handles Review"):
            table.find("", Review())
        for nobody in ("writer", "W-0", "w-0 "):
            with pytest.raises(DestinationNotFound, match="no agent or tool is named"):
                table.find(nobody, Draft())


@given(st.lists(st.tuples(st.sampled_from(["join", "leave"]), st.integers(0, 3), st.sampled_from("xy")), max_size=20))
def test_a_topic_has_each_subscriber_once_in_order_until_it_is_removed(steps: list[tuple[str, int, str]]) -> None:
    table = RoutingTable()
    expected: dict[str, list[Cell]] = {"x": [], "y": []}
    with cells(4) as members:
        for step, number, topic in steps:
            cell = members[number]
            if step == "join":
                table.topics.subscribe(topic, cell)
                expected[topic] += [cell] * (cell not in expected[topic])
            else:
                table.remove(cell)
                expected = {name: [each for each in found if each is not cell] for name, found in expected.items()}
            assert {name: list(table.topics.match(name)) for name in expected} == expected


def test_what_is_removed_leaves_nothing_behind() -> None:
    table = RoutingTable()
    with cells(1) as (cell,):
        table.claim(cell.name, cell)
        table.topics.subscribe("a.topic.of.one.conversation", cell)
        table.topics.subscribe("a.topic.*", cell)
        table.join("pool", cell)
        table.remove(cell)
        assert (table.cells, table.pools["pool"].members) == ({}, ())
        assert (table.topics._subscribed, table.topics._patterns, table.topics._root.children) == ({}, {}, {})


def test_a_name_that_is_free_again_is_not_public_for_its_next_holder() -> None:
    table = RoutingTable()
    with cells(1) as (cell,):
        table.claim(cell.name, cell)
        table.join("pool", cell)
        table.remove(cell)
        assert table.public == {"pool"}


# --- the router ---


def forward(system: ActorSystem, message: Any, to: str = "") -> Future[Any]:
    answer: Future[Any] = Future()
    system.router.tell(Forward(Envelope(message, answer, "connection-1"), to))
    return answer


async def test_the_router_hands_on_and_the_answer_goes_straight_back() -> None:
    async with running() as system:
        ref = await system.spawn(Keeper, name="keeper")
        system.table.join("pool", ref._cell)
        system.table.types[Draft] = "pool"
        for to in ("", "pool", "keeper"):
            assert (await forward(system, Draft(1), to))[0] == "keeper"


async def test_what_the_router_cannot_hand_on_is_answered_with_the_reason() -> None:
    async with running() as system:
        ref = await system.spawn(Keeper, name="keeper")
        system.table.join("pool", ref._cell)
        with pytest.raises(DestinationNotFound):
            await forward(system, Draft(), "nobody")
        with pytest.raises(DestinationNotFound):
            await forward(system, Review())
        system.router.tell(Forward(Envelope(Draft(), None, ""), "nobody"))  # a tell: there is nobody to be told
        await system.stop(ref)
        with pytest.raises(AgentUnavailable):
            await forward(system, Draft(), "pool")
        assert system.router._cell.restarts == 0


@pytest.mark.parametrize("inside", ["router", "connection-1", "child", "private"])
async def test_clients_reach_only_what_is_meant_for_them(inside: str) -> None:
    async with running() as system:
        if inside != "router":
            ref = await system.spawn(Keeper, name=inside)
            if inside == "private":
                system.table.join("private", ref._cell, public=False)
        with pytest.raises(DestinationNotFound, match="no agent or tool is named"):
            await forward(system, Draft(), inside)


@given(st.lists(st.sampled_from(["a", "b"]), max_size=30))
@settings(max_examples=20, deadline=None)
def test_messages_of_one_client_to_one_agent_keep_their_order_through_the_router(plan: list[str]) -> None:
    async def play() -> None:
        async with running() as system:
            for name in ("a", "b"):
                system.table.join(name, (await system.spawn(Keeper, name=name))._cell)
            asked = [(to, number, forward(system, number, to)) for number, to in enumerate(plan)]
            for to, number, answer in asked:
                expected = [each for each, other in enumerate(plan[: number + 1]) if other == to]
                assert await answer == (to, expected)

    asyncio.run(play())


async def test_more_requests_than_a_mailbox_holds_wait_for_room_in_order() -> None:
    class Small(Keeper):
        mailbox = 2

    async with running() as system:
        ref = await system.spawn(Small, name="small")
        system.table.join("small", ref._cell)
        answers = [forward(system, number, "small") for number in range(50)]
        assert [(await answer)[1] for answer in answers] == [list(range(number + 1)) for number in range(50)]


# --- rules ---

ALICE = Principal("alice")
RULES = Permissions(
    (
        Rule(principals=("alice",), send=("draft",), to=("keeper", "there_is_none")),
        Rule(principals=("anonymous",), send=("review",), to=("keeper",)),
    )
)


class Asked(Scope):
    """The scope of a client's request."""

    def __init__(self, principal: Principal | None) -> None:
        super().__init__()
        self.principal = principal


def forward_as(system: ActorSystem, principal: Principal | None, message: Any, to: str = "") -> Future[Any]:
    answer: Future[Any] = Future()
    system.router.tell(Forward(Envelope(message, answer, "connection-1", Asked(principal)), to))
    return answer


@asynccontextmanager
async def guarded() -> AsyncIterator[ActorSystem]:
    async with running(permissions=RULES) as system:
        for name in ("keeper", "other"):
            ref = await system.spawn(Keeper, name=name)
            system.table.join(name, ref._cell)
        system.table.types |= {Draft: "keeper", Review: "other"}
        yield system


async def test_a_client_reaches_what_a_rule_allows_by_name_and_by_type() -> None:
    async with guarded() as system:
        for to in ("", "keeper"):
            assert (await forward_as(system, ALICE, Draft(), to))[0] == "keeper"
        root = Principal("root", frozenset({EVERYTHING}))
        assert (await forward_as(system, root, ToolCall(), "other"))[0] == "other"


@pytest.mark.parametrize("to", ["other", "nobody", "router", "connection-1", "tool:delete"])
async def test_what_a_client_may_not_name_is_the_same_whether_it_is_there_or_not(to: str) -> None:
    async with guarded() as system:
        with pytest.raises(PermissionDenied, match=rf"^'alice' may not send 'draft' to '{to}'$"):
            await forward_as(system, ALICE, Draft(), to)


async def test_what_a_client_may_name_and_is_not_there_is_not_found() -> None:
    async with guarded() as system:
        with pytest.raises(DestinationNotFound):
            await forward_as(system, ALICE, Draft(), "there_is_none")


async def test_who_is_refused_by_type_is_not_told_where_that_would_have_gone() -> None:
    async with guarded() as system:
        for message in (Review(), ToolCall()):
            with pytest.raises(PermissionDenied, match=r"^'alice' may not send '(review|tool_call)'$"):
                await forward_as(system, ALICE, message)


async def test_a_request_of_nobody_is_that_of_the_anonymous() -> None:
    async with guarded() as system:
        assert (await forward_as(system, None, Review(), "keeper"))[0] == "keeper"
        assert (await forward(system, Review(), "keeper"))[0] == "keeper"
        for answer in (forward_as(system, None, Draft(), "keeper"), forward(system, Draft(), "keeper")):
            with pytest.raises(PermissionDenied, match="'anonymous' may not send 'draft' to 'keeper'"):
                await answer


async def test_what_is_refused_never_comes_to_an_actor() -> None:
    async with guarded() as system:
        with pytest.raises(PermissionDenied):
            await forward_as(system, ALICE, Review(), "keeper")
        system.router.tell(Forward(Envelope(Review(), None, "", Asked(ALICE)), "keeper"))  # nobody is to be told
        assert (await system.ask("keeper", "seen"))[1] == ["seen"]
        assert system.router._cell.restarts == 0
