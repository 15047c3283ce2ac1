"""What ``grami doctor`` does on the network: connect, shake hands and ask, as a stranger and in bounded time. Floor 17.

Plain sockets: a client library hides what is to be told here (which address, which certificate, which answer).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import re
import secrets
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import msgspec

from grami_actors.errors import ConfigError
from grami_actors.handshake import trusted

MOST_ADDRESSES = 8
MOST_HEADERS = 100
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
"""RFC 6455, section 1.3."""


class Trouble(Exception):
    """Something does not work.

    Attributes:
        found: what was seen.
        advice: what to do about it.
    """

    def __init__(self, found: str, advice: str = "") -> None:
        super().__init__(found)
        self.found = found
        self.advice = advice


class Target(msgspec.Struct, frozen=True):
    """Where a server should be."""

    host: str
    port: int
    path: str
    secure: bool

    @property
    def shown(self) -> str:
        """The URL without what may be secret in one: user, password and query."""
        return f"ws{'s' * self.secure}://{self.authority}{self.path}"

    @property
    def authority(self) -> str:
        """Host and port, as in a Host header (RFC 9110, section 7.2)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == self.usual_port else f"{host}:{self.port}"

    @property
    def usual_port(self) -> int:
        """The port of a URL that names none."""
        return 443 if self.secure else 80


def target(url: str) -> Target:
    """Take a WebSocket URL apart. Raises Trouble if it is none."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Trouble(f"this is no URL: {error}", "it looks like ws://127.0.0.1:8000/ws") from None
    if parts.scheme not in {"ws", "wss"} or not parts.hostname:
        advice = "it begins with ws:// (or wss://, with TLS), as in ws://127.0.0.1:8000/ws"
        raise Trouble("this is no WebSocket URL", advice)
    secure = parts.scheme == "wss"
    return Target(parts.hostname, port or (443 if secure else 80), parts.path or "/", secure)


class Answer(msgspec.Struct, frozen=True):
    """The head of an HTTP answer; names of fields are in lower case."""

    status: int
    fields: dict[str, str]


async def resolve(where: Target, patience: float) -> list[str]:
    """The addresses of a host, best first. Raises Trouble."""
    loop = asyncio.get_running_loop()
    told: asyncio.Future[Any] = loop.create_future()

    def look_up() -> None:
        try:
            found: Any = socket.getaddrinfo(where.host, where.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            found = error
        with contextlib.suppress(RuntimeError):  # nobody waited for so long
            loop.call_soon_threadsafe(tell, found)

    def tell(found: Any) -> None:
        if not told.done():
            told.set_result(found)

    # A daemon, and not the loop's executor: the end of the program would wait for a resolver that hangs.
    threading.Thread(target=look_up, daemon=True).start()
    try:
        async with asyncio.timeout(patience):
            found = await told
    except TimeoutError:
        raise Trouble(f"the name {where.host} was not resolved in {patience:g} s", "check the DNS resolver") from None
    if isinstance(found, Exception):
        raise Trouble(f"the name {where.host} cannot be resolved: {found}", "check the name, or use an address")
    return list(dict.fromkeys(str(each[4][0]) for each in found))[:MOST_ADDRESSES]


class Prober:
    """Asks one server, each time over a connection of its own.

    Args:
        where: the server.
        address: one of its host's addresses.
        patience: seconds that each question may take.
    """

    def __init__(self, where: Target, address: str, patience: float) -> None:
        self.where = where
        self._address = address
        self._patience = patience

    async def reach(self) -> float:
        """Connect by TCP; the seconds that it took. Raises Trouble."""
        began = time.perf_counter()
        async with self._streams():
            return time.perf_counter() - began

    async def secure(self) -> tuple[str, float]:
        """Connect by TLS; its version, and when the certificate expires (seconds since the epoch). Raises Trouble."""
        async with self._streams(secure=True) as (_, writer):
            session = writer.get_extra_info("ssl_object")
            return session.version(), ssl.cert_time_to_seconds(session.getpeercert()["notAfter"])

    async def get(self, path: str) -> Answer:
        """Ask for a document. Raises Trouble."""
        return await self._ask(path, {"Connection": "close"})

    async def shake_hands(self, **fields: str) -> Answer:
        """Ask for a WebSocket (RFC 6455, section 4.1). Raises Trouble, also for a wrong answer to the key."""
        key = base64.b64encode(secrets.token_bytes(16))
        asked = {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": key.decode(),
        }
        answer = await self._ask(self.where.path, asked | fields)
        proof = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest()).decode()
        if answer.status == 101 and answer.fields.get("sec-websocket-accept") != proof:  # noqa: PLR2004 - RFC 6455
            raise Trouble(
                "the handshake was answered with a wrong key", "something between here and there is no WebSocket"
            )
        return answer

    async def _ask(self, path: str, fields: dict[str, str]) -> Answer:
        head = {"Host": self.where.authority} | fields
        text = f"GET {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in head.items()) + "\r\n"
        async with self._streams(secure=self.where.secure) as (reader, writer):
            writer.write(text.encode(errors="replace"))
            return await _read_head(reader)

    @asynccontextmanager
    async def _streams(
        self, *, secure: bool = False
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        writer = None
        try:
            context = trusted() if secure else None
            async with asyncio.timeout(self._patience):
                reader, writer = await asyncio.open_connection(
                    self._address, self.where.port, ssl=context, server_hostname=self.where.host if secure else None
                )
                yield reader, writer
        except TimeoutError:
            raise self._too_late(connected=writer is not None) from None
        except ConfigError as error:
            raise Trouble(error.message, "correct or unset it") from None
        except OSError as error:
            raise _trouble(error, tls=secure) from None
        finally:
            if writer is not None:
                writer.transport.abort()

    def _too_late(self, *, connected: bool) -> Trouble:
        if connected:
            return Trouble(f"no answer in {self._patience:g} s", "the process hangs, or is no server of this kind")
        return Trouble(f"no connection in {self._patience:g} s", "a firewall drops it, or the process hangs")


async def _read_head(reader: asyncio.StreamReader) -> Answer:
    line = await _line(reader)
    status = re.match(rb"HTTP/1\.[01] ([1-5]\d\d)\b", line)
    if status is None:
        raise _no_http(line)
    fields: dict[str, str] = {}
    for _ in range(MOST_HEADERS):
        line = await _line(reader)
        if not line.strip():
            return Answer(int(status.group(1)), fields)
        name, _, value = line.decode("latin-1").partition(":")
        fields[name.strip().lower()] = value.strip()
    raise Trouble(f"the answer has more than {MOST_HEADERS} header fields", "this is no Growth Manager")


async def _line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\n")
    except asyncio.IncompleteReadError as error:
        raise _no_http(error.partial) from None
    except asyncio.LimitOverrunError:
        raise Trouble("the answer is no HTTP: a line without end", "another program has this port") from None


def _no_http(told: bytes) -> Trouble:
    if not told or told[:2] == b"\x15\x03":  # a TLS alert (RFC 8446, section 6)
        return Trouble("it closes the connection without an answer", "perhaps it speaks TLS: try wss://")
    return Trouble(f"the answer is no HTTP: {ascii(told[:40])[1:]}", "another program has this port")


def _trouble(error: OSError, *, tls: bool) -> Trouble:
    """What an error of a socket means."""
    if isinstance(error, ssl.SSLCertVerificationError):
        advice = {
            "certificate has expired": "renew it, and restart the server",
            "certificate is not yet valid": "check the clocks of both machines",
        }.get(error.verify_message, "")
        if "mismatch" in error.verify_message:
            advice = "connect by a name of the certificate, or make one with this name"
        own = "set GRAMI_CA to the certificate of whoever signed it, or serve the whole chain"
        return Trouble(f"the certificate is refused: {error.verify_message}", advice or own)
    if isinstance(error, ssl.SSLError) or (tls and isinstance(error, ConnectionError)):
        text = getattr(error, "reason", "") or type(error).__name__
        return Trouble(f"the TLS handshake failed: {text}", "perhaps the server has no TLS: try ws://")
    if isinstance(error, ConnectionRefusedError):
        return Trouble("nothing listens there", "start it with `grami serve FILE`, or check the port")
    return Trouble(f"{error.strerror or type(error).__name__}", "check the address, the network and firewalls")
