"""What a tool in a process of its own can say: JSON lines over a descriptor that it got from its shim. Floor 12."""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from grami_actors.errors import Cancelled
from grami_actors.job_context import JobContext
from grami_actors.jobs.names import check_name

if TYPE_CHECKING:
    from pathlib import Path

LONGEST_LINE = 256 * 1024
"""Bytes of a line that the shim takes; that of a result may be as long as the result may be."""


_NONE = object()
"""Instead of an answer, when the job is to end."""


class ChannelContext(JobContext):
    """The channel's end in the job. Any thread may use it.

    Args:
        fd: the descriptor, ``GRAMI_JOB_FD``.
        resume: the last checkpoint.
        on_cancel: called once, on a thread of its own, when the job is to end.
    """

    def __init__(self, fd: int, resume: Any = None, on_cancel: Callable[[], None] = lambda: None) -> None:
        self.job_id = os.environ.get("GRAMI_JOB_ID", "")
        self.attempt = int(os.environ.get("GRAMI_JOB_ATTEMPT", "1"))
        self.resume = resume
        self._fd = fd
        self._on_cancel = on_cancel
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._cancelled = threading.Event()
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._listen, name="grami-job", daemon=True).start()

    def _listen(self) -> None:
        rest = b""
        try:
            while data := os.read(self._fd, 65536):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._take(json.loads(line))
        except OSError:
            return  # the shim is gone, and its job will be soon

    def _take(self, line: Any) -> None:
        if line["type"] == "input":
            self._answers.put(line["answer"])
        elif line["type"] == "cancel" and not self._cancelled.is_set():
            self._cancelled.set()
            self._answers.put(_NONE)
            self._on_cancel()

    @property
    def cancelled(self) -> bool:
        """Whether the job is to end."""
        return self._cancelled.is_set()

    def progress(self, fraction: float, message: str = "") -> None:
        """Say how far it is."""
        self._say({"type": "progress", "fraction": float(fraction), "message": message})

    def heartbeat(self) -> None:
        """Say that it lives."""
        self._say({"type": "heartbeat"})

    def log(self, text: str) -> None:
        """Add to the log."""
        self._say({"type": "log", "text": text})

    def checkpoint(self, data: Any) -> None:
        """Save where it is. Raises ValueError, TypeError: it is no JSON, or too long."""
        self._say({"type": "checkpoint", "data": data})

    def artifact(self, name: str, content: bytes | str | Path) -> None:
        """Keep a file. Raises ValueError, OSError."""
        from pathlib import Path  # noqa: PLC0415 - takes as long as most of the others here
        from shutil import copyfile  # noqa: PLC0415 - likewise

        # Next to the attempts of the job, of which each has a folder with its scratch folder.
        path = Path(os.environ["GRAMI_JOB_DIR"]).parents[1] / "artifacts" / check_name(name)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        fresh = path.with_name(f".{name}.tmp")
        try:
            if isinstance(content, Path):
                copyfile(content, fresh)
            else:
                fresh.write_bytes(content.encode() if isinstance(content, str) else content)
            fresh.replace(path)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise
        self._say({"type": "artifact", "name": name, "path": str(path)})

    def ask_input(self, question: Any) -> Any:
        """Wait for an answer; on a running loop, an awaitable of it.

        Raises Cancelled: the job is to end; RuntimeError: it waits for another answer already.
        """
        if not self._asking.acquire(blocking=False):
            raise RuntimeError("the job waits for the answer to another question already")
        try:
            self._say({"type": "ask", "question": question})
        except BaseException:
            self._asking.release()
            raise
        asyncio = sys.modules.get("asyncio")  # only who imported it has a loop
        if asyncio is not None and asyncio._get_running_loop() is not None:
            return asyncio.to_thread(self._answer)
        return self._answer()

    def _answer(self) -> Any:
        answer = self._answers.get()
        self._asking.release()
        if answer is _NONE:
            self._answers.put(_NONE)  # also for who asks next
            raise Cancelled("the job is to end")
        return answer

    def _say(self, line: dict[str, Any]) -> None:
        data = json.dumps(line, allow_nan=False).encode() + b"\n"
        if len(data) > LONGEST_LINE:
            raise ValueError(f"{line['type']} has {len(data)} bytes as JSON, at most {LONGEST_LINE}")
        self.send(data)

    def send(self, data: bytes) -> None:
        """Send a line as it is. Raises nothing."""
        with self._lock:
            rest = memoryview(data)
            try:
                while rest:
                    rest = rest[os.write(self._fd, rest) :]
            except OSError:
                return  # as above
