"""What the shell shows of jobs: a table of many, all about one, and one that is followed to its end. Floor 17."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from grami_actors.cli.app import err, harmless, out, print_data
from grami_actors.cli.send import json_or_text
from grami_actors.cli.top import duration, size
from grami_actors.errors import ErrorCode, GramiError
from grami_actors.job import TERMINAL
from grami_actors.job_client import RemoteJob

STYLES = {
    "QUEUED": "cyan",
    "STARTING": "cyan",
    "RUNNING": "blue",
    "INPUT_REQUIRED": "bold magenta",
    "STOPPING": "yellow",
    "BACKOFF": "yellow",
    "SUCCEEDED": "green",
    "CANCELLED": "yellow",
}
"""The colours of states; those that are missing are bad news."""

_EXITS = {"SUCCEEDED": 0, "CANCELLED": 3}
ONE_LINE = 60
"""Letters of JSON that stand on one line."""

_WIDE = 10_000
"""Columns of what is no terminal: each job is one line there, however long the name of its tool."""

_ECHO = 3
"""Columns that a bar leaves free: a ``^C`` that the terminal shows there would else begin another line."""

_AT_ITS_END = {
    "FAILED": "what it printed: grami jobs logs {id}\nto run it again: grami jobs retry {id}",
    "TIMED_OUT": "what it printed: grami jobs logs {id}\nto run it again: grami jobs retry {id}",
    "LOST": "what it printed: grami jobs logs {id}\nif that does no harm: grami jobs retry {id}",
    "REJECTED": "the server offers no such tool any more, or with other arguments: grami describe",
    "INPUT_REQUIRED": "to answer: grami jobs input {id} ANSWER",
}
"""What to do about a job in this state."""


def exit_code(view: Mapping[str, Any]) -> int:
    """What a command ends with that followed a job to its end: 0, 3 if it was cancelled, else 1."""
    return _EXITS.get(view["state"], 1)


def to_do(view: Mapping[str, Any]) -> str:
    """What to do about a job; empty, if there is nothing to do."""
    return _AT_ITS_END.get(view["state"], "").format(id=view["job_id"])


def state_text(state: str) -> Text:
    """A state in its colour."""
    return Text(state, STYLES.get(state, "red"))


def as_words(value: Any) -> str:
    """What anybody said: text as it is, all else as JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _since(begin: str | None, end: str | None = None) -> str:
    """How long ago something was, or how long it took; empty, if it did not begin."""
    if begin is None:
        return ""
    until = time.time() if end is None else _moment(end).timestamp()
    return duration(max(0, round((until - _moment(begin).timestamp()) * 1000)))


def shown(job: RemoteJob) -> dict[str, Any]:
    """What is known of a job, as the wire has it: what there is nothing to say about is left out."""
    view: dict[str, Any] = msgspec.to_builtins(job.view)
    return view


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone()


# --- many ---


def print_jobs(views: Sequence[Mapping[str, Any]]) -> None:
    """A line for each job."""
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("id", no_wrap=True)
    table.add_column("tool", overflow="fold")
    table.add_column("state", no_wrap=True)
    for heading in ("done", "age", "took"):
        table.add_column(heading, no_wrap=True, justify="right")
    for view in views:
        done = "" if view.get("progress") is None else f"{view['progress']:.0%}"
        table.add_row(
            Text(view["job_id"]),
            Text(harmless(view["tool"])),
            state_text(view["state"]),
            done,
            _since(view["created_at"]).partition(" ")[0],
            _since(view.get("started_at"), view.get("finished_at")),
        )
    (out if out.is_terminal else type(out)(width=_WIDE)).print(table)


# --- one ---


def print_job(view: Mapping[str, Any]) -> None:
    """All that is known of a job, and what to do about it."""
    out.print(Text(view["job_id"], "bold"))
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in view.items():
        if name not in {"job_id", "status"} and value not in (None, "", {}, []):
            text = _value(name, value)
            text.plain = harmless(text.plain)
            table.add_row(re.sub("_(at|ms)$", "", name).replace("_", " "), text)
    out.print(table)
    advice = to_do(view)
    if advice:
        out.print(Text(f"\n{advice}", "dim"), soft_wrap=not out.is_terminal)


def _value(name: str, value: Any) -> Text:
    """One thing about a job, for a person."""
    if name in _SHOWN:
        return _SHOWN[name](value)
    if name.endswith("_at"):
        return Text(_when(value))
    line = as_words(value)
    return Text(line if isinstance(value, str) or len(line) <= ONE_LINE else msgspec.json.format(line))


_SHOWN: Mapping[str, Callable[[Any], Text]] = {
    "state": state_text,
    "progress": lambda value: Text(f"{value:.0%}"),
    "error": lambda value: Text(f"{value['error_code']}: {value['message']}", "red"),
    "not_before": lambda value: Text(_when(value)),
    "deadline_ms": lambda value: Text(duration(value)),
    "artifacts": lambda value: Text("\n".join(f"{name} ({size(count)})" for name, count in value.items())),
}


def _when(text: str) -> str:
    """A time, and how long ago it was, or how long it is still to come."""
    moment = _moment(text)
    ahead = moment.timestamp() - time.time()
    told = f"in {duration(round(ahead * 1000))}" if ahead > 0 else f"{_since(text)} ago"
    return f"{moment:%Y-%m-%d %H:%M:%S} ({told})"


# --- one that is followed ---


class Follower:
    """Follows a job: on standard error what happens, as lines, and below them how far it is.

    Args:
        job: which.
    """

    def __init__(self, job: RemoteJob) -> None:
        self._job = job
        self._asking: asyncio.Task[None] | None = None
        self._said = ""
        self._questions: list[Any] = []
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(20),
            TaskProgressColumn(),
            TextColumn("{task.fields[said]}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
            TimeElapsedColumn(),
            TextColumn("", table_column=Column(width=_ECHO)),
            console=err,
            transient=True,
            expand=True,
            disable=not err.is_terminal,
        )
        self._row = self._bar.add_task(shown(job)["state"], total=None, said="")

    async def to_the_end(self, after: int) -> int:
        """Show events behind ``after`` until the last; print the result. Returns what the command ends with."""
        with self._bar:
            try:
                async with contextlib.aclosing(self._job.events(after=after)) as events:
                    async for event in events:
                        await self._take(event)
            finally:
                await self._stop_asking()
        await self._job.refresh()
        return conclude(shown(self._job))

    async def _take(self, event: Any) -> None:
        data = event.data
        if event.kind == "progress":
            self._progress(data.get("fraction"), data.get("message") or "")
        elif event.kind == "state":
            if data["state"] != "INPUT_REQUIRED":
                await self._stop_asking()
            self._state(event)
            await self._ask()
        elif event.kind == "artifact":
            self._line(event, Text.assemble(("artifact ", "dim"), f"{data['name']} ({size(data['bytes'])})"))
        elif event.kind == "input" and "question" in data:
            self._line(event, Text.assemble(("asks ", "bold magenta"), as_words(data["question"])))
            self._questions = [data["question"]]
            await self._ask()
        elif event.kind == "input":
            await self._stop_asking()
            self._line(event, Text.assemble(("answered by ", "dim"), str(data.get("answered_by"))))

    def _progress(self, fraction: float | None, said: str) -> None:
        said = harmless(" ".join(said.split()))  # one line, as wide as it is measured
        self._bar.update(self._row, total=None if fraction is None else 1.0, completed=fraction or 0.0, said=said)
        line = f"{fraction or 0:4.0%}  {said}"
        if self._bar.disable and line != self._said:
            self._said = line
            err.print(Text(line, "dim"), soft_wrap=True)

    def _state(self, event: Any) -> None:
        state, fault = event.data["state"], event.data.get("fault")
        if state in TERMINAL:  # what became of it in the end is told at the end
            return
        text = state_text(state)
        if state == "STARTING":
            self._bar.reset(self._row, total=None, said="")
            self._bar.tasks[0].start_time = self._bar.get_time() - max(0, time.time() - event.at)
            text.append(f" attempt {event.attempt}", "dim")
        if event.data.get("reason"):
            text.append(f" ({event.data['reason']})", "dim")
        if state == "BACKOFF" and event.data.get("due_at"):
            text.append(f" until {datetime.fromtimestamp(event.data['due_at'], UTC).astimezone():%H:%M:%S}", "dim")
        if fault:
            text.append(f" {fault.get('code', '')}: {fault.get('message', '')}", "red")
        self._bar.update(self._row, description=state)
        self._line(event, text)

    @staticmethod
    def _line(event: Any, text: Text) -> None:
        at = datetime.fromtimestamp(event.at, UTC).astimezone()
        err.print(Text.assemble((f"{at:%H:%M:%S}  ", "dim"), text), soft_wrap=not err.is_terminal)

    # --- questions ---

    async def _ask(self) -> None:
        """Have the last question answered at the terminal, if there is one, and nobody else did it long ago."""
        if not self._questions:
            return
        await self._job.refresh()
        view = shown(self._job)
        if view["state"] != "INPUT_REQUIRED" or [view.get("question")] != self._questions:
            return
        self._questions.clear()
        if sys.stdin is None or not (sys.stdin.isatty() and err.is_terminal):
            err.print(Text(to_do(view), "dim"), soft_wrap=True)
            return
        self._asking = asyncio.create_task(self._answer())

    async def _answer(self) -> None:
        self._bar.stop()
        while True:
            err.print("answer: ", end="", style="bold")
            typed = await _typed_line()
            if not typed:
                err.print(Text(f"\n{to_do(shown(self._job))}", "dim"), soft_wrap=True)
                break
            if not typed.strip():
                continue
            try:
                await self._job.answer(json_or_text(typed.strip()))
            except GramiError as error:
                if error.error_code != ErrorCode.JOB_NOT_AWAITING_INPUT:
                    err.print(Text(error.message, "red"))
                    continue
            break
        self._bar.start()

    async def _stop_asking(self) -> None:
        asking, self._asking = self._asking, None
        if asking is None:
            return
        if not asking.done():
            asking.cancel()
            err.print()
        await asyncio.wait((asking,))
        if not asking.cancelled():
            asking.result()
        self._bar.start()


async def _typed_line() -> str:
    """The next line from the terminal, with its end; empty, if there is none (Ctrl-D)."""
    loop = asyncio.get_running_loop()
    typed: asyncio.Future[bytes] = loop.create_future()

    def read() -> None:
        loop.remove_reader(descriptor)
        typed.set_result(os.read(descriptor, 65_536))

    # A thread that waits in input() could not be stopped, neither by Ctrl-C nor when somebody else has answered.
    descriptor = sys.stdin.fileno()
    loop.add_reader(descriptor, read)
    try:
        return (await typed).decode(errors="replace")
    finally:
        loop.remove_reader(descriptor)


def conclude(view: Mapping[str, Any]) -> int:
    """Print what became of a job at its end; returns what the command ends with."""
    state = view["state"]
    took = _since(view.get("started_at"), view.get("finished_at"))
    text = Text.assemble(view["job_id"], " is ", state_text(state), (f", after {took}" if took else "", "dim"))
    fault = view.get("error")
    if fault and state != "CANCELLED":
        text.append(f"\n{fault['error_code']}: {fault['message']}", "red")
    advice = to_do(view)
    text.append(f"\n{advice}" if advice else "", "dim")
    err.print(text, soft_wrap=not err.is_terminal)
    if state == "SUCCEEDED" and view.get("result") is not None:
        print_data(view["result"], as_json=False)
    return exit_code(view)
