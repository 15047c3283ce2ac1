"""How a client finds a running server: the order of the sources, and what is left by a crash."""

from __future__ import annotations

import itertools
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grami_actors.discovery import (
    STATE_FILE,
    Located,
    ServerState,
    find_server,
    locate,
    read_state,
    remove_state,
    write_state,
)
from grami_actors.errors import ServerNotFound

OURS = ServerState(url="ws://127.0.0.1:7/ws", port=7, pid=os.getpid())


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """Another process, which runs until it is killed."""
    code = "import sys; sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", code], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_the_sources_are_asked_in_order(tmp_path: Path) -> None:
    write_state(tmp_path, OURS)
    sources = {"GRAMI_URL": "ws://a/ws", "GRAMI_PORT": "9", "GRAMI_STATE_DIR": str(tmp_path)}
    assert find_server("ws://given/ws", sources) == "ws://given/ws"
    assert find_server(None, sources) == "ws://a/ws"
    assert find_server("", sources | {"GRAMI_URL": ""}) == "ws://127.0.0.1:9/ws"
    assert find_server(None, {"GRAMI_STATE_DIR": str(tmp_path)}) == OURS.url


def test_without_variables_the_working_directory_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_state(tmp_path / ".grami", OURS)
    assert find_server(environ={}) == OURS.url


def test_the_environment_of_the_process_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAMI_URL", "ws://from-environment/ws")
    assert find_server() == "ws://from-environment/ws"


@pytest.mark.parametrize("port", ["http", "-1", " 80", "8 0"])
def test_a_port_that_is_no_number_is_said_to_be_none(port: str) -> None:
    with pytest.raises(ServerNotFound, match="not a port number"):
        find_server(environ={"GRAMI_PORT": port})


@pytest.mark.parametrize("port", ["²", "0", "99999"])
def test_a_number_that_is_no_port_is_said_to_be_none(port: str) -> None:
    with pytest.raises(ServerNotFound, match="not a port number"):
        find_server(environ={"GRAMI_PORT": port})


def test_without_a_server_the_error_says_where_was_looked_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ServerNotFound) as missing:
        find_server(environ={"GRAMI_STATE_DIR": str(tmp_path / "no")})
    for word in ("GRAMI_URL", "GRAMI_PORT", str(tmp_path / "no" / STATE_FILE), "grami serve"):
        assert word in missing.value.message


def test_a_server_that_runs_is_found_and_after_a_crash_its_file_is_stale(
    tmp_path: Path, child: subprocess.Popen[bytes]
) -> None:
    write_state(tmp_path, ServerState(url="ws://127.0.0.1:8/ws", port=8, pid=child.pid))
    environ = {"GRAMI_STATE_DIR": str(tmp_path)}
    assert find_server(environ=environ) == "ws://127.0.0.1:8/ws"
    child.kill()
    child.wait()
    with pytest.raises(ServerNotFound, match=rf"stale.*process {child.pid}"):
        find_server(environ=environ)


@pytest.mark.parametrize(("pid", "alive"), [(os.getpid(), True), (1, True), (0, False), (-1, False), (10**30, False)])
def test_only_a_process_that_exists_is_alive(pid: int, alive: bool) -> None:
    assert ServerState(url="", port=1, pid=pid).alive is alive


def test_a_server_removes_its_own_file_and_no_other(tmp_path: Path) -> None:
    write_state(tmp_path, OURS)
    remove_state(tmp_path, msgspec.structs.replace(OURS, pid=OURS.pid + 1))
    assert read_state(tmp_path) == OURS
    remove_state(tmp_path, OURS)
    assert list(tmp_path.iterdir()) == []
    remove_state(tmp_path, OURS)


def test_whoever_reads_while_it_is_written_sees_one_whole_state(tmp_path: Path) -> None:
    states = [ServerState(url="ws://" + "x" * size, port=size, pid=size) for size in (1, 5_000, 70_000)]
    write_state(tmp_path, states[0])
    done = threading.Event()

    def write() -> None:
        for state in itertools.islice(itertools.cycle(states), 300):
            write_state(tmp_path, state)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        assert read_state(tmp_path) in states
    writer.join()
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / STATE_FILE).mkdir()
    with pytest.raises(OSError, match=STATE_FILE):
        write_state(tmp_path, OURS)
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]


def test_only_the_user_can_read_the_directory_and_the_file(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_state(tmp_path / "a" / "state", OURS)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a" / "state").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "a" / "state" / STATE_FILE).stat().st_mode) == 0o600


@settings(deadline=None)  # it writes files
@given(
    content=st.one_of(st.binary(max_size=60), st.sampled_from([b"{}", b"[]", b'{"url":1,"port":1,"pid":1}', b"\xff"]))
)
def test_a_file_that_is_no_state_is_no_server(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.getbasetemp() / "broken"
    directory.mkdir(exist_ok=True)
    (directory / STATE_FILE).write_bytes(content)
    assert read_state(directory) is None
    remove_state(directory, OURS)
    with pytest.raises(ServerNotFound):
        find_server(environ={"GRAMI_STATE_DIR": str(directory)})


def test_a_file_that_is_nested_too_deeply_is_no_server(tmp_path: Path) -> None:
    (tmp_path / STATE_FILE).write_bytes(b'{"url":"","port":1,"pid":1,"x":' + b"[" * 200_000)
    assert read_state(tmp_path) is None


def test_a_broken_file_is_not_said_to_be_missing(tmp_path: Path) -> None:
    (tmp_path / STATE_FILE).write_bytes(b"{")
    with pytest.raises(ServerNotFound) as broken:
        find_server(environ={"GRAMI_STATE_DIR": str(tmp_path)})
    assert "does not exist" not in broken.value.message


# --- the operator's token ---

SECURED = ServerState(url="wss://127.0.0.1:7/ws", port=7, pid=os.getpid(), token="op-secret")


def test_the_token_comes_with_the_address_of_the_state_file(tmp_path: Path) -> None:
    write_state(tmp_path, SECURED)
    environ = {"GRAMI_STATE_DIR": str(tmp_path)}
    assert locate(None, environ) == Located("wss://127.0.0.1:7/ws", "op-secret")
    assert find_server(None, environ) == "wss://127.0.0.1:7/ws"


@pytest.mark.parametrize("url", ["wss://127.0.0.1:7/ws", "ws://evil.example/ws"])
def test_the_token_is_never_given_for_an_address_from_elsewhere(url: str, tmp_path: Path) -> None:
    write_state(tmp_path, SECURED)
    environ = {"GRAMI_STATE_DIR": str(tmp_path)}
    assert locate(url, environ) == Located(url)
    assert locate(None, environ | {"GRAMI_URL": url}) == Located(url)
    assert locate(None, environ | {"GRAMI_PORT": "8"}) == Located("ws://127.0.0.1:8/ws")


def test_a_child_that_knows_the_port_finds_the_whole_address(tmp_path: Path) -> None:
    write_state(tmp_path, SECURED)
    environ = {"GRAMI_STATE_DIR": str(tmp_path), "GRAMI_PORT": "7"}
    assert locate(None, environ) == Located("wss://127.0.0.1:7/ws", "op-secret")


def test_a_port_is_not_looked_up_in_the_file_of_a_server_that_is_gone(
    tmp_path: Path, child: subprocess.Popen[bytes]
) -> None:
    write_state(tmp_path, msgspec.structs.replace(SECURED, pid=child.pid))
    environ = {"GRAMI_STATE_DIR": str(tmp_path), "GRAMI_PORT": "7"}
    assert locate(None, environ).token == "op-secret"
    child.kill()
    child.wait()
    assert locate(None, environ) == Located("ws://127.0.0.1:7/ws")


def test_a_file_of_before_there_were_tokens_can_be_read_and_one_without_looks_the_same(tmp_path: Path) -> None:
    old = b'{"url":"ws://127.0.0.1:7/ws","port":7,"pid":1}'
    (tmp_path / STATE_FILE).write_bytes(old)
    state = read_state(tmp_path)
    assert state == ServerState("ws://127.0.0.1:7/ws", 7, 1, "")
    write_state(tmp_path, state)
    assert (tmp_path / STATE_FILE).read_bytes() == old + b"\n"


def test_only_the_user_can_read_a_token_even_in_a_directory_that_all_can_read(tmp_path: Path) -> None:
    directory = tmp_path / "open"
    directory.mkdir()
    directory.chmod(0o777)
    (directory / STATE_FILE).write_bytes(b"{}")
    (directory / STATE_FILE).chmod(0o666)
    before = os.umask(0)
    try:
        write_state(directory, SECURED)
    finally:
        os.umask(before)
    assert stat.S_IMODE((directory / STATE_FILE).stat().st_mode) == 0o600


def test_a_token_stands_in_no_text_about_its_server() -> None:
    for each in (SECURED, Located(SECURED.url, SECURED.token)):
        assert "op-secret" not in f"{each} {each!r}"
        assert SECURED.url in repr(each)
