"""``grami profile``: where the time of a running server goes, as a table and a flame graph. Floor 17."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated
from xml.sax.saxutils import escape
from zlib import crc32

import msgspec
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from grami_actors.cli.app import AsJson, Url, app, err, go, out, print_data
from grami_actors.cli.top import admin
from grami_actors.client import Client, connect
from grami_actors.logs import printable
from grami_actors.profiling import LONGEST, TOOL, HandlerTimes, Report

WIDTH = 1200
ROW = 22
MARGIN = 16
HEAD = 64
LETTER = 6.6
"""Pixels of a letter of the flame graph's font."""

NARROWEST = 0.3
"""Pixels of the narrowest frame that is drawn."""

ANSWER_SECONDS = 30.0
"""Seconds that the answer may take beyond the profile itself."""


@app.command()
def profile(
    url: Url = None,
    seconds: Annotated[float, typer.Option(help="How long to measure.", min=0.1, max=LONGEST)] = 10.0,
    output: Annotated[
        Path, typer.Option(help="The flame graph: a picture (.svg), or folded stacks for other tools (.txt).")
    ] = Path("profile.svg"),
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Measure a running server, print where the time goes, and write a flame graph.

    It takes a token with the scope `admin`, or the state directory of the server. While it measures, each message
    costs a few microseconds more.

    For example: grami profile --seconds 30 --output slow.svg
    """
    if output.suffix not in {".svg", ".txt"}:
        raise typer.BadParameter(f"{str(output)!r} ends in neither .svg nor .txt", param_hint="--output")
    if not output.absolute().parent.is_dir():
        raise typer.BadParameter(f"the directory of {str(output)!r} does not exist", param_hint="--output")
    go(_profile(url, seconds, output, as_json=as_json))


async def _profile(url: str | None, seconds: float, output: Path, *, as_json: bool) -> int:
    async with connect(url, retry_for=0.0) as grami:
        report = await _measure(grami, seconds)
        where = grami.url
    if as_json:
        print_data(report, as_json=True)
    else:
        out.print(table(report))
    _write(report, output, where)
    err.print(f"wrote {output}", style="dim", markup=False, highlight=False, soft_wrap=True)
    return 0


def _write(report: Report, output: Path, where: str) -> None:
    folded = "".join(f"{line}\n" for line in report.stacks)
    text = folded if output.suffix == ".txt" else draw(report.stacks, f"{where} for {report.seconds:g} s")
    output.write_text(text, encoding="utf-8")


async def _measure(grami: Client, seconds: float) -> Report:
    asked = asyncio.ensure_future(admin(grami, "admin.profile", seconds + ANSWER_SECONDS, seconds=seconds))
    columns = TextColumn("measuring"), BarColumn(), TimeRemainingColumn()
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        bar = progress.add_task("", total=seconds)
        loop = asyncio.get_running_loop()
        begun_at = loop.time()
        try:
            while not asked.done():
                await asyncio.wait((asked,), timeout=0.2)
                progress.update(bar, completed=min(seconds, loop.time() - begun_at))
        finally:
            asked.cancel()
    return msgspec.convert(await asked, Report)


def table(report: Report) -> Table:
    """The handlers and tools, the most own time first."""
    title = f"{report.seconds:g} s; times in ms, sums of all calls"
    shown = Table(title=title, title_justify="left", title_style="dim", box=None, pad_edge=False, header_style="bold")
    shown.add_column("handler or tool", overflow="fold")
    for heading in ("calls", "own", "own %", "awaited", "total", "longest", "in queue"):
        shown.add_column(heading, justify="right", no_wrap=True)
    whole = sum(each.own_ms for each in report.handlers) or 1.0
    for each in report.handlers:
        shown.add_row(*_row(each, whole))
    if not report.handlers:
        shown.add_row(Text("no message was handled", "dim"))
    return shown


def _row(each: HandlerTimes, whole: float) -> list[Text]:
    style = "cyan" if each.name.startswith(TOOL) else ""
    own = f"{each.own_ms:,.1f}", f"{each.own_ms / whole:.1%}"
    rest = (f"{value:,.1f}" for value in (each.awaited_ms, each.total_ms, each.max_ms, each.queue_ms))
    return [Text(printable(each.name), style), *map(Text, (f"{each.calls:,}", *own, *rest))]


# --- the flame graph ---


class Frame:
    """A frame of the flame graph: its own microseconds, and the frames upon it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.own = 0
        self.above: dict[str, Frame] = {}

    def add(self, names: Sequence[str], own: int) -> None:
        """Add a stack."""
        frame = self
        for name in names:
            frame = frame.above.setdefault(name, Frame(name))
        frame.own += own

    def weigh(self) -> int:
        """Its microseconds, with those of all upon it."""
        return self.own + sum(each.weigh() for each in self.above.values())

    def height(self) -> int:
        """How many frames stand upon each other, this one included."""
        return 1 + max((each.height() for each in self.above.values()), default=0)


def draw(stacks: Sequence[str], title: str) -> str:
    """A flame graph as one SVG file, without scripts: the wider a frame, the more time it and all upon it took.

    Args:
        stacks: lines of the folded format.
        title: the text in its head.
    """
    root = Frame("all")
    for line in stacks:
        names, _, own = line.rpartition(" ")
        root.add(names.split(";"), int(own))
    whole = root.weigh()
    height = HEAD + ROW * root.height() + MARGIN
    boxes = "".join(_boxes(root, MARGIN, height - MARGIN - ROW, (WIDTH - 2 * MARGIN) / max(1, whole), whole))
    note = "width: own time of a handler and of those that it asked; hover for numbers" if whole else "nothing ran"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="ui-monospace, Menlo, Consolas, monospace" font-size="11">'
        "<style>g:hover rect{stroke:#000;stroke-width:1.5}text{pointer-events:none}</style>"
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>'
        f'<text x="{MARGIN}" y="28" font-size="16" font-weight="bold" fill="#222">{_safe(title)}</text>'
        f'<text x="{MARGIN}" y="46" fill="#777">{note}</text>{boxes}</svg>\n'
    )


def _boxes(frame: Frame, x: float, y: int, scale: float, whole: int) -> Iterator[str]:
    weight = frame.weigh()
    width = weight * scale
    if width < NARROWEST:
        return
    numbers = f"{weight / 1000:,.2f} ms ({weight / max(1, whole):.1%}), own {frame.own / 1000:,.2f} ms"
    letters = int((width - 8) / LETTER)
    label = frame.name if len(frame.name) <= letters else f"{frame.name[: letters - 1]}…"
    text = f'<text x="{x + 4:.1f}" y="{y + 15}" fill="#222">{_safe(label)}</text>' if letters >= 3 else ""  # noqa: PLR2004
    yield (
        f"<g><title>{_safe(frame.name)}: {numbers}</title>"
        f'<rect x="{x:.1f}" y="{y}" width="{max(width - 0.6, NARROWEST):.1f}" height="{ROW - 1}" rx="2" '
        f'fill="{_colour(frame.name)}"/>{text}</g>'
    )
    for each in sorted(frame.above.values(), key=lambda each: each.name):
        yield from _boxes(each, x, y - ROW, scale, whole)
        x += each.weigh() * scale


def _colour(name: str) -> str:
    """Warm for handlers, blue for tools, grey for what is neither; the same name has the same colour everywhere."""
    if "." not in name and not name.startswith(TOOL):
        return "#d8d8d8"
    shade = crc32(name.encode(errors="replace"))
    hue = 200 + shade % 20 if name.startswith(TOOL) else 18 + shade % 34
    return f"hsl({hue}, {70 + shade // 64 % 20}%, {66 + shade // 4096 % 12}%)"


def _safe(text: str) -> str:
    """Text for XML, which has no place for most control characters, not even escaped (XML 1.0, section 2.2)."""
    return escape(printable(text))
