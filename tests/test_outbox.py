"""What waits to be written to one client."""

from __future__ import annotations

import asyncio

from grami_actors.gateway.outbox import Outbox


async def test_nobody_waits_for_an_outbox_that_was_given_up() -> None:
    outbox = Outbox(10)
    outbox.add([b"x" * 11, b"y"], 0.0)
    before = asyncio.ensure_future(outbox.room())
    await asyncio.sleep(0)
    outbox.give_up()
    async with asyncio.timeout(1):
        await before
        await outbox.room()
        await outbox.drained()
    assert (outbox.size, outbox.congested, outbox.next()) == (0, False, None)


def test_it_is_congested_exactly_while_more_waits_than_it_may() -> None:
    outbox = Outbox(10)
    outbox.add([b"x" * 10], 0.0)
    assert not outbox.congested
    outbox.add([b"y"], 0.0)
    assert outbox.congested
    outbox.written(b"x" * 10, 1.0)
    assert not outbox.congested
