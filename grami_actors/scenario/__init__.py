"""Scenario scripts: play real clients against a swarm, and check what comes back. Floor 14.

A scenario file holds a ``swarm`` and async functions marked with :func:`scenario`::

    @scenario
    async def a_post_for_instagram(play: Play) -> None:
        alice = await play.client("alice")
        post = await alice.request("content_request", platform="instagram")
        play.check("the post has hashtags", post["hashtags"])
"""

from __future__ import annotations

from grami_actors.scenario.play import Play, PlayClient, scenario

__all__ = ["Play", "PlayClient", "scenario"]
