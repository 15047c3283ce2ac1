"""The wire protocol without a socket: any sequence of frames and answers, seen from the client's side."""

from __future__ import annotations

import ast
import itertools
import json
import math
import sys
from collections import deque
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from grami_actors import protocol as protocol_module
from grami_actors.catalog import Catalog
from grami_actors.credentials import Authority
from grami_actors.encoding import JSON, MSGPACK, Encoding, Frame
from grami_actors.errors import RETRYABLE, ErrorCode, GramiError
from grami_actors.frames import BAD_MESSAGES_IN_A_ROW, CLOSE_ABUSE, CLOSE_UNSUPPORTED_DATA, Limits
from grami_actors.gateway.replays import fingerprint
from grami_actors.messages import REQUEST_FIELDS, Message
from grami_actors.permissions import Permissions
from grami_actors.policy import Policy
from grami_actors.protocol import Accepted, CancelRequest, Control, ServerProtocol, Setting


class Work(Message, tag="work"):
    n: int
    words: tuple[str, ...] = ()
    extra: dict[str, Any] | None = None


class Fragile(Message, tag="fragile"):
    key: str = ""

    def __post_init__(self) -> None:
        {}[self.key]  # any exception but ValueError and TypeError, which msgspec turns into its own


CATALOG = Catalog({"work": Work, "fragile": Fragile}, lambda _: {})
POLICY = Policy(Authority(), Permissions())
SERVER = {"name": "grami_actors", "version": "0"}
NO_ID = object()


def connection(encoding: Encoding = JSON, /, **limits: int) -> ServerProtocol:
    return ServerProtocol("connection-1", Setting(CATALOG, Limits(**limits), SERVER, POLICY), 0.0, encoding)


def frames(protocol: ServerProtocol) -> list[dict[str, Any]]:
    return [(json.loads if JSON is protocol._encoding else MSGPACK.decode)(frame) for frame in protocol.data_to_send()]


def send(protocol: ServerProtocol, now: float = 0.0, /, **fields: Any) -> Any:
    return protocol.receive(framed(protocol._encoding, fields), now)


def framed(encoding: Encoding, fields: Any) -> Frame:
    return json.dumps(fields) if encoding.text else encoding.encode(fields)


def accept(protocol: ServerProtocol, **fields: Any) -> int:
    accepted = send(protocol, type="work", n=1, **fields)
    assert isinstance(accepted, Accepted)
    return accepted.key


class Stream:
    """What a client knows of one id, from its request to its terminal frame."""

    def __init__(self, key: int, *, stream: bool) -> None:
        self.key = key
        self.stream = stream
        self.seq = 0
        self.progress = 0.0
        self.reported = 0.0
        self.chunks: list[Any] = []
        self.emitted: list[Any] = []
        self.dropped = 0
        self.started = False
        self.owed: dict[str, Any] = {}


ids = st.sampled_from(["a", 1, "1", "", 2**64 - 1, "ä" * 128])
maybe_id = st.one_of(st.just(NO_ID), ids, ids)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
unknown_keys = st.dictionaries(
    st.text(min_size=1, max_size=5).filter(lambda key: key not in REQUEST_FIELDS and key not in Work.__struct_fields__),
    json_values,
    max_size=2,
)
CODES = {code.value for code in ErrorCode}
ERRORS = st.sampled_from(list(ErrorCode))
UNFIT_VALUE = st.just({"n": {1.5j}})
fractions = st.sampled_from([0.25, 0.5, 0.75, math.nan, math.inf, -math.inf]) | st.floats() | st.integers()
BAD = {
    "no_type": "INVALID_MESSAGE",
    "unknown": "UNKNOWN_TYPE",
    "no_field": "VALIDATION_FAILED",
    "wrong_field": "VALIDATION_FAILED",
    "background": "INVALID_MESSAGE",
    "job": "VALIDATION_FAILED",
    "timeout": "INVALID_MESSAGE",
    "version": "UNSUPPORTED_VERSION",
    "cancel": "VALIDATION_FAILED",
}
BAD_FIELDS: dict[str, dict[str, Any]] = {
    "no_type": {},
    "unknown": {"type": "wrok"},
    "no_field": {"type": "work"},
    "wrong_field": {"type": "work", "n": 1, "words": ["a", 2]},
    "background": {"type": "describe", "background": True},
    "job": {"type": "job.get"},
    "timeout": {"type": "work", "n": 1, "timeout_ms": 0},
    "version": {"type": "hello", "protocol": 2},
    "cancel": {"type": "cancel", "request_id": ["a"]},
}


class Wire(RuleBasedStateMachine):
    """A client and agents that do anything in any order; ``read`` checks what the client may rely on."""

    encoding = JSON

    @initialize(limit=st.integers(1, 4))
    def connect(self, limit: int) -> None:
        self.protocol = connection(self.encoding, max_inflight=limit)
        self.limit = limit
        self.draining = False
        self.binaries = 0
        self.by_id: dict[Any, Stream] = {}
        self.by_key: dict[int, Any] = {}  # key to the id of what is in flight, or NO_ID
        self.plain: deque[dict[str, Any]] = deque()  # what each plain request is owed, empty while it is worked on
        self.plain_by_key: dict[int, dict[str, Any]] = {}
        self.keys: list[int] = []  # all that there ever were
        self.counter = itertools.count(1)
        self.now = 0.0

    # --- the client's view ---

    def read(self, *, refused: tuple[Any, str] | None = None, others: int = 0) -> list[dict[str, Any]]:
        """Take what was sent; ``refused`` is the one answer to a message that was not accepted."""
        rest = []
        for frame in frames(self.protocol):
            kind = frame.get("type")
            if kind is None:
                self.read_plain(frame)
            elif refused is not None and kind == "response" and refused[0] is not NO_ID:
                self.read_refusal(frame, *refused)
                refused = None
            elif kind in {"response", "response.started", "response.progress", "response.chunk"}:
                self.read_envelope(frame)
            else:
                rest.append(frame)
        assert refused is None or refused[0] is NO_ID
        assert len(rest) == others
        return rest

    def read_plain(self, frame: dict[str, Any]) -> None:
        owed = self.plain.popleft()
        assert owed, "answered before its turn"
        if "data" in owed:
            assert frame == owed
        else:
            assert set(frame) == {"status", "error_code", "message"}
            assert (frame["status"], frame["error_code"]) == ("error", owed["error_code"])

    def read_refusal(self, frame: dict[str, Any], request_id: Any, code: str) -> None:
        assert (frame["id"], type(frame["id"])) == (request_id, type(request_id))
        assert (frame["seq"], frame["status"], frame["error_code"]) == (1, "error", code)
        assert frame["retryable"] is (code in RETRYABLE)

    def read_envelope(self, frame: dict[str, Any]) -> None:
        stream = self.by_id[frame["id"]]  # a frame of an id that is not in flight has no entry here
        stream.seq += 1
        assert frame["seq"] == stream.seq
        if frame["type"] == "response":
            assert stream.chunks == stream.emitted
            assert frame.pop("duration_ms") >= 0
            told = {key: value for key, value in frame.items() if key not in {"type", "id", "seq", "message"}}
            assert told == stream.owed
            del self.by_id[frame["id"]]
            return
        assert stream.stream
        if frame["type"] == "response.progress":
            assert stream.progress <= frame["progress"] <= 1.0
            stream.progress = frame["progress"]
        elif frame["type"] == "response.chunk":
            stream.chunks.append(frame["data"])
        else:
            assert not stream.started
            stream.started = True

    def in_flight(self, key: int) -> Stream | None:
        request_id = self.by_key.get(key, NO_ID)
        return None if request_id is NO_ID else self.by_id[request_id]

    def refusal(self, request_id: Any) -> str:
        """Why a valid request is not accepted now; empty if it is."""
        if request_id is not NO_ID and request_id in self.by_id:
            return "DUPLICATE_ID"
        if max(len(self.by_key), len(self.plain)) >= self.limit:
            return "TOO_MANY_INFLIGHT"
        return "SHUTTING_DOWN" if self.draining else ""

    def send(self, own_id: Any, /, **fields: Any) -> Any:
        return send(self.protocol, self.now, **fields, **({} if own_id is NO_ID else {"id": own_id}))

    def refused(self, request_id: Any, code: str) -> None:
        if request_id is NO_ID:
            self.plain.append({"error_code": code})
        self.read(refused=(request_id, code))

    # --- the client ---

    @rule(request_id=maybe_id, stream=st.booleans(), unknown=unknown_keys)
    def request(self, request_id: Any, stream: bool, unknown: dict[str, Any]) -> None:
        number = next(self.counter)
        action = self.send(request_id, **unknown, type="work", n=number, stream=stream)
        code = "INVALID_MESSAGE" if stream and request_id is NO_ID else self.refusal(request_id)
        if code:
            assert action is None
            self.refused(request_id, code)
            return
        assert isinstance(action, Accepted)
        assert (action.message, action.stream) == (Work(n=number), stream)
        self.accepted(action.key, request_id, stream=stream)

    @rule(request_id=ids)
    def streamed_request(self, request_id: Any) -> None:
        self.request(request_id, True, {})

    @rule(request_id=maybe_id)
    def describe(self, request_id: Any) -> None:
        action = self.send(request_id, type="describe")
        if code := self.refusal(request_id):
            assert action is None
            self.refused(request_id, code)
            return
        assert isinstance(action, Control)
        self.accepted(action.key, request_id, stream=False)

    def accepted(self, key: int, request_id: Any, *, stream: bool) -> None:
        assert key not in self.keys
        self.keys.append(key)
        self.by_key[key] = request_id
        if request_id is NO_ID:
            self.plain_by_key[key] = {}
            self.plain.append(self.plain_by_key[key])
        else:
            self.by_id[request_id] = Stream(key, stream=stream)
        self.read()

    @rule(request_id=ids)
    def cancel(self, request_id: Any) -> None:
        action = self.send(NO_ID, type="cancel", request_id=request_id)
        found = self.by_id.get(request_id)
        assert action == (None if found is None else CancelRequest(found.key))
        self.read()

    @rule(own=ids, request_id=ids)
    def cancel_with_an_id(self, own: Any, request_id: Any) -> None:
        if self.refusal(own) not in {"", "DUPLICATE_ID"}:
            return  # see test_a_cancel_is_never_refused_for_the_load_that_it_would_lessen
        found = self.by_id.get(request_id)
        action = self.send(own, type="cancel", request_id=request_id)
        if own in self.by_id:
            assert action is None
            self.refused(own, "DUPLICATE_ID")
            return
        assert action == (None if found is None else CancelRequest(found.key))
        answer = frames(self.protocol)
        assert [(frame["id"], frame["seq"], frame["data"]) for frame in answer] == [
            (own, 1, {"cancelled": found is not None})
        ]

    @rule(request_id=maybe_id, kind=st.sampled_from(sorted(BAD)))
    def bad(self, request_id: Any, kind: str) -> None:
        assert self.send(request_id, **BAD_FIELDS[kind]) is None
        self.refused(request_id, BAD[kind])

    @rule(bad=st.sampled_from([[], None, "x", 5, {"type": "work", "id": {}}, {"type": "work", "id": 1.5}]))
    def not_a_message(self, bad: Any) -> None:
        assert self.protocol.receive(framed(self.encoding, bad), self.now) is None
        self.refused(NO_ID, "INVALID_MESSAGE")

    @rule(bad=st.sampled_from([("", b""), ("{", b"\x81"), ("\ud800", b"\x82\xa1a\x01"), ("x", b"\xc1")]))
    def not_of_the_encoding(self, bad: tuple[str, bytes]) -> None:
        assert self.protocol.receive(bad[not self.encoding.text], self.now) is None
        self.refused(NO_ID, "INVALID_JSON")

    @rule(request_id=maybe_id, kind=st.sampled_from(["ping", "hello"]))
    def control(self, request_id: Any, kind: str) -> None:
        assert self.send(request_id, type=kind) is None
        (answer,) = self.read(others=1)
        assert answer["type"] == {"ping": "pong", "hello": "welcome"}[kind]
        assert answer.get("id", NO_ID) == request_id

    @rule(really=st.integers(0, 3))
    def of_the_other_kind(self, really: int) -> None:
        if really == 0:
            self.binaries += 1
            self.protocol.receive(b"{}" if self.encoding.text else "{}", self.now)
            if self.binaries == 1:
                self.refused(NO_ID, "UNSUPPORTED_ENCODING")

    # --- the agents, which may also speak of what is long over ---

    def key(self, which: int) -> int:
        """Mostly one that is in flight, sometimes any that ever was; 0 never was one."""
        known = tuple(self.by_key) if which % 4 and self.by_key else self.keys
        return known[which % len(known)] if known else 0

    @rule(which=st.integers(0, 40))
    def started(self, which: int) -> None:
        key = self.key(which)
        self.protocol.started(key, "writer")
        stream = self.in_flight(key)
        self.read()
        assert stream is None or stream.started is stream.stream

    @rule(which=st.integers(0, 40), data=json_values, room=st.booleans())
    def chunk(self, which: int, data: Any, room: bool) -> None:
        key = self.key(which)
        self.protocol.chunk(key, data, room=room)
        stream = self.in_flight(key)
        if stream is not None and stream.stream:
            stream.emitted.extend([data] * room)
            stream.dropped += not room
        self.read()

    @rule(which=st.integers(0, 40), count=st.integers(1, 3))
    def drop(self, which: int, count: int) -> None:
        key = self.key(which)
        self.protocol.drop(key, count)
        stream = self.in_flight(key)
        if stream is not None and stream.stream:
            stream.dropped += count
        self.read()

    @rule(which=st.integers(0, 40), fraction=fractions, room=st.booleans())
    def progress(self, which: int, fraction: float, room: bool) -> None:
        key = self.key(which)
        stream = self.in_flight(key)
        if stream is not None and (0 <= fraction <= 1):
            stream.reported = max(stream.reported, fraction)
        self.protocol.progress(key, fraction, "words", room=room)
        self.read()
        if stream is not None and stream.stream and room and (0 <= fraction <= 1 or math.isnan(fraction)):
            assert stream.progress >= stream.reported  # also of what there was no room for; a NaN changes nothing

    @rule(which=st.integers(0, 40), error=st.none() | ERRORS, value=json_values | UNFIT_VALUE, step=st.floats(-5, 5))
    def finish(self, which: int, error: ErrorCode | None, value: Any, step: float) -> None:
        key = self.key(which)
        self.now += step
        slot = self.protocol.finish(key, value, error and GramiError("no", code=error), self.now)
        assert (slot is None) is (key not in self.by_key)
        if slot is None:
            assert frames(self.protocol) == []
            return
        code = error or ("AGENT_EXECUTION_FAILED" if value == {"n": {1.5j}} else None)
        owed = {"status": "error", "error_code": code} if code else {"status": "success", "data": value}
        stream = self.in_flight(key)
        request_id = self.by_key.pop(key)
        if stream is None:
            self.plain_by_key[key].update(owed)
        else:
            dropped = {"chunks_dropped": stream.dropped} if stream.dropped else {}
            stream.owed = owed | ({"retryable": code in RETRYABLE} if code else dropped)
        self.read()
        assert request_id is NO_ID or request_id not in self.by_id

    @precondition(lambda self: len(self.keys) > 5)
    @rule()
    def drain(self) -> None:
        self.protocol.draining = self.draining = True

    # --- always ---

    @invariant()
    def a_plain_answer_waits_for_nothing_but_its_turn(self) -> None:
        assert not self.plain or not self.plain[0]

    @invariant()
    def what_is_in_flight_is_known_and_bounded(self) -> None:
        assert sorted(self.protocol.inflight) == sorted(self.by_key)
        assert len(self.by_key) <= self.limit

    @invariant()
    def only_a_second_frame_of_the_other_kind_closes(self) -> None:
        assert self.protocol.close_code == (CLOSE_UNSUPPORTED_DATA if self.binaries > 1 else None)

    def teardown(self) -> None:
        if not hasattr(self, "protocol"):
            return
        while self.by_key:
            self.finish(1, ErrorCode.CANCELLED, None, 0.0)
        assert (self.by_id, self.plain, self.protocol.inflight) == ({}, deque(), ())


class WireInMessagePack(Wire):
    """The same messages, the same answers."""

    encoding = MSGPACK


for machine, examples in ((Wire, 120), (WireInMessagePack, 60)):
    machine.TestCase.settings = settings(
        max_examples=examples,
        stateful_step_count=40,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow],
    )
TestWire = Wire.TestCase
TestWireInMessagePack = WireInMessagePack.TestCase


# --- any frame at all ---

BOTH = pytest.mark.parametrize("encoding", [JSON, MSGPACK], ids=str)
any_text = st.text(st.characters(exclude_categories=[]), max_size=80)
VALID = [
    {"type": "work", "n": 1, "words": ["a"], "extra": {"a": [1.5, None]}, "id": "1", "stream": True, "to": "writer"},
    {"type": "work", "n": 1, "timeout_ms": 5, "meta": {"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01"}},
    {"type": "work", "n": 1, "idempotency_key": "k", "background": False},
    {"type": "cancel", "request_id": "busy", "id": 5},
    {"type": "hello", "protocol": 1, "client": {"name": "x"}, "token": "t"},
    {"type": "auth", "token": "t", "id": "a"},
    {"type": "describe", "id": "d"},
    {"type": "ping", "id": "p"},
    {"type": "subscribe", "id": "s", "topic": "a.*", "recover": {"epoch": "e", "offset": 4}},
    {"type": "unsubscribe", "id": "u", "topic": "heard"},
    {"type": "publish", "topic": "a.b", "data": {"type": "work"}},
    {"type": "admin.disconnect", "id": "x", "connection_id": "c"},
    {"type": "job.get", "id": "j", "job_id": "1"},
]
FIELDS = [*sorted({name for message in VALID for name in message}), "x"]


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A valid message with one value replaced, or a piece of its text."""
    message = dict(draw(st.sampled_from(VALID)))
    if draw(st.booleans()):
        message[draw(st.sampled_from(sorted(message)) | st.text(max_size=3))] = draw(json_values)
    text = json.dumps(message, ensure_ascii=draw(st.booleans()))
    start = draw(st.integers(0, len(text)))
    return text[:start] + draw(st.just("") | any_text) + text[start + draw(st.integers(0, 6)) :]


@st.composite
def mutated_bytes(draw: st.DrawFn) -> bytes:
    """The same in MessagePack."""
    data = MSGPACK.encode(draw(st.sampled_from(VALID)))
    start = draw(st.integers(0, len(data)))
    return data[:start] + draw(st.binary(max_size=9)) + data[start + draw(st.integers(0, 6)) :]


def answers_to(frame: Frame) -> list[dict[str, Any]]:
    """Send one frame while another request is in flight; check what must hold for every answer."""
    protocol = connection(JSON if isinstance(frame, str) else MSGPACK)
    protocol.subscriptions.add("heard")
    busy = accept(protocol, id="busy", stream=True)
    action = protocol.receive(frame, 1.0)
    answers = frames(protocol)
    assert protocol.close_code is None
    assert busy in protocol.inflight
    assert len(answers) + isinstance(action, Accepted | Control) <= 1
    # Only a cancel without an id is not answered.
    assert answers or action is not None or b"cancel" in (frame if isinstance(frame, bytes) else frame.encode())
    assert len(protocol.refusals) == sum(answer.get("status") == "error" for answer in answers)
    for answer in answers:
        if answer.get("status") == "error":
            assert answer["error_code"] in CODES
            assert answer["message"]
            assert isinstance(answer.get("param", ""), str)
        else:
            assert answer.get("type") in {"pong", "welcome", "response"}
    return answers


@settings(max_examples=200)
@given(st.binary(max_size=60) | st.recursive(st.just(b"\x80"), lambda inner: inner.map(lambda data: b"\x91" + data)))
def test_any_bytes_are_answered_once_and_never_raise_or_close(data: bytes) -> None:
    answers_to(data)


@settings(max_examples=300)
@given(mutated_bytes())
def test_damaged_bytes_never_raise_and_never_close(data: bytes) -> None:
    answers_to(data)


HOSTILE = {
    "bad_utf8": b"\xa2\xff\xff",
    "surrogate": b"\xa3\xed\xa0\x80",
    "map_as_key": b"\x81\x80\x01",
    "array_of_a_map_as_key": b"\x81\x91\x80\x01",
    "impossible_time": b"\xc7\x0c\xff" + b"\xff" * 12,
    "time": b"\xd6\xff\x00\x00\x00\x01",
    "extension": b"\xd4\x05\x00",
    "number_as_key": b"\x81\x01\x01",
    "nothing_as_key": b"\x81\xc0\x01",
    "bytes": b"\xc4\x02\xff\xff",
    "nan": b"\xcb\x7f\xf8" + b"\x00" * 6,
    "array_that_ends": b"\xdd\xff\xff\xff\xff",
    "never_used": b"\xc1",
    "deep": b"\x91" * 5_000 + b"\x01",
    "deep_keys": b"\x81" + b"\x91" * 500 + b"\x01\x01",
}


@pytest.mark.parametrize("crowded", [False, True])
@pytest.mark.parametrize("name", HOSTILE)
def test_what_only_messagepack_can_say_never_raises_in_any_field(name: str, crowded: bool) -> None:
    for message in VALID:
        for field in {*message, "x", "meta", "id"}:
            rest = {key: value for key, value in message.items() if key != field}
            # With so many arrays all of it is read, not only what is asked for.
            rest |= {"y": [[]] * 99} if crowded else {}
            body = MSGPACK.encode(rest)[1:]
            answers_to(bytes([0x80 + len(rest) + 1]) + body + MSGPACK.encode(field) + HOSTILE[name])


@pytest.mark.parametrize("depth", [64, 65, 500])
def test_a_key_that_is_nested_too_deeply_is_refused_like_a_value(depth: int) -> None:
    body = MSGPACK.encode({"type": "work", "n": 1})[1:] + MSGPACK.encode("x")
    key = b"\x81" + b"\x91" * (depth - 2) + b"\x01\x01"
    assert len(answers_to(b"\x83" + body + key)) == (depth > 64)


NUMBERS = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e400",
    "-1e400",
    "9" * 4300,
    "9" * 4301,
    "9" * 9999,
    "1e5",
    "-0",
    "01",
    ".",
]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number[:9])
def test_a_number_of_any_size_in_any_field_is_answered(number: str) -> None:
    for message in VALID:
        for field in FIELDS:
            answers_to(json.dumps({**message, field: "HERE"}).replace('"HERE"', number))


@given(st.lists(st.sampled_from(VALID).flatmap(lambda each: st.sampled_from(sorted(each.items()))), max_size=9))
def test_a_field_that_comes_twice_never_raises(pairs: list[tuple[str, Any]]) -> None:
    answers_to("{" + ",".join(f"{json.dumps(name)}:{json.dumps(value)}" for name, value in pairs) + "}")


@BOTH
@given(valid=st.sampled_from(VALID), key=st.sampled_from(FIELDS), value=json_values)
def test_a_wrong_value_in_any_field_gets_the_same_answer_in_both_encodings(
    encoding: Encoding, valid: dict[str, Any], key: str, value: Any
) -> None:
    here, there = (answers_to(framed(each, valid | {key: value})) for each in (encoding, JSON))
    for answer in (*here, *there):
        answer.pop("message", None)  # the libraries' words differ
    assert here == there


@settings(max_examples=200)
@given(any_text | json_values.map(json.dumps))
def test_what_is_no_message_is_answered_and_never_raises_or_closes(text: str) -> None:
    (answer,) = answers_to(text)
    assert answer["status"] == "error"


@settings(max_examples=300)
@given(mutated())
def test_a_damaged_message_never_raises_and_never_closes(text: str) -> None:
    answers_to(text)


def nested(kind: str, field: str, depth: int) -> str:
    return f'{{"type":"{kind}","n":1,"{field}":' + '{"a":' * depth + "1" + "}" * (depth + 1)


@pytest.mark.parametrize("kind", ["work", "ping", "describe", "nobody"])
def test_a_message_of_any_depth_never_raises_and_never_closes(kind: str) -> None:
    for depth in range(1, sys.getrecursionlimit() + 50, 3):
        answers_to(nested(kind, "extra", depth))


@pytest.mark.parametrize("kind", ["hello", "cancel"])
def test_a_control_message_of_any_depth_never_raises_and_never_closes(kind: str) -> None:
    for depth in range(sys.getrecursionlimit() - 200, sys.getrecursionlimit() + 50):
        answers_to(nested(kind, "x", depth))


def test_a_message_type_that_fails_to_check_itself_never_raises_and_never_closes() -> None:
    (answer,) = answers_to('{"type":"fragile","id":"1","key":"k"}')
    assert answer["error_code"] == "VALIDATION_FAILED"


# --- what a request says ---


def test_a_validation_error_names_the_field() -> None:
    protocol = connection()
    for fields, param in (
        ({"type": "work", "n": "1"}, "$.n"),
        ({"type": "work"}, "$.n"),
        ({"type": "work", "n": 1, "words": ["a", 2]}, "$.words[1]"),
        ({"type": "work", "n": 1, "timeout_ms": "soon"}, "$.timeout_ms"),
        ({"type": "hello", "client": 5}, "$.client"),
    ):
        send(protocol, id="1", **fields)
        (answer,) = frames(protocol)
        assert (answer["param"], answer["id"]) == (param, "1")
        assert param in answer["message"]


def test_a_misspelt_type_is_told_the_nearest_one() -> None:
    protocol = connection()
    send(protocol, type="wrok")
    assert "did you mean 'work'?" in frames(protocol)[0]["message"]


@given(st.none() | st.integers(1, 10**30), st.integers(1, 10**6), st.integers(1, 10**6))
def test_a_deadline_is_what_was_asked_for_up_to_the_limit(asked: int | None, usual: int, longest: int) -> None:
    protocol = connection(request_timeout_ms=usual, max_timeout_ms=longest)
    accepted = send(protocol, type="work", n=1, timeout_ms=asked, to="writer")
    described = send(protocol, type="describe", timeout_ms=asked)
    assert accepted.timeout == described.timeout == min(asked or usual, longest) / 1000
    assert accepted.to == "writer"


hexadecimal = st.text("0123456789abcdef", min_size=32, max_size=32).filter(lambda text: set(text) != {"0"})


@given(hexadecimal, hexadecimal, st.sampled_from(["00", "01"]))
def test_a_traceparent_gives_the_request_its_trace(trace: str, parent: str, flags: str) -> None:
    parent = parent[:15] + "1"
    accepted = send(connection(), type="work", n=1, meta={"traceparent": f"00-{trace}-{parent}-{flags}"})
    assert accepted.trace.trace_id == trace


@pytest.mark.parametrize(
    "parent",
    [
        None,
        5,
        "",
        "00",
        "A" * 55,
        "00-" + "A" * 32 + "-" + "b" * 16 + "-01",
        " 00-" + "a" * 32 + "-" + "b" * 16 + "-01",
    ],
)
def test_what_is_no_traceparent_is_ignored(parent: Any) -> None:
    assert send(connection(), type="work", n=1, meta={"traceparent": parent}).trace.trace_id == ""
    assert send(connection(), type="work", n=1, meta={"tracestate": "x"}).trace.trace_id == ""


@pytest.mark.parametrize(
    "parent",
    [
        "00-" + "0" * 32 + "-" + "b" * 16 + "-01",
        "00-" + "a" * 32 + "-" + "0" * 16 + "-01",
        "ff-" + "a" * 32 + "-" + "b" * 16 + "-01",
        "00-" + "a" * 32 + "-" + "b" * 16 + "-01-more",
        "01-" + "a" * 32 + "-" + "b" * 16 + "-01more",
    ],
)
def test_a_traceparent_that_the_standard_calls_invalid_is_ignored(parent: str) -> None:
    assert send(connection(), type="work", n=1, meta={"traceparent": parent}).trace.trace_id == ""


# --- abuse ---


@given(st.lists(st.integers(0, BAD_MESSAGES_IN_A_ROW + 5), max_size=4))
def test_a_client_is_cut_off_exactly_when_its_bad_messages_are_a_hundred_in_a_row(runs: list[int]) -> None:
    protocol = connection()
    for run in runs:
        for _ in range(run):
            send(protocol, type="nobody")
        send(protocol, type="ping")
    assert (protocol.close_code == CLOSE_ABUSE) is any(run >= BAD_MESSAGES_IN_A_ROW for run in runs)


@pytest.mark.parametrize("draining", [False, True])
def test_a_client_that_may_try_again_later_is_not_cut_off(draining: bool) -> None:
    protocol = connection(max_inflight=64)
    protocol.draining = draining
    for number in range(200):
        send(protocol, type="work", n=number, id=number)
    assert {frame["error_code"] for frame in frames(protocol)} == {"SHUTTING_DOWN" if draining else "TOO_MANY_INFLIGHT"}
    assert protocol.close_code is None


@pytest.mark.parametrize("draining", [False, True])
def test_a_cancel_is_never_refused_for_the_load_that_it_would_lessen(draining: bool) -> None:
    protocol = connection(max_inflight=1)
    key = accept(protocol, id="slow")
    protocol.draining = draining
    assert send(protocol, type="cancel", id="c", request_id="slow") == CancelRequest(key)
    assert frames(protocol)[0]["data"] == {"cancelled": True}


@given(st.lists(st.sampled_from(["work", "finish", "nobody", "ping"]), max_size=30))
def test_refusals_that_wait_for_a_slow_plain_answer_are_counted_byte_by_byte(steps: list[str]) -> None:
    protocol = connection()
    slow = accept(protocol)
    waiting = []
    for step in steps:
        if step == "finish" and waiting:
            protocol.finish(waiting.pop(), {"some": "data"}, None, 0.0)
        elif isinstance(action := send(protocol, type=step, n=1), Accepted):
            waiting.append(action.key)
    protocol.data_to_send()
    for key in waiting:
        protocol.finish(key, None, None, 0.0)
    held = protocol.held_bytes
    protocol.finish(slow, None, None, 0.0)
    assert held == sum(len(frame) for frame in protocol.data_to_send() if b"error_code" in frame)
    assert protocol.held_bytes == 0


# --- what cannot be sent ---


class Nowhere(tzinfo):
    def utcoffset(self, dt: datetime | None) -> timedelta | None:
        raise KeyError("no such zone")


RING: list[Any] = []
RING.append(RING)
UNFIT = [object(), {object(): 1}, {(1, 2): 3}, "\ud800", RING, 1.5j, [b"x", object()]]


@pytest.mark.parametrize("value", UNFIT, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("fields", [{}, {"id": "1"}, {"id": "1", "stream": True}])
def test_an_answer_that_cannot_be_sent_is_an_error_and_the_one_terminal_frame(
    fields: dict[str, Any], value: Any
) -> None:
    protocol = connection()
    protocol.finish(accept(protocol, **fields), value, None, 0.0)
    (answer,) = frames(protocol)
    assert (answer["status"], answer["error_code"]) == ("error", "AGENT_EXECUTION_FAILED")
    assert type(value).__name__ in answer["message"]
    assert protocol.inflight == ()


@pytest.mark.parametrize("value", [math.nan, math.inf, {1, 2}, b"x", {1.5: 2}, 2**70, datetime(2026, 1, 1, tzinfo=UTC)])
def test_what_json_has_no_word_for_is_still_json(value: Any) -> None:
    protocol = connection()
    protocol.finish(accept(protocol), value, None, 0.0)
    assert json.loads(protocol.data_to_send()[0], parse_constant=pytest.fail)["status"] == "success"


def test_an_answer_whose_own_code_fails_while_it_is_encoded_is_an_error() -> None:
    protocol = connection()
    protocol.finish(accept(protocol, id="1"), datetime(2026, 1, 1, tzinfo=Nowhere()), None, 0.0)
    assert frames(protocol)[0]["error_code"] == "AGENT_EXECUTION_FAILED"


@pytest.mark.parametrize("value", UNFIT, ids=lambda value: type(value).__name__)
def test_a_chunk_that_cannot_be_sent_never_raises_and_leaves_no_gap(value: Any) -> None:
    protocol = connection()
    key = accept(protocol, id="1", stream=True)
    protocol.chunk(key, value)
    protocol.chunk(key, "fine")
    protocol.finish(key, "all", None, 0.0)
    answers = frames(protocol)
    assert [answer["seq"] for answer in answers] == list(range(1, len(answers) + 1))
    assert (answers[-1]["type"], answers[-1]["chunks_dropped"]) == ("response", 1)


@pytest.mark.parametrize(("fraction", "message"), [(0.5, "\ud800"), (0.5, object()), ("half", ""), (None, "")])
def test_a_progress_that_cannot_be_sent_never_raises_and_leaves_no_gap(fraction: Any, message: Any) -> None:
    protocol = connection()
    key = accept(protocol, id="1", stream=True)
    protocol.progress(key, fraction, message)
    protocol.finish(key, "all", None, 0.0)
    answers = frames(protocol)
    assert [answer["seq"] for answer in answers] == list(range(1, len(answers) + 1))


class Speechless:
    def __str__(self) -> str:
        raise KeyError("no words")


@pytest.mark.parametrize(("fraction", "message"), [(10**400, ""), (0.5, Speechless())], ids=["huge", "speechless"])
def test_a_progress_whose_own_code_fails_never_raises(fraction: Any, message: Any) -> None:
    protocol = connection()
    key = accept(protocol, id="1", stream=True)
    protocol.progress(key, fraction, message)
    protocol.finish(key, "all", None, 0.0)
    assert frames(protocol)[-1]["status"] == "success"


@pytest.mark.parametrize("half", [Fraction(1, 2), Decimal("0.5")])
def test_progress_may_be_any_kind_of_number(half: Any) -> None:
    protocol = connection()
    protocol.progress(accept(protocol, id="1", stream=True), half, "half")
    assert frames(protocol)[0]["progress"] == 0.5


@pytest.mark.parametrize("fields", [{}, {"id": "1"}])
def test_an_error_carries_its_words_and_never_a_traceback(fields: dict[str, Any]) -> None:
    protocol = connection()
    key = accept(protocol, **fields)
    try:
        try:
            raise KeyError("the cause")
        except KeyError as cause:
            raise GramiError("the words", code="UPSTREAM_ERROR", param="$.n", retry_after_ms=5) from cause
    except GramiError as error:
        protocol.finish(key, None, error, 0.25)
    (frame,) = protocol.data_to_send()
    assert not any(trace in frame for trace in (b"Traceback", b"the cause", b".py", b"line "))
    assert json.loads(frame) == {"status": "error", "error_code": "UPSTREAM_ERROR", "message": "the words"} | (
        {
            "type": "response",
            "id": "1",
            "seq": 1,
            "retryable": True,
            "duration_ms": 250,
            "retry_after_ms": 5,
            "param": "$.n",
        }
        if fields
        else {}
    )


@pytest.mark.parametrize("fields", [{}, {"id": "1"}])
def test_an_error_whose_words_cannot_be_sent_keeps_its_code(fields: dict[str, Any]) -> None:
    protocol = connection()
    protocol.finish(accept(protocol, **fields), None, GramiError("\ud800", code="CANCELLED"), 0.0)
    assert frames(protocol)[0]["error_code"] == "CANCELLED"


@pytest.mark.parametrize("fields", [{}, {"id": "1"}])
def test_an_error_code_that_is_not_in_the_list_is_never_sent(fields: dict[str, Any]) -> None:
    protocol = connection()
    protocol.finish(accept(protocol, **fields), None, GramiError("no", code="NO_LUCK"), 0.0)
    (answer,) = frames(protocol)
    assert (answer["error_code"], answer["message"]) == ("AGENT_EXECUTION_FAILED", "no")


@given(st.lists(fractions, max_size=10))
def test_progress_never_falls_and_never_leaves_zero_to_one(fractions: list[float]) -> None:
    protocol = connection()
    key = accept(protocol, id="1", stream=True)
    reached = [0.0]
    for fraction in fractions:
        protocol.progress(key, fraction, "")
        (frame,) = frames(protocol)
        if math.isnan(fraction):
            assert frame["progress"] == reached[-1]
        reached.append(frame["progress"])
    assert reached == sorted(reached)
    assert 0 <= reached[-1] <= 1


def test_what_is_sent_is_handed_over_once() -> None:
    protocol = connection()
    send(protocol, type="ping", id=1)
    assert protocol.data_to_send() == [msgspec.json.encode({"type": "pong", "id": 1})]
    assert protocol.data_to_send() == []


# --- what it is made of ---

PURE = ("protocol", "answers", "catalog", "encoding", "frames", "conversation", "permissions", "buckets", "principals")
PURE += ("control_frames", "explain", "trace_context")
NEIGHBOURS = {"errors", "messages", "topics", "policy", "job", "job_requests", "job_views"}
"""What the pure modules may import beside one another; of ``policy`` they only ask questions."""
HARMLESS = {
    "__future__",
    "collections",
    "difflib",
    "fnmatch",
    "functools",
    "itertools",
    "math",
    "msgspec",
    "re",
    "typing",
}


@pytest.mark.parametrize("name", PURE)
def test_the_core_has_no_clock_no_chance_no_loop_and_no_file(name: str) -> None:
    tree = ast.parse((Path(protocol_module.__file__).parent / f"{name}.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert {each.name.partition(".")[0] for each in node.names} <= HARMLESS
        elif isinstance(node, ast.ImportFrom):
            package, _, module = (node.module or "").partition(".")
            allowed = module in NEIGHBOURS.union(PURE) if package == "grami_actors" else package in HARMLESS
            assert allowed, node.module
        elif isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.Global | ast.Nonlocal):
            pytest.fail(f"{name}.py:{node.lineno}")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"open", "print", "input", "exec", "eval", "__import__"}


@pytest.mark.parametrize(
    "extra", [{1: 2}, {"a": 1, "b": {None: 1}}, msgspec.msgpack.Ext(5, b"x"), b"bytes", {"a": 2**64 - 1}]
)
def test_any_message_has_a_fingerprint_that_says_whether_another_is_the_same(extra: Any) -> None:
    accepted = [
        connection(MSGPACK).receive(MSGPACK.encode({"type": "work", "n": n, "extra": {"x": extra}}), 0.0)
        for n in (1, 1, 2)
    ]
    first, same, other = map(fingerprint, accepted)
    assert first == same != other


@pytest.mark.parametrize("wide", ["ä", "€", "😀", "\ud800"])
@pytest.mark.parametrize("fits", [True, False])
def test_the_size_of_a_message_is_counted_in_bytes(wide: str, fits: bool) -> None:
    text = '{"type":"ping","x":"' + wide * 10 + '"}'
    size = len(text.encode(errors="surrogatepass"))
    protocol = connection(max_message_bytes=size - (not fits))
    protocol.receive(text, 0.0)
    (answer,) = frames(protocol)
    if fits:
        assert answer.get("error_code") in {None, "INVALID_JSON"}
    else:
        assert answer["error_code"] == "MESSAGE_TOO_LARGE"
        assert f"not {size}" in answer["message"]
