"""Who, what and how often, for all connections together."""

from __future__ import annotations

import math
from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grami_actors.credentials import Authority
from grami_actors.errors import LimitReached, PermissionDenied
from grami_actors.permissions import Permissions, Rule
from grami_actors.policy import Policy, Rate
from grami_actors.principals import ANONYMOUS, OPERATOR, Principal

ALICE, BOB = Principal("alice"), Principal("bob")


def policy(*rates: Rate, rules: tuple[Rule, ...] = (), wall: float = 0.0) -> Policy:
    return Policy(Authority(), Permissions(rules), rates, wall=lambda: wall)


def allowed(of: Policy, who: Principal, kind: str, now: float) -> bool:
    try:
        of.check(who, kind, now)
    except LimitReached:
        return False
    return True


@given(
    st.lists(
        st.tuples(st.sampled_from([ALICE, BOB]), st.sampled_from(["a", "b"]), st.sampled_from([0.0, 0.25, 1.0, 3.0])),
        max_size=60,
    ),
    st.integers(1, 4),
    st.integers(1, 5),
)
def test_each_principal_and_type_has_a_rate_of_its_own(
    steps: list[tuple[Principal, str, float]], per_second: int, burst: int
) -> None:
    of, now = policy(Rate(per_second, burst)), 0.0
    tokens: dict[tuple[str, str], tuple[float, float]] = {}
    for who, kind, step in steps:
        now += step
        left, since = tokens.get((who.name, kind), (float(burst), now))
        left = min(burst, left + (now - since) * per_second)
        assert allowed(of, who, kind, now) is (left >= 1)
        tokens[who.name, kind] = (left - 1 if left >= 1 else left, now)


def test_a_refusal_says_when_the_next_one_may_come_in_whole_milliseconds() -> None:
    of = policy(Rate(3, 1))
    of.check(ALICE, "a", 10.0)
    with pytest.raises(LimitReached, match="alice may send 3 messages of the type 'a' a second") as caught:
        of.check(ALICE, "a", 10.0)
    assert (caught.value.error_code, caught.value.limit, caught.value.retry_after_ms) == ("RATE_LIMITED", "rates", 334)
    assert allowed(of, ALICE, "a", 10.334)


def test_the_slowest_of_several_rates_decides() -> None:
    of = policy(Rate(1000, 1000), Rate(1, 2), Rate(1, 5))
    assert Counter(allowed(of, ALICE, "a", 0.0) for _ in range(10)) == {True: 2, False: 8}


@pytest.mark.parametrize(
    ("rate", "who", "kind", "bound"),
    [
        (Rate(1, 1), ALICE, "a", True),
        (Rate(1, 1, principals=("al*",)), ALICE, "a", True),
        (Rate(1, 1, principals=("bob", "alice")), ALICE, "a", True),
        (Rate(1, 1, principals=("Alice",)), ALICE, "a", False),
        (Rate(1, 1, principals=("al",)), ALICE, "a", False),
        (Rate(1, 1, principals=("b*",)), ALICE, "a", False),
        (Rate(1, 1, types=("content_?",)), ALICE, "content_x", True),
        (Rate(1, 1, types=("content_?",)), ALICE, "content", False),
        (Rate(1, 1, types=("a",), principals=("bob",)), ALICE, "a", False),
        (Rate(1, 1, types=()), ALICE, "a", False),
        (Rate(1, 1, principals=()), ALICE, "a", False),
        (Rate(1, 1, principals=("[a]*",)), ALICE, "a", False),
        (Rate(1, 1), ANONYMOUS, "a", True),
        (Rate(1, 1), OPERATOR, "a", False),
    ],
)
def test_a_rate_binds_those_whom_its_patterns_name(rate: Rate, who: Principal, kind: str, bound: bool) -> None:
    of = policy(rate)
    assert [allowed(of, who, kind, 0.0), allowed(of, who, kind, 0.0)] == [True, not bound]


def test_what_no_rule_allows_is_refused_and_takes_nothing_of_a_rate() -> None:
    of = policy(Rate(1, 1), rules=(Rule(send=("a",), principals=("alice",)),))
    for kind, who in (("b", ALICE), ("a", BOB), ("nonsense", BOB)):
        with pytest.raises(PermissionDenied, match=f"{who.name} may not send messages of the type '{kind}'"):
            of.check(who, kind, 0.0)
    assert allowed(of, ALICE, "a", 0.0)
    of.check(OPERATOR, "b", 0.0)


@pytest.mark.parametrize(
    "wrong", [{"per_second": 0}, {"per_second": 1, "burst": 0.5}, {"per_second": 1, "typos": 1}, {}]
)
def test_a_rate_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, Rate)


@given(st.floats(0, 1e10), st.floats(-1e6, 1e6))
def test_a_lifetime_is_what_is_left_on_the_clock_of_the_wall(wall: float, left: float) -> None:
    of = policy(wall=wall)
    assert of.lifetime(Principal("a", expires_at=wall + left)) == (wall + left) - wall
    assert of.lifetime(ALICE) == math.inf
