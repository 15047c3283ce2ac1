"""``grami state``: what it says of a state directory, what it copies, and what it never removes."""

from __future__ import annotations

import json
import os
import random
import time
from functools import partial
from pathlib import Path

import pytest

from grami_actors.job import Job, Step, digest_of, new_id
from grami_actors.jobs.sqlite import SqliteStore
from grami_actors.jobs.state_dir import StateDirectory
from grami_actors.jobs.store import Change
from tests.conftest import Grami

DAY = 86_400.0


@pytest.fixture
def grami(command_line: Grami) -> Grami:
    """Runs ``grami state`` in an empty directory."""
    return partial(command_line, "state")


def made(path: Path, **ended_days_ago: float | None) -> dict[str, str]:
    """A state directory with a job for each name, which ended so many days ago, or is queued; their ids."""
    directory = StateDirectory(path)
    directory.make()
    store = SqliteStore(directory.database)
    store.open()
    dice = random.Random(3)
    now = time.time()
    ids = {}
    for name, days in ended_days_ago.items():
        at = now - DAY * (days or 0)
        job = Job(
            id=new_id(at, dice),
            tool=name,
            arguments={},
            owner="ann",
            digest=digest_of(name, {}),
            created_at=at,
            due_at=at,
        )
        with store.batch(durable=True):
            store.add(job)
            if days is not None:
                store.change(Change(job=job.id, step=Step.CANCEL, at=at))
        (directory.jobs / job.id / "1").mkdir(parents=True)
        ids[name] = job.id
    store.close()
    return ids


def folders(path: Path) -> set[str]:
    return {each.name for each in (path / "jobs").iterdir() if each.is_dir()}


def test_a_sound_directory_is_told_with_what_is_in_it(grami: Grami) -> None:
    made(Path(".grami"), waits=None, old=1, older=2)
    told, data = grami("check"), grami("check", "--json")
    assert (told.code, told.err) == (0, "")
    assert ".grami is sound" in told.words
    assert "CANCELLED 2" in told.words
    assert "QUEUED 1" in told.words
    assert (data.code, json.loads(data.out)["sound"], json.loads(data.out)["states"]) == (
        0, True, {"CANCELLED": 2, "QUEUED": 1},
    )  # fmt: skip


def test_a_damaged_directory_is_told_with_what_to_do(grami: Grami) -> None:
    made(Path(".grami"), **{f"job{number}": None for number in range(50)})
    database = Path(".grami/jobs.db")
    content = bytearray(database.read_bytes())
    content[4_096:8_192] = b"\xa5" * 4_096
    database.write_bytes(content)
    told, data = grami("check"), grami("check", "--json")
    assert (told.code, data.code) == (1, 1)
    assert ".grami is damaged" in told.words
    assert "put the last backup in its place" in told.words
    assert json.loads(data.out)["damages"]
    database.write_text("no database")
    assert "jobs cannot be read" in grami("check").words


@pytest.mark.parametrize("command", [("check",), ("backup", "copy"), ("gc",)])
def test_where_nothing_is_is_told_and_nothing_is_made(command: tuple[str, ...], grami: Grami) -> None:
    ended = grami(*command)
    assert (ended.code, ended.out) == (1, "")
    assert ".grami is no state directory" in ended.words
    assert not Path(".grami").exists()
    assert not Path("copy").exists()


def test_the_directory_is_the_one_that_the_settings_name(grami: Grami, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        made(Path(name))
    Path("grami.toml").write_text('state_dir = "a"\n')
    assert json.loads(grami("check", "--json").out)["state_dir"] == "a"
    monkeypatch.setenv("GRAMI_STATE_DIR", "b")
    assert json.loads(grami("check", "--json").out)["state_dir"] == "b"
    assert json.loads(grami("check", "--json", "--state-dir", "c").out)["state_dir"] == "c"


def test_a_backup_is_whole_also_while_a_server_has_the_directory_open(grami: Grami) -> None:
    ids = made(Path(".grami"), waits=None, old=1)
    (Path(".grami/jobs") / ids["old"] / "1" / "exit.json").write_text("{}")
    server = StateDirectory(Path(".grami"))
    server.lock()
    try:
        told = grami("backup", "copy")
        again = grami("backup", "copy", "--json")
    finally:
        server.release()
    assert (told.code, told.out) == (0, "")
    assert "to copy" in told.err
    assert (again.code, again.out, again.err) == (
        1,
        "",
        "error: copy is not empty: a backup is made into a folder of its own\n",
    )
    assert (Path("copy/jobs") / ids["old"] / "1" / "exit.json").read_text() == "{}"
    assert json.loads(grami("check", "--json", "--state-dir", "copy").out)["states"] == {"CANCELLED": 1, "QUEUED": 1}
    assert json.loads(grami("backup", "other", "--json").out)["target"] == "other"


@pytest.mark.parametrize("inside", [".grami", ".grami/monday", ".grami/jobs/monday"])
def test_a_backup_is_not_made_into_what_is_copied(inside: str, grami: Grami) -> None:
    ids = made(Path(".grami"), waits=None)
    told = grami("backup", inside)
    assert (told.code, told.err) == (1, f"error: {inside} is in .grami: a backup is made somewhere else\n")
    assert folders(Path(".grami")) <= {ids["waits"]}


def test_gc_forgets_what_ended_long_ago_and_never_what_did_not(grami: Grami) -> None:
    path = Path(".grami")
    ids = made(path, waits=None, fresh=1, old=8, ancient=40)
    (path / "jobs" / "job_stray").mkdir()
    os.utime(path / "jobs" / "job_stray", (0, 0))
    told = json.loads(grami("gc", "--json").out)
    assert (told["forgotten"], told["folders_removed"]) == (2, 3)
    assert folders(path) == {ids["waits"], ids["fresh"]}
    assert json.loads(grami("check", "--json").out)["states"] == {"CANCELLED": 2, "QUEUED": 1}
    plain = grami("gc", "--results", "1s", "--keys", "2d")
    assert plain.err == "forgot results or all of 2 jobs, and removed 1 folders\n"
    assert folders(path) == {ids["waits"]}


@pytest.mark.slow
def test_gc_takes_as_many_as_there_are(grami: Grami) -> None:
    path = Path(".grami")
    made(path, **{f"job{number}": 50 for number in range(1_101)})
    assert json.loads(grami("gc", "--json").out)["forgotten"] == 1_101
    assert folders(path) == set()
    assert json.loads(grami("check", "--json").out)["states"] == {}


def test_gc_waits_for_no_server_but_refuses_beside_one(grami: Grami) -> None:
    ids = made(Path(".grami"), ancient=40)
    server = StateDirectory(Path(".grami"))
    server.lock()
    try:
        ended = grami("gc")
    finally:
        server.release()
    assert ended.code == 1
    assert f"process {os.getpid()}" in ended.err
    assert folders(Path(".grami")) == set(ids.values())


@pytest.mark.parametrize("option", ["--results", "--keys"])
def test_a_time_that_is_none_is_refused(option: str, grami: Grami) -> None:
    ended = grami("gc", option, "week")
    assert (ended.code, "'week' is not a time such as 90" in ended.words) == (2, True)


@pytest.mark.parametrize(
    ("command", "example"),
    [("check", "grami state check"), ("backup", "grami state backup /backups"), ("gc", "grami state gc --results 1d")],
)
def test_the_help_shows_an_example(command: str, example: str, grami: Grami) -> None:
    ended = grami(command, "--help")
    assert (ended.code, f"For example: {example}" in ended.words) == (0, True)
