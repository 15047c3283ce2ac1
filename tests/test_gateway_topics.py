"""Topics over real sockets: who hears what, in which order, and what those get who come back."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from grami_actors import Agent, Message, Swarm, handles
from grami_actors.future import current_scope
from grami_actors.manager import GrowthManager
from grami_actors.telemetry import ActorFailed, Published
from grami_actors.telemetry import ConnectionClosed as ClosedEvent
from tests.conftest import Recorder, heard, on, raw, serving, tell

MSGPACK = "grami.v1.msgpack"


class News(Message):
    text: str
    number: int = 0


class Say(Message):
    topic: str
    text: str = ""


class Wanted(Message):
    """Asks a listener what it heard."""


class Listener(Agent):
    """Keeps what it hears, and from whom."""

    def on_start(self) -> None:
        self.heard: list[list[Any]] = []
        self.subscribe("news.>")

    @handles(News)
    def hear(self, news: News) -> None:
        scope = current_scope()
        self.heard.append([news.text, scope.root.principal.name if scope else ""])

    @handles(Wanted)
    def report(self, _: Wanted) -> list[list[Any]]:
        return self.heard


class Speaker(Agent):
    @handles(Say)
    def say(self, message: Say) -> int:
        return self.publish(message.topic, News(message.text))


def swarm(lane: str = "loop") -> Swarm:
    return Swarm(agents=[on(lane, Listener), on(lane, Speaker)])


async def answer(socket: ClientConnection, **message: Any) -> dict[str, Any]:
    """The answer to a request, whatever events come before it."""
    await tell(socket, **message)
    while (frame := await heard(socket))["type"] == "event":
        pass
    return frame


async def subscribe(socket: ClientConnection, topic: str, recover: Any = None) -> dict[str, Any]:
    extra = {} if recover is None else {"recover": recover}
    return await answer(socket, type="subscribe", id=f"to {topic}", topic=topic, **extra)


async def publish(socket: ClientConnection, topic: str, data: Any) -> dict[str, Any]:
    return await answer(socket, type="publish", id="p", topic=topic, data=data)


def shout(manager: GrowthManager, topic: str, data: Any) -> None:
    """Publish from the program itself."""
    manager.system.bus.publish(Published(topic, "test", data))


async def until(socket: ClientConnection, text: Any) -> list[dict[str, Any]]:
    """The events up to the one with some data."""
    events = [await heard(socket)]
    while events[-1].get("data") != text:
        events.append(await heard(socket))
    return events


# --- publishing ---


async def test_typed_data_reaches_agents_as_their_message_with_whose_it_is_and_clients_as_it_is(lane: str) -> None:
    async with serving(swarm(lane)) as manager, raw(manager) as one, raw(manager) as other:
        await subscribe(other, "news.*")
        data = {"type": "news", "text": "it rains"}
        assert (await publish(one, "news.weather", data))["data"] == {"topic": "news.weather", "agents": 1}
        event = await heard(other)
        assert (event["type"], event["topic"], event["offset"], event["data"]) == ("event", "news.weather", 1, data)
        assert (await publish(one, "news.weather", {"any": "thing"}))["data"]["agents"] == 0
        assert (await heard(other))["data"] == {"any": "thing"}
        assert (await answer(one, type="wanted", id=1))["data"] == [["it rains", "anonymous"]]


async def test_what_an_agent_publishes_reaches_clients_with_its_type(lane: str) -> None:
    async with serving(swarm(lane)) as manager, raw(manager) as socket:
        await subscribe(socket, ">")
        await tell(socket, type="say", id=1, topic="news.x", text="hi")
        frames = [await heard(socket), await heard(socket)]
        [event] = [frame for frame in frames if frame["type"] == "event"]
        assert event["data"] == {"type": "news", "text": "hi", "number": 0}


@pytest.mark.parametrize(
    ("data", "param"),
    [
        ({"type": "news", "text": 5}, "$.data.text"),
        ({"type": "news"}, "$.data.text"),
        ({"type": "news", "text": "x", "number": "many"}, "$.data.number"),
    ],
)
async def test_data_that_is_no_message_of_its_type_reaches_nobody(data: Any, param: str) -> None:
    async with serving(swarm()) as manager, raw(manager) as socket:
        await subscribe(socket, ">")
        refused = await publish(socket, "news.x", data)
        assert (refused["error_code"], refused["param"]) == ("VALIDATION_FAILED", param)
        await publish(socket, "news.x", "next")
        assert (await answer(socket, type="wanted", id=1))["data"] == []


@pytest.mark.parametrize("kind", [[], {}, 5, None])
async def test_a_type_that_is_no_text_is_data_like_any_other(kind: Any) -> None:
    async with serving(swarm()) as manager, raw(manager) as socket:
        await subscribe(socket, ">")
        await tell(socket, type="publish", id=1, topic="a", data={"type": kind})
        frames = [await heard(socket), await heard(socket)]
        assert {frame["type"] for frame in frames} == {"event", "response"}


@pytest.mark.parametrize("topic", ["a..b", "a b", "*", "a.>", "."])
async def test_what_is_no_topic_cannot_be_published_to(topic: str) -> None:
    async with serving(swarm()) as manager, raw(manager) as socket:
        refused = await publish(socket, topic, 1)
        assert (refused["error_code"], refused["param"]) == ("VALIDATION_FAILED", "$.topic")


# --- subscribing ---


@pytest.mark.parametrize("pattern", ["a..b", "a*", ">.a", "a b", "."])
async def test_what_is_no_pattern_is_refused_and_counts_for_nothing(pattern: str) -> None:
    async with serving(swarm(), max_subscriptions=1) as manager, raw(manager) as socket:
        refused = await subscribe(socket, pattern)
        assert (refused["error_code"], refused["param"]) == ("VALIDATION_FAILED", "$.topic")
        assert (await answer(socket, type="unsubscribe", id=1, topic=pattern))["error_code"] == "TOPIC_NOT_FOUND"
        assert (await subscribe(socket, "a.*"))["status"] == "success"


async def test_to_subscribe_takes_an_id_and_has_a_limit() -> None:
    async with serving(swarm(), max_subscriptions=2) as manager, raw(manager) as socket:
        await tell(socket, type="subscribe", topic="a")
        assert (await heard(socket))["error_code"] == "INVALID_MESSAGE"
        assert (await subscribe(socket, "a"))["status"] == "success"
        assert (await subscribe(socket, "a"))["status"] == "success"
        assert (await subscribe(socket, "b"))["status"] == "success"
        assert (await subscribe(socket, "c"))["error_code"] == "RESOURCE_EXHAUSTED"
        await answer(socket, type="unsubscribe", id=1, topic="a")
        assert (await subscribe(socket, "c"))["status"] == "success"


async def test_nothing_is_heard_after_the_answer_to_unsubscribe() -> None:
    async with serving(swarm()) as manager, raw(manager) as socket:
        await subscribe(socket, "a")
        await subscribe(socket, "b")
        for number in range(100):
            shout(manager, "a", number)
        await tell(socket, type="unsubscribe", id=1, topic="a")
        while (await heard(socket))["type"] == "event":
            pass
        shout(manager, "a", "lost")
        shout(manager, "b", "heard")
        assert (await heard(socket))["data"] == "heard"


async def test_an_event_comes_once_to_a_connection_however_many_of_its_patterns_match() -> None:
    async with serving(swarm()) as manager, raw(manager) as socket:
        for pattern in ("a.b", "a.*", "*.b", ">", "a.>"):
            await subscribe(socket, pattern)
        shout(manager, "a.b", 1)
        shout(manager, "a.b", 2)
        assert [event["data"] for event in await until(socket, 2)] == [1, 2]


async def test_a_server_that_is_full_leaves_subscriptions_as_they_are() -> None:
    async with serving(swarm(), max_requests=1) as manager, raw(manager) as socket:
        gateway: Any = manager._gateway
        await subscribe(socket, "a")
        gateway._requests += 1
        assert (await subscribe(socket, "b"))["error_code"] == "RESOURCE_EXHAUSTED"
        assert (await answer(socket, type="unsubscribe", id=1, topic="a"))["error_code"] == "RESOURCE_EXHAUSTED"
        gateway._requests -= 1
        shout(manager, "a", 1)
        assert (await heard(socket))["data"] == 1
        assert (await answer(socket, type="unsubscribe", id=1, topic="b"))["error_code"] == "TOPIC_NOT_FOUND"


async def test_a_connection_that_is_gone_is_forgotten() -> None:
    async with serving(swarm()) as manager:
        closed = Recorder(manager.system, ClosedEvent)
        gateway: Any = manager._gateway
        async with raw(manager) as socket:
            await subscribe(socket, "a.>")
            await subscribe(socket, "b")
            assert gateway.feed._hearers.match("b")
        await closed.first(ClosedEvent)
        assert gateway.feed._hearers.match("b") == gateway.feed._hearers.match("a.x") == ()


# --- encodings ---


async def test_a_messagepack_client_hears_the_same_events() -> None:
    async with serving(swarm()) as manager, raw(manager, subprotocols=[MSGPACK]) as socket:
        await socket.send(msgspec.msgpack.encode({"type": "subscribe", "id": 1, "topic": "a"}))
        assert msgspec.msgpack.decode(await socket.recv())["status"] == "success"
        shout(manager, "a", {"x": [1, None, "ü"]})
        event = msgspec.msgpack.decode(await socket.recv())
        assert (event["type"], event["data"]) == ("event", {"x": [1, None, "ü"]})


async def test_an_event_that_an_encoding_has_no_words_for_is_left_out_and_hurts_nobody() -> None:
    async with (
        serving(swarm()) as manager,
        raw(manager, subprotocols=[MSGPACK]) as socket,
        raw(manager) as other,
    ):
        failed = Recorder(manager.system, ActorFailed)
        await socket.send(msgspec.msgpack.encode({"type": "subscribe", "id": 1, "topic": "a"}))
        await socket.recv()
        await subscribe(other, "a")
        shout(manager, "a", 10**30)
        shout(manager, "a", object())
        shout(manager, "a", 2)
        assert msgspec.msgpack.decode(await socket.recv())["data"] == 2
        assert [(event["offset"], event["data"]) for event in await until(other, 2)] == [(1, 10**30), (2, 2)]
        assert failed.events == []


async def test_data_that_only_messagepack_has_words_for_is_refused() -> None:
    async with serving(swarm()) as manager, raw(manager, subprotocols=[MSGPACK]) as socket:
        for key, data in {"k": msgspec.msgpack.Ext(5, b"x"), "l": {None: 1}}.items():
            frame = {"type": "publish", "id": 1, "topic": "a", "data": data, "idempotency_key": key}
            await socket.send(msgspec.msgpack.encode(frame))
            refused = msgspec.msgpack.decode(await socket.recv())
            assert (refused["error_code"], refused["param"]) == ("VALIDATION_FAILED", "$.data")


# --- coming back ---


async def test_who_comes_back_gets_all_that_was_missed_or_is_told_that_it_cannot() -> None:
    async with serving(swarm(), event_history=3) as manager, raw(manager) as socket:
        epoch = (await subscribe(socket, "x"))["data"]["epoch"]
        for number in range(1, 6):
            shout(manager, "a" if number % 2 else "b", number)

        async def recovered(offset: int, of: str = epoch) -> list[Any]:
            """What comes for ``a`` after an offset, on a new connection."""
            async with raw(manager) as again:
                data = (await subscribe(again, "a", {"epoch": of, "offset": offset}))["data"]
                assert (data["epoch"], data["offset"]) == (epoch, 5)
                await tell(again, type="ping", id="end")
                missed = []
                while (frame := await heard(again))["type"] == "event":
                    missed.append(frame["data"])
                return [data["recovered"], missed]

        assert await recovered(5) == [True, []]
        assert await recovered(4) == [True, [5]]
        assert await recovered(2) == [True, [3, 5]]
        assert await recovered(1) == [False, []]
        assert await recovered(4, "another") == [False, []]
        refused = await subscribe(socket, "a", {"epoch": epoch, "offset": 6})
        assert (refused["error_code"], refused["param"]) == ("UNRECOVERABLE_POSITION", "$.recover.offset")


async def test_a_position_that_is_refused_leaves_the_subscription_that_is_there() -> None:
    async with serving(swarm()) as manager, raw(manager) as socket:
        epoch = (await subscribe(socket, "a"))["data"]["epoch"]
        assert (await subscribe(socket, "a", {"epoch": epoch, "offset": 9}))["error_code"] == "UNRECOVERABLE_POSITION"
        shout(manager, "a", 1)
        assert (await heard(socket))["data"] == 1
        assert (await answer(socket, type="unsubscribe", id=1, topic="a"))["status"] == "success"


async def test_what_was_heard_before_by_another_pattern_comes_before_the_answer() -> None:
    async with serving(swarm()) as manager, raw(manager) as socket:
        epoch = (await subscribe(socket, "a.*"))["data"]["epoch"]
        gateway: Any = manager._gateway
        [cell] = gateway.feed._hearers.match("a.x")
        subscribed = asyncio.Event()
        # Published in the turn in which the connection takes the frame: nothing of it is on the wire by then.
        original = gateway.feed.subscribe

        def publish_first(*args: Any) -> None:
            for number in (1, 2, 3):
                shout(manager, "a.b" if number == 3 else "a.x", number)
            original(*args)
            subscribed.set()

        gateway.feed.subscribe = publish_first
        await tell(socket, type="subscribe", id=7, topic="*.b", recover={"epoch": epoch, "offset": 0})
        await subscribed.wait()
        shout(manager, "a.b", 4)
        frames = [await heard(socket) for _ in range(6)]
        assert [frame.get("id", frame.get("offset")) for frame in frames] == [1, 2, 3, 7, 3, 4]
        assert cell.state == "running"


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(before=st.integers(0, 200), threads=st.integers(1, 4), clients=st.integers(1, 4))
def test_missed_events_come_before_live_ones_without_gap_or_double_while_threads_publish(
    before: int, threads: int, clients: int
) -> None:
    async def scenario() -> None:
        async with serving(swarm(), event_history=100_000) as manager, raw(manager) as first:
            epoch = (await subscribe(first, ">"))["data"]["epoch"]
            for number in range(before):
                shout(manager, f"t.{number % 3}", number)
            begun = threading.Event()

            def publish_many() -> None:
                for number in range(100):
                    shout(manager, f"t.{number % 3}", number)
                    begun.set()

            workers = [threading.Thread(target=publish_many) for _ in range(threads)]
            for worker in workers:
                worker.start()
            await asyncio.to_thread(begun.wait)

            async def come_back() -> list[int]:
                async with raw(manager) as socket:
                    recover = {"epoch": epoch, "offset": 0}
                    await tell(socket, type="subscribe", id=1, topic="t.*", recover=recover)
                    assert (await heard(socket))["data"]["recovered"] is True
                    offsets = [(await heard(socket))["offset"] for _ in range(before + 100 * threads)]
                    shout(manager, "t.end", "end")
                    while (event := await heard(socket))["data"] != "end":
                        offsets.append(event["offset"])
                    return offsets

            everything = list(range(1, before + 100 * threads + 1))
            for offsets in await asyncio.gather(*(come_back() for _ in range(clients))):
                assert [each for each in offsets if each <= len(everything)] == everything
            offsets = [(await heard(first))["offset"] for _ in everything]
            assert offsets == everything
            await asyncio.to_thread(lambda: [worker.join() for worker in workers])

    asyncio.run(scenario())


# --- slow subscribers ---


async def test_events_for_a_slow_reader_wait_and_come_in_order_when_it_reads() -> None:
    async with serving(swarm(), outbox_bytes=50_000) as manager, raw(manager, max_queue=1) as socket:
        await subscribe(socket, "a")
        socket.transport.pause_reading()
        [actor] = manager._gateway._actors()  # type: ignore[union-attr]
        published = 0
        while not actor._held:
            shout(manager, "a", [published, "x" * 10_000])
            published += 1
            await asyncio.sleep(0)
        shout(manager, "a", "end")
        assert actor.outbox.size <= 2 * 50_000
        socket.transport.resume_reading()
        events = await until(socket, "end")
        assert [event["offset"] for event in events] == list(range(1, published + 2))


@pytest.mark.slow
async def test_more_events_than_are_held_for_a_reader_that_takes_nothing_end_its_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("grami_actors.gateway.connection.MOST_HELD", 1_000_000)
    async with (
        serving(swarm(), outbox_bytes=50_000) as manager,
        raw(manager, max_queue=1, close_timeout=0.1) as socket,
        raw(manager) as other,
    ):
        closed = Recorder(manager.system, ClosedEvent)
        await subscribe(socket, "a")
        await subscribe(other, "a")
        socket.transport.pause_reading()
        for number in range(400):
            shout(manager, "a", [number, "x" * 20_000])
            await heard(other)
        assert (await closed.first(ClosedEvent)).code == 4508
        socket.transport.resume_reading()
        with pytest.raises(ConnectionClosed):
            await until(socket, "never")
