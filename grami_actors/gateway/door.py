"""Who may come in, and the few HTTP documents beside the WebSocket. Floor 12.

A browser page may connect only from an allowed Origin, and Host must name this machine or be allowed: otherwise any
web page could talk to a server on localhost (cross-site hijacking, DNS rebinding). A token in the handshake is checked
here.
"""

from __future__ import annotations

import http
import ipaddress
import math
import re
from collections.abc import Callable, Mapping, Sequence
from email.utils import formatdate
from typing import Any, NamedTuple

from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response as HttpResponse
from websockets.typing import Subprotocol

from grami_actors.buckets import Buckets
from grami_actors.config import Config
from grami_actors.credentials import Authority, bearer_token
from grami_actors.encoding import ENCODINGS, JSON
from grami_actors.errors import ProtocolError
from grami_actors.frames import close_code
from grami_actors.gateway.house import Guest
from grami_actors.gateway.socket import Sockets, WebSocket
from grami_actors.telemetry import Bus, ConnectionRefused, LimitHit

PATH = "/ws"
# Nothing else: what stood behind a bracket, or with a user before an @, would be taken for a name that it is not.
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\[\]:@/\s]+))(?::[0-9]*)?")
"""``uri-host [ ":" port ]`` (RFC 9110 section 7.2), in lower case."""

BURST_SECONDS = 4.0
"""Seconds of the accept rate that may come at once: clients that lost the same server come back together."""


class Document(NamedTuple):
    """Something that is served over HTTP.

    Attributes:
        kind: its Content-Type.
        make: gives its bytes.
        open: whether everybody may have it, and pages of allowed origins too; else whoever has a credential, where one
            is asked for.
    """

    kind: str
    make: Callable[[], bytes]
    open: bool = False


class Refused(Exception):
    """A handshake is refused.

    Args:
        status: of HTTP.
        reason: in words.
        limit: the setting that it ran into.
        headers: further ones.
    """

    def __init__(
        self, status: http.HTTPStatus, reason: str, limit: str = "", headers: Sequence[tuple[str, str]] = ()
    ) -> None:
        super().__init__(reason)
        self.status = status
        self.limit = limit
        self.headers = headers


class Door:
    """Looks at each handshake of one listener.

    Args:
        config: the settings.
        authority: knows the credentials.
        sockets: all that are open.
        bus: is told of whom was refused.
        documents: what there is beside the WebSocket, by path.
        fault: gives the answer for an exception of ours.

    Attributes:
        closing: refuse new connections, and tell so under ``/readyz``.
    """

    def __init__(
        self,
        config: Config,
        authority: Authority,
        sockets: Sockets,
        bus: Bus,
        documents: Mapping[str, Document],
        fault: Callable[[Exception], str],
    ) -> None:
        self.closing = False
        self._config = config
        self._authority = authority
        self._sockets = sockets
        self._bus = bus
        self._documents = documents
        self._fault = fault
        self._accepts = Buckets(config.accept_rate, config.accept_rate * BURST_SECONDS)
        # What it is told to listen on is a name of its own; 0.0.0.0 is nobody's.
        self._hosts = {host.lower() for host in (*config.allowed_hosts, config.host)}

    def process_request(self, connection: ServerConnection, request: HttpRequest) -> HttpResponse | None:
        """Answer an HTTP request, or let a handshake go on with ``None``."""
        assert isinstance(connection, WebSocket)
        try:
            return self._process(connection, request)
        except Refused as refused:
            peer = peer_of(connection)
            if refused.limit and LimitHit in self._bus:
                self._bus.publish(LimitHit(refused.limit, connection.address))
            if ConnectionRefused in self._bus:
                self._bus.publish(ConnectionRefused(peer, str(refused)))
            return _text(refused.status, f"{refused}\n", *refused.headers)

    def _process(self, connection: WebSocket, request: HttpRequest) -> HttpResponse | None:
        self._check_names(request)
        path = request.path.partition("?")[0]
        if request.method not in {"GET", "HEAD"}:
            allowed = ("Allow", "GET, HEAD")
            return _text(http.HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD are allowed here\n", allowed)
        if path == PATH and request.method == "GET":
            self._check_limits(connection)
            connection.guest = self._guest(connection, request)
            if connection.guest.principal is not None:
                # Before its first frame, which may be right behind the handshake.
                connection.allow(self._config.max_message_bytes)
            connection.admit()
            return None
        response = self._document(path, request)
        if request.method == "HEAD":
            response.body = b""
        return response

    # --- who may come in ---

    def _check_names(self, request: HttpRequest) -> None:
        hosts, origins = request.headers.get_all("Host"), request.headers.get_all("Origin")
        if len(hosts) != 1 or not self._host_allowed(hosts[0]):
            named = ", ".join(hosts)[:100] or "none"
            hint = "set GRAMI_ALLOWED_HOSTS to serve other names"
            raise Refused(http.HTTPStatus.FORBIDDEN, f"the Host {named!r} is not allowed; {hint}")
        if origins and (len(origins) > 1 or origins[0] not in self._config.allowed_origins):
            named = ", ".join(origins)[:100]
            hint = "set GRAMI_ALLOWED_ORIGINS to let a web page connect"
            raise Refused(http.HTTPStatus.FORBIDDEN, f"the Origin {named!r} is not allowed; {hint}")

    def _host_allowed(self, host: str) -> bool:
        host = host.lower()
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        name = found[1] or found[2]
        if name in self._hosts or host in self._hosts:
            return True
        # Compared as addresses: a prefix test would let 127.0.0.1.evil.example pass.
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return name == "localhost"

    def _check_limits(self, connection: WebSocket) -> None:
        config, busy = self._config, http.HTTPStatus.SERVICE_UNAVAILABLE
        if self.closing:
            raise Refused(busy, "the server is shutting down", headers=[("Retry-After", "1")])
        if self._sockets.admitted >= config.max_connections:
            text = f"{config.max_connections} connections are open, the server's limit"
            raise Refused(busy, text, "max_connections", [("Retry-After", "5")])
        # This socket is counted already.
        if self._sockets.from_address(connection.address) > config.max_connections_per_address:
            text = f"{config.max_connections_per_address} connections are open from your address, its limit"
            limit = "max_connections_per_address"
            raise Refused(http.HTTPStatus.TOO_MANY_REQUESTS, text, limit, [("Retry-After", "5")])
        wait = self._accepts.take("", self._sockets.clock())
        if wait:
            retry = [("Retry-After", str(math.ceil(wait)))]
            raise Refused(busy, "too many clients connect at once; try again", "accept_rate", retry)

    def _guest(self, connection: WebSocket, request: HttpRequest) -> Guest:
        offered = _offered(request)
        guest = Guest(peer_of(connection), encoding=ENCODINGS.get(chosen(offered) or "", JSON))
        try:
            token = bearer_token(request.headers.get_all("Authorization"), offered)
            if token is not None:
                guest.principal = self._authority.authenticate(token)
        except ProtocolError as wrong:
            if not self._authority.required:  # it may be meant for a proxy on the way
                return guest
            if not request.headers.get_all("Origin"):
                raise _unauthorized(wrong.message) from None
            # A page is shown no status of a handshake, only how a connection was closed.
            guest.refused = (close_code(wrong.error_code), str(wrong.error_code))
        return guest

    # --- documents ---

    def _document(self, path: str, request: HttpRequest) -> HttpResponse:
        if path == "/livez":
            return _text(http.HTTPStatus.OK, "ok\n")
        if path == "/readyz":
            status = http.HTTPStatus.SERVICE_UNAVAILABLE if self.closing else http.HTTPStatus.OK
            return _text(status, "shutting down\n" if self.closing else "ready\n")
        document = self._documents.get(path)
        if document is None:
            return _text(http.HTTPStatus.NOT_FOUND, f"nothing here; the WebSocket endpoint is {PATH}\n")
        if not document.open and self._authority.required:
            self._check_reader(request)
        try:
            body = document.make()
        except Exception as error:  # noqa: BLE001 - a fault of ours, which the library would hide
            return _text(http.HTTPStatus.INTERNAL_SERVER_ERROR, f"{self._fault(error)}\n")
        shared = [("Vary", "Origin")] if document.open else []
        if document.open and (origin := request.headers.get("Origin")):  # it is allowed, or we would not be here
            shared.append(("Access-Control-Allow-Origin", origin))
        return _document(http.HTTPStatus.OK, body, document.kind, *shared)

    def _check_reader(self, request: HttpRequest) -> None:
        try:
            token = bearer_token(request.headers.get_all("Authorization"), ())
            if token is None:
                raise _unauthorized("send `Authorization: Bearer TOKEN`")
            self._authority.authenticate(token)
        except ProtocolError as wrong:
            raise _unauthorized(wrong.message) from None


def chosen(offered: Sequence[str]) -> Subprotocol | None:
    """The first subprotocol of ours that a client offers; one that carries a token is never told back."""
    return next((Subprotocol(each) for each in offered if each in ENCODINGS), None)


def peer_of(connection: ServerConnection) -> str:
    """Address and port, for people."""
    address = connection.remote_address
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "a local socket"


def _offered(request: HttpRequest) -> list[str]:
    headers = request.headers.get_all("Sec-WebSocket-Protocol")
    return [each.strip() for header in headers for each in header.split(",")]


def _unauthorized(reason: str) -> Refused:
    return Refused(http.HTTPStatus.UNAUTHORIZED, reason, headers=[("WWW-Authenticate", "Bearer")])


def _text(status: http.HTTPStatus, text: str, *headers: tuple[str, str]) -> HttpResponse:
    return _document(status, text.encode(), "text/plain; charset=utf-8", *headers)


def _document(status: http.HTTPStatus, body: bytes, kind: str, *headers: tuple[str, str]) -> HttpResponse:
    fields: Any = [
        ("Date", formatdate(usegmt=True)),
        ("Content-Type", kind),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
        ("Connection", "close"),
        *headers,
    ]
    return HttpResponse(status.value, status.phrase, Headers(fields), body)
