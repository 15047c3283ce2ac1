"""What every command needs: the application, where it prints, and how work is run and interrupted. Floor 17."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from grami_actors.logs import configure_logging
from grami_actors.manager import package_version
from grami_actors.recording.request import encoded

app = typer.Typer(
    name="grami",
    help="Run agent swarms behind a WebSocket, script multi-agent scenarios, and ask them from the shell.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_HARMFUL: dict[int, int | str] = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"},
    **dict.fromkeys((*range(0x7F, 0xA0), *range(0xD800, 0xE000)), "\ufffd"),
    **dict.fromkeys((0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)), "\ufffd"),
}
"""What would steer the terminal, turn the direction of a line, or has no bytes in UTF-8; and what is shown for it."""


class _Safe(Console):
    """Shows what clients, agents and models said, and does nothing that they say."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else harmless(text), style, control)


def harmless(text: str) -> str:
    """A text with signs for what would steer the terminal; for tables, which measure what they are to show."""
    return text.translate(_HARMFUL)


out = _Safe()
err = _Safe(stderr=True)

INTERRUPTED = 130
"""The exit code of a program that Ctrl-C ended: 128 + SIGINT."""

Url = Annotated[
    str | None, typer.Option("--url", help="Where the server is. (default: GRAMI_URL, GRAMI_PORT, the state file)")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
LogLevel = Annotated[str, typer.Option("--log-level", envvar="GRAMI_LOG_LEVEL", help="DEBUG, INFO, WARNING or ERROR.")]
File = Annotated[Path, typer.Argument(help="A Python file that defines `swarm = Swarm(...)`.")]
_LEVELS = ("TRACE", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def go(work: Coroutine[Any, Any, int]) -> None:
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


def set_log_level(level: str, *, as_json: bool = False) -> None:
    """Log from this level on. Raises BadParameter for a level that there is none."""
    if level.upper() not in _LEVELS:
        raise typer.BadParameter(f"{level!r} is not a log level; use one of {', '.join(_LEVELS)}")
    configure_logging(level.upper(), as_json=as_json)


def print_data(data: Any, *, as_json: bool) -> None:
    """Print an answer: as it is for a pipe, in colours for a terminal."""
    if isinstance(data, str) and out.is_terminal and not as_json:
        out.print(data, markup=False, highlight=False, soft_wrap=True)
    elif as_json or not out.is_terminal:
        sys.stdout.write(msgspec.json.encode(data).decode() + "\n")
    else:
        out.print_json(msgspec.json.encode(data).decode())


def print_json(data: Any) -> None:
    """Print one line of JSON, for machines."""
    try:
        line = msgspec.json.encode(data)
    except UnicodeEncodeError:
        line = encoded(msgspec.to_builtins(data))
    sys.stdout.write(line.decode() + "\n")
    sys.stdout.flush()


@contextlib.contextmanager
def kept_clear(*, wanted: bool) -> Iterator[None]:
    """Keep standard output for JSON alone: what agents and scenarios print, in any process, goes to standard error."""
    if not wanted or sys.stdout is None or sys.stderr is None:
        yield
        return
    sys.stdout.flush()
    own = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stdout.flush()
        os.dup2(own, 1)
        os.close(own)


def print_table(title: str, headings: tuple[str, ...], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under headings; nothing, if there are none."""
    if not rows:
        return
    table = Table(title=title, title_justify="left", title_style="bold", box=None, header_style="dim", pad_edge=False)
    for heading in headings:
        table.add_column(heading)
    for row in rows:
        table.add_row(*(Text(harmless(cell)) for cell in row))
    out.print()
    out.print(table)
