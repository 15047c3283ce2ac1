"""Votes: how ballots are counted, and asking agents for them. Floor 12.

Counting is pure: :func:`count` knows no actors, and the same votes always give the same tally.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

import msgspec

from grami_actors.actor import Actor
from grami_actors.coordination.asks import Asks, Outcome
from grami_actors.errors import AgentUnavailable
from grami_actors.messages import Message

SPOILED = "spoiled"
"""Why a vote does not count that names no option, or one twice."""


class Rule(msgspec.Struct, frozen=True):
    """How votes become a decision.

    Attributes:
        method: ``"plurality"``: most votes win. ``"majority"``: more than half of the votes cast win, else nobody.
            ``"ranked"``: instant-runoff; a vote is the options in order of preference, and may leave some out. As long
            as nobody has more than half of the votes that still name anybody, those with the fewest are out, all of
            them if they are equal, and their votes go to the next in order.
        weights: what the vote of a voter counts; 1 for who is not named. Compared exactly, as they are written.
        casting: the voter whose choice among options that are equal decides; nobody, if empty.
        ties: what happens to those that are still equal: ``"tie"``: that is the result. ``"order"``: the first of them
            in the order of the options wins.

    Raises:
        ValueError: a weight is negative or no finite number, or there is no such method or way with ties.
    """

    method: Literal["plurality", "majority", "ranked"] = "plurality"
    weights: Mapping[str, float] = {}
    casting: str = ""
    ties: Literal["tie", "order"] = "tie"

    def __post_init__(self) -> None:
        if self.method not in {"plurality", "majority", "ranked"} or self.ties not in {"tie", "order"}:
            raise ValueError(
                f"the method is plurality, majority or ranked, and ties are tie or order, "
                f"not {self.method!r} and {self.ties!r}"
            )
        for voter, weight in self.weights.items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"the weight of {voter}'s vote is a number from 0 on, not {weight}")


class Tally(msgspec.Struct, frozen=True):
    """What a count came to.

    Attributes:
        winner: the option that won; ``None``: none did.
        tied: the options that are equal, in order, where that is the result.
        counts: the weight of the votes for each option; of the last round, where there are several.
    """

    winner: str | None
    tied: tuple[str, ...]
    counts: dict[str, float]


def count(options: Sequence[str], votes: Mapping[str, str | Sequence[str]], rule: Rule | None = None) -> Tally:
    """Count votes.

    Args:
        options: what could be voted for, each once.
        votes: by voter: an option; for ``"ranked"`` options in order of preference.
        rule: how they are counted; by plurality, if not given.

    Raises:
        ValueError: an option stands twice, or a vote is none.
    """
    rule = rule or Rule()
    if len(dict.fromkeys(options)) < len(options):
        raise ValueError(f"each option stands once, unlike in {list(options)}")
    for voter, choice in votes.items():
        if not _is_vote(choice, options, rule):
            raise ValueError(f"{voter} votes for {choice!r}, and the options are {list(options)}")
    rankings = {voter: (choice,) if isinstance(choice, str) else tuple(choice) for voter, choice in votes.items()}
    left = tuple(options)
    while True:
        sums = _sums(left, rankings, rule)
        cast, most = sum(sums.values()), max(sums.values(), default=Fraction(0))
        leaders = tuple(option for option in left if sums[option] == most)
        if rule.method != "ranked" or 2 * most > cast or len(leaders) == len(left):
            break
        least = min(sums.values())
        left = tuple(option for option in left if sums[option] > least)
    counts = {option: float(sums.get(option, 0)) for option in options}
    if not cast or (rule.method == "majority" and 2 * most <= cast):
        return Tally(None, (), counts)
    winner = _winner(leaders, rankings, rule)
    return Tally(winner, leaders if winner is None else (), counts)


def _is_vote(choice: Any, options: Sequence[str], rule: Rule) -> bool:
    if rule.method != "ranked":
        return isinstance(choice, str) and choice in options
    if not isinstance(choice, (list, tuple)) or not all(isinstance(each, str) for each in choice):
        return False
    return len(dict.fromkeys(choice)) == len(choice) and all(each in options for each in choice)


def _sums(left: Sequence[str], rankings: Mapping[str, Sequence[str]], rule: Rule) -> dict[str, Fraction]:
    """The weight of the votes for each option that is left, by the first of these on each."""
    sums = dict.fromkeys(left, Fraction(0))
    for voter, ranking in rankings.items():
        first = next((option for option in ranking if option in sums), None)
        if first is not None:
            sums[first] += Fraction(str(+rule.weights.get(voter, 1)))
    return sums


def _winner(leaders: Sequence[str], rankings: Mapping[str, Sequence[str]], rule: Rule) -> str | None:
    if len(leaders) == 1 or rule.ties == "order":
        otherwise: str | None = leaders[0]
    else:
        otherwise = None
    preferred = (option for option in rankings.get(rule.casting, ()) if option in leaders)
    return next(preferred, otherwise)


class Ballot(Message, tag="ballot"):
    """What voters are asked; a voter answers an option, or options in order if ``ranked``; ``None`` abstains.

    Attributes:
        question: what is decided.
        options: what can be voted for.
        ranked: whether the answer is a list, in order of preference.
    """

    question: str
    options: tuple[str, ...]
    ranked: bool = False


class Poll(msgspec.Struct, frozen=True):
    """What a vote came to.

    Attributes:
        tally: the count.
        votes: what counted, by voter, in the order of the voters.
        abstained: who did not vote, and why: the code of the error, ``"DEADLINE_EXCEEDED"`` for who was too slow;
            ``"spoiled"`` for a vote that was none; empty for who said so.
    """

    tally: Tally
    votes: dict[str, Any]
    abstained: dict[str, str]


async def vote(
    actor: Actor,
    voters: Sequence[str],
    ballot: Ballot,
    *,
    rule: Rule | None = None,
    quorum: int = 1,
    timeout: float | None = None,
) -> Poll:
    """Ask voters for their votes, all at once, and count them.

    ::

        poll = await vote(self, ["ann", "bob", "eve"], Ballot("Ship it?", ("yes", "no")),
                          rule=Rule("majority"), quorum=2, timeout=5.0)
        if poll.tally.winner == "yes": ...

    Who crashes, is not there, or does not answer within ``timeout`` has abstained, and the result says so; a vote that
    comes late is a dead letter and changes nothing. Without a ``timeout`` one who hangs uses up the request's deadline.

    Args:
        actor: who asks.
        voters: names, each once.
        ballot: what they are asked.
        rule: how votes are counted; ``ranked`` is to be the ballot's too.
        quorum: how many votes must count.
        timeout: seconds for each voter.

    Raises:
        AgentUnavailable: too many abstained; the message says who, and why. The rest is not waited for.
        ValueError: a voter or option stands twice, more votes are needed than there are voters, or the ballot is ranked
            and the rule is not.
    """
    rule = rule or Rule()
    if len(dict.fromkeys(voters)) < len(voters) or not 0 <= quorum <= len(voters):
        raise ValueError(f"voters are named once, and at least as many as the quorum of {quorum}: {list(voters)}")
    if ballot.ranked != (rule.method == "ranked"):
        raise ValueError("a ballot is ranked if the rule is, and only then")
    count(ballot.options, {}, rule)  # before anybody is asked
    votes: dict[str, Any] = {}
    abstained: dict[str, str] = {}
    with Asks(actor) as asks:
        for number, voter in enumerate(voters):
            asks.ask(number, voter, ballot, timeout)
        while len(votes) + len(abstained) < len(voters):
            _, outcome = await asks.next()
            if outcome.error is None and _is_vote(outcome.value, ballot.options, rule):
                votes[outcome.name] = outcome.value
                continue
            abstained[outcome.name] = _why(outcome)
            if len(voters) - len(abstained) < quorum:
                who = ", ".join(f"{voter} ({why or 'abstained'})" for voter, why in abstained.items())
                raise AgentUnavailable(f"of {len(voters)} votes {quorum} are needed, and these do not count: {who}")
    cast = {voter: votes[voter] for voter in voters if voter in votes}
    silent = {voter: abstained[voter] for voter in voters if voter in abstained}
    return Poll(count(ballot.options, cast, rule), cast, silent)


def _why(outcome: Outcome) -> str:
    if outcome.error is not None:
        return str(outcome.error.error_code)
    return "" if outcome.value is None else SPOILED
