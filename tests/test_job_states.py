"""Jobs as data: the table of steps, retries, ids and digests."""

from __future__ import annotations

import random
import re
from collections import deque
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grami_actors.errors import Cancelled, GramiError, JobError, ToolExecutionFailed, ToolTimeout
from grami_actors.job import (
    ALIVE,
    STATUS,
    STEPS,
    TERMINAL,
    Fault,
    Job,
    Retry,
    State,
    Step,
    WrongStep,
    digest_of,
    new_id,
    next_state,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("step", Step)
def test_every_step_in_every_state_leads_somewhere_or_is_an_error_that_names_both(state: State, step: Step) -> None:
    if step in STEPS[state]:
        assert next_state(state, step) is STEPS[state][step]
    else:
        with pytest.raises(WrongStep, match=f"{state} cannot {step}"):
            next_state(state, step)


def test_the_table_is_whole() -> None:
    assert set(STEPS) == set(State) == set(STATUS)
    assert {step for steps in STEPS.values() for step in steps} == set(Step)
    assert all((state in TERMINAL) == (not STEPS[state]) == state.terminal for state in State)
    assert all((state in ALIVE) == state.alive for state in State)


def test_each_state_is_reached_from_the_first_and_each_leads_to_an_end() -> None:
    def reached(start: State) -> set[State]:
        seen, todo = {start}, deque([start])
        while todo:
            new = set(STEPS[todo.popleft()].values()) - seen
            seen |= new
            todo.extend(new)
        return seen

    assert reached(State.QUEUED) == set(State)
    assert all(reached(state) & TERMINAL for state in State)


def test_what_is_alive_is_only_entered_by_a_claim_and_can_always_be_stopped_or_end() -> None:
    for state, steps in STEPS.items():
        for step, after in steps.items():
            if state not in ALIVE and after in ALIVE:
                assert step is Step.CLAIM
        if state in ALIVE:
            assert {Step.SUCCEED, Step.FAIL, Step.CANCEL, Step.TIME_OUT, Step.LOSE, Step.RETRY} <= steps.keys()
            assert state is State.STOPPING or Step.STOP in steps


RETRIES = st.builds(
    Retry,
    delay=st.floats(0, 1e6),
    factor=st.floats(1, 1e6),
    longest=st.floats(0, 1e6),
    jitter=st.floats(0, 1),
)


@given(RETRIES, st.integers(1, 10_000), st.integers())
def test_a_wait_is_never_negative_nor_longer_than_the_longest(retry: Retry, attempt: int, seed: int) -> None:
    wait = retry.wait(attempt, random.Random(seed))
    assert 0 <= wait <= retry.longest


@given(RETRIES, st.integers(1, 2_000), st.integers())
def test_jitter_only_shortens_a_wait_by_its_part_and_later_waits_are_not_shorter(
    retry: Retry, attempt: int, seed: int
) -> None:
    exact = msgspec.structs.replace(retry, jitter=0.0)
    whole = exact.wait(attempt, random.Random(seed))
    assert whole * (1 - retry.jitter) * (1 - 1e-9) <= retry.wait(attempt, random.Random(seed)) <= whole
    assert exact.wait(attempt + 1, random.Random(seed)) >= whole


@given(st.lists(st.integers(0, 2**47), min_size=2, max_size=9, unique=True), st.integers())
def test_ids_always_sort_by_their_times(milliseconds: list[int], seed: int) -> None:
    dice = random.Random(seed)
    times = sorted(milliseconds)
    # Halfway into the millisecond, so that no rounding moves it into another.
    ids = [new_id((time + 0.5) / 1000, dice) for time in times]
    assert ids == sorted(ids)
    assert all(re.fullmatch(r"job_[0-9a-hjkmnp-tv-z]{26}", each) for each in ids)


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(max_size=5), JSON, max_size=5), st.randoms())
def test_a_digest_never_depends_on_the_order_of_keys(arguments: dict[str, Any], dice: random.Random) -> None:
    def mixed(value: Any) -> Any:
        if isinstance(value, dict):
            keys = list(value)
            dice.shuffle(keys)
            return {key: mixed(value[key]) for key in keys}
        return [mixed(each) for each in value] if isinstance(value, list) else value

    assert digest_of("t", arguments) == digest_of("t", mixed(arguments))
    assert digest_of("t", arguments) != digest_of("u", arguments)
    assert digest_of("t", arguments) != digest_of("t", arguments | {"another key": 1})


@pytest.mark.parametrize(
    ("state", "error"),
    [
        (State.FAILED, ToolExecutionFailed),
        (State.TIMED_OUT, ToolTimeout),
        (State.CANCELLED, Cancelled),
        (State.LOST, JobError),
        (State.REJECTED, JobError),
        (State.RUNNING, JobError),
    ],
)
def test_the_outcome_of_a_job_is_its_result_or_the_error_that_it_ended_with(
    state: State, error: type[GramiError]
) -> None:
    job = Job(id="job_x", tool="t", arguments={}, owner="", digest="", created_at=0.0, due_at=0.0, state=state)
    with pytest.raises(error, match=f"job_x is {state}"):
        job.outcome()
    with pytest.raises(error, match="why") as caught:
        msgspec.structs.replace(job, fault=Fault("JOB_REJECTED", "why")).outcome()
    assert caught.value.error_code == "JOB_REJECTED"
    assert msgspec.structs.replace(job, state=State.SUCCEEDED, result=[1]).outcome() == [1]
