"""What follows the end of an attempt: never a step that is not there, and nothing twice that may not be."""

from __future__ import annotations

import random
import signal
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grami_actors.errors import ErrorCode
from grami_actors.job import (
    ALIVE,
    TERMINAL,
    Cancellation,
    Effect,
    Exit,
    Fault,
    Job,
    Limits,
    Reason,
    Retry,
    State,
    Step,
    Terms,
    next_state,
)
from grami_actors.jobs import verdicts
from grami_actors.jobs.runner import Outcome
from grami_actors.jobs.store import Change

NOW = 1_000.0
WHAT_TO_DO = "It may have done its work, or a part of it; look, and run it again with: grami jobs retry job_1"
KINDS = ("succeeded", "failed", "stopped", "lost", "unstarted")


def job(**details: Any) -> Job:
    given = {"state": State.RUNNING, "attempt": 1, "started_at": 990.0} | details
    return Job(id="job_1", tool="t", arguments={}, owner="", digest="", created_at=900.0, due_at=900.0, **given)


def terms(effect: Effect = "pure", attempts: int = 3, **details: Any) -> Terms:
    return Terms(effect=effect, retry=Retry(attempts=attempts, delay=10.0, jitter=0.0), **details)


def after(job: Job, kind: str, **details: Any) -> Change:
    return verdicts.after(job, Outcome(kind=kind, at=NOW - 1, **details), NOW, random.Random(1))


def text(change: Change) -> str:
    fault: Fault = change.fields["fault"]
    assert change.told["fault"] == {"code": fault.code, "message": fault.message}
    return fault.message


JOBS = st.builds(
    job,
    state=st.sampled_from(sorted(ALIVE)),
    reason=st.sampled_from(get_args(Reason)),
    attempt=st.integers(1, 8),
    cancellation=st.sampled_from([None, None, Cancellation(995.0, "user"), Cancellation(995.0, "parent", force=True)]),
    fault=st.sampled_from([None, Fault("TOOL_TIMEOUT", "of the attempt before")]),
    expires_at=st.sampled_from([None, 999.0, 1_001.0, 1_015.0, 5_000.0]),
    terms=st.builds(
        terms,
        st.sampled_from(get_args(Effect)),
        st.integers(1, 5),
        heartbeat=st.sampled_from([None, 3.0]),
        limits=st.sampled_from([Limits(), Limits(memory=5, cpu=1.5, processes=3)]),
    ),
)
OUTCOMES = st.builds(
    Outcome,
    kind=st.sampled_from(KINDS),
    at=st.just(NOW - 1),
    reason=st.sampled_from(get_args(Reason)),
    result=st.just("result"),
    code=st.sampled_from(["", "UPSTREAM_ERROR", "MY_OWN"]),
    message=st.sampled_from(["", "it broke", "x" * 10_000]),
    permanent=st.booleans(),
    exit=st.sampled_from([None, Exit(code=1), Exit(signal=9), Exit(signal=77), Exit(signal=9, oom=True), Exit(code=0)]),
)


@given(JOBS, OUTCOMES, st.randoms(use_true_random=False))
def test_what_follows_is_always_a_step_that_exists_and_of_this_attempt(job, outcome, dice) -> None:
    change = verdicts.after(job, outcome, NOW, dice)
    state = next_state(job.state, change.step)
    assert state in TERMINAL or state is State.BACKOFF
    assert (change.job, change.attempt, change.at) == (job.id, job.attempt, NOW)
    after = msgspec.structs.replace(job, state=state, **change.fields)
    assert (after.finished_at == outcome.at) is state.terminal
    assert (after.result == "result") is (state is State.SUCCEEDED)
    assert (after.fault is None) is (state is State.SUCCEEDED)
    assert after.question is None
    assert after.started_at == job.started_at
    if after.fault is not None:
        assert after.fault.code in set(ErrorCode)
        assert 0 < len(after.fault.message) < verdicts.LONGEST_MESSAGE + 500
    assert msgspec.json.decode(msgspec.json.encode(change.told)) == change.told


@given(JOBS, OUTCOMES, st.randoms(use_true_random=False))
def test_an_attempt_is_only_repeated_if_that_does_no_harm_and_is_of_use_and_in_time(job, outcome, dice) -> None:
    change = verdicts.after(job, outcome, NOW, dice)
    if change.step is not Step.RETRY:
        return
    assert outcome.kind != "succeeded"
    assert outcome.kind == "unstarted" or job.terms.effect != "unsafe"
    assert not outcome.permanent
    assert outcome.reason not in {"deadline", "user", "parent"}
    assert job.cancellation is None
    assert NOW <= change.fields["due_at"] == change.told["due_at"]
    assert job.expires_at is None or change.fields["due_at"] < job.expires_at
    assert change.fields["reason"] == ""
    spare = verdicts.SPARE_STARTS if outcome.kind == "unstarted" else 0
    assert job.attempt < job.terms.retry.attempts + spare or outcome.reason == "shutdown"


@given(JOBS, OUTCOMES, st.randoms(use_true_random=False))
def test_a_job_that_finished_is_always_succeeded_and_an_unwanted_one_otherwise_always_cancelled(
    job, outcome, dice
) -> None:
    step = verdicts.after(job, outcome, NOW, dice).step
    assert (step is Step.SUCCEED) is (outcome.kind == "succeeded")
    unwanted = job.cancellation is not None or {"user", "parent"} & {job.reason, outcome.reason}
    assert (step is Step.CANCEL) is (bool(unwanted) and outcome.kind != "succeeded")


@given(JOBS, OUTCOMES, st.randoms(use_true_random=False))
def test_lost_is_said_exactly_of_what_nobody_knows(job, outcome, dice) -> None:
    change = verdicts.after(job, outcome, NOW, dice)
    if change.step is Step.LOSE:
        assert outcome.kind == "lost" or outcome.reason == "shutdown"
        assert "grami jobs retry job_1" in text(change)
    elif outcome.kind == "lost":
        assert change.step in {Step.RETRY, Step.CANCEL}


def test_a_failed_attempt_of_a_safe_tool_is_repeated_after_a_longer_wait_each_time() -> None:
    waits = [after(job(attempt=attempt, terms=terms()), "failed", message="no").told for attempt in (1, 2)]
    assert [each["due_at"] for each in waits] == [NOW + 10, NOW + 20]
    last = after(job(attempt=3, terms=terms()), "failed", code="UPSTREAM_ERROR", message="no", exit=Exit(code=7))
    assert (last.step, text(last)) == (Step.FAIL, "no (exit code 7)")
    assert last.fields["fault"].code == "UPSTREAM_ERROR"
    assert last.fields["exit"] == Exit(code=7)


@pytest.mark.parametrize(
    ("details", "step", "words"),
    [
        ({"kind": "failed", "exit": Exit(code=3)}, Step.FAIL, "exit code 3"),
        ({"kind": "failed", "exit": Exit(signal=signal.SIGSEGV)}, Step.FAIL, "ended by SIGSEGV"),
        ({"kind": "failed", "exit": Exit(signal=250)}, Step.FAIL, "ended by signal 250"),
        (
            {"kind": "failed", "message": "it ended with exit code 2", "exit": Exit(code=2)},
            Step.FAIL,
            "it ended with exit code 2",
        ),
        ({"kind": "failed", "exit": Exit(signal=9, oom=True)}, Step.FAIL, "killed for memory by the kernel"),
        ({"kind": "failed", "code": "E7", "message": "no"}, Step.FAIL, "E7: no"),
        ({"kind": "failed"}, Step.FAIL, "it failed"),
        ({"kind": "stopped", "reason": "memory"}, Step.FAIL, "killed for memory: it used more than 5 bytes"),
        ({"kind": "stopped", "reason": "cpu"}, Step.FAIL, "killed for processor time: it used more than 1.5 s"),
        ({"kind": "stopped", "reason": "processes"}, Step.FAIL, "killed for processes: it had more than 3"),
        (
            {"kind": "stopped", "reason": "attempt_timeout", "exit": Exit(signal=9)},
            Step.TIME_OUT,
            "the attempt took longer than 60 s: ended by SIGKILL",
        ),
        (
            {
                "kind": "stopped",
                "reason": "attempt_timeout",
                "message": "it was ended by SIGKILL",
                "exit": Exit(signal=9),
            },
            Step.TIME_OUT,
            "the attempt took longer than 60 s: it was ended by SIGKILL",
        ),
        ({"kind": "stopped", "reason": "heartbeat"}, Step.TIME_OUT, "nothing was heard of it for 5 s"),
        ({"kind": "stopped", "reason": "deadline"}, Step.TIME_OUT, "its deadline passed, and it was ended"),
        (
            {"kind": "stopped", "reason": "shutdown"},
            Step.LOSE,
            f"it was ended because the server stopped. {WHAT_TO_DO}",
        ),
        (
            {"kind": "lost", "message": "its shim was killed"},
            Step.LOSE,
            f"how it ended is not known: its shim was killed. {WHAT_TO_DO}",
        ),
        (
            {"kind": "unstarted", "permanent": True, "message": "no such program"},
            Step.FAIL,
            "it could not be started: no such program",
        ),
        ({"kind": "unstarted", "reason": "deadline"}, Step.TIME_OUT, "its deadline passed, and it was ended"),
    ],
)
def test_the_end_of_an_unsafe_job_is_told_in_words(details, step, words) -> None:
    limits = Limits(memory=5, cpu=1.5, processes=3)
    change = after(job(terms=terms("unsafe", heartbeat=5.0, attempt_timeout=60.0, limits=limits)), **details)
    assert (change.step, text(change)) == (step, words)


@pytest.mark.parametrize("reason", ["attempt_timeout", "heartbeat", "memory", "cpu", "processes"])
def test_an_attempt_that_was_ended_for_its_own_sake_is_repeated_like_one_that_failed(reason) -> None:
    assert after(job(terms=terms()), "stopped", reason=reason).step is Step.RETRY
    assert after(job(terms=terms(), attempt=3), "stopped", reason=reason).step in {Step.TIME_OUT, Step.FAIL}
    assert after(job(terms=terms(), expires_at=NOW + 10), "stopped", reason=reason).step is not Step.RETRY


def test_the_end_of_the_server_uses_up_no_attempt_of_a_safe_job_and_has_it_wait_for_nothing() -> None:
    change = after(job(terms=terms(attempts=1)), "stopped", reason="shutdown")
    assert (change.step, change.fields["due_at"]) == (Step.RETRY, NOW)


def test_a_job_whose_outcome_is_unknown_is_repeated_if_it_is_safe_and_attempts_are_left() -> None:
    repeated = after(job(terms=terms("idempotent")), "lost")
    assert repeated.step is Step.RETRY
    assert WHAT_TO_DO not in text(repeated), "what is repeated by itself is nobody's to repeat"
    assert after(job(terms=terms("idempotent", attempts=1)), "lost").step is Step.LOSE
    assert after(job(terms=terms("unsafe")), "lost").step is Step.LOSE


def test_an_attempt_that_never_started_is_repeated_whatever_the_tool_but_not_for_ever() -> None:
    unsafe = terms("unsafe", attempts=1)
    steps = [after(job(terms=unsafe, attempt=attempt), "unstarted").step for attempt in range(1, 5)]
    assert steps == [Step.RETRY] * 3 + [Step.FAIL]


# --- those that wait ---


@pytest.mark.parametrize("state", [State.QUEUED, State.BACKOFF])
@pytest.mark.parametrize("attempt", [0, 1])
def test_a_job_that_waits_is_cancelled_or_timed_out_by_a_step_that_exists(state, attempt) -> None:
    fault = None if attempt == 0 else Fault("TOOL_EXECUTION_FAILED", "exit code 1")
    unwanted = Cancellation(NOW, "parent")
    waits = job(state=state, attempt=attempt, expires_at=NOW, queue_expires_at=NOW, fault=fault, cancellation=unwanted)
    change = verdicts.cancelled(waits, NOW)
    assert next_state(state, change.step) is State.CANCELLED
    assert (change.fields["reason"], change.fields["finished_at"]) == ("parent", NOW)
    change = verdicts.overdue(waits, NOW)
    assert next_state(state, change.step) is State.TIMED_OUT
    assert change.fields["reason"] == "deadline"
    assert ("exit code 1" in text(change)) is (attempt == 1)


def test_a_job_that_never_got_its_turn_says_so() -> None:
    change = verdicts.overdue(job(state=State.QUEUED, attempt=0, queue_expires_at=NOW, expires_at=NOW + 1), NOW)
    assert (change.step, change.fields["reason"]) == (Step.TIME_OUT, "queue_timeout")
    assert "waited longer for its turn" in text(change)
