"""Who waits for whom, when nothing goes on: deadlocks are found, and shown as the cycle. Floor 14.

A circle of asks among actors that handle one message at a time is an error at once (:mod:`grami_actors.future`). Here
is found what goes round other ways: over actors with several handlers, locks, tasks, a child that is being started, or
room in a full mailbox.

A task waits for one thing, which needs others: every one of them (``gather``), or any of them (an actor that is at its
limit takes the next message when any of its handlers has ended). Of all that waits, whatever can still go on is taken
away until nothing changes; what is left waits only for itself, and is the deadlock (Knapp, "Deadlock detection in
distributed databases", ACM Computing Surveys 1987: the AND-OR model). What anybody may end, as an event that is set,
can still go on; so can who waits for a message that was lost, until the deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from types import AsyncGeneratorType, CellType, CodeType, CoroutineType, FrameType, GeneratorType
from typing import Any, NamedTuple

from grami_actors.cell import Cell
from grami_actors.future import Future, Stream
from grami_actors.lifecycle import Lifecycle
from grami_actors.simulation.loop import SimulatedTask, VirtualLoop
from grami_actors.simulation.places import innermost, place
from grami_actors.system import ActorSystem

MOST_LINES = 50
"""How many of those that wait :func:`waiting` names."""

_HOLDER = "_grami_holder"
_HOLDERS = "_grami_holders"
_ACQUIRE = asyncio.Lock.acquire.__code__
_ACQUIRE_PERMIT = asyncio.Semaphore.acquire.__code__


class Waiting(NamedTuple):
    """Somebody who waits.

    Attributes:
        name: the actor; the task, if it belongs to none.
        place: ``file:line`` of the user's code; empty if it is none of it.
        what: what it waits for.
    """

    name: str
    place: str
    what: str

    @property
    def at(self) -> str:
        """The name, with the place."""
        return f"{self.name} ({self.place})" if self.place else self.name

    def __str__(self) -> str:
        return f"{self.at} waits for {self.what}"


class Deadlock(NamedTuple):
    """A cycle of those who wait for each other; as text ``a (agents.py:12) -> b (agents.py:30) -> a``.

    Attributes:
        cycle: each waits for the next, the last for the first.
    """

    cycle: tuple[Waiting, ...]

    def __str__(self) -> str:
        return " -> ".join((*(each.at for each in self.cycle), self.cycle[0].name))


def explain(system: ActorSystem, loop: VirtualLoop) -> Deadlock | None:
    """The deadlock, if there is one; ``None`` if the waiting may still end. For when no step can be taken."""
    graph = _Graph(system, loop)
    stuck = graph.stuck()
    start = next((task for task in graph.tasks if task in stuck), None)
    if start is None:
        return None
    trail: dict[Any, None] = {}
    node: Any = start
    while node not in trail:
        trail[node] = None
        node = next(each for each in graph.need(node).of if each in stuck)
    nodes = list(trail)
    cycle = [each for each in nodes[nodes.index(node) :] if isinstance(each, SimulatedTask)]
    first = min(range(len(cycle)), key=lambda at: cycle[at].number)
    return Deadlock(tuple(_merged(map(graph.waiting, [*cycle[first:], *cycle[:first]]))))


def waiting(system: ActorSystem, loop: VirtualLoop) -> list[str]:
    """Who waits, where and for what, a line each; for when nothing can go on, and there is no cycle."""
    graph = _Graph(system, loop)
    lines = [str(each) for each in map(graph.waiting, graph.tasks) if each.place]
    more = len(lines) - MOST_LINES
    return [*lines[:MOST_LINES], f"and {more:,} more"] if more > 0 else lines


def _merged(cycle: Iterable[Waiting]) -> Iterator[Waiting]:
    """Each actor once in a row: by the task that says where."""
    last: Waiting | None = None
    for each in cycle:
        if last is not None and last.name == each.name:
            last = each if each.place else last
            continue
        if last is not None:
            yield last
        last = each
    if last is not None:
        yield last


class _Need(NamedTuple):
    """What something waits for.

    Attributes:
        what: in words.
        of: what it needs; nothing, if anybody may end the wait.
        every: whether it needs each of them; else one is enough.
    """

    what: str
    of: tuple[Any, ...] = ()
    every: bool = False


class _Graph:
    """What each task, actor and future needs to go on."""

    def __init__(self, system: ActorSystem, loop: VirtualLoop) -> None:
        self.tasks = [task for task in loop.tasks.values() if not task.done()]
        self._frames = {task: tuple(_frames(task)) for task in self.tasks}
        self._cells: dict[Any, Cell] = {}
        self._busy: dict[Cell, list[Any]] = defaultdict(list)
        for cell in system.table.cells.values():
            for task in (*(cell.port or ()), cell.lifecycle):
                if task is not None and not task.done():
                    self._cells[task] = cell
                    self._busy[cell].append(task)
        for tasks in self._busy.values():
            tasks.sort(key=lambda task: task.number)  # they come from a set
        self._in_hand = {
            frame.f_locals["envelope"].reply_to: task
            for task, frames in self._frames.items()
            for frame in frames
            if frame.f_code is Cell.drive.__code__
        }
        self._timed = set(_ended_by(loop))
        self._needs: dict[Any, _Need] = {}
        self._mail: dict[Cell, set[Any]] = {}

    # --- what is stuck ---

    def stuck(self) -> set[Any]:
        """Whatever waits only for itself."""
        dependents: dict[Any, list[Any]] = defaultdict(list)
        left: dict[Any, int] = {}  # how many of its needs must be free for it to be free
        free: list[Any] = []
        todo: list[Any] = list(self.tasks)
        while todo:
            node = todo.pop()
            if node in left:
                continue
            need = self.need(node)
            left[node] = len(need.of) if need.every else min(1, len(need.of))
            if not need.of:
                free.append(node)
            for each in need.of:
                dependents[each].append(node)
                todo.append(each)
        while free:
            node = free.pop()
            for each in dependents[node]:
                left[each] -= 1
                if left[each] == 0:
                    free.append(each)
        return {node for node, count in left.items() if count > 0}

    def need(self, node: Any) -> _Need:
        """What a node of the graph needs to go on."""
        if node not in self._needs:
            self._needs[node] = self._find(node)
        return self._needs[node]

    def _find(self, node: Any) -> _Need:
        if isinstance(node, Cell):
            # At its limit, or paused: else it would have taken the message, and there would be a step to take.
            return _Need(f"one of the handlers of {node.name}", tuple(self._busy[node]))
        if node.done():
            return _Need("nothing")
        if isinstance(node, Future):
            return self.of_answer(node)
        if node in self._frames:
            return self._of_task(node)
        return _Need("a future")

    def _of_task(self, task: SimulatedTask) -> _Need:
        waiter = task._fut_waiter  # type: ignore[attr-defined] # noqa: SLF001 - asyncio tells nobody what a task waits for
        if waiter is None:
            return _Need("its turn")
        if task in self._timed or waiter in self._timed:
            return _Need("a time to pass")
        for frame in self._frames[task]:
            find = _KNOWN.get(frame.f_code)
            found = None if find is None else find(self, frame.f_locals)
            if found is not None:
                return found
        if hasattr(waiter, "_children"):  # what gather returns
            pending = _pending(waiter._children)  # noqa: SLF001 - as above
            return _Need(f"{len(pending)} tasks", pending, every=True)
        if isinstance(waiter, asyncio.Task):
            return _Need("a task", (waiter,))
        return _Need("a future", self._shielded.get(waiter, ()))

    # --- what the frames say ---

    def of_answer(self, future: Future[Any]) -> _Need:
        """What an ask needs. One whose message was lost is ended by its deadline."""
        asked = getattr(future, "asked", ())
        if asked:
            return _Need("the answers of a pool", tuple(each for each in asked if not each.done()), every=True)
        target: Any = future._target  # noqa: SLF001 - as the graph of asks does
        if target is None:
            return _Need("a future")
        what = f"an answer of {target.name}"
        if future in self._in_hand:
            return _Need(what, (self._in_hand[future],))
        return _Need(what, (target,) if future in self._held(target) else ())

    def of_room(self, cell: Cell, envelope: Any) -> _Need:
        """What a sender needs that waits for room."""
        return _Need(f"room in the mailbox of {cell.name}", (cell,) if envelope in self._held(cell) else ())

    def of_lock(self, lock: asyncio.Lock) -> _Need:
        """What whoever wants a lock needs: who holds it."""
        holder = getattr(lock, _HOLDER, None)
        if holder is None:
            return _Need("an asyncio.Lock")
        if holder.done():
            return _Need(f"an asyncio.Lock that {self._name(holder)} took and never released")
        return _Need(f"an asyncio.Lock that {self._name(holder)} holds", (holder,))

    def of_permit(self, semaphore: asyncio.Semaphore) -> _Need:
        """What whoever wants a permit needs: one of those who hold them; nothing, if anybody may release it."""
        holders = tuple(each for each in getattr(semaphore, _HOLDERS, None) or () if not each.done())
        names = ", ".join(dict.fromkeys(map(self._name, holders)))
        return _Need(f"an asyncio.Semaphore that {names} holds" if names else "an asyncio.Semaphore", holders)

    def _held(self, cell: Cell) -> set[Any]:
        """The messages in a mailbox, and the asks that they are."""
        if cell not in self._mail:
            mailbox = cell.mailbox
            letters = [*mailbox.measure(), *(mailbox.first or ()), *(each for each, _ in mailbox.parked or ())]
            self._mail[cell] = {*letters, *(each.reply_to for each in letters if each.reply_to is not None)}
        return self._mail[cell]

    @functools.cached_property
    def _shielded(self) -> dict[Any, tuple[Any, ...]]:
        """By what ``shield`` returns: the task behind it, which knows it through a callback."""
        return {
            held: (task,)
            for task in self.tasks
            for callback, _ in task._callbacks or ()  # noqa: SLF001 - as above
            for held in map(_contents, getattr(callback, "__closure__", None) or ())
            if isinstance(held, asyncio.Future)
        }

    # --- words ---

    def _name(self, task: SimulatedTask) -> str:
        cell = self._cells.get(task)
        return cell.name if cell is not None else task.owner or task.get_name()

    def waiting(self, task: SimulatedTask) -> Waiting:
        """A task, as somebody who waits."""
        frame = innermost(reversed(self._frames[task]))
        where = "" if frame is None else place(frame.f_code, frame.f_lineno)
        return Waiting(self._name(task), where, self.need(task).what)


def _ended_by(loop: VirtualLoop) -> Iterator[Any]:
    """Tasks and futures that a timer ends: ``sleep``, ``timeout``, ``wait_for``."""
    for timer in loop.active_timers():
        callback: Any = timer._callback  # type: ignore[attr-defined] # noqa: SLF001 - as above
        owner = getattr(callback, "__self__", None)
        if isinstance(owner, asyncio.Timeout):
            yield owner._task  # type: ignore[attr-defined] # noqa: SLF001 - as above
        yield from (each for each in timer._args or () if isinstance(each, asyncio.Future))  # noqa: SLF001


def _contents(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return None


def _pending(futures: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(sorted((each for each in futures if not each.done()), key=lambda each: getattr(each, "number", 0)))


def _among(_graph: _Graph, names: dict[str, Any]) -> _Need | None:
    if names["timeout"] is not None:
        return _Need("a time to pass")
    pending = _pending(names["fs"])
    return _Need(f"{len(pending)} tasks", pending, every=names["return_when"] == asyncio.ALL_COMPLETED)


def _group(_graph: _Graph, names: dict[str, Any]) -> _Need | None:
    pending = _pending(names["self"]._tasks)  # noqa: SLF001 - a group shows its tasks to nobody
    return _Need(f"{len(pending)} tasks of its group", pending, every=True)


def _birth(_graph: _Graph, names: dict[str, Any]) -> _Need | None:
    return _Need(f"the start of {names['cell'].name}", (names["birth"],))


def _named(what: str) -> Callable[[_Graph, dict[str, Any]], _Need | None]:
    return lambda _graph, _names: _Need(what)


def _condition(_graph: _Graph, names: dict[str, Any]) -> _Need | None:
    # Once notified it wants its lock back, of which a frame further in tells.
    return None if names["fut"].done() else _Need("an asyncio.Condition")


_KNOWN: dict[CodeType, Callable[[_Graph, dict[str, Any]], _Need | None]] = {
    Cell.send.__code__: lambda graph, names: graph.of_room(names["self"], names["envelope"]),
    Stream.__aiter__.__code__: lambda graph, names: graph.of_answer(names["self"]),
    Future.__await__.__code__: lambda graph, names: graph.of_answer(names["self"]),
    Lifecycle.start.__code__: _birth,
    _ACQUIRE: lambda graph, names: graph.of_lock(names["self"]),
    asyncio.tasks._wait.__code__: _among,  # type: ignore[attr-defined] # noqa: SLF001 - wait() only checks, and calls it
    asyncio.TaskGroup.__aexit__.__code__: _group,
    asyncio.Condition.wait.__code__: _condition,
    asyncio.Event.wait.__code__: _named("an asyncio.Event"),
    _ACQUIRE_PERMIT: lambda graph, names: graph.of_permit(names["self"]),
    asyncio.Queue.get.__code__: _named("something in an asyncio.Queue"),
    asyncio.Queue.put.__code__: _named("room in an asyncio.Queue"),
    asyncio.Queue.join.__code__: _named("an asyncio.Queue to be worked off"),
    asyncio.Barrier.wait.__code__: _named("an asyncio.Barrier"),
}
"""Where waiting begins, the outermost first: what the names of that frame say of it."""

_STEPPED = frozenset({CoroutineType, AsyncGeneratorType})


def _frames(task: asyncio.Task[Any]) -> Iterator[FrameType]:
    """The frames of a task that waits, the outermost first."""
    awaited: Any = task.get_coro()
    seen = {id(awaited)}  # a wrapper may know who awaits it
    while awaited is not None:
        frame = None
        if isinstance(awaited, CoroutineType):
            frame, awaited = awaited.cr_frame, awaited.cr_await
        elif isinstance(awaited, GeneratorType):
            frame, awaited = awaited.gi_frame, awaited.gi_yieldfrom
        elif isinstance(awaited, AsyncGeneratorType):
            frame, awaited = awaited.ag_frame, awaited.ag_await
        else:  # a future, or a wrapper that tells nobody what it runs
            inside = (each for each in gc.get_referents(awaited) if type(each) in _STEPPED)
            awaited = next((each for each in inside if id(each) not in seen), None)
            seen.add(id(awaited))
        if frame is not None:
            yield frame


@contextlib.contextmanager
def holders() -> Iterator[None]:
    """Remember who holds each ``asyncio.Lock`` and ``Semaphore``, for as long as it lasts: they do not themselves."""
    if asyncio.Lock.acquire.__code__ is not _ACQUIRE:  # somebody further out does
        yield
        return
    lock, semaphore = asyncio.Lock, asyncio.Semaphore
    changes: tuple[tuple[Any, str, Any], ...] = (
        (lock, "acquire", _noting(lock.acquire, lambda held, task: setattr(held, _HOLDER, task))),
        (semaphore, "acquire", _noting(semaphore.acquire, _note_permit)),
        (semaphore, "release", _releasing(semaphore.release)),
    )
    originals = [(owner, name, vars(owner)[name]) for owner, name, _ in changes]
    for each in changes:
        setattr(*each)
    try:
        yield
    finally:
        for each in originals:
            setattr(*each)


def _noting(original: Callable[[Any], Any], note: Callable[[Any, Any], object]) -> Callable[[Any], Any]:
    @functools.wraps(original)
    async def acquire(self: Any) -> Any:
        taken = await original(self)
        note(self, asyncio.current_task())
        return taken

    return acquire


def _note_permit(semaphore: Any, task: Any) -> None:
    held = getattr(semaphore, _HOLDERS, [])
    if held is not None:
        setattr(semaphore, _HOLDERS, [*held, task])


def _releasing(original: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(original)
    def release(self: Any) -> None:
        held, task = getattr(self, _HOLDERS, []), asyncio.current_task()
        if held and task in held:
            held.remove(task)
        else:  # whoever releases what another one took uses it as a signal
            setattr(self, _HOLDERS, None)
        original(self)

    return release
