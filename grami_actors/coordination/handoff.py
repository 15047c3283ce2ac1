"""A request that moves to another agent, which answers it. Floor 12."""

from __future__ import annotations

from typing import Any

from grami_actors.actor import Actor, charge
from grami_actors.cell import Cell
from grami_actors.errors import AgentExecutionFailed, AskCycle, GramiError
from grami_actors.future import Future, handled
from grami_actors.messages import Envelope
from grami_actors.ref import Ref


def handoff(actor: Actor, to: str | Ref[Any], message: Any) -> None:
    """Give the request in hand to another, whose answer then goes to whoever asked; do not wait for it.

    ::

        @handles(Question)
        def receive(self, question: Question) -> None:
            handoff(self, "billing" if "invoice" in question.text else "support", question)

    It stays the same request: its id, deadline, cancellation, budget, trace and stream move with it. What this handler
    returns or raises afterwards is no answer any more. Whatever the other should know of the conversation so far is
    part of the message. A request that is handed to and fro for ever is ended by its deadline, or its budget of
    messages.

    If the other crashes, is slow or answers late, that is what becomes of the request, as if it had been asked first.

    Args:
        actor: who handles the request.
        to: who gets it: an actor, or a pool that gives it to one of its members.
        message: what the other is asked.

    Raises:
        DestinationNotFound, PermissionDenied, AgentUnavailable, MailboxFull, QuotaExceeded: refused; this handler is
            still the one to answer, and what it raises is the answer.
        AskCycle: the other waits, itself or through others, for the answer to this request.
        AgentExecutionFailed: there is nothing to hand over, since nobody waits for an answer of this handler; this
            actor runs in a process of its own; or the pool is one that gives a message to all.
    """
    here = handled()
    if actor._cell.lane.name == "process":
        raise AgentExecutionFailed(
            f"{actor.name} is in a worker process, which cannot hand over a request: ask {_name(to)} instead"
        )
    if here is None or here.reply_to is None or here.scope is None or here.scope.done():
        raise AgentExecutionFailed(
            f"{actor.name} has no request to hand over: nobody waits for an answer; tell {_name(to)} instead"
        )
    found = actor._find(to, message)  # noqa: SLF001 - as its own ask does it
    if not isinstance(found, Cell):
        raise AgentExecutionFailed(
            f"a request has one answer, and {_name(to)} is a pool whose members would all give one: ask it"
        )
    charge(messages=1)
    _move(here.reply_to, found, Envelope(message, here.reply_to, actor.name, here.scope, 0.0, found))
    here.reply_to, here.handed = None, True


def _move(reply_to: Any, target: Cell, envelope: Envelope) -> None:
    """Post the envelope, and have whoever waits for its answer wait for the target. Raises what refuses it."""
    before = None
    if isinstance(reply_to, Future):
        # Before the search: of two threads that close a circle at the same time at least one sees it.
        before, reply_to._target = reply_to._target, target  # noqa: SLF001 - who is asked is not who was
    try:
        if isinstance(reply_to, Future) and (circle := _circle(target, reply_to)):
            raise AskCycle(f"these actors would wait for each other in a circle: {' -> '.join(circle)}")
        _post(target, envelope)
    except GramiError:
        if isinstance(reply_to, Future):
            reply_to._target = before  # noqa: SLF001
        raise


def _post(target: Cell, envelope: Envelope) -> None:
    """As an ask does it: where the policy is to wait for room, it waits in the mailbox."""
    if target.mailbox.overflow != "wait" or not target.full:
        target.post(envelope)
        return
    target.post_parked(envelope)
    assert envelope.scope is not None
    envelope.scope.on_cancel(lambda _: target.mailbox.withdraw(envelope))


def _circle(start: Any, answer: Future[Any]) -> list[str]:
    """The names along waiting handlers from ``start`` to one that waits for this answer; empty if there is no way."""
    trails: list[list[Any]] = [[start]]
    seen = {id(start)}
    while trails:
        trail = trails.pop()
        for future, envelope in tuple(trail[-1].waits.items()):
            if trail[-1].at_work is not envelope or future.done():
                continue
            if future is answer:
                return [party.name for party in (*trail, start)]
            party = future._target  # noqa: SLF001
            if party is not None and id(party) not in seen:
                seen.add(id(party))
                trails.append([*trail, party])
    return []


def _name(to: str | Ref[Any]) -> str:
    return to if isinstance(to, str) else to.name
