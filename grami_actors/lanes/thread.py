"""The thread lane: actors that may block, each on threads of its own. Floor 9.

Rules:

1. An actor with ``concurrency = N`` gets up to N threads that share its mailbox; the second is started
   when a message comes and the first is busy.
2. The number of threads of a system is bounded. Beyond it an actor is refused, or makes do with fewer.
3. A thread cannot be killed. A handler that does not end is left behind, and said to be.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from grami_actors.cell import Cell
from grami_actors.context import hooking
from grami_actors.errors import KillRefused, StartFailed
from grami_actors.future import Future, current
from grami_actors.messages import Envelope
from grami_actors.spec import LaneName

THREADS = 64
"""Threads that one system may have on this lane, unless told otherwise."""


class _Port:
    """What the lane keeps per cell. ``lock`` guards all fields and the cell's ``paused`` and ``working``."""

    __slots__ = ("closed", "idle", "jobs", "lock", "quiet", "signal", "threads")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.signal = threading.Semaphore(0)
        self.jobs: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()
        self.threads = 0
        self.idle = 0
        self.closed = False
        self.quiet = asyncio.Event()


class ThreadLane:
    """Runs handlers on threads.

    Args:
        loop: the system's home loop, where hooks report back.
        limit: threads at most.
    """

    name: LaneName = "thread"
    shared = True

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: int = THREADS) -> None:
        self._loop = loop
        self._limit = limit
        self._lock = threading.Lock()
        self._running = 0

    def attach(self, cell: Cell) -> None:
        """Own the cell, with one thread. Raises StartFailed when the thread budget is used up."""
        cell.port = _Port()
        cell.port.quiet.set()
        if not self._add_thread(cell):
            raise StartFailed(f"{cell.name} needs a thread, and all {self._limit} of this system are in use")

    def _add_thread(self, cell: Cell) -> bool:
        with self._lock:
            if self._running >= self._limit:
                return False
            self._running += 1
        port: _Port = cell.port
        with port.lock:
            port.threads += 1
            number = port.threads
        name = cell.name if number == 1 else f"{cell.name}#{number}"
        # Daemonic: a handler that never ends must not keep the process from ending.
        thread = threading.Thread(target=self._work, args=(cell, port), name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the operating system refuses: "can't start new thread"
            self._leave(port)
            return False
        return True

    def _leave(self, port: _Port) -> None:
        with port.lock:
            port.threads -= 1
        with self._lock:
            self._running -= 1

    def wake(self, cell: Cell) -> None:
        """There is mail; from any thread."""
        port: _Port | None = cell.port
        if port is not None:  # its name is known a moment before it is attached; resume looks for mail
            self._grow(cell, port)
            port.signal.release()

    def lend(self, future: Future[Any]) -> None:
        """Nothing: its handlers may block, so they run on no thread but their own."""

    def _grow(self, cell: Cell, port: _Port) -> None:
        """Add a thread if all are busy and the actor may have more; without one the mail just waits."""
        with port.lock:
            short = port.idle == 0 and port.threads < cell.concurrency and not port.closed
        if short and self._add_thread(cell):
            port.signal.release()

    def _work(self, cell: Cell, port: _Port) -> None:
        runner = asyncio.Runner()  # makes its loop when the first coroutine needs one
        while self._wait(port):
            if port.jobs:
                with contextlib.suppress(IndexError):  # another thread of this actor took it
                    self._run_job(cell, port.jobs.popleft(), runner)
            while (envelope := self._take(cell, port)) is not None:
                rest = cell.handle(envelope, cell.now())
                if rest is not None:
                    # The message is finished; but a task that was told to stop and had nothing left to wait for ends
                    # as cancelled, and that must not end the thread.
                    with contextlib.suppress(asyncio.CancelledError):
                        runner.run(rest, context=contextvars.copy_context())
                current.set(None)
                self._done(cell, port)
        runner.close()
        self._leave(port)

    def _wait(self, port: _Port) -> bool:
        """Wait for something to do; ``False`` ends the thread."""
        with port.lock:
            port.idle += 1
        port.signal.acquire()
        with port.lock:
            port.idle -= 1
            return not port.closed or bool(port.jobs)

    def _take(self, cell: Cell, port: _Port) -> Envelope | None:
        with port.lock:
            if cell.paused or port.jobs:
                return None
            cell.working += 1
        cell.mailbox.measure()
        envelope = cell.mailbox.take()
        if envelope is None:
            self._done(cell, port)
        elif cell.concurrency > 1 and not cell.mailbox.empty():
            # A burst is put faster than the first thread wakes, so the sender saw it idle.
            self._grow(cell, port)
        return envelope

    def _done(self, cell: Cell, port: _Port) -> None:
        with port.lock:
            cell.working -= 1
            quiet = cell.working == 0
        if quiet and cell.paused:
            self._report(port.quiet.set)

    def _run_job(self, cell: Cell, job: tuple[Callable[[], Any], asyncio.Future[Any]], runner: asyncio.Runner) -> None:
        hook, answer = job
        if answer.cancelled():  # whoever wanted it has given up
            return
        port: _Port = cell.port
        with port.lock:
            cell.working += 1
        try:
            with hooking(cell):
                result = hook()
                if inspect.isawaitable(result):
                    result = runner.run(_awaited(result), context=contextvars.copy_context())
        except BaseException as error:  # noqa: BLE001 - S15: it is the hook's answer, whatever it is
            report: tuple[Any, ...] = _fail, answer, error
        else:
            report = _settle, answer, result
        finally:
            self._done(cell, port)
            cell.mailbox.nudge()
        self._report(*report)

    def _report(self, callback: Callable[..., object], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the home loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(callback, *args)

    async def start(self, cell: Cell) -> None:
        """Make an instance and run its ``on_start`` on a thread of the actor."""
        await self._run(cell, lambda: cell.build().on_start())

    async def call(self, cell: Cell, hook: str, *args: Any) -> Any:
        """Run a hook of the instance on a thread of the actor, before any message."""
        return await self._run(cell, lambda: getattr(cell.actor, hook)(*args))

    async def _run(self, cell: Cell, hook: Callable[[], Any]) -> Any:
        port: _Port = cell.port
        answer: asyncio.Future[Any] = self._loop.create_future()
        port.jobs.append((hook, answer))
        port.signal.release()
        return await answer

    def pause(self, cell: Cell) -> None:
        """Take no more messages for the cell; from any thread."""
        port: _Port = cell.port
        with port.lock:
            cell.paused = True
            busy = cell.working > 0
        self._report(port.quiet.clear if busy else port.quiet.set)

    def resume(self, cell: Cell) -> None:
        """Let the cell take messages."""
        port: _Port = cell.port
        with port.lock:
            cell.paused = False
        cell.mailbox.nudge()
        port.signal.release(cell.concurrency)

    async def quiesce(self, cell: Cell, grace: float) -> bool:
        """Wait up to ``grace`` seconds for the handlers at work; ``False`` if one still runs."""
        port: _Port = cell.port
        try:
            async with asyncio.timeout(grace):
                while cell.working:
                    await port.quiet.wait()
                    port.quiet.clear()
        except TimeoutError:
            return False
        return True

    def kill(self, cell: Cell) -> None:
        """Refused: a thread cannot be killed."""
        raise KillRefused(
            f"{cell.name} runs on the thread lane, and a thread cannot be killed; "
            "stop it, or put what may hang on the process lane"
        )

    async def close(self) -> None:
        """Nothing is left when all actors are stopped."""

    def detach(self, cell: Cell) -> None:
        """Let go of the cell: its threads end when they are done."""
        port: _Port = cell.port
        with port.lock:
            port.closed = True
            threads = port.threads
        port.signal.release(max(threads, 1))


async def _awaited(result: Any) -> Any:
    return await result


def _settle(answer: asyncio.Future[Any], result: Any) -> None:
    if not answer.done():
        answer.set_result(result)


def _fail(answer: asyncio.Future[Any], error: BaseException) -> None:
    if not answer.done():
        # A future refuses StopIteration, and treats a CancelledError as its own cancellation.
        wrapped = isinstance(error, (StopIteration, asyncio.CancelledError))
        answer.set_exception(RuntimeError(f"{type(error).__name__}: {error}") if wrapped else error)
