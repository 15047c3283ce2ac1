"""The workloads of the gateway, done by a Growth Manager."""

from __future__ import annotations

import gateway
from measure import Run, Sample

from grami_actors import Agent, Config, GrowthManager, Message, Swarm, handles


class Echo(Message):
    """Say it again."""

    text: str


class Echoer(Agent):
    """Says it again."""

    @handles(Echo)
    def echo(self, message: Echo) -> str:
        return message.text


async def _round_trips(connections: int, n: int) -> Sample:
    async with GrowthManager(Swarm([Echoer]), Config(), publish=False) as manager:
        return await gateway.round_trips(manager.url, connections, n)


async def idle(n: int) -> Sample:
    async with GrowthManager(Swarm([Echoer]), Config(), publish=False) as manager:
        return await gateway.idle(manager.url, n)


RUNS: dict[str, Run] = {
    "gateway-1": lambda n: _round_trips(1, n),
    "gateway-64": lambda n: _round_trips(64, n),
    "gateway-1000": lambda n: _round_trips(1_000, n),
    "idle": idle,
}
