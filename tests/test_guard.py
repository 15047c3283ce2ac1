"""Who may send on whose behalf: identities of actors, the client behind a request, and neither gains by the other."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grami_actors.actor import Actor
from grami_actors.agent import Agent
from grami_actors.errors import ErrorCode, PermissionDenied, StartFailed
from grami_actors.future import Future
from grami_actors.guard import behind, identify
from grami_actors.messages import Envelope, Message, Scope, ToolCall
from grami_actors.model import ScriptedModel
from grami_actors.permissions import Permissions, Rule
from grami_actors.principals import EVERYTHING, Principal
from grami_actors.router import Forward
from grami_actors.swarm import Swarm
from grami_actors.system import ActorSystem
from grami_actors.telemetry import MessageHandled
from grami_actors.tools import tool
from tests.conftest import Recorder, running
from tests.deputies import (
    WAYS,
    Deputy,
    Errand,
    Holder,
    Later,
    Parent,
    ProcessDeputy,
    ProcessHolder,
    Second,
    Team,
    ThreadDeputy,
)

ALICE = Principal("alice")
ADMIN = Principal("root", frozenset({EVERYTHING}))

DEPUTY = Rule(principals=("agent:deputy",), send=("*",), subscribe=(">",), publish=(">",))
CLIENT = Rule(principals=("alice",), send=("errand", "later"), to=("deputy",))
SPOILS: dict[str, Any] = {
    "send": ("tool_call", "generate"),
    "to": ("tool:delete", "tool:model"),
    "subscribe": ("deleted.*",),
    "publish": ("deleted.*",),
}
DIRECT = Rule(principals=("alice",), **SPOILS)
THROUGH = Rule(principals=("alice",), through=("agent:deputy",), **SPOILS)

LANES = (Deputy, ThreadDeputy, pytest.param(ProcessDeputy, marks=pytest.mark.slow))


class Request(Future[Any]):
    """A request as a gateway makes it: the root of a scope, which knows its client."""

    def __init__(self, principal: Principal) -> None:
        self.principal = principal
        self.attach(None, math.inf)


class House:
    """A system with rules, a tool that deletes, and a client at its router."""

    def __init__(self, system: ActorSystem, deleted: list[str]) -> None:
        self.system = system
        self.deleted = deleted

    async def asks(self, principal: Principal, message: Message, to: str = "") -> Any:
        request = Request(principal)
        self.system.router.tell(Forward(Envelope(message, request, "connection-1", request), to))
        return await request


@asynccontextmanager
async def house(*rules: Rule, agents: tuple[type[Agent], ...] = (Deputy,)) -> AsyncIterator[House]:
    deleted: list[str] = []

    @tool(lane="loop")
    def delete(what: str) -> str:
        deleted.append(what)
        return what

    swarm = Swarm([*agents], tools=[delete], model=ScriptedModel({"this": "that"}))
    async with running(permissions=Permissions(rules)) as system:
        await swarm.start(system)
        yield House(system, deleted)


# --- a client that uses an agent ---


@pytest.mark.parametrize("deputy", LANES)
async def test_what_a_client_may_not_do_itself_it_may_not_have_done(deputy: type[Agent]) -> None:
    async with house(DEPUTY, CLIENT, agents=(deputy,)) as home:
        for way in WAYS:
            with pytest.raises(PermissionDenied, match=r"^'alice' may not .* through 'agent:deputy'") as refused:
                await home.asks(ALICE, Errand(way))
            assert refused.value.error_code == ErrorCode.PERMISSION_DENIED, way
        assert home.deleted == []
        assert home.system.subscribers("deleted.this") == ()
        assert home.system.table.cells["deputy"].restarts == 0


@pytest.mark.parametrize("deputy", LANES)
@pytest.mark.parametrize("rule", [DIRECT, THROUGH], ids=["direct", "through"])
async def test_what_a_client_may_do_itself_or_through_an_agent_that_one_does(rule: Rule, deputy: type[Agent]) -> None:
    async with house(DEPUTY, CLIENT, rule, agents=(deputy,)) as home:
        for way in WAYS:
            assert await home.asks(ALICE, Errand(way)) == "done", way
        assert len(home.system.subscribers("deleted.this")) == 1
        assert await home.system.ask("tool:delete", _delete("last")) == "last"
        assert len(home.deleted) == 7, "the last, and all ways but the model's and the topics'"


@pytest.mark.parametrize("deputy", LANES)
async def test_an_agent_without_a_rule_may_do_nothing_for_whoever_may_do_everything(deputy: type[Agent]) -> None:
    async with house(DIRECT, THROUGH, agents=(deputy,)) as home:
        for way in WAYS:
            with pytest.raises(PermissionDenied, match=r"^'agent:deputy' may not "):
                await home.asks(ADMIN, Errand(way))
        assert home.deleted == []


async def test_what_is_allowed_through_an_agent_is_not_allowed_without_it_nor_through_another() -> None:
    second = Rule(principals=("agent:second",), send=("*",))
    async with house(DEPUTY, CLIENT, THROUGH, second, agents=(Deputy, Second)) as home:
        with pytest.raises(PermissionDenied, match=r"^'alice' may not send 'tool_call' to 'tool:delete'$"):
            await home.asks(ALICE, _delete("this"), "tool:delete")
        with pytest.raises(PermissionDenied, match="'alice' may not send 'errand' to 'second' through 'agent:deputy'"):
            await home.asks(ALICE, Errand(then="second"))
    onward = Rule(principals=("alice",), through=("agent:deputy",), send=("errand",), to=("second",))
    async with house(DEPUTY, CLIENT, THROUGH, second, onward, agents=(Deputy, Second)) as home:
        with pytest.raises(PermissionDenied, match="'tool:delete' through 'agent:second'"):
            await home.asks(ALICE, Errand(then="second"))
    beyond = Rule(principals=("alice",), through=("agent:second",), send=("tool_call",), to=("tool:delete",))
    async with house(DEPUTY, CLIENT, second, onward, beyond, agents=(Deputy, Second)) as home:
        assert await home.asks(ALICE, Errand(then="second")) == "done"


async def test_the_client_is_asked_for_as_well_where_an_agent_uses_the_system_itself() -> None:
    async with house(DEPUTY, CLIENT) as home:
        with pytest.raises(PermissionDenied, match="'alice' may not"):
            await home.asks(ALICE, Errand("system"))


async def test_a_python_object_goes_by_the_name_of_its_class() -> None:
    rule = Rule(principals=("agent:deputy", "root"), send=("tool_call",))
    async with house(rule, CLIENT) as home:
        with pytest.raises(PermissionDenied, match="'agent:deputy' may not send 'plain' to 'tool:delete'"):
            await home.asks(ADMIN, Errand("plain"), "deputy")


@given(
    st.sets(st.sampled_from(["agent", "agent on behalf", "client", "client through"])), st.sampled_from(sorted(WAYS))
)
@settings(max_examples=40, deadline=None)
def test_a_way_is_open_exactly_if_it_is_open_to_both(granted: set[str], way: str) -> None:
    rules = {
        "agent": DEPUTY,
        "agent on behalf": Rule(principals=("agent:deputy",), through=("agent:deputy",), **SPOILS),
        "client": DIRECT,
        "client through": THROUGH,
    }
    expected = "agent" in granted and bool(granted & {"client", "client through"})

    async def play() -> None:
        async with house(CLIENT, *(rules[name] for name in sorted(granted))) as home:
            outcome = await asyncio.gather(home.asks(ALICE, Errand(way)), return_exceptions=True)
            assert (outcome == ["done"]) is expected
            assert expected or isinstance(outcome[0], PermissionDenied)

    asyncio.run(play())


# --- what an agent does on its own account ---


@pytest.mark.parametrize("deputy", LANES)
@pytest.mark.parametrize("rules", [(DEPUTY, CLIENT), (CLIENT,)], ids=["allowed", "not allowed"])
async def test_a_timer_takes_what_the_agent_may_and_nobody_else(rules: tuple[Rule, ...], deputy: type[Agent]) -> None:
    async with house(*rules, agents=(deputy,)) as home:
        recorder = Recorder(home.system, MessageHandled)
        assert await home.asks(ALICE, Later()) == "later"
        handled = await recorder.until(
            lambda events: next((each for each in events if isinstance(each.message, Errand)), None)
        )
        assert handled.outcome == ("ok" if DEPUTY in rules else "PERMISSION_DENIED")
        assert home.deleted == ["this"] * (DEPUTY in rules)


async def test_a_thread_that_an_agent_starts_by_itself_is_the_agent() -> None:
    async with house(DEPUTY, CLIENT) as home:
        assert await home.asks(ALICE, Errand("thread")) == "done"
    async with house(CLIENT) as home:
        with pytest.raises(PermissionDenied, match="'agent:deputy' may not"):
            await home.asks(ALICE, Errand("thread"))


async def test_instances_of_a_pool_are_their_pool_from_on_start_on() -> None:
    with pytest.raises(StartFailed, match="'agent:deputy' may not send 'tool_call' to 'tool:delete'"):
        async with house(CLIENT, agents=(Team,)):
            pass
    async with house(DEPUTY, CLIENT, THROUGH, agents=(Team,)) as home:
        assert home.deleted == ["this"] * 2
        assert await home.asks(ALICE, Errand()) == "done"
        with pytest.raises(PermissionDenied, match="'alice' may not send 'errand' to 'deputy-2'"):
            await home.asks(ALICE, Errand(), "deputy-2")
    globbed = Rule(principals=("alice",), send=("errand",), to=("deputy-*",))
    async with house(DEPUTY, globbed, THROUGH, agents=(Team,)) as home:
        assert await home.asks(ALICE, Errand(), "deputy-2") == "done"


async def test_children_are_their_parents_agent_and_bound_by_the_same_client() -> None:
    async with house(DEPUTY, CLIENT, agents=(Parent,)) as home:
        with pytest.raises(PermissionDenied, match=r"'alice' may not .* through 'agent:deputy'"):
            await home.asks(ALICE, Errand())
    async with house(DEPUTY, CLIENT, THROUGH, agents=(Parent,)) as home:
        assert await home.asks(ALICE, Errand()) == "done"
    async with house(CLIENT, THROUGH, agents=(Parent,)) as home:
        with pytest.raises(PermissionDenied, match="'agent:deputy' may not"):
            await home.asks(ALICE, Errand())


async def test_what_the_program_itself_does_is_not_asked_for() -> None:
    async with house(DEPUTY) as home:
        assert await home.system.ask("tool:delete", _delete("this")) == "this"
        assert await home.system.ask("deputy", Errand()) == "done", "no client is behind it"
        home.system.tell("tool:delete", _delete("that"))
        assert await home.system.ask("tool:delete", _delete("last")) == "last"
        assert home.deleted == ["this", "this", "that", "last"]
        assert await home.system.stop("tool:delete")


@pytest.mark.parametrize("holder", [Holder, pytest.param(ProcessHolder, marks=pytest.mark.slow)])
async def test_who_was_given_a_ref_may_use_it(holder: type[Actor]) -> None:
    async with house(DEPUTY) as home:
        ref = await home.system.spawn(holder)
        assert await home.system.ask(ref, home.system.table.cells["tool:delete"].ref) == "this"
        with pytest.raises(
            PermissionDenied, match=r"'agent:.*holder-[0-9]+' may not send 'tool_call' to 'tool:delete'"
        ):
            await home.system.ask(ref, "tool:delete")


async def test_who_uses_anothers_methods_stays_who_it_is() -> None:
    class Borrower(Actor):
        async def on_receive(self, message: Any) -> Any:
            return await message("tool:delete", _delete("this"))

    async with house(DEPUTY) as home:
        borrower = await home.system.spawn(Borrower, name="borrower")
        with pytest.raises(PermissionDenied, match="'agent:borrower' may not"):
            await home.system.ask(borrower, home.system.table.cells["deputy"].actor.ask)


async def test_without_rules_nobody_is_asked_for_anything() -> None:
    for permissions in (None, Permissions()):
        async with running(permissions=permissions) as system:
            assert system._guard is None
            assert system.router._cell.actor._guard is None


# --- names ---


async def test_the_router_and_connections_are_nobody_and_all_others_somebody() -> None:
    async with running() as system:
        names = {
            "writer": "agent:writer",
            "tool:hashtags": "tool:hashtags",
            "deputy-7": "agent:deputy",
            "deputy-x": "agent:deputy-x",
            "connection-3": None,
        }
        for name, expected in names.items():
            cell = (await system.spawn(Deputy, name=name))._cell
            identity = identify(cell)
            assert (identity and identity.name) == expected
        plain = await system.spawn(Actor, name="deputy-8")
        identity = identify(plain._cell)
        assert identity is not None
        assert identity.name == "agent:deputy-8", "it is no deputy"
        assert identify(system.router._cell) is None


def test_the_client_behind_a_request_is_found_from_all_below_it() -> None:
    request = Request(ALICE)
    assert behind(Scope(Scope(request))) is ALICE
    assert behind(Scope(Scope())) is None
    assert behind(None) is None


def _delete(what: str) -> Message:
    return ToolCall({"what": what})
