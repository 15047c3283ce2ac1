"""A request as a client sends it. Floor 2."""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from grami_actors.messages import Message


def request_fields(message: Message | str, fields: dict[str, Any], **header: Any) -> dict[str, Any]:
    """A request as it is sent.

    Args:
        message: a message, or a message type.
        fields: further fields of the message.
        header: request fields (docs/protocol.md, section 2), with ``timeout`` in seconds; ``None`` for not given.
    """
    request = {"type": message, **fields} if isinstance(message, str) else _as_fields(message) | fields
    given = {name: value for name, value in header.items() if value is not None}
    request |= {
        **({"to": given.pop("to")} if "to" in given else {}),
        **({"timeout_ms": max(1, round(given.pop("timeout") * 1000))} if "timeout" in given else {}),
        **given,
    }
    carried = _trace_context()
    return request | ({"meta": {**carried, **request.get("meta", {})}} if carried else {})


def _as_fields(message: Message) -> dict[str, Any]:
    # MessagePack carries bytes as they are.
    fields: dict[str, Any] = msgspec.to_builtins(message, builtin_types=(bytes, bytearray))
    return fields


def _trace_context() -> dict[str, str]:
    """The W3C trace context of the program, if it is traced with OpenTelemetry."""
    propagate = sys.modules.get("opentelemetry.propagate")
    carrier: dict[str, str] = {}
    if propagate is not None:
        propagate.inject(carrier)
    return {name: carrier[name] for name in ("traceparent", "tracestate") if name in carrier}
