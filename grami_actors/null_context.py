"""The context of a tool that is called, and not run as a job: it keeps nothing. Floor 7."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from grami_actors.future import current_scope
from grami_actors.job_context import JobContext


class NullContext(JobContext):
    """What a function that takes a :class:`~grami_actors.job_context.JobContext` gets when there is no job.

    Its progress goes to whoever streams the request that called the tool; the rest goes nowhere.
    """

    @property
    def cancelled(self) -> bool:
        """Whether the request that called the tool was cancelled."""
        scope = current_scope()
        return scope is not None and scope.reason is not None

    def progress(self, fraction: float, message: str = "") -> None:
        """Tell whoever streams the request."""
        scope = current_scope()
        if scope is not None and scope.sink is not None:
            scope.sink.progress(fraction, message)

    def heartbeat(self) -> None:
        """Nobody listens."""

    def log(self, text: str) -> None:
        """There is no log."""

    def checkpoint(self, data: Any) -> None:
        """There is no next attempt."""

    def artifact(self, name: str, content: bytes | str | Path) -> None:
        """It is not kept."""

    def ask_input(self, question: Any) -> NoReturn:
        """Raises RuntimeError: a call has nobody to ask."""
        raise RuntimeError("a tool that is only called has nobody to ask for input; submit it as a job")
