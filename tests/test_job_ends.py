"""How jobs end that stand still, or return what cannot be kept: as themselves, once, and in clear words."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from grami_actors.job import State
from tests.fault_tools import timed
from tests.test_job_faults import alive, house, pids

WHY = {
    "object": "what it returned cannot be written as JSON: Encoding objects of type object is unsupported",
    "nan": "what it returned cannot be written as JSON: Out of range float values are not JSON compliant",
    "keys": "what it returned cannot be written as JSON: Only dicts with",
    "surrogate": "what it returned cannot be written as JSON: 'utf-8' codec can't encode",
    "circle": "what it returned cannot be written as JSON: Circular reference detected",
    "long": "the result has 1001 bytes, at most 1000",
}


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.mark.slow
async def test_a_job_whose_whole_tree_stands_still_is_timed_out_by_its_heartbeat_and_none_of_it_is_left(
    state: Path, tmp_path: Path
) -> None:
    async with house(state, timed) as at:
        job = await at.submit("beating", folder=str(tmp_path))
        # It says something every 10 ms: this takes longer than it may be silent.
        await at.until(job, lambda each: each.state.terminal or int(each.message or 0) > 60)
        tree = pids(tmp_path)
        assert len(tree) == 3
        for pid in tree:
            os.kill(pid, signal.SIGSTOP)
        stopped = time.monotonic()
        found = await at.end(job)
        assert not any(alive(pid) for pid in tree)
        assert time.monotonic() - stopped < 0.4 + 0.1 + 0.2 + 2.0
        assert (found.state, found.reason, found.attempt) == (State.TIMED_OUT, "heartbeat", 1)
        assert found.fault is not None
        assert found.fault.code == "TOOL_TIMEOUT"
        assert "nothing was heard of it for 0.4 s" in found.fault.message
        assert found.exit is not None
        assert (found.exit.signal, found.exit.forced) == (signal.SIGTERM, True)


@pytest.mark.slow
async def test_a_result_that_cannot_be_kept_fails_its_job_for_good_and_says_why(state: Path) -> None:
    async with house(state) as at:
        jobs = {kind: await at.submit("gives", kind=kind) for kind in WHY}
        for kind, job in jobs.items():
            found = await at.end(job)
            assert (found.state, found.attempt, found.result) == (State.FAILED, 1, None), kind
            assert found.fault is not None
            assert found.fault.code == "TOOL_EXECUTION_FAILED"
            assert WHY[kind] in found.fault.message
            assert found.exit is not None
        kept = {kind: (await at.end(await at.submit("gives", kind=kind))).result for kind in ("set", "longest")}
        assert kept == {"set": [1], "longest": "x" * 998}
