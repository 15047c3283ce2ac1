"""The command line: serve a swarm, send to it, play scenarios, look inside. Floor 17."""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import sys
from typing import NoReturn

from rich.text import Text
from typer.models import CommandInfo

from grami_actors.cli import (
    config,
    doctor,
    job_output,
    jobs,
    profile,
    replay,
    run,
    send,
    serve,
    state,
    token,
    top,
    validate,
)
from grami_actors.cli.app import INTERRUPTED, app, err
from grami_actors.errors import ConfigError, ErrorCode, GramiError, ServerNotFound
from grami_actors.errors import describe as describe_error

__all__ = [
    "config",
    "doctor",
    "job_output",
    "jobs",
    "main",
    "profile",
    "replay",
    "run",
    "send",
    "serve",
    "state",
    "token",
    "top",
    "validate",
]


_TO_DO: dict[str, str] = {
    **dict.fromkeys(
        (ErrorCode.UNAUTHENTICATED, ErrorCode.INVALID_TOKEN, ErrorCode.TOKEN_EXPIRED),
        "\nSet GRAMI_TOKEN to a token of this server: whoever runs it makes one with `grami token create NAME`.",
    ),
    ErrorCode.DESTINATION_NOT_FOUND: "\nWhat there is: grami describe",
    ErrorCode.JOB_NOT_FOUND: "\nThe jobs that you may see: grami jobs list",
    ErrorCode.JOB_NOT_CANCELABLE: "\nHow it ended: grami jobs show ID",
    ErrorCode.JOB_NOT_AWAITING_INPUT: "\nWhat it does: grami jobs show ID",
}
"""What to do about an error, where that can be told; ``ID`` is the job of which it tells."""


_ORDER = (
    "run",
    "serve",
    "send",
    "describe",
    "replay",
    "report",
    "doctor",
    "top",
    "profile",
    "validate",
    "config",
    "create",
    "submit",
    "list",
    "show",
    "attach",
    "logs",
    "artifact",
    "input",
    "cancel",
    "retry",
    "revoke",
    "check",
    "backup",
    "gc",
)
"""Commands as a newcomer meets them."""


def _arrange(commands: list[CommandInfo]) -> None:
    """Put commands in order, and let the paragraphs of their help flow."""
    for each in commands:
        paragraphs = inspect.getdoc(each.callback) or ""
        each.help = "\n\n".join(" ".join(lines.split()) for lines in paragraphs.split("\n\n"))
    commands.sort(key=lambda each: _ORDER.index(each.name or getattr(each.callback, "__name__", "")))


_arrange(app.registered_commands)
for group in (token.token, jobs.jobs, state.state):
    _arrange(group.registered_commands)


def main() -> None:
    """The entry point of the command ``grami``."""
    # What a script imports may stand where the command is given, as it may for ``python -m``.
    with contextlib.suppress(FileNotFoundError):  # the directory is gone
        if not {"", here := os.getcwd()} & set(sys.path):  # noqa: PTH109 - imports know text
            sys.path.append(here)
    try:
        app()
    except GramiError as error:
        # What went wrong on this side has no code: it never was on the wire.
        local = isinstance(error, (ConfigError, ServerNotFound))
        job = re.search(r"\bjob_\w{26}\b", error.message)
        to_do = _TO_DO.get(error.error_code, "").replace(" ID", f" {job[0]}" if job else " ID")
        _complain("" if local else f" {error.error_code}", error.message + to_do)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        if os.environ.get("GRAMI_LOG_LEVEL", "").upper() == "DEBUG":
            raise
        _complain("", f"{describe_error(error)} (GRAMI_LOG_LEVEL=DEBUG shows where)")


def _complain(code: str, text: str) -> NoReturn:
    # Other programs get lines as they are.
    err.print(Text.assemble(("error", "bold red"), f"{code}: {text}"), soft_wrap=not err.is_terminal)
    sys.exit(1)
