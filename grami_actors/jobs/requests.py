"""A client's request, run in the background: a tool whose function asks the agent, on behalf of its owner. Floor 12."""

from __future__ import annotations

from typing import Any

import msgspec

from grami_actors.errors import Cancelled, ErrorCode, JobError
from grami_actors.future import Future, current
from grami_actors.guard import ROUTER
from grami_actors.job import Job
from grami_actors.job_context import JobContext
from grami_actors.job_requests import REQUEST
from grami_actors.jobs.ledger import Ledger
from grami_actors.messages import Envelope, Message, Scope
from grami_actors.principals import Principal
from grami_actors.router import Forward
from grami_actors.system import ActorSystem
from grami_actors.tools import Tool


class _Steps:
    """Where the agent's progress goes: it is the job's."""

    def __init__(self, context: JobContext) -> None:
        self._context = context

    def started(self, source: str) -> None:
        """That it runs is known."""

    def emit(self, data: Any) -> None:
        """Chunks are for who reads along; the result has all of it."""

    def progress(self, fraction: float, message: str) -> None:
        """How far the agent is."""
        self._context.progress(fraction, message)


def request_tool(system: ActorSystem, ledger: Ledger, name: str, kind: type[Message]) -> Tool[..., Any]:
    """The tool of such jobs.

    Args:
        system: where the agents live.
        ledger: knows on whose behalf a job is run.
        name: of the message type.
        kind: the type itself.
    """

    async def request(message: dict[str, Any], to: str, ctx: JobContext) -> Any:
        job: Job | None = await ledger.read(lambda store: store.get(ctx.job_id))
        if job is None:
            raise JobError(f"there is no job {ctx.job_id}", code=ErrorCode.JOB_NOT_FOUND)
        current.set(None)  # what follows belongs to the request of a client, and not to a tool of ours
        root = Scope(sink=_Steps(ctx))
        root.principal = Principal(job.owner, frozenset(job.scopes))
        root.job = job.id
        answer: Future[Any] = Future()
        answer.bind(system.router._cell, root, root.deadline)
        asked = Envelope(msgspec.convert(message, kind), answer, ROUTER, answer, system.now())
        try:
            system.router.tell(Forward(asked, to))
            return msgspec.to_builtins(await answer, str_keys=True)
        finally:
            root.cancel(Cancelled("the job is over"))

    # An agent hears of a cancel by being cancelled: there is nothing to wait for before.
    return Tool(request, name=f"{REQUEST}{name}", lane="loop", job=True, soft_grace=0.0)
