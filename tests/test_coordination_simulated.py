"""Every pattern under every profile of faults, over many seeds: nothing hangs, nothing is lost or done twice.

``PATTERN_SEEDS`` says how many seeds; a failure shows the shortest run that was found to fail in the same way.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest

from grami_actors.history import AnyEntry
from grami_actors.scenario.explore import as_text
from grami_actors.scenario.lines import line_of
from grami_actors.simulation.run import Outcome, Runner, series
from grami_actors.simulation.schedule import Decided, Schedule
from grami_actors.simulation.shrink import shrink
from grami_actors.simulation.world import Setup
from tests.coordination_swarms import PATTERNS
from tests.coordination_trial import LEDGER, SEEN

SEEDS = int(os.environ.get("PATTERN_SEEDS", "1000"))


@pytest.fixture(autouse=True)
def _swept_between_runs() -> Iterator[None]:
    """What the collector of garbage finds, and when, is not of the seed; the runner sweeps."""
    gc.collect()
    gc.freeze()
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


def story(runner: Runner, failed: Outcome) -> str:
    """Why a run failed, and what the shortest one like it was."""
    shortest = shrink(runner, failed)
    kept: list[AnyEntry] = []
    outcome = runner.run(
        Decided(shortest.seed, shortest.decisions), seen=lambda world: kept.extend(world.history.entries)
    )
    lines = [as_text(line) for line in map(line_of, kept) if line is not None]
    return "\n".join((f"seed {failed.seed}: {(outcome.failure or failed.failure)}", *lines[:80]))


@pytest.mark.slow
@pytest.mark.parametrize("faults", ["none", "crash", "slow", "lossy"])
@pytest.mark.parametrize("name", PATTERNS)
def test_whatever_goes_wrong_each_request_ends_in_time_and_nothing_is_done_twice(name: str, faults: str) -> None:
    pattern = PATTERNS[name]
    runner = Runner(Setup(pattern.swarm, faults), pattern.act, LEDGER.clear)
    seeds = SEEDS if faults != "none" else SEEDS // 4  # without faults there is less to find
    SEEN.clear()
    with series():
        for seed in range(seeds):
            outcome = runner.run(Schedule(seed))
            if outcome.failure is not None:
                pytest.fail(f"{name}, {faults}, {story(runner, outcome)}", pytrace=False)
    assert min(SEEN["answered"], SEEN["not answered"]) > seeds // 4, "what never happens proves nothing"
    assert (SEEN["faults"] > seeds // 4) == (faults != "none")
