"""The loop lane shares one thread fairly."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from grami_actors.actor import Actor
from grami_actors.lanes.loop import BATCH
from tests.conftest import running


class Busy(Actor):
    mailbox = 1_000_000

    def __init__(self, handled: list[int]) -> None:
        super().__init__()
        self.handled = handled

    def on_receive(self, message: int) -> None:
        self.handled.append(message)


class AsyncBusy(Busy):
    """A coroutine that waits for nothing: where tasks begin at once, its messages take no turn of the loop."""

    async def on_receive(self, message: int) -> None:
        super().on_receive(message)


class Asked(Actor):
    def __init__(self, handled: list[int]) -> None:
        super().__init__()
        self.handled = handled

    def on_receive(self, message: Any) -> int:
        return len(self.handled)


@pytest.mark.parametrize("kind", [Busy, AsyncBusy])
async def test_an_actor_with_much_to_do_keeps_another_waiting_for_a_batch_and_no_more(kind: type[Busy]) -> None:
    handled: list[int] = []
    async with running() as system:
        busy, asked = await system.spawn(kind, handled), await system.spawn(Asked, handled)
        for number in range(20_000):
            busy.tell(number)
        for _ in range(3):
            await asyncio.sleep(0)
            before = len(handled)
            assert await system.ask(asked, "how many?") <= before + 2 * BATCH
            assert len(system._lanes["loop"]._ready) <= 2, "each actor is in the queue once"
        await system.drain(busy)
        assert handled == list(range(20_000))
