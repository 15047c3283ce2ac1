"""Which message a frame is, and what is told of one that is wrong."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grami_actors.catalog import Catalog, decoded, faulty
from grami_actors.encoding import ENCODINGS, JSON, MSGPACK, Encoding
from grami_actors.errors import ProtocolError
from grami_actors.explain import explain
from grami_actors.frames import Header
from grami_actors.messages import CONTROL_TYPES, RESERVED_PREFIXES, Message

BOTH = pytest.mark.parametrize("kind", [JSON, MSGPACK], ids=str)


class Part(msgspec.Struct):
    size: int


class Order(Message, tag="order"):
    name: str
    parts: tuple[Part, ...] = ()
    when: datetime | None = None


class Speechless(Exception):
    def __str__(self) -> str:
        raise KeyError("no words")


class Picky(Message, tag="picky"):
    flaw: str = ""

    def __post_init__(self) -> None:
        raise {"value": ValueError("not so"), "key": KeyError("k"), "mute": Speechless(), "deep": RecursionError()}[
            self.flaw
        ]


CATALOG = Catalog({"order": Order, "picky": Picky}, lambda _: {})


def framed(kind: Encoding, fields: Any) -> str | bytes:
    return json.dumps(fields) if kind.text else kind.encode(fields)


def refusal(kind: Encoding, **fields: Any) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        CATALOG.decode(Header(fields["type"]), framed(kind, fields), kind)
    return caught.value


@BOTH
@given(name=st.text(max_size=9), sizes=st.lists(st.integers(-(2**63), 2**64 - 1), max_size=3))
def test_a_message_is_the_same_in_both_encodings(kind: Encoding, name: str, sizes: list[int]) -> None:
    fields = {"type": "order", "name": name, "parts": [{"size": size} for size in sizes], "unknown": 1, "id": "x"}
    order = Order(name, tuple(Part(size) for size in sizes))
    assert CATALOG.decode(Header("order"), framed(kind, fields), kind) == order
    assert CATALOG.convert(fields) == order


@BOTH
@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({}, "$.name", "The field `name` is required (at $.name)"),
        ({"name": 5}, "$.name", "Expected `str`, got `int` (at $.name)"),
        ({"name": "a", "parts": [{"size": 1}, {}]}, "$.parts[1].size", "is required (at $.parts[1].size)"),
        ({"name": "a", "parts": [{"size": 1}, {"size": None}]}, "$.parts[1].size", "Expected `int`, got `"),
        ({"name": "a", "parts": {}}, "$.parts", "Expected `array`"),
        ({"name": "a", "when": "soon"}, "$.when", "(at $.when)"),
    ],
)
def test_a_wrong_field_is_named_with_its_path(kind: Encoding, fields: dict[str, Any], param: str, words: str) -> None:
    error = refusal(kind, type="order", **fields)
    assert (error.error_code, error.param) == ("VALIDATION_FAILED", param)
    assert words in error.message
    with pytest.raises(ProtocolError) as caught:
        CATALOG.convert({"type": "order", **fields})
    assert (caught.value.error_code, caught.value.param) == ("VALIDATION_FAILED", param.replace("$", "$.data", 1))
    assert words in caught.value.message


@BOTH
@pytest.mark.parametrize(
    ("flaw", "words"), [("value", "not so"), ("key", "picky: KeyError: 'k'"), ("mute", "picky: Speechless: (its")]
)
def test_a_message_that_refuses_itself_says_why(kind: Encoding, flaw: str, words: str) -> None:
    error = refusal(kind, type="picky", flaw=flaw)
    assert (error.error_code, error.param) == ("VALIDATION_FAILED", "$")
    assert words in error.message
    with pytest.raises(ProtocolError) as caught:
        CATALOG.convert({"type": "picky", "flaw": flaw})
    assert (caught.value.error_code, words in caught.value.message) == ("VALIDATION_FAILED", True)
    assert caught.value.param in {"$", "$.data"}


@pytest.mark.parametrize("value", [None, 5, "order", [], {}, {"type": "other"}, {"type": None}, {"type": 5}])
def test_data_that_is_no_message_of_the_catalog_is_left_as_it_is(value: Any) -> None:
    assert CATALOG.convert(value) is None


@pytest.mark.parametrize("value", [{"type": ["order"]}, {"type": {}}, {"type": {"a": 1}}])
def test_data_whose_type_cannot_even_be_looked_up_is_no_message(value: Any) -> None:
    assert CATALOG.convert(value) is None


@pytest.mark.parametrize("name", [*sorted(CONTROL_TYPES), *(f"{prefix}x" for prefix in RESERVED_PREFIXES)])
def test_a_reserved_type_that_is_not_known_here_is_not_supported(name: str) -> None:
    error = refusal(JSON, type=name)
    assert (error.error_code, repr(name) in error.message) == ("UNSUPPORTED_FEATURE", True)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("oder", "did you mean 'order'?"), ("Order", "did you mean 'order'?"), ("xyz", "send 'describe'")],
)
def test_an_unknown_type_is_told_the_nearest_one_or_where_they_all_stand(name: str, hint: str) -> None:
    error = refusal(JSON, type=name)
    assert (error.error_code, hint in error.message) == ("UNKNOWN_TYPE", True)


@pytest.mark.parametrize(("bad", "kind"), [("{", JSON), ("\ud800", JSON), (b"\xc1", MSGPACK), (b"\xa1\xff", MSGPACK)])
def test_what_is_not_of_the_encoding_is_told_so_by_its_name(bad: str | bytes, kind: Encoding) -> None:
    with pytest.raises(ProtocolError) as caught:
        decoded(kind.decoder(Any), bad, kind)
    assert caught.value.error_code == "INVALID_JSON"
    assert caught.value.message.startswith(f"the message is not valid {kind.name}: ")


def test_what_is_nested_too_deeply_for_a_decoder_is_told_so() -> None:
    with pytest.raises(ProtocolError) as caught:
        decoded(JSON.decoder(Any), "[" * 100_000, JSON)
    assert (caught.value.error_code, caught.value.message) == ("INVALID_JSON", "the message is nested too deeply")
    assert faulty(RecursionError(), JSON).message == caught.value.message


def test_only_what_is_well_formed_and_wrong_gets_the_code_that_was_asked_for() -> None:
    codes = [
        faulty(error, JSON, code="INVALID_MESSAGE").error_code
        for error in (msgspec.ValidationError("x"), msgspec.DecodeError("x"), UnicodeError("x"), KeyError("x"))
    ]
    assert codes == ["INVALID_MESSAGE", "INVALID_JSON", "INVALID_JSON", "VALIDATION_FAILED"]


def test_a_fault_without_a_path_is_one_of_the_whole_message() -> None:
    assert explain(msgspec.ValidationError("Expected `object`, got `array`")) == (
        "Expected `object`, got `array` (at $)",
        "$",
    )


def test_a_catalog_reads_every_encoding_that_there_is() -> None:
    for kind in ENCODINGS.values():
        assert CATALOG.decode(Header("order"), framed(kind, {"type": "order", "name": "a"}), kind) == Order("a")
