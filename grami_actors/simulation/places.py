"""Whose code a frame runs, and how its place is written. Floor 14."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from types import CodeType, FrameType
from typing import Any, Literal

Whose = Literal["user", "runtime", "library", "stdlib"]
"""Code of the user's, of this package, of what is installed beside it, or of Python itself."""

_RUNTIME = os.path.dirname(os.path.dirname(__file__)) + os.sep  # noqa: PTH120 - files of code are compared as text
_STDLIB = tuple({os.path.dirname(path) + os.sep for path in (os.__file__, os.path.realpath(os.__file__))})  # noqa: PTH120


@cache
def _of_file(filename: str) -> Whose | None:
    """Whose a file is; ``None`` for a name in angle brackets, which says nothing."""
    if filename.startswith(_RUNTIME):
        return "runtime"
    if f"{os.sep}site-packages{os.sep}" in filename or f"{os.sep}dist-packages{os.sep}" in filename:
        return "library"
    if filename.startswith((*_STDLIB, "<frozen ")):
        return "stdlib"
    return None if filename.startswith("<") else "user"


def whose(filename: str, space: Mapping[str, Any]) -> Whose:
    """Whose code it is.

    Args:
        filename: where it stands, as the code says.
        space: its global variables; they decide for code that was generated.
    """
    known = _of_file(filename) or _of_file(str(space.get("__file__") or "<none>"))
    if known is not None:
        return known
    name = str(space.get("__name__", ""))
    if name == "__main__":
        return "user"
    return "stdlib" if name.partition(".")[0] in sys.stdlib_module_names else "library"


def is_user(frame: FrameType) -> bool:
    """Whether a frame runs the user's code."""
    return whose(frame.f_code.co_filename, frame.f_globals) == "user"


def place(code: CodeType, line: int) -> str:
    """``file:line``, from the working directory if it is below it."""
    filename = code.co_filename
    here = os.getcwd() + os.sep  # noqa: PTH109 - see above
    return f"{filename.removeprefix(here)}:{line}"


def outwards(frame: FrameType | None) -> Iterator[FrameType]:
    """A frame, who called it, and so on."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def innermost(frames: Iterable[FrameType]) -> FrameType | None:
    """Of frames, the innermost first, the first that is the user's and stands in a file; else one of the user's."""
    generated = None
    for frame in frames:
        if is_user(frame):
            if not frame.f_code.co_filename.startswith("<"):
                return frame
            generated = generated or frame
    return generated
