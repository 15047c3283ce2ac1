"""The functions that the benchmark of jobs runs: each as small as a tool can be.

Apart from the swarm, whose module needs all of the runtime: the process of a job imports where its function stands.
"""

from __future__ import annotations

import time

from grami_actors import tool
from grami_actors.jobs import JobContext


@tool(job=True, lane="process")
def stamp() -> float:
    """Seconds since the epoch."""
    return time.time()


@tool(job=True, lane="loop")
async def inside() -> float:
    """Seconds since the epoch."""
    return time.time()


@tool(job=True, lane="process")
def talk(times: int, at: float, ctx: JobContext) -> None:
    """From then on."""
    time.sleep(max(0.0, at - time.time()))
    for each in range(times):
        ctx.progress(each / times, "on")
