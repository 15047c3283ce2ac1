"""All processes of a job: whatever they did to their groups and sessions, the shim is their subreaper. Floor 12.

Source: prctl(2), PR_SET_CHILD_SUBREAPER; proc(5), /proc/PID/task/TID/children and /proc/PID/stat.
"""

from __future__ import annotations

import os

from grami_actors.jobs.shim.lean import prctl, signal, suppress

PR_SET_CHILD_SUBREAPER = 36
"""From <linux/prctl.h>: orphans below become children of this process."""

PASSES = 100
"""How often new processes are looked for before those that were found are killed."""


def adopt_orphans() -> bool:
    """Become the parent of all that this process's children leave behind; says whether the system can do that."""
    try:
        return prctl(PR_SET_CHILD_SUBREAPER, 1) == 0
    except (OSError, AttributeError):
        return False


def descendants(pid: int) -> list[int]:
    """All processes below one, zombies too."""
    if not os.path.exists(f"/proc/{pid}/task/{pid}/children"):
        return _scanned(pid)
    found: list[int] = []
    waiting = [pid]
    while waiting:
        below = _children(waiting.pop())
        found += below
        waiting += below
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):  # it is gone
        for thread in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError):
                found += map(int, read(f"/proc/{pid}/task/{thread}/children").split())
    return found


def _scanned(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if name.isdigit() and (fields := stat(int(name))):
            parents.setdefault(int(fields[1]), []).append(int(name))
    found = list(parents.get(pid, ()))
    for each in found:
        found += parents.get(each, ())
    return found


def stat(pid: int) -> list[bytes]:
    """What /proc/PID/stat says from the third field, the state, on; empty if there is no such process."""
    try:
        return read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    except OSError:
        return []


def read(path: str) -> bytes:
    """A small file. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = b""
        while piece := os.read(fd, 65536):
            found += piece
        return found
    finally:
        os.close(fd)


def send(pids: list[int], number: int) -> None:
    """Send a signal to each that is there."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def strike(shim: int) -> None:
    """Kill all that is below the shim now. To be repeated until it has no child any more."""
    # First all stand still: what is killed while its parent forks would be replaced faster than it is found.
    seen: set[int] = set()
    for _ in range(PASSES):
        fresh = [pid for pid in descendants(shim) if pid not in seen]
        if not fresh:
            break
        send(fresh, signal.SIGSTOP)
        seen.update(fresh)
    send(sorted(seen), signal.SIGKILL)
