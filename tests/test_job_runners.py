"""The contract of runners, over all of them: what is reported of an attempt, when, and how often.

A variant is one function that makes a runner of the functions in tests/inside_tools.py; see VARIANTS.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from grami_actors.job import Job, Limits, State, Terms, digest_of
from grami_actors.jobs.inside import InsideRunner
from grami_actors.jobs.outside import OutsideRunner
from grami_actors.jobs.runner import Attempt, Outcome, Run, Runner
from grami_actors.jobs.store import Note
from grami_actors.jobs.wakes import Wakes
from grami_actors.system import ActorSystem
from grami_actors.tools import Tool
from tests.conftest import running
from tests.inside_tools import FUNCTIONS


@asynccontextmanager
async def inside(system: ActorSystem, folder: Path) -> AsyncIterator[Runner]:
    runner = InsideRunner(system, {each.__name__: Tool(each, lane="thread") for each in FUNCTIONS})
    yield runner
    runner.close()


@asynccontextmanager
async def outside(system: ActorSystem, folder: Path) -> AsyncIterator[Runner]:
    wakes = Wakes(folder / "jobs" / "wake")
    wakes.open()
    # Mortal: what a test leaves behind ends with the lifeline.
    yield OutsideRunner(wakes, {each.__name__: Tool(each, lane="process") for each in FUNCTIONS}, mortal=True)
    wakes.close()


VARIANTS = {"inside": inside, "outside": outside}


class Told:
    """Reports that are kept, and can be waited for."""

    def __init__(self) -> None:
        self.all: list[tuple[str, Any]] = []
        self.fields: dict[str, Any] = {}
        self._changed = asyncio.Event()

    def started(self, at: float) -> None:
        self._add("started", at)

    def noted(self, notes: Sequence[Note], fields: dict[str, Any]) -> asyncio.Future[None]:
        self.fields.update(fields)
        for note in notes:
            self._add(note.kind, note.data)
        return _written()

    def asks(self, question: Any, at: float, fields: dict[str, Any]) -> asyncio.Future[None]:
        self.fields.update(fields)
        self._add("asks", question)
        return _written()

    def ended(self, outcome: Outcome) -> None:
        self._add("ended", outcome)

    def _add(self, kind: str, data: Any) -> None:
        self.all.append((kind, data))
        self._changed.set()

    def of(self, kind: str) -> list[Any]:
        return [data for each, data in self.all if each == kind]

    async def until(self, kind: str) -> Any:
        while not (found := self.of(kind)):
            self._changed.clear()
            await self._changed.wait()
        return found[-1]

    async def end(self) -> Outcome:
        """How it ended; and that this was told once, at last."""
        outcome = await self.until("ended")
        assert [kind for kind, _ in self.all].index("ended") == len(self.all) - 1
        return outcome


def _written() -> asyncio.Future[None]:
    written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    written.set_result(None)
    return written


@dataclass
class Bench:
    """A runner, and what makes attempts for it."""

    system: ActorSystem
    runner: Runner
    folder: Path

    def attempt(self, tool: str, arguments: dict[str, Any] | None = None, **fields: Any) -> Attempt:
        arguments = arguments or {}
        at = self.system.wall()
        known: dict[str, Any] = {"state": State.STARTING, "attempt": 1, "owner": "ann", "id": f"job_{tool}"}
        job = Job(
            tool=tool,
            arguments=arguments,
            digest=digest_of(tool, arguments),
            created_at=at,
            due_at=at,
            **known | fields,
        )
        return Attempt(job, self.folder / "jobs" / job.id / str(job.attempt))

    async def begin(self, attempt: Attempt) -> tuple[Run, Told]:
        told = Told()
        run = self.runner.run(attempt, told)
        await run.begin()
        return run, told

    async def outcome(self, tool: str, arguments: dict[str, Any] | None = None, **fields: Any) -> Outcome:
        return await (await self.begin(self.attempt(tool, arguments, **fields)))[1].end()


Benches = Callable[[], Any]


@pytest.fixture(params=VARIANTS)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Benches:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Bench]:
        async with running() as system, VARIANTS[request.param](system, tmp_path) as runner:
            yield Bench(system, runner, tmp_path)

    return opened


# --- how it ends ---


async def test_an_attempt_is_started_and_then_ends_with_what_its_function_returned(bench: Benches) -> None:
    async with bench() as house:
        _, told = await house.begin(house.attempt("double", {"number": 21}))
        outcome = await told.end()
        assert (outcome.kind, outcome.result, outcome.reason) == ("succeeded", 42, "")
        assert [kind for kind, _ in told.all] == ["started", "ended"]
        assert told.of("started")[0] <= outcome.at


@pytest.mark.parametrize(
    ("tool", "arguments", "words", "permanent"),
    [
        ("fail", {"text": "no luck"}, "ValueError: no luck", False),
        ("refuse", {"text": "not for you"}, "not for you", True),
        ("leave_by", {"code": 3}, "SystemExit: 3", False),
        ("odd", {}, "cannot be written as JSON", True),
        ("long", {"size": 2_000}, "2002 bytes", True),
    ],
)
async def test_an_attempt_that_failed_says_why_in_words_and_whether_trying_again_is_of_use(
    bench: Benches, tool: str, arguments: dict[str, Any], words: str, permanent: bool
) -> None:
    async with bench() as house:
        outcome = await house.outcome(tool, arguments, terms=Terms(limits=Limits(result=1_000)))
        assert (outcome.kind, outcome.permanent) == ("failed", permanent)
        assert words in outcome.message.replace(",", "")
        assert "Traceback" not in outcome.message
        assert outcome.code == ("NOT_FOR_YOU" if tool == "refuse" else "TOOL_EXECUTION_FAILED")


@pytest.mark.parametrize(
    ("tool", "arguments", "code"),
    [("double", {"number": "many"}, "VALIDATION_FAILED"), ("nobody", {}, "JOB_REJECTED")],
)
async def test_what_cannot_be_started_is_told_so_and_never_was(
    bench: Benches, tool: str, arguments: dict[str, Any], code: str
) -> None:
    async with bench() as house:
        _, told = await house.begin(house.attempt(tool, arguments))
        outcome = await told.end()
        assert (outcome.kind, outcome.code, outcome.permanent) == ("unstarted", code, True)
        assert [kind for kind, _ in told.all] == ["ended"]


# --- what it says ---


async def test_what_an_attempt_says_is_reported_in_its_order_before_its_end(bench: Benches) -> None:
    async with bench() as house:
        _, told = await house.begin(house.attempt("tell", {"words": ["one", "two"]}, checkpoint=7, attempt=3))
        outcome = await told.end()
        assert outcome.result == {"job": "job_tell", "attempt": 3, "resume": 7}
        said = [kind for kind, _ in told.all if kind not in {"started", "log", "ended"}]
        assert [kind for kind in said if kind != "artifact"] == ["checkpoint", "progress"] * 2
        assert told.of("progress") == [{"fraction": 0.5, "message": "one"}, {"fraction": 1.0, "message": "two"}]
        assert told.of("artifact") == [{"name": "1.txt", "bytes": 3}, {"name": "2.txt", "bytes": 3}]
        assert told.fields | {"log": 0, "imported": 0} == {
            "progress": 1.0,
            "message": "two",
            "checkpoint": 2,
            "artifacts": {"1.txt": 3, "2.txt": 3},
            "log": 0,
            "imported": 0,
        }
        assert told.of("log")[-1]["end"] == told.fields["log"] == 8
        folder = house.folder / "jobs" / "job_tell"
        assert (folder / "artifacts" / "2.txt").read_text() == "two"
        assert (folder / "3" / "log.000000000000").read_text() == "one\ntwo\n"


async def test_an_attempt_waits_for_the_answer_to_its_question(bench: Benches) -> None:
    async with bench() as house:
        run, told = await house.begin(house.attempt("asks", {"question": "which?"}))
        assert await told.until("asks") == "which?"
        assert told.of("ended") == []
        run.answer("that", 1)
        assert (await told.end()).result == "which? that"


# --- how it is ended ---


async def test_an_attempt_that_sees_that_it_is_to_end_has_been_ended_whatever_it_returns(bench: Benches) -> None:
    async with bench() as house:
        run, told = await house.begin(house.attempt("obey", {"word": "half of it"}))
        await told.until("progress")
        run.stop("user")
        outcome = await told.end()
        assert (outcome.kind, outcome.reason, outcome.result) == ("stopped", "user", None)


async def test_an_attempt_that_waits_for_input_can_be_ended(bench: Benches) -> None:
    async with bench() as house:
        run, told = await house.begin(house.attempt("asks", {"question": "which?"}))
        await told.until("asks")
        run.stop("parent")
        outcome = await told.end()
        assert (outcome.kind, outcome.reason) == ("stopped", "parent")


@pytest.mark.parametrize(
    ("reason", "terms"),
    [
        ("attempt_timeout", Terms(attempt_timeout=0.05)),
        ("heartbeat", Terms(heartbeat=0.05)),
        ("deadline", Terms()),
    ],
)
async def test_an_attempt_ends_when_one_of_its_clocks_has_run_out(bench: Benches, reason: str, terms: Terms) -> None:
    async with bench() as house:
        expires_at = house.system.wall() + 0.05 if reason == "deadline" else None
        outcome = await house.outcome("obey", {}, terms=terms, expires_at=expires_at)
        assert (outcome.kind, outcome.reason) == ("stopped", reason)


async def test_the_first_reason_to_end_an_attempt_stays(bench: Benches) -> None:
    async with bench() as house:
        run, told = await house.begin(house.attempt("obey", {}, terms=Terms(attempt_timeout=0.02)))
        run.stop("user")
        run.stop("shutdown")
        assert (await told.end()).reason == "user"


# --- who looks after it ---


async def test_an_attempt_is_started_once_however_often_it_is_begun(bench: Benches, tmp_path: Path) -> None:
    async with bench() as house:
        attempt = house.attempt("witness", {"path": str(tmp_path / "seen")})
        first, told = await house.begin(attempt)
        await told.until("asks")
        first.leave()
        second, told = await house.begin(attempt)
        assert await told.until("asks") == "go on?"
        second.answer("yes", 1)
        assert (await told.end()).result == "yes"
        _, told = await house.begin(attempt)
        assert (await told.end()).result == "yes"
        assert (tmp_path / "seen").read_text() == "1\n"


async def test_an_attempt_that_was_left_goes_on_and_reports_to_who_adopts_it(bench: Benches) -> None:
    async with bench() as house:
        attempt = house.attempt("asks", {"question": "which?"})
        run, before = await house.begin(attempt)
        await before.until("asks")
        run.leave()
        told = Told()
        run = house.runner.run(attempt, told)
        await run.adopt()
        assert await told.until("asks") == "which?"
        run.answer("this", 1)
        assert (await told.end()).result == "which? this"
        assert len(told.of("started")) == 1, "its job was still STARTING"
        assert before.of("ended") == []


async def test_an_end_that_its_actor_did_not_live_to_write_down_is_told_again(bench: Benches) -> None:
    async with bench() as house:
        attempt = house.attempt("double", {"number": 4})
        _, before = await house.begin(attempt)
        expected = await before.end()
        told = Told()
        await house.runner.run(attempt, told).adopt()
        assert (await told.end()) == expected


async def test_what_is_known_to_the_job_is_not_told_again_when_it_is_adopted(bench: Benches) -> None:
    async with bench() as house:
        run, before = await house.begin(house.attempt("obey", {}))
        await before.until("progress")
        run.leave()
        known = house.attempt("obey", {}, state=State.RUNNING, **before.fields)
        told = Told()
        run = house.runner.run(known, told)
        await run.adopt()
        run.stop("user")
        assert (await told.end()).kind == "stopped"
        assert [kind for kind, _ in told.all] == ["ended"]
