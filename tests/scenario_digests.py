"""The digests of the shipped scenarios: ``python -m tests.scenario_digests`` measures and writes them anew.

They change when a script changes, or what the runtime does for it; never with the machine or the version of Python.
"""

from __future__ import annotations

import json
from pathlib import Path

from grami_actors.scenario.explore import Wanted, play_seeds
from grami_actors.scenario.play import modes_of
from grami_actors.scenario.script import load
from grami_actors.simulation.run import Outcome, series

FOLDER = Path(__file__).parents[1] / "scenarios"
FILE = Path(__file__).with_suffix(".json")

LONG = frozenset({("market", "an_hour")})
"""What takes too long to be played each time."""

PINNED = 3
"""Seeds of each scenario whose digests are written down."""


def every() -> list[tuple[str, str]]:
    """File and name of every scenario that can be simulated in a moment."""
    return [
        (path.stem, each.__name__)
        for path in sorted(FOLDER.glob("*.py"))
        for each in load(path).scenarios
        if "simulated" in modes_of(each) and (path.stem, each.__name__) not in LONG
    ]


def played(file: str, name: str, seeds: int, faults: str = "none") -> list[Outcome]:
    """What comes of the first seeds of a scenario."""
    with series():
        return play_seeds(Wanted(str(FOLDER / f"{file}.py"), name, faults), range(seeds))


def pinned(outcomes: list[Outcome]) -> list[str]:
    """What is written down of them."""
    return [each.digest[:12] for each in outcomes[:PINNED]]


def main() -> None:
    """Write them."""
    found = {f"{file} {name}": pinned(played(file, name, PINNED)) for file, name in every()}
    FILE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
