"""Topics and their subscribers: NATS's subjects, against an oracle of regular expressions."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from grami_actors import topics as module
from grami_actors.topics import Topics

words = st.sampled_from(["a", "b", "ab", "é"])
topics = st.lists(words, min_size=1, max_size=4).map(".".join)


@st.composite
def patterns(draw: st.DrawFn) -> str:
    body = draw(st.lists(words | st.just("*"), max_size=3))
    tail = draw(st.lists(st.just(">") | words | st.just("*"), min_size=0 if body else 1, max_size=1))
    return ".".join([*body, *tail])


def hears(pattern: str, topic: str) -> bool:
    """The oracle: what NATS's documentation says, as a regular expression."""
    steps = {"*": r"[^.]+", ">": r"[^.]+(\.[^.]+)*"}
    return re.fullmatch(r"\.".join(steps.get(word, re.escape(word)) for word in pattern.split(".")), topic) is not None


class Naive:
    """Subscriptions in a list, searched from the start."""

    def __init__(self) -> None:
        self.subscriptions: list[tuple[str, int]] = []

    def match(self, topic: str) -> tuple[int, ...]:
        return tuple(dict.fromkeys(who for pattern, who in self.subscriptions if hears(pattern, topic)))


class Machine(RuleBasedStateMachine):
    """Whatever is subscribed and taken back in whatever order, a topic finds what the list finds."""

    known = Bundle("known")

    @initialize()
    def begin(self) -> None:
        self.topics: Topics[int] = Topics()
        self.naive = Naive()
        self.looked_up = {"a", "a.b", "b.a.b"}

    @rule(target=known, pattern=patterns(), who=st.integers(0, 4))
    def subscribe(self, pattern: str, who: int) -> tuple[str, int]:
        self.topics.subscribe(pattern, who)
        if (pattern, who) not in self.naive.subscriptions:
            self.naive.subscriptions.append((pattern, who))
        return pattern, who

    @rule(subscription=consumes(known) | st.tuples(patterns(), st.integers(0, 4)))
    def unsubscribe(self, subscription: tuple[str, int]) -> None:
        was = subscription in self.naive.subscriptions
        assert self.topics.unsubscribe(*subscription) is was
        if was:
            self.naive.subscriptions.remove(subscription)

    @rule(who=st.integers(0, 4))
    def remove(self, who: int) -> None:
        self.topics.remove(who)
        self.naive.subscriptions = [each for each in self.naive.subscriptions if each[1] != who]

    @rule(topic=topics)
    def look_up(self, topic: str) -> None:
        self.looked_up.add(topic)

    @invariant()
    def the_same_is_found(self) -> None:
        for topic in self.looked_up:
            assert self.topics.match(topic) == self.naive.match(topic)
            assert self.topics.match(topic) == self.naive.match(topic), "from the cache"

    @invariant()
    def nothing_is_left_behind(self) -> None:
        assert set(self.topics._subscribed) == {pattern for pattern, _ in self.naive.subscriptions}
        assert set(self.topics._patterns) == {who for _, who in self.naive.subscriptions}
        wild = {pattern for pattern, _ in self.naive.subscriptions if "*" in pattern or ">" in pattern}
        assert set(planted(self.topics._root)) == wild


def planted(node: module._Node) -> Iterator[str]:
    """The patterns of a trie, which has no dead branches."""
    assert all(child.children or child.pattern for child in node.children.values())
    if node.pattern:
        yield node.pattern
    for child in node.children.values():
        yield from planted(child)


TestSubscriptions = pytest.mark.slow(Machine.TestCase)
TestSubscriptions.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


@given(patterns(), topics)
@example("a.>", "a")
@example("*", "a.b")
def test_a_pattern_finds_the_topics_that_the_oracle_finds(pattern: str, topic: str) -> None:
    found: Topics[str] = Topics()
    found.subscribe(pattern, "me")
    assert found.match(topic) == (("me",) if hears(pattern, topic) else ())


def heard(pattern: str, *published: str) -> list[str]:
    found: Topics[str] = Topics()
    found.subscribe(pattern, "me")
    return [topic for topic in published if found.match(topic)]


def test_a_pattern_with_a_star_matches_exactly_one_token() -> None:
    assert heard("news.*", "news", "news.sport", "news.sport.tennis", "other.sport") == ["news.sport"]
    assert heard("*.b.*", "a.b.c", "b.c", "a.b", "a.c.b", "a.b.c.d") == ["a.b.c"]


def test_a_tail_matches_one_or_more_tokens() -> None:
    assert heard("a.>", "a", "a.b", "a.b.c.d", "b.a") == ["a.b", "a.b.c.d"]
    assert heard(">", "a", "a.b") == ["a", "a.b"]


def test_a_topic_without_wildcards_matches_only_itself() -> None:
    assert heard("a.b", "a.b", "a", "a.b.c", "A.B", "b", "axb") == ["a.b"]


def test_a_subscriber_is_found_once_and_stands_where_its_oldest_matching_subscription_does() -> None:
    found: Topics[str] = Topics()
    for pattern, who in (("b.>", "late"), ("a.*", "first"), ("a.b", "second"), ("a.b", "late"), ("a.>", "first")):
        found.subscribe(pattern, who)
    assert found.match("a.b") == ("first", "second", "late")
    assert found.match("b.b") == ("late",)
    found.unsubscribe("a.*", "first")
    assert found.match("a.b") == ("second", "late", "first")


def test_to_subscribe_twice_is_once_and_keeps_the_place() -> None:
    found: Topics[str] = Topics()
    for who in ("one", "two", "one"):
        found.subscribe("a", who)
    assert found.match("a") == ("one", "two")
    assert found.unsubscribe("a", "one") is True
    assert found.unsubscribe("a", "one") is False
    assert found.match("a") == ("two",)


bad_words = ["", ".", ".a", "a.", "a..b", " ", "a b", "a.\tb", "a\n", "a\u00a0b", "a*", "*a.b", "a>", ">a"]


@pytest.mark.parametrize("bad", [*bad_words, "*", "a.*", ">", "a.>"])
def test_what_is_no_topic_is_refused_and_told_what_one_is(bad: str) -> None:
    found: Topics[str] = Topics()
    with pytest.raises(ValueError, match=r"is no topic: it takes words with dots .* as in news\.sport") as refused:
        found.match(bad)
    assert repr(bad) in str(refused.value)
    assert found._cache == {}


@pytest.mark.parametrize("bad", [*bad_words, ">.a", "a.>.b", ">.>", "**", ">>", "*>"])
@pytest.mark.parametrize("change", [Topics.subscribe, Topics.unsubscribe])
def test_what_is_no_pattern_is_refused_and_told_what_one_is(bad: str, change: Callable[..., object]) -> None:
    found: Topics[str] = Topics()
    with pytest.raises(ValueError, match=r"is no pattern .* as in news\.\* or news\.>") as refused:
        change(found, bad, "me")
    assert repr(bad) in str(refused.value)
    assert found._subscribed == {}


def test_a_long_text_is_refused_as_fast_as_it_is_read() -> None:
    found: Topics[str] = Topics()
    for bad in ("a." * 100_000, "a" * 100_000 + "*"):
        with pytest.raises(ValueError, match="is no"):
            found.subscribe(bad, "me")


# --- the cache ---


def test_what_is_found_again_is_looked_up_and_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    found: Topics[str] = Topics()
    found.subscribe("a.*", "me")
    first = found.match("a.b")
    monkeypatch.setattr(Topics, "_find", lambda self, topic: pytest.fail("it was searched again"))
    assert found.match("a.b") is first


def test_a_subscription_to_one_topic_leaves_the_others_in_the_cache() -> None:
    found: Topics[str] = Topics()
    found.match("a")
    found.match("b")
    found.subscribe("a", "me")
    assert set(found._cache) == {"b"}
    found.subscribe(">", "me")
    assert found._cache == {}


def measure(found: Topics[int]) -> int:
    return sum(module.CACHE_ENTRY + len(topic) + len(whom) for topic, whom in found._cache.items())


@given(st.lists(st.tuples(st.sampled_from(["match", "subscribe", "remove"]), topics, st.integers(0, 3)), max_size=60))
def test_the_cache_never_grows_beyond_its_bound(steps: list[tuple[str, str, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CACHE_SIZE", 60)
        found: Topics[int] = Topics()
        for step, topic, who in steps:
            if step == "match":
                found.match(topic)
            elif step == "subscribe":
                found.subscribe(topic, who)
            else:
                found.remove(who)
            assert measure(found) == found._cached <= 60


def test_a_topic_that_alone_would_fill_the_cache_is_found_without_it() -> None:
    found: Topics[int] = Topics()
    found.subscribe(">", 1)
    found.match("a")
    assert found.match("x" * module.CACHE_SIZE) == (1,)
    assert set(found._cache) == {"a"}


class Counted:
    """A subscriber that counts how often it is looked for."""

    asked = 0

    def __hash__(self) -> int:
        self.asked += 1
        return 1


def test_to_remove_a_subscriber_costs_what_it_subscribed_to_and_not_what_others_did() -> None:
    found: Topics[object] = Topics()
    me = Counted()
    for number in range(1_000):
        found.subscribe(f"topic.{number}", "somebody else")
    found.subscribe("topic.7", me)
    found.subscribe("*.7", me)
    me.asked = 0
    found.remove(me)
    assert me.asked <= 3
    assert found.match("topic.7") == ("somebody else",)


# --- threads ---


@contextmanager
def impatient_threads() -> Iterator[None]:
    """Threads take turns a thousand times as often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def test_what_changes_while_a_topic_is_searched_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    search = Topics._find

    def search_while_others_hurry(self: Topics[str], topic: str) -> tuple[str, ...]:
        result = search(self, topic)
        if not self._lock.locked():  # another thread could change it now, so it does
            self.subscribe("a", "me")
        return result

    monkeypatch.setattr(Topics, "_find", search_while_others_hurry)
    found: Topics[str] = Topics()
    found.match("a")
    found.subscribe("a", "me")
    assert found.match("a") == ("me",)


@pytest.mark.parametrize("pattern", ["a.b", "a.*", "a.>"])
def test_a_thread_that_changed_something_finds_it_changed_whatever_others_do(pattern: str) -> None:
    found: Topics[int] = Topics()
    failures: list[tuple[int, str]] = []

    def play(me: int) -> None:
        for _ in range(300):
            found.subscribe(pattern, me)
            if me not in found.match("a.b"):
                failures.append((me, "subscribed and not found"))
            if not found.unsubscribe(pattern, me):
                failures.append((me, "lost"))
            if me in found.match("a.b"):
                failures.append((me, "unsubscribed and found"))

    threads = [threading.Thread(target=play, args=(number,)) for number in range(4)]
    with impatient_threads():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    assert (found.match("a.b"), found._subscribed, found._patterns) == ((), {}, {})
