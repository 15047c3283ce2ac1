"""TLS: what is refused, and certificates that change while connections are open."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvloop
from cryptography.hazmat.primitives import serialization
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as websocket_connect
from websockets.asyncio.server import ServerConnection, serve

from grami_actors import Swarm, connect
from grami_actors.errors import ConfigError
from grami_actors.gateway import server as gateway
from grami_actors.gateway.tls import Certificates, warning_about_loop
from tests.conftest import serving

HOST = "127.0.0.1"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def pairs(authority: trustme.CA) -> tuple[trustme.LeafCert, trustme.LeafCert]:
    """Two certificates for one address; making keys takes time."""
    return authority.issue_cert(HOST, "localhost"), authority.issue_cert(HOST, "localhost")


class Files:
    """A certificate and its key, where a server would look for them."""

    def __init__(self, folder: Path) -> None:
        self.cert = folder / "cert.pem"
        self.key = folder / "key.pem"

    def put(self, leaf: trustme.LeafCert) -> None:
        self.cert.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        self.key.write_bytes(leaf.private_key_pem.bytes())
        self.key.chmod(0o600)


@pytest.fixture
def files(tmp_path: Path, pairs: tuple[trustme.LeafCert, trustme.LeafCert]) -> Files:
    found = Files(tmp_path)
    found.put(pairs[0])
    return found


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    """Runs a coroutine on each kind of loop, under a time limit."""

    def run_one(work: Coroutine[Any, Any, None]) -> None:
        async def limited() -> None:
            async with asyncio.timeout(20):
                await work

        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(limited())

    return run_one


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # without the authorities of the system, which take time to load
    authority.configure_trust(context)
    return context


def only(context: ssl.SSLContext, version: ssl.TLSVersion) -> ssl.SSLContext:
    """Make a client's context speak one old version, which its own library would not of itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = version
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context


async def echo(connection: ServerConnection) -> None:
    async for frame in connection:
        await connection.send(frame)


@asynccontextmanager
async def echoing(certificates: Certificates) -> AsyncIterator[str]:
    async with serve(echo, HOST, 0, ssl=certificates.context) as server:
        yield f"wss://{HOST}:{next(iter(server.sockets)).getsockname()[1]}/ws"


def connected(url: str, context: ssl.SSLContext) -> websocket_connect:
    return websocket_connect(url, ssl=context, proxy=None)


async def speaks(client: ClientConnection, text: str) -> bool:
    await client.send(text)
    return await client.recv() == text


def shown(client: ClientConnection) -> bytes:
    """The certificate that the server showed to a client."""
    return client.transport.get_extra_info("ssl_object").getpeercert(binary_form=True)


def der(leaf: trustme.LeafCert) -> bytes:
    return ssl.PEM_cert_to_DER_cert(leaf.cert_chain_pems[0].bytes().decode())


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, name: str | None = HOST) -> ssl.SSLObject:
    """A handshake in memory; what the client has of it. Raises what the client or the server refuses with."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    waiting = list(ends)
    while waiting:
        for end in tuple(waiting):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(end)
    return ends[0]


# --- what is spoken ---


def test_a_client_that_trusts_the_certificate_connects_over_wss(files, authority, pairs, run) -> None:
    async def check() -> None:
        url_of = echoing(Certificates(files.cert, files.key))
        async with url_of as url, connected(url, trusting(authority)) as client:
            assert await speaks(client, "x" * 100_000)
            assert shown(client) == der(pairs[0])
            assert client.transport.get_extra_info("ssl_object").version() == "TLSv1.3"

    run(check())


def test_a_client_that_does_not_trust_it_goes_away_and_a_plain_one_is_not_served(files, authority, run) -> None:
    async def check() -> None:
        async with echoing(Certificates(files.cert, files.key)) as url:
            with pytest.raises(ssl.SSLCertVerificationError):
                await connected(url, ssl.create_default_context())
            with pytest.raises(Exception, match="did not receive a valid HTTP response"):
                await websocket_connect(url.replace("wss:", "ws:"), proxy=None)
            async with connected(url, trusting(authority)) as client:
                assert await speaks(client, "still there")

    run(check())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_a_client_with_an_old_version_of_tls_cannot_connect(version, files, authority, run) -> None:
    async def check() -> None:
        async with echoing(Certificates(files.cert, files.key)) as url:
            with pytest.raises(OSError):  # noqa: PT011 - the loop hangs up, with or without the alert
                await connected(url, only(trusting(authority), version))

    run(check())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.parametrize("reloaded", [False, True])
def test_it_is_the_server_that_refuses_an_old_version_of_tls(version, reloaded, files, authority, pairs) -> None:
    certificates = Certificates(files.cert, files.key)
    if reloaded:
        files.put(pairs[1])
        certificates.reload()
    with pytest.raises(ssl.SSLError, match="UNSUPPORTED_PROTOCOL"):
        shake_hands(certificates.context, only(trusting(authority), version))
    lax = Certificates(files.cert, files.key).context
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        lax.minimum_version = version
    lax.set_ciphers("ALL:@SECLEVEL=0")
    assert shake_hands(lax, only(trusting(authority), version)).version() in {"TLSv1", "TLSv1.1"}, "it could have"


def test_tls_1_2_is_spoken_and_http_1_1_is_chosen(files, authority) -> None:
    context = trusting(authority)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2", "http/1.1"])
    found = shake_hands(Certificates(files.cert, files.key).context, context)
    assert (found.version(), found.selected_alpn_protocol()) == ("TLSv1.2", "http/1.1")


def test_the_key_may_stand_in_the_certificates_file(files, authority) -> None:
    files.cert.write_bytes(files.cert.read_bytes() + files.key.read_bytes())
    assert shake_hands(Certificates(files.cert).context, trusting(authority)).version() == "TLSv1.3"


# --- what changes ---


def test_new_connections_get_the_new_certificate_and_the_old_ones_live_on(files, authority, pairs, run) -> None:
    async def check() -> None:
        certificates = Certificates(files.cert, files.key)
        held = certificates.context
        async with echoing(certificates) as url, connected(url, trusting(authority)) as old:
            assert await speaks(old, "before")
            files.put(pairs[1])
            assert certificates.reload()
            assert certificates.context is held, "the server goes on with what it was given"
            assert await speaks(old, "after")
            async with connected(url, trusting(authority)) as new:
                assert (shown(old), shown(new)) == (der(pairs[0]), der(pairs[1]))
                assert await speaks(new, "new")
            assert await speaks(old, "still")

    run(check())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_that_names_no_host_gets_the_new_certificate_too(version, files, authority, pairs) -> None:
    certificates = Certificates(files.cert, files.key)
    files.put(pairs[1])
    certificates.reload()
    context = trusting(authority)
    context.check_hostname = False
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["http/1.1"])
    found = shake_hands(certificates.context, context, name=None)
    assert found.getpeercert(binary_form=True) == der(pairs[1])
    assert found.selected_alpn_protocol() == "http/1.1"


BROKEN: dict[str, Callable[[Files, trustme.LeafCert], Any]] = {
    "another key": lambda files, other: files.key.write_bytes(other.private_key_pem.bytes()),
    "another certificate": lambda files, other: files.cert.write_bytes(other.cert_chain_pems[0].bytes()),
    "half a certificate": lambda files, other: files.cert.write_bytes(files.cert.read_bytes()[:300]),
    "half a key": lambda files, other: files.key.write_bytes(files.key.read_bytes()[:100]),
    "an empty key": lambda files, other: files.key.write_bytes(b""),
    "no certificate": lambda files, other: files.cert.unlink(),
    "a folder": lambda files, other: (files.key.unlink(), files.key.mkdir()),
    "files that change places": lambda files, other: files.cert.rename(files.key),
}


@pytest.mark.parametrize("flaw", BROKEN)
def test_a_pair_that_cannot_be_used_is_refused_and_the_last_one_stays(flaw, files, authority, pairs) -> None:
    certificates = Certificates(files.cert, files.key)
    assert not certificates.changed()
    BROKEN[flaw](files, pairs[1])
    assert certificates.changed()
    with pytest.raises(ConfigError, match=r"cert\.pem|key\.pem"):
        certificates.reload()
    assert not certificates.changed(), "it is told once"
    assert shake_hands(certificates.context, trusting(authority)).getpeercert(binary_form=True) == der(pairs[0])
    with pytest.raises(ConfigError):
        Certificates(files.cert, files.key)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 5_000), of_key=st.booleans(), steps=st.lists(st.booleans(), max_size=3))
def test_whatever_half_of_the_files_is_written_the_server_always_shows_a_whole_pair(
    cut: int,
    of_key: bool,
    steps: list[bool],
    authority: trustme.CA,
    pairs: tuple[trustme.LeafCert, trustme.LeafCert],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    files = Files(tmp_path_factory.getbasetemp())
    files.put(pairs[0])
    certificates = Certificates(files.cert, files.key)
    expected = pairs[0]
    for whole in (*steps, False):
        files.put(pairs[1])
        path = files.key if of_key else files.cert
        if not whole:
            path.write_bytes(path.read_bytes()[:cut])
        try:
            certificates.reload()
        except ConfigError:
            pass
        else:
            expected = pairs[1]
        found = shake_hands(certificates.context, trusting(authority))
        assert found.getpeercert(binary_form=True) == der(expected)


def test_a_pair_that_is_mended_is_used(files, authority, pairs) -> None:
    certificates = Certificates(files.cert, files.key)
    files.key.write_bytes(pairs[1].private_key_pem.bytes())
    with pytest.raises(ConfigError, match="does not belong to the certificate"):
        certificates.reload()
    files.put(pairs[1])
    assert certificates.changed()
    assert certificates.reload()
    assert shake_hands(certificates.context, trusting(authority)).getpeercert(binary_form=True) == der(pairs[1])


def test_files_that_were_not_touched_are_not_said_to_have_changed(files) -> None:
    certificates = Certificates(files.cert, files.key)
    assert not certificates.changed()
    assert not certificates.reload()


def test_a_file_that_is_replaced_by_one_of_the_same_size_and_time_has_changed(files) -> None:
    certificates = Certificates(files.cert, files.key)
    facts = files.cert.stat()
    other = files.cert.with_name("other.pem")
    other.write_bytes(files.cert.read_bytes())
    os.utime(other, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    other.rename(files.cert)
    assert certificates.changed()


# --- what is said ---


def test_a_file_that_is_not_there_is_named_with_what_it_should_hold(files) -> None:
    files.key.unlink()
    with pytest.raises(ConfigError, match=r"the private key in .*key\.pem cannot be read: No such file"):
        Certificates(files.cert, files.key)


def test_a_file_that_holds_something_else_is_named(files) -> None:
    with pytest.raises(ConfigError, match=r"key\.pem has no certificate in it \(PEM"):
        Certificates(files.key, files.key)
    with pytest.raises(ConfigError, match=r"cert\.pem has no private key in it"):
        Certificates(files.cert)


def test_a_key_with_a_passphrase_is_refused_and_not_asked_for(files) -> None:
    key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    protection = serialization.BestAvailableEncryption(b"secret")
    formats = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    files.key.write_bytes(key.private_bytes(*formats, protection))
    with pytest.raises(ConfigError, match=r"key\.pem has a passphrase"):
        Certificates(files.cert, files.key)


@pytest.mark.parametrize(
    ("mode", "doubtful"), [(0o600, False), (0o640, False), (0o644, True), (0o602, True), (0o400, False)]
)
def test_a_key_that_everybody_can_read_is_warned_about(mode: int, doubtful: bool, files) -> None:
    files.key.chmod(mode)
    said = Certificates(files.cert, files.key).warning
    assert (said is not None) is doubtful
    assert said is None or str(files.key) in said


def test_only_a_loop_other_than_uvloops_is_warned_about() -> None:
    said = []
    for make in (asyncio.new_event_loop, uvloop.new_event_loop):
        loop = make()
        said.append(warning_about_loop(loop))
        loop.close()
    assert said[0] is not None
    assert "274 KiB" in said[0]
    assert "uvloop" in said[0]
    assert said[1] is None


# --- the gateway ---


def test_a_client_finds_a_gateway_with_tls_and_one_that_never_shakes_hands_is_cut_off(
    files: Files,
    authority: trustme.CA,
    run: Callable[[Coroutine[Any, Any, None]], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("GRAMI_CA", str(tmp_path / "ca.pem"))
    monkeypatch.setattr(gateway, "HANDSHAKE", 0.2)

    async def work() -> None:
        async with serving(Swarm([]), tls_cert=files.cert, tls_key=files.key) as manager:
            async with connect(manager.url) as grami:
                await grami.ping()
            assert manager.url.startswith("wss://")
            reader, writer = await asyncio.open_connection(HOST, manager.port)
            try:
                async with asyncio.timeout(3):
                    with contextlib.suppress(ConnectionError):
                        assert await reader.read() == b""
            finally:
                writer.transport.abort()

    run(work())
