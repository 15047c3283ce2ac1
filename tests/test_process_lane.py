"""What is special about actors in worker processes: they crash, hang, eat memory, lie, and are killed."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import decimal
import enum
import math
import os
import pickle
import signal
import sys
import types
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from grami_actors.actor import Actor, specify
from grami_actors.budget import Budget, QuotaExceeded
from grami_actors.cell import ActorDead
from grami_actors.errors import (
    AgentCrashed,
    DestinationNotFound,
    GramiError,
    MailboxFull,
    StartFailed,
    ToolExecutionFailed,
    ToolTimeout,
)
from grami_actors.lanes import child as child_module
from grami_actors.lanes import pipe as pipe_module
from grami_actors.lanes.codec import CannotCross, Codec, WorkerError, loaded
from grami_actors.lanes.pipe import Done, Emit, Frames
from grami_actors.lanes.process import Workers
from grami_actors.messages import ToolCall
from grami_actors.swarm import Swarm
from grami_actors.telemetry import ActorFailed, ActorPaused, ActorRestarted, MessageSent, ToolCalled
from tests import process_actors as actors
from tests.conftest import Recorder, running
from tests.test_contract_process import a_house

ROOT = Path(__file__).parents[1]


def is_running(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in {"Z", "X"}


_BEFORE: set[str] = set()
"""Children that other tests left: shims of jobs, which outlive the server that started them."""


@pytest.fixture(autouse=True)
def before() -> None:
    _BEFORE.clear()
    _BEFORE.update(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split())


def workers_of(pid: int) -> list[int]:
    """The children of this process, zombies too, but for what multiprocessing keeps for itself, and what was there."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    own = [child for child in children if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes()]
    return [int(child) for child in own if child not in _BEFORE]


async def ended(pid: int) -> None:
    """Wait until a process that is not our child is gone."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        gone = asyncio.Event()
        asyncio.get_running_loop().add_reader(descriptor, gone.set)
        try:
            await gone.wait()
        finally:
            asyncio.get_running_loop().remove_reader(descriptor)
            os.close(descriptor)


# --- crash, hang, memory, garbage: one handler ends, and the actor goes on ---


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("exit", "exit code 3"),
        ("segv", "SIGSEGV"),
        ("eat", ""),
        ("garbage", "no frame"),
        ("lies", "an answer to nothing that was asked"),
        ("close", "gone"),
    ],
)
async def test_a_handler_that_ends_its_worker_ends_one_message_and_the_next_is_handled(
    how: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_module, "END_SECONDS", 0.05)
    async with a_house(workers=Workers(memory=400 * 1024**2)) as house:
        failures = Recorder(house.system, ActorFailed)
        ref = await house.system.spawn(actors.Deadly, name="deadly")
        pid = await house.system.ask(ref, "pid")
        asked = [ref.ask(how, block=False), ref.ask("pid", block=False)]
        with pytest.raises(MemoryError if how == "eat" else AgentCrashed) as caught:
            await asked[0]
        assert await asked[1] not in {pid, os.getpid()}
        assert len(failures.events) == 1
        assert text in str(caught.value)
        assert not is_running(pid)


async def test_what_is_too_much_memory_for_a_worker_is_its_error_and_not_the_servers() -> None:
    async with a_house() as house:
        ref = await house.system.spawn(actors.Deadly)
        with pytest.raises(MemoryError):
            await house.system.ask(ref, "memory")
        assert await house.system.ask(ref, "pid") != os.getpid()


@pytest.mark.parametrize("how", ["hang", "hang in C"])
async def test_a_handler_that_hangs_is_killed_after_its_deadline_and_its_mail_is_kept(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grami_actors.lanes.process.PATIENCE", 0.05)
    async with a_house() as house:
        failures = Recorder(house.system, ActorFailed)
        ref = await house.system.spawn(actors.Deadly)
        asked = ref.ask(how, block=False, timeout=60)
        await house.hears("hanging")
        waiting = ref.ask("pid", block=False)
        asked.expire()  # its deadline has come
        with pytest.raises(GramiError, match="unknown"):
            await asked
        assert await waiting != os.getpid()
        assert "did not end within 0.05 s after it was cancelled" in failures.events[0].error


@pytest.mark.parametrize("how", ["hang", "hang in C"])
async def test_a_handler_that_hangs_is_killed_by_kill(how: str) -> None:
    async with a_house() as house:
        ref = await house.system.spawn(actors.Deadly)
        asked = ref.ask(how, block=False)
        await house.hears("hanging")
        house.system.kill(ref)
        with pytest.raises(AgentCrashed, match="it was killed"):
            await asked
        assert await house.system.ask(ref, "pid") != os.getpid()


async def test_a_worker_that_dies_between_messages_is_replaced() -> None:
    async with running() as system:
        events = Recorder(system, ActorRestarted)
        failures = Recorder(system, ActorFailed)
        ref = await system.spawn(actors.Log)
        os.kill(await system.ask(ref, "pid"), signal.SIGKILL)
        await events.first(ActorRestarted)
        assert await system.ask(ref, "alive") == "alive"
        assert "SIGKILL" in failures.events[0].error


async def test_killing_an_idle_actor_restarts_it_once() -> None:
    async with running() as system:
        events = Recorder(system, ActorRestarted)
        ref = await system.spawn(actors.Log)
        pid = await system.ask(ref, "pid")
        system.kill(ref)
        await events.first(ActorRestarted)
        assert await system.ask(ref, "pid") != pid
        assert len(events.events) == 1


async def test_a_worker_that_dies_while_it_starts_is_a_start_that_failed() -> None:
    async with running() as system:
        with pytest.raises(StartFailed, match="exit code 4"):
            await system.spawn(actors.Dying)
        assert [info.name for info in system.tree()] == ["router"]


async def test_a_start_that_hangs_is_killed_when_whoever_spawns_gives_up() -> None:
    async with a_house() as house:
        spawning = asyncio.create_task(house.system.spawn(actors.Endless, name="endless"))
        await house.hears("starting")
        assert await house.system.stop("endless", grace=0.01)
        with pytest.raises(StartFailed, match="stopped while it started"):
            await spawning


async def test_a_hook_that_hangs_is_killed_when_its_time_is_over() -> None:
    async with a_house() as house:
        ref = await house.system.spawn(actors.EndlessStop)
        assert await house.system.stop(ref, grace=0.05)
        await house.system._processes.close()
        assert workers_of(os.getpid()) == []


async def test_a_failed_instance_whose_on_failure_hangs_is_killed_and_replaced() -> None:
    async with running() as system:
        spec = msgspec.structs.replace(specify(actors.EndlessFailure), grace=0.05)
        ref = await system.spawn_spec(spec)
        (failed,) = system._processes._living
        ref.tell(ValueError("fails"))
        assert await system.ask(ref, "alive") == "alive"
        await failed.child.gone


async def test_a_start_of_two_workers_of_which_one_has_died_meanwhile_is_a_start_that_failed() -> None:
    class Gate(Actor):
        concurrency = 2

        async def on_receive(self, message: Any) -> Any:
            _, pid = message
            begun.append(pid)
            if len(begun) == 2:
                (first,) = [each for each in system._processes._living if each.child.pid == begun[0]]
                if first.job is not None:
                    over = asyncio.Event()
                    first.job.over.append(over.set)
                    await over.wait()
                os.kill(begun[0], signal.SIGKILL)
                await first.child.gone

    begun: list[int] = []
    async with running() as system:
        await system.spawn(Gate, name="gate")
        with pytest.raises(StartFailed, match="SIGKILL"):
            await system.spawn(actors.Uneven)


async def test_what_a_worker_no_longer_waits_for_is_cancelled() -> None:
    async with a_house() as house:
        await house.system.spawn(actors.Held, name="log")
        ref = await house.system.spawn(actors.Teller)
        assert await house.system.ask(ref, ("give_up", "log")) == "gave up"
        await house.hears("noticed")


async def test_what_a_worker_asked_is_cancelled_when_it_is_killed() -> None:
    async with a_house() as house:
        await house.system.spawn(actors.Held, name="log")
        ref = await house.system.spawn(actors.Middle)
        asked = ref.ask("hold", block=False)
        await house.gate.until_entered()
        house.system.kill(ref)
        with pytest.raises(AgentCrashed):
            await asked
        await house.hears("noticed")


async def test_an_ask_that_was_answered_is_no_part_of_a_circle() -> None:
    async with a_house() as house:
        caller = await house.system.spawn(actors.AskedBack, name="caller")
        await house.system.spawn(actors.AskingBack, name="other")
        sent = Recorder(house.system, MessageSent)
        asked = caller.ask("go", block=False)
        await house.gate.until_entered()
        await sent.until(lambda events: any(event.message == "who" for event in events))
        house.gate.opened.set()
        assert await asked == "go"
        await house.hears("who")


# --- what is around a worker ---


async def test_the_environment_of_a_worker_is_scrubbed_but_for_what_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("LC_TIME", "C")
    async with running(workers=Workers(environment={"NAMED": "value"})) as system:
        ref = await system.spawn(actors.Teller)
        seen = await system.ask(ref, ("environment",))
        assert "secret" not in seen.values()
        assert (seen["NAMED"], seen["LC_TIME"], seen["PATH"]) == ("value", "C", os.environ["PATH"])
        allowed = child_module.ENVIRONMENT | {"NAMED", "PYTHONPATH"}
        assert {name for name in seen if name not in allowed and not name.startswith("LC_")} == set()


async def test_the_limits_of_a_worker_are_those_of_the_system() -> None:
    async with running(workers=Workers(memory=512 * 1024**2)) as system:
        ref = await system.spawn(actors.Teller)
        assert await system.ask(ref, ("limits",)) == (512 * 1024**2, (0, 0), "1000\n")


@pytest.mark.parametrize("wrong", [{"processes": 0}, {"memory": 0}, {"processes": -1}])
def test_limits_that_make_no_sense_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Workers(**wrong)


async def test_the_number_of_processes_is_bounded_and_given_back() -> None:
    async with running(workers=Workers(processes=2)) as system:
        ref = await system.spawn(actors.Log)
        with pytest.raises(StartFailed, match="1 of the 2"):
            await system.spawn(actors.Wide)
        await system.stop(ref)
        await system.spawn(actors.Wide)


async def test_no_process_and_no_descriptor_is_left_after_many_restarts() -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    async with running() as system:
        events = Recorder(system, ActorRestarted)
        ref = await system.spawn(actors.Log)
        await system.ask(ref, "warm")
        before = descriptors()
        for number in range(6):
            ref.tell(ValueError("again"))
            await events.until(lambda seen, number=number: len(seen) == number + 1)
            await system.ask(ref, "there")
        living = [worker.child.gone for worker in system._processes._living if worker.retired]
        await asyncio.gather(*living)
        assert len(workers_of(os.getpid())) == 1
        assert descriptors() == before
    assert workers_of(os.getpid()) == []


async def test_what_a_worker_started_ends_with_it() -> None:
    async with running() as system:
        ref = await system.spawn(actors.Deadly)
        grandchild = await system.ask(ref, "child")
        assert is_running(grandchild)
        await system.stop(ref)
        await ended(grandchild)


PARENT = """
import asyncio, sys
from grami_actors.system import ActorSystem
from tests.process_actors import Deadly, Log

async def main():
    async with ActorSystem() as system:
        deadly = await system.spawn(Deadly)
        idle = await system.spawn(Log)
        class Gate(__import__("grami_actors").Actor):
            def on_receive(self, message): print("hangs", flush=True)
        await system.spawn(Gate, name="gate")
        print(await system.ask(deadly, "pid"), await system.ask(idle, "pid"), flush=True)
        await system.ask(deadly, sys.argv[1])

asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["hang", "hang in C"])
async def test_the_death_of_the_parent_ends_its_workers_whatever_they_do(how: str) -> None:
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PARENT, how), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    async with asyncio.timeout(20):
        pids = [int(pid) for pid in (await parent.stdout.readline()).split()]
        assert len(pids) == 2
        assert all(map(is_running, pids))
        assert await parent.stdout.readline() == b"hangs\n"
        parent.kill()
        await parent.wait()
        for pid in pids:
            await ended(pid)
            assert not is_running(pid)


async def test_what_a_worker_prints_does_no_harm(capfd: pytest.CaptureFixture[str]) -> None:
    async with running() as system:
        ref = await system.spawn(actors.Teller)
        await system.ask(ref, ("print",))
        assert await system.ask(ref, ("echo", "alive")) == "alive"
    assert capfd.readouterr().out == "printed by a worker\n"


async def test_where_the_system_does_not_say_that_a_process_ended_it_is_noticed_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    async with running() as system:
        ref = await system.spawn(actors.Deadly)
        with pytest.raises(AgentCrashed, match="exit code 3"):
            await system.ask(ref, "exit")
        assert await system.ask(ref, "pid") != os.getpid()


def test_the_lane_works_on_uvloop() -> None:
    async def play() -> None:
        async with a_house() as house:
            ref = await house.system.spawn(actors.Deadly)
            with pytest.raises(AgentCrashed, match="exit code 3"):
                await house.system.ask(ref, "exit")
            asked = ref.ask("hang", block=False)
            await house.hears("hanging")
            house.system.kill(ref)
            with pytest.raises(AgentCrashed):
                await asked
            assert await house.system.ask(ref, "pid") != os.getpid()

    uvloop.run(play())


# --- what can be sent ---


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Plain:
    x: int


async def test_values_come_back_as_they_were() -> None:
    values = [
        (1, (2, "three")),
        {(1, 2): {3, 4}, "five": frozenset({6})},
        2**100,
        -(2**64),
        math.inf,
        b"bytes",
        dt.datetime(2026, 1, 2, 3, 4, 5, 6),  # noqa: DTZ001 - one without a time zone crosses as such
        dt.datetime(2026, 1, 2, tzinfo=dt.timezone(dt.timedelta(hours=2))),
        dt.date(2026, 1, 2),
        decimal.Decimal("1.10"),
        uuid.UUID(int=5),
        3 + 4j,
        actors.Point(1, "one"),
        [actors.Point(2), {"nested": actors.Count(upto=3)}],
        Colour.RED,
    ]
    async with running() as system:
        ref = await system.spawn(actors.Teller)
        for value in values:
            back = await system.ask(ref, ("echo", value))
            assert back == value
            assert type(back) is type(value)
        assert await system.ask(ref, ("echo", Plain(7))) == {"x": 7}
        assert await system.ask(ref, ("type", actors.Point(3))) == ("Point", "Point(x=3, label='')")


simple = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
hashable = st.none() | st.integers() | st.text() | st.tuples(st.integers(), st.text())
nested = st.recursive(
    simple | st.frozensets(hashable) | st.sets(hashable) | st.builds(actors.Point, st.integers(), st.text()),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(hashable, inner),
    max_leaves=20,
)


@given(value=nested, cuts=st.lists(st.integers(0, 100)))
@settings(max_examples=80, deadline=None)
def test_whatever_is_written_is_read_as_it_was_however_the_bytes_arrive(value: Any, cuts: list[int]) -> None:
    codec = Codec(loaded, lambda name, number: (name, number), trusting=False)
    writer, reader = Frames(codec, "orders"), Frames(codec, "reports")
    try:
        data = writer.write(Done(1, codec.pack(value))) + writer.write(Emit(2, None))
    except CannotCross:
        assert "\\ud" in ascii(value)  # half a character
        return
    found = []
    for cut in cuts:
        found += list(reader.feed(data[:cut]))
        data = data[cut:]
    found += list(reader.feed(data))
    done, emit = found
    assert (done.number, done.value, type(done.value)) == (1, value, type(value))
    assert emit == Emit(2, None)


@given(data=st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_bytes_that_are_no_frames_are_always_an_error_or_nothing(data: bytes) -> None:
    codec = Codec(loaded, lambda name, number: (name, number), trusting=False)
    with contextlib.suppress(Exception):
        assert list(Frames(codec, "reports").feed(len(data).to_bytes(4, "big") + data)) == []


async def test_what_cannot_be_sent_fails_that_message_only_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as system:
        failures = Recorder(system, ActorFailed)
        ref = await system.spawn(actors.Teller)
        with pytest.raises(CannotCross, match="object cannot cross"):
            await system.ask(ref, ("echo", object()))
        with pytest.raises(CannotCross, match="object cannot cross"):
            await system.ask(ref, ("object",))
        endless: list[Any] = []
        endless.append(endless)
        with pytest.raises(CannotCross, match="contains itself"):
            await system.ask(ref, ("echo", endless))
        assert len(await system.ask(ref, ("big", 8 * 1024**2))) == 8 * 1024**2
        with pytest.raises(CannotCross, match="too many to cross"):
            await system.ask(ref, ("big", pipe_module.LONGEST_FRAME))
        assert await system.ask(ref, ("echo", "alive")) == "alive"
        assert failures.events == []


async def test_a_message_that_the_worker_cannot_make_sense_of_fails_alone() -> None:
    class Inside(msgspec.Struct):
        x: int

    async with running() as system:
        failures = Recorder(system, ActorFailed)
        ref = await system.spawn(actors.Log)
        with pytest.raises(CannotCross, match="Inside cannot be imported by that name"):
            await system.ask(ref, Inside(1))
        assert await system.ask(ref, "alive") == "alive"
        assert failures.events == []


async def test_exceptions_cross_as_data_and_no_constructor_of_theirs_runs_here() -> None:
    async with running() as system:
        ref = await system.spawn(actors.Teller)
        actors.Own.made_by.clear()
        with pytest.raises(actors.Own, match="of the worker's own"):
            await system.ask(ref, ("own",))
        assert actors.Own.made_by == []
        with pytest.raises(WorkerError, match="Homemade: known to nobody"):
            await system.ask(ref, ("unknown",))
        with pytest.raises(GramiError) as caught:
            await system.ask(ref, ("answer",))
        answer = caught.value
        assert (answer.error_code, answer.param, answer.retry_after_ms) == ("QUOTA_EXCEEDED", "$.x", 7)
        assert await system.ask(ref, ("unknown_struct",)) == {"number": 5}


def test_what_a_worker_names_is_never_imported_called_or_followed() -> None:
    parent = Codec(loaded, lambda name, number: (name, number), trusting=False)
    worker = Codec(loaded, lambda name, number: (name, number), trusting=True)
    pack = msgspec.msgpack.Encoder().encode
    assert "this" not in sys.modules
    assert parent.unpack(6, pack(["this", "s", {"x": 1}])) == {"x": 1}
    assert "this" not in sys.modules
    assert parent.unpack(6, pack(["os", "system", {"command": "true"}])) == {"command": "true"}
    assert parent.unpack(6, pack(["grami_actors.actor", "Actor", {}])) == {}
    assert isinstance(parent.unpack(7, pack(["os", "system", ["true"], "text", [None] * 3, "", None])), WorkerError)
    proxy = pack(["ProxyGetAttr", [["_cell"]]])
    assert worker.unpack(11, proxy).attr_path == ["_cell"]
    with pytest.raises(ValueError, match="proxy"):
        parent.unpack(11, proxy)


def test_a_module_that_answers_for_names_it_does_not_hold_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    trap = types.ModuleType("trap")
    trap.__getattr__ = asked.append  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "trap", trap)
    assert loaded("trap", "Anything") is None
    assert "Anything" not in asked


async def test_a_class_that_a_worker_cannot_import_is_refused_with_the_reason() -> None:
    class Inside(Actor):
        lane = "process"

    async with running() as system:
        with pytest.raises(StartFailed, match="top of a module"):
            await system.spawn(Inside)
        with pytest.raises(StartFailed, match="cannot be sent"):
            await system.spawn(actors.Log, lambda: None)


async def test_constructor_arguments_may_be_what_messages_may_not() -> None:
    async with running() as system:
        ref = await system.spawn(actors.Log, Path("/tmp"), actors.Point(1))
        assert await system.ask(ref, "read") == ["/tmp", actors.Point(1)]


@pytest.mark.parametrize("place", ["main", "module", "scenario"])
async def test_actors_of_a_script_run_in_workers_too(place: str, tmp_path: Path) -> None:
    script = tmp_path / "some-script.py"
    script.write_text(SCRIPT)
    arguments = {"main": [str(script)], "module": ["-m", "some-script"], "scenario": ["-c", LOADER, str(script)]}[place]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *arguments),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(20):
        out, _ = await process.communicate()
    assert out.decode().split() == ["Question(number=21)", "42", "False", "Question(number=5)"]


SCRIPT = """
import asyncio, os
from grami_actors import Actor, ActorSystem, Message, Swarm, tool
from grami_actors.messages import ToolCall
from tests.process_actors import Log

class Question(Message):
    number: int

class Answering(Actor):
    lane = "process"
    def on_receive(self, question):
        return os.getpid(), Question(question.number)

@tool(lane="process")
def twice(number: int) -> int:
    return 2 * number

async def main():
    async with ActorSystem() as system:
        await Swarm(agents=[], tools=[twice]).start(system)
        ref = await system.spawn(Answering)
        pid, question = await system.ask(ref, Question(21))
        assert isinstance(question, Question)
        print(question, await system.ask("tool:twice", ToolCall({"number": 21})), pid == os.getpid())
        other = await system.ask(await system.spawn(Log), Question(5))
        assert isinstance(other, Question)
        print(other)

swarm = Swarm(agents=[])
if __name__ == "__main__":
    asyncio.run(main())
"""

LOADER = """
import asyncio, pathlib, sys
from grami_actors.scenario.script import load
load(pathlib.Path(sys.argv[1]))
asyncio.run(sys.modules["grami_script_some-script"].main())
"""


# --- what a handler in a worker can do ---


async def test_a_worker_tells_sends_and_publishes_and_hears_at_once_what_cannot_be() -> None:
    async with a_house() as house:
        system = house.system
        teller = await system.spawn(actors.Teller, name="teller")
        log = await system.spawn(actors.Log, name="log")
        await system.ask(teller, ("tell", "log", "by name"))
        name, alive, back = await system.ask(teller, ("ref_tell", log, "by ref"))
        assert (name, alive) == ("log", True)
        assert back is log
        assert await system.ask(log, "read") == ["by name", "by ref"]
        with pytest.raises(DestinationNotFound, match="nobody"):
            await system.ask(teller, ("tell", "nobody", 1))
        await system.stop(log)
        with pytest.raises(ActorDead):
            await system.ask(teller, ("ref_tell", log, "late"))
        with pytest.raises(ValueError, match="topic"):
            await system.ask(teller, ("subscribe", ".."))


async def test_timers_of_a_worker_fire_are_cancelled_and_end_with_the_actor() -> None:
    async with a_house() as house:
        teller = await house.system.spawn(actors.Teller)
        await house.system.ask(teller, ("timer", "soon"))
        await house.hears("fired")
        assert await house.system.ask(teller, ("timers",)) == (True, False)


async def test_chunks_and_progress_cross_in_order_from_a_worker_and_to_one() -> None:
    async with a_house() as house:
        await house.system.spawn(actors.Teller, name="writer")
        reader = await house.system.spawn(actors.Teller)
        expected = [(number, "writer") for number in range(5)]
        assert await house.system.ask(reader, ("read", "writer")) == (expected, 5)
        local = await house.system.spawn(Reading)
        assert await house.system.ask(local, "writer") == (expected, 5)


class Reading(Actor):
    async def on_receive(self, message: Any) -> Any:
        stream = self.stream(message, ("emit", 5))
        return [chunk async for chunk in stream], await stream


async def test_a_chunk_that_is_refused_fails_the_emit_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grami_actors.future.STREAM_BUFFER", 2)

    class Dawdling(Actor):
        async def on_receive(self, message: Any) -> Any:
            stream = self.stream("writer", ("emit", 100_000))
            stream.on_done(done.set)
            await done.wait()
            return [chunk async for chunk in stream]

    done = asyncio.Event()
    async with running() as system:
        await system.spawn(actors.Teller, name="writer")
        ref = await system.spawn(Dawdling)
        with pytest.raises(MailboxFull):
            await system.ask(ref, "go")


async def test_a_budget_holds_for_what_a_worker_spends() -> None:
    async with running() as system:
        ref = await system.spawn(actors.Teller)
        assert await system.ask(ref, ("charge", 5), budget=Budget(tokens=5)) == "charged"
        with pytest.raises(QuotaExceeded):
            await system.ask(ref, ("charge", 6), budget=Budget(tokens=5))
        await system.spawn(actors.Middle, "middle-2", name="middle-1")
        await system.spawn(actors.Middle, "log", name="middle-2")
        await system.spawn(actors.Log, name="log")
        assert await system.ask("middle-1", "three deep", budget=Budget(messages=3)) == "three deep"
        with pytest.raises(QuotaExceeded):
            await system.ask("middle-1", "three deep", budget=Budget(messages=2))


@pytest.mark.parametrize("what", ["spawn", "gate", "observe", "proxy"])
async def test_what_a_worker_cannot_do_is_an_error_that_says_what_to_do_instead(what: str) -> None:
    async with running() as system:
        ref = await system.spawn(actors.Teller, name="teller")
        arguments = (await system.spawn(actors.Log),) if what == "proxy" else ()
        with pytest.raises(GramiError, match=r"another lane|loop lane|ask .* instead"):
            await system.ask(ref, (what, *arguments))


async def test_a_thread_that_a_handler_starts_may_ask_too() -> None:
    async with a_house() as house:
        ref = await house.system.spawn(actors.Teller)
        assert await house.system.ask(ref, ("thread",)) == ["from a thread"]


async def test_proxies_reach_into_a_worker() -> None:
    async with running() as system:
        ref = await system.spawn(actors.Counting)

        def use() -> list[Any]:
            proxy = ref.proxy()
            return [proxy.add(2).get(), proxy.add(3).get()]

        assert await asyncio.to_thread(use) == [2, 5]


# --- agents and tools ---


async def test_agents_and_tools_of_a_swarm_run_in_workers_of_their_own() -> None:
    async with running() as system:
        called = Recorder(system, ToolCalled)
        await Swarm(agents=[actors.Counter], tools=[actors.double, actors.where]).start(system)
        answer = await system.ask("counter", actors.Count(upto=4))
        assert answer["double"] == 8
        pids = {answer["pid"], await system.ask("tool:where", ToolCall()), os.getpid()}
        assert len(pids) == 3
        event = called.events[0]
        assert (event.tool, event.caller, event.outcome) == ("double", "counter", "ok")
        with pytest.raises(GramiError, match="number") as caught:
            await system.ask("tool:double", ToolCall({"number": "four"}))
        assert caught.value.error_code == "VALIDATION_FAILED"


async def test_a_lazy_tool_is_imported_in_the_worker_and_not_here() -> None:
    async with running() as system:
        await Swarm(agents=[], tools=[actors.lazy]).start(system)
        assert await system.ask("tool:fromisoformat", ToolCall({"text": "x"})) == "x"
    assert "tests.process_tools" not in sys.modules


@pytest.mark.parametrize("name", ["endless", "endless_wait"])
async def test_a_tool_that_exceeds_its_time_answers_at_once_and_is_there_again(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grami_actors.lanes.process.PATIENCE", 0.05)
    async with running() as system:
        failures = Recorder(system, ActorFailed)
        await Swarm(agents=[], tools=[getattr(actors, name)]).start(system)
        for _ in range(2):
            with pytest.raises(ToolTimeout, match="did not end within"):
                await system.ask(f"tool:{name}", ToolCall())
        assert len(failures.events) <= 2
        assert (failures.events == []) is (name == "endless_wait")


async def test_the_time_limit_of_a_tool_that_was_told_is_not_that_of_its_sender() -> None:
    class Sender(Actor):
        async def on_receive(self, message: Any) -> Any:
            self.tell("tool:endless_wait", ToolCall())
            return (await called.first(ToolCalled)).outcome

    async with running() as system:
        called = Recorder(system, ToolCalled)
        await Swarm(agents=[], tools=[actors.endless_wait]).start(system)
        ref = await system.spawn(Sender)
        assert await system.ask(ref, "go") == "TOOL_TIMEOUT"


async def test_a_tool_that_raises_or_crashes_fails_that_call() -> None:
    async with running() as system:
        failures = Recorder(system, ActorFailed)
        paused = Recorder(system, ActorPaused)
        await Swarm(agents=[], tools=[actors.crash]).start(system)
        with pytest.raises(ToolExecutionFailed, match="ValueError: the tool broke"):
            await system.ask("tool:crash", ToolCall({"how": "raise"}))
        assert failures.events == []
        for _ in range(4):
            with pytest.raises(AgentCrashed):
                await system.ask("tool:crash", ToolCall({"how": "exit"}))
        assert (await paused.first(ActorPaused)).seconds > 1, "it rests, and is not gone for good"


def test_a_tool_without_an_import_path_cannot_be_sent_and_says_so() -> None:
    with pytest.raises(TypeError, match="top of a module"):
        pickle.dumps(actors.local_tool())


WITHOUT_GUARD = """
import asyncio
from grami_actors import Actor, ActorSystem

class Echo(Actor):
    lane = "process"

async def main():
    async with ActorSystem() as system:
        await system.spawn(Echo, name="echo")

asyncio.run(main())
"""


async def test_a_script_that_starts_its_system_without_a_guard_is_told_of_it(tmp_path: Path) -> None:
    script = tmp_path / "unguarded.py"
    script.write_text(WITHOUT_GUARD)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(script)),
        cwd=ROOT,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    _, errors = await process.communicate()
    assert process.returncode == 1
    assert errors.decode().splitlines()[-1].endswith("under `if __name__ == '__main__':`")


@pytest.mark.parametrize("value", [dt.timedelta(1), bytearray(b"x"), memoryview(b"x")])
def test_what_would_arrive_as_text_does_not_cross(value: Any) -> None:
    with pytest.raises(CannotCross, match="and stay one"):
        Codec(loaded, lambda name, number: None, trusting=True).pack(value)
