"""A person in the loop: questions that agents ask and people answer, by way of the gateway. Floor 12.

Rule 1: a question has a key, given by whoever asks. Asked again under its key, it is the same question, or has its
        answer already; another question under the same key is refused (``IDEMPOTENCY_KEY_REUSED``).
Rule 2: the first answer counts. The same one again is answered the same; another is refused (the same code).
Rule 3: a question whose request was cancelled or has expired is taken back, unless it was asked with ``keep``: whoever
        asks again under its key, after a crash or a new start, then finds it open or answered.
Rule 4: a question, and an answer, is in the journal before anybody hears of it.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, ClassVar, Literal

import msgspec

from grami_actors.actor import Actor
from grami_actors.agent import Agent, handles
from grami_actors.coordination.journal import Journal, written
from grami_actors.coordination.news import tell_topic
from grami_actors.coordination.retries import ask_again
from grami_actors.errors import Cancelled, ErrorCode, LimitReached, ProtocolError
from grami_actors.future import current_scope
from grami_actors.guard import behind
from grami_actors.messages import Message
from grami_actors.principals import ANONYMOUS

MOST_QUESTIONS = 2_000
"""Questions that are known, open or answered; the oldest answered one makes room for the next."""


class Question(msgspec.Struct, frozen=True):
    """What a person is asked.

    Attributes:
        key: names the question, for as long as it or its answer is to be found again: ``"refund-order-42"``.
        text: what is to be decided.
        choices: what may be answered; anything, if there are none.
        context: what helps to decide; anything that JSON can say.
    """

    key: str
    text: str
    choices: tuple[str, ...] = ()
    context: Any = None


class Answer(msgspec.Struct, frozen=True):
    """What a person answered. ``by``: the principal of the connection; where nobody has one, what the client said."""

    answer: Any
    by: str


class AskPeople(Message, tag="people.ask"):
    """Have a question answered; answered with an :class:`Answer` when there is one. See :func:`ask_person`."""

    question: Question
    keep: bool = False


class ListQuestions(Message, tag="people.list"):
    """All open questions, the oldest first."""


class AnswerQuestion(Message, tag="people.answer"):
    """Answer a question; answered with the :class:`Answer` as it counts.

    Attributes:
        key: of the question.
        answer: one of its choices, if it has any.
        by: who answers, where the connection does not say it.
    """

    key: str
    answer: Any
    by: str = ""


class WithdrawQuestion(Message, tag="people.withdraw"):
    """Take a question back: whoever waits for its answer gets ``CANCELLED``. Answered with whether it was open."""

    key: str


class QuestionNews(Message, tag="people.news"):
    """Published to the topics ``PEOPLE.asked``, ``PEOPLE.answered`` and ``PEOPLE.withdrawn``."""

    state: Literal["asked", "answered", "withdrawn"]
    question: Question
    answer: Answer | None = None


class _Record(msgspec.Struct):
    question: Question
    keep: bool
    answer: Answer | None = None


class People(Agent):
    """Keeps the questions that people are to answer: ``partial(People, Journal("people.jsonl"))`` in a swarm's agents.

    A client sends ``people.list``, subscribes to ``people.asked``, and sends ``people.answer``.

    Args:
        journal: holds questions and answers. The instance that takes over after a failure finds them there; with a
            file the next process does. A question that is open then stays open until it is answered or withdrawn.
    """

    # Each who waits is a handler at work, which costs nothing on the loop lane, the only one it is for; those that
    # answer must find room beside them.
    concurrency: ClassVar[int] = 2 * MOST_QUESTIONS

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal
        self._waiting: dict[str, list[asyncio.Future[Answer | None]]] = {}
        self._waiters = 0

    def on_start(self) -> None:
        """Read the journal. Raises ConfigError."""
        self._journal.open(self._cell.runtime, self.name)

    def on_stop(self) -> None:
        """Let go of it."""
        self._journal.close()

    def on_failure(self, *_failure: Any) -> None:
        """End all that this instance has at work: answers are written down, and whoever waits asks the next one."""
        self._cell.lane.kill(self._cell)

    @handles(AskPeople)
    async def _on_ask(self, asked: AskPeople) -> Answer:
        # As the journal gives it back, so that the two can be compared.
        question = msgspec.json.decode(written(asked.question), type=Question)
        if self._waiters >= MOST_QUESTIONS:
            raise LimitReached(f"{self._waiters} requests wait for people", code=ErrorCode.TOO_MANY_INFLIGHT)
        record: _Record | None = self._journal.get(question.key, _Record)
        if record is None:
            full = "open questions, as many as there may be: answer or withdraw one"
            self._journal.make_room(MOST_QUESTIONS, full, _Record, lambda known: known.answer is not None)
            record = _Record(question, asked.keep)
            self._journal.put(question.key, record)
            self._tell("asked", record)
        elif record.question != question:
            raise _reused(f"another question was asked under the key {question.key!r}")
        answer = record.answer or await self._wait(record)
        await self._journal.kept()
        return answer

    async def _wait(self, record: _Record) -> Answer:
        key = record.question.key
        waiting = self._waiting.setdefault(key, [])
        arrived: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
        waiting.append(arrived)
        self._waiters += 1
        try:
            await self._journal.kept()  # else nobody will ever answer it
            answer = await arrived
        finally:
            self._waiters -= 1
            waiting.remove(arrived)
            if not waiting and self._waiting.get(key) is waiting:
                del self._waiting[key]
                scope = current_scope()
                # When this actor is killed or stopped there is no reason: the question waits for who asks again.
                if scope is not None and scope.reason is not None and not record.keep:
                    self._withdraw(key)
        if answer is None:
            raise Cancelled(f"the question {key!r} was withdrawn")
        return answer

    @handles(ListQuestions)
    async def _on_list(self, _: ListQuestions) -> list[Question]:
        questions = self._open()
        await self._journal.kept()
        return questions

    def _open(self) -> list[Question]:
        records = [self._journal.get(key, _Record) for key in self._journal.keys()]  # noqa: SIM118 - no dict
        return [record.question for record in records if record.answer is None]

    @handles(AnswerQuestion)
    async def _on_answer(self, given: AnswerQuestion) -> Answer:
        record: _Record | None = self._journal.get(given.key, _Record)
        if record is None:
            raise _invalid(f"there is no question {given.key!r}; it may have been taken back", "$.key")
        principal = behind(current_scope())
        by = given.by if principal is None or principal == ANONYMOUS else principal.name
        answer = msgspec.json.decode(written(Answer(given.answer, by)), type=Answer)
        if record.answer is None:
            if record.question.choices and answer.answer not in record.question.choices:
                raise _invalid(f"the answer is one of {', '.join(record.question.choices)}", "$.answer")
            record.answer = answer
            self._journal.put(given.key, record)
            self._tell("answered", record)
        self._settle(given.key, record.answer)  # also if it was there: a write that failed may have left it
        await self._journal.kept()
        if record.answer != answer:
            raise _reused(f"the question {given.key!r} was answered before, by {record.answer.by!r}")
        return answer

    @handles(WithdrawQuestion)
    async def _on_withdraw(self, withdraw: WithdrawQuestion) -> bool:
        was_open = self._withdraw(withdraw.key)
        await self._journal.kept()
        return was_open

    def _withdraw(self, key: str) -> bool:
        record: _Record | None = self._journal.get(key, _Record)
        if record is None or record.answer is not None:
            return False
        self._journal.remove(key)
        self._settle(key, None)
        self._tell("withdrawn", record)
        return True

    def _settle(self, key: str, answer: Answer | None) -> None:
        waiting = tuple(self._waiting.get(key, ()))  # not whoever asks after a withdrawal

        def settle() -> None:
            for arrived in waiting:
                if not arrived.done():
                    arrived.set_result(answer)

        self._journal.once_kept(settle)

    def _tell(self, state: Literal["asked", "answered", "withdrawn"], record: _Record) -> None:
        news = QuestionNews(state, record.question, record.answer)
        self._journal.once_kept(partial(tell_topic, self, f"{self.name}.{state}", news))


def _reused(text: str) -> ProtocolError:
    return ProtocolError(text, code=ErrorCode.IDEMPOTENCY_KEY_REUSED)


def _invalid(text: str, param: str) -> ProtocolError:
    return ProtocolError(text, code=ErrorCode.VALIDATION_FAILED, param=param)


async def ask_person(
    by: Actor, question: Question, *, people: str = "people", keep: bool = False, timeout: float | None = None
) -> Answer:
    """Wait for the answer of a person.

    ::

        answer = await ask_person(self, Question("refund-42", "Refund 42 euros?", ("yes", "no")), keep=True)

    People take their time, and a request's deadline can only shrink. A client that waits gives a long ``timeout_ms``
    (the server's ``max_timeout_ms`` caps it). An agent that is to wait for days does so outside of any request: it
    sends itself a message with ``tell(..., detached=True)`` and asks from there, with a ``timeout`` of its own.

    Args:
        by: the actor that asks. If it handles one message at a time, it handles no other while it waits.
        question: the question.
        people: the name of the :class:`People` that keep it.
        keep: leave the question open when this request is cancelled or expires, for whoever asks again. What counts
            is what was said when it was first asked.
        timeout: seconds at most, of what the request still has; 30 outside of any.

    Raises:
        ProtocolError: IDEMPOTENCY_KEY_REUSED: another question has this key.
        Cancelled: the question was withdrawn, or the request cancelled.
        DeadlineExceeded: nobody answered in time.
        LimitReached: too many are open already.
    """
    answer: Answer = await ask_again(by, people, AskPeople(question, keep), timeout)
    return answer
