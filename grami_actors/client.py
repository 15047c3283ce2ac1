"""The client: ask a Growth Manager over its WebSocket. Floor 3.

::

    async with connect() as grami:
        post = await grami.request("content_request", platform="instagram")
        async for frame in grami.stream("content_request", platform="linkedin"):
            print(frame)

A lost connection is made anew with backoff; requests that were in flight end with ConnectionLost, because
nobody knows whether they were carried out.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Any, Self

import msgspec
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as websocket_connect
from websockets.exceptions import InvalidHandshake, InvalidURI, WebSocketException

from grami_actors.discovery import find_server
from grami_actors.errors import ConnectionLost, DeadlineExceeded, GramiError, ServerNotFound, error_from_code
from grami_actors.messages import Message

FIRST_DELAY = 0.1
LONGEST_DELAY = 10.0
UNWANTED = range(4400, 4500)
"""Close codes after which a client does not come back by itself."""


class Frame(msgspec.Struct, omit_defaults=True):
    """A frame from the server (docs/protocol.md, section 3). Fields that it does not have are ``None``."""

    type: str = ""
    id: str | int | None = None
    seq: int = 0
    data: Any = None
    status: str | None = None
    progress: float | None = None
    message: str | None = None
    source: str | None = msgspec.field(name="from", default=None)
    error_code: str | None = None
    retryable: bool | None = None
    retry_after_ms: int | None = None
    param: str | None = None
    duration_ms: int | None = None
    chunks_dropped: int = 0


_DECODER = msgspec.json.Decoder(Frame)
_ENCODER = msgspec.json.Encoder()


class Client:
    """A connection to a Growth Manager. Made by :func:`connect`; safe for many requests at the same time."""

    def __init__(self, url: str | None, *, retry_for: float, open_timeout: float) -> None:
        self._wanted = url
        self._retry_for = retry_for
        self._open_timeout = open_timeout
        self._ids = itertools.count(1)
        self._waiting: dict[str, asyncio.Queue[Frame | GramiError]] = {}
        self._socket: ClientConnection | None = None
        self._connected = asyncio.Event()
        self._failure: GramiError | None = None
        self._runner: asyncio.Task[None] | None = None
        self.url = ""

    async def __aenter__(self) -> Self:
        self._socket = await self._open(deadline=None)
        self._runner = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._fail(ConnectionLost("the client was closed before the answer came; the outcome is unknown"))
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.wait((self._runner,))
        if self._socket is not None:
            await self._socket.close()

    # --- requests ---

    async def request(
        self,
        message: Message | str,
        /,
        *,
        to: str | None = None,
        timeout: float | None = None,
        **fields: Any,
    ) -> Any:
        """Send a request and wait for the ``data`` of its answer.

        Args:
            message: a message, or a message type whose fields follow.
            to: a destination by name; the route of the type if not given.
            timeout: the deadline in seconds; the server's own if not given.
            fields: the message's fields.

        Raises:
            GramiError: what the server answered, with its ``error_code``; ConnectionLost when the connection
                ended before the answer. Cancelling the call cancels the request on the server.
        """
        async with contextlib.aclosing(self._frames(message, fields, to, timeout, streamed=False)) as frames:
            return [frame async for frame in frames][-1].data

    async def stream(
        self,
        message: Message | str,
        /,
        *,
        to: str | None = None,
        timeout: float | None = None,
        **fields: Any,
    ) -> AsyncGenerator[Frame, None]:
        """Send a request and get its frames while they come; the last has type ``response`` and the whole answer.

        Leaving the loop early cancels the request. Takes and raises what :meth:`request` does.
        """
        frames = self._frames(message, fields, to, timeout, streamed=True)
        async with contextlib.aclosing(frames):
            async for frame in frames:
                yield frame

    async def describe(self) -> Any:
        """The message types, agents and tools of the server, with their JSON Schemas."""
        return await self.request("describe")

    async def ping(self) -> None:
        """Ask the server for a sign of life. Raises ConnectionLost."""
        await self.request("ping")

    async def _frames(
        self, message: Message | str, fields: dict[str, Any], to: str | None, timeout: float | None, *, streamed: bool
    ) -> AsyncGenerator[Frame, None]:
        request = {"type": message, **fields} if isinstance(message, str) else msgspec.to_builtins(message) | fields
        request_id = str(next(self._ids))
        request["id"] = request_id
        request |= {"to": to} if to is not None else {}
        request |= {"stream": True} if streamed else {}
        request |= {"timeout_ms": max(1, round(timeout * 1000))} if timeout is not None else {}
        inbox: asyncio.Queue[Frame | GramiError] = asyncio.Queue()
        self._waiting[request_id] = inbox
        answered = False
        try:
            async with asyncio.timeout(timeout):
                await self._send(request)
            while not answered:
                frame = await inbox.get()
                answered = isinstance(frame, GramiError) or not frame.type.startswith("response.")
                yield _raised(frame)
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before there was a server to send to") from None
        finally:
            self._waiting.pop(request_id, None)
            if not answered and self._failure is None and self._connected.is_set():
                await self._cancel(request_id)

    async def _cancel(self, request_id: str) -> None:
        with contextlib.suppress(GramiError):
            # Shielded: this runs while the caller is being cancelled.
            await asyncio.shield(self._send({"type": "cancel", "request_id": request_id}))

    async def _send(self, request: dict[str, Any]) -> None:
        if self._failure is not None:
            raise self._failure
        if self._runner is None:
            raise ConnectionLost("the client is not connected; use it with `async with connect() as grami`")
        await self._connected.wait()
        if self._failure is not None:
            raise self._failure
        assert self._socket is not None
        try:
            await self._socket.send(_ENCODER.encode(request), text=True)
        except WebSocketException as lost:
            raise ConnectionLost(f"the connection ended before the request was sent: {lost}") from None

    # --- the connection ---

    async def _open(self, deadline: float | None) -> ClientConnection:
        """Connect; with a deadline (seconds on the loop's clock) try again until then, with backoff."""
        loop = asyncio.get_running_loop()
        delay = FIRST_DELAY
        while True:
            try:
                self.url = find_server(self._wanted)
                # A proxy has no business between a client and a server of this machine.
                socket = await websocket_connect(
                    self.url, open_timeout=self._open_timeout, compression=None, max_size=None, proxy=None
                )
            except (OSError, ValueError, InvalidHandshake, InvalidURI, ServerNotFound) as error:
                if deadline is None or loop.time() + delay > deadline:
                    raise _unreachable(self.url, error) from None
            else:
                self._connected.set()
                return socket
            # Jitter: clients that lost the same server must not come back at the same moment.
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(delay * 2, LONGEST_DELAY)

    async def _run(self) -> None:
        """Read frames; when the connection is lost, tell who waits, and connect again."""
        loop = asyncio.get_running_loop()
        while self._socket is not None:
            try:
                async for data in self._socket:
                    self._deliver(data)
                reason = f"closed with {self._socket.close_code} {self._socket.close_reason or ''}".rstrip()
            except WebSocketException as closed:
                reason = str(closed)
            lost = ConnectionLost(f"the connection was lost ({reason}); the outcome is unknown")
            if not self._retry_for or (self._socket.close_code or 0) in UNWANTED:
                self._fail(lost)
                return
            self._connected.clear()
            self._lose(lost)
            try:
                self._socket = await self._open(deadline=loop.time() + self._retry_for)
            except GramiError as error:
                self._fail(error)
                return
            except Exception as error:
                self._fail(ConnectionLost(f"the connection could not be made anew: {error}"))
                raise

    def _deliver(self, data: str | bytes) -> None:
        # A frame that cannot be read must not end the reader; RecursionError is no MsgspecError.
        with contextlib.suppress(msgspec.MsgspecError, ValueError, RecursionError):
            frame = _DECODER.decode(data)
            inbox = self._waiting.get(str(frame.id))
            if inbox is not None:
                inbox.put_nowait(frame)

    def _fail(self, error: GramiError) -> None:
        """End all requests, those of the future too."""
        if self._failure is None:
            self._failure = error
        self._connected.set()
        self._lose(error)

    def _lose(self, error: GramiError) -> None:
        for inbox in self._waiting.values():
            inbox.put_nowait(error)


def _raised(frame: Frame | GramiError) -> Frame:
    if isinstance(frame, GramiError):
        raise frame
    if frame.status == "error":
        code, text = frame.error_code or "", frame.message or ""
        raise error_from_code(code, text, param=frame.param, retry_after_ms=frame.retry_after_ms)
    return frame


def _unreachable(url: str, error: Exception) -> GramiError:
    if isinstance(error, ServerNotFound):
        return error
    text = str(error) or type(error).__name__
    return ServerNotFound(f"no Growth Manager answers at {url}: {text}")


def connect(url: str | None = None, *, retry_for: float = 30.0, open_timeout: float = 5.0) -> Client:
    """A client for a Growth Manager, to be entered with ``async with``.

    Args:
        url: where the server is; if not given, ``GRAMI_URL``, ``GRAMI_PORT`` and the state file are looked at.
        retry_for: seconds to try to reconnect when the connection is lost; 0 never does.
        open_timeout: seconds that one handshake may take.

    Raises (on entering):
        ServerNotFound: no server was found, or none answers.
    """
    return Client(url, retry_for=retry_for, open_timeout=open_timeout)
