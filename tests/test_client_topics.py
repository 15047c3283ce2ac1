"""The client's subscriptions: over lost connections and restarts, beside each other, given up, and not read."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.server import ServerConnection, serve

import grami_actors.inbox
from grami_actors import Client, ConnectionLost, GramiError, connect
from grami_actors.conversation import Conversation, Frame, Hearing
from grami_actors.errors import MailboxFull, PermissionDenied
from grami_actors.frames import Position
from grami_actors.gateway.feed import Feed, Missed
from grami_actors.permissions import Rule
from grami_actors.telemetry import Bus, Published
from grami_actors.topics import Topics
from tests.conftest import cut, serving, turns_until
from tests.swarms import small_swarm
from tests.test_client import asking


class Listener:
    """Reads a subscription in a task of its own."""

    def __init__(self, grami: Client, topic: str, **options: Any) -> None:
        self.frames: list[Frame] = []
        self._grew = asyncio.Event()
        self.task = asyncio.create_task(self._read(grami.subscribe(topic, **options)))

    async def _read(self, frames: Any) -> None:
        async with contextlib.aclosing(frames):
            async for frame in frames:
                self.frames.append(frame)
                self._grew.set()

    async def heard(self, count: int) -> list[Any]:
        """The data of its first events, when there are so many; a gap is "gap"."""
        while len(self.frames) < count:
            self._grew.clear()
            await self._grew.wait()
        return [frame.data if frame.type == "event" else frame.type for frame in self.frames]

    async def left(self) -> None:
        self.task.cancel()
        await asyncio.wait((self.task,))


@asynccontextmanager
async def listening(grami: Client, *topics: str) -> AsyncIterator[list[Listener]]:
    """Listeners whose subscriptions the server has."""
    listeners = [Listener(grami, topic) for topic in topics]
    await turns_until(lambda: len(grami._conversation.hearings) == len(topics))
    await turns_until(lambda: all(each.live for each in grami._conversation.hearings))
    try:
        yield listeners
    finally:
        for each in listeners:
            await each.left()


def subscriptions(manager: Any) -> list[int]:
    return [each.subscriptions for each in manager._gateway.connections()]


async def test_a_subscription_goes_on_over_a_lost_connection_with_what_it_missed() -> None:
    async with asking() as (grami, manager), connect(manager.url) as other, listening(grami, "news.*") as (news,):
        await other.publish("news.a", 1)
        assert await news.heard(1) == [1]
        assert manager._gateway is not None
        next(iter(manager._gateway._open)).transport.abort()
        await turns_until(lambda: not grami._connected.is_set())
        for number in (2, 3):
            await other.publish("news.a", number)
        await other.publish("news.a", 4)
        assert await news.heard(4) == [1, 2, 3, 4]


async def test_after_a_restart_a_gap_stands_where_events_may_be_missing() -> None:
    async with asyncio.timeout(20):
        async with serving(small_swarm()) as first:
            grami = await connect(first.url).__aenter__()
            news = Listener(grami, "news")
            await turns_until(lambda: any(each.live for each in grami._conversation.hearings))
            await grami.publish("news", "before")
            await news.heard(1)
        async with serving(small_swarm(), port=first.port):
            await grami.ping()
            await news.heard(2)
            await grami.publish("news", "after")
            assert await news.heard(3) == ["before", "gap", "after"]
            gap, after = news.frames[1:]
            assert (gap.topic, gap.epoch, gap.offset) == ("news", after.epoch, 0)
            await grami.__aexit__(None, None, None)
        assert isinstance(news.task.exception(), ConnectionLost)


async def test_what_one_subscription_missed_is_not_taken_for_what_another_saw() -> None:
    async with asking() as (grami, manager), connect(manager.url) as other, AsyncExitStack() as stack:
        some, every = await stack.enter_async_context(listening(grami, "a.*", ">"))
        await other.publish("a.x", 1)
        await other.publish("b.y", 2)
        await every.heard(2)
        assert manager._gateway is not None
        next(iter(manager._gateway._open)).transport.abort()
        await turns_until(lambda: not grami._connected.is_set())
        for number, topic in enumerate(("a.x", "b.y", "a.x"), 3):
            await other.publish(topic, number)
        assert await every.heard(5) == [1, 2, 3, 4, 5]
        assert await some.heard(3) == [1, 3, 5]


async def test_a_new_subscription_is_given_all_since_its_position_whatever_others_hear() -> None:
    async with asking() as (grami, _), listening(grami, "a.*") as (some,):
        await grami.publish("a.x", 0)
        first = (await some.heard(1) and some.frames)[0]
        assert first.epoch is not None
        assert first.offset is not None
        await grami.publish("b.y", 1)
        late = Listener(grami, ">", recover=Position(first.epoch, first.offset))
        await asyncio.gather(*(grami.publish("a.x", number) for number in range(2, 20)))
        assert await late.heard(19) == list(range(1, 20))
        await late.left()


EVENTS = st.lists(st.sampled_from(["a.x", "a.y", "b.x", "c"]), max_size=12)


@given(EVENTS, EVENTS, st.permutations(["a.*", ">", "*.x", "a.x"]))
def test_each_subscription_always_hears_exactly_what_matches_whatever_is_replayed(
    before: list[str], missed: list[str], patterns: list[str]
) -> None:
    """The server's side is played by its own feed, and the connection is lost between the two lists."""

    class Wire:
        def __init__(self) -> None:
            self.frames: list[bytes] = []

        def post_always(self, envelope: Any) -> None:
            message = envelope.message
            self.frames += [each.frame for each in (message.entries if isinstance(message, Missed) else (message,))]

    bus = Bus()
    feed = Feed(bus, "epoch", 1000)
    client = Conversation()
    heard: dict[str, list[int]] = {pattern: [] for pattern in patterns}
    hearings = [Hearing(each, lambda frame, each=each: heard[each].append(frame.data), None) for each in patterns]

    def attach(wire: Any) -> None:
        for hearing in hearings:
            request_id, asked = client.subscribe(hearing, lambda _: None)
            recover = msgspec.json.decode(asked).get("recover")

            def answer(told: Any, request_id: str = request_id) -> None:
                frame = {"type": "response", "id": request_id, "status": "success", "data": told}
                client.receive(msgspec.json.encode(frame))

            feed.subscribe(hearing.topic, wire, recover and Position(**recover), answer)
            while wire.frames:
                client.receive(wire.frames.pop(0))

    def publish(topics: list[str], start: int) -> None:
        for number, topic in enumerate(topics, start):
            bus.publish(Published(topic, "", number))

    first, second = Wire(), Wire()
    for hearing in hearings:
        client.hear(hearing)
    attach(first)
    publish(before, 0)
    for frame in first.frames:
        client.receive(frame)
    client.lose(ConnectionLost("gone"))
    feed.forget(first)  # type: ignore[arg-type]
    publish(missed, len(before))
    attach(second)
    for pattern in patterns:
        matching: Topics[None] = Topics()
        matching.subscribe(pattern, None)
        assert heard[pattern] == [n for n, topic in enumerate(before + missed) if matching.match(topic)]


async def test_leaving_the_loop_unsubscribes_when_it_was_the_last_of_its_topic() -> None:
    async with asking() as (grami, manager):
        async with listening(grami, "news", "news", "other") as (one, two, other):
            assert subscriptions(manager) == [2]
            await one.left()
            await grami.ping()
            assert subscriptions(manager) == [2]
            await grami.publish("news", "still")
            assert await two.heard(1) == ["still"]
            await two.left()
            await grami.ping()
            assert subscriptions(manager) == [1]
        assert other.frames == []
        await grami.ping()
        assert subscriptions(manager) == [0]
        assert grami._conversation.hearings == ()


async def test_a_topic_that_one_leaves_while_another_comes_is_still_heard() -> None:
    async with asking() as (grami, _):
        for _ in range(20):
            async with listening(grami, "news") as (leaving,):
                leaving.task.cancel()
                coming = Listener(grami, "news")
                await asyncio.wait((leaving.task,))
                await turns_until(lambda: any(each.live for each in grami._conversation.hearings))
                await grami.publish("news", "for whoever came")
                await asyncio.wait_for(coming.heard(1), 5)
                await coming.left()


@pytest.mark.parametrize("topic", ["", "a..b", "a b", ">.a", "a*"])
async def test_a_pattern_that_is_none_is_refused_and_leaves_nothing_behind(topic: str) -> None:
    async with asking() as (grami, manager):
        with pytest.raises(GramiError) as refused:
            await anext(grami.subscribe(topic))
        assert (refused.value.error_code, refused.value.param) == ("VALIDATION_FAILED", "$.topic")
        assert grami._conversation.hearings == ()
        assert subscriptions(manager) == [0]


async def test_a_topic_that_is_not_allowed_is_refused_and_leaves_nothing_behind() -> None:
    rules = (Rule(subscribe=("open.>",), publish=(">",)),)
    async with serving(small_swarm(), rules=rules) as manager, connect(manager.url) as grami:
        with pytest.raises(PermissionDenied):
            await anext(grami.subscribe("secret.>"))
        assert grami._conversation.hearings == ()
        async with listening(grami, "open.>") as (opened,):
            await grami.publish("open.x", 1)
            assert await opened.heard(1) == [1]


async def test_events_that_are_not_read_are_bounded_and_the_reader_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grami_actors.inbox, "UNREAD", 10)
    async with asking() as (grami, manager):
        frames = grami.subscribe("news")
        first = asyncio.ensure_future(anext(frames))
        await turns_until(lambda: any(each.live for each in grami._conversation.hearings))
        for number in range(30):
            await grami.publish("news", number)
        read = [(await first).data, *[(await anext(frames)).data for _ in range(10)]]
        with pytest.raises(MailboxFull) as lagged:
            await anext(frames)
        assert lagged.value.error_code == "SLOW_CONSUMER"
        assert read == list(range(11))
        await grami.ping()
        assert subscriptions(manager) == [0]


async def test_a_stream_that_is_not_read_ends_and_is_cancelled_on_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = []

    async def flood(peer: ServerConnection) -> None:
        async for text in peer:
            frame = json.loads(text)
            heard.append(frame["type"])
            if frame["type"] == "hello":
                await peer.send('{"type":"welcome","id":"hello"}')
            elif frame["type"] == "endless":
                for _ in range(30):
                    await peer.send(json.dumps({"type": "response.chunk", "id": frame["id"], "data": "x"}))
            elif frame["type"] == "ping":
                await peer.send(json.dumps({"type": "pong", "id": frame["id"]}))

    monkeypatch.setattr(grami_actors.inbox, "UNREAD", 10)
    async with asyncio.timeout(10), serve(flood, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        async with connect(f"ws://127.0.0.1:{port}/ws") as grami:
            frames = grami.stream("endless")
            await anext(frames)
            await grami.ping()
            with pytest.raises(MailboxFull):
                async for _ in frames:
                    pass
            await grami.ping()
    assert heard == ["hello", "endless", "ping", "cancel", "ping"]


async def test_a_connection_that_is_lost_before_it_is_subscribed_again_does_not_end_the_subscription() -> None:
    asked: list[Any] = []

    async def play(peer: ServerConnection) -> None:
        async for text in peer:
            frame = json.loads(text)
            if frame["type"] == "hello":
                await peer.send('{"type":"welcome","id":"hello"}')
                continue
            asked.append(frame.get("recover"))
            answer = {"type": "response", "id": frame["id"], "status": "success"}
            if len(asked) == 1:
                await peer.send(json.dumps(answer | {"data": {"epoch": "e", "offset": 7}}))
            elif len(asked) == 3:
                error = {"status": "error", "error_code": "RATE_LIMITED", "message": "no", "retry_after_ms": 1}
                await peer.send(json.dumps(answer | error))
                continue
            elif len(asked) == 4:
                await peer.send(json.dumps(answer | {"data": {"epoch": "e", "offset": 8, "recovered": True}}))
                event = {"type": "event", "topic": "news", "epoch": "e", "offset": 8, "data": "missed"}
                await peer.send(json.dumps(event))
                continue
            await peer.close(1012)

    async with asyncio.timeout(10), serve(play, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        async with connect(f"ws://127.0.0.1:{port}/ws") as grami:
            frames = grami.subscribe("news")
            assert (await anext(frames)).data == "missed"
            await frames.aclose()
    assert asked[:4] == [None, *[{"epoch": "e", "offset": 7}] * 3]


async def test_a_subscription_that_is_refused_on_the_next_connection_ends_with_the_error() -> None:
    rules: tuple[Rule, ...] = (Rule(subscribe=(">",), publish=(">",)),)
    async with asyncio.timeout(20), serving(small_swarm(), rules=rules) as manager, connect(manager.url) as grami:
        news = Listener(grami, "news")
        await turns_until(lambda: any(each.live for each in grami._conversation.hearings))
        setting = manager.policy.permissions
        manager.policy.permissions = type(setting)((Rule(subscribe=("other",)),))
        cut(manager)
        await asyncio.wait((news.task,))
        assert isinstance(news.task.exception(), PermissionDenied)
        assert grami._conversation.hearings == ()
