"""Holds clients and actors to the rules: who sends, on whose behalf, and whether both may. Floor 7.

An actor is known by the name of its root: ``writer``, its pool's instances ``writer-2`` and their children are all
``agent:writer``, and a tool is ``tool:NAME``. While the message at work belongs to a client's request, what is sent
must be allowed to that client too; what belongs to none (hooks, timers, a thread of the actor's own) is the actor's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any

from msgspec.structs import replace

from grami_actors.cell import CONNECTION, Cell
from grami_actors.errors import AgentUnavailable, DestinationNotFound, PermissionDenied
from grami_actors.future import current_scope, handled
from grami_actors.job_requests import JobEnded, SubmitJob
from grami_actors.messages import Scope, ToolCall, type_name
from grami_actors.permissions import AGENT, TOOL, Identity, Permissions
from grami_actors.principals import ANONYMOUS, Principal

ROUTER = "router"
"""The name of the router."""


class Guard:
    """Raises PermissionDenied for what no rule allows.

    Args:
        permissions: the rules.
    """

    def __init__(self, permissions: Permissions) -> None:
        self._permissions = permissions

    def check_request(self, scope: Scope | None, message: Any, to: str, name: str) -> None:
        """A client sends, by way of the router.

        Args:
            scope: of the request, or within it; whose ``principal`` is the client.
            message: the message.
            to: the destination as the client named it.
            name: what that means, which is more than the client is told.
        """
        # One that nobody has seen to is nobody.
        principal = behind(scope) or ANONYMOUS
        kind = type_name(type(message))
        if not self._permissions.may_send(principal, kind, name):
            where = f" to {to!r}" if to else ""
            raise PermissionDenied(f"{principal.name!r} may not send {kind!r}{where}")

    def check_send(self, by: Cell, message: Any, name: str) -> None:
        """An actor sends to a name."""
        kind = type_name(type(message))
        may = partial(self._permissions.may_send, message_type=kind, to=name)
        self._check(by, may, f"send {kind!r} to {name!r}")

    def check_publish(self, by: Cell, topic: str) -> None:
        """An actor publishes."""
        self._check(by, partial(self._permissions.may_publish, topic=topic), f"publish to {topic!r}")

    def check_subscribe(self, by: Cell, pattern: str) -> None:
        """An actor subscribes."""
        self._check(by, partial(self._permissions.may_subscribe, pattern=pattern), f"subscribe to {pattern!r}")

    @staticmethod
    def _check(by: Cell, may: Callable[..., bool], what: str) -> None:
        here = handled()
        identity = identify(by if here is None else here.receiver)
        if identity is None:
            return
        if not may(identity):
            raise PermissionDenied(f"{identity.name!r} may not {what}")
        principal = None if here is None else behind(here.scope)
        if principal is not None and not (may(principal) or may(principal, through=identity.name)):
            raise PermissionDenied(f"{principal.name!r} may not {what} through {identity.name!r}")


def identify(cell: Cell) -> Identity | None:
    """Who an actor is, for the rules; ``None`` for the router and for connections, which do what clients say."""
    while cell.parent is not None:
        cell = cell.parent
    return _identity(cell.name, getattr(cell.spec.kind, "agent_name", ""))


def behind(scope: Scope | None) -> Principal | None:
    """Whose request a scope belongs to; ``None`` if no client's."""
    while scope is not None and scope.parent is not None:
        scope = scope.parent
    principal: Principal | None = getattr(scope, "principal", None)
    return principal


def owned(wanted: SubmitJob, by: Cell) -> SubmitJob:
    """A job that an actor submits, with whose it is: the client's behind what it does, or its own.

    Raises:
        PermissionDenied, DestinationNotFound, AgentUnavailable: the tool may not be called, or the agent that is to be
            woken not be told, by this actor or by the client behind it; or there is no such tool.
    """
    by.runtime.resolve(f"{TOOL}{wanted.tool}", ToolCall(wanted.arguments), by)
    if wanted.order.wake:
        with suppress(DestinationNotFound, AgentUnavailable):  # which is for the office to say
            by.runtime.resolve(wanted.order.wake, JobEnded("", "", ""), by)
    principal = behind(current_scope()) or identify(by) or ANONYMOUS
    return replace(wanted, owner=principal.name, scopes=tuple(sorted(principal.scopes)))


@lru_cache(maxsize=4096)
def _identity(name: str, agent_name: str) -> Identity | None:
    if name == ROUTER or name.startswith(CONNECTION):
        return None
    if name.startswith(TOOL):
        return Identity(name)
    # An instance of a pool, by its name: on_start runs before the pool has it.
    instance = agent_name and re.fullmatch(rf"{re.escape(agent_name)}-\d+", name)
    return Identity(AGENT + (agent_name if instance else name))
