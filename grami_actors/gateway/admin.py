"""``admin.*``: look inside a running server, and end connections or the whole of it. Floor 12.

Whether the sender may is for the gateway to decide, before it asks here. All numbers are kept over a bounded window of
the last values of a bounded number of keys, whatever clients do.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Annotated, Any, ClassVar, Protocol, TypeVar

import msgspec

from grami_actors.cell import CONNECTION
from grami_actors.census import ActorInfo
from grami_actors.errors import ErrorCode, ProtocolError
from grami_actors.explain import explain
from grami_actors.frames import LONGEST_REASON
from grami_actors.profiling import LONGEST, Profile, Report
from grami_actors.system import ActorSystem
from grami_actors.telemetry import Bus, DeadLetter, LimitHit, LoopLagged, RequestFinished, SlowTurn, ToolCalled

WINDOW = 1_000
"""Values of one kind that percentiles are made of."""

MOST_KEYS = 200
"""Message types, tools, reasons and limits that are counted by name; the others together, as :data:`OTHERS`."""

OTHERS = "(others)"

SLOW_TURNS = 20
"""Slow turns that are remembered."""

RATE_SECONDS = 10.0
"""Seconds of which the rate of requests is an average."""

LAG_SECONDS = 60.0
"""Seconds of which the lag of the loop is told."""

T = TypeVar("T")


class ConnectionInfo(msgspec.Struct, frozen=True):
    """One open connection.

    Attributes:
        id: its name, as in ``welcome`` and in logs.
        peer: address and port of the client.
        principal: who it is.
        age_ms: since it was opened.
        inflight: its requests that have no answer yet.
        outbox_bytes: what it has not yet read.
        received: frames from the client.
        sent: frames to it.
        subscriptions: how many topics it hears.
    """

    id: str
    peer: str
    principal: str
    age_ms: int
    inflight: int
    outbox_bytes: int
    received: int
    sent: int
    subscriptions: int


class House(Protocol):
    """What is needed of the gateway."""

    system: ActorSystem

    def connections(self) -> Iterable[ConnectionInfo]:
        """All that are open."""

    def disconnect(self, connection_id: str, code: int, reason: str) -> bool:
        """Begin to close one; ``False`` if there is none of this id."""

    def begin_drain(self) -> None:
        """Take no new requests, let those in flight end, then stop. Twice is once."""


class RequestTimes(msgspec.Struct, frozen=True):
    """The requests of one type: all that were answered, and the times of the last thousand."""

    count: int
    errors: int
    p50_ms: float
    p95_ms: float
    p99_ms: float


class ToolTimes(msgspec.Struct, frozen=True):
    """The calls of one tool: all that ended, and the times of the last thousand in its function and its mailbox."""

    calls: int
    errors: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    queue_p50_ms: float
    queue_p95_ms: float


class SlowTurnInfo(msgspec.Struct, frozen=True):
    """An actor kept the event loop waiting; ``age_ms`` ago it had done so for ``ms``."""

    actor: str
    where: str
    ms: float
    age_ms: int


class LoopLag(msgspec.Struct, frozen=True):
    """How late the event loop was in the last minute."""

    p50_ms: float
    p99_ms: float
    max_ms: float


class ServerStats(msgspec.Struct, frozen=True):
    """The answer to ``admin.stats``; counts are since the start, dead letters by reason, limits by their setting."""

    uptime_ms: int
    connections: int
    requests_per_second: float
    requests: dict[str, RequestTimes]
    tools: dict[str, ToolTimes]
    slow_turns: tuple[SlowTurnInfo, ...]
    loop_lag: LoopLag
    dead_letters: dict[str, int]
    limits: dict[str, int]


class Connections(msgspec.Struct, frozen=True):
    """The answer to ``admin.connections``: the busiest, and how many there are in all."""

    connections: tuple[ConnectionInfo, ...]
    total: int


class Actors(msgspec.Struct, frozen=True):
    """The answer to ``admin.actors``: the tree without the actors of connections, and how many there are in all."""

    actors: tuple[ActorInfo, ...]
    total: int


class _Work:
    """What is counted of one message type, or one tool."""

    __slots__ = ("count", "errors", "queued", "took")

    def __init__(self) -> None:
        self.count = 0
        self.errors = 0
        self.took: deque[float] = deque(maxlen=WINDOW)
        self.queued: deque[float] = deque(maxlen=WINDOW)

    def add(self, outcome: str, took: float, queued: float) -> None:
        """One more."""
        self.count += 1
        self.errors += outcome != "ok"
        self.took.append(took)
        self.queued.append(queued)


class Stats:
    """Counts what happens. Listens to nothing that happens for every message.

    Args:
        bus: where the events come from, from any thread.
        clock: seconds, monotonic.
    """

    def __init__(self, bus: Bus, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._lock = threading.Lock()
        self._requests: dict[str, _Work] = {}
        self._tools: dict[str, _Work] = {}
        self._letters: dict[str, int] = {}
        self._limits: dict[str, int] = {}
        self._finished: deque[float] = deque(maxlen=WINDOW)
        self._slow: deque[tuple[float, SlowTurn]] = deque(maxlen=SLOW_TURNS)
        self._lags: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        heard = (self._on_request, RequestFinished), (self._on_tool, ToolCalled), (self._on_slow, SlowTurn)
        also = (self._on_lag, LoopLagged), (self._on_letter, DeadLetter), (self._on_limit, LimitHit)
        self._ends = [bus.subscribe(listener, kind) for listener, kind in (*heard, *also)]

    def close(self) -> None:
        """Stop listening."""
        while self._ends:
            self._ends.pop()()

    def _on_request(self, event: RequestFinished) -> None:
        with self._lock:
            _of(self._requests, event.message_type, _Work).add(event.outcome, event.duration, event.queue_wait)
            self._finished.append(self._clock())

    def _on_tool(self, event: ToolCalled) -> None:
        with self._lock:
            _of(self._tools, event.tool, _Work).add(event.outcome, event.duration, event.queue_wait)

    def _on_slow(self, event: SlowTurn) -> None:
        with self._lock:
            self._slow.append((self._clock(), event))

    def _on_lag(self, event: LoopLagged) -> None:
        with self._lock:
            self._lags.append((self._clock(), event.seconds))

    def _on_letter(self, event: DeadLetter) -> None:
        self._count(self._letters, event.reason)

    def _on_limit(self, event: LimitHit) -> None:
        self._count(self._limits, event.limit)

    def _count(self, counts: dict[str, int], key: str) -> None:
        with self._lock:
            key = key if key in counts or len(counts) < MOST_KEYS else OTHERS
            counts[key] = counts.get(key, 0) + 1

    def snapshot(self, connections: int) -> ServerStats:
        """All of it now."""
        now = self._clock()
        with self._lock:
            lags = sorted(lag for at, lag in self._lags if now - at <= LAG_SECONDS)
            return ServerStats(
                uptime_ms=round((now - self._since) * 1000),
                connections=connections,
                requests_per_second=self._rate(now),
                requests={
                    name: RequestTimes(work.count, work.errors, *_times(work)) for name, work in _all(self._requests)
                },
                tools={
                    name: ToolTimes(work.count, work.errors, *_times(work), *_waits(work))
                    for name, work in _all(self._tools)
                },
                slow_turns=tuple(
                    SlowTurnInfo(turn.actor, turn.where, round(turn.seconds * 1000, 3), round((now - at) * 1000))
                    for at, turn in reversed(self._slow)
                ),
                loop_lag=LoopLag(_ms(lags, 0.5), _ms(lags, 0.99), _ms(lags, 1.0)),
                dead_letters=dict(self._letters),
                limits=dict(self._limits),
            )

    def _rate(self, now: float) -> float:
        recent = sum(now - at <= RATE_SECONDS for at in self._finished)
        seconds = min(RATE_SECONDS, now - self._since)
        if recent == WINDOW:  # there were more than are remembered
            seconds = now - self._finished[0]
        return round(recent / seconds, 1) if seconds > 0 else 0.0


def _of(known: dict[str, T], key: str, make: Callable[[], T]) -> T:
    """What is counted under a key: clients may make up any number of them."""
    key = key if key in known or len(known) < MOST_KEYS else OTHERS
    if key not in known:
        known[key] = make()
    return known[key]


def percentile(ordered: list[float], part: float) -> float:
    """The smallest value that at least this part of all values does not exceed (nearest rank); 0 if there is none."""
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)] if ordered else 0.0


def _ms(ordered: list[float], part: float) -> float:
    return round(percentile(ordered, part) * 1000, 3)


def _all(works: dict[str, _Work]) -> list[tuple[str, _Work]]:
    return sorted(works.items(), key=lambda item: (-item[1].count, item[0]))


def _times(work: _Work) -> tuple[float, float, float]:
    ordered = sorted(work.took)
    return _ms(ordered, 0.5), _ms(ordered, 0.95), _ms(ordered, 0.99)


def _waits(work: _Work) -> tuple[float, float]:
    ordered = sorted(work.queued)
    return _ms(ordered, 0.5), _ms(ordered, 0.95)


# --- the messages ---


class _Some(msgspec.Struct):
    limit: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100


class _None(msgspec.Struct):
    pass


class _Profile(msgspec.Struct):
    seconds: Annotated[float, msgspec.Meta(gt=0, le=LONGEST)] = 10.0


class _Disconnect(msgspec.Struct):
    connection_id: str
    code: Annotated[int, msgspec.Meta(ge=4000, le=4999)] = 4403
    reason: Annotated[str, msgspec.Meta(max_length=LONGEST_REASON)] = "disconnected by an administrator"


class Admin:
    """Answers the ``admin.*`` messages of one gateway.

    Args:
        house: the gateway.
    """

    def __init__(self, house: House) -> None:
        self._house = house
        self.stats = Stats(house.system.bus, house.system.now)

    def close(self) -> None:
        """Stop listening to events."""
        self.stats.close()

    async def answer(self, kind: str, fields: dict[str, Any]) -> Any:
        """The ``data`` of the answer to a message.

        Args:
            kind: its type, such as ``admin.stats``.
            fields: its fields; those that it does not know are ignored.

        Raises:
            ProtocolError: UNKNOWN_TYPE, or VALIDATION_FAILED with the path of what is wrong.
            GramiError: RESOURCE_EXHAUSTED, a profile is running already.
        """
        if kind not in self._KINDS:
            known = ", ".join(sorted(self._KINDS))
            raise ProtocolError(
                f"there is no {kind[:100]!r}; there are {known}", code=ErrorCode.UNKNOWN_TYPE, param="$.type"
            )
        fitting, work = self._KINDS[kind]
        try:
            wanted = msgspec.convert(fields, fitting)
        except msgspec.ValidationError as error:
            text, param = explain(error)
            raise ProtocolError(text, code=ErrorCode.VALIDATION_FAILED, param=param) from None
        return await work(self, wanted)

    async def _connections(self, wanted: _Some) -> Connections:
        found = tuple(self._house.connections())
        return Connections(tuple(heapq.nlargest(wanted.limit, found, key=_business)), len(found))

    async def _actors(self, wanted: _Some) -> Actors:
        roots = [root for root in self._house.system.tree() if not root.name.startswith(CONNECTION)]
        left = iter(range(wanted.limit))
        return Actors(_pruned(roots, left), sum(map(_size, roots)))

    async def _stats(self, _: _None) -> ServerStats:
        return self.stats.snapshot(sum(1 for _ in self._house.connections()))

    async def _profile(self, wanted: _Profile) -> Report:
        profile = Profile(self._house.system.bus)
        with profile:
            await asyncio.sleep(wanted.seconds)
        return profile.report()

    async def _disconnect(self, wanted: _Disconnect) -> dict[str, bool]:
        if len(wanted.reason.encode(errors="replace")) > LONGEST_REASON:
            text = f"a reason has at most {LONGEST_REASON} bytes of UTF-8 (at $.reason)"
            raise ProtocolError(text, code=ErrorCode.VALIDATION_FAILED, param="$.reason")
        return {"disconnected": self._house.disconnect(wanted.connection_id, wanted.code, wanted.reason)}

    async def _drain(self, _: _None) -> dict[str, bool]:
        self._house.begin_drain()
        return {"draining": True}

    _KINDS: ClassVar[dict[str, tuple[type[Any], Callable[[Admin, Any], Awaitable[Any]]]]] = {
        "admin.connections": (_Some, _connections),
        "admin.actors": (_Some, _actors),
        "admin.stats": (_None, _stats),
        "admin.profile": (_Profile, _profile),
        "admin.disconnect": (_Disconnect, _disconnect),
        "admin.drain": (_None, _drain),
    }


def _business(each: ConnectionInfo) -> tuple[int, int, int]:
    return each.inflight, each.outbox_bytes, each.received


def _size(actor: ActorInfo) -> int:
    return 1 + sum(map(_size, actor.children))


def _load(actor: ActorInfo) -> int:
    return actor.mailbox.depth + actor.mailbox.parked + sum(map(_load, actor.children))


def _pruned(actors: Iterable[ActorInfo], left: Iterator[int]) -> tuple[ActorInfo, ...]:
    """The most loaded first, and of each its children, as long as there are any left to tell of."""
    ordered = sorted(actors, key=lambda each: (-_load(each), each.name))
    return tuple(
        msgspec.structs.replace(each, children=_pruned(each.children, left))
        for each in ordered
        if next(left, None) is not None
    )
