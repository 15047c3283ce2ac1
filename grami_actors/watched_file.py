"""Small files: read again when they change, and replaced as a whole. Floor 1.

Rule 1: a file that cannot be used is an error at the start; later, what was read last stays in force.
Rule 2: the file is looked at when it is asked for, and not more often than every half second.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from grami_actors.errors import ConfigError

T = TypeVar("T")

LOOK_EVERY = 0.5
"""Seconds between two looks at the file."""

Tell = Callable[[str], None]
"""Is told, once for each change, that a changed file cannot be used, and why."""


class WatchedFile(Generic[T]):
    """What a file says, also after it was changed or replaced.

    Args:
        path: the file; a symbolic link is followed at each look.
        parse: makes sense of its bytes; raises ConfigError.
        missing: what stands for a file that is not there; ``None`` if it has to be.
        tell: is told of a change that cannot be used.

    Raises:
        ConfigError: the file cannot be read, or ``parse`` raised it.
    """

    def __init__(
        self,
        path: Path,
        parse: Callable[[bytes], T],
        *,
        missing: bytes | None = None,
        tell: Tell | None = None,
    ) -> None:
        self.path = path
        self._parse = parse
        self._missing = missing
        self._tell = tell
        self._looked_at: float | None = None
        self._seen = identity(path)
        self._content = self.read()

    def content(self, now: float) -> T:
        """What the file says. Cheap; ``now`` is in seconds, from any start."""
        # A clock that was set back must not stop the looking.
        if self._looked_at is None or not 0 <= now - self._looked_at < LOOK_EVERY:
            self._looked_at = now
            seen = identity(self.path)
            if seen != self._seen:
                self._seen = seen
                self._take_change()
        return self._content

    def read(self) -> T:
        """What the file says at this moment. Raises ConfigError."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError as error:
            if self._missing is None:
                raise ConfigError(f"cannot read {self.path}: {error.strerror}") from error
            data = self._missing
        except OSError as error:
            raise ConfigError(f"cannot read {self.path}: {error.strerror}") from error
        return self._parse(data)

    def _take_change(self) -> None:
        try:
            self._content = self.read()
        except ConfigError as error:
            if self._tell is not None:
                self._tell(f"{error.message}; what it said before stays in force")


def identity(path: Path) -> tuple[int, ...]:
    """What changes when a file does. To be taken before reading: a change in between is seen at the next look."""
    try:
        found = path.stat()
    except OSError:
        return ()
    # The time of the last change of owner or mode too: that may be what makes a file readable.
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def replace_file(path: Path, data: bytes) -> None:
    """Write a file that only its owner may read. It appears whole or not at all, also after a power failure.

    Raises:
        OSError: it cannot be written; the one that was there is as it was.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
