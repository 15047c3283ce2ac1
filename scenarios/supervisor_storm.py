"""A telephone exchange in a storm: a tree of supervisors, crashes all over it, and callers who keep calling.

Play it:       grami run scenarios/supervisor_storm.py
Simulate it:   grami run scenarios/supervisor_storm.py --simulate --seeds 1000
With faults:   grami run scenarios/supervisor_storm.py whatever_happens --simulate --faults crash

::

    operator                      the agent that clients ask
    └── exchange                  one_for_one: a branch that gives up is started anew
        ├── north                 one_for_one: lines that have nothing to do with each other
        ├── south                 one_for_all: lines that share a cable, and are set up together
        └── radio                 rest_for_one: each stands on the one before

Each branch allows three failures of its lines in ten minutes; with the fourth it gives up, and the exchange starts the
whole branch anew. The exchange allows six of those; then it gives up too, and the operator builds another.
A call that fails its line twice is poison, and is put aside as a dead letter with its traceback.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

from grami_actors import Agent, Child, GramiError, Message, RestartPolicy, Supervisor, Swarm, handles
from grami_actors.history import Life
from grami_actors.scenario import Play, PlayClient, scenario

LINES = {
    "north": ("line-1", "line-2", "line-3"),
    "south": ("line-1", "line-2", "line-3"),
    "radio": ("carrier", "modem", "channel"),
}

POISON = "*666#"
"""A number that no line survives."""

POINTS: tuple[Literal["before", "during", "after"], ...] = ("before", "during", "after")
"""Where in a call lightning may strike."""


class Call(Message):
    """A caller wants to be put through: ``north/line-1``, and the number."""

    line: str
    number: str = "112"


class Dial(Message):
    """The operator lets a line dial."""

    number: str


class Line(Agent, restart=RestartPolicy(redeliver=True)):
    """Puts calls through. Its branch says how often it may fail."""

    @handles(Dial)
    async def dial(self, dial: Dial) -> str:
        """The line's word that it did."""
        await asyncio.sleep(0.005)
        if dial.number == POISON:
            raise RuntimeError("the relay is welded shut")
        return f"{self.name} dialled {dial.number}"


class Branch(Supervisor):
    """Three lines, of which three may fail in ten minutes, all together."""

    children_restart = RestartPolicy(intensity=3, period=600.0, shortest=0.01, longest=0.05)


class North(Branch):
    """Lines that have nothing to do with each other."""

    children = tuple(Child(Line, name=name) for name in LINES["north"])


class South(Branch):
    """Lines that are set up together."""

    strategy = "one_for_all"
    children = tuple(Child(Line, name=name) for name in LINES["south"])


class Radio(Branch):
    """Each stands on the one before."""

    strategy = "rest_for_one"
    children = tuple(Child(Line, name=name) for name in LINES["radio"])


class Exchange(Supervisor):
    """The branches."""

    children = (Child(North, name="north"), Child(South, name="south"), Child(Radio, name="radio"))
    children_restart = RestartPolicy(intensity=6, period=600.0, shortest=0.01, longest=0.05)


class Operator(
    Agent, concurrency=32, restart=RestartPolicy(intensity=3, period=10.0, pause=0.5, shortest=0.01, longest=0.05)
):
    """Whom the callers ask."""

    async def on_start(self) -> None:
        """Build the exchange; also when this is a restart, since it went down with the operator before."""
        await self.spawn(Exchange, name="exchange")

    @handles(Call)
    async def connect(self, call: Call) -> Any:
        """What the line says."""
        return await self.ask(_path(call.line), Dial(call.number), timeout=2.0)


swarm = Swarm(agents=[Operator])


@scenario
async def each_branch_by_its_strategy(play: Play) -> None:
    """One crash in each branch: who is restarted with the line that failed is what the strategy says."""
    caller = await play.client("caller")
    expected = {
        "north/line-2": ("line-2",),
        "south/line-2": ("line-1", "line-2", "line-3"),
        "radio/modem": ("modem", "channel"),
    }
    for line, restarted in expected.items():
        play.faults.crash(_path(line), when="before")
        await _rings(caller, line)
        branch = line.partition("/")[0]
        await play.eventually(lambda: _whole(play), text=f"{branch} is whole again")
        names = sorted({_short(each) for each in play.transcript.lives("restarted", _path(f"{branch}/*"))})
        play.check(
            f"{line} took along who it should", names == sorted(f"{branch}/{each}" for each in restarted), str(names)
        )
    _no_more_than_allowed(play)


@scenario
async def one_crash_too_many(play: Play) -> None:
    """The fourth failure in north: the branch gives up and is started anew, and nobody else notices."""
    caller = await play.client("caller")
    play.faults.crash(_path("north/line-1"), kind=Dial, when="before", times=8)
    for _ in range(2):  # each is tried twice
        await _rings(caller, "north/line-1")
    await play.eventually(lambda: play.transcript.lives("gave up", _path("north/line-1")), text="north gave up")
    await play.eventually(lambda: _whole(play), text="the tree is whole again")
    play.check("north itself was restarted, once", len(play.transcript.lives("restarted", _path("north"))) == 1)
    _left_alone(play, "south")
    _left_alone(play, "radio")
    _no_more_than_allowed(play)


@scenario
async def poison_is_put_aside(play: Play) -> None:
    """A call that kills its line, twice: the caller hears why, the call is a dead letter, and others get through."""
    caller, other = await play.client("caller"), await play.client("other")
    poisoned = caller.start(Call("radio/channel", POISON))
    answers = [await _rings(other, f"north/{name}") for name in LINES["north"]]
    play.check("others get through", answers == ["ok"] * 3, str(answers))
    try:
        await poisoned
        play.check("poison is no answer", condition=False)
    except GramiError as error:
        play.check("the caller hears why", "welded shut" in str(error), str(error))
    lost = play.transcript.lost(_path("radio/channel"))
    play.check("it is quarantined, once", [each.reason for each in lost] == ["poison"], str(lost))
    failed = play.transcript.lives("failed", _path("radio/channel"))
    play.check("after two tries", len(failed) == 2, str(len(failed)))
    await play.eventually(lambda: _whole(play), text="the line is back")
    play.check("and dials again", await _rings(other, "radio/channel") == "ok")


@scenario
async def a_storm_passes(play: Play) -> None:
    """Lines crash at every point of a call, in all branches but one, while six callers go on calling."""
    spared = "south"
    for number, line in enumerate(_lines(without=spared)):
        play.faults.crash(_path(line), kind=Dial, when=POINTS[number % 3], on_message=2 - number % 2, times=2)
    play.faults.kill(_path("north/line-1"), kind=Dial)
    callers = [await play.client(f"caller-{number}") for number in range(1, 7)]
    calls = [asyncio.create_task(_calls(each, number * 8 // 5)) for number, each in enumerate(callers)]
    await asyncio.sleep(0.02)
    play.check("poison is never put through", await _rings(callers[0], "radio/carrier", POISON) != "ok")
    outcomes = [outcome for each in calls for outcome in await each]
    play.check("every call has an answer or an error", len(outcomes) == 6 * 9 and all(outcomes), str(outcomes))
    await play.eventually(lambda: _whole(play), within=10.0, text="the tree is whole again")
    _no_more_than_allowed(play)
    _left_alone(play, spared)
    for rule in play.faults.rules:
        rule.undo()
    answers = [await _rings(callers[0], line) for line in _lines()]
    play.check("every line dials again", answers == ["ok"] * 9, str(answers))


@scenario
async def whatever_happens(play: Play) -> None:
    """Under any faults: every call ends, nothing is restarted more often than allowed, and the tree is whole again."""
    callers = [await play.client(f"caller-{number}") for number in range(1, 4)]
    calls = [asyncio.create_task(_calls(each, number)) for number, each in enumerate(callers)]
    outcomes = [outcome for each in calls for outcome in await each]
    play.check("every call has an answer or an error", len(outcomes) == 3 * 9 and all(outcomes), str(outcomes))
    await play.eventually(lambda: _whole(play), within=30.0, text="the tree is whole again")
    _no_more_than_allowed(play)


# --- calling ---


async def _rings(client: PlayClient, line: str, number: str = "112") -> str:
    """Call; ``ok``, or the code of the error."""
    try:
        await client.request(Call(line, number), timeout=8.0)
    except GramiError as error:
        return str(error.error_code)
    return "ok"


async def _calls(client: PlayClient, first: int) -> list[str]:
    """Call every line once, each caller in another order."""
    lines = list(_lines())
    return [await _rings(client, line) for line in (*lines[first:], *lines[:first])]


def _lines(without: str = "") -> Iterator[str]:
    return (f"{branch}/{line}" for branch, lines in LINES.items() for line in lines if branch != without)


# --- looking at the tree ---


def _path(name: str) -> str:
    return f"operator/exchange/{name}"


def _short(life: Life) -> str:
    return life.actor.removeprefix(_path(""))


def _whole(play: Play) -> bool:
    """Whether every supervisor and every line is there, and runs."""
    states = {each.name: each.state for root in play.system.tree() for each in _below(root)}
    wanted = ["operator", "operator/exchange", *map(_path, (*LINES, *_lines()))]
    return all(states.get(name) == "running" for name in wanted)


def _below(info: Any) -> Iterator[Any]:
    yield info
    for child in info.children:
        yield from _below(child)


def _left_alone(play: Play, branch: str) -> None:
    lives = [each for each in _lives(play) if _path(branch) in each.actor and each.stage != "started"]
    play.check(f"{branch} was left alone", not lives, str(lives[:1]))


def _lives(play: Play) -> list[Life]:
    return [each for each in play.transcript.entries if isinstance(each, Life)]


def _no_more_than_allowed(play: Play) -> None:
    """No supervisor restarted more often than it may, from one of its starts to the next."""
    for supervisor, allowed in (("operator/exchange", 6), *((_path(branch), 3) for branch in LINES)):
        most = max(map(_restarts, _spans(play, supervisor)))
        play.check(f"{supervisor} restarted no more than {allowed} times", most <= allowed, f"{most} times")


def _spans(play: Play, supervisor: str) -> Iterator[list[Life]]:
    """The restarts of a supervisor's own children, in each of its lives."""
    span: list[Life] = []
    for each in _lives(play):
        if each.actor == supervisor and each.stage in {"started", "restarted"}:
            yield span
            span = []
        elif each.stage == "restarted" and each.actor.rpartition("/")[0] == supervisor:
            span.append(each)
    yield span


def _restarts(span: list[Life]) -> int:
    """How often a supervisor restarted something; who is taken along is no restart more."""
    by_child = Counter(each.actor for each in span)
    alone = not any(_path(branch) in child for branch in ("south/", "radio/") for child in by_child)
    return by_child.total() if alone else max(by_child.values())
