"""A recording played again, in virtual time, without models and tools, on the agents as they are now. Floor 15.

What the clients sent is sent when it was sent, and :mod:`~grami_actors.recording.follow` has the actors do what they
did; the first thing that is not as recorded ends the replay.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
from typing import Any

import msgspec

from grami_actors.config import Config
from grami_actors.credentials import Authority
from grami_actors.encoding import JSON, MSGPACK, Encoding
from grami_actors.errors import GramiError, describe
from grami_actors.gateway.memory import End, MemoryGateway
from grami_actors.history import Framed, Told
from grami_actors.manager import package_version
from grami_actors.messages import ToolCall
from grami_actors.permissions import Permissions
from grami_actors.policy import Policy
from grami_actors.principals import ANONYMOUS, OPERATOR, Principal
from grami_actors.recording.account import Account, Difference
from grami_actors.recording.answers import Answers
from grami_actors.recording.follow import PATIENCE, Follower
from grami_actors.recording.recorder import HIDDEN
from grami_actors.recording.system import System
from grami_actors.recording.tape import Header, Tape
from grami_actors.simulation.leaks import Nondeterminism, sealed
from grami_actors.simulation.loop import BEGIN, VirtualLoop
from grami_actors.simulation.schedule import Schedule
from grami_actors.swarm import Swarm
from grami_actors.telemetry import FramePassed, MessageHandled

ROOM = 1 << 40
"""Bytes that may wait for a client: what it did not read is not recorded."""

_PLAIN = {"str": str, "int": int, "float": float, "bool": bool, "dict": dict, "list": list, "NoneType": type(None)}


class Clients:
    """Raw ends that send what was sent.

    Args:
        gateway: where they connect.
        frames: of the recording.
    """

    def __init__(self, gateway: MemoryGateway, frames: list[Framed]) -> None:
        self._gateway = gateway
        self._ends: dict[str, End] = {}
        self._known = {each.connection: each.frame for each in reversed(frames) if each.way == "auth"}
        # What could not be read may be of the wrong kind; an answer never is.
        order = sorted(frames, key=lambda each: each.way == "out")
        self._encodings = {each.connection: each.encoding for each in order if each.frame is not None}
        self._readers: list[asyncio.Task[None]] = []

    async def do(self, each: Framed) -> None:
        """Do what a client did."""
        if each.way == "open":
            await self._open(each.connection)
            return
        end = self._ends.get(each.connection)
        # What is sent to a connection that is closed is sent too late; it was so then.
        with contextlib.suppress(Exception):
            if end is None or each.way not in {"in", "close"}:
                return
            if each.way == "close":
                await _close(end, each.frame)
            else:
                await _send(end, each.frame, _encoding(each.encoding))

    async def _open(self, connection: str) -> None:
        known, encoding = self._known.get(connection), _encoding(self._encodings.get(connection, ""))
        end = await self._gateway.connect(encoding, principal=_principal(known), room=ROOM)
        self._ends[connection] = end
        self._readers.append(asyncio.get_running_loop().create_task(_read(end)))

    def close(self) -> None:
        """Go away."""
        for each in self._readers:
            each.cancel()


async def _read(end: End) -> None:
    with contextlib.suppress(Exception):  # its end is what was to come
        while True:
            await end.recv()


async def _close(end: End, said: Any) -> None:
    code = said.get("code", 1000) if isinstance(said, dict) else 1000
    if code in {1000, 1001}:
        await end.close(code)
    else:
        end.abort()


async def _send(end: End, frame: Any, encoding: Encoding) -> None:
    if isinstance(frame, dict) and frame.get("type") != "auth":  # who it is was known when it came; or it was no object
        shown = {name: value for name, value in frame.items() if value != HIDDEN}
        await end.send(encoding.encode(shown), text=encoding.text)


def _encoding(name: str) -> Encoding:
    return MSGPACK if name == MSGPACK.name else JSON


def _principal(known: Any) -> Principal | None:
    if not isinstance(known, dict):
        return None
    name, scopes = str(known.get("principal", "")), frozenset(map(str, known.get("scopes", ())))
    own = {each.name: each for each in (ANONYMOUS, OPERATOR)}
    return own.get(name) or Principal(name, scopes)


class Replayed(msgspec.Struct, frozen=True):
    """What came of a replay.

    Attributes:
        same: whether all was as recorded.
        messages: that were as recorded, up to the first difference.
        requests: that clients sent.
        seconds: of virtual time.
        cut: whether the recording has no end of its own: it was played as far as it goes.
        difference: the first; ``None`` if there is none.
    """

    same: bool
    messages: int
    requests: int
    seconds: float
    cut: bool
    difference: Difference | None = None


def replay(tape: Tape, swarm: Swarm, config: Config | None = None) -> Replayed:
    """Play a recording on a swarm, as far as it is as recorded.

    Args:
        tape: the recording.
        swarm: its agents are run; its model and tools are not.
        config: the limits and rules of the gateway.

    Raises:
        ConfigError: the recording cannot be read.
    """
    entries = list(tape)
    account = Account(entries, cut=tape.end is None or bool(tape.end.text))
    for each in swarm.tools:
        with contextlib.suppress(Exception):  # what it was called for is recorded
            each.load()
    loop = VirtualLoop(Schedule(0))
    follower = Follower(account, loop)
    run = _Run(tape.header, follower, Answers(entries), config or Config(), loop)
    collecting = gc.isenabled()
    gc.disable()  # what it finds, and when, is another in each run
    try:
        with sealed(random.Random("grami_actors replay others")):
            difference = loop.run(run.perform(swarm))
    except Nondeterminism as leak:
        difference = Difference(loop.elapsed, "something is another in each run", text=str(leak))
    except Exception as error:  # noqa: BLE001 - whatever the start of an agent raises, it is not as recorded
        difference = Difference(loop.elapsed, "the run broke off", text=describe(error))
    finally:
        if collecting:
            gc.enable()
    return Replayed(
        same=difference is None,
        messages=follower.finished,
        requests=sum(each.way == "in" for each in account.frames),
        seconds=round(account.end, 6),
        cut=account.cut,
        difference=difference,
    )


class _Run:
    """One replay, from its start to its end."""

    def __init__(self, header: Header, follower: Follower, answers: Answers, config: Config, loop: VirtualLoop) -> None:
        self._begun = header.begun.timestamp()
        self._follower = follower
        self._account = follower.account
        self._answers = answers
        self._config = config
        self._loop = loop

    async def perform(self, swarm: Swarm) -> Difference | None:
        """The first difference; ``None`` if there is none."""
        follower, config, permissions = self._follower, self._config, Permissions(self._config.rules)
        policy = Policy(Authority(), permissions, config.rates, wall=lambda: self._begun)
        async with System(self._loop, follower, self._begun, permissions) as system:
            system.bus.subscribe(follower.ended, MessageHandled)
            system.bus.subscribe(follower.passed, FramePassed)
            system.bus.clock(follower)
            played = self._answers.swarm(swarm)
            await played.start(system)
            gateway = MemoryGateway(system, played.catalog(), config, policy, package_version())
            self._plan_outside(system, swarm)
            clients = Clients(gateway, self._account.frames)
            playing = asyncio.get_running_loop().create_task(self._play(clients))
            self._loop.call_at(BEGIN + self._account.end + PATIENCE, follower.end)
            difference = await follower.over
            playing.cancel()
            clients.close()
            system.bus.clock(None)
        return self._explained(difference)

    def _explained(self, difference: Difference | None) -> Difference | None:
        """With what models and tools had no answer for, if there is such a thing: it came first."""
        if difference is None:
            return None
        faults = f"faults were put into the recorded run ({self._account.faults}), which are not played"
        text = "\n".join([*self._answers.missed[:1], *([faults] if self._account.faults else [])])
        return msgspec.structs.replace(difference, text=text)

    # --- what comes from outside ---

    async def _play(self, clients: Clients) -> None:
        frames, gone = self._account.frames, dict(self._account.gone)
        for each in frames:
            if each.way == "close":
                gone.pop(each.connection, None)
        cut = [Framed(at=at, connection=name, way="close", frame={"code": 1006}) for name, at in gone.items()]
        for each in sorted([*frames, *cut], key=self._when):
            if (seconds := BEGIN + self._when(each) - self._loop.time()) > 0:
                await asyncio.sleep(seconds)
            if each.way == "close":
                self._closing = asyncio.get_running_loop().create_task(clients.do(each))  # it may take a while
            else:
                await clients.do(each)

    def _when(self, each: Framed) -> float:
        """When it was done: what a client that went had asked for was cancelled before its end was told, or after."""
        return self._account.gone.get(each.connection, each.at) if each.way == "close" else each.at

    def _plan_outside(self, system: System, swarm: Swarm) -> None:
        """What the program itself told and killed, beside its actors and clients."""
        types: dict[str, Any] = {**_PLAIN, **swarm.types(), "tool_call": ToolCall}
        for told in self._account.told:
            if not told.sender and not told.cause and told.type in types:
                self._loop.call_at(BEGIN + told.sent, self._tell, system, told, types[told.type])
        for at, actor in self._account.kills:
            self._loop.call_at(BEGIN + at, _kill, system, actor)

    def _tell(self, system: System, told: Told, kind: Any) -> None:
        if told not in self._account.sent["", "", told.to]:  # it came by itself: of a timer or a hook
            return
        cell = system.table.cells.get(told.to)
        with contextlib.suppress(GramiError, msgspec.ValidationError):
            message = msgspec.convert(told.data, kind)
            if cell is not None and told.asked:
                cell.ask(message, timeout=told.at - told.sent + PATIENCE).on_done(_heard)
            elif cell is not None:
                cell.tell(message)


def _heard() -> None:
    """Whoever asked is not here."""


def _kill(system: System, actor: str) -> None:
    if actor in system.table.cells:
        system.kill(actor)
