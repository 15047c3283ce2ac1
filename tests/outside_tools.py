"""Tools whose jobs run outside: imported by the processes of the jobs, too."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from grami_actors.job_context import JobContext
from grami_actors.jobs.commands import command
from grami_actors.tools import tool


@tool(job=True)
def count(to: int, ctx: JobContext) -> int:
    """Says all that can be said."""
    for number in range(ctx.resume or 0, to):
        ctx.progress(number / to, f"number {number}")
    ctx.checkpoint(to)
    print("counted", flush=True)
    ctx.artifact("numbers.txt", f"{to}\n")
    return to


@tool(job=True)
def wait_for(path: str, ctx: JobContext) -> str:
    """Goes on until there is a file; says when it begins."""
    ctx.progress(0.5, str(os.getpid()))
    while not Path(path).exists():
        if ctx.cancelled:
            raise InterruptedError("cancelled")
        time.sleep(0.005)
    ctx.progress(1.0, "there")
    return Path(path).read_text()


@tool(job=True)
def ask(ctx: JobContext) -> str:
    """Wants to know something."""
    ctx.progress(0.1)
    return f"{ctx.ask_input({'which': [1, 2]})}!"


@tool(job=True)
def witness(path: str) -> None:
    """Leaves a line each time that it runs."""
    with open(path, "a") as file:  # noqa: PTH123
        file.write("ran\n")


_ESCAPES = """
import os, sys, time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
open(sys.argv[1] + "." + str(os.getpid()), "w").close()
time.sleep(600)
"""


@tool(job=True)
def escape(path: str, ctx: JobContext) -> None:
    """Has processes that leave its session, one of them without its environment."""
    for environment in (None, {"PATH": os.environ["PATH"]}):
        subprocess.run([sys.executable, "-c", _ESCAPES, path], env=environment, close_fds=False, check=True)
    ctx.progress(0.5, str(os.getpid()))
    time.sleep(600)


TOOLS = {
    each.name: each
    for each in (
        count,
        wait_for,
        ask,
        witness,
        escape,
        command("shell", ["sh", "-c", "{text}"], parameters={"text": str}),
        command("nothing", ["there-is-no-such-program"]),
    )
}
