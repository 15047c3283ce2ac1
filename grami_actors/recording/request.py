"""What a model or a tool was asked, in the one form that two runs agree on; and what comes nearest to it. Floor 15.

The digest of a request is the SHA-256, in hexadecimal, of a line that names the form (``grami/1 model`` or
``grami/1 tool``) and of the request as JSON: UTF-8, no spaces, the keys of every object in order. Of a prompt the
fields that have their default are left out, so that a field that a later version adds changes no digest; its numbers
have the types that :class:`~grami_actors.model.Prompt` says: ``temperature=0`` and ``temperature=0.0`` are the same.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from grami_actors.history import plain
from grami_actors.model import Prompt

_encode = msgspec.json.Encoder(order="deterministic").encode


def canonical(prompt: Prompt) -> dict[str, Any]:
    """A prompt as plain data, without the fields that have their default."""
    checked = msgspec.convert(plain(prompt), Prompt)
    fields = msgspec.structs.fields(Prompt)
    return {each.name: plain(asked) for each in fields if (asked := getattr(checked, each.name)) != each.default}


def digest_of(prompt: Prompt) -> str:
    """What names a prompt: 64 hexadecimal digits, the same for all prompts that ask for the same."""
    return _digest(b"grami/1 model\n", canonical(prompt))


def digest_of_call(tool: str, arguments: Any) -> str:
    """The same for the call of a tool: of its name and its arguments, as plain data."""
    return _digest(b"grami/1 tool\n", {"tool": tool, "arguments": arguments})


def _digest(form: bytes, request: dict[str, Any]) -> str:
    return hashlib.sha256(form + encoded(request)).hexdigest()


def encoded(value: Any) -> bytes:
    """Plain data as JSON, with the keys of objects in order; ``?`` stands for lone surrogates, which UTF-8 has not."""
    try:
        return _encode(value)
    except UnicodeEncodeError:
        return _encode(_mended(msgspec.to_builtins(value)))


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, dict):
        return {_mended(key): _mended(each) for key, each in value.items()}
    return [_mended(each) for each in value] if isinstance(value, (list, tuple)) else value


def nearest(asked: Any, recorded: Iterable[Any]) -> str:
    """How a request that was not recorded differs from the one that was and differs least.

    Args:
        asked: the request, as plain data.
        recorded: those that were recorded; the prompts of all :class:`~grami_actors.history.Wrote`, for instance.

    Returns:
        a unified diff, with a line for each line of each text; empty where nothing was recorded.
    """
    wanted = list(_lines(asked, ""))
    known = {"\n".join(lines): lines for lines in (list(_lines(each, "")) for each in recorded)}
    found = difflib.get_close_matches("\n".join(wanted), known, n=1, cutoff=0.0)
    if not found:
        return ""
    return "\n".join(difflib.unified_diff(known[found[0]], wanted, "recorded", "asked now", lineterm=""))


def _lines(value: Any, path: str) -> Iterator[str]:
    """All that a value holds, each line of each text with the path to it."""
    if isinstance(value, dict) and value:
        for key in sorted(value):
            yield from _lines(value[key], f"{path}.{key}".lstrip("."))
    elif isinstance(value, (list, tuple)) and value:
        for number, each in enumerate(value):
            yield from _lines(each, f"{path}[{number}]")
    elif isinstance(value, str):
        yield from (f"{path}: {line}" for line in value.split("\n"))
    else:
        yield f"{path} = {encoded(value).decode()}"
