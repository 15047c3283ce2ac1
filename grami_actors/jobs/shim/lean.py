"""What the shim needs of modules that take longer to import than all that it does before its job runs. Floor 12.

``json``, ``signal``, ``contextlib`` and ``ctypes`` are thin around parts in C, and import ``re``, ``enum`` and
``collections``. Here are those parts; where an interpreter has them not, or others, the modules do as well.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing takes a tenth of the shim's start
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from typing import Any
else:
    try:
        import _signal as signal
    except ImportError:
        import signal

__all__ = ["dumps", "loads", "prctl", "signal", "suppress"]

_SPACES = " \t\n\r"


class suppress:  # noqa: N801 - the name that it has in contextlib
    """As :class:`contextlib.suppress`."""

    def __init__(self, *errors: type[BaseException]) -> None:
        self._errors = errors

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        return kind is not None and issubclass(kind, self._errors)


# --- JSON ---


class _Reading:
    """What the scanner in C asks for: the defaults of :func:`json.loads`."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float, parse_int = float, int
    parse_constant = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}.__getitem__


def by_parts() -> tuple[Callable[[Any], str], Callable[[str | bytes], Any]]:
    """``dumps`` and ``loads``. Raises whatever an interpreter raises that has no such parts."""
    from _json import encode_basestring, make_encoder, make_scanner  # noqa: PLC0415 - not in every interpreter

    context: Any = _Reading()
    scan = make_scanner(context)

    def refuse(value: object) -> None:
        raise TypeError(f"an object of type {type(value).__name__} is nothing that JSON could say")

    def write(value: Any) -> str:
        encode = make_encoder({}, refuse, encode_basestring, None, ":", ",", False, False, False)
        return "".join(encode(value, 0))

    def parse(data: str | bytes) -> Any:
        text = (data if isinstance(data, str) else data.decode("utf-8", "surrogatepass")).strip(_SPACES)
        try:
            value, end = scan(text, 0)
        except StopIteration:
            raise ValueError("it is not JSON") from None
        if end != len(text):
            raise ValueError(f"it is JSON up to character {end}, and then goes on")
        return value

    probe = {"a": [1, -2.5, True, None, "\u00e9\U0001f600\n"]}
    if parse(write(probe)) != probe:
        raise ImportError("they do something else")
    return write, parse


def by_module() -> tuple[Callable[[Any], str], Callable[[str | bytes], Any]]:
    """The same."""
    import json  # noqa: PLC0415 - see above

    def write(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))

    return write, json.loads


try:
    dumps, loads = by_parts()
except Exception:  # noqa: BLE001 - they are nobody's promise
    dumps, loads = by_module()


# --- the system ---


def prctl(option: int, value: int) -> int:
    """Set an option of this process; 0 if that was done. The options stand in section 2 of the manual.

    Raises:
        OSError, AttributeError: this system has no such call.
    """
    try:
        from _ctypes import call_function, dlopen, dlsym  # noqa: PLC0415 - not in every interpreter
    except ImportError:
        import ctypes  # noqa: PLC0415 - see above

        return int(ctypes.CDLL(None).prctl(option, value, 0, 0, 0))
    everything: Any = None
    return int(call_function(dlsym(dlopen(everything, 0), "prctl"), (option, value, 0, 0, 0)))
