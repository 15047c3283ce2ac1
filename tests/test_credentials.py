"""Whose token it is, whatever kind of token it is; and where in a handshake one is looked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grami_actors.api_keys import KeyStore
from grami_actors.credentials import Authority, bearer_token
from grami_actors.errors import ErrorCode, ProtocolError
from grami_actors.jwt_tokens import JwtVerifier
from grami_actors.principals import ANONYMOUS, EVERYTHING, OPERATOR, Principal

jwt = pytest.importorskip("joserfc.jwt")
NOW = 1_800_000_000.0
SECRET = pytest.importorskip("joserfc.jwk").OctKey.generate_key(256)


class Clock:
    """Shows what it is set to."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "keys.json")


@pytest.fixture
def verifier(tmp_path: Path) -> JwtVerifier:
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": [SECRET.as_dict(private=True)]}))
    return JwtVerifier(path, algorithms=["HS256"], audience="grami")


def web_token() -> str:
    return jwt.encode({"alg": "HS256"}, {"sub": "ann", "aud": "grami", "exp": int(NOW) + 60}, SECRET)


def refused(authority: Authority, token: str) -> str:
    with pytest.raises(ProtocolError) as caught:
        authority.authenticate(token)
    assert len(token) < 8 or token not in str(caught.value)
    return caught.value.error_code


def test_each_kind_of_token_finds_its_principal(store: KeyStore, verifier: JwtVerifier, clock: Clock) -> None:
    key, token = store.create("ci", ["admin"], now=NOW)
    authority = Authority(store, verifier, clock=clock)
    assert authority.required
    assert authority.authenticate(token) == Principal("ci", frozenset({"admin"}), key.id)
    assert authority.authenticate(web_token()) == Principal("ann", frozenset(), "", NOW + 60)
    assert authority.authenticate(authority.operator_token) == OPERATOR


def test_a_kind_of_token_that_is_not_asked_for_is_refused(store: KeyStore, verifier: JwtVerifier, clock: Clock) -> None:
    _, token = store.create("ci", [], now=NOW)
    assert Authority(store).required
    assert Authority(jwt=verifier).required
    assert refused(Authority(store, clock=clock), web_token()) == ErrorCode.INVALID_TOKEN
    assert refused(Authority(jwt=verifier, clock=clock), token) == ErrorCode.INVALID_TOKEN


def test_where_no_token_is_required_an_unknown_one_is_refused_nevertheless(store: KeyStore) -> None:
    authority = Authority()
    assert not authority.required
    for token in ("", "x", web_token(), store.create("ci", [], now=NOW)[1]):
        assert refused(authority, token) == ErrorCode.INVALID_TOKEN
    assert authority.authenticate(authority.operator_token).scopes == {EVERYTHING}


def test_the_clock_decides_what_has_expired(store: KeyStore, verifier: JwtVerifier, clock: Clock) -> None:
    _, token = store.create("ci", [], now=NOW, expires_at=NOW + 60)
    authority = Authority(store, verifier, clock=clock)
    clock.now += 59.0
    assert authority.authenticate(token).name == "ci"
    assert authority.authenticate(web_token()).name == "ann"
    clock.now += 1.0
    assert refused(authority, token) == refused(authority, web_token()) == ErrorCode.TOKEN_EXPIRED


def test_only_a_principal_of_an_api_key_can_be_revoked(store: KeyStore, verifier: JwtVerifier, clock: Clock) -> None:
    key, token = store.create("ci", [], now=NOW)
    authority = Authority(store, verifier, clock=clock)
    principals = [authority.authenticate(each) for each in (token, web_token(), authority.operator_token)]
    assert [authority.revoked(each) for each in (*principals, ANONYMOUS)] == [False] * 4
    KeyStore(store.path).revoke(key.id, now=NOW)
    clock.now += 1.0
    assert [authority.revoked(each) for each in (*principals, ANONYMOUS)] == [True, False, False, False]
    assert Authority().revoked(principals[0]), "its keys are asked for no longer"


def test_the_key_of_the_operator_is_another_in_each_process_and_stands_in_no_file(store: KeyStore) -> None:
    one, two = Authority(store), Authority(store)
    store.create("ci", [], now=NOW)
    assert one.operator_token != two.operator_token
    assert refused(one, two.operator_token) == ErrorCode.INVALID_TOKEN
    assert one.operator_token[-43:] not in store.path.read_text()
    assert one.operator_token not in repr(one)


AUTHORITY = Authority()


@settings(deadline=None)
@given(data=st.data())
def test_no_mutation_of_the_operators_key_is_ever_let_in(data: st.DataObject) -> None:
    token = AUTHORITY.operator_token
    start = data.draw(st.integers(0, len(token)))
    end = data.draw(st.integers(start, min(len(token), start + 4)))
    mutated = token[:start] + data.draw(st.text(max_size=4)) + token[end:]
    if mutated != token:
        assert refused(AUTHORITY, mutated) == ErrorCode.INVALID_TOKEN


@settings(deadline=None)
@given(st.text())
def test_garbage_is_never_let_in(garbage: str) -> None:
    assert refused(AUTHORITY, garbage) == ErrorCode.INVALID_TOKEN


# --- where the token is ---


@pytest.mark.parametrize(
    ("authorization", "subprotocols", "token"),
    [
        ([], [], None),
        ([], ["grami", "chat.bearer.x"], None),
        (["Bearer abc.d-e_f"], [], "abc.d-e_f"),
        (["bEARER   abc=="], [], "abc=="),
        ([" Bearer abc "], ["grami"], "abc"),
        (["Basic dTpw"], [], None),
        (["Basic dTpw"], ["bearer.abc"], "abc"),
        ([], ["grami", "bearer.a.b.c"], "a.b.c"),
        ([], ["bearer.bearer.x"], "bearer.x"),
    ],
)
def test_a_token_is_found_in_a_header_or_a_subprotocol(
    authorization: list[str], subprotocols: list[str], token: str | None
) -> None:
    assert bearer_token(authorization, subprotocols) == token


@pytest.mark.parametrize(
    ("authorization", "subprotocols"),
    [
        (["Bearer secret1", "Bearer secret1"], []),
        (["Bearer secret1"], ["bearer.secret1"]),
        ([], ["bearer.secret1", "bearer.secret2"]),
        (["Bearer"], []),
        (["Bearer  "], []),
        (["Bearer secret1 secret2"], []),
        (["Bearer secret1, Bearer secret2"], []),
        (["Bearer secret1=x"], []),
        (["Bearer secrét1"], []),
        (["Bearer secret1\n"], []),
        ([], ["bearer."]),
    ],
)
def test_more_than_one_token_or_what_cannot_be_one_is_refused(
    authorization: list[str], subprotocols: list[str]
) -> None:
    with pytest.raises(ProtocolError, match="token") as caught:
        bearer_token(authorization, subprotocols)
    assert caught.value.error_code == ErrorCode.INVALID_TOKEN
    assert "secret" not in str(caught.value)


def test_a_token_of_each_kind_can_be_carried_both_ways(store: KeyStore) -> None:
    for token in (store.create("ci", [], now=NOW)[1], web_token(), AUTHORITY.operator_token):
        assert bearer_token([f"Bearer {token}"], []) == bearer_token([], [f"bearer.{token}"]) == token
