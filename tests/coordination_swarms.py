"""Small swarms, one for each way of working together, and what must be true of them whatever goes wrong."""

from __future__ import annotations

import asyncio
import operator
from collections import Counter
from collections.abc import Coroutine, Iterator
from functools import partial
from typing import Any

from grami_actors import Agent, AgentCrashed, GramiError, Reject, Swarm, handles
from grami_actors.coordination import (
    Answer,
    AnswerQuestion,
    Award,
    Ballot,
    Bidder,
    Blackboard,
    Each,
    EntryChanged,
    Journal,
    Judge,
    ListQuestions,
    People,
    Question,
    Refuse,
    Retries,
    Rounds,
    Rule,
    Rules,
    Sagas,
    Speak,
    Step,
    ask_person,
    contract,
    debate,
    gather,
    group_chat,
    handoff,
    map_reduce,
    parallel,
    pipeline,
    saga,
    update,
    vote,
)
from grami_actors.scenario.play import Play
from tests.coordination_trial import (
    LEDGER,
    MEMBER,
    NAMES,
    WORKERS,
    Ann,
    Boss,
    Check,
    Go,
    Pattern,
    Trial,
    Undo,
    Work,
    Worker,
    three_at_once,
)

# --- pipeline ---


class Foreman(Boss, name="boss"):
    @handles(Go)
    async def go(self, go: Go) -> Any:
        by = [(name, partial(Work, go.key)) for name in NAMES[1:]]
        return await pipeline(self, Work(go.key), "ann", *by, timeout=MEMBER)


def check_pipeline(trial: Trial) -> Iterator[str]:
    for each in trial.requests:
        by = LEDGER.by(each.key)
        if by != list(NAMES[: len(by)]):
            yield f"{each.key} went through {by}"
        if each.answer is not None and (each.answer != NAMES or len(by) < len(NAMES)):
            yield f"{each.key} came back with {each.answer}, done by {by}"


# --- parallel, gather ---


class Manager(Boss, name="boss"):
    @handles(Go)
    async def go(self, go: Go) -> Any:
        return await parallel(self, dict.fromkeys(NAMES, Work(go.key)), timeout=MEMBER)


def check_parallel(trial: Trial) -> Iterator[str]:
    for each in trial.requests:
        for outcome, name in zip(each.answer or (), NAMES, strict=False):
            if outcome.name != name or (outcome.ok and (outcome.value != (name,) or name not in LEDGER.by(each.key))):
                yield f"{each.key} has {outcome}"
            if not trial.struck and not outcome.ok:
                yield f"{each.key} has {outcome} without a fault"
        if each.answer is not None and len(each.answer) != len(NAMES):
            yield f"{each.key} has {len(each.answer)} outcomes"


def gatherer(want: Any) -> type[Boss]:
    class Gatherer(Boss, name="boss"):
        @handles(Go)
        async def go(self, go: Go) -> Any:
            return await gather(self, dict.fromkeys(NAMES, Work(go.key)), want=want, timeout=MEMBER)

    return Gatherer


def check_gather(count: int) -> Check:
    def check(trial: Trial) -> Iterator[str]:
        for each in trial.requests:
            if each.answer is None:
                continue
            names = [outcome.name for outcome in each.answer]
            if len(names) != count or names != [name for name in NAMES if name in names]:
                yield f"{each.key} has answers of {names}"
            if not all(outcome.ok and outcome.name in LEDGER.by(each.key) for outcome in each.answer):
                yield f"{each.key} has {each.answer}"

    return check


# --- map and reduce ---

ITEMS = range(4)


class Mapper(Worker, instances=2):
    @handles(Work)
    async def work(self, work: Work) -> int:  # type: ignore[override]
        await asyncio.sleep(0.01)
        LEDGER.note(self, work.key)
        return 2 ** int(work.key[-1])


class Reducer(Boss, name="boss"):
    @handles(Go)
    async def go(self, go: Go) -> Any:
        left: list[int] = []
        each = Each(width=2, timeout=MEMBER, attempts=2, skip=lambda number, _: left.append(number))
        items = (Work(f"{go.key}/{item}") for item in ITEMS)
        return await map_reduce(self, "mapper", items, operator.or_, 0, each), tuple(left)


def check_map_reduce(trial: Trial) -> Iterator[str]:
    for each in trial.requests:
        if each.answer is None:
            continue
        found, left = each.answer
        for item in ITEMS:
            if bool(found & 2**item) == (item in left):
                yield f"{each.key} has {item} among {found:b}, and left out {left}"
            if item not in left and not LEDGER.by(f"{each.key}/{item}"):
                yield f"nobody did {item} of {each.key}"
        if left and not trial.struck:
            yield f"{each.key} left out {left} without a fault"


# --- handoff ---


class Front(Boss, name="boss"):
    @handles(Go)
    def go(self, go: Go) -> None:
        handoff(self, "desk", go)


class Desk(Agent):
    @handles(Go)
    async def go(self, go: Go) -> None:
        await asyncio.sleep(0.01)
        handoff(self, "ann", Work(go.key, ("desk",)))


def check_handoff(trial: Trial) -> Iterator[str]:
    for each in trial.requests:
        if each.answer is not None and (each.answer != ("desk", "ann") or LEDGER.by(each.key) != ["ann"]):
            yield f"{each.key} came back with {each.answer}, done by {LEDGER.by(each.key)}"


# --- conversations ---


class Speaker(Agent):
    @handles(Speak)
    async def speak(self, speak: Speak) -> str:
        await asyncio.sleep(0.01)
        LEDGER.note(self, f"{speak.topic}/{len(speak.turns)}")
        return f"{self.name} {len(speak.turns)}"


class Dee(Speaker): ...


class Eva(Speaker): ...


class Referee(Agent):
    @handles(Judge)
    async def judge(self, judge: Judge) -> Any:
        await asyncio.sleep(0.01)
        return f"after {len(judge.turns)}" if judge.last else None


class Host(Boss, name="boss"):
    @handles(Go)
    async def go(self, go: Go) -> Any:
        return await group_chat(self, ["dee", "eva"], go.key, rules=Rules(turns=3, timeout=MEMBER))


class Chair(Boss, name="boss"):
    @handles(Go)
    async def go(self, go: Go) -> Any:
        return await debate(self, ["dee", "eva"], "referee", go.key, Rounds(most=2, timeout=0.8, early=True))


def check_turns(trial: Trial, key: str, turns: Any, step: int) -> Iterator[str]:
    for number, turn in enumerate(turns):
        before = number - number % step
        if turn.speaker != ("dee", "eva")[number % 2]:
            yield f"{turn} of {key} was out of turn"
        if not turn.error and (
            turn.said != f"{turn.speaker} {before}" or not LEDGER.done[turn.speaker, f"{key}/{before}"]
        ):
            yield f"{key} has {turn} after {before}"
        if turn.error and not trial.struck:
            yield f"{key} has {turn} without a fault"


def check_chat(trial: Trial) -> Iterator[str]:
    for each in trial.requests:
        if each.answer is not None:
            yield from check_turns(trial, each.key, each.answer, 1)
            if len(each.answer) != 3:
                yield f"{each.key} had {len(each.answer)} turns"


def check_debate(trial: Trial) -> Iterator[str]:
    for each in trial.requests:
        if each.answer is not None:
            yield from check_turns(trial, each.key, each.answer.turns, 2)
            if (each.answer.decision, each.answer.rounds, len(each.answer.turns)) != ("after 4", 2, 4):
                yield f"{each.key} ended as {each.answer}"


# --- vote ---


class Voter(Agent):
    @handles(Ballot)
    async def vote(self, ballot: Ballot) -> str:
        await asyncio.sleep(0.01)
        LEDGER.note(self, ballot.question)
        return "no" if self.name == "fay" else "yes"


class Fay(Voter): ...


class Gus(Voter): ...


class Hal(Voter): ...


class Clerk(Boss, name="boss"):
    @handles(Go)
    async def go(self, go: Go) -> Any:
        ballot = Ballot(go.key, ("yes", "no"))
        return await vote(self, VOTERS, ballot, rule=Rule("majority"), quorum=2, timeout=MEMBER)


VOTERS = ["fay", "gus", "hal"]


def check_vote(trial: Trial) -> Iterator[str]:
    for each in trial.requests:
        if (poll := each.answer) is None:
            continue
        cast = Counter(poll.votes.values())
        if sorted([*poll.votes, *poll.abstained]) != VOTERS or len(poll.votes) < 2:
            yield f"{each.key} has {poll.votes} and {poll.abstained}"
        if poll.tally.counts != {"yes": cast["yes"], "no": cast["no"]}:
            yield f"{each.key} counts {poll.tally.counts} of {poll.votes}"
        if poll.tally.winner != ("yes" if cast["yes"] == 2 else None):
            yield f"{each.key} is won by {poll.tally.winner} with {cast}"
        if not all(LEDGER.done[voter, each.key] for voter in poll.votes):
            yield f"{each.key} has a vote that nobody gave: {poll.votes}"
        if poll.abstained and not trial.struck:
            yield f"{each.key} has {poll.abstained} without a fault"


# --- contract net ---


class Painter(Bidder):
    """Sets something aside for each bid, until it knows more."""

    def __init__(self, price: int) -> None:
        self.price = price
        self.reserved: set[str] = set()

    def bid(self, call: Any) -> int:
        self.reserved.add(call.contract)
        return self.price

    async def perform(self, award: Award) -> Any:
        await asyncio.sleep(0.01)
        self.reserved.discard(award.contract)
        LEDGER.note(self, award.task)
        return self.name

    def refused(self, refuse: Refuse) -> None:
        self.reserved.discard(refuse.contract)


class Ida(Painter): ...


class Jim(Painter): ...


class Owner(Boss, name="boss"):
    @handles(Go)
    async def go(self, go: Go) -> Any:
        return await contract(self, go.key, ["ida", "jim"], bid_within=0.5, perform_within=MEMBER)


def check_contract(trial: Trial) -> Iterator[str]:
    # A task may be done by both when the outcome of the first award is unknown: the contract's number tells them.
    for each in trial.requests:
        by = LEDGER.by(each.key)
        if each.answer is not None and each.answer not in by:
            yield f"{each.key} was not done by {each.answer}: {by}"
        if len(by) > 1 and not trial.struck:
            yield f"{each.key} was done by {by} without a fault"
    for name in ("ida", "jim"):
        held = trial.world.system.table.cells[name].actor.reserved
        if held and not trial.world.faults.counts["drop"]:  # a refusal that is lost is no answer that is awaited
            yield f"{name} still reserves {len(held)}"


# --- blackboard ---


class Counting(Boss, name="boss"):
    @handles(Go)
    async def go(self, go: Go) -> Any:
        await asyncio.sleep(0.01)
        return (await update(self, "blackboard", "hits", lambda hits: [*(hits or ()), go.key])).value


class Reader(Agent, subscribes=("blackboard.>",)):
    @handles(EntryChanged)
    def changed(self, entry: EntryChanged) -> None:
        LEDGER.changes.append(entry.change)


def check_blackboard(trial: Trial) -> Iterator[str]:
    board: Any = trial.world.system.table.cells["blackboard"].actor
    hits = board._entry("hits").value or []
    # A request that ended without an answer may be among them or not, and no request is there twice.
    if len({*hits}) < len(hits):
        yield f"the board has {hits}"
    for each in trial.requests:
        if each.answer is not None and (each.answer[-1] != each.key or hits[: len(each.answer)] != each.answer):
            yield f"{each.key} was told {each.answer}, and the board has {hits}"
    if LEDGER.changes != sorted({*LEDGER.changes}) or len(LEDGER.changes) > len(hits):
        yield f"the changes were told as {LEDGER.changes} of {len(hits)}"
    if len(LEDGER.changes) < len(hits) and not trial.struck:
        yield f"of {len(hits)} changes {LEDGER.changes} were told"


# --- a person in the loop ---


class Cashier(Boss, name="boss"):
    @handles(Go)
    async def go(self, go: Go) -> Answer:
        return await ask_person(self, Question(go.key, "Refund?", ("yes", "no")))


async def a_person_answers(trial: Trial) -> None:
    play = Play(trial.world)
    try:
        person = await play.client("person")
        asking = asyncio.get_running_loop().create_task(three_at_once(trial))
        while not asking.done():
            await asyncio.sleep(0.4)
            for question in await _or(person.request(ListQuestions(), timeout=1.0), []):
                await _or(person.request(AnswerQuestion(question["key"], "yes", "person"), timeout=1.0), None)
        await asking
    finally:
        await play.close()


async def _or(asked: Coroutine[Any, Any, Any], otherwise: Any) -> Any:
    try:
        return await asked
    except GramiError:
        return otherwise


def not_asked_again(trial: Trial) -> Iterator[str]:
    """Who was told of a crash of those that are to be asked again."""
    for each in trial.requests:
        if isinstance(each.error, AgentCrashed) and not each.error.message.startswith("boss"):
            yield f"{each.key} ended with {each.error!r}"


def check_people(trial: Trial) -> Iterator[str]:
    yield from not_asked_again(trial)
    people: Any = trial.world.system.table.cells["people"].actor
    for each in trial.requests:
        if each.gave_up and not trial.struck and people._journal.version(each.key):
            yield f"the question {each.key} was not taken back"
        if each.answer is not None and each.answer.answer != "yes":
            yield f"{each.key} was answered {each.answer}"
    if people._waiting or people._waiters:
        yield f"{people._waiters} still wait for people"
    if not trial.struck and people._open():
        yield f"these are left open: {people._open()}"


# --- saga ---

PLACES = ("hotel", "bank", "airline")


class Place(Agent):
    """Does and undoes; what comes after its own undo is refused, and undoing twice is undoing once."""

    @handles(Work)
    async def work(self, work: Work) -> str:
        await asyncio.sleep(0.01)
        if work.key in LEDGER.refused or (self.name == "airline" and work.key.startswith("r2")):
            raise Reject("AGENT_EXECUTION_FAILED", "full")
        LEDGER.note(self, work.key)
        return self.name

    @handles(Undo)
    def undo(self, undo: Undo) -> None:
        LEDGER.refused.add(undo.key)
        LEDGER.done.pop((self.name, undo.key), None)


class Hotel(Place): ...


class Bank(Place): ...


class Airline(Place): ...


class Traveller(Boss, name="boss"):
    @handles(Go)
    async def go(self, go: Go) -> Any:
        return await saga(self, [Step(place, place, Work, Undo, timeout=MEMBER) for place in PLACES], key=go.key)


def check_saga(trial: Trial) -> Iterator[str]:
    yield from not_asked_again(trial)
    sagas: Any = trial.world.system.table.cells["sagas"].actor
    for each in trial.requests:
        record = sagas._record(each.key)
        done = [place for place in PLACES if LEDGER.done[place, f"{each.key}/{place}"]]
        if record is not None and record.state not in {"done", "undone"}:
            yield f"the saga {each.key} is {record.state}: {record.stuck}"
        if done not in ([], list(PLACES)) or (done == []) != (record is None or record.state == "undone"):
            yield f"of the saga {each.key} is left: {done}, which is {record and record.state}"
        if each.answer is not None and not done:
            yield f"the saga {each.key} was answered with {each.answer}"
    LEDGER.done += Counter()  # reading a count that is none must not make one


async def steps_that_are_refused(trial: Trial) -> None:
    await three_at_once(trial)
    # The last one is refused by design.
    trial.requests = [each for each in trial.requests if each.key != "r2" or each.answer is not None or trial.struck]


PATTERNS = {
    "pipeline": Pattern(Swarm([*WORKERS, Foreman]), check_pipeline),
    "parallel": Pattern(Swarm([*WORKERS, Manager]), check_parallel),
    "gather all": Pattern(Swarm([*WORKERS, gatherer("all")]), check_gather(3)),
    "gather first": Pattern(Swarm([*WORKERS, gatherer("first")]), check_gather(1)),
    "gather a quorum": Pattern(Swarm([*WORKERS, gatherer(2)]), check_gather(2)),
    # An item that is tried again may be done twice, by one or by two: its key says that it is the same one.
    "map and reduce": Pattern(Swarm([Mapper, Reducer]), check_map_reduce, most=2),
    "handoff": Pattern(Swarm([Ann, Desk, Front]), check_handoff),
    "group chat": Pattern(Swarm([Dee, Eva, Host]), check_chat),
    "debate": Pattern(Swarm([Dee, Eva, Referee, Chair]), check_debate),
    "vote": Pattern(Swarm([Fay, Gus, Hal, Clerk]), check_vote),
    "contract net": Pattern(Swarm([partial(Ida, 2), partial(Jim, 3), Owner]), check_contract),
    "blackboard": Pattern(Swarm([partial(Blackboard, Journal()), Reader, Counting]), check_blackboard),
    "person in the loop": Pattern(Swarm([partial(People, Journal()), Cashier]), check_people, a_person_answers),
    "saga": Pattern(
        Swarm(
            [Hotel, Bank, Airline, Traveller, partial(Sagas, Journal(), Retries(tries=12, timeout=2.0, longest=4.0))]
        ),
        check_saga,
        steps_that_are_refused,
    ),
}
"""All of them, by name."""
