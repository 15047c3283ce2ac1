"""How does a server stand what an open network does to it? Rude, slow, wrong and very many clients try it out.

Each attack gets a server of its own, in a process of its own, on loopback, and is bounded in count and time. Beside
it an innocent client in a third process asks all the time. What is not as before when an attack is over (descriptors,
tasks, actors), an answer that the innocent did not get, and a request without an end are faults: the exit code is 1.

    python benchmarks/abuse.py                  # a few minutes
    python benchmarks/abuse.py --quick          # a few seconds, with a hundredth of everything
    python benchmarks/abuse.py --json churn     # one of them
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import socket
import struct
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

import msgspec
import psutil
from gateway_clients import loop_factory, raise_limit
from measure import rss
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.frames import Frame, Opcode

from grami_actors import Agent, Config, GrowthManager, Message, Swarm, handles
from grami_actors.logs import configure_logging, log_to

AT_ONCE = 50
"""Raw connections at the same time, where they come one after the other."""

PATIENCE = 420.0
"""Seconds that one attack may take."""

SETTLE = 60.0
"""Seconds in which a server must be as before."""

DRAIN = 5.0

HEAD = (
    b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


# --- the server ---


class Echo(Message):
    """Say it again."""

    text: str


class Flood(Message):
    """Emit so many pieces of a kilobyte."""

    pieces: int


class Wait(Message):
    """Answer after so many seconds."""

    seconds: float


class Echoer(Agent):
    """Says it again."""

    @handles(Echo)
    def echo(self, message: Echo) -> str:
        return message.text


class Flooder(Agent):
    """Streams."""

    @handles(Flood)
    async def flood(self, message: Flood) -> int:
        for number in range(message.pieces):
            self.emit("x" * 1_024)
            if number % 100 == 0:
                await asyncio.sleep(0)
        return message.pieces


class Waiter(Agent, concurrency=10_000):
    """Takes its time."""

    @handles(Wait)
    async def wait(self, message: Wait) -> float:
        await asyncio.sleep(message.seconds)
        return message.seconds


async def serve() -> None:
    """Serve until SIGTERM; a line on standard input asks how much of everything there is."""
    raise_limit()
    configure_logging()
    manager = GrowthManager(
        Swarm([Echoer, Flooder, Waiter]), Config(drain_timeout=DRAIN, max_connections=20_000), publish=False
    )
    log_to(manager.system.bus)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    process = psutil.Process()

    def count() -> None:
        sys.stdin.readline()
        counts = {
            "rss": rss(),
            "descriptors": process.num_fds(),
            "tasks": len(asyncio.all_tasks()),
            "actors": len(manager.system.table.cells),
        }
        print(json.dumps(counts), flush=True)

    async with manager:
        asyncio.get_running_loop().add_reader(sys.stdin, count)
        print(json.dumps({"url": manager.url}), flush=True)
        await ended.wait()
        asyncio.get_running_loop().remove_reader(sys.stdin)


# --- the innocent client ---


async def be_innocent(url: str) -> None:
    """Ask a hundred times a second; a line on standard input asks how long the answers since the last one took."""
    times: list[float] = []
    wrong = 0
    said = asyncio.ensure_future(asyncio.to_thread(sys.stdin.readline))
    async with connect(url, compression=None, proxy=None, ping_timeout=None) as client:
        print("{}", flush=True)
        while True:
            began = time.perf_counter()
            await client.send(json.dumps({"type": "echo", "text": str(began)}))
            wrong += json.loads(await client.recv()).get("data") != str(began)
            times.append(time.perf_counter() - began)
            await asyncio.wait([said], timeout=0.01)
            if said.done():
                if not said.result():
                    return
                times.sort()
                p50, p99 = times[len(times) // 2], times[len(times) * 99 // 100]
                print(json.dumps({"p50_ms": p50 * 1e3, "p99_ms": p99 * 1e3, "wrong": wrong}), flush=True)
                times.clear()
                said = asyncio.ensure_future(asyncio.to_thread(sys.stdin.readline))


class Child:
    """A process that answers a line with a line."""

    def __init__(self, process: Process) -> None:
        self.process = process

    async def hear(self) -> Any:
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        if not line:
            raise RuntimeError("a process ended before its time")
        return json.loads(line)

    async def ask(self) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        return await self.hear()


@contextlib.asynccontextmanager
async def child(*arguments: str, log: Any = None) -> AsyncGenerator[Child]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, *arguments, stdin=PIPE, stdout=PIPE, stderr=log
    )
    try:
        yield Child(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


# --- the attacks ---


class Target(msgspec.Struct):
    """What an attack is aimed at, and what it saw."""

    url: str
    server: Child
    seen: Counter[str]
    faults: list[str]

    async def raw(self, *, room: int = 0) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A TCP connection; with ``room``, one that takes no more than so many bytes unread."""
        there = socket.socket()
        if room:
            there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        there.setblocking(False)
        parts = urlsplit(self.url)
        await asyncio.get_running_loop().sock_connect(there, (parts.hostname, parts.port))
        return await asyncio.open_connection(sock=there, limit=room or 2**16)

    async def client(self) -> ClientConnection:
        """A well-behaved client, which tries again when it is told to come later."""
        while True:
            try:
                return await connect(self.url, compression=None, proxy=None, open_timeout=60, ping_timeout=None)
            except (InvalidHandshake, ConnectionClosed, OSError) as refused:
                self.seen[f"tried again: {type(refused).__name__}"] += 1
                await asyncio.sleep(random.uniform(0.1, 1.0))


def text(**message: Any) -> bytes:
    return Frame(Opcode.TEXT, json.dumps(message).encode()).serialize(mask=True)


def reset(writer: asyncio.StreamWriter) -> None:
    """RST in place of a goodbye."""
    there = writer.get_extra_info("socket")
    there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def each(count: int, work: Callable[[int], Awaitable[None]]) -> None:
    """Do it so many times, some at the same time."""
    numbers = iter(range(count))

    async def some() -> None:
        for number in numbers:
            await work(number)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(some())


async def churn(target: Target, n: int) -> None:
    """Connect, send a request, hang up with RST."""

    async def one(number: int) -> None:
        reader, writer = await target.raw()
        writer.write(HEAD + text(type="echo", text="x"))
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            if number % 2:
                await reader.readuntil(b"\r\n\r\n")
        reset(writer)
        target.seen["cycles"] += 1

    await each(n, one)


async def storm(target: Target, n: int) -> None:
    """All clients are there, all are cut off, and all come back at the same moment."""
    for name in ("came", "came back"):
        began = time.perf_counter()
        clients = await asyncio.gather(*(target.client() for _ in range(n)))
        for client in clients:
            await client.send(json.dumps({"type": "echo", "text": "x"}))
        for client in clients:
            await client.recv()
            target.seen[name] += 1
        target.seen[f"seconds until all {name}"] = round(time.perf_counter() - began)
        for client in clients:
            client.transport.abort()


async def slow_reader(target: Target, n: int) -> None:
    """Ask for streams of so many pieces altogether, and for large answers, and read nothing."""
    ends: list[asyncio.StreamWriter] = []
    for number in range(10):
        reader, writer = await target.raw(room=4_096)
        ends.append(writer)
        writer.write(HEAD)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(text(type="flood", pieces=n // 10, id=number, stream=True))
        writer.write(text(type="echo", text="x" * 100_000, id="large") * 40)
    largest = 0
    for _ in range(20):
        await asyncio.sleep(0.1)
        largest = max(largest, (await target.server.ask())["rss"])
    target.seen["largest rss, MB"] = largest // 1_000_000
    for writer in ends:
        writer.transport.abort()


BAD = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n",
    b"GET /ws HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    b"POST /ws HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello",
    HEAD.replace(b"\r\n\r\n", b"\r\nOrigin: https://evil.example\r\n\r\n"),
    HEAD + b"\x81\x02hi",
    HEAD + text(type="nothing"),
    HEAD + Frame(Opcode.TEXT, b"\xff").serialize(mask=True),
    HEAD + Frame(Opcode.TEXT, b"not json").serialize(mask=True) * 100,
)


async def bad_clients(target: Target, n: int) -> None:
    """Everything that is wrong, each by a client of its own."""

    async def one(number: int) -> None:
        reader, writer = await target.raw()
        with contextlib.suppress(ConnectionError, TimeoutError):
            writer.write(BAD[number % len(BAD)])
            async with asyncio.timeout(0.5):
                await reader.read(1_000)
        reset(writer)
        target.seen["clients"] += 1

    await each(n, one)


async def drain(target: Target, n: int) -> None:
    """SIGTERM while every client has two requests in flight, one of which cannot end in time."""
    clients = await asyncio.gather(*(target.client() for _ in range(n)))
    for client in clients:
        await client.send(json.dumps({"type": "wait", "seconds": 2.0, "id": "short"}))
        await client.send(json.dumps({"type": "wait", "seconds": 600.0, "id": "long", "timeout_ms": 600_000}))
        # The answer to the last one says that the server has taken the others.
        await client.send(json.dumps({"type": "echo", "text": "x", "id": "taken"}))
        assert json.loads(await client.recv())["id"] == "taken"
    began = time.perf_counter()
    target.server.process.send_signal(signal.SIGTERM)

    async def end(client: ClientConnection) -> None:
        answered = set()
        try:
            while True:
                answer = json.loads(await client.recv())
                if answer["type"] == "response":
                    answered.add(answer["id"])
                    target.seen[f"{answer['id']}: {answer.get('error_code', 'answered')}"] += 1
        except ConnectionClosed as closed:
            code = closed.rcvd.code if closed.rcvd is not None else 1006
            target.seen[f"closed with {code}"] += 1
            if answered != {"short", "long"} and code not in {1001, 1012}:
                target.faults.append(f"a connection ended with {code}, and only {sorted(answered)} answered")

    await asyncio.gather(*map(end, clients))
    await target.server.process.wait()
    took = time.perf_counter() - began
    target.seen["seconds until the end"] = round(took)
    if took > DRAIN + 5 or target.server.process.returncode:
        target.faults.append(f"it took {took:.1f} s, and ended with {target.server.process.returncode}")


ATTACKS: dict[str, tuple[Callable[[Target, int], Awaitable[None]], int]] = {
    "churn": (churn, 50_000),
    "storm": (storm, 5_000),
    "slow_reader": (slow_reader, 200_000),
    "bad_clients": (bad_clients, 10_000),
    "drain": (drain, 1_000),
}
"""The attacks, and how many times each strikes."""


# --- what came of it ---


class Report(msgspec.Struct):
    """What one attack did to the server, and to the innocent client."""

    name: str
    count: int
    seconds: float = 0.0
    before: dict[str, int] = {}
    after: dict[str, int] = {}
    innocent_before: dict[str, float] = {}
    innocent_during: dict[str, float] = {}
    log_bytes: int = 0
    log_lines: int = 0
    seen: dict[str, int] = {}
    faults: list[str] = []


async def _settled(server: Child, before: dict[str, int]) -> dict[str, int]:
    """How much of everything there is, once it is as before or cannot be waited for any longer."""
    deadline = time.monotonic() + SETTLE
    while True:
        after: dict[str, int] = await server.ask()
        same = all(after[name] <= before[name] for name in before if name != "rss")
        if same or time.monotonic() > deadline:
            return after
        await asyncio.sleep(0.1)


async def attack(name: str, count: int) -> Report:
    """Start a server and the innocent client, let the attack loose, and see what is left."""
    report = Report(name, count)
    with tempfile.TemporaryFile() as log:
        async with child("--serve", log=log) as server:
            target = Target((await server.hear())["url"], server, Counter(), report.faults)
            async with child("--innocent", target.url) as innocent:
                await innocent.hear()
                await asyncio.sleep(1)
                report.innocent_before = await innocent.ask()
                report.before = await server.ask()
                began = time.perf_counter()
                if name == "drain":  # the innocent would not live to tell
                    innocent.process.kill()
                    await innocent.process.wait()
                try:
                    async with asyncio.timeout(PATIENCE):
                        await ATTACKS[name][0](target, count)
                except TimeoutError:
                    report.faults.append(f"it was not over after {PATIENCE:g} seconds")
                report.seconds = time.perf_counter() - began
                if name != "drain":
                    report.innocent_during = await innocent.ask()
                    report.after = await _settled(server, report.before)
                    _judge(report)
        report.seen = dict(target.seen)
        log.seek(0)
        written = log.read()
        report.log_bytes, report.log_lines = len(written), written.count(b"\n")
        if (at := written.find(b"Traceback")) >= 0:
            report.faults.append(f"there is a traceback in the log: {written[at : at + 3_000].decode()}")
    return report


def _judge(report: Report) -> None:
    for name in ("descriptors", "tasks", "actors"):
        if report.after[name] > report.before[name]:
            report.faults.append(f"{report.after[name]} {name}, and {report.before[name]} before")
    if report.innocent_during["wrong"]:
        report.faults.append("the innocent client got a wrong answer")


def _show(report: Report) -> None:
    print(f"\n{report.name}: {report.count:,} in {report.seconds:.1f} s")
    for title, before, after in (
        *((name, report.before[name], report.after.get(name)) for name in report.before),
        *((name, report.innocent_before[name], report.innocent_during.get(name)) for name in ("p50_ms", "p99_ms")),
    ):
        print(f"  {title:12} {_number(title, before):>12} -> {_number(title, after):>12}")
    print(f"  {'log':12} {report.log_lines:,} lines, {report.log_bytes:,} bytes")
    for what, times in sorted(report.seen.items()):
        print(f"  {what}: {times:,}")
    for fault in report.faults[:10]:
        print(f"  FAULT: {fault}")


def _number(title: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value / 1e6:.1f} MB" if title == "rss" else f"{value:,.2f}" if title.endswith("_ms") else f"{value:,}"


async def play(names: Iterable[str], share: float, *, quiet: bool) -> list[Report]:
    """Let the attacks loose, one after the other."""
    raise_limit()
    reports = []
    for name in names:
        report = await attack(name, max(10, int(ATTACKS[name][1] * share)))
        reports.append(report)
        if not quiet:
            _show(report)
    return reports


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="ATTACK", help=f"of {', '.join(ATTACKS)}; all if none is named")
    parser.add_argument("--quick", action="store_true", help="a hundredth of everything")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--innocent", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.names) - set(ATTACKS):
        parser.error(f"{', '.join(sorted(unknown))}: the attacks are {', '.join(ATTACKS)}")
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        if options.serve:
            runner.run(serve())
            return 0
        if options.innocent:
            runner.run(be_innocent(options.innocent))
            return 0
        reports = runner.run(play(options.names or ATTACKS, 0.01 if options.quick else 1.0, quiet=options.json))
    if options.json:
        print(msgspec.json.encode(reports).decode())
    faults = sum(len(each.faults) for each in reports)
    print(f"\n{faults} faults" if faults else "\nit stood all of it", file=sys.stderr)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
