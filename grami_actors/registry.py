"""Our actors in Pykka's process-wide registry, so that its lookups and broadcasts find them. Floor 7.

It is a view for code that knows Pykka: nothing here looks anything up in it. Pykka keeps a list, in which finding or
removing one of n actors takes n steps; stopping many would be quadratic. The list is replaced by :class:`Refs`, which
has the part of a list's interface that the registry uses, in constant time. That helps Pykka's own actors too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pykka import ActorRef, ActorRegistry


class Refs:
    """An ordered set of refs that passes for a list."""

    def __init__(self, refs: Iterable[ActorRef[Any]] = ()) -> None:
        self._refs = dict.fromkeys(refs)

    def append(self, ref: ActorRef[Any]) -> None:
        """Add one at the end."""
        self._refs[ref] = None

    def remove(self, ref: ActorRef[Any]) -> None:
        """Take one out; raises ValueError if it is not there."""
        try:
            del self._refs[ref]
        except KeyError:
            raise ValueError(f"{ref} is not registered") from None

    def __contains__(self, ref: object) -> bool:
        return ref in self._refs

    def __iter__(self) -> Iterator[ActorRef[Any]]:
        return iter(self._refs)

    def __len__(self) -> int:
        return len(self._refs)

    def __getitem__(self, part: slice) -> list[ActorRef[Any]]:
        return list(self._refs)[part]


def install() -> None:
    """Replace the registry's list, once."""
    with ActorRegistry._actor_refs_lock:
        if not isinstance(ActorRegistry._actor_refs, Refs):
            ActorRegistry._actor_refs = Refs(ActorRegistry._actor_refs)  # type: ignore[assignment]


def register(ref: ActorRef[Any]) -> None:
    """Add an actor that has started. Quicker than Pykka's own method, which writes a log line each time."""
    with ActorRegistry._actor_refs_lock:
        ActorRegistry._actor_refs.append(ref)


def unregister(ref: ActorRef[Any]) -> None:
    """Take it out, if it is in."""
    with ActorRegistry._actor_refs_lock:
        if ref in ActorRegistry._actor_refs:
            ActorRegistry._actor_refs.remove(ref)
