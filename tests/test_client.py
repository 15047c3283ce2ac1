"""The client against real servers: how it finds one, asks, streams, gives up, and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from websockets.asyncio.server import ServerConnection, serve

from grami_actors import (
    Agent,
    AgentCrashed,
    AgentExecutionFailed,
    Client,
    Config,
    ConnectionLost,
    DeadlineExceeded,
    DestinationNotFound,
    GramiError,
    GrowthManager,
    Message,
    ServerNotFound,
    Swarm,
    ToolExecutionFailed,
    ToolTimeout,
    connect,
    handles,
)
from grami_actors.discovery import ServerState, find_server, write_state
from grami_actors.errors import ConfigError, MailboxFull, ProtocolError, ShuttingDown, UpstreamError
from grami_actors.telemetry import ConnectionOpened, MessageHandled
from tests.conftest import Gate, Recorder, cut, free_port, serving, turns_until
from tests.swarms import Echo, Fail, small_swarm

SOON = 0.5
"""Seconds after which something that should happen at once is taken to hang."""


@pytest.fixture(autouse=True)
def _no_server_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("GRAMI_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@asynccontextmanager
async def asking(swarm: Swarm | None = None, **settings: Any) -> AsyncIterator[tuple[Client, GrowthManager]]:
    async with serving(swarm or small_swarm(), **settings) as manager, connect(manager.url) as grami:
        yield grami, manager


async def last_frame(frames: AsyncIterator[Any]) -> Any:
    return [frame async for frame in frames][-1]


def gone_pid() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


# --- where the server is ---


async def test_the_server_is_found_by_the_url_that_is_given() -> None:
    async with serving(small_swarm()) as manager, connect(manager.url) as grami:
        assert grami.url == manager.url
        await grami.ping()


async def test_the_server_is_found_by_grami_url(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(small_swarm()) as manager:
        monkeypatch.setenv("GRAMI_URL", manager.url)
        async with connect() as grami:
            assert (await grami.request("echo", text="x"))["text"] == "x"


async def test_the_server_is_found_by_grami_port(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(small_swarm()) as manager:
        monkeypatch.setenv("GRAMI_PORT", str(manager.port))
        async with connect() as grami:
            assert (await grami.request("echo", text="x"))["text"] == "x"


@pytest.mark.parametrize("told_by", ["the working directory", "GRAMI_STATE_DIR"])
async def test_the_server_is_found_by_its_state_file(
    told_by: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    directory = tmp_path / (".grami" if told_by == "the working directory" else "elsewhere")
    async with GrowthManager(small_swarm(), Config(state_dir=directory)) as manager:
        monkeypatch.delenv("GRAMI_PORT")  # the manager published it to this process as well
        if told_by == "GRAMI_STATE_DIR":
            monkeypatch.setenv("GRAMI_STATE_DIR", str(directory))
        async with connect() as grami:
            assert grami.url == manager.url
            assert (await grami.request("echo", text="x"))["text"] == "x"


def test_the_places_are_looked_at_in_order(tmp_path: Path) -> None:
    write_state(tmp_path, ServerState("ws://127.0.0.1:4/ws", 4, os.getpid()))
    environ = {"GRAMI_URL": "ws://127.0.0.1:2/ws", "GRAMI_PORT": "3", "GRAMI_STATE_DIR": str(tmp_path)}
    assert find_server("ws://127.0.0.1:1/ws", environ) == "ws://127.0.0.1:1/ws"
    assert find_server(None, environ) == "ws://127.0.0.1:2/ws"
    del environ["GRAMI_URL"]
    assert find_server(None, environ) == "ws://127.0.0.1:3/ws"
    del environ["GRAMI_PORT"]
    assert find_server(None, environ) == "ws://127.0.0.1:4/ws"


async def test_without_any_server_the_error_says_where_it_looked_and_what_to_do() -> None:
    with pytest.raises(ServerNotFound) as nowhere:
        async with connect():
            pass
    for words in ("GRAMI_URL", "GRAMI_PORT", "growth-manager.json", "grami serve"):
        assert words in nowhere.value.message


async def test_a_stale_state_file_is_said_to_be_stale(tmp_path: Path) -> None:
    pid = gone_pid()
    write_state(tmp_path / ".grami", ServerState("ws://127.0.0.1:1/ws", 1, pid))
    with pytest.raises(ServerNotFound, match=f"stale.*process {pid}.*is gone"):
        async with connect():
            pass


@pytest.mark.parametrize("content", [b"", b"{}", b'{"url": 5}', b"\xff\xfe", b'{"url":"ws://x/ws","port":1,"pid":"a"}'])
async def test_a_damaged_state_file_is_as_good_as_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / ".grami").mkdir()
    (tmp_path / ".grami" / "growth-manager.json").write_bytes(content)
    with pytest.raises(ServerNotFound, match="no Growth Manager found"):
        async with connect():
            pass


@pytest.mark.parametrize("pid", [0, -1, 2**70])
def test_no_process_has_an_impossible_number(pid: int) -> None:
    assert not ServerState("ws://x/ws", 1, pid).alive


async def test_when_nothing_answers_the_error_names_the_address() -> None:
    port = free_port()
    with pytest.raises(ServerNotFound, match=f"no Growth Manager answers at ws://127.0.0.1:{port}/ws"):
        async with connect(f"ws://127.0.0.1:{port}/ws"):
            pass


async def test_what_answers_but_is_no_websocket_is_an_error_too() -> None:
    async with serving(small_swarm()) as manager:
        with pytest.raises(ServerNotFound, match=r"no Growth Manager answers.*404"):
            async with connect(manager.url.replace("/ws", "/elsewhere")):
                pass


async def test_a_port_where_nobody_speaks_http_is_an_error_too() -> None:
    def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises(ServerNotFound, match="no Growth Manager answers"):
            async with connect(f"ws://127.0.0.1:{port}/ws"):
                pass


async def test_a_server_that_accepts_and_stays_silent_is_given_up_after_the_open_timeout() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(ServerNotFound, match="no Growth Manager answers"):
            async with connect(f"ws://127.0.0.1:{silent.getsockname()[1]}/ws", open_timeout=0.05):
                pass


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:1/ws", "127.0.0.1:1", "nonsense", "ws://127.0.0.1:99999/ws", "ws://127.0.0.1:abc/ws"],
)
async def test_an_address_that_cannot_be_one_is_an_error_of_ours(url: str) -> None:
    with pytest.raises(ServerNotFound):
        async with connect(url):
            pass


@pytest.mark.parametrize("port", ["abc", "-1", "80.5", " ", "99999", "²"])
def test_a_grami_port_that_is_no_port_is_said_to_be_none(port: str) -> None:
    with pytest.raises(ServerNotFound, match="GRAMI_PORT"):
        find_server(None, {"GRAMI_PORT": port})


async def test_a_proxy_for_the_web_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    async with asking() as (grami, _):
        await grami.ping()


# --- requests ---


async def test_a_request_is_a_type_and_its_fields_or_a_message() -> None:
    async with asking() as (grami, _):
        assert await grami.request("echo", text="by name", number=1) == {"text": "by name", "number": 1}
        assert await grami.request(Echo("as object", 2)) == {"text": "as object", "number": 2}
        assert await grami.request(Echo("as object"), number=3) == {"text": "as object", "number": 3}


async def test_a_request_can_name_its_destination() -> None:
    async with asking() as (grami, _):
        assert await grami.request("tool_call", to="tool:double", arguments={"number": 4}) == 8
        assert (await grami.request(Echo("x"), to="echoer-2"))["text"] == "x"


async def test_describe_and_ping_are_answered() -> None:
    async with asking() as (grami, _):
        offered = await grami.describe()
        assert {each["name"] for each in offered["agents"]} >= {"echoer", "holder"}
        await grami.ping()


async def test_a_whole_answer_of_five_megabytes_arrives() -> None:
    class Big(Message):
        pass

    class Biggie(Agent):
        @handles(Big)
        def big(self, message: Big) -> str:
            return "x" * 5_000_000

    async with asking(Swarm([Biggie]), outbox_bytes=10_000_000) as (grami, _):
        assert len(await grami.request("big")) == 5_000_000


async def test_many_requests_at_the_same_time_on_one_connection_get_each_its_own_answer() -> None:
    async with asking(max_inflight=500) as (grami, manager):
        kinds = ["echo", "async_echo"] * 200
        answers = await asyncio.gather(
            *(grami.request(kind, text=f"{kind} {number}", number=number) for number, kind in enumerate(kinds))
        )
        assert [each["number"] for each in answers] == list(range(400))
        assert [each["text"] for each in answers] == [f"{kind} {number}" for number, kind in enumerate(kinds)]
        assert grami._conversation._waiting == {}
        assert manager.system.table.cells["connection-1"].working == 0


async def test_answers_come_when_they_are_ready_not_in_the_order_of_the_questions() -> None:
    gate = Gate()
    async with asking(small_swarm(gate)) as (grami, _):
        slow = asyncio.create_task(grami.request("slow", text="late"))
        await gate.until_entered()
        assert (await grami.request("echo", text="early"))["text"] == "early"
        gate.opened.set()
        assert await slow == "late"


async def test_a_stream_is_started_progress_chunks_and_the_whole_answer() -> None:
    async with asking() as (grami, _):
        frames = [frame async for frame in grami.stream("story", pieces=2)]
        kinds = [frame.type.removeprefix("response") for frame in frames]
        assert kinds == [".started", ".progress", ".chunk", ".progress", ".chunk", ""]
        assert frames[0].source == "teller"
        assert (frames[1].progress, frames[1].message) == (0.0, "piece 0")
        assert [frame.seq for frame in frames] == [1, 2, 3, 4, 5, 6]
        assert frames[-1].data == "".join(frame.data for frame in frames if frame.type == "response.chunk")


async def test_two_streams_on_one_connection_do_not_mix() -> None:
    async with asking() as (grami, _):

        async def read(pieces: int) -> list[Any]:
            return [
                frame.data async for frame in grami.stream("story", pieces=pieces) if frame.type == "response.chunk"
            ]

        few, many = await asyncio.gather(read(3), read(30))
        assert few == [f"piece {number} " for number in range(3)]
        assert many == [f"piece {number} " for number in range(30)]


async def test_a_plain_request_gets_no_frames_but_its_answer() -> None:
    async with asking() as (grami, manager):
        assert await grami.request("story", pieces=2) == "piece 0 piece 1 "
        assert manager.system.table.cells["connection-1"].actor.sent == 2  # the first is the welcome


async def test_a_value_that_is_not_json_is_refused_before_anything_is_sent() -> None:
    async with asking() as (grami, _):
        with pytest.raises(TypeError, match="unsupported"):
            await grami.request("echo", text=object())
        assert grami._conversation._waiting == {}
        assert (await grami.request("echo", text="still fine"))["text"] == "still fine"


async def test_a_request_leaves_nothing_behind_not_even_a_task() -> None:
    async with asking() as (grami, _):
        before = len(asyncio.all_tasks())
        await grami.request("echo", text="x")
        assert grami._conversation._waiting == {}
        assert len(asyncio.all_tasks()) == before


# --- errors ---


@pytest.mark.parametrize(
    ("message", "kind", "code", "param"),
    [
        ({"type": "echo", "text": 5}, ProtocolError, "VALIDATION_FAILED", "$.text"),
        ({"type": "echo"}, ProtocolError, "VALIDATION_FAILED", "$.text"),
        ({"type": "ecoh", "text": "x"}, ProtocolError, "UNKNOWN_TYPE", None),
        ({"type": "publish"}, ProtocolError, "VALIDATION_FAILED", "$.topic"),
        ({"type": "job.nothing"}, ProtocolError, "UNSUPPORTED_FEATURE", None),
        ({"type": "echo", "text": "x", "to": "nobody"}, DestinationNotFound, "DESTINATION_NOT_FOUND", None),
        ({"type": "fail", "how": "raise"}, AgentExecutionFailed, "AGENT_EXECUTION_FAILED", None),
        ({"type": "fail", "how": "exit"}, AgentCrashed, "AGENT_CRASHED", None),
        ({"type": "fail", "how": "reject"}, UpstreamError, "UPSTREAM_ERROR", "$.how"),
        ({"type": "fail", "how": "internal"}, GramiError, "INTERNAL_ERROR", None),
        ({"type": "tool_call", "to": "tool:broken"}, ToolExecutionFailed, "TOOL_EXECUTION_FAILED", None),
        ({"type": "tool_call", "to": "tool:endless"}, ToolTimeout, "TOOL_TIMEOUT", None),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_an_error_is_an_exception_of_its_class_with_code_and_param(
    message: dict[str, Any], kind: type[GramiError], code: str, param: str | None, streamed: bool
) -> None:
    fields = dict(message)
    name = fields.pop("type")
    async with asking() as (grami, _):
        with pytest.raises(GramiError) as raised:
            await (last_frame(grami.stream(name, **fields)) if streamed else grami.request(name, **fields))
        error = raised.value
        assert type(error) is kind
        assert (error.error_code, error.param) == (code, param)
        assert error.message
        assert error.retryable == (code in {"AGENT_CRASHED", "UPSTREAM_ERROR", "TOOL_TIMEOUT", "INTERNAL_ERROR"})
        assert (await grami.request("echo", text="unharmed"))["text"] == "unharmed"


async def test_too_many_requests_at_once_are_errors_that_may_be_tried_again() -> None:
    gate = Gate()
    async with asking(small_swarm(gate), max_inflight=1) as (grami, _):
        slow = asyncio.create_task(grami.request("slow", text="x"))
        await gate.until_entered()
        with pytest.raises(GramiError) as refused:
            await grami.request("echo", text="x")
        assert refused.value.error_code == "TOO_MANY_INFLIGHT"
        assert refused.value.retryable
        gate.opened.set()
        await slow


async def test_a_full_server_is_a_mailbox_full() -> None:
    gate = Gate()
    async with asking(small_swarm(gate), max_requests=1) as (grami, _):
        slow = asyncio.create_task(grami.request("slow", text="x"))
        await gate.until_entered()
        with pytest.raises(MailboxFull):
            await grami.request("echo", text="x")
        gate.opened.set()
        await slow


async def test_an_error_code_of_a_newer_server_is_kept() -> None:
    class Odd(Message):
        pass

    class Oddity(Agent):
        @handles(Odd)
        def odd(self, message: Odd) -> None:
            raise GramiError("something new", code="QUOTA_EXCEEDED")

    async with asking(Swarm([Oddity])) as (grami, _):
        with pytest.raises(GramiError, match="something new") as raised:
            await grami.request("odd")
        assert raised.value.error_code == "QUOTA_EXCEEDED"


async def test_a_control_message_that_is_answered_with_another_frame_does_not_hang() -> None:
    async with asking() as (grami, _):
        async with asyncio.timeout(SOON):
            await grami.request("hello")
            await grami.request("ping")


# --- giving up ---


async def at_rest(manager: GrowthManager, handled: Recorder) -> None:
    """Wait until the holder was interrupted, and works on nothing any more."""
    event = await handled.until(lambda events: next((e for e in events if e.actor == "holder"), None))
    assert event.outcome == "CANCELLED"
    await turns_until(lambda: manager.system.table.cells["holder"].working == 0)


async def test_a_deadline_is_an_error_and_ends_the_work_on_the_server() -> None:
    async with asking() as (grami, manager):
        with pytest.raises(DeadlineExceeded):
            await grami.request("slow", timeout=0.05)
        await turns_until(lambda: manager.system.table.cells["holder"].working == 0)


async def test_leaving_a_stream_early_cancels_the_request_on_the_server() -> None:
    gate = Gate()
    async with asking(small_swarm(gate)) as (grami, manager):
        handled = Recorder(manager.system, MessageHandled)
        async for frame in grami.stream("slow"):
            assert frame.type == "response.started"
            assert manager.system.table.cells["holder"].working == 1
            break
        await at_rest(manager, handled)


async def test_closing_a_stream_cancels_the_request_on_the_server_before_it_returns() -> None:
    async with asking() as (grami, manager):
        handled = Recorder(manager.system, MessageHandled)
        async with contextlib.aclosing(grami.stream("slow")) as frames:
            assert (await anext(frames)).type == "response.started"
        assert grami._conversation._waiting == {}
        await at_rest(manager, handled)


async def test_cancelling_a_request_cancels_it_on_the_server() -> None:
    gate = Gate()
    async with asking(small_swarm(gate)) as (grami, manager):
        handled = Recorder(manager.system, MessageHandled)
        request = asyncio.create_task(grami.request("slow"))
        await gate.until_entered()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        assert grami._conversation._waiting == {}
        await at_rest(manager, handled)
        assert (await grami.request("echo", text="unharmed"))["text"] == "unharmed"


async def test_a_time_limit_around_a_request_cancels_it_on_the_server() -> None:
    async with asking() as (grami, manager):
        handled = Recorder(manager.system, MessageHandled)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await grami.request("slow")
        await at_rest(manager, handled)


async def test_closing_the_client_cancels_what_it_asked_for() -> None:
    gate = Gate()
    async with serving(small_swarm(gate)) as manager:
        handled = Recorder(manager.system, MessageHandled)
        async with connect(manager.url) as grami:
            request = asyncio.create_task(grami.request("slow"))
            await gate.until_entered()
        await at_rest(manager, handled)
        request.cancel()


async def test_closing_the_client_while_requests_wait_does_not_hang_them() -> None:
    gate = Gate()
    async with serving(small_swarm(gate)) as manager:
        async with connect(manager.url) as grami:
            requests = [asyncio.create_task(grami.request("slow")) for _ in range(3)]
            await gate.until_entered()
        done, pending = await asyncio.wait(requests, timeout=SOON)
        for each in pending:
            each.cancel()
        assert not pending
        assert {type(each.exception()) for each in done} == {ConnectionLost}


async def test_after_the_client_is_closed_a_request_is_refused() -> None:
    async with serving(small_swarm()) as manager:
        async with connect(manager.url) as grami:
            await grami.ping()
        with pytest.raises(GramiError):
            await grami.request("echo", text="x")


# --- lost connections ---


async def test_requests_in_flight_end_with_connection_lost_and_later_ones_work_again() -> None:
    gate = Gate()
    async with asyncio.timeout(20):
        async with serving(small_swarm(gate)) as first:
            grami = await connect(first.url).__aenter__()
            requests = [asyncio.create_task(grami.request("slow", text="x")) for _ in range(3)]
            await gate.until_entered()
            cut(first)
            for request in requests:
                with pytest.raises(ConnectionLost, match="the outcome is unknown"):
                    await request
        gate.opened.set()
        async with serving(small_swarm(), port=first.port) as second:
            assert (await grami.request("echo", text="again"))["text"] == "again"
            assert grami.url == second.url
            assert [frame.type async for frame in grami.stream("story", pieces=0)][-1] == "response"
            await grami.__aexit__(None, None, None)


async def test_a_stream_that_loses_its_connection_raises_after_what_had_come() -> None:
    async with asking() as (grami, manager):
        frames = grami.stream("slow")
        assert (await anext(frames)).type == "response.started"
        cut(manager)
        with pytest.raises(ConnectionLost):
            await anext(frames)


async def test_a_request_made_while_the_server_is_away_waits_for_it() -> None:
    async with asyncio.timeout(20):
        async with serving(small_swarm()) as first:
            grami = await connect(first.url).__aenter__()
        await turns_until(lambda: not grami._connected.is_set())
        request = asyncio.create_task(grami.request("echo", text="patient"))
        async with serving(small_swarm(), port=first.port):
            assert (await request)["text"] == "patient"
            await grami.__aexit__(None, None, None)


async def test_a_client_that_was_cut_off_comes_back_with_one_connection() -> None:
    async with asking() as (grami, manager):
        opened = Recorder(manager.system, ConnectionOpened)
        for _ in range(3):
            await grami.ping()
            count = len(opened.events)
            cut(manager)
            await opened.until(lambda events, count=count: len(events) > count)
        await grami.ping()
        assert len(opened.events) == 3


async def test_a_message_that_the_server_would_find_too_large_is_not_sent() -> None:
    async with asking(max_message_bytes=10_000) as (grami, manager):
        with pytest.raises(ProtocolError, match="the server takes 10000") as refused:
            await grami.request("echo", text="x" * 20_000)
        assert refused.value.error_code == "MESSAGE_TOO_LARGE"
        assert manager.system.table.cells["connection-1"].actor.received == 1
        assert (await grami.request("echo", text="again"))["text"] == "again"


async def test_a_server_that_shuts_down_answers_what_it_could_not_finish() -> None:
    gate = Gate()
    async with serving(small_swarm(gate)) as manager, connect(manager.url) as grami:
        request = asyncio.create_task(grami.request("slow"))
        await gate.until_entered()
        await manager.close()
        with pytest.raises(ShuttingDown):
            await request


async def test_after_the_time_to_retry_requests_fail_at_once() -> None:
    async with asyncio.timeout(20):
        async with serving(small_swarm()) as manager:
            grami = await connect(manager.url, retry_for=0.2).__aenter__()
            await grami.ping()
        waiting = asyncio.create_task(grami.request("echo", text="waits for a server that never comes"))
        with pytest.raises((ServerNotFound, ConnectionLost)):
            await waiting
        assert grami._runner is not None
        await asyncio.wait((grami._runner,))
        for _ in range(2):
            with pytest.raises(ServerNotFound, match="no Growth Manager answers"):
                await grami.request("echo", text="x")
        with pytest.raises(ServerNotFound):
            await grami.ping()
        await grami.__aexit__(None, None, None)


async def test_a_client_that_does_not_retry_is_done_with_the_first_loss() -> None:
    async with serving(small_swarm()) as manager, connect(manager.url, retry_for=0.0) as grami:
        await grami.ping()
        await manager.close()
        assert grami._runner is not None
        await asyncio.wait((grami._runner,))
        with pytest.raises(ConnectionLost):
            await grami.request("echo", text="x")


@asynccontextmanager
async def deserted() -> AsyncIterator[Client]:
    """A client whose server has gone, and that tries for a long time to reach it again."""
    async with serving(small_swarm()) as manager:
        grami = await connect(manager.url, retry_for=30.0).__aenter__()
    await turns_until(lambda: not grami._connected.is_set())
    try:
        yield grami
    finally:
        await grami.__aexit__(None, None, None)


async def test_a_request_that_waits_for_a_server_can_be_cancelled() -> None:
    async with deserted() as grami:
        request = asyncio.create_task(grami.request("echo", text="x"))
        await asyncio.wait((request,), timeout=0.01)  # it waits for a server now
        request.cancel()
        done, _ = await asyncio.wait((request,), timeout=SOON)
        request.cancel()
        assert done


async def test_the_deadline_of_a_request_holds_while_it_waits_for_a_server() -> None:
    async with deserted() as grami:
        request = asyncio.create_task(grami.request("echo", text="x", timeout=0.05))
        done, _ = await asyncio.wait((request,), timeout=SOON)
        request.cancel()
        assert done
        assert isinstance(request.exception(), DeadlineExceeded)


async def test_closing_a_client_that_waits_for_its_server_ends_its_requests() -> None:
    async with deserted() as grami:
        request = asyncio.create_task(grami.request("echo", text="x"))
        await asyncio.wait((request,), timeout=0.01)  # it waits for a server now
    done, _ = await asyncio.wait((request,), timeout=SOON)
    request.cancel()
    assert done


async def test_a_frame_that_cannot_be_read_does_not_end_the_reader() -> None:
    async def answer(peer: ServerConnection) -> None:
        await peer.recv()
        await peer.send('{"type":"welcome","id":"hello"}')
        async for _ in peer:
            for frame in ("no json", "[]", '{"id":"1","type":5}', '{"id":"1","data":' + "[" * 100_000):
                await peer.send(frame)
            await peer.send('{"type":"response","id":"1","status":"success","data":"readable"}')

    async with serve(answer, "127.0.0.1", 0) as strange:
        port = strange.sockets[0].getsockname()[1]
        async with connect(f"ws://127.0.0.1:{port}/ws") as grami, asyncio.timeout(SOON):
            assert await grami.request("anything") == "readable"


async def test_a_message_object_survives_the_wire_unchanged() -> None:
    async with asking() as (grami, _):
        text = '\x00 \u2028 \U0001f600 "quoted" \\ \n'
        assert await grami.request(Echo(text, 2**53)) == {"text": text, "number": 2**53}
        assert msgspec.to_builtins(Fail()) == {"type": "fail", "how": "raise"}


def test_an_encoding_that_there_is_none_of_is_refused() -> None:
    with pytest.raises(ConfigError, match="'json' and 'msgpack'"):
        connect(encoding="messagepack")  # type: ignore[arg-type]
