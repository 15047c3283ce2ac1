"""Profiles: whose time is whose, exactly; the chain of who asked whom; bounds; and the flame graph."""

from __future__ import annotations

import asyncio
import re
import threading
from typing import Any
from xml.etree import ElementTree as ET

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grami_actors import Actor, Agent, Message, Swarm, handles, tool
from grami_actors.cli.profile import NARROWEST, draw
from grami_actors.errors import AgentCrashed, Cancelled, ErrorCode, GramiError
from grami_actors.future import Future, current_scope
from grami_actors.messages import Envelope
from grami_actors.profiling import MOST_HANDLERS, OTHERS, HandlerTimes, Profile, Report
from grami_actors.telemetry import SlowTurn
from tests.conftest import Gate, on, running, turns_until
from tests.process_actors import AsyncLog, Small

SVG = "{http://www.w3.org/2000/svg}"


class Ticks:
    """A clock that goes when somebody works."""

    def __init__(self) -> None:
        self.now = 0.0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        with self._lock:
            self.now += seconds


class Worker(Actor):
    """Does what it is told: a number is work, a list is something to ask the next one."""

    def __init__(self, ticks: Ticks, below: Any = None) -> None:
        super().__init__()
        self.ticks = ticks
        self.below = below


class Plain(Worker):
    def on_receive(self, steps: Any) -> str:
        self.ticks.work(steps)
        return "done"


class Chained(Worker):
    async def on_receive(self, steps: Any) -> str:
        for step in steps:
            if isinstance(step, list):
                await self.ask(self.below, step)
            elif step is None:
                await asyncio.sleep(0)
            elif isinstance(step, float):
                await self.ask(self.below, step)
            else:
                self.ticks.work(step)
        return "done"


def row(report: Report, name: str) -> HandlerTimes:
    return next(each for each in report.handlers if each.name == name)


def stacks(report: Report) -> dict[str, int]:
    return {path: int(own) for path, _, own in (line.rpartition(" ") for line in report.stacks)}


# --- whose time it is ---


async def test_the_time_of_a_plain_handler_is_all_its_own(lane: str) -> None:
    ticks = Ticks()
    async with running() as system:
        worker = await system.spawn(on(lane, Plain), ticks, name="plain")
        with Profile(system.bus, ticks) as profile:
            assert await system.ask(worker, 3) == "done"
            assert await system.ask(worker, 5) == "done"
            await turns_until(lambda: profile.report().handlers[0].calls == 2)
        times = row(profile.report(), "plain.int")
    assert (times.calls, times.own_ms, times.awaited_ms, times.total_ms, times.max_ms) == (2, 8000, 0, 8000, 5000)


async def test_what_a_coroutine_waits_for_is_awaited_and_not_its_own(lane: str) -> None:
    ticks = Ticks()
    async with running() as system:
        below = await system.spawn(on(lane, Plain), ticks, name="below")
        above = await system.spawn(Chained, ticks, below, name="above")
        with Profile(system.bus, ticks) as profile:
            await system.ask(above, [1, None, 10.0, 2])
            await turns_until(lambda: len(profile.report().handlers) == 2)
        report = profile.report()
    times = row(report, "above.list")
    assert (times.own_ms, times.awaited_ms, times.total_ms) == (3000, 10_000, 13_000)
    assert row(report, "below.float").own_ms == 10_000
    assert stacks(report) == {"above.list": 3_000_000, "above.list;below.float": 10_000_000}


work = st.recursive(st.integers(1, 5) | st.none(), lambda inner: st.lists(inner, max_size=4).map(list), max_leaves=12)


def ticked(steps: Any, depth: int, found: dict[int, float]) -> dict[int, float]:
    """How much work there is at each depth."""
    found.setdefault(depth, 0)
    for step in steps:
        if isinstance(step, list):
            ticked(step, depth + 1, found)
        elif step is not None:
            found[depth] += step
    return found


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(work, max_size=4), min_size=1, max_size=3))
def test_every_moment_is_counted_exactly_once_and_to_whoever_worked_then(plans: list[list[Any]]) -> None:
    async def play() -> None:
        ticks = Ticks()
        async with running(slow_turn=None) as system:
            below = None
            for depth in range(8, -1, -1):
                below = await system.spawn(on("loop", Chained, concurrency=8), ticks, below, name=f"at.{depth}")
            with Profile(system.bus, ticks) as profile:
                await asyncio.gather(*(system.ask("at.0", plan) for plan in plans))
            report = profile.report()
        expected: dict[int, float] = {}
        for plan in plans:
            ticked(plan, 0, expected)
        assert {each.name: each.own_ms for each in report.handlers} == {
            f"at.{depth}.list": own * 1000 for depth, own in expected.items()
        }
        assert sum(stacks(report).values()) == round(ticks.now * 1e6)
        for each in report.handlers:
            assert each.awaited_ms >= 0
            assert each.total_ms == pytest.approx(each.own_ms + each.awaited_ms)

    asyncio.run(play())


async def test_a_handler_that_raises_is_counted_and_its_error_is_the_same() -> None:
    class Fails(Plain):
        def on_receive(self, steps: Any) -> str:
            self.ticks.work(steps)
            raise GramiError("no", code="QUOTA_EXCEEDED")

    class FailsLater(Plain):
        async def on_receive(self, steps: Any) -> str:
            self.ticks.work(steps)
            await asyncio.sleep(0)
            raise GramiError("no", code="QUOTA_EXCEEDED")

    ticks = Ticks()
    async with running() as system:
        for kind in (Fails, FailsLater):
            ref = await system.spawn(kind, ticks, name=kind.__name__)
            with Profile(system.bus, ticks) as profile:
                with pytest.raises(GramiError) as raised:
                    await system.ask(ref, 2)
                assert raised.value.error_code == "QUOTA_EXCEEDED"
                await turns_until(lambda profile=profile: profile.report().handlers)
            assert row(profile.report(), f"{kind.__name__}.int").own_ms == 2000


async def test_a_handler_is_cancelled_and_killed_while_it_is_measured_as_without_that() -> None:
    class Waits(Actor):
        async def on_receive(self, gate: Gate) -> None:
            await gate.wait_async()

    async with running() as system:
        ref = await system.spawn(Waits, name="waits")
        with Profile(system.bus) as profile:
            gate = Gate()
            asked = ref.ask(gate, block=False)
            await gate.until_entered()
            asked.cancel()
            with pytest.raises(Cancelled):
                await asked
            gate = Gate()
            asked = ref.ask(gate, block=False)
            await gate.until_entered()
            system.kill(ref)
            with pytest.raises(AgentCrashed):
                await asked
            await turns_until(lambda: profile.report().handlers and profile.report().handlers[0].calls == 2)
        assert row(profile.report(), "waits.gate").calls == 2


async def test_what_is_still_at_work_at_the_end_is_counted_once_with_what_it_did_so_far() -> None:
    class Holds(Plain):
        def on_receive(self, gate: Any) -> None:
            self.ticks.work(4)
            gate.hold()
            self.ticks.work(50)

    ticks, gate = Ticks(), Gate()
    async with running() as system:
        ref = await system.spawn(on("thread", Holds), ticks, name="holds")
        with Profile(system.bus, ticks) as profile:
            asked = ref.ask(gate, block=False)
            await gate.until_entered()
        gate.opened.set()
        await asked
        times = row(profile.report(), "holds.gate")
    assert (times.calls, times.own_ms, times.total_ms) == (1, 4000, 4000)


@pytest.mark.slow
async def test_what_a_worker_process_asks_for_stands_upon_its_own_handler() -> None:
    ticks = Ticks()

    class Answers(Plain):
        def on_receive(self, steps: Any) -> str:
            self.ticks.work(1)
            return "done"

    async with running() as system:
        await system.spawn(Answers, ticks, name="gate")
        ref = await system.spawn(Small, name="far")
        with Profile(system.bus, ticks) as profile:
            await system.ask(ref, "hold")
            await turns_until(lambda: len(profile.report().handlers) == 2)
    assert stacks(profile.report())["far.str;gate.str"] == 1_000_000


@pytest.mark.slow
async def test_in_a_worker_process_all_of_the_duration_is_the_handlers_own() -> None:
    async with running() as system:
        ref = await system.spawn(AsyncLog, name="far")
        with Profile(system.bus) as profile:
            await system.ask(ref, "hello")
            ref.tell("hello")
            await turns_until(lambda: profile.report().handlers and profile.report().handlers[0].calls == 2)
        times = row(profile.report(), "far.str")
    assert times.own_ms == times.total_ms > 0
    assert times.awaited_ms == 0
    assert set(stacks(profile.report())) == {"far.str"}


async def test_time_in_the_mailbox_is_never_less_than_none() -> None:
    ticks = Ticks()
    async with running() as system:
        below = await system.spawn(Plain, ticks, name="below")
        above = await system.spawn(Chained, ticks, below, name="above")
        with Profile(system.bus) as profile:
            for _ in range(20):
                await system.ask(above, [0.0, 0.0, 0.0])
        assert all(each.queue_ms >= 0 for each in profile.report().handlers)


async def test_a_slow_turn_is_told_with_the_place_of_its_handler_as_without_a_profile() -> None:
    reported = threading.Event()
    slow: list[SlowTurn] = []

    class Slow(Actor):
        def on_receive(self, message: Any) -> None:
            assert reported.wait(5), "nobody said that this is slow"

    def note(event: SlowTurn) -> None:
        slow.append(event)
        reported.set()

    async with running(slow_turn=0.01) as system:
        system.bus.subscribe(note, SlowTurn)
        ref = await system.spawn(Slow, name="slow")
        with Profile(system.bus):
            await system.ask(ref, "work")
    assert slow[0].actor == "slow"
    assert slow[0].where.startswith("test_profiling.py:")


# --- stacks ---


class Brief(Message):
    niche: str = "tech"


class Draft(Message):
    """Asked of a writer."""


class Note(Message):
    """Told to an archive."""


@tool
async def trends(niche: str) -> str:
    return niche


async def test_stacks_say_who_asked_whom_by_pool_and_message_type() -> None:
    ticks = Ticks()

    @tool(lane="loop")
    def hashtags(niche: str) -> str:
        ticks.work(7)
        return niche

    class Strategist(Agent, concurrency=2):
        @handles(Brief)
        async def plan(self, brief: Brief) -> str:
            ticks.work(1)
            await asyncio.gather(self.ask("writer", Draft()), self.ask("writer", Draft()))
            return "plan"

    class Writer(Agent, instances=2):
        @handles(Draft)
        async def write(self, draft: Draft) -> None:
            ticks.work(2)
            await self.call("hashtags", niche="x")
            self.tell("archive", Note())

    class Archive(Agent):
        @handles(Note)
        def keep(self, note: Note) -> None:
            ticks.work(3)

    async with running() as system:
        await Swarm([Strategist, Writer, Archive], [hashtags]).start(system)
        with Profile(system.bus, ticks) as profile:
            request: Future[Any] = Future()
            cell: Any = system.resolve("strategist", Brief())
            request.bind(cell, None, system.now() + 10)
            cell.post(Envelope(Brief(), request, "connection-7", request))
            await request
            system.tell("archive", Note())
            await turns_until(lambda: row(profile.report(), "archive.note").calls == 3)
    chain = "client;strategist.brief;writer.draft"
    assert stacks(profile.report()) == {
        "client;strategist.brief": 1_000_000,
        chain: 4_000_000,
        f"{chain};tool:hashtags": 14_000_000,
        f"{chain};archive.note": 6_000_000,
        "archive.note": 3_000_000,
    }
    assert {each.name for each in profile.report().handlers} == {
        "strategist.brief", "writer.draft", "tool:hashtags", "archive.note"
    }  # fmt: skip


async def test_what_a_request_from_before_the_profile_causes_has_a_stack_too() -> None:
    ticks = Ticks()

    class Late(Worker):
        async def on_receive(self, gate: Gate) -> None:
            await gate.wait_async()
            assert current_scope() is not None
            await self.ask(self.below, 1)

    async with running() as system:
        below = await system.spawn(Plain, ticks, name="below")
        late = await system.spawn(Late, ticks, below, name="late")
        gate = Gate()
        asked = late.ask(gate, block=False)
        await gate.until_entered()
        with Profile(system.bus, ticks) as profile:
            gate.opened.set()
            await asked
        assert stacks(profile.report()) == {"below.int": 1_000_000}


# --- bounds and begin and end ---


async def test_a_profile_costs_nothing_after_its_end_and_one_runs_at_a_time() -> None:
    async with running() as system:
        with Profile(system.bus):
            assert system.bus.timed
            with pytest.raises(GramiError) as refused, Profile(system.bus):
                pass
            assert refused.value.error_code == ErrorCode.RESOURCE_EXHAUSTED
            assert system.bus.clocked is not None
        assert not system.bus.timed
        assert system.bus.clocked is None
        with Profile(system.bus):
            pass


async def test_however_many_kinds_of_messages_there_are_the_rows_are_bounded() -> None:
    kinds = [type(f"Kind{number}", (), {}) for number in range(MOST_HANDLERS + 50)]
    ticks = Ticks()

    class Takes(Actor):
        mailbox = 10_000

        def on_receive(self, message: Any) -> None:
            ticks.work(1)

    async with running() as system:
        ref = await system.spawn(Takes, name="takes")
        with Profile(system.bus, ticks) as profile:
            for kind in kinds:
                ref.tell(kind())
            await turns_until(lambda: ticks.now == len(kinds))
    report = profile.report()
    assert len(report.handlers) == MOST_HANDLERS + 1
    assert row(report, OTHERS).calls == 50
    assert sum(each.calls for each in report.handlers) == len(kinds)


async def test_names_cannot_break_the_folded_format() -> None:
    ticks = Ticks()
    async with running() as system:
        ref = await system.spawn(Plain, ticks, name="a b;c\nd 5")
        with Profile(system.bus, ticks) as profile:
            await system.ask(ref, 1)
    assert profile.report().stacks == ("a_b,c_d_5.int 1000000",)


async def test_a_report_survives_the_wire() -> None:
    ticks = Ticks()
    async with running() as system:
        ref = await system.spawn(Plain, ticks, name="plain")
        with Profile(system.bus, ticks) as profile:
            await system.ask(ref, 1)
    report = profile.report()
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report


# --- the flame graph ---


def frames(svg: str) -> dict[str, tuple[float, float, float]]:
    """Left edge, width and top of each frame, by what its title says before the colon and a space."""
    found = {}
    for group in ET.fromstring(svg).iter(f"{SVG}g"):
        box, title = group.find(f"{SVG}rect"), group.find(f"{SVG}title")
        assert box is not None
        assert title is not None
        assert title.text
        place = tuple(float(box.get(name, "")) for name in ("x", "width", "y"))
        found[title.text.rpartition(": ")[0]] = place
    return found


def test_a_frame_is_as_wide_as_its_own_time_and_that_of_all_it_asked() -> None:
    found = frames(draw(["client;a.b 1000", "client;a.b;tool:c 3000", "client;d.e 4000"], "title"))
    assert found["client"][1] == pytest.approx(found["all"][1])
    assert found["a.b"][1] == pytest.approx(found["all"][1] / 2, abs=1)
    assert found["tool:c"][1] == pytest.approx(found["all"][1] * 3 / 8, abs=1)
    assert found["tool:c"][0] == found["a.b"][0]
    assert found["d.e"][0] == pytest.approx(found["a.b"][0] + found["a.b"][1], abs=1)
    assert found["tool:c"][2] < found["a.b"][2] < found["client"][2] < found["all"][2]


def test_numbers_stand_in_the_title_of_a_frame() -> None:
    assert "a.b: 4.00 ms (100.0%), own 1.00 ms" in draw(["a.b 1000", "a.b;c.d 3000"], "title")


names = st.text(st.characters(exclude_characters=";", exclude_categories=("Cs",)), min_size=1, max_size=60)


@pytest.mark.slow
@given(st.lists(st.tuples(st.lists(names, min_size=1, max_size=5), st.integers(0, 10**9)), max_size=8), names)
def test_a_flame_graph_is_always_wellformed_and_within_its_frame(
    found: list[tuple[list[str], int]], title: str
) -> None:
    svg = draw([f"{';'.join(path)} {own}" for path, own in found], title)
    root = ET.fromstring(svg)
    assert list(root.iter(f"{SVG}script")) == []
    for box in root.iter(f"{SVG}rect"):
        assert float(box.get("x", "0")) + float(box.get("width", "")) <= float(root.get("width", "")) + NARROWEST
        assert 0 <= float(box.get("y", "0")) < float(root.get("height", ""))


def test_a_profile_of_nothing_says_so() -> None:
    assert "nothing ran" in draw([], "title")


def test_labels_are_shortened_where_there_is_no_room_and_colours_tell_tools_from_handlers() -> None:
    svg = draw(["a.b 1000000", f"a.{'long' * 60} 1000000", "tool:x 1000000", "tiny.one 1"], "title")
    labels = re.findall(r">([^<>]*)</text>", svg)
    assert "a.b" in labels
    assert [len(each) for each in labels if each.startswith("a.long") and each.endswith("…")] == [57]
    colours = dict(re.findall(r"<title>(\S+): .*?fill=\"(hsl\(\d+|#\w+)", svg))
    assert int(colours["tool:x"].removeprefix("hsl(")) >= 200
    assert int(colours["a.b"].removeprefix("hsl(")) < 60
    assert "tiny.one" not in svg
