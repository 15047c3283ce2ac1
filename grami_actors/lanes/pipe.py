"""The pipe between the parent and a worker process: which frames there are, and how they are cut. Floor 9.

A frame is four bytes of length, big-endian, and a msgpack array whose first element names its kind. Types are checked
when a frame is read; values of users (``Any`` below) are what :class:`grami_actors.lanes.codec.Codec` packed.

What a worker is sent is read in two steps (``Raw``): what it cannot make sense of then fails one message, not the pipe.

The parent gives orders, one message or hook at a time; the worker reports. Numbers name the message or hook in hand
(``number``), or something that the worker waits for (``errand``).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec

from grami_actors.lanes.codec import CannotCross, Codec

LONGEST_FRAME = 64 * 1024 * 1024
"""Bytes of a frame at most."""

_LENGTH = struct.Struct(">I")

LONGEST_TIME = 1e9
"""Seconds that a frame may speak of: thirty years."""

Seconds = Annotated[float, msgspec.Meta(ge=0, le=LONGEST_TIME)]


class Frame(msgspec.Struct, array_like=True, tag=True):
    """The base of all frames."""


# --- orders: from the parent to the worker ---


class Begin(Frame):
    """What to be: the first frame.

    Attributes:
        system: the system's id.
        name, number: of the actor.
        kind: module and qualified name of its class.
        arguments: pickled arguments of its constructor.
        files: where modules lie that cannot be imported by name.
        main: ``("file", path)`` or ``("module", name)`` of the parent's main module, for when it is needed.
        memory: bytes of data that the process may have; ``None`` for no limit.
    """

    system: str
    name: str
    number: int
    kind: tuple[str, str]
    arguments: bytes
    files: dict[str, str]
    main: tuple[str, str]
    memory: int | None


class Facts(msgspec.Struct, array_like=True):
    """The parent's scope, as far as the worker needs it. Seconds are on the system's clock."""

    deadline: float
    trace_id: str
    depth: int
    streamed: bool
    metered: bool
    sampled: bool
    span: str


class Call(Frame):
    """Handle a message. ``now``: seconds on the system's clock. ``watched``: events of tools are wanted."""

    number: int
    message: msgspec.Raw
    sender: str
    expects_reply: bool
    now: float
    facts: Facts | None
    watched: bool


class Hook(Frame):
    """Run a hook of the instance; ``on_start`` makes the instance first."""

    number: int
    name: str
    now: float
    error: msgspec.Raw


class Cancel(Frame):
    """The request of the message in hand was cancelled."""

    number: int
    reason: Any


class Reply(Frame):
    """What an errand came to."""

    errand: int
    ok: bool
    value: msgspec.Raw


class Chunk(Frame):
    """A chunk for a stream that the worker reads."""

    errand: int
    data: msgspec.Raw


class Refused(Frame):
    """A chunk that was emitted was not taken."""

    number: int
    reason: Any


# --- reports: from the worker to the parent ---


class Done(Frame):
    """The handler or hook returned."""

    number: int
    value: Any


class Failed(Frame):
    """The handler or hook raised."""

    number: int
    error: Any


class Ask(Frame):
    """Ask another actor; the answer is a Reply, after any Chunks."""

    number: int
    errand: int
    to: Any
    message: Any
    timeout: Seconds | None
    budget: Any
    stream: bool


class Do(Frame):
    """Do something else for the worker, by the name of what is to be done; the result is a Reply."""

    number: int
    errand: int
    what: str
    arguments: list[Any]


class Forget(Frame):
    """The worker waits no more for an errand."""

    errand: int


class Wait(Frame):
    """The handler waits for an answer now, which holds its actor up; or does no more."""

    number: int
    errand: int
    begins: bool


class Emit(Frame):
    """A chunk of the answer."""

    number: int
    data: Any


class Progress(Frame):
    """How far the handler is."""

    number: int
    fraction: float
    text: str


class Told(Frame):
    """Something happened that listeners want to know."""

    event: Any


class Limit(Frame):
    """Cancel the message in hand in so many seconds, with this reason, unless the errand is forgotten."""

    number: int
    errand: int
    seconds: Seconds
    reason: Any


Order = Begin | Call | Hook | Cancel | Reply | Chunk | Refused
Report = Done | Failed | Ask | Do | Forget | Wait | Emit | Progress | Told | Limit

_DIRECTIONS: dict[str, Any] = {"orders": Order, "reports": Report}


class Frames:
    """Writes frames to bytes, and reads those of one direction from bytes.

    Args:
        codec: of this end.
        reads: what comes in at this end.
    """

    def __init__(self, codec: Codec, reads: Literal["orders", "reports"]) -> None:
        self._decoder = msgspec.msgpack.Decoder(_DIRECTIONS[reads], ext_hook=codec.unpack)
        self._encoder = msgspec.msgpack.Encoder()
        self._buffer = bytearray()

    def write(self, frame: Frame) -> bytes:
        """The bytes of a frame. Raises CannotCross if they are too many, or there are none."""
        try:
            body = self._encoder.encode(frame)
        except (UnicodeError, OverflowError, TypeError, ValueError) as error:
            raise CannotCross(f"this cannot cross to or from a worker process: {error}") from None
        if len(body) > LONGEST_FRAME:
            raise CannotCross(
                f"{len(body)} bytes are too many to cross to or from a worker process in one piece: at most "
                f"{LONGEST_FRAME}; write them to a file, or emit them in pieces"
            )
        return _LENGTH.pack(len(body)) + body

    def feed(self, data: bytes) -> Iterator[Any]:
        """Every frame that is complete with these bytes. Raises ValueError, and others, for what is none."""
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(buffer, start)
                if length > LONGEST_FRAME:
                    raise ValueError(f"a frame of {length} bytes")
                end = start + _LENGTH.size + length
                if len(buffer) < end:
                    return
                body = bytes(memoryview(buffer)[start + _LENGTH.size : end])
                start = end
                yield self._decoder.decode(body)
        finally:
            del buffer[:start]
