"""Events, and what listens to them: log lines and metrics."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loguru import logger
from prometheus_client.parser import text_string_to_metric_families

import grami_actors
from grami_actors import telemetry
from grami_actors.telemetry import (
    ActorFailed,
    ActorRestarted,
    ActorStopped,
    Bus,
    ConnectionClosed,
    ConnectionOpened,
    ConnectionRefused,
    DeadLetter,
    Event,
    Listening,
    Metrics,
    RequestFinished,
    ToolCalled,
    configure_logging,
    log_to,
)

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


# --- logging ---


@pytest.mark.usefixtures("quiet_logger")
@pytest.mark.parametrize("kind", telemetry._LINES)
def test_an_event_that_has_a_log_line_is_logged_with_its_level_and_words(kind: type[Event]) -> None:
    bus, records = Bus(), []
    logger.add(lambda message: records.append(message.record), level=0, format="{message}", catch=False)
    end = log_to(bus)
    event = example(kind)
    bus.publish(event)
    end()
    bus.publish(event)
    (record,) = records
    assert record["extra"] == {"event": kind.__name__}
    assert record["level"].name == telemetry._LINES[kind][0]
    for field in kind.__struct_fields__:
        if isinstance(getattr(event, field), str) and field != "kind":
            assert "some words" in record["message"]


@pytest.mark.usefixtures("quiet_logger")
def test_what_a_log_line_says_depends_on_the_event() -> None:
    bus, lines = Bus(), []
    logger.add(lambda message: lines.append(str(message).strip()), level=0, format="{message}")
    log_to(bus)
    bus.publish(ActorStopped("writer"))
    bus.publish(ActorStopped("writer", leaked=True))
    bus.publish(ConnectionClosed("c", 1000, "", 1, 2, 3.0))
    bus.publish(ConnectionClosed("c", 4429, "why", 1, 2, 3.0))
    bus.publish(DeadLetter("writer", "", {}, "stopped"))
    bus.publish(ActorFailed("writer", "{braces} %s {0}", ""))
    assert lines == [
        "writer stopped",
        "writer stopped; what it was doing could not be ended",
        "connection c closed with 1000 after 3.0 s: 1 received, 2 sent",
        "connection c closed with 4429 (why) after 3.0 s: 1 received, 2 sent",
        "dead letter: dict from outside to writer: stopped",
        "writer failed: {braces} %s {0}",
    ]


def use_a_secret(secret: str) -> None:
    password = secret + secret
    raise RuntimeError(f"wrong password of {len(password)} letters")


@pytest.mark.usefixtures("quiet_logger")
@pytest.mark.parametrize("as_json", [False, True])
def test_the_log_of_an_exception_never_shows_the_value_of_a_variable(
    as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = f"s3cret{sys.maxsize}"
    configure_logging("DEBUG", as_json=as_json)
    try:
        use_a_secret(secret)
    except RuntimeError:
        logger.exception("it failed")
    log = capsys.readouterr().err
    assert "wrong password of 50 letters" in log
    assert "use_a_secret" in log
    assert secret not in log


@pytest.mark.usefixtures("quiet_logger")
def test_a_json_log_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("DEBUG", as_json=True)
    bus = Bus()
    log_to(bus)
    for kind in telemetry._LINES:
        bus.publish(example(kind, **({"details": "two\nlines"} if "details" in kind.__struct_fields__ else {})))
    bus.publish(Listening('ws://"{}\n\x00\u2028ä'))
    records = [json.loads(line)["record"] for line in capsys.readouterr().err.strip().split("\n")]
    assert [record["extra"]["event"] for record in records] == [kind.__name__ for kind in telemetry._LINES] + [
        "Listening"
    ]


@pytest.mark.usefixtures("quiet_logger")
def test_a_program_that_configures_its_log_gets_the_librarys_own_lines_once(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    configure_logging()
    bus = Bus()
    bus.subscribe(lambda _: use_a_secret("x"), Listening)
    bus.publish(Listening("ws://x"))
    assert capsys.readouterr().err.count("a telemetry subscriber failed on Listening") == 1


@pytest.mark.usefixtures("quiet_logger")
def test_a_text_log_starts_at_its_level(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("WARNING")
    bus = Bus()
    log_to(bus)
    bus.publish(Listening("ws://x"))
    bus.publish(ConnectionRefused("1.2.3.4:5", "no"))
    assert capsys.readouterr().err.split("WARNING ")[1:] == ["handshake from 1.2.3.4:5 refused: no\n"]


# --- metrics ---

FAMILIES = {
    "grami_connections": "gauge",
    "grami_connections_opened": "counter",
    "grami_connections_refused": "counter",
    "grami_requests": "counter",
    "grami_request_seconds": "histogram",
    "grami_tool_calls": "counter",
    "grami_tool_seconds": "histogram",
    "grami_tool_queue_wait_seconds": "histogram",
    "grami_actor_failures": "counter",
    "grami_actor_restarts": "counter",
    "grami_dead_letters": "counter",
    "grami_mailbox_depth": "gauge",
}


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Name and label values, these in alphabetical order, to value."""
    families = text_string_to_metric_families(metrics.text().decode())
    return {(each.name, *sorted(each.labels.values())): each.value for family in families for each in family.samples}


def test_the_metrics_have_the_families_that_dashboards_are_built_on() -> None:
    families = text_string_to_metric_families(Metrics(Bus(), dict).text().decode())
    found = {family.name: family.type for family in families if family.name.startswith("grami_")}
    # The histograms and counters with labels have a "created" gauge beside them.
    assert {name: kind for name, kind in found.items() if not name.endswith("_created")} == FAMILIES


def test_each_event_moves_its_number() -> None:
    bus, depths = Bus(), [("writer", 3), ("gone", 1)]
    metrics = Metrics(bus, lambda: depths)
    closed = ConnectionClosed("c", 1000, "", 1, 2, 3.0)
    for event in (
        *[ConnectionOpened("c", "p")] * 3,
        closed,
        ConnectionRefused("p", "no"),
        *[RequestFinished("c", "echo", "ok", 0.02)] * 2,
        RequestFinished("c", "echo", "CANCELLED", 99.0),
        ToolCalled("double", "writer", 0.5, 0.02, "ok"),
        ActorFailed("writer", "e", ""),
        ActorRestarted("writer", 1, 0.1),
        DeadLetter("writer", "", None, "stopped"),
    ):
        bus.publish(event)
    found = samples(metrics)
    assert found["grami_connections",] == 2
    assert found["grami_connections_opened_total",] == 3
    assert found["grami_connections_refused_total",] == 1
    assert found["grami_requests_total", "echo", "ok"] == 2
    assert found["grami_requests_total", "CANCELLED", "echo"] == 1
    assert found["grami_request_seconds_bucket", "0.01", "echo"] == 0
    assert found["grami_request_seconds_bucket", "0.025", "echo"] == 2
    assert found["grami_request_seconds_count", "echo"] == 3
    assert found["grami_tool_calls_total", "double", "ok"] == 1
    assert found["grami_tool_seconds_sum", "double"] == 0.02
    assert found["grami_tool_queue_wait_seconds_sum", "double"] == 0.5
    assert found["grami_actor_failures_total", "writer"] == found["grami_actor_restarts_total", "writer"] == 1
    assert found["grami_dead_letters_total", "stopped"] == 1
    assert (found["grami_mailbox_depth", "writer"], found["grami_mailbox_depth", "gone"]) == (3, 1)
    depths[:] = [("writer", 0)]
    assert ("grami_mailbox_depth", "gone") not in samples(metrics)


def test_two_systems_count_for_themselves() -> None:
    one, other = Bus(), Bus()
    metrics, others = Metrics(one, dict), Metrics(other, dict)
    one.publish(ConnectionOpened("c", "p"))
    assert samples(metrics)["grami_connections",] == 1
    assert samples(others)["grami_connections",] == 0
