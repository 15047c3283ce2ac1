"""Research as a map-reduce: pages of an archive are read a few at a time, and the report says what is missing.

Play it:      grami run scenarios/research.py
Simulate it:  grami run scenarios/research.py --simulate
Break it:     grami run scenarios/research.py whatever_happens --simulate --faults lossy
Ask it:       grami serve scenarios/research.py, then grami send research word=tea --stream

The archive is as the services of others are: it takes so many calls a second, some calls fail, some pages cannot be had
at all, and some never come. Calls that it refuses for being too many wait until it takes more, a page that failed is
tried again, and one that cannot be had is left out, and named.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from typing import Any

import msgspec

from grami_actors import Agent, GramiError, Message, Swarm, handles, tool
from grami_actors.buckets import Buckets
from grami_actors.coordination import Each, map_reduce
from grami_actors.errors import RateLimited, UpstreamError
from grami_actors.scenario import Play, PlayClient, scenario

WIDTH = 4
"""Pages that are read at the same time."""

ATTEMPTS = 4
"""How often a page is tried."""

PATIENCE = 60.0
"""Seconds a client waits."""

PAGES = {f"page-{number}": "tea and " * (number % 3) + "biscuits" for number in range(1, 21)}
"""What the archive has."""

TEA = 21
"""How often all of them together speak of tea."""


class Research(Message, tag="research"):
    """How often does the archive speak of something? A call of it fails with the probability ``trouble``."""

    word: str
    trouble: float = 0.0


class Read(Message, tag="read"):
    """Read one page."""

    page: str
    word: str
    trouble: float


class Finding(msgspec.Struct, frozen=True):
    """What one page says."""

    page: str
    times: int


class Report(msgspec.Struct, frozen=True):
    """What came of it.

    Attributes:
        times: how often the word was found.
        read: the pages that were read, in order.
        missing: those that were not, and why.
    """

    times: int
    read: tuple[str, ...] = ()
    missing: dict[str, str] = {}


# --- the archive: a service outside --------------------------------------------------------------------------


class Archive:
    """Somebody else's service.

    Attributes:
        broken: how many calls for a page fail before one succeeds.
        silent: the pages that never come.
        refused: calls that were too many.
        most: calls that were at work at the same time.
    """

    def __init__(self) -> None:
        self.broken: dict[str, int] = {}
        self.silent: list[str] = []
        self.refused = 0
        self.at_work = 0
        self.most = 0
        self._quota = Buckets(rate=40.0, burst=5.0)

    async def get(self, page: str, *, trouble: bool) -> str:
        """A page. Raises RateLimited and UpstreamError."""
        wait = self._quota.take("everybody", asyncio.get_running_loop().time())
        if wait:
            self.refused += 1
            raise RateLimited("the archive takes 40 calls a second", retry_after=wait)
        self.at_work += 1
        self.most = max(self.most, self.at_work)
        try:
            await asyncio.sleep(3600.0 if page in self.silent else 0.01)
        finally:
            self.at_work -= 1
        if trouble or self.broken.get(page, 0):
            self.broken[page] = max(0, self.broken.get(page, 0) - 1)
            raise UpstreamError(f"the archive has trouble with {page}")
        return PAGES[page]


ARCHIVE = Archive()


@tool(timeout=0.5, concurrency=8, upstream="archive")
async def fetch(page: str, trouble: bool) -> str:  # noqa: FBT001 - a tool is called by keyword
    """A page of the archive."""
    return await ARCHIVE.get(page, trouble=trouble)


# --- agents --------------------------------------------------------------------------------------------------


class Reader(Agent, instances=6):
    """Reads one page at a time."""

    @handles(Read)
    async def read(self, read: Read) -> Finding:
        # Dice of the actor's own, which a simulation throws again as they fell.
        trouble = self.random.random() < read.trouble
        text = await self.call(fetch, page=read.page, trouble=trouble)
        return Finding(read.page, text.split().count(read.word))


class Librarian(Agent, concurrency=8):
    """Has all pages read, and adds up."""

    @handles(Research)
    async def research(self, research: Research) -> Report:
        missing: dict[str, str] = {}
        pages = list(PAGES)

        def skip(number: int, error: GramiError) -> None:
            missing[pages[number]] = str(error.error_code)

        def requests() -> Iterator[Read]:
            for number, page in enumerate(pages):
                self.progress(number / len(pages), page)
                yield Read(page, research.word, research.trouble)

        each = Each(width=WIDTH, timeout=PATIENCE / 20, attempts=ATTEMPTS, skip=skip)
        report: Report = await map_reduce(self, "reader", requests(), add, Report(0), each)
        return msgspec.structs.replace(report, missing=dict(sorted(missing.items(), key=lambda kv: pages.index(kv[0]))))


def add(report: Report, finding: Finding) -> Report:
    """The report with one finding more."""
    return Report(report.times + finding.times, (*report.read, finding.page))


swarm = Swarm(agents=[Librarian, Reader], tools=[fetch])


# --- scenarios -----------------------------------------------------------------------------------------------


def check_report(play: Play, who: str, report: dict[str, Any]) -> None:
    """What is true of every report: each page is read once or missing, and the sum is that of the pages read."""
    read, missing = report["read"], report["missing"]
    play.check(f"{who}: each page is read or missing", sorted([*read, *missing]) == sorted(PAGES), str(report))
    play.check(f"{who}: they stand in order", read == [page for page in PAGES if page in read], str(read))
    right = sum(PAGES[page].count("tea") for page in read)
    play.check(f"{who}: the sum is that of the pages read", report["times"] == right, str(report))
    play.check(f"{who}: it says why a page is missing", all(missing.values()), str(missing))


async def ask(play: Play, client: PlayClient, trouble: float = 0.0) -> dict[str, Any]:
    """Have the archive searched, and check what is always true."""
    report: dict[str, Any] = await client.request(Research("tea", trouble), timeout=PATIENCE)
    check_report(play, client.name, report)
    return report


@scenario
async def everything_is_read(play: Play) -> None:
    """A good day: nothing is missing, no more pages are read at a time than allowed, and the archive is not pressed."""
    ARCHIVE.most = ARCHIVE.refused = 0
    report = await ask(play, await play.client("ada"))
    play.check("all that there is about tea is found", report["times"] == TEA and not report["missing"], str(report))
    play.check(f"{WIDTH} pages were read at a time", ARCHIVE.most == WIDTH, str(ARCHIVE.most))
    play.check("the archive refused calls, which came again later", ARCHIVE.refused)
    play.check("no page was read twice for that", play.transcript.count("reader-*: read") == len(PAGES))


@scenario
async def what_is_missing_is_named(play: Play) -> None:
    """One page needs a second try, one a third, one cannot be had, one never comes: two are missing, and it says so."""
    ARCHIVE.broken = {"page-2": 1, "page-5": 2, "page-8": ATTEMPTS}
    ARCHIVE.silent = ["page-11"]
    report = await ask(play, await play.client("ada"))
    ARCHIVE.silent = []
    named = {"page-8": "UPSTREAM_ERROR", "page-11": "TOOL_TIMEOUT"}
    play.check("two pages are missing, and it says why", report["missing"] == named, str(report["missing"]))
    play.check("what they say is not in the sum", report["times"] == TEA - 4, str(report["times"]))
    tries = [play.transcript.count("reader-*: read", partial(_is_of, page)) for page in ("page-1", "page-2", "page-5")]
    play.check("a page is tried as often as it must be", tries == [1, 2, 3], str(tries))


def _is_of(page: str, told: Any) -> bool:
    return bool(told.data["page"] == page)


@scenario
async def a_bad_day(play: Play) -> None:
    """Every third call fails, for two who ask at the same time: both have a report, however much is in it."""
    clients = [await play.client(name) for name in ("ada", "bert")]
    reports = await asyncio.gather(*[ask(play, client, trouble=0.3) for client in clients])
    for report in reports:
        play.check("what is missing failed as often as it may", {*report["missing"].values()} <= {"UPSTREAM_ERROR"})
    pages = len(clients) * len(PAGES)
    played = play.transcript.count("reader-*: read")
    play.check("no page is tried for ever", pages <= played <= pages * ATTEMPTS, str(played))


@scenario
async def readers_die(play: Play) -> None:
    """Two readers and the tool die over a page: it is read again, and nothing is missing or counted twice."""
    readers = play.faults.crash("reader-*", when="during", times=2, kind=Read)
    fetcher = play.faults.crash("tool:fetch", on_message=9)
    report = await ask(play, await play.client("ada"))
    play.check("they died", (readers.struck, fetcher.struck) == (2, 1))
    play.check("all that there is about tea is found", report["times"] == TEA, str(report))


@scenario
async def whatever_happens(play: Play) -> None:
    """Under any faults there is a report that is right about what it has, or an error; without faults a whole one."""
    ada = await play.client("ada")
    try:
        report = await ask(play, ada)
    except GramiError as error:
        play.check("it is refused for a fault, not without one", play.transcript.faults(), str(error))
    else:
        whole = not report["missing"]
        play.check("something is missing for a fault, not without one", whole or play.transcript.faults(), str(report))
    play.check("it is known in time", play.now() <= PATIENCE + 1.0, f"{play.now():.3g} s")
