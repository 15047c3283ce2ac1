"""The state of a script's modules as it was when they were loaded: each run begins with it so. Floor 16.

Agents are made anew in every run, but what stands at the top of a module, or in the body of a class, is one for all:
a list that one run fills would be full in the next, and a seed would not be replayed.

All that code of the user's can reach from the script is looked at once, over modules, classes, functions and objects.
Everything is put back in place, so that two names of one object stay two names of one object. Not put back is the
state of what a library keeps to itself.
"""

from __future__ import annotations

import ast
import asyncio
import functools
import gc
import itertools
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import msgspec

from grami_actors.simulation.leaks import is_guard
from grami_actors.simulation.places import whose

_PLAIN = (int, float, complex, str, bytes, bool, type(None))
_WRAPPERS = (staticmethod, classmethod, property, partial, MethodType, functools.cached_property)
_WAITED = tuple(
    each
    for module in (asyncio.locks, asyncio.queues)
    for each in vars(module).values()
    if isinstance(each, type) and each.__module__ == module.__name__ and not issubclass(each, Exception)
)
"""What tasks wait for; it would remember the loop of an earlier run."""

_CACHED = type(functools.cache(lambda: None))
_NOTHING = object()


class Pristine:
    """What can be reached from a script, as it is now.

    Args:
        script: the module.
    """

    def __init__(self, script: ModuleType) -> None:
        self._put_back: list[Callable[[], object]] = []
        seen: dict[int, Any] = {}  # with the objects, so that no id is used again
        todo: list[Any] = [script]
        while todo:
            each = todo.pop()
            if id(each) in seen or type(each) in _PLAIN:
                continue
            seen[id(each)] = each
            put_back = _restorer(each)
            if put_back is not None:
                self._put_back.append(put_back)
            todo.extend(_reached(each))

    def restore(self) -> None:
        """Put everything back."""
        for put_back in self._put_back:
            put_back()


def _is_users(module: object) -> bool:
    return isinstance(module, ModuleType) and whose("<module>", vars(module)) == "user"


def _home(value: Any) -> ModuleType | None:
    """The module of a class or function, if it is the user's."""
    module = sys.modules.get(str(getattr(value, "__module__", None)))
    return module if _is_users(module) else None


def _is_state(value: object) -> bool:
    """Whether it is an object whose attributes a run may change."""
    return isinstance(value, _WAITED) or _home(type(value)) is not None


def _reached(value: Any) -> Iterator[Any]:
    """What can be reached from it directly."""
    if isinstance(value, FunctionType):
        # Not its global variables: those are its module's.
        value = (value.__defaults__, value.__kwdefaults__, value.__closure__, _home(value), vars(value))
    elif isinstance(value, (ModuleType, type)):
        value = (_home(value), vars(value).copy()) if _has_names(value) else ()
    if isinstance(value, dict):
        yield from (*value.keys(), *value.values())
    elif isinstance(value, (list, set, frozenset, tuple, deque)):
        yield from value
    elif isinstance(value, (CellType, _CACHED, *_WRAPPERS)) or type(value).__module__.startswith("grami_actors."):
        yield from gc.get_referents(value)
    yield from _attributes(value).values()


def _attributes(value: Any) -> dict[str, Any]:
    """The attributes of an object of the user's, wherever it keeps them."""
    if not _is_state(value):
        return {}
    slots = [name for kind in type(value).__mro__ for name in _slots(kind) if hasattr(value, name)]
    return getattr(value, "__dict__", {}) | {name: getattr(value, name) for name in slots}


def _slots(kind: type) -> tuple[str, ...]:
    if issubclass(kind, msgspec.Struct):
        return kind.__struct_fields__
    slots = vars(kind).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    mangled = kind.__name__.lstrip("_")
    return tuple(
        f"_{mangled}{name}" if name.startswith("__") and not name.endswith("__") else name
        for name in names
        if name not in {"__dict__", "__weakref__"}
    )


# --- each in its way ---


def _restorer(value: Any) -> Callable[[], object] | None:
    """What puts it back; ``None`` if nothing of it changes."""
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):  # which has no state
        return partial(value.setstate, value.getstate())
    if isinstance(value, _CACHED):
        return value.cache_clear
    if isinstance(value, CellType):
        return partial(_restore_cell, value, _content(value))
    refill = _of_container(value)
    rename = partial(_restore_names, value, _names(value)) if _has_names(value) else None
    if refill is not None and rename is not None:
        return lambda: (refill(), rename())
    return refill or rename


def _has_names(value: Any) -> bool:
    if isinstance(value, ModuleType):
        return _is_users(value)
    return _home(value) is not None if isinstance(value, (type, FunctionType)) else _is_state(value)


def _of_container(value: Any) -> Callable[[], object] | None:
    if isinstance(value, dict):
        return partial(_refill, dict.clear, dict.update, value, dict(value))
    for kind, extend in ((list, list.extend), (deque, deque.extend), (bytearray, bytearray.extend), (set, set.update)):
        if isinstance(value, kind):
            return partial(_refill, kind.clear, extend, value, list(value))
    return None


def _refill(clear: Callable[[Any], None], fill: Callable[[Any, Any], None], value: Any, content: Any) -> None:
    clear(value)
    fill(value, content)


def _names(owner: Any) -> dict[str, Any]:
    """What its names stand for. Of a counter, which cannot be wound back, what it takes to make it anew."""
    return {
        name: _Counter(value) if type(value) is itertools.count else value
        for name, value in tuple(_space(owner).items())
        if not _is_pythons(name)
    }


def _space(owner: Any) -> Mapping[str, Any]:
    return vars(owner) if isinstance(owner, (ModuleType, type, FunctionType)) else _attributes(owner)


def _is_pythons(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


class _Counter:
    def __init__(self, counter: itertools.count[Any]) -> None:
        self._args = ast.literal_eval(f"[{repr(counter).removeprefix('count(').removesuffix(')')}]")

    def new(self) -> itertools.count[Any]:
        return itertools.count(*self._args)


def _restore_names(owner: Any, names: dict[str, Any]) -> None:
    space = _space(owner)
    for name in [each for each in space if each not in names and not _is_pythons(each)]:
        delattr(owner, name)
    for name, value in names.items():
        if type(value) is _Counter:
            setattr(owner, name, value.new())
        elif (now := space.get(name, _NOTHING)) is not value and not _is_sealing(now, value):
            setattr(owner, name, value)


def _is_sealing(now: Any, before: Any) -> bool:
    # Functions that read the clock are replaced by others while runs are sealed.
    return is_guard(now) or is_guard(before)


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return _NOTHING


def _restore_cell(cell: CellType, content: Any) -> None:
    now = _content(cell)
    if content is _NOTHING or now is content or _is_sealing(now, content):
        return
    cell.cell_contents = content
