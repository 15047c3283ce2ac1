"""How a frame's object becomes bytes: JSON in text frames, MessagePack in binary ones; the same messages. Floor 1."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import accumulate, chain
from typing import Any

import msgspec

Frame = str | bytes
"""What comes in one frame: text or binary."""

# Possessive, and content with a text that does not end: no frame makes it look at a byte twice.
_TEXT_IN_JSON = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NO_HEADER = bytes(byte for byte in range(256) if not (0x80 <= byte <= 0x9F or 0xDC <= byte <= 0xDF))  # noqa: PLR2004
_STEP = [(byte in b"[{") - (byte in b"]}") for byte in range(256)]
_CONTAINERS = frozenset({dict, list, tuple})
"""What is nested in a decoded object; an array that is a key is a tuple."""
_NO_BRACKET = bytes(byte for byte in range(256) if byte not in b"[]{}")


class Encoding:
    """One of the encodings of grami/1.

    Args:
        name: what it is called in errors.
        subprotocol: how a client asks for it (RFC 6455, section 1.9).
        text: whether its frames are text frames.
        library: the module of msgspec that speaks it.
    """

    __slots__ = ("_decoder", "decode", "encode", "encode_deterministically", "name", "subprotocol", "text", "too_deep")

    def __init__(self, name: str, subprotocol: str, library: Any, too_deep: Callable[[Frame, int], bool]) -> None:
        self.name = name
        self.subprotocol = subprotocol
        self.text = library is msgspec.json
        self.encode: Callable[[Any], bytes] = library.Encoder().encode
        self.encode_deterministically: Callable[[Any], bytes] = library.Encoder(order="deterministic").encode
        self.decode: Callable[..., Any] = library.decode
        self.too_deep = too_deep
        self._decoder: Any = library.Decoder

    def decoder(self, kind: Any) -> Callable[[Frame], Any]:
        """What decodes and checks one type. It raises msgspec.MsgspecError, UnicodeDecodeError or RecursionError."""
        decode: Callable[[Frame], Any] = self._decoder(kind).decode
        return decode

    def __repr__(self) -> str:
        return f"<{self.name}>"


def _json_too_deep(frame: Frame, most: int) -> bool:
    """Whether objects and arrays are nested deeper than ``most`` levels."""
    if isinstance(frame, str):
        if frame.count("[") + frame.count("{") <= most:
            return False
        frame = frame.encode()
    # Without its texts only the brackets count. Each step is one pass in C, whatever a client sends.
    brackets = _TEXT_IN_JSON.sub(b"", frame).translate(None, _NO_BRACKET)
    return max(accumulate(map(_STEP.__getitem__, brackets)), default=0) > most


def _msgpack_too_deep(frame: Frame, most: int) -> bool:
    """The same for MessagePack, where only reading all of it tells headers from data; raises what that raises."""
    if isinstance(frame, str) or len(frame.translate(None, _NO_HEADER)) <= most:
        return False
    level: list[Any] = [msgspec.msgpack.decode(frame)]
    for _ in range(most + 1):
        level = [each for each in level if type(each) in _CONTAINERS]
        if not level:
            return False
        level = list(chain.from_iterable(chain(each, each.values()) if type(each) is dict else each for each in level))
    return True


JSON = Encoding("JSON", "grami.v1.json", msgspec.json, _json_too_deep)
MSGPACK = Encoding("MessagePack", "grami.v1.msgpack", msgspec.msgpack, _msgpack_too_deep)
ENCODINGS = {each.subprotocol: each for each in (JSON, MSGPACK)}
