"""The words of the runtime: message types, envelopes, and the scope that a message carries. Floor 1.

A *message type* is a subclass of :class:`Message`; its tag is the ``type`` field on the wire. An
*envelope* is one message on its way to one mailbox. A *scope* is what everything caused by one request
shares: deadline, cancellation, trace and the stream back to whoever asked.
"""

from __future__ import annotations

import math
import random
import re
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

import msgspec

from grami_actors.errors import Cancelled, DeadlineExceeded, GramiError

REQUEST_FIELDS = frozenset({"type", "id", "to", "stream", "background", "timeout_ms", "idempotency_key", "meta"})
"""Fields that any request may carry (docs/protocol.md, section 2); no payload field may have their names."""

CONTROL_TYPES = frozenset({"hello", "auth", "cancel", "ping", "describe", "subscribe", "unsubscribe", "publish"})
"""Message types that the gateway itself answers (docs/protocol.md, section 4)."""

LONGEST_NAME = 128
"""Characters of a message type, or of an id, at most."""

RESERVED_PREFIXES = ("response", "job.", "admin.", "grami.")


@lru_cache(maxsize=4096)
def snake_case(name: str) -> str:
    """``ContentRequest`` becomes ``content_request``: how classes are named on the wire."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def type_name(kind: type) -> str:
    """What a class of messages is called: its type on the wire; one that is not for the wire, as if it were."""
    return str(kind.__struct_config__.tag) if issubclass(kind, Message) else snake_case(kind.__name__)


class _MessageMeta(msgspec.StructMeta):
    def __new__(mcls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **config: Any) -> _MessageMeta:
        if "type" in namespace.get("__annotations__", {}):
            raise TypeError(f"{name}: the field 'type' is reserved for every request; rename it")
        cls = super().__new__(mcls, name, bases, namespace, **config)
        tag = cls.__struct_config__.tag
        if bases == (msgspec.Struct,):
            return cls
        if not isinstance(tag, str) or not 0 < len(tag) <= LONGEST_NAME:
            raise TypeError(
                f"{name}: the tag of a message type is a string of 1 to {LONGEST_NAME} characters, not {tag!r}"
            )
        settings = cls.__struct_config__
        if settings.tag_field != "type" or settings.array_like or settings.forbid_unknown_fields:
            raise TypeError(
                f"{name}: a request is an object with its tag in 'type', and may have more fields than its own"
            )
        for attribute, value in namespace.items():
            plain = not (attribute.startswith("_") or callable(value) or hasattr(value, "__get__"))
            if plain and attribute not in namespace.get("__annotations__", cls.__struct_fields__):
                raise TypeError(f"{name}: the field {attribute!r} needs a type annotation")
        if tag in CONTROL_TYPES or tag.startswith(RESERVED_PREFIXES):
            raise TypeError(
                f"{name}: the message type {tag!r} is reserved by the protocol; choose another: "
                f'class {name}(Message, tag="...")'
            )
        if taken := REQUEST_FIELDS.intersection(cls.__struct_encode_fields__):
            raise TypeError(f"{name}: the fields {sorted(taken)} are reserved for every request; rename them")
        return cls


class Message(msgspec.Struct, metaclass=_MessageMeta, tag_field="type", tag=snake_case):
    """The base of all message types.

    The ``type`` on the wire is the class's name in snake_case, or the ``tag=`` that is given::

        class ContentRequest(Message, tag="content_request"):
            platform: str
            niche: str = "general"

    Raises:
        TypeError: when the class is defined with a reserved tag or field name (docs/protocol.md, 2).
    """


class ToolCall(Message, tag="tool_call"):
    """Call a tool by name: sent ``to`` ``tool:NAME`` with its arguments by keyword."""

    arguments: dict[str, Any] = {}


class Sink(Protocol):
    """Where chunks and progress of a streamed request go. Called from any thread; must not block."""

    def started(self, source: str) -> None:
        """Say that the actor ``source`` began to work on the request."""

    def emit(self, data: Any) -> None:
        """Deliver one chunk."""

    def progress(self, fraction: float, message: str) -> None:
        """Report progress: ``fraction`` from 0 to 1."""


class ReplyTo(Protocol):
    """Who waits for the answer to an envelope. Both calls return whether the answer was still awaited."""

    def set_result(self, value: Any) -> bool:
        """Answer with a value."""

    def fail(self, error: BaseException) -> bool:
        """Answer with an error."""


class Meter(Protocol):
    """Counts what a request spends, and ends it when it has spent too much."""

    def charge(
        self, *, messages: int = 0, tool_calls: int = 0, tokens: int = 0, cost: float = 0.0, spawns: int = 0
    ) -> None:
        """Count; raises a GramiError with QUOTA_EXCEEDED."""

    def check_depth(self, depth: int) -> None:
        """Whether an ask may be that deep; raises a GramiError with QUOTA_EXCEEDED."""


class Scope:
    """What one request's causes and effects share; a node in a tree that follows the asks.

    A child's deadline is never later than its parent's, and cancelling a node cancels all below it,
    on whatever lane they run. Created with no parent, a scope is the root of a new request.

    Args:
        parent: the scope of the message being handled when this one was caused.
        deadline: seconds on the system's clock; ``inf`` for none.
        trace_id: 32 hex digits (W3C trace context), given at the root and inherited; or what makes them, called
            when somebody asks.
        sink: where chunks go; inherited unless given.
        meter: what the request may still spend; inherited unless given.
    """

    # Values of the class: most scopes never set most of these, and what is not set costs no time and no memory.
    parent: Scope | None = None
    deadline: float = math.inf
    sink: Sink | None = None
    meter: Meter | None = None
    principal: Any = None
    """Whose request it is, at its root; nobody's where the program itself is at work."""
    job: str = ""
    """The job that it belongs to, at its root; empty if to none."""
    above: int = 0
    """Asks above the root: where it stands for a scope of another process."""
    reason: GramiError | None = None
    remote_parent: str = ""
    """Of a root: 16 hex digits that name the client's span; empty if it told of none."""
    sampled: bool = True
    """Of a root: whether the request is traced."""
    _closed: bool = False
    _trace: str | Callable[[], str] = ""
    _lock: threading.Lock = threading.Lock()  # of scopes that belong to no request yet
    _children: dict[Scope, None] | None = None
    _callbacks: list[Callable[[GramiError], object]] | None = None

    def __init__(
        self,
        parent: Scope | None = None,
        *,
        deadline: float = math.inf,
        trace_id: str | Callable[[], str] = "",
        sink: Sink | None = None,
        meter: Meter | None = None,
    ) -> None:
        self.attach(parent, deadline)
        if trace_id:
            self._trace = trace_id
        if sink is not None:
            self.sink = sink
        if meter is not None:
            self.meter = meter

    def attach(self, parent: Scope | None, deadline: float) -> None:
        """Become a child of ``parent``, or with none the root of a request, with a deadline of its own."""
        if parent is None:
            self._lock = threading.Lock()
            self.deadline = deadline
            return
        self._lock = lock = parent._lock
        self.parent = parent
        self.deadline = min(parent.deadline, deadline)
        if parent.sink is not None:
            self.sink = parent.sink
        if parent.meter is not None:
            self.meter = parent.meter
        if parent._children is None:
            with lock:
                if parent._children is None and parent.reason is None:
                    parent._children = {}
        # No lock: a dict adds atomically, and whoever cancels says why before it looks for children. It keeps their
        # order, which a set does not: what is cancelled first must not be another in each run.
        if (siblings := parent._children) is not None:
            siblings[self] = None
        if parent.reason is not None:
            self.reason = parent.reason

    @property
    def depth(self) -> int:
        """How many asks lie between this scope and the root of its request."""
        depth, scope = 0, self
        while scope.parent is not None:
            depth, scope = depth + 1, scope.parent
        return depth + scope.above

    @property
    def root(self) -> Scope:
        """The scope of the whole request."""
        root = self
        while root.parent is not None:
            root = root.parent
        return root

    @property
    def trace_id(self) -> str:
        """What names the request in traces; the same for all scopes of one request."""
        root = self.root
        with root._lock:
            if not isinstance(root._trace, str):
                root._trace = root._trace()
            return root._trace

    def on_cancel(self, callback: Callable[[GramiError], object]) -> None:
        """Call ``callback(reason)`` once when this scope is cancelled; at once if it already is."""
        with self._lock:
            if self.reason is None:
                if self._callbacks is None:
                    self._callbacks = [callback]
                else:
                    self._callbacks.append(callback)
                return
        callback(self.reason)

    def forget(self, callback: Callable[[GramiError], object]) -> None:
        """Take a callback of :meth:`on_cancel` back."""
        with self._lock:
            if self._callbacks is not None and callback in self._callbacks:
                self._callbacks.remove(callback)

    def cancel(self, reason: GramiError | None = None) -> bool:
        """Cancel this scope and all below it, from any thread; ``False`` if it was cancelled before."""
        reason = reason or Cancelled("the request was cancelled")
        with self._lock:
            if self.reason is not None:
                return False
            callbacks = self._collect(reason)
        for callback in callbacks:
            callback(reason)
        return True

    def _collect(self, reason: GramiError) -> list[Callable[[GramiError], object]]:
        found: list[Callable[[GramiError], object]] = []
        pending = [self]
        while pending:
            scope = pending.pop()
            if scope.reason is not None:
                continue
            scope.reason = reason
            found.append(scope._end)
            found.extend(scope._callbacks or ())
            pending.extend(scope._children or ())
            scope._callbacks = scope._children = None
        return found

    def _end(self, reason: GramiError) -> None:
        """The scope is cancelled; for those that are more than a scope."""

    def close(self) -> None:
        """Leave the parent, and forget the callbacks: this part of the request has its answer."""
        with self._lock:
            self._closed = True
            self._leave()

    def done(self) -> bool:
        """Whether it was cancelled or closed: its deadline means nothing any more."""
        return self._closed or self.reason is not None

    def _leave(self) -> None:
        self._callbacks = None
        parent = self.parent
        if parent is not None and parent._children is not None:
            parent._children.pop(self, None)

    def expire(self) -> None:
        """Cancel because the deadline passed."""
        self.cancel(DeadlineExceeded("the deadline passed before the answer came; the outcome is unknown"))


def new_span_id() -> str:
    """16 hex digits, as W3C trace context has them; unique within a trace, which is all they need to be."""
    return f"{random.getrandbits(64):016x}"


class Envelope(msgspec.Struct, eq=False):
    """One message on its way to one mailbox, and then in the hands of one handler.

    The one being handled is :data:`grami_actors.future.current`: what its handler sends inherits from it.

    Attributes:
        message: the message, handed over by reference.
        reply_to: who waits for the answer; ``None`` for a tell.
        sender: the name of the actor or connection that sent it; empty from outside.
        scope: deadline, cancellation and trace; ``None`` for a tell outside any request.
        sent_at: seconds on the system's clock; 0 if nobody wants to know.
        receiver: the cell that handles it; set by that cell.
        taken_at: seconds on the system's clock when its handler began; 0 if nobody wants to know.
        failure: what its handler failed with the first time.
        span: 16 hex digits that name its handling in traces; empty as long as nobody asked, see :meth:`trace`.
        cause: the same of the handling that sent it; empty if nobody wants to know.
        handed: whether its handler gave the request to another, who is the one to answer now.
        steps: when its coroutine began, and went on after it had waited (:class:`grami_actors.steps.Steps`); ``None``
            if nobody wants to know.
    """

    message: Any
    reply_to: ReplyTo | None = None
    sender: str = ""
    scope: Scope | None = None
    sent_at: float = 0.0
    receiver: Any = None
    taken_at: float = 0.0
    failure: BaseException | None = None
    span: str = ""
    cause: str = ""
    handed: bool = False
    steps: Any = None

    @property
    def handler(self) -> str:
        """The name of the actor that handles it; empty for a job in this process, which has a scope and is no actor."""
        return "" if self.receiver is None else self.receiver.name

    def trace(self) -> str:
        """What names its handling in traces: made when somebody asks, then the same for all."""
        if not self.span:
            self.span = new_span_id()
        return self.span


class Terminated(msgspec.Struct, frozen=True):
    """An actor that was watched is gone.

    Attributes:
        name: its name.
        reason: ``"stopped"``, ``"failed"`` (it failed too often), or ``"unknown"`` (it was gone before).
    """

    name: str
    reason: str


class Last:
    """The end of a backlog: when it is taken, the actor stops.

    Attributes:
        grace: seconds that handlers which are still at work then get.
        reached: whether it was taken.
    """

    __slots__ = ("grace", "reached")

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self.reached = False
