"""The control messages of docs/protocol.md, section 4, and what reads them. Floor 2."""

from __future__ import annotations

from typing import Any

from grami_actors.encoding import ENCODINGS, Encoding
from grami_actors.frames import (
    ADMIN_TYPES,
    JOB_CONTROLS,
    Auth,
    Cancel,
    Header,
    Hello,
    OnlyId,
    Publish,
    Subscribe,
    Unsubscribe,
)

_FIELDS: dict[str, Any] = {
    "describe": OnlyId,
    "subscribe": Subscribe,
    "unsubscribe": Unsubscribe,
    "publish": Publish,
    **JOB_CONTROLS,
}
"""Control messages that the owner of a connection answers, and their fields; of those for administrators it knows
more."""

OWNED = ADMIN_TYPES.union(_FIELDS)

NEW_JOBS = frozenset({"job.submit", "job.retry"})
"""Those that begin new work."""


class Decoders:
    """What reads the frames that a connection itself understands, in one encoding."""

    def __init__(self, encoding: Encoding) -> None:
        self.header = encoding.decoder(Header)
        self.text = encoding.decoder(str)
        self.only_id = encoding.decoder(OnlyId)
        self.hello = encoding.decoder(Hello)
        self.auth = encoding.decoder(Auth)
        self.cancel = encoding.decoder(Cancel)
        self.anything = encoding.decoder(dict[str, Any])
        self.controls = {kind: encoding.decoder(fields) for kind, fields in _FIELDS.items()}


DECODERS = {encoding: Decoders(encoding) for encoding in ENCODINGS.values()}
