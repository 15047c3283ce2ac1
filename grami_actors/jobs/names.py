"""Which names the files have that a job leaves: one rule for all who make or read them. Floor 12."""

from __future__ import annotations

LONGEST_NAME = 200
"""Bytes of the name of an artifact."""


def check_name(name: str) -> str:
    """The name of an artifact, if it is a plain file name that can be shown. Raises ValueError."""
    if not name or name.startswith(".") or "/" in name or not name.isprintable():
        raise ValueError(
            f"{name[:LONGEST_NAME]!r} is no name for a file that is kept: no slash, no dot at its beginning, and only "
            "what can be printed"
        )
    if len(name.encode(errors="replace")) > LONGEST_NAME:
        raise ValueError(f"the name of a file that is kept has at most {LONGEST_NAME} bytes")
    return name
