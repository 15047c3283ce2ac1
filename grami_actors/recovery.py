"""One restart under way, and who takes part in it. Floor 7."""

from __future__ import annotations

import asyncio

from grami_actors.cell import Cell

ALIVE = frozenset({"running", "suspended"})
DOWN = frozenset({"restarting", "paused"})
"""States of those that live, and of those that are to live again."""


class ChildGaveUp(Exception):
    """A child failed more often than its policy allows; the failure escalates to its parent."""


class Recovery:
    """One restart under way.

    Attributes:
        failed: the actor whose failure it is about.
        cells: who is restarted, in the order of their start.
        task: what does it.
    """

    __slots__ = ("cells", "failed", "task")

    def __init__(self, failed: Cell, cells: list[Cell]) -> None:
        self.failed = failed
        self.cells = cells
        self.task: asyncio.Task[None] | None = None

    def leave(self, cell: Cell) -> None:
        """The cell goes another way; a recovery of nobody ends."""
        cell.recovery = None
        self.cells.remove(cell)
        if not self.cells and self.task is not None:
            self.task.cancel()


def group(cell: Cell) -> list[Cell]:
    """Who is restarted when this actor fails, in the order of their start."""
    parent = cell.parent
    if parent is None or parent.spec.kind.strategy == "one_for_one":
        return [cell]
    siblings = list(parent.children.values())
    if parent.spec.kind.strategy == "rest_for_one":
        siblings = siblings[siblings.index(cell) :]
    return [each for each in siblings if each.state in ALIVE | DOWN]
