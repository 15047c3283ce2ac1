"""How much may one request cost? Limits, and what has been spent of them. Floor 2.

A :class:`Budget` is the limits; a :class:`Meter` counts for everything that a request causes, on all threads.

Rule 1: spending exactly a limit is allowed, one more is not.
Rule 2: messages, tool calls and spawns are charged before they happen. A charge that is refused adds none of them,
        neither here nor in a parent.
Rule 3: tokens and cost are facts, known when they are spent. They are added in any case, also when they cross.
Rule 4: the first crossing ends the request: it is kept in ``exhausted``, ``on_exhausted`` is called once, and every
        charge after it is refused.
Rule 5: a charge counts here and in all parents. Crossing a limit ends what lies below the meter that has the limit.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable
from fractions import Fraction

import msgspec

from grami_actors.errors import QuotaExceeded

Amount = int | Fraction
"""Counted things are integers; costs are fractions, as they are written: three times 0.1 is 0.3, unlike for floats."""

_WORDS = {
    "messages": "messages",
    "tool_calls": "tool calls",
    "spawns": "spawned actors",
    "tokens": "tokens",
    "cost": "in cost",
    "depth": "levels of depth",
}


class Budget(msgspec.Struct, frozen=True):
    """The limits of one request; ``None`` is no limit.

    Attributes:
        messages: between actors.
        tool_calls: calls of tools.
        tokens: of language models, read and written.
        spawns: actors started.
        depth: how many asks (or spawns) deep one may cause the next.
        cost: in whatever currency the caller counts.

    Raises:
        ValueError: a limit is negative or no finite number.
    """

    messages: int | None = None
    tool_calls: int | None = None
    tokens: int | None = None
    spawns: int | None = None
    depth: int | None = None
    cost: float | None = None

    def __post_init__(self) -> None:
        for name, limit in msgspec.structs.asdict(self).items():
            if limit is not None and not 0 <= limit < math.inf:
                raise ValueError(f"a budget's {name} is a number from 0 on, or None for no limit, not {limit}")


class Spent(msgspec.Struct, frozen=True):
    """What a meter has counted up to one moment."""

    messages: int
    tool_calls: int
    tokens: int
    spawns: int
    cost: float


class _Account:
    """The limits of one meter, and what counts against them. To be used with the request's lock held."""

    __slots__ = ("base", "budget", "exhausted", "limits", "on_exhausted", "spent")

    def __init__(self, budget: Budget, on_exhausted: Callable[[QuotaExceeded], object] | None, base: int) -> None:
        self.budget = budget
        self.base = base
        self.on_exhausted = on_exhausted
        self.exhausted: QuotaExceeded | None = None
        self.spent: dict[str, Amount] = dict.fromkeys(_WORDS, 0)
        self.limits: dict[str, Amount] = {
            name: _exact(limit) if name == "cost" else limit
            for name, limit in msgspec.structs.asdict(budget).items()
            if limit is not None
        }

    def first_crossed(self, amounts: dict[str, Amount]) -> str:
        """The limit that these amounts more would cross; empty for none."""
        for name, amount in amounts.items():
            spent = -self.base if name == "depth" else self.spent[name]
            if amount and name in self.limits and spent + amount > self.limits[name]:
                return name
        return ""

    def add(self, amounts: dict[str, Amount]) -> None:
        """Count these amounts."""
        for name, amount in amounts.items():
            if amount:
                self.spent[name] += amount

    def end(self, name: str) -> None:
        """Keep that a limit is crossed."""
        limit = getattr(self.budget, name)
        self.exhausted = QuotaExceeded(f"the request is ended: its budget of {limit} {_WORDS[name]} is used up")


class Meter:
    """What a request has spent: shared by all its actors, tools and threads.

    Args:
        budget: the limits.
        parent: the meter of the request that this is a part of.
        on_exhausted: called once, by the thread that crosses a limit of this meter, with no lock held; must not raise.
    """

    __slots__ = ("_accounts", "_lock", "budget")

    def __init__(
        self,
        budget: Budget,
        parent: Meter | None = None,
        *,
        on_exhausted: Callable[[QuotaExceeded], object] | None = None,
        base: int = 0,
    ) -> None:
        self.budget = budget
        own = _Account(budget, on_exhausted, base)
        # One lock for all meters of a request: a charge counts in all of them or in none.
        self._lock: threading.Lock = threading.Lock() if parent is None else parent._lock  # noqa: SLF001
        self._accounts: tuple[_Account, ...] = (own,) if parent is None else (own, *parent._accounts)  # noqa: SLF001

    def charge(
        self, *, messages: int = 0, tool_calls: int = 0, tokens: int = 0, cost: float = 0.0, spawns: int = 0
    ) -> None:
        """Count what is about to happen (messages, tool calls, spawns) or has happened (tokens, cost).

        Raises:
            QuotaExceeded: a limit is crossed, here or in a parent, by this charge or by one before it.
            ValueError: an amount is negative or no finite number.
        """
        planned: dict[str, Amount] = {"messages": messages, "tool_calls": tool_calls, "spawns": spawns}
        if min(messages, tool_calls, spawns, tokens) < 0 or not 0 <= cost < math.inf:
            raise ValueError(f"amounts are numbers from 0 on: {planned}, tokens {tokens}, cost {cost}")
        facts: dict[str, Amount] = {"tokens": tokens, "cost": _exact(cost) if cost else 0}
        with self._lock:
            crossed = self._add_facts(facts)
            if self.exhausted is None:
                crossed = self._refuse(planned)
                if not crossed:
                    for account in self._accounts:
                        account.add(planned)
            reason = self.exhausted
        _tell(crossed, reason)

    def check_depth(self, depth: int) -> None:
        """Refuse what lies deeper than the budget allows.

        Raises:
            QuotaExceeded: it does, here or in a parent, or a limit was crossed before.
        """
        with self._lock:
            crossed = self._refuse({"depth": depth}) if self.exhausted is None else []
            reason = self.exhausted
        _tell(crossed, reason)

    @property
    def exhausted(self) -> QuotaExceeded | None:
        """The first crossing of a limit, here or in the nearest parent that has one; ``None`` while there is none."""
        return next((account.exhausted for account in self._accounts if account.exhausted is not None), None)

    def spent(self) -> Spent:
        """What has been counted here so far."""
        with self._lock:
            spent = dict(self._accounts[0].spent)
        counts = {name: int(spent[name]) for name in ("messages", "tool_calls", "tokens", "spawns")}
        return Spent(**counts, cost=float(spent["cost"]))

    def left(self) -> Budget:
        """What may still be charged, here and in all parents, and the least depth; ``None`` for what has no limit."""
        with self._lock:
            left = {name: self._least(name) for name in _WORDS}
        cost = left.pop("cost")
        counts = {name: None if amount is None else int(amount) for name, amount in left.items()}
        return Budget(**counts, cost=None if cost is None else _rounded_down(cost))

    # --- with the lock held ---

    def _least(self, name: str) -> Amount | None:
        left = [account.limits[name] - account.spent[name] for account in self._accounts if name in account.limits]
        return max(0, min(left)) if left else None

    def _add_facts(self, facts: dict[str, Amount]) -> list[_Account]:
        """Count what was spent, everywhere; returns the accounts whose limits this crosses for the first time."""
        crossed = []
        for account in self._accounts:
            limit = account.first_crossed(facts)
            account.add(facts)
            if limit and account.exhausted is None:
                account.end(limit)
                crossed.append(account)
        return crossed

    def _refuse(self, planned: dict[str, Amount]) -> list[_Account]:
        """The first account whose limit the planned amounts would cross, if there is one; it is ended."""
        for account in self._accounts:
            if limit := account.first_crossed(planned):
                account.end(limit)
                return [account]
        return []


def _tell(crossed: Iterable[_Account], reason: QuotaExceeded | None) -> None:
    for account in crossed:
        if account.on_exhausted is not None and account.exhausted is not None:
            account.on_exhausted(account.exhausted)
    if reason is not None:
        # Each its own: an exception that is raised again and again collects the tracebacks of all.
        raise QuotaExceeded(reason.message)


def _exact(cost: float) -> Fraction:
    return Fraction(str(cost))


def _rounded_down(cost: Amount) -> float:
    """The nearest float that may be spent when this much is left."""
    nearest = float(cost)
    return nearest if _exact(nearest) <= cost else math.nextafter(nearest, 0.0)
