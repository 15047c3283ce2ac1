"""All settings of a Growth Manager, in one frozen Struct, from arguments, the environment and defaults. Floor 1."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from grami_actors.errors import ConfigError

PREFIX = "GRAMI_"


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of one server.

    Attributes:
        host: the address to bind; loopback unless told otherwise.
        port: 0 takes a free one.
        allowed_origins: web origins whose pages may connect, such as ``https://app.example``. A request
            without an Origin header (not from a browser) passes.
        allowed_hosts: names besides loopback that the Host header may have.
        state_dir: where the state file is kept, for clients to find the server.
        max_message_bytes: a larger frame closes its connection (1009).
        max_inflight: unanswered requests per connection.
        max_requests: unanswered requests of the whole server.
        max_connections: open connections; one more is refused with HTTP 503.
        outbox_bytes: unsent output per connection before chunks are dropped.
        request_timeout_ms: the deadline of a request that names none.
        max_timeout_ms: the longest deadline that a request may ask for.
        drain_timeout: seconds that a stopping server waits for requests in flight.
        threads: bound of the thread lane.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    allowed_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    state_dir: Path = Path(".grami")
    max_message_bytes: Annotated[int, msgspec.Meta(ge=1)] = 1_048_576
    max_inflight: Annotated[int, msgspec.Meta(ge=1)] = 64
    max_requests: Annotated[int, msgspec.Meta(ge=1)] = 20_000
    max_connections: Annotated[int, msgspec.Meta(ge=1)] = 10_000
    outbox_bytes: Annotated[int, msgspec.Meta(ge=1)] = 1_048_576
    request_timeout_ms: Annotated[int, msgspec.Meta(ge=1)] = 60_000
    max_timeout_ms: Annotated[int, msgspec.Meta(ge=1)] = 600_000
    drain_timeout: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 10.0
    threads: Annotated[int, msgspec.Meta(ge=0)] = 64


# Written by a server for its children, or read by clients: not settings of a server.
_NOT_SETTINGS = frozenset({"PORT", "URL", "MODEL", "MODEL_URL", "CACHE", "LOG_LEVEL"})


def load(environ: Mapping[str, str] | None = None, **given: Any) -> Config:
    """The settings: what is ``given`` and not ``None``, else ``GRAMI_*`` variables, else the defaults.

    Lists are separated by commas.

    Raises:
        ConfigError: a variable or argument is unknown, or its value does not fit.
    """
    environ = os.environ if environ is None else environ
    known = {field.name: field for field in msgspec.structs.fields(Config)}
    values: dict[str, Any] = {}
    for variable, text in environ.items():
        name = variable.removeprefix(PREFIX)
        if name == variable or name in _NOT_SETTINGS:
            continue
        if name.lower() not in known:
            raise ConfigError(f"{variable} is not a setting{_hint(name.lower(), known)}")
        is_list = known[name.lower()].type == tuple[str, ...]
        values[name.lower()] = [part.strip() for part in text.split(",") if part.strip()] if is_list else text
    for name, value in given.items():
        if name not in known:
            raise ConfigError(f"{name!r} is not a setting{_hint(name, known)}")
        if value is not None:
            values[name] = value
    try:
        return msgspec.convert(values, Config, strict=False, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise ConfigError(f"a setting has a value that does not fit: {error}") from None


def _decode(kind: type, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    raise NotImplementedError


def _hint(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
