"""``grami state``: look after the folder in which a server keeps its jobs. Floor 17."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.table import Table
from rich.text import Text

from grami_actors.cli.app import AsJson, err, harmless, out, print_json
from grami_actors.cli.app import app as root
from grami_actors.cli.job_screen import state_text
from grami_actors.cli.jobs import seconds
from grami_actors.cli.top import size
from grami_actors.config import load
from grami_actors.errors import ConfigError
from grami_actors.jobs.retention import Keep
from grami_actors.jobs.sqlite import SqliteStore
from grami_actors.jobs.state_dir import NOT_BACKED_UP, Checked, StateDirectory, retire

state = typer.Typer(
    help="""Look after the folder in which a server keeps its jobs: check it, copy it, make room in it.

    \b
    grami state check                       is all of it whole?
    grami state backup /backups/monday      copy it, also while the server runs
    grami state gc --results 1d             forget old results; no server runs
    """,
    no_args_is_help=True,
)
root.add_typer(state, name="state")

Directory = Annotated[
    Path | None, typer.Option("--state-dir", help="The folder. (default: GRAMI_STATE_DIR, grami.toml, .grami)")
]
_NAMED = 10
"""Jobs of a kind that are told by name."""


@state.command()
def check(state_dir: Directory = None, as_json: AsJson = False) -> None:  # noqa: FBT002
    """Look whether everything is there and whole, also while a server runs; ends with 1 if it is not.

    For example: grami state check --state-dir /var/lib/grami
    """
    directory = _directory(state_dir)
    checked = directory.check()
    if as_json:
        print_json({"state_dir": str(directory.path), "sound": checked.sound, **msgspec.structs.asdict(checked)})
    else:
        _show(directory, checked)
    raise typer.Exit(0 if checked.sound else 1)


def _show(directory: StateDirectory, checked: Checked) -> None:
    sound = Text("sound", "green") if checked.sound else Text("damaged", "bold red")
    out.print(Text.assemble((str(directory.path), "bold"), " is ", sound), soft_wrap=True)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("size", size(checked.bytes))
    counts = [Text.assemble(state_text(name), f" {count}") for name, count in checked.states.items()]
    none = "none" if checked.sound else "cannot be read"
    table.add_row("jobs", Text(", ").join(counts) if counts else none)
    for damage in checked.damages:
        table.add_row("damage", Text(harmless(damage), "red"))
    for title, names in (("without files", checked.missing), ("files of no job", checked.strays)):
        if names:
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            table.add_row(title, Text(harmless(", ".join(names[:_NAMED])) + more))
    out.print(table)
    if not checked.sound:
        words = "stop the server, keep a copy of the folder as it is, and put the last backup in its place"
        err.print(Text(f"what to do: {words}"), soft_wrap=not err.is_terminal)
    elif checked.strays:
        err.print(Text("`grami state gc` removes the files of no job", "dim"), soft_wrap=True)


@state.command()
def backup(
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A folder that is not there yet, or empty.")],
    state_dir: Directory = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Copy the folder, also while a server runs; a server can be started on the copy.

    For example: grami state backup /backups/monday
    """
    directory = _directory(state_dir)
    copied = directory.backup(target)
    if as_json:
        print_json({"state_dir": str(directory.path), "target": str(target), "bytes": copied})
        return
    err.print(Text(f"copied {size(copied)} to {target}"), soft_wrap=True)
    err.print(Text(f"not in it: {'; '.join(NOT_BACKED_UP)}", "dim"), soft_wrap=not err.is_terminal)


@state.command()
def gc(
    results: Annotated[
        str | None, typer.Option(metavar="TIME", help="Keep results, logs and files so long. (default: 7d)")
    ] = None,
    keys: Annotated[
        str | None, typer.Option(metavar="TIME", help="Keep what became of a job so long. (default: 30d)")
    ] = None,
    state_dir: Directory = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Forget jobs that ended long ago, and remove files that belong to none. Never a job that is not at its end.

    A running server does that by itself; this is for one that is stopped.

    For example: grami state gc --results 1d --keys 7d
    """
    default = Keep()
    keep = Keep(
        results=default.results if results is None else seconds(results, "--results"),
        keys=default.keys if keys is None else seconds(keys, "--keys"),
    )
    directory = _directory(state_dir)
    if not directory.database.is_file():
        raise ConfigError(f"{directory.path} is no state directory: it has no {directory.database.name}")
    directory.lock()
    try:
        forgotten, removed = _collect(directory, keep)
    finally:
        directory.release()
    if as_json:
        print_json({"state_dir": str(directory.path), "forgotten": forgotten, "folders_removed": removed})
    else:
        err.print(Text(f"forgot results or all of {forgotten} jobs, and removed {removed} folders"), soft_wrap=True)


def _collect(directory: StateDirectory, keep: Keep) -> tuple[int, int]:
    """How many jobs were forgotten, and how many folders removed."""
    now = time.time()
    store = SqliteStore(directory.database)
    store.open()
    try:
        forgotten: set[str] = set()
        removed = 0
        while gone := retire(store, now, keep):  # so many at once
            forgotten.update(gone)
            removed += len(directory.remove(gone))
        removed += len(directory.gc(store, now, keep))
    finally:
        store.close()
    return len(forgotten), removed


def _directory(given: Path | None) -> StateDirectory:
    return StateDirectory(load(state_dir=given).state_dir)
