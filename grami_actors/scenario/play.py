"""What a scenario function gets: clients, time, faults, and questions about what happened. Floor 16."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import traceback
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import PurePath
from typing import Any, Literal, Protocol, TypeVar, overload

import msgspec

from grami_actors.client import Client
from grami_actors.errors import GramiError, describe
from grami_actors.history import History, Remark, Told
from grami_actors.messages import type_name
from grami_actors.scenario.awaits import Awaits, awaited
from grami_actors.scenario.clients import PlayClient
from grami_actors.scenario.lines import Check, Line, Piece, asked, line_of, many, shortened
from grami_actors.scenario.transcript import Pattern, Transcript
from grami_actors.simulation import places
from grami_actors.simulation.faults import Injector
from grami_actors.simulation.run import place
from grami_actors.system import ActorSystem

ScenarioFunction = Callable[["Play"], Coroutine[Any, Any, None]]
F = TypeVar("F", bound=Callable[..., Any])
Mode = Literal["live", "simulated"]
Condition = str | Callable[[], Any]
"""A pattern of messages (see :class:`~grami_actors.scenario.transcript.Pattern`), or a function, plain or async."""


@overload
def scenario(function: F) -> F: ...
@overload
def scenario(*, live: bool = True, simulated: bool = True, seeds: int | None = None) -> Callable[[F], F]: ...
def scenario(
    function: F | None = None, *, live: bool = True, simulated: bool = True, seeds: int | None = None
) -> F | Callable[[F], F]:
    """Mark an async function of a scenario file: ``grami run`` plays it, and ``pytest`` does.

    With ``@scenario(live=False)`` it is played in simulation only, with ``@scenario(simulated=False)`` never there.

    Args:
        function: the scenario.
        live: whether it is played on a real server.
        simulated: whether it is played in simulation.
        seeds: how many are played in simulation, if nobody says how many: a long one says few.

    Raises:
        ValueError: it is to be played nowhere, or with less than one seed.
    """
    modes = ("live",) * live + ("simulated",) * simulated
    if not modes:
        raise ValueError("a scenario is played live, simulated, or both")
    if seeds is not None and seeds < 1:
        raise ValueError(f"a scenario is played with at least one seed, not {seeds}")

    def mark(marked: F) -> F:
        marked.__grami_scenario__ = modes  # type: ignore[attr-defined]
        marked.__grami_seeds__ = seeds  # type: ignore[attr-defined]
        return marked

    return mark if function is None else mark(function)


def modes_of(function: object) -> tuple[Mode, ...]:
    """Where a function is played, if it is a scenario."""
    return getattr(function, "__grami_scenario__", ())


def seeds_of(function: object) -> int | None:
    """How many seeds a scenario asks for, if it does."""
    return getattr(function, "__grami_seeds__", None)


class CheckFailed(Exception):
    """Something that a scenario requires did not hold; the scenario ends."""


class Stage(Protocol):
    """Where a scenario is played: on a real server, or in a simulation."""

    @property
    def mode(self) -> Mode:
        """Which of the two."""

    @property
    def system(self) -> ActorSystem:
        """The actors."""

    @property
    def history(self) -> History:
        """What happened since the scenario began."""

    @property
    def faults(self) -> Injector:
        """What is to go wrong."""

    called: Callable[[str], str]
    """What the script calls the client at the end of a connection; set by its :class:`Play`."""

    def client(self, retry_for: float = 0.0) -> Client:
        """A client that has not connected yet; seconds in which it tries to come back when it is cut off."""


class Play:
    """One playing of one scenario.

    Args:
        stage: where it is played.
        watch: gets every :class:`Line`, :class:`Piece` and :class:`Check` as it comes.

    Attributes:
        system: the actors, to ask and tell them from outside: ``await play.system.ask("writer", Draft(...))``.
        transcript: what happened so far.
        over: whether the scenario has ended.
        awaits: which of its calls have begun.
    """

    def __init__(self, stage: Stage, watch: Callable[[Any], None] | None = None) -> None:
        self.mode = stage.mode
        self.system = stage.system
        self.checks: list[Check] = []
        self.lines = 0
        self.over = False
        self.awaits = Awaits()
        self._stage = stage
        self._watch = watch
        self._stack = AsyncExitStack()
        self._clients: list[tuple[str, Client]] = []
        self._names: dict[str, str] = {}
        self._changed: asyncio.Event | None = None
        self._asks = 0
        self._loop = asyncio.get_running_loop()
        self._begun_at = stage.history.now()
        self.transcript = Transcript(stage.history, self._named)
        stage.called = self._called

    # --- who plays ---

    @awaited
    async def client(self, name: str, *, retry_for: float = 0.0) -> PlayClient:
        """A client with a connection of its own, until the scenario ends or it leaves.

        Args:
            name: what the transcript calls it.
            retry_for: seconds in which it tries to come back when it is cut off, as those of
                :func:`grami_actors.connect` do for 30; 0 never does.
        """
        connection = await self._stack.enter_async_context(self._stage.client(retry_for))
        self._clients.append((name, connection))
        self._named()
        history = self._stage.history
        history.add(Remark(at=history.now(), who=name, text=f"comes as {connection.connection}"))
        return PlayClient(self, name, connection)

    def _called(self, name: str) -> str:
        return self._named().get(name, name)

    def _named(self) -> dict[str, str]:
        """What the script calls the connections, those of clients that came back too."""
        self._names |= {connection.connection: name for name, connection in self._clients}
        return self._names

    @property
    def faults(self) -> Injector:
        """What is to go wrong: ``play.faults.crash("writer", on_message=3)``."""
        return self._stage.faults

    def kill(self, name: str) -> None:
        """End what an agent does now; its supervisor restarts it."""
        self.say(name, "", "killed")
        self.system.kill(name)

    # --- time ---

    def now(self) -> float:
        """Seconds since the scenario began; virtual in a simulation."""
        return self._stage.history.now() - self._begun_at

    @awaited
    async def at(self, seconds: float) -> None:
        """Wait until so many seconds have passed since the scenario began; no longer if they have."""
        await asyncio.sleep(max(0.0, seconds - self.now()))

    # --- what should be ---

    def check(self, text: str, condition: object, details: str = "") -> bool:
        """Note whether something is as it should be; a check that fails fails the scenario at its end."""
        check = Check(text, bool(condition), details)
        self.checks.append(check)
        self._stage.history.add(Remark(at=self._stage.history.now(), who="check", text=text, passed=check.passed))
        if self._watch is not None:
            self._watch(check)
        return check.passed

    def require(self, text: str, condition: object, details: str = "") -> None:
        """Like :meth:`check`, but end the scenario at once when it does not hold."""
        if not self.check(text, condition, details):
            raise CheckFailed(text)

    @awaited
    async def expect(self, pattern: str, where: Callable[[Told], object] | None = None, *, within: float = 5.0) -> Told:
        """The first message of a kind, that was told or will be: ``await play.expect("alice -> writer-*: draft")``.

        Args:
            pattern: which; see :class:`~grami_actors.scenario.transcript.Pattern`.
            where: says of a message whether it is meant.
            within: seconds to wait for it.

        Raises:
            CheckFailed: there was none.
        """
        found: list[Told] = []

        def came() -> list[Told]:
            found[:] = self.transcript.told(pattern, where)
            return found

        await self._until(came, within)
        text = f"expected {pattern} within {within:g} s"
        self.require(text, found, "" if found else self._instead(pattern, where))
        return found[0]

    @awaited
    async def eventually(self, condition: Condition, *, within: float = 5.0, text: str = "") -> None:
        """Wait until something is so; looked at whenever something has happened, and at the end.

        Raises:
            CheckFailed: it is not so within that many seconds.
        """
        held = await self._holds(condition, within)
        details = self._instead(condition) if isinstance(condition, str) and not held else ""
        self.require(text or f"{_in_words(condition)}, within {within:g} s", held, details)

    @awaited
    async def never(self, condition: Condition, *, during: float, text: str = "") -> None:
        """Wait, and see that something is never so; looked at whenever something has happened, and at the end.

        Raises:
            CheckFailed: it is so.
        """
        held = await self._holds(condition, during)
        details = self._in_short(self.transcript.told(condition)[0]) if isinstance(condition, str) and held else ""
        self.require(text or f"never {_in_words(condition)}, during {during:g} s", not held, details)

    async def _holds(self, condition: Condition, seconds: float) -> bool:
        """Whether it comes to be so within that many seconds."""
        if isinstance(condition, str):
            pattern = condition
            return await self._until(lambda: self.transcript.told(pattern), seconds)
        if not callable(condition):
            raise TypeError(f"{condition!r} is no pattern and no function: write `lambda: ...`, to be looked at again")
        self._asks += 1
        try:
            return await self._until(condition, seconds)
        finally:
            self._asks -= 1

    def _instead(self, pattern: str, where: Callable[[Told], object] | None = None) -> str:
        """What there was where a message of a kind was expected."""
        if where is not None and (found := self.transcript.told(pattern)):
            return f"`where` holds for none of {many(len(found), 'message')}, the last: {self._in_short(found[-1])}"
        wanted = Pattern(pattern)
        for name, cell in tuple(self.system.table.cells.items()):
            taken = cell.at_work
            if taken is None:
                continue
            sender = self._named().get(taken.sender, taken.sender)
            kind = type_name(type(taken.message))
            if wanted.matches(Told(at=0, sent=0, taken=0, sender=taken.sender, to=name, type=kind), sender):
                return f"{name} is still at work on {kind}; a message is told when its handler has ended"
        nearest = self.transcript.nearest(pattern)
        return f"there was {nearest}" if nearest else "there was nothing like it"

    def _in_short(self, told: Told) -> str:
        sender = self._named().get(told.sender, told.sender) or "somebody"
        return f"{sender} -> {told.to}: {told.type} {shortened(asked(told.type, told.data))}".rstrip()

    async def _until(self, condition: Callable[[], Any], seconds: float) -> bool:
        """Whether it came to be so within that many seconds."""
        changed = self._changed = self._changed or asyncio.Event()
        self._stage.history.on_change = self._on_change
        end = self._loop.time() + seconds
        while True:
            changed.clear()
            held = condition()
            if inspect.isawaitable(held):
                held = await held
            if held or self._loop.time() >= end:
                return bool(held)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(end):
                    await changed.wait()

    def heard(self) -> None:
        """A client got something, and the script has taken it: of which the history knows nothing."""
        if self._asks:
            self._on_change()

    def _on_change(self) -> None:
        if self._changed is not None and not self._changed.is_set():
            self._loop.call_soon_threadsafe(self._changed.set)

    # --- what is shown ---

    def say(self, who: str, to: str, what: str, text: str = "", **rest: Any) -> None:
        """Add a line to the transcript."""
        self.lines += 1
        if self._watch is not None:
            self._watch(Line(self.now(), who, to, what, text, **rest))

    def show(self, piece: Piece) -> None:
        """Show text that is being written."""
        if self._watch is not None:
            self._watch(piece)

    def note(self, entry: Any) -> None:
        """Show what happened among the actors: for the history of the run."""
        if not isinstance(entry, Remark) and (line := line_of(entry)) is not None:
            self.lines += 1
            if self._watch is not None:
                who, to = self._called(line.who), self._called(line.to)
                self._watch(msgspec.structs.replace(line, at=line.at - self._begun_at, who=who, to=to))

    async def close(self) -> None:
        """Disconnect the clients."""
        self.over = True
        self._stage.history.on_change = None
        await self._stack.aclose()


def _in_words(condition: Condition) -> str:
    if isinstance(condition, str):
        return condition
    name = (condition.__doc__ or "").strip() or getattr(condition, "__name__", repr(condition)).replace("_", " ")
    code = getattr(condition, "__code__", None)
    return name if name != "<lambda>" or code is None else f"what {places.place(code, code.co_firstlineno)} asks"


class Ending(msgspec.Struct, frozen=True):
    """How the playing of a scenario ended.

    Attributes:
        checks: all of them.
        error: what it raised; empty if nothing.
        kind: of the error: ``check`` or ``error``; empty if it passed.
    """

    checks: tuple[Check, ...]
    error: str = ""
    kind: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing was wrong. Without any check, having ended without an error is the check."""
        return not self.kind


async def perform(play: Play, function: ScenarioFunction) -> Ending:
    """Play a scenario to its end, and say how it went."""
    errors = []
    try:
        await function(play)
        errors = [play.awaits.missing()]
    except CheckFailed:
        pass
    except (Exception, SystemExit) as failure:  # noqa: BLE001 - a scenario may raise anything, and then it has failed
        errors = [f"{_told(failure)}{_place(failure)}", play.awaits.missing()]
    finally:
        await play.close()
    error = "; ".join(filter(None, errors))
    failed = [check for check in play.checks if not check.passed]
    kind = "error" if error else "check" if failed else ""
    return Ending(tuple(play.checks), error, kind)


def _told(error: BaseException) -> str:
    """What a scenario raised, in one line."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(map(_told, error.exceptions))
    return f"{error.error_code}: {error.message}" if isinstance(error, GramiError) else describe(error)


def _place(error: BaseException) -> str:
    """Which line of the user's it came from, whatever that line called."""
    frames = traceback.walk_tb(error.__traceback__)
    lines = [(frame.f_code.co_filename, line) for frame, line in frames if places.is_user(frame)]
    return f" ({PurePath(lines[-1][0]).name}:{lines[-1][1]})" if lines else place(error)


class Result(msgspec.Struct, frozen=True):
    """How a scenario went on a real server; ``unused``: the faults of the script that never struck, in words."""

    scenario: str
    mode: str
    passed: bool
    checks: tuple[Check, ...]
    error: str
    wall_seconds: float
    messages: int
    unused: tuple[str, ...] = ()
