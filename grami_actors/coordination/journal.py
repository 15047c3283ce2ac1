"""A small table that is written down, so that it outlives whoever changes it. Floor 12.

Rule 1: the file has one JSON array a line, and only grows: ``[number, key, value]`` sets a key, ``[number, key]``
        removes it, ``[number]`` says how many changes there were. A change is on the disk before it counts.
Rule 2: what stands after the last newline is a write that a crash cut short, and never counted: it is dropped. Any
        other line that cannot be read is damage, and an error.
Rule 3: when most of the file is history it is replaced, whole or not at all, by what counts. Numbers go on.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from grami_actors.errors import ConfigError, ErrorCode, GramiError, LimitReached

if sys.platform != "win32":
    import fcntl

SPARE_LINES = 64
"""Lines of history that a file may have, and as many again as there are keys, before it is replaced."""


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

    def open(self, system: Any = None) -> None:
        """Read the file; nothing happens if that was done.

        Args:
            system: the actor system of its owner. Without a file, what was kept for another one is forgotten; and one
                that is simulated touches no file.

        Raises:
            ConfigError: the file cannot be used, is damaged, or another process has it open.
        """
        if system is not None:
            self._on_paper = self._path is not None and not system.simulated
            if not self._on_paper and (self._system is None or self._system() is not system):
                self._entries, self._number, self._system = {}, 0, weakref.ref(system)
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
        """Let go of the file; :meth:`open` reads it again."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # what could not be written was an error already
                self._file.close()
            self._file = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def keys(self) -> tuple[str, ...]:
        """All keys; the one that was changed last comes last."""
        self.open()
        return tuple(self._entries)

    def version(self, key: str) -> int:
        """The number of the change that set the key; 0 if it is not set. No number comes twice."""
        self.open()
        return self._entries.get(key, (0, b""))[0]

    def get(self, key: str, kind: Any = Any) -> Any:
        """A copy of the value, as a ``kind``; ``None`` if the key is not set."""
        self.open()
        found = self._entries.get(key)
        return None if found is None else msgspec.json.decode(found[1], type=kind)

    def put(self, key: str, value: Any) -> int:
        """Set a key; returns the number of this change.

        Raises:
            GramiError: VALIDATION_FAILED: JSON cannot say this value. INTERNAL_ERROR: the file cannot be written;
                whether the change is in it shows when it is read again.
        """
        data = written(value)
        self._append(b"," + written(key) + b"," + data)
        self._entries.pop(key, None)  # the one that was changed last comes last
        self._entries[key] = (self._number, data)
        self._compact()
        return self._number

    def remove(self, key: str) -> int:
        """Forget a key; returns the number of this change. Raises as :meth:`put` does."""
        self._append(b"," + written(key))
        self._entries.pop(key, None)
        self._compact()
        return self._number

    def make_room(self, most: int, kind: Any, dispensable: Callable[[Any], bool]) -> None:
        """Forget the oldest value, read as a ``kind``, that can be spared, if there are as many as there may be.

        Raises:
            LimitReached: RESOURCE_EXHAUSTED: there is none.
        """
        if len(self.keys()) < most:
            return
        for key in self.keys():
            if dispensable(self.get(key, kind)):
                self.remove(key)
                return
        raise LimitReached(f"there are {most} of them already", code=ErrorCode.RESOURCE_EXHAUSTED)

    def _append(self, rest: bytes) -> None:
        self.open()
        number = self._number + 1
        if self._file is not None:
            try:
                self._file.write(b"[%d%b]\n" % (number, rest))
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError as error:
                self.close()  # the next change reads first what the file has now
                raise GramiError(f"cannot write {self._path}: {error.strerror}") from error
            self._lines += 1
        self._number = number

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

    def _compact(self) -> None:
        if self._path is None or not self._on_paper or self._lines <= 2 * len(self._entries) + SPARE_LINES:
            return
        self._lines = 0  # if it fails, it is tried again after as many changes
        with contextlib.suppress(OSError):  # the file as it is says the same
            handle, temporary = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}-")
            file = os.fdopen(handle, "r+b")
            try:
                for key, (number, data) in self._entries.items():
                    file.write(b"[%d,%b,%b]\n" % (number, msgspec.json.encode(key), data))
                file.write(b"[%d]\n" % self._number)
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
            self._lines = len(self._entries) + 1
            _sync_folder(self._path.parent)


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
