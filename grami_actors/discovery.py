"""How a client finds a running Growth Manager: variables and the state file. Floor 2.

A server writes ``growth-manager.json`` into its state directory and removes it on a clean exit. After a
crash the file stays; it is recognised as stale because the process it names is gone.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from grami_actors.errors import ServerNotFound
from grami_actors.watched_file import replace_file

HIGHEST_PORT = 65_535
STATE_FILE = "growth-manager.json"
STATE_DIR = ".grami"


class ServerState(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the state file says.

    Attributes:
        url: where clients of this machine connect, ``ws://`` or ``wss://``.
        port: the same port as a number.
        pid: the process of the server.
        token: what makes a client the operator, for as long as this server runs; empty if it asks for none.
    """

    url: str
    port: int
    pid: int
    token: str = ""

    def __repr__(self) -> str:
        return f"ServerState(url={self.url!r}, port={self.port}, pid={self.pid})"  # a token belongs in no log

    @property
    def alive(self) -> bool:
        """Whether the process that wrote the file still runs."""
        return _runs(self.pid)


class Located(msgspec.Struct, frozen=True):
    """Where a server is.

    Attributes:
        url: its WebSocket URL.
        token: the operator's, if the URL is the one that its state file gives; it must be shown to no other.
    """

    url: str
    token: str = ""

    def __repr__(self) -> str:
        return f"Located(url={self.url!r})"


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
    replace_file(directory / STATE_FILE, msgspec.json.encode(state) + b"\n")


def read_state(directory: Path) -> ServerState | None:
    """What the state file says; ``None`` if there is none, or it cannot be read as one."""
    try:
        return msgspec.json.decode((directory / STATE_FILE).read_bytes(), type=ServerState)
    except (OSError, msgspec.MsgspecError, ValueError, RecursionError):
        return None


def remove_state(directory: Path, own: ServerState) -> None:
    """Remove the state file if it still names this server, and can be removed."""
    if read_state(directory) == own:
        with contextlib.suppress(OSError):  # where nothing can be written now, it names a server that has ended
            (directory / STATE_FILE).unlink(missing_ok=True)


def find_server(url: str | None = None, environ: Mapping[str, str] | None = None) -> str:
    """The WebSocket URL of a running server; takes and raises what :func:`locate` does."""
    return locate(url, environ).url


def locate(url: str | None = None, environ: Mapping[str, str] | None = None) -> Located:
    """A running server, with the operator's token if its state file is what names it.

    Looks at ``url``, ``GRAMI_URL``, ``GRAMI_PORT`` and the state file (in ``GRAMI_STATE_DIR``, or ``.grami``
    in the working directory), in this order. A port is not yet an address: where the state file names a running
    server on the port of ``GRAMI_PORT``, the address is the file's, as the server may speak ``wss://`` only.

    Raises:
        ServerNotFound: none of them names a server that runs.
    """
    environ = os.environ if environ is None else environ
    given = url or environ.get("GRAMI_URL")
    if given:
        return Located(given)
    directory = Path(environ.get("GRAMI_STATE_DIR") or STATE_DIR)
    state = read_state(directory)
    port = environ.get("GRAMI_PORT")
    if port:
        if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) <= HIGHEST_PORT:
            raise ServerNotFound(f"GRAMI_PORT is {port!r}, which is not a port number")
        if state is None or state.port != int(port) or not state.alive:
            return Located(f"ws://127.0.0.1:{port}/ws")
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
    return Located(state.url, state.token)
