"""The mailbox: bounded, closable, and without a lock where messages come and go. Floor 3.

Rule 1: a message is either taken or refused, never lost between. ``put`` appends and *then* looks whether the
        mailbox is still open; if it is not, either ``close`` found the message or ``put`` takes it back.
Rule 2: an idle mailbox is woken. ``take`` says that it is idle and *then* looks for mail once more; ``put`` appends
        and then looks whether it is idle. One of the two sees the other.
Rule 3: nothing waits in here. ``put`` refuses or displaces; a sender that may wait is *parked* in order
        behind the full queue and admitted when there is room.
Rule 4: the mailbox does not know its actor. It calls ``wake()`` when the first message arrives in an idle
        mailbox, and hands refused or displaced envelopes back to whoever put them.

Both of the first rules need nothing but that a deque appends and pops atomically. A lock would cost a third of a
message; it is held only where more than one thing changes: parking, displacing, closing. Threads that put at the
same instant may each overshoot the bound by one.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import msgspec

from grami_actors.errors import AgentUnavailable, MailboxFull
from grami_actors.messages import Envelope

Overflow = Literal["reject", "wait", "drop_oldest", "drop_newest"]
"""What a full mailbox does with one message more.

``reject`` raises :class:`MailboxFull` at the sender; ``wait`` does the same for a tell, and lets asks and
``send`` wait for room; ``drop_oldest`` and ``drop_newest`` make a dead letter of the first or last message.
"""

CAPACITY = 1_000

Parked = tuple[Envelope, Callable[[], None] | None]
"""A message whose sender waits for room, and how to tell the sender that there is some."""


class Statistics(msgspec.Struct, frozen=True):
    """What a mailbox holds now, and what it has seen."""

    depth: int
    parked: int
    peak: int
    capacity: int


class Closed(AgentUnavailable):
    """The mailbox takes no more: its actor is stopping or stopped."""


class Mailbox:
    """A first-in-first-out queue of envelopes with a bound, and a second queue that goes first.

    Args:
        wake: called without the lock held, from the thread of the sender, when an idle mailbox gets mail.
        capacity: how many envelopes may queue; at least 1.
        overflow: what happens to one more.
        eager: wake for every message, not only the first: several threads take from this mailbox.
    """

    __slots__ = (
        "_closed",
        "_eager",
        "_lock",
        "_open",
        "_peak",
        "_queue",
        "_scheduled",
        "_wake",
        "capacity",
        "first",
        "overflow",
        "parked",
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
        # Most mailboxes never need these two, and an empty deque takes more room than the rest of an idle actor.
        self.first: deque[Envelope] | None = None
        self.parked: deque[Parked] | None = None
        self._open = True
        self._closed = False
        self._scheduled = False
        self._peak = 0

    def put(self, envelope: Envelope) -> Envelope | None:
        """Add an envelope, from any thread.

        Returns:
            the envelope that was displaced by a dropping policy (it may be the one just put), else ``None``.

        Raises:
            Closed: the mailbox is closed.
            MailboxFull: the bound is reached and the policy is to refuse.
        """
        queue = self._queue
        full = len(queue) >= self.capacity or self.parked  # nobody overtakes who is parked
        if full and self._refuses():
            return envelope
        queue.append(envelope)
        if not self._open:
            self._take_back(envelope)
        displaced = self._drop_oldest() if full else None
        if self._eager or not self._scheduled:
            self._scheduled = True
            self._wake()
        return displaced

    def _refuses(self) -> bool:
        """The mailbox is full: whether the newest message is dropped; raises if it is to be refused."""
        if not self._open:
            raise Closed("the actor is stopped and takes no more messages")
        if self.overflow in {"drop_newest", "drop_oldest"}:
            return self.overflow == "drop_newest"
        raise MailboxFull(f"the mailbox holds {self.capacity} messages, its bound")

    def _drop_oldest(self) -> Envelope | None:
        # After the new one is in, and not before: were the mailbox closed in between, the oldest would be nowhere.
        displaced = None
        with contextlib.suppress(IndexError):  # it was emptied meanwhile
            if len(self._queue) > self.capacity:
                displaced = self._queue.popleft()
        if self.parked:
            self._admit()
        return displaced

    def _take_back(self, envelope: Envelope) -> None:
        try:
            self._queue.remove(envelope)
        except ValueError:  # whoever closed the mailbox has it, and has said so
            return
        raise Closed("the actor is stopped and takes no more messages")

    @property
    def full(self) -> bool:
        """Whether one message more would be refused, displace another, or have to wait."""
        return len(self._queue) >= self.capacity or bool(self.parked)

    def park(self, envelope: Envelope, admitted: Callable[[], None] | None = None) -> None:
        """Add an envelope of a sender that may wait for room.

        Args:
            envelope: the message.
            admitted: called when there is room: at once, else from the thread that makes the room.

        Raises:
            Closed: the mailbox is closed.
        """
        waits = False
        if self.full:
            with self._lock:
                waits = self.full and self._open
                if waits:
                    if self.parked is None:
                        self.parked = deque()
                    self.parked.append((envelope, admitted))
        if not waits:
            self.put_any(envelope)
            if admitted is not None:
                admitted()
        elif len(self._queue) < self.capacity:  # room was made before the envelope was parked, and nobody saw it
            self._admit()

    def put_any(self, envelope: Envelope) -> None:
        """Add an envelope whatever the bound; for messages whose number is bounded elsewhere. Raises Closed."""
        self._queue.append(envelope)
        if not self._open:
            self._take_back(envelope)
        self._rouse()

    def put_first(self, envelope: Envelope) -> None:
        """Add an envelope that is taken before all others, whatever the bound, also when sealed. Raises Closed."""
        with self._lock:
            if self._closed:
                raise Closed("the actor is stopped and takes no more messages")
            if self.first is None:
                self.first = deque()
            self.first.append(envelope)
        self._rouse()

    def _rouse(self) -> None:
        if self._eager or not self._scheduled:
            self._scheduled = True
            self._wake()

    def take(self) -> Envelope | None:
        """Take the next envelope; ``None`` marks the mailbox idle, so the next ``put`` wakes it."""
        while True:
            if self.first:
                with self._lock:
                    if self.first:
                        return self.first.popleft()
            try:
                envelope = self._queue.popleft()
            except IndexError:
                if self.parked and self.capacity:  # while the last one was taken
                    self._admit()
                elif self.rest():
                    return None
                continue
            if self.parked:
                self._admit()
            return envelope

    def rest(self) -> bool:
        """Mark the mailbox idle, so that the next ``put`` wakes it; ``False`` if there is mail after all."""
        self._scheduled = False
        if self._queue or self.first:
            self._scheduled = True
            return False
        return True

    def _admit(self) -> None:
        """Let the first parked sender in, if there is one and there is room."""
        with self._lock:
            if not self.parked or len(self._queue) >= self.capacity:
                return
            admitted, notify = self.parked[0]
            # In the queue before it leaves the parked: whoever looks in between, without the lock, may not overtake it.
            self._queue.append(admitted)
            self.parked.popleft()
        self._rouse()
        if notify is not None:
            notify()

    def withdraw(self, envelope: Envelope) -> bool:
        """Take an envelope back that still waits, parked or queued; ``False`` if it was taken or never put."""
        with self._lock:
            for place, (parked, _) in enumerate(self.parked or ()):
                if parked is envelope:
                    del self.parked[place]  # type: ignore[union-attr]
                    return True
            try:
                self._queue.remove(envelope)
            except ValueError:
                return False
        self._admit()
        return True

    def forget(self, kind: type, name: str) -> None:
        """Drop the messages of a kind and with this name that go before the others."""
        with self._lock:
            if self.first:
                self.first = deque(
                    each
                    for each in self.first
                    if type(each.message) is not kind or getattr(each.message, "name", "") != name
                )

    def nudge(self) -> None:
        """Wake the lane if there is mail: the actor can take messages again after a pause."""
        if not self.rest():
            self._wake()

    def measure(self) -> deque[Envelope]:
        """Keep the highest depth; returns the queue, for a lane that is the only one to take from it.

        While nothing is ``first`` or ``parked`` its ``popleft`` is as good as :meth:`take`.
        """
        depth = len(self._queue)
        self._peak = max(self._peak, depth)
        return self._queue

    def seal(self, last: Envelope) -> None:
        """Refuse everything from now on, keep what is queued, and queue ``last`` behind it. Raises Closed."""
        with self._lock:
            if not self._open:
                raise Closed("the actor is stopped and takes no more messages")
            self._open = False
            # Parked senders were accepted: their messages belong to the backlog.
            parked, self.parked = self.parked, None
            self._queue.extend(envelope for envelope, _ in parked or ())
            self._queue.append(last)
        self._rouse()
        _notify(parked)

    def close(self) -> list[Envelope]:
        """Refuse everything from now on and hand over what was still queued. Closing twice gives nothing."""
        with self._lock:
            self._open = False
            self._closed = True
            first, self.first = self.first, None
            parked, self.parked = self.parked, None
        left = [*(first or ()), *_drained(self._queue), *(envelope for envelope, _ in parked or ())]
        _notify(parked)
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
        depth = len(self._queue) + len(self.first or ())
        return Statistics(
            depth=depth, parked=len(self.parked or ()), peak=max(self._peak, depth), capacity=self.capacity
        )


def _notify(parked: Iterable[Parked] | None) -> None:
    """The senders need wait no longer."""
    for _, notify in parked or ():
        if notify is not None:
            notify()


def _drained(queue: deque[Envelope]) -> Iterator[Envelope]:
    """Everything, one by one: others may be taking too."""
    while True:
        try:
            yield queue.popleft()
        except IndexError:
            return
