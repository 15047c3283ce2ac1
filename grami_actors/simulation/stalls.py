"""A step of a run that does not end: a loop without ``await``, or a wait for what a simulation has not. Floor 14.

A thread looks now and then whether the run has taken a step. Where it has not for too long, it interrupts the thread of
the run with a signal, in whose handler the place is known. On platforms without such signals, and for runs that are not
on the main thread, nobody looks.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

from grami_actors.future import handled
from grami_actors.simulation.loop import VirtualLoop
from grami_actors.simulation.places import innermost, outwards, place

EVERY = 1.0
"""Seconds between two looks."""

COMPUTING = 10.0
"""Seconds of processor time that one step may take."""

BLOCKED = 30.0
"""Seconds that one step may wait, of no processor time, where nobody is there who may have stopped it in a debugger."""

IDLE = 0.01
"""The share of a processor's time that whoever only waits uses at most."""

MOST_STRIKES = 3
"""Interruptions of one run, after which a process that nobody attends ends itself."""

TRIES = 1_000
"""How often code of the user's is waited for, a millisecond each, so that its place can be told."""


class Hang(BaseException):
    """A step does not end. No ``Exception``: a loop that catches all of those is to be left, too."""


class _Watcher:
    """Looks after the runs of this thread."""

    def __init__(self, *, unattended: bool) -> None:
        self.loop: VirtualLoop | None = None
        self.runs = 0
        self.strikes = 0
        self._blocked = BLOCKED if unattended else None
        self._why = ""
        self._tries = 0
        self._watched = threading.get_ident()
        self._closed = threading.Event()
        self._before = signal.signal(signal.SIGVTALRM, self._interrupt)
        self._thread = threading.Thread(target=self._look, name="grami-stalls", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread, and give the signal back."""
        self._closed.set()
        self._thread.join()
        signal.signal(signal.SIGVTALRM, self._before)

    def _look(self) -> None:
        clock = time.pthread_getcpuclockid(self._watched)
        seen: tuple[int, int] | None = None
        begun = waited = 0.0
        while not self._closed.wait(EVERY):
            mark, now = self._mark(), time.clock_gettime(clock)
            if mark is None or mark != seen:
                seen, begun, waited = mark, now, 0.0
                continue
            waited += EVERY  # counted, not measured: who was suspended did not wait
            if now - begun >= COMPUTING:
                self._why = f"it has taken {now - begun:.1f} s of processor time"
            elif self._blocked is not None and waited >= self._blocked and now - begun < IDLE * waited:
                self._why = "it waits for something outside of the simulation, such as another thread"
            else:
                continue
            begun, waited = now, 0.0
            signal.pthread_kill(self._watched, signal.SIGVTALRM)

    def _mark(self) -> tuple[int, int] | None:
        """Which run is under way, and how far it has come."""
        loop = self.loop
        return None if loop is None else (self.runs, loop.steps)

    def _interrupt(self, _number: int, frame: FrameType | None) -> None:
        loop = self.loop
        if loop is None:  # it has ended meanwhile
            return
        found = innermost(itertools.takewhile(lambda each: each.f_code is not _RUNS, outwards(frame)))
        if found is None and self._tries < TRIES:  # between two callbacks of the user's
            self._tries += 1
            signal.setitimer(signal.ITIMER_VIRTUAL, 0.001)
            return
        self._tries = 0
        where = "of the runtime" if found is None else f"at {place(found.f_code, found.f_lineno)}{_actor()}"
        hang = Hang(f"a step {where} does not end: {self._why}")
        self.strikes += 1
        if self._blocked is not None and self.strikes == MOST_STRIKES:
            sys.stderr.write(f"{hang}; it cannot be interrupted, for it catches everything\n")
            sys.stderr.flush()
            os._exit(1)
        loop.call_soon(_raise, hang)  # whatever the actor makes of it, the run is over
        raise hang


def _raise(hang: Hang) -> None:
    raise hang


def _actor() -> str:
    message = handled()
    return "" if message is None or message.receiver is None else f" in {message.receiver.name}"


_RUNS = VirtualLoop._run_until.__code__  # noqa: SLF001 - whoever stands further out is not of the run

_watchers: list[_Watcher] = []


@contextlib.contextmanager
def watching(*, unattended: bool = False) -> Iterator[None]:
    """Look after all runs in here.

    Args:
        unattended: whether nobody can have stopped them in a debugger, so that waiting is an error, too.
    """
    able = hasattr(signal, "SIGVTALRM") and hasattr(time, "pthread_getcpuclockid")
    if _watchers or not able or threading.current_thread() is not threading.main_thread():
        yield
        return
    _watchers.append(watcher := _Watcher(unattended=unattended))
    try:
        yield
    finally:
        _watchers.clear()
        if not sys.is_finalizing():  # no thread runs any more that could be waited for
            watcher.close()


@contextlib.contextmanager
def watched(loop: VirtualLoop) -> Iterator[None]:
    """Look after one run."""
    with watching():
        for watcher in _watchers:
            watcher.loop = loop
            watcher.runs += 1
            watcher.strikes = 0
        try:
            yield
        finally:
            for watcher in _watchers:
                watcher.loop = None
