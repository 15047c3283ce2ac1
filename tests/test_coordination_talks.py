"""Conversations among agents: group chats and debates."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grami_actors import Actor, AgentExecutionFailed, Cancelled, DeadlineExceeded, GramiError
from grami_actors.coordination import Judge, NextSpeaker, Rounds, Rules, Speak, Turn, debate, group_chat
from grami_actors.future import Stream
from grami_actors.telemetry import DeadLetter
from tests.conftest import turns_until
from tests.members import FAILURES, playing

SOON = 0.02


async def heard(actor: Actor, message: Any) -> str:
    """What a member says that counts what it was told before."""
    return f"{actor.name} after {len(message.turns)}"


def turn(speaker: str, after: int) -> Turn:
    return Turn(speaker, f"{speaker} after {after}")


# --- group chat ---


async def test_members_speak_in_turn_and_hear_all_that_was_said() -> None:
    async with playing(ann=heard, bob=heard) as cast:
        turns = await cast.play(lambda actor: group_chat(actor, ["ann", "bob"], "tea", rules=Rules(turns=3)))
        assert turns == (turn("ann", 0), turn("bob", 1), turn("ann", 2))
        assert cast.heard[2] == ("ann", Speak("tea", turns[:2]))


async def test_a_function_chooses_who_speaks_and_ends_the_conversation() -> None:
    def select(turns: tuple[Turn, ...]) -> str | None:
        return "bob" if len(turns) < 2 else None

    async with playing(ann=heard, bob=heard) as cast:
        turns = await cast.play(lambda actor: group_chat(actor, ["ann", "bob"], "tea", select))
        assert turns == (turn("bob", 0), turn("bob", 1))


async def test_an_agent_chooses_who_speaks_and_ends_the_conversation() -> None:
    async with playing(lead=["bob", "ann", None], ann=heard, bob=heard) as cast:
        turns = await cast.play(lambda actor: group_chat(actor, ["ann", "bob"], "tea", "lead"))
        assert turns == (turn("bob", 0), turn("ann", 1))
        assert cast.heard[-1] == ("lead", NextSpeaker("tea", ("ann", "bob"), turns))


@pytest.mark.parametrize(("way", "code"), FAILURES.items())
async def test_an_agent_that_fails_to_choose_ends_the_conversation_with_an_error(way: str, code: str) -> None:
    async with playing(lead=way, ann=heard) as cast:
        with pytest.raises(GramiError, match="choice of a speaker, lead: ") as caught:
            await cast.play(lambda actor: group_chat(actor, ["ann"], "tea", "lead", Rules(timeout=SOON)))
        assert caught.value.error_code == code


@pytest.mark.parametrize("choice", ["eve", 1, ["ann"]])
async def test_who_is_no_member_does_not_speak(choice: Any) -> None:
    async with playing(lead=lambda *_: answer(choice), ann=heard, eve=heard) as cast:
        with pytest.raises(AgentExecutionFailed, match="none of the members: ann"):
            await cast.play(lambda actor: group_chat(actor, ["ann"], "tea", "lead"))
        assert [name for name, _ in cast.heard] == ["lead"]


async def answer(value: Any) -> Any:
    return value


@pytest.mark.parametrize(("way", "code"), FAILURES.items())
async def test_a_turn_without_words_is_noted_and_skipped_or_ends_the_conversation(way: str, code: str) -> None:
    async with playing(ann=heard, bob=way) as cast:
        members = ["ann", "bob"]
        rules = Rules(turns=3, timeout=SOON)
        turns = await cast.play(lambda actor: group_chat(actor, members, "tea", rules=rules))
        assert turns == (turn("ann", 0), Turn("bob", error=code), turn("ann", 2))
        rules = Rules(turns=3, timeout=SOON, silence="end")
        assert await cast.play(lambda actor: group_chat(actor, members, "tea", rules=rules)) == turns[:2]


async def test_what_is_said_late_is_no_part_of_the_conversation() -> None:
    async with playing(ann="late", bob=heard) as cast:
        rules = Rules(turns=2, timeout=SOON)
        turns = await cast.play(lambda actor: group_chat(actor, ["ann", "bob"], "tea", rules=rules))
        cast.gate.opened.set()
        assert (await cast.letters.first(DeadLetter)).reason == "late_reply"
        assert turns == (Turn("ann", error="DEADLINE_EXCEEDED"), turn("bob", 1))


async def test_the_caller_decides_who_hears_what() -> None:
    def ask(speaker: str, turns: tuple[Turn, ...]) -> Any:
        return Speak("secret" if speaker == "ann" else "tea", turns[-1:])

    async with playing(ann=heard, bob=heard) as cast:
        await cast.play(lambda actor: group_chat(actor, ["ann", "bob"], "tea", rules=Rules(turns=3, ask=ask)))
        assert [(message.topic, len(message.turns)) for _, message in cast.heard] == [
            ("secret", 0),
            ("tea", 1),
            ("secret", 1),
        ]


async def test_each_turn_is_a_chunk_for_whoever_streams_the_request() -> None:
    async with playing(ann=heard, bob="reject", judge="none") as cast:
        for work, expected in (
            (lambda actor: group_chat(actor, ["ann", "bob"], "tea", rules=Rules(turns=2)), 2),
            (lambda actor: debate(actor, ["ann", "bob"], "judge", "tea", Rounds(most=2)), 4),
        ):
            stream: Stream[Any] = Stream()
            cast.system.table.cells["caller"].ask(work, future=stream)
            chunks = [chunk async for chunk in stream]
            assert len(chunks) == expected
            assert tuple(chunks) == getattr(stream.value(), "turns", stream.value())


async def test_a_talk_ends_with_its_request() -> None:
    async with playing(ann="hang", bob=heard, judge="none") as cast:
        for work in (
            lambda actor: group_chat(actor, ["ann", "bob"], "tea"),
            lambda actor: group_chat(actor, ["bob"], "tea", "ann"),
            lambda actor: debate(actor, ["ann", "bob"], "judge", "tea"),
            lambda actor: debate(actor, ["bob"], "ann", "tea", Rounds(most=1)),
        ):
            cast.cancelled.clear()
            with pytest.raises(DeadlineExceeded):
                await cast.play(work, timeout=SOON)
            assert cast.cancelled == ["ann"]
            cast.heard.clear()
            future = cast.system.table.cells["caller"].ask(work)
            await turns_until(lambda: "ann" in dict(cast.heard))
            future.cancel()
            await turns_until(cast.quiet)
            with pytest.raises(Cancelled):
                await future
            assert cast.cancelled == ["ann", "ann"]


async def test_a_talk_of_nobody_is_refused() -> None:
    async with playing() as cast:
        with pytest.raises(ValueError, match="somebody"):
            await cast.play(lambda actor: group_chat(actor, [], "tea"))
        with pytest.raises(ValueError, match="somebody"):
            await cast.play(lambda actor: debate(actor, [], "judge", "tea"))
        with pytest.raises(ValueError, match="at least one round"):
            Rounds(most=0)
        with pytest.raises(ValueError, match="skip or end"):
            Rules(silence="stop")  # type: ignore[arg-type]


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.sampled_from(["answer", "raise", "crash", "reject", "absent"]), min_size=1, max_size=4),
    st.integers(0, 8),
    st.sampled_from(["skip", "end"]),
)
def test_there_are_never_more_turns_than_the_bound_and_exactly_one_ask_for_each(
    ways: list[str], bound: int, silence: Any
) -> None:
    members = {f"m{number}": way for number, way in enumerate(ways)}

    async def scenario() -> None:
        async with playing(**members) as cast:
            rules = Rules(turns=bound, silence=silence)
            turns = await cast.play(lambda actor: group_chat(actor, list(members), "tea", rules=rules))
            silent = [number for number, each in enumerate(turns) if each.error]
            assert len(turns) == bound or (silence == "end" and silent == [len(turns) - 1])
            speakers = [list(members)[number % len(members)] for number in range(len(turns))]
            assert [each.speaker for each in turns] == speakers
            assert [name for name, _ in cast.heard] == [name for name in speakers if members[name] != "absent"]

    asyncio.run(scenario())


# --- debate ---


async def test_debaters_hear_the_rounds_before_and_the_judge_hears_all() -> None:
    async with playing(ann=heard, bob=heard, judge="ann is right") as cast:
        verdict = await cast.play(lambda actor: debate(actor, ["ann", "bob"], "judge", "tea", Rounds(most=2)))
        assert verdict.turns == (turn("ann", 0), turn("bob", 0), turn("ann", 2), turn("bob", 2))
        assert (verdict.decision, verdict.rounds, verdict.silent) == ("ann is right", 2, ())
        judged = [message for name, message in cast.heard if name == "judge"]
        assert judged == [Judge("tea", verdict.turns, last=True)]


async def test_a_judge_may_end_the_debate_early() -> None:
    async with playing(ann=heard, bob=heard, judge=[None, "bob"]) as cast:
        rounds = Rounds(most=5, early=True)
        verdict = await cast.play(lambda actor: debate(actor, ["ann", "bob"], "judge", "tea", rounds))
        assert (verdict.decision, verdict.rounds, len(verdict.turns)) == ("bob", 2, 4)


async def test_a_judge_that_never_decides_has_not_decided() -> None:
    async with playing(ann=heard, judge=None) as cast:
        verdict = await cast.play(lambda actor: debate(actor, ["ann"], "judge", "tea", Rounds(most=2, early=True)))
        assert (verdict.decision, verdict.rounds) == (None, 2)
        assert [message.last for name, message in cast.heard if name == "judge"] == [False, True]


@pytest.mark.parametrize(("way", "code"), FAILURES.items())
async def test_a_debater_that_does_not_speak_is_named_and_the_judge_decides_about_the_rest(way: str, code: str) -> None:
    async with playing(ann=heard, bob=[way, heard] if way != "absent" else way, judge="ann") as cast:
        rounds = Rounds(most=2, timeout=SOON)
        verdict = await cast.play(lambda actor: debate(actor, ["ann", "bob"], "judge", "tea", rounds))
        assert verdict.silent == ("bob",)
        assert verdict.turns[:2] == (turn("ann", 0), Turn("bob", error=code))
        assert verdict.turns[3].error == ("" if way != "absent" else code)
        assert verdict.decision == "ann"


async def test_a_debate_in_which_nobody_speaks_is_an_error_that_names_each() -> None:
    async with playing(ann="crash", bob="reject", judge="ann") as cast:
        with pytest.raises(AgentExecutionFailed, match=r"nobody spoke.* ann: .*bob: not now"):
            await cast.play(lambda actor: debate(actor, ["ann", "bob"], "judge", "tea"))
        assert "judge" not in dict(cast.heard)


@pytest.mark.parametrize(("way", "code"), FAILURES.items())
async def test_a_judge_that_fails_ends_the_debate_with_an_error_that_names_it(way: str, code: str) -> None:
    async with playing(ann=heard, judge=way) as cast:
        with pytest.raises(GramiError, match="the judge, judge: ") as caught:
            await cast.play(lambda actor: debate(actor, ["ann"], "judge", "tea", Rounds(most=1, timeout=SOON)))
        assert caught.value.error_code == code
