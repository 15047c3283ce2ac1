"""What a recording says should happen, as far as it can be said of another run too. Floor 15.

Rules:

1. A message is known by the handling that sent it, by who sent it to whom, and by its place among those. Handlers of
   one actor that overlap may send in another order than they did; one handler may not.
2. What was at work when the recording ended is known only by what it sent.
3. Times, trace ids, the references of internal errors and the epoch of events are another in each run.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections import Counter, defaultdict, deque
from collections.abc import Iterable
from typing import Any

import msgspec

from grami_actors.cell import CONNECTION
from grami_actors.history import AnyEntry, Dice, Framed, Injected, Life, Lost, Ran, Told, Wrote, plain
from grami_actors.job_requests import JOBS
from grami_actors.recording.request import encoded

TIE = 1e-7
"""Seconds within which two messages of one sender have no order that a clock could tell."""

_RANDOM = re.compile(r"0x[0-9a-f]{6,}|(?<=has it as )[0-9a-f]{12}|\b[0-9a-f]{32}\b")
"""Addresses, references of errors, and the ids that a system gives: of traces, contracts and sagas."""

_FLEETING = frozenset(
    {
        "seq",
        "offset",
        "duration_ms",
        "trace_id",
        "traceparent",
        "tracestate",
        "epoch",
        "reconnect_jitter_ms",
        "retry_after_ms",
    }
)
"""Fields of frames that are another in each run."""
_STOPPED = frozenset({"AGENT_UNAVAILABLE", "SHUTTING_DOWN", "CANCELLED"})
"""Outcomes of what a server that stops ends."""
_VAGUE = frozenset({"AGENT_CRASHED", "DEADLINE_EXCEEDED"})
"""Outcomes whose words say what is of a lane or of luck."""

GONE = "the client disconnected"
"""What ends the requests of a client that goes."""

_REFUSED = frozenset(
    {
        "INVALID_JSON",
        "INVALID_MESSAGE",
        "UNKNOWN_TYPE",
        "VALIDATION_FAILED",
        "MESSAGE_TOO_LARGE",
        "UNSUPPORTED_ENCODING",
        "UNSUPPORTED_VERSION",
        "UNSUPPORTED_FEATURE",
        "DUPLICATE_ID",
        "UNAUTHENTICATED",
        "INVALID_TOKEN",
        "TOKEN_EXPIRED",
        "TOO_MANY_INFLIGHT",
        "RATE_LIMITED",
    }
)
"""What the server itself finds wrong with a frame."""

STREAMED = frozenset({"response.chunk", "response.progress"})
_CONTROL = re.compile(r"hello|auth|describe|ping|subscribe|unsubscribe|publish|admin\..*|job\..*")
"""Requests that the server answers itself: with limits, offsets and statistics of its own, and of jobs."""


class Difference(msgspec.Struct, frozen=True):
    """Where a run is not what was recorded.

    Attributes:
        at: seconds since the run began.
        where: who did what, in words.
        recorded: what the recording has, as plain data; ``None`` for nothing.
        now: what came now.
        text: more, for people.
    """

    at: float
    where: str
    recorded: Any = None
    now: Any = None
    text: str = ""

    def lines(self) -> list[str]:
        """How the two differ: a unified diff of them as JSON."""
        both = [[] if each is None else _pretty(each).split("\n") for each in (self.recorded, self.now)]
        lines = list(difflib.unified_diff(both[0], both[1], "recorded", "now", lineterm="", n=2))
        return [*lines, *self.text.splitlines()]


def _pretty(value: Any) -> str:
    return msgspec.json.format(encoded(value), indent=2).decode()


def steady(value: Any) -> Any:
    """Plain data without what is random by nature."""
    if isinstance(value, str):
        return _RANDOM.sub("…", value)
    if isinstance(value, dict):
        return {key: steady(each) for key, each in value.items()}
    return [steady(each) for each in value] if isinstance(value, (list, tuple)) else value


def as_read(value: Any) -> Any:
    """A value as a recording gives it back."""
    return msgspec.json.decode(encoded(plain(value)))


def content(told: Told | Lost) -> dict[str, Any]:
    """What a message says."""
    return {"type": told.type, "data": steady(told.data)} | ({"asked": True} if getattr(told, "asked", False) else {})


def came_of(told: Told) -> dict[str, Any]:
    """What came of it. How a handler was killed depends on its lane, and which of equal deadlines was first on luck."""
    error = "" if told.outcome in _VAGUE else told.error
    return steady({"outcome": told.outcome, "result": told.result, "error": error})  # type: ignore[no-any-return]


class Account:
    """What should happen.

    Args:
        entries: of the recording.

    Attributes:
        told: the messages, in the order in which they were taken.
        sent: the same by who sent them: the handling, the actor, and to whom; in the order in which they were sent.
        due: the same by who took them.
        retold: what was handled again by the next instance, by the ``sent`` and receiver of the first time.
        orphans: handlings that were at work at the end, by their actor: the names of their spans.
        lost: messages that became dead letters.
        frames: all that passed, in order.
        gone: when clients went that had asked for something: their connections.
        dice: the seeds of the dice of actors, in order.
        faults: how many were put in on purpose.
        kills: when idle actors were killed from outside.
        end: when the run ended, or began to be ended; what came later is not compared.
        cut: whether the recording has no end of its own.
    """

    def __init__(self, entries: Iterable[AnyEntry], *, cut: bool = False) -> None:
        kept = sorted(
            entries, key=lambda each: each.at
        )  # a thread may be late to tell, and a hand may have moved a line
        self.cut = cut
        self.end = _end_of(kept)
        self.frames = [each for each in kept if isinstance(each, Framed)]
        self.dice: defaultdict[str, deque[int]] = defaultdict(deque)
        for each in kept:
            if isinstance(each, Dice):
                with contextlib.suppress(ValueError):  # a hand has changed it: other dice are a difference
                    self.dice[each.actor].append(int(each.seed, 16))
        self.faults = sum(isinstance(each, Injected) for each in kept)
        self.gone: dict[str, float] = {}
        for each in kept:
            if isinstance(each, Told) and each.error == GONE:
                self.gone.setdefault(each.sender, each.at)
        self.lost: Counter[bytes] = Counter(
            encoded([each.sender, each.to, content(each)]) for each in kept if isinstance(each, Lost)
        )
        every = [_apart(each) for each in kept if isinstance(each, Told) and not _is_of_jobs(each.to)]
        self._spans = {each.span for each in every} - {""}
        self.told = sorted((each for each in every if each.taken <= self.end), key=lambda each: each.taken)
        self.sent: defaultdict[tuple[str, str, str], deque[Told]] = defaultdict(deque)
        self.due: defaultdict[str, deque[Told]] = defaultdict(deque)
        self.retold: defaultdict[tuple[str, float], deque[Told]] = defaultdict(deque)
        self.kills = [
            (each.at, each.actor)
            for each in kept
            if isinstance(each, Life) and each.stage == "failed" and each.text.endswith("was killed")
        ]
        self._index()
        self.orphans = self._find_orphans()
        self._deeds: defaultdict[str, list[float]] = defaultdict(list)
        for each in self.told:
            self._deeds[each.cause].append(each.sent)
            self._deeds[each.span].append(each.at)
        for deeds in self._deeds.values():
            deeds.sort()

    def _index(self) -> None:
        failed: dict[tuple[str, float], float] = {}
        for each in self.told:
            place = each.to, round(each.sent, 6)
            if place in failed and each.taken >= failed[place] and each.outcome != "":
                self.retold[place].append(each)
            else:
                self.sent[each.cause, each.sender, each.to].append(each)
                self.due[each.to].append(each)
            if each.outcome not in {"ok", "CANCELLED"}:
                failed[place] = each.at
        for key, queue in self.sent.items():
            self.sent[key] = deque(sorted(queue, key=lambda each: (round(each.sent, 7), each.taken)))

    def _find_orphans(self) -> dict[str, deque[str]]:
        found: defaultdict[str, dict[str, None]] = defaultdict(dict)
        for each in sorted(self.told, key=lambda each: each.sent):
            if each.cause and each.cause not in self._spans:
                found[each.sender][each.cause] = None
        return {actor: deque(spans) for actor, spans in found.items()}

    def next_deed(self, told: Told) -> float:
        """When the handling that asked did the next thing that is recorded, after it was answered."""
        deeds = self._deeds.get(told.cause, ())
        return next((at for at in deeds if at > told.at), told.at)

    def same(self, key: tuple[str, str, str], told: Told) -> Told | None:
        """The recorded message that this one should be: the next of its kind; ``None`` if there is none.

        One that says something else is left where it is, and returned; but where the recording is cut, what was on its
        way then is not in it, and any may be the next.
        """
        queue = self.sent.get(key)
        if not queue:
            return None
        first, wanted = queue[0], content(told)
        for place, each in enumerate(queue):
            if each.sent - first.sent > TIE and not self.cut and not is_of_timer(first):
                break
            if content(each) == wanted:
                del queue[place]
                return each
        return None if self.cut else first


def _apart(told: Told) -> Told:
    """What a job sent came from outside: jobs are not replayed."""
    return msgspec.structs.replace(told, sender="", cause="") if _is_of_jobs(told.sender) else told


def _is_of_jobs(actor: str) -> bool:
    return actor.partition("/")[0] in {JOBS, f"{JOBS}-office"}


def _end_of(entries: list[AnyEntry]) -> float:
    """When the last thing happened that was not part of a server's end."""
    if not any(isinstance(each, Life) and each.actor == "router" and each.stage == "stopped" for each in entries):
        return entries[-1].at if entries else 0.0
    for each in reversed(entries):
        if not _is_of_the_end(each):
            return each.at
    return 0.0


def _is_of_the_end(entry: AnyEntry) -> bool:
    if isinstance(entry, (Told, Wrote, Ran)):
        return entry.outcome in _STOPPED
    if not isinstance(entry, Framed):
        return True
    if entry.way != "out" or not isinstance(entry.frame, dict):
        return entry.way != "in"
    return entry.frame.get("type") == "goaway" or entry.frame.get("error_code") in _STOPPED


class Frames:
    """What the clients were told, to be compared with what they are told now.

    Args:
        account: of the recording.
    """

    def __init__(self, account: Account) -> None:
        self._types: dict[tuple[str, str], str] = {}
        self._left: defaultdict[tuple[str, str], deque[Framed]] = defaultdict(deque)
        self._streamed: defaultdict[tuple[str, str], Counter[bytes]] = defaultdict(Counter)
        self._cut = account.cut
        self._end = account.end
        self._broken = {each.sender for each in account.told if each.outcome != "ok"}
        self._last: dict[str, float] = {}  # when clients that went were told something for the last time
        self._since: defaultdict[str, float] = defaultdict(float)  # when clients heard that they had subscribed
        self._said: dict[tuple[str, str], Any] = {}
        self._own: set[tuple[str, str]] = set()  # what the server answers by itself
        heard: defaultdict[str, float] = defaultdict(float)
        for each in account.frames:
            frame = each.frame if isinstance(each.frame, dict) else {}
            key = each.connection, name_of(frame)
            if each.way == "in":
                self._asked(key, frame)
            elif each.way == "close":
                self._last[each.connection] = heard[each.connection]
            elif each.way == "out" and each.at <= account.end:
                heard[each.connection] = each.at
                if self._types.get(key) == "subscribe":
                    self._since[each.connection] = each.at
                if self._is_own(key, frame):
                    continue
                if frame.get("type") in STREAMED:
                    self._streamed[key][encoded(self.compared(key, frame))] += 1
                else:
                    self._left[key].append(each)

    def _asked(self, key: tuple[str, str], frame: dict[str, Any]) -> None:
        self._types[key] = kind = str(frame.get("type", ""))
        if _CONTROL.fullmatch(kind) or frame.get("background"):
            self._own.add(key)

    def came(self, connection: str, frame: Any, at: float) -> Difference | None:
        """A client is told something; the difference to what it was told, if there is one."""
        key = connection, name_of(frame)
        now = self.compared(key, frame)
        if self._is_own(key, frame):
            self._said[key] = now  # it may be told instead of an answer
            return None
        if frame.get("type") in STREAMED:
            return self._streams(key, now, at)
        left = self._left[key]
        where = f"{connection} is told"
        # What a server ends that stops is in no recording; who has gone could no longer be told, who comes not yet.
        early = frame.get("type") == "event" and at <= self._since[connection]
        stopped = self._cut or early or (at >= self._end and frame.get("error_code") in _STOPPED)
        if not left and (stopped or at > self._last.get(connection, self._end)):
            return None
        recorded = self.compared(key, left[0].frame) if left else None
        if recorded != now:
            return Difference(at, f"{where}, of the request {key[1]}", recorded, now)
        left.popleft()
        return None

    def _is_own(self, key: tuple[str, str], frame: dict[str, Any]) -> bool:
        """Whether the server says it by itself; what it refuses is not all in a recording."""
        if key in self._own or frame.get("type") in {"welcome", "goaway"} or frame.get("error_code") in _REFUSED:
            return True
        data = frame.get("data")
        return isinstance(data, dict) and data.keys() == {"cancelled"}

    def _streams(self, key: tuple[str, str], now: Any, at: float) -> Difference | None:
        """Pieces of several agents come in an order that nobody recorded; what they are must be the same."""
        streamed, text = self._streamed[key], encoded(now)
        streamed[text] -= 1
        if streamed[text] >= 0 or self._broken or self._cut:
            return None
        recorded = next((msgspec.json.decode(each) for each, count in streamed.items() if count > 0), None)
        return Difference(at, f"{key[0]} is told, while it waits for the request {key[1]}", recorded, now)

    def type_of(self, key: tuple[str, str]) -> str:
        """The type of the message that a client sent, by its connection and its id."""
        return self._types.get(key, "")

    def missing(self) -> list[Difference]:
        """What did not come."""
        return [
            Difference(
                each.at,
                f"{key[0]} is told nothing more of the request {key[1]}",
                self.compared(key, each.frame),
                self._said.get(key),
            )
            for key, left in self._left.items()
            for each in left
        ]

    def compared(self, key: tuple[str, str], frame: Any) -> Any:
        """A frame without what is another in each run."""
        if not isinstance(frame, dict):
            return frame
        left_out = _FLEETING | {"message"} if frame.get("error_code") in _VAGUE else _FLEETING
        return steady({name: value for name, value in frame.items() if name not in left_out})


def name_of(frame: Any) -> str:
    """What belongs together: the answers to a request, or the events of a topic."""
    if not isinstance(frame, dict):
        return ""
    found = frame.get("id")
    return str(frame.get("topic", "")) if found is None else str(found)


def is_of_timer(told: Told) -> bool:
    """Whether an actor's own timer sent it: those come in no order, and one that is late may be cancelled by then."""
    return not told.cause and told.sender == told.to


def is_plumbing(actor: str) -> bool:
    """Whether it repeats what clients and agents say."""
    return actor == "router" or actor.startswith(CONNECTION)
