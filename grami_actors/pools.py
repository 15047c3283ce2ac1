"""Which of several instances gets a message? Floor 7.

A pool is the instances behind one name, and a strategy:

* ``least_busy``: the one with the least to do, in turn among equals;
* ``round_robin``: one after the other;
* ``consistent_hash``: messages with one key go to one member, and a change of the members moves as few keys as it can
  (a ring with virtual nodes: Karger et al., "Consistent Hashing and Random Trees", 1997);
* ``broadcast``: all of them (:meth:`Pool.all`); who asks for one gets the least busy.

A pool is read from any thread: the members are a tuple that is replaced, never changed. Two threads that pick at the
same instant may pick the same member: a turn is a courtesy, not a promise.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Generic, Literal, Protocol, TypeVar, get_args

from grami_actors.errors import AgentUnavailable

PoolStrategy = Literal["least_busy", "round_robin", "consistent_hash", "broadcast"]
"""How a pool chooses."""

VIRTUAL_NODES = 64
"""Places of each member on the ring: their shares of the keys then differ by about an eighth (1/√64)."""

_PREFERENCE = {"running": 0, "paused": 2, "stopping": 3, "stopped": 3}

# A restarting member is none of them: its mailbox is kept, so it keeps its keys and their order.
_GONE = frozenset({"paused", "stopping", "stopped"})


class Member(Protocol):
    """What a pool needs to know of an instance."""

    @property
    def name(self) -> str:
        """Its name, unique in the pool: the same name gets the same keys in every process."""

    @property
    def state(self) -> str:
        """``running``, ``restarting``, ``paused`` ...: the states of an actor's life."""

    @property
    def load(self) -> int:
        """How many messages it has to do."""


M = TypeVar("M", bound=Member)


class _Ring(Generic[M]):
    """The members at their places. Depends on their names only, so it is the same in every process."""

    __slots__ = ("owners", "places")

    def __init__(self, members: Sequence[M]) -> None:
        placed = sorted(
            (_place(f"{member.name}#{number}"), member.name, order)
            for order, member in enumerate(members)
            for number in range(VIRTUAL_NODES)
        )
        self.places = [place for place, _, _ in placed]
        self.owners = [members[order] for _, _, order in placed]

    def find(self, key: str) -> M | None:
        """The first member from the place of the key onwards that can take messages."""
        start = bisect_left(self.places, _place(key))
        for number in range(len(self.owners)):
            owner = self.owners[(start + number) % len(self.owners)]
            if owner.state not in _GONE:
                return owner
        return None


class Pool(Generic[M]):
    """The instances behind one name.

    Args:
        name: of the pool.
        strategy: how it chooses.
        key: what ``consistent_hash`` keeps together, from a message; by default the message's field ``key``, else
            the message. A key is known by its text: a string by itself, anything else by its ``repr``, which has to
            be the same in every process.
    """

    __slots__ = ("_lock", "_ring", "_turn", "key", "members", "name", "strategy")

    def __init__(
        self, name: str, strategy: PoolStrategy = "least_busy", *, key: Callable[[Any], object] | None = None
    ) -> None:
        if strategy not in get_args(PoolStrategy):
            known = ", ".join(get_args(PoolStrategy))
            raise ValueError(f"{name}: {strategy!r} is no strategy of a pool; there are {known}")
        self.name = name
        self.strategy = strategy
        self.key = key
        self.members: tuple[M, ...] = ()
        self._lock = threading.Lock()
        self._ring: _Ring[M] | None = None
        self._turn = 0

    def add(self, member: M) -> None:
        """Add a member; twice is once."""
        with self._lock:
            if member not in self.members:
                self._replace((*self.members, member))

    def remove(self, member: M) -> None:
        """Take a member out, if it is one."""
        with self._lock:
            if member in self.members:
                self._replace(tuple(each for each in self.members if each is not member))

    def _replace(self, members: tuple[M, ...]) -> None:
        self.members = members
        self._ring = None  # made when the next message needs it

    def pick(self, message: Any) -> M:
        """Choose the member for a message.

        Raises:
            AgentUnavailable: none is left, or those that are left rest after too many failures.
        """
        members = self.members
        if all(member.state in _GONE for member in members):
            raise self._unavailable(members)
        if self.strategy == "consistent_hash":
            return self._by_key(message)
        if self.strategy == "round_robin":
            return self._in_turn(members, _rank)
        return self._in_turn(members, lambda member: (_rank(member), member.load))

    def all(self) -> tuple[M, ...]:
        """The members that can take messages.

        Raises:
            AgentUnavailable: none is left, or those that are left rest after too many failures.
        """
        members = self.members
        able = tuple(member for member in members if member.state not in _GONE)
        if not able:
            raise self._unavailable(members)
        return able

    def _in_turn(self, members: tuple[M, ...], rank: Callable[[M], Any]) -> M:
        """The member of the lowest rank, in turn among equals."""
        if len(members) == 1:
            return members[0]
        turn = self._turn % len(members)
        places = [*range(turn, len(members)), *range(turn)]
        chosen: int = min(places, key=lambda place: rank(members[place]))
        self._turn = chosen + 1
        return members[chosen]

    def _by_key(self, message: Any) -> M:
        ring = self._ring
        if ring is None:
            with self._lock:
                ring = self._ring = _Ring(self.members)
        key = _key(message) if self.key is None else self.key(message)
        found = ring.find(key if isinstance(key, str) else repr(key))
        if found is None:
            raise self._unavailable(self.members)
        return found

    def _unavailable(self, members: tuple[M, ...]) -> AgentUnavailable:
        if any(member.state == "paused" for member in members):
            return AgentUnavailable(f"{self.name} failed too often and rests; try again later")
        return AgentUnavailable(f"{self.name} is not running: it failed too often or was stopped")


def _rank(member: Member) -> int:
    return _PREFERENCE.get(member.state, 1)


def _key(message: Any) -> object:
    key = message.get("key") if isinstance(message, Mapping) else getattr(message, "key", None)
    return message if key is None else key


def _place(text: str) -> int:
    # Never Python's hash(): it differs from process to process.
    return int.from_bytes(blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest())
