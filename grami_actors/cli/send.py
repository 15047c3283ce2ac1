"""``grami send`` and ``grami describe``: ask a running server. Floor 17."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import msgspec
import typer

from grami_actors.cli.app import AsJson, Url, app, err, go, out, print_data, print_table
from grami_actors.client import connect
from grami_actors.conversation import Frame
from grami_actors.scenario.terminal import Writing


@app.command()
def send(
    message_type: Annotated[str, typer.Argument(metavar="TYPE", help="The message type, such as content_request.")],
    fields: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE...",
            help="The fields. A value that is JSON is taken as such, else as text; digits as text: 'name=\"7\"'.",
        ),
    ] = None,
    url: Url = None,
    to: Annotated[str | None, typer.Option(help="A destination by name, such as writer or tool:hashtags.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Show chunks and progress while they come.")] = False,  # noqa: FBT002
    timeout: Annotated[float | None, typer.Option(help="Deadline in seconds.", min=0.001)] = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Send one request to a running server and print its answer.

    For example: grami send content_request platform=instagram niche=tech --stream
    """
    values = dict(_field(text) for text in fields or ())
    go(
        _send(
            url, {"type": message_type, "to": to, "timeout": timeout, "fields": values}, stream=stream, as_json=as_json
        )
    )


def pair(text: str) -> tuple[str, Any]:
    """The name and the value of ``KEY=VALUE``; the value is JSON, or text. Raises BadParameter."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise typer.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="KEY=VALUE")
    return name, json_or_text(value)


def json_or_text(text: str) -> Any:
    """What is said in a shell: JSON, if it is that, else text."""
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def _field(text: str) -> tuple[str, Any]:
    name, value = pair(text)
    if name in {"type", "id", "to", "stream", "timeout", "timeout_ms"}:
        raise typer.BadParameter(
            f"{name!r} is not a field of a message; see --help for its option", param_hint="KEY=VALUE"
        )
    return name, value


async def _send(url: str | None, request: dict[str, Any], *, stream: bool, as_json: bool) -> int:
    options = {"to": request["to"], "timeout": request["timeout"]}
    async with connect(url, retry_for=0.0) as grami:
        if not stream:
            print_data(await grami.request(request["type"], **options, **request["fields"]), as_json=as_json)
            return 0
        with Writing(err) as writing:
            async for frame in grami.stream(request["type"], **options, **request["fields"]):
                if as_json:
                    sys.stdout.write(msgspec.json.encode(frame).decode() + "\n")
                    sys.stdout.flush()
                else:
                    _show_frame(frame, writing)
        if not as_json:
            sys.stderr.write("\n" * (bool(writing.last) and not err.is_terminal))
            print_data(frame.data, as_json=False)
    return 0


def _show_frame(frame: Frame, writing: Writing) -> None:
    if frame.type == "response.started":
        err.print(f"{frame.source} began", style="dim", markup=False, highlight=False)
    elif frame.type == "response.progress":
        err.print(f"{frame.progress or 0:4.0%}  {frame.message}", style="dim", markup=False, highlight=False)
    elif frame.type == "response.chunk":
        part = frame.data if isinstance(frame.data, dict) else {"text": frame.data}
        who, text = str(part.get("from", "answer")), str(part.get("text", ""))
        writing.add(who, text)
        if not err.is_terminal:
            sys.stderr.write(text if writing.last in {"", who} else f"\n{who}: {text}")
        writing.last = who


@app.command()
def describe(url: Url = None, as_json: AsJson = False) -> None:  # noqa: FBT002
    """Show what a running server offers: message types, agents and tools."""
    go(_describe(url, as_json=as_json))


async def _describe(url: str | None, *, as_json: bool) -> int:
    async with connect(url, retry_for=0.0) as grami:
        offered = await grami.describe()
        where = grami.url
    if as_json:
        print_data(offered, as_json=True)
        return 0
    out.print(f"[bold]{where}[/bold]")
    print_table("message types", ("type", "fields", "goes to"), [_type_row(each) for each in offered["types"]])
    rows = [
        (each["name"], str(each["instances"]), each["description"].partition("\n")[0]) for each in offered["agents"]
    ]
    print_table("agents", ("name", "instances", "what it does"), rows)
    print_table(
        "tools", ("name", "parameters", "as a job", "what it does"), [_tool_row(each) for each in offered["tools"]]
    )
    return 0


def _type_row(each: dict[str, Any]) -> tuple[str, str, str]:
    fields = _parameters(each["schema"], without="type")
    return each["type"], fields, each["handled_by"]


def _tool_row(each: dict[str, Any]) -> tuple[str, str, str, str]:
    text = each.get("error") or each["description"].partition("\n")[0]
    job = f"{each['runner']}, {each['effect']}" if each.get("job") else ""
    return each["name"], _parameters(each.get("parameters") or {}), job, text


def _parameters(schema: dict[str, Any], without: str = "") -> str:
    """``platform: string, niche: string = "general"`` from a JSON Schema of an object."""
    target = schema
    if "$ref" in schema:
        target = schema["$defs"][schema["$ref"].rpartition("/")[2]]
    parts = []
    for name, field in target.get("properties", {}).items():
        if name != without:
            default = f" = {msgspec.json.encode(field['default']).decode()}" if "default" in field else ""
            parts.append(f"{name}: {_kind(field, schema.get('$defs', {}))}{default}")
    return ", ".join(parts)


def _kind(field: dict[str, Any], named: dict[str, Any]) -> str:
    """What a field may hold, in a word or a few."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return _kind(named[name], named) if "enum" in named.get(name, {}) else name
    if "enum" in field:
        return " | ".join(str(value) for value in field["enum"])
    if "anyOf" in field:
        return " | ".join(_kind(each, named) for each in field["anyOf"])
    if field.get("type") == "array" and isinstance(field.get("items"), dict):
        return f"array of {_kind(field['items'], named)}"
    return str(field.get("type", "any"))
