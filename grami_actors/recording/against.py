"""Recorded client traffic on other agents: what each request is answered now, and what it was answered. Floor 15.

The agents run in real time, since what is not recorded is asked of the swarm's own model and tools. No time is waited
for: a client sends what it sent as soon as all clients have the answers that they had by then.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from grami_actors.config import Config
from grami_actors.credentials import Authority
from grami_actors.gateway.memory import MemoryGateway
from grami_actors.manager import package_version
from grami_actors.permissions import Permissions
from grami_actors.policy import Policy
from grami_actors.recording.account import Account, Difference, Frames, as_read, name_of
from grami_actors.recording.answers import Answers
from grami_actors.recording.replay import Clients
from grami_actors.recording.tape import Tape
from grami_actors.swarm import Swarm
from grami_actors.system import ActorSystem
from grami_actors.telemetry import FramePassed

PATIENCE = 60.0
"""Seconds that one answer may take."""

Verdict = Literal["same", "changed", "error", "missing"]


class Compared(msgspec.Struct, frozen=True):
    """One request, then and now.

    Attributes:
        connection: of the client.
        request: its id.
        type: of the message.
        verdict: ``error`` where it fails now and did not; ``missing`` where there is no answer.
        recorded: the answer that it got, as plain data.
        now: the answer that it gets.
    """

    connection: str
    request: str
    type: str
    verdict: Verdict
    recorded: Any
    now: Any

    def lines(self) -> list[str]:
        """How the answers differ."""
        return Difference(0.0, "", self.recorded, self.now).lines()


class Against(msgspec.Struct, frozen=True):
    """What came of the requests of a recording.

    Attributes:
        requests: all that were answered in the recording, in that order.
        recorded_calls: calls of models and tools that were answered from the recording.
        other_calls: those that were not in it, and were done.
    """

    requests: tuple[Compared, ...]
    recorded_calls: int
    other_calls: int

    @property
    def same(self) -> bool:
        """Whether all answers are the same."""
        return all(each.verdict == "same" for each in self.requests)


async def against(tape: Tape, swarm: Swarm, config: Config | None = None) -> Against:
    """Send what the clients of a recording sent to other agents.

    Args:
        tape: the recording.
        swarm: its model and tools do what is not recorded.
        config: the limits and rules of the gateway.

    Raises:
        ConfigError: the recording cannot be read.
        StartFailed: an agent could not start.
    """
    entries = list(tape)
    account, answers, config = Account(entries), Answers(entries, live=True), config or Config()
    permissions = Permissions(config.rules)
    policy = Policy(Authority(), permissions, config.rates)
    async with ActorSystem(permissions=permissions) as system:
        played = answers.swarm(swarm)
        await played.start(system)
        gateway = MemoryGateway(system, played.catalog(), config, policy, package_version())
        traffic = _Traffic(account)
        system.bus.subscribe(traffic.passed, FramePassed)
        clients = Clients(gateway, account.frames)
        try:
            await traffic.play(clients)
        finally:
            clients.close()
            await gateway.close()
    return Against(tuple(traffic.compared()), answers.used, len(answers.missed))


class _Traffic:
    """The answers of one run, as they come."""

    def __init__(self, account: Account) -> None:
        self._frames = account.frames
        self._words = Frames(account)
        self._came: defaultdict[tuple[str, str], list[Any]] = defaultdict(list)
        self._changed = asyncio.Event()
        self._closing: list[asyncio.Task[None]] = []

    def passed(self, event: FramePassed) -> None:
        if event.way == "out":
            frame = as_read(event.encoding.decode(event.frame))
            if _is_answer(frame):
                self._came[event.connection, name_of(frame)].append(frame)
                self._changed.set()

    async def play(self, clients: Clients) -> None:
        answered: defaultdict[tuple[str, str], int] = defaultdict(int)
        opened = {each.connection for each in self._frames if each.way == "open"}
        for each in self._frames:
            if each.connection not in opened:
                continue
            if each.way == "out" and _is_answer(each.frame):
                key = each.connection, name_of(each.frame)
                answered[key] += 1
                await self._until(key, answered[key])
            elif each.way == "close":
                self._closing.append(asyncio.get_running_loop().create_task(clients.do(each)))
            else:
                await clients.do(each)

    async def _until(self, key: tuple[str, str], count: int) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                while len(self._came[key]) < count:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return

    def compared(self) -> Iterator[Compared]:
        seen: defaultdict[tuple[str, str], int] = defaultdict(int)
        for each in self._frames:
            if each.way != "out" or not _is_answer(each.frame):
                continue
            key = each.connection, name_of(each.frame)
            came, place = self._came[key], seen[key]
            seen[key] += 1
            now = self._words.compared(key, came[place]) if place < len(came) else None
            recorded = self._words.compared(key, each.frame)
            kind = self._words.type_of(key)
            yield Compared(*key, kind, _verdict(recorded, now), _said(recorded), None if now is None else _said(now))


def _is_answer(frame: Any) -> bool:
    return isinstance(frame, dict) and frame.get("type") == "response"


def _verdict(recorded: Any, now: Any) -> Verdict:
    if now is None:
        return "missing"
    if now == recorded:
        return "same"
    return "error" if now.get("status") == "error" != recorded.get("status") else "changed"


def _said(frame: dict[str, Any]) -> Any:
    """What an answer says, without its envelope."""
    return {name: value for name, value in frame.items() if name not in {"type", "id"}}
