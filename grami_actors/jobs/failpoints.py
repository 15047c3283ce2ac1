"""Named places where a test has the process die. Floor 12.

``GRAMI_FAILPOINT=NAME:NTH:ACTION`` has the N-th passage of the place NAME, from 1, ``kill9`` the process, ``raise``,
fail as a full disk does (``enospc``), or ``stall`` for a second. Without the variable a place costs one look at a
constant. The shim has these, too: nothing is imported here that takes time.
"""

from __future__ import annotations

import errno
import itertools
import os
import time

_NAME, _NTH, _ACTION = ([*os.environ.get("GRAMI_FAILPOINT", "").split(":"), "", ""])[:3]
_passages = itertools.count(1)


def reached(name: str) -> None:
    """A place is passed."""
    if name == _NAME and next(_passages) == int(_NTH or 1):
        _act(name)


def _act(name: str) -> None:
    if _ACTION == "kill9":
        os.kill(os.getpid(), 9)  # SIGKILL; the shim starts without importing the module signal
    elif _ACTION == "stall":
        time.sleep(1.0)
    elif _ACTION == "enospc":
        raise OSError(errno.ENOSPC, f"no space left, at {name}")
    else:
        raise RuntimeError(f"failed at {name}")
