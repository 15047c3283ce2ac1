"""All settings of a Growth Manager, in one frozen Struct: arguments, the environment, one file, defaults. Floor 5.

What is given beats ``GRAMI_*`` variables, which beat the file, which beats the defaults. The file is TOML: its
keys are the settings, and ``[[rules]]`` and ``[[rates]]`` are tables of it (docs/configuration.md).
"""

from __future__ import annotations

import difflib
import inspect
import ipaddress
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec

from grami_actors.errors import ConfigError
from grami_actors.permissions import Rule
from grami_actors.policy import Rate

PREFIX = "GRAMI_"
CONFIG_FILE = "grami.toml"
DEFAULT = "default"
"""The source of a value that nobody set."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of one server.

    Attributes:
        host: the address to bind; loopback unless told otherwise.
        port: 0 takes a free one.
        reuse_port: let several servers of this machine share the port; what they keep, each keeps for itself.
        state_dir: where the state file is kept, for clients to find the server, the API keys, and jobs. Clients read no
            file of settings: give them ``GRAMI_STATE_DIR``.
        allowed_origins: web origins whose pages may connect, such as ``https://app.example``. A request
            without an Origin header (not from a browser) passes.
        allowed_hosts: names besides loopback that the Host header may have.
        tls_cert: a certificate chain (PEM); the server then speaks ``wss://`` only.
        tls_key: its private key (PEM); in the certificate's file, if not given.
        auth: what a client must show: ``keys`` (an API key of ``grami token create``), ``jwt``, or either of both.
        allow_anonymous: serve other machines although nobody has to show anything.
        auth_timeout: seconds that a client has to authenticate (4408).
        token_grace: seconds that a connection stays after its token expired (4419).
        keys_file: the API keys; ``keys.json`` in the state directory, if not given.
        jwt_keys: a JSON Web Key Set with the public keys, or the secrets, of whoever makes the tokens.
        jwt_algorithms: the only ones that are accepted.
        jwt_audience: what ``aud`` must name.
        jwt_issuer: what ``iss`` must be, if given.
        rules: who may do what; everybody everything but ``admin.*``, if there is none.
        rates: how often principals may send messages; unlimited, if there is none.
        max_message_bytes: a larger frame closes its connection (1009).
        max_unauthenticated_bytes: the same, until the client has authenticated.
        max_nesting: levels of objects and arrays in one frame.
        max_inflight: unanswered requests per connection.
        max_requests: unanswered requests of the whole server.
        max_subscriptions: topics per connection.
        max_connections: open connections; one more is refused with HTTP 503.
        max_connections_per_address: the same for one address other than loopback, with HTTP 429.
        max_connections_per_principal: the same for one principal (4430).
        accept_rate: new connections a second in the long run; 0 for no limit.
        outbox_bytes: unsent output per connection before chunks are dropped.
        outbox_seconds: how long a frame may stay unsent (4508).
        message_timeout: seconds that a message may take to arrive, from its first byte to its last.
        idle_timeout: seconds without a frame from the client, a request of it at work, or a subscription (4513); 0 for
            no limit.
        request_timeout_ms: the deadline of a request that names none.
        max_timeout_ms: the longest deadline that a request may ask for.
        stream_grace: seconds that streaming requests go on when their client is gone.
        event_history: published events that are kept for clients that come back.
        compression: permessage-deflate; 40 KiB more per connection, and four times the CPU at 4 KiB.
        keepalive: seconds between pings, and seconds that a client has to answer one; a client that is gone is found
            within twice that and two seconds more.
        drain_timeout: seconds that a stopping server waits for requests in flight.
        slow_request_ms: a request that takes longer is logged with where its time went.
        threads: bound of the thread lane.
        jobs_running: jobs at work at the same time.
        jobs_running_per_owner: the same for one owner; 0 for no limit of its own.
        jobs_queued: jobs that may wait; one more is refused with JOB_REJECTED.
        jobs_queued_per_owner: the same for one owner; 0 for no limit of its own.
        jobs_keep_days: days that results, logs and artifacts of jobs are kept after their end.
        jobs_keys_days: days that their outcome and idempotency keys are; not fewer than that.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    reuse_port: bool = False
    state_dir: Path = Path(".grami")
    allowed_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    tls_cert: Path | None = None
    tls_key: Path | None = None
    auth: tuple[Literal["keys", "jwt"], ...] = ()
    allow_anonymous: bool = False
    auth_timeout: Annotated[float, msgspec.Meta(gt=0)] = 10.0
    token_grace: Annotated[float, msgspec.Meta(ge=0)] = 30.0
    keys_file: Path | None = None
    jwt_keys: Path | None = None
    jwt_algorithms: tuple[Literal["HS256", "RS256", "ES256", "EdDSA"], ...] = ("RS256", "ES256", "EdDSA")
    jwt_audience: str = ""
    jwt_issuer: str = ""
    rules: tuple[Rule, ...] = ()
    rates: tuple[Rate, ...] = ()
    max_message_bytes: Annotated[int, msgspec.Meta(ge=1)] = 1_048_576
    max_unauthenticated_bytes: Annotated[int, msgspec.Meta(ge=1)] = 16_384
    max_nesting: Annotated[int, msgspec.Meta(ge=1, le=500)] = 64
    max_inflight: Annotated[int, msgspec.Meta(ge=1)] = 64
    max_requests: Annotated[int, msgspec.Meta(ge=1)] = 20_000
    max_subscriptions: Annotated[int, msgspec.Meta(ge=1)] = 128
    max_connections: Annotated[int, msgspec.Meta(ge=1)] = 10_000
    max_connections_per_address: Annotated[int, msgspec.Meta(ge=1)] = 100
    max_connections_per_principal: Annotated[int, msgspec.Meta(ge=1)] = 1_000
    accept_rate: Annotated[float, msgspec.Meta(ge=0)] = 500.0
    outbox_bytes: Annotated[int, msgspec.Meta(ge=1)] = 1_048_576
    outbox_seconds: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    message_timeout: Annotated[float, msgspec.Meta(gt=0)] = 15.0
    idle_timeout: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    request_timeout_ms: Annotated[int, msgspec.Meta(ge=1)] = 60_000
    max_timeout_ms: Annotated[int, msgspec.Meta(ge=1)] = 600_000
    stream_grace: Annotated[float, msgspec.Meta(ge=0)] = 5.0
    event_history: Annotated[int, msgspec.Meta(ge=0)] = 10_000
    compression: bool = False
    keepalive: Annotated[float, msgspec.Meta(gt=0)] = 20.0
    drain_timeout: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 10.0
    slow_request_ms: Annotated[int, msgspec.Meta(ge=1)] = 5_000
    threads: Annotated[int, msgspec.Meta(ge=0)] = 64
    jobs_running: Annotated[int, msgspec.Meta(ge=1)] = 16
    jobs_running_per_owner: Annotated[int, msgspec.Meta(ge=0)] = 0
    jobs_queued: Annotated[int, msgspec.Meta(ge=0)] = 10_000
    jobs_queued_per_owner: Annotated[int, msgspec.Meta(ge=0)] = 0
    jobs_keep_days: Annotated[float, msgspec.Meta(ge=0)] = 7.0
    jobs_keys_days: Annotated[float, msgspec.Meta(ge=0)] = 30.0

    def __post_init__(self) -> None:
        """A path may be given as text, as everywhere in Python."""
        for name in ("state_dir", "tls_cert", "tls_key", "keys_file", "jwt_keys"):
            given = getattr(self, name)
            if isinstance(given, str):
                msgspec.structs.force_setattr(self, name, Path(given))


class Settings(msgspec.Struct, frozen=True):
    """The effective settings, and where each came from.

    Attributes:
        config: the values.
        sources: by name: ``default``, the file, a variable such as ``GRAMI_HOST``, or an option such as ``--port``.
    """

    config: Config
    sources: dict[str, str]


_FIELDS = {field.name: field for field in msgspec.structs.fields(Config)}
# Written by a server for its children, or read by clients: not settings of a server.
_NOT_SETTINGS = frozenset(
    {"PORT", "URL", "TOKEN", "CA", "CONFIG", "MODEL", "MODEL_URL", "CACHE", "LOG_LEVEL", "FAILPOINT"}
)
_TABLES = frozenset({"rules", "rates"})
_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
_OPTIONS = {"allowed_origins": "--allow-origin", "allowed_hosts": "--allow-host"}
_Found = dict[str, tuple[Any, str]]
"""Values by the names of their settings, each with its source."""


def load(environ: Mapping[str, str] | None = None, file: Path | None = None, **given: Any) -> Config:
    """The settings; takes and raises what :func:`read` does."""
    return read(environ, file, **given).config


def read(environ: Mapping[str, str] | None = None, file: Path | None = None, **given: Any) -> Settings:
    """The settings and their sources.

    Args:
        environ: the variables; those of this process, if not given. Lists are separated by commas, and what is
            true or false may be ``1``, ``true``, ``yes``, ``on``, ``0``, ``false``, ``no`` or ``off``.
        file: if not given, the one that ``GRAMI_CONFIG`` names, or ``grami.toml`` in the working directory, if
            there is one. A relative path in it is relative to the file.
        given: settings by name; ``None`` means not given.

    Raises:
        ConfigError: the file cannot be read, a setting is unknown, its value does not fit, or :func:`check` fails.
    """
    environ = os.environ if environ is None else environ
    found = _from_file(_which(file, environ)) | _from_variables(environ) | _from_arguments(given)
    config = Config(**{name: value for name, (value, _) in found.items()})
    check(config)
    return Settings(config, {name: found[name][1] if name in found else DEFAULT for name in _FIELDS})


def check(config: Config) -> None:
    """Make sure that the settings fit each other.

    Raises:
        ConfigError: they do not; the text says what to do.
    """
    if config.tls_key is not None and config.tls_cert is None:
        raise ConfigError("tls_key is set without tls_cert: name the certificate that the key belongs to, too")
    if config.reuse_port and not config.port:
        raise ConfigError(
            "reuse_port is set with port 0, so each server takes a port of its own: set the port to share"
        )
    if "jwt" in config.auth and not (config.jwt_keys and config.jwt_audience):
        raise ConfigError(
            "auth has 'jwt', which needs jwt_keys (a file with the keys of whoever makes the tokens) and jwt_audience "
            "(what the tokens' `aud` must name, so that tokens made for others are of no use here)"
        )
    if config.jobs_keys_days < config.jobs_keep_days:
        raise ConfigError("jobs_keys_days is less than jobs_keep_days: the keys of jobs outlive their results")
    for origin in config.allowed_origins:
        if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s*]+", origin):
            raise ConfigError(
                f"allowed_origins has {origin!r}; an origin is like 'https://app.example', without a path"
            )
    if not (_is_loopback(config.host) or config.auth or config.allow_anonymous):
        raise ConfigError(
            f"other machines may reach the host {config.host!r}, and clients do not have to show who they are: set "
            "GRAMI_AUTH=keys and make keys with `grami token create`; or give --allow-anonymous "
            "(GRAMI_ALLOW_ANONYMOUS=1), if everybody who can reach the port may use the agents"
        )


def descriptions() -> dict[str, str]:
    """What each setting means, as the docstring of :class:`Config` has it; empty where docstrings are stripped."""
    attributes = inspect.cleandoc(Config.__doc__ or "").partition("Attributes:\n")[2]
    found = re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", attributes, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name; what it stands for is up to somebody else, but for this one (RFC 6761 section 6.3)
        return host.lower() == "localhost"


# --- sources ---


class _File:
    """A file of settings, which knows on which line a key of it is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._text = path.read_bytes().decode()
            self.tables = tomllib.loads(self._text)
        except OSError as error:
            raise ConfigError(f"the settings in {path} cannot be read: {error.strerror or error}") from None
        except (ValueError, RecursionError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
            raise ConfigError(f"{path} is not a TOML file: {error}") from None

    def where(self, name: str, number: int = 0, key: str = "") -> str:
        """The place of a key, or of a key in a table: the parser does not tell, so it is looked for."""
        header = re.compile(rf"^[ \t]*\[+[ \t]*{re.escape(name)}[ \t]*\]", re.MULTILINE)
        headers = [match.start() for match in header.finditer(self._text)]
        at = headers[number] if number < len(headers) else 0
        wanted = re.compile(rf"^[ \t]*[\"']?{re.escape(key or name)}[\"']?[ \t]*[.=]", re.MULTILINE)
        match = wanted.search(self._text, at)
        if match is None and not headers:
            return str(self.path)
        return f"{self.path}, line {self._text.count(chr(10), 0, match.start() if match else at) + 1}"


def _which(file: Path | None, environ: Mapping[str, str]) -> Path | None:
    if file is not None:
        return Path(file)
    if environ.get("GRAMI_CONFIG"):
        return Path(environ["GRAMI_CONFIG"])
    return Path(CONFIG_FILE) if Path(CONFIG_FILE).is_file() else None


def _from_file(path: Path | None) -> _Found:
    if path is None:
        return {}
    file = _File(path)
    found: _Found = {}
    for name, value in file.tables.items():
        where = file.where(name)
        if name not in _FIELDS:
            hint = _hint(name, _FIELDS) or ("; settings stand in no section" if isinstance(value, dict) else "")
            raise ConfigError(f"{where}: {name!r} is not a setting{hint}")
        kind = _FIELDS[name].type
        if name in _TABLES and isinstance(value, list) and all(isinstance(each, dict) for each in value):
            made: Any = tuple(_table(file, name, number, each) for number, each in enumerate(value))
        else:
            made = _convert(f"{where}: {name}", kind, value)
        found[name] = (path.parent / made if isinstance(made, Path) else made, str(path))
    return found


def _table(file: _File, name: str, number: int, table: dict[str, Any]) -> Any:
    """One of the ``[[rules]]`` or ``[[rates]]``."""
    kind = get_args(_FIELDS[name].type)[0]
    known = {field.name: field for field in msgspec.structs.fields(kind)}
    for key in table:
        if key not in known:
            flaw = f"is a setting: those stand above the first [[{name}]]" if key in _FIELDS else "is no part of it"
            raise ConfigError(f"{file.where(name, number, key)}: in [[{name}]] {key!r} {flaw}{_hint(key, known)}")
    for key, field in known.items():
        if field.required and key not in table:
            raise ConfigError(f"{file.where(name, number)}: [[{name}]] needs {key}, {_fits(field.type)}")
    return kind(
        **{
            key: _convert(f"{file.where(name, number, key)}: {key}", known[key].type, value)
            for key, value in table.items()
        }
    )


def _from_variables(environ: Mapping[str, str]) -> _Found:
    found: _Found = {}
    for variable, text in environ.items():
        upper = variable.removeprefix(PREFIX)
        name = upper.lower()
        if upper == variable or upper in _NOT_SETTINGS:
            continue
        if name not in _FIELDS:
            raise ConfigError(f"{variable} is not a setting{_hint(name, _FIELDS)}")
        if name in _TABLES:
            raise ConfigError(f"{variable} cannot be used: {name} stand in the file, as [[{name}]]")
        kind = _FIELDS[name].type
        value: Any = text
        if get_origin(kind) is tuple:
            value = [part.strip() for part in text.split(",") if part.strip()]
        elif kind is bool:
            value = _BOOLEANS.get(text.strip().lower(), text)
        found[name] = (_convert(variable, kind, value, strict=False), variable)
    return found


def _from_arguments(given: Mapping[str, Any]) -> _Found:
    found: _Found = {}
    for name, value in given.items():
        if name not in _FIELDS:
            raise ConfigError(f"{name!r} is not a setting{_hint(name, _FIELDS)}")
        if value is not None:
            option = _OPTIONS.get(name, f"--{name.replace('_', '-')}")
            found[name] = (_convert(option, _FIELDS[name].type, value, strict=False), option)
    return found


# --- values ---


def _convert(label: str, kind: Any, value: Any, *, strict: bool = True) -> Any:
    """A value as the type of its setting; ``strict`` takes no text for a number. Raises ConfigError."""
    if get_origin(kind) is tuple and isinstance(value, (list, tuple)):
        return tuple(_convert(label, get_args(kind)[0], each, strict=strict) for each in value)
    if Path in {kind, *get_args(kind)}:
        if isinstance(value, (str, Path)) and str(value):
            return Path(value)
    else:
        try:
            return msgspec.convert(value, kind, strict=strict)
        except msgspec.ValidationError:
            pass
    shown = "a list" if isinstance(value, (list, tuple)) else "a table" if isinstance(value, dict) else repr(value)[:60]
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    raise ConfigError(f"{label} is {shown}; it must be {_fits(kind)}{_hint(str(value), choices)}")


def _fits(kind: Any) -> str:
    """What may stand for a type, in words."""
    if get_origin(kind) is tuple:
        return f"a list of which each is {_fits(get_args(kind)[0])}"
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    info = msgspec.inspect.type_info(kind)
    if not isinstance(info, (msgspec.inspect.IntType, msgspec.inspect.FloatType)):
        words: dict[Any, str] = {bool: "true or false", str: "text", Path: "a path", Path | None: "a path"}
        return words.get(kind, "a table")
    number = "a whole number" if isinstance(info, msgspec.inspect.IntType) else "a number"
    if info.gt is not None:
        return f"{number} above {info.gt}"
    return f"{number} from {info.ge} to {info.le}" if info.le is not None else f"{number} of at least {info.ge}"


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
