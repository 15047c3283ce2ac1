"""One attempt of a job from its first process to its last. Floor 12.

Rule 1: a folder in which there is run.json or exit.json is never run again.
Rule 2: exit.json is written when nothing of the job is alive, and is the last that is written.
Rule 3: all times are measured by the monotonic clock of this process.
Rule 4: what is read is bounded, what cannot be written is dropped, or, if it is how the job ended, tried again.
"""

from __future__ import annotations

import os
import resource
import sys
import time

from grami_actors.jobs.failpoints import reached
from grami_actors.jobs.shim.child import CHANNEL, become, call, keep_only, reset
from grami_actors.jobs.shim.files import create, encoded, write
from grami_actors.jobs.shim.lean import loads, signal, suppress
from grami_actors.jobs.shim.limits import POLL, exceeded, means, oom_kills
from grami_actors.jobs.shim.loop import Loop
from grami_actors.jobs.shim.server import Server
from grami_actors.jobs.shim.tree import adopt_orphans, descendants, read, send, stat, strike
from grami_actors.jobs.shim.voice import Voice, fault

TYPE_CHECKING = False  # importing typing takes a tenth of the shim's start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

STRIKE_GAP, LONGEST_GAP = 0.01, 1.0
"""Seconds between the first two rounds of killing, and between any two."""

LAST_WORDS = 5.0
"""Seconds in which what the job wrote is read after its end, and the server told of it, at most."""

ASK, TERM, KILL = 1, 2, 3
"""The rungs of the ladder."""


def main(folder: str, lock: int, tree: int, lifeline: int) -> int:
    """Run the attempt of this folder. Returns the exit code, of the shim or, in the job's process, of a Python tool."""
    prepare({lock, tree, lifeline})
    spec = loads(read(f"{folder}/spec.json"))
    if os.path.exists(f"{folder}/exit.json"):
        return 3
    subreaper = adopt_orphans()
    reached("shim.before_run")
    try:
        if not create(f"{folder}/run.json", identity(folder, spec, subreaper=subreaper)):
            return 3
        reached("shim.after_run")
        shim = Shim(folder, spec, lifeline)
        channel = shim.launch(tree)
    except OSError as error:
        unstarted(folder, f"it could not be started: {error}")
        return 4
    if channel >= 0:
        return call(spec["python"], channel, spec.get("checkpoint"))
    os.close(tree)  # held by the job alone, so that it says whether that is alive
    reached("shim.after_fork")
    shim.run()
    return 0


def prepare(fds: set[int]) -> None:
    """Be as if nobody had started this process: no signals, no descriptors, no session, no terminal of anybody's."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    keep_only(fds)
    for fd in fds - {-1}:
        os.set_inheritable(fd, False)
    reset(python=True)
    with suppress(OSError):  # whoever started it did that
        os.setsid()


def unstarted(folder: str, message: str) -> None:
    """Write down that nothing of the job ran, or ever will; until it is written."""
    now = time.time()
    end = {"at": now, "started_at": now, "code": None, "unstarted": True, "error": fault(message), "result": False}
    _insist(lambda: write(f"{folder}/exit.json", encoded(end)))


def _insist(write_it: Callable[[], object]) -> None:
    wait = 0.05
    while True:
        try:
            write_it()
        except (FileNotFoundError, NotADirectoryError):
            return  # somebody removed the folder: nobody will ask
        except OSError:
            time.sleep(wait)
            wait = min(2.0, wait * 2)
        else:
            return


def identity(folder: str, spec: dict[str, Any], *, subreaper: bool) -> bytes:
    """What run.json says: which process of which boot the shim is, in which folder, and how limits are held."""
    try:
        boot = read("/proc/sys/kernel/random/boot_id").decode().strip()
    except OSError:
        boot = ""
    fields = stat(os.getpid())
    said = {"job": spec["job"], "attempt": spec["attempt"], "mark": spec["mark"], "pid": os.getpid(), "boot": boot}
    start = int(fields[19]) if fields else 0
    held = means(spec.get("limits") or {})
    said["inode"] = os.stat(folder).st_ino  # a copy of the folder, a backup, is none of this attempt
    return encoded(said | {"start": start, "at": time.time(), "subreaper": subreaper, "limits": held})


class Shim:
    """The attempt, as its shim sees it.

    Args:
        folder: of the attempt.
        spec: what the server wrote for it.
        lifeline: descriptor of a pipe that the server holds open; -1 for none.
    """

    def __init__(self, folder: str, spec: dict[str, Any], lifeline: int) -> None:
        self._folder = folder
        self._spec = spec
        self._limits: dict[str, Any] = spec.get("limits") or {}
        self._loop = Loop()
        self._server = Server(self._loop, folder, spec)
        self._voice = Voice(self._loop, folder, spec, self._server)
        self._lifeline = lifeline
        self._failure = -1
        self._poke = -1
        self._main = 0
        self._status: int | None = None
        self._started_at = time.time()
        self._ooms = oom_kills()
        self._gone = False
        self._rung = 0
        self._reason = ""
        self._forced = False
        self._gap = STRIKE_GAP
        self._orphans = False
        self._strays = 0

    # --- the beginning ---

    def launch(self, tree: int) -> int:
        """Make the job's process. There it returns its end of the channel; in the shim -1."""
        import _socket  # noqa: PLC0415 - the public module takes longer than all of the others here

        mask = os.umask(0o077)
        with suppress(FileExistsError):
            os.mkdir(f"{self._folder}/work", 0o700)
        if self._spec.get("checkpoint") is not None:
            write(f"{self._folder}/checkpoint.json", encoded(self._spec["checkpoint"]))
        with suppress(FileExistsError):
            os.mkfifo(f"{self._folder}/poke", 0o600)
        output, theirs = os.pipe()
        self._failure, failure = os.pipe()
        ours, channel = (each.detach() for each in _socket.socketpair())
        environ = self._environ()
        sys.stdout.flush()
        self._main = os.fork()
        if self._main == 0:
            become(self._spec, environ, theirs, (channel, tree, failure), mask)
            return CHANNEL
        for fd in (theirs, failure, channel):
            os.close(fd)
        for fd in (output, ours, self._failure):
            os.set_blocking(fd, False)
        self._voice.channel.fd = ours
        self._loop.watch(output, lambda: self._voice.pump(output))
        self._loop.watch(ours, self._hear)
        return -1

    def _environ(self) -> dict[str, str]:
        spec = self._spec
        environ = dict(spec["environ"])
        environ["GRAMI_JOB_ID"] = str(spec["job"])
        environ["GRAMI_JOB_ATTEMPT"] = str(spec["attempt"])
        environ["GRAMI_JOB_MARK"] = str(spec["mark"])
        environ["GRAMI_JOB_FD"] = str(CHANNEL)
        environ["GRAMI_JOB_DIR"] = f"{self._folder}/work"
        environ.pop("GRAMI_JOB_CHECKPOINT", None)
        if spec.get("checkpoint") is not None:
            environ["GRAMI_JOB_CHECKPOINT"] = f"{self._folder}/checkpoint.json"
        return environ

    def run(self) -> None:
        """Watch over the job until nothing of it is alive."""
        self._arm()
        self._server.poke()
        busy = False
        while not self._gone:
            self._loop.turn(wait=not busy)
            busy = self._voice.go_on()
        self._finish()

    def _arm(self) -> None:
        woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, lambda *_: None)  # what is to be done is done between two turns
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        self._loop.watch(woken, lambda: self._signalled(woken))
        self._poke = os.open(f"{self._folder}/poke", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._loop.watch(self._poke, self._look)
        if self._lifeline >= 0:
            self._loop.watch(self._lifeline, self._abandoned)
        spec = self._spec
        if spec.get("timeout") is not None:
            self._loop.soon(spec["timeout"], self._too_slow)
        if spec.get("deadline") is not None:
            self._loop.soon(spec["deadline"], self._too_late)
        if any(self._limits.get(each) for each in ("memory", "cpu", "processes")):
            self._loop.soon(POLL, self._measure)
        self._beat()
        os.kill(os.getpid(), signal.SIGCHLD)  # the job may have ended before it was waited for
        self._look()

    # --- its end ---

    def _look(self) -> None:
        """Do what the server wants."""
        with suppress(BlockingIOError):
            while os.read(self._poke, 4096):
                pass
        self._reap()  # who ended before the order came was not stopped by it
        for order in self._server.orders():
            if isinstance(order, str):
                self._voice.note(order)
                continue
            if "stop" in order:
                self.stop(str(order["stop"]), force=order.get("force") is True)
            if "input" in order and self._voice.answer(order["input"], order.get("question")):
                self._beat()

    def _hear(self) -> None:
        if self._voice.hear():
            self._beat()

    def _abandoned(self) -> None:
        if not os.read(self._lifeline, 4096):
            self._loop.forget(self._lifeline)
            self.stop("shutdown")

    def _too_slow(self) -> None:
        self.stop("attempt_timeout")

    def _too_late(self) -> None:
        self.stop("deadline")

    def _silent(self) -> None:
        self.stop("heartbeat")

    def _beat(self) -> None:
        if self._spec.get("heartbeat") is None:
            return
        if self._voice.asking or self._rung or self._status is not None:  # it waits for a person, or is told to end
            self._loop.cancel(self._silent)
        else:
            self._loop.soon(self._spec["heartbeat"], self._silent)

    def _measure(self) -> None:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        over = exceeded(self._limits, os.getpid(), used.ru_utime + used.ru_stime)
        if over:
            # What takes too much takes more while it is asked to end.
            self.stop(over, force=over != "cpu")
        if self._rung < KILL:
            self._loop.soon(POLL, self._measure)

    def stop(self, reason: str, *, force: bool = False) -> None:
        """Have the job end: ask, then SIGTERM, then SIGKILL; by force: SIGKILL now. The first reason counts."""
        if not self._reason and not self._succeeded():
            self._reason = reason
            self._voice.write({"type": "stop", "reason": reason})
        if force:
            self._loop.at(0.0, self._kill)
        elif not self._rung:
            self._rung = ASK
            self._voice.channel.send({"type": "cancel", "reason": reason})
            self._loop.soon(float(self._spec.get("soft_grace", 5.0)), self._terminate)

    def _succeeded(self) -> bool:
        return self._status is not None and os.waitstatus_to_exitcode(self._status) == 0

    def _terminate(self) -> None:
        if self._rung >= TERM:
            return
        self._rung = TERM
        found = descendants(os.getpid())
        send(found, signal.SIGTERM)
        send(found, signal.SIGCONT)  # what stands still would not notice
        self._loop.soon(float(self._spec.get("term_grace", 10.0)), self._kill)

    def _kill(self) -> None:
        self._rung = KILL
        self._forced = True
        strike(os.getpid())
        self._gap = min(LONGEST_GAP, self._gap * 1.5)  # what the kernel does not let go of is not killed faster
        self._loop.soon(self._gap, self._kill)

    def _signalled(self, woken: int) -> None:
        with suppress(BlockingIOError):
            if signal.SIGTERM in os.read(woken, 4096):
                self.stop("shutdown")
        self._reap()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self._gone = True
                return
            if pid == 0:
                return
            if pid == self._main:
                self._status = status
                self._main_ended()
            elif self._orphans and self._rung >= TERM and os.WIFSIGNALED(status):
                self._strays += 1

    def _main_ended(self) -> None:
        self._orphans = self._rung < TERM
        self._loop.cancel(self._silent)
        if self._spec.get("strays") == "kill":
            self._terminate()

    def _finish(self) -> None:
        """Read what is left, and write down how it ended; until that is written, whatever the disk says."""
        signal.set_wakeup_fd(-1)
        until = time.monotonic() + LAST_WORDS
        # Nothing of the job is left to write; but somebody else may have its descriptors.
        self._loop.drain(until)
        self._prepare_end()
        _insist(self._write_end)
        self._server.insist(until)

    def _prepare_end(self) -> None:
        assert self._status is not None
        unstarted = os.read(self._failure, 4096).decode(errors="replace")
        code = os.waitstatus_to_exitcode(self._status)
        error = self._voice.error
        if code == -signal.SIGXCPU and self._limits.get("cpu"):
            self._reason = self._reason or "cpu"
        if unstarted:
            error = fault(f"it could not be started: {unstarted}", permanent=True)
        elif error is None and code != 0:
            error = fault(f"it ended with exit code {code}" if code > 0 else f"it was ended by {_name_of(-code)}")
        elif error is None and self._voice.result is None and self._spec.get("argv"):
            self._voice.result = self._voice.output()
        elif error is None and self._voice.result is None:
            error = fault("it ended before the function returned")
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        self._end = {
            "started_at": self._started_at,
            "code": code if code >= 0 and not unstarted else None,
            "signal": -code if code < 0 else None,
            "reason": self._reason,
            "forced": self._forced,
            "strays": self._strays,
            # A SIGKILL that was not ours, and something was killed for memory meanwhile: this, most likely.
            "oom": code == -signal.SIGKILL and not self._forced and oom_kills() > self._ooms,
            "cpu": round(used.ru_utime + used.ru_stime, 6),
            "memory": used.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
            "log": self._voice.log.end,
            "unstarted": bool(unstarted),
            "error": None if self._reason else error,
            "result": error is None,
        }

    def _write_end(self) -> None:
        """Write all that is still to be written. Raises OSError."""
        self._voice.finish()
        if self._voice.result is not None and self._end["result"]:
            write(f"{self._folder}/result.json", self._voice.result)
        reached("shim.before_exit")
        write(f"{self._folder}/exit.json", encoded(self._end | {"at": time.time()}))
        reached("shim.after_exit")


def _name_of(number: int) -> str:
    from signal import Signals  # noqa: PLC0415 - rarely needed

    try:
        return Signals(number).name
    except ValueError:
        return f"signal {number}"
