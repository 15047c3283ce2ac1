"""The mailbox: bounded, closable, one lock. Floor 3.

Rule 1: ``put`` and ``close`` share one lock, so a message is either taken or refused, never lost between.
Rule 2: nothing waits in here. ``put`` refuses or displaces; a sender that may wait is *parked* in order
        behind the full queue and admitted when there is room.
Rule 3: the mailbox does not know its actor. It calls ``wake()`` when the first message arrives in an idle
        mailbox, and hands refused or displaced envelopes back to whoever put them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Literal, TypeVar

import msgspec

from grami_actors.errors import AgentUnavailable, MailboxFull
from grami_actors.messages import Envelope

T = TypeVar("T")
Overflow = Literal["reject", "wait", "drop_oldest", "drop_newest"]
"""What a full mailbox does with one message more.

``reject`` raises :class:`MailboxFull` at the sender; ``wait`` does the same for a tell, and lets asks and
``send`` wait for room; ``drop_oldest`` and ``drop_newest`` make a dead letter of the first or last message.
"""

CAPACITY = 1_000


class Statistics(msgspec.Struct, frozen=True):
    """What a mailbox holds now, and what it has seen."""

    depth: int
    parked: int
    peak: int
    capacity: int


class Closed(AgentUnavailable):
    """The mailbox takes no more: its actor is stopping or stopped."""


class Mailbox:
    """A first-in-first-out queue of envelopes with a bound.

    Args:
        wake: called without the lock held, from the thread of the sender, when an idle mailbox gets mail.
        capacity: how many envelopes may queue; at least 1.
        overflow: what happens to one more.
        eager: wake for every message, not only the first: several threads take from this mailbox.
    """

    __slots__ = (
        "_eager",
        "_lock",
        "_open",
        "_parked",
        "_peak",
        "_queue",
        "_scheduled",
        "_wake",
        "capacity",
        "overflow",
    )

    def __init__(
        self,
        wake: Callable[[], None],
        capacity: int = CAPACITY,
        overflow: Overflow = "reject",
        *,
        eager: bool = False,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"the capacity of a mailbox is at least 1, not {capacity}")
        self.capacity = capacity
        self.overflow = overflow
        self._wake = wake
        self._eager = eager
        self._lock = threading.Lock()
        self._queue: deque[Envelope] = deque()
        self._parked: deque[tuple[Envelope, Callable[[], None]]] = deque()
        self._open = True
        self._scheduled = False
        self._peak = 0

    def put(
        self, envelope: Envelope, *, park: Callable[[], None] | None = None, force: bool = False
    ) -> Envelope | None:
        """Add an envelope, from any thread.

        Args:
            envelope: the message.
            park: the sender may wait: when the mailbox is full the envelope waits in order. ``park`` is called
                when it is admitted: at once if there is room, else from the actor's thread.
            force: ignore the bound; for messages whose number is bounded elsewhere.

        Returns:
            the envelope that was displaced by a dropping policy (it may be the one just put), else ``None``.

        Raises:
            Closed: the mailbox is closed.
            MailboxFull: the bound is reached and the policy is to refuse.
        """
        displaced = None
        with self._lock:
            if not self._open:
                raise Closed("the actor is stopped and takes no more messages")
            queue = self._queue
            if len(queue) >= self.capacity and not force:
                if park is not None:
                    self._parked.append((envelope, park))
                    return None
                if self.overflow == "drop_newest":
                    return envelope
                if self.overflow != "drop_oldest":
                    raise MailboxFull(f"the mailbox holds {self.capacity} messages, its bound")
                displaced = queue.popleft()
            queue.append(envelope)
            self._peak = max(self._peak, len(queue))
            wake = self._eager or not self._scheduled
            self._scheduled = True
        if park is not None:
            park()
        if wake:
            self._wake()
        return displaced

    def take(self) -> Envelope | None:
        """Take the next envelope; ``None`` marks the mailbox idle, so the next ``put`` wakes it."""
        with self._lock:
            if not self._queue:
                self._scheduled = False
                return None
            envelope = self._queue.popleft()
            if not self._parked:
                return envelope
            admitted, notify = self._parked.popleft()
            self._queue.append(admitted)
        notify()
        if self._eager:
            self._wake()
        return envelope

    def withdraw(self, envelope: Envelope) -> bool:
        """Take an envelope back that still waits, parked or queued; ``False`` if it was taken or never put."""
        notify = None
        with self._lock:
            if _remove(self._parked, lambda entry: entry[0] is envelope):
                return True
            if not _remove(self._queue, lambda queued: queued is envelope):
                return False
            if self._parked:
                admitted, notify = self._parked.popleft()
                self._queue.append(admitted)
        if notify is not None:
            notify()
        return True

    def nudge(self) -> None:
        """Wake the lane if there is mail: the actor can take messages again after a pause."""
        with self._lock:
            if not self._queue:
                self._scheduled = False
                return
            self._scheduled = True
        self._wake()

    def close(self) -> list[Envelope]:
        """Refuse everything from now on and hand over what was still queued. Closing twice gives nothing."""
        with self._lock:
            self._open = False
            left = list(self._queue)
            left.extend(envelope for envelope, _ in self._parked)
            parked = [notify for _, notify in self._parked]
            self._queue.clear()
            self._parked.clear()
        for notify in parked:
            notify()
        return left

    @property
    def closed(self) -> bool:
        """Whether the mailbox refuses everything."""
        return not self._open

    def __len__(self) -> int:
        return len(self._queue)

    def empty(self) -> bool:
        """Whether nothing is queued (the name that Pykka's inbox protocol uses)."""
        return not self._queue

    def statistics(self) -> Statistics:
        """A snapshot: depth now, envelopes parked, highest depth so far, bound."""
        return Statistics(depth=len(self._queue), parked=len(self._parked), peak=self._peak, capacity=self.capacity)


def _remove(queue: deque[T], wanted: Callable[[T], bool]) -> bool:
    """Remove the first entry that is wanted, comparing nothing else."""
    for place, entry in enumerate(queue):
        if wanted(entry):
            del queue[place]
            return True
    return False
