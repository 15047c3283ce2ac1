"""Who keeps the event loop waiting? A thread that looks. Floor 7.

Rules:

1. The watcher looks at the stack of the loop's thread, a few dozen times a second; the loop is not disturbed.
2. The frame of a cell on that stack says which actor is at work, the frame above it where its handler stands.
3. A turn is slow if the same frame is seen for :data:`~grami_actors.system.SLOW_TURN` seconds, and the loop has not
   come round in between: a coroutine that awaits keeps its frame, but lets the loop go.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from pathlib import PurePath
from types import CodeType, FrameType

from grami_actors.cell import Cell
from grami_actors.telemetry import Bus, SlowTurn


class _Sighting:
    """One handler at work, since when, and whether the loop has come round since."""

    __slots__ = ("came_round", "frame", "reported", "since")

    def __init__(self, frame: FrameType, since: float) -> None:
        self.frame = frame
        self.since = since
        self.came_round = threading.Event()
        self.reported = False


class Watchdog:
    """Publishes a :class:`~grami_actors.telemetry.SlowTurn` for every turn that is too long, while it lasts.

    Args:
        loop: the running loop; this is its thread.
        bus: where to publish, from the watching thread.
        slow: seconds.
        turns: other code that calls handlers, its cell in the variable ``cell``: of the lane, and of a profile.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, bus: Bus, slow: float, *turns: CodeType) -> None:
        self._loop = loop
        self._bus = bus
        self._slow = slow
        # What handles messages, and the variable in which it has the cell.
        ours = (Cell.handle.__code__, Cell.perform.__code__, Cell.drive.__code__)
        self._handling = dict.fromkeys(ours, "self") | dict.fromkeys(turns, "cell")
        self._watched = threading.get_ident()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="grami-watchdog", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        seen: _Sighting | None = None
        while not self._closed.wait(self._slow / 2):
            seen = self._look(seen) if SlowTurn in self._bus else None  # else it would keep a frame alive

    def _look(self, seen: _Sighting | None) -> _Sighting | None:
        inner = sys._current_frames().get(self._watched)
        frame = self._find(inner)
        if frame is None or inner is None:
            return None
        if seen is None or seen.frame is not frame or seen.came_round.is_set():
            seen = _Sighting(frame, time.monotonic())
            with contextlib.suppress(RuntimeError):  # the loop is closed, and so will be this
                self._loop.call_soon_threadsafe(seen.came_round.set)
            return seen
        elapsed = time.monotonic() - seen.since
        if elapsed >= self._slow and not seen.reported:
            seen.reported = True
            self._bus.publish(
                SlowTurn(frame.f_locals[self._handling[frame.f_code]].name, _place(frame, inner), elapsed)
            )
        return seen

    def _find(self, frame: FrameType | None) -> FrameType | None:
        """The innermost frame that handles a message."""
        while frame is not None and frame.f_code not in self._handling:
            frame = frame.f_back
        return frame


def _place(handling: FrameType, inner: FrameType) -> str:
    """Where the handler stands, and where what it called stands, if that is somewhere else."""
    handler = inner
    while handler.f_back is not None and handler.f_back is not handling:
        handler = handler.f_back
    if handler is inner:
        return _line(inner)
    return f"{_line(handler)}, in {_line(inner)}"


def _line(frame: FrameType) -> str:
    code = frame.f_code
    return f"{PurePath(code.co_filename).name}:{frame.f_lineno} {code.co_qualname}"
