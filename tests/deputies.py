"""Agents that do what they are told, for tests of who may do what; worker processes import them too."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

from grami_actors.actor import Actor
from grami_actors.agent import Agent, handles
from grami_actors.messages import Message, ToolCall


class Errand(Message):
    """Go there this way; ``then``: not yourself, but whoever this names."""

    way: str = "ask"
    goal: str = "tool:delete"
    then: str = ""


class Later(Message):
    """Do an errand on your own account, from a timer."""


class News(Message):
    """What is published."""


class Plain:
    """A message that is none of the wire."""


async def _stream(actor: Any, goal: str) -> None:
    async for _ in actor.stream(goal, CALL):
        pass


async def _thread(actor: Any, goal: str) -> None:
    # A thread that knows nothing of the message at work.
    future = await asyncio.get_running_loop().run_in_executor(None, actor.ask, goal, CALL)
    await future


CALL = ToolCall({"what": "this"})
WAYS: dict[str, Callable[[Any, str], Any]] = {
    "ask": lambda actor, goal: actor.ask(goal, CALL),
    "tell": lambda actor, goal: actor.tell(goal, CALL),
    "detached": lambda actor, goal: actor.tell(goal, CALL, detached=True),
    "send": lambda actor, goal: actor.send(goal, CALL),
    "stream": _stream,
    "call": lambda actor, goal: actor.call(goal.removeprefix("tool:"), what="this"),
    "generate": lambda actor, _: actor.generate("this"),
    "publish": lambda actor, _: actor.publish("deleted.this", News()),
    "subscribe": lambda actor, _: actor.subscribe("deleted.*"),
}
"""How a deputy may come to something that it is sent for."""

OTHER_WAYS: dict[str, Callable[[Any, str], Any]] = {
    "plain": lambda actor, goal: actor.ask(goal, Plain()),
    "thread": _thread,
    "system": lambda actor, goal: actor._cell.runtime.ask(goal, CALL),
}


async def run(actor: Any, errand: Errand) -> str:
    """Do an errand; raises what it raises."""
    if errand.then:
        return str(await actor.ask(errand.then, Errand(errand.way, errand.goal)))
    result = (WAYS | OTHER_WAYS)[errand.way](actor, errand.goal)
    if inspect.isawaitable(result):
        await result
    return "done"


class Deputy(Agent):
    """Runs errands."""

    @handles(Errand)
    async def run(self, errand: Errand) -> str:
        return await run(self, errand)

    @handles(Later)
    def later(self, _: Later) -> str:
        self.after(0, Errand("ask"))
        return "later"

    @handles(News)
    def hear(self, _: News) -> None:
        """Be told."""


class Second(Deputy):
    """Runs errands of deputies."""


class ThreadDeputy(Deputy, name="deputy", lane="thread"):
    """The same, where it may block."""


class ProcessDeputy(Deputy, name="deputy", lane="process"):
    """The same, where it may crash."""


class Team(Deputy, name="deputy", instances=2):
    """The same, twice; each goes for something at once."""

    async def on_start(self) -> None:
        await run(self, Errand("ask"))


class Parent(Deputy, name="deputy"):
    """Has a child run its errands."""

    async def on_start(self) -> None:
        self.child = await self.spawn(Second, name="child")

    @handles(Errand)
    async def run(self, errand: Errand) -> str:
        return str(await self.ask(self.child, errand))


class Holder(Actor):
    """Asks whom it is told to."""

    async def on_receive(self, to: Any) -> Any:
        return await self.ask(to, CALL)


class ProcessHolder(Holder):
    """The same, elsewhere."""

    lane = "process"
