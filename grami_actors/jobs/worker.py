"""Runs the function of a Python tool in the process that a shim made for it. Floor 12.

It imports little: what the tool imports is what its start takes.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
import sys
import types
from collections.abc import Callable
from typing import Any, get_type_hints

from grami_actors.errors import ErrorCode, GramiError, Reject, describe
from grami_actors.job_context import JobContext
from grami_actors.jobs.contexts import ChannelContext

_AS_THEY_ARE = frozenset({str, int, bool, list, dict, Any, type(None), object})
"""Types of which JSON gives values that need no conversion."""


_ROUTINES = types.FunctionType, types.MethodType, types.BuiltinFunctionType
"""Of which the annotations are their own; those of another object are those of its class."""


class Unusable(Exception):
    """The function cannot be called like this, now or later."""


class Unwritable(Exception):
    """What it returned is nothing that JSON could say."""


def work(python: dict[str, Any], fd: int, checkpoint: Any) -> int:
    """Call the function, and say on the channel what it returned; returns the exit code of the process.

    Args:
        python: which function with which arguments, as in spec.json.
        fd: the job's end of the channel.
        checkpoint: the last one; ``None`` if there is none.
    """
    cancels: list[Callable[[], None]] = []
    context = ChannelContext(fd, checkpoint, lambda: [each() for each in cancels])  # type: ignore[arg-type]
    try:
        function, arguments = prepared(python, context)
    except BaseException as error:  # noqa: BLE001 - it runs in a process of its own, whose end this is
        return _failed(context, error, permanent=True)
    try:
        result = function(**arguments)
        if isinstance(result, types.CoroutineType):
            result = _awaited(result, context, cancels)
        context.send(b'{"type":"result","data":' + _as_json(result) + b"}\n")
    except BaseException as error:  # noqa: BLE001 - as above
        return _failed(context, error, permanent=isinstance(error, (Reject, Unwritable)))
    return 0


def prepared(python: dict[str, Any], context: JobContext) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The function and its arguments. Raises whatever importing it raises, Unusable: they do not fit."""
    found: Any = _module(python["module"], python.get("file"))
    for part in python["function"].split("."):
        found = getattr(found, part)
    load = getattr(found, "load", None)  # a Tool, which need not be imported to know it
    function = load() if load is not None else found
    plain = function
    while isinstance(plain, functools.partial):
        plain = plain.func
    hints = get_type_hints(plain if isinstance(plain, _ROUTINES) else type(plain).__call__, include_extras=True)
    hints.pop("return", None)
    arguments = {name: _converted(name, value, hints.get(name, Any)) for name, value in python["arguments"].items()}
    return function, arguments | {name: context for name, hint in hints.items() if hint is JobContext}


def _module(name: str, file: str | None) -> types.ModuleType:
    if file is None:
        return importlib.import_module(name)
    if name == "__main__":
        import runpy  # noqa: PLC0415 - rarely needed

        # As multiprocessing does it: under another name, so that ``if __name__ == "__main__"`` is not true.
        main: Any = types.ModuleType("__mp_main__")
        main.__grami_reads__ = True  # a system that starts now is a script without that guard
        sys.modules["__main__"] = sys.modules["__mp_main__"] = main
        main.__dict__.update(runpy.run_path(file, run_name="__mp_main__"))
        main.__grami_reads__ = False
        return main  # type: ignore[no-any-return]
    folder, name_of_file = os.path.split(file)
    package = [folder] if name_of_file == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=package)
    if spec is None or spec.loader is None:
        raise Unusable(f"{file} is not a Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _converted(name: str, value: Any, hint: Any) -> Any:
    if hint is Any or (isinstance(hint, type) and hint in _AS_THEY_ARE):
        return value
    if hint is float:
        return float(value)
    import msgspec  # noqa: PLC0415 - most arguments are plain

    try:
        return msgspec.convert(value, hint)
    except msgspec.ValidationError as error:
        raise Unusable(f"{name}: {error}") from None


def _awaited(result: Any, context: ChannelContext, cancels: list[Callable[[], None]]) -> Any:
    import asyncio  # noqa: PLC0415 - only for coroutine functions

    async def run() -> Any:
        loop, task = asyncio.get_running_loop(), asyncio.ensure_future(result)
        cancels.append(lambda: loop.call_soon_threadsafe(task.cancel))  # type: ignore[arg-type]
        if context.cancelled:
            task.cancel()
        return await task

    return asyncio.run(run())


def _as_json(value: Any) -> bytes:
    """A result as JSON. Raises Unwritable."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except TypeError:
        import msgspec  # noqa: PLC0415 - as above

        try:
            return msgspec.json.encode(value)
        except (TypeError, ValueError) as error:
            raise Unwritable(f"what it returned cannot be written as JSON: {error}") from None
    except ValueError as error:
        raise Unwritable(f"what it returned cannot be written as JSON: {error}") from None


def _failed(context: ChannelContext, error: BaseException, *, permanent: bool) -> int:
    import traceback  # noqa: PLC0415 - most functions do not fail

    traceback.print_exception(error)
    code = error.error_code if isinstance(error, GramiError) else ErrorCode.TOOL_EXECUTION_FAILED
    if isinstance(error, Unusable):
        code = ErrorCode.VALIDATION_FAILED
    told = {"type": "error", "code": str(code), "message": describe(error)[:4000], "permanent": permanent}
    context.send(json.dumps(told).encode() + b"\n")
    return 1
