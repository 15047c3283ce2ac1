"""JSON Web Tokens: those that are signed as they should be are let in, and no others."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grami_actors.errors import ConfigError, ErrorCode, ProtocolError
from grami_actors.jwt_tokens import LEEWAY, LONGEST_TOKEN, JwtVerifier

jwk = pytest.importorskip("joserfc.jwk")
algorithms = pytest.importorskip("joserfc.jws").JWSRegistry.algorithms
NOW = 1_800_000_000.0
ALL = ("HS256", "RS256", "ES256", "EdDSA")
KEYS: dict[str, Any] = {
    "HS256": jwk.OctKey.generate_key(256, {"kid": "HS256"}),
    "RS256": jwk.RSAKey.generate_key(2048, {"kid": "RS256"}),
    "ES256": jwk.ECKey.generate_key("P-256", {"kid": "ES256"}),
    "EdDSA": jwk.OKPKey.generate_key("Ed25519", {"kid": "EdDSA"}),
}
GOOD = {"sub": "ann", "aud": "grami", "exp": NOW + 60}


def encode(value: Any) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def sign(claims: Any, algorithm: str = "ES256", key: Any = None, **header: Any) -> str:
    """A token, also one that nobody in their right mind would make."""
    signed = f"{encode({'alg': algorithm, **header})}.{encode(claims)}"
    signature = algorithms[algorithm].sign(signed.encode(), key or KEYS[algorithm])
    return f"{signed}.{encode(signature)}"


def public(*algorithms: str) -> list[dict[str, Any]]:
    return [KEYS[each].as_dict(private=each == "HS256") for each in algorithms]


def verifier(path: Path, keys: Any = None, **options: Any) -> JwtVerifier:
    file = path / "jwks.json"
    file.write_text(json.dumps({"keys": public(*ALL) if keys is None else keys}))
    return JwtVerifier(file, **{"algorithms": ALL, "audience": "grami", **options})


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> JwtVerifier:
    """Knows one key for each algorithm."""
    return verifier(tmp_path_factory.mktemp("known"))


def refused(by: JwtVerifier, token: str, code: str = ErrorCode.INVALID_TOKEN, now: float = NOW) -> str:
    with pytest.raises(ProtocolError) as caught:
        by.authenticate(token, now)
    assert caught.value.error_code == code
    return caught.value.message


# --- who is let in ---


@pytest.mark.parametrize("algorithm", ALL)
@pytest.mark.parametrize("with_kid", [True, False])
def test_a_token_that_is_signed_with_a_known_key_is_let_in(algorithm: str, with_kid: bool, known: JwtVerifier) -> None:
    header = {"kid": algorithm, "typ": "JWT", "of our own": 1} if with_kid else {}
    principal = known.authenticate(sign(GOOD, algorithm, **header), NOW)
    assert (principal.name, principal.scopes, principal.key, principal.expires_at) == ("ann", set(), "", NOW + 60)


def test_the_newer_name_of_eddsa_means_the_same(tmp_path: Path) -> None:
    token = sign(GOOD, "Ed25519", KEYS["EdDSA"])
    own = public("EdDSA")[0]
    assert verifier(tmp_path, [own | {"alg": "Ed25519"}]).authenticate(token, NOW).name == "ann"
    refused(verifier(tmp_path, algorithms=["ES256"]), token)


def test_without_a_kid_every_key_of_the_algorithm_is_tried(tmp_path: Path) -> None:
    keys = [jwk.ECKey.generate_key("P-256") for _ in range(3)]
    by = verifier(tmp_path, [key.as_dict(private=False) for key in keys])
    for key in keys:
        assert by.authenticate(sign(GOOD, key=key), NOW).name == "ann"


@pytest.mark.parametrize(
    ("claims", "scopes"),
    [
        ({"scope": "chat.read  admin"}, {"chat.read", "admin"}),
        ({"scp": ["a", "b"]}, {"a", "b"}),
        ({"scp": "a b"}, {"a", "b"}),
        ({"scopes": ["a"], "scope": "b"}, {"a", "b"}),
        ({"scope": ""}, set()),
        ({"scope": "* a", "scp": ["*"], "scopes": "*"}, {"a"}),
    ],
)
def test_scopes_come_from_three_claims_but_never_everything(
    claims: dict[str, Any], scopes: set[str], known: JwtVerifier
) -> None:
    assert known.authenticate(sign(GOOD | claims), NOW).scopes == scopes


def test_the_audience_may_be_one_of_several(known: JwtVerifier) -> None:
    assert known.authenticate(sign(GOOD | {"aud": ["other", "grami"]}), NOW).name == "ann"
    for aud in ("other", [], ["other"], "Grami", "grami2", ["grami2"]):
        assert "another audience" in refused(known, sign(GOOD | {"aud": aud}))


def test_the_issuer_is_checked_when_one_is_set(tmp_path: Path, known: JwtVerifier) -> None:
    by = verifier(tmp_path, issuer="https://id.example")
    token = sign(GOOD | {"iss": "https://id.example"})
    assert by.authenticate(token, NOW).name == known.authenticate(token, NOW).name == "ann"
    for claims in (GOOD, GOOD | {"iss": "https://id.example.org"}):
        assert "another issuer" in refused(by, sign(claims))


# --- time ---


def test_a_token_that_expired_is_refused_with_its_own_code(known: JwtVerifier) -> None:
    token = sign(GOOD)
    assert known.authenticate(token, NOW + 59.9)
    assert "expired" in refused(known, token, ErrorCode.TOKEN_EXPIRED, NOW + 60)


def test_an_expired_token_that_was_tampered_with_is_just_invalid(known: JwtVerifier) -> None:
    head, _, signature = sign(GOOD).split(".")
    refused(known, f"{head}.{encode(GOOD | {'sub': 'eve'})}.{signature}", now=NOW + 60)


@pytest.mark.parametrize("claim", ["nbf", "iat"])
def test_a_clock_may_be_ahead_by_a_little(claim: str, known: JwtVerifier) -> None:
    assert known.authenticate(sign(GOOD | {claim: NOW + LEEWAY}), NOW)
    assert "not valid yet" in refused(known, sign(GOOD | {claim: NOW + LEEWAY + 1}))


# --- what a token must have ---


@pytest.mark.parametrize("missing", ["sub", "exp", "aud"])
def test_a_token_without_an_essential_claim_is_refused(missing: str, known: JwtVerifier) -> None:
    assert "sub, exp and aud" in refused(known, sign({name: GOOD[name] for name in GOOD if name != missing}))


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": "1900000000"},
        {"exp": None},
        {"exp": True},
        {"exp": float("nan")},
        {"exp": float("inf")},
        {"nbf": "soon"},
        {"sub": 5},
        {"aud": 5},
        {"aud": ["grami", 5]},
        {"iss": ["x"]},
        {"scope": 5},
        {"scp": [5]},
    ],
)
def test_a_claim_of_the_wrong_type_is_refused(claims: dict[str, Any], known: JwtVerifier) -> None:
    refused(known, sign(GOOD | claims))


@pytest.mark.parametrize("payload", [b"", b"[]", b"null", b"{", b"\xff", b"[" * 5_000, b'{"sub":1e999}'])
def test_a_payload_that_is_no_set_of_claims_is_refused(payload: bytes, known: JwtVerifier) -> None:
    refused(known, sign(payload))


@pytest.mark.parametrize("name", ["", "operator", "anonymous", "agent:writer", "ann\n", " ann", "x" * 256])
def test_a_token_cannot_take_a_name_of_the_servers_own(name: str, known: JwtVerifier) -> None:
    assert "`sub`" in refused(known, sign(GOOD | {"sub": name}))


@pytest.mark.parametrize("crit", [["b64"], ["exp"], [], None, "x"])
def test_a_token_that_demands_an_extension_is_refused(crit: Any, known: JwtVerifier) -> None:
    assert "crit" in refused(known, sign(GOOD, crit=crit, b64=False))


# --- attacks ---


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "", "HS256", "HS512", "RS256", None, 5, ["ES256"]])
def test_a_token_without_a_signature_is_refused_whatever_it_calls_its_algorithm(alg: Any, known: JwtVerifier) -> None:
    signed = f"{encode({'alg': alg})}.{encode(GOOD)}"
    for token in (f"{signed}.", signed, f"{signed}.{encode(b'x')}", f"{signed}.{encode(bytes(64))}"):
        refused(known, token)


def forgeries(algorithm: str) -> list[bytes]:
    """All that an attacker could take for a secret of a public key."""
    key = KEYS[algorithm]
    own = key.as_dict(private=False)
    return [
        key.as_pem(private=False),
        key.as_pem(private=False).strip(),
        key.as_der(private=False),
        json.dumps(own).encode(),
        own.get("n", own.get("x")).encode(),
        b"",
    ]


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
@pytest.mark.parametrize("with_kid", [True, False])
def test_a_public_key_is_never_taken_for_a_secret(algorithm: str, with_kid: bool, known: JwtVerifier) -> None:
    header = {"alg": "HS256", "kid": algorithm} if with_kid else {"alg": "HS256"}
    signed = f"{encode(header)}.{encode(GOOD)}"
    for secret in forgeries(algorithm):
        signature = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
        assert "no key known here" in refused(known, f"{signed}.{encode(signature)}")


def test_an_algorithm_that_is_not_configured_is_refused_though_there_is_a_key(tmp_path: Path) -> None:
    by = verifier(tmp_path, algorithms=["RS256"])
    assert by.authenticate(sign(GOOD, "RS256"), NOW)
    for algorithm in ("HS256", "ES256", "EdDSA"):
        assert "not accepted here" in refused(by, sign(GOOD, algorithm))


def test_a_key_of_somebody_else_is_refused(known: JwtVerifier) -> None:
    strangers = {
        "HS256": jwk.OctKey.generate_key(256),
        "RS256": jwk.RSAKey.generate_key(2048),
        "ES256": jwk.ECKey.generate_key("P-256"),
        "EdDSA": jwk.OKPKey.generate_key("Ed25519"),
    }
    for algorithm, key in strangers.items():
        refused(known, sign(GOOD, algorithm, key, kid=algorithm))
        # Its own key comes along, as RFC 7515 4.1.3 allows: it must not be asked.
        refused(known, sign(GOOD, algorithm, key, jwk=key.as_dict(private=False)))


@pytest.mark.parametrize("kid", ["unknown", "", "RS256", "../../dev/null"])
def test_a_kid_that_names_no_fitting_key_is_refused(kid: str, known: JwtVerifier) -> None:
    assert "no key known here" in refused(known, sign(GOOD, "ES256", kid=kid))


def test_a_longer_token_than_allowed_is_refused_unread(known: JwtVerifier) -> None:
    fits = sign(GOOD | {"pad": "x" * 5_900})
    assert len(fits) < LONGEST_TOKEN
    assert known.authenticate(fits, NOW)
    assert "longer than" in refused(known, sign(GOOD | {"pad": "x" * 8_200}))


@pytest.mark.parametrize("token", ["", ".", "..", "...", "a.b.c", "e30.e30.", "[.[.[", "é.é.é", "\ud800.a.b"])
def test_garbage_is_refused(token: str, known: JwtVerifier) -> None:
    refused(known, token)


def test_a_header_that_nests_deeply_is_refused(known: JwtVerifier) -> None:
    nested = encode(b'{"x":' + b"[" * 5_000)
    refused(known, f"{nested}.{encode(GOOD)[:1_000]}.eA")


TOKENS = {algorithm: sign(GOOD, algorithm) for algorithm in ALL}


@settings(deadline=None)
@given(data=st.data())
def test_no_mutation_of_a_token_is_ever_let_in(data: st.DataObject, known: JwtVerifier) -> None:
    token = TOKENS[data.draw(st.sampled_from(ALL))]
    start = data.draw(st.integers(0, len(token)))
    end = data.draw(st.integers(start, min(len(token), start + 4)))
    mutated = token[:start] + data.draw(st.text("=.-_+/aAbB01\n\xe9", max_size=4)) + token[end:]
    if mutated == token:
        assert known.authenticate(mutated, NOW).name == "ann"
    else:
        refused(known, mutated)


@pytest.mark.parametrize("algorithm", ALL)
def test_there_is_one_way_only_to_write_a_signature(algorithm: str, known: JwtVerifier) -> None:
    token = TOKENS[algorithm]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    others = {token[:-1] + last for last in alphabet} - {token}
    for other in (*others, f"{token}=", f"{token}==", f"{token}\n", f"{token}.", token.replace(".", ".=", 1)):
        refused(known, other)


@settings(deadline=None)
@given(algorithm=st.sampled_from(ALL), signature=st.binary(max_size=300))
def test_bytes_that_are_no_signature_are_never_taken_for_one(
    algorithm: str, signature: bytes, known: JwtVerifier
) -> None:
    signed = TOKENS[algorithm].rpartition(".")[0]
    assert "no key known here" in refused(known, f"{signed}.{encode(signature)}")


@settings(deadline=None)
@given(sub=st.text("abcdef", min_size=12, max_size=40), flaw=st.sampled_from(["aud", "exp", "nbf", "alg", "kid"]))
def test_no_error_ever_has_a_part_of_a_token(sub: str, flaw: str, known: JwtVerifier) -> None:
    flaws = {"aud": {"aud": sub}, "exp": {"exp": sub}, "nbf": {"nbf": NOW * 2, "iss": sub}}
    header = {flaw: sub} if flaw in {"alg", "kid"} else {}
    token = sign(GOOD | {"sub": sub} | flaws.get(flaw, {}), "HS256", **header) if flaw != "alg" else ""
    token = token or f"{encode({'alg': sub})}.{encode(GOOD | {'sub': sub})}.{encode(sub.encode())}"
    message = refused(known, token)
    assert sub not in message
    assert not any(part in message for part in token.split(".") if part)


# --- the key set ---


def test_a_key_set_that_is_replaced_is_read_again(tmp_path: Path) -> None:
    old, new = jwk.ECKey.generate_key("P-256"), jwk.ECKey.generate_key("P-256")
    by = verifier(tmp_path, [old.as_dict(private=False)])
    assert by.authenticate(sign(GOOD, key=old), NOW)
    verifier(tmp_path, [new.as_dict(private=False)])
    assert by.authenticate(sign(GOOD, key=new), NOW + 1).name == "ann"
    refused(by, sign(GOOD, key=old), now=NOW + 1)


@pytest.mark.parametrize("text", ["", "{", '{"keys": []}', '{"keys": [{"kty": "EC"}]}'])
def test_a_broken_key_set_keeps_the_keys_that_were_read_last_and_is_told_of(text: str, tmp_path: Path) -> None:
    told: list[str] = []
    by = verifier(tmp_path, tell=told.append)
    (tmp_path / "jwks.json").write_text(text)
    assert by.authenticate(sign(GOOD), NOW).name == "ann"
    assert len(told) == 1
    assert "jwks.json" in told[0]
    with pytest.raises(ConfigError, match=r"jwks\.json"):
        JwtVerifier(tmp_path / "jwks.json", algorithms=ALL, audience="grami")


def test_keys_for_something_else_are_passed_over(tmp_path: Path) -> None:
    for fields in ({"use": "enc"}, {"key_ops": ["encrypt"]}, {"alg": "ES384"}, {"alg": "HS256"}, {"crv": "P-384"}):
        with pytest.raises(ConfigError, match="has no key for ES256"):
            verifier(tmp_path, [public("ES256")[0] | fields], algorithms=["ES256"])
    unknown = {"kty": "AKP", "alg": "ML-DSA-44", "pub": "x"}
    by = verifier(tmp_path, [unknown, *public("ES256"), jwk.OKPKey.generate_key("X25519").as_dict(private=False)])
    assert by.authenticate(sign(GOOD), NOW)


def test_a_key_that_says_what_it_is_for_is_used_for_that(tmp_path: Path) -> None:
    own = public("ES256")[0] | {"use": "sig", "alg": "ES256", "key_ops": ["verify"]}
    assert verifier(tmp_path, [own]).authenticate(sign(GOOD), NOW)


@pytest.mark.parametrize(
    ("weak", "words"),
    [
        ({"kty": "oct", "k": encode(b"x" * 31)}, "too short to be safe; it needs 256 bits"),
        ({"kty": "oct", "k": ""}, "too short"),
        ({"kty": "oct"}, "too short"),
        ({"kty": "RSA", "n": encode(b"x" * 128), "e": "AQAB"}, "too short to be safe; it needs 2048 bits"),
        ({"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}, "cannot be used"),
        ({"kty": "oct", "k": "+" * 43}, "cannot be used"),
    ],
)
def test_a_key_that_is_weak_or_broken_is_refused_and_not_repeated(
    weak: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"key 1 of the key set .*{words}") as caught:
        verifier(tmp_path, [*public("ES256"), weak])
    secret = weak.get("k", weak.get("n", ""))
    assert not secret or secret not in str(caught.value)


def test_a_public_key_that_was_entered_as_a_secret_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be used"):
        verifier(tmp_path, [{"kty": "oct", "k": encode(KEYS["RS256"].as_pem(private=False))}])


# --- settings ---


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"audience": ""}, "jwt_audience is not set"),
        ({"algorithms": []}, "jwt_algorithms names none"),
        ({"algorithms": ["ES256", "none"]}, "jwt_algorithms names none; there are HS256"),
        ({"algorithms": ["HS512"]}, "jwt_algorithms names HS512"),
    ],
)
def test_settings_that_would_not_be_safe_are_refused(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        verifier(tmp_path, **options)


def test_a_missing_key_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*none\.json: No such file"):
        JwtVerifier(tmp_path / "none.json", algorithms=ALL, audience="grami")


def test_without_the_extra_it_is_said_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "joserfc", None)
    with pytest.raises(ConfigError, match=r"pip install 'grami_actors\[auth\]'"):
        verifier(tmp_path)
