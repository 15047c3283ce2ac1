"""Long-running tool jobs that outlive clients, crashes and the server. Floor 12; docs/jobs.md is their text.

What users import is listed here, and loaded when it is first used: the process of a job starts in a tenth of the time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grami_actors.job import Job, JobEvent, Limits, Order, Retry, State
    from grami_actors.job_context import JobContext
    from grami_actors.job_handle import JobHandle
    from grami_actors.job_requests import JobEnded
    from grami_actors.jobs.commands import command
    from grami_actors.schedules import Schedule

__all__ = [
    "Job",
    "JobContext",
    "JobEnded",
    "JobEvent",
    "JobHandle",
    "Limits",
    "Order",
    "Retry",
    "Schedule",
    "State",
    "command",
]

_HOMES = {
    "Job": "job",
    "JobContext": "job_context",
    "JobEnded": "job_requests",
    "JobEvent": "job",
    "JobHandle": "job_handle",
    "Limits": "job",
    "Order": "job",
    "Retry": "job",
    "Schedule": "schedules",
    "State": "job",
    "command": "jobs.commands",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"grami_actors.{home}"), name)
    # The module of the same name was set here by its import; from now on the name is what users mean by it.
    globals()[name] = value
    return value
