"""``grami config`` as a person and as a program sees it, and what ``grami serve`` takes from options and files."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme
from typer.testing import CliRunner
from websockets.sync.client import connect as websocket_connect

from grami_actors.cli.app import app
from grami_actors.config import Config, descriptions

ROOT = Path(__file__).parents[1]
SMALL = ROOT / "tests" / "scripts" / "small.py"
NAMES = [field.name for field in msgspec.structs.fields(Config)]


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory and an environment without settings."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("GRAMI_")]:
        monkeypatch.delenv(name)


def shown(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["config", "--json", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return json.loads(result.stdout)


def started(*arguments: str | Path, **environ: str) -> subprocess.Popen[str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("GRAMI_", "COV_"))}
    command = [sys.executable, "-m", "grami_actors", *map(str, arguments)]
    pipe = subprocess.PIPE
    env = plain | {"PYTHONPATH": str(ROOT), "COLUMNS": "300"} | environ
    return subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)


@contextmanager
def serving(*arguments: str | Path, **environ: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server that runs as a process of its own, and its URL."""
    process = started("serve", SMALL, *arguments, **environ)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield process, json.loads(line)["url"] if line else ""
    finally:
        process.kill()
        process.communicate()


def ended(*calls: Sequence[str | Path]) -> list[tuple[int, str]]:
    """How commands that cannot work end, and what they say; run at the same time, which is quicker."""
    processes = [started(*arguments) for arguments in calls]
    try:
        said = [process.communicate(timeout=30) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [out for out, _ in said] == [""] * len(calls)
    assert not any("Traceback" in err for _, err in said)
    return [(process.returncode, " ".join(err.split())) for process, (_, err) in zip(processes, said, strict=True)]


# --- grami config ---


def test_programs_get_each_setting_in_order_with_its_value_and_source(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("grami.toml").write_text('state_dir = "state"\n[[rules]]\nsend = ["greet"]\n')
    monkeypatch.setenv("GRAMI_AUTH", "keys")
    found = shown()
    assert list(found) == NAMES
    assert found["state_dir"] == {"value": "state", "source": "grami.toml"}
    assert found["rules"]["value"][0]["send"] == ["greet"]
    assert found["auth"] == {"value": ["keys"], "source": "GRAMI_AUTH"}
    assert found["tls_cert"] == {"value": None, "source": "default"}


def test_the_file_can_be_named(tmp_path: Path) -> None:
    Path("grami.toml").write_text("threads = 1")
    other = tmp_path / "other.toml"
    other.write_text("threads = 2")
    assert shown("--config", str(other))["threads"] == {"value": 2, "source": str(other)}


def test_people_get_a_table_in_which_what_was_set_stands_out() -> None:
    environ = {"GRAMI_MAX_INFLIGHT": "7", "GRAMI_ALLOWED_HOSTS": "[bold]a,b", "FORCE_COLOR": "1", "TERM": "xterm"}
    styled, err = started("config", **environ).communicate(timeout=30)
    assert err == ""
    plain = [line.split() for line in re.sub(r"\x1b\[[\d;]*m", "", styled).splitlines()]
    assert plain[0] == ["setting", "value", "from"]
    assert ["max_inflight", "7", "GRAMI_MAX_INFLIGHT"] in plain
    assert ["compression", "false", "default"] in plain
    assert ["tls_cert", "none", "default"] in plain
    assert ["allowed_hosts", "[bold]a", "GRAMI_ALLOWED_HOSTS"] in plain
    assert [row[0] for row in plain[1:] if len(row) > 1] == NAMES
    assert re.findall(r"\x1b\[1;32m(\w+)", styled) == [
        "allowed_hosts",
        "GRAMI_ALLOWED_HOSTS",
        "b",
        "max_inflight",
        "7",
        "GRAMI_MAX_INFLIGHT",
    ]


def test_people_can_be_told_what_each_setting_means() -> None:
    words = " ".join(started("config", "--verbose").communicate(timeout=30)[0].split())
    for text in descriptions().values():
        assert text.replace("``", "`") in words


def test_a_setting_that_cannot_be_used_is_an_error_and_not_a_table() -> None:
    Path("grami.toml").write_text("port = 1\nmax_inflihgt = 5\n")
    wrong = "error: grami.toml, line 2: 'max_inflihgt' is not a setting; did you mean 'max_inflight'?"
    assert ended(("config",)) == [(1, wrong)]


# --- grami serve ---


def test_an_option_beats_the_file_and_one_that_is_not_given_does_not(tmp_path: Path) -> None:
    Path("other.toml").write_text('host = "0.0.0.0"\nallow_anonymous = true\nstate_dir = "from-file"\n')
    with serving("--config", "other.toml", "--host", "127.0.0.1") as (_, url):
        assert url.startswith("ws://127.0.0.1:")
        assert (tmp_path / "from-file" / "growth-manager.json").exists()


def test_what_options_ask_for_is_refused_like_what_the_file_does_before_anything_is_served() -> None:
    refusals = {
        ("--auth", "key"): "--auth is 'key'; it must be 'keys' or 'jwt'; did you mean 'keys'?",
        ("--reuse-port",): "set the port to share",
        ("--tls-cert", "no.pem"): "the certificate in no.pem cannot be read: No such file",
        ("--host", "0.0.0.0"): "GRAMI_AUTH=keys and make keys with `grami token create`; or give --allow-anonymous",
    }
    for (code, said), words in zip(
        ended(*(("serve", SMALL, *options) for options in refusals)), refusals.values(), strict=True
    ):
        assert code == 1
        assert words in said


def test_a_scenario_is_played_whatever_the_file_says_about_who_may_come() -> None:
    Path("grami.toml").write_text(
        'host = "0.0.0.0"\nport = 1\nreuse_port = true\ntls_cert = "no.pem"\nauth = ["keys"]\n[[rules]]\n'
    )
    process = started("run", SMALL, "passes")
    assert process.communicate(timeout=30)[1] == ""
    assert process.returncode == 0


@pytest.mark.slow
def test_sighup_brings_the_new_certificate_and_open_connections_live_on(tmp_path: Path) -> None:
    authority = trustme.CA()
    leaves = [authority.issue_cert("127.0.0.1") for _ in range(2)]
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    wanted = ssl.PEM_cert_to_DER_cert(leaves[1].cert_chain_pems[0].bytes().decode())

    def renewed() -> bool:
        with websocket_connect(url, ssl=context, proxy=None) as client:
            return client.socket.getpeercert(binary_form=True) == wanted  # type: ignore[attr-defined]

    def put(leaf: trustme.LeafCert) -> None:
        leaf.cert_chain_pems[0].write_to_path(str(cert))
        leaf.private_key_pem.write_to_path(str(key))

    put(leaves[0])
    with serving("--tls-cert", cert, "--tls-key", key) as (process, url):
        assert url.startswith("wss://")
        with websocket_connect(url, ssl=context, proxy=None) as old:
            put(leaves[1])
            assert not renewed()
            process.send_signal(signal.SIGHUP)
            while not renewed():
                pass
            cert.write_text("broken")
            process.send_signal(signal.SIGHUP)
            assert process.stderr is not None
            log = []
            while "not reloaded" not in (line := process.stderr.readline()):
                log.append(line)
            assert "cert.pem has no certificate in it" in line
            assert any("certificates reloaded" in line for line in log)
            assert any("every user of this machine can read" in line for line in log)
            assert renewed()
            old.send('{"type":"greet","name":"Ann"}')
            assert json.loads(old.recv())["status"] == "success"


def test_sighup_ends_a_server_that_has_nothing_to_read_again() -> None:
    with serving() as (process, url):
        assert url
        process.send_signal(signal.SIGHUP)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        assert process.returncode == -signal.SIGHUP
