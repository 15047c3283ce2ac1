"""Log lines: what they say, how many there are, and what never stands in them."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loguru import logger
from websockets.exceptions import InvalidStatus

import grami_actors
from grami_actors import logs
from grami_actors.agent import Agent, handles
from grami_actors.job import TERMINAL
from grami_actors.logs import BURST, EVERY, GENEROUS, RATE, configure_logging, log_to, printable
from grami_actors.messages import Message, Scope
from grami_actors.swarm import Swarm
from grami_actors.telemetry import (
    ActorFailed,
    ActorStopped,
    Bus,
    ConnectionAuthenticated,
    ConnectionClosed,
    ConnectionOpened,
    ConnectionRefused,
    DeadLetter,
    Event,
    InternalError,
    JobChanged,
    LimitHit,
    Listening,
    RequestFinished,
)
from tests.conftest import Recorder, heard, raw, serving, tell
from tests.test_telemetry import example

pytestmark = pytest.mark.usefixtures("quiet_logger")


@pytest.fixture
def quiet_logger() -> Iterator[None]:
    """Loguru without handlers, before and after."""
    logger.remove()
    yield
    logger.remove()
    logger.disable("grami_actors")


@pytest.fixture
def lines() -> list[str]:
    """All that is logged from now on."""
    found: list[str] = []
    logger.enable("grami_actors")
    logger.add(lambda message: found.append(message.record["message"]), level=0, catch=False)
    return found


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


# --- what they say ---


@pytest.mark.parametrize("kind", logs._LINES)
def test_an_event_that_has_a_log_line_is_logged_with_its_level_and_words(kind: type[Event]) -> None:
    bus, records = Bus(), []
    logger.add(lambda message: records.append(message.record), level=0, format="{message}", catch=False)
    end = log_to(bus, slow_after=0.1)
    event = example(kind, **({"scope": None} if kind is RequestFinished else {}))
    bus.publish(event)
    end()
    bus.publish(event)
    (record,) = records
    assert record["extra"] == {"event": kind.__name__}
    assert record["level"].name == logs._LINES[kind][0]
    assert record["function"] == "test_an_event_that_has_a_log_line_is_logged_with_its_level_and_words"
    for field in kind.__struct_fields__:
        if isinstance(getattr(event, field), str) and field != "kind":
            assert "some words" in record["message"]


def test_what_a_log_line_says_depends_on_the_event(lines: list[str]) -> None:
    bus = Bus()
    log_to(bus)
    bus.publish(ActorStopped("writer"))
    bus.publish(ActorStopped("writer", leaked=True))
    bus.publish(ConnectionAuthenticated("c", "anonymous"))
    bus.publish(ConnectionAuthenticated("c", "ann"))
    bus.publish(ConnectionClosed("c", 1000, "", 1, 2, 3.0))
    bus.publish(ConnectionClosed("c", 4429, "why", 1, 2, 3.0))
    bus.publish(DeadLetter("writer", "", {}, "stopped"))
    bus.publish(ActorFailed("writer", "{braces} %s {0}", ""))
    bus.publish(LimitHit("max_inflight", "alice"))
    bus.publish(InternalError("abc", "Traceback:\n  line 1\n"))
    assert lines == [
        "writer stopped",
        "writer stopped; what it was doing could not be ended",
        "c authenticated as ann",
        "c closed with 1000 after 3.0 s: 1 received, 2 sent",
        "c closed with 4429 (why) after 3.0 s: 1 received, 2 sent",
        "dead letter: dict from outside to writer: stopped",
        "writer failed: {braces} %s {0}",
        "alice was refused: the limit max_inflight is reached",
        "internal error abc\n    Traceback:\n      line 1",
    ]


def test_a_job_is_logged_when_it_is_accepted_and_at_its_end_and_not_between() -> None:
    bus, records = Bus(), []
    logger.add(lambda message: records.append(message.record), level=0, format="{message}", catch=False)
    end = log_to(bus)
    for number, last in enumerate(sorted(TERMINAL)):
        for seq, state in enumerate(("QUEUED", "STARTING", "RUNNING", "RUNNING", "BACKOFF", "QUEUED", last), 1):
            bus.publish(JobChanged(f"job_{number}", "render", "ann" * (number != 0), state, seq))
            bus.publish(JobChanged(f"job_{number}", "render", "ann" * (number != 0), state, seq, told=False))
    end()
    told = [(record["level"].name, record["message"]) for record in records]
    assert told[:2] == [
        ("INFO", "job_0 of render for nobody: QUEUED"),
        ("INFO", "job_0 of render for nobody: CANCELLED"),
    ]
    assert len(told) == 2 * len(TERMINAL)
    assert {text.rpartition(" ")[2] for level, text in told if level == "WARNING"} == {
        "FAILED", "LOST", "TIMED_OUT", "REJECTED",
    }  # fmt: skip


def test_a_slow_request_is_logged_with_where_its_time_went(lines: list[str]) -> None:
    bus = Bus()
    log_to(bus, slow_after=2.0)
    scope = Scope(trace_id="4bf92f3577b34da6a3ce929d0e0e4736")
    bus.publish(RequestFinished("c-1", "draft", "ok", 2.0, "alice", "writer", 1.0, 0.5, scope))
    assert lines == []
    bus.publish(RequestFinished("c-1", "draft", "ok", 7.25, "alice", "writer", 5.0, 2.0, scope))
    bus.publish(RequestFinished("c-1", "", "DEADLINE_EXCEEDED", 3.0))
    assert len(lines) == 2
    assert lines[0] == (
        "slow request: draft to writer from alice took 7.250 s: 5.000 s in the queue, 2.000 s in the handler, "
        "0.250 s elsewhere; ok; trace 4bf92f3577b34da6a3ce929d0e0e4736"
    )
    assert lines[1] == (
        "slow request: a request to nobody from c-1 took 3.000 s: 0.000 s in the queue, 0.000 s in the handler, "
        "3.000 s elsewhere; DEADLINE_EXCEEDED; trace unknown"
    )


# --- how many ---


def test_a_flood_of_one_kind_is_cut_and_counted_and_hides_no_other_kind(lines: list[str]) -> None:
    clock, bus = Clock(), Bus()
    log_to(bus, clock=clock)
    for _ in range(10_000):
        bus.publish(ConnectionRefused("192.0.2.1:5", "no"))
    assert len(lines) == BURST
    bus.publish(Listening("ws://x"))
    assert lines[-1] == "listening on ws://x"
    clock.now = EVERY
    bus.publish(Listening("ws://y"))
    assert lines[-2:] == [
        f"... {10_000 - BURST:,.0f} more lines of ConnectionRefused were left out in the last 10 s",
        "listening on ws://y",
    ]


def test_what_was_left_out_is_said_also_when_nothing_else_comes(lines: list[str]) -> None:
    clock, bus = Clock(), Bus()
    end = log_to(bus, clock=clock)
    for _ in range(int(BURST) + 3):
        bus.publish(ConnectionRefused("192.0.2.1:5", "no"))
    del lines[:]
    clock.now = EVERY - 1
    end.flush()
    assert lines == []
    clock.now = EVERY
    end.flush()
    end.flush()
    assert lines == ["... 3 more lines of ConnectionRefused were left out in the last 10 s"]
    for _ in range(int(EVERY * RATE) + 2):
        bus.publish(ConnectionRefused("192.0.2.1:5", "no"))
    end()
    assert lines[-1] == "... 2 more lines of ConnectionRefused were left out in the last 0 s"


def test_errors_of_our_own_are_cut_later(lines: list[str]) -> None:
    bus = Bus()
    log_to(bus, clock=Clock())
    for _ in range(10_000):
        bus.publish(ActorFailed("writer", "on purpose", ""))
    assert len(lines) == BURST * GENEROUS


def test_a_request_that_is_not_slow_takes_no_line_from_one_that_is(lines: list[str]) -> None:
    bus = Bus()
    log_to(bus, clock=Clock())
    for _ in range(10_000):
        bus.publish(RequestFinished("c", "draft", "ok", 0.1))
    bus.publish(RequestFinished("c", "draft", "ok", 9.0))
    assert len(lines) == 1


FLOODS = st.lists(
    st.tuples(
        st.floats(0, 20),
        st.sampled_from([ConnectionRefused("p", "no"), ActorFailed("a", "e", ""), ConnectionOpened("c", "p")]),
        st.integers(1, 700),
    ),
    max_size=6,
)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(FLOODS)
def test_every_event_is_either_written_or_counted_and_never_more_than_the_rate_allows(
    flood: list[tuple[float, Event, int]],
) -> None:
    found: list[Any] = []
    logger.enable("grami_actors")
    sink = logger.add(lambda message: found.append(message.record), level=0, catch=False)
    try:
        clock, bus = Clock(), Bus()
        end = log_to(bus, clock=clock)
        for pause, event, times in flood:
            clock.now += pause
            for _ in range(times):
                bus.publish(event)
        end()
    finally:
        logger.remove(sink)
    for kind in (ConnectionRefused, ActorFailed, ConnectionOpened):
        mine = [each["message"] for each in found if each["extra"]["event"] == kind.__name__]
        left_out = [re.match(r"\.\.\. ([\d,]+) more", line) for line in mine]
        counted = sum(int(each[1].replace(",", "")) for each in left_out if each)
        written = len([each for each in left_out if each is None])
        assert written + counted == sum(times for _, event, times in flood if type(event) is kind)
        factor = GENEROUS if kind is ActorFailed else 1.0
        assert written <= factor * (BURST + RATE * clock.now) + 1
        assert len(mine) - written <= clock.now / EVERY + 1


# --- what never stands in them ---

HOSTILE = "x\n12:00:00.000 ERROR   forged\r\x1b[31m\x00\u2028\u202e\x85\ud800"


@pytest.mark.parametrize(
    "event",
    [
        ConnectionOpened("c", HOSTILE),
        ConnectionAuthenticated("c", HOSTILE),
        ConnectionRefused(HOSTILE, HOSTILE),
        ConnectionClosed("c", 1000, HOSTILE, 1, 2, 3.0),
        RequestFinished("c", HOSTILE, "ok", 99.0, HOSTILE, HOSTILE),
        LimitHit("max_inflight", HOSTILE),
        DeadLetter(HOSTILE, HOSTILE, None, HOSTILE),
        ActorFailed("writer", HOSTILE, ""),
    ],
    ids=lambda event: type(event).__name__,
)
def test_what_a_client_gave_cannot_begin_a_line_of_its_own_or_colour_one(event: Event, lines: list[str]) -> None:
    bus = Bus()
    log_to(bus)
    bus.publish(event)
    (line,) = lines
    assert line.isprintable()
    assert r"x\n12:00:00.000 ERROR   forged\r\x1b[31m\x00\u2028\u202e\x85\ud800" in line


def test_every_line_of_a_traceback_is_indented(lines: list[str]) -> None:
    bus = Bus()
    log_to(bus)
    bus.publish(InternalError("abc", f"Traceback:\n\tValueError: {HOSTILE}\n"))
    (text,) = lines
    first, *others = text.split("\n")
    assert first == "internal error abc"
    assert all(line.startswith("    ") and line.isprintable() for line in others)


@given(st.text())
def test_a_text_is_always_made_printable_and_left_alone_if_it_is(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert (shown == text) is text.isprintable()


def test_a_line_has_an_end_whatever_is_put_into_it(lines: list[str]) -> None:
    bus = Bus()
    log_to(bus)
    bus.publish(ActorFailed("writer", "x" * 1_000_000, "y" * 1_000_000))
    assert len(lines[0]) < 60_000


SECRET = re.compile(r"token|secret|passw|api_?key|credential|authoriz|cookie|header|query", re.IGNORECASE)


def test_no_event_has_a_field_for_a_credential() -> None:
    kinds = [kind for kind in Event.__subclasses__() if kind.__module__.startswith("grami_actors.")]
    fields = [field for kind in kinds for field in kind.__struct_fields__]
    assert [field for field in fields if SECRET.search(field)] == []


def test_no_code_that_logs_speaks_of_a_credential() -> None:
    for file in Path(grami_actors.__file__).parent.rglob("*.py"):
        for call in re.findall(
            r"logger\.(?:\w+\([^()]*\)\.)*(?:log|debug|info|warning|error|exception)\(.*", file.read_text()
        ):
            assert SECRET.search(call) is None, (file, call)
    for level, line in logs._LINES.values():
        assert level
        assert SECRET.search(inspect.getsource(line)) is None


class Echo(Message):
    text: str


class Parrot(Agent):
    @handles(Echo)
    def echo(self, message: Echo) -> str:
        return message.text


async def test_a_server_never_logs_the_token_that_a_client_shows_wherever_it_puts_it(
    lines: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    secret = "s3cr3t-0123456789"
    caplog.set_level(0)
    async with serving(Swarm(agents=[Parrot])) as manager:
        end = log_to(manager.system.bus, slow_after=0.0)
        closed = Recorder(manager.system, ConnectionClosed)
        async with raw(manager, additional_headers={"Authorization": f"Bearer {secret}"}) as socket:
            await tell(socket, type="hello", id=1, protocol=1, token=secret)
            await heard(socket)
            await tell(socket, type="auth", id=2, token=secret)
            await heard(socket)
            await tell(socket, type="echo", id=3, text=secret)
            await heard(socket)
        await closed.first(ConnectionClosed)
        for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
            with pytest.raises(InvalidStatus):
                async with raw(manager, additional_headers={**headers, "Authorization": f"Bearer {secret}"}):
                    pass
        end()
    assert any("slow request: echo" in line for line in lines)
    assert any("refused" in line for line in lines)
    others = [
        record.getMessage() for record in caplog.records if record.name != "websockets.client"
    ]  # it is the client
    assert [line for line in (*lines, *others) if secret in line] == []


# --- where they go ---


def use_a_secret(secret: str) -> None:
    password = secret + secret
    raise RuntimeError(f"wrong password of {len(password)} letters")


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


def test_a_json_log_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("DEBUG", as_json=True)
    bus = Bus()
    log_to(bus, slow_after=0.1)
    for kind in logs._LINES:
        given: dict[str, Any] = {"details": "two\nlines"} if "details" in kind.__struct_fields__ else {}
        bus.publish(
            msgspec.structs.replace(example(kind, **given), **({"scope": None} if kind is RequestFinished else {}))
        )
    bus.publish(Listening('ws://"{}\n\x00\u2028ä'))
    records = [json.loads(line)["record"] for line in capsys.readouterr().err.strip().split("\n")]
    assert [record["extra"]["event"] for record in records] == [kind.__name__ for kind in logs._LINES] + ["Listening"]


def test_a_program_that_configures_its_log_gets_the_librarys_own_lines_once(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    configure_logging()
    bus = Bus()
    bus.subscribe(lambda _: use_a_secret("x"), Listening)
    bus.publish(Listening("ws://x"))
    assert capsys.readouterr().err.count("a telemetry subscriber failed on Listening") == 1


def test_a_text_log_starts_at_its_level(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("WARNING")
    bus = Bus()
    log_to(bus)
    bus.publish(Listening("ws://x"))
    bus.publish(ConnectionRefused("1.2.3.4:5", "no"))
    assert capsys.readouterr().err.split("WARNING ")[1:] == ["handshake from 1.2.3.4:5 refused: no\n"]
