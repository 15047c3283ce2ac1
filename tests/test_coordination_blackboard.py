"""The blackboard: compare-and-set, its watchers, and what survives."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grami_actors import ActorSystem, Agent, DeadlineExceeded, GramiError, Swarm, connect, handles
from grami_actors.budget import Budget
from grami_actors.coordination import blackboard
from grami_actors.coordination.blackboard import (
    Blackboard,
    DeleteEntry,
    Entry,
    EntryChanged,
    ListEntries,
    ReadEntry,
    WriteEntry,
    Written,
    update,
)
from grami_actors.coordination.journal import Journal
from grami_actors.errors import LimitReached
from grami_actors.history import History
from grami_actors.telemetry import ActorRestarted
from tests.conftest import Recorder, on, running, serving, turns_until
from tests.test_coordination_contract_net import Doer


class Watcher(Agent):
    """Remembers what it was told."""

    def __init__(self, heard: list[EntryChanged], pattern: str) -> None:
        self.heard = heard
        self.pattern = pattern

    def on_start(self) -> None:
        self.subscribe(self.pattern)

    @handles(EntryChanged)
    def on_change(self, change: EntryChanged) -> None:
        self.heard.append(change)


async def board(system: ActorSystem, journal: Journal | None = None, kind: Any = Blackboard) -> None:
    await system.spawn(kind, journal or Journal(), name="board")


@pytest.mark.parametrize("name", [None, "board.jsonl"])
async def test_the_history_says_which_write_the_news_came_of(name: str | None, tmp_path: Path) -> None:
    async with running() as system:
        history = History(system.bus, system.now)
        heard: list[EntryChanged] = []
        await board(system, Journal(name and tmp_path / name))
        await system.spawn(Watcher, heard, "board.>", name="watcher")
        await system.ask("board", WriteEntry("a", 1))
        await turns_until(lambda: heard)
        await turns_until(lambda: len([*history.told()]) == 2)
        write, news = sorted(history.told(), key=lambda told: told.type, reverse=True)
        assert (write.type, news.type, news.cause) == ("board.write", "board.changed", write.span)
        assert news.trace == ""


keys = st.sampled_from(["a", "a.b", "c"])
guesses = st.integers(0, 6)
operations = st.lists(
    st.one_of(
        st.builds(WriteEntry, keys, st.integers(0, 9), st.none() | guesses),
        st.builds(DeleteEntry, keys, st.none() | guesses),
        st.builds(ReadEntry, keys),
        st.builds(ListEntries, st.sampled_from(["", "a", "a."])),
        st.just("kill"),
    ),
    max_size=20,
)


class Model:
    """What a board does, in a few lines."""

    def __init__(self) -> None:
        self.changes = 0
        self.entries: dict[str, tuple[int, Any]] = {}

    def entry(self, key: str) -> Entry:
        return Entry(key, *self.entries.get(key, (0, None)))

    def do(self, message: Any) -> Any:
        if isinstance(message, ReadEntry):
            return self.entry(message.key)
        if isinstance(message, ListEntries):
            found = [self.entry(key) for key in self.entries if key.startswith(message.prefix)]
            return sorted(found, key=lambda entry: entry.version)
        now = self.entry(message.key)
        if message.expected not in {None, now.version}:
            return Written(False, now)
        if isinstance(message, WriteEntry):
            self.changes += 1
            self.entries[message.key] = (self.changes, message.value)
        elif now.version:
            self.changes += 1
            del self.entries[message.key]
        return Written(True, self.entry(message.key))


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(operations)
def test_a_board_always_answers_exactly_as_the_model_does_also_after_it_was_killed(operations: list[Any]) -> None:
    async def play() -> None:
        async with running() as system:
            await board(system)
            heard: list[EntryChanged] = []
            await system.spawn(Watcher, heard, "board.>", name="watcher")
            model, kills = Model(), 0
            for operation in operations:
                if operation == "kill" and kills == 0:  # a second one would wait longer for its restart
                    kills += 1
                    system.kill("board")
                elif operation != "kill":
                    assert await system.ask("board", operation) == model.do(operation)
            await system.ask("board", ListEntries())
            await turns_until(lambda: len(heard) == model.changes)
            assert [change.change for change in heard] == list(range(1, model.changes + 1))

    asyncio.run(play())


async def test_a_conflict_tells_what_stands_there_and_changes_nothing(lane: str, tmp_path: Path) -> None:
    async with running() as system:
        await board(system, Journal(tmp_path / "board.jsonl"), on(lane, Blackboard))
        assert await system.ask("board", WriteEntry("a", "mine", 0)) == Written(True, Entry("a", 1, "mine"))
        assert await system.ask("board", WriteEntry("a", "yours", 0)) == Written(False, Entry("a", 1, "mine"))
        assert await system.ask("board", DeleteEntry("a", 7)) == Written(False, Entry("a", 1, "mine"))
        assert await system.ask("board", ReadEntry("a")) == Entry("a", 1, "mine")


async def test_a_key_that_was_deleted_and_set_again_has_a_new_version_also_after_a_new_start(tmp_path: Path) -> None:
    path = tmp_path / "board.jsonl"
    async with running() as system:
        await board(system, Journal(path))
        await system.ask("board", WriteEntry("a", 1))
        assert await system.ask("board", DeleteEntry("a")) == Written(True, Entry("a"))
    async with running() as system:
        await board(system, Journal(path))
        assert await system.ask("board", WriteEntry("a", 1, expected=0)) == Written(True, Entry("a", 3, 1))


async def test_entries_are_there_again_after_a_new_start(tmp_path: Path) -> None:
    path = tmp_path / "board.jsonl"
    for number in range(3):
        async with running() as system:
            await board(system, Journal(path))
            assert len(await system.ask("board", ListEntries("k"))) == number
            await system.ask("board", WriteEntry(f"k{number}", {"n": number}))


@pytest.mark.slow
async def test_many_writers_always_lose_no_update_although_the_board_is_killed_in_between() -> None:
    async with running() as system:
        await board(system)
        recorder = Recorder(system, ActorRestarted)
        for number in range(5):
            await system.spawn(Doer, name=f"doer-{number}")

        async def count(by: Any) -> None:
            for _ in range(20):
                await update(by, "board", "n", lambda n: (n or 0) + 1)

        work = asyncio.gather(*(system.ask(f"doer-{number}", count) for number in range(5)))
        system.kill("board")
        await work
        await recorder.first(ActorRestarted)
        assert (await system.ask("board", ReadEntry("n"))).value == 100


async def test_update_calls_its_function_again_when_another_was_faster() -> None:
    async with running() as system:
        await board(system)
        await system.spawn(Doer, name="doer")
        seen: list[Any] = []

        def change(value: Any) -> str:
            if not seen:
                system.tell("board", WriteEntry("a", "another's"))
            seen.append(value)
            return f"{value}, changed"

        entry = await system.ask("doer", lambda by: update(by, "board", "a", change))
        assert seen == [None, "another's"]
        assert entry == Entry("a", 2, "another's, changed")


async def test_update_is_bounded_by_its_own_time_and_by_the_request() -> None:
    async with running() as system:
        await board(system)
        await system.spawn(Doer, name="doer")
        system.suspend("board")
        with pytest.raises(DeadlineExceeded):
            await system.ask("doer", lambda by: update(by, "board", "a", str, timeout=0.02))
        with pytest.raises(DeadlineExceeded):
            await system.ask("doer", lambda by: update(by, "board", "a", str, timeout=9.0), timeout=0.02)


async def test_an_update_whose_function_always_loses_ends_with_the_deadline() -> None:
    async with running() as system:
        await board(system)
        await system.spawn(Doer, name="doer")

        def meddle(_: Any) -> int:
            system.tell("board", WriteEntry("a", 0))
            return 1

        with pytest.raises(DeadlineExceeded):
            await system.ask("doer", lambda by: update(by, "board", "a", meddle, timeout=0.05))


async def test_a_watcher_hears_only_its_keys_in_order_and_one_that_stopped_is_forgotten() -> None:
    async with running() as system:
        await board(system)
        heard: list[EntryChanged] = []
        await system.spawn(Watcher, heard, "board.orders.*", name="watcher")
        for number in range(3):
            await system.ask("board", WriteEntry("orders.1", number))
            await system.ask("board", WriteEntry("other", number))
        await system.ask("board", DeleteEntry("orders.1"))
        await turns_until(lambda: len(heard) == 4)
        assert [(each.version, each.value, each.change) for each in heard] == [
            (1, 0, 1),
            (3, 1, 3),
            (5, 2, 5),
            (0, None, 7),
        ]
        await system.stop("watcher")
        await system.ask("board", WriteEntry("orders.1", 9))
        assert system.subscribers("board.orders.1") == ()


async def test_a_write_does_not_fail_because_its_request_has_nothing_left_for_the_watchers() -> None:
    async with running() as system:
        await board(system)
        heard: list[EntryChanged] = []
        for number in range(3):
            await system.spawn(Watcher, heard, "board.>", name=f"watcher-{number}")
        assert (await system.ask("board", WriteEntry("a", 1), budget=Budget(messages=1))).done
        await turns_until(lambda: len(heard) == 3)


async def test_what_is_read_is_a_copy() -> None:
    async with running() as system:
        await board(system)
        value = {"list": [1]}
        await system.ask("board", WriteEntry("a", value))
        value["list"].append(2)
        (await system.ask("board", ReadEntry("a"))).value["list"].append(3)
        assert (await system.ask("board", ReadEntry("a"))).value == {"list": [1]}


@pytest.mark.parametrize("key", ["", "a b", "a.*", ">", ".a", "a..b", "x" * 513])
async def test_a_key_that_is_no_topic_is_refused(key: str) -> None:
    async with running() as system:
        await board(system)
        with pytest.raises(GramiError) as refused:
            await system.ask("board", WriteEntry(key, 1))
        assert (refused.value.error_code, refused.value.param) == ("VALIDATION_FAILED", "$.key")


async def test_a_value_that_cannot_be_kept_is_refused_and_the_board_goes_on() -> None:
    async with running() as system:
        await board(system)
        with pytest.raises(GramiError) as refused:
            await system.ask("board", WriteEntry("a", object()))
        assert refused.value.error_code == "VALIDATION_FAILED"
        assert system.tree()[-1].restarts == 0


async def test_a_board_takes_only_so_many_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blackboard, "MOST_KEYS", 1)
    async with running() as system:
        await board(system)
        await system.ask("board", WriteEntry("a", 1))
        await system.ask("board", WriteEntry("a", 2))
        with pytest.raises(LimitReached, match="there are 1 keys, as many as a board may have: delete one"):
            await system.ask("board", WriteEntry("b", 1))


@pytest.mark.slow
async def test_a_client_reads_writes_and_watches() -> None:
    async with serving(Swarm([partial(Blackboard, Journal())])) as manager, connect(manager.url) as grami:
        changes = grami.subscribe("blackboard.orders.>")
        heard = asyncio.create_task(anext(changes))
        await turns_until(lambda: any(each.live for each in grami._conversation.hearings))
        written = await grami.request("board.write", key="orders.7", value="paid", expected=0)
        assert written == {"done": True, "entry": {"key": "orders.7", "version": 1, "value": "paid"}}
        frame = await heard
        assert frame.topic == "blackboard.orders.7"
        assert frame.data["value"] == "paid"
        await changes.aclose()
