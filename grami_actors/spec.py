"""How an actor is made and lives: its specification, and the states of its life. Data only. Floor 4."""

from __future__ import annotations

from typing import Any, Literal, get_args

import msgspec

from grami_actors.mailbox import CAPACITY, Overflow
from grami_actors.restarts import RestartPolicy

LaneName = Literal["loop", "thread", "process"]

Keep = Literal["permanent", "transient", "temporary"]
"""When a child is restarted (https://www.erlang.org/doc/system/sup_princ#restart-strategy): ``permanent`` always, also
when it stops itself; ``transient`` when it fails; ``temporary`` never."""

Strategy = Literal["one_for_one", "one_for_all", "rest_for_one"]
"""Who is restarted when a child fails: it alone, all children, or it and those that were started after it."""

_LANES, _OVERFLOWS, _KEEPS, STRATEGIES = (get_args(words) for words in (LaneName, Overflow, Keep, Strategy))

GRACE = 5.0
"""Seconds that a stopping actor's handler and ``on_stop`` get before they are interrupted."""

LIFECYCLE: dict[str, dict[str, str]] = {
    "starting": {"started": "running", "start_failed": "stopped", "stop": "stopping"},
    "running": {"failed": "restarting", "suspend": "suspended", "stop": "stopping"},
    "suspended": {"failed": "restarting", "resume": "running", "stop": "stopping"},
    "restarting": {"started": "running", "paused": "paused", "stop": "stopping"},
    "paused": {"retry": "restarting", "stop": "stopping"},
    "stopping": {"stopped": "stopped"},
    "stopped": {},
}
"""State, event, next state. Everything else is an error."""


class Spec(msgspec.Struct, frozen=True):
    """How to make an actor, again and again: plain data that a restart reads.

    Attributes:
        kind: the actor class.
        args: positional arguments of its constructor.
        kwargs: keyword arguments of its constructor.
        lane, mailbox, overflow, concurrency, restart: see :class:`grami_actors.actor.Actor`.
        keep: when it is restarted.
        grace: seconds that it gets to stop, unless whoever stops it says otherwise.
    """

    kind: type[Any]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    lane: LaneName = "loop"
    mailbox: int = CAPACITY
    overflow: Overflow = "reject"
    concurrency: int = 1
    restart: RestartPolicy = RestartPolicy()
    keep: Keep = "transient"
    grace: float = GRACE

    def __post_init__(self) -> None:
        name = getattr(self.kind, "__name__", repr(self.kind))
        for value, known in ((self.lane, _LANES), (self.overflow, _OVERFLOWS), (self.keep, _KEEPS)):
            if value not in known:
                raise ValueError(f"{name}: {value!r} is none of {', '.join(known)}")
        for number in (self.mailbox, self.concurrency):
            if not isinstance(number, int) or number < 1:
                raise ValueError(f"{name}: mailbox and concurrency are whole numbers of at least 1, not {number!r}")
        if not isinstance(self.restart, RestartPolicy):
            raise TypeError(f"{name}: restart is a RestartPolicy, not {self.restart!r}")
        if not self.grace >= 0:
            raise ValueError(f"{name}: grace is a number of seconds from 0 on, not {self.grace!r}")
