"""Work that goes through several hands: one after another, all at once, or item by item. Floor 12.

All of it is asks of the handler that calls: they inherit its deadline, cancellation, trace and budget, and when it
ends, by whatever way, none of them is left at work. Each function says what it makes of a member that

* *crashes*: its ask is answered with AgentCrashed or AgentExecutionFailed;
* *is slow*: its ask ends with DeadlineExceeded at ``timeout`` (seconds for each ask), and what it does is cancelled;
* *answers late*: nobody waits any more, so the answer is a dead letter and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import msgspec

from grami_actors.actor import Actor
from grami_actors.coordination.asks import Asks, Outcome, failure
from grami_actors.errors import GramiError
from grami_actors.ref import Ref

Asked = Mapping[str, Any] | Iterable[tuple[str | Ref[Any], Any]]
"""Who is asked what: a mapping from name to message, or pairs, in which one may occur twice."""

Stage = str | Ref[Any] | tuple[str | Ref[Any], Callable[[Any], Any]]
"""Who does a step; with a function that makes its message from the answer before it, else it gets that answer."""


async def pipeline(actor: Actor, message: Any, *stages: Stage, timeout: float | None = None) -> Any:
    """Send a message through stages, each of which gets what the one before it answered.

    ::

        post = await pipeline(self, request, "researcher", ("writer", lambda facts: Draft(facts)), "editor")

    A stage that crashes, is slow or is not there ends the pipeline: no later stage is asked, and the error names it.

    Args:
        actor: who asks.
        message: for the first stage.
        stages: in order; without any, the message is the answer.
        timeout: seconds for each stage.

    Returns:
        what the last stage answered.

    Raises:
        GramiError: of a stage; with its code, and what it raised as the cause.
        Exception: what a function of a stage raised.
    """
    for number, stage in enumerate(stages, 1):
        to, make = stage if isinstance(stage, tuple) else (stage, None)
        [outcome] = await parallel(actor, [(to, message if make is None else make(message))], timeout=timeout)
        if not outcome.ok:
            raise failure([outcome], f"stage {number} of {len(stages)}, ")
        message = outcome.value
    return message


async def parallel(actor: Actor, asked: Asked, *, timeout: float | None = None) -> list[Outcome]:
    """Ask several at once, and wait for what becomes of each.

    ::

        outcomes = await parallel(self, {"weather": Where("Oslo"), "news": Where("Oslo")}, timeout=2.0)
        heard = [each.value for each in outcomes if each.ok]

    Who crashes or is slow has an outcome with an error; the others are not disturbed.

    Args:
        actor: who asks.
        asked: who is asked what.
        timeout: seconds for each ask.

    Returns:
        the outcomes, in the order of ``asked``.
    """
    members = _pairs(asked)
    found: dict[int, Outcome] = {}
    with Asks(actor) as asks:
        for number, (to, message) in enumerate(members):
            asks.ask(number, to, message, timeout)
        while len(found) < len(members):
            number, found[number] = await asks.next()
    return [found[number] for number in range(len(members))]


async def gather(
    actor: Actor, asked: Asked, *, want: Literal["all", "first"] | int = "all", timeout: float | None = None
) -> list[Outcome]:
    """Ask several at once, and take as many answers as are wanted.

    ::

        [fastest] = await gather(self, {"mirror-1": Fetch(url), "mirror-2": Fetch(url)}, want="first")
        agreed = await gather(self, {name: Write(row) for name in replicas}, want=2)  # a quorum

    Who crashes or is slow is not among them. As soon as there are as many as wanted, or there cannot be any more, the
    rest is cancelled; what they answer late is a dead letter.

    Args:
        actor: who asks.
        asked: who is asked what.
        want: ``"all"``, ``"first"``, or how many answers.
        timeout: seconds for each ask.

    Returns:
        the answers, in the order of ``asked``: all of them, one, or as many as wanted.

    Raises:
        GramiError: there cannot be as many; it names everybody who failed, and has their code if that is the same.
        ValueError: more are wanted than are asked, or none.
    """
    members = _pairs(asked)
    wanted = {"all": len(members), "first": 1}.get(want, 0) if isinstance(want, str) else want
    if want != "all" and not 1 <= wanted <= len(members):
        raise ValueError(f"of {len(members)} members {want} cannot be wanted: all, first, or a number of them")
    answers: dict[int, Outcome] = {}
    failed: list[Outcome] = []
    with Asks(actor) as asks:
        for number, (to, message) in enumerate(members):
            asks.ask(number, to, message, timeout)
        while len(answers) < wanted:
            number, outcome = await asks.next()
            if outcome.ok:
                answers[number] = outcome
                continue
            failed.append(outcome)
            if len(members) - len(failed) < wanted:
                raise failure(failed)
    return [answers[number] for number in sorted(answers)]


class Each(msgspec.Struct, frozen=True):
    """How :func:`map_reduce` treats each item.

    Attributes:
        width: how many items may be begun and not yet folded.
        timeout: seconds for each attempt.
        attempts: how often an item is tried when its error is ``retryable``, at once. An item whose outcome is unknown
            (AgentCrashed, DeadlineExceeded) may then be done twice.
        skip: called as ``skip(number, error)`` for an item that failed, counted from 0, which is then left out;
            without it the first that fails ends everything.

    Raises:
        ValueError: width or attempts is less than 1.
    """

    width: int = 8
    timeout: float | None = None
    attempts: int = 1
    skip: Callable[[int, GramiError], object] | None = None

    def __post_init__(self) -> None:
        if self.width < 1 or self.attempts < 1:
            raise ValueError(f"width and attempts are at least 1, not {self.width} and {self.attempts}")


async def map_reduce(
    actor: Actor,
    to: str | Ref[Any],
    items: Iterable[Any],
    fold: Callable[[Any, Any], Any],
    initial: Any,
    each: Each | None = None,
) -> Any:
    """Have each item worked on, a bounded number at a time, and fold the answers in the order of the items.

    ::

        words = await map_reduce(self, "counter", map(Count, pages), operator.add, 0, Each(width=4, attempts=3))

    The items are taken as there is room for them and the answers folded as they come, so there are never more than
    ``width`` of both, however many items there are. An item whose member crashes or is slow has failed: it is tried
    again, left out, or ends everything, as ``each`` says; what it answers late is a dead letter.

    Args:
        actor: who asks.
        to: who works on the items; usually the name of a pool.
        items: a message for each.
        fold: makes the next result of the one before and an answer.
        initial: the result of no items.
        each: how each item is treated.

    Returns:
        the result.

    Raises:
        GramiError: an item failed; the error names it, all others are cancelled.
        Exception: what ``items`` or ``fold`` raised.
    """
    with Asks(actor) as asks:
        return await _Reduction(asks, to, items, each or Each()).run(fold, initial)


class _Reduction:
    """The items of one map_reduce that are begun and not yet folded."""

    def __init__(self, asks: Asks, to: str | Ref[Any], items: Iterable[Any], each: Each) -> None:
        self._asks = asks
        self._to = to
        self._items = enumerate(items)
        self._each = each
        self._begun: dict[int, tuple[Any, int]] = {}  # by number: the message, and which attempt this is
        self._done: dict[int, Outcome] = {}

    def _begin(self) -> bool:
        """Take one item more; ``False`` if there is none."""
        for number, item in self._items:
            self._try(number, item, 1)
            return True
        return False

    def _try(self, number: int, item: Any, attempt: int) -> None:
        self._begun[number] = item, attempt
        self._asks.ask(number, self._to, item, self._each.timeout)

    async def run(self, fold: Callable[[Any, Any], Any], result: Any) -> Any:
        """The result of folding all."""
        following, more = 0, True
        while True:
            while more and len(self._begun) + len(self._done) < self._each.width:
                more = self._begin()
            if not self._begun:
                return result
            await self._settle()
            while (outcome := self._done.pop(following, None)) is not None:
                following += 1
                if outcome.ok:
                    result = fold(result, outcome.value)

    async def _settle(self) -> None:
        number, outcome = await self._asks.next()
        item, attempt = self._begun.pop(number)
        error = outcome.error
        if error is not None and error.retryable and attempt < self._each.attempts:
            self._try(number, item, attempt + 1)
            return
        if error is not None:
            if self._each.skip is None:
                raise failure([outcome], f"item {number}, ")
            self._each.skip(number, error)
        self._done[number] = outcome


def _pairs(asked: Asked) -> list[tuple[str | Ref[Any], Any]]:
    return list(asked.items()) if isinstance(asked, Mapping) else list(asked)
