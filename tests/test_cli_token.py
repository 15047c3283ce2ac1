"""``grami token``: what is printed where, what is never printed, and what it does to the file."""

from __future__ import annotations

import json
import re
import stat
import time
from functools import partial
from pathlib import Path

import pytest

from grami_actors.api_keys import KeyStore
from grami_actors.errors import ProtocolError
from tests.conftest import Grami


@pytest.fixture
def grami(command_line: Grami) -> Grami:
    """Runs ``grami token`` in an empty directory."""
    return partial(command_line, "token")


def created(grami: Grami, *arguments: str) -> tuple[str, str]:
    """The id and the token of a new key."""
    result = grami("create", *arguments)
    assert result.code == 0, result.err
    token = result.out.removesuffix("\n")
    return token.split("_")[1], token


def test_create_prints_the_token_alone_and_says_that_it_is_shown_only_now(grami: Grami) -> None:
    result = grami("create", "ci", "--scope", "admin", "--scope", "chat.read", "--expires", "30d")
    assert re.fullmatch(r"grami_[0-9a-f]{12}_[A-Za-z0-9_-]{43}\n", result.out)
    token = result.out.strip()
    assert "shown only now" in result.err
    assert f"grami token revoke {token.split('_')[1]}" in result.err
    assert token not in result.err
    path = Path(".grami/keys.json")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    principal = KeyStore(path).authenticate(token, time.time())
    assert (principal.name, principal.scopes) == ("ci", {"admin", "chat.read"})
    assert abs(principal.expires_at - time.time() - 30 * 86_400) < 60


def test_create_can_speak_json(grami: Grami) -> None:
    result = grami("create", "ci", "--json")
    assert result.err == ""
    key = json.loads(result.out)
    assert list(key) == ["id", "name", "scopes", "created_at", "expires_at", "revoked_at", "state", "token"]
    assert (key["name"], key["scopes"], key["expires_at"], key["state"]) == ("ci", [], None, "active")
    assert KeyStore(Path(".grami/keys.json")).authenticate(key["token"], time.time()).key == key["id"]


def test_list_shows_what_became_of_each_key_but_no_secret(grami: Grami) -> None:
    tokens = [created(grami, name, "--scope", "chat.read") for name in ("ci", "bob [b]", "old")]
    grami("revoke", tokens[1][0])
    path = Path(".grami/keys.json")
    content = json.loads(path.read_text())
    content["keys"][2] |= {"created_at": "2020-01-01T00:00:00Z", "expires_at": "2020-01-02T03:04:05Z"}
    path.write_text(json.dumps(content))
    table, data = grami("list"), grami("list", "--json")
    lines = [line.split() for line in table.out.splitlines() if line.strip()]
    assert lines[1] == ["id", "name", "scopes", "created", "(UTC)", "expires", "(UTC)", "state"]
    assert lines[2][:3] == [tokens[0][0], "ci", "chat.read"]
    assert [line[-1] for line in lines[2:]] == ["active", "revoked", "expired"]
    assert "bob [b]" in table.out
    assert "2020-01-02 03:04" in table.out
    assert [each["state"] for each in json.loads(data.out)] == ["active", "revoked", "expired"]
    for key, (_, token) in zip(content["keys"], tokens, strict=True):
        for secret in (token[-43:], key["hash"]):
            assert secret not in "".join(table[1:] + data[1:])


def test_list_says_how_to_make_the_first_key(grami: Grami) -> None:
    result = grami("list")
    assert (result.code, result.out) == (0, "")
    assert "grami token create NAME" in result.err
    assert grami("list", "--json").out == "[]\n"
    assert not Path(".grami").exists(), "looking makes nothing"


def test_revoke_ends_a_key(grami: Grami) -> None:
    key_id, token = created(grami, "ci")
    result = grami("revoke", key_id)
    assert (result.code, result.out, result.err) == (0, "", f"{key_id} of ci is revoked\n")
    assert grami("revoke", key_id).code == 0
    with pytest.raises(ProtocolError, match="revoked"):
        KeyStore(Path(".grami/keys.json")).authenticate(token, time.time())


def test_a_token_in_place_of_an_id_is_refused_and_not_repeated(grami: Grami) -> None:
    _, token = created(grami, "ci")
    result = grami("revoke", token)
    assert (result.code, result.out) == (1, "")
    assert "grami token list" in result.err
    assert token not in result.err


@pytest.mark.parametrize("text", ["", "30", "d", "0d", "-1d", "1y", "1.5h", "100000d", "٣d", "1d "])
def test_a_time_that_is_none_is_refused(text: str, grami: Grami) -> None:
    result = grami("create", "ci", f"--expires={text}")
    assert result.code == 2
    assert "is not a time such as 90m" in result.err
    assert not Path(".grami").exists()


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("5m", 300), ("12h", 43_200), ("8w", 4_838_400)])
def test_a_time_has_a_unit(text: str, seconds: int, grami: Grami) -> None:
    _, token = created(grami, "ci", "--expires", text)
    expires_at = KeyStore(Path(".grami/keys.json")).authenticate(token, 0.0).expires_at
    assert abs(expires_at - time.time() - seconds) < 60


@pytest.mark.parametrize("arguments", [("operator",), ("ci", "--scope", "*"), ("agent:x",)])
def test_what_no_key_can_have_is_refused(arguments: tuple[str, ...], grami: Grami) -> None:
    result = grami("create", *arguments)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("error: ")
    assert not Path(".grami").exists()


def test_the_file_is_the_one_that_the_settings_name(grami: Grami, monkeypatch: pytest.MonkeyPatch) -> None:
    created(grami, "by-option", "--keys-file", "a/keys")
    monkeypatch.setenv("GRAMI_STATE_DIR", "b")
    created(grami, "by-directory")
    monkeypatch.setenv("GRAMI_KEYS_FILE", "c.json")
    created(grami, "by-variable")
    for path, name in (("a/keys", "by-option"), ("b/keys.json", "by-directory"), ("c.json", "by-variable")):
        assert [key.name for key in KeyStore(Path(path)).all_keys()] == [name]
    assert "by-option" in grami("list", "--keys-file", "a/keys").out


@pytest.mark.parametrize(
    ("command", "example"),
    [
        ("create", "grami token create ci --scope admin --expires 30d"),
        ("list", "grami token list --json"),
        ("revoke", "grami token revoke 3f9c2a71b0de"),
    ],
)
def test_the_help_shows_an_example(command: str, example: str, grami: Grami) -> None:
    result = grami(command, "--help")
    assert result.code == 0
    assert example in " ".join(result.out.split())
