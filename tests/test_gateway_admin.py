"""``admin.*`` over real sockets, and the commands that use it against a server that is a process of its own."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from grami_actors.client import connect
from grami_actors.permissions import Rule
from grami_actors.telemetry import ConnectionClosed as ClosedEvent
from tests.conftest import Gate, Recorder, heard, raw, serving, tell
from tests.swarms import small_swarm
from tests.test_cli import PATIENCE, SMALL
from tests.test_cli import serving as served_process
from tests.test_gateway_auth import ECHO, Keys, answer, bearer, closed
from tests.test_gateway_limits import http


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


def as_operator(manager: Any) -> dict[str, Any]:
    return bearer(manager.policy.authority.operator_token)


async def test_connections_actors_and_statistics_are_told_to_an_operator() -> None:
    gate = Gate()
    async with (
        serving(small_swarm(gate)) as manager,
        raw(manager) as socket,
        raw(manager, **as_operator(manager)) as own,
    ):
        await answer(socket, **ECHO)
        await answer(socket, type="subscribe", topic="a", id=1)
        await tell(socket, type="slow", id=2)
        await gate.until_entered()
        told = (await answer(own, type="admin.connections", id=1))["data"]
        assert told["total"] == 2
        first, second = told["connections"]
        assert (first["principal"], first["inflight"], first["subscriptions"]) == ("anonymous", 1, 1)
        assert (first["received"], first["sent"], first["peer"].split(":")[0]) == (3, 2, "127.0.0.1")
        assert (second["principal"], second["inflight"]) == ("operator", 1)
        told = (await answer(own, type="admin.actors", id=1))["data"]
        names = [each["name"] for each in told["actors"]]
        assert {"echoer", "holder"} <= {name.partition("-")[0] for name in names}
        assert not [name for name in names if name.startswith("connection")]
        told = (await answer(own, type="admin.stats"))["data"]
        assert (told["connections"], told["requests"]["echo"]["count"]) == (2, 1)
        gate.opened.set()


async def test_a_profile_is_taken_over_the_wire() -> None:
    async with serving(small_swarm()) as manager, raw(manager) as socket, raw(manager, **as_operator(manager)) as own:
        await tell(own, type="admin.profile", seconds=0.1, id=1)
        await answer(own, type="ping", id=2)
        for _ in range(5):
            await answer(socket, **ECHO)
        told = await heard(own)
        assert (told["id"], told["status"]) == (1, "success")
        assert "echo" in json.dumps(told["data"])


async def test_a_connection_is_closed_by_its_id_and_one_that_there_is_none_of_is_not() -> None:
    async with serving(small_swarm()) as manager, raw(manager) as socket, raw(manager, **as_operator(manager)) as own:
        events = Recorder(manager.system, ClosedEvent)
        name = (await answer(socket, type="hello"))["connection_id"]
        no_id = await answer(own, type="admin.disconnect", connection_id="connection-99")
        assert no_id["data"] == {"disconnected": False}
        for wrong in ({}, {"connection_id": name, "code": 1000}, {"connection_id": name, "reason": "ü" * 62}):
            assert (await answer(own, type="admin.disconnect", **wrong))["error_code"] == "VALIDATION_FAILED"
        told = await answer(own, type="admin.disconnect", connection_id=name, code=4403, reason="go away")
        assert told["data"] == {"disconnected": True}
        assert await closed(socket) == (4403, "go away")
        assert (await events.first(ClosedEvent)).code == 4403
        assert (await answer(own, type="admin.connections"))["data"]["total"] == 1


async def test_a_scope_or_a_rule_makes_an_administrator_and_nothing_else_does(keys: Keys) -> None:
    for rules, allowed in (((), {"ben"}), ((Rule(principals=("ann",), admin=True),), {"ann", "ben"})):
        async with keys.serving(rules=rules) as manager:
            for name, token in (("ann", keys.good), ("ben", keys.other)):
                async with raw(manager, **bearer(token)) as socket:
                    told = await answer(socket, type="admin.stats", id=1)
                    assert told.get("error_code") == (None if name in allowed else "PERMISSION_DENIED")
                    there = await answer(socket, type="admin.nothing")
                    assert there["error_code"] in {"UNSUPPORTED_FEATURE", "PERMISSION_DENIED"}


async def test_a_drain_lets_work_end_says_so_under_readyz_and_wakes_who_waits_for_it() -> None:
    gate = Gate()
    async with (
        serving(small_swarm(gate), drain_timeout=5.0) as manager,
        raw(manager) as socket,
        raw(manager, **as_operator(manager)) as own,
    ):
        waits = asyncio.create_task(manager.drained())
        await tell(socket, type="slow", text="done", id=1)
        await gate.until_entered()
        assert (await answer(own, type="admin.drain", id=1))["data"] == {"draining": True}
        await waits
        reply = await http(manager, "/readyz")
        assert (reply.status, reply.body) == (503, "shutting down\n")
        assert (await http(manager, "/livez")).status == 200
        assert (await http(manager, "/ws")).status == 503
        assert await closed(own) == (1012, "the server is restarting")
        gate.opened.set()
        assert (await heard(socket))["data"] == "done"
        assert (await closed(socket))[0] == 1012


@pytest.mark.slow
def test_a_server_that_asks_for_keys_shows_itself_to_its_operator_and_ends_in_order_when_drained(
    tmp_path: Path,
) -> None:
    with served_process(SMALL, cwd=tmp_path, env={"GRAMI_AUTH": "keys"}) as served:
        token = json.loads(served.state_file.read_text())["token"]
        top, profile, sent = served.ask_all(
            ("top", "--once", "--json"), ("profile", "--seconds", "1"), ("describe", "--url", served.where["url"])
        )
        assert (top.code, profile.code) == (0, 0), (top.err, profile.err)
        seen = json.loads(top.out)
        assert seen["stats"]["connections"] >= 1
        assert seen["connections"]["connections"][0]["principal"] == "operator"

        async def drain() -> None:
            async with connect(served.where["url"], token=token) as grami:
                assert await grami.request("admin.drain") == {"draining": True}

        asyncio.run(drain())
        assert served.process.wait(PATIENCE) == 0
        assert not served.state_file.exists()
        assert "stopping" in served.log
        assert served.log.rstrip().endswith("stopped")
        assert "Traceback" not in served.log
        said = f"{served.log}{served.first_line}{top}{profile}{sent}"
        assert token not in said
        assert token.split("_", 2)[2] not in said
