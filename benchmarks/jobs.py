"""What jobs cost: how soon they start, how many a second, and what a server does with those that it has.

    python benchmarks/jobs.py                            all of it, three rounds, about six minutes
    python benchmarks/jobs.py --only command,inside_rate --rounds 9
    python benchmarks/jobs.py --json jobs.json           each round's numbers, too
    python benchmarks/jobs.py --list                     what each measurement does

A measurement is done in a process of its own, on a state directory of its own that is removed afterwards. The rounds
are interleaved (one of each, then all of them again), so that a machine that is busy for a while spoils a round of
each and not all rounds of one; a number is the median of the rounds. CPU time is that of the server, its shims and
their jobs together. The load of the machine (one-minute average) is told beside: on two cores numbers are good below
1, and times are not to be compared above 2.

Peers (huey on SQLite, Celery with a broker on SQLite, DBOS on SQLite) are measured where they can do the same work and
are installed; one that is not is left out: `pip install -r benchmarks/requirements.txt`. --peers PYTHON runs them by
another interpreter.

The target is in the last column but one. "missed" there says that the median is on its wrong side; the exit code is 1
then only with --strict.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

import jobs_tools
import psutil

from grami_actors import Config, GrowthManager, connect
from grami_actors.errors import GramiError
from grami_actors.job import Job, Order, State
from grami_actors.job_handle import JobHandle
from grami_actors.job_requests import JOBS, CancelJob, ListJobs, SubmitJob
from grami_actors.system import ActorSystem
from grami_actors.telemetry import JobChanged

HERE = Path(__file__).parent
RUNNING = 200
"""Jobs that are at work when a server is restarted, and when it is silent."""
FAR = 86_400.0
SILENT = 20.0
TALKERS = 8
OUTSTANDING = 500
"""Submits whose answers are waited for at the same time."""

Numbers = dict[str, float]


# --- a server, here or in a process of its own ---


def config(folder: Path, running: int = 16) -> Config:
    """Settings that refuse nothing here."""
    return Config(state_dir=folder, port=0, jobs_running=running, max_inflight=OUTSTANDING, drain_timeout=1.0)


@contextlib.asynccontextmanager
async def manager(running: int = 16) -> AsyncGenerator[GrowthManager]:
    """A server in this process, on a fresh directory; what still runs is ended with it."""
    folder = Path(tempfile.mkdtemp(prefix="grami-bench-"))
    try:
        async with GrowthManager(jobs_tools.SWARM, config(folder, running)) as found:
            yield found
            await end_all(found.system)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def ask(system: ActorSystem, message: Any) -> Any:
    """The office's answer."""
    return system.ask(system.table.cells[JOBS].ref, message, timeout=120.0)


def submit(system: ActorSystem, name: str, order: Order | None = None, **arguments: Any) -> Any:
    """Have a tool run; answered when it is written down."""
    return ask(system, SubmitJob(tool=name, arguments=arguments, order=order or Order()))


async def over(system: ActorSystem, job: str) -> Job:
    """The job at its end, as soon as that is written down; as an agent waits for it."""
    handle = JobHandle(lambda message, _=None: ask(system, message), job)
    with contextlib.suppress(GramiError):  # how it ended is looked at below
        await handle.result()
    return await handle.get()


def service_of(system: ActorSystem) -> Any:
    """What the actors of the jobs share."""
    return system.table.cells[JOBS].actor._service  # noqa: SLF001 - nobody else needs it


async def end_all(system: ActorSystem) -> None:
    """Kill what runs, so that nothing is left of the benchmark."""
    running = await ask(system, ListJobs(owner=None, states=("STARTING", "RUNNING"), limit=1000))
    await asyncio.gather(*(ask(system, CancelJob(each.id, force=True)) for each in running))
    await asyncio.gather(*(over(system, each.id) for each in running))


def cpu() -> float:
    """CPU seconds of this process and of all that it has seen the end of."""
    used = [resource.getrusage(each) for each in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


# --- the measurements ---


async def latency(tool: str, times: int) -> Numbers:
    """From before the submit to the first line of the tool, one job after another."""
    waits = []
    async with manager() as server:
        system = server.system
        await over(system, (await submit(system, tool)).id)
        begun = cpu()
        for _ in range(times):
            at = time.time()
            job = await over(system, (await submit(system, tool)).id)
            result = job.outcome()
            waits.append(float(result["output"] if isinstance(result, dict) else result) - at)
        spent = (cpu() - begun) / times
    waits.sort()
    return {"p50_ms": waits[times // 2] * 1e3, "p99_ms": waits[int(times * 0.99)] * 1e3, "cpu_ms": spent * 1e3}


async def rate(tool: str, times: int, running: int = 16) -> Numbers:
    """Jobs a second, from the first submit to the end of the last."""
    async with manager(running) as server:
        system = server.system
        await over(system, (await submit(system, tool)).id)
        done, ends = asyncio.Event(), Counter[str]()

        def count(event: JobChanged) -> None:
            if State(event.state).terminal:
                ends[event.state] += 1
                if ends.total() == times:
                    done.set()

        system.bus.subscribe(count, JobChanged)
        spent, begun = cpu(), time.perf_counter()
        await gathered(times, lambda: submit(system, tool))
        await done.wait()
        wall = time.perf_counter() - begun
        if ends["SUCCEEDED"] != times:
            raise RuntimeError(f"they ended as {ends}")
        return {"per_s": times / wall, "cpu_ms": (cpu() - spent) / times * 1e3}


async def gathered(times: int, one: Callable[[], Awaitable[Any]]) -> list[Any]:
    """So many of them, with so many under way."""
    found: list[Any] = []
    left = iter(range(times))

    async def work() -> None:
        for _ in left:
            found.append(await one())  # noqa: PERF401 - as each comes, of all who work

    await asyncio.gather(*(work() for _ in range(OUTSTANDING)))
    return found


async def accept(times: int) -> Numbers:
    """Jobs for tomorrow, written down before each is answered."""
    async with manager() as server:
        system, order = server.system, Order(not_before=time.time() + FAR)
        spent, begun = cpu(), time.perf_counter()
        await gathered(times, lambda: submit(system, "true", order))
        wall = time.perf_counter() - begun
        return {"per_s": times / wall, "cpu_ms": (cpu() - spent) / times * 1e3}


async def accept_by_client(times: int) -> Numbers:
    """The same over one connection, from a client in another process."""
    async with Server() as server, connect(server.url, token=server.token or None) as client:
        order = Order(not_before=time.time() + FAR)
        spent, begun = server.cpu(), time.perf_counter()
        await gathered(times, lambda: client.jobs.submit("true", order=order))
        wall = time.perf_counter() - begun
        return {"per_s": times / wall, "cpu_ms": (server.cpu() - spent) / times * 1e3}


async def progress(times: int) -> Numbers:
    """Eight jobs say as much as an attempt may in a second, at the same time; until the last event is at a client."""
    async with Server() as server, connect(server.url, token=server.token or None) as client:
        spent, at = server.cpu(), time.time() + 2.0
        told = {"times": times // TALKERS, "at": at}
        jobs = [await client.jobs.submit("talk", told) for _ in range(TALKERS)]

        async def heard(job: Any) -> tuple[int, float]:
            seen, last = 0, 0.0
            async for event in job.events():
                if event.kind == "progress":
                    seen, last = seen + 1, time.time()
            return seen, last

        found = await asyncio.gather(*(heard(job) for job in jobs))
        if sum(seen for seen, _ in found) != times:
            raise RuntimeError(f"{found} of {times} events came")
        wall = max(last for _, last in found) - at
        return {"per_s": times / wall, "cpu_ms": (server.cpu() - spent) / times * 1e3}


async def restart(running: int) -> Numbers:
    """Kill -9 of a server with so many jobs at work, and another one on its directory."""
    async with Server(0) as server:
        idle = await silence(server)
    async with Server(running) as server, connect(server.url, token=server.token or None, retry_for=0.0) as client:
        await gathered(running, lambda: client.jobs.submit("sleep", {"seconds": 300}))
        await server.adopted(running)
        server.kill()
        at = time.time()
        await server.start()
        opened = await server.adopted(running)
        told = {"adopted_s": opened["adopted"] - opened["opened"], "process_s": opened["adopted"] - at}
        silent = await silence(server)
        return told | {"silent_percent": silent - idle, "idle_percent": idle}


async def silence(server: Server) -> float:
    """CPU time of the server and of all shims while nothing happens, in percent of a core."""
    await asyncio.sleep(3.0)  # what a start has still to do
    # A shim, and the server, is told the folder on its command line.
    found = [
        each for each in psutil.process_iter(["cmdline"]) if str(server.folder) in " ".join(each.info["cmdline"] or ())
    ]
    before, at = _used(found), time.perf_counter()
    await asyncio.sleep(SILENT)
    return (_used(found) - before) / (time.perf_counter() - at) * 100


def _used(processes: list[psutil.Process]) -> float:
    return sum(sum(each.cpu_times()[:2]) for each in processes)


class Server:
    """A server in a process of its own, which can be killed and started again."""

    def __init__(self, running: int = 16) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="grami-bench-"))
        self.running = running
        self.url = self.token = ""
        self._process: asyncio.subprocess.Process

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self._say("end")
            await self._process.wait()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    async def start(self) -> None:
        """Until it answers."""
        pipe = asyncio.subprocess.PIPE
        command = (sys.executable, __file__, "--serve", str(self.folder), str(self.running))
        self._process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
        told = await self._heard()
        self.url, self.token = told["url"], told["token"]

    async def adopted(self, count: int) -> dict[str, float]:
        """When it looked after so many attempts."""
        return await self._say(f"adopted {count}")

    def kill(self) -> None:
        """As a lack of memory does."""
        self._process.kill()

    def cpu(self) -> float:
        """CPU seconds of it, and of what it has seen the end of."""
        return sum(psutil.Process(self._process.pid).cpu_times()[:4])

    async def _say(self, text: str) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode() + b"\n")
        return await self._heard()

    async def _heard(self) -> Any:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("the server ended")
        return json.loads(line)


async def serve(folder: Path, running: int) -> None:
    """Be that process."""
    opened = time.time()
    async with GrowthManager(jobs_tools.SWARM, config(folder, running)) as server:
        system = server.system
        at = asyncio.create_task(followed(system, running))
        print(json.dumps({"url": server.url, "token": server.policy.authority.operator_token}), flush=True)
        while True:
            line = await asyncio.to_thread(sys.stdin.readline)
            if line.strip() in {"", "end"}:
                at.cancel()
                await end_all(system)
                print("null", flush=True)
                return
            print(json.dumps({"opened": opened, "adopted": await at}), flush=True)


async def followed(system: ActorSystem, count: int) -> float:
    """When so many shims were looked after."""
    while JOBS not in system.table.cells:  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0.001)
    wakes = service_of(system).runners["outside"].wakes
    while len({key for key, _ in wakes._descriptors.values()}) < count:  # noqa: ASYNC110, SLF001 - as above
        await asyncio.sleep(0.005)
    return time.time()


# --- what is measured, and what is made of it ---


class Measurement(NamedTuple):
    """One of them: what it says, how it is done, and how good it is to be (below for times, above for rates)."""

    title: str
    work: Callable[[], Awaitable[Numbers]]
    targets: dict[str, float]


MEASUREMENTS: dict[str, Measurement] = {
    "command": Measurement(
        "a command under the shim, submit to its first line", lambda: latency("date", 40), {"p50_ms": 40}
    ),
    "python": Measurement(
        "a Python tool under the shim, submit to its first line", lambda: latency("stamp", 30), {"p50_ms": 60}
    ),
    "inside": Measurement(
        "a coroutine in the server, submit to its first line", lambda: latency("inside", 500), {"p50_ms": 2}
    ),
    "process_rate": Measurement("trivial commands under the shim", lambda: rate("true", 200), {"per_s": 40}),
    "inside_rate": Measurement("trivial coroutines in the server", lambda: rate("inside", 4000, 64), {"per_s": 2000}),
    "accept": Measurement("queued jobs accepted durably, from inside", lambda: accept(5000), {"per_s": 1000}),
    "accept_client": Measurement(
        "queued jobs accepted durably, over one connection", lambda: accept_by_client(5000), {"per_s": 1000}
    ),
    "progress": Measurement(
        "progress events stored and delivered to a client", lambda: progress(8000), {"per_s": 1000}
    ),
    "restart": Measurement(
        f"{RUNNING} running jobs: adopted after kill -9, then silent",
        lambda: restart(RUNNING),
        {"adopted_s": 1.0, "silent_percent": 1.0},
    ),
}
PEERS = {"huey": "huey, SQLite", "celery": "Celery, broker on SQLite", "dbos": "DBOS, SQLite"}
HIGHER = frozenset({"per_s"})
"""Numbers of which more is better."""


def one_round(name: str, python: str) -> Numbers | str:
    """One measurement in a process of its own; or why there is none."""
    if name in PEERS:
        command = [python, str(HERE / "jobs_peers.py"), name]
    else:
        command = [sys.executable, __file__, "--one", name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as process:
        try:
            out, err = process.communicate(timeout=240.0)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return "not done after 240 s"
    if process.returncode:
        return (err.decode(errors="replace").strip().splitlines() or ["it failed without a word"])[-1]
    found: Numbers = json.loads(out.splitlines()[-1])
    return found


def measure(names: list[str], rounds: int, python: str) -> dict[str, list[Numbers]]:
    """All of them, interleaved."""
    found: dict[str, list[Numbers]] = {name: [] for name in names}
    for number in range(1, rounds + 1):
        for name in names:
            numbers = one_round(name, python)
            if isinstance(numbers, str):
                print(f"round {number}  {name}: left out: {numbers}", file=sys.stderr)
                continue
            found[name].append(numbers | {"load": os.getloadavg()[0]})
            said = "  ".join(f"{key} {value:,.2f}" for key, value in found[name][-1].items())
            print(f"round {number}  {name}: {said}", file=sys.stderr)
    return {name: each for name, each in found.items() if each}


def report(found: dict[str, list[Numbers]]) -> tuple[dict[str, Any], bool]:
    """Print the medians; what goes to a file, and whether all targets were met."""
    rows: dict[str, Any] = {}
    met = True
    print(f"Python {platform.python_version()}, {os.cpu_count()} processors")
    print(f"{'':62} {'median':>10} {'range':>20}  target")
    for name, rounds in found.items():
        known = MEASUREMENTS.get(name)
        title = known.title if known else PEERS[name]
        rows[name] = {"title": title, "rounds": rounds, "medians": {}}
        for key in rounds[0]:
            values = [each[key] for each in rounds]
            middle = rows[name]["medians"][key] = statistics.median(values)
            wanted = known.targets.get(key) if known else None
            verdict = "" if wanted is None else f"{wanted:,g}"
            if wanted is not None and (middle < wanted if key in HIGHER else middle > wanted):
                met, verdict = False, f"{verdict} missed"
            print(
                f"{title if key == next(iter(rounds[0])) else '':62} {middle:10,.2f} "
                f"{min(values):9,.2f} … {max(values):8,.2f}  {verdict:14} {key}"
            )
    return rows, met


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (3)")
    parser.add_argument("--only", default="", help="names of measurements and peers, with commas between; see --list")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write medians and all rounds there")
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON", help="the interpreter that has the peers")
    parser.add_argument("--list", action="store_true", help="say what can be measured")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a target is missed")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        asyncio.run(serve(Path(given.serve[0]), int(given.serve[1])))
        return
    if given.one:
        print(json.dumps(asyncio.run(MEASUREMENTS[given.one].work())))
        return
    everything = {name: each.title for name, each in MEASUREMENTS.items()} | PEERS
    if given.list:
        print("\n".join(f"{name:14} {title}" for name, title in everything.items()))
        return
    names = given.only.split(",") if given.only else list(everything)
    if unknown := [name for name in names if name not in everything]:
        parser.error(f"there is no {unknown[0]!r}; there are {', '.join(everything)}")
    rows, met = report(measure(names, given.rounds, given.peers))
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")
    if given.strict and not met:
        sys.exit(1)


if __name__ == "__main__":
    main()
