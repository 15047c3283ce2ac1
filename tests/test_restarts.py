"""When a failed actor is restarted, and when not: OTP's restart intensity with exponential backoff."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from grami_actors.restarts import GiveUp, Restart, RestartPolicy, decide

seconds = st.just(0.0) | st.floats(1e-6, 1e6)


@st.composite
def policies(draw: st.DrawFn, least: int = 0, most: int = 6) -> RestartPolicy:
    shortest, longest = sorted((draw(seconds), draw(seconds)))
    period, jitter = draw(st.floats(1e-3, 1e4)), draw(st.floats(0, 2))
    return RestartPolicy(draw(st.integers(least, most)), period, shortest, longest, jitter)


def failures(policy: RestartPolicy) -> st.SearchStrategy[list[float]]:
    """Times of failures whose gaps are of the order of the period, so that windows are crossed often."""
    gap = st.one_of(st.just(0.0), st.just(policy.period), st.floats(0, 2 * policy.period))
    return st.lists(gap, max_size=30).map(lambda gaps: [sum(gaps[: end + 1]) for end in range(len(gaps))])


def restarts_of(policy: RestartPolicy, times: list[float]) -> list[float]:
    """When an actor that failed at these times was restarted, if it is restarted again after giving up."""
    history: tuple[float, ...] = ()
    restarted = []
    for now in times:
        decision = decide(policy, history, now, 0.5)
        if isinstance(decision, Restart):
            history = decision.history
            restarted.append(now)
    return restarted


@given(st.data())
def test_no_window_of_a_period_ever_holds_more_restarts_than_the_intensity(data: st.DataObject) -> None:
    policy = data.draw(policies())
    restarted = restarts_of(policy, data.draw(failures(policy)))
    for end in restarted:
        assert sum(end - then < policy.period for then in restarted if then <= end) <= policy.intensity


@given(policies(), st.integers(0, 10), st.floats(0, 0.99))
def test_it_gives_up_exactly_at_the_limit(policy: RestartPolicy, recent: int, age: float) -> None:
    now = 3 * policy.period
    old = (0.0, policy.period)  # too old to count, the second by a hair
    decision = decide(policy, (*old, *[now - age * policy.period] * recent), now, 0.0)
    assert isinstance(decision, GiveUp) == (recent >= policy.intensity)
    if isinstance(decision, GiveUp):
        assert decision.failures == recent + 1


@given(policies(1, 2000), st.data(), st.floats(0, 1, exclude_max=True))
def test_the_delay_doubles_from_the_shortest_to_the_longest_and_jitter_only_adds(
    policy: RestartPolicy, data: st.DataObject, random: float
) -> None:
    recent = data.draw(st.integers(0, policy.intensity - 1))
    decision = decide(policy, [0.0] * recent, 0.0, random)
    assert isinstance(decision, Restart)
    bare = min(policy.longest, policy.shortest * 2.0 ** min(recent, 1000))
    assert bare <= decision.delay <= bare * (1 + policy.jitter) * (1 + 1e-9)
    assert 0 <= decision.delay < math.inf


@given(policies(1, 6), st.data(), st.floats(0, 1e3))
def test_after_a_healthy_period_it_starts_again_with_the_shortest_delay(
    policy: RestartPolicy, data: st.DataObject, more: float
) -> None:
    times = data.draw(failures(policy))
    now = (times[-1] if times else 0.0) + policy.period + more
    assume(all(now - then >= policy.period for then in times))  # not so when rounding swallows the period
    decision = decide(policy, restarts_of(policy, times), now, 0.0)
    assert decision == Restart(delay=min(policy.shortest, policy.longest), history=(now,))


@given(policies(1, 6), st.data())
def test_the_history_that_is_kept_never_grows_beyond_the_intensity(policy: RestartPolicy, data: st.DataObject) -> None:
    history: tuple[float, ...] = ()
    for now in data.draw(failures(policy)):
        decision = decide(policy, history, now, 0.0)
        if isinstance(decision, Restart):
            assert decision.history[-1] == now
            assert len(decision.history) <= policy.intensity
            history = decision.history


@given(policies(), st.integers(0, 10), st.floats(0, 1e3), st.floats(0, 1, exclude_max=True))
def test_a_policy_with_a_pause_rests_exactly_where_another_gives_up_and_then_starts_over(
    policy: RestartPolicy, recent: int, pause: float, random: float
) -> None:
    history, patient = [5.0] * recent, msgspec.structs.replace(policy, pause=pause)
    usual, decision = decide(policy, history, 5.0, random), decide(patient, history, 5.0, random)
    if isinstance(usual, Restart):
        assert decision == usual
        assert not usual.paused
    else:
        assert isinstance(decision, Restart)
        assert (decision.paused, decision.history) == (True, ())
        assert pause <= decision.delay <= pause * (1 + policy.jitter) * (1 + 1e-9)


def test_thousands_of_restarts_are_no_overflow() -> None:
    policy = RestartPolicy(intensity=5_000, jitter=0.0)
    assert decide(policy, [0.0] * 4_000, 1.0, 0.0) == Restart(policy.longest, (*[0.0] * 4_000, 1.0))


def test_an_intensity_of_zero_never_restarts() -> None:
    assert decide(RestartPolicy(intensity=0), (), 0.0, 0.0) == GiveUp(failures=1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"intensity": -1},
        {"period": 0.0},
        {"period": -1.0},
        {"shortest": -0.1},
        {"shortest": 2.0, "longest": 1.0},
        {"jitter": -0.1},
        {"shortest": math.nan},
        {"longest": math.nan},
        {"pause": -1.0},
        {"pause": math.nan},
        {"pause": math.inf},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="makes no sense"):
        RestartPolicy(**wrong)


@pytest.mark.parametrize("wrong", [{"period": math.nan}, {"jitter": math.nan}, {"jitter": math.inf}])
def test_a_policy_with_what_is_not_a_number_of_seconds_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="makes no sense"):
        RestartPolicy(**wrong)
