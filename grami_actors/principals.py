"""Who is at the other end of a connection. Floor 1."""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

EVERYTHING = "*"
"""The scope of whoever runs the server: no rule binds it."""

ADMIN = "admin"
"""The scope that ``admin.*`` takes."""

LONGEST_NAME = 255
"""Characters of a name, as OpenID Connect bounds a ``sub``."""


class Principal(msgspec.Struct, frozen=True):
    """Somebody that is known by a credential.

    Attributes:
        name: what rules, limits and logs call it; the ``sub`` of a JWT, the name of an API key.
        scopes: what it was granted, by whoever made the credential.
        key: the id of its API key; empty for others.
        expires_at: seconds since the epoch; ``inf`` for never.
    """

    name: str
    scopes: frozenset[str] = frozenset()
    key: str = ""
    expires_at: float = math.inf


ANONYMOUS = Principal("anonymous")
"""Everybody, where no credential is asked for."""

OPERATOR = Principal("operator", frozenset({EVERYTHING}))
"""Whoever runs the server."""


def grant(name: str, scopes: Iterable[str], *, key: str = "", expires_at: float = math.inf) -> Principal:
    """The principal that a credential stands for. The scope ``*`` is left out: no credential can grant it.

    Raises:
        ValueError: nobody may be called so, because it is one of our own names or cannot stand in a log.
    """
    if name in {ANONYMOUS.name, OPERATOR.name} or name.startswith(("agent:", "tool:")):
        raise ValueError("this name is one of the server's own")
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable() or name != name.strip():
        raise ValueError(f"a name has 1 to {LONGEST_NAME} printable characters, and no space around them")
    return Principal(name, frozenset(scopes) - {EVERYTHING}, key, expires_at)
