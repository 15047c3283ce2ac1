"""What the kernel tells of processes: which of them belong to an attempt, and their end. Floor 12.

An attempt's processes are known by the mark in the environment they were started with, by who their parents are, by
the session that they share, and by the lock that they inherited; a process can shake off any of these, but not easily
all. A process is signalled only if it is still the one that was found: by a descriptor of it, opened before its start
time is looked at again. Without /proc none is found.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MARK = "GRAMI_JOB_MARK"
"""The variable with the mark of an attempt."""

PASSES = 100
"""How often new processes are looked for before those that were found are killed."""

_PROC = Path("/proc")
_DEAD = frozenset("ZX")


class Process(NamedTuple):
    """One process, as /proc/PID/stat has it (proc_pid_stat(5)).

    Attributes:
        pid: its number, which may be another's later.
        state: a letter; ``Z`` is dead and not yet reaped.
        parent: the number of its parent.
        session: the number of its session.
        started: when it began, in ticks of the clock since the boot: with the number, it is one process.
    """

    pid: int
    state: str
    parent: int
    session: int
    started: int


def boot_id() -> str:
    """Which run of the kernel this is; empty where it does not tell."""
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def process(pid: int) -> Process | None:
    """A process; ``None`` if there is none with this number."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    # The name of its program may hold blanks and brackets itself.
    fields = text.rpartition(")")[2].split()
    return Process(pid, fields[0], int(fields[1]), int(fields[3]), int(fields[19]))


def members(mark: str, lock: Path | None = None) -> list[Process]:
    """The living processes of an attempt, but not this one.

    Args:
        mark: of the attempt.
        lock: a file that all of them inherited open.
    """
    held = "" if lock is None else os.path.realpath(lock)
    alive = {each.pid: each for each in _all() if each.state not in _DEAD}
    found = {pid for pid in alive if _marked(pid, mark) or (held and _holds(pid, held))}
    ours = os.getsid(0)
    grown = -1
    while grown != len(found):
        grown = len(found)
        sessions = {alive[pid].session for pid in found} - {ours}
        found |= {each.pid for each in alive.values() if each.parent in found or each.session in sessions}
    return [alive[pid] for pid in sorted(found - {os.getpid()})]


def kill(each: Process) -> None:
    """End a process with SIGKILL, if it is still the one that was found."""
    _send(each, signal.SIGKILL)


def _send(each: Process, number: int) -> None:
    with contextlib.suppress(OSError):  # it ended, or is somebody else's
        if not hasattr(os, "pidfd_open"):
            if _same(each):
                os.kill(each.pid, number)
            return
        descriptor = os.pidfd_open(each.pid)
        try:
            if _same(each):
                signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)


def clear(mark: str, lock: Path | None = None) -> bool:
    """Kill the processes of an attempt that there are; says whether there were some. To be repeated until not."""
    # First all stand still: the child of what is killed while it forks has no parent any more that it is known by, and
    # while it executes another program no mark either.
    found: dict[tuple[int, int], Process] = {}
    for _ in range(PASSES):
        fresh = {(each.pid, each.started): each for each in members(mark, lock)}
        if fresh.keys() <= found.keys():
            break
        for key in fresh.keys() - found.keys():
            _send(fresh[key], signal.SIGSTOP)
        found |= fresh
    for each in found.values():
        kill(each)
    return bool(found)


def _same(each: Process) -> bool:
    now = process(each.pid)
    return now is not None and now.started == each.started


def _all() -> Iterator[Process]:
    try:
        names = [each.name for each in _PROC.iterdir()]
    except OSError:
        return
    for name in names:
        if name.isdecimal() and (found := process(int(name))) is not None:
            yield found


def _marked(pid: int, mark: str) -> bool:
    try:
        environment = (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return False
    return f"{MARK}={mark}".encode() in environment.split(b"\0")


def _holds(pid: int, lock: str) -> bool:
    folder = _PROC / str(pid) / "fd"
    with contextlib.suppress(OSError):
        for each in folder.iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                if os.readlink(each).removesuffix(" (deleted)") == lock:  # noqa: PTH115 - there may be thousands
                    return True
    return False
