"""The saga: steps that are all done, or undone again, whatever happens in between. Floor 12.

H. Garcia-Molina, K. Salem, "Sagas", ACM SIGMOD 1987.

Rule 1: a saga is run by an actor of its own, :class:`Sagas`, which writes down what it is about to do before it does
        it. So it is finished or undone also when the agent that asked for it dies, when that actor itself is restarted,
        and, with a journal in a file, when the process is.
Rule 2: the steps belong to the request: its deadline, its cancellation, its budget. When a step fails, or the request
        ends, what was done is undone, the last first, outside of the request, with time and tries of its own.
Rule 3: a step is undone too if its outcome is unknown: it did not answer in time, died, raised, or was cancelled. Only
        a step that answers ``Reject`` says that it has done nothing; one that lets through the ``Reject`` of whom it
        asked says so too. So an ``undo`` may come for what was never done, may come twice, and may come before its
        ``do`` has ended; it has to be idempotent, and a ``do`` that comes after its own ``undo`` has to be refused.
        Both carry the same key, if they are functions of it.
Rule 4: what cannot be undone stops nothing: the steps before it are undone. It is in the error, in the journal, and a
        dead letter with the reason ``undo_failed``. ``saga.undo`` tries again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Literal

import msgspec

from grami_actors.actor import Actor
from grami_actors.agent import Agent, handles
from grami_actors.coordination.journal import Journal, written
from grami_actors.coordination.retries import Retries, ask_again
from grami_actors.errors import AgentExecutionFailed, ErrorCode, GramiError, LimitReached, ProtocolError, Reject
from grami_actors.future import current_scope
from grami_actors.messages import Envelope, Message

MOST_SAGAS = 1_000
"""Sagas that are known, at work or over; the oldest that is over makes room for the next."""

MessageSource = Message | Callable[[str], Message]
"""A message, or a function that makes it of an idempotency key: ``lambda key: Book(key, "room 7")``."""


class Step(msgspec.Struct, frozen=True):
    """One step of a saga.

    Attributes:
        name: names it in the saga.
        to: the name of the actor that does and undoes it.
        do: what it is asked.
        undo: what it is asked to take that back; ``None`` if there is nothing to take back. As the outcome of ``do``
            may be unknown, it cannot depend on its answer: let both carry the key, which is the saga's with the
            step's name, ``"order-42/book"``.
        timeout: seconds for ``do``, of what the request still has.
    """

    name: str
    to: str
    do: MessageSource
    undo: MessageSource | None = None
    timeout: float | None = None


class RunSaga(Message, tag="saga.run"):
    """Run a saga; see :func:`saga`, which sends this. Its steps' messages are made, so that clients cannot send it."""

    key: str
    steps: tuple[Any, ...]


class UndoSaga(Message, tag="saga.undo"):
    """Undo what is left of a saga that failed or was interrupted; what was done to its end stays.

    Not answered with an error: what cannot be undone is tried again as a matter of the saga.
    """

    key: str


class SagaFailed(AgentExecutionFailed):
    """A step failed, or the saga was interrupted; what was done was undone, as far as that was possible."""

    def __init__(self, message: str, *, failed: str = "", undone: Sequence[str] = (), stuck: Any = ()) -> None:
        super().__init__(message)
        # Among the arguments, with which an exception crosses to a worker process.
        self.args = (message, failed, tuple(undone), dict(stuck))

    @property
    def failed(self) -> str:
        """The step."""
        return str(self.args[1])

    @property
    def undone(self) -> tuple[str, ...]:
        """The steps that were undone, the last first."""
        return tuple(self.args[2])

    @property
    def stuck(self) -> dict[str, str]:
        """The steps that could not be undone, and why."""
        return dict(self.args[3])

    def __str__(self) -> str:
        return self.message


class _Words(msgspec.Struct):
    """A message as the journal has it: which class, and its JSON."""

    kind: str
    fields: str


class _Step(msgspec.Struct):
    name: str
    to: str
    do: _Words
    undo: _Words | None


class _Record(msgspec.Struct):
    steps: list[_Step]
    state: Literal["running", "done", "undoing", "undone", "stuck"] = "running"
    begun: int = 0
    answers: dict[str, Any] = {}
    failed: str = ""
    why: str = ""
    undone: list[str] = []
    stuck: dict[str, str] = {}

    @property
    def over(self) -> bool:
        return self.state in {"done", "undone"}


class Sagas(Agent):
    """Runs sagas, and undoes what was interrupted: ``partial(Sagas, Journal("sagas.jsonl"))`` in a swarm's agents.

    Args:
        journal: holds what was begun. When the actor starts, each saga in it that is not over is undone; so it stands
            last among the agents of a swarm, and finds the others there.
        retries: how often, and how long, an ``undo`` is tried.
    """

    # Whoever waits for the end of a saga is a handler at work, which costs nothing on the loop lane, the only one it is
    # for; those that undo must find room beside them.
    concurrency: ClassVar[int] = 4 * MOST_SAGAS

    def __init__(self, journal: Journal, retries: Retries = Retries()) -> None:  # noqa: B008 - it is frozen
        super().__init__()
        self._journal = journal
        self._retries = retries
        self._callers = 0
        self._at_work: dict[str, None] = {}
        self._ended: dict[str, asyncio.Event] = {}

    def on_start(self) -> None:
        """Read the journal, and see to what was interrupted. Raises ConfigError."""
        self._journal.open(self._cell.runtime, self.name)
        for key in self._journal.keys():  # noqa: SIM118 - no dict
            if self._record(key).state in {"running", "undoing"}:
                self._undo_soon(key)

    def on_stop(self) -> None:
        """Let go of the journal."""
        self._journal.close()

    def on_failure(self, *_failure: Any) -> None:
        """End all that this instance has at work: the next one sees to it, and must not work beside it."""
        self._cell.lane.kill(self._cell)

    def _record(self, key: str) -> Any:
        return self._journal.get(key, _Record)

    async def _write(self, key: str, record: _Record) -> None:
        """Before the next step: what is not on the disk was not begun."""
        self._journal.put(key, record)
        await self._journal.kept()

    def _undo_soon(self, key: str) -> None:
        self.after(0.0, UndoSaga(key))
        self._remind(key)

    def _remind(self, key: str) -> None:
        # A ``saga.undo`` may be lost, or end with the request that it came with: the next one goes on where it ended.
        self.every(self._retries.timeout, UndoSaga(key), key=key)

    @handles(RunSaga)
    async def _on_run(self, run: RunSaga) -> dict[str, Any]:
        if self._callers >= MOST_SAGAS:
            raise LimitReached(f"{self._callers} sagas are at work", code=ErrorCode.TOO_MANY_INFLIGHT)
        self._callers += 1
        try:
            steps = _write_down(run.steps)
            record = self._record(run.key)
            if record is None:
                full = "sagas that are not over, as many as there may be: those that are stuck want a saga.undo"
                self._journal.make_room(MOST_SAGAS, full, _Record, lambda known: known.over)
                return await self._run(run, _Record(steps))
            if record.steps != steps:
                raise ProtocolError(
                    f"another saga was run under the key {run.key!r}", code=ErrorCode.IDEMPOTENCY_KEY_REUSED
                )
            return await self._outcome(run.key)
        finally:
            self._callers -= 1

    async def _run(self, run: RunSaga, record: _Record) -> dict[str, Any]:
        answers: dict[str, Any] = {}
        self._at_work[run.key] = None
        try:
            for step in run.steps:
                # A name that leads nowhere is known before anything is sent, and leaves nothing to be undone.
                self._cell.runtime.resolve(step.to, step.do, self._cell)
                record.begun += 1
                await self._write(run.key, record)
                answers[step.name] = await self.ask(step.to, step.do, timeout=step.timeout)
                record.answers[step.name] = msgspec.json.decode(written(answers[step.name]))
            record.state = "done"
            await self._write(run.key, record)
        except GramiError as error:
            if isinstance(error, Reject):
                record.begun -= 1
            self._give_up(run, record, error)
        except asyncio.CancelledError:
            scope = current_scope()
            if scope is not None and scope.reason is not None and record.state == "running":
                self._give_up(run, record, scope.reason)
            raise  # if this actor was killed or stopped, its next instance sees to it
        finally:
            self._at_work.pop(run.key, None)
            self._tell_end(run.key)
        return answers if record.state == "done" else await self._outcome(run.key)

    def _give_up(self, run: RunSaga, record: _Record, error: GramiError) -> None:
        record.state = "undoing"
        record.failed = next((each.name for each in run.steps if each.name not in record.answers), run.steps[-1].name)
        record.why = f"{error.error_code}, {error.message}"
        self._undo_soon(run.key)
        self._journal.put(run.key, record)

    async def _outcome(self, key: str) -> dict[str, Any]:
        while (record := self._record(key)) is not None:
            if record.state in {"running", "undoing"}:
                await self._ended.setdefault(key, asyncio.Event()).wait()
                continue
            await self._journal.kept()
            if record.state != "done":
                raise _failure(key, record)
            answers: dict[str, Any] = record.answers
            return answers
        raise SagaFailed(f"what became of the saga {key!r} is forgotten")

    def _tell_end(self, key: str) -> None:
        if (ended := self._ended.pop(key, None)) is not None:
            ended.set()

    @handles(UndoSaga)
    async def _on_undo(self, undo: UndoSaga) -> None:
        key = undo.key
        record = self._record(key)
        if record is None or record.over or key in self._at_work:
            return
        self._at_work[key] = None
        self._remind(key)
        try:
            if record.state == "running":
                record.failed, record.why = record.steps[record.begun - 1].name, "the saga was interrupted"
            record.state, record.stuck = "undoing", {}
            await self._write(key, record)
            for step in reversed(record.steps[: record.begun]):
                if step.undo is None or step.name in record.undone:
                    continue
                why = await self._undo(step, step.undo)
                if why:
                    record.stuck[step.name] = why
                else:
                    record.undone.append(step.name)
                await self._write(key, record)
            record.state = "stuck" if record.stuck else "undone"
            await self._write(key, record)
            self.cancel_timer(key)
        finally:
            self._at_work.pop(key, None)
            self._tell_end(key)

    async def _undo(self, step: _Step, words: _Words) -> str:
        """Undo one step; returns why that was not possible."""
        message: Any = words
        for failures in range(1, self._retries.tries + 1):
            try:
                message = _message(words)
                await self.ask(step.to, message, timeout=self._retries.timeout)
            except GramiError as error:
                why = f"{error.error_code}, {error.message}"
            else:
                return ""
            if failures < self._retries.tries:
                await asyncio.sleep(self._retries.pause(failures))
        self._cell.bury(Envelope(message, None, self.name), "undo_failed", why)
        return why


def _write_down(steps: tuple[Any, ...]) -> list[_Step]:
    for step in steps:
        undo = getattr(step, "undo", None)
        if not (isinstance(step, Step) and isinstance(step.do, Message) and isinstance(undo, Message | None)):
            raise ProtocolError("a saga is run with saga(...)", code=ErrorCode.VALIDATION_FAILED, param="$.steps")
    return [_Step(step.name, step.to, _words(step.do), step.undo and _words(step.undo)) for step in steps]


def _words(message: Any) -> _Words:
    return _Words(_name(type(message)), written(message).decode())


def _message(words: _Words) -> Message:
    for kind in _kinds(Message):
        if _name(kind) == words.kind:
            try:
                return msgspec.json.decode(words.fields, type=kind)
            except msgspec.MsgspecError as error:
                raise GramiError(f"{words.kind} has changed since: {error}") from error
    raise GramiError(f"this program has no message type {words.kind} any more")


def _name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _kinds(kind: type[Message]) -> Iterator[type[Message]]:
    for each in reversed(kind.__subclasses__()):  # of two with one name, the one that was defined last
        yield each
        yield from _kinds(each)


def _failure(key: str, record: _Record) -> SagaFailed:
    undone = ", ".join(record.undone) or "nothing"
    stuck = "".join(f"; NOT UNDONE: {name} ({why})" for name, why in record.stuck.items())
    text = f"the saga {key!r} failed in {record.failed!r} ({record.why}); undone: {undone}{stuck}"
    return SagaFailed(text, failed=record.failed, undone=record.undone, stuck=record.stuck)


async def saga(
    by: Actor, steps: Sequence[Step], *, key: str = "", sagas: str = "sagas", timeout: float | None = None
) -> dict[str, Any]:
    """Do all steps, or undo those that were done.

    ::

        await saga(
            self,
            [
                Step("book", "hotel", do=lambda key: Book(key, "room 7"), undo=Release),
                Step("pay", "bank", do=lambda key: Pay(key, 120), undo=Refund),
            ],
            key="trip-42",
        )

    Args:
        by: the actor that asks for it. While it waits it can do no step itself, unless it has ``concurrency``.
        steps: what is done, in order.
        key: names the saga: run again under its key it is not done again, but has the outcome that it had, for as long
            as it is among the last thousand. Without one it is a new saga each time, also when this actor starts over.
        sagas: the name of the :class:`Sagas` that run it.
        timeout: seconds at most, of what the request still has; 30 outside of any. Undoing may take longer.

    Returns:
        what each step answered, by its name; run again, as JSON gives it back.

    Raises:
        SagaFailed: a step failed; it says which, and what was undone, and what could not be.
        DeadlineExceeded, Cancelled, QuotaExceeded: the request ended; what was done is being undone.
        ProtocolError: IDEMPOTENCY_KEY_REUSED: another saga has this key.
        ValueError: two steps have one name, or there is none.
    """
    names = [step.name for step in steps]
    if not names or len({*names}) < len(names):
        raise ValueError(f"a saga has at least one step, and each a name of its own, not {names}")
    key = key or by._cell.runtime.new_trace_id()
    made = [
        msgspec.structs.replace(
            step, do=_made(step.do, f"{key}/{step.name}"), undo=_made(step.undo, f"{key}/{step.name}")
        )
        for step in steps
    ]
    answers: dict[str, Any] = await ask_again(by, sagas, RunSaga(key, tuple(made)), timeout)
    return answers


def _made(source: MessageSource | None, key: str) -> Message | None:
    return source if source is None or isinstance(source, Message) else source(key)
