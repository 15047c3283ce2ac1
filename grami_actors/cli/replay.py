"""``grami replay`` and ``grami report``: what was recorded, played again, and looked at. Floor 17."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.text import Text

from grami_actors.cli.app import AsJson, app, go, kept_clear, out, print_json, print_table
from grami_actors.cli.config import ConfigFile
from grami_actors.config import Config, load
from grami_actors.errors import ConfigError
from grami_actors.history import AnyEntry, Framed, Life, Lost, Ran, Told, Wrote
from grami_actors.recording import report as page
from grami_actors.recording.against import Against, against
from grami_actors.recording.replay import Replayed
from grami_actors.recording.replay import replay as play
from grami_actors.recording.tape import Tape
from grami_actors.scenario import script as scripts
from grami_actors.scenario.lines import many

SLOWEST = 5
"""Handlers that a summary names."""

Recording = Annotated[Path, typer.Argument(help="A recording, of `grami run --record` or `grami serve --record`.")]
Html = Annotated[Path | None, typer.Option("--html", help="Write one self-contained page: what happened, and when.")]

_COLOURS = {"same": "green", "changed": "yellow", "error": "bold red", "missing": "bold red"}


@app.command()
def replay(
    recording: Recording,
    swarm: Annotated[
        Path | None, typer.Option("--swarm", help="The file of the swarm, if it is no longer where it was.")
    ] = None,
    against_file: Annotated[
        Path | None,
        typer.Option("--against", metavar="FILE", help="Send what the clients sent to the swarm of this file instead."),
    ] = None,
    config: ConfigFile = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Play a recording again, without its model and its tools, and stop at the first difference.

    The exit code is 1 if there is one: the agents are no longer what they were. With --against the clients' requests
    are answered by other agents, and each answer is compared; what the recorded model and tools were not asked for is
    asked of the swarm's own.

    For example: grami replay run.jsonl

    Or: GRAMI_MODEL=scripted grami replay run.jsonl --against changed.py
    """
    if swarm is not None and against_file is not None:
        raise typer.BadParameter("--swarm and --against both name the swarm: give one of them")
    tape = Tape(recording)
    settings = msgspec.structs.replace(load(file=config), auth=())
    if against_file is not None:
        go(_against(tape, against_file, settings, as_json=as_json))
    file = swarm or Path(tape.header.file)
    if swarm is None and not file.is_file():
        raise ConfigError(f"there is no file {file}, of which the recording is: say where it is now, with --swarm")
    script = scripts.load(file)
    with kept_clear(wanted=as_json):
        replayed = play(tape, script.swarm, settings)
    raise typer.Exit(_tell(replayed, as_json=as_json))


def _tell(replayed: Replayed, *, as_json: bool) -> int:
    found = replayed.difference
    if as_json:
        data = msgspec.to_builtins(replayed)
        if found is not None:
            data["difference"]["diff"] = found.lines()
        print_json(data)
        return 0 if replayed.same else 1
    messages = many(replayed.messages, "message")
    facts = f"{messages} and {many(replayed.requests, 'frame')} of clients in {replayed.seconds:.3f} s"
    if found is None:
        cut = ", as far as the recording goes: it has no end" if replayed.cut else ""
        out.print(Text.assemble(("✓ ", "green"), f"as recorded: {facts}{cut}"), soft_wrap=True)
        return 0
    first = f" after {messages}, at {found.at:.6f} s: {found.where}"
    out.print(Text.assemble(("✗ ", "bold red"), ("the first difference", "bold"), first), soft_wrap=True)
    _print_diff(found.lines())
    return 1


async def _against(tape: Tape, file: Path, settings: Config, *, as_json: bool) -> int:
    with kept_clear(wanted=as_json):
        result = await against(tape, scripts.load(file).swarm, settings)
    if as_json:
        print_json({"same": result.same, **msgspec.to_builtins(result)})
    else:
        _tell_against(result)
    return 0 if result.same else 1


def _tell_against(result: Against) -> None:
    rows = [(each.verdict, each.connection, each.request, each.type) for each in result.requests]
    print_table("requests", ("", "connection", "id", "type"), rows)
    for each in result.requests:
        if each.verdict != "same":
            title = f"{each.connection}, request {each.request} ({each.type}): {each.verdict}"
            out.print()
            out.print(Text(title, _COLOURS[each.verdict]), soft_wrap=True)
            _print_diff(each.lines())
    counts = Counter(each.verdict for each in result.requests)
    out.print()
    out.print(Text(", ".join(f"{count:,} {verdict}" for verdict, count in counts.items()) or "no requests"))
    out.print(f"calls of models and tools: {result.recorded_calls:,} answered from the recording, ", end="")
    out.print(f"{result.other_calls:,} not in it, and done", soft_wrap=True)


def _print_diff(lines: list[str]) -> None:
    colours = {"+": "green", "-": "red", "@": "cyan"}
    for line in lines:
        out.print(Text(f"  {line}", colours.get(line[:1], "")), soft_wrap=True)


class Summary(msgspec.Struct, frozen=True):
    """What a recording holds.

    Attributes:
        file: of the swarm.
        mode: ``live`` or ``simulated``.
        begun: when, in UTC (RFC 3339).
        seconds: that it took.
        whole: whether it goes to the end of the run.
        actors: that took messages.
        messages: that they took.
        requests: frames of clients.
        model_calls: answers of language models.
        tool_calls: calls of tools.
        dead_letters: messages that nobody took.
        restarts: of actors that had failed.
        errors: messages that failed, by their code.
        slowest: the handlers that took longest: actor, message and seconds.
    """

    file: str
    mode: str
    begun: str
    seconds: float
    whole: bool
    actors: int
    messages: int
    requests: int
    model_calls: int
    tool_calls: int
    dead_letters: int
    restarts: int
    errors: dict[str, int]
    slowest: tuple[tuple[str, str, float], ...]


def summary_of(tape: Tape) -> Summary:
    """Count what is in a recording, of which nothing is kept meanwhile."""
    kinds: Counter[type[AnyEntry]] = Counter()
    errors: Counter[str] = Counter()
    actors: set[str] = set()
    slowest: list[tuple[str, str, float]] = []
    seconds, requests, restarts = 0.0, 0, 0
    for entry in tape:
        kinds[type(entry)] += 1
        seconds = max(seconds, entry.at)
        requests += isinstance(entry, Framed) and entry.way == "in"
        restarts += isinstance(entry, Life) and entry.stage == "restarted"
        if isinstance(entry, Told):
            actors.add(entry.to)
            errors[entry.outcome] += entry.outcome != "ok"
            took = entry.to, entry.type, round(entry.at - entry.taken, 6)
            if len(slowest) < SLOWEST or took[2] > slowest[-1][2]:
                slowest = sorted([*slowest, took], key=lambda each: -each[2])[:SLOWEST]
    return Summary(
        file=tape.header.file,
        mode=tape.header.mode,
        begun=tape.header.begun.isoformat(),
        seconds=round(seconds, 6),
        whole=tape.end is not None and not tape.end.text,
        actors=len(actors),
        messages=kinds[Told],
        requests=requests,
        model_calls=kinds[Wrote],
        tool_calls=kinds[Ran],
        dead_letters=kinds[Lost],
        restarts=restarts,
        errors={code: count for code, count in errors.most_common() if count},
        slowest=tuple(slowest),
    )


@app.command()
def report(recording: Recording, html: Html = None, as_json: AsJson = False) -> None:  # noqa: FBT002
    """Say what a recording holds, and draw it as a page.

    For example: grami report run.jsonl --html run.html
    """
    check_page(html, recording)
    tape = Tape(recording)
    summary = summary_of(tape)
    if html is not None:
        facts = {"swarm": summary.file, "begun": summary.begun, "mode": summary.mode}
        write_page(html, recording.name, tape, facts)
    if as_json:
        print_json(msgspec.to_builtins(summary))
        return
    for name, value in msgspec.to_builtins(summary).items():
        if name not in {"errors", "slowest"}:
            shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
            out.print(Text.assemble((f"{name.replace('_', ' '):>12}  ", "dim"), shown), soft_wrap=True)
    print_table("errors", ("code", "messages"), [(code, str(count)) for code, count in summary.errors.items()])
    slowest = [(actor, kind, f"{seconds * 1000:,.1f} ms") for actor, kind, seconds in summary.slowest]
    print_table("slowest", ("actor", "message", "took"), slowest)


def check_page(html: Path | None, *others: Path | None) -> None:
    """See that a page can be written, before the work for it is done. Raises ConfigError, BadParameter."""
    if html is None:
        return
    if any(other is not None and html.resolve() == other.resolve() for other in others):
        raise typer.BadParameter(f"--html would overwrite {html}: give the page a file of its own")
    folder = html.parent
    if not folder.is_dir():
        raise ConfigError(f"{html} cannot be written: there is no folder {folder}")
    if html.is_dir() or not os.access(html if html.exists() else folder, os.W_OK):
        raise ConfigError(f"{html} cannot be written: {'it is a folder' if html.is_dir() else 'it may not be'}")


def write_page(path: Path, title: str, entries: Any, facts: dict[str, str]) -> None:
    """Write the page of a run. Raises ConfigError: the file cannot be written."""
    try:
        page.write(path, title, entries, facts=facts)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
