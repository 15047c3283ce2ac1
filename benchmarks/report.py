"""From samples to rows, and from rows to a table and a file."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from catalog import GRAMI, PEERS
from measure import Sample
from rich.console import Console
from rich.table import Table

Samples = dict[str, dict[int, Sample]]
"""The samples of each peer by round; a round that failed is not there."""

Rows = list[dict[str, Any]]


def _cost(sample: Sample) -> float:
    return sample.cpu / sample.ops


def _bytes(sample: Sample) -> float:
    return max(1.0, sample.extra.get("bytes_each", 0.0))


def _ratio(ours: dict[int, Sample], theirs: dict[int, Sample], cost: Any) -> float | None:
    """The median over the rounds that both have of what ours cost over what theirs did."""
    ratios = [cost(ours[number]) / max(1e-9, cost(sample)) for number, sample in theirs.items() if number in ours]
    return float(f"{statistics.median(ratios):.3g}") if ratios else None


def _short(value: float) -> float:
    return round(value) if value >= 100 else round(value, 2)


def summarise(workload: str, samples: Samples) -> Rows:
    """A row for each peer; see the opening of ``run.py`` for the ratios."""
    ours = next((each for peer, each in samples.items() if PEERS[peer].title == GRAMI), {})
    rows: Rows = []
    for peer, by_round in samples.items():
        each = list(by_round.values())
        row: dict[str, Any] = {
            "workload": workload,
            "peer": PEERS[peer].title,
            "n": each[0].ops,
            "median_ops_per_s": _short(statistics.median(sample.ops / sample.wall for sample in each)),
            "cpu_us_per_op": round(statistics.median(map(_cost, each)) * 1e6, 2),
            "ratio_to_grami": _ratio(ours, by_round, _cost),
        }
        for key in each[0].extra:
            row[key] = _short(statistics.median(sample.extra[key] for sample in each))
        if "bytes_each" in row:
            row["bytes_ratio_to_grami"] = _ratio(ours, by_round, _bytes)
        rows.append(row)
    return rows


def _besides(row: dict[str, Any]) -> str:
    """What a row tells beyond its rate and cost, in few words."""
    words = {
        "bytes_each": "{:,} bytes each",
        "overhead_ms": "{:,} ms beyond the 10",
        "p50_us": "p50 {:,} µs",
        "p99_us": "p99 {:,} µs",
        "ask_cpu_us": "{:,} µs per ask",
    }
    return ", ".join(text.format(row[key]) for key, text in words.items() if key in row)


def print_table(console: Console, rows: Rows, rounds: int) -> None:
    """All rows in one table, each workload with its peers below it."""
    table = Table("workload and peer", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.columns[0].no_wrap = True
    for column in ("n", "median /s", "CPU µs each", "ratio"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("besides")
    last = ""
    for row in rows:
        if row["workload"] != last:
            last = row["workload"]
            table.add_row(last, style="bold")
        ratio = row["ratio_to_grami"]
        table.add_row(
            f"  {row['peer']}",
            f"{row['n']:,}",
            f"{row['median_ops_per_s']:,}",
            f"{row['cpu_us_per_op']:,}",
            "" if ratio is None else f"{ratio:.3g}",
            _besides(row),
        )
    console.print(
        f"Python {sys.version.split()[0]}, medians of {rounds} interleaved rounds. The ratio is the peer's speed over "
        "ours by CPU time: above 1 it is faster."
    )
    console.print(table)


def write(path: Path, rows: Rows) -> None:
    """The rows, as JSON."""
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def draw(console: Console, rows: Rows, path: Path) -> None:
    """The chart, where it can be drawn."""
    try:
        import chart  # noqa: PLC0415 - matplotlib takes a second to import, and may be missing
    except ImportError as error:
        console.print(f"no chart: {error}")
        return
    chart.draw(rows, path)
    console.print(f"written: {path.with_suffix('.json').name} and {path.name}")
