"""Command lines as tools: a list of arguments with places for parameters, and never a shell. Floor 12.

Rule 1: what a client gives becomes part of one argument, or whole arguments, and nothing else: it is split and expanded
        by nobody.
Rule 2: it does not become an option by accident: where it is an argument of its own it must not begin with ``-``, if
        the command does not say that it may (CWE-88, https://cwe.mitre.org/data/definitions/88.html).
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import inspect
import os
import secrets
import signal
import string
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from grami_actors.errors import ErrorCode, ProtocolError, ToolExecutionFailed
from grami_actors.job import RunnerName
from grami_actors.jobs import processes
from grami_actors.lanes.child import ENVIRONMENT
from grami_actors.tools import Tool

MOST_OUTPUT = 64 * 1024
"""Bytes of output, the last ones, that a command which is called answers with."""

LAST_WORDS = 0.2
"""Seconds after the end of a command that is called in which what it wrote is still read."""

_INSPECT = msgspec.inspect
_FIXED = (_INSPECT.LiteralType, _INSPECT.EnumType, _INSPECT.BoolType, _INSPECT.NoneType)
_PLAIN = (*_FIXED, _INSPECT.StrType, _INSPECT.IntType, _INSPECT.FloatType)
_MANY = (_INSPECT.ListType, _INSPECT.VarTupleType)


class Output(msgspec.Struct, frozen=True):
    """What a command answers. ``output`` is the end of what it printed, to both of its outputs."""

    exit_code: int
    output: str


class Template(NamedTuple):
    """One argument of a command line: texts and parameters in turns, with a text at both ends.

    Attributes:
        texts: one more than there are parameters.
        names: of the parameters.
    """

    texts: tuple[str, ...]
    names: tuple[str, ...]

    @property
    def alone(self) -> bool:
        """Whether it is one parameter and nothing else."""
        return len(self.names) == 1 and not any(self.texts)

    def fill(self, values: Mapping[str, Any]) -> list[str]:
        """The arguments that it becomes: none if a parameter is ``None``, several if it is a list."""
        found = [values[name] for name in self.names]
        if any(each is None for each in found):
            return []
        if self.alone and isinstance(found[0], (list, tuple)):
            return [_text(each) for each in found[0]]
        turns = zip(self.texts, [*map(_text, found), ""], strict=True)
        return ["".join(part for turn in turns for part in turn)]


class Command(Tool[..., Any]):
    """A command line that is submitted as a job, or called as a tool is. Made by :func:`command`.

    Attributes:
        env: variables that it gets beside those that every job has.
        cwd: the folder that it runs in; a fresh one of its own, if ``None``.
    """

    def __init__(  # noqa: PLR0913 - what a command is declared with
        self,
        name: str,
        argv: Sequence[str],
        parameters: Mapping[str, Any],
        *,
        description: str,
        dashes: Collection[str],
        env: Mapping[str, str],
        cwd: str | None,
        **options: Any,
    ) -> None:
        self.env = dict(env)
        self.cwd = cwd
        declared = {key: each if isinstance(each, tuple) else (each,) for key, each in parameters.items()}
        self._templates = [_parse(name, each) for each in argv]
        self._free = _check(name, self._templates, {key: each[0] for key, each in declared.items()}) - set(dashes)
        if unknown := sorted(set(dashes) - set(declared)):
            raise ValueError(f"the command {name} has no parameter {unknown[0]!r} that could begin with '-'")
        # Most programs do not hear what is said on the channel: waiting for that would only delay their signal.
        options = {"soft_grace": 0.0} | options
        super().__init__(self._function(name, description, declared), name=name, lane="loop", job=True, **options)

    @property
    def runner(self) -> RunnerName:
        """Its jobs are processes, while the loop waits for one that is called."""
        return "outside"

    def import_path(self) -> str:
        """None."""
        return ""  # nothing of it is imported anywhere

    def _function(self, name: str, description: str, declared: Mapping[str, tuple[Any, ...]]) -> Callable[..., Any]:
        async def run(**arguments: Any) -> Output:
            return await _run(self, self._filled(arguments))

        run.__name__ = run.__qualname__ = name
        run.__doc__ = description
        run.__annotations__ = {key: each[0] for key, each in declared.items()} | {"return": Output}
        kind = inspect.Parameter.KEYWORD_ONLY
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(key, kind, default=each[1] if len(each) > 1 else inspect.Parameter.empty)
                for key, each in declared.items()
            ]
        )
        return run

    def convert(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Check arguments. Raises ProtocolError: VALIDATION_FAILED, with the path of what is wrong."""
        converted = super().convert(arguments)
        self._filled(converted)
        return converted

    def fill(self, arguments: dict[str, Any]) -> list[str]:
        """The command line for these arguments. Raises ProtocolError: VALIDATION_FAILED."""
        return self._filled(super().convert(arguments))

    def _filled(self, values: Mapping[str, Any]) -> list[str]:
        found: list[str] = []
        for template in self._templates:
            for each in template.fill(values):
                if "\0" in each:
                    raise self._refused(template, "has a NUL byte, which no argument can have")
                if each.startswith("-") and not template.texts[0] and self._free.intersection(template.names):
                    raise self._refused(template, "begins with '-', so that the program would take it for an option")
                found.append(each)
        return found

    def _refused(self, template: Template, why: str) -> ProtocolError:
        name = next(each for each in template.names if each in self._free or not self._free)
        text = f"{self.name}: {name} {why} (at $.{name})"
        return ProtocolError(text, code=ErrorCode.VALIDATION_FAILED, param=f"$.arguments.{name}")


def command(  # noqa: PLR0913 - what a command is declared with
    name: str,
    argv: Sequence[str],
    *,
    description: str = "",
    parameters: Mapping[str, Any] | None = None,
    dashes: Collection[str] = (),
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    **options: Any,
) -> Command:
    """Declare a command line as a tool, with jobs that run outside.

    ::

        command(
            "scale",
            ["ffmpeg", "-i", "{source}", "-vf", "scale={width}:-1", "out.mp4"],
            parameters={"source": str, "width": (Annotated[int, msgspec.Meta(ge=16, le=4096)], 640)},
            effect="idempotent",
        )

    Args:
        name: what it is called by.
        argv: its arguments, the first is the program. ``{width}`` stands for a parameter, ``{{`` for a brace. An
            argument with a parameter that is ``None`` is left out; a list, alone in its argument, becomes several.
        description: for people and models.
        parameters: their types, or pairs of type and default: text, numbers, booleans, enums, literals, and lists.
        dashes: parameters that may begin with ``-`` where they begin an argument; the program takes them for options.
        env: variables that it gets beside the few that it has of the server's.
        cwd: the folder that it runs in; a fresh one, if not given.
        options: those of :class:`~grami_actors.tools.Tool`, also for jobs: ``effect``, ``retry``, ``limits``, ...

    Raises:
        ValueError: a parameter that is not used or not declared, or whose type is no text; no program.
    """
    return Command(
        name, argv, parameters or {}, description=description, dashes=dashes, env=env or {}, cwd=cwd, **options
    )


def _parse(name: str, element: str) -> Template:
    """One argument as it was declared. Raises ValueError."""
    texts = [""]
    names = []
    for text, field, form, conversion in string.Formatter().parse(element):
        texts[-1] += text
        if field is None:
            continue
        if not field.isidentifier() or form or conversion:
            raise ValueError(f"the command {name}: {element!r} is to hold parameters as {{name}}, and braces doubled")
        names.append(field)
        texts.append("")
    return Template(tuple(texts), tuple(names))


def _check(name: str, templates: Sequence[Template], kinds: Mapping[str, Any]) -> set[str]:
    """See that templates and parameters fit; returns those parameters of which a client chooses the text."""
    used = {each for template in templates for each in template.names}
    if not templates or templates[0].names or not templates[0].texts[0]:
        raise ValueError(f"the command {name}: the first argument is its program, and no parameter")
    if unknown := sorted(used - set(kinds)):
        raise ValueError(f"the command {name}: {unknown[0]!r} is none of its parameters")
    if unused := sorted(set(kinds) - used):
        raise ValueError(f"the command {name}: its parameter {unused[0]!r} is in none of its arguments")
    free = set()
    for key, kind in kinds.items():
        items, many = _items(_INSPECT.type_info(kind))
        if not all(isinstance(each, _PLAIN) for each in items):
            raise ValueError(f"the command {name}: the parameter {key!r} cannot be written as text")
        if many and not all(template.alone for template in templates if key in template.names):
            raise ValueError(f"the command {name}: the list {key!r} has to stand alone in its argument")
        if not all(isinstance(each, _FIXED) for each in items):
            free.add(key)
    return free


def _items(info: Any) -> tuple[list[Any], bool]:
    """The types that a value, or an item of it, can have; and whether it can be a list."""
    if isinstance(info, _INSPECT.Metadata):
        return _items(info.type)
    if isinstance(info, _INSPECT.UnionType):
        found = [_items(each) for each in info.types]
        return [each for items, _ in found for each in items], any(many for _, many in found)
    if isinstance(info, _MANY):
        # A list in a list, or a gap in one, is nothing that could be written.
        items, many = _items(info.item_type)
        return (items if not many and not any(isinstance(each, _INSPECT.NoneType) for each in items) else [info]), True
    return [info], False


def _text(value: Any) -> str:
    if isinstance(value, enum.Enum):
        return _text(value.value)
    return str(value).lower() if isinstance(value, bool) else str(value)


async def _run(served: Command, argv: list[str]) -> Output:
    """Run a command that is called, and leave nothing of it behind. Raises ToolExecutionFailed, OSError."""
    mark = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="grami-", ignore_cleanup_errors=True) as fresh:
        ours, theirs = os.pipe()
        try:
            # A pipe of asyncio's own would have the process end only when everybody has closed that, which what it
            # leaves behind need not do.
            reading, printed = await asyncio.get_running_loop().connect_read_pipe(_Printed, os.fdopen(ours, "rb", 0))
            with contextlib.closing(reading):
                process = await asyncio.create_subprocess_exec(
                    *argv,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=theirs,
                    stderr=theirs,
                    env=inherited() | served.env | {processes.MARK: mark},
                    cwd=served.cwd or fresh,
                    start_new_session=True,
                )
                os.close(theirs)
                theirs = -1
                code = await _ended(process, mark, printed)
        finally:
            if theirs >= 0:
                os.close(theirs)
    output = printed.end.decode(errors="replace")
    if code != 0:
        last = output.rstrip().rpartition("\n")[2][-500:]
        raise ToolExecutionFailed(f"the command {served.name} ended with exit code {code}: {last}")
    return Output(code, output)


async def _ended(process: asyncio.subprocess.Process, mark: str, printed: _Printed) -> int:
    """The exit code of a process, when nothing that it started is left."""
    try:
        code = await process.wait()
        await asyncio.wait((printed.whole,), timeout=LAST_WORDS)
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it ended, and asyncio is about to say so
                os.killpg(process.pid, signal.SIGKILL)
        pause = 0.001
        # What the kernel does not let go of within a second is left to it.
        while await asyncio.to_thread(processes.clear, mark) and pause < 1.0:
            await asyncio.sleep(pause)
            pause *= 2
        await process.wait()
    return code


class _Printed(asyncio.Protocol):
    """Keeps the end of what is printed. ``whole`` is done when nobody can print any more."""

    def __init__(self) -> None:
        self.end = bytearray()
        self.whole: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.end += data
        del self.end[:-MOST_OUTPUT]

    def connection_lost(self, _: Exception | None) -> None:
        self.whole.set_result(None)


def inherited() -> dict[str, str]:
    """What a command, or another job, has of the server's environment: what programs need, and no secrets."""
    return {name: value for name, value in os.environ.items() if name in ENVIRONMENT or name.startswith("LC_")}
