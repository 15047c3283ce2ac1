"""Hundreds of jobs while the server is killed every second, and one that is listened to over all that."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.job_storm import listened, storm
from tests.job_witness import slots_are_free, trial

pytestmark = pytest.mark.slow

JOBS = 300
KILLS = 15
SLOTS = 8


@pytest.mark.timeout(180)
async def test_every_job_is_done_once_and_whole_though_the_server_is_killed_every_second(tmp_path: Path) -> None:
    async with asyncio.timeout(170), trial(tmp_path, jobs_running=SLOTS) as test:
        seen = await storm(test, JOBS, seed=6, kills=KILLS)
        assert seen.faults == []
        assert len(test.accepted) == JOBS
        assert sum(seen.states.values()) == JOBS
        assert set(seen.states) == {"SUCCEEDED", "FAILED"}  # no shim was killed: nothing is lost
        assert seen.kills >= KILLS
        assert await slots_are_free(test, SLOTS)


@pytest.mark.timeout(120)
async def test_who_listens_hears_each_line_and_each_event_once_over_kills_and_new_connections(tmp_path: Path) -> None:
    async with asyncio.timeout(110), trial(tmp_path) as test:
        job, heard = await listened(test, lines=200, pause=0.1, kills=5, cuts=3)
        assert (heard.kills, heard.cuts) == (5, 3)
        assert heard.text == "".join(f"it says {number}\n" for number in range(200))
        assert heard.seqs == list(range(1, test.job(job.id).seq + 1))
        assert test.faults() == []
