"""The gateway's connection below its frames, against a transport in memory and a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.connection import Connection
from websockets.asyncio.messages import Assembler
from websockets.asyncio.server import Server, ServerConnection
from websockets.exceptions import InvalidState
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN, Protocol
from websockets.server import ServerProtocol
from websockets.streams import StreamReader

from grami_actors.gateway.socket import HANDSHAKES, HANDSHAKES_OF_ONE, UNREAD_PONGS, Sockets, WebSocket
from tests.conftest import turns_until

HEAD = (
    b"GET /ws?token=secret HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
MASK = b"\x00\x00\x00\x00"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Wire(asyncio.Transport):
    """A transport without a network: it keeps what is written, and what was asked of it."""

    def __init__(self, peer: Any = ("192.0.2.7", 5000)) -> None:
        super().__init__({"peername": peer})
        self.written = b""
        self.aborted = False
        self.reading = True

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def get_write_buffer_size(self) -> int:
        return len(self.written)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.aborted

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def abort(self) -> None:
        self.aborted = True


class Line(NamedTuple):
    """One connection, its transport, and the clock of both."""

    socket: WebSocket
    wire: Wire
    clock: Clock
    sockets: Sockets

    def hear(self, *parts: bytes) -> None:
        for part in parts:
            self.socket.data_received(part)


def frame(data: bytes = b"", opcode: Opcode = Opcode.TEXT, *, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=True)


def made(sockets: Sockets, wire: Wire, **settings: Any) -> WebSocket:
    async def handler(connection: ServerConnection) -> None:
        await connection.handshake()

    server = Server(lambda: asyncio.sleep(0), handler)
    server.is_serving = lambda: True  # type: ignore[method-assign]
    socket = sockets.connection_factory(ServerProtocol(), server, **settings)
    assert isinstance(socket, WebSocket)
    socket.connection_made(wire)
    return socket


@asynccontextmanager
async def line(**settings: Any) -> AsyncIterator[Line]:
    clock, wire = Clock(), Wire()
    sockets = Sockets(10, clock)
    socket = made(sockets, wire, **settings)
    socket.data_received(HEAD)
    await turns_until(lambda: socket.state is OPEN)
    wire.written = b""
    yield Line(socket, wire, clock, sockets)
    socket.connection_lost(None)


# --- since when a message arrives ---

controls = st.sampled_from([frame(b"x", Opcode.PING), frame(b"", Opcode.PONG)])


@st.composite
def messages(draw: st.DrawFn) -> list[bytes]:
    """The frames of one message, with control frames between them."""
    pieces = draw(st.lists(st.binary(max_size=300), min_size=1, max_size=4))
    frames = []
    for number, piece in enumerate(pieces):
        opcode = Opcode.CONT if number else Opcode.BINARY
        frames.append(frame(piece, opcode, fin=number == len(pieces) - 1))
        if number < len(pieces) - 1:
            frames.extend(draw(st.lists(controls, max_size=2)))
    return frames


@given(
    st.lists(st.one_of(messages(), controls.map(lambda each: [each])), min_size=1, max_size=6),
    st.lists(st.integers(1, 40), min_size=1, max_size=30),
)
def test_a_message_is_arriving_exactly_from_its_first_byte_until_its_last(
    units: list[list[bytes]], sizes: list[int]
) -> None:
    async def check() -> None:
        async with line(max_queue=None) as (socket, _, clock, _sockets):
            stream = b"".join(b"".join(unit) for unit in units)
            ends = [0]
            for unit in units:
                ends.append(ends[-1] + sum(map(len, unit)))
            taken, turn = 0, 0
            came: list[float] = []
            while taken < len(stream):
                part = stream[taken : taken + sizes[turn % len(sizes)]]
                clock.now += 1
                socket.data_received(part)
                came.extend([clock.now] * len(part))
                taken, turn = taken + len(part), turn + 1
                begun = max(end for end in ends if end <= taken)
                assert socket.receiving_since == (None if begun == taken else came[begun])

    asyncio.run(check())


async def test_the_header_alone_begins_a_message() -> None:
    async with line() as (socket, _, clock, _sockets):
        text = frame(b"x" * 200)
        for number in range(len(text) - 1):
            socket.data_received(text[number : number + 1])
            assert socket.receiving_since == 100.0
            clock.now += 1
        socket.data_received(text[-1:])
        assert socket.receiving_since is None


async def test_a_message_that_waits_to_be_taken_is_not_arriving() -> None:
    async with line() as (socket, *_):
        socket.data_received(frame(b"whole") * 3)
        assert socket.receiving_since is None


async def test_the_time_in_which_the_server_does_not_read_is_left_out() -> None:
    async with line() as (socket, wire, clock, _sockets):
        begun = frame(b"first")[:3]
        socket.data_received(frame(b"x") * 17 + begun)
        assert not wire.reading
        clock.now += 60
        assert socket.receiving_since is None
        for _ in range(17):
            await socket.recv()
        assert wire.reading
        assert socket.receiving_since == 160.0
        clock.now += 5
        socket.data_received(frame(b"first")[3:])
        assert socket.receiving_since is None


async def test_pauses_that_a_burst_of_fragments_causes_win_no_time() -> None:
    async with line() as (socket, wire, clock, _sockets):
        receiving = asyncio.ensure_future(socket.recv())
        socket.data_received(frame(b"x", fin=False))
        for _ in range(10):
            clock.now += 1
            socket.data_received(frame(b"", Opcode.CONT, fin=False) * 20)
            await turns_until(lambda: wire.reading)
        assert socket.receiving_since == 100.0
        receiving.cancel()


# --- how large a message may be ---


@pytest.mark.parametrize(("size", "fits"), [(100, True), (101, False)])
async def test_the_largest_message_can_be_changed_for_the_next_frame(size: int, fits: bool) -> None:
    async with line() as (socket, wire, *_):
        socket.data_received(frame(b"x" * 2_000))
        assert len(await socket.recv(decode=False)) == 2_000
        socket.allow(100)
        socket.data_received(frame(b"x" * size))
        assert (wire.written == b"") == fits
        if not fits:
            assert wire.written[2:4] == (1009).to_bytes(2, "big")


async def test_the_limit_counts_all_fragments_of_a_message() -> None:
    async with line() as (socket, wire, *_):
        socket.allow(100)
        socket.data_received(frame(b"x" * 60, fin=False))
        assert wire.written == b""
        socket.data_received(frame(b"x" * 60, Opcode.CONT))
        assert wire.written[2:4] == (1009).to_bytes(2, "big")


# --- pongs that nobody reads ---


async def test_a_client_that_reads_no_pongs_is_cut_off() -> None:
    async with line() as (socket, wire, *_):
        ping = frame(b"x" * 125, Opcode.PING)
        wire.written = b"a large answer" * 100_000
        before = len(wire.written)
        socket.pause_writing()
        while not wire.aborted:
            socket.data_received(ping)
            assert len(wire.written) - before <= UNREAD_PONGS + 2 * 127
        assert len(wire.written) - before > UNREAD_PONGS


async def test_a_client_that_reads_its_pongs_may_ping_as_it_likes() -> None:
    async with line() as (socket, wire, *_):
        for _ in range(2_000):
            socket.data_received(frame(b"x" * 125, Opcode.PING))
            wire.written = b""
        assert not wire.aborted


# --- clients that do not hang up ---


async def test_a_client_that_does_not_hang_up_after_the_close_frame_is_cut_off() -> None:
    for last in (frame((1000).to_bytes(2, "big"), Opcode.CLOSE), frame(b"x", Opcode.CONT)):
        async with line(close_timeout=0.0) as (socket, wire, *_):
            socket.data_received(last)
            assert wire.written[0] == 0x88
            await turns_until(lambda: wire.aborted)


async def test_nothing_stays_behind_of_a_client_that_hangs_up() -> None:
    async with line(close_timeout=3_600) as (socket, *_):
        socket.data_received(frame((1000).to_bytes(2, "big"), Opcode.CLOSE))
    assert socket._hang_up is not None
    assert socket._hang_up.cancelled()


async def test_what_is_added_to_the_library_s_connection_makes_its_dict_no_larger() -> None:
    async with line() as (socket, *_):
        assert not {"address", *WebSocket.__slots__} & vars(socket).keys()


# --- how many there are ---


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["127.0.0.1", "::1", "192.0.2.1", "2001:db8::1", ""]))))
def test_what_is_counted_is_exactly_what_is_open(steps: list[tuple[bool, str]]) -> None:
    sockets = Sockets(5 - HANDSHAKES, lambda: 0.0)
    there: list[str] = []
    for enters, address in steps:
        if enters:
            assert sockets.enter(address) == (len(there) < 5)
            there = [*there, address][:5]
        elif address in there:
            sockets.leave(address)
            there.remove(address)
        assert sockets.open == len(there)
        for each in ("192.0.2.1", "2001:db8::1"):
            assert sockets.from_address(each) == there.count(each)
        assert sockets.from_address("127.0.0.1") == sockets.from_address("::1") == sockets.from_address("") == 0
    assert len(sockets._addresses) <= len(set(there)), "an address that is gone takes no memory"


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        (("192.0.2.1", 80), "192.0.2.1"),
        (("::ffff:192.0.2.1", 80, 0, 0), "192.0.2.1"),
        (("2001:db8::1", 80, 0, 0), "2001:db8::1"),
        (("fe80::1%eth0", 80, 0, 2), "fe80::1%eth0"),
        ("", ""),
        (None, ""),
    ],
)
async def test_an_address_stands_without_its_port(peer: Any, address: str) -> None:
    sockets = Sockets(10, Clock())
    socket = made(sockets, Wire(peer))
    assert socket.address == address
    assert sockets.from_address(address) == bool(address)
    socket.connection_lost(None)
    assert sockets.open == sockets.from_address(address) == 0


async def test_a_socket_too_many_is_cut_off_at_once_and_makes_no_task() -> None:
    sockets = Sockets(1 - HANDSHAKES, Clock())
    first = made(sockets, Wire())
    tasks = len(asyncio.all_tasks())
    wire = Wire()
    second = made(sockets, wire)
    assert wire.aborted
    assert len(asyncio.all_tasks()) == tasks
    second.connection_lost(None)
    assert sockets.open == 1
    first.connection_lost(None)
    assert sockets.open == 0


async def test_what_was_said_in_the_handshake_is_forgotten() -> None:
    async with line() as (socket, *_):
        assert socket.request is not None
        assert socket.response is not None
        assert (socket.request.path, dict(socket.request.headers), dict(socket.response.headers)) == ("", {}, {})


# --- what is used of the library's inside ---


async def test_the_private_parts_of_the_library_that_are_used_are_there() -> None:
    protocol = ServerProtocol(max_size=5)
    assert (protocol.max_message_size, protocol.current_size) == (5, None)
    assert type(protocol.reader) is StreamReader
    assert type(protocol.reader.buffer) is bytearray
    assert protocol.eof_sent is False
    assert protocol.reader.eof is False
    assert "at_eof" in Protocol.parse.__code__.co_names, "asked before each frame"
    assert "current_size" in Protocol.recv_frame.__code__.co_names, "set while a fragmented message is incomplete"
    assembler = Assembler()
    assert {"pause", "resume"} <= vars(assembler).keys()
    assert {"send_data", "drain"} <= vars(Connection).keys()
    assert {"pause_writing", "paused", "close_timeout"} <= {*vars(Connection), *Connection.__init__.__code__.co_names}


def test_the_reader_that_is_replaced_says_only_whether_there_is_more() -> None:
    reader = StreamReader()
    asking = reader.at_eof()
    assert next(asking) is None
    reader.feed_data(b"x")
    with pytest.raises(StopIteration) as said:
        next(asking)
    assert said.value.value is False
    reader.discard()
    reader.feed_eof()
    with pytest.raises(StopIteration) as said:
        next(reader.at_eof())
    assert said.value.value is True


# --- writing ---


@pytest.mark.parametrize("text", [True, False])
async def test_a_frame_is_written_at_once_and_says_when_to_wait(text: bool) -> None:
    async with line() as (socket, wire, *_):
        assert socket.write(b"x", text=text) is False
        assert wire.written == Frame(Opcode.TEXT if text else Opcode.BINARY, b"x").serialize(mask=False)
        socket.pause_writing()
        assert socket.write(b"y", text=text) is True


async def test_nothing_is_written_to_a_connection_that_closes() -> None:
    async with line() as (socket, wire, *_):
        socket.protocol.send_close()
        with pytest.raises(InvalidState):
            socket.write(b"x", text=True)
    async with line() as (socket, wire, *_):
        wire.abort()
        with pytest.raises(InvalidState):
            socket.write(b"x", text=True)
        assert wire.written == b""


def test_one_address_never_takes_all_sockets_before_any_handshake() -> None:
    sockets = Sockets(10, Clock(), most_of_one=2)
    let_in = [sockets.enter("192.0.2.2") for _ in range(100)]
    assert sum(let_in) == 2 + HANDSHAKES_OF_ONE
    assert sockets.enter("192.0.2.3")
    assert all(sockets.enter("127.0.0.1") for _ in range(100))
    sockets.leave("192.0.2.2")
    assert sockets.enter("192.0.2.2")
