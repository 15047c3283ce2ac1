"""Which faults there are: rules, given by a script or drawn from a profile. Data and decisions only. Floor 14."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any, Literal, TypedDict

import msgspec

from grami_actors.agent import Agent
from grami_actors.cell import CONNECTION, Cell
from grami_actors.messages import Envelope
from grami_actors.telemetry import Event
from grami_actors.tool_actors import ToolActor

When = Literal["before", "during", "after"]
"""Where a crash comes: before the handler, at one of its awaits, or when its work is done and nobody was answered."""

Effect = Callable[["Rule", Cell, Envelope, float], bool]
"""What happens to a message; whether its handler is run now."""


Names = tuple[str, ...]
"""What an actor goes by: its name, and what a script calls the client at its end."""


class Which(TypedDict, total=False):
    """Which of the messages between those that are named a rule strikes.

    Attributes:
        kind: their class, or a tuple of classes; all if not given.
        on_message: the first one that it strikes, counted from 1 among those that fit; 1 if not given.
        times: how many in a row; ``None`` for all; 1 if not given.
    """

    kind: type[Any] | tuple[type[Any], ...]
    on_message: int
    times: int | None


class Rule(msgspec.Struct, eq=False, kw_only=True):
    """One fault: whom it strikes, how often, and what happens.

    Attributes:
        fault: what it is called (:class:`grami_actors.history.Injected`).
        sender: a pattern (``*``, ``?``) of names; an empty one fits what comes from outside, and that only.
        to: a pattern of the receiver's name.
        effect: what happens.
        end: takes back what it still does.
        asked: whether it only strikes what is asked.
        seconds: how long it takes.
        detail: more about it, for people.
        struck: how often it has struck.

    Raises:
        TypeError: ``kind`` is no class.
        ValueError: it would strike before the first message, or less than never.
    """

    fault: str
    effect: Effect
    end: Callable[[Rule], None]
    to: str
    sender: str = "*"
    kind: Any = object
    on_message: int = 1
    times: int | None = 1
    asked: bool = False
    seconds: Callable[[], float] | None = None
    detail: str = ""
    seen: int = 0
    struck: int = 0

    def __post_init__(self) -> None:
        kinds = self.kind if isinstance(self.kind, tuple) else (self.kind,)
        if not all(isinstance(each, type) for each in kinds):
            raise TypeError(f"kind={self.kind!r}: a class of messages is meant, or several")
        if self.on_message < 1 or (self.times is not None and self.times < 0):
            raise ValueError(f"on_message={self.on_message}, times={self.times}: messages are counted from 1 on")

    def undo(self) -> None:
        """Strike no more; what is held goes on, what is full has room, what was parted is healed."""
        self.end(self)

    def fits(self, sender: Names, to: Names) -> bool:
        """Whether it is about what one sends to the other."""
        return _any(to, (self.to,)) and _any(sender, (self.sender,))

    def due(self, envelope: Envelope, sender: Names, to: Names) -> bool:
        """Whether it strikes this message, which is counted."""
        if not self.fits(sender, to) or not isinstance(envelope.message, self.kind):
            return False
        if self.asked and envelope.reply_to is None:
            return False
        self.seen += 1
        return self.seen >= self.on_message and (self.times is None or self.struck < self.times)

    def __str__(self) -> str:
        whom = f"{self.sender!r} to {self.to!r}" if self.sender != "*" else repr(self.to)
        return " ".join(filter(None, (self.fault, self.detail, whom)))


class Partition(Rule, eq=False, kw_only=True):
    """The rule of two groups that do not hear each other. ``to`` is one group, for people."""

    groups: tuple[tuple[str, ...], tuple[str, ...]]

    def fits(self, sender: Names, to: Names) -> bool:
        """Whether the one is in one group, and the other in the other."""
        one, other = self.groups
        return (_any(sender, one) and _any(to, other)) or (_any(sender, other) and _any(to, one))


def _any(names: Names, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)


MOST = 5
"""Faults of one run, unless a profile says otherwise: more of them hide what one of them did."""

LONGEST = {"delay": 2.0, "stall": 5.0}
"""Seconds that they take at most."""


class Profile(msgspec.Struct, frozen=True):
    """How likely each fault is at each message that an actor takes.

    Attributes:
        name: of the profile.
        chances: by the name of the fault; they sum to 1 at most. Of 20 messages one or two are struck.
        most: faults of one run.
    """

    name: str
    chances: dict[str, float] = {}
    most: int = MOST


_CRASH = ("crash before", "crash during", "crash after")

PROFILES = {
    profile.name: profile
    for profile in (
        Profile("none"),
        Profile("crash", dict.fromkeys(_CRASH, 0.025)),
        Profile("slow", {"delay": 0.05, "stall": 0.025}),
        Profile("lossy", {"drop": 0.03, "drop reply": 0.02, "delay": 0.03}),
        Profile("duplicate", {"duplicate": 0.075}),
        Profile(
            "chaos",
            dict.fromkeys((*_CRASH, "drop", "drop reply", "delay", "stall", "duplicate"), 0.01),
        ),
    )
}
"""The profiles that there are. None of them breaks the order of one sender's messages."""


_ON_THE_WAY = frozenset({"drop", "drop reply", "delay", "duplicate"})


def eligible(fault: str, cell: Cell, envelope: Envelope) -> bool:
    """Whether a fault may strike by chance: not clients' connections, nor the news that actors observe."""
    if cell.name.startswith(CONNECTION) or isinstance(envelope.message, Event):
        return False
    if fault in _CRASH:  # only who is restarted
        return cell.spec.keep != "temporary" and issubclass(cell.spec.kind, (Agent, ToolActor))
    inside = envelope.sender == cell.name or not (envelope.sender or cell.spec.kind.listed)
    if fault in _ON_THE_WAY and inside:  # its own timer's, or what an attempt says to its own actor: it crosses nothing
        return False
    return fault != "drop reply" or envelope.reply_to is not None
