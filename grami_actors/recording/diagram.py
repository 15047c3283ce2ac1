"""A short run as text that Mermaid draws a sequence diagram of. Floor 15.

The language: https://mermaid.js.org/syntax/sequenceDiagram.html.
"""

from __future__ import annotations

import heapq
import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from grami_actors.history import AnyEntry, Injected, Life, Lost, Told

OUTSIDE = "client"
"""What whoever is no actor is called."""

LONGEST_LABEL = 48
"""Characters of what stands at an arrow or in a note."""

_NOTED = {"failed", "restarted", "gave up", "paused", "suspended", "resumed"}
_RESERVED = re.compile(r"\b(end|wrap|nowrap)\b", re.IGNORECASE)
_MARKUP = re.compile(r"[#;%$@<>&\\]")


class _Step(NamedTuple):
    """What becomes one line; the order of steps is that of the lines, as far as causes allow."""

    time: float
    number: int
    ends: bool


def mermaid(entries: Iterable[AnyEntry], *, hide: Collection[str] = ()) -> str:
    """A ``sequenceDiagram`` of a run; the same entries always give the same text.

    ``->>`` asks, ``-)`` tells, ``-->>`` answers, ``--x`` refuses or was lost. An arrow stands where its message was
    sent, and its answer where the handler ended.

    Args:
        entries: of a history or a recording, in order.
        hide: actors that are left out, by name or pattern (``connection-*``). What they were sent is left out too; what
            they sent comes from whoever caused it, or from the ``client``.
    """
    return _Diagram(list(entries), hide).draw()


class _Diagram:
    def __init__(self, entries: list[AnyEntry], hide: Collection[str]) -> None:
        self._entries = entries
        self._hide = hide
        self._spans = {
            entry.span: index for index, entry in enumerate(entries) if isinstance(entry, Told) and entry.span
        }
        self._participants: dict[str, str] = {}

    def draw(self) -> str:
        lines = [line for step in self._steps() for line in self._lines(step)]
        heads = [f"participant {mark} as {_label(name)}" for name, mark in self._participants.items()]
        return "\n    ".join(["sequenceDiagram", *heads, *lines]) + "\n"

    def _steps(self) -> Iterator[_Step]:
        """All steps by time. At one moment of virtual time, too, nothing comes before what caused it."""
        ready: list[_Step] = []
        waiting: dict[_Step, list[_Step]] = defaultdict(list)
        for index, entry in enumerate(self._entries):
            first = _first(index, entry)
            cause = self._spans.get(entry.cause) if isinstance(entry, Told) else None
            if cause is None or cause == index:
                heapq.heappush(ready, first)
            else:
                waiting[_first(cause, self._entries[cause])].append(first)
            if isinstance(entry, Told):
                waiting[first].append(_Step(entry.at, index, ends=True))
        while ready:
            step = heapq.heappop(ready)
            yield step
            for each in waiting.pop(step, ()):
                heapq.heappush(ready, each)

    def _lines(self, step: _Step) -> Iterator[str]:
        entry = self._entries[step.number]
        if isinstance(entry, Told):
            if not self._hidden(entry.to):
                yield from self._ended(entry) if step.ends else self._sent(entry)
        elif isinstance(entry, Lost):
            if not self._hidden(entry.to):
                sender = OUTSIDE if self._hidden(entry.sender) else entry.sender
                yield self._arrow(sender, "--x", entry.to, f"{entry.type} (dead letter: {entry.reason})")
        elif isinstance(entry, Life):
            if entry.stage in _NOTED:
                yield from self._note((entry.actor,), f"{entry.stage}: {entry.text}" if entry.text else entry.stage)
        elif isinstance(entry, Injected):
            text = f"fault: {entry.fault} {entry.text}" if entry.text else f"fault: {entry.fault}"
            yield from self._note(entry.names[:2], text)

    def _sent(self, told: Told) -> Iterator[str]:
        yield self._arrow(self._sender(told), "->>" if told.asked else "-)", told.to, told.type)

    def _ended(self, told: Told) -> Iterator[str]:
        failed = told.outcome != "ok"
        if told.asked and not told.handed:
            answer = told.outcome if failed else _written(told.result)
            yield self._arrow(told.to, "--x" if failed else "-->>", self._sender(told), answer)
        elif failed:
            yield from self._note((told.to,), f"{told.type}: {told.outcome}")

    def _sender(self, told: Told) -> str:
        """Who sent it, or the first that is not hidden of those that caused it."""
        seen = set()
        while self._hidden(told.sender):
            cause = self._spans.get(told.cause)
            if cause is None or cause in seen:
                return OUTSIDE
            seen.add(cause)
            told = self._entries[cause]  # type: ignore[assignment]
        return told.sender or OUTSIDE

    def _hidden(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self._hide)

    def _arrow(self, sender: str, arrow: str, to: str, text: str) -> str:
        return f"{self._participant(sender or OUTSIDE)}{arrow}{self._participant(to)}: {_label(text)}"

    def _note(self, names: Iterable[str], text: str) -> Iterator[str]:
        marks = [self._participant(name) for name in names if not self._hidden(name)]
        if marks:
            yield f"Note over {','.join(marks)}: {_label(text)}"

    def _participant(self, name: str) -> str:
        return self._participants.setdefault(name, f"p{len(self._participants)}")


def _first(index: int, entry: AnyEntry) -> _Step:
    return _Step(entry.sent if isinstance(entry, Told) else entry.at, index, ends=False)


def _written(value: Any) -> str:
    if value is None:
        return "done"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _label(text: str) -> str:
    """A text in one line, shortened, with nothing in it that Mermaid reads as its own."""
    text = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    if len(text) > LONGEST_LABEL:
        text = f"{text[: LONGEST_LABEL - 1].rstrip()}…"
    text = _MARKUP.sub(lambda found: f"#{ord(found[0])};", text)
    return _RESERVED.sub(lambda found: f"#{ord(found[0][0])};{found[0][1:]}", text) or "#160;"
