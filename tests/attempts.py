"""A server as a shim sees it: a folder with a spec and two locks, a pipe to be woken by, and orders."""

from __future__ import annotations

import fcntl
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from grami_actors.jobs.shim import start

PROGRAM = start.__file__
PATIENCE = 20.0
"""Seconds after which a test is given up."""


class Attempt:
    """One attempt of a job; nothing of it is alive after the ``with``."""

    def __init__(self, base: Path, argv: list[str] | None = None, **spec: Any) -> None:
        self.folder = base / "jobs" / "job_1" / "1"
        (self.folder / "control").mkdir(parents=True)
        self.mark = f"job_1.1.{os.getpid()}{time.monotonic_ns()}"
        self.witness = base / "witness"
        self.wake = base / "wake"
        os.mkfifo(self.wake)
        self._wake = os.open(self.wake, os.O_RDWR | os.O_NONBLOCK)
        self._orders = 0
        self.shims: list[subprocess.Popen[bytes]] = []
        self.spec: dict[str, Any] = {
            "job": "job_1",
            "attempt": 1,
            "mark": self.mark,
            "argv": argv,
            "python": None,
            "environ": {"PATH": os.environ["PATH"], "WITNESS": str(self.witness), "PYTHON": sys.executable},
            "cwd": None,
            "timeout": None,
            "deadline": None,
            "heartbeat": None,
            "soft_grace": 0.05,
            "term_grace": 0.2,
            "strays": "wait",
            "lifeline": False,
            "limits": {"log": 1024 * 1024, "result": 64 * 1024},
            "wake": str(self.wake),
            "checkpoint": None,
        } | spec
        (self.folder / "spec.json").write_text(json.dumps(self.spec))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for shim in self.shims:
            shim.kill()
            shim.wait()
        for pid in self.alive():
            os.kill(pid, 9)
        os.close(self._wake)

    def start(
        self, *, failpoint: str = "", lifeline: int = -1, leaked: tuple[int, ...] = (), **options: Any
    ) -> subprocess.Popen[bytes]:
        """Start a shim, as a server does."""
        fds = [os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o600) for name in ("shim.lock", "tree.lock")]
        for fd in fds:
            fcntl.flock(fd, fcntl.LOCK_SH)  # shared: a test may start two
        passed = [*fds, *leaked, lifeline] if lifeline >= 0 else [*fds, *leaked]
        shim = subprocess.Popen(
            [sys.executable, "-I", "-S", PROGRAM, str(self.folder), *map(str, fds), str(lifeline)],
            pass_fds=passed,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            env={"GRAMI_FAILPOINT": failpoint, "GRAMI_TOKEN": "secret"},
            **options,
        )
        for fd in fds:
            os.close(fd)
        self.shims.append(shim)
        return shim

    def run(self, **options: Any) -> dict[str, Any]:
        """Start a shim, and wait for its end; returns exit.json."""
        assert self.start(**options).wait(PATIENCE) == 0
        return self.exit

    def until(self, condition: Callable[[], Any]) -> Any:
        """Wait until something is so that the shim tells of."""
        late = time.monotonic() + PATIENCE
        while not (found := condition()):
            assert time.monotonic() < late, f"{condition} did not come; the log: {self.log!r}"
            if select.select([self._wake], [], [], 0.02)[0]:
                os.read(self._wake, 65536)
        return found

    def order(self, **order: Any) -> None:
        """Have the shim do something."""
        self._orders += 1
        path = self.folder / "control" / f"{self._orders}.json"
        fresh = path.with_suffix(".tmp")
        fresh.write_text(json.dumps(order))
        fresh.rename(path)
        try:
            fd = os.open(self.folder / "poke", os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return
        os.write(fd, b"!")
        os.close(fd)

    @property
    def exit(self) -> dict[str, Any]:
        """How it ended."""
        return json.loads((self.folder / "exit.json").read_bytes())

    @property
    def result(self) -> Any:
        """What it returned."""
        return json.loads((self.folder / "result.json").read_bytes())

    @property
    def log(self) -> bytes:
        """What is kept of its output."""
        return b"".join(path.read_bytes() for path in sorted(self.folder.glob("log.*")))

    @property
    def record(self) -> list[dict[str, Any]]:
        """What it said."""
        path = self.folder / "record.jsonl"
        return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []

    def held(self, name: str) -> bool:
        """Whether somebody has one of its locks."""
        with open(self.folder / name, "rb") as file:  # noqa: PTH123 - a lock needs a descriptor
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    def alive(self) -> list[int]:
        """Processes of the job, wherever they went, but not those that only are still to be waited for."""
        wanted = f"GRAMI_JOB_MARK={self.mark}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if wanted in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return found


def shell(text: str) -> list[str]:
    """A command of a shell."""
    return ["sh", "-c", text]


def program(text: str) -> list[str]:
    """A command of Python, with the channel as ``say(type=..., ...)``."""
    head = """
import json, os, signal, sys, time
channel = int(os.environ["GRAMI_JOB_FD"])
def say(**line):
    os.write(channel, json.dumps(line).encode() + b"\\n")
def witness(text):
    with open(os.environ["WITNESS"], "a") as file:
        print(text, file=file)
"""
    return [sys.executable, "-S", "-E", "-c", head + text]
