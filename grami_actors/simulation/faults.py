"""Faults that are put into a system on purpose, where an actor takes a message. Floor 14.

Rules:

1. A fault is a :class:`Rule`: whom it strikes, how often, and what happens then. Of all rules that fit a message the
   first strikes. Those of a script are given one by one; those of a profile are drawn (:meth:`Injector.draw`).
2. It strikes where the receiver takes the message, so nothing that an agent, a tool or a client does is another than
   without it. The router, and what the runtime itself sends (the end of a watched actor, a call through a proxy), is
   left alone.
3. A message that is held is as good as in the mailbox: it keeps its place among those of its sender (unless it is
   ``reorder`` that holds it), it becomes a dead letter or ``ActorDead`` when the actor stops, it ends when its request
   does, and no fault strikes it again. Only what ``drop`` and ``partition`` say that they lose is lost.
4. A crash is what :meth:`grami_actors.system.ActorSystem.kill` does, at a chosen point.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from types import TracebackType
from typing import Any, Self, Unpack, get_args

from grami_actors.agent import MODEL
from grami_actors.cell import CONNECTION, CONTROL, Cell
from grami_actors.errors import ErrorCode, GramiError, UpstreamError
from grami_actors.guard import ROUTER
from grami_actors.history import History, Injected
from grami_actors.mailbox import Closed
from grami_actors.messages import Envelope, Terminated, type_name
from grami_actors.ref import ActorDead
from grami_actors.simulation.killed import killed
from grami_actors.simulation.rules import LONGEST, Effect, Names, Partition, Profile, Rule, When, Which, eligible
from grami_actors.simulation.schedule import Schedule
from grami_actors.system import ActorSystem


class _Nobody:
    """Gets the answers that are lost."""

    def set_result(self, _value: Any) -> bool:
        """As if it had arrived."""
        return True

    fail = set_result


_NOBODY = _Nobody()


class _Held:
    """Messages of one sender to one receiver that wait. ``overtaken``: until the next one has passed."""

    __slots__ = ("disarm", "envelopes", "overtaken", "rule")

    def __init__(self, rule: Rule, envelope: Envelope, *, overtaken: bool) -> None:
        self.rule = rule
        self.envelopes = [envelope]
        self.overtaken = overtaken
        self.disarm: Callable[[], None] = lambda: None


class Injector:
    """Puts faults into a system, real or simulated, from ``with`` to its end.

    Names are those of actors (``store``, ``tool:search``, ``connection-1``) and of clients, or patterns of them. Every
    method returns the :class:`Rule`, which can be undone. It stands where a profile stands, so there is none while it
    does.

    Args:
        system: whose messages they are; its actors are as they are.
        history: where each fault that strikes is noted.
        called: what a script calls the client at the end of a connection.

    Raises (on entering):
        GramiError: RESOURCE_EXHAUSTED, a profile or another injector is at work.
    """

    def __init__(self, system: ActorSystem, history: History | None = None, called: Callable[[str], str] = str) -> None:
        self.rules: list[Rule] = []
        self.counts: Counter[str] = Counter()
        self._system = system
        self._history = history
        self._called = called
        self._lock = threading.RLock()
        self._active: list[Rule] = []
        self._parted: list[Rule] = []
        self._drawn: tuple[Rule, ...] = ()
        self._profile = Profile("none")
        self._schedule: Schedule | None = None
        self._left = 0
        self._held: dict[tuple[Cell, str], _Held] = {}
        self._passing: dict[Envelope, Cell] = {}
        self._stalled: dict[Cell, tuple[Rule, Callable[[], None]]] = {}
        self._full: dict[Cell, Rule] = {}
        self._doomed: dict[Cell, Envelope] = {}
        self._dying: dict[Envelope, int] = {}
        self._mute: set[Envelope] = set()

    def __enter__(self) -> Self:
        if self._system.bus.clocked is not None:
            raise GramiError("a profile or another injector is at work", code=ErrorCode.RESOURCE_EXHAUSTED)
        self._system.bus.clock(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._system.bus.clock(None)
        for rule in (*self.rules, *self._drawn):
            rule.undo()

    @property
    def unused(self) -> list[str]:
        """Rules that never struck, in words: those of a name that was misspelt are among them."""
        return [str(rule) for rule in self.rules if not rule.struck]

    # --- the faults of a script ---

    def crash(
        self, actor: str, *, when: When = "before", sender: str = "*", awaits: int = 1, **which: Unpack[Which]
    ) -> Rule:
        """Let an actor crash over a message: its caller gets AgentCrashed, its supervisor restarts it.

        Args:
            actor: whose handler it is.
            when: ``before``, the handler is not run; ``during``, a coroutine is cancelled where it has to wait, on the
                process lane the worker is killed, and a plain function dies as it ends; ``after``, the handler has
                done its work, and its answer is lost.
            sender: of the message.
            awaits: for ``during``, at which wait; a handler that waits less often dies as it ends.
            which: of the messages.

        Raises:
            ValueError: ``when`` is none of these.
        """
        if when not in get_args(When):
            raise ValueError(f"when={when!r}: a crash comes {', '.join(get_args(When))}")
        return self._add("crash", partial(self._crash, when, awaits), actor, which, sender=sender, detail=when)

    def kill(self, actor: str, **which: Unpack[Which]) -> Rule:
        """Kill the worker process of an actor with a message in its hands; on other lanes a crash ``during``."""
        return self._add("kill", partial(self._crash, "during", 1), actor, which)

    def drop(self, sender: str, to: str, **which: Unpack[Which]) -> Rule:
        """Lose messages. An ask then ends with its deadline."""
        return self._add("drop", self._drop, to, which, sender=sender)

    def drop_reply(self, sender: str, to: str, **which: Unpack[Which]) -> Rule:
        """Lose the answers to what ``sender`` asks ``to``, which handles it."""
        return self._add("drop", self._drop_reply, to, which, sender=sender, detail="answer", asked=True)

    def delay(self, sender: str, to: str, seconds: float, **which: Unpack[Which]) -> Rule:
        """Let messages come ``seconds`` later. Those that the same sender sends meanwhile wait behind them."""
        return self._add("delay", self._delay, to, which, sender=sender, seconds=_always(seconds))

    def reorder(self, sender: str, to: str, seconds: float = 1.0, **which: Unpack[Which]) -> Rule:
        """Let the next message of the same sender go first; without one the message comes ``seconds`` later."""
        return self._add("reorder", self._reorder, to, which, sender=sender, seconds=_always(seconds))

    def duplicate(self, sender: str, to: str, **which: Unpack[Which]) -> Rule:
        """Let messages be handled twice; the second answer goes nowhere."""
        return self._add("duplicate", self._duplicate, to, which, sender=sender)

    def stall(self, actor: str, seconds: float, **which: Unpack[Which]) -> Rule:
        """Let an actor or tool that is about to handle a message stand still, and its mailbox grow."""
        return self._add("stall", self._stall, actor, which, seconds=_always(seconds))

    def fail_model(self, error: str = "the language model is not available", **which: Unpack[Which]) -> Rule:
        """Let calls of the language model end with an :class:`~grami_actors.errors.UpstreamError`."""
        return self._add("model", partial(self._refuse, error), MODEL, which)

    def partition(self, group: str | Iterable[str], others: str | Iterable[str]) -> Rule:
        """Lose all messages and answers between two groups of names, until it is undone."""
        groups = _listed(group), _listed(others)
        words = " | ".join(" ".join(names) for names in groups)
        rule = Partition(fault="partition", effect=self._drop, end=self._undo, to=words, times=None, groups=groups)
        self._parted.append(rule)
        return self._keep(rule)

    def fill(self, actor: str) -> Rule:
        """Let the mailboxes of the actors that now have this name count as full, until it is undone.

        What a sender then meets is what it meets at a full mailbox: ``MailboxFull``, a wait for room, or a dead letter.
        """
        rule = self._rule("fill", self._drop, to=actor)
        for name, cell in tuple(self._system.table.cells.items()):
            if rule.fits(("",), self._names(name)) and cell not in self._full:
                self._full[cell] = rule
                cell.mailbox.capacity = 0
                self._note(rule, (name,))
        self.rules.append(rule)
        return rule

    # --- the faults of a profile ---

    def draw(self, profile: Profile, schedule: Schedule) -> None:
        """Let the schedule choose the faults from now on; the same seed and deliveries bring the same ones."""
        pair: dict[str, Any] = {"to": "*", "times": None}
        longest = {fault: partial(_share, schedule, seconds) for fault, seconds in LONGEST.items()}
        kinds = {
            "crash before": self._rule("crash", partial(self._crash, "before", 1), detail="before", **pair),
            "crash during": self._rule("crash", partial(self._crash, "during", 1), detail="during", **pair),
            "crash after": self._rule("crash", partial(self._crash, "after", 1), detail="after", **pair),
            "drop": self._rule("drop", self._drop, **pair),
            "drop reply": self._rule("drop", self._drop_reply, detail="answer", asked=True, **pair),
            "delay": self._rule("delay", self._delay, seconds=longest["delay"], **pair),
            "stall": self._rule("stall", self._stall, seconds=longest["stall"], **pair),
            "duplicate": self._rule("duplicate", self._duplicate, **pair),
        }
        self._drawn = tuple(kinds[fault] for fault in profile.chances)
        self._profile, self._schedule, self._left = profile, schedule, profile.most

    def _strike(self, cell: Cell, envelope: Envelope) -> Rule | None:
        if not self._left or self._schedule is None or not self._drawn:
            return None
        able = [eligible(fault, cell, envelope) for fault in self._profile.chances]
        if not any(able):
            return None
        chances = self._profile.chances.values()
        place = self._schedule.strike([chance * can for chance, can in zip(chances, able, strict=True)])
        if not place or not able[place - 1]:
            return None
        self._left -= 1
        return self._drawn[place - 1]

    # --- rules ---

    def _rule(self, fault: str, effect: Effect, **rest: Any) -> Rule:
        return Rule(fault=fault, effect=effect, end=self._undo, **rest)

    def _add(self, fault: str, effect: Effect, to: str, which: Which, **rest: Any) -> Rule:
        return self._keep(self._rule(fault, effect, to=to, **which, **rest))

    def _keep(self, rule: Rule) -> Rule:
        self.rules.append(rule)
        self._active.append(rule)
        return rule

    def _undo(self, rule: Rule) -> None:
        with self._lock:
            for rules in (self._active, self._parted):
                if rule in rules:
                    rules.remove(rule)
            for pair in [pair for pair, held in self._held.items() if held.rule is rule]:
                self._release(pair)
            for cell in [cell for cell, (by, _) in self._stalled.items() if by is rule]:
                self._go_on(cell)
            for cell in [cell for cell, by in self._full.items() if by is rule]:
                del self._full[cell]
                cell.mailbox.capacity = cell.spec.mailbox
                if cell.mailbox.parked:
                    cell.wake()

    def _names(self, actor: str) -> Names:
        return (actor, self._called(actor)) if actor.startswith(CONNECTION) else (actor,)

    def _note(self, rule: Rule, names: tuple[str, ...], text: str = "") -> None:
        rule.struck += 1
        self.counts[rule.fault] += 1
        if self._history is not None:
            self._history.add(Injected(at=self._history.now(), fault=rule.fault, names=names, text=text))

    # --- what cells call: telemetry.Clock ---

    def sent(self, cell: Cell, envelope: Envelope) -> None:
        """Nothing: all faults strike where a message is taken."""

    def handle(self, cell: Cell, envelope: Envelope) -> Coroutine[Any, Any, None] | None:
        """Run the handler as :meth:`Cell.handle` does, unless a fault has it otherwise."""
        if not self.given(cell, envelope):
            return None
        rest = cell.perform(envelope)
        awaits = self._dying.pop(envelope, 0) if self._dying else 0
        return killed(rest, awaits) if awaits and rest is not None else rest

    def given(self, cell: Cell, envelope: Envelope) -> bool:
        """Whether a message that an actor takes is handled now."""
        if envelope.message.__class__ in CONTROL or cell.name == ROUTER:
            return True
        with self._lock:
            if self._passing and (passes := self._passes(cell, envelope)) is not None:
                return passes
            held = self._held.get((cell, envelope.sender))
            if held is not None:
                return self._meet(held, cell, envelope)
            # An actor remembers one message that it is to die of; with concurrency there may be more at work.
            spared = {"crash", "kill"} if cell in self._doomed else ()
            pair = self._names(envelope.sender), self._names(cell.name)
            rules = (each for each in self._active if each.fault not in spared)
            rule = next((each for each in rules if each.due(envelope, *pair)), None) or self._strike(cell, envelope)
            if rule is None or rule.fault in spared:
                return True
            seconds = 0.0 if rule.seconds is None else rule.seconds()
            actor = rule.fault in {"crash", "kill", "stall", "model"}
            words = rule.detail, type_name(type(envelope.message)), f"{seconds:.3g} s" if seconds else ""
            self._note(rule, (cell.name,) if actor else (envelope.sender, cell.name), " ".join(filter(None, words)))
        return rule.effect(rule, cell, envelope, seconds)

    def handled(self, cell: Cell, envelope: Envelope) -> None:
        """The handler ended, and the answer is about to be given."""
        if self._doomed and self._doomed.get(cell) is envelope:
            del self._doomed[cell]
        if envelope.reply_to is None or not (self._mute or self._parted):
            return
        with self._lock:
            pair = self._names(envelope.sender), self._names(cell.name)
            parted = next((rule for rule in self._parted if rule.fits(*pair)), None)
            if envelope in self._mute:
                self._mute.discard(envelope)
                envelope.reply_to = _NOBODY
            elif parted is not None:
                envelope.reply_to = _NOBODY
                self._note(parted, (cell.name, envelope.sender), f"answer {type_name(type(envelope.message))}")

    # --- what happens ---

    def _crash(self, when: When, awaits: int, _rule: Rule, cell: Cell, envelope: Envelope, _seconds: float) -> bool:
        if when == "before":
            cell.fail(envelope, asyncio.CancelledError("killed"), cell.actor)
            return False
        self._doomed[cell] = cell.doomed = envelope  # whatever its handler makes of it
        if when == "during" and cell.lane.name == "process":
            self._system.loop.call_soon(_kill, cell, envelope)
        elif when == "during":
            self._dying[envelope] = awaits
        return True

    @staticmethod
    def _drop(_rule: Rule, cell: Cell, envelope: Envelope, _seconds: float) -> bool:
        _let_go(cell, envelope)
        return False

    def _drop_reply(self, _rule: Rule, _cell: Cell, envelope: Envelope, _seconds: float) -> bool:
        self._mute.add(envelope)
        return True

    @staticmethod
    def _refuse(error: str, _rule: Rule, cell: Cell, envelope: Envelope, _seconds: float) -> bool:
        cell.fail(envelope, UpstreamError(error), cell.actor)
        return False

    def _duplicate(self, _rule: Rule, cell: Cell, envelope: Envelope, _seconds: float) -> bool:
        answered = None if envelope.reply_to is None else _NOBODY
        twin = Envelope(envelope.message, answered, envelope.sender, envelope.scope, envelope.sent_at)
        twin.cause = envelope.cause
        self._put_back(cell, twin)
        return True

    def _stall(self, rule: Rule, cell: Cell, envelope: Envelope, seconds: float) -> bool:
        with self._lock:
            if (earlier := self._stalled.pop(cell, None)) is not None:  # somebody else let it go on
                earlier[1]()
            cell.lane.pause(cell)
            _untake(cell, envelope)
            self._put_back(cell, envelope)
            self._stalled[cell] = rule, cell.runtime.after(seconds, partial(self._go_on, cell))
        return False

    def _go_on(self, cell: Cell) -> None:
        with self._lock:
            stall = self._stalled.pop(cell, None)
        if stall is None:
            return
        stall[1]()
        if cell.state == "running":  # else somebody else says when it goes on
            cell.lane.resume(cell)

    def _delay(self, rule: Rule, cell: Cell, envelope: Envelope, seconds: float) -> bool:
        return self._hold(_Held(rule, envelope, overtaken=False), cell, envelope, seconds)

    def _reorder(self, rule: Rule, cell: Cell, envelope: Envelope, seconds: float) -> bool:
        return self._hold(_Held(rule, envelope, overtaken=True), cell, envelope, seconds)

    # --- what is held ---

    def _hold(self, held: _Held, cell: Cell, envelope: Envelope, seconds: float) -> bool:
        pair = cell, envelope.sender
        _untake(cell, envelope)
        with self._lock:
            self._held[pair] = held
            held.disarm = cell.runtime.after(seconds, partial(self._time_is_up, pair, held))
        if cell.lane.name == "thread":  # actors are watched on the home loop
            self._system.loop.call_soon_threadsafe(cell.watch, self, partial(self._gone, cell))
        else:
            cell.watch(self, partial(self._gone, cell))
        return False

    def _meet(self, held: _Held, cell: Cell, envelope: Envelope) -> bool:
        """One more message of a sender whose messages are held."""
        if held.overtaken:
            self._release((cell, envelope.sender))
            return True
        _untake(cell, envelope)
        held.envelopes.append(envelope)
        return False

    def _passes(self, cell: Cell, envelope: Envelope) -> bool | None:
        """Whether a message goes on that was put back, or came to the hands before one that was; else ``None``."""
        if self._passing.pop(envelope, None) is not None:
            return True
        if not cell.lane.shared:
            return None
        now = cell.now()
        for each, receiver in self._passing.items():
            if receiver is cell and each.sender == envelope.sender and not _over(each, now):
                _untake(cell, envelope)
                self._put_back(cell, envelope)
                return False
        return None

    def _time_is_up(self, pair: tuple[Cell, str], held: _Held) -> None:
        with self._lock:
            if self._held.get(pair) is held:
                self._release(pair)

    def _release(self, pair: tuple[Cell, str]) -> None:
        held = self._held.pop(pair)
        held.disarm()
        for envelope in held.envelopes:
            self._put_back(pair[0], envelope)

    def _put_back(self, cell: Cell, envelope: Envelope) -> None:
        with self._lock:
            self._passing[envelope] = cell
            try:
                cell.mailbox.put_first(envelope)
            except Closed:
                del self._passing[envelope]
                self._lose(cell, envelope)

    def _gone(self, cell: Cell, _terminated: Terminated) -> None:
        """An actor has ended; what was held for it ends as what was in its mailbox did."""
        with self._lock:
            for pair in [pair for pair in self._held if pair[0] is cell]:
                held = self._held.pop(pair)
                held.disarm()
                for envelope in held.envelopes:
                    self._lose(cell, envelope)

    @staticmethod
    def _lose(cell: Cell, envelope: Envelope) -> None:
        cell.discard(envelope, "stopped", ActorDead(f"{cell.name} stopped before it handled the message"))


def _let_go(cell: Cell, envelope: Envelope) -> None:
    """The actor has its hands free again."""
    if cell.at_work is envelope:
        cell.at_work = None


def _untake(cell: Cell, envelope: Envelope) -> None:
    """The actor has not taken the message: it is as it was in the mailbox."""
    _let_go(cell, envelope)
    envelope.receiver = None  # else a timer would take its message for handled
    envelope.taken_at = 0.0


def _kill(cell: Cell, envelope: Envelope) -> None:
    if cell.doomed is envelope:
        cell.lane.kill(cell)


def _over(envelope: Envelope, now: float) -> bool:
    scope = envelope.scope
    return scope is not None and (scope.reason is not None or scope.deadline <= now)


def _listed(group: str | Iterable[str]) -> tuple[str, ...]:
    return (group,) if isinstance(group, str) else tuple(group)


def _always(seconds: float) -> Callable[[], float]:
    if not seconds >= 0:
        raise ValueError(f"{seconds} seconds: no time passes backwards")
    return lambda: seconds


def _share(schedule: Schedule, longest: float) -> float:
    return schedule.amount() * longest
