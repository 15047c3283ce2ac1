"""What a connection needs of the world around it: its socket, its gateway, and who is at the other end. Floor 12."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol

from grami_actors.encoding import JSON, Encoding
from grami_actors.gateway.feed import Feed
from grami_actors.gateway.replays import Replays, Work
from grami_actors.gateway.request import Request
from grami_actors.principals import Principal
from grami_actors.protocol import Control, Setting
from grami_actors.ref import Ref


class Socket(Protocol):
    """What a connection needs of a WebSocket; the in-memory transport of a simulation has it too."""

    transport: asyncio.Transport

    def write(self, frame: bytes, *, text: bool) -> bool:
        """Send one frame; whether to wait with :meth:`drain` before the next. Raises an Exception when it is closed."""

    async def drain(self) -> None:
        """Wait until the client has read enough of what was sent."""

    def allow(self, size: int) -> None:
        """Take messages of so many bytes from now on."""

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close with a code."""


class House(Protocol):
    """What all connections of a gateway share."""

    setting: Setting
    router: Ref[Any]
    feed: Feed
    replays: Replays
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

    def error_ref(self) -> str:
        """A fresh reference that ties an answer to a log line."""


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
