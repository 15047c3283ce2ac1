"""Calls of a scenario that nobody awaited: what they say was never looked at. Floor 16."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Callable, Coroutine
from functools import wraps
from pathlib import PurePath
from types import CodeType
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

FEW = 16
"""So many are not looked through."""


class Awaits:
    """Remembers coroutines until they have begun."""

    def __init__(self) -> None:
        self._made: list[tuple[Coroutine[Any, Any, Any], str, CodeType, int]] = []
        self._many = FEW

    def add(self, coroutine: Coroutine[Any, Any, Any], name: str, code: CodeType, line: int) -> None:
        """One more: what was called, and in which line."""
        if len(self._made) >= self._many:
            self._made = [each for each in self._made if _is_new(each[0])]
            self._many = max(FEW, 2 * len(self._made))
        self._made.append((coroutine, name, code, line))

    def missing(self) -> str:
        """The first that nobody awaited, and its line, in words; all of them are closed. Empty if there is none."""
        under_way = {task.get_coro() for task in asyncio.all_tasks()}
        left = [each for each in self._made if _is_new(each[0]) and each[0] not in under_way]
        for coroutine, *_ in left:
            coroutine.close()  # or Python warns of it, too
        if not left:
            return ""
        _, name, code, line = left[0]
        return f"{name}() was never awaited ({PurePath(code.co_filename).name}:{line})"


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
        self.awaits.add(coroutine, method.__name__, caller.f_code, caller.f_lineno)
        return coroutine

    return call


def _is_new(coroutine: Coroutine[Any, Any, Any]) -> bool:
    return inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED
