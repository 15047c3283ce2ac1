"""Attempts inside: coroutines, threads that cannot be ended, virtual time, and what is kept of what they say."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grami_actors import cancelled, lazy_tool, progress, tool
from grami_actors.errors import RateLimited
from grami_actors.job import Limits, State, Terms
from grami_actors.job_context import JobContext
from grami_actors.jobs import inside_context
from grami_actors.jobs.inside import InsideRunner
from grami_actors.jobs.inside_context import InsideContext
from grami_actors.jobs.logwriter import LogWriter
from grami_actors.jobs.runner import Attempt
from grami_actors.simulation.loop import VirtualLoop
from grami_actors.simulation.schedule import Schedule
from grami_actors.simulation.system import EPOCH, SimulatedSystem
from grami_actors.system import ActorSystem
from grami_actors.tools import Tool
from tests.conftest import Gate, running, turns_until
from tests.test_job_runners import Bench, Told

NO_GRACE = Terms(soft_grace=0.0, term_grace=0.0)


@asynccontextmanager
async def house(folder: Path, *tools: Tool[..., Any]) -> AsyncIterator[Bench]:
    async with running() as system:
        runner = InsideRunner(system, {each.name: each for each in tools})
        yield Bench(system, runner, folder)
        runner.close()


def simulated(main: Callable[[Bench, VirtualLoop], Any], *tools: Tool[..., Any]) -> None:
    """Run something on a house in virtual time, which has no folder."""
    loop = VirtualLoop(Schedule(0))

    async def run() -> None:
        async with SimulatedSystem(loop, random.Random(0)) as system:
            await main(Bench(system, InsideRunner(system, {each.name: each for each in tools}), Path("/nowhere")), loop)

    loop.run(run())


# --- coroutines ---


async def test_a_coroutine_that_does_not_look_is_cancelled_at_once(tmp_path: Path) -> None:
    gate = Gate()

    @tool
    async def waits() -> None:
        await gate.wait_async()

    async with house(tmp_path, waits) as bench:
        run, told = await bench.begin(bench.attempt("waits"))
        await gate.until_entered()
        run.stop("user")
        outcome = await told.end()
        assert (outcome.kind, outcome.reason) == ("stopped", "user")


async def test_a_coroutine_that_is_ended_before_its_first_step_has_ended(tmp_path: Path) -> None:
    @tool
    async def never() -> None:
        raise AssertionError

    async with house(tmp_path, never) as bench:
        run, told = await bench.begin(bench.attempt("never"))
        run.stop("user")
        assert (await told.end()).kind == "stopped"


def test_a_coroutine_that_can_look_has_its_grace_and_is_then_cancelled_until_it_ends() -> None:
    @tool
    async def stubborn(ctx: JobContext) -> str:
        times = 0
        while times < 3:
            try:
                await asyncio.sleep(1_000)
            except asyncio.CancelledError:
                times += 1
        return "at last"

    async def main(bench: Bench, loop: VirtualLoop) -> None:
        terms = Terms(soft_grace=5, term_grace=10)
        run, told = await bench.begin(bench.attempt("stubborn", terms=terms))
        await asyncio.sleep(1)
        run.stop("user")
        outcome = await told.end()
        assert (outcome.kind, outcome.reason) == ("stopped", "user")
        assert loop.elapsed == 1 + 5 + 10 + 10

    simulated(main, stubborn)


def test_a_coroutine_that_is_ended_by_force_has_no_grace() -> None:
    @tool
    async def waits(ctx: JobContext) -> None:
        await asyncio.sleep(1_000)

    async def main(bench: Bench, loop: VirtualLoop) -> None:
        run, told = await bench.begin(bench.attempt("waits"))
        await asyncio.sleep(1)
        run.stop("user", force=True)
        assert (await told.end()).kind == "stopped"
        run, told = await bench.begin(bench.attempt("waits", attempt=2))
        run.stop("user")
        run.stop("user")
        assert (await told.end()).kind == "stopped"
        assert loop.elapsed == 1

    simulated(main, waits)


def test_a_clock_that_runs_out_while_an_attempt_is_being_ended_takes_nothing_of_its_grace() -> None:
    @tool
    async def waits(ctx: JobContext) -> None:
        await asyncio.sleep(1_000)

    async def main(bench: Bench, loop: VirtualLoop) -> None:
        run, told = await bench.begin(bench.attempt("waits", terms=Terms(soft_grace=100, attempt_timeout=5)))
        run.stop("user")
        assert ((await told.end()).reason, loop.elapsed) == ("user", 100)

    simulated(main, waits)


async def test_a_coroutine_that_somebody_else_cancels_is_lost_and_one_that_raises_so_has_failed(tmp_path: Path) -> None:
    tasks: list[Any] = []
    gate = Gate()

    @tool
    async def waits() -> None:
        tasks.append(asyncio.current_task())
        await gate.wait_async()

    @tool
    async def gives_up() -> None:
        raise asyncio.CancelledError

    async with house(tmp_path, waits, gives_up) as bench:
        _, told = await bench.begin(bench.attempt("waits"))
        await gate.until_entered()
        tasks[0].cancel()
        assert (await told.end()).kind == "lost"
        assert (await bench.outcome("gives_up")).kind == "failed"


async def test_a_coroutine_function_awaits_its_answer(tmp_path: Path) -> None:
    @tool
    async def asks(ctx: JobContext) -> str:
        first = await ctx.ask_input("first?")
        return f"{first} {await ctx.ask_input('second?')}"

    async with house(tmp_path, asks, Tool(asks.load(), name="threaded", lane="thread")) as bench:
        for name in ("asks", "threaded"):
            run, told = await bench.begin(bench.attempt(name))
            assert await told.until("asks") == "first?"
            run.answer("one", 1)
            run.answer("not asked for", 1)
            while len(told.of("asks")) < 2:
                told._changed.clear()
                await told._changed.wait()
            run.answer("two", 2)
            assert (await told.end()).result == "one two"


# --- threads ---


async def test_a_thread_that_does_not_look_keeps_its_place_and_has_finished_when_it_returns(tmp_path: Path) -> None:
    gate = Gate()

    @tool
    def deaf() -> str:
        gate.hold()
        return "all of it"

    async with house(tmp_path, deaf) as bench:
        run, told = await bench.begin(bench.attempt("deaf", terms=NO_GRACE))
        await gate.until_entered()
        run.stop("user")
        run.stop("user", force=True)
        await asyncio.sleep(0)
        assert told.of("ended") == []
        gate.opened.set()
        outcome = await told.end()
        assert (outcome.kind, outcome.result) == ("succeeded", "all of it")


async def test_a_tool_that_knows_nothing_of_jobs_sees_that_it_is_to_end_and_its_progress_is_kept(
    tmp_path: Path,
) -> None:
    @tool
    def old(period: float) -> str:
        progress(0.25, "a quarter")
        while not cancelled():
            threading.Event().wait(period)
        return "half of it"

    async with house(tmp_path, old) as bench:
        run, told = await bench.begin(bench.attempt("old", {"period": 0.002}))
        assert await told.until("progress") == {"fraction": 0.25, "message": "a quarter"}
        run.stop("user")
        assert (await told.end()).kind == "stopped"


async def test_a_thread_that_hangs_does_not_hang_the_end_of_the_server(tmp_path: Path) -> None:
    gate = Gate()
    threads: list[threading.Thread] = []

    @tool
    def hangs() -> None:
        threads.append(threading.current_thread())
        gate.hold()

    async with house(tmp_path, hangs) as bench:
        _, told = await bench.begin(bench.attempt("hangs"))
        await gate.until_entered()
    assert threads[0].daemon
    assert told.of("ended") == []
    gate.opened.set()
    await asyncio.to_thread(threads[0].join)


@pytest.mark.parametrize("lane", ["loop", "thread"])
async def test_a_job_waits_for_an_upstream_that_takes_no_calls(tmp_path: Path, lane: Any) -> None:
    calls: list[int] = []

    def refused_once() -> int:
        calls.append(1)
        if len(calls) == 1:
            raise RateLimited("not now", retry_after_ms=20)
        return len(calls)

    async with house(tmp_path, Tool(refused_once, lane=lane, upstream="service")) as bench:
        assert (await bench.outcome("refused_once")).result == 2


# --- its beginning, and other actors ---


async def test_a_tool_that_cannot_be_imported_never_started(tmp_path: Path) -> None:
    async with house(tmp_path, lazy_tool("no_such_module_at_all:run")) as bench:
        outcome = await bench.outcome("run")
        assert (outcome.kind, outcome.permanent) == ("unstarted", True)
        assert "no_such_module_at_all" in outcome.message


async def test_a_start_that_is_cancelled_is_known_never_to_have_been(tmp_path: Path) -> None:
    gate = Gate()
    lazy = lazy_tool("tests.scripts.lazy:reverse")
    lazy.load = gate.hold  # type: ignore[method-assign,assignment]

    async with house(tmp_path, lazy) as bench:
        attempt = bench.attempt("reverse", {"text": "abc"})
        begin = asyncio.create_task(bench.begin(attempt))
        await gate.until_entered()
        begin.cancel()
        with pytest.raises(asyncio.CancelledError):
            await begin
        gate.opened.set()
        told = Told()
        await bench.runner.run(attempt, told).adopt()
        assert (await told.end()).kind == "unstarted"


async def test_who_left_an_attempt_is_told_nothing_more_and_who_adopts_it_all_that_the_job_does_not_know(
    tmp_path: Path,
) -> None:
    gate = Gate()

    @tool
    async def tells(ctx: JobContext) -> str:
        ctx.progress(0.5, "half")
        ctx.checkpoint([1])
        ctx.artifact("kept.txt", "text")
        ctx.log("a line")
        await gate.wait_async()
        return "done"

    async with house(tmp_path, tells) as bench:
        attempt = bench.attempt("tells")
        run, before = await bench.begin(attempt)
        await before.until("log")
        said, fields = list(before.all), dict(before.fields)
        run.leave()
        told = Told()
        await (run := bench.runner.run(attempt, told)).adopt()
        assert (told.fields, sorted(kind for kind, _ in told.all)) == (fields, sorted(kind for kind, _ in said))
        run.leave()
        gate.opened.set()
        await turns_until(lambda: bench.runner.ends)  # type: ignore[attr-defined]
        assert (before.all, told.of("ended")) == (said, [])
        await bench.runner.run(attempt, last := Told()).adopt()
        assert (await last.end()).result == "done"


@pytest.mark.parametrize("state", [State.STARTING, State.RUNNING, State.STOPPING])
async def test_an_attempt_of_a_server_that_has_ended_is_lost(tmp_path: Path, state: State) -> None:
    @tool
    async def never() -> None:
        raise AssertionError

    async with house(tmp_path, never) as bench:
        told = Told()
        await bench.runner.run(bench.attempt("never", state=state), told).adopt()
        assert (await told.end()).kind == "lost"


async def test_a_server_that_ends_tells_its_attempts_and_reports_nothing(tmp_path: Path) -> None:
    ends: list[str] = []
    gate, seen = Gate(), threading.Event()

    @tool
    async def waits() -> None:
        try:
            await gate.wait_async()
        finally:
            ends.append("waits")

    @tool
    def looks(ctx: JobContext, period: float) -> None:
        while not ctx.cancelled:
            threading.Event().wait(period)
        seen.set()

    async with house(tmp_path, waits, looks) as bench:
        _, one = await bench.begin(bench.attempt("waits"))
        _, other = await bench.begin(bench.attempt("looks", {"period": 0.002}))
        await gate.until_entered()
        bench.runner.close()
        assert await asyncio.to_thread(seen.wait, 10)
        assert ends == ["waits"]
    assert one.of("ended") == other.of("ended") == []


# --- virtual time ---


def test_in_virtual_time_a_plain_function_is_one_step_and_nothing_is_written() -> None:
    threads: list[int] = []

    @tool
    def plain(ctx: JobContext) -> str:
        threads.append(threading.get_ident())
        ctx.log("a line")
        ctx.artifact("kept.txt", "text")
        ctx.progress(1.0)
        return "done"

    @tool
    def asks(ctx: JobContext) -> None:
        ctx.ask_input("anybody?")

    async def main(bench: Bench, loop: VirtualLoop) -> None:
        _, told = await bench.begin(bench.attempt("plain"))
        assert (await told.end()).result == "done"
        assert threads == [threading.get_ident()]
        assert told.fields == {"progress": 1.0, "message": "", "artifacts": {"kept.txt": 4}, "log": 7}
        assert "make it a coroutine function" in (await bench.outcome("asks")).message

    simulated(main, plain, asks)
    assert not Path("/nowhere").exists()


def test_the_clocks_of_an_attempt_are_those_of_the_house() -> None:
    @tool
    async def silent(ctx: JobContext) -> None:
        ctx.progress(0.1)
        await ctx.ask_input("may I?")
        await asyncio.sleep(1_000_000)

    async def main(bench: Bench, loop: VirtualLoop) -> None:
        terms = Terms(heartbeat=60, attempt_timeout=7_200)
        run, told = await bench.begin(bench.attempt("silent", terms=terms))
        await asyncio.sleep(3_600)  # who waits for input has nothing to say
        run.answer("yes", 1)
        assert told.of("ended") == []
        await asyncio.sleep(66)
        assert (await told.end()).reason == "heartbeat"
        assert told.of("ended")[0].at <= EPOCH + 3_600 + 66
        begun = loop.elapsed
        outcome = await bench.outcome(
            "silent", terms=Terms(soft_grace=0), expires_at=bench.system.wall() + 50, attempt=2
        )
        assert (outcome.reason, loop.elapsed - begun) == ("deadline", 50)

    simulated(main, silent)


# --- what is said ---


@asynccontextmanager
async def context(folder: Path, wake: Callable[[], object] = lambda: None) -> AsyncIterator[InsideContext]:
    async with running() as system:
        yield InsideContext(Bench(system, None, folder).attempt("x"), system, wake, awaits=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", ".hidden", "../up", "a/b", "/etc/passwd", "x" * 201, "nul\0", "line\n"])
async def test_an_artifact_has_a_plain_name(tmp_path: Path, name: str) -> None:
    async with context(tmp_path) as ctx:
        with pytest.raises(ValueError, match="file that is kept"):
            ctx.artifact(name, b"")


async def test_an_artifact_is_whole_or_not_there(tmp_path: Path) -> None:
    async with context(tmp_path) as ctx:
        (tmp_path / "source").write_bytes(b"\0\1\2")
        ctx.artifact("x" * 200, tmp_path / "source")
        with pytest.raises(FileNotFoundError):
            ctx.artifact("missing", tmp_path / "nothing")
        folder = tmp_path / "jobs" / "job_x" / "artifacts"
        (folder / "taken").mkdir()
        with pytest.raises(OSError, match="taken"):
            ctx.artifact("taken", b"content")
        (folder / "taken").rmdir()
        assert {each.name: each.read_bytes() for each in folder.iterdir()} == {"x" * 200: b"\0\1\2"}
        assert ctx.take()[1] == {"artifacts": {"x" * 200: 3}}


async def test_a_checkpoint_is_what_json_can_say_and_no_more_than_that(tmp_path: Path) -> None:
    async with context(tmp_path) as ctx:
        data = {"at": [1]}
        ctx.checkpoint(data)
        data["at"].append(2)
        assert ctx.take()[1] == {"checkpoint": {"at": [1]}}
        with pytest.raises(ValueError, match="262,146 bytes"):
            ctx.checkpoint("x" * 262_144)
        with pytest.raises(TypeError):
            ctx.checkpoint(object())


async def test_a_second_question_waits_for_nobody(tmp_path: Path) -> None:
    async with context(tmp_path) as ctx:
        first = asyncio.create_task(asyncio.to_thread(ctx.ask_input, "one?"))
        await turns_until(lambda: ctx.question)
        with pytest.raises(RuntimeError, match="another question"):
            ctx.ask_input("two?")
        ctx.reply("yes", 1)
        assert await first == "yes"


SAID = st.lists(st.tuples(st.sampled_from(["progress", "checkpoint", "artifact", "take"]), st.floats(0, 0.002)))


@given(said=SAID, most=st.integers(3, 1_000))
def test_progress_gives_way_only_to_the_next_and_what_was_said_last_always_stays(
    said: list[tuple[str, float]], most: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inside_context, "MOST_WAITING", most)
        clock = [0.0]
        system = ActorSystem(clock=lambda: clock[0])
        system.after = lambda *_: lambda: None  # type: ignore[method-assign]
        system.simulated = True  # type: ignore[misc]
        ctx = InsideContext(Bench(system, None, Path("/nowhere")).attempt("x"), system, lambda: None, awaits=None)  # type: ignore[arg-type]
        taken: list[Any] = []
        fields: dict[str, Any] = {}
        expected: dict[str, Any] = {}
        whole: list[tuple[str, Any]] = []
        held_up = False
        for number, (kind, seconds) in enumerate([*said, ("take", 0.0)], 1):
            clock[0] += seconds
            if kind == "take":
                held_up |= len(ctx._notes) >= most
                notes, changed = ctx.take()
                taken += notes
                fields |= changed
            elif kind == "progress":
                ctx.progress(0.5, str(number))
                whole.append((kind, str(number)))
                expected |= {"progress": 0.5, "message": str(number)}
            elif kind == "checkpoint":
                ctx.checkpoint("x" * number)
                whole.append((kind, number + 2))
                expected["checkpoint"] = "x" * number
            else:
                ctx.artifact(str(number), b"")
                whole.append((kind, str(number)))
                expected.setdefault("artifacts", {})[str(number)] = 0
    told = [(each.kind, each.data.get("name", each.data.get("message", each.data.get("bytes")))) for each in taken]
    assert fields == expected
    places = iter(whole)
    assert all(each in places for each in told), "in the order in which it was said"
    assert [each for each in told if each[0] == "artifact"] == [each for each in whole if each[0] == "artifact"]
    if not held_up:  # of each run of one kind, the last is there
        lasts = [one for one, after in zip(whole, [*whole, ("", "")][1:], strict=True) if one[0] != after[0]]
        assert set(lasts) <= set(told)
    for kind in ("progress", "checkpoint"):
        assert [each for each in told if each[0] == kind][-1:] == [each for each in whole if each[0] == kind][-1:]


def test_progress_that_takes_its_time_is_kept() -> None:
    clock = [0.0]
    system = ActorSystem(clock=lambda: clock[0])
    system.after = lambda *_: lambda: None  # type: ignore[method-assign]
    system.simulated = True  # type: ignore[misc]
    ctx = InsideContext(Bench(system, None, Path("/nowhere")).attempt("x"), system, lambda: None, awaits=None)  # type: ignore[arg-type]
    for clock[0] in (0.0, 0.0005, 0.0011, 0.0022):
        ctx.progress(0.5, str(clock[0]))
    assert [each.data["message"] for each in ctx.take()[0]] == ["0.0005", "0.0011", "0.0022"]


async def test_a_flood_of_progress_is_thinned_out_and_its_last_is_told(tmp_path: Path) -> None:
    @tool
    def floods(ctx: JobContext) -> None:
        for number in range(20_001):
            ctx.progress(number / 20_000, str(number))

    async with house(tmp_path, floods) as bench:
        _, told = await bench.begin(bench.attempt("floods"))
        await told.end()
        numbers = [int(each["message"]) for each in told.of("progress")]
        assert numbers == sorted(set(numbers))
        assert numbers[-1] == 20_000
        assert len(numbers) < 2_000


# --- the log ---


@given(chunks=st.lists(st.binary(max_size=300), max_size=60), cap=st.integers(8, 400))
def test_of_a_log_the_beginning_and_the_end_are_kept_within_the_cap(chunks: list[bytes], cap: int) -> None:
    whole = b"".join(chunks)
    with TemporaryDirectory() as name:
        folder = Path(name) / "made" / "when" / "needed"
        log = LogWriter(folder, cap)
        for chunk in chunks:
            log.write(chunk)
        log.close()
        log.write(b"too late")
        kept = {int(each.name.removeprefix("log.")): each.read_bytes() for each in folder.glob("log.*")}
        assert folder.exists() == bool(whole)
    assert log.end == len(whole)
    assert sum(map(len, kept.values())) <= cap
    for offset, data in kept.items():
        assert data == whole[offset : offset + len(data)]
    part = cap // 8
    covered = {place for offset, data in kept.items() for place in range(offset, offset + len(data))}
    assert covered >= set(range(min(len(whole), part * 4))), "the beginning"
    assert covered >= set(range(max(0, len(whole) - part * 3), len(whole))), "the end"
    if len(whole) <= part * 8:
        assert len(covered) == len(whole), "all of it"


def test_a_disk_that_is_full_leaves_a_hole_in_the_log_that_is_told_of_and_no_error(tmp_path: Path) -> None:
    blocked = tmp_path / "folder"
    blocked.write_text("in the way")
    log = LogWriter(blocked, 4_096)
    log.write(b"lost\n")
    blocked.unlink()
    log.write(b"kept\n")
    log.close()
    (kept,) = blocked.iterdir()
    assert kept.name == "log.000000000005"
    assert kept.read_bytes() == b"kept\n[grami] 5 bytes of output were dropped: File exists\n"
    assert log.end == 5 + kept.stat().st_size


def test_what_a_disk_did_not_take_in_the_middle_of_a_log_is_a_hole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "no space")

    log = LogWriter(tmp_path, 4_096)
    log.write(b"one\n")
    with monkeypatch.context() as full:
        full.setattr(os, "write", no_space)
        log.write(b"two\n")
    log.write(b"three\n")
    log.close()
    kept = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    told = b"[grami] 4 bytes of output were dropped: no space\n"
    assert kept == {"log.000000000000": b"one\n", "log.000000000008": b"three\n" + told}


async def test_a_log_has_no_more_than_its_tool_may_keep(tmp_path: Path) -> None:
    @tool
    def talks(ctx: JobContext) -> None:
        for number in range(1_000):
            ctx.log(f"line {number}")

    async with house(tmp_path, talks) as bench:
        attempt: Attempt = bench.attempt("talks", terms=Terms(limits=Limits(log=4_096)))
        _, told = await bench.begin(attempt)
        await told.end()
        assert told.fields["log"] == sum(len(f"line {number}\n") for number in range(1_000))
        kept = sorted(attempt.folder.glob("log.*"))
        assert sum(each.stat().st_size for each in kept) <= 4_096
        assert kept[0].read_text().startswith("line 0\n")
        assert kept[-1].read_text().endswith("line 999\n")
