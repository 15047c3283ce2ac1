"""A language model whose answers are recorded. Floor 15."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from grami_actors.errors import ErrorCode, GramiError, describe
from grami_actors.history import History, Wrote
from grami_actors.model import Model, Prompt
from grami_actors.recording.request import canonical, digest_of


class Recorded(Model):
    """A model that does what another does, and tells a history of every answer, also of those that broke off.

    Args:
        model: that writes.
        history: gets a :class:`~grami_actors.history.Wrote` at the end of each answer.
    """

    def __init__(self, model: Model, history: History) -> None:
        self.name = model.name
        self._model = model
        self._history = history

    async def open(self) -> None:
        """Make the model ready."""
        await self._model.open()

    async def close(self) -> None:
        """Let go of everything."""
        await self._model.close()

    async def gone(self) -> str:
        """Wait until the model has stopped working by itself."""
        return await self._model.gone()

    async def stream(self, prompt: Prompt) -> AsyncGenerator[str, None]:
        """Write the answer, piece by piece."""
        pieces: list[str] = []
        outcome, error = "ok", ""
        try:
            async with aclosing(self._model.stream(prompt)) as written:
                async for piece in written:
                    pieces.append(piece)
                    yield piece
        except (asyncio.CancelledError, GeneratorExit):
            outcome = str(ErrorCode.CANCELLED)
            raise
        except GramiError as failed:
            outcome, error = str(failed.error_code), failed.message
            raise
        except BaseException as failed:
            outcome, error = str(ErrorCode.AGENT_EXECUTION_FAILED), describe(failed)
            raise
        finally:
            self._history.add(
                Wrote(
                    at=self._history.now(),
                    request=digest_of(prompt),
                    prompt=canonical(prompt),
                    pieces=tuple(pieces),
                    outcome=outcome,
                    error=error,
                )
            )


def recorded(source: Model | Callable[[], Model], history: History) -> Recorded:
    """The recorded form of a model, or of what a function chooses; of what ``Swarm(model=...)`` takes."""
    return Recorded(source() if callable(source) else source, history)
