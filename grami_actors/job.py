"""Jobs as data: their states, what is kept of each, and what is said about them. Pure. Floor 2; docs/jobs.md.

Rule 1: a job is a tool call that is recorded. What happens to it is a step of :data:`STEPS`; every other is an error
        that names both.
Rule 2: a terminal state is written once, and nothing follows it.
Rule 3: everything that happens to a job is one sequence of events, ``seq`` 1, 2, 3 and so on, without a gap.
Rule 4: the terms of a tool are copied into its jobs when they are accepted: a tool that is changed later changes no
        job that is under way.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from grami_actors.errors import Cancelled, ErrorCode, GramiError, JobError, ToolExecutionFailed, ToolTimeout

if TYPE_CHECKING:  # the process of each job imports this module, and needs neither chance nor digests
    import random


class State(enum.StrEnum):
    """Where a job is. The last six are the end."""

    QUEUED = "QUEUED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    INPUT_REQUIRED = "INPUT_REQUIRED"
    STOPPING = "STOPPING"
    BACKOFF = "BACKOFF"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"
    LOST = "LOST"
    REJECTED = "REJECTED"

    @property
    def terminal(self) -> bool:
        """Whether nothing follows."""
        return self in TERMINAL

    @property
    def alive(self) -> bool:
        """Whether an attempt is under way: it has a slot, and may have processes."""
        return self in ALIVE


TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED, State.TIMED_OUT, State.LOST, State.REJECTED})
ALIVE = frozenset({State.STARTING, State.RUNNING, State.INPUT_REQUIRED, State.STOPPING})


class Step(enum.StrEnum):
    """What can happen to a job."""

    CLAIM = "claim"  # it is its turn: the intent to start an attempt is written down
    STARTED = "started"  # the tool's code runs
    ASK = "ask"  # it waits for somebody's input
    ANSWERED = "answered"
    STOP = "stop"  # it is being ended; `reason` says why
    RETRY = "retry"  # the attempt is over, and another follows
    REQUEUE = "requeue"  # its waiting time is over
    SUCCEED = "succeed"
    FAIL = "fail"
    CANCEL = "cancel"
    TIME_OUT = "time_out"
    LOSE = "lose"  # how the attempt ended, nobody knows
    REJECT = "reject"  # it cannot be run any more: its tool is gone, or takes other arguments


_ENDS = {
    Step.SUCCEED: State.SUCCEEDED,
    Step.FAIL: State.FAILED,
    Step.CANCEL: State.CANCELLED,
    Step.TIME_OUT: State.TIMED_OUT,
    Step.LOSE: State.LOST,
}
_ENDS_OF_ATTEMPT = {**_ENDS, Step.RETRY: State.BACKOFF}

STEPS: dict[State, dict[Step, State]] = {
    State.QUEUED: {
        Step.CLAIM: State.STARTING,
        Step.CANCEL: State.CANCELLED,
        Step.TIME_OUT: State.TIMED_OUT,
        Step.REJECT: State.REJECTED,
    },
    State.STARTING: {Step.STARTED: State.RUNNING, Step.STOP: State.STOPPING, **_ENDS_OF_ATTEMPT},
    State.RUNNING: {Step.ASK: State.INPUT_REQUIRED, Step.STOP: State.STOPPING, **_ENDS_OF_ATTEMPT},
    State.INPUT_REQUIRED: {Step.ANSWERED: State.RUNNING, Step.STOP: State.STOPPING, **_ENDS_OF_ATTEMPT},
    State.STOPPING: _ENDS_OF_ATTEMPT,
    State.BACKOFF: {
        Step.REQUEUE: State.QUEUED,
        Step.CANCEL: State.CANCELLED,
        Step.TIME_OUT: State.TIMED_OUT,
    },
    **{state: {} for state in sorted(TERMINAL)},
}
"""Which step leads where; docs/jobs.md draws it."""

STATUS: dict[State, str] = {
    State.QUEUED: "submitted",
    State.STARTING: "submitted",
    State.RUNNING: "working",
    State.INPUT_REQUIRED: "input_required",
    State.STOPPING: "working",
    State.BACKOFF: "submitted",
    State.SUCCEEDED: "completed",
    State.FAILED: "failed",
    State.CANCELLED: "canceled",
    State.TIMED_OUT: "failed",
    State.LOST: "failed",
    State.REJECTED: "rejected",
}
"""The states in the words of the Agent2Agent protocol (https://a2a-protocol.org, section TaskState)."""

Effect = Literal["pure", "idempotent", "resumable", "unsafe"]
"""What doing it twice does. ``pure``, ``idempotent``: no harm. ``resumable``: it goes on from its checkpoint.
``unsafe``: nobody knows, so an attempt whose outcome is unknown is reported as LOST and not repeated."""

Reason = Literal[
    "",
    "user",
    "parent",
    "deadline",
    "attempt_timeout",
    "queue_timeout",
    "heartbeat",
    "memory",
    "cpu",
    "processes",
    "shutdown",
]
"""Why a job is, or was, stopped."""

OnServerExit = Literal["survive", "stop"]
RunnerName = Literal["inside", "outside"]
"""Where a tool's code runs: in the server's process, or in processes of its own, under a shim."""


class WrongStep(GramiError):
    """This cannot happen to a job in this state, or not any more: another attempt is under way."""

    error_code = ErrorCode.INTERNAL_ERROR


def next_state(state: State, step: Step) -> State:
    """Where a step leads. Raises WrongStep."""
    found = STEPS[state].get(step)
    if found is None:
        raise WrongStep(f"a job that is {state} cannot {step}")
    return found


# --- the terms of a tool ---


class Retry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often a failed attempt is repeated, and when.

    Attributes:
        attempts: at most, with the first one.
        delay: seconds before the second.
        factor: every further wait is so many times as long.
        longest: seconds that no wait exceeds.
        jitter: the part of a wait that is left to chance, from 0 to 1.
    """

    attempts: Annotated[int, msgspec.Meta(ge=1)] = 1
    delay: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    factor: Annotated[float, msgspec.Meta(ge=1)] = 2.0
    longest: Annotated[float, msgspec.Meta(ge=0)] = 300.0
    jitter: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.2

    def wait(self, attempt: int, dice: random.Random) -> float:
        """Seconds between the end of an attempt, the first is 1, and the next one."""
        try:
            whole = min(self.longest, self.delay * self.factor ** (attempt - 1))
        except OverflowError:  # such a power is beyond any bound
            whole = self.longest if self.delay else 0.0
        return whole * (1 - self.jitter * dice.random())


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one attempt may use. ``None`` is no limit. Only :data:`outside` runners can hold the first four.

    Attributes:
        memory: bytes of all its processes together.
        cpu: seconds of processor time of all its processes together.
        processes: at the same time.
        files: open at the same time, in each process.
        log: bytes of output that are kept: the first half and the last.
        result: bytes of its result, as JSON.
    """

    memory: Annotated[int, msgspec.Meta(ge=1)] | None = None
    cpu: Annotated[float, msgspec.Meta(gt=0)] | None = None
    processes: Annotated[int, msgspec.Meta(ge=1)] | None = None
    files: Annotated[int, msgspec.Meta(ge=8)] | None = None
    log: Annotated[int, msgspec.Meta(ge=4096)] = 64 * 1024 * 1024
    result: Annotated[int, msgspec.Meta(ge=1)] = 1024 * 1024


class Terms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a tool is run as a job; times are in seconds, and ``None`` is no limit.

    Attributes:
        effect: what doing it twice does; decides what is repeated.
        retry: how often, and when.
        limits: what an attempt may use.
        attempt_timeout: from the start of an attempt to its end.
        queue_timeout: from the submit (or ``not_before``) to the start of the first attempt.
        deadline: from the submit (or ``not_before``) to the end of all.
        heartbeat: the longest silence on the job's channel; not for tools that do not use it.
        soft_grace: from the request to stop to SIGTERM.
        term_grace: from SIGTERM to SIGKILL.
        on_server_exit: whether an attempt outside goes on when the server ends.
        strays: what becomes of processes that the main one leaves behind: the job waits for them, or ends them.
        concurrency: jobs of this tool that may run at the same time.
        queue: jobs of this tool that may wait.
    """

    effect: Effect = "unsafe"
    retry: Retry = Retry()
    limits: Limits = Limits()
    attempt_timeout: Annotated[float, msgspec.Meta(gt=0)] | None = None
    queue_timeout: Annotated[float, msgspec.Meta(gt=0)] | None = None
    deadline: Annotated[float, msgspec.Meta(gt=0)] | None = None
    heartbeat: Annotated[float, msgspec.Meta(gt=0)] | None = None
    soft_grace: Annotated[float, msgspec.Meta(ge=0)] = 5.0
    term_grace: Annotated[float, msgspec.Meta(ge=0)] = 10.0
    on_server_exit: OnServerExit = "survive"
    strays: Literal["wait", "kill"] = "wait"
    concurrency: Annotated[int, msgspec.Meta(ge=1)] | None = None
    queue: Annotated[int, msgspec.Meta(ge=0)] | None = None


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How one job is to be run, beside its tool and arguments: what ``submit(order=)`` takes.

    Attributes:
        idempotency_key: the same key, tool and arguments from the same owner are the same job.
        priority: higher ones run first; equal ones in the order of their submission.
        concurrency_key: of all jobs of their owner with the same one, whatever their tools, one runs at a time.
        not_before: seconds since the epoch before which it does not run.
        deadline: seconds from the submit (or ``not_before``) to its end; never later than the tool's own.
        detached: go on when the job that caused it is cancelled.
        wake: the agent that is told of its end, with a :class:`grami_actors.jobs.JobEnded`.
    """

    idempotency_key: Annotated[str, msgspec.Meta(min_length=1, max_length=128)] | None = None
    priority: Annotated[int, msgspec.Meta(ge=-1000, le=1000)] = 0
    concurrency_key: Annotated[str, msgspec.Meta(max_length=128)] = ""
    not_before: float | None = None
    deadline: Annotated[float, msgspec.Meta(gt=0)] | None = None
    detached: bool = False
    wake: Annotated[str, msgspec.Meta(max_length=256)] = ""


# --- what is kept of a job ---


class Fault(msgspec.Struct, frozen=True):
    """Why a job did not succeed. ``code`` is one of :class:`~grami_actors.errors.ErrorCode`."""

    code: str
    message: str


class Exit(msgspec.Struct, frozen=True, omit_defaults=True):
    """How an attempt outside ended, as its shim saw it.

    Attributes:
        code: the exit code of the main process; ``None`` if a signal ended it.
        signal: the number of the signal that ended it.
        forced: whether SIGKILL was needed.
        strays: processes that the main one left behind, and that were ended.
        oom: whether the kernel killed it for memory, where that can be told.
        cpu: seconds of processor time of all processes that were waited for.
        memory: the most bytes that one process had.
        log: bytes of output in all, with those that were dropped.
    """

    code: int | None = None
    signal: int | None = None
    forced: bool = False
    strays: int = 0
    oom: bool = False
    cpu: float = 0.0
    memory: int = 0
    log: int = 0


class Cancellation(msgspec.Struct, frozen=True):
    """Somebody wants a job to end.

    Attributes:
        at: since when, in seconds since the epoch.
        reason: whether it was wanted itself, or is a child of a job that was.
        force: whether with SIGKILL, now.
    """

    at: float
    reason: Literal["user", "parent"]
    force: bool = False


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of a job at one moment. Times are seconds since the epoch.

    Attributes:
        id: ``job_`` and 26 characters; sorts by the time of submission.
        tool: the tool's name; ``request:TYPE`` for a request that runs in the background.
        arguments: checked against the tool's schema.
        owner: the name of the principal that submitted it.
        scopes: of that principal, for what a request in the background may do.
        digest: of tool and arguments; what an idempotency key stands for.
        order: as it was submitted.
        terms: of the tool, as they were then.
        runner: where its code runs.
        parent: the job that caused it.
        state: where it is.
        reason: why it is, or was, stopped.
        attempt: the number of the current or last attempt; 0 before the first.
        seq: of its last event.
        created_at: when it was accepted.
        due_at: when it may run: now, ``not_before``, or after a failed attempt.
        expires_at: when it must have ended.
        queue_expires_at: when its first attempt must have begun.
        started_at: when its current or last attempt began.
        finished_at: when it ended.
        cancellation: that somebody wants it to end, if they do.
        progress: the last that it reported, from 0 to 1.
        message: the last that it said with it.
        checkpoint: the last that it saved.
        question: what it wants to know, while it waits for input.
        questions: how many its attempt asked.
        answer: to the last of them, for whoever has to hand it over again.
        artifacts: names of the files that it made, with their sizes in bytes.
        imported: bytes of the attempt's record that were taken over into events.
        log: bytes of output that were seen.
        result: what its tool returned.
        fault: why it did not succeed.
        exit: how its last attempt ended, if it ran outside.
        woken: whether ``order.wake`` was told of its end.
        expired: whether its results and logs were removed; the key is remembered for longer.
    """

    id: str
    tool: str
    arguments: dict[str, Any]
    owner: str
    digest: str
    created_at: float
    due_at: float
    order: Order = Order()
    terms: Terms = Terms()
    runner: RunnerName = "inside"
    scopes: tuple[str, ...] = ()
    parent: str = ""
    state: State = State.QUEUED
    reason: Reason = ""
    attempt: int = 0
    seq: int = 0
    expires_at: float | None = None
    queue_expires_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    cancellation: Cancellation | None = None
    progress: float | None = None
    message: str = ""
    checkpoint: Any = None
    question: Any = None
    questions: int = 0
    answer: Any = None
    artifacts: dict[str, int] = {}
    imported: int = 0
    log: int = 0
    result: Any = None
    fault: Fault | None = None
    exit: Exit | None = None
    woken: bool = False
    expired: bool = False

    @property
    def status(self) -> str:
        """Its state in the words of the Agent2Agent protocol."""
        return STATUS[self.state]

    def outcome(self) -> Any:
        """The result of a job that succeeded.

        Raises:
            ToolExecutionFailed, ToolTimeout, Cancelled, JobError: what became of it instead.
        """
        if self.state is State.SUCCEEDED:
            return self.result
        text = self.fault.message if self.fault is not None else f"the job {self.id} is {self.state}"
        raise _FAULTS.get(self.state, JobError)(text, code=None if self.fault is None else self.fault.code)


_FAULTS: Mapping[State, type[GramiError]] = {
    State.FAILED: ToolExecutionFailed,
    State.TIMED_OUT: ToolTimeout,
    State.CANCELLED: Cancelled,
}


class JobEvent(msgspec.Struct, frozen=True):
    """One thing that happened to a job.

    Attributes:
        job: whose.
        seq: its place among all events of the job, from 1, without a gap.
        at: seconds since the epoch.
        kind: ``state``, ``progress``, ``checkpoint``, ``artifact``, ``input`` or ``log``.
        attempt: during which.
        data: of ``state``: ``state`` and what changed with it (``reason``, ``fault``, ``due_at``); of ``progress``:
            ``fraction`` and ``message``; of ``checkpoint``: ``bytes``; of ``artifact``: ``name`` and ``bytes``; of
            ``input``: ``question`` or ``answered_by``; of ``log``: ``end``, the bytes of output so far.
    """

    job: str
    seq: int
    at: float
    kind: Literal["state", "progress", "checkpoint", "artifact", "input", "log"]
    attempt: int
    data: dict[str, Any]


def digest_of(tool: str, arguments: Any) -> str:
    """What an idempotency key stands for: equal for equal tools and arguments, whatever the order of their keys."""
    import hashlib  # noqa: PLC0415 - see above

    return hashlib.sha256(msgspec.json.encode([tool, arguments], order="deterministic")).hexdigest()


_LETTERS = "0123456789abcdefghjkmnpqrstvwxyz"


def new_id(at: float, dice: random.Random) -> str:
    """An id that sorts by its time: 48 bits of milliseconds and 80 of chance (as a ULID, in lower case)."""
    number = (int(at * 1000) & (2**48 - 1)) << 80 | dice.getrandbits(80)
    return "job_" + "".join(_LETTERS[number >> shift & 31] for shift in range(125, -1, -5))
