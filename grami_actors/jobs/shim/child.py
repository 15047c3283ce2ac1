"""The process that becomes the job. Floor 12."""

from __future__ import annotations

import fcntl
import os
import sys

from grami_actors.jobs.shim.lean import signal, suppress
from grami_actors.jobs.shim.limits import confine

TYPE_CHECKING = False  # importing typing takes a tenth of the shim's start
if TYPE_CHECKING:
    from typing import Any

FIRST = 3
"""The first descriptor that is none of the standard ones."""

CHANNEL = 3
"""The descriptor of the channel in the job: ``GRAMI_JOB_FD``."""

SAFE = 10
"""The first descriptor for what a job need not know; a command's own redirections have lower ones."""


def become(spec: dict[str, Any], environ: dict[str, str], output: int, pipes: tuple[int, int, int], mask: int) -> None:
    """Be the job: of a command this does not return; a Python function is to be called then.

    Args:
        spec: of the job.
        environ: its environment.
        output: descriptor of where its output goes.
        pipes: descriptors of its end of the channel, of the lock of its tree, and of where it says why it could not
            start; that ends the process.
        mask: the umask that it is to have.
    """
    failure = pipes[2]
    try:
        os.setsid()
        os.umask(mask)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        # Some shells know no descriptors of two digits. Copies first: what stands there may be one of the others.
        channel, tree, failure = (fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, SAFE) for each in pipes)
        os.dup2(channel, CHANNEL)
        os.set_inheritable(tree, True)
        keep_only({CHANNEL, tree, failure})
        os.chdir(environ["GRAMI_JOB_DIR"] if spec.get("cwd") is None else spec["cwd"])
        confine(spec.get("limits") or {})
        if spec.get("argv"):
            reset(python=False)
            execute(spec["argv"], environ)
        reset(python=True)
        os.environ.clear()
        os.environ.update(environ)
        os.close(failure)
    except BaseException as error:  # noqa: BLE001 - this process must not go on as a second shim
        with suppress(OSError):
            os.write(failure, f"{type(error).__name__}: {error}"[:2000].encode(errors="replace"))
        os._exit(127)


def execute(argv: list[str], environ: dict[str, str]) -> None:
    """Replace this process by the command, which is looked for on the PATH of its own environment. Raises OSError."""
    try:
        os.execvpe(argv[0], argv, environ)  # noqa: S606 - a list of arguments, no shell
    except OSError as error:
        # It names the last place where the program was looked for.
        raise OSError(error.errno, error.strerror, argv[0]) from None


def reset(*, python: bool) -> None:
    """Have all signals as a new program has them; Python is one that ignores two."""
    ignored = {signal.SIGPIPE, signal.SIGXFSZ} if python else set()
    for number in range(1, signal.NSIG):
        with suppress(OSError, ValueError):  # those that the C library keeps for itself
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
    if python:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def keep_only(fds: set[int]) -> None:
    """Close all descriptors but the standard ones and these."""
    begin = FIRST
    for fd in sorted(each for each in fds if each >= FIRST):
        os.closerange(begin, fd)
        begin = fd + 1
    os.closerange(begin, max(begin, os.sysconf("SC_OPEN_MAX")))


def call(python: dict[str, Any], channel: int, checkpoint: Any) -> int:
    """Run the function; returns the exit code."""
    for name in [*sys.modules]:
        if name.partition(".")[0] == "grami_actors":
            del sys.modules[name]  # the shim's packages are empty
    import site  # noqa: PLC0415 - the shim itself is started without it

    site.main()  # what is installed in place for development is found by hooks that this runs
    sys.path[:] = python["path"]
    sys.argv[:] = [python.get("file") or ""]
    # Those of the interpreter are as the shim found them: block by block, in whatever encoding.
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    from grami_actors.jobs.worker import work  # noqa: PLC0415 - from the path that was just set

    return work(python, channel, checkpoint)
