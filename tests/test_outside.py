"""Attempts under real shims: begun, followed, adopted by another, killed with all that they have."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from grami_actors.job import Job, State, Terms, new_id
from grami_actors.jobs import processes, wakes
from grami_actors.jobs.folder import AttemptFolder, Verdict
from grami_actors.jobs.logs import read_log
from grami_actors.jobs.outside import OutsideRun, OutsideRunner
from grami_actors.jobs.runner import Attempt, Outcome
from grami_actors.jobs.store import Note
from grami_actors.jobs.wakes import Wakes
from tests.outside_tools import TOOLS

ROOT = Path(__file__).parents[1]


class Told:
    """What a run reported; keeps the job as a store would."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.starts: list[float] = []
        self.notes: list[Note] = []
        self.questions: list[Any] = []
        self.outcomes: list[Outcome] = []
        self.held: asyncio.Future[None] | None = None
        self.calls = 0
        self._changed = asyncio.Event()

    def started(self, at: float) -> None:
        self.starts.append(at)
        self._set({"state": State.RUNNING})

    def noted(self, notes: Any, fields: dict[str, Any]) -> asyncio.Future[None]:
        assert not self.outcomes
        self.notes += notes
        self.calls += 1
        return self._set(fields)

    def asks(self, question: Any, at: float, fields: dict[str, Any]) -> asyncio.Future[None]:
        self.questions.append(question)
        return self._set(fields)

    def ended(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self._set({})

    def _set(self, fields: dict[str, Any]) -> asyncio.Future[None]:
        self.job = msgspec.structs.replace(self.job, **fields)
        self._changed.set()
        if self.held is not None:
            return self.held
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    async def until(self, condition: Callable[[], Any]) -> Any:
        while not (found := condition()):
            self._changed.clear()
            await self._changed.wait()
        return found

    async def end(self) -> Outcome:
        return await self.until(lambda: self.outcomes and self.outcomes[0])

    def said(self, kind: str) -> list[dict[str, Any]]:
        return [each.data for each in self.notes if each.kind == kind]


class Server:
    """As much of a server as runs need."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.wakes = Wakes(folder / "jobs" / "wake")
        self.runner = OutsideRunner(self.wakes, TOOLS)

    def job(self, tool: str, *, checkpoint: Any = None, expires_at: float | None = None, **arguments: Any) -> Job:
        terms = arguments.pop("terms", Terms(soft_grace=0.2, term_grace=0.2))
        return Job(
            id=new_id(time.time(), random.Random()),
            tool=tool,
            arguments=arguments,
            owner="somebody",
            digest="",
            created_at=time.time(),
            due_at=time.time(),
            terms=terms,
            state=State.STARTING,
            attempt=1,
            checkpoint=checkpoint,
            expires_at=expires_at,
        )

    def path(self, job: Job) -> Path:
        return self.folder / "jobs" / job.id / str(job.attempt)

    def run(self, job: Job) -> tuple[OutsideRun, Told]:
        told = Told(job)
        return self.runner.run(Attempt(job, self.path(job)), told), told

    async def begun(self, tool: str, **arguments: Any) -> tuple[OutsideRun, Told]:
        run, told = self.run(self.job(tool, **arguments))
        await run.begin()
        return run, told

    def log(self, job: Job) -> bytes:
        return read_log(self.path(job), 0, 1_000_000, over=True).data


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Server]:
    async with asyncio.timeout(30):
        server = Server(folder)
        folder.joinpath("jobs").mkdir(parents=True, exist_ok=True)
        server.wakes.open()
        try:
            yield server
        finally:
            server.wakes.close()


def nothing_lives(server: Server, job: Job) -> bool:
    folder = AttemptFolder(server.path(job))
    mark = folder.read("spec.json")["mark"]
    return not (processes.members(mark, folder.tree_lock) or folder.alive or folder.tree_alive)


# --- its course ---


async def test_a_command_is_started_once_and_its_end_is_told_with_its_output(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        _run, told = await server.begun("shell", text="echo hello; exit 0")
        outcome = await told.end()
        assert (outcome.kind, outcome.result) == ("succeeded", {"exit_code": 0, "output": "hello\n"})
        assert outcome.exit is not None
        assert outcome.exit.code == 0
        assert len(told.starts) == 1
        assert told.said("log") == [{"end": 6}]
        assert told.job.log == 6
        assert server.log(told.job) == b"hello\n"
        assert nothing_lives(server, told.job)
        assert not server.wakes._descriptors, "the shim was reaped"
        with pytest.raises(ChildProcessError):
            os.waitpid(AttemptFolder(server.path(told.job)).read("run.json")["pid"], os.WNOHANG)


async def test_a_variable_of_the_server_that_is_no_text_is_in_no_job_and_keeps_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_ALL", "\udcff")
    async with serving(tmp_path) as server:
        _, told = await server.begun("shell", text="echo ${LC_ALL-none}")
        assert (await told.end()).result == {"exit_code": 0, "output": "none\n"}
        monkeypatch.setattr(sys, "path", [*sys.path, "/\udcff"])
        _, other = await server.begun("count", to=1)
        outcome = await other.end()
        assert (outcome.kind, outcome.permanent) == ("unstarted", True)
        assert "cannot be written down" in outcome.message
        assert not server.runner.runs


async def test_an_exit_code_and_a_signal_are_told_as_they_were(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        _, one = await server.begun("shell", text="exit 7")
        _, other = await server.begun("shell", text="kill -SEGV $$")
        outcomes = [await one.end(), await other.end()]
        assert [(each.kind, each.exit.code, each.exit.signal) for each in outcomes if each.exit] == [
            ("failed", 7, None),
            ("failed", None, signal.SIGSEGV),
        ]
        assert "exit code 7" in outcomes[0].message
        assert "SIGSEGV" in outcomes[1].message


async def test_what_a_function_says_is_told_once_and_in_order(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        _, told = await server.begun("count", to=500)
        outcome = await told.end()
        assert (outcome.kind, outcome.result) == ("succeeded", 500)
        assert [each["message"] for each in told.said("progress")] == [f"number {each}" for each in range(500)]
        assert told.said("checkpoint") == [{"bytes": 3}]
        assert told.said("artifact") == [{"name": "numbers.txt", "bytes": 4}]
        assert told.said("log")[-1] == {"end": 8}
        job = told.job
        assert (job.checkpoint, job.artifacts, job.message) == (500, {"numbers.txt": 4}, "number 499")
        assert job.imported == (server.path(job) / "record.jsonl").stat().st_size


async def test_a_later_attempt_gets_the_checkpoint(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        _, told = await server.begun("count", to=5, checkpoint=3)
        assert (await told.end()).result == 5
        assert [each["message"] for each in told.said("progress")] == ["number 3", "number 4"]


async def test_a_question_is_told_and_its_answer_handed_on(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        run, told = await server.begun("ask")
        await told.until(lambda: told.questions)
        assert told.questions == [{"which": [1, 2]}]
        run.answer({"it": "ü"}, 1)
        assert (await told.end()).result == "{'it': 'ü'}!"


async def test_no_more_is_read_before_what_was_told_is_written_down(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        run, told = server.run(server.job("count", to=5_000))
        told.held = asyncio.get_running_loop().create_future()
        await run.begin()
        folder = AttemptFolder(server.path(told.job))
        while not folder.finished:
            await asyncio.sleep(0.01)
        assert told.calls == 1
        told.held.set_result(None)
        assert (await told.end()).kind == "succeeded"
        assert told.said("progress")[-1]["message"] == "number 4999"


async def test_a_run_whose_report_is_cancelled_reports_nothing_more(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        run, told = server.run(server.job("count", to=10))
        told.held = asyncio.get_running_loop().create_future()
        await run.begin()
        await told.until(lambda: told.calls)
        told.held.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run._task
        assert not told.outcomes
        assert not server.wakes._watchers


# --- what never starts ---


async def test_a_program_that_is_not_there_is_told_as_never_started(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        _, told = await server.begun("nothing")
        outcome = await told.end()
        assert (outcome.kind, outcome.permanent) == ("unstarted", True)
        assert "No such file" in outcome.message


async def test_a_tool_that_is_gone_or_takes_other_arguments_is_told_as_never_started(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        for job, code in (
            (server.job("gone"), "JOB_REJECTED"),
            (server.job("shell", other=1), "VALIDATION_FAILED"),
        ):
            run, told = server.run(job)
            await run.begin()
            assert [(each.kind, each.code, each.permanent) for each in told.outcomes] == [("unstarted", code, True)]


async def test_a_disk_that_takes_no_spec_is_told_as_never_started_and_may_be_tried_again(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        job = server.job("count", to=1)
        server.path(job).parent.write_text("in the way")
        run, told = server.run(job)
        await run.begin()
        assert [(each.kind, each.permanent) for each in told.outcomes] == [("unstarted", False)]


async def test_a_shim_that_dies_before_it_begins_is_told_as_never_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAMI_FAILPOINT", "shim.before_run:1:kill9")
    async with serving(tmp_path) as server:
        _run, told = await server.begun("count", to=1)
        assert [(each.kind, each.permanent) for each in told.outcomes] == [("unstarted", False)]
        monkeypatch.delenv("GRAMI_FAILPOINT")
        again, told = server.run(told.job)
        await again.adopt()
        assert (await told.end()).result == 1


@pytest.mark.parametrize("turns", [0, 1, 2, 10])
async def test_an_attempt_whose_begin_is_cancelled_runs_once(tmp_path: Path, turns: int) -> None:
    async with serving(tmp_path) as server:
        file = tmp_path / "witness"
        job = server.job("witness", path=str(file))
        first, _ = server.run(job)
        beginning = asyncio.ensure_future(first.begin())
        for _ in range(turns):
            await asyncio.sleep(0)
        beginning.cancel()
        first.leave()
        for run, told in (server.run(job), server.run(job)):
            await run.adopt()
            assert (await told.end()).kind == "succeeded"
        assert file.read_text() == "ran\n"


# --- its end by somebody else ---


async def test_a_job_is_asked_to_end(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        run, told = await server.begun("wait_for", path=str(tmp_path / "never"), terms=Terms())
        await told.until(lambda: told.said("progress"))
        run.stop("user")
        outcome = await told.end()
        assert (outcome.kind, outcome.reason) == ("stopped", "user")
        assert outcome.exit is not None
        assert not outcome.exit.forced


async def test_a_second_stop_is_one_by_force(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        text = "trap '' TERM; echo ready; sleep 600"
        run, told = await server.begun("shell", text=text, terms=Terms(soft_grace=600, term_grace=600))
        run.stop("user")
        run.stop("user")
        outcome = await told.end()
        assert (outcome.kind, outcome.reason) == ("stopped", "user")
        assert outcome.exit is not None
        assert outcome.exit.forced
        assert nothing_lives(server, told.job)


async def test_an_order_that_cannot_be_written_is_given_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wakes, "SWEEP", 0.02)
    async with serving(tmp_path) as server:
        run, told = await server.begun("shell", text="sleep 600")
        control = server.path(told.job) / "control"
        control.rmdir()
        control.write_text("in the way")
        run.stop("user", force=True)
        control.unlink()
        assert (await told.end()).reason == "user"


async def test_a_job_that_is_to_end_with_its_server_does(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        run, told = await server.begun("shell", text="sleep 600", terms=Terms(on_server_exit="stop", soft_grace=0))
        run.leave()
    async with serving(tmp_path) as server:
        again, told = server.run(told.job)
        await again.adopt()
        outcome = await told.end()
        assert (outcome.kind, outcome.reason) == ("stopped", "shutdown")


async def test_a_deadline_is_held_by_the_shim(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        _, told = await server.begun("shell", text="sleep 600", expires_at=time.time() + 0.1)
        assert (await told.end()).reason == "deadline"


# --- adopted ---


async def test_a_run_goes_on_where_the_one_before_let_go(tmp_path: Path) -> None:
    file = tmp_path / "file"
    async with serving(tmp_path) as server:
        run, told = await server.begun("wait_for", path=str(file))
        await told.until(lambda: told.said("progress"))
        run.leave()
        before = told.notes
    async with serving(tmp_path) as server:
        again, told = server.run(told.job)
        await again.adopt()
        assert not told.starts, "it was told before"
        file.write_text("done")
        assert (await told.end()).result == "done"
        assert [each.data["message"] for each in (*before, *told.notes) if each.kind == "progress"][1:] == ["there"]


async def test_what_ended_while_no_server_was_there_is_told_whole(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        job = server.job("count", to=50)
        run, _ = server.run(job)
        await run.begin()
        run.leave()
    folder = AttemptFolder(server.path(job))
    while folder.verdict() is not Verdict.FINISHED:
        await asyncio.sleep(0.01)
    async with serving(tmp_path) as server:
        again, told = server.run(job)
        await again.adopt()
        outcome = await told.end()
        assert (outcome.kind, outcome.result, len(told.starts)) == ("succeeded", 50, 1)
        assert len(told.said("progress")) == 50
        ending = folder.read("exit.json")
        assert outcome.at == ending["at"]
        assert told.starts == [folder.read("run.json")["at"]]


@pytest.mark.parametrize("place", ["before_spawn", "after_spawn"])
async def test_an_attempt_runs_once_though_its_server_is_killed(tmp_path: Path, place: str) -> None:
    file = tmp_path / "witness"
    server = Server(tmp_path)
    job = server.job("witness", path=str(file))
    program = textwrap.dedent(
        """
        import asyncio, sys, msgspec
        from pathlib import Path
        from grami_actors.job import Job
        from tests.test_outside import Server
        async def main():
            server = Server(Path(sys.argv[1]))
            server.wakes.open()
            await server.run(msgspec.json.decode(sys.argv[2], type=Job))[0].begin()
        asyncio.run(main())
        """
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), msgspec.json.encode(job).decode()],
        env={**os.environ, "PYTHONPATH": str(ROOT), "GRAMI_FAILPOINT": f"outside.{place}:1:kill9"},
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL
    async with serving(tmp_path) as server:
        run, told = server.run(job)
        await run.adopt()
        assert (await told.end()).kind == "succeeded"
        assert len(told.starts) == 1
    assert file.read_text() == "ran\n"


# --- a shim that dies ---


async def test_a_shim_that_is_killed_loses_the_job_and_nothing_of_it_lives_on(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        _run, told = await server.begun("escape", path=str(tmp_path / "escaped"))
        await told.until(lambda: told.said("progress"))
        while len(escaped := list(tmp_path.glob("escaped.*"))) < 2:
            await asyncio.sleep(0.01)
        pids = [int(each.suffix[1:]) for each in escaped] + [int(told.said("progress")[0]["message"])]
        assert all(processes.process(pid) for pid in pids)
        os.kill(AttemptFolder(server.path(told.job)).read("run.json")["pid"], signal.SIGKILL)
        outcome = await told.end()
        assert (outcome.kind, outcome.exit) == ("lost", None)
        assert nothing_lives(server, told.job)
        assert not [pid for pid in pids if (now := processes.process(pid)) and now.state not in "ZX"]


async def test_a_shim_that_was_killed_while_no_server_was_there_is_found_out(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        run, told = await server.begun("shell", text="sleep 600 & sleep 600")
        run.leave()
        folder = AttemptFolder(server.path(told.job))
        os.kill(folder.read("run.json")["pid"], signal.SIGKILL)
        while folder.alive:
            await asyncio.sleep(0.01)
        assert folder.verdict() is Verdict.ORPHANED
        again, told = server.run(told.job)
        await again.adopt()
        assert (await told.end()).kind == "lost"
        assert folder.verdict() is Verdict.DEAD


@pytest.mark.parametrize("served", [True, False])
async def test_a_job_whose_folder_is_removed_is_ended_and_lost_and_not_started_again(
    tmp_path: Path, *, served: bool
) -> None:
    async with serving(tmp_path) as server:
        run, told = await server.begun("shell", text="setsid sleep 600 & sleep 600")
        folder = AttemptFolder(server.path(told.job))
        while len(pids := [each.pid for each in processes.members("", folder.tree_lock)]) < 3:
            await asyncio.sleep(0.01)
        if served:
            shutil.rmtree(folder.path.parent)
        else:
            run.leave()
            shutil.rmtree(folder.path.parent)
            run, told = server.run(msgspec.structs.replace(told.job, state=State.RUNNING))
            await run.adopt()
        outcome = await told.end()
        assert (outcome.kind, "restarted" in outcome.message) == ("lost", False)
        assert not [pid for pid in pids if (now := processes.process(pid)) and now.state not in "ZX"]


async def test_a_server_on_a_copy_of_the_state_touches_no_process_of_the_one_it_was_copied_from(tmp_path: Path) -> None:
    async with serving(tmp_path / "one") as server, serving(tmp_path / "two") as other:
        run, told = await server.begun("shell", text="sleep 600")
        shutil.copytree(server.path(told.job), other.path(told.job), ignore=shutil.ignore_patterns("poke"))
        adopted, heard = other.run(msgspec.structs.replace(told.job, state=State.RUNNING))
        await adopted.adopt()
        outcome = await heard.end()
        assert (outcome.kind, "copied" in outcome.message) == ("lost", True)
        assert AttemptFolder(server.path(told.job)).tree_alive
        run.stop("user", force=True)
        assert (await told.end()).kind == "stopped"


async def test_after_a_restart_of_the_machine_no_process_is_touched(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        job = server.job("shell", text="")
        folder = AttemptFolder(server.path(job))
        with folder.locked():
            folder.write_spec({"mark": "of-another-boot"})
            (folder.path / "run.json").write_text(json.dumps({"pid": os.getpid(), "boot": "another", "at": 1.0}))
        other = subprocess.Popen(["sleep", "600"], env={**os.environ, processes.MARK: "of-another-boot"})
        try:
            run, told = server.run(job)
            await run.adopt()
            outcome = await told.end()
            assert outcome.kind == "lost"
            assert "restarted" in outcome.message
            assert other.poll() is None
        finally:
            other.kill()
            other.wait()


def test_a_process_is_killed_only_if_it_is_the_one_that_was_found() -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen(["cat"], stdin=pipe, stdout=pipe, bufsize=0) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        found = processes.process(other.pid)
        assert found is not None
        processes.kill(found._replace(started=found.started + 1))
        other.stdin.write(b"alive")
        assert other.stdout.read(5) == b"alive"
        processes.kill(found)
        assert other.wait() == -signal.SIGKILL


_MULTIPLIES = """
import os, time
print(flush=True)
while True:
    if os.fork() == 0:
        os.execvp("sleep", ["sleep", "600"])
    time.sleep(0.0002)
"""


def test_what_makes_processes_faster_than_they_are_found_is_cleared_at_once() -> None:
    environment = {**os.environ, processes.MARK: "multiplies"}
    with subprocess.Popen([sys.executable, "-c", _MULTIPLIES], env=environment, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        processes.clear("multiplies")
        other.wait()
    until = time.monotonic() + 1
    while (left := processes.members("multiplies")) and time.monotonic() < until:
        pass
    processes.clear("multiplies")
    assert left == []


# --- what wakes ---


async def test_without_pokes_and_descriptors_a_slow_look_finds_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wakes, "SWEEP", 0.02)
    monkeypatch.delattr(os, "pidfd_open")
    monkeypatch.setattr(Wakes, "_poked", lambda self: os.read(self._pipe, 65_536))
    async with serving(tmp_path) as server:
        _, told = await server.begun("count", to=3)
        assert (await told.end()).result == 3
        assert len(told.said("progress")) == 3
        _, killed = await server.begun("shell", text="sleep 600")
        os.kill(AttemptFolder(server.path(killed.job)).read("run.json")["pid"], signal.SIGKILL)
        assert (await killed.end()).kind == "lost"
        while server.wakes._unseen:
            await asyncio.sleep(0.01)


async def test_output_is_told_of_less_and_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grami_actors.jobs.outside.LOG_PAUSES", (0.1, 10.0))
    monkeypatch.setattr(wakes, "SWEEP", 0.01)
    async with serving(tmp_path) as server:
        _, told = await server.begun("shell", text="for n in $(seq 100); do echo $n; sleep 0.01; done")
        await told.end()
        ends = [each["end"] for each in told.said("log")]
        assert 3 <= len(ends) <= 6
        assert ends == sorted(set(ends))
        assert ends[-1] == 292


async def test_what_is_no_poke_is_passed_over(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        pipe = os.open(server.wakes.path, os.O_WRONLY | os.O_NONBLOCK)
        os.write(pipe, b"\xff\xfe nonsense\n\nx y z\n" + b"a" * 10_000)
        os.close(pipe)
        _, told = await server.begun("count", to=1)
        assert (await told.end()).result == 1


def test_uvloop_can_do_it_too(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as server:
            run, told = await server.begun("ask")
            await told.until(lambda: told.questions)
            run.answer("yes", 1)
            assert (await told.end()).result == "yes!"

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
