"""Who may start: the queue does what a list that is searched from end to end does, and does it fast."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from grami_actors.errors import ErrorCode, JobError
from grami_actors.job import Job, Order, Terms
from grami_actors.jobs.admission import Bounds, Queue

TERMS = {"one": Terms(concurrency=1, queue=3), "two": Terms(concurrency=2), "any": Terms(queue=2), "two+": Terms()}


def job(number: int, tool: str = "any", **details: Any) -> Job:
    order = Order(priority=details.pop("priority", 0), concurrency_key=details.pop("key", ""))
    terms = details.pop("terms", TERMS.get(tool, Terms()))
    given = {"owner": "ann", "created_at": float(number), "due_at": 0.0} | details
    return Job(id=f"job_{number}", tool=tool, arguments={}, digest="", order=order, terms=terms, **given)


def bounds(**details: Any) -> Bounds:
    return Bounds(**{"running": 3, "queued": 1_000} | details)


def started(queue: Queue, now: float = 0.0) -> list[str]:
    found = []
    while (job := queue.next(now)) is not None:
        found.append(job.id)
    return found


class Naive:
    """The same, by looking at every job every time."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.waiting: dict[str, Job] = {}
        self.numbers: dict[str, int] = {}
        self.ticks = itertools.count()
        self.slots: dict[str, Job] = {}

    def enqueue(self, job: Job) -> None:
        self.waiting[job.id] = job
        self.numbers[job.id] = next(self.ticks)

    def end(self, job: Job) -> float:
        first = job.queue_expires_at if job.attempt == 0 else None
        return min(end for end in (first, job.expires_at, float("inf")) if end is not None)

    def blocked(self, job: Job) -> bool:
        runs = list(self.slots.values())
        tool = sum(each.tool == job.tool for each in runs)
        owner = sum(each.owner == job.owner for each in runs)
        key = job.order.concurrency_key
        return (
            len(runs) >= self.bounds.running
            or (job.terms.concurrency is not None and tool >= job.terms.concurrency)
            or (self.bounds.running_per_owner is not None and owner >= self.bounds.running_per_owner)
            or (key != "" and any((each.order.concurrency_key, each.owner) == (key, job.owner) for each in runs))
        )

    def next(self, now: float) -> Job | None:
        able = [
            each for each in self.waiting.values() if each.due_at <= now < self.end(each) and not self.blocked(each)
        ]
        able.sort(key=lambda each: (-each.order.priority, each.created_at, self.numbers[each.id]))
        if able:
            self.slots[able[0].id] = self.waiting.pop(able[0].id)
        return able[0] if able else None

    def overdue(self, now: float) -> set[str]:
        return {each.id for each in self.waiting.values() if self.end(each) <= now}

    def accepts(self, tool: str, owner: str, terms: Terms) -> bool:
        waiting, runs = list(self.waiting.values()), list(self.slots.values())
        free = max(0, self.bounds.running - len(runs))
        tools = sum(each.tool == tool for each in runs)
        owners = sum(each.owner == owner for each in runs)
        of_tool = free if terms.concurrency is None else min(free, max(0, terms.concurrency - tools))
        most = self.bounds.running_per_owner
        of_owner = free if most is None else min(free, max(0, most - owners))
        queued = self.bounds.queued_per_owner
        return (
            len(waiting) < self.bounds.queued + free
            and (terms.queue is None or sum(each.tool == tool for each in waiting) < terms.queue + of_tool)
            and (queued is None or sum(each.owner == owner for each in waiting) < queued + of_owner)
        )


class Same(RuleBasedStateMachine):
    """The queue and the list are told the same, and say the same."""

    def __init__(self) -> None:
        super().__init__()
        limits = bounds(running=4, queued=8, running_per_owner=3, queued_per_owner=5)
        self.queue, self.naive, self.now, self.made = Queue(limits), Naive(limits), 100.0, 0

    @rule(
        tool=st.sampled_from(sorted(TERMS)),
        owner=st.sampled_from(["ann", "bob"]),
        key=st.sampled_from(["", "", "a", "b"]),
        priority=st.sampled_from([0, 0, 0, 5]),
        after=st.sampled_from([0, 0, 0, 3]),
        ends=st.tuples(st.sampled_from([None, None, 2, 5]), st.sampled_from([None, None, 4])),
        attempt=st.integers(0, 1),
        running=st.booleans(),
    )
    def a_job_comes(self, tool, owner, key, priority, after, ends, attempt, running) -> None:  # noqa: PLR0917 - one rule
        self.made += 1
        first, last = (None if end is None else self.now + end for end in ends)
        # One name with two bounds, as after a deploy that changed the tool's.
        terms = Terms(concurrency=3) if tool == "two+" else TERMS[tool]
        new = job(
            self.made, tool.rstrip("+"), terms=terms, owner=owner, key=key, priority=priority, attempt=attempt,
            created_at=self.now, due_at=self.now + after, queue_expires_at=first, expires_at=last,
        )  # fmt: skip
        if running and self.made % 5 == 0:
            self.queue.occupy(new)
            self.naive.slots[new.id] = new
        else:
            self.queue.enqueue(new)
            self.naive.enqueue(new)

    @rule(many=st.integers(1, 4))
    def some_start(self, many) -> None:
        for _ in range(many):
            assert self.queue.next(self.now) == self.naive.next(self.now)

    @precondition(lambda self: self.naive.slots)
    @rule(data=st.data(), again=st.booleans())
    def one_ends(self, data, again) -> None:
        which = data.draw(st.sampled_from(sorted(self.naive.slots)))
        old = self.naive.slots.pop(which)
        if again:
            self.queue.enqueue(old)
            self.naive.enqueue(old)
        else:
            self.queue.release(which)

    @precondition(lambda self: self.naive.waiting)
    @rule(data=st.data())
    def one_is_cancelled(self, data) -> None:
        which = data.draw(st.sampled_from(sorted(self.naive.waiting)))
        del self.naive.waiting[which]
        self.queue.remove(which)

    @rule(seconds=st.sampled_from([0.5, 1, 3]))
    def time_passes(self, seconds) -> None:
        self.now += seconds

    @rule()
    def those_who_waited_too_long_are_taken_out(self) -> None:
        found = {each.id for each in self.queue.overdue(self.now)}
        assert found == self.naive.overdue(self.now)
        for each in found:
            self.queue.remove(each)
            del self.naive.waiting[each]

    @rule(tool=st.sampled_from(sorted(TERMS)), owner=st.sampled_from(["ann", "bob"]))
    def another_is_announced(self, tool, owner) -> None:
        try:
            self.queue.check(tool, owner, TERMS[tool])
        except JobError:
            assert not self.naive.accepts(tool, owner, TERMS[tool])
        else:
            assert self.naive.accepts(tool, owner, TERMS[tool])

    @invariant()
    def as_many(self) -> None:
        assert (self.queue.waiting, self.queue.running) == (len(self.naive.waiting), len(self.naive.slots))

    @invariant()
    def nothing_is_kept_of_what_is_gone(self) -> None:
        if not self.naive.waiting:
            queue = self.queue
            assert not any([queue._lanes, queue._parks, queue._waits, queue._overdue])
        if not self.naive.slots:
            assert not self.queue._runs


Same.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestTheQueueDoesWhatASearchedListDoes = pytest.mark.slow(Same.TestCase)


def test_a_higher_priority_goes_first_and_equal_ones_go_as_they_were_accepted() -> None:
    queue = Queue(bounds(running=9))
    for number, priority in enumerate([0, 5, 0, 5, -1]):
        queue.enqueue(job(number, priority=priority))
    assert started(queue) == ["job_1", "job_3", "job_0", "job_2", "job_4"]


def test_a_job_that_comes_back_after_a_failed_attempt_has_kept_its_place() -> None:
    queue = Queue(bounds(running=1))
    queue.enqueue(job(1))
    queue.enqueue(job(2))
    first = queue.next(0.0)
    assert first is not None
    queue.enqueue(first)
    assert started(queue) == ["job_1"]


def test_a_job_that_is_held_back_holds_back_nobody_behind_it() -> None:
    queue = Queue(bounds(running=9, running_per_owner=3))
    queue.enqueue(job(1, "one"))
    queue.enqueue(job(2, "one"))
    queue.enqueue(job(3, key="disk"))
    queue.enqueue(job(4, key="disk"))
    queue.enqueue(job(5))
    queue.enqueue(job(6))
    queue.enqueue(job(7, owner="bob"))
    assert started(queue) == ["job_1", "job_3", "job_5", "job_7"]
    queue.release("job_3")
    assert started(queue) == ["job_4"]
    queue.release("job_5")
    assert started(queue) == ["job_6"]
    queue.release("job_1")
    assert started(queue) == ["job_2"]


def test_what_was_found_alive_has_a_slot_even_over_the_bounds() -> None:
    queue = Queue(bounds(running=1))
    queue.occupy(job(1))
    queue.occupy(job(2))
    queue.occupy(job(2))
    queue.enqueue(job(3))
    queue.release("job_1")
    assert (queue.running, started(queue)) == (1, [])
    queue.release("job_2")
    assert started(queue) == ["job_3"]


def test_a_job_that_is_not_due_waits_and_the_queue_says_when_to_look_again() -> None:
    queue = Queue(bounds())
    assert queue.next_due() is None
    queue.enqueue(job(1, due_at=10.0))
    queue.enqueue(job(2, due_at=0.0, expires_at=7.0))
    assert started(queue, 5.0) == ["job_2"]
    assert queue.next_due() == 10.0
    assert started(queue, 9.9) == []
    assert started(queue, 10.0) == ["job_1"]
    assert queue.next_due() is None


def test_a_job_that_waited_for_too_long_is_told_until_it_is_removed_and_never_started() -> None:
    queue = Queue(bounds())
    queue.enqueue(job(1, queue_expires_at=7.0))
    queue.enqueue(job(2, queue_expires_at=7.0, attempt=1))
    queue.enqueue(job(3, expires_at=6.0, due_at=20.0))
    assert queue.overdue(5.9) == []
    assert queue.next_due() == 6.0
    assert [each.id for each in queue.overdue(7.0)] == ["job_3", "job_1"]
    assert started(queue, 7.0) == ["job_2"]
    assert len(queue.overdue(7.0)) == 2
    queue.remove("job_1")
    queue.remove("job_3")
    assert (queue.overdue(99.0), queue.waiting) == ([], 0)


@pytest.mark.parametrize(
    ("limits", "terms", "words"),
    [
        (bounds(running=1, queued=2), Terms(), "wait on this server already, and no more than 2 may"),
        (bounds(running=1), Terms(queue=2), "jobs of any wait already, and no more than 2 may"),
        (bounds(running=1, queued_per_owner=2), Terms(), "jobs of ann wait already, and no more than 2 may"),
    ],
)
def test_a_full_queue_refuses_with_the_limit_and_when_to_come_again(limits, terms, words) -> None:
    queue = Queue(limits)
    for number in range(3):
        queue.check("any", "ann", terms)
        queue.enqueue(job(number))
    with pytest.raises(JobError, match=words) as refusal:
        queue.check("any", "ann", terms)
    assert refusal.value.error_code == ErrorCode.JOB_REJECTED
    assert refusal.value.retry_after_ms
    assert started(queue) == ["job_0"]
    with pytest.raises(JobError, match=words):
        queue.check("any", "ann", terms)
    queue.remove("job_1")
    queue.check("any", "ann", terms)


def test_a_tool_without_a_queue_takes_what_can_start_at_once_and_no_more() -> None:
    queue, terms = Queue(bounds()), Terms(concurrency=2, queue=0)
    for number in range(2):
        queue.check("t", "ann", terms)
        queue.enqueue(job(number, "t", terms=terms))
    with pytest.raises(JobError):
        queue.check("t", "ann", terms)
    assert len(started(queue)) == 2
    with pytest.raises(JobError):
        queue.check("t", "ann", terms)
    queue.release("job_0")
    queue.check("t", "ann", terms)


@pytest.mark.slow
@pytest.mark.parametrize("keys", [1, 10_000])
def test_ten_thousand_jobs_of_a_busy_tool_cost_a_call_nothing(keys: int) -> None:
    def calls(waiting: int) -> int:
        """Functions that were called for 200 jobs of others: what it costs, on any machine."""
        queue = Queue(bounds(running=100))
        queue.occupy(job(-1, "one"))
        for number in range(waiting):
            queue.enqueue(job(number, "one", key=f"{number % keys}"))
        assert queue.next(0.0) is None
        others = [job(100_000 + number, owner="else") for number in range(200)]
        count = itertools.count()
        sys.setprofile(lambda *_: next(count))
        for other in others:
            queue.enqueue(other)
            assert queue.next(0.0) is not None
            queue.release(other.id)
        sys.setprofile(None)
        return next(count)

    assert calls(10_000) < 2 * calls(10)
