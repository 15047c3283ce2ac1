"""What follows the end of an attempt, of a wait and of a server. Pure: no clock, no store. Floor 12.

Rule 1: a job that finished first is SUCCEEDED, whoever wanted it to end. Of all else a wanted end makes CANCELLED.
Rule 2: an attempt is repeated if its tool is declared ``pure``, ``idempotent`` or ``resumable``, and attempts are left;
        one of which no code ran is repeated whatever the tool, :data:`SPARE_STARTS` times more often.
Rule 3: an attempt whose outcome nobody knows, and which may not be repeated, is LOST.
Rule 4: no attempt follows that could only begin after the deadline; the job ends as its last attempt did.
Rule 5: the end of the server is nobody's failure: what may be repeated is, even if no attempts are left. The new
        attempt has the next number all the same, so of its own failures fewer are repeated. Nor is a disk that is
        full or cannot be written, or a machine without memory, the failure of a job that could not be started there.
"""

from __future__ import annotations

import random
import signal
from typing import Any

import msgspec

from grami_actors.errors import ErrorCode
from grami_actors.job import Exit, Fault, Job, Reason, Step
from grami_actors.jobs.runner import Outcome
from grami_actors.jobs.store import Change

SAFE = frozenset({"pure", "idempotent", "resumable"})
"""Effects of which a second time does no harm."""

SPARE_STARTS = 3
"""Attempts beyond ``Retry.attempts`` for a job whose last one never started: nothing was done, so nothing is risked."""

LONGEST_MESSAGE = 4_000
"""Characters of what an attempt said of its end; the log has the rest."""

_STOPPED: dict[Reason, tuple[Step, ErrorCode, str]] = {
    "deadline": (Step.TIME_OUT, ErrorCode.DEADLINE_EXCEEDED, "its deadline passed, and it was ended"),
    "attempt_timeout": (Step.TIME_OUT, ErrorCode.TOOL_TIMEOUT, "the attempt took longer than {attempt_timeout:g} s"),
    "heartbeat": (Step.TIME_OUT, ErrorCode.TOOL_TIMEOUT, "nothing was heard of it for {heartbeat:g} s"),
    "memory": (Step.FAIL, ErrorCode.TOOL_EXECUTION_FAILED, "killed for memory: it used more than {memory} bytes"),
    "cpu": (Step.FAIL, ErrorCode.TOOL_EXECUTION_FAILED, "killed for processor time: it used more than {cpu:g} s"),
    "processes": (Step.FAIL, ErrorCode.TOOL_EXECUTION_FAILED, "killed for processes: it had more than {processes}"),
    "shutdown": (Step.LOSE, ErrorCode.TOOL_EXECUTION_FAILED, "it was ended because the server stopped"),
}
"""What an attempt that was ended, and is not repeated, makes of its job."""


class Ending(msgspec.Struct, frozen=True):
    """How a job ends if nothing follows its last attempt."""

    step: Step
    fault: Fault


def after(job: Job, outcome: Outcome, at: float, dice: random.Random) -> Change:
    """What follows the end of an attempt.

    Args:
        job: as it is, in a state that is alive.
        outcome: of its current attempt.
        at: now, in seconds since the epoch.
        dice: for the jitter of a wait.
    """
    if outcome.kind == "succeeded":
        fields = {"result": outcome.result, "fault": None, **_at_the_end(outcome)}
        return Change(job=job.id, step=Step.SUCCEED, at=at, attempt=job.attempt, fields=fields)
    if _is_unwanted(job, outcome):
        return _end(job, outcome, Ending(Step.CANCEL, Fault(ErrorCode.CANCELLED, _in_full("cancelled", outcome))), at)
    ending = _ending(job, outcome)
    due_at = at if outcome.reason == "shutdown" else at + job.terms.retry.wait(job.attempt, dice)
    if _may_be_repeated(job, outcome) and (job.expires_at is None or due_at < job.expires_at):
        return _retry(job, ending.fault, outcome, at, due_at)
    if ending.step is Step.LOSE:
        ending = Ending(ending.step, Fault(ending.fault.code, f"{ending.fault.message}. {_what_to_do(job)}"))
    return _end(job, outcome, ending, at)


def cancelled(job: Job, at: float) -> Change:
    """The end of a job that waits, in QUEUED or BACKOFF, and is not wanted any more."""
    reason = "user" if job.cancellation is None else job.cancellation.reason
    fault = Fault(ErrorCode.CANCELLED, "cancelled before it was started" if job.attempt == 0 else "cancelled")
    return _end_of_wait(job, Step.CANCEL, reason, fault, at)


def overdue(job: Job, at: float) -> Change:
    """The end of a job that waits, in QUEUED or BACKOFF, and has waited for too long."""
    if job.expires_at is not None and job.expires_at <= at:
        text = "its deadline passed before it was started" if job.attempt == 0 else "its deadline passed"
        fault = Fault(ErrorCode.DEADLINE_EXCEEDED, f"{text}{_and_before(job)}")
        return _end_of_wait(job, Step.TIME_OUT, "deadline", fault, at)
    fault = Fault(ErrorCode.TOOL_TIMEOUT, "it waited longer for its turn than its tool's queue_timeout allows")
    return _end_of_wait(job, Step.TIME_OUT, "queue_timeout", fault, at)


def _is_unwanted(job: Job, outcome: Outcome) -> bool:
    return job.cancellation is not None or not {job.reason, outcome.reason}.isdisjoint({"user", "parent"})


def _may_be_repeated(job: Job, outcome: Outcome) -> bool:
    if outcome.permanent or outcome.reason == "deadline":
        return False
    unstarted = outcome.kind == "unstarted"
    if unstarted and outcome.code == ErrorCode.RESOURCE_EXHAUSTED:
        return True
    left = job.terms.retry.attempts + (SPARE_STARTS if unstarted else 0) - job.attempt
    return (unstarted or job.terms.effect in SAFE) and (left > 0 or outcome.reason == "shutdown")


def _ending(job: Job, outcome: Outcome) -> Ending:
    """How the job ends, if it does."""
    if outcome.kind == "lost":
        return Ending(Step.LOSE, Fault(ErrorCode.TOOL_EXECUTION_FAILED, _in_full("how it ended is not known", outcome)))
    if outcome.reason in _STOPPED and (outcome.kind != "unstarted" or outcome.reason == "deadline"):
        step, code, words = _STOPPED[outcome.reason]
        return Ending(step, Fault(code, _in_full(_filled(words, job), outcome)))
    if outcome.kind == "unstarted":
        return Ending(Step.FAIL, _fault(outcome, _in_full("it could not be started", outcome)))
    said, *ended = _said(outcome) or ["it failed"]
    return Ending(Step.FAIL, _fault(outcome, f"{said} ({ended[0]})" if ended else said))


def _fault(outcome: Outcome, text: str) -> Fault:
    if outcome.code in set(ErrorCode):
        return Fault(outcome.code, text)
    # A tool may use codes of its own; a client knows those of the protocol.
    return Fault(ErrorCode.TOOL_EXECUTION_FAILED, f"{outcome.code[:100]}: {text}" if outcome.code else text)


def _filled(words: str, job: Job) -> str:
    """With the limits of its terms; 0 for one that it does not have, which nothing should be stopped for."""
    terms, limits = job.terms, job.terms.limits
    return words.format(
        attempt_timeout=terms.attempt_timeout or 0.0,
        heartbeat=terms.heartbeat or 0.0,
        memory=limits.memory or 0,
        cpu=limits.cpu or 0.0,
        processes=limits.processes or 0,
    )


def _in_full(text: str, outcome: Outcome) -> str:
    """With what the attempt said, and how its process ended."""
    more = ", ".join(_said(outcome))
    return f"{text}: {more}" if more else text


def _said(outcome: Outcome) -> list[str]:
    """What the attempt said, and how its process ended if that is not what it said."""
    said, ended = outcome.message[:LONGEST_MESSAGE], _in_words(outcome.exit)
    return [each for each in (said, "" if said.endswith(ended) else ended) if each]


def _in_words(exit: Exit | None) -> str:  # noqa: A002 - the field's name
    if exit is None:
        return ""
    if exit.oom:
        return "killed for memory by the kernel"
    if exit.signal is not None:
        try:
            name = signal.Signals(exit.signal).name
        except ValueError:
            name = f"signal {exit.signal}"
        return f"ended by {name}"
    return "" if exit.code is None else f"exit code {exit.code}"


def _what_to_do(job: Job) -> str:
    return f"It may have done its work, or a part of it; look, and run it again with: grami jobs retry {job.id}"


def _and_before(job: Job) -> str:
    return "" if job.fault is None else f"; its last attempt: {job.fault.message}"


def _at_the_end(outcome: Outcome) -> dict[str, Any]:
    return {"exit": outcome.exit, "finished_at": outcome.at, "question": None}


def _end(job: Job, outcome: Outcome, ending: Ending, at: float) -> Change:
    fields = {"fault": ending.fault, "reason": outcome.reason or job.reason, **_at_the_end(outcome)}
    told = {"fault": msgspec.to_builtins(ending.fault), "reason": fields["reason"]}
    return Change(job=job.id, step=ending.step, at=at, attempt=job.attempt, fields=fields, told=told)


def _end_of_wait(job: Job, step: Step, reason: Reason, fault: Fault, at: float) -> Change:
    fields: dict[str, Any] = {"fault": fault, "reason": reason, "finished_at": at}
    told = {"fault": msgspec.to_builtins(fault), "reason": reason}
    return Change(job=job.id, step=step, at=at, attempt=job.attempt, fields=fields, told=told)


def _retry(job: Job, fault: Fault, outcome: Outcome, at: float, due_at: float) -> Change:
    fields: dict[str, Any] = {"due_at": due_at, "reason": "", "fault": fault, "exit": outcome.exit, "question": None}
    told = {"due_at": due_at, "fault": msgspec.to_builtins(fault)}
    return Change(job=job.id, step=Step.RETRY, at=at, attempt=job.attempt, fields=fields, told=told)
