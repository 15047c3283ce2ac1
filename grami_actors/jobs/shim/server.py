"""The server as its shim sees it: there or not, woken by a word, and a folder of orders. Floor 12."""

from __future__ import annotations

import os
import time

from grami_actors.jobs.shim.lean import loads, suppress
from grami_actors.jobs.shim.loop import Loop
from grami_actors.jobs.shim.tree import read

TYPE_CHECKING = False  # importing typing takes a tenth of the shim's start
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

RECORD_GAP = 0.05
"""Seconds between two words to the server about what the job said."""

LOG_GAP = 0.25
"""Seconds between two words to the server about output."""


class Server:
    """Whoever has the state directory open.

    Args:
        loop: of the shim.
        folder: of the attempt.
        spec: of the job.
    """

    def __init__(self, loop: Loop, folder: str, spec: dict[str, Any]) -> None:
        self._loop = loop
        self._control = f"{folder}/control"
        self._pipe = spec["wake"]
        self._word = f"{spec['job']} {spec['attempt']}\n".encode()
        self._told_at = 0.0

    def tell(self, gap: float) -> None:
        """Have it look; so many seconds after the last time, if that is not over yet."""
        moment = self._told_at + gap
        planned = self._loop.when(self.poke)
        self._loop.at(moment if planned is None else min(moment, planned), self.poke)

    def poke(self) -> None:
        """Have it look now; later, if it has not read what it was told before."""
        self._told_at = time.monotonic()
        self._loop.cancel(self.poke)  # what was planned is done by this one
        with suppress(OSError):  # no server is there; the next one looks by itself
            fd = os.open(self._pipe, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.write(fd, self._word)
            except BlockingIOError:
                self._loop.soon(LOG_GAP, self.poke)
            finally:
                os.close(fd)

    def insist(self, until: float) -> None:
        """Have it look, for the last time."""
        self.poke()
        while self._loop.when(self.poke) is not None and time.monotonic() < until:
            time.sleep(RECORD_GAP)
            self.poke()

    def orders(self) -> Iterator[dict[str, Any] | str]:
        """What it wants, each once, in order; or why that cannot be read."""
        names = os.listdir(self._control) if os.path.isdir(self._control) else []
        for _, name in sorted((int(stem), name) for name in names if (stem := name.removesuffix(".json")).isdigit()):
            try:
                order = loads(read(f"{self._control}/{name}"))
                yield order if isinstance(order, dict) else f"the order {name} was dropped: it is no object"
            except ValueError as error:
                yield f"the order {name} was dropped: {error}"
            with suppress(OSError):
                os.unlink(f"{self._control}/{name}")
