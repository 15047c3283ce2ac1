"""The job's channel: JSON lines both ways over one descriptor. Floor 12.

Whatever the job sends or does not read, neither it nor the shim waits for the other.
"""

from __future__ import annotations

import os
import stat

from grami_actors.jobs.names import check_name
from grami_actors.jobs.shim.files import encoded
from grami_actors.jobs.shim.lean import loads, suppress

TYPE_CHECKING = False  # importing typing takes a tenth of the shim's start
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

LONGEST_LINE = 256 * 1024
"""Bytes of a line; the line of a result may be as long as the result may be."""

MOST_UNREAD = 4 * 1024 * 1024
"""Bytes that wait for a job that does not read them; more are dropped."""

LONGEST_PATH = 4096
"""Characters of the path of a file that is to be kept."""

_WRAPPING = b'{"type":"result","data":}'
"""A result's line without the result; others may have spaces in it."""


class Nonsense(ValueError):
    """A line that says nothing; the text says why."""


class TooLong(Nonsense):
    """A line that is too long. ``size`` is its length, ``result`` whether it is that of a result."""

    def __init__(self, size: int, *, result: bool) -> None:
        super().__init__(f"it has {size} bytes, at most {LONGEST_LINE}")
        self.size = size
        self.result = result


class Channel:
    """The shim's end.

    Args:
        fd: of the socket; does not block.
        result: bytes that a result may have.
    """

    def __init__(self, fd: int, result: int) -> None:
        self.fd = fd
        self._longest = max(LONGEST_LINE, result + 2 * len(_WRAPPING))
        self._begun = bytearray()
        self._skipped = 0
        self._unsent = bytearray()

    def lines(self) -> Iterator[dict[str, Any] | Nonsense]:
        """What can be read now. Raises BlockingIOError: nothing is there; EOFError, OSError: it is closed."""
        data = os.read(self.fd, 65536)
        if not data:
            raise EOFError
        *whole, rest = data.split(b"\n")
        for piece in whole:
            self._take(piece)
            yield self._line()
        self._take(rest)

    def _take(self, piece: bytes) -> None:
        if self._skipped or len(self._begun) + len(piece) > self._longest:
            # Its beginning is enough to say what it was.
            self._skipped += len(self._begun) * (not self._skipped) + len(piece)
            self._begun += piece[: max(0, 64 - len(self._begun))]
            del self._begun[64:]
        else:
            self._begun += piece

    def _line(self) -> dict[str, Any] | Nonsense:
        line, skipped = bytes(self._begun), self._skipped
        self._begun.clear()
        self._skipped = 0
        if skipped:
            result = line.replace(b" ", b"").startswith(b'{"type":"result"')
            return TooLong(skipped - len(_WRAPPING) if result else skipped, result=result)
        try:
            found = loads(line)
        except (ValueError, RecursionError):
            return Nonsense("it is not JSON")
        if not isinstance(found, dict) or not isinstance(found.get("type"), str):
            return Nonsense("it is no object with a type")
        if len(line) > LONGEST_LINE and found["type"] != "result":
            return TooLong(len(line), result=False)
        return found

    def send(self, line: dict[str, Any]) -> None:
        """Say something to the job. Raises nothing."""
        data = encoded(line) + b"\n"
        if len(self._unsent) + len(data) <= MOST_UNREAD:
            self._unsent += data
            self.push()

    def push(self) -> None:
        """Send what still waits."""
        try:
            while self._unsent:
                del self._unsent[: os.write(self.fd, self._unsent)]
        except BlockingIOError:
            pass
        except OSError:  # nobody has the other end any more
            self._unsent.clear()

    @property
    def unsent(self) -> bool:
        """Whether something waits for the job to read."""
        return bool(self._unsent)


class Copy:
    """One file that the job wants to be kept, on its way. Nothing is open before its turn comes.

    Args:
        source: its path.
        folder: where it is kept; made if it is not there.
        name: under which.

    Raises:
        ValueError: the name is no plain file name, or the path longer than any.
    """

    def __init__(self, source: str, folder: str, name: str) -> None:
        self.name = check_name(name)
        if len(source) > LONGEST_PATH:
            raise ValueError(f"the path of {name} has {len(source)} characters, at most {LONGEST_PATH}")
        self.size = 0
        self._source = source
        self._folder = folder
        self._path = f"{folder}/{name}"
        self._fresh = f"{folder}/.{name}.tmp"
        self._from = self._to = -1

    def go_on(self) -> bool:
        """Copy some more of it; says whether it is all there.

        Raises OSError: it cannot be read, or the copy not be written; ValueError: it is no file. Then nothing is left.
        """
        try:
            if self._from < 0 and self._is_there():
                self._close()
                return True
            count = os.sendfile(self._to, self._from, None, 4 * 1024 * 1024)
            self.size += count
            if count:
                return False
            os.fsync(self._to)
            os.rename(self._fresh, self._path)
        except (OSError, ValueError):
            if self._to >= 0:
                with suppress(OSError):
                    os.unlink(self._fresh)
            self._close()
            raise
        self._close()
        return True

    def _is_there(self) -> bool:
        """Open what is to be copied; says whether it is where it is kept already."""
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        # A FIFO without a writer would have the shim wait.
        self._from = os.open(self._source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        status = os.fstat(self._from)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{self._source[:200]} is no file")
        if os.path.realpath(self._source) == os.path.realpath(self._path):
            self.size = status.st_size
            return True
        self._to = os.open(self._fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        return False

    def _close(self) -> None:
        for fd in (self._from, self._to):
            if fd >= 0:
                os.close(fd)
