"""The output of a job, in files named by where in the output they begin. Floor 12.

Rule 1: of more than ``cap`` bytes the first half and the last are kept; nothing is written twice.
Rule 2: what is missing between the end of a segment and the name of the next one was dropped.
Rule 3: a disk that is full drops output, and says so in the log when there is space; it never stops the job.
"""

from __future__ import annotations

import os

from grami_actors.jobs.shim.lean import suppress

LONGEST_SEGMENT = 1024 * 1024
"""Bytes of one file at most; an eighth of the cap if that is less."""


class Log:
    """Writes the segments.

    Args:
        folder: where they are.
        cap: bytes that are kept at most.

    Attributes:
        end: bytes of output so far, with those that were dropped.
    """

    def __init__(self, folder: str, cap: int) -> None:
        self.end = 0
        self._folder = folder
        self._size = max(1, min(LONGEST_SEGMENT, cap // 8))
        self._first = cap // 2 // self._size
        self._last = cap // self._size - self._first
        self._head = 0
        self._tail: list[str] = []
        self._fd = -1
        self._room = 0
        self._lost = 0
        self._why = ""

    def write(self, data: bytes) -> None:
        """Add output. Raises nothing: what cannot be written is dropped."""
        rest = memoryview(data)
        kept = self._last * self._size
        if self._head >= self._first and len(rest) > self._room + kept:
            # It would be written only to be removed at once.
            self._close()
            self.end += len(rest) - kept
            rest = rest[len(rest) - kept :]
        while rest:
            try:
                rest = rest[self._write(rest) :]
            except OSError as error:
                self._close()
                self._why = error.strerror or str(error)
                self._lost += len(rest)
                self.end += len(rest)
                return
            if self._lost:
                lost, self._lost = self._lost, 0
                self.note(f"{lost} bytes of output were dropped: {self._why}")

    def note(self, text: str) -> None:
        """Add a line of the shim's own."""
        self.write(f"[grami] {text}\n".encode(errors="replace"))

    def tail(self, most: int) -> bytes:
        """The last bytes that were written, without a hole in them."""
        found = b""
        for name in sorted(os.listdir(self._folder), reverse=True):
            if not name.startswith("log."):
                continue
            begin = int(name[4:])
            with suppress(OSError), open(f"{self._folder}/{name}", "rb") as file:
                content = file.read()
                if begin + len(content) + len(found) != self.end:
                    break
                found = content + found
            if len(found) >= most:
                break
        return found[-most:]

    def _write(self, data: memoryview) -> int:
        if self._room == 0:
            self._open()
        count = os.write(self._fd, data[: self._room])
        self._room -= count
        self.end += count
        return count

    def _open(self) -> None:
        self._close()
        while len(self._tail) >= self._last:
            with suppress(FileNotFoundError):
                os.unlink(self._tail.pop(0))
        path = f"{self._folder}/log.{self.end:012d}"
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._room = self._size
        if self._head < self._first:
            self._head += 1
        else:
            self._tail.append(path)

    def _close(self) -> None:
        self._room = 0
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
