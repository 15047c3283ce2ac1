"""``grami top``: what a running server does now, on one screen. Floor 17."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from grami_actors.census import ActorInfo
from grami_actors.cli.app import AsJson, Url, app, go, out
from grami_actors.client import Client, connect
from grami_actors.errors import ErrorCode, GramiError
from grami_actors.gateway.admin import Actors, ConnectionInfo, Connections, ServerStats
from grami_actors.logs import printable

MOST_ROWS = 20
"""Rows of a table where the screen has no end."""

NARROW = 100
"""Columns below which a screen is a narrow one."""

LONGEST_WORD = 21
"""Letters of a name that is not in the first column; an IPv4 address and its port fit."""

FOLDED = 5
"""Children of an actor that are shown one by one; more are added up in one line."""

REFUSED = "(refused)"
"""What stands for the type of a message that was refused: clients may make up any."""

_FINE = {"running": "green", "starting": "cyan", "restarting": "yellow", "suspended": "yellow"}
_LATE_MS = 50.0
_NEARLY_FULL, _HALF_FULL = 0.8, 0.5


class Snapshot(msgspec.Struct, frozen=True):
    """What a server said at one moment."""

    url: str
    stats: ServerStats
    actors: Actors
    connections: Connections


class Section(msgspec.Struct, frozen=True):
    """A table of the screen. A heading with ``>`` is one of numbers; one with ``?`` is left out of a narrow screen."""

    headings: tuple[str, ...]
    rows: Sequence[tuple[str | Text, ...]]


Interval = Annotated[float, typer.Option(help="Seconds between two looks.", min=0.1, max=60.0)]
Once = Annotated[bool, typer.Option("--once", help="Print one look and end; the default where there is no terminal.")]


@app.command()
def top(
    url: Url = None,
    once: Once = False,  # noqa: FBT002
    as_json: AsJson = False,  # noqa: FBT002
    interval: Interval = 1.0,
) -> None:
    """Show what a running server does: its actors, tools, connections and slow turns, until Ctrl-C.

    It takes a token with the scope `admin`, or the state directory of the server.
    """
    go(_top(url, once=once or not (out.is_terminal or as_json), as_json=as_json, interval=interval))


async def _top(url: str | None, *, once: bool, as_json: bool, interval: float) -> int:
    async with connect(url, retry_for=0.0) as grami:
        if as_json:
            await _print_lines(grami, once=once, interval=interval)
        elif once:
            out.print(screen(await look(grami), out.width))
        else:
            await _watch(grami, interval)
    return 0


async def _print_lines(grami: Client, *, once: bool, interval: float) -> None:
    while True:
        sys.stdout.write(msgspec.json.encode(await look(grami)).decode() + "\n")
        sys.stdout.flush()
        if once:
            return
        await asyncio.sleep(interval)


async def _watch(grami: Client, interval: float) -> None:
    with Live(console=out, screen=True, auto_refresh=False) as live:
        while True:
            snapshot = await look(grami)
            live.update(screen(snapshot, *out.size), refresh=True)
            await asyncio.sleep(interval)


async def look(grami: Client) -> Snapshot:
    """Ask for everything. Raises GramiError; see :func:`admin`."""
    stats, actors, connections = await asyncio.gather(
        admin(grami, "admin.stats"),
        admin(grami, "admin.actors", limit=1_000),
        admin(grami, "admin.connections", limit=50),
    )
    said = {"url": grami.url, "stats": stats, "actors": actors, "connections": connections}
    return msgspec.convert(said, Snapshot)


async def admin(grami: Client, kind: str, timeout: float | None = None, **fields: Any) -> Any:
    """Send an ``admin.*`` message. Raises GramiError, which says what to do where the sender may not."""
    try:
        return await grami.request(kind, timeout=timeout, **fields)
    except GramiError as error:
        if error.error_code != ErrorCode.PERMISSION_DENIED:
            raise
        raise GramiError(
            "this server lets only administrators look inside: run this in the directory where its state directory "
            "is, or set GRAMI_TOKEN to a token that has the scope 'admin'",
            code=error.error_code,
        ) from error


# --- the screen ---


def screen(snapshot: Snapshot, width: int, height: int | None = None) -> RenderableType:
    """The header and the tables, in as many lines as there are; without ``height`` in as many as it takes."""
    sections = [
        _actors(snapshot.actors.actors),
        _requests(snapshot.stats),
        _tools(snapshot.stats),
        _connections(snapshot.connections.connections),
        _slow_turns(snapshot.stats),
    ]
    sections = [section for section in sections if section.rows]
    header = _header(snapshot)
    wanted = [len(section.rows) for section in sections]
    room = None if height is None else height - len(header) - 2 * len(sections)
    parts: list[RenderableType] = [*header]
    for section, rows in zip(sections, allot(wanted, room), strict=True):
        if rows:
            parts += [Text(), _table(section, rows, width)]
    return Group(*parts)


def allot(wanted: Sequence[int], room: int | None) -> list[int]:
    """How many rows each table gets: in turn one more, the first one two, while there is room and it wants them."""
    if room is None:
        return [min(rows, MOST_ROWS) for rows in wanted]
    given = [0] * len(wanted)
    while room > 0 and given != list(wanted):
        for number in (0, *range(len(wanted))):
            if given[number] < wanted[number] and room > 0:
                given[number] += 1
                room -= 1
    return given


def _header(snapshot: Snapshot) -> list[Text]:
    stats = snapshot.stats
    lag = stats.loop_lag
    first = Text.assemble(
        (snapshot.url, "bold"), ("   up ", "dim"), duration(stats.uptime_ms), overflow="ellipsis", no_wrap=True
    )
    second = Text.assemble(
        (f"{stats.requests_per_second:g}", "bold"),
        (" requests/s   ", "dim"),
        (f"{stats.connections}", "bold"),
        (f" connection{'s' * (stats.connections != 1)}   ", "dim"),
        (f"{snapshot.actors.total}", "bold"),
        (" actors   loop lag ", "dim"),
        (f"{_ms(lag.p99_ms)}", "bold red" if lag.p99_ms >= _LATE_MS else "bold"),
        (f" p99, {_ms(lag.max_ms)} max", "dim"),
        overflow="ellipsis",
        no_wrap=True,
    )
    lines = [first, second]
    for title, counts in (("dead letters", stats.dead_letters), ("limits hit", stats.limits)):
        if counts:
            ordered = sorted(counts.items(), key=lambda item: -item[1])
            text = printable("  ".join(f"{name} {count}" for name, count in ordered))
            lines.append(Text.assemble((f"{title}: ", "dim"), (text, "yellow"), overflow="ellipsis", no_wrap=True))
    return lines


def _table(section: Section, rows: int, width: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold reverse", expand=True)
    shown = [at for at, heading in enumerate(section.headings) if width >= NARROW or "?" not in heading]
    for at in shown:
        heading = section.headings[at]
        table.add_column(
            heading.lstrip(">?"),
            justify="right" if ">" in heading else "left",
            ratio=None if at else 1,  # the first column takes what is left
            max_width=LONGEST_WORD if at else None,
            no_wrap=True,
        )
    for row in section.rows[:rows]:
        cells = [row[at] for at in shown]
        table.add_row(*(Text(printable(cell)) if isinstance(cell, str) else cell for cell in cells))
    hidden = len(section.rows) - rows
    if hidden > 0:
        table.columns[0].header = Text(f"{section.headings[0]} (+{hidden})")
    return table


def _actors(actors: Sequence[ActorInfo]) -> Section:
    lines = sorted(_fold(actors), key=lambda each: (-each.mailbox.depth, -each.restarts, each.name))
    return Section(
        ("actor", "?kind", "lane", "state", ">mailbox", ">?peak", ">restarts"),
        [
            (
                each.name,
                each.kind,
                each.lane,
                Text(each.state, _FINE.get(each.state, "red")),
                _mailbox(each),
                f"{each.mailbox.peak}",
                Text(f"{each.restarts}", "yellow" if each.restarts else ""),
            )
            for each in lines
        ],
    )


def _mailbox(each: ActorInfo) -> Text:
    queue = each.mailbox
    share = (queue.depth + queue.parked) / queue.capacity
    style = "red" if share >= _NEARLY_FULL else "yellow" if share >= _HALF_FULL else ""
    return Text(f"{queue.depth}{f'+{queue.parked}' * bool(queue.parked)}/{queue.capacity}", style)


def _fold(actors: Sequence[ActorInfo]) -> list[ActorInfo]:
    """All actors of a tree in one list; where one has many below it, they are added up in its own line."""
    found: list[ActorInfo] = []
    for each in actors:
        family = list(_family(each))
        if len(family) <= FOLDED + 1:
            found += family
            continue
        worst = next((one.state for one in family if one.state not in _FINE), None)
        worst = worst or next((one.state for one in family if one.state != "running"), each.state)
        mailbox = msgspec.structs.replace(
            each.mailbox,
            depth=sum(one.mailbox.depth for one in family),
            parked=sum(one.mailbox.parked for one in family),
            peak=max(one.mailbox.peak for one in family),
            capacity=sum(one.mailbox.capacity for one in family),
        )
        found.append(
            msgspec.structs.replace(
                each,
                name=f"{each.name} (and {len(family) - 1} below)",
                state=worst,
                restarts=sum(one.restarts for one in family),
                mailbox=mailbox,
            )
        )
    return found


def _family(actor: ActorInfo) -> Iterator[ActorInfo]:
    yield actor
    for child in actor.children:
        yield from _family(child)


def _requests(stats: ServerStats) -> Section:
    rows = [
        (name or REFUSED, f"{each.count}", _errors(each.errors), _ms(each.p50_ms), _ms(each.p95_ms), _ms(each.p99_ms))
        for name, each in stats.requests.items()
        if not name.startswith("admin.")  # our own
    ]
    return Section(("request", ">answered", ">errors", ">p50", ">p95", ">p99"), rows)


def _tools(stats: ServerStats) -> Section:
    rows = [
        (
            name,
            f"{each.calls}",
            _errors(each.errors),
            _ms(each.queue_p95_ms),
            _ms(each.p50_ms),
            _ms(each.p95_ms),
            _ms(each.p99_ms),
        )
        for name, each in stats.tools.items()
    ]
    return Section(("tool", ">calls", ">errors", ">wait p95", ">p50", ">p95", ">p99"), rows)


def _connections(connections: Sequence[ConnectionInfo]) -> Section:
    rows = [
        (
            each.id,
            each.principal,
            each.peer,
            duration(each.age_ms),
            f"{each.inflight}",
            size(each.outbox_bytes),
            f"{each.received}",
            f"{each.sent}",
        )
        for each in connections
    ]
    return Section(("connection", "principal", "peer", ">?age", ">in flight", ">unread", ">?in", ">?out"), rows)


def _slow_turns(stats: ServerStats) -> Section:
    rows = [
        (each.where, each.actor, Text(_ms(each.ms), "yellow"), f"{duration(each.age_ms)} ago")
        for each in stats.slow_turns
    ]
    return Section(("slow turn", "actor", ">took", ">when"), rows)


def _errors(count: int) -> Text:
    return Text(f"{count}", "red" if count else "")


def _scaled(steps: Sequence[tuple[float, str]], value: float) -> str:
    """A value in the largest unit that leaves it at least 1."""
    size, unit = next((step for step in steps if value >= step[0]), steps[-1])
    number = value / size
    return f"{number:.3g} {unit}" if number < 1_000 else f"{number:.0f} {unit}"  # noqa: PLR2004 - three digits


def _ms(milliseconds: float) -> str:
    return "0" if not milliseconds else _scaled(((1_000, "s"), (1, "ms"), (0.001, "µs")), milliseconds)


def size(count: int) -> str:
    """Bytes, in the largest unit that leaves at least 1."""
    return "0" if not count else _scaled(((1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B")), count)


def duration(milliseconds: int) -> str:
    """Days, hours, minutes or seconds; the two largest that there are."""
    seconds = milliseconds // 1000
    units: list[tuple[int, str]] = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")]
    parts: list[str] = []
    for size, unit in units:
        if seconds >= size or parts:
            parts.append(f"{seconds // size}{unit}")
            seconds %= size
    return " ".join(parts[:2]) or "0s"
