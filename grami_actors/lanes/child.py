"""One worker process, as its parent sees it: started, spoken to, killed, and always reaped. Floor 9.

Rules:

1. A worker is a fresh interpreter: nothing of the parent's memory, locks or sockets is in it, and of its environment
   only what :data:`ENVIRONMENT` lists.
2. It is gone when its process has ended *and* everything it wrote has been read. Both are said in one call.
3. What is no frame ends it. Nothing that it sends raises in here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any, cast

from grami_actors.errors import describe
from grami_actors.lanes.codec import Codec
from grami_actors.lanes.pipe import LONGEST_FRAME, Frame, Frames

ENVIRONMENT = frozenset(
    {"PATH", "HOME", "TZ", "TMPDIR", "TEMP", "TMP", "LANG", "LANGUAGE", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"}
    | {"VIRTUAL_ENV", "PYTHONHOME", "PYTHONUTF8", "PYTHONIOENCODING", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"}
)
"""Variables that a worker inherits, besides those that begin with ``LC_``: what it needs to run and to import."""

END_SECONDS = 2.0
"""Seconds that a worker which is told to end gets for it."""

LAST_WORDS = 0.2
"""Seconds after the end of a process in which what it wrote is still read, if somebody else keeps its pipe open."""

MOST_UNREAD = 4 * LONGEST_FRAME
"""Bytes that may wait for a worker to read them; with more it is ended."""

POLL = 0.005
"""Seconds between two looks at a process that is ending, where the system does not say when."""


class WorkerDied(BaseException):
    """The worker process ended with a message in hand; the text says how.

    No ``Exception``, for it is none of the handler's: whoever asked gets AgentCrashed.
    """


class Child(asyncio.Protocol):
    """A worker process and the parent's end of its pipe. On the home loop only.

    Args:
        loop: the home loop.
        codec: of the parent's end.
        on_report: called with every frame it sends.
        on_gone: called once when it is gone.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        codec: Codec,
        on_report: Callable[[Any], None],
        on_gone: Callable[[], None],
    ) -> None:
        self.gone: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._codec = codec
        self._frames = Frames(codec, "reports")
        self._on_report = on_report
        self._on_gone = on_gone
        self._process: subprocess.Popen[bytes] | None = None
        self._transport: asyncio.Transport | None = None
        self._lost = False
        self._watched = False
        self._why = ""
        self._killer: asyncio.TimerHandle | None = None

    @property
    def alive(self) -> bool:
        """Whether it can still be spoken to."""
        return self._transport is not None and not self._lost and not self._why

    @property
    def pid(self) -> int:
        """The process's id; 0 before it is started."""
        return 0 if self._process is None else self._process.pid

    async def launch(self, environment: Mapping[str, str]) -> None:
        """Start the process and connect to it. Raises OSError."""
        try:
            connection = self._start(environment)
        except BaseException:
            self.gone.set_result(None)
            self._on_gone()
            raise
        self._watch()
        connection.setblocking(False)
        await self._loop.create_unix_connection(lambda: self, sock=connection)

    def _start(self, environment: Mapping[str, str]) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                # On the home loop's thread, since the kernel ends a worker with the thread that started it. It takes
                # less than a millisecond.
                self._process = subprocess.Popen(
                    (sys.executable, "-P", "-m", "grami_actors.lanes.worker", str(theirs.fileno()), str(os.getpid())),
                    stdin=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    env=scrubbed(environment),
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
        return ours

    # --- the pipe ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The pipe is there."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own is none by its class

    def pack(self, value: Any) -> Any:
        """A value of a user's, for a frame. Raises CannotCross."""
        return self._codec.pack(value)

    def raw(self, value: Any) -> Any:
        """The same, as bytes. Raises CannotCross."""
        return self._codec.raw(value)

    def send(self, frame: Frame) -> None:
        """Send a frame; if the worker is gone, nothing happens. Raises CannotCross."""
        data = self._frames.write(frame)
        if self._transport is not None and not self._lost:
            self._transport.write(data)
            if self._transport.get_write_buffer_size() > MOST_UNREAD:
                self.kill("it does not read what it is sent")

    def data_received(self, data: bytes) -> None:
        """Hand on every frame that is complete."""
        try:
            for report in self._frames.feed(data):
                self._on_report(report)
        except Exception as error:  # noqa: BLE001 - whatever it sent, it is the worker's end, not ours
            self.kill(f"it sent what is no frame: {describe(error)}")

    def connection_lost(self, error: Exception | None) -> None:
        """The pipe is closed."""
        self._lost = True
        if self._process is not None and self._process.returncode is None:
            if self._killer is None:  # it closed the pipe itself, which it does only when it ends
                self._killer = self._loop.call_later(END_SECONDS, self.kill, "it closed its pipe")
            if not self._watched:
                self._poll()
        self._settle()

    # --- the process ---

    def _watch(self) -> None:
        try:
            descriptor = os.pidfd_open(self.pid)
        except (AttributeError, OSError):  # not on this system, or no descriptor is left
            return
        self._watched = True
        self._loop.add_reader(descriptor, self._ended, descriptor)

    def _ended(self, descriptor: int) -> None:
        self._loop.remove_reader(descriptor)
        os.close(descriptor)
        self._reap()

    def _poll(self) -> None:
        if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            self._loop.call_later(POLL, self._poll)
        else:
            self._reap()

    def _reap(self) -> None:
        assert self._process is not None
        self._signal()  # what it started and left behind: its id is its group's until it is reaped
        self._process.wait()
        if self._killer is not None:
            self._killer.cancel()
        if not self._lost and self._transport is not None:
            self._loop.call_later(LAST_WORDS, self._transport.abort)
        self._settle()

    def _settle(self) -> None:
        ended = self._process is not None and self._process.returncode is not None
        if ended and (self._lost or self._transport is None) and not self.gone.done():
            self.gone.set_result(None)
            self._on_gone()

    def _signal(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS refuses a group of zombies
            os.killpg(self.pid, signal.SIGKILL)

    def end(self) -> None:
        """Let it end by itself, and kill it if it does not."""
        if self._transport is not None:
            self._transport.close()
        if self._killer is None and not self.gone.done():
            self._killer = self._loop.call_later(END_SECONDS, self.kill, "it did not end")

    def kill(self, why: str) -> None:
        """End the process, and all that it started, now. The first reason counts."""
        self._why = self._why or why
        if self._process is not None and self._process.returncode is None:
            self._signal()

    def death(self) -> WorkerDied:
        """How it ended, as an error."""
        code = None if self._process is None else self._process.returncode
        if self._why:
            text = self._why
        elif code is not None and code < 0:
            text = f"it was ended by {signal.Signals(-code).name}"
        else:
            text = f"it ended with exit code {code}"
        return WorkerDied(f"the worker process {self.pid} is gone: {text}")


def scrubbed(named: Mapping[str, str]) -> dict[str, str]:
    """The environment of a worker: what is listed, and what is named."""
    kept = {name: value for name, value in os.environ.items() if name in ENVIRONMENT or name.startswith("LC_")}
    # What its parent can import, it can; -P keeps the working directory out of it.
    return kept | {"PYTHONPATH": os.pathsep.join(sys.path)} | dict(named)
