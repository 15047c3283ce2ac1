"""Answers that are still to come: what an ask returns. Floor 4.

A :class:`Future` is a Pykka future that can also be awaited on any event loop, settles exactly once, and never blocks a
loop: ``get()`` on a loop's thread raises at once. It is also the scope of what was asked for: whatever the other's
handler causes is its child, and ends with it. While a handler waits for one, the wait-for graph has an edge, so a
circle of actors that wait for each other is an error, not a hang.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
import threading
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Protocol, TypeVar

import pykka

from grami_actors.errors import (
    AgentExecutionFailed,
    AskCycle,
    Cancelled,
    DeadlineExceeded,
    GramiError,
    MailboxFull,
    WouldDeadlock,
    describe,
)
from grami_actors.messages import Envelope, Scope
from grami_actors.steps import between, next_step, steps_of

T = TypeVar("T")
ExcInfo = tuple[type[BaseException] | None, BaseException | None, TracebackType | None]

STREAM_BUFFER = 10_000
"""Chunks that may wait in a :class:`Stream` for a slow consumer; one more fails the producer's ``emit``."""


class AskTimeout(DeadlineExceeded, pykka.Timeout):
    """The deadline of an ask passed; also a ``pykka.Timeout`` for code that knows Pykka."""


class Party(Protocol):
    """What the wait-for graph needs to know of an actor."""

    name: str
    lane: Any
    concurrency: int
    at_work: Envelope | None
    waits: dict[Future[Any], Envelope]

    def now(self) -> float:
        """Seconds on the system's clock."""


current: ContextVar[Envelope | None] = ContextVar("grami_envelope", default=None)
"""The message being handled here; what its handler sends inherits from it."""

handled = current.get
"""The message being handled here, or ``None``."""


def current_scope() -> Scope | None:
    """The scope of the message being handled here; ``None`` outside of handlers."""
    here = handled()
    return None if here is None else here.scope


class Future(Scope, pykka.Future[T]):
    """The answer to one ask, and the scope of what is done for it.

    ``await`` it in async code, or call :meth:`get` in an ordinary thread. Differs from Pykka's own futures
    in that setting it twice keeps the first value, and in that the ask's deadline ends every wait.
    """

    # Pykka's map, join and filter create futures without arguments; all that is not set is a value of the class.
    __init__ = object.__init__

    _outcome: tuple[T | None, BaseException | None] | None = None
    _waiters: list[asyncio.Future[None] | Callable[[], None]] | None = None
    _target: Party | None = None
    _inside: bool = False
    _sources: tuple[Any, ...] = ()
    _get_hook: Any = None
    _get_hook_result: Any = pykka.Future()._get_hook_result  # Pykka compares its type

    def bind(self, target: Party, parent: Scope | None, deadline: float, inside: bool = False) -> None:  # noqa: FBT001, FBT002 - by keyword it costs more
        """Say who is asked, for which request. ``inside``: an actor asks, so foreign exceptions are wrapped."""
        self._target = target
        if inside:
            self._inside = True
        self.attach(parent, deadline)
        if self.reason is not None:  # the request was over before this ask
            self._settle(None, self.reason)

    def _end(self, reason: GramiError) -> None:
        self._settle(None, reason)

    # --- the answering side ---

    def _settle(self, value: T | None, error: BaseException | None) -> bool:
        with self._lock:
            if self._outcome is not None:
                return False
            self._outcome = (value, error)
            waiters, self._waiters = self._waiters, None
            if self._callbacks is not None:
                self._callbacks = None
            parent = self.parent
            if parent is not None and parent._children is not None:
                parent._children.pop(self, None)
        if waiters is not None:
            for waiter in waiters:
                _wake(waiter)
        return True

    def set_result(self, value: T | None) -> bool:
        """Answer with a value; ``False`` if the answer is no longer awaited."""
        return self._settle(value, None)

    def fail(self, error: BaseException) -> bool:
        """Answer with an error; ``False`` if the answer is no longer awaited."""
        return self._settle(None, error)

    def set(self, value: T | None = None) -> None:
        """Pykka's name for :meth:`set_result`."""
        self._settle(value, None)

    def set_exception(self, exc_info: ExcInfo | None = None) -> None:
        """Pykka's name for :meth:`fail`; takes the exception being handled if none is given."""
        kind, error, _ = exc_info or sys.exc_info()
        self._settle(None, error or (kind() if kind else RuntimeError("set_exception() without an exception")))

    def set_get_hook(self, func: Callable[[float | None], T]) -> None:
        """Have ``func(timeout)`` make the value, once, when it is wanted; an answer that is there already stays."""
        with self._lock:
            if self._outcome is None:
                self._get_hook, self._hook_lock = func, threading.RLock()

    # --- the waiting side ---

    def done(self) -> bool:
        """Whether the answer is there."""
        if self._sources:
            return all(not isinstance(source, Future) or source.done() for source in self._sources)
        return self._outcome is not None

    def error(self) -> BaseException | None:
        """What the answer is, if it is an error; ``None`` while there is none."""
        return None if self._outcome is None else self._outcome[1]

    def value(self) -> T | None:
        """The answer, if it is there and no error."""
        return None if self._outcome is None else self._outcome[0]

    def cancel(self, reason: GramiError | None = None) -> bool:
        """Give up waiting, and cancel what the ask started; ``False`` if the answer is already there."""
        reason = reason or Cancelled("the caller stopped waiting")
        if self._sources:
            cancelled = [source.cancel(reason) for source in self._sources if isinstance(source, Future)]
            return any(cancelled)
        if self._outcome is not None:
            return False
        super().cancel(reason)  # settles this future too
        self._settle(None, reason)  # unless the scope was being cancelled already, and has not come to it
        return self._outcome is not None and self._outcome[1] is reason

    def _result(self) -> T:
        assert self._outcome is not None
        value, error = self._outcome
        if error is None:
            return value  # type: ignore[return-value]
        if self._inside and not isinstance(error, GramiError):
            raise AgentExecutionFailed(f"{self._who()} failed: {describe(error)}") from error
        if isinstance(error, DeadlineExceeded) and not isinstance(error, pykka.Timeout):
            raise AskTimeout(error.message) from error  # of a request, or found out by whoever was asked
        raise error

    def _who(self) -> str:
        return self._target.name if self._target is not None else "the actor"

    def expire(self) -> None:
        """The deadline passed."""
        self.cancel(AskTimeout(f"{self._who()} did not answer before the deadline; the outcome is unknown"))

    def get(self, *, timeout: float | None = None) -> T:
        """Wait for the answer in an ordinary thread.

        Args:
            timeout: seconds to wait at most; the deadline of the ask ends the wait in any case.

        Raises:
            WouldDeadlock: on the thread of a running event loop; ``await`` the future there.
            pykka.Timeout: ``timeout`` passed; the ask goes on.
            DeadlineExceeded: the ask's deadline passed.
            Exception: what the actor answered.
        """
        if self._get_hook is not None:
            return self._made(timeout)
        if self._outcome is None:
            if asyncio._get_running_loop() is not None:
                raise WouldDeadlock("a blocking get() on an event loop's thread would stop it; await the future")
            self._block(timeout)
        return self._result()

    def _made(self, timeout: float | None) -> T:
        """What the hook makes, once, however many threads want it; none waits for another longer than it said."""
        if not self._hook_lock.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
            raise pykka.Timeout(f"{timeout} seconds")
        try:
            return super().get(timeout=timeout)
        finally:
            self._hook_lock.release()

    def _block(self, timeout: float | None) -> None:
        arrived = threading.Event()
        if not self._add_waiter(arrived.set):
            return
        target = self._target
        remaining = None if target is None or self.deadline == math.inf else max(0.0, self.deadline - target.now())
        here = self._begin_waiting()
        try:
            if remaining is None or (timeout is not None and timeout < remaining):
                if not arrived.wait(timeout):
                    raise pykka.Timeout(f"{timeout} seconds")
            elif not arrived.wait(remaining):
                self.expire()
        finally:
            self._end_waiting(here)
            self._remove_waiter(arrived.set)

    def _add_waiter(self, waiter: asyncio.Future[None] | Callable[[], None]) -> bool:
        """Have ``waiter`` called, or settled, when the answer comes; ``False`` if it is there."""
        with self._lock:
            if self._outcome is not None:
                return False
            if self._waiters is None:
                self._waiters = [waiter]
            else:
                self._waiters.append(waiter)
            return True

    def _remove_waiter(self, waiter: asyncio.Future[None] | Callable[[], None]) -> None:
        with self._lock:
            if self._waiters is not None:
                self._waiters = [each for each in self._waiters if each != waiter]

    def on_done(self, callback: Callable[[], None]) -> None:
        """Call back when the answer is there, from the thread that brings it; at once if it is."""
        if not self._add_waiter(callback):
            callback()

    def __await__(self) -> Generator[Any, None, T]:
        if self._get_hook is not None:
            return (yield from self._evaluate().__await__())
        refused = self._outcome is not None and self._outcome[1] is not None  # at once
        if self._outcome is None and self._target is not None:
            self._target.lane.lend(self)
        if self._outcome is None:
            arrived: asyncio.Future[None] = asyncio.Future(loop=asyncio.get_running_loop())
            if self._add_waiter(arrived):
                here = self._begin_waiting()
                try:
                    yield from arrived
                except BaseException:
                    self.cancel()
                    raise
                finally:
                    self._end_waiting(here)
                return self._result()
        if refused or steps_of(handled()) is not None:
            yield  # who tries again and again must not keep the loop
        return self._result()

    __iter__ = __await__

    async def _evaluate(self) -> T:
        """The value of a future made by map, filter, join or reduce, without a blocking wait on the loop."""
        for source in self._sources:
            if not isinstance(source, Future):  # another library's future can only be waited for in a thread
                await asyncio.get_running_loop().run_in_executor(None, source.get)
            else:
                await source
        if self._sources:
            return self._made(None)
        return await asyncio.get_running_loop().run_in_executor(None, self.get)  # a hook of a user's may block

    def _derived(self, future: Any, *others: Any) -> Any:
        future._sources = (self, *others)
        return future

    def map(self, func: Callable[[T], Any]) -> Any:
        """Pykka's ``map``; its result can be awaited too."""
        return self._derived(super().map(func))

    def filter(self, func: Callable[[Any], bool]) -> Any:
        """Pykka's ``filter``; its result can be awaited too."""
        return self._derived(pykka.Future.filter(self, func))  # type: ignore[arg-type]

    def reduce(self, func: Callable[..., Any], *args: Any) -> Any:
        """Pykka's ``reduce``; its result can be awaited too."""
        return self._derived(pykka.Future.reduce(self, func, *args))  # type: ignore[arg-type]

    def join(self, *futures: Any) -> Any:
        """Pykka's ``join``; its result can be awaited too."""
        return self._derived(super().join(*futures), *futures)

    # --- the wait-for graph ---

    def _begin_waiting(self) -> Envelope | None:
        """Add an edge if waiting here holds an actor up; returns what is to be handed to ``_end_waiting``.

        Only an actor that handles one message at a time is held up, and only while that handler is still at
        work. The edge is added before the search, so of two actors that close a circle at the same time on
        two threads at least one sees it.
        """
        here = handled()
        target = self._target
        if here is None or target is None:
            return None
        cell: Party = here.receiver
        if cell.concurrency > 1 or cell.at_work is not here:
            return None
        cell.waits[self] = here
        if target.waits or target is cell:
            circle = _path(target, cell)
            if circle is not None:
                names = " -> ".join(party.name for party in (cell, *circle))
                self.cancel(AskCycle(f"these actors wait for each other in a circle: {names}"))
        return here

    def _end_waiting(self, here: Envelope | None) -> None:
        if here is not None:
            here.receiver.waits.pop(self, None)


class Stream(Future[T]):
    """An ask whose chunks are read while they come: ``async for chunk in stream``, then ``await stream``.

    Leaving the loop early, or being cancelled in it, cancels the ask.
    """

    def __init__(self) -> None:
        self._chunks: deque[Any] = deque()
        self._arrived: Callable[[], None] | None = None
        self._unread = False

    def attach(self, parent: Scope | None, deadline: float) -> None:
        """Become a child of ``parent``; what is emitted below comes here."""
        super().attach(parent, deadline)
        self.sink = self

    def started(self, source: str) -> None:
        """The sink's part: nothing to tell."""

    def progress(self, fraction: float, message: str) -> None:
        """The sink's part: progress goes to the client that asked, not to the asking agent."""
        if self.parent is not None and self.parent.sink is not None:
            self.parent.sink.progress(fraction, message)

    def emit(self, data: Any) -> None:
        """The sink's part: add one chunk, from any thread."""
        if self._unread:
            return
        if len(self._chunks) >= STREAM_BUFFER:
            raise MailboxFull(f"{STREAM_BUFFER} chunks wait for their reader, the bound of a stream")
        self._chunks.append(data)
        if (arrived := self._arrived) is not None:
            arrived()

    def __await__(self) -> Generator[Any, None, T]:
        """Only the whole answer is wanted: chunks that nobody began to read are let go."""
        if self._arrived is None:
            self._unread = True
            self._chunks.clear()
        return super().__await__()

    async def __aiter__(self) -> AsyncIterator[Any]:
        loop = asyncio.get_running_loop()
        more = asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads any more
                loop.call_soon_threadsafe(more.set)

        self._arrived = wake
        self._add_waiter(wake)
        steps = steps_of(handled())
        try:
            ended = False
            while not ended:
                # Looked at before the chunks: the last one comes before the end.
                ended = self._outcome is not None
                while self._chunks:
                    await next_step(steps)
                    yield self._chunks.popleft()
                if not ended:
                    here = self._begin_waiting()
                    try:
                        await between(steps, more.wait())
                    finally:
                        self._end_waiting(here)
                    more.clear()
            await next_step(steps)
        finally:
            self.cancel()
        self._result()


def _path(start: Party, goal: Party) -> list[Party] | None:
    """A way along waiting handlers from ``start`` to ``goal``, both included."""
    trails: list[list[Party]] = [[start]]
    seen = {id(start)}
    while trails:
        trail = trails.pop()
        if trail[-1] is goal:
            return trail
        for future, envelope in tuple(trail[-1].waits.items()):
            party = future._target
            # What is answered holds nobody up, also before whoever waits for it has woken.
            waiting = future._outcome is None and trail[-1].at_work is envelope
            if party is not None and waiting and id(party) not in seen:
                seen.add(id(party))
                trails.append([*trail, party])
    return None


def _wake(waiter: asyncio.Future[None] | Callable[[], None]) -> None:
    if isinstance(waiter, asyncio.Future):
        loop = waiter.get_loop()
        if asyncio._get_running_loop() is loop:
            _release(waiter)
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_release, waiter)
    else:
        waiter()


def _release(arrived: asyncio.Future[None]) -> None:
    if not arrived.done():
        arrived.set_result(None)


class Interrupt:
    """Cancels the task it was made in, from any thread; a callback of a scope."""

    __slots__ = ("_task",)

    def __init__(self) -> None:
        self._task = asyncio.current_task()

    def __call__(self, _: GramiError) -> None:
        """Cancel it, if it still runs."""
        task = self._task
        if task is None:
            return
        loop = task.get_loop()
        if asyncio._get_running_loop() is loop:
            task.cancel()
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nothing is left to cancel
                loop.call_soon_threadsafe(task.cancel)


EAGER = sys.version_info >= (3, 12)
"""Whether a task can take its first step at once: a coroutine that waits for nothing then costs no turn of the loop."""


def begin(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """A task whose first step is taken here and now, where the interpreter can do that."""
    if EAGER:
        return asyncio.Task(work, loop=loop, eager_start=True)  # type: ignore[call-arg, unused-ignore]
    return loop.create_task(work)


def only_answer(group: BaseExceptionGroup[BaseException]) -> GramiError | None:
    """The first answer in what a TaskGroup raised, if there is nothing but answers in it."""
    answers = group.subgroup(GramiError)
    others = group.split((GramiError, asyncio.CancelledError))[1]
    if answers is None or others is not None:
        return None
    first: BaseException = answers
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first if isinstance(first, GramiError) else None


def details(error: BaseException) -> str:
    """The traceback as text, for logs only."""
    try:
        return "".join(traceback.format_exception(error))
    except Exception:  # noqa: BLE001 - an exception may bring code of its own that fails
        return describe(error)
