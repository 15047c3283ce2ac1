"""What one request may cost: exactly its limits, counted across actors and threads."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grami_actors.budget import Budget, Meter, QuotaExceeded, Spent
from grami_actors.errors import ErrorCode, GramiError

PLANNED = ("messages", "tool_calls", "spawns")
FACTS = ("tokens", "cost")

amounts = st.integers(0, 4)
# Written with few decimals, as prices are; most of them are no exact binary fractions.
prices = st.integers(0, 400).map(lambda cents: cents / 100)
charges = st.fixed_dictionaries(
    {},
    optional={**dict.fromkeys((*PLANNED, "tokens"), amounts), "cost": prices},
)
limits = st.none() | st.integers(0, 12)
budgets = st.builds(
    Budget,
    messages=limits,
    tool_calls=limits,
    tokens=limits,
    spawns=limits,
    cost=st.none() | prices.map(lambda p: 3 * p),
)


def refused(charge: Callable[..., object], *arguments: Any, **amounts: Any) -> str:
    """The text of the refusal; empty when there was none."""
    try:
        charge(*arguments, **amounts)
    except QuotaExceeded as error:
        return str(error)
    return ""


class Oracle:
    """The rules, for one meter without a parent, in decimals."""

    def __init__(self, budget: Budget) -> None:
        self.limits = {name: Decimal(str(limit)) for name, limit in vars_of(budget).items() if limit is not None}
        self.spent = dict.fromkeys((*PLANNED, *FACTS), Decimal(0))
        self.ended = False

    def charge(self, amounts: dict[str, float]) -> bool:
        """Whether it is allowed."""
        exact = {name: Decimal(str(amount)) for name, amount in amounts.items()}
        for name in FACTS:
            self.spent[name] += exact.get(name, Decimal(0))
        self.ended = self.ended or any(self.over(name, self.spent[name]) for name in FACTS)
        planned = {name: self.spent[name] + exact.get(name, Decimal(0)) for name in PLANNED}
        self.ended = self.ended or any(self.over(name, total) for name, total in planned.items())
        if not self.ended:
            self.spent.update(planned)
        return not self.ended

    def over(self, name: str, total: Decimal) -> bool:
        return total > self.limits.get(name, Decimal("inf"))


def vars_of(struct: msgspec.Struct) -> dict[str, Any]:
    return msgspec.structs.asdict(struct)


# --- the limits ---


@pytest.mark.parametrize("name", ["messages", "tool_calls", "tokens", "spawns", "depth", "cost"])
@pytest.mark.parametrize("wrong", [-1, -0.001, math.nan, math.inf])
def test_a_limit_is_a_number_from_0_on(name: str, wrong: Any) -> None:
    with pytest.raises(ValueError, match=f"a budget's {name} is a number from 0 on"):
        Budget(**{name: wrong})
    assert vars_of(Budget(**{name: 0}))[name] == 0


def test_a_budget_from_the_wire_is_checked_too() -> None:
    assert msgspec.convert({"tokens": 5, "cost": 0.5}, Budget) == Budget(tokens=5, cost=0.5)
    with pytest.raises(msgspec.ValidationError, match="a budget's tokens"):
        msgspec.convert({"tokens": -5}, Budget)


# --- one meter ---


@given(budgets, st.lists(charges, max_size=12))
def test_a_charge_is_refused_exactly_from_the_first_crossing_on(budget: Budget, several: list[dict[str, Any]]) -> None:
    told: list[QuotaExceeded] = []
    meter, oracle = Meter(budget, on_exhausted=told.append), Oracle(budget)
    for each in several:
        allowed = oracle.charge(each)
        assert bool(refused(meter.charge, **each)) is not allowed
        assert (meter.exhausted is not None) is oracle.ended
        assert vars_of(meter.spent()) == {name: float(total) for name, total in oracle.spent.items()}
    assert told == ([meter.exhausted] if oracle.ended else [])


@given(budgets, st.lists(charges, max_size=8), st.sampled_from([*PLANNED, *FACTS]))
def test_what_is_left_may_be_spent_and_not_the_least_more(
    budget: Budget, several: list[dict[str, Any]], name: str
) -> None:
    meter = Meter(budget)
    for each in several:
        refused(meter.charge, **each)
    left = vars_of(meter.left())[name]
    assert (left is None) is (vars_of(budget)[name] is None)
    if meter.exhausted is not None or left is None:
        return
    meter.charge(**{name: left})
    assert vars_of(meter.left())[name] == 0
    assert meter.exhausted is None
    assert refused(meter.charge, **{name: 1 if name != "cost" else 1e-12})


@given(st.lists(prices, min_size=1, max_size=30))
def test_costs_are_added_as_they_are_written(several: list[float]) -> None:
    total = sum(map(Decimal, map(str, several)), Decimal(0))
    meter = Meter(Budget(cost=float(total)))
    for price in several:
        meter.charge(cost=price)
    assert meter.spent().cost == float(total)
    with pytest.raises(QuotaExceeded):
        meter.charge(cost=0.001)


def test_three_times_a_tenth_is_three_tenths() -> None:
    meter = Meter(Budget(cost=0.3))
    for _ in range(3):
        meter.charge(cost=0.1)
    assert (meter.spent().cost, meter.left().cost, meter.exhausted) == (0.3, 0.0, None)


def test_what_is_left_is_rounded_down_where_a_float_is_too_coarse() -> None:
    meter = Meter(Budget(cost=1e16))
    meter.charge(cost=0.1)
    left = meter.left().cost
    assert left == math.nextafter(1e16, 0)
    assert refused(meter.charge, cost=left) == ""


@pytest.mark.parametrize(
    ("budget", "charge", "said"),
    [
        (Budget(messages=3), {"messages": 4}, "its budget of 3 messages is used up"),
        (Budget(tool_calls=0), {"tool_calls": 1}, "its budget of 0 tool calls is used up"),
        (Budget(spawns=1), {"spawns": 2}, "its budget of 1 spawned actors is used up"),
        (Budget(tokens=1000), {"tokens": 1001}, "its budget of 1000 tokens is used up"),
        (Budget(cost=0.5), {"cost": 0.51}, "its budget of 0.5 in cost is used up"),
    ],
)
def test_the_refusal_says_which_limit_and_that_the_request_is_ended(
    budget: Budget, charge: dict[str, Any], said: str
) -> None:
    meter = Meter(budget)
    with pytest.raises(QuotaExceeded, match=f"the request is ended: {said}") as caught:
        meter.charge(**charge)
    error: GramiError = caught.value
    assert (error.error_code, error.retryable) == (ErrorCode.QUOTA_EXCEEDED, False)
    assert str(meter.exhausted) == str(error)


def test_a_refused_charge_adds_what_has_happened_and_nothing_of_what_has_not() -> None:
    meter = Meter(Budget(messages=1))
    assert refused(meter.charge, messages=2, tool_calls=1, spawns=1, tokens=7, cost=0.5)
    assert meter.spent() == Spent(messages=0, tool_calls=0, tokens=7, spawns=0, cost=0.5)
    meter = Meter(Budget(tokens=10))
    assert refused(meter.charge, messages=1, tokens=11)
    assert meter.spent() == Spent(messages=0, tool_calls=0, tokens=11, spawns=0, cost=0.0)
    assert meter.left() == Budget(tokens=0)


def test_after_the_first_crossing_every_charge_is_refused_with_its_reason_and_facts_still_count() -> None:
    told: list[QuotaExceeded] = []
    meter = Meter(Budget(messages=1, tokens=5, depth=0), on_exhausted=told.append)
    assert "1 messages" in refused(meter.charge, messages=2)
    for charge in ({"messages": 1}, {"spawns": 1}, {"tokens": 9}, {}):
        assert "1 messages" in refused(meter.charge, **charge)
    for depth in (0, 1):
        assert "1 messages" in refused(meter.check_depth, depth)
    assert told == [meter.exhausted]
    assert meter.spent() == Spent(messages=0, tool_calls=0, tokens=9, spawns=0, cost=0.0)


def test_a_refusal_is_raised_as_an_error_of_its_own_that_collects_no_tracebacks() -> None:
    meter = Meter(Budget(messages=0))
    for _ in range(3):
        with pytest.raises(QuotaExceeded) as caught:
            meter.charge(messages=1)
        assert caught.value is not meter.exhausted
    assert meter.exhausted is not None
    assert meter.exhausted.__traceback__ is None


@pytest.mark.parametrize("name", [*PLANNED, *FACTS])
@pytest.mark.parametrize("wrong", [-1, math.nan])
def test_nothing_is_given_back_by_a_negative_charge(name: str, wrong: Any) -> None:
    if name != "cost" and wrong != -1:
        return
    meter = Meter(Budget())
    with pytest.raises(ValueError, match="amounts are numbers from 0 on"):
        meter.charge(**{"messages": 1, "tokens": 1, name: wrong})
    assert meter.spent() == Spent(messages=0, tool_calls=0, tokens=0, spawns=0, cost=0.0)


@given(st.none() | st.integers(0, 5), st.integers(0, 8))
def test_the_depth_may_be_reached_and_not_exceeded(limit: int | None, depth: int) -> None:
    told: list[QuotaExceeded] = []
    meter = Meter(Budget(depth=limit), on_exhausted=told.append)
    too_deep = limit is not None and depth > limit
    said = refused(meter.check_depth, depth)
    assert said == (f"the request is ended: its budget of {limit} levels of depth is used up" if too_deep else "")
    assert len(told) == too_deep
    assert meter.left() == Budget(depth=limit)


# --- parents ---


def test_a_charge_counts_in_all_parents() -> None:
    root = Meter(Budget(tokens=100, depth=5))
    middle = Meter(Budget(messages=9, depth=7), root)
    leaf = Meter(Budget(tokens=50), middle)
    leaf.charge(messages=2, tokens=30)
    middle.charge(tokens=60, cost=0.25)
    assert leaf.spent() == Spent(messages=2, tool_calls=0, tokens=30, spawns=0, cost=0.0)
    assert middle.spent() == root.spent() == Spent(messages=2, tool_calls=0, tokens=90, spawns=0, cost=0.25)
    assert leaf.left() == Budget(messages=7, tokens=10, depth=5)
    assert "budget of 5 levels" in refused(leaf.check_depth, 6)


def test_a_child_that_crosses_its_own_limit_ends_alone_and_its_parent_goes_on() -> None:
    told: list[str] = []
    root = Meter(Budget(messages=1), on_exhausted=lambda _: told.append("root"))
    child = Meter(Budget(messages=1), root, on_exhausted=lambda _: told.append("child"))
    assert refused(child.charge, messages=2)
    assert told == ["child"], "the child refused it, so the parent was never asked"
    assert (child.exhausted is not None, root.exhausted) == (True, None)
    root.charge(messages=1)
    assert (root.spent().messages, child.spent().messages) == (1, 0)


def test_a_parent_that_is_used_up_ends_all_its_children_and_only_itself_is_told() -> None:
    told: list[str] = []
    root = Meter(Budget(tool_calls=1), on_exhausted=lambda _: told.append("root"))
    one = Meter(Budget(), root, on_exhausted=lambda _: told.append("one"))
    other = Meter(Budget(tool_calls=5), root, on_exhausted=lambda _: told.append("other"))
    one.charge(tool_calls=1)
    assert "1 tool calls" in refused(one.charge, tool_calls=1)
    assert "1 tool calls" in refused(other.charge, messages=1)
    assert told == ["root"]
    assert root.exhausted is one.exhausted is other.exhausted is not None
    assert (one.spent().tool_calls, other.spent().messages, root.spent().messages) == (1, 0, 0)


def test_a_fact_that_crosses_in_a_child_and_its_parent_ends_both() -> None:
    told: list[str] = []
    root = Meter(Budget(tokens=5), on_exhausted=lambda error: told.append(str(error)))
    child = Meter(Budget(cost=0.5), root, on_exhausted=lambda error: told.append(str(error)))
    assert "0.5 in cost" in refused(child.charge, tokens=6, cost=1.0)
    assert len(told) == 2
    assert "0.5 in cost" in told[0]
    assert "5 tokens" in told[1]
    assert "5 tokens" in str(root.exhausted)


@given(budgets, budgets, st.lists(st.tuples(st.booleans(), charges), max_size=12))
def test_the_parent_counts_exactly_what_it_and_its_child_were_charged(
    above: Budget, below: Budget, several: list[tuple[bool, dict[str, Any]]]
) -> None:
    root = Meter(above)
    child = Meter(below, root)
    expected = dict.fromkeys((*PLANNED, *FACTS), Decimal(0))
    for to_child, each in several:
        allowed = not refused((child if to_child else root).charge, **each)
        for name, amount in each.items():
            if allowed or name in FACTS:
                expected[name] += Decimal(str(amount))
    assert vars_of(root.spent()) == {name: float(total) for name, total in expected.items()}
    for meter in (root, child):
        for name in PLANNED:
            limit = vars_of(meter.budget)[name]
            assert limit is None or vars_of(meter.spent())[name] <= limit


# --- the callback, and threads ---


def test_the_callback_may_use_the_meter_and_sees_that_it_is_exhausted() -> None:
    seen: list[object] = []

    def look(reason: QuotaExceeded) -> None:
        seen.extend((meter.exhausted is reason, meter.spent().messages, refused(meter.charge, messages=1) != ""))

    meter = Meter(Budget(messages=0), on_exhausted=look)
    assert refused(meter.charge, messages=1)
    assert seen == [True, 0, True]


def test_of_two_charges_at_the_same_time_one_gets_the_last_message(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = Meter(Budget(messages=1))
    look = Meter._refuse

    def look_while_others_hurry(self: Meter, planned: dict[str, Any]) -> list[Any]:
        crossed = look(self, planned)
        if not self._lock.locked() and not crossed and meter.spent().messages == 0:  # another could charge, so it does
            monkeypatch.setattr(Meter, "_refuse", look)
            meter.charge(messages=1)
        return crossed

    monkeypatch.setattr(Meter, "_refuse", look_while_others_hurry)
    meter.charge(messages=1)
    assert meter.spent().messages == 1


def test_a_charge_that_was_counted_is_not_refused_because_another_crosses_right_after_it() -> None:
    class Hurried:
        """A lock after which another thread is the next to charge."""

        left = 0

        def __enter__(self) -> None:
            pass

        def __exit__(self, *_: object) -> None:
            self.left += 1
            if self.left == 1:
                assert refused(meter.charge, messages=1)

    meter = Meter(Budget(messages=1))
    meter._lock = Hurried()  # type: ignore[assignment]
    meter.charge(messages=1)
    assert meter.spent().messages == 1
    assert meter.exhausted is not None


@pytest.mark.parametrize("name", [*PLANNED, *FACTS])
def test_many_threads_spend_exactly_the_limit_and_the_callback_is_called_once(name: str) -> None:
    told: list[QuotaExceeded] = []
    root = Meter(Budget(**{name: 200}), on_exhausted=told.append)
    allowed = [0] * 4

    def play(me: int) -> None:
        meter = Meter(Budget(**{name: 1_000}), root, on_exhausted=told.append)
        for _ in range(100):
            allowed[me] += not refused(meter.charge, **{name: 1})

    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    threads = [threading.Thread(target=play, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(before)
    assert sum(allowed) == 200
    assert vars_of(root.spent())[name] == (400 if name in FACTS else 200)
    assert told == [root.exhausted]


def test_of_threads_that_cross_at_the_same_time_one_calls_back() -> None:
    for _ in range(50):
        told: list[QuotaExceeded] = []
        meter, start = Meter(Budget(tokens=1), on_exhausted=told.append), threading.Barrier(4)

        def play(meter: Meter = meter, start: threading.Barrier = start) -> None:
            start.wait()
            refused(meter.charge, tokens=2)

        threads = [threading.Thread(target=play) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert told == [meter.exhausted]
        assert meter.spent().tokens == 8
