"""The client and credentials: where tokens come from, when they expire, and who is shown them; TLS and MessagePack."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.http11 import Response

from grami_actors import (
    Agent,
    Client,
    Config,
    ConnectionLost,
    DeadlineExceeded,
    GramiError,
    GrowthManager,
    Message,
    ServerNotFound,
    Swarm,
    connect,
    handles,
)
from grami_actors.api_keys import KeyStore
from grami_actors.errors import ConfigError
from grami_actors.telemetry import ConnectionOpened, RequestFinished
from tests.conftest import Gate, Recorder, cut, serving, turns_until
from tests.swarms import Echo, small_swarm
from tests.test_client import asking

QUICK = {"token_grace": 0.0, "message_timeout": 0.1}
"""The connection of a token that expired is closed within a moment."""


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("GRAMI_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


class Keys:
    """A server that asks for keys, and keys."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._store = KeyStore(path)

    def make(self, name: str = "ann", *, ago: float | None = None) -> str:
        ends = None if ago is None else time.time() - ago
        return self._store.create(name, (), now=time.time() - 9, expires_at=ends)[1]

    def serving(self, **options: Any) -> Any:
        return serving(small_swarm(), auth=("keys",), keys_file=self.path, **options)


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys.json")


def expire(manager: GrowthManager) -> None:
    """Let the tokens of all open connections expire now."""
    assert manager._gateway is not None
    for actor in manager._gateway._actors():
        actor.protocol._expires_at = 0.0


def principals(manager: GrowthManager) -> list[str]:
    assert manager._gateway is not None
    return [each.principal for each in manager._gateway.connections()]


async def refusal(url: str | None, **options: Any) -> GramiError:
    with pytest.raises(GramiError) as refused:
        async with connect(url, **options):
            pass
    return refused.value


# --- where the token comes from ---


@pytest.mark.parametrize("kind", ["text", "function", "coroutine function", "GRAMI_TOKEN"])
async def test_a_token_is_a_text_a_function_or_a_variable(
    kind: str, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = keys.make()

    async def later() -> str:
        await asyncio.sleep(0)
        return text

    if kind == "GRAMI_TOKEN":
        monkeypatch.setenv("GRAMI_TOKEN", text)
    given: Any = {"text": text, "function": lambda: text, "coroutine function": later}.get(kind)
    async with keys.serving() as manager, connect(manager.url, token=given) as grami:
        assert (await grami.request("echo", text="x"))["text"] == "x"
        assert principals(manager) == ["ann"]


async def test_without_a_token_the_error_says_how_to_give_one(keys: Keys) -> None:
    async with keys.serving() as manager:
        error = await refusal(manager.url)
    assert error.error_code == "UNAUTHENTICATED"
    for words in (manager.url, "token=", "GRAMI_TOKEN", "grami token create"):
        assert words in error.message


@pytest.mark.parametrize(("token", "code"), [("nonsense", "INVALID_TOKEN"), ("x" * 9000, "VALIDATION_FAILED")])
async def test_a_token_that_is_refused_is_the_error_of_connecting_and_is_not_told(
    token: str, code: str, keys: Keys
) -> None:
    async with keys.serving() as manager:
        error = await refusal(manager.url, token=token)
    assert error.error_code == code
    assert token not in error.message


async def test_a_token_that_has_expired_is_the_error_of_connecting(keys: Keys) -> None:
    async with keys.serving() as manager:
        assert (await refusal(manager.url, token=keys.make(ago=5))).error_code == "TOKEN_EXPIRED"


async def test_a_function_that_fails_is_the_error_of_connecting_with_its_cause(keys: Keys) -> None:
    def fail() -> str:
        raise OSError("the vault is shut")

    async with keys.serving() as manager:
        error = await refusal(manager.url, token=fail)
    assert error.error_code == "UNAUTHENTICATED"
    assert "the vault is shut" in error.message
    assert isinstance(error.__cause__, OSError)


async def test_a_function_that_fails_for_a_while_is_asked_again(keys: Keys) -> None:
    asked: list[str] = []
    text = keys.make()

    def sometimes() -> str:
        asked.append("")
        if len(asked) == 2:
            raise OSError("the vault is shut")
        return text

    async with keys.serving() as manager, connect(manager.url, token=sometimes) as grami:
        cut(manager)
        await turns_until(lambda: not grami._connected.is_set())
        assert (await grami.request("echo", text="again"))["text"] == "again"
    assert len(asked) == 3


async def test_the_operators_token_goes_only_to_the_address_that_its_state_file_gives(
    keys: Keys, tmp_path: Path
) -> None:
    heard: list[dict[str, Any]] = []

    async def listen(peer: ServerConnection) -> None:
        heard.append(json.loads(await peer.recv()))
        await peer.send('{"type":"welcome","id":"hello"}')
        await peer.wait_closed()

    config = Config(auth=("keys",), keys_file=keys.path, state_dir=tmp_path / ".grami", drain_timeout=0.1)
    async with GrowthManager(small_swarm(), config) as manager, serve(listen, "127.0.0.1", 0) as other:
        async with connect():
            assert principals(manager) == ["operator"]
        async with connect(token=keys.make()):
            assert principals(manager)[-1] == "ann"
        async with connect(f"ws://127.0.0.1:{other.sockets[0].getsockname()[1]}/ws"):
            pass
        assert (await refusal(manager.url)).error_code == "UNAUTHENTICATED"
    assert len(heard) == 1
    assert "token" not in heard[0]


async def test_a_redirect_is_not_followed_and_no_token_goes_elsewhere() -> None:
    met: list[str] = []

    def elsewhere(peer: ServerConnection, request: Any) -> Response:
        met.append(request.path)
        return Response(302, "Found", Headers(Location="/other"))

    async def never(peer: ServerConnection) -> None:
        met.append("connected")

    async with serve(never, "127.0.0.1", 0, process_request=elsewhere) as sly:
        url = f"ws://127.0.0.1:{sly.sockets[0].getsockname()[1]}/ws"
        assert isinstance(await refusal(url, token="secret"), ServerNotFound)
    assert met == ["/ws"]


# --- when it expires ---


async def test_authenticate_renews_the_token_here_and_for_later_connections(keys: Keys) -> None:
    old, new = keys.make(), keys.make()
    async with keys.serving() as manager, connect(manager.url, token=old) as grami:
        expire(manager)
        with pytest.raises(GramiError) as expired:
            await grami.request("echo", text="x")
        assert expired.value.error_code == "TOKEN_EXPIRED"
        assert await grami.authenticate(new) == {"principal": "ann", "expires_in_ms": None}
        assert (await grami.request("echo", text="x"))["text"] == "x"
        store = KeyStore(keys.path)
        store.revoke(old.split("_")[1], now=time.time())
        cut(manager)
        await turns_until(lambda: not grami._connected.is_set())
        assert (await grami.request("echo", text="y"))["text"] == "y"


@pytest.mark.parametrize("code", ["INVALID_TOKEN", "PERMISSION_DENIED"])
async def test_a_token_that_is_refused_on_the_open_connection_changes_nothing(code: str, keys: Keys) -> None:
    token = "nonsense" if code == "INVALID_TOKEN" else keys.make("bob")
    async with keys.serving() as manager, connect(manager.url, token=keys.make()) as grami:
        with pytest.raises(GramiError) as refused:
            await grami.authenticate(token)
        assert refused.value.error_code == code
        cut(manager)
        await turns_until(lambda: not grami._connected.is_set())
        assert (await grami.request("echo", text="x"))["text"] == "x"
        assert principals(manager) == ["ann"]


async def test_requests_that_are_refused_for_an_expired_token_are_sent_again_after_one_renewal(keys: Keys) -> None:
    asked: list[str] = []
    text = keys.make()

    async def fresh() -> str:
        asked.append("")
        await asyncio.sleep(0)
        return text

    async with keys.serving() as manager, connect(manager.url, token=fresh) as grami:
        finished = Recorder(manager.system, RequestFinished)
        expire(manager)
        answers = await asyncio.gather(*(grami.request("echo", text="x", number=number) for number in range(5)))
        assert [each["number"] for each in answers] == list(range(5))
        assert len(asked) == 2
        assert len(finished.events) == 10
        assert [frame.type async for frame in grami.stream("story", pieces=0)][-1] == "response"


async def test_a_function_that_gives_only_expired_tokens_is_asked_once_for_each_request(keys: Keys) -> None:
    given = [keys.make()]
    stale = keys.make(ago=5)
    asked: list[str] = []

    def stingy() -> str:
        asked.append("")
        return given.pop() if given else stale

    async with keys.serving() as manager, connect(manager.url, token=stingy) as grami:
        expire(manager)
        with pytest.raises(GramiError) as expired:
            await grami.request("echo", text="x")
        assert expired.value.error_code == "TOKEN_EXPIRED"
    assert len(asked) == 2


async def test_a_connection_that_is_closed_for_its_expired_token_comes_back_with_a_fresh_one(keys: Keys) -> None:
    text = keys.make()
    async with keys.serving(**QUICK) as manager, connect(manager.url, token=lambda: text) as grami:
        opened = Recorder(manager.system, ConnectionOpened)
        expire(manager)
        await opened.first(ConnectionOpened)
        assert (await grami.request("echo", text="x"))["text"] == "x"


async def test_where_no_function_gives_a_fresh_one_the_error_says_what_to_do(keys: Keys) -> None:
    async with keys.serving(**QUICK) as manager, connect(manager.url, token=keys.make()) as grami:
        waiting = asyncio.create_task(grami.request("slow"))
        expire(manager)
        assert grami._runner is not None
        await asyncio.wait((grami._runner,))
        with pytest.raises(GramiError) as expired:
            await grami.request("echo", text="x")
        await asyncio.wait((waiting,))
    assert expired.value.error_code == "TOKEN_EXPIRED"
    for words in ("4419", "authenticate()", "function", "token="):
        assert words in expired.value.message
    assert isinstance(waiting.exception(), GramiError)


async def test_a_key_that_is_revoked_ends_the_client_with_unauthenticated(keys: Keys) -> None:
    text = keys.make()
    async with keys.serving(**QUICK) as manager, connect(manager.url, token=text) as grami:
        KeyStore(keys.path).revoke(text.split("_")[1], now=time.time())
        assert grami._runner is not None
        await asyncio.wait((grami._runner,))
        with pytest.raises(GramiError, match="revoked") as refused:
            await grami.ping()
    assert refused.value.error_code == "UNAUTHENTICATED"


# --- what is not a Growth Manager ---


def answering(*frames: str) -> Callable[[ServerConnection], Any]:
    async def answer(peer: ServerConnection) -> None:
        await peer.recv()
        for frame in frames:
            await peer.send(frame)
        await peer.wait_closed()

    return answer


@pytest.mark.parametrize("frames", [(), ("hi",), ('{"status":"error","error_code":"UNKNOWN_TYPE","message":"?"}',)])
async def test_a_hello_that_is_never_answered_is_a_server_not_found_that_says_so(frames: tuple[str, ...]) -> None:
    async with asyncio.timeout(5), serve(answering(*frames), "127.0.0.1", 0) as strange:
        url = f"ws://127.0.0.1:{strange.sockets[0].getsockname()[1]}/ws"
        error = await refusal(url, open_timeout=0.05)
    assert isinstance(error, ServerNotFound)
    assert "'hello' was not answered" in error.message
    assert url in error.message


async def test_a_hello_that_is_answered_with_an_error_is_that_error() -> None:
    frame = '{"type":"response","id":"hello","status":"error","error_code":"UNSUPPORTED_VERSION","message":"only 7"}'
    async with asyncio.timeout(5), serve(answering(frame), "127.0.0.1", 0) as newer:
        error = await refusal(f"ws://127.0.0.1:{newer.sockets[0].getsockname()[1]}/ws")
    assert (error.error_code, error.message) == ("UNSUPPORTED_VERSION", "only 7")


async def test_a_server_that_hangs_up_again_and_again_is_tried_with_growing_pauses() -> None:
    came: list[float] = []

    async def hang_up(peer: ServerConnection) -> None:
        came.append(asyncio.get_running_loop().time())
        await peer.recv()
        await peer.send('{"type":"welcome","id":"hello"}')
        await peer.close(1011)

    async with asyncio.timeout(5), serve(hang_up, "127.0.0.1", 0) as moody:
        url = f"ws://127.0.0.1:{moody.sockets[0].getsockname()[1]}/ws"
        async with connect(url):
            await turns_until(lambda: len(came) == 4)
    pauses = [later - earlier for earlier, later in pairwise(came)]
    assert all(pause >= least for pause, least in zip(pauses, (0.05, 0.1, 0.2), strict=False))


# --- TLS ---


async def test_a_server_with_tls_is_trusted_by_a_context_or_by_grami_ca(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca = trustme.CA()
    leaf = ca.issue_cert("127.0.0.1")
    leaf.private_key_and_cert_chain_pem.write_to_path(tmp_path / "cert.pem")
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    async with serving(small_swarm(), tls_cert=tmp_path / "cert.pem") as manager:
        assert manager.url.startswith("wss://")
        assert "certificate verify failed" in (await refusal(manager.url)).message
        monkeypatch.setenv("GRAMI_CA", str(tmp_path / "ca.pem"))
        async with connect(manager.url) as grami:
            await grami.ping()
        monkeypatch.delenv("GRAMI_CA")
        context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
        async with connect(manager.url, tls=context) as grami:
            await grami.ping()


@pytest.mark.parametrize("content", [None, b"no certificate"])
def test_a_grami_ca_that_is_none_is_an_error_of_the_configuration(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content is not None:
        (tmp_path / "ca.pem").write_bytes(content)
    monkeypatch.setenv("GRAMI_CA", str(tmp_path / "ca.pem"))
    with pytest.raises(ConfigError, match="GRAMI_CA"):
        connect("wss://127.0.0.1:1/ws")


# --- MessagePack ---


class Blob(Message):
    data: bytes
    text: str = ""


class Blobber(Agent):
    @handles(Blob)
    def turn(self, message: Blob) -> dict[str, Any]:
        self.emit(message.data)
        return {"data": message.data[::-1], "text": message.text}


async def test_messagepack_carries_everything_and_bytes_as_they_are() -> None:
    small = small_swarm()
    swarm = Swarm(agents=[*small.agents, Blobber], tools=list(small.tools))
    data = bytes(range(256))
    async with serving(swarm) as manager, connect(manager.url, encoding="msgpack") as grami:
        assert await grami.request("blob", data=data, text="ü") == {"data": data[::-1], "text": "ü"}
        assert (await grami.request(Blob(data)))["data"] == data[::-1]
        frames = [frame async for frame in grami.stream("blob", data=data)]
        assert [frame.data for frame in frames if frame.type == "response.chunk"] == [data]
        assert (await grami.describe())["agents"]
        await grami.ping()
        with pytest.raises(GramiError) as wrong:
            await grami.request("echo", text=5)
        assert (wrong.value.error_code, wrong.value.param) == ("VALIDATION_FAILED", "$.text")
        news = grami.subscribe("news")
        first = asyncio.ensure_future(anext(news))
        await turns_until(lambda: any(each.live for each in grami._conversation.hearings))
        await grami.publish("news", {"n": 1})
        assert (await first).data == {"n": 1}
        await news.aclose()
        cut(manager)
        await turns_until(lambda: not grami._connected.is_set())
        assert (await grami.request(Echo("again")))["text"] == "again"


async def test_json_carries_bytes_as_base64() -> None:
    async with serving(Swarm([Blobber])) as manager, connect(manager.url) as grami:
        assert (await grami.request(Blob(b"abc")))["data"] == "Y2Jh"
        assert (await grami.request("blob", data=b"abc"))["data"] == "Y2Jh"


# --- keys, traces, goodbyes ---


async def test_a_request_with_the_same_key_is_done_once() -> None:
    async with asking() as (grami, _):
        first = [frame async for frame in grami.stream("story", pieces=1, idempotency_key="k")][-1]
        again = [frame async for frame in grami.stream("story", pieces=1, idempotency_key="k")][-1]
        assert (first.data, first.replayed) == ("piece 0 ", False)
        assert (again.data, again.replayed) == ("piece 0 ", True)
        with pytest.raises(GramiError) as other:
            await grami.request("story", pieces=2, idempotency_key="k")
        assert other.value.error_code == "IDEMPOTENCY_KEY_REUSED"


async def test_the_trace_of_the_program_goes_on_in_the_server() -> None:
    trace = pytest.importorskip("opentelemetry.trace")
    pytest.importorskip("opentelemetry.propagate")
    context = trace.SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=trace.TraceFlags(1))
    async with asking() as (grami, manager):
        finished = Recorder(manager.system, RequestFinished)
        with trace.use_span(trace.NonRecordingSpan(context)):
            await grami.request("echo", text="x")
        await grami.request("echo", text="x", meta={"traceparent": f"00-{7:032x}-{7:016x}-01"})
        inside, named = [event.scope for event in finished.events if event.message_type == "echo"]
    assert (inside.trace_id, inside.remote_parent) == (f"{0xABC:032x}", f"{0xDEF:016x}")
    assert named.trace_id == f"{7:032x}"


async def test_when_a_server_goes_away_what_is_in_flight_ends_and_what_is_new_goes_to_the_next() -> None:
    gate = Gate()
    async with asyncio.timeout(20):
        first = GrowthManager(small_swarm(gate), Config(drain_timeout=5.0), publish=False)
        await first.__aenter__()
        async with connect(first.url) as grami:
            flying = asyncio.create_task(grami.request("slow", text="landed"))
            await gate.until_entered()
            closing = asyncio.create_task(first.close())
            await turns_until(lambda: not grami._connected.is_set())
            new = asyncio.create_task(grami.request("echo", text="new"))
            with pytest.raises(DeadlineExceeded):
                await grami.request("echo", text="in a hurry", timeout=0.01)
            gate.opened.set()
            assert await flying == "landed"
            await closing
            async with GrowthManager(
                small_swarm(), Config(port=first.port, drain_timeout=0.1), publish=False
            ) as second:
                assert (await new)["text"] == "new"
                assert len(principals(second)) == 1


async def test_a_server_that_is_silent_past_the_deadline_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grami_actors.client.GRACE", 0.01)
    async with serve(answering('{"type":"welcome","id":"hello"}'), "127.0.0.1", 0) as silent:
        url = f"ws://127.0.0.1:{silent.sockets[0].getsockname()[1]}/ws"
        async with asyncio.timeout(5), connect(url) as grami:
            with pytest.raises(DeadlineExceeded, match="the outcome is unknown"):
                await grami.request("anything", timeout=0.01)
            assert grami._conversation._waiting == {}


# --- giving up at any moment ---


@asynccontextmanager
async def tidy() -> AsyncIterator[None]:
    """What is done inside leaves no task behind."""
    before = asyncio.all_tasks()
    yield
    gc.collect()
    async with asyncio.timeout(5):
        await turns_until(lambda: asyncio.all_tasks() <= before)


async def cancelled_after(steps: int, work: Any) -> None:
    """Run it, and cancel it when the loop went round so often."""
    task = asyncio.ensure_future(work)
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, GramiError):
        await task


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.integers(0, 60), min_size=5, max_size=5), encoding=st.sampled_from(["json", "msgpack"]))
@pytest.mark.slow
def test_whenever_it_is_cancelled_the_client_is_usable_or_closed_and_leaves_nothing_behind(
    steps: list[int], encoding: Any
) -> None:
    async def connecting(url: str) -> None:
        async with connect(url, encoding=encoding) as grami:
            await grami.ping()

    async def reading(grami: Any) -> None:
        async with contextlib.aclosing(grami.subscribe("news.>")) as frames:
            async for _ in frames:
                pass

    async def play() -> None:
        async with serving(small_swarm()) as manager:
            async with tidy():
                await cancelled_after(steps[0], connecting(manager.url))
            async with tidy(), connect(manager.url, encoding=encoding) as grami:
                await cancelled_after(steps[1], grami.request("slow"))
                await cancelled_after(steps[2], reading(grami))
                await cancelled_after(steps[3], grami.publish("news.x", 1))
                await cancelled_after(steps[4], grami.authenticate("x"))
                assert (await grami.request("echo", text="usable"))["text"] == "usable"
                assert grami._conversation._waiting == {}
                assert grami._conversation.hearings == ()
                await grami.ping()
                assert [each.subscriptions for each in manager._gateway.connections()][-1:] == [0]
                await turns_until(lambda: manager.system.table.cells["holder"].working == 0)
            await turns_until(lambda: principals(manager) == [])

    asyncio.run(play())


async def test_a_client_that_loses_everything_at_once_ends_all_who_wait_and_leaves_no_task() -> None:
    async def listen(grami: Client) -> None:
        async for _ in grami.subscribe("news"):
            pass

    async with tidy(), serving(small_swarm()) as manager, connect(manager.url, retry_for=0.0) as grami:
        work = [asyncio.create_task(each) for each in (grami.request("slow"), listen(grami), grami.request("slow"))]
        await turns_until(lambda: any(each.live for each in grami._conversation.hearings))
        await grami.ping()
        cut(manager)
        await asyncio.wait(work)
        assert {type(each.exception()) for each in work} == {ConnectionLost}
        assert grami._conversation._waiting == {}
        assert grami._conversation.hearings == ()
