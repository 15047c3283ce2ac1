"""The job store on SQLite: one file, with its write-ahead log. Floor 12.

What is done in a batch is decided in memory and written at its end, with as few statements as there are tables: each
statement lets the interpreter's other threads in, and would wait for the busiest of them to come back.
https://www.sqlite.org/wal.html; https://www.sqlite.org/pragma.html#pragma_synchronous
"""

from __future__ import annotations

import sqlite3
from collections import ChainMap
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

from grami_actors.errors import ConfigError
from grami_actors.job import Job, JobEvent
from grami_actors.jobs import changes, sqlite_schema
from grami_actors.jobs.store import MOST_EVENTS, Change, Firing, Note, Search, StoreError

CACHED = 1_024
"""Jobs that need not be read again to be changed."""
CACHED_BYTES = 65_536
"""A job of which something is larger than this is read again."""

_JOBS = (
    "INSERT INTO jobs (number, id, owner, key, tool, parent, detached, state, ended, expired, wakes, data) VALUES {} "
    "ON CONFLICT (number) DO UPDATE SET state = excluded.state, ended = excluded.ended, expired = excluded.expired, "
    "wakes = excluded.wakes, data = excluded.data"
)
_BIG = "INSERT INTO big (job, name, data) VALUES {} ON CONFLICT DO UPDATE SET data = excluded.data"
_EVENTS = "INSERT INTO events (job, seq, at, kind, attempt, data) VALUES {}"
_WRITES = {_JOBS: 12, _BIG: 3, _EVENTS: 6}
"""How many columns each has."""
_CHUNKS = (64, 8, 1)
"""Rows that are written by one statement: few numbers, so that the statements are compiled once."""

_ENDED = "SELECT number FROM jobs WHERE ended IS NOT NULL AND id IN "


class _Layer:
    """What a batch, or one within it, changed, and what of it is to be written still.

    Attributes:
        changed: jobs with their numbers, the last changed last; ``None`` for one that is forgotten.
        keys: ids of new jobs by owner and key.
        rows: of ``jobs``, by number.
        big: of ``big``, by number and name.
        events: of ``events``.
        saved: whether a savepoint stands for it.
    """

    __slots__ = ("big", "changed", "events", "keys", "rows", "saved")

    def __init__(self) -> None:
        self.changed: dict[str, tuple[int, Job] | None] = {}
        self.keys: dict[tuple[str, str], str] = {}
        self.rows: dict[int, tuple[Any, ...]] = {}
        self.big: dict[tuple[int, str], bytes] = {}
        self.events: list[tuple[Any, ...]] = []
        self.saved = False

    def add(self, inner: _Layer) -> None:
        """Take over what a batch within this one did."""
        for job, entry in inner.changed.items():
            self.changed.pop(job, None)
            self.changed[job] = entry
        self.keys |= inner.keys
        self.rows |= inner.rows
        self.big |= inner.big
        self.events += inner.events


class SqliteStore:
    """A :class:`~grami_actors.jobs.store.JobStore` in a file.

    Args:
        path: of the file, in a folder that is there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._cache: dict[str, tuple[int, Job]] = {}
        self._large: set[str] = set()
        self._layers: list[_Layer] = []
        self._number = 0
        self._durable = True
        self._failure: StoreError | None = None
        self._latest = ""

    def open(self) -> None:
        """Connect, look whether the file is whole, and bring it to this version."""
        try:
            self._connection = sqlite_schema.connect(self._path)
            sqlite_schema.prepare(self._connection, self._path)
            last = "SELECT coalesce(max(number), 0), coalesce(max(id), '') FROM jobs"
            self._number, self._latest = self._connection.execute(last).fetchone()
        except sqlite3.Error as error:
            self.close()
            if isinstance(error, sqlite3.OperationalError):
                raise ConfigError(f"{self._path} cannot be opened for jobs: {error}") from error
            raise ConfigError(sqlite_schema.damaged(self._path, str(error))) from error
        except ConfigError:
            self.close()
            raise
        self._durable = True

    def close(self) -> None:
        """Close the file, which takes the write-ahead log into it."""
        db, self._connection = self._connection, None
        self._cache.clear()
        self._large.clear()
        if db is not None:
            with suppress(sqlite3.Error):
                db.close()

    @contextmanager
    def batch(self, *, durable: bool) -> Iterator[list[Job]]:
        """One transaction, or a savepoint in it."""
        written: list[Job] = []
        layer = _Layer()
        if not self._layers:
            self._begin(durable=durable)
        self._layers.append(layer)
        try:
            yield written
            if len(self._layers) == 1:
                self._commit()
        except BaseException:
            self._drop(layer)
            raise
        self._layers.pop()
        if self._layers:
            if layer.saved:
                self._run("RELEASE inner")
            self._layers[-1].add(layer)
        else:
            self._settle(layer)
            written += [entry[1] for entry in layer.changed.values() if entry is not None]

    # --- writing ---

    def add(self, job: Job) -> tuple[Job, bool]:
        """Accept a job."""
        found = self.standing(job)
        if found is not None:
            return found, False
        after, event = changes.accepted(job)
        self._number += 1
        self._latest = max(self._latest, job.id)
        after = self._keep(self._number, after, None, [event])
        if job.order.idempotency_key is not None:
            self._layers[-1].keys[job.owner, job.order.idempotency_key] = job.id
        return after, True

    def change(self, change: Change) -> Job:
        """Take a step."""
        number, job = self._known(change.job)
        after, event = changes.stepped(job, change)
        return self._keep(number, after, job, [event])

    def note(self, job: str, attempt: int, notes: Sequence[Note], fields: dict[str, Any]) -> Job:
        """Add events of an attempt."""
        number, before = self._known(job)
        after, events = changes.noted(before, attempt, notes, fields)
        return self._keep(number, after, before, events)

    def amend(self, job: str, fields: dict[str, Any]) -> Job:
        """Set attributes that no event tells."""
        number, before = self._known(job)
        return self._keep(number, changes.amended(before, fields), before, [])

    def expire(self, jobs: Collection[str]) -> None:
        """Forget what jobs did, not what became of them."""
        for each in dict.fromkeys(jobs):
            entry = self._entry(each)
            if entry is not None and entry[1].state.terminal:
                self._keep(entry[0], changes.emptied(entry[1]), entry[1], [])
        self._remove("big", "events", jobs=jobs)

    def forget(self, jobs: Collection[str]) -> None:
        """Remove jobs."""
        ended = [each for each in jobs if (entry := self._entry(each)) is not None and entry[1].state.terminal]
        self._remove("big", "events", "jobs", jobs=ended)
        self._layers[-1].changed |= dict.fromkeys(ended)
        self._large.difference_update(ended)

    def fire(self, firing: Firing) -> None:
        """Set when a schedule fires next."""
        self._flush()
        self._run("REPLACE INTO firings VALUES (?, ?, ?)", (firing.name, firing.spec, firing.next_at))

    # --- reading ---

    def get(self, job: str) -> Job | None:
        """A job."""
        entry = self._entry(job)
        return None if entry is None else entry[1]

    def events(self, job: str, after: int, limit: int = MOST_EVENTS) -> list[JobEvent]:
        """Events of a job."""
        rows = self._seen(
            "SELECT seq, at, kind, events.attempt, events.data FROM jobs JOIN events ON job = number "
            "WHERE id = ? AND seq > ? ORDER BY seq LIMIT ?",
            (job, after, max(0, min(limit, MOST_EVENTS))),
        )
        return [JobEvent(job, seq, at, kind, attempt, changes.data_from(data)) for seq, at, kind, attempt, data in rows]

    def open_jobs(self) -> list[Job]:
        """All that are not at their end."""
        return self._jobs("WHERE ended IS NULL ORDER BY number")

    def unwoken(self) -> list[Job]:
        """Those whose agent is still to be told of their end."""
        return self._jobs("WHERE wakes ORDER BY number")

    def find(self, search: Search) -> list[Job]:
        """Jobs, the latest first."""
        where, values = ["TRUE"], []
        for column, value in (("owner", search.owner), ("tool", search.tool or None)):
            if value is not None:
                where.append(f"{column} = ?")
                values.append(value)
        if search.states:
            where.append(f"state IN ({_marks(len(search.states))})")
            values += [str(state) for state in search.states]
        if search.before:
            where.append("id < ?")
            values.append(search.before)
        rows = self._seen(
            f"SELECT data FROM jobs WHERE {' AND '.join(where)} ORDER BY id DESC LIMIT ?",  # noqa: S608 - only marks
            (*values, max(0, search.limit)),
        )
        return [_read(data, {}) for (data,) in rows]

    def children(self, parent: str) -> list[Job]:
        """Jobs that were caused by this one."""
        return self._jobs("WHERE ended IS NULL AND NOT detached AND parent = ? ORDER BY number", parent)

    def over(self, *, finished_before: float, expired: bool, limit: int) -> list[str]:
        """Jobs that ended before then."""
        rows = self._seen(
            "SELECT id FROM jobs WHERE ended IS NOT NULL AND expired = ? AND ended < ? ORDER BY ended, number LIMIT ?",
            (expired, finished_before, limit),
        )
        return [row[0] for row in rows]

    def firings(self) -> list[Firing]:
        """When schedules fire."""
        return [Firing(*row) for row in self._seen("SELECT name, spec, next_at FROM firings ORDER BY name")]

    # --- jobs by their ids ---

    def _entry(self, job: str) -> tuple[int, Job] | None:
        """A job and its number: as this batch left it, as it is remembered, or as it is in the file."""
        for layer in reversed(self._layers):
            if job in layer.changed:
                return layer.changed[job]
        found = self._cache.get(job)
        if found is None:
            rows = self._rows("SELECT number, data FROM jobs WHERE id = ?", (job,))
            if rows:
                number, data = rows[0]
                big = dict(self._rows("SELECT name, data FROM big WHERE job = ?", (number,)))
                self._weigh(job, big)
                found = (number, _read(data, big))
        return found

    def _known(self, job: str) -> tuple[int, Job]:
        found = self._entry(job)
        if found is None:
            raise changes.missing(job)
        return found

    def standing(self, job: Job) -> Job | None:
        """What is under the key or the id of a new job."""
        # Ids grow with time: one that is greater than all need not be looked for.
        found = None if job.id > self._latest else self.get(job.id)
        key = (job.owner, job.order.idempotency_key)
        if found is not None or key[1] is None:
            return found
        name = ChainMap(*(layer.keys for layer in self._layers)).get((job.owner, key[1]))
        if name is None:
            rows = self._rows("SELECT id FROM jobs WHERE owner = ? AND key = ?", key)
            name = rows[0][0] if rows else None
        found = None if name is None else self.get(name)
        return None if found is None else changes.known(job, found)

    def _keep(self, number: int, job: Job, before: Job | None, events: Sequence[JobEvent]) -> Job:
        layer = self._layers[-1]
        job, data, big = changes.packed(job, before)
        rows = [(number, each.seq, each.at, each.kind, each.attempt, changes.data_of(each)) for each in events]
        ended = (job.finished_at or 0.0) if job.state.terminal else None
        wakes = ended is not None and job.order.wake != "" and not job.woken
        fixed = (number, job.id, job.owner, job.order.idempotency_key, job.tool, job.parent, job.order.detached)
        # From here on nothing can fail.
        layer.events += rows
        layer.rows[number] = (*fixed, job.state.value, ended, job.expired, wakes, data)
        layer.big |= {(number, name): value for name, value in big.items()}
        self._weigh(job.id, big)
        layer.changed.pop(job.id, None)
        layer.changed[job.id] = (number, job)
        return job

    def _weigh(self, job: str, big: dict[str, bytes]) -> None:
        if any(len(value) > CACHED_BYTES for value in big.values()):
            self._large.add(job)

    def _remove(self, *tables: str, jobs: Collection[str]) -> None:
        self._flush()
        for table in tables:
            column = "number" if table == "jobs" else "job"
            for some in _parts(list(jobs), 500):
                where = f"{column} IN ({_ENDED} ({_marks(len(some))}))"
                self._run(f"DELETE FROM {table} WHERE {where}", tuple(some))  # noqa: S608 - only marks

    # --- the transaction ---

    def _begin(self, *, durable: bool) -> None:
        self._failure = None
        if durable is not self._durable:
            # Within a transaction this would have no effect.
            self._run(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._durable = durable

    def _flush(self) -> None:
        """Write what is decided, so that statements see it."""
        if not self._layers:
            raise RuntimeError("a job store is written within a batch")
        if not self._db.in_transaction:
            self._run("BEGIN IMMEDIATE")
        for depth, layer in enumerate(self._layers):
            if depth and not layer.saved:
                self._run("SAVEPOINT inner")
                layer.saved = True
            big = [(*key, value) for key, value in layer.big.items()]
            for statement, rows in ((_JOBS, list(layer.rows.values())), (_BIG, big), (_EVENTS, layer.events)):
                self._insert(statement, rows)
            layer.rows, layer.big, layer.events = {}, {}, []

    def _insert(self, statement: str, rows: list[tuple[Any, ...]]) -> None:
        row = f"({_marks(_WRITES[statement])})"
        place = 0
        while place < len(rows):
            size = next(each for each in _CHUNKS if each <= len(rows) - place)
            values = tuple(chain.from_iterable(rows[place : place + size]))
            self._run(statement.format(", ".join([row] * size)), values)
            place += size

    def _commit(self) -> None:
        if self._failure is not None:
            raise self._failure
        layer = self._layers[0]
        if layer.rows or self._db.in_transaction:
            self._flush()
            self._run("COMMIT")

    def _drop(self, layer: _Layer) -> None:
        """Undo what a batch did."""
        self._layers.pop()
        if not self._layers:
            if self._connection is not None and self._connection.in_transaction:
                with suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
        elif layer.saved:
            self._run("ROLLBACK TO inner")
            self._run("RELEASE inner")

    def _settle(self, layer: _Layer) -> None:
        """Remember what was written."""
        for job, entry in layer.changed.items():
            self._cache.pop(job, None)
            if entry is not None and job not in self._large:
                self._cache[job] = entry
        while len(self._cache) > CACHED:
            del self._cache[next(iter(self._cache))]

    # --- statements ---

    @property
    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreError("the job store is closed")
        return self._connection

    def _run(self, statement: str, values: Sequence[Any] = ()) -> None:
        """Write; what fails has the whole batch fail, as SQLite may have undone all of it."""
        try:
            self._rows(statement, values)
        except StoreError as error:
            self._failure = error
            raise

    def _rows(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        try:
            return self._db.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"{self._path} cannot be used now: {error}") from error

    def _seen(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """Read what is written, also by this batch."""
        if any(layer.rows for layer in self._layers):
            self._flush()
        return self._rows(statement, values)

    def _jobs(self, where: str, *values: Any) -> list[Job]:
        rows = self._seen(f"SELECT number, data FROM jobs {where}", values)  # noqa: S608 - written above
        big: dict[int, dict[str, bytes]] = {}
        for some in _parts([row[0] for row in rows], 500):
            found = f"SELECT job, name, data FROM big WHERE job IN ({_marks(len(some))})"  # noqa: S608 - only marks
            for number, name, data in self._rows(found, some):
                big.setdefault(number, {})[name] = data
        return [_read(data, big.get(number, {})) for number, data in rows]


def _read(data: bytes, big: dict[str, bytes]) -> Job:
    try:
        return changes.unpacked(data, big)
    except ValueError as error:
        raise StoreError(f"the record of a job cannot be read: {error}") from error


def _marks(count: int) -> str:
    return ", ".join("?" * count)


def _parts(rows: list[Any], size: int) -> Iterator[list[Any]]:
    for place in range(0, len(rows), size):
        yield rows[place : place + size]
