"""The state directory: the folder in which a server keeps what outlives it. Floor 12.

::

    jobs.lock               held by the server that has the jobs open; its pid is in it
    jobs.db                 the store, with -wal and -shm beside it
    jobs/wake               the pipe by which shims call
    jobs/ID/artifacts/      files that a job made
    jobs/ID/ATTEMPT/        what belongs to one attempt
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import stat
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path

import msgspec

from grami_actors.errors import ConfigError
from grami_actors.jobs import sqlite_schema
from grami_actors.jobs.retention import Keep
from grami_actors.jobs.store import JobStore

STRAY_AFTER = 3600.0
"""Seconds for which a folder without a job is left alone: its job may be about to be written."""
NOT_BACKED_UP = ("locks and pipes", "processes: a job that runs is there as far as its files say")
"""What a backup is without."""
_AT_ONCE = 500


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """What was found in a state directory.

    Attributes:
        schema: the version of the database.
        damages: what is wrong with it, in its own words.
        states: how many jobs are in which state.
        missing: jobs that ran outside and are not at their end, without a folder.
        strays: folders without a job.
        bytes: of all files together.
    """

    schema: int
    damages: tuple[str, ...]
    states: dict[str, int]
    missing: tuple[str, ...]
    strays: tuple[str, ...]
    bytes: int

    @property
    def sound(self) -> bool:
        """Whether nothing of it is lost or damaged."""
        return not self.damages and not self.missing


class StateDirectory:
    """The folder at a path; nothing of it need be there before :meth:`make`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.database = path / "jobs.db"
        self.jobs = path / "jobs"
        self.wake = self.jobs / "wake"
        self._lock: int | None = None

    def make(self) -> None:
        """Make it, for nobody but its owner. Raises ConfigError: it cannot be made, written, or be closed to others."""
        try:
            for folder in (self.path, self.jobs):
                folder.mkdir(mode=0o700, parents=folder is self.path, exist_ok=True)
                if stat.S_IMODE(folder.stat().st_mode) & 0o077:
                    self._close_to_others(folder)
            if not os.access(self.jobs, os.W_OK | os.X_OK):
                raise PermissionError("it cannot be written")
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be the state directory: {error.strerror or error}") from error

    def _close_to_others(self, folder: Path) -> None:
        # What is somebody's home, or /tmp, is not to be changed by a mistyped option.
        if folder == self.path and not self.database.exists() and any(folder.iterdir()):
            raise PermissionError("it is open to others and has other things in it; make it a folder of its own")
        folder.chmod(0o700)

    # --- one server ---

    def lock(self) -> None:
        """Keep every other server out, until :meth:`release` or the end of this process. Raises ConfigError."""
        path = self.path / "jobs.lock"
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(lock, 0)
            os.write(lock, str(os.getpid()).encode())
        except BlockingIOError as error:
            holder = os.pread(lock, 32, 0).decode(errors="replace") or "unknown"
            os.close(lock)
            raise ConfigError(
                f"{self.path} is in use by another server, process {holder}: stop it, or use another --state-dir"
            ) from error
        except OSError as error:
            os.close(lock)
            raise ConfigError(f"{path} cannot be locked: {error.strerror}") from error
        self._lock = lock

    def release(self) -> None:
        """Let other servers in; twice is once."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    # --- `grami state` ---

    def check(self) -> Checked:
        """Look whether all is whole, also while a server runs. Raises ConfigError: nothing is there, or newer."""
        try:
            with closing(self._connect()) as db:
                schema = sqlite_schema.known_version(db, self.database)
                damages = tuple(sqlite_schema.damages(db, quick=False))
                states = sqlite_schema.states(db)
                kept = sqlite_schema.kept(db)
                outside = sqlite_schema.outside(db)
        except sqlite3.Error as error:
            return Checked(schema=0, damages=(str(error),), states={}, missing=(), strays=(), bytes=_weigh(self.path))
        folders = set(self._folders())
        return Checked(
            schema=schema,
            damages=damages,
            states=states,
            missing=tuple(sorted(outside - folders)),
            strays=tuple(sorted(folders - kept)),
            bytes=_weigh(self.path),
        )

    def backup(self, target: Path) -> int:
        """Copy all but :data:`NOT_BACKED_UP`, also while a server runs; returns how many bytes that are.

        The database comes first: what is copied after it is as new as it, or newer.

        Raises:
            ConfigError: the target is there and not empty, or in here, or something cannot be read or written.
        """
        try:
            with closing(self._connect()) as db:
                self._make_room(target)
                with closing(sqlite_schema.connect(target / "jobs.db")) as copy:
                    db.backup(copy)
            for folder, _, names in os.walk(self.jobs):
                to = target / Path(folder).relative_to(self.path)
                to.mkdir(mode=0o700, exist_ok=True)
                for name in names:
                    _copy(Path(folder, name), to / name)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"{self.path} cannot be copied to {target}: {error}") from error
        return _weigh(target)

    def _make_room(self, target: Path) -> None:
        if target.resolve().is_relative_to(self.path.resolve()):
            raise ConfigError(f"{target} is in {self.path}: a backup is made somewhere else")
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(target.iterdir()):
            raise ConfigError(f"{target} is not empty: a backup is made into a folder of its own")
        target.chmod(0o700)  # one that was there may be open to others

    def gc(self, store: JobStore, now: float, keep: Keep) -> list[str]:
        """Forget what is kept for long enough, and remove folders that belong to nothing; returns their names."""
        gone = retire(store, now, keep)
        gone += [each for each in self.stray(now) if (job := store.get(each)) is None or job.expired]
        return self.remove(gone)

    def stray(self, now: float) -> list[str]:
        """Names of folders that nothing touched for :data:`STRAY_AFTER`: jobs, or what is left of them."""
        found = []
        for name in self._folders():
            with suppress(OSError):
                if (self.jobs / name).stat().st_mtime < now - STRAY_AFTER:
                    found.append(name)
        return found

    def remove(self, jobs: Iterable[str]) -> list[str]:
        """Remove the folders of jobs; returns whose there were."""
        return discard(self.jobs, jobs)

    def _folders(self) -> list[str]:
        try:
            with os.scandir(self.jobs) as entries:
                return sorted(each.name for each in entries if each.is_dir(follow_symlinks=False))
        except FileNotFoundError:
            return []

    def _connect(self) -> sqlite3.Connection:
        if not self.database.is_file():
            raise ConfigError(f"{self.path} is no state directory: it has no jobs.db")
        return sqlite_schema.connect(self.database, writes=False)


def discard(folder: Path, jobs: Iterable[str]) -> list[str]:
    """Remove the folders of jobs, which are in this one; returns whose there were. Blocks."""
    found = [each for each in dict.fromkeys(jobs) if (folder / each).is_dir()]
    for each in found:
        shutil.rmtree(folder / each, ignore_errors=True)
    return found


def retire(store: JobStore, now: float, keep: Keep) -> list[str]:
    """Forget results and keys that were kept long enough; returns the jobs whose folders can go. Raises StoreError."""
    with store.batch(durable=True):
        expired = store.over(finished_before=now - keep.results, expired=False, limit=_AT_ONCE)
        store.expire(expired)
        forgotten = store.over(finished_before=now - keep.keys, expired=True, limit=_AT_ONCE)
        store.forget(forgotten)
    return list(dict.fromkeys([*expired, *forgotten]))


def _copy(source: Path, target: Path) -> None:
    with suppress(FileNotFoundError):  # it was removed meanwhile
        if stat.S_ISREG(source.lstat().st_mode) and source.suffix != ".lock":
            shutil.copy2(source, target)


def _weigh(path: Path) -> int:
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size  # noqa: PTH118 - one string for each file
    return total
