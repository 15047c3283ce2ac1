"""The actor system: lanes, supervisor, router and names under one roof, with no global state. Floor 8."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from grami_actors.actor import Actor
from grami_actors.cell import CONNECTION, Cell, LaneName, Ref, Spec
from grami_actors.errors import AgentCrashed, ShuttingDown
from grami_actors.future import Future
from grami_actors.lanes.loop import LoopLane
from grami_actors.lanes.thread import THREADS, ThreadLane
from grami_actors.mailbox import Statistics
from grami_actors.messages import snake_case
from grami_actors.router import Router, RoutingTable
from grami_actors.supervisor import GRACE, Supervisor
from grami_actors.telemetry import Bus

A = TypeVar("A", bound=Actor)


class ActorInfo(msgspec.Struct, frozen=True):
    """A line of :meth:`ActorSystem.tree`."""

    name: str
    kind: str
    lane: LaneName
    state: str
    restarts: int
    mailbox: Statistics
    children: tuple[ActorInfo, ...]


class ActorSystem:
    """Actors that can find each other by name. Use it as an async context manager.

    ::

        async with ActorSystem() as system:
            ref = await system.spawn(Greeter, name="greeter")
            print(await system.ask("greeter", "hello"))

    Two systems in one process share nothing. Leaving the context stops all actors, the last started first.

    Args:
        clock: seconds, monotonic.
        rng: where jitter and ids come from; seed it to repeat a run.
        threads: bound of the thread lane.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        threads: int = THREADS,
    ) -> None:
        self.bus = Bus()
        self.table = RoutingTable()
        self.now = clock
        self._rng = rng or random.Random()
        self._threads = threads
        self._counter = 0
        self._closing = False
        self._id = f"{self._rng.getrandbits(64):016x}"

    async def __aenter__(self) -> Self:
        self.loop = asyncio.get_running_loop()
        self._home = threading.get_ident()
        self._lanes: dict[LaneName, LoopLane | ThreadLane] = {
            "loop": LoopLane(self.loop, self.now),
            "thread": ThreadLane(self.loop, self.now, self._threads),
        }
        self._supervisor = Supervisor(self, self._rng.random)
        self.router = await self.spawn(Router, self.table, name="router")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self, grace: float = GRACE) -> None:
        """Stop all actors, children first, the last started first; ``grace`` seconds for each."""
        self._closing = True
        while roots := [cell for cell in self.table.cells.values() if cell.parent is None]:
            await asyncio.shield(self._supervisor.stop(roots[-1], grace))
        await self._supervisor.close()

    # --- for users ---

    async def spawn(
        self, kind: type[A], *args: Any, name: str | None = None, parent: Cell | None = None, **kwargs: Any
    ) -> Ref[A]:
        """Start an actor; returns when its ``on_start`` has succeeded.

        Args:
            kind: the actor class; the rest are its constructor's arguments.
            name: its name; made from the class if not given. A child's name has its parent's in front.
            parent: for children, which are stopped with their parent (``self.spawn`` gives it).

        Raises:
            StartFailed: the constructor or ``on_start`` raised.
            NameTaken: the name is in use.
            ShuttingDown: the system is closing.
        """
        spec = Spec(
            kind=kind,
            args=args,
            kwargs=kwargs,
            lane=kind.lane,
            mailbox=kind.mailbox,
            overflow=kind.overflow,
            concurrency=kind.concurrency,
            restart=kind.restart,
        )
        return await self.spawn_spec(spec, name=name, parent=parent)

    async def spawn_spec(self, spec: Spec, *, name: str | None = None, parent: Cell | None = None) -> Ref[Any]:
        """Start an actor from its specification; see :meth:`spawn`."""
        work = self._spawn(spec, name, parent)
        if threading.get_ident() == self._home:
            return await work
        # A handler on the thread lane spawns: the life of actors belongs to the home loop.
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self.loop))

    async def _spawn(self, spec: Spec, name: str | None, parent: Cell | None) -> Ref[Any]:
        if self._closing or (parent is not None and parent.state not in {"starting", "running", "restarting"}):
            raise ShuttingDown("the system is closing and starts no new actors")
        self._counter += 1
        name = name or f"{snake_case(spec.kind.__name__)}-{self._counter}"
        if parent is not None:
            name = f"{parent.name}/{name}"
        cell = Cell(self, self._lanes[spec.lane], spec, name, f"urn:grami:{self._id}:{self._counter}", parent)
        self.table.claim(name, cell)
        if parent is not None:
            parent.children[name] = cell
        await self._supervisor.start(cell)
        return cell.ref

    async def ask(self, to: str | Ref[Any], message: Any, *, timeout: float | None = None) -> Any:
        """Send and wait for the answer; see :meth:`Ref.ask` for what it raises."""
        cell = self.resolve(to, message) if isinstance(to, str) else to._cell
        return await cell.ask(message, timeout=timeout)

    def tell(self, to: str | Ref[Any], message: Any) -> None:
        """Send without waiting for an answer; see :meth:`Ref.tell` for what it raises."""
        cell = self.resolve(to, message) if isinstance(to, str) else to._cell
        cell.tell(message)

    async def stop(self, to: str | Ref[Any], *, grace: float = GRACE) -> bool:
        """Stop an actor, or all of a pool, after the message in hand; what is queued becomes dead letters.

        Returns:
            whether this call stopped it.
        """
        # Futures, not tasks: who is cancelled while it waits must not leave an actor that is half stopped.
        stops = [self.stop_soon(cell, grace) for cell in self._named(to)]
        return any([await stop for stop in stops])

    def kill(self, to: str | Ref[Any]) -> None:
        """End what an actor, or all of a pool, is doing now; its supervisor treats that as a failure and restarts it.

        The caller of the message in hand gets AgentCrashed.

        Raises:
            KillRefused: the actor's lane cannot kill (threads).
        """
        for cell in self._named(to):
            if threading.get_ident() == self._home:
                self._kill(cell)
            elif cell.lane.name == "thread":
                cell.lane.kill(cell)
            else:
                self._on_loop(partial(self._kill, cell))

    def _kill(self, cell: Cell) -> None:
        cell.lane.kill(cell)
        if not cell.working:
            self.failed(cell, AgentCrashed(f"{cell.name} was killed"))

    def _named(self, to: str | Ref[Any]) -> tuple[Cell, ...]:
        """The cells that a ref or name means: all of a pool."""
        if not isinstance(to, str):
            return (to._cell,)
        pool = self.table.pools.get(to)
        return pool.cells if pool is not None and pool.cells else (self.resolve(to, None),)

    def tree(self) -> tuple[ActorInfo, ...]:
        """Every actor with its children, state, restarts and mailbox."""
        return tuple(_info(cell) for cell in self.table.cells.values() if cell.parent is None)

    def depths(self) -> Iterator[tuple[str, int]]:
        """Name and number of queued messages of every actor, connections left out."""
        for name, cell in tuple(self.table.cells.items()):
            if not name.startswith(CONNECTION):
                yield name, len(cell.mailbox)

    # --- the runtime that actors see ---

    def resolve(self, to: str, message: Any) -> Cell:
        """The cell behind a name. Raises DestinationNotFound or AgentUnavailable."""
        return self.table.find(to, message)

    def failed(self, cell: Cell, error: BaseException) -> None:
        """A handler failed: the supervisor decides."""
        self._supervisor.failed(cell, error)

    def stop_soon(self, cell: Cell, grace: float = GRACE) -> Future[bool]:
        """Begin to stop an actor, from any thread."""
        future: Future[bool] = Future()

        def answer(task: asyncio.Task[bool]) -> None:
            error = None if task.cancelled() else task.exception()
            if error is not None:
                future.fail(error)
            else:
                future.set(not task.cancelled() and task.result())

        def begin() -> None:
            self._supervisor.stop(cell, grace).add_done_callback(answer)

        if threading.get_ident() == self._home:
            begin()
        else:
            try:
                self.loop.call_soon_threadsafe(begin)
            except RuntimeError:  # the loop is closed, so the actor is gone
                future.set(False)
        return future

    def after(self, seconds: float, callback: Callable[[], object]) -> Callable[[], None]:
        """Call back on the home loop; returns a function that takes it back. Both from any thread."""
        if threading.get_ident() == self._home:
            return self.loop.call_later(seconds, callback).cancel
        armed: list[asyncio.TimerHandle] = []
        self.loop.call_soon_threadsafe(lambda: armed.append(self.loop.call_later(seconds, callback)))
        # Runs on the loop after the line above has, so the handle is there.
        return lambda: self._on_loop(lambda: armed.pop().cancel())

    def _on_loop(self, callback: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: there are no timers any more
            self.loop.call_soon_threadsafe(callback)

    def release(self, cell: Cell) -> None:
        """Forget a stopped actor."""
        self.table.remove(cell)
        if cell.parent is not None:
            cell.parent.children.pop(cell.name, None)

    def subscribers(self, topic: str) -> list[Cell]:
        """Who gets what is published to a topic."""
        return list(self.table.topics.get(topic, ()))

    def subscribe(self, topic: str, cell: Cell) -> None:
        """Add a subscriber."""
        self.table.subscribe(topic, cell)

    def new_trace_id(self) -> str:
        """32 hex digits."""
        return f"{self._rng.getrandbits(128):032x}"


def _info(cell: Cell) -> ActorInfo:
    return ActorInfo(
        name=cell.name,
        kind=cell.spec.kind.__name__,
        lane=cell.lane.name,
        state=cell.state,
        restarts=cell.restarts,
        mailbox=cell.mailbox.statistics(),
        children=tuple(_info(child) for child in cell.children.values()),
    )
