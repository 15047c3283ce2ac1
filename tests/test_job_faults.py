"""Jobs whose server, disk, actors, tools and clients do what they should not: each ends once, and as it ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grami_actors import Swarm, connect
from grami_actors.config import Config
from grami_actors.errors import ConfigError, GramiError
from grami_actors.frames import JOB_CONTROLS
from grami_actors.job import Job, JobEvent, Order, State, Step
from grami_actors.job_requests import (
    JOBS,
    AnswerJob,
    CancelJob,
    GetJob,
    ListJobs,
    ReadEvents,
    ReadOutput,
    RetryJob,
    SubmitJob,
)
from grami_actors.jobs.sqlite import SqliteStore
from grami_actors.jobs.store import Change
from grami_actors.manager import GrowthManager
from tests.conftest import heard, raw
from tests.fault_tools import swarm, talks, timed

ENDS = {str(state) for state in State if state.terminal}


class House:
    """A server with a state directory, as an agent of it sees its jobs."""

    def __init__(self, manager: GrowthManager) -> None:
        self.manager = manager
        self.system = manager.system

    async def ask(self, request: Any) -> Any:
        return await self.system.ask(JOBS, request)

    async def submit(self, tool: str, order: Order = Order(), **arguments: Any) -> str:  # noqa: B008 - it is frozen
        job: Job = await self.ask(SubmitJob(tool=tool, arguments=arguments, owner="ann", order=order))
        return job.id

    async def get(self, job: str) -> Job:
        found: Job = await self.ask(GetJob(job))
        return found

    async def until(self, job: str, condition: Callable[[Job], Any]) -> Job:
        """The job, when it is so."""
        while not condition(found := await self.get(job)):
            await self.ask(ReadEvents(job, found.seq, wait=5.0))
        return found

    async def end(self, job: str) -> Job:
        """The job at its end; which came once."""
        found = await self.until(job, lambda each: each.state.terminal)
        events: list[JobEvent] = await self.ask(ReadEvents(job))
        assert [each.seq for each in events] == list(range(1, len(events) + 1))
        assert [each.data["state"] for each in events if each.kind == "state" and each.data["state"] in ENDS] == [
            found.state
        ]
        return found

    async def refused(self, request: Any) -> str:
        with pytest.raises(GramiError) as caught:
            await self.ask(request)
        return str(caught.value.error_code)


@asynccontextmanager
async def house(folder: Path, what: Swarm | None = None, **settings: Any) -> AsyncIterator[House]:
    config = Config(state_dir=folder, drain_timeout=0.2, **settings)
    async with asyncio.timeout(30), GrowthManager(what or swarm, config) as manager:
        yield House(manager)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


async def there(path: Path) -> None:
    """Wait until another process has made a file."""
    while not path.exists():
        await asyncio.sleep(0.005)


def pids(folder: Path) -> list[int]:
    return [int(each.suffix[1:]) for each in folder.glob("tree.*")]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- somebody wants it to end ---


@pytest.mark.slow
@pytest.mark.parametrize("force", [False, True])
async def test_a_tree_that_ignores_sigterm_and_leaves_its_session_is_gone_when_its_job_is_cancelled(
    state: Path, tmp_path: Path, *, force: bool
) -> None:
    async with house(state) as at, connect(at.manager.url) as grami:
        job = await grami.jobs.submit("tree", {"path": str(tmp_path / "tree")})
        while len(pids(tmp_path)) < 2:
            await asyncio.sleep(0.005)
        begun = time.monotonic()
        assert all(alive(pid) for pid in pids(tmp_path))
        assert (await job.cancel(force=force)).state in {"STOPPING", "CANCELLED"}
        with pytest.raises(GramiError, match=r"(?i)cancel"):
            await job.result()
        assert not any(alive(pid) for pid in pids(tmp_path))
        assert time.monotonic() - begun < 0.3 + 2.0
        found = await at.end(job.id)
        assert (found.state, found.reason) == (State.CANCELLED, "user")
        assert found.exit is not None
        assert found.exit.forced
        assert await at.refused(CancelJob(job.id)) == "JOB_NOT_CANCELABLE"


@pytest.mark.slow
async def test_what_waits_for_its_turn_for_its_next_attempt_or_for_an_answer_is_cancelled(state: Path) -> None:
    async with house(state, jobs_running=1) as at:
        asking = await at.submit("asks")
        queued = await at.submit("witness", path="never", until="never")
        await at.until(asking, lambda job: job.state is State.INPUT_REQUIRED)
        await at.ask(CancelJob(queued))
        assert (await at.end(queued)).attempt == 0
        await at.ask(CancelJob(asking))
        assert (await at.end(asking)).state is State.CANCELLED
        failing = await at.submit("fails")
        await at.until(failing, lambda job: job.state is State.BACKOFF)
        assert (await at.ask(CancelJob(failing))).state is State.CANCELLED
        assert (await at.end(failing)).attempt == 1


@pytest.mark.slow
async def test_a_cancel_at_any_moment_of_a_short_job_leaves_one_end(state: Path) -> None:
    async with house(state, talks) as at:

        async def race(turns: int) -> State:
            job = await at.submit("shell", text="true")
            for _ in range(turns):
                await asyncio.sleep(0.004)
            try:
                await at.ask(CancelJob(job, force=turns % 2 == 0))
            except GramiError as error:
                assert error.error_code == "JOB_NOT_CANCELABLE"
            return (await at.end(job)).state

        ends = await asyncio.gather(*(race(turns) for turns in range(30)))
        assert set(ends) <= {State.SUCCEEDED, State.CANCELLED}
        assert State.CANCELLED in ends


@pytest.mark.slow
@pytest.mark.parametrize("detached", [False, True])
async def test_what_a_job_caused_ends_with_it_unless_it_was_detached(state: Path, *, detached: bool) -> None:
    async with house(state, timed) as at, connect(at.manager.url) as grami:
        parent = await grami.request("start", background=True, detached=detached)
        while len(found := await at.ask(ListJobs(tool="asks"))) < 1:
            await at.ask(ReadEvents(parent.id, (await at.get(parent.id)).seq, wait=0.02))
        (child,) = found
        assert child.parent == parent.id
        await at.until(child.id, lambda job: job.state is State.INPUT_REQUIRED)
        await parent.cancel()
        assert (await at.end(parent.id)).state is State.CANCELLED
        if detached:
            await at.ask(AnswerJob(child.id, "x"))
            assert (await at.end(child.id)).result == ["x"]
        else:
            ended = await at.end(child.id)
            assert (ended.state, ended.reason) == (State.CANCELLED, "parent")


# --- it takes too long ---


@pytest.mark.slow
async def test_each_time_that_a_job_may_take_ends_it_as_itself(state: Path, tmp_path: Path) -> None:
    async with house(state, timed, jobs_running=4) as at:
        late = await at.submit("asks", Order(deadline=0.5))
        jobs = [await at.submit("silent", path=str(tmp_path / "x")), await at.submit("slow"), late]
        ends = [await at.end(job) for job in jobs]
        assert [(each.state, each.reason, each.attempt) for each in ends] == [
            (State.TIMED_OUT, "heartbeat", 1),
            (State.TIMED_OUT, "attempt_timeout", 2),
            (State.TIMED_OUT, "deadline", 1),
        ]
    async with house(tmp_path / "other", timed, jobs_running=1) as at:
        holds = await at.submit("asks")
        ended = await at.end(await at.submit("hurried"))
        assert (ended.state, ended.reason, ended.attempt) == (State.TIMED_OUT, "queue_timeout", 0)
        await at.ask(CancelJob(holds, force=True))
        await at.end(holds)


@pytest.mark.slow
async def test_an_attempt_whose_shim_was_killed_is_repeated_where_that_does_no_harm(
    state: Path, tmp_path: Path
) -> None:
    async with house(state, timed) as at:
        ended = await at.end(await at.submit("repeatable", path=str(tmp_path / "x")))
        assert (ended.state, ended.result) == (State.SUCCEEDED, 2)
        lost = await at.end(await at.submit("shell", text=r"kill -9 $PPID; sleep 600"))
        assert (lost.state, lost.attempt) == (State.LOST, 1)


# --- its actors fail ---


@pytest.mark.slow
async def test_a_job_goes_on_and_runs_once_when_its_actor_or_the_office_is_killed(state: Path, tmp_path: Path) -> None:
    until = tmp_path / "until"
    async with house(state, jobs_running=2) as at:
        jobs = [await at.submit("witness", path=str(tmp_path / str(n)), until=str(until)) for n in range(4)]
        await there(tmp_path / "0")
        await there(tmp_path / "1")
        at.system.kill(f"{JOBS}/{jobs[0]}")
        await at.get(jobs[0])
        at.system.kill(JOBS)
        more = at.submit("witness", path=str(tmp_path / "4"), until=str(until))
        jobs.append(await more)
        at.system.kill(f"{JOBS}/{jobs[1]}")
        until.touch()
        for number, job in enumerate(jobs):
            found = await at.end(job)
            assert (found.state, found.result, found.attempt) == (State.SUCCEEDED, "done", 1)
            assert (tmp_path / str(number)).read_text() == "ran\n"


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["asks", "asks_inside"])
async def test_a_question_stays_open_and_is_answered_once_when_the_actor_is_killed(state: Path, tool: str) -> None:
    async with house(state) as at:
        job = await at.submit(tool, times=2)
        for number in range(2):
            await at.until(job, lambda each: each.state is State.INPUT_REQUIRED and each.question == number)  # noqa: B023
            at.system.kill(f"{JOBS}/{job}")
            answered = await at.ask(AnswerJob(job, f"answer {number}"))
            assert answered.questions == number + 1
        assert (await at.end(job)).result == ["answer 0", "answer 1"]
        assert [each.kind for each in await at.ask(ReadEvents(job))].count("state") == 8


@pytest.mark.slow
async def test_an_answer_that_was_written_down_is_given_after_the_servers_death_and_never_twice(
    state: Path, tmp_path: Path
) -> None:
    until = tmp_path / "until"
    async with house(state) as at:
        job = await at.submit("asks_between", until=str(until))
        await at.until(job, lambda each: each.state is State.INPUT_REQUIRED)
    store = SqliteStore(state / "jobs.db")
    store.open()
    with store.batch(durable=True):  # as a server does that dies before it can hand it over
        store.change(Change(job=job, step=Step.ANSWERED, at=time.time(), attempt=1, fields={"answer": "one"}))
    store.close()
    for _ in range(2):
        async with house(state) as at:
            await at.until(job, lambda each: each.message == "between")
    async with house(state) as at:
        await at.until(job, lambda each: each.state is State.RUNNING)
        at.system.kill(f"{JOBS}/{job}")
        until.touch()
        await at.until(job, lambda each: each.question == "second")
        assert (await at.ask(AnswerJob(job, "two"))).state is State.RUNNING
        assert (await at.end(job)).result == ["one", "two"]


# --- what a job says ---


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["big", "deep"])
async def test_values_that_json_allows_and_programs_stumble_over_end_no_actor(state: Path, kind: str) -> None:
    async with house(state) as at:
        found = await at.end(await at.submit("odd", kind=kind))
        assert found.state is State.SUCCEEDED
        assert found.result == found.checkpoint


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["asks", "asks_inside"])
async def test_an_answer_that_no_integer_holds_is_an_answer(state: Path, tool: str) -> None:
    async with house(state) as at:
        job = await at.submit(tool)
        await at.until(job, lambda each: each.state is State.INPUT_REQUIRED)
        await at.ask(AnswerJob(job, 10**30))
        assert (await at.end(job)).result == [10**30]


@pytest.mark.slow
async def test_much_output_long_lines_and_results_that_are_too_large_cost_the_server_no_memory(state: Path) -> None:
    psutil = pytest.importorskip("psutil")
    loud = (
        "head -c 200000000 /dev/zero; "  # and then a line of 50 MB, a binary one, and a result that may not be so long
        'head -c 50000000 /dev/zero | tr "\\0" a >&$GRAMI_JOB_FD; echo >&$GRAMI_JOB_FD; '
        "head -c 1000 /dev/urandom >&$GRAMI_JOB_FD; echo >&$GRAMI_JOB_FD; "
        '(printf \'{"type":"result","data":"\'; head -c 2000000 /dev/zero | tr "\\0" b; echo \'"}\') >&$GRAMI_JOB_FD'
    )
    async with house(state, talks) as at:
        await at.end(await at.submit("shell", text="true"))
        before = psutil.Process().memory_info().rss
        job = await at.submit("shell", text=loud)
        found = await at.end(job)
        assert (found.state, found.log >= 200_000_000) == (State.FAILED, True)
        assert found.fault is not None
        assert "the result has 2000002 bytes, at most" in found.fault.message
        assert psutil.Process().memory_info().rss - before < 40_000_000
        on_disk = sum(each.stat().st_size for each in (state / "jobs" / job).rglob("log.*"))
        assert on_disk <= 66 * 1024 * 1024


@pytest.mark.slow
async def test_names_of_artifacts_that_lead_out_of_their_folder_are_refused(state: Path) -> None:
    said = '{\\"type\\":\\"artifact\\",\\"name\\":\\"$name\\",\\"path\\":\\"f\\"}'
    text = f'for name in ../x .x "" a/b x; do echo "{said}" >&$GRAMI_JOB_FD; done'
    async with house(state, talks) as at:
        found = await at.end(job := await at.submit("shell", text=f"echo content > f; {text}; sleep 0.1"))
        assert found.artifacts == {"x": 8}
        for name in ("../x", "../../jobs.db", "/etc/passwd"):
            assert await at.refused(ReadOutput(job=job, artifact=name)) == "JOB_NOT_FOUND"
        assert sorted(os.listdir(state / "jobs" / job)) == ["1", "artifacts"]


# --- what a server was started with ---


@pytest.mark.slow
async def test_exit_codes_are_right_where_children_are_ignored_and_signals_blocked(state: Path) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP})
    try:
        async with house(state, talks) as at:
            ended = await at.end(await at.submit("shell", text="true & wait $!; (exit 3); kill -TERM $$"))
            assert ended.exit is not None
            assert ended.exit.signal == signal.SIGTERM
            ended = await at.end(await at.submit("shell", text="(exit 3) & wait $!; exit $?"))
            assert ended.exit is not None
            assert ended.exit.code == 3
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGCHLD, before)


@pytest.mark.slow
async def test_the_servers_secrets_are_in_no_job_and_no_file_of_it(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAMI_TOKEN", "s3cret-of-the-server")
    monkeypatch.setenv("GRAMI_KEYS_FILE", "s3cret-keys")
    async with house(state) as at:
        for tool, arguments in (("environment", {}), ("shell", {"text": "env; cat /proc/$PPID/environ"})):
            found = await at.end(await at.submit(tool, **arguments))
            assert found.state is State.SUCCEEDED
            assert "s3cret" not in str(found.result)
        assert b"s3cret" not in b"".join(each.read_bytes() for each in state.rglob("*") if each.is_file())


# --- whose it is ---


@pytest.mark.slow
async def test_a_job_of_somebody_else_is_not_there_whatever_is_asked(state: Path) -> None:
    async with house(state) as at:
        job = await at.submit("asks")
        await at.until(job, lambda each: each.state is State.INPUT_REQUIRED)
        others = [
            GetJob(job, "bob"),
            CancelJob(job, "bob", force=True),
            AnswerJob(job, 1, "bob"),
            RetryJob(job, "bob"),
            ReadEvents(job, owner="bob"),
            ReadOutput(job=job, owner="bob"),
        ]
        assert {await at.refused(each) for each in others} == {"JOB_NOT_FOUND"}
        assert await at.ask(ListJobs(owner="bob")) == []
        assert [each.id for each in await at.ask(ListJobs(owner="ann"))] == [job]
        await at.ask(CancelJob(job, "ann", force=True))
        await at.end(job)


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
_JSON = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
_FIELDS = dict.fromkeys(
    [
        "tool",
        "arguments",
        "priority",
        "concurrency_key",
        "not_before",
        "deadline_ms",
        "detached",
        "wake",
        "states",
        "before",
        "limit",
        "force",
        "answer",
        "artifact",
        "attempt",
        "offset",
        "after_seq",
        "idempotency_key",
        "background",
        "timeout_ms",
        "to",
    ],
    _JSON,
)


@pytest.mark.slow
def test_no_control_message_about_jobs_is_an_error_of_the_server(state: Path) -> None:
    async def say(given_: list[tuple[str, dict[str, Any]]]) -> None:
        async with house(state, talks) as at, raw(at.manager) as socket:
            job = await at.submit("asks_inside")
            await at.until(job, lambda each: each.state is State.INPUT_REQUIRED)
            known = {"job_id": job, "tool": "shell"}
            for number, (kind, fields) in enumerate(given_):
                plain = fields | {key: known[key] for key in fields.keys() & known.keys() if fields[key] is None}
                with contextlib.suppress(ValueError):  # JSON has no such number
                    text = json.dumps({**plain, "type": kind, "id": number}, allow_nan=False)
                    await socket.send(text)
                    while (answer := await heard(socket)).get("type", "").startswith("job."):
                        pass
                    assert answer.get("id") in {number, None}
                    assert answer.get("error_code") != "INTERNAL_ERROR", (text, answer)
            await socket.send(json.dumps({"type": "ping", "id": "last"}))
            while (await heard(socket)).get("id") != "last":
                pass

    kinds = st.sampled_from(sorted(JOB_CONTROLS))
    given_or_known = st.none() | _JSON
    messages = st.tuples(kinds, st.fixed_dictionaries({"job_id": given_or_known}, optional=_FIELDS))

    said: list[tuple[str, dict[str, Any]]] = []

    @settings(max_examples=60, database=None, suppress_health_check=list(HealthCheck))
    @given(messages)
    def collect(one: tuple[str, dict[str, Any]]) -> None:
        said.append(one)

    collect()
    asyncio.run(say(said))


# --- its disk ---


@contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    """A file system of 1.5 MB, where one may be mounted."""
    path.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1500k", "none", str(path)], check=False, capture_output=True
    )
    if made.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(path: Path) -> None:
    """Use up all the space there is."""
    with path.open("wb", buffering=0) as file:
        for size in (65_536, 4_096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue


@pytest.mark.slow
async def test_a_full_disk_refuses_new_jobs_and_no_job_fails_of_it(tmp_path: Path) -> None:
    until = tmp_path / "until"
    with small_disk(tmp_path / "disk") as disk:
        async with house(disk / "state", jobs_running=2) as at:
            running = await at.submit("witness", path=str(tmp_path / "a"), until=str(until))
            await there(tmp_path / "a")
            waiting = [
                await at.submit(
                    "witness", path=str(tmp_path / "b"), until=str(until), order=Order(not_before=time.time() + 0.3)
                )
            ]
            fill(disk / "filler")
            refusals = []
            while len(refusals) < 3:
                try:
                    waiting.append(await at.submit("witness", path=str(tmp_path / "b"), until=str(until)))
                except GramiError as error:
                    refusals.append(error)
            assert {str(each.error_code) for each in refusals} == {"RESOURCE_EXHAUSTED"}
            assert all(each.retryable and each.retry_after_ms for each in refusals)
            until.touch()
            exits = disk / "state" / "jobs" / running / "1" / "exit.json"
            await asyncio.sleep(1.0)
            states = {(await at.get(each)).state for each in (running, *waiting)}
            assert not states & {State.FAILED, State.LOST}, (states, exits.exists())
            (disk / "filler").unlink()
            for each in (running, *waiting):
                found = await at.end(each)
                assert (found.state, found.result) == (State.SUCCEEDED, "done")


@pytest.mark.slow
async def test_what_cannot_be_started_on_a_full_disk_waits_for_space_and_is_not_failed(
    state: Path, tmp_path: Path
) -> None:
    """Its files find no place, and the store still does."""
    with small_disk(tmp_path / "disk") as disk:
        disk.chmod(0o700)
        state.mkdir(mode=0o700)
        (state / "jobs").symlink_to(disk)
        fill(disk / "filler")
        async with house(state) as at:
            job = await at.submit("patient")
            found = await at.until(job, lambda each: each.attempt > 5 or each.state.terminal)
            assert not found.state.terminal
            (disk / "filler").unlink()
            assert (await at.end(job)).result == "done"


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda path: path.write_bytes(b"no database" * 1000), "is damaged .* restore a backup"),
        (lambda path: path.write_bytes(path.read_bytes()[:4096] + b"\xff" * 8192), "is damaged .* restore a backup"),
        (lambda path: _version(path, 99), "made by a newer version of grami_actors"),
        (lambda path: path.unlink() or path.mkdir(), "jobs.db"),
    ],
    ids=["header", "page", "future", "folder"],
)
async def test_a_database_that_cannot_be_used_is_refused_and_left_alone(
    state: Path, harm: Callable[[Path], Any], words: str
) -> None:
    async with house(state, talks) as at:
        await at.submit("shell", Order(not_before=time.time() + 1000), text="true")
    database = state / "jobs.db"
    harm(database)
    before = database.read_bytes() if database.is_file() else b""
    with pytest.raises(ConfigError, match=words):
        async with house(state, talks):
            pass
    assert (database.read_bytes() if database.is_file() else b"") == before


def _version(path: Path, number: int) -> None:
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {number}")
    db.close()


async def test_a_state_directory_that_is_a_file_or_somebody_elses_is_refused(state: Path) -> None:
    state.write_text("mine")
    with pytest.raises(ConfigError, match="state"):
        async with house(state, talks):
            pass
    assert state.read_text() == "mine"


@pytest.mark.slow
async def test_a_second_server_and_the_collector_are_refused_and_a_backup_is_a_state_directory(
    state: Path, tmp_path: Path
) -> None:
    async with house(state) as at:
        job = await at.submit("asks")
        await at.until(job, lambda each: each.state is State.INPUT_REQUIRED)
        results = []
        for arguments in (
            ("serve", str(Path(__file__).parent / "fault_tools.py")),
            ("state", "gc"),
            ("state", "backup", str(tmp_path / "copy")),
        ):
            command = [sys.executable, "-m", "grami_actors", *arguments]
            environment = {
                "PATH": os.environ["PATH"],
                "GRAMI_STATE_DIR": str(state),
                "PYTHONPATH": str(Path(__file__).parents[1]),
                "HOME": str(tmp_path),
            }
            process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=-1, stderr=-1)
            out, error = await process.communicate()
            results.append((process.returncode, (out + error).decode()))
        for code, said in results[:2]:
            assert (code, "in use by another server" in " ".join(said.split())) == (1, True), said
            assert "Traceback" not in said
        assert results[2][0] == 0, results[2]
        await at.ask(AnswerJob(job, "x"))
        assert (await at.end(job)).result == ["x"]
    async with house(tmp_path / "copy") as at:
        assert (await at.end(job)).state is State.LOST
