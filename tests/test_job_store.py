"""The contract of job stores over all variants, and both beside a plain model."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from grami_actors.errors import ConfigError, ErrorCode, GramiError, JobError, ProtocolError
from grami_actors.job import STEPS, TERMINAL, Fault, Job, Order, State, Step, WrongStep, digest_of, new_id
from grami_actors.jobs import sqlite_schema
from grami_actors.jobs.memory import MemoryStore
from grami_actors.jobs.sqlite import SqliteStore
from grami_actors.jobs.store import BIG, Change, Firing, JobStore, Note, Search, Stale, StoreError

DICE = random.Random(7)


def job_of(at: float = 1.0, **fields: Any) -> Job:
    tool, arguments = fields.pop("tool", "render"), fields.pop("arguments", {"frames": 3})
    defaults = {"owner": "ann", "digest": digest_of(tool, arguments), "created_at": at, "due_at": at}
    return Job(id=new_id(at, DICE), tool=tool, arguments=arguments, **(defaults | fields))


def added(store: JobStore, **fields: Any) -> Job:
    with store.batch(durable=True):
        return store.add(job_of(**fields))[0]


def stepped(store: JobStore, job: str, *steps: Step, at: float = 2.0, **fields: Any) -> Job:
    with store.batch(durable=True):
        for step in steps[:-1]:
            store.change(Change(job=job, step=step, at=at))
        return store.change(Change(job=job, step=steps[-1], at=at, fields=fields))


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[JobStore]:
    made: JobStore = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "jobs.db")
    made.open()
    yield made
    made.close()


# --- the contract ---


def test_a_job_that_is_accepted_has_its_first_event(store: JobStore) -> None:
    job = added(store)
    assert (job.seq, job.state) == (1, State.QUEUED)
    assert store.get(job.id) == job
    assert [(each.seq, each.kind, each.data) for each in store.events(job.id, 0)] == [(1, "state", {"state": "QUEUED"})]


def test_a_batch_gives_what_it_wrote_each_job_once_and_the_last_written_last(store: JobStore) -> None:
    with store.batch(durable=False) as written:
        one, two = store.add(job_of())[0], store.add(job_of())[0]
        store.change(Change(job=one.id, step=Step.CLAIM, at=2.0))
        assert written == []
    assert [(each.id, each.seq) for each in written] == [(two.id, 1), (one.id, 2)]


def test_a_key_stands_for_one_job_of_its_owner(store: JobStore) -> None:
    order = Order(idempotency_key="k")
    with store.batch(durable=True):
        first, new = store.add(job_of(order=order))
        assert new
        assert store.add(job_of(order=order)) == (first, False)
        with pytest.raises(ProtocolError) as caught:
            store.add(job_of(order=order, arguments={"frames": 4}))
        assert caught.value.error_code == ErrorCode.IDEMPOTENCY_KEY_REUSED
    with store.batch(durable=True):
        assert store.add(job_of(order=order)) == (first, False)
        assert store.add(job_of(order=order, owner="bob"))[1]
    assert len(store.open_jobs()) == 2


def test_the_same_job_twice_is_one(store: JobStore) -> None:
    job = job_of()
    with store.batch(durable=True):
        first, _ = store.add(job)
        assert store.add(job) == (first, False)
    with store.batch(durable=True):
        assert store.add(job) == (first, False)


def test_an_attempt_begins_with_nothing_of_the_one_before(store: JobStore) -> None:
    job = added(store)
    stepped(store, job.id, Step.CLAIM, Step.STARTED)
    with store.batch(durable=True):
        store.note(job.id, 1, [Note("progress", 2.5, {"fraction": 0.5})], {"progress": 0.5, "imported": 9})
    before = stepped(store, job.id, Step.RETRY, fault=Fault("X", "no"), checkpoint={"at": 1})
    assert (before.progress, before.imported, before.started_at) == (0.5, 9, 2.0)
    job = stepped(store, job.id, Step.REQUEUE, Step.CLAIM)
    assert (job.attempt, job.progress, job.imported, job.fault, job.checkpoint) == (2, None, 0, None, {"at": 1})


def test_a_question_is_gone_when_nobody_waits_for_its_answer(store: JobStore) -> None:
    job = added(store)
    stepped(store, job.id, Step.CLAIM, Step.STARTED)
    assert stepped(store, job.id, Step.ASK, question=["which?"]).question == ["which?"]
    assert stepped(store, job.id, Step.ANSWERED).question is None
    assert store.get(job.id).question is None  # type: ignore[union-attr]


def test_what_an_old_attempt_says_changes_nothing(store: JobStore) -> None:
    job = added(store)
    stepped(store, job.id, Step.CLAIM, Step.RETRY, Step.REQUEUE)
    with store.batch(durable=True), pytest.raises(Stale):
        store.note(job.id, 1, [Note("log", 3.0, {"end": 1})], {})
    job = stepped(store, job.id, Step.CLAIM)
    with store.batch(durable=True):
        for step in (Step.SUCCEED, Step.STARTED):
            with pytest.raises(Stale):
                store.change(Change(job=job.id, step=step, at=3.0, attempt=1))
        with pytest.raises(Stale):
            store.note(job.id, 1, [], {"progress": 1.0})
    assert store.get(job.id) == job


def test_nothing_follows_the_end(store: JobStore) -> None:
    job = added(store)
    job = stepped(store, job.id, Step.CLAIM, Step.SUCCEED, result=[1, {"two": None}], at=5.0)
    assert (job.finished_at, job.result) == (5.0, [1, {"two": None}])
    with store.batch(durable=True):
        for step in Step:
            with pytest.raises(Stale):
                store.change(Change(job=job.id, step=step, at=6.0))
        with pytest.raises(Stale):
            store.note(job.id, job.attempt, [], {})
    assert store.get(job.id) == job


def test_a_batch_that_raises_leaves_nothing(store: JobStore) -> None:
    job, order = added(store), Order(idempotency_key="k")
    lost = job_of(order=order)

    def fail() -> None:
        with store.batch(durable=True) as written:
            store.change(Change(job=job.id, step=Step.CLAIM, at=2.0))
            assert [each.seq for each in store.events(job.id, 0)] == [1, 2], "it sees what it wrote"
            store.add(lost)
            assert len(store.open_jobs()) == 2
            store.fire(Firing("nightly", "@daily", 5.0))
            assert written == []
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert store.get(job.id) == job
    assert (store.get(lost.id), store.firings(), store.open_jobs()) == (None, [], [job])
    assert len(store.events(job.id, 0)) == 1
    with store.batch(durable=True):
        assert store.add(lost)[1]


@pytest.mark.parametrize("looks", [False, True])
def test_a_batch_within_a_batch_that_raises_leaves_the_rest(store: JobStore, looks: bool) -> None:
    job, old = added(store), added(store, order=Order(idempotency_key="old"))
    stepped(store, old.id, Step.CANCEL)

    def fail() -> None:
        with store.batch(durable=True):
            store.change(Change(job=job.id, step=Step.STARTED, at=3.0))
            store.add(job_of(order=Order(idempotency_key="k")))
            store.forget([old.id])
            if looks:
                assert len(store.events(job.id, 0)) == 3
            raise KeyError

    with store.batch(durable=True) as written:
        store.change(Change(job=job.id, step=Step.CLAIM, at=2.0))
        with pytest.raises(KeyError):
            fail()
        assert store.get(old.id) is not None
        with store.batch(durable=False) as inner:
            kept, new = store.add(job_of(order=Order(idempotency_key="k")))
            assert new
        assert inner == []
        assert store.add(job_of(order=Order(idempotency_key="k"))) == (kept, False)
    assert [(each.id, each.seq) for each in written] == [(job.id, 2), (kept.id, 1)]
    assert [each.state for each in store.open_jobs()] == [State.STARTING, State.QUEUED]
    assert [each.seq for each in store.events(job.id, 0)] == [1, 2]
    assert store.unwoken() == []


def test_a_call_with_a_value_that_cannot_be_written_leaves_no_trace(store: JobStore) -> None:
    job = added(store)
    with store.batch(durable=True):
        before = store.change(Change(job=job.id, step=Step.CLAIM, at=2.0))
        for fields in ({"result": object()}, {"progress": "much"}, {"nothing": 1}, {"seq": 7}, {"message": "\ud800"}):
            with pytest.raises((TypeError, ValueError)):
                store.change(Change(job=job.id, step=Step.FAIL, at=3.0, fields=fields))
            with pytest.raises((TypeError, ValueError)):
                store.amend(job.id, fields)
        with pytest.raises(TypeError):
            store.note(job.id, 1, [Note("log", 3.0, {"end": object()})], {"progress": 0.5})
        assert store.get(job.id) == before
    assert [each.seq for each in store.events(job.id, 0)] == [1, 2]


def test_what_is_not_there_is_said_so(store: JobStore) -> None:
    assert store.get("job_no") is None
    assert store.events("job_no", 0) == []
    calls = (
        lambda: store.change(Change(job="job_no", step=Step.CLAIM, at=1.0)),
        lambda: store.note("job_no", 1, [], {}),
        lambda: store.amend("job_no", {"woken": True}),
    )
    with store.batch(durable=True):
        store.expire(["job_no"])
        store.forget(["job_no"])
        for call in calls:
            with pytest.raises(JobError) as caught:
                call()
            assert caught.value.error_code == ErrorCode.JOB_NOT_FOUND


def test_only_what_is_at_its_end_expires_and_is_forgotten(store: JobStore) -> None:
    order = Order(idempotency_key="k")
    job, other = added(store, order=order), added(store)
    done = stepped(store, job.id, Step.CLAIM, Step.SUCCEED, result="big", at=5.0)
    assert store.over(finished_before=5.0, expired=False, limit=9) == []
    assert store.over(finished_before=5.1, expired=False, limit=9) == [done.id]
    with store.batch(durable=True):
        store.expire([done.id, other.id])
    left = store.get(done.id)
    assert left is not None
    assert (left.state, left.expired, left.result, left.arguments, left.seq) == (State.SUCCEEDED, True, None, {}, 3)
    assert store.events(done.id, 0) == []
    with store.batch(durable=True):
        assert store.add(job_of(order=order)) == (left, False), "the key outlives the result"
    assert (store.over(finished_before=9, expired=False, limit=9), store.get(other.id)) == ([], other)
    with store.batch(durable=True):
        store.forget(store.over(finished_before=9, expired=True, limit=9))
        store.forget([other.id])
        assert store.get(done.id) is None
        assert store.add(job_of(order=order))[1]
    assert store.get(other.id) == other


def test_the_events_come_in_pieces(store: JobStore) -> None:
    job = added(store)
    stepped(store, job.id, Step.CLAIM, Step.STARTED)
    with store.batch(durable=False):
        notes = [Note("progress", float(place), {"fraction": place / 2000}) for place in range(1200)]
        assert store.note(job.id, 1, notes, {"progress": 0.6}).seq == 1203
    assert [each.seq for each in store.events(job.id, 0, 5000)] == list(range(1, 1001))
    assert [each.seq for each in store.events(job.id, 1000)] == list(range(1001, 1204))
    assert [each.seq for each in store.events(job.id, 5, 2)] == [6, 7]
    assert store.events(job.id, 1202)[0].data == {"fraction": 1199 / 2000}


def test_jobs_are_found_by_what_is_asked_the_latest_first(store: JobStore) -> None:
    jobs = [added(store, at=float(at), tool=("a", "b")[at % 2], owner=("ann", "bob")[at // 2 % 2]) for at in range(8)]
    stepped(store, jobs[3].id, Step.CANCEL)
    ids = [each.id for each in jobs]

    def found(**search: Any) -> list[int]:
        return [ids.index(each.id) for each in store.find(Search(**search))]

    assert found() == [7, 6, 5, 4, 3, 2, 1, 0]
    assert found(owner="bob") == [7, 6, 3, 2]
    assert found(tool="b", before=ids[5]) == [3, 1]
    assert found(states={State.CANCELLED, State.LOST}) == [3]
    assert found(owner="ann", tool="a", limit=1) == [4]
    assert found(owner="nobody") == []
    assert store.find(Search())[0].arguments == {}, "what may be large is not in a list"


def test_children_and_those_to_be_woken_are_found(store: JobStore) -> None:
    parent = added(store)
    child = added(store, parent=parent.id, order=Order(wake="planner"))
    added(store, parent=parent.id, order=Order(detached=True))
    assert store.children(parent.id) == [child]
    assert store.unwoken() == []
    ended = stepped(store, child.id, Step.CANCEL)
    assert (store.children(parent.id), store.unwoken()) == ([], [ended])
    with store.batch(durable=True):
        store.amend(child.id, {"woken": True})
    assert store.unwoken() == []


def test_schedules_keep_when_they_fire(store: JobStore) -> None:
    with store.batch(durable=True):
        for at in (5.0, 6.0):
            store.fire(Firing("b", "@daily", at))
        store.fire(Firing("a", "@hourly", 1.0))
    assert store.firings() == [Firing("a", "@hourly", 1.0), Firing("b", "@daily", 6.0)]


def test_nothing_is_written_outside_of_a_batch(store: JobStore) -> None:
    with pytest.raises((RuntimeError, IndexError)):
        store.add(job_of())
    assert store.open_jobs() == []


# --- SQLite ---


def opened(path: Path) -> SqliteStore:
    store = SqliteStore(path)
    store.open()
    return store


def test_what_was_written_is_there_after_a_restart(tmp_path: Path) -> None:
    store = opened(tmp_path / "jobs.db")
    big = added(store, arguments={"text": "x" * 200_000})
    jobs = [added(store) for _ in range(3)]
    stepped(store, big.id, Step.CLAIM, Step.STARTED, Step.ASK, question={"deep": [1]})
    before, events = store.open_jobs(), store.events(big.id, 0)
    store.close()
    store.close()
    with pytest.raises(StoreError):
        store.open_jobs()
    store = opened(tmp_path / "jobs.db")
    with store.batch(durable=True):
        for job in (big, jobs[0]):
            assert store.add(job) == (store.get(job.id), False), "the same job is not added again"
    assert (store.open_jobs(), store.events(big.id, 0)) == (before, events)
    assert [each.id for each in before] == [big.id, *(each.id for each in jobs)]
    assert store.get(big.id) == before[0]
    store.close()


def test_a_job_written_before_an_attribute_existed_is_read_with_its_default(tmp_path: Path) -> None:
    store = opened(tmp_path / "jobs.db")
    job = added(store)
    store.close()
    db = sqlite_schema.connect(tmp_path / "jobs.db")
    plain = msgspec.msgpack.decode(db.execute("SELECT data FROM jobs").fetchone()[0])
    for name in ("woken", "exit", "terms"):
        del plain[name]
    db.execute("UPDATE jobs SET data = ?", (msgspec.msgpack.encode(plain),))
    db.close()
    store = opened(tmp_path / "jobs.db")
    assert store.get(job.id) == job
    store.close()


def test_only_so_much_is_remembered_and_nothing_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grami_actors.jobs.sqlite.CACHED", 2)
    store = opened(tmp_path / "jobs.db")
    large = added(store, arguments={"text": "x" * 100_000})
    jobs = [added(store) for _ in range(4)]
    assert list(store._cache) == [each.id for each in jobs[2:]]
    stepped(store, large.id, Step.CLAIM)
    stepped(store, jobs[0].id, Step.CLAIM)
    assert list(store._cache) == [jobs[3].id, jobs[0].id]
    assert store.get(large.id).arguments == large.arguments  # type: ignore[union-attr]
    store.close()


def test_a_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    db = sqlite_schema.connect(tmp_path / "jobs.db")
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(ConfigError, match="newer version"):
        opened(tmp_path / "jobs.db")


@pytest.mark.parametrize("place", [0, 4096 * 2 + 10])
def test_a_damaged_file_is_refused_with_what_to_do(tmp_path: Path, place: int) -> None:
    path = tmp_path / "jobs.db"
    store = opened(path)
    with store.batch(durable=True):
        for _ in range(50):
            store.add(job_of())
    store.close()
    with path.open("r+b") as file:
        file.seek(place)
        file.write(b"\xff" * 3000)
    with pytest.raises(ConfigError, match="restore a backup"):
        opened(path)


def test_a_path_that_cannot_be_a_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none" / "jobs.db", Path("/proc/jobs.db")):
        with pytest.raises(ConfigError, match="cannot be opened"):
            opened(path)


def test_a_full_disk_fails_the_batch_and_the_same_succeeds_when_there_is_space(tmp_path: Path) -> None:
    store = opened(tmp_path / "jobs.db")
    job, order = added(store), Order(idempotency_key="k")
    new = job_of(order=order, arguments={"text": "x" * 300_000})

    def write() -> None:
        with store.batch(durable=True):
            store.change(Change(job=job.id, step=Step.CLAIM, at=2.0))
            store.add(new)

    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match="full"):
        write()
    assert (store.get(job.id), store.get(new.id)) == (job, None)
    assert len(store.events(job.id, 0)) == 1
    store._db.execute("PRAGMA max_page_count = 100000")
    write()
    with store.batch(durable=True):
        assert not store.add(new)[1]
    store.close()


def test_an_error_that_is_swallowed_within_a_batch_still_fails_it(tmp_path: Path) -> None:
    store = opened(tmp_path / "jobs.db")
    job = added(store)
    store._db.execute(f"PRAGMA max_page_count = {store._db.execute('PRAGMA page_count').fetchone()[0]}")

    def write() -> None:
        with store.batch(durable=True):
            store.change(Change(job=job.id, step=Step.CLAIM, at=2.0))
            with suppress(StoreError), store.batch(durable=True):
                store.add(job_of(arguments={"text": "x" * 300_000}))
                store.open_jobs()

    with pytest.raises(StoreError):
        write()
    assert store.get(job.id) == job
    store.close()


def test_a_database_that_another_process_writes_is_busy_and_not_broken(tmp_path: Path) -> None:
    store = opened(tmp_path / "jobs.db")
    store._db.execute("PRAGMA busy_timeout = 1")
    other = sqlite_schema.connect(tmp_path / "jobs.db")
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked"):
        added(store)
    other.close()
    added(store)
    assert len(store.open_jobs()) == 1
    store.close()


# --- beside a model ---


class Stores(RuleBasedStateMachine):
    """Both variants and a plain model, told the same."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.sqlite = opened(Path(self.folder.name, "jobs.db"))
        self.memory = MemoryStore()
        self.model: dict[str, list[Any]] = {}
        """Of each job: its state, attempt, and the kinds of its events."""
        self.keys: dict[str, tuple[str, int]] = {}
        self.clock = 0.0

    def both(self, call: Any) -> Any:
        """What both say to a call in a batch."""
        outcomes = []
        for store in (self.sqlite, self.memory):
            with store.batch(durable=False) as written:
                try:
                    outcome = call(store)
                except GramiError as error:
                    outcome = type(error)
            outcomes.append((outcome, list(written)))
        assert outcomes[0] == outcomes[1]
        return outcomes[0][0]

    @rule(key=st.sampled_from([None, "a", "b"]), size=st.integers(1, 2))
    def add(self, key: str | None, size: int) -> None:
        self.clock += 1
        job = job_of(self.clock, order=Order(idempotency_key=key), arguments={"size": size})
        outcome = self.both(lambda store: store.add(job))
        if key is not None and key in self.keys:
            known, other = self.keys[key]
            if other != size:
                assert outcome is ProtocolError
            else:
                assert (outcome[0].id, outcome[1]) == (known, False)
            return
        assert outcome[1]
        self.model[job.id] = [State.QUEUED, 0, ["state"]]
        if key is not None:
            self.keys[key] = (job.id, size)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), step=st.sampled_from(list(Step)), back=st.sampled_from([None, 0, 0, 1]))
    def step(self, data: st.DataObject, step: Step, back: int | None) -> None:
        job = data.draw(st.sampled_from(sorted(self.model)))
        self.take(job, step, back)

    @precondition(lambda self: any(STEPS[entry[0]] for entry in self.model.values()))
    @rule(data=st.data())
    def legal_step(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(sorted(job for job, entry in self.model.items() if STEPS[entry[0]])))
        self.take(job, data.draw(st.sampled_from(sorted(STEPS[self.model[job][0]]))), 0)

    def take(self, job: str, step: Step, back: int | None) -> None:
        self.clock += 1
        state, attempt, events = self.model[job]
        about = None if back is None else attempt - back
        change = Change(job=job, step=step, at=self.clock, attempt=about, fields={"message": str(step)})
        outcome = self.both(lambda store: store.change(change))
        if state in TERMINAL or about not in {None, attempt}:
            assert outcome is Stale
        elif step not in STEPS[state]:
            assert outcome is WrongStep
        else:
            self.model[job] = [STEPS[state][step], attempt + (step is Step.CLAIM), [*events, "state"]]
            assert (outcome.state, outcome.attempt) == tuple(self.model[job][:2])

    @precondition(lambda self: self.model)
    @rule(data=st.data(), back=st.integers(0, 1), count=st.integers(0, 9))
    def note(self, data: st.DataObject, back: int, count: int) -> None:
        job = data.draw(st.sampled_from(sorted(self.model)))
        state, attempt, events = self.model[job]
        notes = [Note("log", self.clock, {"end": place}) for place in range(count)]
        outcome = self.both(lambda store: store.note(job, attempt - back, notes, {"log": count}))
        if state.alive and not back:
            events += ["log"] * count
        else:
            assert outcome is Stale

    @rule(data=st.data(), looks=st.booleans())
    def half_a_batch(self, data: st.DataObject, looks: bool) -> None:
        jobs = [job for job, entry in self.model.items() if Step.CANCEL in STEPS[entry[0]]]
        new = job_of(self.clock, order=Order(idempotency_key=data.draw(st.sampled_from([None, "c"]))))
        for store in (self.sqlite, self.memory):
            with suppress(KeyError), store.batch(durable=True):
                store.add(new)
                for job in jobs:
                    store.change(Change(job=job, step=Step.CANCEL, at=self.clock))
                if looks:
                    store.open_jobs()
                store.forget(jobs)
                raise KeyError

    @rule()
    def open_again(self) -> None:
        self.sqlite.close()
        self.sqlite.open()

    @rule(long=st.booleans())
    def retire(self, long: bool) -> None:
        for store in (self.sqlite, self.memory):
            with store.batch(durable=False):
                over = store.over(finished_before=self.clock - 5, expired=long, limit=2)
                (store.forget if long else store.expire)(over)
        for job in over:
            assert self.model[job][0] in TERMINAL
            self.model[job][2] = None
            if long:
                del self.model[job]
                self.keys = {key: each for key, each in self.keys.items() if each[0] != job}

    @invariant()
    def all_three_agree(self) -> None:
        for job, (state, attempt, kinds) in self.model.items():
            found = self.sqlite.get(job)
            assert found is not None
            assert found == self.memory.get(job)
            assert (found.state, found.attempt) == (state, attempt)
            events = self.sqlite.events(job, 0)
            assert events == self.memory.events(job, 0)
            if kinds is None:
                assert events == []
                continue
            assert [each.kind for each in events] == kinds
            assert [each.seq for each in events] == list(range(1, found.seq + 1)), "no gap"
            ends = [each for each in events if each.data.get("state") in TERMINAL]
            assert ends == ([events[-1]] if state in TERMINAL else []), "one end, and nothing after it"
        for store in (self.sqlite, self.memory):
            assert {each.id for each in store.find(Search(limit=10_000))} == set(self.model)
        assert self.sqlite.open_jobs() == self.memory.open_jobs()
        assert self.sqlite.over(finished_before=1e9, expired=False, limit=99) == self.memory.over(
            finished_before=1e9, expired=False, limit=99
        )

    def teardown(self) -> None:
        self.sqlite.close()
        self.folder.cleanup()


TestStores = pytest.mark.slow(Stores.TestCase)
TestStores.settings = settings(
    max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_what_is_big_are_attributes_of_a_job() -> None:
    assert set(BIG) <= set(Job.__struct_fields__)
