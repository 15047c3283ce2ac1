"""Jobs, from the side of a client: submit them, follow them over lost connections, read what they print. Floor 5.

::

    job = await grami.jobs.submit("render", {"frames": 10})
    async for event in job.events():
        print(event.kind, event.data)
    print(await job.result())
"""

from __future__ import annotations

import asyncio
import base64
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Any, Protocol

import msgspec

from grami_actors.conversation import Following, Frame
from grami_actors.errors import GramiError
from grami_actors.job import JobEvent, Order
from grami_actors.job_requests import Piece
from grami_actors.job_views import JobView, Output, ends, rfc3339

AHEAD = 1_000
"""Events that may wait for whoever reads them; later ones are asked for again."""

POLL = 20.0
"""Seconds that one request waits for more of an output."""


class Wire(Protocol):
    """What is needed of a client."""

    async def request(self, message: str, /, *, timeout: float | None = None, **fields: Any) -> Any:
        """Send a request and wait for the data of its answer. Raises GramiError."""

    async def ask_again(self, message: str, **fields: Any) -> Any:
        """The same, sent again over the next connection if one is lost: for what may be done twice."""

    async def follow(self, following: Following) -> None:
        """Have the events of a job come. Raises GramiError."""

    async def unfollow(self, following: Following) -> None:
        """Have no more of them come."""


class RemoteJob:
    """A job on a server.

    Args:
        wire: the client.
        job_id: its id.
        view: what was last known of it.

    Attributes:
        id: its id.
        view: what was last known of it; ``None`` before anybody asked.
    """

    def __init__(self, wire: Wire, job_id: str, view: JobView | None = None) -> None:
        self._wire = wire
        self.id = job_id
        self.view = view

    async def refresh(self) -> JobView:
        """Look at it. Raises GramiError: JOB_NOT_FOUND."""
        return self._saw(await self._wire.ask_again("job.get", job_id=self.id))

    async def events(self, after: int = 0) -> AsyncGenerator[JobEvent, None]:
        """What happened to it after an event, and what happens until its end: each event once, in order, without a gap.

        It goes on over lost connections.

        Args:
            after: the ``seq`` of the last event that is known.

        Raises:
            GramiError: JOB_NOT_FOUND; ConnectionLost: there will be no other connection.
        """
        reader = _Reader(self._wire, self.id, after)
        try:
            await self._wire.follow(reader)
            while (event := await reader.next()) is not None:
                yield event
                if ends(event.kind, event.data):
                    return
        finally:
            await self._wire.unfollow(reader)

    async def result(self) -> Any:
        """Wait for its end; what its tool returned.

        Raises:
            ToolExecutionFailed, ToolTimeout, Cancelled, JobError: what became of it instead.
            GramiError: as :meth:`events` does.
        """
        view = await self.refresh()
        if not view.terminal:
            async with aclosing(self.events(view.seq)) as events:
                async for _ in events:
                    pass
            view = await self.refresh()
        return view.outcome()

    async def cancel(self, *, force: bool = False) -> JobView:
        """Have it end, and all jobs that it caused; with ``force`` at once. Raises GramiError: JOB_NOT_CANCELABLE."""
        return self._saw(await self._wire.request("job.cancel", job_id=self.id, force=force))

    async def answer(self, answer: Any) -> JobView:
        """Answer its question. Raises GramiError: JOB_NOT_AWAITING_INPUT."""
        return self._saw(await self._wire.request("job.input", job_id=self.id, answer=answer))

    async def retry(self) -> RemoteJob:
        """Submit again what it did; a new job. Raises GramiError."""
        return remote(self._wire, await self._wire.request("job.retry", job_id=self.id))

    async def output(
        self, *, follow: bool = False, offset: int = 0, artifact: str = "", attempt: int = 0
    ) -> AsyncGenerator[bytes, None]:
        """What it printed, or a file that it made: the bytes of :meth:`pieces`, which has more to tell."""
        pieces = self.pieces(follow=follow, offset=offset, artifact=artifact, attempt=attempt)
        async with aclosing(pieces):
            async for piece in pieces:
                if piece.data:
                    yield piece.data

    async def pieces(
        self, *, follow: bool = False, offset: int = 0, artifact: str = "", attempt: int = 0
    ) -> AsyncGenerator[Piece, None]:
        """What it printed, or a file that it made, piece by piece. It goes on over lost connections.

        Over JSON a log is text, in which what is no UTF-8 was replaced; over MessagePack it is the very bytes.

        Args:
            follow: wait for what is still to come, up to the end of the attempt.
            offset: where to begin, in bytes of the whole.
            artifact: the name of a file; the log, if empty.
            attempt: whose log; the last, if 0.

        Raises:
            GramiError: what the server answered.
        """
        fields: dict[str, Any] = {"job_id": self.id, "artifact": artifact, "attempt": attempt}
        wait_ms = round(POLL * 1000) if follow else 0
        while True:
            told = await self._wire.ask_again("job.read", **fields, offset=offset, wait_ms=wait_ms)
            piece = msgspec.convert(told, Output)
            fields["attempt"] = piece.attempt  # another one that begins meanwhile has a log of its own
            data = _bytes(piece)
            if data or piece.dropped:
                yield Piece(data, piece.offset, piece.dropped, piece.size, piece.end, piece.attempt)
            if piece.end or not (follow or piece.next_offset < piece.size):
                return
            offset = piece.next_offset

    def _saw(self, data: Any) -> JobView:
        self.view = view = msgspec.convert(data, JobView)
        return view


class _Reader(Following):
    """The events of a job for one who reads them."""

    def __init__(self, wire: Wire, job_id: str, after: int) -> None:
        super().__init__(job_id, after)
        self._wire = wire
        self._waiting: deque[Frame] = deque()
        self._over = False
        self._error: GramiError | None = None
        self._changed = asyncio.Event()

    def look(self, view: Any) -> None:
        """The job may be at its end."""
        seen = msgspec.convert(view, JobView)
        self._over = seen.terminal and (seen.seq <= self.seq or seen.expired)
        self._changed.set()

    def offer(self, frame: Frame) -> bool:
        """Keep it, if there is room."""
        if len(self._waiting) >= AHEAD:
            return False
        self._waiting.append(frame)
        self._changed.set()
        return True

    def miss(self) -> None:
        """It is asked for again when those that wait are read."""
        super().miss()
        self._changed.set()

    def fail(self, error: GramiError) -> None:
        """Tell it behind what came before."""
        self._error = self._error or error
        self._changed.set()

    async def next(self) -> JobEvent | None:
        """The next event; ``None`` if there is none any more. Raises GramiError."""
        while not self._waiting:
            if self._error is not None:
                raise self._error
            if self._over:
                return None
            self._changed.clear()
            if self.behind:
                await self._wire.follow(self)
            else:
                await self._changed.wait()
        return _event(self._waiting.popleft())


class JobsClient:
    """The jobs of a server: ``client.jobs``.

    Args:
        wire: the client.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    async def submit(
        self, tool: str, arguments: dict[str, Any] | None = None, *, order: Order | None = None
    ) -> RemoteJob:
        """Have a tool run as a job; it is written down when this returns.

        With ``order.idempotency_key`` it may be called again when the connection was lost: it is the same job.

        Raises:
            GramiError: PERMISSION_DENIED, DESTINATION_NOT_FOUND, VALIDATION_FAILED, JOB_REJECTED or
                IDEMPOTENCY_KEY_REUSED; ConnectionLost: nobody knows whether it was accepted.
        """
        told = await self._wire.request(
            "job.submit", tool=tool, arguments=arguments or {}, **_ordered(order or Order())
        )
        return remote(self._wire, told)

    def job(self, job_id: str) -> RemoteJob:
        """The job with this id, without a look at it."""
        return RemoteJob(self._wire, job_id)

    async def get(self, job_id: str) -> RemoteJob:
        """The job with this id. Raises GramiError: JOB_NOT_FOUND."""
        job = self.job(job_id)
        await job.refresh()
        return job

    async def list(
        self, *, states: Iterable[str] = (), tool: str = "", before: str = "", limit: int = 50
    ) -> Sequence[RemoteJob]:
        """The latest jobs first, their views without arguments and results.

        Args:
            states: only jobs in one of these.
            tool: only jobs of this tool.
            before: only jobs that were submitted before the one with this id.
            limit: as many at most, up to 200.
        """
        told = await self._wire.ask_again(
            "job.list", states=[str(each) for each in states], tool=tool, before=before, limit=limit
        )
        return [remote(self._wire, each) for each in told["jobs"]]


def remote(wire: Wire, told: Any) -> RemoteJob:
    """The job that an answer of the server is a view of."""
    view = msgspec.convert(told, JobView)
    return RemoteJob(wire, view.job_id, view)


def _ordered(order: Order) -> dict[str, Any]:
    """An order in words of the wire."""
    fields = {name: value for name, value in msgspec.structs.asdict(order).items() if value is not None}
    if order.not_before is not None:
        fields["not_before"] = rfc3339(order.not_before)
    if (seconds := fields.pop("deadline", None)) is not None:
        fields["deadline_ms"] = max(1, round(seconds * 1000))
    return fields


def _event(frame: Frame) -> JobEvent:
    kind: Any = frame.kind  # a later server may know more of them
    at = datetime.fromisoformat(frame.at or "").timestamp()
    return JobEvent(frame.job_id or "", frame.seq, at, kind, frame.attempt or 0, frame.data)


def _bytes(piece: Output) -> bytes:
    if piece.data is not msgspec.UNSET:
        return piece.data
    if piece.base64 is not msgspec.UNSET:
        return base64.b64decode(piece.base64)
    return b"" if piece.text is msgspec.UNSET else piece.text.encode()
