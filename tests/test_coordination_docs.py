"""docs/coordination.md: its examples hold what they check, and its diagrams are what they do."""

from __future__ import annotations

import re

import pytest

import grami_actors.coordination as patterns
from grami_actors.simulation.run import series
from tests.coordination_diagrams import DOCUMENT, Example, drawn, examples, redrawn


@pytest.mark.slow
def test_every_diagram_is_what_its_example_does() -> None:
    text = DOCUMENT.read_text()
    assert redrawn(text) == text, "python -m tests.coordination_diagrams draws them anew"
    assert text.count("```python") == text.count("```mermaid") == len(re.findall(r"^## ", text, re.MULTILINE))


@pytest.mark.slow
def test_every_example_holds_in_any_order() -> None:
    with series():
        for block in examples(DOCUMENT.read_text()):
            example = Example(block)
            for seed in range(50):
                example.play(seed)


def test_an_example_that_does_not_hold_what_it_checks_is_not_drawn() -> None:
    first = examples(DOCUMENT.read_text())[0]
    with pytest.raises(ValueError, match="both stages had a hand in it"):
        drawn(first.replace("is a leaf", "is a root", 1))


def test_every_pattern_has_an_example() -> None:
    text = DOCUMENT.read_text()
    functions = [name for name in patterns.__all__ if name.islower() and name not in {"count", "lowest"}]
    assert [name for name in functions if f"{name}(self" not in text] == []
