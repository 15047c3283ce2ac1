"""What a scenario function gets: clients, requests, streams, checks; and what it leaves: a transcript. Floor 14."""

from __future__ import annotations

import asyncio
import re
import time
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from grami_actors.cell import CONNECTION
from grami_actors.client import Client, connect
from grami_actors.conversation import Frame
from grami_actors.errors import GramiError, describe
from grami_actors.manager import GrowthManager
from grami_actors.messages import Message, ToolCall
from grami_actors.model import Generate
from grami_actors.telemetry import ActorFailed, ActorRestarted, Event, MessageHandled

ScenarioFunction = Callable[["Play"], Coroutine[Any, Any, None]]
F = TypeVar("F", bound=Callable[..., Any])


def scenario(function: F) -> F:
    """Mark an async function of a scenario file: ``grami run`` plays it."""
    function.__grami_scenario__ = True  # type: ignore[attr-defined]
    return function


class Line(msgspec.Struct, frozen=True):
    """One line of the transcript: who said what to whom, and what came of it.

    Attributes:
        at: seconds since the scenario began.
        who: the speaker.
        to: the listener; empty for a remark.
        what: the kind of message.
        text: the message, or the answer, in short.
        outcome: ``ok``, an error code, or empty while it is open.
        seconds: how long it took, where it is known.
    """

    at: float
    who: str
    to: str
    what: str
    text: str = ""
    outcome: str = ""
    seconds: float | None = None


class Piece(msgspec.Struct, frozen=True):
    """Text that is being streamed: not a line yet. ``done`` ends it."""

    key: str
    text: str
    done: bool = False


class Check(msgspec.Struct, frozen=True):
    """Something that a scenario wanted to be true, and whether it was."""

    text: str
    passed: bool
    details: str = ""


class CheckFailed(Exception):
    """A scenario's ``require`` did not hold; the scenario ends."""


class Play:
    """One playing of one scenario.

    Args:
        manager: the running server.
        watch: gets every :class:`Line`, :class:`Piece` and :class:`Check` as it comes.
    """

    def __init__(self, manager: GrowthManager, watch: Callable[[Any], None]) -> None:
        self.manager = manager
        self.checks: list[Check] = []
        self.lines: list[Line] = []
        self._watch = watch
        self._begun_at = time.perf_counter()
        self._stack = AsyncExitStack()
        self._unsubscribe = manager.system.bus.subscribe(self._on_event, MessageHandled, ActorFailed, ActorRestarted)

    async def client(self, name: str) -> PlayClient:
        """A client with a WebSocket connection of its own."""
        connection = await self._stack.enter_async_context(connect(self.manager.url, retry_for=0.0))
        return PlayClient(self, name, connection)

    def check(self, text: str, condition: object, details: str = "") -> bool:
        """Note whether something is as it should be; a check that fails fails the scenario at its end."""
        check = Check(text, bool(condition), details)
        self.checks.append(check)
        self._watch(check)
        return check.passed

    def require(self, text: str, condition: object, details: str = "") -> None:
        """Like :meth:`check`, but end the scenario at once when it does not hold."""
        if not self.check(text, condition, details):
            raise CheckFailed(text)

    def kill(self, name: str) -> None:
        """End what an agent does now; its supervisor restarts it."""
        self.say(name, "", "killed")
        self.manager.system.kill(name)

    def say(self, who: str, to: str, what: str, text: str = "", **rest: Any) -> None:
        """Add a line to the transcript."""
        line = Line(self.now(), who, to, what, text, **rest)
        self.lines.append(line)
        self._watch(line)

    def show(self, piece: Piece) -> None:
        """Show text that is being written."""
        self._watch(piece)

    def now(self) -> float:
        """Seconds since the scenario began."""
        return time.perf_counter() - self._begun_at

    async def close(self) -> None:
        """Disconnect the clients."""
        await self._stack.aclose()
        self._unsubscribe()

    def _on_event(self, event: Event) -> None:
        if isinstance(event, MessageHandled):
            # What clients ask and get is told by the clients themselves.
            if (
                event.actor != "router"
                and not event.actor.startswith(CONNECTION)
                and not event.sender.startswith(CONNECTION)
            ):
                self._on_handled(event)
        elif isinstance(event, ActorFailed):
            frames = re.findall(r'File "(.+?)", line (\d+)', event.details)
            place = f" ({Path(frames[-1][0]).name}:{frames[-1][1]})" if frames else ""
            self.say(event.actor, "", "failed", f"{event.error}{place}")
        elif isinstance(event, ActorRestarted):
            self.say(event.actor, "", "restarted", f"restart {event.restarts}")

    def _on_handled(self, event: MessageHandled) -> None:
        came = "" if event.result is None else f"⇒ {summary(event.result)}"
        self.say(
            event.sender or "somebody",
            event.actor,
            kind_of(event.message),
            f"{shortened(asked(event.message), 36)} {came}".strip(),
            outcome=event.outcome,
            seconds=event.duration,
        )


class PlayClient:
    """A real client of the swarm, whose every word is in the transcript."""

    def __init__(self, play: Play, name: str, connection: Client) -> None:
        self.name = name
        self._play = play
        self._connection = connection

    async def request(self, message: Message | str, /, **fields: Any) -> Any:
        """Ask and wait for the answer; see :meth:`grami_actors.client.Client.request`."""
        began = self._ask(message, fields)
        try:
            data = await self._connection.request(message, **fields)
        except GramiError as error:
            self._answered(began, error.message, error.error_code)
            raise
        self._answered(began, summary(data), "ok")
        return data

    async def stream(self, message: Message | str, /, **fields: Any) -> AsyncIterator[Frame]:
        """Ask and get every frame; see :meth:`grami_actors.client.Client.stream`."""
        began = self._ask(message, fields)
        seen: set[str] = set()
        try:
            async for frame in self._connection.stream(message, **fields):
                seen |= self._show(frame)
                if frame.type == "response":
                    self._answered(began, summary(frame.data), "ok")
                yield frame
        except GramiError as error:
            self._answered(began, error.message, error.error_code)
            raise
        finally:
            for key in seen:
                self._play.show(Piece(key, "", done=True))

    async def write(self, message: Message | str, /, **fields: Any) -> tuple[Any, list[Frame]]:
        """Ask with streaming, and return the answer and all frames."""
        frames = [frame async for frame in self.stream(message, **fields)]
        return frames[-1].data, frames

    def _show(self, frame: Frame) -> set[str]:
        if frame.type != "response.chunk":
            return set()
        part = frame.data if isinstance(frame.data, dict) else {"text": frame.data}
        key = f"{self.name} ← {part.get('from', 'answer')}"
        self._play.show(Piece(key, str(part.get("text", ""))))
        return {key}

    def _ask(self, message: Message | str, fields: dict[str, Any]) -> float:
        given = [f"{name}={value}" for name, value in fields.items() if name != "timeout"]
        text = ", ".join([*given, "" if isinstance(message, str) else summary(message)]).strip(", ")
        self._play.say(self.name, "growth manager", kind_of(message), text)
        return time.perf_counter()

    def _answered(self, began: float, text: str, outcome: str) -> None:
        seconds = time.perf_counter() - began
        self._play.say("growth manager", self.name, "answer", text, outcome=outcome, seconds=seconds)


def kind_of(message: Any) -> str:
    """The message type as it is called on the wire."""
    if isinstance(message, str):
        return message
    return str(message.__struct_config__.tag) if isinstance(message, Message) else type(message).__name__


def asked(message: Any) -> str:
    """What a message asks for, without what is in every message of its kind."""
    if isinstance(message, Generate):
        return "…" + message.prompt.canonical.rstrip().rpartition("\n")[2]
    if isinstance(message, ToolCall):
        return ", ".join(shortened(summary(value), 24) for value in message.arguments.values())
    return summary(message)


def shortened(text: str, length: int = 56) -> str:
    """The text, cut to a length in characters."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def summary(value: Any) -> str:
    """A value in one short line."""
    if isinstance(value, msgspec.Struct):
        value = {name: getattr(value, name) for name in value.__struct_fields__}
    if isinstance(value, dict):
        parts = [f"{name}={summary(each)}" for name, each in value.items() if each not in (None, "", [], (), {})]
        return ", ".join(parts)
    if isinstance(value, (list, tuple)):
        return " | ".join(summary(each) for each in value)
    return " ".join(str(value).split())


async def play_one(manager: GrowthManager, function: ScenarioFunction, watch: Callable[[Any], None]) -> Result:
    """Play one scenario and say how it went."""
    play = Play(manager, watch)
    error = ""
    try:
        await function(play)
    except CheckFailed:
        pass
    except GramiError as failure:
        error = f"{failure.error_code}: {failure.message}"
    except asyncio.CancelledError:
        raise
    except Exception as failure:  # noqa: BLE001 - a scenario may raise anything, and then it has failed
        error = f"{describe(failure)}{_place(failure)}"
    finally:
        seconds = play.now()
        await play.close()
    passed = not error and all(check.passed for check in play.checks)
    return Result(function.__name__, "live", passed, tuple(play.checks), error, seconds, len(play.lines))


def _place(failure: BaseException) -> str:
    """Where it was raised, as ``(file:line)``."""
    frames = traceback.extract_tb(failure.__traceback__)
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""


class Result(msgspec.Struct, frozen=True):
    """How a scenario went. Without any check, having ended without an error is the check."""

    scenario: str
    mode: str
    passed: bool
    checks: tuple[Check, ...]
    error: str
    wall_seconds: float
    messages: int
