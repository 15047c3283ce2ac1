"""``grami jobs``: long-running tool jobs of a running server. Floor 17."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import typer
from rich.text import Text

from grami_actors.cli.app import AsJson, Url, app, err, go, print_json
from grami_actors.cli.job_screen import Follower, exit_code, print_job, print_jobs, shown, state_text
from grami_actors.cli.send import json_or_text, pair
from grami_actors.client import Client, connect
from grami_actors.errors import ConnectionLost, ErrorCode, JobError, ServerNotFound
from grami_actors.job import Order, State
from grami_actors.job_client import RemoteJob
from grami_actors.job_views import rfc3339

jobs = typer.Typer(
    help="""Run tools as jobs, which go on without whoever started them: see, follow, answer and end them.

    \b
    grami jobs submit render frames=250   run a tool; prints the job's id
    grami jobs attach job_01k9            follow it; Ctrl-C leaves it running
    grami jobs logs job_01k9 -f           what it prints
    grami jobs cancel job_01k9            end it, with all its processes

    An id may be shortened, as long as one job's begins so. What runs as a job: `grami describe` shows the tools.
    """,
    no_args_is_help=True,
)
app.add_typer(jobs, name="jobs")

RETRY_FOR = 600.0
"""Seconds that a command which follows a job waits for a server that restarts."""

PAGE = 200
"""Jobs that are asked for at once."""

ID_LENGTH = 30
"""Letters of an id that is whole."""

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_KEY = "KEY=VALUE..."

JobId = Annotated[
    str, typer.Argument(metavar="ID", help="A job, from `grami jobs list`; the beginning of its id does.")
]
Attach = Annotated[bool, typer.Option("--attach", "--wait", help="Follow it to its end, as `grami jobs attach` does.")]
After = Annotated[int, typer.Option(metavar="SEQ", help="Show only what happened after this event.", min=0)]


@asynccontextmanager
async def found(
    url: str | None, text: str, *, retry_for: float = 0.0, encoding: Literal["json", "msgpack"] = "json"
) -> AsyncIterator[RemoteJob]:
    """A job by its id, or by the beginning of it; with ``msgpack`` what is read of it are its own bytes.

    Raises JobError: JOB_NOT_FOUND, also if several begin so.
    """
    async with connect(url, retry_for=retry_for, encoding=encoding) as grami:
        yield await _one(grami, text)


def beyond(begin: str) -> str:
    """What is greater than each id that begins so."""
    return begin.ljust(ID_LENGTH + 1, "z")


async def _one(grami: Client, text: str) -> RemoteJob:
    begin = text.lower() if text.lower().startswith("job_") else f"job_{text.lower()}"
    if len(begin) >= ID_LENGTH:
        return await grami.jobs.get(begin)
    # Ids are listed from the last one on: those that begin so stand together.
    page = await grami.jobs.list(before=beyond(begin), limit=2)
    found = [job for job in page if job.id.startswith(begin)]
    if len(found) == 1:
        return found[0]
    flaw = f"{found[0].id}, {found[1].id} and maybe others begin with" if found else "there is no job that begins with"
    raise JobError(f"{flaw} {text!r}", code=ErrorCode.JOB_NOT_FOUND)


# --- jobs that are new ---


@jobs.command()
def submit(
    tool: Annotated[str, typer.Argument(metavar="TOOL", help="Which tool, from `grami describe`.")],
    fields: Annotated[
        list[str] | None,
        typer.Argument(metavar=_KEY, help="Its arguments. A value that is JSON is taken as such, else as text."),
    ] = None,
    arguments: Annotated[
        str | None,
        typer.Option(metavar="JSON|@FILE", help="More arguments, as one JSON object; @- reads standard input."),
    ] = None,
    key: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Submitted again with the same key, it is the same job.")
    ] = None,
    priority: Annotated[int, typer.Option(metavar="NUMBER", help="Higher ones run first.", min=-1000, max=1000)] = 0,
    at: Annotated[
        str | None, typer.Option(metavar="TIME", help="Not before: 2026-12-24T18:00, +90, +15m, +2h.")
    ] = None,
    deadline: Annotated[
        str | None,
        typer.Option(metavar="SECONDS", help="It must end so long after the submit, or after --at: 90, 15m, 2h."),
    ] = None,
    concurrency_key: Annotated[
        str, typer.Option(metavar="TEXT", help="Of all jobs with this key one runs at a time.")
    ] = "",
    wake: Annotated[str, typer.Option(metavar="AGENT", help="An agent that is told of its end.")] = "",
    attach: Attach = False,  # noqa: FBT002
    url: Url = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Have a tool run as a job, and print the job's id.

    When the id is printed, the job is written down: it outlives the server and whoever asked for it.

    For example: grami jobs submit render frames=250 scene=forest --attach
    """
    order = Order(
        idempotency_key=key,
        priority=priority,
        concurrency_key=concurrency_key,
        not_before=None if at is None else _moment(at, time.time()),
        deadline=None if deadline is None else seconds(deadline, "--deadline"),
        wake=wake,
    )
    values = _object(arguments) | dict(pair(each) for each in fields or ())
    go(_submit(url, (tool, values, order), attach=attach, as_json=as_json))


async def _submit(url: str | None, wanted: tuple[str, dict[str, Any], Order], *, attach: bool, as_json: bool) -> int:
    tool, values, order = wanted
    async with connect(url, retry_for=RETRY_FOR if attach else 0.0) as grami:
        job = await grami.jobs.submit(tool, values, order=order)
        return await _began(job, attach=attach, as_json=as_json)


@jobs.command()
def retry(
    job: JobId,
    attach: Attach = False,  # noqa: FBT002
    url: Url = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Run a job that is at its end once more, and print the new job's id.

    The new job has the same tool, arguments and options, but no key.

    For example: grami jobs retry job_01k9
    """
    go(_retry(url, job, attach=attach, as_json=as_json))


async def _retry(url: str | None, text: str, *, attach: bool, as_json: bool) -> int:
    async with found(url, text, retry_for=RETRY_FOR if attach else 0.0) as job:
        return await _began(await job.retry(), attach=attach, as_json=as_json)


async def _began(job: RemoteJob, *, attach: bool, as_json: bool) -> int:
    if attach:
        if not as_json:
            err.print(Text(job.id, "bold"))
        return await _follow(job, 0, as_json=as_json)
    if as_json:
        print_json(shown(job))
        return 0
    sys.stdout.write(f"{job.id}\n")
    if err.is_terminal:
        words = " to follow it: grami jobs attach ", job.id
        state = state_text(shown(job)["state"])
        err.print(Text.assemble("it is ", state, (";" + "".join(words), "dim")), soft_wrap=True)
    return 0


def _object(text: str | None) -> dict[str, Any]:
    """The object of ``--arguments``."""
    if text is None:
        return {}
    try:
        if text == "@-":
            text = sys.stdin.read()
        elif text.startswith("@"):
            text = Path(text[1:]).read_text()
        return msgspec.json.decode(text, type=dict[str, Any])
    except OSError as error:
        raise typer.BadParameter(f"{text[1:]} cannot be read: {error.strerror}", param_hint="--arguments") from None
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise typer.BadParameter(f"it is not a JSON object: {error}", param_hint="--arguments") from None


def seconds(text: str, option: str) -> float:
    """The seconds of a time such as ``90``, ``15m`` or ``2d``, which an option has. Raises BadParameter."""
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([smhdw]?)", text)
    if match is None or not float(match[1]):
        raise typer.BadParameter(f"{text!r} is not a time such as 90, 90s, 15m, 12h or 2d", param_hint=option)
    return float(match[1]) * _SECONDS[match[2]]


def _moment(text: str, now: float) -> float:
    """Seconds since the epoch; a time without a zone is one of this machine's."""
    if text.startswith("+"):
        return now + seconds(text[1:], "--at")
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{text!r} is not a time such as 2026-12-24T18:00, or +90, +15m, +2h from now", param_hint="--at"
        ) from None


# --- jobs that there are ---


@jobs.command("list")
def show_all(
    state: Annotated[
        list[State] | None,
        typer.Option(
            metavar="STATE",
            help=f"Only those in this state: {', '.join(State).lower()}. Repeat for more.",
            case_sensitive=False,
        ),
    ] = None,
    tool: Annotated[str, typer.Option(metavar="TOOL", help="Only those of this tool.")] = "",
    limit: Annotated[int, typer.Option(metavar="NUMBER", help="At most so many, the latest.", min=1)] = 20,
    every: Annotated[bool, typer.Option("--all", help="All of them.")] = False,  # noqa: FBT002
    url: Url = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Show your jobs, the latest first.

    An administrator sees everybody's.

    For example: grami jobs list --state running --state queued
    """
    go(_list(url, (tuple(state or ()), tool), None if every else limit, as_json=as_json))


async def _list(url: str | None, wanted: tuple[tuple[State, ...], str], limit: int | None, *, as_json: bool) -> int:
    states, tool = wanted
    views: list[dict[str, Any]] = []
    async with connect(url, retry_for=0.0) as grami:
        more = True
        while more and (limit is None or len(views) < limit):
            # One more than is wanted tells whether there are others.
            count = PAGE if limit is None else min(PAGE, limit + 1 - len(views))
            before = views[-1]["job_id"] if views else ""
            page = await grami.jobs.list(states=states, tool=tool, before=before, limit=count)
            views += [shown(job) for job in page]
            more = len(page) == count
    more = limit is not None and len(views) > limit
    views = views[:limit]
    if as_json:
        print_json({"jobs": views, "more": more})
    elif views:
        print_jobs(views)
    else:
        err.print(Text("there are no such jobs; to make one: grami jobs submit TOOL"))
    if more and err.is_terminal and not as_json:
        err.print(Text("there are older ones: --all shows them", "dim"))
    return 0


@jobs.command()
def show(job: JobId, url: Url = None, as_json: AsJson = False) -> None:  # noqa: FBT002
    """Show all that is known of a job, and what to do about it.

    For example: grami jobs show job_01k9
    """
    go(_show(url, job, as_json=as_json))


async def _show(url: str | None, text: str, *, as_json: bool) -> int:
    async with found(url, text) as job:
        if as_json:
            print_json(shown(job))
        else:
            print_job(shown(job))
    return 0


@jobs.command()
def attach(
    job: JobId,
    after: After = 0,
    url: Url = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Follow a job to its end, and answer its questions.

    What happened so far comes first, then what happens. The result goes to standard output, all else to standard error.
    Ctrl-C leaves, and the job goes on. Ends with 0 if the job succeeded, 3 if it was cancelled, else with 1.
    With --json each event is a line, and the job itself the last.

    For example: grami jobs attach job_01k9
    """
    go(_attach(url, job, after, as_json=as_json))


async def _attach(url: str | None, text: str, after: int, *, as_json: bool) -> int:
    async with found(url, text, retry_for=RETRY_FOR) as job:
        return await _follow(job, after, as_json=as_json)


async def _follow(job: RemoteJob, after: int, *, as_json: bool) -> int:
    """Follow a job to its end, and say how to come back when that is cut short."""
    try:
        if not as_json:
            return await Follower(job).to_the_end(after)
        async with contextlib.aclosing(job.events(after=after)) as events:
            async for event in events:
                print_json(msgspec.to_builtins(event) | {"at": rfc3339(event.at)})
        await job.refresh()
        print_json(shown(job))
        return exit_code(shown(job))
    except (asyncio.CancelledError, ConnectionLost, ServerNotFound):
        words = f"the job goes on. To come back: grami jobs attach {job.id}\nto end it: grami jobs cancel {job.id}"
        err.print(Text(words), soft_wrap=True)
        raise


@jobs.command("input")
def answer(
    job: JobId,
    value: Annotated[str, typer.Argument(metavar="JSON|TEXT", help="JSON is taken as such, else it is text.")],
    url: Url = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Answer the question that a job waits with.

    For example: grami jobs input job_01k9 yes
    """
    go(_answer(url, job, value, as_json=as_json))


async def _answer(url: str | None, text: str, value: str, *, as_json: bool) -> int:
    async with found(url, text) as job:
        await job.answer(json_or_text(value))
        await job.refresh()
    _tell(shown(job), as_json=as_json)
    return 0


@jobs.command()
def cancel(
    job: JobId,
    force: Annotated[bool, typer.Option("--force", help="With SIGKILL, now; it is not asked to end.")] = False,  # noqa: FBT002
    wait: Annotated[bool, typer.Option("--wait", help="Wait until nothing of it is alive.")] = False,  # noqa: FBT002
    url: Url = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """End a job, with all that it started.

    It is asked to end, after a while it gets SIGTERM, then SIGKILL. Jobs that wait end at once.

    For example: grami jobs cancel job_01k9 --wait
    """
    go(_cancel(url, job, force=force, wait=wait, as_json=as_json))


async def _cancel(url: str | None, text: str, *, force: bool, wait: bool, as_json: bool) -> int:
    async with found(url, text, retry_for=RETRY_FOR if wait else 0.0) as job:
        await job.cancel(force=force)
        if wait:
            # With the last event there is at least one: it may have been the end.
            async with contextlib.aclosing(job.events(after=shown(job)["seq"] - 1)) as events:
                async for _ in events:
                    pass
        await job.refresh()
    _tell(shown(job), as_json=as_json)
    return 0


def _tell(view: dict[str, Any], *, as_json: bool) -> None:
    """Say where a job is now."""
    if as_json:
        print_json(view)
        return
    err.print(Text.assemble(view["job_id"], " is ", state_text(view["state"])), soft_wrap=True)
