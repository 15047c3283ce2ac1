"""Functions that the contract tests of runners run, inside and outside."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from grami_actors import Reject
from grami_actors.job_context import JobContext

PERIOD = 0.002
"""Seconds between two looks of a function that can only look."""


def double(number: int) -> int:
    return number * 2


def tell(ctx: JobContext, words: list[str]) -> dict[str, Any]:
    """Says a little of everything."""
    for place, word in enumerate(words, 1):
        ctx.log(word)
        ctx.checkpoint(place)
        ctx.artifact(f"{place}.txt", word)
        ctx.progress(place / len(words), word)
    return {"job": ctx.job_id, "attempt": ctx.attempt, "resume": ctx.resume}


def fail(text: str) -> None:
    raise ValueError(text)


def refuse(text: str) -> None:
    raise Reject("NOT_FOR_YOU", text)


def leave_by(code: int) -> None:
    raise SystemExit(code)


def odd() -> Any:
    return threading.Lock()


def long(size: int) -> str:
    return "x" * size


def asks(ctx: JobContext, question: str) -> str:
    return f"{question} {ctx.ask_input(question)}"


def obey(ctx: JobContext, word: str = "") -> str:
    """Goes on until it is told to end."""
    ctx.progress(0.0, "at work")
    while not ctx.cancelled:
        threading.Event().wait(PERIOD)
    return word


def witness(path: str, ctx: JobContext) -> str:
    """Writes down that it ran, and waits."""
    with Path(path).open("a") as file:
        file.write(f"{ctx.attempt}\n")
    return str(ctx.ask_input("go on?"))


FUNCTIONS = (double, tell, fail, refuse, leave_by, odd, long, asks, obey, witness)
