"""The mailbox: every envelope has exactly one fate, in order, within the bound, and nobody sleeps on waiting mail."""

from __future__ import annotations

import itertools
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from grami_actors import mailbox as mailbox_module
from grami_actors.errors import MailboxFull
from grami_actors.mailbox import Closed, Mailbox, Overflow
from grami_actors.messages import Envelope
from tests.test_messages import Switch

POLICIES: tuple[Overflow, ...] = ("reject", "wait", "drop_oldest", "drop_newest")


class Model(RuleBasedStateMachine):
    """Any sequence of calls, beside a queue and a waiting line of plain lists."""

    envelopes = Bundle("envelopes")

    @initialize(capacity=st.integers(1, 3), overflow=st.sampled_from(POLICIES), eager=st.booleans())
    def make(self, capacity: int, overflow: Overflow, eager: bool) -> None:
        self.mailbox = Mailbox(self.wake, capacity, overflow, eager=eager)
        self.capacity, self.overflow, self.eager = capacity, overflow, eager
        self.queue: deque[Envelope] = deque()
        self.first: deque[Envelope] = deque()
        self.parked: deque[Envelope] = deque()
        self.closed = self.ended = False
        self.wakes = 0
        self.asleep = True  # nobody takes until there is a wake
        self.forced = self.peak = 0
        self.overtaking = False  # what jumps a waiting line breaks the order of puts, on purpose
        self.numbers: dict[int, int] = {}
        self.fates: dict[int, list[str]] = {}
        self.told: Counter[int] = Counter()
        self.expected_told: Counter[int] = Counter()
        self.taken: list[int] = []

    def wake(self) -> None:
        assert not self.mailbox._lock.locked()
        self.wakes += 1
        self.asleep = False

    def end(self, envelope: Envelope, fate: str) -> None:
        self.fates[envelope.message].append(fate)

    def written(self) -> tuple[Envelope, Callable[[], None]]:
        """One envelope more, and what its sender is told by if it waits for room."""
        number = len(self.fates)
        self.fates[number] = []

        def admitted() -> None:
            assert not self.mailbox._lock.locked()
            self.told[number] += 1

        return Envelope(number), admitted

    @property
    def full(self) -> bool:
        return len(self.queue) >= self.capacity

    @property
    def lies(self) -> bool:
        """Whether there is something to take."""
        return bool(self.first or self.queue)

    @rule(target=envelopes)
    def put(self) -> Envelope:
        envelope, _ = self.written()
        full, before, asleep = self.full, self.wakes, self.asleep
        try:
            displaced = self.mailbox.put(envelope)
        except Closed:
            assert self.closed
            self.end(envelope, "refused")
            return envelope
        except MailboxFull:
            assert full
            assert not self.closed
            assert self.overflow in {"reject", "wait"}
            self.end(envelope, "refused")
            return envelope
        assert not self.closed
        if full:
            assert displaced is not None
            assert displaced is (envelope if self.overflow == "drop_newest" else self.queue.popleft())
            self.end(displaced, "displaced")
            self.overtaking |= bool(self.parked) and displaced is not envelope
        else:
            assert displaced is None
        if displaced is not envelope:
            self.queue.append(envelope)
            assert self.wakes - before == (self.eager or asleep)  # one wake for a whole burst
        return envelope

    @rule(target=envelopes)
    def park(self) -> Envelope:
        envelope, admitted = self.written()
        full, before, asleep = self.full, self.wakes, self.asleep
        try:
            self.mailbox.park(envelope, admitted)
        except Closed:
            assert self.closed
            self.end(envelope, "refused")
            return envelope
        assert not self.closed
        if full:
            self.parked.append(envelope)
            assert self.wakes == before
        else:
            self.queue.append(envelope)
            self.expected_told[envelope.message] += 1
            assert self.wakes - before == (self.eager or asleep)
        return envelope

    @rule(target=envelopes, first=st.booleans())
    def put_whatever_the_bound(self, first: bool) -> Envelope:
        envelope, _ = self.written()
        before, asleep = self.wakes, self.asleep
        try:
            (self.mailbox.put_first if first else self.mailbox.put_any)(envelope)
        except Closed:
            assert self.closed
            self.end(envelope, "refused")
            return envelope
        assert not self.ended
        assert first or not self.closed  # what comes first may belong to the backlog of one that is sealed
        assert self.wakes - before == (self.eager or asleep)
        if first:
            self.first.append(envelope)
        else:
            self.overtaking |= bool(self.parked)
            self.forced += 1
            self.queue.append(envelope)
        return envelope

    @rule()
    def take(self) -> None:
        before = self.wakes
        envelope = self.mailbox.take()
        if envelope is None:
            assert not self.lies
            self.asleep = True
            return
        self.end(envelope, "taken")
        if self.first:
            assert envelope is self.first.popleft()
            assert self.wakes == before
            return
        assert envelope is self.queue.popleft()
        self.taken.append(envelope.message)
        if self.parked and not self.full:
            self.admit(before)

    def admit(self, wakes: int) -> None:
        admitted = self.parked.popleft()
        self.queue.append(admitted)
        self.expected_told[admitted.message] += 1
        assert self.wakes - wakes == int(self.eager)

    @rule(envelope=envelopes)
    def withdraw(self, envelope: Envelope) -> None:
        parked = any(each is envelope for each in self.parked)
        queued = any(each is envelope for each in self.queue)
        before = self.wakes
        assert self.mailbox.withdraw(envelope) is (parked or queued)
        if parked:
            self.parked = deque(each for each in self.parked if each is not envelope)
        elif queued:
            self.queue = deque(each for each in self.queue if each is not envelope)
            if self.parked and not self.full:
                self.admit(before)
        if parked or queued:
            self.end(envelope, "withdrawn")

    @precondition(lambda self: self.parked)
    @rule(place=st.integers(0, 5))
    def withdraw_one_that_waits(self, place: int) -> None:
        self.withdraw(self.parked[place % len(self.parked)])

    @rule()
    def nudge(self) -> None:
        before = self.wakes
        self.mailbox.nudge()
        assert self.wakes - before == self.lies
        self.asleep |= not self.lies

    @rule()
    def measure(self) -> None:
        self.mailbox.measure()
        self.peak = max(self.peak, len(self.queue))

    @precondition(lambda self: len(self.fates) > 6)
    @rule(target=envelopes)
    def seal(self) -> Envelope:
        envelope, _ = self.written()
        before, asleep = self.wakes, self.asleep
        try:
            self.mailbox.seal(envelope)
        except Closed:
            assert self.closed
            self.end(envelope, "refused")
            return envelope
        assert not self.closed
        assert self.wakes - before == (self.eager or asleep)
        self.expected_told.update(each.message for each in self.parked)
        self.queue.extend((*self.parked, envelope))
        self.forced += 1 + len(self.parked)
        self.parked.clear()
        self.closed = True
        return envelope

    @precondition(lambda self: len(self.fates) > 10)
    @rule()
    def close(self) -> None:
        self.close_now()

    def close_now(self) -> None:
        left = self.mailbox.close()
        assert [id(each) for each in left] == [id(each) for each in (*self.first, *self.queue, *self.parked)]
        for envelope in left:
            self.end(envelope, "handed back")
        self.expected_told.update(each.message for each in self.parked)
        self.first.clear()
        self.queue.clear()
        self.parked.clear()
        self.closed = self.ended = True

    @invariant()
    def nobody_sleeps_while_mail_waits(self) -> None:
        assert not (self.asleep and self.lies)

    @invariant()
    def the_bound_is_kept_by_all_that_were_not_forced(self) -> None:
        assert len(self.mailbox) <= self.capacity + self.forced
        assert not self.parked or len(self.mailbox) >= self.capacity

    @invariant()
    def each_sender_that_may_wait_is_told_exactly_once(self) -> None:
        assert +self.told == +self.expected_told

    @invariant()
    def messages_are_taken_in_the_order_they_were_put(self) -> None:
        assert self.overtaking or self.taken == sorted(self.taken)

    @invariant()
    def what_it_says_of_itself_is_true(self) -> None:
        statistics = self.mailbox.statistics()
        assert len(self.mailbox) == len(self.queue)
        assert statistics.depth == len(self.first) + len(self.queue)
        assert self.first or self.mailbox.empty() is not bool(self.queue)
        assert self.mailbox.closed is self.closed
        assert (statistics.parked, statistics.capacity) == (len(self.parked), self.capacity)
        assert statistics.peak == max(self.peak, statistics.depth)

    def teardown(self) -> None:
        if hasattr(self, "mailbox"):
            self.close_now()
            assert self.mailbox.close() == []
            assert [number for number, fates in self.fates.items() if len(fates) != 1] == []


Model.TestCase.settings = settings(
    max_examples=200,
    stateful_step_count=35,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow],
)
TestModel = Model.TestCase


def test_a_mailbox_holds_at_least_one() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Mailbox(lambda: None, 0)


@pytest.mark.parametrize("overflow", POLICIES)
def test_a_full_mailbox_does_what_its_policy_says(overflow: Overflow) -> None:
    mailbox = Mailbox(lambda: None, 2, overflow)
    one, two, three = (Envelope(number) for number in (1, 2, 3))
    mailbox.put(one)
    mailbox.put(two)
    if overflow in {"reject", "wait"}:
        with pytest.raises(MailboxFull, match="holds 2 messages"):
            mailbox.put(three)
        assert mailbox.close() == [one, two]
    elif overflow == "drop_oldest":
        assert mailbox.put(three) is one
        assert mailbox.close() == [two, three]
    else:
        assert mailbox.put(three) is three
        assert mailbox.close() == [one, two]


class Contrary:
    """A payload that cannot be compared, as an array of numbers cannot."""

    def __eq__(self, other: object) -> bool:
        raise ValueError("the truth value of an array is ambiguous")

    __hash__ = None  # type: ignore[assignment]


def crowded(room: int) -> Mailbox:
    """A mailbox with one message, and room for so many more."""
    mailbox = Mailbox(lambda: None, 1 + room, "wait")
    mailbox.put(Envelope("first"))
    return mailbox


@pytest.mark.parametrize("room", [0, 2], ids=["parked", "queued"])
def test_the_one_that_is_withdrawn_is_the_one_that_goes(room: int) -> None:
    mailbox, told = crowded(room), [].clear
    earlier, later = Envelope("same"), Envelope("same")
    mailbox.park(earlier, told)
    mailbox.park(later, told)
    assert mailbox.withdraw(later)
    assert mailbox.close()[1] is earlier
    assert not mailbox.withdraw(later)


@pytest.mark.parametrize("room", [0, 2], ids=["parked", "queued"])
def test_withdrawing_compares_no_messages(room: int) -> None:
    mailbox = crowded(room)
    mine = Envelope(Contrary())
    mailbox.park(Envelope(Contrary()), lambda: None)
    mailbox.park(mine, lambda: None)
    assert mailbox.withdraw(mine)


# --- threads ---


def test_mail_is_taken_at_whatever_instruction_of_the_last_take_it_comes() -> None:
    for moment in itertools.count(1):
        wakes: list[None] = []
        mailbox = Mailbox(lambda wakes=wakes: wakes.append(None))
        mailbox.put(Envelope("first"))
        wakes.clear()
        late, taken = Envelope("late"), [mailbox.take()]
        act = lambda mailbox=mailbox, late=late: mailbox.put(late)  # noqa: E731 - as short as it gets
        with Switch(Mailbox.take, moment, mailbox._lock, act) as switch:
            taken.append(mailbox.take())
        if not switch.happened:
            break
        while taken[-1] is not None or wakes:  # as a lane does: until it is idle, and again when it is woken
            wakes.clear()
            taken.append(mailbox.take())
        assert late in taken, f"at instruction {moment}"
    assert moment > 5


def test_a_message_is_refused_or_handed_back_at_whatever_instruction_of_its_put_the_mailbox_is_closed() -> None:
    for moment in itertools.count(1):
        mailbox, left, refused = Mailbox(lambda: None), [], False
        act = lambda mailbox=mailbox, left=left: left.extend(mailbox.close())  # noqa: E731 - one line is clearer here
        with Switch(Mailbox.put, moment, mailbox._lock, act) as switch:
            try:
                mailbox.put(Envelope("message"))
            except Closed:
                refused = True
        if not switch.happened:
            break
        assert mailbox.take() is None
        assert len(left) + refused == 1, f"at instruction {moment}"
    assert moment > 5


PARTS = {
    function.__code__
    for function in (*vars(Mailbox).values(), vars(mailbox_module)["_drained"])
    if hasattr(function, "__code__") and function is not Mailbox.__init__
}


class SwitchAnywhere(Switch):
    """The same at the n-th instruction of anything that belongs to the mailbox."""

    def __init__(self, moment: int, lock: Any, act: Callable[[], object]) -> None:
        super().__init__(Mailbox.put, moment, lock, act)

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if self.happened or frame.f_code not in PARTS:
            return None if self.happened else self._pass
        self._code = frame.f_code
        return super()._trace(frame, event, argument)

    def _pass(self, *_: Any) -> None:
        """Nothing of a function that is not ours, but of those that it calls."""


class Meeting:
    """One mailbox with room for one, whose lane is played here, and a fate for everything that was put."""

    def __init__(self, overflow: Overflow, before: str) -> None:
        self.mailbox = Mailbox(self.wake, 1, overflow)
        self.turns = 0
        self.fates: dict[Any, list[str]] = {}
        self.parked: set[Any] = set()
        self.told: Counter[Any] = Counter()
        self.resident = Envelope("resident")
        self.fates["resident"] = []
        self.mailbox.put(self.resident)
        if before == "idle":
            self.turn()
        elif before == "busy":  # the last message was taken, and the lane will come back for more
            self.take()
        elif before == "crowded":
            self.park("early")

    def wake(self) -> None:
        self.turns += 1

    def end(self, envelope: Envelope, fate: str) -> None:
        self.fates[envelope.message].append(fate)

    def send(self, name: Any, how: Callable[[Envelope], Envelope | None]) -> None:
        envelope = Envelope(name)
        self.fates[name] = []
        try:
            displaced = how(envelope)
        except (Closed, MailboxFull):
            self.end(envelope, "refused")
            self.parked.discard(name)
        else:
            if displaced is not None:
                self.end(displaced, "displaced")

    def put(self, name: str) -> None:
        self.send(name, self.mailbox.put)

    def park(self, name: str) -> None:
        self.parked.add(name)
        self.send(name, lambda envelope: self.mailbox.park(envelope, lambda: self.told.update([name])))

    def put_any(self, name: str) -> None:
        self.send(name, self.mailbox.put_any)

    def put_first(self, name: str) -> None:
        self.send(name, self.mailbox.put_first)

    def seal(self, name: str) -> None:
        self.send(name, self.mailbox.seal)

    def take(self, _: str = "") -> None:
        self.turns = 0
        envelope = self.mailbox.take()
        if envelope is not None:
            self.end(envelope, "taken")
            self.turns += 1  # it goes on

    def withdraw(self, _: str) -> None:
        if self.mailbox.withdraw(self.resident):
            self.end(self.resident, "withdrawn")

    def close(self, _: str = "") -> None:
        for envelope in self.mailbox.close():
            self.end(envelope, "handed back")

    def turn(self) -> None:
        """As a lane does: until it is idle, and again when it is woken."""
        while self.turns:
            self.take()

    def check(self) -> None:
        self.turn()
        waiting = self.mailbox.statistics()
        assert (waiting.depth, waiting.parked) == (0, 0), "mail waits, and nobody was woken"
        self.close()
        assert [(name, fates) for name, fates in self.fates.items() if len(fates) != 1] == []
        assert self.told == Counter(self.parked), "who waits for room is told exactly once"


CALLS = ("put", "park", "put_any", "put_first", "take", "withdraw", "seal", "close")


@pytest.mark.parametrize("before", ["idle", "busy", "full", "crowded"])
@pytest.mark.parametrize("overflow", ["wait", "drop_oldest"])
@pytest.mark.parametrize("second", CALLS)
@pytest.mark.parametrize("first", CALLS)
def test_everything_has_one_fate_and_is_taken_at_whatever_instruction_of_one_call_another_comes(
    first: str, second: str, overflow: Overflow, before: str
) -> None:
    if (first, second) == ("take", "take"):
        return  # a mailbox that several take from is an eager one
    for moment in itertools.count(1):
        meeting = Meeting(overflow, before)
        with SwitchAnywhere(moment, meeting.mailbox._lock, lambda: getattr(meeting, second)("other")) as switch:  # noqa: B023
            getattr(meeting, first)("one")
        if not switch.happened:
            break
        try:
            meeting.check()
        except AssertionError as wrong:
            raise AssertionError(f"at instruction {moment}") from wrong
    assert moment > 5


SENDERS, EACH = 8, 1_000


@pytest.fixture
def frequent_switches() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class Traffic:
    """Eight threads put, one takes when it is woken, and one may close in the middle."""

    def __init__(self, overflow: Overflow) -> None:
        self.signal = threading.Semaphore(0)
        self.mailbox = Mailbox(self.signal.release, 5, overflow)
        self.fates: deque[tuple[Any, str]] = deque()  # appended to by all threads
        self.told: deque[Any] = deque()
        self.failures: deque[BaseException] = deque()
        self.halfway, self.all_ended = threading.Event(), threading.Event()

    def end(self, envelope: Envelope, fate: str) -> None:
        self.fates.append((envelope.message, fate))
        if len(self.fates) >= SENDERS * EACH:
            self.all_ended.set()

    def send(self, sender: int, start: threading.Barrier) -> None:
        start.wait(10)
        for number in range(EACH):
            envelope = Envelope((sender, number))
            displaced = None
            try:
                if sender % 2:
                    self.mailbox.park(envelope, lambda at=envelope.message: self.told.append(at))
                else:
                    displaced = self.mailbox.put(envelope)
            except (Closed, MailboxFull):
                self.end(envelope, "refused")
            else:
                if displaced is not None:
                    self.end(displaced, "displaced")
            if number == EACH // 2:
                self.halfway.set()

    def take(self) -> None:
        while self.signal.acquire() and not self.all_ended.is_set():
            while (envelope := self.mailbox.take()) is not None:
                self.end(envelope, "taken")

    def close(self) -> None:
        assert self.halfway.wait(10)
        for envelope in self.mailbox.close():
            self.end(envelope, "handed back")

    def guarded(self, work: Callable[..., None], *args: Any) -> None:
        try:
            work(*args)
        except BaseException as error:  # noqa: BLE001 - told to the test's own thread
            self.failures.append(error)

    def play(self, *, closing: bool) -> None:
        start = threading.Barrier(SENDERS)
        works = [(self.send, sender, start) for sender in range(SENDERS)] + [(self.take,)] + [(self.close,)] * closing
        threads = [threading.Thread(target=self.guarded, args=work, daemon=True) for work in works]
        for thread in threads:
            thread.start()
        assert self.all_ended.wait(10), "mail waits, and nobody was woken"
        self.signal.release()
        for thread in threads:
            thread.join(10)
        assert list(self.failures) == []


@pytest.mark.usefixtures("frequent_switches")
@pytest.mark.parametrize("closing", [False, True])
@pytest.mark.parametrize("overflow", POLICIES)
def test_with_many_threads_nothing_is_lost_or_doubled_and_each_senders_order_holds(
    overflow: Overflow, closing: bool
) -> None:
    traffic = Traffic(overflow)
    traffic.play(closing=closing)
    fates = Counter(message for message, _ in traffic.fates)
    assert fates == {(sender, number): 1 for sender in range(SENDERS) for number in range(EACH)}
    taken = [message for message, fate in traffic.fates if fate == "taken"]
    for sender in range(SENDERS):
        numbers = [number for by, number in taken if by == sender]
        assert numbers == sorted(numbers)
    admitted = {message for message, fate in traffic.fates if fate != "refused" and message[0] % 2}
    assert Counter(traffic.told) == dict.fromkeys(admitted, 1)
