"""A swarm and its scenarios: one that passes, one with a failed check, one that raises, one that never ends."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

import msgspec

from grami_actors import Agent, Message, Reject, Swarm, handles, lazy_tool, tool
from grami_actors.scenario import Play, scenario


class Greet(Message):
    name: str
    mood: Literal["glad", "sad"] = "glad"
    times: Annotated[int, msgspec.Meta(ge=1)] = 1


class Sleep(Message):
    """Never answered."""


class Refuse(Message):
    """Answered with an error."""


class Greeting(msgspec.Struct):
    text: str


class Greeter(Agent, instances=2):
    """Greets people.

    This second paragraph is not for tables.
    """

    @handles(Greet)
    async def greet(self, message: Greet) -> Greeting:
        self.progress(0.5, "thinking [of] a word")
        self.emit("Hello, ")
        self.emit(message.name)
        return Greeting("; ".join([f"Hello, {message.name}"] * message.times))

    @handles(Refuse)
    async def refuse(self, message: Refuse) -> None:
        raise Reject("UPSTREAM_ERROR", "no [greeting] today")


class Sleeper(Agent):
    """Sleeps for ever."""

    @handles(Sleep)
    async def sleep(self, message: Sleep) -> None:
        self.progress(0.0, "asleep")
        await asyncio.Event().wait()


@tool
def add(first: int, second: int = 1) -> int:
    """Add two numbers, as list[int] would not."""
    return first + second


swarm = Swarm(agents=[Greeter, Sleeper], tools=[add, lazy_tool("no_such_module_at_all:function", name="absent")])


@scenario
async def passes(play: Play) -> None:
    """A greeting is polite."""
    ann = await play.client("ann")
    answer = await ann.request("greet", name="Ann")
    play.check("it greets by name", answer["text"] == "Hello, Ann")


@scenario
async def fails(play: Play) -> None:
    """A greeting is long."""
    bob = await play.client("bob")
    answer = await bob.request(Greet("Bob"))
    play.check("it is long", len(answer["text"]) > 1_000, f"it has {len(answer['text'])} letters")


@scenario
async def raises(play: Play) -> None:
    """Nobody is there to greet."""
    raise LookupError("nobody is here")


@scenario
async def never_ends(play: Play) -> None:
    """Waits for ever."""
    await (await play.client("eve")).write("sleep")
