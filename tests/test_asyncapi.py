"""The AsyncAPI document: what it says, and that AsyncAPI's own parser finds nothing wrong with it."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import json
import os
import shutil
import subprocess
import uuid
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grami_actors import Agent, Message, Swarm, handles
from grami_actors.asyncapi import CONTROLS, document
from grami_actors.errors import RETRYABLE, ErrorCode
from grami_actors.frames import ADMIN_TYPES, JOB_CONTROLS
from grami_actors.messages import CONTROL_TYPES, REQUEST_FIELDS
from grami_actors.scenario import script
from tests.swarms import small_swarm

ROOT = Path(__file__).parents[1]
NODE = shutil.which("node")
NODE_MODULES = ROOT / ".ci" / "node" / "node_modules"


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Circle(msgspec.Struct, tag=True):
    radius: float


class Square(msgspec.Struct, tag=True):
    side: float
    label: str | None = None


class Tree(msgspec.Struct):
    """Has branches."""

    name: str
    branches: list[Tree] = []
    parent: Tree | None = None


class Pair(NamedTuple):
    left: int
    right: str = ""


class Options(TypedDict, total=False):
    deep: bool
    discriminator: str


class Response(msgspec.Struct):
    """Named like a frame of the protocol."""

    text: str


class Opaque:
    """Has no JSON Schema."""


class Everything(Message):
    """All sorts of fields."""

    text: Annotated[str, msgspec.Meta(min_length=1, max_length=9, pattern="^a", title="A text", examples=["ab"])]
    number: Annotated[int, msgspec.Meta(gt=0, le=10)] | None
    fixed: Literal["a", "b", 3]
    moods: dict[Mood, list[Level]]
    counts: dict[str, Annotated[int, msgspec.Meta(ge=0)]]
    shape: Circle | Square
    tree: Tree
    triple: tuple[int, str, Tree]
    many: tuple[int, ...]
    pair: Pair
    options: Options
    at: dt.datetime
    utc: Annotated[dt.datetime, msgspec.Meta(tz=True)]
    day: dt.date
    hour: dt.time
    span: dt.timedelta
    blob: bytes
    price: decimal.Decimal
    which: uuid.UUID
    several: frozenset[int]
    anything: Any
    raw: msgspec.Raw
    opaque: Opaque
    response: Response
    any_of: int | str | list[float] | None = None
    free: Annotated[str, msgspec.Meta(extra_json_schema={"$comment": "prefixItems"})] = "x"
    prefixItems: tuple[int, int] = (1, 2)  # noqa: N815 - a field named like a word of JSON Schema
    tree_or_none: Tree | None = None
    described: Annotated[Tree, msgspec.Meta(description="beside a reference")] = msgspec.field(
        default_factory=lambda: Tree("root")
    )


class Odd(Message, tag="an odd/name?"):
    pass


class Odder(Message, tag="an odd name "):
    pass


class Named(Message, tag="Response"):
    pass


class Worker(Agent):
    @handles(Everything)
    def do(self, message: Everything) -> None: ...

    @handles(Odd)
    def odd(self, message: Odd) -> None: ...

    @handles(Odder)
    def odder(self, message: Odder) -> None: ...

    @handles(Named)
    def named(self, message: Named) -> None: ...


ALL_SORTS = Swarm([Worker])


def tell(swarm: Swarm, url: str = "ws://127.0.0.1:8000/ws", *, secured: bool = False) -> dict[str, Any]:
    """The document, as it comes out of JSON."""
    made = document(swarm.types(), title="A swarm", version="1.2", url=url, secured=secured)
    return json.loads(msgspec.json.encode(made))


def content_swarm() -> Swarm:
    return script.load(ROOT / "scenarios" / "content_swarm.py").swarm


def parts(schema: Any) -> list[Any]:
    """A schema and everything in it."""
    inner = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    return [schema, *(each for value in inner for each in parts(value))]


def resolve(told: dict[str, Any], reference: str) -> Any:
    found: Any = told
    for step in reference.removeprefix("#/").split("/"):
        found = found[step]
    return found


# --- AsyncAPI's own parser ---

PARSE = """
const {Parser} = require("@asyncapi/parser");
let text = "";
process.stdin.on("data", (part) => { text += part; });
process.stdin.on("end", async () => {
  const told = [];
  const parser = new Parser();
  for (const each of JSON.parse(text)) {
    const {document, diagnostics} = await parser.parse(each);
    const errors = diagnostics.filter((one) => one.severity === 0);
    told.push({
      errors: errors.map((one) => `${one.path.join("/")}: ${one.message}`),
      operations: document ? document.operations().all().map((one) => one.id()) : [],
    });
  }
  console.log(JSON.stringify(told));
});
"""


def parse(*documents: dict[str, Any]) -> list[dict[str, Any]]:
    assert NODE is not None
    run = subprocess.run(
        [NODE, "-e", PARSE],
        input=json.dumps(documents),
        cwd=NODE_MODULES.parent,
        env=os.environ | {"NODE_PATH": str(NODE_MODULES)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.slow
@pytest.mark.skipif(NODE is None, reason="Node is not installed")
@pytest.mark.skipif(
    not (NODE_MODULES / "@asyncapi" / "parser").is_dir(),
    reason="the npm package @asyncapi/parser is not in .ci/node (.ci/run gets it)",
)
def test_the_parser_of_asyncapi_finds_no_error_in_the_documents_and_one_in_a_wrong_one() -> None:
    wrong = tell(ALL_SORTS)
    wrong["operations"]["everything"]["reply"]["messages"][0]["$ref"] = "#/channels/ws/messages/nobody"
    documents = [
        tell(content_swarm()),
        tell(small_swarm(), "wss://example.org/ws", secured=True),
        tell(ALL_SORTS, "ws://[::1]:8000/ws"),
        tell(Swarm([])),
        wrong,
    ]
    *good, bad = parse(*documents)
    assert [each["errors"] for each in good] == [[], [], [], []]
    assert bad["errors"] != []
    for told, made in zip(good, documents, strict=False):
        assert sorted(told["operations"]) == sorted(made["operations"])


# --- what it says ---


def test_a_message_type_has_an_operation_a_message_and_its_answers() -> None:
    told = tell(content_swarm())
    operation = told["operations"]["content_request"]
    assert operation["action"] == "receive"
    (message,) = [resolve(told, resolve(told, each["$ref"])["$ref"]) for each in operation["messages"]]
    assert message["name"] == "content_request"
    assert resolve(told, message["correlationId"]["$ref"]) == {"location": "$message.payload#/id"}
    common, own = [resolve(told, each["$ref"]) for each in message["payload"]["allOf"]]
    assert set(common["properties"]) == REQUEST_FIELDS
    assert common["required"] == ["type"]
    assert own["properties"]["type"] == {"enum": ["content_request"]}
    assert own["required"] == ["type", "platform"]
    answers = {resolve(told, resolve(told, each["$ref"])["$ref"])["name"] for each in operation["reply"]["messages"]}
    assert answers == {
        "PlainError",
        "PlainSuccess",
        "response",
        "response.chunk",
        "response.progress",
        "response.started",
    }


def test_every_request_field_says_what_it_means() -> None:
    fields = tell(small_swarm())["components"]["schemas"]["Request"]["properties"]
    assert all(field["description"] for field in fields.values())
    assert set(fields) == REQUEST_FIELDS


def test_the_error_codes_are_an_enumeration_and_say_which_may_be_tried_again() -> None:
    schemas = tell(small_swarm())["components"]["schemas"]
    assert set(schemas["ErrorCode"]["enum"]) == set(map(str, ErrorCode))
    assert set(schemas["ErrorCode"]["x-retryable"]) == set(map(str, RETRYABLE))
    for frame in ("ErrorResponse", "PlainError"):
        assert schemas[frame]["properties"]["error_code"] == {"$ref": "#/components/schemas/ErrorCode"}
    assert schemas["Response"]["properties"]["status"] == {"const": "success"}
    assert schemas["ErrorResponse"]["properties"]["status"] == {"const": "error"}


def test_the_control_messages_are_told_with_their_answers() -> None:
    told = tell(Swarm([]))
    pushed = {"Event", "JobEvent", "JobDetached", "Goaway"}
    assert set(told["operations"]) == set(CONTROLS) | pushed
    assert {name for name, each in told["operations"].items() if each["action"] == "send"} == pushed
    assert set(CONTROLS) == CONTROL_TYPES | ADMIN_TYPES | set(JOB_CONTROLS)
    (answer,) = told["operations"]["ping"]["reply"]["messages"]
    assert resolve(told, resolve(told, answer["$ref"])["$ref"])["name"] == "pong"
    payload = told["components"]["messages"]["hello"]["payload"]["allOf"]
    assert payload[1] == {"properties": {"type": {"const": "hello"}}, "required": ["type"]}


@pytest.mark.parametrize(
    ("url", "host", "protocol", "address"),
    [
        ("ws://127.0.0.1:8000/ws", "127.0.0.1:8000", "ws", "/ws"),
        ("wss://[::1]:443/a/ws", "[::1]:443", "wss", "/a/ws"),
    ],
)
def test_the_server_is_told_by_host_and_protocol(url: str, host: str, protocol: str, address: str) -> None:
    told = tell(small_swarm(), url)
    assert told["servers"]["main"] == {"host": host, "protocol": protocol}
    assert told["channels"]["ws"]["address"] == address
    assert "securitySchemes" not in told["components"]


def test_a_server_that_wants_a_credential_says_so() -> None:
    told = tell(small_swarm(), secured=True)
    (reference,) = told["servers"]["main"]["security"]
    assert resolve(told, reference["$ref"]) == {"type": "http", "scheme": "bearer"}


def test_names_that_cannot_be_keys_get_keys_of_their_own_and_stay_the_names() -> None:
    told = tell(ALL_SORTS)
    keys = {message["name"]: key for key, message in told["components"]["messages"].items()}
    assert {keys["an odd/name?"], keys["an odd name "], keys["Response"]} == {
        "an_odd_name_",
        "an_odd_name_-2",
        "Response-2",
    }
    assert resolve(told, told["operations"]["an_odd_name_-2"]["messages"][0]["$ref"])["$ref"].endswith("an_odd_name_-2")


def test_two_structs_of_one_name_are_two_schemas() -> None:
    schemas = tell(ALL_SORTS)["components"]["schemas"]
    ours, theirs = [schemas[name] for name in sorted(schemas) if name.endswith("Response") and "Error" not in name]
    assert {tuple(ours["properties"]), tuple(theirs["properties"])} == {
        ("text",),
        ("type", "id", "seq", "status", "data", "duration_ms", "chunks_dropped", "replayed"),
    }


# --- draft 07 ---


def test_what_draft_07_says_otherwise_is_told_its_way() -> None:
    told = tell(ALL_SORTS)
    schemas = told["components"]["schemas"]
    fields = schemas["Everything"]["properties"]
    tree = {"$ref": "#/components/schemas/Tree"}
    assert fields["triple"] == {
        "type": "array",
        "items": [{"type": "integer"}, {"type": "string"}, tree],
        "additionalItems": False,
        "minItems": 3,
        "maxItems": 3,
    }
    assert fields["described"]["allOf"] == [tree]
    assert fields["described"]["description"] == "beside a reference"
    assert fields["shape"] == {
        "anyOf": [{"$ref": "#/components/schemas/Circle"}, {"$ref": "#/components/schemas/Square"}]
    }
    assert fields["opaque"] == {"title": "Opaque"}
    # Fields that are named like words of JSON Schema are fields.
    assert fields["prefixItems"]["items"] == [{"type": "integer"}, {"type": "integer"}]
    assert schemas["Options"]["properties"]["discriminator"] == {"type": "string"}


KINDS = st.recursive(
    st.sampled_from([int, str, bool, None, float, Tree, Mood, dt.date, Any, bytes]),
    lambda inner: st.one_of(
        inner.map(lambda each: list[each]),  # type: ignore[valid-type]
        inner.map(lambda each: dict[str, each]),  # type: ignore[valid-type]
        st.lists(inner, min_size=1, max_size=3).map(lambda each: tuple[*each]),  # type: ignore[valid-type]
        inner.map(lambda each: Annotated[each, msgspec.Meta(description="words")]),
    ),
    max_leaves=6,
)


@given(st.lists(KINDS, max_size=4))
def test_the_document_never_has_a_word_of_the_later_draft_nor_a_reference_to_nothing(kinds: list[Any]) -> None:
    fields = [(f"field_{number}", kind) for number, kind in enumerate(kinds)]
    made = msgspec.defstruct("Made", fields, tag="made", tag_field="type")
    told = json.loads(msgspec.json.encode(document({"made": made}, title="", version="", url="ws://here/ws")))
    for each in parts(told):
        if isinstance(each, dict):
            assert not {"prefixItems", "$defs", "discriminator"} & set(each)
            if "$ref" in each:
                assert len(each) == 1
                resolve(told, each["$ref"])
