"""The runner of attempts in the server itself: coroutines on its loop, plain functions on threads. Floor 12.

Rule 1: an attempt lives here, and not in the actor that looks after it: an actor that is replaced finds it again by its
        job and number, and is told what its predecessor did not write down.
Rule 2: with the server's process it is gone, and nothing of it is left that could tell whether its code had begun: an
        attempt that is not known here is ``lost``, also one whose job is still STARTING. A mark on the disk before each
        start would tell them apart, but only as long as the machine does not go down with the server, and would cost
        each job more than its start does.
Rule 3: a coroutine is cancelled, and again as long as it goes on; a thread can only be asked. What does not end keeps
        its place, and its job is not reported as ended.
Rule 4: who saw that the job was to end, and then returned or raised, was ended; who did not, has finished.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec

from grami_actors.errors import Cancelled, ErrorCode, GramiError, Reject, describe, in_words
from grami_actors.future import current
from grami_actors.job import Reason, State
from grami_actors.jobs.inside_context import InsideContext
from grami_actors.jobs.runner import Attempt, Outcome, Reports, Run
from grami_actors.messages import Envelope
from grami_actors.system import ActorSystem
from grami_actors.tool_actors import pass_gate, pass_gate_blocking
from grami_actors.tools import Tool

REMEMBERED = 64
"""Ends that are kept for an actor that died before it wrote its own down."""

SHORTEST_GRACE = 1.0
"""Seconds between two cancellations of a coroutine that goes on, at least."""

Key = tuple[str, int]


class InsideRunner:
    """Runs attempts in the server.

    Args:
        system: the house; in a simulated one all functions run on the loop, each plain one in one step.
        tools: by their names.
    """

    def __init__(self, system: ActorSystem, tools: Mapping[str, Tool[..., Any]]) -> None:
        self.system = system
        self.tools = tools
        self.works: dict[Key, Work] = {}
        self.ends: dict[Key, Outcome] = {}

    def run(self, attempt: Attempt, reports: Reports) -> Run:
        """One that is neither begun nor adopted."""
        return InsideRun(self, attempt, reports)

    def ended(self, key: Key, outcome: Outcome) -> None:
        """Forget an attempt, and remember for a while how it ended."""
        self.works.pop(key, None)
        self.ends[key] = outcome
        while len(self.ends) > REMEMBERED:
            del self.ends[next(iter(self.ends))]

    def close(self) -> None:
        """The server ends: cancel coroutines and tell threads; nothing more is reported."""
        for work in tuple(self.works.values()):
            work.abandon()
        self.works.clear()


class InsideRun:
    """What one actor has of an attempt; see :class:`~grami_actors.jobs.runner.Run`."""

    def __init__(self, runner: InsideRunner, attempt: Attempt, reports: Reports) -> None:
        self._runner = runner
        self._attempt = attempt
        self._reports = reports
        self._key: Key = attempt.job.id, attempt.job.attempt
        self._work: Work | None = None

    async def begin(self) -> None:
        """Start it; one that was begun before is adopted."""
        if self._key in self._runner.works or self._key in self._runner.ends:
            await self.adopt()
            return
        self._work = work = Work(self._runner, self._attempt)
        self._runner.works[self._key] = work
        work.attach(self._reports, self._attempt)
        await work.begin()

    async def adopt(self) -> None:
        """Go on with it, if this server began it."""
        self._work = self._runner.works.get(self._key)
        if self._work is not None:
            self._work.attach(self._reports, self._attempt)
            return
        lost = Outcome(
            kind="lost",
            at=self._runner.system.wall(),
            message="it ran in a server that has ended",
        )
        self._reports.ended(self._runner.ends.get(self._key, lost))

    def stop(self, reason: Reason, *, force: bool = False) -> None:
        """Have it end; by force or again: without the grace."""
        if self._work is not None:
            self._work.stop(reason, force=force)

    def answer(self, answer: Any, question: int) -> None:
        """Give it the input that it waits for."""
        if self._work is not None:
            self._work.answer(answer, question)

    def leave(self) -> None:
        """Let go of it: it goes on, for another actor to adopt."""
        if self._work is not None:
            self._work.detach(self._reports)
            self._work = None


class Work:
    """An attempt that runs here, whoever is told of it."""

    def __init__(self, runner: InsideRunner, attempt: Attempt) -> None:
        self._runner = runner
        self._system = runner.system
        self._job = attempt.job
        self._attempt = attempt
        self._tool = runner.tools.get(attempt.job.tool)
        self._reports: Reports | None = None
        self._context: InsideContext | None = None
        self._task: asyncio.Task[None] | None = None
        self._began_at: float | None = None
        self._reason: Reason = ""
        self._forced = False
        self._over = False
        self._timers: dict[str, Callable[[], None]] = {}

    # --- who is told ---

    def attach(self, reports: Reports, attempt: Attempt) -> None:
        """Report to these from now on, and first what does not stand in the job yet."""
        self._reports = reports
        context = self._context
        if context is None or self._began_at is None:
            return
        if attempt.job.state is State.STARTING:
            reports.started(self._began_at)
        notes, fields = context.missing(attempt.job)
        if fields:
            reports.noted(notes, fields)
        if context.question is not None:
            context.question.told = context.question.number <= attempt.job.questions
        self._look()

    def detach(self, reports: Reports) -> None:
        """Do not report to these any more; what is said is kept."""
        if self._reports is reports:
            self._reports = None

    def _look(self) -> None:
        """Report what was said since the last time."""
        reports, context = self._reports, self._context
        if reports is None or context is None or self._over:
            return
        question = context.question
        notes, fields = context.take()
        asks = question is not None and not question.told
        if notes or (fields and not asks):
            reports.noted(notes, fields)
            fields = {}
        if question is not None and asks:
            question.told = True
            reports.asks(question.text, question.at, fields)

    # --- its beginning ---

    async def begin(self) -> None:
        """Load the function, check the arguments, and start it."""
        try:
            arguments = await self._prepare()
        except asyncio.CancelledError:
            self._end("unstarted", message="its start was cancelled")
            raise
        except GramiError as error:
            self._end("unstarted", code=str(error.error_code), message=error.message, permanent=True)
        except BaseException as error:  # noqa: BLE001 - whatever a module raises when it is imported
            text = f"the tool {self._job.tool} cannot be imported: {describe(error)}"
            self._end("unstarted", code=ErrorCode.TOOL_EXECUTION_FAILED, message=text, permanent=True)
        else:
            if self._reason:
                self._end("stopped", reason=self._reason)
            elif not self._over:
                self._start(arguments)

    async def _prepare(self) -> dict[str, Any]:
        if self._tool is None:
            raise GramiError(f"there is no tool {self._job.tool}", code=ErrorCode.JOB_REJECTED)
        if not self._tool.loaded and not self._system.simulated:
            await asyncio.to_thread(self._tool.load)
        return self._tool.convert(self._job.arguments)

    def _start(self, arguments: dict[str, Any]) -> None:
        tool = self._tool
        assert tool is not None
        on_loop = tool.lane == "loop" or self._system.simulated
        coroutine = inspect.iscoroutinefunction(tool.load())
        awaits = True if coroutine else None if on_loop else False
        self._context = context = InsideContext(self._attempt, self._system, self._look, awaits=awaits)
        if tool.wants_context is not None:
            arguments[tool.wants_context] = context
        # A context of its own: what the actor that begins it is handling is no concern of the attempt.
        variables = contextvars.Context()
        variables.run(current.set, Envelope(None, scope=context.scope))
        self._began_at = self._system.wall()
        self._set_timers()
        if self._reports is not None:
            self._reports.started(self._began_at)
        call: Callable[[], Any] = partial(tool.load(), **arguments)
        if tool.upstream is not None:
            call = partial(pass_gate if on_loop else pass_gate_blocking, self._system.gate(tool.upstream), call)
        if on_loop:
            self._task = self._system.loop.create_task(self._on_loop(call), context=variables)
            # One that is cancelled before its first step never gets to where it would tell of its end.
            self._task.add_done_callback(lambda _: self._failed(asyncio.CancelledError()))
        else:
            self._system.aside(f"job {self._job.id}", partial(variables.run, self._on_thread, call))

    def _set_timers(self) -> None:
        terms = self._job.terms
        if terms.attempt_timeout is not None:
            self._after("attempt_timeout", terms.attempt_timeout, partial(self._expire, "attempt_timeout"))
        if self._job.expires_at is not None:
            left = self._job.expires_at - self._system.wall()
            self._after("deadline", left, partial(self._expire, "deadline"))
        if terms.heartbeat is not None:
            self._after("heartbeat", terms.heartbeat, partial(self._listen, terms.heartbeat))

    def _after(self, name: str, seconds: float, callback: Callable[[], object]) -> None:
        before = self._timers.pop(name, None)
        if before is not None:
            before()
        self._timers[name] = self._system.after(max(0.0, seconds), callback)

    def _expire(self, reason: Reason) -> None:
        if not self._reason:
            self.stop(reason)

    def _listen(self, longest: float) -> None:
        """Who waits for somebody's input has nothing to say."""
        assert self._context is not None
        silent = 0.0 if self._context.question is not None else self._system.now() - self._context.heard_at
        if silent >= longest:
            self._expire("heartbeat")
        else:
            self._after("heartbeat", longest - silent, partial(self._listen, longest))

    # --- its work ---

    async def _on_loop(self, call: Callable[[], Any]) -> None:
        try:
            result = call()
            if inspect.isawaitable(result):
                result = await result
        except BaseException as error:  # noqa: BLE001 - a tool that calls sys.exit() does not end the server
            task = asyncio.current_task()
            if not self._reason and task is not None and task.cancelling():
                self._end("lost", message="it was cancelled by somebody who is not its job")
            else:
                self._failed(error)
        else:
            self._returned(self._encoded(result))

    def _on_thread(self, call: Callable[[], Any]) -> None:
        try:
            result = call()
            if inspect.iscoroutine(result):
                result = asyncio.run(result)
        except BaseException as error:  # noqa: BLE001 - the end of a thread is told to nobody else
            report: Callable[[], None] = partial(self._failed, error)
        else:
            report = partial(self._returned, self._encoded(result))
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._system.loop.call_soon_threadsafe(report)

    def _encoded(self, result: Any) -> bytes | str:
        """The result as JSON, or what is wrong with it."""
        most = self._job.terms.limits.result
        try:
            encoded = msgspec.json.encode(result)
        except Exception as error:  # noqa: BLE001 - an object may bring code of its own that fails
            return f"what the tool {self._job.tool} returned cannot be written as JSON: {describe(error)}"
        if len(encoded) > most:
            return f"the tool {self._job.tool} returned {len(encoded):,} bytes as JSON, and may return {most:,}"
        return encoded

    # --- its end ---

    def stop(self, reason: Reason, *, force: bool = False) -> None:
        """Ask it to end; a coroutine is cancelled after its grace, or now if it would not look."""
        again, self._reason = bool(self._reason), self._reason or reason
        context = self._context
        if context is None or self._over:
            return
        if not again:
            context.scope.cancel(Cancelled(f"the job is to end: {reason}"))
        if self._task is not None:
            looks = self._tool is not None and self._tool.wants_context is not None
            if force or again or not looks:
                self._cancel()
            else:
                self._after("stop", self._job.terms.soft_grace, self._cancel)

    def _cancel(self) -> None:
        assert self._task is not None
        self._forced = True
        self._task.cancel()
        self._after("stop", max(SHORTEST_GRACE, self._job.terms.term_grace), self._cancel)

    def abandon(self) -> None:
        """Report nothing more, and have it end."""
        self._over = True
        self._reports = None
        self._clear()
        if self._context is not None:
            self._context.scope.cancel(Cancelled("the server ends"))
            self._context.take(last=True)
        if self._task is not None:
            self._task.cancel()

    def answer(self, answer: Any, question: int) -> None:
        """Give it the input that it waits for."""
        if self._context is not None:
            self._context.reply(answer, question)

    def _was_ended(self) -> bool:
        """Whether what came of it came because it was to end."""
        return bool(self._reason) and (self._forced or (self._context is not None and self._context.scope.seen))

    def _returned(self, encoded: bytes | str) -> None:
        if self._was_ended():
            self._end("stopped", reason=self._reason)
        elif isinstance(encoded, str):
            self._end("failed", code=ErrorCode.TOOL_EXECUTION_FAILED, message=encoded, permanent=True)
        else:
            self._end("succeeded", result=msgspec.json.decode(encoded))

    def _failed(self, error: BaseException) -> None:
        cancelled = isinstance(error, (asyncio.CancelledError, Cancelled))
        if self._was_ended() or (self._reason and cancelled):
            told = "" if cancelled else in_words(error)
            self._end("stopped", reason=self._reason, message=told)
            return
        code = str(error.error_code) if isinstance(error, GramiError) else str(ErrorCode.TOOL_EXECUTION_FAILED)
        text = (
            in_words(error) if isinstance(error, GramiError) else f"the tool {self._job.tool} failed: {in_words(error)}"
        )
        self._end("failed", code=code, message=text, permanent=isinstance(error, Reject))

    def _end(self, kind: Any, **how: Any) -> None:
        if self._over:
            return
        self._clear()
        reports, context = self._reports, self._context
        if context is not None:
            notes, fields = context.take(last=True)
            if reports is not None and (notes or fields):
                reports.noted(notes, fields)
        self._over = True
        outcome = Outcome(kind=kind, at=self._system.wall(), **how)
        self._runner.ended((self._job.id, self._job.attempt), outcome)
        if reports is not None:
            reports.ended(outcome)

    def _clear(self) -> None:
        for cancel in self._timers.values():
            cancel()
        self._timers.clear()
