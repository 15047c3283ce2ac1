"""The program of a worker process: ``python -m grami_actors.lanes.worker SOCKET PARENT``. Floor 9.

The main thread runs handlers, one at a time; another reads the pipe. The process ends with its parent, and at
the latest a moment after it with the pipe, whatever its handler is doing.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import ctypes
import importlib
import importlib.machinery
import importlib.util
import inspect
import os
import pickle
import queue
import resource
import runpy
import signal
import socket
import sys
import threading
import traceback
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grami_actors.future import current
from grami_actors.lanes.codec import CannotCross
from grami_actors.lanes.pipe import Begin, Call, Cancel, Chunk, Hook, Refused, Reply
from grami_actors.lanes.remote import Inner, Remote, WorkerRuntime
from grami_actors.messages import Envelope
from grami_actors.spec import Spec

END_SECONDS = 1.0
"""Seconds that the handler at work, and the end of the interpreter, get after the pipe is closed."""

PR_SET_PDEATHSIG = 1
"""From <linux/prctl.h>: the signal that a process gets when its parent ends."""


class _Files:
    """Finds the modules that the parent loaded from a path, under the same names; an importlib.abc.MetaPathFinder."""

    # Not by its name: importing importlib.abc takes as long as a tenth of everything else here.

    def __init__(self, files: dict[str, str]) -> None:
        self._files = files

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        file = self._files.get(fullname)
        if file is None:
            return None
        package = [str(Path(file).parent)] if Path(file).name == "__init__.py" else None
        return importlib.util.spec_from_file_location(fullname, file, submodule_search_locations=package)


class _Lane:
    """The lane as the cell in here sees it: nothing wakes or pauses it, for its mailbox is the parent's."""

    name = "process"
    shared = False

    def wake(self, cell: Any) -> None:
        """There is no mail."""


class Worker:
    """One actor's instance, and the loop that runs its handlers.

    Args:
        connection: the pipe.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._runtime = WorkerRuntime(connection, self._find)
        self._orders: queue.SimpleQueue[tuple[Any, Envelope] | None] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._runner = asyncio.Runner()  # makes its loop when the first coroutine needs one
        self._begin: Begin | None = None
        self._main_is_loaded = False

    # --- the thread that reads ---

    def listen(self) -> None:
        """Read orders until the pipe is closed; then see to it that this process ends."""
        try:
            while (orders := self._runtime.channel.receive()) is not None:
                for order in orders:
                    self._take(order)
        except OSError:
            pass  # the parent is gone
        except Exception:  # noqa: BLE001 - whatever it is, a worker that cannot read is at its end
            traceback.print_exc()
        self._orders.put(None)
        self._ended.wait(END_SECONDS)
        os._exit(1)

    def _take(self, order: Any) -> None:
        runtime = self._runtime
        if isinstance(order, Call):
            self._orders.put((order, runtime.arrived(order)))
        elif isinstance(order, Reply):
            runtime.channel.settle(order)
        elif isinstance(order, Cancel):
            runtime.cancel(order)
        elif isinstance(order, Chunk):
            runtime.channel.chunk(order)
        elif isinstance(order, Refused):
            runtime.refused(order)
        elif isinstance(order, Begin):
            self._begin = order
        else:
            self._orders.put((order, Envelope(None)))

    # --- the main thread ---

    def work(self) -> None:
        """Run handlers and hooks until the pipe is closed."""
        while (order := self._orders.get()) is not None:
            frame, envelope = order
            if isinstance(frame, Hook):
                self._hook(frame, envelope)
            else:
                self._call(frame, envelope)
            current.set(None)
        self._runner.close()

    def _call(self, call: Call, envelope: Envelope) -> None:
        cell = self._runtime.cell
        assert cell is not None
        self._runtime.take(call.number, envelope)
        try:
            envelope.message = self._runtime.channel.codec.read(call.message)
        except CannotCross as unreadable:
            self._runtime.failed_with(unreadable)
            return
        rest = cell.handle(envelope, self._runtime.now())
        if rest is not None:
            # The message is finished; but a task that was told to stop and had nothing left to wait for ends as
            # cancelled, and that must not end the worker.
            with contextlib.suppress(asyncio.CancelledError):
                self._runner.run(rest, context=contextvars.copy_context())

    def _hook(self, hook: Hook, envelope: Envelope) -> None:
        self._runtime.take(hook.number, envelope, hook.now)
        try:
            cell = self._cell()
            envelope.receiver = cell
            cell.at_work = envelope
            current.set(envelope)
            result = self._run_hook(cell, hook)
            if inspect.isawaitable(result):
                result = self._runner.run(_awaited(result), context=contextvars.copy_context())
        except BaseException as error:  # noqa: BLE001 - it is the hook's answer, whatever it is
            self._runtime.failed_with(error)
        else:
            self._runtime.done(result)
        finally:
            if self._runtime.cell is not None:
                self._runtime.cell.at_work = None

    def _cell(self) -> Inner:
        runtime = self._runtime
        if runtime.cell is None:
            begin = self._begin
            assert begin is not None
            runtime.id = begin.system
            self._prepare(begin)
            kind = self._find(*begin.kind)
            if kind is None:
                raise ImportError(f"{'.'.join(begin.kind)} is not there in the worker process")
            args, kwargs = pickle.loads(begin.arguments)  # noqa: S301 - from the parent, who made this process
            runtime.cell = Inner(runtime, _Lane(), Spec(kind, args, kwargs), Remote(runtime, begin.name, begin.number))
        return runtime.cell

    def _find(self, module: str, name: str) -> Any:
        """What a name means. Raises what importing it raises."""
        if module == "__main__" and not self._main_is_loaded:
            self._load_main()
        found: Any = sys.modules.get(module) or importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part, None)
        return found

    def _prepare(self, begin: Begin) -> None:
        """Take on the limits, and what the parent can import."""
        confine(begin.memory)
        sys.meta_path.insert(0, _Files(begin.files))
        if b"__main__" in begin.arguments:
            self._load_main()  # what is pickled, or the path of a tool, names it

    def _load_main(self) -> None:
        """Run the file of the parent's main module, when something in it is needed. Raises what it raises."""
        self._main_is_loaded = True
        assert self._begin is not None
        how, what = self._begin.main
        if how:
            # As multiprocessing does it: under another name, so that ``if __name__ == "__main__"`` is not true.
            main: Any = types.ModuleType("__mp_main__")
            main.__grami_reads__ = True  # a system that starts now is a script without that guard
            sys.modules["__main__"] = sys.modules["__mp_main__"] = main
            run: Any = {"file": runpy.run_path, "module": runpy.run_module}[how]
            main.__dict__.update(run(what, run_name="__mp_main__"))
            main.__grami_reads__ = False

    def _run_hook(self, cell: Inner, hook: Hook) -> Any:
        if hook.name == "on_start":
            return cell.build().on_start()
        if hook.name == "on_failure":
            # The exception itself, which has its traceback and is not a copy.
            error = cell.failure or self._runtime.channel.codec.read(hook.error)
            return cell.actor.on_failure(type(error), error, error.__traceback__)
        return getattr(cell.actor, hook.name)()


async def _awaited(result: Any) -> Any:
    return await result


def confine(memory: int | None) -> None:
    """Bound what this process may take, and offer it first to a kernel that is out of memory."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory is not None and sys.platform == "linux":
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        memory = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    with contextlib.suppress(OSError):  # there is no such file, or it may not be written
        Path("/proc/self/oom_score_adj").write_text("1000")


def die_with(parent: int) -> None:
    """End with the parent, however it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def main() -> None:
    """Run the worker whose pipe is the file descriptor of the first argument."""
    die_with(int(sys.argv[2]))
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    worker = Worker(connection)
    threading.Thread(target=worker.listen, name="grami-pipe", daemon=True).start()
    worker.work()


if __name__ == "__main__":
    main()
