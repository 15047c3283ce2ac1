"""Two servers that say every message again: ``python -m tests.autobahn.echo ours|bare`` prints the port of one.

Ours is the gateway's own listener, with its options and its class of connection; only what it does with a message is
replaced, and the largest one raised. The bare one is the library's, as it comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from grami_actors.config import Config
from grami_actors.credentials import Authority
from grami_actors.gateway.door import PATH
from grami_actors.gateway.server import Gateway
from grami_actors.gateway.socket import WebSocket
from grami_actors.permissions import Permissions
from grami_actors.policy import Policy
from grami_actors.swarm import Swarm
from grami_actors.system import ActorSystem

LARGEST = 32 * 1_048_576
"""Bytes of the largest message: the suite sends 16 MiB."""


class EchoGateway(Gateway):
    """The gateway, with an echo in place of an actor for each client."""

    async def _serve(self, connection: ServerConnection) -> None:
        assert isinstance(connection, WebSocket)
        connection.allow(LARGEST)
        await echo(connection)


async def echo(connection: ServerConnection) -> None:
    with contextlib.suppress(ConnectionClosed):
        async for message in connection:
            await connection.send(message)


@asynccontextmanager
async def ours() -> AsyncIterator[int]:
    async with ActorSystem() as system:
        policy = Policy(Authority(), Permissions())
        config = Config(max_message_bytes=LARGEST)
        gateway = EchoGateway(system, Swarm([]).catalog(), config, policy, {}, "0")
        yield await gateway.open()
        await gateway.close()


@asynccontextmanager
async def bare() -> AsyncIterator[int]:
    async with serve(echo, "127.0.0.1", 0, compression=None, max_size=LARGEST) as server:
        yield server.sockets[0].getsockname()[1]


async def main(which: str) -> None:
    async with {"ours": ours, "bare": bare}[which]() as port:
        sys.stdout.write(f"ws://127.0.0.1:{port}{PATH}\n")
        sys.stdout.flush()
        ended = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
        await ended.wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
