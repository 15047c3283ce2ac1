"""Credentials: API keys in a file, JSON Web Tokens, and the key of whoever runs the server. Floor 3."""

from __future__ import annotations

import hmac
import re
import secrets
import time
from collections.abc import Callable, Sequence

from grami_actors.api_keys import PREFIX, KeyStore
from grami_actors.errors import ErrorCode, ProtocolError
from grami_actors.jwt_tokens import JwtVerifier
from grami_actors.principals import OPERATOR, Principal

SUBPROTOCOL = "bearer."
"""What a subprotocol begins with that carries a token: browsers can set no header of a WebSocket."""

_B64TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750 2.1


class Authority:
    """Knows principals by their credentials.

    Args:
        keys: the API keys, if they are accepted.
        jwt: checks JSON Web Tokens, if they are accepted.
        clock: tells the time, in seconds since the epoch.

    Attributes:
        required: whether a client must have a credential at all.
        operator_token: the key of whoever runs the server; it is made anew in each process, is kept nowhere
            else, and is always accepted.
    """

    def __init__(
        self, keys: KeyStore | None = None, jwt: JwtVerifier | None = None, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.required = keys is not None or jwt is not None
        self.operator_token = f"{PREFIX}operator_{secrets.token_urlsafe(32)}"
        self._keys = keys
        self._jwt = jwt
        self._clock = clock

    def authenticate(self, token: str) -> Principal:
        """Whose token this is. An unknown one is refused also where none is required.

        Raises:
            ProtocolError: INVALID_TOKEN, or TOKEN_EXPIRED; the text never has any part of the token.
        """
        if token.isascii():
            if hmac.compare_digest(token, self.operator_token):
                return OPERATOR
            if token.startswith(PREFIX):
                if self._keys is not None:
                    return self._keys.authenticate(token, self._clock())
            elif self._jwt is not None:
                return self._jwt.authenticate(token, self._clock())
        raise _invalid("tokens of this kind are not accepted here")

    def revoked(self, principal: Principal) -> bool:
        """Whether the API key that a principal came with is no longer there. Cheap: asked for each connection."""
        return bool(principal.key) and (self._keys is None or self._keys.revoked(principal.key, self._clock()))


def bearer_token(authorization: Sequence[str], subprotocols: Sequence[str]) -> str | None:
    """The one token that a handshake carries; ``None`` if there is none. Pure.

    Args:
        authorization: all values of the header ``Authorization``; schemes other than Bearer are not ours.
        subprotocols: all that the client offers; ``bearer.TOKEN`` carries a token.

    Raises:
        ProtocolError: INVALID_TOKEN: it carries more than one (RFC 6750 2), or what cannot be one.
    """
    found = [value.removeprefix(SUBPROTOCOL) for value in subprotocols if value.startswith(SUBPROTOCOL)]
    for value in authorization:
        scheme, _, rest = value.strip(" \t").partition(" ")
        if scheme.lower() == "bearer":
            found.append(rest.strip(" "))
    if len(found) > 1:
        raise _invalid("more than one token came with the handshake; send one")
    if found and _B64TOKEN.fullmatch(found[0]) is None:
        raise _invalid("what came as a bearer token is not one; send `Authorization: Bearer TOKEN`")
    return found[0] if found else None


def _invalid(text: str) -> ProtocolError:
    return ProtocolError(text, code=ErrorCode.INVALID_TOKEN)
