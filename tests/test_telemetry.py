"""Events, and the bus that hands them to whoever listens."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loguru import logger

import grami_actors
from grami_actors import telemetry
from grami_actors.telemetry import Bus, Event, Listening, family

PACKAGE = Path(grami_actors.__file__).parent
KINDS = [kind for kind in Event.__subclasses__() if kind.__module__ == telemetry.__name__]
EXAMPLES: dict[Any, Any] = {"str": "some words", "int": 3, "float": 0.25, "bool": True, "Any": object()}


def example(kind: type[Event], **given: Any) -> Event:
    values = {
        field.name: EXAMPLES[getattr(field.type, "__name__", str(field.type))] for field in msgspec.structs.fields(kind)
    }
    return kind(**(values | given))


def published_in(path: Path) -> set[str]:
    """The event classes that a module makes, whatever it calls them."""
    tree = ast.parse(path.read_text())
    names = {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "grami_actors.telemetry"
        for alias in node.names
    }
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {names[call.id] for call in calls if isinstance(call, ast.Name) and call.id in names}


# --- the bus ---


@pytest.fixture
def quiet_logger() -> Iterator[None]:
    """Loguru without handlers, before and after."""
    logger.remove()
    yield
    logger.remove()
    logger.disable("grami_actors")


def test_every_kind_of_event_is_published_somewhere() -> None:
    made: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        made |= published_in(path)
    assert {kind.__name__ for kind in KINDS} - made == set()


def test_events_say_what_they_mean_and_cannot_be_changed() -> None:
    for kind in KINDS:
        assert kind.__doc__
        with pytest.raises(AttributeError):
            setattr(example(kind), kind.__struct_fields__[0], "other")


@given(st.lists(st.tuples(st.sampled_from(KINDS[:3]), st.booleans()), max_size=20))
def test_a_kind_is_in_the_bus_exactly_while_somebody_listens_to_it(steps: list[tuple[type[Event], bool]]) -> None:
    bus, ends = Bus(), {kind: [] for kind in KINDS}
    for kind, begin in steps:
        if begin:
            ends[kind].append(bus.subscribe(lambda _: None, kind))
        elif ends[kind]:
            ends[kind].pop()()
        assert all((each in bus) is bool(ends[each]) for each in KINDS)


@given(st.lists(st.sets(st.sampled_from(KINDS[:4]), min_size=1), max_size=5), st.lists(st.sampled_from(KINDS[:4])))
def test_each_subscriber_gets_exactly_the_events_of_its_kinds_in_order(
    wishes: list[set[type[Event]]], kinds: list[type[Event]]
) -> None:
    bus, seen = Bus(), [[] for _ in wishes]
    for wish, got in zip(wishes, seen, strict=True):
        bus.subscribe(got.append, *wish)
    events = [example(kind) for kind in kinds]
    for event in events:
        bus.publish(event)
    for wish, got in zip(wishes, seen, strict=True):
        assert got == [event for event in events if type(event) in wish]


def test_who_names_no_kind_gets_them_all() -> None:
    bus, seen = Bus(), []
    end = bus.subscribe(seen.append)
    for kind in KINDS:
        bus.publish(example(kind))
    assert [type(event) for event in seen] == KINDS
    end()
    end()
    assert not any(kind in bus for kind in KINDS)


@pytest.mark.usefixtures("quiet_logger")
def test_a_subscriber_that_fails_hurts_nobody_and_is_told_only_to_those_who_want_a_log() -> None:
    bus, seen, log = Bus(), [], []
    logger.add(lambda message: log.append(message.record["message"]), level=0)

    def fail(_: Event) -> None:
        raise RuntimeError("a subscriber's own fault")

    for listener in (seen.append, fail, seen.append):
        bus.subscribe(listener, Listening)
    bus.publish(Listening("ws://x"))
    assert (seen, log) == ([Listening("ws://x")] * 2, [])
    logger.enable("grami_actors")
    bus.publish(Listening("ws://x"))
    assert log == ["a telemetry subscriber failed on Listening"]


def test_a_subscriber_may_leave_while_it_is_called() -> None:
    bus, seen = Bus(), []
    ends: list[Callable[[], None]] = []
    ends.append(bus.subscribe(lambda _: ends[0](), Listening))
    bus.subscribe(seen.append, Listening)
    bus.publish(Listening("ws://x"))
    bus.publish(Listening("ws://y"))
    assert seen == [Listening("ws://x"), Listening("ws://y")]


def test_ending_one_subscription_leaves_another_of_the_same_function() -> None:
    bus, seen = Bus(), []
    listener = seen.append
    end = bus.subscribe(listener, Listening)
    bus.subscribe(listener, Listening)
    end()
    bus.publish(Listening("ws://x"))
    assert seen == [Listening("ws://x")]


# --- names ---


@pytest.mark.parametrize(
    ("actor", "expected"),
    [
        ("writer", "writer"),
        ("writer-2", "writer"),
        ("writer-2/child-17", "writer"),
        ("writer/child-17/grandchild", "writer"),
        ("copy-writer", "copy-writer"),
        ("web2", "web2"),
        ("tool:hashtags", "tool:hashtags"),
        ("writer-", "writer-"),
        ("-1", "-1"),
        ("1", "1"),
        ("", ""),
    ],
)
def test_instances_of_a_pool_and_children_are_one_family(actor: str, expected: str) -> None:
    assert family(actor) == expected


@given(st.text(st.sampled_from("ab1-/"), max_size=6), st.integers(0), st.text(st.sampled_from("ab1-/"), max_size=6))
def test_a_child_is_always_of_the_family_of_its_root(root: str, number: int, child: str) -> None:
    assert family(f"{root}/{child}") == family(root)
    assert family(f"writer{root.partition('/')[0]}-{number}") == f"writer{root.partition('/')[0]}"
