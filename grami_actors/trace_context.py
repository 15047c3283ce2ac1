"""The trace context that a request carries: W3C Trace Context, https://www.w3.org/TR/trace-context/. Floor 2."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from grami_actors.frames import Meta

LONGEST_STATE = 512
"""Characters of a ``tracestate`` that are carried on (section 3.3.1.5)."""

# Only a version later than 00 may have more behind its flags, and ff is none.
_TRACEPARENT = re.compile(
    r"(?!ff)(?!00.{53}.)[0-9a-f]{2}-((?!0{32})[0-9a-f]{32})-((?!0{16})[0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?"
)


class Trace(NamedTuple):
    """Where a request comes from."""

    trace_id: str = ""
    parent: str = ""
    sampled: bool = True
    state: str = ""


NO_TRACE = Trace()


def trace_of(meta: Meta | None, decode: Callable[[Any], Any]) -> Trace:
    """The trace context of a request; what is no trace context is ignored.

    Args:
        meta: of its header.
        decode: reads a text in the encoding of its frame.
    """
    found = None if meta is None else _TRACEPARENT.fullmatch(_text(meta.traceparent, decode))
    if meta is None or found is None:
        return NO_TRACE
    trace_id, parent, flags = found.groups()
    return Trace(trace_id, parent, bool(int(flags, 16) & 1), _text(meta.tracestate, decode)[:LONGEST_STATE])


def _text(raw: msgspec.Raw, decode: Callable[[Any], Any]) -> str:
    try:
        return str(decode(raw)) if raw else ""
    except (ValueError, RecursionError):
        return ""
