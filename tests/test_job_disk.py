"""Jobs whose state directory cannot be written: refused at the start, held while they run, and none fails of it."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

import pytest

from grami_actors.errors import ConfigError, GramiError
from grami_actors.job import Order, State
from grami_actors.job_requests import AnswerJob, CancelJob, ListJobs
from grami_actors.jobs.state_dir import StateDirectory
from grami_actors.telemetry import Doubted
from tests.conftest import Recorder
from tests.test_job_faults import alive, house, small_disk, there

TOOLS = Path(__file__).parent / "fault_tools.py"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@contextmanager
def sealed(*paths: Path) -> Iterator[None]:
    """Files and folders that nobody can write, not even root."""
    root = os.geteuid() == 0
    modes = {each: each.stat().st_mode for each in paths}
    try:
        if root and subprocess.run(["chattr", "+i", *paths], check=False, capture_output=True).returncode:
            pytest.skip("no file can be made immutable here")
        for each in () if root else paths:
            each.chmod(0o500 if each.is_dir() else 0o400)
        yield
    finally:
        if root:
            subprocess.run(["chattr", "-i", *paths], check=False, capture_output=True)
        else:
            for each, mode in modes.items():
                each.chmod(mode)


@pytest.fixture
def sealable(tmp_path: Path) -> None:
    """A file system on which nothing can be written through what is open: found out before there are jobs."""
    probe = tmp_path / "probe"
    with probe.open("wb", buffering=0) as file, sealed(probe), suppress(OSError):
        file.write(b"x")
        pytest.skip("what is open can be written here, whatever becomes of its file")


@contextmanager
def read_only(state: Path) -> Iterator[None]:
    """A state directory of which no byte can be written, not even through what is open."""
    # A file system that is really mounted read-only under an open database has nobody write to its mapped index.
    kept = [each for each in (state, *state.rglob("*")) if each.is_dir() or each.is_file()]
    with sealed(*(each for each in kept if not each.name.endswith("-shm"))):
        yield


@contextmanager
def mounted_read_only(disk: Path) -> Iterator[None]:
    """The same, of a file system of which nothing is open for writing."""
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)


def serve(state: Path) -> tuple[int, str]:
    """What `grami serve` ends with, and what it says."""
    arguments = ("serve", str(TOOLS), "--port", "0", "--state-dir", str(state))
    ended = subprocess.run(
        [sys.executable, "-m", "grami_actors", *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(TOOLS.parents[1]), "COLUMNS": "200"},
        check=False,
        capture_output=True,
        text=True,
        timeout=20,
    )
    return ended.returncode, " ".join((ended.stdout + ended.stderr).split())


# --- a server that starts ---


@pytest.mark.slow
async def test_a_server_refuses_to_start_on_a_disk_that_is_mounted_read_only(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        async with house(disk / "used") as at:
            job = await at.submit("witness", Order(not_before=time.time() + 1000), path="never", until="never")
        (disk / "empty").mkdir(mode=0o700)
        with mounted_read_only(disk):
            for name, why in (("used", "it cannot be written"), ("empty", "Read-only file system")):
                code, said = serve(disk / name)
                assert code == 1
                assert said == f"error: {disk / name} cannot be the state directory: {why}"
        async with house(disk / "used") as at:
            assert (await at.get(job)).state is State.QUEUED


@pytest.mark.slow
async def test_a_server_refuses_to_start_on_a_database_that_it_may_only_read(state: Path) -> None:
    async with house(state) as at:
        job = await at.submit("witness", Order(not_before=time.time() + 1000), path="never", until="never")
    with sealed(state / "jobs.db"):
        assert serve(state) == (1, f"error: {state / 'jobs.db'} cannot be written")
        assert sorted(each.name for each in state.iterdir()) == ["jobs", "jobs.db", "jobs.lock"]
    async with house(state) as at:
        assert (await at.get(job)).state is State.QUEUED


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
async def test_what_is_mounted_read_only_can_be_checked_and_copied(tmp_path: Path, *, killed: bool) -> None:
    with small_disk(tmp_path / "disk") as disk:
        async with house(disk / "state") as at:
            job = await at.submit("witness", Order(not_before=time.time() + 1000), path="never", until="never")
            if killed:  # as its server left it: with the log
                shutil.copytree(disk / "state", disk / "killed", ignore=lambda *_: ["wake"])
        kept = StateDirectory(disk / ("killed" if killed else "state"))
        with mounted_read_only(disk):
            checked = kept.check()
            assert (checked.sound, checked.damages, checked.states) == (True, (), {"QUEUED": 1})
            kept.backup(tmp_path / "copy")
    async with house(tmp_path / "copy") as at:
        assert (await at.get(job)).state is State.QUEUED


# --- jobs that run ---


@pytest.mark.slow
async def test_while_nothing_can_be_written_jobs_are_refused_or_held_and_afterwards_each_ends_as_it_did(
    state: Path, tmp_path: Path, sealable: None
) -> None:
    go, pid = tmp_path / "go", tmp_path / "pid"
    text = f"echo $$ > {pid}.new; mv {pid}.new {pid}; until test -e {go}; do sleep 0.01; done; echo said; exit 3"
    async with house(state, jobs_running=3) as at:
        doubts = Recorder(at.system, Doubted)
        failing = await at.submit("shell", text=text)
        asking, unwanted = await at.submit("asks"), await at.submit("asks")
        for each in (asking, unwanted):
            await at.until(each, lambda job: job.state is State.INPUT_REQUIRED)
        waiting = await at.submit("witness", path=str(tmp_path / "ran"), until=str(go))
        await there(pid)
        accepted = {failing, asking, unwanted, waiting}
        with read_only(state):
            for _ in range(3):
                with pytest.raises(GramiError, match="could not be written down, and was not accepted") as caught:
                    await at.submit("witness", path=str(tmp_path / "never"), until=str(go))
                assert (caught.value.error_code, caught.value.retryable) == ("RESOURCE_EXHAUSTED", True)
                assert caught.value.retry_after_ms
            wishes = [asyncio.create_task(at.ask(each)) for each in (AnswerJob(asking, 7), CancelJob(unwanted))]
            go.touch()
            while alive(int(pid.read_text())):
                await asyncio.sleep(0.005)
            assert "are held until they can" in (await doubts.first(Doubted)).text
            assert not any(each.done() for each in wishes)
            found = {each.id: each.state for each in await at.ask(ListJobs())}
            assert found == {
                failing: State.RUNNING,
                asking: State.INPUT_REQUIRED,
                unwanted: State.INPUT_REQUIRED,
                waiting: State.QUEUED,
            }
        await asyncio.gather(*wishes)
        ends = {each: await at.end(each) for each in accepted}
        assert {each.id for each in await at.ask(ListJobs())} == accepted
    assert {each.attempt for each in ends.values()} == {1}
    assert ends[failing].state is State.FAILED
    assert ends[failing].exit is not None
    assert ends[failing].exit.code == 3
    assert (ends[asking].state, ends[asking].result) == (State.SUCCEEDED, [7])
    assert (ends[unwanted].state, ends[unwanted].reason) == (State.CANCELLED, "user")
    assert (ends[waiting].state, (tmp_path / "ran").read_text()) == (State.SUCCEEDED, "ran\n")


@pytest.mark.slow
async def test_a_server_that_ends_while_nothing_can_be_written_leaves_its_jobs_to_the_next(
    state: Path, tmp_path: Path, sealable: None
) -> None:
    go, ran = tmp_path / "go", tmp_path / "ran"
    with ExitStack() as later:
        async with house(state) as at:
            job = await at.submit("witness", path=str(ran), until=str(go))
            await there(ran)
            later.enter_context(read_only(state))
            go.touch()
        with pytest.raises(ConfigError, match="cannot be"):
            async with house(state):
                pass
    async with house(state) as at:
        found = await at.end(job)
        assert (found.state, found.result, ran.read_text()) == (State.SUCCEEDED, "done", "ran\n")


# --- jobs that are to start ---


@pytest.mark.slow
@pytest.mark.parametrize("how", ["mounted", "sealed"])
async def test_what_cannot_be_started_where_no_folder_can_be_made_waits_and_is_not_failed(
    state: Path, tmp_path: Path, how: str
) -> None:
    """Its files find no place, and the store still does."""
    with small_disk(tmp_path / "disk") if how == "mounted" else nullcontext(tmp_path / "other") as disk:
        disk.mkdir(exist_ok=True)
        disk.chmod(0o700)
        state.mkdir(mode=0o700)
        (state / "jobs").symlink_to(disk)
        async with house(state) as at:
            with mounted_read_only(disk) if how == "mounted" else sealed(disk):
                job = await at.submit("patient")
                found = await at.until(job, lambda each: each.attempt > 5 or each.state.terminal)
                assert not found.state.terminal, found.fault
            assert (await at.end(job)).result == "done"
