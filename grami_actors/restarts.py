"""When is a failed actor restarted, and after how long? Decisions only. Floor 2.

The rules are those of OTP's supervisor (restart intensity: ``intensity`` restarts in ``period``, then give
up and escalate; https://www.erlang.org/doc/system/sup_princ#maximum-restart-intensity) with the
exponential backoff of Akka's ``BackoffSupervisor``: ``min(longest, shortest · 2ⁿ)`` plus jitter, where n
counts the restarts of the period, so a healthy period resets it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import msgspec

Directive = Literal["resume", "restart", "stop", "escalate"]
"""What follows a failure: the instance goes on as it is; a fresh one takes over; the actor ends; its parent fails."""


class RestartPolicy(msgspec.Struct, frozen=True):
    """How often and how fast a failed actor is restarted.

    Attributes:
        intensity: restarts allowed within ``period``; one failure more escalates, or pauses.
        period: seconds.
        shortest: seconds before the first restart of a period.
        longest: seconds; the delay never grows beyond it (before jitter).
        jitter: the delay is multiplied by up to ``1 + jitter``, so that actors that failed together do not
            come back together.
        directives: what follows a failure with an exception of this class or a subclass, the closest one counting;
            ``restart`` for those that are not listed.
        redeliver: give the failing message to the fresh instance once more; if that fails too, the message is
            poison: a dead letter with the traceback. Without it the message is not tried again.
        pause: seconds that an actor which exceeds the intensity rests before it starts over; ``None`` gives up
            and escalates. For servers: one client's poison must not end an agent for all.
    """

    intensity: int = 3
    period: float = 10.0
    shortest: float = 0.05
    longest: float = 5.0
    jitter: float = 0.2
    pause: float | None = None
    directives: Mapping[type[BaseException], Directive] = {}
    redeliver: bool = False

    def __post_init__(self) -> None:
        finite = all(map(math.isfinite, (self.period, self.shortest, self.longest, self.jitter, self.pause or 0.0)))
        ordered = self.intensity >= 0 and self.period > 0 and 0 <= self.shortest <= self.longest and self.jitter >= 0
        ordered = ordered and (self.pause is None or self.pause >= 0)
        if not (finite and ordered):
            raise ValueError(f"{self} makes no sense: intensity and jitter >= 0, period > 0, shortest <= longest")
        if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in self.directives):
            raise TypeError("directives maps exception classes to what follows, as in {ValueError: 'stop'}")
        if wrong := set(self.directives.values()).difference(get_args(Directive)):
            raise ValueError(f"{sorted(wrong)} are none of {', '.join(get_args(Directive))}")

    def directive(self, error: BaseException) -> Directive:
        """What follows this failure."""
        for kind in type(error).__mro__:
            if kind in self.directives:
                return self.directives[kind]
        return "restart"


class Restart(msgspec.Struct, frozen=True):
    """Restart after ``delay`` seconds; ``history`` is to be kept for the next decision. ``paused``: it rests."""

    delay: float
    history: tuple[float, ...]
    paused: bool = False


class GiveUp(msgspec.Struct, frozen=True):
    """The intensity is exceeded: stop the actor and tell the parent."""

    failures: int


def decide(policy: RestartPolicy, history: Sequence[float], now: float, random: float) -> Restart | GiveUp:
    """Decide what follows a failure.

    Args:
        policy: the rules.
        history: the times of the restarts so far, in seconds.
        now: the time of this failure, in seconds on the same clock.
        random: a number from 0 up to 1 that spreads the delay.
    """
    recent = tuple(then for then in history if now - then < policy.period)
    if len(recent) >= policy.intensity:
        if policy.pause is None:
            return GiveUp(failures=len(recent) + 1)
        return Restart(delay=policy.pause * (1.0 + policy.jitter * random), history=(), paused=True)
    # The exponent is bounded: 2.0 ** 1024 overflows, and a large intensity is legal.
    delay = min(policy.longest, policy.shortest * 2.0 ** min(len(recent), 64))
    return Restart(delay=delay * (1.0 + policy.jitter * random), history=(*recent, now))
