"""How an actor is made and lives: its specification, and the states of its life. Data only. Floor 4."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from grami_actors.mailbox import CAPACITY, Overflow
from grami_actors.restarts import RestartPolicy

LaneName = Literal["loop", "thread", "process"]

Keep = Literal["permanent", "transient", "temporary"]
"""When a child is restarted (https://www.erlang.org/doc/system/sup_princ#restart-strategy): ``permanent`` always, also
when it stops itself; ``transient`` when it fails; ``temporary`` never."""

Strategy = Literal["one_for_one", "one_for_all", "rest_for_one"]
"""Who is restarted when a child fails: it alone, all children, or it and those that were started after it."""

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
        if self.concurrency < 1:
            raise ValueError(f"concurrency is at least 1, not {self.concurrency}")
