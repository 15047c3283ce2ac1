"""Who a connection is, what it may do and how long, on a clock that the test moves: a model beside the protocol."""

from __future__ import annotations

import atexit
import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from grami_actors.api_keys import KeyStore
from grami_actors.catalog import Catalog
from grami_actors.credentials import Authority
from grami_actors.encoding import ENCODINGS, JSON, Encoding
from grami_actors.frames import Limits
from grami_actors.messages import Message
from grami_actors.permissions import Permissions, Rule
from grami_actors.policy import Policy, Rate
from grami_actors.protocol import Accepted, Authenticated, Control, ServerProtocol, Setting
from grami_actors.trace_context import Trace

EPOCH = 2_000_000_000.0
ENDS = 50
"""Seconds after which the token ``brief`` expires."""

LIMITS = Limits(
    max_message_bytes=400,
    max_unauthenticated_bytes=200,
    max_nesting=5,
    max_inflight=3,
    max_subscriptions=2,
    auth_timeout=10.0,
    token_grace=5.0,
    idle_timeout=20.0,
)
RULES = (
    Rule(principals=("alice",), scopes=("wide",), send=("work",), subscribe=(">",), publish=("a.>",)),
    Rule(principals=("alice", "anonymous"), send=("work",), subscribe=("a.*",)),
    Rule(principals=("bob",), subscribe=("b",)),
)
MAY_SEND = {"alice", "anonymous", "operator"}
SCOPES = {"wide": {"wide"}, "brief": {"wide"}, "admin": {"admin"}}
OWNERS = {"wide": "alice", "narrow": "alice", "brief": "alice", "admin": "alice", "bob": "bob", "operator": "operator"}
TOPICS = ["a.b", "a.*", "a.>", "b", ">"]
SPARE = frozenset({"SHUTTING_DOWN", "TOO_MANY_INFLIGHT", "RATE_LIMITED", "RESOURCE_EXHAUSTED", "TOKEN_EXPIRED"})


class Played(ServerProtocol):
    """With the part of its owner: a subscription counts from the moment that it is made."""

    def receive(self, frame: Any, now: float) -> Any:
        action = super().receive(frame, now)
        if isinstance(action, Control) and action.kind == "subscribe":
            self.subscriptions.add(action.fields.topic)
        elif isinstance(action, Control) and action.kind == "unsubscribe":
            self.subscriptions.discard(action.fields.topic)
        return action


class Work(Message, tag="work"):
    pad: Any = ""


def keys(folder: Path) -> tuple[KeyStore, dict[str, str]]:
    store = KeyStore(folder / "keys.json")
    tokens = {}
    for name in OWNERS.keys() - {"operator"}:
        ends = EPOCH + ENDS if name == "brief" else None
        tokens[name] = store.create(OWNERS[name], sorted(SCOPES.get(name, ())), now=EPOCH, expires_at=ends)[1]
    return store, tokens


FOLDER = tempfile.mkdtemp()
atexit.register(shutil.rmtree, FOLDER)
STORE, TOKENS = keys(Path(FOLDER))
AUTHORITY = Authority(STORE, clock=lambda: EPOCH)


class Session(RuleBasedStateMachine):
    """One client that authenticates, asks and waits; ``expect`` checks that each frame has the one answer it must."""

    @initialize(required=st.booleans(), encoding=st.sampled_from(sorted(ENCODINGS)), rated=st.booleans())
    def connect(self, required: bool, encoding: str, rated: bool) -> None:
        self.now = 0.0
        self.authority = Authority(STORE if required else None, clock=lambda: EPOCH + self.now)
        rates = (Rate(1, 3, types=("work",)),) if rated else ()
        policy = Policy(self.authority, Permissions(RULES), rates, wall=lambda: EPOCH + self.now)
        self.encoding: Encoding = ENCODINGS[encoding]
        catalog = Catalog({"work": Work}, lambda _: {})
        self.protocol = Played("c", Setting(catalog, LIMITS, {"name": "x"}, policy), 0.0, self.encoding)
        self.required = required
        self.who: str | None = None if required else "anonymous"
        self.scopes: set[str] = set()
        self.ends = math.inf
        self.heard: set[str] = set()
        self.inflight: list[int] = []
        self.quiet_since = 0.0
        self.draining = self.introduced = False
        self.closed: int | None = None
        self.rated = rated
        self.tokens: dict[str, tuple[float, float]] = {}
        self.number = 0

    # --- one frame, one answer ---

    def ask(self, **fields: Any) -> Any:
        self.number += 1
        self.quiet_since = self.now
        fields["id"] = self.number
        frame = json.dumps(fields) if self.encoding.text else self.encoding.encode(fields)
        return self.protocol.receive(frame, self.now)

    def frames(self) -> list[dict[str, Any]]:
        return [self.encoding.decode(frame) for frame in self.protocol.data_to_send()]

    def expect(self, action: Any, code: str) -> Any:
        """The frame was refused with this code, or accepted if it is empty."""
        answers = self.frames()
        if not code:
            assert not [each for each in answers if each.get("error_code")]
            return action
        assert action is None
        (answer,) = answers
        assert (answer["id"], answer["error_code"], answer["seq"]) == (self.number, code, 1)
        return None

    def barred(self) -> str:
        """Why nothing but authentication is answered; empty if it is."""
        if self.who is None:
            return "UNAUTHENTICATED"
        return "TOKEN_EXPIRED" if self.now >= self.ends else ""

    def crowded(self) -> str:
        if len(self.inflight) >= LIMITS.max_inflight:
            return "TOO_MANY_INFLIGHT"
        return "SHUTTING_DOWN" if self.draining else ""

    def begun(self, action: Any, kind: type, code: str) -> Any:
        if self.expect(action, code) is not None:
            assert isinstance(action, kind)
            self.inflight.append(action.key)
        return action

    # --- who it is ---

    @precondition(lambda self: self.closed is None)
    @rule(name=st.sampled_from([*OWNERS, "bad", "", "none"]), hello=st.booleans())
    def authenticate(self, name: str, hello: bool) -> None:
        token = {"operator": self.authority.operator_token, "bad": "grami_x_y"}.get(name) or TOKENS.get(name, "")
        given = {} if name == "none" else {"token": token}
        action = self.ask(type="hello" if hello else "auth", **given)
        if name == "none":
            assert action is None
            self.expect(None, self.barred() if hello else "VALIDATION_FAILED")
            self.introduced |= hello and not self.barred()
            return
        code = self.refusal(name)
        if code:
            self.expect(action, code)
            if self.who is None:
                self.closed = 4401
            return
        self.admitted(name, action)
        (answer,) = self.frames()
        if hello:
            assert (answer["type"], answer["principal"], answer["connection_id"]) == ("welcome", self.who, "c")
            assert answer["limits"]["max_message_bytes"] == 400
            self.introduced = True
        else:
            left = None if self.ends == math.inf else round((self.ends - self.now) * 1000)
            assert answer["data"] == {"principal": self.who, "expires_in_ms": left}

    def refusal(self, name: str) -> str:
        if name not in OWNERS or (not self.required and name != "operator"):
            return "INVALID_TOKEN"
        if name == "brief" and self.now >= ENDS:
            return "TOKEN_EXPIRED"
        other = self.who not in {None, "anonymous", OWNERS[name]}
        return "PERMISSION_DENIED" if other else ""

    def admitted(self, name: str, action: Any) -> None:
        self.who = OWNERS[name]
        self.scopes = SCOPES.get(name, {"*"} if name == "operator" else set())
        self.ends = ENDS if name == "brief" else math.inf
        lost = {topic for topic in self.heard if not self.may_hear(topic)}
        self.heard -= lost
        assert isinstance(action, Authenticated)
        assert (action.principal.name, action.principal.scopes) == (self.who, self.scopes)
        assert sorted(action.lost) == sorted(lost)

    def may_hear(self, topic: str) -> bool:
        if self.who == "operator":
            return True
        if self.who == "bob":
            return topic == "b"
        return "wide" in self.scopes or topic in {"a.b", "a.*"}

    # --- what it does ---

    @precondition(lambda self: self.closed is None)
    @rule(size=st.sampled_from([0, 0, 0, 60, 300, 900]), wide=st.booleans())
    def work(self, size: int, wide: bool) -> None:
        pad = ("ä" if wide else "x") * size
        fields = {"type": "work", "pad": pad, "id": self.number + 1}
        text = json.dumps(fields, ensure_ascii=False) if self.encoding.text else self.encoding.encode(fields)
        length = len(text.encode() if isinstance(text, str) else text)
        self.number += 1
        self.quiet_since = self.now
        action = self.protocol.receive(text, self.now)
        if length > (LIMITS.max_message_bytes if self.who else LIMITS.max_unauthenticated_bytes):
            self.expect(action, "MESSAGE_TOO_LARGE")
            return
        self.begun(action, Accepted, self.barred() or self.limited() or self.crowded())

    def limited(self) -> str:
        if self.who not in MAY_SEND:
            return "PERMISSION_DENIED"
        if not self.rated or self.who == "operator":
            return ""
        left, since = self.tokens.get(str(self.who), (3.0, self.now))
        left = min(3.0, left + self.now - since)
        self.tokens[str(self.who)] = (left - 1 if left >= 1 else left, self.now)
        return "" if left >= 1 else "RATE_LIMITED"

    @precondition(lambda self: self.closed is None)
    @rule(depth=st.integers(2, 7))
    def nested(self, depth: int) -> None:
        value: Any = "x"
        for _ in range(depth - 1):
            value = [value]
        action = self.ask(type="work", pad=value)
        if depth > LIMITS.max_nesting:
            self.expect(action, "INVALID_JSON")
        else:
            self.begun(action, Accepted, self.barred() or self.limited() or self.crowded())

    @precondition(lambda self: self.closed is None)
    @rule(topic=st.sampled_from(TOPICS))
    def subscribe(self, topic: str) -> None:
        action = self.ask(type="subscribe", topic=topic)
        full = len(self.heard) >= LIMITS.max_subscriptions and topic not in self.heard
        denied = "" if self.who is None or self.may_hear(topic) else "PERMISSION_DENIED"
        code = self.barred() or denied or ("RESOURCE_EXHAUSTED" if full else "") or self.crowded()
        if self.begun(action, Control, code) is not None:
            self.heard.add(topic)

    @precondition(lambda self: self.closed is None)
    @rule(topic=st.sampled_from(TOPICS))
    def unsubscribe(self, topic: str) -> None:
        action = self.ask(type="unsubscribe", topic=topic)
        code = self.barred() or ("" if topic in self.heard else "TOPIC_NOT_FOUND") or self.crowded()
        if self.begun(action, Control, code) is not None:
            self.heard.remove(topic)

    @precondition(lambda self: self.closed is None)
    @rule(topic=st.sampled_from(["a.b", "b"]))
    def publish(self, topic: str) -> None:
        action = self.ask(type="publish", topic=topic, data=1)
        may = self.who == "operator" or ("wide" in self.scopes and topic == "a.b")
        self.begun(action, Control, self.barred() or ("" if may else "PERMISSION_DENIED") or self.crowded())

    @precondition(lambda self: self.closed is None)
    @rule(kind=st.sampled_from(["admin.actors", "admin.drain", "describe"]))
    def other_controls(self, kind: str) -> None:
        action = self.ask(type=kind)
        may = kind == "describe" or self.who == "operator" or "admin" in self.scopes
        self.begun(action, Control, self.barred() or ("" if may else "PERMISSION_DENIED") or self.crowded())

    @rule()
    def ping(self) -> None:
        assert self.ask(type="ping") is None
        assert self.frames() == [{"type": "pong", "id": self.number}]

    @rule(which=st.integers(0, 9))
    def finish(self, which: int) -> None:
        if self.inflight:
            key = self.inflight.pop(which % len(self.inflight))
            assert self.protocol.finish(key, 1, None, self.now) is not None
            self.quiet_since = self.now
            assert [frame["status"] for frame in self.frames()] == ["success"]

    # --- the server and the clock ---

    @rule()
    def drain(self) -> None:
        if self.number % 5 == 0:
            self.draining = True
            self.protocol.goaway("restart", 10.0, 5000)
            delay = {"min": 0, "max": 5000}
            goaway = {"type": "goaway", "reason": "restart", "reconnect_after_ms": delay, "close_in_ms": 10_000}
            assert self.frames() == [goaway] * self.introduced

    @rule(step=st.sampled_from([0.5, 1.0, 4.0, 9.5, 15.0, 19.5, 20.0]))
    def wait(self, step: float) -> None:
        self.now += step
        quiet = self.now - self.quiet_since >= 20 and not (self.inflight or self.heard)
        late = self.who is None and self.now >= 10
        code = 4408 if late else 4419 if self.now >= self.ends + 5 else 4513 if quiet else None
        assert self.protocol.overdue(self.now) is (code is not None)
        self.protocol.tick(self.now)
        self.closed = self.closed or code

    # --- always ---

    @invariant()
    def it_is_closed_exactly_when_and_as_the_rules_say(self) -> None:
        assert self.protocol.close_code == self.closed
        assert bool(self.protocol.close_reason) is (self.closed is not None)

    @invariant()
    def it_is_who_it_showed_to_be(self) -> None:
        principal = self.protocol.principal
        assert (None if principal is None else principal.name) == self.who
        assert self.protocol.subscriptions == self.heard
        assert self.protocol.introduced is self.introduced

    @invariant()
    def what_was_refused_for_a_limit_names_it(self) -> None:
        limits = {
            "RATE_LIMITED": "rates",
            "TOO_MANY_INFLIGHT": "max_inflight",
            "RESOURCE_EXHAUSTED": "max_subscriptions",
            "INVALID_JSON": "max_nesting",
            "MESSAGE_TOO_LARGE": "max_message_bytes",
        }
        for refusal in self.protocol.refusals:
            assert refusal.limit.replace("unauthenticated", "message") == limits.get(refusal.code, "")


Session.TestCase.settings = settings(
    max_examples=200, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestSession = Session.TestCase


# --- what a machine says less well ---


def protocol(*, wall: float = 0.0, tokens: dict[str, str] | None = None, **limits: Any) -> ServerProtocol:
    authority = Authority(STORE if tokens else None, clock=lambda: EPOCH + wall)
    policy = Policy(authority, Permissions(), wall=lambda: EPOCH + wall)
    setting = Setting(Catalog({"work": Work}, lambda _: {}), Limits(**limits), {"name": "x"}, policy)
    return Played("c", setting, 0.0)


def answer(to: ServerProtocol, now: float = 0.0, /, **fields: Any) -> dict[str, Any]:
    to.receive(json.dumps(fields), now)
    (frame,) = map(JSON.decode, to.data_to_send())
    assert isinstance(frame, dict)
    return frame


def test_a_handshake_that_brought_a_token_needs_no_other_word() -> None:
    setting = protocol(tokens=TOKENS)._setting
    principal = STORE.authenticate(TOKENS["brief"], EPOCH)
    known = Played("c", setting, 7.0, JSON, principal)
    assert isinstance(known.receive('{"type":"work"}', 7.0), Accepted)
    assert known.receive('{"type":"work","id":1}', 7.0 + ENDS) is None
    assert JSON.decode(known.data_to_send()[0])["error_code"] == "TOKEN_EXPIRED"
    known.tick(7.0 + ENDS + 29.9)
    assert known.close_code is None
    known.tick(7.0 + ENDS + 30)
    assert (known.close_code, known.close_reason) == (4419, "the token expired")


def test_a_plain_client_is_refused_in_plain_words_until_it_authenticates() -> None:
    here = protocol(tokens=TOKENS)
    refused = answer(here, type="work")
    assert set(refused) == {"status", "error_code", "message"}
    assert refused["error_code"] == "UNAUTHENTICATED"
    assert set(answer(here, type="auth", token=TOKENS["wide"])) == {"status", "data"}
    assert isinstance(here.receive('{"type":"work"}', 0.0), Accepted)


def test_no_part_of_a_token_is_told_to_anybody() -> None:
    here = protocol(tokens=TOKENS)
    secret = "grami_0123456789ab_" + "s3cret" * 8
    here.receive(json.dumps({"type": "hello", "token": secret}), 0.0)
    here.receive(json.dumps({"type": "auth", "token": [secret]}), 0.0)
    told = b"".join(here.data_to_send()).decode() + here.close_reason + repr(here.refusals)
    assert "s3cret" not in told
    assert (here.close_code, here.close_reason) == (4401, "INVALID_TOKEN")


def test_the_first_reason_to_close_stays() -> None:
    here = protocol()
    here.close(4403, "first")
    here.close(1012, "second")
    assert (here.close_code, here.close_reason) == (4403, "first")


@pytest.mark.parametrize("fields", [{"type": "subscribe", "topic": "a"}, {"type": "work", "stream": True}])
def test_a_plain_client_gets_nothing_but_answers(fields: dict[str, Any]) -> None:
    here = protocol()
    assert answer(here, **fields)["error_code"] == "INVALID_MESSAGE"
    here.goaway("restart", 1.0, 0)
    assert here.data_to_send() == []


def test_a_subscription_that_is_made_again_takes_no_second_place() -> None:
    here = protocol(max_subscriptions=1)
    for number in range(3):
        assert isinstance(here.receive(json.dumps({"type": "subscribe", "topic": "a", "id": number}), 0.0), Control)
    refused = answer(here, type="subscribe", topic="b", id=9)
    assert (refused["error_code"], refused["param"], refused["retryable"]) == ("RESOURCE_EXHAUSTED", "$.topic", True)


@pytest.mark.parametrize("frame", ['{"type":"ping"}', "{", '{"type":"cancel","request_id":1}'])
def test_any_frame_and_any_answer_begin_the_idle_time_anew(frame: str) -> None:
    here = protocol(idle_timeout=20.0)
    here.receive(frame, 19.0)
    assert (here.overdue(38.9), here.overdue(39.0)) == (False, True)
    accepted = here.receive('{"type":"work"}', 39.0)
    assert isinstance(accepted, Accepted)
    assert not here.overdue(1000.0)
    here.finish(accepted.key, 1, None, 1000.0)
    assert (here.overdue(1019.9), here.overdue(1020.0)) == (False, True)
    here.tick(1019.9)
    assert here.close_code is None


@pytest.mark.parametrize(("seconds", "closed"), [(0.0, False), (3.0, True)])
def test_an_idle_connection_is_closed_only_where_there_is_a_limit(seconds: float, closed: bool) -> None:
    here = protocol(idle_timeout=seconds)
    here.tick(2.9)
    assert here.close_code is None
    assert here.overdue(1e9) is closed
    here.tick(1e9)
    assert here.close_code == (4513 if closed else None)


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"type": "publish", "topic": "a"}, "VALIDATION_FAILED", "$.data"),
        ({"type": "publish", "topic": "", "data": 1}, "VALIDATION_FAILED", "$.topic"),
        ({"type": "subscribe", "topic": "a", "recover": {"epoch": "e"}}, "VALIDATION_FAILED", "$.recover.offset"),
        ({"type": "subscribe", "topic": "a", "recover": {"epoch": 5}}, "VALIDATION_FAILED", "$.recover.epoch"),
        ({"type": "unsubscribe", "topic": "a"}, "TOPIC_NOT_FOUND", "$.topic"),
        ({"type": "auth"}, "VALIDATION_FAILED", "$.token"),
        ({"type": "auth", "token": "x" * 8193}, "VALIDATION_FAILED", "$.token"),
        ({"type": "hello", "protocol": 2}, "UNSUPPORTED_VERSION", "$.protocol"),
        ({"type": "work", "background": True, "stream": True}, "INVALID_MESSAGE", "$.stream"),
        ({"type": "work", "stream": 1}, "INVALID_MESSAGE", "$.stream"),
        ({"type": "work", "idempotency_key": ""}, "INVALID_MESSAGE", "$.idempotency_key"),
        ({"type": "work", "to": "x" * 257}, "INVALID_MESSAGE", "$.to"),
        ({"type": "x" * 129}, "INVALID_MESSAGE", "$.type"),
        ({"type": "", "n": 1}, "INVALID_MESSAGE", "$.type"),
        ({"type": "admin.actors"}, "PERMISSION_DENIED", None),
        ({"type": "admin.nothing"}, "UNSUPPORTED_FEATURE", None),
    ],
)  # fmt: skip
def test_a_refusal_names_the_field(fields: dict[str, Any], code: str, param: str | None) -> None:
    refused = answer(protocol(), id="1", **fields)
    assert (refused["error_code"], refused.get("param"), refused["id"]) == (code, param, "1")


@pytest.mark.parametrize("kind", ["auth", "cancel", "describe", "work"])
def test_an_id_in_flight_is_never_answered_for_another_message(kind: str) -> None:
    here = protocol()
    first = here.receive('{"type":"work","id":"a"}', 0.0)
    assert isinstance(first, Accepted)
    token = here._setting.policy.authority.operator_token
    refused = answer(here, type=kind, id="a", token=token)
    assert (refused["error_code"], refused["param"]) == ("DUPLICATE_ID", "$.id")
    assert here.principal is not None
    assert here.principal.name == "anonymous"
    here.finish(first.key, 1, None, 0.0)
    assert JSON.decode(here.data_to_send()[0])["status"] == "success"


def test_a_request_carries_what_it_asked_for() -> None:
    parent = "00-" + "a" * 32 + "-" + "b" * 16
    here = protocol()
    meta = {"traceparent": f"{parent}-00", "tracestate": "s" * 600}
    fields = {"type": "work", "id": "a", "stream": True, "idempotency_key": "k", "to": "writer", "meta": meta}
    accepted = here.receive(json.dumps(fields), 0.0)
    assert isinstance(accepted, Accepted)
    assert (accepted.stream, accepted.idempotency_key, accepted.to) == (True, "k", "writer")
    assert accepted.trace == Trace("a" * 32, "b" * 16, sampled=False, state="s" * 512)
    again = here.receive(json.dumps({**fields, "id": "b", "meta": {"traceparent": f"{parent}-01"}}), 0.0)
    assert isinstance(again, Accepted)
    assert again.trace == Trace("a" * 32, "b" * 16, sampled=True, state="")


@pytest.mark.parametrize("words", ["hello", "auth"])
def test_fewer_scopes_take_the_topics_that_they_do_not_allow(words: str) -> None:
    authority = Authority(STORE, clock=lambda: EPOCH)
    setting = Setting(Catalog({}, lambda _: {}), LIMITS, {}, Policy(authority, Permissions(RULES), wall=lambda: EPOCH))
    here = Played("c", setting, 0.0)
    here.receive(json.dumps({"type": "auth", "token": TOKENS["wide"]}), 0.0)
    for topic in ("a.*", "b"):
        here.receive(json.dumps({"type": "subscribe", "topic": topic, "id": topic}), 0.0)
    action = here.receive(json.dumps({"type": words, "token": TOKENS["narrow"]}), 0.0)
    assert isinstance(action, Authenticated)
    assert (action.lost, here.subscriptions) == (("b",), {"a.*"})


def test_the_answer_to_a_token_says_how_long_it_lasts_and_the_end_is_exact() -> None:
    here = protocol(tokens=TOKENS, wall=10.0)
    assert here.overdue(9.9) is False
    assert here.overdue(10.0) is True
    told = answer(here, 5.0, type="auth", token=TOKENS["brief"], id=1)["data"]
    assert told == {"principal": "alice", "expires_in_ms": 40_000}
    assert (here.overdue(74.9), here.overdue(75.0)) == (False, True)
    here.tick(74.9)
    assert here.close_code is None
    assert answer(here, 45.0, type="hello", id=2)["error_code"] == "TOKEN_EXPIRED"
    assert not here.introduced
    here.tick(75.0)
    assert here.close_code == 4419


def test_who_does_not_authenticate_in_time_is_closed_at_that_moment() -> None:
    here = protocol(tokens=TOKENS)
    assert answer(here, type="hello", id=2)["error_code"] == "UNAUTHENTICATED"
    here.tick(9.9)
    assert here.close_code is None
    here.tick(10.0)
    assert here.close_code == 4408


def test_a_hello_is_answered_under_its_id_and_opens_the_way_for_goaway() -> None:
    here = protocol()
    welcome = answer(here, type="hello", id="h", client={"name": "x"})
    assert (welcome["type"], welcome["id"], welcome["protocol"], welcome["server"]) == (
        "welcome",
        "h",
        1,
        {"name": "x"},
    )
    here.goaway("restart", 1.5, 20)
    (goaway,) = map(JSON.decode, here.data_to_send())
    assert (goaway["type"], goaway["close_in_ms"], goaway["reconnect_after_ms"]) == (
        "goaway",
        1500,
        {"min": 0, "max": 20},
    )
    assert answer(here, type="work", id=1)["error_code"] == "SHUTTING_DOWN"


@pytest.mark.parametrize("why", sorted(SPARE))
def test_what_only_came_at_the_wrong_time_never_cuts_a_client_off(why: str) -> None:
    here = protocol(tokens=TOKENS, max_subscriptions=1, max_inflight=2)
    rates = (Rate(1e-9, 1),) if why == "RATE_LIMITED" else ()
    here._setting = Setting(here._setting.catalog, here._setting.limits, {}, Policy(AUTHORITY, Permissions(), rates))
    here.receive(json.dumps({"type": "auth", "token": TOKENS["wide"]}), 0.0)
    here.receive('{"type":"subscribe","topic":"a","id":"s"}', 0.0)
    if why == "TOO_MANY_INFLIGHT":
        here.receive('{"type":"work"}', 0.0)
    here.draining = why == "SHUTTING_DOWN"
    here._expires_at = 0.0 if why == "TOKEN_EXPIRED" else math.inf
    kind = {"type": "subscribe", "topic": "b"} if why == "RESOURCE_EXHAUSTED" else {"type": "work"}
    if why == "RATE_LIMITED":
        here.receive('{"type":"work"}', 0.0)
    here.refusals.clear()
    for number in range(150):
        here.receive(json.dumps({**kind, "id": number}), 0.0)
    assert {refusal.code for refusal in here.refusals} == {why}
    assert here.close_code is None


def test_an_id_may_be_used_again_when_its_answer_is_out() -> None:
    here = protocol()
    for _ in range(3):
        accepted = here.receive('{"type":"work","id":"a"}', 0.0)
        assert isinstance(accepted, Accepted)
        assert answer(here, type="cancel", id="c", request_id="a")["data"] == {"cancelled": True}
        here.finish(accepted.key, 1, None, 0.0)
        here.data_to_send()
        assert answer(here, type="cancel", id="c", request_id="a")["data"] == {"cancelled": False}


def test_a_subscription_that_was_taken_back_is_none() -> None:
    here = protocol()
    for kind in ("subscribe", "unsubscribe"):
        assert isinstance(here.receive(json.dumps({"type": kind, "topic": "a", "id": kind}), 0.0), Control)
    assert here.subscriptions == set()
    assert answer(here, type="unsubscribe", topic="a", id=1)["error_code"] == "TOPIC_NOT_FOUND"


def test_a_message_may_be_larger_after_authentication() -> None:
    here = protocol(tokens=TOKENS, max_unauthenticated_bytes=200)
    assert answer(here, type="work", pad="x" * 200)["error_code"] == "MESSAGE_TOO_LARGE"
    answer(here, type="auth", token=TOKENS["wide"])
    assert isinstance(here.receive(json.dumps({"type": "work", "pad": "x" * 200}), 0.0), Accepted)


def test_the_second_frame_of_the_wrong_kind_is_the_last() -> None:
    here = protocol()
    here.receive(b"{}", 0.0)
    assert JSON.decode(here.data_to_send()[0])["error_code"] == "UNSUPPORTED_ENCODING"
    assert here.close_code is None
    here.receive(b"{}", 0.0)
    assert (here.close_code, here.data_to_send()) == (1003, [])
