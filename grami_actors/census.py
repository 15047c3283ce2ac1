"""Who lives in a system, as plain data. Floor 7."""

from __future__ import annotations

import msgspec

from grami_actors.cell import Cell
from grami_actors.mailbox import Statistics
from grami_actors.spec import LaneName


class ActorInfo(msgspec.Struct, frozen=True):
    """A line of :meth:`ActorSystem.tree`."""

    name: str
    kind: str
    lane: LaneName
    state: str
    restarts: int
    mailbox: Statistics
    children: tuple[ActorInfo, ...]


def describe_actor(cell: Cell) -> ActorInfo:
    """An actor, and all below it."""
    return ActorInfo(
        name=cell.name,
        kind=cell.spec.kind.__name__,
        lane=cell.lane.name,
        state=cell.state,
        restarts=cell.restarts,
        mailbox=cell.mailbox.statistics(),
        children=tuple(describe_actor(child) for child in cell.children.values()),
    )
