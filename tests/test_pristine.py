"""Whatever a run changes of a script is as it was when the next one begins."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from grami_actors.scenario.pristine import Pristine

SCRIPT = """
import asyncio, collections, functools, itertools, random
import enum
from secrets import choice
import msgspec
from helpers_of_pristine import Helper, helped

class Box:
    kinds = ["a"]
    total = 0
    _hidden = None
    def __init__(self): self.items, self.next = [], None

class Slim:
    __slots__ = ("size", "__secret", "unset")
    def __init__(self): self.size, self.__secret = 1, [1]
    def secret(self): return self.__secret

class State(msgspec.Struct):
    open: bool = False
    seen: list = []

class Words(list): pass

class Colour(enum.Enum):
    RED = 1

total, name, nobody = 0, "ann", None
numbers, table, tags = [1], {"a": {"b": 1}}, {"x", "y"}
queue, raw, ordered = collections.deque([1], maxlen=9), bytearray(b"a"), collections.OrderedDict(a=1)
by_name, tallied = collections.defaultdict(list), collections.Counter("aab")
box, slim, state, words = Box(), Slim(), State(), Words(["w"])
pair = (box, [box])
box.next = box
lock, waiting, places = asyncio.Lock(), asyncio.Queue(), asyncio.Semaphore(2)
ids, dice = itertools.count(7, 2), random.Random(5)
stateless = random.SystemRandom()

@functools.cache
def remembered(x): return [x]

def with_default(x, seen=[]):
    seen.append(x)
    return list(seen)

def counting():
    n = 0
    def count():
        nonlocal n
        n += 1
        return n
    return count
count = counting()

def attributed(): pass
attributed.calls = 0
"""

HELPERS = """
from collections import defaultdict
shared = defaultdict(list)
class Helper:
    made = 0
def helped():
    Helper.made += 1
    shared["x"].append(1)
    return Helper.made, len(shared["x"])
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    names = ("script_of_pristine", "helpers_of_pristine")
    for each, text in zip(names, (SCRIPT, HELPERS), strict=True):
        (tmp_path / f"{each}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module(names[0])
    for each in names:
        sys.modules.pop(each, None)


def rename(module: Any) -> Any:
    module.total, module.name, module.nobody = module.total + 1, "bob", object()
    return module.total, module.name


def mutate(module: Any) -> Any:
    module.numbers.append(2)
    module.table["a"]["b"] = 2
    module.table["c"] = 3
    module.tags.add("z")
    module.queue.append(2)
    module.raw.extend(b"b")
    module.ordered["b"] = 2
    module.by_name["new"].append(1)
    module.tallied.update("c")
    module.words.append("v")
    module.words.more = getattr(module.words, "more", 0) + 1
    return (
        module.numbers, module.table, sorted(module.tags), list(module.queue), bytes(module.raw),
        dict(module.ordered), dict(module.by_name), dict(module.tallied), list(module.words), module.words.more,
    )  # fmt: skip


def of_a_class(module: Any) -> Any:
    module.Box.kinds.append("b")
    module.Box.total += 1
    module.Box.added = getattr(module.Box, "added", 0) + 1
    module.Box._hidden = 1 if module.Box._hidden is None else 2
    return module.Box.kinds, module.Box.total, module.Box.added, module.Box._hidden


def of_objects(module: Any) -> Any:
    module.box.items.append(1)
    module.box.new = getattr(module.box, "new", 0) + 1
    module.slim.size += 1
    module.slim.secret().append(2)
    module.slim.unset = getattr(module.slim, "unset", 0) + 1
    module.state.open = not module.state.open
    module.state.seen.append(1)
    return (
        module.box.items, module.box.new, module.slim.size, module.slim.secret(), module.slim.unset,
        module.state.open, module.state.seen,
    )  # fmt: skip


def new_names(module: Any) -> Any:
    module.lazily = getattr(module, "lazily", 0) + 1
    return module.lazily


def counters(module: Any) -> Any:
    return next(module.ids), next(module.ids), module.dice.random(), module.count()


def functions(module: Any) -> Any:
    module.attributed.calls += 1
    module.remembered(1).append(2)
    return module.with_default(1), module.attributed.calls, module.remembered(1)


def primitives(module: Any) -> Any:
    module.waiting.put_nowait(1)
    module.lock._loop, module.lock._locked = object(), not module.lock._locked
    module.places._value -= 1
    return module.waiting.qsize(), module.lock.locked(), module.places._value


def imported(module: Any) -> Any:
    return module.helped()


WAYS = (rename, mutate, of_a_class, of_objects, new_names, counters, functions, primitives, imported)


@pytest.mark.parametrize("change", WAYS)
def test_what_a_run_changes_is_put_back(script: ModuleType, change: Callable[[Any], Any]) -> None:
    pristine = Pristine(script)
    first = repr(change(script))
    assert repr(change(script)) != first, "it can be seen that it was not put back"
    for _ in range(3):
        pristine.restore()
        assert repr(change(script)) == first


def test_two_names_of_one_object_stay_two_names_of_one_object(script: Any) -> None:
    pristine, box = Pristine(script), script.box
    script.pair[1].clear()
    box.next = None
    pristine.restore()
    assert script.box is script.pair[0] is script.pair[1][0] is box.next is box


def test_what_is_not_reached_from_the_script_is_left_alone(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "stranger_to_pristine.py").write_text("seen = []\n")
    stranger = importlib.import_module("stranger_to_pristine")
    pristine = Pristine(script)
    stranger.seen.append(1)
    pristine.restore()
    assert stranger.seen == [1]
    del sys.modules["stranger_to_pristine"]


def test_agents_that_are_only_reached_through_the_swarm_are_put_back_too(tmp_path: Path, script: Any) -> None:
    (tmp_path / "swarm_of_pristine.py").write_text(
        "from grami_actors import Agent, Swarm\nclass Teller(Agent):\n    seen = []\nswarm = Swarm([Teller])\n"
    )
    script.swarm = importlib.import_module("swarm_of_pristine").swarm
    module = sys.modules["swarm_of_pristine"]
    pristine = Pristine(script)
    module.Teller.seen.append(1)
    pristine.restore()
    assert module.Teller.seen == []
    del sys.modules["swarm_of_pristine"]
