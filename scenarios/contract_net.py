"""A courier office: parcels are announced, couriers bid, and the one who won may die with the parcel in its hands.

Play it:       grami run scenarios/contract_net.py
Simulate it:   grami run scenarios/contract_net.py --simulate --seeds 1000
With faults:   grami run scenarios/contract_net.py whatever_happens --simulate --faults crash

The contract net (R. G. Smith, 1980) gives a task to whoever bids best, and to the next when that one fails. A courier
that dies may have delivered before it died, and nobody can know: so whoever delivers first writes it down in a ledger,
under the contract, as one would in a table with a unique column. The next courier reads there that nothing is left
to do. That, and not the pattern alone, is what makes a parcel arrive once.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from grami_actors import (
    Agent,
    AgentExecutionFailed,
    AgentUnavailable,
    GramiError,
    Message,
    RestartPolicy,
    Swarm,
    handles,
)
from grami_actors.coordination import Announce, Award, Bidder, contract
from grami_actors.scenario import Play, PlayClient, scenario

COURIERS = ("ann", "bob", "cyd")

TOUGH = RestartPolicy(intensity=20, period=10.0, shortest=0.01, longest=0.1, pause=1.0)
"""Couriers die often here, and are back soon."""

LEDGER: dict[str, str] = {}
"""Who delivered, by contract: the database of the office, which outlives every courier."""

DELIVERIES: list[str] = []
"""The contracts, as the parcels arrive: what the people behind the doors see."""


class Send(Message):
    """A customer wants a parcel to be brought to a house number."""

    house: int
    kilos: int = 1


class Parcel(msgspec.Struct):
    """The task of a contract."""

    house: int
    kilos: int


class Receipt(msgspec.Struct):
    """What the customer gets: who brought it, under which contract, and who was the last to be sent."""

    contract: str
    delivered_by: str
    told_by: str


class Office(Agent, concurrency=8):
    """Announces each parcel to the couriers."""

    @handles(Send)
    async def send_out(self, send: Send) -> Any:
        """The receipt of the courier that brought it."""
        task = Parcel(send.house, send.kilos)
        return await contract(self, task, COURIERS, bid_within=0.5, perform_within=1.0)


class Courier(Bidder, restart=TOUGH):
    """Bids the way from its home to the house, and carries up to 20 kilos."""

    home = 0

    def bid(self, call: Announce) -> int | None:
        """The way in house numbers; nothing for what is too heavy."""
        return None if call.task.kilos > 20 else abs(call.task.house - self.home)

    async def perform(self, award: Award) -> Receipt:
        """Go there, look whether somebody else was there before, and hand the parcel over."""
        await asyncio.sleep(0.01)
        if award.contract not in LEDGER:
            # No await between the look and the entry: the unique column of a table does the same.
            LEDGER[award.contract] = self.name
            DELIVERIES.append(award.contract)
        return Receipt(award.contract, LEDGER[award.contract], self.name)


class Ann(Courier):
    """Lives at number 1."""

    home = 1


class Bob(Courier):
    """Lives at number 5."""

    home = 5


class Cyd(Courier):
    """Lives at number 9."""

    home = 9


swarm = Swarm(agents=[Office, Ann, Bob, Cyd])


@scenario
async def the_nearest_courier_wins(play: Play) -> None:
    """Nothing goes wrong: the best bid wins, and the others are told that it is over."""
    customer = await play.client("customer")
    receipt = await customer.request(Send(house=6))
    play.check("bob, one house away, was sent", receipt["delivered_by"] == receipt["told_by"] == "bob", str(receipt))
    for name in ("ann", "cyd"):
        await play.expect(f"office -> {name}: contract.refuse", within=1.0)
    play.check("who won was not refused", not play.transcript.count("bob: contract.refuse"))
    _arrived_once(play, receipt)


@scenario
async def the_winner_dies_on_its_way(play: Play) -> None:
    """Ann dies with the award in hand, before she delivered: the next best is sent."""
    customer = await play.client("customer")
    play.faults.crash("ann", kind=Award, when="during")
    receipt = await customer.request(Send(house=2))
    play.check("bob, the next best, delivered", receipt["delivered_by"] == receipt["told_by"] == "bob", str(receipt))
    second = await play.expect("office -> bob: contract.award")
    play.check("bob knows that he is the second", second.data["attempt"] == 2, str(second.data))
    _arrived_once(play, receipt)
    await _is_back(play, "ann")
    receipt = await customer.request(Send(house=2))
    play.check("and gets the next one", receipt["delivered_by"] == "ann", str(receipt))


@scenario
async def the_winner_dies_at_the_door(play: Play) -> None:
    """Ann delivers, and dies before she can say so: bob goes, and finds in the ledger that it is done."""
    customer = await play.client("customer")
    play.faults.crash("ann", kind=Award, when="after")
    receipt = await customer.request(Send(house=2))
    play.check("bob was sent too", receipt["told_by"] == "bob", str(receipt))
    play.check("but it was ann who delivered", receipt["delivered_by"] == "ann", str(receipt))
    _arrived_once(play, receipt)


@scenario
async def the_winner_is_killed(play: Play) -> None:
    """Somebody kills ann while three parcels are under way; each arrives, once."""
    customer = await play.client("customer")
    parcels = [customer.start(Send(house=2)) for _ in range(3)]
    await play.expect("office -> ann: contract.announce")
    play.kill("ann")
    receipts = [await parcel for parcel in parcels]
    for receipt in receipts:
        _arrived_once(play, receipt)
    play.check("three contracts, three parcels", len({receipt["contract"] for receipt in receipts}) == 3)


@scenario
async def nobody_bids(play: Play) -> None:
    """A piano: the error says what each of them answered, and nobody was awarded anything."""
    customer = await play.client("customer")
    error = await _refused(customer, Send(house=3, kilos=300))
    play.check("nobody is available", isinstance(error, AgentUnavailable), repr(error))
    play.check("each is named", all(f"{name}: does not bid" in str(error) for name in COURIERS), str(error))
    play.check("no award", not play.transcript.count("*: contract.award"))


@scenario
async def all_die(play: Play) -> None:
    """Every courier dies with the parcel: a clear error, nothing was delivered, and the office goes on."""
    customer = await play.client("customer")
    before = len(DELIVERIES)
    for name in COURIERS:
        play.faults.crash(name, kind=Award, when="before")
    error = await _refused(customer, Send(house=2))
    play.check("it was not done", isinstance(error, AgentExecutionFailed), repr(error))
    play.check(
        "each is named with its end", all(f"{name}: AGENT_CRASHED" in str(error) for name in COURIERS), str(error)
    )
    play.check("nothing arrived", len(DELIVERIES) == before)
    for name in COURIERS:
        await _is_back(play, name)
    _arrived_once(play, await customer.request(Send(house=8)))


@scenario
async def whatever_happens(play: Play) -> None:
    """Four customers at once, under any faults: each gets a receipt or an error, and no parcel arrives twice."""
    before = len(DELIVERIES)
    customers = [await play.client(f"customer-{number}") for number in range(1, 5)]
    sent = [each.start(Send(house=house), timeout=8.0) for each in customers for house in (2, 8)]
    receipts, errors = [], []
    for each in sent:
        try:
            receipts.append(await each)
        except GramiError as error:
            errors.append(error)
    codes = [str(error.error_code) for error in errors]
    play.check("every customer has a receipt or an error with a code", len(receipts) + len(codes) == 8 and all(codes))
    for receipt in receipts:
        _arrived_once(play, receipt)
    arrived = DELIVERIES[before:]
    play.check("no contract was delivered twice", len(set(arrived)) == len(arrived), str(arrived))
    known = {entry.data["contract"] for entry in play.transcript.told("*: contract.announce")}
    play.check("nothing arrived that nobody had announced", known.issuperset(arrived), str(arrived))


async def _is_back(play: Play, name: str) -> None:
    await play.eventually(lambda: play.transcript.lives("restarted", name), text=f"{name} is back")


async def _refused(client: PlayClient, message: Message) -> GramiError | None:
    try:
        await client.request(message)
    except GramiError as error:
        return error
    return None


def _arrived_once(play: Play, receipt: dict[str, Any]) -> None:
    """The parcel of a receipt arrived, once, by whom the receipt says."""
    number = receipt["contract"]
    play.check("the parcel arrived once", DELIVERIES.count(number) == 1, f"{DELIVERIES.count(number)} times")
    play.check("the receipt is right", LEDGER[number] == receipt["delivered_by"], str(receipt))
