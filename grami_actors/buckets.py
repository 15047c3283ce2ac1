"""Token buckets: how much of something is taken in a time. Pure, ``now`` is a parameter. Floor 1."""

from __future__ import annotations

import math
from collections.abc import Hashable

DUST = 1e-9
"""What may be missing of a token: sums of floating-point numbers do not come out even."""


class Buckets:
    """Many token buckets with one rate, made when first used, and forgotten when full again.

    Of one bucket never more than ``burst + rate * t`` tokens are taken within any ``t`` seconds, as long as it is not
    forgotten before it is full.

    Args:
        rate: tokens a second; 0 for no limit.
        burst: tokens that may be taken at once; at least 1.
        most: buckets that may be kept. When there would be more, those that are full again are forgotten, and of the
            others the fullest, until at most half are left.

    Raises:
        ValueError: a number that cannot be.
    """

    __slots__ = ("_buckets", "_burst", "_most", "_rate")

    def __init__(self, rate: float, burst: float, most: int = 100_000) -> None:
        if not (0 <= rate < math.inf and burst >= 0 and most >= 1):
            raise ValueError("a bucket has a rate and a burst of at least 0, and there is at least one bucket")
        self._rate = rate
        self._burst = max(1.0, burst)
        self._most = most
        self._buckets: dict[Hashable, tuple[float, float]] = {}  # the tokens in each, and when

    def take(self, key: Hashable, now: float) -> float:
        """Take one token.

        Args:
            key: the bucket.
            now: seconds on any clock; one that was put back stands still until it is there again.

        Returns:
            0.0 if there was one; else the seconds after which there is, if nobody else takes it.
        """
        if not self._rate:
            return 0.0
        left, since = self._buckets.get(key, (self._burst, now))
        at = max(now, since)
        tokens = self._filled(left, at - since)
        if tokens < 1.0 - DUST:
            wait = (at - now) + (1.0 - tokens) / self._rate
            # A clock that shows large numbers has coarse steps.
            while self._filled(left, (now + wait) - since) < 1.0 - DUST:
                wait += math.ulp(now + wait)
            return wait
        if len(self._buckets) >= self._most and key not in self._buckets:
            self._forget(at)
        self._buckets[key] = (tokens - 1.0, at)
        return 0.0

    def _filled(self, tokens: float, seconds: float) -> float:
        return min(self._burst, tokens + seconds * self._rate)

    def _forget(self, now: float) -> None:
        """Make room for many, so that it is rarely done."""
        held = {key: self._filled(tokens, now - since) for key, (tokens, since) in self._buckets.items()}
        lacking = sorted((key for key in held if held[key] < self._burst), key=held.__getitem__)
        self._buckets = {key: self._buckets[key] for key in lacking[: self._most // 2]}
