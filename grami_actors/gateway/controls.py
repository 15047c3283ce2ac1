"""The control messages that take more than the rules of one connection (docs/protocol.md, section 4). Floor 12."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, Protocol

from grami_actors.cell import Cell
from grami_actors.encoding import JSON
from grami_actors.errors import AgentUnavailable, ErrorCode, LimitReached, MailboxFull, ProtocolError
from grami_actors.frames import Publish, Subscribe, Unsubscribe
from grami_actors.gateway.admin import Admin
from grami_actors.gateway.attachments import Watch
from grami_actors.gateway.connection import Connection
from grami_actors.gateway.feed import Feed
from grami_actors.gateway.jobs import Jobs
from grami_actors.gateway.replays import Work
from grami_actors.gateway.request import Request
from grami_actors.guard import identify
from grami_actors.messages import Envelope, Scope
from grami_actors.permissions import AGENT
from grami_actors.protocol import Control, Setting
from grami_actors.system import ActorSystem
from grami_actors.telemetry import LimitHit, Published

MOST_DESCRIBING = 16
"""Descriptions that may be made at the same time: each has a thread, which goes on when nobody waits for it."""


class Owner(Protocol):
    """What is needed of the gateway."""

    system: ActorSystem
    setting: Setting
    feed: Feed
    watch: Watch
    admin: Admin


class Controls:
    """Answers control messages for all connections of a gateway."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._jobs = Jobs(owner)
        self._describing = 0

    def answer(
        self, connection: Connection, control: Control, request: Request | Work
    ) -> Coroutine[Any, Any, Any] | None:
        """Answer through the request, now or from a thread; or by what the coroutine returns.

        Raises:
            GramiError: what is wrong with it.
        """
        if control.kind.startswith("admin."):
            return self._owner.admin.answer(control.kind, control.fields)
        if control.kind.startswith("job."):
            assert isinstance(request, Request)  # their keys are not the connection's
            return self._jobs.answer(connection, control, request)
        try:
            self._ANSWERS[control.kind](self, connection, control, request)
        except LimitReached as full:
            bus = self._owner.system.bus
            if LimitHit in bus:
                bus.publish(LimitHit(full.limit, connection.counted_for))
            raise
        return None

    def _describe(self, connection: Connection, _: Control, request: Request) -> None:
        catalog, permissions = self._owner.setting.catalog, self._owner.setting.policy.permissions
        principal = connection.protocol.principal
        assert principal is not None  # the protocol asked before

        def allowed(message_type: str, to: str) -> bool:
            return permissions.may_send(principal, message_type, to)

        if self._describing >= MOST_DESCRIBING:
            text = f"{MOST_DESCRIBING} descriptions are being made; try again later"
            raise LimitReached(text, code=ErrorCode.RESOURCE_EXHAUSTED, limit="describe", retry_after_ms=1000)

        def work() -> None:
            try:
                request.set_result(catalog.describe(allowed))
            except BaseException as flaw:  # noqa: BLE001 - a lazy tool's module may even exit: it becomes the answer
                request.fail(flaw)
            finally:
                self._owner.system.after(0.0, self._described)

        self._describing += 1
        # It may import tools, which may hang: a thread that nobody waits for, not even the end of the process.
        self._owner.system.aside(f"{connection.name} describe", work)

    def _described(self) -> None:
        self._describing -= 1

    def _subscribe(self, connection: Connection, control: Control, request: Request) -> None:
        wanted: Subscribe = control.fields
        self._owner.feed.subscribe(wanted.topic, connection._cell, wanted.recover, request.set_result)
        connection.protocol.subscriptions.add(wanted.topic)

    def _unsubscribe(self, connection: Connection, control: Control, request: Request) -> None:
        wanted: Unsubscribe = control.fields
        self._owner.feed.unsubscribe(wanted.topic, connection._cell)
        connection.protocol.subscriptions.discard(wanted.topic)
        request.set_result({"topic": wanted.topic})

    def _publish(self, connection: Connection, control: Control, request: Request | Work) -> None:
        """To the agents that subscribe, if it is a message of theirs; and to all clients that hear the topic."""
        wanted: Publish = control.fields
        system = self._owner.system
        try:
            hearers = system.table.topics.match(wanted.topic)
        except ValueError as error:
            raise ProtocolError(str(error), code=ErrorCode.VALIDATION_FAILED, param="$.topic") from None
        principal, policy = connection.protocol.principal, self._owner.setting.policy
        assert principal is not None
        kind = str(wanted.data.get("type", "")) if isinstance(wanted.data, dict) else ""
        if kind in self._owner.setting.catalog.types:  # others name nothing, however many there are
            policy.throttle(principal, kind, system.now())
        if not connection.guest.encoding.text:
            _check_data(wanted.data)
        message = None
        # What it may not send to an agent does not come there by a topic either. No error: a type that there is none of
        # would get none.
        if policy.permissions.may_send_type(principal, kind):
            message = self._owner.setting.catalog.convert(wanted.data)
        reached = 0
        if message is not None:
            scope = Scope(trace_id=request.trace_id)
            scope.principal = principal
            for cell in hearers:
                if policy.permissions.may_send(principal, kind, _addressed(cell)):
                    with contextlib.suppress(MailboxFull, AgentUnavailable):
                        cell.post(Envelope(message, None, connection.name, scope))
                        reached += 1
        if Published in system.bus:
            system.bus.publish(Published(wanted.topic, connection.name, wanted.data))
        request.set_result({"topic": wanted.topic, "agents": reached})

    _ANSWERS: ClassVar[dict[str, Callable[[Controls, Connection, Control, Any], None]]] = {
        "describe": _describe,
        "subscribe": _subscribe,
        "unsubscribe": _unsubscribe,
        "publish": _publish,
    }


def _addressed(cell: Cell) -> str:
    """The name by which clients address an agent: that of its pool, if it is in one."""
    identity = identify(cell)
    return cell.name if identity is None else identity.name.removeprefix(AGENT)


def _check_data(data: Any) -> None:
    """Make sure that all clients can be told what came in MessagePack, which can say more than JSON."""
    try:
        JSON.encode(data)
    except (TypeError, ValueError) as error:
        text = f"not all clients could be told this: {error}"
        raise ProtocolError(text, code=ErrorCode.VALIDATION_FAILED, param="$.data") from None
