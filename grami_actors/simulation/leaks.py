"""What would make a simulated run differ from its seed is an error that names the place. Floor 14.

Rules:

1. Only code of the user's leaks. What Python or a library does on its own behalf is let through; what one of them does
   for the user (a thread of an executor, the random bits of a token) is the user's.
2. Only in a run, and only on its thread: outside of it everything is what it was.
3. A leak fails the run, also if the agent catches the exception.
4. Randomness that is no leak comes from the seed.

Functions that are written in C cannot be changed, so they are replaced: in their modules, and wherever code of the
user's refers to them (``from time import time``, default arguments, attributes of classes). What is a method is changed
in place, so that no class becomes another one: msgspec goes by the very types of ``datetime``. Not seen is what C code
keeps to itself: ``msgspec.field(default_factory=time.time)`` of a class that was made before.
"""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import ctypes
import datetime as dt
import functools
import gc
import multiprocessing.process
import os
import random
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from threading import get_ident
from types import FunctionType, ModuleType
from typing import Any, NamedTuple, Self

from grami_actors.future import handled
from grami_actors.simulation.places import innermost, is_user, outwards, place, whose

CLOCK = "use self.now(), seconds on the system's clock; outside of actors, asyncio.get_running_loop().time()"
TODAY = "use self.utc_now(), or self.now() for seconds on the system's clock"
DICE = "use self.random, a random.Random with a seed of its own; outside of actors, random.Random(seed)"
THREAD = "call the function on the loop; what must run elsewhere belongs behind a tool"
OUTSIDE = "put it behind a tool, and give the simulation one that answers for it"

_ASKED = frozenset[str]()  # whose frames may stand between the user's and the function, by how directly it is meant
_THROUGH_STDLIB = frozenset({"stdlib"})
_THROUGH_ALL = frozenset({"stdlib", "library"})


class Nondeterminism(Exception):
    """Something that is another in each run leaked into a simulated one; the text says what, where, and what to use."""

    @classmethod
    def here(cls, what: str, instead: str) -> Self:
        """The error, with the place of the user's code that is running now; it fails the run that is sealed."""
        message = handled()
        actor = "" if message is None or message.receiver is None else f" in {message.receiver.name}"
        frame = innermost(outwards(sys._getframe(1)))  # noqa: SLF001 - the cheapest way to one's caller
        where = "" if frame is None else f" at {place(frame.f_code, frame.f_lineno)}"
        leak = cls(f"{what}{where}{actor} is not the same in each run: {instead}")
        if _run.thread == get_ident() and _run.leak is None:
            _run.leak = leak
        return leak


class Run:
    """The run that is sealed; there is one at a time.

    Attributes:
        leak: the first of this run.
        rng: where randomness comes from that is nobody's leak.
        thread: the one that it is on; 0 while there is none.
    """

    __slots__ = ("leak", "rng", "thread")

    def __init__(self) -> None:
        self.leak: Nondeterminism | None = None
        self.rng = random.Random(0)
        self.thread = 0


_run = Run()
_seals: list[None] = []


def _check(what: str, instead: str, between: frozenset[str]) -> None:
    """Raise if it was the user who called what called this."""
    called = what
    for frame in outwards(sys._getframe(2)):  # noqa: SLF001 - as above
        if is_user(frame):
            raise Nondeterminism.here(called, instead)
        if whose(frame.f_code.co_filename, frame.f_globals) not in between:
            return
        called = f"{frame.f_globals.get('__name__')}.{frame.f_code.co_qualname}".removesuffix(".__init__") + "()"


class _Guard:
    """Stands for a function: the same, but for the user's code in a sealed run.

    Not a function itself: as an attribute of a class it must not become a method.
    """

    __slots__ = ("_between", "_instead", "_seeded", "_what", "_with", "function")

    def __init__(self, module: ModuleType, name: str, leak: _Leak) -> None:
        self.function: Callable[..., Any] = getattr(module, name)
        self._what = f"{module.__name__}.{name}()"
        self._instead = leak.instead
        self._between = leak.between
        self._seeded = name if leak.seeded == "same" else leak.seeded
        self._with = leak.fixed_by

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        function = self.function
        if _run.thread == get_ident():
            given = self._with
            if not given or len(args) < given or args[given - 1] is None:
                _check(self._what, self._instead, self._between)
                if self._seeded:
                    function = getattr(_run.rng, self._seeded)
        return function(*args, **kwargs)

    def __repr__(self) -> str:
        return repr(self.function)


def is_guard(value: object) -> bool:
    """Whether something stands for a function while runs are sealed."""
    return type(value) is _Guard or value is as_completed


class _Leak(NamedTuple):
    """What is to be known of functions that leak.

    Attributes:
        names: of the functions.
        instead: what to use.
        between: whose frames may stand between the user's and the function.
        seeded: the method of ``Random`` that takes its place for others; ``"same"`` for the one of the same name.
        fixed_by: the number of the argument that makes its result certain.
    """

    names: str
    instead: str
    between: frozenset[str] = _ASKED
    seeded: str = ""
    fixed_by: int = 0


_DICE = " ".join(name for name, each in vars(random).items() if getattr(each, "__self__", None) is random._inst)  # noqa: SLF001 - that is what makes it one

FUNCTIONS: tuple[tuple[ModuleType, _Leak], ...] = (
    (time, _Leak("time time_ns monotonic monotonic_ns perf_counter perf_counter_ns clock_gettime", CLOCK)),
    (time, _Leak("process_time process_time_ns thread_time thread_time_ns clock_gettime_ns", CLOCK)),
    (time, _Leak("localtime gmtime ctime asctime", TODAY, fixed_by=1)),
    (time, _Leak("strftime", TODAY, fixed_by=2)),
    (time, _Leak("sleep", "use await asyncio.sleep(...), which takes virtual time")),
    (random, _Leak(_DICE, DICE, seeded="same")),
    (random, _Leak("_urandom", DICE, _THROUGH_STDLIB, "randbytes")),  # what SystemRandom and secrets draw from
    (os, _Leak("urandom getrandom", DICE, _THROUGH_STDLIB, "randbytes")),
    (os, _Leak("getpid getppid", "use self.name, which is the same in each run")),
    (os, _Leak("times getloadavg", CLOCK)),
    (socket, _Leak("gethostname getfqdn gethostbyname gethostbyaddr getaddrinfo getnameinfo", OUTSIDE)),
    (_thread, _Leak("start_new_thread", THREAD)),
    (os, _Leak("fork forkpty system posix_spawn posix_spawnp", OUTSIDE, _THROUGH_ALL)),
    (uuid, _Leak("uuid1 uuid4 uuid6 uuid7", "use uuid.UUID(int=self.random.getrandbits(128), version=4)")),
)
"""Functions of modules that leak, where the interpreter has them."""

METHODS: tuple[tuple[type, str, str, str], ...] = (
    (threading.Thread, "start", "a thread", THREAD),
    (multiprocessing.process.BaseProcess, "start", "a process", OUTSIDE),
    (subprocess.Popen, "__init__", "subprocess.Popen()", OUTSIDE),
    (socket.socket, "__init__", "socket.socket()", OUTSIDE),
)
"""Methods that leak, whoever calls them for the user."""

CALENDAR: tuple[tuple[type, str], ...] = (
    (dt.datetime, "now"),
    (dt.datetime, "utcnow"),
    (dt.date, "today"),
)
"""Class methods that read the clock. ``datetime.today`` is that of ``date``."""


@contextlib.contextmanager
def sealed(rng: random.Random) -> Iterator[Run]:
    """One run, on this thread: what leaks into it raises, and fails it at its end at the latest.

    Args:
        rng: where randomness comes from that is nobody's leak.

    Raises:
        Nondeterminism: the first leak, whatever else the run ended with.
        RuntimeError: another run is under way.
    """
    if _run.thread:
        raise RuntimeError("a simulated run is under way in this process; there is one at a time")
    with contextlib.nullcontext() if _seals else sealing():
        _run.leak, _run.rng, _run.thread = None, rng, get_ident()
        try:
            yield _run
        except Exception as error:
            if _run.leak is None or error is _run.leak:
                raise
            raise _run.leak from None  # the other may well be the leak itself, wrapped on its way here
        finally:
            _run.thread = 0
        if _run.leak is not None:
            raise _run.leak


@contextlib.contextmanager
def sealing() -> Iterator[None]:
    """Prepare for a series of runs, so that each is sealed at once; alone it changes nothing that a program sees.

    Code that was imported before is looked through, which takes some 50 ms; in the end everything is as it was.
    """
    if _seals:
        yield
        return
    with contextlib.ExitStack() as undo:
        undo.callback(_seals.clear)
        _seals.append(None)
        guards = [
            _replace(module, name, leak)
            for module, leak in FUNCTIONS
            for name in leak.names.split()
            if hasattr(module, name)
        ]
        # In the end wherever guards are: their own modules, and what was imported meanwhile.
        back = {id(each): each.function for each in guards} | {id(as_completed): _AS_COMPLETED}
        undo.callback(_swap, back, _is_not_here)
        for owner, name, what, instead in METHODS:
            _change(undo, owner, name, _guarded(vars(owner)[name], what, instead))
        _change(undo, random.Random, "seed", _seeding(random.Random.seed))
        for owner, name in CALENDAR:
            _change_builtin(undo, owner, name)
        asyncio.as_completed = asyncio.tasks.as_completed = as_completed
        _swap({id(each.function): each for each in guards} | {id(_AS_COMPLETED): as_completed}, _is_users)
        yield


def _replace(module: ModuleType, name: str, leak: _Leak) -> _Guard:
    guard = _Guard(module, name, leak)
    setattr(module, name, guard)
    return guard


def _change(undo: contextlib.ExitStack, owner: type, name: str, method: Callable[..., Any]) -> None:
    undo.callback(setattr, owner, name, vars(owner)[name])
    setattr(owner, name, method)


def _guarded(original: Callable[..., Any], what: str, instead: str) -> Callable[..., Any]:
    @functools.wraps(original)
    def method(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        if _run.thread == get_ident():
            _check(what, instead, _THROUGH_ALL)
        return original(self, *args, **kwargs)

    return method


def _seeding(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def seed(self: random.Random, a: Any = None, version: int = 2) -> None:
        if a is None and _run.thread == get_ident():
            _check("random.Random.seed() without a seed", DICE, _THROUGH_STDLIB)
            a = _run.rng.getrandbits(64)
        original(self, a, version)

    return seed


_AS_COMPLETED = asyncio.as_completed


def as_completed(fs: Iterable[Any], *, timeout: float | None = None) -> Any:
    """``asyncio.as_completed``, which begins what it is given in the order of a set: in a run, in that of the list."""
    if _run.thread == get_ident():
        fs = [asyncio.ensure_future(each) for each in dict.fromkeys(fs)]
    return _AS_COMPLETED(fs, timeout=timeout)


def _change_builtin(undo: contextlib.ExitStack, owner: type, name: str) -> None:
    """Change a class method of a type that is written in C, which Python itself refuses."""
    (methods,) = gc.get_referents(vars(owner))  # the dictionary behind the view
    original = methods[name]
    what = f"{owner.__module__}.{owner.__name__}.{name}()"

    def method(cls: type, *args: Any, **kwargs: Any) -> Any:
        if _run.thread == get_ident():
            _check(what, TODAY, _ASKED)
        return original.__get__(None, cls)(*args, **kwargs)

    def put(value: Any) -> None:
        methods[name] = value
        ctypes.pythonapi.PyType_Modified(ctypes.py_object(owner))  # the interpreter remembers where it found a method

    undo.callback(put, original)
    put(classmethod(method))


def _is_users(space: dict[str, Any]) -> bool:
    """Whether these are the global variables of code of the user's."""
    return whose("<module>", space) == "user"


def _is_not_here(space: dict[str, Any]) -> bool:
    """Whether these are the global variables of another module."""
    return space is not globals()


def _space(module: ModuleType) -> dict[str, Any]:
    """What a module holds; nothing for what only passes for one."""
    try:
        space: dict[str, Any] = object.__getattribute__(
            module, "__dict__"
        )  # a lazy module must not be loaded by looking
    except AttributeError:
        return {}
    return space


def _swap(table: dict[int, Any], wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Replace objects, by their id, in the modules, classes and functions whose global variables are wanted."""
    for module in tuple(sys.modules.values()):
        if isinstance(module, ModuleType):
            space = _space(module)
            if wanted(space):
                space.update(_replaced(space, table))
    for each in gc.get_objects():
        if type(each) is FunctionType:
            if wanted(each.__globals__):
                _swap_in_function(each, table)
        elif issubclass(type(each), type):
            space = type.__dict__["__dict__"].__get__(each)
            home = sys.modules.get(str(space.get("__module__")))
            if isinstance(home, ModuleType) and wanted(_space(home)):
                for name, value in _replaced(space, table).items():
                    type.__setattr__(each, name, value)


def _replaced(space: Any, table: dict[int, Any]) -> dict[str, Any]:
    found = {}
    for name, value in tuple(space.items()):
        if id(value) in table:
            found[name] = table[id(value)]
        elif type(value) is staticmethod and id(value.__func__) in table:
            found[name] = staticmethod(table[id(value.__func__)])
    return found


def _swap_in_function(function: FunctionType, table: dict[int, Any]) -> None:
    defaults = function.__defaults__
    if defaults and any(id(each) in table for each in defaults):
        function.__defaults__ = tuple(table.get(id(each), each) for each in defaults)
    if function.__kwdefaults__:
        function.__kwdefaults__.update(_replaced(function.__kwdefaults__, table))
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # it is empty
            if id(cell.cell_contents) in table:
                cell.cell_contents = table[id(cell.cell_contents)]
