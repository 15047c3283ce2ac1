"""grami_actors: an actor-based multi-agent runtime for Python.

Every agent, tool and client connection is an actor with a mailbox; a router behind a WebSocket gateway (the
Growth Manager) forwards typed messages between them. The floors, from the bottom; a module imports only
from floors below its own::

    12  cli                                     the command line
    11  scenario/                               scripts that play clients, and their transcript
    10  manager                                 a swarm behind a gateway, published
     9  gateway/  swarm                         the door to the outside; what is run
     8  system  agent  tools                    the house; who lives in it
     7  lanes/  supervisor  router              how actors run, live and find each other
     6  actor                                   what a user subclasses
     5  cell                                    what stays of an actor when it is restarted
     4  future                                  answers that are still to come
     3  mailbox  client  model  model_server
     2  telemetry  restarts  protocol  discovery   decisions and words, no threads or sockets
     1  messages  frames  config
     0  errors
"""

from grami_actors.actor import Actor, cancelled, emit, progress
from grami_actors.agent import Agent, handles
from grami_actors.cell import Ref
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
from grami_actors.model import LocalModel, Model, OpenAIModel, Prompt, ScriptedModel, model_from_environment
from grami_actors.restarts import RestartPolicy
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
    "Cancelled",
    "Client",
    "Config",
    "ConnectionLost",
    "DeadlineExceeded",
    "DestinationNotFound",
    "ErrorCode",
    "GramiError",
    "GrowthManager",
    "LocalModel",
    "MailboxFull",
    "Message",
    "Model",
    "OpenAIModel",
    "Prompt",
    "Ref",
    "Reject",
    "RestartPolicy",
    "ScriptedModel",
    "ServerNotFound",
    "StartFailed",
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
