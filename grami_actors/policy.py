"""What is decided for all connections together: who somebody is, what they may do, and how often. Floor 4."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Annotated

import msgspec

from grami_actors.buckets import Buckets
from grami_actors.credentials import Authority
from grami_actors.errors import ErrorCode, LimitReached, PermissionDenied
from grami_actors.permissions import Permissions, globs
from grami_actors.principals import EVERYTHING, Principal


class Rate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often one principal may send messages of a type.

    Attributes:
        per_second: messages a second in the long run.
        burst: messages at once.
        principals: names of principals that it is for; globs, as in a rule.
        types: message types that it is for, and ``publish``; globs too.
    """

    per_second: Annotated[float, msgspec.Meta(gt=0)]
    burst: Annotated[float, msgspec.Meta(ge=1)] = 10.0
    principals: tuple[str, ...] = ("*",)
    types: tuple[str, ...] = ("*",)


class Policy:
    """Who, what and how often.

    Args:
        authority: knows the credentials.
        permissions: knows the rules.
        rates: limit messages; each holds on its own, for each principal and type on its own.
        wall: seconds since the epoch, which is what tokens expire by.
    """

    def __init__(
        self,
        authority: Authority,
        permissions: Permissions,
        rates: tuple[Rate, ...] = (),
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.permissions = permissions
        self.authority = authority
        self._rates = [
            (rate, globs(rate.principals), globs(rate.types), Buckets(rate.per_second, rate.burst)) for rate in rates
        ]
        self._wall = wall

    def lifetime(self, principal: Principal) -> float:
        """Seconds until its credential expires."""
        return principal.expires_at - self._wall()

    def check(self, principal: Principal, message_type: str, now: float) -> None:
        """Whether it may send a message of this type, to anybody, now.

        Raises:
            PermissionDenied: no rule allows it, whether there is such a type or not.
            LimitReached: RATE_LIMITED; it says when the next one may come.
        """
        if not self.permissions.may_send_type(principal, message_type):
            raise PermissionDenied(f"{principal.name} may not send messages of the type {message_type!r}")
        self.throttle(principal, message_type, now)

    def throttle(self, principal: Principal, message_type: str, now: float) -> None:
        """Whether it may send one more message of this type now. Raises LimitReached, as above."""
        if EVERYTHING in principal.scopes:
            return
        for rate, principals, types, buckets in self._rates:
            if principals(principal.name) and types(message_type):
                wait = buckets.take((principal.name, message_type), now)
                if wait:
                    raise LimitReached(
                        f"{principal.name} may send {rate.per_second:g} messages of the type {message_type!r} a second",
                        code=ErrorCode.RATE_LIMITED,
                        limit="rates",
                        retry_after_ms=math.ceil(wait * 1000),
                    )
