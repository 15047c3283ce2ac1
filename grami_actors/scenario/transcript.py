"""The transcript of a run, to be asked: who told whom what, and what caused it. Floor 16."""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from operator import attrgetter

from grami_actors.history import AnyEntry, History, Injected, Life, Lost, Told

_PATTERN = re.compile(
    r"\s*(?:(?P<sender>\S*?)\s*->\s*)?"
    r"(?P<to>(?!->)[^\s:]+(?::[^\s:]+)*?)\s*(?::\s+(?P<type>\S+))?\s*"
)

NEAREST = 3
"""Kinds of messages that are named where none is what was expected."""


class Pattern:
    """Messages of a kind, as text: ``"alice -> writer-*: draft"``.

    ``*`` stands for any characters. Sender and type may be left out: ``"writer-*"``, ``"writer: draft"``.

    Raises:
        ValueError: the text is none.
    """

    def __init__(self, text: str, where: Callable[[Told], object] | None = None) -> None:
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is no pattern of messages: write 'sender -> receiver: type'")
        self.text = text
        self._sender = match["sender"] or "*"
        self._to = match["to"]
        self._type = match["type"] or "*"
        self._where = where

    def matches(self, told: Told, sender: str) -> bool:
        """Whether a message is one of them; ``sender`` is what the script calls who sent it."""
        return (
            fnmatchcase(told.to, self._to)
            and fnmatchcase(told.type, self._type)
            and (fnmatchcase(sender, self._sender) or fnmatchcase(told.sender, self._sender))
            and (self._where is None or bool(self._where(told)))
        )

    def likeness(self, told: Told, sender: str) -> int:
        """How much of what the text names a message has: of receiver, type and sender."""
        wanted = ((self._to, (told.to,)), (self._type, (told.type,)), (self._sender, (sender, told.sender)))
        return sum(any(fnmatchcase(name, part) for name in names) for part, names in wanted if part != "*")


class Transcript:
    """What happened so far, in the order in which the handlers of messages began.

    A message stands in it when its handler has ended.

    Args:
        history: of the run.
        names: gives what the script calls the connections.
    """

    def __init__(self, history: History, names: Callable[[], dict[str, str]]) -> None:
        self._history = history
        self._names = names

    @property
    def entries(self) -> list[AnyEntry]:
        """Everything, in the order in which it ended."""
        return self._history.entries

    def told(self, pattern: str = "*", where: Callable[[Told], object] | None = None) -> list[Told]:
        """The messages of a kind; see :class:`Pattern`. What the router forwards is told once, to who gets it."""
        wanted, names = Pattern(pattern, where), self._names()
        found = (each for each in self._history.told() if wanted.matches(each, names.get(each.sender, each.sender)))
        return sorted(found, key=attrgetter("taken"))

    def count(self, pattern: str = "*", where: Callable[[Told], object] | None = None) -> int:
        """How many there are."""
        return len(self.told(pattern, where))

    def nearest(self, pattern: str) -> str:
        """What there was instead of the messages of a kind, in words; empty if nothing was like them."""
        wanted, names = Pattern(pattern), self._names()
        found: dict[str, int] = {}
        for each in self._history.told():
            sender = names.get(each.sender, each.sender)
            found[f"{sender or 'somebody'} -> {each.to}: {each.type}"] = wanted.likeness(each, sender)
        most = max(found.values(), default=0)
        return ", ".join([text for text, likeness in found.items() if likeness == most][-NEAREST:]) if most else ""

    def causes(self, entry: Told) -> list[Told]:
        """What led to a message: the one whose handler sent it, what led to that, and so on."""
        by_span = {each.span: each for each in self._history.told() if each.span}
        found: list[Told] = []
        while entry.cause in by_span and by_span[entry.cause] not in found:
            entry = by_span[entry.cause]
            found.append(entry)
        return found

    def caused(self, cause: Told, effect: Told) -> bool:
        """Whether one message led to another, over however many others."""
        return any(each is cause for each in self.causes(effect))

    def lost(self, pattern: str = "*") -> list[Lost]:
        """The dead letters to names that match."""
        return [each for each in self.entries if isinstance(each, Lost) and fnmatchcase(each.to, pattern)]

    def lives(self, stage: str, pattern: str = "*") -> list[Life]:
        """Who came to a stage: ``failed``, ``restarted``, ``stopped``..."""
        return [
            each
            for each in self.entries
            if isinstance(each, Life) and each.stage == stage and fnmatchcase(each.actor, pattern)
        ]

    def faults(self) -> list[Injected]:
        """The faults that struck."""
        return [each for each in self.entries if isinstance(each, Injected)]
