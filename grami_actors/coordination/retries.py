"""How long, and how often: asking again where the same message may be handled twice. Floor 12."""

from __future__ import annotations

import asyncio
import itertools
import math
from typing import Any

import msgspec

from grami_actors.actor import Actor
from grami_actors.cell import ASK_TIMEOUT
from grami_actors.errors import AgentCrashed, AgentUnavailable
from grami_actors.future import current_scope


class Retries(msgspec.Struct, frozen=True):
    """How often something is tried that must succeed in the end.

    Attributes:
        tries: how often at most, the first time included.
        timeout: seconds for each.
        shortest: seconds before the second; twice as long before each that follows.
        longest: seconds; the pause never grows beyond it.
    """

    tries: int = 10
    timeout: float = 30.0
    shortest: float = 0.1
    longest: float = 30.0

    def __post_init__(self) -> None:
        if not (self.tries >= 1 and self.timeout > 0 and 0 <= self.shortest <= self.longest):
            raise ValueError(f"{self} makes no sense: tries >= 1, timeout > 0, 0 <= shortest <= longest")

    def pause(self, failures: int) -> float:
        """Seconds before the next try, after so many failures."""
        return min(self.longest, self.shortest * 2.0 ** min(failures - 1, 64))


def latest(by: Actor, timeout: float | None) -> float:
    """When an ask that is made now ends at the latest, in seconds on the system's clock: as every ask's deadline."""
    scope = current_scope()
    limit = math.inf if scope is None else scope.deadline
    if timeout is None and limit == math.inf:
        timeout = ASK_TIMEOUT
    return limit if timeout is None else min(limit, by._cell.now() + timeout)


async def ask_again(by: Actor, to: str, message: Any, timeout: float | None) -> Any:
    """Ask, and again while the other is being restarted: for messages that may be handled twice. Raises as an ask."""
    until, retries = latest(by, timeout), Retries(shortest=0.05, longest=2.0)
    for failures in itertools.count(1):
        try:
            return await by.ask(to, message, timeout=until - by._cell.now())
        except (AgentCrashed, AgentUnavailable):
            pause = retries.pause(failures)
            if by._cell.now() + pause >= until:
                raise
        await asyncio.sleep(pause)
    raise AssertionError  # the count does not end
