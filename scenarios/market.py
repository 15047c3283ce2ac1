"""A market: ten thousand traders, one exchange, one hour, in less than a minute.

Play it:       grami run scenarios/market.py
Simulate it:   grami run scenarios/market.py an_hour --simulate --seeds 2

Every trader is an agent with a temper, a timer and dice of its own, and an opinion of what a share is worth, which
news changes. The exchange has an order book with priority by price and time. What an order may cost, or the shares
that it offers, goes to the exchange with it, and comes back as fills, or as what was left. So at the end, when all is
settled, there must be exactly as many shares and coins as there were in the beginning.

An hour cannot be played in a second, but the same market with fifty traders in a hurry can: that is ``a_moment``.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import statistics
import sys
from typing import Literal

import msgspec

from grami_actors import Agent, Message, Swarm, handles
from grami_actors.scenario import Play, scenario

NEWS, BELL = "market.news", "market.bell"

OPENING = 100
"""Coins: the first price, and about what everybody thinks that a share is worth."""

COINS, SHARES = 2_000, 20
"""What every trader brings."""


class Open(Message):
    """Open the market for so many traders; each looks at it about twelve times in so many seconds."""

    traders: int
    seconds: float


class Close(Message):
    """Close the market and settle; answered with the books, when every trader has sent its own."""


class Beat(Message):
    """A trader looks at the market."""


class News(Message):
    """A share is worth so many times what it was."""

    factor: float


class Bell(Message):
    """The market is closed."""


class Order(Message):
    """Buy or sell up to so many shares at no worse a price; what was left of the trader's last order comes back."""

    trader: str
    number: int
    side: Literal["buy", "sell"]
    price: int
    shares: int


class Taken(Message):
    """The answer to an order: whether it was taken, and the price of a share now."""

    taken: bool
    price: int


class Filled(Message):
    """Shares and coins for a trader: of a trade, or of what was left of an order."""

    shares: int = 0
    coins: int = 0


class Account(Message):
    """What a trader has in the end, and how many orders it gave, of which so many were answered."""

    coins: int
    shares: int
    ordered: int
    answered: int


class Tape(msgspec.Struct):
    """The price of each trade with its time, and how often an order was left in the book that could have been met."""

    trades: list[tuple[float, int]]
    unmet: int = 0


class Books(msgspec.Struct):
    """What came of it: every account, and the tape of the exchange."""

    accounts: list[Account]
    tape: Tape


class Standing(msgspec.Struct, order=True):
    """An order in the book, sorted by rank and number."""

    rank: int
    number: int
    order: Order
    left: int


class Exchange(Agent, mailbox=100_000):
    """Matches orders: the best price first, of equals the earliest; at the price of the one that was there."""

    def on_start(self) -> None:
        """Begin with an empty book."""
        self._tape = Tape([])
        self._number, self._last, self._open = 0, OPENING, True
        self._standing: dict[str, Standing] = {}
        self._sides: dict[str, list[Standing]] = {"buy": [], "sell": []}

    @handles(Order)
    def take(self, order: Order) -> None:
        """Match it, keep what is left in the book, and answer."""
        self._give_back(order.trader)
        self._number += 1
        rank = -order.price if order.side == "buy" else order.price
        standing = self._standing[order.trader] = Standing(rank, self._number, order, order.shares)
        if self._open:
            self._match(standing)
        if self._open and standing.left:
            heapq.heappush(self._sides[order.side], standing)
        else:
            self._give_back(order.trader)
        buy, sell = self._best("buy"), self._best("sell")
        self._tape.unmet += buy is not None and sell is not None and buy.order.price >= sell.order.price
        # The last price, unless somebody would pay more by now, or ask for less.
        bid, ask = buy.order.price if buy else 0, sell.order.price if sell else sys.maxsize
        self.tell(order.trader, Taken(self._open, min(max(self._last, bid), ask)))

    def _best(self, side: str) -> Standing | None:
        standing = self._sides[side]
        while standing and not standing[0].left:
            heapq.heappop(standing)
        return standing[0] if standing else None

    def _match(self, new: Standing) -> None:
        buys = new.order.side == "buy"
        while new.left and (best := self._best("sell" if buys else "buy")) is not None and new.rank <= -best.rank:
            self._trade(*((new, best) if buys else (best, new)), min(new.left, best.left), best.order.price)

    def _trade(self, buy: Standing, sell: Standing, shares: int, price: int) -> None:
        for each in (buy, sell):
            each.left -= shares
        self._last = price
        self._tape.trades.append((self.now(), price))
        self.tell(buy.order.trader, Filled(shares, (buy.order.price - price) * shares))
        self.tell(sell.order.trader, Filled(0, price * shares))

    def _give_back(self, trader: str) -> None:
        """What is left of a trader's order is its own again."""
        standing = self._standing.pop(trader, None)
        if standing is not None and standing.left:
            left, standing.left = standing.left, 0
            buys = standing.order.side == "buy"
            self.tell(trader, Filled(coins=left * standing.order.price) if buys else Filled(shares=left))

    @handles(Close)
    def close(self, _: Close) -> Tape:
        """Take no more orders, and give everything back."""
        self._open = False
        for trader in tuple(self._standing):
            self._give_back(trader)
        self.publish(BELL, Bell())
        return self._tape


class Trader(Agent):
    """Buys what it thinks is cheap and sells what it thinks is dear, in its own time.

    Args:
        pace: seconds between two looks at the market, more or less.
    """

    def __init__(self, pace: float) -> None:
        super().__init__()
        self._pace = pace

    def on_start(self) -> None:
        """Throw the dice for its temper."""
        self._worth = OPENING * self.random.uniform(0.8, 1.2)
        self._margin = self.random.uniform(0.0, 0.05)  # what it wants to earn
        self._herd = self.random.uniform(0.0, 0.2)  # how much it follows the others
        self._nerve = self.random.uniform(0.5, 1.5)  # how much it believes the news
        self._coins, self._shares = COINS, SHARES
        self._price, self._open = OPENING, True
        self._ordered = self._answered = 0
        self.subscribe(NEWS)
        self.subscribe(BELL)
        self.every(self._pace * self.random.uniform(0.5, 1.5), Beat())

    @handles(Beat)
    def look(self, _: Beat) -> None:
        """Order, if the price is far from what it thinks that a share is worth."""
        self._worth += self._herd * (self._price - self._worth) + self.random.uniform(-2.0, 2.0)
        cheap, dear = int(self._worth * (1.0 - self._margin)), int(self._worth * (1.0 + self._margin)) + 1
        if self._price < cheap and self._coins >= cheap:
            shares = self.random.randint(1, min(5, self._coins // cheap))
            self._coins -= shares * cheap
            self._order("buy", cheap, shares)
        elif self._price > dear and self._shares:
            shares = self.random.randint(1, min(5, self._shares))
            self._shares -= shares
            self._order("sell", dear, shares)

    def _order(self, side: Literal["buy", "sell"], price: int, shares: int) -> None:
        self._ordered += 1
        self.tell("exchange", Order(self.name, self._ordered, side, price, shares))

    @handles(News)
    def hear(self, news: News) -> None:
        """Change its mind, and look at the market soon, if it is of the nervous kind."""
        self._worth *= 1.0 + (news.factor - 1.0) * self._nerve
        if self._nerve > 1.0:
            self.after(self._pace * self.random.random() * 0.1, Beat(), key="news")

    @handles(Filled)
    def fill(self, filled: Filled) -> None:
        """Put away what it got."""
        self._coins += filled.coins
        self._shares += filled.shares

    @handles(Taken)
    def taken(self, taken: Taken) -> None:
        """Know the price; and when the market is closed, whether all is settled."""
        self._answered += 1
        self._price = taken.price
        self._settle()

    @handles(Bell)
    def bell(self, _: Bell) -> None:
        """Go home when the last order is answered."""
        self._open = False
        self.cancel_timer("timer-1")
        self.cancel_timer("news")
        self._settle()

    def _settle(self) -> None:
        if not self._open and self._ordered == self._answered:
            self.tell("floor", Account(self._coins, self._shares, self._ordered, self._answered))


class Floor(Agent, mailbox=100_000, concurrency=2):
    """Where the traders are."""

    def on_start(self) -> None:
        """Nobody is there yet."""
        self._traders = 0
        self._accounts: list[Account] = []
        self._settled = asyncio.Event()

    @handles(Open)
    async def open(self, opening: Open) -> None:
        """Let the traders in."""
        self._traders = opening.traders
        for _ in range(opening.traders):
            await self.spawn(Trader, opening.seconds / 12)

    @handles(News)
    def read_out(self, news: News) -> None:
        """Let everybody hear the news."""
        self.publish(NEWS, news)

    @handles(Account)
    def account(self, account: Account) -> None:
        """Count who has settled."""
        self._accounts.append(account)
        if len(self._accounts) >= self._traders:
            self._settled.set()

    @handles(Close)
    async def close(self, close: Close) -> Books:
        """Ring the bell, and wait until everybody has settled."""
        tape = await self.ask("exchange", close)
        await self._settled.wait()
        return Books(self._accounts, tape)


swarm = Swarm(agents=[Floor, Exchange])


@scenario
async def a_moment(play: Play) -> None:
    """Fifty traders in a hurry."""
    await _market(play, traders=50, seconds=1.0)


@scenario(live=False, seeds=2)
async def an_hour(play: Play) -> None:
    """Ten thousand traders, in virtual time only: nobody would wait for it."""
    await _market(play, traders=10_000, seconds=3600.0)


async def _market(play: Play, *, traders: int, seconds: float) -> None:
    """Open, good news, bad news, close; then see that the books are right."""
    paper = await play.client("paper")
    await play.system.ask("floor", Open(traders, seconds))
    began = play.now()
    times = []
    for share, factor in ((0.4, 1.3), (0.7, 0.6)):
        await play.at(began + share * seconds)
        times.append(play.system.now())
        await paper.request(News(factor))
    await play.at(began + seconds)
    books = await play.system.ask("floor", Close(), timeout=30.0)
    _check_accounts(play, books.accounts, traders)
    _check_prices(play, books.tape, *times)


def _check_accounts(play: Play, accounts: list[Account], traders: int) -> None:
    coins, shares = (sum(getattr(each, what) for each in accounts) for what in ("coins", "shares"))
    play.check("everybody has settled, once", len(accounts) == traders, str(len(accounts)))
    play.check("no coin was made or lost", coins == traders * COINS, str(coins))
    play.check("no share was made or lost", shares == traders * SHARES, str(shares))
    play.check("nobody owes anything", all(each.coins >= 0 and each.shares >= 0 for each in accounts))
    play.check("every order was answered", all(each.ordered == each.answered for each in accounts))


def _check_prices(play: Play, tape: Tape, good: float, bad: float) -> None:
    prices = [price for _, price in tape.trades]
    play.require("there were trades", len(prices) > 20, str(len(prices)))
    play.check("no two orders were left that could have met", not tape.unmet, str(tape.unmet))
    play.check(
        "the price stayed sane",
        min(prices) > OPENING / 3 and max(prices) < OPENING * 2,
        str((min(prices), max(prices))),
    )
    calm, glad, sad = (
        statistics.mean(price for at, price in tape.trades if since <= at < until)
        for since, until in ((0.0, good), (good, bad), (bad, math.inf))
    )
    play.check("good news raised it", glad > calm, f"{calm:.1f}, then {glad:.1f}")
    play.check("bad news lowered it", sad < glad, f"{glad:.1f}, then {sad:.1f}")
