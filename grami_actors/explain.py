"""What is wrong with a value, for whoever sent it. Floor 0."""

from __future__ import annotations

import re

import msgspec

_PATH = re.compile(r" - at `(\$.*)`$")
_MISSING = re.compile(r"missing required field `(\w+)`")


def explain(error: msgspec.ValidationError) -> tuple[str, str]:
    """A validation error in words, and the path of the faulty field (``$.platform``)."""
    text = str(error)
    path = _PATH.search(text)
    param = path.group(1) if path else "$"
    text = _PATH.sub("", text)
    if missing := _MISSING.search(text):
        param = f"{param}.{missing.group(1)}"
        text = f"The field `{missing.group(1)}` is required"
    return f"{text} (at {param})", param
