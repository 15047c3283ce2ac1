"""API keys: who is let in, what the file holds, and what several processes do to it at once."""

from __future__ import annotations

import json
import math
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grami_actors.api_keys import KeyStore
from grami_actors.errors import ConfigError, ErrorCode, ProtocolError

NOW = 1_800_000_000.0
LATER = NOW + 10.0


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "state" / "keys.json")


def refused(store: KeyStore, token: str, now: float = NOW) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        store.authenticate(token, now)
    return caught.value


def change(path: Path, **fields: Any) -> None:
    """Edit the first key of a file by hand."""
    content = json.loads(path.read_text())
    content["keys"][0].update(fields)
    path.write_text(json.dumps(content))


# --- who is let in ---


def test_a_token_stands_for_the_principal_that_it_was_made_for(store: KeyStore) -> None:
    key, token = store.create("ci", ["admin", "chat.read", "admin"], now=NOW)
    principal = store.authenticate(token, NOW)
    assert (principal.name, principal.scopes) == ("ci", {"admin", "chat.read"})
    assert (principal.key, principal.expires_at) == (key.id, math.inf)


def test_a_token_has_only_characters_of_a_subprotocol(store: KeyStore) -> None:
    for _ in range(20):
        key, token = store.create("ci", [], now=NOW)
        assert re.fullmatch(rf"grami_{key.id}_[A-Za-z0-9_-]{{43}}", token)


def test_a_key_that_expired_is_refused_with_its_own_code(store: KeyStore) -> None:
    _, token = store.create("ci", [], now=NOW, expires_at=NOW + 5)
    assert store.authenticate(token, NOW + 4.9).expires_at == NOW + 5
    assert refused(store, token, NOW + 5).error_code == ErrorCode.TOKEN_EXPIRED


def test_whoever_does_not_know_the_secret_does_not_learn_that_a_key_expired(store: KeyStore) -> None:
    key, _ = store.create("ci", [], now=NOW, expires_at=NOW + 5)
    assert refused(store, f"grami_{key.id}_{'A' * 43}", LATER).error_code == ErrorCode.INVALID_TOKEN


def test_a_revoked_key_is_refused_at_once_and_others_are_not(store: KeyStore) -> None:
    key, token = store.create("ci", [], now=NOW)
    other, other_token = store.create("ci", [], now=NOW)
    assert not store.revoked(key.id, NOW)
    revoked = store.revoke(key.id, now=NOW + 1)
    assert revoked.revoked_at is not None
    assert store.revoke(key.id, now=NOW + 2) == revoked, "the first time stays"
    error = refused(store, token, LATER)
    assert (error.error_code, error.message) == (ErrorCode.INVALID_TOKEN, "this API key was revoked")
    assert store.revoked(key.id, LATER)
    assert store.authenticate(other_token, LATER).key == other.id
    assert not store.revoked(other.id, LATER)


def test_a_revoked_key_that_expired_is_revoked(store: KeyStore) -> None:
    key, _ = store.create("ci", [], now=NOW, expires_at=NOW + 1)
    assert [key.state(NOW), key.state(NOW + 1)] == ["active", "expired"]
    assert store.revoke(key.id, now=NOW).state(NOW + 1) == "revoked"


def test_an_unknown_id_is_refused_like_a_wrong_secret(store: KeyStore) -> None:
    key, token = store.create("ci", [], now=NOW)
    secret = token[-43:]
    unknown, wrong = refused(store, f"grami_{'0' * 12}_{secret}"), refused(store, f"grami_{key.id}_{'0' * 43}")
    assert unknown.error_code == wrong.error_code == ErrorCode.INVALID_TOKEN
    assert unknown.message == wrong.message


def test_without_a_file_nobody_is_let_in(store: KeyStore) -> None:
    assert store.all_keys() == ()
    assert refused(store, f"grami_{'0' * 12}_{'A' * 43}").error_code == ErrorCode.INVALID_TOKEN
    assert store.revoked("0" * 12, NOW)


def test_the_secret_of_one_key_is_not_one_of_another(store: KeyStore) -> None:
    one, token = store.create("one", [], now=NOW)
    two, _ = store.create("two", [], now=NOW)
    assert refused(store, token.replace(one.id, two.id)).error_code == ErrorCode.INVALID_TOKEN


def test_a_token_is_taken_as_a_whole(store: KeyStore) -> None:
    _, token = store.create("ci", [], now=NOW)
    for other in (f"{token}x", f"{token}\n", f" {token}", f"x{token}", token.upper(), token[:-1], token * 2):
        assert refused(store, other).error_code == ErrorCode.INVALID_TOKEN


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[KeyStore, str]:
    """A store with one key, and its token."""
    store = KeyStore(tmp_path_factory.mktemp("made") / "keys.json")
    return store, store.create("ci", [], now=NOW)[1]


@settings(deadline=None)
@given(data=st.data())
def test_no_mutation_of_a_token_is_ever_let_in(data: st.DataObject, made: tuple[KeyStore, str]) -> None:
    store, token = made
    start = data.draw(st.integers(0, len(token)))
    end = data.draw(st.integers(start, min(len(token), start + 4)))
    mutated = token[:start] + data.draw(st.text("_-=aA0\n\xe9") | st.text(max_size=4)) + token[end:]
    if mutated == token:
        assert store.authenticate(mutated, NOW).name == "ci"
    else:
        assert refused(store, mutated).error_code == ErrorCode.INVALID_TOKEN


@settings(deadline=None)
@given(st.text() | st.from_regex(r"grami_[0-9a-f]{12}_[A-Za-z0-9_-]{43}", fullmatch=True))
def test_no_error_ever_has_a_part_of_a_token(token: str) -> None:
    error = refused(KeyStore(Path("there-is-none.json")), token)
    assert error.error_code == ErrorCode.INVALID_TOKEN
    assert error.message in {"this is not an API key", "this API key is unknown here"}
    assert error.__cause__ is None


# --- what the file holds ---


def test_the_file_is_for_its_owner_only_and_holds_no_token(store: KeyStore) -> None:
    tokens = [store.create(f"client-{number}", ["admin"], now=NOW)[1] for number in range(5)]
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700
    written = "".join(each.read_text() for each in store.path.parent.iterdir())
    for token in tokens:
        assert token[-43:] not in written
        assert token[-43:] not in repr(store.all_keys())
    assert sorted(each.name for each in store.path.parent.iterdir()) == ["keys.json", "keys.json.lock"]


def test_the_times_in_the_file_are_rfc_3339_in_utc(store: KeyStore) -> None:
    key, _ = store.create("ci", [], now=NOW, expires_at=NOW + 60)
    assert json.loads(store.path.read_text())["keys"] == [
        {
            "id": key.id,
            "name": "ci",
            "scopes": [],
            "hash": key.hash,
            "created_at": "2027-01-15T08:00:00Z",
            "expires_at": "2027-01-15T08:01:00Z",
            "revoked_at": None,
        }
    ]


@pytest.mark.parametrize("scope", ["*", "", "two words", 'quo"ted', "über", "back\\slash", "x" * 256])
def test_a_scope_that_cannot_be_granted_is_refused(scope: str, store: KeyStore) -> None:
    with pytest.raises(ConfigError, match="not a scope that can be granted"):
        store.create("ci", ["admin", scope], now=NOW)
    assert not store.path.exists()


@pytest.mark.parametrize("name", ["", "operator", "anonymous", "agent:writer", "a\nb", " ci", "\ud800", "x" * 256])
def test_a_name_that_nobody_may_have_is_refused(name: str, store: KeyStore) -> None:
    with pytest.raises(ConfigError, match="no key can have the name"):
        store.create(name, [], now=NOW)


def test_not_even_an_edited_file_grants_everything(store: KeyStore) -> None:
    _, token = store.create("ci", ["admin"], now=NOW)
    change(store.path, scopes=["*", "admin"])
    assert store.authenticate(token, LATER).scopes == {"admin"}


@pytest.mark.parametrize(
    "fields",
    [
        {"expire_at": "2027-01-15T08:00:00Z"},
        {"expires_at": "2027-01-15T08:00:00"},
        {"name": "operator"},
        {"hash": "abc"},
        {"id": "abc"},
    ],
)
def test_a_file_with_a_wrong_field_is_refused_at_the_start(fields: dict[str, Any], store: KeyStore) -> None:
    store.create("ci", [], now=NOW)
    change(store.path, **fields)
    with pytest.raises(ConfigError, match="is not a file of API keys"):
        KeyStore(store.path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 2, "keys": []}', '{"x": ' + "[" * 100_000, "\xff"])
def test_a_file_that_is_something_else_is_refused_and_never_overwritten(text: str, store: KeyStore) -> None:
    store.path.parent.mkdir()
    store.path.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match="is not a file of API keys"):
        KeyStore(store.path)
    store.path.unlink()
    late = KeyStore(store.path)
    store.path.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match="is not a file of API keys"):
        late.create("ci", [], now=NOW)
    assert store.path.read_text(encoding="latin-1") == text


def test_two_keys_with_one_id_are_refused(store: KeyStore) -> None:
    key, _ = store.create("one", [], now=NOW)
    store.create("two", [], now=NOW)
    content = json.loads(store.path.read_text())
    content["keys"][1]["id"] = key.id
    store.path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="the same id"):
        KeyStore(store.path)


def test_an_unknown_id_to_revoke_is_not_repeated(store: KeyStore) -> None:
    _, token = store.create("ci", [], now=NOW)
    before = store.path.stat()
    with pytest.raises(ConfigError, match=r"no key in .* has this id") as caught:
        store.revoke(token, now=NOW)
    assert token not in str(caught.value)
    assert store.path.stat().st_ino == before.st_ino, "nothing was written"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    late = KeyStore(tmp_path / "none" / "keys.json")
    (tmp_path / "none").touch()
    with pytest.raises(ConfigError, match=r"cannot change .*keys\.json: "):
        late.create("ci", [], now=NOW)


# --- a store that runs, and others that write ---


def test_a_running_store_sees_what_others_change(store: KeyStore) -> None:
    running = KeyStore(store.path)
    key, token = store.create("ci", [], now=NOW)
    assert running.authenticate(token, NOW).name == "ci"
    store.revoke(key.id, now=NOW)
    assert not running.revoked(key.id, NOW + 0.1), "cheap: it looks every half second"
    assert running.revoked(key.id, NOW + 0.5)


def test_a_file_that_is_taken_away_revokes_all_keys(store: KeyStore) -> None:
    key, token = store.create("ci", [], now=NOW)
    assert store.authenticate(token, NOW)
    store.path.unlink()
    assert store.revoked(key.id, LATER)
    assert refused(store, token, LATER).error_code == ErrorCode.INVALID_TOKEN


def test_a_broken_file_keeps_the_keys_that_were_read_last_and_is_told_of(store: KeyStore) -> None:
    _, token = store.create("ci", [], now=NOW)
    told: list[str] = []
    running = KeyStore(store.path, told.append)
    store.path.write_text("{broken")
    assert running.authenticate(token, LATER).name == "ci"
    assert len(told) == 1
    assert "is not a file of API keys" in told[0]


@pytest.mark.slow
def test_keys_that_are_made_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    program = (
        "import sys; from pathlib import Path; from grami_actors.api_keys import KeyStore\n"
        "store = KeyStore(Path(sys.argv[1])); print(flush=True); sys.stdin.read()\n"
        "for _ in range(15): print(store.create('ci', [], now=1.0)[1])\n"
    )
    command = [sys.executable, "-c", program, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    processes = [subprocess.Popen(command, text=True, env=environment, **pipes) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
    tokens = [token for process in processes for token in process.communicate(timeout=30)[0].split()]
    store = KeyStore(path)
    assert len({store.authenticate(token, NOW).key for token in tokens}) == 45
    assert len(store.all_keys()) == 45
