"""A small swarm that tests talk to: every way a request can go, on purpose."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import msgspec

from grami_actors import Agent, GramiError, Message, Reject, RestartPolicy, Swarm, cancelled, handles, progress, tool
from tests.conftest import Gate

AT_ONCE = RestartPolicy(intensity=1_000, shortest=0.0, longest=0.0)


class Echo(Message):
    text: str
    number: int = 0


class Slow(Message):
    """Held at a gate."""

    text: str = ""


class Fail(Message):
    how: str = "raise"


class Story(Message):
    pieces: int = 3


class Said(msgspec.Struct):
    text: str
    number: int


class Echoer(Agent, instances=2):
    """Says what it hears."""

    @handles(Echo)
    def echo(self, message: Echo) -> Said:
        return Said(message.text, message.number)


class AsyncEcho(Message):
    text: str
    number: int = 0


class AsyncEchoer(Agent):
    """Says what it hears, a little later, one message at a time."""

    @handles(AsyncEcho)
    async def echo(self, message: AsyncEcho) -> Said:
        await asyncio.sleep(0)
        return Said(message.text, message.number)


class Holder(Agent, concurrency=100):
    """Answers when its gate opens."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gate = gate

    @handles(Slow)
    async def hold(self, message: Slow) -> str:
        await self.gate.wait_async()
        return message.text


class Failer(Agent, restart=AT_ONCE):
    """Fails in every way."""

    @handles(Fail)
    async def fail(self, message: Fail) -> Any:
        match message.how:
            case "raise":
                raise ValueError("on purpose")
            case "exit":
                raise SystemExit(1)
            case "reject":
                raise Reject("UPSTREAM_ERROR", "the service is away", param="$.how")
            case "unfit":
                return object()
            case "internal":
                raise GramiError("a secret detail")
        return None


class Teller(Agent, concurrency=20):
    """Streams a story."""

    @handles(Story)
    async def tell_story(self, message: Story) -> str:
        for number in range(message.pieces):
            self.progress(number / message.pieces, f"piece {number}")
            self.emit(f"piece {number} ")
            await asyncio.sleep(0)
        return "".join(f"piece {number} " for number in range(message.pieces))


@tool(lane="thread", timeout=5, concurrency=4)
def double(number: int, times: int = 1) -> int:
    """Double a number."""
    for _ in range(times):
        number *= 2
    return number


@tool
async def shout(text: str) -> str:
    """Say it louder."""
    progress(0.5, "inhaling")
    return text.upper()


@tool(timeout=0.05)
async def endless() -> None:
    """Never ends by itself."""
    await asyncio.Event().wait()


@tool(lane="thread", timeout=0.05)
def endless_thread() -> bool:
    """Looks whether it was given up."""
    pause = __import__("threading").Event()
    while not cancelled():
        pause.wait(0.002)
    return True


@tool(lane="loop")
def broken(secret: str = "x") -> None:
    """Raises."""
    raise RuntimeError("the tool broke")


def small_swarm(gate: Gate | None = None) -> Swarm:
    return Swarm(
        agents=[Echoer, AsyncEchoer, partial(Holder, gate or Gate()), Failer, Teller],
        tools=[double, shout, endless, endless_thread, broken],
    )
