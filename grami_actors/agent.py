"""Agents: actors whose methods handle message types. Floor 11."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, ClassVar, TypeVar, get_args

from grami_actors.actor import Actor, charge, specify
from grami_actors.errors import DestinationNotFound, ErrorCode, GramiError
from grami_actors.future import Future, Stream
from grami_actors.guard import owned
from grami_actors.job import Order
from grami_actors.job_handle import JobHandle
from grami_actors.job_requests import JOBS, SubmitJob
from grami_actors.messages import Message, ToolCall, snake_case
from grami_actors.model import Generate, Prompt
from grami_actors.pools import PoolStrategy
from grami_actors.restarts import RestartPolicy

H = TypeVar("H", bound=Callable[..., Any])

MODEL = "tool:model"
"""The name of the actor that runs a swarm's language model."""

_OPTIONS = ("lane", "mailbox", "overflow", "concurrency", "restart")


def handles(*kinds: type[Message]) -> Callable[[H], H]:
    """Mark a method of an :class:`Agent` as the handler of message types.

    Raises:
        TypeError: nothing was named, or something that is not a subclass of Message.
    """
    if not kinds or not all(isinstance(kind, type) and issubclass(kind, Message) for kind in kinds):
        raise TypeError("@handles(...) takes the message types (subclasses of Message) that the method handles")

    def mark(method: H) -> H:
        method.__grami_handles__ = kinds  # type: ignore[attr-defined]
        return method

    return mark


class Agent(Actor):
    """An actor that handles messages by type.

    ::

        class Writer(Agent, instances=3):
            @handles(Draft)
            async def write(self, draft: Draft) -> str:
                return "".join([piece async for piece in self.generate(draft.prompt)])

    Handlers are coroutine functions or plain functions; one message is handled at a time unless
    ``concurrency`` says otherwise. What a handler returns is the answer: anything that msgspec can encode.

    Class arguments:
        name: how others address it; the class's name in snake_case if not given.
        instances: how many of them share the work, behind one name.
        pool: how they share it: ``"least_busy"``, ``"round_robin"``, ``"consistent_hash"`` (messages with one key go
            to one instance) or ``"broadcast"`` (every message goes to all; an ask gets the list of answers).
        key: for ``"consistent_hash"``: the name of a field, or a function of the message; ``key`` if not given.
        lane, mailbox, overflow, concurrency, restart: see :class:`Actor`. An agent that fails too often rests
            for 15 s and starts over, unless its policy says otherwise.
        subscribes: topics whose messages it gets.
    """

    restart: ClassVar[RestartPolicy] = RestartPolicy(pause=15.0)
    agent_name: ClassVar[str] = ""
    instances: ClassVar[int] = 1
    pool: ClassVar[PoolStrategy] = "least_busy"
    key: ClassVar[Callable[[Any], object] | None] = None
    subscribes: ClassVar[tuple[str, ...]] = ()
    handlers: ClassVar[dict[type[Message], str]] = {}

    def __init_subclass__(
        cls,
        *,
        name: str | None = None,
        instances: int | None = None,
        subscribes: tuple[str, ...] | None = None,
        pool: PoolStrategy | None = None,
        key: str | Callable[[Any], object] | None = None,
        **options: Any,
    ) -> None:
        super().__init_subclass__()
        for option, value in options.items():
            if option not in _OPTIONS:
                known = ", ".join((*_OPTIONS, "name", "instances", "subscribes", "pool", "key"))
                raise TypeError(f"{cls.__name__}: unknown option {option!r}; known are {known}")
            setattr(cls, option, value)
        if instances is not None:
            if not isinstance(instances, int) or instances < 1:
                raise ValueError(f"{cls.__name__}: an agent has at least one instance, not {instances}")
            cls.instances = instances
        if isinstance(subscribes, str):
            raise TypeError(f"{cls.__name__}: subscribes is a tuple of topics: subscribes=({subscribes!r},)")
        if pool is not None:
            cls.pool = pool
        if key is not None:
            cls.key = staticmethod(attrgetter(key) if isinstance(key, str) else key)
        _check_options(cls)
        cls.agent_name = name or snake_case(cls.__name__)
        cls.subscribes = cls.subscribes if subscribes is None else subscribes
        cls.handlers = {}
        for base in reversed(cls.__mro__):
            cls.handlers |= _handlers(base)

    def on_receive(self, message: Any) -> Any:
        """Call the handler of the message's type."""
        method = self.handlers.get(type(message))
        if method is None:
            raise GramiError(f"{self.name} does not handle {type(message).__name__}", code="UNKNOWN_TYPE")
        return getattr(self, method)(message)

    def call(self, tool: Any, /, **arguments: Any) -> Future[Any]:
        """Call a tool and get the future of its result: ``await self.call(hashtags, niche="tech")``.

        Args:
            tool: the tool, or its name.
            arguments: by keyword, checked against the tool's signature.

        The future raises ToolExecutionFailed, ToolTimeout, or what :meth:`ask` raises.
        """
        name = tool if isinstance(tool, str) else tool.name
        try:
            charge(tool_calls=1)
        except GramiError as used_up:
            future: Future[Any] = Future()
            future.fail(used_up)
            return future
        return self.ask(f"tool:{name}", ToolCall(arguments))

    async def submit(self, tool: Any, /, *, order: Order = Order(), **arguments: Any) -> JobHandle:  # noqa: B008 - frozen
        """Run a tool as a job, which outlives this agent and the server: ``await self.submit(render, frames=10)``.

        Args:
            tool: the tool or command, or its name.
            order: its idempotency key, priority, time, and whom to wake at its end.
            arguments: by keyword, checked against the tool's signature.

        Raises:
            JobError: JOB_REJECTED: a queue is full.
            GramiError: the tool is not there, not allowed or called with wrong arguments; UNSUPPORTED_FEATURE: the
                system runs no jobs.
        """
        name = tool if isinstance(tool, str) else tool.name
        submit = owned(SubmitJob(tool=name, arguments=arguments, order=order), self._cell)
        charge(tool_calls=1)
        return self.job((await self._ask_office(submit)).id)

    def job(self, id: str) -> JobHandle:  # noqa: A002 - its name everywhere
        """A job by its id, also one that somebody else submitted, or an earlier process."""
        return JobHandle(self._ask_office, id)

    def _ask_office(self, request: Any, timeout: float | None = None) -> Future[Any]:
        try:
            office = self._cell.runtime.resolve(JOBS, request)
        except DestinationNotFound:
            text = "this system runs no jobs; a Growth Manager does, whose swarm has a tool with job=True"
            raise GramiError(text, code=ErrorCode.UNSUPPORTED_FEATURE) from None
        asked: Future[Any] = office.ask(request, timeout)
        return asked

    def generate(self, prompt: Prompt | str, *, timeout: float | None = None) -> Stream[str]:
        """Let the swarm's language model write: iterate over the pieces, or await the whole text."""
        return self.stream(MODEL, Generate(Prompt(text=prompt) if isinstance(prompt, str) else prompt), timeout=timeout)


def _check_options(cls: type[Agent]) -> None:
    specify(cls)
    if cls.pool not in get_args(PoolStrategy):
        raise ValueError(f"{cls.__name__}: {cls.pool!r} is none of {', '.join(get_args(PoolStrategy))}")


def _handlers(cls: type) -> dict[type[Message], str]:
    found: dict[type[Message], str] = {}
    for attribute, method in vars(cls).items():
        for kind in getattr(method, "__grami_handles__", ()):
            if kind in found:
                raise TypeError(f"{cls.__name__}: both {found[kind]} and {attribute} handle {kind.__name__}")
            found[kind] = attribute
    return found
