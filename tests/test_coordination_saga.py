"""Sagas: all steps, or none that is left; also when somebody dies, hangs, is cancelled, or starts over."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grami_actors import ActorSystem, Agent, AgentCrashed, DeadlineExceeded, GramiError, Message, Reject, handles
from grami_actors.coordination.journal import Journal
from grami_actors.coordination.retries import Retries
from grami_actors.coordination.saga import RunSaga, SagaFailed, Sagas, Step, UndoSaga, saga
from grami_actors.errors import LimitReached
from grami_actors.telemetry import DeadLetter
from tests.conftest import Gate, Recorder, running, turns_until
from tests.test_coordination_contract_net import Doer

QUICK = Retries(tries=3, timeout=0.05, shortest=0.001, longest=0.002)


class Do(Message, tag="test.do"):
    key: str


class Undo(Message, tag="test.undo"):
    key: str


class World:
    """What has been done, by key, and how each step behaves."""

    def __init__(self, **behaviour: str) -> None:
        self.behaviour = behaviour
        self.effects: dict[str, int] = {}
        self.log: list[str] = []
        self.gate = Gate()


class Hotel(Agent):
    """Does and undoes as the world says; undoing is idempotent."""

    def __init__(self, world: World) -> None:
        self.world = world

    @handles(Do)
    async def do(self, do: Do) -> str:
        step = do.key.rpartition("/")[2]
        behaviour = self.world.behaviour.get(step, "")
        self.world.log.append(f"do {step}")
        if behaviour == "rejects":
            raise Reject("AGENT_EXECUTION_FAILED", "full")
        if behaviour == "raises":
            raise RuntimeError("broken")
        if behaviour == "hangs":
            await self.world.gate.wait_async()
        self.world.effects[do.key] = self.world.effects.get(do.key, 0) + 1
        if behaviour == "acts and raises":
            raise RuntimeError("broken after")
        if behaviour == "acts and hangs":
            await self.world.gate.wait_async()
        return f"{step} done"

    @handles(Undo)
    async def undo(self, undo: Undo) -> None:
        step = undo.key.rpartition("/")[2]
        self.world.log.append(f"undo {step}")
        behaviour = self.world.behaviour.get(f"undo_{step}", "")
        if behaviour == "rejects" or (behaviour == "once" and self.world.log.count(f"undo {step}") == 1):
            raise Reject("AGENT_EXECUTION_FAILED", "too late")
        if behaviour == "hangs":
            await self.world.gate.wait_async()
        self.world.effects.pop(undo.key, None)


async def house(system: ActorSystem, world: World, journal: Journal | None = None, retries: Retries = QUICK) -> None:
    await system.spawn(Sagas, journal or Journal(), retries, name="sagas")
    await system.spawn(Hotel, world, name="hotel")
    await system.spawn(Doer, name="doer")


def steps(*names: str, **options: Any) -> list[Step]:
    return [Step(name, "hotel", Do, Undo, **options) for name in names]


def trip(system: ActorSystem, *names: str, request: float | None = None, **options: Any) -> asyncio.Task[Any]:
    options.setdefault("key", "trip")
    plan = options.pop("plan", None) or steps(*names)
    return asyncio.create_task(system.ask("doer", lambda by: saga(by, plan, **options), timeout=request))


async def until_state(system: ActorSystem, *states: str, key: str = "trip") -> Any:
    def record() -> Any:
        return system.table.cells["sagas"].actor._record(key)

    await turns_until(lambda: record() is not None and record().state in states)
    return record()


async def test_all_steps_are_done_in_order_and_their_answers_are_given_by_name() -> None:
    async with running() as system:
        world = World()
        await house(system, world)
        assert await trip(system, "a", "b") == {"a": "a done", "b": "b done"}
        assert world.log == ["do a", "do b"]
        assert world.effects == {"trip/a": 1, "trip/b": 1}


async def test_a_saga_that_is_run_again_under_its_key_is_not_done_again() -> None:
    async with running() as system:
        world = World(d="rejects")
        await house(system, world)
        for _ in range(2):
            assert await trip(system, "a", "b") == {"a": "a done", "b": "b done"}
            with pytest.raises(SagaFailed, match="full"):
                await trip(system, "c", "d", key="other")
        assert world.log == ["do a", "do b", "do c", "do d", "undo c"]
        with pytest.raises(GramiError) as refused:
            await trip(system, "a", "c")
        assert refused.value.error_code == "IDEMPOTENCY_KEY_REUSED"


@pytest.mark.parametrize("behaviour", ["raises", "acts and raises"])
async def test_a_step_that_fails_is_undone_with_those_before_it_the_last_first(behaviour: str) -> None:
    async with running() as system:
        world = World(c=behaviour)
        await house(system, world)
        with pytest.raises(SagaFailed) as failed:
            await trip(system, "a", "b", "c", "d")
        assert (failed.value.failed, failed.value.undone, failed.value.stuck) == ("c", ("c", "b", "a"), {})
        assert "broken" in failed.value.message
        assert world.log == ["do a", "do b", "do c", "undo c", "undo b", "undo a"]
        assert world.effects == {}


async def test_a_step_that_rejects_has_done_nothing_and_is_not_undone() -> None:
    async with running() as system:
        world = World(b="rejects")
        await house(system, world)
        with pytest.raises(SagaFailed) as failed:
            await trip(system, "a", "b")
        assert failed.value.undone == ("a",)
        assert world.log == ["do a", "do b", "undo a"]


async def test_a_step_whose_name_leads_nowhere_fails_before_anything_is_sent() -> None:
    async with running() as system:
        world = World()
        await house(system, world)
        with pytest.raises(SagaFailed, match="DESTINATION_NOT_FOUND") as failed:
            await trip(system, plan=[*steps("a"), Step("b", "nowhere", Do, Undo)])
        assert (failed.value.failed, failed.value.undone, failed.value.stuck) == ("b", ("a",), {})


async def test_a_step_without_undo_is_passed_over() -> None:
    async with running() as system:
        world = World(c="rejects")
        await house(system, world)
        with pytest.raises(SagaFailed) as failed:
            await trip(system, plan=[*steps("a"), Step("b", "hotel", Do("x/b")), *steps("c")])
        assert failed.value.undone == ("a",)


async def test_a_step_that_is_too_slow_is_undone_too() -> None:
    async with running() as system:
        world = World(b="acts and hangs")
        await house(system, world)
        with pytest.raises(SagaFailed, match="DEADLINE_EXCEEDED") as failed:
            await trip(system, plan=steps("a", "b", timeout=0.02))
        assert failed.value.undone == ("b", "a")
        assert world.effects == {}


async def test_when_who_does_a_step_is_killed_the_step_is_undone_too() -> None:
    async with running() as system:
        world = World(b="acts and hangs")
        await house(system, world)
        asked = trip(system, "a", "b")
        await world.gate.until_entered()
        system.kill("hotel")
        with pytest.raises(SagaFailed, match="AGENT_CRASHED") as failed:
            await asked
        assert failed.value.undone == ("b", "a")
        assert world.effects == {}


async def test_when_the_request_expires_what_was_done_is_undone_outside_of_it() -> None:
    async with running() as system:
        world = World(b="acts and hangs")
        await house(system, world)
        with pytest.raises(DeadlineExceeded):
            await trip(system, "a", "b", request=0.02)
        assert (await until_state(system, "undone")).undone == ["b", "a"]
        assert world.effects == {}
        with pytest.raises(SagaFailed, match="DEADLINE_EXCEEDED"):
            await trip(system, "a", "b")


async def test_when_the_request_is_cancelled_what_was_done_is_undone() -> None:
    async with running() as system:
        world = World(b="acts and hangs")
        await house(system, world)
        asked = trip(system, "a", "b")
        await world.gate.until_entered()
        asked.cancel()
        await until_state(system, "undone")
        assert world.effects == {}


async def test_when_the_agent_that_asked_is_killed_what_was_done_is_undone() -> None:
    async with running() as system:
        world = World(b="acts and hangs")
        await house(system, world)
        asked = trip(system, "a", "b")
        await world.gate.until_entered()
        system.kill("doer")
        with pytest.raises(AgentCrashed):
            await asked
        await until_state(system, "undone")
        assert world.effects == {}


async def test_when_the_actor_that_runs_it_is_killed_the_next_instance_undoes_it_and_the_caller_is_told() -> None:
    async with running() as system:
        world = World(b="acts and hangs")
        await house(system, world)
        asked = trip(system, "a", "b")
        await world.gate.until_entered()
        system.kill("sagas")
        with pytest.raises(SagaFailed, match="interrupted") as failed:
            await asked
        assert failed.value.undone == ("b", "a")
        assert world.effects == {}


async def test_when_it_is_killed_while_it_undoes_the_next_instance_goes_on() -> None:
    async with running() as system:
        world = World(c="rejects", undo_a="hangs")
        await house(system, world, retries=Retries(timeout=20.0))
        asked = trip(system, "a", "b", "c")
        await world.gate.until_entered()
        world.behaviour["undo_a"] = ""
        system.kill("sagas")
        with pytest.raises(SagaFailed, match="full") as failed:
            await asked
        assert failed.value.undone == ("b", "a")
        assert world.log == ["do a", "do b", "do c", "undo b", "undo a", "undo a"], "what is undone is not undone again"
        assert world.effects == {}


class Break(Message, tag="test.break"):
    pass


class Fragile(Sagas):
    @handles(Break)
    def fall(self, _: Break) -> None:
        raise RuntimeError("it fell")


async def test_when_it_fails_over_another_message_no_step_is_done_beside_the_next_instance() -> None:
    async with running() as system:
        world = World(b="hangs")
        await system.spawn(Fragile, Journal(), QUICK, name="sagas")
        await system.spawn(Hotel, world, name="hotel")
        await system.spawn(Doer, name="doer")
        asked = trip(system, "a", "b", "c")
        await world.gate.until_entered()
        with pytest.raises(RuntimeError):
            await system.ask("sagas", Break())
        with pytest.raises(SagaFailed, match="interrupted"):
            await asked
        world.gate.opened.set()
        assert world.effects == {}
        assert world.log == ["do a", "do b", "undo b", "undo a"]


async def test_an_undo_that_fails_is_tried_again() -> None:
    async with running() as system:
        world = World(b="rejects", undo_a="once")
        await house(system, world)
        with pytest.raises(SagaFailed) as failed:
            await trip(system, "a", "b")
        assert (failed.value.undone, failed.value.stuck) == (("a",), {})
        assert world.log == ["do a", "do b", "undo a", "undo a"]


@pytest.mark.parametrize("behaviour", ["rejects", "hangs"])
async def test_what_cannot_be_undone_stops_nothing_is_told_loudly_and_can_be_tried_again(behaviour: str) -> None:
    async with running() as system:
        letters = Recorder(system, DeadLetter)
        world = World(c="rejects", undo_b=behaviour)
        await house(system, world, retries=Retries(tries=2, timeout=0.02, shortest=0.001))
        with pytest.raises(SagaFailed, match="NOT UNDONE: b") as failed:
            await trip(system, "a", "b", "c")
        assert failed.value.undone == ("a",)
        assert [*failed.value.stuck] == ["b"]
        letter = await letters.until(lambda all_: next((each for each in all_ if each.reason == "undo_failed"), None))
        assert letter.message == Undo("trip/b")
        assert world.effects == {"trip/b": 1}
        world.behaviour["undo_b"] = ""
        system.tell("sagas", UndoSaga("trip"))
        await until_state(system, "undone")
        assert world.effects == {}
        assert world.log.count("undo a") == 1


async def test_undoing_goes_on_when_the_request_that_wanted_it_was_cancelled() -> None:
    async with running() as system:
        world = World(b="rejects", undo_a="rejects")
        await house(system, world)
        with pytest.raises(SagaFailed):
            await trip(system, "a", "b")
        world.behaviour["undo_a"] = "hangs"
        undoing = asyncio.create_task(system.ask("sagas", UndoSaga("trip")))
        await world.gate.until_entered()
        undoing.cancel()
        world.behaviour.clear()
        world.gate.opened.set()
        assert (await until_state(system, "undone")).undone == ["a"]
        assert world.effects == {}


async def test_undoing_a_saga_that_is_at_work_over_or_unknown_does_nothing() -> None:
    async with running() as system:
        world = World(a="hangs")
        await house(system, world)
        asked = trip(system, "a")
        await world.gate.until_entered()
        for key in ("trip", "unknown"):
            await system.ask("sagas", UndoSaga(key))
        assert system.table.cells["sagas"].actor._record("trip").state == "running"
        world.gate.opened.set()
        assert await asked == {"a": "a done"}
        await system.ask("sagas", UndoSaga("trip"))
        assert world.log == ["do a"]


async def test_an_answer_that_cannot_be_written_down_fails_its_step() -> None:
    class Odd(Agent):
        @handles(Do)
        def do(self, do: Do) -> object:
            return object()

        @handles(Undo)
        def undo(self, undo: Undo) -> None:
            pass

    async with running() as system:
        await house(system, World())
        await system.spawn(Odd, name="odd")
        with pytest.raises(SagaFailed, match="VALIDATION_FAILED") as failed:
            await trip(system, plan=[Step("a", "odd", Do, Undo)])
        assert failed.value.undone == ("a",)


async def test_a_saga_needs_steps_with_names_of_their_own() -> None:
    async with running() as system:
        await house(system, World())
        for names in ((), ("a", "a")):
            with pytest.raises(ValueError, match="a name of its own"):
                await trip(system, *names)


async def test_what_is_not_made_by_saga_is_refused() -> None:
    async with running() as system:
        await house(system, World())
        for made in ({"name": "a"}, Step("a", "hotel", Do), Step("a", "hotel", Do("k"), Undo)):
            with pytest.raises(GramiError) as refused:
                await system.ask("sagas", RunSaga("k", (made,)))
            assert refused.value.error_code == "VALIDATION_FAILED"


async def test_only_so_many_sagas_are_known_and_those_that_are_over_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[Sagas.__module__], "MOST_SAGAS", 2)
    async with running() as system:
        world = World(b="rejects", undo_a="rejects")
        await house(system, world, retries=Retries(tries=1, timeout=0.05))
        for key in ("1", "2"):
            with pytest.raises(SagaFailed):
                await trip(system, "a", "b", key=key)
        with pytest.raises(LimitReached, match=r"2 sagas that are not over.*saga\.undo"):
            await trip(system, "c", key="3")
        world.behaviour.clear()
        await system.ask("sagas", UndoSaga("1"))
        assert await trip(system, "c", key="3") == {"c": "c done"}


async def test_a_saga_without_a_key_is_a_new_one_each_time() -> None:
    async with running() as system:
        world = World()
        await house(system, world)
        for _ in range(2):
            await trip(system, "a", key="")
        assert world.log == ["do a", "do a"]
        assert sorted(world.effects.values()) == [1, 1]


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2), st.booleans(), st.data())
def test_after_a_crash_at_any_byte_the_next_process_always_undoes_exactly_what_was_begun(
    number: int, hangs: bool, data: Any
) -> None:
    names = ("a", "b", "c")

    async def first(path: Path) -> tuple[World, bytes]:
        world = World(**({names[number]: "acts and hangs"} if hangs else {}))
        async with running() as system:
            await house(system, world, Journal(path))
            asked = trip(system, *names)
            if hangs:
                await world.gate.until_entered()
            else:
                await asked
            crashed = path.read_bytes()  # noqa: ASYNC240 - before anything else happens
            asked.cancel()
            if hangs:
                await until_state(system, "undone")
        return world, crashed

    async def second(path: Path, effects: dict[str, int], cut: int, whole: bytes) -> None:
        world = World()
        world.effects = effects
        begun = whole[:cut].count(b"\n")
        async with running() as system:
            await house(system, world, Journal(path))
            if not hangs and cut == len(whole):
                assert await trip(system, *names) == {name: f"{name} done" for name in names}
                assert world.log == []
            elif begun:
                assert (await until_state(system, "undone")).begun == begun
                assert world.log == [f"undo {name}" for name in reversed(names[:begun])]
                assert world.effects == {}

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sagas.jsonl"
        _, whole = asyncio.run(first(path))
        cut = data.draw(st.integers(0, len(whole)))
        # A step is sent only when the file says that it was begun.
        effects = {f"trip/{name}": 1 for name in names[: whole[:cut].count(b"\n")]}
        path.write_bytes(whole[:cut])
        asyncio.run(second(path, effects, cut, whole))


BEHAVIOURS = ("", "", "rejects", "raises", "acts and raises", "hangs", "acts and hangs")


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from(BEHAVIOURS), min_size=1, max_size=4),
    st.sampled_from(["", "", "sagas", "doer", "request"]),
)
def test_all_steps_are_always_done_once_or_none_is_left_and_the_caller_is_always_answered(
    behaviours: list[str], killed: str
) -> None:
    names = [f"s{number}" for number in range(len(behaviours))]

    async def play() -> None:
        world = World(**dict(zip(names, behaviours, strict=True)))
        async with running() as system:
            await house(system, world)
            plan = [Step(name, "hotel", Do, Undo, timeout=0.03) for name in names]
            asked = trip(system, plan=plan, request=0.02 if killed == "request" else None)
            if killed in {"sagas", "doer"}:
                await turns_until(lambda: world.log)
                system.kill(killed)
            try:
                assert await asked == {name: f"{name} done" for name in names}
            except GramiError:
                assert killed or any(behaviours)
            record = await until_state(system, "done", "undone")
            if record.state == "done":
                assert world.effects == {f"trip/{name}": 1 for name in names}
            else:
                assert world.effects == {}
            world.gate.opened.set()

    asyncio.run(play())
