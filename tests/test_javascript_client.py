"""The JavaScript client, in Node and in a real browser: with our gateway, and with servers that the tests play."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from grami_actors import Agent, Config, GrowthManager, Message, Swarm, connect, handles
from grami_actors.api_keys import KeyStore
from grami_actors.telemetry import ConnectionAuthenticated, ConnectionOpened, JobChanged, RequestFinished
from tests.browser import in_browser, site, visit
from tests.conftest import Gate, Recorder, cut, free_port, serving
from tests.job_desk import working
from tests.swarms import small_swarm

NODE = shutil.which("node")
ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "tests" / "javascript"
WS = ROOT / ".ci" / "node" / "node_modules" / "ws"
PATIENCE = 15.0

in_node = pytest.mark.skipif(
    NODE is None or not WS.is_dir(), reason="Node or its package ws is missing (.ci/run gets it)"
)


class Program:
    """A case of cases.mjs at work in Node."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def said(self) -> Any:
        """The next thing that it says."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            assert self._process.stderr is not None
            pytest.fail((await self._process.stderr.read()).decode())
        return json.loads(line)

    def go(self) -> None:
        """Let it go on."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")

    async def told(self) -> Any:
        """What it tells in the end, when it said all else; it must then end by itself."""
        told = await self.said()
        assert await self._process.wait() == 0
        return told


@asynccontextmanager
async def node(case: str, url: str, given: Any = None) -> AsyncIterator[Program]:
    """Play a case in Node, under a time limit that turns a hang into a failure."""
    assert NODE is not None
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        NODE, str(SCRIPTS / "node.mjs"), case, url, str(WS), json.dumps(given), stdin=pipe, stdout=pipe, stderr=pipe
    )
    try:
        async with asyncio.timeout(PATIENCE):
            yield Program(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def play(case: str, url: str, given: Any = None) -> Any:
    async with node(case, url, given) as program:
        return await program.told()


# --- with our gateway ---


def check_conversation(told: dict[str, Any]) -> None:
    assert told["answer"] == {"text": "für \U0001f600 \u2028", "number": 5}
    assert told["named"] == "X"
    assert [frame["type"].removeprefix("response.") for frame in told["frames"]] == [
        "started",
        *["progress", "chunk"] * 2,
        "response",
    ]
    assert told["frames"][-1]["data"] == "piece 0 piece 1 "
    assert told["error"] == {
        "code": "UPSTREAM_ERROR",
        "retryable": True,
        "param": "$.how",
        "message": "the service is away",
        "ours": True,
    }
    assert told["described"]
    assert told["pong"]
    assert told["many"]
    assert told["principal"] == "anonymous"
    assert told["reserved"] == "JOB_NOT_FOUND"
    assert told["unencodable"] == "TypeError"
    assert told["closed"] == "CONNECTION_LOST"
    assert told["states"] == ["open", "closed"]


@in_node
async def test_requests_streams_and_errors_in_node() -> None:
    async with serving(small_swarm()) as manager:
        check_conversation(await play("conversation", manager.url))


@in_node
async def test_every_event_of_a_job_comes_once_also_when_the_connection_is_lost() -> None:
    async with working() as (manager, _):
        lost: list[str] = []

        def lose(event: JobChanged) -> None:
            if event.seq in {1_500, 2_500}:
                lost.append(event.job)
                cut(manager)

        manager.system.bus.subscribe(lose, JobChanged)
        told = await play("jobs", manager.url)
    assert told.pop("seqs") == list(range(1, 3_006))
    assert told == {"late": [], "state": "SUCCEEDED", "result": "this", "unknown": "JOB_NOT_FOUND"}
    assert len(lost) == 2


@in_node
async def test_leaving_aborting_and_a_deadline_cancel_on_the_server() -> None:
    async with serving(small_swarm()) as manager:
        finished = Recorder(manager.system, RequestFinished)
        told = await play("leaving", manager.url)
        outcomes = [event.outcome for event in finished.events if event.message_type == "slow"]
    assert told == ["AbortError", "RangeError", "RangeError", "DEADLINE_EXCEEDED"]
    assert len(outcomes) == 4
    assert set(outcomes[:3]) == {"CANCELLED"}
    assert outcomes[3] in {"CANCELLED", "DEADLINE_EXCEEDED"}


@in_node
async def test_what_was_in_flight_is_lost_with_the_connection_and_later_requests_work_again() -> None:
    async with serving(small_swarm()) as manager, node("losing", manager.url) as program:
        await Recorder(manager.system, RequestFinished).first(RequestFinished)
        cut(manager)
        told = await program.told()
    states = [["open", None], ["reconnecting", "CONNECTION_LOST"], ["open", None]]
    assert told == ["response.started", ["CONNECTION_LOST", "CONNECTION_LOST"], "again", states]


@in_node
@pytest.mark.slow
async def test_requests_made_while_the_server_restarts_wait_for_it() -> None:
    async with serving(small_swarm()) as first, node("waiting", first.url) as program:
        await Recorder(first.system, RequestFinished).first(RequestFinished)
        await first.close()
        assert await program.said() == "waits"
        async with serving(small_swarm(), port=first.port):
            assert await program.told() == ["DEADLINE_EXCEEDED", "TimeoutError", "patient"]


@in_node
@pytest.mark.slow
async def test_after_the_time_to_retry_requests_fail_at_once_until_the_program_asks_for_more() -> None:
    async with serving(small_swarm()) as manager, node("giving_up", manager.url) as program:
        await Recorder(manager.system, RequestFinished).first(RequestFinished)
        await manager.close()
        told = await program.told()
    assert told[0] in {"SHUTTING_DOWN", "CONNECTION_LOST", "SERVER_NOT_FOUND"}  # how far it got before the goodbye
    assert told[1:] == ["SERVER_NOT_FOUND", "SERVER_NOT_FOUND", "closed", "reconnecting"]


@in_node
async def test_closing_the_client_ends_what_is_in_flight_here_and_on_the_server() -> None:
    async with serving(small_swarm()) as manager:
        assert await play("closing", manager.url) == ["CONNECTION_LOST", "closed"]


@in_node
async def test_a_stream_that_is_not_read_ends_instead_of_filling_the_memory() -> None:
    async with serving(small_swarm()) as manager:
        assert await play("lagging", manager.url) == [True, 5_000]


@in_node
async def test_where_nobody_answers_connecting_fails_once_and_says_so() -> None:
    assert await play("refused", f"ws://127.0.0.1:{free_port()}/ws") == ["SERVER_NOT_FOUND", "AbortError"]


@in_node
async def test_what_accepts_and_stays_silent_is_given_up_after_the_open_timeout() -> None:
    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(listen, "127.0.0.1", 0) as silent:
        port = silent.sockets[0].getsockname()[1]
        assert await play("refused", f"ws://127.0.0.1:{port}/ws") == ["SERVER_NOT_FOUND", "AbortError"]


@in_node
async def test_an_address_that_is_none_is_an_error_of_ours() -> None:
    assert await play("refused", "/ws") == ["SERVER_NOT_FOUND", "SERVER_NOT_FOUND"]


@in_node
async def test_where_there_is_no_websocket_the_error_says_what_to_give() -> None:
    assert await play("misused", "ws://127.0.0.1:1/ws") == ["TypeError", "SERVER_NOT_FOUND"]


@asynccontextmanager
async def locked(path: Path) -> AsyncIterator[GrowthManager]:
    """A server that asks for keys, and sends expired ones away soon."""
    options: dict[str, Any] = {"token_grace": 0.0, "message_timeout": 0.1}
    async with serving(small_swarm(), auth=("keys",), keys_file=path, **options) as manager:
        yield manager


def keys(path: Path, *names: str, ago: float | None = None) -> list[str]:
    """A key for each of the names."""
    ends = None if ago is None else time.time() - ago
    store = KeyStore(path)
    return [store.create(name, (), now=time.time() - 60, expires_at=ends)[1] for name in names]


def expire(manager: GrowthManager) -> None:
    """Let the tokens of all open connections expire now."""
    assert manager._gateway is not None
    for actor in manager._gateway._actors():
        actor.protocol._expires_at = 0.0


@in_node
async def test_a_token_goes_into_hello_and_is_renewed_once_when_it_expired(tmp_path: Path) -> None:
    given = keys(tmp_path / "keys", "one", "two", "three")
    async with locked(tmp_path / "keys") as manager, node("credentials", manager.url, given) as program:
        known = Recorder(manager.system, ConnectionAuthenticated)
        for end in (cut, expire, expire):
            assert await program.said() == "open"
            end(manager)
        told = await program.told()
    assert [each.principal for each in known.events] == ["one", "two", "three"]
    assert told["asked"] == [False, False, True]
    assert told["later"] == "TOKEN_EXPIRED"
    assert told["states"] == [
        ["open", None],
        ["reconnecting", "CONNECTION_LOST"],
        ["open", None],
        ["reconnecting", "TOKEN_EXPIRED"],
        ["open", None],
        ["closed", "TOKEN_EXPIRED"],
    ]


@in_node
async def test_a_hello_whose_token_expired_is_sent_once_more_with_a_fresh_one(tmp_path: Path) -> None:
    given = [*keys(tmp_path / "keys", "old", ago=5), *keys(tmp_path / "keys", "fresh")]
    async with locked(tmp_path / "keys") as manager, node("credentials", manager.url, given) as program:
        assert await program.said() == "open"
        assert manager._gateway is not None
        (fresh,) = manager._gateway.connections()
        assert fresh.principal == "fresh"
        manager._gateway.disconnect(fresh.id, 4403, "go")
        told = await program.told()
    assert told["asked"] == [False, True]
    assert told["later"] == "PERMISSION_DENIED"
    assert [state for state, _ in told["states"]] == ["open", "closed"]


@in_node
async def test_requests_refused_for_an_expired_token_are_sent_again_once_after_auth(tmp_path: Path) -> None:
    (good,), (stale,) = keys(tmp_path / "keys", "ann"), keys(tmp_path / "keys", "ann", ago=5)
    settings = {"auth": ("keys",), "keys_file": tmp_path / "keys"}
    async with (
        serving(small_swarm(), **settings) as manager,
        node("renewal", manager.url, [good, good, stale]) as program,
    ):
        for word in ("connected", "renewed"):
            assert await program.said() == word
            expire(manager)
            program.go()
        assert await program.told() == [["one", "two"], "TOKEN_EXPIRED", "four", [False, True, True]]


@in_node
async def test_a_client_that_was_sent_away_comes_back_with_a_new_token(tmp_path: Path) -> None:
    given = keys(tmp_path / "keys", "old", "new")
    async with locked(tmp_path / "keys") as manager, node("returning", manager.url, given) as program:
        assert await program.said() == "connected"
        KeyStore(tmp_path / "keys").revoke(given[0].split("_")[1], now=time.time())
        assert await program.told() == ["UNAUTHENTICATED", "here", "open"]


@in_node
async def test_publish_idempotency_keys_and_traces_do_what_they_say() -> None:
    async with serving(small_swarm()) as manager:
        finished = Recorder(manager.system, RequestFinished)
        told = await play("extras", manager.url, f"00-{0xABC:032x}-{0xDEF:016x}-01")
        scopes = [event.scope for event in finished.events if event.message_type == "story"]
    assert told == [
        "news.x",
        [{"n": 1}],
        ["piece 0 ", False],
        ["piece 0 ", True],
        "IDEMPOTENCY_KEY_REUSED",
        "VALIDATION_FAILED",
        "VALIDATION_FAILED",
    ]
    assert (scopes[0].trace_id, scopes[0].remote_parent) == (f"{0xABC:032x}", f"{0xDEF:016x}")


@in_node
async def test_a_server_that_goes_away_finishes_what_it_has_while_the_next_takes_what_is_new() -> None:
    gate = Gate()
    first = GrowthManager(small_swarm(gate), Config(port=free_port(), reuse_port=True, drain_timeout=9), publish=False)
    async with asyncio.timeout(PATIENCE), first, node("draining", first.url) as program:
        assert await program.said() == "flying"
        config = Config(port=first.port, reuse_port=True, drain_timeout=0.1)
        async with connect(first.url) as old, GrowthManager(small_swarm(), config, publish=False) as second:
            await old.publish("news", "from the old")
            closing = asyncio.create_task(first.close())
            assert await program.said() == "second"
            gate.opened.set()
            assert await program.said() == "landed"
            await closing
            async with connect(second.url) as new:
                await new.publish("news", "live")
            assert await program.told() == ["second", "first", ["from the old", "gap", "live"]]


@in_node
async def test_a_subscription_follows_over_lost_connections_and_restarts() -> None:
    async with serving(small_swarm()) as first, node("following", first.url) as program:
        assert await program.said() == "hears"
        async with connect(first.url) as other:
            await other.publish("news.x", "seen")
            assert await program.said() == 1
            gateway = first._gateway
            assert gateway is not None
            next(iter(gateway._open)).transport.abort()
            for topic, data in (("other", "not for it"), ("news.y", "missed")):
                await other.publish(topic, data)
        assert await program.said() == 2
        await first.close()
        async with serving(small_swarm(), port=first.port) as second:
            assert await program.said() == 3
            async with connect(second.url) as other:
                await other.publish("news.x", "last")
            assert await program.said() == 4
            told = await program.told()
            assert second._gateway is not None
            assert [each.subscriptions for each in second._gateway.connections()] in ([0], [])
    assert told == [
        ["event", "news.x", "seen", 1],
        ["event", "news.y", "missed", 3],
        ["gap", "news.*", None, 0],
        ["event", "news.x", "last", 1],
    ]


@in_node
async def test_an_event_reaches_each_subscription_whose_pattern_matches() -> None:
    topics = ["a", "a.b", "a.b.c", "a.d", "b.a", "b"]
    async with serving(small_swarm()) as manager, node("heard", manager.url) as program:
        assert await program.said() == "hears"
        async with connect(manager.url) as other:
            for topic in topics:
                await other.publish(topic, None)
        program.go()
        told = await program.told()
    assert told == [["a.b", "a.d"], ["a.b", "a.b.c", "a.d"], topics, ["a.b"], ["b.a"]]


@in_node
async def test_a_topic_is_left_with_its_last_subscription() -> None:
    async with serving(small_swarm()) as manager, node("sharing", manager.url) as program:
        assert manager._gateway is not None
        assert await program.said() == "one"
        assert [each.subscriptions for each in manager._gateway.connections()] == [1]
        async with connect(manager.url) as other:
            await other.publish("news", "for the other")
        assert await program.said() == "none"
        (mine, *_) = manager._gateway.connections()
        assert mine.subscriptions == 0
        program.go()
        assert await program.told() == ["for the other", 0]


@in_node
async def test_events_that_are_not_read_become_a_gap_instead_of_filling_the_memory() -> None:
    async with serving(small_swarm()) as manager, node("flooded", manager.url) as program:
        assert await program.said() == "hears"
        async with connect(manager.url) as other:
            for number in range(1, 101):
                await other.publish("news", number)
        program.go()
        gap, first, left = await program.told()
    assert gap == "gap"
    assert first + left == 100


# --- with a server that the test plays ---


class Peer:
    """The server's end of one connection, played frame by frame."""

    def __init__(self, socket: ServerConnection) -> None:
        self.socket = socket

    async def heard(self, kind: str) -> dict[str, Any]:
        """The next frame, which must be of this type."""
        frame: dict[str, Any] = json.loads(await self.socket.recv())
        assert frame["type"] == kind, frame
        return frame

    async def tell(self, **frame: Any) -> None:
        await self.socket.send(json.dumps(frame))

    async def answer(self, request: dict[str, Any], data: Any = None) -> None:
        await self.tell(type="response", id=request["id"], seq=1, status="success", data=data)

    async def refuse(self, request: dict[str, Any], code: str, *, retryable: bool = False, **more: Any) -> None:
        error = {"error_code": code, "message": "no", "retryable": retryable}
        await self.tell(type="response", id=request["id"], seq=1, status="error", **error, **more)

    async def welcome(self) -> dict[str, Any]:
        """Answer the client's hello."""
        hello = await self.heard("hello")
        await self.tell(type="welcome", id=hello["id"], protocol=1, reconnect_jitter_ms=0)
        return hello

    async def subscribed(self, **answer: Any) -> dict[str, Any]:
        """Answer the client's subscribe."""
        subscribe = await self.heard("subscribe")
        await self.answer(subscribe, {"topic": subscribe["topic"], **answer})
        return subscribe

    async def event(self, offset: int, data: Any = None, *, topic: str = "news", epoch: str = "a") -> None:
        await self.tell(type="event", topic=topic, epoch=epoch, offset=offset, data=data)

    async def gone(self) -> list[str]:
        """The types of all that comes until the client closes the connection."""
        found = []
        try:
            while True:
                found.append(json.loads(await self.socket.recv())["type"])
        except ConnectionClosed:
            return found


class Stage:
    """A server whose connections the test plays, in the order in which they come."""

    def __init__(self) -> None:
        self.url = ""
        self.paths: list[str] = []
        self._peers: asyncio.Queue[Peer] = asyncio.Queue()

    async def _take(self, socket: ServerConnection) -> None:
        assert socket.request is not None
        self.paths.append(socket.request.path)
        self._peers.put_nowait(Peer(socket))
        await socket.wait_closed()

    async def peer(self) -> Peer:
        return await self._peers.get()

    @property
    def alone(self) -> bool:
        """Whether every connection was played."""
        return self._peers.empty()

    @classmethod
    @asynccontextmanager
    async def opened(cls) -> AsyncIterator[Self]:
        stage = cls()
        async with asyncio.timeout(PATIENCE), serve(stage._take, "127.0.0.1", 0, close_timeout=0.1) as listener:
            stage.url = f"ws://127.0.0.1:{listener.sockets[0].getsockname()[1]}/ws"
            yield stage


@asynccontextmanager
async def staged(case: str) -> AsyncIterator[tuple[Stage, Program]]:
    async with Stage.opened() as stage, node(case, stage.url) as program:
        yield stage, program


@in_node
async def test_a_frame_that_cannot_be_read_does_not_end_the_reader() -> None:
    async with staged("strange") as (stage, program):
        peer = await stage.peer()
        await peer.welcome()
        request = await peer.heard("anything")
        frames = ("no json", "[]", "null", "5", '{"id":"9","type":5}', '{"type":"event"}', "[" * 100_000, b"\x00")
        for frame in frames:
            await peer.socket.send(frame)
        await peer.answer(request, "readable")
        assert await program.told() == "readable"


@in_node
@pytest.mark.parametrize("code", [4401, 4430])
async def test_after_a_close_code_that_says_stay_away_the_client_does(code: int) -> None:
    async with staged("unwelcome") as (stage, program):
        peer = await stage.peer()
        await peer.welcome()
        await peer.socket.close(code)
        assert await program.told() == {4401: "UNAUTHENTICATED", 4430: "CONNECTION_LOST"}[code]
    assert stage.alone


@in_node
async def test_a_hello_that_is_refused_is_the_error_of_connecting() -> None:
    async with staged("refused") as (stage, program):
        peer = await stage.peer()
        await peer.refuse(await peer.heard("hello"), "INVALID_TOKEN")
        assert await program.told() == ["INVALID_TOKEN", "AbortError"]


@in_node
async def test_a_server_that_goes_away_finishes_what_it_has_while_new_requests_go_to_the_next() -> None:
    async with staged("going_away") as (stage, program):
        old = await stage.peer()
        await old.welcome()
        await old.subscribed(epoch="a", offset=1)
        first, leave = await old.heard("first"), await old.heard("leave")
        await old.tell(type="goaway", reason="restart", reconnect_after_ms={"min": 0, "max": 20}, close_in_ms=10_000)
        await old.answer(leave)
        new = await stage.peer()
        await new.welcome()
        await old.event(2, "from the old")
        second, subscribe = await new.heard("second"), await new.heard("subscribe")
        await new.answer(second, "second")
        await new.answer(subscribe, {"topic": "news", "epoch": "a", "offset": 3, "recovered": True})
        await new.event(2, "from the old")
        await new.event(3, "missed")
        await old.answer(first, "first")
        assert await old.gone() == []
        await new.event(4, "live")
        assert await program.told() == ["second", "first", ["from the old", "missed", "live"]]


@in_node
async def test_a_subscription_whose_answer_comes_after_the_goodbye_moves_to_the_new_connection() -> None:
    async with staged("moving") as (stage, program):
        old = await stage.peer()
        await old.welcome()
        late = await old.heard("subscribe")
        await old.tell(type="goaway", reason="restart", reconnect_after_ms={"min": 0, "max": 0}, close_in_ms=10_000)
        new = await stage.peer()
        await new.welcome()
        await new.answer(await new.heard("first"))
        await old.answer(late, {"topic": "news", "epoch": "a", "offset": 1})
        assert (await new.subscribed(epoch="a", offset=2, recovered=True))["recover"] == {"epoch": "a", "offset": 1}
        await new.event(2, "moved")
        assert await program.told() == ["moved"]


@in_node
async def test_a_subscription_goes_on_where_it_was_and_says_where_events_are_missing() -> None:
    async with staged("recovering") as (stage, program):
        peer = await stage.peer()
        await peer.welcome()
        assert (await peer.subscribed(epoch="a", offset=5, recovered=True))["recover"] == {"epoch": "a", "offset": 3}
        await peer.event(3, "seen", topic="news.x")
        await peer.event(5, "missed", topic="news.x")
        await peer.event(9, "live", topic="news.y")
        await peer.socket.close(1012)
        peer = await stage.peer()
        await peer.welcome()
        assert (await peer.subscribed(epoch="a", offset=9, recovered=True))["recover"] == {"epoch": "a", "offset": 9}
        await peer.event(12, "again", topic="news.x")
        await peer.socket.close(1012)
        peer = await stage.peer()
        await peer.welcome()
        assert (await peer.subscribed(epoch="b", offset=2, recovered=False))["recover"] == {"epoch": "a", "offset": 12}
        await peer.event(3, "last", topic="news.x", epoch="b")
        unsubscribe = await peer.heard("unsubscribe")
        assert unsubscribe["topic"] == "news.*"
        await peer.answer(unsubscribe)
        assert await program.told() == [
            ["event", "news.x", "missed", "a", 5],
            ["event", "news.y", "live", "a", 9],
            ["event", "news.x", "again", "a", 12],
            ["gap", "news.*", None, "b", 2],
            ["event", "news.x", "last", "b", 3],
        ]


@in_node
@pytest.mark.slow
async def test_after_reconnecting_a_busy_server_is_asked_again_and_a_refusal_ends_the_subscription() -> None:
    async with staged("resubscribing") as (stage, program):
        peer = await stage.peer()
        await peer.welcome()
        for _ in range(2):
            await peer.subscribed(epoch="a", offset=1)
        await peer.socket.close(1012)
        peer = await stage.peer()
        await peer.welcome()
        await peer.refuse(await peer.heard("subscribe"), "RATE_LIMITED", retryable=True, retry_after_ms=1)
        assert (await peer.subscribed(epoch="a", offset=1, recovered=True))["topic"] == "kept"
        await peer.event(2, "kept", topic="kept")
        await peer.refuse(await peer.heard("subscribe"), "TOPIC_NOT_FOUND")
        await peer.subscribed(epoch="a", offset=2)
        await peer.answer(await peer.heard("unsubscribe"))
        await peer.refuse(await peer.heard("subscribe"), "PERMISSION_DENIED")
        early = await peer.heard("subscribe")
        assert (await peer.heard("cancel"))["request_id"] == early["id"]
        unsubscribe = await peer.heard("unsubscribe")
        assert unsubscribe["topic"] == "early"
        await peer.answer(unsubscribe)
        assert await peer.gone() == []
        assert await program.told() == ["TOPIC_NOT_FOUND", ["kept"], [], "PERMISSION_DENIED", "AbortError"]


@in_node
@pytest.mark.slow
async def test_a_connection_without_a_sign_of_life_is_given_up() -> None:
    async with staged("listening") as (stage, program):
        peer = await stage.peer()
        await peer.welcome()
        await peer.tell(type="pong", id=(await peer.heard("ping"))["id"])
        assert await peer.gone() == ["ping"]
        await (await stage.peer()).welcome()
        assert await program.told() == ["open", "reconnecting", "open", "closed"]


@in_node
async def test_a_program_can_end_the_wait_for_the_next_try() -> None:
    async with staged("at_once") as (stage, program):
        peer = await stage.peer()
        await peer.welcome()
        leave = {"min": 60_000, "max": 90_000}
        await peer.tell(type="goaway", reason="restart", reconnect_after_ms=leave, close_in_ms=10_000)
        await peer.answer(await peer.heard("fall"))
        peer = await stage.peer()
        await peer.welcome()
        await peer.answer(await peer.heard("anything"))
        assert await program.told() == ["open", "reconnecting", "open", "closed"]


# --- a browser ---

PAGE = """<script type="module">
import { connect, GramiError } from "HOME/client.js";
import * as cases from "/cases.mjs";
const told = {};
const [ask, said] = [document.querySelector("#ask"), document.querySelector("#said")];
const until = async (condition) => { while (!condition()) await new Promise((done) => setTimeout(done, 5)); };
try {
  await until(() => ask.onclick);
  ask.click();
  await until(() => said.textContent.includes("}"));
  told.said = said.textContent;
  const given = { connect: (options) => connect("URL", options), GramiError };
  for (const name of CASES) told[name] = await cases[name](given);
  told.here = await connect().catch((error) => error.message);
} catch (error) {
  told.flaw = String(error.stack);
}
await fetch("/told", { method: "POST", body: JSON.stringify(told) });
</script>
"""
NONCE = "c2VjcmV0"
POLICY = "default-src 'none'; script-src 'self' 'nonce-{}' {}; connect-src 'self' {}"


DOCUMENTED = (ROOT / "docs" / "javascript.md").read_text().partition("```html\n")[2].partition("```")[0]
"""The page that the documentation shows."""


class ContentRequest(Message):
    platform: str
    niche: str


class Writer(Agent):
    @handles(ContentRequest)
    async def write(self, request: ContentRequest) -> dict[str, str]:
        self.emit("a piece ")
        return {"text": f"about {request.niche} for {request.platform}"}


@in_browser
@pytest.mark.slow
async def test_the_page_of_the_documentation_and_every_kind_of_request_work_in_a_browser(tmp_path: Path) -> None:
    cases = ["conversation", "leaving", "closing", "lagging", "losing"]
    small = small_swarm()
    swarm = Swarm(agents=[*small.agents, Writer], tools=list(small.tools))
    async with site() as (found, origin), serving(swarm, allowed_origins=(origin,)) as manager:
        opened, finished = Recorder(manager.system, ConnectionOpened), Recorder(manager.system, RequestFinished)
        home = manager.url.replace("ws:", "http:").removesuffix("/ws")
        shown = DOCUMENTED.replace("ws://127.0.0.1:8765/ws", manager.url).replace("http://127.0.0.1:8765", home)
        found.page = shown + PAGE.replace("URL", manager.url).replace("CASES", json.dumps(cases)).replace("HOME", home)
        found.page = found.page.replace("<script ", f'<script nonce="{NONCE}" ')
        found.files["/cases.mjs"] = SCRIPTS / "cases.mjs"
        found.policy = POLICY.format(NONCE, home, manager.url)
        visiting = asyncio.create_task(visit(found, origin, tmp_path / "profile"))
        await opened.until(lambda events: len(events) == 1 + len(cases))
        # The last case says that it is ready with the last request that ends before it is cut off.
        last = opened.events[-1].connection
        await finished.until(lambda events: any(e.connection == last and e.message_type == "echo" for e in events))
        cut(manager)
        told = await visiting
    assert "flaw" not in told, told["flaw"]
    assert told["said"] == '[open]\n"a piece "\n{"text":"about tech for instagram"}\n'
    check_conversation(told["conversation"])
    assert told["leaving"] == ["AbortError", "RangeError", "RangeError", "DEADLINE_EXCEEDED"]
    assert told["closing"] == ["CONNECTION_LOST", "closed"]
    assert told["lagging"] == [True, 5_000]
    assert told["losing"][:3] == ["response.started", ["CONNECTION_LOST", "CONNECTION_LOST"], "again"]
    # The host of the page is where a client looks that was told nothing.
    assert origin.replace("http", "ws") + "/ws" in told["here"]
