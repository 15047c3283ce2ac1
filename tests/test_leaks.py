"""What is another in each run is an error in a simulated one, with its name and place; and nothing else is."""

# ruff: noqa: PLW0108 - who calls is what is tested

from __future__ import annotations

import _thread
import asyncio
import concurrent.futures
import dataclasses
import datetime as dt
import logging
import multiprocessing
import os
import random
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
import uuid
from collections.abc import Callable
from datetime import datetime
from functools import partial
from os import urandom
from pathlib import Path
from random import choice
from time import time as clock
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grami_actors.agent import Agent, handles
from grami_actors.credentials import Authority
from grami_actors.messages import Message, new_span_id
from grami_actors.simulation import leaks
from grami_actors.simulation.leaks import CLOCK, DICE, OUTSIDE, THREAD, TODAY, Nondeterminism, sealed, sealing
from grami_actors.simulation.loop import VirtualLoop
from grami_actors.simulation.schedule import Schedule
from grami_actors.simulation.system import SimulatedSystem
from grami_actors.simulation.witness import Witness

HERE = str(Path(__file__).relative_to(Path.cwd())) if Path(__file__).is_relative_to(Path.cwd()) else __file__
UUID = "use uuid.UUID("


def with_default(ask: Callable[[], float] = time.time) -> float:
    return ask()  # by default


def with_keyword(*, ask: Callable[[], float] = time.monotonic) -> float:
    return ask()  # by keyword


class Holds:
    ask = time.perf_counter
    fixed = staticmethod(time.time)

    def held(self) -> float:
        return self.ask()  # held


@dataclasses.dataclass
class Stamped:
    at: float = dataclasses.field(default_factory=time.time)


LEAKS: list[tuple[Callable[[], Any], str, str]] = [
    (lambda: time.time(), "time.time()", CLOCK),
    (lambda: time.time_ns(), "time.time_ns()", CLOCK),
    (lambda: time.monotonic(), "time.monotonic()", CLOCK),
    (lambda: time.monotonic_ns(), "time.monotonic_ns()", CLOCK),
    (lambda: time.perf_counter(), "time.perf_counter()", CLOCK),
    (lambda: time.perf_counter_ns(), "time.perf_counter_ns()", CLOCK),
    (lambda: time.process_time(), "time.process_time()", CLOCK),
    (lambda: time.thread_time_ns(), "time.thread_time_ns()", CLOCK),
    (lambda: time.sleep(0), "time.sleep()", "use await asyncio.sleep"),
    (lambda: time.localtime(), "time.localtime()", TODAY),
    (lambda: time.gmtime(None), "time.gmtime()", TODAY),
    (lambda: time.strftime("%Y"), "time.strftime()", TODAY),
    (lambda: clock(), "time.time()", CLOCK),
    (lambda: Holds.ask(), "time.perf_counter()", CLOCK),
    (lambda: Holds.fixed(), "time.time()", CLOCK),
    (lambda: Stamped(), "time.time()", CLOCK),
    (lambda: max([1], key=lambda _: time.time()), "time.time()", CLOCK),
    (lambda: datetime.now(), "datetime.datetime.now()", TODAY),  # noqa: DTZ005
    (lambda: dt.datetime.now(dt.UTC), "datetime.datetime.now()", TODAY),
    (lambda: dt.datetime.utcnow(), "datetime.datetime.utcnow()", TODAY),  # noqa: DTZ003
    (lambda: dt.datetime.today(), "datetime.date.today()", TODAY),  # noqa: DTZ002
    (lambda: dt.date.today(), "datetime.date.today()", TODAY),  # noqa: DTZ011
    (lambda: random.random(), "random.random()", DICE),
    (lambda: random.shuffle([1]), "random.shuffle()", DICE),
    (lambda: random.seed(1), "random.seed()", DICE),
    (lambda: choice([1]), "random.choice()", DICE),
    (lambda: random.Random(), "random.Random()", DICE),
    (lambda: random.Random(1).seed(), "random.Random.seed() without a seed", DICE),
    (lambda: random.SystemRandom().random(), "random.SystemRandom.random()", DICE),
    (lambda: secrets.token_hex(), "secrets.token_hex()", DICE),
    (lambda: secrets.randbits(8), "random.SystemRandom.getrandbits()", DICE),
    (lambda: secrets.choice([1, 2]), "random.Random.choice()", DICE),
    (lambda: os.urandom(8), "os.urandom()", DICE),
    (lambda: urandom(8), "os.urandom()", DICE),
    (lambda: os.getpid(), "os.getpid()", "use self.name"),
    (lambda: uuid.uuid1(), "uuid.uuid1()", UUID),
    (lambda: uuid.uuid4(), "uuid.uuid4()", UUID),
    (lambda: threading.Thread(target=print).start(), "a thread", THREAD),
    (lambda: threading.Timer(9, print).start(), "a thread", THREAD),
    (lambda: concurrent.futures.ThreadPoolExecutor().submit(print), "concurrent.futures.thread.", THREAD),
    (lambda: subprocess.Popen(["true"]), "subprocess.Popen()", OUTSIDE),
    (lambda: subprocess.run(["true"], check=True), "subprocess.run()", OUTSIDE),
    (lambda: os.system("true"), "os.system()", OUTSIDE),
    (lambda: os.fork(), "os.fork()", OUTSIDE),
    (lambda: multiprocessing.get_context("spawn").Process(target=print).start(), "a process", OUTSIDE),
    (lambda: socket.socket(), "socket.socket()", OUTSIDE),
    (lambda: socket.create_connection(("127.0.0.1", 9)), "socket.create_connection()", OUTSIDE),
    (lambda: socket.getaddrinfo("localhost", 9), "socket.getaddrinfo()", OUTSIDE),
    (lambda: socket.gethostname(), "socket.gethostname()", OUTSIDE),
    (lambda: os.times(), "os.times()", CLOCK),
    (lambda: _thread.start_new_thread(print, ()), "_thread.start_new_thread()", THREAD),
]


@pytest.fixture(scope="module", autouse=True)
def series() -> Any:
    with sealing():
        yield


def leaked(function: Callable[[], Any]) -> str:
    with pytest.raises(Nondeterminism) as leak, sealed(random.Random(1)):
        function()
    return str(leak.value)


@pytest.mark.parametrize(("function", "what", "instead"), LEAKS, ids=[each[1] for each in LEAKS])
def test_a_leak_says_what_and_where_it_is_and_what_to_use(function: Any, what: str, instead: str) -> None:
    text = leaked(function)
    assert text.startswith(what)
    assert f" at {HERE}:{function.__code__.co_firstlineno} is not the same in each run: {instead}" in text


@pytest.mark.parametrize(
    ("function", "mark"), [(with_default, "by default"), (with_keyword, "by keyword"), (Holds().held, "held")]
)
def test_functions_that_were_kept_in_defaults_and_classes_leak_where_they_are_called(function: Any, mark: str) -> None:
    assert f" at {line(mark)} " in leaked(function)


@pytest.mark.parametrize(("function", "what", "instead"), LEAKS[:37], ids=[each[1] for each in LEAKS[:37]])
def test_outside_of_a_run_everything_is_what_it_was(function: Any, what: str, instead: str) -> None:
    state = random.getstate()
    try:
        if "utcnow" in what:
            with pytest.warns(DeprecationWarning, match="utcnow") if sys.version_info >= (3, 12) else sealing():
                function()
        else:
            function()
    finally:
        random.setstate(state)


def test_what_the_user_gives_a_time_or_a_seed_is_no_leak() -> None:
    when = time.gmtime(0)
    with sealed(random.Random(1)):
        assert time.strftime("%Y", when) == "1970"
        assert time.gmtime(0) == when
        assert random.Random(7).random() == random.Random(7).random()
        assert uuid.UUID(int=random.Random(7).getrandbits(128), version=4).version == 4
        assert dt.datetime.fromtimestamp(0, dt.UTC).year == 1970
        assert uuid.uuid5(uuid.NAMESPACE_URL, "x").version == 5


def test_what_python_does_on_its_own_behalf_is_no_leak(caplog: pytest.LogCaptureFixture) -> None:
    with sealed(random.Random(1)):
        logging.getLogger("leaks").warning("it is late")
        assert threading.Event().wait(0.001) is False
    assert [record.message for record in caplog.records] == ["it is late"]


def test_a_name_that_python_draws_for_the_user_is_one() -> None:
    tempfile._name_sequence = None  # type: ignore[attr-defined]
    assert leaked(tempfile.mkdtemp).startswith("tempfile.mkdtemp()")


@given(st.integers())
def test_the_randomness_of_the_runtime_comes_from_the_seed(seed: int) -> None:
    drawn = []
    for _ in range(2):
        with sealed(random.Random(seed)):
            drawn.append((new_span_id(), Authority().operator_token))
    assert drawn[0] == drawn[1]


def library(source: str) -> Any:
    """A module that looks as if it were installed."""
    module = types.ModuleType("installed")
    module.__file__ = "/somewhere/site-packages/installed.py"
    exec(compile(source, module.__file__, "exec"), vars(module))
    return module


def test_a_library_may_look_at_the_clock_and_draws_from_the_seed() -> None:
    installed = library(
        "import time, random, uuid\n"
        "def now(): return time.time()\n"
        "def draw(): return random.random(), random.Random().random(), uuid.uuid4()\n"
    )
    drawn = []
    for _ in range(2):
        with sealed(random.Random(3)):
            assert installed.now() > 0
            drawn.append(installed.draw())
    assert drawn[0][:2] == drawn[1][:2]


def test_a_program_that_stands_in_no_file_is_the_users_too() -> None:
    program = compile("import time; time.time()", "<string>", "exec")
    assert f"time.time() at {HERE}:" in leaked(lambda: exec(program, {"__name__": "__main__"}))


def test_a_thread_that_a_library_starts_for_the_user_is_a_leak() -> None:
    installed = library("import threading\ndef start(): threading.Thread(target=print).start()")
    assert f"installed.start() at {HERE}:" in leaked(lambda: installed.start())


def test_what_another_thread_does_meanwhile_is_no_leak() -> None:
    go, done, seen = threading.Event(), threading.Event(), []

    def elsewhere() -> None:
        go.wait()
        seen.extend((time.time(), random.random(), random.Random(), uuid.uuid4(), datetime.now()))  # noqa: DTZ005
        done.set()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    with sealed(random.Random(1)):
        go.set()
        assert done.wait(20)
    thread.join()
    assert len(seen) == 5


class When(msgspec.Struct):
    at: datetime
    day: dt.date


def test_dates_keep_their_types_so_that_they_are_encoded_and_compared() -> None:
    with sealed(random.Random(1)):
        moment = When(datetime(2026, 1, 2, tzinfo=dt.UTC), dt.date(2026, 1, 2))
        assert msgspec.json.decode(msgspec.json.encode(moment), type=When) == moment
        assert type(moment.at + dt.timedelta(1)) is datetime
        assert isinstance(moment.at, dt.date)


class Ask(Message):
    pass


class Late(Agent, name="late"):
    caught: Any = None

    @handles(Ask)
    async def look(self, message: Ask) -> str:
        await asyncio.sleep(1)
        try:
            time.time()  # the clock
        except Exception as error:  # noqa: BLE001 - agents do that
            type(self).caught = error
        return "as if nothing had been"


def simulated(kind: type[Agent]) -> str:
    schedule = Schedule(0)
    loop = VirtualLoop(schedule)

    async def main() -> str:
        async with SimulatedSystem(loop, schedule.rng, Witness()) as system:
            await system.spawn(kind, name=kind.agent_name)
            return str(await system.ask(kind.agent_name, Ask()))

    with sealed(schedule.rng):
        return loop.run(main())


def line(mark: str) -> str:
    (found,) = [n for n, text in enumerate(Path(__file__).read_text().splitlines(), 1) if text.endswith(f"  # {mark}")]
    return f"{HERE}:{found}"


def test_a_leak_names_the_actor_and_fails_the_run_though_the_agent_caught_it() -> None:
    with pytest.raises(Nondeterminism, match=r"in late is not the same in each run") as leak:
        simulated(Late)
    assert leak.value is Late.caught
    assert f"time.time() at {line('the clock')} in late " in str(leak.value)


def test_what_the_loop_refuses_is_such_a_leak_too() -> None:
    class Threads(Agent, name="threads"):
        @handles(Ask)
        async def look(self, message: Ask) -> str:
            try:
                await asyncio.to_thread(print)  # to a thread
            except Exception:  # noqa: BLE001 - agents do that
                return "anyway"
            return "never"

    with pytest.raises(Nondeterminism) as leak:
        simulated(Threads)
    assert f" at {line('to a thread')} in threads " in str(leak.value)


def test_a_run_without_leaks_ends_as_it_does() -> None:
    class Fine(Agent, name="fine"):
        @handles(Ask)
        async def look(self, message: Ask) -> str:
            await asyncio.sleep(1)
            return "fine"

    assert simulated(Fine) == "fine"


def test_the_first_leak_is_the_error_of_the_run_whatever_else_it_ends_with() -> None:
    def broken() -> None:
        for leak in (clock, choice):
            with pytest.raises(Nondeterminism):
                leak([1]) if leak is choice else leak()  # type: ignore[operator]
        raise KeyError("follows from it")

    with pytest.raises(Nondeterminism, match=r"time\.time") as leak, sealed(random.Random(1)) as run:
        broken()
    assert isinstance(leak.value.__context__, KeyError)
    assert run.leak is leak.value


def test_a_leak_that_comes_back_as_the_answer_of_an_ask_is_still_the_leak() -> None:
    class Plain(Agent, name="plain"):
        @handles(Ask)
        async def look(self, message: Ask) -> str:
            return str(uuid.uuid4())  # plainly

    class Between(Agent, name="between"):
        @handles(Ask)
        async def look(self, message: Ask) -> str:
            await self.spawn(Plain, name="plain")
            return str(await self.ask("between/plain", Ask()))

    with pytest.raises(Nondeterminism) as leak:
        simulated(Between)
    assert f"uuid.uuid4() at {line('plainly')} in between/plain " in str(leak.value)


def test_an_error_that_is_no_leak_is_left_alone() -> None:
    with pytest.raises(KeyError), sealed(random.Random(1)):
        raise KeyError("mine")


def test_the_next_run_knows_nothing_of_the_leak_of_the_last() -> None:
    leaked(lambda: time.time())
    with sealed(random.Random(1)) as run:
        pass
    assert run.leak is None


def test_there_is_one_run_at_a_time() -> None:
    with sealed(random.Random(1)), pytest.raises(RuntimeError, match="one at a time"), sealed(random.Random(1)):
        pass


def test_entering_a_run_of_a_series_takes_no_time_to_speak_of() -> None:
    rng = random.Random(1)
    best = min(_timed(partial(_enter, rng)) for _ in range(50))
    assert best < 20e-6


def _enter(rng: random.Random) -> None:
    with sealed(rng):
        pass


def _timed(function: Callable[[], None]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


PROGRAM = """
import datetime, gc, os, random, socket, subprocess, sys, threading, time, uuid
from time import time as imported
from random import choice
import grami_actors.simulation.leaks as leaks

class Holds:
    ask = time.time
    fixed = staticmethod(time.time)

def default(ask=time.time, *, also=uuid.uuid4): return ask()

def state():
    owners = time, random, os, uuid, sys.modules["__main__"]
    found = [{name: id(each) for name, each in vars(owner).items() if callable(each)} for owner in owners]
    classes = datetime.datetime, datetime.date, threading.Thread, subprocess.Popen, socket.socket, random.Random, Holds
    found += [{name: id(each) for name, each in vars(owner).items() if not isinstance(each, staticmethod)}
              for owner in classes]
    return found, default.__defaults__, default.__kwdefaults__, Holds.fixed, datetime.datetime.now

def catch():
    caught = 0
    for each in (imported, default, Holds.ask, Holds.fixed, lambda: choice([1]), late_module.read):
        try:
            each()
        except leaks.Nondeterminism:
            caught += 1
    return caught

before = state()
try:
    with leaks.sealed(random.Random(1)):
        assert state() != before
        import late_module, late_library
        assert catch() == 6
except leaks.Nondeterminism:
    pass
assert state() == before
assert late_library.clock is late_library.Holds.clock is late_module.clock is time.time
assert late_module.read.__defaults__ == (time.time,)
print("restored")
"""


def test_everything_is_put_back_also_what_was_imported_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "late_module.py").write_text("from time import time as clock\ndef read(ask=clock): return ask()\n")
    installed = tmp_path / "site-packages"
    installed.mkdir()
    (installed / "late_library.py").write_text("from time import time as clock\nclass Holds: clock = clock\n")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    path = os.pathsep.join((str(Path(leaks.__file__).parents[2]), str(tmp_path), str(installed)))
    ran = subprocess.run(
        [sys.executable, str(program)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout == "restored\n", ran.stderr
