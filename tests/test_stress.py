"""Threads against what works without a lock, with the interpreter switching between them as often as it can."""

from __future__ import annotations

import itertools
import runpy
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from grami_actors.errors import Cancelled, GramiError, MailboxFull
from grami_actors.future import Future
from grami_actors.mailbox import Closed, Mailbox
from grami_actors.messages import Envelope, Scope

STRESS = Path(__file__).parents[1] / "benchmarks" / "stress.py"
ROUNDS = 250
LONG = 30.0


@pytest.fixture(autouse=True)
def switching() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def race(make: Callable[[], Any], parts: list[Callable[[Any], Any]], check: Callable[[Any, list[Any]], None]) -> None:
    """Let every part work on what was made, each in a thread and all at once; check; and so on, many times."""
    gate = threading.Barrier(len(parts) + 1, timeout=LONG)
    made: list[Any] = [None]
    results: list[Any] = [None] * len(parts)

    def work(place: int, part: Callable[[Any], Any]) -> None:
        for _ in range(ROUNDS):
            gate.wait()
            try:
                results[place] = part(made[0])
            except BaseException as error:  # noqa: BLE001 - it is looked at in the test's thread
                results[place] = error
            gate.wait()

    threads = [threading.Thread(target=work, args=pair, daemon=True) for pair in enumerate(parts)]
    for thread in threads:
        thread.start()
    for _ in range(ROUNDS):
        made[0] = make()
        gate.wait()
        gate.wait()
        for result in results:
            if isinstance(result, BaseException):
                raise result
        check(made[0], results)
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()


class Post:
    """A mailbox, and where each message went."""

    numbers = itertools.count()

    def __init__(self, overflow: Any, capacity: int, *, eager: bool = False) -> None:
        self.woken = itertools.count()
        self.mailbox = Mailbox(lambda: next(self.woken), capacity, overflow, eager=eager)
        self.accepted: list[Envelope] = []
        self.refused: list[Envelope] = []
        self.displaced: list[Envelope] = []
        self.taken: list[Envelope] = []
        self.left: list[Envelope] = []
        self.withdrawn: list[Envelope] = []
        self.admitted = itertools.count()
        self.sending = threading.Semaphore(0)

    def put(self, envelope: Envelope) -> None:
        try:
            displaced = self.mailbox.put(envelope)
        except (Closed, MailboxFull):
            self.refused.append(envelope)
            return
        self.accepted.append(envelope)
        if displaced is not None:
            self.displaced.append(displaced)

    def park(self, envelope: Envelope) -> None:
        try:
            self.mailbox.park(envelope, lambda: next(self.admitted))
        except Closed:
            self.refused.append(envelope)
        else:
            self.accepted.append(envelope)

    def send(self, how: Callable[[Envelope], None], many: int = 12) -> None:
        sender = next(self.numbers)
        for number in range(many):
            how(Envelope((sender, number)))
        self.sending.release()

    def take(self, senders: int) -> None:
        """Take until all senders are done and nothing is left."""
        done = 0
        while True:
            envelope = self.mailbox.take()
            if envelope is not None:
                self.taken.append(envelope)
            elif done < senders:
                done += self.sending.acquire(timeout=0)
            else:
                return

    def take_as_the_loop_does(self, senders: int) -> None:
        """The same, in the way of a lane that is the only one to take: no call while nothing is first or parked."""
        done = 0
        queue = self.mailbox.measure()
        while True:
            if self.mailbox.first or self.mailbox.parked:
                envelope = self.mailbox.take()
            else:
                envelope = queue.popleft() if queue else None
            if envelope is not None:
                self.taken.append(envelope)
            elif done < senders:
                done += self.sending.acquire(timeout=0)
            else:
                return

    def close(self) -> None:
        self.left.extend(self.mailbox.close())

    def check(self, _: Any = None) -> None:
        """Each accepted message went exactly one way, and each sender's messages were taken in order."""
        self.close()
        ends = [*self.taken, *self.displaced, *self.left, *self.withdrawn]
        assert Counter(map(id, ends)) == Counter(map(id, self.accepted))
        assert not self.mailbox.parked
        order: dict[int, int] = {}
        for envelope in self.taken:
            sender, number = envelope.message
            assert order.get(sender, -1) < number
            order[sender] = number


def checked(post: Post, _: list[Any]) -> None:
    post.check()


@pytest.mark.slow
@pytest.mark.parametrize("end", ["close", "seal"])
@pytest.mark.parametrize(
    "overflow",
    [
        "reject",
        "drop_newest",
        "drop_oldest",
    ],
)
def test_a_message_that_is_put_while_the_mailbox_closes_goes_exactly_one_way(overflow: str, end: str) -> None:
    def finish(post: Post) -> None:
        while len(post.accepted) < 8:
            pass
        if end == "close":
            post.close()
        else:
            last = Envelope((-1, 0))
            post.mailbox.seal(last)
            post.accepted.append(last)

    sends = [lambda post: post.send(post.put)] * 3
    race(lambda: Post(overflow, 10), [*sends, finish], checked)


@pytest.mark.slow
@pytest.mark.parametrize("overflow", ["reject", "drop_oldest", "drop_newest"])
def test_a_message_that_is_put_while_others_are_taken_goes_exactly_one_way(overflow: str) -> None:
    sends = [lambda post: post.send(post.put)] * 3
    race(lambda: Post(overflow, 5), [*sends, lambda post: post.take(3)], checked)


@pytest.mark.slow
def test_several_threads_take_what_several_put() -> None:
    def check(post: Post, _: list[Any]) -> None:
        post.close()
        ends = [*post.taken, *post.left]
        assert Counter(map(id, ends)) == Counter(map(id, post.accepted))

    def take(post: Post) -> None:
        while len(post.taken) + len(post.refused) < 36:
            if (envelope := post.mailbox.take()) is not None:
                post.taken.append(envelope)

    sends = [lambda post: post.send(post.put)] * 3
    race(lambda: Post("reject", 100, eager=True), [*sends, take, take], check)


def parks_get_in(post: Post, _: list[Any]) -> None:
    assert len(post.taken) == len(post.accepted) == 36
    assert next(post.admitted) == 36
    post.check()


@pytest.mark.slow
@pytest.mark.parametrize("capacity", [1, 2, 5])
def test_whoever_parks_while_room_is_made_gets_in(capacity: int) -> None:
    sends = [lambda post: post.send(post.park)] * 3
    race(lambda: Post("wait", capacity), [*sends, lambda post: post.take(3)], parks_get_in)


@pytest.mark.slow
@pytest.mark.parametrize(
    "capacity",
    [
        1,
        2,
        5,
    ],
)
def test_whoever_parks_while_the_loop_lane_makes_room_gets_in(capacity: int) -> None:
    sends = [lambda post: post.send(post.park)] * 3
    race(lambda: Post("wait", capacity), [*sends, lambda post: post.take_as_the_loop_does(3)], parks_get_in)


def test_a_message_that_is_parked_between_the_look_and_the_take_of_the_loop_lane_is_taken_next() -> None:
    mailbox = Mailbox(lambda: None, 1, "wait")
    mailbox.put(Envelope("first"))
    queue = mailbox.measure()
    assert not mailbox.parked
    mailbox.park(Envelope("second"))
    assert queue.popleft().message == "first"
    second = mailbox.take()
    assert second is not None
    assert second.message == "second"


def test_nobody_can_overtake_a_parked_message_while_it_is_let_in() -> None:
    class Watched(deque[Envelope]):
        def append(self, envelope: Envelope) -> None:
            seen.append((envelope.message, mailbox.full))
            super().append(envelope)
            seen.append((envelope.message, mailbox.full))

    seen: list[tuple[Any, bool]] = []
    mailbox = Mailbox(lambda: None, 1, "wait")
    mailbox._queue = Watched()
    mailbox.put(Envelope("first"))
    mailbox.park(Envelope("second"))
    seen.clear()
    mailbox.take()
    assert seen == [("second", True), ("second", True)]


@pytest.mark.slow
@pytest.mark.parametrize("capacity", [1, 4])
def test_what_is_withdrawn_was_not_taken(capacity: int) -> None:
    def send(post: Post) -> None:
        sender = next(post.numbers)
        for number in range(12):
            envelope = Envelope((sender, number))
            post.park(envelope)
            if number % 2 and post.mailbox.withdraw(envelope):
                post.withdrawn.append(envelope)
        post.sending.release()

    race(lambda: Post("wait", capacity), [send, send, lambda post: post.take(2)], checked)


@pytest.mark.slow
def test_what_goes_first_is_taken_or_handed_back_however_the_mailbox_closes() -> None:
    def first(post: Post) -> None:
        for number in range(12):
            envelope = Envelope((0, number))
            try:
                post.mailbox.put_first(envelope)
            except Closed:
                post.refused.append(envelope)
            else:
                post.accepted.append(envelope)
        post.sending.release()

    def finish(post: Post) -> None:
        while len(post.accepted) < 5:
            pass
        post.close()

    race(lambda: Post("reject", 5), [first, lambda post: post.take(1), finish], checked)


@pytest.mark.slow
def test_mail_in_an_idle_mailbox_wakes_somebody() -> None:
    """Whoever takes goes to sleep when there is nothing, as a lane does, and only a wake gets it up again."""

    class Sleepy(Post):
        def __init__(self) -> None:
            super().__init__("reject", 1_000)
            self.signal = threading.Semaphore(0)
            self.mailbox = Mailbox(self.signal.release, 1_000)

        def run(self) -> None:
            while len(self.taken) < 36:
                assert self.signal.acquire(timeout=LONG), "asleep, with mail in the mailbox"
                while (envelope := self.mailbox.take()) is not None:
                    self.taken.append(envelope)

    race(Sleepy, [*[lambda post: post.send(post.put)] * 3, Sleepy.run], checked)


# --- scopes and futures ---


@pytest.mark.slow
def test_what_becomes_a_child_while_its_request_is_cancelled_is_cancelled() -> None:
    def make() -> tuple[Scope, list[Any]]:
        return Scope(), []

    def attach(made: tuple[Scope, list[Any]]) -> None:
        root, children = made
        for _ in range(10):
            child = Future[None]()
            child.bind(None, root, 1e9)  # type: ignore[arg-type]
            below = Scope(child)
            told: list[GramiError] = []
            below.on_cancel(told.append)
            children.append((child, below, told))

    def cancel(made: tuple[Scope, list[Any]]) -> None:
        while len(made[1]) < 5:
            pass
        assert made[0].cancel(Cancelled("stop"))

    def check(made: tuple[Scope, list[Any]], _: list[Any]) -> None:
        root, children = made
        assert len(children) == 20
        for child, below, told in children:
            assert child.error() is root.reason is below.reason is child.reason
            assert told == [root.reason]
        assert not root._children

    race(make, [attach, attach, cancel], check)


@pytest.mark.slow
def test_answers_that_come_while_the_request_is_cancelled_leave_nothing_behind() -> None:
    def make() -> tuple[Scope, list[Future[int]], list[Any]]:
        root = Scope()
        futures = [Future[int]() for _ in range(20)]
        for future in futures:
            future.bind(None, root, 1e9)  # type: ignore[arg-type]
        return root, futures, []

    def answer(made: Any) -> list[bool]:
        return [future.set_result(number) for number, future in enumerate(made[1])]

    def cancel(made: Any) -> None:
        made[0].cancel(Cancelled("stop"))

    def check(made: Any, results: list[Any]) -> None:
        root, futures, _ = made
        for number, future in enumerate(futures):
            answered = [result[number] for result in results[:2]]
            if future.error() is None:
                assert sorted(answered) == [False, True]
                assert future.value() == number
            else:
                assert answered == [False, False]
                assert future.error() is root.reason
        assert not root._children

    race(make, [answer, answer, cancel], check)


@pytest.mark.slow
def test_of_many_who_settle_one_wins_and_each_waiter_is_told_once() -> None:
    class Asked:
        def __init__(self) -> None:
            self.future = Future[int]()
            self.future.bind(None, None, 1e9)  # type: ignore[arg-type]
            self.told = [itertools.count() for _ in range(10)]

    def wait(asked: Asked) -> Any:
        for count in asked.told:
            asked.future.on_done(lambda count=count: next(count))
        return asked.future.get(timeout=LONG)

    def check(asked: Asked, results: list[Any]) -> None:
        won = results[:3]
        assert sorted(won) == [False, False, True]
        assert results[3] == results[4] == asked.future.value() == won.index(True)
        assert [next(count) for count in asked.told] == [2] * 10  # once by each of two who wait

    settles = [lambda asked, number=number: asked.future.set_result(number) for number in range(3)]
    race(Asked, [*settles, wait, wait], check)


@pytest.mark.slow
def test_a_get_that_times_out_at_the_moment_of_the_answer_is_one_or_the_other() -> None:
    def wait(future: Future[str]) -> str:
        try:
            return future.get(timeout=1e-5)
        except Exception as error:  # noqa: BLE001 - one of the two
            return type(error).__name__

    def check(future: Future[str], results: list[Any]) -> None:
        assert set(results[1:]) <= {"answer", "Timeout"}
        assert future.get(timeout=0) == "answer"
        assert not future._waiters

    race(Future[str], [lambda future: future.set("answer"), wait, wait], check)


# --- the whole system ---


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_threads_that_ask_while_actors_come_and_go_get_every_answer_once(seed: int) -> None:
    play = runpy.run_path(str(STRESS))["play"]
    assert play(6_000, 8, seed).wrong == []
