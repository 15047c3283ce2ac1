"""Who gets a message: names, pools, message types and topics; and the actor that forwards for clients. Floor 7.

The table is plain data and is read from any thread; it is changed by replacing entries, never by changing a list
that somebody may be reading: names and pools only on the home loop, topics under a lock from any thread. The
:class:`Router` actor is one turn over that table: it runs no user code, awaits nothing and makes no task per
message, so order is kept.
"""

from __future__ import annotations

import threading
from typing import Any

import msgspec

from grami_actors.actor import Actor
from grami_actors.cell import Cell
from grami_actors.errors import AgentUnavailable, DestinationNotFound, GramiError, NameTaken
from grami_actors.messages import Envelope


class Forward(msgspec.Struct, frozen=True):
    """Ask the router to hand an envelope on. ``to`` empty: by the type of the message."""

    envelope: Envelope
    to: str = ""


class Pool:
    """The instances behind one name. A message goes to the one with the least to do, in turn among equals."""

    __slots__ = ("cells", "name", "turn")

    def __init__(self, name: str) -> None:
        self.name = name
        self.cells: tuple[Cell, ...] = ()
        self.turn = 0

    def pick(self) -> Cell:
        """Choose an instance. Raises AgentUnavailable when none is left."""
        cells = self.cells
        if not cells:
            raise AgentUnavailable(f"{self.name} is not running: it failed too often or was stopped")
        if all(cell.state == "paused" for cell in cells):
            raise AgentUnavailable(f"{self.name} failed too often and rests; try again later")
        if len(cells) == 1:
            return cells[0]
        turn = self.turn % len(cells)
        places = [*range(turn, len(cells)), *range(turn)]
        chosen: int = min(places, key=lambda place: _load(cells[place]))
        self.turn = chosen + 1
        return cells[chosen]


_PREFERENCE = {"running": 0, "paused": 2}


def _load(cell: Cell) -> tuple[int, int]:
    return _PREFERENCE.get(cell.state, 1), len(cell.mailbox) + cell.working


class RoutingTable:
    """Names to cells, pools to their cells, message types to names, topics to subscribers; what clients may name."""

    def __init__(self) -> None:
        self.cells: dict[str, Cell] = {}
        self.pools: dict[str, Pool] = {}
        self.types: dict[type, str] = {}
        self.topics: dict[str, tuple[Cell, ...]] = {}
        self.public: set[str] = set()
        self._topics_lock = threading.Lock()

    def claim(self, name: str, cell: Cell) -> None:
        """Give a name to a cell. Raises NameTaken."""
        if name in self.cells:
            raise NameTaken(f"the name {name!r} is taken in this system; names are unique")
        self.cells[name] = cell

    def join(self, pool: str, cell: Cell, *, public: bool = True) -> None:
        """Add a cell to a pool, which keeps its name when all its cells are gone.

        Clients may address both, unless it is not ``public``.
        """
        if public:
            self.public.update((pool, cell.name))
        found = self.pools.setdefault(pool, Pool(pool))
        found.cells = (*found.cells, cell)

    def subscribe(self, topic: str, cell: Cell) -> None:
        """Add a subscriber; twice is once."""
        with self._topics_lock:
            cells = self.topics.get(topic, ())
            if cell not in cells:
                self.topics[topic] = (*cells, cell)

    def remove(self, cell: Cell) -> None:
        """Forget a cell everywhere."""
        if self.cells.get(cell.name) is cell:
            del self.cells[cell.name]
            if cell.name not in self.pools:
                self.public.discard(cell.name)  # whoever has the name next may be private
        for pool in self.pools.values():
            if cell in pool.cells:
                pool.cells = tuple(each for each in pool.cells if each is not cell)
        with self._topics_lock:
            for topic, cells in tuple(self.topics.items()):
                left = tuple(each for each in cells if each is not cell)
                if left:
                    self.topics[topic] = left
                else:
                    del self.topics[topic]

    def find(self, to: str, message: Any) -> Cell:
        """The cell for a message: by name, or by its type when ``to`` is empty.

        Raises:
            DestinationNotFound: nothing has this name, or nothing handles this type.
            AgentUnavailable: the pool of this name has nobody left.
        """
        name = to or self.types.get(type(message), "")
        pool = self.pools.get(name)
        if pool is not None:
            return pool.pick()
        cell = self.cells.get(name)
        if cell is None:
            wanted = f"no agent or tool is named {to!r}" if to else f"no agent handles {type(message).__name__}"
            if to == "tool:model":
                wanted = "this swarm has no language model: give it one with Swarm(..., model=model_from_environment)"
            raise DestinationNotFound(wanted)
        return cell


class Router(Actor):
    """Forwards what clients send. Its replies go straight from the agent to the connection, not through here."""

    # Bounded by what the connections may have in flight, so the router itself never refuses.
    mailbox = 1_000_000

    def __init__(self, table: RoutingTable) -> None:
        super().__init__()
        self._table = table

    def on_receive(self, message: Any) -> None:
        """Hand the envelope of a :class:`Forward` on, or answer it with what is wrong."""
        if not isinstance(message, Forward):
            raise GramiError(f"the router forwards, and a {type(message).__name__} is nothing to forward")
        envelope = message.envelope
        try:
            if message.to and message.to not in self._table.public:
                # The router itself, other clients' connections and children are nobody's business.
                raise DestinationNotFound(f"no agent or tool is named {message.to!r}")
            cell = self._table.find(message.to, envelope.message)
            # A client's requests may wait for room: their number is bounded by the gateway.
            cell.post(envelope, park=_nobody)
            if envelope.scope is not None and len(cell.mailbox) >= cell.mailbox.capacity:
                # Who sends and cancels, over and over, must not fill the memory behind a busy agent.
                envelope.scope.on_cancel(lambda _: cell.mailbox.withdraw(envelope))
        except GramiError as refused:
            if envelope.reply_to is not None:
                envelope.reply_to.fail(refused)


def _nobody() -> None:
    """Nobody waits for a client's request to be admitted: its answer is the word."""
