"""Numbers for Prometheus, counted from events. Floor 3.

Rules:

1. Nothing that a client chooses becomes a label, and no family has more than :data:`MOST` series (histograms
   :data:`MOST_HISTOGRAMS`): what comes later counts as ``other``.
2. An event costs a dictionary look-up and an addition. Prometheus's families are made of that at a scrape only: its
   own counters look their labels up under one lock and add under another, which costs five times as much.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Any, Generic, TypeVar

from grami_actors.job import TERMINAL
from grami_actors.telemetry import (
    ActorFailed,
    ActorRestarted,
    Bus,
    ConnectionClosed,
    ConnectionOpened,
    ConnectionRefused,
    DeadLetter,
    JobChanged,
    LimitHit,
    LoopLagged,
    RequestFinished,
    ToolCalled,
    family,
)

V = TypeVar("V")

MOST = 1_000
"""Series of one counter or gauge."""

MOST_HISTOGRAMS = 100
"""Series of one histogram, each of which is more than a dozen lines of text."""

OTHER = "other"
"""The labels of what comes when there are that many."""

PEAK = 60.0
"""Seconds of a window of :class:`_Peak`."""

_TIMES = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_LAGS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_REQUEST = ("type", "to")

_COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "grami_connections_opened": ("Connections opened", ()),
    "grami_connections_refused": ("Handshakes refused", ()),
    "grami_connections_closed": ("Connections closed, by close code", ("code",)),
    "grami_requests": ("Requests answered", (*_REQUEST, "outcome")),
    "grami_limited": ("Refusals because of a limit, by its setting", ("limit",)),
    "grami_tool_calls": ("Tool calls", ("tool", "outcome")),
    "grami_jobs": ("Jobs that came to their end, by how", ("tool", "state")),
    "grami_actor_failures": ("Failures of actors", ("actor",)),
    "grami_actor_restarts": ("Restarts of actors", ("actor",)),
    "grami_dead_letters": ("Messages that were not handled", ("reason",)),
}
_HISTOGRAMS: dict[str, tuple[str, tuple[str, ...], tuple[float, ...]]] = {
    "grami_request_seconds": ("Time from request to answer", _REQUEST, _TIMES),
    "grami_request_queue_wait_seconds": ("Time of it in the mailbox", _REQUEST, _TIMES),
    "grami_request_handling_seconds": ("Time of it in the handler", _REQUEST, _TIMES),
    "grami_tool_seconds": ("Time in the tool's function", ("tool",), _TIMES),
    "grami_tool_queue_wait_seconds": ("Time a call waited", ("tool",), _TIMES),
    "grami_loop_lag_seconds": ("How late the event loop came to what was due", (), _LAGS),
}
_GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "grami_connections": ("Open connections", ()),
    "grami_mailbox_depth": ("Messages queued now, all of a pool and its children", ("actor",)),
    "grami_mailbox_depth_max": ("Messages queued now in the fullest mailbox of these", ("actor",)),
    "grami_outbox_bytes": ("Bytes of answers not yet sent", ()),
    "grami_outbox_bytes_max": ("Bytes of answers not yet sent on the connection with the most", ()),
    "grami_loop_lag_max_seconds": ("The longest lag in this minute and the one before", ()),
}


class _Count:
    """A number that goes up."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class _Distribution:
    """How many values were at most as large as each bound, and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class _Series(dict[tuple[str, ...], V], Generic[V]):
    """What is counted, by its labels; a bounded number, the rest together."""

    __slots__ = ("_make", "_most")

    def __init__(self, make: Callable[[], V], most: int, labels: tuple[str, ...]) -> None:
        super().__init__()
        self._make = make
        self._most = most
        if not labels:  # it is there from the start: 0 says more than nothing
            self[()] = make()

    def __missing__(self, labels: tuple[str, ...]) -> V:
        if len(self) >= self._most:
            labels = (OTHER,) * len(labels)
        return self.setdefault(labels, self._make())


class _Peak:
    """The largest value in the window of time that is under way and the one before."""

    __slots__ = ("_before", "_now", "_number")

    def __init__(self) -> None:
        self._number = 0
        self._now = self._before = 0.0

    def add(self, value: float, now: float) -> None:
        """Take a value in account."""
        self._turn(now)
        self._now = max(self._now, value)

    def value(self, now: float) -> float:
        """The largest."""
        self._turn(now)
        return max(self._now, self._before)

    def _turn(self, now: float) -> None:
        number = int(now // PEAK)
        if number != self._number:
            self._before = self._now if number == self._number + 1 else 0.0
            self._number, self._now = number, 0.0


_Answered = tuple[_Count, _Distribution, _Distribution, _Distribution]


class Metrics:
    """Counts events for Prometheus, in a registry of its own; ``text`` is the exposition format.

    Args:
        bus: where the events come from.
        depths: gives the number of messages in the mailbox of every actor by name, asked for at each scrape.
        outboxes: gives the bytes in the outbox of every connection, asked for at each scrape.
        known: whether a message type is one of the swarm's; requests of others are counted with an empty type.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        bus: Bus,
        depths: Callable[[], Iterable[tuple[str, int]]],
        *,
        outboxes: Callable[[], Iterable[int]] = tuple,
        known: Callable[[str], bool] = bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # Imported here because it takes longer to import than the whole core, and only servers need it.
        from prometheus_client import CollectorRegistry, ProcessCollector  # noqa: PLC0415

        self._depths = depths
        self._outboxes = outboxes
        self._known = known
        self._clock = clock
        self._lock = threading.Lock()  # tools and agents on threads tell of themselves there
        self._counters = {name: _Series(_Count, MOST, labels) for name, (_, labels) in _COUNTERS.items()}
        self._histograms = {name: _histogram(labels, bounds) for name, (_, labels, bounds) in _HISTOGRAMS.items()}
        self._waits = (
            self._histograms["grami_request_queue_wait_seconds"],
            self._histograms["grami_request_handling_seconds"],
        )
        self._answered: dict[tuple[str, str, str], _Answered] = {}
        self._open = 0
        self._peak = _Peak()
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        self._subscribe(bus)

    def _subscribe(self, bus: Bus) -> None:
        bus.subscribe(self._on_opened, ConnectionOpened)
        bus.subscribe(self._on_closed, ConnectionClosed)
        bus.subscribe(self._on_request, RequestFinished)
        bus.subscribe(self._on_tool, ToolCalled)
        bus.subscribe(self._on_job, JobChanged)
        bus.subscribe(self._on_lag, LoopLagged)
        bus.subscribe(lambda _: self._count("grami_connections_refused"), ConnectionRefused)
        bus.subscribe(lambda e: self._count("grami_limited", e.limit), LimitHit)
        bus.subscribe(lambda e: self._count("grami_actor_failures", family(e.actor)), ActorFailed)
        bus.subscribe(lambda e: self._count("grami_actor_restarts", family(e.actor)), ActorRestarted)
        bus.subscribe(lambda e: self._count("grami_dead_letters", e.reason), DeadLetter)

    def _count(self, name: str, *labels: str) -> None:
        with self._lock:
            self._counters[name][labels].value += 1

    def _on_opened(self, _: ConnectionOpened) -> None:
        self._open += 1
        self._count("grami_connections_opened")

    def _on_closed(self, event: ConnectionClosed) -> None:
        self._open -= 1
        # A client may close with any code from 3000 to 4999.
        ours = 1000 <= event.code < 1016 or 4400 <= event.code < 4600  # noqa: PLR2004 - docs/protocol.md
        self._count("grami_connections_closed", str(event.code) if ours else OTHER)

    def _on_request(self, event: RequestFinished) -> None:
        key = event.message_type, event.to, event.outcome
        with self._lock:
            found = self._answered.get(key)
            if found is None:
                found = self._series(key)
            count, total, queue_wait, handling = found
            count.value += 1
            total.observe(event.duration)
            queue_wait.observe(event.queue_wait)
            handling.observe(event.handling)

    def _series(self, key: tuple[str, str, str]) -> _Answered:
        kind, to, outcome = key
        known = self._known(kind)
        labels = kind if known else "", family(to)
        # What nobody handled waited nowhere: its zeros go into histograms that nobody reads.
        queue_wait, handling = self._waits if to else (_histogram(_REQUEST, _TIMES),) * 2
        found = (
            self._counters["grami_requests"][*labels, outcome],
            self._histograms["grami_request_seconds"][labels],
            queue_wait[labels],
            handling[labels],
        )
        if known and len(self._answered) < MOST:  # what a client made up is not kept
            self._answered[key] = found
        return found

    def _on_tool(self, event: ToolCalled) -> None:
        labels = (event.tool,)
        with self._lock:
            self._counters["grami_tool_calls"][event.tool, event.outcome].value += 1
            self._histograms["grami_tool_seconds"][labels].observe(event.duration)
            self._histograms["grami_tool_queue_wait_seconds"][labels].observe(event.queue_wait)

    def _on_job(self, event: JobChanged) -> None:
        if event.told and event.state in TERMINAL:
            self._count("grami_jobs", event.tool, event.state)

    def _on_lag(self, event: LoopLagged) -> None:
        with self._lock:
            self._histograms["grami_loop_lag_seconds"][()].observe(event.seconds)
            self._peak.add(event.seconds, self._clock())

    # --- at a scrape ---

    def text(self) -> bytes:
        """The metrics in Prometheus's text exposition format, version 0.0.4."""
        from prometheus_client import generate_latest  # noqa: PLC0415

        return generate_latest(self._registry)

    def collect(self) -> list[Any]:
        """All families with their values now: what ``prometheus_client`` asks of a collector."""
        from prometheus_client.core import (  # noqa: PLC0415
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        found: list[Any] = []
        gauges = self._gauges()
        with self._lock:
            for name, (text, names) in _COUNTERS.items():
                found.append(counter := CounterMetricFamily(name, text, labels=names))
                for labels, count in self._counters[name].items():
                    counter.add_metric(labels, count.value)
            for name, (text, names, _) in _HISTOGRAMS.items():
                found.append(histogram := HistogramMetricFamily(name, text, labels=names))
                for labels, each in self._histograms[name].items():
                    histogram.add_metric(labels, _buckets(each), each.total)
        for name, (text, names) in _GAUGES.items():
            found.append(gauge := GaugeMetricFamily(name, text, labels=names))
            for labels, value in gauges[name].items():
                gauge.add_metric(labels, value)
        return found

    def _gauges(self) -> dict[str, dict[tuple[str, ...], float]]:
        sums: _Series[_Count] = _Series(_Count, MOST, ("actor",))
        largest: _Series[_Count] = _Series(_Count, MOST, ("actor",))
        for name, depth in self._depths():
            labels = (family(name),)
            sums[labels].value += depth
            most = largest[labels]
            most.value = max(most.value, depth)
        outboxes = tuple(self._outboxes())
        with self._lock:
            peak = self._peak.value(self._clock())
        return {
            "grami_connections": {(): self._open},
            "grami_mailbox_depth": {labels: each.value for labels, each in sums.items()},
            "grami_mailbox_depth_max": {labels: each.value for labels, each in largest.items()},
            "grami_outbox_bytes": {(): sum(outboxes)},
            "grami_outbox_bytes_max": {(): max(outboxes, default=0)},
            "grami_loop_lag_max_seconds": {(): peak},
        }


def _histogram(labels: tuple[str, ...], bounds: tuple[float, ...]) -> _Series[_Distribution]:
    return _Series(lambda: _Distribution(bounds), MOST_HISTOGRAMS, labels)


def _buckets(each: _Distribution) -> list[tuple[str, float]]:
    """As they are exposed: each with all that are smaller."""
    return list(zip((*map(str, each.bounds), "+Inf"), accumulate(each.counts), strict=True))
