"""Clients that know nothing of this package: Node's WebSockets and a page in a real browser."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest

from grami_actors import Agent, Message, Swarm, handles
from grami_actors.telemetry import ConnectionRefused
from tests.browser import in_browser, site, visit
from tests.conftest import Recorder, serving

NODE = shutil.which("node")
NODE_MODULES = Path(__file__).parents[1] / ".ci" / "node" / "node_modules"


class ContentRequest(Message):
    platform: str
    niche: str = "general"
    content_type: str = "post"


class Post(msgspec.Struct):
    text: str
    hashtags: list[str]


class Writer(Agent):
    @handles(ContentRequest)
    async def write(self, request: ContentRequest) -> Post:
        self.emit("a ")
        self.emit("piece")
        return Post(f"für {request.platform} \U0001f600", [f"#{request.niche}"])


EXPECTED = {"status": "success", "data": {"text": "für instagram \U0001f600", "hashtags": ["#tech"]}}
REQUEST = '{"type": "content_request", "platform": "instagram", "niche": "tech", "content_type": "post"}'


# --- Node ---

TALK = """
const socket = new WebSocket(process.argv[process.argv.length - 1]);
const frames = [];
socket.onerror = (event) => { console.error(String(event.message || event.type)); process.exit(1); };
socket.onopen = () => socket.send(REQUEST);
socket.onmessage = (event) => {
  frames.push(JSON.parse(event.data));
  if (frames.length === 1) socket.send(JSON.stringify({...JSON.parse(REQUEST), platform: 5}));
  if (frames.length === 2) socket.send(JSON.stringify({...JSON.parse(REQUEST), id: "one", stream: true}));
  if (frames.at(-1).type === "response") socket.close(1000);
};
socket.onclose = (event) => console.log(JSON.stringify({frames, code: event.code}));
""".replace("REQUEST", json.dumps(REQUEST))


@cache
def built_in_flags() -> list[str] | None:
    """What makes this Node offer a WebSocket of its own; None if it has none."""
    if NODE is None:
        return None
    for flags in ([], ["--experimental-websocket"]):
        asked = subprocess.run([NODE, *flags, "-p", "typeof WebSocket"], capture_output=True, text=True, check=False)
        if asked.stdout.strip() == "function":
            return flags
    return None


async def run_node(flags: list[str], program: str, url: str) -> dict[str, Any]:
    assert NODE is not None
    process = await asyncio.create_subprocess_exec(
        NODE,
        *flags,
        "-e",
        program,
        "--",
        url,
        cwd=NODE_MODULES.parent if NODE_MODULES.is_dir() else None,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return json.loads(out)


def check_conversation(told: dict[str, Any]) -> None:
    plain, error, *stream = told["frames"]
    assert plain == EXPECTED
    assert error == {
        "status": "error",
        "error_code": "VALIDATION_FAILED",
        "message": "Expected `str`, got `int` (at $.platform)",
    }
    assert [frame["type"] for frame in stream] == ["response.started", "response.chunk", "response.chunk", "response"]
    assert {frame["id"] for frame in stream} == {"one"}
    assert stream[-1]["data"] == EXPECTED["data"]
    assert told["code"] == 1000


@pytest.mark.skipif(NODE is None, reason="Node is not installed")
@pytest.mark.skipif(
    not (NODE_MODULES / "ws").is_dir(), reason="the npm package ws is not in .ci/node (.ci/run gets it)"
)
async def test_the_ws_package_of_node_is_served() -> None:
    async with serving(Swarm([Writer])) as manager:
        check_conversation(await run_node([], 'const WebSocket = require("ws");\n' + TALK, manager.url))


@pytest.mark.skipif(NODE is None, reason="Node is not installed")
async def test_the_websocket_that_node_brings_is_served() -> None:
    flags = built_in_flags()
    if flags is None:
        pytest.skip("this Node has no WebSocket of its own")
    async with serving(Swarm([Writer])) as manager:
        check_conversation(await run_node(flags, TALK, manager.url))


# --- a browser ---

PAGE = """<!doctype html><title>A page</title><script>
const told = {events: [], frames: []};
const done = () => fetch("/told", {method: "POST", body: JSON.stringify(told)});
const socket = new WebSocket("URL");
socket.onopen = () => { told.events.push("open"); socket.send(REQUEST); };
socket.onmessage = (event) => { told.frames.push(event.data); socket.close(1000); };
socket.onerror = () => told.events.push("error");
socket.onclose = (event) => { told.events.push("close " + event.code); done(); };
</script>
"""


@in_browser
async def test_a_page_of_an_allowed_origin_gets_exactly_status_and_data(tmp_path: Path) -> None:
    async with site() as (found, origin), serving(Swarm([Writer]), allowed_origins=(origin,)) as manager:
        found.page = PAGE.replace("URL", manager.url).replace("REQUEST", json.dumps(REQUEST))
        told = await visit(found, origin, tmp_path / "profile")
    assert told["events"] == ["open", "close 1000"]
    assert [json.loads(frame) for frame in told["frames"]] == [EXPECTED]


@in_browser
async def test_a_page_of_another_origin_is_refused(tmp_path: Path) -> None:
    async with site() as (found, origin), serving(Swarm([Writer]), allowed_origins=("http://127.0.0.1",)) as manager:
        refused = Recorder(manager.system, ConnectionRefused)
        found.page = PAGE.replace("URL", manager.url).replace("REQUEST", json.dumps(REQUEST))
        told = await visit(found, origin, tmp_path / "profile")
    assert told == {"events": ["error", "close 1006"], "frames": []}
    assert [event.reason.partition(";")[0] for event in refused.events] == [f"the Origin {origin!r} is not allowed"]
