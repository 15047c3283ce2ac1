"""What a job said about itself, line by line in a file that the server reads. Floor 12.

Rule 1: a line is there whole, or not at all.
Rule 2: at most :data:`MOST_PROGRESS` lines of progress a second; of more the last one is kept, and none is moved past a
        line of another kind.
Rule 3: while the disk is full, lines wait; of more than :data:`MOST_WAITING` bytes the later ones are dropped and
        counted.
"""

from __future__ import annotations

import os
import time

from grami_actors.jobs.shim.files import encoded, write_all

TYPE_CHECKING = False  # importing typing takes a tenth of the shim's start
if TYPE_CHECKING:
    from typing import Any

MOST_PROGRESS = 1_000
MOST_WAITING = 4 * 1024 * 1024


class Record:
    """Writes the file.

    Args:
        path: of the file.
    """

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._lines: list[bytes] = []
        self._bytes = 0
        self._held: bytes | None = None
        self._window = 0.0
        self._used = 0
        self._dropped = 0
        self.failed = False

    @property
    def waiting(self) -> bool:
        """Whether something is still to be written."""
        return bool(self._lines or self._held or self._dropped)

    def add(self, line: dict[str, Any], now: float) -> None:
        """Say something. Raises ValueError: it is not JSON."""
        data = encoded(line | {"at": time.time()}) + b"\n"
        if line["type"] != "progress":
            self._release()
            self._append(data)
            return
        if now - self._window >= 1.0:
            self._window, self._used = now, 0
        if self._used < MOST_PROGRESS:
            self._held = None
            self._used += 1
            self._append(data)
        else:
            self._held = data

    def flush(self, now: float, *, all_of_it: bool = False) -> float | None:
        """Write what may be written; says when to come again, or ``None``. Raises nothing."""
        if self._held is not None and (all_of_it or now - self._window >= 1.0):
            self._window, self._used = now, 1
            self._release()
        data = b"".join(self._lines)
        if self._dropped:
            data += encoded({"type": "dropped", "lines": self._dropped, "at": time.time()}) + b"\n"
        if data and not self._write(data):
            return now + 0.5
        return None if self._held is None else self._window + 1.0

    def _release(self) -> None:
        if self._held is not None:
            held, self._held = self._held, None
            self._append(held)

    def _append(self, data: bytes) -> None:
        if self._bytes + len(data) > MOST_WAITING:
            self._dropped += 1
        else:
            self._lines.append(data)
            self._bytes += len(data)

    def _write(self, data: bytes) -> bool:
        size = os.fstat(self._fd).st_size
        try:
            write_all(self._fd, data)
        except OSError:
            os.ftruncate(self._fd, size)
            self.failed = True
            return False
        self._lines, self._bytes, self._dropped, self.failed = [], 0, 0, False
        return True
