"""What tells a server that something happened to a shim: pokes, deaths, and a slow look at all of them. Floor 12.

A poke is a line ``JOB ATTEMPT`` in the pipe ``jobs/wake``. It may be lost (the pipe is full, the server was not there);
the descriptor of a process may not be had (macOS). So all is also looked at every :data:`SWEEP` seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from grami_actors.jobs import processes

SWEEP = 5.0
"""Seconds between two looks at each run."""

_PIECE = 65_536

Key = tuple[str, int]
"""A job's id, and the number of its attempt."""


class Watcher(NamedTuple):
    """Who wants to know of a run.

    Attributes:
        look: something happened.
        glance: see whether something happened; it costs little if nothing did.
    """

    look: Callable[[], None]
    glance: Callable[[], None]


class Wakes:
    """Wakes the runs of one server. On its loop only.

    Args:
        path: of the pipe.

    Attributes:
        loop: the one that it is open on.
        lifeline: a descriptor that is at its end when the server is gone, however it went.
    """

    loop: asyncio.AbstractEventLoop

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lifeline = -1
        self._pipe = -1
        self._held = -1
        self._rest = b""
        self._watchers: dict[Key, Watcher] = {}
        self._descriptors: dict[int, tuple[Key, subprocess.Popen[bytes] | None]] = {}
        self._unseen: list[subprocess.Popen[bytes]] = []
        self._timer: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Make the pipe and listen. Raises OSError."""
        self.loop = asyncio.get_running_loop()
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISFIFO(self.path.lstat().st_mode):
                self.path.unlink()
        with contextlib.suppress(FileExistsError):
            os.mkfifo(self.path, 0o600)
        # For writing, too: so that there is no end of it when the last shim closes it.
        self._pipe = os.open(self.path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        # Shims that are to end with the server inherit one end, and nobody but the kernel closes the other.
        self.lifeline, self._held = os.pipe()
        self.loop.add_reader(self._pipe, self._poked)
        self._timer = self.loop.call_later(SWEEP, self._sweep)

    def close(self) -> None:
        """Let go of everything; the shims go on. Twice is once."""
        if self._timer is None:
            return
        self._timer.cancel()
        self._timer = None
        self.loop.remove_reader(self._pipe)
        for descriptor in (self._pipe, self.lifeline, self._held):
            os.close(descriptor)
        for descriptor, (_, child) in tuple(self._descriptors.items()):
            self._release(descriptor)
            if child is not None:
                self._unseen.append(child)
        for child in self._unseen:
            _let_live(child)
        self._unseen.clear()

    # --- who is woken ---

    def watch(self, key: Key, watcher: Watcher) -> None:
        """Tell somebody of a run from now on."""
        self._watchers[key] = watcher

    def unwatch(self, key: Key, watcher: Watcher) -> None:
        """Do not tell this one any more; somebody who came after it still is."""
        if self._watchers.get(key) is not watcher:
            return
        del self._watchers[key]
        for descriptor, (each, child) in tuple(self._descriptors.items()):
            if each == key and child is None:
                self._release(descriptor)

    def spawned(self, key: Key, child: subprocess.Popen[bytes]) -> None:
        """Take on a child of this process: its end wakes its run, and it is reaped."""
        if self._timer is None:
            _let_live(child)
            return
        try:
            self._listen(os.pidfd_open(child.pid), key, child)
        except (AttributeError, OSError):  # not on this system, or no descriptor is left
            self._unseen.append(child)

    def follow(self, key: Key, pid: int, started: int) -> None:
        """Be told when a shim that another server started ends, if it is still that process."""
        if any(each == key for each, _ in self._descriptors.values()):
            return
        try:
            descriptor = os.pidfd_open(pid)
        except (AttributeError, OSError):
            return
        now = processes.process(pid)
        if now is None or now.started != started:
            os.close(descriptor)
        else:
            self._listen(descriptor, key, None)

    def _listen(self, descriptor: int, key: Key, child: subprocess.Popen[bytes] | None) -> None:
        self._descriptors[descriptor] = key, child
        self.loop.add_reader(descriptor, self._ended, descriptor)

    def _release(self, descriptor: int) -> None:
        del self._descriptors[descriptor]
        self.loop.remove_reader(descriptor)
        os.close(descriptor)

    # --- what wakes ---

    def _poked(self) -> None:
        try:
            data = self._rest + os.read(self._pipe, _PIECE)
        except BlockingIOError:
            return
        *lines, rest = data.split(b"\n")
        self._rest = rest[-_PIECE:]
        for line in dict.fromkeys(lines):  # many pokes of one run are one
            job, _, attempt = line.decode(errors="replace").partition(" ")
            if attempt.isdecimal():
                self._wake((job, int(attempt)))

    def _ended(self, descriptor: int) -> None:
        key, child = self._descriptors[descriptor]
        self._release(descriptor)
        if child is not None:
            child.wait()
        self._wake(key)

    def _wake(self, key: Key) -> None:
        watcher = self._watchers.get(key)
        if watcher is not None:
            watcher.look()

    def _sweep(self) -> None:
        self._timer = self.loop.call_later(SWEEP, self._sweep)
        self._unseen = [child for child in self._unseen if child.poll() is None]
        for watcher in tuple(self._watchers.values()):
            watcher.glance()


def _let_live(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.returncode = 0  # it outlives this server: nobody here is to wait for it, or to complain of it
