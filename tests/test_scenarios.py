"""The scenarios that are shipped: they pass on a real server, and in simulation, with faults and without."""

from __future__ import annotations

import json

import pytest

from grami_actors.config import Config
from grami_actors.scenario.explore import unused
from grami_actors.scenario.play import modes_of
from grami_actors.scenario.script import load, run
from tests.scenario_digests import FILE, FOLDER, LONG, every, pinned, played

FILES = sorted(path.stem for path in FOLDER.glob("*.py"))

SEEDS = {"slow_client": 3, "market": 3, "supervisor_storm": 10}
"""How many seeds are played, where one takes long; 20 of the others."""


@pytest.fixture(autouse=True)
def _scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAMI_MODEL", "scripted")


def test_nine_situations_are_shipped_and_each_stands_what_happens() -> None:
    assert FILES == [
        "content_swarm",
        "contract_net",
        "debate",
        "long_jobs",
        "market",
        "research",
        "slow_client",
        "supervisor_storm",
        "support_desk",
    ]
    stands = {path.stem for path in FOLDER.glob("*.py") if "whatever_happens" in str(load(path).scenarios)}
    assert stands == set(FILES) - {"market"}
    market = {("market", each.__name__) for each in load(FOLDER / "market.py").scenarios}
    assert market - LONG == {("market", "a_moment")}


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
async def test_every_scenario_passes_on_a_real_server(file: str) -> None:
    script = load(FOLDER / f"{file}.py")
    results = await run(script, [], Config(host="127.0.0.1", port=0), lambda _: None)
    live = [each.__name__ for each in script.scenarios if "live" in modes_of(each)]
    assert [each.scenario for each in results] == live
    assert [(each.scenario, each.error, each.checks) for each in results if not each.passed] == []
    assert all(each.checks for each in results)


@pytest.mark.slow
@pytest.mark.parametrize(("file", "name"), every())
def test_every_scenario_passes_in_simulation_and_is_the_same_run_on_every_machine_and_python(
    file: str, name: str
) -> None:
    outcomes = played(file, name, SEEDS.get(file, 20))
    assert [(each.seed, each.failure) for each in outcomes if each.failure is not None] == []
    assert unused(outcomes) == (), "its faults strike"
    assert pinned(outcomes) == json.loads(FILE.read_text())[f"{file} {name}"]


@pytest.mark.slow
@pytest.mark.parametrize("faults", ["crash", "slow", "lossy"])
@pytest.mark.parametrize("file", [file for file in FILES if file != "market"])
def test_what_is_always_true_is_true_under_faults(file: str, faults: str) -> None:
    outcomes = played(file, "whatever_happens", min(10, 2 * SEEDS.get(file, 20)), faults)
    assert [(each.seed, each.failure) for each in outcomes if each.failure is not None] == []
    assert any(each.decisions.strikes for each in outcomes), "there were faults"


@pytest.mark.slow
def test_what_a_swarm_gives_its_agents_is_as_new_in_each_run() -> None:
    first, again = (played("support_desk", "a_refund_is_approved", 1) for _ in range(2))
    assert first == again, "the journal of questions has no answer of another run"
