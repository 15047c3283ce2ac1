"""``grami doctor``: what may be wrong between here and a server, and what to do about it. Floor 17."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import typer
from rich.table import Table
from rich.text import Text

from grami_actors.cli.app import AsJson, app, go, out
from grami_actors.cli.probes import Answer, Prober, Target, Trouble, resolve, target
from grami_actors.client import Client, connect
from grami_actors.config import PREFIX, load
from grami_actors.discovery import STATE_DIR, STATE_FILE, Located, locate, read_state
from grami_actors.errors import ConfigError, ErrorCode, GramiError, ServerNotFound
from grami_actors.frames import PROTOCOL_VERSION
from grami_actors.logs import printable
from grami_actors.manager import package_version

PATIENCE = 3.0
PINGS = 20
SWITCHED = 101
"""HTTP's answer to a handshake that succeeded."""

REFUSED = 401
"""HTTP's answer to somebody without a credential."""

SOON_EXPIRED = 21 * 86_400.0
CLOCKS_APART = 5.0
SLOW_PING = 0.25
SPARE_DESCRIPTORS = 64
"""Files that a server needs beside its connections."""

STRANGER = "doctor.invalid"
"""A name that nobody has (RFC 2606, section 2)."""

CREDENTIAL = "set GRAMI_TOKEN to a token that `grami token create` made for you"
BLOCKED = "a handler or tool may block its event loop: `grami top` and `grami profile` show which"

EXTRAS = {"auth": "joserfc", "llm": "openai", "local": "xllamacpp", "otel": "opentelemetry"}
COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


Status = Literal["ok", "warn", "fail"]


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at."""

    check: str
    status: Status
    found: str
    advice: str = ""


@app.command()
def doctor(
    url: Annotated[
        str | None, typer.Argument(help="Where the server is. (default: GRAMI_URL, GRAMI_PORT, the state file)")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that each step may take.", min=0.01)] = PATIENCE,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Look for what is wrong between here and a running server.

    From the state file and the settings here, by way of TCP, TLS and the WebSocket handshake, to the server's
    answers. The exit code is 1 when something fails; a warning is no failure.

    For example: grami doctor wss://example.org/ws
    """
    go(_doctor(url, timeout, as_json=as_json))


async def _doctor(url: str | None, patience: float, *, as_json: bool) -> int:
    checks = await examine(url, patience, os.environ)
    failed = any(each.status == "fail" for each in checks)
    if as_json:
        sys.stdout.write(msgspec.json.encode({"ok": not failed, "checks": checks}).decode() + "\n")
    else:
        _show(checks)
    return int(failed)


async def examine(url: str | None, patience: float, environ: Mapping[str, str]) -> list[Check]:
    """Look at everything, as far as it can be reached.

    Args:
        url: where the server is; found as clients find it, if not given.
        patience: seconds that each step may take.
        environ: the environment variables.
    """
    checks = [*_machine(environ), *_state_file(environ)]
    try:
        found = locate(url, environ)
        where = target(found.url)
    except ServerNotFound as error:
        checks.append(Check("address", "fail", error.message))
    except Trouble as trouble:
        checks.append(_failed("address", trouble))
    else:
        token = environ.get("GRAMI_TOKEN") or found.token
        checks += [each async for each in _server(Located(found.url, token), where, patience)]
        checks += _descriptors(where, environ)
    return checks


def _show(checks: list[Check]) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for each in checks:
        text = Text(printable(each.found))
        if each.advice and each.status != "ok":
            text.append(f"\n-> {printable(each.advice)}", style=COLOURS[each.status])
        table.add_row(Text(each.status, style=COLOURS[each.status]), Text(each.check, style="bold"), text)
    out.print(table)
    counts = {status: sum(each.status == status for each in checks) for status in COLOURS}
    out.print(f"\n{counts['ok']} ok, {counts['warn']} warn, {counts['fail']} fail", highlight=False)


def _failed(check: str, trouble: Trouble) -> Check:
    return Check(check, "fail", trouble.found, trouble.advice)


# --- this machine ---


def _machine(environ: Mapping[str, str]) -> Iterator[Check]:
    python = f"{platform.python_implementation()} {platform.python_version()}, grami_actors {package_version()}"
    yield Check("python", "ok", python)
    if find_spec("uvloop") is not None:
        yield Check("uvloop", "ok", "installed")
    elif sys.platform != "win32":
        yield Check(
            "uvloop", "warn", "not installed", "pip install uvloop: it needs a seventh of the memory per TLS connection"
        )
    there = [name for name, module in EXTRAS.items() if find_spec(module) is not None]
    missing = [name for name in EXTRAS if name not in there]
    yield Check("extras", "ok", ", ".join(there + [f"no {name}" for name in missing]))
    flaws = list(_variables(environ))
    yield from flaws
    if not flaws:
        known = sorted(name for name in environ if name.startswith(PREFIX))
        yield Check("settings", "ok", ", ".join(known) or f"no variable {PREFIX}*")


def _variables(environ: Mapping[str, str]) -> Iterator[Check]:
    """What is wrong with the variables: names, never values, which may be secret."""
    ours = sorted(name for name in environ if name.startswith(PREFIX))
    flaws = {name: error for name in ours if (error := _flaw({name: environ[name]}))}
    if not _flaw(environ):
        return
    for name, error in flaws.items():
        unknown = error.message.startswith(f"{name} is not a setting")
        found = error.message if unknown else f"{name} has a value that does not fit"
        yield Check("settings", "fail", found, "`grami serve` refuses to start with it: correct or unset it")
    if not flaws:
        yield Check("settings", "fail", f"{', '.join(ours)} do not go together", "`grami serve` says why")


def _flaw(environ: Mapping[str, str]) -> ConfigError | None:
    try:
        load(environ)
    except ConfigError as error:
        return error
    return None


def _state_file(environ: Mapping[str, str]) -> Iterator[Check]:
    directory = Path(environ.get("GRAMI_STATE_DIR") or STATE_DIR)
    file = directory / STATE_FILE
    if not _exists(file):
        yield Check("state file", "ok", f"there is no {file}")
        return
    state = read_state(directory)
    if state is None:
        yield Check("state file", "warn", f"{file} cannot be read as one", "remove it, and start the server anew")
    elif not state.alive:
        found = f"{file} is stale: process {state.pid} is gone"
        yield Check("state file", "warn", found, "start the server anew: it replaces the file")
    else:
        yield Check("state file", "ok", f"{file} names process {state.pid}")
    for each in (directory, file):
        if os.name == "posix" and _exists(each) and each.stat().st_mode & 0o022:
            found = f"others may write to {each}, and send clients to a server of theirs"
            yield Check("state file", "warn", found, f"chmod go-w {each}")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # behind a directory that is closed to us
        return False


# --- the way to the server ---


async def _server(found: Located, where: Target, patience: float) -> AsyncIterator[Check]:
    """Step by step, as far as it works."""
    step = "address"
    try:
        addresses = await resolve(where, patience)
        yield Check(step, "ok", f"{where.shown} at {', '.join(addresses)}")
        step = "tcp"
        prober, check = await _reach(where, addresses, patience)
        yield check
        step = "tls"
        if where.secure:
            yield _certificate(*await prober.secure())
        step = "http"
        for path in ("/livez", "/readyz"):
            yield _health(path, await prober.get(path))
        step = "handshake"
        answer = await prober.shake_hands()
        yield _handshake(answer)
        if answer.status == SWITCHED:
            yield _clock(answer)
            yield await _stranger("origin", prober, Origin=f"https://{STRANGER}")
            yield await _stranger("host", prober, Host=STRANGER)
    except Trouble as trouble:
        yield _failed(step, trouble)
        return
    if answer.status in {SWITCHED, REFUSED}:
        for check in await _talk(found, where, patience, locked=answer.status == REFUSED):
            yield check


async def _reach(where: Target, addresses: list[str], patience: float) -> tuple[Prober, Check]:
    """Try all addresses of a host; the first that answers is asked from then on."""
    probers = [Prober(where, each, patience) for each in addresses]
    results = await asyncio.gather(*(each.reach() for each in probers), return_exceptions=True)
    reached = [number for number, each in enumerate(results) if isinstance(each, float)]
    troubles = [each for each in results if isinstance(each, Trouble)]
    if not reached:
        raise troubles[0]
    best = reached[0]
    found = f"port {where.port} answers in {_milliseconds(float(results[best]))}"  # type: ignore[arg-type]
    if troubles:
        silent = ", ".join(each for number, each in enumerate(addresses) if number not in reached)
        check = Check("tcp", "warn", f"{found}, but not at {silent}", "clients may lose time there: use an address")
    else:
        check = Check("tcp", "ok", found)
    return probers[best], check


def _certificate(version: str, expires_at: float) -> Check:
    left = expires_at - time.time()
    found = f"{version}, the certificate is trusted and names the host; it expires in {left / 86_400:.0f} days"
    if left < SOON_EXPIRED:
        return Check("tls", "warn", found, "renew it")
    return Check("tls", "ok", found)


def _health(path: str, answer: Answer) -> Check:
    found = f"{path} answers {answer.status}"
    if answer.status == 200:  # noqa: PLR2004 - HTTP's OK
        return Check("http", "ok", found)
    advice = {
        403: "the server does not know this Host: set GRAMI_ALLOWED_HOSTS there",
        404: "this is no Growth Manager, or something before it answers",
        503: "it is shutting down",
    }
    return Check("http", "warn", found, advice.get(answer.status, advice[404]))


def _handshake(answer: Answer) -> Check:
    if answer.status == SWITCHED:
        return Check("handshake", "ok", "it speaks WebSocket")
    if answer.status == REFUSED:
        return Check(
            "handshake", "warn", "it asks for a credential (HTTP 401)", "what follows a log-in was not checked"
        )
    advice = {
        403: "the server does not know this Host: set GRAMI_ALLOWED_HOSTS there",
        404: "check the path: it is usually /ws",
        429: "too many connections from here: GRAMI_MAX_CONNECTIONS_PER_ADDRESS",
        503: "it is full (GRAMI_MAX_CONNECTIONS) or shutting down",
    }
    return Check(
        "handshake",
        "fail",
        f"HTTP {answer.status} where 101 should be",
        advice.get(answer.status, "this is no Growth Manager"),
    )


def _clock(answer: Answer) -> Check:
    try:
        theirs = parsedate_to_datetime(answer.fields["date"]).timestamp()
    except (KeyError, ValueError, OverflowError):
        return Check("clock", "ok", "not told by the server")
    apart = time.time() - theirs
    if abs(apart) > CLOCKS_APART:
        word = "behind" if apart > 0 else "ahead"
        found = f"the server's clock is {abs(apart):.0f} s {word}"
        return Check("clock", "warn", found, "set both by NTP: tokens expire by the server's clock")
    return Check("clock", "ok", "as ours, to a second or so")


async def _stranger(check: str, prober: Prober, **fields: str) -> Check:
    """Whether somebody is refused who comes from, or by the name of, somewhere else."""
    (value,) = fields.values()
    answer = await prober.shake_hands(**fields)
    if answer.status != SWITCHED:
        return Check(check, "ok", f"{value} is refused (HTTP {answer.status})")
    danger = "ANY WEB PAGE of a browser on your network may talk to this server"
    return Check(check, "warn", f"{value} is let in: {danger}", "allow only what you know; see docs/security.md")


# --- the conversation ---


async def _talk(found: Located, where: Target, patience: float, *, locked: bool) -> list[Check]:
    """Ask through the client that programs use; ``locked`` if strangers are refused."""
    checks: list[Check] = []
    try:
        async with connect(found.url, token=found.token, retry_for=0.0, open_timeout=patience) as grami:
            name = grami.principal
            checks.append(Check("protocol", "ok", f"grami/{PROTOCOL_VERSION}" + f", we are {name}" * bool(name)))
            async with asyncio.timeout(patience):
                checks.append(_pings([await _ping(grami) for _ in range(PINGS)]))
                checks.append(await _lag(grami))
    except TimeoutError:
        checks.append(Check("ping", "fail", f"no answer in {patience:g} s", BLOCKED))
    except ServerNotFound as error:
        status: Status = "warn" if locked else "fail"
        text = error.message.replace(found.url, where.shown)
        checks.append(Check("protocol", status, text, CREDENTIAL if locked else BLOCKED))
    except GramiError as error:
        status = "warn" if error.error_code == ErrorCode.UNAUTHENTICATED else "fail"
        checks.append(Check("protocol", status, f"{error.error_code}: {error.message}", _advice(error)))
    return checks


async def _ping(grami: Client) -> float:
    began = time.perf_counter()
    await grami.ping()
    return time.perf_counter() - began


async def _lag(grami: Client) -> Check:
    """How late the server's event loop was, as far as it tells us."""
    try:
        lag = (await grami.request("admin.stats"))["loop_lag"]
    except GramiError as error:
        return Check("loop lag", "ok", f"not told to us ({error.error_code})")
    found = f"median {lag['p50_ms']:.1f} ms, longest {lag['max_ms']:.1f} ms in the last minute"
    return Check("loop lag", "warn" if lag["max_ms"] > SLOW_PING * 1000 else "ok", found, BLOCKED)


def _advice(error: GramiError) -> str:
    renew = "its token is not accepted: make a new one with `grami token create`"
    known: dict[str, str] = {
        ErrorCode.UNAUTHENTICATED: CREDENTIAL,
        ErrorCode.INVALID_TOKEN: renew,
        ErrorCode.TOKEN_EXPIRED: renew,
        ErrorCode.UNSUPPORTED_VERSION: "install the same release of grami_actors here and there",
    }
    return known.get(error.error_code, "the server's log says more")


def _pings(times: list[float]) -> Check:
    found = f"median {_milliseconds(statistics.median(times))}, longest {_milliseconds(max(times))} of {len(times)}"
    if max(times) > SLOW_PING:
        return Check(
            "ping", "warn", found, "its event loop is busy (`grami top`, `grami profile`), or the network is slow"
        )
    return Check("ping", "ok", found)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def _descriptors(where: Target, environ: Mapping[str, str]) -> Iterator[Check]:
    """Whether the server, if it runs here, may open as many files as it serves connections."""
    state = read_state(Path(environ.get("GRAMI_STATE_DIR") or STATE_DIR))
    of_server = _limit_of(state.pid) if state is not None and state.alive and state.port == where.port else None
    limit, whose = (of_server, "the server") if of_server is not None else (_own_limit(), "a process started here")
    if limit is None:
        return
    with contextlib.suppress(ConfigError):
        wanted = load(environ).max_connections + SPARE_DESCRIPTORS
        found = f"{whose} may open {limit:,} files; max_connections is {wanted - SPARE_DESCRIPTORS:,}"
        if limit < wanted:
            advice = f"`ulimit -n {wanted}` before `grami serve`, or a lower GRAMI_MAX_CONNECTIONS"
            yield Check("descriptors", "warn", found, advice)
        else:
            yield Check("descriptors", "ok", found)


def _limit_of(pid: int) -> int | None:
    """How many files another process may open, where the system tells (Linux)."""
    with contextlib.suppress(OSError):
        told = re.search(r"^Max open files +(\d+)", Path(f"/proc/{pid}/limits").read_text(), re.MULTILINE)
        return int(told.group(1)) if told else None
    return None


def _own_limit() -> int | None:
    try:
        import resource  # noqa: PLC0415 - Windows has none
    except ImportError:
        return None
    soft: int = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft
