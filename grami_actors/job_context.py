"""What a tool that runs as a job can say and ask: the parameter ``ctx: JobContext``. Floor 1.

Imported by worker processes before anything else of a job is: it imports nothing that takes time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the process of each job imports this module
    from pathlib import Path


class JobContext(ABC):
    """The job that a tool's function runs in: give it a parameter with this annotation, and it gets it.

    ::

        @tool(job=True, effect="resumable")
        def encode(path: str, ctx: JobContext) -> str:
            for place in range(ctx.resume or 0, FRAMES):
                ...
                ctx.progress(place / FRAMES, f"frame {place}")
                ctx.checkpoint(place + 1)

    Nothing of it waits for the server, except :meth:`ask_input`. A tool that is called and not run as a job gets one
    that keeps nothing.

    Attributes:
        job_id: the job; empty if the tool is only called.
        attempt: the number of this attempt, from 1.
        resume: the last checkpoint of the attempts before; ``None`` if there is none.
    """

    job_id: str = ""
    attempt: int = 1
    resume: Any = None

    @property
    @abstractmethod
    def cancelled(self) -> bool:
        """Whether the job is to end: what it does then, within its grace, is its own affair."""

    @abstractmethod
    def progress(self, fraction: float, message: str = "") -> None:
        """Say how far it is, from 0 to 1."""

    @abstractmethod
    def heartbeat(self) -> None:
        """Say that it lives; everything else that is said here says so too."""

    @abstractmethod
    def log(self, text: str) -> None:
        """Add a line to the job's log, where also goes what is printed."""

    @abstractmethod
    def checkpoint(self, data: Any) -> None:
        """Save where it is: the next attempt finds it in ``resume``. Anything that JSON can say, up to 256 KiB."""

    @abstractmethod
    def artifact(self, name: str, content: bytes | str | Path) -> None:
        """Keep a file that it made, under a name: a path (which is copied), or what is in it.

        Raises:
            ValueError: the name is no plain file name.
            OSError: it cannot be read, or not be kept.
        """

    @abstractmethod
    def ask_input(self, question: Any) -> Any:
        """Wait for somebody's answer to a question; both are anything that JSON can say.

        In a coroutine function it is awaited: ``answer = await ctx.ask_input("Which of them?")``.
        """
