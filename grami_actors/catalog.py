"""The message types that a server understands, and what is wrong with those that it does not. Floor 2."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from grami_actors.encoding import ENCODINGS, Encoding, Frame
from grami_actors.errors import ErrorCode, ProtocolError, describe
from grami_actors.explain import explain
from grami_actors.frames import Header
from grami_actors.messages import CONTROL_TYPES, RESERVED_PREFIXES

Allowed = Callable[[str, str], bool]
"""Whether somebody may send messages of a type to a destination."""


class Catalog:
    """The message types of a server, and what ``describe`` tells about them.

    Args:
        types: message type to class.
        describe: gives the answer to ``describe`` for somebody; ``None`` for everybody.
    """

    def __init__(self, types: Mapping[str, type], describe: Callable[[Allowed | None], Any]) -> None:
        self.types = types
        self.describe = describe
        self._decoders = {
            encoding: {name: encoding.decoder(kind) for name, kind in types.items()} for encoding in ENCODINGS.values()
        }

    def decode(self, header: Header, frame: Frame, encoding: Encoding, allowed: Callable[[str], bool] = bool) -> Any:
        """The message in a frame.

        Args:
            header: of the frame.
            frame: all of it.
            encoding: of the frame.
            allowed: which types the sender may be told of, where its own is unknown; all, if not given.

        Raises:
            ProtocolError: UNKNOWN_TYPE, VALIDATION_FAILED or INVALID_JSON.
        """
        decoder = self._decoders[encoding].get(header.type)
        if decoder is None:
            raise self._unknown(header.type, allowed)
        try:
            return decoder(frame)
        except Exception as error:  # noqa: BLE001 - a message class checks itself with code of its own
            raise faulty(error, encoding, header.type) from None

    def convert(self, data: Any) -> Any:
        """The message that an object with a ``type`` of this catalog stands for; ``None`` if it has none.

        Raises:
            ProtocolError: VALIDATION_FAILED.
        """
        name = data.get("type") if isinstance(data, dict) else None
        kind = self.types.get(name) if isinstance(name, str) else None
        if kind is None:
            return None
        try:
            return msgspec.convert(data, kind)
        except msgspec.ValidationError as error:
            message, param = explain(error)
            raise ProtocolError(
                message, code=ErrorCode.VALIDATION_FAILED, param=f"$.data{param.removeprefix('$')}"
            ) from None
        except Exception as error:  # noqa: BLE001 - a message class checks itself with code of its own
            raise _refused_by_itself(str(name), error) from None

    def _unknown(self, name: str, allowed: Callable[[str], bool]) -> ProtocolError:
        if name in CONTROL_TYPES or name.startswith(RESERVED_PREFIXES):
            return ProtocolError(f"{name!r} is not supported by this server", code=ErrorCode.UNSUPPORTED_FEATURE)
        close = difflib.get_close_matches(name, filter(allowed, self.types), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "; send 'describe' for the types that it knows"
        return ProtocolError(f"no agent here handles the type {name!r}{hint}", code=ErrorCode.UNKNOWN_TYPE)


def decoded(decoder: Callable[[Frame], Any], frame: Frame, encoding: Encoding) -> Any:
    """What a decoder makes of a frame. Raises ProtocolError, with the path of what is wrong."""
    try:
        return decoder(frame)
    except Exception as error:  # noqa: BLE001 - they have many ways to fail
        raise faulty(error, encoding) from None


def faulty(
    error: Exception, encoding: Encoding, name: str = "", code: str = ErrorCode.VALIDATION_FAILED
) -> ProtocolError:
    """What a client is told about what a decoder raised.

    Args:
        error: the exception.
        encoding: of the frame.
        name: the message type; its class may check itself with code of its own, and raise anything.
        code: for what can be read, and is not what it must be.
    """
    if isinstance(error, msgspec.ValidationError):
        message, param = explain(error)
        return ProtocolError(message, code=code, param=param)
    if isinstance(error, RecursionError):
        return ProtocolError("the message is nested too deeply", code=ErrorCode.INVALID_JSON)
    if isinstance(error, msgspec.DecodeError | UnicodeError):
        return ProtocolError(f"the message is not valid {encoding.name}: {error}", code=ErrorCode.INVALID_JSON)
    return _refused_by_itself(name, error)


def _refused_by_itself(name: str, error: Exception) -> ProtocolError:
    return ProtocolError(f"{name}: {describe(error)}", code=ErrorCode.VALIDATION_FAILED, param="$")
