"""How a client gets to a server: find it, connect, say who this is, and try again with backoff. Floor 3."""

from __future__ import annotations

import asyncio
import inspect
import os
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Literal, Protocol

import msgspec
from websockets.asyncio.client import connect as websocket_connect
from websockets.exceptions import WebSocketException
from websockets.typing import Subprotocol

from grami_actors.conversation import HELLO, Conversation, Frame
from grami_actors.discovery import Located, locate
from grami_actors.encoding import JSON, Encoding
from grami_actors.errors import ConfigError, ConnectionLost, ErrorCode, GramiError, ServerNotFound, error_from_code
from grami_actors.frames import CLOSE_AUTH_TIMEOUT, CLOSE_FORBIDDEN, CLOSE_TOKEN_EXPIRED, CLOSE_UNAUTHENTICATED

Token = str | Callable[[], str | Awaitable[str]]

NOWHERE = "memory"
"""The address of a server that a client does not get to over the network, if it is given no other."""

FIRST_DELAY = 0.1
LONGEST_DELAY = 10.0
UNWANTED = range(4400, 4500)
"""Close codes after which a client does not come back by itself."""

CLOSE_TIMEOUT = 2.0
"""Seconds that the server has to say goodbye."""

_REFUSALS = {
    CLOSE_UNAUTHENTICATED: (ErrorCode.UNAUTHENTICATED, "give connect() a token that the server knows"),
    CLOSE_FORBIDDEN: (ErrorCode.PERMISSION_DENIED, "this principal may not connect"),
    CLOSE_AUTH_TIMEOUT: (ErrorCode.UNAUTHENTICATED, "give connect() a token"),
    CLOSE_TOKEN_EXPIRED: (
        ErrorCode.TOKEN_EXPIRED,
        "call authenticate() with a new one in time, or give connect() a function as token=, which is asked for one",
    ),
}
"""What a close code says about those who come again."""


class _TokenFailed(GramiError):
    """The function that gives the tokens raised (the cause); the next time it may not."""

    error_code = ErrorCode.UNAUTHENTICATED
    retryable = True


class _Direct(websocket_connect):
    """Follows no redirect: a token is for the server that was asked for, and no other."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        """No other address."""
        return exc


class Transport(Protocol):
    """What carries a connection."""

    def abort(self) -> None:
        """Cut it without a word."""


class Link(Protocol):
    """What a client needs of its connection: a WebSocket of the library is one, and so is one in memory."""

    @property
    def transport(self) -> Transport:
        """What carries it."""

    @property
    def close_code(self) -> int | None:
        """What it was closed with; ``None`` while it is open."""

    @property
    def close_reason(self) -> str | None:
        """What was said with that."""

    async def send(self, message: str | bytes, *, text: bool | None = None) -> None:
        """Send one frame. Raises WebSocketException when it is closed."""

    async def recv(self) -> str | bytes:
        """The next frame. Raises WebSocketException when it is closed."""

    def __aiter__(self) -> AsyncIterator[str | bytes]:
        """All frames, until it is closed. Raises WebSocketException if not normally."""

    async def close(self) -> None:
        """Close it, with a goodbye."""


Dial = Callable[[Encoding], Awaitable[Link]]
"""Makes a connection whose frames are in an encoding. Raises OSError if there is none to be had."""


class Settings(msgspec.Struct, frozen=True):
    """How a client connects; see :func:`connect`."""

    url: str | None
    token: Token | None
    retry_for: float
    open_timeout: float
    tls: ssl.SSLContext | None
    encoding: Literal["json", "msgpack"]


class Handshake:
    """Makes the connections of one client, one after the other.

    Args:
        settings: how.
        conversation: begins anew with each of them.
        dial: makes them, if it is not to be over the network.

    Attributes:
        url: where the last one went.
        token: who this is.
    """

    def __init__(self, settings: Settings, conversation: Conversation, dial: Dial | None = None) -> None:
        self.url = ""
        self.token = settings.token
        self._settings = settings
        self._conversation = conversation
        self._dial = dial
        self._delay = FIRST_DELAY

    async def open(self, deadline: float | None) -> Link:
        """Connect; with a deadline (seconds on the loop's clock) try again until then, with backoff.

        Raises:
            GramiError: there is no server, or it refuses.
        """
        loop = asyncio.get_running_loop()
        while True:
            try:
                return await self._try()
            except GramiError as error:
                again = error.retryable or isinstance(error, ServerNotFound)
                if not again or deadline is None or loop.time() + self._delay > deadline:
                    raise
            await asyncio.sleep(self.backoff())

    def backoff(self, lived: float = 0.0) -> float:
        """Seconds to wait before the next try, after a connection that lived so long."""
        if lived > LONGEST_DELAY:
            self._delay = FIRST_DELAY
        # Jitter: clients that lost the same server must not come back at the same moment.
        delay, self._delay = self._delay, min(self._delay * 2, LONGEST_DELAY)
        return delay * random.uniform(0.5, 1.0)

    async def _try(self) -> Link:
        """Connect. Raises GramiError."""
        located = locate(self._settings.url) if self._dial is None else Located(self._settings.url or NOWHERE)
        self.url = located.url
        token = await self.credential() or located.token
        try:
            socket = await self._connect(located.url)
        except (OSError, ValueError, WebSocketException) as error:
            raise _unreachable(located.url, str(error) or type(error).__name__) from None
        try:
            await self._greet(socket, token)
        except TimeoutError:
            socket.transport.abort()
            raise _unreachable(
                located.url, "'hello' was not answered; is this the address of another server?"
            ) from None
        except WebSocketException as error:
            raise _unreachable(located.url, str(error)) from None
        except BaseException:
            await close(socket)
            raise
        return socket

    async def _connect(self, url: str) -> Link:
        encoding = self._conversation.encoding
        if self._dial is not None:
            return await self._dial(encoding)
        return await _Direct(
            url,
            open_timeout=self._settings.open_timeout,
            close_timeout=CLOSE_TIMEOUT,
            compression=None,
            max_size=None,
            # A proxy has no business between a client and a server of this machine.
            proxy=None,
            ssl=(self._settings.tls or True) if url.startswith("wss:") else None,
            subprotocols=None if encoding is JSON else [Subprotocol(encoding.subprotocol)],
        )

    async def credential(self) -> str:
        """The token, asked of the function if there is one; empty for none. Raises GramiError."""
        token = self.token
        if not callable(token):
            return token or ""
        try:
            given = token()
            return await given if inspect.isawaitable(given) else given
        except Exception as error:
            raise _TokenFailed(f"the function that gives the tokens failed: {error}") from error

    async def _greet(self, socket: Link, token: str) -> None:
        """Say who this is. Raises GramiError: the server refuses; TimeoutError: it says nothing."""
        conversation = self._conversation
        answers: list[Frame | GramiError] = []
        try:
            async with asyncio.timeout(self._settings.open_timeout):
                hello = conversation.hello({"name": "grami_actors"}, token, answers.append)
                await socket.send(hello, text=conversation.encoding.text)
                while not answers:
                    conversation.receive(await socket.recv())
        finally:
            conversation.forget(HELLO)
        error = answers[0]
        if isinstance(error, Frame):
            return
        if error.error_code == ErrorCode.UNAUTHENTICATED:
            text = f"{self.url} wants to know who this is: give connect() a token=, or set GRAMI_TOKEN"
            raise error_from_code(error.error_code, f"{text} (`grami token create` makes API keys)")
        raise error

    def after(self, code: int, reason: str) -> GramiError | None:
        """Why not to come back by itself after a close code; ``None`` if there is nothing against it."""
        # Where a function gives the tokens, there may be a fresh one.
        if code not in UNWANTED or (code == CLOSE_TOKEN_EXPIRED and callable(self.token)):
            return None
        text = f"the server ended the connection ({reason})"
        if code not in _REFUSALS:
            return ConnectionLost(text)
        kind, advice = _REFUSALS[code]
        return error_from_code(kind, f"{text}: {advice}")


async def close(socket: Link) -> None:
    """Close a connection, with a goodbye if there is time for it."""
    try:
        await socket.close()
    finally:
        socket.transport.abort()


def _unreachable(url: str, reason: str) -> ServerNotFound:
    return ServerNotFound(f"no Growth Manager answers at {url}: {reason}")


def trusted() -> ssl.SSLContext:
    """What the system trusts, and the certificates in the file that ``GRAMI_CA`` names. Raises ConfigError."""
    context = ssl.create_default_context()
    file = os.environ.get("GRAMI_CA")
    try:
        if file:
            context.load_verify_locations(file)
    except OSError as error:
        raise ConfigError(f"GRAMI_CA is {file!r}, which cannot be read as certificates (PEM): {error}") from None
    return context
