"""The command line: serve a swarm, send to it, play scenarios, look inside. Floor 15."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, NoReturn

import msgspec
import typer
from loguru import logger
from rich.console import Console
from rich.table import Table
from rich.text import Text

from grami_actors.client import Frame, connect
from grami_actors.config import Config, load
from grami_actors.errors import ConfigError, GramiError, ServerNotFound
from grami_actors.future import describe as describe_error
from grami_actors.manager import GrowthManager, package_version
from grami_actors.scenario import script as scripts
from grami_actors.scenario.play import Result
from grami_actors.scenario.transcript import Transcript, Writing, summarise
from grami_actors.telemetry import configure_logging, log_to

app = typer.Typer(
    name="grami",
    help="Run agent swarms behind a WebSocket, script multi-agent scenarios, and ask them from the shell.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console()
err = Console(stderr=True)

INTERRUPTED = 130
"""The exit code of a program that Ctrl-C ended: 128 + SIGINT."""

Url = Annotated[
    str | None, typer.Option("--url", help="Where the server is. (default: GRAMI_URL, GRAMI_PORT, the state file)")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
LogLevel = Annotated[str, typer.Option("--log-level", envvar="GRAMI_LOG_LEVEL", help="DEBUG, INFO, WARNING or ERROR.")]
File = Annotated[Path, typer.Argument(help="A Python file that defines `swarm = Swarm(...)`.")]
_LEVELS = ("TRACE", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def main() -> None:
    """The entry point of the command ``grami``."""
    try:
        app()
    except GramiError as error:
        # What went wrong on this side has no code: it never was on the wire.
        local = isinstance(error, (ConfigError, ServerNotFound))
        _complain("" if local else f" {error.error_code}", error.message)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        if os.environ.get("GRAMI_LOG_LEVEL", "").upper() == "DEBUG":
            raise
        _complain("", f"{describe_error(error)} (GRAMI_LOG_LEVEL=DEBUG shows where)")


def _complain(code: str, text: str) -> NoReturn:
    err.print(f"[bold red]error[/bold red]{code}: ", end="", highlight=False)
    err.print(text, markup=False, highlight=False, soft_wrap=True)
    sys.exit(1)


def _go(work: Coroutine[Any, Any, int]) -> None:
    """Run a coroutine, on uvloop where it is installed. SIGTERM ends it like Ctrl-C."""
    factory = None
    with contextlib.suppress(ImportError):  # uvloop does not exist for every platform
        import uvloop  # noqa: PLC0415

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        code = runner.run(_until_signalled(work))
    raise typer.Exit(code)


async def _until_signalled(work: Coroutine[Any, Any, int]) -> int:
    """Cancel the work at the first SIGINT or SIGTERM, and let it end in order; the second ends it at once."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    received: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        if received:
            os._exit(128 + number)
        received.append(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # no signal handlers on this platform's loop
            loop.add_signal_handler(number, stop, number)
    try:
        code = await task
    except asyncio.CancelledError:
        if not received:
            raise
        code = 0
    return 128 + received[0] if received else code


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,  # noqa: FBT002
) -> None:
    if version:
        out.print(package_version(), highlight=False)
        raise typer.Exit
    if context.invoked_subcommand is None:
        out.print(context.get_help())


@app.command()
def serve(
    file: File,
    host: Annotated[str | None, typer.Option(help="Address to bind. (default: 127.0.0.1)")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one. (default: 0)", min=0, max=65535)] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="A web origin whose pages may connect. Repeat for more.")
    ] = None,
    allow_host: Annotated[list[str] | None, typer.Option(help="A Host name besides loopback. Repeat for more.")] = None,
    log_level: LogLevel = "INFO",
    log_json: Annotated[bool, typer.Option("--log-json", help="Log JSON lines.")] = False,  # noqa: FBT002
) -> None:
    """Serve a swarm over WebSocket until Ctrl-C.

    The first line on standard output is JSON and says where; the log goes to standard error.
    Clients on this machine find the server by themselves: try `grami describe` in another terminal.
    """
    _set_log_level(log_level, as_json=log_json)
    config = load(
        host=host,
        port=port,
        allowed_origins=tuple(allow_origin or ()) or None,
        allowed_hosts=tuple(allow_host or ()) or None,
    )
    script = scripts.load(file)
    _go(_serve(script, config))


async def _serve(script: scripts.Script, config: Config) -> int:
    manager = GrowthManager(script.swarm, config)
    log_to(manager.system.bus)
    other = manager.replaces
    async with manager:
        if other is not None:
            logger.warning(
                "{} named another running server (process {}); clients find this one now", config.state_dir, other.pid
            )
        line = {"event": "listening", "url": manager.url, "port": manager.port, "pid": os.getpid()}
        sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
        sys.stdout.flush()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.get_running_loop().create_future()
        logger.info("stopping")
    logger.info("stopped")
    return 0


def _set_log_level(level: str, *, as_json: bool = False) -> None:
    if level.upper() not in _LEVELS:
        raise typer.BadParameter(f"{level!r} is not a log level; use one of {', '.join(_LEVELS)}")
    configure_logging(level.upper(), as_json=as_json)


@app.command()
def run(
    file: File,
    names: Annotated[list[str] | None, typer.Argument(help="Which scenarios; all if none is named.")] = None,
    as_json: AsJson = False,  # noqa: FBT002
    log_level: Annotated[
        str | None, typer.Option("--log-level", help="Log to standard error, from DEBUG, INFO, WARNING or ERROR on.")
    ] = None,
) -> None:
    """Play the scenarios of a file: real clients, a real WebSocket, a live transcript.

    The exit code is 1 when a check fails.

    For example: grami run scenarios/content_swarm.py three_clients_at_once
    """
    if log_level is not None:
        _set_log_level(log_level)
    script = scripts.load(file)
    scripts.choose(script, names or ())
    _go(_run(script, names or [], as_json=as_json, log=log_level is not None))


async def _run(script: scripts.Script, names: list[str], *, as_json: bool, log: bool) -> int:
    # A scenario's server is its own: a fixed port or state directory of the environment is not for it.
    config = msgspec.structs.replace(load(), port=0)
    console = err if as_json else out
    with Transcript(console) as transcript:

        def watch(event: Any) -> None:
            if log and isinstance(event, GrowthManager):
                log_to(event.system.bus)
            transcript(event)

        results: tuple[Result, ...] = await scripts.run(script, names, config, watch)
    if as_json:
        sys.stdout.write(msgspec.json.encode(results).decode() + "\n")
    else:
        summarise(console, results)
    return 0 if all(result.passed for result in results) else 1


@app.command()
def send(
    message_type: Annotated[str, typer.Argument(metavar="TYPE", help="The message type, such as content_request.")],
    fields: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="The fields. A value that is JSON is taken as such, else as text."),
    ] = None,
    url: Url = None,
    to: Annotated[str | None, typer.Option(help="A destination by name, such as writer or tool:hashtags.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Show chunks and progress while they come.")] = False,  # noqa: FBT002
    timeout: Annotated[float | None, typer.Option(help="Deadline in seconds.", min=0.001)] = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Send one request to a running server and print its answer.

    For example: grami send content_request platform=instagram niche=tech --stream
    """
    values = dict(_field(text) for text in fields or ())
    _go(
        _send(
            url, {"type": message_type, "to": to, "timeout": timeout, "fields": values}, stream=stream, as_json=as_json
        )
    )


def _field(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise typer.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="KEY=VALUE")
    if name in {"type", "id", "to", "stream", "timeout", "timeout_ms"}:
        raise typer.BadParameter(
            f"{name!r} is not a field of a message; see --help for its option", param_hint="KEY=VALUE"
        )
    try:
        return name, msgspec.json.decode(value)
    except msgspec.DecodeError:
        return name, value


async def _send(url: str | None, request: dict[str, Any], *, stream: bool, as_json: bool) -> int:
    options = {"to": request["to"], "timeout": request["timeout"]}
    async with connect(url, retry_for=0.0) as grami:
        if not stream:
            _print_data(await grami.request(request["type"], **options, **request["fields"]), as_json=as_json)
            return 0
        with Writing(err) as writing:
            async for frame in grami.stream(request["type"], **options, **request["fields"]):
                if as_json:
                    sys.stdout.write(msgspec.json.encode(frame).decode() + "\n")
                    sys.stdout.flush()
                else:
                    _show_frame(frame, writing)
        if not as_json:
            sys.stderr.write("\n" * (bool(writing.last) and not err.is_terminal))
            _print_data(frame.data, as_json=False)
    return 0


def _show_frame(frame: Frame, writing: Writing) -> None:
    if frame.type == "response.started":
        err.print(f"{frame.source} began", style="dim", markup=False, highlight=False)
    elif frame.type == "response.progress":
        err.print(f"{frame.progress or 0:4.0%}  {frame.message}", style="dim", markup=False, highlight=False)
    elif frame.type == "response.chunk":
        part = frame.data if isinstance(frame.data, dict) else {"text": frame.data}
        who, text = str(part.get("from", "answer")), str(part.get("text", ""))
        writing.add(who, text)
        if not err.is_terminal:
            sys.stderr.write(text if writing.last in {"", who} else f"\n{who}: {text}")
        writing.last = who


def _print_data(data: Any, *, as_json: bool) -> None:
    if isinstance(data, str) and out.is_terminal and not as_json:
        out.print(data, markup=False, highlight=False, soft_wrap=True)
    elif as_json or not out.is_terminal:
        sys.stdout.write(msgspec.json.encode(data).decode() + "\n")
    else:
        out.print_json(msgspec.json.encode(data).decode())


@app.command()
def describe(url: Url = None, as_json: AsJson = False) -> None:  # noqa: FBT002
    """Show what a running server offers: message types, agents and tools."""
    _go(_describe(url, as_json=as_json))


async def _describe(url: str | None, *, as_json: bool) -> int:
    async with connect(url, retry_for=0.0) as grami:
        offered = await grami.describe()
        where = grami.url
    if as_json:
        _print_data(offered, as_json=True)
        return 0
    out.print(f"[bold]{where}[/bold]")
    _table("message types", ("type", "fields", "goes to"), [_type_row(each) for each in offered["types"]])
    rows = [
        (each["name"], str(each["instances"]), each["description"].partition("\n")[0]) for each in offered["agents"]
    ]
    _table("agents", ("name", "instances", "what it does"), rows)
    _table("tools", ("name", "parameters", "what it does"), [_tool_row(each) for each in offered["tools"]])
    return 0


def _type_row(each: dict[str, Any]) -> tuple[str, str, str]:
    fields = _parameters(each["schema"], without="type")
    return each["type"], fields, each["handled_by"]


def _tool_row(each: dict[str, Any]) -> tuple[str, str, str]:
    text = each.get("error") or each["description"].partition("\n")[0]
    return each["name"], _parameters(each.get("parameters") or {}), text


def _parameters(schema: dict[str, Any], without: str = "") -> str:
    """``platform: string, niche: string = "general"`` from a JSON Schema of an object."""
    target = schema
    if "$ref" in schema:
        target = schema["$defs"][schema["$ref"].rpartition("/")[2]]
    parts = []
    for name, field in target.get("properties", {}).items():
        if name != without:
            default = f" = {msgspec.json.encode(field['default']).decode()}" if "default" in field else ""
            parts.append(f"{name}: {_kind(field, schema.get('$defs', {}))}{default}")
    return ", ".join(parts)


def _kind(field: dict[str, Any], named: dict[str, Any]) -> str:
    """What a field may hold, in a word or a few."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return _kind(named[name], named) if "enum" in named.get(name, {}) else name
    if "enum" in field:
        return " | ".join(str(value) for value in field["enum"])
    if "anyOf" in field:
        return " | ".join(_kind(each, named) for each in field["anyOf"])
    if field.get("type") == "array" and isinstance(field.get("items"), dict):
        return f"array of {_kind(field['items'], named)}"
    return str(field.get("type", "any"))


def _table(title: str, headings: tuple[str, ...], rows: list[tuple[str, str, str]]) -> None:
    if not rows:
        return
    table = Table(title=title, title_justify="left", title_style="bold", box=None, header_style="dim", pad_edge=False)
    for heading in headings:
        table.add_column(heading)
    for row in rows:
        table.add_row(*map(Text, row))
    out.print()
    out.print(table)
