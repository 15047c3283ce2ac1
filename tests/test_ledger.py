"""The ledger: order, batches, errors, and who is told of what; with a thread and inline."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grami_actors.job import Job, State, Step, digest_of, new_id
from grami_actors.jobs.ledger import Ledger
from grami_actors.jobs.memory import MemoryStore
from grami_actors.jobs.sqlite import SqliteStore
from grami_actors.jobs.store import Change, JobStore, Note, Stale, StoreError

DICE = random.Random(3)


def job_of(**fields: Any) -> Job:
    basic = {"tool": "t", "arguments": {}, "owner": "ann", "digest": digest_of("t", {}), "created_at": 1.0}
    return Job(id=new_id(1.0, DICE), due_at=1.0, **(basic | fields))


class Watched(MemoryStore):
    """A store that says how it was used, and that can be full or be held."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[bool] = []
        self.threads: set[int] = set()
        self.full = 0
        self.opened = threading.Event()
        self.opened.set()
        self._depth = 0

    @contextmanager
    def batch(self, *, durable: bool) -> Iterator[list[Job]]:
        self.threads.add(threading.get_ident())
        self._depth += 1
        try:
            with super().batch(durable=durable) as written:
                yield written
                if self._depth == 1:
                    assert self.opened.wait(20)
                    self.batches.append(durable)
                    if self.full:
                        self.full -= 1
                        raise StoreError("the disk is full")
        finally:
            self._depth -= 1


@asynccontextmanager
async def ledger_of(
    store: JobStore, told: Callable[[list[Job]], object] = len, **options: Any
) -> AsyncIterator[Ledger]:
    ledger = Ledger(store, told, **options)  # type: ignore[arg-type]
    ledger.open()
    try:
        async with asyncio.timeout(20):
            yield ledger
    finally:
        store.opened.set() if isinstance(store, Watched) else None
        await ledger.close()


@pytest.fixture(params=[False, True], ids=["thread", "inline"])
def inline(request: pytest.FixtureRequest) -> bool:
    return request.param


async def test_what_is_done_is_there_and_is_told_before_its_caller_goes_on(inline: bool) -> None:
    told: list[Job] = []
    async with ledger_of(MemoryStore(), told.extend, inline=inline) as ledger:
        job, new = await ledger.do(lambda store: store.add(job_of()))
        assert (told, new) == ([job], True)
        assert await ledger.read(lambda store: store.get(job.id)) == job
        assert told == [job], "reading changes nothing"


async def test_an_error_goes_to_its_caller_only_and_nothing_of_its_call_is_kept(inline: bool) -> None:
    told: list[Job] = []
    async with ledger_of(MemoryStore(), told.extend, inline=inline) as ledger:
        one, two = job_of(), job_of()

        def half(store: JobStore) -> None:
            store.add(two)
            store.change(Change(job=one.id, step=Step.CLAIM, at=1.0, attempt=9))

        outcomes = await asyncio.gather(
            ledger.do(lambda store: store.add(one)),
            ledger.do(half),
            ledger.do(lambda store: store.change(Change(job=one.id, step=Step.CLAIM, at=1.0))),
            return_exceptions=True,
        )
        assert isinstance(outcomes[1], Stale)
        assert isinstance(outcomes[2], Job)
        assert [each.id for each in told if each.id == two.id] == []
        assert await ledger.read(lambda store: store.get(two.id)) is None


async def test_inline_all_is_done_at_once_and_on_this_thread() -> None:
    store = Watched()
    async with ledger_of(store, inline=True) as ledger:
        assert ledger.do(lambda store: store.add(job_of())).done()
        assert ledger.read(lambda store: store.open_jobs()).done()
    assert store.threads == {threading.get_ident()}


async def test_calls_that_wait_are_written_together() -> None:
    store = Watched()
    async with ledger_of(store) as ledger:
        store.opened.clear()
        first = ledger.do(lambda store: store.add(job_of()))
        calls = [ledger.do(lambda store: store.add(job_of())) for _ in range(50)]
        store.opened.set()
        await asyncio.gather(first, *calls)
    assert len(store.batches) <= 2
    assert threading.get_ident() not in store.threads
    assert len(store.threads) == 1


async def test_what_need_not_be_durable_waits_for_others_but_does_not_hold_them_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("grami_actors.jobs.ledger.GATHERED", 1e6)
    store, order = Watched(), []
    async with ledger_of(store) as ledger:
        for place in range(3):
            lazy = ledger.do(lambda store, place=place: order.append(place), durable=False)  # type: ignore[misc]
        await asyncio.sleep(0)
        assert not lazy.done()
        await ledger.do(lambda store: order.append(3))
        assert (order, store.batches) == ([0, 1, 2, 3], [True])
        again = ledger.do(lambda store: order.append(4), durable=False)
        assert await ledger.read(lambda store: tuple(order)) == (0, 1, 2, 3, 4), "nor what only reads"
        await again
        assert store.batches == [True, False]
        ledger.do(lambda store: order.append(5), durable=False)
    assert order[-1] == 5, "nor the end"


async def test_alone_it_is_written_soon() -> None:
    async with ledger_of(MemoryStore()) as ledger:
        assert (await ledger.do(lambda store: store.add(job_of()), durable=False))[1]


async def test_a_batch_that_cannot_be_written_fails_for_all_and_can_be_tried_again(inline: bool) -> None:
    store, told = Watched(), []
    async with ledger_of(store, told.extend, inline=inline) as ledger:
        job = job_of()
        store.full = 1
        store.opened.set()
        with pytest.raises(StoreError, match="full"):
            await ledger.do(lambda store: store.add(job))
        assert told == []
        assert await ledger.read(lambda store: store.get(job.id)) is None
        assert (await ledger.do(lambda store: store.add(job)))[1]
        assert [each.id for each in told] == [job.id]


async def test_what_only_reads_is_not_failed_by_a_full_disk() -> None:
    store = Watched()
    async with ledger_of(store) as ledger:
        store.opened.clear()
        ledger.do(lambda store: None)
        write = ledger.do(lambda store: store.add(job_of()))
        read = ledger.read(lambda store: store.open_jobs())
        store.full = 2
        store.opened.set()
        outcomes = await asyncio.gather(write, read, return_exceptions=True)
        assert isinstance(outcomes[0], StoreError)
        assert outcomes[1] == []


async def test_a_caller_that_was_cancelled_changes_nothing_for_the_others() -> None:
    store = Watched()
    async with ledger_of(store) as ledger:
        store.opened.clear()
        gone = ledger.do(lambda store: store.add(job_of()))
        other = ledger.do(lambda store: store.add(job_of()))
        gone.cancel()
        store.opened.set()
        await other
        assert len(await ledger.read(lambda store: store.open_jobs())) == 2


async def test_after_the_end_nothing_is_taken(inline: bool) -> None:
    ledger = Ledger(MemoryStore(), lambda jobs: None, inline=inline)
    ledger.open()
    last = ledger.do(lambda store: store.add(job_of()))
    await ledger.close()
    await ledger.close()
    assert (await last)[1], "what waits is done first"
    with pytest.raises(StoreError, match="closed"):
        await ledger.do(lambda store: store.add(job_of()))


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([True, False, None]), max_size=40))
def test_calls_are_always_done_in_their_order(kinds: list[bool | None]) -> None:
    async def run() -> None:
        order: list[int] = []
        async with ledger_of(MemoryStore()) as ledger:
            for place, kind in enumerate(kinds):
                if kind is None:
                    ledger.read(lambda store, place=place: order.append(place))  # type: ignore[misc]
                else:
                    ledger.do(lambda store, place=place: order.append(place), durable=kind)  # type: ignore[misc]
        assert order == list(range(len(kinds)))

    asyncio.run(run())


async def test_events_of_many_batches_have_no_gap(tmp_path: Path) -> None:
    told: list[Job] = []
    async with ledger_of(SqliteStore(tmp_path / "jobs.db"), told.extend) as ledger:
        job, _ = await ledger.do(lambda store: store.add(job_of()))
        for step in (Step.CLAIM, Step.STARTED):
            await ledger.do(lambda store, step=step: store.change(Change(job=job.id, step=step, at=2.0)))  # type: ignore[misc]
        for place in range(300):
            note = Note("log", 3.0, {"end": place})
            ledger.do(lambda store, note=note: store.note(job.id, 1, [note], {}), durable=False)  # type: ignore[misc]
            if place % 50 == 0:
                await asyncio.sleep(0)
        last = await ledger.do(lambda store: store.change(Change(job=job.id, step=Step.SUCCEED, at=4.0)))
        events = await ledger.read(lambda store: store.events(job.id, 0))
    assert (last.state, last.seq) == (State.SUCCEEDED, 304)
    assert [each.seq for each in events] == list(range(1, 305))
    seqs = [each.seq for each in told]
    assert seqs == sorted(set(seqs)), "each batch is told of once, in order"
    assert told[-1] == last


PROGRAM = """
import asyncio, sys, random
from pathlib import Path
from grami_actors.jobs.ledger import Ledger
from grami_actors.jobs.sqlite import SqliteStore
from grami_actors.job import Job
async def main():
    ledger = Ledger(SqliteStore(Path(sys.argv[1])), lambda jobs: None)
    ledger.open()
    for name in ("job_a", "job_b", "job_c"):
        job = Job(id=name, tool="t", arguments={}, owner="", digest="", created_at=1.0, due_at=1.0)
        try:
            await ledger.do(lambda store: store.add(job))
            print(name, flush=True)
        except Exception as error:
            print(type(error).__name__, flush=True)
    await ledger.close()
asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "printed", "kept"),
    [
        ("ledger.before_commit:2:kill9", ["job_a"], ["job_a"]),
        ("ledger.after_commit:2:kill9", ["job_a"], ["job_a", "job_b"]),
        ("ledger.before_commit:2:enospc", ["job_a", "StoreError", "job_c"], ["job_a", "job_c"]),
        ("ledger.before_commit:2:raise", ["job_a", "RuntimeError", "job_c"], ["job_a", "job_c"]),
    ],
)
def test_what_was_acknowledged_is_there_wherever_the_process_dies(
    tmp_path: Path, point: str, printed: list[str], kept: list[str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "jobs.db")],
        env={"GRAMI_FAILPOINT": point, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == printed, done.stderr
    store = SqliteStore(tmp_path / "jobs.db")
    store.open()
    assert [each.id for each in store.open_jobs()] == kept
    store.close()
