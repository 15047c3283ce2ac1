"""The transcript of a playing scenario, live in a terminal. Floor 16."""

from __future__ import annotations

import inspect
import itertools
from typing import Any, Self

from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from grami_actors.manager import GrowthManager
from grami_actors.scenario.lines import Check, Line, Piece, never_struck
from grami_actors.scenario.play import Result

_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "bright_cyan", "bright_magenta", "bright_green")


class Writing:
    """The text that is being written at this moment, a row for each writer, below everything else.

    Without a terminal it shows nothing. ``last`` is for whoever shows the text in another way: the last writer.
    """

    def __init__(self, console: Console) -> None:
        self.last = ""
        self._console = console
        self._texts: dict[str, str] = {}
        self._live = Live(console=console, refresh_per_second=12, transient=True, get_renderable=self._render)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._texts.clear()
        if self._live.is_started:
            self._live.stop()

    def add(self, key: str, text: str) -> None:
        """More text of one writer."""
        self._texts[key] = self._texts.get(key, "") + text

    def end(self, key: str) -> None:
        """A writer is done."""
        self._texts.pop(key, None)

    def _render(self) -> Group:
        rows = []
        # A copy: the display's own thread renders while text arrives.
        for key, text in tuple(self._texts.items()):
            row = Text(f"     … {key}: ", style="dim", no_wrap=True, overflow="ellipsis")
            room = max(10, self._console.width - row.cell_len - 2)
            row.append(_end_of(" ".join(text.split()), room), style="italic")
            rows.append(row)
        return Group(*rows)


class Terminal:
    """Shows lines as they come, and below them the text that is being written at this moment.

    Without a terminal (a pipe, a file) it prints only the finished lines.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._colours: dict[str, str] = {}
        self._palette = itertools.cycle(_COLOURS)
        self._writing = Writing(console)

    def __enter__(self) -> Self:
        self._writing.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._writing.__exit__()

    def __call__(self, event: Any) -> None:
        """Take what a scenario shows."""
        if isinstance(event, Piece):
            self._on_piece(event)
        elif isinstance(event, Line):
            # A file has no width: there a line is whole, however long.
            self._console.print(self._line(event), soft_wrap=True)
        elif isinstance(event, Check):
            self._console.print(_check(event), soft_wrap=not self._console.is_terminal)
        elif isinstance(event, GrowthManager):
            self._console.print(Text.assemble(("growth manager ", "bold"), "at ", (event.url, "underline")))
        elif inspect.isfunction(event):
            self.title(_title(event))

    def title(self, text: str) -> None:
        """Begin with another scenario."""
        self._console.print()
        self._console.print(Rule(text, align="left", style="dim"))

    def _on_piece(self, piece: Piece) -> None:
        if piece.done:
            self._writing.end(piece.key)
        else:
            self._writing.add(piece.key, piece.text)

    def _name(self, name: str) -> Text:
        base = name.split("-", maxsplit=1)[0] if not name.startswith("connection-") else name
        if base not in self._colours:
            self._colours[base] = next(self._palette)
        return Text(name, style=self._colours[base])

    def _line(self, line: Line) -> Text:
        row = Text(f"{line.at:7.2f}  ", style="dim")
        row.append_text(self._name(line.who))
        if line.to:
            row.append(" → ", style="dim")
            row.append_text(self._name(line.to))
        row.append(f"  {line.what} ", style="bold")
        if line.outcome not in {"", "ok"}:
            row.append(f"{line.outcome} ", style="bold red")
        end = "" if line.seconds is None else f"  {_duration(line.seconds)}"
        text = Text(line.text)
        if self._console.is_terminal:
            text.truncate(max(8, self._console.width - row.cell_len - len(end)), overflow="ellipsis")
        row.append_text(text)
        row.append(end, style="dim")
        row.rstrip()
        return row


def _end_of(text: str, room: int) -> str:
    """As much of the end of a text as has room in so many cells; signs of some scripts take two."""
    text = text[-room:]
    while (over := cell_len(text) - room) > 0:
        text = text[(over + 1) // 2 :]
    return text


def _check(check: Check) -> Text:
    mark = ("       ✓ ", "green") if check.passed else ("       ✗ ", "bold red")
    return Text.assemble(mark, (check.text, "" if check.passed else "red"), _details(check))


def _details(check: Check) -> str:
    return f": {check.details}" if check.details and not check.passed else ""


def _title(function: Any) -> str:
    first = (function.__doc__ or "").strip().partition("\n")[0]
    return f"{function.__name__}: {first}" if first else str(function.__name__)


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def summarise(console: Console, results: tuple[Result, ...]) -> None:
    """Print the table at the end."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading, justify in (
        ("", "left"),
        ("scenario", "left"),
        ("checks", "right"),
        ("messages", "right"),
        ("time", "right"),
    ):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for result in results:
        held = sum(check.passed for check in result.checks)
        mark = "[green]✓[/green]" if result.passed else "[bold red]✗[/bold red]"
        checks = f"{held}/{len(result.checks)}" if result.checks else "-"
        table.add_row(mark, result.scenario, checks, str(result.messages), _duration(result.wall_seconds))
    console.print()
    console.print(table)
    for result in results:
        for check in result.checks:
            if not check.passed:
                words = f"in {result.scenario}: {check.text}{_details(check)}"
                console.print(Text.assemble(("failed ", "bold red"), words), soft_wrap=not console.is_terminal)
        if result.error:
            words = f"in {result.scenario}: {result.error}"
            console.print(Text.assemble(("error ", "bold red"), words), soft_wrap=not console.is_terminal)
        if result.unused:
            words = f"in {result.scenario} {never_struck(result.unused)}"
            console.print(Text.assemble(("faults ", "bold yellow"), words), soft_wrap=not console.is_terminal)
