"""Token buckets: never more than the burst and the rate, exact waits, and a bound of memory."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grami_actors.buckets import DUST, Buckets

RATES = st.floats(1e-3, 1e5)
BURSTS = st.floats(0, 50)
STARTS = st.floats(0, 1e9)
STEPS = st.lists(st.one_of(st.just(0.0), st.floats(0, 3), st.floats(0, 1e-3)), max_size=40)


@given(RATES, BURSTS, STARTS, STEPS)
@settings(deadline=None)
def test_never_more_than_the_burst_and_the_rate_are_taken_in_any_time(
    rate: float, burst: float, start: float, steps: list[float]
) -> None:
    buckets, now = Buckets(rate, burst), start
    taken: list[Fraction] = []
    for step in steps:
        now += step
        taken += [Fraction(now) for _ in range(3) if buckets.take("key", now) == 0.0]
    if taken:
        speed, size = Fraction(rate), Fraction(max(1.0, burst))
        dust = Fraction(DUST) * (1 + size + speed * (taken[-1] - taken[0]))
        # From the take number i to j: j - i + 1 <= size + speed * (taken[j] - taken[i]).
        lines = [number - speed * at for number, at in enumerate(taken)]
        lowest = itertools.accumulate(lines, min)
        assert max(end + 1 - begin for end, begin in zip(lines, lowest, strict=True)) <= size + dust


@given(RATES, BURSTS, STARTS, STEPS)
@settings(deadline=None)
def test_a_refusal_says_exactly_how_long_to_wait(rate: float, burst: float, start: float, steps: list[float]) -> None:
    buckets, now = Buckets(rate, burst), start
    for step in steps:
        now += step
        while (wait := buckets.take("key", now)) == 0.0:
            pass
        early = now + wait * (1 - 1e-6) - 4 * math.ulp(now)
        if early > now:
            assert buckets.take("key", early) > 0.0
        now += wait
        assert buckets.take("key", now) == 0.0


@given(st.integers(1, 100), st.integers(1, 20), st.integers(0, 1000))
def test_a_full_bucket_holds_its_burst_and_a_second_fills_in_the_rate(rate: int, burst: int, start: int) -> None:
    buckets = Buckets(rate, burst)
    assert [buckets.take("key", start) == 0.0 for _ in range(burst + 1)] == [True] * burst + [False]
    assert [buckets.take("key", start + 1) == 0.0 for _ in range(min(rate, burst))] == [True] * min(rate, burst)
    assert [buckets.take("key", start + 1e6) == 0.0 for _ in range(burst + 1)] == [True] * burst + [False]


def test_buckets_know_nothing_of_each_other() -> None:
    buckets = Buckets(1, 1)
    assert [buckets.take(key, 5.0) for key in ("a", "a", ("a", 1), "b")] == [0.0, 1.0, 0.0, 0.0]


def test_a_refused_take_costs_nothing() -> None:
    buckets = Buckets(1, 1)
    assert [buckets.take("key", now) for now in (0.0, 0.25, 0.5, 0.75, 1.0)] == [0.0, 0.75, 0.5, 0.25, 0.0]


def test_a_clock_that_is_put_back_gives_nothing_and_waits_are_on_that_clock() -> None:
    buckets = Buckets(2, 1)
    assert buckets.take("key", 100.0) == 0.0
    assert buckets.take("key", 50.0) == 50.5
    assert buckets.take("key", 100.5) == 0.0


def test_without_a_rate_nothing_is_limited_or_kept() -> None:
    buckets = Buckets(0, 1)
    assert {buckets.take(number % 3, 0.0) for number in range(100)} == {0.0}
    assert buckets._buckets == {}


@given(st.integers(1, 12), st.lists(st.tuples(st.integers(0, 40), st.floats(0, 0.5)), max_size=80))
def test_never_more_buckets_are_kept_than_may_be(most: int, takes: list[tuple[int, float]]) -> None:
    buckets, now = Buckets(1, 3, most), 0.0
    for key, step in takes:
        now += step
        buckets.take(key, now)
        assert len(buckets._buckets) <= most


def test_those_that_are_full_again_are_forgotten_first_and_then_the_fullest() -> None:
    buckets = Buckets(1, 4, most=4)
    for key, count in (("old", 1), ("empty", 4), ("half", 2), ("low", 3)):
        for _ in range(count):
            buckets.take(key, 0.0)
    buckets.take("new", 1.5)
    assert list(buckets._buckets) == ["empty", "low", "new"], "one was full again, and room for two is made at once"
    assert buckets.take("empty", 1.5) == 0.0
    assert buckets.take("empty", 1.5) == 0.5


def test_room_for_many_is_made_at_once() -> None:
    class Counted(Buckets):
        forgettings = 0

        def _forget(self, now: float) -> None:
            Counted.forgettings += 1
            super()._forget(now)

    buckets = Counted(1e-3, 1, most=100)
    for number in range(1000):
        buckets.take(number, float(number))
    assert Counted.forgettings <= 20, "else who comes with ever new names would make each take cost a look at all"


@pytest.mark.parametrize(
    ("rate", "burst", "most"),
    [(-1, 1, 1), (math.nan, 1, 1), (math.inf, 1, 1), (1, -1, 1), (1, math.nan, 1), (1, 1, 0)],
)
def test_numbers_that_cannot_be_are_refused(rate: float, burst: float, most: int) -> None:
    with pytest.raises(ValueError, match="a bucket has a rate and a burst of at least 0"):
        Buckets(rate, burst, most)
