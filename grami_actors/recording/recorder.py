"""Writes what happens in a running server to a file, while it happens. Floor 15.

Rules:

1. Whoever emits an event pays for its encoding, and for nothing else: a thread writes, because a write to a disk may
   block for seconds, and no event loop can wait for a file without one.
2. What waits to be written is bounded. A recording has no holes: where the disk does not keep up or takes no more,
   it ends, says so once, and the server goes on.
3. A recording holds what clients said: only its owner may read it. It holds no credentials: of ``hello``, of ``auth``
   and of all that the server does not understand, which may be meant for one of them, only fields that cannot be a
   token are written; of what is no object, nothing.
4. Chunks and progress that clients get are in the frames; those of messages between actors are not told.
"""

from __future__ import annotations

import copy
import io
import os
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from grami_actors.control_frames import OWNED
from grami_actors.encoding import JSON, MSGPACK, Encoding
from grami_actors.errors import ConfigError, describe
from grami_actors.history import AnyEntry, Dice, Framed, History, Ran, Told, plain
from grami_actors.manager import GrowthManager
from grami_actors.recording.model import recorded
from grami_actors.recording.request import digest_of_call, encoded
from grami_actors.recording.tape import End, Header
from grami_actors.system import ActorSystem
from grami_actors.telemetry import (
    ConnectionAuthenticated,
    ConnectionClosed,
    ConnectionOpened,
    DiceMade,
    Doubted,
    FramePassed,
)

FLUSH_EVERY = 0.5
"""Seconds that a line waits at most for the next write."""

BATCH = 1 << 20
"""Bytes that wait no longer than it takes to write them."""

MOST_WAITING = 1 << 26
"""Bytes that may wait for the disk."""

HIDDEN = "***"
"""What stands for what may be a credential."""

_PLAIN = OWNED | {"ping", "cancel"}
"""Requests to the server itself that hold no credential."""

_HARMLESS = frozenset({"type", "id", "protocol", "to", "stream", "background", "timeout_ms"})
"""The fields that are written of frames that may hold one."""


class Recorder:
    """The recording of one run.

    Args:
        system: what is recorded, before it is entered.
        path: the file to write; there is none, or an empty one.
        header: its first line.
        types: of the messages that clients may send; of others little is written.

    Attributes:
        history: adds entries of whoever knows more than the system's events tell.
        ended: why the recording ended before the run; empty while it goes on.

    Raises:
        ConfigError: the file is not empty, or cannot be written.
    """

    def __init__(self, system: ActorSystem, path: Path, header: Header, types: Iterable[str] = ()) -> None:
        self.path = path
        self._known = _PLAIN.union(types)
        self.ended = ""
        self._bus = bus = system.bus
        bus.stepped = True
        self._lock = threading.Lock()
        self._due = threading.Event()
        self._lines: list[bytes] = []
        self._waiting = 0
        self._entries = 0
        self._broken = False
        self._closed = False
        self._file = _create(path, encoded(header) + b"\n")
        self.history = History(bus, system.now, self._on_entry, keep=False)
        self._ends = (
            self.history.end,
            bus.subscribe(self._on_frame, FramePassed),
            bus.subscribe(self._on_dice, DiceMade),
            bus.subscribe(self._on_connection, ConnectionOpened, ConnectionAuthenticated, ConnectionClosed),
        )
        self._thread = threading.Thread(target=self._work, name="grami-recorder", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what waits, and the end."""
        self._bus.stepped = False
        for end in self._ends:
            end()
        with self._lock:
            self._closed = True
        self._due.set()
        self._thread.join()
        self._file.close()

    # --- what happens, in whatever thread it does ---

    def _on_entry(self, entry: AnyEntry) -> None:
        if isinstance(entry, Told) and entry.to.startswith("tool:") and entry.type == "tool_call":
            self._add(_ran(entry))  # before who was told: in a recording that is cut between, the answer is needed
        self._add(entry)

    def _on_frame(self, event: FramePassed) -> None:
        if self.ended:
            return
        encoding = event.encoding
        if event.way == "in":  # of the kind that the client took for right
            encoding = JSON if isinstance(event.frame, str) else MSGPACK
        self._add(
            Framed(
                at=self.history.now(),
                connection=event.connection,
                way="in" if event.way == "in" else "out",
                frame=_content(event.frame, encoding, self._known if event.way == "in" else None),
                encoding=encoding.name,
            )
        )

    def _on_dice(self, event: DiceMade) -> None:
        self._add(Dice(at=self.history.now(), actor=event.actor, seed=f"{event.seed:x}"))

    def _on_connection(self, event: Any) -> None:
        entry = Framed(at=self.history.now(), connection=event.connection, way="open")
        if isinstance(event, ConnectionAuthenticated):
            entry.way = "auth"
            entry.frame = {"principal": event.principal, "scopes": sorted(event.scopes)}
        elif isinstance(event, ConnectionClosed):
            entry.way = "close"
            entry.frame = {"code": event.code, "reason": event.reason}
        self._add(entry)

    def _add(self, entry: AnyEntry) -> None:
        try:
            line = encoded(entry) + b"\n"
        except Exception as error:  # noqa: BLE001 - a hole in the recording would be worse than its end
            self._end(f"an entry cannot be written ({describe(error)})")
            return
        with self._lock:
            if self.ended or self._closed:
                return
            full = self._waiting + len(line) > MOST_WAITING
            if not full:
                self._lines.append(line)
                self._waiting += len(line)
                self._entries += 1
        if full:
            self._end(f"the disk does not keep up: {self._waiting} bytes wait to be written")
        elif self._waiting > BATCH:
            self._due.set()

    def _end(self, reason: str) -> None:
        with self._lock:
            if self.ended:
                return
            self.ended = reason
        if Doubted in self._bus:
            self._bus.publish(Doubted(f"the recording {self.path} ends early, the server goes on: {reason}"))

    # --- the thread that writes ---

    def _work(self) -> None:
        while not self._closed:
            self._due.wait(FLUSH_EVERY)
            self._due.clear()
            self._flush()
        self._flush()
        self._try(encoded(End(self._entries, self.ended)) + b"\n")

    def _flush(self) -> None:
        with self._lock:
            lines, self._lines = self._lines, []
        data = b"".join(lines)
        self._try(data)
        with self._lock:
            self._waiting -= len(data)

    def _try(self, data: bytes) -> None:
        """Write, if the file takes anything: after half a line nothing that follows could be read."""
        if self._broken:
            return
        try:
            _write(self._file, data)
        except OSError as error:
            self._broken = True
            self._end(f"it cannot be written: {error.strerror}")


def _create(path: Path, header: bytes) -> io.FileIO:
    """A file that only its owner may read, with its first line. Raises ConfigError."""
    try:
        file = io.FileIO(path, "ab", opener=lambda name, flags: os.open(name, flags, 0o600))
        try:
            if not os.fstat(file.fileno()).st_size:
                if path.is_file():
                    path.chmod(0o600)  # it was there, and empty
                _write(file, header)
                return file
        except OSError:
            file.close()
            raise
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
    file.close()
    raise ConfigError(f"{path} is not empty: a recording overwrites nothing, give it a file of its own")


def _write(file: io.FileIO, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def _ran(told: Told) -> Ran:
    tool = told.to.removeprefix("tool:")
    arguments = told.data.get("arguments") if isinstance(told.data, dict) else told.data
    return Ran(
        at=told.at,
        tool=tool,
        request=digest_of_call(tool, arguments),
        arguments=arguments,
        outcome=told.outcome,
        result=told.result,
        error=told.error,
    )


def _content(frame: Any, encoding: Encoding, known: Collection[str] | None) -> Any:
    """What a frame holds; ``None`` for what is no object. Of types that are not known only what is no credential."""
    try:
        content = encoding.decode(frame)
    except Exception:  # noqa: BLE001 - the decoders of MessagePack have many ways to fail
        return None
    kind = content.get("type") if isinstance(content, dict) else None  # as it is: bytes become text below
    if encoding is not JSON:
        content = plain(content)
    if not isinstance(content, dict):
        return None
    if known is not None and not (isinstance(kind, str) and kind in known):
        return {name: _harmless(name, each) for name, each in content.items()}
    return content


def _harmless(name: str, value: Any) -> Any:
    """What is written of a field of a frame that may hold a credential."""
    if name == "client" and isinstance(value, dict):
        return {each: value[each] for each in ("name", "version") if isinstance(value.get(each), str)}
    return value if name in _HARMLESS and not isinstance(value, (dict, list)) else HIDDEN


@contextmanager
def recording(manager: GrowthManager, path: Path | None, header: Header) -> Iterator[Recorder | None]:
    """Record a Growth Manager that is entered and left within.

    Args:
        manager: not yet entered: its model is recorded, too.
        path: the file; ``None`` records nothing.
        header: its first line, of :func:`grami_actors.recording.tape.header`.

    Raises:
        ConfigError: the file is not empty, or cannot be written.
    """
    if path is None:
        yield None
        return
    recorder = Recorder(manager.system, path, header, manager.swarm.types())
    model = manager.swarm.model
    if model is not None:
        manager.swarm = copy.copy(manager.swarm)
        manager.swarm.model = partial(recorded, model, recorder.history)
    try:
        yield recorder
    finally:
        recorder.close()
