"""Jobs that are submitted by the calendar: when a schedule fires, and what of it was missed. Pure. Floor 3.

Rule 1: what fires is computed from the last firing that was, not from the clock: no firing is before or equal to one
        that was. A clock that is set back fires nothing twice; what lies ahead of it waits until it comes there again.
Rule 2: each firing is submitted under a key of its own (:meth:`Schedule.ordered`), so that a server that dies between
        the submit and the note of the next firing submits it once.
Rule 3: what a time of day means when the clocks change is as in Debian's cron: a firing that the change leaves out
        comes right after it, and one that the change repeats comes once. Expressions for every hour or minute, and
        those with seconds, go by the time that passes.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, tzinfo
from typing import Any, Literal, get_args
from zoneinfo import ZoneInfo

import msgspec
from cronsim import CronSim, CronSimError

from grami_actors.errors import ConfigError
from grami_actors.job import Order

CatchUp = Literal["skip", "one", "all"]

LATE = 60.0
"""Seconds that a firing may be late and still count as on time."""

MOST_MISSED = 100
"""Firings that are caught up at most, the latest ones."""


class Schedule(msgspec.Struct, frozen=True):
    """A job that is submitted again and again.

    ::

        Schedule("nightly", "30 2 * * *", "report", {"pages": 3}, timezone="Europe/Berlin")

    Attributes:
        name: of the schedule: up to 64 letters, digits, dots, dashes and underscores.
        cron: five fields (minute, hour, day of the month, month, day of the week), or six with seconds before them;
            https://github.com/cuu508/cronsim says what a field may be.
        tool: what is run.
        arguments: for it.
        order: how; without ``idempotency_key`` and ``not_before``, which every firing has of its own.
        timezone: whose clock ``cron`` means: a name of the IANA database.
        catch_up: what becomes of firings that were missed while the server was down: ``skip`` leaves them out but for
            the latest, if it is not older than :data:`LATE`; ``one`` submits the latest, however old; ``all`` submits
            each, at most :data:`MOST_MISSED`.

    Raises:
        ConfigError: one of these cannot be; the message says which, and why.
    """

    name: str
    cron: str
    tool: str
    arguments: dict[str, Any] = {}
    order: Order = Order()
    timezone: str = "UTC"
    catch_up: CatchUp = "skip"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", self.name):
            raise ConfigError(f"schedule {self.name!r}: a name is up to 64 letters, digits, dots, dashes, underscores")
        if not self.tool:
            raise ConfigError(f"schedule {self.name}: which tool?")
        if self.catch_up not in get_args(CatchUp):
            raise ConfigError(f"schedule {self.name}: catch_up is {self.catch_up!r}; there are skip, one and all")
        if self.order.idempotency_key is not None or self.order.not_before is not None:
            raise ConfigError(f"schedule {self.name}: idempotency_key and not_before are set for each firing")
        try:
            self._zone()
        except (KeyError, ValueError, OSError):
            raise ConfigError(
                f"schedule {self.name}: there is no timezone {self.timezone!r} here; it is a name such as "
                "Europe/Berlin, from the system or the package tzdata"
            ) from None
        try:
            self.next_after(0.0)
        except (CronSimError, ValueError) as error:
            raise ConfigError(
                f"schedule {self.name}: cron is {self.cron!r}: {error}; an example is '30 2 * * *', at half past two"
            ) from None

    @property
    def spec(self) -> str:
        """What firings are computed from: with another one, ``next_at`` is to be computed anew from now."""
        return f"{self.cron} {self.timezone}"

    def ordered(self, at: float) -> Order:
        """What the firing at this time is submitted with; its key says which it is."""
        time = datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
        return msgspec.structs.replace(self.order, idempotency_key=f"schedule:{self.name}:{time}")

    def next_after(self, at: float) -> float:
        """The first firing after a time; both in seconds since the epoch."""
        for time in CronSim(self.cron, datetime.fromtimestamp(at, self._zone())):
            # In the second of the two hours that a clock shows when it is set back, cronsim begins with the first.
            if (found := time.timestamp()) > at:
                return found
        raise ValueError("it never fires")

    def due(self, next_at: float, now: float) -> tuple[list[float], float]:
        """The firings to submit now, in order, and when the next is.

        Args:
            next_at: when the next one was to be, as said the last time.
            now: seconds since the epoch.
        """
        if now < next_at:
            return [], next_at
        found: list[float] = []
        most = MOST_MISSED if self.catch_up == "all" else 1
        end = now
        while len(found) < most and (at := self._latest(next_at, end)) is not None:
            found.insert(0, at)
            end = at - 1.0
        if self.catch_up == "skip":
            found = [at for at in found if now - at <= LATE]
        return found, self.next_after(now)

    def _latest(self, first: float, end: float) -> float | None:
        """The last firing that is not after ``end``, of those from ``first`` on, which is one.

        Halves the time in between: years of firings are not gone through one by one.
        """
        if first > end:
            return None
        while end - first >= 1.0:
            middle = (first + end) / 2
            if (at := self.next_after(middle)) <= end:
                first = at
            else:
                end = middle
        return first

    def _zone(self) -> tzinfo:
        # Without a database of time zones there is UTC all the same.
        return UTC if self.timezone == "UTC" else ZoneInfo(self.timezone)
