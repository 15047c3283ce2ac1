"""When may the next call go to an upstream that asked for patience? Floor 3.

There is one gate per upstream (a model's API, a web service). One answer "too many requests" parks all its callers.

Rule 1: parks only ever extend: a shorter one does not shorten, and a later one makes those who wait wait longer.
Rule 2: when a park has passed, one caller goes as the probe. The others follow when it reports success, or after
        ``probe_timeout``; if it parks the gate again, they wait again.
Rule 3: callers go in the order they came. Who would wait past its deadline is refused at once.
Rule 4: callers of any loop and any thread may wait for one gate. Nothing polls, and nobody depends on another's loop:
        each has a timer of its own, and whoever looks first moves the gate on.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Literal

from grami_actors.errors import ErrorCode, GramiError, UpstreamError, WouldDeadlock
from grami_actors.messages import Scope

State = Literal["open", "parked", "ready", "probing"]
"""``ready``: the park has passed, and nobody has tried yet."""

_IN_TIME: dict[State, State] = {"parked": "ready", "probing": "open"}
"""What a state becomes when its time is over; the others last."""

_SHORTEST = 0.001
"""Seconds of the shortest timer. A loop's timer may come a tick early: a timer for the rest would spin."""


class _Waiter:
    """A caller that waits to be told once, from any thread, that it may go or why it may not."""

    __slots__ = ("call", "deadline", "refusal", "told")

    def __init__(self, deadline: float, call: Callable[[], object]) -> None:
        self.deadline = deadline
        self.call = call
        self.told = False
        self.refusal: UpstreamError | None = None

    def tell(self, refusal: UpstreamError | None = None) -> bool:
        """Let it go, or refuse it; ``False`` if its loop is closed, so that nobody waits any more."""
        self.refusal = refusal
        self.told = True
        try:
            self.call()
        except RuntimeError:
            return False
        return True


class RateGate:
    """The gate before one upstream.

    Args:
        clock: the seconds that deadlines count in.
        upstream: its name, for the texts of errors.
        longest: seconds; no park is longer, whatever the upstream asks for.
        probe_timeout: seconds that the others wait for a probe which reports nothing.
    """

    __slots__ = ("_clock", "_lock", "_longest", "_probe", "_probe_timeout", "_queue", "_state", "_until", "_upstream")

    def __init__(
        self,
        clock: Callable[[], float],
        upstream: str = "the upstream",
        *,
        longest: float = 3600.0,
        probe_timeout: float = 1.0,
    ) -> None:
        self._clock = clock
        self._upstream = upstream
        self._longest = longest
        self._probe_timeout = probe_timeout
        self._lock = threading.Lock()
        self._state: State = "open"
        self._until = -math.inf  # when the state changes by itself
        self._queue: OrderedDict[_Waiter, None] = OrderedDict()
        self._probe: _Waiter | None = None

    async def admit(self, deadline: float = math.inf) -> None:
        """Return when the caller may go.

        Args:
            deadline: the latest time, in seconds of the clock, at which going makes sense.

        Raises:
            UpstreamError: with the code UPSTREAM_RATE_LIMITED and ``retry_after_ms``: it would be after the deadline.
        """
        if self._state == "open":
            return
        loop = asyncio.get_running_loop()
        told: asyncio.Future[None] = loop.create_future()
        waiter = _Waiter(deadline, partial(loop.call_soon_threadsafe, _release, told))
        timer: asyncio.TimerHandle | None = None

        def look() -> None:
            nonlocal timer
            pause = self._look(waiter)
            timer = loop.call_later(pause, look) if pause > 0.0 else None

        try:
            look()
            await told  # also when it may go at once: those before it were told before it
        except BaseException:
            self._leave(waiter)
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if waiter.refusal is not None:
            raise waiter.refusal

    def wait(self, deadline: float = math.inf, scope: Scope | None = None) -> None:
        """Do what :meth:`admit` does, in an ordinary thread.

        Args:
            deadline: as for :meth:`admit`.
            scope: its end ends the wait.

        Raises:
            UpstreamError: as :meth:`admit`.
            GramiError: what the scope was cancelled with.
            WouldDeadlock: it would have to wait on the thread of a running event loop.
        """
        if self._state == "open":
            return
        if asyncio._get_running_loop() is not None:
            raise WouldDeadlock("a blocking wait() on an event loop's thread would stop it; await admit()")
        told = threading.Event()
        waiter = _Waiter(deadline, told.set)

        def give_up(_: GramiError) -> None:
            told.set()

        if scope is not None:
            scope.on_cancel(give_up)
        try:
            while (pause := self._look(waiter)) > 0.0:
                told.wait(pause)
                if scope is not None and scope.reason is not None:
                    raise scope.reason
        except BaseException:
            self._leave(waiter)
            raise
        finally:
            if scope is not None:
                scope.forget(give_up)
        if waiter.refusal is not None:
            raise waiter.refusal

    def park(self, seconds: float) -> None:
        """Close for this long from now on, because the upstream asked for it. From any thread.

        Raises:
            ValueError: it is negative or no number.
        """
        if not seconds >= 0.0:
            raise ValueError(f"a gate is parked for a number of seconds from 0 on, not {seconds}")
        with self._lock:
            now = self._clock()
            until = now + min(seconds, self._longest)
            self._until = max(until, self._until) if self._state == "parked" else until
            self._state, self._probe = "parked", None
            for waiter in [each for each in self._queue if each.deadline < self._until]:
                self._refuse(waiter, now)  # now, not when its time is over

    def succeeded(self) -> None:
        """Report that the upstream answered: the probe came through. When nobody probes, it changes nothing."""
        if self._state != "probing":
            return  # also the answer to a call from before the park, which says nothing of now
        with self._lock:
            if self._state == "probing":
                self._state = "open"
                self._advance(self._clock())

    @property
    def retry_after(self) -> float:
        """Seconds until the park has passed; 0 when the gate is not parked."""
        with self._lock:
            return max(0.0, self._until - self._clock()) if self._state == "parked" else 0.0

    @property
    def open(self) -> bool:
        """Whether a caller would go at once, if only as the probe."""
        return self._now() in {"open", "ready"}

    @property
    def probing(self) -> bool:
        """Whether a probe is out, and the others wait for its report."""
        return self._now() == "probing"

    def _now(self) -> State:
        with self._lock:
            self._advance(self._clock())
            return self._state

    def _look(self, waiter: _Waiter) -> float:
        """Move the gate on; returns 0 if the waiter has been told, else the seconds until it has to look again."""
        with self._lock:
            now = self._clock()
            if not waiter.told:
                self._queue[waiter] = None  # where it stood, if it did
                self._advance(now)
            late = waiter.deadline <= now or (self._state == "parked" and waiter.deadline < self._until)
            if late and not waiter.told:
                self._refuse(waiter, now)
            return 0.0 if waiter.told else max(_SHORTEST, min(self._until, waiter.deadline) - now)

    def _leave(self, waiter: _Waiter) -> None:
        """Somebody stopped waiting. If it was to be the probe, the next one is."""
        with self._lock:
            self._queue.pop(waiter, None)
            if self._probe is waiter:
                self._state = "ready"
                self._advance(self._clock())

    # --- with the lock held, so that callers are told in order ---

    def _advance(self, now: float) -> None:
        """Do what is due at this time: change the state, and let go who may."""
        if now >= self._until:
            self._state = _IN_TIME.get(self._state, self._state)
        if self._state == "ready":
            self._probe = self._let_go()
            if self._probe is not None:
                self._state, self._until = "probing", now + self._probe_timeout
        elif self._state == "open":
            self._probe = None
            while self._let_go() is not None:
                pass

    def _let_go(self) -> _Waiter | None:
        """Let the first who still waits go."""
        while self._queue:
            waiter, _ = self._queue.popitem(last=False)
            if waiter.tell():
                return waiter
        return None

    def _refuse(self, waiter: _Waiter, now: float) -> None:
        del self._queue[waiter]
        wait = self._until - now
        refusal = UpstreamError(
            f"{self._upstream} asks for patience: {wait:.3g} s more, past the deadline of this call",
            code=ErrorCode.UPSTREAM_RATE_LIMITED,
            retry_after_ms=math.ceil(wait * 1000),
        )
        waiter.tell(refusal)


def _release(told: asyncio.Future[None]) -> None:
    if not told.done():
        told.set_result(None)


class Gates:
    """One gate per upstream, made when it is first asked for. From any thread.

    Args:
        clock: the seconds that deadlines count in.
    """

    __slots__ = ("_clock", "_gates", "_lock")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._gates: dict[str, RateGate] = {}

    def gate(self, upstream: str) -> RateGate:
        """The gate of an upstream, by its name."""
        found = self._gates.get(upstream)
        if found is None:
            with self._lock:
                found = self._gates.get(upstream)
                if found is None:
                    found = self._gates[upstream] = RateGate(self._clock, upstream)
        return found
