"""A debate that ends in a vote: two sides argue in rounds, and a jury votes after each until it is of one mind.

Play it:      grami run scenarios/debate.py
Simulate it:  grami run scenarios/debate.py --simulate
Break it:     grami run scenarios/debate.py whatever_happens --simulate --faults crash
Ask it:       grami serve scenarios/debate.py, then grami send motion text="Close the old town to cars?" --stream

The rules of the vote: most votes win. If yes and no are equal, the foreman of the jury decides; if the foreman has not
voted either, things stay as they are: no. Two votes must count, or there is no decision.

Who debates knows which points to make; the swarm's language model puts them into words. What a juror thinks depends on
the points, so that it is the same with any model.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec

from grami_actors import Agent, GramiError, Message, Prompt, ScriptedModel, Swarm, handles, model_from_environment
from grami_actors.coordination import Ballot, Judge, Poll, Rounds, Rule, Speak, Turn, count, debate, vote
from grami_actors.scenario import Play, PlayClient, scenario

PATIENCE = 300.0
"""Seconds a client of the scenarios waits: a small model may share a busy machine."""

MOTION = "Close the old town to cars?"

POINTS = {"planner": ("air", "safety", "squares"), "trader": ("trade", "access", "costs")}
"""What each side has to say, round by round. The planner is for the motion, the trader against it."""

SIDES = {point: side for name, side in (("planner", "yes"), ("trader", "no")) for point in POINTS[name]}

FOREMAN = "juror-1"

CARES = {
    "juror-1": {"squares": 3, "trade": 1, "access": 1},
    "juror-2": {"air": 2, "costs": 1},
    "juror-3": {"safety": 2, "trade": 1},
    "juror-4": {"air": 1, "access": 2},
}
"""How much a point counts with a juror."""

RULE = Rule(casting=FOREMAN, ties="order")
OPTIONS = ("no", "yes")
"""In this order, since the first of two that are equal wins when nobody decides between them."""


class Motion(Message, tag="motion"):
    """A client wants a decision."""

    text: str


class Point(msgspec.Struct, frozen=True):
    """What a side says in a round: the point it makes, and the words for it."""

    point: str
    words: str


class Weigh(Ballot, tag="weigh"):
    """The ballot of a juror, with what was heard so far."""

    points: tuple[str, ...] = ()


class Decision(msgspec.Struct, frozen=True):
    """What the client gets.

    Attributes:
        outcome: ``yes`` or ``no``.
        rounds: how many it took.
        votes: by juror.
        abstained: the jurors whose votes do not count, and why.
        silent: who did not speak in some round.
        points: what the jury heard, in order.
    """

    outcome: str
    rounds: int
    votes: dict[str, str]
    abstained: dict[str, str]
    silent: tuple[str, ...]
    points: tuple[str, ...]


def points_of(turns: tuple[Turn, ...]) -> tuple[str, ...]:
    """The points that were made."""
    return tuple(turn.said.point for turn in turns if not turn.error)


# --- agents --------------------------------------------------------------------------------------------------


class Chair(Agent, concurrency=8):
    """Leads the debate: three rounds at most, and the jury is asked after each."""

    @handles(Motion)
    async def lead(self, motion: Motion) -> Decision:
        verdict = await debate(
            self, list(POINTS), "jury", motion.text, Rounds(most=3, timeout=PATIENCE / 10, early=True)
        )
        poll: Poll = verdict.decision
        points = points_of(verdict.turns)
        return Decision(str(poll.tally.winner), verdict.rounds, poll.votes, poll.abstained, verdict.silent, points)


class Debater(Agent):
    """Makes the next of its points. It has said as many as the rounds before this one, heard or not."""

    @handles(Speak)
    async def speak(self, speak: Speak) -> Point:
        point = POINTS[self.name][sum(turn.speaker == self.name for turn in speak.turns)]
        words = await self.generate(Prompt(text=f"{speak.topic} {SIDES[point]}, for {point}:", max_tokens=32))
        return Point(point, words.strip())


class Planner(Debater):
    """Is for it."""


class Trader(Debater):
    """Is against it."""


class Juror(Agent, instances=len(CARES)):
    """Weighs what it heard, and abstains if neither side has more."""

    @handles(Weigh)
    def decide(self, ballot: Weigh) -> str | None:
        cares = CARES[self.name]
        weight = {side: sum(cares.get(p, 0) for p in ballot.points if SIDES[p] == side) for side in OPTIONS}
        return None if weight["yes"] == weight["no"] else max(OPTIONS, key=weight.__getitem__)


class Jury(Agent, concurrency=8):
    """The judge of the debate: has its jurors vote, and is content when all think the same."""

    @handles(Judge)
    async def judge(self, judge: Judge) -> Poll | None:
        ballot = Weigh(judge.question, OPTIONS, points=points_of(judge.turns))
        if not judge.last:
            poll = await vote(self, list(CARES), ballot, rule=RULE, quorum=0, timeout=PATIENCE / 30)
            return poll if max(poll.tally.counts.values()) == len(CARES) else None
        return await vote(self, list(CARES), ballot, rule=RULE, quorum=2, timeout=PATIENCE / 30)


SCRIPT = ScriptedModel(
    {
        "air:": " People here cough in summer. They would not, without engines.",
        "safety:": " Two children were hurt last year. Nobody is run over by a bicycle bell.",
        "squares:": " A square without cars has room for a market, and for the old men's chess.",
        "trade:": " Who carries a chair home needs a car at the door.",
        "access:": " My mother cannot walk from the ring road.",
        "costs:": " Somebody pays for the posts, and it will not be the tourists.",
    }
)

swarm = Swarm(agents=[Chair, Planner, Trader, Juror, Jury], model=partial(model_from_environment, scripted=SCRIPT))


# --- scenarios -----------------------------------------------------------------------------------------------


def check_decision(play: Play, decision: dict[str, Any]) -> None:
    """What is true of every decision, whoever was heard: it follows from the votes, and the votes from the points."""
    tally = count(OPTIONS, decision["votes"], RULE)
    play.check("the outcome is what the votes say", decision["outcome"] == tally.winner, str(decision))
    play.check("every juror has voted, or it says why not", {*decision["votes"], *decision["abstained"]} == {*CARES})
    missed = [name for name, points in POINTS.items() if not {*points[: decision["rounds"]]} <= {*decision["points"]}]
    play.check(
        "who was not heard is named, and nobody else", sorted(decision["silent"]) == sorted(missed), str(decision)
    )


async def ask(play: Play, client: PlayClient) -> dict[str, Any]:
    """Put the motion, and check what is always true."""
    decision: dict[str, Any] = await client.request(Motion(MOTION), timeout=PATIENCE)
    check_decision(play, decision)
    return decision


@scenario
async def both_sides_are_heard(play: Play) -> None:
    """Three rounds, then three jurors against one; the client reads every turn when it is taken."""
    decision, frames = await (await play.client("mayor")).write(Motion(MOTION), timeout=PATIENCE)
    check_decision(play, decision)
    play.check("it is a yes", decision["outcome"] == "yes", str(decision))
    play.check(
        "by three votes to one", sorted(decision["votes"].values()) == ["no", "yes", "yes", "yes"], str(decision)
    )
    turns = [frame.data for frame in frames if frame.type == "response.chunk" and "speaker" in frame.data]
    speakers = [turn["speaker"] for turn in turns]
    play.check("the mayor read all turns, round by round", speakers == [*POINTS] * 3, str(speakers))
    asked = play.transcript.told("chair -> *: speak")
    in_order = all(len(each.data["turns"]) == 2 * (number // 2) for number, each in enumerate(asked))
    play.check("who speaks knows what was said in the rounds before", in_order and len(asked) == 6)


@scenario
async def a_debater_dies(play: Play) -> None:
    """The planner dies over its second point: it is not heard, the jury is split, and the foreman decides."""
    play.faults.crash("planner", when="during", on_message=2, kind=Speak)
    decision = await ask(play, await play.client("mayor"))
    play.check("the planner was silent in one round, and back in the next", decision["silent"] == ["planner"])
    heard = [point for point in decision["points"] if point in POINTS["planner"]]
    play.check("its second point was not heard, its third was", heard == ["air", "squares"], str(heard))
    votes = decision["votes"]
    play.check("two votes are against two", sorted(votes.values()) == ["no", "no", "yes", "yes"], str(votes))
    play.check("the foreman decides", decision["outcome"] == votes[FOREMAN] == "yes", str(decision))


@scenario
async def a_tie_without_a_foreman(play: Play) -> None:
    """The foreman and another juror die over the last ballot, and two are left, who differ: things stay as they are."""
    play.faults.crash("planner", when="before", on_message=2, kind=Speak)
    for juror in (FOREMAN, "juror-3"):
        play.faults.crash(juror, on_message=3, kind=Weigh)
    decision = await ask(play, await play.client("mayor"))
    missing = decision["abstained"]
    play.check(
        "two votes do not count", missing == {FOREMAN: "AGENT_CRASHED", "juror-3": "AGENT_CRASHED"}, str(missing)
    )
    play.check("the others differ", decision["votes"] == {"juror-2": "yes", "juror-4": "no"}, str(decision))
    play.check("it is a no", decision["outcome"] == "no", str(decision))


@scenario
async def too_few_votes(play: Play) -> None:
    """Three of four jurors die over the last ballot: there is no decision, and the error says who is missing."""
    for juror in list(CARES)[1:]:
        play.faults.crash(juror, on_message=3, kind=Weigh)
    try:
        await ask(play, await play.client("mayor"))
    except GramiError as error:
        play.check("there is no decision", error.error_code == "AGENT_UNAVAILABLE", str(error))
        play.check("the error names who did not vote", "juror-2 (AGENT_CRASHED)" in str(error), str(error))
    else:
        play.check("there is no decision", condition=False)


@scenario
async def whatever_happens(play: Play) -> None:
    """Under any faults there is a decision that follows from the votes, or an error; without faults, a decision."""
    clients = [await play.client(name) for name in ("mayor", "deputy")]
    asked = [client.start(Motion(MOTION), timeout=PATIENCE) for client in clients]
    for client, pending in zip(clients, asked, strict=True):
        try:
            check_decision(play, await pending)
        except GramiError as error:
            play.check(f"{client.name} is refused for a fault, not without one", play.transcript.faults(), str(error))
    play.check("both know it in time", play.now() <= PATIENCE + 1.0, f"{play.now():.3g} s")
