"""``grami validate``: check messages against the types of a swarm before anybody sends them. Floor 17.

A server tells the first fault of a message. Here all are told: what msgspec refuses is taken apart, and each field,
item and value is checked by itself.
"""

from __future__ import annotations

import difflib
import re
import sys
import types
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
import typer

from grami_actors.asyncapi import CONTROLS, Request
from grami_actors.cli.app import AsJson, app, out
from grami_actors.errors import ConfigError, ErrorCode, GramiError
from grami_actors.explain import explain
from grami_actors.logs import printable
from grami_actors.messages import CONTROL_TYPES, REQUEST_FIELDS, ToolCall
from grami_actors.scenario import script as scripts
from grami_actors.swarm import Swarm


class Finding(msgspec.Struct, frozen=True):
    """Something about one message.

    Attributes:
        line: where it begins, from 1; in an array the number of the message.
        type: the message type, as far as there is one.
        path: of the field, such as ``$.platform``.
        text: what is wrong with it.
        error_code: what a server would answer; empty for a hint, with which it would take the message.
    """

    line: int
    type: str
    path: str
    text: str
    error_code: str = ""


class Part(msgspec.Struct, frozen=True):
    """A value inside a message. ``raw`` is ``None`` for one that is required and missing."""

    raw: msgspec.Raw | None
    kind: Any
    path: str


class Fault(msgspec.Struct, frozen=True):
    """What is wrong with a part; a hint is not refused."""

    path: str
    text: str
    hint: bool = False


# --- the command ---


@app.command()
def validate(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Messages as JSON; - reads standard input.")],
    swarm: Annotated[
        Path, typer.Option("--swarm", metavar="SWARM.PY", help="A Python file that defines `swarm = Swarm(...)`.")
    ],
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Check messages against the types of a swarm, without sending them.

    FILE is one message, an array of messages, or one message per line. The exit code is 1 when one has a fault;
    a hint, such as a field that nobody reads, is no fault.
    The types come from the swarm's own file, also for a server that runs: what a server tells of them, JSON
    Schemas, does not say all that they check.

    For example: grami validate messages.jsonl --swarm scenarios/content_swarm.py
    """
    checker = Checker(scripts.load(swarm).swarm)
    entries = read(_bytes_of(file))
    if not entries:
        raise ConfigError(f"there is no message in {'standard input' if file == '-' else file}")
    findings = [finding for line, raw in entries for finding in checker.check(line, raw)]
    faulty = len({finding.line for finding in findings if finding.error_code})
    if as_json:
        report = {"messages": len(entries), "faulty": faulty, "findings": findings}
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    else:
        _show(findings, len(entries), faulty)
    raise typer.Exit(1 if faulty else 0)


def _bytes_of(file: str) -> bytes:
    if file == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from None


def _show(findings: list[Finding], count: int, faulty: int) -> None:
    for each in findings:
        where = ": ".join(part for part in (f"line {each.line}", each.type, each.path) if part)
        style, mark = ("red", "") if each.error_code else ("yellow", "hint: ")
        out.print(printable(f"{where}: {mark}{each.text}"), style=style, markup=False, highlight=False, soft_wrap=True)
    hints = sum(not each.error_code for each in findings)
    extra = f", {hints} {'hint' if hints == 1 else 'hints'}" if hints else ""
    out.print(f"faulty: {faulty} of {count} {'message' if count == 1 else 'messages'}{extra}", highlight=False)


# --- what is in a file ---


def read(data: bytes) -> list[tuple[int, bytes]]:
    """The messages of a file, each with its line (its number, in an array); what is no JSON is one of them."""
    text = data.removeprefix(b"\xef\xbb\xbf")
    lines = [(number, line) for number, line in enumerate(text.split(b"\n"), 1) if line.strip()]
    if not lines:
        return []
    try:
        if text.lstrip().startswith(b"["):
            return [(number, bytes(each)) for number, each in enumerate(_decode(text, list[msgspec.Raw]), 1)]
        _decode(text, msgspec.Raw)
    except (ValueError, RecursionError):
        # A document that is broken has no line that is an object by itself; lines have, unless all are broken.
        if text.lstrip().startswith(b"{") and (len(lines) == 1 or any(_is_object(line) for _, line in lines)):
            return lines
    return [(lines[0][0], text)]


def _decode(raw: bytes | msgspec.Raw, kind: Any) -> Any:
    """Decode JSON. Raises ValueError or RecursionError."""
    str(raw, "utf-8")  # msgspec skips wrong UTF-8 in what it does not need
    return msgspec.json.decode(raw, type=kind)


def _is_object(line: bytes) -> bool:
    try:
        _decode(line, dict[str, msgspec.Raw])
    except (ValueError, RecursionError):
        return False
    return True


# --- one message ---


class Checker:
    """Knows the message types and destinations of a swarm."""

    def __init__(self, swarm: Swarm) -> None:
        self._types = swarm.types()
        self._tools = {f"tool:{each.name}": each for each in swarm.tools}
        self._destinations = set(self._tools)
        for source in swarm.agents:
            kind: Any = source.func if isinstance(source, partial) else source
            numbered = range(1, kind.instances + 1) if kind.instances > 1 else ()
            self._destinations |= {kind.agent_name, *(f"{kind.agent_name}-{number}" for number in numbered)}

    def check(self, line: int, raw: bytes) -> Iterator[Finding]:
        """All that is to say about a message."""
        try:
            fields = _decode(raw, dict[str, msgspec.Raw])
        except msgspec.ValidationError as error:
            yield Finding(line, "", "$", _words(error)[0], ErrorCode.INVALID_MESSAGE)
            return
        except RecursionError:
            yield Finding(line, "", "", "the message is nested too deeply", ErrorCode.INVALID_JSON)
            return
        except ValueError as error:
            yield Finding(line, "", "", f"the message is not valid JSON: {error}", ErrorCode.INVALID_JSON)
            return
        name = _text(fields.get("type"))
        for fault in inspect(Part(msgspec.Raw(raw), Request, "$"), known=fields):
            yield Finding(line, name, fault.path, fault.text, "" if fault.hint else ErrorCode.INVALID_MESSAGE)
        if bytes(fields.get("stream", b"")) == b"true" and "id" not in fields:
            text = "'stream' needs an 'id', to tell the frames apart"
            yield Finding(line, name, "$.id", text, ErrorCode.INVALID_MESSAGE)
        if name:
            yield from self._check_payload(line, name, msgspec.Raw(raw))
            yield from self._check_destination(line, name, fields)

    def _check_payload(self, line: int, name: str, raw: msgspec.Raw) -> Iterator[Finding]:
        if name not in self._types and name not in CONTROL_TYPES | set(CONTROLS):
            text = f"no agent here handles the type {name!r}{_hint(name, [*self._types, *CONTROL_TYPES, *CONTROLS])}"
            yield Finding(line, name, "$.type", text, ErrorCode.UNKNOWN_TYPE)
            return
        kind = self._types.get(name) or CONTROLS.get(name, (None, ()))[0]
        if kind is None:
            return
        for fault in inspect(Part(raw, kind, "$"), known=REQUEST_FIELDS):
            yield Finding(line, name, fault.path, fault.text, "" if fault.hint else ErrorCode.VALIDATION_FAILED)

    def _check_destination(self, line: int, name: str, fields: dict[str, msgspec.Raw]) -> Iterator[Finding]:
        to = _text(fields.get("to"))
        tool = self._tools.get(to)
        if to and to not in self._destinations:
            # Only a hint: an agent may have been started by another while the swarm runs.
            yield Finding(line, name, "$.to", f"the swarm has no {to!r}{_hint(to, self._destinations)}")
        elif self._types.get(name) is not ToolCall:
            return
        elif tool is None:
            yield Finding(line, name, "$.to", "a tool call goes to a tool by name, such as 'tool:NAME'")
        else:
            try:
                tool.convert(_decode(fields.get("arguments", b"{}"), dict[str, Any]))
            except GramiError as error:
                text = re.sub(r" \(at \$.*\)$", "", error.message).replace("`", "")
                yield Finding(line, name, error.param or "$.arguments", text, ErrorCode.VALIDATION_FAILED)
            except msgspec.ValidationError:
                return  # the arguments are no object, which was told already
            except Exception as error:  # noqa: BLE001 - a lazy tool's module raises what it will
                text = f"{to} cannot be imported here, so its arguments were not checked: {error}"
                yield Finding(line, name, "$.arguments", text)


def _text(raw: msgspec.Raw | None) -> str:
    """The string in a field, or nothing."""
    try:
        return "" if raw is None else str(msgspec.json.decode(raw, type=str))
    except ValueError:
        return ""


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, sorted(set(known)), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


# --- one value ---


def inspect(part: Part, known: Iterable[str] = ()) -> list[Fault]:
    """All faults of a value and of what is in it, and the fields that nobody reads.

    Args:
        part: the value.
        known: fields that are read by somebody else.
    """
    if part.raw is None:
        return [Fault(part.path, "required, but missing")]
    own = _first_fault(part)
    kind = _chosen(part)
    found = [fault for each in _parts(part, kind) for fault in inspect(each)]
    found += _unread(part, kind, known) if _is_struct(kind) else ()
    if own and all(fault.hint for fault in found):
        found.append(own)
    return found


def _first_fault(part: Part) -> Fault | None:
    assert part.raw is not None
    try:
        msgspec.json.decode(part.raw, type=part.kind)
    except msgspec.ValidationError as error:
        text, path = _words(error)
        return Fault(part.path + path.removeprefix("$"), text)
    except Exception as error:  # noqa: BLE001 - a class checks itself with code of its own
        return Fault(part.path, f"{type(error).__name__}: {error}")
    return None


def _words(error: msgspec.ValidationError) -> tuple[str, str]:
    text, path = explain(error)
    text = text.removesuffix(f" (at {path})").replace("`", "")
    return re.sub(r" - at key in \$.*$", " as a key", text), path


def _chosen(part: Part) -> Any:
    """The type that a value is meant to have: of a union the one that fits its kind or its tag."""
    kind = part.kind
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) not in {Union, types.UnionType}:
        return kind
    options = [_chosen(Part(part.raw, each, part.path)) for each in get_args(kind) if each is not type(None)]
    if len(options) > 1:
        structs = [each for each in options if _is_struct(each)]
        fields = _fields(part)
        options = [each for each in structs if _config(each).tag == _text(fields.get(_config(each).tag_field or ""))]
    return options[0] if len(options) == 1 else None


def _class(kind: Any) -> Any:
    """The class behind a type that may have parameters."""
    return get_origin(kind) or kind


def _config(kind: Any) -> Any:
    return _class(kind).__struct_config__


def _is_struct(kind: Any) -> bool:
    made = _class(kind)
    return isinstance(made, type) and issubclass(made, msgspec.Struct) and not _config(made).array_like


def _fields(part: Part) -> dict[str, msgspec.Raw]:
    return _taken_apart(part, dict[str, msgspec.Raw]) or {}


def _taken_apart(part: Part, kind: Any) -> Any:
    try:
        return msgspec.json.decode(part.raw or b"", type=kind)
    except (ValueError, RecursionError):
        return None


def _parts(part: Part, kind: Any) -> Iterator[Part]:
    """What is in a value of this type. Values of types that are not known here have no parts."""
    origin, arguments = _class(kind), get_args(kind)
    if _is_struct(kind):
        yield from _parts_of_struct(part, kind)
    elif origin is dict and arguments:
        for name, raw in _fields(part).items():
            yield Part(raw, arguments[1], _below(part.path, name))
    elif origin in {list, set, frozenset, tuple} and arguments:
        items = _taken_apart(part, list[msgspec.Raw]) or ()
        fixed = origin is tuple and arguments[-1] is not Ellipsis
        if fixed and len(items) != len(arguments):
            return
        for number, raw in enumerate(items):
            yield Part(raw, arguments[number if fixed else 0], f"{part.path}[{number}]")


def _parts_of_struct(part: Part, kind: Any) -> Iterator[Part]:
    given = _taken_apart(part, dict[str, msgspec.Raw])
    if given is None:
        return
    config = _config(kind)
    if config.tag is not None:
        yield Part(given.get(config.tag_field), Literal[config.tag], _below(part.path, config.tag_field))
    for field in msgspec.structs.fields(kind):
        name = field.encode_name
        if name in given or field.required:
            yield Part(given.get(name), field.type, _below(part.path, name))


def _unread(part: Part, kind: Any, known: Iterable[str]) -> Iterator[Fault]:
    """Fields of an object that its type does not have."""
    config = _config(kind)
    names = {*_class(kind).__struct_encode_fields__, *([config.tag_field] if config.tag is not None else ()), *known}
    for name in _fields(part):
        if name not in names:
            word = "not allowed here" if config.forbid_unknown_fields else "not read by anybody"
            hint = not config.forbid_unknown_fields
            yield Fault(_below(part.path, name), f"{word}{_hint(name, names)}", hint)


def _below(path: str, name: str) -> str:
    plain = re.fullmatch(r"\w+", name)
    return f"{path}.{name}" if plain else f"{path}[{msgspec.json.encode(name).decode()}]"
