"""The workloads, done by Pykka's ``ThreadingActor``: a thread for each actor.

The process is pinned to one core where the system allows it, because Pykka is faster so: on several, its threads
pass the interpreter's lock back and forth between cores.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import pykka
from measure import ACTORS, NAP, OUTSTANDING, RING, Meter, Run, Sample, check, overhead_ms, rss

if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


class Sink(pykka.ThreadingActor):
    """Counts what it is told, and answers with the count."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def on_receive(self, message: Any) -> int:
        self.count += 1
        return self.count


class Napper(pykka.ThreadingActor):
    """Sleeps as a thread does: there are no coroutines here."""

    def on_receive(self, message: Any) -> Any:
        time.sleep(NAP)
        return message


class Asker(pykka.ThreadingActor):
    def on_receive(self, message: tuple[pykka.ActorRef[Any], int]) -> Any:
        to, count = message
        for number in range(count - 1):
            to.ask(number)
        return to.ask("last")


class Crowd(pykka.ThreadingActor):
    def on_receive(self, message: tuple[list[pykka.ActorRef[Any]], int, int]) -> int:
        refs, outstanding, count = message
        answered = 0
        for _ in range(count // outstanding):
            answers = [refs[number % len(refs)].ask(number, block=False) for number in range(outstanding)]
            answered += len(list(pykka.get_all(answers)))
        return answered


class Hop(pykka.ThreadingActor):
    def __init__(self, done: threading.Event) -> None:
        super().__init__()
        self.done = done
        self.next: pykka.ActorRef[Any] | None = None

    def on_receive(self, message: Any) -> None:
        if not isinstance(message, int):
            self.next = message
        elif message == 0:
            self.done.set()
        else:
            assert self.next is not None
            self.next.tell(message - 1)


def tell(n: int) -> Sample:
    ref = Sink.start()
    with Meter() as meter:
        for number in range(n - 1):
            ref.tell(number)
        check(ref.ask("last"), n)
    return meter.sample(n)


def ask(n: int) -> Sample:
    sink, asker = Sink.start(), Asker.start()
    with Meter() as meter:
        check(asker.ask((sink, n)), n)
    return meter.sample(n)


def _crowd(kind: type[pykka.ThreadingActor], outstanding: int, n: int) -> Meter:
    refs, asker = [kind.start() for _ in range(ACTORS)], Crowd.start()
    with Meter() as meter:
        check(asker.ask((refs, outstanding, n)), n)
    return meter


def outstanding(n: int) -> Sample:
    return _crowd(Sink, OUTSTANDING, n).sample(n)


def fan_out(n: int) -> Sample:
    meter = _crowd(Napper, ACTORS, n)
    return meter.sample(n, overhead_ms=overhead_ms(meter, n // ACTORS, NAP))


def _hops(actors: int, n: int) -> Sample:
    done = threading.Event()
    refs = [Hop.start(done) for _ in range(actors)]
    for number, ref in enumerate(refs):
        ref.ask(refs[(number + 1) % actors])
    with Meter() as meter:
        refs[0].tell(n - 1)
        done.wait()
    return meter.sample(n)


def ping_pong(n: int) -> Sample:
    return _hops(2, n)


def ring(n: int) -> Sample:
    return _hops(RING, n)


def spawn(n: int) -> Sample:
    Sink.start()
    before = rss()
    with Meter() as meter:
        refs = [Sink.start() for _ in range(n)]
    return meter.sample(len(refs), bytes_each=(rss() - before) / n)


def stop(n: int) -> Sample:
    for _ in range(n):
        Sink.start()
    with Meter() as meter:
        pykka.ActorRegistry.stop_all()
    return meter.sample(n)


RUNS: dict[str, Run] = {
    "tell": tell,
    "tell-thread": tell,  # whoever tells is on another thread anyway
    "ask": ask,
    "outstanding": outstanding,
    "ping-pong": ping_pong,
    "ring": ring,
    "spawn-small": spawn,
    "fan-out": fan_out,
    "stop": stop,
}
