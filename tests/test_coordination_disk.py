"""A disk that is slow, or full, under what agents write down: nobody else waits for it, and nobody hears too early."""

from __future__ import annotations

import asyncio
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grami_actors import ActorSystem, Cancelled, GramiError
from grami_actors.coordination.blackboard import Entry, EntryChanged, ReadEntry, WriteEntry
from grami_actors.coordination.journal import Journal
from grami_actors.coordination.people import Answer, AnswerQuestion, ListQuestions, Question, WithdrawQuestion
from grami_actors.coordination.saga import SagaFailed, saga
from tests import test_coordination_people as people
from tests import test_coordination_saga as sagas
from tests.conftest import Gate, running, turns_until
from tests.test_coordination_blackboard import Watcher, board
from tests.test_coordination_people import REFUND, asking, until_asked, until_waiting
from tests.test_coordination_saga import World, steps, trip, until_state

NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


class Disk:
    """What is written is on it when the test says so; each time it is busy it does what comes next in ``plan``."""

    def __init__(self) -> None:
        self.writes = 0
        self.plan: list[tuple[Gate | None, OSError | None]] = []
        self.keeps: int | None = None

    def sync(self, file: int) -> None:
        self.writes += 1
        gate, error = self.plan.pop(0) if self.plan else (None, None)
        if gate is not None:
            gate.hold()
        if error is not None:
            if self.keeps is not None:
                os.ftruncate(file, self.keeps)
            raise error

    def busy(self, error: OSError | None = None) -> Gate:
        """Hold what is written next until the gate is opened."""
        gate = Gate()
        self.plan.append((gate, error))
        return gate

    def full(self, keeps: int | None = None) -> None:
        """What is written next is an error, and is there all the same, but for what comes after so many bytes."""
        self.keeps = keeps
        self.plan.append((None, NO_SPACE))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    found = Disk()
    monkeypatch.setattr(os, "fsync", found.sync)
    yield found
    for gate, _ in found.plan:
        if gate is not None:
            gate.opened.set()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that is there: making one waits for the disk."""
    (tmp_path / "journal.jsonl").touch()
    return tmp_path / "journal.jsonl"


async def settled(asked: asyncio.Future[Any]) -> bool:
    """Whether it is there after many turns of the loop."""
    for _ in range(100):
        await asyncio.sleep(0)
    return asked.done()


def ask(system: ActorSystem, to: str, message: Any) -> asyncio.Task[Any]:
    async def answer() -> Any:
        return await system.ask(to, message)

    return asyncio.create_task(answer())


# --- the journal ---


async def test_changes_that_come_while_the_disk_is_busy_are_written_together(path: Path, disk: Disk) -> None:
    async with running() as system:
        journal = Journal(path)
        journal.open(system)
        busy = disk.busy()
        heard: list[int] = []
        for number in range(50):
            journal.put(f"k{number}", number)
            journal.once_kept(lambda number=number: heard.append(number))
        kept = asyncio.ensure_future(journal.kept())
        await busy.until_entered()
        assert not await settled(kept)
        assert (heard, journal.get("k49")) == ([], 49), "its owner sees what it changed"
        busy.opened.set()
        await kept
        assert heard == list(range(50))
        assert disk.writes == 2
        journal.close()


async def test_closing_waits_for_what_is_written_and_for_what_is_to_be_written(path: Path, disk: Disk) -> None:
    async with running() as system:
        journal = Journal(path)
        journal.open(system)
        heard: list[str] = []
        for key in "abc":
            journal.put(key, 1)
            journal.once_kept(lambda key=key: heard.append(key))
        journal.close()
        await turns_until(lambda: len(heard) == 3)
        assert heard == ["a", "b", "c"]
        again = Journal(path)
        assert again.keys() == ("a", "b", "c")
        again.close()


async def test_when_a_write_fails_the_changes_after_it_are_forgotten_too_and_who_waits_is_told(
    path: Path, disk: Disk
) -> None:
    async with running() as system:
        journal = Journal(path)
        journal.open(system)
        journal.put("before", 1)
        await journal.kept()
        gates = [disk.busy(), disk.busy(NO_SPACE)]
        heard: list[str] = []
        waiting = []

        async def change(key: str) -> None:
            journal.put(key, 1)
            journal.once_kept(lambda: heard.append(key))
            waiting.append(asyncio.ensure_future(journal.kept()))
            await asyncio.sleep(0)

        await change("in time")
        await gates[0].until_entered()
        await change("too late")
        gates[0].opened.set()
        await gates[1].until_entered()
        await change("later still")
        await waiting[0]
        gates[1].opened.set()
        for each in waiting[1:]:
            with pytest.raises(GramiError, match="No space left") as failed:
                await each
            assert failed.value.error_code == "INTERNAL_ERROR"
        assert heard == ["in time"]
        journal.put("after", 1)
        await journal.kept()
        found = journal.keys()
        assert "later still" not in found
        journal.close()
        again = Journal(path)
        assert again.keys() == found
        assert {"before", "in time", "after"} <= {*found}
        again.close()


changes = st.tuples(st.sampled_from("abc"), st.integers(0, 9))
doings = st.lists(changes | st.sampled_from(["kept", "turn", "full"]), max_size=40)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(doings)
def test_what_was_said_to_be_kept_is_always_there_in_order_however_the_disk_fails(doings: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path, disk = Path(folder) / "journal.jsonl", Disk()
        path.touch()
        patch.setattr(os, "fsync", disk.sync)
        effects: list[tuple[str, int, int]] = []  # the changes that were heard of, with their numbers

        async def play() -> None:
            async with running() as system:
                journal = Journal(path)
                journal.open(system)
                for doing in doings:
                    if doing == "full":
                        disk.full()
                    elif doing == "turn":
                        await asyncio.sleep(0)
                    elif doing == "kept":
                        await asyncio.wait([asyncio.ensure_future(journal.kept())])
                    else:
                        change = *doing, journal.put(*doing)
                        journal.once_kept(lambda change=change: effects.append(change))
                journal.close()
                await asyncio.sleep(0)

        asyncio.run(play())
        after = Journal(path)
        last: dict[str, tuple[int, int]] = {}
        for key, value, number in effects:
            assert number > max((known for known, _ in last.values()), default=0), "in order, and none twice"
            last[key] = number, value
        for key, (number, value) in last.items():
            # One that is newer failed for its caller, and may be there all the same.
            assert (after.version(key), after.get(key)) == (number, value) or after.version(key) > number
        after.close()


# --- the blackboard ---


async def test_while_the_disk_is_busy_nobody_hears_of_a_change_and_everybody_else_goes_on(
    path: Path, disk: Disk
) -> None:
    async with running() as system:
        await board(system, Journal(path))
        await system.spawn(sagas.Hotel, World(), name="hotel")
        news: list[EntryChanged] = []
        await system.spawn(Watcher, news, "board.>", name="watcher")
        busy = disk.busy()
        writing = ask(system, "board", WriteEntry("a", 1))
        reading = ask(system, "board", ReadEntry("a"))
        await busy.until_entered()
        assert await system.ask("hotel", sagas.Do("x/y")) == "y done"
        assert not await settled(writing)
        assert not reading.done()
        assert news == []
        busy.opened.set()
        assert (await writing).entry == await reading == Entry("a", 1, 1)
        await turns_until(lambda: news)


async def test_a_writer_that_gives_up_while_the_disk_is_busy_leaves_a_change_that_all_watchers_hear_of(
    path: Path, disk: Disk
) -> None:
    async with running() as system:
        await board(system, Journal(path))
        news: list[EntryChanged] = []
        await system.spawn(Watcher, news, "board.>", name="watcher")
        busy = disk.busy()
        writing = ask(system, "board", WriteEntry("a", 1))
        await busy.until_entered()
        writing.cancel()
        reading = ask(system, "board", ReadEntry("a"))
        assert not await settled(reading), "what is read is on the disk"
        busy.opened.set()
        assert await reading == Entry("a", 1, 1)
        await turns_until(lambda: [each.change for each in news] == [1])


async def test_a_board_that_is_killed_while_the_disk_is_busy_has_the_change_in_its_next_life(
    path: Path, disk: Disk
) -> None:
    async with running() as system:
        await board(system, Journal(path))
        busy = disk.busy()
        writing = ask(system, "board", WriteEntry("a", 1))
        await busy.until_entered()
        system.kill("board")
        with pytest.raises(GramiError, match="unknown"):
            await writing
        second = ask(system, "board", WriteEntry("a", 2, expected=1))
        busy.opened.set()
        assert (await second).entry == Entry("a", 2, 2)


async def test_a_write_to_a_full_disk_is_an_error_nobody_hears_of_it_and_the_board_goes_on(
    path: Path, disk: Disk
) -> None:
    async with running() as system:
        await board(system, Journal(path))
        news: list[EntryChanged] = []
        await system.spawn(Watcher, news, "board.>", name="watcher")
        disk.full()
        with pytest.raises(GramiError, match="No space left"):
            await system.ask("board", WriteEntry("a", 1))
        now = await system.ask("board", ReadEntry("a"))  # it may have come to the disk all the same
        written = await system.ask("board", WriteEntry("a", 2, expected=now.version))
        assert written.done
        await turns_until(lambda: news)
        assert [each.version for each in news] == [written.entry.version]
        assert system.tree()[-1].restarts == 0


async def test_what_a_writer_does_with_its_answer_is_not_what_a_watcher_sees() -> None:
    async with running() as system:
        await board(system)
        news: list[EntryChanged] = []
        await system.spawn(Watcher, news, "board.>", name="watcher")
        written = await system.ask("board", WriteEntry("a", [1]))
        written.entry.value.append(2)
        await turns_until(lambda: news)
        assert news[0].value == [1]


# --- people ---


async def test_an_answer_is_on_the_disk_before_anybody_hears_of_it(path: Path, disk: Disk) -> None:
    async with running() as system:
        await people.house(system, Journal(path))
        asked = asking(system)
        await until_asked(system, REFUND)
        busy = disk.busy()
        answering = ask(system, "people", AnswerQuestion("refund-42", "yes", by="ann"))
        await busy.until_entered()
        assert not await settled(asked)
        assert not answering.done()
        busy.opened.set()
        assert await answering == await asked == Answer("yes", "ann")


async def test_who_asks_what_was_just_answered_hears_it_when_it_is_on_the_disk(path: Path, disk: Disk) -> None:
    async with running() as system:
        await people.house(system, Journal(path))
        with pytest.raises(GramiError):
            await asking(system, keep=True, timeout=0.02)
        busy = disk.busy()
        answering = ask(system, "people", AnswerQuestion("refund-42", "yes", by="ann"))
        await busy.until_entered()
        asked = asking(system)
        assert not await settled(asked)
        busy.opened.set()
        assert await asked == await answering


async def test_an_answer_counts_although_the_person_went_away_while_the_disk_was_busy(path: Path, disk: Disk) -> None:
    async with running() as system:
        heard: list[tuple[str, str]] = []
        await people.house(system, Journal(path))
        await system.spawn(people.Listener, heard)
        asked = asking(system)
        await until_asked(system, REFUND)
        busy = disk.busy()
        answering = ask(system, "people", AnswerQuestion("refund-42", "yes", by="ann"))
        await busy.until_entered()
        answering.cancel()
        await settled(answering)
        busy.opened.set()
        assert await asked == Answer("yes", "ann")
        await turns_until(lambda: heard == [("asked", "refund-42"), ("answered", "refund-42")])


@pytest.mark.parametrize(("there", "again"), [(False, "no"), (True, "yes"), (True, "no")])
async def test_after_an_answer_that_could_not_be_written_the_next_one_finds_what_the_file_has(
    path: Path, disk: Disk, there: bool, again: str
) -> None:
    async with running() as system:
        await people.house(system, Journal(path))
        asked = asking(system)
        await until_asked(system, REFUND)
        disk.full(keeps=None if there else path.stat().st_size)  # noqa: ASYNC240 - of a small file
        with pytest.raises(GramiError, match="No space left"):
            await system.ask("people", AnswerQuestion("refund-42", "yes", by="ann"))
        assert not await settled(asked)
        if there and again == "no":
            with pytest.raises(GramiError, match="answered before, by 'ann'"):
                await system.ask("people", AnswerQuestion("refund-42", again, by="ann"))
        else:
            await system.ask("people", AnswerQuestion("refund-42", again, by="ann"))
        assert await asked == Answer("yes" if there else "no", "ann")


async def test_a_question_that_cannot_be_written_is_an_error_for_who_asks(path: Path, disk: Disk) -> None:
    async with running() as system:
        await people.house(system, Journal(path))
        disk.full()
        with pytest.raises(GramiError, match="No space left"):
            await asking(system)
        assert system.table.cells["people"].actor._waiters == 0


async def test_who_asks_again_while_the_withdrawal_is_written_is_not_told_of_it(path: Path, disk: Disk) -> None:
    async with running() as system:
        await people.house(system, Journal(path), doers=2)
        first = asking(system)
        await until_asked(system, REFUND)
        busy = disk.busy()
        withdrawing = ask(system, "people", WithdrawQuestion("refund-42"))
        await busy.until_entered()
        second = asking(system, "doer-1")
        await until_waiting(system, 2)
        assert not await settled(withdrawing)
        busy.opened.set()
        with pytest.raises(Cancelled, match="withdrawn"):
            await first
        assert await withdrawing
        await until_asked(system, REFUND)
        await system.ask("people", AnswerQuestion("refund-42", "no"))
        assert (await second).answer == "no"


async def test_many_questions_are_written_together(path: Path, disk: Disk) -> None:
    async with running() as system:
        await people.house(system, Journal(path), doers=40)
        busy = disk.busy()
        names = ["doer", *(f"doer-{number}" for number in range(1, 40))]
        asked = [asking(system, name, Question(name, "?")) for name in names]
        await until_waiting(system, 40)
        busy.opened.set()
        await until_asked(system, *(Question(name, "?") for name in names))
        assert disk.writes == 2
        await asyncio.gather(*(system.ask("people", AnswerQuestion(name, "!")) for name in names))
        assert [(await each).answer for each in asked] == ["!"] * 40


# --- sagas ---


async def test_a_step_is_not_asked_before_the_disk_says_that_it_was_begun(path: Path, disk: Disk) -> None:
    async with running() as system:
        world = World()
        await sagas.house(system, world, Journal(path))
        busy = disk.busy()
        asked = trip(system, "a", "b")
        again = asyncio.create_task(_again(system, "a", "b"))
        await busy.until_entered()
        assert not await settled(asked)
        assert world.log == []
        busy.opened.set()
        assert await asked == await again == {"a": "a done", "b": "b done"}
        assert world.log == ["do a", "do b"]


async def _again(system: ActorSystem, *names: str) -> Any:
    await system.spawn(sagas.Doer, name="second")
    return await system.ask("second", lambda by: saga(by, steps(*names), key="trip"))


async def test_who_asks_for_a_saga_again_hears_of_its_end_when_that_is_on_the_disk(path: Path, disk: Disk) -> None:
    async with running() as system:
        world = World(a="hangs")
        await sagas.house(system, world, Journal(path))
        asked = trip(system, "a")
        await world.gate.until_entered()
        busy = disk.busy()
        world.gate.opened.set()
        await busy.until_entered()
        again = asyncio.create_task(_again(system, "a"))
        assert not await settled(again)
        assert not asked.done()
        busy.opened.set()
        assert await asked == await again == {"a": "a done"}


async def test_a_request_that_is_cancelled_while_the_end_is_written_leaves_all_steps_done(
    path: Path, disk: Disk
) -> None:
    async with running() as system:
        world = World(a="hangs")
        await sagas.house(system, world, Journal(path))
        asked = trip(system, "a")
        await world.gate.until_entered()
        busy = disk.busy()
        world.gate.opened.set()
        await busy.until_entered()
        asked.cancel()
        await settled(asked)
        busy.opened.set()
        await until_state(system, "done")
        assert await trip(system, "a") == {"a": "a done"}
        assert world.log == ["do a"]


async def test_a_saga_whose_step_cannot_be_written_down_is_undone(path: Path, disk: Disk) -> None:
    async with running() as system:
        world = World()
        await sagas.house(system, world, Journal(path))
        disk.busy().opened.set()
        disk.full()
        with pytest.raises(SagaFailed, match="No space left"):
            await trip(system, "a", "b")
        assert world.effects == {}
        await until_state(system, "undone")


async def test_a_saga_that_is_killed_while_the_disk_is_busy_is_undone_by_the_next_instance(
    path: Path, disk: Disk
) -> None:
    async with running() as system:
        world = World()
        await sagas.house(system, world, Journal(path))
        busy = disk.busy()
        asked = trip(system, "a", "b")
        await busy.until_entered()
        system.kill("sagas")
        await settled(asked)
        busy.opened.set()
        with pytest.raises(SagaFailed, match="interrupted"):
            await asked
        assert world.effects == {}
        assert "do a" not in world.log
        assert await system.ask("sagas", sagas.UndoSaga("trip")) is None


async def test_questions_are_listed_when_they_are_on_the_disk(path: Path, disk: Disk) -> None:
    async with running() as system:
        await people.house(system, Journal(path))
        busy = disk.busy()
        asked = asking(system)
        await busy.until_entered()
        listing = ask(system, "people", ListQuestions())
        assert not await settled(listing)
        busy.opened.set()
        assert await listing == [REFUND]
        asked.cancel()
