"""Answers that are still to come: what an ask returns. Floor 4.

A :class:`Future` is a Pykka future that can also be awaited on any event loop, settles exactly once, and
never blocks a loop: ``get()`` on a loop's thread raises at once. While an actor's handler waits for one,
the wait-for graph has an edge, so a circle of actors that wait for each other is an error, not a hang.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
import threading
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import pykka

from grami_actors.errors import (
    AgentExecutionFailed,
    AskCycle,
    Cancelled,
    DeadlineExceeded,
    GramiError,
    MailboxFull,
    WouldDeadlock,
)
from grami_actors.messages import Envelope, Scope

T = TypeVar("T")
ExcInfo = tuple[type[BaseException] | None, BaseException | None, TracebackType | None]

STREAM_BUFFER = 10_000
"""Chunks that may wait in a :class:`Stream` for a slow consumer; one more fails the producer's ``emit``."""


class AskTimeout(DeadlineExceeded, pykka.Timeout):
    """The deadline of an ask passed; also a ``pykka.Timeout`` for code that knows Pykka."""


class Party(Protocol):
    """What the wait-for graph needs to know of an actor."""

    name: str
    concurrency: int
    waits: dict[Waiting, Party]

    def now(self) -> float:
        """Seconds on the system's clock."""


class Delivery:
    """One message in the hands of one handler; the current one is what ``ask`` and ``emit`` inherit from."""

    __slots__ = ("active", "actor", "cell", "envelope", "started_at")

    def __init__(self, cell: Party, envelope: Envelope, started_at: float, actor: object = None) -> None:
        self.cell = cell
        self.envelope = envelope
        self.started_at = started_at
        self.actor = actor
        self.active = True


current: ContextVar[Delivery | None] = ContextVar("grami_delivery", default=None)


def current_scope() -> Scope | None:
    """The scope of the message being handled here; ``None`` outside of handlers."""
    delivery = current.get()
    return None if delivery is None else delivery.envelope.scope


def sender() -> str:
    """The name of the actor whose handler runs here; empty outside of handlers."""
    delivery = current.get()
    return "" if delivery is None else delivery.cell.name


class Future(pykka.Future[T]):
    """The answer to one ask.

    ``await`` it in async code, or call :meth:`get` in an ordinary thread. Differs from Pykka's own futures
    in that setting it twice keeps the first value, and in that the ask's deadline ends every wait.
    """

    _get_hook = None

    def __init__(self) -> None:  # Pykka's map, join and filter create futures without arguments.
        self._lock = threading.Lock()
        self._outcome: tuple[T | None, BaseException | None] | None = None
        self._waiters: list[Callable[[], None]] | None = None
        self._get_hook_result = _UNSET
        self._scope: Scope | None = None
        self._target: Party | None = None
        self._inside = False
        self._sources: tuple[Any, ...] = ()

    def bind(self, target: Party, scope: Scope, *, inside: bool) -> None:
        """Say who is asked. ``inside``: an actor asks, so a foreign exception is wrapped as a GramiError."""
        self._target = target
        self._scope = scope
        self._inside = inside
        scope.on_cancel(self._on_cancel)

    def _on_cancel(self, reason: GramiError) -> None:
        self._settle(None, reason)

    # --- the answering side ---

    def _settle(self, value: T | None, error: BaseException | None) -> bool:
        with self._lock:
            if self._outcome is not None:
                return False
            self._outcome = (value, error)
            waiters, self._waiters = self._waiters, None
        if self._scope is not None:
            self._scope.close()
        for wake in waiters or ():
            wake()
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
        error = (exc_info or sys.exc_info())[1]
        self._settle(None, error or RuntimeError("set_exception() was called without an exception"))

    # --- the waiting side ---

    def done(self) -> bool:
        """Whether the answer is there."""
        if self._sources:
            return all(not isinstance(source, Future) or source.done() for source in self._sources)
        return self._outcome is not None

    def cancel(self, reason: GramiError | None = None) -> bool:
        """Give up waiting, and cancel what the ask started; ``False`` if the answer is already there."""
        reason = reason or Cancelled("the caller stopped waiting")
        if self._sources:
            cancelled = [source.cancel(reason) for source in self._sources if isinstance(source, Future)]
            return any(cancelled)
        if self._outcome is not None:
            return False
        if self._scope is not None:
            self._scope.cancel(reason)  # settles this future too, by its callback
        self._settle(None, reason)  # unless the scope was being cancelled already, and has not come to it
        return self._outcome is not None and self._outcome[1] is reason

    def _result(self) -> T:
        assert self._outcome is not None
        value, error = self._outcome
        if error is None:
            return value  # type: ignore[return-value]
        if self._inside and not isinstance(error, GramiError):
            raise AgentExecutionFailed(f"{self._who()} failed: {describe(error)}") from error
        raise error

    def _who(self) -> str:
        return self._target.name if self._target is not None else "the actor"

    def _remaining(self) -> float | None:
        """Seconds until the deadline; ``None`` without one."""
        if self._scope is None or self._target is None or self._scope.deadline == math.inf:
            return None
        return max(0.0, self._scope.deadline - self._target.now())

    def _expire(self) -> None:
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
            return super().get(timeout=timeout)
        if self._outcome is None:
            if asyncio._get_running_loop() is not None:
                raise WouldDeadlock("a blocking get() on an event loop's thread would stop it; await the future")
            self._block(timeout)
        return self._result()

    def _block(self, timeout: float | None) -> None:
        arrived = threading.Event()
        if not self._add_waiter(arrived.set):
            return
        remaining = self._remaining()
        try:
            with _waiting_for(self._target):
                if remaining is None or (timeout is not None and timeout < remaining):
                    if not arrived.wait(timeout):
                        raise pykka.Timeout(f"{timeout} seconds")
                elif not arrived.wait(remaining):
                    self._expire()
        except AskCycle:
            self.cancel()  # as await does: the message must not be handled later, with nobody waiting
            raise
        finally:
            self._remove_waiter(arrived.set)

    def _add_waiter(self, wake: Callable[[], None]) -> bool:
        """Have ``wake`` called when the answer comes; ``False`` if it is there."""
        with self._lock:
            if self._outcome is not None:
                return False
            self._waiters = [*(self._waiters or ()), wake]
            return True

    def _remove_waiter(self, wake: Callable[[], None]) -> None:
        with self._lock:
            if self._waiters is not None:
                self._waiters = [each for each in self._waiters if each != wake]

    def __await__(self) -> Generator[Any, None, T]:
        if self._get_hook is not None:
            return (yield from self._evaluate().__await__())
        if self._outcome is None:
            yield from self._wait().__await__()
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
            return super().get()
        return await asyncio.get_running_loop().run_in_executor(None, super().get)  # a hook of a user's may block

    def _derived(self, future: Any, *others: Any) -> Any:
        future._sources = (self, *others)  # noqa: SLF001 - it was made a line ago
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

    async def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        arrived: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if asyncio._get_running_loop() is loop:
                _release(arrived)
            else:
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    loop.call_soon_threadsafe(_release, arrived)

        if not self._add_waiter(wake):
            return
        remaining = self._remaining()
        timer = None if remaining is None else loop.call_later(remaining, self._expire)
        try:
            with _waiting_for(self._target):
                await arrived
        except BaseException:
            self.cancel()
            raise
        finally:
            if timer is not None:
                timer.cancel()


_UNSET: Any = pykka.Future()._get_hook_result  # Pykka compares its type


class Stream(Future[T]):
    """An ask whose chunks are read while they come: ``async for chunk in stream``, then ``await stream``.

    Leaving the loop early, or being cancelled in it, cancels the ask.
    """

    def __init__(self) -> None:
        super().__init__()
        self._chunks: deque[Any] = deque()
        self._arrived: Callable[[], None] | None = None
        self._unread = False

    def started(self, source: str) -> None:
        """The sink's part: nothing to tell."""

    def progress(self, fraction: float, message: str) -> None:
        """The sink's part: progress goes to the client that asked, not to the asking agent."""
        if self._scope is not None and self._scope.parent is not None and self._scope.parent.sink is not None:
            self._scope.parent.sink.progress(fraction, message)

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
        remaining = self._remaining()
        timer = None if remaining is None else loop.call_later(remaining, self._expire)
        try:
            ended = False
            while not ended:
                # Looked at before the chunks: the last one comes before the end.
                ended = self._outcome is not None
                while self._chunks:
                    yield self._chunks.popleft()
                if not ended:
                    with _waiting_for(self._target):
                        await more.wait()
                    more.clear()
        finally:
            if timer is not None:
                timer.cancel()
            self.cancel()
        self._result()


class Waiting:
    """An edge of the wait-for graph: this delivery's handler waits for that actor's answer."""

    __slots__ = ("delivery",)

    def __init__(self, delivery: Delivery) -> None:
        self.delivery = delivery


class _waiting_for:  # noqa: N801 - reads as a statement
    """Hold an edge of the wait-for graph while a handler waits.

    Only an actor that handles one message at a time is blocked by waiting, and only while that handler is
    still at work. The edge is added before the search, so of two actors that close a circle at the same
    time on two threads at least one sees it.
    """

    __slots__ = ("_edge", "_target")

    def __init__(self, target: Party | None) -> None:
        delivery = current.get()
        self._target = target
        blocked = delivery is not None and delivery.active and delivery.cell.concurrency == 1
        self._edge = Waiting(delivery) if delivery is not None and target is not None and blocked else None

    def __enter__(self) -> Self:
        if self._edge is not None and self._target is not None:
            cell = self._edge.delivery.cell
            cell.waits[self._edge] = self._target
            if self._target.waits or self._target is cell:
                self._refuse_cycle(cell, self._target)
        return self

    def _refuse_cycle(self, cell: Party, target: Party) -> None:
        circle = _path(target, cell)
        if circle is not None:
            self.__exit__()
            names = " -> ".join(party.name for party in (cell, *circle))
            raise AskCycle(f"these actors wait for each other in a circle: {names}")

    def __exit__(self, *_: object) -> None:
        if self._edge is not None:
            self._edge.delivery.cell.waits.pop(self._edge, None)


def _path(start: Party, goal: Party) -> list[Party] | None:
    """A way along waiting handlers from ``start`` to ``goal``, both included."""
    trails: list[list[Party]] = [[start]]
    seen = {id(start)}
    while trails:
        trail = trails.pop()
        if trail[-1] is goal:
            return trail
        for edge, party in tuple(trail[-1].waits.items()):
            if edge.delivery.active and id(party) not in seen:
                seen.add(id(party))
                trails.append([*trail, party])
    return None


def _release(arrived: asyncio.Future[None]) -> None:
    if not arrived.done():
        arrived.set_result(None)


def interrupter() -> Callable[[GramiError], None]:
    """A function that cancels the task it was made in, from any thread."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def interrupt(_: GramiError) -> None:
        if task is None:
            return
        if asyncio._get_running_loop() is loop:
            task.cancel()
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nothing is left to cancel
                loop.call_soon_threadsafe(task.cancel)

    return interrupt


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


def describe(error: BaseException) -> str:
    """One line about an exception, without its traceback."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - an exception may bring code of its own that fails
        text = "(its text cannot be read)"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def details(error: BaseException) -> str:
    """The traceback as text, for logs only."""
    try:
        return "".join(traceback.format_exception(error))
    except Exception:  # noqa: BLE001 - an exception may bring code of its own that fails
        return describe(error)
