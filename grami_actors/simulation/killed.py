"""A handler that is killed in the middle of its work: where it waits for the so many-th time. Floor 14."""

from __future__ import annotations

import asyncio
import itertools
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any


async def killed(rest: Coroutine[Any, Any, None], awaits: int) -> None:
    """Do what is left of a message, and cancel it where it has to wait for the so many-th time."""
    await _steps(rest, awaits)


@types.coroutine
def _steps(rest: Coroutine[Any, Any, None], awaits: int) -> Generator[Any, Any, None]:
    step: Callable[[Any], Any] = rest.send
    sent: Any = None
    for number in itertools.count(1):
        try:
            awaited = step(sent)
        except StopIteration:
            return
        task = asyncio.current_task()
        if number == awaits and task is not None:
            task.cancel("killed")
        try:
            sent = yield awaited
            step = rest.send
        except BaseException as error:  # noqa: BLE001 - the handler's, whatever it is
            sent, step = error, rest.throw
