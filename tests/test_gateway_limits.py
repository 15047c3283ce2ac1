"""Every limit, over real sockets: its error or status, when to come again, its event and its metric; and forgeries."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.datastructures import Headers
from websockets.exceptions import InvalidStatus
from websockets.http11 import Request

from grami_actors.config import Config
from grami_actors.credentials import Authority
from grami_actors.errors import LimitReached
from grami_actors.gateway.controls import MOST_DESCRIBING
from grami_actors.gateway.door import Door
from grami_actors.gateway.socket import Sockets
from grami_actors.permissions import Permissions
from grami_actors.policy import Policy, Rate
from grami_actors.principals import OPERATOR, Principal
from grami_actors.telemetry import Bus, ConnectionRefused, LimitHit
from tests.conftest import Gate, Recorder, heard, raw, serving, tell
from tests.swarms import small_swarm
from tests.test_gateway_auth import ECHO, Keys, answer, bearer, closed
from tests.test_socket import Clock, Wire, made

PAGE = "https://app.example"


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


class Reply(msgspec.Struct):
    status: int
    head: dict[str, str]
    body: str


async def http(manager: Any, path: str, *headers: str, method: str = "GET", host: str = "Host: localhost") -> Reply:
    reader, writer = await asyncio.open_connection("127.0.0.1", manager.port)
    lines = [f"{method} {path} HTTP/1.1", *([host] if host else []), *headers, "", ""]
    writer.write("\r\n".join(lines).encode())
    text = (await reader.read()).decode()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    head, _, body = text.partition("\r\n\r\n")
    first, *fields = head.split("\r\n")
    return Reply(int(first.split()[1]), dict(field.lower().split(": ", 1) for field in fields), body)


async def metric(manager: Any, limit: str) -> float:
    text = (await http(manager, "/metrics")).body
    return sum(
        float(line.split()[-1])
        for line in text.splitlines()
        if line.startswith("grami_limited_total") and f'limit="{limit}"' in line
    )


# --- handshakes ---


async def test_of_many_that_come_at_once_exactly_as_many_as_there_is_room_for_are_let_in() -> None:
    async with serving(small_swarm(), max_connections=3) as manager:
        hits = Recorder(manager.system, LimitHit)

        async def come() -> Any:
            socket = raw(manager)
            try:
                await socket.__aenter__()
            except InvalidStatus as refused:
                return refused.response
            return socket

        came = await asyncio.gather(*(come() for _ in range(20)))
        refused = [each for each in came if hasattr(each, "status_code")]
        assert [(each.status_code, each.headers["Retry-After"]) for each in refused] == [(503, "5")] * 17
        assert [event.limit for event in hits.events] == ["max_connections"] * 17
        assert await metric(manager, "max_connections") == 17
        for each in came:
            if each not in refused:
                await each.__aexit__(None, None, None)
        while manager._gateway is not None and manager._gateway._sockets.open:  # noqa: ASYNC110 - until they are gone
            await asyncio.sleep(0)
        assert not hasattr(await come(), "status_code")


async def test_who_is_refused_takes_no_room(keys: Keys) -> None:
    async with keys.serving(max_connections=1) as manager:
        for _ in range(5):
            with pytest.raises(InvalidStatus) as refused:
                async with raw(manager, **bearer(keys.wrong)):
                    pass
            assert refused.value.response.status_code == 401
        async with raw(manager, **bearer(keys.good)) as socket:
            assert (await answer(socket, **ECHO))["status"] == "success"


def knock(door: Door, sockets: Sockets, address: str) -> tuple[int, str]:
    """A handshake from an address; the status of what it is answered, and when to come again."""
    connection = made(sockets, Wire((address, 1, 0, 0)))
    request = Request("/ws", Headers([("Host", "localhost")]))
    response = door.process_request(connection, request)
    if response is None:
        return 101, ""
    connection.connection_lost(None)
    return response.status_code, response.headers.get("Retry-After", "")


def a_door(**settings: Any) -> tuple[Door, Sockets, Clock, list[Any]]:
    clock, bus, events = Clock(), Bus(), []
    bus.subscribe(events.append, LimitHit, ConnectionRefused)
    config = Config(**settings)
    sockets = Sockets(config.max_connections, clock)
    return Door(config, Authority(), sockets, bus, {}, str), sockets, clock, events


@pytest.mark.parametrize(
    ("addresses", "elsewhere"),
    [
        (["192.0.2.1", "::ffff:192.0.2.1"], "192.0.2.2"),
        (["2001:db8::1", "2001:db8::2", "2001:db8:0:0:ffff::"], "2001:db8:0:1::1"),
        (["fe80::1%eth0", "fe80::2%eth0"], "fe80:0:0:1::1%eth0"),
    ],
)
async def test_an_address_or_a_network_of_ipv6_has_its_own_limit(addresses: list[str], elsewhere: str) -> None:
    door, sockets, _, events = a_door(max_connections_per_address=2)
    assert [knock(door, sockets, addresses[at % len(addresses)]) for at in range(4)] == [(101, "")] * 2 + [
        (429, "5")
    ] * 2
    assert [event.limit for event in events if isinstance(event, LimitHit)] == ["max_connections_per_address"] * 2
    assert knock(door, sockets, elsewhere) == (101, "")
    assert {knock(door, sockets, own) for own in ("127.0.0.1", "::1", "127.0.0.2") * 3} == {(101, "")}


async def test_who_comes_too_often_is_told_when_to_come_again() -> None:
    door, sockets, clock, events = a_door(accept_rate=0.5)
    assert [knock(door, sockets, "127.0.0.1") for _ in range(4)] == [(101, ""), (101, ""), (503, "2"), (503, "2")]
    assert [event.limit for event in events if isinstance(event, LimitHit)] == ["accept_rate"] * 2
    clock.now += 2.0
    assert [knock(door, sockets, "127.0.0.1") for _ in range(2)] == [(101, ""), (503, "2")]


async def test_a_principal_has_a_limit_of_connections_wherever_it_comes_from(keys: Keys) -> None:
    async with keys.serving(max_connections_per_principal=1) as manager:
        hits = Recorder(manager.system, LimitHit)
        async with raw(manager, **bearer(keys.good)) as first, raw(manager, **bearer(keys.other)) as other:
            async with raw(manager, **bearer(keys.again)) as second:
                assert await closed(second) == (4430, "ann has 1 connections, its limit")
            async with raw(manager) as third:
                await answer(third, type="hello", token=keys.good)
                assert (await closed(third))[0] == 4430
            assert (await answer(first, type="auth", token=keys.again))["status"] == "success"
            await hits.until(lambda events: len(events) == 2)
            assert [event.limit for event in hits.events] == ["max_connections_per_principal"] * 2
            told = await answer(other, type="admin.stats")
            assert told["data"]["limits"] == {"max_connections_per_principal": 2}
        async with raw(manager, **bearer(keys.again)) as socket:
            assert (await answer(socket, **ECHO))["status"] == "success"


# --- messages ---


async def test_messages_too_many_of_a_type_are_refused_until_there_may_be_more(keys: Keys) -> None:
    rates = (Rate(0.001, 2, principals=("ann",), types=("echo",)), Rate(0.001, 1, types=("publish",)))
    async with keys.serving(rates=rates) as manager, raw(manager, **bearer(keys.good)) as socket:
        hits = Recorder(manager.system, LimitHit)
        codes = [(await answer(socket, **ECHO)).get("error_code") for _ in range(3)]
        assert codes == [None, None, "RATE_LIMITED"]
        told = await answer(socket, **ECHO, id=1)
        assert (told["error_code"], told["retryable"]) == ("RATE_LIMITED", True)
        assert 900_000 < told["retry_after_ms"] <= 1_000_000
        async with raw(manager, **bearer(keys.again)) as second:  # another key and connection of the same
            assert (await answer(second, **ECHO))["error_code"] == "RATE_LIMITED"
        for code in (None, "RATE_LIMITED"):
            assert (await answer(socket, type="publish", topic="a", data=1)).get("error_code") == code
        assert {event.limit for event in hits.events} == {"rates"}
        assert {event.who for event in hits.events} == {"ann"}
        for token in (keys.other, manager.policy.authority.operator_token):
            async with raw(manager, **bearer(token)) as other:
                for _ in range(3 if token != keys.other else 2):
                    assert (await answer(other, **ECHO))["status"] == "success"


async def test_publishing_a_message_counts_like_sending_it() -> None:
    async with serving(small_swarm(), rates=(Rate(0.001, 1, types=("echo",)),)) as manager, raw(manager) as socket:
        hits = Recorder(manager.system, LimitHit)
        assert (await answer(socket, **ECHO))["status"] == "success"
        told = await answer(socket, type="publish", topic="a", data=ECHO, id=1)
        assert (told["error_code"], told["retry_after_ms"] > 0) == ("RATE_LIMITED", True)
        assert (await hits.first(LimitHit)).limit == "rates"


@given(st.lists(st.tuples(st.floats(0, 3), st.sampled_from(["ann", "ben"]), st.sampled_from(["a", "b"])), max_size=60))
def test_a_rate_never_lets_more_through_than_its_burst_and_what_time_brings(
    steps: list[tuple[float, str, str]],
) -> None:
    policy = Policy(Authority(), Permissions(), (Rate(1.5, 3, types=("a", "b")),))
    now = 0.0
    let: dict[tuple[str, str], list[float]] = {}
    later: dict[tuple[str, str], float] = {}
    for pause, name, kind in steps:
        now += pause
        try:
            policy.check(Principal(name), kind, now)
        except LimitReached as full:
            later[name, kind] = now + (full.retry_after_ms or 0) / 1000 - 0.002
        else:
            assert now >= later.get((name, kind), 0.0), "it was told to come later"
            let.setdefault((name, kind), []).append(now)
        policy.check(OPERATOR, kind, now)
    for times in let.values():
        for first, at in enumerate(times):
            for last in range(first, len(times)):
                assert last - first + 1 <= 3 + 1.5 * (times[last] - at) + 1e-6


@pytest.mark.parametrize(
    ("patterns", "name", "limited"),
    [
        (("a*",), "ann", True),
        (("[a]nn",), "ann", False),
        (("[a]nn",), "[a]nn", True),
        (("A*",), "ann", False),
        ((), "ann", False),
    ],
)
def test_a_rate_is_for_those_whom_its_patterns_name(patterns: tuple[str, ...], name: str, limited: bool) -> None:
    for rate in (Rate(1, 1, principals=patterns), Rate(1, 1, types=patterns)):
        policy = Policy(Authority(), Permissions(), (rate,))
        policy.check(Principal(name), name, 0)
        with contextlib.nullcontext() if not limited else pytest.raises(LimitReached):
            policy.check(Principal(name), name, 0)


async def test_requests_without_an_answer_have_a_limit_for_the_connection_and_one_for_all() -> None:
    for setting, code in (("max_inflight", "TOO_MANY_INFLIGHT"), ("max_requests", "RESOURCE_EXHAUSTED")):
        gate = Gate()
        async with serving(small_swarm(gate), **{setting: 2}) as manager, raw(manager) as socket:
            hits = Recorder(manager.system, LimitHit)
            for number in range(2):
                await tell(socket, type="slow", id=number)
            told = await answer(socket, type="slow", id=2)
            assert (told["id"], told["error_code"], told["retryable"]) == (2, code, True)
            assert told["retry_after_ms"] > 0
            assert (await hits.first(LimitHit)).limit == setting
            assert await metric(manager, setting) == 1
            gate.opened.set()
            assert {(await heard(socket))["id"] for _ in range(2)} == {0, 1}
            assert (await answer(socket, **ECHO))["status"] == "success"


async def test_subscriptions_have_a_limit() -> None:
    async with serving(small_swarm(), max_subscriptions=2) as manager, raw(manager) as socket:
        hits = Recorder(manager.system, LimitHit)
        told = [await answer(socket, type="subscribe", topic=topic, id=topic) for topic in ("a", "b", "c", "a")]
        assert [each.get("error_code") for each in told] == [None, None, "RESOURCE_EXHAUSTED", None]
        assert (await hits.first(LimitHit)).limit == "max_subscriptions"
        assert (await answer(socket, type="unsubscribe", topic="a"))["status"] == "success"
        assert (await answer(socket, type="subscribe", topic="c", id=1))["status"] == "success"


@pytest.mark.parametrize("encoding", ["grami.v1.json", "grami.v1.msgpack"])
async def test_nesting_has_a_limit_in_each_encoding(encoding: Any) -> None:
    library: Any = msgspec.json if encoding.endswith("json") else msgspec.msgpack
    async with (
        serving(small_swarm(), max_nesting=5) as manager,
        raw(manager, subprotocols=[encoding]) as socket,
    ):
        hits = Recorder(manager.system, LimitHit)
        for levels, code in ((4, None), (5, "INVALID_JSON"), (200, "INVALID_JSON")):
            deep: Any = 1
            for number in range(levels):
                deep = [deep] if number % 2 else {"[": deep}
            await socket.send(
                library.encode(ECHO | {"meta": {"deep": deep}} if levels > 4 else ECHO | {"deep": deep}),
                text=encoding.endswith("json"),
            )
            assert library.decode(await socket.recv()).get("error_code") == code
        assert {event.limit for event in hits.events} == {"max_nesting"}
        assert await metric(manager, "max_nesting") == 2


async def test_who_sends_nothing_but_bad_messages_is_cut_off_and_counted() -> None:
    async with serving(small_swarm()) as manager, raw(manager) as socket:
        hits = Recorder(manager.system, LimitHit)
        for _ in range(100):
            await socket.send("bad")
        assert (await closed(socket))[0] == 4429
        assert (await hits.first(LimitHit)).limit == "abuse"


async def test_who_says_nothing_is_closed_but_not_who_works_or_listens() -> None:
    gate = Gate()
    async with (
        serving(small_swarm(gate), idle_timeout=0.05) as manager,
        raw(manager) as listens,
        raw(manager) as works,
        raw(manager) as idle,
    ):
        hits = Recorder(manager.system, LimitHit)
        assert (await answer(listens, type="subscribe", topic="a", id=1))["status"] == "success"
        await tell(works, type="slow", text="done")
        assert (await closed(idle))[0] == 4513
        async with raw(manager) as second:
            assert (await closed(second))[0] == 4513
        await hits.until(lambda events: len(events) == 2)
        assert {event.limit for event in hits.events} == {"idle_timeout"}
        async with raw(manager) as third:
            await tell(third, type="publish", topic="a", data="news")
            assert (await heard(listens))["data"] == "news"
        gate.opened.set()
        assert (await heard(works))["data"] == "done"
        assert (await answer(listens, type="unsubscribe", topic="a"))["status"] == "success"
        assert (await closed(listens))[0] == 4513


# --- forgeries ---

_BAD_HOSTS = (
    "",
    "evil.example",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "evil.example:127.0.0.1",
    "localhost:80@evil.example",
    "user@localhost",
    "evil@127.0.0.1",
    "[::1].evil.example",
    "[::1]evil.example:80",
    "[::1",
    "::1",
    "[localhost]",
    "[::2]",
    "[::ffff:192.0.2.1]",
    "localhost:80:80",
    "localhost:http",
    "localhost/evil",
    "localhost, evil.example",
    "localhost evil.example",
    "127.0.0.1%2eevil.example",
    "0x7f.1",
    "2130706433",
    "0.0.0.0",
    "192.168.0.1",
    "169.254.169.254",
    "api.example.evil.example",
    "xapi.example",
)
_GOOD_HOSTS = (
    "localhost",
    "LocalHost:1",
    "127.0.0.1",
    "127.9.9.9:65535",
    "[::1]",
    "[0:0::1]:80",
    "API.example",
    "api.example:443",
)


async def test_a_host_that_is_forged_or_rebound_is_refused_for_every_path() -> None:
    async with serving(small_swarm(), allowed_hosts=("api.example",)) as manager:
        for host in _GOOD_HOSTS:
            assert (await http(manager, "/livez", host=f"Host: {host}")).status == 200, host
        for host in _BAD_HOSTS:
            assert (await http(manager, "/livez", host=f"Host: {host}")).status == 403, host
        for path in ("/ws", "/metrics", "/client.js", "/asyncapi.json", "/readyz", "/nothing"):
            assert (await http(manager, path, host="Host: evil.example")).status == 403, path
        assert (await http(manager, "/livez", host="")).status == 403
        assert (await http(manager, "/livez", "Host: localhost")).status == 403
        assert (await http(manager, "/livez", "Host: evil.example")).status == 403
        assert (await http(manager, "http://evil.example/ws")).status == 404
        assert (await http(manager, "http://localhost/livez", host="Host: evil.example")).status == 403


@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=30))
def test_no_host_but_a_loopback_or_an_allowed_one_is_ever_taken(host: str) -> None:
    door, *_ = a_door(allowed_hosts=("api.example",))
    if door._host_allowed(host):
        name = host.lower().rpartition(":")[0] if ":" in host and not host.endswith("]") else host.lower()
        assert name in {"localhost", "api.example", "[::1]"} or name.startswith("127.")


_BAD_ORIGINS = (
    "null",
    "",
    "file://",
    "http://localhost.evil.example",
    "http://app.example",
    "https://app.example.evil.example",
    "https://app.example:444",
    "https://app.example/",
    "https://evil@app.example",
    "https://app.example@evil.example",
    "https://APP.example.",
    "HTTPS://APP.EXAMPLE",
    "https://evil.example#https://app.example",
    "https://app.example https://evil.example",
    "https://[::1].evil.example",
    "*",
)


async def test_a_page_from_elsewhere_is_refused_for_every_path_and_gets_no_permission() -> None:
    async with serving(small_swarm(), allowed_origins=(PAGE,)) as manager:
        for origin in _BAD_ORIGINS:
            for path in ("/ws", "/client.js"):
                reply = await http(manager, path, f"Origin: {origin}")
                assert (reply.status, "access-control-allow-origin" in reply.head) == (403, False), origin
        for twice in ((PAGE, PAGE), (PAGE, "https://evil.example")):
            assert (await http(manager, "/ws", *(f"Origin: {each}" for each in twice))).status == 403
        assert (await http(manager, "/ws", f"Origin: {PAGE}")).status == 426


# --- documents ---


async def test_the_client_may_be_loaded_by_pages_of_allowed_origins() -> None:
    async with serving(small_swarm(), allowed_origins=(PAGE,)) as manager:
        reply = await http(manager, "/client.js", f"Origin: {PAGE}")
        assert (reply.status, reply.head["access-control-allow-origin"], reply.head["vary"]) == (
            200,
            PAGE.lower(),
            "origin",
        )
        assert reply.head["content-type"].startswith("text/javascript")
        reply = await http(manager, "/client.js")
        assert ("access-control-allow-origin" in reply.head, reply.head["vary"]) == (False, "origin")
        reply = await http(manager, "/asyncapi.json", f"Origin: {PAGE}")
        assert (reply.status, "access-control-allow-origin" in reply.head) == (200, False)


async def test_documents_that_tell_of_the_inside_take_a_credential_where_one_is_asked_for(keys: Keys) -> None:
    async with keys.serving() as manager:
        good = f"Authorization: Bearer {keys.good}"
        for path in ("/metrics", "/asyncapi.json"):
            bad = [(), *((f"Authorization: Bearer {token}",) for token in (keys.wrong, keys.expired, keys.revoked))]
            bad += [(good, good), ("Authorization: Basic QTpC",), (f"Sec-WebSocket-Protocol: bearer.{keys.good}",)]
            for headers in bad:
                for method in ("GET", "HEAD"):
                    reply = await http(manager, path, *headers, method=method)
                    assert (reply.status, reply.head["www-authenticate"]) == (401, "bearer")
                    assert "grami_" not in reply.body.replace("`", "")
            reply = await http(manager, path, good)
            assert reply.status == 200
            operator = manager.policy.authority.operator_token
            assert (await http(manager, path, f"Authorization: Bearer {operator}")).status == 200
        for path in ("/client.js", "/livez", "/readyz"):
            assert (await http(manager, path)).status == 200
        assert (await http(manager, "/asyncapi.json?token=x")).status == 401


async def test_every_answer_has_a_date_and_a_head_has_no_body_but_its_length() -> None:
    async with serving(small_swarm()) as manager:
        for path in ("/livez", "/readyz", "/metrics", "/asyncapi.json", "/client.js", "/nothing"):
            got, head = await http(manager, path), await http(manager, path, method="HEAD")
            assert (head.status, head.body) == (got.status, "")
            assert (
                set(got.head) == set(head.head) >= {"date", "content-length", "cache-control", "x-content-type-options"}
            )
            assert int(got.head["content-length"]) == len(got.body.encode())
            assert int(head.head["content-length"]) > 0
            assert "server" not in got.head
        reply = await http(manager, "/livez", method="POST")
        assert (reply.status, reply.head["allow"]) == (HTTPStatus.METHOD_NOT_ALLOWED, "get, head")
        assert json.loads((await http(manager, "/asyncapi.json")).body)["asyncapi"].startswith("3.")


async def test_descriptions_that_hang_never_take_more_than_a_bounded_number_of_threads() -> None:
    gate = Gate()
    swarm = small_swarm()
    swarm.describe = lambda _: gate.hold()  # type: ignore[assignment]  # as a lazy tool's module does that never ends
    async with serving(swarm) as manager, raw(manager) as socket:
        before = threading.active_count()
        for number in range(100):
            await tell(socket, type="describe", id=number)
            await tell(socket, type="cancel", request_id=number)
        codes = [(await heard(socket))["error_code"] for _ in range(100)]
        assert threading.active_count() - before <= MOST_DESCRIBING
        assert codes.count("CANCELLED") == MOST_DESCRIBING
        assert codes.count("RESOURCE_EXHAUSTED") == 100 - MOST_DESCRIBING
        gate.opened.set()


async def test_what_a_client_calls_types_while_it_publishes_fills_no_memory() -> None:
    async with serving(small_swarm(), rates=(Rate(1000.0, 1000.0),)) as manager, raw(manager) as socket:
        for number in range(10):
            await tell(socket, type="publish", topic="a", data={"type": f"{number}{'x' * 1000}"}, id=number)
            assert (await heard(socket))["status"] == "success"
        ((*_, buckets),) = manager.policy._rates
        assert {kind for _, kind in buckets._buckets} <= {"publish"}
