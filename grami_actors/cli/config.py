"""``grami config``: the effective settings, and where each came from. Floor 17."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.table import Table
from rich.text import Text

from grami_actors.cli.app import AsJson, app, out
from grami_actors.config import DEFAULT, Settings, descriptions, read

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="A file with settings. (default: GRAMI_CONFIG, grami.toml in this directory)"),
]


@app.command()
def config(
    file: ConfigFile = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Tell what each setting means.")] = False,  # noqa: FBT002
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Show the settings that a server started here would have, and where each comes from.

    An option of `grami serve` beats a variable, which beats the file, which beats the default.
    """
    settings = read(file=file)
    if as_json:
        values = {
            name: {"value": getattr(settings.config, name), "source": source}
            for name, source in settings.sources.items()
        }
        sys.stdout.write(msgspec.json.encode(values, enc_hook=str).decode() + "\n")
    else:
        out.print(_table(settings, descriptions() if verbose else {}))


def _table(settings: Settings, meanings: dict[str, str]) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for heading in ("setting", "value", "from", "meaning")[: 4 if meanings else 3]:
        table.add_column(heading, overflow="fold")
    for name, source in settings.sources.items():
        style = "dim" if source == DEFAULT else "bold green"
        meaning = (Text(meanings.get(name, "").replace("``", "`")),) if meanings else ()
        value = _written(getattr(settings.config, name))
        table.add_row(Text(name, style), Text(value, style), Text(source, style), *meaning)
    return table


def _written(value: Any) -> str:
    """A value as a person would write it."""
    if isinstance(value, tuple):
        return "\n".join(map(_written, value)) or "none"
    if isinstance(value, msgspec.Struct):
        return msgspec.json.encode(value).decode()
    if isinstance(value, bool):
        return "true" if value else "false"
    return "none" if value in {None, ""} else str(value)
