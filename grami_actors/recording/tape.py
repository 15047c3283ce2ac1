"""The file of a recording: JSON lines, of which the first says what follows. Floor 15.

::

    {"format":"grami recording","version":1,"minor":0,"package":"1.4.0","python":"3.13.1","file":"swarm.py", ...}
    {"kind":"life","at":0.0007,"actor":"writer","stage":"started"}
    ...
    {"kind":"end","entries":412}

Between the header and the end stand the entries of :mod:`grami_actors.history`, in the order in which they came. A
program that was killed leaves no end, and perhaps half a line: what is whole can be read. ``version`` grows when an
older program would misread a file, ``minor`` when there is a new kind of entry; new fields are skipped by those that do
not know them.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Literal, get_args

import msgspec

from grami_actors.errors import ConfigError
from grami_actors.history import AnyEntry
from grami_actors.manager import package_version

FORMAT = "grami recording"
VERSION = 1
MINOR = 1

LONGEST_HEADER = 1 << 20
"""Bytes that are read of a file to see whether it is a recording."""


class Header(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The first line.

    Attributes:
        format: always the same: what the file is.
        version: of the format.
        minor: of the format.
        package: the version of this package.
        python: the version of Python.
        file: the file of the swarm, as it was named.
        scenarios: that were played.
        mode: whether in real time, or in that of a simulation.
        seed: of the simulation.
        begun: when, in UTC (RFC 3339).
    """

    format: str
    version: int
    minor: int
    package: str
    python: str
    file: str
    scenarios: tuple[str, ...] = ()
    mode: Literal["live", "simulated"] = "live"
    seed: int | None = None
    begun: datetime


class End(msgspec.Struct, tag_field="kind", tag="end", omit_defaults=True):
    """The last line.

    Attributes:
        entries: how many there are.
        text: why they do not reach to the end of the run; empty where they do.
    """

    entries: int
    text: str = ""


class _Format(msgspec.Struct):
    """What can be said of the header of any version."""

    format: str = ""
    version: int = 0
    package: str = "an unknown version"


class _Kind(msgspec.Struct):
    kind: str


_KINDS = {each.__struct_config__.tag for each in (*get_args(AnyEntry), End)}
_decode = msgspec.json.Decoder(AnyEntry | End).decode
_BROKEN = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def header(file: Path, scenarios: Sequence[str] = (), *, seed: int | None = None) -> Header:
    """The header of a recording that begins now.

    Args:
        file: of the swarm.
        scenarios: that are played.
        seed: of the simulation; ``None`` in real time.
    """
    return Header(
        format=FORMAT,
        version=VERSION,
        minor=MINOR,
        package=package_version(),
        python=platform.python_version(),
        file=str(file),
        scenarios=tuple(scenarios),
        mode="live" if seed is None else "simulated",
        seed=seed,
        begun=datetime.now(UTC),
    )


class Tape:
    """A recording that is read; iterate it for its entries, any number of times. None is kept.

    Args:
        path: of the file.

    Attributes:
        header: its first line.
        end: its last line, once the iteration came to it; ``None`` where it has none: the program was killed.
        torn: whether the iteration found half a line at the end.

    Raises:
        ConfigError: the file cannot be read, is no recording, or one of a newer format. The iteration raises it for a
            line that is no entry, with its number.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.end: End | None = None
        self.torn = False
        with self._open() as file:
            self.header = self._header(file.readline(LONGEST_HEADER))

    def __iter__(self) -> Iterator[AnyEntry]:
        self.end, self.torn = None, False
        entries = 0
        with self._open() as file:
            file.readline()
            for number, line in enumerate(file, 2):
                if self.end is not None:
                    raise ConfigError(f"{self.path}, line {number}: the recording ended in the line before")
                entry = self._entry(number, line)
                if isinstance(entry, End):
                    if entry.entries != entries:
                        what = f"the end of {entry.entries:,} entries, but there are {entries:,}"
                        raise ConfigError(f"{self.path}, line {number}: {what}: lines were lost or added")
                    self.end = entry
                elif entry is not None:
                    entries += 1
                    yield entry

    def _open(self) -> IO[bytes]:
        try:
            return self.path.open("rb")
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be read: {error.strerror}") from error

    def _header(self, line: bytes) -> Header:
        try:
            said = msgspec.json.decode(line, type=_Format)
        except _BROKEN:
            said = _Format()
        if said.format != FORMAT:
            raise ConfigError(f"{self.path} is no recording: it does not begin with the line that all of them have")
        if said.version > VERSION:
            raise ConfigError(
                f"{self.path} has version {said.version} of the format, which grami_actors {said.package} writes; "
                f"this is {package_version()}, which reads version {VERSION}"
            )
        try:
            return msgspec.json.decode(line, type=Header)
        except _BROKEN as error:
            raise ConfigError(f"{self.path}, line 1: {error}") from None

    def _entry(self, number: int, line: bytes) -> AnyEntry | End | None:
        try:
            entry: AnyEntry | End = _decode(line)
        except _BROKEN as error:
            if not line.endswith(b"\n"):
                self.torn = True
                return None
            raise ConfigError(f"{self.path}, line {number}: {self._newer(line) or error}") from None
        return entry

    def _newer(self, line: bytes) -> str:
        """What to say of an entry of a kind that only a newer version has; empty for others."""
        try:
            kind = msgspec.json.decode(line, type=_Kind).kind
        except _BROKEN:
            return ""
        if kind in _KINDS or self.header.minor <= MINOR:
            return ""
        return (
            f"entries of the kind {kind!r} came after version {VERSION}.{MINOR} of the format; "
            f"grami_actors {self.header.package} wrote {self.header.version}.{self.header.minor}"
        )
