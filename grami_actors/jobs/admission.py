"""Who waits, who has a slot, and whose turn it is. Bookkeeping only: no clock, no store. Floor 12.

Rule 1: higher priorities first; equal ones in the order in which they were accepted, also after a failed attempt.
Rule 2: a job that its tool, its owner or its concurrency key holds back holds back nobody behind it.
Rule 3: a slot is free when :meth:`Queue.release` says so, which is when nothing of the attempt is alive.
Rule 4: what is not started costs nothing: jobs that need the same stand in one lane, and a lane that cannot go on is
        parked with what it waits for. A call costs the logarithm of the number that wait, not the number.

What runs at once is bounded for the server, each tool (``Terms.concurrency``), each owner and each concurrency key.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Hashable
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from grami_actors.errors import ErrorCode, JobError
from grami_actors.job import Job, Terms

RETRY_AFTER_MS = 1_000
"""What a refusal says of when to come again: how long jobs take is not known here, so it is a polite second."""

Resource = tuple[str, str]
"""``tool``, ``owner`` or ``key``, and its name."""


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """How many jobs may run, and how many may wait. ``None`` is no bound.

    Attributes:
        running: at the same time, of all.
        queued: waiting, of all.
        running_per_owner: at the same time, of each owner.
        queued_per_owner: waiting, of each owner.
    """

    running: int
    queued: int
    running_per_owner: int | None = None
    queued_per_owner: int | None = None


class Need(NamedTuple):
    """A share of something bounded that a job must have to run."""

    resource: Resource
    limit: int


Needs = tuple[Need, ...]

_Name = TypeVar("_Name", bound=Hashable)


class _Line(Generic[_Name]):
    """Names by their rank, the lowest first; each can be moved and taken out.

    A heap whose entries are left behind when they no longer count, and swept out when they are the larger part.
    """

    _SWEPT = 64

    def __init__(self) -> None:
        self._heap: list[tuple[Any, int, _Name]] = []
        self._entries: dict[_Name, tuple[Any, int, _Name]] = {}
        self._ticks = itertools.count()

    def put(self, name: _Name, rank: Any) -> None:
        """Add a name, or move it."""
        known = self._entries.get(name)
        if known is None or known[0] != rank:
            # The tick keeps names, which need have no order, from being compared.
            self._entries[name] = entry = (rank, next(self._ticks), name)
            heapq.heappush(self._heap, entry)
            self._sweep()

    def drop(self, name: _Name) -> None:
        """Take a name out, if it is there."""
        if self._entries.pop(name, None) is not None:
            self._sweep()

    def first(self) -> tuple[Any, _Name] | None:
        """The lowest rank and whose it is; ``None`` if there is nobody."""
        while self._heap:
            entry = self._heap[0]
            if self._entries.get(entry[2]) is entry:
                return entry[0], entry[2]
            heapq.heappop(self._heap)
        return None

    def _sweep(self) -> None:
        if len(self._heap) > 2 * len(self._entries) + self._SWEPT:
            self._heap = list(self._entries.values())
            heapq.heapify(self._heap)


class _Lane:
    """Waiting jobs that need the same: if one of them may not run, none may."""

    __slots__ = ("jobs", "park")

    def __init__(self) -> None:
        self.jobs: _Line[str] = _Line()
        self.park: Need | None = None


class Queue:
    """The jobs that wait and those that have a slot; every job is in one of these at most.

    Args:
        bounds: of this server.
    """

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._numbers = itertools.count()
        self._waiting: dict[str, tuple[Job, tuple[int, float, int]]] = {}
        self._waits: Counter[Resource] = Counter()
        self._slots: dict[str, Job] = {}
        self._runs: Counter[Resource] = Counter()
        # A waiting job is in ``_later``, in a lane or in ``_overdue``.
        self._later: _Line[str] = _Line()
        self._expiring: _Line[str] = _Line()
        self._overdue: dict[str, Job] = {}
        self._lanes: dict[Needs, _Lane] = {}
        self._parks: dict[Resource, dict[int, _Line[Needs]]] = {}
        # Lanes that are not parked, and parks with room, each by the rank of its best job.
        self._ready: _Line[Needs | Need] = _Line()

    @property
    def waiting(self) -> int:
        """Jobs that wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Jobs that have a slot."""
        return len(self._slots)

    def check(self, tool: str, owner: str, terms: Terms) -> None:
        """Find out whether one more may wait. Those that wait although there is a slot for them do not count.

        Raises:
            JobError: JOB_REJECTED, with ``retry_after_ms``: a bound is reached.
        """
        free = self._bounds.running - len(self._slots)
        tools, owners = self._runs["tool", tool], self._runs["owner", owner]
        for what, count, limit, running, most in (
            ("jobs wait on this server", len(self._waiting), self._bounds.queued, 0, None),
            (f"jobs of {tool} wait", self._waits["tool", tool], terms.queue, tools, terms.concurrency),
            (
                f"jobs of {owner or 'no owner'} wait",
                self._waits["owner", owner],
                self._bounds.queued_per_owner,
                owners,
                self._bounds.running_per_owner,
            ),
        ):
            slots = max(0, free if most is None else min(free, most - running))
            if limit is not None and count >= limit + slots:
                raise JobError(
                    f"{count} {what} already, and no more than {limit} may; come again later",
                    code=ErrorCode.JOB_REJECTED,
                    retry_after_ms=RETRY_AFTER_MS,
                )

    def enqueue(self, job: Job) -> None:
        """Have it wait, until its ``due_at`` and then for its turn, whatever :meth:`check` says. It keeps no slot."""
        self.release(job.id)
        self.remove(job.id)
        self._waiting[job.id] = (job, (-job.order.priority, job.created_at, next(self._numbers)))
        self._waits.update(_resources(job))
        self._later.put(job.id, job.due_at)
        if (end := _end(job)) is not None:
            self._expiring.put(job.id, end)

    def remove(self, job_id: str) -> bool:
        """It waits no longer: it is at its end, or :meth:`occupy` follows. ``False`` if it did not wait."""
        if job_id not in self._waiting:
            return False
        self._withdraw(job_id)
        self._expiring.drop(job_id)
        self._overdue.pop(job_id, None)
        job, _ = self._waiting.pop(job_id)
        _subtract(self._waits, job)
        return True

    def occupy(self, job: Job) -> None:
        """It has a slot, even over the bounds: it was found alive."""
        self.remove(job.id)
        if job.id not in self._slots:
            self._slots[job.id] = job
            self._runs.update(_resources(job))

    def release(self, job_id: str) -> None:
        """Its slot is free. Nothing if it had none."""
        job = self._slots.pop(job_id, None)
        if job is not None:
            _subtract(self._runs, job)
            for resource in _resources(job):
                for limit in list(self._parks.get(resource, ())):
                    self._offer(Need(resource, limit))

    def next(self, now: float) -> Job | None:
        """Take out the job whose turn it is, and give it a slot; ``None`` if nobody may start now.

        If its start cannot be written down, :meth:`release` it and :meth:`enqueue` it again.

        Args:
            now: seconds since the epoch.
        """
        self._move_on(now)
        while len(self._slots) < self._bounds.running and (first := self._ready.first()) is not None:
            source = first[1]
            needs = self._offer(source) if isinstance(source, Need) else source
            if needs is None:
                continue  # what was free when the park came to stand there was taken
            full = next((need for need in needs if self._is_full(need)), None)
            if full is not None:
                self._park(needs, full)
                continue
            best = self._lanes[needs].jobs.first()
            assert best is not None
            job, _ = self._waiting[best[1]]
            self.occupy(job)
            return job
        return None

    def overdue(self, now: float) -> list[Job]:
        """Those that waited for too long, until they are removed; :meth:`next` gives none of them."""
        self._move_on(now)
        return list(self._overdue.values())

    def next_due(self) -> float | None:
        """When to look again, in seconds since the epoch, although nothing is released or enqueued until then.

        The next time at which somebody's ``due_at`` comes, or somebody has waited for too long; ``None``: never.
        """
        return min((first[0] for line in (self._later, self._expiring) if (first := line.first())), default=None)

    def _move_on(self, now: float) -> None:
        """Those that are due go into their lanes; those that waited for too long go out of them."""
        while (first := self._expiring.first()) is not None and first[0] <= now:
            self._expiring.drop(first[1])
            self._withdraw(first[1])
            self._overdue[first[1]] = self._waiting[first[1]][0]
        while (first := self._later.first()) is not None and first[0] <= now:
            self._later.drop(first[1])
            job, rank = self._waiting[first[1]]
            needs = self._needs(job)
            self._lanes.setdefault(needs, _Lane()).jobs.put(job.id, rank)
            self._show(needs)

    def _withdraw(self, job_id: str) -> None:
        """Take a waiting job out of where it stands."""
        self._later.drop(job_id)
        needs = self._needs(self._waiting[job_id][0])
        if needs in self._lanes:
            self._lanes[needs].jobs.drop(job_id)
            self._show(needs)

    def _needs(self, job: Job) -> Needs:
        limits = {"tool": job.terms.concurrency, "owner": self._bounds.running_per_owner, "key": 1}
        bounded = ((resource, limits[resource[0]]) for resource in _resources(job))
        return tuple(Need(resource, limit) for resource, limit in bounded if limit is not None)

    def _is_full(self, need: Need) -> bool:
        return self._runs[need.resource] >= need.limit

    def _show(self, needs: Needs) -> None:
        """The best job of a lane may be another one: tell where the lane stands."""
        lane = self._lanes[needs]
        first = lane.jobs.first()
        place: _Line[Any] = self._ready
        if lane.park is not None:
            place = self._parks[lane.park.resource][lane.park.limit]
        if first is None:
            place.drop(needs)
            del self._lanes[needs]
        else:
            place.put(needs, first[0])
        if lane.park is not None:
            self._offer(lane.park)

    def _park(self, needs: Needs, full: Need) -> None:
        """A lane waits for something of which there is none."""
        lane = self._lanes[needs]
        left, lane.park = lane.park, full
        if left is None:
            self._ready.drop(needs)
        else:
            self._parks[left.resource][left.limit].drop(needs)
            self._offer(left)
        self._parks.setdefault(full.resource, {}).setdefault(full.limit, _Line())
        self._show(needs)

    def _offer(self, need: Need) -> Needs | None:
        """Have a park stand among what can go on, if it can; returns its best lane then."""
        park = self._parks[need.resource][need.limit]
        first = park.first()
        if first is not None and not self._is_full(need):
            self._ready.put(need, first[0])
            return first[1]
        self._ready.drop(need)
        if first is None:
            del self._parks[need.resource][need.limit]
            if not self._parks[need.resource]:
                del self._parks[need.resource]
        return None


def _resources(job: Job) -> list[Resource]:
    found = [("tool", job.tool), ("owner", job.owner)]
    key = job.order.concurrency_key
    # An owner's own: nobody holds up others by naming their keys.
    return [*found, ("key", f"{job.owner}\0{key}")] if key else found


def _subtract(counts: Counter[Resource], job: Job) -> None:
    for resource in _resources(job):
        counts[resource] -= 1
        if not counts[resource]:
            del counts[resource]


def _end(job: Job) -> float | None:
    """Until when it may wait."""
    first = job.queue_expires_at if job.attempt == 0 else None
    return min((end for end in (first, job.expires_at) if end is not None), default=None)
