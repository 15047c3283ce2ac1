"""Many seeds of one scenario: played in several processes, compared between them, and the first that fails. Floor 16.

Each process has hashes of its own, and the first seeds are played in all of them. Where two differ, something leaked
into the runs that no guard can see, such as the order of a set.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from grami_actors.errors import GramiError
from grami_actors.history import AnyEntry
from grami_actors.scenario.lines import Check, Line
from grami_actors.scenario.pristine import Pristine
from grami_actors.scenario.script import Script, choose, load
from grami_actors.scenario.stage import acted
from grami_actors.simulation.run import Outcome, Runner, series
from grami_actors.simulation.schedule import Decided, Schedule
from grami_actors.simulation.shrink import shrink
from grami_actors.simulation.world import Setup

Lines = tuple[str, ...]
"""A transcript, as text."""

COMPARED = 20
"""Seeds that every process plays, at most."""

LEAST_COMPARED = 3

COMPARING = 1.0
"""Seconds that it may take, if more than the least are compared."""

MOST_LINES = 1_000
"""Lines of the transcript of a run that failed: its beginning and its end."""

CHUNK = 0.3
"""Seconds of work that a process is given at a time."""


class Wanted(msgspec.Struct, frozen=True):
    """What is to be played: a scenario of a file, under a profile of faults."""

    path: str
    scenario: str
    faults: str = "none"


class Report(msgspec.Struct, frozen=True):
    """What came of many seeds of one scenario.

    Attributes:
        scenario: its name.
        mode: ``simulated``.
        faults: the profile.
        seeds: how many were played.
        passed: whether all passed.
        failed_seed: the first that did not; ``None`` if all passed.
        distinct_histories: how many different orders of messages there were.
        virtual_seconds: of all runs together.
        wall_seconds: that it took.
        schedules_per_second: of wall time.
        digest: of all runs: the same wherever these seeds are played.
        kind: of the failure.
        error: what was wrong.
        preemptions: of the shortest run that was found to fail in the same way.
        faults_struck: in it.
        transcript: its lines.
        unused: the faults of the script that struck on none of the seeds, in words.
    """

    scenario: str
    mode: str
    faults: str
    seeds: int
    passed: bool
    failed_seed: int | None
    distinct_histories: int
    virtual_seconds: float
    wall_seconds: float
    schedules_per_second: float
    digest: str
    kind: str = ""
    error: str = ""
    preemptions: int = 0
    faults_struck: int = 0
    transcript: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


# --- in whatever process ---


@cache
def _loaded(path: str) -> tuple[Script, Pristine]:
    # A model with a network or a process of its own has no place in a simulation.
    os.environ["GRAMI_MODEL"] = "scripted"
    script = load(Path(path))
    return script, Pristine(script.module)


@cache
def runner_of(wanted: Wanted) -> Runner:
    """What plays a scenario, in this process."""
    return showing(wanted, None)


def showing(wanted: Wanted, show: Callable[[Any], None] | None) -> Runner:
    """What plays a scenario, and shows what it plays to somebody, or to nobody."""
    script, pristine = _loaded(wanted.path)
    (function,) = choose(script, (wanted.scenario,))
    return Runner(Setup(script.swarm, wanted.faults), acted(function, show), pristine.restore)


def prepare(wanted: Wanted) -> None:
    """Load what is to be played."""
    runner_of(wanted)


def play_seeds(wanted: Wanted, seeds: range) -> list[Outcome]:
    """Play seeds one after the other, until one fails."""
    return play_on(runner_of(wanted), seeds)


def play_on(runner: Runner, seeds: range) -> list[Outcome]:
    """The same, on a runner."""
    outcomes = []
    gc.disable()  # between runs, too: the runner sweeps there
    try:
        for seed in seeds:
            outcomes.append(outcome := runner.run(Schedule(seed)))
            if outcome.failure is not None:
                break
    finally:
        gc.enable()
    return outcomes


def kept_of(runner: Runner, schedule: Schedule, *, watched: bool = False) -> tuple[list[AnyEntry], Outcome]:
    """Play one run, and keep its entries.

    Args:
        runner: plays it.
        schedule: its decisions.
        watched: whether somebody wants to see each entry as it comes.
    """
    kept: list[AnyEntry] = []
    outcome = runner.run(schedule, watched=watched, seen=lambda world: kept.extend(world.history.entries))
    return kept, outcome


def account_of(wanted: Wanted, seed: int) -> list[str]:
    """A run as text, message by message, to be compared with the same of another process."""
    return [_as_text(entry) for entry in kept_of(runner_of(wanted), Schedule(seed))[0]]


def _as_text(entry: AnyEntry) -> str:
    fields = {name: value for name, value in msgspec.to_builtins(entry).items() if name not in _NAMES_OF_TRACES}
    return msgspec.json.encode(fields, order="sorted").decode()


_NAMES_OF_TRACES = {"trace", "span", "cause"}


# --- several processes ---


class Crew:
    """Processes that play seeds, each with hashes of its own.

    Args:
        size: how many play; there are at least two, to be compared.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._pools = [
            ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_set_out)
            for _ in range(max(2, size))
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pool in self._pools:
            if error is not None:  # whoever is in the middle of a run, which may never end, would be waited for
                for process in tuple((pool._processes or {}).values()):  # noqa: SLF001 - there is no other way before 3.14
                    process.kill()
            pool.shutdown(wait=error is None, cancel_futures=True)

    def __len__(self) -> int:
        return self._size

    @property
    def everybody(self) -> range:
        """Who can be compared."""
        return range(len(self._pools))

    def submit(self, member: int, work: Callable[..., Any], *args: Any) -> Future[Any]:
        """Give one of them something to do."""
        with _born(member):
            return self._pools[member].submit(work, *args)


@contextlib.contextmanager
def _born(member: int) -> Iterator[None]:
    """What the process inherits that is started with its first work: hashes of its own, and no ear for Ctrl-C."""
    before = os.environ.get("PYTHONHASHSEED")
    os.environ["PYTHONHASHSEED"] = str(member + 1)
    # Held back, and not ignored: it is for this process, as soon as the other is there.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if before is None:
            del os.environ["PYTHONHASHSEED"]
        else:
            os.environ["PYTHONHASHSEED"] = before


_FOR_GOOD = contextlib.ExitStack()


def _set_out() -> None:
    """Of a process that does nothing else."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _FOR_GOOD.enter_context(series(unattended=True))
    gc.freeze()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def explore(
    crew: Crew, wanted: Wanted, seeds: int, told: Callable[[int], object] = int, keep: list[AnyEntry] | None = None
) -> Report:
    """Play the seeds from 0 on, and shrink the first that fails.

    Args:
        crew: who plays them.
        wanted: what.
        seeds: how many.
        told: called now and then with how many were played.
        keep: gets the entries of the shortest run that fails; of seed 0 if none does.

    Raises:
        GramiError: one of the processes is gone.
    """
    try:
        return _explored(crew, wanted, seeds, told, keep)
    except BrokenProcessPool as broken:
        what = f"a process that played {wanted.scenario} ended in the middle of it, as if it had been killed"
        raise GramiError(what) from broken


def _explored(
    crew: Crew, wanted: Wanted, seeds: int, told: Callable[[int], object], keep: list[AnyEntry] | None
) -> Report:
    for ready in [crew.submit(member, prepare, wanted) for member in crew.everybody]:
        ready.result()  # whoever has begun, and loaded the script
    report, outcomes = _reported(crew, wanted, seeds, told)
    if report.kind == "hang":  # it would do the same to whoever plays it again
        return report
    able = COMPARING * report.schedules_per_second / len(crew)
    leak = _compared(crew, wanted, outcomes, able)
    strange = None if leak else _unrepeated(wanted, outcomes[-1])
    if (leak or strange) and _compared(crew, wanted, [], able, apart=True) is None:
        # One after another they are the same: what the processes share, such as a file, is what they disturbed.
        report, outcomes = _reported(crew, wanted, seeds, told, alone=True)
        leak = _unrepeated(wanted, outcomes[-1])
    leak = leak or (strange if report.passed else None)
    if leak is not None:
        seed, text = leak
        return msgspec.structs.replace(report, passed=False, failed_seed=seed, kind="nondeterminism", error=text)
    if not report.passed:
        return explained(report, wanted, outcomes[-1], keep)
    if keep is not None:
        keep.extend(kept_of(runner_of(wanted), Schedule(0))[0])
    return report


def _reported(
    crew: Crew, wanted: Wanted, seeds: int, told: Callable[[int], object], *, alone: bool = False
) -> tuple[Report, list[Outcome]]:
    begun = time.perf_counter()
    outcomes = _played(crew, wanted, seeds, told, 1 if alone else len(crew))
    return _report(wanted, outcomes, time.perf_counter() - begun), outcomes


def _played(crew: Crew, wanted: Wanted, seeds: int, told: Callable[[int], object], members: int) -> list[Outcome]:
    """What came of the seeds, in their order, up to the first that failed."""
    at_work: dict[Future[list[Outcome]], tuple[int, int, float]] = {}
    found: dict[int, list[Outcome]] = {}
    start, end = 0, seeds

    def give(member: int, size: int) -> None:
        nonlocal start
        if start < end:
            chunk = range(start, min(start + size, end))
            at_work[crew.submit(member, play_seeds, wanted, chunk)] = member, len(chunk), time.perf_counter()
            start = chunk.stop

    for member in range(members):
        give(member, 1)
    while at_work:
        done, _ = wait(at_work, return_when=FIRST_COMPLETED)
        for future in done:
            member, size, begun = at_work.pop(future)
            outcomes = future.result()
            found[outcomes[0].seed] = outcomes
            if outcomes[-1].failure is not None:
                end = min(end, outcomes[-1].seed + 1)
            # As many as take so long: none waits for the last of a large chunk, nor is much time lost between them.
            pace = size / max(time.perf_counter() - begun, 1e-6)
            give(member, max(1, min(2 * size, int(CHUNK * pace))))
        told(sum(map(len, found.values())))
    return [each for first in sorted(found) for each in found[first] if each.seed < end]


def _compared(
    crew: Crew, wanted: Wanted, outcomes: list[Outcome], able: float, *, apart: bool = False
) -> tuple[int, str] | None:
    """A seed that is another run in another process, and where it begins to be; ``None`` if there is none.

    Args:
        crew: who plays them.
        wanted: what.
        outcomes: what came of the seeds before; may be empty.
        able: how many seeds they can play in the time that there is.
        apart: whether they play one after another.
    """
    count = min(COMPARED, len(outcomes) or COMPARED, max(LEAST_COMPARED, int(able)))
    members = crew.everybody
    again = []
    for member in members:
        again.append(crew.submit(member, play_seeds, wanted, range(count)))
        if apart:
            wait(again)
    for of_member in again:
        outcomes = outcomes or of_member.result()
        for one, other in zip(outcomes, of_member.result(), strict=False):
            if one.digest != other.digest:
                accounts = [crew.submit(member, account_of, wanted, one.seed).result() for member in members]
                return one.seed, _difference(accounts)
    return None


def _unrepeated(wanted: Wanted, failed: Outcome) -> tuple[int, str] | None:
    """A failure that its seed does not bring about again; ``None`` if it does, or there is none."""
    if failed.failure is None:
        return None
    with series():
        (again,) = play_seeds(wanted, range(failed.seed, failed.seed + 1))
    if again.digest == failed.digest:
        return None
    return failed.seed, (
        f"it failed ({failed.failure.text}), but played again, the same seed is another run: something outlives a run, "
        "perhaps a file, a database or what a library keeps to itself"
    )


def _difference(accounts: list[list[str]]) -> str:
    advice = "the order of a set, an id(), or state that outlives a run (a module's, a class's)"
    for other in accounts[1:]:
        for number, (one, two) in enumerate(zip(accounts[0], other, strict=False)):
            if one != two:
                return (
                    f"the same seed is another run in another process: something leaks into it, perhaps {advice}. "
                    f"They differ from entry {number} on:\n  {one}\n  {two}"
                )
    return f"the same seed is another run in another process: something leaks into it, perhaps {advice}"


def report_of(wanted: Wanted, seed: int, show: Callable[[Any], None], keep: list[AnyEntry] | None = None) -> Report:
    """Play one seed, here, and show its lines as they come; ``keep`` gets its entries."""
    begun = time.perf_counter()
    entries, outcome = kept_of(showing(wanted, show), Schedule(seed), watched=True)
    if keep is not None:
        keep.extend(entries)
    return _report(wanted, [outcome], time.perf_counter() - begun)


def _report(wanted: Wanted, outcomes: list[Outcome], seconds: float) -> Report:
    failed = outcomes[-1].failure
    return Report(
        scenario=wanted.scenario,
        mode="simulated",
        faults=wanted.faults,
        seeds=len(outcomes),
        passed=failed is None,
        failed_seed=None if failed is None else outcomes[-1].seed,
        distinct_histories=len({each.order for each in outcomes}),
        virtual_seconds=round(sum(each.seconds for each in outcomes), 6),
        wall_seconds=round(seconds, 3),
        schedules_per_second=round(len(outcomes) / seconds, 1),
        digest=hashlib.blake2b("".join(each.digest for each in outcomes).encode(), digest_size=16).hexdigest(),
        kind="" if failed is None else failed.kind,
        error="" if failed is None else failed.text,
        preemptions=len(outcomes[-1].decisions.picks) if failed else 0,
        faults_struck=len(outcomes[-1].decisions.strikes) if failed else 0,
        unused=unused(outcomes),
    )


def unused(outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """The faults of the script that struck in none of the runs."""
    return tuple(each for each in outcomes[0].unused if all(each in other.unused for other in outcomes))


# --- what a failing run was ---


def explained(report: Report, wanted: Wanted, failed: Outcome, keep: list[AnyEntry] | None = None) -> Report:
    """The report with the shortest run that fails in the same way, and its transcript; ``keep`` gets its entries."""
    with series():
        outcome, transcript = shortest_of(lambda show: showing(wanted, show), failed, keep)
    assert failed.failure is not None
    failure = outcome.failure or failed.failure
    return msgspec.structs.replace(
        report,
        kind=failure.kind,
        error=failure.text,
        preemptions=len(outcome.decisions.picks),
        faults_struck=len(outcome.decisions.strikes),
        transcript=transcript,
    )


def shortest_of(
    make: Callable[[Callable[[Any], None] | None], Runner], failed: Outcome, keep: list[AnyEntry] | None = None
) -> tuple[Outcome, Lines]:
    """The shortest run found that fails in the same way, and its transcript.

    Args:
        make: a runner that shows what it plays to somebody, or to nobody.
        failed: what came of the run that failed.
        keep: gets the entries of the run.
    """
    shortest = shrink(make(None), failed)
    shown: list[Any] = []
    entries, outcome = kept_of(make(shown.append), Decided(shortest.seed, shortest.decisions), watched=True)
    if keep is not None:
        keep.extend(entries)
    lines = tuple(texts(shown))
    if len(lines) > MOST_LINES:
        half = MOST_LINES // 2
        lines = (*lines[:half], f"           … {len(lines) - MOST_LINES:,} lines more …", *lines[-half:])
    return outcome, lines


def texts(shown: Iterable[Any]) -> Iterator[str]:
    """The lines and checks among what is shown, without colours."""
    return (as_text(each) for each in shown if isinstance(each, (Line, Check)))


def as_text(shown: Line | Check) -> str:
    """What is shown, without colours."""
    if isinstance(shown, Check):
        details = f": {shown.details}" if shown.details and not shown.passed else ""
        return f"           {'ok' if shown.passed else 'FAILED'} {shown.text}{details}"
    arrow = f" -> {shown.to}" if shown.to else ""
    outcome = f" {shown.outcome}" if shown.outcome not in {"", "ok"} else ""
    return f"{shown.at:9.3f}  {shown.who}{arrow}  {shown.what}{outcome} {shown.text}".rstrip()
