"""The folder of one attempt outside: its files, its locks, and what they say of it. Floor 12.

It is the truth about an attempt, whoever of server and shim is alive. The table of :meth:`AttemptFolder.verdict`::

    exit.json  shim.lock  tree.lock  run.json
    yes        free       -          -          FINISHED   it ended, and how is written down
    -          held       -          -          ALIVE      its shim runs
    no         free       held       yes        ORPHANED   its shim died, its processes live
    no         free       free       yes        DEAD       its shim died; what was to be seen of its processes, too
    no         free       free       no         UNSTARTED  none of its code ran

A lock is flock(2): it is held as long as any process has the descriptor that it was taken with, or a copy of it.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from grami_actors.jobs.shim.files import sync_folder


class Verdict(enum.Enum):
    """What became of an attempt."""

    FINISHED = "finished"
    ALIVE = "alive"
    ORPHANED = "orphaned"
    DEAD = "dead"
    UNSTARTED = "unstarted"


class Locks(NamedTuple):
    """Descriptors of the two locks of an attempt, held."""

    shim: int
    tree: int


class Taken(Exception):
    """The attempt was begun before, or is being begun."""


class AttemptFolder:
    """One attempt's files.

    Args:
        path: of the folder, absolute; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = path / "record.jsonl"
        self.tree_lock = path / "tree.lock"
        self._shim_lock = path / "shim.lock"
        self._control = path / "control"

    @property
    def artifacts(self) -> Path:
        """The folder with the files that the job made, of all its attempts."""
        return self.path.parent / "artifacts"

    @property
    def started(self) -> bool:
        """Whether the shim wrote down that it starts the job; from then on nobody else does."""
        return self._has("run.json")

    @property
    def finished(self) -> bool:
        """Whether it is written down how it ended."""
        return self._has("exit.json")

    # --- of the server, before the shim is there ---

    @contextmanager
    def locked(self) -> Iterator[Locks]:
        """Make the folder and hold its locks: they are let go at the end, but for what was handed to a process.

        Raises:
            Taken: somebody holds them, or the attempt was started before.
            OSError: the disk says no.
        """
        for folder in (self._control, self.artifacts):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            held = []
            for file in (self._shim_lock, self.tree_lock):
                held.append(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
                stack.callback(os.close, held[-1])
                if not _lock(held[-1], fcntl.LOCK_EX):
                    raise Taken(f"{file} is locked")
            if self.started or self.finished:
                raise Taken(f"{self.path} was started before")
            yield Locks(*held)

    def write_spec(self, spec: dict[str, Any]) -> None:
        """Write what the shim is to do, so that it survives a loss of power. Raises OSError."""
        _write(self.path / "spec.json", spec, durable=True)

    # --- what they say ---

    def verdict(self) -> Verdict:
        """What became of the attempt; see the table above."""
        if self.alive:
            return Verdict.ALIVE
        # After the lock: what the shim writes last, it writes while it holds it.
        if self.finished:
            return Verdict.FINISHED
        if not self.started:
            return Verdict.UNSTARTED
        return Verdict.ORPHANED if _held(self.tree_lock) else Verdict.DEAD

    @property
    def alive(self) -> bool:
        """Whether a shim runs, or is about to."""
        return _held(self._shim_lock)

    @property
    def tree_alive(self) -> bool:
        """Whether a process of the job has its lock; that none has does not prove that none lives."""
        return _held(self.tree_lock)

    def is_copy(self, begun: dict[str, Any]) -> bool:
        """Whether what ``run.json`` tells of happened in another folder, of which this is a copy. Raises OSError."""
        return "inode" in begun and begun["inode"] != self.path.stat().st_ino

    def read(self, name: str) -> dict[str, Any]:
        """One of ``spec.json``, ``run.json`` and ``exit.json``; empty if it is not there or not whole."""
        found = self._decoded(name)
        return found if isinstance(found, dict) else {}

    def result(self) -> Any:
        """What the job returned. Raises ValueError: that is not there, or no JSON."""
        found = self._decoded("result.json")
        if found is msgspec.UNSET:
            raise ValueError("its result cannot be read")
        return found

    def _decoded(self, name: str) -> Any:
        try:
            return msgspec.json.decode((self.path / name).read_bytes())
        except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return msgspec.UNSET

    def _has(self, name: str) -> bool:
        # What cannot be looked at is not absent: no attempt is started, or given up, because a disk fails.
        try:
            (self.path / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    # --- of the server, while the shim runs ---

    def tell(self, order: dict[str, Any]) -> None:
        """Put an order where the shim finds it, and tell it to look. Raises OSError."""
        self._control.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(self._control / f"{self._next()}.json", order, durable=False)
        self.poke()

    def _next(self) -> int:
        # A later one is greater, also after those before were read and removed.
        numbers = (int(each.stem) for each in self._control.iterdir() if each.stem.isdecimal())
        return max([time.time_ns(), *(number + 1 for number in numbers)])

    def poke(self) -> None:
        """Have the shim look into its orders, if it is there."""
        with contextlib.suppress(OSError):  # no pipe yet, nobody who reads it, or it is full of pokes already
            descriptor = os.open(self.path / "poke", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.write(descriptor, b"\n")
            finally:
                os.close(descriptor)


def _write(path: Path, content: Any, *, durable: bool) -> None:
    """Write a file whole or not at all."""
    new = path.with_name(f".{path.name}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(content))
        file.flush()
        if durable:
            os.fsync(descriptor)
    new.replace(path)
    if durable:
        # The names of the folder and of its own: a job's first attempt makes two of them.
        for folder in (path.parent, path.parent.parent, path.parent.parent.parent):
            sync_folder(str(folder))


def _lock(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in {errno.EWOULDBLOCK, errno.EACCES}:
            raise
        return False
    return True


def _held(file: Path) -> bool:
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # Shared, so that two who look at the same time do not take each other for a holder.
        return not _lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)
