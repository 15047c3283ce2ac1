"""Traces: one from client to tool, with the right parents and times, and nothing in it that is nobody's business."""

from __future__ import annotations

import http.server
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: TID253 - the test extra has it
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: TID253 - the test extra has it
from opentelemetry.trace import SpanKind, StatusCode  # noqa: TID253 - the test extra has it

from grami_actors.actor import Actor
from grami_actors.agent import Agent, handles
from grami_actors.errors import ConfigError
from grami_actors.future import Future
from grami_actors.messages import Envelope, Message, Scope, ToolCall
from grami_actors.restarts import RestartPolicy
from grami_actors.router import Forward
from grami_actors.swarm import Swarm
from grami_actors.system import ActorSystem
from grami_actors.telemetry import Bus, MessageHandled, RequestFinished
from grami_actors.tools import lazy_tool, tool
from grami_actors.tracing import trace_to, traceparent
from tests.conftest import LANES, Recorder, on, running, turns_until

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CLIENT = "00f067aa0ba902b7"
HEADER = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-(0[01])")


class Draft(Message):
    topic: str


class Note(Message):
    text: str


class Spans:
    """The spans that were made, by name."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.processor = SimpleSpanProcessor(self.exporter)

    def all(self) -> tuple[Any, ...]:
        return self.exporter.get_finished_spans()

    def __getitem__(self, name: str) -> Any:
        (found,) = [span for span in self.all() if span.name == name]
        return found

    def names(self) -> list[str]:
        return sorted(span.name for span in self.all())

    def until(self, *names: str) -> Any:
        return turns_until(lambda: self.names() == sorted(names))


@contextmanager
def traced(system: ActorSystem) -> Iterator[Spans]:
    spans = Spans()
    end = trace_to(system.bus, spans.processor)
    yield spans
    end()


def is_child(child: Any, parent: Any) -> bool:
    same_trace = child.context.trace_id == parent.context.trace_id == child.parent.trace_id
    return same_trace and child.parent.span_id == parent.context.span_id


async def request(system: ActorSystem, message: Any, root: Scope, *, type_: str = "draft", to: str = "writer") -> Any:
    """What the gateway does with a client's request."""
    begun_at = system.now()
    answer: Future[Any] = Future()
    system.router.tell(Forward(Envelope(message, answer, "connection-1", root), ""))
    value = await answer
    system.bus.publish(
        RequestFinished("connection-1", type_, "ok", system.now() - begun_at, "alice", to, 0.001, 0.002, root)
    )
    return value


class Writer(Agent):
    @handles(Draft)
    async def write(self, draft: Draft) -> Any:
        self.tell("clerk", Note("begun"))
        found = await self.ask("tool:hashtags", ToolCall({"topic": draft.topic}))
        return [traceparent(), *found]


class Clerk(Agent):
    """Is told, and asks."""

    @handles(Note)
    async def note(self, note: Note) -> None:
        await self.ask("archive", Note(note.text))


class Archive(Agent):
    @handles(Note)
    def keep(self, note: Note) -> str:
        return traceparent()


@tool
def hashtags(topic: str) -> list[str]:
    return [traceparent()]


def swarm() -> Swarm:
    return Swarm(agents=[Writer, Clerk, Archive], tools=[hashtags])


# --- one trace ---


async def test_a_request_is_one_trace_from_client_to_tool_with_a_span_for_each_handling() -> None:
    async with running() as system:
        await swarm().start(system)
        with traced(system) as spans:
            root = Scope(trace_id=TRACE)
            root.remote_parent = CLIENT
            headers = await request(system, Draft("spring"), root)
            await spans.until("grami draft", "writer draft", "tool:hashtags", "clerk note", "archive note")
        server, writer, called = spans["grami draft"], spans["writer draft"], spans["tool:hashtags"]
        clerk, archive = spans["clerk note"], spans["archive note"]
        assert {span.context.trace_id for span in spans.all()} == {int(TRACE, 16)}
        assert len({span.context.span_id for span in spans.all()}) == 5
        assert (server.parent.span_id, server.parent.is_remote) == (int(CLIENT, 16), True)
        assert is_child(writer, server)
        assert is_child(called, writer)
        assert is_child(clerk, writer), "a tell is caused by its sender"
        assert is_child(archive, clerk), (
            "what is asked by who was told is caused by that, though the scope is another's"
        )
        assert (server.kind, writer.kind) == (SpanKind.SERVER, SpanKind.INTERNAL)
        for header, span in zip(headers, (writer, called), strict=True):
            assert header == f"00-{TRACE}-{span.context.span_id:016x}-01"


async def test_the_times_of_spans_nest_as_the_asks_do() -> None:
    async with running() as system:
        await swarm().start(system)
        with traced(system) as spans:
            await request(system, Draft("spring"), Scope(trace_id=TRACE))
            await spans.until("grami draft", "writer draft", "tool:hashtags", "clerk note", "archive note")
        dust = 5_000_000  # nanoseconds between the end of a duration and the look at the clock
        for outer, inner in (
            ("grami draft", "writer draft"),
            ("writer draft", "tool:hashtags"),
            ("clerk note", "archive note"),
        ):
            assert spans[outer].start_time <= spans[inner].start_time + dust
            assert spans[inner].end_time <= spans[outer].end_time


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 10), min_size=1, max_size=6))
def test_a_span_ends_when_its_event_comes_and_is_exactly_as_long_as_it_says(durations: list[float]) -> None:
    now = 1_800_000_000_000_000_000
    bus, spans = Bus(), Spans()
    trace_to(bus, spans.processor, clock=lambda: now)
    root = Scope(trace_id=TRACE)
    for duration in sorted(durations):
        now += 1_000
        bus.publish(MessageHandled("a", "", Note("x"), 0.0, duration, "ok", scope=root))
    for span, duration in zip(spans.all(), sorted(durations), strict=True):
        assert span.end_time - span.start_time == round(duration * 1e9)
    assert [span.end_time for span in spans.all()] == [
        1_800_000_000_000_000_000 + 1_000 * (n + 1) for n in range(len(durations))
    ]


@pytest.mark.parametrize("lane", LANES)
async def test_asks_and_tells_have_the_same_parents_on_every_lane(lane: str) -> None:
    class Leaf(Actor):
        def on_receive(self, message: object) -> str:
            return traceparent()

    class Branch(Actor):
        def on_receive(self, message: object) -> Any:
            self.tell("leaf", Note("told"))
            return self.ask("leaf", Draft("asked")).get() if lane == "thread" else self.ask("leaf", Draft("asked"))

    async with running() as system:
        await system.spawn(on(lane, Leaf), name="leaf")
        await system.spawn(on(lane, Branch), name="branch")
        with traced(system) as spans:
            header = await system.ask("branch", Note("go"))
            await spans.until("branch note", "leaf note", "leaf draft")
        assert spans["branch note"].parent is None, "nobody is above an ask from outside"
        assert is_child(spans["leaf note"], spans["branch note"])
        assert is_child(spans["leaf draft"], spans["branch note"])
        assert header.split("-")[2] == f"{spans['leaf draft'].context.span_id:016x}"


@pytest.mark.slow
async def test_a_tool_in_a_worker_process_knows_its_span_too() -> None:
    where = lazy_tool("grami_actors.tracing:traceparent", lane="process", name="where")
    async with running() as system:
        await Swarm(agents=[], tools=[where]).start(system)
        with traced(system) as spans:
            header = await system.ask("tool:where", ToolCall({}))
            span = spans["tool:where"]
            assert header == f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-01"
            unsampled = Scope(trace_id=TRACE)
            unsampled.sampled = False
            answer: Future[Any] = Future()
            system.router.tell(Forward(Envelope(ToolCall({}), answer, "connection-1", unsampled), "tool:where"))
            assert (await answer).endswith("-00")
            assert len(spans.all()) == 1


async def test_a_message_that_is_handled_twice_is_two_spans() -> None:
    class Fragile(Actor):
        restart = RestartPolicy(redeliver=True, shortest=0.0)
        attempts = 0

        async def on_receive(self, message: object) -> str:
            Fragile.attempts += 1
            traceparent()
            if Fragile.attempts == 1:
                raise RuntimeError("the first time")
            return "done"

    async with running() as system:
        await system.spawn(Fragile, name="fragile")
        with traced(system) as spans:
            assert await system.ask("fragile", Note("go")) == "done"
        first, second = spans.all()
        assert first.context.trace_id == second.context.trace_id
        assert first.context.span_id != second.context.span_id


async def test_many_requests_at_once_keep_their_traces_apart() -> None:
    async with running() as system:
        await swarm().start(system)
        with traced(system) as spans:
            for number in range(20):
                await request(system, Draft("spring"), Scope(trace_id=f"{number + 1:032x}"))
            await turns_until(lambda: len(spans.all()) == 100)
        for number in range(20):
            mine = {span.name: span for span in spans.all() if span.context.trace_id == number + 1}
            assert is_child(mine["writer draft"], mine["grami draft"])
            assert is_child(mine["tool:hashtags"], mine["writer draft"])
            assert is_child(mine["archive note"], mine["clerk note"])


# --- what is in them ---


async def test_spans_tell_who_what_and_how_it_ended_but_never_what_was_said() -> None:
    class Critic(Agent):
        @handles(Draft)
        def judge(self, draft: Draft) -> None:
            raise ValueError(draft.topic)

    async with running() as system:
        await Swarm(agents=[Critic]).start(system)
        with traced(system) as spans:
            with pytest.raises(ValueError, match="s3cret"):
                await system.ask("critic", Draft("s3cret"))
            root = Scope(trace_id=TRACE)
            system.bus.publish(RequestFinished("c-1", "draft", "CANCELLED", 0.5, "alice", "critic", 0.1, 0.2, root))
            system.bus.publish(RequestFinished("c-1", "made-up", "UNKNOWN_TYPE", 0.5, scope=Scope(trace_id=TRACE)))
    handling, asked, unknown = spans["critic draft"], spans["grami draft"], spans["grami"]
    assert dict(handling.attributes) == {
        "messaging.system": "grami_actors",
        "messaging.operation.name": "handle",
        "messaging.operation.type": "process",
        "messaging.destination.name": "critic",
        "grami.message_type": "draft",
        "grami.sender": "",
        "grami.queue_wait": handling.attributes["grami.queue_wait"],
        "error.type": "AGENT_EXECUTION_FAILED",
    }
    assert dict(asked.attributes) == {
        "messaging.system": "grami_actors",
        "messaging.destination.name": "critic",
        "messaging.client.id": "c-1",
        "enduser.id": "alice",
        "grami.message_type": "draft",
        "grami.queue_wait": 0.1,
        "grami.handling": 0.2,
        "error.type": "CANCELLED",
    }
    assert handling.status.status_code == asked.status.status_code == StatusCode.ERROR
    assert unknown.parent is None
    assert all("s3cret" not in span.to_json() and "made-up" not in span.to_json() for span in spans.all())


async def test_what_succeeds_has_no_error_and_the_span_of_an_instance_is_named_after_its_pool() -> None:
    async with running() as system:
        await system.spawn(Archive, name="archive-2")
        with traced(system) as spans:
            await system.ask("archive-2", Note("x"))
    span = spans["archive note"]
    assert span.status.status_code == StatusCode.UNSET
    assert "error.type" not in span.attributes
    assert span.attributes["messaging.destination.name"] == "archive-2"


# --- what leaves none ---


async def test_a_request_that_is_not_to_be_sampled_leaves_no_spans_and_says_so_to_others() -> None:
    async with running() as system:
        await swarm().start(system)
        handled = Recorder(system, MessageHandled)
        with traced(system) as spans:
            root = Scope(trace_id=TRACE)
            root.sampled = False
            headers = await request(system, Draft("spring"), root)
            await handled.until(lambda events: any(event.actor == "clerk" for event in events))
            assert spans.all() == ()
        assert [HEADER.fullmatch(header)[3] for header in headers] == ["00", "00"]


async def test_what_belongs_to_no_request_leaves_no_spans() -> None:
    class Ticker(Actor):
        def on_receive(self, message: object) -> str:
            return traceparent()

    async with running() as system:
        ref = await system.spawn(Ticker, name="ticker")
        handled = Recorder(system, MessageHandled)
        with traced(system) as spans:
            ref.tell("tick")
            event = await handled.first(MessageHandled)
            system.bus.publish(RequestFinished("c", "draft", "ok", 0.5))
            assert spans.all() == ()
        assert event.result == traceparent() == ""


async def test_nothing_is_traced_after_the_end() -> None:
    async with running() as system:
        await system.spawn(Archive, name="archive")
        with traced(system) as spans:
            pass
        assert HEADER.fullmatch(await system.ask("archive", Note("x"))), "the trace goes on through here"
        assert spans.all() == ()
        assert not system.bus.timed


# --- where they go ---


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes what is sent by OTLP over HTTP."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.path, body))  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.mark.slow
def test_spans_go_to_the_collector_that_the_standard_variable_names(monkeypatch: pytest.MonkeyPatch) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        server.received = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        bus = Bus()
        end = trace_to(bus)
        bus.publish(RequestFinished("c", "draft", "ok", 0.5, scope=Scope(trace_id=TRACE)))
        end()
        server.shutdown()
        thread.join()
        ((path, body),) = server.received  # type: ignore[attr-defined]
    assert path == "/v1/traces"
    assert bytes.fromhex(TRACE) in body
    assert b"grami draft" in body
    assert b"grami_actors" in body


@pytest.mark.slow
def test_the_service_has_the_name_that_the_standard_variable_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    for given_name in (None, "shop"):
        if given_name is not None:
            monkeypatch.setenv("OTEL_SERVICE_NAME", given_name)
        bus, spans = Bus(), Spans()
        trace_to(bus, spans.processor)
        bus.publish(RequestFinished("c", "draft", "ok", 0.5, scope=Scope(trace_id=TRACE)))
        names.append(spans["grami draft"].resource.attributes["service.name"])
    assert names == ["grami_actors", "shop"]


@pytest.mark.slow
def test_without_the_extra_the_error_says_what_to_install_and_all_else_works() -> None:
    program = """
import sys
sys.modules["opentelemetry"] = None
from grami_actors.errors import ConfigError
from grami_actors.telemetry import Bus
from grami_actors.tracing import trace_to, traceparent
bus = Bus()
assert traceparent() == ""
for processor in (None, object()):
    try:
        trace_to(bus, processor)
    except ConfigError as error:
        print(error)
assert not bus
"""
    printed = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert printed == "traces need a package: pip install 'grami_actors[otel]'\n" * 2


def test_a_missing_extra_is_an_error_of_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"grami_actors\[otel\]"):
        trace_to(Bus(), Spans().processor)
