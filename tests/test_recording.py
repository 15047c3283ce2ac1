"""Recordings: what is written while a server runs, and what can be read of it, whole or cut."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import resource
import signal
import stat
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from grami_actors import Agent, GrowthManager, Message, Prompt, ScriptedModel, Swarm, handles
from grami_actors.api_keys import KeyStore
from grami_actors.config import Config
from grami_actors.encoding import MSGPACK
from grami_actors.errors import ConfigError, ErrorCode, UpstreamError
from grami_actors.history import AnyEntry, Framed, History, Life, Lost, Ran, Remark, Told, Wrote, plain
from grami_actors.model import Model, Turn
from grami_actors.recording.model import Recorded
from grami_actors.recording.recorder import MOST_WAITING, Recorder, recording
from grami_actors.recording.request import digest_of, digest_of_call, encoded, nearest
from grami_actors.recording.tape import MINOR, End, Tape, header
from grami_actors.system import ActorSystem
from grami_actors.telemetry import Bus, Doubted
from tests.conftest import heard, raw, tell, turns_until
from tests.swarms import small_swarm
from tests.test_cli import SMALL, grami
from tests.test_cli import serving as process

HEADER = header(Path("swarm.py"))
PROMPT = Prompt(text="A fish is")


class Ask(Message):
    about: str


class Poet(Agent):
    """Asks the model, and tells how long the answer is."""

    @handles(Ask)
    async def write(self, message: Ask) -> int:
        text = await self.generate(Prompt(text=f"A {message.about} is"))
        return await self.call("double", number=len(text))


def swarm() -> Swarm:
    small = small_swarm()
    return Swarm([*small.agents, Poet], small.tools, lambda: ScriptedModel({"A fish": "cold and wet"}))


@contextmanager
def recorded(path: Path, **settings: Any) -> Iterator[GrowthManager]:
    settings.setdefault("drain_timeout", 0.2)
    manager = GrowthManager(swarm(), Config(**settings), publish=False)
    with recording(manager, path, HEADER):
        yield manager


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.jsonl"


def text_of(path: Path) -> str:
    return path.read_text()


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def write(path: Path, text: str) -> None:
    path.write_text(text)


def of_kind(path: Path, kind: type[Any]) -> list[Any]:
    return [entry for entry in Tape(path) if isinstance(entry, kind)]


async def session(manager: GrowthManager, *requests: dict[str, Any]) -> list[dict[str, Any]]:
    """What a client gets that waits for the answer of each request before the next."""
    got = []
    async with asyncio.timeout(20), manager, raw(manager) as socket:
        for request in requests:
            await tell(socket, **request)
            while True:
                got.append(await heard(socket))
                if got[-1].get("type") not in {"response.started", "response.progress", "response.chunk"}:
                    break
    return got


def call(tool: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "tool_call", "to": f"tool:{tool}", "id": tool, "arguments": arguments}


# --- what is written ---


async def test_what_a_client_sends_and_gets_is_recorded_from_its_coming_to_its_going(path: Path) -> None:
    asked = [
        {"type": "story", "id": 1, "pieces": 2, "stream": True},
        {"type": "echo", "text": "é"},
        {"type": "nothing"},
    ]
    with recorded(path) as manager:
        got = await session(manager, *asked)
    frames = of_kind(path, Framed)
    assert {frame.connection for frame in frames} == {"connection-1"}
    assert [frame.way for frame in frames][:3] == ["open", "auth", "in"]
    assert frames[1].frame == {"principal": "anonymous", "scopes": []}
    assert [frame.frame for frame in frames if frame.way == "in"] == asked
    assert [frame.frame for frame in frames if frame.way == "out"] == got
    assert sum(frame["type"] == "response.chunk" for frame in got if "type" in frame) == 2
    assert (frames[-1].way, frames[-1].frame) == ("close", {"code": 1000, "reason": ""})
    assert sorted(frames, key=lambda frame: frame.at) == frames


async def test_every_model_call_is_recorded_with_its_prompt_its_pieces_and_its_outcome(path: Path) -> None:
    with recorded(path) as manager:
        got = await session(manager, *({"type": "ask", "about": about} for about in ("fish", "bird")))
    assert [answer["status"] for answer in got] == ["success", "error"]
    fish, bird = of_kind(path, Wrote)
    assert fish.request == digest_of(PROMPT)
    assert (fish.prompt, fish.pieces, fish.outcome) == ({"text": "A fish is"}, ("cold", " and", " wet"), "ok")
    assert msgspec.convert(fish.prompt, Prompt) == PROMPT
    assert (bird.pieces, bird.outcome) == ((), ErrorCode.UPSTREAM_ERROR)
    assert "no answer for the prompt" in bird.error


async def test_every_tool_call_is_recorded_with_its_arguments_and_its_result_or_error(path: Path) -> None:
    calls = [call("double", number=4, times=2), call("broken"), call("double", number="x"), call("endless")]
    with recorded(path) as manager:
        got = await session(manager, *calls, {"type": "ask", "about": "fish"})
    ran = of_kind(path, Ran)
    assert [(each.tool, each.outcome, each.result) for each in ran] == [
        ("double", "ok", 16),
        ("broken", "TOOL_EXECUTION_FAILED", None),
        ("double", "VALIDATION_FAILED", None),
        ("endless", "TOOL_TIMEOUT", None),
        ("double", "ok", 24),
    ]
    assert [each.error for each in ran[1:4]] == [answer["message"] for answer in got if answer["status"] == "error"]
    assert [each.arguments for each in ran[:4]] == [each["arguments"] for each in calls]
    assert ran[0].request == digest_of_call("double", {"times": 2, "number": 4})
    assert ran[0].request != ran[4].request


async def test_mail_between_actors_is_recorded_but_not_what_the_frames_tell_anyway(path: Path) -> None:
    with recorded(path) as manager:
        await session(manager, {"type": "ask", "about": "fish"})
    told = of_kind(path, Told)
    assert [(each.sender, each.to, each.type) for each in told] == [
        ("poet", "tool:model", "generate"),
        ("poet", "tool:double", "tool_call"),
        ("connection-1", "poet", "ask"),
    ]
    assert len({each.trace for each in told}) == 1
    assert {(each.actor, each.stage) for each in of_kind(path, Life)} >= {("poet", "started"), ("poet", "stopped")}


async def test_no_token_is_ever_written_however_it_is_sent(path: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    token = KeyStore(keys).create("ann", ["write"], now=time.time())[1]
    sent: list[Any] = [
        token,
        json.dumps(token),
        json.dumps([token]),
        json.dumps({"type": "auth", "token": token})[:-1],
        json.dumps({"type": " Auth ", "token": token}),
        json.dumps({"token": token}),
        json.dumps({"type": "helo", "token": token, "id": 0, "to": "echo", "client": {"name": "x", "more": [token]}}),
        json.dumps({"type": "authenticate", "credentials": [{"value": token}]}),
        json.dumps({"type": "echoes", "text": token}),
        json.dumps({"type": "hello", "key": token}),
        MSGPACK.encode({"type": "auth", "token": token}),
        json.dumps({"type": "hello", "client": {"name": "test", "token": token}, "token": token, "id": 1}),
        json.dumps({"type": "auth", "token": token, "id": 2}),
        json.dumps({"type": "echo", "text": "hello"}),
    ]
    with recorded(path, auth=["keys"], keys_file=keys) as manager:
        async with asyncio.timeout(20), manager, raw(manager) as socket:
            for frame in sent:
                await socket.send(frame)
                answer = await heard(socket)
    assert answer == {"status": "success", "data": {"text": "hello", "number": 0}}
    written = text_of(path)
    assert token not in written
    assert token[-20:] not in written
    frames = [frame for frame in of_kind(path, Framed) if frame.way == "in"]
    assert len(frames) == len(sent)
    assert [frame.frame for frame in frames[:4]] == [None] * 4
    assert frames[6].frame == {"type": "helo", "token": "***", "id": 0, "to": "echo", "client": {"name": "x"}}
    assert frames[10].encoding == "MessagePack"
    assert frames[11].frame == {"type": "hello", "client": {"name": "test"}, "token": "***", "id": 1}
    assert frames[12].frame == {"type": "auth", "token": "***", "id": 2}
    known = [frame.frame for frame in of_kind(path, Framed) if frame.way == "auth"]
    assert known[0] == {"principal": "ann", "scopes": ["write"]}


@pytest.mark.parametrize("name", ["type", b"type"])
async def test_no_token_is_written_of_a_frame_whose_type_is_no_text(path: Path, name: str | bytes) -> None:
    with recorded(path) as manager:
        async with asyncio.timeout(20), manager, raw(manager, subprotocols=[MSGPACK.subprotocol]) as socket:
            await socket.send(MSGPACK.encode({name: b"auth", "token": "secret"}))
            await socket.recv()
    assert "secret" not in text_of(path)


async def test_frames_of_message_pack_are_recorded_as_what_they_hold(path: Path) -> None:
    request = {"type": "echo", "text": "x", "meta": {"picture": b"\x00\xff", "by": {7: "seven"}}}
    with recorded(path) as manager:
        async with asyncio.timeout(20), manager, raw(manager, subprotocols=[MSGPACK.subprotocol]) as socket:
            await socket.send(MSGPACK.encode(request))
            answer = MSGPACK.decode(await socket.recv())
    came, went = (frame for frame in of_kind(path, Framed) if frame.way in {"in", "out"})
    assert (came.encoding, went.encoding, went.frame) == ("MessagePack", "MessagePack", answer)
    assert came.frame == request | {"meta": {"picture": "AP8=", "by": {"7": "seven"}}}


async def test_a_dead_letter_is_recorded_with_its_reason(path: Path) -> None:
    async with ActorSystem() as system:
        recorder = Recorder(system, path, HEADER)
        ref = await system.spawn(Poet, name="poet")
        ref.tell(Ask("\ud800 nobody"))
        await system.stop(ref)
        recorder.close()
    (lost,) = of_kind(path, Lost)
    assert (lost.to, lost.type, lost.data) == ("poet", "ask", {"type": "ask", "about": "? nobody"})
    assert lost.reason


async def test_nothing_is_published_about_frames_while_nobody_records() -> None:
    manager = GrowthManager(swarm(), Config(drain_timeout=0.2), publish=False)
    kinds: set[Any] = set()
    with recording(manager, None, HEADER) as recorder:
        kinds.update(kind.__name__ for kind in manager.system.bus)
        assert recorder is None
        await session(manager, {"type": "echo", "text": "x"})
    assert kinds & {"FramePassed", "MessageHandled"} == set()


async def test_a_line_is_in_the_file_within_a_second_although_the_server_runs_on(path: Path) -> None:
    with recorded(path) as manager:
        async with asyncio.timeout(5), manager:
            while not any(isinstance(entry, Life) for entry in Tape(path)):  # noqa: ASYNC110 - another process would do so
                await asyncio.sleep(0)
            tape = Tape(path)
            assert (list(tape) != [], tape.end, tape.torn) == (True, None, False)
    tape = Tape(path)
    entries = list(tape)
    assert tape.end == End(len(entries))


async def test_what_clients_said_can_be_read_by_its_owner_only(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT, 0o644))
    with recorded(path) as manager:
        await session(manager)
    assert mode_of(path) == 0o600


async def test_a_file_that_holds_something_is_never_overwritten(path: Path, tmp_path: Path) -> None:
    write(path, "something")
    manager = GrowthManager(swarm(), publish=False)
    for file, said in ((path, "is not empty"), (tmp_path, "Is a directory"), (Path("/dev/full"), "No space left")):
        with pytest.raises(ConfigError, match=said), recording(manager, file, HEADER):
            pass
    assert text_of(path) == "something"
    assert not manager.system.bus


# --- where it has to end ---


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process grows past so many bytes: what a full disk does to whoever writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_full_disk_ends_the_recording_with_one_doubt_and_the_server_goes_on(path: Path) -> None:
    doubts: list[Any] = []
    with recorded(path) as manager:
        async with asyncio.timeout(20), manager, raw(manager) as socket:
            manager.system.bus.subscribe(doubts.append, Doubted)
            with largest_file(20_000):
                for _ in range(2):
                    await tell(socket, type="echo", text="x" * 30_000)
                    await heard(socket)
                await turns_until(lambda: doubts)
            await tell(socket, type="echo", text="still here")
            assert (await heard(socket))["data"]["text"] == "still here"
    assert [str(path) in doubt.text for doubt in doubts] == [True]
    assert "File too large" in doubts[0].text
    tape = Tape(path)
    assert Life in map(type, list(tape))
    assert (tape.torn, tape.end, len(text_of(path))) == (True, None, 20_000)


async def test_a_disk_that_does_not_keep_up_ends_the_recording_before_a_line_is_lost(path: Path) -> None:
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    doubts: list[Any] = []
    async with ActorSystem() as system:
        system.bus.subscribe(doubts.append, Doubted)
        recorder = Recorder(system, path, HEADER)
        text, count = "x" * (1 << 22), 0
        while not recorder.ended:
            recorder.history.add(Remark(at=0.0, who="script", text=text))
            count += 1
        assert count <= MOST_WAITING // len(text) + 1
        os.set_blocking(reader, True)
        closing = asyncio.create_task(asyncio.to_thread(recorder.close))
        with io.FileIO(reader) as pipe:
            lines = (await asyncio.to_thread(pipe.read)).splitlines()
        await closing
    assert len(doubts) == 1
    end = msgspec.json.decode(lines[-1], type=End)
    assert end.entries == len(lines) - 2 == count - 1
    assert "does not keep up" in end.text


async def test_an_entry_that_cannot_be_written_ends_the_recording_too_and_is_told_once(path: Path) -> None:
    doubts: list[Any] = []
    async with ActorSystem() as system:
        system.bus.subscribe(doubts.append, Doubted)
        recorder = Recorder(system, path, HEADER)
        recorder.history.add(Remark(at=0.0, who="a", text="whole"))
        for _ in range(2):
            recorder.history.add(Ran(at=0.0, tool="a", request="", arguments=object()))
        recorder.history.add(Remark(at=0.0, who="a", text="late"))
        recorder.close()
    tape = Tape(path)
    assert [entry.text for entry in tape if isinstance(entry, Remark)] == ["whole"]
    assert tape.end is not None
    assert "cannot be written" in tape.end.text
    assert len(doubts) == 1


async def test_lines_of_many_threads_are_all_written_and_none_into_another(path: Path) -> None:
    async with ActorSystem() as system:
        recorder = Recorder(system, path, HEADER)

        def write(who: str) -> None:
            for number in range(500):
                recorder.history.add(Remark(at=0.0, who=who, text=str(number)))

        await asyncio.gather(*(asyncio.to_thread(write, who) for who in "abc"))
        recorder.close()
    remarks = of_kind(path, Remark)
    for who in "abc":
        assert [int(each.text) for each in remarks if each.who == who] == list(range(500))


# --- models ---


class Fragile(Model):
    """Writes two pieces, then does something else."""

    name = "fragile"

    def __init__(self, then: Callable[[], Any]) -> None:
        self.then = then
        self.left = 0

    async def stream(self, prompt: Prompt) -> AsyncGenerator[str, None]:
        try:
            yield "one"
            yield " two"
            await self.then()
        finally:
            self.left += 1


async def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "outcome", "said"),
    [
        (UpstreamError("slow down", code=ErrorCode.UPSTREAM_RATE_LIMITED), "UPSTREAM_RATE_LIMITED", "slow down"),
        (UpstreamError("it broke off"), "UPSTREAM_ERROR", "it broke off"),
        (ValueError("a bug"), "AGENT_EXECUTION_FAILED", "ValueError: a bug"),
        (asyncio.CancelledError(), "CANCELLED", ""),
    ],
)
async def test_an_answer_that_breaks_off_is_recorded_as_far_as_it_came(
    error: BaseException, outcome: str, said: str
) -> None:
    history = History(Bus(), lambda: 1.0)
    model = Recorded(Fragile(lambda: fail(error)), history)
    with pytest.raises(type(error)):
        _ = [piece async for piece in model.stream(PROMPT)]
    (wrote,) = history.entries
    assert (wrote.pieces, wrote.outcome, wrote.error) == (("one", " two"), outcome, said)


async def test_leaving_a_recorded_stream_early_stops_the_work_behind_it() -> None:
    history = History(Bus(), lambda: 1.0)
    inner = Fragile(lambda: fail(AssertionError("it went on")))
    stream = Recorded(inner, history).stream(PROMPT)
    assert await anext(stream) == "one"
    await stream.aclose()
    (wrote,) = history.entries
    assert (wrote.pieces, wrote.outcome, inner.left) == (("one",), "CANCELLED", 1)


# --- digests ---

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
PROMPTS = st.builds(
    Prompt,
    text=st.text(min_size=1),
    schema=st.none() | st.dictionaries(st.text(), VALUES, max_size=3),
    seed=st.none() | st.integers(),
    max_tokens=st.integers(1),
    temperature=st.floats(0, 2),
    stop=st.lists(st.text()).map(tuple),
)


@settings(deadline=None)
@given(PROMPTS, PROMPTS)
def test_two_prompts_have_the_same_digest_exactly_if_they_are_equal(one: Prompt, other: Prompt) -> None:
    assert digest_of(one) == digest_of(msgspec.structs.replace(one))
    assert (digest_of(one) == digest_of(other)) is (msgspec.json.encode(one) == msgspec.json.encode(other))


def test_a_digest_looks_at_what_is_asked_and_not_at_how_it_is_put() -> None:
    assert digest_of(PROMPT) == digest_of(Prompt(text="A fish is", temperature=0.7, stop=()))
    assert digest_of(PROMPT) != digest_of(Prompt(messages=(Turn("user", "A fish is"),)))
    assert digest_of(Prompt(text="x", temperature=0)) == digest_of(Prompt(text="x", temperature=0.0))
    mixed = Prompt(text="x", schema={"type": "object", "default": None})
    assert digest_of(mixed) == digest_of(Prompt(text="x", schema={"default": None, "type": "object"}))
    assert digest_of(mixed) != digest_of(Prompt(text="x", schema={"type": "object"}))
    assert digest_of_call("a", {"x": 1, "y": 2}) == digest_of_call("a", {"y": 2, "x": 1})
    assert digest_of_call("a", {}) != digest_of_call("b", {})


def test_a_digest_is_what_the_documentation_says() -> None:
    text = b'grami/1 model\n{"seed":3,"text":"A fish is"}'
    assert digest_of(Prompt(seed=3, text="A fish is")) == hashlib.sha256(text).hexdigest()


def test_a_request_that_was_not_recorded_is_shown_beside_the_one_that_comes_nearest() -> None:
    known = [
        {"text": "Write a poem\nabout a bird", "seed": 1},
        {"text": "Write a poem\nabout a fish\nin the sea", "seed": 1},
        {"messages": [{"role": "user", "content": "hello"}]},
    ]
    shown = nearest({"text": "Write a poem\nabout a fish\nin the lake", "seed": 1}, known)
    changed = [line for line in shown.splitlines() if line[:1] in {"+", "-"}]
    assert changed == ["--- recorded", "+++ asked now", "-text: in the sea", "+text: in the lake"]
    assert nearest({"text": "x"}, []) == ""


@settings(deadline=None)
@given(VALUES, st.lists(VALUES, min_size=1, max_size=3))
def test_the_nearest_of_requests_among_which_is_the_same_is_the_same(asked: Any, others: list[Any]) -> None:
    assert nearest(asked, [*others, asked]) == ""


# --- the file ---

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def entries_of(kind: Any) -> st.SearchStrategy[Any]:
    hints = {field.name: field.type for field in msgspec.structs.fields(kind)}
    chosen: dict[Any, st.SearchStrategy[Any]] = {Any: JSON_VALUES, float: st.floats(0, 1e6)}
    return st.builds(
        kind, **{name: chosen[hint] if hint in chosen else st.from_type(hint) for name, hint in hints.items()}
    )


ENTRIES = st.one_of([entries_of(kind) for kind in get_args(AnyEntry)])


def written(entries: list[Any]) -> bytes:
    return b"".join(encoded(each) + b"\n" for each in (HEADER, *entries, End(len(entries))))


@contextmanager
def file_with(content: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.jsonl")
        path.write_bytes(content)
        yield path


@settings(deadline=None)
@given(st.lists(ENTRIES, max_size=5))
def test_every_entry_survives_the_way_through_a_file(entries: list[Any]) -> None:
    with file_with(written(entries)) as path:
        tape = Tape(path)
        assert (list(tape), tape.end, tape.torn, tape.header) == (entries, End(len(entries)), False, HEADER)
        assert list(tape) == entries, "and a second time"


@settings(deadline=None)
@given(st.lists(ENTRIES, max_size=4), st.floats(0, 1))
@example([Remark(at=1.0, who="é", text="\u2028")], 0.99)
def test_a_file_that_is_cut_at_any_byte_reads_as_its_beginning(entries: list[Any], part: float) -> None:
    content = written(entries)
    first = content.index(b"\n") + 1
    cut = first + round(part * (len(content) - first))
    with file_with(content[:cut]) as path:
        tape = Tape(path)
        read = list(tape)
        assert read == entries[: len(read)]
        assert len(read) in {content[first:cut].count(b"\n") - (cut == len(content)) + more for more in (0, 1)}
        assert tape.torn or tape.end or content[:cut].endswith((b"\n", b"}"))


def test_a_file_that_is_no_recording_is_refused_and_its_first_line_to_blame() -> None:
    for content in (b"", b"hello", b'{"kind":"life"}\n', b"[]\n", b'{"format":1}\n', b"\xff\n", encoded(HEADER)[:40]):
        with file_with(content) as path, pytest.raises(ConfigError, match="is no recording"):
            Tape(path)
    with file_with(b'{"format":"grami recording","version":1}\n') as path, pytest.raises(ConfigError, match="line 1: "):
        Tape(path)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        Tape(Path("/nowhere/at/all"))


def test_a_recording_of_a_newer_version_is_refused_by_name() -> None:
    newer = msgspec.structs.replace(HEADER, version=2, package="9.9")
    with file_with(encoded(newer)) as path, pytest.raises(ConfigError, match=r"version 2 .* grami_actors 9\.9 writes"):
        Tape(path)


def test_an_entry_of_a_kind_that_is_still_to_come_is_refused_by_name() -> None:
    line = b'{"kind":"dream","at":0}\n'
    newer = msgspec.structs.replace(HEADER, minor=MINOR + 1, package="9.9")
    for head, said in (
        (newer, r"line 2: entries of the kind 'dream' .* 9\.9 wrote"),
        (HEADER, "line 2: Invalid value"),
    ):
        with file_with(encoded(head) + b"\n" + line) as path, pytest.raises(ConfigError, match=said):
            list(Tape(path))


def test_a_field_that_is_still_to_come_is_skipped() -> None:
    line = b'{"kind":"remark","at":0,"who":"a","text":"b","mood":"glad"}\n'
    with file_with(encoded(HEADER) + b"\n" + line) as path:
        assert list(Tape(path)) == [Remark(at=0.0, who="a", text="b")]


def test_a_broken_line_is_told_with_its_number() -> None:
    good = encoded(Remark(at=0.0, who="a", text="b")) + b"\n"
    for bad in (b"{\n", b"\n", b'{"kind":"remark"}\n', b"[" * 100_000 + b"\n", b'{"kind":"end","entries":1}\n' + good):
        with file_with(encoded(HEADER) + b"\n" + good + bad + good) as path:
            tape = iter(Tape(path))
            assert next(tape) == Remark(at=0.0, who="a", text="b")
            with pytest.raises(ConfigError, match=r"line [34]: "):
                next(tape)


def test_what_is_no_plain_data_never_keeps_an_entry_from_being_told() -> None:
    loop: dict[str, Any] = {}
    loop["self"] = loop
    assert [plain(loop), plain({(1, 2): 3}), plain({"x": object()})] == ["<dict>", "<dict>", {"x": "<object>"}]


# --- the command line ---


@pytest.mark.slow
def test_grami_run_records_its_scenarios_and_overwrites_nothing(tmp_path: Path) -> None:
    ended = grami("run", SMALL, "passes", "--record", "run.jsonl", cwd=tmp_path)
    assert ended.code == 0, ended.err
    tape = Tape(tmp_path / "run.jsonl")
    entries = list(tape)
    assert (tape.header.scenarios, tape.header.file, tape.header.mode) == (("passes",), str(SMALL), "live")
    assert any(isinstance(entry, Told) and entry.to.startswith("greeter") for entry in entries)
    assert tape.end == End(len(entries))
    again = grami("run", SMALL, "passes", "--record", "run.jsonl", cwd=tmp_path)
    assert again.code != 0
    assert "run.jsonl is not empty" in again.words


@pytest.mark.slow
def test_grami_serve_records_until_it_ends(tmp_path: Path) -> None:
    with process(SMALL, "--record", "run.jsonl", cwd=tmp_path) as server:
        assert server.ask("send", "greet", "name=Ann").code == 0
        server.end(signal.SIGTERM)
    tape = Tape(tmp_path / "run.jsonl")
    entries = list(tape)
    assert any(isinstance(entry, Framed) and entry.way == "close" for entry in entries)
    assert tape.end == End(len(entries))
