"""What models and tools answered, to be answered again without them. Floor 15.

A call is matched by the digest of its request; the recorded answers of equal requests are given in their order.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from typing import Any, get_type_hints

import msgspec

from grami_actors.errors import ErrorCode, GramiError, error_from_code
from grami_actors.history import AnyEntry, Ran, Wrote, plain
from grami_actors.model import Model, Prompt
from grami_actors.recording.request import canonical, digest_of, digest_of_call, nearest
from grami_actors.swarm import Swarm
from grami_actors.tools import Tool

FOR_EVER = 1e9
"""Seconds that a recorded tool may take: what it did is known, and its time limit did what it did."""

INTERRUPTED = frozenset({ErrorCode.CANCELLED, ErrorCode.DEADLINE_EXCEEDED, ErrorCode.AGENT_CRASHED})
"""Outcomes of what was ended from outside."""


class NotRecorded(GramiError):
    """A model or a tool is asked for something that it was not asked for in the recording; the text says what."""

    error_code = ErrorCode.UPSTREAM_ERROR


class Answers:
    """The answers of one recording.

    Args:
        entries: of the recording.
        live: whether what is not recorded is asked of the swarm's own model and tools, instead of failing.

    Attributes:
        missed: what was asked for and is not recorded, in words, in order.
        used: how many recorded answers were given.
    """

    def __init__(self, entries: Iterable[AnyEntry], *, live: bool = False) -> None:
        self.live = live
        self.missed: list[str] = []
        self.used = 0
        self._answers: defaultdict[str, deque[Wrote | Ran]] = defaultdict(deque)
        self._prompts: dict[str, Any] = {}
        self._calls: defaultdict[str, dict[str, Any]] = defaultdict(dict)
        for entry in entries:
            if isinstance(entry, Wrote):
                self._prompts[entry.request] = entry.prompt
            elif isinstance(entry, Ran):
                self._calls[entry.tool][entry.request] = entry.arguments
            else:
                continue
            self._answers[entry.request].append(entry)

    def of_model(self, prompt: Prompt) -> Wrote | None:
        """The next answer to a prompt; ``None`` if there is none, which is noted."""
        found = self._next(digest_of(prompt))
        if found is None:
            difference = nearest(canonical(prompt), self._prompts.values())
            self.missed.append(f"the model is asked for what is not recorded\n{difference}".strip())
        return found if isinstance(found, Wrote) else None

    def of_tool(self, tool: str, arguments: Any) -> Ran | None:
        """The next result of a call; ``None`` if there is none, which is noted."""
        asked = plain(arguments)
        found = self._next(digest_of_call(tool, asked))
        if found is None:
            difference = nearest(asked, self._calls[tool].values())
            self.missed.append(f"the tool {tool} is called with what is not recorded\n{difference}".strip())
        return found if isinstance(found, Ran) else None

    def _next(self, digest: str) -> Wrote | Ran | None:
        left = self._answers.get(digest)
        if not left:
            return None
        self.used += 1
        return left.popleft()

    def end_as(self, found: Wrote | Ran) -> None:
        """Fail as it failed. In a replay, what was ended from outside is ended from outside again."""
        if found.outcome != "ok" and (self.live or found.outcome not in INTERRUPTED):
            raise _error_of(found.outcome, found.error)

    def swarm(self, swarm: Swarm) -> Swarm:
        """The same swarm, with the recorded model and tools."""
        tools = [PlayedTool(each, self) for each in swarm.tools]
        model = None if swarm.model is None else PlayedModel(self, swarm.model)
        return Swarm(swarm.agents, tools, model)


class PlayedModel(Model):
    """Writes what a model wrote.

    Args:
        answers: of the recording.
        source: the swarm's own model, for what is not recorded; made when it is needed first.
    """

    name = "recorded"

    def __init__(self, answers: Answers, source: Model | Callable[[], Model]) -> None:
        self._answers = answers
        self._source = source
        self._model: Model | None = None
        self._lock = asyncio.Lock()

    async def open(self) -> None:
        """Nothing to make ready."""

    async def close(self) -> None:
        """Close the swarm's own model, if it was needed."""
        if self._model is not None:
            await self._model.close()

    async def stream(self, prompt: Prompt) -> AsyncGenerator[str, None]:
        """Write the recorded answer, piece by piece, and end as it ended."""
        found = self._answers.of_model(prompt)
        if found is None and self._answers.live:
            async with aclosing((await self._own()).stream(prompt)) as pieces:
                async for piece in pieces:
                    yield piece
            return
        if found is None:
            raise NotRecorded(self._answers.missed[-1])
        for piece in found.pieces:
            yield piece
            await asyncio.sleep(0)
        self._answers.end_as(found)

    async def _own(self) -> Model:
        async with self._lock:
            if self._model is None:
                model = self._source() if callable(self._source) else self._source
                await model.open()
                self._model = model
        return self._model


class PlayedTool(Tool[..., Any]):
    """Gives the results that a tool gave; to its callers it is the tool.

    Args:
        original: the tool.
        answers: of the recording.
    """

    def __init__(self, original: Tool[..., Any], answers: Answers) -> None:
        super().__init__(
            self._answer,
            name=original.name,
            lane="loop" if answers.live else original.calls_on,
            concurrency=original.concurrency,
            mailbox=original.mailbox,
        )
        self.timeout = FOR_EVER
        self.describe = original.describe  # type: ignore[method-assign]
        self._original = original
        self._answers = answers

    def convert(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Take whatever it was called with: what was wrong with it is part of the answer."""
        return {"arguments": arguments}

    async def _answer(self, arguments: dict[str, Any]) -> Any:
        found = self._answers.of_tool(self.name, arguments)
        if found is not None:
            self._answers.end_as(found)
            return self._converted(found.result)
        if not self._answers.live:
            raise NotRecorded(self._answers.missed[-1])
        original = self._original
        given = original.convert(arguments)
        async with asyncio.timeout(original.timeout):
            if inspect.iscoroutinefunction(original.load()):
                return await original(**given)
            return await asyncio.to_thread(original, **given)

    def _converted(self, result: Any) -> Any:
        """A result as its callers know it: of the type that the function says it returns."""
        try:
            return msgspec.convert(result, get_type_hints(self._original.load()).get("return", Any))
        except Exception:  # noqa: BLE001 - a function that cannot be loaded, or does not return what it says
            return result


def _error_of(outcome: str, text: str) -> Exception:
    """The error that was recorded; one that was none of this package's is put into words by whoever gets it, again."""
    alien = re.fullmatch(r"([A-Z_]\w*)(?:: (.*))?", text, re.DOTALL)
    if outcome == ErrorCode.AGENT_EXECUTION_FAILED and alien is not None:
        error: Exception = type(alien[1], (Exception,), {})(*filter(None, alien.groups()[1:]))
        return error
    return error_from_code(outcome, text)
