"""Tools that are imported by their path, when they are first used."""

from __future__ import annotations

from grami_actors import tool


def reverse(text: str) -> str:
    """Turn a text round."""
    return text[::-1]


@tool(name="other_name", timeout=1)
def decorated(number: int) -> int:
    """Twice the number."""
    return number * 2


async def coroutine(text: str) -> str:
    """A coroutine function."""
    return text.upper()


class Box:
    """A place inside a module."""

    @staticmethod
    def inside(text: str) -> str:
        """Sits in a class."""
        return f"[{text}]"
