"""The end of a server, and what is told of each request: nobody is left without an answer or a code."""

from __future__ import annotations

import asyncio
import socket as sockets
import sys
import urllib.error
import urllib.request
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trustme
from websockets.exceptions import ConnectionClosed, InvalidStatus

from grami_actors import Agent, Message, Swarm, handles
from grami_actors.gateway import connection as connections
from grami_actors.gateway import writing
from grami_actors.telemetry import Doubted, LoopLagged, Reloaded, RequestFinished
from tests.conftest import Gate, Recorder, heard, raw, serving, tell, turns_until
from tests.swarms import small_swarm
from tests.test_tracing import is_child, traced


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


async def rest(socket: Any) -> tuple[list[dict[str, Any]], int]:
    """What still comes, and the code of the close."""
    frames = []
    try:
        while True:
            frames.append(await heard(socket))
    except ConnectionClosed:
        return frames, socket.close_code


# --- closing ---


async def test_a_closing_server_says_so_everywhere_before_it_stops_to_listen() -> None:
    gate = Gate()
    async with serving(small_swarm(gate), drain_timeout=10) as manager, raw(manager) as one, raw(manager) as two:
        await tell(one, type="hello", id="h")
        assert (await heard(one))["type"] == "welcome"
        await tell(one, type="slow", id=1, text="x")
        await tell(two, type="slow", text="y")
        await turns_until(lambda: manager._gateway._requests == 2)  # type: ignore[union-attr]
        closing = [asyncio.create_task(manager.close()) for _ in range(2)]  # twice is once
        goaway = await heard(one)
        assert (goaway["type"], goaway["close_in_ms"]) == ("goaway", 10_000)
        base = manager.url.replace("ws://", "http://").removesuffix("/ws")
        assert await asyncio.to_thread(status, f"{base}/readyz") == 503
        assert await asyncio.to_thread(status, f"{base}/livez") == 200
        with pytest.raises(InvalidStatus) as refused:
            async with raw(manager):
                pass
        assert refused.value.response.status_code == 503
        await tell(one, type="echo", id=2, text="late")
        assert (await heard(one))["error_code"] == "SHUTTING_DOWN"
        gate.opened.set()
        frames, code = await rest(one)
        assert [(each["id"], each["data"], code) for each in frames] == [(1, "x", 1012)]
        assert await rest(two) == ([{"status": "success", "data": "y"}], 1012)
        await asyncio.gather(*closing)
        await manager.close()


async def test_a_handshake_that_never_ends_does_not_hold_up_a_closing_server() -> None:
    async with serving(small_swarm(), drain_timeout=0.1) as manager:
        _, writer = await asyncio.open_connection("127.0.0.1", manager.port)
        writer.write(b"GET /ws HTTP/1.1\r\n")
        await writer.drain()
        await turns_until(lambda: manager._gateway._sockets.open == 1)  # type: ignore[union-attr]
        began = manager.system.now()
        await manager.close()
        assert manager.system.now() - began < 2
        writer.close()


async def test_a_reader_that_takes_its_time_does_not_hold_up_a_closing_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "STALL", 60.0)  # as if it read a little now and then
    monkeypatch.setattr(connections, "FLUSH", 0.05)
    monkeypatch.setattr(writing, "FLUSH", 0.05)

    class Big(Message):
        pass

    class Biggie(Agent):
        @handles(Big)
        def big(self, _: Big) -> str:
            return "x" * 3_000_000

    async with (
        serving(Swarm([Biggie]), outbox_bytes=1_000, drain_timeout=0.1) as manager,
        raw(manager, max_queue=1, close_timeout=0.05) as socket,
    ):
        socket.transport.pause_reading()
        [actor] = manager._gateway._actors()  # type: ignore[union-attr]
        for number in range(4):
            await tell(socket, type="big", id=number)
        await turns_until(lambda: actor._held)
        began = manager.system.now()
        await manager.close()
        assert manager.system.now() - began < 2


async def test_a_stream_without_a_client_does_not_hold_up_a_closing_server() -> None:
    gate = Gate()
    async with serving(small_swarm(gate), drain_timeout=0.1, stream_grace=60) as manager:
        async with raw(manager) as socket:
            await tell(socket, type="slow", id=1, stream=True)
            await gate.until_entered()
        gateway: Any = manager._gateway
        await turns_until(lambda: gateway._orphans)
        await manager.close()
        assert not gateway._orphans


@pytest.mark.slow
async def test_of_a_thousand_clients_with_work_in_flight_each_gets_its_answers_and_a_code() -> None:
    gate = Gate()
    async with AsyncExitStack() as stack:
        manager = await stack.enter_async_context(serving(small_swarm(gate), drain_timeout=1, accept_rate=0))
        clients: list[Any] = []
        for _ in range(10):
            opened = (stack.enter_async_context(raw(manager, ping_interval=None)) for _ in range(100))
            clients.extend([await each for each in opened])
        for number, client in enumerate(clients):
            await tell(client, type="slow", id="held", text="x")
            await tell(client, type="echo", id="quick", text=str(number))
            await tell(client, type="story", id="story", pieces=2, stream=True)
        gateway: Any = manager._gateway
        await turns_until(lambda: gateway._accepted == 1_000 and gateway._requests >= 1_000)
        began = manager.system.now()
        closing = asyncio.create_task(manager.close())
        for frames, code in await asyncio.gather(*map(rest, clients)):
            ends = {frame["id"]: frame.get("error_code", "ok") for frame in frames if "status" in frame}
            assert code == 1012
            assert set(ends) == {"held", "quick", "story"}
            assert ends["held"] == "SHUTTING_DOWN"
            assert ends["quick"] in {"ok", "SHUTTING_DOWN"}
        await closing
        assert manager.system.now() - began < 20


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel shares connections out on Linux only")
async def test_two_servers_share_one_port() -> None:
    with sockets.socket() as placeholder:
        placeholder.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEPORT, 1)
        placeholder.bind(("127.0.0.1", 0))
        port = placeholder.getsockname()[1]
        async with (
            serving(small_swarm(), port=port, reuse_port=True) as one,
            serving(small_swarm(), port=port, reuse_port=True) as two,
        ):
            async with AsyncExitStack() as stack:
                for number in range(40):
                    client = await stack.enter_async_context(raw(one))
                    await tell(client, type="echo", text=str(number))
                    assert (await heard(client))["data"]["text"] == str(number)
                taken = [manager._gateway._accepted for manager in (one, two)]  # type: ignore[union-attr]
                assert sum(taken) == 40
                assert all(taken)
            await one.close()
            async with raw(two) as client:
                await tell(client, type="echo", text="left")
                assert (await heard(client))["data"]["text"] == "left"


# --- what is told ---


@pytest.mark.parametrize(
    ("fields", "to"),
    [
        ({"type": "echo", "text": "x"}, "echoer-"),
        ({"type": "async_echo", "text": "x", "idempotency_key": "k"}, "async_echoer"),
        ({"type": "tool_call", "to": "tool:double", "arguments": {"number": 2}}, "tool:double"),
        ({"type": "story", "stream": True}, "teller"),
    ],
)
async def test_a_finished_request_tells_who_handled_it_and_where_its_time_went(fields: Any, to: str) -> None:
    async with serving(small_swarm()) as manager, raw(manager) as socket:
        finished = Recorder(manager.system, RequestFinished)
        await tell(socket, id=1, **fields)
        while (await heard(socket))["type"] != "response":
            pass
        event = await finished.first(RequestFinished)
        assert event.to.startswith(to)
        assert event.queue_wait > 0 < event.handling
        assert event.queue_wait + event.handling <= event.duration
        assert (event.message_type, event.outcome, event.principal) == (fields["type"], "ok", "anonymous")


async def test_a_replay_was_handled_by_nobody() -> None:
    async with serving(small_swarm()) as manager, raw(manager) as socket:
        finished = Recorder(manager.system, RequestFinished)
        for _ in range(2):
            await tell(socket, id=1, type="echo", text="x", idempotency_key="k")
            await heard(socket)
        first, again = finished.events
        assert (first.to[:7], again.to, again.queue_wait, again.handling) == ("echoer-", "", 0.0, 0.0)


async def test_each_request_is_told_of_once_whether_it_is_accepted_or_refused() -> None:
    async with serving(small_swarm(), max_inflight=1) as manager, raw(manager) as socket:
        finished = Recorder(manager.system, RequestFinished)
        await tell(socket, id=1, type="slow")
        for fields in ({"type": "echo", "text": 5}, {"type": "nope"}, {"type": "echo", "text": "x"}, {"type": "slow"}):
            await tell(socket, id=2, **fields)
            await heard(socket)
        await tell(socket, type="cancel", request_id=1)
        assert (await heard(socket))["error_code"] == "CANCELLED"
        codes = ["VALIDATION_FAILED", "UNKNOWN_TYPE", "TOO_MANY_INFLIGHT", "TOO_MANY_INFLIGHT", "CANCELLED"]
        assert [event.outcome for event in finished.events] == codes


@pytest.mark.parametrize("key", [None, "k"])
async def test_a_traceparent_becomes_one_trace_from_client_to_tool(key: str | None) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    extra = {} if key is None else {"idempotency_key": key}
    async with serving(small_swarm()) as manager, raw(manager) as socket:
        with traced(manager.system) as spans:
            call = {"type": "tool_call", "to": "tool:double", "arguments": {"number": 2}}
            await tell(socket, id=1, meta={"traceparent": parent}, **call, **extra)
            await heard(socket)
            await turns_until(lambda: len(spans.names()) >= 2)
            [server] = [span for span in spans.all() if span.name == "grami tool_call"]
            [tool] = [span for span in spans.all() if span.name != "grami tool_call"]
        assert f"{server.context.trace_id:032x}-{server.parent.span_id:016x}" == parent[3:-3]
        assert is_child(tool, server)


async def test_how_late_the_loop_is_is_told() -> None:
    async with serving(small_swarm()) as manager:
        assert (await Recorder(manager.system, LoopLagged).first(LoopLagged)).seconds >= 0


# --- certificates ---


async def test_a_changed_certificate_is_picked_up_and_a_broken_one_is_told_of_once(tmp_path: Path) -> None:
    authority = trustme.CA()
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def put() -> None:
        leaf = authority.issue_cert("127.0.0.1")
        key.write_bytes(leaf.private_key_pem.bytes())
        key.chmod(0o600)
        cert.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))

    put()
    # A short timeout has the server look often.
    async with serving(small_swarm(), tls_cert=cert, tls_key=key, message_timeout=0.04) as manager:
        told = Recorder(manager.system, Reloaded, Doubted, LoopLagged)
        before = manager._gateway.certificates._newest  # type: ignore[union-attr]
        put()
        await told.first(Reloaded)
        good = manager._gateway.certificates._newest  # type: ignore[union-attr]
        assert good is not before
        told.events.clear()
        cert.write_text("nothing")
        await told.first(Doubted)
        await told.until(lambda events: sum(isinstance(each, LoopLagged) for each in events) > 5)
        doubts = [each.text for each in told.events if isinstance(each, Doubted)]
        assert len(doubts) == 1
        assert "certificates not reloaded" in doubts[0]
        assert manager._gateway.certificates._newest is good  # type: ignore[union-attr]
