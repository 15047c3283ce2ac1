"""What a scenario shows while it plays: lines, pieces of text, checks. Floor 16."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from grami_actors.cell import CONNECTION
from grami_actors.history import AnyEntry, Injected, Life, Lost, Remark, Told
from grami_actors.job_requests import JOBS

GENERATE = "generate"
TOOL_CALL = "tool_call"


class Line(msgspec.Struct, frozen=True):
    """One line of the transcript: who said what to whom, and what came of it.

    Attributes:
        at: seconds since the scenario began.
        who: the speaker.
        to: the listener; empty for a remark.
        what: the kind of message.
        text: the message, or the answer, in short.
        outcome: ``ok``, an error code, or empty while it is open.
        seconds: how long it took, where it is known.
    """

    at: float
    who: str
    to: str
    what: str
    text: str = ""
    outcome: str = ""
    seconds: float | None = None


class Piece(msgspec.Struct, frozen=True):
    """Text that is being streamed: not a line yet. ``done`` ends it."""

    key: str
    text: str
    done: bool = False


class Check(msgspec.Struct, frozen=True):
    """Something that a scenario wanted to be true, and whether it was."""

    text: str
    passed: bool
    details: str = ""


def line_of(entry: AnyEntry) -> Line | None:
    """An entry as a line; ``None`` for what is told in another way, or is of no interest."""
    make: Any = _LINES.get(type(entry))
    line: Line | None = None if make is None else make(entry)
    return line


def _of_told(entry: Told) -> Line | None:
    if entry.to.partition("/")[0] == JOBS:
        return _of_job(entry)
    # What else clients ask and get is told by the clients themselves.
    if entry.sender.startswith(CONNECTION):
        return None
    came = f"⇒ {entry.error}" if entry.error else "" if entry.result is None else f"⇒ {summary(entry.result)}"
    text = f"{shortened(asked(entry.type, entry.data), 36)} {came}".strip()
    return Line(entry.at, entry.sender or "somebody", entry.to, entry.type, text, entry.outcome, entry.at - entry.taken)


def _of_job(entry: Told) -> Line | None:
    """What was wanted of a job, when its attempts began, and how they ended; all else is a job's housekeeping."""
    data: dict[str, Any] = entry.data if isinstance(entry.data, dict) else {}
    _, _, job = entry.to.partition("/")
    if job and entry.type in _ATTEMPTS:
        how: dict[str, Any] = data.get("outcome") or {}
        said = how.get("message") or summary(how.get("result") or "")
        return Line(entry.at, job, "", " ".join(filter(None, (entry.type, how.get("kind")))), said)
    if job or entry.type not in _WANTED:
        return None
    came = f"⇒ {entry.error}" if entry.error else f"⇒ {_in_short(entry.result)}"
    wanted = ", ".join(summary(data[name]) for name in _WANTED[entry.type] if data.get(name) not in ("", None, {}))
    return Line(
        entry.at,
        entry.sender or "somebody",
        JOBS,
        entry.type,
        f"{shortened(wanted, 36)} {came}",
        entry.outcome,
        entry.at - entry.taken,
    )


_ATTEMPTS = {"started", "ended"}
_WANTED = {
    "submit_job": ("tool", "arguments"),
    "submit_request": ("message",),
    "cancel_job": ("job",),
    "answer_job": ("job", "answer"),
    "retry_job": ("job",),
}
"""What is told of each request about a job."""


def _in_short(job: Any) -> str:
    """A job, in short."""
    known = job if isinstance(job, dict) else {}
    return f"{known.get('id', 'a job')} {known.get('state', '')}".rstrip()


def _of_life(entry: Life) -> Line | None:
    return Line(entry.at, entry.actor, "", entry.stage, entry.text) if entry.stage in _TOLD else None


def _of_fault(entry: Injected) -> Line:
    return Line(entry.at, entry.names[0], "".join(entry.names[1:2]), f"fault: {entry.fault}", entry.text)


def _of_lost(entry: Lost) -> Line:
    return Line(entry.at, entry.sender or "somebody", entry.to, entry.type, f"lost: {entry.reason}")


def _of_remark(entry: Remark) -> Line:
    return Line(entry.at, entry.who, "", entry.text)


_LINES = {Told: _of_told, Life: _of_life, Injected: _of_fault, Lost: _of_lost, Remark: _of_remark}

_TOLD = {"failed", "restarted", "gave up", "paused"}


def asked(kind: str, data: Any) -> str:
    """What a message asks for, without what is in every message of its kind."""
    if not isinstance(data, dict):
        return summary(data)
    if kind == GENERATE:
        prompt = data.get("prompt") or {}
        last = prompt.get("text") or (prompt.get("messages") or [{}])[-1].get("content", "")
        return "…" + str(last).rstrip().rpartition("\n")[2]
    if kind == TOOL_CALL:
        return ", ".join(shortened(summary(value), 24) for value in (data.get("arguments") or {}).values())
    return summary({name: value for name, value in data.items() if name != "type"})


def shortened(text: str, length: int = 56) -> str:
    """The text, cut to a length in characters."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def summary(value: Any) -> str:
    """A value in one short line."""
    if isinstance(value, msgspec.Struct):
        value = {name: getattr(value, name) for name in value.__struct_fields__}
    if isinstance(value, dict):
        parts = [f"{name}={summary(each)}" for name, each in value.items() if each not in (None, "", [], (), {})]
        return ", ".join(parts)
    if isinstance(value, (list, tuple)):
        return " | ".join(summary(each) for each in value)
    return " ".join(str(value).split())


def many(count: int, one: str, more: str = "") -> str:
    """So many of something, in words."""
    return f"{count:,} {one if count == 1 else more or one + 's'}"


def never_struck(unused: Iterable[str]) -> str:
    """What is said of faults that struck nothing: one of an actor that there is not is among them."""
    return f"never struck: {', '.join(unused)}"


def how_short(preemptions: int, faults: int) -> str:
    """What is said of the run that is shown for one that failed."""
    found = f"{many(preemptions, 'preemption')}, {many(faults, 'fault')}"
    return f"The shortest run found that fails like that is shown: {found}."
