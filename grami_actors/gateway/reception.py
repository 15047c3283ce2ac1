"""All connections of one system, whatever they came over: counted, looked after, and sent home. Floor 12.

What listens is another's: :class:`~grami_actors.gateway.server.Gateway` has a port, and
:class:`~grami_actors.gateway.memory.MemoryGateway` has none.

Rules:

1. The reader of a connection waits for the next frame, for room in its own actor's mailbox, which never waits itself,
   and for a client that does not read; never for an agent. Otherwise the library would stop reading, miss the client's
   pongs and close a healthy client.
2. Nothing that a client does leaves here as a traceback.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Coroutine, Iterator
from typing import Any

from websockets.exceptions import ConnectionClosed

from grami_actors.catalog import Catalog
from grami_actors.cell import CONNECTION
from grami_actors.config import Config
from grami_actors.errors import Cancelled, ErrorCode, GramiError, LimitReached
from grami_actors.frames import (
    CLOSE_ABUSE,
    CLOSE_AUTH_TIMEOUT,
    CLOSE_CONNECTION_LIMIT,
    CLOSE_IDLE,
    CLOSE_RESTART,
    CLOSE_SLOW_CONSUMER,
    CLOSE_UNAUTHENTICATED,
    Limits,
)
from grami_actors.future import details
from grami_actors.gateway.admin import Admin, ConnectionInfo
from grami_actors.gateway.attachments import Watch
from grami_actors.gateway.connection import Connection
from grami_actors.gateway.controls import Controls
from grami_actors.gateway.feed import Feed
from grami_actors.gateway.house import Line
from grami_actors.gateway.replays import Replays, Work
from grami_actors.gateway.request import Drain, FrameCame, Request, Shut, Tick
from grami_actors.messages import Envelope
from grami_actors.policy import Policy
from grami_actors.principals import ANONYMOUS, Principal
from grami_actors.protocol import RECONNECT_JITTER_MS, Control, Setting
from grami_actors.system import ActorSystem
from grami_actors.telemetry import ConnectionClosed as ClosedEvent
from grami_actors.telemetry import ConnectionOpened, InternalError, LimitHit

SWEEP = 1.0
"""Seconds between two looks at every connection."""

CLOSES_A_SECOND = 500
"""So many clients at most are sent away in a second: each comes back with a handshake."""


class Reception:
    """What all connections of one system share.

    Args:
        system: where the agents are.
        catalog: the message types.
        config: limits.
        policy: who may do what.
        version: told in ``welcome``.

    Attributes:
        closing: take no new connections.
    """

    def __init__(self, system: ActorSystem, catalog: Catalog, config: Config, policy: Policy, version: str) -> None:
        self.system = system
        self.router = system.router
        self.setting = Setting(catalog, _limits(config), {"name": "grami_actors", "version": version}, policy)
        self.stream_grace = config.stream_grace
        self.replays = Replays(system.now, config.stream_grace)
        self.feed = Feed(system.bus, system.new_trace_id()[:8], config.event_history)
        self.watch = Watch(system, policy.permissions)
        self.admin = Admin(self)
        self.closing = False
        self._controls = Controls(self)
        self._config = config
        self._requests = 0
        self._accepted = 0
        self._open: dict[Line, Any] = {}
        self._principals: Counter[str] = Counter()
        self._orphans: dict[Request, None] = {}
        self._changed = asyncio.Event()
        self._drained = asyncio.Event()

    @property
    def first_message_bytes(self) -> int:
        """How large a message may be before the server knows whose it is."""
        config = self._config
        return config.max_unauthenticated_bytes if self.setting.policy.authority.required else config.max_message_bytes

    # --- what connections share (house.House) ---

    def admit(self) -> None:
        """Count one more request in flight."""
        if self._requests >= self._config.max_requests:
            raise LimitReached(
                f"{self._requests} requests are in flight on this server, its limit; try again later",
                code=ErrorCode.RESOURCE_EXHAUSTED,
                limit="max_requests",
                retry_after_ms=1000,
            )
        self._requests += 1

    def leave(self, request: Request) -> None:
        """Count one request less."""
        self._orphans.pop(request, None)
        self._requests -= 1
        if self._requests == 0:
            self._changed.set()

    def orphan(self, request: Request) -> None:
        """Let a request whose client is gone go on for a while: what it streamed may be worth finishing."""
        self._orphans[request] = None
        gone = Cancelled("the client disconnected")
        self.system.after(self.stream_grace, lambda: request.cancel(gone))

    def authenticated(self, connection: Connection, principal: Principal) -> None:
        """Count the connections of a principal; those of nobody in particular are not counted."""
        if connection.counted_for or principal is ANONYMOUS:
            return
        most = self._config.max_connections_per_principal
        if self._principals[principal.name] >= most:
            raise LimitReached(
                f"{principal.name} has {most} connections, its limit", limit="max_connections_per_principal"
            )
        connection.counted_for = principal.name
        self._principals[principal.name] += 1
        connection.allow(self._config.max_message_bytes)

    def control(
        self, connection: Connection, control: Control, request: Request | Work
    ) -> Coroutine[Any, Any, Any] | None:
        """Answer a control message."""
        return self._controls.answer(connection, control, request)

    def fault(self, error: BaseException) -> str:
        """Report a fault of ours; what is said of it: a reference that ties the answer to a log line."""
        reference = self.system.new_trace_id()[:12]
        self.system.bus.publish(InternalError(reference, details(error)))
        return f"an internal error happened; the server's log has it as {reference}"

    # --- what administrators see and do (admin.House) ---

    def connections(self) -> Iterator[ConnectionInfo]:
        """All open connections."""
        now = self.system.now()
        for actor in self._actors():
            principal = actor.protocol.principal
            yield ConnectionInfo(
                id=actor.name,
                peer=actor.guest.peer,
                principal="" if principal is None else principal.name,
                age_ms=round((now - actor.opened_at) * 1000),
                inflight=len(actor.protocol.inflight),
                outbox_bytes=actor.outbox.size,
                received=actor.received,
                sent=actor.sent,
                subscriptions=len(actor.protocol.subscriptions),
            )

    def outboxes(self) -> Iterator[int]:
        """Bytes that wait for each open connection."""
        return (actor.outbox.size for actor in self._actors())

    def disconnect(self, connection_id: str, code: int, reason: str) -> bool:
        """Close one connection."""
        for actor in self._actors():
            if actor.name == connection_id:
                actor.close(code, reason)
                return True
        return False

    def begin_drain(self) -> None:
        """Take no new requests, and wake whoever waits in :meth:`drained`, to stop the server."""
        self._say_goodbye()
        self._drained.set()

    async def drained(self) -> None:
        """Wait until an administrator wants the server to stop."""
        await self._drained.wait()

    def _actors(self) -> Iterator[Connection]:
        for ref in tuple(self._open.values()):
            actor = ref._actor_weakref()
            if actor is not None:
                yield actor

    # --- their end ---

    async def close(self) -> None:
        """Take no more, let the requests in flight end within the drain timeout, and close with 1012."""
        self.admin.close()
        self._say_goodbye()
        deadline = asyncio.get_running_loop().time() + self._config.drain_timeout
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await self._quiet()
        # What did not end in time still gets its one answer before its connection is closed.
        self._tell_all(Shut(CLOSE_RESTART, "the server is restarting"))
        for request in tuple(self._orphans):
            request.cancel(Cancelled("the client disconnected"))
        await self._stop_listening()
        self.feed.close()

    async def _stop_listening(self) -> None:
        """Let what listens end, with all its connections."""
        raise NotImplementedError

    def _say_goodbye(self) -> None:
        if self.closing:
            return
        self.closing = True
        if not self._open:
            return
        rng = random.Random(self.system.new_trace_id())
        most = self._config.drain_timeout
        seconds = len(self._open) / CLOSES_A_SECOND
        spread = min(seconds, most / 2)
        # They come back with handshakes, which cost more than goodbyes.
        jitter = min(RECONNECT_JITTER_MS, round(2 * seconds * 1000))
        for ref in tuple(self._open.values()):
            self._post(ref, Drain("restart", rng.uniform(0, spread), most, jitter))

    async def _quiet(self) -> None:
        """Wait until every request has its answer, and every connection is closed."""
        while self._open or self._requests:
            self._changed.clear()
            await self._changed.wait()

    def _tell_all(self, message: Any) -> None:
        for ref in tuple(self._open.values()):
            self._post(ref, message)

    @staticmethod
    def _post(ref: Any, message: Any) -> None:
        with contextlib.suppress(GramiError):
            ref._cell.post_always(Envelope(message))

    # --- the look around ---

    @property
    def _most_pause(self) -> float:
        """Seconds between two looks at most: half of the shortest time that a client has for anything."""
        limits = self.setting.limits
        shortest = (limits.auth_timeout, limits.outbox_seconds, self._config.message_timeout, limits.idle_timeout or 9)
        return max(0.01, min(SWEEP, *(each / 2 for each in shortest)))

    def _sweep(self) -> None:
        """Look who of the connections is overdue."""
        now = self.system.now()
        authority = self.setting.policy.authority
        for connection, ref in tuple(self._open.items()):
            actor = ref._actor_weakref()
            if actor is None:
                continue
            since = connection.receiving_since
            principal = actor.protocol.principal
            if since is not None and now - since > self._config.message_timeout:
                actor.close(CLOSE_ABUSE, "a message took too long to arrive")
            elif principal is not None and principal.key and authority.revoked(principal):
                actor.close(CLOSE_UNAUTHENTICATED, "INVALID_TOKEN: the token was revoked")
            elif actor.overdue(now):
                self._post(ref, Tick())

    # --- one client ---

    async def _serve(self, connection: Line) -> None:
        """Be there for a client until its connection is over."""
        bus = self.system.bus
        guest = connection.guest
        self._accepted += 1
        name = f"{CONNECTION}{self._accepted}"
        if ConnectionOpened in bus:
            bus.publish(ConnectionOpened(name, guest.peer))
        try:
            ref = await self.system.spawn(Connection, connection, self, guest, name=name)
        except GramiError:
            await connection.close(CLOSE_RESTART, "the server is shutting down")
            if ClosedEvent in bus:
                bus.publish(ClosedEvent(name, CLOSE_RESTART, "the server is shutting down", 0, 0, 0.0))
            return
        actor: Any = ref._actor_weakref()
        if actor is None:  # it was stopped the moment it was there
            await connection.close(1011, "internal error")
            return
        self._open[connection] = ref
        if self.closing:  # it came between the last word to all and the end
            self._post(ref, Shut(CLOSE_RESTART, "the server is restarting"))
        try:
            await self._read(connection, ref, actor)
        except (ConnectionClosed, GramiError):
            # The client went away, or our actor for it is gone: both end here, in one line of log.
            pass
        finally:
            await self._end(connection, ref, actor)

    @staticmethod
    async def _read(connection: Line, ref: Any, actor: Connection) -> None:
        cell = ref._cell
        async for frame in connection:
            await cell.send(FrameCame(frame))
            if actor.congested:
                await actor.outbox.room()

    async def _end(self, connection: Line, ref: Any, actor: Connection) -> None:
        del self._open[connection]
        if actor.counted_for:
            self._principals[actor.counted_for] -= 1
            if not self._principals[actor.counted_for]:
                del self._principals[actor.counted_for]
        await self.system.stop(ref)
        self._changed.set()
        bus = self.system.bus
        code = actor.closed_with or connection.last_code or 1006
        if code in _LIMITS:
            bus.publish(LimitHit(_LIMITS[code], actor.counted_for or connection.address))
        if ClosedEvent in bus:
            reason = actor.protocol.close_reason or connection.close_reason or ""
            duration = self.system.now() - actor.opened_at
            bus.publish(ClosedEvent(actor.name, code, reason, actor.received, actor.sent, duration))


_LIMITS = {
    1009: "max_message_bytes",
    CLOSE_ABUSE: "abuse",
    CLOSE_AUTH_TIMEOUT: "auth_timeout",
    CLOSE_CONNECTION_LIMIT: "max_connections_per_principal",
    CLOSE_IDLE: "idle_timeout",
    CLOSE_SLOW_CONSUMER: "outbox_bytes",
}
"""What a client ran into whose connection was closed with a code; ``abuse`` is no setting of its own."""


def _limits(config: Config) -> Limits:
    return Limits(**{name: getattr(config, name) for name in Limits.__struct_fields__})
