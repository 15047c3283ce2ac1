"""The gateway: one port for WebSocket connections and a few HTTP documents. Floor 12.

Rules:

1. Bind one socket and read its port: port 0 with a name that has two addresses would open two ports.
2. The reader of a connection waits for the next frame, for room in its own actor's mailbox, which never waits itself,
   and for a client that does not read; never for an agent. Otherwise the library would stop reading, miss the client's
   pongs and close a healthy client.
3. Nothing that a client does leaves here as a traceback.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
from collections import Counter
from collections.abc import Coroutine, Iterator, Mapping
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory

from grami_actors.catalog import Catalog
from grami_actors.cell import CONNECTION
from grami_actors.config import Config
from grami_actors.errors import Cancelled, ConfigError, ErrorCode, GramiError, LimitReached
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
from grami_actors.gateway.connection import Connection
from grami_actors.gateway.controls import Controls
from grami_actors.gateway.door import PATH, Document, Door, chosen
from grami_actors.gateway.feed import Feed
from grami_actors.gateway.replays import Replays, Work
from grami_actors.gateway.request import Drain, FrameCame, Request, Shut, Tick
from grami_actors.gateway.socket import Sockets, WebSocket
from grami_actors.gateway.tls import Certificates, warning_about_loop
from grami_actors.messages import Envelope
from grami_actors.policy import Policy
from grami_actors.principals import ANONYMOUS, Principal
from grami_actors.protocol import RECONNECT_JITTER_MS, Control, Setting
from grami_actors.system import ActorSystem
from grami_actors.telemetry import ConnectionClosed as ClosedEvent
from grami_actors.telemetry import (
    ConnectionOpened,
    Doubted,
    Event,
    InternalError,
    LimitHit,
    Listening,
    LoopLagged,
    Reloaded,
)

PULSE = 0.25
"""Seconds between two looks at the clock, and how late the loop comes to it."""

SWEEP = 1.0
"""Seconds between two looks at every connection."""

HANDSHAKE = 5.0
"""Seconds that the handshake of WebSocket may take; the library gives that of TLS as many."""

CLOSES_A_SECOND = 500
"""So many clients at most are sent away in a second: each comes back with a handshake."""

HANDSHAKES_END = 1.0
"""Seconds that handshakes under way get when all else has ended."""

_LIBRARY_LOG = logging.getLogger("grami_actors.websockets")
# The library logs a traceback for each client that goes away rudely; our own events say it in one line.
_LIBRARY_LOG.propagate = False
_LIBRARY_LOG.setLevel(logging.CRITICAL + 1)


class Gateway:
    """Accepts clients for one system.

    Args:
        system: where the agents are.
        catalog: the message types.
        config: addresses and limits.
        policy: who may do what.
        documents: what is served over HTTP beside the WebSocket, by path.
        version: told in ``welcome``.

    Raises:
        ConfigError: the TLS certificate cannot be used.
    """

    def __init__(
        self,
        system: ActorSystem,
        catalog: Catalog,
        config: Config,
        policy: Policy,
        documents: Mapping[str, Document],
        version: str,
    ) -> None:
        self.system = system
        self.router = system.router
        self.setting = Setting(catalog, _limits(config), {"name": "grami_actors", "version": version}, policy)
        self.stream_grace = config.stream_grace
        self.replays = Replays(system.now, config.stream_grace)
        self.feed = Feed(system.bus, system.new_trace_id()[:8], config.event_history)
        self.admin = Admin(self)
        self.certificates = None if config.tls_cert is None else Certificates(config.tls_cert, config.tls_key)
        self._controls = Controls(self)
        self._config = config
        self._sockets = Sockets(config.max_connections, system.now, config.max_connections_per_address)
        self._door = Door(config, policy.authority, self._sockets, system.bus, documents, self._fault)
        self._rng = random.Random(system.new_trace_id())
        self._requests = 0
        self._accepted = 0
        self._open: dict[WebSocket, Any] = {}
        self._principals: Counter[str] = Counter()
        self._orphans: set[Request] = set()
        self._server: Server | None = None
        self._pulse: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._drained = asyncio.Event()

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
        self._orphans.discard(request)
        self._requests -= 1
        if self._requests == 0:
            self._changed.set()

    def orphan(self, request: Request) -> None:
        """Let a request whose client is gone go on for a while: what it streamed may be worth finishing."""
        self._orphans.add(request)
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

    def error_ref(self) -> str:
        """A fresh reference that ties an answer to a log line."""
        return self.system.new_trace_id()[:12]

    def _fault(self, error: Exception) -> str:
        """What is said of a fault of ours."""
        reference = self.error_ref()
        self._publish(InternalError(reference, details(error)))
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

    @property
    def ready(self) -> bool:
        """Whether it takes new connections and requests."""
        return self._server is not None and not self._door.closing

    # --- life ---

    async def open(self) -> int:
        """Bind and listen; returns the port. Raises OSError when the address cannot be bound."""
        config = self._config
        listener = _bind(config.host, config.port, reuse_port=config.reuse_port)
        self._server = await serve(
            self._serve,
            sock=listener,
            ssl=None if self.certificates is None else self.certificates.context,
            create_connection=self._sockets.connection_factory,
            process_request=self._door.process_request,
            # A list of subprotocols would refuse a client that offers none.
            select_subprotocol=lambda _, offered: chosen(offered),
            compression=None,
            extensions=[_DEFLATE] if config.compression else None,
            max_size=config.max_unauthenticated_bytes
            if self.setting.policy.authority.required
            else config.max_message_bytes,
            open_timeout=HANDSHAKE,
            ping_interval=config.keepalive,
            ping_timeout=config.keepalive,
            close_timeout=2,
            server_header=None,
            logger=_LIBRARY_LOG,
        )
        self._pulse = asyncio.create_task(self._beat())
        port: int = listener.getsockname()[1]
        self._publish(Listening(self.url(port)))
        if self.certificates is not None:
            for doubt in (self.certificates.warning, warning_about_loop(asyncio.get_running_loop())):
                if doubt is not None:
                    self._publish(Doubted(doubt))
        return port

    def url(self, port: int) -> str:
        """Where clients of this machine connect."""
        host = self._config.host
        if host in {"0.0.0.0", ""}:  # noqa: S104 - compared, not bound
            host = "127.0.0.1"
        elif host == "::":
            host = "::1"
        scheme = "ws" if self.certificates is None else "wss"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}{PATH}"

    async def close(self) -> None:
        """Take no more, let the requests in flight end within the drain timeout, and close with 1012."""
        self.admin.close()
        if self._server is None:
            return
        self._say_goodbye()
        deadline = asyncio.get_running_loop().time() + self._config.drain_timeout
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await self._quiet()
        # What did not end in time still gets its one answer before its connection is closed.
        self._tell_all(Shut(CLOSE_RESTART, "the server is restarting"))
        for request in tuple(self._orphans):
            request.cancel(Cancelled("the client disconnected"))
        await self._stop_listening(self._server)
        hang_up = asyncio.get_running_loop().call_later(HANDSHAKES_END, self._sockets.end_handshakes)
        await self._server.wait_closed()
        hang_up.cancel()
        if self._pulse is not None:
            self._pulse.cancel()
            await asyncio.wait((self._pulse,))
        self.feed.close()

    @staticmethod
    async def _stop_listening(server: Server) -> None:
        # asyncio forgets a socket that it accepts while its listener is closed: no more is taken, then what was taken
        # gets to its connection, then the listener is closed.
        loop = asyncio.get_running_loop()
        for listener in server.sockets:
            with contextlib.suppress(NotImplementedError):
                loop.remove_reader(listener.fileno())
        for _ in range(3):
            await asyncio.sleep(0)
        server.close(close_connections=False)

    def _say_goodbye(self) -> None:
        if self._door.closing:
            return
        self._door.closing = True
        most = self._config.drain_timeout
        seconds = len(self._open) / CLOSES_A_SECOND
        spread = min(seconds, most / 2)
        # They come back with handshakes, which cost more than goodbyes.
        jitter = min(RECONNECT_JITTER_MS, round(2 * seconds * 1000))
        for ref in tuple(self._open.values()):
            self._post(ref, Drain("restart", self._rng.uniform(0, spread), most, jitter))

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

    # --- the pulse ---

    async def _beat(self) -> None:
        """Look at the clock: how late the loop is, and who of the connections is overdue."""
        loop = asyncio.get_running_loop()
        bus = self.system.bus
        limits = self.setting.limits
        shortest = (limits.auth_timeout, limits.outbox_seconds, self._config.message_timeout, limits.idle_timeout or 9)
        sweep = max(0.01, min(SWEEP, *(each / 2 for each in shortest)))
        due = swept_at = loop.time()
        while True:
            pause = min(PULSE, sweep)
            due = loop.time() + pause
            await asyncio.sleep(pause)
            now = loop.time()
            if LoopLagged in bus:
                bus.publish(LoopLagged(now - due))
            if now - swept_at >= sweep:
                swept_at = now
                self._sweep()

    def _sweep(self) -> None:
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
        if self.certificates is not None and self.certificates.changed():
            self.reload()

    def reload(self) -> None:
        """Read the certificates again, for connections to come. What cannot be used is published, not raised."""
        if self.certificates is None:
            return
        try:
            self.certificates.reload()
        except ConfigError as error:
            self._publish(Doubted(f"certificates not reloaded: {error.message}"))
        else:
            self._publish(Reloaded("certificates"))

    def _publish(self, event: Event) -> None:
        if type(event) in self.system.bus:
            self.system.bus.publish(event)

    # --- one client ---

    async def _serve(self, connection: ServerConnection) -> None:
        assert isinstance(connection, WebSocket)
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
        if self._door.closing:  # it came between the last word to all and the end
            self._post(ref, Shut(CLOSE_RESTART, "the server is restarting"))
        try:
            await self._read(connection, ref, actor)
        except (ConnectionClosed, GramiError):
            # The client went away, or our actor for it is gone: both end here, in one line of log.
            pass
        finally:
            await self._end(connection, ref, actor)

    @staticmethod
    async def _read(connection: WebSocket, ref: Any, actor: Connection) -> None:
        cell = ref._cell
        async for frame in connection:
            await cell.send(FrameCame(frame))
            if actor.congested:
                await actor.outbox.room()

    async def _end(self, connection: WebSocket, ref: Any, actor: Connection) -> None:
        del self._open[connection]
        if actor.counted_for:
            self._principals[actor.counted_for] -= 1
            if not self._principals[actor.counted_for]:
                del self._principals[actor.counted_for]
        await self.system.stop(ref)
        self._changed.set()
        bus = self.system.bus
        # What was said last, where the client has not yet confirmed it.
        sent = connection.protocol.close_sent
        code = actor.closed_with or (connection.close_code if sent is None else sent.code) or 1006
        if code in _LIMITS:
            self._publish(LimitHit(_LIMITS[code], actor.counted_for or connection.address))
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

_DEFLATE = ServerPerMessageDeflateFactory(
    server_max_window_bits=11, client_max_window_bits=11, compress_settings={"memLevel": 4}
)


def _limits(config: Config) -> Limits:
    return Limits(**{name: getattr(config, name) for name in Limits.__struct_fields__})


def _bind(host: str, port: int, *, reuse_port: bool) -> socket.socket:
    family, kind, number, _, address = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, number)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
        listener.listen(1024)
    except BaseException:
        listener.close()
        raise
    return listener
