"""Who is let in, over real sockets: tokens in every place, their end, and nothing of them anywhere else."""

from __future__ import annotations

import base64
import hmac
import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from loguru import logger
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from grami_actors import Swarm, handles, tool
from grami_actors.api_keys import KeyStore
from grami_actors.config import Config
from grami_actors.errors import ConfigError
from grami_actors.frames import ADMIN_TYPES
from grami_actors.logs import log_to
from grami_actors.manager import GrowthManager
from grami_actors.permissions import Rule
from grami_actors.telemetry import ConnectionClosed as ClosedEvent
from grami_actors.telemetry import ConnectionOpened, ConnectionRefused, DeadLetter, LimitHit, MessageHandled, ToolCalled
from tests.conftest import Recorder, heard, raw, serving, tell
from tests.deputies import Deputy, Errand
from tests.swarms import small_swarm
from tests.test_jwt_tokens import ALL, KEYS, encode, public, sign

PAGE = "https://app.example"
ECHO = {"type": "echo", "text": "x"}


async def answer(socket: Any, **message: Any) -> dict[str, Any]:
    await tell(socket, **message)
    return await heard(socket)


async def closed(socket: ClientConnection) -> tuple[int, str]:
    """How the server closes a connection, after whatever it still sends."""
    with pytest.raises(ConnectionClosed) as caught:  # noqa: PT012 - frames that came before may be there
        while True:
            await socket.recv()
    assert caught.value.rcvd is not None
    return caught.value.rcvd.code, caught.value.rcvd.reason


def bearer(*tokens: str) -> dict[str, Any]:
    return {"additional_headers": [("Authorization", f"Bearer {token}") for token in tokens]}


class Keys:
    """API keys in a file, of which some are no good any more."""

    def __init__(self, folder: Path) -> None:
        self.store = KeyStore(folder / "keys.json")
        now = time.time()
        self.key, self.good = self.store.create("ann", ["news"], now=now)
        self.again = self.store.create("ann", [], now=now)[1]
        self.other = self.store.create("ben", ["admin"], now=now)[1]
        self.expired = self.store.create("ann", [], now=now, expires_at=now - 60)[1]
        key, self.revoked = self.store.create("ann", [], now=now)
        self.store.revoke(key.id, now=now)
        self.wrong = self.good[:-3] + ("AAA" if self.good[-3:] != "AAA" else "BBB")
        self.all = (self.good, self.again, self.other, self.expired, self.revoked, self.wrong)

    @asynccontextmanager
    async def serving(self, swarm: Swarm | None = None, **settings: Any) -> AsyncIterator[GrowthManager]:
        settings = {"auth": ("keys",), "keys_file": self.store.path} | settings
        async with serving(swarm or small_swarm(), **settings) as manager:
            yield manager


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


# --- the ways in ---


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_a_token_in_the_header_of_the_handshake_is_a_principal(scheme: str, keys: Keys) -> None:
    headers = {"Authorization": f"{scheme} {keys.good}"}
    async with keys.serving() as manager, raw(manager, additional_headers=headers) as socket:
        assert (await answer(socket, **ECHO))["status"] == "success"
        assert (await answer(socket, type="hello"))["principal"] == "ann"


@pytest.mark.parametrize(
    ("others", "chosen"),
    [([], None), (["grami.v1.json"], "grami.v1.json"), (["x", "grami.v1.msgpack"], "grami.v1.msgpack")],
)
async def test_a_token_in_a_subprotocol_is_a_principal_and_never_told_back(
    others: list[Any], chosen: str | None, keys: Keys
) -> None:
    offered = [f"bearer.{keys.good}", *others]
    async with keys.serving() as manager, raw(manager, subprotocols=offered) as socket:
        assert socket.subprotocol == chosen
        assert socket.response is not None
        assert keys.good not in str(socket.response.headers)
        seen = Recorder(manager.system, ClosedEvent)
        assert manager._gateway is not None
        assert [each.principal for each in manager._gateway.connections()] == ["ann"]
    await seen.first(ClosedEvent)


async def test_a_token_in_hello_or_auth_is_a_principal_in_both_modes(keys: Keys) -> None:
    async with keys.serving() as manager:
        async with raw(manager) as socket:
            assert (await answer(socket, type="hello", token=keys.good))["principal"] == "ann"
            assert (await answer(socket, **ECHO))["status"] == "success"
        async with raw(manager) as socket:
            data = {"principal": "ann", "expires_in_ms": None}
            assert await answer(socket, type="auth", token=keys.good) == {"status": "success", "data": data}
            assert (await answer(socket, **ECHO))["status"] == "success"
        async with raw(manager) as socket:
            told = await answer(socket, type="auth", token=keys.good, id=7)
            assert (told["type"], told["id"], told["data"]) == ("response", 7, data)


async def test_a_page_whose_token_is_good_is_let_in(keys: Keys) -> None:
    offered: list[Any] = ["grami.v1.json", f"bearer.{keys.good}"]
    async with (
        keys.serving(allowed_origins=(PAGE,)) as manager,
        raw(manager, origin=PAGE, subprotocols=offered) as socket,
    ):
        assert (await answer(socket, **ECHO))["status"] == "success"


# --- tokens that are no good ---


def no_good(keys: Keys) -> dict[str, dict[str, Any]]:
    return {
        "wrong": bearer(keys.wrong),
        "expired": bearer(keys.expired),
        "revoked": bearer(keys.revoked),
        "garbage": bearer("grami garbage!"),
        "empty": bearer(""),
        "unsigned": bearer(f"{encode({'alg': 'none'})}.{encode({'sub': 'ann'})}."),
        "two headers": bearer(keys.good, keys.good),
        "two subprotocols": {"subprotocols": [f"bearer.{keys.good}", f"bearer.{keys.again}"]},
        "a header and a subprotocol": bearer(keys.good) | {"subprotocols": [f"bearer.{keys.good}"]},
        "a subprotocol": {"subprotocols": ["grami.v1.json", f"bearer.{keys.wrong}"]},
    }


async def test_a_handshake_with_a_token_that_is_no_good_is_refused_with_401(keys: Keys) -> None:
    async with keys.serving() as manager:
        seen = Recorder(manager.system, ConnectionRefused)
        for name, options in no_good(keys).items():
            with pytest.raises(InvalidStatus) as refused:
                async with raw(manager, **options):
                    pass
            response = refused.value.response
            assert (response.status_code, response.headers["WWW-Authenticate"]) == (401, "Bearer"), name
            assert "Sec-WebSocket-Protocol" not in response.headers
            assert not any(token in f"{response}{response.body!r}" for token in keys.all)
        assert len(seen.events) == len(no_good(keys))


async def test_a_page_with_a_token_that_is_no_good_is_let_in_to_hear_why_and_closed(keys: Keys) -> None:
    async with keys.serving(allowed_origins=(PAGE,)) as manager:
        for name, options in no_good(keys).items():
            async with raw(manager, origin=PAGE, **options) as socket:
                expired = name == "expired"
                assert await closed(socket) == ((4419, "TOKEN_EXPIRED") if expired else (4401, "INVALID_TOKEN")), name


@pytest.mark.parametrize("kind", ["hello", "auth"])
async def test_a_token_in_band_that_is_no_good_is_answered_and_then_the_connection_is_closed(
    kind: str, keys: Keys
) -> None:
    tokens = {keys.wrong: "INVALID_TOKEN", keys.revoked: "INVALID_TOKEN", "": "INVALID_TOKEN", "é": "INVALID_TOKEN"}
    async with keys.serving() as manager:
        for token, code in (tokens | {keys.expired: "TOKEN_EXPIRED"}).items():
            for mode in ({}, {"id": "a"}):
                async with raw(manager) as socket:
                    told = await answer(socket, type=kind, token=token, **mode)
                    assert told["error_code"] == code
                    assert told.get("id") == mode.get("id")
                    if not mode:
                        assert set(told) == {"status", "error_code", "message"}
                    assert await closed(socket) == (4419 if code == "TOKEN_EXPIRED" else 4401, code)


async def test_nobody_is_served_before_they_said_who_they_are(keys: Keys) -> None:
    async with keys.serving() as manager, raw(manager) as socket:
        for kind in ("echo", "nothing", "tool_call", "hello", "describe", "subscribe", "publish", *sorted(ADMIN_TYPES)):
            assert (await answer(socket, type=kind, id=1))["error_code"] == "UNAUTHENTICATED", kind
        assert await answer(socket, **ECHO) == {
            "status": "error",
            "error_code": "UNAUTHENTICATED",
            "message": "authenticate first: send 'hello' or 'auth' with a token",
        }
        assert (await answer(socket, type="ping", id=2))["type"] == "pong"
        assert (await answer(socket, type="hello", token=keys.good))["type"] == "welcome"
        assert (await answer(socket, **ECHO))["status"] == "success"


async def test_who_does_not_say_who_they_are_in_time_is_closed_and_counted(keys: Keys) -> None:
    async with keys.serving(auth_timeout=0.05) as manager:
        hits = Recorder(manager.system, LimitHit)
        async with raw(manager, **bearer(keys.good)) as known, raw(manager) as socket:
            assert (await closed(socket))[0] == 4408
            assert (await hits.first(LimitHit)).limit == "auth_timeout"
            assert (await answer(known, **ECHO))["status"] == "success"


# --- refreshing ---


async def test_a_token_is_refreshed_on_the_open_connection_by_the_same_principal_alone(keys: Keys) -> None:
    async with keys.serving() as manager, raw(manager, **bearer(keys.good)) as socket:
        assert (await answer(socket, type="auth", token=keys.again))["status"] == "success"
        for kind in ("auth", "hello"):
            assert (await answer(socket, type=kind, token=keys.other))["error_code"] == "PERMISSION_DENIED"
            assert (await answer(socket, type=kind, token=keys.wrong))["error_code"] == "INVALID_TOKEN"
            assert (await answer(socket, type=kind, token=keys.expired))["error_code"] == "TOKEN_EXPIRED"
        assert (await answer(socket, type="admin.stats"))["error_code"] == "PERMISSION_DENIED"
        assert (await answer(socket, type="hello"))["principal"] == "ann"


async def test_a_refresh_with_fewer_scopes_loses_the_topics_that_they_were_for(keys: Keys) -> None:
    rules = (Rule(scopes=("news",), subscribe=("news.>",)), Rule(subscribe=("open.>",), publish=(">",)))
    async with keys.serving(rules=rules) as manager, raw(manager, **bearer(keys.good)) as socket:
        for topic in ("news.>", "open.>"):
            assert (await answer(socket, type="subscribe", id=topic, topic=topic))["status"] == "success"
        assert (await answer(socket, type="auth", token=keys.again))["status"] == "success"
        for topic in ("news.a", "open.a"):
            await tell(socket, type="publish", topic=topic, data=1, id=topic)
        frames = [await heard(socket) for _ in range(3)]
        assert [frame["topic"] for frame in frames if frame["type"] == "event"] == ["open.a"]
        assert (await answer(socket, type="unsubscribe", topic="news.>"))["error_code"] == "TOPIC_NOT_FOUND"


# --- the end of a token ---


def jwt(**claims: Any) -> str:
    return sign({"sub": "ann", "aud": "grami", "exp": time.time() + 60} | claims, "EdDSA")


@pytest.fixture
def key_set(tmp_path: Path) -> Path:
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps({"keys": public(*ALL)}))
    return file


def by_jwt(key_set: Path, **settings: Any) -> Any:
    settings = {"auth": ("jwt",), "jwt_keys": key_set, "jwt_audience": "grami", "jwt_algorithms": ALL} | settings
    return serving(small_swarm(), **settings)


async def until_refused(socket: ClientConnection) -> str:
    while (told := await answer(socket, **ECHO))["status"] == "success":
        pass
    return str(told["error_code"])


@pytest.mark.slow
async def test_a_token_that_ends_ends_requests_and_after_a_grace_the_connection(key_set: Path) -> None:
    settings = {"token_grace": 0.1, "auth_timeout": 0.1}
    async with by_jwt(key_set, **settings) as manager, raw(manager, **bearer(jwt(exp=time.time() + 0.3))) as socket:
        assert await until_refused(socket) == "TOKEN_EXPIRED"
        for kind in ("describe", "admin.stats", "hello"):
            assert (await answer(socket, type=kind, id=1))["error_code"] == "TOKEN_EXPIRED"
        assert (await closed(socket))[0] == 4419


@pytest.mark.slow
async def test_a_refresh_within_the_grace_saves_the_connection(key_set: Path) -> None:
    async with by_jwt(key_set) as manager, raw(manager, **bearer(jwt(exp=time.time() + 0.3))) as socket:
        assert await until_refused(socket) == "TOKEN_EXPIRED"
        told = await answer(socket, type="auth", token=jwt())
        assert 50_000 < told["data"]["expires_in_ms"] <= 60_000
        assert (await answer(socket, **ECHO))["status"] == "success"


@pytest.mark.slow
async def test_a_key_that_is_revoked_ends_its_connections_and_no_others(keys: Keys) -> None:
    async with (
        keys.serving(auth_timeout=0.2) as manager,
        raw(manager, **bearer(keys.again)) as other,
        raw(manager, **bearer(keys.good)) as socket,
    ):
        assert (await answer(socket, **ECHO))["status"] == "success"
        began = time.monotonic()
        keys.store.revoke(keys.key.id, now=time.time())
        assert await closed(socket) == (4401, "INVALID_TOKEN: the token was revoked")
        assert time.monotonic() - began < 3
        assert (await answer(other, **ECHO))["status"] == "success"
        with pytest.raises(InvalidStatus):
            async with raw(manager, **bearer(keys.good)):
                pass


# --- JSON Web Tokens ---


async def test_a_token_of_each_algorithm_is_a_principal(key_set: Path) -> None:
    async with by_jwt(key_set) as manager:
        for algorithm in ALL:
            token = sign({"sub": algorithm, "aud": "grami", "exp": time.time() + 60, "scope": "admin"}, algorithm)
            async with raw(manager, **bearer(token)) as socket:
                assert (await answer(socket, type="hello"))["principal"] == algorithm
                assert (await answer(socket, type="admin.stats"))["status"] == "success"


async def test_a_token_that_was_signed_with_what_everybody_knows_is_refused(key_set: Path) -> None:
    claims = {"sub": "ann", "aud": "grami", "exp": time.time() + 60}
    secrets = [KEYS["RS256"].as_pem(private=False), KEYS["ES256"].as_pem(private=False), b"", encode(public()).encode()]
    secrets += [base64.b64encode(secret) for secret in secrets] + [json.dumps(each).encode() for each in public(*ALL)]
    forged = []
    for secret in secrets:
        for header in ({"alg": "HS256"}, {"alg": "HS256", "kid": "RS256"}, {"alg": "HS256", "kid": "HS256"}):
            signed = f"{encode(header)}.{encode(claims)}"
            forged.append(f"{signed}.{encode(hmac.digest(secret, signed.encode(), 'sha256'))}")
    forged += [f"{encode({'alg': alg})}.{encode(claims)}." for alg in ("none", "None", "NONE", "nOnE", "")]
    forged += [jwt().rpartition(".")[0] + ".", jwt(aud="other"), jwt(exp=0), jwt(sub="operator"), jwt(sub="anonymous")]
    async with by_jwt(key_set) as manager:
        for token in forged:
            async with raw(manager) as socket:
                assert (await answer(socket, type="auth", token=token))["status"] == "error"
                assert (await closed(socket))[0] in {4401, 4419}


# --- how much may be said ---


async def test_a_message_may_be_larger_once_it_is_known_who_sends_it(keys: Keys) -> None:
    big = "x" * 100_000
    async with keys.serving() as manager:
        hits = Recorder(manager.system, LimitHit)
        async with raw(manager) as socket:
            await tell(socket, type="hello", token=keys.good, client={"name": "x" * 17_000})
            assert (await closed(socket))[0] == 1009
            assert (await hits.first(LimitHit)).limit == "max_message_bytes"
        async with raw(manager) as socket:
            await answer(socket, type="hello", token=keys.good, client={"name": "x" * 15_000})
            assert (await answer(socket, type="echo", text=big))["data"]["text"] == big
            await tell(socket, type="echo", text="x" * 1_100_000)
            assert (await closed(socket))[0] == 1009


async def test_who_came_with_a_token_may_send_a_large_message_at_once(keys: Keys) -> None:
    async with keys.serving() as manager:
        gateway: Any = manager._gateway
        sizes: list[int] = []

        def look(_: Any) -> None:  # before the first turn of the connection's actor
            sizes.extend(each.protocol.max_message_size for each in gateway._server.connections)

        manager.system.bus.subscribe(look, ConnectionOpened)
        async with raw(manager, **bearer(keys.good)) as socket:
            assert sizes == [manager.config.max_message_bytes]
            assert (await answer(socket, type="echo", text="x" * 20_000))["status"] == "success"


# --- nothing of a token is anywhere else ---


@contextmanager
def logged() -> Iterator[list[str]]:
    lines: list[str] = []
    logger.enable("grami_actors")
    sink = logger.add(lambda line: lines.append(str(line)), level=0, serialize=True, diagnose=True, backtrace=True)
    try:
        yield lines
    finally:
        logger.remove(sink)


def parts(tokens: tuple[str, ...]) -> list[str]:
    """What of a token must be seen nowhere: all of it, and its secret."""
    return [*tokens, *(token.split("_", 2)[2] for token in tokens)]


async def test_no_token_is_ever_seen_in_logs_errors_metrics_or_representations(
    keys: Keys, capfd: pytest.CaptureFixture[str]
) -> None:
    said: list[Any] = []
    with logged() as lines:
        async with keys.serving(allowed_origins=(PAGE,)) as manager:
            log_to(manager.system.bus)
            events = Recorder(manager.system, ConnectionRefused, ClosedEvent, DeadLetter, LimitHit)
            operator = manager.policy.authority.operator_token
            tokens = (*keys.all, operator)
            for token in tokens:
                for options in (bearer(token), {"subprotocols": [f"bearer.{token}", "grami.v1.json"]}):
                    for more in ({}, {"origin": PAGE}):
                        try:
                            async with raw(manager, **options, **more) as socket:
                                said.append(await answer(socket, type="hello", token=token))
                        except InvalidStatus as refused:
                            said += [str(refused), refused.response.headers, refused.response.body]
                        except ConnectionClosed as ended:
                            said += [str(ended), ended.rcvd]
                for message in ({"type": "auth", "token": token, "id": token[:7]}, {"type": "hello", "token": [token]}):
                    async with raw(manager) as socket:
                        said.append(await answer(socket, **message))
            assert manager._gateway is not None
            async with raw(manager, **bearer(operator)) as socket:
                said.append(await answer(socket, type="admin.connections"))
                said.append(await answer(socket, type="admin.stats"))
                actor = next(manager._gateway._actors())
                said += [manager, manager.policy, manager.policy.authority, manager.config, actor, actor.guest]
                said += [vars(actor.protocol), actor.protocol.principal, keys.store.all_keys()]
            said.append(manager._documents(manager.swarm.catalog())["/metrics"].make())
        said += events.events
    seen = f"{said!r}{lines}{capfd.readouterr()}"
    assert len(lines) > 20
    assert "ann" in seen
    assert not [part for part in parts(tokens) if part in seen]


async def test_the_operators_token_opens_everything_and_is_in_the_state_file_alone(
    keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GRAMI_PORT", raising=False)
    config = Config(auth=("keys",), keys_file=keys.store.path, rules=(Rule(),), state_dir=tmp_path / "state")
    async with GrowthManager(small_swarm(), config) as manager:
        (file,) = (tmp_path / "state").iterdir()
        assert file.stat().st_mode & 0o077 == 0
        token = json.loads(file.read_text())["token"]
        async with raw(manager, **bearer(token)) as socket:
            assert (await answer(socket, **ECHO))["status"] == "success"
            assert (await answer(socket, type="admin.connections"))["status"] == "success"
        async with raw(manager, **bearer(keys.good)) as socket:
            assert (await answer(socket, **ECHO))["error_code"] == "PERMISSION_DENIED"


# --- without authentication ---


def test_a_server_that_asks_for_nothing_does_not_serve_other_machines_unless_told_to() -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.com", ""):
        with pytest.raises(ConfigError, match="allow-anonymous"):
            GrowthManager(small_swarm(), Config(host=host))
        GrowthManager(small_swarm(), Config(host=host, allow_anonymous=True))


async def test_where_nothing_is_asked_for_a_token_in_the_handshake_is_ignored_and_one_in_hello_is_not() -> None:
    async with serving(small_swarm()) as manager:
        options = [bearer("unknown"), bearer("a", "b"), {"subprotocols": ["bearer.unknown", "bearer.other"]}]
        for each in ({"additional_headers": {"Authorization": "Basic QTpC"}}, *options):
            async with raw(manager, **each) as socket:
                assert (await answer(socket, **ECHO))["status"] == "success"
                for kind in ("hello", "auth"):
                    assert (await answer(socket, type=kind, token="unknown"))["error_code"] == "INVALID_TOKEN"
                assert (await answer(socket, type="hello"))["principal"] == "anonymous"
                for kind in ADMIN_TYPES:
                    assert (await answer(socket, type=kind))["error_code"] == "PERMISSION_DENIED"
        async with raw(manager) as socket:
            token = manager.policy.authority.operator_token
            assert (await answer(socket, type="hello", token=token))["principal"] == "operator"
            assert (await answer(socket, type="admin.stats"))["status"] == "success"


# --- rules ---


@tool(lane="loop")
def delete(what: str) -> str:
    """Delete it."""
    return what


class Listener(Deputy):
    """Runs the errands that are published."""

    def on_start(self) -> None:
        self.subscribe("errands.*")

    @handles(Errand)
    async def run(self, errand: Errand) -> str:
        return str(await self.call("delete", what=errand.goal))


def deputies() -> Swarm:
    return Swarm([Deputy, Listener], [delete])


AGENT = Rule(principals=("agent:*",), send=("*",), subscribe=(">",), publish=(">",))


async def test_without_a_rule_for_it_nothing_is_allowed_and_nothing_is_told_of(keys: Keys) -> None:
    rules = (AGENT, Rule(principals=("ann",), send=("errand", "tool_c*"), to=("deputy", "tool:gone"), publish=("a",)))
    async with keys.serving(deputies(), rules=rules) as manager, raw(manager, **bearer(keys.good)) as socket:
        there = await answer(socket, type="tool_call", to="tool:delete", arguments={"what": "x"})
        gone = await answer(socket, type="tool_call", to="tool:nobody", arguments={"what": "x"})
        assert there["error_code"] == gone["error_code"] == "PERMISSION_DENIED"
        assert there["message"] == gone["message"].replace("nobody", "delete")
        there, gone = await answer(socket, type="later"), await answer(socket, type="never")
        assert there["error_code"] == gone["error_code"] == "PERMISSION_DENIED"
        assert there["message"] == gone["message"].replace("never", "later")
        for topic in ("deputy", "nothing"):
            told = [await answer(socket, type=kind, topic=topic, id=1) for kind in ("subscribe", "publish")]
            assert {each["error_code"] for each in told} <= {"PERMISSION_DENIED", "VALIDATION_FAILED"}
        described = json.dumps((await answer(socket, type="describe", id=1))["data"])
        assert "errand" in described
        assert '"tools": []' in described
        assert not re.search("later|listener|Delete it", described)
        for kind in ADMIN_TYPES:
            assert (await answer(socket, type=kind))["error_code"] == "PERMISSION_DENIED"


async def test_a_type_that_one_may_not_send_is_not_even_suggested(keys: Keys) -> None:
    rules = (AGENT, Rule(principals=("ann",), send=("*rrand", "*atr")))
    async with keys.serving(deputies(), rules=rules) as manager, raw(manager, **bearer(keys.good)) as socket:
        assert "did you mean 'errand'" in (await answer(socket, type="orrand"))["message"]
        told = await answer(socket, type="latr")
        assert told["error_code"] == "UNKNOWN_TYPE"
        assert "later" not in told["message"]


async def test_an_agent_does_nothing_for_a_client_that_it_may_not_do_itself(keys: Keys) -> None:
    rules = (AGENT, Rule(principals=("ann",), send=("errand",), to=("deputy",), publish=("errands.*",)))
    async with keys.serving(deputies(), rules=rules) as manager, raw(manager, **bearer(keys.good)) as socket:
        for way in ("ask", "tell", "call", "stream", "publish", "subscribe", "generate"):
            told = await answer(socket, type="errand", way=way)
            assert told["error_code"] == "PERMISSION_DENIED", way
        async with raw(manager, **bearer(manager.policy.authority.operator_token)) as operator:
            assert (await answer(operator, type="errand", way="ask"))["data"] == "done"


def publisher(**more: Any) -> tuple[Rule, ...]:
    return (AGENT, Rule(principals=("ann",), publish=("errands.*",), subscribe=("errands.*",)), Rule(**more))


async def test_an_agent_that_hears_what_a_client_published_does_nothing_for_it_either(keys: Keys) -> None:
    rules = publisher(principals=("ann",), send=("errand",), to=("listener",))
    async with keys.serving(deputies(), rules=rules) as manager, raw(manager, **bearer(keys.good)) as socket:
        seen = Recorder(manager.system, MessageHandled, ToolCalled)
        told = await answer(socket, type="publish", topic="errands.a", data={"type": "errand"}, id=1)
        assert told["data"] == {"topic": "errands.a", "agents": 1}
        handled = await seen.until(lambda events: [each for each in events if each.actor == "listener"])
        assert [each.outcome for each in handled] == ["PERMISSION_DENIED"]
        assert not [event for event in seen.events if isinstance(event, ToolCalled)]


async def test_publishing_is_no_way_round_what_may_be_sent(keys: Keys) -> None:
    elsewhere = {"principals": ("ann",), "send": ("errand",), "to": ("deputy",)}
    for more in ({}, elsewhere):
        async with (
            keys.serving(deputies(), rules=publisher(**more)) as manager,
            raw(manager, **bearer(keys.good)) as socket,
        ):
            assert (await answer(socket, type="subscribe", topic="errands.*", id=1))["status"] == "success"
            for kind in ("errand", "nothing", "later"):  # one that there is none of is the same to a client
                await tell(socket, type="publish", topic="errands.a", data={"type": kind}, id=2)
                event, told = sorted([await heard(socket), await heard(socket)], key=lambda each: each["type"])
                assert told["data"] == {"topic": "errands.a", "agents": 0}
                assert event["data"] == {"type": kind}
            told = await answer(socket, type="publish", topic="errands.a", data={"type": "errand", "way": 3}, id=3)
            assert (told.get("error_code") == "VALIDATION_FAILED") == (more is elsewhere)


@pytest.mark.parametrize("data", [{"type": []}, {"type": {}}, {"type": None}, {"type": 7}, [], "errand", None])
async def test_what_is_published_may_be_anything(data: Any) -> None:
    async with serving(deputies()) as manager, raw(manager) as socket:
        told = await answer(socket, type="publish", topic="errands.a", data=data)
        assert told == {"status": "success", "data": {"topic": "errands.a", "agents": 0}}


@pytest.mark.parametrize("name", ["agent:deputy", "tool:delete", "operator", "anonymous"])
async def test_a_client_that_calls_itself_like_one_of_the_servers_own_is_not_known(name: str, key_set: Path) -> None:
    rules = (Rule(principals=("agent:deputy", "tool:delete", "operator"), send=("*",), admin=True),)
    async with by_jwt(key_set, rules=rules) as manager, raw(manager) as socket:
        assert (await answer(socket, type="hello", token=jwt(sub=name)))["error_code"] == "INVALID_TOKEN"
        assert (await closed(socket))[0] == 4401
