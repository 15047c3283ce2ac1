"""The control messages about jobs (docs/protocol.md, section 4): what the actor of the jobs says to them. Floor 12."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, ClassVar, Protocol

from msgspec.structs import replace

from grami_actors.errors import AgentUnavailable, DestinationNotFound, ErrorCode, PermissionDenied, ProtocolError
from grami_actors.frames import JobAttach, JobCancel, JobDetach, JobGet, JobInput, JobRead, JobRetry
from grami_actors.gateway.attachments import Watch
from grami_actors.gateway.connection import Connection
from grami_actors.gateway.request import Request
from grami_actors.guard import Guard
from grami_actors.job import Job
from grami_actors.job_requests import (
    JOBS,
    REQUEST,
    AnswerJob,
    CancelJob,
    GetJob,
    ListJobs,
    Piece,
    RetryJob,
    SubmitJob,
    SubmitRequest,
)
from grami_actors.job_views import JobView, Output, output, reading, view
from grami_actors.principals import ANONYMOUS, Principal
from grami_actors.protocol import BACKGROUND, Control, Setting
from grami_actors.system import ActorSystem


class Owner(Protocol):
    """What is needed of the gateway."""

    system: ActorSystem
    setting: Setting
    watch: Watch


class _Asked:
    """One control message: whose it is, and what it says."""

    __slots__ = ("connection", "control", "fields", "owner", "principal")

    def __init__(self, connection: Connection, control: Control, watch: Watch) -> None:
        self.connection = connection
        self.control = control
        self.fields = control.fields
        self.principal: Principal = connection.protocol.principal or ANONYMOUS
        self.owner = watch.owner(self.principal)


class Jobs:
    """Answers control messages about jobs for all connections of a gateway.

    Args:
        gateway: the gateway.
    """

    def __init__(self, gateway: Owner) -> None:
        self._gateway = gateway
        self._permissions = gateway.setting.policy.permissions
        self._guard = Guard(self._permissions)

    def answer(self, connection: Connection, control: Control, request: Request) -> Coroutine[Any, Any, Any] | None:
        """Answer by what the coroutine returns, or through the request.

        Raises:
            GramiError: what is wrong with it.
        """
        if JOBS not in self._gateway.system.table.cells:
            raise ProtocolError(
                "this server keeps no jobs; it does when it is started with a state directory (`state_dir`)",
                code=ErrorCode.UNSUPPORTED_FEATURE,
                param="$.background" if control.kind == BACKGROUND else None,
            )
        asked = _Asked(connection, control, self._gateway.watch)
        if control.kind == "job.attach":
            wanted: JobAttach = control.fields
            connection.attachments.attach(wanted.job_id, wanted.after_seq, partial(self._look, asked), request)
            return None
        if control.kind == BACKGROUND:
            self._check(control.fields, request)
        return self._ANSWERS[control.kind](self, asked)

    def _check(self, wanted: SubmitRequest, request: Request) -> None:
        """The rules of the router, for a request that it will not see. Raises PermissionDenied, DestinationNotFound."""
        table, to = self._gateway.system.table, wanted.to
        self._guard.check_request(request, wanted.message, to, table.name_of(to, wanted.message))
        if to and to not in table.public:
            raise DestinationNotFound(f"no agent or tool is named {to!r}")
        with contextlib.suppress(AgentUnavailable):  # it may be there when the job's turn comes
            table.find(to, wanted.message)

    async def _ask(self, asked: _Asked, request: Any) -> Any:
        return await self._gateway.system.ask(JOBS, request, timeout=asked.control.timeout)

    async def _viewed(self, asked: _Asked, request: Any) -> JobView:
        return view(await self._ask(asked, request))

    async def _submit(self, asked: _Asked) -> JobView:
        wanted: SubmitJob | SubmitRequest = asked.fields
        whose = asked.principal
        return await self._viewed(asked, replace(wanted, owner=whose.name, scopes=tuple(sorted(whose.scopes))))

    async def _get(self, asked: _Asked) -> JobView:
        wanted: JobGet = asked.fields
        return await self._viewed(asked, GetJob(wanted.job_id, asked.owner))

    async def _look(self, asked: _Asked) -> JobView:
        wanted: JobAttach = asked.fields
        found = await self._viewed(asked, GetJob(wanted.job_id, asked.owner))
        if wanted.after_seq > found.seq:
            raise ProtocolError(
                f"the last event of this job has the seq {found.seq}: {wanted.after_seq} is still to come",
                code=ErrorCode.UNRECOVERABLE_POSITION,
                param="$.after_seq",
            )
        return found

    async def _list(self, asked: _Asked) -> dict[str, list[JobView]]:
        wanted: ListJobs = asked.fields
        found = await self._ask(asked, replace(wanted, owner=asked.owner))
        return {"jobs": [view(job, whole=False) for job in found]}

    async def _cancel(self, asked: _Asked) -> JobView:
        wanted: JobCancel = asked.fields
        return await self._viewed(asked, CancelJob(wanted.job_id, asked.owner, wanted.force))

    async def _input(self, asked: _Asked) -> JobView:
        wanted: JobInput = asked.fields
        return await self._viewed(asked, AnswerJob(wanted.job_id, wanted.answer, asked.owner, asked.principal.name))

    async def _retry(self, asked: _Asked) -> JobView:
        """It is new work: what its owner was allowed to do then counts for nothing now."""
        wanted: JobRetry = asked.fields
        job: Job = await self._ask(asked, GetJob(wanted.job_id, asked.owner))
        whose = asked.principal
        if not self._may_run(whose, job.tool):
            raise PermissionDenied(f"{whose.name!r} may not run {job.tool!r}")
        scopes = tuple(sorted(whose.scopes)) if whose.name == job.owner else None
        return await self._viewed(asked, RetryJob(wanted.job_id, asked.owner, scopes))

    def _may_run(self, principal: Principal, tool: str) -> bool:
        if tool.startswith(REQUEST):
            return self._permissions.may_send_type(principal, tool.removeprefix(REQUEST))
        return self._permissions.may_send(principal, "tool_call", f"tool:{tool}")

    async def _read(self, asked: _Asked) -> Output:
        wanted: JobRead = asked.fields
        piece: Piece = await self._ask(asked, replace(reading(wanted), owner=asked.owner))
        return output(piece, text=asked.connection.guest.encoding.text, artifact=bool(wanted.artifact))

    def _detach(self, asked: _Asked) -> Coroutine[Any, Any, dict[str, Any]]:
        wanted: JobDetach = asked.fields
        # Now, and not in a task: an attach that comes behind it is another one.
        told = {"job_id": wanted.job_id, "detached": asked.connection.attachments.detach(wanted.job_id)}

        async def answered() -> dict[str, Any]:
            return told

        return answered()

    _ANSWERS: ClassVar[dict[str, Callable[[Jobs, _Asked], Coroutine[Any, Any, Any]]]] = {
        "job.submit": _submit,
        BACKGROUND: _submit,
        "job.get": _get,
        "job.list": _list,
        "job.cancel": _cancel,
        "job.input": _input,
        "job.retry": _retry,
        "job.read": _read,
        "job.detach": _detach,
    }
