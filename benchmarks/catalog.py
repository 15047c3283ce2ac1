"""What is measured: the workloads, who does them, and how many operations each does in a run.

The numbers of operations differ between peers, so that a run takes about half a second: all results are per
operation. What a peer has no number for, it cannot do, or not on one machine.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

GRAMI = "grami_actors"
"""The title of the peer that the others are compared with."""


class Peer(NamedTuple):
    """Somebody who does workloads.

    Attributes:
        title: its name in the results.
        module: the file with its ``RUNS``.
        loop: its event loop; the fastest is uvloop's where that is installed, else asyncio's.
    """

    title: str
    module: str
    loop: Literal["asyncio", "uvloop", "fastest"] = "asyncio"


class Workload(NamedTuple):
    """Something to do.

    Attributes:
        title: its name in the results.
        counts: for each peer that does it, how many operations a run has.
        seconds: a run that takes longer is ended.
        optional: whether it is done only when it is asked for (``--million``).
        quick: what ``--quick`` divides the counts by.
    """

    title: str
    counts: dict[str, int]
    seconds: float = 60.0
    optional: bool = False
    quick: int = 4


PEERS = {
    "grami": Peer(GRAMI, "workloads_grami"),
    "grami-uvloop": Peer("grami_actors on uvloop", "workloads_grami", loop="uvloop"),
    "asyncio": Peer("asyncio.Queue and a task", "peer_asyncio"),
    "pykka": Peer("Pykka ThreadingActor", "peer_pykka"),
    "autogen": Peer("autogen-core", "peer_autogen"),
    "xoscar": Peer("xoscar", "peer_xoscar"),
    "ray": Peer("Ray", "peer_ray"),
    "gateway": Peer(GRAMI, "gateway_grami", loop="fastest"),
    "websockets": Peer("bare websockets and msgspec", "peer_websockets", loop="fastest"),
}

WORKLOADS = {
    "tell": Workload(
        "tell, end to end",
        {"grami": 100_000, "asyncio": 200_000, "pykka": 100_000, "autogen": 4_000, "xoscar": 10_000, "ray": 2_000},
    ),
    "tell-thread": Workload(
        "tell from another thread",
        {"grami": 60_000, "asyncio": 60_000, "pykka": 100_000},
    ),
    "ask": Workload(
        "ask, one after another, plain handler",
        {"grami": 20_000, "grami-uvloop": 30_000, "asyncio": 60_000, "pykka": 20_000, "xoscar": 8_000, "ray": 500},
    ),
    "ask-coroutine": Workload(
        "ask, one after another, coroutine handler",
        {"grami": 15_000, "grami-uvloop": 20_000, "asyncio": 50_000, "autogen": 3_000, "xoscar": 8_000},
    ),
    "outstanding": Workload(
        "ask, 1,000 outstanding over 100 actors",
        {"grami": 40_000, "asyncio": 100_000, "pykka": 10_000, "autogen": 4_000, "xoscar": 10_000},
        quick=2,
    ),
    "ping-pong": Workload(
        "ping-pong between two actors, hops",
        {"grami": 80_000, "asyncio": 100_000, "pykka": 40_000, "autogen": 4_000, "xoscar": 16_000, "ray": 1_000},
    ),
    "ring": Workload(
        "ring of 1,000 actors, hops",
        {"grami": 80_000, "asyncio": 100_000, "pykka": 30_000, "autogen": 4_000, "xoscar": 16_000},
    ),
    "spawn-small": Workload(
        "spawn, 1 k actors",
        {"grami": 1_000, "asyncio": 1_000, "pykka": 1_000, "autogen": 1_000, "xoscar": 1_000, "ray": 4},
        quick=1,
    ),
    "spawn-large": Workload(
        "spawn, 100 k actors",
        {"grami": 100_000, "asyncio": 100_000, "autogen": 20_000, "xoscar": 20_000},
    ),
    "million": Workload(
        "spawn, 1 M actors, each asked once",
        {"grami": 1_000_000, "asyncio": 1_000_000},
        seconds=600.0,
        optional=True,
        quick=10,
    ),
    "stop": Workload(
        "stop, 100 k actors",
        {"grami": 100_000, "asyncio": 100_000, "pykka": 1_000, "xoscar": 10_000},
        seconds=30.0,
    ),
    "restart": Workload("restart in place after a failure", {"grami": 6_000}),
    "fan-out": Workload(
        "fan-out to 100 waits of 10 ms, and gather",
        {"grami": 3_000, "asyncio": 3_000, "pykka": 3_000, "autogen": 3_000, "xoscar": 3_000},
        quick=2,
    ),
    "gateway-1": Workload("gateway round trip, 1 connection", {"gateway": 4_000, "websockets": 4_000}, quick=2),
    "gateway-64": Workload("gateway round trip, 64 connections", {"gateway": 8_000, "websockets": 8_000}, quick=2),
    "gateway-1000": Workload("gateway round trip, 1,000 connections", {"gateway": 6_000, "websockets": 6_000}, quick=2),
    "idle": Workload("open a connection, and keep it idle", {"gateway": 1_000, "websockets": 1_000}, quick=1),
}
