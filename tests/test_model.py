"""Prompts, the scripted model, and the OpenAI client against a real server on loopback that speaks the wire."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import inspect
import json
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import grami_actors
from grami_actors.errors import ErrorCode, UpstreamError
from grami_actors.model import Model, OpenAIModel, Prompt, ScriptedModel, Turn, complete

TALK = (Turn("system", "Be brief."), Turn("user", "Hello?"))
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}}
KEY = "sk-very-secret"

needs_openai = pytest.mark.skipif(importlib.util.find_spec("openai") is None, reason="the extra llm is not installed")


def ask(model: Model, prompt: Prompt | str) -> str:
    return asyncio.run(complete(model, prompt if isinstance(prompt, Prompt) else Prompt(text=prompt)))


# -- Prompts


@pytest.mark.parametrize("fields", [{}, {"text": "Once", "messages": TALK}, {"text": "Once", "max_tokens": 0}])
def test_a_prompt_that_cannot_be_answered_is_refused_when_it_is_made(fields):
    with pytest.raises(ValueError, match=r"exactly one|at least one token"):
        Prompt(**fields)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(fields), type=Prompt)


def test_the_canonical_text_of_a_conversation_has_a_line_for_each_turn():
    assert Prompt(text="Once").canonical == "Once"
    assert Prompt(messages=TALK).canonical == "system: Be brief.\nuser: Hello?"


# -- The scripted model


@given(st.text())
def test_the_pieces_of_a_scripted_answer_always_add_up_to_it(answer):
    assert ask(ScriptedModel({"?": answer}), "?") == answer


def test_a_scripted_answer_comes_word_by_word():
    async def pieces() -> list[str]:
        return [piece async for piece in ScriptedModel({"?": "one two  three\n"}).stream(Prompt(text="?"))]

    assert asyncio.run(pieces()) == ["one", " two", "  three", "\n"]


@pytest.mark.parametrize(
    "rules", [[("tea", "short"), ("green tea", "long")], [("green tea", "long"), ("tea", "short")]]
)
def test_the_longest_key_that_a_prompt_contains_decides(rules):
    assert ask(ScriptedModel(rules), "a post on green tea") == "long"
    assert ask(ScriptedModel(rules), "a post on black tea") == "short"


def test_of_equally_long_keys_the_first_decides():
    assert ask(ScriptedModel([("tea", "first"), ("pot", "second")]), "a teapot") == "first"


def test_prompts_without_a_seed_get_the_answers_in_turn_and_then_the_last_for_ever():
    model = ScriptedModel({"tea": ["one", "two"], "coffee": "other"})
    assert [ask(model, text) for text in ("tea", "coffee", "tea", "tea", "tea")] == [
        "one",
        "other",
        "two",
        "two",
        "two",
    ]


@given(before=st.lists(st.none() | st.integers(0, 9), max_size=5), seed=st.integers(0, 99))
def test_a_seed_always_chooses_the_same_answer_whatever_was_asked_before(before, seed):
    model = ScriptedModel({"tea": ["a", "b", "c"]})
    for other in before:
        ask(model, Prompt(text="tea", seed=other))
    assert ask(model, Prompt(text="tea", seed=seed)) == "abc"[seed % 3]


def test_a_prompt_that_the_script_does_not_expect_fails_and_names_the_nearest_key():
    model = ScriptedModel({"niche: coffee": "x", "platform: linkedin": "y"})
    with pytest.raises(UpstreamError, match=r"ending '.*Niche: coffee'; the nearest key is 'niche: coffee'"):
        ask(model, "Platform: instagram\nNiche: coffee")
    with pytest.raises(UpstreamError, match="no answer"):
        ask(ScriptedModel({}), "anything")


def test_a_scripted_answer_to_a_prompt_with_a_schema_must_be_json():
    model = ScriptedModel({"tea": "not json", "coffee": '{"name": "Joe"}'})
    with pytest.raises(UpstreamError, match="not JSON"):
        ask(model, Prompt(text="tea", schema=SCHEMA))
    assert ask(model, Prompt(text="coffee", schema=SCHEMA)) == '{"name": "Joe"}'


@pytest.mark.parametrize("script", [{"tea": []}, {"": "tea"}])
def test_a_script_without_an_answer_or_a_key_is_refused_when_it_is_made(script):
    with pytest.raises(ValueError, match="empty or has no answer"):
        ScriptedModel(script)


def test_scripted_streams_take_turns_so_that_one_can_be_cancelled_or_overtaken():
    heard: list[str] = []

    async def write(answer: str, hear: Callable[[str], None]) -> None:
        async for piece in ScriptedModel({"?": answer}).stream(Prompt(text="?")):
            hear(piece)

    async def both() -> None:
        await asyncio.gather(write("a b c", heard.append), write("x y z", heard.append))

    asyncio.run(both())
    assert heard == ["a", "x", " b", " y", " c", " z"]


# -- A server that speaks OpenAI's API


class Server:
    """Answers every request the same way, and remembers what it was asked."""

    def __init__(self, answer: Callable[[Server, asyncio.StreamWriter], Coroutine[Any, Any, None]]) -> None:
        self.answer = answer
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.deserted = asyncio.Event()
        self.go_on = asyncio.Event()
        self.serving: set[asyncio.Task[Any] | None] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.serving.add(asyncio.current_task())
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        self.requests.append((first.split()[1], headers, body))
        answering = asyncio.create_task(self.answer(self, writer))
        await reader.read()
        self.deserted.set()
        await answering
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    @property
    def body(self) -> Any:
        return self.requests[-1][2]


def chunk(piece: str | None, finish: str | None = None, *, chat: bool = True) -> bytes:
    choice = {"delta": {"content": piece}} if chat else {"text": piece}
    return b"data: " + json.dumps({"choices": [{"index": 0, "finish_reason": finish, **choice}]}).encode() + b"\n\n"


def says(*pieces: str, chat: bool = True, end: bytes | None = None) -> Any:
    async def answer(server: Server, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        writer.writelines(chunk(piece, chat=chat) for piece in pieces)
        writer.write((chunk("", "stop", chat=chat) + b"data: [DONE]\n\n") if end is None else end)
        writer.close()

    return answer


def fails(status: int, *headers: str, body: str = '{"error": {"message": "it hurts"}}') -> Any:
    async def answer(server: Server, writer: asyncio.StreamWriter) -> None:
        text = body.replace("$AUTH", server.requests[-1][1].get("authorization", ""))
        lines = [f"HTTP/1.1 {status} No", "Content-Type: application/json", f"Content-Length: {len(text)}", *headers]
        writer.write("\r\n".join([*lines, "", text]).encode())

    return answer


async def one_piece_then_silence(server: Server, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + chunk("first"))
    await server.deserted.wait()


async def one_piece_then_on_demand(server: Server, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + chunk("first"))
    await server.go_on.wait()
    writer.write(chunk(" second") + chunk(None, "stop") + b"data: [DONE]\n\n")
    writer.close()


@asynccontextmanager
async def served(answer: Any, **options: Any) -> AsyncIterator[tuple[Server, OpenAIModel]]:
    server = Server(answer)
    async with asyncio.timeout(20), await asyncio.start_server(server.serve, "127.0.0.1", 0) as listener:
        model = OpenAIModel("small", f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1", **options)
        await model.open()
        try:
            yield server, model
        finally:
            await model.close()
            await asyncio.gather(*server.serving)


def exchange(answer: Any, prompt: Prompt, **options: Any) -> tuple[str, Server]:
    async def run() -> tuple[str, Server]:
        async with served(answer, **options) as (server, model):
            return await complete(model, prompt), server

    return asyncio.run(run())


def refusal(answer: Any, **options: Any) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        exchange(answer, Prompt(text="Hello?"), **options)
    return caught.value


@needs_openai
def test_a_chat_model_is_sent_the_conversation_and_every_option():
    options = {"seed": 7, "max_tokens": 9, "temperature": 0.5, "stop": ("\n",)}
    text, server = exchange(says("Good", " day"), Prompt(messages=TALK, **options))
    assert text == "Good day"
    assert server.requests[0][0] == "/v1/chat/completions"
    assert server.body == {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}],
        "model": "small",
        "stream": True,
        "seed": 7,
        "max_tokens": 9,
        "temperature": 0.5,
        "stop": ["\n"],
    }


@needs_openai
def test_a_text_is_the_one_message_to_a_chat_model_and_options_not_given_are_not_sent():
    _, server = exchange(says("Hi"), Prompt(text="Hello?"))
    assert server.body["messages"] == [{"role": "user", "content": "Hello?"}]
    assert not {"seed", "stop", "response_format"} & set(server.body)


@needs_openai
def test_a_base_model_completes_the_text_as_it_is():
    text, server = exchange(says(" upon", " a time", chat=False), Prompt(text="Once"), completions=True)
    assert text == " upon a time"
    assert (server.requests[0][0], server.body["prompt"]) == ("/v1/completions", "Once")


@needs_openai
def test_a_base_model_gets_a_conversation_as_lines_and_stops_before_the_users_next():
    _, server = exchange(says("Hi", chat=False), Prompt(messages=TALK, stop=("!",)), completions=True)
    assert server.body["prompt"] == "system: Be brief.\nuser: Hello?\nassistant:"
    assert server.body["stop"] == ["!", "\nuser:"]


@needs_openai
def test_a_schema_is_sent_without_stop_texts_which_could_cut_the_json():
    prompt = Prompt(text="Who?", schema=SCHEMA, stop=("\n",))
    _, server = exchange(says('{"name":', ' "Joe"}'), prompt)
    assert server.body["response_format"]["json_schema"]["schema"] == SCHEMA
    assert "stop" not in server.body
    _, server = exchange(says("{}", chat=False), prompt, completions=True)
    assert server.body["json_schema"] == SCHEMA
    assert "stop" not in server.body


@needs_openai
def test_an_answer_that_is_not_json_despite_a_schema_is_an_error():
    with pytest.raises(UpstreamError, match="not JSON"):
        exchange(says('{"name": "J'), Prompt(text="Who?", schema=SCHEMA))


@needs_openai
def test_pieces_arrive_while_the_server_is_still_writing():
    async def run() -> None:
        async with (
            served(one_piece_then_on_demand) as (server, model),
            aclosing(model.stream(Prompt(text="?"))) as pieces,
        ):
            assert await anext(pieces) == "first"
            server.go_on.set()
            assert [piece async for piece in pieces] == [" second"]

    asyncio.run(run())


@needs_openai
def test_leaving_a_stream_early_hangs_up_so_that_the_server_can_stop():
    async def run() -> None:
        async with served(one_piece_then_silence) as (server, model):
            async with aclosing(model.stream(Prompt(text="?"))) as pieces:
                await anext(pieces)
            await server.deserted.wait()

    asyncio.run(run())


@needs_openai
def test_cancelling_whoever_waits_for_the_next_piece_hangs_up_too():
    async def run() -> None:
        async with served(one_piece_then_silence) as (server, model):
            begun = asyncio.Event()

            async def listen() -> None:
                async for _ in model.stream(Prompt(text="?")):
                    begun.set()

            listener = asyncio.create_task(listen())
            await begun.wait()
            listener.cancel()
            await asyncio.wait([listener])
            assert listener.cancelled()
            await server.deserted.wait()

    asyncio.run(run())


@needs_openai
@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_names_the_variable_to_set_and_never_the_key(status, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    error = refusal(fails(status, body='{"error": {"message": "bad $AUTH"}}'), api_key_variable="MY_KEY")
    assert "MY_KEY" in error.message
    assert KEY not in str(error)
    assert error.__suppress_context__


@needs_openai
def test_a_key_that_a_server_quotes_is_struck_out_of_the_error(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    error = refusal(fails(500, body='{"error": {"message": "crashed on $AUTH"}}'))
    assert "crashed on Bearer …" in error.message


@needs_openai
@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        (["Retry-After: 2"], 2000),
        (["Retry-After: 0.25"], 250),
        (["Retry-After: 9", "Retry-After-Ms: 150"], 150),
        (["Retry-After: -1"], 0),
        (["Retry-After: inf"], None),
        (["Retry-After: Fri, 31 Dec 1999 23:59:59 GMT"], None),
        ([], None),
    ],
)
def test_a_rate_limit_says_when_to_come_back(headers, wait):
    error = refusal(fails(429, *headers))
    assert (error.error_code, error.retry_after_ms) == (ErrorCode.UPSTREAM_RATE_LIMITED, wait)
    assert error.retryable


@needs_openai
@pytest.mark.parametrize("status", [400, 500, 503])
def test_a_server_error_is_told_and_never_retried_behind_the_callers_back(status):
    async def run() -> None:
        async with served(fails(status)) as (server, model):
            with pytest.raises(UpstreamError, match="it hurts") as caught:
                await complete(model, Prompt(text="?"))
            assert caught.value.error_code == ErrorCode.UPSTREAM_ERROR
            assert len(server.requests) == 1

    asyncio.run(run())


@needs_openai
def test_a_server_that_is_not_there_is_an_upstream_error_with_its_url():
    async def run() -> None:
        async with served(says("never")) as (_, model):
            pass
        await model.open()
        try:
            await complete(model, Prompt(text="?"))
        finally:
            await model.close()

    with pytest.raises(UpstreamError, match=r"http://127\.0\.0\.1:\d+/v1: "):
        asyncio.run(run())


@needs_openai
@pytest.mark.parametrize(
    "end", [b"", b"data: [DONE]\n\n", b"data: {broken\n\n", b'data: {"error": {"message": "no"}}\n\n']
)
def test_an_answer_that_breaks_off_is_an_error_and_not_a_short_answer(end):
    assert "http://127.0.0.1" in refusal(says("Good", end=end)).message


@needs_openai
def test_the_key_comes_from_the_environment_and_a_server_of_ones_own_needs_none(monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    _, server = exchange(says("Hi"), Prompt(text="?"), api_key_variable="MY_KEY")
    assert server.requests[0][1]["authorization"] == f"Bearer {KEY}"
    _, server = exchange(says("Hi"), Prompt(text="?"))
    assert KEY not in server.requests[0][1]["authorization"]
    with pytest.raises(UpstreamError, match="set OPENAI_API_KEY"):
        asyncio.run(OpenAIModel("gpt").open())


@needs_openai
def test_a_loopback_server_is_never_asked_through_a_proxy(monkeypatch):
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
    assert exchange(says("Hi"), Prompt(text="?"))[0] == "Hi"


@needs_openai
def test_every_request_over_plain_http_has_a_connection_of_its_own():
    async def run() -> None:
        async with served(says("Hi")) as (server, model):
            await complete(model, Prompt(text="?"))
            await complete(model, Prompt(text="?"))
            assert [headers["connection"] for _, headers, _ in server.requests] == ["close", "close"]

    asyncio.run(run())


@needs_openai
def test_a_model_answers_between_open_and_close_only_and_both_may_be_repeated():
    async def run() -> None:
        async with served(says("Hi")) as (_, model):
            await model.open()
            assert await complete(model, Prompt(text="?")) == "Hi"
            await model.close()
            await model.close()
            with pytest.raises(UpstreamError, match="not open"):
                await complete(model, Prompt(text="?"))

    asyncio.run(run())


def test_no_default_value_of_a_public_function_shows_the_environment() -> None:
    for name in grami_actors.__all__:
        public = getattr(grami_actors, name)
        for member in (public, *vars(public).values()) if isinstance(public, type) else (public,):
            with contextlib.suppress(TypeError, ValueError):
                for parameter in inspect.signature(member).parameters.values():
                    assert parameter.default is not os.environ, f"{name}: {parameter}"
