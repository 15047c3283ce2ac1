"""Who hears what is published? Topics, and patterns of topics. Floor 1.

Rule 1: a topic is words with dots between them: ``news.sport.tennis``. A pattern may say ``*`` for exactly one word,
        and ``>`` at its end for one or more; the rules are those of NATS subjects
        (https://docs.nats.io/nats-concepts/subjects). A wildcard is a word of its own: ``a*`` is refused.
Rule 2: a subscriber hears a message once, however many of its patterns match. Who subscribed first comes first: what
        counts is the oldest of the subscriptions that match.
Rule 3: any thread may do anything. Changes and first looks take one lock; what was looked up before is read without
        it, from a cache that a change clears and that has a bound.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

S = TypeVar("S", bound=Hashable)

CACHE_SIZE = 1 << 18
"""The bound of a cache: the sum, over its topics, of their characters, their subscribers and ``CACHE_ENTRY``."""

CACHE_ENTRY = 16
"""What the cache counts for a topic, however short it is and however few hear it."""

_WORD = r"[^\s.*>]+"
_TOPIC = re.compile(rf"(?:{_WORD}\.)*{_WORD}")
_PATTERN = re.compile(rf"(?:(?:{_WORD}|\*)\.)*(?:{_WORD}|\*|>)")


class _Node:
    """A place in the trie of patterns with wildcards. ``pattern``: the one that ends here, empty for none."""

    __slots__ = ("children", "pattern")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.pattern = ""


class Topics(Generic[S]):
    """Patterns and their subscribers, which are any hashable values."""

    __slots__ = ("_cache", "_cached", "_lock", "_patterns", "_root", "_subscribed", "_subscriptions")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._subscriptions = 0
        # Pattern to subscribers, each with the number of its subscription; subscriber to patterns.
        self._subscribed: dict[str, dict[S, int]] = {}
        self._patterns: dict[S, set[str]] = {}
        self._root = _Node()
        self._cache: dict[str, tuple[S, ...]] = {}
        self._cached = 0

    def subscribe(self, pattern: str, subscriber: S) -> None:
        """Let a subscriber hear what is published to the topics of a pattern; twice is once.

        Raises:
            ValueError: the pattern is none.
        """
        _check_pattern(pattern)
        with self._lock:
            subscribers = self._subscribed.get(pattern)
            if subscribers is None:
                subscribers = self._subscribed[pattern] = {}
                self._plant(pattern)
            if subscriber not in subscribers:
                self._subscriptions += 1
                subscribers[subscriber] = self._subscriptions
                self._patterns.setdefault(subscriber, set()).add(pattern)
                self._forget(pattern)

    def unsubscribe(self, pattern: str, subscriber: S) -> bool:
        """Take one subscription back; ``False`` if there was none.

        Raises:
            ValueError: the pattern is none.
        """
        _check_pattern(pattern)
        with self._lock:
            patterns = self._patterns.get(subscriber, set())
            if pattern not in patterns:
                return False
            patterns.remove(pattern)
            if not patterns:
                del self._patterns[subscriber]
            self._drop(pattern, subscriber)
            return True

    def remove(self, subscriber: S) -> None:
        """Forget a subscriber everywhere. Costs what it subscribed to, not what others did."""
        with self._lock:
            for pattern in self._patterns.pop(subscriber, ()):
                self._drop(pattern, subscriber)

    def match(self, topic: str) -> tuple[S, ...]:
        """Who hears what is published to a topic: each once, the oldest subscription first.

        Raises:
            ValueError: the topic is none.
        """
        found = self._cache.get(topic)
        if found is not None:
            return found
        _check_topic(topic)
        with self._lock:
            found = self._find(topic)
            self._remember(topic, found)
            return found

    # --- with the lock held ---

    def _find(self, topic: str) -> tuple[S, ...]:
        oldest: dict[S, int] = {}
        for pattern in (topic, *self._wildcards(topic)):
            for subscriber, number in self._subscribed.get(pattern, {}).items():
                oldest[subscriber] = min(number, oldest.get(subscriber, number))
        return tuple(sorted(oldest, key=oldest.__getitem__))

    def _wildcards(self, topic: str) -> Iterator[str]:
        """The patterns with wildcards that match. A node is visited once at most, so no topic is expensive."""
        nodes = [self._root]
        for word in topic.split("."):
            for node in nodes:
                if (rest := node.children.get(">")) is not None:
                    yield rest.pattern
            nodes = [child for node in nodes for step in (word, "*") if (child := node.children.get(step)) is not None]
            if not nodes:
                return
        yield from (node.pattern for node in nodes if node.pattern)

    def _plant(self, pattern: str) -> None:
        if not _has_wildcard(pattern):
            return  # found by its name
        node = self._root
        for word in pattern.split("."):
            node = node.children.setdefault(word, _Node())
        node.pattern = pattern

    def _drop(self, pattern: str, subscriber: S) -> None:
        subscribers = self._subscribed[pattern]
        del subscribers[subscriber]
        if not subscribers:
            del self._subscribed[pattern]
            self._uproot(pattern)
        self._forget(pattern)

    def _uproot(self, pattern: str) -> None:
        if not _has_wildcard(pattern):
            return
        node, path = self._root, []
        for word in pattern.split("."):
            path.append((node, word))
            node = node.children[word]
        node.pattern = ""
        for parent, word in reversed(path):
            child = parent.children[word]
            if child.children or child.pattern:
                return
            del parent.children[word]

    def _remember(self, topic: str, found: tuple[S, ...]) -> None:
        cost = _cost(topic, found)
        if topic in self._cache or cost > CACHE_SIZE:
            return
        if self._cached + cost > CACHE_SIZE:
            self._cache, self._cached = {}, 0
        self._cache[topic] = found
        self._cached += cost

    def _forget(self, pattern: str) -> None:
        """Forget what the cache knows of the topics of a pattern."""
        if _has_wildcard(pattern):
            self._cache, self._cached = {}, 0
        elif (found := self._cache.pop(pattern, None)) is not None:
            self._cached -= _cost(pattern, found)


def _cost(topic: str, found: tuple[object, ...]) -> int:
    return CACHE_ENTRY + len(topic) + len(found)


def _has_wildcard(pattern: str) -> bool:
    return "*" in pattern or pattern.endswith(">")


def _check_topic(topic: str) -> None:
    if _TOPIC.fullmatch(topic) is None:
        raise ValueError(
            f"{topic!r} is no topic: it takes words with dots between them, as in news.sport, and a word has no "
            "spaces, no * and no >"
        )


def _check_pattern(pattern: str) -> None:
    if _PATTERN.fullmatch(pattern) is None:
        raise ValueError(
            f"{pattern!r} is no pattern of topics: it takes words with dots between them and no spaces, where * stands "
            "for exactly one word and > at the end for one or more, as in news.* or news.>"
        )
