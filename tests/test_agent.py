"""Agents: which method handles what, what a class may say about itself, and what a handler can do."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import msgspec
import pytest

from grami_actors import (
    Actor,
    Agent,
    AgentExecutionFailed,
    Cancelled,
    GramiError,
    Message,
    RestartPolicy,
    StartFailed,
    Swarm,
    connect,
    emit,
    handles,
    progress,
    tool,
)
from grami_actors.errors import NameTaken
from grami_actors.future import Future, current_scope
from grami_actors.telemetry import ActorRestarted, ActorStopped, DeadLetter, MessageHandled
from tests.conftest import LANES, Gate, Recorder, on, running, serving


class Ask(Message):
    text: str = ""


class Other(Message):
    text: str = ""


class Third(Message):
    text: str = ""


# --- who handles what ---


def test_handles_takes_message_types_and_nothing_else() -> None:
    for wrong in ((), ("ask",), (Ask(),), (int,), (msgspec.Struct,), (Ask, int)):
        with pytest.raises(TypeError, match=r"@handles\(...\) takes the message types"):
            handles(*wrong)  # type: ignore[arg-type]


def test_two_methods_cannot_handle_one_type() -> None:
    with pytest.raises(TypeError, match="Twice: both first and second handle Ask"):

        class Twice(Agent):
            @handles(Ask)
            def first(self, message: Ask) -> None: ...

            @handles(Other, Ask)
            def second(self, message: Ask | Other) -> None: ...


async def test_one_method_can_handle_several_types_and_others_are_refused() -> None:
    class Both(Agent):
        @handles(Ask, Other)
        def both(self, message: Ask | Other) -> str:
            return type(message).__name__

    async with running() as system:
        both = await system.spawn(Both, name="both")
        assert (await system.ask(both, Ask()), await system.ask(both, Other())) == ("Ask", "Other")
        with pytest.raises(GramiError, match="both does not handle Third") as refused:
            await system.ask(both, Third())
        assert refused.value.error_code == "UNKNOWN_TYPE"


async def test_a_client_that_sends_a_type_to_the_wrong_agent_is_told_so() -> None:
    class One(Agent):
        @handles(Ask)
        def ask_one(self, message: Ask) -> str:
            return "one"

    class Two(Agent):
        @handles(Other)
        def ask_two(self, message: Other) -> str:
            return "two"

    async with serving(Swarm([One, Two])) as manager, connect(manager.url) as grami:
        with pytest.raises(GramiError, match="two does not handle Ask") as refused:
            await grami.request(Ask(), to="two")
        assert refused.value.error_code == "UNKNOWN_TYPE"


class Base(Agent):
    @handles(Ask)
    def ask_it(self, message: Ask) -> str:
        return "base"

    @handles(Other)
    def other(self, message: Other) -> str:
        return "base other"


class Overriding(Base):
    def ask_it(self, message: Ask) -> str:
        return "overriding"


class Replacing(Base):
    @handles(Ask, Third)
    def elsewhere(self, message: Ask | Third) -> str:
        return "replacing"


class Second(Agent):
    @handles(Third)
    def third(self, message: Third) -> str:
        return "second"


class Mixin:
    @handles(Third)
    def third(self, message: Third) -> str:
        return "mixin"


@pytest.mark.parametrize(
    ("kind", "answers"),
    [
        (Base, {Ask: "base", Other: "base other"}),
        (Overriding, {Ask: "overriding", Other: "base other"}),
        (Replacing, {Ask: "replacing", Other: "base other", Third: "replacing"}),
    ],
)
async def test_handlers_are_inherited_overridden_and_replaced(kind: type[Agent], answers: dict[Any, str]) -> None:
    async with running() as system:
        ref = await system.spawn(kind)
        assert {each: await system.ask(ref, each()) for each in answers} == answers
        assert set(kind.handlers) == set(answers)
        assert set(Base.handlers) == {Ask, Other}


@pytest.mark.parametrize(("bases", "answer"), [((Base, Second), "second"), ((Mixin, Base), "mixin")])
async def test_the_handlers_of_every_base_are_inherited(bases: tuple[type, ...], answer: str) -> None:
    kind: Any = type("Joined", bases, {})
    async with running() as system:
        ref = await system.spawn(kind)
        assert await system.ask(ref, Ask()) == "base"
        assert await system.ask(ref, Third()) == answer


# --- what a class says about itself ---


def test_class_options_are_set_and_inherited() -> None:
    policy = RestartPolicy(intensity=9)

    class Parent(
        Agent,
        name="somebody",
        instances=2,
        lane="thread",
        mailbox=5,
        overflow="drop_oldest",
        concurrency=3,
        restart=policy,
        subscribes=("news",),
    ): ...

    class ChildOfHTTPServer(Parent, mailbox=6): ...

    assert (Parent.agent_name, Parent.instances, Parent.lane, Parent.mailbox) == ("somebody", 2, "thread", 5)
    assert (Parent.overflow, Parent.concurrency, Parent.restart) == ("drop_oldest", 3, policy)
    assert Parent.subscribes == ("news",)
    assert (ChildOfHTTPServer.mailbox, ChildOfHTTPServer.instances) == (6, 2)
    assert (ChildOfHTTPServer.lane, ChildOfHTTPServer.subscribes) == ("thread", ("news",))
    assert ChildOfHTTPServer.agent_name == "child_of_http_server"


def test_an_unknown_class_option_is_refused_with_those_that_exist() -> None:
    with pytest.raises(TypeError, match=r"Wrong: unknown option 'concurency'; known are .*concurrency") as refused:

        class Wrong(Agent, concurency=2): ...

    assert "mailbox" in str(refused.value)


def test_the_options_that_exist_are_all_named() -> None:
    with pytest.raises(TypeError, match="instances"):

        class Wrong(Agent, instance=2): ...


@pytest.mark.parametrize("instances", [0, -1])
def test_an_agent_has_at_least_one_instance(instances: int) -> None:
    with pytest.raises(ValueError, match="Nobody: an agent has at least one instance"):

        class Nobody(Agent, instances=instances): ...


@pytest.mark.parametrize(
    "option", [{"lane": "moon"}, {"pool": "lottery"}, {"overflow": "explode"}, {"concurrency": 0}, {"mailbox": 0}]
)
def test_an_option_with_a_value_that_cannot_be_is_refused_where_it_stands(option: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):

        class Wrong(Agent, **option): ...


# --- what a handler may be, and give ---


@pytest.mark.parametrize("lane", LANES)
async def test_a_handler_is_a_function_a_coroutine_or_gives_a_future(lane: str) -> None:
    class Helper(Agent):
        @handles(Other)
        async def help(self, message: Other) -> str:
            return f"helped {message.text}"

    class Many(Agent):
        @handles(Ask)
        def plain(self, message: Ask) -> str:
            return f"plain {message.text}"

        @handles(Other)
        async def coroutine(self, message: Other) -> str:
            await asyncio.sleep(0)
            return f"coroutine {message.text}"

        @handles(Third)
        def future(self, message: Third) -> Future[str]:
            return self.ask("helper", Other(message.text))

    async with running() as system:
        await system.spawn(Helper, name="helper")
        many = await system.spawn(on(lane, Many))
        assert await system.ask(many, Ask("x")) == "plain x"
        assert await system.ask(many, Other("y")) == "coroutine y"
        assert await system.ask(many, Third("z")) == "helped z"


async def test_an_answer_is_anything_that_msgspec_can_write() -> None:
    class Point(msgspec.Struct):
        x: int

    class Giver(Agent):
        @handles(Ask)
        def give(self, message: Ask) -> Any:
            return {"none": None, "point": Point(1), "list": [1, 2.5, "x"], "set": {1}, "bytes": b"x"}[message.text]

    async with serving(Swarm([Giver])) as manager, connect(manager.url) as grami:
        expected = {"none": None, "point": {"x": 1}, "list": [1, 2.5, "x"], "set": [1], "bytes": "eA=="}
        assert {name: await grami.request("ask", text=name) for name in expected} == expected


async def test_what_another_agent_raises_is_a_grami_error_with_its_cause() -> None:
    class Faulty(Agent):
        @handles(Other)
        def fail(self, message: Other) -> None:
            raise LookupError("not here")

    class Asker(Agent):
        @handles(Ask)
        async def try_it(self, message: Ask) -> str:
            try:
                await self.ask("faulty", Other())
            except AgentExecutionFailed as error:
                return f"{error.message} ({type(error.__cause__).__name__})"
            return "no error"

    async with running() as system:
        await system.spawn(Faulty, name="faulty")
        asker = await system.spawn(Asker)
        assert await system.ask(asker, Ask()) == "faulty failed: LookupError: not here (LookupError)"


# --- children ---


class Child(Actor):
    """Says its name."""

    def on_receive(self, message: Any) -> str:
        return self.name


class Parent(Agent):
    """Starts children from its handlers."""

    restart = RestartPolicy(shortest=0.0, longest=0.0)

    @handles(Ask)
    async def have(self, message: Ask) -> str:
        child = await self.spawn(Child, name=message.text)
        return str(await child.ask("who are you?", block=False))

    @handles(Other)
    def fail(self, message: Other) -> None:
        raise ValueError("on purpose")


@pytest.mark.parametrize("lane", LANES)
async def test_a_handler_can_start_children_that_end_with_their_parent(lane: str) -> None:
    async with running() as system:
        stopped = Recorder(system, ActorStopped)
        parent = await system.spawn(on(lane, Parent), name="parent")
        assert await system.ask(parent, Ask("ann")) == "parent/ann"
        assert await system.ask(parent, Ask("bob")) == "parent/bob"
        assert await system.ask("parent/ann", "again") == "parent/ann"
        with pytest.raises(NameTaken, match="'parent/ann' is taken"):
            await system.ask(parent, Ask("ann"))
        assert [child.name for child in system.tree()[-1].children] == ["parent/ann", "parent/bob"]
        await system.stop(parent)
        assert [event.actor for event in stopped.events] == ["parent/bob", "parent/ann", "parent"]


async def test_the_children_of_a_parent_that_restarts_are_gone() -> None:
    async with running() as system:
        restarted = Recorder(system, ActorRestarted)
        parent = await system.spawn(Parent, name="parent")
        await system.ask(parent, Ask("ann"))
        system.tell(parent, Other())
        await restarted.first(ActorRestarted)
        assert system.tree()[-1].children == ()
        assert await system.ask(parent, Ask("ann")) == "parent/ann"


async def test_a_child_that_cannot_start_is_an_error_for_its_parent_only() -> None:
    class Stillborn(Actor):
        def on_start(self) -> None:
            raise OSError("no air")

    class Unlucky(Agent):
        @handles(Ask)
        async def have(self, message: Ask) -> str:
            try:
                await self.spawn(Stillborn, name="child")
            except StartFailed as error:
                return error.message
            return "alive"

    async with running() as system:
        parent = await system.spawn(Unlucky, name="parent")
        assert "OSError: no air" in await system.ask(parent, Ask())
        assert set(system.table.cells) == {"router", "parent"}


# --- streams through several agents ---


@tool
async def reporting(text: str) -> str:
    """Report, and emit."""
    progress(0.75, "the tool")
    emit(f"{text} from the tool")
    return text


@tool(lane="thread")
def reporting_thread(text: str) -> str:
    """Report from a thread."""
    progress(0.9, "the thread")
    emit(f"{text} from the thread")
    return text


class Inner(Agent):
    """Asked by another agent."""

    @handles(Other)
    async def work(self, message: Other) -> str:
        self.progress(0.5, "inside")
        self.emit("inner ")
        return message.text


class Outer(Agent):
    """Asked by the client."""

    @handles(Ask)
    async def work(self, message: Ask) -> str:
        self.progress(0.25, "outside")
        self.emit("outer ")
        await self.ask("inner", Other("x"))
        await self.call(reporting, text="word")
        await self.call(reporting_thread, text="word")
        return "whole"

    @handles(Third)
    async def read(self, message: Third) -> list[str]:
        chunks = [chunk async for chunk in self.stream("inner", Other("x"))]
        self.emit("only mine")
        return chunks


async def test_progress_and_chunks_of_agents_and_tools_further_in_reach_the_client() -> None:
    async with serving(Swarm([Outer, Inner], [reporting, reporting_thread])) as manager, connect(manager.url) as grami:
        frames = [frame async for frame in grami.stream("ask")]
        assert [frame.source for frame in frames if frame.type == "response.started"] == ["outer"]
        assert [(frame.progress, frame.message) for frame in frames if frame.type == "response.progress"] == [
            (0.25, "outside"),
            (0.5, "inside"),
            (0.75, "the tool"),
            (0.9, "the thread"),
        ]
        assert [frame.data for frame in frames if frame.type == "response.chunk"] == [
            "outer ",
            "inner ",
            "word from the tool",
            "word from the thread",
        ]
        assert frames[-1].data == "whole"


async def test_chunks_that_an_agent_reads_itself_stay_with_it_but_progress_goes_on_to_the_client() -> None:
    async with serving(Swarm([Outer, Inner])) as manager, connect(manager.url) as grami:
        frames = [frame async for frame in grami.stream("third")]
        assert [frame.data for frame in frames if frame.type == "response.chunk"] == ["only mine"]
        assert [frame.message for frame in frames if frame.type == "response.progress"] == ["inside"]
        assert frames[-1].data == ["inner "]


async def test_without_a_stream_emitting_does_nothing() -> None:
    emit("outside of any handler")
    progress(0.5, "outside of any handler")
    async with serving(Swarm([Outer, Inner], [reporting, reporting_thread])) as manager, connect(manager.url) as grami:
        assert await grami.request("ask") == "whole"


# --- what a request gives to everything it causes ---


class Scopes(Agent, concurrency=2):
    """Asks the next one, and tells what it sees of the request itself."""

    def __init__(self, to: str = "") -> None:
        super().__init__()
        self.to = to

    @handles(Ask)
    async def pass_on(self, message: Ask) -> list[tuple[float, str]]:
        scope = current_scope()
        assert scope is not None
        further = await self.ask(self.to, message, timeout=1_000) if self.to else []
        return [(scope.deadline, scope.trace_id), *further]


async def test_the_deadline_and_the_trace_are_inherited_over_two_hops() -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"

    class First(Scopes): ...

    class Next(Scopes): ...

    class Last(Scopes): ...

    swarm = Swarm([partial(First, "next"), partial(Next, "last"), Last])
    async with serving(swarm) as manager, connect(manager.url) as grami:
        before = manager.system.now()
        meta = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
        seen = await grami.request("ask", timeout=7, meta=meta)
        after = manager.system.now()
        assert len(seen) == 3
        assert {trace_id for _, trace_id in seen} == {trace}
        assert len({deadline for deadline, _ in seen}) == 1, "nobody can extend it"
        assert before + 7 <= seen[0][0] <= after + 7


async def test_a_shorter_deadline_of_an_ask_holds_for_what_it_causes_and_no_further() -> None:
    class Shortening(Scopes):
        @handles(Ask)
        async def pass_on(self, message: Ask) -> list[Any]:
            mine = current_scope()
            assert mine is not None
            return [mine.deadline, await self.ask(self.to, message, timeout=1)]

    async with running(clock=lambda: 50.0) as system:
        await system.spawn(Scopes, name="last")
        await system.spawn(Scopes, "last", name="next")
        first = await system.spawn(Shortening, "next", name="first")
        deadline, further = await system.ask(first, Ask(), timeout=7)
        assert deadline == 57.0
        assert [each for each, _ in further] == [51.0, 51.0]


async def test_cancelling_reaches_the_last_of_three_agents_and_a_detached_message_is_spared() -> None:
    gate = Gate()
    done = asyncio.Event()

    class Last(Agent):
        @handles(Third)
        async def hold(self, message: Third) -> None:
            await gate.wait_async()

    class Spared(Agent):
        @handles(Other)
        async def note(self, message: Other) -> None:
            await gate.until_entered()
            scope = current_scope()
            assert scope is None
            done.set()

    class Middle(Agent):
        @handles(Other)
        async def pass_on(self, message: Other) -> None:
            self.tell("spared", Other(), detached=True)
            await self.ask("last", Third())

    class First(Agent):
        @handles(Ask)
        async def pass_on(self, message: Ask) -> None:
            await self.ask("middle", Other())

    async with running() as system:
        for kind in (Last, Spared, Middle, First):
            await system.spawn(kind, name=kind.agent_name)
        handled = Recorder(system, MessageHandled)
        future = system.table.cells["first"].ask(Ask())
        await gate.until_entered()
        assert future.cancel()
        with pytest.raises(Cancelled):
            await future
        await handled.until(
            lambda events: {e.actor for e in events if e.outcome == "CANCELLED"} == {"first", "middle", "last"}
        )
        await done.wait()
        gate.opened.set()


async def test_a_tell_that_is_answered_with_an_error_is_a_dead_letter() -> None:
    class Picky(Agent):
        @handles(Ask)
        def refuse(self, message: Ask) -> None:
            raise GramiError("no", code="UPSTREAM_ERROR")

    async with running() as system:
        letters = Recorder(system, DeadLetter)
        system.tell(await system.spawn(Picky, name="picky"), Ask())
        letter = await letters.first(DeadLetter)
        assert (letter.to, letter.reason) == ("picky", "rejected")


# --- topics ---


class News(Message):
    text: str


class Reader(Agent, instances=2, subscribes=("news",)):
    """Reads what is published."""

    def __init__(self, read: list[str]) -> None:
        super().__init__()
        self.read = read

    @handles(News)
    def note(self, message: News) -> None:
        self.read.append(f"{self.name}: {message.text}")


class Late(Agent):
    """Subscribes when it is asked to."""

    def __init__(self, read: list[str]) -> None:
        super().__init__()
        self.read = read

    @handles(Ask)
    def begin(self, message: Ask) -> None:
        self.subscribe("news")
        self.subscribe("news")

    @handles(News)
    def note(self, message: News) -> None:
        self.read.append(f"{self.name}: {message.text}")


class Publisher(Agent):
    """Publishes."""

    @handles(Other)
    def spread(self, message: Other) -> int:
        return self.publish("news", News(message.text))


async def test_what_is_published_reaches_every_instance_of_every_subscriber_once() -> None:
    read: list[str] = []
    async with running() as system:
        await Swarm([partial(Reader, read), partial(Late, read), Publisher]).start(system)
        handled = Recorder(system, MessageHandled)
        assert await system.ask("publisher", Other("one")) == 2
        await system.ask("late", Ask())
        assert await system.ask("publisher", Other("two")) == 3
        await handled.until(lambda events: sum(type(e.message) is News for e in events) == 5)
        assert sorted(read) == ["late: two", "reader-1: one", "reader-1: two", "reader-2: one", "reader-2: two"]


async def test_a_topic_without_subscribers_reaches_nobody() -> None:
    async with running() as system:
        await Swarm([Publisher]).start(system)
        assert await system.ask("publisher", Other("x")) == 0


async def test_a_subscriber_that_stopped_gets_nothing_more_and_harms_nobody() -> None:
    read: list[str] = []
    async with running() as system:
        await Swarm([partial(Reader, read), Publisher]).start(system)
        await system.stop("reader-1")
        assert await system.ask("publisher", Other("x")) == 1
