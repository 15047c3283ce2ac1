"""What an actor needs of the house it lives in, and what the house needs of its lanes. Contracts only. Floor 5.

* :class:`Runtime`: the system, as its actors see it; in a worker process another one stands in for it.
* :class:`Lane`: where handlers run.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from grami_actors.deadlines import Deadlines
from grami_actors.errors import GramiError
from grami_actors.future import Future
from grami_actors.gates import RateGate
from grami_actors.messages import Scope
from grami_actors.ref import Ref
from grami_actors.spec import LaneName, Spec
from grami_actors.telemetry import Bus, Event

C = TypeVar("C")
C_contra = TypeVar("C_contra", contravariant=True)


class Runtime(Protocol[C]):
    """What actors need of the system they live in."""

    bus: Bus
    loop: asyncio.AbstractEventLoop
    deadlines: Deadlines

    def now(self) -> float:
        """Seconds on the system's clock."""

    def wall(self) -> float:
        """Seconds since 1970."""

    def new_random(self, actor: str) -> random.Random:
        """Dice of its own for an actor."""

    def resolve(self, to: str, message: Any, by: C | None = None) -> Any:
        """The destination that a name means for this message; raises DestinationNotFound or AgentUnavailable.

        ``by`` the actor that sends it; raises PermissionDenied. ``None`` for the runtime itself.
        """

    async def spawn(
        self, kind: type[Any], *args: Any, name: str | None = None, parent: C | None = None, **kwargs: Any
    ) -> Ref[Any]:
        """Start an actor."""

    async def spawn_spec(self, spec: Spec, *, name: str | None = None, parent: C | None = None) -> Ref[Any]:
        """Start an actor from its specification."""

    def failed(self, cell: C, error: BaseException) -> None:
        """A handler failed; called on the actor's lane."""

    def stop_soon(self, cell: C, grace: float | None = None, *, by_itself: bool = False) -> Future[bool]:
        """Begin to stop an actor, from any thread."""

    def watch_for(self, to: str | Ref[Any], watcher: C) -> None:
        """Tell one actor when another is gone. Raises DestinationNotFound."""

    def unwatch_for(self, to: str | Ref[Any], watcher: C) -> None:
        """Take that back. Raises DestinationNotFound."""

    def after(self, seconds: float, callback: Callable[[], object]) -> Callable[[], None]:
        """Call back on the home loop; returns a function that takes it back. Both from any thread."""

    def limit(self, scope: Scope, seconds: float, reason: GramiError) -> Callable[[], None]:
        """Cancel the scope of the message in hand in ``seconds``; returns a function that takes it back."""

    def release(self, cell: C) -> None:
        """Forget a stopped actor: its name, topics and place in the tree are free."""

    def subscribers(self, topic: str, by: C | None = None) -> tuple[C, ...]:
        """Who gets what is published to a topic, ``by`` an actor. Raises PermissionDenied."""

    def subscribe(self, pattern: str, cell: C, by: C | None = None) -> None:
        """Add one to them, ``by`` an actor. Raises PermissionDenied."""

    def unsubscribe(self, pattern: str, cell: C) -> bool:
        """Take one away."""

    def observe(self, cell: C, *kinds: type[Event]) -> None:
        """Tell an actor of events, until it stops."""

    def gate(self, upstream: str) -> RateGate:
        """The rate gate of an upstream."""

    def new_trace_id(self) -> str:
        """32 hex digits."""

    def begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task on the home loop whose first step is taken here and now, where that can be done."""


class Lane(Protocol[C_contra]):
    """Where handlers run. The lifecycle drives a lane; a lane decides nothing."""

    name: LaneName
    shared: bool
    """Whether the messages of one cell are taken by several threads."""

    def lend(self, future: Future[Any]) -> None:
        """Somebody is about to wait for an answer from this lane: the lane may use the time, if it is its thread."""

    def attach(self, cell: C_contra) -> None:
        """Own the cell from now on, paused. Raises StartFailed if there is no room."""

    def wake(self, cell: C_contra) -> None:
        """There is mail; from any thread."""

    async def start(self, cell: C_contra) -> None:
        """Make an instance and run its ``on_start`` where its handlers run. Raises what they raise."""

    async def call(self, cell: C_contra, hook: str, *args: Any) -> Any:
        """Run a hook of the instance, plain or async, where its handlers run. Raises what it raises."""

    def pause(self, cell: C_contra) -> None:
        """Take no more messages for the cell; from any thread."""

    def resume(self, cell: C_contra) -> None:
        """Let the cell take messages."""

    async def quiesce(self, cell: C_contra, grace: float) -> bool:
        """Wait for the handlers at work to end; after ``grace`` seconds interrupt them.

        Returns:
            False if one still runs, because this lane cannot interrupt it.
        """

    def kill(self, cell: C_contra) -> None:
        """End the handlers at work now. Raises KillRefused where that cannot be done."""

    def detach(self, cell: C_contra) -> None:
        """Let go of the cell."""

    async def close(self) -> None:
        """Let go of everything: the system is closed."""
