"""JSON Web Tokens (RFC 7519), checked as RFC 8725 asks for. Floor 2.

Rule 1: a key has exactly one algorithm, which its type and curve decide, not the token. So a public key can
        never be taken for a shared secret, and ``none`` is no algorithm of any key.
Rule 2: nothing that a token says is believed before its signature was found to be right.
Rule 3: no error has any part of a token.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from grami_actors.errors import ConfigError, ErrorCode, ProtocolError
from grami_actors.principals import Principal, grant
from grami_actors.watched_file import Tell, WatchedFile

LONGEST_TOKEN = 8_192
"""Characters of a token; a longer one is refused unread."""

LEEWAY = 30.0
"""Seconds by which the clock of whoever made a token may be ahead of ours."""

_ALGORITHMS = {("oct", ""): "HS256", ("RSA", ""): "RS256", ("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA"}
"""The one algorithm of a key, from its type and curve (RFC 7518 3.1, RFC 8037 3.1)."""

_NEWER_NAMES = {"Ed25519": "EdDSA"}
"""The same algorithm by its name of RFC 9864."""

_LEAST = {"oct": ("k", 43, "256"), "RSA": ("n", 342, "2048")}
"""Where a key's size shows, the characters that it takes at least, and the bits (RFC 7518 3.2 and 3.3)."""


class _Header(msgspec.Struct, frozen=True):
    alg: str
    kid: str | None = None
    crit: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Claims(msgspec.Struct, frozen=True):
    sub: str
    exp: float
    aud: str | tuple[str, ...]
    nbf: float = -math.inf
    iat: float = -math.inf
    iss: str = ""
    scope: str | tuple[str, ...] = ()
    scp: str | tuple[str, ...] = ()
    scopes: str | tuple[str, ...] = ()


class _Jwk(msgspec.Struct, frozen=True):
    """What of a JSON Web Key (RFC 7517 4) decides what it is for."""

    kty: str
    crv: str = ""
    use: str = "sig"
    alg: str = ""
    kid: str | None = None
    key_ops: tuple[str, ...] = ("verify",)


class _KeySet(msgspec.Struct, frozen=True):
    keys: tuple[dict[str, Any], ...]


class _Key(msgspec.Struct, frozen=True):
    algorithm: str
    kid: str | None
    material: Any


class JwtVerifier:
    """Knows principals by tokens that somebody else signed.

    Args:
        keys: a JSON Web Key Set (RFC 7517 5). Keys for other uses or algorithms in it are passed over.
        algorithms: the only ones that are accepted: HS256, RS256, ES256, EdDSA (with Ed25519).
        audience: what ``aud`` must name.
        issuer: what ``iss`` must be, if given.
        tell: is told when a changed key set cannot be used; the keys read before stay in force.

    Raises:
        ConfigError: an argument is missing or wrong, the key set cannot be used, or joserfc is not installed.
    """

    def __init__(
        self, keys: Path, *, algorithms: Sequence[str], audience: str, issuer: str = "", tell: Tell | None = None
    ) -> None:
        try:
            import joserfc  # noqa: F401
        except ImportError:
            raise ConfigError("to accept JSON Web Tokens: pip install 'grami_actors[auth]'") from None
        unknown = sorted(set(algorithms) - set(_ALGORITHMS.values()))
        if unknown or not algorithms:
            known = ", ".join(_ALGORITHMS.values())
            raise ConfigError(f"jwt_algorithms names {unknown[0] if unknown else 'none'}; there are {known}")
        if not audience:
            raise ConfigError(
                "jwt_audience is not set: without it, tokens that were made for another service would be accepted"
            )
        self._algorithms = frozenset(algorithms)
        self._audience = audience
        self._issuer = issuer
        self._path = keys
        self._file = WatchedFile(keys, self._parse, tell=tell)

    def authenticate(self, token: str, now: float) -> Principal:
        """Whose token this is; ``now`` in seconds since the epoch.

        ``scope`` (RFC 8693 4.2), ``scp`` and ``scopes`` grant scopes, as words in a text or as a list; the
        scope ``*`` is left out.

        Raises:
            ProtocolError: INVALID_TOKEN, or TOKEN_EXPIRED.
        """
        claims = self._verified(token, now)
        if claims.exp <= now:
            raise ProtocolError("this token has expired", code=ErrorCode.TOKEN_EXPIRED)
        if max(claims.nbf, claims.iat) > now + LEEWAY:
            raise _invalid("this token is not valid yet")
        if self._audience not in ((claims.aud,) if isinstance(claims.aud, str) else claims.aud):
            raise _invalid("this token was made for another audience")
        if self._issuer and claims.iss != self._issuer:
            raise _invalid("this token was made by another issuer")
        granted = [_words(each) for each in (claims.scope, claims.scp, claims.scopes)]
        try:
            return grant(claims.sub, [word for words in granted for word in words], expires_at=claims.exp)
        except ValueError:
            raise _invalid("the `sub` of this token cannot be the name of a principal") from None

    def _verified(self, token: str, now: float) -> _Claims:
        """The claims of a token whose signature is right."""
        if len(token) > LONGEST_TOKEN:
            raise _invalid(f"this token is longer than {LONGEST_TOKEN} characters")
        signed, _, last = token.rpartition(".")
        try:
            head, payload = map(_decode, signed.split("."))
            signature = _decode(last)
            header = msgspec.json.decode(head, type=_Header)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise _invalid("this is not a JSON Web Token") from None
        if header.crit is not msgspec.UNSET:
            # RFC 7515 4.1.11: whoever does not know an extension must refuse what depends on it.
            raise _invalid("this token uses extensions (`crit`) that are not known here")
        algorithm = _NEWER_NAMES.get(header.alg, header.alg)
        if algorithm not in self._algorithms:
            raise _invalid("the algorithm of this token is not accepted here")
        fitting = [
            key.material
            for key in self._file.content(now)
            if key.algorithm == algorithm and header.kid in {None, key.kid}
        ]
        if not any(_is_signed(algorithm, signed.encode(), signature, key) for key in fitting):
            raise _invalid("no key known here has signed this token")
        try:
            return msgspec.json.decode(payload, type=_Claims)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise _invalid("the claims of this token are not as they should be; it needs sub, exp and aud") from None

    def _parse(self, data: bytes) -> tuple[_Key, ...]:
        where = f"the key set {self._path}"
        try:
            found = msgspec.json.decode(data, type=_KeySet).keys
            described = [msgspec.convert(each, _Jwk) for each in found]
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise ConfigError(f"{where} cannot be used: {error}") from None
        keys = []
        for number, (jwk, each) in enumerate(zip(described, found, strict=True)):
            algorithm = _ALGORITHMS.get((jwk.kty, jwk.crv), "")
            named = _NEWER_NAMES.get(jwk.alg, jwk.alg) or algorithm
            wanted = algorithm in self._algorithms and named == algorithm
            if wanted and jwk.use == "sig" and "verify" in jwk.key_ops:
                keys.append(_Key(algorithm, jwk.kid, _import(each, f"key {number} of {where}")))
        if not keys:
            raise ConfigError(f"{where} has no key for {', '.join(sorted(self._algorithms))}")
        return tuple(keys)


def _import(jwk: dict[str, Any], which: str) -> Any:
    from joserfc.jwk import JWKRegistry

    member, least, bits = _LEAST.get(jwk["kty"], ("kty", 0, ""))
    if len(str(jwk.get(member, ""))) < least:
        raise ConfigError(f"{which} is too short to be safe; it needs {bits} bits")
    try:
        return JWKRegistry.import_key(jwk)
    except Exception as error:  # noqa: BLE001 - there is no list of what the libraries below raise
        # Its text might have part of a key.
        raise ConfigError(f"{which} cannot be used ({type(error).__name__})") from None


def _is_signed(algorithm: str, signed: bytes, signature: bytes, key: Any) -> bool:
    # Asked directly: the way through joserfc's registry warns at each EdDSA token that there is a newer name.
    from joserfc.jws import JWSRegistry

    return bool(JWSRegistry.algorithms[algorithm].verify(signed, signature, key))


def _decode(segment: str) -> bytes:
    """Decode base64url (RFC 7515 2). There is one way only to write what it stands for. Raises ValueError."""
    data = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    if base64.urlsafe_b64encode(data).rstrip(b"=").decode() != segment:
        raise ValueError("not base64url")
    return data


def _words(claim: str | tuple[str, ...]) -> Sequence[str]:
    return claim.split() if isinstance(claim, str) else claim


def _invalid(text: str) -> ProtocolError:
    return ProtocolError(text, code=ErrorCode.INVALID_TOKEN)
