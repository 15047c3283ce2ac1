"""grami_actors: an actor-based multi-agent runtime for Python.

Every agent, tool and client connection is an actor with a mailbox; a router behind a WebSocket gateway (the
Growth Manager) forwards typed messages between them. The floors, from the bottom; a module imports only
from floors below its own::

    17  cli/                                    the command line
    16  scenario/                               scripts that play clients, and their transcript
    15  recording/                              what happened, on paper: written, played again, drawn
    14  simulation/                             the same program in virtual time, on a schedule from a seed
    13  manager                                 a swarm behind a gateway, published
    12  gateway/  swarm  coordination/  jobs/   the door to the outside; what is run; how agents work together
    11  supervisor  agent  tool_actors          who lives in the house
    10  system                                  the house
     9  lanes/  lifecycle  router               how actors run, live and find each other
     8  actor  history  tools                  what a user subclasses and declares; what happened, as plain data
     7  timers  registry  pools  watchdog       what is around an actor
     7  profiling  recovery  context  guard  census  null_context
     6  cell  client                            what stays of an actor when it is restarted; who asks a server
     5  contracts  tracing                      what a cell needs of its house; spans of what is handled
     5  protocol  config  job_client            the rules of the wire, and all settings
     4  future  ref  spec  policy  job_views    answers that are still to come, handles, data of a spawn
     4  job_handle
     3  mailbox  deadlines  gates  handshake  model  model_server  logs  metrics  credentials  job_requests
     3  inbox  schedules
     2  telemetry  restarts  budget  job        decisions and words, no threads or sockets
     2  catalog  answers  conversation  asyncapi  discovery  permissions  api_keys  jwt_tokens
     2  signatures  control_frames  trace_context  asking  steps
     1  messages  frames  encoding  principals  buckets  topics  watched_file  job_context
     0  errors  explain
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grami_actors.actor import Actor, cancelled, emit, progress
    from grami_actors.agent import Agent, handles
    from grami_actors.budget import Budget
    from grami_actors.client import Client, connect
    from grami_actors.config import Config
    from grami_actors.errors import (
        AgentCrashed,
        AgentExecutionFailed,
        AgentUnavailable,
        AskCycle,
        Cancelled,
        ConnectionLost,
        DeadlineExceeded,
        DestinationNotFound,
        ErrorCode,
        GramiError,
        MailboxFull,
        Reject,
        ServerNotFound,
        StartFailed,
        ToolExecutionFailed,
        ToolTimeout,
    )
    from grami_actors.manager import GrowthManager
    from grami_actors.messages import Message
    from grami_actors.model import Prompt, ScriptedModel, model_from_environment
    from grami_actors.ref import Ref
    from grami_actors.restarts import RestartPolicy
    from grami_actors.supervisor import Child, Supervisor
    from grami_actors.swarm import Swarm
    from grami_actors.system import ActorSystem
    from grami_actors.tools import lazy_tool, tool

__all__ = [
    "Actor",
    "ActorSystem",
    "Agent",
    "AgentCrashed",
    "AgentExecutionFailed",
    "AgentUnavailable",
    "AskCycle",
    "Budget",
    "Cancelled",
    "Child",
    "Client",
    "Config",
    "ConnectionLost",
    "DeadlineExceeded",
    "DestinationNotFound",
    "ErrorCode",
    "GramiError",
    "GrowthManager",
    "MailboxFull",
    "Message",
    "Prompt",
    "Ref",
    "Reject",
    "RestartPolicy",
    "ScriptedModel",
    "ServerNotFound",
    "StartFailed",
    "Supervisor",
    "Swarm",
    "ToolExecutionFailed",
    "ToolTimeout",
    "cancelled",
    "connect",
    "emit",
    "handles",
    "lazy_tool",
    "model_from_environment",
    "progress",
    "tool",
]

_HOMES = {
    "actor": (
        "Actor",
        "cancelled",
        "emit",
        "progress",
    ),
    "agent": (
        "Agent",
        "handles",
    ),
    "budget": ("Budget",),
    "client": (
        "Client",
        "connect",
    ),
    "config": ("Config",),
    "errors": (
        "AgentCrashed",
        "AgentExecutionFailed",
        "AgentUnavailable",
        "AskCycle",
        "Cancelled",
        "ConnectionLost",
        "DeadlineExceeded",
        "DestinationNotFound",
        "ErrorCode",
        "GramiError",
        "MailboxFull",
        "Reject",
        "ServerNotFound",
        "StartFailed",
        "ToolExecutionFailed",
        "ToolTimeout",
    ),
    "manager": ("GrowthManager",),
    "messages": ("Message",),
    "model": (
        "Prompt",
        "ScriptedModel",
        "model_from_environment",
    ),
    "ref": ("Ref",),
    "restarts": ("RestartPolicy",),
    "supervisor": (
        "Child",
        "Supervisor",
    ),
    "swarm": ("Swarm",),
    "system": ("ActorSystem",),
    "tools": (
        "lazy_tool",
        "tool",
    ),
}
"""Where the names above are at home; :func:`__getattr__` imports a module when one of its names is wanted."""


def __getattr__(name: str) -> Any:
    # What a program does not use costs it no time to import: worker processes start in half of it.
    for home, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{home}"), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
