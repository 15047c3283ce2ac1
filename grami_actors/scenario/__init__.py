"""Scenario scripts: play real clients against a swarm, and check what comes back. Floor 16.

A scenario file holds a ``swarm`` and async functions marked with :func:`scenario`::

    @scenario
    async def a_post_for_instagram(play: Play) -> None:
        alice = await play.client("alice")
        post = await alice.request("content_request", platform="instagram")
        play.check("the post has hashtags", post["hashtags"])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grami_actors.scenario.clients import PlayClient
    from grami_actors.scenario.play import Play, scenario

__all__ = ["Play", "PlayClient", "scenario"]

_HOMES = {"Play": "play", "PlayClient": "clients", "scenario": "play"}


def __getattr__(name: str) -> Any:
    # The plugin for pytest is in this folder, and whoever has pytest and this package loads it: it is to cost nothing.
    if name in _HOMES:
        value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
