"""Tools that are offered as jobs: their options, where they run, and the context that is none of their arguments."""

from __future__ import annotations

import pickle
from typing import Any, Optional

import pytest

from grami_actors import ActorSystem, Swarm, ToolExecutionFailed, cancelled, connect, lazy_tool, tool
from grami_actors.errors import ProtocolError
from grami_actors.job import Limits, Retry, Terms
from grami_actors.job_context import JobContext
from grami_actors.messages import ToolCall
from grami_actors.null_context import NullContext
from grami_actors.tools import TIMEOUT, JobOptions, Tool
from tests.conftest import running, serving


def render(frames: int, ctx: JobContext, *, scale: float = 1.0) -> dict[str, Any]:
    """Render frames."""
    ctx.progress(0.5, "half")
    ctx.heartbeat()
    ctx.log("a line")
    ctx.checkpoint({"frame": frames})
    ctx.artifact("frame.txt", "content")
    return {"frames": frames, "job": ctx.job_id, "resume": ctx.resume, "cancelled": ctx.cancelled}


def asks(ctx: JobContext) -> Any:
    return ctx.ask_input("which?")


async def awaits(number: int, ctx: JobContext) -> int:
    return number


process_render = Tool(render, name="process_render", job=True)

CALLED = {"frames": 3, "job": "", "resume": None, "cancelled": False}


# --- where it runs ---


def test_a_plain_function_that_is_a_job_runs_outside_and_a_coroutine_function_inside() -> None:
    lanes = [
        (Tool(render, job=True), "process", "outside"),
        (Tool(awaits, job=True), "loop", "inside"),
        (Tool(render, job=True, lane="thread"), "thread", "inside"),
        (lazy_tool("tests.scripts.lazy:reverse", job=True), "process", "outside"),
        (Tool(render), "thread", "inside"),
    ]
    for made, lane, runner in lanes:
        assert (made.lane, made.runner) == (lane, runner)


def test_a_job_outside_needs_an_import_path_when_it_is_declared() -> None:
    def local(number: int) -> int:
        return number

    with pytest.raises(TypeError, match="at the top of a module; or have its jobs run in the server, with lane='thr"):
        tool(job=True)(local)
    assert tool(job=True, lane="thread")(local).runner == "inside"
    assert tool(lane="process")(local).lane == "process", "which says so when it is sent, as before"


@pytest.mark.parametrize("limits", [{"memory": 1}, {"cpu": 1}, {"processes": 1}, {"files": 8}])
def test_what_runs_in_the_server_cannot_be_limited_like_a_process(limits: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"neither be limited in {next(iter(limits))} nor be killed"):
        tool(job=True, lane="thread", limits=Limits(**limits))(render)
    assert tool(job=True, limits=Limits(**limits))(render).runner == "outside"
    assert tool(job=True, lane="thread", limits=Limits(log=5_000, result=5))(render).runner == "inside"


# --- its options ---


def test_the_options_of_a_job_are_its_terms_and_all_of_them() -> None:
    assert set(JobOptions.__annotations__) - {"job"} == set(Terms.__struct_fields__) - {"concurrency"}
    retry, limits = Retry(attempts=3), Limits(memory=2**30)
    made = tool(job=True, effect="idempotent", retry=retry, limits=limits, queue=9, strays="kill")(render)
    assert made.job
    assert made.terms == Terms(effect="idempotent", retry=retry, limits=limits, queue=9, strays="kill")
    assert (tool(render).job, tool(render).terms) == (False, Terms())


def test_the_timeout_and_concurrency_of_calls_bound_jobs_where_they_are_given() -> None:
    plain = tool(job=True)(render)
    assert (plain.timeout, plain.concurrency) == (TIMEOUT, 1)
    assert (plain.terms.attempt_timeout, plain.terms.concurrency) == (None, None)
    given = tool(job=True, timeout=90, concurrency=2)(render)
    assert (given.timeout, given.terms.attempt_timeout, given.terms.concurrency) == (90, 90, 2)
    both = tool(job=True, timeout=90, attempt_timeout=3_600)(render)
    assert (both.timeout, both.terms.attempt_timeout) == (90, 3_600)
    assert tool(timeout=90)(render).terms == Terms()


def test_an_option_of_jobs_needs_a_job_and_one_that_does_not_exist_is_named() -> None:
    with pytest.raises(TypeError, match="'effect' is an option of jobs, so it needs job=True"):
        tool(effect="pure")(render)
    with pytest.raises(TypeError, match="'retries' is no option of tools"):
        tool(job=True, retries=3)(render)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"effect": "harmless"}, "effect"),
        ({"attempt_timeout": 0}, "attempt_timeout"),
        ({"retry": Retry(attempts=0)}, "retry.attempts"),
        ({"retry": 3}, "retry"),
        ({"strays": "ignore"}, "strays"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_with_its_place(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tool(job=True, **options)(render)


# --- its context ---


def test_the_context_is_no_argument_and_stands_in_no_schema() -> None:
    made = tool(job=True)(render)
    assert made.wants_context == "ctx"
    assert tool(job=True, lane="thread")(awaits).wants_context == "ctx"
    assert made.convert({"frames": 3}) == {"frames": 3, "scale": 1.0}
    with pytest.raises(ProtocolError, match="ctx"):
        made.convert({"frames": 3, "ctx": {}})
    parameters = made.describe().parameters
    assert parameters is not None
    assert set(parameters["$defs"]["render"]["properties"]) == {"frames", "scale"}


def test_a_context_is_annotated_plainly_and_once() -> None:
    def optional(ctx: JobContext | None = None) -> None: ...
    def old_optional(ctx: Optional[JobContext] = None) -> None: ...  # noqa: UP045 - what is tested
    def twice(one: JobContext, two: JobContext) -> None: ...

    for function in (optional, old_optional):
        with pytest.raises(TypeError, match="annotate it as JobContext alone"):
            tool(function)
    with pytest.raises(TypeError, match="'one' and 'two' are the same context"):
        tool(twice)


def test_a_lazy_tool_knows_its_context_when_it_is_loaded() -> None:
    lazy = lazy_tool("tests.test_job_tools:render")
    assert lazy.wants_context is None
    assert lazy(3) == CALLED
    assert lazy.wants_context == "ctx"


def test_a_plain_call_gets_a_context_that_keeps_nothing_or_the_one_it_is_given() -> None:
    class Mine(NullContext):
        job_id = "mine"

    made = tool(job=True)(render)
    assert made(3) == made(frames=3) == CALLED  # type: ignore[call-arg]
    assert made(3, Mine())["job"] == made(3, ctx=Mine())["job"] == "mine"
    with pytest.raises(RuntimeError, match="nobody to ask for input; submit it as a job"):
        tool(asks)()  # type: ignore[call-arg]


@pytest.mark.parametrize("served", [Tool(render, name="render", job=True, lane="thread"), process_render], ids=repr)
async def test_a_job_can_be_called_like_any_tool(served: Tool[..., Any]) -> None:
    async with running() as system:
        await Swarm([], [served, Tool(asks)]).start(system)
        assert await called(system, served.name, frames=3) == CALLED
        with pytest.raises(ToolExecutionFailed, match="nobody to ask for input"):
            await called(system, "asks")


async def called(system: ActorSystem, name: str, **arguments: Any) -> Any:
    return await system.ask(f"tool:{name}", ToolCall(arguments))


async def test_the_progress_of_a_call_goes_to_who_streams_it() -> None:
    served = Swarm([], [Tool(render, job=True, lane="thread")])
    async with serving(served) as manager, connect(manager.url) as grami:
        stream = grami.stream("tool_call", to="tool:render", arguments={"frames": 3})
        frames = [each async for each in stream]
        assert [each.progress for each in frames if each.progress is not None] == [0.5]
        assert frames[-1].data == CALLED
        assert cancelled() is NullContext().cancelled is False


# --- what is told of it ---


def test_describe_tells_that_it_is_a_job_what_doing_it_twice_does_and_where_it_runs() -> None:
    told = tool(job=True, effect="resumable")(render).describe()
    assert (told.job, told.effect, told.runner, told.lane) == (True, "resumable", "outside", "process")
    plain = tool(render).describe()
    assert (plain.job, plain.effect, plain.runner) == (False, None, None)
    broken = lazy_tool("no_such_module_at_all:run", job=True).describe()
    assert (broken.job, broken.effect, broken.runner) == (True, "unsafe", "outside")


def test_a_job_outside_goes_to_a_worker_process_by_its_import_path() -> None:
    copy = pickle.loads(pickle.dumps(process_render))
    assert process_render.import_path() == "tests.test_job_tools:render"
    assert (copy.name, copy.lane, copy(3)) == ("process_render", "process", CALLED)
