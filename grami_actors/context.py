"""The context that hooks run in, and the one that nobody's message is at work in. Floor 7."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

from grami_actors.cell import Cell
from grami_actors.future import current
from grami_actors.messages import Envelope


def clean_context() -> contextvars.Context:
    """A copy of this context without a message at work: what runs in it inherits nothing from who made it."""
    context = contextvars.copy_context()
    context.run(current.set, None)
    return context


@contextlib.contextmanager
def hooking(cell: Cell) -> Iterator[None]:
    """A hook of this actor is at work here: it is the sender of what is sent, and waiting holds it up."""
    envelope = Envelope(None, receiver=cell)
    cell.at_work = envelope
    token = current.set(envelope)
    try:
        yield
    finally:
        # A task that the hook leaves behind does not hold the actor up.
        if cell.at_work is envelope:
            cell.at_work = None
        current.reset(token)
