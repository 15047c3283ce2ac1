"""The contract net: announce a task, take bids, award it to the best, and to the next if that one fails. Floor 12.

R. G. Smith, "The Contract Net Protocol", IEEE Transactions on Computers C-29 (12), 1980; FIPA SC00029H.

Rule 1: a bid that does not come in time is none. Who refuses, fails or says nothing is left out.
Rule 2: one bidder works on a task at a time, as far as can be known: the next is awarded it when the one before
        answered with an error, died, or did not answer in time.
Rule 3: so a task may be done twice when the outcome of an award is unknown: the winner died, or its answer was lost or
        late, after it had acted. All awards of one task carry the same ``contract``: a worker that writes it down with
        the effect (a unique column, the idempotency key of a service) sees that another was there before it.
Rule 4: when a contract is over, everybody that may have bid and did not do the task is told so, whatever happened but
        the death of the announcer's process.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from grami_actors.actor import Actor
from grami_actors.agent import Agent, handles
from grami_actors.coordination.asks import Outcome
from grami_actors.coordination.flow import parallel
from grami_actors.errors import AgentExecutionFailed, AgentUnavailable, GramiError
from grami_actors.future import Future
from grami_actors.messages import Message

REMEMBERED = 1_000
"""Contracts that a bidder knows it was awarded."""


class Announce(Message, tag="contract.announce"):
    """A task is to be had; asked of a bidder, which answers with its offer, or ``None``.

    Attributes:
        contract: names the contract; the same in every message of it.
        task: what is to be done.
    """

    contract: str
    task: Any


class Award(Message, tag="contract.award"):
    """The task is yours; asked of a bidder, which answers with the result.

    Attributes:
        contract: names the contract.
        task: what is to be done.
        attempt: 1 for the first award of this contract; more, and another may have done the task.
    """

    contract: str
    task: Any
    attempt: int = 1


class Refuse(Message, tag="contract.refuse"):
    """The contract is over, and its task was not done by you; told to a bidder. It may come without a bid."""

    contract: str


class Bid(msgspec.Struct, frozen=True):
    """What a bidder offered."""

    bidder: str
    offer: Any


class Bidder(Agent):
    """An agent that bids for tasks: override :meth:`bid` and :meth:`perform`, plain or async.

    An award that comes twice to one instance is performed once. Rules that let clients send ``contract.award`` let
    them have tasks performed that nobody announced.
    """

    _awarded: dict[str, Future[Any]] | None = None

    def bid(self, call: Announce) -> Any:
        """What this agent offers to do the task for; ``None`` if it does not want it. Nothing is to be begun yet."""
        raise NotImplementedError

    def perform(self, award: Award) -> Any:
        """Do the task and return the result. An error has the task awarded to the next."""
        raise NotImplementedError

    def refused(self, refuse: Refuse) -> Any:
        """Let go of what was set aside for a bid; there may be nothing."""

    @handles(Announce)
    async def _on_announce(self, call: Announce) -> Any:
        return await _finished(self.bid(call))

    @handles(Award)
    async def _on_award(self, award: Award) -> Any:
        name = f"{award.contract} {award.attempt}"
        if self._awarded is None:  # not in a constructor, which a subclass need not call
            self._awarded = {}
        if (before := self._awarded.get(name)) is not None:
            return await before
        if len(self._awarded) >= REMEMBERED:
            del self._awarded[next(iter(self._awarded))]
        result: Future[Any] = Future()
        self._awarded[name] = result
        try:
            result.set_result(await _finished(self.perform(award)))
        except BaseException as error:
            result.fail(error)
            raise
        return result.value()

    @handles(Refuse)
    async def _on_refuse(self, refuse: Refuse) -> Any:
        await _finished(self.refused(refuse))


def lowest(bids: Sequence[Bid]) -> Sequence[Bid]:
    """The bids that offer a number, the lowest first; of equals, the one named first. Others are left out."""
    return sorted((bid for bid in bids if _counts(bid.offer)), key=lambda bid: bid.offer)


def _counts(offer: Any) -> bool:
    return isinstance(offer, int) or (isinstance(offer, float) and math.isfinite(offer))


async def contract(
    by: Actor,
    task: Any,
    bidders: Sequence[str] | str,
    *,
    bid_within: float = 1.0,
    perform_within: float | None = None,
    choose: Callable[[Sequence[Bid]], Sequence[Bid]] = lowest,
) -> Any:
    """Have a task done by whoever bids best.

    ::

        await contract(self, Paint("red"), ["ann", "bob"], bid_within=0.5, perform_within=10.0)

    Args:
        by: the actor that announces it.
        task: what is to be done; for bidders on the process lane, plain data or a Struct.
        bidders: their names, or a topic that they subscribe to. A pool that is named bids as one.
        bid_within: seconds for the bids.
        perform_within: seconds for each that is awarded the task; without it, a winner that hangs has all the time
            that the request has.
        choose: who may be awarded the task, the best first: a function of the bids, which come in the order of
            ``bidders``. ``lambda bids: lowest(bids)[:2]`` allows two attempts.

    Returns:
        what the bidder that did it answered.

    Raises:
        AgentUnavailable: nobody bid, or ``choose`` left nobody; the message says what each of them answered.
        AgentExecutionFailed: everybody that was chosen failed; the message says how, the cause is the last.
        DeadlineExceeded, Cancelled, QuotaExceeded: the request ended, and with it whatever was under way.
    """
    names = _subscribers(by, bidders) if isinstance(bidders, str) else tuple(dict.fromkeys(bidders))
    number = by._cell.runtime.new_trace_id()
    may_have_bid = dict.fromkeys(names)
    try:
        call = Announce(number, task)
        outcomes = await parallel(by, [(name, call) for name in names], timeout=bid_within)
        for each in outcomes:
            if each.ok and each.value is None:
                del may_have_bid[each.name]
        bids = [Bid(each.name, each.value) for each in outcomes if each.ok and each.value is not None]
        chosen = [bid.bidder for bid in choose(bids)]
        if not chosen:
            said = "; ".join(f"{each.name}: {_answered(each)}" for each in outcomes)
            raise AgentUnavailable(f"nobody takes the task {type(task).__name__} ({said or 'nobody was asked'})")
        failures: dict[str, GramiError] = {}
        for attempt, name in enumerate(chosen, 1):
            try:
                result = await by.ask(name, Award(number, task, attempt), timeout=perform_within)
            except GramiError as error:
                failures[name] = error
            else:
                may_have_bid.pop(name, None)
                return result
        said = "; ".join(f"{name}: {_said(error)}" for name, error in failures.items())
        raise AgentExecutionFailed(f"the task {type(task).__name__} was not done ({said})") from failures[chosen[-1]]
    finally:
        for name in may_have_bid:
            with contextlib.suppress(GramiError):  # it is gone, and with it what it set aside
                by.tell(name, Refuse(number), detached=True)


def _answered(outcome: Outcome) -> str:
    if outcome.error is not None:
        return _said(outcome.error)
    return "does not bid" if outcome.value is None else f"bids {outcome.value!r:.100}"


def _subscribers(by: Actor, topic: str) -> tuple[str, ...]:
    return tuple(cell.name for cell in by._cell.runtime.subscribers(topic, by._cell))


def _said(error: GramiError) -> str:
    return f"{error.error_code}, {error.message}"


async def _finished(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result
