"""How long what is left of a job at its end is kept. Pure. Floor 12.

A job that is not at its end is never touched: all times count from ``finished_at``.
"""

from __future__ import annotations

import msgspec

from grami_actors.errors import ConfigError

DAY = 86_400.0


class Keep(msgspec.Struct, frozen=True, kw_only=True):
    """For how long; in seconds from a job's end.

    Attributes:
        results: its result, arguments, events, logs and artifacts (:meth:`~.store.JobStore.expire`).
        keys: that it was, how it ended, and its idempotency key, so that a late second submit is still recognised
            (:meth:`~.store.JobStore.forget`); not shorter than ``results``.

    Raises:
        ConfigError: keys would be forgotten before results are.
    """

    results: float = 7 * DAY
    keys: float = 30 * DAY

    def __post_init__(self) -> None:
        if not 0 <= self.results <= self.keys:
            raise ConfigError(
                f"results of jobs are kept for {self.results:g} s, keys for {self.keys:g} s; keys must outlive results"
            )
