"""What a function's signature says: the arguments that it takes, as a type and as a JSON Schema. Pure. Floor 2."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, get_args, get_type_hints

import msgspec

from grami_actors.job_context import JobContext


class Signature:
    """The signature of a function that is called by keyword, with what JSON can say.

    Args:
        function: with annotations; also a partial, or an object that can be called.

    Attributes:
        context: the parameter that takes the :class:`~grami_actors.job_context.JobContext`; it is no argument.
        returned: the type of the result; ``Any`` if nothing is said.

    Raises:
        TypeError: it has parameters that cannot be given so.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._name = getattr(plain(function), "__name__", "arguments")
        self.context: str | None = None
        hints = get_type_hints(plain(function), include_extras=True)
        self.returned: Any = hints.get("return", Any)
        fields: list[Any] = []
        for parameter in inspect.signature(function).parameters.values():
            kind = self._kind(parameter, hints)
            if kind is JobContext:
                self.context = parameter.name
            elif parameter.default is parameter.empty:
                fields.append((parameter.name, kind))
            else:
                fields.append((parameter.name, kind, _default(parameter.default)))
        self._arguments = msgspec.defstruct(self._name, fields, kw_only=True, forbid_unknown_fields=True)

    def _kind(self, parameter: inspect.Parameter, hints: dict[str, Any]) -> Any:
        """The type of a parameter. Raises TypeError for what JSON cannot pass."""
        if parameter.kind not in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}:
            raise TypeError(f"{self._name}: a tool is called by keyword, so {parameter} cannot be a parameter")
        if parameter.name not in hints:
            raise TypeError(f"{self._name}: the parameter {parameter.name!r} needs a type annotation")
        kind = hints[parameter.name]
        if JobContext in get_args(kind):
            raise TypeError(
                f"{self._name}: the parameter {parameter.name!r} always gets a context; annotate it as JobContext alone"
            )
        if kind is JobContext and self.context is not None:
            raise TypeError(f"{self._name}: {self.context!r} and {parameter.name!r} are the same context; keep one")
        return kind

    def convert(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Arguments as the function takes them. Raises msgspec.ValidationError."""
        converted = msgspec.convert(arguments, self._arguments)
        return {name: getattr(converted, name) for name in self._arguments.__struct_fields__}

    def schema(self) -> dict[str, Any] | None:
        """The JSON Schema of the arguments, if they have one."""
        found = schema_of(self._arguments)
        properties = ((found or {}).get("$defs", {}).get(self._name) or {}).get("properties", {})
        for field in msgspec.structs.fields(self._arguments):
            # A default that comes from a factory is left out by msgspec.
            if field.default_factory is not msgspec.NODEFAULT:
                properties[field.encode_name]["default"] = msgspec.to_builtins(field.default_factory())
        return found


def plain(function: Any) -> Any:
    """The function that has the annotations: behind a partial, or the call of an object."""
    while isinstance(function, partial):
        function = function.func
    return function if inspect.isroutine(function) else type(function).__call__


def schema_of(kind: Any) -> dict[str, Any] | None:
    """The JSON Schema of a type, if it has one."""
    try:
        return msgspec.json.schema(kind)
    except TypeError:  # a type without one is no reason to hide the tool
        return None


def _default(value: Any) -> Any:
    # msgspec copies only empty collections; others must come from a factory.
    return (
        msgspec.field(default_factory=lambda: copy.deepcopy(value)) if isinstance(value, (list, dict, set)) else value
    )
