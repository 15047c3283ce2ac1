"""What a job said, as its shim wrote it down, read into events: each once, in order, in pieces. Floor 12."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from grami_actors.job import Job
from grami_actors.jobs.store import Note

PIECE = 256 * 1024
"""Bytes that are read at once, unless one line is longer."""

LONGEST_LINE = 2 * 1024 * 1024
"""What is longer is no line of a shim, and is left out. (A job's are 256 KiB; written as ASCII they may grow.)"""


class _Said(msgspec.Struct, frozen=True, tag_field="type", kw_only=True):
    at: float


class _Progress(_Said, tag="progress", frozen=True, kw_only=True):
    fraction: float
    message: str = ""


class _Checkpoint(_Said, tag="checkpoint", frozen=True, kw_only=True):
    data: Any


class _Artifact(_Said, tag="artifact", frozen=True, kw_only=True):
    name: str
    bytes: int


class _Ask(_Said, tag="ask", frozen=True, kw_only=True):
    question: Any = None


_decoder = msgspec.json.Decoder(_Progress | _Checkpoint | _Artifact | _Ask)


class Question(NamedTuple):
    """The job waits for input."""

    question: Any
    at: float


class Part(NamedTuple):
    """Something that a job said: to be taken over as a whole, ``fields["imported"]`` with it.

    Attributes:
        notes: what it said.
        fields: of the job that change with it.
        asks: what it asked then, if it did.
    """

    notes: list[Note]
    fields: dict[str, Any]
    asks: Question | None


class Record:
    """Reads a record from where it was read before.

    Args:
        path: of ``record.jsonl``.
        job: whose; what was imported before is in there.
    """

    def __init__(self, path: Path, job: Job) -> None:
        self._path = path
        self._artifacts = dict(job.artifacts)
        self.offset = job.imported

    def unread(self) -> bool:
        """Whether there may be something new. Raises OSError."""
        try:
            return self._path.stat().st_size > self.offset
        except FileNotFoundError:
            return False

    def parts(self) -> Iterator[Part]:
        """What the next piece of whole lines says that says anything; nothing if there is none. Raises OSError.

        A part has to be taken over before the next one is asked for. What is no event is passed over, and is read
        again by the next server if no event follows it.
        """
        fields: dict[str, Any] = {}
        notes: list[Note] = []
        asked = False
        while not (notes or asked) and (lines := self._lines()):
            for line in lines:
                self.offset += len(line)
                try:
                    said = _decoder.decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    continue  # cut off as the disk got full, or of a kind that is no event: "stop", "dropped"
                if not isinstance(said, _Ask):
                    notes.append(self._note(said, fields))
                    fields["imported"] = self.offset
                    continue
                if notes:
                    yield Part(notes, fields, None)
                    notes, fields = [], {}
                asked = True
                yield Part([], {"imported": self.offset}, Question(said.question, said.at))
        if notes:
            yield Part(notes, fields, None)

    def _note(self, said: _Progress | _Checkpoint | _Artifact, fields: dict[str, Any]) -> Note:
        if isinstance(said, _Progress):
            fields["progress"] = fraction = min(1.0, max(0.0, said.fraction))
            fields["message"] = said.message
            return Note("progress", said.at, {"fraction": fraction, "message": said.message})
        if isinstance(said, _Checkpoint):
            fields["checkpoint"] = said.data
            return Note("checkpoint", said.at, {"bytes": len(msgspec.json.encode(said.data))})
        self._artifacts[said.name] = said.bytes
        fields["artifacts"] = dict(self._artifacts)
        return Note("artifact", said.at, {"name": said.name, "bytes": said.bytes})

    def _lines(self) -> list[bytes]:
        """Whole lines, with their ends; together a piece, or one that is longer."""
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return []
        with file:
            file.seek(self.offset)
            data = file.read(PIECE)
            if len(data) == PIECE and b"\n" not in data:
                data += file.readline(LONGEST_LINE - PIECE)
            if len(data) == LONGEST_LINE and b"\n" not in data:
                return [data]  # its next part is read as nonsense, too, up to the end of the line
        return [line + b"\n" for line in data.split(b"\n")[:-1]]
