"""The shim's short ways into the standard library do what the library does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from grami_actors.jobs.shim import lean, start

WAYS = pytest.mark.parametrize("way", [lean.by_parts, lean.by_module])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
NESTED = "[" * 200_000


def tried(work: Callable[[], Any]) -> Any:
    """What comes of it; of exceptions only whether they are the caller's fault or its own."""
    try:
        return repr(work())
    except ValueError:
        return ValueError
    except RecursionError:
        return RecursionError


def test_this_interpreter_has_the_parts() -> None:
    assert lean.loads.__qualname__.startswith("by_parts")


@WAYS
@given(value=ANYTHING)
@example(value=float("nan"))
@example(value="\ud800")
def test_what_is_written_is_what_json_writes(way: Any, value: Any) -> None:
    write, _ = way()
    assert tried(lambda: write(value)) == tried(
        lambda: json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    )


@WAYS
@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes"])
def test_what_json_cannot_say_is_refused(way: Any, value: Any) -> None:
    with pytest.raises(TypeError):
        way()[0](value)


@WAYS
@given(
    data=ANYTHING.map(json.dumps)
    | st.text()
    | st.binary()
    | st.text(alphabet='{}[]",:0123456789.eE+-truefalsnNaIiy \n\\ud83')
)
@example(data="")
@example(data=" \t\r\n")
@example(data='{"a": 1} x')
@example(data='"\\ud83d\\ude00"')
@example(data=b'"\xed\xa0\x80"')
@example(data=NESTED)
def test_what_is_read_is_what_json_reads(way: Any, data: str | bytes) -> None:
    _, parse = way()
    if isinstance(data, bytes) and json.detect_encoding(data) != "utf-8":
        return  # the shim reads and writes no other
    assert tried(lambda: parse(data)) == tried(lambda: json.loads(data))


def test_a_shim_imports_none_of_the_modules_that_take_long() -> None:
    program = f"""
import sys
sys.argv = ["start.py", "/nonesuch", "-1", "-1", "-1"]
try:
    exec(open({start.__file__!r}).read(), {{"__name__": "__main__", "__file__": {start.__file__!r}}})
except FileNotFoundError:
    print(*sys.modules)
"""
    loaded = set(subprocess.check_output([sys.executable, "-I", "-S", "-c", program], text=True).split())
    assert "grami_actors.jobs.shim.main" in loaded
    heavy = {"re", "enum", "json", "signal", "contextlib", "collections", "functools", "ctypes", "typing"}
    assert heavy & loaded == set()
