"""``grami validate``: every fault with its path, and only faults."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from grami_actors import Agent, Message, Swarm, handles, lazy_tool, tool
from grami_actors.cli.app import app
from grami_actors.cli.validate import Checker, Finding, read
from grami_actors.errors import ConfigError
from grami_actors.frames import Header

ROOT = Path(__file__).parents[1]
SWARM_FILE = ROOT / "scenarios" / "content_swarm.py"
T = TypeVar("T")


class Circle(msgspec.Struct, tag=True):
    radius: float


class Square(msgspec.Struct, tag=True):
    side: float


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    a: int = 0
    b: int = 0


class Box(msgspec.Struct, Generic[T]):
    content: T


class Tree(msgspec.Struct, rename="camel"):
    its_name: str
    branches: list[Tree] = []


class Order(Message):
    amount: Annotated[int, msgspec.Meta(ge=1)]
    shape: Circle | Square | None = None
    by_name: dict[str, Tree] = msgspec.field(default_factory=dict)
    by_number: dict[int, str] = msgspec.field(default_factory=dict)
    pair: tuple[int, str] = (0, "")
    many: tuple[int, ...] = ()
    tags: Annotated[list[str], msgspec.Meta(max_length=3)] = msgspec.field(default_factory=list)
    strict: Strict | None = None
    box: Box[int] | None = None
    mixed: int | str | list[int] = 0
    anything: Any = None


class Range(Message):
    low: int = 0
    high: int = 1

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("low is above high")
        if self.low == 13:
            raise LookupError("thirteen")


class Shop(Agent, instances=2):
    @handles(Order, Range)
    def take(self, message: Order | Range) -> None: ...


@tool
def double(number: int) -> int:
    return 2 * number


SWARM = Swarm([Shop], [double, lazy_tool("nothing.of_this:kind", name="lazy")])
CHECKER = Checker(SWARM)


def check(message: Any) -> list[Finding]:
    raw = message if isinstance(message, bytes) else json.dumps(message).encode()
    return list(CHECKER.check(1, raw))


def faults(message: Any) -> dict[str, str]:
    """What a server would refuse: path and text."""
    return {each.path: each.text for each in check(message) if each.error_code}


def hints(message: Any) -> dict[str, str]:
    return {each.path: each.text for each in check(message) if not each.error_code}


# --- one message ---


def test_a_message_without_a_fault_has_no_finding() -> None:
    assert check({"type": "order", "amount": 1, "id": "x", "stream": True, "to": "shop-2", "meta": {"mine": 1}}) == []


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"amount": "1"}, {"$.amount": "Expected int, got str"}),
        ({}, {"$.amount": "required, but missing"}),
        ({"amount": 0, "shape": 5}, {"$.amount": "Expected int >= 1", "$.shape": "Expected object | null, got int"}),
        (
            {"amount": 1, "shape": {"type": "Circle", "radius": "r"}},
            {"$.shape.radius": "Expected float, got str"},
        ),
        ({"amount": 1, "shape": {"type": "Cube"}}, {"$.shape.type": "Invalid value 'Cube'"}),
        (
            {"amount": 1, "by_name": {"a b": {"itsName": 1, "branches": [{"itsName": "x"}, {}, 7]}, "c": None}},
            {
                '$.by_name["a b"].itsName': "Expected str, got int",
                '$.by_name["a b"].branches[1].itsName': "required, but missing",
                '$.by_name["a b"].branches[2]': "Expected object, got int",
                "$.by_name.c": "Expected object, got null",
            },
        ),
        ({"amount": 1, "by_number": {"x": "y"}}, {"$.by_number": "Expected int, got str as a key"}),
        ({"amount": 1, "pair": ["1", 2]}, {"$.pair[0]": "Expected int, got str", "$.pair[1]": "Expected str, got int"}),
        ({"amount": 1, "pair": [1]}, {"$.pair": "Expected array of length 2"}),
        (
            {"amount": 1, "many": [1, "2", 3, None]},
            {"$.many[1]": "Expected int, got str", "$.many[3]": "Expected int, got null"},
        ),
        ({"amount": 1, "tags": ["a"] * 4}, {"$.tags": "Expected array of length <= 3"}),
        ({"amount": 1, "box": {"content": "x"}}, {"$.box.content": "Expected int, got str"}),
        ({"amount": 1, "mixed": {}}, {"$.mixed": "Expected int | str | array, got object"}),
        ({"amount": 1, "strict": {"c": 1}}, {"$.strict.c": "not allowed here"}),
        (
            {"amount": 1, "strict": {"a": "x", "aa": 1}},
            {"$.strict.a": "Expected int, got str", "$.strict.aa": "not allowed here; did you mean 'a'?"},
        ),
        (
            {"amount": 1, "id": 1.5, "timeout_ms": 0},
            {"$.id": "Expected int | str, got float", "$.timeout_ms": "Expected int >= 1"},
        ),
        ({"amount": 1, "id": "x" * 129}, {"$.id": "Expected str of length <= 128"}),
        ({"amount": 1, "stream": True}, {"$.id": "'stream' needs an 'id', to tell the frames apart"}),
        (
            {"amount": "x", "stream": 1, "to": 5},
            {
                "$.amount": "Expected int, got str",
                "$.stream": "Expected bool, got int",
                "$.to": "Expected str, got int",
            },
        ),
    ],
)
def test_every_fault_is_told_with_its_path(fields: dict[str, Any], expected: dict[str, str]) -> None:
    assert faults({"type": "order", **fields}) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"low": 5, "high": 3}, {"$": "low is above high"}),
        ({"low": 13, "high": 20}, {"$": "LookupError: thirteen"}),
        ({"low": "x", "high": 3}, {"$.low": "Expected int, got str"}),
    ],
)
def test_what_a_class_checks_itself_is_told_too(fields: dict[str, Any], expected: dict[str, str]) -> None:
    assert faults({"type": "range", **fields}) == expected


def test_a_field_that_nobody_reads_is_a_hint_and_a_misspelt_one_is_recognised() -> None:
    message = {
        "type": "order",
        "amount": 1,
        "amuont": 2,
        "timeout": 5,
        "zzz": 1,
        "shape": {"type": "Square", "side": 1, "sides": 2},
    }
    assert faults(message) == {}
    assert hints(message) == {
        "$.amuont": "not read by anybody; did you mean 'amount'?",
        "$.timeout": "not read by anybody; did you mean 'timeout_ms'?",
        "$.zzz": "not read by anybody",
        "$.shape.sides": "not read by anybody; did you mean 'side'?",
    }


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ordre", "no agent here handles the type 'ordre'; did you mean 'order'?"),
        ("helo", "no agent here handles the type 'helo'; did you mean 'hello'?"),
        ("job.submit.now", "no agent here handles the type 'job.submit.now'; did you mean 'job.submit'?"),
    ],
)
def test_an_unknown_type_is_told_with_the_one_that_was_meant(name: str, text: str) -> None:
    assert check({"type": name}) == [Finding(1, name, "$.type", text, "UNKNOWN_TYPE")]


def test_control_messages_are_known_and_checked() -> None:
    assert check({"type": "ping", "id": 5}) == []
    assert check({"type": "hello", "protocol": 1, "client": {"name": "x"}}) == []
    assert faults({"type": "hello", "protocol": "1"}) == {"$.protocol": "Expected int, got str"}


def test_the_code_is_the_one_that_a_server_answers() -> None:
    found = check({"type": "order", "amount": "x", "id": 1.5})
    assert [(each.path, each.error_code) for each in found] == [
        ("$.id", "INVALID_MESSAGE"),
        ("$.amount", "VALIDATION_FAILED"),
    ]
    assert [each.error_code for each in check(b"{")] == ["INVALID_JSON"]
    assert [each.error_code for each in check(b"[1]")] == ["INVALID_MESSAGE"]
    assert [each.error_code for each in check(b'{"type":"order","amount":1,"x":"\xff"}')] == ["INVALID_JSON"]
    assert [each.error_code for each in check(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}")] == ["INVALID_JSON"]
    assert [each.path for each in check({"amount": 1})] == ["$.type"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"to": "tool:double", "arguments": {"number": 2}}, {}),
        ({"to": "tool:double", "arguments": {"number": "2"}}, {"$.arguments.number": "double: Expected int, got str"}),
        ({"to": "tool:double"}, {"$.arguments.number": "double: The field number is required"}),
        ({"to": "tool:double", "arguments": 5}, {"$.arguments": "Expected object, got int"}),
    ],
)
def test_the_arguments_of_a_tool_are_checked(fields: dict[str, Any], expected: dict[str, str]) -> None:
    assert faults({"type": "tool_call", **fields}) == expected


def test_what_cannot_be_known_here_is_only_a_hint() -> None:
    assert hints({"type": "tool_call", "to": "tool:lazy"})["$.arguments"].startswith("tool:lazy cannot be imported")
    assert hints({"type": "tool_call"}) == {"$.to": "a tool call goes to a tool by name, such as 'tool:NAME'"}
    assert hints({"type": "order", "amount": 1, "to": "shop-3"})["$.to"].startswith("the swarm has no 'shop-3'")
    assert faults({"type": "order", "amount": 1, "to": "shop-3"}) == {}


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats(allow_nan=False, allow_infinity=False, width=16)
    | st.sampled_from(["", "Circle", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "radius", "itsName", "branches", "content", "a", "1"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)
FIELDS = st.sampled_from([*Order.__struct_fields__, "id", "to", "stream", "timeout_ms", "meta", "background"])


@given(st.dictionaries(FIELDS, JSON, max_size=4), st.booleans())
def test_a_message_has_a_fault_exactly_when_a_server_refuses_it(fields: dict[str, Any], valid: bool) -> None:
    message = {"type": "order", **({"amount": 1} if valid else {}), **fields}
    text = json.dumps(message)
    try:
        header = msgspec.json.decode(text, type=Header)
        msgspec.json.decode(text, type=Order)
        refused = header.stream and header.id is msgspec.UNSET
    except msgspec.ValidationError:
        refused = True
    assert bool(faults(message)) == refused


@given(st.sets(st.sampled_from(["pair", "many", "tags", "box", "by_name", "shape", "amount"])))
def test_as_many_fields_as_are_wrong_are_told(wrong: set[str]) -> None:
    assert set(faults({"type": "order", "amount": 1, **dict.fromkeys(wrong, True)})) == {f"$.{name}" for name in wrong}


# --- a file ---

GOOD = '{"type":"order","amount":1}'


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", []),
        (" \n\n", []),
        (GOOD, [1]),
        ("\ufeff\n" + GOOD, [2]),
        (json.dumps(json.loads(GOOD), indent=2), [1]),
        (f"[{GOOD},\n{GOOD}\n]", [1, 2]),
        ("[]", []),
        (f"{GOOD}\n\n{GOOD}\r\n", [1, 3]),
        (f"{GOOD}\n{{\n{GOOD}", [1, 2, 3]),
        (f"{{\n{GOOD}", [1, 2]),
        ('{\n "type": "order",\n "amount": 1', [1]),
        (f"[{GOOD}\n{GOOD}]", [1]),
        ("nothing", [1]),
    ],
)
def test_the_content_decides_how_a_file_is_read(text: str, lines: list[int]) -> None:
    assert [line for line, _ in read(text.encode())] == lines


def run(file: str | Path, *options: str, swarm: Path = SWARM_FILE, **more: Any) -> Any:
    return CliRunner().invoke(app, ["validate", str(file), "--swarm", str(swarm), *options], **more)


def test_the_command_tells_each_fault_with_its_line_and_ends_with_one(tmp_path: Path) -> None:
    file = tmp_path / "messages.jsonl"
    file.write_text(
        '{"type":"content_request","platform":"x"}\n\n{"type":"content_request","platform":5,"nich":"y"}\n{}\n'
    )
    ended = run(file)
    assert ended.stdout.splitlines() == [
        "line 3: content_request: $.platform: Expected str, got int",
        "line 3: content_request: $.nich: hint: not read by anybody; did you mean 'niche'?",
        "line 4: $.type: required, but missing",
        "faulty: 2 of 3 messages, 1 hint",
    ]
    assert ended.exit_code == 1


def test_for_machines_it_is_json(tmp_path: Path) -> None:
    file = tmp_path / "messages.json"
    file.write_text('[{"type":"content_request","platform":5}, {"type":"content_request","platform":"x"}]')
    ended = run(file, "--json")
    assert json.loads(ended.stdout) == {
        "messages": 2,
        "faulty": 1,
        "findings": [
            {
                "line": 1,
                "type": "content_request",
                "path": "$.platform",
                "text": "Expected str, got int",
                "error_code": "VALIDATION_FAILED",
            }
        ],
    }
    assert ended.exit_code == 1


def test_standard_input_is_read_and_no_fault_is_success() -> None:
    ended = run("-", input='{"type":"content_request","platform":"x","nich":"y"}')
    assert ended.stdout.splitlines()[-1] == "faulty: 0 of 1 message, 1 hint"
    assert ended.exit_code == 0


def test_a_message_cannot_command_the_terminal() -> None:
    ended = run("-", input=json.dumps({"type": "content_request", "platform": "x", "a\x1b[2J": 1, "\u202e": 2}))
    assert "\x1b" not in ended.stdout
    assert "\u202e" not in ended.stdout
    ended = run("-", input=json.dumps({"type": "\x1b[2J"}))
    assert "\x1b" not in ended.stdout


@pytest.mark.parametrize(
    ("content", "words"), [(None, "cannot be read: No such file"), ("\n", "there is no message in")]
)
def test_a_file_that_has_no_message_is_an_error(content: str | None, words: str, tmp_path: Path) -> None:
    file = tmp_path / "messages.json"
    if content is not None:
        file.write_text(content)
    ended = run(file)
    assert isinstance(ended.exception, ConfigError)
    assert words in ended.exception.message


@pytest.mark.slow
def test_it_is_a_command_of_the_program() -> None:
    command = [sys.executable, "-m", "grami_actors", "validate", "-", "--swarm", str(SWARM_FILE)]
    ended = subprocess.run(command, input=GOOD, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "no agent here handles the type 'order'" in ended.stdout
    assert ended.stderr == ""


def test_a_literal_of_a_nested_tag_is_told_where_it_stands() -> None:
    class Holder(Message):
        one: Circle
        kind: Literal["a", "b"] = "a"

    class Keeper(Agent):
        @handles(Holder)
        def keep(self, message: Holder) -> None: ...

    checker = Checker(Swarm([Keeper]))
    found = checker.check(1, b'{"type":"holder","one":{"radius":"x"},"kind":"c"}')
    assert {each.path: each.text for each in found} == {
        "$.one.type": "required, but missing",
        "$.one.radius": "Expected float, got str",
        "$.kind": "Invalid enum value 'c'",
    }
