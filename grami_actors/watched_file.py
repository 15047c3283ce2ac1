"""A small file that is read again when it changes. Floor 1.

Rule 1: a file that cannot be used is an error at the start; later, what was read last stays in force.
Rule 2: the file is looked at when it is asked for, and not more often than every half second.
"""

from __future__ import annotations

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
        self._seen = self._look()
        self._content = self.read()

    def content(self, now: float) -> T:
        """What the file says. Cheap; ``now`` is in seconds, from any start."""
        # A clock that was set back must not stop the looking.
        if self._looked_at is None or not 0 <= now - self._looked_at < LOOK_EVERY:
            self._looked_at = now
            seen = self._look()
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

    def _look(self) -> tuple[int, ...]:
        """What changes when the file does. Taken before reading: a change in between is seen at the next look."""
        try:
            found = self.path.stat()
        except OSError:
            return ()
        return found.st_ino, found.st_size, found.st_mtime_ns
