"""Messages that an actor sends itself later, by key; a restart or a stop cancels them. Floor 7.

The same contract as Akka's timers: setting a key again replaces its timer, and a message of a timer that was
cancelled is never handled, even if it already waits in the mailbox.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

from grami_actors.cell import Cell
from grami_actors.errors import AgentUnavailable, Cancelled
from grami_actors.messages import Envelope, Scope

MANY = 64
"""Timers among which those that are done are looked for when one more is set."""


class _Timer:
    __slots__ = ("disarm", "due", "envelope", "every", "message")

    def __init__(self, message: Any, due: float, every: float | None) -> None:
        self.message = message
        self.due = due
        self.every = every
        self.envelope: Envelope | None = None
        self.disarm: Callable[[], None] | None = None

    @property
    def waits(self) -> bool:
        """Whether its message is in the mailbox."""
        return self.envelope is not None and self.envelope.receiver is None

    @property
    def pending(self) -> bool:
        """Whether it may still have something handled."""
        return self.disarm is not None or self.waits


class Timers:
    """The timers of one actor. To be used from its handlers and hooks, on whatever lane."""

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self._timers: dict[Hashable, _Timer] = {}
        self._numbers = itertools.count(1)
        self._many = MANY
        self._lock = threading.Lock()  # a timer comes on the home loop, the actor may be on a thread

    def set(self, seconds: float, message: Any, key: Hashable, every: float | None = None) -> Hashable:
        """Send ``message`` in ``seconds``, and then every ``every`` seconds.

        Returns:
            the key, made up if it is ``None``.

        Raises:
            ValueError: a time that is negative, or an interval that is not more than 0.
        """
        if not seconds >= 0 or (every is not None and not every > 0):
            raise ValueError("a timer needs seconds of at least 0, and an interval of more than 0 seconds")
        if key is None:
            key = f"timer-{next(self._numbers)}"
        with self._lock:
            self._set(seconds, message, key, every)
        return key

    def _set(self, seconds: float, message: Any, key: Hashable, every: float | None) -> None:
        self._cancel(key)
        if len(self._timers) >= self._many:
            self._timers = {key: timer for key, timer in self._timers.items() if timer.pending}
            self._many = max(MANY, 2 * len(self._timers))
        timer = _Timer(message, self._cell.now() + seconds, every)
        self._timers[key] = timer
        self._arm(seconds, key, timer)

    def _arm(self, seconds: float, key: Hashable, timer: _Timer) -> None:
        timer.disarm = self._cell.runtime.after(max(0.0, seconds), partial(self._fire, key, timer))

    def _fire(self, key: Hashable, timer: _Timer) -> None:
        with self._lock:
            self._come(key, timer)

    def _come(self, key: Hashable, timer: _Timer) -> None:
        if self._timers.get(key) is not timer:
            return
        timer.disarm = None
        if not timer.waits:  # else the actor is behind, and one in its mailbox is enough
            timer.envelope = Envelope(
                timer.message, None, self._cell.name, Scope(trace_id=self._cell.runtime.new_trace_id)
            )
            try:
                self._cell.post_always(timer.envelope)
            except AgentUnavailable:
                return
        if timer.every is not None:
            # Counted from when it was due, so that the interval does not drift; what was missed is not made up for.
            late = self._cell.now() - timer.due
            timer.due += timer.every * max(1, math.ceil(late / timer.every))
            self._arm(timer.due - self._cell.now(), key, timer)

    def cancel(self, key: Hashable) -> bool:
        """Cancel a timer; ``False`` if there is none of that key, or its message was handled."""
        with self._lock:
            return self._cancel(key)

    def _cancel(self, key: Hashable) -> bool:
        timer = self._timers.pop(key, None)
        if timer is None or not timer.pending:
            return False
        if timer.disarm is not None:
            timer.disarm()
        if timer.waits and timer.envelope is not None and timer.envelope.scope is not None:
            timer.envelope.scope.cancel(Cancelled("the timer was cancelled"))
        return True

    def cancel_all(self) -> None:
        """Cancel every timer."""
        for key in tuple(self._timers):
            self.cancel(key)
