"""Where does the time of handlers go? Measured while a profile runs, and at no cost while none does. Floor 7.

Rules:

1. *Own* time is the time in which a handler's code held its thread: of a coroutine, the sum of its steps. What is left
   of its duration it *awaited* something. In a worker process nobody looks: all of the duration is its own.
2. A thread runs one handler at a time. A handler that begins inside another (a coroutine that waits hands out turns)
   stops the clock of the outer one, so no moment is counted twice.
3. A *stack* is the chain of who asked whom, read from the scopes: ``client;strategist.content_request;tool:hashtags``.
   What is told belongs below the handler whose request it is part of; outside any request it begins a stack.
4. All tables are bounded: what comes beyond the bound is added up under :data:`OTHERS`, and what is asked beyond
   :data:`DEEPEST` handlers counts as the deepest one's own.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Coroutine
from time import perf_counter
from types import TracebackType
from typing import Any, Self
from weakref import WeakKeyDictionary

import msgspec

from grami_actors.cell import CONNECTION, CONTROL, Cell
from grami_actors.errors import ErrorCode, GramiError
from grami_actors.messages import Envelope, Scope, type_name
from grami_actors.telemetry import Bus

LONGEST = 300.0
"""Seconds that a profile may run when a client asks for it."""

MOST_HANDLERS = 1_000
"""Rows of a profile."""

MOST_STACKS = 10_000
"""Different stacks of a profile."""

DEEPEST = 64
"""Handlers in one stack."""

OTHERS = "(others)"
"""What stands for all that came beyond a bound."""

CLIENT = "client"
"""Where the stacks of clients' requests begin."""

TOOL = "tool:"

_NUMBER = re.compile(r"-\d+(?=/|$)")


class HandlerTimes(msgspec.Struct, frozen=True):
    """What one kind of message took in one pool of actors, or one tool. All times are sums in milliseconds.

    Attributes:
        name: ``POOL.MESSAGE_TYPE``, or ``tool:NAME``.
        calls: messages; also those whose handler was still at work at the end.
        queue_ms: in the mailbox.
        own_ms: in which its code ran.
        awaited_ms: in which it waited for something else.
        total_ms: from the first to the last step; the sum of the two.
        max_ms: the longest call.
    """

    name: str
    calls: int
    queue_ms: float
    own_ms: float
    awaited_ms: float
    total_ms: float
    max_ms: float


class Report(msgspec.Struct, frozen=True):
    """What a profile found.

    Attributes:
        seconds: how long it ran.
        handlers: the most own time first.
        stacks: lines of the folded format of flame graph tools: frames joined by ``;``, a space, and the own time in
            microseconds (https://github.com/brendangregg/FlameGraph#2-fold-stacks).
    """

    seconds: float
    handlers: tuple[HandlerTimes, ...]
    stacks: tuple[str, ...]


class _Row:
    """One handler's sums, in seconds."""

    __slots__ = ("calls", "longest", "own", "queued", "total")

    def __init__(self) -> None:
        self.calls = 0
        self.queued = self.own = self.total = self.longest = 0.0


class _Node:
    """One stack: its last frame, below those of ``above``."""

    __slots__ = ("above", "below", "depth", "label", "own")

    def __init__(self, label: str, above: _Node | None) -> None:
        self.label = label
        self.above = above
        self.below: dict[str, _Node] = {}
        self.depth: int = 0 if above is None else above.depth + 1
        self.own = 0.0

    def path(self) -> str:
        """The frames, from the outermost."""
        labels, node = [], self
        while node.above is not None:
            labels.append(node.label)
            node = node.above
        return ";".join(reversed(labels))


class _Span:
    """One message in the hands of one handler."""

    __slots__ = ("begun_at", "label", "node", "own", "queued")

    def __init__(self, label: str, node: _Node, queued: float, begun_at: float) -> None:
        self.label = label
        self.node = node
        self.queued = queued
        self.own = 0.0
        self.begun_at = begun_at


class _Thread:
    """What runs on one thread: the innermost handler last; its time counts since ``since``."""

    __slots__ = ("_clock", "since", "spans")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.spans: list[_Span] = []
        self.since = 0.0

    def enter(self, span: _Span) -> None:
        """It runs from here on; whoever ran stands still."""
        now = self._clock()
        if self.spans:
            self.spans[-1].own += now - self.since
        self.spans.append(span)
        self.since = now

    def leave(self) -> None:
        """It stands still, or is over; whoever ran before goes on."""
        now = self._clock()
        self.spans.pop().own += now - self.since
        self.since = now


class Profile:
    """Measures all handlers of a system from ``with`` to its end; then :meth:`report` tells.

    Args:
        bus: the system's.
        clock: seconds, monotonic; on any thread the same.

    Raises (on entering):
        GramiError: RESOURCE_EXHAUSTED, another profile runs.
    """

    def __init__(self, bus: Bus, clock: Callable[[], float] = perf_counter) -> None:
        self._bus = bus
        self._clock = clock
        self._lock = threading.Lock()
        self._local = threading.local()
        self._threads: list[_Thread] = []
        self._open: set[_Span] = set()
        self._rows: dict[str, _Row] = {}
        self._root = _Node("", None)
        self._stacks = 0
        self._nodes: WeakKeyDictionary[Scope, _Node] = WeakKeyDictionary()
        self._begun_at = 0.0
        self._seconds = 0.0

    def __enter__(self) -> Self:
        if self._bus.clocked is not None:
            raise GramiError(
                "another profile runs on this server; try again when it has ended", code=ErrorCode.RESOURCE_EXHAUSTED
            )
        self._bus.clock(self)
        self._begun_at = self._clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bus.clock(None)
        now = self._clock()
        self._seconds = now - self._begun_at
        for thread in self._threads:
            for span in thread.spans[-1:]:  # in the middle of a step
                span.own += now - thread.since
                thread.since = now
        for span in tuple(self._open):
            self.end(span)

    def report(self) -> Report:
        """What was measured; complete after the end."""
        with self._lock:
            rows = sorted(self._rows.items(), key=lambda item: (-item[1].own, item[0]))
            found = self._walk()
        return Report(
            seconds=round(self._seconds, 3),
            handlers=tuple(_times(name, row) for name, row in rows),
            stacks=tuple(f"{node.path()} {round(node.own * 1e6)}" for node in found if round(node.own * 1e6)),
        )

    def _walk(self) -> list[_Node]:
        found, pending = [], [self._root]
        while pending:
            node = pending.pop()
            found.append(node)
            pending.extend(sorted(node.below.values(), key=lambda each: each.label, reverse=True))
        return found

    # --- what cells call: telemetry.Clock ---

    def sent(self, cell: Cell, envelope: Envelope) -> None:
        """Say which handler a request will be in: what is done for it may come before it is seen here itself."""
        if (scope := _asked(envelope)) is not None:
            self._place(scope, envelope.sender, _label(cell, envelope.message))

    def handle(self, cell: Cell, envelope: Envelope) -> Coroutine[Any, Any, None] | None:
        """Run the handler as :meth:`Cell.handle` does, and measure it."""
        message, actor = envelope.message, cell.actor
        span = self._begin(cell, envelope)
        thread = self.thread()
        thread.enter(span)
        try:
            result = actor._handle_control(message) if message.__class__ in CONTROL else actor.on_receive(message)
        except BaseException as error:  # noqa: BLE001 - S15: nothing leaves the cell
            thread.leave()
            self.end(span)
            cell.fail(envelope, error, actor)
            return None
        thread.leave()
        if result is not None and hasattr(result.__class__, "__await__"):
            return _Steps(self, span, cell.drive(envelope, result, actor))
        self.end(span)
        cell.succeed(envelope, result)
        return None

    def thread(self) -> _Thread:
        """What runs on this thread."""
        here: _Thread | None = getattr(self._local, "thread", None)
        if here is None:
            here = self._local.thread = _Thread(self._clock)
            self._threads.append(here)
        return here

    def given(self, _cell: Cell, _envelope: Envelope) -> bool:
        """Always."""
        return True

    def handled(self, cell: Cell, envelope: Envelope) -> None:
        """Count what a worker process has handled."""
        if cell.lane.name == "process" and envelope.taken_at:
            span = self._begin(cell, envelope)
            self._open.discard(span)
            took = cell.now() - envelope.taken_at
            self._count(span, took, took)

    def _begin(self, cell: Cell, envelope: Envelope) -> _Span:
        label = _label(cell, envelope.message)
        if (scope := _asked(envelope)) is not None:
            node = self._place(scope, envelope.sender, label)
        else:
            with self._lock:
                node = self._below(self._above(envelope.scope, envelope.sender), label)
        queued = envelope.taken_at - envelope.sent_at if envelope.sent_at else 0.0
        span = _Span(label, node, queued, self._clock())
        self._open.add(span)
        return span

    def end(self, span: _Span) -> None:
        """The handler is over; or the profile is, which counts it too."""
        with contextlib.suppress(KeyError):
            self._open.remove(span)
            self._count(span, span.own, self._clock() - span.begun_at)

    def _count(self, span: _Span, own: float, total: float) -> None:
        with self._lock:
            known = span.label in self._rows or len(self._rows) < MOST_HANDLERS
            row = self._rows.setdefault(span.label if known else OTHERS, _Row())
            row.calls += 1
            row.queued += span.queued
            row.own += own
            row.total += total
            row.longest = max(row.longest, total)
            span.node.own += own

    # --- stacks ---

    def _place(self, scope: Scope, sender: str, label: str) -> _Node:
        """The stack of an ask; once found it stays, also for the instance that takes over."""
        with self._lock:
            node = self._nodes.get(scope)
            if node is None:
                node = self._nodes[scope] = self._below(self._above(scope.parent, sender), label)
            return node

    def _above(self, scope: Scope | None, sender: str) -> _Node:
        """The stack of whoever sent something in this scope."""
        while scope is not None:
            node = self._nodes.get(scope)
            if node is not None:
                return node
            scope = scope.parent
        return self._below(self._root, CLIENT) if sender.startswith(CONNECTION) else self._root

    def _below(self, above: _Node, label: str) -> _Node:
        node = above.below.get(label)
        if node is None:
            if above.depth >= DEEPEST:
                return above
            if self._stacks >= MOST_STACKS:
                above, label = self._root, OTHERS
            self._stacks += 1
            node = above.below.setdefault(label, _Node(label, above))
        return node


class _Steps(Coroutine[Any, Any, None]):
    """A coroutine that runs another one, and has each of its steps measured."""

    __slots__ = ("_profile", "_span", "_work")

    def __init__(self, profile: Profile, span: _Span, work: Coroutine[Any, Any, None]) -> None:
        self._profile = profile
        self._span = span
        self._work = work

    def _step(self, go: Callable[..., Any], *args: Any) -> Any:
        thread = self._profile.thread()
        thread.enter(self._span)
        try:
            awaited = go(*args)
        except BaseException:
            thread.leave()
            self._profile.end(self._span)
            raise
        thread.leave()
        return awaited

    def send(self, value: Any) -> Any:
        """Take a step."""
        return self._step(self._work.send, value)

    def throw(self, *error: Any) -> Any:
        """Take a step that begins with an exception."""
        return self._step(self._work.throw, *error)

    def close(self) -> None:
        """End it where it stands."""
        self._work.close()
        self._profile.end(self._span)

    def __await__(self) -> Any:
        return self

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        return self.send(None)


def _asked(envelope: Envelope) -> Scope | None:
    """The scope that an ask made for itself; of a tell ``None``: its scope is its sender's."""
    reply_to: Any = envelope.reply_to
    return envelope.scope if reply_to is not None and reply_to is envelope.scope else None


def _label(cell: Cell, message: Any) -> str:
    """The frame of a handler: its pool and the type of the message; of a tool, its name."""
    if cell.name.startswith(TOOL):
        return _word(cell.name)
    pool = getattr(cell.spec.kind, "agent_name", "") or _NUMBER.sub("", cell.name)
    return _word(f"{pool}.{type_name(type(message))}")


def _word(text: str) -> str:
    """The same without what has a meaning in the folded format."""
    return re.sub(r"\s", "_", text.replace(";", ","))


def _times(name: str, row: _Row) -> HandlerTimes:
    total, own = row.total * 1000, row.own * 1000
    return HandlerTimes(
        name=name,
        calls=row.calls,
        queue_ms=round(row.queued * 1000, 3),
        own_ms=round(own, 3),
        awaited_ms=round(total - own, 3),
        total_ms=round(total, 3),
        max_ms=round(row.longest * 1000, 3),
    )
