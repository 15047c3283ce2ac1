"""Tools for the tests of jobs in processes of their own."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from datetime import date
from pathlib import Path

import msgspec

from grami_actors.errors import ErrorCode, ToolExecutionFailed
from grami_actors.job_context import JobContext


class Frame(msgspec.Struct):
    number: int
    day: date


def double(number: float, text: str = "none") -> list[object]:
    print("doubles", text)
    return [number * 2, text]


def shift(frame: Frame) -> Frame:
    return Frame(frame.number + 1, frame.day)


async def wait(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "waited"


def tell(ctx: JobContext) -> dict[str, object]:
    print("output")
    ctx.progress(0.5, "half")
    ctx.heartbeat()
    ctx.log("a line")
    ctx.checkpoint({"at": 1})
    ctx.artifact("text", "content")
    ctx.artifact("bytes", b"\0\1")
    Path("made").write_text("made")
    ctx.artifact("file", Path("made"))
    return {"id": ctx.job_id, "attempt": ctx.attempt, "resume": ctx.resume, "cancelled": ctx.cancelled}


def refused(ctx: JobContext) -> list[str]:
    told = []
    for call in (
        lambda: ctx.artifact("../x", ""),
        lambda: ctx.artifact("x", Path("/nonesuch")),
        lambda: ctx.checkpoint("x" * 300_000),
        lambda: ctx.checkpoint(float("nan")),
    ):
        try:
            call()
        except (ValueError, OSError) as error:
            told.append(type(error).__name__)
    return told


def ask(ctx: JobContext) -> object:
    return [ctx.ask_input("first?"), ctx.ask_input("second?")]


async def asks_twice(ctx: JobContext) -> list[object]:
    first = asyncio.create_task(ctx.ask_input("first?"))
    try:
        ctx.ask_input("too soon?")
    except RuntimeError as error:
        return [await first, str(error), await ctx.ask_input("second?")]
    return []


async def ask_awaited(ctx: JobContext) -> object:
    return [await ctx.ask_input("first?"), await ctx.ask_input("second?")]


def until_cancelled(ctx: JobContext) -> str:
    ctx.progress(0)
    while not ctx.cancelled:
        time.sleep(0.01)
    print("ends in good order")
    return "ended"


async def cleans_up(ctx: JobContext) -> None:
    ctx.progress(0)
    try:
        await asyncio.sleep(60)
    finally:
        print("cleans up")


def fails() -> None:
    raise ToolExecutionFailed("no frames", code=ErrorCode.UPSTREAM_RATE_LIMITED)


def breaks() -> None:
    raise ValueError("broken")


def leaves() -> None:
    sys.exit(3)


def vanishes() -> None:
    os._exit(0)


def segfaults() -> None:
    os.kill(os.getpid(), 11)


def no_json() -> object:
    return object()


def big() -> str:
    return "x" * 1_000_000


def crowd(ctx: JobContext) -> None:
    from threading import Thread  # noqa: PLC0415

    threads = [Thread(target=lambda: [ctx.log(f"{'x' * 5000}{n}") for n in range(20)]) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def descriptors() -> list[str]:
    return sorted(Path(f"/proc/self/fd/{fd}").readlink().name.split("[")[0] for fd in range(100) if is_open(fd))


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
