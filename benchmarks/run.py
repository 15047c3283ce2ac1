"""Measure grami_actors beside other actor libraries, and beside the limits of what it is built on: ``make bench``.

Every workload runs for each peer in turn, ``--rounds`` times, so that a noisy neighbour hits all of them. Each run
is a process of its own with a time limit; imports and preparations are not measured. What counts is the median,
the CPU time per operation, and the ratio between two peers of the same round; a rate alone says more about the
machine than about the code.

``ratio_to_grami`` is the peer's speed over ours, by CPU time per operation, round by round, and of that the
median: above 1 the peer is faster. ``bytes_ratio_to_grami``, where memory is measured, is ours over the peer's:
above 1 the peer is leaner. Ray's CPU time is that of all its processes; that of a gateway is the server's alone.

Writes ``benchmarks/results.json`` and, where matplotlib is installed, ``benchmarks/results.svg``. A peer that is
not installed (``benchmarks/requirements.txt``) or cannot do its work is named and left out.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import psutil
from catalog import PEERS, WORKLOADS, Workload
from measure import Sample
from one import Outcome, run_one
from report import Rows, Samples, draw, print_table, summarise, write
from rich.console import Console

LEAST = 1.0
"""Seconds that the children of a run that was ended have to go by themselves."""

EXAMPLES = """examples:
  run.py                           everything, as `make bench` does
  run.py --quick                   a first impression in a quarter of the time
  run.py --only 'ask|tell'         the workloads whose name (or --list line) matches
  run.py --peer 'grami|asyncio'    us and the limit alone; without us there are no ratios
  run.py --million --only million  a million actors, each asked once (needs some gigabytes of memory)
  run.py --one tell grami 100000   one run, as a line of JSON

With --only, --peer or --quick the results are printed, and written only if you name a file with --output."""


class Failed(Exception):
    """A run came to nothing; says why in one line."""


def options(arguments: list[str]) -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, help="how often each workload runs for each peer (5; with --quick 2)")
    parser.add_argument("--only", metavar="REGEX", default="", help="only workloads whose key or title matches")
    parser.add_argument("--peer", metavar="REGEX", default="", help="only peers whose key or title matches")
    parser.add_argument("--quick", action="store_true", help="fewer rounds of fewer operations")
    parser.add_argument("--million", action="store_true", help="also spawn a million actors and ask each once")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where the results go (benchmarks/results.json)")
    parser.add_argument("--list", action="store_true", help="list the workloads and their peers, and do nothing")
    parser.add_argument("--one", nargs=3, metavar=("WORKLOAD", "PEER", "N"), help="do one run and print its JSON")
    given = parser.parse_args(arguments)
    given.rounds = given.rounds or (2 if given.quick else 5)
    if given.output is None and not (given.only or given.peer or given.quick):
        given.output = Path(__file__).with_name("results.json")
    return given


class Bench:
    """Runs what was asked for, and remembers who is missing.

    Args:
        given: the options.
        console: where progress is shown.
    """

    def __init__(self, given: argparse.Namespace, console: Console) -> None:
        self._given = given
        self._console = console
        self._missing: set[str] = set()

    def workloads(self) -> dict[str, Workload]:
        """Those that were asked for."""
        wanted = re.compile(self._given.only, re.IGNORECASE)
        return {
            key: each
            for key, each in WORKLOADS.items()
            if (wanted.search(key) or wanted.search(each.title)) and (self._given.million or not each.optional)
        }

    def peers(self, workload: Workload) -> dict[str, int]:
        """Those that do it, and how many operations in a run."""
        wanted = re.compile(self._given.peer, re.IGNORECASE)
        divisor = workload.quick if self._given.quick else 1
        return {
            key: max(1, count // divisor)
            for key, count in workload.counts.items()
            if wanted.search(key) or wanted.search(PEERS[key].title)
        }

    def measure(self, key: str, workload: Workload) -> Rows:
        """All rounds of a workload, the peers in turn."""
        samples: Samples = {}
        peers = {peer: count for peer, count in self.peers(workload).items() if peer not in self._missing}
        began = time.perf_counter()
        with self._console.status("") as status:
            for number in range(self._given.rounds):
                for peer, count in tuple(peers.items()):
                    status.update(f"{workload.title}: {PEERS[peer].title} ({number + 1} of {self._given.rounds})")
                    try:
                        samples.setdefault(peer, {})[number] = self._run(key, peer, count, workload.seconds)
                    except Failed as failed:
                        del peers[peer]
                        self._console.print(f"  {workload.title}: without {PEERS[peer].title}: {failed}")
        self._console.print(f"  {workload.title}: {time.perf_counter() - began:.0f} s", style="dim")
        return summarise(workload.title, samples)

    def _run(self, key: str, peer: str, count: int, seconds: float) -> Sample:
        command = [sys.executable, __file__, "--one", key, peer, str(count)]
        out, error = _output(command, seconds)
        lines = out.decode(errors="replace").strip().splitlines()
        try:
            outcome = msgspec.json.decode(lines[-1], type=Outcome)
        except (IndexError, msgspec.MsgspecError):
            last = error.decode(errors="replace").strip().splitlines()[-1:] or ["it ended without a word"]
            raise Failed(last[0]) from None
        if outcome.sample is None:
            self._missing.add(peer)
            raise Failed(f"{outcome.missing} (not tried again)")
        return outcome.sample


def _output(command: list[str], seconds: float) -> tuple[bytes, bytes]:
    """What a process printed; after so many seconds it is ended, and all that it started."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            return process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise Failed(f"not done after {seconds:.0f} s") from None
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    _, alive = psutil.wait_procs(family, timeout=LEAST)
    for each in alive:
        each.kill()


def main() -> None:
    """Do what the command line asks for."""
    given = options(sys.argv[1:])
    if given.one:
        run_one(given.one[0], given.one[1], int(given.one[2]))
    console = Console(width=None if sys.stdout.isatty() else 130)
    bench = Bench(given, console)
    workloads = bench.workloads()
    if given.list:
        for key, each in workloads.items():
            console.print(f"{key:13} {each.title}: {', '.join(bench.peers(each))}", highlight=False)
        return
    rows = [row for key, each in workloads.items() for row in bench.measure(key, each)]
    print_table(console, rows, given.rounds)
    if given.output is not None:
        write(given.output, rows)
        draw(console, rows, given.output.with_suffix(".svg"))


if __name__ == "__main__":
    main()
