"""What a seed decides is written down, and played again; the plainest run decides nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from grami_actors.simulation.schedule import Choice, Decided, Decisions, Schedule, Sparse

SEEDS = st.integers(0, 10_000)
SIZES = st.lists(st.integers(2, 100), max_size=60)


@dataclass
class Turn:
    number: int
    owner: str


def enabled(count: int) -> list[Choice]:
    return [Turn(-n, f"actor-{n}") for n in range(count)]


def picked(schedule: Schedule, sizes: list[int]) -> list[int]:
    return [schedule.pick(enabled(size)) for size in sizes]


@given(SEEDS, SIZES)
def test_a_pick_is_always_one_of_the_steps_and_the_same_for_the_same_seed(seed: int, sizes: list[int]) -> None:
    picks = picked(Schedule(seed), sizes)
    assert all(0 <= place < size for place, size in zip(picks, sizes, strict=True))
    assert picked(Schedule(seed), sizes) == picks


@given(SEEDS, SIZES, st.lists(st.just([0.3, 0.3]), max_size=30))
def test_its_decisions_are_always_enough_to_play_it_again(
    seed: int, sizes: list[int], chances: list[list[float]]
) -> None:
    schedule = Schedule(seed)
    picks, strikes = picked(schedule, sizes), [schedule.strike(each) for each in chances]
    again = Decided(seed, schedule.decisions)
    assert picked(again, sizes) == picks
    assert [again.strike(each) for each in chances] == strikes
    assert again.decisions == schedule.decisions
    assert all(schedule.picks.values())
    assert all(schedule.strikes.values())


@given(SIZES)
def test_seed_0_never_leaves_the_order_of_arrival(sizes: list[int]) -> None:
    schedule = Schedule(0)
    assert not any(picked(schedule, sizes))
    assert len(schedule.decisions) == 0


def test_what_is_decided_about_a_step_that_is_not_there_takes_the_first() -> None:
    decided = Decided(1, Decisions({0: 7}, {0: 5}))
    assert decided.pick(enabled(3)) == 0
    assert decided.strike([0.5, 0.5]) == 2
    assert (decided.pick(enabled(3)), decided.strike([1.0])) == (0, 0)


def test_faults_strike_as_often_as_they_should() -> None:
    schedule = Schedule(7)
    struck = Counter(schedule.strike([0.1, 0.2]) for _ in range(10_000))
    assert 900 < struck[1] < 1_100
    assert 1_850 < struck[2] < 2_150


def test_steps_and_faults_are_drawn_apart_from_each_other() -> None:
    one, other = Schedule(5), Schedule(5)
    for _ in range(10):
        one.strike([0.5])
    assert picked(one, [5] * 20) == picked(other, [5] * 20)


def test_the_amount_of_a_fault_depends_on_its_number_and_seed_only() -> None:
    one, other = Schedule(5), Decided(5, Decisions())
    for each in (one, other):
        each.strike([0.5])
    assert one.amount() == one.amount() == other.amount()
    assert 0.0 <= one.amount() < 1.0
    assert one.amount() != Schedule(6).amount()


@given(SEEDS, st.dictionaries(st.integers(0, 60), st.floats(0.0, 1.0, exclude_max=True)), SIZES)
def test_a_sparse_run_leaves_the_order_exactly_at_its_places_and_its_decisions_play_it_again(
    seed: int, places: dict[int, float], sizes: list[int]
) -> None:
    sparse = Sparse(seed, {}, places)
    picks = picked(sparse, sizes)
    assert [number for number, place in enumerate(picks) if place] == sorted(n for n in places if n < len(sizes))
    assert all(place < size for place, size in zip(picks, sizes, strict=True))
    assert picked(Decided(seed, sparse.decisions), sizes) == picks


def test_what_a_seed_draws_is_the_same_wherever_it_is_drawn() -> None:
    sizes = [2 + n % 5 for n in range(24)]
    drawn = ["".join(map(str, picked(Schedule(seed), sizes))) for seed in (1, 2, 4, 10, 1_000)]
    assert drawn == PINNED


PINNED = [
    "020050200500005100050000",
    "010031103100302013410011",
    "003330033311333113331133",
    "010000200500000000000000",
    "111140034500022002220022",
]
