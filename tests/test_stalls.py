"""A step of a simulated run that never ends, or waits for the real world, ends the run and names its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent, indent

import pytest

from grami_actors.errors import GramiError
from grami_actors.scenario.explore import Crew, Wanted, explore, runner_of
from grami_actors.simulation import stalls
from grami_actors.simulation.run import Runner, series
from grami_actors.simulation.schedule import Schedule

HEAD = """
import asyncio, queue, threading
from grami_actors import Agent, Message, Swarm, handles
from grami_actors.scenario import Play, scenario

class Go(Message): pass

@scenario
async def asked(play: Play) -> None:
    await play.system.ask("busy", Go())

"""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(stalls, "EVERY", 0.02)
    monkeypatch.setattr(stalls, "COMPUTING", 0.1)
    monkeypatch.setattr(stalls, "BLOCKED", 0.1)
    with series(unattended=True):
        yield


@pytest.fixture
def busy(tmp_path: Path) -> Callable[[str], Runner]:
    def plant(handler: str) -> Runner:
        file = tmp_path / f"busy{len(list(tmp_path.iterdir()))}.py"
        body = indent(dedent(handler).strip(), "    ")
        file.write_text(f"{HEAD}class Busy(Agent):\n    @handles(Go)\n{body}\nswarm = Swarm([Busy])\n")
        return runner_of(Wanted(str(file), "asked"))

    return plant


ENDLESS = {
    "a loop without await": """
    def go(self, m: Go) -> None:
        while True:
            pass  # here
    """,
    "a loop that catches every Exception": """
    async def go(self, m: Go) -> None:
        while True:
            try:
                while True: pass  # here
            except Exception:
                pass
    """,
    "callbacks that call each other": """
    async def go(self, m: Go) -> None:
        loop = asyncio.get_running_loop()
        def again(): # here
            loop.call_soon(again)
        again()
        await asyncio.sleep(1)
    """,
}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("handler", ENDLESS.values(), ids=ENDLESS)
def test_what_never_ends_fails_the_run_and_is_named(
    busy: Callable[[str], Runner], tmp_path: Path, handler: str
) -> None:
    runner = busy(handler)
    lines = (tmp_path / "busy0.py").read_text().splitlines()
    (here,) = (number for number, line in enumerate(lines, 1) if "# here" in line)
    failure = runner.run(Schedule(1)).failure
    assert failure is not None
    assert failure.kind == "hang"
    assert any(f"busy0.py:{line}" in failure.text for line in (here - 1, here, here + 1)), failure.text
    assert "of processor time" in failure.text


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("wait", ["queue.Queue().get()", "threading.Event().wait()"])
def test_what_waits_for_another_thread_fails_a_run_that_nobody_watches(
    busy: Callable[[str], Runner], wait: str
) -> None:
    failure = busy(f"def go(self, m: Go) -> None:\n    {wait}\n").run(Schedule(1)).failure
    assert failure is not None
    assert failure.kind == "hang"
    assert "busy0.py:" in failure.text
    assert "in busy" in failure.text
    assert "outside of the simulation" in failure.text


@pytest.mark.usefixtures("impatient")
def test_the_next_run_is_none_the_worse_for_it(busy: Callable[[str], Runner]) -> None:
    assert busy("def go(self, m: Go) -> None:\n    while True: pass\n").run(Schedule(1)).failure is not None
    fine = busy("def go(self, m: Go) -> None:\n    self.seen = 1\n")
    assert [fine.run(Schedule(seed)).failure for seed in range(3)] == [None] * 3


def hurry() -> None:
    stalls.COMPUTING = 0.5


@pytest.mark.slow
def test_the_command_tells_of_a_loop_without_await(tmp_path: Path) -> None:
    file = tmp_path / "endless.py"
    text = HEAD + "class Busy(Agent):\n    @handles(Go)\n    def go(self, m: Go) -> None:\n        while True: pass\n"
    file.write_text(text + "swarm = Swarm([Busy])\n")
    with Crew(1) as crew:
        for member in crew.everybody:
            crew.submit(member, hurry).result()
        report = explore(crew, Wanted(str(file), "asked"), 1_000)
    assert (report.passed, report.failed_seed, report.kind) == (False, 0, "hang")
    assert "endless.py:15 in busy" in report.error


@pytest.mark.slow
def test_a_loop_that_catches_everything_ends_its_process_which_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "stubborn.py"
    loop = (
        "while True:\n            try:\n                for _ in iter(int, 1): self.x = 1\n            except: pass\n"
    )
    handler = f"    @handles(Go)\n    def go(self, m: Go) -> None:\n        {loop}"
    file.write_text(f"{HEAD}class Busy(Agent):\n{handler}\nswarm = Swarm([Busy])\n")
    with Crew(1) as crew:
        for member in crew.everybody:
            crew.submit(member, hurry).result()
        with pytest.raises(GramiError, match="a process that played asked ended in the middle"):
            explore(crew, Wanted(str(file), "asked"), 1_000)
