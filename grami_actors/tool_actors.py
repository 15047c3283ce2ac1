"""The actors behind which tools and models work. Floor 11."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

from grami_actors.actor import Actor, charge
from grami_actors.errors import ErrorCode, GramiError, ProtocolError, ToolExecutionFailed, ToolTimeout, describe
from grami_actors.future import current, current_scope
from grami_actors.gates import RateGate
from grami_actors.messages import Scope, ToolCall
from grami_actors.model import Generate, Model, Prompt
from grami_actors.telemetry import ToolCalled
from grami_actors.tools import Tool


class ToolActor(Actor):
    """Runs one tool. A tool that raises answers TOOL_EXECUTION_FAILED, and the actor goes on."""

    def __init__(self, served: Tool[..., Any]) -> None:
        super().__init__()
        self._tool = served

    def on_receive(self, call: Any) -> Any:
        """Check the arguments, call the function, keep its time limit."""
        if type(call) is not ToolCall:
            raise ProtocolError(f"{self.name} takes messages of type 'tool_call'", code=ErrorCode.UNKNOWN_TYPE)
        if self._tool.lane == "loop" and not self._tool.loaded:
            return self._load_and_run(call)
        return self._run_gated(call)

    async def _load_and_run(self, call: ToolCall) -> Any:
        with contextlib.suppress(Exception):  # the call itself says what is wrong
            await asyncio.to_thread(self._tool.load)
        result = self._run_gated(call)
        return await result if inspect.isawaitable(result) else result

    def _run_gated(self, call: ToolCall) -> Any:
        if self._tool.upstream is None:
            return self._run(call)
        gate = self.gate(self._tool.upstream)
        if self._cell.lane.name == "thread" and not inspect.iscoroutinefunction(self._tool.load()):
            return pass_gate_blocking(gate, partial(self._run, call))
        return pass_gate(gate, partial(self._run, call))

    def _run(self, call: ToolCall) -> Any:
        run = _Run(self, self._tool)
        try:
            result = self._tool(**self._tool.convert(call.arguments))
        except Exception as error:
            raise run.failed(error) from error
        if inspect.isawaitable(result):
            return run.awaited(result)
        return run.ended(result)


class _Run:
    """One call of a tool: its clock, and how it ended."""

    __slots__ = ("_actor", "_begun_at", "_caller", "_disarm", "_tool", "_waited")

    def __init__(self, actor: ToolActor, served: Tool[..., Any]) -> None:
        self._actor = actor
        self._tool = served
        self._begun_at = actor._cell.now()
        envelope = current.get()
        self._caller = "" if envelope is None else envelope.sender
        self._waited = self._begun_at - envelope.sent_at if envelope is not None and envelope.sent_at else 0.0
        if envelope is not None and envelope.reply_to is None:
            # A tell shares its scope with its sender, whose request must not end with this call's time limit.
            envelope.scope = Scope(envelope.scope)
        self._disarm = self._arm(current_scope())

    def _arm(self, scope: Scope | None) -> Callable[[], None]:
        if scope is None:
            return _nothing
        late = ToolTimeout(f"the tool {self._tool.name} did not end within {self._tool.timeout:g} s; it may have acted")
        return self._actor._cell.runtime.limit(scope, self._tool.timeout, late)

    async def awaited(self, result: Any) -> Any:
        try:
            value = await result
        except Exception as error:
            raise self.failed(error) from error
        except BaseException:
            self._report(ErrorCode.CANCELLED)
            raise
        return self.ended(value)

    def ended(self, value: Any) -> Any:
        self._report("ok")
        return value

    def failed(self, error: Exception) -> GramiError:
        told = error if isinstance(error, GramiError) else self._wrap(error)
        self._report(told.error_code)
        return told

    def _wrap(self, error: Exception) -> ToolExecutionFailed:
        return ToolExecutionFailed(f"the tool {self._tool.name} failed: {describe(error)}")

    def _report(self, outcome: str) -> None:
        self._disarm()
        scope = current_scope()
        if scope is not None and scope.reason is not None:
            outcome = scope.reason.error_code
        runtime = self._actor._cell.runtime
        if ToolCalled in runtime.bus:
            duration = runtime.now() - self._begun_at
            runtime.bus.publish(ToolCalled(self._tool.name, self._caller, self._waited, duration, str(outcome)))


def _nothing() -> None:
    """There is no timer to disarm."""


async def pass_gate(gate: RateGate, work: Callable[[], Any], may_repeat: Callable[[], bool] = lambda: True) -> Any:
    """Do what an upstream may refuse for a while, when it takes calls.

    Args:
        gate: the upstream's.
        work: what is to be done; its result may be awaitable.
        may_repeat: whether it can be done again after the upstream refused it.
    """
    scope = current_scope()
    while True:
        await gate.admit(math.inf if scope is None else scope.deadline)
        try:
            result = work()
            if inspect.isawaitable(result):
                result = await result
        except GramiError as error:
            if not _parked(gate, error) or not may_repeat():
                raise
        else:
            gate.succeeded()
            return result


def pass_gate_blocking(gate: RateGate, work: Callable[[], Any]) -> Any:
    """As :func:`pass_gate`, for a function that may itself run a loop on its thread."""
    scope = current_scope()
    while True:
        gate.wait(math.inf if scope is None else scope.deadline, scope)
        try:
            result = work()
        except GramiError as error:
            if not _parked(gate, error):
                raise
        else:
            gate.succeeded()
            return result


def _parked(gate: RateGate, error: GramiError) -> bool:
    """Close the gate if this error says that the upstream takes no calls."""
    if error.error_code != ErrorCode.UPSTREAM_RATE_LIMITED:
        gate.succeeded()
        return False
    gate.park((1000 if error.retry_after_ms is None else error.retry_after_ms) / 1000)
    return True


class ModelActor(Actor):
    """Runs a swarm's language model like any other tool: supervised, and opened anew after it died."""

    concurrency = 8

    def __init__(self, model: Model) -> None:
        super().__init__()
        self._model = model
        self._watch: Any = None

    async def on_start(self) -> None:
        """Open the model, and watch that it stays alive."""
        await self._model.open()
        self._watch = self._cell.runtime.loop.create_task(self._watch_model())

    async def _watch_model(self) -> None:
        reason = await self._model.gone()
        self._cell.runtime.failed(self._cell, ModelDied(reason))

    async def on_receive(self, message: Any) -> str:
        """Write: every piece is emitted, the whole text is the answer."""
        if type(message) is not Generate:
            raise ProtocolError(f"{self.name} takes messages of type 'generate'", code=ErrorCode.UNKNOWN_TYPE)
        pieces: list[str] = []
        await pass_gate(
            self.gate(f"model:{self._model.name}"), partial(self._write, message.prompt, pieces), lambda: not pieces
        )
        return "".join(pieces)

    async def _write(self, prompt: Prompt, pieces: list[str]) -> None:
        async for piece in self._model.stream(prompt):
            pieces.append(piece)
            charge(tokens=1)  # a piece is a token, or close to it: models do not count while they write
            self.emit(piece)

    async def on_failure(self, *_: Any) -> None:
        """Clear away what is left of the model that died."""
        await self.on_stop()

    async def on_stop(self) -> None:
        """Close the model."""
        if self._watch is not None:
            self._watch.cancel()
        await self._model.close()


class ModelDied(Exception):
    """The model stopped working by itself; the text says how."""
