"""One client stops reading, while others hear the same events: who is slowed down, what it costs, and how it ends.

Play it:       grami run scenarios/slow_client.py
Simulate it:   grami run scenarios/slow_client.py --simulate --seeds 1000
With faults:   grami run scenarios/slow_client.py whatever_happens --simulate --faults slow

What a client does not read waits for it: first in the buffers between the two machines, then in its outbox on the
server, of 1 MiB. Past that chunks of answers are dropped (the answer comes whole at the end), events wait as they are,
once for all who wait for them, and when the client then takes nothing for two seconds it is sent away with the close
code 4508. Nobody else notices.
"""

from __future__ import annotations

import asyncio
import itertools

from grami_actors import Agent, GramiError, Message, Swarm, handles
from grami_actors.cell import CONNECTION
from grami_actors.frames import CLOSE_SLOW_CONSUMER
from grami_actors.scenario import Play, PlayClient, scenario
from grami_actors.telemetry import ConnectionClosed

QUOTES = "quotes"

LARGE = "x" * 65_536
"""The text of a quote in a burst, and of a chunk."""

MOST = 1_048_576 + 66_000
"""Bytes that may wait for one client: its outbox, and one frame more."""

PROMPT = 1.0
"""Seconds in which a client that reads has each event, on a busy machine too. In a simulation it takes none."""


class Tick(Message):
    """Publish a quote."""


class Begin(Message):
    """Publish a quote every 20 ms from now on."""


class End(Message):
    """Publish no more; answered with the number of the last quote."""


class Burst(Message):
    """Publish so many large quotes, one every 2 ms."""

    count: int


class Tell(Message):
    """Answer with so many large chunks."""

    chunks: int


class Quote(Message):
    """What is published: its number, when that was, and a text."""

    number: int
    at: float
    text: str = ""


class Ticker(Agent, concurrency=2):
    """Publishes quotes, and answers in chunks."""

    def on_start(self) -> None:
        """Nothing was published yet."""
        self._number = 0

    @handles(Begin)
    def begin(self, _: Begin) -> None:
        """Set the timer."""
        self.every(0.02, Tick(), key="ticks")

    @handles(End)
    def end(self, _: End) -> int:
        """Cancel the timers."""
        self.cancel_timer("ticks")
        self.cancel_timer("burst")
        return self._number

    @handles(Tick)
    def tick(self, _: Tick, text: str = "") -> None:
        """Publish one."""
        self._number += 1
        self.publish(QUOTES, Quote(self._number, self.now(), text))

    @handles(Burst)
    def burst(self, burst: Burst) -> None:
        """Publish a large one, and the others a little later."""
        self.tick(Tick(), LARGE)
        if burst.count > 1:
            self.after(0.002, Burst(burst.count - 1), key="burst")

    @handles(Tell)
    async def tell_all(self, tell: Tell) -> int:
        """The number of chunks that were told."""
        for _ in range(tell.chunks):
            self.emit({"load": LARGE})
            await asyncio.sleep(0.002)
        return tell.chunks


swarm = Swarm(agents=[Ticker])


class Listener:
    """A client that hears the quotes.

    Attributes:
        quotes: that it got, as the numbers they came with.
        offsets: of the same.
        worst: the longest that one of them took, in seconds.
        error: why it hears no more.
        most: the most bytes that waited for one client, of those times when this one got a quote.
    """

    def __init__(self, play: Play, client: PlayClient) -> None:
        self.client = client
        self.quotes: list[int] = []
        self.offsets: list[int] = []
        self.worst = 0.0
        self.most = 0
        self.error: GramiError | None = None
        self._play = play
        self._more = asyncio.Event()
        self.work = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        try:
            async for frame in self.client.subscribe(QUOTES):
                self.quotes.append(frame.data["number"])
                self.offsets.append(frame.offset or 0)
                self.worst = max(self.worst, self._play.system.now() - frame.data["at"])
                self.most = max(self.most, _waits(self._play))
                self._more.set()
        except GramiError as error:
            self.error = error

    async def has(self, number: int) -> None:
        """Wait until it has this quote. Raises TimeoutError."""
        async with asyncio.timeout(5.0):
            while self.quotes[-1] < number:
                self._more.clear()
                await self._more.wait()

    async def ended(self) -> None:
        """Wait until it hears no more. Raises TimeoutError."""
        async with asyncio.timeout(5.0):
            await self.work

    def gapless(self) -> bool:
        """Whether it got every quote since its first, once."""
        return all(later == earlier + 1 for earlier, later in itertools.pairwise(self.quotes))


@scenario(seeds=50)
async def it_reads_no_more(play: Play) -> None:
    """It is sent away with 4508 after its time; the others get everything at once, and memory is bounded."""
    closed = _closed(play)
    first, second, slow = await _listening(play, "first", "second", "slow")
    slow.client.pause()
    await first.client.request(Burst(_enough(play)))
    await play.eventually(lambda: CLOSE_SLOW_CONSUMER in closed, within=20.0, text="it is sent away with 4508")
    last = await first.client.request(End())
    for each in (first, second):
        await each.has(last)
        play.check(f"{each.client.name} got every quote, once", each.gapless())
        play.check(f"{each.client.name} got them at once", each.worst < PROMPT, f"{each.worst:.3f} s")
        play.check(f"{each.client.name} saw little memory taken", each.most <= MOST, f"{each.most:,} bytes")
    play.check("nobody else was sent away", closed.count(CLOSE_SLOW_CONSUMER) == 1, str(closed))
    slow.client.resume()
    await slow.ended()
    play.check("it finds out", slow.error is not None)
    play.check("what it got before is whole", slow.gapless() and len(slow.quotes) < len(first.quotes))


@scenario(seeds=50)
async def it_reads_again_in_time(play: Play) -> None:
    """A second without reading is no fault: it catches up, without a gap, and stays."""
    closed = _closed(play)
    fast, slow = await _listening(play, "fast", "slow")
    slow.client.pause()
    await fast.client.request(Burst(_enough(play) // 2))
    await asyncio.sleep(1.0)
    behind = len(fast.quotes) - len(slow.quotes)
    slow.client.resume()
    last = await fast.client.request(End())
    play.check("it was behind", behind > 15, str(behind))
    for each in (fast, slow):
        await each.has(last)
    play.check("without a gap", slow.gapless() and fast.gapless())
    play.check("the other was not slowed down", fast.worst < PROMPT < slow.worst + 0.1, f"{fast.worst:.3f} s")
    play.check("and nobody was sent away", CLOSE_SLOW_CONSUMER not in closed, str(closed))


@scenario(seeds=50)
async def chunks_are_dropped_and_the_answer_is_not(play: Play) -> None:
    """Two clients have the same told in chunks; the one that pauses loses some of them, and no more than that."""
    fast, slow = await play.client("fast"), await play.client("slow")
    chunks = _enough(play)
    told = [asyncio.create_task(each.write(Tell(chunks))) for each in (slow, fast)]
    await asyncio.sleep(0.01)
    slow.pause()
    answer, frames = await told[1]
    play.check("who reads gets every chunk", sum(each.type == "response.chunk" for each in frames) == chunks)
    play.check("and loses none", answer == chunks and not frames[-1].chunks_dropped)
    slow.resume()
    answer, frames = await told[0]
    came, dropped = sum(each.type == "response.chunk" for each in frames), frames[-1].chunks_dropped
    play.check("who does not read loses some", dropped > 0, str(dropped))
    play.check("and is told how many", came + dropped == chunks, f"{came} + {dropped}")
    play.check("but has the answer", answer == chunks, str(answer))


@scenario(seeds=50)
async def whatever_happens(play: Play) -> None:
    """Under any faults: who reads stays, hears no event twice and none late, and every request ends."""
    closed = _closed(play)
    fast, slow = Listener(play, await play.client("fast")), Listener(play, await play.client("slow"))
    outcomes = [await _asks(fast.client, Begin())]
    slow.client.pause()
    outcomes += [await _asks(fast.client, message) for message in (Burst(40), Tell(3), Tell(3))]
    await asyncio.sleep(1.0 if play.mode == "live" else 6.0)
    slow.client.resume()
    outcomes += [await _asks(fast.client, message) for message in (Tell(3), End())]
    play.check("every request has an answer or an error", len(outcomes) == 6 and all(outcomes), str(outcomes))
    for each in (fast, slow):
        play.check("no event came twice", each.offsets == sorted(set(each.offsets)))
    play.check("who reads is still there", fast.error is None, str(fast.error))
    play.check("and was not slowed down", fast.worst < PROMPT, f"{fast.worst:.3f} s")
    play.check("memory was bounded", fast.most <= MOST, f"{fast.most:,} bytes")
    play.check("nobody but the slow one was sent away", closed.count(CLOSE_SLOW_CONSUMER) <= 1, str(closed))


async def _listening(play: Play, *names: str) -> list[Listener]:
    """Clients that hear the quotes, from now on."""
    listeners = [Listener(play, await play.client(name)) for name in names]
    await listeners[0].client.request(Begin())
    await play.eventually(lambda: all(each.quotes for each in listeners), text="everybody hears the quotes")
    return listeners


async def _asks(client: PlayClient, message: Message) -> str:
    try:
        await client.request(message, timeout=5.0)
    except GramiError as error:
        return str(error.error_code)
    return "ok"


def _enough(play: Play) -> int:
    """Large quotes to fill whatever is between the server and a client: buffers of the system, if there are any."""
    return 400 if play.mode == "live" else 40


def _waits(play: Play) -> int:
    """The most bytes that wait in the outbox of one client."""
    cells = [cell for name, cell in play.system.table.cells.items() if name.startswith(CONNECTION)]
    sizes: list[int] = [cell.actor.outbox.size for cell in cells]
    return max(sizes)


def _closed(play: Play) -> list[int]:
    """The close codes of connections that end from now on."""
    codes: list[int] = []
    play.system.bus.subscribe(lambda event: codes.append(event.code), ConnectionClosed)
    return codes
