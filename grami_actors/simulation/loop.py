"""An event loop in virtual time, on which every step that could come earlier or later is chosen. Floor 14.

Rules:

1. What one step causes inside asyncio (callbacks of futures, timers that are set) is done before the next is chosen, in
   the order it came: it is plumbing, differs between versions of Python, and decides nothing.
2. A step is a message that an actor takes, or a task that goes on after it has waited. Of all that can be taken the
   :class:`~grami_actors.simulation.schedule.Schedule` picks one.
3. Time stands still while there is anything to do, and then goes on to the next timer at once.
4. There is nothing else: no thread, no socket, no process. Who asks for one gets
   :class:`~grami_actors.simulation.leaks.Nondeterminism`.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import math
import operator
import sys
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextvars import Context, copy_context
from typing import Any, NoReturn, TypeVar

from grami_actors.future import handled
from grami_actors.simulation.leaks import Nondeterminism
from grami_actors.simulation.schedule import Choice, Schedule, Step

T = TypeVar("T")

_number = operator.attrgetter("number")

BEGIN = 1_000.0
"""Seconds on the clock when a run begins; 0 means in places that nobody looked at the clock."""

MOST_STEPS = 200_000
"""Steps at one instant of virtual time, after which it is taken for granted that it will never pass."""

SPARSE = 100
"""Timers, and tasks, among which nobody looks for those that are over."""


class Stuck(Exception):
    """Nothing can go on: no step, and no timer that is worth waiting for."""


class Endless(Exception):
    """More virtual time has passed than a run may take."""


class Livelock(Exception):
    """Time does not go on: there is always one step more."""


class SimulatedTask(asyncio.Task[Any]):
    """A task whose steps are chosen.

    Attributes:
        number: of the task, in the order in which they were made.
        owner: the actor whose handler made it; empty for the script and the runtime.
    """

    def __init__(self, number: int, owner: str, work: Any, **options: Any) -> None:
        self.number = number  # first: the constructor of a task asks for its first step
        self.owner = owner
        super().__init__(work, **options)

    def __hash__(self) -> int:
        """Its number, and not its address: a set of tasks, as ``asyncio.wait`` returns, has one order in all runs."""
        return self.number


def unseen(task: asyncio.Task[Any]) -> bool:
    """Whether a task ended with an error at which nobody has looked."""
    return bool(task._log_traceback)  # noqa: SLF001 - looking at the error would be seeing it


class _Handle(asyncio.Handle):
    __slots__ = ("number", "owner")  # of the task that goes on with it, if one does

    number: int
    owner: str
    _callback: Callable[..., object]
    _context: Context

    def __init__(
        self, callback: Callable[..., object], args: tuple[Any, ...], loop: Any, context: Context | None
    ) -> None:
        # What the constructor of the class above does, but for debugging: it is called for all that happens.
        self._callback = callback
        self._args = args
        self._loop = loop
        self._context = copy_context() if context is None else context
        self._cancelled = False

    def run(self) -> None:
        # What raises in here is a fault of the runtime's: it ends the run, instead of a line in a log.
        if not self._cancelled:
            self._context.run(self._callback, *self._args)


class _Timer(asyncio.TimerHandle):
    __slots__ = ("passive", "pending")

    passive: bool
    pending: bool

    run: Callable[[], None] = _Handle.run  # type: ignore[assignment]


# For the type checker without the many methods that this loop has no use for.
_AbstractLoop: Any = asyncio.AbstractEventLoop


class VirtualLoop(_AbstractLoop):  # type: ignore[misc]
    """Runs one coroutine to its end, on a schedule.

    Args:
        schedule: chooses among steps.
        passive: classes whose timers do no work: deadlines, and what looks around now and then.
        most_seconds: of virtual time that the run may take.

    Attributes:
        idle: asked before time goes on to a passive timer; raises :class:`Stuck` if waiting for it is in vain.
        steps: that were taken.
        tasks: by their number: those that have not ended, and some that have.
    """

    def __init__(
        self,
        schedule: Schedule,
        passive: tuple[type, ...] = (),
        most_seconds: float = math.inf,
    ) -> None:
        self.steps = 0
        self.tasks: dict[int, SimulatedTask] = {}
        self._most_tasks = SPARSE
        self._schedule = schedule
        self.idle: Callable[[], None] | None = None
        self._passive = frozenset(passive)
        self._active = 0  # timers that are worth waiting for
        self._time = BEGIN
        self._at_once = False  # whether the step that is asked for now is plumbing
        self._ready: deque[_Handle | _Timer] = deque()
        self._fresh: list[Step] = []
        self._enabled: list[Step] = []
        self._timers: list[tuple[float, int, _Timer]] = []
        self._cancelled = 0
        self._order = itertools.count()
        self._numbers = itertools.count(1)
        self._since = 0
        self._last = 0  # whose step was taken
        self._end = BEGIN + most_seconds
        self._closed = False

    # --- the clock ---

    def time(self) -> float:
        """Seconds of virtual time."""
        return self._time

    @property
    def elapsed(self) -> float:
        """Seconds of virtual time since the run began."""
        return self._time - BEGIN

    # --- what asyncio asks for ---

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> asyncio.Handle:
        """Do something now: as a step, if a task is to go on; else as plumbing."""
        handle = _Handle(callback, args, self, context)
        task = getattr(callback, "__self__", None)
        if task.__class__ is SimulatedTask and not self._at_once:
            handle.number, handle.owner = task.number, task.owner
            self._fresh.append(handle)
        else:
            self._ready.append(handle)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """The same: there is one thread."""
        return self.call_soon(callback, *args, context=context)

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Do something in so many virtual seconds."""
        return self.call_at(self._time + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Do something at a virtual time."""
        timer = _Timer(max(when, self._time), callback, args, self, context)
        timer.passive = getattr(callback, "__self__", None).__class__ in self._passive
        timer.pending = True
        self._active += not timer.passive
        heapq.heappush(self._timers, (timer.when(), next(self._order), timer))
        return timer

    def _timer_handle_cancelled(self, timer: _Timer) -> None:
        if not timer.pending:
            return
        self._active -= not timer.passive
        self._cancelled += 1
        if len(self._timers) > SPARSE and self._cancelled > len(self._timers) // 2:
            # It is told before it is so: this one is not cancelled yet.
            self._timers = [entry for entry in self._timers if entry[2] is not timer and not entry[2].cancelled()]
            heapq.heapify(self._timers)
            self._cancelled = 0

    def create_future(self) -> asyncio.Future[Any]:
        """A future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(
        self, coro: Any, *, name: str | None = None, context: Context | None = None, **_: Any
    ) -> asyncio.Task[Any]:
        """A task whose steps are chosen, the first one too: none is eager, on whatever version of Python."""
        number = next(self._numbers)
        here = handled()
        owner = "" if here is None or here.receiver is None else here.receiver.name
        task = SimulatedTask(number, owner, coro, loop=self, name=name or f"task-{number}", context=context)
        tasks = self.tasks
        tasks[number] = task
        if len(tasks) > self._most_tasks:  # to be told of the end of each would be a callback for each
            self.tasks = {at: each for at, each in tasks.items() if not each.done() or unseen(each)}
            self._most_tasks = SPARSE + 2 * len(self.tasks)
        return task

    def begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[Any]:
        """A task whose first step belongs to the one that is being taken, as an eager task's does."""
        self._at_once = True
        try:
            return self.create_task(work)
        finally:
            self._at_once = False

    @property
    def failed(self) -> list[SimulatedTask]:
        """Tasks that ended with an error at which nobody has looked."""
        return [task for task in self.tasks.values() if unseen(task)]

    def offer(self, step: Step) -> None:
        """Let a step be chosen that is none of a task's."""
        self._fresh.append(step)

    def choose(self, choices: Sequence[Choice]) -> int:
        """The place of what comes first, where something else than steps has no order of its own."""
        return self._schedule.pick(choices)

    # --- running ---

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end, and what it left behind to theirs.

        Raises:
            Stuck, Endless, Livelock: it has none.
            BaseException: what it raises.
        """
        with self._entered():
            task = self.create_task(main)
            try:
                self._run_until(task)
                return task.result()  # type: ignore[no-any-return]
            finally:
                self._end_all()

    @contextlib.contextmanager
    def _entered(self) -> Iterator[None]:
        before, hooks = asyncio._get_running_loop(), sys.get_asyncgen_hooks()
        asyncio._set_running_loop(self)  # noqa: SLF001 - documented for those who write event loops
        sys.set_asyncgen_hooks(finalizer=self._finalize)
        try:
            yield
        finally:
            sys.set_asyncgen_hooks(*hooks)
            asyncio._set_running_loop(before)  # noqa: SLF001
            self._closed = True

    def _finalize(self, generator: Any) -> None:
        if not self._closed:
            self.create_task(generator.aclose())

    def _run_until(self, task: asyncio.Task[Any]) -> None:
        ready, schedule = self._ready, self._schedule
        while True:
            while ready:
                ready.popleft().run()
            if task.done():
                return
            if self._fresh:
                self._admit()
            enabled = self._enabled
            if enabled:
                last = len(enabled) - 1
                place = schedule.pick(enabled) if last else 0
                step = enabled.pop(place)
                self.steps += 1
                self._last = step.number
                step.run()
            else:
                self._advance()

    def _admit(self) -> None:
        fresh = self._fresh
        if len(fresh) > 1:
            # What one step made possible has no order of its own: asyncio cancels the tasks of a group in that of a
            # set, which is another one in every process.
            fresh.sort(key=_number)
            for at, step in enumerate(fresh):
                if step.number == self._last:  # who yields, as with sleep(0), goes behind what it made possible
                    fresh.append(fresh.pop(at))
                    break
        self._enabled.extend(fresh)
        fresh.clear()
        if self.steps - self._since > MOST_STEPS:
            raise Livelock(f"{MOST_STEPS:,} steps were taken at one instant of virtual time, and there is more to do")

    def _advance(self) -> None:
        """Let time go on to the next timer, and fire all that are due then."""
        timers = self._timers
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)
            self._cancelled -= 1
        if self.idle is not None and (not self._active or timers[0][2].passive):
            self.idle()
        if not timers:
            raise Stuck("nothing can go on, and there is no timer to wait for")
        now = timers[0][0]
        if now > self._end:
            raise Endless(f"it did not end within {self._end - BEGIN:,.0f} virtual seconds")
        self._time = now
        self._since = self.steps
        while timers and timers[0][0] <= now:
            timer = heapq.heappop(timers)[2]
            timer.pending = False
            if timer.cancelled():
                self._cancelled -= 1
            else:
                self._active -= not timer.passive
                self._ready.append(timer)

    @property
    def timers(self) -> int:
        """How many are set."""
        return len(self._timers) - self._cancelled

    @property
    def next_timer(self) -> float:
        """When the next one is due; there is one."""
        return self._timers[0][0]

    def active_timers(self) -> list[_Timer]:
        """Those that are worth waiting for."""
        return [each for _, _, each in self._timers if not (each.passive or each.cancelled())] if self._active else []

    @property
    def quiet(self) -> bool:
        """Whether there is none that is."""
        return not self._active

    def _end_all(self) -> None:
        """Cancel what is left, and let it go to its end; what does not end is dropped."""
        for _ in range(10):
            left = [task for task in self.tasks.values() if not task.done()]
            if not left:
                return
            for task in left:
                task.cancel()
            with contextlib.suppress(Livelock):
                for _ in range(10_000):
                    self._admit()
                    while self._ready:
                        self._ready.popleft().run()
                    if not self._enabled and not self._fresh:
                        break
                    if self._enabled:
                        self._enabled.pop(0).run()

    # --- the rest of the contract ---

    def get_debug(self) -> bool:
        """Never."""
        return False

    def is_running(self) -> bool:
        """Until the run is over."""
        return not self._closed

    def is_closed(self) -> bool:
        """When the run is over."""
        return self._closed

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Nothing: it would be a line in a log, when garbage is collected; what nobody has seen is in ``failed``."""

    async def shutdown_asyncgens(self) -> None:
        """Nothing is kept."""

    async def shutdown_default_executor(self, *_: Any) -> None:
        """There is none."""

    def run_in_executor(self, *_: Any) -> NoReturn:
        """Refused."""
        raise Nondeterminism.here("a thread (run_in_executor, to_thread)", "call the function on the loop")

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise Nondeterminism.here("a socket, pipe, signal or process of the event loop", "put it behind a tool")

    create_connection = create_server = create_unix_connection = create_unix_server = _refuse
    create_datagram_endpoint = subprocess_exec = subprocess_shell = add_reader = add_writer = _refuse
    connect_read_pipe = connect_write_pipe = connect_accepted_socket = _refuse
    getaddrinfo = getnameinfo = sock_connect = sock_recv = sock_sendall = add_signal_handler = _refuse
