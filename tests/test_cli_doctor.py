"""``grami doctor``: what is well, what is not, and that it always comes to an end."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import os
import re
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from grami_actors.cli import doctor
from grami_actors.cli.app import app
from grami_actors.cli.doctor import Check, examine
from grami_actors.cli.probes import Trouble, target
from grami_actors.client import connect
from grami_actors.discovery import STATE_FILE, ServerState, write_state
from grami_actors.errors import ConfigError
from tests.conftest import serving
from tests.swarms import small_swarm

NOBODY = 2**22 + 1
"""A process id that no Linux gives."""


async def look(url: str | None, patience: float = 5.0, **environ: str) -> dict[str, list[Check]]:
    """What was found, by the name of the check."""
    environ.setdefault("GRAMI_STATE_DIR", "/nonexistent")
    found: dict[str, list[Check]] = {}
    async with asyncio.timeout(30):
        for each in await examine(url, patience, environ):
            found.setdefault(each.check, []).append(each)
    return found


def failures(found: dict[str, list[Check]]) -> list[str]:
    return [name for name, checks in found.items() if any(each.status == "fail" for each in checks)]


def warnings(found: dict[str, list[Check]]) -> list[str]:
    return [name for name, checks in found.items() if any(each.status == "warn" for each in checks)]


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(talk: Talk) -> AsyncIterator[str]:
    """A server that does with a connection what a test wants."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await talk(reader, writer)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws"
    finally:
        server.close()


@asynccontextmanager
async def foreign(
    talk: Callable[[ServerConnection], Awaitable[None]], tls: ssl.SSLContext | None = None, **options: Any
) -> AsyncIterator[str]:
    """A WebSocket server that is not ours."""
    async with serve(talk, "127.0.0.1", 0, ssl=tls, close_timeout=0.1, **options) as server:
        scheme = "ws" if tls is None else "wss"
        yield f"{scheme}://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/ws"


async def obey(connection: ServerConnection) -> None:
    """Answer hello and ping as a Growth Manager does, and let nobody look inside."""
    refused = {"type": "response", "status": "error", "error_code": "PERMISSION_DENIED", "message": "no"}
    answers = {"hello": {"type": "welcome", "principal": "ann"}, "ping": {"type": "pong"}, "admin.stats": refused}
    async for text in connection:
        asked = json.loads(text)
        await connection.send(json.dumps({**answers[asked["type"]], "id": asked["id"]}))


async def silence(connection: ServerConnection) -> None:
    await connection.wait_closed()


# --- a server that is well ---


async def test_a_healthy_server_passes_every_check() -> None:
    async with serving(small_swarm()) as manager:
        found = await look(manager.url)
    assert failures(found) == []
    assert warnings(found) in ([], ["descriptors"])
    network = ("address", "tcp", "http", "handshake", "clock", "origin", "host", "protocol", "ping", "loop lag")
    assert [name for name in found if name in network] == list(network)
    assert [each.found for each in found["http"]] == ["/livez answers 200", "/readyz answers 200"]
    assert found["origin"][0].found == "https://doctor.invalid is refused (HTTP 403)"
    assert found["host"][0].found == "doctor.invalid is refused (HTTP 403)"
    assert re.fullmatch(r"median \d+\.\d ms, longest \d+\.\d ms of 20", found["ping"][0].found)
    assert found["protocol"][0].found == "grami/1, we are anonymous"
    assert found["loop lag"][0].found == "not told to us (PERMISSION_DENIED)"


async def test_the_server_is_found_as_clients_find_it(tmp_path: Path) -> None:
    async with serving(small_swarm()) as manager:
        by_port = await look(None, GRAMI_PORT=str(manager.port))
        token = manager.policy.authority.operator_token
        write_state(tmp_path, ServerState(manager.url, manager.port, os.getpid(), token))
        by_file = await look(None, GRAMI_STATE_DIR=str(tmp_path))
    assert failures(by_port) == failures(by_file) == []
    assert by_file["state file"][0].found.endswith(f"names process {os.getpid()}")
    assert by_file["protocol"][0].found == "grami/1, we are operator"
    if sys.platform == "linux":
        assert by_file["descriptors"][0].found.startswith("the server may open")


async def test_a_server_with_keys_tells_its_operator_how_late_its_loop_was_and_strangers_nothing(
    tmp_path: Path,
) -> None:
    async with serving(small_swarm(), auth=("keys",), keys_file=tmp_path / "keys.json") as manager:
        stranger = await look(manager.url)
        wrong = await look(manager.url, GRAMI_TOKEN="grami_0123456789ab_" + "x" * 43)
        operator = await look(manager.url, GRAMI_TOKEN=manager.policy.authority.operator_token)
    assert failures(stranger) == []
    assert stranger["protocol"][0].advice.startswith("set GRAMI_TOKEN")
    assert failures(wrong) == ["protocol"]
    assert wrong["protocol"][0].found.startswith("INVALID_TOKEN")
    assert operator["protocol"][0].found == "grami/1, we are operator"
    assert re.fullmatch(r"median [\d.]+ ms, longest [\d.]+ ms in the last minute", operator["loop lag"][0].found)


async def test_the_exit_code_is_1_exactly_when_something_fails(capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(small_swarm()) as manager:
        assert await doctor._doctor(manager.url, 5.0, as_json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is True
    assert {"check", "status", "found", "advice"} == set(told["checks"][0])
    assert await doctor._doctor(manager.url, 5.0, as_json=False) == 1
    told = capsys.readouterr().out
    assert "-> start it with `grami serve FILE`" in told
    assert re.search(r"\d+ ok, \d+ warn, 1 fail\n$", told)


# --- a server that is not ---


async def test_nothing_that_listens_is_told_as_that() -> None:
    async with listening(lambda *_: asyncio.sleep(0)) as url:
        pass
    found = await look(url)
    assert failures(found) == ["tcp"]
    assert found["tcp"][0].found == "nothing listens there"
    assert "http" not in found


async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-\x1b[31mOpenSSH\r\n")
    await reader.read()


async def rave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"x" * 65_536)
        await writer.drain()


async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.wait((asyncio.ensure_future(reader.read()),), timeout=0.01)


async def go_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"a: b\r\n" * 100)
        await writer.drain()


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("talk", "words"),
    [
        (say_nothing, "no answer in 0.1 s"),
        (greet, r"the answer is no HTTP: 'SSH-2.0-\x1b[31mOpenSSH\r\n'"),
        (rave, "the answer is no HTTP: a line without end"),
        (drip, "no answer in 0.1 s"),
        (go_on, "the answer has more than 100 header fields"),
        (hang_up, "it closes the connection without an answer"),
    ],
)
async def test_what_is_no_web_server_is_told_in_bounded_time(talk: Talk, words: str) -> None:
    async with listening(talk) as url, asyncio.timeout(5):
        found = await look(url, patience=0.1)
    assert failures(found) == ["http"]
    assert found["http"][-1].found == words


@pytest.mark.slow
async def test_a_server_that_hangs_after_the_handshake_and_lets_everybody_in_is_told() -> None:
    async with foreign(silence) as url, asyncio.timeout(10):
        found = await look(url, patience=0.3)
    assert failures(found) == ["protocol"]
    assert found["protocol"][0].found.startswith(f"no Growth Manager answers at {url}: 'hello' was not answered")
    assert "block its event loop" in found["protocol"][0].advice
    assert {"http", "origin", "host"} <= set(warnings(found))
    assert "ANY WEB PAGE" in found["origin"][0].found
    assert "ANY WEB PAGE" in found["host"][0].found


async def test_another_protocol_is_told_and_cannot_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    async def refuse(connection: ServerConnection) -> None:
        async for text in connection:
            asked = json.loads(text)
            error = {"status": "error", "error_code": "UNSUPPORTED_VERSION", "message": "only \x1b[2J"}
            await connection.send(json.dumps({"type": "response", "id": asked["id"]} | error))

    async with foreign(refuse) as url:
        found = await look(url)
        await doctor._doctor(url, 5.0, as_json=False)
    assert failures(found) == ["protocol"]
    assert found["protocol"][0].found == "UNSUPPORTED_VERSION: only \x1b[2J"
    assert "install the same release" in found["protocol"][0].advice
    assert r"only \x1b[2J" in capsys.readouterr().out


def test_a_ping_that_is_slow_is_told() -> None:
    assert doctor._pings([0.001, 0.3]).status == "warn"
    assert doctor._pings([0.001, 0.003]) == Check("ping", "ok", "median 2.0 ms, longest 3.0 ms of 2")


@pytest.mark.parametrize(
    ("status", "failed", "advice"),
    [
        (401, [], "set GRAMI_TOKEN"),
        (403, ["handshake"], "GRAMI_ALLOWED_HOSTS"),
        (503, ["handshake"], "GRAMI_MAX_CONNECTIONS"),
        (418, ["handshake"], "no Growth Manager"),
    ],
)
async def test_a_handshake_that_is_refused_is_told_with_its_cause(status: int, failed: list[str], advice: str) -> None:
    def refuse(connection: ServerConnection, request: Request) -> Response:
        return connection.respond(status, "no\n")

    async with foreign(silence, process_request=refuse) as url:
        found = await look(url)
    assert failures(found) == failed
    last = found.get("protocol", found["handshake"])[-1]
    assert advice in last.advice


async def test_a_wrong_answer_to_the_key_is_told() -> None:
    async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        status = b"101 Sure" if b"Upgrade" in head else b"200 OK"
        writer.write(b"HTTP/1.1 %s\r\nSec-WebSocket-Accept: x\r\n\r\n" % status)

    async with listening(pretend) as url:
        found = await look(url)
    assert found["handshake"][0].found == "the handshake was answered with a wrong key"


@pytest.mark.parametrize(
    ("shift", "words"), [(-3600, "3600 s behind"), (3600, "s ahead"), (None, "not told"), (0, "as ours")]
)
async def test_a_clock_that_is_wrong_is_told(shift: int | None, words: str) -> None:
    def change(connection: ServerConnection, request: Request, response: Response) -> None:
        del response.headers["Date"]
        if shift is not None:
            response.headers["Date"] = formatdate(dt.datetime.now(dt.UTC).timestamp() + shift, usegmt=True)

    async with foreign(obey, process_response=change) as url:
        (check,) = (await look(url))["clock"]
    assert words in check.found.replace("3601", "3600")
    assert check.status == ("warn" if shift else "ok")


# --- TLS ---


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
    """Somebody whose certificates are trusted here."""
    made = trustme.CA()
    made.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("GRAMI_CA", str(tmp_path / "ca.pem"))
    return made


def context(authority: trustme.CA, name: str = "127.0.0.1", days: float = 90.0) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    expires = dt.datetime.now(dt.UTC) + dt.timedelta(days=days)
    begins = expires - dt.timedelta(days=365)
    authority.issue_cert(name, not_before=begins, not_after=expires).configure_cert(made)
    return made


@pytest.mark.parametrize(("days", "status"), [(90.5, "ok"), (10.5, "warn")])
async def test_a_certificate_that_is_trusted_is_told_with_its_days(
    authority: trustme.CA, days: float, status: str
) -> None:
    async with foreign(obey, context(authority, days=days)) as url:
        found = await look(url)
    assert failures(found) == []
    (check,) = found["tls"]
    assert re.fullmatch(r"TLSv1\.[23], the certificate is trusted .* expires in (90|10|11) days", check.found)
    assert check.status == status


@pytest.mark.parametrize(
    ("name", "days", "words"),
    [("127.0.0.1", -1.0, "certificate has expired"), ("example.org", 90.0, "IP address mismatch")],
)
async def test_a_certificate_that_is_not_good_is_told(
    authority: trustme.CA, name: str, days: float, words: str
) -> None:
    async with foreign(obey, context(authority, name, days)) as url:
        found = await look(url)
    assert failures(found) == ["tls"]
    assert words in found["tls"][0].found
    assert found["tls"][0].advice


async def test_a_certificate_of_somebody_unknown_is_told(authority: trustme.CA) -> None:
    async with foreign(obey, context(trustme.CA())) as url:
        found = await look(url)
    assert failures(found) == ["tls"]
    assert "GRAMI_CA" in found["tls"][0].advice


async def test_a_file_of_authorities_that_is_none_is_told(
    authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with foreign(obey, context(authority)) as url:
        for content in (None, "no certificate"):
            file = tmp_path / f"{content}.pem"
            monkeypatch.setenv("GRAMI_CA", str(file))
            if content is not None:
                file.write_text(content)
            found = await look(url)
            assert failures(found) == ["tls"]
            assert found["tls"][0].found.startswith(f"GRAMI_CA is {str(file)!r}, which cannot be read")
            with pytest.raises(ConfigError, match="GRAMI_CA is"):
                connect(url)


async def test_what_the_system_trusts_is_trusted_by_clients_too(
    authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", os.environ["GRAMI_CA"])
    monkeypatch.delenv("GRAMI_CA")
    async with foreign(obey, context(authority)) as url:
        assert failures(await look(url)) == []


async def test_tls_on_one_side_only_is_told(authority: trustme.CA) -> None:
    async with foreign(obey, context(authority)) as url:
        found = await look(url.replace("wss", "ws"))
    assert failures(found) == ["http"]
    assert "wss://" in found["http"][0].advice
    async with serving(small_swarm()) as manager:
        found = await look(manager.url.replace("ws:", "wss:"))
    assert failures(found) == ["tls"]
    assert "ws://" in found["tls"][0].advice


# --- the state file and the address ---


async def test_a_stale_state_file_is_told(tmp_path: Path) -> None:
    write_state(tmp_path, ServerState("ws://127.0.0.1:1/ws", 1, NOBODY))
    found = await look(None, GRAMI_STATE_DIR=str(tmp_path))
    assert "is stale" in found["state file"][0].found
    assert failures(found) == ["address"]


async def test_a_state_file_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / STATE_FILE).write_text("{")
    found = await look(None, GRAMI_STATE_DIR=str(tmp_path))
    assert warnings(found)[-1] == "state file"
    assert failures(found) == ["address"]


async def test_a_state_file_that_others_may_write_is_told(tmp_path: Path) -> None:
    write_state(tmp_path, ServerState("ws://127.0.0.1:1/ws", 1, NOBODY))
    (tmp_path / STATE_FILE).chmod(0o666)
    found = await look(None, GRAMI_STATE_DIR=str(tmp_path))
    assert [each.advice for each in found["state file"][1:]] == [f"chmod go-w {tmp_path / STATE_FILE}"]


@pytest.mark.parametrize("url", ["http://127.0.0.1/ws", "ws://", "ws://host:99999/ws", "ws://[::1/ws", "127.0.0.1:80"])
async def test_what_is_no_websocket_url_is_told(url: str) -> None:
    assert failures(await look(url)) == ["address"]


async def test_a_name_that_nobody_has_is_told() -> None:
    found = await look("ws://" + "a" * 70 + ".invalid/ws")
    assert failures(found) == ["address"]


@given(st.text("ab1.:/@[]?#% \u00e9\u2100\ud800\x00", max_size=20))
def test_whatever_is_given_as_a_url_is_taken_or_refused(text: str) -> None:
    for url in (text, f"ws://{text}/ws"):
        with contextlib.suppress(Trouble):
            where = target(url)
            assert where.shown.startswith(("ws://", "wss://"))


# --- settings and secrets ---


async def test_variables_that_are_no_settings_are_told_by_name_and_never_by_value() -> None:
    environ = {"GRAMI_PROT": "secret-1", "GRAMI_MAX_INFLIGHT": "secret-2", "GRAMI_AUTH": "secret-3", "OTHER": "x"}
    found = await look("ws://127.0.0.1:1/ws", **environ)
    assert [each.found for each in found["settings"]] == [
        "GRAMI_AUTH has a value that does not fit",
        "GRAMI_MAX_INFLIGHT has a value that does not fit",
        "GRAMI_PROT is not a setting; did you mean 'port'?",
    ]
    assert "secret" not in str(found)


async def test_what_may_be_secret_in_a_url_is_never_told() -> None:
    def refuse(connection: ServerConnection, request: Request) -> Response:
        return connection.respond(401, "no\n")

    async with foreign(silence, process_request=refuse) as url:
        secret = url.replace("ws://", "ws://user:secret-1@") + "?token=secret-2"
        for each in (secret, secret.replace("ws", "xs", 1), url.rpartition(":")[0] + ":1/ws?token=secret-3"):
            assert "secret" not in str(await look(each))


def test_for_machines_it_is_json_and_the_code_is_1() -> None:
    ended = CliRunner().invoke(app, ["doctor", "http://127.0.0.1:1/ws", "--json"])
    told = json.loads(ended.stdout)
    assert told["ok"] is False
    assert told["checks"][-1]["check"] == "address"
    assert ended.exit_code == 1


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_the_limit_of_another_process_is_known() -> None:
    assert doctor._limit_of(os.getpid()) == doctor._own_limit()
    assert doctor._limit_of(NOBODY) is None
