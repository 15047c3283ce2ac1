"""A support desk: the desk hands a case over, billing refunds, and more than a little needs a person's approval.

Play it:      grami run scenarios/support_desk.py
Simulate it:  grami run scenarios/support_desk.py --simulate
Break it:     grami run scenarios/support_desk.py whatever_happens --simulate --faults crash
Serve it:     grami serve scenarios/support_desk.py

How a refund happens once, whoever crashes: the question to a person and the transfer at the bank have keys that are
made of the order. Who is not told what became of a case sends the same case again. The question then has its answer
already, and the bank has seen the transfer before.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import msgspec

from grami_actors import Agent, GramiError, Message, Swarm, handles, tool
from grami_actors.coordination import Journal, People, Question, ask_person, handoff
from grami_actors.scenario import Play, PlayClient, scenario
from grami_actors.simulation.rules import When

ALLOWANCE = 2_000
"""Cents that billing refunds without asking anybody."""

PATIENCE = 30.0
"""Seconds that a customer waits."""


class Case(Message, tag="case"):
    """A customer has a problem with an order."""

    order: int
    text: str
    cents: int = 0


class Reply(msgspec.Struct, frozen=True):
    """How a case ended.

    Attributes:
        by: the agent that saw to it.
        outcome: what was done.
        approved_by: the person who decided, where one did.
    """

    by: str
    outcome: Literal["refunded", "refused", "advised"]
    approved_by: str = ""


# --- the bank: a service outside, which remembers what it did ------------------------------------------------


class Transfer(msgspec.Struct, frozen=True):
    """Money that was sent. ``key`` tells a transfer that is asked for again from a new one."""

    key: str
    order: int
    cents: int


STATEMENT: list[Transfer] = []
"""All transfers. No crash of an agent takes one back."""


@tool(lane="loop", timeout=5, concurrency=8)
async def transfer(key: str, order: int, cents: int) -> None:
    """Send money to the customer of an order; with a key that was used before, nothing is sent."""
    if all(each.key != key for each in STATEMENT):
        STATEMENT.append(Transfer(key, order, cents))
    await asyncio.sleep(0.01)  # the money is on its way before the bank's answer is


# --- agents --------------------------------------------------------------------------------------------------


class Desk(Agent):
    """Takes every case, and hands it to who can see to it. It waits for nobody, so it is never busy."""

    @handles(Case)
    def receive(self, case: Case) -> None:
        handoff(self, "billing" if case.cents else "technician", case)


class Technician(Agent):
    """Has one piece of advice, which is mostly right."""

    @handles(Case)
    def advise(self, _: Case) -> Reply:
        self.emit({"from": self.name, "text": "Turn it off and on again."})
        return Reply(self.name, "advised")


class Billing(Agent, concurrency=100):
    """Refunds; what is beyond its allowance only when a person says yes."""

    @handles(Case)
    async def refund(self, case: Case) -> Reply:
        person = ""
        if case.cents > ALLOWANCE:
            self.emit({"from": self.name, "text": "I have asked a person."})
            question = Question(f"refund-{case.order}", f"Refund {case.cents} cents?", ("yes", "no"), case.text)
            decision = await ask_person(self, question, keep=True)
            person = decision.by
            if decision.answer == "no":
                return Reply(self.name, "refused", person)
        await self.call(transfer, key=f"refund-{case.order}", order=case.order, cents=case.cents)
        return Reply(self.name, "refunded", person)


swarm = Swarm(agents=[Desk, Technician, Billing, partial(People, Journal())], tools=[transfer])


# --- scenarios -----------------------------------------------------------------------------------------------


def refunds(order: int) -> int:
    """How often the bank has sent money for an order."""
    return sum(each.order == order for each in STATEMENT)


async def question_of(person: PlayClient, key: str) -> Any:
    """Wait for a question, as a person does who watches a screen: what is open is listed, what is new is heard."""
    async with contextlib.aclosing(person.subscribe("people.asked")) as news:
        heard = asyncio.ensure_future(anext(news))
        try:
            while True:
                found = [each for each in await person.request("people.list") if each["key"] == key]
                if found:
                    return found[0]
                await asyncio.wait((heard,), timeout=0.2)  # it may be asked just before the subscription is made
                if heard.done() and heard.result().data["question"]["key"] == key:
                    return heard.result().data["question"]
        finally:
            heard.cancel()
            await asyncio.wait((heard,))


async def decide(person: PlayClient, order: int, answer: str) -> Any:
    """Wait for the question about an order, and answer it."""
    question = await question_of(person, f"refund-{order}")
    await person.request("people.answer", key=question["key"], answer=answer, by=person.name)
    return question


async def error_of(asked: Any) -> str:
    """The code of the error that a request ends with; empty if it has an answer."""
    try:
        await asked
    except GramiError as error:
        return error.error_code
    return ""


@scenario
async def a_refund_is_approved(play: Play) -> None:
    """A customer's case is handed to billing, a person says yes, and the answer comes to the first request."""
    customer, anna = await play.client("customer"), await play.client("anna")
    case = Case(11, "The kettle leaks", 4_500)
    question, (reply, frames) = await asyncio.gather(decide(anna, 11, "yes"), customer.write(case, timeout=PATIENCE))
    play.check("anna hears what it is about", question["text"] == "Refund 4500 cents?", str(question))
    play.check("the customer has the refund", reply["outcome"] == "refunded", str(reply))
    play.check("it says who approved it", reply["approved_by"] == "anna", str(reply))
    play.check("the money was sent once", refunds(11) == 1)
    play.check(
        "what billing says on the way, and its answer, carry the customer's id", len({f.id for f in frames}) == 1
    )
    play.check("the customer read that a person was asked", any(frame.type == "response.chunk" for frame in frames))
    [desk], [billing] = (play.transcript.told(name, of_order(11)) for name in ("desk: case", "billing: case"))
    play.check("it is one request from the desk to billing", billing.trace == desk.trace)


def of_order(order: int) -> Callable[[Any], bool]:
    """Picks the messages about an order out of a transcript."""
    return lambda told: bool(told.data["order"] == order)


@scenario
async def what_needs_no_person_asks_none(play: Play) -> None:
    """A small refund is made at once, a question about the kettle itself goes to the technician."""
    customer = await play.client("customer")
    small = await customer.request(Case(21, "A cup is missing", 900), timeout=PATIENCE)
    advice = await customer.request(Case(22, "It does not boil"), timeout=PATIENCE)
    play.check("billing refunds by itself", small == {"by": "billing", "outcome": "refunded", "approved_by": ""})
    play.check("the technician has advice", (advice["by"], advice["outcome"]) == ("technician", "advised"), str(advice))
    play.check("nobody was asked", not play.transcript.told("people: people.ask"))
    play.check("money was sent for the cup, and none for advice", (refunds(21), refunds(22)) == (1, 0))


@scenario
async def a_refund_is_refused(play: Play) -> None:
    """A person says no, and that is final: another answer is not taken, and asking again changes nothing."""
    customer, anna = await play.client("customer"), await play.client("anna")
    case = Case(31, "I do not like the colour", 4_500)
    _, reply = await asyncio.gather(decide(anna, 31, "no"), customer.request(case, timeout=PATIENCE))
    play.check("the customer is refused, and by whom", reply["outcome"] == "refused" and reply["approved_by"] == "anna")
    code = await error_of(anna.request("people.answer", key="refund-31", answer="yes", by="anna"))
    play.check("a second thought is not taken", code == "IDEMPOTENCY_KEY_REUSED", code)
    again = await customer.request(case, timeout=PATIENCE)
    play.check("the same case has the same answer", again == reply, str(again))
    play.check("no money was sent", refunds(31) == 0)


@scenario
async def the_approval_comes_too_late(play: Play) -> None:
    """The customer gives up, then the person says yes: nothing is sent until the customer asks again."""
    customer, anna = await play.client("customer"), await play.client("anna")
    case = Case(41, "The handle broke off", 4_500)
    code = await error_of(customer.request(case, timeout=1.0))
    play.check("the customer is told that it took too long", code == "DEADLINE_EXCEEDED", code)
    await decide(anna, 41, "yes")
    play.check("nothing is sent behind the customer's back", refunds(41) == 0)
    reply = await customer.request(case, timeout=PATIENCE)
    play.check("asked again, there is an approval already", reply["approved_by"] == "anna", str(reply))
    play.check("the money was sent once", refunds(41) == 1)


@scenario
async def billing_crashes(play: Play) -> None:
    """Billing dies before it begins, over the transfer, and after it: the customer is told, and asks again."""
    customer, anna = await play.client("customer"), await play.client("anna")
    moments: tuple[When, ...] = ("before", "during", "after")
    for order, when in enumerate(moments, 51):
        # The first time that billing waits is for a person, the second for the bank.
        crash = play.faults.crash("billing", when=when, awaits=2, kind=Case)
        case = Case(order, "The lid does not fit", 4_500)
        told = customer.start(case, timeout=PATIENCE)
        decided = asyncio.ensure_future(decide(anna, order, "yes"))
        code = await error_of(told)
        play.check(f"order {order}: the customer is told of the crash", code == "AGENT_CRASHED", code)
        reply = await customer.request(case, timeout=PATIENCE)
        await decided
        play.check(f"order {order}: asked again, it is refunded", reply["outcome"] == "refunded", str(reply))
        play.check(f"order {order}: the money was sent once", refunds(order) == 1, str(STATEMENT))
        play.check(f"order {order}: a crash was what it withstood", crash.struck == 1)


async def insist(customer: PlayClient, case: Case, tries: int = 5) -> Any:
    """Send a case until it has an answer; the last error if it has none."""
    failed: GramiError | None = None
    for _ in range(tries):
        try:
            return await customer.request(case, timeout=PATIENCE)
        except GramiError as error:
            failed = error
    return failed


async def attend(person: PlayClient, answers: dict[str, str]) -> None:
    """Look for open questions, and answer them, for as long as it is called for."""
    while True:
        with contextlib.suppress(GramiError):  # whatever is lost stands in the list again
            for question in await person.request("people.list", timeout=5.0):
                key = question["key"]
                await person.request("people.answer", key=key, answer=answers[key], by=person.name, timeout=5.0)
        await asyncio.sleep(0.05)


@scenario
async def whatever_happens(play: Play) -> None:
    """Under any faults a customer is answered or told what went wrong, and no order is refunded twice."""
    anna = await play.client("anna")
    working = asyncio.ensure_future(attend(anna, {"refund-61": "yes", "refund-62": "no"}))
    cases = Case(61, "It hums", 4_500), Case(62, "It is loud", 4_500), Case(63, "No manual", 300)
    outcomes = await asyncio.gather(*[insist(await play.client(f"customer-{case.order}"), case) for case in cases])
    working.cancel()
    await asyncio.wait((working,))
    for case, outcome in zip(cases, outcomes, strict=True):
        sent = refunds(case.order)
        refused = case.order == 62
        if isinstance(outcome, GramiError):
            play.check(f"order {case.order}: only faults leave it open", play.transcript.faults(), str(outcome))
            play.check(f"order {case.order}: no money is sent twice", sent <= (not refused))
            continue
        wanted = "refused" if refused else "refunded"
        play.check(f"order {case.order}: it is {wanted}", outcome["outcome"] == wanted, str(outcome))
        play.check(f"order {case.order}: money as the answer says", sent == (wanted == "refunded"), str(STATEMENT))
