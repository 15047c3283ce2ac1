"""Is every ask answered exactly once, while actors are stopped, killed, fail and are spawned anew? Threads try it out.

The interpreter switches threads as often as it can. Each ask ends as a value or a named error; each tell is handled,
refused at the sender, or a dead letter. What does not add up is a loss, and the exit code is 1.

    python benchmarks/stress.py --asks 1000000 --threads 8 --seed 1
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import faulthandler
import itertools
import random
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from grami_actors.actor import Actor
from grami_actors.errors import AgentUnavailable, DeadlineExceeded, GramiError, MailboxFull
from grami_actors.future import Future
from grami_actors.restarts import RestartPolicy
from grami_actors.system import ActorSystem
from grami_actors.telemetry import DeadLetter

SWITCH_INTERVAL = 1e-6
PATIENCE = 60.0
"""Seconds without any progress that are a hang."""

BATCH = 32
"""Asks that a thread has under way at once when it does not block on each."""


class Planned(Exception):
    """What an actor raises when it is told to fail."""


class Echo(Actor):
    """Answers with what it gets, at once or after a turn of its loop; counts what it began to handle."""

    mailbox = 64
    restart = RestartPolicy(intensity=1_000_000, period=0.05, shortest=0.0, longest=0.0)

    def __init__(self, begun: Any) -> None:
        super().__init__()
        self.begun = begun

    def on_receive(self, message: Any) -> Any:
        kind, waits, fails, content = message
        next(self.begun[kind])
        if waits:
            return self.later(fails, content)
        if fails:
            raise Planned
        return content

    async def later(self, fails: bool, content: Any) -> Any:  # noqa: FBT001 - as it stands in the message
        await asyncio.sleep(0)
        if fails:
            raise Planned
        return content


class EchoOnThread(Echo):
    lane = "thread"


class EchoLatest(Echo):
    overflow = "drop_oldest"
    mailbox = 4


class EchoLatestOnThread(EchoLatest):
    lane = "thread"


class EchoPatient(Echo):
    overflow = "wait"
    mailbox = 1


class EchoWide(Echo):
    lane = "thread"
    concurrency = 3
    overflow = "wait"
    mailbox = 4


KINDS: tuple[type[Echo], ...] = (Echo, EchoOnThread, EchoLatest, EchoLatestOnThread, EchoPatient, EchoWide)


@dataclass
class Tally:
    """What happened; one thread's, or all of it."""

    outcomes: Counter[str] = field(default_factory=Counter)
    asks: int = 0
    tells: int = 0
    refused_tells: int = 0
    unhandled_asks: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.outcomes += other.outcomes
        self.asks += other.asks
        self.tells += other.tells
        self.refused_tells += other.refused_tells
        self.unhandled_asks += other.unhandled_asks
        self.wrong += other.wrong


class Asker(threading.Thread):
    """One ordinary thread that asks and tells."""

    def __init__(self, number: int, asks: int, slots: list[Any], rng: random.Random) -> None:
        super().__init__(name=f"asker-{number}", daemon=True)
        self.number = number
        self.tally = Tally()
        self._asks = asks
        self._slots = slots
        self._rng = rng

    def run(self) -> None:
        try:
            while self.tally.asks < self._asks:
                choice = self._rng.random()
                if choice < 0.2:
                    self._many()
                elif choice < 0.6:
                    self._one()
                else:
                    self._tell()
        except BaseException as error:  # noqa: BLE001 - it is a result
            self.tally.wrong.append(f"{self.name} died of {error!r}")

    def _message(self, kind: str) -> tuple[str, bool, bool, Any]:
        rng = self._rng
        return kind, rng.random() < 0.3, rng.random() < 0.005, (self.number, self.tally.asks)

    def _one(self) -> None:
        message, ref = self._message("ask"), self._rng.choice(self._slots)
        self.tally.asks += 1
        self._note(message, lambda: ref.ask(message))

    def _many(self) -> None:
        under_way: list[tuple[Any, Future[Any], list[int]]] = []
        for _ in range(min(BATCH, self._asks - self.tally.asks)):
            message = self._message("ask")
            self.tally.asks += 1
            future = self._rng.choice(self._slots).ask(message, block=False)
            settled: list[int] = []
            future.on_done(lambda settled=settled: settled.append(1))
            under_way.append((message, future, settled))
        for message, future, settled in under_way:
            self._note(message, future.get)
            # Whoever answers wakes the getter and calls back one after the other: give it the time to do both.
            until = time.monotonic() + PATIENCE
            while not settled and time.monotonic() < until:
                time.sleep(0)
            if settled != [1]:
                self.tally.wrong.append(f"{message} was answered {len(settled)} times")

    def _note(self, message: Any, answer: Any) -> None:
        try:
            value = answer()
        except Planned:
            self.tally.outcomes["Planned"] += 1
            if not message[2]:
                self.tally.wrong.append(f"{message} failed, and was not to")
        except DeadlineExceeded as error:
            self.tally.wrong.append(f"{message} was lost: {error}")
        except GramiError as error:
            self.tally.outcomes[type(error).__name__] += 1
            if isinstance(error, (AgentUnavailable, MailboxFull)) and "while it handled" not in error.message:
                self.tally.unhandled_asks += 1
        else:
            self.tally.outcomes["value"] += 1
            if value != message[3]:
                self.tally.wrong.append(f"{message} was answered {value!r}")

    def _tell(self) -> None:
        self.tally.tells += 1
        try:
            self._rng.choice(self._slots).tell(self._message("tell"))
        except (AgentUnavailable, MailboxFull):
            self.tally.refused_tells += 1


class Chaos:
    """Ends actors in every way there is, and starts others in their place."""

    def __init__(self, system: ActorSystem, slots: list[Any], begun: Any, rng: random.Random) -> None:
        self._system = system
        self._slots = slots
        self._begun = begun
        self._rng = rng
        self.done: Counter[str] = Counter()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._rng.random() * 0.01)
            place = self._rng.randrange(len(self._slots))
            await self._strike(place, self._rng.choice(("stop", "kill", "drain", "suspend", "stop_from_thread")))

    async def _strike(self, place: int, how: str) -> None:
        ref, system = self._slots[place], self._system
        if how == "kill" and ref._cell.spec.lane == "thread":
            how = "stop"
        self.done[how] += 1
        if how == "kill":
            system.kill(ref)
        elif how == "suspend":
            system.suspend(ref)
            await asyncio.sleep(0.001)
            system.resume(ref)
        else:
            if how == "stop":
                await system.stop(ref)
            elif how == "drain":
                await system.drain(ref)
            else:
                await asyncio.to_thread(ref.stop)
            self._slots[place] = await system.spawn(KINDS[place % len(KINDS)], self._begun)


async def _play(asks: int, threads: int, seed: int, report: Any) -> Tally:
    rng = random.Random(seed)
    begun = {"ask": itertools.count(), "tell": itertools.count()}
    buried: dict[str, Any] = {}
    async with ActorSystem(rng=random.Random(seed), slow_turn=None) as system:
        system.bus.subscribe(lambda letter: next(buried.setdefault(letter.reason, itertools.count())), DeadLetter)
        slots: list[Any] = [await system.spawn(kind, begun) for kind in KINDS]
        chaos = Chaos(system, slots, begun, rng)
        share = [asks // threads + (number < asks % threads) for number in range(threads)]
        askers = [Asker(number, share[number], slots, random.Random(rng.random())) for number in range(threads)]
        havoc = asyncio.create_task(chaos.run())
        for asker in askers:
            asker.start()
        hung = await _watch(askers, report)
        havoc.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await havoc
    total = Tally()
    for asker in askers:
        total.add(asker.tally)
    total.wrong += hung
    counts = {name: next(count) for name, count in (*begun.items(), *buried.items())}
    _balance(total, counts)
    if report is not None:
        report(f"outcomes of {total.asks:,} asks: {dict(total.outcomes.most_common())}")
        report(f"tells: {total.tells:,}, refused {total.refused_tells:,}; begun and dead letters: {counts}")
        report(f"chaos: {dict(chaos.done)}")
    return total


async def _watch(askers: list[Asker], report: Any) -> list[str]:
    """Wait until all are done; what hangs is returned."""
    begun = progress = time.monotonic()
    said, last = 0, -1
    while alive := [asker for asker in askers if asker.is_alive()]:
        await asyncio.sleep(0.02)
        asked = sum(asker.tally.asks for asker in askers)
        now = time.monotonic()
        if asked != last:
            last, progress = asked, now
        elif now - progress > PATIENCE:
            faulthandler.dump_traceback()
            return [f"{asker.name} hangs" for asker in alive]
        if report is not None and now - begun > 10 * (said + 1):
            said += 1
            report(f"{asked:,} asks after {now - begun:.0f} s")
    return []


def _balance(total: Tally, counts: dict[str, int]) -> None:
    """Does it add up? Dead letters are of tells only: an ask that is not handled fails."""
    ended = sum(total.outcomes.values())
    if ended != total.asks:
        total.wrong.append(f"{total.asks} asks, and {ended} answers")
    if total.asks != counts["ask"] + total.unhandled_asks:
        total.wrong.append(f"{total.asks} asks: {counts['ask']} begun, {total.unhandled_asks} refused or given up")
    late = counts.get("late_reply", 0)
    # What was begun and then ended with its actor is a dead letter too ("rejected").
    dead = sum(count for reason, count in counts.items() if reason not in {"ask", "tell", "late_reply", "rejected"})
    if late:
        total.wrong.append(f"{late} answers came late")
    if total.tells != counts["tell"] + dead + total.refused_tells:
        total.wrong.append(f"{total.tells} tells: {counts['tell']} begun, {dead} dead, {total.refused_tells} refused")


def play(asks: int, threads: int, seed: int, report: Any = None) -> Tally:
    """Play it; what is in ``wrong`` afterwards was lost, doubled or hung."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL)
    try:
        return asyncio.run(_play(asks, threads, seed, report))
    finally:
        sys.setswitchinterval(before)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--asks", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    begun = time.monotonic()
    total = play(options.asks, options.threads, options.seed, lambda line: print(line, flush=True))
    seconds = time.monotonic() - begun
    print(f"{options.asks:,} asks by {options.threads} threads in {seconds:.1f} s: {options.asks / seconds:,.0f} /s")
    for wrong in total.wrong[:20]:
        print("WRONG:", wrong)
    print("FAILED" if total.wrong else "nothing lost, nothing doubled, nothing hung")
    return 1 if total.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
