"""A swarm: which agents, tools and model make up a program, as data; and how they are started. Floor 12."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from grami_actors.agent import MODEL, Agent
from grami_actors.catalog import Catalog
from grami_actors.cell import CONNECTION
from grami_actors.errors import ConfigError, StartFailed
from grami_actors.frames import PROTOCOL_VERSION
from grami_actors.messages import Message, ToolCall, type_name
from grami_actors.model import Model
from grami_actors.restarts import RestartPolicy
from grami_actors.schedules import Schedule
from grami_actors.spec import Spec
from grami_actors.system import ActorSystem
from grami_actors.tool_actors import ModelActor, ToolActor
from grami_actors.tools import Tool

AgentSource = type[Agent] | partial[Agent]


class AgentDescription(msgspec.Struct, frozen=True):
    """What ``describe`` tells about an agent."""

    name: str
    description: str
    instances: int
    handles: tuple[str, ...]


class TypeDescription(msgspec.Struct, frozen=True):
    """What ``describe`` tells about a message type. ``schema`` includes ``type`` itself."""

    type: str
    handled_by: str
    schema: dict[str, Any]


class Swarm:
    """The agents, tools and language model of a program.

    ::

        swarm = Swarm(agents=[Strategist, Writer, Critic], tools=[hashtags], model=choose_model)

    Args:
        agents: agent classes, or ``functools.partial`` of one with constructor arguments. A message without
            ``to`` goes to the first that handles its type.
        tools: what :func:`~grami_actors.tools.tool` made.
        model: a model, or a function that makes one when the swarm starts; it serves ``self.generate``.
        schedules: jobs that are submitted by the clock.

    Raises:
        ConfigError: two agents or two tools have the same name, or something is not an agent or tool.
    """

    def __init__(
        self,
        agents: Sequence[AgentSource] = (),
        tools: Sequence[Tool[..., Any]] = (),
        model: Model | Callable[[], Model] | None = None,
        schedules: Sequence[Schedule] = (),
    ) -> None:
        if not isinstance(agents, Sequence):
            raise ConfigError(f"agents is a list, as in Swarm(agents=[Writer]), not {agents!r}")
        self.agents = tuple(agents)
        self.tools = tuple(tools)
        self.model = model
        self.schedules = tuple(schedules)
        for source in self.agents:
            if not (isinstance(_kind(source), type) and issubclass(_kind(source), Agent)):
                raise ConfigError(f"{source!r} is not an Agent class; give the class, not an instance")
        for each in self.tools:
            if not isinstance(each, Tool):
                raise ConfigError(f"{each!r} is not a tool; decorate the function with @tool")
        for source in self.agents:
            _check_name(_kind(source).agent_name)
        _distinct("agent", [_kind(source).agent_name for source in self.agents])
        _distinct("tool", [each.name for each in self.tools])
        _distinct("schedule", [each.name for each in self.schedules])
        known = {each.name for each in self.tools}
        for schedule in self.schedules:
            if schedule.tool not in known:
                text = f"the schedule {schedule.name!r} runs the tool {schedule.tool!r}, which the swarm does not have"
                raise ConfigError(text)

    def types(self) -> dict[str, type[Message]]:
        """The message types that clients may send, by their name on the wire.

        Raises:
            ConfigError: two different classes have the same ``type``.
        """
        found: dict[str, type[Message]] = {}
        kinds: list[type[Message]] = [kind for source in self.agents for kind in _kind(source).handlers]
        kinds += [ToolCall] * bool(self.tools)
        for kind in kinds:
            name = type_name(kind)
            if found.setdefault(name, kind) is not kind:
                raise ConfigError(f"two message classes have the type {name!r}: {found[name]} and {kind}")
        return found

    def catalog(self) -> Catalog:
        """What a gateway needs to know."""
        return Catalog(self.types(), self.describe)

    def describe(self, allowed: Callable[[str, str], bool] | None = None) -> dict[str, Any]:
        """Types, agents and tools with their JSON Schemas. Imports lazy tools.

        Args:
            allowed: whether whoever asks may send a message type to a destination; what it may not use is left
                out, and a type is told with the first agent that it may be sent to. Everything, if not given.
        """
        may = allowed or (lambda _type, _to: True)
        handled = {
            kind.agent_name: [each for each in kind.handlers if may(type_name(each), kind.agent_name)]
            for kind in map(_kind, self.agents)
        }
        tools = [each for each in self.tools if may(type_name(ToolCall), f"tool:{each.name}")]
        handlers = {kind: name for name, kinds in reversed(handled.items()) for kind in kinds}
        handlers |= {ToolCall: "tool:NAME"} if tools else {}
        return {
            "protocol": PROTOCOL_VERSION,
            "types": [
                TypeDescription(name, handlers[kind], msgspec.json.schema(kind))
                for name, kind in self.types().items()
                if kind in handlers
            ],
            "agents": [
                AgentDescription(
                    name=kind.agent_name,
                    description=inspect.cleandoc(kind.__doc__ or ""),
                    instances=kind.instances,
                    handles=tuple(map(type_name, handled[kind.agent_name])),
                )
                for kind in map(_kind, self.agents)
                if allowed is None or handled[kind.agent_name]
            ],
            "tools": [each.describe() for each in tools],
        }

    async def start(self, system: ActorSystem) -> None:
        """Start the tools, the model and the agents, in this order, in a system.

        Raises:
            StartFailed: one of them could not start.
        """
        for each in self.tools:
            await self._start_tool(system, each)
        if self.model is not None:
            await self._start_model(system, self.model)
        for source in self.agents:
            await self._start_agent(system, source)

    async def _start_tool(self, system: ActorSystem, served: Tool[..., Any]) -> None:
        name = f"tool:{served.name}"
        spec = Spec(
            ToolActor,
            (served,),
            lane=served.calls_on,
            concurrency=served.concurrency,
            mailbox=served.mailbox,
            overflow="wait",
            # A function that crashes its process fails its actor; that must not end the tool for everybody.
            restart=RestartPolicy(pause=15.0) if served.calls_on == "process" else RestartPolicy(),
        )
        system.table.join(name, (await system.spawn_spec(spec, name=name))._cell)

    async def _start_model(self, system: ActorSystem, model: Model | Callable[[], Model]) -> None:
        try:
            chosen = model() if callable(model) else model
        except Exception as error:
            raise StartFailed(f"the model could not be chosen: {error}") from error
        policy = RestartPolicy(pause=15.0)
        spec = Spec(ModelActor, (chosen,), concurrency=ModelActor.concurrency, overflow="wait", restart=policy)
        # Not public: a prompt costs money or minutes, so clients ask agents, and agents ask the model.
        system.table.join(MODEL, (await system.spawn_spec(spec, name=MODEL))._cell, public=False)

    async def _start_agent(self, system: ActorSystem, source: AgentSource) -> None:
        kind = _kind(source)
        args, kwargs = (source.args, source.keywords) if isinstance(source, partial) else ((), {})
        for number in range(1, kind.instances + 1):
            name = kind.agent_name if kind.instances == 1 else f"{kind.agent_name}-{number}"
            cell = (await system.spawn(kind, *args, name=name, **kwargs))._cell
            system.table.join(kind.agent_name, cell, strategy=kind.pool, key=kind.key)
            for topic in kind.subscribes:
                system.subscribe(topic, cell)
        for handled in kind.handlers:
            system.table.types.setdefault(handled, kind.agent_name)


def _kind(source: AgentSource) -> Any:
    return source.func if isinstance(source, partial) else source


def _check_name(name: str) -> None:
    if not re.fullmatch(r"\w[\w.-]{0,127}", name) or name == "router" or name.startswith(CONNECTION):
        raise ConfigError(
            f"an agent cannot be named {name!r}: a name has letters, digits, '_', '-' and '.', and is neither "
            f"'router' nor begins with {CONNECTION!r}"
        )


def _distinct(what: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two {what}s are named {name!r}; give one of them another name")
