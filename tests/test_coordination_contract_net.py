"""The contract net: who is awarded a task, who is told that it is not, and what follows when the winner fails."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grami_actors import Actor, ActorSystem, AgentExecutionFailed, AgentUnavailable, DeadlineExceeded, Reject
from grami_actors.coordination.contract_net import Announce, Award, Bid, Bidder, Refuse, contract, lowest
from tests.conftest import Gate, running, turns_until

Work = Callable[[Actor], Awaitable[Any]]


class Doer(Actor):
    """An actor that does what it is told: its message is a function of it."""

    async def on_receive(self, message: Work) -> Any:
        return await message(self)


class Shop:
    """What happened, in order, and what each bidder is to do."""

    def __init__(self, **behaviour: str) -> None:
        self.behaviour = behaviour
        self.log: list[tuple[str, str]] = []
        self.contracts: list[tuple[str, int]] = []
        self.gate = Gate()

    def did(self, what: str) -> list[str]:
        return [name for said, name in self.log if said == what]


class Worker(Bidder):
    """Bids its price, then does as the shop says."""

    def __init__(self, shop: Shop, price: Any) -> None:
        self.shop = shop
        self.price = price

    async def bid(self, call: Announce) -> Any:
        behaviour = self.shop.behaviour.get(self.name, "")
        if behaviour == "fails to bid":
            raise RuntimeError("no bid")
        if behaviour == "refuses to bid":
            raise Reject("RATE_LIMITED", "too busy")
        if behaviour == "bids late":
            await self.shop.gate.wait_async()
        return self.price

    async def perform(self, award: Award) -> Any:
        self.shop.log.append(("performs", self.name))
        self.shop.contracts.append((award.contract, award.attempt))
        behaviour = self.shop.behaviour.get(self.name, "")
        if behaviour == "fails":
            raise RuntimeError("broken")
        if behaviour == "rejects":
            raise Reject("AGENT_EXECUTION_FAILED", "not me")
        if behaviour == "hangs":
            await self.shop.gate.wait_async()
        return f"{award.task} by {self.name}"

    def refused(self, refuse: Refuse) -> None:
        self.shop.log.append(("refused", self.name))


async def staff(system: ActorSystem, shop: Shop, **prices: Any) -> None:
    await system.spawn(Doer, name="doer")
    for name, price in prices.items():
        await system.spawn(Worker, shop, price, name=name)


def tender(bidders: Any, task: Any = "task", **options: Any) -> Work:
    return lambda by: contract(by, task, bidders, **options)


async def test_the_lowest_bid_gets_the_task_and_the_others_are_refused_once_it_is_done() -> None:
    async with running() as system:
        shop = Shop()
        await staff(system, shop, ann=3, bob=1, eve=2)
        assert await system.ask("doer", tender(["ann", "bob", "eve"])) == "task by bob"
        await turns_until(lambda: len(shop.log) == 3)
        assert shop.log == [("performs", "bob"), ("refused", "ann"), ("refused", "eve")]


async def test_of_equal_bids_the_one_named_first_wins() -> None:
    async with running() as system:
        await staff(system, Shop(), ann=1, bob=1)
        assert await system.ask("doer", tender(["bob", "ann"])) == "task by bob"


async def test_a_topic_has_its_subscribers_bid() -> None:
    async with running() as system:
        await staff(system, Shop(), ann=2, bob=1)
        for name in ("ann", "bob"):
            system.subscribe("painters.indoor", system.table.cells[name])
        assert await system.ask("doer", tender("painters.indoor")) == "task by bob"
        with pytest.raises(AgentUnavailable, match="nobody was asked"):
            await system.ask("doer", tender("painters.outdoor"))


async def test_who_refuses_fails_is_missing_or_does_not_want_the_task_is_left_out() -> None:
    async with running() as system:
        shop = Shop(ann="fails to bid", bob="refuses to bid")
        await staff(system, shop, ann=1, bob=1, eve=None, joe=9)
        assert await system.ask("doer", tender(["ann", "bob", "eve", "nobody", "joe"])) == "task by joe"


async def test_a_bidder_that_asks_the_announcer_back_is_told_of_the_circle_while_others_think() -> None:
    class Curious(Bidder):
        async def bid(self, call: Announce) -> Any:
            try:
                await self.ask("doer", None)
            finally:
                shop.gate.opened.set()  # only now the one that is named before has its bid

    async with running() as system:
        shop = Shop(ann="bids late")
        await staff(system, shop, ann=1)
        await system.spawn(Curious, name="curious")
        assert await system.ask("doer", tender(["ann", "curious"], bid_within=20.0)) == "task by ann"


async def test_a_late_bid_counts_for_nothing_and_its_bidder_is_told() -> None:
    async with running() as system:
        shop = Shop(ann="bids late")
        await staff(system, shop, ann=1, bob=2)
        assert await system.ask("doer", tender(["ann", "bob"], bid_within=0.02)) == "task by bob"
        shop.gate.opened.set()
        await turns_until(lambda: shop.did("refused") == ["ann"])
        assert shop.did("performs") == ["bob"]


async def test_when_nobody_bids_the_error_says_what_each_of_them_answered() -> None:
    async with running() as system:
        await staff(system, Shop(ann="refuses to bid"), ann=1, bob=None, eve="cheap")
        with pytest.raises(AgentUnavailable) as refused:
            await system.ask("doer", tender(["ann", "bob", "eve", "nobody"]))
        for words in ("ann: RATE_LIMITED, too busy", "bob: does not bid", "eve: bids 'cheap'", "nobody: DESTINATION"):
            assert words in refused.value.message


@pytest.mark.parametrize("behaviour", ["fails", "rejects"])
async def test_when_the_winner_fails_the_next_is_awarded_the_same_contract(behaviour: str) -> None:
    async with running() as system:
        shop = Shop(ann=behaviour)
        await staff(system, shop, ann=1, bob=2, eve=3)
        assert await system.ask("doer", tender(["ann", "bob", "eve"])) == "task by bob"
        assert shop.did("performs") == ["ann", "bob"]
        (first, one), (second, two) = shop.contracts
        assert first == second
        assert (one, two) == (1, 2)


async def test_when_the_winner_is_killed_the_next_is_awarded() -> None:
    async with running() as system:
        shop = Shop(ann="hangs")
        await staff(system, shop, ann=1, bob=2)
        asked = asyncio.create_task(system.ask("doer", tender(["ann", "bob"])))
        await shop.gate.until_entered()
        system.kill("ann")
        assert await asked == "task by bob"


async def test_when_the_winner_is_stopped_the_next_is_awarded() -> None:
    async with running() as system:
        shop = Shop(ann="hangs")
        await staff(system, shop, ann=1, bob=2)
        asked = asyncio.create_task(system.ask("doer", tender(["ann", "bob"])))
        await shop.gate.until_entered()
        assert await system.stop("ann", grace=0)
        assert await asked == "task by bob"


async def test_when_the_winner_is_too_slow_it_is_cancelled_and_the_next_is_awarded() -> None:
    async with running() as system:
        shop = Shop(ann="hangs")
        await staff(system, shop, ann=1, bob=2)
        assert await system.ask("doer", tender(["ann", "bob"], perform_within=0.02)) == "task by bob"
        await turns_until(lambda: shop.did("refused") == ["ann"])


async def test_when_nobody_is_left_the_error_names_all_attempts() -> None:
    async with running() as system:
        await staff(system, Shop(ann="fails", bob="rejects", eve="hangs"), ann=1, bob=2, eve=3)
        with pytest.raises(AgentExecutionFailed) as failed:
            await system.ask("doer", tender(["ann", "bob", "eve"], perform_within=0.02))
        for words in ("ann: AGENT_EXECUTION_FAILED", "broken", "bob:", "not me", "eve: DEADLINE_EXCEEDED"):
            assert words in failed.value.message
        assert isinstance(failed.value.__cause__, DeadlineExceeded)


async def test_choose_bounds_the_attempts_and_orders_them() -> None:
    async with running() as system:
        shop = Shop(eve="fails", bob="fails")
        await staff(system, shop, ann=1, bob=2, eve=3)
        with pytest.raises(AgentExecutionFailed):
            await system.ask(
                "doer", tender(["ann", "bob", "eve"], choose=lambda bids: list(reversed(lowest(bids)))[:2])
            )
        assert shop.did("performs") == ["eve", "bob"]


async def test_the_deadline_of_the_request_ends_a_contract_and_the_bidders_are_told() -> None:
    async with running() as system:
        shop = Shop(ann="hangs")
        await staff(system, shop, ann=1, bob=2)
        with pytest.raises(DeadlineExceeded):
            await system.ask("doer", tender(["ann", "bob"]), timeout=0.05)
        await turns_until(lambda: sorted(shop.did("refused")) == ["ann", "bob"])
        assert shop.did("performs") == ["ann"]


async def test_when_the_announcer_is_killed_the_winner_is_cancelled_and_all_bidders_are_told() -> None:
    async with running() as system:
        shop = Shop(ann="hangs")
        await staff(system, shop, ann=1, bob=2)
        asked = asyncio.create_task(system.ask("doer", tender(["ann", "bob"])))
        await shop.gate.until_entered()
        system.kill("doer")
        with pytest.raises(Exception, match="died"):
            await asked
        await turns_until(lambda: sorted(shop.did("refused")) == ["ann", "bob"])


async def test_when_the_announcer_is_killed_nobody_goes_on_to_think_of_a_bid() -> None:
    async with running() as system:
        shop = Shop(ann="bids late", bob="bids late")
        await staff(system, shop, ann=1, bob=2)
        asked = asyncio.create_task(system.ask("doer", tender(["ann", "bob"], bid_within=10.0)))
        await turns_until(lambda: all(system.table.cells[name].working for name in ("ann", "bob")))
        system.kill("doer")
        with pytest.raises(Exception, match="died"):
            await asked
        await turns_until(lambda: len(shop.did("refused")) == 2)


async def test_an_award_that_comes_twice_is_performed_once_also_while_the_first_is_at_work() -> None:
    class Eager(Worker, concurrency=2):
        pass

    async with running() as system:
        shop = Shop(ann="hangs")
        await system.spawn(Eager, shop, 1, name="ann")
        award = Award("c1", "task")
        both = asyncio.gather(system.ask("ann", award), system.ask("ann", award))
        await shop.gate.until_entered()
        shop.gate.opened.set()
        assert await both == ["task by ann", "task by ann"]
        assert await system.ask("ann", award) == "task by ann"
        assert await system.ask("ann", Award("c1", "task", attempt=2)) == "task by ann"
        assert shop.contracts == [("c1", 1), ("c1", 2)]


async def test_a_bidder_may_have_plain_methods() -> None:
    class Plain(Bidder):
        def bid(self, call: Announce) -> float:
            return 1.0

        def perform(self, award: Award) -> Any:
            return award.task * 2

    async with running() as system:
        await system.spawn(Doer, name="doer")
        await system.spawn(Plain, name="plain")
        assert await system.ask("doer", tender(["plain", "doer"], 21)) == 42


@pytest.mark.slow
@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.integers(),
            st.sampled_from([10**400, math.nan, math.inf, -math.inf]),
            st.floats(),
            st.none(),
            st.text(),
            st.booleans(),
        )
    )
)
def test_lowest_always_orders_exactly_the_finite_numbers_and_keeps_the_order_of_equals(offers: list[Any]) -> None:
    bids = [Bid(str(number), offer) for number, offer in enumerate(offers)]
    found = lowest(bids)
    assert {bid.bidder for bid in found} == {
        bid.bidder
        for bid in bids
        if isinstance(bid.offer, int) or (isinstance(bid.offer, float) and math.isfinite(bid.offer))
    }
    assert list(found) == sorted(found, key=lambda bid: (bid.offer, int(bid.bidder)))


BEHAVIOURS = ("", "", "fails to bid", "refuses to bid", "bids late", "fails", "rejects", "hangs")


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(BEHAVIOURS)), min_size=1, max_size=4))
def test_a_contract_always_ends_with_the_best_that_can_do_it_and_one_at_a_time(
    workers: list[tuple[int, str]],
) -> None:
    async def play() -> None:
        async with running() as system:
            names = [f"w{number}" for number in range(len(workers))]
            shop = Shop(**{name: behaviour for name, (_, behaviour) in zip(names, workers, strict=True)})
            await staff(system, shop, **{name: price for name, (price, _) in zip(names, workers, strict=True)})
            order = sorted(
                (price, name) for name, (price, behaviour) in zip(names, workers, strict=True) if "bid" not in behaviour
            )
            able = [name for _, name in order if not shop.behaviour[name]]
            work = tender(names, bid_within=0.02, perform_within=0.02)
            if able:
                assert await system.ask("doer", work) == f"task by {able[0]}"
            else:
                with pytest.raises((AgentUnavailable, AgentExecutionFailed)):
                    await system.ask("doer", work)
            tried = [name for _, name in order]
            assert shop.did("performs") == (tried[: tried.index(able[0]) + 1] if able else tried)
            expected = sorted(set(names) - set(able[:1]))
            await turns_until(lambda: sorted(shop.did("refused")) == expected)
            shop.gate.opened.set()

    asyncio.run(play())
