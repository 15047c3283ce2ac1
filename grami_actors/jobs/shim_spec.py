"""What a shim is told of an attempt: the content of its spec.json. Floor 12.

Of the server's environment a job gets what :data:`~grami_actors.lanes.child.ENVIRONMENT` lists: what programs need to
run, and none of the server's secrets.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from typing import Any

import msgspec

from grami_actors.errors import ErrorCode, JobError
from grami_actors.job import Job
from grami_actors.jobs.commands import Command, inherited
from grami_actors.jobs.processes import MARK
from grami_actors.tools import Tool


def spec_of(job: Job, served: Tool[..., Any] | None, wake: Path, now: float) -> dict[str, Any]:
    """All that the shim needs to know of a job's current attempt.

    Args:
        job: with ``attempt`` as its number.
        served: its tool, or command.
        wake: the pipe of the server.
        now: seconds since the epoch.

    Raises:
        JobError: JOB_REJECTED: there is no such tool any more.
        ProtocolError: VALIDATION_FAILED: it takes other arguments now.
    """
    if served is None:
        raise JobError(f"there is no tool {job.tool!r}", code=ErrorCode.JOB_REJECTED)
    terms = job.terms
    command = served if isinstance(served, Command) else None
    mark = f"{job.id}.{job.attempt}.{secrets.token_hex(8)}"
    named = {} if command is None else command.env
    return {
        "job": job.id,
        "attempt": job.attempt,
        "mark": mark,
        "argv": None if command is None else command.fill(job.arguments),
        "python": _function(served, job.arguments) if command is None else None,
        # What is no text cannot be written down.
        "environ": {name: value for name, value in inherited().items() if _is_text(value)} | named | {MARK: mark},
        "cwd": None if command is None else command.cwd,
        "timeout": terms.attempt_timeout,
        "deadline": None if job.expires_at is None else max(0.0, job.expires_at - now),
        "heartbeat": terms.heartbeat,
        "soft_grace": terms.soft_grace,
        "term_grace": terms.term_grace,
        "strays": terms.strays,
        "lifeline": terms.on_server_exit == "stop",
        "limits": msgspec.to_builtins(terms.limits),
        "wake": str(wake.absolute()),
        "checkpoint": job.checkpoint,
    }


def _is_text(value: str) -> bool:
    return value.encode(errors="ignore").decode() == value


def _function(served: Tool[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    if served.loaded:  # what does not fit needs no process to find out; its process checks it, too
        served.convert(arguments)
    name, _, function = served.import_path().partition(":")
    name, file = _home(name)
    # An empty entry is the working directory, and the job's is another.
    path = [os.path.abspath(each) for each in sys.path]  # noqa: PTH100 - a resolved link would be another place
    return {"path": path, "module": name, "function": function, "file": file, "arguments": arguments}


def _home(name: str) -> tuple[str, str | None]:
    """The module's name, and its file if it cannot be imported by that name."""
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None)
    if name == "__main__":
        # ``python -m``: it can be imported by the name that it has there.
        return (spec.name, None) if spec is not None else (name, getattr(module, "__file__", None))
    origin = getattr(spec, "origin", None)
    if not isinstance(origin, str) or not origin.endswith(".py"):
        return name, None
    file = Path(origin)
    here = file.parent if file.name == "__init__.py" else file
    package, _, last = name.rpartition(".")
    known = here.stem == last and (package or str(here.parent) in sys.path)
    return name, None if known else origin
