"""What a simulated run was, as one number that is the same wherever it is run again. Floor 14."""

from __future__ import annotations

import hashlib
import re

import msgspec

from grami_actors.cell import Cell
from grami_actors.history import named
from grami_actors.messages import Envelope, type_name
from grami_actors.router import Forward

_DRAWN = re.compile(rb"(?=[0-9]*[a-f])[0-9a-f]{8,}")
"""Ids: of contracts, sagas, requests, and the beginning of a trace's as the epoch of events."""

_ENCODE = msgspec.json.Encoder(enc_hook=named, order="deterministic").encode


class Witness:
    """Sees every message that is taken, in order; says of two runs whether they were the same.

    Attributes:
        count: the messages that it saw.
    """

    def __init__(self) -> None:
        self.count = 0
        self._hash = hashlib.blake2b(digest_size=16)
        self._order = hashlib.blake2b(digest_size=16)

    def __call__(self, cell: Cell, envelope: Envelope) -> None:
        """See a message that an actor takes."""
        message = envelope.message
        if type(message) is Forward:
            message = message.envelope.message
        self.count += 1
        try:
            content = _ENCODE(message)
        except (TypeError, ValueError, RecursionError):  # what is no data is known by its type
            content = b""
        told = f"{cell.name} {envelope.sender} {type_name(type(message))} ".encode()
        self._hash.update(told)
        self._hash.update(content)
        self._order.update(told)
        self._order.update(_DRAWN.sub(b"", content))

    @property
    def order(self) -> str:
        """Who was told what, in which order; not when, and without the ids that another seed draws in another way."""
        return self._order.hexdigest()

    def digest(self, *more: object) -> str:
        """The same, and more: when it ended, and how."""
        whole = self._hash.copy()
        whole.update(repr(more).encode())
        return whole.hexdigest()
