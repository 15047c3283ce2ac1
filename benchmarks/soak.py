"""Does a job survive everything? The chaos of tests/test_job_chaos.py, for as long as it may take.

Round after round, jobs of all kinds are submitted while the server is killed every second or so; then one job prints
for a while, and is listened to over kills and new connections. An outside witness says what really ran. What is not
as it must be is printed, and the exit code is 1; the folder of that round is kept.

    python -m benchmarks.soak                           # ten minutes
    python -m benchmarks.soak --minutes 120 --jobs 2000
    python -m benchmarks.soak --seed 7 --rounds 1       # the first round of a run that printed this seed
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.job_storm import listened, storm
from tests.job_witness import slots_are_free, trial

SLOTS = 8


async def stormy(folder: Path, jobs: int, seed: int, pace: float) -> list[str]:
    """Many jobs; what is wrong after them."""
    async with trial(folder, jobs_running=SLOTS) as test:
        seen = await storm(test, jobs, seed, kills=jobs // 4, pace=pace)
        print(f"  {jobs} jobs, {seen.kills} kills, {seen.seconds:.0f} s: {seen.states}", flush=True)
        lost = [f"{number} jobs are {state}" for state, number in seen.states.items() if state in {"LOST", "REJECTED"}]
        if not await slots_are_free(test, SLOTS):
            lost.append("a slot is not free")
        return [*seen.faults, *lost]


async def talking(folder: Path, seconds: float) -> list[str]:
    """One job that is listened to; what is wrong after it."""
    lines = round(seconds * 10)
    async with trial(folder) as test:
        job, heard = await listened(test, lines, 0.1, kills=5, cuts=3)
        print(f"  {lines} lines over {heard.kills} kills and {heard.cuts} new clients", flush=True)
        faults = test.faults()
        if heard.text != "".join(f"it says {number}\n" for number in range(lines)):
            faults.append("the output that was heard is not what was printed")
        if heard.seqs != list(range(1, test.job(job.id).seq + 1)):
            faults.append(f"the events that were heard are {heard.seqs}")
        return faults


async def round_of(folder: Path, seed: int, options: argparse.Namespace) -> bool:
    """One round; says whether all was well."""
    faults = []
    for name, work in (
        ("storm", lambda base: stormy(base, options.jobs, seed, options.pace)),
        ("talk", lambda base: talking(base, options.talk)),
    ):
        base = folder / name
        base.mkdir(parents=True)
        faults += await work(base)
    for fault in faults:
        print(f"  FAULT {fault}", flush=True)
    return not faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="no round begins later (default: 10)")
    parser.add_argument("--rounds", type=int, default=0, help="rounds at most; 0 for any number")
    parser.add_argument("--jobs", type=int, default=600, help="in each round (default: 600)")
    parser.add_argument("--pace", type=float, default=1.0, help="seconds between two kills, more or less (default: 1)")
    parser.add_argument("--talk", type=float, default=120.0, help="seconds that one job prints (default: 120)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    until, number = time.monotonic() + options.minutes * 60, 0
    while time.monotonic() < until and number < (options.rounds or number + 1):
        folder = Path(tempfile.mkdtemp(prefix="grami-soak-"))
        print(f"round {number + 1}, seed {options.seed + number}", flush=True)
        if not asyncio.run(round_of(folder, options.seed + number, options)):
            print(f"what was found is in {folder}; again: --seed {options.seed + number} --rounds 1")
            return 1
        shutil.rmtree(folder, ignore_errors=True)
        number += 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
