"""Jobs over real sockets: who may do what with which, and what an attached client hears."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from grami_actors import Config, GramiError, GrowthManager, connect
from grami_actors.api_keys import KeyStore
from grami_actors.client import Client
from grami_actors.errors import Cancelled, JobError, ToolExecutionFailed
from grami_actors.gateway.attachments import PAGE
from grami_actors.job import Order
from grami_actors.job_requests import JOBS
from grami_actors.permissions import Rule
from grami_actors.policy import Rate
from grami_actors.telemetry import ConnectionClosed as ClosedEvent
from tests.conftest import Recorder, cut, heard, raw, tell, turns_until
from tests.job_desk import working
from tests.swarms import small_swarm

MSGPACK = "grami.v1.msgpack"


async def answer(socket: ClientConnection, **message: Any) -> dict[str, Any]:
    """The answer to a request, whatever events come before it."""
    await tell(socket, **message)
    while (frame := await heard(socket)).get("type", "").startswith("job."):
        pass
    return frame


async def submit(socket: ClientConnection, tool: str = "echo", **fields: Any) -> dict[str, Any]:
    return (await answer(socket, type="job.submit", id="s", tool=tool, **fields))["data"]


async def done(socket: ClientConnection, job: str) -> dict[str, Any]:
    """The view of a job at its end."""
    await answer(socket, type="job.attach", id="a", job_id=job)
    while True:
        frame = await heard(socket)
        if frame["kind"] == "state" and frame["data"]["state"] in {"SUCCEEDED", "FAILED", "CANCELLED"}:
            return (await answer(socket, type="job.get", id="g", job_id=job))["data"]


def numbers(frames: list[dict[str, Any]]) -> list[int]:
    return [frame["seq"] for frame in frames if frame["type"] == "job.event"]


# --- submitting, looking, ending ---


async def test_a_job_is_submitted_listed_read_and_retried_with_or_without_an_id() -> None:
    async with working() as (manager, _), raw(manager) as socket:
        view = await submit(socket, "print", arguments={"text": "hällo"}, priority=5, deadline_ms=9_000)
        assert (view["tool"], view["state"], view["status"], view["owner"]) == (
            "print",
            "QUEUED",
            "submitted",
            "anonymous",
        )
        assert (view["priority"], view["deadline_ms"], view["created_at"]) == (5, 9_000, "2001-09-09T01:46:40.000Z")
        ended = await done(socket, view["job_id"])
        assert (ended["state"], ended["result"], ended["artifacts"]) == ("SUCCEEDED", {"text": "hällo"}, {"out.bin": 6})
        plain = await answer(socket, type="job.list")
        assert set(plain) == {"status", "data"}
        (listed,) = plain["data"]["jobs"]
        assert "result" not in listed
        assert "arguments" not in listed
        again = await answer(socket, type="job.retry", id=1, job_id=view["job_id"])
        assert again["data"]["job_id"] != view["job_id"]
        assert len((await answer(socket, type="job.list", id=2, states=["SUCCEEDED"]))["data"]["jobs"]) in {1, 2}


async def test_the_key_of_a_job_is_its_own_and_stands_for_it_on_every_connection() -> None:
    async with working() as (manager, desk), raw(manager) as one, raw(manager) as other:
        first = await submit(one, arguments={"a": 1}, idempotency_key="k")
        second = await submit(other, arguments={"a": 1}, idempotency_key="k")
        assert first["job_id"] == second["job_id"]
        refused = await answer(other, type="job.submit", id=1, tool="echo", arguments={"a": 2}, idempotency_key="k")
        assert refused["error_code"] == "IDEMPOTENCY_KEY_REUSED"
        assert len(desk.jobs) == 1


async def test_a_request_in_the_background_is_checked_as_always_and_its_answer_is_the_result_of_a_job() -> None:
    async with working() as (manager, desk), raw(manager) as socket:
        told = await answer(socket, type="echo", text="x", id=1, background=True, timeout_ms=3_600_000)
        view = told["data"]
        assert (view["tool"], view["deadline_ms"]) == ("request:echo", 3_600_000)
        assert (await done(socket, view["job_id"]))["result"] == {"text": "x", "number": 0}
        for fields, code in [
            ({"type": "echo", "text": 5}, "VALIDATION_FAILED"),
            ({"type": "ecoh", "text": "x"}, "UNKNOWN_TYPE"),
            ({"type": "echo", "text": "x", "to": "nobody"}, "DESTINATION_NOT_FOUND"),
            ({"type": "echo", "text": "x", "to": JOBS}, "DESTINATION_NOT_FOUND"),
            ({"type": "echo", "text": "x", "stream": True}, "INVALID_MESSAGE"),
            ({"type": "describe"}, "INVALID_MESSAGE"),
        ]:
            assert (await answer(socket, id=2, background=True, **fields))["error_code"] == code
        assert len(desk.jobs) == 1


async def test_a_job_is_cancelled_by_either_word_and_only_once() -> None:
    async with working() as (manager, _), raw(manager) as socket:
        view = await submit(socket, "hold")
        assert (await answer(socket, type="cancel", id=1, job_id=view["job_id"]))["data"]["state"] == "CANCELLED"
        refused = await answer(socket, type="job.cancel", id=2, job_id=view["job_id"], force=True)
        assert refused["error_code"] == "JOB_NOT_CANCELABLE"
        assert (await answer(socket, type="cancel", job_id="job_nothing"))["error_code"] == "JOB_NOT_FOUND"
        both = await answer(socket, type="cancel", id=3, job_id=view["job_id"], request_id="1")
        assert (both["error_code"], both["param"]) == ("VALIDATION_FAILED", "$.job_id")


async def test_a_question_is_answered_once() -> None:
    async with working() as (manager, desk), raw(manager) as socket:
        view = await submit(socket, "ask")
        await turns_until(lambda: desk.jobs[view["job_id"]].question)
        asked = await answer(socket, type="job.get", id=1, job_id=view["job_id"])
        assert (asked["data"]["status"], asked["data"]["question"]) == ("input_required", "which?")
        given_ = await answer(socket, type="job.input", id=2, job_id=view["job_id"], answer={"it": None})
        assert given_["data"]["state"] == "RUNNING"
        again = await answer(socket, type="job.input", id=3, job_id=view["job_id"], answer=1)
        assert again["error_code"] == "JOB_NOT_AWAITING_INPUT"
        assert (await done(socket, view["job_id"]))["result"] == {"it": None}


async def test_where_no_jobs_can_be_kept_all_of_it_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "jobs.lock").mkdir()
    config = Config(state_dir=tmp_path)
    async with GrowthManager(small_swarm(), config) as manager, raw(manager) as socket:
        for fields in (
            {"type": "job.submit", "tool": "echo"},
            {"type": "job.attach", "job_id": "x"},
            {"type": "cancel", "job_id": "x"},
            {"type": "echo", "text": "x", "background": True},
        ):
            refused = await answer(socket, id=1, **fields)
            assert refused["error_code"] == "UNSUPPORTED_FEATURE"
            assert str(tmp_path) in refused["message"]


async def test_a_server_that_is_about_to_stop_takes_no_jobs_and_tells_of_those_it_has() -> None:
    async with working(drain_timeout=5.0) as (manager, _), raw(manager) as socket, raw(manager) as other:
        view = await submit(socket, "hold")
        assert manager._gateway is not None
        (actor, *_) = manager._gateway._actors()
        actor.protocol.draining = True
        assert (await answer(socket, type="job.submit", id=1, tool="echo"))["error_code"] == "SHUTTING_DOWN"
        assert (await answer(socket, type="job.retry", id=2, job_id="x"))["error_code"] == "SHUTTING_DOWN"
        background = await answer(socket, type="echo", text="x", background=True, id=3)
        assert background["error_code"] == "SHUTTING_DOWN"
        assert (await answer(socket, type="job.get", id=4, job_id=view["job_id"]))["status"] == "success"
        assert (await answer(socket, type="job.attach", id=5, job_id=view["job_id"]))["status"] == "success"
        assert (await answer(other, type="job.submit", id=1, tool="echo"))["status"] == "success"


# --- who may ---


async def test_a_job_is_its_owners_and_the_administrators_and_nobody_elses(tmp_path: Path) -> None:
    rules = (Rule(send=("*",), principals=("ann", "bob", "root")), Rule(principals=("root",), admin=True))
    store = KeyStore(tmp_path / "keys.json")
    keys = {
        name: {"Authorization": f"Bearer {store.create(name, [], now=time.time())[1]}"}
        for name in ("ann", "bob", "root")
    }
    async with (
        working(rules=rules, auth=("keys",), keys_file=store.path) as (manager, desk),
        raw(manager, additional_headers=keys["ann"]) as ann,
        raw(manager, additional_headers=keys["bob"]) as bob,
        raw(manager, additional_headers=keys["root"]) as root,
    ):
        view = await submit(ann, "hold")
        job = view["job_id"]
        before = len(desk.events[job])
        for fields in (
            {"type": "job.get"},
            {"type": "job.cancel"},
            {"type": "job.input", "answer": 1},
            {"type": "job.retry"},
            {"type": "job.read"},
            {"type": "job.attach"},
            {"type": "cancel"},
        ):
            refused = await answer(bob, id=1, job_id=job, **fields)
            nothing = await answer(bob, id=1, job_id="job_nothing", **fields)
            assert refused["error_code"] == nothing["error_code"] == "JOB_NOT_FOUND"
            assert refused["message"].replace(job, "") == nothing["message"].replace("job_nothing", "")
        assert (await answer(bob, type="job.list", id=1))["data"]["jobs"] == []
        assert [each["job_id"] for each in (await answer(root, type="job.list", id=1))["data"]["jobs"]] == [job]
        assert len(desk.events[job]) - before <= 1
        assert (await answer(root, type="job.cancel", id=1, job_id=job))["data"]["owner"] == "ann"


async def test_a_tool_that_one_may_not_call_one_may_not_submit_whether_it_is_there_or_not() -> None:
    rules = (Rule(send=("tool_call",), to=("tool:echo",)), Rule(send=("echo",), to=("echoer",)))
    async with working(rules=rules) as (manager, desk), raw(manager) as socket:
        refused = [await answer(socket, type="job.submit", id=1, tool=tool) for tool in ("hold", "nothing")]
        assert {each["error_code"] for each in refused} == {"PERMISSION_DENIED"}
        assert refused[0]["message"].replace("hold", "nothing") == refused[1]["message"]
        wake = await answer(socket, type="job.submit", id=1, tool="echo", wake="echoer")
        assert (wake["error_code"], wake["param"]) == ("PERMISSION_DENIED", "$.wake")
        there = await answer(socket, type="echo", text="x", id=1, background=True)
        assert there["status"] == "success"
        elsewhere = await answer(socket, type="echo", text="x", id=1, background=True, to="holder")
        assert elsewhere["error_code"] == "PERMISSION_DENIED"
        assert (await submit(socket, "echo"))["tool"] == "echo"
        assert len(desk.jobs) == 2


async def test_a_retry_takes_the_right_that_its_tool_takes_now() -> None:
    rules = (Rule(send=("tool_call",), to=("tool:echo",)),)
    async with working(rules=rules) as (manager, desk), raw(manager) as socket:
        view = await submit(socket, "echo")
        desk.jobs[view["job_id"]] = msgspec.structs.replace(desk.jobs[view["job_id"]], tool="hold")
        assert (await answer(socket, type="job.retry", id=1, job_id=view["job_id"]))[
            "error_code"
        ] == "PERMISSION_DENIED"


async def test_a_retry_runs_with_the_scopes_that_its_owner_has_now(tmp_path: Path) -> None:
    rules = (Rule(send=("*",)), Rule(principals=("root",), admin=True))
    store = KeyStore(tmp_path / "keys.json")
    wide, narrow, root = (
        {"Authorization": f"Bearer {store.create(name, scopes, now=time.time())[1]}"}
        for name, scopes in (("ann", ["wide", "other"]), ("ann", ["narrow"]), ("root", ["mighty"]))
    )
    async with working(rules=rules, auth=("keys",), keys_file=store.path) as (manager, desk):
        async with raw(manager, additional_headers=wide) as ann:
            job = (await submit(ann))["job_id"]
            await done(ann, job)
        for headers, scopes in ((narrow, ("narrow",)), (root, ("other", "wide"))):
            async with raw(manager, additional_headers=headers) as socket:
                view = (await answer(socket, type="job.retry", id=1, job_id=job))["data"]
                assert (view["owner"], desk.jobs[view["job_id"]].scopes) == ("ann", scopes)


async def test_jobs_are_submitted_no_faster_than_the_rates_allow() -> None:
    rates = (Rate(per_second=0.01, burst=1, types=("job.submit", "echo")),)
    async with working(rates=rates) as (manager, _), raw(manager) as socket:
        view = await submit(socket)
        assert (await answer(socket, type="job.submit", id=1, tool="echo"))["error_code"] == "RATE_LIMITED"
        assert (await answer(socket, type="job.retry", id=1, job_id=view["job_id"]))["error_code"] == "RATE_LIMITED"
        assert (await answer(socket, type="echo", text="x", id=1, background=True))["status"] == "success"
        assert (await answer(socket, type="echo", text="x", id=1, background=True))["error_code"] == "RATE_LIMITED"


# --- attaching ---


async def test_what_was_missed_comes_behind_the_answer_and_then_what_happens_to_the_end() -> None:
    async with working() as (manager, _), raw(manager) as socket, raw(manager) as other:
        view = await submit(socket, "ask", arguments={"n": 3 * PAGE})
        await tell(socket, type="job.attach", id=1, job_id=view["job_id"], after_seq=1)
        first = await heard(socket)
        assert (first["type"], first["data"]["job_id"]) == ("response", view["job_id"])
        await answer(other, type="job.input", id=1, job_id=view["job_id"], answer=1)
        frames: list[dict[str, Any]] = []
        while not frames or frames[-1]["data"].get("state") != "SUCCEEDED":
            frames.append(await heard(socket))
        assert numbers(frames) == list(range(2, 3 * PAGE + 6))
        assert set(frames[0]) == {"type", "job_id", "seq", "at", "attempt", "kind", "data"}
        assert frames[0]["at"].endswith("Z")
        assert manager._gateway is not None
        assert not any(actor.protocol.attachments for actor in manager._gateway._actors())
        over = await answer(socket, type="job.attach", id=2, job_id=view["job_id"], after_seq=frames[-1]["seq"])
        assert over["data"]["seq"] == frames[-1]["seq"]
        assert await answer(socket, type="ping", id=3) == {"type": "pong", "id": 3}
        ahead = await answer(socket, type="job.attach", id=4, job_id=view["job_id"], after_seq=10_000)
        assert (ahead["error_code"], ahead["param"]) == ("UNRECOVERABLE_POSITION", "$.after_seq")


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=4), st.booleans())
def test_attached_again_in_the_middle_the_last_answer_is_followed_by_every_event_once(
    places: list[int], detach: bool
) -> None:
    async def run() -> None:
        async with working() as (manager, _), raw(manager) as socket:
            job = (await submit(socket, "count", arguments={"n": 300}))["job_id"]
            for number, after in enumerate(places):
                await tell(socket, type="job.attach", id=number, job_id=job, after_seq=0 if number == 0 else after)
                if detach and number < len(places) - 1:
                    await tell(socket, type="job.detach", id=f"d{number}", job_id=job)
            last, frames = len(places) - 1, []
            while (frame := await heard(socket)).get("id") != last:
                pass
            if frame["status"] == "error":  # it had not come so far
                assert frame["error_code"] == "UNRECOVERABLE_POSITION"
                return
            while not frames or frames[-1].get("data", {}).get("state") != "SUCCEEDED":
                frames.append(await heard(socket))
            assert numbers(frames) == list(range((0 if last == 0 else places[-1]) + 1, 304))

    asyncio.run(run())


async def test_attachments_count_with_subscriptions_and_keep_a_connection() -> None:
    async with working(max_subscriptions=2, idle_timeout=1.0) as (manager, _), raw(manager) as socket:
        one, two = [(await submit(socket, "hold"))["job_id"] for _ in range(2)]
        await answer(socket, type="subscribe", id=1, topic="a")
        await answer(socket, type="job.attach", id=2, job_id=one)
        full = await answer(socket, type="job.attach", id=3, job_id=two)
        assert (full["error_code"], full["param"]) == ("RESOURCE_EXHAUSTED", "$.job_id")
        assert (await answer(socket, type="job.attach", id=3, job_id=one))["status"] == "success"
        assert manager._gateway is not None
        assert len(manager._gateway.watch._hearers[one]) == 1
        assert (await answer(socket, type="subscribe", id=4, topic="b"))["error_code"] == "RESOURCE_EXHAUSTED"
        await answer(socket, type="unsubscribe", id=5, topic="a")
        assert manager._gateway is not None
        (actor,) = manager._gateway._actors()
        assert not actor.protocol.overdue(actor._now() + 1e6)
        assert (await answer(socket, type="job.detach", id=6, job_id=one))["data"] == {"job_id": one, "detached": True}
        assert (await answer(socket, type="job.detach", id=7, job_id=one))["data"]["detached"] is False
        assert actor.protocol.overdue(actor._now() + 1e6)
        assert (await answer(socket, type="job.attach", id=8, job_id="nothing"))["error_code"] == "JOB_NOT_FOUND"
        assert (await answer(socket, type="job.attach", job_id=one))["error_code"] == "INVALID_MESSAGE"
        assert actor.protocol.attachments == set()


async def test_a_client_that_detaches_before_it_is_answered_hears_nothing_more() -> None:
    async with working() as (manager, desk), raw(manager) as socket:
        job = (await submit(socket, "hold"))["job_id"]
        await tell(socket, type="job.attach", id=1, job_id=job)
        await tell(socket, type="job.detach", id=2, job_id=job)
        frames = {frame["id"]: frame for frame in (await heard(socket), await heard(socket))}
        assert frames[1]["status"] == "success"
        assert frames[2]["data"]["detached"] is True
        desk.commit(job, "progress", {"fraction": 0.5})
        assert (await answer(socket, type="job.get", id=3, job_id=job))["data"]["seq"] == 3
        assert manager._gateway is not None
        assert manager._gateway.watch._hearers == {}
        (actor,) = manager._gateway._actors()
        assert actor.protocol.attachments == set()


async def test_a_client_that_is_gone_is_woken_no_more() -> None:
    async with working() as (manager, desk):
        async with raw(manager) as socket:
            job = (await submit(socket, "hold"))["job_id"]
            await answer(socket, type="job.attach", id=1, job_id=job)
            assert manager._gateway is not None
            assert manager._gateway.watch._hearers
        watch = manager._gateway.watch
        await turns_until(lambda: not watch._hearers)
        assert watch._unsubscribe is None
        desk.commit(job, "progress", {"fraction": 0.5})


async def test_one_who_attached_to_what_is_removed_is_told() -> None:
    async with working() as (manager, desk), raw(manager) as socket:
        job = (await submit(socket, "hold"))["job_id"]
        await answer(socket, type="job.attach", id=1, job_id=job)
        await turns_until(lambda: desk.jobs[job].seq == 2)
        while (await heard(socket))["seq"] < 2:
            pass
        desk.events[job].clear()
        desk.commit(job, "progress", {})
        desk.events[job].clear()
        frame = await heard(socket)
        assert (frame["type"], frame["job_id"], frame["error_code"]) == ("job.detached", job, "JOB_NOT_FOUND")


@pytest.mark.slow
async def test_a_reader_that_does_not_read_costs_no_more_than_its_outbox_whatever_the_job_has_to_tell() -> None:
    async with working(outbox_bytes=50_000) as (manager, desk):
        closed = Recorder(manager.system, ClosedEvent)
        async with raw(manager, max_queue=1, close_timeout=0.1) as socket, raw(manager) as other:
            job = (await submit(other, "hold"))["job_id"]
            desk.fill(job, 100_000)
            await tell(socket, type="job.attach", id=1, job_id=job)
            socket.transport.pause_reading()
            gateway: Any = manager._gateway
            await turns_until(lambda: any(each.protocol.attachments for each in gateway._actors()))
            [actor] = [each for each in gateway._actors() if each.protocol.attachments]
            peak = 0

            def watched() -> list[Any]:
                nonlocal peak
                peak = max(peak, actor.outbox.size)
                return closed.events

            await turns_until(watched)
            assert closed.events[0].code == 4508
            assert 50_000 < peak < 55_000
            # What the kernel takes for a reader that does not read is the machine's, some megabytes.
            assert desk.reads < 20_000
            with contextlib.suppress(ConnectionClosed):
                socket.transport.resume_reading()


# --- output ---


@pytest.mark.parametrize("text", ["hello\n", "ä€🙂" * 50, ""])
async def test_a_log_is_text_in_json_and_bytes_in_messagepack_and_no_character_is_cut(text: str) -> None:
    async with working() as (manager, _), raw(manager) as socket:
        job = (await submit(socket, "print", arguments={"text": text}))["job_id"]
        await done(socket, job)
        got, offset, end = "", 0, False
        while not end:
            piece = (await answer(socket, type="job.read", id=1, job_id=job, offset=offset, limit=5))["data"]
            got, offset, end = got + piece["text"], piece["next_offset"], piece["end"]
        assert (got, offset) == (text, len(text.encode()))
        piece = (await answer(socket, type="job.read", id=1, job_id=job, artifact="out.bin"))["data"]
        assert base64.b64decode(piece["base64"]) == text.encode()
        assert set(piece) == {"offset", "next_offset", "dropped", "size", "end", "attempt", "base64"}
        async with raw(manager, subprotocols=[MSGPACK]) as packed:
            await packed.send(msgspec.msgpack.encode({"type": "job.read", "id": 1, "job_id": job}))
            told = msgspec.msgpack.decode(await packed.recv())["data"]
            assert told["data"] == text.encode()


async def test_a_read_waits_for_more_as_long_as_it_is_told_to() -> None:
    async with working(request_timeout_ms=50) as (manager, desk), raw(manager) as socket:
        job = (await submit(socket, "hold"))["job_id"]
        piece = (await answer(socket, type="job.read", id=1, job_id=job, wait_ms=100))["data"]
        assert (piece["text"], piece["end"], piece["next_offset"]) == ("", False, 0)
        await tell(socket, type="job.read", id=2, job_id=job, wait_ms=30_000)
        await answer(socket, type="ping", id=3)
        desk.logs[job] = b"more"
        desk.commit(job, "log", {"end": 4})
        assert (await heard(socket))["data"]["text"] == "more"


# --- the client ---


async def test_the_client_submits_follows_reads_answers_and_gets_the_result() -> None:
    async with working() as (manager, _), connect(manager.url) as grami:
        job = await grami.jobs.submit("ask", {"n": 5}, order=Order(priority=3, not_before=1e9, deadline=60.0))
        assert job.view is not None
        assert (job.view.priority, job.view.deadline_ms, job.view.not_before) == (3, 60_000, "2001-09-09T01:46:40.000Z")
        seen = []
        async for event in job.events():
            seen.append(event)
            if event.data.get("state") == "INPUT_REQUIRED":
                await job.answer("this")
        assert [event.seq for event in seen] == list(range(1, len(seen) + 1))
        assert (seen[-1].data["state"], await job.result()) == ("SUCCEEDED", "this")
        assert [event.seq async for event in job.events(seen[-1].seq)] == []
        assert [each.id for each in await grami.jobs.list(states=["SUCCEEDED"])] == [job.id]
        again = await job.retry()
        assert (await again.cancel()).state == "CANCELLED"
        with pytest.raises(Cancelled):
            await again.result()
        with pytest.raises(JobError) as refused:
            await grami.jobs.get("nothing")
        assert refused.value.error_code == "JOB_NOT_FOUND"
        with pytest.raises(ToolExecutionFailed, match="it failed"):
            await (await grami.jobs.submit("fail")).result()
        with pytest.raises(GramiError):
            await grami.jobs.job("nothing").events().__anext__()


async def test_a_request_in_the_background_is_a_job_for_the_client() -> None:
    async with working() as (manager, _), connect(manager.url) as grami:
        job = await grami.request("echo", text="x", background=True, timeout=3600)
        assert await job.result() == {"text": "x", "number": 0}
        assert job.view is not None
        assert job.view.deadline_ms == 3_600_000


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
async def test_the_client_reads_output_to_its_end(encoding: Any) -> None:
    content = bytes(range(256)) * 1_000
    async with working() as (manager, _), connect(manager.url, encoding=encoding) as grami:
        job = await grami.jobs.submit("print", {"hex": content.hex()})
        await job.result()
        assert b"".join([piece async for piece in job.output(artifact="out.bin")]) == content
        log = b"".join([piece async for piece in job.output(follow=True)])
        assert log == (content if encoding == "msgpack" else content.decode(errors="replace").encode())


@pytest.mark.slow
async def test_a_client_that_reconnects_gets_every_event_once() -> None:
    async with working() as (manager, desk), connect(manager.url) as grami, connect(manager.url) as other:
        job = await grami.jobs.submit("ask", {"n": 5_000})
        await turns_until(lambda: desk.jobs[job.id].state == "INPUT_REQUIRED")
        await other.jobs.job(job.id).answer("x")
        seen = []
        async for event in job.events():
            seen.append(event.seq)
            if event.seq % 1_500 == 0:
                grami.cut()
        assert seen == list(range(1, 5_006))
        assert await job.result() == "x"


async def test_output_goes_on_over_a_lost_connection() -> None:
    async with working() as (manager, desk), connect(manager.url) as grami:
        job = await grami.jobs.submit("hold")
        desk.logs[job.id] = b"one "
        got = []
        async for piece in job.output(follow=True):
            got.append(piece)
            if len(got) == 1:
                cut(manager)
                desk.logs[job.id] += b"two"
            else:
                await job.cancel()
        assert b"".join(got) == b"one two"


async def test_two_who_follow_the_same_job_get_every_event_once_each() -> None:
    async with working() as (manager, desk), connect(manager.url) as grami:
        job = await grami.jobs.submit("ask", {"n": 3_000})
        await turns_until(lambda: desk.jobs[job.id].state == "INPUT_REQUIRED")

        async def follow(client: Client, after: int) -> list[int]:
            return [event.seq async for event in client.jobs.job(job.id).events(after)]

        readers = [asyncio.create_task(follow(grami, after)) for after in (0, 2, 3)]
        await turns_until(lambda: manager._gateway and manager._gateway.watch._hearers)
        await job.answer(1)
        assert await asyncio.gather(*readers) == [list(range(after + 1, 3_006)) for after in (0, 2, 3)]


async def test_a_reader_that_falls_behind_is_given_what_it_left_out() -> None:
    async with working() as (manager, desk), connect(manager.url) as grami:
        job = await grami.jobs.submit("count", {"n": 4_000})
        seen = []
        async with contextlib.aclosing(job.events()) as events:
            async for event in events:
                seen.append(event.seq)
                if len(seen) == 1:
                    await turns_until(lambda: desk.jobs[job.id].state.terminal)
                    for _ in range(20):
                        await grami.ping()
        assert seen == list(range(1, 4_004))
