"""The client: ask a Growth Manager over its WebSocket. Floor 6.

::

    async with connect() as grami:
        post = await grami.request("content_request", platform="instagram")
        async for frame in grami.stream("content_request", platform="linkedin"):
            print(frame)
        async for event in grami.subscribe("agents.*"):
            print(event.topic, event.data)
        job = await grami.jobs.submit("render", {"frames": 10})
        print(await job.result())

A lost connection is made anew with backoff; requests that were in flight end with ConnectionLost, because
nobody knows whether they were carried out. Subscriptions and the events of jobs go on, with what they missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self

from websockets.exceptions import WebSocketException

from grami_actors.asking import request_fields
from grami_actors.conversation import Asking, Conversation, Following, Frame, Hearing
from grami_actors.encoding import JSON, MSGPACK
from grami_actors.errors import ConfigError, ConnectionLost, DeadlineExceeded, ErrorCode, GramiError
from grami_actors.frames import Position
from grami_actors.handshake import CLOSE_TIMEOUT, FIRST_DELAY, Dial, Handshake, Link, Settings, Token, close, trusted
from grami_actors.inbox import Inbox
from grami_actors.job_client import JobsClient, remote
from grami_actors.messages import Message

GRACE = 1.0
"""Seconds after a deadline that the server has to say so itself."""


class Client:
    """A connection to a Growth Manager. Made by :func:`connect`; safe for many requests at the same time.

    Args:
        settings: how it connects.
        dial: makes its connections, if they are not to be over the network.
    """

    def __init__(self, settings: Settings, dial: Dial | None = None) -> None:
        self._settings = settings
        self._conversation = Conversation(MSGPACK if settings.encoding == "msgpack" else JSON)
        self._handshake = Handshake(settings, self._conversation, dial)
        self._socket: Link | None = None
        self._connected = asyncio.Event()
        self._failure: GramiError | None = None
        self._runner: asyncio.Task[None] | None = None
        self._last_words: set[asyncio.Task[None]] = set()
        self._renewing = asyncio.Lock()
        self._renewed = 0
        self._reads = asyncio.Event()
        self._reads.set()

    @property
    def url(self) -> str:
        """Where the server is."""
        return self._handshake.url

    async def __aenter__(self) -> Self:
        self._socket = await self._handshake.open(deadline=None)
        self._connected.set()
        self._runner = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._fail(ConnectionLost("the client was closed before the answer came; the outcome is unknown"))
        socket, self._socket = self._socket, None
        try:
            if self._runner is not None:
                self._runner.cancel()
                await asyncio.wait((self._runner, *self._last_words), timeout=CLOSE_TIMEOUT)
        finally:
            if socket is not None:
                await close(socket)

    @property
    def principal(self) -> str:
        """Whom the server takes this client for; empty before it said so."""
        welcome = self._conversation.welcome
        return (welcome and welcome.principal) or ""

    @property
    def connection(self) -> str:
        """What the server calls this client's connection; empty before it said so."""
        welcome = self._conversation.welcome
        return (welcome and welcome.connection_id) or ""

    def cut(self) -> None:
        """Cut the connection without a goodbye, as a fault of the network does."""
        if self._socket is not None:
            self._socket.transport.abort()

    def pause(self) -> None:
        """Read nothing more until :meth:`resume`: the server sees a client that is slow."""
        self._reads.clear()

    def resume(self) -> None:
        """Read again."""
        self._reads.set()

    # --- requests ---

    async def request(
        self,
        message: Message | str,
        /,
        *,
        to: str | None = None,
        timeout: float | None = None,
        idempotency_key: str | None = None,
        background: bool = False,
        **fields: Any,
    ) -> Any:
        """Send a request and wait for the ``data`` of its answer.

        Args:
            message: a message, or a message type whose fields follow.
            to: a destination by name; the route of the type if not given.
            timeout: the deadline in seconds; the server's own if not given.
            idempotency_key: sent again within five minutes, it gives the same answer, and the work is done once.
            background: run it as a job that outlives this client, and return a
                :class:`~grami_actors.job_client.RemoteJob` at once; ``timeout`` is the deadline of the job then.
            fields: the message's fields.

        Raises:
            GramiError: what the server answered, with its ``error_code``; ConnectionLost when the connection
                ended before the answer. Cancelling the call cancels the request on the server.
        """
        asked = request_fields(message, fields, to=to, timeout=timeout, idempotency_key=idempotency_key)
        if background:
            return remote(self, await self._ask(asked | {"background": True}))
        return await self._ask(asked, timeout)

    async def _ask(self, asked: dict[str, Any] | Asking, timeout: float | None = None) -> Any:
        async with contextlib.aclosing(self._frames(asked, timeout)) as frames:
            return [frame async for frame in frames][-1].data

    async def stream(
        self,
        message: Message | str,
        /,
        *,
        to: str | None = None,
        timeout: float | None = None,
        idempotency_key: str | None = None,
        **fields: Any,
    ) -> AsyncGenerator[Frame, None]:
        """Send a request and get its frames while they come; the last has type ``response`` and the whole answer.

        Leaving the loop early cancels the request. Takes and raises what :meth:`request` does.
        """
        asked = request_fields(message, fields, to=to, timeout=timeout, idempotency_key=idempotency_key)
        async with contextlib.aclosing(self._frames(asked | {"stream": True}, timeout)) as frames:
            async for frame in frames:
                yield frame

    async def describe(self) -> Any:
        """The message types, agents and tools of the server, with their JSON Schemas."""
        return await self.request("describe")

    async def ping(self) -> None:
        """Ask the server for a sign of life. Raises ConnectionLost."""
        await self.request("ping")

    async def authenticate(self, token: str) -> Any:
        """Give the server a new token on the open connection, before the last one expires, and for later connections.

        Raises:
            GramiError: INVALID_TOKEN, TOKEN_EXPIRED, or PERMISSION_DENIED: it is somebody else's.
        """
        answer = await self.request("auth", token=token)
        self._handshake.token = token
        return answer

    async def publish(self, topic: str, data: Any) -> None:
        """Hand data to everybody who hears the topic: clients, and agents if it is a message of theirs."""
        await self.request("publish", topic=topic, data=data)

    async def subscribe(self, topic: str, *, recover: Position | None = None) -> AsyncGenerator[Frame, None]:
        """Hear what is published to the topics of a pattern, over all connections that this client makes.

        Each frame has ``topic``, ``data``, ``epoch`` and ``offset``. One with the type ``gap`` stands where events are
        missing that the server does not have any more. Leaving the loop ends the subscription.

        Args:
            topic: ``*`` stands for one part of a topic, and a last ``>`` for one or more.
            recover: the last event that was seen, to get all since then.

        Raises:
            GramiError: what the server answered; MailboxFull: the events were not read.
        """
        inbox = Inbox()
        hearing = Hearing(topic, inbox.put, recover)
        self._conversation.hear(hearing)
        refused = False
        try:
            try:
                await self._attach(hearing)
            except GramiError:
                refused = True
                raise
            while True:
                yield await inbox.get()
        finally:
            self._conversation.stop_hearing(hearing)
            if not refused and not self._conversation.hears(topic):
                await self._say(self._unsubscribe, topic)

    async def _attach(self, hearing: Hearing) -> None:
        """Have the server send the events of a subscription. Raises GramiError."""
        await self._ask(partial(self._conversation.subscribe, hearing))

    async def _unsubscribe(self, topic: str) -> None:
        # Somebody may have subscribed to the same in the meantime.
        if not self._conversation.hears(topic):
            await self._tell({"type": "unsubscribe", "topic": topic})

    async def _tell(self, fields: dict[str, Any]) -> None:
        """Send a request whose answer nobody needs."""
        request_id, frame = self._conversation.ask(fields, bool)
        self._conversation.forget(request_id)
        await self._send(frame)

    # --- jobs (job_client.Wire) ---

    @property
    def jobs(self) -> JobsClient:
        """The jobs of the server: submit them, and find those that were submitted."""
        return JobsClient(self)

    async def ask_again(self, message: str, **fields: Any) -> Any:
        """Send a request, and again when a connection is lost: one that may be carried out twice."""
        while True:
            try:
                return await self.request(message, **fields)
            except ConnectionLost:
                if self._failure is not None or self._runner is None:
                    raise
            await asyncio.sleep(FIRST_DELAY)  # that it is lost may not have been noticed by its reader

    async def follow(self, following: Following) -> None:
        """Have the events of a job come, over all connections that this client makes. Raises GramiError."""
        self._conversation.follow(following)
        try:
            await self._ask(partial(self._conversation.attach, following.job_id))
        except ConnectionLost:  # the next connection begins with it
            if self._failure is not None or self._runner is None:
                raise

    async def unfollow(self, following: Following) -> None:
        """Have no more of them come."""
        if self._conversation.unfollow(following):
            await self._say(self._detach, following.job_id)

    async def _detach(self, job_id: str) -> None:
        if not self._conversation.follows(job_id):
            await self._tell({"type": "job.detach", "job_id": job_id})

    def _frames(self, asked: dict[str, Any] | Asking, timeout: float | None) -> AsyncGenerator[Frame, None]:
        """The frames of a request, or of what a subscription asks for. Raises GramiError."""
        attempt = self._renewing_once if callable(self._handshake.token) else self._once
        return attempt(asked, timeout)

    async def _renewing_once(
        self, asked: dict[str, Any] | Asking, timeout: float | None
    ) -> AsyncGenerator[Frame, None]:
        """A request that is refused because the token expired is sent once more with a new one."""
        begun, renewed = False, self._renewed
        try:
            async with contextlib.aclosing(self._once(asked, timeout)) as frames:
                async for frame in frames:
                    begun = True
                    yield frame
            return
        except GramiError as error:
            if begun or error.error_code != ErrorCode.TOKEN_EXPIRED or error is self._failure:
                raise
        async with self._renewing:
            if renewed == self._renewed:  # nobody else did it meanwhile
                async with contextlib.aclosing(
                    self._once({"type": "auth", "token": await self._handshake.credential()}, timeout)
                ) as frames:
                    async for _ in frames:
                        self._renewed += 1
        async with contextlib.aclosing(self._once(asked, timeout)) as frames:
            async for frame in frames:
                yield frame

    async def _once(self, asked: dict[str, Any] | Asking, timeout: float | None) -> AsyncGenerator[Frame, None]:
        until = None if timeout is None else asyncio.get_running_loop().time() + timeout + GRACE
        if self._failure is not None or not self._connected.is_set():
            await self._ready(timeout)
        inbox, conversation = Inbox(), self._conversation
        request_id, data = asked(inbox.put) if callable(asked) else conversation.ask(asked, inbox.put)
        try:
            async with asyncio.timeout_at(until):
                await self._send(data)
            while True:
                frame = await inbox.get(until)
                yield frame
                if not frame.type.startswith("response."):
                    return
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed, and the server is silent; the outcome is unknown") from None
        finally:
            if self._conversation.forget(request_id):
                await self._say(self._send, self._conversation.cancel(request_id))

    async def _ready(self, timeout: float | None) -> None:
        """Wait for a connection. Raises GramiError: there will be none."""
        if self._runner is None:
            raise ConnectionLost("the client is not connected; use it with `async with connect() as grami`")
        try:
            async with asyncio.timeout(timeout):
                await self._connected.wait()
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before there was a server to send to") from None
        if self._failure is not None:
            raise self._failure

    async def _send(self, frame: bytes) -> None:
        if self._socket is None:
            raise ConnectionLost("the client was closed before the request was sent")
        try:
            await self._socket.send(frame, text=self._conversation.encoding.text)
        except WebSocketException as lost:
            raise ConnectionLost(f"the connection ended before the request was sent: {lost}") from None

    async def _say(self, say: Callable[[Any], Awaitable[None]], words: Any) -> None:
        """Send something before all that is said later, and wait for no server that does not read."""

        async def send() -> None:
            with contextlib.suppress(GramiError):
                await say(words)

        task = asyncio.create_task(send())
        self._last_words.add(task)
        task.add_done_callback(self._last_words.discard)
        await asyncio.sleep(0)

    # --- the connection ---

    async def _run(self) -> None:
        """Read frames; when the connection is lost, tell who waits, and connect again."""
        try:
            while self._socket is not None:
                self._socket = await self._lived(self._socket)
        except GramiError as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001 - nobody may wait for a client that has no reader any more
            failed = ConnectionLost(f"the connection could not be made anew: {error}")
            failed.__cause__ = error
            self._fail(failed)

    async def _lived(self, socket: Link) -> Link:
        """Serve a connection until it is over; the next one. Raises GramiError: there is none."""
        loop = asyncio.get_running_loop()
        opened = loop.time()
        attaching = None
        if self._conversation.followed or self._conversation.hearings:
            attaching = asyncio.create_task(self._attach_again())
        try:
            reason = await self._read(socket)
        finally:
            if attaching is not None:
                attaching.cancel()
        lost = ConnectionLost(f"the connection was lost ({reason}); the outcome is unknown")
        refusal = self._handshake.after(socket.close_code or 0, reason)
        if refusal is not None or not self._settings.retry_for:
            self._conversation.lose(lost)
            raise refusal or lost
        self._connected.clear()
        self._conversation.lose(lost)
        backoff = self._handshake.backoff(lived=loop.time() - opened)
        await asyncio.sleep(self._said_to_wait() or backoff)
        socket = await self._handshake.open(deadline=loop.time() + self._settings.retry_for)
        self._connected.set()
        return socket

    async def _attach_again(self) -> None:
        """Go on with what was subscribed to, one after the other: each is given what it missed, and no other's."""
        conversation = self._conversation

        def missing(hearing: Hearing) -> bool:
            return hearing.live is False and hearing in conversation.hearings

        for job_id in conversation.followed:
            attach = partial(self._ask, partial(conversation.attach, job_id))
            if not await _persist(attach, partial(conversation.follows, job_id), partial(conversation.give_up, job_id)):
                return
        for hearing in conversation.hearings:
            if not await _persist(partial(self._attach, hearing), partial(missing, hearing), hearing.inbox):
                return

    async def _read(self, socket: Link) -> str:
        """Read until the connection is over; why it is."""
        conversation = self._conversation
        try:
            async for data in socket:
                await self._reads.wait()
                conversation.receive(data)
                if conversation.goaway is not None:
                    # What is in flight ends here; what is new waits for the next connection.
                    self._connected.clear()
        except WebSocketException as closed:
            return str(closed)
        return f"closed with {socket.close_code} {socket.close_reason or ''}".rstrip()

    def _said_to_wait(self) -> float:
        """Seconds, at random within what the server asked for when it said that it goes."""
        goaway, self._conversation.goaway = self._conversation.goaway, None
        asked = None if goaway is None else goaway.reconnect_after_ms
        if asked is None:
            return 0.0
        return min(random.uniform(asked.min, asked.max) / 1000, self._settings.retry_for / 2)

    def _fail(self, error: GramiError) -> None:
        """End all requests, those of the future too."""
        if self._failure is None:
            self._failure = error
        self._connected.set()
        self._conversation.end(error)


async def _persist(
    ask: Callable[[], Awaitable[Any]], wanted: Callable[[], bool], fail: Callable[[GramiError], object]
) -> bool:
    """Ask until there is an answer, while it is wanted; an error that stays is told. Whether there is a connection."""
    while wanted():
        try:
            await ask()
            break
        except ConnectionLost:  # the next connection begins with this again
            return False
        except GramiError as error:
            if not error.retryable:
                fail(error)
                break
            await asyncio.sleep((error.retry_after_ms or 1000) / 1000)
    return True


def connect(
    url: str | None = None,
    *,
    token: Token | None = None,
    retry_for: float = 30.0,
    open_timeout: float = 5.0,
    tls: ssl.SSLContext | None = None,
    encoding: Literal["json", "msgpack"] = "json",
) -> Client:
    """A client for a Growth Manager, to be entered with ``async with``.

    Args:
        url: where the server is; if not given, ``GRAMI_URL``, ``GRAMI_PORT`` and the state file are looked at.
        token: who this is, or a function that gives a fresh one, for each connection and when the last has expired;
            ``GRAMI_TOKEN`` if not given. Who may read the state file needs none.
        retry_for: seconds to try to reconnect when the connection is lost; 0 never does.
        open_timeout: seconds that one handshake may take.
        tls: how to check the certificate of a ``wss://`` server; what the system trusts, and ``GRAMI_CA`` (a PEM
            file), if not given.
        encoding: ``"msgpack"`` takes fewer bytes, and carries bytes as they are.

    Raises:
        ConfigError: the file that ``GRAMI_CA`` names cannot be used.

    Raises (on entering):
        ServerNotFound: no server was found, or none answers.
        GramiError: UNAUTHENTICATED, INVALID_TOKEN or TOKEN_EXPIRED: it wants to know who this is; or the function that
            gives the tokens failed (the cause).
    """
    if encoding not in {"json", "msgpack"}:
        raise ConfigError(f"encoding is {encoding!r}; there are 'json' and 'msgpack'")
    if tls is None and os.environ.get("GRAMI_CA"):
        tls = trusted()
    token = token or os.environ.get("GRAMI_TOKEN")
    return Client(Settings(url, token, retry_for, open_timeout, tls, encoding))
