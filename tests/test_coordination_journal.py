"""The journal: what was written is there again, and a write that was cut short never was."""

from __future__ import annotations

import stat
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grami_actors.coordination.blackboard import Blackboard, ReadEntry, WriteEntry
from grami_actors.coordination.journal import SPARE_LINES, Journal
from grami_actors.errors import ConfigError, GramiError, LimitReached, StartFailed
from tests.conftest import running

keys = st.sampled_from(["a", "b", "ключ", 'q"uote\n'])
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
changes = st.lists(st.tuples(keys, values) | st.tuples(keys), max_size=12)


def play(journal: Journal, changes: list[Any]) -> None:
    for change in changes:
        if len(change) == 2:
            journal.put(*change)
        else:
            journal.remove(*change)


def content(journal: Journal) -> list[tuple[str, int, Any]]:
    return [(key, journal.version(key), journal.get(key)) for key in journal.keys()]  # noqa: SIM118


class System:
    """What a journal belongs to."""


def test_without_a_file_another_system_finds_nothing_and_the_same_one_finds_all() -> None:
    journal, one, other = Journal(), System(), System()
    journal.open(one)
    journal.put("a", 1)
    journal.open(one)
    assert content(journal) == [("a", 1, 1)]
    journal.open(other)
    assert content(journal) == []
    assert journal.put("b", 2) == 1


@pytest.mark.slow
@settings(deadline=None, max_examples=20)
@given(changes, changes)
def test_what_is_read_again_is_always_exactly_what_was_written_and_numbers_go_on(
    before: list[Any], after: list[Any]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "deep" / "journal.jsonl"
        kept, memory = Journal(path), Journal()
        play(kept, before)
        play(memory, before)
        assert content(kept) == content(memory)
        kept.close()
        again = Journal(path)
        assert content(again) == content(memory)
        play(again, after)
        play(memory, after)
        assert content(again) == content(memory)
        assert again.put("a", 1) == memory.put("a", 1) == len(before) + len(after) + 1
        again.close()


def states(path: Path, changes: list[Any]) -> list[tuple[int, Any]]:
    """What a journal says after each change, and how long its file is then."""
    journal, found = Journal(path), []
    journal.open()
    for number in range(len(changes) + 1):
        play(journal, changes[number - 1 : number] if number else [])
        found.append((path.stat().st_size, content(journal)))
    journal.close()
    return found


def test_a_file_cut_at_any_byte_has_exactly_the_changes_that_were_finished(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    known = states(path, [("a", ["ключ"]), ("a",), ("b", {"a": "\n"})])
    data = path.read_bytes()
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        torn = Journal(path)
        assert content(torn) == [content for size, content in known if size <= cut][-1]
        torn.close()


@pytest.mark.slow
@settings(deadline=None, max_examples=20)
@given(changes, st.data())
def test_a_file_that_was_cut_is_always_as_good_as_one_that_ended_there(changes: list[Any], data: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.jsonl"
        known = states(path, changes)
        whole = path.read_bytes()
        cut = data.draw(st.integers(0, len(whole)))
        path.write_bytes(whole[:cut])
        torn = Journal(path)
        assert content(torn) == [content for size, content in known if size <= cut][-1]
        torn.put("after", cut)
        expected = content(torn)
        torn.close()
        again = Journal(path)
        assert content(again) == expected
        assert again.get("after") == cut
        again.close()


def test_a_damaged_line_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    for damage in (b"[1,\n", b'{"a":1}\n', b"[]\n", b'["x","a",1]\n', b"[1,2,3]\n", b"\xff\n"):
        path.write_bytes(b'[1,"a",1]\n' + damage + b'[3,"b",1]\n')
        with pytest.raises(ConfigError, match="damaged in line 2"):
            Journal(path).open()


@pytest.mark.slow
def test_a_long_history_is_replaced_by_what_counts_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.put("kept", "since the beginning")
    longest = 0
    for number in range(3 * SPARE_LINES):
        journal.put("a", number)
        longest = max(longest, path.read_bytes().count(b"\n"))
    journal.remove("a")
    assert longest <= SPARE_LINES + 5
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []
    journal.close()
    again = Journal(path)
    assert content(again) == [("kept", 1, "since the beginning")]
    assert again.put("a", 1) == 3 * SPARE_LINES + 3
    again.close()


def test_numbers_go_on_although_the_last_change_was_a_deletion(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    for _ in range(SPARE_LINES // 2 + 1):
        journal.put("a", 1)
        last = journal.remove("a")
    journal.close()
    again = Journal(tmp_path / "journal.jsonl")
    assert again.put("b", 1) == last + 1
    again.close()


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such modes")
def test_only_its_owner_may_read_it_also_after_it_was_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "journal.jsonl"
    journal = Journal(path)
    for number in range(SPARE_LINES + 10):
        journal.put("a", number)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    journal.close()


@pytest.mark.skipif(sys.platform == "win32", reason="there are no locks")
def test_a_journal_that_is_open_is_refused_to_others(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.put("a", 1)
    with pytest.raises(ConfigError, match="held"):
        Journal(path).open()
    journal.close()
    second = Journal(path)
    assert second.get("a") == 1
    second.close()


def test_what_json_cannot_say_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    deep: list[Any] = []
    deep.append(deep)
    for value in (object(), "\ud800", deep):
        with pytest.raises(GramiError) as refused:
            journal.put("a", value)
        assert refused.value.error_code == "VALIDATION_FAILED"
    assert content(journal) == []
    journal.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full disk at hand")
def test_a_write_that_fails_is_an_error_and_the_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.put("a", 1)
    assert journal._file is not None
    journal._file.close()
    journal._file = Path("/dev/full").open("r+b", buffering=0)  # noqa: SIM115 - the journal closes it
    with pytest.raises(GramiError, match="cannot write"):
        journal.put("a", 2)
    assert content(journal) == [("a", 1, 1)]
    assert journal.put("a", 3) == 2
    journal.close()


def test_a_place_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot use"):
        Journal(tmp_path / "file" / "journal.jsonl").open()


def test_values_are_copies() -> None:
    journal = Journal()
    value = [1]
    journal.put("a", value)
    value.append(2)
    journal.get("a").append(3)
    assert journal.get("a") == [1]


def test_the_oldest_that_can_be_spared_makes_room_or_there_is_none() -> None:
    journal = Journal()
    for number in range(4):
        journal.put(str(number), number)
    journal.make_room(5, "numbers", int, lambda _: True)
    assert len(journal.keys()) == 4
    journal.make_room(4, "numbers", int, lambda value: value > 1)
    assert journal.keys() == ("0", "1", "3")
    with pytest.raises(LimitReached, match="there are 3 numbers: count less"):
        journal.make_room(3, "numbers: count less")


async def test_two_actors_cannot_have_one_journal_but_one_after_the_other_can() -> None:
    async with running() as system:
        journal = Journal()
        await system.spawn(Blackboard, journal, name="first")
        with pytest.raises(StartFailed, match="the journal of second is that of first already"):
            await system.spawn(Blackboard, journal, name="second")
        await system.ask("first", WriteEntry("a", 1))
        await system.stop("first")
        await system.spawn(Blackboard, journal, name="second")
        assert (await system.ask("second", ReadEntry("a"))).value == 1
