"""Replay: live recordings played again on the agents that made them, and on agents that were changed."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grami_actors.config import Config
from grami_actors.history import Dice, Injected, Ran, Remark, Told
from grami_actors.manager import GrowthManager
from grami_actors.recording.account import Account, Difference
from grami_actors.recording.against import Against, against
from grami_actors.recording.recorder import recording
from grami_actors.recording.replay import Replayed, replay
from grami_actors.recording.tape import Tape, header
from grami_actors.scenario.script import load, run
from tests.conftest import heard, raw
from tests.test_cli import grami
from tests.test_report import data_of

SWARM = '''
"""Agents that overlap, call, stream, fail, time out and are restarted."""

import asyncio

from grami_actors import Agent, DeadlineExceeded, GramiError, Message, Reject, ScriptedModel, Swarm, handles, tool
from grami_actors.scenario import Play, scenario


class Job(Message):
    number: int


class Text(Message):
    about: str


class Line(Message):
    text: str


class Slow(Message):
    seconds: float


class Bad(Message):
    how: str


class Count(Message):
    pass


@tool(concurrency=3)
def square(number: int) -> int:
    if number == 13:
        raise ValueError("unlucky")
    return number * number


@tool
async def nap(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "rested"


class Boss(Agent, concurrency=8):
    jobs = 0

    @handles(Job)
    async def job(self, job: Job) -> dict:
        self.jobs += 1
        calls = [self.call(square, number=job.number + more) for more in range(3)]
        squares = [str(each) for each in await asyncio.gather(*calls, return_exceptions=True)]
        self.tell("log", Line(f"job {job.number}"))
        self.tell("log", Line(f"number {self.jobs}"))
        asked = [self.ask("writer", Text(f"{job.number}/{more}")) for more in range(3)]
        return {"squares": squares, "texts": await asyncio.gather(*asked)}

    @handles(Slow)
    async def slow(self, slow: Slow) -> str:
        try:
            return await self.ask("sleeper", slow, timeout=0.02)
        except DeadlineExceeded:
            return "too slow"


class Writer(Agent, instances=3):
    @handles(Text)
    async def write(self, text: Text) -> str:
        pieces = []
        async for piece in self.generate(f"{text.about} is"):
            pieces.append(piece)
            self.emit({"from": self.name, "text": piece})
        return "".join(pieces)


class Sleeper(Agent, concurrency=4):
    @handles(Slow)
    async def sleep(self, slow: Slow) -> str:
        return await self.call(nap, seconds=slow.seconds)


class Log(Agent):
    def on_start(self) -> None:
        self.lines = []

    @handles(Line)
    def add(self, line: Line) -> None:
        self.lines.append(line.text)

    @handles(Count)
    def count(self, _: Count) -> int:
        return len(self.lines)

    @handles(Bad)
    def bad(self, bad: Bad) -> None:
        if bad.how == "crash":
            raise RuntimeError("crashed")
        raise Reject("NOT_TODAY", "no")


swarm = Swarm([Boss, Writer, Sleeper, Log], [square, nap], lambda: ScriptedModel({" is": " good and well and fine"}))


async def code(work):
    try:
        await work
    except GramiError as error:
        return error.error_code


@scenario
async def everything(play: Play) -> None:
    a, b = await play.client("a"), await play.client("b")
    jobs = [client.write(Job(number)) for number, client in ((1, a), (2, b), (12, a), (13, b))]
    await asyncio.gather(*jobs, b.request(Slow(0.2)), a.request(Slow(0.001)))
    play.check("crash", await code(a.request(Bad("crash"))) == "AGENT_EXECUTION_FAILED")
    play.check("reject", await code(a.request(Bad("reject"))))
    play.check("late", await code(b.request("slow", seconds=3, to="sleeper", timeout=0.03)) == "DEADLINE_EXCEEDED")
    cancelled = a.start("slow", seconds=3, to="sleeper")
    await asyncio.sleep(0.01)
    await cancelled.cancel()
    play.check("asked from outside", await play.system.ask("log", Count()) == 0)
    left = b.start("slow", seconds=3, to="sleeper")
    await asyncio.sleep(0.005)
    await b.leave()
    await code(left)
    await a.write(Job(40))
'''

CONTENT = Path(__file__).parents[1] / "scenarios" / "content_swarm.py"

_numbers = itertools.count()


def swarm_file(folder: Path, text: str = SWARM) -> Path:
    path = folder / f"swarm_{next(_numbers)}.py"
    path.write_text(text)
    return path


def record(file: Path, path: Path) -> Tape:
    """A live recording of all scenarios of a file."""
    results = asyncio.run(run(load(file), [], Config(), lambda _: None, path))
    assert all(each.passed for each in results), results
    return Tape(path)


def replayed(tape: Tape, file: Path | None = None) -> Replayed:
    return replay(tape, load(file or Path(tape.header.file)).swarm)


def shown(replayed: Replayed) -> str:
    found = replayed.difference
    return "" if found is None else "\n".join([found.where, *found.lines()])


@pytest.fixture(scope="module")
def tape(tmp_path_factory: pytest.TempPathFactory) -> Tape:
    folder = tmp_path_factory.mktemp("recorded")
    return record(swarm_file(folder), folder / "run.jsonl")


def changed(tape: Tape, before: str, after: str) -> Replayed:
    """The recording on agents of which one thing was changed."""
    assert before in SWARM
    return replayed(tape, swarm_file(tape.path.parent, SWARM.replace(before, after)))


# --- the same agents ---


@pytest.mark.slow
def test_a_live_run_is_replayed_as_it_was_twenty_times(tape: Tape) -> None:
    for _ in range(20):
        again = replayed(tape)
        assert shown(again) == ""
        assert again.same
    assert again.messages == len(Account(list(tape)).told)
    assert not again.cut


@pytest.mark.slow
def test_several_live_runs_of_the_content_swarm_are_replayed_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAMI_MODEL", "scripted")
    for number in range(3):
        tape = record(CONTENT, tmp_path / f"{number}.jsonl")
        for _ in range(5):
            assert shown(replayed(tape)) == ""


CONTRACT = """
from grami_actors import Agent, Message, Swarm, handles
from grami_actors.coordination import Announce, Award, Bidder, contract
from grami_actors.scenario import Play, scenario

class Paint(Message):
    colour: str

class Job(Message):
    pass

class Ann(Bidder):
    def bid(self, call: Announce):
        return 3

    async def perform(self, award: Award):
        return f"{award.task.colour} by {self.name}"

class Boss(Agent):
    @handles(Job)
    async def go(self, _):
        return await contract(self, Paint("red"), ["ann"], bid_within=0.5)

swarm = Swarm([Ann, Boss])

@scenario
async def one(play: Play):
    client = await play.client("client")
    play.check("it is painted", await client.request("job") == "red by ann")
"""


def test_an_id_that_the_system_gives_is_another_in_each_run_and_no_difference(tmp_path: Path) -> None:
    tape = record(swarm_file(tmp_path, CONTRACT), tmp_path / "contract.jsonl")
    ended = replayed(tape)
    assert ended.same, shown(ended)
    assert not replayed(tape, swarm_file(tmp_path, CONTRACT.replace('"red"', '"blue"'))).same


ORDER = """
import asyncio

from grami_actors import Agent, Message, ScriptedModel, Swarm, handles, tool
from grami_actors.coordination import gather
from grami_actors.scenario import Play, scenario


class Add(Message):
    number: int


class Note(Message):
    text: str


class Tick(Message):
    number: int = 0


@tool
async def fetch(number: int) -> int:
    await asyncio.sleep(0.001)
    return number


class Shared(Agent, concurrency=10):
    def on_start(self) -> None:
        self.total, self.lock = 0, asyncio.Lock()

    @handles(Add)
    async def add(self, add: Add) -> list:
        total = self.total
        number = await self.call(fetch, number=add.number)
        self.total = total + number
        self.tell("log", Note(f"{add.number}: {self.total}"))
        answers = [self.ask("echo", add), self.ask("echo", add)]
        await asyncio.sleep(0.0005 * (add.number % 3))
        echoes = [await each for each in answers]
        async with self.lock:
            self.total += await self.ask("echo", add)
        async for piece in self.generate("It is"):
            self.total += len(piece)
        for more in range(3):
            await asyncio.sleep(0)
            self.total += more
        return [self.total, echoes]


class Echo(Agent, instances=2):
    @handles(Add)
    async def echo(self, add: Add) -> int:
        await asyncio.sleep(0)
        return add.number


class First(Agent, concurrency=5):
    @handles(Add)
    async def add(self, add: Add) -> list:
        found = await gather(self, {name: add for name in ("echo-1", "echo-2")}, want="first")
        return [each.value for each in found]


class Clock(Agent):
    def on_start(self) -> None:
        self.ticks = 0
        self.every(0.007, Tick(), key="every")

    @handles(Tick)
    async def tick(self, tick: Tick) -> None:
        self.ticks += 1
        self.tell("log", Note(f"tick {tick.number}, {self.ticks}"))
        if self.ticks == 9:
            self.cancel_timer("every")

    @handles(Add)
    def add(self, add: Add) -> None:
        for number in range(add.number):
            self.after(0.002 * number, Tick(number))


class Log(Agent):
    @handles(Note)
    def note(self, note: Note) -> None:
        pass


swarm = Swarm([Shared, Echo, First, Clock, Log], [fetch], lambda: ScriptedModel({"It is": " good and fine"}))


@scenario
async def one(play: Play):
    clients = [await play.client(name) for name in "abc"]
    for number in range(1, 13):
        asked = [client.start("add", to=to, number=number) for client in clients for to in ("shared", "first")]
        if number == 3:
            await clients[0].request("add", to="clock", number=6)
        if number % 4 == 0:
            for each in asked:
                await each
    await play.eventually(lambda: play.transcript.count("clock: tick") >= 9)
"""


@pytest.mark.slow
def test_handlers_that_overlap_go_on_in_the_order_in_which_they_did(tmp_path: Path) -> None:
    """What one reads and another writes between two awaits is as it was, as are the timers that came in between."""
    file = swarm_file(tmp_path, ORDER)
    for number in range(3):
        again = replayed(record(file, tmp_path / f"{number}.jsonl"))
        assert again.same, shown(again)
    other = replayed(
        Tape(tmp_path / "0.jsonl"), swarm_file(tmp_path, ORDER.replace("Tick(number)", "Tick(number + 1)"))
    )
    assert "clock sends tick to clock" in shown(other) or "clock gets no tick" in shown(other)


HANDED = """
import asyncio

from grami_actors import Agent, Message, Swarm, handles
from grami_actors.coordination import handoff
from grami_actors.scenario import Play, scenario


class Question(Message):
    text: str


class Front(Agent, concurrency=4):
    @handles(Question)
    async def receive(self, question: Question) -> None:
        if question.text == "twice":
            handoff(self, "desk", question)
        elif question.text != "own":
            handoff(self, "expert", question)
            self.tell("log", Question("handed"))
        await asyncio.sleep(0.001)
        if question.text == "fails":
            raise ValueError("after it was handed over")
        return "its own"


class Desk(Agent):
    @handles(Question)
    def receive(self, question: Question) -> None:
        handoff(self, "expert", question)


class Expert(Agent, concurrency=4):
    @handles(Question)
    async def answer(self, question: Question) -> str:
        self.emit(question.text)
        await asyncio.sleep(0.002)
        return question.text.upper()


class Log(Agent):
    @handles(Question)
    def note(self, question: Question) -> None:
        pass


class Asker(Agent):
    @handles(Question)
    async def late(self, question: Question) -> str:
        return await self.ask("front", question)


swarm = Swarm([Front, Desk, Expert, Log, Asker])


@scenario
async def one(play: Play):
    client = await play.client("client")
    asked = [client.start("question", to=to, text=text) for to, text in (
        ("front", "why"), ("front", "own"), ("asker", "how"), ("front", "fails"), ("front", "twice"), ("desk", "so"),
    )]
    said = [await each for each in asked]
    play.check("answered", said == ["WHY", "its own", "HOW", "FAILS", "TWICE", "SO"], str(said))
"""


ODD_FRAMES: list[Any] = [
    "{",
    "[]",
    '"token"',
    b"\x00\xff",
    '{"type": 5, "id": 1}',
    '{"type": "helo", "id": 2, "meta": 5}',
    '{"type": "helo", "stream": true}',
    '{"type": "question", "id": 3, "text": 1e400}',
    '{"type": "question", "id": 4, "text": 5}',
    '{"type": "question", "text": "aside"}',
    '{"type": "question", "id": 5, "to": "nobody", "text": "lost"}',
    '{"type": "hello", "protocol": 99, "id": 6}',
    '{"type": "describe", "id": 7}',
    '{"type": "subscribe", "id": 8, "topic": "a.b"}',
    '{"type": "publish", "id": 9, "topic": "a.b", "data": {"text": "\u0000"}}',
    '{"type": "job.list", "id": 10}',
    '{"type": "cancel", "request_id": 77, "id": 11}',
    '{"type": "question", "id": 12, "to": "expert", "text": "why"}',
    '{"type": "question", "id": 12, "to": "expert", "text": "again"}',
]


async def test_what_clients_send_wrong_is_no_difference(tmp_path: Path) -> None:
    path, file = tmp_path / "odd.jsonl", swarm_file(tmp_path, HANDED)
    manager = GrowthManager(load(file).swarm, Config(port=0), publish=False)
    with recording(manager, path, header(file)):
        async with asyncio.timeout(20), manager, raw(manager) as socket:
            for frame in ODD_FRAMES:
                await socket.send(frame)
            await socket.send('{"type": "question", "id": 99, "to": "expert", "text": "last"}')
            while (await heard(socket)).get("data") != "LAST":
                pass
    ended = await asyncio.to_thread(replayed, Tape(path))
    assert ended.same, shown(ended)
    assert ended.messages >= 3


DICE = """
from grami_actors import Agent, Message, Swarm, handles
from grami_actors.scenario import Play, scenario


class Throw(Message):
    pass


class Player(Agent, instances=2):
    @handles(Throw)
    def throw(self, throw: Throw) -> int:
        return self.random.randrange(10**9)


swarm = Swarm([Player])


@scenario
async def one(play: Play):
    client = await play.client("client")
    for _ in range(6):
        await client.request(Throw())
"""


def test_what_an_actor_throws_with_its_own_dice_is_as_it_was(tmp_path: Path) -> None:
    tape = record(swarm_file(tmp_path, DICE), tmp_path / "dice.jsonl")
    assert sum(isinstance(each, Dice) for each in tape) == 2
    ended = replayed(tape)
    assert ended.same, shown(ended)


QUEUED = """
import asyncio

from grami_actors import Agent, Message, Swarm, handles
from grami_actors.scenario import Play, scenario


class Nap(Message):
    seconds: float


class Sleeper(Agent):
    @handles(Nap)
    async def sleep(self, nap: Nap) -> str:
        await asyncio.sleep(nap.seconds)
        return "rested"


swarm = Swarm([Sleeper])


@scenario
async def one(play: Play):
    a, b = await play.client("a"), await play.client("b")
    first = a.start(Nap(0.05))
    await asyncio.sleep(0.01)
    cancelled = b.start(Nap(0.01))
    await asyncio.sleep(0.01)
    await cancelled.cancel()
    play.check("the next", await b.request(Nap(0.01)) == "rested")
    await first
"""


def test_a_message_that_was_cancelled_while_it_waited_is_not_taken_for_the_next(tmp_path: Path) -> None:
    ended = replayed(record(swarm_file(tmp_path, QUEUED), tmp_path / "queued.jsonl"))
    assert ended.same, shown(ended)
    assert ended.messages == 2


def test_a_request_that_was_handed_over_is_replayed_as_it_was(tmp_path: Path) -> None:
    tape = record(swarm_file(tmp_path, HANDED), tmp_path / "handed.jsonl")
    handed = [each for each in tape if isinstance(each, Told) and each.handed]
    assert [each.asked for each in handed] == [True] * 6
    ended = replayed(tape)
    assert ended.same, shown(ended)
    other = replayed(tape, swarm_file(tmp_path, HANDED.replace('"expert", question)', '"log", question)', 1)))
    assert other.difference is not None
    assert "front sends question to log" in shown(other)


def test_neither_model_nor_tools_are_run(tape: Tape) -> None:
    text = SWARM.replace("return number * number", "raise SystemExit").replace(
        'lambda: ScriptedModel({" is": " good and well and fine"})', "lambda: 1 / 0"
    )
    assert shown(replayed(tape, swarm_file(tape.path.parent, text))) == ""


# --- changed agents: the first difference ---


def test_another_word_of_an_agent_is_shown_with_what_it_was(tape: Tape) -> None:
    again = changed(tape, 'Line(f"job {job.number}")', 'Line(f"work {job.number}")')
    assert not again.same
    assert again.difference is not None
    assert again.difference.where.startswith("boss sends line to log, message 1")
    assert '-    "text": "job ' in shown(again)
    assert '+    "text": "work ' in shown(again)


def test_another_argument_of_a_tool_is_shown(tape: Tape) -> None:
    again = changed(tape, "number=job.number + more", "number=job.number + 2 * more")
    assert "boss sends tool_call to tool:square" in shown(again)
    assert '+      "number": 3' in shown(again) or '"number"' in shown(again)


def test_another_order_of_two_sends_to_one_actor_is_shown(tape: Tape) -> None:
    lines = SWARM.splitlines(keepends=True)
    place = next(number for number, line in enumerate(lines) if "job {job.number}" in line)
    lines[place], lines[place + 1] = lines[place + 1], lines[place]
    again = replayed(tape, swarm_file(tape.path.parent, "".join(lines)))
    assert "boss sends line to log, message 1" in shown(again)
    assert '+    "text": "number ' in shown(again)


def test_another_prompt_is_shown(tape: Tape) -> None:
    again = changed(tape, "{text.about} is", "A {text.about} is")
    assert "sends generate to tool:model" in shown(again)
    assert '+      "text": "A ' in shown(again)


def test_another_answer_of_an_agent_is_shown(tape: Tape) -> None:
    again = changed(tape, 'return "".join(pieces)', 'return "".join(pieces).upper()')
    assert "answers text of boss" in shown(again)
    assert '+  "result": " GOOD AND WELL AND FINE"' in shown(again)


def test_another_chunk_to_a_client_is_shown(tape: Tape) -> None:
    # Strict only where no request was broken off: there nobody knows how many pieces came through.
    again = changed(tape, 'return "too slow"', 'return "too late"')
    assert "boss answers slow of connection-2" in shown(again)


def test_a_message_more_and_a_message_less_are_shown(tape: Tape) -> None:
    send = '        self.tell("log", Line(f"number {self.jobs}"))\n'
    more = changed(tape, send, send + '        self.tell("log", Line("more"))\n')
    assert '+    "text": "more"' in shown(more)
    less = changed(tape, send, "")
    assert "log gets no line of boss" in shown(less)


def test_an_agent_that_asks_the_clock_of_the_machine_is_told_where(tape: Tape) -> None:
    again = changed(tape, "        self.jobs += 1\n", "        import time; self.jobs += 1; time.time()\n")
    assert "time.time()" in shown(again)
    assert "use self.now()" in shown(again)


def test_a_failure_that_an_agent_no_longer_has_is_shown(tape: Tape) -> None:
    again = changed(tape, 'raise RuntimeError("crashed")', "return None")
    assert "log answers bad of connection-1" in shown(again)
    assert '-  "error": "crashed"' in shown(again) or "crashed" in shown(again)


# --- recordings that are cut ---


@pytest.mark.slow
def test_a_recording_that_ends_in_the_middle_is_played_as_far_as_it_goes(tape: Tape) -> None:
    lines = tape.path.read_bytes().splitlines(keepends=True)
    for place in range(12, len(lines), 23):
        cut = tape.path.parent / f"cut_{place}.jsonl"
        cut.write_bytes(b"".join(lines[:place]) + lines[place][:20])
        again = replay(Tape(cut), load(Path(tape.header.file)).swarm)
        assert shown(again) == "", place
        assert again.cut


def test_a_recording_that_ends_while_a_client_goes_is_played_as_far_as_it_goes(tape: Tape) -> None:
    lines = tape.path.read_bytes().splitlines(keepends=True)
    place = next(number for number, line in enumerate(lines) if b"the client disconnected" in line)
    assert not any(b'"way":"close"' in line for line in lines[:place])
    cut = tape.path.parent / "going.jsonl"
    cut.write_bytes(b"".join(lines[: place + 1]))
    assert shown(replay(Tape(cut), load(Path(tape.header.file)).swarm)) == ""


KILLED = """
from grami_actors import Agent, GramiError, Message, Swarm, handles
from grami_actors.scenario import Play, scenario


class Job(Message):
    pass


class Worker(Agent):
    @handles(Job)
    async def work(self, job: Job) -> str:
        return await self.ask("idle", job)


class Idle(Agent):
    @handles(Job)
    def work(self, job: Job) -> str:
        return "done"


class Boss(Agent):
    @handles(Job)
    async def job(self, job: Job) -> str:
        try:
            return await self.ask("worker", job)
        except GramiError as error:
            return str(error)


swarm = Swarm([Boss, Worker, Idle])


@scenario
async def killed(play: Play):
    client = await play.client("client")
    play.faults.crash("worker", when="during")
    play.check("it is told why", "killed" in await client.request("job", to="boss"))
"""


def test_what_others_say_of_a_crash_is_replayed_as_it_was(tmp_path: Path) -> None:
    ended = replayed(record(swarm_file(tmp_path, KILLED), tmp_path / "killed.jsonl"))
    assert ended.same, shown(ended)


def test_in_a_recording_what_a_tool_answered_stands_before_who_was_told(tape: Tape) -> None:
    """Else a recording that is cut between the two asks for an answer that it does not have."""
    entries = list(tape)
    told = [
        (place, each.at) for place, each in enumerate(entries) if isinstance(each, Told) and each.to == "tool:square"
    ]
    ran = {each.at: place for place, each in enumerate(entries) if isinstance(each, Ran) and each.tool == "square"}
    assert len(told) > 5
    assert all(ran[at] < place for place, at in told)


def edited(tape: Tape, name: str, edit: Callable[[list[bytes]], list[bytes]]) -> Path:
    """A recording whose lines a hand has changed."""
    path = tape.path.parent / f"{name}.jsonl"
    path.write_bytes(b"".join(edit(tape.path.read_bytes().splitlines(keepends=True))))
    return path


def test_lines_that_were_moved_are_played_when_they_happened(tape: Tape) -> None:
    moved = edited(tape, "moved", lambda lines: [lines[0], *reversed(lines[1:-1]), lines[-1]])
    again = replay(Tape(moved), load(Path(tape.header.file)).swarm)
    assert again.same, shown(again)
    assert again.messages == len(Account(list(tape)).told)


def test_handlers_that_are_held_up_end_with_the_replay(tape: Tape) -> None:
    def later(lines: list[bytes]) -> list[bytes]:
        return [re.sub(rb'"steps":\[', b'"steps":[9000000000000,', each) for each in lines]

    path = edited(tape, "later", later)
    code, out, err = grami("replay", path, "--json", cwd=path.parent)
    assert (code, err) == (1, "")
    assert not json.loads(out)["same"]


# --- against ---


def test_frames_of_a_client_that_never_came_are_not_waited_for(tape: Tape) -> None:
    path = edited(tape, "closed", lambda lines: [each for each in lines[:-1] if b'"way":"open"' not in each])
    result = asyncio.run(asyncio.wait_for(against(Tape(path), load(Path(tape.header.file)).swarm), 20))
    assert {each.verdict for each in result.requests} == {"missing"}


def compared(tape: Tape, before: str = "", after: str = "") -> Against:
    file = swarm_file(tape.path.parent, SWARM.replace(before, after) if before else SWARM)
    return asyncio.run(against(tape, load(file).swarm))


@pytest.mark.slow
def test_against_the_same_agents_every_answer_is_the_same_and_nothing_is_called(tape: Tape) -> None:
    result = compared(tape)
    assert [each.verdict for each in result.requests if each.type == "job"] == ["same"] * 5
    assert result.recorded_calls > 20


@pytest.mark.slow
def test_against_changed_agents_each_changed_answer_is_shown_and_calls_are_counted(tape: Tape) -> None:
    result = compared(tape, "number=job.number + more", "number=job.number + 100 * more")
    jobs = [each for each in result.requests if each.type == "job"]
    assert [each.verdict for each in jobs] == ["changed"] * 5
    assert any("10201" in line for line in jobs[0].lines() + jobs[1].lines() + jobs[2].lines() + jobs[3].lines())
    assert result.other_calls >= 10
    assert not result.same


# --- the commands ---


def test_replay_says_that_all_is_as_recorded_or_what_is_not(tape: Tape) -> None:
    code, out, err = grami("replay", tape.path, "--json", cwd=tape.path.parent)
    assert (code, err) == (0, "")
    assert json.loads(out)["same"]
    other = swarm_file(tape.path.parent, SWARM.replace("number {self.jobs}", "nr {self.jobs}"))
    code, out, _ = grami("replay", tape.path, "--swarm", other, cwd=tape.path.parent)
    assert code == 1
    assert "the first difference" in out
    assert '"text": "nr ' in out


def test_report_counts_what_is_in_a_recording_and_draws_it(tape: Tape) -> None:
    path = tape.path.with_suffix(".html")
    code, out, err = grami("report", tape.path, "--html", path, "--json", cwd=tape.path.parent)
    assert (code, err) == (0, "")
    summary = json.loads(out)
    assert summary["restarts"] == 1
    assert summary["whole"]
    assert summary["errors"]["NOT_TODAY"] == 1
    page = path.read_text()
    assert "tool:square" in page
    assert "<script src" not in page


def test_a_page_is_written_of_a_simulated_run(tape: Tape) -> None:
    page = tape.path.parent / "simulated.html"
    code, out, _ = grami("run", tape.header.file, "--simulate", "--seed", "0", "--html", page, cwd=tape.path.parent)
    assert "everything" in out
    assert code in {0, 1}
    assert "everything" in page.read_text()


FAULTY = """
from grami_actors import Agent, Message, Swarm, handles
from grami_actors.scenario import Play, scenario


class Deposit(Message):
    amount: int


class Bank(Agent):
    @handles(Deposit)
    def deposit(self, deposit: Deposit) -> int:
        return deposit.amount


swarm = Swarm([Bank])


@scenario
async def delayed(play: Play) -> None:
    ann = await play.client("ann")
    play.faults.delay("*", "bank", 0.01)
    play.check("it comes through", await ann.request(Deposit(5)) == 5)
"""


def test_a_live_recording_and_its_page_hold_the_faults_and_the_checks(tmp_path: Path) -> None:
    file, recording, page = swarm_file(tmp_path, FAULTY), tmp_path / "run.jsonl", tmp_path / "run.html"
    code, _, err = grami("run", file, "--record", recording, "--html", page, cwd=tmp_path)
    assert (code, err) == (0, "")
    told = [each for each in Tape(recording) if isinstance(each, (Injected, Remark))]
    assert [each.fault if isinstance(each, Injected) else each.text for each in told] == [
        "delayed",
        "comes as connection-1",
        "delay",
        "it comes through",
    ]
    assert [told.at for told in told] == sorted(told.at for told in told)
    data = data_of(page.read_text())
    kinds = [data["kinds"][row[0]] for row in data["entries"]]
    assert kinds.count("fault") == 1
    assert kinds.count("remark") == 3


def test_a_difference_of_a_run_with_faults_says_that_they_are_not_played(tmp_path: Path) -> None:
    tape = record(swarm_file(tmp_path, FAULTY), tmp_path / "run.jsonl")
    assert shown(replayed(tape)) == ""
    again = replayed(tape, swarm_file(tmp_path, FAULTY.replace("return deposit.amount", "return 6")))
    assert "faults were put into the recorded run (1), which are not played" in shown(again)


def test_a_difference_is_shown_line_by_line() -> None:
    lines = Difference(1.0, "a tells b", {"x": 1, "y": 2}, {"x": 1, "y": 3}).lines()
    assert '-  "y": 2' in lines
    assert '+  "y": 3' in lines


def test_a_recording_whose_swarm_is_elsewhere_says_how_to_name_it(tape: Tape, tmp_path: Path) -> None:
    lost = tmp_path / "lost.jsonl"
    first, rest = tape.path.read_text().split("\n", 1)
    lost.write_text(json.dumps({**json.loads(first), "file": "gone.py"}) + "\n" + rest)
    code, _, err = grami("replay", lost, cwd=tmp_path)
    assert code == 1
    assert "there is no file gone.py" in err
    assert "--swarm" in err


def test_options_that_do_not_go_together_are_refused(tape: Tape, tmp_path: Path) -> None:
    for options, named in (
        (("--record", "run.jsonl"), "--record"),
        (("--seed", "3", "--seeds", "4"), "--seeds"),
    ):
        code, out, err = grami("run", tape.header.file, "--simulate", *options, cwd=tmp_path)
        assert (code, out) == (2, "")
        assert named in err
        assert "leave out" in err
    assert not list(tmp_path.iterdir())
