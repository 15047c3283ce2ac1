"""Who gets a message: names, pools, message types and topics; and the actor that forwards for clients. Floor 9.

The table is plain data and is read from any thread; it is changed by replacing entries, never by changing a list
that somebody may be reading: names and pools only on the home loop, topics from any thread. The
:class:`Router` actor is one turn over that table: it runs no user code, awaits nothing and makes no task per
message, so order is kept.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from grami_actors.actor import Actor
from grami_actors.budget import Budget, Meter
from grami_actors.cell import Cell
from grami_actors.errors import AgentUnavailable, DestinationNotFound, GramiError, NameTaken
from grami_actors.future import Future, handled
from grami_actors.guard import Guard
from grami_actors.messages import Envelope, ReplyTo
from grami_actors.pools import Pool, PoolStrategy
from grami_actors.topics import Topics


class Forward(msgspec.Struct, frozen=True):
    """Ask the router to hand an envelope on. ``to`` empty: by the type of the message."""

    envelope: Envelope
    to: str = ""


class Fanout:
    """All members of a pool that is ``broadcast``: a tell goes to each, an ask is answered with the list of answers."""

    __slots__ = ("_pool",)

    def __init__(self, pool: Pool[Cell]) -> None:
        self._pool = pool

    @property
    def name(self) -> str:
        """The name of the pool."""
        return self._pool.name

    def cells(self) -> tuple[Cell, ...]:
        """The members. Raises AgentUnavailable when none is left."""
        return self._pool.all()

    def tell(self, message: Any) -> None:
        """Send to each. Raises what the first one that refuses raises, after all the others have it."""
        self._each(lambda cell: cell.tell(message))

    def tell_detached(self, message: Any) -> None:
        """The same, but the message does not belong to the request being handled."""
        self._each(lambda cell: cell.tell_detached(message))

    async def send(self, message: Any) -> None:
        """Send to each, one after another waiting for room."""
        for cell in self._pool.all():
            await cell.send(message)

    def ask(
        self,
        message: Any,
        timeout: float | None = None,
        future: Future[Any] | None = None,
        budget: Budget | Meter | None = None,
    ) -> Future[Any]:
        """Ask each; the answer is the list of all answers in the order of the instances, or the first error."""
        gathered = Gathered() if future is None else future
        try:
            cells = self._pool.all()
        except AgentUnavailable as nobody:
            gathered.fail(nobody)
            return gathered
        here = handled()
        if budget is not None:  # one for all of them
            meter: Any = None if here is None or here.scope is None else here.scope.meter
            budget = Meter(budget, meter, on_exhausted=gathered.cancel) if isinstance(budget, Budget) else budget
        asked = [cell.ask(message, timeout, None, budget) for cell in cells]
        if isinstance(gathered, Gathered):
            gathered.asked = asked
        gathered.on_cancel(lambda reason: [each.cancel(reason) for each in asked])
        _gather(asked, gathered)
        return gathered

    def post_parked(self, envelope: Envelope) -> None:
        """What a client sends, to each."""
        cells = self._pool.all()
        if envelope.reply_to is None:
            self._each(lambda cell: cell.post_parked(msgspec.structs.replace(envelope)))
            return
        answers = [Future[Any]() for _ in cells]
        for cell, answer in zip(cells, answers, strict=True):
            answer.bind(cell, envelope.scope, math.inf, True)
            try:
                cell.post_parked(msgspec.structs.replace(envelope, reply_to=answer, scope=answer))
            except AgentUnavailable as refused:
                answer.fail(refused)
        _gather(answers, envelope.reply_to)

    def _each(self, send: Callable[[Cell], object]) -> None:
        refusal: GramiError | None = None
        for cell in self._pool.all():
            try:
                send(cell)
            except GramiError as refused:
                refusal = refusal or refused
        if refusal is not None:
            raise refusal


def _gather(answers: list[Future[Any]], into: ReplyTo) -> None:
    """Answer with the values of all futures, or with the first error among them."""
    left = len(answers)
    lock = threading.Lock()

    def arrived(answer: Future[Any]) -> None:
        nonlocal left
        error = answer.error()
        if error is not None:
            into.fail(error)
        with lock:
            left -= 1
            last = left == 0
        if last:
            into.set_result([each.value() for each in answers])

    for answer in answers:
        answer.on_done(partial(arrived, answer))


class Gathered(Future[Any]):
    """The answers of all members of a pool; who waits for it waits for each of them."""

    asked: Sequence[Future[Any]] = ()

    def _begin_waiting(self) -> Envelope | None:
        edges = [each._begin_waiting() for each in self.asked]  # noqa: SLF001 - of the same kind
        return next((here for here in edges if here is not None), None)

    def _end_waiting(self, here: Envelope | None) -> None:
        for each in self.asked:
            each._end_waiting(here)  # noqa: SLF001


class RoutingTable:
    """Names to cells, pools to their cells, message types to names, topics to subscribers; what clients may name."""

    def __init__(self) -> None:
        self.cells: dict[str, Cell] = {}
        self.pools: dict[str, Pool[Cell]] = {}
        self.types: dict[type, str] = {}
        self.topics: Topics[Cell] = Topics()
        self.public: set[str] = set()

    def claim(self, name: str, cell: Cell) -> None:
        """Give a name to a cell. Raises NameTaken."""
        if self.cells.setdefault(name, cell) is not cell:
            raise NameTaken(f"the name {name!r} is taken in this system; names are unique")

    def join(
        self,
        pool: str,
        cell: Cell,
        *,
        public: bool = True,
        strategy: PoolStrategy = "least_busy",
        key: Callable[[Any], object] | None = None,
    ) -> None:
        """Add a cell to a pool, which keeps its name when all its cells are gone; the first one says how it chooses.

        Clients may address both, unless it is not ``public``.
        """
        if public:
            self.public.update((pool, cell.name))
        if pool not in self.pools:
            self.pools[pool] = Pool(pool, strategy, key=key)
        self.pools[pool].add(cell)

    def remove(self, cell: Cell) -> None:
        """Forget a cell everywhere."""
        if self.cells.get(cell.name) is cell:
            del self.cells[cell.name]
            if cell.name not in self.pools:
                self.public.discard(cell.name)  # whoever has the name next may be private
        for pool in self.pools.values():
            if cell in pool.members:
                pool.remove(cell)
        self.topics.remove(cell)

    def name_of(self, to: str, message: Any) -> str:
        """The name that a message is addressed to: ``to``, or where its type is routed; empty for nowhere."""
        return to or self.types.get(type(message), "")

    def find(self, to: str, message: Any) -> Cell | Fanout:
        """Who gets a message: by name, or by its type when ``to`` is empty.

        Raises:
            DestinationNotFound: nothing has this name, or nothing handles this type.
            AgentUnavailable: the pool of this name has nobody left.
        """
        name = self.name_of(to, message)
        pool = self.pools.get(name)
        if pool is not None:
            return Fanout(pool) if pool.strategy == "broadcast" else pool.pick(message)
        cell = self.cells.get(name)
        if cell is None:
            wanted = f"no agent or tool is named {to!r}" if to else f"no agent handles {type(message).__name__}"
            if to == "tool:model":
                wanted = "this swarm has no language model: give it one with Swarm(..., model=model_from_environment)"
            raise DestinationNotFound(wanted)
        return cell


class Router(Actor):
    """Forwards what clients send. Its replies go straight from the agent to the connection, not through here.

    Args:
        table: who gets a message.
        guard: who may send one; without it, everybody.
    """

    # Bounded by what the connections may have in flight, so the router itself never refuses.
    mailbox = 1_000_000
    listed = False

    def __init__(self, table: RoutingTable, guard: Guard | None = None) -> None:
        super().__init__()
        self._table = table
        self._guard = guard

    def on_receive(self, message: Any) -> None:
        """Hand the envelope of a :class:`Forward` on, or answer it with what is wrong."""
        if not isinstance(message, Forward):
            raise GramiError(f"the router forwards, and a {type(message).__name__} is nothing to forward")
        envelope = message.envelope
        try:
            if self._guard is not None:  # first: what a client may not name is no more there than what is not there
                name = self._table.name_of(message.to, envelope.message)
                self._guard.check_request(envelope.scope, envelope.message, message.to, name)
            if message.to and message.to not in self._table.public:
                # The router itself, other clients' connections and children are nobody's business.
                raise DestinationNotFound(f"no agent or tool is named {message.to!r}")
            found = self._table.find(message.to, envelope.message)
            # A client's requests may wait for room: their number is bounded by the gateway.
            found.post_parked(envelope)
            if isinstance(found, Cell) and envelope.scope is not None and found.full:
                # Who sends and cancels, over and over, must not fill the memory behind a busy agent.
                envelope.scope.on_cancel(lambda _: found.mailbox.withdraw(envelope))
        except GramiError as refused:
            if envelope.reply_to is not None:
                envelope.reply_to.fail(refused)
