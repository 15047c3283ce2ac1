"""The context of an attempt inside the server: what its code says, from any thread, until the loop takes it. Floor 12.

Rule 1: saying something never waits for the loop or the disk's mercy: it is kept here, and the loop is woken, at most
        once in :data:`PAUSE` seconds.
Rule 2: what is kept is bounded, however fast it comes: of progress and checkpoints that follow each other within
        :data:`PAUSE` / 5 only the last stays, and while the loop is held up, the last of each kind.
Rule 3: what was said is taken in the order in which it was said.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import threading
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from shutil import copyfile
from typing import Any, Literal

import msgspec

from grami_actors.errors import Cancelled, GramiError
from grami_actors.job import Job
from grami_actors.job_context import JobContext
from grami_actors.jobs.logwriter import LogWriter
from grami_actors.jobs.names import check_name
from grami_actors.jobs.runner import Attempt
from grami_actors.jobs.store import Note
from grami_actors.messages import Scope
from grami_actors.system import ActorSystem

PAUSE = 0.005
"""Seconds between two looks of the loop at what one attempt said."""

LOG_PAUSE = 0.1
"""Seconds between two events that tell how long the log is."""

SLOT = PAUSE / 5
"""Seconds in which one progress is enough."""

MOST_WAITING = 1_000
"""Notes that are kept while the loop does not come; then the last of each kind replaces the one before."""

MOST_BYTES = 256 * 1024
"""Bytes of a checkpoint or a question, as JSON."""

LONGEST_MESSAGE = 4_096


class JobScope(Scope):
    """The scope of an attempt, which knows whether anybody saw that it was cancelled.

    Attributes:
        seen: whether its end was looked at, after it came: what then returns was ended, and did not finish.
    """

    seen = False
    _reason: GramiError | None = None

    @property
    def reason(self) -> GramiError | None:
        """Why it was cancelled."""
        if self._reason is not None:
            self.seen = True
        return self._reason

    @reason.setter
    def reason(self, reason: GramiError | None) -> None:
        """It is cancelled."""
        self._reason = reason


class InsideContext(JobContext):
    """The context of one attempt. It is also the sink of its scope: what goes to ``progress()`` comes here.

    Args:
        attempt: whose.
        system: the house; a simulated one has no disk.
        wake: called on the loop when there is something to :meth:`take`.
        awaits: whether the function is a coroutine function; ``None`` if it is one that cannot wait at all.

    Attributes:
        scope: of the attempt; cancelled when it is to end.
        fields: attributes of the job, as the attempt set them until the last :meth:`take`.
        question: what it wants to know now; ``None`` if nothing.
        heard_at: when it said something last, in seconds on the system's clock.
    """

    def __init__(
        self, attempt: Attempt, system: ActorSystem, wake: Callable[[], object], *, awaits: bool | None
    ) -> None:
        job = attempt.job
        self.job_id = job.id
        self.attempt = job.attempt
        self.resume = job.checkpoint
        self.scope = JobScope(sink=self)
        self.fields: dict[str, Any] = {}
        self.question: Question | None = None
        self._asked = 0
        self.heard_at = system.now()
        self._system = system
        self._wake_loop = wake
        self._awaits = awaits
        self._lock = threading.Lock()
        self._notes: list[Note] = []
        self._changed: dict[str, Any] = {}
        self._slot_ends = -math.inf
        self._next_look = self._next_log = self.heard_at
        self._wakes_at = math.inf
        self._artifacts = dict(job.artifacts)
        self._folder = attempt.folder
        self._log = None if system.simulated else LogWriter(attempt.folder, job.terms.limits.log)
        self._logged = self._told = 0

    # --- what the function sees ---

    @property
    def cancelled(self) -> bool:
        """Whether the job is to end."""
        return self.scope.reason is not None

    def progress(self, fraction: float, message: str = "") -> None:
        """Say how far it is, from 0 to 1."""
        data = {"fraction": min(1.0, max(0.0, float(fraction))), "message": str(message)[:LONGEST_MESSAGE]}
        self._add("progress", data, {"progress": data["fraction"], "message": data["message"]})

    def heartbeat(self) -> None:
        """Say that it lives."""
        self.heard_at = self._system.now()

    def log(self, text: str) -> None:
        """Add a line to the log."""
        line = f"{text}\n".encode(errors="backslashreplace")
        if self._log is not None:
            self._log.write(line)
        with self._lock:
            self._logged = self._logged + len(line) if self._log is None else self._log.end
            self._wake(self._next_log)

    def checkpoint(self, data: Any) -> None:
        """Save where it is. Raises ValueError or TypeError: it is too large, or nothing that JSON can say."""
        written = _as_json("a checkpoint", data)
        self._add("checkpoint", {"bytes": len(written)}, {"checkpoint": msgspec.json.decode(written)})

    def artifact(self, name: str, content: bytes | str | Path) -> None:
        """Keep a file. Raises ValueError or OSError."""
        check_name(name)
        content = content.encode() if isinstance(content, str) else content
        size = self._keep(name, content)
        with self._lock:
            self._artifacts[name] = size
            artifacts = dict(self._artifacts)
        self._add("artifact", {"name": name, "bytes": size}, {"artifacts": artifacts})

    def _keep(self, name: str, content: bytes | Path) -> int:
        if self._log is None:
            return len(content if isinstance(content, bytes) else content.read_bytes())
        folder = self._folder.parent / "artifacts"
        folder.mkdir(parents=True, exist_ok=True)
        # No two threads write the same file; and a name of its own may be too long to have anything added to it.
        draft = folder / f".{self.attempt}-{threading.get_ident()}"
        try:
            if isinstance(content, bytes):
                draft.write_bytes(content)
            else:
                copyfile(content, draft)
            with draft.open("rb") as file:
                os.fsync(file.fileno())
                size = os.fstat(file.fileno()).st_size
            draft.replace(folder / name)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        return size

    def ask_input(self, question: Any) -> Any:
        """Wait for somebody's answer; in a coroutine function it is awaited.

        Raises:
            Cancelled: the job is to end.
            RuntimeError: it waits for another answer already, or must not wait where it runs.
        """
        if self._awaits is None:
            raise RuntimeError("a plain function on the loop cannot wait for input; make it a coroutine function")
        asked = Question(msgspec.json.decode(_as_json("a question", question)), self._system.wall(), self._asked + 1)
        with self._lock:
            if self.question is not None:
                raise RuntimeError("the job waits for the answer to another question already")
            self.question, self._asked = asked, asked.number
            self._wake(-math.inf)
        self.scope.on_cancel(asked.refuse)
        return self._answered(asked) if self._awaits else self._finish(asked, asked.answer.result)

    async def _answered(self, asked: Question) -> Any:
        try:
            return await asyncio.wrap_future(asked.answer)
        finally:
            self._forget(asked)

    def _finish(self, asked: Question, result: Callable[[], Any]) -> Any:
        try:
            return result()
        finally:
            self._forget(asked)

    def _forget(self, asked: Question) -> None:
        self.scope.forget(asked.refuse)
        self.heartbeat()
        with self._lock:
            self.question = None

    # --- the sink of its scope ---

    def started(self, source: str) -> None:
        """Nobody wants to know."""

    def emit(self, data: Any) -> None:
        """Chunks are for those who stream; a job has none."""

    # --- what the loop does with it ---

    def reply(self, answer: Any, question: int) -> None:
        """Give it the answer to its question of that number, if it still waits for it."""
        asked = self.question
        if asked is not None and asked.number == question:
            asked.set(answer)

    def take(self, *, last: bool = False) -> tuple[list[Note], dict[str, Any]]:
        """What was said since, in order, and which attributes of the job change with it.

        Args:
            last: nothing more will be said.
        """
        with self._lock:
            now = self._system.now()
            self._wakes_at = math.inf
            self._next_look = now + PAUSE
            if self._logged > self._told and (last or now >= self._next_log):
                self._told = self._changed["log"] = self._logged
                self._next_log = now + LOG_PAUSE
                self._notes.append(Note("log", self._system.wall(), {"end": self._logged}))
            elif self._logged > self._told:
                self._wake(self._next_log)
            notes, fields = self._notes, self._changed
            self._notes, self._changed = [], {}
            self.fields.update(fields)
        if last and self._log is not None:
            self._log.close()
        return notes, fields

    def missing(self, job: Job) -> tuple[list[Note], dict[str, Any]]:
        """What was taken before, and does not stand in the job: its actor died in between."""
        fields = {name: value for name, value in self.fields.items() if getattr(job, name) != value}
        at = self._system.wall()
        notes: list[Note] = []
        if not fields.keys().isdisjoint({"progress", "message"}):
            told = {"fraction": self.fields["progress"], "message": self.fields["message"]}
            notes.append(Note("progress", at, told))
        if "checkpoint" in fields:
            notes.append(Note("checkpoint", at, {"bytes": len(msgspec.json.encode(fields["checkpoint"]))}))
        for name, size in fields.get("artifacts", {}).items():
            if job.artifacts.get(name) != size:
                notes.append(Note("artifact", at, {"name": name, "bytes": size}))
        if "log" in fields:
            notes.append(Note("log", at, {"end": fields["log"]}))
        return notes, fields

    def _add(self, kind: Literal["progress", "checkpoint", "artifact"], data: dict[str, Any], fields: Any) -> None:
        self.heard_at = now = self._system.now()
        note = Note(kind, self._system.wall(), data)
        with self._lock:
            place = self._place(kind, now)
            if place is None:
                self._notes.append(note)
                self._slot_ends = now + SLOT
            elif kind == self._notes[-1].kind:
                self._notes[-1] = note
            else:
                del self._notes[place]
                self._notes.append(note)
            self._changed.update(fields)
            self._wake(self._next_look)

    def _place(self, kind: str, now: float) -> int | None:
        """Where the note is that another of its kind makes superfluous."""
        if kind == "artifact" or not self._notes:
            return None
        if self._notes[-1].kind == kind and (now < self._slot_ends or len(self._notes) >= MOST_WAITING):
            return len(self._notes) - 1
        if len(self._notes) < MOST_WAITING:
            return None
        return next((at for at in range(len(self._notes) - 1, -1, -1) if self._notes[at].kind == kind), None)

    def _wake(self, at: float) -> None:
        """Have the loop look at a time, or as soon as it can. With the lock."""
        if at < self._wakes_at:
            self._wakes_at = at
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._system.after(max(0.0, at - self._system.now()), self._wake_loop)


class Question:
    """One question, and the answer to it.

    Attributes:
        text: what is asked.
        at: when, in seconds since the epoch.
        number: which of the attempt's questions it is, from 1.
        told: whether it was reported.
    """

    def __init__(self, text: Any, at: float, number: int) -> None:
        self.text = text
        self.at = at
        self.number = number
        self.told = False
        self.answer: futures.Future[Any] = futures.Future()

    def set(self, answer: Any) -> None:
        """The answer; a second one is ignored."""
        with contextlib.suppress(futures.InvalidStateError):
            self.answer.set_result(answer)

    def refuse(self, reason: GramiError) -> None:
        """There will be none."""
        with contextlib.suppress(futures.InvalidStateError):
            self.answer.set_exception(Cancelled(reason.message))


def _as_json(what: str, data: Any) -> bytes:
    written = msgspec.json.encode(data)
    if len(written) > MOST_BYTES:
        raise ValueError(f"{what} has {len(written):,} bytes as JSON, and may have {MOST_BYTES:,}")
    return written
