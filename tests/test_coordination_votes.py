"""Votes: counting them by stated rules, and asking agents for them."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grami_actors import AgentUnavailable, Cancelled, DeadlineExceeded
from grami_actors.coordination import Ballot, Rule, Tally, count, vote
from grami_actors.telemetry import DeadLetter
from tests.conftest import turns_until
from tests.members import FAILURES, playing

SOON = 0.02
OPTIONS = ("a", "b", "c", "d")
VOTERS = ("ann", "bob", "cid", "dan", "eve")

singles = st.dictionaries(st.sampled_from(VOTERS), st.sampled_from(OPTIONS))
rankings = st.dictionaries(st.sampled_from(VOTERS), st.lists(st.sampled_from(OPTIONS), unique=True))
weights = st.dictionaries(st.sampled_from(VOTERS), st.sampled_from([0, 0.1, 0.2, 0.3, 1, 2.5, 7]))
rules = st.builds(
    Rule, st.just("plurality"), weights, st.sampled_from(["", *VOTERS]), st.sampled_from(["tie", "order"])
)


def weighed(votes: dict[str, str], rule: Rule) -> Counter[str]:
    sums: Counter[str] = Counter()
    for voter, choice in votes.items():
        sums[choice] += Fraction(str(rule.weights.get(voter, 1)))
    return sums


# --- counting ---


def test_most_votes_win() -> None:
    tally = count(OPTIONS, {"ann": "b", "bob": "b", "cid": "c"})
    assert tally == Tally("b", (), {"a": 0.0, "b": 2.0, "c": 1.0, "d": 0.0})


def test_options_that_are_equal_are_a_tie_or_decided_as_the_rule_says() -> None:
    votes = {"ann": "c", "bob": "b", "cid": "d", "dan": "c", "eve": "b"}
    assert count(OPTIONS, votes) == Tally(None, ("b", "c"), {"a": 0.0, "b": 2.0, "c": 2.0, "d": 1.0})
    assert count(OPTIONS, votes, Rule(ties="order")).winner == "b"
    assert count(OPTIONS, votes, Rule(casting="dan")).winner == "c"
    assert count(OPTIONS, votes, Rule(casting="cid")).winner is None
    assert count(OPTIONS, votes, Rule(casting="cid", ties="order")).winner == "b"
    assert count(OPTIONS, votes, Rule(casting="nobody")).tied == ("b", "c")


def test_a_majority_is_more_than_half_of_what_was_cast() -> None:
    rule = Rule("majority", ties="order")
    assert count(OPTIONS, {"ann": "a", "bob": "a", "cid": "b"}, rule).winner == "a"
    assert count(OPTIONS, {"ann": "a", "bob": "a", "cid": "b", "dan": "c"}, rule) == Tally(
        None, (), {"a": 2.0, "b": 1.0, "c": 1.0, "d": 0.0}
    )


def test_weights_are_compared_as_they_are_written() -> None:
    rule = Rule(weights={"ann": 0.1, "bob": 0.2, "cid": 0.3})
    assert count(OPTIONS, {"ann": "a", "bob": "a", "cid": "b"}, rule).tied == ("a", "b")


def test_a_weight_of_true_counts_one() -> None:
    assert count(OPTIONS, {"ann": "a"}, Rule(weights={"ann": True})).counts["a"] == 1.0


@pytest.mark.parametrize("mistyped", [{"method": "approval"}, {"method": "Ranked"}, {"ties": "random"}])
def test_a_rule_that_does_not_exist_is_refused_and_not_taken_for_another(mistyped: Any) -> None:
    with pytest.raises(ValueError, match="plurality, majority or ranked, and ties are tie or order"):
        Rule(**mistyped)


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="the weight of ann's vote"):
        Rule(weights={"ann": weight})


def test_votes_of_those_who_are_out_go_to_the_next_in_order() -> None:
    votes = {"ann": ["a", "b"], "bob": ["a"], "cid": ["b", "c"], "dan": ["b"], "eve": ["c", "b"]}
    tally = count(OPTIONS, votes, Rule("ranked"))
    assert tally == Tally("b", (), {"a": 2.0, "b": 3.0, "c": 0.0, "d": 0.0})


def test_votes_that_name_nobody_who_is_left_count_no_more() -> None:
    votes = {"ann": ["a"], "bob": ["a"], "cid": ["b"], "dan": ["b"], "eve": ["c"]}
    assert count(OPTIONS, votes, Rule("ranked")).tied == ("a", "b")
    assert count(OPTIONS, {**votes, "fay": []}, Rule("ranked", casting="cid")).winner == "b"


@pytest.mark.parametrize("method", ["plurality", "majority", "ranked"])
def test_without_any_votes_nobody_wins_whatever_the_rule_for_ties(method: Any) -> None:
    assert count(OPTIONS, {}, Rule(method, ties="order")) == Tally(None, (), dict.fromkeys(OPTIONS, 0.0))
    assert count((), {}, Rule(method, ties="order")) == Tally(None, (), {})
    nothing: Any = {"ann": ["a"] if method == "ranked" else "a"}
    assert count(OPTIONS, nothing, Rule(method, {"ann": 0}, ties="order")).winner is None


@pytest.mark.parametrize("choice", ["x", ["a"], None, 1])
def test_a_vote_that_names_no_option_is_refused(choice: Any) -> None:
    with pytest.raises(ValueError, match="ann votes for"):
        count(OPTIONS, {"ann": choice})


@pytest.mark.parametrize("choice", ["a", ["a", "a"], ["a", "x"], [["a"]], [None], None])
def test_a_ranking_that_is_none_is_refused(choice: Any) -> None:
    with pytest.raises(ValueError, match="ann votes for"):
        count(OPTIONS, {"ann": choice}, Rule("ranked"))


def test_an_option_that_stands_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="stands once"):
        count(("a", "a"), {})


@pytest.mark.slow
@given(singles, rules)
def test_the_winner_of_a_plurality_always_has_most_and_a_tie_is_exactly_those_that_have_most(
    votes: dict[str, str], rule: Rule
) -> None:
    tally, sums = count(OPTIONS, votes, rule), weighed(votes, rule)
    most = max(sums.values(), default=0)
    leaders = tuple(option for option in OPTIONS if most and sums[option] == most)
    assert tally.counts == {option: float(sums[option]) for option in OPTIONS}
    assert tally.tied == (() if tally.winner else leaders)
    assert (tally.winner is None) == (not leaders or (len(leaders) > 1 and tally.tied == leaders))
    assert tally.winner is None or tally.winner in leaders
    if len(leaders) > 1:
        casting = votes.get(rule.casting)
        expected = casting if casting in leaders else leaders[0] if rule.ties == "order" else None
        assert tally.winner == expected


@pytest.mark.slow
@given(singles, rules)
def test_who_has_a_majority_also_has_a_plurality_and_wins_a_ranked_vote(votes: dict[str, str], rule: Rule) -> None:
    majority = count(OPTIONS, votes, Rule("majority", rule.weights))
    sums = weighed(votes, rule)
    assert majority.winner == next((each for each in OPTIONS if 2 * sums[each] > sum(sums.values())), None)
    assert majority.tied == ()
    if majority.winner is not None:
        assert count(OPTIONS, votes, rule).winner == majority.winner
        ranked = {voter: [choice] for voter, choice in votes.items()}
        assert count(OPTIONS, ranked, Rule("ranked", rule.weights)).winner == majority.winner


@pytest.mark.slow
@given(rankings, weights, st.randoms(use_true_random=False))
def test_a_ranked_vote_never_depends_on_the_order_of_voters_or_options(
    votes: dict[str, list[str]], weights: dict[str, float], chance: random.Random
) -> None:
    rule = Rule("ranked", weights)
    tally = count(OPTIONS, votes, rule)
    voters, options = list(votes), list(OPTIONS)
    chance.shuffle(voters)
    chance.shuffle(options)
    other = count(options, {voter: votes[voter] for voter in voters}, rule)
    assert (other.winner, sorted(other.tied), other.counts) == (tally.winner, sorted(tally.tied), tally.counts)


@pytest.mark.slow
@given(rankings)
def test_a_ranked_vote_has_a_winner_or_a_tie_exactly_if_anything_was_cast(votes: dict[str, list[str]]) -> None:
    tally = count(OPTIONS, votes, Rule("ranked"))
    decided = (tally.winner is not None) + (len(tally.tied) > 1)
    assert decided == any(votes.values())
    assert count(OPTIONS, votes, Rule("ranked", ties="order")).winner == (tally.winner or (tally.tied or (None,))[0])


@pytest.mark.slow
@given(rankings, st.sampled_from(VOTERS))
def test_the_casting_voter_decides_ties_and_nothing_else(votes: dict[str, list[str]], casting: str) -> None:
    tally = count(OPTIONS, votes, Rule("ranked"))
    preferred = next((each for each in votes.get(casting, ()) if each in tally.tied), None)
    assert count(OPTIONS, votes, Rule("ranked", casting=casting)).winner == (tally.winner or preferred)


# --- asking ---


async def test_voters_are_asked_and_the_result_says_who_voted_and_who_abstained_and_why() -> None:
    members = {"ann": hesitating, "bob": "no", "cid": "yes", "dan": None, "eve": "maybe"}
    async with playing(**members, **{way: way for way in FAILURES}) as cast:
        ballot = Ballot("Ship it?", ("yes", "no"))
        poll = await cast.play(lambda actor: vote(actor, list(cast.ways), ballot, timeout=SOON))
        assert poll.tally == Tally("yes", (), {"yes": 2.0, "no": 1.0})
        assert list(poll.votes.items()) == [("ann", "yes"), ("bob", "no"), ("cid", "yes")]
        assert list(poll.abstained.items()) == [("dan", ""), ("eve", "spoiled"), *FAILURES.items()]
        assert cast.heard[0] == ("ann", ballot)
        assert cast.cancelled == ["hang"]


async def hesitating(*_: Any) -> str:
    for _ in range(20):
        await asyncio.sleep(0)
    return "yes"


async def test_a_ranked_ballot_is_answered_with_options_in_order() -> None:
    async with playing(
        ann=lambda *_: ranking("a", "b"), bob=lambda *_: ranking("b"), cid=lambda *_: ranking("a")
    ) as cast:
        ballot = Ballot("Which?", ("a", "b"), ranked=True)
        poll = await cast.play(lambda actor: vote(actor, list(cast.ways), ballot, rule=Rule("ranked")))
        assert poll.tally.winner == "a"
        assert poll.votes["ann"] == ["a", "b"]


async def ranking(*options: str) -> list[str]:
    return list(options)


async def test_a_quorum_that_cannot_be_reached_any_more_is_an_error_and_the_rest_is_not_waited_for() -> None:
    async with playing(ann="reject", bob="hang", cid=None, dan="yes") as cast:
        with pytest.raises(AgentUnavailable, match=r"of 4 votes 3 are needed.*ann \(RATE_LIMITED\), cid \(abstained\)"):
            await cast.play(lambda actor: vote(actor, list(cast.ways), Ballot("?", ("yes",)), quorum=3))
        assert cast.cancelled == ["bob"]


async def test_a_vote_that_comes_late_is_a_dead_letter_and_changes_nothing() -> None:
    async with playing(ann="late", bob="yes") as cast:
        poll = await cast.play(lambda actor: vote(actor, ["ann", "bob"], Ballot("?", ("yes",)), timeout=SOON))
        assert poll.abstained == {"ann": "DEADLINE_EXCEEDED"}
        cast.gate.opened.set()
        assert (await cast.letters.first(DeadLetter)).reason == "late_reply"
        assert poll.votes == {"bob": "yes"}


async def test_nobody_is_asked_what_cannot_be_counted() -> None:
    async with playing(ann="yes") as cast:
        ballot = Ballot("?", ("yes", "no"))
        for voters, options in (
            (["ann", "ann"], {"ballot": ballot}),
            (["ann"], {"ballot": ballot, "quorum": 2}),
            (["ann"], {"ballot": ballot, "rule": Rule("ranked")}),
            (["ann"], {"ballot": Ballot("?", ("yes",), ranked=True)}),
            (["ann"], {"ballot": Ballot("?", ("yes", "yes"))}),
        ):
            with pytest.raises(ValueError, match=r"voters|ranked|once"):
                await cast.play(lambda actor, voters=voters, options=options: vote(actor, voters, **options))
        assert cast.heard == []


async def test_a_vote_ends_with_its_request() -> None:
    async with playing(ann="hang", bob="yes") as cast:
        ballot = Ballot("?", ("yes",))
        with pytest.raises(DeadlineExceeded):
            await cast.play(lambda actor: vote(actor, ["ann", "bob"], ballot), timeout=SOON)
        future = cast.system.table.cells["caller"].ask(lambda actor: vote(actor, ["ann"], ballot))
        await turns_until(lambda: len(cast.heard) == 3)
        future.cancel()
        await turns_until(cast.quiet)
        with pytest.raises(Cancelled):
            await future
        assert cast.cancelled == ["ann", "ann"]


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", None, "spoiled", *FAILURES]), min_size=1, max_size=6), st.data())
def test_every_voter_has_exactly_voted_or_abstained_or_too_few_have(ways: list[Any], data: st.DataObject) -> None:
    members = {f"v{number}": way for number, way in enumerate(ways)}
    quorum = data.draw(st.integers(0, len(ways)))
    votes = {name: way for name, way in members.items() if way in {"a", "b"}}

    async def scenario() -> None:
        async with playing(**members) as cast:
            ballot = Ballot("?", ("a", "b"))
            try:
                poll = await cast.play(lambda actor: vote(actor, list(members), ballot, quorum=quorum, timeout=SOON))
            except AgentUnavailable:
                assert len(votes) < quorum
            else:
                assert len(votes) >= quorum
                assert poll.votes == votes
                assert poll.tally == count(("a", "b"), votes)
                assert list(poll.abstained) == [name for name in members if name not in votes]

    asyncio.run(scenario())
