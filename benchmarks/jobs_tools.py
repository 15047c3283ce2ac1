"""The swarm that the benchmark of jobs serves."""

from __future__ import annotations

from jobs_functions import inside, stamp, talk

from grami_actors import Swarm
from grami_actors.jobs import command

SWARM = Swarm(
    [],
    [
        stamp,
        inside,
        talk,
        command("date", ["date", "+%s.%N"]),
        command("true", ["true"]),
        command("sleep", ["sleep", "{seconds}"], parameters={"seconds": int}),
    ],
)
