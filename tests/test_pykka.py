"""An actor is a ``pykka.Actor``: one suite over Pykka's own threads and over our lanes, from ordinary threads.

Where a test takes ``house``, Pykka's ``ThreadingActor`` is the reference that passes it too; where it takes ``ours``,
the contract is stronger than Pykka's, or Pykka has nothing like it.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pykka
import pytest
from pykka import ActorDeadError, ActorProxy, ActorRegistry
from pykka.messages import ProxyCall, ProxyGetAttr, ProxySetAttr
from pykka.typing import ActorMemberMixin, proxy_field, proxy_method

from grami_actors.actor import Actor
from grami_actors.errors import (
    AgentCrashed,
    AskCycle,
    DeadlineExceeded,
    GramiError,
    MailboxFull,
    StartFailed,
    WouldDeadlock,
)
from grami_actors.future import Future
from grami_actors.ref import ActorDead
from grami_actors.restarts import RestartPolicy
from grami_actors.system import ActorSystem
from grami_actors.telemetry import ActorRestarted
from tests.conftest import LANES, Gate

AT_ONCE = RestartPolicy(intensity=100, shortest=0.0, longest=0.0)
LONG = 10.0
"""Seconds after which a wait that should be over at once is a failure."""


class PykkaHouse:
    """The reference: actors of Pykka itself."""

    lane = "pykka"
    future: type[Any] = pykka.ThreadingFuture

    def __init__(self) -> None:
        logging.getLogger("pykka").setLevel(logging.CRITICAL)
        self._refs: list[Any] = []

    def kind(self, mixin: type, **options: Any) -> type[Any]:
        return type(mixin.__name__, (mixin, pykka.ThreadingActor), options)

    def start(self, mixin: type, *args: Any, **kwargs: Any) -> Any:
        kind = mixin if issubclass(mixin, pykka.Actor) else self.kind(mixin)
        ref: Any = kind.start(*args, **kwargs)
        self._refs.append(ref)
        return ref

    def close(self) -> None:
        for ref in self._refs:
            ref.stop(timeout=LONG)
        logging.getLogger("pykka").setLevel(logging.NOTSET)


class OurHouse:
    """A system whose loop runs in a thread of its own, so that the test is an ordinary thread."""

    future: type[Any] = Future

    def __init__(self, lane: str) -> None:
        self.lane = lane
        self.errors: list[dict[str, Any]] = []
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live(ready)))
        self._thread.start()
        assert ready.wait(LONG)

    async def _live(self, ready: threading.Event) -> None:
        self.loop = asyncio.get_running_loop()
        self.loop.set_exception_handler(lambda _, context: self.errors.append(context))
        self._over = asyncio.Event()
        async with ActorSystem(slow_turn=None) as self.system:
            ready.set()
            await self._over.wait()

    def run(self, work: Any) -> Any:
        """Run a coroutine on the system's loop, from this thread."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(LONG)

    def kind(self, mixin: type, **options: Any) -> type[Any]:
        return type(mixin.__name__, (mixin, Actor), {"lane": self.lane, "restart": AT_ONCE, **options})

    def start(self, mixin: type, *args: Any, **kwargs: Any) -> Any:
        kind = mixin if issubclass(mixin, pykka.Actor) else self.kind(mixin)
        return self.run(self.system.spawn(kind, *args, **kwargs))

    def restarted(self) -> threading.Event:
        """An event that is set by the next restart."""
        event = threading.Event()
        self.system.bus.subscribe(lambda _: event.set(), ActorRestarted)
        return event

    def close(self) -> None:
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._over.set)
        self._thread.join(LONG)
        assert not self._thread.is_alive()
        assert self.errors == []


@pytest.fixture(params=["pykka", *LANES])
def house(request: pytest.FixtureRequest) -> Iterator[Any]:
    house = PykkaHouse() if request.param == "pykka" else OurHouse(request.param)
    yield house
    house.close()


@pytest.fixture(params=LANES)
def ours(request: pytest.FixtureRequest) -> Iterator[OurHouse]:
    house = OurHouse(request.param)
    yield house
    house.close()


class Steps:
    """What hooks leave behind, to be waited for from the test's thread."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self._changed = threading.Condition()

    def add(self, step: Any) -> None:
        with self._changed:
            self.log.append(step)
            self._changed.notify_all()

    def until(self, *steps: Any) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.log == list(steps), LONG), self.log


class Hooked:
    """Writes down its hooks and messages; does what it is told."""

    def __init__(self, steps: Steps) -> None:
        super().__init__()
        self.steps = steps

    def on_start(self) -> None:
        self.steps.add("start")

    def on_stop(self) -> None:
        self.steps.add("stop")

    def on_failure(self, kind: Any, value: Any, trace: Any) -> None:
        self.steps.add(("failure", kind, str(value), trace is not None))

    def on_receive(self, message: Any) -> Any:
        if isinstance(message, BaseException):
            raise message
        if callable(message):
            return message(self)
        self.steps.add(message)
        return message


class Held(Hooked):
    """Handles a gate until it opens."""

    def on_receive(self, message: Any) -> Any:
        if isinstance(message, Gate):
            return message.wait_async() if getattr(self, "lane", "pykka") == "loop" else message.hold()
        return super().on_receive(message)


# --- life ---


def test_on_start_runs_before_the_first_message_and_on_stop_after_the_last(house: Any) -> None:
    steps = Steps()
    ref = house.start(Hooked, steps)
    assert ref.ask("one") == "one"
    ref.tell("two")
    assert ref.ask("three") == "three"
    assert ref.stop() is True
    steps.until("start", "one", "two", "three", "stop")


def test_the_constructor_gets_the_arguments_of_the_start(house: Any) -> None:
    class Kind:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__("whatever", it="is")
            self.given = (args, kwargs)

    assert house.start(Kind, 1, 2, three=3).proxy().given.get() == ((1, 2), {"three": 3})


def test_a_failure_by_tell_runs_on_failure_with_the_exception_and_not_on_stop(house: Any) -> None:
    steps = Steps()
    ref = house.start(Hooked, steps)
    ref.tell(ValueError("no"))
    expected = ["start", ("failure", ValueError, "no", True)]
    # In Pykka that is the end of it; here a fresh instance starts.
    steps.until(*expected, *(["start"] if house.lane != "pykka" else []))
    ref.stop()


def test_a_stop_can_be_asked_for_twice_and_says_whether_it_was_the_one(house: Any) -> None:
    ref = house.start(Hooked, Steps())
    assert ref.is_alive()
    assert not ref.actor_stopped.is_set()
    assert ref.stop() is True
    assert ref.stop() is False
    assert not ref.is_alive()
    assert ref.actor_stopped.is_set()


def test_a_stop_without_waiting_gives_a_future_of_its_outcome(house: Any) -> None:
    ref = house.start(Hooked, Steps())
    assert ref.stop(block=False).get(timeout=LONG) is True
    assert ref.stop(block=False).get(timeout=LONG) is False


def test_a_thread_can_wait_for_the_stopped_event(house: Any) -> None:
    steps = Steps()
    ref = house.start(Hooked, steps)
    assert ref.actor_stopped.wait(0.01) is False
    ref.stop(block=False)
    assert ref.actor_stopped.wait(LONG) is True
    assert ref.actor_stopped.wait() is True
    assert not ref.is_alive()


def test_an_actor_can_stop_itself_more_than_once(house: Any) -> None:
    steps = Steps()
    ref = house.start(Hooked, steps)

    def stop_twice(actor: Any) -> None:
        actor.stop()
        actor.stop()

    ref.tell(stop_twice)
    assert ref.actor_stopped.wait(LONG)
    steps.until("start", "stop")


def test_an_actor_that_stops_itself_handles_nothing_after_the_message_in_hand(ours: OurHouse) -> None:
    steps = Steps()
    ref = ours.start(Held, steps)
    gate = Gate()
    ref.tell(gate)
    assert gate.entered.wait(LONG)
    ref.tell(lambda actor: actor.stop())
    for number in range(50):
        ref.tell(number)
    gate.opened.set()
    assert ref.actor_stopped.wait(LONG)
    assert steps.log == ["start", "stop"]


def test_an_actor_can_stop_another_by_its_proxy(house: Any) -> None:
    steps = Steps()
    ref = house.start(Hooked, steps)
    assert ref.proxy().stop().get(timeout=LONG) is None
    assert ref.actor_stopped.wait(LONG)
    steps.until("start", "stop")


@pytest.mark.parametrize("hook", ["on_stop", "on_failure"])
def test_a_hook_that_raises_changes_nothing_about_the_end(house: Any, hook: str) -> None:
    called = threading.Event()

    def fails(self: Any, *args: Any) -> None:
        called.set()
        raise RuntimeError("the hook is broken")

    ref = house.start(house.kind(Hooked, **{hook: fails}), Steps())
    if hook == "on_failure":
        ref.tell(ValueError("no"))
    else:
        ref.stop()
    assert called.wait(LONG)
    ref.stop()
    assert not ref.is_alive()


@pytest.mark.parametrize("waits", [False, True])
def test_hooks_may_be_coroutine_functions(ours: OurHouse, waits: bool) -> None:
    steps = Steps()

    class Async(Hooked):
        async def on_start(self) -> None:
            await asyncio.sleep(0)
            super().on_start()

        async def on_stop(self) -> None:
            await asyncio.sleep(0)
            super().on_stop()

        async def on_failure(self, *exc_info: Any) -> None:
            await asyncio.sleep(0)
            super().on_failure(*exc_info)

        async def on_receive(self, message: Any) -> Any:
            if waits:
                await asyncio.sleep(0)
            return super().on_receive(message)

    ref = ours.start(Async, steps)
    assert ref.ask("one") == "one"
    restarted = ours.restarted()
    ref.tell(ValueError("no"))
    assert restarted.wait(LONG)
    ref.stop()
    steps.until("start", "one", ("failure", ValueError, "no", True), "start", "stop")


@pytest.mark.parametrize("house", ["pykka", "loop", "thread"], indirect=True)
def test_what_is_queued_behind_a_stop_is_refused(house: Any) -> None:
    gate = Gate()
    ref = house.start(Held, Steps())
    ref.tell(gate)
    assert gate.entered.wait(LONG)
    stopped = ref.stop(block=False)
    late = ref.ask("late", block=False)
    gate.opened.set()
    with pytest.raises(ActorDeadError):
        late.get(timeout=LONG)
    assert stopped.get(timeout=LONG) is True


def test_stops_that_are_queued_behind_a_stop_are_answered(house: Any) -> None:
    gate = Gate()
    ref = house.start(Held, Steps())
    ref.tell(gate)
    assert gate.entered.wait(LONG)
    stops = [ref.stop(block=False) for _ in range(3)]
    gate.opened.set()
    assert all(isinstance(stop.get(timeout=LONG), bool) for stop in stops)


def test_every_actor_has_a_urn_of_its_own_and_says_its_class_and_urn(house: Any) -> None:
    refs = [house.start(Hooked, Steps()) for _ in range(3)]
    assert len({ref.actor_urn for ref in refs}) == 3
    for ref in refs:
        assert ref.actor_urn.startswith("urn:")
        text = ref.ask(str)
        assert "Hooked" in text
        assert ref.actor_urn in text


def test_an_actor_knows_its_ref_its_urn_and_its_inbox(house: Any) -> None:
    ref = house.start(Hooked, Steps())
    assert ref.ask(lambda actor: actor.actor_ref) is ref
    assert ref.ask(lambda actor: actor.actor_urn) == ref.actor_urn
    assert ref.ask(lambda actor: actor.actor_inbox) is ref.actor_inbox
    assert ref.ask(lambda actor: actor.actor_inbox.empty()) is True
    assert ref.ask(lambda actor: actor.actor_stopped.is_set()) is False
    assert issubclass(ref.actor_class, Hooked)


def test_a_ref_alone_does_not_keep_a_failed_instance_alive(ours: OurHouse) -> None:
    ref = ours.start(Hooked, Steps())
    instance = weakref.ref(ref._cell.actor)
    restarted = ours.restarted()
    proxy = ref.proxy()
    ref.tell(ValueError("no"))
    assert restarted.wait(LONG)
    ours.run(asyncio.sleep(0))
    gc.collect()
    assert instance() is None
    assert proxy.steps.get() is ref._cell.actor.steps


def test_an_actor_is_not_started_without_a_system(ours: OurHouse) -> None:
    with pytest.raises(TypeError, match=r"await system\.spawn"):
        ours.kind(Hooked).start(Steps())


def test_a_start_that_fails_raises_at_whoever_starts(ours: OurHouse) -> None:
    class Fails:
        def on_start(self) -> None:
            raise RuntimeError("not today")

    with pytest.raises(StartFailed, match="not today"):
        ours.start(Fails)
    assert ActorRegistry.get_by_class_name("Fails") == []


def test_an_actor_that_stops_itself_while_it_starts_is_a_start_that_failed(ours: OurHouse) -> None:
    class Early:
        def on_start(self) -> None:
            self.stop()  # type: ignore[attr-defined]

    with pytest.raises(StartFailed):
        ours.start(Early)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, BaseException, asyncio.CancelledError, GeneratorExit])
def test_an_exception_that_would_end_all_of_pykkas_actors_ends_one(ours: OurHouse, error: type[BaseException]) -> None:
    steps = Steps()
    ref, other = ours.start(Hooked, steps), ours.start(Hooked, Steps())
    with pytest.raises(AgentCrashed):
        ref.ask(error())
    steps.until("start", ("failure", error, "", True), "start")
    assert other.ask("alive") == ref.ask("alive") == "alive"


# --- messages ---


@pytest.mark.parametrize(
    "message", [0, 1.5, "text", None, {"a": "dict"}, ("a", "tuple"), ["a", "list"], frozenset({1}), object(), int]
)
def test_a_message_may_be_anything_and_arrives_as_the_same_object(house: Any, message: Any) -> None:
    class Kind:
        def on_receive(self, message: Any) -> Any:
            return [message]

    assert house.start(Kind).ask(message)[0] is message


def test_an_exception_is_a_message_like_any_other(house: Any) -> None:
    class Kind:
        def on_receive(self, message: Any) -> Any:
            return message

    error = ValueError("only a message")
    ref = house.start(Kind)
    assert ref.ask(error) is error
    ref.tell(error)
    assert ref.ask(None) is None


def test_messages_of_one_thread_are_handled_in_order(house: Any) -> None:
    steps = Steps()
    ref = house.start(Hooked, steps)
    for number in range(200):
        ref.tell(number)
    ref.ask("end")
    assert steps.log == ["start", *range(200), "end"]


def test_an_ask_waits_for_the_answer_or_gives_a_future(house: Any) -> None:
    ref = house.start(Hooked, Steps())
    assert ref.ask("now") == "now"
    future = ref.ask("later", block=False)
    assert isinstance(future, pykka.Future)
    assert future.get() == "later"
    assert future.get() == "later"
    assert isinstance(ref.ask("x", block=False, timeout=LONG), pykka.Future)


def test_an_exception_comes_back_from_an_ask_with_its_traceback(house: Any) -> None:
    ref = house.start(Hooked, Steps())
    with pytest.raises(ValueError, match=r"^no$") as raised:
        ref.ask(ValueError("no"))
    frames = [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)]
    assert frames.index("get") < frames.index("on_receive")
    future = ref.ask(KeyError("again"), block=False)
    for _ in range(2):
        with pytest.raises(KeyError, match="again"):
            future.get()


@pytest.mark.parametrize("timeout", [0, 0.01])
def test_an_ask_that_takes_too_long_is_a_pykka_timeout(house: Any, timeout: float) -> None:
    gate = Gate()
    ref = house.start(Held, Steps())
    ref.tell(gate)
    assert gate.entered.wait(LONG)
    with pytest.raises(pykka.Timeout):
        ref.ask("late", timeout=timeout)
    gate.opened.set()


@pytest.mark.parametrize("timeout", [0, 0.01])
def test_a_get_that_takes_too_long_is_a_pykka_timeout_and_the_answer_still_comes(house: Any, timeout: float) -> None:
    gate = Gate()
    ref = house.start(Held, Steps())
    ref.tell(gate)
    future = ref.ask("late", block=False)
    with pytest.raises(pykka.Timeout):
        future.get(timeout=timeout)
    with pytest.raises(pykka.Timeout):
        pykka.get_all([future, future], timeout=timeout)
    gate.opened.set()
    assert future.get(timeout=LONG) == "late"


@pytest.mark.parametrize("inherited", [False, True])
def test_whoever_finds_out_that_it_is_too_late_the_asker_gets_a_pykka_timeout(ours: OurHouse, inherited: bool) -> None:
    class Through:
        def __init__(self, other: Any) -> None:
            super().__init__()
            self.other = other

        async def on_receive(self, message: Any) -> Any:
            try:
                return await self.other.ask(message, block=False)
            except pykka.Timeout as error:
                return type(error).__mro__

    gate = Gate()
    ref: Any = ours.start(Held, Steps())
    ref.tell(gate)
    assert gate.entered.wait(LONG)
    if inherited:
        ref = ours.start(Through, ref)
    future = ref.ask("late", block=False, timeout=0.02)
    with pytest.raises(pykka.Timeout) as raised:
        future.get()
    assert isinstance(raised.value, DeadlineExceeded)
    gate.opened.set()


def test_sending_to_a_dead_actor_is_a_pykka_actor_dead_error(house: Any) -> None:
    ref = house.start(Hooked, Steps())
    ref.stop()
    with pytest.raises(ActorDeadError):
        ref.tell("late")
    with pytest.raises(ActorDeadError):
        ref.ask("late")
    future = ref.ask("late", block=False)
    with pytest.raises(ActorDeadError):
        future.get(timeout=LONG)
    with pytest.raises(ActorDeadError):
        ref.ask(ProxyGetAttr(attr_path=("steps",)))


def test_the_messages_of_a_proxy_may_be_sent_without_one(house: Any) -> None:
    class Kind:
        value = 1
        nested = pykka.traversable(type("Nested", (), {"value": 2, "double": lambda self, by=2: self.value * by})())

        def add(self, *numbers: int, times: int = 1) -> int:
            return sum(numbers) * times

    ref = house.start(Kind)
    assert ref.ask(ProxyCall(attr_path=("add",), args=(1, 2), kwargs={"times": 2})) == 6
    assert ref.ask(ProxyCall(attr_path=("nested", "double"), args=(), kwargs={"by": 3})) == 6
    assert ref.ask(ProxyGetAttr(attr_path=("value",))) == 1
    assert ref.ask(ProxySetAttr(attr_path=("nested", "value"), value=5)) is None
    assert ref.ask(ProxyGetAttr(attr_path=("nested", "value"))) == 5


def test_a_message_nobody_handles_does_not_end_the_actor(house: Any) -> None:
    ref = house.start(type("Silent", (), {}))
    ref.tell("what?")
    if house.lane == "pykka":
        assert ref.ask("what?") is None
    else:
        with pytest.raises(GramiError, match="no handler for str"):
            ref.ask("what?")
    assert ref.is_alive()


def test_a_full_mailbox_refuses_where_pykkas_would_grow(ours: OurHouse) -> None:
    gate = Gate()
    ref = ours.start(ours.kind(Held, mailbox=2), Steps())
    ref.tell(gate)
    assert gate.entered.wait(LONG)
    for number in range(2):
        ref.tell(number)
    with pytest.raises(MailboxFull):
        ref.tell("more")
    with pytest.raises(MailboxFull):
        ref.ask("more")
    gate.opened.set()


def test_blocking_on_the_thread_of_a_loop_is_an_error_at_once(ours: OurHouse) -> None:
    ref = ours.start(Hooked, Steps())
    proxy = ref.proxy()

    async def block() -> None:
        for blocking in (
            lambda: ref.ask("x"),
            ref.stop,
            ref.actor_stopped.wait,
            lambda: proxy.on_receive("x").get(),
            lambda: setattr(proxy, "steps", None),
            lambda: pykka.get_all([ref.ask("x", block=False)]),
            lambda: ref.ask("x", block=False).map(str).get(),
            ActorRegistry.stop_all,
        ):
            with pytest.raises(WouldDeadlock):
                blocking()
        assert await proxy.on_receive("x") == "x"

    ours.run(block())
    assert ref.ask("alive") == "alive"


# --- refs ---


def test_a_ref_says_that_it_is_one_with_class_and_urn(house: Any) -> None:
    ref = house.start(Hooked, Steps())
    assert repr(ref).startswith("<ActorRef for ")
    assert repr(ref).endswith(">")
    for text in (repr(ref), str(ref)):
        assert "Hooked" in text
        assert ref.actor_urn in text


def test_a_ref_is_a_pykka_ref_and_equal_to_itself_only(house: Any) -> None:
    ref, other = house.start(Hooked, Steps()), house.start(Hooked, Steps())
    assert isinstance(ref, pykka.ActorRef)
    assert ref == ActorRegistry.get_by_urn(ref.actor_urn)
    assert ref != other
    assert {ref: 1, other: 2}[ref] == 1


def test_a_ref_is_answered_by_whoever_it_was_given_to(house: Any) -> None:
    class Forwarding:
        def on_receive(self, message: Any) -> Any:
            ref, text = message
            ref.tell(text)

    steps = Steps()
    ref = house.start(Hooked, steps)
    house.start(Forwarding).ask((ref, "through"))
    ref.ask("end")
    assert steps.log == ["start", "through", "end"]


def test_a_ref_outlives_its_system(ours: OurHouse) -> None:
    ref = ours.start(Hooked, Steps())
    ours.close()
    assert not ref.is_alive()
    assert ref.actor_stopped.wait(LONG)
    assert ref.stop() is False
    for late in (lambda: ref.tell("late"), lambda: ref.ask("late"), ref.proxy):
        with pytest.raises(ActorDead):
            late()
    assert ref not in ActorRegistry.get_all()


# --- proxies ---


class Nested:
    value = "nested"
    inner = "of the inside"

    def __init__(self, depth: int = 0) -> None:
        if depth:
            self.deeper = pykka.traversable(Nested(depth - 1))

    def echo(self, text: str) -> str:
        return f"{self.value}: {text}"


class Unequal:
    """Can be compared with nothing."""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")


@pykka.traversable
class Marked:
    value = "marked"


class MarkedByHand:
    pykka_traversable = True
    value = "marked by hand"


class MarkedWithSlots:
    __slots__ = ("pykka_traversable", "value")

    def __init__(self) -> None:
        self.pykka_traversable = True
        self.value = "marked with slots"


class Rich:
    """Has one of everything that a proxy can meet."""

    of_class = "class"
    unequal = Unequal()
    plain = Nested()
    nested = pykka.traversable(Nested(2))
    marked = Marked()
    by_hand = MarkedByHand()
    with_slots = MarkedWithSlots()
    _hidden = "hidden"
    built: ClassVar[list[int]] = []

    def __init__(self) -> None:
        super().__init__()
        self.of_instance = "instance"
        self.added = lambda: "a function in an attribute"
        self._set = 0

    @property
    def read_only(self) -> str:
        return "read only"

    @property
    def writable(self) -> int:
        return self._set

    @writable.setter
    def writable(self, value: int) -> None:
        if value < 0:
            raise ValueError("must not be negative")
        self._set = value

    @property
    def raises(self) -> str:
        self.built.append(1)
        raise RuntimeError("a property that raises")

    @property
    def nested_by_property(self) -> Marked:
        return Marked()

    @staticmethod
    def static(number: int) -> int:
        return number + 1

    def echo(self, *args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    def fail(self) -> None:
        raise ValueError("a method that raises")

    def give_method(self, name: str) -> None:
        setattr(self, name, lambda: f"{name} was added")

    def where(self) -> str:
        return threading.current_thread().name


def test_attributes_of_class_and_instance_and_properties_are_read_as_futures(house: Any) -> None:
    proxy = house.start(Rich).proxy()
    assert isinstance(proxy, ActorProxy)
    assert isinstance(proxy.of_class, pykka.Future)
    assert proxy.of_class.get() == "class"
    assert proxy.of_instance.get() == "instance"
    assert proxy.read_only.get() == "read only"
    assert proxy.writable.get() == 0
    assert proxy.plain.get().value == "nested"
    assert pykka.get_all([proxy.of_class, proxy.of_instance]) == ["class", "instance"]


def test_attributes_and_properties_are_set_by_assignment(house: Any) -> None:
    proxy = house.start(Rich).proxy()
    proxy.of_class = "set"
    proxy.of_instance = "set too"
    proxy.writable = 5
    proxy.brand_new = "new"
    values = [proxy.of_class, proxy.of_instance, proxy.writable, proxy.brand_new]
    assert pykka.get_all(values) == ["set", "set too", 5, "new"]
    assert Rich.of_class == "class"


def test_an_assignment_that_is_refused_raises_at_whoever_assigns(house: Any) -> None:
    proxy = house.start(Rich).proxy()
    with pytest.raises(AttributeError):
        proxy.read_only = "no"
    with pytest.raises(ValueError, match="negative"):
        proxy.writable = -1


@pytest.mark.parametrize("name", ["missing", "_hidden", "_set"])
def test_what_is_missing_or_private_is_no_attribute_of_a_proxy(house: Any, name: str) -> None:
    proxy = house.start(Rich).proxy()
    with pytest.raises(AttributeError, match=f"has no attribute '{name}'") as raised:
        getattr(proxy, name)
    assert str(raised.value).startswith("<ActorProxy for Rich")
    with pytest.raises(AttributeError):
        getattr(proxy, name).defer()


def test_a_property_is_not_read_when_a_proxy_is_made_and_what_it_raises_comes_from_get(house: Any) -> None:
    Rich.built.clear()
    proxy = house.start(Rich).proxy()
    assert "raises" in dir(proxy)
    assert Rich.built == []
    with pytest.raises(RuntimeError, match="a property that raises"):
        proxy.raises.get()
    assert Rich.built == [1]


def test_methods_are_called_with_their_arguments(house: Any) -> None:
    proxy = house.start(Rich).proxy()
    assert proxy.echo(1, two=2).get() == ((1,), {"two": 2})
    assert proxy.static(1).get() == 2
    assert proxy.added().get() == "a function in an attribute"
    assert proxy.echo.__class__ is pykka.CallableProxy
    assert proxy.echo is proxy.echo
    echo = proxy.echo
    assert [echo(number).get()[0] for number in range(3)] == [(0,), (1,), (2,)]


def test_a_method_that_raises_raises_at_get_and_harms_nobody_who_does_not_ask(house: Any) -> None:
    proxy = house.start(Rich).proxy()
    proxy.fail()
    with pytest.raises(ValueError, match="a method that raises"):
        proxy.fail().get()
    assert proxy.of_class.get() == "class"


def test_a_deferred_call_has_no_answer_and_fails_the_actor_if_it_raises(house: Any) -> None:
    class Deferring(Hooked):
        def note(self, step: str) -> str:
            self.steps.add(step)
            return step

        def fail(self) -> None:
            raise ValueError("deferred")

    steps = Steps()
    proxy = house.start(Deferring, steps).proxy()
    assert proxy.note.defer("noted") is None
    assert proxy.fail.defer() is None
    expected = ["start", "noted", ("failure", ValueError, "deferred", True)]
    steps.until(*expected, *(["start"] if house.lane != "pykka" else []))


def test_a_method_that_is_added_at_run_time_is_found(house: Any) -> None:
    proxy = house.start(Rich).proxy()
    with pytest.raises(AttributeError):
        _ = proxy.late
    proxy.give_method("late").get()
    assert proxy.late().get() == "late was added"


def test_marked_attributes_are_traversed(house: Any) -> None:
    proxy = house.start(Rich).proxy()
    assert isinstance(proxy.nested, ActorProxy)
    assert proxy.nested.value.get() == "nested"
    assert proxy.nested.echo("text").get() == "nested: text"
    assert proxy.nested.deeper.deeper.echo(text="deep").get() == "nested: deep"
    assert proxy.nested.deeper.echo.defer("ignored") is None
    assert proxy.marked.value.get() == "marked"
    assert proxy.by_hand.value.get() == "marked by hand"
    assert proxy.with_slots.value.get() == "marked with slots"
    proxy.nested.deeper.value = "set"
    assert proxy.nested.deeper.echo("text").get() == "set: text"
    del Rich.nested.deeper.value


def test_unmarked_attributes_and_results_of_properties_are_not_traversed(house: Any) -> None:
    proxy = house.start(Rich).proxy()
    with pytest.raises(AttributeError):
        _ = proxy.plain.inner
    assert proxy.nested_by_property.get().value == "marked"


def test_an_object_with_slots_cannot_be_marked() -> None:
    with pytest.raises(ValueError, match="slots"):
        pykka.traversable(MarkedWithSlots())


def test_proxies_are_equal_by_actor_and_path(house: Any) -> None:
    proxy = house.start(Rich).proxy()
    other = house.start(Rich).proxy()
    assert proxy == proxy.actor_ref.proxy()
    assert hash(proxy) == hash(proxy.actor_ref.proxy())
    assert proxy == ActorProxy(actor_ref=proxy.actor_ref)
    assert ActorProxy(actor_ref=proxy.actor_ref) == proxy
    assert proxy != other
    assert proxy != proxy.nested
    assert proxy.nested == proxy.actor_ref.proxy().nested
    assert proxy != "a proxy"
    assert proxy != Unequal()


def test_a_proxy_says_what_it_is(house: Any) -> None:
    proxy = house.start(Rich).proxy()
    for text in (repr(proxy), str(proxy)):
        assert text.startswith("<ActorProxy for Rich")
        assert text.endswith(">")
        assert proxy.actor_ref.actor_urn in text
    assert "nested" in repr(proxy.nested)


def test_dir_lists_what_the_actor_has_and_what_the_proxy_has(house: Any) -> None:
    names = dir(house.start(Rich).proxy())
    assert names == sorted(names)
    for name in ("of_class", "of_instance", "read_only", "raises", "echo", "nested", "unequal", "added", "stop"):
        assert name in names
    for name in ("__class__", "__dict__", "__getattr__", "__setattr__", "__eq__", "actor_ref"):
        assert name in names
    assert "_hidden" not in names


def test_a_proxy_needs_an_actor_that_is_alive_and_then_keeps_its_ref(house: Any) -> None:
    ref = house.start(Rich)
    proxy = ref.proxy()
    ref.stop()
    for make in (ref.proxy, lambda: ActorProxy(actor_ref=ref)):
        with pytest.raises(ActorDeadError, match="not found"):
            make()
    assert proxy.actor_ref is ref
    with pytest.raises(ActorDeadError):
        proxy.echo().get()
    with pytest.raises(ActorDeadError):
        proxy.of_class.get()
    with pytest.raises(ActorDeadError):
        proxy.echo.defer()
    with pytest.raises(ActorDeadError):
        proxy.of_class = "late"


def test_an_actor_may_defer_work_to_itself_through_a_proxy_made_in_on_start(house: Any) -> None:
    class Cooperative:
        def on_start(self) -> None:
            self._later = self.actor_ref.proxy()  # type: ignore[attr-defined]
            self.done: list[int] = []

        def work(self, left: int) -> None:
            self.done.append(left)
            if left:
                self._later.work(left - 1)

    proxy = house.start(Cooperative).proxy()
    proxy.work(3).get()
    while len(done := proxy.done.get()) < 4:
        pass
    assert done == [3, 2, 1, 0]


@pytest.mark.parametrize(
    "house",
    [
        "pykka",
        *LANES,
    ],
    indirect=True,
)
def test_an_actor_may_make_a_proxy_to_itself_in_its_constructor(house: Any) -> None:
    class SelfReferring:
        def __init__(self) -> None:
            super().__init__()
            self._later = self.actor_ref.proxy()  # type: ignore[attr-defined]
            self.public = self.actor_ref.proxy()  # type: ignore[attr-defined]
            self.value = "value"

        def through(self) -> None:
            self._later.set("set")

        def set(self, value: str) -> None:
            self.value = value

    proxy = house.start(SelfReferring).proxy()
    proxy.through().get()
    assert proxy.value.get() == "set"
    with pytest.raises(AttributeError, match="has no attribute 'public'"):
        _ = proxy.public


def test_coroutine_methods_are_called_through_a_proxy_like_others(ours: OurHouse) -> None:
    class Async(Hooked):
        async def double(self, number: int) -> int:
            await asyncio.sleep(0)
            return 2 * number

        async def fail(self) -> None:
            await asyncio.sleep(0)
            raise ValueError("async")

        async def note(self, step: str) -> None:
            await asyncio.sleep(0)
            self.steps.add(step)

    steps = Steps()
    ref = ours.start(Async, steps)
    proxy = ref.proxy()
    assert proxy.double(4).get() == 8
    assert proxy.double(4).map(str).get() == "8"
    assert ref.ask(ProxyCall(attr_path=("double",), args=(5,), kwargs={})) == 10
    proxy.note.defer("noted")
    with pytest.raises(ValueError, match="async"):
        proxy.fail().get()
    steps.until("start", "noted", ("failure", ValueError, "async", True), "start")

    async def from_a_loop() -> list[int]:
        return [await proxy.double(1), await proxy.double(2).map(lambda number: number + 1)]

    assert ours.run(from_a_loop()) == asyncio.run(from_a_loop()) == [2, 5]


def test_methods_run_where_the_actor_runs(ours: OurHouse) -> None:
    ref = ours.start(Rich)
    expected = ours._thread.name if ours.lane == "loop" else ref.name
    assert ref.proxy().where().get() == expected


def test_a_proxy_goes_on_with_the_instance_that_replaces_a_failed_one(ours: OurHouse) -> None:
    proxy = ours.start(Rich).proxy()
    proxy.of_instance = "of the first"
    table = {proxy: "found"}
    restarted = ours.restarted()
    proxy.fail.defer()
    assert restarted.wait(LONG)
    assert proxy.of_instance.get() == "instance"
    proxy.give_method("late").get()
    assert proxy.late().get() == "late was added"
    assert proxy == proxy.actor_ref.proxy()
    assert table[proxy.actor_ref.proxy()] == "found"


def test_what_an_actor_returns_is_awaited_if_it_can_be(ours: OurHouse) -> None:
    """In Pykka the caller would get the other's future, and an actor that asks itself may return that."""

    class Asking:
        def __init__(self, other: Any = None) -> None:
            super().__init__()
            self.other = other

        def echo(self, text: str) -> Any:
            return text if self.other is None else self.other.proxy().echo(text)

        def talk_to_itself(self) -> Any:
            return self.actor_ref.proxy().echo("self")  # type: ignore[attr-defined]

    proxy = ours.start(Asking, ours.start(Asking)).proxy()
    assert proxy.echo("through").get() == "through"
    with pytest.raises(AskCycle):
        proxy.talk_to_itself().get()


@pytest.mark.parametrize("ours", ["loop"], indirect=True)
def test_a_future_of_pykkas_that_a_handler_returns_does_not_block_the_loop(ours: OurHouse) -> None:
    class Giving:
        def on_receive(self, message: Any) -> Any:
            return message

    theirs = pykka.ThreadingFuture[str]()
    ref, other = ours.start(Giving), ours.start(Giving)
    answer = ref.ask(theirs, block=False)
    try:
        for _ in range(3):
            assert other.ask("alive", timeout=0.3) == "alive"
    finally:
        theirs.set("theirs")
    assert answer.get() == "theirs"


def test_a_message_to_an_actor_that_cannot_be_built_holds_nobody_up() -> None:
    class Unbuilt:
        def __init__(self) -> None:
            super().__init__()
            self.actor_ref.tell("early")  # type: ignore[attr-defined]
            raise ValueError("cannot be built")

    house = OurHouse("loop")
    try:
        with pytest.raises(StartFailed):
            house.start(Unbuilt)
    finally:
        house.close()


def test_pykkas_typed_proxies_work(house: Any) -> None:
    class Circle:
        text = "a circle"
        pi = 3

        def area(self, radius: int) -> int:
            return self.pi * radius**2

    class CircleProxy(ActorMemberMixin, ActorProxy[Any]):
        text = proxy_field(Circle.text)
        area = proxy_method(Circle.area)

    proxy: Any = house.start(Circle).proxy()
    typed: CircleProxy = proxy
    assert typed.text.get() == "a circle"
    assert typed.area(2).get() == 12
    assert typed.stop().get() is None


# --- futures ---


def test_a_value_is_set_once_and_had_any_number_of_times(house: Any) -> None:
    future = house.future()
    assert repr(future) == "<pykka.Future>"
    future.set("value")
    assert [future.get(), future.get(timeout=0)] == ["value", "value"]
    inner = house.future()
    inner.set(future)
    assert inner.get().get() == "value"
    nothing = house.future()
    nothing.set()
    assert nothing.get() is None


def test_an_exception_is_set_from_an_except_block_or_by_exc_info(house: Any) -> None:
    future, by_hand, by_class = (house.future() for _ in range(3))
    try:
        raise NameError("set")
    except NameError as error:
        future.set_exception()
        by_hand.set_exception(sys.exc_info())
        depth = len(traceback.extract_tb(error.__traceback__))
    by_class.set_exception((KeyError, None, None))
    for each in (future, by_hand):
        with pytest.raises(NameError, match="set") as raised:
            each.get()
        assert len(traceback.extract_tb(raised.value.__traceback__)) > depth
    with pytest.raises(KeyError):
        by_class.get()


def test_a_get_waits_for_another_thread(house: Any) -> None:
    future = house.future()
    thread = threading.Thread(target=future.set, args=("from a thread",))
    thread.start()
    assert future.get(timeout=LONG) == "from a thread"
    thread.join()
    with pytest.raises(pykka.Timeout):
        house.future().get(timeout=0)


def test_a_future_can_be_awaited_on_any_loop(house: Any) -> None:
    future = house.future()
    future.set(1)

    async def wait() -> int:
        return await future

    assert asyncio.run(wait()) == asyncio.run(wait()) == 1


Made = Callable[[Any], Any]


@pytest.mark.parametrize(
    ("make", "value", "expected"),
    [
        (lambda future: future.filter(lambda number: number > 10), [9, 11, 12], [11, 12]),
        (lambda future: future.filter(lambda number: number > 10), 1, TypeError),
        (lambda future: future.map(lambda number: number + 10), 30, 40),
        (lambda future: future.map(lambda found: found["key"]), {"key": "value"}, "value"),
        (lambda future: future.map(lambda number: number + 10), [10, 20], TypeError),
        (lambda future: future.reduce(lambda x, y: x + y), [1, 2, 3, 4], 10),
        (lambda future: future.reduce(lambda x, y: x + y, 5), [1, 2, 3, 4], 15),
        (lambda future: future.reduce(lambda x, y: x + y, 5), [], 5),
        (lambda future: future.reduce(lambda x, y: x + y), [], TypeError),
        (lambda future: future.reduce(lambda x, y: x + y), 1, TypeError),
        (lambda future: future.join(future, future), 1, [1, 1, 1]),
        (lambda future: future.join(), 1, [1]),
        (lambda future: future.map(lambda number: number + 1).map(str).join(future), 1, ["2", 1]),
    ],
)
def test_map_filter_reduce_and_join_make_futures_of_what_is_to_come(
    house: Any, make: Made, value: Any, expected: Any
) -> None:
    future = house.future()
    made = make(future)
    assert isinstance(made, type(future))
    for _ in range(2):
        with pytest.raises(pykka.Timeout):
            made.get(timeout=0)
    future.set(value)
    for _ in range(2):
        if isinstance(expected, type):
            with pytest.raises(expected):
                made.get(timeout=0)
        else:
            assert made.get(timeout=0) == expected


def test_answers_of_actors_are_mapped_filtered_joined_and_reduced(house: Any) -> None:
    ref = house.start(Hooked, Steps())
    numbers = ref.ask((1, 2, 3), block=False)
    assert numbers.map(len).get() == 3
    assert numbers.filter(lambda number: number > 1).reduce(lambda x, y: x * y).get() == 6
    assert numbers.join(ref.ask("other", block=False)).get() == [(1, 2, 3), "other"]
    failed = ref.ask(ValueError("no"), block=False)
    for made in (failed.map(str), numbers.join(failed)):
        with pytest.raises(ValueError, match="no"):
            made.get()


def test_the_function_of_a_made_future_runs_once(house: Any) -> None:
    calls: list[int] = []
    future = house.future()
    made = future.map(calls.append)
    hooked = house.future()
    hooked.set_get_hook(calls.append)
    future.set(1)
    assert [made.get(), made.get(), hooked.get(timeout=2), hooked.get(timeout=3)] == [None] * 4
    assert calls == [1, 2]


def test_the_function_of_a_made_future_runs_once_for_all_threads(house: Any) -> None:
    calls: list[Any] = []
    started, go_on = threading.Event(), threading.Event()

    def slowly(value: Any) -> Any:
        calls.append(value)
        started.set()
        assert go_on.wait(LONG)
        return value

    future = house.future()
    made = future.map(slowly)
    future.set("value")
    had: list[Any] = []
    threads = [threading.Thread(target=lambda: had.append(made.get())) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert started.wait(LONG)
    if house.lane != "pykka":  # there the second get would wait without an end
        with pytest.raises(pykka.Timeout):
            made.get(timeout=0.01)
    go_on.set()
    for thread in threads:
        thread.join(LONG)
    assert had == ["value"] * 4
    assert calls == ["value"]


def test_settling_a_future_twice_keeps_the_first(ours: OurHouse) -> None:
    future = Future[str]()
    future.set("first")
    future.set("second")
    future.set_exception((ValueError, ValueError(), None))
    future.set_get_hook(lambda _: "third")
    assert future.get() == "first"
    hooked = Future[str]()
    hooked.set_get_hook(lambda _: "first")
    hooked.set("second")
    assert hooked.get() == "first"


def test_a_caller_that_meddles_with_its_future_harms_nobody(ours: OurHouse) -> None:
    gate = Gate()
    ref = ours.start(Held, Steps())
    ref.tell(gate)
    future = ref.ask("answer", block=False)
    future.set("mine")
    gate.opened.set()
    assert future.get() == "mine"
    assert ref.ask("alive") == "alive"


# --- the registry ---


class Listed:
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def on_receive(self, message: Any) -> None:
        self.seen.append(message)


class ListedToo(Listed):
    pass


class Other(Listed):
    pass


def test_actors_are_registered_as_long_as_they_live(house: Any) -> None:
    ref = house.start(Listed)
    assert ref in ActorRegistry.get_all()
    ref.stop()
    assert ref not in ActorRegistry.get_all()
    ActorRegistry.unregister(ref)
    ActorRegistry.register(ref)
    assert ref in ActorRegistry.get_all()
    ActorRegistry.unregister(ref)
    ActorRegistry.unregister(ref)
    assert ref not in ActorRegistry.get_all()


def test_actors_are_found_by_class_name_and_urn(house: Any) -> None:
    base, other = house.kind(Listed), house.kind(Other)
    derived = type("ListedToo", (base,), {})
    refs = [house.start(base), house.start(derived), house.start(other)]
    assert ActorRegistry.get_by_class(base) == refs[:2]
    assert ActorRegistry.get_by_class(derived) == refs[1:2]
    assert [ref for ref in ActorRegistry.get_by_class(pykka.Actor) if ref in refs] == refs
    assert ActorRegistry.get_by_class_name("Listed") == refs[:1]
    assert ActorRegistry.get_by_class_name("Nobody") == []
    assert [ActorRegistry.get_by_urn(ref.actor_urn) for ref in refs] == refs
    assert ActorRegistry.get_by_urn("urn:nobody") is None
    assert [ref for ref in ActorRegistry.get_all() if ref in refs] == refs


def test_a_broadcast_reaches_all_or_those_of_a_class(house: Any) -> None:
    base, other = house.kind(Listed), house.kind(Other)
    refs = [house.start(kind) for kind in (base, base, other)]
    ActorRegistry.broadcast("all")
    ActorRegistry.broadcast("class", target_class=base)
    ActorRegistry.broadcast("name", target_class="Other")
    seen = [ref.proxy().seen.get() for ref in refs]
    assert seen == [["all", "class"], ["all", "class"], ["all", "name"]]


def test_stop_all_stops_every_actor_the_last_started_first(house: Any) -> None:
    steps = Steps()

    class Noting:
        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

        def on_stop(self) -> None:
            steps.add(self.number)

    refs = [house.start(Noting, number) for number in range(4)]
    stopped = ActorRegistry.stop_all(timeout=LONG)
    assert set(stopped) == {True}
    assert steps.log == [3, 2, 1, 0]
    assert not any(ref.is_alive() for ref in refs)
    assert not set(refs) & set(ActorRegistry.get_all())


def test_stop_all_without_waiting_gives_futures(house: Any) -> None:
    refs = [house.start(Listed) for _ in range(4)]
    stops: Any = ActorRegistry.stop_all(block=False)
    assert set(pykka.get_all(stops, timeout=LONG)) == {True}
    assert not any(ref.is_alive() for ref in refs)


def test_what_is_not_listed_is_not_stopped_and_not_told(ours: OurHouse) -> None:
    internal = ours.start(ours.kind(Listed, listed=False))
    listed = ours.start(Listed)
    assert internal not in ActorRegistry.get_all()
    ActorRegistry.broadcast("all")
    ActorRegistry.stop_all(timeout=LONG)
    assert not listed.is_alive()
    assert internal.proxy().seen.get() == []


def test_a_system_whose_actors_were_all_stopped_through_the_registry_goes_on(ours: OurHouse) -> None:
    ours.start(Listed)
    ActorRegistry.stop_all(timeout=LONG)
    assert ours.system.router.is_alive()


def test_children_are_listed_and_go_with_their_parents(ours: OurHouse) -> None:
    class Parent:
        async def on_start(self) -> None:
            self.child = await self.spawn(ours.kind(Listed))  # type: ignore[attr-defined]

    parent = ours.start(Parent)
    child = parent.proxy().child.get()
    assert child in ActorRegistry.get_all()
    parent.stop()
    assert child not in ActorRegistry.get_all()
    assert not child.is_alive()


def test_a_restart_changes_nothing_in_the_registry(ours: OurHouse) -> None:
    ref = ours.start(Hooked, Steps())
    restarted = ours.restarted()
    ref.tell(ValueError("no"))
    assert restarted.wait(LONG)
    assert ActorRegistry.get_by_urn(ref.actor_urn) is ref
    assert ActorRegistry.get_all().count(ref) == 1


def test_actors_of_pykka_and_of_ours_live_side_by_side(ours: OurHouse) -> None:
    pykkas = PykkaHouse()
    theirs, mine = pykkas.start(Listed), ours.start(Listed)
    assert {theirs, mine} <= set(ActorRegistry.get_all())
    ActorRegistry.broadcast("all")
    assert theirs.proxy().seen.get() == mine.proxy().seen.get() == ["all"]
    joined = mine.ask("x", block=False).join(theirs.ask("y", block=False))
    assert joined.get(timeout=LONG) == [None, None]
    assert asyncio.run(_awaited(mine.ask("x", block=False).join(theirs.ask("y", block=False)))) == [None, None]
    ActorRegistry.stop_all(timeout=LONG)
    assert not theirs.is_alive()
    assert not mine.is_alive()
    pykkas.close()


async def _awaited(future: Any) -> Any:
    return await future


def test_the_registry_stands_threads_that_look_while_actors_come_and_go(ours: OurHouse) -> None:
    over = threading.Event()
    errors: list[BaseException] = []
    kind = ours.kind(Listed)

    def look() -> None:
        try:
            while not over.is_set():
                for ref in ActorRegistry.get_all():
                    assert ActorRegistry.get_by_urn(ref.actor_urn) in {ref, None}
                ActorRegistry.get_by_class(kind)
                ActorRegistry.get_by_class_name("Listed")
        except BaseException as error:  # noqa: BLE001 - it is looked at below
            errors.append(error)

    async def come_and_go() -> None:
        for _ in range(25):
            refs = [await ours.system.spawn(kind) for _ in range(8)]
            for ref in refs:
                await ours.system.stop(ref)

    switching = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=look) for _ in range(3)]
    try:
        for thread in threads:
            thread.start()
        ours.run(come_and_go())
    finally:
        over.set()
        for thread in threads:
            thread.join(LONG)
        sys.setswitchinterval(switching)
    assert errors == []
    assert ActorRegistry.get_by_class(kind) == []


def test_a_future_answers_with_actor_dead_that_pykkas_code_knows(ours: OurHouse) -> None:
    ref = ours.start(Hooked, Steps())
    ref.stop()
    with pytest.raises(ActorDead) as raised:
        ref.proxy()
    assert isinstance(raised.value, ActorDeadError)
