"""Idempotency keys and clients that go away, over real sockets: what is done once, for whom, and until when."""

from __future__ import annotations

import asyncio
import gc
import threading
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grami_actors import Agent, GramiError, Message, Reject, Swarm, cancelled, handles
from grami_actors.config import Config
from grami_actors.gateway import replays
from grami_actors.gateway.request import Request
from grami_actors.manager import GrowthManager
from grami_actors.principals import Principal
from grami_actors.system import ActorSystem
from grami_actors.telemetry import ConnectionClosed, Published, RequestFinished
from grami_actors.trace_context import Trace
from tests.conftest import Gate, Recorder, heard, on, raw, serving, tell, turns_until

MSGPACK = "grami.v1.msgpack"


class Work(Message):
    text: str = ""
    how: str = "at once"
    number: int = 0


class Worker(Agent, concurrency=100):
    """Counts what it does, and does it as it is told."""

    def __init__(self, gate: Gate, done: list[str]) -> None:
        super().__init__()
        self.gate = gate
        self.done = done

    @handles(Work)
    async def work(self, work: Work) -> Any:
        self.done.append(work.text)
        if work.how == "held":
            self.emit("before")
            await self.gate.wait_async()
            self.emit("after")
        elif work.how != "at once":
            raise Reject(work.how, "on purpose")
        return [work.text, len(self.done)]


class Bench:
    """A swarm whose work can be held and counted."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.done: list[str] = []
        self.swarm = Swarm(agents=[partial(Worker, self.gate, self.done)])


async def ask(socket: Any, key: str | None = "k", **fields: Any) -> dict[str, Any]:
    await send(socket, key, **fields)
    return await heard(socket)


async def send(socket: Any, key: str | None = "k", **fields: Any) -> None:
    fields = {"type": "work", "id": 1, **fields}
    await tell(socket, **(fields if key is None else {**fields, "idempotency_key": key}))


def gateway_of(manager: GrowthManager) -> Any:
    return manager._gateway


# --- the same key ---


async def test_the_same_request_again_gets_the_same_result_marked_as_replayed() -> None:
    bench = Bench()
    async with serving(bench.swarm) as manager, raw(manager) as one, raw(manager) as two:
        first = await ask(one, text="a", number=3)
        assert first["data"] == ["a", 1]
        assert "replayed" not in first
        again = await ask(one, id=2, text="a", number=3)
        other = await ask(two, id="x", text="a", number=3)
        assert again["data"] == other["data"] == ["a", 1]
        assert again["replayed"] is other["replayed"] is True
        await two.send('{"number": 3, "idempotency_key": "k", "text": "a", "id": 5, "meta": {}, "type": "work"}')
        assert (await heard(two))["replayed"] is True
        assert bench.done == ["a"]


async def test_a_replay_is_found_from_the_other_encoding_and_plain_mode_shows_nothing_of_it() -> None:
    bench = Bench()
    async with serving(bench.swarm) as manager, raw(manager) as one, raw(manager, subprotocols=[MSGPACK]) as two:
        await ask(one, text="a")
        frame = {"type": "work", "text": "a", "id": 1, "idempotency_key": "k"}
        await two.send(msgspec.msgpack.encode(frame))
        assert msgspec.msgpack.decode(await two.recv())["replayed"] is True
        await tell(one, type="work", text="a", idempotency_key="k")
        assert await heard(one) == {"status": "success", "data": ["a", 1]}
        assert bench.done == ["a"]


@pytest.mark.parametrize("other", [{"text": "b"}, {"text": "a", "number": 1}, {"text": "a", "to": "worker"}])
async def test_another_payload_with_a_used_key_is_refused(other: dict[str, Any]) -> None:
    bench = Bench()
    async with serving(bench.swarm) as manager, raw(manager) as socket:
        await ask(socket, text="a")
        refused = await ask(socket, **other)
        assert (refused["error_code"], refused["param"]) == ("IDEMPOTENCY_KEY_REUSED", "$.idempotency_key")
        assert bench.done == ["a"]


async def test_who_comes_while_it_is_at_work_waits_for_the_same_work() -> None:
    bench = Bench()
    async with serving(bench.swarm) as manager, raw(manager) as one, raw(manager) as two:
        await send(one, text="a", how="held")
        await bench.gate.until_entered()
        await send(two, text="a", how="held", stream=True)
        await turns_until(lambda: gateway_of(manager)._requests == 2)
        bench.gate.opened.set()
        assert (await heard(one))["data"] == ["a", 1]
        frames = [await heard(two), await heard(two)]
        assert [frame["seq"] for frame in frames] == [1, 2]
        assert (frames[0]["data"], frames[1]["data"], frames[1]["replayed"]) == ("after", ["a", 1], True)


@pytest.mark.parametrize(
    ("how", "times"),
    [("UPSTREAM_ERROR", 2), ("RATE_LIMITED", 2), ("CANCELLED", 2), ("PERMISSION_DENIED", 1), ("QUOTA_EXCEEDED", 1)],
)
async def test_an_error_is_kept_unless_it_may_be_another_the_next_time(how: str, times: int) -> None:
    bench = Bench()
    async with serving(bench.swarm) as manager, raw(manager) as socket:
        assert (await ask(socket, how=how))["error_code"] == how
        again = await ask(socket, how=how)
        assert (again["error_code"], again.get("replayed", False)) == (how, times == 1)
        assert len(bench.done) == times


async def test_a_result_is_kept_for_five_minutes_by_the_clock() -> None:
    bench, clock = Bench(), [1.0]
    system = ActorSystem(clock=lambda: clock[0])
    config = Config(drain_timeout=0.2)
    async with (
        asyncio.timeout(20),
        GrowthManager(bench.swarm, config, publish=False, system=system) as manager,
        raw(manager) as socket,
    ):
        await ask(socket, text="a")
        clock[0] += 300
        assert (await ask(socket, text="a"))["replayed"] is True
        clock[0] += 0.001
        assert (await ask(socket, text="a"))["data"] == ["a", 2]
        clock[0] += 301
        assert "error_code" not in await ask(socket, text="another payload")
        assert len(gateway_of(manager).replays._works) == 1


async def test_the_oldest_result_makes_room_and_work_under_way_is_never_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replays, "MOST", 2)
    bench = Bench()
    async with serving(bench.swarm) as manager, raw(manager) as socket:
        await send(socket, "held", text="h", how="held")
        await bench.gate.until_entered()
        await ask(socket, "a", id=2, text="a")
        await ask(socket, "b", id=3, text="b")
        assert (await ask(socket, "b", id=4, text="b"))["replayed"] is True
        assert "replayed" not in await ask(socket, "a", id=5, text="a")
        await send(socket, "more", id=6, text="m", how="held")
        await turns_until(lambda: "m" in bench.done)
        assert (await ask(socket, "full", id=7))["error_code"] == "RESOURCE_EXHAUSTED"
        bench.gate.opened.set()
        assert {(await heard(socket))["status"] for _ in range(2)} == {"success"}


async def test_what_is_published_with_a_key_is_published_once() -> None:
    bench = Bench()
    async with serving(bench.swarm) as manager, raw(manager) as socket, raw(manager) as other:
        told = Recorder(manager.system, Published)
        frame = {"type": "publish", "topic": "a", "data": {"x": 1}}
        assert "replayed" not in await ask(socket, **frame)
        assert (await ask(other, **frame))["replayed"] is True
        assert (await ask(socket, **frame | {"data": 2}))["error_code"] == "IDEMPOTENCY_KEY_REUSED"
        assert (await ask(socket, text="a"))["error_code"] == "IDEMPOTENCY_KEY_REUSED"
        assert len(told.events) == 1


async def test_a_message_that_only_messagepack_has_words_for_can_have_a_key() -> None:
    class Loose(Message):
        anything: Any

    class Taker(Agent):
        @handles(Loose)
        def take(self, loose: Loose) -> str:
            return type(loose.anything).__name__

    async with serving(Swarm([Taker])) as manager, raw(manager, subprotocols=[MSGPACK]) as socket:
        for replayed in (None, True):
            frame = {"type": "loose", "id": 1, "idempotency_key": "k", "anything": msgspec.msgpack.Ext(5, b"x")}
            await socket.send(msgspec.msgpack.encode(frame))
            found = msgspec.msgpack.decode(await socket.recv())
            assert (found["data"], found.get("replayed")) == ("Ext", replayed)


@settings(max_examples=8, deadline=None)
@given(
    keys=st.lists(st.integers(0, 3), min_size=2, max_size=40),
    clients=st.integers(1, 4),
    lane=st.sampled_from(["loop", "thread"]),
)
def test_the_work_of_a_key_is_done_exactly_once_however_many_ask_at_once(
    keys: list[int], clients: int, lane: str
) -> None:
    class Once(Message):
        key: int

    class Doer(Agent, concurrency=1 if lane == "thread" else 10):
        @handles(Once)
        def do(self, once: Once) -> int:
            done.append(once.key)
            return once.key

    done: list[int] = []

    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            manager = await stack.enter_async_context(serving(Swarm([on(lane, Doer)])))
            sockets = [await stack.enter_async_context(raw(manager)) for _ in range(clients)]
            for number, key in enumerate(keys):
                fields = {"type": "once", "key": key, "id": number, "idempotency_key": str(key)}
                await tell(sockets[number % clients], **fields)
            answers = [await heard(sockets[number % clients]) for number in range(len(keys))]
            assert sorted(answer["data"] for answer in answers) == sorted(keys)
            assert sum("replayed" not in answer for answer in answers) == len(set(keys))
            assert gateway_of(manager)._requests == 0

    asyncio.run(scenario())
    assert sorted(done) == sorted(set(keys))


# --- cancelling, deadlines, going away ---


async def test_of_two_that_wait_one_may_cancel_and_the_other_gets_the_result() -> None:
    bench = Bench()
    async with serving(bench.swarm) as manager, raw(manager) as one, raw(manager) as two:
        await send(one, text="a", how="held")
        await send(two, text="a", how="held")
        await bench.gate.until_entered()
        await turns_until(lambda: gateway_of(manager)._requests == 2)
        await tell(one, type="cancel", request_id=1)
        assert (await heard(one))["error_code"] == "CANCELLED"
        bench.gate.opened.set()
        assert (await heard(two))["data"] == ["a", 1]


async def test_when_all_have_cancelled_the_work_is_and_the_key_is_free() -> None:
    bench = Bench()
    async with serving(bench.swarm) as manager, raw(manager) as one:
        await send(one, text="a", how="held")
        await bench.gate.until_entered()
        await tell(one, type="cancel", request_id=1)
        assert (await heard(one))["error_code"] == "CANCELLED"
        bench.gate.opened.set()
        assert (await ask(one, text="a", how="held", stream=True))["type"] == "response.started"
        assert len(bench.done) == 2


async def test_the_work_has_the_deadline_of_the_first_and_a_second_its_own_if_that_is_sooner() -> None:
    bench = Bench()
    async with serving(bench.swarm) as manager, raw(manager) as one, raw(manager) as two:
        await send(one, text="a", how="held", timeout_ms=150)
        await bench.gate.until_entered()
        await send(two, text="a", how="held", timeout_ms=20)
        await send(two, id=2, text="a", how="held", timeout_ms=60_000)
        assert [(frame := await heard(two))["id"], frame["error_code"]] == [1, "DEADLINE_EXCEEDED"]
        assert (await heard(one))["error_code"] == "DEADLINE_EXCEEDED"
        assert [(frame := await heard(two))["id"], frame["error_code"]] == [2, "DEADLINE_EXCEEDED"]


async def test_who_lost_the_connection_comes_back_within_the_grace_and_gets_the_result() -> None:
    bench = Bench()
    async with serving(bench.swarm) as manager:
        async with raw(manager) as one:
            await send(one, text="a", how="held")
            await bench.gate.until_entered()
        async with raw(manager) as again:
            await send(again, text="a", how="held")
            await turns_until(lambda: gateway_of(manager)._requests == 1)
            bench.gate.opened.set()
            answer = await heard(again)
            assert (answer["data"], answer["replayed"]) == (["a", 1], True)


async def test_work_that_nobody_waits_for_ends_after_the_grace_of_who_left_last() -> None:
    bench = Bench()
    async with serving(bench.swarm, stream_grace=0.1) as manager:
        closed = Recorder(manager.system, ConnectionClosed)
        waits: list[Any] = []
        for _ in range(2):
            async with raw(manager) as socket:
                await send(socket, text="a", how="held")
                await turns_until(lambda: gateway_of(manager)._requests == 1)
                [work] = gateway_of(manager).replays._works.values()
            await closed.until(lambda events: len(events) > len(waits))
            waits.append(manager.system.now())
        ended = asyncio.Event()
        work.on_cancel(lambda _: ended.set())
        await ended.wait()
        assert manager.system.now() - waits[-1] > 0.09
        assert gateway_of(manager)._requests == 0


async def test_a_kept_result_does_not_keep_the_request_that_asked_for_it_and_with_it_its_connection() -> None:
    bench = Bench()
    async with serving(bench.swarm) as manager, raw(manager) as socket:
        await ask(socket, text="a")
        [work] = gateway_of(manager).replays._works.values()
        kept = gc.get_referents(*vars(work).values())
        assert not [each for each in (*kept, *gc.get_referents(*kept)) if isinstance(each, Request)]


# --- clients that go away ---


@asynccontextmanager
async def emitting(**options: Any) -> Any:
    bench = Bench()
    async with serving(bench.swarm, **options) as manager:
        yield bench, manager, Recorder(manager.system, ConnectionClosed, RequestFinished)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_plain_request_ends_with_its_connection_and_a_streaming_one_after_a_grace(stream: bool) -> None:
    async with emitting(stream_grace=0.15) as (bench, manager, told):
        async with raw(manager) as socket:
            await send(socket, None, how="held", stream=stream)
            await bench.gate.until_entered()
        await told.first(ConnectionClosed)
        began = manager.system.now()
        await turns_until(lambda: gateway_of(manager)._requests == 0)
        assert (manager.system.now() - began > 0.1) is stream
        [finished] = [each for each in told.events if isinstance(each, RequestFinished)]
        assert (finished.outcome, finished.message_type) == ("CANCELLED", "work")


async def test_a_streaming_request_may_finish_within_the_grace() -> None:
    async with emitting(stream_grace=30) as (bench, manager, told):
        async with raw(manager) as socket:
            await send(socket, None, how="held", stream=True)
            await bench.gate.until_entered()
        await told.first(ConnectionClosed)
        assert gateway_of(manager)._requests == len(gateway_of(manager)._orphans) == 1
        bench.gate.opened.set()
        await turns_until(lambda: gateway_of(manager)._requests == 0)
        assert not gateway_of(manager)._orphans


async def test_an_answer_that_was_held_for_a_reader_that_left_is_counted_out() -> None:
    class Big(Message):
        pass

    class Biggie(Agent):
        @handles(Big)
        def big(self, _: Big) -> str:
            return "x" * 3_000_000

    async with serving(Swarm([Biggie]), outbox_bytes=1_000, stream_grace=0.05) as manager:
        closed = Recorder(manager.system, ConnectionClosed)
        async with raw(manager, max_queue=1, close_timeout=0.05) as socket:
            socket.transport.pause_reading()
            for number in range(4):
                await tell(socket, type="big", id=number, stream=True)
            await turns_until(lambda: any(actor._held for actor in gateway_of(manager)._actors()))
            socket.transport.abort()
        await closed.first(ConnectionClosed)
        await turns_until(lambda: gateway_of(manager)._requests == 0)
        assert not gateway_of(manager)._orphans


class Either(Message):
    how: str


class Eventual(Agent, concurrency=50):
    @handles(Either)
    async def either(self, either: Either) -> str:
        self.emit("begun")
        match either.how:
            case "pause":
                await asyncio.sleep(0.002)
            case "hang":
                await asyncio.Event().wait()
            case "fail":
                raise GramiError("on purpose")
        return "done"


class Threaded(Agent, lane="thread", instances=4):
    @handles(Either)
    def either(self, either: Either) -> str:
        self.emit("begun")
        pause = threading.Event()
        while either.how == "hang" and not cancelled():
            pause.wait(0.001)
        if either.how == "fail":
            raise GramiError("on purpose")
        return "done"


STEP = st.tuples(
    st.sampled_from(["at once", "pause", "hang", "fail"]),
    st.sampled_from(["eventual", "threaded"]),
    st.sampled_from(["nothing", "cancel", "timeout", "leave", "abort"]),
    st.booleans(),
    st.sampled_from([None, "k", "l"]),
)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(steps=st.lists(STEP, min_size=1, max_size=12), grace=st.sampled_from([0.0, 0.01]))
def test_every_request_is_counted_out_exactly_once_and_told_of_exactly_once_however_it_ends(
    steps: list[Any], grace: float
) -> None:
    async def client(manager: GrowthManager, mine: list[Any]) -> int:
        sent = 0
        async with raw(manager, close_timeout=0.05) as socket:
            for how, to, end, stream, key in mine:
                sent += 1
                extra: dict[str, Any] = {} if key is None else {"idempotency_key": f"{key} {how} {to}"}
                if end == "timeout" or how == "hang":
                    extra["timeout_ms"] = 15
                await tell(socket, type="either", how=how, to=to, id=sent, stream=stream, **extra)
                if end == "cancel":
                    await tell(socket, type="cancel", request_id=sent)
                elif end == "abort":
                    socket.transport.abort()
                    break
                elif end == "leave":
                    break
                else:
                    while (frame := await heard(socket))["type"] != "response" or frame["id"] != sent:
                        pass
        return sent

    async def scenario() -> None:
        swarm = Swarm(agents=[Eventual, Threaded])
        async with serving(swarm, stream_grace=grace) as manager:
            finished = Recorder(manager.system, RequestFinished, ConnectionClosed)
            most = sum(await asyncio.gather(*(client(manager, steps[number::3]) for number in range(3))))
            await finished.until(lambda events: sum(isinstance(each, ConnectionClosed) for each in events) == 3)
            await turns_until(lambda: gateway_of(manager)._requests == 0)
            assert not gateway_of(manager)._orphans
            told = [each.scope for each in finished.events if isinstance(each, RequestFinished)]
            assert len(set(map(id, told))) == len(told) <= most

    asyncio.run(scenario())


def scoped(*scopes: str) -> Principal:
    return Principal("ann", frozenset(scopes))


async def test_a_result_is_never_given_to_somebody_of_the_same_name_with_other_rights() -> None:
    store = replays.Replays(lambda: 0.0, 0.0)
    async with serving(Swarm([])) as manager:
        request = Request(manager.system.router._cell, manager._gateway, 1, 9.0, Trace(), str)
        store.begin(("ann", scoped("boss").scopes, "k"), b"d", request).set_result("secret")
        assert store.find(("ann", scoped("boss").scopes, "k"), b"d") is not None
        assert store.find(("ann", scoped().scopes, "k"), b"d") is None


async def test_results_that_are_kept_never_take_more_than_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replays, "MOST_BYTES", 10_000)
    store = replays.Replays(lambda: 0.0, 0.0)
    async with serving(Swarm([])) as manager:
        for number in range(100):
            request = Request(manager.system.router._cell, manager._gateway, number, 9.0, Trace(), str)
            store.begin(("ann", frozenset(), str(number)), b"d", request).set_result("x" * 1_000)
            kept = sum(work.size for work in store._works.values())
            assert kept <= 10_000 + 2 * 1_002
        assert store.find(("ann", frozenset(), "99"), b"d") is not None
