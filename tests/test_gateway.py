"""The gateway over real sockets: docs/protocol.md as a client sees it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket as sockets
import struct
import sys
from typing import Any

import msgspec
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from grami_actors import Agent, Message, RestartPolicy, ScriptedModel, Swarm, handles
from grami_actors.telemetry import (
    ActorFailed,
    ActorPaused,
    ActorRestarted,
    ConnectionAuthenticated,
    DeadLetter,
    InternalError,
    RequestFinished,
    ToolCalled,
)
from grami_actors.telemetry import ConnectionClosed as ClosedEvent
from grami_actors.telemetry import ConnectionOpened as OpenedEvent
from tests.conftest import Gate, Recorder, heard, raw, serving, tell
from tests.swarms import small_swarm


class Hello(Message, tag="hello_there"):
    """A message that hurts nobody."""


async def answer(socket: Any, **message: Any) -> dict[str, Any]:
    await tell(socket, **message)
    return await heard(socket)


# --- plain mode ---


async def test_a_plain_request_is_answered_with_exactly_status_and_data() -> None:
    async with serving(small_swarm()) as manager, raw(manager) as socket:
        assert await answer(socket, type="echo", text="hello") == {
            "status": "success",
            "data": {"text": "hello", "number": 0},
        }


async def test_a_plain_error_has_exactly_status_error_code_and_message() -> None:
    async with serving(small_swarm()) as manager, raw(manager) as socket:
        assert await answer(socket, type="echo", text=5) == {
            "status": "error",
            "error_code": "VALIDATION_FAILED",
            "message": "Expected `str`, got `int` (at $.text)",
        }


async def test_plain_answers_come_in_request_order_even_when_the_work_overlaps() -> None:
    gate = Gate()
    async with serving(small_swarm(gate)) as manager, raw(manager) as socket:
        await tell(socket, type="slow", text="first")
        await tell(socket, type="echo", text="second")
        await socket.send("not json")
        await tell(socket, type="echo", text="fourth")
        handled = Recorder(manager.system, RequestFinished)
        await handled.until(lambda events: len(events) == 3)
        gate.opened.set()
        answers = [await heard(socket) for _ in range(4)]
        assert [each.get("error_code", each.get("data")) for each in answers] == [
            "first",
            {"text": "second", "number": 0},
            "INVALID_JSON",
            {"text": "fourth", "number": 0},
        ]


async def test_a_plain_client_never_gets_a_frame_that_it_did_not_ask_for() -> None:
    async with serving(small_swarm()) as manager, raw(manager) as socket:
        await answer(socket, type="story", pieces=3)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await socket.recv()


# --- envelope mode ---


async def test_an_id_is_echoed_verbatim_and_the_answer_is_one_response_frame() -> None:
    async with serving(small_swarm()) as manager, raw(manager) as socket:
        for request_id in ("a", "", 7, -1, "ü" * 128):
            frame = await answer(socket, type="echo", text="x", id=request_id)
            assert frame.pop("duration_ms") >= 0
            assert frame == {
                "type": "response",
                "id": request_id,
                "seq": 1,
                "status": "success",
                "data": {"text": "x", "number": 0},
            }


async def test_a_stream_has_started_progress_and_chunks_numbered_from_one_and_one_terminal() -> None:
    async with serving(small_swarm()) as manager, raw(manager) as socket:
        await tell(socket, type="story", pieces=3, id="s", stream=True)
        frames = [await heard(socket) for _ in range(8)]
        assert [frame["seq"] for frame in frames] == list(range(1, 9))
        assert [frame["type"] for frame in frames] == [
            "response.started",
            *["response.progress", "response.chunk"] * 3,
            "response",
        ]
        assert frames[0]["from"] == "teller"
        assert "".join(frame["data"] for frame in frames if frame["type"] == "response.chunk") == frames[-1]["data"]


async def test_a_request_can_name_its_destination() -> None:
    async with serving(small_swarm()) as manager, raw(manager) as socket:
        frame = await answer(socket, type="tool_call", to="tool:double", arguments={"number": 4, "times": 2}, id=1)
        assert frame["data"] == 16
        frame = await answer(socket, type="echo", to="echoer-2", text="you", id=2)
        assert frame["data"]["text"] == "you"
        frame = await answer(socket, type="echo", to="nobody", text="you", id=3)
        assert (frame["error_code"], frame["retryable"]) == ("DESTINATION_NOT_FOUND", False)
        frame = await answer(socket, type="echo", to="teller", text="you", id=4)
        assert frame["error_code"] == "UNKNOWN_TYPE"


async def test_a_deadline_ends_the_request_and_frees_its_id() -> None:
    async with serving(small_swarm()) as manager, raw(manager) as socket:
        frame = await answer(socket, type="slow", id="d", timeout_ms=20)
        assert (frame["error_code"], frame["retryable"]) == ("DEADLINE_EXCEEDED", True)
        assert (await answer(socket, type="echo", text="x", id="d"))["status"] == "success"


async def test_cancel_ends_the_request_with_its_one_terminal_frame() -> None:
    gate = Gate()
    async with serving(small_swarm(gate)) as manager, raw(manager) as socket:
        await tell(socket, type="slow", id="c")
        await gate.until_entered()
        await tell(socket, type="cancel", request_id="c", id="k")
        frames = {frame["id"]: frame for frame in [await heard(socket), await heard(socket)]}
        assert frames["c"]["error_code"] == "CANCELLED"
        assert frames["k"]["data"] == {"cancelled": True}
        await tell(socket, type="cancel", request_id="c")
        assert (await answer(socket, type="cancel", request_id="c", id="k"))["data"] == {"cancelled": False}
        assert manager.system.table.cells["holder"].working == 0


async def test_a_client_that_goes_away_cancels_what_it_asked_for() -> None:
    gate = Gate()
    async with serving(small_swarm(gate)) as manager:
        async with raw(manager) as socket:
            await tell(socket, type="slow")
            await gate.until_entered()
        closed = Recorder(manager.system, ClosedEvent)
        await closed.until(lambda _: not manager.system.table.cells["holder"].working)
        assert not [name for name in manager.system.table.cells if name.startswith("connection")]


async def test_an_id_in_flight_cannot_be_used_twice() -> None:
    gate = Gate()
    async with serving(small_swarm(gate)) as manager, raw(manager) as socket:
        await tell(socket, type="slow", text="one", id="same")
        frame = await answer(socket, type="echo", text="two", id="same")
        assert frame["error_code"] == "DUPLICATE_ID"
        gate.opened.set()
        assert (await heard(socket))["data"] == "one"


async def test_too_many_requests_in_flight_are_refused_at_once_and_the_rest_go_on() -> None:
    gate = Gate()
    async with serving(small_swarm(gate), max_inflight=3) as manager, raw(manager) as socket:
        for number in range(4):
            await tell(socket, type="slow", text=str(number), id=number)
        refused = await heard(socket)
        assert (refused["id"], refused["error_code"], refused["retryable"]) == (3, "TOO_MANY_INFLIGHT", True)
        gate.opened.set()
        assert sorted([(await heard(socket))["id"] for _ in range(3)]) == [0, 1, 2]


async def test_the_whole_server_has_a_limit_too() -> None:
    gate = Gate()
    async with serving(small_swarm(gate), max_requests=1) as manager, raw(manager) as one, raw(manager) as two:
        await tell(one, type="slow", text="one", id=1)
        await gate.until_entered()
        assert (await answer(two, type="echo", text="x", id=1))["error_code"] == "RESOURCE_EXHAUSTED"
        gate.opened.set()
        assert (await heard(one))["data"] == "one"
        assert (await answer(two, type="echo", text="x", id=1))["status"] == "success"


# --- control messages ---


async def test_ping_hello_and_describe_are_answered() -> None:
    async with serving(small_swarm()) as manager, raw(manager) as socket:
        assert await answer(socket, type="ping", id=7) == {"type": "pong", "id": 7}
        assert await answer(socket, type="ping") == {"type": "pong"}
        welcome = await answer(socket, type="hello", protocol=1, client={"name": "test"})
        assert (welcome["type"], welcome["principal"], welcome["protocol"]) == ("welcome", "anonymous", 1)
        assert welcome["limits"] == {
            "max_message_bytes": 1_048_576,
            "max_nesting": 64,
            "max_inflight": 64,
            "max_subscriptions": 128,
            "max_timeout_ms": 600_000,
        }
        assert (await answer(socket, type="hello", protocol=99, id=1))["error_code"] == "UNSUPPORTED_VERSION"
        offered = (await answer(socket, type="describe", id="d"))["data"]
        assert {each["type"] for each in offered["types"]} >= {"echo", "slow", "story", "tool_call"}
        tools = {each["name"]: each for each in offered["tools"]}
        schema = tools["double"]["parameters"]["$defs"]["double"]
        assert schema["properties"] == {"number": {"type": "integer"}, "times": {"type": "integer", "default": 1}}
        assert schema["required"] == ["number"]


@pytest.mark.parametrize("kind", ["job.nothing", "admin.nothing", "grami.x"])
async def test_what_is_reserved_but_not_there_says_so(kind: str) -> None:
    async with serving(small_swarm()) as manager, raw(manager) as socket:
        assert (await answer(socket, type=kind, id=1))["error_code"] == "UNSUPPORTED_FEATURE"


# --- bad input ---

DEEP = 100_000
BAD = {
    "not json": ("{", "INVALID_JSON"),
    "nothing": ("", "INVALID_JSON"),
    "an array": ("[1, 2]", "INVALID_MESSAGE"),
    "a string": ('"hello"', "INVALID_MESSAGE"),
    "null": ("null", "INVALID_MESSAGE"),
    "no type": ("{}", "INVALID_MESSAGE"),
    "a type that is no string": ('{"type": 5}', "INVALID_MESSAGE"),
    "an empty type": ('{"type": ""}', "INVALID_MESSAGE"),
    "an unknown type": ('{"type": "nonsense"}', "UNKNOWN_TYPE"),
    "a reserved type": ('{"type": "response"}', "UNSUPPORTED_FEATURE"),
    "a wrong field type": ('{"type": "echo", "text": {}}', "VALIDATION_FAILED"),
    "a missing field": ('{"type": "echo"}', "VALIDATION_FAILED"),
    "a stream without id": ('{"type": "story", "stream": true}', "INVALID_MESSAGE"),
    "a deadline of zero": ('{"type": "echo", "text": "x", "timeout_ms": 0}', "INVALID_MESSAGE"),
    "nesting in an unknown field": (
        '{"type": "echo", "text": "x", "y": ' + "[" * DEEP + "]" * DEEP + "}",
        "INVALID_JSON",
    ),
    "nesting in a known field": ('{"type": "echo", "text": ' + "[" * DEEP + "]" * DEEP + "}", "INVALID_JSON"),
    "nesting that never ends": ('{"a":' * DEEP, "INVALID_JSON"),
    "a number too large": ('{"type": "echo", "text": "x", "number": 1' + "0" * 5_000 + "}", "VALIDATION_FAILED"),
    "a broken escape": ('{"type": "echo", "text": "\\ud800"}', "INVALID_JSON"),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_message_gets_its_code_and_hurts_nobody(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    text, code = BAD[name]
    async with serving(small_swarm()) as manager, raw(manager) as bad, raw(manager) as other:
        await bad.send(text)
        refused = await heard(bad)
        assert (set(refused), refused["error_code"]) == ({"status", "error_code", "message"}, code)
        assert len(refused["message"]) < 500
        assert (await answer(bad, type="echo", text="still here"))["status"] == "success"
        assert (await answer(other, type="echo", text="unharmed"))["status"] == "success"
    assert capfd.readouterr() == ("", "")


async def test_a_wrong_message_with_an_id_is_answered_under_that_id() -> None:
    async with serving(small_swarm()) as manager, raw(manager) as socket:
        frame = await answer(socket, type="echo", text=5, id="mine")
        assert (frame["id"], frame["param"], frame["retryable"]) == ("mine", "$.text", False)
        frame = await answer(socket, type="echo", id="mine")
        assert (frame["id"], frame["param"]) == ("mine", "$.text")
        frame = await answer(socket, type="ehco", id="mine")
        assert "did you mean 'echo'" in frame["message"]


async def test_a_binary_frame_is_an_error_and_a_second_one_closes() -> None:
    async with serving(small_swarm()) as manager, raw(manager) as socket:
        await socket.send(b"\x00")
        assert (await heard(socket))["error_code"] == "UNSUPPORTED_ENCODING"
        assert (await answer(socket, type="echo", text="x"))["status"] == "success"
        await socket.send(b"\x00")
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1003


async def test_a_frame_of_ten_megabytes_is_closed_with_1009_and_the_others_go_on() -> None:
    async with serving(small_swarm()) as manager, raw(manager) as other:
        reader, writer = await asyncio.open_connection("127.0.0.1", manager.port)
        key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        head = f"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{key}\r\n"
        writer.write(head.encode())
        assert b"101" in await reader.readuntil(b"\r\n\r\n")
        # A text frame, masked, that announces ten million bytes (RFC 6455 section 5.2).
        writer.write(b"\x81\xff" + struct.pack("!Q", 10_000_000) + b"mask" + b"x" * 100_000)
        opcode, length = await reader.readexactly(2)
        assert opcode == 0x88
        assert struct.unpack("!H", (await reader.readexactly(length))[:2]) == (1009,)
        writer.close()
        assert (await answer(other, type="echo", text="unharmed"))["status"] == "success"


async def test_invalid_utf8_in_an_unknown_field_closes_with_1007() -> None:
    async with serving(small_swarm()) as manager, raw(manager) as bad, raw(manager) as other:
        await bad.send(b'{"type": "echo", "text": "x", "unknown": "\xff"}', text=True)
        with pytest.raises(ConnectionClosed) as closed:
            await bad.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1007
        assert (await answer(other, type="echo", text="unharmed"))["status"] == "success"


async def test_a_client_that_sends_only_bad_messages_is_cut_off() -> None:
    async with serving(small_swarm()) as manager, raw(manager) as socket:
        for _ in range(100):
            await socket.send("bad")
        for _ in range(100):
            assert (await heard(socket))["error_code"] == "INVALID_JSON"
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4429


async def test_rude_disconnects_leave_no_traceback_and_nothing_behind(capfd: pytest.CaptureFixture[str]) -> None:
    async with serving(small_swarm()) as manager:
        closed = Recorder(manager.system, ClosedEvent)
        for _ in range(20):
            async with raw(manager) as socket:
                await tell(socket, type="echo", text="x")
                # RST instead of a goodbye.
                plain = socket.transport.get_extra_info("socket")
                plain.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, struct.pack("ii", 1, 0))
                socket.transport.abort()
        await closed.until(lambda events: len(events) == 20)
        assert [name for name in manager.system.table.cells if name.startswith("connection")] == []
    assert capfd.readouterr() == ("", "")


# --- failures behind the gateway ---


@pytest.mark.parametrize(
    ("how", "code", "words"),
    [
        ("raise", "AGENT_EXECUTION_FAILED", "ValueError: on purpose"),
        ("exit", "AGENT_CRASHED", "died with the message in hand"),
        ("reject", "UPSTREAM_ERROR", "the service is away"),
        ("unfit", "AGENT_EXECUTION_FAILED", "cannot be sent as JSON"),
    ],
)
async def test_every_failure_of_an_agent_has_its_code(how: str, code: str, words: str) -> None:
    async with serving(small_swarm()) as manager, raw(manager) as socket:
        frame = await answer(socket, type="fail", how=how, id=1)
        assert frame["error_code"] == code
        assert words in frame["message"]
        assert "Traceback" not in frame["message"]
        assert (await answer(socket, type="echo", text="x", id=1))["status"] == "success"


async def test_an_internal_error_shows_a_reference_and_nothing_else() -> None:
    async with serving(small_swarm()) as manager, raw(manager) as socket:
        internal = Recorder(manager.system, InternalError)
        frame = await answer(socket, type="fail", how="internal", id=1)
        event = await internal.first(InternalError)
        assert frame["error_code"] == "INTERNAL_ERROR"
        assert event.error_ref in frame["message"]
        assert "secret" not in frame["message"]
        assert "a secret detail" in event.details


@pytest.mark.parametrize(
    ("tool", "arguments", "code", "words"),
    [
        ("broken", {}, "TOOL_EXECUTION_FAILED", "the tool broken failed: RuntimeError: the tool broke"),
        ("double", {"number": "four"}, "VALIDATION_FAILED", "$.number"),
        ("double", {"number": 1, "tiems": 2}, "VALIDATION_FAILED", "tiems"),
        ("endless", {}, "TOOL_TIMEOUT", "did not end within 0.05 s"),
        ("endless_thread", {}, "TOOL_TIMEOUT", "did not end within 0.05 s"),
    ],
)
async def test_every_failure_of_a_tool_has_its_code(tool: str, arguments: Any, code: str, words: str) -> None:
    async with serving(small_swarm()) as manager, raw(manager) as socket:
        calls = Recorder(manager.system, ToolCalled)
        frame = await answer(socket, type="tool_call", to=f"tool:{tool}", arguments=arguments, id=1)
        assert frame["error_code"] == code
        assert words in frame["message"]
        call = await calls.first(ToolCalled)
        assert (call.tool, call.outcome) == (tool, code)


async def test_a_slow_reader_loses_chunks_but_gets_the_whole_answer() -> None:
    class Flood(Message):
        pieces: int

    class Flooder(Agent):
        @handles(Flood)
        async def flood(self, message: Flood) -> str:
            for _ in range(message.pieces):
                self.emit("x" * 10_000)
            return "whole"

    async with serving(Swarm([Flooder]), outbox_bytes=100_000) as manager, raw(manager) as socket:
        await tell(socket, type="flood", pieces=2_000, id=1, stream=True)
        frames = [await heard(socket)]
        while frames[-1]["type"] != "response":
            frames.append(await heard(socket))
        chunks = [frame for frame in frames if frame["type"] == "response.chunk"]
        assert frames[-1]["data"] == "whole"
        assert frames[-1]["chunks_dropped"] == 2_000 - len(chunks) > 0
        assert [frame["seq"] for frame in frames] == list(range(1, len(frames) + 1))


async def test_a_reader_that_never_reads_is_closed_and_its_memory_is_bounded() -> None:
    class Big(Message):
        pass

    class Biggie(Agent):
        @handles(Big)
        def big(self, message: Big) -> str:
            return "x" * 100_000

    async with serving(Swarm([Biggie]), outbox_bytes=200_000, max_inflight=10_000) as manager:
        closed = Recorder(manager.system, ClosedEvent)
        # A tiny receive buffer and a client that stops reading: the server's writes back up.
        async with raw(manager, max_queue=1, close_timeout=0.1) as socket:
            socket.transport.pause_reading()
            with contextlib.suppress(ConnectionClosed):
                for number in range(1_000):
                    await tell(socket, type="big", id=number)
            event = await closed.first(ClosedEvent)
            assert event.code in {4508, 1006}


# --- origins, hosts, HTTP ---


async def test_a_web_page_may_connect_only_from_an_allowed_origin() -> None:
    async with serving(small_swarm(), allowed_origins=("https://app.example",)) as manager:
        async with raw(manager, origin="https://app.example") as socket:
            assert (await answer(socket, type="echo", text="x"))["status"] == "success"
        for origin in ("https://evil.example", "null", "https://app.example.evil.example", "http://app.example"):
            with pytest.raises(InvalidStatus) as refused:
                async with raw(manager, origin=origin):
                    pass
            assert refused.value.response.status_code == 403
            assert b"GRAMI_ALLOWED_ORIGINS" in refused.value.response.body


async def http(manager: Any, request: str) -> tuple[int, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", manager.port)
    writer.write(request.replace("\n", "\r\n").encode())
    await writer.drain()
    response = (await reader.read()).decode()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    head, _, body = response.partition("\r\n\r\n")
    return int(head.split()[1]), body


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("localhost:80", 200),
        ("LOCALHOST", 200),
        ("[::1]:9", 200),
        ("127.9.9.9", 200),
        ("api.example", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example:80", 403),
        ("192.168.0.1", 403),
        ("", 403),
    ],
)
async def test_the_host_header_must_name_this_machine_or_be_allowed(host: str, status: int) -> None:
    async with serving(small_swarm(), allowed_hosts=("api.example",)) as manager:
        assert (await http(manager, f"GET /livez HTTP/1.1\nHost: {host}\n\n"))[0] == status


async def test_health_readiness_and_metrics_are_served_on_the_same_port() -> None:
    async with serving(small_swarm()) as manager:
        get = "GET {} HTTP/1.1\nHost: localhost\n\n"
        async with raw(manager) as socket:
            await answer(socket, type="echo", text="x")
            await answer(socket, type="tool_call", to="tool:double", arguments={"number": 1})
            await answer(socket, type="made-up-type-" + "x" * 50)
            status, text = await http(manager, get.format("/metrics"))
        assert status == 200
        assert 'grami_requests_total{outcome="ok",to="echoer",type="echo"} 1.0' in text
        assert 'grami_tool_calls_total{outcome="ok",tool="double"} 1.0' in text
        assert 'grami_tool_queue_wait_seconds_count{tool="double"} 1.0' in text
        assert "grami_connections 1.0" in text
        assert 'grami_mailbox_depth{actor="echoer"} 0.0' in text
        assert "made-up" not in text
        assert await http(manager, get.format("/livez")) == (200, "ok\n")
        assert await http(manager, get.format("/readyz")) == (200, "ready\n")
        assert (await http(manager, get.format("/nothing")))[0] == 404
        assert await http(manager, "HEAD /livez HTTP/1.1\nHost: localhost\n\n") == (200, "")
        assert (await http(manager, "DELETE /livez HTTP/1.1\nHost: localhost\n\n"))[0] == 405
        assert (await http(manager, get.format("/ws")))[0] == 426


# --- life ---


async def test_the_life_of_a_connection_is_told_in_events() -> None:
    async with serving(small_swarm()) as manager:
        events = Recorder(manager.system, OpenedEvent, ConnectionAuthenticated, ClosedEvent)
        async with raw(manager) as socket:
            await answer(socket, type="echo", text="x")
        closed = await events.first(ClosedEvent)
        assert [type(event) for event in events.events] == [OpenedEvent, ConnectionAuthenticated, ClosedEvent]
        assert (closed.connection, closed.code, closed.received, closed.sent) == ("connection-1", 1000, 1, 1)


async def test_a_closing_server_lets_work_end_and_answers_what_cannot() -> None:
    gate = Gate()
    async with serving(small_swarm(gate), drain_timeout=5.0) as manager, raw(manager) as socket:
        await tell(socket, type="slow", text="in time", id=1)
        await gate.until_entered()
        closing = asyncio.create_task(manager.close())
        refused = await answer(socket, type="echo", text="new", id=2)
        while refused["status"] == "success":  # until the drain has reached the connection
            refused = await answer(socket, type="echo", text="new", id=2)
        assert refused["error_code"] == "SHUTTING_DOWN"
        gate.opened.set()
        assert (await heard(socket))["data"] == "in time"
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
        await closing


async def test_work_that_does_not_end_in_time_is_answered_before_the_connection_closes() -> None:
    async with serving(small_swarm(), drain_timeout=0.02) as manager, raw(manager) as socket:
        await tell(socket, type="slow", id=1)
        await answer(socket, type="echo", text="x", id=2)
        await manager.close()
        assert (await heard(socket))["error_code"] == "SHUTTING_DOWN"
        with pytest.raises(ConnectionClosed):
            await socket.recv()


# --- many at once ---


@pytest.mark.parametrize("kind", ["echo", "async_echo"])
async def test_two_hundred_clients_with_fifty_requests_each_get_every_answer_exactly_once(kind: str) -> None:
    async with serving(small_swarm()) as manager:
        letters = Recorder(manager.system, DeadLetter, ActorFailed)

        async def client(number: int) -> None:
            async with raw(manager) as socket:
                for request in range(50):
                    await tell(socket, type=kind, id=request, text=f"{number}/{request}", number=request)
                answers = [await heard(socket) for _ in range(50)]
                assert sorted(each["id"] for each in answers) == list(range(50))
                assert all(each["data"]["text"] == f"{number}/{each['id']}" for each in answers)

        await asyncio.gather(*(client(number) for number in range(200)))
        assert letters.events == []


async def test_a_writer_killed_in_the_middle_is_restarted_and_nobody_else_notices() -> None:
    gate = Gate()

    class Work(Message):
        text: str

    class Worker(Agent, instances=3):
        @handles(Work)
        async def work(self, message: Work) -> str:
            if message.text == "hold":
                await gate.wait_async()
            return message.text

    async with serving(Swarm([Worker])) as manager, raw(manager) as victim:
        restarted = Recorder(manager.system, ActorRestarted)
        await tell(victim, type="work", text="hold", id="v", to="worker-2")
        await gate.until_entered()

        async def client(number: int) -> None:
            async with raw(manager) as socket:
                for request in range(50):
                    frame = await answer(socket, type="work", text=f"{number}-{request}", id=request)
                    assert frame["data"] == f"{number}-{request}"

        clients = asyncio.gather(*(client(number) for number in range(20)))
        manager.system.kill("worker-2")
        frame = await heard(victim)
        assert (frame["id"], frame["error_code"], frame["retryable"]) == ("v", "AGENT_CRASHED", True)
        assert (await restarted.first(ActorRestarted)).actor == "worker-2"
        await clients
        assert (await answer(victim, type="work", text="again", id=1, to="worker-2"))["data"] == "again"
        gate.opened.set()


async def test_the_original_guides_client_gets_exactly_status_and_data() -> None:
    class ContentRequest(Message):
        platform: str
        niche: str = "general"
        content_type: str = "post"

    class Post(msgspec.Struct):
        text: str
        hashtags: list[str]

    class Writer(Agent):
        @handles(ContentRequest)
        async def write(self, request: ContentRequest) -> Post:
            return Post(f"for {request.platform}", ["#one"])

    program = """
import asyncio, json, websockets

async def connect_to_grami():
    uri = "ws://localhost:PORT/ws"
    async with websockets.connect(uri) as websocket:
        await websocket.send(json.dumps({"type": "content_request", "platform": "instagram"}))
        response = await websocket.recv()
        print(response)

asyncio.run(connect_to_grami())
"""
    async with serving(Swarm([Writer])) as manager:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program.replace("PORT", str(manager.port)), stdout=asyncio.subprocess.PIPE
        )
        printed, _ = await process.communicate()
    assert json.loads(printed) == {"status": "success", "data": {"text": "for instagram", "hashtags": ["#one"]}}


@pytest.mark.parametrize("name", ["router", "connection-1", "tool:nothing", "holder/child"])
async def test_a_client_cannot_reach_what_is_not_an_agent_or_tool(name: str) -> None:
    async with serving(small_swarm()) as manager, raw(manager) as socket:
        failures = Recorder(manager.system, ActorFailed)
        for number in range(5):
            frame = await answer(socket, type="echo", text="x", to=name, id=number)
            assert frame["error_code"] == "DESTINATION_NOT_FOUND"
        assert (await answer(socket, type="echo", text="x", id=9))["status"] == "success"
        assert failures.events == []


async def test_a_burst_of_small_frames_is_answered_frame_by_frame() -> None:
    async with serving(small_swarm()) as manager, raw(manager, max_queue=None) as socket:
        # One TCP segment can hold thousands of frames; the reader gets them without a pause.
        for number in range(5_000):
            await tell(socket, type="ping", id=number)
        assert [(await heard(socket))["id"] for _ in range(5_000)] == list(range(5_000))


async def test_a_client_that_is_refused_for_being_busy_is_not_cut_off() -> None:
    gate = Gate()
    async with serving(small_swarm(gate), max_inflight=1) as manager, raw(manager) as socket:
        await tell(socket, type="slow", text="held", id="held")
        for number in range(150):
            assert (await answer(socket, type="echo", text="x", id=number))["error_code"] == "TOO_MANY_INFLIGHT"
        gate.opened.set()
        assert (await heard(socket))["data"] == "held"


async def test_plain_refusals_behind_a_slow_answer_are_bounded() -> None:
    async with serving(small_swarm(), max_inflight=1, outbox_bytes=10_000) as manager:
        closed = Recorder(manager.system, ClosedEvent)
        async with raw(manager, close_timeout=0.1) as socket:
            await tell(socket, type="slow")
            with contextlib.suppress(ConnectionClosed):
                for _ in range(10_000):
                    await tell(socket, type="echo", text="x")
            assert (await closed.first(ClosedEvent)).code == 4508


async def test_a_fault_of_the_connection_itself_ends_only_that_connection() -> None:
    async with serving(small_swarm()) as manager, raw(manager) as one, raw(manager) as two:
        await answer(one, type="ping")
        manager.system.tell("connection-1", "no such event")
        with pytest.raises(ConnectionClosed) as closed:
            await one.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1011
        assert (await answer(two, type="echo", text="unharmed"))["status"] == "success"


async def test_what_was_cancelled_while_it_waited_frees_its_place_and_its_memory() -> None:
    gate = Gate()

    class Job(Message):
        text: str

    class Busy(Agent, mailbox=2):
        @handles(Job)
        async def work(self, message: Job) -> str:
            await gate.wait_async()
            return message.text

    async with serving(Swarm([Busy])) as manager, raw(manager) as socket:
        await tell(socket, type="job", text="in hand", id="first")
        await gate.until_entered()
        for number in range(100):
            await tell(socket, type="job", text="x", id=number)
            await tell(socket, type="cancel", request_id=number)
            assert (await heard(socket))["error_code"] == "CANCELLED"
        statistics = manager.system.table.cells["busy"].mailbox.statistics()
        assert statistics.parked == 0
        assert statistics.depth <= 2
        gate.opened.set()
        assert (await heard(socket))["data"] == "in hand"


async def test_a_description_that_hangs_can_be_cancelled_and_has_a_deadline() -> None:
    gate = Gate()
    swarm = small_swarm()
    swarm.describe = lambda _: gate.hold()  # type: ignore[assignment]  # as a lazy tool's module does that never ends
    async with serving(swarm) as manager, raw(manager) as socket:
        assert (await answer(socket, type="describe", id=1, timeout_ms=20))["error_code"] == "DEADLINE_EXCEEDED"
        await tell(socket, type="describe", id=2)
        await tell(socket, type="cancel", request_id=2)
        assert (await heard(socket))["error_code"] == "CANCELLED"
        gate.opened.set()


async def test_a_handler_that_emits_without_a_pause_drops_chunks_instead_of_filling_the_memory() -> None:
    class Flood(Message):
        pieces: int

    class Flooder(Agent):
        @handles(Flood)
        def flood(self, message: Flood) -> str:
            for number in range(message.pieces):
                self.emit(number)
            return "whole"

    async with serving(Swarm([Flooder])) as manager, raw(manager) as socket:
        await tell(socket, type="flood", pieces=50_000, id=1, stream=True)
        frames = [await heard(socket)]
        while frames[-1]["type"] != "response":
            frames.append(await heard(socket))
        chunks = [frame for frame in frames if frame["type"] == "response.chunk"]
        assert frames[-1]["data"] == "whole"
        assert frames[-1]["chunks_dropped"] == 50_000 - len(chunks) > 0


async def test_a_client_that_makes_an_agent_fail_over_and_over_does_not_end_it_for_good() -> None:
    class Poison(Message):
        pass

    class Fragile(Agent, restart=RestartPolicy(intensity=1, shortest=0, longest=0, pause=0.05)):
        @handles(Poison)
        def take(self, message: Poison) -> None:
            raise ValueError("poison")

        @handles(Hello)
        def greet(self, message: Hello) -> str:
            return "hello"

    async with serving(Swarm([Fragile])) as manager, raw(manager) as socket:
        events = Recorder(manager.system, ActorPaused, ActorRestarted)
        for _ in range(2):
            await answer(socket, type="poison")
        await events.first(ActorPaused)
        frame = await answer(socket, type="hello_there", id=1)
        assert (frame["error_code"], frame["retryable"]) == ("AGENT_UNAVAILABLE", True)
        await events.until(lambda seen: isinstance(seen[-1], ActorRestarted))
        assert (await answer(socket, type="hello_there", id=1))["data"] == "hello"


async def test_clients_cannot_use_the_model_behind_the_agents_backs() -> None:
    swarm = Swarm([small_swarm().agents[0]], model=ScriptedModel({"x": "y"}))
    async with serving(swarm) as manager, raw(manager) as socket:
        prompt = {"text": "x"}
        assert (await answer(socket, type="generate", prompt=prompt, id=1))["error_code"] == "UNKNOWN_TYPE"
        frame = await answer(socket, type="echo", text="x", to="tool:model", id=1)
        assert frame["error_code"] == "DESTINATION_NOT_FOUND"


async def test_a_reader_that_reads_gets_answers_that_are_together_larger_than_the_outbox() -> None:
    class Big(Message):
        size: int

    class Biggie(Agent):
        @handles(Big)
        def big(self, message: Big) -> str:
            return "x" * message.size

    async with serving(Swarm([Biggie])) as manager, raw(manager, max_size=None) as socket:
        for number in range(64):
            await tell(socket, type="big", size=50_000, id=number)
        assert sorted([(await heard(socket))["id"] for _ in range(64)]) == list(range(64))
        assert len((await answer(socket, type="big", size=2_500_000, id=1))["data"]) == 2_500_000


async def test_a_connection_whose_actor_is_stopped_is_closed() -> None:
    async with serving(small_swarm()) as manager, raw(manager) as socket:
        await answer(socket, type="ping")
        await manager.system.stop("connection-1")
        with pytest.raises(ConnectionClosed):
            await socket.recv()
