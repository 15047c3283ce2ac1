"""Tools for the tests of faults: imported by the processes of their jobs, too."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from grami_actors import Agent, Message, Swarm, handles
from grami_actors.job import Limits, Order, Retry
from grami_actors.job_context import JobContext
from grami_actors.jobs.commands import command
from grami_actors.tools import tool

_STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for leave in range(2):
    if os.fork():
        if leave: os._exit(0)
        os.waitpid(-1, 0)
        break
    os.setsid()
open(sys.argv[1] + "." + str(os.getpid()), "w").close()
while True: time.sleep(600)
"""

_BEATING = """
import json, os, signal, sys, time
for generation in range(3):
    signal.signal(signal.SIGTERM, [signal.SIG_DFL, signal.SIG_IGN][generation > 0])
    open(sys.argv[1] + "/tree." + str(os.getpid()), "w").close()
    if generation == 2 or os.fork(): break
    os.setsid()
beats = 0
while True:
    beats += 1
    said = dict(type="progress", fraction=0, message=str(beats))
    if generation == 0: os.write(3, json.dumps(said).encode() + b"\\n")
    time.sleep(0.01)
"""


@tool(job=True, soft_grace=0.1, term_grace=0.2)
def asks(ctx: JobContext, times: int = 1) -> list[Any]:
    """Wants to know something, so many times."""
    return [ctx.ask_input(number) for number in range(times)]


@tool(job=True, lane="loop", soft_grace=0.1, term_grace=0.2)
async def asks_inside(ctx: JobContext, times: int = 1) -> list[Any]:
    """The same, in the server."""
    return [await ctx.ask_input(number) for number in range(times)]


@tool(job=True, soft_grace=0.1, term_grace=0.2)
def asks_between(until: str, ctx: JobContext) -> list[Any]:
    """Asks, goes on until there is a file, and asks again."""
    first = ctx.ask_input("first")
    ctx.progress(0.5, "between")
    while not os.path.exists(until):  # noqa: PTH110
        time.sleep(0.005)
    return [first, ctx.ask_input("second")]


@tool(job=True, effect="idempotent", retry=Retry(attempts=3, delay=60.0))
def fails() -> None:
    """Fails, and is to be tried again in a minute."""
    raise RuntimeError("no")


@tool(job=True, retry=Retry(delay=0.02, factor=1.0))
def patient() -> str:
    """Is tried again soon, if it cannot be started."""
    return "done"


@tool(job=True, soft_grace=0.1, term_grace=0.2)
def witness(path: str, until: str) -> str:
    """Leaves a line each time that it runs, and ends when there is a file."""
    with open(path, "a") as file:  # noqa: PTH123
        file.write("ran\n")
    while not os.path.exists(until):  # noqa: PTH110
        time.sleep(0.005)
    return "done"


@tool(job=True, heartbeat=0.3, soft_grace=0.1, term_grace=0.2)
def silent(path: str) -> None:
    """Says nothing."""
    Path(path).touch()
    time.sleep(600)


@tool(job=True, attempt_timeout=0.3, soft_grace=0.1, term_grace=0.2, effect="pure", retry=Retry(attempts=2, delay=0.02))
def slow() -> None:
    """Takes too long, twice."""
    time.sleep(600)


@tool(job=True, queue_timeout=0.2)
def hurried() -> None:
    """Does not wait long for its turn."""


@tool(job=True, effect="idempotent", retry=Retry(attempts=2, delay=0.02))
def repeatable(path: str, ctx: JobContext) -> int:
    """Has its shim killed, the first time."""
    if ctx.attempt == 1:
        Path(path).write_text("ran")
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(600)
    return ctx.attempt


class Start(Message, tag="start"):
    """Begin."""

    detached: bool = False


class Boss(Agent):
    """Has somebody else ask, and waits for what they hear."""

    @handles(Start)
    async def start(self, message: Start) -> Any:
        """Submit, and wait."""
        job = await self.submit(asks, order=Order(detached=message.detached), times=1)
        return await job.result()


@tool(job=True)
def odd(kind: str, ctx: JobContext) -> Any:
    """Says what JSON allows and programs stumble over."""
    value: Any = 10**30
    if kind == "deep":
        for _ in range(600):
            value = [value]
    ctx.checkpoint(value)
    return value


@tool(job=True, effect="pure", retry=Retry(attempts=3, delay=0.02), limits=Limits(result=1_000))
def gives(kind: str) -> Any:
    """Returns what may be no result."""
    values: dict[str, Any] = {
        "object": object(),
        "nan": {"mean": float("nan")},
        "keys": {(1, 2): 3},
        "surrogate": ["\ud800"],
        "circle": [],
        "long": "x" * 999,
        "set": {1},
        "longest": "x" * 998,
    }
    values["circle"].append(values["circle"])
    return values[kind]


@tool(job=True)
def environment() -> dict[str, str]:
    """What it sees of its server."""
    return dict(os.environ)


TREE = command(
    "tree", [sys.executable, "-c", _STUBBORN, "{path}"], parameters={"path": str}, soft_grace=0.1, term_grace=0.2
)
BEATING = command(
    "beating",
    [sys.executable, "-c", _BEATING, "{folder}"],
    parameters={"folder": str},
    heartbeat=0.4,
    soft_grace=0.1,
    term_grace=0.2,
)
SHELL = command("shell", ["sh", "-c", "{text}"], parameters={"text": str}, soft_grace=0.1, term_grace=0.2)


swarm = Swarm([], [asks, asks_inside, asks_between, fails, patient, witness, odd, gives, environment, TREE, SHELL])
timed = Swarm([Boss], [asks, silent, slow, hurried, repeatable, BEATING, SHELL])
talks = Swarm([], [asks_inside, SHELL])
