"""What a job says: on its channel, and by what it prints. Floor 12."""

from __future__ import annotations

import os
import time

from grami_actors.jobs.shim.channel import Channel, Copy, Nonsense, TooLong
from grami_actors.jobs.shim.files import encoded
from grami_actors.jobs.shim.loop import Loop
from grami_actors.jobs.shim.record import Record
from grami_actors.jobs.shim.segments import Log
from grami_actors.jobs.shim.server import LOG_GAP, RECORD_GAP, Server

TYPE_CHECKING = False  # importing typing takes a tenth of the shim's start
if TYPE_CHECKING:
    from typing import Any

MOST_WORDS = 4_000
"""Characters of what is said with progress."""

MOST_OUTPUT = 64 * 1024
"""Bytes of the log that are the result of a command which sent none."""

MOST_COPIES = 10_000
"""Files that wait to be kept; more are dropped."""

MOST_LOG = 64 * 1024 * 1024
MOST_RESULT = 1024 * 1024
"""Bytes, where the spec says nothing."""


class Voice:
    """Takes down what the job says.

    Args:
        loop: of the shim.
        folder: of the attempt.
        spec: of the job.
        server: is told that there is something to read.

    Attributes:
        channel: the shim's end.
        log: the output.
        result: what it returned, as JSON; ``None`` if it said nothing of that.
        error: what went wrong.
        asking: whether it waits for input.
    """

    def __init__(self, loop: Loop, folder: str, spec: dict[str, Any], server: Server) -> None:
        limits = spec.get("limits") or {}
        self._loop = loop
        self._server = server
        self._most = limits.get("result") or MOST_RESULT
        self._work = spec.get("cwd") or f"{folder}/work"
        self._kept = f"{os.path.dirname(folder)}/artifacts"
        self.log = Log(folder, limits.get("log") or MOST_LOG)
        self.channel = Channel(-1, self._most)
        self._record = Record(f"{folder}/record.jsonl")
        self._copies: list[Copy] = []
        self.result: bytes | None = None
        self.error: dict[str, Any] | None = None
        self.asking = False
        self._answered = 0
        self._handlers = {
            "progress": self._progress,
            "heartbeat": self._alive,
            "log": self._print,
            "checkpoint": self._checkpoint,
            "artifact": self._artifact,
            "ask": self._ask,
            "result": self._returned,
            "error": self._failed,
        }

    def pump(self, fd: int) -> None:
        """Take output from a pipe."""
        data = os.read(fd, 65536)
        if not data:
            self._loop.forget(fd)
            return
        self.log.write(data)
        self._server.tell(LOG_GAP)

    def hear(self) -> bool:
        """Take lines from the channel; says whether there was anything."""
        self.channel.push()
        try:
            for line in self.channel.lines():
                self._take(line)
        except BlockingIOError:
            return False
        except (EOFError, OSError):
            self._loop.forget(self.channel.fd)
        return True

    def answer(self, answer: Any, question: int | None) -> bool:
        """Give the job what it asked for; says whether it had not got it before."""
        if question is not None and question <= self._answered:
            return False
        self._answered = question or self._answered
        self.asking = False
        self.channel.send({"type": "input", "answer": answer})
        return True

    def note(self, text: str) -> None:
        """Add a line of the shim's own to the log."""
        self.log.note(text)
        self._server.tell(LOG_GAP)

    def write(self, line: dict[str, Any]) -> None:
        """Add a line to the record. Raises ValueError."""
        self._record.add(line, time.monotonic())

    def go_on(self) -> bool:
        """Do what waits; says whether there is more to be done at once."""
        self._copy()
        if self._record.waiting:
            self._flush()
        self._loop.push(self.channel.fd, wanted=self.channel.unsent)
        return bool(self._copies)

    def finish(self) -> None:
        """Do all that waits. Raises OSError: it cannot be written now."""
        while self._copies:
            self._copy()
        self._record.flush(time.monotonic(), all_of_it=True)
        if self._record.failed:
            raise OSError("the record cannot be written")

    def _take(self, line: dict[str, Any] | Nonsense) -> None:
        try:
            if isinstance(line, Nonsense):
                raise line
            handler = self._handlers.get(line["type"])
            if handler is None:
                raise Nonsense(f"there is no type {line['type'][:50]!r}")
            handler(line)
        except TooLong as long:
            if long.result:
                self._refuse(long.size)
            else:
                self.note(f"a line on the job's channel was dropped: {long}")
        except Exception as error:  # noqa: BLE001 - whatever the job says, the shim goes on
            self.note(f"a line on the job's channel was dropped: {error}")

    def _progress(self, line: dict[str, Any]) -> None:
        fraction = min(1.0, max(0.0, float(line["fraction"])))
        self.write({"type": "progress", "fraction": fraction, "message": str(line.get("message") or "")[:MOST_WORDS]})

    def _checkpoint(self, line: dict[str, Any]) -> None:
        self.write({"type": "checkpoint", "data": line["data"]})

    def _ask(self, line: dict[str, Any]) -> None:
        if self.asking:
            raise ValueError("the job waits for the answer to another question already")
        self.write({"type": "ask", "question": line["question"]})
        self.asking = True

    def _artifact(self, line: dict[str, Any]) -> None:
        if len(self._copies) >= MOST_COPIES:
            raise ValueError(f"{MOST_COPIES} files wait to be kept already")
        self._copies.append(Copy(os.path.join(self._work, str(line["path"])), self._kept, str(line["name"])))

    def _print(self, line: dict[str, Any]) -> None:
        self.log.write(str(line["text"]).encode(errors="replace") + b"\n")
        self._server.tell(LOG_GAP)

    def _returned(self, line: dict[str, Any]) -> None:
        data = encoded(line.get("data"))
        if len(data) > self._most:
            self._refuse(len(data))
        else:
            self.result = data

    def _refuse(self, size: int) -> None:
        self.error = fault(f"the result has {size} bytes, at most {self._most}", permanent=True)

    def _failed(self, line: dict[str, Any]) -> None:
        code = str(line.get("code") or "TOOL_EXECUTION_FAILED")
        self.error = fault(str(line.get("message") or "it failed"), code, permanent=line.get("permanent") is True)

    def _alive(self, line: dict[str, Any]) -> None:
        """It lives; that is all."""

    def _flush(self) -> None:
        again = self._record.flush(time.monotonic())
        if again is None:
            self._loop.cancel(self._flush)
        else:
            self._loop.at(again, self._flush)
        if not self._record.failed:
            self._server.tell(RECORD_GAP)

    def _copy(self) -> None:
        if not self._copies:
            return
        first = self._copies[0]
        try:
            if first.go_on():
                self._copies.pop(0)
                self.write({"type": "artifact", "name": first.name, "bytes": first.size})
        except (OSError, ValueError) as error:
            self._copies.pop(0)
            self.note(f"the artifact {first.name} could not be kept: {error}")

    def output(self) -> bytes:
        """The result of a command that sent none: the end of its output."""
        most = min(MOST_OUTPUT, self._most)
        text = self.log.tail(most).decode(errors="replace")
        while len(data := encoded({"exit_code": 0, "output": text})) > most and text:
            text = text[max(1, len(text) * (len(data) - most) // len(data)) :]
        return data


def fault(message: str, code: str = "TOOL_EXECUTION_FAILED", *, permanent: bool = False) -> dict[str, Any]:
    """An error, as exit.json has it; halves of characters, which JSON cannot say, are replaced."""
    code, message = (each.encode(errors="replace").decode() for each in (code, message))
    return {"code": code, "message": message, "permanent": permanent}
