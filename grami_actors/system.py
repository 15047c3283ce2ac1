"""The actor system: lanes, supervisor, router and names under one roof, with no global state. Floor 10."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import random
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from grami_actors import registry
from grami_actors.actor import Actor, specify
from grami_actors.budget import Budget
from grami_actors.cell import CONNECTION, Cell
from grami_actors.census import ActorInfo, describe_actor
from grami_actors.contracts import Lane
from grami_actors.deadlines import Deadlines
from grami_actors.errors import (
    AgentCrashed,
    AgentUnavailable,
    DestinationNotFound,
    GramiError,
    MailboxFull,
    ShuttingDown,
)
from grami_actors.future import Future, begin, current
from grami_actors.gates import Gates, RateGate
from grami_actors.guard import ROUTER, Guard
from grami_actors.lanes.loop import LoopLane
from grami_actors.lanes.process import ProcessLane, Workers
from grami_actors.lanes.thread import THREADS, ThreadLane
from grami_actors.lifecycle import Lifecycle
from grami_actors.mailbox import Closed
from grami_actors.messages import Envelope, Last, Scope, Terminated, snake_case
from grami_actors.permissions import Permissions
from grami_actors.profiling import Profile
from grami_actors.ref import ActorDead, Ref
from grami_actors.router import Fanout, Router, RoutingTable
from grami_actors.spec import LaneName, Spec
from grami_actors.telemetry import Bus, DiceMade, Event
from grami_actors.watchdog import Watchdog

A = TypeVar("A", bound=Actor)


SLOW_TURN = 0.05
"""Seconds after which a handler that keeps the loop's thread is reported."""


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
        slow_turn: seconds that a handler may keep the loop's thread before a SlowTurn is published; ``None`` for no
            watching, and no thread that watches.
        workers: bounds of the process lane, and what of the environment its processes see.
        permissions: the rules that clients and actors are held to. What the program itself does, outside of any
            actor, is not asked for; and a ref is a permission of its own: whoever has one may send to it.
    """

    simulated = False
    """Whether its time is virtual: then nothing outside of it is touched."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        threads: int = THREADS,
        slow_turn: float | None = SLOW_TURN,
        workers: Workers = Workers(),  # noqa: B008 - frozen
        permissions: Permissions | None = None,
    ) -> None:
        self.bus = Bus()
        self.table = RoutingTable()
        self.now = clock
        self._rng = rng or random.Random()
        self._threads = threads
        self._counter = 0
        self._closing = False
        self._gates = Gates(clock)
        self._watched: dict[Cell, set[Cell]] = {}
        self._observers: dict[Cell, dict[type[Event], Callable[[], None]]] = {}
        self._slow_turn = slow_turn
        self._workers = workers
        self._guard = Guard(permissions) if permissions is not None and permissions.rules else None
        self.id = f"{self._rng.getrandbits(64):016x}"

    async def __aenter__(self) -> Self:
        if getattr(sys.modules["__main__"], "__grami_reads__", False):
            raise RuntimeError(
                "a worker process reads this script for the classes in it, and would start a system of its own: put "
                "what starts the program under `if __name__ == '__main__':`"
            )
        self.loop = asyncio.get_running_loop()
        self._home = threading.get_ident()
        self.deadlines = Deadlines(self.loop, self.now)
        self._lanes = self._make_lanes()
        self._lifecycle = Lifecycle(self, self._rng.random)
        turns = LoopLane.turn.__code__, Profile.handle.__code__
        self._watchdog = None if self._slow_turn is None else Watchdog(self.loop, self.bus, self._slow_turn, *turns)
        registry.install()
        # A variable that was never set is looked for anew each time; one that is None is remembered by the interpreter.
        current.set(current.get())
        self.router = await self.spawn(Router, self.table, self._guard, name=ROUTER)
        return self

    def _make_lanes(self) -> dict[LaneName, Lane[Cell]]:
        self._processes = ProcessLane(self.loop, self._workers)
        threads = ThreadLane(self.loop, self._threads)
        return {"loop": LoopLane(self.loop, self.now), "thread": threads, "process": self._processes}

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """Stop all actors, children first, the last started first; ``grace`` seconds for each, if given."""
        self._closing = True
        while roots := [cell for cell in self.table.cells.values() if cell.parent is None]:
            for cell in reversed(roots):
                ended = self._lifecycle.stop(cell, grace)
                if not ended.done():
                    await asyncio.shield(_wait(ended))
        await self._lifecycle.close()
        for lane in self._lanes.values():
            await lane.close()
        self.deadlines.close()
        if self._watchdog is not None:
            self._watchdog.close()

    # --- for users ---

    async def spawn(
        self,
        kind: type[A],
        *args: Any,
        name: str | None = None,
        parent: Cell | None = None,
        **kwargs: Any,
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
        return await self.spawn_spec(specify(kind, args, kwargs), name=name, parent=parent)

    async def spawn_spec(self, spec: Spec, *, name: str | None = None, parent: Cell | None = None) -> Ref[Any]:
        """Start an actor from its specification; see :meth:`spawn`."""
        work = self._spawn(spec, name, parent)
        if threading.get_ident() == self._home:
            return await work
        # A handler on the thread lane spawns: the life of actors belongs to the home loop.
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self.loop))

    async def _spawn(self, spec: Spec, name: str | None, parent: Cell | None) -> Ref[Any]:
        if self._closing:
            raise ShuttingDown("the system is closing and starts no new actors")
        # While a parent restarts, only what its on_start spawns belongs to the new instance.
        able = parent is None or parent.state in {"starting", "running", "suspended"}
        if parent is not None and not able and (parent.state != "restarting" or parent.lifecycle is None):
            raise ShuttingDown(f"{parent.name} is {parent.state} and starts no children")
        self._counter += 1
        name = name or f"{snake_case(spec.kind.__name__)}-{self._counter}"
        if parent is not None:
            name = f"{parent.name}/{name}"
        cell = Cell(self, self._lanes[spec.lane], spec, name, self._counter, parent)
        self.table.claim(name, cell)
        if parent is not None:
            parent.children[name] = cell
        await self._lifecycle.start(cell)
        if spec.kind.listed and cell.state != "stopped":
            registry.register(cell.ref)
        return cell.ref

    async def ask(
        self, to: str | Ref[Any], message: Any, *, timeout: float | None = None, budget: Budget | None = None
    ) -> Any:
        """Send and wait for the answer; see :meth:`Ref.ask` for what it raises."""
        return await self._find(to, message).ask(message, timeout=timeout, budget=budget)

    def tell(self, to: str | Ref[Any], message: Any) -> None:
        """Send without waiting for an answer; see :meth:`Ref.tell` for what it raises."""
        self._find(to, message).tell(message)

    async def stop(self, to: str | Ref[Any], *, grace: float | None = None) -> bool:
        """Stop an actor, or all of a pool, after the message in hand; what is queued becomes dead letters.

        Args:
            to: its name or ref.
            grace: seconds that its handler, its ``on_stop`` and its children get; 5 unless its spec says otherwise.

        Returns:
            whether this call stopped it.
        """
        # Futures, not tasks: who is cancelled while it waits must not leave an actor that is half stopped.
        stops = [self.stop_soon(cell, grace) for cell in self._named(to)]
        return any([await stop for stop in stops])

    async def drain(self, to: str | Ref[Any], *, timeout: float = 30.0) -> bool:
        """Stop an actor, or all of a pool, after everything that is queued; new messages are refused at once.

        Args:
            to: its name or ref.
            timeout: seconds; what is queued then becomes dead letters, as if it were stopped.

        Returns:
            whether the whole backlog was handled.
        """
        cells = self._named(to)
        ends = [self.watch(cell.ref) for cell in cells]
        lasts = [Last(timeout) for _ in cells]
        for cell, last in zip(cells, lasts, strict=True):
            with contextlib.suppress(Closed):  # it is stopping or draining already
                cell.mailbox.seal(Envelope(last))
        try:
            async with asyncio.timeout(timeout):
                for end in ends:
                    await _wait(end)
        except TimeoutError:
            for cell in cells:
                await self.stop(cell.ref)
            return False
        return all(last.reached for last in lasts)

    def suspend(self, to: str | Ref[Any]) -> bool:
        """Let an actor, or all of a pool, take no more messages until :meth:`resume`; they wait in the mailbox.

        On the home loop. Returns whether any of them was running.
        """
        return any(list(map(self._lifecycle.suspend, self._named(to))))

    def resume(self, to: str | Ref[Any]) -> bool:
        """Undo :meth:`suspend`. Returns whether any of them was suspended."""
        return any(list(map(self._lifecycle.resume, self._named(to))))

    def watch(self, to: str | Ref[Any]) -> Future[Terminated]:
        """The future of the end of an actor: ``await system.watch("worker")``; soon, if it is gone already.

        Raises:
            DestinationNotFound: nothing has this name; a ref to what is gone can be watched.
        """
        future: Future[Terminated] = Future()
        cell = self._one(to)
        self._at_home(partial(cell.watch, future, future.set))
        future.on_cancel(lambda _: self._at_home(partial(cell.unwatch, future)))
        return future

    def kill(self, to: str | Ref[Any]) -> None:
        """End what an actor, or all of a pool, is doing now; its supervisor treats that as a failure and restarts it.

        The caller of the message in hand gets AgentCrashed.

        Raises:
            KillRefused: the actor's lane cannot kill (threads).
        """
        for cell in self._named(to):
            if cell.lane.name == "thread":
                cell.lane.kill(cell)  # refused, here and now
            self._at_home(partial(self._kill, cell))

    def _kill(self, cell: Cell) -> None:
        if cell.concurrency == 1:
            cell.doomed = cell.at_work
        cell.lane.kill(cell)
        if not cell.working:
            self.failed(cell, AgentCrashed(f"{cell.name} was killed"))

    def _find(self, to: str | Ref[Any], message: Any) -> Any:
        """Who gets a message to a ref or a name."""
        if not isinstance(to, str):
            return to._cell
        here = current.get()
        return self.resolve(to, message, None if here is None else here.receiver)

    def _named(self, to: str | Ref[Any]) -> tuple[Cell, ...]:
        """The cells that a ref or name means: all of a pool."""
        if not isinstance(to, str):
            return (to._cell,)
        pool = self.table.pools.get(to)
        if pool is not None and pool.members:
            return pool.members
        found = self.resolve(to, None)
        return found.cells() if isinstance(found, Fanout) else (found,)

    def _one(self, to: str | Ref[Any]) -> Cell:
        """The cell that a ref or name means: one actor, no pool."""
        if not isinstance(to, str):
            return to._cell  # type: ignore[no-any-return]
        cell = self.table.cells.get(to)
        if cell is None:
            raise DestinationNotFound(f"no actor is named {to!r}")
        return cell

    def tree(self) -> tuple[ActorInfo, ...]:
        """Every actor with its children, state, restarts and mailbox."""
        return tuple(describe_actor(cell) for cell in self.table.cells.values() if cell.parent is None)

    def depths(self) -> Iterator[tuple[str, int]]:
        """Name and number of queued messages of every actor, connections left out."""
        for name, cell in tuple(self.table.cells.items()):
            if not name.startswith(CONNECTION):
                yield name, len(cell.mailbox)

    # --- the runtime that actors see ---

    def resolve(self, to: str, message: Any, by: Cell | None = None) -> Cell | Fanout:
        """Who is behind a name.

        Args:
            to: the name.
            message: what is to be sent there.
            by: the actor that sends it, which is held to the rules; ``None`` for the program itself.

        Raises:
            PermissionDenied, DestinationNotFound, AgentUnavailable: nobody is to get it.
        """
        if self._guard is not None and by is not None:
            self._guard.check_send(by, message, self.table.name_of(to, message))
        return self.table.find(to, message)

    def failed(self, cell: Cell, error: BaseException) -> None:
        """A handler failed: the lifecycle decides."""
        self._lifecycle.failed(cell, error)

    def stop_soon(self, cell: Cell, grace: float | None = None, *, by_itself: bool = False) -> Future[bool]:
        """Begin to stop an actor, from any thread."""
        if by_itself:
            cell.lane.pause(cell)  # here and now, on whatever lane it is
        if threading.get_ident() == self._home:
            return self._lifecycle.stop(cell, grace, by_itself=by_itself)
        future: Future[bool] = Future()
        cell.lane.pause(cell)  # now: the message in hand is the last one

        def begin() -> None:
            ended = self._lifecycle.stop(cell, grace, by_itself=by_itself)
            ended.on_done(lambda: future.set(ended.value()))

        try:
            self.loop.call_soon_threadsafe(begin)
        except RuntimeError:  # the loop is closed, so the actor is gone
            future.set(False)
        return future

    def watch_for(self, to: str | Ref[Any], watcher: Cell) -> None:
        """Tell one actor when another is gone."""
        cell = self._one(to)

        def tell(terminated: Terminated) -> None:
            self._watched.get(watcher, set()).discard(cell)
            with contextlib.suppress(ActorDead):
                watcher.post_always(Envelope(terminated, None, cell.name), first=True)

        def begin() -> None:
            if watcher.state != "stopped":
                self._watched.setdefault(watcher, set()).add(cell)
                cell.watch(watcher, tell)

        self._at_home(begin)

    def unwatch_for(self, to: str | Ref[Any], watcher: Cell) -> None:
        """Take that back."""
        with contextlib.suppress(DestinationNotFound):  # it is gone
            self._at_home(partial(self._one(to).unwatch, watcher))
        watcher.mailbox.forget(Terminated, to if isinstance(to, str) else to.name)  # if it was told already

    def after(self, seconds: float, callback: Callable[[], object]) -> Callable[[], None]:
        """Call back on the home loop; returns a function that takes it back. Both from any thread."""
        if threading.get_ident() == self._home:
            return self._later(seconds, callback).cancel
        armed: list[asyncio.TimerHandle] = []
        self.loop.call_soon_threadsafe(lambda: armed.append(self._later(seconds, callback)))
        # Runs on the loop after the line above has, so the handle is there.
        return lambda: self._on_loop(lambda: armed.pop().cancel())

    def limit(self, scope: Scope, seconds: float, reason: GramiError) -> Callable[[], None]:
        """Cancel a scope in ``seconds``; returns a function that takes it back. Both from any thread."""
        return self.after(seconds, lambda: scope.cancel(reason))

    def _later(self, seconds: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
        # In a context of its own: asyncio keeps a cancelled timer, and what its context holds, until it would fire.
        return self.loop.call_later(seconds, callback, context=contextvars.Context())

    def _at_home(self, callback: Callable[[], object]) -> None:
        """Now, if this is the home thread; else soon, there."""
        if threading.get_ident() == self._home:
            callback()
        else:
            self._on_loop(callback)

    def _on_loop(self, callback: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: there are no timers any more
            self.loop.call_soon_threadsafe(callback)

    def release(self, cell: Cell) -> None:
        """Forget a stopped actor."""
        self.table.remove(cell)
        if cell.spec.kind.listed:
            registry.unregister(cell.ref)
        if cell.parent is not None:
            cell.parent.children.pop(cell.name, None)
        for end in self._observers.pop(cell, {}).values():
            end()
        for watched in self._watched.pop(cell, ()):
            watched.unwatch(cell)

    def subscribers(self, topic: str, by: Cell | None = None) -> tuple[Cell, ...]:
        """Who gets what is published to a topic, ``by`` an actor. Raises ValueError if it is none, PermissionDenied."""
        if self._guard is not None and by is not None:
            self._guard.check_publish(by, topic)
        return self.table.topics.match(topic)

    def subscribe(self, pattern: str, cell: Cell, by: Cell | None = None) -> None:
        """Add a subscriber, which ``by`` an actor may be refused. Raises ValueError or PermissionDenied."""
        if self._guard is not None and by is not None:
            self._guard.check_subscribe(by, pattern)
        self.table.topics.subscribe(pattern, cell)

    def unsubscribe(self, pattern: str, cell: Cell) -> bool:
        """Take one away; ``False`` if it was none."""
        return self.table.topics.unsubscribe(pattern, cell)

    def observe(self, cell: Cell, *kinds: type[Event]) -> None:
        """Tell an actor of events, until it stops. What is caused by telling it is no news to it."""

        def tell(event: Event) -> None:
            here = current.get()
            if here is None or here.receiver is not cell:
                envelope = Envelope(event)
                with contextlib.suppress(AgentUnavailable, MailboxFull):
                    displaced = cell.mailbox.put(envelope)
                    if displaced is not None and displaced is not envelope:
                        cell.discard(displaced, "overflow", cell.dropped())

        observed = self._observers.setdefault(cell, {})
        for kind in kinds or tuple(Event.__subclasses__()):
            if kind not in observed:  # an instance that takes over observes again
                observed[kind] = self.bus.subscribe(tell, kind)

    def gate(self, upstream: str) -> RateGate:
        """The rate gate of an upstream; the same one for everybody in this system."""
        return self._gates.gate(upstream)

    def new_trace_id(self) -> str:
        """32 hex digits."""
        return f"{self._rng.getrandbits(128):032x}"

    def wall(self) -> float:
        """Seconds since 1970: the time of day, for people."""
        return time.time()

    def new_random(self, actor: str) -> random.Random:
        """Dice of its own for an actor, seeded by those of the system."""
        seed = self._rng.getrandbits(64)
        if DiceMade in self.bus:
            self.bus.publish(DiceMade(actor, seed))
        return random.Random(seed)

    @staticmethod
    def aside(name: str, work: Callable[[], object]) -> None:
        """Do what may block or hang, on a thread of its own that nobody waits for."""
        threading.Thread(target=work, name=name, daemon=True).start()

    def begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task on the home loop whose first step is taken here and now, where the interpreter can do that."""
        return begin(self.loop, work)


async def _wait(future: Future[Any]) -> Any:
    return await future
