"""A person in the loop: questions, the first answer, and what is left when somebody goes away or starts over."""

from __future__ import annotations

import asyncio
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grami_actors import (
    ActorSystem,
    Agent,
    AgentCrashed,
    Cancelled,
    DeadlineExceeded,
    GramiError,
    Message,
    Swarm,
    connect,
    handles,
)
from grami_actors.api_keys import KeyStore
from grami_actors.coordination import people as people_module
from grami_actors.coordination.journal import Journal
from grami_actors.coordination.people import (
    Answer,
    AnswerQuestion,
    ListQuestions,
    People,
    Question,
    QuestionNews,
    WithdrawQuestion,
    ask_person,
)
from grami_actors.errors import LimitReached
from tests.conftest import running, serving, turns_until
from tests.test_coordination_contract_net import Doer

REFUND = Question("refund-42", "Refund 42 euros?", ("yes", "no"), {"order": 42})


class Listener(Agent, subscribes=("people.>",)):
    """Remembers the news."""

    def __init__(self, heard: list[tuple[str, str]]) -> None:
        self.heard = heard

    def on_start(self) -> None:
        self.subscribe("people.>")

    @handles(QuestionNews)
    def on_news(self, news: QuestionNews) -> None:
        self.heard.append((news.state, news.question.key))


async def house(system: ActorSystem, journal: Journal | None = None, doers: int = 1) -> None:
    await system.spawn(People, journal or Journal(), name="people")
    for number in range(doers):
        await system.spawn(Doer, name=f"doer-{number}" if number else "doer")


def asking(system: ActorSystem, to: str = "doer", question: Question = REFUND, **options: Any) -> asyncio.Task[Any]:
    timeout = options.pop("request_timeout", None)
    return asyncio.create_task(
        system.ask(to, lambda by: ask_person(by, question, **options), timeout=timeout)  # type: ignore[arg-type]
    )


async def until_asked(system: ActorSystem, *wanted: Question) -> None:
    """Until exactly these questions are open."""
    while await system.ask("people", ListQuestions()) != list(wanted):
        pass


async def until_waiting(system: ActorSystem, number: int) -> None:
    await turns_until(lambda: system.table.cells["people"].actor._waiters == number)


async def test_a_question_waits_until_a_person_answers_it() -> None:
    async with running() as system:
        await house(system)
        asked = asking(system)
        await until_asked(system, REFUND)
        answer = await system.ask("people", AnswerQuestion("refund-42", "yes", by="ann"))
        assert answer == await asked == Answer("yes", "ann")
        await until_asked(system)


async def test_the_first_answer_counts_the_same_again_is_no_other_and_another_is_refused() -> None:
    async with running() as system:
        await house(system)
        asked = asking(system)
        await until_asked(system, REFUND)
        first = AnswerQuestion("refund-42", "yes", by="ann")
        assert await system.ask("people", first) == await system.ask("people", first)
        for other in (AnswerQuestion("refund-42", "no", by="ann"), AnswerQuestion("refund-42", "yes", by="bob")):
            with pytest.raises(GramiError, match="answered before, by 'ann'") as refused:
                await system.ask("people", other)
            assert refused.value.error_code == "IDEMPOTENCY_KEY_REUSED"
        assert (await asked).answer == "yes"


async def test_an_answer_that_is_none_of_the_choices_or_to_no_question_is_refused() -> None:
    async with running() as system:
        await house(system)
        asked = asking(system)
        await until_asked(system, REFUND)
        for given_, param in (
            (AnswerQuestion("refund-42", "maybe"), "$.answer"),
            (AnswerQuestion("?", "yes"), "$.key"),
        ):
            with pytest.raises(GramiError) as refused:
                await system.ask("people", given_)
            assert (refused.value.error_code, refused.value.param) == ("VALIDATION_FAILED", param)
        await system.ask("people", AnswerQuestion("refund-42", "no"))
        assert (await asked).answer == "no"


async def test_several_that_ask_under_one_key_ask_one_question_and_another_question_is_refused() -> None:
    async with running() as system:
        await house(system, doers=3)
        asked = [asking(system, name) for name in ("doer", "doer-1")]
        await until_waiting(system, 2)
        await until_asked(system, REFUND)
        with pytest.raises(GramiError) as refused:
            await asking(system, "doer-2", Question("refund-42", "Something else?"))
        assert refused.value.error_code == "IDEMPOTENCY_KEY_REUSED"
        await system.ask("people", AnswerQuestion("refund-42", "yes"))
        assert [answer.answer for answer in await asyncio.gather(*asked)] == ["yes", "yes"]
        assert (await asking(system, "doer-2")).answer == "yes", "whoever asks later has the answer at once"


async def test_a_request_that_expires_takes_its_question_back() -> None:
    async with running() as system:
        heard: list[tuple[str, str]] = []
        await house(system)
        await system.spawn(Listener, heard)
        with pytest.raises(DeadlineExceeded):
            await asking(system, timeout=0.02)
        with pytest.raises(DeadlineExceeded):
            await asking(system, request_timeout=0.02)
        await until_asked(system)
        with pytest.raises(GramiError, match="taken back"):
            await system.ask("people", AnswerQuestion("refund-42", "yes"))
        await turns_until(lambda: len(heard) == 4)
        assert heard == [("asked", "refund-42"), ("withdrawn", "refund-42")] * 2


async def test_a_request_that_is_cancelled_takes_its_question_back_when_nobody_else_waits_for_it() -> None:
    async with running() as system:
        await house(system, doers=2)
        first, second = asking(system), asking(system, "doer-1")
        await until_waiting(system, 2)
        first.cancel()
        await until_waiting(system, 1)
        assert await system.ask("people", ListQuestions()) == [REFUND]
        second.cancel()
        await until_asked(system)


async def test_a_question_that_is_to_be_kept_outlives_its_request_and_whoever_asks_again_has_its_answer() -> None:
    async with running() as system:
        await house(system)
        with pytest.raises(DeadlineExceeded):
            await asking(system, keep=True, timeout=0.02)
        assert await system.ask("people", ListQuestions()) == [REFUND]
        await system.ask("people", AnswerQuestion("refund-42", "yes"))
        assert (await asking(system)).answer == "yes"


async def test_who_waits_for_a_question_that_is_withdrawn_is_told() -> None:
    async with running() as system:
        await house(system)
        asked = asking(system, keep=True)
        await until_waiting(system, 1)
        assert await system.ask("people", WithdrawQuestion("refund-42")) is True
        with pytest.raises(Cancelled, match="withdrawn"):
            await asked
        assert await system.ask("people", WithdrawQuestion("refund-42")) is False
        again = asking(system)
        await until_asked(system, REFUND)
        await system.ask("people", AnswerQuestion("refund-42", "no"))
        assert (await again).answer == "no"


async def test_who_waits_does_not_notice_that_people_is_killed() -> None:
    async with running() as system:
        heard: list[tuple[str, str]] = []
        await house(system, doers=2)
        await system.spawn(Listener, heard)
        asked = [asking(system), asking(system, "doer-1", Question("other", "?"))]
        await until_waiting(system, 2)
        first = system.table.cells["people"].actor
        system.kill("people")
        await turns_until(lambda: system.table.cells["people"].actor is not first)
        await until_waiting(system, 2)
        await system.ask("people", AnswerQuestion("refund-42", "yes"))
        await system.ask("people", AnswerQuestion("other", [1]))
        assert [answer.answer for answer in await asyncio.gather(*asked)] == ["yes", [1]]
        assert sorted(heard) == sorted([(s, k) for s in ("asked", "answered") for k in ("refund-42", "other")])


class Break(Message, tag="test.break"):
    pass


class Fragile(People):
    @handles(Break)
    def fall(self, _: Break) -> None:
        raise RuntimeError("it fell")


async def test_who_waits_does_not_notice_that_people_failed_over_another_message() -> None:
    async with running() as system:
        await system.spawn(Fragile, Journal(), name="people")
        await system.spawn(Doer, name="doer")
        asked = asking(system)
        await until_waiting(system, 1)
        first = system.table.cells["people"].actor
        with pytest.raises(RuntimeError):
            await system.ask("people", Break())
        await turns_until(lambda: system.table.cells["people"].actor is not first)
        await until_waiting(system, 1)
        await system.ask("people", AnswerQuestion("refund-42", "yes"))
        assert (await asked).answer == "yes"


async def test_people_that_are_gone_for_good_are_an_error() -> None:
    async with running() as system:
        await house(system)
        asked = asking(system)
        await until_waiting(system, 1)
        await system.stop("people", grace=0)
        with pytest.raises(GramiError, match="people"):
            await asked


async def test_an_agent_that_died_asks_again_under_its_key_and_has_the_answer() -> None:
    async with running() as system:
        await house(system)
        asked = asking(system, keep=True)
        await until_waiting(system, 1)
        system.kill("doer")
        with pytest.raises(AgentCrashed):
            await asked
        await system.ask("people", AnswerQuestion("refund-42", "yes"))
        assert (await asking(system, keep=True)).answer == "yes"


@pytest.mark.slow
async def test_questions_and_answers_are_there_again_in_the_next_process(tmp_path: Path) -> None:
    path = tmp_path / "people.jsonl"
    other = Question("other", "?")
    async with running() as first:
        await house(first, Journal(path), doers=2)
        asked = [asking(first, keep=True), asking(first, "doer-1", other, keep=True)]
        await until_waiting(first, 2)
        await first.ask("people", AnswerQuestion("other", "done", by="ann"))
        asked[0].cancel()
        await until_waiting(first, 0)
    async with running() as second:
        await house(second, Journal(path))
        assert await second.ask("people", ListQuestions()) == [REFUND]
        assert await asking(second, question=other) == Answer("done", "ann")
        again = asking(second)
        await until_waiting(second, 1)
        await second.ask("people", AnswerQuestion("refund-42", "no", by="bob"))
        assert await again == Answer("no", "bob")


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.data())
def test_after_a_crash_at_any_byte_a_question_always_has_the_answer_that_was_given_or_is_open(data: Any) -> None:
    async def play(folder: Path) -> None:
        path = folder / "people.jsonl"
        async with running() as first:
            await house(first, Journal(path))
            asked = asking(first, keep=True)
            await until_waiting(first, 1)
            assert await first.ask("people", ListQuestions()) == [REFUND]
            was_open = path.stat().st_size
            await first.ask("people", AnswerQuestion("refund-42", "yes"))
            await asked
        whole = path.read_bytes()
        cut = data.draw(st.integers(0, len(whole)))
        path.write_bytes(whole[:cut])
        async with running() as second:
            await house(second, Journal(path))
            open_questions = await second.ask("people", ListQuestions())
            assert open_questions == ([REFUND] if was_open <= cut < len(whole) else [])
            asked = asking(second)
            if cut < len(whole):
                await until_waiting(second, 1)
                await second.ask("people", AnswerQuestion("refund-42", "yes"))
            assert (await asked).answer == "yes"

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(play(Path(folder)))


async def test_only_so_many_questions_are_known_and_answered_ones_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(people_module, "MOST_QUESTIONS", 2)
    async with running() as system:
        await house(system, doers=4)
        questions = [Question(str(number), "?") for number in range(4)]
        asked = [asking(system, f"doer-{number}", questions[number]) for number in (1, 2)]
        await until_waiting(system, 2)
        with pytest.raises(LimitReached, match="2 requests wait for people"):
            await asking(system, question=questions[3])
        await system.ask("people", AnswerQuestion("1", "!"))
        assert (await asked[0]).answer == "!"
        third = asking(system, question=questions[3])
        await until_asked(system, questions[2], questions[3])
        for key in ("2", "3"):
            await system.ask("people", AnswerQuestion(key, "!"))
        await asyncio.gather(asked[1], third)


async def test_questions_that_nobody_waits_for_are_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(people_module, "MOST_QUESTIONS", 1)
    async with running() as system:
        await house(system)
        with pytest.raises(DeadlineExceeded):
            await asking(system, keep=True, timeout=0.02)
        with pytest.raises(LimitReached, match="1 open questions, as many as there may be: answer or withdraw one"):
            await asking(system, question=Question("other", "?"))


async def test_a_question_with_a_context_that_cannot_be_kept_is_refused() -> None:
    async with running() as system:
        await house(system)
        with pytest.raises(GramiError) as refused:
            await asking(system, question=Question("k", "?", context=object()))
        assert refused.value.error_code == "VALIDATION_FAILED"


class Refund(Message):
    order: int


class Clerk(Agent):
    """Asks a person before it pays."""

    @handles(Refund)
    async def refund(self, refund: Refund) -> str:
        answer = await ask_person(self, Question(f"refund-{refund.order}", "Refund?", ("yes", "no")))
        return f"{answer.answer}, says {answer.by}"


@pytest.mark.slow
async def test_clients_hear_of_questions_list_them_and_answer_them() -> None:
    swarm = Swarm([Clerk, partial(People, Journal())])
    async with serving(swarm) as manager, connect(manager.url) as customer, connect(manager.url) as person:
        news = person.subscribe("people.asked")
        heard = asyncio.create_task(anext(news))
        await turns_until(lambda: any(each.live for each in person._conversation.hearings))
        asked = asyncio.create_task(customer.request(Refund(7)))
        assert (await heard).data["question"]["key"] == "refund-7"
        assert [each["key"] for each in await person.request("people.list")] == ["refund-7"]
        await person.request("people.answer", key="refund-7", answer="yes", by="ann")
        assert await asked == "yes, says ann"
        with pytest.raises(GramiError) as refused:
            await person.request("people.answer", key="refund-7", answer="no", by="bob")
        assert refused.value.error_code == "IDEMPOTENCY_KEY_REUSED"
        await news.aclose()


@pytest.mark.slow
async def test_a_person_that_has_a_name_here_cannot_answer_under_another(tmp_path: Path) -> None:
    _, token = KeyStore(tmp_path / "keys.json").create("ann", ["any"], now=0.0)
    swarm = Swarm([Clerk, partial(People, Journal())])
    settings_ = {"auth": ("keys",), "state_dir": tmp_path}
    async with serving(swarm, **settings_) as manager, connect(manager.url, token=token) as ann:
        asked = asyncio.create_task(ann.request(Refund(7)))
        while not await ann.request("people.list"):
            pass
        answered = await ann.request("people.answer", key="refund-7", answer="yes", by="bob")
        assert answered == {"answer": "yes", "by": "ann"}
        assert await asked == "yes, says ann"


@pytest.mark.slow
async def test_a_client_that_gives_up_takes_its_question_back() -> None:
    async with serving(Swarm([Clerk, partial(People, Journal())])) as manager, connect(manager.url) as grami:
        asked = asyncio.create_task(grami.request(Refund(7)))
        while not await grami.request("people.list"):
            pass
        asked.cancel()
        while await grami.request("people.list"):
            pass
