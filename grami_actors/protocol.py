"""The wire protocol grami/1 of one connection, without any socket. Floor 5; docs/protocol.md is its text.

Rule 1: everything that decides what a client is answered lives in this file; there is no I/O, no clock and
        no randomness in it (``now`` is a parameter).
Rule 2: every accepted request is ended by its owner with :meth:`~Answers.finish`, once.
Rule 3: what goes out is taken with :meth:`~Answers.data_to_send`, in order.
Rule 4: a frame decides its mode: with an ``id`` it is answered in envelope mode, without one in plain mode,
        in request order, and with exactly the keys that plain mode has.
Rule 5: a client that was told nothing of connection-wide frames (it said no ``hello``) gets none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import msgspec

from grami_actors.answers import Answers
from grami_actors.catalog import Catalog, decoded, faulty
from grami_actors.control_frames import DECODERS, NEW_JOBS, OWNED
from grami_actors.encoding import JSON, Encoding, Frame
from grami_actors.errors import ErrorCode, GramiError, LimitReached, PermissionDenied, ProtocolError
from grami_actors.frames import (
    ADMIN_TYPES,
    BAD_MESSAGES_IN_A_ROW,
    CLOSE_ABUSE,
    CLOSE_AUTH_TIMEOUT,
    CLOSE_IDLE,
    CLOSE_TOKEN_EXPIRED,
    CLOSE_UNSUPPORTED_DATA,
    JOB_CONTROLS,
    PROTOCOL_VERSION,
    Cancel,
    Delay,
    Goaway,
    Header,
    Hello,
    JobAttach,
    JobCancel,
    JobList,
    JobRead,
    JobSubmit,
    Limits,
    OnlyId,
    Pong,
    Publish,
    RequestId,
    Subscribe,
    Unsubscribe,
    Welcome,
    close_code,
)
from grami_actors.job import Order
from grami_actors.job_requests import SubmitRequest
from grami_actors.job_views import listing, submission
from grami_actors.policy import Policy
from grami_actors.principals import ANONYMOUS, Principal
from grami_actors.trace_context import Trace, trace_of

BACKGROUND = "job.background"
"""What a request with ``background`` becomes."""

RECONNECT_JITTER_MS = 5_000
"""Within how many milliseconds clients are asked to spread their coming back."""

# --- what the owner of the connection is asked to do ---


class Accepted(msgspec.Struct, frozen=True):
    """A request to forward. It must be ended with :meth:`ServerProtocol.finish` under the same key."""

    key: int
    message: Any
    to: str
    timeout: float
    trace: Trace
    stream: bool
    idempotency_key: str | None


class Control(msgspec.Struct, frozen=True):
    """A control message that the owner answers, also with :meth:`ServerProtocol.finish`.

    Attributes:
        key: as above.
        kind: ``describe``, ``subscribe``, ``unsubscribe``, ``publish``, or ``job.`` or ``admin.`` and what;
            :data:`BACKGROUND` for a request that is to run as a job.
        fields: the Struct of its fields; of ``admin.*`` a dict; of what submits a job a
            :class:`~grami_actors.job_requests.SubmitJob` or :class:`~grami_actors.job_requests.SubmitRequest`.
        timeout: seconds that the answer may take.
        idempotency_key: of ``publish``; that of a job is the job's own, and the others may be repeated anyway.
    """

    key: int
    kind: str
    fields: Any
    timeout: float
    idempotency_key: str | None = None


class CancelRequest(msgspec.Struct, frozen=True):
    """Cancel the accepted request with this key, and finish it with the error CANCELLED."""

    key: int


class Authenticated(msgspec.Struct, frozen=True):
    """The client is known now, or anew. ``lost``: topics that it may hear no more."""

    principal: Principal
    lost: tuple[str, ...] = ()


Action = Accepted | Control | CancelRequest | Authenticated


class Refusal(NamedTuple):
    """A frame that was answered with an error at once; ``limit`` is the setting that it ran into, if it did."""

    code: str
    limit: str


_UNTIMELY = frozenset(
    {
        ErrorCode.TOO_MANY_INFLIGHT,
        ErrorCode.DUPLICATE_ID,
        ErrorCode.SHUTTING_DOWN,
        ErrorCode.RATE_LIMITED,
        ErrorCode.RESOURCE_EXHAUSTED,
        ErrorCode.TOKEN_EXPIRED,
    }
)


class Setting(msgspec.Struct, frozen=True):
    """What all connections of a server have in common.

    Attributes:
        catalog: the message types.
        limits: what a connection may do.
        server: name and version, told in ``welcome``.
        policy: who may do what.
    """

    catalog: Catalog
    limits: Limits
    server: dict[str, str]
    policy: Policy


class ServerProtocol(Answers):
    """The server's side of one connection.

    Args:
        connection_id: told in ``welcome``.
        setting: what all connections have in common.
        now: seconds on any clock; all other ``now`` are on the same.
        encoding: of the frames.
        principal: who the client is, if the handshake said so.

    Attributes:
        principal: who the client is; ``None`` before it has authenticated, where it must.
        draining: refuse new requests with SHUTTING_DOWN.
        close_code: set when the client is to be cut off.
        close_reason: why, for the client.
        introduced: whether the client said ``hello``.
        subscriptions: the patterns of topics that it hears; kept by the owner.
        attachments: the ids of the jobs that it is attached to; kept by the owner.
        refusals: the frames that were refused since the owner last looked.
    """

    def __init__(
        self,
        connection_id: str,
        setting: Setting,
        now: float,
        encoding: Encoding = JSON,
        principal: Principal | None = None,
    ) -> None:
        super().__init__(encoding, now)
        self.principal = principal
        self.draining = False
        self.close_code: int | None = None
        self.close_reason = ""
        self.introduced = False
        self.subscriptions: set[str] = set()
        self.attachments: set[str] = set()
        self.refusals: list[Refusal] = []
        self._connection_id = connection_id
        self._setting = setting
        self._limits = setting.limits
        self._decoders = DECODERS[encoding]
        self._bad = 0
        self._wrong_kind_seen = False
        self._opened_at = now
        self._expires_at = math.inf
        if principal is not None:
            self._expires_at = now + setting.policy.lifetime(principal)
        elif not setting.policy.authority.required:
            self.principal = ANONYMOUS

    # --- from the client ---

    def receive(self, frame: Frame, now: float) -> Action | None:
        """Take one text or binary frame. What it asks of the owner is returned; answers wait in ``data_to_send``."""
        self._active_at = now
        if isinstance(frame, str) is not self._encoding.text:
            self._refuse_kind(now)
            return None
        try:
            header = self._header(frame)
            done = self._OWN.get(header.type, ServerProtocol._accept)(self, header, frame, now)
        except (ProtocolError, LimitReached, PermissionDenied) as error:
            self._refuse(self._recover_id(frame), error, now)
            # A busy client is not a bad one: what only came at the wrong time does not count.
            self._bad += error.error_code not in _UNTIMELY
            if self._bad >= BAD_MESSAGES_IN_A_ROW:
                self.close(CLOSE_ABUSE, f"{self._bad} bad messages in a row")
            return None
        self._bad = 0
        return done

    def _refuse_kind(self, now: float) -> None:
        """A frame of the other kind: an error the first time, the end of the connection the second time."""
        if self._wrong_kind_seen:
            self.close(CLOSE_UNSUPPORTED_DATA, f"this connection speaks {self._encoding.name}")
            return
        self._wrong_kind_seen = True
        kind = "text" if self._encoding.text else "binary"
        text = f"this connection speaks {self._encoding.name} in {kind} frames; the subprotocol decides"
        self._refuse(msgspec.UNSET, ProtocolError(text, code=ErrorCode.UNSUPPORTED_ENCODING), now)

    def _header(self, frame: Frame) -> Header:
        limit = "max_unauthenticated_bytes" if self.principal is None else "max_message_bytes"
        most = getattr(self._limits, limit)
        if 4 * len(frame) > most and (size := _size(frame)) > most:
            text = f"a message here has at most {most} bytes, not {size}"
            raise LimitReached(text, code=ErrorCode.MESSAGE_TOO_LARGE, limit=limit)
        try:
            header: Header = self._decoders.header(frame)
            deep = self._encoding.too_deep(frame, self._limits.max_nesting)
        except Exception as error:  # noqa: BLE001 - the decoders of MessagePack have many ways to fail
            raise faulty(error, self._encoding, code=ErrorCode.INVALID_MESSAGE) from None
        if deep:
            text = f"the message is nested too deeply: at most {self._limits.max_nesting} levels are allowed"
            raise LimitReached(text, code=ErrorCode.INVALID_JSON, limit="max_nesting")
        return header

    def _who(self, now: float) -> Principal:
        if self.principal is None:
            text = "authenticate first: send 'hello' or 'auth' with a token"
            raise ProtocolError(text, code=ErrorCode.UNAUTHENTICATED)
        if now >= self._expires_at:
            text = "the token of this connection has expired; send 'auth' with a new one"
            raise ProtocolError(text, code=ErrorCode.TOKEN_EXPIRED)
        return self.principal

    def _accept(self, header: Header, frame: Frame, now: float) -> Accepted | Control:
        principal = self._who(now)
        if header.stream and header.id is msgspec.UNSET:
            raise ProtocolError("'stream' needs an 'id', to tell the frames apart", param="$.id")
        if header.background and header.stream:
            raise ProtocolError("what runs in the 'background' has no stream: attach to its job", param="$.stream")
        if header.background and header.type in OWNED:
            raise ProtocolError(f"{header.type!r} cannot run in the background", param="$.background")
        if header.type in OWNED:
            return self._control(header, frame, principal, now)
        policy = self._setting.policy
        policy.check(principal, header.type, now)
        allowed = partial(policy.permissions.may_send_type, principal)
        message = self._setting.catalog.decode(header, frame, self._encoding, allowed)
        self._admit(header)
        if header.background:
            deadline = None if header.timeout_ms is None else min(header.timeout_ms, 2**53) / 1000
            order = Order(idempotency_key=header.idempotency_key, deadline=deadline)
            job = SubmitRequest(message=message, to=header.to, order=order)
            return Control(self._open(header, now).key, BACKGROUND, job, self._limits.request_timeout_ms / 1000)
        return Accepted(
            key=self._open(header, now).key,
            message=message,
            to=header.to,
            timeout=self._timeout(header),
            trace=trace_of(header.meta, self._decoders.text),
            stream=header.stream,
            idempotency_key=header.idempotency_key,
        )

    def _timeout(self, header: Header) -> float:
        return min(header.timeout_ms or self._limits.request_timeout_ms, self._limits.max_timeout_ms) / 1000

    def _check_id(self, header: Header) -> None:
        if header.id in self._by_id:
            text = f"the id {header.id!r} is still in flight on this connection"
            raise ProtocolError(text, code=ErrorCode.DUPLICATE_ID, param="$.id")

    def _admit(self, header: Header, *, late: bool = False) -> None:
        """Raises what speaks against one more; ``late``: it is no new work for a server that is about to stop."""
        self._check_id(header)
        unanswered = max(len(self._slots), len(self._plain))
        if unanswered >= self._limits.max_inflight:
            raise LimitReached(
                f"{unanswered} requests are in flight on this connection, its limit; wait for an answer",
                code=ErrorCode.TOO_MANY_INFLIGHT,
                limit="max_inflight",
                retry_after_ms=100,
            )
        if self.draining and not late:
            raise ProtocolError("the server is shutting down", code=ErrorCode.SHUTTING_DOWN)

    def _refuse(self, request_id: RequestId | msgspec.UnsetType, error: GramiError, now: float) -> None:
        """Answer a message that was not accepted; in plain mode in its turn."""
        self.refusals.append(Refusal(error.error_code, getattr(error, "limit", "")))
        self._answer_at_once(request_id, None, error, now)

    def _recover_id(self, frame: Frame) -> RequestId | msgspec.UnsetType:
        """The id of a message that is otherwise wrong, so that its error reaches whoever waits for it."""
        try:
            found: OnlyId = self._decoders.only_id(frame)
        except (ValueError, RecursionError):
            return msgspec.UNSET
        return found.id

    # --- control messages (docs/protocol.md, section 4) ---

    def _control(self, header: Header, frame: Frame, principal: Principal, now: float) -> Control:
        permissions = self._setting.policy.permissions
        if header.type in ADMIN_TYPES and not permissions.may_administer(principal):
            raise PermissionDenied(f"{principal.name} may not use admin.*: it takes the scope 'admin'")
        fields = decoded(self._decoders.controls.get(header.type, self._decoders.anything), frame, self._encoding)
        if header.type in JOB_CONTROLS:
            return self._job(header, fields, principal, now)
        if isinstance(fields, Subscribe):
            self._check_subscription(header, fields, principal)
        elif isinstance(fields, Publish):
            if not permissions.may_publish(principal, fields.topic):
                raise PermissionDenied(f"{principal.name} may not publish to {fields.topic!r}", param="$.topic")
            self._setting.policy.throttle(principal, header.type, now)
        elif isinstance(fields, Unsubscribe) and fields.topic not in self.subscriptions:
            text = f"this connection has no subscription to {fields.topic!r}"
            raise ProtocolError(text, code=ErrorCode.TOPIC_NOT_FOUND, param="$.topic")
        self._admit(header)
        slot, key = self._open(header, now), header.idempotency_key if isinstance(fields, Publish) else None
        return Control(slot.key, header.type, fields, self._timeout(header), key)

    def _check_subscription(self, header: Header, wanted: Subscribe, principal: Principal) -> None:
        if header.id is msgspec.UNSET:
            raise ProtocolError("'subscribe' needs an 'id': a plain client gets nothing but answers", param="$.id")
        if not self._setting.policy.permissions.may_subscribe(principal, wanted.topic):
            raise PermissionDenied(f"{principal.name} may not subscribe to {wanted.topic!r}", param="$.topic")
        if wanted.topic not in self.subscriptions:
            self._check_hearing("$.topic")

    def _check_hearing(self, param: str) -> None:
        hearing = len(self.subscriptions) + len(self.attachments)
        if hearing >= self._limits.max_subscriptions:
            raise LimitReached(
                f"this connection has {hearing} subscriptions and attached jobs, its limit",
                code=ErrorCode.RESOURCE_EXHAUSTED,
                limit="max_subscriptions",
                param=param,
            )

    def _job(self, header: Header, fields: Any, principal: Principal, now: float) -> Control:
        policy, timeout = self._setting.policy, self._timeout(header)
        if isinstance(fields, JobSubmit):
            sends = [("tool_call", f"tool:{fields.tool}", "$.tool")]
            sends += [("job_ended", fields.wake, "$.wake")] if fields.wake else []
            for kind, to, param in sends:
                if not policy.permissions.may_send(principal, kind, to):
                    raise PermissionDenied(f"{principal.name!r} may not send {kind!r} to {to!r}", param=param)
            fields = submission(fields, header.idempotency_key)
        elif isinstance(fields, JobAttach):
            if header.id is msgspec.UNSET:
                raise ProtocolError("'job.attach' needs an 'id': a plain client gets nothing but answers", param="$.id")
            if fields.job_id not in self.attachments:
                self._check_hearing("$.job_id")
        elif isinstance(fields, JobRead):
            timeout += fields.wait_ms / 1000
        elif isinstance(fields, JobList):
            fields = listing(fields)
        if header.type in NEW_JOBS:
            policy.throttle(principal, "job.submit", now)
        self._admit(header, late=header.type not in NEW_JOBS)
        return Control(self._open(header, now).key, header.type, fields, timeout)

    def _ping(self, header: Header, _frame: Frame, _now: float) -> None:
        self._out.append(self._encode(Pong(header.id)))

    def _hello(self, header: Header, frame: Frame, now: float) -> Authenticated | None:
        hello: Hello = decoded(self._decoders.hello, frame, self._encoding)
        if hello.protocol != PROTOCOL_VERSION:
            text = f"this server speaks protocol {PROTOCOL_VERSION}, not {hello.protocol}"
            raise ProtocolError(text, code=ErrorCode.UNSUPPORTED_VERSION, param="$.protocol")
        done = None if hello.token is None else self._authenticate(hello.token, now)
        principal = self._who(now) if done is None else done.principal
        self.introduced = True
        told = ("max_message_bytes", "max_nesting", "max_inflight", "max_subscriptions", "max_timeout_ms")
        welcome = Welcome(
            connection_id=self._connection_id,
            principal=principal.name,
            server=self._setting.server,
            limits={name: getattr(self._limits, name) for name in told},
            reconnect_jitter_ms=RECONNECT_JITTER_MS,
            id=header.id,
        )
        self._out.append(self._encode(welcome))
        return done

    def _auth(self, header: Header, frame: Frame, now: float) -> Authenticated:
        self._check_id(header)
        done = self._authenticate(decoded(self._decoders.auth, frame, self._encoding).token, now)
        left = self._expires_at - now
        data = {"principal": done.principal.name, "expires_in_ms": None if left == math.inf else round(left * 1000)}
        self._answer_at_once(header.id, data, None, now)
        return done

    def _authenticate(self, token: str, now: float) -> Authenticated:
        policy = self._setting.policy
        before = self.principal
        try:
            principal = policy.authority.authenticate(token)
        except ProtocolError as error:
            if before is None:
                self.close(close_code(error.error_code), str(error.error_code))
            raise
        if before is not None and before != ANONYMOUS and before.name != principal.name:
            raise PermissionDenied(f"this connection is {before.name}'s; {principal.name} opens one of its own")
        self.principal = principal
        self._expires_at = now + policy.lifetime(principal)
        lost = tuple(each for each in self.subscriptions if not policy.permissions.may_subscribe(principal, each))
        self.subscriptions.difference_update(lost)
        return Authenticated(principal, lost)

    def _cancel(self, header: Header, frame: Frame, now: float) -> CancelRequest | Control | None:
        wanted: Cancel = decoded(self._decoders.cancel, frame, self._encoding)
        if wanted.job_id is not None:
            if wanted.request_id is not None:
                text = "one 'cancel' ends a request or a job, not both"
                raise ProtocolError(text, code=ErrorCode.VALIDATION_FAILED, param="$.job_id")
            header.type = "job.cancel"
            return self._job(header, JobCancel(wanted.job_id), self._who(now), now)
        found = None if wanted.request_id is None else self._by_id.get(wanted.request_id)
        if header.id is not msgspec.UNSET:
            self._check_id(header)
            self._answer_at_once(header.id, {"cancelled": found is not None}, None, now)
        return None if found is None else CancelRequest(found.key)

    # --- from the server ---

    def push(self, frame: bytes) -> None:
        """Send an event that was encoded before, for all who hear it."""
        self._out.append(frame)

    def goaway(self, reason: str, close_in: float, jitter_ms: int) -> None:
        """Say that the connection will be closed in ``close_in`` seconds, to a client that knows the word."""
        self.draining = True
        if self.introduced:
            self._out.append(self._encode(Goaway(reason, Delay(0, jitter_ms), round(close_in * 1000))))

    def close(self, code: int, reason: str) -> None:
        """Have the connection closed, when what was said before is sent."""
        if self.close_code is None:
            self.close_code, self.close_reason = code, reason

    def overdue(self, now: float) -> bool:
        """Whether :meth:`tick` would do something; quick, for whoever looks after many connections."""
        return (
            (self.principal is None and now - self._opened_at >= self._limits.auth_timeout)
            or now - self._expires_at >= self._limits.token_grace
            or (0 < self._limits.idle_timeout <= now - self._active_at and self._idle)
        )

    def tick(self, now: float) -> None:
        """Close a connection that did not authenticate in time, whose token expired, or that is idle."""
        if self.principal is None and now - self._opened_at >= self._limits.auth_timeout:
            self.close(CLOSE_AUTH_TIMEOUT, "nobody authenticated in time")
        elif now - self._expires_at >= self._limits.token_grace:
            self.close(CLOSE_TOKEN_EXPIRED, "the token expired")
        elif 0 < self._limits.idle_timeout <= now - self._active_at and self._idle:
            self.close(CLOSE_IDLE, "nothing was sent for a long time")

    @property
    def _idle(self) -> bool:
        return not (self._slots or self.subscriptions or self.attachments)

    _OWN: ClassVar[dict[str, Callable[[ServerProtocol, Header, Frame, float], Action | None]]] = {
        "ping": _ping,
        "hello": _hello,
        "auth": _auth,
        "cancel": _cancel,
    }


def _size(frame: Frame) -> int:
    """Bytes on the wire. A lone surrogate is no text, and is told so by the decoder."""
    return len(frame if isinstance(frame, bytes) or frame.isascii() else frame.encode(errors="surrogatepass"))
