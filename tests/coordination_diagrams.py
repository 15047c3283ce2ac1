"""The diagrams of docs/coordination.md, drawn from runs of its examples: ``python -m tests.coordination_diagrams``."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import msgspec

from grami_actors.history import AnyEntry, Told
from grami_actors.recording.diagram import mermaid
from grami_actors.scenario.play import Play, perform
from grami_actors.scenario.script import load
from grami_actors.simulation.run import Failure, Runner
from grami_actors.simulation.schedule import Schedule
from grami_actors.simulation.world import Setup, World

DOCUMENT = Path(__file__).parent.parent / "docs" / "coordination.md"

_SECTION = re.compile(r"(?P<code>```python\n.*?```\n)(?P<words>.*?```mermaid\n).*?```\n", re.DOTALL)


def redrawn(text: str) -> str:
    """The document, with each diagram as the example before it has it. Raises ValueError if one fails."""
    return _SECTION.sub(lambda found: f"{found['code']}{found['words']}{drawn(found['code'])}```\n", text)


def examples(text: str) -> list[str]:
    """The blocks of code in the document."""
    return [found["code"] for found in _SECTION.finditer(text)]


def drawn(block: str) -> str:
    """What happens when an example is played in the plainest order."""
    return mermaid(Example(block).play(0))


class Example:
    """A script in the document, which can be played."""

    def __init__(self, block: str) -> None:
        path = sys.path[:]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "example.py"
            file.write_text(block.removeprefix("```python\n").removesuffix("```\n"))
            script = load(file)
        sys.path[:] = path
        (self._function,) = script.scenarios
        self._runner = Runner(Setup(script.swarm), self._act)
        self._names: dict[str, str] = {}

    async def _act(self, world: World) -> Failure | None:
        play = Play(world)
        ending = await perform(play, self._function)
        self._names = play._named()
        return None if ending.passed else Failure(ending.kind, f"{ending.error} {ending.checks}")

    def play(self, seed: int) -> list[AnyEntry]:
        """Its entries; clients have the names that the script gives them. Raises ValueError if it fails."""
        entries: list[AnyEntry] = []
        outcome = self._runner.run(Schedule(seed), seen=lambda world: entries.extend(world.history.entries))
        if outcome.failure is not None:
            raise ValueError(f"seed {seed}: {outcome.failure.text}")
        return [
            msgspec.structs.replace(each, sender=self._names.get(each.sender, each.sender))
            if isinstance(each, Told)
            else each
            for each in entries
        ]


if __name__ == "__main__":
    DOCUMENT.write_text(redrawn(DOCUMENT.read_text()))
