"""The AsyncAPI document of a server: what may be sent over its WebSocket, and what comes back. Floor 2.

Source: the AsyncAPI Specification 3.1.0. Its Schema Object is a superset of JSON Schema draft 07, while msgspec
writes draft 2020-12; :func:`_draft_07` says what differs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from grami_actors.errors import RETRYABLE, ErrorCode
from grami_actors.frames import (
    ADMIN_TYPES,
    JOB_CONTROLS,
    Auth,
    Cancel,
    Chunk,
    ErrorResponse,
    Event,
    Goaway,
    Header,
    Hello,
    JobDetached,
    JobEvent,
    PlainError,
    PlainSuccess,
    Pong,
    Progress,
    Publish,
    Response,
    Started,
    Subscribe,
    Unsubscribe,
    Welcome,
)

VERSION = "3.1.0"

_REF = "#/components/schemas/"

_ANSWERS = (Response, ErrorResponse, PlainSuccess, PlainError)
_STREAMED = (Started, Progress, Chunk, *_ANSWERS)

Told = tuple[type[msgspec.Struct] | None, tuple[type[msgspec.Struct], ...]]

_CLIENTS: dict[str, Told] = {
    "hello": (Hello, (Welcome, ErrorResponse, PlainError)),
    "ping": (None, (Pong,)),
    "auth": (Auth, _ANSWERS),
    "cancel": (Cancel, _ANSWERS),
    "describe": (None, _ANSWERS),
    "subscribe": (Subscribe, _ANSWERS),
    "unsubscribe": (Unsubscribe, _ANSWERS),
    "publish": (Publish, _ANSWERS),
}
_ADMINS: dict[str, Told] = dict.fromkeys(sorted(ADMIN_TYPES), (None, _ANSWERS))

_JOBS: dict[str, Told] = {
    kind: (fields, (Response, ErrorResponse) if kind == "job.attach" else _ANSWERS)
    for kind, fields in JOB_CONTROLS.items()
}

CONTROLS = _CLIENTS | _JOBS | _ADMINS
"""The control messages of docs/protocol.md, section 4: what each carries beside the request fields, and its answers."""

PUSHED: tuple[type[msgspec.Struct], ...] = (Event, JobEvent, JobDetached, Goaway)
"""Frames that come by themselves: to who subscribed, to who attached to a job, and to who said ``hello``."""

_MEANINGS = {
    "type": "The message type: decides the handler.",
    "id": "Switches envelope mode on, and is echoed verbatim; unique among the connection's requests in flight.",
    "to": "A destination by name, such as `writer` or `tool:hashtags`; by default the agent that handles the type.",
    "stream": "Deliver progress and chunks while they come; needs an `id`.",
    "background": "Run as a durable job, and answer with a view of it at once.",
    "timeout_ms": "The deadline, in milliseconds from the server's receipt; everything the request causes inherits it.",
    "idempotency_key": "The same key with the same payload gets the same result, and the work is done once.",
    "meta": "Free; `traceparent` is a W3C trace context.",
}
"""What the request fields mean (docs/protocol.md, section 2)."""

Request = msgspec.defstruct(
    "Request",
    [
        (field.name, dict[str, Any] | None if field.name == "meta" else field.type, field.default)
        for field in msgspec.structs.fields(Header)
    ],
)
"""The request fields, with the whole of ``meta``: the gateway's own Struct knows only the part that it reads."""

_ERROR_CODE = {"$ref": f"{_REF}ErrorCode"}
_SAID: dict[type[msgspec.Struct], dict[str, Any]] = {
    Response: {"status": {"const": "success"}},
    ErrorResponse: {"status": {"const": "error"}, "error_code": _ERROR_CODE},
    PlainError: {"error_code": _ERROR_CODE},
}
"""What frames always say, where their Structs leave it open."""


def document(types: Mapping[str, type], *, title: str, version: str, url: str, secured: bool = False) -> dict[str, Any]:
    """An AsyncAPI 3.1 document that describes the server: it *receives* what clients send, and replies.

    Args:
        types: message type to class.
        title: the name of the application.
        version: its version.
        url: where clients connect, such as ``wss://example.org/ws``.
        secured: whether a client must show a credential.
    """
    frames = list(dict.fromkeys(frame for _, answers in CONTROLS.values() for frame in answers))
    frames = list(dict.fromkeys((*_STREAMED, *frames, *PUSHED)))
    carried = [kind for kind, _ in CONTROLS.values() if kind is not None]
    kinds = [*types.values(), Request, *carried, *frames, ErrorCode]
    schemas, refs = _schemas(list(dict.fromkeys(kinds)))
    sent = {name: (kind, _STREAMED) for name, kind in types.items()} | CONTROLS
    keys = dict(zip(sent, _keys(sent, taken=[frame.__name__ for frame in frames]), strict=True))
    messages = {keys[name]: _request(name, kind, refs) for name, (kind, _) in sent.items()}
    messages |= {frame.__name__: _answer(frame, refs) for frame in frames}
    where = urlsplit(url)
    return {
        "asyncapi": VERSION,
        "info": {"title": title, "version": version, "description": _ABOUT},
        "defaultContentType": "application/json",
        "servers": {"main": {"host": where.netloc, "protocol": where.scheme} | _security(secured)},
        "channels": {
            "ws": {
                "address": where.path or "/",
                "title": "The WebSocket",
                "messages": {key: {"$ref": f"#/components/messages/{key}"} for key in messages},
                "bindings": {"ws": {"method": "GET"}},
            }
        },
        "operations": {keys[name]: _operation(keys[name], name, answers) for name, (_, answers) in sent.items()}
        | {frame.__name__: _push(frame) for frame in PUSHED},
        "components": {
            "messages": messages,
            "schemas": schemas,
            "correlationIds": {"id": {"location": "$message.payload#/id"}},
        }
        | ({"securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}} if secured else {}),
    }


_ABOUT = """\
One text frame is one JSON object. A request without an `id` is answered in plain mode, in request order, with
exactly `status` and `data`, or `status`, `error_code` and `message`. A request with an `id` is answered in envelope
mode, where the last frame has the type `response`."""


def _security(secured: bool) -> dict[str, Any]:  # noqa: FBT001 - private, and called by name
    return {"security": [{"$ref": "#/components/securitySchemes/bearer"}]} if secured else {}


# --- schemas ---


def _schemas(kinds: Sequence[type]) -> tuple[dict[str, Any], dict[type, dict[str, Any]]]:
    """The component schemas by name, and for each kind the reference to its own."""
    # What has no JSON Schema is told as "anything": one field must not hide all types.
    described, components = msgspec.json.schema_components(
        kinds, schema_hook=lambda kind: {"title": kind.__name__}, ref_template=_REF + "{name}"
    )
    refs = dict(zip(kinds, described, strict=True))
    schemas: dict[str, Any] = {name: _draft_07(schema) for name, schema in components.items()}

    def of(kind: type) -> Any:
        return schemas[refs[kind]["$ref"].removeprefix(_REF)]

    for frame, said in _SAID.items():
        of(frame)["properties"] |= said
    fields = of(Request)["properties"]
    for name, meaning in _MEANINGS.items():
        fields[name]["description"] = meaning
    codes = of(ErrorCode)
    codes["description"] = "What went wrong. Those of `x-retryable` may succeed when they are sent again."
    codes["x-retryable"] = sorted(map(str, RETRYABLE))
    return schemas, refs


_ONE = ("additionalProperties", "additionalItems", "items", "contains", "not", "propertyNames", "if", "then", "else")
_MANY = ("allOf", "anyOf", "oneOf", "prefixItems")
_NAMED = ("properties", "patternProperties", "$defs", "definitions")


def _draft_07(schema: Any) -> Any:
    """A schema of draft 2020-12 in draft 07, where tuples differ, and what stands beside a ``$ref`` is ignored."""
    if not isinstance(schema, dict):
        return schema
    told = dict(schema)
    # OpenAPI's, by tag; AsyncAPI's is by the schema's name. The tag of each alternative is in its own schema.
    told.pop("discriminator", None)
    for word in _ONE:
        if word in told:
            told[word] = _draft_07(told[word])
    for word in _MANY:
        if word in told:
            told[word] = [_draft_07(each) for each in told[word]]
    for word in _NAMED:
        if word in told:
            told[word] = {name: _draft_07(each) for name, each in told[word].items()}
    if "prefixItems" in told:
        if "items" in told:
            told["additionalItems"] = told["items"]
        told["items"] = told.pop("prefixItems")
    if "$defs" in told:
        told["definitions"] = told.pop("$defs")
    if "$ref" in told and len(told) > 1:
        told["allOf"] = [{"$ref": told.pop("$ref")}, *told.get("allOf", ())]
    return told


# --- messages and operations ---


def _keys(names: Iterable[str], taken: Sequence[str]) -> list[str]:
    """A component's key for each name, all different: letters, digits, ``.``, ``-`` and ``_``."""
    found = list(taken)
    for name in names:
        plain = key = re.sub(r"[^A-Za-z0-9._-]", "_", name)
        number = 1
        while key in found:
            number += 1
            key = f"{plain}-{number}"
        found.append(key)
    return found[len(taken) :]


def _request(name: str, kind: type | None, refs: Mapping[type, dict[str, Any]]) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [refs[Request]]
    # A message class has its tag in its own schema; a control message gets it here.
    parts += [{"properties": {"type": {"const": name}}, "required": ["type"]}] if name in CONTROLS else []
    parts += [refs[kind]] if kind is not None else []
    return {
        "name": name,
        "title": name,
        "correlationId": {"$ref": "#/components/correlationIds/id"},
        "payload": {"allOf": parts},
    }


def _answer(frame: type[msgspec.Struct], refs: Mapping[type, dict[str, Any]]) -> dict[str, Any]:
    told: dict[str, Any] = {"name": str(frame.__struct_config__.tag or frame.__name__), "title": frame.__name__}
    if frame.__doc__:
        told["summary"] = frame.__doc__.partition("\n")[0].replace("``", "`")
    if "id" in frame.__struct_encode_fields__:
        told["correlationId"] = {"$ref": "#/components/correlationIds/id"}
    return told | {"payload": refs[frame]}


def _operation(key: str, name: str, answers: Sequence[type]) -> dict[str, Any]:
    channel = "#/channels/ws"
    return {
        "action": "receive",
        "title": name,
        "channel": {"$ref": channel},
        "messages": [{"$ref": f"{channel}/messages/{key}"}],
        "reply": {
            "channel": {"$ref": channel},
            "messages": [{"$ref": f"{channel}/messages/{frame.__name__}"} for frame in answers],
        },
    }


def _push(frame: type) -> dict[str, Any]:
    channel = "#/channels/ws"
    return {
        "action": "send",
        "channel": {"$ref": channel},
        "messages": [{"$ref": f"{channel}/messages/{frame.__name__}"}],
    }
