"""What clients hear of jobs: an attachment is a cursor in the events of one job. Floor 12.

Nothing is kept for a client that does not read. A page of events is asked for when there is room in its outbox, and the
next one when the last is written and the job has moved on; so a job with any number of events takes the memory of one
page, and a slow client costs its own time only.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Protocol

import msgspec

from grami_actors.cell import Cell
from grami_actors.encoding import Encoding
from grami_actors.errors import AgentUnavailable, ErrorCode, GramiError, JobError
from grami_actors.frames import JobDetached
from grami_actors.gateway.request import Request, answered
from grami_actors.job import JobEvent
from grami_actors.job_requests import JOBS, ReadEvents
from grami_actors.job_views import JobView, ends, event_frame
from grami_actors.messages import Envelope
from grami_actors.permissions import Permissions
from grami_actors.principals import ANONYMOUS, Principal
from grami_actors.protocol import ServerProtocol
from grami_actors.system import ActorSystem
from grami_actors.telemetry import JobChanged

PAGE = 100
"""Events that are asked for at once."""

AGAIN = 1.0
"""Seconds until events are asked for again that the actor could not give."""


class Attachment:
    """One client's place in the events of one job.

    Args:
        job: which.
        seq: the last event that the client has.
        cell: the connection's.

    Attributes:
        stale: whether there may be events that were not asked for.
        known: the last event that there is known to be.
        wanted: the same, when a page was asked for that did not come yet; else 0.
        page: events that wait for room.
    """

    __slots__ = ("_cell", "_told", "job", "known", "page", "seq", "stale", "wanted")

    def __init__(self, job: str, seq: int, cell: Cell) -> None:
        self.job = job
        self.seq = seq
        self.stale = True
        self.known = 0
        self.wanted = 0
        self.page: deque[JobEvent] = deque()
        self._cell = cell
        self._told = False

    def wake(self, seq: int = 0) -> None:
        """The job has moved; from any thread. However often before its connection looks: that is told once."""
        self.known = max(self.known, seq)
        self.stale = True
        if not self._told:
            self._told = True
            with contextlib.suppress(AgentUnavailable):  # the client is gone
                self._cell.post_always(Envelope(Moved(self)))

    def awake(self) -> None:
        """What comes from now on is told anew."""
        self._told = False


class Moved(msgspec.Struct, frozen=True):
    """There may be more events."""

    attachment: Attachment


class Page(msgspec.Struct, frozen=True):
    """Events that were asked for, or why there are none."""

    attachment: Attachment
    events: list[JobEvent]
    error: GramiError | None = None


class Watch:
    """Knows which attachments there are, and wakes them when their jobs move; one for a gateway.

    Args:
        system: where the actor of the jobs is.
        permissions: say who sees everybody's jobs.
    """

    def __init__(self, system: ActorSystem, permissions: Permissions) -> None:
        self._system = system
        self._permissions = permissions
        self._lock = threading.Lock()
        self._hearers: dict[str, tuple[Attachment, ...]] = {}
        self._unsubscribe: Callable[[], None] | None = None

    def owner(self, principal: Principal | None) -> str | None:
        """Whose jobs somebody may see; ``None`` for everybody's."""
        principal = principal or ANONYMOUS
        return None if self._permissions.may_administer(principal) else principal.name

    async def read(self, job: str, after: int, principal: Principal | None) -> list[JobEvent]:
        """The next events of a job. Raises GramiError."""
        asked = ReadEvents(job, after, PAGE, self.owner(principal))
        found: list[JobEvent] = await self._system.ask(JOBS, asked)
        return found

    def add(self, attachment: Attachment) -> None:
        """Wake it from now on."""
        with self._lock:
            self._hearers[attachment.job] = (*self._hearers.get(attachment.job, ()), attachment)
            if self._unsubscribe is None:
                self._unsubscribe = self._system.bus.subscribe(self._changed, JobChanged)

    def remove(self, attachment: Attachment) -> None:
        """Wake it no longer."""
        with self._lock:
            left = tuple(each for each in self._hearers.pop(attachment.job, ()) if each is not attachment)
            if left:
                self._hearers[attachment.job] = left
            if not self._hearers and self._unsubscribe is not None:
                self._unsubscribe()
                self._unsubscribe = None

    def _changed(self, event: JobChanged) -> None:
        # In the thread of whoever wrote it down.
        for attachment in self._hearers.get(event.job, ()):
            attachment.wake(event.seq)


class Reader(Protocol):
    """What is needed of a connection."""

    protocol: ServerProtocol

    def ready(self) -> bool:
        """Whether there is room for more; if there is not, it says so when there is."""

    def hand_over(self) -> None:
        """Hand to the writer what the protocol has to send."""

    def start_task(self, work: Coroutine[Any, Any, None]) -> None:
        """Have something done that ends with the connection."""


class Attachments:
    """The attachments of one connection. On the home loop.

    Args:
        cell: the connection's.
        reader: the connection.
        watch: wakes them.
        encoding: of its frames.
    """

    __slots__ = ("_begun", "_cell", "_encoding", "_open", "_reader", "_watch")

    def __init__(self, cell: Cell, reader: Reader, watch: Watch, encoding: Encoding) -> None:
        self._cell = cell
        self._reader = reader
        self._watch = watch
        self._encoding = encoding
        self._open: dict[str, Attachment] = {}
        self._begun: set[Attachment] = set()  # those that are not answered yet

    def attach(self, job: str, after: int, look: Callable[[], Awaitable[JobView]], request: Request) -> None:
        """Answer with a look at the job, and then with its events after one; in place of those of before, if so.

        A view that says so has nothing to follow it: the job is at its end, and the client has its last event.
        """
        self._reader.protocol.attachments.add(job)  # it counts from now on

        async def attaching() -> JobView:
            try:
                view = await look()
            except BaseException:
                self._begun.discard(attachment)
                if job not in self._open:
                    self._reader.protocol.attachments.discard(job)
                raise
            if attachment not in self._begun:
                return view  # the client detached meanwhile
            self._begun.remove(attachment)
            self._end(job)
            if not (view.terminal and (after >= view.seq or view.expired)):
                attachment.known = view.seq
                self._open[job] = attachment
                self._reader.protocol.attachments.add(job)
                self._watch.add(attachment)
            # Nothing is waited for until the answer is in the mailbox: all events come behind it.
            return view

        async def answering() -> None:
            await answered(attaching(), request)
            attachment.wake()

        attachment = Attachment(job, after, self._cell)
        self._begun.add(attachment)
        self._reader.start_task(answering())

    def detach(self, job: str) -> bool:
        """Tell no more of a job, also if it was just begun; whether it was told, or would have been."""
        begun = {each for each in self._begun if each.job == job}
        self._begun -= begun
        return self._end(job) or bool(begun)

    def _end(self, job: str) -> bool:
        self._reader.protocol.attachments.discard(job)
        attachment = self._open.pop(job, None)
        if attachment is None:
            return False
        self._watch.remove(attachment)
        return True

    def close(self) -> None:
        """The client is gone."""
        for job in tuple(self._open):
            self._end(job)

    def on_moved(self, moved: Moved) -> None:
        """Go on with one."""
        moved.attachment.awake()
        self._pump(moved.attachment)

    def on_room(self) -> None:
        """Go on with all."""
        for attachment in tuple(self._open.values()):
            self._pump(attachment)

    def on_page(self, page: Page) -> None:
        """Tell the events that came."""
        attachment = page.attachment
        wanted, attachment.wanted = attachment.wanted, 0
        if self._open.get(attachment.job) is not attachment:
            return
        error = page.error
        if error is None and not page.events and attachment.seq < wanted:
            error = JobError("the events of this job were removed", code=ErrorCode.JOB_NOT_FOUND)
        if error is None:
            attachment.page.extend(page.events)
            attachment.stale |= len(page.events) == PAGE
            self._pump(attachment)
        elif error.retryable:
            self._cell.runtime.after(AGAIN, attachment.wake)
        else:
            self._end(attachment.job)
            frame = JobDetached(attachment.job, str(error.error_code), error.message)
            self._reader.protocol.push(self._encoding.encode(frame))

    def _pump(self, attachment: Attachment) -> None:
        """Tell what there is room for, and ask for more when that is all."""
        reader = self._reader
        if self._open.get(attachment.job) is not attachment:
            return
        while attachment.page and reader.ready():
            event = attachment.page.popleft()
            attachment.seq = event.seq
            reader.protocol.push(self._encoded(event))
            reader.hand_over()
            if ends(event.kind, event.data):
                self._end(attachment.job)
                return
        if attachment.stale and not attachment.page and not attachment.wanted and reader.ready():
            attachment.stale, attachment.wanted = False, max(attachment.known, 1)
            reader.start_task(self._read(attachment))

    async def _read(self, attachment: Attachment) -> None:
        told = partial(Page, attachment)
        try:
            page = told(await self._watch.read(attachment.job, attachment.seq, self._reader.protocol.principal))
        except GramiError as error:
            page = told([], error)
        with contextlib.suppress(AgentUnavailable):  # the client is gone
            self._cell.post_always(Envelope(page))

    def _encoded(self, event: JobEvent) -> bytes:
        frame = event_frame(event)
        try:
            return self._encoding.encode(frame)
        except (ValueError, OverflowError, RecursionError):
            # MessagePack has no words for numbers above 64 bits; an event that is left out would be a gap.
            frame.data = {}
            return self._encoding.encode(frame)
