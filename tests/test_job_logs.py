"""Output read in pieces is the output; what is missing is told to the byte. Artifacts are plain files."""

from __future__ import annotations

import itertools
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grami_actors.job_requests import Piece
from grami_actors.jobs.logs import read_artifact, read_log, size_of
from grami_actors.jobs.names import check_name
from grami_actors.jobs.shim.segments import Log


def store(folder: Path, data: bytes, cuts: list[int], dropped: set[int]) -> bytearray:
    """Write segments with ends at ``cuts``, but for some; returns the output with zeros where it is missing."""
    kept = bytearray(data)
    places = sorted({0, *(cut % len(data) for cut in cuts), len(data)}) if data else []
    for number, (start, end) in enumerate(itertools.pairwise(places)):
        if number in dropped and end < len(data):
            kept[start:end] = bytes(end - start)
        else:
            (folder / f"log.{start:012d}").write_bytes(data[start:end])
    return kept


def read_all(folder: Path, limits: list[int], *, over: bool) -> tuple[list[Piece], int]:
    pieces, offset = [], 0
    while True:
        piece = read_log(folder, offset, limits[len(pieces) % len(limits)], over=over)
        pieces.append(piece)
        offset = piece.next_offset
        if piece.end or not piece.data:
            return pieces, offset


text = st.text(st.sampled_from("aé→𝄞\n"), max_size=200).map(str.encode)
limits = st.lists(st.integers(1, 70), min_size=1, max_size=5)
numbers = st.lists(st.integers(0, 10_000), max_size=8)


@given(st.one_of(st.binary(max_size=300), text), numbers, limits, st.booleans())
def test_reading_in_any_pieces_gives_exactly_what_was_written(
    data: bytes, cuts: list[int], sizes: list[int], over: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store(Path(folder), data, cuts, set())
        pieces, end = read_all(Path(folder), sizes, over=over)
        assert b"".join(each.data for each in pieces) == data
        assert end == len(data) == size_of(Path(folder))
        assert all(each.dropped == 0 and each.size == len(data) for each in pieces)
        assert [each.end for each in pieces] == [False] * (len(pieces) - 1) + [over]
        assert all(len(each.data) <= sizes[number % len(sizes)] for number, each in enumerate(pieces))


@given(
    st.binary(min_size=1, max_size=300).map(lambda data: data.replace(b"\0", b"\1")),
    numbers,
    st.sets(st.integers(0, 8)),
    limits,
)
def test_every_hole_is_told_exactly(data: bytes, cuts: list[int], dropped: set[int], sizes: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        kept = store(Path(folder), data, cuts, dropped)
        pieces, end = read_all(Path(folder), sizes, over=True)
        told = b"".join(bytes(each.dropped) + each.data for each in pieces)
        assert told == kept
        assert end == len(data)


@given(text, limits)
def test_a_piece_ends_within_a_character_only_if_it_would_be_empty_otherwise(data: bytes, sizes: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store(Path(folder), data, [], set())
        for over in (True, False):
            pieces, _ = read_all(Path(folder), [size + 3 for size in sizes], over=over)
            for each in pieces:
                each.data.decode()


@given(st.lists(st.binary(max_size=300), max_size=12), st.integers(64, 600), limits)
def test_what_the_shim_keeps_of_too_much_output_is_read_as_it_kept_it(
    writes: list[bytes], cap: int, sizes: list[int]
) -> None:
    whole = b"".join(writes)
    with tempfile.TemporaryDirectory() as folder:
        log = Log(folder, cap)
        for each in writes:
            log.write(each)
        log._close()
        pieces, end = read_all(Path(folder), sizes, over=True)
        assert end == len(whole)
        kept = 0
        for each in pieces:
            assert each.data == whole[each.offset : each.next_offset]
            kept += len(each.data)
        assert kept + sum(each.dropped for each in pieces) == len(whole)
        assert kept == len(whole) if len(whole) <= cap // 2 else kept <= cap


def test_what_is_not_there_yet_is_no_end(tmp_path: Path) -> None:
    assert read_log(tmp_path / "none", 0, 10, over=False) == Piece(b"", 0, 0, 0, end=False)
    assert read_log(tmp_path / "none", 0, 10, over=True) == Piece(b"", 0, 0, 0, end=True)
    (tmp_path / "log.000000000000").write_bytes("aé".encode()[:2])
    assert read_log(tmp_path, 0, 10, over=False).data == b"a", "the rest of the character is still to come"
    assert read_log(tmp_path, 1, 10, over=False).data == b"\xc3"
    assert read_log(tmp_path, 0, 10, over=True) == Piece(b"a\xc3", 0, 0, 2, end=True)
    assert read_log(tmp_path, 99, 10, over=True) == Piece(b"", 99, 0, 2, end=True)
    assert read_log(tmp_path, -5, 1, over=True).data == b"a"


def test_a_segment_that_goes_while_it_is_read_becomes_a_hole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "log.000000000000").write_bytes(b"gone")
    (tmp_path / "log.000000000004").write_bytes(b"here")
    real = os.open

    def opened(path: str, *rest: int) -> int:
        (tmp_path / "log.000000000000").unlink(missing_ok=True)
        return real(path, *rest)

    monkeypatch.setattr(os, "open", opened)
    assert read_log(tmp_path, 0, 100, over=True) == Piece(b"here", 4, 4, 8, end=True)


# --- artifacts ---


def test_an_artifact_is_read_in_pieces(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"0123456789")
    assert read_artifact(tmp_path, "a.png", 0, 4) == Piece(b"0123", 0, 0, 10, end=False)
    assert read_artifact(tmp_path, "a.png", 4, 100) == Piece(b"456789", 4, 0, 10, end=True)
    assert read_artifact(tmp_path, "a.png", 50, 100) == Piece(b"", 50, 0, 10, end=True)


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "/etc/passwd", "a\0b", "a\nb", "é" * 101])
def test_a_name_that_is_no_plain_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="file that is kept"):
        check_name(name)
    with pytest.raises(ValueError, match="file that is kept"):
        read_artifact(tmp_path, name, 0, 1)


def test_what_is_no_plain_file_is_not_there(tmp_path: Path) -> None:
    folder = tmp_path / "artifacts"
    folder.mkdir()
    (tmp_path / "secret").write_text("secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    (tmp_path / "other").symlink_to(folder)
    (folder / "file").write_text("x")
    for place, name in (
        (folder, "link"),
        (folder, "folder"),
        (folder, "pipe"),
        (folder, "none"),
        (tmp_path / "other", "file"),
    ):
        with pytest.raises(FileNotFoundError):
            read_artifact(place, name, 0, 100)
    assert read_artifact(folder, "file", 0, 100).data == b"x"
