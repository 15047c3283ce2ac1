"""How others refer to an actor: a handle that survives restarts, and that Pykka knows. Floor 4."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any, TypeVar

import pykka

from grami_actors.budget import Budget
from grami_actors.errors import AgentUnavailable, WouldDeadlock
from grami_actors.mailbox import Mailbox

A = TypeVar("A", bound=pykka.Actor)


class ActorDead(AgentUnavailable, pykka.ActorDeadError):
    """The actor is stopped; also a ``pykka.ActorDeadError`` for code that knows Pykka."""


class _Stopped:
    """Looks like the ``threading.Event`` that Pykka keeps per actor, and costs nothing."""

    __slots__ = ("_cell",)

    def __init__(self, cell: Any) -> None:
        self._cell = cell

    def is_set(self) -> bool:
        mailbox: Mailbox = self._cell.mailbox
        return mailbox.closed

    def wait(self, timeout: float | None = None) -> bool:
        if asyncio._get_running_loop() is not None:
            raise WouldDeadlock("a blocking wait on an event loop's thread would stop it; await system.watch(...)")
        gone = threading.Event()
        home = self._cell.runtime.loop
        with contextlib.suppress(RuntimeError):  # the loop is closed, so the actor is gone
            home.call_soon_threadsafe(self._cell.watch, gone, lambda _: gone.set())
            if not gone.wait(timeout):
                home.call_soon_threadsafe(self._cell.unwatch, gone)
        return self.is_set()


class Proxy(pykka.ActorProxy[A]):
    """Pykka's proxy, but it looks at the instance of the moment: a restart does not leave it behind."""

    # Pykka sets it once, and would go on looking at an instance that was replaced, and keep it alive.
    _actor = property(lambda self: self.actor_ref._cell.actor, lambda _self, _actor: None)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, pykka.ActorProxy):
            return False
        return self.actor_ref is other.actor_ref and self._attr_path == other._attr_path

    def __hash__(self) -> int:
        return hash((self.actor_ref, self._attr_path))

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *vars(pykka.ActorProxy)})


class Ref(pykka.ActorRef[A]):
    """A handle on an actor: send to it, ask it, stop it. Stays valid when the actor is restarted.

    It is a Pykka ``ActorRef``; what differs: an ask has a deadline (30 s unless given), a blocking ask on an
    event loop's thread raises at once, and ``ask(..., block=False)`` gives a future that can be awaited.
    """

    # Pykka keeps these in every ref; read from the cell they cost an idle actor nothing.
    actor_class = property(lambda self: self._cell.spec.kind)
    actor_urn = property(lambda self: f"urn:grami:{self._cell.runtime.id}:{self._cell.number}")
    actor_inbox = property(lambda self: self._cell.mailbox)
    actor_stopped = property(lambda self: _Stopped(self._cell))
    _actor_weakref = property(lambda self: lambda: self._cell.actor)

    def __init__(self, cell: Any) -> None:
        self._cell = cell
        self.tell = cell.tell  # type: ignore[method-assign] # the method below, without a second call

    @property
    def name(self) -> str:
        """The actor's name in its system."""
        return str(self._cell.name)

    def __str__(self) -> str:
        return f"{self.actor_class.__name__} {self._cell.name} ({self.actor_urn})"

    def tell(self, message: Any) -> None:
        """Send without waiting for an answer.

        Raises:
            ActorDead: the actor is stopped (a ``pykka.ActorDeadError``).
            MailboxFull: its mailbox is full and refuses.
        """
        self._cell.tell(message)

    def ask(
        self, message: Any, *, block: bool = True, timeout: float | None = None, budget: Budget | None = None
    ) -> Any:
        """Send and wait for the answer.

        Args:
            message: the message.
            block: wait here (ordinary threads only), or return a future at once.
            timeout: the deadline in seconds from now; 30 if not given; never later than the deadline of the
                request being handled.
            budget: what the request, and everything it causes, may spend.

        Raises:
            WouldDeadlock: a blocking ask on the thread of a running event loop.
            DeadlineExceeded: no answer in time; the outcome is unknown (a ``pykka.Timeout``).
            ActorDead: the actor is stopped (a ``pykka.ActorDeadError``).
            Exception: what the actor raised.
        """
        if block and asyncio._get_running_loop() is not None:
            raise WouldDeadlock("a blocking ask on an event loop's thread would stop it; use block=False and await")
        future = self._cell.ask(message, timeout=timeout, budget=budget)
        return future.get() if block else future

    def stop(self, *, block: bool = True, timeout: float | None = None) -> Any:
        """Stop the actor after the message in hand; what is queued becomes dead letters.

        Returns:
            whether this call stopped it (``False``: it was dead), or with ``block=False`` the future of that.

        Raises:
            WouldDeadlock: a blocking stop on the thread of a running event loop.
        """
        if block and asyncio._get_running_loop() is not None:
            raise WouldDeadlock("a blocking stop on an event loop's thread would stop it; use block=False and await")
        future = self._cell.runtime.stop_soon(self._cell)
        return future.get(timeout=timeout) if block else future

    def proxy(self) -> Proxy[A]:
        """An object that has the actor's methods and attributes, each call and access being an ask.

        Raises:
            ActorDead: the actor is stopped (a ``pykka.ActorDeadError``).
        """
        try:
            return Proxy(actor_ref=self)
        except pykka.ActorDeadError as dead:
            raise ActorDead(str(dead)) from None
