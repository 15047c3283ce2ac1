"""Reading what a job wrote: its output by offset, with the holes in it, and the files that it made. Floor 12.

Output lies in segments, ``log.000000000000``: files named by where in the whole output they begin. The shim removes
some in the middle when there is too much; what is missing between two segments was dropped.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

from grami_actors.job_requests import Piece
from grami_actors.jobs.names import check_name

_LENGTHS = (0xF0, 4), (0xE0, 3), (0xC0, 2), (0x80, 0), (0x00, 1)
"""Bytes of a character by its first byte, from the greatest down; 0 for one that is not the first."""

_SEGMENT = re.compile(r"log\.(\d{12,})")


class Segment(NamedTuple):
    """One file of a log."""

    path: str
    start: int
    end: int


def segments(folder: Path) -> list[Segment]:
    """The segments of the log in an attempt's folder, in order; none if there is no folder."""
    try:
        names = os.listdir(folder)  # noqa: PTH208 - plain text: each silent job is looked at every few seconds
    except FileNotFoundError:
        return []
    found = []
    # All names first: when a segment is there, the one before it grows no more.
    for start, name in sorted((int(match[1]), match[0]) for match in map(_SEGMENT.fullmatch, names) if match):
        path = f"{folder}/{name}"
        try:
            found.append(Segment(path, start, start + os.stat(path).st_size))  # noqa: PTH116 - as above
        except FileNotFoundError:
            continue  # it was dropped meanwhile
    return found


def size_of(folder: Path) -> int:
    """Bytes that were written to the log so far, with those that were dropped."""
    found = segments(folder)
    return found[-1].end if found else 0


def read_log(folder: Path, offset: int, limit: int, *, over: bool) -> Piece:
    """A part of the log in an attempt's folder.

    It does not end within a character of UTF-8, unless it would be empty otherwise.

    Args:
        folder: of the attempt.
        offset: where to begin, in bytes of all output.
        limit: bytes at most; no more are in memory.
        over: whether the attempt has ended, so that nothing will follow what is there.
    """
    offset, limit = max(0, offset), max(1, limit)
    while True:
        found = segments(folder)
        size = found[-1].end if found else 0
        later = [each for each in found if each.end > offset]
        if not later:
            return Piece(b"", offset, 0, size, end=over)
        start = max(offset, later[0].start)
        try:
            data = _contiguous(later, start, limit)
        except FileNotFoundError:
            continue  # its segment was dropped meanwhile: now there is a hole
        end = start + len(data)
        if not over or end < size:
            data = data[: len(data) - _begun(data)] or data
        return Piece(data, start, start - offset, size, end=over and start + len(data) >= size)


def _contiguous(found: list[Segment], start: int, limit: int) -> bytes:
    """Bytes from a place in the first segment up to the next hole. Raises FileNotFoundError: the first is gone."""
    data = b""
    for each in found:
        here = start + len(data)
        if each.start > here or len(data) == limit:
            break
        wanted = min(limit - len(data), each.end - here)
        try:
            part = _read(os.open(each.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), here - each.start, wanted)
        except FileNotFoundError:
            if not data:
                raise
            break
        data += part
        if len(part) < wanted:
            break
    return data


def _begun(data: bytes) -> int:
    """Bytes at the end that are the beginning of a character whose rest is missing (RFC 3629, section 3)."""
    for count, byte in enumerate(reversed(data[-3:]), 1):
        length = next(length for first, length in _LENGTHS if byte >= first)
        if length:
            return count if length > count else 0
    return 0


def read_artifact(folder: Path, name: str, offset: int, limit: int) -> Piece:
    """A part of a file that a job made.

    Args:
        folder: with the artifacts of the job.
        name: of the file.
        offset: where to begin, in bytes.
        limit: bytes at most.

    Raises:
        ValueError: it is no name for an artifact.
        FileNotFoundError: there is none with this name.
    """
    check_name(name)
    offset, limit = max(0, offset), max(1, limit)
    try:
        # Neither of them may lead to elsewhere: what is in there is the work of a job.
        inside = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(name, flags, dir_fd=inside)
        finally:
            os.close(inside)
    except OSError as error:
        raise FileNotFoundError(f"there is no artifact {name!r}") from error
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode):
        os.close(descriptor)
        raise FileNotFoundError(f"there is no artifact {name!r}")
    data = _read(descriptor, offset, limit)
    return Piece(data, offset, 0, facts.st_size, end=offset + len(data) >= facts.st_size)


def _read(descriptor: int, offset: int, limit: int) -> bytes:
    """Bytes from a place in an open file, and close it."""
    try:
        parts = []
        while limit > 0 and (part := os.pread(descriptor, limit, offset)):
            parts.append(part)
            offset += len(part)
            limit -= len(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)
