"""The outside witness of what jobs did, and a server that is killed: what both say, the store and /proc is compared.

Nothing here asks the server what became of a job: the store is read from its file, the processes and locks are looked
at, and the witness is a file that only the tools of :mod:`tests.crash_swarm` append to.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, closing
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from grami_actors.client import Client, connect
from grami_actors.errors import ConnectionLost, GramiError
from grami_actors.job import STEPS, TERMINAL, Job, Order, State
from grami_actors.job_client import RemoteJob
from grami_actors.jobs import processes, sqlite_schema
from grami_actors.jobs.changes import unpacked
from grami_actors.jobs.folder import AttemptFolder
from tests.conftest import free_port

ROOT = Path(__file__).parents[1]
SWARM = Path(__file__).with_name("crash_swarm.py")

LOOK = 0.02
"""Seconds between two looks at what tells nobody that it has changed: files and processes."""

_FOLLOWS = {(before, after) for before, steps in STEPS.items() for after in steps.values()}


class Line(NamedTuple):
    """One line of the witness."""

    what: str
    job: str
    attempt: int
    pid: int
    more: str


class Event(NamedTuple):
    """One event, as it is in the store."""

    seq: int
    kind: str
    attempt: int
    data: dict[str, Any]


class Trial:
    """A state directory, a witness, and a server that comes and goes.

    Args:
        folder: for all of them.
        settings: of the server, by their names in :class:`~grami_actors.config.Config`.
    """

    def __init__(self, folder: Path, **settings: Any) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.state = folder / "state"
        self.witness = folder / "witness"
        self.url = ""
        self.server: asyncio.subprocess.Process | None = None
        self.accepted: dict[str, str] = {}
        self.kills = 0
        self._port = free_port()
        self._settings = settings
        self._client: Client | None = None

    # --- the server ---

    async def start(self, failpoint: str = "") -> bool:
        """Start a server, in its turn; says whether it lives and listens."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith("GRAMI_")}
        environ |= {f"GRAMI_{name.upper()}": str(value) for name, value in self._settings.items()}
        environ |= {"PYTHONPATH": str(ROOT), "GRAMI_STATE_DIR": str(self.state), "GRAMI_FAILPOINT": failpoint}
        command = (sys.executable, "-m", "grami_actors", "serve", str(SWARM), "--port", str(self._port))
        with (self.folder / "server.log").open("ab") as log:
            self.server = await asyncio.create_subprocess_exec(
                *command, env=environ, stdout=asyncio.subprocess.PIPE, stderr=log, start_new_session=True
            )
        assert self.server.stdout is not None
        said = await self.server.stdout.readline()
        if not said:
            return False
        self.url = json.loads(said)["url"]
        await self._connect()
        return True

    async def kill(self, number: int = signal.SIGKILL) -> None:
        """End the server, and wait until it is gone."""
        assert self.server is not None
        with contextlib.suppress(ProcessLookupError):
            self.server.send_signal(number)
        await self.gone()

    async def gone(self) -> int:
        """Wait until the server is gone; returns its exit code."""
        assert self.server is not None
        self.kills += 1
        return await self.server.wait()

    # --- its client ---

    @property
    def client(self) -> Client | None:
        """The one of the server that was started last; ``None`` if that did not live for so long."""
        return self._client

    async def _connect(self) -> None:
        # A new one for each server: the pauses between a client's own tries would be most of the time of a test.
        await self._disconnect()
        with contextlib.suppress(GramiError):  # the server was killed already
            self._client = await connect(self.url, retry_for=0).__aenter__()

    async def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(GramiError):
                await client.__aexit__(None, None, None)

    async def submit(self, tool: str, key: str, **arguments: Any) -> RemoteJob:
        """Submit until it is acknowledged."""
        arguments |= {"witness": str(self.witness)}
        while True:
            client: Client = await self.until(lambda: self.client, within=60)
            try:
                job = await client.jobs.submit(tool, arguments, order=Order(idempotency_key=key))
            except ConnectionLost:
                await asyncio.sleep(LOOK)
            else:
                known = self.accepted.setdefault(key, job.id)
                assert known == job.id, f"the key {key} stands for two jobs"
                return job

    async def over(self, job: str, *, within: float = 30.0) -> Job:
        """Wait until the store says that a job is at its end."""
        return await self.until(lambda: (found := self.job(job)).state in TERMINAL and found, within)

    async def until(self, condition: Callable[[], Any], within: float = 30.0) -> Any:
        """Wait until something is so that nobody tells of."""
        async with asyncio.timeout(within):
            while not (found := condition()):  # noqa: ASYNC110 - it is of another process
                await asyncio.sleep(LOOK)
        return found

    async def started(self, job: str, attempt: int = 1) -> Line:
        """Wait until the witness saw an attempt begin."""
        return await self.until(lambda: next((each for each in self.lines("start", job, attempt)), None))

    async def close(self) -> None:
        """End all that there still is."""
        if self.server is not None and self.server.returncode is None:
            await self.kill()
        await self._disconnect()
        while found := self.living():
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(LOOK)

    # --- what is there ---

    def lines(self, what: str = "", job: str = "", attempt: int = 0) -> list[Line]:
        """What the witness saw."""
        try:
            text = self.witness.read_text()
        except FileNotFoundError:
            return []
        rows = (line.split() for line in text[: text.rfind("\n") + 1].splitlines())
        found = [Line(row[0], row[1], int(row[2]), int(row[3]), row[4]) for row in rows]
        return [each for each in found if each.what == (what or each.what) and _is_of(each, job, attempt)]

    def jobs(self) -> dict[str, Job]:
        """All that the store knows, by id."""
        return {job.id: job for job, _ in self._read("")}

    def job(self, job: str) -> Job:
        """One of them."""
        return self._read("WHERE id = ?", job)[0][0]

    def over_now(self) -> int:
        """How many are at their end."""
        with closing(sqlite_schema.connect(self.state / "jobs.db", writes=False)) as db:
            return int(db.execute("SELECT count(*) FROM jobs WHERE ended IS NOT NULL").fetchone()[0])

    def events(self, job: str) -> list[Event]:
        """What happened to one."""
        return self._read("WHERE id = ?", job)[0][1]

    def _read(self, where: str, *values: str) -> list[tuple[Job, list[Event]]]:
        with closing(sqlite_schema.connect(self.state / "jobs.db", writes=False)) as db:
            db.execute("BEGIN")
            return [_kept(db, *row) for row in db.execute(f"SELECT number, data FROM jobs {where}", values)]

    def attempt(self, job: str, attempt: int) -> AttemptFolder:
        """The folder of an attempt."""
        return AttemptFolder(self.state / "jobs" / job / str(attempt))

    def log(self, job: str, attempt: int) -> str:
        """What is kept of an attempt's output."""
        folder = self.attempt(job, attempt).path
        return b"".join(each.read_bytes() for each in sorted(folder.glob("log.*"))).decode()

    def shim(self, job: str, attempt: int = 1) -> int:
        """The process of an attempt's shim."""
        return int(self.attempt(job, attempt).read("run.json")["pid"])

    def living(self, *jobs: str) -> list[int]:
        """The processes of jobs of this trial, by the mark that they were started with; of all, if none is named."""
        marks = [f"{processes.MARK}={job}.".encode() for job in jobs or self._folders()]
        return [pid for pid, environ in _environments() if any(mark in environ for mark in marks)]

    def _folders(self) -> list[str]:
        return [each.name for each in (self.state / "jobs").glob("job_*")]

    # --- what must be so ---

    def faults(self) -> list[str]:
        """What is not as it must be, in words; to be asked when all jobs are at their end."""
        kept = {job.id: (job, events) for job, events in self._read("")}
        lines = self.lines()
        found = [f"{job} was acknowledged and is not there" for job in self.accepted.values() if job not in kept]
        keys = Counter(job.order.idempotency_key for job, _ in kept.values())
        found += [f"the key {key} has {count} jobs" for key, count in keys.items() if key and count > 1]
        starts = Counter((each.job, each.attempt) for each in lines if each.what == "start")
        found += [f"{job}: attempt {attempt} was started {n} times" for (job, attempt), n in starts.items() if n > 1]
        found += [f"{each.job} did something, and is not there" for each in lines if each.job not in kept]
        for job, events in kept.values():
            found += [f"{job.id} ({job.tool}, {job.state}): {text}" for text in self._faults(job, events, lines)]
        alive = self.living()
        return [*found, *(f"the process {pid} is left over: {_cmdline(pid)}" for pid in alive)]

    def _faults(self, job: Job, events: list[Event], lines: list[Line]) -> Iterable[str]:
        lines = [each for each in lines if each.job == job.id]
        yield from _faults_of_events(job, events)
        if job.state not in TERMINAL:
            yield "it is not at its end"
        yield from _faults_of_effects(job, lines)
        for attempt in range(1, job.attempt + 1):
            folder = self.attempt(job.id, attempt)
            if folder.alive or folder.tree_alive:
                yield f"a lock of its attempt {attempt} is held"
        ended = [each for each in lines if each.what == "end" and each.attempt == job.attempt]
        if ended:
            printed = "".join(f"{job.arguments['name']} {number}\n" for number in range(job.arguments.get("lines", 0)))
            logged = self.log(job.id, job.attempt)
            if logged != printed and not (ended[0].more == "raise" and logged.startswith(f"{printed}Traceback")):
                yield f"its log is {logged[:200]!r} ({len(logged)}), and it printed {printed[:200]!r} ({len(printed)})"


def _is_of(line: Line, job: str, attempt: int) -> bool:
    return line.job == (job or line.job) and line.attempt == (attempt or line.attempt)


def _kept(db: sqlite3.Connection, number: int, data: bytes) -> tuple[Job, list[Event]]:
    big = dict(db.execute("SELECT name, data FROM big WHERE job = ?", (number,)).fetchall())
    rows = db.execute("SELECT seq, kind, attempt, data FROM events WHERE job = ? ORDER BY seq", (number,))
    events = [Event(seq, kind, attempt, msgspec.json.decode(data)) for seq, kind, attempt, data in rows]
    return unpacked(data, big), events


def _faults_of_events(job: Job, events: list[Event]) -> Iterable[str]:
    if [each.seq for each in events] != list(range(1, job.seq + 1)):
        yield f"its events are {[each.seq for each in events]}, and its seq is {job.seq}"
    states = [State(each.data["state"]) for each in events if each.kind == "state"]
    if states[0] is not State.QUEUED or states[-1] is not job.state:
        yield f"its states are {states}"
    if wrong := [pair for pair in pairwise(states) if pair not in _FOLLOWS]:
        yield f"its states follow each other wrongly: {wrong}"
    if sum(state in TERMINAL for state in states) > 1:
        yield f"it has several ends: {states}"
    told = [each.data.get("name") for each in events if each.kind == "artifact"]
    if told != [f"{number}.txt" for number in range(len(told))]:
        yield f"it told of artifacts {told}"
    if job.tool == "say" and job.state is State.SUCCEEDED and len(told) != job.result:
        yield f"it told of {len(told)} artifacts, and made {job.result}"


def _faults_of_effects(job: Job, lines: list[Line]) -> Iterable[str]:
    """What the witness saw, against what the job is said to have done."""
    starts = [each for each in lines if each.what == "start"]
    ends = {each.attempt: each.more for each in lines if each.what == "end"}
    if [each.attempt for each in starts] != sorted(each.attempt for each in starts):
        yield f"its attempts were started in the order {[each.attempt for each in starts]}"
    if job.terms.effect == "unsafe" and len(starts) > 1:
        yield f"it may be done once, and was started {len(starts)} times"
    if any(each.attempt > job.attempt for each in starts):
        yield f"it is at attempt {job.attempt}, and {starts[-1].attempt} was started"
    how = ends.get(job.attempt)
    if job.state is State.SUCCEEDED and how != "0":
        yield f"the witness saw it end with {how}"
    code, number = (None, None) if job.exit is None else (job.exit.code, job.exit.signal)
    if job.state is State.FAILED and how is not None and how != "raise":
        expected = (int(how), None) if how.isdecimal() else (None, int(signal.Signals[f"SIG{how}"]))
        if (code, number) != expected or how == "0":
            yield f"the witness saw it end with {how}, and it is said to have ended with {code or number}"


def _environments() -> Iterable[tuple[int, bytes]]:
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # A process that is dead and not yet reaped has none.
            yield int(path.name), (path / "environ").read_bytes()


def _cmdline(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200]
    except OSError:
        return "gone"


@asynccontextmanager
async def trial(folder: Path, **settings: Any) -> AsyncIterator[Trial]:
    """A trial without a server; nothing of it is alive afterwards."""
    found = Trial(folder, **settings)
    try:
        yield found
    except BaseException:
        with contextlib.suppress(OSError):
            sys.stderr.write((folder / "server.log").read_text()[-8000:])
        raise
    finally:
        await found.close()


async def slots_are_free(test: Trial, slots: int) -> bool:
    """Whether as many jobs as there are slots can run at the same time; the server is there."""
    gate = test.folder / "all-at-once"
    probes = [await test.submit("task", f"probe-{number}", gate=str(gate)) for number in range(slots)]
    for probe in probes:
        await test.started(probe.id)
    gate.touch()
    return all([(await test.over(probe.id)).state is State.SUCCEEDED for probe in probes])
