"""Conversations among agents: a group chat, and a debate before a judge. Floor 12.

The actor that calls holds the transcript; members say something when they are asked, and know of each other what they
are told with that. Each turn is emitted as a chunk to whoever streams the request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from grami_actors.actor import Actor
from grami_actors.coordination.asks import Outcome, failure
from grami_actors.coordination.flow import parallel
from grami_actors.errors import AgentExecutionFailed
from grami_actors.messages import Message


class Turn(msgspec.Struct, frozen=True):
    """What one member said, or that it said nothing.

    Attributes:
        speaker: its name.
        said: what it answered.
        error: the code of the error, where it gave no answer: ``"DEADLINE_EXCEEDED"`` for who was too slow.
    """

    speaker: str
    said: Any = None
    error: str = ""


Turns = tuple[Turn, ...]


class Speak(Message, tag="speak"):
    """A member is asked to say something.

    Attributes:
        topic: what the conversation is about.
        turns: what was said before.
    """

    topic: Any
    turns: Turns = ()


class NextSpeaker(Message, tag="next_speaker"):
    """Whoever leads a group chat is asked for the name of the next speaker; ``None`` ends it.

    Attributes:
        topic: what the conversation is about.
        members: their names.
        turns: what was said before.
    """

    topic: Any
    members: tuple[str, ...]
    turns: Turns = ()


class Judge(Message, tag="judge"):
    """The judge of a debate is asked for its decision.

    Attributes:
        question: what the debate is about.
        turns: what was said.
        last: whether a decision is due; if not, ``None`` has the debate go on.
    """

    question: Any
    turns: Turns
    last: bool


class Rules(msgspec.Struct, frozen=True):
    """How a group chat goes.

    Attributes:
        turns: how many there are at most, those in which nothing was said included.
        timeout: seconds for each turn, and for the choice of each speaker.
        silence: what follows when a member crashes, is slow or is not there: ``"skip"``: that is noted and the next one
            has its turn. ``"end"``: that was the last turn.
        ask: called as ``ask(speaker, turns)``, makes what a speaker is asked, and so decides who hears what; a
            :class:`Speak` with everything, if not given.

    Raises:
        ValueError: silence is something else.
    """

    turns: int = 10
    timeout: float | None = None
    silence: Literal["skip", "end"] = "skip"
    ask: Callable[[str, Turns], Any] | None = None

    def __post_init__(self) -> None:
        if self.silence not in {"skip", "end"}:
            raise ValueError(f"what follows a silence is skip or end, not {self.silence!r}")


async def group_chat(
    actor: Actor,
    members: Sequence[str],
    topic: Any,
    select: str | Callable[[Turns], str | None] | None = None,
    rules: Rules | None = None,
) -> Turns:
    """Have members talk, one at a time, until whoever chooses the speakers ends it or the turns are used up.

    ::

        turns = await group_chat(self, ["writer", "critic"], "a slogan for tea", rules=Rules(turns=6, timeout=10.0))
        last = turns[-1].said

    A member that crashes, is slow or is not there has had its turn, with an error in place of words; what it answers
    late is a dead letter and not part of the conversation.

    Args:
        actor: who leads the conversation.
        members: names.
        topic: what it is about.
        select: who speaks next: a function of the turns so far, which gives a name, or ``None`` to end; or the name of
            an agent that is asked the same with a :class:`NextSpeaker`; by turns, if not given.
        rules: how it goes.

    Returns:
        the turns.

    Raises:
        GramiError: the agent that chooses the speakers failed, or the speaker is no member.
        ValueError: there are no members.
        Exception: what a function of the caller raised.
    """
    if not members:
        raise ValueError("a conversation needs somebody who speaks")
    rules = rules or Rules()
    turns: Turns = ()
    while len(turns) < rules.turns:
        if isinstance(select, str):
            asked = NextSpeaker(topic, tuple(members), turns)
            speaker = _answer(
                await parallel(actor, {select: asked}, timeout=rules.timeout), "the choice of a speaker, "
            )
        else:
            speaker = members[len(turns) % len(members)] if select is None else select(turns)
        if speaker is None:
            break
        if speaker not in members:
            raise AgentExecutionFailed(f"{speaker!r} is to speak, and is none of the members: {', '.join(members)}")
        message = Speak(topic, turns) if rules.ask is None else rules.ask(speaker, turns)
        turns += _heard(actor, await parallel(actor, {speaker: message}, timeout=rules.timeout))
        if turns[-1].error and rules.silence == "end":
            break
    return turns


class Rounds(msgspec.Struct, frozen=True):
    """How a debate goes.

    Attributes:
        most: how many rounds there are at most.
        timeout: seconds for each turn, and for the judge.
        early: whether the judge is asked after every round, and may end the debate; else after the last one.

    Raises:
        ValueError: there is no round.
    """

    most: int = 3
    timeout: float | None = None
    early: bool = False

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ValueError(f"a debate has at least one round, not {self.most}")


class Verdict(msgspec.Struct, frozen=True):
    """How a debate ended.

    Attributes:
        decision: what the judge answered.
        rounds: how many there were.
        turns: what was said, round by round, in the order of the debaters.
    """

    decision: Any
    rounds: int
    turns: Turns

    @property
    def silent(self) -> tuple[str, ...]:
        """Who failed to speak at least once, in the order in which that happened first."""
        return tuple(dict.fromkeys(turn.speaker for turn in self.turns if turn.error))


async def debate(
    actor: Actor, debaters: Sequence[str], judge: str, question: Any, rounds: Rounds | None = None
) -> Verdict:
    """Have debaters argue in rounds, then have a judge decide.

    ::

        verdict = await debate(self, ["optimist", "pessimist"], "judge", "Will it rain?", Rounds(most=2, timeout=10.0))
        answer = verdict.decision

    In a round all are asked at once with a :class:`Speak` that tells what was said in the rounds before, as in Du et
    al., "Improving Factuality and Reasoning in Language Models through Multiagent Debate" (2023); a judge that may end
    it early is from Liang et al., "Encouraging Divergent Thinking in Large Language Models through Multi-Agent Debate"
    (2023).

    A debater that crashes, is slow or is not there has an error in place of words in that round, is asked again in the
    next one (it may have been restarted), and is named in the result; the judge decides about what was said. An answer
    that comes late is a dead letter and not part of the debate.

    Args:
        actor: who leads the debate.
        debaters: names.
        judge: a name; it is asked with a :class:`Judge`.
        question: what it is about.
        rounds: how many, and how.

    Raises:
        GramiError: nobody said anything in a round and nothing was said before, or the judge failed; it says who.
        ValueError: there is nobody to speak.
    """
    rounds = rounds or Rounds()
    if not debaters:
        raise ValueError("a debate needs somebody who speaks")
    turns: Turns = ()
    number, decision = 0, None
    while number < rounds.most and decision is None:
        number += 1
        outcomes = await parallel(actor, [(name, Speak(question, turns)) for name in debaters], timeout=rounds.timeout)
        turns += _heard(actor, outcomes)
        if all(turn.error for turn in turns):
            raise failure(outcomes, "nobody spoke in the debate: ")
        last = number == rounds.most
        if last or rounds.early:
            asked = {judge: Judge(question, turns, last)}
            decision = _answer(await parallel(actor, asked, timeout=rounds.timeout), "the judge, ")
    return Verdict(decision, number, turns)


def _heard(actor: Actor, outcomes: Sequence[Outcome]) -> Turns:
    turns = tuple(Turn(each.name, each.value, str(each.error.error_code) if each.error else "") for each in outcomes)
    for turn in turns:
        actor.emit(turn)
    return turns


def _answer(outcomes: Sequence[Outcome], where: str) -> Any:
    if not outcomes[0].ok:
        raise failure(outcomes, where)
    return outcomes[0].value
