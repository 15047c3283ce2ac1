"""The shim, as a process of its own under a server that the test plays."""

from __future__ import annotations

import errno
import json
import math
import os
import resource
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grami_actors.jobs.shim.loop import Loop
from grami_actors.jobs.shim.record import MOST_PROGRESS, MOST_WAITING, Record
from grami_actors.jobs.shim.segments import Log
from grami_actors.jobs.shim.server import Server
from tests.attempts import PATIENCE, Attempt, program, shell

MEBIBYTE = 1024 * 1024

# --- once ---


def test_a_command_leaves_its_output_its_result_and_how_it_ended(tmp_path: Path) -> None:
    with Attempt(tmp_path, ["echo", "hello"]) as attempt:
        end = attempt.run()
        assert (end["code"], end["signal"], end["reason"], end["error"], end["result"]) == (0, None, "", None, True)
        assert attempt.log == b"hello\n"
        assert end["log"] == 6
        assert attempt.result == {"exit_code": 0, "output": "hello\n"}
        run = json.loads((attempt.folder / "run.json").read_bytes())
        assert run["pid"] == attempt.shims[0].pid
        assert not attempt.held("shim.lock")
        assert not attempt.held("tree.lock")
        assert os.read(attempt._wake, 4096).splitlines()[-1] == b"job_1 1"


@pytest.mark.slow
def test_of_many_shims_on_one_folder_one_runs_the_job(tmp_path: Path) -> None:
    with Attempt(tmp_path, shell("echo once >> $WITNESS")) as attempt:
        for _ in range(4):
            attempt.start()
        assert sorted(shim.wait(PATIENCE) for shim in attempt.shims) == [0, 3, 3, 3]
        assert attempt.start().wait(PATIENCE) == 3
        assert attempt.witness.read_text() == "once\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "ran"), [("before_run", 1), ("after_run", 0), ("after_fork", 1), ("before_exit", 1), ("after_exit", 1)]
)
def test_an_attempt_whose_shim_was_killed_anywhere_is_not_run_twice(tmp_path: Path, place: str, ran: int) -> None:
    with Attempt(tmp_path, shell("echo once >> $WITNESS")) as attempt:
        assert attempt.start(failpoint=f"shim.{place}:1:kill9").wait(PATIENCE) == -signal.SIGKILL
        again = attempt.start().wait(PATIENCE)
        assert again == (0 if place == "before_run" else 3)
        attempt.until(lambda: not attempt.alive())
        assert (attempt.witness.read_text() if ran else "") == "once\n" * ran
        assert attempt.witness.exists() == bool(ran)


def test_a_shim_that_is_killed_leaves_the_lock_of_the_tree_with_the_tree(tmp_path: Path) -> None:
    with Attempt(tmp_path, shell("sleep 60")) as attempt:
        shim = attempt.start()
        attempt.until(attempt.alive)
        shim.kill()
        shim.wait()
        assert not attempt.held("shim.lock")
        assert attempt.held("tree.lock")
        for pid in attempt.alive():
            os.kill(pid, signal.SIGKILL)
        attempt.until(lambda: not attempt.alive())
        assert not attempt.held("tree.lock")


# --- how it ended ---


@pytest.mark.parametrize(
    ("command", "code", "number"),
    [
        ("exit 0", 0, None),
        ("exit 7", 7, None),
        ("exit 255", 255, None),
        ("kill -SEGV $$", None, signal.SIGSEGV),
        ("kill -KILL $$", None, signal.SIGKILL),
    ],
)
def test_how_it_ended_is_what_a_witness_saw(tmp_path: Path, command: str, code: int | None, number: int | None) -> None:
    with Attempt(tmp_path, shell(f"echo {command!r} > $WITNESS; {command}")) as attempt:
        end = attempt.run()
        assert attempt.witness.read_text().strip() == command
        assert (end["code"], end["signal"]) == (code, number)
        assert end["result"] == (code == 0) == (end["error"] is None)


def test_signals_that_the_server_ignored_or_blocked_are_not_those_of_the_job(tmp_path: Path) -> None:
    def spoil() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1})

    with Attempt(tmp_path, shell("grep -E 'Sig(Blk|Ign)' /proc/self/status; exit 7")) as attempt:
        end = attempt.run(preexec_fn=spoil)
        assert end["code"] == 7
        # Not of those that the C library keeps for itself: no program can set them, and some starters ignore one.
        ours = sum(1 << (number - 1) for number in signal.valid_signals())
        assert [int(line.split()[1], 16) & ours for line in attempt.log.decode().splitlines()] == [0, 0]


@pytest.mark.parametrize(
    ("argv", "told"), [(["/nonesuch"], "No such file"), (["/etc/passwd"], "Permission"), (["nonesuch"], "No such file")]
)
def test_a_program_that_cannot_be_started_is_unstarted_for_good(tmp_path: Path, argv: list[str], told: str) -> None:
    with Attempt(tmp_path, argv) as attempt:
        end = attempt.run()
        assert (end["unstarted"], end["code"], end["error"]["permanent"]) == (True, None, True)
        assert told in end["error"]["message"]
        assert argv[0] in end["error"]["message"]


def test_the_environment_is_what_the_spec_says_and_has_no_secrets_of_the_server(tmp_path: Path) -> None:
    with Attempt(tmp_path, ["env"], checkpoint={"frame": 3}) as attempt:
        attempt.run(failpoint="nowhere:1:raise")
        names = {line.partition("=")[0] for line in attempt.log.decode().splitlines()}
        ours = {f"GRAMI_JOB_{name}" for name in ("ID", "ATTEMPT", "FD", "DIR", "MARK", "CHECKPOINT")}
        assert names - {"PWD", "SHLVL", "_"} == {"PATH", "WITNESS", "PYTHON"} | ours
        assert json.loads((attempt.folder / "checkpoint.json").read_bytes()) == {"frame": 3}


def test_a_job_has_only_its_own_descriptors(tmp_path: Path) -> None:
    links = """
import glob
def show(pid):
    print(*sorted(os.readlink(fd).split("[")[0] for fd in glob.glob(f"/proc/{pid}/fd/*") if os.path.exists(fd)))
show(os.getpid())
show(os.getppid())
"""
    with Attempt(tmp_path, program(links)) as attempt, (tmp_path / "leaked").open("w") as leaked:
        attempt.run(leaked=(leaked.fileno(),))
        own, shims = ([Path(each).name for each in line.split()] for line in attempt.log.decode().splitlines())
        assert own == ["null", "tree.lock", "pipe:", "pipe:", "socket:"]
        assert "shim.lock" in shims
        assert "leaked" not in shims


@pytest.mark.parametrize("size", [64 * 1024 - 2, 64 * 1024 - 1, 600_000])
def test_a_result_is_kept_up_to_its_limit(tmp_path: Path, size: int) -> None:
    with Attempt(tmp_path, program(f"say(type='result', data='x' * {size})")) as attempt:
        end = attempt.run()
        if size + 2 <= 64 * 1024:
            assert attempt.result == "x" * size
        else:
            assert not (attempt.folder / "result.json").exists()
            assert end["error"]["code"] == "TOOL_EXECUTION_FAILED"
            assert end["error"]["message"].startswith("the result has ")
            assert end["error"]["message"].endswith(" bytes, at most 65536")


def test_the_output_of_a_command_is_cut_to_the_limit_of_results(tmp_path: Path) -> None:
    with Attempt(tmp_path, shell("yes '\"\\' | head -c 100000"), limits={"log": MEBIBYTE, "result": 5000}) as attempt:
        attempt.run()
        assert len((attempt.folder / "result.json").read_bytes()) <= 5000
        assert attempt.log.decode().endswith(attempt.result["output"])
        assert len(attempt.result["output"]) > 2000


def test_an_error_that_the_job_tells_is_its_error(tmp_path: Path) -> None:
    said = "say(type='error', code='UPSTREAM', message='no frames', permanent=True)"
    with Attempt(tmp_path, program(said)) as attempt:
        end = attempt.run()
        assert end["error"] == {"code": "UPSTREAM", "message": "no frames", "permanent": True}
        assert end["result"] is False


# --- the ladder ---

_AWFUL = """
def stay(name):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    witness(name)
    say(type="progress", fraction=0)
    while True:
        time.sleep(60)
for name in ("child", "daemon", "grandchild"):
    if os.fork() == 0:
        if name != "child":
            os.setsid()
            if os.fork():
                os._exit(0)
        if name == "grandchild":
            os.closerange(4, 100)
            os.fork()
        stay(name)
stay("main")
"""


@pytest.mark.slow
@pytest.mark.parametrize("force", [False, True])
def test_nothing_of_a_tree_that_ignores_sigterm_and_hides_is_alive_after_its_grace(tmp_path: Path, force: bool) -> None:
    with Attempt(tmp_path, program(_AWFUL)) as attempt:
        shim = attempt.start()
        attempt.until(lambda: attempt.witness.exists() and len(attempt.witness.read_text().split()) == 5)
        assert len(attempt.alive()) == 5
        attempt.order(stop="user", force=force)
        assert shim.wait(0.05 + 0.2 + 2) == 0
        assert attempt.alive() == []
        end = attempt.exit
        assert (end["reason"], end["signal"], end["forced"], end["code"]) == ("user", signal.SIGKILL, True, None)
        assert not attempt.held("tree.lock")


@pytest.mark.slow
def test_a_storm_of_forks_is_ended(tmp_path: Path) -> None:
    storm = """
say(type="progress", fraction=0)
until = time.time() + 20
while time.time() < until:
    if os.fork():
        os._exit(0)
"""
    with Attempt(tmp_path, program(storm)) as attempt:
        shim = attempt.start()
        attempt.until(lambda: attempt.record)
        attempt.order(stop="user", force=True)
        assert shim.wait(PATIENCE) == 0
        assert attempt.alive() == []


def test_a_job_that_stands_still_is_ended_by_sigterm(tmp_path: Path) -> None:
    with Attempt(tmp_path, shell("kill -STOP $$; sleep 60"), term_grace=30) as attempt:
        shim = attempt.start()
        attempt.until(attempt.alive)
        attempt.order(stop="user")
        assert shim.wait(PATIENCE) == 0
        assert (attempt.exit["signal"], attempt.exit["forced"]) == (signal.SIGTERM, False)


def test_a_job_is_asked_to_end_before_it_is_made_to(tmp_path: Path) -> None:
    polite = "say(type='progress', fraction=0)\nwitness(os.read(channel, 1000).decode())\nsys.exit(5)"
    with Attempt(tmp_path, program(polite), soft_grace=30) as attempt:
        shim = attempt.start()
        attempt.until(lambda: attempt.record)
        attempt.order(stop="parent")
        attempt.order(stop="user")
        assert shim.wait(PATIENCE) == 0
        assert json.loads(attempt.witness.read_text()) == {"type": "cancel", "reason": "parent"}
        assert (attempt.exit["reason"], attempt.exit["code"], attempt.exit["error"]) == ("parent", 5, None)
        assert [line.get("reason") for line in attempt.record] == [None, "parent"]


def test_an_order_that_was_there_before_the_shim_is_obeyed(tmp_path: Path) -> None:
    with Attempt(tmp_path, shell("sleep 60")) as attempt:
        attempt.order(stop="user", force=True)
        assert attempt.run()["reason"] == "user"


@pytest.mark.parametrize("reason", ["timeout", "deadline", "heartbeat"])
def test_time_that_is_over_ends_a_job(tmp_path: Path, reason: str) -> None:
    with Attempt(tmp_path, ["sleep", "60"], **{reason: 0.1}) as attempt:
        end = attempt.run()
        assert end["reason"] == {"timeout": "attempt_timeout"}.get(reason, reason)
        assert end["signal"] == signal.SIGTERM
        assert end["at"] - end["started_at"] >= 0.1


@pytest.mark.parametrize("seconds", [30 * 86_400, 1e300])
def test_a_time_far_away_is_none_to_stumble_over(tmp_path: Path, seconds: float) -> None:
    with Attempt(tmp_path, ["sleep", "0.05"], timeout=seconds, deadline=seconds) as attempt:
        assert (attempt.run()["code"], attempt.exit["reason"]) == (0, "")


@pytest.mark.slow
def test_a_heart_that_beats_and_a_question_that_is_open_are_no_silence(tmp_path: Path) -> None:
    beats = "for _ in range(8):\n    say(type='heartbeat'); time.sleep(0.05)\n"
    asks = "say(type='ask', question='on?'); time.sleep(0.4); print('here', flush=True)\n"
    with Attempt(tmp_path, program(beats + asks + "print(os.read(channel, 1000).decode())"), heartbeat=0.2) as attempt:
        shim = attempt.start()
        attempt.until(lambda: attempt.log == b"here\n")
        assert attempt.record[0]["question"] == "on?"
        attempt.order(input={"yes": True})
        assert shim.wait(PATIENCE) == 0
        assert json.loads(attempt.log.splitlines()[1]) == {"type": "input", "answer": {"yes": True}}
        assert attempt.exit["reason"] == ""


def test_the_end_of_the_server_ends_a_job_that_hangs_on_its_lifeline(tmp_path: Path) -> None:
    with Attempt(tmp_path, ["sleep", "60"], lifeline=True) as attempt:
        theirs, ours = os.pipe()
        shim = attempt.start(lifeline=theirs)
        os.close(theirs)
        attempt.until(attempt.alive)
        os.close(ours)
        assert shim.wait(PATIENCE) == 0
        assert attempt.exit["reason"] == "shutdown"


def test_sigterm_to_the_shim_ends_the_job_in_good_order(tmp_path: Path) -> None:
    with Attempt(tmp_path, ["sleep", "60"]) as attempt:
        shim = attempt.start()
        attempt.until(attempt.alive)
        shim.terminate()
        assert shim.wait(PATIENCE) == 0
        assert (attempt.exit["reason"], attempt.exit["signal"]) == ("shutdown", signal.SIGTERM)


# --- what the main process leaves behind ---


def test_a_job_waits_for_what_its_main_process_leaves_behind(tmp_path: Path) -> None:
    with Attempt(tmp_path, shell("(sleep 0.1; echo late) & exit 0")) as attempt:
        end = attempt.run()
        assert (end["code"], end["strays"], attempt.log) == (0, 0, b"late\n")


def test_a_job_can_have_ended_what_its_main_process_leaves_behind(tmp_path: Path) -> None:
    with Attempt(tmp_path, shell("setsid sleep 60 & sleep 60 & exit 0"), strays="kill") as attempt:
        end = attempt.run()
        assert (end["code"], end["strays"], end["reason"]) == (0, 2, "")
        assert attempt.alive() == []


def test_who_succeeded_before_he_was_stopped_succeeded(tmp_path: Path) -> None:
    with Attempt(tmp_path, program("witness(os.getpid())\nif os.fork() == 0: time.sleep(60)")) as attempt:
        shim = attempt.start()
        main = int(attempt.until(lambda: attempt.witness.exists() and attempt.witness.read_text()))
        attempt.until(lambda: len(attempt.alive()) == 1 and not Path(f"/proc/{main}").exists())
        attempt.order(stop="user")
        assert shim.wait(PATIENCE) == 0
        assert (attempt.exit["reason"], attempt.exit["result"], attempt.exit["strays"]) == ("", True, 1)


# --- output ---


@settings(deadline=None)
@given(st.integers(4096, 20_000), st.lists(st.integers(0, 9000), max_size=30))
def test_of_the_output_the_first_half_and_the_last_are_kept_in_their_places(cap: int, sizes: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log, whole = Log(folder, cap), b""
        for number, size in enumerate(sizes):
            data = os.urandom(1) * size if number % 2 else bytes([number]) * size
            log.write(data)
            whole += data
        segments = {int(path.name[4:]): path.read_bytes() for path in Path(folder).glob("log.*")}
        assert log.end == len(whole)
        assert all(whole[begin : begin + len(data)] == data for begin, data in segments.items())
        kept = {place for begin, data in segments.items() for place in range(begin, begin + len(data))}
        assert len(kept) <= cap
        head, tail = cap // 2 - cap // 8, cap // 2 - cap // 8 - 8
        assert set(range(min(head, len(whole)))) <= kept
        assert set(range(max(0, len(whole) - tail), len(whole))) <= kept
        if len(whole) <= head + tail:
            assert len(kept) == len(whole)
        assert whole.endswith(log.tail(1000))


_PEAK = "; grep VmHWM /proc/$PPID/status > $WITNESS"
"""The most memory that the shim had, in KiB."""


@pytest.mark.slow
def test_a_long_line_and_much_output_cost_the_shim_no_memory(tmp_path: Path) -> None:
    with Attempt(
        tmp_path, shell("head -c 50000000 /dev/zero; yes | head -c 150000000; head -c 9 /dev/zero" + _PEAK)
    ) as attempt:
        end = attempt.run()
        assert end["log"] == 200_000_009
        assert len(attempt.log) <= MEBIBYTE
        assert attempt.log.startswith(bytes(1000))
        assert attempt.log.endswith(b"y\n" * 1000 + bytes(9))
        assert 5_000 < int(attempt.witness.read_text().split()[1]) < 25_000


# --- what it says ---


def test_nonsense_on_the_channel_is_dropped_with_a_note_and_harms_nothing(tmp_path: Path) -> None:
    bad = r"""
def send(line):
    rest = line + b"\n"
    while rest:
        rest = rest[os.write(channel, rest):]
for line in (b"nonsense", b"[1]", b"{}", b'{"type":"what"}', b"\xff\xfe\x00", b"[" * 100000, b"1" * 50000):
    send(line)
for line in (b'"progress"', b'"progress","fraction":"x"', b'"checkpoint","data":NaN', b'"checkpoint","data":"\\ud800"',
             b'"log","text":"' + b"x" * 300000 + b'"', b'"artifact","name":"../x","path":"/etc/passwd"',
             b'"progress","fraction":1' + b"0" * 400, b'"artifact","name":"x","path":"' + b"x" * 5000 + b'"',
             b'"artifact","name":"x","path":"/etc"', b'"artifact","name":"x","path":"/nonesuch"'):
    send(b'{"type":' + line + b"}")
say(type="checkpoint", data="last")
os.write(channel, b'{"type":"progress","frac')
"""
    with Attempt(tmp_path, program(bad)) as attempt:
        end = attempt.run()
        assert end["code"] == 0
        assert [(line["type"], line["data"]) for line in attempt.record] == [("checkpoint", "last")]
        assert attempt.log.count(b"[grami] a line on the job's channel was dropped: ") == 15
        assert attempt.log.count(b"[grami] the artifact x could not be kept: ") == 2
        assert [path.name for path in (attempt.folder.parent / "artifacts").iterdir()] == []


def test_a_question_that_cannot_be_written_is_no_question_that_stands_in_the_way_of_the_next(tmp_path: Path) -> None:
    asks = "say(type='ask', question=float('nan'))\nsay(type='ask', question='on?')\nos.read(channel, 1000)\n"
    with Attempt(tmp_path, program(asks)) as attempt:
        shim = attempt.start()
        attempt.until(lambda: attempt.record)
        attempt.order(input="yes")
        assert shim.wait(PATIENCE) == 0
        assert (attempt.exit["code"], attempt.record[0]["question"]) == (0, "on?")


def test_what_it_said_and_printed_last_is_read_after_its_end(tmp_path: Path) -> None:
    # The shim stands still while the job says more than is read at once, and ends.
    last = """
witness(os.getpid())
os.kill(os.getppid(), signal.SIGSTOP)
for n in range(8):
    say(type="checkpoint", data="x" * 10000)
print("y" * 60000)
"""
    with Attempt(tmp_path, program(last)) as attempt:
        shim = attempt.start()
        pid = int(attempt.until(lambda: attempt.witness.exists() and attempt.witness.read_text()))
        attempt.until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
        shim.send_signal(signal.SIGCONT)
        assert shim.wait(PATIENCE) == 0
        assert (len(attempt.record), attempt.log) == (8, b"y" * 60000 + b"\n")


@pytest.mark.slow
def test_a_channel_that_the_job_closed_costs_no_processor_time(tmp_path: Path) -> None:
    with Attempt(tmp_path, shell("exec 3<&-; sleep 0.5; cat /proc/$PPID/stat > $WITNESS")) as attempt:
        attempt.run()
        user, system = attempt.witness.read_text().rpartition(")")[2].split()[11:13]
        assert (int(user) + int(system)) / os.sysconf("SC_CLK_TCK") < 0.25


@pytest.mark.slow
def test_a_line_of_fifty_megabytes_costs_the_shim_no_memory(tmp_path: Path) -> None:
    with Attempt(
        tmp_path, shell("head -c 50000000 /dev/zero >&$GRAMI_JOB_FD; echo >&$GRAMI_JOB_FD" + _PEAK)
    ) as attempt:
        attempt.run()
        assert b"it has 50000000 bytes" in attempt.log
        assert 5_000 < int(attempt.witness.read_text().split()[1]) < 25_000


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["progress", "checkpoint"]), st.floats(0, 0.01), st.booleans()), max_size=300)
)
def test_progress_is_thinned_out_and_never_moved_past_anything_else(steps: list[tuple[str, float, bool]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        record, now, said = Record(f"{folder}/record"), 10.0, []
        record._used, record._window = MOST_PROGRESS - 5, 10.0
        for number, (kind, pause, flush) in enumerate(steps):
            now += pause
            record.add({"type": kind, "number": number}, now)
            said.append((kind, number))
            if flush:
                record.flush(now)
        record.flush(now, all_of_it=True)
        os.close(record._fd)
        lines = [json.loads(line) for line in Path(folder, "record").read_bytes().splitlines()]
        kept = [(line["type"], line["number"]) for line in lines]
        assert kept == sorted(kept, key=lambda each: each[1])
        assert set(kept) <= set(said)
        assert kept[-1:] == said[-1:]
        assert [each for each in kept if each[0] != "progress"] == [each for each in said if each[0] != "progress"]
        runs = sum(1 for a, b in zip([("", 0), *said], said, strict=False) if b[0] == "progress" != a[0])
        assert sum(kind == "progress" for kind, _ in kept) <= 5 + runs + MOST_PROGRESS * int(now - 10)


def test_of_lines_that_a_full_disk_does_not_take_few_wait_and_the_others_are_counted(tmp_path: Path) -> None:
    record = Record(f"{tmp_path}/record")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit[1]))  # for this process, no file takes anything
    try:
        for number in range(100):
            record.add({"type": "checkpoint", "data": "x" * 100_000, "number": number}, 1.0)
            record.flush(1.0)
        waiting = list(map(len, record._lines))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert sum(waiting) <= MOST_WAITING
    assert len(waiting) < 50
    assert record.flush(1.0) is None
    assert not record.waiting
    os.close(record._fd)
    lines = [json.loads(line) for line in Path(tmp_path, "record").read_bytes().splitlines()]
    assert [line["number"] for line in lines[:-1]] == list(range(len(lines) - 1))
    assert (lines[-1]["type"], lines[-1]["lines"]) == ("dropped", 100 - (len(lines) - 1))


def test_a_thousand_steps_a_second_are_written_and_the_last_one_in_any_case(tmp_path: Path) -> None:
    fast = "for n in range(20000):\n    say(type='progress', fraction=n / 19999, message=str(n))"
    with Attempt(tmp_path, program(fast)) as attempt:
        end = attempt.run()
        steps = [line["message"] for line in attempt.record]
        assert steps[:900] == [str(n) for n in range(900)]
        assert steps[-1] == "19999"
        assert len(steps) <= 1 + MOST_PROGRESS * (1 + int(end["at"] - end["started_at"]))


def test_an_artifact_is_kept_beside_the_attempts(tmp_path: Path) -> None:
    made = "open('a.bin', 'wb').write(bytes(range(256)) * 40000)\nsay(type='artifact', name='b.bin', path='a.bin')\n"
    with Attempt(tmp_path, program(made)) as attempt:
        attempt.run()
        kept = attempt.folder.parent / "artifacts"
        assert [path.name for path in kept.iterdir()] == ["b.bin"]
        assert (kept / "b.bin").read_bytes() == bytes(range(256)) * 40000
        assert [(line["name"], line["bytes"]) for line in attempt.record] == [("b.bin", 10_240_000)]


def test_any_number_of_artifacts_that_are_told_at_once_are_kept(tmp_path: Path) -> None:
    many = """
os.mkdir("../../artifacts")
for name in ("a", "../../artifacts/b"):
    open(name, "w").write(name)
lines = [b'{"type":"artifact","name":"b","path":"../../artifacts/b"}\\n'] * 3000
lines += [b'{"type":"artifact","name":"a","path":"a"}\\n'] * 3
os.write(channel, b"".join(lines))
"""
    with Attempt(tmp_path, program(many)) as attempt:
        attempt.run()
        assert [line["name"] for line in attempt.record] == ["b"] * 3000 + ["a"] * 3
        assert {path.name for path in (attempt.folder.parent / "artifacts").iterdir()} == {"a", "b"}
        assert attempt.log == b""


def test_an_error_with_halves_of_characters_is_told_without_them(tmp_path: Path) -> None:
    said = r"os.write(channel, b'{\"type\":\"error\",\"code\":\"\\udcff\",\"message\":\"no \\udcff\"}\n'); sys.exit(1)"
    with Attempt(tmp_path, program(said)) as attempt:
        assert attempt.run()["error"] == {"code": "?", "message": "no ?", "permanent": False}


def test_a_job_that_reads_no_answers_holds_nobody_up(tmp_path: Path) -> None:
    with Attempt(tmp_path, ["sleep", "60"]) as attempt:
        shim = attempt.start()
        attempt.until(attempt.alive)
        for _ in range(10):
            attempt.order(input="x" * 200_000)
        (attempt.folder / "control" / "99.json").write_text("nonsense")
        attempt.order(stop="user", force=True)
        assert shim.wait(PATIENCE) == 0
        assert b"the order 99.json was dropped" in attempt.log


# --- a disk that is full ---


def test_how_it_ended_is_written_as_soon_as_the_disk_has_space(tmp_path: Path) -> None:
    with Attempt(tmp_path, ["echo", "hello"]) as attempt:
        assert attempt.run(failpoint="shim.before_exit:1:enospc")["code"] == 0


def test_what_cannot_be_started_for_a_full_disk_says_so(tmp_path: Path) -> None:
    with Attempt(tmp_path, shell("echo once >> $WITNESS")) as attempt:
        (attempt.folder / "record.jsonl").mkdir()
        assert attempt.start().wait(PATIENCE) == 4
        assert (attempt.exit["unstarted"], attempt.witness.exists()) == (True, False)


@pytest.mark.slow
def test_a_full_disk_drops_output_and_holds_nobody_up(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", small], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        flood = "for n in range(300):\n    print('x' * 10000); say(type='checkpoint', data='y' * 10000)\n"
        ends = "witness('full'); os.read(channel, 100); print('space'); say(type='checkpoint', data=1)"
        limits = {"log": 64 * MEBIBYTE, "result": 100}
        with Attempt(small, program(flood + ends), limits=limits) as attempt:
            attempt.witness = tmp_path / "witness"
            attempt.spec["environ"]["WITNESS"] = str(attempt.witness)
            (attempt.folder / "spec.json").write_text(json.dumps(attempt.spec))
            shim = attempt.start()
            attempt.until(attempt.witness.exists)
            subprocess.run(["mount", "-o", "remount,size=20m", small], check=True)
            attempt.order(input=1)
            assert shim.wait(PATIENCE) == 0
            end = attempt.exit
            assert (end["code"], end["log"] > 3_000_000) == (0, True)
            assert len(attempt.log) < 2_500_000
            assert b"bytes of output were dropped: No space left on device" in attempt.log
            assert b"space\n" in attempt.log
            assert [line["data"] for line in attempt.record] == ["y" * 10000] * 300 + [1]
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def test_output_that_was_dropped_leaves_a_hole_and_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(str(tmp_path), MEBIBYTE)
    log.write(b"before\n")
    write = os.write

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    log.write(b"lost\n")
    monkeypatch.setattr(os, "write", write)
    log.write(b"after\n")
    found = {int(path.name[4:]): path.read_bytes() for path in tmp_path.glob("log.*")}
    note = b"[grami] 5 bytes of output were dropped: No space left on device\n"
    assert found == {0: b"before\n", 12: b"after\n" + note}
    assert log.end == 12 + 6 + len(note)


# --- limits ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "value", "greedy"),
    [
        ("memory", 60_000_000, "block = bytearray(os.urandom(1000) * 100000)\ntime.sleep(60)"),
        (
            "memory",
            60_000_000,
            "for _ in range(4): block = os.fork() or bytearray(os.urandom(1000) * 25000)\ntime.sleep(60)",
        ),
        ("processes", 5, "for _ in range(8): os.fork() or time.sleep(60)\ntime.sleep(60)"),
        ("cpu", 0.3, "while True: pass"),
        ("cpu", 0.3, "os.kill(os.getpid(), signal.SIGXCPU)"),
        ("cpu", 0.3, "while True:\n    if os.fork() == 0:\n        sum(range(1000000)); os._exit(0)\n    os.wait()"),
    ],
)
def test_who_takes_more_than_he_may_is_ended(tmp_path: Path, limit: str, value: float, greedy: str) -> None:
    with Attempt(tmp_path, program(greedy), limits={"log": 4096, "result": 100, limit: value}) as attempt:
        assert attempt.run()["reason"] == limit
        assert attempt.alive() == []
        run = json.loads((attempt.folder / "run.json").read_bytes())
        assert "poll" in run["limits"][limit]


def test_files_are_limited_in_every_process(tmp_path: Path) -> None:
    with Attempt(tmp_path, shell("ulimit -n; sh -c 'ulimit -n'"), limits={"files": 32}) as attempt:
        attempt.run()
        assert attempt.log == b"32\n32\n"


def test_a_server_that_was_just_poked_is_not_poked_again_for_what_was_said_before(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "wake")
    pipe = os.open(tmp_path / "wake", os.O_RDWR | os.O_NONBLOCK)
    try:
        loop = Loop()
        server = Server(loop, str(tmp_path), {"job": "job_1", "attempt": 1, "wake": str(tmp_path / "wake")})
        server.tell(60.0)
        assert loop.when(server.poke) is not None
        server.insist(math.inf)  # it would wait a while for each time that it pokes in vain
        assert loop.when(server.poke) is None
        assert os.read(pipe, 65536) == b"job_1 1\n"
    finally:
        os.close(pipe)


MEMORY = Path("/sys/fs/cgroup/memory")


@pytest.mark.skipif(not os.access(MEMORY / "memory.limit_in_bytes", os.W_OK), reason="no memory controller to set")
def test_a_job_that_the_kernel_killed_for_memory_is_told_as_that_and_one_that_somebody_killed_is_not(
    tmp_path: Path,
) -> None:
    group = MEMORY / f"grami-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(64 * 1024 * 1024))
        greedy = f"echo $$ > {group}/cgroup.procs; exec $PYTHON -c 'held = bytearray(512 * 1024 * 1024)'"
        with Attempt(tmp_path / "greedy", shell(greedy)) as attempt:
            end = attempt.run()
            assert (end["signal"], end["oom"], end["forced"]) == (signal.SIGKILL, True, False)
        with Attempt(tmp_path / "killed", shell("kill -KILL $$")) as attempt:
            end = attempt.run()
            assert (end["signal"], end["oom"]) == (signal.SIGKILL, False)
    finally:
        group.rmdir()
