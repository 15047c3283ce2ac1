"""How a client finds a running Growth Manager: variables and the state file. Floor 2.

A server writes ``growth-manager.json`` into its state directory and removes it on a clean exit. After a
crash the file stays; it is recognised as stale because the process it names is gone.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec

from grami_actors.errors import ServerNotFound

HIGHEST_PORT = 65_535
STATE_FILE = "growth-manager.json"
STATE_DIR = ".grami"


class ServerState(msgspec.Struct, frozen=True):
    """What the state file says."""

    url: str
    port: int
    pid: int

    @property
    def alive(self) -> bool:
        """Whether the process that wrote the file still runs."""
        return _runs(self.pid)


def _runs(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    except OverflowError:
        return False
    return True


def write_state(directory: Path, state: ServerState) -> None:
    """Publish a running server. The file appears whole or not at all."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=directory, prefix=".growth-manager-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(msgspec.json.encode(state) + b"\n")
        Path(temporary).replace(directory / STATE_FILE)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_state(directory: Path) -> ServerState | None:
    """What the state file says; ``None`` if there is none, or it cannot be read as one."""
    try:
        return msgspec.json.decode((directory / STATE_FILE).read_bytes(), type=ServerState)
    except (OSError, msgspec.MsgspecError, ValueError, RecursionError):
        return None


def remove_state(directory: Path, own: ServerState) -> None:
    """Remove the state file if it still names this server."""
    if read_state(directory) == own:
        (directory / STATE_FILE).unlink(missing_ok=True)


def find_server(url: str | None = None, environ: Mapping[str, str] | None = None) -> str:
    """The WebSocket URL of a running server.

    Looks at ``url``, ``GRAMI_URL``, ``GRAMI_PORT`` and the state file (in ``GRAMI_STATE_DIR``, or ``.grami``
    in the working directory), in this order.

    Raises:
        ServerNotFound: none of them names a server that runs.
    """
    environ = os.environ if environ is None else environ
    if url:
        return url
    if environ.get("GRAMI_URL"):
        return environ["GRAMI_URL"]
    port = environ.get("GRAMI_PORT")
    if port:
        if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) <= HIGHEST_PORT:
            raise ServerNotFound(f"GRAMI_PORT is {port!r}, which is not a port number")
        return f"ws://127.0.0.1:{port}/ws"
    directory = Path(environ.get("GRAMI_STATE_DIR") or STATE_DIR)
    state = read_state(directory)
    if state is None:
        flaw = "is not a state file" if (directory / STATE_FILE).exists() else "does not exist"
        raise ServerNotFound(
            f"no Growth Manager found: GRAMI_URL and GRAMI_PORT are not set, and {directory / STATE_FILE} "
            f"{flaw}; start one with `grami serve FILE`, or give its address"
        )
    if not state.alive:
        raise ServerNotFound(
            f"{directory / STATE_FILE} is stale: the server it names (process {state.pid}) is gone; "
            "start one with `grami serve FILE`"
        )
    return state.url
