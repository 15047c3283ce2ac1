"""Connections in memory: the same behaviour as over WebSockets, on the loop of asyncio and in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import connect as websocket_connect
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, ConnectionClosedOK

from grami_actors import (
    Agent,
    Client,
    Config,
    ConnectionLost,
    GrowthManager,
    Message,
    ServerNotFound,
    Swarm,
    connect,
    handles,
)
from grami_actors.errors import GramiError
from grami_actors.gateway.memory import PATIENCE, ROOM, End, MemoryGateway
from grami_actors.gateway.reception import Reception
from grami_actors.handshake import Settings
from grami_actors.principals import OPERATOR
from grami_actors.simulation.loop import VirtualLoop
from grami_actors.simulation.schedule import Schedule
from grami_actors.simulation.system import SimulatedSystem
from grami_actors.simulation.witness import Witness
from grami_actors.system import ActorSystem
from grami_actors.telemetry import ConnectionClosed as ClosedEvent
from grami_actors.telemetry import ConnectionOpened
from tests.conftest import Recorder, serving, turns_until
from tests.swarms import small_swarm

TRANSPORTS = ("websocket", "memory")
Transport = Literal["websocket", "memory"]


class Hold(Message):
    """Never answered."""


class Flood(Message):
    pieces: int = 100


class Keeper(Agent, concurrency=10):
    """Tells when somebody waits for it, and when nobody does any more."""

    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self.log = log

    @handles(Hold)
    async def hold(self, _: Hold) -> None:
        self.log.append("begun")
        try:
            await asyncio.Event().wait()
        finally:
            self.log.append("ended")


class Flooder(Agent, concurrency=10):
    @handles(Flood)
    async def flood(self, message: Flood) -> str:
        for _ in range(message.pieces):
            self.emit("x" * 1_000)
            await asyncio.sleep(0.01)
        return "whole"


def keeping(log: list[str]) -> Swarm:
    return Swarm(agents=[partial(Keeper, log)])


class Place:
    """A running server, over one of the transports."""

    def __init__(self, system: ActorSystem, gateway: Reception, dial: Callable[..., Client]) -> None:
        self.system = system
        self.gateway = gateway
        self.client = dial


def dialling(dial: Callable[..., Awaitable[Any]], token: Any = None, retry_for: float = 30.0, **other: Any) -> Client:
    return Client(Settings(None, token, retry_for, 5.0, None, other.get("encoding", "json")), dial)


@asynccontextmanager
async def in_memory(swarm: Swarm, system: ActorSystem | None = None, **options: Any) -> AsyncIterator[Place]:
    options.setdefault("drain_timeout", 0.2)
    manager = GrowthManager(swarm, Config(**options), publish=False, system=system)  # for its parts: it is not entered
    async with manager.system as running:
        await swarm.start(running)
        gateway = MemoryGateway(running, swarm.catalog(), manager.config, manager.policy, "0")
        try:
            yield Place(running, gateway, lambda **asked: dialling(gateway.connect, **asked))
        finally:
            await gateway.close()


@asynccontextmanager
async def place(transport: Transport, swarm: Swarm, **options: Any) -> AsyncIterator[Place]:
    async with asyncio.timeout(20):
        if transport == "memory":
            async with in_memory(swarm, **options) as there:
                yield there
        else:
            async with serving(swarm, **options) as manager:
                assert manager._gateway is not None
                yield Place(manager.system, manager._gateway, lambda **asked: connect(manager.url, **asked))


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return request.param


# --- one contract, over both transports ---


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
async def test_a_request_is_answered_in_both_encodings(transport: Transport, encoding: str) -> None:
    async with place(transport, small_swarm()) as there, there.client(encoding=encoding) as grami:
        assert grami.principal == "anonymous"
        assert await grami.request("echo", text="hü") == {"text": "hü", "number": 0}
        assert await grami.request("echo", text="x" * 200_000) == {"text": "x" * 200_000, "number": 0}


async def test_a_stream_has_its_pieces_and_then_the_whole(transport: Transport) -> None:
    async with place(transport, small_swarm()) as there, there.client() as grami:
        frames = [frame async for frame in grami.stream("story", pieces=2)]
        kinds = [frame.type.removeprefix("response.") for frame in frames]
        assert kinds == ["started", "progress", "chunk", "progress", "chunk", "response"]
        assert frames[-1].data == "piece 0 piece 1 "


async def test_an_error_comes_with_its_code(transport: Transport) -> None:
    async with place(transport, small_swarm()) as there, there.client() as grami:
        with pytest.raises(GramiError) as caught:
            await grami.request("fail", how="reject")
        assert caught.value.error_code == "UPSTREAM_ERROR"


async def test_a_request_that_is_cancelled_is_cancelled_in_the_agent(transport: Transport) -> None:
    log: list[str] = []
    async with place(transport, keeping(log)) as there, there.client() as grami:
        asking = asyncio.create_task(grami.request("hold"))
        await turns_until(lambda: log == ["begun"])
        asking.cancel()
        await turns_until(lambda: log == ["begun", "ended"])


async def test_what_is_published_is_heard(transport: Transport) -> None:
    async with place(transport, small_swarm()) as there, there.client() as one, there.client() as other:
        hearing = one.subscribe("news.*")
        first = asyncio.create_task(anext(hearing))
        await turns_until(lambda: any(each.live for each in one._conversation.hearings))
        await other.publish("news.local", {"n": 1})
        frame = await first
        assert (frame.topic, frame.data) == ("news.local", {"n": 1})
        await hearing.aclose()


async def test_a_client_that_is_cut_off_has_its_requests_cancelled(transport: Transport) -> None:
    log: list[str] = []
    async with place(transport, keeping(log)) as there, there.client(retry_for=0) as grami:
        closed = Recorder(there.system, ClosedEvent)
        asking = asyncio.create_task(grami.request("hold"))
        await turns_until(lambda: log == ["begun"])
        assert grami._socket is not None
        grami._socket.transport.abort()
        with pytest.raises(ConnectionLost):
            await asking
        await turns_until(lambda: log == ["begun", "ended"])
        assert (await closed.first(ClosedEvent)).code == 1006


async def test_a_client_whose_connection_is_cut_comes_back_and_hears_what_it_missed(transport: Transport) -> None:
    async with place(transport, small_swarm()) as there, there.client() as one, there.client() as other:
        hearing = one.subscribe("news")
        first = asyncio.create_task(anext(hearing))
        await turns_until(lambda: any(each.live for each in one._conversation.hearings))
        await other.publish("news", 1)
        assert (await first).data == 1
        next(iter(there.gateway._open)).transport.abort()
        await turns_until(lambda: not one._connected.is_set())
        await other.publish("news", 2)
        assert (await anext(hearing)).data == 2
        assert await one.request("echo", text="again") == {"text": "again", "number": 0}
        await hearing.aclose()


async def test_a_server_that_closes_says_so_and_closes_with_1012(transport: Transport) -> None:
    async with place(transport, small_swarm()) as there:
        closed = Recorder(there.system, ClosedEvent)
        async with there.client() as grami:
            socket = grami._socket
            assert socket is not None
            await there.gateway.close()
            assert [event.code for event in closed.events] == [1012]
            await turns_until(lambda: socket.close_code is not None)
            assert socket.close_code == 1012
            with pytest.raises(ServerNotFound):
                await there.client().__aenter__()


async def test_a_server_that_has_closed_has_answered_everybody_and_has_no_connections(transport: Transport) -> None:
    log: list[str] = []
    async with place(transport, keeping(log)) as there, there.client(retry_for=0) as grami:
        asking = asyncio.create_task(grami.request("hold"))
        await turns_until(lambda: log == ["begun"])
        await there.gateway.close()
        assert log == ["begun", "ended"]
        assert not there.gateway._open
        with pytest.raises(GramiError) as caught:
            await asking
        assert caught.value.error_code == "SHUTTING_DOWN"


async def test_a_message_that_is_too_long_closes_with_1009(transport: Transport) -> None:
    async with place(transport, small_swarm(), max_message_bytes=10_000) as there:
        closed = Recorder(there.system, ClosedEvent)
        async with there.client(retry_for=0) as grami:
            socket = grami._socket
            assert socket is not None
            await socket.send("x" * 10_001)
            assert (await closed.first(ClosedEvent)).code == 1009
            await turns_until(lambda: socket.close_code is not None)
            assert socket.close_code == 1009


async def test_a_client_must_say_who_it_is_where_that_is_asked(transport: Transport, tmp_path: Path) -> None:
    options = {"auth": ("keys",), "keys_file": tmp_path / "keys.json", "max_unauthenticated_bytes": 1_000}
    async with place(transport, small_swarm(), **options) as there:
        with pytest.raises(GramiError) as caught:
            await there.client(token="grami_nobody_xyz").__aenter__()
        assert caught.value.error_code == "INVALID_TOKEN"
        token = there.gateway.setting.policy.authority.operator_token
        async with there.client(token=token) as grami:
            assert grami.principal == OPERATOR.name
            assert (await grami.request("echo", text="x" * 2_000))["text"] == "x" * 2_000


# --- one contract for what both ends see of its end ---


@asynccontextmanager
async def pair(transport: Transport) -> AsyncIterator[tuple[Any, Any]]:
    """The two ends of a connection, the second the client's."""
    async with asyncio.timeout(10):
        if transport == "memory":
            here, there = End(), End()
            here.join(there)
            yield here, there
            return
        taken: asyncio.Queue[Any] = asyncio.Queue()

        async def take(connection: Any) -> None:
            taken.put_nowait(connection)
            await connection.wait_closed()

        async with serve(take, "127.0.0.1", 0, close_timeout=1) as server:
            port = server.sockets[0].getsockname()[1]
            async with websocket_connect(f"ws://127.0.0.1:{port}", proxy=None) as client:
                yield await taken.get(), client


async def ending(end: Any) -> tuple[str, int | None, str | None]:
    """How it ended, for this end."""
    while True:
        try:
            await end.recv()
        except ConnectionClosed as closed:
            return type(closed).__name__, end.close_code, end.close_reason


@pytest.mark.parametrize("closer", [0, 1])
@pytest.mark.parametrize("code", [1000, 1001, 1012, 4508])
async def test_both_ends_see_the_same_close(transport: Transport, closer: int, code: int) -> None:
    async with pair(transport) as ends:
        assert ends[closer].close_code is None
        await ends[closer].close(code, "because")
        kind = "ConnectionClosedOK" if code in {1000, 1001} else "ConnectionClosedError"
        assert [await ending(end) for end in ends] == [(kind, code, "because")] * 2
        with pytest.raises(ConnectionClosed):
            await ends[0].send("more")
        await ends[1 - closer].close(1011)  # closing what is closed changes nothing
        assert ends[closer].close_code == code


@pytest.mark.parametrize("cutter", [0, 1])
async def test_both_ends_see_that_it_was_cut(transport: Transport, cutter: int) -> None:
    async with pair(transport) as ends:
        waiting = asyncio.create_task(ending(ends[1 - cutter]))
        await asyncio.sleep(0)
        ends[cutter].transport.abort()
        assert await waiting == ("ConnectionClosedError", 1006, "")
        assert await ending(ends[cutter]) == ("ConnectionClosedError", 1006, "")


async def test_what_was_sent_before_the_close_is_still_read(transport: Transport) -> None:
    async with pair(transport) as (here, there):
        await here.send("text")
        await here.send(b"bytes")
        await here.send(b"also text", text=True)
        await here.close()
        assert [message async for message in there] == ["text", b"bytes", "also text"]


async def test_a_loop_over_messages_raises_when_the_close_is_not_normal(transport: Transport) -> None:
    async with pair(transport) as (here, there):
        await here.send("one")
        await here.close(1011)
        messages = aiter(there)
        assert await anext(messages) == "one"
        with pytest.raises(ConnectionClosedError):
            await anext(messages)


async def test_text_that_is_no_utf8_closes_with_1007(transport: Transport) -> None:
    async with pair(transport) as (here, there):
        await here.send(b"\xff", text=True)
        with pytest.raises(ConnectionClosedError):
            await there.recv()
        assert (await ending(here))[1] == 1007


# --- an end in memory ---


def ends(**options: Any) -> tuple[End, End]:
    here, there = End(), End(**options)
    here.join(there)
    return here, there


async def test_a_writer_is_told_to_wait_for_a_reader_that_does_not_read() -> None:
    here, there = ends()
    assert not here.write(b"x" * ROOM, text=False)
    assert here.write(b"y", text=False)
    draining = asyncio.create_task(here.drain())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not draining.done()
    await there.recv()
    await draining


async def test_whoever_waits_for_room_finds_out_that_the_connection_is_gone() -> None:
    here, there = ends(room=10)
    sending = asyncio.create_task(here.send(b"x" * 11))
    await asyncio.sleep(0)
    there.abort()
    with pytest.raises(ConnectionClosedError):
        await sending


async def test_a_paused_reader_gets_nothing_not_even_the_end() -> None:
    here, there = ends()
    there.pause()
    await here.send("one")
    closing = asyncio.create_task(here.close(4000, "away"))
    reading = asyncio.create_task(there.recv())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not reading.done()
    assert not closing.done()
    with pytest.raises(ConnectionClosedError):
        here.write(b"more", text=False)
    assert (here.close_code, here.last_code) == (None, 4000)
    there.resume()
    assert await reading == "one"
    await closing
    assert await ending(there) == ("ConnectionClosedError", 4000, "away")


async def test_a_paused_reader_reads_on_when_it_may() -> None:
    here, there = ends()
    there.pause()
    reading = asyncio.create_task(there.recv())
    await here.send("one")
    await asyncio.sleep(0)
    there.resume()
    assert await reading == "one"


async def test_a_close_that_waited_for_a_paused_end_is_confirmed_when_that_goes_on() -> None:
    here, there = ends()
    there.pause()
    closings = [asyncio.create_task(here.close(4000)), asyncio.create_task(here.close(4001))]
    await asyncio.sleep(0)
    there.resume()
    await asyncio.gather(*closings)
    assert (here.close_code, there.close_code) == (4000, 4000)


async def test_what_is_unread_is_lost_when_a_connection_is_cut_also_for_a_paused_reader() -> None:
    here, there = ends()
    there.pause()
    await here.send("lost")
    await there.send("lost too")
    reading = asyncio.create_task(ending(there))
    here.abort()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not reading.done()
    there.resume()
    with pytest.raises(ConnectionClosedError):
        await here.recv()
    assert (await reading)[1] == 1006
    assert there._size == here._size == 0


def test_a_close_that_is_never_confirmed_ends_in_time() -> None:
    async def close() -> tuple[int | None, int | None, float]:
        here, there = ends()
        there.pause()
        began = asyncio.get_running_loop().time()
        await here.close(4000)
        return here.close_code, there.close_code, asyncio.get_running_loop().time() - began

    assert VirtualLoop(Schedule(0)).run(close()) == (1006, 1006, PATIENCE)


async def test_a_close_comes_behind_what_is_unread() -> None:
    here, there = ends(room=10)
    here.write(b"x" * 6, text=False)
    here.write(b"y" * 6, text=False)
    closing = asyncio.create_task(here.close())
    await asyncio.sleep(0)
    assert there.close_code is None
    await there.recv()
    assert there.close_code == 1000
    await closing


async def test_two_ends_that_close_at_once_both_get_there() -> None:
    here, there = ends()
    there.pause()
    closing = asyncio.create_task(here.close(4000))
    await asyncio.sleep(0)
    await there.close(1000)
    await closing
    assert (here.close_code, there.close_code) == (1000, 4000)
    assert (here.last_code, there.last_code) == (4000, 1000)


async def test_whoever_waits_for_room_waits_no_longer_when_both_have_closed() -> None:
    here, there = ends(room=10)
    sending = asyncio.create_task(here.send(b"x" * 11))
    await asyncio.sleep(0)
    closing = asyncio.create_task(here.close())
    await asyncio.sleep(0)
    await there.close()
    with pytest.raises(ConnectionClosedOK):
        await sending
    await closing
    assert await there.recv() == b"x" * 11


async def test_a_writer_that_no_longer_waits_for_room_leaves_nothing_behind() -> None:
    here, _ = ends(room=10)
    sending = asyncio.create_task(here.send(b"x" * 11))
    await asyncio.sleep(0)
    sending.cancel()
    await asyncio.wait((sending,))
    assert not here._waiters


async def test_a_reader_that_is_cancelled_loses_nothing() -> None:
    here, there = ends()
    reading = asyncio.create_task(there.recv())
    await asyncio.sleep(0)
    await here.send("kept")
    reading.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await reading
    assert await there.recv() == "kept"


@given(
    sizes=st.tuples(*[st.lists(st.integers(0, 40), max_size=30)] * 2),
    room=st.integers(1, 60),
    seed=st.integers(1, 1_000),
)
@settings(max_examples=60, deadline=None)
def test_all_messages_come_exactly_once_and_in_order(sizes: tuple[list[int], list[int]], room: int, seed: int) -> None:
    here, there = End(room), End(room)
    here.join(there)
    both = ((here, there), (there, here))
    messages = [[number.to_bytes(1) * size for number, size in enumerate(each)] for each in sizes]

    async def say(end: End, mine: list[bytes]) -> None:
        for message in mine:
            await end.send(message)
            assert end._peer._size <= room

    async def hear(end: End, many: int) -> list[Any]:
        return [await end.recv() for _ in range(many)]

    async def talk() -> list[Any]:
        said = [say(end, mine) for (end, _), mine in zip(both, messages, strict=True)]
        heard = [hear(end, len(theirs)) for (_, end), theirs in zip(both, messages, strict=True)]
        return (await asyncio.gather(*said, *heard))[2:]

    assert VirtualLoop(Schedule(seed)).run(talk()) == messages


# --- the gateway ---


async def test_two_hundred_clients_are_served() -> None:
    async with asyncio.timeout(20), in_memory(small_swarm()) as there, contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(there.client()) for _ in range(200)]
        answers = await asyncio.gather(
            *(client.request("echo", text=str(number)) for number, client in enumerate(clients))
        )
        assert [answer["text"] for answer in answers] == [str(number) for number in range(200)]
        assert len(list(there.gateway.connections())) == 200


async def test_a_client_goes_on_with_the_next_server() -> None:
    gateways: list[MemoryGateway] = []

    async def dial(encoding: Any) -> End:
        return await gateways[-1].connect(encoding)

    async with asyncio.timeout(20):
        async with in_memory(small_swarm()) as first:
            gateways.append(first.gateway)  # type: ignore[arg-type]
            grami = await dialling(dial).__aenter__()
            assert grami.url == "memory"
        async with in_memory(small_swarm()) as second:
            gateways.append(second.gateway)  # type: ignore[arg-type]
            opened = Recorder(second.system, ConnectionOpened)
            assert (await grami.request("echo", text="x"))["text"] == "x"
            assert len(opened.events) == 1
            await grami.__aexit__(None, None, None)


async def test_a_gateway_takes_no_more_than_its_limit() -> None:
    async with in_memory(small_swarm(), max_connections=1) as there, there.client() as one:
        with pytest.raises(ServerNotFound, match="1 connections are open"):
            await there.client().__aenter__()
        await one.ping()


async def test_nobody_may_send_much_before_it_is_known_who_it_is(tmp_path: Path) -> None:
    options = {"auth": ("keys",), "keys_file": tmp_path / "keys.json", "max_unauthenticated_bytes": 1_000}
    async with in_memory(small_swarm(), **options) as there:
        assert isinstance(there.gateway, MemoryGateway)
        nobody = await there.gateway.connect()
        await nobody.send("x" * 1_001)
        assert (await ending(nobody))[1] == 1009
        operator = await there.gateway.connect(principal=OPERATOR)
        await operator.send(json.dumps({"type": "echo", "text": "x" * 1_001}))
        assert json.loads(await operator.recv())["status"] == "success"
        await operator.close()


async def test_a_handshake_can_have_said_who_it_is() -> None:
    async with in_memory(small_swarm()) as there:
        assert isinstance(there.gateway, MemoryGateway)
        end = await there.gateway.connect(principal=OPERATOR, peer="the operator")
        await end.send(json.dumps({"type": "admin.connections", "id": 1}))
        [found] = json.loads(await end.recv())["data"]["connections"]
        assert (found["principal"], found["peer"]) == (OPERATOR.name, "the operator")
        await end.close()


# --- in virtual time ---

PASSIVE = (MemoryGateway,)


def simulated(seed: int, script: Callable[[Place], Awaitable[Any]], swarm: Swarm, **options: Any) -> Any:
    schedule = Schedule(seed)
    loop = VirtualLoop(schedule, passive=PASSIVE)

    async def main() -> Any:
        async with in_memory(swarm, SimulatedSystem(loop, schedule.rng, Witness()), **options) as there:
            return await script(there)

    return loop.run(main())


def passive_timers() -> int:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return sum(timer.passive and not timer.cancelled() for _, _, timer in loop._timers)


def test_the_look_around_is_a_passive_timer_that_there_only_is_while_there_are_connections() -> None:
    async def script(there: Place) -> list[int]:
        counts = [passive_timers()]
        async with there.client() as one:
            async with there.client():
                counts.append(passive_timers())
            await asyncio.sleep(5)
            await one.ping()
            counts.append(passive_timers())
        await turns_until(lambda: not there.gateway._open)
        await asyncio.sleep(0.01)
        return [*counts, passive_timers()]

    assert simulated(0, script, small_swarm()) == [0, 1, 1, 0]


def test_a_client_that_does_not_read_is_closed_with_4508_in_virtual_time() -> None:
    async def script(there: Place) -> tuple[int, str | None, float]:
        closed = Recorder(there.system, ClosedEvent)
        assert isinstance(there.gateway, MemoryGateway)
        end = await there.gateway.connect()
        began = asyncio.get_running_loop().time()
        end.pause()
        for number in range(3):
            await end.send(json.dumps({"type": "flood", "pieces": 200, "id": number, "stream": True}))
        event = await closed.first(ClosedEvent)
        end.resume()
        took = asyncio.get_running_loop().time() - began
        return event.code, (await ending(end))[0], took

    code, how, took = simulated(0, script, Swarm(agents=[Flooder]), outbox_bytes=65_536)
    assert (code, how) == (4508, "ConnectionClosedError")
    assert 2.0 < took < 10.0


def test_a_client_that_reads_slowly_gets_every_answer() -> None:
    async def script(there: Place) -> list[Any]:
        assert isinstance(there.gateway, MemoryGateway)
        end = await there.gateway.connect()
        for number in range(20):
            await end.send(json.dumps({"type": "echo", "text": "x" * 30_000, "id": number}))
        answers = []
        for _ in range(20):
            end.pause()
            await asyncio.sleep(0.3)
            end.resume()
            answers.append(json.loads(await end.recv())["id"])
        await end.close()
        return answers

    assert sorted(simulated(3, script, small_swarm())) == list(range(20))


def test_a_client_that_never_says_who_it_is_is_sent_away_in_time(tmp_path: Path) -> None:
    async def script(there: Place) -> tuple[Any, float]:
        assert isinstance(there.gateway, MemoryGateway)
        end = await there.gateway.connect()
        began = asyncio.get_running_loop().time()
        return (await ending(end))[1], asyncio.get_running_loop().time() - began

    options = {"auth": ("keys",), "keys_file": tmp_path / "keys.json", "auth_timeout": 5.0}
    code, took = simulated(0, script, small_swarm(), **options)
    assert code == 4408
    assert 5.0 <= took <= 6.0


def tapped(end: End, name: str, log: list[tuple[str, bytes]]) -> End:
    """Writes down every frame that comes to an end."""
    take = end._take

    def taking(frame: bytes, *, text: bool) -> bool:
        log.append((name, bytes(frame)))
        return take(frame, text=text)

    end._take = taking  # type: ignore[method-assign]
    return end


def frames_of(seed: int) -> list[tuple[str, bytes]]:
    log: list[tuple[str, bytes]] = []

    async def script(there: Place) -> None:
        numbers = itertools.count()

        async def dial(encoding: Any) -> End:
            assert isinstance(there.gateway, MemoryGateway)
            return tapped(await there.gateway.connect(encoding), f"client {next(numbers)}", log)

        async def play(grami: Client) -> None:
            hearing = grami.subscribe("news")
            first = asyncio.create_task(anext(hearing))
            await asyncio.gather(*(grami.request("async_echo", text=str(number)) for number in range(3)))
            await asyncio.sleep(0.1)
            await grami.publish("news", 1)
            await first
            assert [frame async for frame in grami.stream("story", pieces=2)]
            await hearing.aclose()

        async with dialling(dial) as one, dialling(dial) as other:
            await asyncio.gather(play(one), play(other))
            next(iter(there.gateway._open)).transport.abort()
            await asyncio.sleep(1)
            for grami in (one, other):
                assert (await grami.request("echo", text="again"))["text"] == "again"
        assert next(numbers) == 3  # one of them came again

    random.seed(seed)  # the backoff of a client
    simulated(seed, script, small_swarm())
    return log


@pytest.mark.slow
def test_the_same_seed_gives_the_same_frames() -> None:
    runs = [frames_of(seed) for seed in range(100)]
    assert [frames_of(seed) for seed in range(100)] == runs
    assert len({tuple(run) for run in runs}) > 50


# --- what ends normally ---


async def test_a_loop_over_messages_ends_quietly_at_a_normal_close() -> None:
    here, there = ends()
    await here.close(1001)
    assert [message async for message in there] == []
    with pytest.raises(ConnectionClosedOK):
        await there.recv()
