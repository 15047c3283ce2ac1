"""What the files and locks of an attempt say of it, in every combination, and how they are written."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grami_actors.job import Job
from grami_actors.jobs import record
from grami_actors.jobs.endings import outcome_of
from grami_actors.jobs.folder import AttemptFolder, Taken, Verdict
from grami_actors.jobs.record import Record


def attempt(tmp_path: Path) -> AttemptFolder:
    return AttemptFolder(tmp_path / "jobs" / "job_1" / "1")


@pytest.mark.parametrize(("exits", "shim", "tree", "runs"), list(itertools.product([True, False], repeat=4)))
def test_the_verdict_is_that_of_the_table(tmp_path: Path, exits: bool, shim: bool, tree: bool, runs: bool) -> None:
    folder = attempt(tmp_path)
    with folder.locked():
        pass
    for name, there in (("exit.json", exits), ("run.json", runs)):
        if there:
            (folder.path / name).write_text("{}")
    held = []
    for name, taken in (("shim.lock", shim), ("tree.lock", tree)):
        if taken:
            held.append(os.open(folder.path / name, os.O_RDWR))
            fcntl.flock(held[-1], fcntl.LOCK_EX)
    if shim:
        wanted = Verdict.ALIVE
    elif exits:
        wanted = Verdict.FINISHED
    elif not runs:
        wanted = Verdict.UNSTARTED
    else:
        wanted = Verdict.ORPHANED if tree else Verdict.DEAD
    assert folder.verdict() is wanted
    for each in held:
        os.close(each)


def test_a_folder_that_is_not_there_was_never_started(tmp_path: Path) -> None:
    assert attempt(tmp_path).verdict() is Verdict.UNSTARTED


def test_the_locks_go_on_in_a_process_that_inherited_them(tmp_path: Path) -> None:
    folder = attempt(tmp_path)
    with folder.locked() as locks:
        child = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE, pass_fds=locks)
    with child:
        assert folder.alive
        assert folder.tree_alive
        with pytest.raises(Taken), folder.locked():
            pass
        child.communicate(b"\n")
    assert not folder.alive
    assert not folder.tree_alive


@pytest.mark.parametrize("name", ["run.json", "exit.json"])
def test_what_was_started_before_is_not_locked_again(tmp_path: Path, name: str) -> None:
    folder = attempt(tmp_path)
    with folder.locked():
        (folder.path / name).write_text("")
    with pytest.raises(Taken), folder.locked():
        pass


def test_what_cannot_be_looked_at_is_not_absent(tmp_path: Path) -> None:
    folder = AttemptFolder(tmp_path / ("x" * 300))
    with pytest.raises(OSError, match="File name too long"):
        folder.verdict()


def test_the_files_are_for_nobody_else(tmp_path: Path) -> None:
    folder = attempt(tmp_path)
    with folder.locked():
        folder.write_spec({"a": 1})
    folder.tell({"stop": "user", "force": False})
    for each in folder.path.rglob("*"):
        assert stat.S_IMODE(each.stat().st_mode) & 0o077 == 0 or each.is_dir()
    assert stat.S_IMODE((folder.path / "spec.json").stat().st_mode) == 0o600
    assert folder.read("spec.json") == {"a": 1}


def test_orders_are_found_in_their_order_also_after_some_were_removed(tmp_path: Path) -> None:
    folder = attempt(tmp_path)
    for number in range(5):
        folder.tell({"input": number})
    control = folder.path / "control"
    names = sorted(control.iterdir(), key=lambda each: int(each.stem))
    assert [json.loads(each.read_text())["input"] for each in names] == list(range(5))
    last = int(names[-1].stem)
    for each in names[:-1]:
        each.unlink()
    folder.tell({"input": 5})
    assert max(int(each.stem) for each in control.iterdir()) > last


def test_an_order_pokes_a_shim_that_listens(tmp_path: Path) -> None:
    folder = attempt(tmp_path)
    folder.path.mkdir(parents=True)
    os.mkfifo(folder.path / "poke")
    folder.poke()  # nobody listens
    pipe = os.open(folder.path / "poke", os.O_RDWR | os.O_NONBLOCK)
    folder.tell({"input": 1})
    assert os.read(pipe, 100) == b"\n"
    os.close(pipe)


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff"])
def test_a_file_that_is_not_whole_says_nothing(tmp_path: Path, text: str) -> None:
    folder = attempt(tmp_path)
    folder.path.mkdir(parents=True)
    (folder.path / "run.json").write_text(text, encoding="latin-1")
    assert folder.read("run.json") == {}
    assert folder.started


# --- how it ended ---


def ended(tmp_path: Path, **ending: Any) -> AttemptFolder:
    folder = attempt(tmp_path)
    folder.path.mkdir(parents=True)
    (folder.path / "exit.json").write_text(json.dumps({"at": 5.0, **ending}))
    return folder


def test_a_result_that_is_not_there_is_a_failure_and_no_success(tmp_path: Path) -> None:
    folder = ended(tmp_path, code=0, result=True)
    assert (outcome_of(folder, 9.0).kind, outcome_of(folder, 9.0).code) == ("failed", "INTERNAL_ERROR")
    (folder.path / "result.json").write_text("null")
    assert (outcome_of(folder, 9.0).kind, outcome_of(folder, 9.0).result) == ("succeeded", None)


def test_a_damaged_end_is_one_that_nobody_knows(tmp_path: Path) -> None:
    assert outcome_of(ended(tmp_path, code="x"), 9.0).kind == "lost"


def test_what_was_told_to_end_was_ended_whatever_it_returned(tmp_path: Path) -> None:
    outcome = outcome_of(ended(tmp_path, code=0, reason="deadline", result=True, log=7), 9.0)
    assert (outcome.kind, outcome.reason, outcome.at, outcome.exit and outcome.exit.log) == (
        "stopped",
        "deadline",
        5.0,
        7,
    )


# --- what it said ---


def job(**fields: Any) -> Job:
    return Job(id="job_1", tool="t", arguments={}, owner="", digest="", created_at=0, due_at=0, **fields)


said = st.one_of(
    st.builds(lambda text: {"type": "progress", "fraction": 0.5, "message": text}, st.text(max_size=50)),
    st.builds(lambda data: {"type": "checkpoint", "data": data}, st.one_of(st.none(), st.integers(), st.text())),
    st.builds(lambda name: {"type": "artifact", "name": name, "bytes": 3}, st.sampled_from("abc")),
    st.builds(lambda text: {"type": "ask", "question": text}, st.text(max_size=20)),
)
nonsense = st.sampled_from(
    [b"\n", b"{}\n", b"\xff\n", b'{"type":"progress","fraction":"x","at":1}\n', b"[1]\n", b'{"type"\r\n']
)
lines = st.lists(st.one_of(said, nonsense), max_size=30)


@settings(max_examples=60)
@given(lines, st.integers(1, 200), st.lists(st.integers(0, 6), max_size=10))
def test_what_was_said_is_read_once_and_in_order_by_whatever_servers(
    tmp_path_factory: pytest.TempPathFactory, wanted: list[Any], piece: int, deaths: list[int]
) -> None:
    path = tmp_path_factory.mktemp("record") / "record.jsonl"
    path.write_bytes(
        b"".join(
            each if isinstance(each, bytes) else json.dumps({**each, "at": 1.0}).encode() + b"\n" for each in wanted
        )
    )
    kept: dict[str, Any] = {}
    found: list[Any] = []
    before = record.PIECE
    record.PIECE = piece
    try:
        for lives in (*deaths, 10_000):  # parts that a server takes over before the next one comes
            reading = Record(path, job(imported=kept.get("imported", 0), artifacts=kept.get("artifacts", {})))
            while lives > 0 and (parts := list(itertools.islice(reading.parts(), lives))):
                lives -= len(parts)
                for part in parts:
                    found += [(note.kind, note.data) for note in part.notes]
                    found += [("ask", part.asks.question)] if part.asks else []
                    kept |= part.fields
    finally:
        record.PIECE = before
    told = [each for each in wanted if not isinstance(each, bytes)]
    assert [kind for kind, _ in found] == [each["type"] for each in told]
    assert [data["message"] for kind, data in found if kind == "progress"] == [
        e["message"] for e in told if e["type"] == "progress"
    ]
    assert [data for kind, data in found if kind == "ask"] == [e["question"] for e in told if e["type"] == "ask"]
    assert set(kept.get("artifacts", {})) == {each["name"] for each in told if each["type"] == "artifact"}


def test_a_line_that_is_not_whole_yet_is_read_when_it_is(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    reading = Record(path, job())
    assert not reading.unread()
    assert list(reading.parts()) == []
    line = b'{"type":"ask","question":1,"at":1}\n'
    path.write_bytes(line[:20])
    assert reading.unread()
    assert list(reading.parts()) == []
    path.write_bytes(line)
    assert [each.asks and each.asks.question for each in reading.parts()] == [1]
    assert not reading.unread()


def test_a_long_line_is_read_and_one_that_is_far_too_long_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    with path.open("w") as file:
        for size in (record.PIECE * 3, record.LONGEST_LINE * 2, 10):
            file.write(json.dumps({"type": "checkpoint", "data": "x" * size, "at": 1.0}) + "\n")
    reading = Record(path, job())
    sizes = []
    while reading.unread():
        sizes += [note.data["bytes"] for part in reading.parts() for note in part.notes]
    assert sizes == [record.PIECE * 3 + 2, 12]
