"""The gateway: one port for WebSocket connections and a few HTTP documents. Floor 12.

Rules:

1. Bind one socket and read its port: port 0 with a name that has two addresses would open two ports.
2. The reader of a connection waits for the next frame and for room in its own actor's mailbox, which never
   waits itself; never for an agent. Otherwise the library would stop reading, miss the client's pongs and
   close a healthy client.
3. Nothing that a client does leaves here as a traceback.
4. A browser page may connect only from an allowed Origin, and Host must name this machine or be allowed:
   otherwise any web page could talk to a server on localhost (cross-site hijacking, DNS rebinding).
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import ipaddress
import logging
import socket
from collections.abc import Callable
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response as HttpResponse

from grami_actors.cell import CONNECTION
from grami_actors.config import Config
from grami_actors.errors import GramiError, MailboxFull
from grami_actors.frames import Limits
from grami_actors.future import details
from grami_actors.gateway.connection import BinaryFrame, Connection, Drain, Shut, TextFrame
from grami_actors.messages import Envelope
from grami_actors.protocol import Catalog
from grami_actors.system import ActorSystem
from grami_actors.telemetry import ConnectionClosed as ClosedEvent
from grami_actors.telemetry import ConnectionOpened, ConnectionRefused, InternalError, Listening

PATH = "/ws"
_LIBRARY_LOG = logging.getLogger("grami_actors.websockets")
# The library logs a traceback for each client that goes away rudely; our own events say it in one line.
_LIBRARY_LOG.propagate = False
_LIBRARY_LOG.setLevel(logging.CRITICAL + 1)


class Gateway:
    """Accepts clients for one system.

    Args:
        system: where the agents are.
        catalog: the message types.
        config: addresses, limits, origins.
        metrics: gives the text of ``/metrics``.
        version: told in ``welcome``.
    """

    def __init__(
        self, system: ActorSystem, catalog: Catalog, config: Config, metrics: Callable[[], bytes], version: str
    ) -> None:
        self.catalog = catalog
        self.router = system.router
        self.server = {"name": "grami_actors", "version": version}
        self.limits = Limits(
            max_message_bytes=config.max_message_bytes,
            max_inflight=config.max_inflight,
            outbox_bytes=config.outbox_bytes,
            request_timeout_ms=config.request_timeout_ms,
            max_timeout_ms=config.max_timeout_ms,
        )
        self._system = system
        self._config = config
        self._metrics = metrics
        # What it is told to listen on is a name of its own; 0.0.0.0 is nobody's.
        self._allowed_hosts = {host.lower() for host in (*config.allowed_hosts, config.host)}
        self._requests = 0
        self._accepted = 0
        self._open: dict[ServerConnection, Any] = {}
        self._server: Server | None = None
        self._idle: asyncio.Event | None = None
        self.ready = False

    # --- what connections share (connection.Gate) ---

    def admit(self) -> None:
        """Count one more request in flight."""
        if self._requests >= self._config.max_requests:
            raise MailboxFull(f"{self._requests} requests are in flight on this server, its limit; try again later")
        self._requests += 1

    def leave(self) -> None:
        """Count one request less."""
        self._requests -= 1
        if self._requests == 0 and self._idle is not None:
            self._idle.set()

    def error_ref(self) -> str:
        """A fresh reference that ties an answer to a log line."""
        return self._system.new_trace_id()[:12]

    # --- life ---

    async def open(self) -> int:
        """Bind and listen; returns the port. Raises OSError when the address cannot be bound."""
        listener = _bind(self._config.host, self._config.port)
        self._server = await serve(
            self._serve,
            sock=listener,
            process_request=self._process_request,
            # A list of subprotocols would refuse a client that offers none.
            select_subprotocol=lambda *_: None,
            compression=None,
            max_size=self._config.max_message_bytes,
            open_timeout=5,
            ping_interval=20,
            ping_timeout=20,
            close_timeout=2,
            server_header=None,
            logger=_LIBRARY_LOG,
        )
        port: int = listener.getsockname()[1]
        self.ready = True
        if Listening in self._system.bus:
            self._system.bus.publish(Listening(self.url(port)))
        return port

    def url(self, port: int) -> str:
        """Where clients of this machine connect."""
        host = self._config.host
        if host in {"0.0.0.0", ""}:  # noqa: S104 - compared, not bound
            host = "127.0.0.1"
        elif host == "::":
            host = "::1"
        return f"ws://{f'[{host}]' if ':' in host else host}:{port}{PATH}"

    async def close(self) -> None:
        """Take no more, let the requests in flight end within the drain timeout, and close with 1001."""
        self.ready = False
        if self._server is None:
            return
        self._server.close(close_connections=False)
        self._tell_all(Drain())
        if self._requests:
            self._idle = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._config.drain_timeout):
                    await self._idle.wait()
        # What did not end in time still gets its one answer before its connection is closed.
        self._tell_all(Shut())
        await self._server.wait_closed()

    def _tell_all(self, message: Any) -> None:
        for ref in tuple(self._open.values()):
            with contextlib.suppress(GramiError):
                ref._cell.post_always(Envelope(message))

    # --- one client ---

    async def _serve(self, connection: ServerConnection) -> None:
        bus = self._system.bus
        peer = _peer(connection)
        self._accepted += 1
        name = f"{CONNECTION}{self._accepted}"
        if ConnectionOpened in bus:
            bus.publish(ConnectionOpened(name, peer))
        opened_at = self._system.now()
        received = 0
        try:
            ref = await self._system.spawn(Connection, connection, self, name=name)
        except GramiError:
            await connection.close(1012, "the server is shutting down")
            if ClosedEvent in bus:
                bus.publish(ClosedEvent(name, 1012, "the server is shutting down", 0, 0, 0.0))
            return
        self._open[connection] = ref
        if not self.ready:  # it came between the last word to all and the end
            ref._cell.post_always(Envelope(Shut()))
        try:
            async for frame in connection:
                received += 1
                await ref._cell.send(TextFrame(frame) if isinstance(frame, str) else BinaryFrame())
        except (ConnectionClosed, GramiError):
            # The client went away, or our actor for it is gone: both end here, in one line of log.
            pass
        finally:
            del self._open[connection]
            sent, closed_with = _account(ref)
            await self._system.stop(ref)
            if ClosedEvent in bus:
                duration = self._system.now() - opened_at
                code = closed_with or connection.close_code or 1006
                reason = connection.close_reason or ""
                bus.publish(ClosedEvent(name, code, reason, received, sent, duration))

    # --- HTTP ---

    def _process_request(self, connection: ServerConnection, request: HttpRequest) -> HttpResponse | None:
        refusal = self._refusal(request)
        if refusal is not None:
            return self._refuse(connection, *refusal)
        path = request.path.partition("?")[0]
        if request.method not in {"GET", "HEAD"}:
            return _text(
                http.HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD are allowed here\n", ("Allow", "GET, HEAD")
            )
        if path == PATH and request.method == "GET":
            return None
        response = self._document(path)
        if request.method == "HEAD":
            response.body = b""
        return response

    def _document(self, path: str) -> HttpResponse:
        if path == "/livez":
            return _text(http.HTTPStatus.OK, "ok\n")
        if path == "/readyz":
            status = http.HTTPStatus.OK if self.ready else http.HTTPStatus.SERVICE_UNAVAILABLE
            return _text(status, "ready\n" if self.ready else "shutting down\n")
        if path == "/metrics":
            return self._metrics_document()
        return _text(http.HTTPStatus.NOT_FOUND, f"nothing here; the WebSocket endpoint is {PATH}\n")

    def _metrics_document(self) -> HttpResponse:
        try:
            text = self._metrics()
        except Exception as error:  # noqa: BLE001 - a fault of ours, which the library would hide
            reference = self.error_ref()
            if InternalError in self._system.bus:
                self._system.bus.publish(InternalError(reference, details(error)))
            status = http.HTTPStatus.INTERNAL_SERVER_ERROR
            return _text(status, f"an internal error happened; the server's log has it as {reference}\n")
        return _document(http.HTTPStatus.OK, text, "text/plain; version=0.0.4; charset=utf-8")

    def _refusal(self, request: HttpRequest) -> tuple[http.HTTPStatus, str] | None:
        hosts, origins = request.headers.get_all("Host"), request.headers.get_all("Origin")
        if len(hosts) != 1 or not self._host_allowed(hosts[0]):
            named = ", ".join(hosts)[:100] or "none"
            hint = "set GRAMI_ALLOWED_HOSTS to serve other names"
            return http.HTTPStatus.FORBIDDEN, f"the Host {named!r} is not allowed; {hint}"
        if origins and (len(origins) > 1 or origins[0] not in self._config.allowed_origins):
            named = ", ".join(origins)[:100]
            hint = "set GRAMI_ALLOWED_ORIGINS to let a web page connect"
            return http.HTTPStatus.FORBIDDEN, f"the Origin {named!r} is not allowed; {hint}"
        if len(self._open) >= self._config.max_connections:
            return http.HTTPStatus.SERVICE_UNAVAILABLE, f"{len(self._open)} connections are open, the server's limit"
        return None

    def _host_allowed(self, host: str) -> bool:
        name = _host_name(host)
        if name in self._allowed_hosts or host.lower() in self._allowed_hosts:
            return True
        # Compared as addresses: a prefix test would let 127.0.0.1.evil.example pass.
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return name == "localhost"

    def _refuse(self, connection: ServerConnection, status: http.HTTPStatus, reason: str) -> HttpResponse:
        bus = self._system.bus
        if ConnectionRefused in bus:
            bus.publish(ConnectionRefused(_peer(connection), reason))
        return _text(status, reason + "\n")


def _bind(host: str, port: int) -> socket.socket:
    family, kind, number, _, address = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, number)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except BaseException:
        listener.close()
        raise
    return listener


def _host_name(host: str) -> str:
    """The name in a Host header, without port and brackets, in lower case."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if host.count(":") == 1 else host.lower()


def _peer(connection: ServerConnection) -> str:
    address = connection.remote_address
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "a local socket"


def _account(ref: Any) -> tuple[int, int]:
    """How many frames were sent, and the code with which the connection was closed from here, if it was."""
    actor = ref._actor_weakref()
    return (0, 0) if actor is None else (actor.sent, actor.closed_with)


def _text(status: http.HTTPStatus, text: str, *headers: tuple[str, str]) -> HttpResponse:
    return _document(status, text.encode(), "text/plain; charset=utf-8", *headers)


def _document(status: http.HTTPStatus, body: bytes, kind: str, *headers: tuple[str, str]) -> HttpResponse:
    fields = Headers(
        [
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Connection", "close"),
            *headers,
        ]
    )
    return HttpResponse(status.value, status.phrase, fields, body)
