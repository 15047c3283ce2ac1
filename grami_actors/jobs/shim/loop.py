"""A loop of one thread: descriptors that can be read, and moments that come. Floor 12."""

from __future__ import annotations

import os
import select
import time

TYPE_CHECKING = False  # importing typing takes a tenth of the shim's start
if TYPE_CHECKING:
    from collections.abc import Callable

    Action = Callable[[], None]


LONGEST_WAIT = 3600.0
"""Seconds; poll(2) cannot wait for more than 24 days, and there is no harm in a look once an hour."""


class Loop:
    """Calls what is to be done when a descriptor can be read, or a moment of the monotonic clock has come."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._readers: dict[int, Action] = {}
        self._due: dict[Action, float] = {}

    def watch(self, fd: int, reader: Action) -> None:
        """Call the reader whenever there is something to read, or its end."""
        self._readers[fd] = reader
        self._poll.register(fd, select.POLLIN)

    def push(self, fd: int, *, wanted: bool) -> None:
        """Call its reader when the descriptor can be written, too; or no longer."""
        if fd in self._readers:
            self._poll.modify(fd, select.POLLIN | (select.POLLOUT if wanted else 0))

    def forget(self, fd: int) -> None:
        """Close a descriptor; twice is once."""
        if self._readers.pop(fd, None) is not None:
            self._poll.unregister(fd)
            os.close(fd)

    def at(self, moment: float, action: Action) -> None:
        """Do something then; an action that is to be done already is moved."""
        self._due[action] = moment

    def soon(self, seconds: float, action: Action) -> None:
        """The same, so many seconds from now."""
        self._due[action] = time.monotonic() + seconds

    def when(self, action: Action) -> float | None:
        """When it is to be done; ``None`` if it is not."""
        return self._due.get(action)

    def cancel(self, action: Action) -> None:
        """Do not do it."""
        self._due.pop(action, None)

    def turn(self, *, wait: bool) -> None:
        """Do what is to be done now; ``wait`` for it if there is nothing."""
        now = time.monotonic()
        for action, moment in list(self._due.items()):
            if moment <= now and self._due.pop(action, None) is not None:
                action()
        timeout = None
        if not wait:
            timeout = 0.0
        elif self._due:
            timeout = min(max(0.0, min(self._due.values()) - time.monotonic()), LONGEST_WAIT) * 1000 + 0.5
        self._read(timeout)

    def drain(self, until: float) -> None:
        """Read all that is there, and no more."""
        while self._read(0) and time.monotonic() < until:
            pass

    def _read(self, timeout: float | None) -> bool:
        ready = self._poll.poll(timeout)
        for fd, _ in ready:
            reader = self._readers.get(fd)
            if reader is not None:
                reader()
        return bool(ready)
