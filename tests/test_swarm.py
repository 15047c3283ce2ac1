"""Swarms: what may be in one, who gets a message, and what is told about it."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from grami_actors import (
    ActorSystem,
    Agent,
    AgentUnavailable,
    GrowthManager,
    Message,
    StartFailed,
    Swarm,
    connect,
    handles,
    lazy_tool,
    tool,
)
from grami_actors.errors import ConfigError, NameTaken
from grami_actors.telemetry import ActorStarted
from tests.conftest import Gate, Recorder, running, serving


class Question(Message):
    """Something to be answered."""

    text: str = ""


class Hold(Message):
    pass


class Oracle(Agent, instances=3):
    """Knows.

    More than it says.
    """

    @handles(Question)
    def answer(self, message: Question) -> str:
        return self.name


class Other(Agent):
    @handles(Question)
    def answer(self, message: Question) -> str:
        return "the other"


@tool
def first_tool(number: int) -> int:
    """The first."""
    return number


@tool(lane="loop")
def second_tool(number: int) -> int:
    """The second."""
    return number


# --- what may be in one ---


@pytest.mark.parametrize(
    ("agents", "tools", "words"),
    [
        ([Oracle, Oracle], [], "two agents are named 'oracle'"),
        ([Oracle, type("Oracle", (Other,), {})], [], "two agents are named 'oracle'"),
        ([], [first_tool, first_tool], "two tools are named 'first_tool'"),
        ([], [first_tool, lazy_tool("json:loads", name="first_tool")], "two tools are named 'first_tool'"),
    ],
)
def test_two_things_with_one_name_are_refused(agents: Any, tools: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Swarm(agents, tools)


@pytest.mark.parametrize("agents", [[Oracle()], [int], ["oracle"], [partial(int, 5)], [Oracle.answer]])
def test_what_is_no_agent_class_is_refused(agents: Any) -> None:
    with pytest.raises(ConfigError, match="is not an Agent class; give the class, not an instance"):
        Swarm(agents)


def test_a_function_that_is_no_tool_is_refused() -> None:
    def plain(number: int) -> int:
        return number

    with pytest.raises(ConfigError, match=r"plain.* is not a tool; decorate the function with @tool"):
        Swarm([], [plain])  # type: ignore[list-item]


async def test_two_message_classes_with_one_type_are_refused_before_anything_starts() -> None:
    class Twin(Message, tag="question"):
        pass

    class Taker(Agent):
        @handles(Twin)
        def take(self, message: Twin) -> None: ...

    swarm = Swarm([Oracle, Taker])
    with pytest.raises(ConfigError, match="two message classes have the type 'question'"):
        swarm.types()
    manager = GrowthManager(swarm, publish=False)
    with pytest.raises(ConfigError, match="Twin"):
        await manager.__aenter__()
    assert manager.system.table.cells == {}


def test_one_message_class_may_have_several_handlers() -> None:
    assert set(Swarm([Oracle, Other]).types()) == {"question"}


@pytest.mark.parametrize(
    "taken",
    [
        pytest.param("router", id="the router's"),
        pytest.param("oracle-2", id="an instance's"),
        pytest.param("tool:first_tool", id="a tool's"),
    ],
)
async def test_a_name_that_the_system_needs_cannot_be_an_agents(taken: str) -> None:
    class Impostor(Agent, name=taken):
        pass

    system = ActorSystem()
    with pytest.raises((ConfigError, NameTaken), match=taken):
        async with system:
            await Swarm([Oracle, Impostor], [first_tool]).start(system)
    assert system.table.cells == {}


async def test_an_agent_named_like_a_connection_does_not_lock_clients_out() -> None:
    class Impostor(Agent, name="connection-1"):
        pass

    try:
        swarm = Swarm([Oracle, Impostor])
    except ConfigError:
        return
    async with serving(swarm) as manager, connect(manager.url, retry_for=0.0) as grami:
        assert (await grami.request("question")).startswith("oracle")


# --- how it is started ---


async def test_tools_start_before_agents_and_all_in_the_order_that_is_given() -> None:
    async with running() as system:
        started = Recorder(system, ActorStarted)
        await Swarm([Other, Oracle], [second_tool, first_tool]).start(system)
        assert [(event.actor, event.lane) for event in started.events] == [
            ("tool:second_tool", "loop"),
            ("tool:first_tool", "thread"),
            ("other", "loop"),
            ("oracle-1", "loop"),
            ("oracle-2", "loop"),
            ("oracle-3", "loop"),
        ]


async def test_constructor_arguments_come_from_a_partial_for_every_instance() -> None:
    class Named(Agent, instances=2):
        def __init__(self, greeting: str, *, name_of: str) -> None:
            super().__init__()
            self.words = [greeting, name_of]

        @handles(Question)
        def say(self, message: Question) -> list[str]:
            return self.words

    async with running() as system:
        await Swarm([partial(partial(Named, "hello"), name_of="ann")]).start(system)
        assert await system.ask("named-1", Question()) == ["hello", "ann"]
        assert await system.ask("named-2", Question()) == ["hello", "ann"]
        cells = system.table.cells
        assert cells["named-1"].actor.words is not cells["named-2"].actor.words


async def test_missing_constructor_arguments_are_a_failed_start() -> None:
    class Needy(Agent):
        def __init__(self, need: str) -> None:
            super().__init__()

    async with running() as system:
        with pytest.raises(StartFailed, match=r"needy could not be started: TypeError.*need"):
            await Swarm([Needy]).start(system)


async def test_a_swarm_can_be_started_more_than_once_in_systems_that_share_nothing() -> None:
    swarm = Swarm([Oracle], [first_tool])
    async with running() as one, running() as two:
        await swarm.start(one)
        await swarm.start(two)
        assert one.table.cells["oracle-1"] is not two.table.cells["oracle-1"]
        await one.stop("oracle-1")
        assert await two.ask("oracle-1", Question()) == "oracle-1"


# --- who gets a message ---


async def test_instances_share_the_work_in_turn() -> None:
    async with running() as system:
        await Swarm([Oracle]).start(system)
        answers = [await system.ask("oracle", Question()) for _ in range(6)]
        assert sorted(answers) == ["oracle-1", "oracle-1", "oracle-2", "oracle-2", "oracle-3", "oracle-3"]
        assert await system.ask("oracle-3", Question()) == "oracle-3"


async def test_a_busy_instance_is_passed_over() -> None:
    gate = Gate()

    class Worker(Agent, instances=3):
        @handles(Hold)
        async def hold(self, message: Hold) -> str:
            await gate.wait_async()
            return self.name

        @handles(Question)
        def answer(self, message: Question) -> str:
            return self.name

    async with running() as system:
        await Swarm([Worker]).start(system)
        held = asyncio.create_task(system.ask("worker-2", Hold()))
        await gate.until_entered()
        answers = {await system.ask("worker", Question()) for _ in range(10)}
        assert answers == {"worker-1", "worker-3"}
        gate.opened.set()
        assert await held == "worker-2"


async def test_the_first_agent_that_handles_a_type_gets_it() -> None:
    async with serving(Swarm([Other, Oracle])) as manager, connect(manager.url) as grami:
        assert await grami.request("question") == "the other"
        assert (await grami.request("question", to="oracle")).startswith("oracle-")


async def test_a_pool_with_nobody_left_is_unavailable_not_unknown() -> None:
    async with serving(Swarm([Oracle])) as manager, connect(manager.url) as grami:
        for number in (1, 2, 3):
            await manager.system.stop(f"oracle-{number}")
        with pytest.raises(AgentUnavailable, match="oracle is not running"):
            await grami.request("question")


# --- what is told about it ---


async def test_describe_tells_types_agents_and_tools_with_their_schemas() -> None:
    async with serving(Swarm([Oracle, Other], [first_tool])) as manager, connect(manager.url) as grami:
        told = await grami.describe()
    assert told["protocol"] == 1
    assert [(each["type"], each["handled_by"]) for each in told["types"]] == [
        ("question", "oracle"),
        ("tool_call", "tool:NAME"),
    ]
    schema = told["types"][0]["schema"]["$defs"]["Question"]
    assert schema["description"] == "Something to be answered."
    assert schema["properties"]["text"] == {"type": "string", "default": ""}
    assert [(each["name"], each["instances"], each["handles"]) for each in told["agents"]] == [
        ("oracle", 3, ["question"]),
        ("other", 1, ["question"]),
    ]
    assert [each["name"] for each in told["tools"]] == ["first_tool"]
    assert told["tools"][0]["parameters"]["$defs"]["first_tool"]["required"] == ["number"]


async def test_a_swarm_without_tools_does_not_offer_to_call_one() -> None:
    async with serving(Swarm([Other])) as manager, connect(manager.url) as grami:
        assert [each["type"] for each in (await grami.describe())["types"]] == ["question"]


def test_the_description_of_an_agent_is_not_indented() -> None:
    assert Swarm([Oracle]).describe()["agents"][0].description == "Knows.\n\nMore than it says."


def told_to(allowed: Any) -> dict[str, list[str]]:
    """The names that somebody who may do this is told."""
    told = Swarm([Oracle, Other, Holder], [first_tool, second_tool]).describe(allowed)
    types = [f"{each.type} to {each.handled_by}" for each in told["types"]]
    return {"types": types} | {kind: [each.name for each in told[kind]] for kind in ("agents", "tools")}


class Holder(Agent):
    @handles(Question, Hold)
    def hold(self, message: Question | Hold) -> None: ...


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        (lambda _type, _to: False, {"types": [], "agents": [], "tools": []}),
        (lambda _type, to: to == "other", {"types": ["question to other"], "agents": ["other"], "tools": []}),
        (lambda name, _to: name == "hold", {"types": ["hold to holder"], "agents": ["holder"], "tools": []}),
        (
            lambda name, to: (name, to) == ("tool_call", "tool:second_tool"),
            {"types": ["tool_call to tool:NAME"], "agents": [], "tools": ["second_tool"]},
        ),
    ],
)
def test_what_whoever_asks_may_not_use_is_left_out(allowed: Any, expected: dict[str, list[str]]) -> None:
    assert told_to(allowed) == expected


def test_an_agent_is_told_only_with_the_types_that_it_may_be_sent() -> None:
    (agent,) = Swarm([Holder]).describe(lambda name, _to: name == "hold")["agents"]
    assert agent.handles == ("hold",)


def test_whoever_may_do_everything_is_told_everything() -> None:
    swarm = Swarm([Oracle, Other, Holder], [first_tool, second_tool])
    assert swarm.describe(lambda _type, _to: True) == swarm.describe()
    assert told_to(None) == told_to(lambda _type, _to: True)


def test_a_tool_that_is_not_told_is_not_imported() -> None:
    lazy = lazy_tool("nothing.of_this:name", name="lazy")
    swarm = Swarm([Other], [lazy])
    assert "cannot be imported" in swarm.describe()["tools"][0].error
    assert swarm.describe(lambda _type, to: to == "other")["tools"] == []
