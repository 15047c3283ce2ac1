"""Tools: made from typed functions, described by JSON Schema, checked, limited, and imported late."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import date
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest

from grami_actors import (
    ActorSystem,
    Agent,
    DeadlineExceeded,
    GramiError,
    Message,
    Reject,
    Swarm,
    ToolExecutionFailed,
    ToolTimeout,
    cancelled,
    connect,
    handles,
    lazy_tool,
    tool,
)
from grami_actors.errors import ProtocolError, UpstreamError
from grami_actors.messages import ToolCall
from grami_actors.telemetry import ActorFailed, DeadLetter, MessageHandled, ToolCalled
from grami_actors.tools import TIMEOUT, Tool
from tests.conftest import LANES, Gate, Recorder, running, serving

LAZY = "tests.scripts.lazy"


@pytest.fixture
def lazy_module(monkeypatch: pytest.MonkeyPatch) -> str:
    """The module of the lazy tools, not imported yet."""
    monkeypatch.delitem(sys.modules, LAZY, raising=False)
    monkeypatch.setitem(sys.modules, LAZY, None)  # so that it is forgotten again afterwards
    del sys.modules[LAZY]
    return LAZY


@asynccontextmanager
async def house(*tools: Tool[..., Any], **options: Any) -> AsyncIterator[ActorSystem]:
    """A system with these tools and nobody else."""
    async with running(**options) as system:
        await Swarm([], tools).start(system)
        yield system


async def call(system: ActorSystem, name: str, **arguments: Any) -> Any:
    return await system.ask(f"tool:{name}", ToolCall(arguments))


# --- how one is made ---


def test_a_tool_is_made_with_or_without_options_and_is_still_the_function() -> None:
    @tool
    def plain(number: int) -> int:
        return number + 1

    @tool(name="renamed", lane="loop", timeout=5, concurrency=3, mailbox=7)
    def configured(number: int) -> int:
        return number + 2

    @tool
    async def coroutine(number: int) -> int:
        return number + 3

    direct = tool(partial_target)
    assert (plain(1), configured(1), asyncio.run(coroutine(1)), direct(1)) == (2, 3, 4, 5)
    assert [each.name for each in (plain, configured, coroutine, direct)] == [
        "plain",
        "renamed",
        "coroutine",
        "partial_target",
    ]
    assert (plain.lane, plain.timeout, plain.concurrency, plain.mailbox) == ("thread", TIMEOUT, 1, 1_000)
    assert (configured.lane, configured.timeout, configured.concurrency, configured.mailbox) == ("loop", 5, 3, 7)
    assert coroutine.lane == "loop"
    assert repr(configured) == "<tool renamed>"


def partial_target(number: int) -> int:
    return number + 4


@pytest.mark.parametrize("options", [{"timeout": 0}, {"timeout": -1}, {"concurrency": 0}, {"mailbox": 0}])
def test_limits_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="timeout is more than 0 seconds, its concurrency and mailbox at least 1"):
        tool(**options)(partial_target)


def test_an_option_that_does_not_exist_is_refused() -> None:
    with pytest.raises(TypeError, match="retries"):
        tool(retries=3)(partial_target)  # type: ignore[call-overload]


@pytest.mark.parametrize("path", ["json", "json.loads", ":loads", "json:", ""])
def test_a_lazy_tool_is_named_by_module_and_function(path: str) -> None:
    with pytest.raises(ValueError, match=r"a lazy tool is named like 'package.module:function'"):
        lazy_tool(path)


def test_what_json_cannot_pass_cannot_be_a_parameter() -> None:
    def positional(number: int, /) -> None: ...
    def variadic(*numbers: int) -> None: ...
    def keywords(**numbers: int) -> None: ...
    def untyped(number) -> None: ...

    for function in (positional, variadic, keywords):
        with pytest.raises(TypeError, match=f"{function.__name__}: a tool is called by keyword"):
            tool(function)
    with pytest.raises(TypeError, match="untyped: the parameter 'number' needs a type annotation"):
        tool(untyped)


# --- schemas and arguments ---


class Author(msgspec.Struct):
    name: str
    age: Annotated[int, msgspec.Meta(ge=0, le=150)] = 30


class Article(msgspec.Struct):
    title: Annotated[str, msgspec.Meta(min_length=1, description="What stands on top.")]
    author: Author


@tool
def publish(
    articles: list[Article],
    kind: Literal["draft", "final"] = "draft",
    *,
    day: date = date(2024, 2, 29),
    tags: list[str],
    note: str | None = None,
) -> dict[str, int]:
    """Publish articles.

    With more to say about it.
    """
    assert all(isinstance(each, Article) for each in articles)
    assert isinstance(day, date)
    return {"articles": len(articles), "tags": len(tags), "day": day.day}


def test_the_schema_comes_from_the_signature() -> None:
    described = publish.describe()
    assert described.description == "Publish articles.\n\nWith more to say about it."
    assert (described.lane, described.timeout_ms, described.concurrency, described.error) == ("thread", 30_000, 1, None)
    assert described.parameters is not None
    schema = described.parameters["$defs"]["publish"]
    assert schema["required"] == ["articles", "tags"]
    assert schema["additionalProperties"] is False
    assert schema["properties"] == {
        "articles": {"type": "array", "items": {"$ref": "#/$defs/Article"}},
        "kind": {"enum": ["draft", "final"], "default": "draft"},
        "day": {"type": "string", "format": "date", "default": "2024-02-29"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
    }
    definitions = described.parameters["$defs"]
    assert definitions["Article"]["properties"]["title"] == {
        "type": "string",
        "minLength": 1,
        "description": "What stands on top.",
    }
    assert definitions["Author"]["properties"]["age"] == {
        "type": "integer",
        "minimum": 0,
        "maximum": 150,
        "default": 30,
    }
    assert described.returns == {"type": "object", "additionalProperties": {"type": "integer"}}


def test_a_default_that_is_a_list_stands_in_the_schema() -> None:
    @tool
    def tagged(tags: list[str] = ["one"], others: list[str] = []) -> None:  # noqa: B006 - what is tested
        """Take tags."""

    parameters = tagged.describe().parameters
    assert parameters is not None
    fields = parameters["$defs"]["tagged"]["properties"]
    assert (fields["tags"]["default"], fields["others"]["default"]) == (["one"], [])


def test_a_type_without_a_schema_does_not_hide_the_tool() -> None:
    @tool
    def odd(number: int) -> threading.Lock:  # type: ignore[valid-type]
        """Give something odd."""
        return threading.Lock()

    described = odd.describe()
    assert described.returns is None
    assert described.parameters is not None
    assert described.description == "Give something odd."


async def test_arguments_are_converted_to_the_types_of_the_signature() -> None:
    async with house(publish) as system:
        articles = [{"title": "One", "author": {"name": "Ann"}}]
        assert await call(system, "publish", articles=articles, day="2024-01-05", tags=["#one"]) == {
            "articles": 1,
            "tags": 1,
            "day": 5,
        }


def test_a_default_that_is_a_list_is_used_when_nothing_is_given() -> None:
    @tool
    def tagged(tags: list[str] = ["one"]) -> list[str]:  # noqa: B006 - what is tested
        return tags

    assert tagged.convert({}) == {"tags": ["one"]}
    assert tagged.convert({"tags": []}) == {"tags": []}


WRONG = {
    "a wrong type": ({"articles": 5, "tags": []}, "$.articles"),
    "one deep inside": ({"articles": [{"title": "x", "author": {"name": 5}}], "tags": []}, "$.articles[0].author.name"),
    "one outside its bounds": (
        {"articles": [{"title": "x", "author": {"name": "x", "age": 200}}], "tags": []},
        "$.articles[0].author.age",
    ),
    "an empty text": ({"articles": [{"title": "", "author": {"name": "x"}}], "tags": []}, "$.articles[0].title"),
    "not one of the values": ({"articles": [], "tags": [], "kind": "public"}, "$.kind"),
    "not a date": ({"articles": [], "tags": [], "day": "tomorrow"}, "$.day"),
}


@pytest.mark.parametrize("flaw", WRONG)
async def test_a_wrong_argument_is_answered_with_its_path(flaw: str) -> None:
    arguments, path = WRONG[flaw]
    async with house(publish) as system:
        failed = Recorder(system, ActorFailed)
        with pytest.raises(ProtocolError) as refused:
            await call(system, "publish", **arguments)
        assert refused.value.error_code == "VALIDATION_FAILED"
        assert refused.value.message.startswith("publish: ")
        assert path in refused.value.message
        assert failed.events == []


@pytest.mark.parametrize("flaw", [*WRONG, "missing"])
def test_the_param_of_a_wrong_argument_is_the_path_of_the_field(flaw: str) -> None:
    arguments, path = WRONG.get(flaw, ({}, "$.articles"))
    with pytest.raises(ProtocolError) as refused:
        publish.convert(arguments)
    assert refused.value.param == f"$.arguments{path.removeprefix('$')}"


@pytest.mark.parametrize("arguments", [{}, {"articles": [], "tags": [], "artciles": []}])
def test_a_missing_and_an_unknown_argument_are_named(arguments: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match="articles" if not arguments else "artciles"):
        publish.convert(arguments)


async def test_a_message_that_is_no_call_is_refused() -> None:
    class Odd(Message):
        pass

    async with house(publish) as system:
        with pytest.raises(ProtocolError, match="tool:publish takes messages of type 'tool_call'"):
            await system.ask("tool:publish", Odd())


# --- lazy tools ---


async def test_a_lazy_tool_is_not_imported_before_its_first_use(lazy_module: str) -> None:
    async with serving(Swarm([], [lazy_tool(f"{lazy_module}:reverse")])) as manager, connect(manager.url) as grami:
        assert lazy_module not in sys.modules
        assert await grami.request("tool_call", to="tool:reverse", arguments={"text": "abc"}) == "cba"
        assert lazy_module in sys.modules


async def test_describe_imports_lazy_tools(lazy_module: str) -> None:
    async with serving(Swarm([], [lazy_tool(f"{lazy_module}:reverse")])) as manager, connect(manager.url) as grami:
        assert lazy_module not in sys.modules
        described = (await grami.describe())["tools"][0]
        assert described["description"] == "Turn a text round."
        assert described["parameters"]["$defs"]["reverse"]["required"] == ["text"]
        assert lazy_module in sys.modules


def test_a_lazy_tool_has_the_options_it_is_given_and_the_name_of_its_function(lazy_module: str) -> None:
    lazy = lazy_tool(f"{lazy_module}:Box.inside", timeout=9, concurrency=2, lane="loop")
    assert (lazy.name, lazy.timeout, lazy.concurrency, lazy.lane) == ("inside", 9, 2, "loop")
    assert lazy_module not in sys.modules
    assert lazy(text="x") == "[x]"


async def test_a_lazy_tool_may_be_a_decorated_tool_or_a_coroutine_function(lazy_module: str) -> None:
    async with house(lazy_tool(f"{lazy_module}:decorated"), lazy_tool(f"{lazy_module}:coroutine")) as system:
        assert await call(system, "decorated", number=4) == 8
        assert await call(system, "coroutine", text="loud") == "LOUD"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("no_such_module_at_all:run", "no_such_module_at_all"),
        (f"{LAZY}:missing", "missing"),
        ("json:loads", "annotation"),
    ],
)
@pytest.mark.parametrize("lane", LANES)
async def test_a_lazy_tool_that_cannot_be_imported_answers_so_each_time(path: str, words: str, lane: Any) -> None:
    broken = lazy_tool(path, name="broken", lane=lane)
    async with house(broken) as system:
        failed = Recorder(system, ActorFailed)
        for _ in range(2):
            with pytest.raises(ToolExecutionFailed, match=words):
                await call(system, "broken")
        assert failed.events == []
    described = broken.describe()
    assert described.error is not None
    assert described.error.startswith("cannot be imported: ")
    assert words in described.error
    assert (described.parameters, described.description) == (None, "")


async def test_two_first_calls_at_the_same_time_import_once(lazy_module: str) -> None:
    lazy = lazy_tool(f"{lazy_module}:reverse", concurrency=8)
    async with house(lazy) as system:
        texts = [f"text {number}" for number in range(50)]
        assert await asyncio.gather(*(call(system, "reverse", text=text) for text in texts)) == [
            text[::-1] for text in texts
        ]


EXITS = """
import asyncio
from grami_actors import GrowthManager, Swarm, connect, lazy_tool

async def main():
    async with GrowthManager(Swarm([], [lazy_tool("exiting_module:run")]), publish=False) as manager:
        async with connect(manager.url) as grami:
            print((await grami.describe())["tools"][0]["error"])
            await grami.ping()
            print("alive")

asyncio.run(main())
"""


async def test_a_lazy_module_that_exits_does_not_take_the_server_with_it(tmp_path: Path) -> None:
    (tmp_path / "exiting_module.py").write_text("raise SystemExit(3)\n")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        EXITS,
        env=os.environ | {"PYTHONPATH": f"{Path(__file__).parents[1]}{os.pathsep}{tmp_path}"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    printed, _ = await process.communicate()
    assert process.returncode == 0
    assert printed.decode().splitlines() == ["cannot be imported: SystemExit: 3", "alive"]


# --- failures ---


@pytest.mark.parametrize("lane", LANES)
async def test_what_a_tool_raises_is_its_answer_and_the_tool_goes_on(lane: Any) -> None:
    @tool(lane=lane)
    def picky(how: str) -> str:
        if how == "raise":
            raise KeyError("missing")
        if how == "reject":
            raise Reject("UPSTREAM_RATE_LIMITED", "slower, please")
        if how == "upstream":
            raise UpstreamError("the service is away", retry_after_ms=500)
        return how

    async with house(picky) as system:
        failed = Recorder(system, ActorFailed)
        with pytest.raises(ToolExecutionFailed, match="the tool picky failed: KeyError: 'missing'") as raised:
            await call(system, "picky", how="raise")
        assert isinstance(raised.value.__cause__, KeyError)
        with pytest.raises(Reject, match="slower, please") as rejected:
            await call(system, "picky", how="reject")
        assert rejected.value.error_code == "UPSTREAM_RATE_LIMITED"
        with pytest.raises(UpstreamError) as away:
            await call(system, "picky", how="upstream")
        assert away.value.retry_after_ms == 500
        assert await call(system, "picky", how="fine") == "fine"
        assert failed.events == []


async def test_a_coroutine_that_raises_is_answered_like_a_function() -> None:
    @tool
    async def broken() -> None:
        await asyncio.sleep(0)
        raise RuntimeError

    async with house(broken) as system:
        with pytest.raises(ToolExecutionFailed, match=r"the tool broken failed: RuntimeError$"):
            await call(system, "broken")


# --- limits ---


@pytest.mark.parametrize("limit", [1, 3])
async def test_a_concurrency_limit_holds_and_is_used_to_the_full_on_threads(limit: int) -> None:
    together, lock, now, most = threading.Barrier(limit), threading.Lock(), 0, 0

    @tool(lane="thread", concurrency=limit)
    def busy() -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        together.wait(10)  # passes only when as many as may run are in here at the same time
        with lock:
            now -= 1

    async with house(busy) as system:
        await asyncio.gather(*(call(system, "busy") for _ in range(limit * 4)))
    assert (now, most) == (0, limit)


@pytest.mark.parametrize("limit", [1, 3])
async def test_a_concurrency_limit_holds_and_is_used_to_the_full_on_the_loop(limit: int) -> None:
    together, now, most = asyncio.Barrier(limit), 0, 0

    @tool(concurrency=limit)
    async def busy() -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await together.wait()
        now -= 1

    async with house(busy) as system:
        await asyncio.gather(*(call(system, "busy") for _ in range(limit * 4)))
    assert (now, most) == (0, limit)


async def test_calls_beyond_the_mailbox_wait_in_order() -> None:
    seen = []

    @tool(mailbox=1)
    async def slowly(number: int) -> int:
        await asyncio.sleep(0)
        seen.append(number)
        return number

    async with house(slowly) as system:
        assert await asyncio.gather(*(call(system, "slowly", number=number) for number in range(20))) == list(range(20))
        assert seen == list(range(20))


async def test_a_coroutine_tool_that_is_too_slow_is_cancelled() -> None:
    ended = asyncio.Event()

    @tool(timeout=0.02)
    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with house(slow) as system:
        with pytest.raises(ToolTimeout, match=r"the tool slow did not end within 0.02 s; it may have acted") as late:
            await call(system, "slow")
        assert late.value.retryable
        await ended.wait()


async def test_a_thread_tool_that_is_too_slow_is_told_and_its_late_result_is_a_dead_letter() -> None:
    gate = Gate()
    told = threading.Event()

    @tool(timeout=0.02)
    def slow() -> str:
        gate.hold()
        if cancelled():
            told.set()
        return "too late"

    async with house(slow) as system:
        letters = Recorder(system, DeadLetter)
        calls = Recorder(system, ToolCalled)
        with pytest.raises(ToolTimeout):
            await call(system, "slow")
        assert letters.events == []
        gate.opened.set()
        letter = await letters.first(DeadLetter)
        assert (letter.to, letter.reason) == ("tool:slow", "late_reply")
        assert told.is_set()
        assert (await calls.first(ToolCalled)).outcome == "TOOL_TIMEOUT"


async def test_the_time_a_call_waits_does_not_count() -> None:
    gate = Gate()

    @tool(timeout=0.1)
    async def held(wait: bool) -> str:
        if wait:
            await asyncio.get_running_loop().run_in_executor(None, gate.hold)
        return "in time"

    async with house(held, clock=lambda: 0.0) as system:
        first = asyncio.create_task(call(system, "held", wait=True))
        await gate.until_entered()
        second = asyncio.create_task(call(system, "held", wait=False))
        with pytest.raises(ToolTimeout):
            await first
        gate.opened.set()
        assert await second == "in time"


async def test_the_deadline_of_the_caller_is_shorter_than_the_tools_own() -> None:
    @tool(timeout=10)
    async def slow() -> None:
        await asyncio.Event().wait()

    async with house(slow) as system:
        with pytest.raises(DeadlineExceeded):
            await system.ask("tool:slow", ToolCall(), timeout=0.02)


async def test_a_tool_that_is_told_and_too_slow_does_not_end_the_request_of_its_sender() -> None:
    class Go(Message):
        pass

    timed_out = asyncio.Event()

    @tool(timeout=0.02)
    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            timed_out.set()

    class Sender(Agent):
        @handles(Go)
        async def go(self, message: Go) -> str:
            self.tell("tool:slow", ToolCall())
            await timed_out.wait()
            await asyncio.sleep(0)
            return "unharmed"

    async with running() as system:
        await Swarm([Sender], [slow]).start(system)
        assert await system.ask("sender", Go()) == "unharmed"


# --- telemetry ---


async def test_a_tool_call_is_told_with_its_caller_its_wait_and_its_outcome() -> None:
    class Go(Message):
        pass

    gate = Gate()
    now = 100.0

    @tool
    async def held() -> None:
        await gate.wait_async()

    class Caller(Agent, concurrency=2):
        @handles(Go)
        async def go(self, message: Go) -> None:
            await self.call(held)

    async with running(clock=lambda: now) as system:
        await Swarm([Caller], [held]).start(system)
        calls = Recorder(system, ToolCalled)
        handled = Recorder(system, MessageHandled)
        both = asyncio.gather(system.ask("caller", Go()), system.ask("caller", Go()))
        await gate.until_entered()
        while len(system.table.cells["tool:held"].mailbox) < 1:  # noqa: ASYNC110 - the second call is on its way
            await asyncio.sleep(0)
        now = 105.0
        gate.opened.set()
        await both
        first, second = calls.events
        assert (first.tool, first.caller, first.outcome) == ("held", "caller", "ok")
        assert (first.queue_wait, first.duration) == (0.0, 5.0)
        assert (second.caller, second.queue_wait, second.duration) == ("caller", 5.0, 0.0)
        assert {event.sender for event in handled.events if event.actor == "tool:held"} == {"caller"}


@pytest.mark.parametrize("lane", LANES)
async def test_every_outcome_of_a_tool_is_told(lane: Any) -> None:
    @tool(lane=lane)
    def picky(number: int) -> int:
        return 1 // number

    async with house(picky) as system:
        calls = Recorder(system, ToolCalled)
        await call(system, "picky", number=1)
        for arguments in ({"number": 0}, {"number": "x"}):
            with pytest.raises(GramiError):
                await call(system, "picky", **arguments)
        await calls.until(lambda events: len(events) == 3)
        assert [event.outcome for event in calls.events] == ["ok", "TOOL_EXECUTION_FAILED", "VALIDATION_FAILED"]


async def test_what_a_thread_did_is_told_before_its_caller_has_the_answer() -> None:
    answered, too_late = threading.Event(), []

    @tool(lane="thread")
    def quick() -> None:
        """End at once."""

    def slow_listener(event: MessageHandled) -> None:
        if event.actor == "tool:quick":
            too_late.append(answered.wait(0.25))

    async with house(quick) as system:
        system.bus.subscribe(slow_listener, MessageHandled)
        await call(system, "quick")
        answered.set()
    assert too_late == [False]


async def test_a_call_that_is_cancelled_is_told_as_cancelled() -> None:
    entered = asyncio.Event()

    @tool
    async def endless() -> None:
        entered.set()
        await asyncio.Event().wait()

    async with house(endless) as system:
        calls = Recorder(system, ToolCalled)
        waiting = asyncio.create_task(call(system, "endless"))
        await entered.wait()
        waiting.cancel()
        assert (await calls.first(ToolCalled)).outcome == "CANCELLED"


# --- called by an agent ---


class Use(Message):
    how: str


@tool
def slice_of(text: str, length: int = 3) -> str:
    """Give the beginning of a text."""
    return text[:length]


class User(Agent):
    """Calls tools in several ways."""

    @handles(Use)
    async def use(self, message: Use) -> Any:
        match message.how:
            case "by object":
                return await self.call(slice_of, text="abcdef")
            case "by name":
                return await self.call("slice_of", text="abcdef", length=1)
            case "wrongly":
                return await self.call(slice_of, txt="abcdef")
            case _:
                return await self.call("nobody")


async def test_an_agent_calls_a_tool_by_object_or_by_name() -> None:
    async with running() as system:
        await Swarm([User], [slice_of]).start(system)
        assert await system.ask("user", Use("by object")) == "abc"
        assert await system.ask("user", Use("by name")) == "a"
        with pytest.raises(ProtocolError, match="txt"):
            await system.ask("user", Use("wrongly"))
        with pytest.raises(GramiError, match="no agent or tool is named 'tool:nobody'") as nobody:
            await system.ask("user", Use("unknown"))
        assert nobody.value.error_code == "DESTINATION_NOT_FOUND"


async def test_a_tool_may_have_a_parameter_named_timeout() -> None:
    class Go(Message):
        pass

    @tool
    def wait_for(timeout: float) -> float:
        return timeout

    class Waiter(Agent):
        @handles(Go)
        async def go(self, message: Go) -> float:
            return float(await self.ask("tool:wait_for", ToolCall({"timeout": 7.5})))

    async with running() as system:
        await Swarm([Waiter], [wait_for]).start(system)
        assert await system.ask("waiter", Go()) == 7.5


def test_a_partial_can_be_a_tool_when_it_is_named() -> None:
    assert tool(name="five")(partial(partial_target, number=5)).convert({}) == {"number": 5}
