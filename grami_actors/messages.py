"""The words of the runtime: message types, envelopes, and the scope that a message carries. Floor 1.

A *message type* is a subclass of :class:`Message`; its tag is the ``type`` field on the wire. An
*envelope* is one message on its way to one mailbox. A *scope* is what everything caused by one request
shares: deadline, cancellation, trace and the stream back to whoever asked.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable
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


def snake_case(name: str) -> str:
    """``ContentRequest`` becomes ``content_request``: how classes are named on the wire."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


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
            raise TypeError(f"{name}: the message type {tag!r} is reserved by the protocol; choose another tag")
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


class Scope:
    """What one request's causes and effects share; a node in a tree that follows the asks.

    A child's deadline is never later than its parent's, and cancelling a node cancels all below it,
    on whatever lane they run. Created with no parent, a scope is the root of a new request.

    Args:
        parent: the scope of the message being handled when this one was caused.
        deadline: seconds on the system's clock; ``inf`` for none.
        trace_id: 32 hex digits (W3C trace context), given at the root and inherited.
        sink: where chunks go; inherited unless given.
    """

    __slots__ = ("_callbacks", "_children", "_lock", "deadline", "parent", "reason", "sink", "trace_id")

    def __init__(
        self,
        parent: Scope | None = None,
        *,
        deadline: float = math.inf,
        trace_id: str = "",
        sink: Sink | None = None,
    ) -> None:
        self.parent = parent
        self.reason: GramiError | None = None
        self._children: set[Scope] | None = None
        self._callbacks: list[Callable[[GramiError], object]] | None = None
        if parent is None:
            self._lock = threading.Lock()
            self.deadline, self.trace_id, self.sink = deadline, trace_id, sink
            return
        self._lock = parent._lock
        self.deadline = min(deadline, parent.deadline)
        self.trace_id = parent.trace_id
        self.sink = parent.sink if sink is None else sink
        with self._lock:
            self.reason = parent.reason
            if self.reason is None:
                if parent._children is None:
                    parent._children = set()
                parent._children.add(self)

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
            found.extend(scope._callbacks or ())
            pending.extend(scope._children or ())
            scope._callbacks = scope._children = None
        return found

    def close(self) -> None:
        """Leave the parent, and forget the callbacks: this part of the request has its answer."""
        parent = self.parent
        with self._lock:
            self._callbacks = None
            if parent is not None and parent._children is not None:
                parent._children.discard(self)

    def expire(self) -> None:
        """Cancel because the deadline passed."""
        self.cancel(DeadlineExceeded("the deadline passed before the answer came; the outcome is unknown"))


class Envelope(msgspec.Struct):
    """One message on its way to one mailbox.

    Attributes:
        message: the message, handed over by reference.
        reply_to: who waits for the answer; ``None`` for a tell.
        sender: the name of the actor or connection that sent it; empty from outside.
        scope: deadline, cancellation and trace; ``None`` for a tell outside any request.
        sent_at: seconds on the system's clock.
    """

    message: Any
    reply_to: ReplyTo | None = None
    sender: str = ""
    scope: Scope | None = None
    sent_at: float = 0.0
