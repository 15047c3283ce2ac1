"""The state directory: made, locked, looked at, copied and cleaned."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from grami_actors.errors import ConfigError
from grami_actors.job import Job, Order, Step
from grami_actors.jobs import sqlite_schema
from grami_actors.jobs.sqlite import SqliteStore
from grami_actors.jobs.state_dir import STRAY_AFTER, Keep, StateDirectory
from grami_actors.jobs.store import Change


@pytest.fixture
def directory(tmp_path: Path) -> StateDirectory:
    directory = StateDirectory(tmp_path / "deep" / "state")
    directory.make()
    return directory


def store_of(directory: StateDirectory) -> SqliteStore:
    store = SqliteStore(directory.database)
    store.open()
    return store


def add(store: SqliteStore, name: str, *steps: Step, at: float = 1.0) -> None:
    with store.batch(durable=True):
        order = Order(idempotency_key=name)
        store.add(
            Job(
                id=name,
                tool="t",
                arguments={"a": 1},
                owner="",
                digest="",
                created_at=at,
                due_at=at,
                order=order,
                runner="outside",
            )
        )
        for step in steps:
            store.change(Change(job=name, step=step, at=at))


def put(directory: StateDirectory, job: str, *, age: float = 0.0, now: float = 1e6) -> Path:
    folder = directory.jobs / job / "1"
    folder.mkdir(parents=True)
    (folder / "log.000000000000").write_bytes(b"output")
    os.utime(directory.jobs / job, (now - age, now - age))
    return folder


# --- made ---


def test_it_is_made_for_its_owner_only(directory: StateDirectory) -> None:
    for folder in (directory.path, directory.jobs):
        assert folder.stat().st_mode & 0o777 == 0o700
    directory.make()


def test_a_folder_that_is_open_to_others_is_closed_if_it_is_empty_or_ours_and_else_refused(tmp_path: Path) -> None:
    directory = StateDirectory(tmp_path / "state")
    directory.path.mkdir()
    directory.path.chmod(0o755)
    directory.make()
    assert directory.path.stat().st_mode & 0o777 == 0o700
    store_of(directory).close()
    directory.path.chmod(0o777)
    directory.make()
    assert directory.path.stat().st_mode & 0o777 == 0o700
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o755)
    (home / "letters").touch()
    with pytest.raises(ConfigError, match="open to others"):
        StateDirectory(home).make()
    assert home.stat().st_mode & 0o777 == 0o755


def test_what_cannot_be_a_folder_is_refused_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/state")):
        with pytest.raises(ConfigError, match="cannot be the state directory"):
            StateDirectory(path).make()
    with pytest.raises(ConfigError, match="cannot be written"):
        StateDirectory(Path("/proc")).lock()


# --- locked ---

HOLDER = """
import sys
from pathlib import Path
from grami_actors.jobs.state_dir import StateDirectory
StateDirectory(Path(sys.argv[1])).lock()
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_a_second_server_is_refused_with_the_pid_of_the_first_until_that_is_gone(directory: StateDirectory) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(ConfigError, match=rf"process {holder.pid}\b.*--state-dir"):
            directory.lock()
        holder.kill()
    directory.lock()
    with pytest.raises(ConfigError, match=f"process {os.getpid()}"):
        StateDirectory(directory.path).lock()
    directory.release()
    directory.release()
    other = StateDirectory(directory.path)
    other.lock()
    other.release()


def test_the_database_and_what_is_beside_it_are_for_their_owner_only(directory: StateDirectory, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = store_of(directory)
        add(store, "job_1")
        directory.backup(tmp_path / "copy")
    finally:
        os.umask(before)
    files = [*directory.path.glob("jobs.db*"), tmp_path / "copy" / "jobs.db"]
    assert len(files) > 2
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    store.close()


# --- looked at ---


def test_a_check_while_a_server_runs_says_what_is_there_and_what_is_not(directory: StateDirectory) -> None:
    store = store_of(directory)
    add(store, "job_run", Step.CLAIM, Step.STARTED)
    add(store, "job_gone", Step.CLAIM, Step.STARTED)
    add(store, "job_wait")
    put(directory, "job_run")
    put(directory, "job_stray")
    found = directory.check()
    assert (found.schema, found.damages) == (len(sqlite_schema.MIGRATIONS), ())
    assert found.states == {"QUEUED": 1, "RUNNING": 2}
    assert (found.missing, found.strays, found.sound) == (("job_gone",), ("job_stray",), False)
    assert found.bytes > 4096
    put(directory, "job_gone")
    assert directory.check().sound
    store.close()


def test_a_check_of_a_damaged_database_says_so(directory: StateDirectory) -> None:
    store_of(directory).close()
    with directory.database.open("r+b") as file:
        file.write(b"nonsense" * 20)
    found = directory.check()
    assert found.damages
    assert not found.sound


def test_a_check_of_nothing_and_of_a_newer_version_is_refused(directory: StateDirectory) -> None:
    with pytest.raises(ConfigError, match="no state directory"):
        directory.check()
    store_of(directory).close()
    db = sqlite_schema.connect(directory.database)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(ConfigError, match="newer version"):
        directory.check()


# --- brought to a later version ---


def test_a_directory_of_an_earlier_version_is_brought_to_this_one_with_all_its_jobs(
    directory: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_of(directory)
    add(store, "job_old", Step.CLAIM, Step.STARTED)
    store.close()
    step = ("ALTER TABLE jobs ADD COLUMN mood TEXT NOT NULL DEFAULT 'fine'", "CREATE INDEX moods ON jobs (mood)")
    monkeypatch.setattr(sqlite_schema, "MIGRATIONS", (*sqlite_schema.MIGRATIONS, step))
    store = store_of(directory)
    assert [job.id for job in store.open_jobs()] == ["job_old"]
    add(store, "job_new")
    store.close()
    assert directory.check().schema == len(sqlite_schema.MIGRATIONS)
    db = sqlite_schema.connect(directory.database, writes=False)
    assert db.execute("SELECT id, mood FROM jobs ORDER BY number").fetchall() == [
        ("job_old", "fine"),
        ("job_new", "fine"),
    ]
    db.close()


def test_a_step_to_a_later_version_that_fails_leaves_the_earlier_one_as_it_was(
    directory: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_of(directory)
    add(store, "job_old")
    store.close()
    known = sqlite_schema.MIGRATIONS
    broken = ("ALTER TABLE jobs ADD COLUMN mood TEXT", "ALTER TABLE nonesuch ADD COLUMN mood TEXT")
    monkeypatch.setattr(sqlite_schema, "MIGRATIONS", (*known, broken))
    with pytest.raises(ConfigError, match="nonesuch"):
        store_of(directory)
    monkeypatch.setattr(sqlite_schema, "MIGRATIONS", known)
    assert directory.check().sound
    store = store_of(directory)
    assert [job.id for job in store.open_jobs()] == ["job_old"]
    store.close()


# --- copied ---


def test_a_backup_while_a_server_runs_can_be_used_in_its_place(directory: StateDirectory, tmp_path: Path) -> None:
    store = store_of(directory)
    add(store, "job_a", Step.CLAIM, Step.STARTED)
    folder = put(directory, "job_a")
    (folder / "shim.lock").touch()
    os.mkfifo(folder / "poke")
    os.mkfifo(directory.wake)
    (tmp_path / "copy").mkdir(mode=0o755)
    assert directory.backup(tmp_path / "copy") > 4096
    assert stat.S_IMODE((tmp_path / "copy").stat().st_mode) == 0o700
    add(store, "job_b")
    copy = StateDirectory(tmp_path / "copy")
    assert sorted(each.name for each in (copy.jobs / "job_a" / "1").iterdir()) == ["log.000000000000"]
    assert copy.check().sound
    assert not copy.wake.exists()
    copy.make()
    other = store_of(copy)
    assert [each.id for each in other.open_jobs()] == ["job_a"]
    assert other.get("job_a") == store.get("job_a")
    other.close()
    with pytest.raises(ConfigError, match="not empty"):
        directory.backup(tmp_path / "copy")
    with pytest.raises(ConfigError, match="cannot be copied"):
        directory.backup(Path("/proc/copy"))
    store.close()


def test_nothing_is_backed_up_without_a_database(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no state directory"):
        StateDirectory(tmp_path / "none").backup(tmp_path / "copy")


# --- cleaned ---


def test_what_is_over_goes_and_what_lives_or_may_be_about_to_stays(directory: StateDirectory) -> None:
    now, keep = 1e6, Keep(results=100.0, keys=1000.0)
    store = store_of(directory)
    add(store, "job_live", Step.CLAIM, Step.STARTED, at=1.0)
    add(store, "job_old", Step.CLAIM, Step.SUCCEED, at=now - 200)
    add(store, "job_oldest", Step.CLAIM, Step.FAIL, at=now - 2000)
    add(store, "job_new", Step.CLAIM, Step.FAIL, at=now - 50)
    for job in ("job_live", "job_old", "job_oldest", "job_new", "stray_old"):
        put(directory, job, age=STRAY_AFTER + 1)
    put(directory, "stray_new", age=STRAY_AFTER - 1)
    assert sorted(directory.gc(store, now, keep)) == ["job_old", "job_oldest", "stray_old"]
    assert sorted(each.name for each in directory.jobs.iterdir()) == ["job_live", "job_new", "stray_new"]
    old = store.get("job_old")
    assert old is not None
    assert old.expired
    assert store.get("job_oldest") is None
    assert store.events("job_live", 0) != []
    assert directory.gc(store, now, keep) == []
    store.close()


def test_a_folder_that_was_left_by_a_crash_goes_the_next_time(directory: StateDirectory) -> None:
    now = 1e6
    store = store_of(directory)
    add(store, "job_a", Step.CLAIM, Step.SUCCEED, at=1.0)
    with store.batch(durable=True):
        store.expire(["job_a"])
    put(directory, "job_a", age=STRAY_AFTER + 1)
    assert directory.gc(store, now, Keep(keys=1e9)) == ["job_a"]
    store.close()
