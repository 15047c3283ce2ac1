"""Pykka's registry of the process: it finds our actors beside its own, and neither pays for the other."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pykka
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pykka import ActorRegistry

from grami_actors import registry
from grami_actors.actor import Actor
from grami_actors.errors import StartFailed
from grami_actors.recovery import ChildGaveUp
from grami_actors.registry import Refs
from grami_actors.restarts import RestartPolicy
from grami_actors.telemetry import ActorRestarted
from tests.conftest import Recorder, on, running


class Ours(Actor):
    """Keeps what it gets; fails if it is told to."""

    restart = RestartPolicy(shortest=0.0, longest=0.0)

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def on_receive(self, message: Any) -> Any:
        if isinstance(message, BaseException):
            raise message
        if message != "seen":
            self.seen.append(message)
        return self.seen


class Special(Ours):
    pass


class Theirs(pykka.ThreadingActor):
    """The same as an actor of Pykka's own."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def on_receive(self, message: Any) -> Any:
        if message != "seen":
            self.seen.append(message)
        return self.seen


@pytest.fixture(autouse=True)
def nobody_is_left() -> Iterator[None]:
    assert ActorRegistry.get_all() == []
    yield
    left = ActorRegistry.get_all()
    ActorRegistry.stop_all()
    assert left == []


async def beside(look: Callable[[], Any]) -> Any:
    """What an ordinary thread sees, which is where Pykka's code runs."""
    return await asyncio.to_thread(look)


async def test_the_registry_finds_our_actors_beside_pykkas_own_by_class_name_and_urn(lane: str) -> None:
    async with running() as system:
        ours, special = await system.spawn(on(lane, Ours)), await system.spawn(on(lane, Special), name="special")
        theirs = await beside(Theirs.start)
        try:
            everybody = await beside(ActorRegistry.get_all)
            assert type(everybody) is list
            assert [each for each in everybody if each in {ours, special, theirs}] == [ours, special, theirs]
            assert await beside(lambda: ActorRegistry.get_by_class(Ours)) == [ours, special]
            assert await beside(lambda: ActorRegistry.get_by_class(Special)) == [special]
            assert await beside(lambda: ActorRegistry.get_by_class(Theirs)) == [theirs]
            assert set(await beside(lambda: ActorRegistry.get_by_class(pykka.Actor))) >= {ours, special, theirs}
            assert await beside(lambda: ActorRegistry.get_by_class_name("Special")) == [special]
            assert await beside(lambda: ActorRegistry.get_by_class_name("Theirs")) == [theirs]
            for each in (ours, special, theirs):
                found = await beside(lambda each=each: ActorRegistry.get_by_urn(each.actor_urn))
                assert found is each
            assert await beside(lambda: ActorRegistry.get_by_urn("urn:nobody")) is None
        finally:
            await beside(theirs.stop)
        assert await beside(lambda: ActorRegistry.get_by_urn(theirs.actor_urn)) is None


async def test_urns_are_unique_in_and_between_systems() -> None:
    async with running() as one, running() as two:
        refs = [await system.spawn(Ours) for system in (one, two) for _ in range(5)]
        assert len({ref.actor_urn for ref in refs}) == 10
        assert all(ActorRegistry.get_by_urn(ref.actor_urn) is ref for ref in refs)


@pytest.mark.parametrize("target", [None, "Ours", Ours])
async def test_a_broadcast_reaches_ours_and_theirs_or_only_those_of_a_class(lane: str, target: Any) -> None:
    async with running() as system:
        ours = await system.spawn(on(lane, Ours), name="ours")
        theirs = await beside(Theirs.start)
        try:
            await beside(lambda: ActorRegistry.broadcast("news", target))
            assert await system.ask(ours, "seen") == ["news"]
            assert await beside(lambda: theirs.ask("seen")) == (["news"] if target is None else [])
        finally:
            await beside(theirs.stop)


async def test_a_broadcast_to_all_and_stopping_all_leave_the_system_itself_alone() -> None:
    """What the system keeps for itself is no actor of the user's: nobody finds, tells or stops it."""
    async with running() as system:
        ref = await system.spawn(Ours)
        assert await beside(ActorRegistry.get_all) == [ref]
        assert await beside(lambda: ActorRegistry.stop_all(timeout=10)) == [True]
        assert await system.ask(await system.spawn(Ours), "alive") == ["alive"]
        assert system.router.is_alive()


async def test_stopping_all_from_a_thread_stops_ours_and_theirs_the_last_started_first(lane: str) -> None:
    ended: list[str] = []

    class Ending(Ours):
        def on_stop(self) -> None:
            ended.append(self.name)

    async with running() as system:
        refs = [await system.spawn(on(lane, Ending), name=name) for name in ("one", "two", "three")]
        theirs = await beside(Theirs.start)
        stopped = await beside(lambda: ActorRegistry.stop_all(timeout=10))
        assert all(stopped)
        assert len(stopped) >= 4
        assert ended == ["three", "two", "one"]
        assert not any(ref.is_alive() for ref in (*refs, theirs))
        assert await beside(ActorRegistry.get_all) == []


async def test_the_registry_holds_exactly_the_living(lane: str) -> None:
    class Broken(Ours):
        async def on_start(self) -> None:
            raise ValueError("cannot start")

    class Stopping(Ours):
        async def on_start(self) -> None:
            self.stop()

    def ours() -> list[Any]:
        return ActorRegistry.get_by_class(Ours)

    async with running() as system:
        restarted = Recorder(system, ActorRestarted)
        ref = await system.spawn(on(lane, Ours))
        for kind in (Broken, Stopping):
            with contextlib.suppress(StartFailed):
                gone = await system.spawn(on(lane, kind))
                await system.watch(gone)
            assert ours() == [ref]
        ref.tell(ValueError("fail"))
        await restarted.first(ActorRestarted)
        assert ours() == [ref], "a restart changes nothing"
        await system.stop(ref)
        assert ours() == []
        await system.spawn(on(lane, Ours))
    assert ours() == []


async def test_an_actor_that_is_over_before_its_spawner_goes_on_is_not_kept(lane: str) -> None:
    """Its child gave up while it started, and that is the end of it."""

    class Brief(Ours):
        restart = RestartPolicy(intensity=0)

    class Parent(Actor):
        restart = RestartPolicy(directives={ChildGaveUp: "stop"})

        async def on_start(self) -> None:
            ref = await self.spawn(on(lane, Brief))
            ref.tell(ValueError("fail"))
            await system.watch(ref)

    async with running() as system:
        ref = await system.spawn(Parent)
        assert (await system.watch(ref)).reason in {"failed", "unknown"}
        assert ActorRegistry.get_by_class(Parent) == []


async def test_what_is_not_to_be_listed_is_not() -> None:
    async with running() as system:
        ref = await system.spawn(on("loop", Ours, listed=False))
        assert ref not in ActorRegistry.get_all()
        await system.stop(ref)


def test_installing_keeps_who_is_there_and_doing_it_again_changes_nothing() -> None:
    theirs = Theirs.start()
    try:
        with ActorRegistry._actor_refs_lock:
            ActorRegistry._actor_refs = [theirs]
        registry.install()
        installed = ActorRegistry._actor_refs
        assert isinstance(installed, Refs)
        registry.install()
        assert ActorRegistry._actor_refs is installed
        assert ActorRegistry.get_all() == [theirs]
    finally:
        theirs.stop()


class Counted:
    """Counts how often it is looked at."""

    looks = 0

    def __init__(self, number: int) -> None:
        self.number = number

    def __hash__(self) -> int:
        Counted.looks += 1
        return self.number

    def __eq__(self, other: object) -> bool:
        Counted.looks += 1
        return self is other


@pytest.mark.parametrize("count", [10, 1_000])
@pytest.mark.parametrize("place", [0, -1])
def test_removing_one_looks_at_a_few_however_many_there_are(count: int, place: int) -> None:
    everybody = [Counted(number) for number in range(count)]
    refs: Any = Refs(everybody)  # type: ignore[arg-type]
    Counted.looks = 0
    for act in (lambda: everybody[place] in refs, lambda: refs.remove(everybody[place])):
        act()
    assert Counted.looks <= 6
    assert len(refs) == count - 1


@given(st.lists(st.tuples(st.sampled_from(["append", "remove"]), st.integers(0, 5)), max_size=40))
def test_refs_behave_as_the_list_that_the_registry_keeps(steps: list[tuple[str, int]]) -> None:
    """The registry appends what is not there, removes, copies, counts and looks."""
    refs, expected = Refs(), []
    for step, number in steps:
        one: Any = f"ref-{number}"
        if step == "append" and one not in expected:
            expected.append(one)
            refs.append(one)
        elif step == "remove":
            if one in expected:
                expected.remove(one)
                refs.remove(one)
            else:
                with pytest.raises(ValueError, match=f"{one} is not registered"):
                    refs.remove(one)
        assert list(refs) == refs[:] == expected
        assert type(refs[:]) is list
        assert len(refs) == len(expected)
        assert refs[1:3] == expected[1:3]
        assert [f"ref-{each}" in refs for each in range(6)] == [f"ref-{each}" in expected for each in range(6)]
        assert bool(refs) is bool(expected)


def test_threads_that_start_and_stop_actors_at_once_leave_the_registry_as_it_was() -> None:
    registry.install()

    def play() -> None:
        for _ in range(20):
            Theirs.start().stop()

    threads = [threading.Thread(target=play) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert ActorRegistry.get_all() == []
