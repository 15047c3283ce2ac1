"""Message types, and the scope that a request's causes and effects share."""

from __future__ import annotations

import itertools
import math
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Self

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grami_actors.errors import Cancelled, DeadlineExceeded, GramiError
from grami_actors.messages import (
    CONTROL_TYPES,
    REQUEST_FIELDS,
    RESERVED_PREFIXES,
    Message,
    Scope,
    snake_case,
    type_name,
)

FREE = st.from_regex(r"[a-z_]{1,20}", fullmatch=True).filter(
    lambda tag: tag not in CONTROL_TYPES and not tag.startswith(RESERVED_PREFIXES)
)


def define(fields: dict[str, Any] | None = None, **config: Any) -> type[Message]:
    """What the class statement ``class Thing(Message, **config)`` does."""
    namespace = {"__annotations__": fields or {}, "__module__": __name__}
    return type(Message)("Thing", (Message,), namespace, **config)


# --- message types ---


@given(FREE)
def test_a_message_comes_back_from_its_json_under_its_type(tag: str) -> None:
    kind = define({"n": int}, tag=tag)
    wire = msgspec.json.encode(kind(n=1))
    assert msgspec.json.decode(wire) == {"type": tag, "n": 1}
    assert msgspec.json.decode(wire, type=kind) == kind(n=1)


@given(
    st.one_of(st.sampled_from(sorted(CONTROL_TYPES)), st.builds(str.__add__, st.sampled_from(RESERVED_PREFIXES), FREE))
)
def test_a_tag_that_the_protocol_needs_is_refused_when_the_class_is_defined(tag: str) -> None:
    with pytest.raises(TypeError, match="reserved by the protocol"):
        define(tag=tag)


def test_a_class_name_can_be_reserved_too() -> None:
    with pytest.raises(TypeError, match="'response_ready' is reserved"):

        class ResponseReady(Message):
            pass

    with pytest.raises(TypeError, match="'ping' is reserved"):

        class Ping(Message):
            pass


@pytest.mark.parametrize("field", sorted(REQUEST_FIELDS - {"type"}))
def test_a_field_that_every_request_has_is_refused_when_the_class_is_defined(field: str) -> None:
    with pytest.raises(TypeError, match=rf"\['{field}'\] are reserved"):
        define({field: str})
    with pytest.raises(TypeError, match=rf"\['{field}'\] are reserved"):
        define({"mine": str}, rename={"mine": field})


def test_a_field_named_type_is_refused() -> None:
    with pytest.raises((TypeError, ValueError), match="type"):
        define({"type": str})


def test_a_field_that_is_renamed_on_the_wire_may_have_a_reserved_name_in_python() -> None:
    kind = define({"to": str}, rename={"to": "recipient"})
    assert msgspec.json.decode(msgspec.json.encode(kind(to="you"))) == {"type": "thing", "recipient": "you"}


@pytest.mark.parametrize("tag", [1, False])
def test_a_tag_that_is_no_text_is_refused(tag: Any) -> None:
    with pytest.raises(TypeError, match="is a string"):
        define(tag=tag)


@pytest.mark.parametrize(
    "config",
    [{"tag": ""}, {"tag": "x" * 129}, {"tag_field": "kind"}, {"array_like": True}, {"forbid_unknown_fields": True}],
)
def test_a_class_that_no_request_could_ever_match_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        define(**config)


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("ContentRequest", "content_request"),
        ("HTTPServer", "http_server"),
        ("GetHTTPResponse", "get_http_response"),
        ("Version2Ready", "version2_ready"),
        ("A", "a"),
        ("ABTest", "ab_test"),
        ("already_snake", "already_snake"),
    ],
)
def test_a_class_is_called_on_the_wire_in_snake_case(name: str, tag: str) -> None:
    assert snake_case(name) == tag


@given(st.lists(st.from_regex(r"[A-Z][a-z]{1,5}[0-9]?", fullmatch=True), min_size=1, max_size=5))
def test_every_word_of_a_name_is_one_word_of_its_snake_case(words: list[str]) -> None:
    assert snake_case("".join(words)) == "_".join(words).lower()
    assert snake_case(snake_case("".join(words))) == snake_case("".join(words))


def test_a_class_of_messages_is_called_by_its_tag_and_any_other_by_its_name() -> None:
    class Renamed(Message, tag="other"):
        pass

    class NoMessage(msgspec.Struct, tag="write"):
        """Has a tag, but is not for the wire."""

    assert [type_name(kind) for kind in (Renamed, NoMessage, int)] == ["other", "no_message", "int"]


def test_the_names_that_the_protocol_keeps_for_itself_are_those_of_its_text() -> None:
    reserved = {"type", "id", "to", "stream", "background", "timeout_ms", "idempotency_key", "meta"}
    controls = {"hello", "auth", "cancel", "ping", "describe", "subscribe", "unsubscribe", "publish"}
    assert reserved == REQUEST_FIELDS
    assert controls == CONTROL_TYPES
    assert RESERVED_PREFIXES == ("response", "job.", "admin.", "grami.")


# --- scopes ---


class Switch:
    """Lets another thread, so to speak, act at the n-th bytecode instruction of a function that holds no lock then.

    What threads do only once in a million runs is so tried at every place where it could happen::

        for moment in itertools.count(1):
            with Switch(Scope.cancel, moment, scope._lock, act) as switch:
                scope.cancel()
            ...
            if not switch.happened:
                break
    """

    def __init__(self, function: Callable[..., Any], moment: int, lock: Any, act: Callable[[], object]) -> None:
        self._code = function.__code__
        self._left = moment
        self._lock = lock
        self._act = act
        self.happened = False

    def __enter__(self) -> Self:
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code is not self._code:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and not self._lock.locked():
            self._left -= 1
            if self._left == 0:
                self.happened = True
                self._act()
        return self._trace


@pytest.fixture
def frequent_switches() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(*calls: Callable[[], object]) -> None:
    """Run each call on a thread of its own, all starting at once."""
    start = threading.Barrier(len(calls))
    threads = [threading.Thread(target=lambda call=call: (start.wait(10), call())) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)


Tree = list[tuple[int, float]]
trees: st.SearchStrategy[Tree] = st.lists(st.tuples(st.integers(0, 30), st.floats(allow_nan=False)), max_size=25)


def grow(tree: Tree) -> tuple[list[Scope], list[int]]:
    """A root and one scope per entry, below an earlier one; with the index of each one's parent."""
    scopes, parents = [Scope(deadline=10.0, trace_id="t")], [-1]
    for parent, deadline in tree:
        parents.append(parent % len(scopes))
        scopes.append(Scope(scopes[parents[-1]], deadline=deadline))
    return scopes, parents


def lineage(parents: list[int], node: int) -> list[int]:
    """The node and all above it."""
    found = []
    while node >= 0:
        found.append(node)
        node = parents[node]
    return found


@given(trees)
def test_a_childs_deadline_is_never_later_than_its_parents(tree: Tree) -> None:
    scopes, parents = grow(tree)
    for (_, wanted), scope, parent in zip(tree, scopes[1:], parents[1:], strict=True):
        assert scope.deadline == min(wanted, scopes[parent].deadline)
        assert scope.trace_id == "t"


@given(trees, st.lists(st.integers(0, 30), max_size=8), st.integers(0, 30))
def test_a_cancel_reaches_all_below_exactly_once_and_nobody_else(tree: Tree, cuts: list[int], again: int) -> None:
    scopes, parents = grow(tree)
    calls: list[tuple[int, GramiError]] = []
    for number, scope in enumerate(scopes):
        scope.on_cancel(lambda reason, number=number: calls.append((number, reason)))
    expected: dict[int, GramiError] = {}
    for cut in cuts:
        top, reason = cut % len(scopes), Cancelled(f"cut {cut}")
        first = top not in expected
        assert scopes[top].cancel(reason) is first
        reached = [node for node in range(len(scopes)) if top in lineage(parents, node)]
        expected |= {node: reason for node in reached if first and node not in expected}
    assert dict(calls) == expected
    assert len(calls) == len(expected)
    assert [scope.reason for scope in scopes] == [expected.get(number) for number in range(len(scopes))]
    late = Scope(scopes[again % len(scopes)])
    assert late.reason is scopes[again % len(scopes)].reason


@given(trees, st.randoms(use_true_random=False))
def test_closing_leaves_no_child_behind_in_any_parent(tree: Tree, random: Any) -> None:
    scopes, _ = grow(tree)
    for scope in random.sample(scopes[1:], len(tree)):
        scope.close()
        scope.close()
    assert all(not scope._children for scope in scopes)
    assert scopes[0].cancel()
    assert all(scope.reason is None for scope in scopes[1:])


def test_a_closed_scope_leaves_its_siblings_where_they_are() -> None:
    root = Scope()
    closed, open_ = Scope(root), Scope(root)
    closed.close()
    root.cancel()
    assert closed.reason is None
    assert isinstance(open_.reason, Cancelled)


def test_a_callback_that_was_taken_back_is_not_called() -> None:
    root, seen = Scope(), []
    root.on_cancel(seen.append)
    root.on_cancel(seen.append)
    root.forget(seen.append)
    root.forget(print)
    root.cancel()
    root.forget(seen.append)
    assert seen == [root.reason]


def test_a_callback_is_called_at_once_when_it_comes_too_late() -> None:
    root, seen = Scope(), []
    reason = Cancelled("over")
    root.cancel(reason)
    Scope(root).on_cancel(seen.append)
    assert seen == [reason]


def test_a_callback_may_use_the_scope_it_is_called_for() -> None:
    root, seen = Scope(), []
    child = Scope(root)

    def use(_: GramiError) -> None:
        child.on_cancel(seen.append)
        child.forget(use)
        child.close()
        seen.append(root.cancel())
        seen.append(Scope(child).reason)

    child.on_cancel(use)
    root.cancel()
    assert seen == [root.reason, False, root.reason]


def test_chunks_go_to_the_nearest_sink() -> None:
    outer, inner = object(), object()
    root = Scope(sink=outer)  # type: ignore[arg-type]
    assert Scope(root).sink is outer
    assert Scope(Scope(root, sink=inner)).sink is inner  # type: ignore[arg-type]
    assert root.sink is outer


def test_a_deadline_that_passed_is_a_reason_of_its_own() -> None:
    root = Scope(deadline=1.0)
    child = Scope(root)
    root.expire()
    assert isinstance(child.reason, DeadlineExceeded)
    assert Scope().deadline == math.inf


@pytest.mark.usefixtures("frequent_switches")
@pytest.mark.parametrize("round_", range(10))
def test_callbacks_that_are_added_while_it_is_cancelled_are_each_called_exactly_once(round_: int) -> None:
    root = Scope()
    leaves = [Scope(Scope(root)) for _ in range(6)]
    calls: list[tuple[int, int]] = []
    cancelled: list[bool] = []

    def add(leaf: int) -> None:
        for number in range(150):
            leaves[leaf].on_cancel(lambda _, at=(leaf, number): calls.append(at))

    def cancel() -> None:
        cancelled.append(root.cancel())

    together(*(lambda leaf=leaf: add(leaf) for leaf in range(6)), cancel, cancel)
    assert sorted(cancelled) == [False, True]
    assert Counter(calls) == {(leaf, number): 1 for leaf in range(6) for number in range(150)}


@pytest.mark.parametrize("late", ["child", "callback"])
def test_what_is_added_is_reached_at_whatever_instruction_the_cancel_comes(late: str) -> None:
    for moment in itertools.count(1):
        root, seen, reason = Scope(), [], Cancelled("now")
        function = Scope.__init__ if late == "child" else Scope.on_cancel
        with Switch(function, moment, root._lock, lambda root=root, reason=reason: root.cancel(reason)) as switch:
            child = Scope(root) if late == "child" else root
            child.on_cancel(seen.append)
        root.cancel(reason)
        assert seen == [reason], f"at instruction {moment}"
        if not switch.happened:
            break
    assert moment > 5


@pytest.mark.usefixtures("frequent_switches")
@pytest.mark.parametrize("round_", range(10))
def test_children_that_are_made_while_it_is_cancelled_are_all_cancelled(round_: int) -> None:
    root = Scope()
    made: list[Scope] = []

    def make() -> None:
        parent = root
        for number in range(150):
            parent = Scope(parent if number % 10 else root)
            made.append(parent)

    together(make, make, make, root.cancel)
    assert [scope for scope in made if scope.reason is None] == []
    assert all(not scope._children for scope in made)
