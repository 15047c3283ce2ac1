"""When the coroutine of a handler goes on after it has waited: noted in one run, so that another can go on like it.

Rules:

1. A step is the beginning, and what follows an await that had to wait. So that every run of a handler has the same
   ones, an await of an answer is one although the answer is there, and a piece of a stream is one, however long it
   takes to come.
2. What a handler does in tasks of its own is not looked at.

Floor 2.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

from grami_actors.messages import Envelope


class Steps(list[float]):
    """When the coroutine of one handler went on, on the system's clock.

    Attributes:
        here: whether what runs now is that coroutine, and not a task that it began.
        reading: whether it waits for a piece of a stream, which is a step when it is there.
    """

    here = False
    reading = False


def steps_of(here: Envelope | None) -> Steps | None:
    """The steps of the handler at work here, if somebody wants to know of them."""
    return here.steps if here is not None and here.steps is not None and here.steps.here else None


async def next_step(steps: Steps | None) -> None:
    """Be a step, if it matters."""
    if steps is not None:
        await asyncio.sleep(0)


async def between(steps: Steps | None, work: Awaitable[Any]) -> None:
    """Wait for something without a step."""
    if steps is None:
        await work
        return
    steps.reading = True
    try:
        await work
    finally:
        steps.reading = False


@types.coroutine
def each_step(
    work: Coroutine[Any, Any, Any], steps: Steps, before: Callable[[], asyncio.Future[None] | None]
) -> Generator[Any, Any, Any]:
    """Run a coroutine, and call something whenever it is about to begin or go on.

    Args:
        work: the coroutine.
        steps: of the message that it handles.
        before: called until it returns ``None``; what else it returns is waited for. A cancellation that comes
            meanwhile is what the coroutine goes on with.
    """
    step: Callable[[Any], Any] = work.send
    sent: Any = None
    early: BaseException | None = None
    begun = False
    try:
        while True:
            while not steps.reading and (wanted := before()) is not None:
                try:
                    yield from wanted
                except asyncio.CancelledError as cancelled:
                    early = cancelled
            if begun and early is not None:  # it begins in any case, and is cancelled where it waits
                sent, step, early = early, work.throw, None
            begun = steps.here = True
            try:
                awaited = step(sent)
            finally:
                steps.here = False
            if early is not None:
                continue
            try:
                sent = yield awaited
                step = work.send
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the handler's, whatever it is
                sent, step = error, work.throw
    except StopIteration as end:
        if early is not None and (task := asyncio.current_task()) is not None:
            task.cancel()  # whoever waits next is told
        return end.value
    finally:
        work.close()  # if it never began, or nobody waits for it any more


def noting(work: Coroutine[Any, Any, Any], envelope: Envelope, now: Callable[[], float]) -> Coroutine[Any, Any, Any]:
    """The coroutine of a handler, whose steps are noted in the envelope of its message."""
    envelope.steps = steps = Steps()
    return each_step(work, steps, lambda: steps.append(now()))
