"""JSON and MessagePack: how deep a frame is, exactly, and at what cost."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from grami_actors import encoding
from grami_actors.encoding import ENCODINGS, JSON, MSGPACK, Encoding

BOTH = pytest.mark.parametrize("kind", [JSON, MSGPACK], ids=str)
texts = st.text(max_size=6) | st.text('[]{}",\\:\n x', max_size=12)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=30
)
keys = st.recursive(
    st.none() | st.integers(-5, 5) | texts, lambda inner: st.lists(inner, max_size=2).map(tuple), max_leaves=4
)
msgpack_values = st.recursive(
    scalars | st.binary(max_size=20) | st.builds(msgspec.msgpack.Ext, st.integers(0, 9), st.binary(max_size=9)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=30,
)


def depth(value: Any) -> int:
    """Levels of objects and arrays, by the book."""
    if isinstance(value, dict):
        return 1 + max((depth(each) for pair in value.items() for each in pair), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list | tuple) else 0


@settings(max_examples=300)
@given(json_values, st.booleans(), st.sampled_from([None, 1]), st.integers(0, 8))
def test_a_json_text_is_too_deep_exactly_when_its_value_is(
    value: Any, ascii_only: bool, indent: int | None, most: int
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    assert JSON.too_deep(text, most) is (depth(value) > most)
    assert JSON.too_deep(text.encode(), most) is (depth(value) > most)


@settings(max_examples=300)
@given(msgpack_values, st.integers(0, 8))
@example({((((),),),): 1}, 4)
@example({"a": b"\x91" * 9}, 1)
def test_a_msgpack_object_is_too_deep_exactly_when_its_value_is(value: Any, most: int) -> None:
    assert MSGPACK.too_deep(msgspec.msgpack.encode(value), most) is (depth(value) > most)


@BOTH
@pytest.mark.parametrize("step", ["list", "dict", "mixed"])
def test_the_limit_itself_is_allowed_and_one_more_is_not(kind: Encoding, step: str) -> None:
    for most in (1, 2, 16, 17, 64, 200):
        value: Any = 1
        for level in range(most):
            value = [value] if step == "list" or (step == "mixed" and level % 2) else {"a": value}
        frame = kind.encode(value).decode() if kind.text else kind.encode(value)
        assert not kind.too_deep(frame, most)
        frame = kind.encode([value]).decode() if kind.text else kind.encode([value])
        assert kind.too_deep(frame, most)


@pytest.mark.parametrize("wide", [1, 15, 16, 70_000])
@pytest.mark.parametrize("mapped", [False, True])
def test_levels_count_whatever_the_size_of_what_is_in_them(wide: int, mapped: bool) -> None:
    value: Any = 1
    for _ in range(3):
        value = {**dict.fromkeys(range(wide - 1), 0), -1: value} if mapped else [*[0] * (wide - 1), value]
    frame = MSGPACK.encode(value)
    assert (MSGPACK.too_deep(frame, 2), MSGPACK.too_deep(frame, 3)) == (True, False)


@pytest.mark.parametrize(
    "text",
    [
        '"' + "[" * 99 + '"',
        '"\\"' + "[" * 99 + '"',
        '{"\\\\":"' + "{" * 99 + '"}',
        '["' + "]" * 50 + '","' + "[" * 99 + '"]',
    ],
)
def test_brackets_in_a_text_are_no_levels_whatever_is_escaped_before_them(text: str) -> None:
    json.loads(text)
    assert not JSON.too_deep(text, 1)


@pytest.mark.parametrize("text", ['"\\\\"' + "[" * 9, '"\\u005b"' + "[" * 9, '""' + "[" * 9])
def test_brackets_behind_a_text_are_levels_whatever_is_escaped_in_it(text: str) -> None:
    assert JSON.too_deep(text, 8)
    assert not JSON.too_deep(text, 9)


@given(st.text('[]{}"\\a', max_size=60), st.integers(0, 4))
def test_what_is_not_even_json_never_raises(text: str, most: int) -> None:
    JSON.too_deep(text, most)
    JSON.too_deep(text.encode(), most)


HOSTILE = ['"', '\\"', '"\\', '"[', "[]", "[", "]", '"\\"[', '"a\\\\"{', "\\", '{"', '""']


@pytest.mark.parametrize("piece", HOSTILE)
def test_no_byte_of_a_hostile_text_is_looked_at_twice(piece: str) -> None:
    """The texts that are found, one behind the other, are all that was looked at: there is no other way to go on."""
    data = ('["' + piece * 2_000).encode()
    end = 0
    for found in encoding._TEXT_IN_JSON.finditer(data):
        assert found.start() >= end
        assert b'"' not in data[end : found.start()]
        end = found.end()
    # What begins a text always ends one: it is never tried anew from the next byte.
    assert b'"' not in data[end:]


@BOTH
@given(value=json_values)
def test_what_is_encoded_comes_back(kind: Encoding, value: Any) -> None:
    assert kind.decode(kind.encode(value)) == value == kind.decoder(Any)(kind.encode_deterministically(value))


@BOTH
def test_the_deterministic_form_does_not_know_the_order_of_keys(kind: Encoding) -> None:
    one, other = {"a": {"c": 1, "d": 2}, "b": {3}}, {"b": {3}, "a": {"d": 2, "c": 1}}
    assert kind.encode_deterministically(one) == kind.encode_deterministically(other)


def test_an_encoding_is_found_by_the_subprotocol_that_asks_for_it() -> None:
    assert {"grami.v1.json": JSON, "grami.v1.msgpack": MSGPACK} == ENCODINGS
    assert (JSON.text, MSGPACK.text) == (True, False)
    assert [repr(each) for each in ENCODINGS.values()] == ["<JSON>", "<MessagePack>"]
