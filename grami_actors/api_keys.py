"""API keys: tokens whose hashes are kept in a file. Floor 2.

Rule 1: the file never holds a token. It holds the SHA-256 of a secret of 256 random bits, which nobody can
        guess; so no slow hash is needed, which would only make each connection costly.
Rule 2: a change of the file is one replacement, made under a lock that all processes share.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec

from grami_actors.errors import ConfigError, ErrorCode, ProtocolError
from grami_actors.principals import EVERYTHING, Principal, grant
from grami_actors.watched_file import Tell, WatchedFile, replace_file

if sys.platform != "win32":
    import fcntl

KEYS_FILE = "keys.json"
"""Its name in the state directory."""

PREFIX = "grami_"
"""What every token begins with, so that a search for leaked secrets finds it."""

# Only characters of an HTTP token (RFC 9110 5.6.2): it can be the name of a WebSocket subprotocol.
_TOKEN = re.compile(PREFIX + r"([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_SCOPE = re.compile(r"[\x21\x23-\x5B\x5D-\x7E]{1,255}")  # RFC 6749 3.3
_NO_HASH = "0" * 64

Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class ApiKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One key, as the file has it. A misspelt field is an error: a lost ``expires_at`` would be a key for ever.

    Attributes:
        id: names the key; part of the token, and no secret.
        name: the principal that it stands for; several keys may have one name.
        scopes: what it grants.
        hash: SHA-256 of its secret, in hexadecimal digits.
        created_at: when it was made.
        expires_at: when it ends; ``None`` for never.
        revoked_at: when it was revoked, if it was.
    """

    id: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{12}\Z")]
    name: str
    scopes: tuple[str, ...]
    hash: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    created_at: Moment
    expires_at: Moment | None = None
    revoked_at: Moment | None = None

    def state(self, now: float) -> str:
        """One of ``active``, ``expired`` and ``revoked``; ``now`` in seconds since the epoch."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at.timestamp() <= now else "active"


class _Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: Annotated[int, msgspec.Meta(ge=1, le=1)] = 1
    keys: tuple[ApiKey, ...] = ()


class KeyStore:
    """The keys in a file. A file that is not there is one without keys.

    Args:
        path: a JSON file, which only :meth:`create` and :meth:`revoke` change.
        tell: is told when a changed file cannot be used; the keys read before stay in force.

    Raises:
        ConfigError: there is a file, but it cannot be used.
    """

    def __init__(self, path: Path, tell: Tell | None = None) -> None:
        self.path = path
        self._file = WatchedFile(path, self._parse, missing=msgspec.json.encode(_Content()), tell=tell)

    def authenticate(self, token: str, now: float) -> Principal:
        """Whose key this is; ``now`` in seconds since the epoch.

        Raises:
            ProtocolError: INVALID_TOKEN, or TOKEN_EXPIRED.
        """
        match = _TOKEN.fullmatch(token)
        if match is None:
            raise _invalid("this is not an API key")
        key = self._file.content(now).get(match[1])
        # An id that there is none takes the same work as a wrong secret.
        same = hmac.compare_digest(_hash(match[2]), _NO_HASH if key is None else key.hash)
        if key is None or not same:
            raise _invalid("this API key is unknown here")
        state = key.state(now)
        if state == "revoked":
            raise _invalid("this API key was revoked")
        if key.expires_at is None:
            return grant(key.name, key.scopes, key=key.id)
        if state == "expired":
            raise ProtocolError("this API key has expired", code=ErrorCode.TOKEN_EXPIRED)
        return grant(key.name, key.scopes, key=key.id, expires_at=key.expires_at.timestamp())

    def revoked(self, key_id: str, now: float) -> bool:
        """Whether a key is revoked, or no longer in the file."""
        key = self._file.content(now).get(key_id)
        return key is None or key.revoked_at is not None

    def all_keys(self) -> tuple[ApiKey, ...]:
        """All keys, in the order in which they were made. Reads the file; raises ConfigError."""
        return tuple(self._file.read().values())

    def create(
        self, name: str, scopes: Sequence[str], *, now: float, expires_at: float | None = None
    ) -> tuple[ApiKey, str]:
        """Make a key; what comes back is the key and its token, which cannot be had again.

        Raises:
            ConfigError: the name or a scope cannot be granted, or the file cannot be changed.
        """
        try:
            grant(name, scopes)
        except ValueError as error:
            raise ConfigError(f"no key can have the name {name!r}: {error}") from None
        for scope in scopes:
            if scope == EVERYTHING or _SCOPE.fullmatch(scope) is None:
                raise ConfigError(f"{scope!r} is not a scope that can be granted; use words such as 'admin'")
        secret = secrets.token_urlsafe(32)
        with self._changing() as keys:
            key_id = next(each for each in iter(lambda: secrets.token_hex(6), "") if each not in keys)
            ends = None if expires_at is None else _moment(expires_at)
            key = ApiKey(key_id, name, tuple(dict.fromkeys(scopes)), _hash(secret), _moment(now), ends)
            keys[key_id] = key
        return key, f"{PREFIX}{key_id}_{secret}"

    def revoke(self, key_id: str, *, now: float) -> ApiKey:
        """End a key for good. One that was revoked before keeps its time.

        Raises:
            ConfigError: there is no such key, or the file cannot be changed.
        """
        with self._changing() as keys:
            if key_id not in keys:
                # Not quoted: somebody may have given the token in its place.
                raise ConfigError(f"no key in {self.path} has this id; `grami token list` shows them")
            if keys[key_id].revoked_at is None:
                keys[key_id] = msgspec.structs.replace(keys[key_id], revoked_at=_moment(now))
            return keys[key_id]

    @contextmanager
    def _changing(self) -> Iterator[dict[str, ApiKey]]:
        """The keys as they are in the file, which is replaced at the end by what they are then."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _locked(self.path.with_name(f"{self.path.name}.lock")):
                keys = dict(self._file.read())
                yield keys
                content = msgspec.json.encode(_Content(keys=tuple(keys.values())))
                replace_file(self.path, msgspec.json.format(content, indent=2) + b"\n")
        except OSError as error:
            raise ConfigError(f"cannot change {self.path}: {error.strerror}") from error

    def _parse(self, data: bytes) -> Mapping[str, ApiKey]:
        try:
            keys = msgspec.json.decode(data, type=_Content).keys
            for key in keys:
                grant(key.name, key.scopes)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise ConfigError(f"{self.path} is not a file of API keys: {error}") from None
        found = {key.id: key for key in keys}
        if len(found) < len(keys):
            raise ConfigError(f"{self.path} is not a file of API keys: two of them have the same id")
        return found


def _invalid(text: str) -> ProtocolError:
    return ProtocolError(text, code=ErrorCode.INVALID_TOKEN)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(int(seconds), UTC)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which ends with the process. Windows has none: there, do one change at a time."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if sys.platform != "win32":
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
