"""Writes what an attempt inside says into log files with a cap: the beginning is kept, and the end. Floor 12."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

PARTS = 8
"""Files that a full log has, at most: half of them hold its beginning, and half its end."""


class LogWriter:
    """One log, in files ``log.OFFSET`` that are named by where they begin in the whole output.

    What is between the first half of the cap and the last is removed, so that whoever reads finds a hole. What the disk
    does not take is such a hole, too: a job does not fail for it. From any thread.

    Args:
        folder: for the files; made when there is something to write.
        cap: bytes that are kept at most.

    Attributes:
        size: bytes of the whole output so far, with those that are not kept.
    """

    def __init__(self, folder: Path, cap: int) -> None:
        self.size = 0
        self._folder = folder
        self._part = max(1, cap // PARTS)
        self._lock = threading.Lock()
        self._file: int | None = None
        self._begin = 0
        self._tail: list[Path] = []
        self._closed = False

    def write(self, data: bytes) -> None:
        """Add to the output; after :meth:`close` it is ignored."""
        with self._lock:
            if self._closed:
                return
            left = memoryview(data)
            while left:
                left = left[self._write_part(left) :]

    def _write_part(self, data: memoryview) -> int:
        """Put as much as fits into the current file; returns how much of the output that was."""
        if self.size >= self._begin + self._part:
            self._end_part()
        piece = data[: self._begin + self._part - self.size] if self._file is not None else data[: self._part]
        try:
            written = os.write(self._begin_part() if self._file is None else self._file, piece)
        except OSError:
            written = 0
        self.size += len(piece)
        if written < len(piece):
            self._end_part()  # the hole is seen by where the next file begins
        return len(piece)

    def _begin_part(self) -> int:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"log.{self.size:012d}"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._begin = self.size
        if self.size >= self._part * (PARTS // 2):
            self._tail.append(path)
            if len(self._tail) > PARTS // 2:
                with contextlib.suppress(OSError):
                    self._tail.pop(0).unlink()
        return self._file

    def _end_part(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def close(self) -> None:
        """Nothing more is written."""
        with self._lock:
            self._closed = True
            self._end_part()
