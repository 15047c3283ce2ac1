"""The real local model in its own process; where its weights are kept; and how a model is chosen."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from grami_actors import model as model_file
from grami_actors import model_server
from grami_actors.errors import ConfigError, UpstreamError
from grami_actors.model import (
    LocalModel,
    OpenAIModel,
    Prompt,
    ScriptedModel,
    Turn,
    complete,
    local_model_available,
    model_from_environment,
)

needs_local = pytest.mark.skipif(not local_model_available(), reason="the extra local is not installed")

RHYME = Prompt(text="Roses are red,", max_tokens=12, seed=3)
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}},
    "required": ["name"],
    "additionalProperties": False,
}


class Open:
    """An open model and the event loop that it lives on."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self.model = LocalModel(context=512, parallel=2)
        self.runner = runner

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    def ask(self, prompt: Prompt) -> str:
        return self.run(complete(self.model, prompt))


@pytest.fixture(scope="module")
def opened() -> Iterator[Open]:
    with asyncio.Runner() as runner:
        opened = Open(runner)
        opened.run(opened.model.open())
        yield opened
        opened.run(opened.model.close())


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# -- Answers


@needs_local
def test_it_answers_and_the_same_seed_gives_the_same_text(opened):
    text = opened.ask(RHYME)
    assert text.strip()
    assert opened.ask(RHYME) == text


@needs_local
def test_a_schema_gives_json_that_satisfies_it(opened):
    person = json.loads(opened.ask(Prompt(text="A person as JSON:\n", schema=PERSON, max_tokens=64, seed=1)))
    assert isinstance(person["name"], str)


@needs_local
def test_no_request_fails_because_the_server_hung_up_after_the_one_before(opened):
    for _ in range(30):
        assert opened.ask(Prompt(text="1, 2, 3,", max_tokens=2, temperature=0))


@needs_local
def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(opened):
    assert opened.ask(Prompt(text="1, 2, 3, 4, 5, 6, 7, 8,", stop=("10",), temperature=0)).strip() == "9,"


@needs_local
def test_a_conversation_is_answered_with_one_turn(opened):
    text = opened.ask(Prompt(messages=(Turn("user", "How are you?"),), max_tokens=24, seed=1))
    assert text.strip()
    assert "user:" not in text


@needs_local
def test_every_request_has_the_whole_context_to_itself(opened):
    assert opened.ask(Prompt(text="word " * 400, max_tokens=1))
    with pytest.raises(UpstreamError, match="512 tokens"):
        opened.ask(Prompt(text="word " * 600, max_tokens=1))


@needs_local
def test_requests_are_answered_at_the_same_time(opened):
    heard: list[str] = []

    async def write(name: str) -> None:
        async for _ in opened.model.stream(Prompt(text=f"{name}: 1, 2, 3,", max_tokens=24, temperature=0)):
            heard.append(name)  # noqa: PERF401 - each as it comes

    async def both() -> None:
        await asyncio.gather(write("a"), write("b"))

    opened.run(both())
    assert heard != sorted(heard)
    assert heard != sorted(heard, reverse=True)


# -- The process


@needs_local
def test_it_ends_with_close_and_opens_anew_after_its_process_was_killed():
    async def run() -> None:
        model = LocalModel(context=512, parallel=1)
        await model.open()
        first = model._process.pid
        waiting = asyncio.create_task(model.gone())
        stream = model.stream(Prompt(text="Once upon a time", max_tokens=400))
        await anext(stream)
        os.kill(first, signal.SIGKILL)
        assert await waiting == f"the model's server (process {first}) ended with signal 9 (Killed)"
        with pytest.raises(UpstreamError):
            await complete(model, RHYME)
        with pytest.raises(UpstreamError):
            async for _ in stream:
                pass

        await model.open()
        second = model._process.pid
        waiting = asyncio.create_task(model.gone())
        assert await complete(model, RHYME)
        await model.close()
        await model.close()
        assert not is_running(first)
        assert not is_running(second)
        assert not waiting.done()
        waiting.cancel()

    asyncio.run(run())


@needs_local
def test_the_server_ignores_ctrl_c_and_ends_when_its_stdin_does():
    command = [sys.executable, "-m", "grami_actors.model_server", "--context=64", "--parallel=1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        ready = json.loads(server.stdout.readline())
        assert ready["pid"] == server.pid
        server.send_signal(signal.SIGINT)
        with urllib.request.urlopen(f"{ready['url']}/health") as answer:
            assert answer.status == 200
        server.stdin.close()
        assert server.wait(10) == 0
        assert server.stdout.read() == ""


@needs_local
def test_a_server_that_cannot_start_says_why_and_leaves_nothing_behind(tmp_path):
    model = LocalModel(tmp_path / "missing.gguf")
    with pytest.raises(UpstreamError, match=r"(?s)exit code 1.*missing\.gguf"):
        asyncio.run(model.open())
    assert model._process is None


# -- The weights


@pytest.fixture
def scratch(tmp_path) -> Iterator[Path]:
    yield tmp_path
    shutil.rmtree(tmp_path)  # pytest would keep hundreds of megabytes


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@needs_local
def test_damaged_weights_are_assembled_again(scratch):
    weights = scratch / "cache" / model_server.WEIGHTS_FILE
    weights.parent.mkdir()
    weights.write_bytes(b"half a download")
    assert model_server.stored_weights({"GRAMI_CACHE": str(weights.parent)}) == weights
    assert sha256_of(weights) == model_server.WEIGHTS_SHA256
    assert list(weights.parent.iterdir()) == [weights]


@needs_local
def test_without_a_cache_that_can_be_written_two_at_once_share_a_private_temporary_one(scratch, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    with ThreadPoolExecutor(2) as both:
        first, second = both.map(model_server.stored_weights, [{"GRAMI_CACHE": "/dev/null/cache"}] * 2)
    assert first == second
    assert first.parent.parent == scratch
    assert first.parent.stat().st_mode & 0o777 == 0o700
    assert sha256_of(first) == model_server.WEIGHTS_SHA256


def test_a_temporary_directory_that_others_can_write_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / f"grami_actors-{os.getuid()}").mkdir()
    (tmp_path / f"grami_actors-{os.getuid()}").chmod(0o777)
    with pytest.raises(OSError, match=r"set GRAMI_CACHE: .*/dev/null.*; .*not private"):
        model_server.stored_weights({"GRAMI_CACHE": "/dev/null/cache"})


def test_the_cache_is_where_the_environment_says():
    assert model_server.cache_directory({"GRAMI_CACHE": "/a", "XDG_CACHE_HOME": "/b"}) == Path("/a")
    assert model_server.cache_directory({"XDG_CACHE_HOME": "/b"}) == Path("/b/grami_actors")
    assert model_server.cache_directory({}) == Path.home() / ".cache" / "grami_actors"


# -- The choice of a model


def test_the_environment_chooses_the_model():
    script = ScriptedModel({})
    chosen = model_from_environment(script, {"GRAMI_MODEL": "small", "GRAMI_MODEL_URL": "http://127.0.0.1:9"})
    assert isinstance(chosen, OpenAIModel)
    assert chosen.name == "small"
    assert model_from_environment(script, {"GRAMI_MODEL": "scripted"}) is script
    with pytest.raises(ConfigError, match="no script"):
        model_from_environment(None, {"GRAMI_MODEL": "scripted"})


@pytest.mark.parametrize("environ", [{}, {"GRAMI_MODEL": ""}, {"GRAMI_MODEL": "local"}])
def test_without_a_choice_it_is_the_local_model_or_else_the_script(environ, monkeypatch):
    monkeypatch.setattr(model_file, "LOCAL_PACKAGES", ("json",))
    assert isinstance(model_from_environment(None, environ), LocalModel)
    monkeypatch.setattr(model_file, "LOCAL_PACKAGES", ("no_such_package",))
    assert not local_model_available()
    script = ScriptedModel({})
    assert model_from_environment(script, environ) is script
    with pytest.raises(UpstreamError, match=r"grami_actors\[local\]"):
        model_from_environment(None, environ)


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    monkeypatch.setattr(model_file, "LOCAL_PACKAGES", ("json", "no_such_package"))
    with pytest.raises(UpstreamError, match=r"grami_actors\[llm\]"):
        asyncio.run(OpenAIModel("small", "http://127.0.0.1:9").open())
    with pytest.raises(UpstreamError, match=r"needs no_such_package: .*grami_actors\[local\]"):
        asyncio.run(LocalModel().open())


def test_a_model_that_is_not_open_says_so():
    with pytest.raises(UpstreamError, match="not open"):
        asyncio.run(complete(LocalModel(), RHYME))


@pytest.mark.parametrize("model", [ScriptedModel({}), OpenAIModel("small", "http://127.0.0.1:9"), LocalModel()])
def test_a_model_that_has_not_stopped_working_is_never_gone(model):
    async def run() -> bool:
        waiting = asyncio.create_task(model.gone())
        await asyncio.wait([waiting], timeout=0.01)
        waiting.cancel()
        return waiting.done()

    assert not asyncio.run(run())
