"""The transcript of a run answers who told whom what, and what caused it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grami_actors import Agent, Message, RestartPolicy, Swarm, handles
from grami_actors.history import Told
from grami_actors.scenario.play import Play
from grami_actors.scenario.stage import acted
from grami_actors.scenario.transcript import Pattern
from grami_actors.simulation.run import Runner, series
from grami_actors.simulation.schedule import Schedule
from grami_actors.simulation.world import Setup


class Begin(Message):
    number: int = 0


class Work(Message):
    number: int = 0


class Break(Message):
    pass


class Boss(Agent):
    @handles(Begin)
    async def begin(self, message: Begin) -> int:
        return sum(await asyncio.gather(*(self.ask(f"worker-{n}", Work(number=n)) for n in (1, 2))))


class First(Agent, name="worker-1", restart=RestartPolicy(3, 10.0)):
    @handles(Work)
    async def work(self, message: Work) -> int:
        return message.number

    @handles(Break)
    async def fail(self, message: Break) -> None:
        raise ValueError("on purpose")


class Second(First, name="worker-2"):
    pass


@pytest.fixture(autouse=True, scope="module")
def in_series() -> Iterator[None]:
    with series():
        yield


def played(script: Callable[[Play], Awaitable[None]], seed: int = 0) -> None:
    outcome = Runner(Setup(Swarm([Boss, First, Second])), acted(script)).run(Schedule(seed))  # type: ignore[arg-type]
    assert outcome.failure is None, outcome.failure


def told(sender: str, to: str, kind: str) -> Told:
    return Told(at=1.0, sent=1.0, taken=1.0, sender=sender, to=to, type=kind)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*", True), ("bob", True), ("ann", False), ("b*", True), ("bob: greet", True), ("bob: work", False),
        ("ann -> bob", True), ("ann->bob: greet", True), ("eve -> bob", False), ("a* -> *: g*", True),
        ("connection-1 -> bob", True), (" ann -> bob : greet ", True), ("*: greet", True),
    ],
)  # fmt: skip
def test_a_pattern_matches_sender_receiver_and_type(pattern: str, expected: bool) -> None:
    assert Pattern(pattern).matches(told("connection-1", "bob", "greet"), "ann") is expected


@pytest.mark.parametrize("text", ["", "a b", "a -> b -> c d", "->"])
def test_what_is_no_pattern_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="is no pattern of messages"):
        Pattern(text)


NAMES = st.from_regex(r"[a-z]+(:[a-z]+)?(-[0-9])?", fullmatch=True)


@given(NAMES, NAMES, st.from_regex(r"[a-z_]+", fullmatch=True))
def test_a_message_always_matches_the_pattern_that_is_written_of_it(sender: str, to: str, kind: str) -> None:
    assert Pattern(f"{sender} -> {to}: {kind}").matches(told(sender, to, kind), sender)
    assert not Pattern(f"{sender}x -> {to}: {kind}").matches(told(sender, to, kind), sender)


@pytest.mark.parametrize("seed", range(8))
def test_messages_are_told_in_the_order_in_which_they_were_taken_with_what_caused_them(seed: int) -> None:
    async def script(play: Play) -> None:
        assert await (await play.client("ann")).request("begin") == 3
        t = play.transcript
        (begin,) = t.told("ann -> boss: begin")
        works = t.told("boss -> worker-*: work")
        assert (t.count("worker-*"), len(works), t.count("worker-1: break")) == (2, 2, 0)
        assert t.told("*: work", lambda each: each.data["number"] == 2) == [
            each for each in works if each.to[-1] == "2"
        ]
        assert all(t.caused(begin, each) for each in works)
        assert not any(t.caused(each, begin) for each in works)
        assert not t.caused(works[0], works[1])
        assert [each.taken for each in t.told()] == sorted(each.taken for each in t.told())
        assert t.lost() == t.faults() == []

    played(script, seed)


def test_lives_tell_who_failed_and_was_restarted() -> None:
    async def script(play: Play) -> None:
        play.system.tell("worker-1", Break())
        await play.eventually(lambda: play.transcript.lives("restarted"), text="it is restarted")
        assert [each.actor for each in play.transcript.lives("failed")] == ["worker-1"]
        assert play.transcript.lives("failed", "worker-2") == []

    played(script)
