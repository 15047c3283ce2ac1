"""How values cross to a worker process and back: msgpack, and names instead of code. Floor 9.

Rules:

1. Plain data, Structs, exceptions, enum members and refs cross and keep their types; dataclasses and whatever else
   msgspec can take apart arrive as dicts, lists and strings. Anything else is an error that says so.
2. A worker is not trusted. What it names is looked up among what the parent has loaded: only Structs, exceptions and
   enums, and nothing is imported, called by name, or unpickled. What the parent does not know becomes plain data.
3. An exception is data: its class by name, its arguments, its code, and its traceback as a note. It is made without
   running the constructor of a class that is not Python's own.
"""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import sys
import uuid
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec.msgpack import Ext
from pykka import messages as pykka_messages

from grami_actors.errors import GramiError, describe
from grami_actors.future import details
from grami_actors.ref import Ref

LONGEST_TRACE = 32_000
"""Characters of a traceback, from its end, that cross."""

DEEPEST_CAUSE = 4
"""Exceptions of a chain of causes that cross."""

_TUPLE, _SET, _FROZENSET, _DICT, _INTEGER, _STRUCT, _ERROR, _ENUM, _TEXT, _REF, _PROXY = range(1, 12)

_GROUP_CODES: dict[type, int] = {tuple: _TUPLE, set: _SET, frozenset: _FROZENSET}
_PLAIN = frozenset({type(None), bool, float, str, bytes})
_SMALLEST, _LARGEST = -(2**63), 2**64 - 1
_PROXIES: dict[str, Any] = {
    kind.__name__: kind for kind in (pykka_messages.ProxyCall, pykka_messages.ProxyGetAttr, pykka_messages.ProxySetAttr)
}
_TEXTS: dict[str, Callable[[str], Any]] = {
    "datetime": dt.datetime.fromisoformat,
    "date": dt.date.fromisoformat,
    "time": dt.time.fromisoformat,
    "Decimal": decimal.Decimal,
    "UUID": uuid.UUID,
    "complex": complex,
}
_TEXT_KINDS = frozenset({dt.datetime, dt.date, dt.time, decimal.Decimal, uuid.UUID, complex})


class CannotCross(GramiError):
    """A value cannot be sent to a worker process, or back; the message says which and why."""


class WorkerError(Exception):
    """An exception of a worker process whose class this process does not have; the text names it."""


Find = Callable[[str, str], Any]
"""Gives what a module's name and a qualified name mean, or ``None``."""


class Codec:
    """Packs and unpacks values; one for each end of each pipe.

    Args:
        find: what a name means at this end.
        refer: makes a ref of an actor's name and number.
        trusting: this end is the worker's: it does what the parent says, and tells it its tracebacks.
    """

    def __init__(self, find: Find, refer: Callable[[str, int], Any], *, trusting: bool) -> None:
        self._find = find
        self._refer = refer
        self._trusting = trusting
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(ext_hook=self.unpack).decode

    # --- packing ---

    def pack(self, value: Any) -> Any:
        """The value with everything that msgpack lacks as an Ext. Raises CannotCross."""
        try:
            return self._pack(value)
        except RecursionError:
            raise CannotCross("a value that is nested this deeply, or contains itself, cannot cross") from None

    def raw(self, value: Any) -> msgspec.Raw:
        """The value as bytes, for a frame whose reader looks at it later. Raises CannotCross."""
        try:
            return msgspec.Raw(self._encode(self.pack(value)))
        except (UnicodeError, OverflowError, TypeError, ValueError) as error:
            raise CannotCross(f"this cannot cross to or from a worker process: {error}") from None

    def _pack(self, value: Any) -> Any:
        kind = type(value)
        if kind in _PLAIN:
            return value
        if kind is int:
            return value if _SMALLEST <= value <= _LARGEST else self._ext(_INTEGER, _bytes_of(value))
        if kind is list:
            return self._pack_all(value)
        if kind is dict:
            return self._pack_dict(value)
        code = _GROUP_CODES.get(kind)
        if code is not None:
            return self._ext(code, self._pack_all(list(value)))
        return self._pack_object(value, kind)

    def _pack_all(self, values: list[Any]) -> list[Any]:
        # A million numbers at once, not one by one: in the parent this is the home loop's time.
        kinds = set(map(type, values))
        if kinds <= _PLAIN or (kinds == {int} and min(values) >= _SMALLEST and max(values) <= _LARGEST):
            return values
        return [self._pack(each) for each in values]

    def _pack_dict(self, value: dict[Any, Any]) -> Any:
        if all(type(key) in _PLAIN for key in value):
            return {key: self._pack(each) for key, each in value.items()}
        return self._ext(_DICT, [[self._pack(key), self._pack(each)] for key, each in value.items()])

    def _pack_object(self, value: Any, kind: Any) -> Any:
        if isinstance(value, BaseException):
            return self._pack_error(value)
        code, data = 0, None
        if isinstance(value, msgspec.Struct):
            fields = {name: self._pack(getattr(value, name)) for name in value.__struct_fields__}
            code, data = _STRUCT, [*_name(kind), fields]
        elif isinstance(value, enum.Enum):
            code, data = _ENUM, [*_name(kind), value.name, self._pack(value.value)]
        elif kind in _TEXT_KINDS:
            text = value.isoformat() if hasattr(value, "isoformat") else str(value)
            code, data = _TEXT, [kind.__name__, text]
        elif isinstance(value, Ref):
            code, data = _REF, [value._cell.name, value._cell.number]
        elif kind in _PROXIES.values():
            if self._trusting:
                raise CannotCross("a proxy does not reach out of a worker process: ask the actor instead")
            code, data = _PROXY, [kind.__name__, [self._pack(each) for each in value]]
        return self._ext(code, data) if code else self._pack_rest(value, kind)

    def _pack_rest(self, value: Any, kind: Any) -> Any:
        try:
            plain = msgspec.to_builtins(value)
        except (TypeError, ValueError) as error:
            raise CannotCross(
                f"a {kind.__qualname__} cannot cross to or from a worker process ({error}); "
                "use plain data, Structs, exceptions or refs"
            ) from None
        if isinstance(plain, str):  # a timedelta, a bytearray: it would arrive as text, and nobody would say so
            raise CannotCross(f"a {kind.__qualname__} cannot cross to or from a worker process and stay one")
        return self._pack(plain)

    def _pack_error(self, error: BaseException, depth: int = 0) -> Any:
        try:
            arguments = [self._pack(each) for each in error.args]
        except Exception:  # noqa: BLE001 - an exception may hold anything, and its text is better than nothing
            arguments = [describe(error).partition(": ")[2]]
        cause = error.__cause__
        return self._ext(
            _ERROR,
            [
                *_name(type(error)),
                arguments,
                describe(error),
                [getattr(error, each, None) for each in ("error_code", "param", "retry_after_ms")],
                details(error)[-LONGEST_TRACE:] if self._trusting and depth == 0 else "",
                None if cause is None or depth >= DEEPEST_CAUSE else self._pack_error(cause, depth + 1),
            ],
        )

    def _ext(self, code: int, data: Any) -> Ext:
        return Ext(code, data if isinstance(data, bytes) else self._encode(data))

    # --- unpacking ---

    def read(self, raw: msgspec.Raw) -> Any:
        """What :meth:`raw` wrote. Raises CannotCross."""
        try:
            return self._decode(raw)
        except Exception as error:
            raise CannotCross(f"this cannot be read in a worker process: {describe(error)}") from error

    def unpack(self, code: int, data: memoryview) -> Any:
        """The value of an Ext. Raises whatever wrong data causes."""
        if code == _INTEGER:
            return int.from_bytes(data, "big", signed=True)
        return _UNPACK[code](self, *self._decode(data)) if code > _INTEGER else _GROUPS[code](self._decode(data))

    def _found(self, module: str, name: str) -> Any:
        found = self._find(module, name)
        if found is None and self._trusting:
            raise LookupError(f"{module}.{name} cannot be imported by that name")
        return found

    def _unpack_struct(self, module: str, name: str, fields: dict[str, Any]) -> Any:
        kind = self._found(module, name)
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            return kind(**fields)
        return fields

    def _unpack_enum(self, module: str, name: str, member: str, value: Any) -> Any:
        kind = self._found(module, name)
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            return kind.__members__[member]
        return value

    def _unpack_text(self, kind: str, text: str) -> Any:
        return _TEXTS[kind](text)

    def _unpack_ref(self, name: str, number: int) -> Any:
        return self._refer(name, number)

    def _unpack_proxy(self, kind: str, fields: list[Any]) -> Any:
        if not self._trusting:
            # A path of attributes reaches everything: the parent follows none that a worker chose.
            raise ValueError("a worker process cannot call through a proxy")
        return _PROXIES[kind](*fields)

    def _unpack_error(self, module: str, name: str, *rest: Any) -> BaseException:
        arguments, text, facts, trace, cause = rest
        error = _rebuilt(self._find(module, name), arguments)
        if error is None:
            error = WorkerError(text)
        if isinstance(error, GramiError):
            code, error.param, error.retry_after_ms = facts
            if code is not None and code != error.error_code:
                error.error_code = str(code)
        if trace:
            error.add_note(f"in the worker process:\n{trace}")
        if isinstance(cause, BaseException):
            error.__cause__ = cause
        return error


_GROUPS: dict[int, Callable[[Any], Any]] = {_TUPLE: tuple, _SET: set, _FROZENSET: frozenset, _DICT: dict}
_UNPACK: dict[int, Callable[..., Any]] = {
    _STRUCT: Codec._unpack_struct,  # noqa: SLF001 - of the class above
    _ERROR: Codec._unpack_error,  # noqa: SLF001
    _ENUM: Codec._unpack_enum,  # noqa: SLF001
    _TEXT: Codec._unpack_text,  # noqa: SLF001
    _REF: Codec._unpack_ref,  # noqa: SLF001
    _PROXY: Codec._unpack_proxy,  # noqa: SLF001
}


def loaded(module: str, name: str) -> Any:
    """What a qualified name means in a module that is loaded already; ``None`` if nothing."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        # Not getattr: a module, or a class, may have code that answers for names it does not hold.
        found = None if found is None else vars(found).get(part)
    return found


def _name(kind: type) -> tuple[str, str]:
    # A worker has the parent's main module under multiprocessing's name for it.
    return ("__main__" if kind.__module__ == "__mp_main__" else kind.__module__), kind.__qualname__


def _bytes_of(number: int) -> bytes:
    return number.to_bytes(number.bit_length() // 8 + 1, "big", signed=True)


def _rebuilt(kind: Any, arguments: list[Any]) -> BaseException | None:
    if not (isinstance(kind, type) and issubclass(kind, BaseException)):
        return None
    try:
        if kind.__module__ == "builtins":
            return kind(*arguments)
        # Python's own part of it only: the constructor of somebody's class is code that a worker must not run here.
        builtin: Any = next(each for each in kind.__mro__ if each.__module__ == "builtins")
        error: BaseException = builtin.__new__(kind, *arguments)
        error.args = tuple(arguments)
    except Exception:  # noqa: BLE001 - these arguments do not fit, so its text must do
        return None
    return error
