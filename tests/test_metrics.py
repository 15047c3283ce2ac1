"""What Prometheus is told: the numbers, how many there may be, and that the documentation names them all."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from grami_actors.actor import Actor
from grami_actors.metrics import MOST, MOST_HISTOGRAMS, Metrics
from grami_actors.telemetry import (
    ActorFailed,
    ActorRestarted,
    Bus,
    ConnectionClosed,
    ConnectionOpened,
    ConnectionRefused,
    DeadLetter,
    Event,
    JobChanged,
    LimitHit,
    LoopLagged,
    RequestFinished,
    ToolCalled,
)
from tests.conftest import Recorder, running

DOCUMENT = Path(__file__).parents[1] / "docs" / "observability.md"


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def families(metrics: Metrics) -> list[Any]:
    return list(text_string_to_metric_families(metrics.text().decode()))


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Name and label values, these in the order of their names, to value."""
    return {
        (each.name, *(each.labels[label] for label in sorted(each.labels))): each.value
        for family in families(metrics)
        for each in family.samples
    }


def counted(*events: Event, **options: Any) -> dict[tuple[str, ...], float]:
    bus = Bus()
    metrics = Metrics(bus, dict, **options)
    for event in events:
        bus.publish(event)
    return samples(metrics)


# --- names ---


def documented() -> dict[str, tuple[str, set[str]]]:
    """The table of docs/observability.md: name to kind and labels."""
    rows = re.findall(r"^\| `([a-z_]+)` \| (\w+) \| (.*?) \|", DOCUMENT.read_text(), re.MULTILINE)
    return {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def test_the_documented_metrics_are_exactly_those_that_are_exported() -> None:
    exported = {family.name: family.type for family in families(Metrics(Bus(), dict))}
    expected = {name: kind for name, (kind, _) in documented().items()}
    if sys.platform != "linux":  # those of the process come from /proc
        expected = {name: kind for name, kind in expected.items() if name.startswith("grami_")}
    assert exported == expected


def test_the_documented_labels_are_exactly_those_that_are_exported() -> None:
    bus = Bus()
    metrics = Metrics(bus, lambda: [("writer", 1)])
    for event in (
        ConnectionClosed("c", 1000, "", 1, 2, 3.0),
        RequestFinished("c", "echo", "ok", 0.02, to="writer"),
        LimitHit("max_inflight", "alice"),
        ToolCalled("double", "writer", 0.5, 0.02, "ok"),
        JobChanged("job_1", "render", "ann", "FAILED", 5),
        ActorFailed("writer", "e", ""),
        ActorRestarted("writer", 1, 0.1),
        DeadLetter("writer", "", None, "stopped"),
    ):
        bus.publish(event)
    exported = {
        family.name: {label for each in family.samples for label in each.labels} - {"le"}
        for family in families(metrics)
    }
    table = documented()
    assert exported == {name: table[name][1] for name in exported}


# --- numbers ---


def test_connections_are_counted_as_they_open_and_close_and_are_refused() -> None:
    found = counted(
        *[ConnectionOpened("c", "p")] * 3,
        ConnectionClosed("c", 1000, "", 1, 2, 3.0),
        ConnectionClosed("c", 4429, "", 1, 2, 3.0),
        ConnectionRefused("p", "no"),
    )
    assert found["grami_connections",] == 1
    assert found["grami_connections_opened_total",] == 3
    assert found["grami_connections_refused_total",] == 1
    assert found["grami_connections_closed_total", "1000"] == 1
    assert found["grami_connections_closed_total", "4429"] == 1


def test_requests_are_counted_by_type_destination_and_outcome_and_timed_by_the_first_two() -> None:
    found = counted(
        *[RequestFinished("c", "echo", "ok", 0.02, to="writer", queue_wait=0.004, handling=0.01)] * 2,
        RequestFinished("c", "echo", "CANCELLED", 99.0, to="writer", queue_wait=98.0, handling=1.0),
        RequestFinished("c", "echo", "RATE_LIMITED", 0.001),
    )
    # Labels in the order of their names: outcome, to, type.
    assert found["grami_requests_total", "ok", "writer", "echo"] == 2
    assert found["grami_requests_total", "CANCELLED", "writer", "echo"] == 1
    assert found["grami_requests_total", "RATE_LIMITED", "", "echo"] == 1
    # le, to, type.
    assert found["grami_request_seconds_bucket", "0.01", "writer", "echo"] == 0
    assert found["grami_request_seconds_bucket", "0.025", "writer", "echo"] == 2
    assert found["grami_request_seconds_bucket", "+Inf", "writer", "echo"] == 3
    assert found["grami_request_seconds_count", "writer", "echo"] == 3
    assert found["grami_request_seconds_sum", "writer", "echo"] == pytest.approx(99.04)
    assert found["grami_request_queue_wait_seconds_sum", "writer", "echo"] == pytest.approx(98.008)
    assert found["grami_request_handling_seconds_bucket", "0.01", "writer", "echo"] == 2
    assert found["grami_request_seconds_count", "", "echo"] == 1
    assert ("grami_request_handling_seconds_count", "", "echo") not in found, "nobody handled it"


def test_what_has_no_labels_is_zero_until_it_happens() -> None:
    found = counted()
    assert found["grami_connections_opened_total",] == found["grami_connections_refused_total",] == 0
    assert found["grami_loop_lag_seconds_count",] == found["grami_loop_lag_max_seconds",] == 0


def test_limits_tools_failures_and_dead_letters_are_counted() -> None:
    found = counted(
        *[LimitHit("max_inflight", who) for who in ("alice", "bob", "alice")],
        ToolCalled("double", "writer", 0.5, 0.02, "ok"),
        *[JobChanged("job_1", "render", "ann", state, 5) for state in ("QUEUED", "RUNNING", "RUNNING", "LOST")],
        JobChanged("job_1", "render", "ann", "LOST", 5, told=False),
        ActorFailed("writer-2/child-17", "e", ""),
        ActorFailed("writer-1", "e", ""),
        ActorRestarted("writer/child-18", 1, 0.1),
        DeadLetter("writer", "", None, "stopped"),
    )
    assert found["grami_limited_total", "max_inflight"] == 3
    assert found["grami_tool_calls_total", "ok", "double"] == 1
    assert {key: count for key, count in found.items() if key[0] == "grami_jobs_total"} == {
        ("grami_jobs_total", "LOST", "render"): 1
    }
    assert found["grami_tool_seconds_sum", "double"] == 0.02
    assert found["grami_tool_queue_wait_seconds_sum", "double"] == 0.5
    assert found["grami_actor_failures_total", "writer"] == 2
    assert found["grami_actor_restarts_total", "writer"] == 1
    assert found["grami_dead_letters_total", "stopped"] == 1


def test_mailboxes_are_summed_by_family_and_the_fullest_is_told_at_each_scrape() -> None:
    depths = [("writer-1", 3), ("writer-2", 5), ("writer-2/child-1", 1), ("gone", 1)]
    metrics = Metrics(Bus(), lambda: depths)
    found = samples(metrics)
    assert (found["grami_mailbox_depth", "writer"], found["grami_mailbox_depth_max", "writer"]) == (9, 5)
    assert found["grami_mailbox_depth", "gone"] == 1
    depths[:] = [("writer-1", 0)]
    found = samples(metrics)
    assert found["grami_mailbox_depth", "writer"] == 0
    assert ("grami_mailbox_depth", "gone") not in found


def test_outboxes_are_summed_and_the_fullest_is_told() -> None:
    found = counted(outboxes=lambda: iter([10, 400, 7]))
    assert (found["grami_outbox_bytes",], found["grami_outbox_bytes_max",]) == (417, 400)
    found = counted()
    assert (found["grami_outbox_bytes",], found["grami_outbox_bytes_max",]) == (0, 0)


def test_the_longest_lag_is_remembered_for_this_minute_and_the_next_one() -> None:
    clock, bus = Clock(), Bus()
    metrics = Metrics(bus, dict, clock=clock)
    seen = []
    for now, lag in [(10.0, 0.3), (20.0, 0.1), (70.0, 0.2), (119.0, 0.0), (130.0, 0.0), (310.0, 0.4), (600.0, 0.0)]:
        clock.now = now
        bus.publish(LoopLagged(lag))
        seen.append(samples(metrics)["grami_loop_lag_max_seconds",])
    assert seen == [0.3, 0.3, 0.3, 0.3, 0.2, 0.4, 0.0]
    found = samples(metrics)
    assert found["grami_loop_lag_seconds_count",] == 7
    assert found["grami_loop_lag_seconds_bucket", "0.1"] == 4
    bounds = [name[1] for name in found if name[0] == "grami_loop_lag_seconds_bucket"]
    assert (bounds[0], bounds[-2:]) == ("0.001", ["1.0", "+Inf"])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 100)))
def test_a_histogram_counts_every_value_in_exactly_the_buckets_that_hold_it(values: list[float]) -> None:
    found = counted(*[RequestFinished("c", "t", "ok", value, to="a") for value in values])
    for name, count in found.items():
        if name[0] == "grami_request_seconds_bucket":
            assert count == sum(value <= float(name[1]) for value in values)
    if values:
        assert found["grami_request_seconds_count", "a", "t"] == len(values)
        assert found["grami_request_seconds_sum", "a", "t"] == pytest.approx(sum(values))


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_the_process_tells_its_memory_descriptors_and_time() -> None:
    found = counted()
    assert found["process_resident_memory_bytes",] > 1_000_000
    assert found["process_open_fds",] > 2
    assert found["process_cpu_seconds_total",] > 0


def test_two_systems_count_for_themselves() -> None:
    one, other = Bus(), Bus()
    metrics, others = Metrics(one, dict), Metrics(other, dict)
    one.publish(ConnectionOpened("c", "p"))
    assert samples(metrics)["grami_connections",] == 1
    assert samples(others)["grami_connections",] == 0


# --- bounds ---


def test_a_message_type_that_nobody_knows_is_counted_without_its_name() -> None:
    found = counted(
        RequestFinished("c", "echo", "ok", 0.1, to="writer"),
        *[RequestFinished("c", f"made-up-{number}", "UNKNOWN_TYPE", 0.1) for number in range(3 * MOST)],
        RequestFinished("c", "other_known", "ok", 0.1, to="writer"),
        known={"echo", "other_known"}.__contains__,
    )
    requests = {name: value for name, value in found.items() if name[0] == "grami_requests_total"}
    assert requests == {
        ("grami_requests_total", "ok", "writer", "echo"): 1,
        ("grami_requests_total", "UNKNOWN_TYPE", "", ""): 3 * MOST,
        ("grami_requests_total", "ok", "writer", "other_known"): 1,
    }


def test_a_close_code_of_the_clients_own_is_counted_as_other() -> None:
    found = counted(*[ConnectionClosed("c", code, "", 0, 0, 0.0) for code in (3000, 3001, 4999, 1006)])
    closed = {name[1]: value for name, value in found.items() if name[0] == "grami_connections_closed_total"}
    assert closed == {"other": 3, "1006": 1}


def test_no_family_grows_without_end_and_nothing_is_lost() -> None:
    many = 2 * MOST
    bus = Bus()
    metrics = Metrics(bus, lambda: [(f"agent{number}", 2) for number in range(many)])
    for number in range(many):
        name = f"agent{number}"
        for event in (
            RequestFinished("c", name, "ok", 0.1, to=name),
            ToolCalled(name, name, 0.1, 0.1, "ok"),
            ActorFailed(name, "e", ""),
            LimitHit(name, "alice"),
        ):
            bus.publish(event)
    of: dict[str, list[float]] = {}
    for (name, *_), value in samples(metrics).items():
        of.setdefault(name, []).append(value)
    for name in ("grami_requests_total", "grami_actor_failures_total", "grami_limited_total", "grami_tool_calls_total"):
        assert (len(of[name]), sum(of[name])) == (MOST + 1, many)
    assert (len(of["grami_mailbox_depth"]), sum(of["grami_mailbox_depth"])) == (MOST + 1, 2 * many)
    for name in ("grami_request_seconds", "grami_request_handling_seconds", "grami_tool_seconds"):
        assert (len(of[f"{name}_count"]), sum(of[f"{name}_count"])) == (MOST_HISTOGRAMS + 1, many)


def test_instances_of_a_pool_are_counted_together_however_many_there_have_been() -> None:
    found = counted(*[RequestFinished("c", "echo", "ok", 0.1, to=f"writer-{number}") for number in range(3 * MOST)])
    assert found["grami_requests_total", "ok", "writer", "echo"] == 3 * MOST


async def test_children_that_fail_are_counted_under_the_name_of_their_root() -> None:
    class Fragile(Actor):
        def on_receive(self, message: object) -> None:
            raise RuntimeError("on purpose")

    class Parent(Actor):
        async def on_receive(self, message: object) -> None:
            for _ in range(3):
                (await self.spawn(Fragile)).tell("fail")

    async with running() as system:
        metrics = Metrics(system.bus, system.depths)
        failures = Recorder(system, ActorFailed)
        await system.spawn(Parent, name="writer-1")
        await system.ask("writer-1", "go")
        await failures.until(lambda events: len(events) == 3)
        found = samples(metrics)
        assert {name for name in found if name[0] == "grami_actor_failures_total"} == {
            ("grami_actor_failures_total", "writer")
        }
        assert found["grami_actor_failures_total", "writer"] == 3
        assert ("grami_mailbox_depth", "writer") in found
