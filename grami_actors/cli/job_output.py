"""``grami jobs logs`` and ``grami jobs artifact``: what a job prints, and the files that it makes. Floor 17."""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO

import typer
from rich.text import Text

from grami_actors.cli.app import AsJson, Url, err, go, out, print_json, print_table
from grami_actors.cli.job_screen import shown
from grami_actors.cli.jobs import RETRY_FOR, JobId, found, jobs
from grami_actors.cli.top import size
from grami_actors.errors import ConfigError, GramiError
from grami_actors.job_client import RemoteJob

_BYTES_OF_A_LINE = 1_024
"""So many are asked for, for each of the last lines; if that is too little, all are."""


@jobs.command()
def logs(
    job: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,  # noqa: FBT002
    attempt: Annotated[
        int, typer.Option(metavar="N", help="Of which attempt. (default: the last)", min=0, show_default=False)
    ] = 0,
    tail: Annotated[int | None, typer.Option(metavar="LINES", help="Only the last lines, so many.", min=0)] = None,
    url: Url = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Print what a job printed.

    A pipe gets the bytes as they are, a terminal none that would steer it. What was dropped, because it was too much
    to be kept, is told on standard error.
    With --json each piece is a line, with the `offset` of its first byte.

    For example: grami jobs logs job_01k9 --tail 20 -f
    """
    go(_logs(url, job, (attempt, tail, follow), as_json=as_json))


async def _logs(url: str | None, text: str, wanted: tuple[int, int | None, bool], *, as_json: bool) -> int:
    attempt, tail, follow = wanted
    async with found(url, text, retry_for=RETRY_FOR if follow else 0.0, encoding="msgpack") as job:
        if attempt > shown(job)["attempt"]:
            flaw = f"{job.id} has not come to attempt {attempt}, it is at {shown(job)['attempt']}"
            raise typer.BadParameter(flaw, param_hint="--attempt")
        printer = _Printer(as_json=as_json)
        offset = 0
        if tail is not None:
            data, offset = await _read_last(job, attempt, tail)
            printer.write(data, offset - len(data))
            if not follow:
                return 0
        async with contextlib.aclosing(job.pieces(follow=follow, offset=offset, attempt=attempt)) as pieces:
            async for piece in pieces:
                printer.dropped(piece.dropped)
                printer.write(piece.data, piece.offset)
    return 0


async def _read_last(job: RemoteJob, attempt: int, count: int) -> tuple[bytes, int]:
    """The last lines of a log as it is now, and where they end."""
    known = shown(job).get("log_bytes", 0) if attempt in {0, shown(job)["attempt"]} else 0
    begin = max(0, known - (count + 1) * _BYTES_OF_A_LINE)
    while True:
        parts, offset = [], begin
        async with contextlib.aclosing(job.pieces(offset=begin, attempt=attempt)) as pieces:
            async for piece in pieces:
                parts.append(piece.data)
                offset = piece.offset + len(piece.data)
        data = b"".join(parts)
        lines = last_lines(data, count)
        if lines is not None or not begin:
            return data if lines is None else lines, offset
        begin = 0


def last_lines(data: bytes, count: int) -> bytes | None:
    """The last lines; ``None``, if nothing is before them: then the first may be a part of one."""
    at = len(data.removesuffix(b"\n"))
    for _ in range(count):
        at = data.rfind(b"\n", 0, max(0, at))
    return None if at < 0 else data[at + 1 :]


class _Printer:
    """Puts a log on standard output."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode

    def dropped(self, count: int) -> None:
        """Say that something is missing here."""
        if count and self._as_json:
            print_json({"dropped": count})
        elif count:
            err.print(Text(f"[{size(count)} of output were dropped here]", "yellow"))

    def write(self, data: bytes, offset: int) -> None:
        """Print some bytes."""
        if not data:
            return
        if self._as_json:
            print_json({"offset": offset, "bytes": len(data), "text": self._decode(data)})
        elif out.is_terminal:
            out.print(Text(self._decode(data).replace("\r\n", "\n")), end="", soft_wrap=True)
        else:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()


@jobs.command()
def artifact(
    job: JobId,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Which file; without it they are listed.")] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="Where to; - prints it. (default: its name)")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file, if there is one.")] = False,  # noqa: FBT002
    url: Url = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """List the files that a job made, or fetch one of them.

    For example: grami jobs artifact job_01k9 film.mp4 -o /tmp/film.mp4
    """
    if name is None:
        go(_artifacts(url, job, as_json=as_json))
    go(_fetch(url, job, (name or "", output or (name or ""), force), as_json=as_json))


async def _artifacts(url: str | None, text: str, *, as_json: bool) -> int:
    async with found(url, text) as job:
        kept: dict[str, int] = shown(job).get("artifacts") or {}
        if as_json:
            print_json({"job_id": job.id, "artifacts": kept})
        elif kept:
            print_table("artifacts", ("name", "size"), [(name, size(count)) for name, count in kept.items()])
        else:
            err.print(Text(f"{job.id} made no files", "dim"))
    return 0


async def _fetch(url: str | None, text: str, wanted: tuple[str, str, bool], *, as_json: bool) -> int:
    name, output, force = wanted
    async with found(url, text, encoding="msgpack") as job:
        kept = shown(job).get("artifacts") or {}
        if name not in kept:
            words = "it has " + ", ".join(kept) if kept else "it made none"
            raise typer.BadParameter(f"{job.id} has no file {name!r}: {words}", param_hint="NAME")
        if output == "-":
            await _copy(job, name, sys.stdout.buffer)
            return 0
        with _new_file(Path(output), force=force) as partial, partial.open("wb") as file:
            await _copy(job, name, file)
    if as_json:
        print_json({"job_id": job.id, "name": name, "file": output, "bytes": kept[name]})
    else:
        err.print(Text(f"wrote {output} ({size(kept[name])})"), soft_wrap=True)
    return 0


async def _copy(job: RemoteJob, name: str, file: BinaryIO) -> None:
    """Write an artifact to a file. Raises GramiError: it did not come whole."""
    written = 0
    async with contextlib.aclosing(job.pieces(artifact=name)) as pieces:
        async for piece in pieces:
            written += file.write(piece.data)
    file.flush()
    if written != shown(job)["artifacts"][name]:
        raise GramiError(f"{name} has {shown(job)['artifacts'][name]} bytes, and {written} came; try again")


@contextlib.contextmanager
def _new_file(target: Path, *, force: bool) -> Iterator[Path]:
    """A file to write to, which becomes the target when it is whole; nothing is left of it if it does not.

    Raises ConfigError: the target cannot be written, or is there already.
    """
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        if not force:
            target.open("xb").close()
        try:
            yield partial
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            if not force:
                target.unlink()
            raise
    except FileExistsError:
        raise ConfigError(f"{target} is there already: give --force to overwrite it, or -o another name") from None
    except OSError as error:
        raise ConfigError(f"{target} cannot be written: {error.strerror or error}") from None
