"""One run of one workload by one peer, in a process of its own, which ends with it: ``run.py --one``."""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
import traceback
from collections.abc import Awaitable
from typing import Any, NoReturn

import msgspec
from catalog import PEERS, Peer
from gateway_clients import loop_factory
from measure import Sample


class Outcome(msgspec.Struct, omit_defaults=True):
    """What a run prints, as a line of JSON.

    Attributes:
        sample: what it took.
        missing: what the peer needs and is not installed.
    """

    sample: Sample | None = None
    missing: str = ""


def _leave(outcome: Outcome) -> NoReturn:
    """Print the outcome and end at once: a hundred thousand actors that nobody needs take long to clear away."""
    print(msgspec.json.encode(outcome).decode(), flush=True)
    _end(0)


def _end(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


async def _finish(run: Awaitable[Sample]) -> NoReturn:
    _leave(Outcome(await run))


def run_one(workload: str, name: str, count: int) -> NoReturn:
    """Do it; the last line on standard output is the outcome. What fails is the last line on standard error."""
    try:
        _run_one(workload, PEERS[name], count)
    except BaseException:  # noqa: BLE001 - whatever it is, threads that are left must not keep the process
        traceback.print_exc()
        _end(1)


def _run_one(workload: str, peer: Peer, count: int) -> NoReturn:
    factory = None if peer.loop == "asyncio" else loop_factory()
    if peer.loop == "uvloop" and factory is None:
        _leave(Outcome(missing="uvloop is not installed"))
    try:
        module: Any = importlib.import_module(peer.module)
    except ImportError as error:
        _leave(Outcome(missing=str(error)))
    work = module.RUNS[workload](count)
    if isinstance(work, Sample):  # a peer without an event loop has done it already
        _leave(Outcome(work))
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_finish(work))
    raise AssertionError("the run did not end the process")
