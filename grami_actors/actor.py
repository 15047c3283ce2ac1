"""The actor: what a user subclasses, and what its handlers can do. Floor 6."""

from __future__ import annotations

from types import TracebackType
from typing import Any, ClassVar, TypeVar

import pykka
from pykka import messages as pykka_messages

from grami_actors.cell import Cell, LaneName, Ref
from grami_actors.errors import AgentUnavailable, GramiError, MailboxFull
from grami_actors.future import Future, Stream, current_scope
from grami_actors.mailbox import CAPACITY, Overflow
from grami_actors.messages import Envelope, Message
from grami_actors.restarts import RestartPolicy

A = TypeVar("A", bound="Actor")

_PYKKA_MESSAGES = frozenset(
    {
        pykka_messages.ProxyCall,
        pykka_messages.ProxyGetAttr,
        pykka_messages.ProxySetAttr,
    }
)


# For the type checker a base without signatures: hooks and handlers may be coroutine functions here.
_PykkaActor: Any = pykka.Actor


class Actor(_PykkaActor):  # type: ignore[misc]
    """The base of all actors: override :meth:`on_receive`, and the hooks you need, plain or async.

    Start it with ``await system.spawn(Kind, ...)``. Class attributes set how it runs:

    * ``lane``: where its handlers run; ``"loop"``, or ``"thread"``, where they may block.
    * ``mailbox``: how many messages may wait; ``overflow``: what happens to one more.
    * ``concurrency``: how many handlers may interleave; on the thread lane, how many threads.
    * ``restart``: what follows a failure.
    """

    lane: ClassVar[LaneName] = "loop"
    mailbox: ClassVar[int] = CAPACITY
    overflow: ClassVar[Overflow] = "reject"
    concurrency: ClassVar[int] = 1
    restart: ClassVar[RestartPolicy] = RestartPolicy()

    _cell: Cell

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        # Pykka's constructor would make an inbox, a uuid and an event for each; the cell has them already.
        cell = getattr(self, "_cell", None)
        if cell is not None:
            self.actor_urn = cell.urn
            self.actor_inbox = cell.mailbox
            self.actor_stopped = cell.ref.actor_stopped
            self._actor_ref = cell.ref

    @classmethod
    def start(cls, *_args: Any, **_kwargs: Any) -> Any:
        """Refused: an actor belongs to a system. Use ``await system.spawn(Kind, ...)``."""
        raise TypeError(
            f"start {cls.__name__} with `await system.spawn({cls.__name__}, ...)`: there is no global system"
        )

    def _create_actor_inbox(self) -> Any:
        return self._cell.mailbox

    @staticmethod
    def _create_future() -> Future[Any]:
        return Future()

    def _start_actor_loop(self) -> None:
        self._cell.lane.resume(self._cell)

    def __str__(self) -> str:
        return f"{type(self).__name__} ({self.name})"

    def _handle_receive(self, message: Any) -> Any:
        if type(message) in _PYKKA_MESSAGES:
            return super()._handle_receive(message)
        return self.on_receive(message)

    def on_receive(self, message: Any) -> Any:
        """Handle a message; what it returns (or its coroutine does) is the answer."""
        raise GramiError(f"{self.name} has no handler for {type(message).__name__}", code="UNKNOWN_TYPE")

    def on_start(self) -> Any:
        """Run before the first message, after each restart too; may be a coroutine function."""

    def on_stop(self) -> Any:
        """Run after the last message of an actor that is stopped; may be a coroutine function."""

    def on_failure(
        self,
        exception_type: type[BaseException] | None,
        exception_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> Any:
        """Run on the failed instance before it is replaced; may be a coroutine function."""

    # --- for use inside handlers ---

    @property
    def name(self) -> str:
        """This actor's name in its system."""
        cell = getattr(self, "_cell", None)
        return type(self).__name__ if cell is None else cell.name

    def tell(self, to: str | Ref[Any], message: Any, *, detached: bool = False) -> None:
        """Send without waiting for an answer; the message inherits the scope unless ``detached``.

        Raises:
            DestinationNotFound, ActorDead, MailboxFull: nothing was sent.
        """
        self._find(to, message).tell(message, detached=detached)

    async def send(self, to: str | Ref[Any], message: Any) -> None:
        """Like :meth:`tell`, but wait for room if the mailbox is full and its policy is ``wait``."""
        await self._find(to, message).send(message)

    def ask(self, to: str | Ref[Any], message: Any, *, timeout: float | None = None) -> Future[Any]:
        """Send and get the future of the answer: ``await self.ask("writer", Draft(...))``.

        Args:
            to: the name of an actor, pool or tool, or a ref.
            message: the message.
            timeout: seconds; never later than the deadline of the message being handled.

        The future raises DeadlineExceeded, Cancelled, AgentCrashed, AgentUnavailable, DestinationNotFound,
        MailboxFull, AskCycle, or AgentExecutionFailed (whose cause is what the other handler raised).
        """
        return self._ask(to, message, timeout, Future())

    def stream(self, to: str | Ref[Any], message: Any, *, timeout: float | None = None) -> Stream[Any]:
        """Ask, and read the chunks that the other emits: ``async for chunk in self.stream(...)``."""
        stream: Stream[Any] = Stream()
        self._ask(to, message, timeout, stream)
        return stream

    def _ask(self, to: str | Ref[Any], message: Any, timeout: float | None, future: Future[Any]) -> Future[Any]:
        try:
            cell = self._find(to, message)
        except GramiError as nowhere:
            future.fail(nowhere)
            return future
        return cell.ask(message, timeout=timeout, future=future)

    def _find(self, to: str | Ref[Any], message: Any) -> Cell:
        return self._cell.runtime.resolve(to, message) if isinstance(to, str) else to._cell

    async def spawn(self, kind: type[A], *args: Any, name: str | None = None, **kwargs: Any) -> Ref[A]:
        """Start a child; it is stopped with this actor. Raises StartFailed or NameTaken."""
        return await self._cell.runtime.spawn(kind, *args, name=name, parent=self._cell, **kwargs)

    def publish(self, topic: str, message: Message) -> int:
        """Send to every subscriber of a topic; returns to how many. A full or stopped one is skipped."""
        reached = 0
        for cell in self._cell.runtime.subscribers(topic):
            try:
                cell.tell(message)
            except (MailboxFull, AgentUnavailable):
                cell.bury(Envelope(message, None, self.name), "overflow")
            else:
                reached += 1
        return reached

    def subscribe(self, topic: str) -> None:
        """Get what is published to a topic, until this actor stops."""
        self._cell.runtime.subscribe(topic, self._cell)

    def emit(self, data: Any) -> None:
        """Send a chunk of the answer to whoever streams this request; without one, nothing happens."""
        emit(data)

    def progress(self, fraction: float, message: str = "") -> None:
        """Report progress, ``fraction`` from 0 to 1, to whoever streams this request."""
        progress(fraction, message)

    @property
    def cancelled(self) -> bool:
        """Whether the request being handled was cancelled; for thread handlers, which must look themselves."""
        return cancelled()

    def stop(self) -> None:
        """Stop this actor after the message in hand."""
        self._cell.runtime.stop_soon(self._cell)


def emit(data: Any) -> None:
    """Send a chunk of the answer to whoever streams the request being handled; without one, nothing happens."""
    scope = current_scope()
    if scope is not None and scope.sink is not None:
        scope.sink.emit(data)


def progress(fraction: float, message: str = "") -> None:
    """Report progress, ``fraction`` from 0 to 1, to whoever streams the request being handled."""
    scope = current_scope()
    if scope is not None and scope.sink is not None:
        scope.sink.progress(fraction, message)


def cancelled() -> bool:
    """Whether the request being handled was cancelled. Code that blocks a thread must look for itself."""
    scope = current_scope()
    return scope is not None and scope.reason is not None
