"""The workloads, done by autogen-core's ``SingleThreadedAgentRuntime``. Its tracing is off, as it would be in a race.

Its handlers are coroutine functions; its tell is a message published to a topic that one agent subscribes to;
its agents are never stopped.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass

from autogen_core import (
    AgentId,
    MessageContext,
    RoutedAgent,
    SingleThreadedAgentRuntime,
    TopicId,
    TypeSubscription,
    message_handler,
)
from measure import ACTORS, NAP, OUTSTANDING, RING, Meter, Run, Sample, check, overhead_ms, rss

os.environ["AUTOGEN_DISABLE_RUNTIME_TRACING"] = "true"


@dataclass
class Number:
    """A message."""

    value: int


@dataclass
class Order:
    """Ask this one so many times."""

    to: str
    count: int
    actors: int = 1
    outstanding: int = 1


class Sink(RoutedAgent):
    """Counts what it is told, and answers with the count."""

    def __init__(self) -> None:
        super().__init__("sink")
        self.count = 0

    @message_handler
    async def on_number(self, message: Number, ctx: MessageContext) -> Number:
        self.count += 1
        return Number(self.count)


class Napper(RoutedAgent):
    """Waits a moment before it answers."""

    def __init__(self) -> None:
        super().__init__("napper")

    @message_handler
    async def on_number(self, message: Number, ctx: MessageContext) -> Number:
        await asyncio.sleep(NAP)
        return message


class Asker(RoutedAgent):
    """Asks, as many at once as the order says."""

    def __init__(self) -> None:
        super().__init__("asker")

    @message_handler
    async def on_order(self, message: Order, ctx: MessageContext) -> Number:
        to = [AgentId(message.to, str(number)) for number in range(message.actors)]
        answered = 0
        if message.outstanding == 1:
            for number in range(message.count):
                answered = (await self.send_message(Number(number), to[0])).value
            return Number(answered)
        for _ in range(message.count // message.outstanding):
            asks = (self.send_message(Number(number), to[number % len(to)]) for number in range(message.outstanding))
            answered += len(await asyncio.gather(*asks))
        return Number(answered)


class Hop(RoutedAgent):
    """Passes a number on, one less each time; at zero it says so."""

    def __init__(self, actors: int, done: asyncio.Event) -> None:
        super().__init__("hop")
        self.actors = actors
        self.done = done

    @message_handler
    async def on_number(self, message: Number, ctx: MessageContext) -> None:
        if message.value == 0:
            self.done.set()
        else:
            following = TopicId("hop", str((int(self.id.key) + 1) % self.actors))
            await self.publish_message(Number(message.value - 1), following)


async def _runtime() -> SingleThreadedAgentRuntime:
    runtime = SingleThreadedAgentRuntime()
    await Sink.register(runtime, "sink", Sink)
    await Napper.register(runtime, "napper", Napper)
    await Asker.register(runtime, "asker", Asker)
    runtime.start()
    return runtime


async def tell(n: int) -> Sample:
    runtime = await _runtime()
    await runtime.add_subscription(TypeSubscription("numbers", "sink"))
    topic = TopicId("numbers", "0")
    with Meter() as meter:
        for number in range(n):
            await runtime.publish_message(Number(number), topic)
        await runtime.stop_when_idle()
    sink = await runtime.try_get_underlying_agent_instance(AgentId("sink", "0"), Sink)
    check(sink.count, n)
    return meter.sample(n)


async def _asks(order: Order) -> Meter:
    runtime = await _runtime()
    for number in range(order.actors):
        await runtime.get(order.to, str(number), lazy=False)
    with Meter() as meter:
        answer = await runtime.send_message(order, AgentId("asker", "0"))
    check(answer.value, order.count)
    return meter


async def ask_coroutine(n: int) -> Sample:
    return (await _asks(Order("sink", n))).sample(n)


async def outstanding(n: int) -> Sample:
    return (await _asks(Order("sink", n, ACTORS, OUTSTANDING))).sample(n)


async def fan_out(n: int) -> Sample:
    meter = await _asks(Order("napper", n, ACTORS, ACTORS))
    return meter.sample(n, overhead_ms=overhead_ms(meter, n // ACTORS, NAP))


async def _hops(actors: int, n: int) -> Sample:
    done = asyncio.Event()
    runtime = await _runtime()
    await Hop.register(runtime, "hop", lambda: Hop(actors, done))
    await runtime.add_subscription(TypeSubscription("hop", "hop"))
    for number in range(actors):
        await runtime.get("hop", str(number), lazy=False)
    with Meter() as meter:
        await runtime.publish_message(Number(n - 1), TopicId("hop", "0"))
        await done.wait()
    return meter.sample(n)


async def ping_pong(n: int) -> Sample:
    return await _hops(2, n)


async def ring(n: int) -> Sample:
    return await _hops(RING, n)


async def spawn(n: int) -> Sample:
    runtime = await _runtime()
    before = rss()
    with Meter() as meter:
        agents = [await runtime.get("sink", str(number), lazy=False) for number in range(n)]
    return meter.sample(len(agents), bytes_each=(rss() - before) / n)


RUNS: dict[str, Run] = {
    "tell": tell,
    "ask-coroutine": ask_coroutine,
    "outstanding": outstanding,
    "ping-pong": ping_pong,
    "ring": ring,
    "spawn-small": spawn,
    "spawn-large": spawn,
    "fan-out": fan_out,
}
