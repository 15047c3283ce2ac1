"""What a connection needs of the world around it: its socket, its gateway, and who is at the other end. Floor 12."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine
from typing import Any, Protocol

from grami_actors.encoding import JSON, Encoding
from grami_actors.gateway.attachments import Watch
from grami_actors.gateway.feed import Feed
from grami_actors.gateway.replays import Replays, Work
from grami_actors.gateway.request import Request
from grami_actors.principals import Principal
from grami_actors.protocol import Control, Setting
from grami_actors.ref import Ref


class Transport(Protocol):
    """What carries a WebSocket."""

    def abort(self) -> None:
        """Cut it without a word."""


class Socket(Protocol):
    """What a connection needs of a WebSocket; the in-memory one of :mod:`.memory` has it too."""

    @property
    def transport(self) -> Transport:
        """What carries it."""

    def write(self, frame: bytes, *, text: bool) -> bool:
        """Send one frame; whether to wait with :meth:`drain` before the next. Raises an Exception when it is closed."""

    async def drain(self) -> None:
        """Wait until the client has read enough of what was sent."""

    def allow(self, size: int) -> None:
        """Take messages of so many bytes from now on."""

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close with a code."""


class Line(Socket, Protocol):
    """What the gateway needs of a WebSocket beside that.

    Attributes:
        guest: who it is, as the handshake said.
        address: the client's, without the port; empty if it has none.
    """

    guest: Guest
    address: str

    @property
    def receiving_since(self) -> float | None:
        """When the first byte of a message came whose last one did not."""

    @property
    def last_code(self) -> int | None:
        """What the server closed it with, whether or not the client confirmed it; else what it ended with."""

    @property
    def close_reason(self) -> str | None:
        """What was said when it was closed."""

    def __aiter__(self) -> AsyncIterator[str | bytes]:
        """The client's messages, until the connection is closed. Raises ConnectionClosed if not normally."""


class House(Protocol):
    """What all connections of a gateway share."""

    setting: Setting
    router: Ref[Any]
    feed: Feed
    replays: Replays
    watch: Watch
    stream_grace: float

    def admit(self) -> None:
        """Count one more request in flight. Raises LimitReached (RESOURCE_EXHAUSTED) at the server's limit."""

    def leave(self, request: Request) -> None:
        """Count one request less."""

    def orphan(self, request: Request) -> None:
        """Keep an eye on a request whose client is gone."""

    def authenticated(self, connection: Any, principal: Principal) -> None:
        """Count a client that is known now. Raises LimitReached: it has too many connections."""

    def control(self, connection: Any, control: Control, request: Request | Work) -> Coroutine[Any, Any, Any] | None:
        """Answer a control message: here and now through the request, or by the coroutine's result."""

    def fault(self, error: BaseException) -> str:
        """Report a fault of ours; what is said of it: a reference that ties the answer to a log line."""


class Guest:
    """Who is at the other end, as the handshake said.

    Args:
        peer: its address, for people.
        principal: who it is, if it said so.
        encoding: of its frames.
        refused: a close code and a reason, if it is to be sent away: a browser sees no HTTP status.
    """

    __slots__ = ("encoding", "peer", "principal", "refused")

    def __init__(
        self,
        peer: str = "",
        principal: Principal | None = None,
        encoding: Encoding = JSON,
        refused: tuple[int, str] | None = None,
    ) -> None:
        self.peer = peer
        self.principal = principal
        self.encoding = encoding
        self.refused = refused
