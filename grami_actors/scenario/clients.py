"""The clients of a scenario. Floor 16."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import msgspec

from grami_actors.client import Client
from grami_actors.conversation import Frame
from grami_actors.errors import ConnectionLost, GramiError
from grami_actors.history import plain
from grami_actors.job_client import JobsClient
from grami_actors.messages import Message, type_name
from grami_actors.scenario.awaits import Awaits, awaited
from grami_actors.scenario.lines import Piece, asked, summary


class Teller(Protocol):
    """Who keeps the transcript."""

    @property
    def awaits(self) -> Awaits:
        """Of the calls of the script."""

    @property
    def over(self) -> bool:
        """Whether the scenario has ended."""

    def say(self, who: str, to: str, what: str, text: str = "", **rest: Any) -> None:
        """Add a line to the transcript."""

    def show(self, piece: Piece) -> None:
        """Show text that is being written."""

    def heard(self) -> None:
        """The script has taken what a client got."""

    def now(self) -> float:
        """Seconds since the scenario began."""


class Pending:
    """A request that is under way: ``await`` it, or :meth:`cancel` it."""

    def __init__(self, work: asyncio.Task[Any]) -> None:
        self._work = work

    def __await__(self) -> Any:
        return self._work.__await__()

    @property
    def done(self) -> bool:
        """Whether the answer is there."""
        return self._work.done()

    async def cancel(self) -> None:
        """Cancel it, on the server too."""
        self._work.cancel()
        await asyncio.wait((self._work,))


class PlayClient:
    """A real client of the swarm, whose every word is in the transcript."""

    def __init__(self, teller: Teller, name: str, connection: Client) -> None:
        self.name = name
        self.awaits = teller.awaits
        self._teller = teller
        self._connection = connection
        self._pending: set[asyncio.Task[Any]] = set()
        self._left = False

    @property
    def jobs(self) -> JobsClient:
        """Jobs, as the client sees them; the transcript tells what becomes of each."""
        return self._connection.jobs

    @awaited
    async def request(self, message: Message | str, /, **fields: Any) -> Any:
        """Ask and wait for the answer; see :meth:`grami_actors.client.Client.request`."""
        return await self._request(message, fields)

    async def _request(self, message: Message | str, fields: dict[str, Any]) -> Any:
        began = self._ask(message, fields)
        try:
            with self._connected():
                data = await self._connection.request(message, **fields)
        except GramiError as error:
            self._answered(began, error.message, error.error_code)
            raise
        self._answered(began, summary(data), "ok")
        return data

    def start(self, message: Message | str, /, **fields: Any) -> Pending:
        """Ask, and go on without waiting; the answer is there when it is awaited, or it is cancelled."""
        work = asyncio.get_running_loop().create_task(self._request(message, fields))
        self._pending.add(work)
        work.add_done_callback(self._forget)
        return Pending(work)

    def _forget(self, work: asyncio.Task[Any]) -> None:
        self._pending.discard(work)
        if not work.cancelled():
            work.exception()  # whoever wants to know awaits it; that nobody does is no fault
        self._teller.heard()

    async def stream(self, message: Message | str, /, **fields: Any) -> AsyncIterator[Frame]:
        """Ask and get every frame; see :meth:`grami_actors.client.Client.stream`."""
        began = self._ask(message, fields)
        seen: dict[str, None] = {}
        try:
            with self._connected():
                async for frame in self._connection.stream(message, **fields):
                    self._show(frame, seen)
                    if frame.type == "response":
                        self._answered(began, summary(frame.data), "ok")
                    yield frame
                    self._teller.heard()
        except GramiError as error:
            self._answered(began, error.message, error.error_code)
            raise
        finally:
            for key in seen:
                self._teller.show(Piece(key, "", done=True))

    @awaited
    async def write(self, message: Message | str, /, **fields: Any) -> tuple[Any, list[Frame]]:
        """Ask with streaming, and return the answer and all frames."""
        frames = [frame async for frame in self.stream(message, **fields)]
        return frames[-1].data, frames

    async def subscribe(self, topic: str) -> AsyncIterator[Frame]:
        """Hear a topic; see :meth:`grami_actors.client.Client.subscribe`."""
        self._teller.say(self.name, "growth manager", "subscribe", topic)
        with self._connected():
            async for frame in self._connection.subscribe(topic):
                yield frame
                self._teller.heard()

    @awaited
    async def publish(self, topic: str, data: Any) -> None:
        """Tell everybody who hears a topic."""
        self._teller.say(self.name, "growth manager", "publish", f"{topic}: {summary(plain(data))}")
        await self._connection.publish(topic, data)

    @awaited
    async def leave(self) -> None:
        """Close the connection; what it asked for is cancelled."""
        self._teller.say(self.name, "", "leaves")
        self._left = True
        await self._connection.__aexit__(None, None, None)

    def cut(self) -> None:
        """Cut the connection, as a cable is cut; the client comes back by itself with ``retry_for``."""
        self._teller.say(self.name, "", "is cut off")
        self._connection.cut()

    def pause(self) -> None:
        """Read nothing more, as a client that is busy does; the server is not told."""
        self._teller.say(self.name, "", "reads no more")
        self._connection.pause()

    def resume(self) -> None:
        """Read again."""
        self._teller.say(self.name, "", "reads again")
        self._connection.resume()

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """With the scenario ends what its tasks still wait for, and that is no error.

        Raises:
            ConnectionLost: the client has left.
        """
        if self._left:
            raise ConnectionLost(f"{self.name} has left")
        try:
            yield
        except ConnectionLost:
            if self._teller.over:
                raise asyncio.CancelledError from None
            raise

    def _show(self, frame: Frame, seen: dict[str, None]) -> None:
        if frame.type == "response.chunk":
            part = frame.data if isinstance(frame.data, dict) else {"text": frame.data}
            key = f"{self.name} ← {part.get('from', 'answer')}"
            self._teller.show(Piece(key, str(part.get("text", ""))))
            seen[key] = None

    def _ask(self, message: Message | str, fields: dict[str, Any]) -> float:
        kind = message if isinstance(message, str) else type_name(type(message))
        given = [f"{name}={value}" for name, value in fields.items() if name != "timeout"]
        text = "" if isinstance(message, str) else asked(kind, msgspec.to_builtins(message))
        self._teller.say(self.name, "growth manager", kind, ", ".join([*given, text]).strip(", "))
        return self._teller.now()

    def _answered(self, began: float, text: str, outcome: str) -> None:
        seconds = self._teller.now() - began
        self._teller.say("growth manager", self.name, "answer", text, outcome=outcome, seconds=seconds)
