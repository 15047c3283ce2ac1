"""Rules: what they allow, what a pattern of topics can reach, and which rules are refused."""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grami_actors.errors import ConfigError, PermissionDenied, error_from_code
from grami_actors.permissions import LONGEST_QUESTION, MOST_ANSWERS, Identity, Permissions, Rule, globs
from grami_actors.principals import ADMIN, ANONYMOUS, EVERYTHING, Principal
from grami_actors.topics import Topics

ALICE = Principal("alice", frozenset({"posts:write"}))
BOB = Principal("bob")
ROOT = Principal("root", frozenset({EVERYTHING}))
WRITER = Identity("agent:writer")


def everything(permissions: Permissions, principal: Principal) -> list[bool]:
    return [
        permissions.may_send_type(principal, "draft"),
        permissions.may_send(principal, "draft", "writer"),
        permissions.may_send(principal, "draft", "writer", through="agent:editor"),
        permissions.may_subscribe(principal, ">"),
        permissions.may_subscribe(principal, ">", through="agent:editor"),
        permissions.may_publish(principal, "news"),
        permissions.may_publish(principal, "news", through="agent:editor"),
    ]


# --- rules ---


@pytest.mark.parametrize("principal", [ALICE, ANONYMOUS, WRITER, Principal("agent:writer")])
def test_without_rules_everything_is_allowed_but_admin(principal: Principal) -> None:
    assert all(everything(Permissions(), principal))
    assert not Permissions().may_administer(principal)


@pytest.mark.parametrize("principal", [ALICE, ANONYMOUS, WRITER, Principal("agent:writer")])
@pytest.mark.parametrize("rule", [Rule(), Rule(principals=("nobody",), send=("*",), subscribe=(">",), admin=True)])
def test_with_a_rule_only_what_it_allows_is_allowed(rule: Rule, principal: Principal) -> None:
    assert not any(everything(Permissions((rule,)), principal))
    assert not Permissions((rule,)).may_administer(principal)


def test_the_scope_of_whoever_runs_the_server_is_bound_by_no_rule() -> None:
    for rules in ((), (Rule(),)):
        assert all(everything(Permissions(rules), ROOT))
        assert Permissions(rules).may_administer(ROOT)


def test_admin_takes_the_scope_or_a_rule() -> None:
    admin = Principal("carol", frozenset({ADMIN}))
    for permissions in (Permissions(), Permissions((Rule(),)), Permissions((Rule(principals=("bob",), admin=True),))):
        assert permissions.may_administer(admin)
    assert not any(everything(Permissions((Rule(),)), admin)), "which is for nothing else"
    assert Permissions((Rule(principals=("bob",), admin=True),)).may_administer(BOB)


MATRIX: list[tuple[Rule, Principal, str, str, bool]] = [
    (Rule(send=("draft",)), ALICE, "draft", "writer", True),
    (Rule(send=("draft",)), ALICE, "Draft", "writer", False),
    (Rule(send=("draft",)), ALICE, "draft_review", "writer", False),
    (Rule(send=("draft*",)), ALICE, "draft_review", "writer", True),
    (Rule(send=("draft",)), ALICE, "draft", "", True),
    (Rule(send=("draft",), to=()), ALICE, "draft", "writer", False),
    (Rule(send=("draft",), to=("writer",)), ALICE, "draft", "writer", True),
    (Rule(send=("draft",), to=("writer",)), ALICE, "draft", "writer-2", False),
    (Rule(send=("draft",), to=("writer",)), ALICE, "draft", "writer\n", False),
    (Rule(send=("draft",), to=("writer-?",)), ALICE, "draft", "writer-2", True),
    (Rule(send=("tool_call",), to=("tool:hash*",)), ALICE, "tool_call", "tool:hashtags", True),
    (Rule(send=("tool_call",), to=("tool:hash*",)), ALICE, "tool_call", "tool:delete", False),
    (Rule(principals=("al*",), send=("*",)), ALICE, "draft", "writer", True),
    (Rule(principals=("al*",), send=("*",)), BOB, "draft", "writer", False),
    (Rule(principals=(), send=("*",)), BOB, "draft", "writer", False),
    (Rule(scopes=("posts:write",), send=("*",)), ALICE, "draft", "writer", True),
    (Rule(scopes=("posts:read", "posts:w*"), send=("*",)), ALICE, "draft", "writer", True),
    (Rule(scopes=("posts:write",), send=("*",)), BOB, "draft", "writer", False),
    (Rule(scopes=("*",), send=("*",)), BOB, "draft", "writer", False),
    (Rule(scopes=("*",), send=("*",)), WRITER, "draft", "writer", False),
    (Rule(principals=("bob",), scopes=("posts:write",), send=("*",)), ALICE, "draft", "writer", False),
    (Rule(send=("*",)), WRITER, "draft", "writer", True),
    (Rule(principals=("agent:*",), send=("*",)), WRITER, "draft", "writer", True),
    (Rule(principals=("agent:*",), send=("*",)), ALICE, "draft", "writer", False),
    (Rule(subscribe=(">",), publish=(">",), admin=True), ALICE, "draft", "writer", False),
]


@pytest.mark.parametrize(("rule", "principal", "message_type", "to", "allowed"), MATRIX)
def test_a_rule_allows_what_all_its_fields_match(
    rule: Rule, principal: Principal, message_type: str, to: str, allowed: bool
) -> None:
    for rules in ((rule,), (Rule(), rule), (rule, Rule(principals=("nobody",), send=("*",)))):
        permissions = Permissions(rules)
        assert [permissions.may_send(principal, message_type, to) for _ in range(2)] == [allowed] * 2
        assert not permissions.may_send(principal, message_type, to, through="agent:writer")


def test_a_type_may_be_sent_if_it_may_be_sent_anywhere() -> None:
    rules = (Rule(send=("draft",), to=("writer",)), Rule(send=("review",), to=()))
    permissions = Permissions((*rules, Rule(through=("agent:writer",), send=("tool_call",))))
    assert [permissions.may_send_type(ALICE, each) for each in ("draft", "review", "tool_call")] == [True, False, False]


def test_rules_do_not_add_up_to_what_none_of_them_says() -> None:
    permissions = Permissions((Rule(send=("draft",), to=("writer",)), Rule(send=("review",), to=("editor",))))
    pairs = itertools.product(("draft", "review"), ("writer", "editor"))
    assert [permissions.may_send(ALICE, *pair) for pair in pairs] == [True, False, False, True]


def test_a_rule_with_through_is_for_these_agents_only() -> None:
    rule = Rule(principals=("alice",), through=("agent:w*",), send=("*",), subscribe=("a",), publish=("b",))
    permissions = Permissions((rule,))
    for through, allowed in (("agent:writer", True), ("agent:editor", False), ("", False)):
        assert permissions.may_send(ALICE, "tool_call", "tool:delete", through=through) is allowed
        assert permissions.may_subscribe(ALICE, "a", through=through) is allowed
        assert permissions.may_publish(ALICE, "b", through=through) is allowed
    assert not permissions.may_send(BOB, "tool_call", "tool:delete", through="agent:writer")


@pytest.mark.parametrize("name", ["agent:writer", "tool:delete"])
def test_a_client_whose_credential_has_the_name_of_an_agent_is_not_that_agent(name: str) -> None:
    permissions = Permissions(
        (Rule(principals=(name, "*"), send=("*",), subscribe=(">",), publish=(">",), admin=True),)
    )
    for _ in range(2):  # the second answer comes from the cache
        assert permissions.may_send(Identity(name), "draft", "writer")
        assert permissions.may_administer(Identity(name))
        assert not any(everything(permissions, Principal(name)))
        assert not permissions.may_administer(Principal(name))


# --- what is remembered ---


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.sets(st.sampled_from("xy")), st.booleans()), max_size=30))
def test_an_answer_is_the_same_whatever_was_asked_before(asked: list[tuple[str, set[str], bool]]) -> None:
    rules = (
        Rule(principals=("a",), scopes=("x",), send=("t",)),
        Rule(through=("agent:w",), scopes=("y",), send=("t",)),
    )
    permissions = Permissions(rules)
    for name, scopes, through in asked:
        principal = Principal(name, frozenset(scopes))
        expected = "y" in scopes if through else (name == "a" and "x" in scopes)
        assert permissions.may_send(principal, "t", "d", through="agent:w" if through else "") is expected


def test_the_answers_that_are_kept_have_a_bound() -> None:
    permissions = Permissions((Rule(send=("draft",), to=("writer*",)),))
    for number in range(MOST_ANSWERS + 10):
        assert permissions.may_send(ALICE, "draft", f"writer-{number}")
    assert len(permissions._answers) == 10
    assert permissions.may_send(ALICE, "draft", "writer" * LONGEST_QUESTION)
    assert len(permissions._answers) == 10, "what takes much room is not kept"


def test_a_principal_that_comes_back_with_a_new_token_is_the_same() -> None:
    permissions = Permissions((Rule(send=("draft",)),))
    for expiry in (1.0, 2.0, math.inf):
        assert permissions.may_send(Principal("alice", expires_at=expiry), "draft", "writer")
    assert len(permissions._answers) == 1


# --- globs ---


def glob_model(pattern: str, text: str) -> bool:
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(glob_model(pattern[1:], text[cut:]) for cut in range(len(text) + 1))
    return bool(text) and pattern[0] in {"?", text[0]} and glob_model(pattern[1:], text[1:])


LETTERS = st.text("ab*?[]!^.\\|()\n", max_size=6)


@given(st.lists(LETTERS.filter(bool), max_size=3), LETTERS)
def test_a_glob_knows_stars_and_question_marks_and_nothing_else(patterns: list[str], text: str) -> None:
    assert globs(tuple(patterns))(text) is any(glob_model(pattern, text) for pattern in patterns)


@given(st.lists(LETTERS.filter(bool), max_size=3))
def test_a_glob_without_wildcards_matches_itself_alone(patterns: list[str]) -> None:
    plain = tuple(each.replace("*", "x").replace("?", "y") for each in patterns)
    assert all(globs((each,))(each) for each in plain)
    assert not any(globs(plain)(each + "z") or globs(plain)("z" + each) for each in plain)


def test_no_glob_and_no_name_takes_long() -> None:
    # With backtracking the age of the universe would not be enough.
    assert not globs(("*a" * 40 + "*b",))("a" * 20_000)
    assert not globs(("?*" * 40 + "b",))("a" * 20_000)


# --- topics ---

WORDS = st.sampled_from(["a", "b", "*"])
PATTERNS = st.builds(
    lambda words, rest: ".".join((*words, ">") if rest or not words else words),
    st.lists(WORDS, max_size=3),
    st.booleans(),
)
# Three words of which rules know two, and one more than any pattern has.
TOPICS = [".".join(words) for length in range(1, 6) for words in itertools.product("abz", repeat=length)]


@cache
def hears(pattern: str) -> frozenset[str]:
    """The topics that a subscriber of a pattern hears."""
    topics: Topics[int] = Topics()
    topics.subscribe(pattern, 0)
    return frozenset(topic for topic in TOPICS if topics.match(topic))


@given(PATTERNS, PATTERNS)
@settings(deadline=None)
def test_who_may_subscribe_hears_nothing_but_what_the_rule_says_and_who_may_not_would(rule: str, asked: str) -> None:
    allowed = Permissions((Rule(subscribe=(rule,)),)).may_subscribe(ALICE, asked)
    assert allowed is (hears(asked) <= hears(rule))


@given(st.lists(PATTERNS, max_size=3), st.lists(PATTERNS, max_size=2), PATTERNS)
@settings(deadline=None)
def test_of_several_rules_one_pattern_must_cover_it_all(first: list[str], second: list[str], asked: str) -> None:
    permissions = Permissions((Rule(subscribe=tuple(first)), Rule(subscribe=tuple(second))))
    allowed = permissions.may_subscribe(ALICE, asked)
    assert allowed is any(hears(asked) <= hears(pattern) for pattern in (*first, *second))
    if allowed:
        assert hears(asked) <= frozenset().union(*map(hears, (*first, *second)))


@given(PATTERNS, st.sampled_from(TOPICS))
@settings(deadline=None)
def test_who_may_publish_to_a_topic_has_a_rule_that_matches_it(rule: str, topic: str) -> None:
    permissions = Permissions((Rule(publish=(rule,)),))
    assert permissions.may_publish(ALICE, topic) is (topic in hears(rule))
    assert not permissions.may_subscribe(ALICE, topic), "which is another right"


@pytest.mark.parametrize("asked", ["", ".", "a*", "a..b", ">.a", "a.>.b", "a b", "*.*"])
def test_what_is_no_pattern_reaches_no_topic_of_others(asked: str) -> None:
    permissions = Permissions((Rule(subscribe=("a", "a.b", "mine.>"), publish=("a", "a.b", "mine.>")),))
    assert not permissions.may_subscribe(ALICE, asked)
    assert not permissions.may_publish(ALICE, asked)


# --- rules that cannot be meant so ---


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (Rule(principals="admin*"), r"principals is a list of patterns"),  # type: ignore[arg-type]
        (Rule(send=("draft", "")), r"send is a list of patterns, none of them empty"),
        (Rule(to=(1,)), r"to is a list of patterns"),  # type: ignore[arg-type]
        (Rule(scopes=["a"]), r"scopes is a list of patterns"),  # type: ignore[arg-type]
        (Rule(subscribe=("a.",)), r"subscribe: 'a\.' is no pattern of topics"),
        (Rule(subscribe=("news.*", "a*")), r"subscribe: 'a\*' is no pattern of topics"),
        (Rule(publish=("a.>.b",)), r"publish: 'a\.>\.b' is no pattern of topics"),
        (Rule(through=("writer",)), r"through names agents, as in agent:writer, not 'writer'"),
        (Rule(through=("agent:writer",), admin=True), r"admin\.\* is for clients themselves"),
    ],
)
def test_a_rule_that_cannot_be_meant_so_is_refused_with_its_place_and_the_reason(rule: Rule, why: str) -> None:
    with pytest.raises(ConfigError, match=f"^rule 2 of 3: {why}"):
        Permissions((Rule(), rule, Rule()))


def test_rules_can_be_read_and_what_is_no_field_is_refused() -> None:
    text: Any = {"principals": ["alice"], "send": ["draft"], "to": ["writer"]}
    rule = msgspec.convert(text, Rule)
    assert Permissions((rule,)).may_send(ALICE, "draft", "writer")
    with pytest.raises(msgspec.ValidationError, match="unknown field `sent`"):
        msgspec.convert({"sent": ["draft"]}, Rule)


def test_a_refusal_comes_back_over_the_wire_as_what_it_is() -> None:
    assert isinstance(error_from_code("PERMISSION_DENIED", "no"), PermissionDenied)
    assert not PermissionDenied("no").retryable
