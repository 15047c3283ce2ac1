"""Attempts in processes of their own, each under a shim that outlives the server. Floor 12.

Rule 1: the truth about an attempt is in its folder (:mod:`.folder`); a run only reads it, so that any run can go on
        where another stopped, in another server, too.
Rule 2: what the job said is reported piece by piece, the next piece when the one before is written down: a job that
        says much costs disk, not memory.
Rule 3: a shim that died takes its processes with it: what is left of them is killed before it is reported lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from grami_actors.errors import ErrorCode, GramiError, describe
from grami_actors.job import Reason, State
from grami_actors.jobs import processes
from grami_actors.jobs.endings import lost, outcome_of, unstarted
from grami_actors.jobs.failpoints import reached
from grami_actors.jobs.folder import AttemptFolder, Taken, Verdict
from grami_actors.jobs.logs import size_of
from grami_actors.jobs.record import Record
from grami_actors.jobs.runner import Attempt, Outcome, Reports
from grami_actors.jobs.shim_spec import spec_of
from grami_actors.jobs.store import Note
from grami_actors.jobs.wakes import Wakes, Watcher
from grami_actors.tools import Tool

SHIM = Path(__file__).parent / "shim" / "start.py"
"""The program of a shim."""

LOG_PAUSES = 1.0, 30.0
"""Seconds between two events that tell of more output: the first, and the longest; each is twice the one before."""

_TRIES = 5
_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN} | _UNWRITABLE
_CLOSING = 0.01


class OutsideRunner:
    """Makes runs of tools and commands that are processes.

    Args:
        wakes: open.
        tools: by name.
        clock: gives seconds since the epoch.
        mortal: whether all attempts are to end with the server, whatever their terms are.
    """

    def __init__(
        self,
        wakes: Wakes,
        tools: Mapping[str, Tool[..., Any]],
        clock: Callable[[], float] = time.time,
        *,
        mortal: bool = False,
    ) -> None:
        self.wakes = wakes
        self.tools = tools
        self.clock = clock
        self.mortal = mortal
        self.runs: set[OutsideRun] = set()

    def run(self, attempt: Attempt, reports: Reports) -> OutsideRun:
        """One that is neither begun nor adopted."""
        return OutsideRun(self, attempt, reports)

    def close(self) -> None:
        """The server ends: let go of all of them; the shims go on."""
        for run in tuple(self.runs):
            run.leave()


class OutsideRun:
    """One attempt under a shim; see :class:`~grami_actors.jobs.runner.Run`."""

    def __init__(self, runner: OutsideRunner, attempt: Attempt, reports: Reports) -> None:
        self._runner = runner
        self._wakes = runner.wakes
        self._job = attempt.job
        self._key = attempt.job.id, attempt.job.attempt
        self._folder = AttemptFolder(attempt.folder.absolute())
        self._reports = reports
        self._record = Record(self._folder.record, attempt.job)
        self._changed = asyncio.Event()
        self._watcher = Watcher(self._changed.set, self._glance)
        self._task: asyncio.Task[None] | None = None
        self._orders: deque[dict[str, Any]] = deque()
        self._stopping = False
        self._log = attempt.job.log
        self._log_pause = LOG_PAUSES[0]
        self._log_at = 0.0

    # --- what it is told ---

    async def begin(self) -> None:
        """Start it, and return when its shim has written down that it starts, or will never do so."""
        self._attend()
        try:
            spec = spec_of(self._job, self._runner.tools.get(self._job.tool), self._wakes.path, self._runner.clock())
            spec["lifeline"] |= self._runner.mortal
        except GramiError as error:
            return self._end(unstarted(self._runner.clock(), error.error_code, str(error), permanent=True))
        for _ in range(_TRIES):
            try:
                spawned = await asyncio.to_thread(self._launch, spec)
            except OSError as error:
                code = ErrorCode.RESOURCE_EXHAUSTED if error.errno in _EXHAUSTED else ErrorCode.INTERNAL_ERROR
                return self._end(unstarted(self._runner.clock(), code, describe(error)))
            except UnicodeError as error:  # a path of the server, or a variable of the command, is no text
                text = f"what it is started with cannot be written down: {describe(error)}"
                return self._end(unstarted(self._runner.clock(), ErrorCode.INTERNAL_ERROR, text, permanent=True))
            if await self._is_begun():
                return self._go_on()
            if spawned:
                break
        text = "its shim ended before it began"
        return self._end(unstarted(self._runner.clock(), ErrorCode.INTERNAL_ERROR, text))

    async def adopt(self) -> None:
        """Go on with it, whatever became of it. Raises OSError: its folder cannot be looked at."""
        reached("outside.before_adopt")
        self._attend()
        # What is known to have run, and of which there is no trace, is not started a second time.
        if await self._is_begun() or self._job.state in {State.RUNNING, State.INPUT_REQUIRED}:
            self._go_on()
        else:
            await self.begin()

    def stop(self, reason: Reason, *, force: bool = False) -> None:
        """Have it end; a second time by force."""
        self._order({"stop": reason, "force": force or self._stopping})
        self._stopping = True

    def answer(self, answer: Any, question: int) -> None:
        """Give it its input, which its shim hands over once."""
        self._order({"input": answer, "question": question})

    def leave(self) -> None:
        """Let go of it; the shim goes on."""
        self._ignore()
        if self._task is not None:
            self._task.cancel()

    def _order(self, order: dict[str, Any]) -> None:
        self._orders.append(order)
        self._give()

    def _give(self) -> None:
        with contextlib.suppress(OSError):  # the disk is full, perhaps: the next look tries again
            while self._orders:
                self._folder.tell(self._orders[0])
                self._orders.popleft()

    # --- its beginning ---

    def _launch(self, spec: dict[str, Any]) -> bool:
        """Start a shim, if nobody did; says whether it was this one. Raises OSError: none was started."""
        try:
            with self._folder.locked() as locks:
                self._folder.write_spec(spec)
                reached("outside.before_spawn")
                lifeline = self._wakes.lifeline if spec["lifeline"] else -1
                descriptors = [str(each) for each in (*locks, lifeline)]
                child = subprocess.Popen(
                    (sys.executable, "-I", "-S", str(SHIM), str(self._folder.path), *descriptors),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=[each for each in (*locks, lifeline) if each >= 0],
                    cwd="/",
                    # The kernel shows what a process was started with: its mark is there, also in what it forks.
                    env={**spec["environ"], **_failpoint()},
                    start_new_session=True,
                )
        except Taken:
            return False
        self._loop.call_soon_threadsafe(self._wakes.spawned, self._key, child)
        reached("outside.after_spawn")
        return True

    async def _is_begun(self) -> bool:
        """Whether its code runs, or ran; waits while that is open."""
        while True:
            self._changed.clear()
            alive = self._folder.alive  # before the rest: a shim that is gone writes nothing more
            if self._folder.started or self._folder.finished:
                return True
            if not alive:
                return False
            await self._changed.wait()

    def _go_on(self) -> None:
        begun = self._folder.read("run.json")
        if isinstance(begun.get("pid"), int):
            self._wakes.follow(self._key, begun["pid"], begun.get("start", 0))
        ending = self._folder.read("exit.json")
        if self._job.state is State.STARTING and not ending.get("unstarted"):
            self._reports.started(begun.get("at") or ending.get("started_at") or self._runner.clock())
        self._task = self._loop.create_task(self._follow(), name=f"job {self._job.id}")

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return self._wakes.loop

    # --- its course ---

    def _glance(self) -> None:
        """See whether something happened that nobody told; called for each run every few seconds."""
        try:
            # While it begins, a lock that is looked at could not be taken.
            quiet = self._task is not None and not (
                self._orders or self._record.unread() or self._has_output() or not self._folder.alive
            )
        except OSError:
            quiet = False
        if not quiet:
            self._changed.set()

    def _has_output(self) -> bool:
        return self._loop.time() >= self._log_at and size_of(self._folder.path) > self._log

    async def _follow(self) -> None:
        try:
            self._end(await self._watched())
        finally:
            self._ignore()

    async def _watched(self) -> Outcome:
        """Report all it says until it is over."""
        while True:
            self._changed.clear()
            try:
                verdict = self._folder.verdict()  # before the reading: what comes after it wakes again
                await self._report()
                if verdict is not Verdict.ALIVE:
                    return await self._conclude(verdict)
                self._give()
                closing = self._folder.finished
            except OSError:  # the disk cannot be read now: that says nothing about the job
                closing = False
            with contextlib.suppress(TimeoutError):
                # A shim that has said all is gone in a moment; not every system tells when.
                async with asyncio.timeout(_CLOSING if closing else None):
                    await self._changed.wait()

    async def _report(self) -> None:
        while parts := self._record.parts():
            empty = True
            for part in parts:
                empty = False
                if part.asks is None:
                    await self._reports.noted(part.notes, part.fields)
                else:
                    await self._reports.asks(part.asks.question, part.asks.at, part.fields)
            if empty:
                break
        await self._report_output()

    async def _report_output(self, least: int | None = None) -> None:
        """Say how much output there is, now and then; with ``least``, the size at the end, at once."""
        now = self._loop.time()
        if least is None and now < self._log_at:
            return
        size = max(size_of(self._folder.path), least or 0)
        grown = size > self._log
        self._log_pause = min(LOG_PAUSES[1], self._log_pause * 2) if grown else LOG_PAUSES[0]
        self._log_at = now + self._log_pause
        if grown:
            self._log = size
            await self._reports.noted([Note("log", self._runner.clock(), {"end": size})], {"log": size})

    # --- its end ---

    async def _conclude(self, verdict: Verdict) -> Outcome:
        if verdict is Verdict.FINISHED:
            outcome = outcome_of(self._folder, self._runner.clock())
        else:
            begun = self._folder.read("run.json")
            boot = processes.boot_id()
            rebooted = begun.get("boot", boot) != boot  # somebody who removes its folder is no restart
            copied = self._folder.is_copy(begun)
            if not (rebooted or copied):
                await self._clear()
            outcome = lost(self._runner.clock(), rebooted=rebooted, copied=copied)
        await self._report_output(0 if outcome.exit is None else outcome.exit.log)
        return outcome

    async def _clear(self) -> None:
        """Kill what a shim that died left behind, until nothing is found any more."""
        mark = str(self._folder.read("spec.json").get("mark", ""))
        pause = 0.001
        while await asyncio.to_thread(self._strike, mark):
            await asyncio.sleep(pause)
            pause = min(1.0, pause * 2)

    def _strike(self, mark: str) -> bool:
        """Kill what is there; says whether there was something."""
        return processes.clear(mark, self._folder.tree_lock) or self._folder.tree_alive

    def _end(self, outcome: Outcome) -> None:
        self._ignore()
        self._reports.ended(outcome)

    # --- whether it hears of its shim ---

    def _attend(self) -> None:
        self._wakes.watch(self._key, self._watcher)
        self._runner.runs.add(self)

    def _ignore(self) -> None:
        self._wakes.unwatch(self._key, self._watcher)
        self._runner.runs.discard(self)


def _failpoint() -> dict[str, str]:
    # It is no setting of the job, and not in its environment: only the shim is to die of it.
    return {name: value for name, value in os.environ.items() if name == "GRAMI_FAILPOINT"}
