"""Peers that break the protocol, or use it to hurt: each ends with its code, and nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from websockets.frames import Frame, Opcode

from grami_actors import Agent, GrowthManager, Message, Swarm, handles
from grami_actors.gateway.socket import HANDSHAKES
from grami_actors.telemetry import ConnectionClosed, ConnectionOpened
from tests.conftest import Recorder, heard, raw, serving, tell, turns_until
from tests.swarms import small_swarm

LINE = b"GET /ws HTTP/1.1\r\n"
FIELDS = (
    b"Host: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)
HEAD = LINE + FIELDS + b"\r\n"
GONE = 1006
"""What a connection ends with that ends without a close frame (RFC 6455 section 7.1.5)."""


class Peer(NamedTuple):
    """A raw TCP connection that may send anything."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def frame(self) -> tuple[int, bytes]:
        """The opcode and the payload of the next frame; a close frame without code, where the connection ends."""
        try:
            first, length = await self.reader.readexactly(2)
            if length == 126:
                (length,) = struct.unpack("!H", await self.reader.readexactly(2))
            elif length == 127:
                (length,) = struct.unpack("!Q", await self.reader.readexactly(8))
            return first & 0x0F, await self.reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            return Opcode.CLOSE, GONE.to_bytes(2, "big")

    async def closed(self) -> int:
        """The code that the server closes with."""
        while True:
            opcode, data = await self.frame()
            if opcode == Opcode.CLOSE:
                return int.from_bytes(data[:2], "big")

    async def rest(self) -> bytes:
        """Everything until the end."""
        with contextlib.suppress(ConnectionError):
            return await self.reader.read()
        return b""

    def reset(self) -> None:
        """RST in place of a goodbye."""
        there = self.writer.get_extra_info("socket")
        there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@asynccontextmanager
async def peer(manager: GrowthManager, head: bytes = HEAD, *, small: bool = False) -> AsyncIterator[Peer]:
    """A peer, through its handshake if it begins one; ``small`` gives it no room for what it does not read."""
    there = socket.socket()
    if small:
        there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    there.setblocking(False)
    await asyncio.get_running_loop().sock_connect(there, ("127.0.0.1", manager.port))
    reader, writer = await asyncio.open_connection(sock=there, limit=4_096 if small else 2**16)
    one = Peer(reader, writer)
    try:
        one.send(head)
        if head.startswith(HEAD):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        yield one
    finally:
        writer.transport.abort()


def frame(data: bytes = b"", opcode: Opcode = Opcode.TEXT, *, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=True)


def echo(text: str = "x", **more: Any) -> bytes:
    return frame(json.dumps({"type": "echo", "text": text, **more}).encode())


@asynccontextmanager
async def innocent(manager: GrowthManager) -> AsyncIterator[None]:
    """Another client, which gets all its answers while the block runs, and at its end."""
    async with raw(manager) as other:
        asked = 0

        async def ask() -> None:
            nonlocal asked
            while True:
                asked += 1
                await tell(other, type="echo", text=str(asked))
                assert (await heard(other))["data"]["text"] == str(asked)

        async with asyncio.timeout(30):
            asking = asyncio.ensure_future(ask())
            yield
            before = asked
            await turns_until(lambda: asking.done() or asked > before + 1)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking


# --- frames that the protocol forbids ---

FORBIDDEN = {
    "unmasked": (b"\x81\x02hi", 1002),
    "a header of one tebibyte": (b"\x82\xff" + struct.pack("!Q", 2**40) + b"mask", 1009),
    "a header of the largest size": (b"\x82\xff" + struct.pack("!Q", 2**64 - 1) + b"mask", 1009),
    "a continuation of nothing": (frame(b"x", Opcode.CONT), 1002),
    "a message in a message": (frame(b"a", fin=False) + frame(b"b"), 1002),
    "a fragmented ping": (b"\x09\x80mask", 1002),
    "a large ping": (b"\x89\xfe\x00\x7emask" + b"x" * 126, 1002),
    "an opcode that is not defined": (b"\x83\x80mask", 1002),
    "a bit that is not negotiated": (b"\xc1\x80mask", 1002),
    "a hundred thousand empty fragments": (frame(fin=False) + frame(b"", Opcode.CONT, fin=False) * 100_000, 1009),
    "fragments that are too large together": (
        frame(b"x" * 700_000, fin=False) + frame(b"x" * 700_000, Opcode.CONT),
        1009,
    ),
    "text that is not UTF-8": (frame(b'{"type": "echo", "text": "\xc0\xaf"}'), 1007),
    "a fragmented text that is not UTF-8": (frame(b'{"text": "\xf0\x9f', fin=False) + frame(b'"}', Opcode.CONT), 1007),
    "a close frame of one byte": (frame(b"x", Opcode.CLOSE), 1002),
    "a close code that is not for the wire": (frame(struct.pack("!H", 1005), Opcode.CLOSE), 1002),
    "a close reason that is not UTF-8": (frame(struct.pack("!H", 1000) + b"\xff", Opcode.CLOSE), 1007),
    "a thousand close frames": (frame(struct.pack("!H", 1000), Opcode.CLOSE) * 1_000, 1000),
}


@pytest.mark.parametrize("kind", FORBIDDEN)
async def test_what_the_protocol_forbids_is_closed_with_its_code(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    data, code = FORBIDDEN[kind]
    async with serving(small_swarm()) as manager, innocent(manager), peer(manager) as bad:
        bad.send(data)
        assert await bad.closed() == code
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", [kind for kind, (data, _) in FORBIDDEN.items() if len(data) < 100_000])
async def test_what_is_forbidden_is_so_right_behind_the_handshake_too(
    kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    data, _ = FORBIDDEN[kind]
    async with serving(small_swarm()) as manager, innocent(manager), peer(manager, b"") as bad:
        bad.send(HEAD + data)
        await bad.rest()
        bad.writer.close()
        await turns_until(lambda: manager._gateway is not None and manager._gateway._sockets.open == 1)
    assert capfd.readouterr() == ("", "")


# --- HTTP that is no handshake ---

HTTP = {
    "POST with a body": (b"POST /ws HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello", (405, 0)),
    "POST with a large body": (
        b"POST /ws HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n\r\n" + b"x" * 9_000_000,
        (405, 0),
    ),
    "a body in chunks": (
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        (200, 0),
    ),
    "CONNECT": (b"CONNECT evil.example:443 HTTP/1.1\r\nHost: localhost\r\n\r\n", (405,)),
    "HTTP/1.0": (b"GET /ws HTTP/1.0\r\n" + FIELDS + b"\r\n", (505, 400, 426)),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (505, 0)),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500 + b"\n", (0,)),
    "a line without end": (b"GET /" + b"x" * 1_000_000, (414,)),
    "a header without end": (LINE + b"X: " + b"x" * 1_000_000, (431,)),
    "a header of ten kilobytes": (LINE + FIELDS + b"X: " + b"x" * 10_000 + b"\r\n\r\n", (431,)),
    "ten thousand headers": (LINE + b"X: y\r\n" * 10_000 + b"\r\n", (431,)),
    "a folded header": (LINE + b"X: y\r\n z\r\n" + FIELDS + b"\r\n", (0,)),
    "a NUL in a header": (LINE + b"X: \x00\r\n" + FIELDS + b"\r\n", (0,)),
    "no Host": (LINE + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n", (403,)),
    "two Hosts": (LINE + b"Host: evil.example\r\n" + FIELDS + b"\r\n", (403,)),
    "a wrong key": (HEAD.replace(b"dGhlIHNhbXBsZSBub25jZQ==", b"short"), (400,)),
    "an old version": (HEAD.replace(b"Version: 13", b"Version: 8"), (400, 426)),
    "two requests in one go": (b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2, (200, 0)),
}
"""What is sent, and the statuses that may answer it; 0 where the connection ends without any."""


@pytest.mark.parametrize("kind", HTTP)
async def test_http_that_is_no_handshake_gets_a_status_or_the_door(
    kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    data, statuses = HTTP[kind]
    async with serving(small_swarm()) as manager, innocent(manager), peer(manager, b"") as bad:
        bad.send(data)
        answer = await bad.rest()
        assert answer.startswith(b"HTTP/1.1 ") == bool(answer)
        assert int(answer[9:12] or 0) in statuses
        assert answer.count(b"HTTP/1.1 ") <= 1
    assert capfd.readouterr() == ("", "")


async def test_a_request_right_behind_the_handshake_is_answered() -> None:
    async with serving(small_swarm()) as manager, peer(manager, HEAD + echo("early") + echo("bird")) as hasty:
        for text in ("early", "bird"):
            assert json.loads((await hasty.frame())[1])["data"]["text"] == text


async def test_a_handshake_and_a_request_that_come_byte_by_byte_are_answered() -> None:
    async with serving(small_swarm()) as manager, peer(manager, b"") as slow:
        slow.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in HEAD + echo("slow"):
            slow.send(bytes([byte]))
            await asyncio.sleep(0)
        assert b" 101 " in await slow.reader.readuntil(b"\r\n\r\n")
        assert json.loads((await slow.frame())[1])["data"]["text"] == "slow"


# --- peers that take their time ---


@pytest.mark.slow
async def test_a_handshake_that_does_not_end_is_ended_and_holds_up_nobody() -> None:
    async with serving(small_swarm()) as manager, contextlib.AsyncExitStack() as stack:
        for begun in (b"", b"G", LINE, LINE + b"Host: localhost\r\nX-Slow: "):
            slow = await stack.enter_async_context(peer(manager, begun))
            stack.callback(asyncio.ensure_future(slow.rest()).cancel)
        assert manager._gateway is not None
        sockets = manager._gateway._sockets
        await turns_until(lambda: sockets.open == 4)
        async with innocent(manager):
            await asyncio.to_thread(lambda: None)
        while sockets.open:  # noqa: ASYNC110 - five seconds, and no event tells of it
            await asyncio.sleep(0.05)


async def test_sockets_beyond_the_limit_and_its_margin_are_cut_off_without_a_word() -> None:
    async with serving(small_swarm(), max_connections=3) as manager, contextlib.AsyncExitStack() as stack:
        for _ in range(HANDSHAKES + 3):
            await stack.enter_async_context(peer(manager, b"G"))
        assert manager._gateway is not None
        sockets = manager._gateway._sockets
        await turns_until(lambda: sockets.open == HANDSHAKES + 3)
        for _ in range(20):
            async with peer(manager, b"") as late:
                assert await late.rest() == b""
        await stack.aclose()
        await turns_until(lambda: sockets.open == 0)
        async with innocent(manager):
            pass


@pytest.mark.parametrize(
    "begun",
    [b"\x81", b"\x81\x80", frame(b"x" * 100)[:50], frame(b"x", fin=False)],
    ids=["one byte", "a header", "half a frame", "a fragment"],
)
async def test_a_message_that_drips_in_is_ended_after_its_time(begun: bytes) -> None:
    async with serving(small_swarm(), message_timeout=0.3) as manager, innocent(manager), peer(manager) as slow:
        closed = Recorder(manager.system, ConnectionClosed)
        slow.send(begun)
        async with asyncio.timeout(1.5):
            await closed.first(ConnectionClosed)


@pytest.mark.slow
async def test_a_reader_that_takes_nothing_is_ended_after_its_time_however_little_waits() -> None:
    # Less waits than the outbox may hold, but more than the system's own buffers do.
    async with (
        serving(Swarm([Talker]), outbox_seconds=0.3, outbox_bytes=100_000_000) as manager,
        peer(manager, small=True) as slow,
    ):
        closed = Recorder(manager.system, ConnectionClosed)
        slow.send(frame(b'{"type": "talk", "size": 500000}') * 20)
        async with asyncio.timeout(2.5):
            assert (await closed.first(ConnectionClosed)).code == 4508


class Talk(Message):
    size: int


class Talker(Agent):
    """Gives long answers."""

    @handles(Talk)
    def talk(self, message: Talk) -> str:
        return "x" * message.size


def resident() -> int:
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the memory is read from /proc")
@pytest.mark.slow
async def test_a_slow_reader_of_large_answers_takes_bounded_memory_and_no_time_of_others() -> None:
    class Echo(Message):
        text: str

    class Echoer(Agent):
        @handles(Echo)
        def echo(self, message: Echo) -> dict[str, str]:
            return {"text": message.text}

    async with serving(Swarm([Talker, Echoer]), outbox_bytes=1_000_000, max_inflight=10_000) as manager:
        before = resident()
        closed = Recorder(manager.system, ConnectionClosed)
        async with innocent(manager), peer(manager, small=True) as slow:
            largest = before
            for _ in range(400):  # 200 MB of answers
                slow.send(frame(b'{"type": "talk", "size": 500000}'))
                await asyncio.sleep(0)
                largest = max(largest, resident())
            assert (await closed.first(ConnectionClosed)).code in {4508, GONE}
            assert max(largest, resident()) - before < 64_000_000


@pytest.mark.parametrize("reads", [True, False])
async def test_a_flood_of_pings_is_answered_while_the_pongs_are_read_and_ended_when_not(reads: bool) -> None:
    ping = frame(b"x" * 125, Opcode.PING)
    async with serving(small_swarm()) as manager, innocent(manager), peer(manager, small=not reads) as flooder:
        closed = Recorder(manager.system, ConnectionClosed)
        if reads:
            for _ in range(20):
                flooder.send(ping * 100)
                for _ in range(100):
                    assert await flooder.frame() == (Opcode.PONG, b"x" * 125)
            return
        while not closed.events:
            if not flooder.writer.is_closing():
                flooder.send(ping * 100)
            await asyncio.sleep(0)
        assert closed.events[0].code == GONE


@pytest.mark.parametrize("kind", ["PONG", "empty text"])
async def test_a_flood_of_small_frames_holds_up_nobody(kind: str) -> None:
    one = frame(b"", Opcode.PONG) if kind == "PONG" else frame(b"")
    async with serving(small_swarm()) as manager, innocent(manager), peer(manager) as flooder:
        flooder.send(one * 20_000)
        if kind == "PONG":
            flooder.send(echo("still there"))
            assert json.loads((await flooder.frame())[1])["data"]["text"] == "still there"
        else:
            assert await flooder.closed() == 4429


# --- peers that go away, and peers that do not ---


@pytest.mark.slow
async def test_peers_that_got_their_close_frame_and_stay_are_cut_off() -> None:
    async with serving(small_swarm()) as manager, peer(manager) as rude, peer(manager) as polite:
        closed = Recorder(manager.system, ConnectionClosed)
        rude.send(b"\xff\xff")
        polite.send(frame(struct.pack("!H", 1000), Opcode.CLOSE))
        async with asyncio.timeout(5):
            await closed.until(lambda events: len(events) == 2)
        assert not rude.writer.is_closing()
        assert not polite.writer.is_closing()


@pytest.mark.slow
async def test_after_hundreds_of_connections_that_were_reset_all_is_as_before(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async with serving(small_swarm()) as manager, innocent(manager):
        opened, closed = Recorder(manager.system, ConnectionOpened), Recorder(manager.system, ConnectionClosed)
        before = descriptors(), len(asyncio.all_tasks()), len(manager.system.table.cells)
        for number in range(300):
            async with peer(manager, HEAD if number % 3 else LINE) as rude:
                if number % 2:
                    rude.send(echo())
                rude.reset()
        await closed.until(lambda events: len(events) == len(opened.events) == 200)
        await turns_until(lambda: (descriptors(), len(asyncio.all_tasks()), len(manager.system.table.cells)) == before)
        assert manager._gateway is not None
        assert (manager._gateway._sockets.open, manager._gateway._requests) == (1, 0)
    assert capfd.readouterr() == ("", "")


def descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


HALF_OPEN = """
import asyncio, sys
from websockets.asyncio.client import connect
async def main():
    async with connect(sys.argv[1], proxy=None, ping_interval=None):
        print("connected", flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.mark.slow
async def test_a_peer_that_stopped_without_a_word_is_found_by_keepalive() -> None:
    async with serving(small_swarm(), keepalive=0.3) as manager:
        closed = Recorder(manager.system, ConnectionClosed)
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", HALF_OPEN, manager.url, stdout=asyncio.subprocess.PIPE
        )
        try:
            assert child.stdout is not None
            assert await child.stdout.readline() == b"connected\n"
            child.send_signal(signal.SIGSTOP)
            assert (await closed.first(ConnectionClosed)).code in {1011, GONE}
            assert not [name for name in manager.system.table.cells if name.startswith("connection")]
        finally:
            child.kill()
            await child.wait()


class Bulk(Message):
    size: int


class Supplier(Agent, concurrency=64):
    @handles(Bulk)
    def supply(self, message: Bulk) -> str:
        return "x" * message.size


@pytest.mark.slow
async def test_a_client_that_reads_slowly_is_not_taken_for_gone_while_the_server_does_not_read() -> None:
    # Its pongs wait behind requests that the server leaves unread, as its answers are not taken fast enough.
    async with serving(Swarm([Supplier]), keepalive=0.4) as manager:
        small = socket.socket()
        small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        small.connect(("127.0.0.1", manager.port))
        small.setblocking(False)
        async with raw(manager, sock=small, max_size=None, max_queue=1, ping_interval=None, close_timeout=0.1) as slow:

            async def ask() -> None:
                for number in range(1_000):
                    await tell(slow, type="bulk", id=number, size=300_000, pad="p" * 3_000)

            asking = asyncio.create_task(ask())
            for _ in range(40):
                assert (await heard(slow))["status"] == "success"
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.Event().wait(), 0.05)
            asking.cancel()
            slow.transport.abort()
