"""Clients that read slowly or not at all: what is bounded, what is dropped, and what is never lost."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed

from grami_actors import Agent, Message, Swarm, handles
from grami_actors.gateway.outbox import SLOWEST, Outbox
from grami_actors.telemetry import ConnectionClosed as ClosedEvent
from grami_actors.telemetry import Published
from tests.conftest import Gate, Recorder, heard, raw, serving, tell, turns_until

LIMIT = 50_000


class Big(Message):
    size: int = 20_000


class Flood(Message):
    pieces: int = 2_000


class Steps(Message):
    """Reports progress, much and often."""


class Biggie(Agent):
    @handles(Big)
    def big(self, message: Big) -> str:
        return "x" * message.size


class Flooder(Agent, concurrency=10):
    def __init__(self, gate: Gate | None = None) -> None:
        super().__init__()
        self.gate = gate

    @handles(Flood)
    async def flood(self, message: Flood) -> str:
        for number in range(message.pieces):
            self.emit("x" * 1_000)
            if number % 100 == 0:
                await asyncio.sleep(0)
        return "whole"

    @handles(Steps)
    async def steps(self, _: Steps) -> str:
        for number in range(1_000):
            self.emit("x" * 1_000)
            self.progress(number / 1_000, f"step {number}")
            if number % 100 == 0:
                await asyncio.sleep(0)
        return "done"


def swarm() -> Swarm:
    return Swarm(agents=[Biggie, Flooder])


class Watched:
    """A client whose reading a test turns on and off, and the most bytes that waited for it."""

    def __init__(self, manager: Any, socket: Any) -> None:
        self.socket = socket
        self.manager = manager
        self.most = 0
        [self.actor] = manager._gateway._actors()
        add = self.actor.outbox.add

        def adding(frames: Any, now: float) -> None:
            add(frames, now)
            self.most = max(self.most, self.actor.outbox.size)

        # The outbox has slots: what watches it stands before it.
        self.actor.outbox = Adding(self.actor.outbox, adding)


class Adding:
    def __init__(self, outbox: Outbox, add: Any) -> None:
        self.add = add
        self._outbox = outbox

    def __getattr__(self, name: str) -> Any:
        return getattr(self._outbox, name)


async def ask_for_everything(socket: Any) -> None:
    """Answers, chunks, progress, refusals, pongs, events: all that a connection may be sent."""
    await tell(socket, type="subscribe", id="s", topic="a")
    for number in itertools.count():
        await tell(socket, type="big", id=number)
        await tell(socket, type="flood", id=f"f{number}", stream=True, pieces=100)
        await tell(socket, type="steps", id=f"p{number}", stream=True)
        await tell(socket, type="ping", id="x" * 128)
        await tell(socket, type="x" * 128, id="y" * 128)
        await socket.send("no json")


@pytest.mark.slow
async def test_whatever_is_asked_for_a_reader_that_takes_nothing_stays_within_twice_the_bound() -> None:
    async with (
        serving(swarm(), outbox_bytes=LIMIT, max_inflight=1_000) as manager,
        raw(manager, max_queue=1, close_timeout=0.1) as socket,
    ):
        closed = Recorder(manager.system, ClosedEvent)
        watched = Watched(manager, socket)
        socket.transport.pause_reading()
        asking = asyncio.create_task(ask_for_everything(socket))
        while not [each for each in closed.events if each.code == 4508]:
            manager.system.bus.publish(Published("a", "test", "x" * 1_000))
            async with raw(manager) as other:  # nobody else is hurt
                await tell(other, type="big", id=1, size=10)
                assert (await heard(other))["data"] == "x" * 10
        assert LIMIT < watched.most <= 2 * LIMIT
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


@pytest.mark.slow
async def test_what_waits_for_a_reader_that_is_given_up_is_answered_with_slow_consumer() -> None:
    async with (
        serving(swarm(), outbox_bytes=LIMIT, max_inflight=1_000) as manager,
        raw(manager, max_queue=1) as socket,
    ):
        closed = Recorder(manager.system, ClosedEvent)
        socket.transport.pause_reading()
        [actor] = manager._gateway._actors()  # type: ignore[union-attr]
        for number in range(600):
            await tell(socket, type="big", id=number)
        await turns_until(lambda: actor._closing)
        socket.transport.resume_reading()
        answers: list[Any] = []
        with contextlib.suppress(ConnectionClosed):
            while True:
                answers.append(await heard(socket))
        assert socket.close_code == 4508
        codes = [each.get("error_code", "ok") for each in answers]
        assert [each["id"] for each in answers] == list(range(len(answers)))
        assert codes == ["ok"] * codes.count("ok") + ["SLOW_CONSUMER"] * codes.count("SLOW_CONSUMER")
        assert "SLOW_CONSUMER" in codes
        assert (await closed.first(ClosedEvent)).code == 4508


async def test_a_reader_that_reads_again_in_time_gets_every_answer_and_the_last_progress() -> None:
    async with (
        serving(swarm(), outbox_bytes=LIMIT, max_inflight=1_000) as manager,
        raw(manager, max_queue=1) as socket,
    ):
        [actor] = manager._gateway._actors()  # type: ignore[union-attr]
        socket.transport.pause_reading()
        asked = 0
        while not actor._held:
            asked += 1
            await tell(socket, type="big", id=asked)
            await tell(socket, type="steps", id=f"p{asked}", stream=True)
            await asyncio.sleep(0)
        assert list(manager._outboxes()) == [actor.outbox.size] != [0]
        socket.transport.resume_reading()
        frames: dict[Any, list[Any]] = {}
        ends = 0
        while ends < 2 * asked:
            frame = await heard(socket)
            frames.setdefault(frame["id"], []).append(frame)
            ends += frame["type"] == "response"
        for each in frames.values():
            assert [frame["seq"] for frame in each] == list(range(1, len(each) + 1))
            assert each[-1]["status"] == "success"
            told = [frame["progress"] for frame in each if frame["type"] == "response.progress"]
            assert told == sorted(told)
            if isinstance(each[0]["id"], str):
                chunks = sum(frame["type"] == "response.chunk" for frame in each)
                assert chunks + each[-1].get("chunks_dropped", 0) == 1_000


def test_a_large_answer_on_a_slow_line_is_no_reason_to_give_the_reader_up() -> None:
    outbox = Outbox(1_000)
    outbox.add([b"x" * 10 * SLOWEST, b"y"], 5.0)
    outbox.next()
    assert outbox.stalled(14.0) < 0 < outbox.stalled(15.1)
    outbox.written(b"x" * 10 * SLOWEST, 15.0)
    outbox.next()
    assert outbox.stalled(16.0) > 0.9


# --- nothing is stuck ---


class Scheduled(Agent, concurrency=1_000):
    """Does what it is told by hand, step by step."""

    @handles(Big)
    async def big(self, message: Big) -> str:
        for number in range(message.size % 7):
            self.progress(number / 10, f"step {number}")
            self.emit("y" * (message.size // 2))
            await asyncio.sleep(0)
        return "x" * message.size


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 60_000), min_size=1, max_size=25),
    pauses=st.lists(st.booleans(), min_size=25, max_size=25),
    plain=st.lists(st.booleans(), min_size=25, max_size=25),
    events=st.lists(st.integers(0, 3), min_size=25, max_size=25),
)
def test_whenever_a_client_reads_or_does_not_every_answer_comes_and_every_event_once_and_in_order(
    sizes: list[int], pauses: list[bool], plain: list[bool], events: list[int]
) -> None:
    async def scenario() -> None:
        async with (
            serving(Swarm([Scheduled]), outbox_bytes=10_000, max_inflight=100) as manager,
            raw(manager, max_queue=1, max_size=None) as socket,
        ):
            await tell(socket, type="subscribe", id="s", topic="a")
            assert (await heard(socket))["status"] == "success"
            published = 0
            for number, size in enumerate(sizes):
                (socket.transport.pause_reading if pauses[number] else socket.transport.resume_reading)()
                mode = {} if plain[number] else {"id": number, "stream": True}
                await tell(socket, type="big", size=size, **mode)
                for _ in range(events[number]):
                    manager.system.bus.publish(Published("a", "test", "z" * 5_000))
                    published += 1
                await asyncio.sleep(0)
            socket.transport.resume_reading()
            frames = []
            ends = [0, 0]
            while ends != [len(sizes), published]:
                frame = json.loads(await socket.recv())
                frames.append(frame)
                ends[0] += "status" in frame
                ends[1] += frame.get("type") == "event"
            assert [each["offset"] for each in frames if each.get("type") == "event"] == list(range(1, published + 1))
            whole = [len(each["data"]) for each in frames if "status" in each and "id" not in each]
            assert whole == [size for size, mode in zip(sizes, plain, strict=False) if mode]
            for number, size in enumerate(sizes):
                mine = [each for each in frames if each.get("id") == number]
                if mine:
                    chunks = sum(each["type"] == "response.chunk" for each in mine)
                    assert [each["seq"] for each in mine] == list(range(1, len(mine) + 1))
                    assert chunks + mine[-1].get("chunks_dropped", 0) == size % 7
                    assert len(mine[-1]["data"]) == size

    asyncio.run(scenario())
