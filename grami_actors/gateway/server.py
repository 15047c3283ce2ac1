"""The gateway: one port for WebSocket connections and a few HTTP documents. Floor 12.

Bind one socket and read its port: port 0 with a name that has two addresses would open two ports.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Mapping

from websockets.asyncio.server import Server, serve
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory

from grami_actors.catalog import Catalog
from grami_actors.config import Config
from grami_actors.errors import ConfigError
from grami_actors.gateway.door import PATH, Document, Door, chosen
from grami_actors.gateway.reception import Reception
from grami_actors.gateway.socket import Sockets
from grami_actors.gateway.tls import Certificates, warning_about_loop
from grami_actors.policy import Policy
from grami_actors.system import ActorSystem
from grami_actors.telemetry import Doubted, Listening, LoopLagged, Reloaded

PULSE = 0.25
"""Seconds between two looks at the clock, and how late the loop comes to it."""

HANDSHAKE = 5.0
"""Seconds that the handshake of WebSocket may take; the library gives that of TLS as many."""

HANDSHAKES_END = 1.0
"""Seconds that handshakes under way get when all else has ended."""

_LIBRARY_LOG = logging.getLogger("grami_actors.websockets")
# The library logs a traceback for each client that goes away rudely; our own events say it in one line.
_LIBRARY_LOG.propagate = False
_LIBRARY_LOG.setLevel(logging.CRITICAL + 1)


class Gateway(Reception):
    """Accepts clients for one system.

    Args:
        system: where the agents are.
        catalog: the message types.
        config: addresses and limits.
        policy: who may do what.
        documents: what is served over HTTP beside the WebSocket, by path.
        version: told in ``welcome``.

    Raises:
        ConfigError: the TLS certificate cannot be used.
    """

    def __init__(
        self,
        system: ActorSystem,
        catalog: Catalog,
        config: Config,
        policy: Policy,
        documents: Mapping[str, Document],
        version: str,
    ) -> None:
        super().__init__(system, catalog, config, policy, version)
        self.certificates = None if config.tls_cert is None else Certificates(config.tls_cert, config.tls_key)
        self._sockets = Sockets(config.max_connections, system.now, config.max_connections_per_address)
        self._door = Door(config, policy.authority, self._sockets, system.bus, documents, self.fault)
        self._server: Server | None = None
        self._pulse: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """Whether it takes new connections and requests."""
        return self._server is not None and not self.closing

    # --- life ---

    async def open(self) -> int:
        """Bind and listen; returns the port. Raises OSError when the address cannot be bound."""
        config = self._config
        listener = _bind(config.host, config.port, reuse_port=config.reuse_port)
        self._server = await serve(
            self._serve,  # type: ignore[arg-type]  # the factory below makes lines of them
            sock=listener,
            ssl=None if self.certificates is None else self.certificates.context,
            create_connection=self._sockets.connection_factory,
            process_request=self._door.process_request,
            # A list of subprotocols would refuse a client that offers none.
            select_subprotocol=lambda _, offered: chosen(offered),
            compression=None,
            extensions=[_DEFLATE] if config.compression else None,
            max_size=self.first_message_bytes,
            open_timeout=HANDSHAKE,
            ping_interval=config.keepalive,
            ping_timeout=config.keepalive,
            close_timeout=2,
            server_header=None,
            logger=_LIBRARY_LOG,
        )
        self._pulse = asyncio.create_task(self._beat())
        port: int = listener.getsockname()[1]
        self.system.bus.publish(Listening(self.url(port)))
        if self.certificates is not None:
            for doubt in (self.certificates.warning, warning_about_loop(asyncio.get_running_loop())):
                if doubt is not None:
                    self.system.bus.publish(Doubted(doubt))
        return port

    def url(self, port: int) -> str:
        """Where clients of this machine connect."""
        host = self._config.host
        if host in {"0.0.0.0", ""}:  # noqa: S104 - compared, not bound
            host = "127.0.0.1"
        elif host == "::":
            host = "::1"
        scheme = "ws" if self.certificates is None else "wss"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}{PATH}"

    async def close(self) -> None:
        """Take no more, let the requests in flight end within the drain timeout, and close with 1012."""
        if self._server is None:
            self.admin.close()
        else:
            await super().close()

    def _say_goodbye(self) -> None:
        self._door.closing = True
        super()._say_goodbye()

    async def _stop_listening(self) -> None:
        assert self._server is not None
        loop = asyncio.get_running_loop()
        # asyncio forgets a socket that it accepts while its listener is closed: no more is taken, then what was taken
        # gets to its connection, then the listener is closed.
        for listener in self._server.sockets:
            with contextlib.suppress(NotImplementedError):
                loop.remove_reader(listener.fileno())
        for _ in range(3):
            await asyncio.sleep(0)
        self._server.close(close_connections=False)
        hang_up = loop.call_later(HANDSHAKES_END, self._sockets.end_handshakes)
        await self._server.wait_closed()
        hang_up.cancel()
        if self._pulse is not None:
            self._pulse.cancel()
            await asyncio.wait((self._pulse,))

    # --- the pulse ---

    async def _beat(self) -> None:
        """Look at the clock: how late the loop is, and who of the connections is overdue."""
        loop = asyncio.get_running_loop()
        bus = self.system.bus
        sweep = self._most_pause
        pause = min(PULSE, sweep)
        swept_at = loop.time()
        while True:
            due = loop.time() + pause
            await asyncio.sleep(pause)
            now = loop.time()
            if LoopLagged in bus:
                bus.publish(LoopLagged(now - due))
            if now - swept_at >= sweep:
                swept_at = now
                self._sweep()
                if self.certificates is not None and self.certificates.changed():
                    self.reload()

    def reload(self) -> None:
        """Read the certificates again, for connections to come. What cannot be used is published, not raised."""
        if self.certificates is None:
            return
        try:
            self.certificates.reload()
        except ConfigError as error:
            self.system.bus.publish(Doubted(f"certificates not reloaded: {error.message}"))
        else:
            self.system.bus.publish(Reloaded("certificates"))


_DEFLATE = ServerPerMessageDeflateFactory(
    server_max_window_bits=11, client_max_window_bits=11, compress_settings={"memLevel": 4}
)


def _bind(host: str, port: int, *, reuse_port: bool) -> socket.socket:
    family, kind, number, _, address = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, number)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
        listener.listen(1024)
    except BaseException:
        listener.close()
        raise
    return listener
