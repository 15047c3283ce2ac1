"""docs/jobs.md: its examples run, and its tables and diagram are what the code has."""

from __future__ import annotations

import asyncio
import re
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from grami_actors import connect
from grami_actors.job import STATUS, Limits, Order, Retry, State, Terms
from grami_actors.scenario.script import load
from tests.conftest import serving
from tests.job_states import DOCUMENT, redrawn

PAGE = DOCUMENT.read_text()


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with all examples that have a name."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    for name, text in re.findall(r"```(?:python|sh|js)\n(?:#|//) (\S+\.\w+)\n(.*?)```", PAGE, re.DOTALL):
        (tmp_path / name).write_text(text)
    return tmp_path


def rows(heading: str) -> dict[str, str]:
    """What the first two columns of a table say."""
    table = PAGE.partition(heading)[2].partition("\n\n")[0]
    return dict(re.findall(r"^\| `?(\w+)`? \| `?(.*?)`? \|", table, re.MULTILINE))


def test_the_diagram_of_states_is_the_table_that_jobs_follow() -> None:
    assert redrawn(PAGE) == PAGE, "python -m tests.job_states draws it anew"


def test_every_state_is_listed_with_its_status() -> None:
    assert rows("| state | `status` |") == {str(state): STATUS[state] for state in State}


@pytest.mark.parametrize(
    ("heading", "kind"),
    [("| option |", Terms), ("| `Retry(...)` |", Retry), ("| `Limits(...)` |", Limits), ("| `Order(...)` |", Order)],
)
def test_every_option_is_listed_with_its_default(heading: str, kind: Any) -> None:
    def shown(value: Any) -> str:
        if isinstance(value, msgspec.Struct):
            return f"{type(value).__name__}()"
        return f'"{value}"' if isinstance(value, str) else str(value)

    assert rows(heading) == {name: shown(getattr(kind(), name)) for name in kind.__struct_fields__}


@pytest.mark.slow
async def test_the_first_job_counts_and_tells_how_far_it_is(examples: Path) -> None:
    async with serving(load(examples / "count.py").swarm) as manager, connect(manager.url) as grami:
        job = await grami.jobs.submit("count", {"to": 3})
        told = [event.data["message"] async for event in job.events() if event.kind == "progress"]
        assert (await job.result(), told) == (3, ["1 of 3", "2 of 3", "3 of 3"])


@pytest.mark.slow
async def test_the_first_job_ends_early_when_it_is_cancelled(examples: Path) -> None:
    async with serving(load(examples / "count.py").swarm) as manager, connect(manager.url) as grami:
        job = await grami.jobs.submit("count", {"to": 600})
        async for event in job.events():
            if event.kind == "checkpoint":
                await job.cancel()
                break
        async for _ in job.events():
            pass
        assert (await job.refresh()).state == "CANCELLED"


@pytest.mark.slow
async def test_a_job_in_a_shell_counts_and_leaves_a_file(examples: Path) -> None:
    async with serving(load(examples / "languages.py").swarm) as manager, connect(manager.url) as grami:
        job = await grami.jobs.submit("in_shell", {"to": 2})
        assert await job.result() == {"counted": 2}
        assert b"".join([piece async for piece in job.output()]) == b"counted 1\ncounted 2\n"
        assert b"".join([piece async for piece in job.output(artifact="counted.txt")]) == b"2\n"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("node") is None, reason="there is no Node")
async def test_a_job_in_node_asks_and_counts(examples: Path) -> None:
    async with serving(load(examples / "languages.py").swarm) as manager, connect(manager.url) as grami:
        job = await grami.jobs.submit("in_node")
        async for event in job.events():
            if event.data.get("state") == "INPUT_REQUIRED":
                await job.answer(2)
                break
        assert await job.result() == {"counted": 2}


@pytest.mark.slow
async def test_a_command_packs_files_and_takes_none_for_an_option(examples: Path) -> None:
    async with serving(load(examples / "pack.py").swarm) as manager, connect(manager.url) as grami:
        job = await grami.jobs.submit("pack", {"name": "all", "files": [str(examples / "pack.py")]})
        assert (await job.result())["exit_code"] == 0
        with pytest.raises(Exception, match="begins with '-'"):
            await grami.jobs.submit("pack", {"name": "all", "files": ["--to-command=id"]})


async def test_an_agent_follows_its_job_and_another_is_woken(examples: Path) -> None:
    async with serving(load(examples / "film.py").swarm) as manager, connect(manager.url) as grami:
        films = grami.subscribe("films")
        first = asyncio.ensure_future(anext(films))
        while not first.done():  # from then on nothing is missed
            await grami.publish("films", None)
        frames = [frame async for frame in grami.stream("film", frames=2)]
        assert frames[-1].data == "2 frames"
        assert "frame 1" in [frame.message for frame in frames]
        while (event := await anext(films)).data is None:
            pass
        assert event.data["result"] == "2 frames"


async def test_a_client_follows_its_job_to_the_result(examples: Path) -> None:
    main = runpy.run_path(str(examples / "client.py"))["main"]
    async with serving(load(examples / "film.py").swarm) as manager:
        assert [await main(manager.url), await main(manager.url)] == ["10 frames", "10 frames"]
        async with connect(manager.url) as grami:
            assert len(await grami.jobs.list()) == 1


def test_the_schedule_can_be_declared(examples: Path) -> None:
    assert [each.name for each in load(examples / "nightly.py").swarm.schedules] == ["nightly"]
