"""Jobs on the wire without a socket: what is asked in their words, and how they are told."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grami_actors.catalog import Catalog
from grami_actors.conversation import Conversation, Following, Frame
from grami_actors.credentials import Authority
from grami_actors.encoding import JSON, MSGPACK, Encoding
from grami_actors.errors import ErrorCode, GramiError, JobError
from grami_actors.frames import JOB_CONTROLS, JobCancel, JobRead, Limits
from grami_actors.job import Exit, Fault, Job, JobEvent, Order, State
from grami_actors.job_requests import ListJobs, Piece, SubmitJob, SubmitRequest
from grami_actors.job_views import JobView, ends, event_frame, output, view
from grami_actors.messages import Message
from grami_actors.permissions import Permissions, Rule
from grami_actors.policy import Policy
from grami_actors.protocol import BACKGROUND, Control, ServerProtocol, Setting


class Task(Message):
    n: int = 0


JOB = Job(id="job_1", tool="render", arguments={"n": 1}, owner="ann", digest="", created_at=1e9, due_at=1e9)


def protocol(rules: tuple[Rule, ...] = (), encoding: Encoding = JSON, **limits: Any) -> ServerProtocol:
    policy = Policy(Authority(), Permissions(rules))
    setting = Setting(Catalog({"task": Task}, lambda _: None), Limits(**limits), {}, policy)
    return ServerProtocol("connection-1", setting, 0.0, encoding)


def ask(here: ServerProtocol, **fields: Any) -> Any:
    return here.receive(json.dumps(fields), 0.0)


def refused(here: ServerProtocol, **fields: Any) -> tuple[str, str | None]:
    """The code and the param of a refusal."""
    assert ask(here, **fields, id="x") is None
    (frame,) = map(msgspec.json.decode, here.data_to_send())
    return frame["error_code"], frame.get("param")


# --- what is asked ---


def test_a_submit_is_an_order_with_the_key_of_the_job_and_none_of_the_connection() -> None:
    control = ask(
        protocol(),
        type="job.submit",
        tool="render",
        arguments={"n": 1},
        priority=-3,
        concurrency_key="c",
        not_before="2030-01-31T12:00:00+01:00",
        deadline_ms=1_500,
        detached=True,
        wake="planner",
        idempotency_key="k",
    )
    assert isinstance(control, Control)
    assert control.idempotency_key is None
    assert control.fields == SubmitJob(
        tool="render",
        arguments={"n": 1},
        order=Order(
            idempotency_key="k",
            priority=-3,
            concurrency_key="c",
            not_before=datetime(2030, 1, 31, 11, tzinfo=UTC).timestamp(),
            deadline=1.5,
            detached=True,
            wake="planner",
        ),
    )


def test_a_request_in_the_background_has_its_timeout_as_the_deadline_of_the_job_however_long() -> None:
    here = protocol(max_timeout_ms=1_000)
    control = ask(here, type="task", n=5, to="writer", background=True, timeout_ms=86_400_000, idempotency_key="k")
    order = Order(idempotency_key="k", deadline=86_400.0)
    assert (control.kind, control.fields) == (BACKGROUND, SubmitRequest(message=Task(5), to="writer", order=order))
    assert (control.idempotency_key, control.timeout) == (None, 60.0)
    assert ask(here, type="task", background=True).fields.order == Order()


def test_a_read_that_waits_has_so_much_more_time_for_its_answer() -> None:
    here = protocol(request_timeout_ms=1_000)
    control = ask(here, type="job.read", job_id="job_1", wait_ms=30_000)
    assert (control.fields, control.timeout) == (JobRead("job_1", wait_ms=30_000), 31.0)


def test_a_list_names_states() -> None:
    here = protocol()
    wanted = ask(here, type="job.list", states=["QUEUED", "LOST"], tool="t", before="job_1", limit=200).fields
    assert wanted == ListJobs(states=(State.QUEUED, State.LOST), tool="t", before="job_1", limit=200)


def test_a_cancel_with_a_job_is_the_other_word_for_it() -> None:
    here = protocol()
    control = ask(here, type="cancel", job_id="job_1")
    assert (control.kind, control.fields) == ("job.cancel", JobCancel("job_1"))


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"type": "job.submit"}, "VALIDATION_FAILED", "$.tool"),
        ({"type": "job.submit", "tool": "t", "arguments": []}, "VALIDATION_FAILED", "$.arguments"),
        ({"type": "job.submit", "tool": "t", "priority": 1_001}, "VALIDATION_FAILED", "$.priority"),
        ({"type": "job.submit", "tool": "t", "not_before": "tomorrow"}, "VALIDATION_FAILED", "$.not_before"),
        ({"type": "job.submit", "tool": "t", "not_before": "2030-01-31T12:00:00"}, "VALIDATION_FAILED", "$.not_before"),
        ({"type": "job.submit", "tool": "t", "deadline_ms": 0}, "VALIDATION_FAILED", "$.deadline_ms"),
        ({"type": "job.submit", "tool": "t", "deadline_ms": 10**400}, "VALIDATION_FAILED", "$.deadline_ms"),
        ({"type": "job.submit", "tool": "t", "idempotency_key": ""}, "INVALID_MESSAGE", "$.idempotency_key"),
        ({"type": "job.submit", "tool": "t", "background": True}, "INVALID_MESSAGE", "$.background"),
        ({"type": "job.get"}, "VALIDATION_FAILED", "$.job_id"),
        ({"type": "job.list", "states": ["QUEUED", "DONE"]}, "VALIDATION_FAILED", "$.states[1]"),
        ({"type": "job.list", "limit": 201}, "VALIDATION_FAILED", "$.limit"),
        ({"type": "job.input", "job_id": "j"}, "VALIDATION_FAILED", "$.answer"),
        ({"type": "job.read", "job_id": "j", "limit": 262_145}, "VALIDATION_FAILED", "$.limit"),
        ({"type": "job.read", "job_id": "j", "wait_ms": 30_001}, "VALIDATION_FAILED", "$.wait_ms"),
        ({"type": "job.read", "job_id": "j", "offset": -1}, "VALIDATION_FAILED", "$.offset"),
        ({"type": "job.attach", "job_id": "j", "after_seq": -1}, "VALIDATION_FAILED", "$.after_seq"),
        ({"type": "cancel", "job_id": "j", "request_id": 1}, "VALIDATION_FAILED", "$.job_id"),
        ({"type": "task", "background": True, "stream": True}, "INVALID_MESSAGE", "$.stream"),
        ({"type": "task", "background": True, "n": "x"}, "VALIDATION_FAILED", "$.n"),
        ({"type": "job.nothing"}, "UNSUPPORTED_FEATURE", None),
    ],
)
def test_a_refusal_names_the_field(fields: dict[str, Any], code: str, param: str | None) -> None:
    assert refused(protocol(), **fields) == (code, param)


def test_one_who_may_not_call_a_tool_or_wake_an_agent_is_refused() -> None:
    here = protocol((Rule(send=("tool_call",), to=("tool:render",)),))
    assert refused(here, type="job.submit", tool="other") == ("PERMISSION_DENIED", "$.tool")
    assert refused(here, type="job.submit", tool="render", wake="planner") == ("PERMISSION_DENIED", "$.wake")
    assert refused(here, type="task", background=True) == ("PERMISSION_DENIED", None)
    assert isinstance(ask(here, type="job.submit", tool="render"), Control)


JSON_VALUES = st.none() | st.booleans() | st.integers(-5, 300_000) | st.text(max_size=5) | st.just([]) | st.just({})
FIELDS = sorted({name for fields in JOB_CONTROLS.values() for name in fields.__struct_fields__} | {"request_id"})
SENT = st.fixed_dictionaries(
    {"type": st.sampled_from([*sorted(JOB_CONTROLS), "cancel", "task"])},
    optional={
        **dict.fromkeys(FIELDS, JSON_VALUES),
        "job_id": st.just("job_1") | JSON_VALUES,
        "tool": st.just("render") | JSON_VALUES,
        "background": st.booleans(),
        "stream": st.booleans(),
        "timeout_ms": st.integers(-1, 2),
        "idempotency_key": st.text(max_size=2),
    },
)


@settings(deadline=None)
@given(st.lists(SENT, max_size=8), st.booleans(), st.booleans(), st.sampled_from([JSON, MSGPACK]))
def test_whatever_is_sent_about_jobs_gets_exactly_one_answer(
    sent: list[dict[str, Any]], plain: bool, draining: bool, encoding: Encoding
) -> None:
    here = protocol(encoding=encoding)
    here.draining = draining
    for number, fields in enumerate(sent):
        frame: Any = encoding.encode(fields if plain else {**fields, "id": number})
        action = here.receive(frame.decode() if encoding.text else frame, 0.0)
        if draining and action is not None:
            assert action.kind not in {"job.submit", "job.retry", BACKGROUND}
        if isinstance(action, msgspec.Struct):
            here.finish(action.key, {}, None, 0.0)  # type: ignore[union-attr]
            assert here.finish(action.key, {}, None, 0.0) is None  # type: ignore[union-attr]
    answers = [encoding.decoder(dict)(frame if not encoding.text else frame.decode()) for frame in here.data_to_send()]
    # A plain cancel of a request has no answer.
    silent = sum(
        fields["type"] == "cancel"
        and fields.get("job_id") is None
        and isinstance(fields.get("request_id"), int | str | None)
        and not isinstance(fields.get("request_id"), bool)
        and _valid_header(fields)
        for fields in sent
    )
    if plain:
        assert len(answers) == len(sent) - silent
        assert all(set(each) in ({"status", "data"}, {"status", "error_code", "message"}) for each in answers)
    else:
        assert [each["id"] for each in answers] == list(range(len(sent)))
        assert all(each["seq"] == 1 for each in answers)
    assert here.inflight == ()


def _valid_header(fields: dict[str, Any]) -> bool:
    return fields.get("timeout_ms", 1) > 0 and fields.get("idempotency_key", "k") != ""


# --- how they are told ---


def test_a_view_says_nothing_where_there_is_nothing_to_say() -> None:
    told = msgspec.to_builtins(view(JOB))
    assert told == {
        "job_id": "job_1",
        "tool": "render",
        "state": "QUEUED",
        "status": "submitted",
        "attempt": 0,
        "seq": 0,
        "owner": "ann",
        "created_at": "2001-09-09T01:46:40.000Z",
        "due_at": "2001-09-09T01:46:40.000Z",
        "arguments": {"n": 1},
    }
    assert "arguments" not in msgspec.to_builtins(view(JOB, whole=False))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_view_tells_any_time_in_the_years_that_there_are(at: float) -> None:
    told = view(msgspec.structs.replace(JOB, due_at=at, expires_at=at))
    assert told.due_at == told.expires_at
    assert msgspec.convert(told.due_at, datetime).tzinfo is not None


def test_a_request_in_the_background_may_have_any_timeout() -> None:
    assert ask(protocol(), type="task", background=True, timeout_ms=10**400).fields.order.deadline == 2**53 / 1000


def test_a_view_tells_how_it_ended() -> None:
    ended = msgspec.structs.replace(
        JOB, state=State.FAILED, fault=Fault("TOOL_EXECUTION_FAILED", "no"), exit=Exit(code=7, cpu=1.5), finished_at=1e9
    )
    told = msgspec.to_builtins(view(ended))
    assert told["error"] == {"error_code": "TOOL_EXECUTION_FAILED", "message": "no"}
    assert told["exit"] == {"code": 7, "cpu_ms": 1_500}


@given(st.sampled_from(State), st.none() | st.sampled_from(ErrorCode), st.none() | st.integers())
def test_the_outcome_of_a_view_is_that_of_its_job(state: State, code: ErrorCode | None, result: Any) -> None:
    fault = None if code is None else Fault(str(code), "words")
    job = msgspec.structs.replace(JOB, state=state, fault=fault, result=result)

    def outcome(of: Any) -> Any:
        try:
            return of.outcome()
        except GramiError as error:
            return type(error), error.error_code, error.message

    sent = msgspec.json.decode(msgspec.json.encode(view(job)))
    assert outcome(msgspec.convert(sent, JobView)) == outcome(job)


def test_only_a_terminal_state_ends_the_events() -> None:
    assert [state for state in State if ends("state", {"state": str(state)})] == [s for s in State if s.terminal]
    assert not ends("log", {"state": "FAILED"})


@given(st.text(max_size=30), st.integers(4, 9), st.binary(max_size=6))
def test_a_log_read_in_pieces_of_any_size_is_the_text_that_it_is(text: str, limit: int, rest: bytes) -> None:
    whole = text.encode() + rest
    offset, got = 0, ""
    for _ in range(len(whole) + 1):
        data = whole[offset : offset + limit]
        end = offset + len(data) == len(whole)
        told = output(Piece(data, offset, 0, len(whole), end), text=True, artifact=False)
        assert isinstance(told.text, str)
        assert told.next_offset > offset or end
        got, offset = got + told.text, told.next_offset
        if end:
            break
    assert offset == len(whole)
    assert got.startswith(text)
    if not rest:
        assert got == text


# --- following, on the client's side ---


class Reader(Following):
    """Takes as many as it has room for."""

    def __init__(self, after: int, room: float = math.inf) -> None:
        super().__init__("job_1", after)
        self.room = room
        self.seen: list[int] = []
        self.errors: list[GramiError] = []

    def look(self, view: Any) -> None: ...

    def offer(self, frame: Frame) -> bool:
        if len(self.seen) >= self.room:
            return False
        self.seen.append(frame.seq)
        return True

    def fail(self, error: GramiError) -> None:
        self.errors.append(error)


def event(seq: int) -> bytes:
    return msgspec.json.encode(event_frame(JobEvent("job_1", seq, 1e9, "progress", 1, {})))


@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=3),
    st.lists(st.sampled_from(["attach", "answer", "event", "skip", "lose", "full", "room"]), max_size=40),
)
def test_whatever_the_connection_does_each_event_comes_once_in_order_without_a_gap(
    places: list[int], steps: list[str]
) -> None:
    here = Conversation()
    readers = [Reader(place) for place in places]
    for each in readers:
        here.follow(each)
    asked: list[tuple[str, int]] = []
    cursor = None  # where the server is, once it has answered
    for step in ["attach", "answer", *steps]:
        if step == "attach":
            request, frame = here.attach("job_1", bool)
            asked.append((request, msgspec.json.decode(frame)["after_seq"]))
        elif step == "answer" and asked:
            request, cursor = asked.pop(0)
            answer = {"type": "response", "id": request, "seq": 1, "status": "success", "data": {}}
            here.receive(json.dumps(answer))
        elif step == "event" and cursor is not None:
            cursor += 1
            here.receive(event(cursor))
        elif step == "skip" and cursor is not None:  # as no server should
            cursor += 1
        elif step == "lose":
            here.lose(GramiError("lost"))
            asked, cursor = [], None
        elif step in {"full", "room"}:
            readers[0].room = len(readers[0].seen) if step == "full" else math.inf
        for place, each in zip(places, readers, strict=True):
            assert each.seen == list(range(place + 1, place + 1 + len(each.seen)))
            assert each.seq == place + len(each.seen)
    readers[0].room = math.inf
    request, frame = here.attach("job_1", bool)
    here.receive(json.dumps({"type": "response", "id": request, "seq": 1, "status": "success", "data": {}}))
    for seq in range(msgspec.json.decode(frame)["after_seq"] + 1, 70):
        here.receive(event(seq))
    assert {each.seq for each in readers} == {69}


def test_on_a_new_connection_nothing_counts_before_the_answer_to_its_own_attach() -> None:
    here, reader = Conversation(), Reader(0)
    here.follow(reader)
    request, _ = here.attach("job_1", bool)
    here.receive(event(1))
    assert reader.seen == []
    here.receive(json.dumps({"type": "response", "id": request, "seq": 1, "status": "success", "data": {}}))
    here.receive(event(1))
    here.lose(GramiError("lost"))
    here.receive(event(3))
    assert (reader.seen, reader.behind) == ([1], False)


def test_one_who_follows_is_told_when_there_will_be_no_more() -> None:
    here, reader = Conversation(), Reader(0)
    here.follow(reader)
    here.receive('{"type":"job.detached","job_id":"job_1","error_code":"JOB_NOT_FOUND","message":"gone"}')
    assert [(type(each), each.error_code) for each in reader.errors] == [(JobError, "JOB_NOT_FOUND")]
    here.end(GramiError("closed"))
    assert len(reader.errors) == 2
    assert here.unfollow(reader)
    assert here.followed == ()
