"""A run as one HTML page, to look at in a browser: who sent what to whom, how full the mailboxes were, what failed.

The page holds all that it shows and loads nothing: it can be opened from a disk, mailed and archived. What actors are
called and what messages say is never part of its markup or its script: it is data, and a policy (CSP Level 3,
https://www.w3.org/TR/CSP3/) lets nothing run but the script of the template, by its hash. Floor 15.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections import deque
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import msgspec

from grami_actors.history import AnyEntry, Dice

MOST_ENTRIES = 100_000
"""Entries that a page holds; of a longer run the latest, and the page says how many came before."""

LONGEST_TEXT = 4_000
"""Characters of one name, message, answer or error; of a longer one its beginning."""

MOST_TEXT = 32_000_000
"""Characters of all texts of a page together; messages and answers past it are left out, and the page says so."""

_TIMES = frozenset({"at", "sent", "taken"})
_FLAGS = frozenset({"asked", "handed", "passed"})
_CONTENT = frozenset({"data", "result", "frame", "prompt", "pieces", "arguments"})
_KINDS = [kind for kind in get_args(AnyEntry) if kind is not Dice]  # for the eye
_FIELDS = {kind: [name for name in kind.__struct_fields__ if name != "steps"] for kind in _KINDS}
# What ends a script element, begins a comment or a character reference, or ends a line in some old reader of JSON.
_ESCAPES = {ord(each): f"\\u{ord(each):04x}" for each in "<>&\u2028\u2029"}


def render(title: str, entries: Iterable[AnyEntry], *, facts: Mapping[str, str] = {}) -> str:
    """The page of a run.

    Args:
        title: what the page is called.
        entries: of a history or a recording, in order.
        facts: what else to show of the run above everything, such as its seed, each with its name.
    """
    every = 0
    kept: deque[AnyEntry] = deque(maxlen=MOST_ENTRIES)
    for entry in entries:
        if isinstance(entry, Dice):
            continue
        every += 1
        kept.append(entry)
    texts = _Texts()
    rows = [_row(entry, texts) for entry in kept]
    data = {
        "title": _sound(title),
        "facts": [[_sound(name), _sound(value)] for name, value in facts.items()],
        "kinds": [kind.__struct_config__.tag for kind in _FIELDS],
        "fields": list(_FIELDS.values()),
        "entries": rows,
        "texts": list(texts.numbers),
        "before": every - len(kept),
        "emptied": texts.emptied,
    }
    return _page(_sound(title), msgspec.json.encode(data).decode().translate(_ESCAPES))


def write(path: Path | str, title: str, entries: Iterable[AnyEntry], *, facts: Mapping[str, str] = {}) -> None:
    """Write the page of a run to a file; see :func:`render`.

    Raises:
        OSError: the file cannot be written.
    """
    Path(path).write_text(render(title, entries, facts=facts), encoding="utf-8")


class _Texts:
    """All texts of a page, each once; entries say its number."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {"": 0}
        self.emptied = 0
        self._size = 0

    def number(self, text: str) -> int:
        """The number of a text, which is shortened if it is too long."""
        text = _sound(text)
        number = self.numbers.setdefault(text, len(self.numbers))
        if number == len(self.numbers) - 1:
            self._size += len(text)
        return number

    def number_of_content(self, value: Any) -> int:
        """The number of a message or an answer, as JSON."""
        if value is None:
            return 0
        if self._size > MOST_TEXT:
            self.emptied += 1
            return self.number("(left out)")
        return self.number(_written(value))


def _written(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError) as error:
        return f"<{type(value).__name__} that JSON has no words for: {type(error).__name__}>"


def _sound(text: str) -> str:
    """A text that is not too long and has no half characters, which UTF-8 has no bytes for."""
    length = len(text)
    if length > LONGEST_TEXT:
        text = f"{text[:LONGEST_TEXT]}… ({length:,} characters)"
    return text.encode("utf-8", "replace").decode()


def _row(entry: AnyEntry, texts: _Texts) -> list[Any]:
    """An entry as numbers: its kind, then its fields; those at the end that are zero, false or empty are left out."""
    row: list[Any] = [list(_FIELDS).index(type(entry))]
    for name in _FIELDS[type(entry)]:
        value = getattr(entry, name)
        if name in _TIMES:
            row.append(round(value * 1e6))
        elif name in _FLAGS:
            row.append(None if value is None else int(value))
        elif name in _CONTENT:
            row.append(texts.number_of_content(value))
        elif isinstance(value, tuple):
            row.append([texts.number(each) for each in value])
        else:
            row.append(texts.number(value))
    while len(row) > 1 and row[-1] == 0:
        row.pop()
    return row


def _page(title: str, data: str) -> str:
    template = resources.files("grami_actors.recording").joinpath("report.html").read_text(encoding="utf-8")
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {_digest(template, 'script')}",
            f"style-src {_digest(template, 'style')}",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
        )
    )
    parts = {"POLICY": policy, "TITLE": html.escape(title), "DATA": data}
    # In one pass: what is put in is never looked at again.
    return re.sub(r"\{\{(POLICY|TITLE|DATA)\}\}", lambda found: parts[found[1]], template)


def _digest(template: str, element: str) -> str:
    """The hash of the only element of a kind that has no attributes, as a policy names it."""
    _, _, rest = template.partition(f"<{element}>")
    content, _, _ = rest.partition(f"</{element}>")
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
