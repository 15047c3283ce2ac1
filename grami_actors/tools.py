"""Tools: typed functions that agents and clients call by name. Floor 8.

A tool's JSON Schema is made from its signature, its arguments are checked against it, and it has a lane, a
time limit and a concurrency limit. A tool named by its import path is imported when it is first used.

The process of a job imports this, and no more of the runtime: what is imported here, each of its attempts waits for.
"""

from __future__ import annotations

import importlib
import inspect
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, TypedDict, TypeVar, Unpack, overload

import msgspec

from grami_actors.errors import ErrorCode, ProtocolError, describe
from grami_actors.explain import explain
from grami_actors.job import Effect, Limits, OnServerExit, Retry, RunnerName, Terms
from grami_actors.signatures import Signature, plain, schema_of

if TYPE_CHECKING:
    from grami_actors.spec import LaneName

P = ParamSpec("P")
R = TypeVar("R")

TIMEOUT = 30.0
"""Seconds a call of a tool may take, unless it says otherwise."""

OUTSIDE_LIMITS = ("memory", "cpu", "processes", "files")
"""Limits that only hold what is a process of its own."""


class JobOptions(TypedDict, total=False):
    """The options of a tool that is offered as a job; :class:`~grami_actors.job.Terms` says what they mean."""

    job: bool
    effect: Effect
    retry: Retry
    limits: Limits
    attempt_timeout: float | None
    queue_timeout: float | None
    deadline: float | None
    heartbeat: float | None
    soft_grace: float
    term_grace: float
    on_server_exit: OnServerExit
    strays: Literal["wait", "kill"]
    queue: int | None


class Description(msgspec.Struct, frozen=True, omit_defaults=True):
    """What ``describe`` tells about a tool.

    ``job``: whether it is offered as a job; then ``effect`` says what doing it twice does, and ``runner`` where its
    jobs run. ``error`` says why a lazy tool could not be imported.
    """

    name: str
    description: str
    lane: str
    timeout_ms: int
    concurrency: int
    parameters: dict[str, Any] | None = None
    returns: dict[str, Any] | None = None
    error: str | None = None
    job: bool = False
    effect: Effect | None = None
    runner: RunnerName | None = None


class Tool(Generic[P, R]):
    """A function that can be called by name, with limits. Made by :func:`tool` or :func:`lazy_tool`.

    Calling it runs the plain function, which is what unit tests want.

    Args:
        source: the function, or its import path ``"package.module:function"``.
        name: what it is called by; the function's name if not given.
        lane: ``"thread"`` for functions that block (the default), ``"loop"`` for coroutine functions (their
            default) and for plain ones that are quick; ``"process"`` for those that compute, or may crash or hang:
            the function stands at the top of a module, and is imported in a worker process.
        timeout: seconds from the start of the function; then the caller gets ToolTimeout. A coroutine is
            cancelled, a process that goes on is killed; a thread cannot be: it should look at ``cancelled()``.
        concurrency: how many calls may run at the same time; more wait in the mailbox.
        mailbox: how many calls may wait.
        upstream: the service that it calls. When one call fails with :class:`~grami_actors.errors.RateLimited`, it and
            all others to that service wait until the service takes calls again, or fail if that is after their
            deadline.
        job: it is offered as a job, which outlives whoever asked for it. Then the default lane of a plain function is
            ``"process"``: its jobs run outside, in processes of their own, and go on when the server ends; on the
            other lanes they run inside. Calls of one whose lane is not given are on a thread: many tools with jobs
            need no worker process each. ``timeout`` and ``concurrency``, where they are given, also bound its jobs.
        options: how its jobs run: :class:`JobOptions`.

    Attributes:
        terms: of its jobs; the default ones for a tool that is not offered as a job.
        calls_on: the lane of its calls.
        wants_context: the parameter that takes the :class:`~grami_actors.job_context.JobContext`, which is none of its
            arguments; known when it is loaded.

    Raises:
        TypeError: an option that does not exist, or needs ``job=True``; no import path where one is needed.
        ValueError: a value that makes no sense, or a limit that its lane cannot hold.
    """

    def __init__(  # noqa: PLR0913 - the options of a decorator
        self,
        source: Callable[P, R] | str,
        *,
        name: str | None = None,
        lane: LaneName | None = None,
        timeout: float | None = None,
        concurrency: int | None = None,
        mailbox: int = 1_000,
        upstream: str | None = None,
        **options: Unpack[JobOptions],
    ) -> None:
        self.timeout = TIMEOUT if timeout is None else timeout
        self.concurrency = 1 if concurrency is None else concurrency
        self.mailbox = mailbox
        self.upstream = upstream
        self.job = options.pop("job", False)
        self.wants_context: str | None = None
        self._source = source
        self._lock = threading.Lock()
        self._function: Callable[P, R] | None = None
        self._signature: Signature | None = None
        if isinstance(source, str):
            module, _, function = source.partition(":")
            if not module or not function:
                raise ValueError(f"a lazy tool is named like 'package.module:function', not {source!r}")
            self.name: str = name or function.rpartition(".")[2]
        else:
            self.name = name or str(getattr(source, "__name__", ""))
            if not self.name:
                raise ValueError(f"{source!r} has no name of its own; give the tool one with name=")
            self._bind(source)
        self.lane: LaneName = lane or (
            "loop" if inspect.iscoroutinefunction(source) else "process" if self.job else "thread"
        )
        self.calls_on: LaneName = lane or ("loop" if self.lane == "loop" else "thread")
        self.terms = self._terms(options, timeout, concurrency)
        self._check()

    def _terms(self, options: JobOptions, timeout: float | None, concurrency: int | None) -> Terms:
        for option in options:
            if option not in JobOptions.__annotations__:
                raise TypeError(f"the tool {self.name}: {option!r} is no option of tools")
            if not self.job:
                raise TypeError(f"the tool {self.name}: {option!r} is an option of jobs, so it needs job=True")
        if not self.job:
            return Terms()
        terms = Terms(**{"attempt_timeout": timeout, "concurrency": concurrency, **options})  # type: ignore[arg-type]
        try:
            return msgspec.convert(msgspec.to_builtins(terms), Terms)
        except msgspec.ValidationError as error:
            raise ValueError(f"the tool {self.name}: {error}") from None

    def _check(self) -> None:
        if self.timeout <= 0 or self.concurrency < 1 or self.mailbox < 1:
            raise ValueError("a tool's timeout is more than 0 seconds, its concurrency and mailbox at least 1")
        if self.upstream is not None and self.lane == "process":
            raise ValueError("a worker process does not share a rate gate; put a tool with an upstream on another lane")
        if self.job and self.runner == "outside":
            self.import_path()
        held = [limit for limit in OUTSIDE_LIMITS if getattr(self.terms.limits, limit) is not None]
        if held and self.runner == "inside":
            raise ValueError(
                f"the tool {self.name}: what runs in the server, on its {self.lane} lane, can neither be limited in "
                f"{', '.join(held)} nor be killed; use lane='process'"
            )

    @property
    def runner(self) -> RunnerName:
        """Where its jobs run: in processes of their own, or in the server."""
        return "outside" if self.lane == "process" else "inside"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the plain function, here and now; a context that is not given is one that keeps nothing."""
        function = self.load()
        wanted = self.wants_context
        if wanted is not None and wanted not in inspect.signature(function).bind_partial(*args, **kwargs).arguments:
            from grami_actors.null_context import NullContext  # noqa: PLC0415 - see above: a job has another one

            kwargs[wanted] = NullContext()
        return function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<tool {self.name}>"

    def __reduce__(self) -> Any:
        """For a worker process: the way to the function, which is imported there when it is first called."""
        names = ("name", "lane", "timeout", "concurrency", "mailbox")
        return partial(lazy_tool, **{name: getattr(self, name) for name in names}), (self.import_path(),)

    def import_path(self) -> str:
        """Where another process finds it: ``"package.module:function"``. Raises TypeError if it does not."""
        if isinstance(self._source, str):
            return self._source
        path = f"{getattr(self._source, '__module__', '')}:{getattr(self._source, '__qualname__', '')}"
        if path.startswith(":") or path.endswith((":", "<lambda>")) or "<locals>" in path:
            inside = "; or have its jobs run in the server, with lane='thread'" if self.job else ""
            raise TypeError(
                f"the tool {self.name} has no import path: define its function at the top of a module{inside}"
            )
        return path

    @property
    def loaded(self) -> bool:
        """Whether the function is there, or still to be imported."""
        return self._function is not None

    def load(self) -> Callable[P, R]:
        """The function; imports it if that was not done yet. Raises what the import raises."""
        with self._lock:
            if self._function is None:
                module, _, path = str(self._source).partition(":")
                found: Any = importlib.import_module(module)
                for part in path.split("."):
                    found = getattr(found, part)
                self._bind(found.load() if isinstance(found, Tool) else found)
        return self._function  # type: ignore[return-value]

    def _bind(self, function: Callable[P, R]) -> None:
        self._signature = Signature(function)
        self.wants_context = self._signature.context
        self._function = function

    def convert(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Check arguments against the signature, and convert them to its types.

        Raises:
            ProtocolError: VALIDATION_FAILED, with the path of what is wrong.
        """
        self.load()
        assert self._signature is not None
        try:
            return self._signature.convert(arguments)
        except msgspec.ValidationError as error:
            text, path = explain(error)
            param = f"$.arguments{path.removeprefix('$')}"
            raise ProtocolError(f"{self.name}: {text}", code=ErrorCode.VALIDATION_FAILED, param=param) from None

    def describe(self) -> Description:
        """Name, limits and JSON Schemas."""
        told: dict[str, Any] = {
            "lane": self.lane,
            "timeout_ms": round(self.timeout * 1000),
            "concurrency": self.concurrency,
        }
        if self.job:
            told |= {"job": True, "effect": self.terms.effect, "runner": self.runner}
        try:
            function = self.load()
        except BaseException as error:  # noqa: BLE001 - whatever the module raises is what there is to tell
            return Description(self.name, "", **told, error=f"cannot be imported: {describe(error)}")
        assert self._signature is not None
        return Description(
            name=self.name,
            description=inspect.getdoc(plain(function)) or "",
            parameters=self._signature.schema(),
            returns=schema_of(self._signature.returned),
            **told,
        )


@overload
def tool(function: Callable[P, R], /) -> Tool[P, R]: ...


@overload
def tool(
    *,
    name: str | None = None,
    lane: LaneName | None = None,
    timeout: float | None = None,
    concurrency: int | None = None,
    mailbox: int = 1_000,
    upstream: str | None = None,
    **options: Unpack[JobOptions],
) -> Callable[[Callable[P, R]], Tool[P, R]]: ...


def tool(function: Any = None, /, **options: Any) -> Any:
    """Make a tool of a typed function: ``@tool`` or ``@tool(timeout=5, concurrency=4)``; see :class:`Tool`."""
    return partial(Tool, **options) if function is None else Tool(function)


def lazy_tool(path: str, **options: Any) -> Tool[..., Any]:
    """A tool that is imported when it is first used: ``lazy_tool("package.module:function", timeout=60)``."""
    return Tool(path, **options)
