"""A small table that is written down, so that it outlives whoever changes it. Floor 12.

Rule 1: the file has one JSON array a line, and only grows: ``[number, key, value]`` sets a key, ``[number, key]``
        removes it, ``[number]`` says how many changes there were.
Rule 2: what stands after the last newline is a write that a crash cut short, and never counted: it is dropped. Any
        other line that cannot be read is damage, and an error.
Rule 3: when most of the file is history it is replaced, whole or not at all, by what counts. Numbers go on.
Rule 4: a change is on the disk before anybody hears of it. Its owner sees it at once, but waits with what it answers
        (:meth:`Journal.kept`) and with what it tells others (:meth:`Journal.once_kept`). So the event loop need not
        wait: a thread writes, and what comes meanwhile is written together.
Rule 5: when a write fails, the changes in it and those after it are forgotten, and what was to follow from them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import Context, copy_context
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from grami_actors.errors import ConfigError, ErrorCode, GramiError, LimitReached, describe

if sys.platform != "win32":
    import fcntl

SPARE_LINES = 64
"""Lines of history that a file may have, and as many again as there are keys, before it is replaced."""


class _Batch:
    """Changes that are written together.

    Attributes:
        lines: the changes.
        entries: what the file is replaced by afterwards, and the number of the last change; ``None``: it is not.
        waiting: who is told when they are written, with the error if they are not; each in its context.
    """

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.entries: tuple[dict[str, tuple[int, bytes]], int] | None = None
        self.waiting: list[tuple[Callable[[Exception | None], object], Context]] = []


class Journal:
    """Keys and their values, which are whatever JSON can say: what is read back has lists for tuples, and so on.

    It belongs to one actor, which gets it as an argument of its constructor and opens and closes it: the instance that
    takes over after a failure is given the same journal, and finds in it what its predecessor left. Not for the process
    lane.

    Args:
        path: the file, which only its owner may read; it is made when it is first opened, with its folder. Without
            one, nothing outlives the actor system: each simulated run begins with an empty one.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self._path = None if path is None else Path(path)
        self._on_paper = path is not None
        self._file: BinaryIO | None = None
        self._lock: int | None = None
        self._number = 0
        self._lines = 0
        self._entries: dict[str, tuple[int, bytes]] = {}
        self._system: weakref.ref[Any] | None = None
        self._owner = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._writing: tuple[_Batch, Future[Exception | None]] | None = None
        self._following = _Batch()

    def open(self, system: Any = None, owner: str = "") -> None:
        """Read the file; nothing happens if that was done.

        Args:
            system: the actor system of its owner. Without a file, what was kept for another one is forgotten; and one
                that is simulated touches no file. Given on an event loop, that loop never waits for a change: see
                :meth:`kept`. Else a change is on the disk when the call that made it returns.
            owner: the name of the actor whose it is, until it is closed.

        Raises:
            ConfigError: it is another actor's; or the file cannot be used, is damaged, or another process has it open.
        """
        if system is not None:
            known = self._system is not None and self._system() is system
            if known and self._owner not in {"", owner}:
                raise ConfigError(f"the journal of {owner} is that of {self._owner} already: give each one of its own")
            self._system, self._owner = weakref.ref(system), owner
            self._on_paper = self._path is not None and not system.simulated
            self._loop = asyncio._get_running_loop()
            if not self._on_paper and not known:
                self._entries, self._number = {}, 0
        if self._path is None or not self._on_paper or self._file is not None:
            return
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _locked(self._path.with_name(f"{self._path.name}.lock"))
            new = not self._path.exists()
            # Opened for as long as the journal is: every change goes to its end.
            self._file = os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
            self._read(self._file)
            if new:
                _sync_folder(self._path.parent)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise ConfigError(f"cannot use {self._path}: {error.strerror}") from error
            raise

    def close(self) -> None:
        """Wait for what is not written yet, and let go of the file; :meth:`open` reads it again."""
        self._owner = ""
        while self._writing is not None:
            batch, job = self._writing
            self._written(batch, job.result())
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
        if self._file is not None:
            with contextlib.suppress(OSError):  # what could not be written was an error already
                self._file.close()
            self._file = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # --- what it holds ---

    def keys(self) -> tuple[str, ...]:
        """All keys; the one that was changed last comes last."""
        self.open()
        return tuple(self._entries)

    def version(self, key: str) -> int:
        """The number of the change that set the key; 0 if it is not set. No number that was told comes twice."""
        self.open()
        return self._entries.get(key, (0, b""))[0]

    def get(self, key: str, kind: Any = Any) -> Any:
        """A copy of the value, as a ``kind``; ``None`` if the key is not set."""
        self.open()
        found = self._entries.get(key)
        return None if found is None else msgspec.json.decode(found[1], type=kind)

    # --- changing it ---

    def put(self, key: str, value: Any) -> int:
        """Set a key; returns the number of this change.

        Raises:
            GramiError: VALIDATION_FAILED: JSON cannot say this value. INTERNAL_ERROR: the file cannot be written;
                whether the change is in it shows when it is read again.
        """
        return self._change(key, written(value))

    def remove(self, key: str) -> int:
        """Forget a key; returns the number of this change. Raises as :meth:`put` does."""
        return self._change(key)

    def make_room(self, most: int, full: str, kind: Any = Any, spare: Callable[[Any], bool] = lambda _: False) -> None:
        """Forget the oldest value, read as a ``kind``, that can be spared, if there are as many as there may be.

        Raises:
            LimitReached: RESOURCE_EXHAUSTED: there is none; ``full`` says what there are, and what to do.
        """
        self.open()
        if len(self._entries) < most:
            return
        for key in self.keys():
            if spare(self.get(key, kind)):
                self.remove(key)
                return
        raise LimitReached(f"there are {most} {full}", code=ErrorCode.RESOURCE_EXHAUSTED)

    async def kept(self) -> None:
        """Wait until all changes so far are on the disk; does not wait where they are, or where there is none.

        Raises:
            GramiError: INTERNAL_ERROR: they cannot be written, and are forgotten.
        """
        if (batch := self._unwritten()) is None:
            return
        end = asyncio.get_running_loop().create_future()

        def told(error: Exception | None) -> None:
            if not end.done():
                end.set_result(error)

        batch.waiting.append((told, copy_context()))
        if (error := await end) is not None:
            raise self._failure(error)

    def once_kept(self, effect: Callable[[], object]) -> None:
        """Call something when all changes so far are on the disk, whatever becomes of the caller; now, if they are.

        It is called in the caller's context, in the order of these calls, and not at all if they cannot be written.
        """
        if (batch := self._unwritten()) is None:
            effect()
        else:
            batch.waiting.append((lambda error: effect() if error is None else None, copy_context()))

    def _unwritten(self) -> _Batch | None:
        """The last changes that are not on the disk."""
        if self._following.lines:
            return self._following
        return None if self._writing is None else self._writing[0]

    # --- the file ---

    def _change(self, key: str, *data: bytes) -> int:
        name = written(key)
        self.open()
        self._number += 1
        self._entries.pop(key, None)  # the one that was changed last comes last
        if data:
            self._entries[key] = (self._number, data[0])
        if self._file is not None:
            self._following.lines.append(b"[%d,%b]\n" % (self._number, b",".join((name, *data))))
            self._lines += 1
            self._write_on()
        return self._number

    def _write_on(self) -> None:
        """Begin with the next batch, unless there is none, or one is being written."""
        if self._writing is not None or not self._following.lines:
            return
        batch, self._following = self._following, _Batch()
        if self._lines > 2 * len(self._entries) + SPARE_LINES:
            batch.entries = self._entries.copy(), self._number
            self._lines = len(self._entries) + 1  # if that fails, it is tried again after as many changes
        loop = asyncio._get_running_loop()
        try:
            if loop is not None and loop is self._loop:
                self._thread = self._thread or ThreadPoolExecutor(1, "journal")
                job = self._thread.submit(self._write, batch)
                self._writing = batch, job
                job.add_done_callback(lambda job: _soon(loop, self._report, batch, job))
                return
            error = self._write(batch)
        except RuntimeError as no_thread:
            error = no_thread
        self._written(batch, error)
        if error is not None:
            raise self._failure(error)

    def _report(self, batch: _Batch, job: Future[Exception | None]) -> None:
        if self._writing is not None and self._writing[0] is batch:  # else close() has waited for it
            self._written(batch, job.result())

    def _written(self, batch: _Batch, error: Exception | None) -> None:
        self._writing = None
        if error is not None:
            batch.waiting += self._following.waiting
            self._following = _Batch()
            self.close()  # the next call reads first what the file has now
        for told, context in batch.waiting:
            assert self._loop is not None
            self._loop.call_soon(told, error, context=context)
        with contextlib.suppress(GramiError):  # whoever waits for it was told
            self._write_on()

    def _failure(self, error: Exception) -> GramiError:
        failure = GramiError(f"cannot write {self._path}: {getattr(error, 'strerror', '') or describe(error)}")
        failure.__cause__ = error
        return failure

    def _write(self, batch: _Batch) -> Exception | None:
        """Write a batch; on the thread, where there is one. Returns what went wrong."""
        try:
            assert self._file is not None
            self._file.write(b"".join(batch.lines))
            self._file.flush()
            os.fsync(self._file.fileno())
        except Exception as error:  # noqa: BLE001 - whoever waits is told
            return error
        if batch.entries is not None:
            with contextlib.suppress(OSError):  # the file as it is says the same
                self._replace(*batch.entries)
        return None

    def _replace(self, entries: dict[str, tuple[int, bytes]], last: int) -> None:
        assert self._path is not None
        handle, temporary = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}-")
        file = os.fdopen(handle, "r+b")
        try:
            for key, (number, data) in entries.items():
                file.write(b"[%d,%b,%b]\n" % (number, msgspec.json.encode(key), data))
            file.write(b"[%d]\n" % last)
            file.flush()
            os.fsync(file.fileno())
            Path(temporary).replace(self._path)
        except BaseException:
            file.close()
            Path(temporary).unlink(missing_ok=True)
            raise
        # From here on it is the file: what is appended to the old one would be lost.
        old, self._file = self._file, file
        if old is not None:
            old.close()
        _sync_folder(self._path.parent)

    def _read(self, file: BinaryIO) -> None:
        data = file.read()
        whole = data.rfind(b"\n") + 1
        self._entries, self._number, self._lines = {}, 0, 0
        for line in data[:whole].splitlines():
            self._lines += 1
            try:
                self._take(line)
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                raise ConfigError(f"{self._path} is damaged in line {self._lines}: {error}") from None
        if whole < len(data):
            file.seek(whole)
            file.truncate()
            os.fsync(file.fileno())

    def _take(self, line: bytes) -> None:
        number, *change = msgspec.json.decode(line, type=tuple[msgspec.Raw, ...])
        self._number = msgspec.json.decode(number, type=int)
        if change:
            key = msgspec.json.decode(change[0], type=str)
            self._entries.pop(key, None)
            if change[1:]:
                self._entries[key] = (self._number, bytes(change[1]))


def _soon(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *arguments: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(callback, *arguments)


def written(value: Any) -> bytes:
    """A value as JSON. Raises GramiError with VALIDATION_FAILED if JSON cannot say it."""
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise GramiError(f"this cannot be written down: {error}", code=ErrorCode.VALIDATION_FAILED) from error


def _locked(path: Path) -> int:
    """Take the lock of a file, which ends with the process. Windows has none: there, start one server at a time."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if sys.platform != "win32":
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError(f"{path} is held: another server, or another actor of this one, has this journal") from None
    return descriptor


def _sync_folder(path: Path) -> None:
    """A file that is new, or replaced another, is there after a power failure only when its folder says so."""
    if sys.platform != "win32":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
