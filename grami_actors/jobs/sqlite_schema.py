"""The file of the SQLite store: its connection, its tables, and the steps from each version to the next. Floor 12."""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from grami_actors.errors import ConfigError
from grami_actors.jobs.changes import unpacked

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        # "ended" is NULL before the end of a job; "wakes" is 1 from then on until its agent was told.
        """CREATE TABLE jobs (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, key TEXT,
           tool TEXT NOT NULL, parent TEXT NOT NULL, detached INTEGER NOT NULL, state TEXT NOT NULL, ended REAL,
           expired INTEGER NOT NULL, wakes INTEGER NOT NULL, data BLOB NOT NULL)""",
        "CREATE UNIQUE INDEX jobs_by_key ON jobs (owner, key) WHERE key IS NOT NULL",
        "CREATE INDEX jobs_by_owner ON jobs (owner, id)",
        "CREATE INDEX jobs_open ON jobs (number) WHERE ended IS NULL",
        "CREATE INDEX jobs_over ON jobs (expired, ended) WHERE ended IS NOT NULL",
        "CREATE INDEX jobs_unwoken ON jobs (number) WHERE wakes",
        "CREATE TABLE big (job INTEGER, name TEXT, data BLOB NOT NULL, PRIMARY KEY (job, name)) WITHOUT ROWID",
        """CREATE TABLE events (job INTEGER, seq INTEGER, at REAL NOT NULL, kind TEXT NOT NULL,
           attempt INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (job, seq)) WITHOUT ROWID""",
        "CREATE TABLE firings (name TEXT PRIMARY KEY, spec TEXT NOT NULL, next_at REAL NOT NULL) WITHOUT ROWID",
    ),
)
"""What leads from version 0, the empty file, to 1, and so on. What is written here once is never changed."""

CHECKED = 64 * 1024 * 1024
"""A file that is larger is not walked through whenever it is opened: that would take seconds."""


def connect(path: Path, *, writes: bool = True) -> sqlite3.Connection:
    """Open a database, which is made if it is not there and ``writes``; of no certain thread.

    Raises:
        ConfigError: it is to be written, and cannot.
        sqlite3.Error: it cannot be opened.
    """
    beside = [path.with_name(f"{path.name}{end}") for end in ("", "-wal", "-shm")]
    if writes:
        for each in beside:
            if each.exists() and not os.access(each, os.W_OK):
                # SQLite would open it to be read, say so at the first write, and leave a log that nobody can write.
                raise ConfigError(f"{each} cannot be written")
        with suppress(OSError):  # SQLite says better what is wrong
            # What SQLite puts beside it gets the same mode.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    mode = "rwc" if writes else "ro"
    if not (writes or os.access(path.parent, os.W_OK) or beside[1].exists()):
        # SQLite wants to make a log even to read, and here nobody can; where there is none, nobody writes either.
        mode += "&immutable=1"
    address = f"file:{quote(str(path.absolute()))}?mode={mode}"
    return sqlite3.connect(address, uri=True, timeout=5.0, isolation_level=None, check_same_thread=False)


def prepare(db: sqlite3.Connection, path: Path) -> None:
    """Make a connection ready for a store, and its tables of this version.

    Raises:
        ConfigError: it is damaged, cannot be written, cannot be shared safely, or is of a later version.
        sqlite3.Error: likewise, or it is busy.
    """
    version = known_version(db, path)
    if db.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
        raise ConfigError(f"{path} cannot be kept safely: its file system lets no write-ahead log be shared (NFS?)")
    db.execute("PRAGMA synchronous = FULL")
    if version and path.stat().st_size <= CHECKED:
        found = damages(db, quick=True)
        if found:
            raise ConfigError(damaged(path, found[0]))
    for number, statements in enumerate(MIGRATIONS[version:], version + 1):
        db.execute("BEGIN IMMEDIATE")
        for statement in statements:
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {number}")
        db.execute("COMMIT")


def known_version(db: sqlite3.Connection, path: Path) -> int:
    """The version of the tables, 0 if there are none. Raises ConfigError: a later one."""
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if version > len(MIGRATIONS):
        raise ConfigError(
            f"{path} was made by a newer version of grami_actors: it is of schema {version}, and this one knows "
            f"{len(MIGRATIONS)}; use that version, or another state directory"
        )
    return version


def damages(db: sqlite3.Connection, *, quick: bool) -> list[str]:
    """What is wrong with a file, in SQLite's words; nothing, if it is whole. ``quick`` trusts the indexes."""
    found = [str(row[0]) for row in db.execute(f"PRAGMA {'quick' if quick else 'integrity'}_check(20)")]
    return [] if found == ["ok"] else found


def damaged(path: Path, what: str) -> str:
    """What is said of a damaged file."""
    return f"{path} is damaged ({what}): restore a backup; `grami state check` says more"


def states(db: sqlite3.Connection) -> dict[str, int]:
    """How many jobs are in which state."""
    return dict(db.execute("SELECT state, count(*) FROM jobs GROUP BY state ORDER BY state").fetchall())


def kept(db: sqlite3.Connection) -> set[str]:
    """The ids of the jobs whose folders are kept."""
    return {row[0] for row in db.execute("SELECT id FROM jobs WHERE NOT expired")}


def outside(db: sqlite3.Connection) -> set[str]:
    """The ids of the jobs that have processes, and so a folder."""
    found = db.execute("SELECT data FROM jobs WHERE state IN ('RUNNING', 'INPUT_REQUIRED', 'STOPPING')")
    jobs = (unpacked(row[0], {}) for row in found)
    return {job.id for job in jobs if job.runner == "outside"}
