"""``grami run``: the scenarios of a file, on a real server or in simulation. Floor 17."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import shlex
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from grami_actors.cli.app import AsJson, File, app, err, go, kept_clear, out, print_json, set_log_level
from grami_actors.cli.replay import Html, check_page, write_page
from grami_actors.cli.serve import Record, log_of
from grami_actors.config import Config, load
from grami_actors.history import AnyEntry, History
from grami_actors.manager import GrowthManager
from grami_actors.scenario import script as scripts
from grami_actors.scenario.explore import Crew, Report, Wanted, explore, report_of
from grami_actors.scenario.lines import Check, Line, how_short, many, never_struck
from grami_actors.scenario.play import Mode, Result, seeds_of
from grami_actors.scenario.terminal import Terminal, summarise
from grami_actors.simulation.rules import PROFILES
from grami_actors.telemetry import Doubted

MOST_LINES = 1_000
"""Lines of a transcript that are shown of a single seed."""

SEEDS = 1_000
"""Seeds of each scenario, if nobody says how many."""

Simulate = Annotated[
    bool, typer.Option("--simulate", help="Play in virtual time, on schedules that are drawn from seeds.")
]

_OWN: dict[str, Any] = {
    name: getattr(Config(), name)
    for name in ("host", "port", "reuse_port", "tls_cert", "tls_key", "auth", "rules", "rates")
}
"""What the server of a scenario does not take from variables and the file."""


@app.command()
def run(
    file: File,
    names: Annotated[list[str] | None, typer.Argument(help="Which scenarios; all if none is named.")] = None,
    simulate: Simulate = False,  # noqa: FBT002
    seeds: Annotated[
        int | None, typer.Option(help=f"Simulate: how many seeds. (default: {SEEDS}, or what the scenario says)", min=1)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Simulate: only this one, and show what happens.", min=0, metavar="S")
    ] = None,
    faults: Annotated[
        str, typer.Option(help=f"Simulate: what goes wrong: {', '.join(PROFILES)}.", metavar="PROFILE")
    ] = "none",
    jobs: Annotated[int | None, typer.Option(help="Simulate: processes. (default: one per processor)", min=1)] = None,
    record: Record = None,
    html: Html = None,
    as_json: AsJson = False,  # noqa: FBT002
    log_level: Annotated[
        str | None, typer.Option("--log-level", help="Log to standard error, from DEBUG, INFO, WARNING or ERROR on.")
    ] = None,
) -> None:
    """Play the scenarios of a file: real clients, a real WebSocket, a live transcript.

    With --simulate the same scenarios are played in virtual time, thousands of times, each time with another order of
    what happens, and with faults if you ask for them. A run that fails is shown as short as it can be made, and its
    seed plays it again. The exit code is 1 when a check fails.

    For example: grami run scenarios/content_swarm.py three_clients_at_once

    Or: grami run scenarios/content_swarm.py --simulate --seeds 500 --faults crash

    Or, one run again, exactly: grami run scenarios/content_swarm.py a_writer_dies --simulate --seed 17
    """
    if not simulate and (seeds, seed, faults, jobs) != (None, None, "none", None):
        raise typer.BadParameter("--seeds, --seed, --faults and --jobs belong to --simulate: add it")
    _refuse(recorded=simulate and record is not None, repeated=seed is not None and (seeds, jobs) != (None, None))
    if faults not in PROFILES:
        raise typer.BadParameter(f"{faults!r} is no profile of faults; there are {', '.join(PROFILES)}")
    if log_level is not None:
        set_log_level(log_level)
    check_page(html, file, record)
    script = scripts.load(file)
    mode: Mode = "simulated" if simulate else "live"
    chosen = scripts.choose(script, names or (), mode)
    if not names and (left := [each.__name__ for each in script.scenarios if each not in chosen]):
        err.print(f"left out, marked @scenario({mode}=False): {', '.join(left)}", style="dim", soft_wrap=True)
    if not simulate:
        go(_run(script, names or [], record, html, as_json=as_json, log=log_level is not None))
    wanted = {Wanted(str(file), each.__name__, faults): seeds or seeds_of(each) or SEEDS for each in chosen}
    if seed is not None:
        raise typer.Exit(_replay(wanted, seed, html, as_json=as_json))
    raise typer.Exit(_explore(wanted, jobs, html, as_json=as_json))


def _refuse(*, recorded: bool, repeated: bool) -> None:
    """Refuse what would be ignored."""
    if recorded:
        raise typer.BadParameter("--record writes down a real run: leave out --simulate")
    if repeated:
        raise typer.BadParameter("--seed plays one run: leave out --seeds and --jobs")


async def _run(
    script: scripts.Script, names: list[str], record: Path | None, html: Path | None, *, as_json: bool, log: bool
) -> int:
    # A scenario's server is its own: where another one listens, and who may come to it, is not for its clients.
    config = msgspec.structs.replace(load(), **_OWN)
    console = err if as_json else out
    logs = []
    kept = _Kept(pages=html is not None)

    def tell() -> None:
        if as_json:
            print_json(kept.results)
        else:
            summarise(console, tuple(kept.results))
        if html is not None and kept.history is not None:
            facts = {each.scenario: "passed" if each.passed else "failed" for each in kept.results}
            write_page(html, script.path.name, kept.history.entries, {"mode": "live", **facts})

    with contextlib.ExitStack() as told, kept_clear(wanted=as_json), Terminal(console) as terminal:

        def watch(event: Any) -> None:
            if log and isinstance(event, GrowthManager):
                logs.append(log_of(event))
            elif isinstance(event, GrowthManager):
                event.system.bus.subscribe(lambda doubted: err.print(doubted.text, markup=False), Doubted)
            kept(event)
            terminal(event)

        try:
            await scripts.run(script, names, config, watch, record)
        except asyncio.CancelledError:
            told.callback(err.print, f"stopped in {kept.playing}", style="bold red")
            told.callback(tell)  # what there is: a run that had to be stopped is to be understood, too
            raise
    tell()
    return 0 if all(result.passed for result in kept.results) else 1


class _Kept:
    """What happens on a real server, and how its scenarios end.

    Args:
        pages: whether its history is wanted.
    """

    def __init__(self, *, pages: bool) -> None:
        self.history: History | None = None
        self.results: list[Result] = []
        self.playing = ""
        self._pages = pages

    def __call__(self, event: Any) -> None:
        if isinstance(event, Result):
            self.results.append(event)
        elif inspect.isfunction(event):
            self.playing = event.__name__
        if isinstance(event, GrowthManager) and self._pages:
            self.history = History(event.system.bus, event.system.now)


class _Page:
    """The page of simulated runs: of the first scenario that fails, else of the first.

    Args:
        path: where to write it; ``None`` for nowhere.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._report: Report | None = None
        self._entries: list[AnyEntry] = []

    def keep(self, report: Report, entries: list[AnyEntry]) -> None:
        """Look at one scenario's run."""
        if self._report is None or (self._report.passed and not report.passed):
            self._report, self._entries = report, entries

    def write(self) -> None:
        """Write it, if it is wanted."""
        report = self._report
        if self._path is None or report is None:
            return
        facts = {"mode": report.mode, "faults": report.faults, "digest": report.digest[:16]}
        facts |= {"seeds": f"{report.seeds:,}"}
        if not report.passed:
            facts |= {"failed seed": str(report.failed_seed), "error": report.error}
        write_page(self._path, report.scenario, self._entries, facts)


def _replay(wanted: Iterable[Wanted], seed: int, html: Path | None, *, as_json: bool) -> int:
    """Play one seed of each scenario, and show what happens."""
    console = err if as_json else out
    reports = []
    page = _Page(html)
    for each in wanted:
        kept: list[AnyEntry] = []
        with kept_clear(wanted=as_json), Terminal(console) as terminal:
            terminal.title(each.scenario)
            show = _Bounded(terminal)
            report = report_of(each, seed, show, kept)
            show.end(console)
        reports.append(report)
        page.keep(report, kept)
        _tell(report, None, console, as_json=as_json)
    page.write()
    return 0 if all(report.passed for report in reports) else 1


class _Bounded:
    """Shows so much that it can be read: a run of ten thousand agents has half a million lines."""

    def __init__(self, show: Callable[[Any], None]) -> None:
        self._show = show
        self._count = 0

    def __call__(self, event: Any) -> None:
        self._count += isinstance(event, Line)
        if self._count <= MOST_LINES or isinstance(event, Check):
            self._show(event)

    def end(self, console: Console) -> None:
        if self._count > MOST_LINES:
            console.print(f"       … and {self._count - MOST_LINES:,} lines more", style="dim")


def _explore(wanted: dict[Wanted, int], jobs: int | None, html: Path | None, *, as_json: bool) -> int:
    console = err if as_json else out
    passed = True
    page = _Page(html)
    with Crew(jobs or os.cpu_count() or 1) as crew:
        for each, seeds in wanted.items():
            with _progress(console) as progress:
                bar = progress.add_task(each.scenario, total=seeds)
                kept: list[AnyEntry] | None = None if html is None else []
                try:
                    with kept_clear(wanted=as_json):
                        report = explore(crew, each, seeds, partial(_advance, progress, bar), kept)
                except KeyboardInterrupt:
                    done = int(progress.tasks[bar].completed)
                    err.print(
                        f"stopped: {each.scenario} has been played on {done:,} of {seeds:,} seeds", soft_wrap=True
                    )
                    raise
            passed &= report.passed
            page.keep(report, kept or [])
            _tell(report, each, console, as_json=as_json)
    page.write()
    return 0 if passed else 1


def _progress(console: Console) -> Progress:
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left:"), TimeRemainingColumn())
    shown = TextColumn("{task.description}"), *columns
    return Progress(*shown, console=console, transient=True, disable=not console.is_terminal)


def _advance(progress: Progress, bar: TaskID, done: int) -> None:
    progress.update(bar, completed=done)


def _tell(report: Report, wanted: Wanted | None, console: Console, *, as_json: bool) -> None:
    """Print what came of a scenario; ``wanted`` is what to play again, unless that was just done."""
    if as_json:
        print_json(report)
        return
    whole = not console.is_terminal  # other programs get lines as they are
    mark = Text("✓ ", "green") if report.passed else Text("✗ ", "bold red")
    histories = many(report.distinct_histories, "distinct history", "distinct histories")
    pace = f"{report.seeds:,} seeds, {report.schedules_per_second:,.0f}/s, {histories}, "
    facts = (
        f"  {pace if report.seeds > 1 else ''}"
        f"{_time(report.virtual_seconds)} of virtual time in {report.wall_seconds:.1f} s, digest {report.digest[:16]}"
    )
    console.print(Text.assemble(mark, (report.scenario, "bold"), (facts, "dim")), soft_wrap=whole)
    if report.unused:
        console.print(Text.assemble(("faults ", "bold yellow"), never_struck(report.unused)), soft_wrap=whole)
    if report.passed:
        return
    for line in report.transcript:
        failed = line.lstrip().startswith("FAILED")
        # In a terminal each is one line, as it is of a real run; but what failed is said to its end.
        short = console.is_terminal and not failed
        console.print(Text(line, "red" if failed else "", overflow="ellipsis"), no_wrap=short, soft_wrap=whole)
    console.print(
        Text.assemble(("failed ", "bold red"), (f"seed {report.failed_seed}: ", "bold"), report.error), soft_wrap=whole
    )
    if report.transcript:
        console.print(how_short(report.preemptions, report.faults_struck), style="dim", soft_wrap=whole)
    if wanted is None:
        return
    again = ["grami", "run", wanted.path, wanted.scenario, "--simulate", "--seed", str(report.failed_seed)]
    again += ["--faults", wanted.faults] if wanted.faults != "none" else []
    console.print(Text.assemble(("play it again: ", "dim"), shlex.join(again)), soft_wrap=True)


def _time(seconds: float) -> str:
    if seconds < 120:  # noqa: PLR2004
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"  # noqa: PLR2004
