"""Telling a topic what happened, whoever's request made it happen. Floor 12."""

from __future__ import annotations

from grami_actors.actor import Actor
from grami_actors.errors import PermissionDenied
from grami_actors.future import current, handled
from grami_actors.messages import Envelope, Message


def tell_topic(by: Actor, topic: str, news: Message) -> None:
    """Publish outside of the request at hand: its budget, deadline and permissions are no matter of the subscribers.

    What no rule allows ``by`` to publish becomes a dead letter: what happened, happened.
    """
    here = handled()
    # The span is the same, so that whoever reads the history sees what the news came of.
    token = current.set(Envelope(None, receiver=by._cell, span="" if here is None else here.trace()))
    try:
        by.publish(topic, news)
    except PermissionDenied as denied:
        by._cell.bury(Envelope(news, None, by.name), "rejected", denied.message)
    finally:
        current.reset(token)
