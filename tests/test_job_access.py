"""Who may have what run as a job, on whose behalf, and whose it is then: rules over real sockets, with real jobs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from grami_actors import Agent, Config, GrowthManager, Message, Swarm, handles, tool
from grami_actors.api_keys import KeyStore
from grami_actors.client import Client, connect
from grami_actors.errors import GramiError
from grami_actors.job import Job, Order
from grami_actors.job_client import RemoteJob
from grami_actors.job_context import JobContext
from grami_actors.job_requests import JOBS, JobEnded, ListJobs
from grami_actors.permissions import Rule
from grami_actors.telemetry import JobChanged
from tests.conftest import Recorder, turns_until

BEGUN: list[str] = []
"""What ran, in order."""


@tool(job=True)
async def secret(ctx: JobContext) -> Any:
    BEGUN.append("secret")
    return await ctx.ask_input("what?")


@tool(job=True)
async def allowed(ctx: JobContext) -> Any:
    BEGUN.append("allowed")
    return await ctx.ask_input("what?")


class Shoot(Message):
    """Have this tool run, and say which job that is; ``later``: on your own account."""

    tool: str
    wake: str = ""
    later: bool = False


class Boss(Agent):
    """Has others work."""

    @handles(Shoot)
    async def shoot(self, message: Shoot) -> str:
        if message.later:
            self.after(0, Shoot(message.tool))
            return "later"
        return (await self.submit(message.tool, order=Order(wake=message.wake))).id


class ProcessBoss(Boss, name="boss", lane="process"):
    """The same, elsewhere."""


class Archive(Agent):
    """Is told."""

    @handles(JobEnded)
    def keep(self, ended: JobEnded) -> None:
        BEGUN.append(f"told {ended.job_id}")


BOSSES = (Boss, pytest.param(ProcessBoss, marks=pytest.mark.slow))

ASKS = Rule(principals=("ann", "bob"), send=("shoot",), to=("boss",))
BOSS = Rule(principals=("agent:boss",), send=("tool_call",), to=("tool:*",))
ALLOWED = Rule(principals=("ann",), send=("tool_call",), to=("tool:allowed",))
ROOT = Rule(principals=("root",), admin=True)


class Court:
    """A server with rules, and clients who are somebody each."""

    def __init__(self, manager: GrowthManager, clients: dict[str, Client]) -> None:
        self.manager = manager
        self.ann, self.bob, self.root, self.operator = (clients[name] for name in ("ann", "bob", "root", "operator"))

    async def jobs(self) -> list[Job]:
        """All that there are, the latest first."""
        found: list[Job] = await self.manager.system.ask(JOBS, ListJobs())
        return found


@asynccontextmanager
async def court(folder: Path, *rules: Rule, boss: type[Agent] = Boss, **settings: Any) -> AsyncIterator[Court]:
    BEGUN.clear()
    store = KeyStore(folder / "keys.json")
    known: dict[str, Any] = {"auth": ("keys",), "keys_file": store.path, "state_dir": folder / "state"}
    swarm = Swarm([boss, Archive], [secret, allowed])
    config = Config(rules=rules, drain_timeout=0.2, **known, **settings)
    async with asyncio.timeout(30), GrowthManager(swarm, config) as at, AsyncExitStack() as clients:
        tokens = {name: store.create(name, [], now=time.time())[1] for name in ("ann", "bob", "root")}
        tokens["operator"] = at.policy.authority.operator_token
        yield Court(
            at, {name: await clients.enter_async_context(connect(at.url, token=tokens[name])) for name in tokens}
        )


async def refusal(work: Awaitable[Any]) -> GramiError:
    with pytest.raises(GramiError) as refused:
        await work
    return refused.value


async def asked(job: RemoteJob) -> None:
    """Wait until a job waits for an answer."""
    async with contextlib.aclosing(job.events()) as events:
        async for event in events:
            if event.data.get("state") == "INPUT_REQUIRED":
                return


# --- on whose behalf ---


@pytest.mark.parametrize("boss", BOSSES)
@pytest.mark.parametrize("background", [False, True])
async def test_what_an_agent_submits_for_a_client_is_allowed_to_both_and_is_the_clients(
    tmp_path: Path, boss: type[Agent], *, background: bool
) -> None:
    async with court(tmp_path, ASKS, BOSS, ALLOWED, boss=boss) as at:

        async def shoot(client: Client, tool: str) -> Any:
            got = await client.request("shoot", tool=tool, background=background)
            return await got.result() if background else got

        for client, name, tool in ((at.ann, "ann", "secret"), (at.bob, "bob", "allowed")):
            refused = await refusal(shoot(client, tool))
            assert refused.error_code == "PERMISSION_DENIED"
            assert f"{name!r} may not send 'tool_call' to 'tool:{tool}' through 'agent:boss'" in refused.message
        assert {each.tool for each in await at.jobs()} <= {"request:shoot"}
        job = await shoot(at.ann, "allowed")
        found = await at.ann.jobs.get(job)
        assert found.view is not None
        assert (found.view.owner, found.view.tool) == ("ann", "allowed")
        assert (await refusal(at.bob.jobs.get(job))).error_code == "JOB_NOT_FOUND"
        await asked(found)
        assert BEGUN == ["allowed"]


async def test_what_a_client_may_have_done_through_an_agent_only_that_agent_submits(tmp_path: Path) -> None:
    through = Rule(principals=("ann",), through=("agent:boss",), send=("tool_call",), to=("tool:secret",))
    async with court(tmp_path, ASKS, BOSS, through) as at:
        assert (await refusal(at.ann.jobs.submit("secret"))).error_code == "PERMISSION_DENIED"
        job = await at.ann.request("shoot", tool="secret")
        assert [(each.id, each.owner) for each in await at.jobs()] == [(job, "ann")]
    async with court(tmp_path / "other", ASKS, through) as at:
        refused = await refusal(at.operator.request("shoot", tool="secret"))
        assert (refused.error_code, refused.message.partition(" may")[0]) == ("PERMISSION_DENIED", "'agent:boss'")
        assert await at.jobs() == []


@pytest.mark.parametrize("boss", BOSSES)
async def test_what_an_agent_submits_on_its_own_account_is_its_own(tmp_path: Path, boss: type[Agent]) -> None:
    async with court(tmp_path, ASKS, BOSS, ROOT, boss=boss) as at:
        changed = Recorder(at.manager.system, JobChanged)
        assert await at.ann.request("shoot", tool="secret", later=True) == "later"
        job = (await changed.first(JobChanged)).job
        assert [each.owner for each in await at.jobs()] == ["agent:boss"]
        assert await at.ann.jobs.list() == []
        assert (await refusal(at.ann.jobs.get(job))).error_code == "JOB_NOT_FOUND"
        assert [each.id for each in await at.root.jobs.list()] == [job]


@pytest.mark.parametrize("boss", BOSSES)
async def test_whoever_is_told_of_the_end_of_a_job_is_somebody_whom_both_may_tell(
    tmp_path: Path, boss: type[Agent]
) -> None:
    tells = Rule(principals=("agent:boss",), send=("job_ended",), to=("archive",))
    async with court(tmp_path, ASKS, BOSS, ALLOWED, boss=boss) as at:
        refused = await refusal(at.ann.request("shoot", tool="allowed", wake="archive"))
        assert "'agent:boss' may not send 'job_ended' to 'archive'" in refused.message
        assert await at.jobs() == []
    async with court(tmp_path / "one", ASKS, BOSS, ALLOWED, tells, boss=boss) as at:
        refused = await refusal(at.ann.request("shoot", tool="allowed", wake="archive"))
        assert "'ann' may not send 'job_ended' to 'archive' through 'agent:boss'" in refused.message
        assert await at.jobs() == []
    both = Rule(principals=("ann", "agent:boss"), send=("job_ended",), to=("archive", "nobody"))
    async with court(tmp_path / "two", ASKS, BOSS, ALLOWED, both, boss=boss) as at:
        job = await at.ann.request("shoot", tool="allowed", wake="archive")
        await asked(at.ann.jobs.job(job))
        await at.ann.jobs.job(job).answer(1)
        await turns_until(lambda: f"told {job}" in BEGUN)
        unknown = await refusal(at.ann.request("shoot", tool="allowed", wake="nobody"))
        assert (unknown.error_code, unknown.message) == ("VALIDATION_FAILED", "no agent or tool is named 'nobody'")


@pytest.mark.slow
async def test_a_request_that_waited_is_held_to_the_rules_that_are_there_when_it_runs(tmp_path: Path) -> None:
    async with court(tmp_path, ASKS, BOSS, ALLOWED, jobs_running=1) as at:
        await asked(await at.ann.jobs.submit("allowed"))
        waits = await at.ann.request("shoot", tool="allowed", background=True)
        assert (await waits.refresh()).state == "QUEUED"
    async with court(tmp_path, BOSS, ALLOWED, ROOT) as at:
        refused = await refusal(at.root.jobs.job(waits.id).result())
        assert refused.error_code == "PERMISSION_DENIED"
        assert BEGUN == []
        assert [each.tool for each in await at.jobs()] == ["request:shoot", "allowed"]


# --- whose it is ---


async def test_the_operator_and_administrators_see_answer_and_end_what_stays_its_owners(tmp_path: Path) -> None:
    async with court(tmp_path, ALLOWED, ROOT) as at:
        first, second = await at.ann.jobs.submit("allowed"), await at.ann.jobs.submit("allowed")
        for job in (first, second):
            await asked(job)
        for client in (at.root, at.operator):
            assert {each.id for each in await client.jobs.list()} == {first.id, second.id}
        await at.root.jobs.job(first.id).answer("by root")
        assert await first.result() == "by root"
        told = [each.data["answered_by"] async for each in first.events() if "answered_by" in each.data]
        assert told == ["root"]
        await at.operator.jobs.job(second.id).cancel()
        assert (await refusal(second.result())).error_code == "CANCELLED"
        assert (await refusal(at.root.jobs.job(first.id).retry())).error_code == "PERMISSION_DENIED"
        again = await at.operator.jobs.job(first.id).retry()
        assert [each.id for each in await at.ann.jobs.list()] == [again.id, second.id, first.id]
        assert await at.bob.jobs.list() == []
