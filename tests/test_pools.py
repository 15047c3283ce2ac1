"""Which member of a pool gets a message, for each strategy."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grami_actors.errors import AgentUnavailable
from grami_actors.messages import Message
from grami_actors.pools import Pool, PoolStrategy

STRATEGIES: list[PoolStrategy] = ["least_busy", "round_robin", "consistent_hash", "broadcast"]
STATES = ["starting", "running", "restarting", "paused", "stopping", "stopped"]


@dataclass(eq=False)
class Worker:
    """What a pool sees of an actor."""

    name: str
    state: str = "running"
    load: int = 0


class Order(Message):
    key: Any = None
    number: int = 0


class Plain(Message):
    number: int = 0


def pool_of(members: list[Worker], strategy: PoolStrategy = "least_busy", **options: Any) -> Pool[Worker]:
    pool: Pool[Worker] = Pool("pool", strategy, **options)
    for member in members:
        pool.add(member)
    return pool


def workers(count: int) -> list[Worker]:
    return [Worker(f"w-{number}") for number in range(count)]


# --- members ---


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_pool_without_members_is_not_running(strategy: PoolStrategy) -> None:
    member = Worker("w")
    pool = pool_of([member], strategy)
    assert pool.pick(Order()) is member
    assert pool.all() == (member,)
    pool.remove(member)
    for ask in (lambda: pool.pick(Order()), pool.all):
        with pytest.raises(AgentUnavailable, match="pool is not running"):
            ask()
    pool.add(member)
    assert pool.pick(Order()) is member


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_pool_whose_members_are_all_paused_rests(strategy: PoolStrategy) -> None:
    pool = pool_of([Worker("one", "paused"), Worker("two", "paused")], strategy)
    for ask in (lambda: pool.pick(Order()), pool.all):
        with pytest.raises(AgentUnavailable, match="pool failed too often and rests; try again later"):
            ask()


def test_members_are_a_tuple_that_is_replaced_and_each_is_in_it_once() -> None:
    one, two, stranger = Worker("one"), Worker("two"), Worker("one")
    pool = pool_of([one, two, one])
    before = pool.members
    assert before == (one, two)
    pool.remove(stranger)  # its name is that of a member, it is none
    assert pool.members is before
    pool.remove(one)
    pool.remove(one)
    assert list(pool.members) == [two]
    assert list(before) == [one, two]


def test_a_strategy_that_there_is_not_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="'random' is no strategy of a pool; there are least_busy, round_robin, cons"):
        Pool("pool", "random")  # type: ignore[arg-type]


# --- least busy ---

RANKS = {"running": 0, "paused": 2, "stopping": 3, "stopped": 3}
GONE = {"paused", "stopping", "stopped"}
loads = st.lists(st.tuples(st.sampled_from(STATES), st.integers(0, 4)), min_size=1, max_size=6)


@given(loads, st.sampled_from(["least_busy", "broadcast"]))
def test_the_least_busy_of_those_that_run_is_picked_then_others_then_the_paused(
    wanted: list[tuple[str, int]], strategy: PoolStrategy
) -> None:
    pool = pool_of([Worker(str(number), *each) for number, each in enumerate(wanted)], strategy)
    if all(state in GONE for state, _ in wanted):
        return
    picked = pool.pick(None)
    assert (RANKS.get(picked.state, 1), picked.load) == min((RANKS.get(state, 1), load) for state, load in wanted)


@given(st.integers(2, 6), st.integers(0, 5), st.integers(1, 4))
def test_equals_take_turns_so_that_everyone_has_one_before_anyone_has_two(count: int, busy: int, rounds: int) -> None:
    members = workers(count)
    members[busy % count].load = 10
    pool = pool_of(members)
    for _ in range(rounds):
        assert {pool.pick(None).name for _ in range(count - 1)} == {each.name for each in members if not each.load}


@given(st.lists(st.integers(0, 3), min_size=1, max_size=5), st.integers(1, 40))
def test_messages_that_nobody_takes_fill_the_mailboxes_evenly(before: list[int], more: int) -> None:
    members = [Worker(str(number), load=load) for number, load in enumerate(before)]
    pool = pool_of(members)
    for _ in range(more):
        pool.pick(None).load += 1
    grown = [member.load for member, load in zip(members, before, strict=True) if member.load > load]
    assert max(grown) - min(member.load for member in members) <= 1


# --- round robin ---


@given(st.lists(st.sampled_from(STATES), min_size=1, max_size=6), st.lists(st.integers(0, 9), min_size=6, max_size=6))
def test_round_robin_goes_round_the_running_ones_in_order_whatever_they_have_to_do(
    states: list[str], loads: list[int]
) -> None:
    members = [
        Worker(str(number), state, load) for number, (state, load) in enumerate(zip(states, loads, strict=False))
    ]
    pool = pool_of(members, "round_robin")
    able = [each for each in members if each.state == "running"]
    able = able or [each for each in members if each.state not in GONE]
    if able:
        assert [pool.pick(None) for _ in range(2 * len(able))] == able * 2


def test_a_member_that_runs_again_is_back_in_the_round() -> None:
    one, two, three = members = workers(3)
    pool = pool_of(members, "round_robin")
    two.state = "restarting"
    assert [pool.pick(None) for _ in range(3)] == [one, three, one]
    two.state = "running"
    assert [pool.pick(None) for _ in range(3)] == [two, three, one]


# --- consistent hash ---

names = st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=12, unique=True)
KEYS = [f"conversation-{number}" for number in range(2_000)]


def owners(pool: Pool[Worker], keys: list[str] = KEYS) -> dict[str, Worker]:
    return {key: pool.pick(Order(key)) for key in keys}


@pytest.mark.slow
@given(names, st.data())
@settings(max_examples=30, deadline=None)
def test_a_member_that_comes_takes_about_its_share_of_the_keys_and_no_other_key_moves(
    named: list[str], data: st.DataObject
) -> None:
    *old, new = [Worker(name) for name in named]
    pool = pool_of(old, "consistent_hash")
    before = owners(pool)
    pool.add(new)
    after = owners(pool)
    moved = [key for key in KEYS if after[key] is not before[key]]
    assert {after[key] for key in moved} <= {new}
    assert 0.4 < len(moved) / len(KEYS) * len(named) < 1.8
    pool.remove(new)
    assert owners(pool) == before, "what it leaves goes back to where it was"


@pytest.mark.slow
@given(names, st.data())
@settings(max_examples=30, deadline=None)
def test_a_member_that_goes_moves_its_own_keys_and_no_other(named: list[str], data: st.DataObject) -> None:
    members = [Worker(name) for name in named]
    pool = pool_of(members, "consistent_hash")
    before = owners(pool)
    gone = data.draw(st.sampled_from(members))
    pool.remove(gone)
    after = owners(pool)
    assert {key for key in KEYS if after[key] is not before[key]} == {key for key in KEYS if before[key] is gone}


@given(names, st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_where_a_key_goes_depends_on_the_names_of_the_members_and_not_on_their_history(
    named: list[str], random: Any
) -> None:
    one = pool_of([Worker(name) for name in named], "consistent_hash")
    shuffled = random.sample(named, len(named))
    other = pool_of([Worker(name) for name in [*shuffled, "one more"]], "consistent_hash")
    other.remove(other.members[-1])
    assert [owner.name for owner in owners(one, KEYS[:200]).values()] == [
        owner.name for owner in owners(other, KEYS[:200]).values()
    ]


keys = st.one_of(st.text(), st.integers(), st.binary(), st.tuples(st.integers(), st.text()), st.characters())


@given(st.lists(keys, min_size=1, max_size=10), st.randoms(use_true_random=False))
def test_equal_keys_always_go_to_the_same_member_whatever_it_has_to_do(several: list[Any], random: Any) -> None:
    members = workers(5)
    pool = pool_of(members, "consistent_hash")
    first: dict[Any, Worker] = {}
    for number, key in enumerate(several * 3):
        for member in members:
            member.load, member.state = random.randrange(4), random.choice(["starting", "running", "restarting"])
        picked = pool.pick(Order(key, number))
        assert first.setdefault(key, picked) is picked


@given(names, st.lists(st.text(), min_size=1, max_size=20))
@settings(max_examples=20, deadline=None)
def test_a_key_belongs_to_the_first_virtual_node_that_comes_after_it(named: list[str], several: list[str]) -> None:
    def place(text: str) -> int:
        return int(hashlib.blake2b(text.encode(), digest_size=8).hexdigest(), 16)

    pool = pool_of([Worker(name) for name in named], "consistent_hash")
    nodes = [(place(f"{name}#{number}"), name) for name in named for number in range(64)]
    for key in several:
        after = min(nodes, key=lambda node: (node[0] - place(key)) % 2**64)
        assert pool.pick(Order(key)).name == after[1]


def test_the_members_share_the_keys_about_evenly() -> None:
    shares = Counter(owner.name for owner in owners(pool_of(workers(8), "consistent_hash")).values())
    assert len(shares) == 8
    assert max(shares.values()) < 1.6 * len(KEYS) / 8
    assert min(shares.values()) > 0.5 * len(KEYS) / 8


@pytest.mark.slow
def test_a_key_goes_to_the_same_member_in_every_process() -> None:
    program = """
from tests.test_pools import *
picked = [pool_of(workers(5), "consistent_hash").pick(each).name for each in map(Order, KEYS[:20])]
picked += [pool_of(workers(5), "consistent_hash").pick(Plain(number)).name for number in range(20)]
print(*picked)
"""
    printed = {
        subprocess.check_output(
            [sys.executable, "-c", program],
            text=True,
            cwd=Path(__file__).parents[1],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
        )
        for seed in ("1", "2")
    }
    assert len(printed) == 1
    # The ring is part of what nodes of different versions agree on: a change of these names moves everybody's keys.
    assert printed.pop().split()[:6] == ["w-4", "w-2", "w-3", "w-4", "w-3", "w-3"]


@pytest.mark.parametrize("state", ["paused", "stopping", "stopped"])
def test_a_member_that_takes_no_messages_is_skipped_to_the_next_on_the_ring(state: str) -> None:
    members = workers(5)
    pool = pool_of(members, "consistent_hash")
    before = owners(pool)
    members[2].state = state
    during = owners(pool)
    assert members[2] not in during.values()
    assert all(during[key] is owner for key, owner in before.items() if owner is not members[2])
    pool.remove(members[2])
    assert owners(pool) == during, "the next on the ring is who has the keys without it"
    pool.add(members[2])
    members[2].state = "running"
    assert owners(pool) == before


def test_a_member_that_restarts_keeps_its_keys() -> None:
    members = workers(5)
    pool = pool_of(members, "consistent_hash")
    before = owners(pool)
    for member in members:
        member.state = "restarting"
    assert owners(pool) == before


def test_a_ring_on_which_nobody_takes_messages_says_so() -> None:
    pool = pool_of([Worker("one", "stopped"), Worker("two", "stopping")], "consistent_hash")
    with pytest.raises(AgentUnavailable, match="pool is not running"):
        pool.pick(Order("key"))
    pool.add(Worker("three", "paused"))
    with pytest.raises(AgentUnavailable, match="pool failed too often and rests"):
        pool.pick(Order("key"))


def test_the_key_is_what_the_pool_says_else_the_field_named_key_else_the_message() -> None:
    def picked(messages: list[Any], **options: Any) -> list[str]:
        pool = pool_of(workers(8), "consistent_hash", **options)
        return [pool.pick(message).name for message in messages]

    numbers = range(30)
    assert len(set(picked([Order("same", number) for number in numbers]))) == 1
    assert len(set(picked([{"key": "same", "number": number} for number in numbers]))) == 1
    assert len(set(picked([Order(None, number) for number in numbers]))) > 3
    assert len(set(picked([Plain(number) for number in numbers]))) > 3
    assert len(set(picked([Order(number, 0) for number in numbers], key=lambda order: order.number))) == 1
    assert picked([Order("x")]) == picked([Plain(5)], key=lambda plain: "x") == picked([{"key": "x"}])


def test_a_key_that_cannot_be_encoded_is_a_key_too() -> None:
    pool = pool_of(workers(3), "consistent_hash")
    assert pool.pick(Order("\ud800")) is pool.pick(Order("\ud800"))


# --- broadcast and threads ---


@given(st.lists(st.sampled_from(STATES), min_size=1, max_size=6))
def test_all_are_those_that_can_take_messages(states: list[str]) -> None:
    members = [Worker(str(number), state) for number, state in enumerate(states)]
    able = tuple(each for each in members if each.state in {"starting", "running", "restarting"})
    if able:
        assert pool_of(members, "broadcast").all() == able
    else:
        with pytest.raises(AgentUnavailable):
            pool_of(members, "broadcast").all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_pool_may_be_read_by_any_thread_while_it_changes(strategy: PoolStrategy) -> None:
    members = workers(5)
    pool, failures, done = pool_of(members[:1], strategy), [], threading.Event()

    def read() -> None:
        number = 0
        while not done.is_set():
            number += 1
            try:
                assert pool.pick(Order(number % 50)) in members
                assert members[0] in pool.all()
            except Exception as error:  # noqa: BLE001 - told to the test's own thread
                failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for _ in range(100):
        for member in members[1:]:
            pool.add(member)
        for member in members[1:]:
            pool.remove(member)
    done.set()
    for reader in readers:
        reader.join()
    assert failures == []
    assert pool.members == (members[0],)


@pytest.mark.parametrize("change", [Pool.add, Pool.remove])
def test_two_changes_at_the_same_time_are_both_kept(change: Callable[[Pool[Worker], Worker], None]) -> None:
    class Hurried(Pool[Worker]):
        def _replace(self, members: tuple[Worker, ...]) -> None:
            if not self._lock.locked():  # another thread could change it now, so it does
                with self._lock:
                    super()._replace((*self.members, other))
                hurried.append(other)
            super()._replace(members)

    hurried: list[Worker] = []
    one, other = workers(2)
    pool = Hurried("pool")
    with pool._lock:
        pool._replace((one,))
    change(pool, one if change is Pool.remove else Worker("new"))
    if not hurried:
        pool.add(other)  # it had to wait
    assert other in pool.members
    assert len(pool.members) == (1 if change is Pool.remove else 3)


def test_members_added_and_removed_by_several_threads_are_all_kept_or_gone() -> None:
    pool: Pool[Worker] = Pool("pool")
    stay = [workers(50) for _ in range(4)]

    def play(mine: list[Worker]) -> None:
        guest = Worker("guest")
        for member in mine:
            pool.add(guest)
            pool.add(member)
            pool.remove(guest)

    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    threads = [threading.Thread(target=play, args=(mine,)) for mine in stay]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(before)
    assert set(pool.members) == {member for mine in stay for member in mine}
