"""Limits of a job: what the kernel holds for each process, and what is measured of the whole tree. Floor 12.

Measuring sees a spike only if it lasts as long as :data:`POLL`.
"""

from __future__ import annotations

import os
import resource

from grami_actors.jobs.shim.tree import descendants, read, stat

TYPE_CHECKING = False  # importing typing takes a tenth of the shim's start
if TYPE_CHECKING:
    from typing import Any

POLL = 0.5
"""Seconds between two measurements; none are made if nothing is limited."""

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def confine(limits: dict[str, Any]) -> None:
    """Set what the kernel holds, in the process that becomes the job. Raises OSError, ValueError."""
    wanted = {}
    if limits.get("files"):
        wanted[resource.RLIMIT_NOFILE] = int(limits["files"])
    if limits.get("cpu"):
        # The tree is measured before, and ends in good order; this is for what spins between two measurements.
        wanted[resource.RLIMIT_CPU] = int(limits["cpu"]) + 2
    for kind, value in wanted.items():
        hard = resource.getrlimit(kind)[1]
        soft = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (soft, hard if kind == resource.RLIMIT_CPU else soft))


def means(limits: dict[str, Any]) -> dict[str, str]:
    """How each limit is held, for ``describe``."""
    ways = {"memory": "poll", "cpu": "rlimit+poll", "processes": "poll", "files": "rlimit", "log": "shim"}
    return {name: ways.get(name, "shim") for name, value in limits.items() if value is not None}


def oom_kills() -> int:
    """How many processes the kernel has killed for memory so far; 0 where it does not say (proc, in section 5)."""
    try:
        told = read("/proc/vmstat").rpartition(b"\noom_kill ")[2]
        return int(told.partition(b"\n")[0])
    except (OSError, ValueError):
        return 0


def exceeded(limits: dict[str, Any], shim: int, spent: float) -> str:
    """Which limit the tree below the shim is over; empty for none.

    Args:
        limits: of the job.
        shim: the process that all are below of.
        spent: seconds of processor time of those that were waited for.
    """
    pids = [pid for pid in descendants(shim) if (stat(pid) or [b"Z"])[0] != b"Z"]
    if limits.get("processes") and len(pids) > limits["processes"]:
        return "processes"
    if limits.get("memory") and _memory(pids, limits["memory"]) > limits["memory"]:
        return "memory"
    if limits.get("cpu") and spent + _cpu(pids) > limits["cpu"]:
        return "cpu"
    return ""


def _cpu(pids: list[int]) -> float:
    return sum(sum(map(int, fields[11:15])) for pid in pids if (fields := stat(pid))) / _TICKS


def _memory(pids: list[int], limit: int) -> int:
    resident = 0
    for pid in pids:
        try:
            resident += int(read(f"/proc/{pid}/statm").split()[1]) * _PAGE
        except (OSError, IndexError):
            continue
    # What processes share counts once; that takes long to find out, and only if it can matter.
    return resident if resident <= limit else sum(map(_share, pids))


def _share(pid: int) -> int:
    try:
        for line in read(f"/proc/{pid}/smaps_rollup").splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
        return 0
    except OSError:
        return 0
