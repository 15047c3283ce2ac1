"""The wire protocol grami/1 of one connection, without any socket. Floor 2; docs/protocol.md is its text.

Rule 1: everything that decides what a client is answered lives in this file; there is no I/O, no clock and
        no randomness in it (``now`` is a parameter).
Rule 2: every accepted request has exactly one :class:`Slot`, and ends with exactly one terminal frame.
Rule 3: what goes out is taken with :meth:`ServerProtocol.data_to_send`, in order.
Rule 4: a frame decides its mode: with an ``id`` it is answered in envelope mode, without one in plain mode,
        in request order, and with exactly the keys that plain mode has.
"""

from __future__ import annotations

import difflib
import math
import re
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from grami_actors.errors import RETRYABLE, ErrorCode, GramiError, ProtocolError
from grami_actors.frames import (
    BAD_MESSAGES_IN_A_ROW,
    CLOSE_ABUSE,
    CLOSE_UNSUPPORTED_DATA,
    PROTOCOL_VERSION,
    CancelFields,
    Chunk,
    ErrorResponse,
    Header,
    Hello,
    Limits,
    Meta,
    OnlyId,
    PlainError,
    PlainSuccess,
    Pong,
    Progress,
    RequestId,
    Response,
    Started,
    Welcome,
)
from grami_actors.messages import CONTROL_TYPES, RESERVED_PREFIXES

# --- what the owner of the connection is asked to do ---


class Accepted(msgspec.Struct, frozen=True):
    """A request to forward. It must be ended with :meth:`ServerProtocol.finish` under the same key."""

    key: int
    message: Any
    to: str
    timeout: float
    trace_id: str
    stream: bool


class CancelRequest(msgspec.Struct, frozen=True):
    """Cancel the accepted request with this key, and finish it with the error CANCELLED."""

    key: int


class DescribeRequest(msgspec.Struct, frozen=True):
    """Finish the request with this key with what the catalog describes; that may import tools, so off the loop."""

    key: int
    timeout: float


Action = Accepted | CancelRequest | DescribeRequest


class Slot:
    """One request that has no terminal frame yet."""

    __slots__ = ("answer", "begun_at", "dropped", "id", "key", "message_type", "progress", "seq", "started", "stream")

    def __init__(self, key: int, request_id: RequestId | msgspec.UnsetType, header: Header | None, now: float) -> None:
        self.key = key
        self.id = request_id
        self.stream = header is not None and header.stream and request_id is not msgspec.UNSET
        self.message_type = "" if header is None else header.type
        self.begun_at = now
        self.seq = 0
        self.progress = 0.0
        self.started = False
        self.dropped = 0
        self.answer: bytes | None = None


class Catalog:
    """The message types that this server understands, and what ``describe`` tells about them.

    Args:
        types: message type to class.
        describe: gives the answer to ``describe``.
    """

    def __init__(self, types: Mapping[str, type], describe: Callable[[], Any]) -> None:
        self.describe = describe
        self._decoders: dict[str, msgspec.json.Decoder[Any]] = {
            name: msgspec.json.Decoder(kind) for name, kind in types.items()
        }

    def decode(self, header: Header, text: str) -> Any:
        """The message in a frame. Raises ProtocolError: UNKNOWN_TYPE or VALIDATION_FAILED."""
        decoder = self._decoders.get(header.type)
        if decoder is None:
            raise self._unknown(header.type)
        try:
            return decoder.decode(text)
        except msgspec.ValidationError as error:
            message, param = explain(error)
            raise ProtocolError(message, code=ErrorCode.VALIDATION_FAILED, param=param) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(_flaw(error), code=ErrorCode.INVALID_JSON) from None
        except Exception as error:  # noqa: BLE001 - a message class checks itself with code of its own
            text = f"{header.type}: {type(error).__name__}: {error}"
            raise ProtocolError(text, code=ErrorCode.VALIDATION_FAILED, param="$") from None

    def _unknown(self, name: str) -> ProtocolError:
        if name in CONTROL_TYPES or name.startswith(RESERVED_PREFIXES):
            return ProtocolError(f"{name!r} is not supported by this server", code=ErrorCode.UNSUPPORTED_FEATURE)
        close = difflib.get_close_matches(name, self._decoders, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "; send 'describe' for the types that it knows"
        return ProtocolError(f"no agent here handles the type {name!r}{hint}", code=ErrorCode.UNKNOWN_TYPE)


_CODES = frozenset(map(str, ErrorCode))
_UNTIMELY = frozenset({ErrorCode.TOO_MANY_INFLIGHT, ErrorCode.DUPLICATE_ID, ErrorCode.SHUTTING_DOWN})
_HEADER = msgspec.json.Decoder(Header)
_HELLO = msgspec.json.Decoder(Hello)
_CANCEL = msgspec.json.Decoder(CancelFields)
_ONLY_ID = msgspec.json.Decoder(OnlyId)
_ENCODER = msgspec.json.Encoder()
_PATH = re.compile(r" - at `(\$.*)`$")
_MISSING = re.compile(r"missing required field `(\w+)`")
# Only a version later than 00 may have more behind its flags, and ff is none.
_TRACEPARENT = re.compile(
    r"(?!ff)(?!00.{53}.)[0-9a-f]{2}-((?!0{32})[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?"
)


def explain(error: msgspec.ValidationError) -> tuple[str, str]:
    """A validation error in words, and the path of the faulty field (``$.platform``)."""
    text = str(error)
    path = _PATH.search(text)
    param = path.group(1) if path else "$"
    text = _PATH.sub("", text)
    if missing := _MISSING.search(text):
        param = f"{param}.{missing.group(1)}"
        text = f"The field `{missing.group(1)}` is required"
    return f"{text} (at {param})", param


def _flaw(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "the message is nested too deeply"
    return f"the message is not valid JSON: {error}"


class ServerProtocol:
    """The server's side of one connection.

    Args:
        connection_id: told in ``welcome``.
        catalog: the message types.
        limits: what the connection may do.
        server: name and version, told in ``welcome``.

    Attributes:
        draining: refuse new requests with SHUTTING_DOWN.
        close_code: set when the client is to be cut off.
        held_bytes: plain answers that wait for an earlier one; they count like unsent output.
    """

    def __init__(self, connection_id: str, catalog: Catalog, limits: Limits, server: dict[str, str]) -> None:
        self.principal = "anonymous"
        self.draining = False
        self.close_code: int | None = None
        self._connection_id = connection_id
        self._catalog = catalog
        self._limits = limits
        self._server = server
        self._slots: dict[int, Slot] = {}
        self._by_id: dict[str | int, Slot] = {}
        self._plain: deque[Slot] = deque()
        self._out: list[bytes] = []
        self._last_key = 0
        self._bad = 0
        self.held_bytes = 0
        self._binary_seen = False
        self._controls: dict[str, Callable[[Header, str, float], Action | None]] = {
            "ping": self._ping,
            "hello": self._hello,
            "cancel": self._cancel,
            "describe": self._describe,
        }

    # --- from the client ---

    def receive_text(self, text: str, now: float) -> Action | None:
        """Take one text frame. What it asks of the owner is returned; answers wait in ``data_to_send``."""
        try:
            header = self._header(text)
            control = self._controls.get(header.type)
            done = self._accept(header, text, now) if control is None else control(header, text, now)
        except ProtocolError as error:
            self._refuse(_recover_id(text), error, now)
            # A busy client is not a bad one: what only came at the wrong time does not count.
            self._bad += error.error_code not in _UNTIMELY
            if self._bad >= BAD_MESSAGES_IN_A_ROW:
                self.close_code = CLOSE_ABUSE
            return None
        self._bad = 0
        return done

    def receive_binary(self, now: float) -> None:
        """Take one binary frame: an error the first time, the end of the connection the second time."""
        if self._binary_seen:
            self.close_code = CLOSE_UNSUPPORTED_DATA
            return
        self._binary_seen = True
        error = ProtocolError("this endpoint speaks JSON in text frames", code=ErrorCode.UNSUPPORTED_ENCODING)
        self._refuse(msgspec.UNSET, error, now)

    def _header(self, text: str) -> Header:
        try:
            return _HEADER.decode(text)
        except msgspec.ValidationError as error:
            message, param = explain(error)
            raise ProtocolError(message, param=param) from None
        except (ValueError, RecursionError) as error:
            raise ProtocolError(_flaw(error), code=ErrorCode.INVALID_JSON) from None

    def _accept(self, header: Header, text: str, now: float) -> Accepted | None:
        if header.background or header.idempotency_key is not None:
            field = "background" if header.background else "idempotency_key"
            raise ProtocolError(
                f"this server does not support {field!r} yet", code=ErrorCode.UNSUPPORTED_FEATURE, param=f"$.{field}"
            )
        if header.stream and header.id is msgspec.UNSET:
            raise ProtocolError("'stream' needs an 'id', to tell the frames apart", param="$.id")
        message = self._catalog.decode(header, text)
        self._admit(header)
        return Accepted(
            key=self._open(header, now).key,
            message=message,
            to=header.to,
            timeout=self._timeout(header),
            trace_id=_trace_id(header.meta),
            stream=header.stream,
        )

    def _timeout(self, header: Header) -> float:
        return min(header.timeout_ms or self._limits.request_timeout_ms, self._limits.max_timeout_ms) / 1000

    def _check_id(self, header: Header) -> None:
        if header.id in self._by_id:
            raise ProtocolError(
                f"the id {header.id!r} is still in flight on this connection", code=ErrorCode.DUPLICATE_ID, param="$.id"
            )

    def _admit(self, header: Header) -> None:
        self._check_id(header)
        if len(self._slots) >= self._limits.max_inflight:
            raise ProtocolError(
                f"{len(self._slots)} requests are in flight on this connection, its limit; wait for an answer",
                code=ErrorCode.TOO_MANY_INFLIGHT,
            )
        if self.draining:
            raise ProtocolError("the server is shutting down", code=ErrorCode.SHUTTING_DOWN)

    def _open(self, header: Header, now: float) -> Slot:
        self._last_key += 1
        slot = Slot(self._last_key, header.id, header, now)
        self._slots[slot.key] = slot
        if header.id is msgspec.UNSET:
            self._plain.append(slot)
        else:
            self._by_id[header.id] = slot
        return slot

    def _refuse(self, request_id: RequestId | msgspec.UnsetType, error: GramiError, now: float) -> None:
        """Answer a message that was not accepted; in plain mode in its turn."""
        slot = Slot(0, request_id, None, now)
        if request_id is msgspec.UNSET:
            self._plain.append(slot)
        self._answer(slot, None, error, now)

    # --- control messages (docs/protocol.md, section 4) ---

    def _ping(self, header: Header, _text: str, _now: float) -> None:
        self._out.append(_ENCODER.encode(Pong(header.id)))

    def _hello(self, header: Header, text: str, _now: float) -> None:
        hello = _decode_control(_HELLO, text)
        if hello.protocol != PROTOCOL_VERSION:
            raise ProtocolError(
                f"this server speaks protocol {PROTOCOL_VERSION}, not {hello.protocol}",
                code=ErrorCode.UNSUPPORTED_VERSION,
                param="$.protocol",
            )
        limits = {"max_message_bytes": self._limits.max_message_bytes, "max_inflight": self._limits.max_inflight}
        welcome = Welcome(self._connection_id, self.principal, self._server, limits, 5000, header.id)
        self._out.append(_ENCODER.encode(welcome))

    def _cancel(self, header: Header, text: str, now: float) -> CancelRequest | None:
        wanted = _decode_control(_CANCEL, text).request_id
        found = None if wanted is None else self._by_id.get(wanted)
        if header.id is not msgspec.UNSET:
            self._check_id(header)
            self._answer(Slot(0, header.id, header, now), {"cancelled": found is not None}, None, now)
        return None if found is None else CancelRequest(found.key)

    def _describe(self, header: Header, _text: str, now: float) -> DescribeRequest:
        self._admit(header)
        return DescribeRequest(self._open(header, now).key, self._timeout(header))

    # --- from the agents ---

    def started(self, key: int, source: str) -> None:
        """An agent began to work on the request."""
        slot = self._slots.get(key)
        if slot is not None and slot.stream and not slot.started:
            slot.started = True
            self._add(slot, Started(slot.id, slot.seq + 1, source))  # type: ignore[arg-type]

    def chunk(self, key: int, data: Any, *, room: bool = True) -> None:
        """A part of the answer; counted instead of sent when there is no ``room``. Late ones are ignored."""
        slot = self._slots.get(key)
        if slot is None or not slot.stream:
            return
        if not room:
            slot.dropped += 1
            return
        if not self._add(slot, Chunk(slot.id, slot.seq + 1, data)):  # type: ignore[arg-type]
            slot.dropped += 1

    def drop(self, key: int, count: int) -> None:
        """Count chunks that were dropped before they came here."""
        slot = self._slots.get(key)
        if slot is not None and slot.stream:
            slot.dropped += count

    def progress(self, key: int, fraction: float, message: str, *, room: bool = True) -> None:
        """How far the request is. Never falls, never leaves 0 to 1; left out when there is no ``room``."""
        slot = self._slots.get(key)
        if slot is None or not slot.stream or not room:
            return
        try:
            number, words = float(fraction), str(message)
        except Exception:  # noqa: BLE001 - an agent may report anything, with code of its own that fails
            return
        # A NaN compares false with everything, and would stay for ever.
        number = number if math.isfinite(number) else 0.0
        slot.progress = max(slot.progress, min(number, 1.0))
        self._add(slot, Progress(slot.id, slot.seq + 1, slot.progress, words))  # type: ignore[arg-type]

    def finish(self, key: int, value: Any, error: GramiError | None, now: float) -> Slot | None:
        """End a request with its one terminal frame; ``None`` if it was ended before."""
        slot = self._slots.pop(key, None)
        if slot is None:
            return None
        if slot.id is not msgspec.UNSET:
            del self._by_id[slot.id]
        self._answer(slot, value, error, now)
        return slot

    def _answer(self, slot: Slot, value: Any, error: GramiError | None, now: float) -> None:
        try:
            frame = _terminal(slot, value, error, now)
        except Exception as flaw:  # noqa: BLE001 - an answer may bring code of its own that fails while it is encoded
            unfit = f"the answer, a {type(value).__name__}, cannot be sent as JSON: {type(flaw).__name__}: {flaw}"
            told = error or GramiError(unfit, code=ErrorCode.AGENT_EXECUTION_FAILED)
            frame = _terminal(slot, None, _sendable(told), now)
        if slot.id is not msgspec.UNSET:
            self._out.append(frame)
            return
        slot.answer = frame
        self.held_bytes += len(frame)
        while self._plain and (answer := self._plain[0].answer) is not None:
            self._plain.popleft()
            self.held_bytes -= len(answer)
            self._out.append(answer)

    def _add(self, slot: Slot, frame: Any) -> bool:
        """Send a frame before the terminal; ``False``, and no gap in ``seq``, if it cannot be sent as JSON."""
        try:
            self._out.append(_ENCODER.encode(frame))
        except Exception:  # noqa: BLE001 - an agent may emit anything, with code of its own that fails
            return False
        slot.seq += 1
        return True

    # --- to the client ---

    def data_to_send(self) -> list[bytes]:
        """The frames to send now, in order; they are handed over once."""
        out, self._out = self._out, []
        return out

    @property
    def inflight(self) -> tuple[int, ...]:
        """The keys of the requests that have no terminal frame yet."""
        return tuple(self._slots)


def _sendable(error: GramiError) -> GramiError:
    """The same error in words that are surely text: a lone surrogate, say, has no UTF-8."""
    words = error.message.encode("utf-8", "replace").decode()
    return GramiError(words, code=error.error_code, retry_after_ms=error.retry_after_ms)


def _code(error: GramiError) -> str:
    """The code that is sent; one that a handler made up is not in the protocol's list."""
    return error.error_code if error.error_code in _CODES else ErrorCode.AGENT_EXECUTION_FAILED


def _terminal(slot: Slot, value: Any, error: GramiError | None, now: float) -> bytes:
    if slot.id is msgspec.UNSET:
        if error is None:
            return _ENCODER.encode(PlainSuccess(value))
        return _ENCODER.encode(PlainError(_code(error), error.message))
    duration = max(0, round((now - slot.begun_at) * 1000))
    if error is None:
        return _ENCODER.encode(Response(slot.id, slot.seq + 1, "success", value, duration, slot.dropped))
    return _ENCODER.encode(
        ErrorResponse(
            id=slot.id,
            seq=slot.seq + 1,
            status="error",
            error_code=_code(error),
            message=error.message,
            retryable=_code(error) in RETRYABLE,
            duration_ms=duration,
            retry_after_ms=msgspec.UNSET if error.retry_after_ms is None else error.retry_after_ms,
            param=msgspec.UNSET if error.param is None else error.param,
        )
    )


def _recover_id(text: str) -> RequestId | msgspec.UnsetType:
    """The id of a message that is otherwise wrong, so that its error reaches whoever waits for it."""
    try:
        return _ONLY_ID.decode(text).id
    except (ValueError, RecursionError):
        return msgspec.UNSET


def _decode_control(decoder: msgspec.json.Decoder[Any], text: str) -> Any:
    try:
        return decoder.decode(text)
    except msgspec.ValidationError as error:
        message, param = explain(error)
        raise ProtocolError(message, code=ErrorCode.VALIDATION_FAILED, param=param) from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise ProtocolError(_flaw(error), code=ErrorCode.INVALID_JSON) from None


def _trace_id(meta: Meta | None) -> str:
    """The trace id of a W3C ``traceparent`` (https://www.w3.org/TR/trace-context/#traceparent-header)."""
    if meta is None or not meta.traceparent:
        return ""
    try:
        found = _TRACEPARENT.fullmatch(msgspec.json.decode(meta.traceparent, type=str))
    except (msgspec.MsgspecError, RecursionError):
        return ""
    return found.group(1) if found else ""
