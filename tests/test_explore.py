"""Many seeds in several processes: one digest for all, leaks that only another process shows, nobody left behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import psutil
import pytest

from grami_actors.errors import GramiError
from grami_actors.scenario.explore import Crew, Report, Wanted, explore, report_of
from tests.test_cli import grami, start

SCRIPT = """
import asyncio, os
from grami_actors import Agent, Message, Swarm, handles
from grami_actors.scenario import Play, scenario

class Add(Message): pass
class Note(Message):
    word: str

class Account(Agent, concurrency=4):
    def __init__(self): self.total = 0

    @handles(Add)
    async def add(self, m: Add) -> int:
        seen = self.total
        await asyncio.sleep(0)
        self.total = seen + 1
        return self.total

class Notes(Agent):
    @handles(Note)
    def note(self, m: Note) -> None: ...

swarm = Swarm([Account, Notes])

@scenario
async def race(play: Play) -> None:
    ann, bob = await play.client("ann"), await play.client("bob")
    answers = await asyncio.gather(ann.request("add"), bob.request("add"))
    play.check("both were counted", sorted(answers) == [1, 2])

@scenario
async def fine(play: Play) -> None:
    ann, bob = await play.client("ann"), await play.client("bob")
    await asyncio.gather(*(each.request("note", word=word) for each in (ann, bob) for word in "abc"))

@scenario
async def in_order_of_a_set(play: Play) -> None:
    for word in {"these", "words", "come", "in", "some", "order"}:
        play.system.tell("notes", Note(word))
    await play.eventually(lambda: play.transcript.count("notes") == 6)

@scenario
async def strikes_on_some_seeds(play: Play) -> None:
    ann, bob = await play.client("ann"), await play.client("bob")
    play.faults.crash("nobody")
    first, _ = await asyncio.gather(ann.request("add"), bob.request("add"))
    play.faults.stall("notes", 0.0, on_message=first)
    await play.system.ask("notes", Note("a"))

@scenario
async def ends_its_process(play: Play) -> None:
    os._exit(9)

@scenario
async def never_ends(play: Play) -> None:
    print("begun", flush=True)
    while True:
        pass
"""

DIGESTS = {"fine": "8e8e66a74077ee4600af391fe868fae1", "race": "8c56b6bf0c9266fde873e78317e92728"}
"""Of seeds 0 to 31: the same on every machine and version."""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("explored") / "explored.py"
    file.write_text(dedent(SCRIPT))
    return file


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    with Crew(2) as crew:
        yield crew


def explored(crew: Crew, script: Path, name: str, seeds: int = 32) -> Report:
    return explore(crew, Wanted(str(script), name), seeds)


@pytest.mark.slow
def test_the_digest_and_the_seed_that_fails_are_the_same_whoever_plays_them(crew: Crew, script: Path) -> None:
    with Crew(1) as alone:
        for name in ("fine", "race"):
            reports = [explored(each, script, name) for each in (crew, alone, crew)]
            assert len({(each.digest, each.failed_seed, each.seeds, each.error) for each in reports}) == 1
            assert reports[0].digest == DIGESTS[name]


def test_a_seed_alone_is_the_run_that_it_was_among_many(crew: Crew, script: Path) -> None:
    report = explored(crew, script, "race")
    assert report.failed_seed is not None
    shown: list[object] = []
    alone = report_of(Wanted(str(script), "race"), report.failed_seed, shown.append)
    assert (alone.kind, alone.passed, alone.failed_seed) == ("check", False, report.failed_seed)
    assert report.preemptions <= alone.preemptions
    assert any("FAILED both were counted" in line for line in report.transcript)


LOCKED = """
import asyncio
from grami_actors import Agent, Message, Swarm, handles
from grami_actors.scenario import Play, scenario

class Go(Message):
    again: bool = True

class Locked(Agent, concurrency=2):
    def __init__(self) -> None:
        super().__init__()
        self.lock = asyncio.Lock()

    @handles(Go)
    async def go(self, message: Go) -> None:
        async with self.lock:
            if message.again:
                await self.ask("locked", Go(again=False))

swarm = Swarm([Locked])

@scenario
async def locks_itself_out(play: Play) -> None:
    await play.system.ask("locked", Go())
"""


def test_a_lock_that_is_never_released_is_found_in_a_seed_alone_too(crew: Crew, tmp_path: Path) -> None:
    file = tmp_path / "locked.py"
    file.write_text(LOCKED)
    wanted = Wanted(str(file), "locks_itself_out")
    reports = [explore(crew, wanted, 1), report_of(wanted, 0, lambda _: None)]
    assert [each.kind for each in reports] == ["deadlock"] * 2
    assert reports[0].digest == reports[1].digest


def test_the_order_of_a_set_is_found_by_comparing_processes_and_the_message_is_named(crew: Crew, script: Path) -> None:
    report = explored(crew, script, "in_order_of_a_set")
    assert (report.passed, report.kind) == (False, "nondeterminism")
    assert "the order of a set" in report.error
    assert '"to":"notes"' in report.error
    assert '"word":' in report.error


OUTLIVES = """
from pathlib import Path
from grami_actors import Swarm
from grami_actors.scenario import Play, scenario

swarm = Swarm([])
played = Path(__file__).with_suffix(".txt")

@scenario
async def the_fortieth_time(play: Play) -> None:
    with played.open("a") as file:
        file.write(".")
    play.check("it is not the fortieth time", played.stat().st_size != 40)
"""


def test_a_failure_that_its_seed_does_not_replay_is_told_as_what_it_is(crew: Crew, tmp_path: Path) -> None:
    file = tmp_path / "outlives.py"
    file.write_text(OUTLIVES)
    report = explore(crew, Wanted(str(file), "the_fortieth_time"), 200)
    assert (report.passed, report.kind) == (False, "nondeterminism")
    assert "it is not the fortieth time" in report.error
    assert "outlives a run" in report.error
    assert report.transcript == ()


def test_a_fault_that_strikes_on_no_seed_is_told(crew: Crew, script: Path) -> None:
    report = explored(crew, script, "strikes_on_some_seeds")
    assert (report.passed, report.unused) == (True, ("crash before 'nobody'",))


ON_DISK = """
import asyncio, json
from pathlib import Path
from grami_actors import Agent, Message, Swarm, handles
from grami_actors.scenario import Play, scenario

kept = Path(__file__).with_suffix(".json")

class Put(Message):
    key: str

class Store(Agent, concurrency=2):
    def on_start(self) -> None:
        kept.write_text("{}")

    @handles(Put)
    async def put(self, message: Put) -> None:
        content = json.loads(kept.read_text())
        await asyncio.sleep(0)
        kept.write_text(json.dumps(content | {message.key: len(content)}))

class Told(Agent):
    @handles(Put)
    def told(self, message: Put) -> None: ...

swarm = Swarm([Store, Told])

@scenario
async def both_are_kept(play: Play) -> None:
    for key in "ab":
        play.system.tell("store", Put(key))
        await asyncio.sleep(0)
    await asyncio.sleep(1)
    content = kept.read_text()
    await play.system.ask("told", Put(content))
    play.check("both are kept", set(json.loads(content)) == {"a", "b"}, content)
"""


def test_processes_that_write_to_the_same_file_are_no_leak_and_a_race_over_it_is_found(
    crew: Crew, tmp_path: Path
) -> None:
    file = tmp_path / "on_disk.py"
    file.write_text(ON_DISK)
    wanted = Wanted(str(file), "both_are_kept")
    reports = [explore(crew, wanted, 1_000) for _ in range(3)]
    assert [each.kind for each in reports] == ["check"] * 3
    assert len({(each.failed_seed, each.digest) for each in reports}) == 1
    assert reports[0].failed_seed is not None
    alone = report_of(wanted, reports[0].failed_seed, lambda _: None)
    assert alone.error.startswith("both are kept")


def test_how_many_were_played_is_told_until_all_were(crew: Crew, script: Path) -> None:
    told: list[int] = []
    report = explore(crew, Wanted(str(script), "fine"), 100, told.append)
    assert (report.passed, report.seeds) == (True, 100)
    assert told == sorted(told)
    assert told[-1] == 100
    assert report.distinct_histories > 10


@pytest.mark.slow
def test_a_process_that_is_gone_is_an_error_that_says_so(script: Path) -> None:
    with pytest.raises(GramiError, match="a process that played ends_its_process ended in the middle"), Crew(1) as crew:
        explored(crew, script, "ends_its_process")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_the_command_is_stopped_no_process_is_left(script: Path, how: signal.Signals) -> None:
    with start(
        "run", script, "never_ends", "--simulate", "--jobs", "2", cwd=script.parent, stdout=-1, stderr=-1
    ) as run:
        assert run.stdout is not None
        begun = run.stdout.readline()
        children = psutil.Process(run.pid).children(recursive=True)
        run.send_signal(how)
        began = time.monotonic()
        _, said = run.communicate(timeout=10)
        assert ("stopped: never_ends has been played on 0 of 1,000 seeds" in said) == (how == signal.SIGINT)
        assert begun.startswith("begun"), "once, or twice in one line"
        assert run.returncode == (130 if how == signal.SIGINT else -how)
        _, alive = psutil.wait_procs(children, timeout=5)
        assert [each for each in alive if each.status() != psutil.STATUS_ZOMBIE] == []
        assert time.monotonic() - began < 5


def test_what_a_process_inherits_is_only_for_those_of_the_crew(crew: Crew) -> None:
    assert len(crew) == 2
    before = os.environ.get("PYTHONHASHSEED")
    handler = signal.getsignal(signal.SIGINT)
    assert [crew.submit(member, os.getenv, "PYTHONHASHSEED").result() for member in range(2)] == ["1", "2"]
    assert {crew.submit(member, signal.getsignal, signal.SIGINT).result() for member in range(2)} == {signal.SIG_IGN}
    assert os.environ.get("PYTHONHASHSEED") == before
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.slow
def test_a_script_that_cannot_be_loaded_or_is_gone_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text("swarm = (\n")
    (tmp_path / "exits.py").write_text("import sys\nsys.exit(3)\n")
    wrong = ("wrong.py", "cannot be loaded: SyntaxError"), ("exits.py", "cannot be loaded: line 2: SystemExit: 3")
    for name, text in (*wrong, ("gone.py", "gone.py")):
        ended = grami("run", name, "--simulate", "--seeds", "3", cwd=tmp_path)
        assert ended.code != 0
        assert text in ended.words
        assert "Traceback" not in ended.words
