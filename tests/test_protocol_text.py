"""docs/protocol.md and the code say the same: every field, frame, control message, error, close code and limit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from grami_actors import GrowthManager, Swarm, frames
from grami_actors.catalog import Catalog
from grami_actors.credentials import Authority
from grami_actors.encoding import ENCODINGS
from grami_actors.errors import RETRYABLE, ErrorCode
from grami_actors.gateway import admin
from grami_actors.job import State
from grami_actors.job_views import JobExit, JobView, Output
from grami_actors.mailbox import Statistics
from grami_actors.messages import CONTROL_TYPES, REQUEST_FIELDS
from grami_actors.permissions import Permissions
from grami_actors.policy import Policy
from grami_actors.profiling import HandlerTimes, Report
from grami_actors.protocol import ServerProtocol, Setting
from grami_actors.system import ActorInfo

PAGE = (Path(__file__).parents[1] / "docs" / "protocol.md").read_text()
LIBRARY_CODES = {1001, 1007, 1009, 1011}
"""Close codes of RFC 6455 that the WebSocket library and the end of an actor give."""

CLIENT_FRAMES: dict[str, type[msgspec.Struct] | None] = {
    "hello": frames.Hello,
    "auth": frames.Auth,
    "cancel": frames.Cancel,
    "ping": None,
    "describe": None,
    "subscribe": frames.Subscribe,
    "unsubscribe": frames.Unsubscribe,
    "publish": frames.Publish,
    **frames.JOB_CONTROLS,
} | {kind: fields for kind, (fields, _) in admin.Admin._KINDS.items()}
SERVER_FRAMES = {
    "`response.started`": frames.Started,
    "`response.progress`": frames.Progress,
    "`response.chunk`": frames.Chunk,
    "`response`, `success`": frames.Response,
    "`response`, `error`": frames.ErrorResponse,
    "`welcome`": frames.Welcome,
    "`pong`": frames.Pong,
    "`event`": frames.Event,
    "`job.event`": frames.JobEvent,
    "`job.detached`": frames.JobDetached,
    "`goaway`": frames.Goaway,
}
TOLD = {
    "`connections`": admin.ConnectionInfo,
    "`actors`": ActorInfo,
    "`mailbox`": Statistics,
    "`admin.stats`": admin.ServerStats,
    "`requests`, by type": admin.RequestTimes,
    "`tools`, by name": admin.ToolTimes,
    "`slow_turns`": admin.SlowTurnInfo,
    "`loop_lag`": admin.LoopLag,
    "`admin.profile`": Report,
    "`handlers`": HandlerTimes,
}
"""What the answers to ``admin.*`` hold."""

INNER = (frames.Meta, frames.Position, frames.Delay, frames.Limits, frames.Header)
"""Structs that stand inside of others, and have tables of their own, or are named beside."""

PLAIN = (frames.PlainSuccess, frames.PlainError)


def rows(heading: str) -> list[list[str]]:
    """The cells of all tables whose first heading is this one."""
    found = []
    for table in re.findall(rf"^\| {re.escape(heading)} \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE):
        found += [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()]
    assert found, f"there is no table {heading!r}"
    return found


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def fields(kind: type[msgspec.Struct] | None) -> list[str]:
    return [] if kind is None else [field.encode_name for field in msgspec.structs.fields(kind)]


def required(kind: type[msgspec.Struct] | None) -> list[str]:
    return [] if kind is None else [field.encode_name for field in msgspec.structs.fields(kind) if field.required]


def test_every_request_field_stands_there_and_no_other() -> None:
    told = [names(row[0])[0] for row in rows("field")]
    assert sorted(told) == sorted(fields(frames.Header)) == sorted(REQUEST_FIELDS)
    assert [names(row[0])[0] for row in rows("field of `meta`")] == fields(frames.Meta)
    assert [names(row[0])[0] for row in rows("field of `recover`")] == fields(frames.Position)


def test_every_control_message_stands_there_with_its_fields_and_which_of_them_it_must_have() -> None:
    told = {names(row[0])[0]: row[1] for row in rows("message")}
    assert set(told) == CONTROL_TYPES | frames.ADMIN_TYPES | set(frames.JOB_CONTROLS) == set(CLIENT_FRAMES)
    for kind, cell in told.items():
        assert names(cell) == fields(CLIENT_FRAMES[kind]), kind
        assert re.findall(r"`(\w+)`(?!\?)", cell) == required(CLIENT_FRAMES[kind]), kind


def test_every_frame_to_the_client_stands_there_with_its_fields() -> None:
    told = {row[0]: set(names(row[1])) for row in rows("frame")}
    assert told == {name: set(fields(kind)) for name, kind in SERVER_FRAMES.items()}
    for name, kind in SERVER_FRAMES.items():
        assert kind.__struct_config__.tag == names(name)[0]
    (goaway,) = [row for row in rows("frame") if row[0] == "`goaway`"]
    assert set(fields(frames.Delay)) <= set(names(goaway[2]))
    for kind in PLAIN:
        assert all(f'"{name}"' in PAGE.partition("**Envelope mode**")[0] for name in fields(kind))


def test_what_administrators_are_told_stands_there() -> None:
    told = {row[0]: names(row[1]) for row in rows("in")}
    assert told == {name: fields(kind) for name, kind in TOLD.items()}
    answers = {names(row[0])[0]: names(row[2])[0] for row in rows("message") if row[2].startswith("`{")}
    for message, kind in (("admin.connections", admin.Connections), ("admin.actors", admin.Actors)):
        assert re.findall(r'"(\w+)"', answers[message]) == fields(kind)


def test_no_struct_of_the_wire_is_left_out() -> None:
    ours = {kind for kind in vars(frames).values() if isinstance(kind, type) and issubclass(kind, msgspec.Struct)}
    told: set[Any] = {*CLIENT_FRAMES.values(), *SERVER_FRAMES.values(), *INNER, *PLAIN, frames.OnlyId}
    assert ours <= told


def test_every_error_code_stands_there_once_and_whether_it_may_be_retried() -> None:
    told = [(names(code)[0], retryable) for code, retryable, _ in rows("`error_code`")]
    assert len(told) == len(ErrorCode)
    assert dict(told) == {code.value: "yes" if code in RETRYABLE else "no" for code in ErrorCode}


def test_every_close_code_stands_there_once() -> None:
    told = [int(row[0]) for row in rows("close code")]
    ours = [value for name, value in vars(frames).items() if name.startswith("CLOSE_")]
    assert sorted(told) == sorted([*ours, *LIBRARY_CODES])


def test_every_limit_stands_there_with_its_default_and_those_that_are_told_have_a_mark() -> None:
    told = {names(row[0])[0]: row[1] for row in rows("limit")}
    defaults = {field.name: field.default for field in msgspec.structs.fields(frames.Limits)}
    assert {name: float(cell.partition(", ")[0].replace(",", "")) for name, cell in told.items()} == defaults
    setting = Setting(Catalog({}, lambda _: None), frames.Limits(), {}, Policy(Authority(), Permissions()))
    protocol = ServerProtocol("connection-1", setting, 0.0)
    protocol.receive('{"type":"hello"}', 0.0)
    (frame,) = protocol.data_to_send()
    marked = {names(row[0])[0] for row in rows("limit") if row[0].endswith("*")}
    assert marked == set(msgspec.json.decode(frame)["limits"])


async def test_every_http_document_stands_there() -> None:
    manager = GrowthManager(Swarm([]), publish=False)
    documents = manager._documents(Catalog({}, lambda _: None))
    assert {names(row[0])[0] for row in rows("path")} == {"/livez", "/readyz", *documents}


def test_every_subprotocol_stands_there() -> None:
    assert {name for row in rows("subprotocol") for name in names(row[0])} == set(ENCODINGS)


def test_the_view_of_a_job_and_the_answer_to_a_read_stand_there() -> None:
    view = [name for row in rows("in the view") for name in names(row[0])]
    assert sorted(view) == sorted(fields(JobView))
    (told,) = [row for row in rows("in the view") if row[0] == "`exit`"]
    assert names(told[1]) == fields(JobExit)
    (states,) = [row for row in rows("in the view") if row[0] == "`state`"]
    assert names(states[1]) == list(State)
    assert [name for row in rows("in the output") for name in names(row[0])] == fields(Output)
