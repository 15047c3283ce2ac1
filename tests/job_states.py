"""The diagram of states in docs/jobs.md, drawn from the table that jobs follow: ``python -m tests.job_states``."""

from __future__ import annotations

import re
from pathlib import Path

from grami_actors.job import STEPS

DOCUMENT = Path(__file__).parent.parent / "docs" / "jobs.md"


def drawn() -> str:
    """The diagram."""
    lines = ["stateDiagram-v2", "    [*] --> QUEUED"]
    for state, steps in STEPS.items():
        lines += [f"    {state} --> {after}: {step}" for step, after in steps.items()] or [f"    {state} --> [*]"]
    return "\n".join(lines) + "\n"


def redrawn(text: str) -> str:
    """The document, with the diagram as it is to be."""
    return re.sub(r"(```mermaid\n).*?(```)", lambda found: found[1] + drawn() + found[2], text, flags=re.DOTALL)


if __name__ == "__main__":
    DOCUMENT.write_text(redrawn(DOCUMENT.read_text()))
