"""A run that follows a recording: the same messages, in the same order, at the same times. Floor 15.

Rules:

1. An actor takes the messages that it took, in that order, each at the time at which it took it; a handler begins, goes
   on and ends when it did. What lies between is the agent's own: what it sends, and what comes of it.
2. The first thing that is not as recorded ends the run (:class:`~grami_actors.recording.account.Difference`).
3. Of pools of equals the member is chosen that was chosen; deadlines pass when they passed: that was the clock's doing,
   and the load's.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import math
import re
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any

import msgspec

from grami_actors.cell import CONTROL, Cell
from grami_actors.future import handled
from grami_actors.history import Told
from grami_actors.messages import Envelope, type_name
from grami_actors.recording.account import (
    Account,
    Difference,
    Frames,
    as_read,
    came_of,
    content,
    is_of_timer,
    is_plumbing,
)
from grami_actors.recording.answers import INTERRUPTED
from grami_actors.recording.pace import Pace
from grami_actors.recording.request import encoded
from grami_actors.router import Forward
from grami_actors.simulation.loop import BEGIN, VirtualLoop
from grami_actors.steps import Steps, each_step
from grami_actors.telemetry import FramePassed, MessageHandled

NEVER = 1e12
"""When what was at work at the end of the recording ends."""

UNKNOWN = "?"
"""The name of a handling that had not ended, until it does something that is recorded."""

HAIR = 1e-6
"""Seconds by which a deadline comes after an answer that was in time."""

HOP = 0.05
"""Seconds at most that an answer is on its way from one thread to another."""

PATIENCE = 0.5
"""Seconds that something from outside may come later than what it ended."""

_KILLED = re.compile(r"\(CancelledError: (.*)\); the outcome is unknown$")
"""What the error of a handler that was killed says of that; others may repeat it."""


class Part:
    """One message that is known from the recording.

    Attributes:
        told: what is recorded of it; ``None`` where its handling had not ended.
        span: what names its handling in the recording.
        key: where it stands in the account.
    """

    __slots__ = ("ended", "envelope", "key", "span", "taken", "told")

    def __init__(self, envelope: Envelope, told: Told | None, span: str, key: tuple[str, str, str]) -> None:
        self.envelope = envelope
        self.told = told
        self.span = span
        self.key = key
        self.taken = False
        self.ended = False


class Follower:
    """Follows a recording through a run: knows what comes next, and sees where the run leaves it.

    Args:
        account: of the recording.
        loop: of the run.

    Attributes:
        over: has the first difference as its result, or ``None`` at the end.
        finished: how many messages were as recorded.
    """

    def __init__(self, account: Account, loop: VirtualLoop) -> None:
        self.account = account
        self.frames = Frames(account)
        self.over: asyncio.Future[Difference | None] = loop.create_future()
        self.finished = 0
        self._loop = loop
        self._parts: dict[Envelope, Part | None] = {}
        self._asked: dict[Any, Part] = {}
        self._spans: dict[str, str] = {}
        self._extra: dict[Envelope, Told] = {}
        self._ending: Part | None = None
        self._promised: set[int] = set()

    def now(self) -> float:
        """Seconds since the run began."""
        return self._loop.elapsed

    def differ(self, difference: Difference) -> None:
        """End the run; only the first counts, and nothing does that comes after the end of the recording."""
        if not self.over.done() and difference.at <= self.account.end:
            self.over.set_result(difference)

    # --- messages on their way ---

    def part(self, cell: Cell, envelope: Envelope) -> Part | None:
        """What is recorded of a message; ``None`` if nothing is."""
        if envelope not in self._parts:
            self._parts[envelope] = self._find(cell, envelope)
        return self._parts[envelope]

    def _find(self, cell: Cell, envelope: Envelope) -> Part | None:
        told = _as_told(cell, envelope, self.now())
        for cause in self._causes(envelope.cause, envelope.sender):
            key = cause, envelope.sender, cell.name
            found = self.account.same(key, told)
            if found is not None and self._spans.get(envelope.cause) == UNKNOWN and content(found) == content(told):
                self._spans[envelope.cause] = cause
                self.account.orphans[envelope.sender].remove(cause)
                break
        if found is None:
            return self._unknown(cell, envelope, told, key)
        scope = envelope.scope
        late = scope is not None and scope.deadline - BEGIN <= found.sent
        if content(found) != content(told) and (late or is_of_timer(told)):
            self._extra[envelope] = told  # it may have ended before anybody took it
            return None
        if content(found) != content(told):
            number = sum(each.key == key for each in self._asked.values()) + 1
            where = f"{told.sender or 'somebody'} sends {told.type} to {told.to}, message {number} of its handler"
            self.differ(Difference(self.now(), where, content(found), content(told)))
            return None
        part = Part(envelope, found, found.span, key)
        reply_to: Any = envelope.reply_to
        if reply_to is not None:
            self._asked[reply_to] = part
            if scope is not None:  # it was sent a little later, and ends as much later
                latest = math.inf if scope.parent is None else scope.parent.deadline
                scope.deadline = min(latest, scope.deadline + max(0.0, found.sent - self.now()))
                if (
                    0.0 <= BEGIN + found.taken - scope.deadline < PATIENCE
                ):  # a busy loop looks at its clock now and then
                    scope.deadline = BEGIN + found.taken + HAIR
        return part

    def _causes(self, span: str, sender: str) -> list[str]:
        """What may name in the recording the handling that sends: one of several, where it is known by its deeds."""
        cause = self._spans.get(span, "") if span else ""
        return [*self.account.orphans.get(sender, ()), UNKNOWN] if cause == UNKNOWN else [cause]

    def _unknown(self, cell: Cell, envelope: Envelope, told: Told, key: tuple[str, str, str]) -> Part | None:
        if self.account.orphans.get(cell.name) or (self.account.cut and not cell.name.startswith("tool:")):
            return Part(envelope, None, UNKNOWN, key)
        place = encoded([told.sender, told.to, content(told)])
        if self.account.lost[place] > 0:
            self.account.lost[place] -= 1
        elif not (told.asked or self.account.cut or is_of_timer(told) or type(envelope.message) in CONTROL):
            # That an ask was never taken leaves no trace; whether this one is taken will be seen.
            where = f"{told.sender or 'somebody'} sends {told.type} to {told.to}"
            self.differ(Difference(self.now(), where, None, content(told)))
        else:
            self._extra[envelope] = told
        return None

    def chosen(self, members: Sequence[Cell], message: Any) -> Cell | None:
        """Which of several equals got a message."""
        here = handled()
        sender = cause = ""
        if here is not None and type(here.message) is Forward:
            sender = here.message.envelope.sender
        elif here is not None:
            sender, cause = here.receiver.name, here.span
        data, best = as_read(message), []
        for member, each in itertools.product(members, self._causes(cause, sender)):
            queue = self.account.sent.get((each, sender, member.name), ())
            told = next((told for told in queue if id(told) not in self._promised), None)
            if told is not None:
                best.append((told.data != data, told.sent, told.taken, member.name, member, told))
        if not best:
            return None
        *_, found, told = min(best, key=lambda each: each[:4])
        self._promised.add(id(told))  # until it comes, the next one is not to be taken for it
        return found

    # --- messages in mailboxes ---

    def next(self, cell: Cell) -> tuple[Envelope | None, float]:
        """The message that an actor is to take next, and the seconds until then; ``None`` if it has to wait for it."""
        due = self.account.due[cell.name]
        queue = tuple(cell.mailbox._queue)  # noqa: SLF001 - who takes from it need not know what else waits; this does
        for envelope in queue:
            self._let_go(envelope, queue)
        parts = [(each, self.part(cell, each)) for each in queue]
        for envelope, part in parts:
            scope = envelope.scope
            gone = scope is not None and (scope.reason is not None or scope.deadline <= self._loop.time())
            last = part is not None and part.told is None and (cell.concurrency > 1 or not due)
            if (part is None and gone) or last:
                return envelope, 0.0
        known = [(part.told, envelope) for envelope, part in parts if part is not None and part.told is not None]
        if self.account.cut:  # the next may be one that nobody can say who it is
            known = sorted(known, key=lambda each: each[0].taken)[:1]
        for told, envelope in known:
            if due and (told is due[0] or self.account.cut):
                return envelope, told.taken - self.now()
        return None, 0.0

    def _let_go(self, envelope: Envelope, queue: Sequence[Envelope]) -> None:
        """If a message was cancelled before anybody took it, what is recorded is another one of those that wait."""
        part, scope = self._parts.get(envelope), envelope.scope
        if part is None or part.told is None or part.taken or scope is None or scope.reason is None:
            return
        self._release(part)
        for each in queue:
            if each is not envelope and self._parts.get(each) is None:
                self._parts.pop(each, None)
                self._extra.pop(each, None)

    def _release(self, part: Part) -> None:
        self.account.sent[part.key].appendleft(part.told)  # type: ignore[arg-type] # whoever asks has seen that it is
        self._parts[part.envelope] = None
        self._promised.discard(id(part.told))

    def take(self, cell: Cell, envelope: Envelope) -> None:
        """An actor takes it."""
        if is_plumbing(cell.name):
            return
        part = self.part(cell, envelope)
        due = self.account.due[cell.name]
        if part is None or part.told is None:
            return
        if part.taken:  # the next instance is to try it once more
            again = self.account.retold[part.told.to, round(part.told.sent, 6)]
            if again:
                part.told = again.popleft()
                part.span = part.told.span
            return
        part.taken = True
        if part.told in due:
            due.remove(part.told)

    # --- handlers (telemetry.Clock) ---

    def sent(self, cell: Cell, envelope: Envelope) -> None:
        """Nothing: a message is looked at in the mailbox."""

    def handle(self, cell: Cell, envelope: Envelope) -> Coroutine[Any, Any, None] | None:
        """Let a handler take as long as it took."""
        part = self._parts.get(envelope)
        if part is None:
            return cell.perform(envelope)
        if part.span:
            self._spans[envelope.trace()] = part.span
        actor, message = cell.actor, envelope.message
        begin = actor._handle_control if message.__class__ in CONTROL else actor.on_receive
        try:
            result = begin(message)
        except BaseException as error:  # noqa: BLE001 - S15: nothing leaves the cell
            result = _raised(error)
        return cell.drive(envelope, self._lasting(result, part), actor)

    def given(self, _cell: Cell, _envelope: Envelope) -> bool:
        """Always: there are no worker processes here."""
        return True

    def handled(self, cell: Cell, envelope: Envelope) -> None:
        """A handler ended; the event that says how follows at once."""
        self._ending = self._parts.get(envelope)

    def ended(self, event: MessageHandled) -> None:
        """See what came of a message."""
        part, self._ending = self._ending, None
        told = None if part is None else part.told
        if part is None or told is None or told.at > self.account.end:
            return
        part.ended = True
        now = msgspec.structs.replace(told, outcome=event.outcome, result=as_read(event.result), error=event.error)
        if came_of(now) != came_of(told):
            where = f"{told.to} answers {told.type} of {told.sender or 'somebody'}"
            self.differ(Difference(self.now(), where, came_of(told), came_of(now)))
        elif not self.over.done():
            self.finished += 1

    async def _lasting(self, result: Any, part: Part) -> Any:
        told, task, kill = part.told, asyncio.current_task(), None
        if told is not None and told.outcome == "AGENT_CRASHED" and task is not None:
            said = _KILLED.search(told.error)
            kill = self._loop.call_at(BEGIN + told.at, task.cancel, *(said.groups() if said else ()))
        try:
            if told is not None and inspect.iscoroutine(result):
                part.envelope.steps = Steps()
                result = each_step(result, part.envelope.steps, Pace(self._loop, told, self.over))
            value = await result if inspect.isawaitable(result) else result
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            await self._until(part, str(getattr(error, "error_code", "AGENT_EXECUTION_FAILED")))
            raise
        else:
            await self._until(part, "ok")
            return value
        finally:
            if kill is not None:
                kill.cancel()

    async def _until(self, part: Part, outcome: str) -> None:
        told = part.told
        if told is None or told.at > self.account.end:
            await asyncio.sleep(NEVER)
            return
        # What was ended from outside, and would have gone on, has its end still to come.
        longer = PATIENCE if told.outcome in INTERRUPTED and outcome != told.outcome else 0.0
        end = told.at + longer
        if part.envelope.receiver.spec.lane != "loop" and told.asked and told.cause:
            # An answer of another thread comes a while after it was given, between this and what its asker did then.
            end = min(max(end, self.account.next_deed(told) - HAIR), end + HOP)
        if end > self.now():
            await asyncio.sleep(end - self.now())

    # --- deadlines ---

    def passes(self, expiring: Any) -> float:
        """When a deadline passes that is due by the clock, in seconds of the loop."""
        due: float = expiring.deadline
        above, part = getattr(expiring, "parent", None), self._asked.get(expiring)
        # Of a request and what it asks for, which have the same deadline, either may be the first to end.
        first = part is not None and part.told is not None and part.told.error.startswith(f"{part.told.to} did not")
        if above is not None and due >= above.deadline - HAIR and not above.done() and not first:
            return self._loop.time() + PATIENCE
        if part is None or part.told is None:
            return due
        if part.taken:
            return max(due, BEGIN + _ended(part.told))
        if part.told.taken >= due - BEGIN:  # it was never taken: what is recorded is another one, that is to come
            self._release(part)
            del self._asked[expiring]
            return due
        return BEGIN + part.told.at + HAIR

    # --- the end ---

    def passed(self, event: FramePassed) -> None:
        """See what a client is told."""
        if event.way == "out":
            found = self.frames.came(event.connection, as_read(event.encoding.decode(event.frame)), self.now())
            if found is not None:
                self.differ(found)

    def end(self) -> None:
        """The recording is over: what did not come by now does not come."""
        if not self.over.done():
            self.over.set_result(min(self._missing(), key=lambda each: each.at, default=None))

    def _missing(self) -> Iterator[Difference]:
        bound = {"", *self._spans.values()}
        for queue in self.account.due.values():
            for each in queue:
                if self.account.cut and each.cause not in bound:  # who sent it had not ended, and cannot be told
                    continue
                where = f"{each.to} gets no {each.type} of {each.sender or 'somebody'}"
                yield Difference(each.taken, where, content(each), None)
        for envelope, part in self._parts.items():
            if part is None or part.told is None:
                told = self._extra.get(envelope)
                if told is not None and not self.account.cut and not (envelope.scope and envelope.scope.done()):
                    where = f"{told.sender or 'somebody'} sends {told.type} to {told.to}"
                    yield Difference(told.sent, where, None, content(told))
            elif part.taken and not part.ended and part.told.at <= self.account.end:
                yield Difference(part.told.at, f"{part.told.to} does not answer", came_of(part.told), None)
        yield from self.frames.missing()


def _ended(told: Told) -> float:
    """When the time for an answer was over: not before it came, or when its handler went on for the last time."""
    if told.outcome == "ok":
        return told.at + HAIR
    return told.taken + told.steps[-1] * 1e-9 - HAIR if len(told.steps) > 1 else told.at


def _as_told(cell: Cell, envelope: Envelope, now: float) -> Told:
    return Told(
        at=now,
        sender=envelope.sender,
        to=cell.name,
        type=type_name(type(envelope.message)),
        data=as_read(envelope.message),
        sent=now,
        taken=now,
        asked=envelope.reply_to is not None,
        cause=envelope.cause,
    )


async def _raised(error: BaseException) -> None:
    raise error
