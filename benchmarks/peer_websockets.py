"""The limit for the gateway: a bare ``websockets`` server that decodes and encodes what ours does, and no more."""

from __future__ import annotations

import gateway
import msgspec
from measure import Run, Sample
from websockets.asyncio.server import ServerConnection, serve


class Echo(msgspec.Struct, tag_field="type", tag="echo"):
    """A request."""

    id: int
    text: str


class Response(msgspec.Struct, tag_field="type", tag="response"):
    """The answer, with the fields that a Growth Manager's has."""

    id: int
    data: str
    seq: int = 1
    status: str = "success"
    duration_ms: int = 0


_DECODER = msgspec.json.Decoder(Echo)
_ENCODER = msgspec.json.Encoder()


async def _echo(socket: ServerConnection) -> None:
    async for frame in socket:
        request = _DECODER.decode(frame)
        await socket.send(_ENCODER.encode(Response(request.id, request.text)), text=True)


async def _round_trips(connections: int, n: int) -> Sample:
    async with serve(_echo, "127.0.0.1", 0, compression=None) as server:
        return await gateway.round_trips(f"ws://127.0.0.1:{_port(server)}", connections, n)


async def idle(n: int) -> Sample:
    async with serve(_echo, "127.0.0.1", 0, compression=None) as server:
        return await gateway.idle(f"ws://127.0.0.1:{_port(server)}", n)


def _port(server: object) -> int:
    return int(next(iter(server.sockets)).getsockname()[1])  # type: ignore[attr-defined]


RUNS: dict[str, Run] = {
    "gateway-1": lambda n: _round_trips(1, n),
    "gateway-64": lambda n: _round_trips(64, n),
    "gateway-1000": lambda n: _round_trips(1_000, n),
    "idle": idle,
}
