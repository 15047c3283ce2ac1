"""Asks that are at work at the same time, and of which none is left behind. Floor 12.

Rule 1: who leaves the ``with`` of :class:`Asks`, however that is, has cancelled what had no answer yet. An answer that
        comes all the same is a dead letter (``late_reply``).
Rule 2: an ask is an edge of the wait-for graph from its beginning, since its handler will not end before it: a circle
        is an error, also where several are waited for.
Rule 3: no tasks are made and no clock is read: what happens depends on nothing but the order of the answers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import msgspec

from grami_actors.actor import Actor
from grami_actors.errors import AgentExecutionFailed, ErrorCode, GramiError, describe, error_from_code
from grami_actors.future import Future
from grami_actors.messages import Envelope
from grami_actors.ref import Ref


class Outcome(msgspec.Struct, frozen=True):
    """What became of one ask.

    Attributes:
        name: of whoever was asked.
        value: the answer; ``None`` if there is none.
        error: why there is none: all that an ask raises, DeadlineExceeded for who was too slow.
    """

    name: str
    value: Any = None
    error: GramiError | None = None

    @property
    def ok(self) -> bool:
        """Whether there is an answer."""
        return self.error is None


class Asks:
    """Asks of one handler that are at work together; a context manager.

    Args:
        actor: who asks.
    """

    def __init__(self, actor: Actor) -> None:
        self._actor = actor
        self._loop = asyncio.get_running_loop()
        self._at_work: dict[int, tuple[str, Future[Any], Envelope | None]] = {}
        self._settled: deque[int] = deque()
        self._more = asyncio.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for _, future, edge in self._at_work.values():
            future._end_waiting(edge)  # noqa: SLF001 - a wait for several, which one await cannot express
            future.cancel()
        self._at_work.clear()

    def ask(self, number: int, to: str | Ref[Any], message: Any, timeout: float | None = None) -> None:
        """Ask one more, under a number of its own; see :meth:`grami_actors.Actor.ask`."""
        future = self._actor.ask(to, message, timeout=timeout)
        edge = None if future.done() else future._begin_waiting()  # noqa: SLF001
        self._at_work[number] = (to if isinstance(to, str) else to.name, future, edge)
        future.on_done(partial(self._settle, number))

    def _settle(self, number: int) -> None:
        self._settled.append(number)
        if asyncio._get_running_loop() is self._loop:
            self._more.set()
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._more.set)

    async def next(self) -> tuple[int, Outcome]:
        """The number and outcome of the next ask that is settled, in the order in which they are."""
        refused = bool(self._settled)
        while not self._settled:
            self._more.clear()
            await self._more.wait()
        number = self._settled.popleft()
        name, future, edge = self._at_work.pop(number)
        future._end_waiting(edge)  # noqa: SLF001
        outcome = _outcome(name, future)
        if refused and not outcome.ok:
            await asyncio.sleep(0)  # who is refused at once, again and again, must not keep the loop
        return number, outcome


def _outcome(name: str, future: Future[Any]) -> Outcome:
    try:
        return Outcome(name, future.get())
    except GramiError as error:
        return Outcome(name, error=error.with_traceback(None))
    except Exception as error:  # noqa: BLE001 - asked outside of a handler, where nothing wraps it
        return Outcome(name, error=AgentExecutionFailed(f"{name} failed: {describe(error)}"))


def failure(failed: Sequence[Outcome], where: str = "") -> GramiError:
    """One error for some that failed; it names each, and has their code if that is the same for all."""
    errors = [each.error for each in failed if each.error is not None]
    first = errors[0]
    same = all(error.error_code == first.error_code for error in errors)
    code = first.error_code if same else ErrorCode.AGENT_EXECUTION_FAILED
    words = "; ".join(f"{each.name}: {each.error.message}" for each in failed if each.error is not None)
    found = error_from_code(code, where + words, retry_after_ms=first.retry_after_ms)
    found.__cause__ = first
    return found
