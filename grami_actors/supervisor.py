"""A supervisor as OTP has it: children declared as data, started in order, restarted together. Floor 11.

Any actor may spawn children and is their supervisor; this one has nothing else to do. See
https://www.erlang.org/doc/apps/stdlib/supervisor.
"""

from __future__ import annotations

from typing import Any, ClassVar

from grami_actors.actor import Actor, specify
from grami_actors.errors import GramiError
from grami_actors.ref import Ref
from grami_actors.restarts import RestartPolicy
from grami_actors.spec import GRACE, Keep


class Child:
    """What a supervisor starts.

    Args:
        kind: the actor class; the other positional and keyword arguments are its constructor's.
        name: its name below the supervisor's: ``supervisor/name``.
        keep: ``"permanent"``: restarted whenever it ends by itself; ``"transient"``: when it fails;
            ``"temporary"``: never.
        grace: seconds that it gets to stop.
    """

    def __init__(
        self,
        kind: type[Actor],
        *args: Any,
        name: str | None = None,
        keep: Keep = "permanent",
        grace: float = GRACE,
        **kwargs: Any,
    ) -> None:
        self.name = name
        self.spec = specify(kind, args, kwargs, keep, grace)


class Supervisor(Actor):
    """Starts its children in order, and restarts them by its strategy.

    ::

        class Crawl(Supervisor):
            strategy = "rest_for_one"
            children = (Child(Frontier, name="frontier"), Child(Fetcher, 8, name="fetcher"))

        await system.spawn(Crawl, name="crawl")

    More than three restarts within five seconds, of all children together, fail the supervisor itself: it stops them
    in reverse order, and its own supervisor decides. These are OTP's defaults but for the number, which is one there.

    Args:
        children: added to those of the class.
    """

    children: ClassVar[tuple[Child, ...]] = ()
    children_restart: ClassVar[RestartPolicy | None] = RestartPolicy(intensity=3, period=5.0)

    def __init__(self, *children: Child) -> None:
        super().__init__()
        self._children = (*type(self).children, *children)

    async def on_start(self) -> None:
        """Start the children; one that cannot be started fails the start, and the others are stopped."""
        for child in self._children:
            await self.add(child)

    async def add(self, child: Child) -> Ref[Any]:
        """Start one more child. Raises StartFailed or NameTaken, which leave the others alone."""
        return await self._cell.runtime.spawn_spec(child.spec, name=child.name, parent=self._cell)

    def on_receive(self, message: Any) -> Any:
        """Start a :class:`Child` that is sent here, and answer with its ref."""
        if isinstance(message, Child):
            return self.add(message)
        raise GramiError(
            f"{self.name} supervises; it takes a Child, not a {type(message).__name__}", code="UNKNOWN_TYPE"
        )
