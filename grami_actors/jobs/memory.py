"""The reference of the job store, which keeps all in this process, and the store of simulations. Floor 12."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

from grami_actors.job import Job, JobEvent
from grami_actors.jobs import changes
from grami_actors.jobs.store import MOST_EVENTS, Change, Firing, Note, Search


class MemoryStore:
    """A :class:`~grami_actors.jobs.store.JobStore` that is gone with its process."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._events: dict[str, list[JobEvent]] = {}
        self._keys: dict[tuple[str, str], str] = {}
        self._firings: dict[str, Firing] = {}
        self._written: dict[str, None] = {}
        self._undo: list[Callable[[], object]] | None = None

    def open(self) -> None:
        """Nothing is to be made ready."""

    def close(self) -> None:
        """Nothing is let go: it can be opened again."""

    @contextmanager
    def batch(self, *, durable: bool) -> Iterator[list[Job]]:
        """Do it at once, and undo it if it raises."""
        outer, self._undo = self._undo, []
        before = {} if outer is None else self._written
        self._written = dict(before)
        written: list[Job] = []
        try:
            yield written
        except BaseException:
            for undo in reversed(self._undo):
                undo()
            self._undo, self._written = outer, before
            raise
        if outer is None:
            written += [self._jobs[each] for each in self._written if each in self._jobs]
        else:
            outer += self._undo
        self._undo = outer

    def add(self, job: Job) -> tuple[Job, bool]:
        """Accept a job."""
        found = self.standing(job)
        if found is not None:
            return found, False
        job, event = changes.accepted(job)
        job = self._keep(job, [event])
        key = _key(job)
        if key is not None:
            self._set(self._keys, key, job.id)
        return job, True

    def standing(self, job: Job) -> Job | None:
        """What would be given instead."""
        key = _key(job)
        if key is not None and key in self._keys:
            return changes.known(job, self._jobs[self._keys[key]])
        return self._jobs.get(job.id)

    def change(self, change: Change) -> Job:
        """Take a step."""
        job, event = changes.stepped(self._known(change.job), change)
        return self._keep(job, [event])

    def note(self, job: str, attempt: int, notes: Sequence[Note], fields: dict[str, Any]) -> Job:
        """Add events of an attempt."""
        after, events = changes.noted(self._known(job), attempt, notes, fields)
        return self._keep(after, events)

    def amend(self, job: str, fields: dict[str, Any]) -> Job:
        """Set attributes that no event tells."""
        return self._keep(changes.amended(self._known(job), fields))

    def expire(self, jobs: Collection[str]) -> None:
        """Forget what jobs did, not what became of them."""
        for job in self._ended(jobs):
            self._keep(changes.emptied(job))
            self._set(self._events, job.id, [])

    def forget(self, jobs: Collection[str]) -> None:
        """Remove jobs."""
        for job in self._ended(jobs):
            self._set(self._jobs, job.id, None)
            self._set(self._events, job.id, None)
            key = _key(job)
            if key is not None:
                self._set(self._keys, key, None)

    def fire(self, firing: Firing) -> None:
        """Set when a schedule fires next."""
        self._set(self._firings, firing.name, firing)

    def get(self, job: str) -> Job | None:
        """A job."""
        return self._jobs.get(job)

    def events(self, job: str, after: int, limit: int = MOST_EVENTS) -> list[JobEvent]:
        """Events of a job."""
        return self._events.get(job, [])[max(0, after) :][: max(0, min(limit, MOST_EVENTS))]

    def open_jobs(self) -> list[Job]:
        """All that are not at their end."""
        return [job for job in self._jobs.values() if not job.state.terminal]

    def unwoken(self) -> list[Job]:
        """Those whose agent is still to be told of their end."""
        return [job for job in self._jobs.values() if job.state.terminal and job.order.wake and not job.woken]

    def find(self, search: Search) -> list[Job]:
        """Jobs, the latest first."""
        found = (
            changes.outline(job)
            for job in sorted(self._jobs.values(), key=lambda job: job.id, reverse=True)
            if search.owner in {None, job.owner}
            and (not search.states or job.state in search.states)
            and search.tool in {"", job.tool}
            and (not search.before or job.id < search.before)
        )
        return list(islice(found, max(0, search.limit)))

    def children(self, parent: str) -> list[Job]:
        """Jobs that were caused by this one."""
        return [job for job in self.open_jobs() if job.parent == parent and not job.order.detached]

    def over(self, *, finished_before: float, expired: bool, limit: int) -> list[str]:
        """Jobs that ended before then."""
        found = [
            (job.finished_at, place, job.id)
            for place, job in enumerate(self._jobs.values())
            if job.state.terminal and (job.finished_at or 0.0) < finished_before and job.expired is expired
        ]
        return [each[-1] for each in sorted(found)[:limit]]

    def firings(self) -> list[Firing]:
        """When schedules fire."""
        return [self._firings[name] for name in sorted(self._firings)]

    def _known(self, job: str) -> Job:
        found = self._jobs.get(job)
        if found is None:
            raise changes.missing(job)
        return found

    def _ended(self, jobs: Collection[str]) -> list[Job]:
        found = (self._jobs.get(each) for each in jobs)
        return [job for job in found if job is not None and job.state.terminal]

    def _keep(self, job: Job, events: Sequence[JobEvent] = ()) -> Job:
        job = changes.packed(job, self._jobs.get(job.id)).job
        told = [changes.told(each) for each in events]
        self._set(self._jobs, job.id, job)
        kept = self._events.setdefault(job.id, [])
        self._undoing.append(lambda: kept.__delitem__(slice(len(kept) - len(told), None)))
        kept += told
        self._written.pop(job.id, None)
        self._written[job.id] = None
        return job

    @property
    def _undoing(self) -> list[Callable[[], object]]:
        if self._undo is None:
            raise RuntimeError("a job store is written within a batch")
        return self._undo

    def _set(self, kept: dict[Any, Any], key: Any, value: Any) -> None:
        """Set one entry, ``None`` removes it, so that it can be undone."""
        old = kept.get(key)
        if value is None:
            whole = dict(kept)  # so that the order comes back, too
            self._undoing.append(lambda: _become(kept, whole))
            del kept[key]
        else:
            self._undoing.append((lambda: kept.pop(key)) if old is None else (lambda: kept.update({key: old})))
            kept[key] = value


def _become(kept: dict[Any, Any], whole: dict[Any, Any]) -> None:
    kept.clear()
    kept.update(whole)


def _key(job: Job) -> tuple[str, str] | None:
    key = job.order.idempotency_key
    return None if key is None else (job.owner, key)
