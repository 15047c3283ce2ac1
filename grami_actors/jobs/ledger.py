"""The job store as coroutines see it: one thread writes, and whatever waits is written together. Floor 12.

Rule 1: calls are done in the order in which they were made, those that need not be durable among the others.
Rule 2: an exception of one call goes to its caller only, and nothing of the call is kept. A batch that cannot be
        written fails with StoreError for all its calls; those that only read are done again.
Rule 3: after each batch, what it changed is told on the loop before any of its callers goes on.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from grami_actors.job import Job
from grami_actors.jobs.failpoints import reached
from grami_actors.jobs.store import JobStore, StoreError

GATHERED = 0.02
"""Seconds that a call which need not be durable may wait for others."""
MOST_CALLS = 500
"""Calls in one batch."""

T = TypeVar("T")


class _Call(NamedTuple):
    """What is to be done, and who waits for it; ``durable`` is ``None`` for one that only reads."""

    work: Callable[[JobStore], Any]
    durable: bool | None
    future: asyncio.Future[Any]
    at: float


class _Done(NamedTuple):
    """What came of a call."""

    future: asyncio.Future[Any]
    result: Any
    error: Exception | None


class Ledger:
    """Calls a job store.

    Args:
        store: it is this one's from then on.
        on_committed: is told on the loop of the jobs that a batch changed, each as it is then, the last changed last.
        inline: do all at once in the task that calls, as a simulation needs it.
    """

    def __init__(self, store: JobStore, on_committed: Callable[[list[Job]], None], *, inline: bool = False) -> None:
        self._store = store
        self._on_committed = on_committed
        self._inline = inline
        self._calls: list[_Call] = []
        self._changed = threading.Condition()
        self._closed = True
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._ended: asyncio.Future[None] | None = None

    def open(self) -> None:
        """Open the store, and begin to write; on the loop. Raises ConfigError."""
        self._store.open()
        self._closed = False
        self._loop = asyncio.get_running_loop()
        if not self._inline:
            self._ended = self._loop.create_future()
            self._thread = threading.Thread(target=self._write, name="jobs-ledger", daemon=True)
            self._thread.start()

    def do(self, work: Callable[[JobStore], T], *, durable: bool = True) -> asyncio.Future[T]:
        """Write something, in the order of the calls, whether or not anybody awaits it.

        Args:
            work: gets the store, in a batch, on another thread. What it returns or raises is the outcome.
            durable: whether it must be on the disk when the outcome comes; if not, it may wait for :data:`GATHERED`.

        The future raises, beside what ``work`` does, StoreError: nothing of it was written, and it may be tried again.
        """
        return self._call(work, durable=durable)

    def read(self, work: Callable[[JobStore], T]) -> asyncio.Future[T]:
        """Read something, after all that was called before; as :meth:`do`. It may be done twice."""
        return self._call(work, durable=None)

    async def close(self) -> None:
        """Do what waits, and close the store; twice is once."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._ended is not None:
            await asyncio.shield(self._ended)
        else:
            self._store.close()

    def _call(self, work: Callable[[JobStore], T], *, durable: bool | None) -> asyncio.Future[T]:
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        call = _Call(work, durable, future, time.monotonic())
        with self._changed:
            if self._closed:
                future.set_exception(StoreError("the job store is closed"))
            elif not self._inline:
                self._calls.append(call)
                if len(self._calls) == 1 or durable is not False:
                    self._changed.notify()
        if self._inline and not future.done():
            self._tell(*self._batch([call]))
        return future

    # --- on the thread ---

    def _write(self) -> None:
        while calls := self._take():
            self._on_loop(self._tell, *self._batch(calls))
        self._store.close()
        self._on_loop(self._end)

    def _take(self) -> list[_Call]:
        """What waits, once some of it is urgent or has waited long enough; nothing at the end."""
        with self._changed:
            while not self._closed and (left := self._patience()) != 0:
                self._changed.wait(left)
            calls, self._calls = self._calls[:MOST_CALLS], self._calls[MOST_CALLS:]
            return calls

    def _patience(self) -> float | None:
        """Seconds until there is something to write; ``None``: until somebody calls."""
        if not self._calls:
            return None
        if any(call.durable is not False for call in self._calls):
            return 0
        return max(0, self._calls[0].at + GATHERED - time.monotonic())

    def _batch(self, calls: list[_Call]) -> tuple[list[_Done], list[Job]]:
        """Do calls together."""
        done: list[_Done] = []
        changed: list[Job] = []
        writes = any(call.durable is not None for call in calls)
        try:
            with self._store.batch(durable=any(call.durable for call in calls)) as changed:
                done = [self._do(call) for call in calls]
                if writes:
                    reached("ledger.before_commit")
            if writes:
                reached("ledger.after_commit")
        except OSError as error:
            return self._failed(calls, StoreError(str(error))), changed
        except Exception as error:  # noqa: BLE001 - it is the callers'
            return self._failed(calls, error), changed
        return done, changed

    def _do(self, call: _Call) -> _Done:
        try:
            if call.durable is None:
                return _Done(call.future, call.work(self._store), None)
            with self._store.batch(durable=call.durable):
                result = call.work(self._store)
            return _Done(call.future, result, None)
        except Exception as error:  # noqa: BLE001 - it is the caller's
            return _Done(call.future, None, error)

    def _failed(self, calls: Sequence[_Call], error: Exception) -> list[_Done]:
        return [self._do(call) if call.durable is None else _Done(call.future, None, error) for call in calls]

    def _on_loop(self, told: Callable[..., None], *arguments: Any) -> None:
        assert self._loop is not None
        with suppress(RuntimeError):  # that loop is closed
            self._loop.call_soon_threadsafe(told, *arguments)

    # --- on the loop ---

    def _tell(self, done: list[_Done], changed: list[Job]) -> None:
        for future, result, error in done:
            if future.done():
                continue  # its caller was cancelled
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
        # Those who wait go on in a later turn of the loop.
        if changed:
            self._on_committed(changed)

    def _end(self) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)
