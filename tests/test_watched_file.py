"""A file that is read again when it changes: what is seen when, and what is not lost."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from grami_actors.errors import ConfigError
from grami_actors.watched_file import LOOK_EVERY, WatchedFile, identity, replace_file


def number(data: bytes) -> int:
    try:
        return int(data)
    except ValueError:
        raise ConfigError("this is not a number") from None


def replace(path: Path, data: bytes) -> None:
    other = path.with_name("other")
    other.write_bytes(data)
    other.replace(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"1")
    return path


def test_a_change_is_seen_at_the_next_look_and_looks_are_rare(path: Path) -> None:
    file = WatchedFile(path, number)
    assert file.content(100.0) == 1
    replace(path, b"2")
    assert file.content(100.0 + LOOK_EVERY * 0.9) == 1
    assert file.content(100.0 + LOOK_EVERY) == 2


def test_a_change_before_the_first_look_is_seen(path: Path) -> None:
    file = WatchedFile(path, number)
    replace(path, b"2")
    assert file.content(0.0) == 2


def test_a_file_that_is_written_in_place_is_read_again(path: Path) -> None:
    file = WatchedFile(path, number)
    path.write_bytes(b"22")
    assert file.content(0.0) == 22


def test_another_file_of_the_same_size_and_time_is_another_file(path: Path) -> None:
    file = WatchedFile(path, number)
    other = path.with_name("other")
    other.write_bytes(b"2")
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    os.utime(other, ns=times)
    other.replace(path)
    assert file.content(0.0) == 2


def test_a_link_that_is_turned_to_another_file_is_followed(tmp_path: Path) -> None:
    for name in ("1", "2"):
        (tmp_path / name).write_text(name)
    link = tmp_path / "link"
    link.symlink_to("1")
    file = WatchedFile(link, number)
    assert file.content(0.0) == 1
    (tmp_path / "turned").symlink_to("2")
    (tmp_path / "turned").replace(link)
    assert file.content(9.0) == 2


def test_a_clock_that_is_set_back_does_not_stop_the_looking(path: Path) -> None:
    file = WatchedFile(path, number)
    assert file.content(1_000_000.0) == 1
    replace(path, b"2")
    assert file.content(5.0) == 2


def test_a_file_that_did_not_change_is_not_read_again(path: Path) -> None:
    read: list[bytes] = []
    file = WatchedFile(path, read.append)
    for now in range(10):
        file.content(float(now))
    assert read == [b"1"]


def test_a_broken_file_keeps_what_was_read_last_and_is_told_of_once(path: Path) -> None:
    told: list[str] = []
    file = WatchedFile(path, number, tell=told.append)
    replace(path, b"x")
    assert [file.content(float(now)) for now in range(5)] == [1] * 5
    assert told == ["this is not a number; what it said before stays in force"]
    replace(path, b"3")
    assert file.content(9.0) == 3
    path.unlink()
    assert file.content(10.0) == 3
    assert "No such file" in told[1]
    assert str(path) in told[1]
    assert len(told) == 2


def test_a_broken_file_keeps_what_was_read_last_also_where_nobody_is_told(path: Path) -> None:
    file = WatchedFile(path, number)
    replace(path, b"x")
    assert file.content(0.0) == 1


def test_a_file_that_cannot_be_used_at_the_start_is_an_error(path: Path, tmp_path: Path) -> None:
    path.write_bytes(b"x")
    with pytest.raises(ConfigError, match="not a number"):
        WatchedFile(path, number)
    with pytest.raises(ConfigError, match="none: No such file"):
        WatchedFile(tmp_path / "none", number)
    with pytest.raises(ConfigError, match="directory"):
        WatchedFile(tmp_path, number, missing=b"0")


def test_a_missing_file_may_stand_for_something(path: Path) -> None:
    file = WatchedFile(path, number, missing=b"0")
    assert file.content(0.0) == 1
    path.unlink()
    assert file.content(1.0) == 0
    path.write_bytes(b"5")
    assert file.content(2.0) == 5


def test_a_file_of_which_only_the_mode_was_changed_is_read_again(path: Path) -> None:
    seen = identity(path)
    while identity(path) == seen:  # the clock of a file system is coarse
        path.chmod(0o600)
    path.unlink()
    assert identity(path) == ()


def test_a_file_is_replaced_as_a_whole_and_for_its_owner_only(path: Path) -> None:
    path.chmod(0o644)
    with path.open("rb") as before:
        replace_file(path, b"2")
        assert (before.read(), path.read_bytes()) == (b"1", b"2")
    assert os.name != "posix" or path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_what_cannot_take_the_place_of_a_file_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        replace_file(tmp_path / "folder", b"2")
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]
