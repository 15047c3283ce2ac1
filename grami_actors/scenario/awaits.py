"""Calls of a scenario that nobody awaited: what they say was never looked at. Floor 16."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Callable, Coroutine
from functools import wraps
from pathlib import PurePath
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Awaits:
    """Remembers coroutines until they have begun."""

    def __init__(self) -> None:
        self._made: list[tuple[Coroutine[Any, Any, Any], str]] = []

    def add(self, coroutine: Coroutine[Any, Any, Any], what: str) -> None:
        """One more, and what is said of it if it never begins."""
        self._made = [each for each in self._made if _is_new(each[0])]
        self._made.append((coroutine, what))

    def missing(self) -> str:
        """What is said of the first that nobody awaited, if there is one; all of them are closed."""
        under_way = {task.get_coro() for task in asyncio.all_tasks()}
        left = [each for each in self._made if _is_new(each[0]) and each[0] not in under_way]
        for coroutine, _ in left:
            coroutine.close()  # or Python warns of it, too
        return left[0][1] if left else ""


class Remembers(Protocol):
    """Who has an account of calls."""

    awaits: Awaits


S = TypeVar("S", bound=Remembers)


def awaited(
    method: Callable[Concatenate[S, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """Have the calls of a method remembered until they have begun."""

    @wraps(method)
    def call(self: S, /, *args: P.args, **given: P.kwargs) -> Coroutine[Any, Any, T]:
        coroutine = method(self, *args, **given)
        caller = sys._getframe(1)  # noqa: SLF001 - whose line it is
        place = f"{PurePath(caller.f_code.co_filename).name}:{caller.f_lineno}"
        self.awaits.add(coroutine, f"{method.__name__}() was never awaited ({place})")
        return coroutine

    return call


def _is_new(coroutine: Coroutine[Any, Any, Any]) -> bool:
    return inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED
