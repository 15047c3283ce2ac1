"""A client and a server without a socket between them: requests end once, events come once and in order, or a gap."""

from __future__ import annotations

import json
from collections import deque
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from grami_actors.catalog import Catalog
from grami_actors.conversation import HELLO, Conversation, Frame, Hearing
from grami_actors.credentials import Authority
from grami_actors.encoding import ENCODINGS, JSON, MSGPACK, Encoding
from grami_actors.errors import ConnectionLost, GramiError, MailboxFull, ProtocolError
from grami_actors.frames import Event, Limits, Position
from grami_actors.messages import Message
from grami_actors.permissions import Permissions
from grami_actors.policy import Policy
from grami_actors.protocol import Accepted, CancelRequest, Control, ServerProtocol, Setting
from grami_actors.topics import Topics

PATTERNS = ["a.*", "*.x", "a.x", ">", "b.y"]
TOPICS = ["a.x", "a.y", "b.x", "b.y"]
KEPT = 4
"""Events that the server of these tests keeps."""


class Work(Message, tag="work"):
    n: int


SETTING = Setting(Catalog({"work": Work}, lambda _: {}), Limits(), {}, Policy(Authority(), Permissions()))


@cache
def matches(pattern: str, topic: str) -> bool:
    topics: Topics[None] = Topics()
    topics.subscribe(pattern, None)
    return bool(topics.match(topic))


class Reader:
    """Whoever reads one subscription, and what it must come to hear."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.heard: list[int | str] = []
        self.failures: list[GramiError] = []

    def take(self, frame: Frame | GramiError) -> None:
        if isinstance(frame, GramiError):
            self.failures.append(frame)
        else:
            self.heard.append("gap" if frame.type == "gap" else frame.data)


class Link(RuleBasedStateMachine):
    """Frames travel one by one in both directions, until the connection is lost with all that was on its way."""

    @initialize(encoding=st.sampled_from(sorted(ENCODINGS)))
    def begin(self, encoding: str) -> None:
        self.encoding: Encoding = ENCODINGS[encoding]
        self.conversation = Conversation(self.encoding)
        self.answers: dict[str, list[Frame | GramiError]] = {}
        self.expected: dict[str, int] = {}
        self.readers: dict[Hearing, Reader] = {}
        self.starts: dict[Hearing, int] = {}
        self.epoch = 1
        self.history: list[tuple[int, str]] = []  # all that was published in this epoch
        self.lost_epochs = 0
        self.number = 0
        self.connected = False
        self.connect()

    def connect(self) -> None:
        self.connected = True
        self.server = ServerProtocol("c", SETTING, 0.0, self.encoding)
        self.up: deque[bytes] = deque()
        self.down: deque[bytes] = deque()
        self.work: dict[int, int] = {}
        self.up.append(self.conversation.hello({}, "", lambda _: self.conversation.forget(HELLO)))
        for hearing in self.conversation.hearings:
            self.subscribe(hearing)

    def subscribe(self, hearing: Hearing) -> None:
        request_id, frame = self.conversation.subscribe(hearing, lambda _: self.conversation.forget(request_id))
        self.up.append(frame)

    # --- the client ---

    @precondition(lambda self: self.connected)
    @rule()
    def request(self) -> None:
        self.number += 1
        got: list[Frame | GramiError] = []

        def take(frame: Frame | GramiError) -> None:
            got.append(frame)
            if isinstance(frame, GramiError) or not frame.type.startswith("response."):
                self.conversation.forget(request_id)

        request_id, frame = self.conversation.ask({"type": "work", "n": self.number, "stream": True}, take)
        self.answers[request_id] = got
        self.expected[request_id] = self.number
        self.up.append(frame)

    @precondition(lambda self: self.connected)
    @rule(pattern=st.sampled_from(PATTERNS), back=st.integers(0, 6))
    def hear(self, pattern: str, back: int) -> None:
        """A new subscription, from now on or from an event that was seen some time ago."""
        reader = Reader(pattern)
        seen = len(self.history) - back
        position = Position(f"e{self.epoch}", seen) if back and seen >= 0 else None
        hearing = Hearing(pattern, reader.take, position)
        self.readers[hearing] = reader
        if position is not None:
            self.starts[hearing] = seen
        self.conversation.hear(hearing)
        self.subscribe(hearing)

    @precondition(lambda self: self.connected and self.readers)
    @rule(which=st.integers(0, 9))
    def leave(self, which: int) -> None:
        hearing = list(self.readers)[which % len(self.readers)]
        del self.readers[hearing]
        self.conversation.stop_hearing(hearing)
        if not self.conversation.hears(hearing.topic):
            self.up.append(self.conversation.ask({"type": "unsubscribe", "topic": hearing.topic}, lambda _: None)[1])

    @precondition(lambda self: self.connected and self.answers)
    @rule(which=st.integers(0, 9))
    def cancel(self, which: int) -> None:
        self.up.append(self.conversation.cancel(list(self.answers)[which % len(self.answers)]))

    # --- the way between them ---

    @precondition(lambda self: self.connected and self.up)
    @rule()
    def to_the_server(self) -> None:
        frame: Any = self.up.popleft()
        action = self.server.receive(frame.decode() if self.encoding.text else frame, 0.0)
        if isinstance(action, Accepted):
            self.work[action.key] = action.message.n
        elif isinstance(action, CancelRequest):
            del self.work[action.key]
            self.server.finish(action.key, None, GramiError("no", code="CANCELLED"), 0.0)
        elif isinstance(action, Control):
            self.control(action)
        self.send()

    def control(self, action: Control) -> None:
        if action.kind == "unsubscribe":
            self.server.subscriptions.discard(action.fields.topic)
            self.server.finish(action.key, {}, None, 0.0)
            return
        self.server.subscriptions.add(action.fields.topic)
        last, recover = len(self.history), action.fields.recover
        answer: dict[str, Any] = {"topic": action.fields.topic, "epoch": f"e{self.epoch}", "offset": last}
        missed: list[int] = []
        if recover is not None:
            known = recover.epoch == f"e{self.epoch}" and recover.offset >= last - KEPT
            answer["recovered"] = known
            missed = list(range(recover.offset + 1, last + 1)) if known else []
        self.server.finish(action.key, answer, None, 0.0)
        for offset in missed:
            if matches(action.fields.topic, self.history[offset - 1][1]):
                self.server.push(self.event(offset))

    def event(self, offset: int) -> bytes:
        number, topic = self.history[offset - 1]
        return self.encoding.encode(Event(topic, f"e{self.epoch}", offset, number))

    def send(self) -> None:
        self.down.extend(self.server.data_to_send())

    @precondition(lambda self: self.connected and self.down)
    @rule()
    def to_the_client(self) -> None:
        self.conversation.receive(self.down.popleft())

    @precondition(lambda self: self.connected)
    @rule()
    def all_arrives(self) -> None:
        while self.up or self.down:
            if self.up:
                self.to_the_server()
            else:
                self.to_the_client()

    @precondition(lambda self: self.connected)
    @rule()
    def drop(self) -> None:
        self.connected = False
        self.conversation.lose(ConnectionLost("gone"))

    @precondition(lambda self: not self.connected)
    @rule(restarted=st.integers(0, 3))
    def come_back(self, restarted: int) -> None:
        if restarted == 0:
            self.epoch += 1
            self.history = []
            self.starts = {}
            self.lost_epochs += 1
        self.connect()

    # --- the server ---

    @rule(topic=st.sampled_from(TOPICS))
    def publish(self, topic: str) -> None:
        self.number += 1
        self.history.append((self.number, topic))
        if self.connected and any(matches(pattern, topic) for pattern in self.server.subscriptions):
            self.server.push(self.event(len(self.history)))
            self.send()

    @precondition(lambda self: self.connected and self.work)
    @rule(which=st.integers(0, 9), fails=st.booleans())
    def finish(self, which: int, fails: bool) -> None:
        key = list(self.work)[which % len(self.work)]
        number = self.work.pop(key)
        self.server.chunk(key, number)
        self.server.finish(key, number, GramiError("no") if fails else None, 0.0)
        self.send()

    # --- always ---

    @invariant()
    def a_request_ends_once_and_with_its_own_answer(self) -> None:
        for request_id, got in self.answers.items():
            ends = [each for each in got if isinstance(each, GramiError) or each.type == "response"]
            assert len(ends) <= 1
            assert not ends or got[-1] is ends[0]
            assert all(isinstance(each, GramiError) or each.data == self.expected[request_id] for each in got)
            assert ends or self.connected

    @invariant()
    def events_come_once_in_order_and_only_to_whom_they_are_for(self) -> None:
        topics = dict(self.history)
        for reader in self.readers.values():
            numbers = [each for each in reader.heard if isinstance(each, int)]
            assert numbers == sorted(set(numbers))
            assert all(matches(reader.pattern, topics[each]) for each in numbers if each in topics)
            assert reader.failures == []

    @invariant()
    def nothing_is_missing_without_a_gap(self) -> None:
        """Behind the last gap: all that matches, between what came first (or where it began) and what came last."""
        for hearing, reader in self.readers.items():
            behind: list[int] = []
            for each in reader.heard:
                behind = [] if each == "gap" else [*behind, int(each)]
            if not behind:
                continue
            begin = behind[0]
            if hearing in self.starts and "gap" not in reader.heard:
                begin = min([begin, *(number for number, _ in self.history[self.starts[hearing] :])])
            due = [number for number, topic in self.history if matches(reader.pattern, topic)]
            assert [each for each in behind if each >= begin and each in dict(self.history)] == [
                number for number in due if begin <= number <= behind[-1]
            ]

    def teardown(self) -> None:
        if not hasattr(self, "conversation"):
            return
        if self.connected:
            self.all_arrives()
            # Nobody is behind: what was published is heard to its end.
            for hearing, reader in self.readers.items():
                assert hearing.live
                assert hearing.position is not None
                unheard = self.history[hearing.position.offset :]
                assert not any(matches(reader.pattern, topic) for _, topic in unheard)
            self.drop()
        self.a_request_ends_once_and_with_its_own_answer()
        assert all(map(len, self.answers.values()))
        assert not any(hearing.live for hearing in self.readers)


Link.TestCase.settings = settings(
    max_examples=120, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestLink = Link.TestCase


# --- one by one ---


def hearing(of: Conversation, topic: str, position: Position | None = None) -> tuple[Hearing, Reader, str]:
    """A subscription whose request is on its way."""
    reader = Reader(topic)
    made = Hearing(topic, reader.take, position)
    of.hear(made)
    return made, reader, of.subscribe(made, lambda _: None)[0]


def comes(to: Conversation, **fields: Any) -> None:
    to.receive(json.dumps(fields))


def subscribed(to: Conversation, request_id: str, offset: int, **fields: Any) -> None:
    data = {"epoch": "e", "offset": offset, **fields}
    comes(to, type="response", id=request_id, seq=1, status="success", data=data)


def event(to: Conversation, topic: str, offset: int, epoch: str = "e") -> None:
    comes(to, type="event", topic=topic, epoch=epoch, offset=offset, data=offset)


def test_what_another_subscription_hears_does_not_hide_what_was_missed() -> None:
    client = Conversation()
    _, first, one = hearing(client, "a.*", Position("e", 5))
    _, second, two = hearing(client, "*.x", Position("e", 5))
    subscribed(client, one, 7, recovered=True)
    event(client, "a.x", 7)
    subscribed(client, two, 7, recovered=True)
    event(client, "b.x", 6)
    event(client, "a.x", 7)
    assert (first.heard, second.heard) == ([7], [6, 7])


def test_an_event_behind_the_answer_is_not_forgotten_by_whoever_comes_back() -> None:
    client = Conversation()
    made, reader, request_id = hearing(client, "a")
    subscribed(client, request_id, 3)
    event(client, "a", 4)
    assert (reader.heard, made.position) == ([4], Position("e", 4))
    again = JSON.decode(client.subscribe(made, lambda _: None)[1])
    assert again == {"type": "subscribe", "topic": "a", "recover": {"epoch": "e", "offset": 4}, "id": again["id"]}


def test_a_gap_stands_before_what_comes_behind_it() -> None:
    client = Conversation()
    made, reader, request_id = hearing(client, "a", Position("e", 1))
    event(client, "a", 8)
    subscribed(client, request_id, 9, recovered=False)
    event(client, "a", 9)
    event(client, "a", 10)
    assert (reader.heard, made.position) == (["gap", 10], Position("e", 10))


def test_a_server_that_began_anew_is_heard_from_its_first_event() -> None:
    client = Conversation()
    made, reader, request_id = hearing(client, "a", Position("old", 50))
    subscribed(client, request_id, 0, recovered=False)
    event(client, "a", 1)
    event(client, "a", 1, epoch="newer")
    assert (reader.heard, made.position) == (["gap", 1, 1], Position("newer", 1))


def test_a_subscription_that_is_refused_hears_nothing() -> None:
    client = Conversation()
    reader, got = Reader("a"), []
    made = Hearing("a", reader.take, None)
    client.hear(made)
    request_id = client.subscribe(made, got.append)[0]
    comes(client, type="response", id=request_id, status="error", error_code="PERMISSION_DENIED", message="no")
    event(client, "a", 1)
    assert (reader.heard, [type(each) for each in got]) == ([], [type(got[0])])
    assert isinstance(got[0], GramiError)


def test_a_pattern_that_is_none_is_refused_and_not_asked_for_again() -> None:
    client = Conversation()
    with pytest.raises(ProtocolError, match="no pattern"):
        client.hear(Hearing("a..b", lambda _: None, None))
    assert client.hearings == ()


def test_whoever_left_hears_nothing_more() -> None:
    client = Conversation()
    made, reader, request_id = hearing(client, "a")
    subscribed(client, request_id, 0)
    client.stop_hearing(made)
    event(client, "a", 1)
    assert reader.heard == []


def test_a_subscription_that_is_made_again_waits_for_its_answer() -> None:
    client = Conversation()
    made, reader, request_id = hearing(client, "a")
    subscribed(client, request_id, 0)
    again = client.subscribe(made, lambda _: None)[0]
    event(client, "a", 5)
    subscribed(client, again, 5, recovered=True)
    event(client, "a", 4)
    event(client, "a", 5)
    assert reader.heard == [4, 5]


@pytest.mark.parametrize("topic", ["", "a..b", "a b", "a.*", ">"])
def test_an_event_of_no_topic_is_passed_over(topic: str) -> None:
    client = Conversation()
    _, reader, request_id = hearing(client, ">")
    subscribed(client, request_id, 0)
    event(client, topic, 1)
    assert reader.heard == []


def test_a_topic_is_heard_until_the_last_who_does_leaves() -> None:
    client = Conversation()
    first, second = (hearing(client, "a")[0] for _ in range(2))
    client.stop_hearing(first)
    assert client.hears("a")
    client.stop_hearing(second)
    assert not client.hears("a")


def test_the_end_is_told_once_to_each_who_waits_and_to_each_who_hears() -> None:
    client = Conversation()
    _, reader, _ = hearing(client, "a")
    got: list[Any] = []
    client.ask({"type": "work"}, got.append)
    gone = MailboxFull("gone")
    client.lose(gone)
    assert (got, reader.failures) == ([gone], [])
    client.end(gone)
    assert (got, reader.failures) == ([gone], [gone])


def test_a_message_larger_than_the_server_takes_is_not_sent() -> None:
    client = Conversation()
    comes(client, type="welcome", id=HELLO, limits={"max_message_bytes": 40})
    assert len(client.ask({"type": "work", "n": 1}, lambda _: None)[1]) <= 40
    with pytest.raises(ProtocolError, match="the server takes 40") as caught:
        client.ask({"type": "work", "n": "x" * 40}, pytest.fail)
    assert caught.value.error_code == "MESSAGE_TOO_LARGE"
    client.lose(GramiError("nobody waits for what was not sent"))


def test_a_hello_has_a_token_only_if_there_is_one_and_begins_anew() -> None:
    client = Conversation()
    comes(client, type="goaway", reason="restart", reconnect_after_ms={"min": 0, "max": 5})
    assert client.goaway is not None
    hello = {"type": "hello", "protocol": 1, "client": {"name": "x"}, "id": "hello"}
    assert JSON.decode(client.hello({"name": "x"}, "", lambda _: None)) == hello
    assert client.goaway is None
    assert JSON.decode(client.hello({"name": "x"}, "t", lambda _: None)) == hello | {"token": "t"}


def test_an_answer_goes_to_its_request_and_late_ones_to_nobody() -> None:
    client = Conversation()
    got: dict[str, list[Any]] = {}
    for _ in range(2):
        inbox: list[Any] = []
        got[client.ask({"type": "work"}, inbox.append)[0]] = inbox
    one, two = got
    comes(client, type="response", id=two, data="b", status="success")
    comes(client, type="response", id=one, status="error", error_code="TOOL_TIMEOUT", message="m", param="$.n")
    client.forget(one)
    comes(client, type="response", id=one, data="late", status="success")
    assert [frame.data for frame in got[two]] == ["b"]
    (error,) = got[one]
    assert (type(error).__name__, error.error_code, error.message, error.param) == (
        "ToolTimeout",
        "TOOL_TIMEOUT",
        "m",
        "$.n",
    )


frames = st.dictionaries(
    st.sampled_from(Frame.__struct_encode_fields__),
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=3) | st.just({"min": 0, "max": 1}),
)


@settings(max_examples=200)
@given(
    st.text(st.characters(exclude_categories=[]), max_size=30) | frames.map(json.dumps), st.binary(max_size=30), frames
)
def test_what_a_server_says_never_raises(text: str, data: bytes, fields: dict[str, Any]) -> None:
    for client, frame in (
        (Conversation(), text),
        (Conversation(MSGPACK), data),
        (Conversation(MSGPACK), MSGPACK.encode(fields)),
    ):
        made, _, request_id = hearing(client, ">")
        made.live = True
        client.receive(frame)
        client.receive(client.encoding.encode({**fields, "id": request_id}))
        client.receive(client.encoding.encode({**fields, "type": "event"}))
