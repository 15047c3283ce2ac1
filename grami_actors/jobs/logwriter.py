"""The log of an attempt inside: the segments of the shim, written from any thread. Floor 12."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from grami_actors.jobs.shim.segments import Log


class LogWriter(Log):
    """One log.

    Args:
        folder: for the files; made when there is something to write.
        cap: bytes that are kept at most.
    """

    def __init__(self, folder: Path, cap: int) -> None:
        super().__init__(str(folder), cap)
        self._lock = threading.RLock()  # a note of what was dropped is written while something is
        self._closed = False

    def write(self, data: bytes) -> None:
        """Add to the output; after :meth:`close` it is ignored."""
        with self._lock:
            if not self._closed:
                super().write(data)

    def _open(self) -> None:
        os.makedirs(self._folder, mode=0o700, exist_ok=True)  # noqa: PTH103 - a text already
        super()._open()

    def close(self) -> None:
        """Nothing more is written."""
        with self._lock:
            self._closed = True
            self._close()
