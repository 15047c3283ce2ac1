"""What a connection owes its client, from the side of whoever answers; any sequence of it is in test_protocol."""

from __future__ import annotations

import itertools
import json
import math
from collections import deque
from datetime import datetime, tzinfo
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grami_actors.answers import Answers
from grami_actors.encoding import JSON, MSGPACK, Encoding
from grami_actors.errors import RETRYABLE, ErrorCode, GramiError
from grami_actors.frames import Header

BOTH = pytest.mark.parametrize("kind", [JSON, MSGPACK], ids=str)


def opened(answers: Answers, request_id: Any = msgspec.UNSET, *, stream: bool = True, now: float = 0.0) -> int:
    return answers._open(Header("work", request_id, stream=stream), now).key


def told(answers: Answers) -> list[dict[str, Any]]:
    return [answers._encoding.decode(frame) for frame in answers.data_to_send()]


@BOTH
@given(order=st.permutations(range(6)))
def test_plain_answers_go_out_in_request_order_and_as_early_as_that_allows(kind: Encoding, order: list[int]) -> None:
    answers = Answers(kind, 0.0)
    keys = [opened(answers) for _ in order]
    ready: set[int] = set()
    sent: list[int] = []
    for number in order:
        answers.finish(keys[number], number, None, 0.0)
        ready.add(number)
        sent += [frame["data"] for frame in told(answers)]
        assert sent == list(itertools.takewhile(ready.__contains__, range(6)))
    assert answers.held_bytes == 0


@given(st.lists(st.sampled_from("fcpn"), max_size=20), st.booleans())
def test_the_sequence_has_no_gap_and_one_terminal_frame_with_the_dropped_chunks(steps: list[str], room: bool) -> None:
    answers = Answers(JSON, 0.0)
    key = opened(answers, "a")
    dropped = 0
    ended = False
    for step in steps:
        if step == "f":
            assert (answers.finish(key, 1, None, 0.0) is None) is ended
            ended = True
        elif step == "c":
            answers.chunk(key, 1, room=room)
            dropped += not room and not ended
        elif step == "p":
            answers.progress(key, 0.5, "", room=room)
        else:
            answers.started(key, "writer")
    answers.finish(key, 1, None, 0.0)
    frames = told(answers)
    assert [frame["seq"] for frame in frames] == list(range(1, len(frames) + 1))
    assert [frame["type"] == "response" for frame in frames] == [False] * (len(frames) - 1) + [True]
    assert frames[-1].get("chunks_dropped", 0) == dropped
    assert sum(frame["type"] == "response.started" for frame in frames) <= 1


@pytest.mark.parametrize("fields", [{"stream": False, "request_id": "a"}, {"stream": True}])
def test_what_asked_for_no_stream_gets_one_frame(fields: dict[str, Any]) -> None:
    answers = Answers(JSON, 0.0)
    key = opened(answers, **fields)
    answers.started(key, "writer")
    answers.chunk(key, "a")
    answers.chunk(key, "a", room=False)
    answers.drop(key, 3)
    answers.progress(key, 0.5, "half")
    answers.relieve()
    answers.finish(key, 1, None, 0.0)
    (frame,) = told(answers)
    assert (frame["status"], frame["data"], "chunks_dropped" in frame) == ("success", 1, False)


def test_progress_that_waited_for_room_is_told_once_by_its_last_words() -> None:
    answers = Answers(JSON, 0.0)
    key = opened(answers, "a")
    answers.progress(key, 0.5, "half", room=False)
    answers.progress(key, 0.25, "less", room=False)
    assert told(answers) == []
    answers.relieve()
    answers.relieve()
    assert told(answers) == [{"type": "response.progress", "id": "a", "seq": 1, "progress": 0.5, "message": "less"}]


def test_progress_that_waited_goes_before_the_chunk_that_found_room() -> None:
    answers = Answers(JSON, 0.0)
    key = opened(answers, "a")
    answers.progress(key, 0.5, "half", room=False)
    answers.chunk(key, "x")
    assert [frame["type"] for frame in told(answers)] == ["response.progress", "response.chunk"]


@pytest.mark.parametrize("fraction", [math.inf, -math.inf, math.nan])
def test_a_progress_that_is_no_number_changes_nothing_but_the_words(fraction: float) -> None:
    answers = Answers(JSON, 0.0)
    key = opened(answers, "a")
    answers.progress(key, 0.25, "")
    answers.progress(key, fraction, "words")
    assert [(frame["progress"], frame["message"]) for frame in told(answers)] == [(0.25, ""), (0.25, "words")]


def test_chunks_that_were_dropped_before_they_came_here_are_added_up() -> None:
    answers = Answers(JSON, 0.0)
    key = opened(answers, "a")
    answers.drop(key, 2)
    answers.drop(key, 3)
    answers.finish(key, 1, None, 0.0)
    assert told(answers)[0]["chunks_dropped"] == 5


@pytest.mark.parametrize("code", list(ErrorCode))
def test_the_two_modes_tell_the_same_error(code: ErrorCode) -> None:
    answers = Answers(JSON, 0.0)
    for request_id in (msgspec.UNSET, "a"):
        error = GramiError("words", code=code, param="$.n", retry_after_ms=0)
        answers.finish(opened(answers, request_id, now=1.0), None, error, 1.25, replayed=True)
    plain, envelope = told(answers)
    assert plain == {"status": "error", "error_code": code, "message": "words"}
    assert envelope == plain | {
        "type": "response",
        "id": "a",
        "seq": 1,
        "retryable": code in RETRYABLE,
        "duration_ms": 250,
        "retry_after_ms": 0,
        "param": "$.n",
        "replayed": True,
    }


def test_what_there_is_nothing_to_say_of_is_left_out() -> None:
    answers = Answers(JSON, 0.0)
    answers.finish(opened(answers, "a"), None, GramiError("no", code="CANCELLED"), 0.0)
    answers.finish(opened(answers, "a"), None, None, 0.0)
    answers.finish(opened(answers, "a"), 1, None, 0.0, replayed=True)
    failed, done, replayed = told(answers)
    assert not {"retry_after_ms", "param", "replayed"} & set(failed)
    assert done == {"type": "response", "id": "a", "seq": 1, "status": "success", "data": None, "duration_ms": 0}
    assert replayed == done | {"data": 1, "replayed": True}


@pytest.mark.parametrize(("later", "told_ms"), [(-3.0, 0), (0.0, 0), (0.0004, 0), (0.0006, 1), (2.5, 2500)])
def test_the_duration_is_in_milliseconds_and_never_negative(later: float, told_ms: int) -> None:
    answers = Answers(JSON, 7.0)
    answers.finish(opened(answers, "a", now=7.0), 1, None, 7.0 + later)
    assert told(answers)[0]["duration_ms"] == told_ms


class Speechless(Exception):
    def __str__(self) -> str:
        raise KeyError("no words")


class Nowhere(tzinfo):
    def utcoffset(self, dt: Any) -> Any:
        raise Speechless


@BOTH
@pytest.mark.parametrize("request_id", [msgspec.UNSET, "a"])
def test_an_answer_that_fails_without_words_while_it_is_encoded_is_still_answered(
    kind: Encoding, request_id: Any
) -> None:
    answers = Answers(kind, 0.0)
    answers.finish(opened(answers, request_id), datetime(2026, 1, 1, tzinfo=Nowhere()), None, 0.0)
    (frame,) = told(answers)
    assert frame["error_code"] == "AGENT_EXECUTION_FAILED"
    assert "Speechless" in frame["message"]
    assert answers.inflight == ()


@pytest.mark.parametrize("request_id", [msgspec.UNSET, "a"])
def test_an_error_with_a_path_that_is_no_text_keeps_its_code_and_when_to_come_back(request_id: Any) -> None:
    answers = Answers(JSON, 0.0)
    error = GramiError("busy \ud800", code="RATE_LIMITED", param="\ud800", retry_after_ms=7)
    answers.finish(opened(answers, request_id), None, error, 0.0)
    (frame,) = told(answers)
    assert (frame["error_code"], frame["message"]) == ("RATE_LIMITED", "busy ?")
    assert frame.get("retry_after_ms") == (None if request_id is msgspec.UNSET else 7)


def test_a_terminal_frame_frees_its_id_and_a_late_one_does_not_hit_the_next_request() -> None:
    answers = Answers(JSON, 0.0)
    first = opened(answers, "a")
    answers.finish(first, 1, None, 0.0)
    second = opened(answers, "a")
    assert second != first
    answers.chunk(first, "late")
    assert answers.finish(first, "late", None, 0.0) is None
    assert answers.inflight == (second,)
    slot = answers.finish(second, 2, None, 0.0)
    assert slot is not None
    assert (slot.message_type, [frame["data"] for frame in told(answers)]) == ("work", [1, 2])


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=8).map(bytes.hex)), max_size=12))
def test_bytes_of_plain_refusals_are_held_exactly_while_an_earlier_answer_is_missing(
    requests: list[tuple[bool, str]],
) -> None:
    answers = Answers(JSON, 0.0)
    slow = opened(answers)
    waiting: deque[int] = deque()
    for plain, data in requests:
        if not plain:
            answers.finish(opened(answers, "a"), data, None, 0.0)
            answers.finish(opened(answers), data, None, 0.0)
        else:
            answers._answer_at_once(msgspec.UNSET, data, None, 0.0)
            waiting.append(len(json.dumps({"data": data, "status": "success"}, separators=(",", ":"))))
        assert answers.held_bytes == sum(waiting)
    answers.finish(slow, None, None, 0.0)
    assert answers.held_bytes == 0
