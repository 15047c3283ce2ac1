"""Draws ``results.json``: how the peers compare with grami_actors, as horizontal bars on a log axis.

``python benchmarks/chart.py`` draws the file anew.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
from catalog import GRAMI, PEERS
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

Rows = list[dict[str, Any]]

COLOURS = {
    "asyncio.Queue and a task": "#4b5563",
    "bare websockets and msgspec": "#9ca3af",
    "grami_actors on uvloop": "#0f766e",
    "Pykka ThreadingActor": "#f59e0b",
    "autogen-core": "#8b5cf6",
    "xoscar": "#38bdf8",
    "Ray": "#e11d48",
}
"""Of every peer but the first, which is the line at 1. Told apart by their lightness too."""

INK, FAINT, OTHER = "#1f2937", "#e5e7eb", "#64748b"
LIMITS = frozenset({"asyncio.Queue and a task", "bare websockets and msgspec"})
BAR = 0.19
"""Inches."""

GAP = 0.7
"""Between groups, in bars."""

WORST = 1 / 500
"""A bar ends here: one that is worse says so in its number, and would leave the others too little room."""

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "svg.hashsalt": GRAMI,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def _groups(rows: Rows, key: str) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """For each workload its peers with their rows, those that have a ratio to ours."""
    groups: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for row in rows:
        if row["peer"] != GRAMI and row.get(key):
            groups.setdefault(row["workload"], []).append((row["peer"], row))
    return groups


def _height(groups: dict[str, list[Any]]) -> float:
    """In bars."""
    return sum(len(group) + GAP for group in groups.values())


def _factor(ratio: float) -> str:
    """Twelve times for a peer that is better than we are, 1/12 for one that is worse."""
    number = max(ratio, 1 / ratio)
    text = f"{number:,.0f}" if number >= 10 else f"{number:.2g}" if number >= 1.1 else f"{number:.3g}"
    return f"{text}×" if ratio >= 1 else f"1/{text}"  # noqa: RUF001 - a factor


def _bars(axes: Axes, groups: dict[str, list[tuple[str, dict[str, Any]]]], key: str) -> None:
    """A bar for each peer, from ours at 1 to the left if it is worse, to the right if it is better."""
    place = 0.0
    middles: list[float] = []
    for number, group in enumerate(groups.values()):
        if number % 2 == 0:
            axes.axhspan(place - 0.5 - GAP / 2, place + len(group) - 0.5 + GAP / 2, color="#f8fafc", zorder=0)
        middles.append(place + (len(group) - 1) / 2)
        for peer, row in group:
            ratio, end = row[key], max(row[key], WORST)
            axes.barh(place, end - 1, left=1, height=0.82, color=COLOURS.get(peer, OTHER), zorder=3)
            axes.annotate(
                _factor(ratio) if ratio == end else f"◂ {_factor(ratio)}",
                (end, place),
                xytext=(4 if ratio >= 1 else -4, 0),
                textcoords="offset points",
                ha="left" if ratio >= 1 else "right",
                va="center",
                fontsize=7.5,
            )
            place += 1
        place += GAP
    axes.set_yticks(middles, list(groups))
    axes.set_ylim(place - 0.5 - GAP / 2, -0.5 - GAP / 2)


def _dress(axes: Axes, ratios: list[float], title: str, note: str) -> None:
    axes.set_xscale("log")
    low, high = max(WORST, min(*ratios, 0.5)), max(*ratios, 2.0)
    # Room for the factors beyond the bars.
    margin = 10 ** (0.125 * math.log10(high / low))
    axes.set_xlim(low / margin, high * margin)
    axes.axvline(1, color=INK, linewidth=1.2, zorder=4)
    axes.xaxis.set_major_formatter(lambda value, _: _factor(value))
    axes.tick_params(axis="both", which="both", length=0)
    axes.grid(axis="x", which="major", color=FAINT, linewidth=0.8, zorder=1)
    axes.spines[:].set_visible(False)
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", pad=22)
    axes.text(0, 1, note, transform=axes.transAxes, va="bottom", fontsize=8.5, color="#475569")
    axes.texts[-1].set_position((0, 1 + 0.07 / (axes.bbox.height / 72)))


def _legend(figure: Figure, peers: set[str], top: float) -> None:
    handles: list[Patch | Line2D] = [Line2D([], [], color=INK, linewidth=1.6, label=GRAMI)]
    for peer in [each.title for each in PEERS.values() if each.title in peers]:
        label = f"{peer} (the limit)" if peer in LIMITS else peer
        handles.append(Patch(color=COLOURS.get(peer, OTHER), label=label))
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0.01, top), ncols=4, frameon=False, handlelength=1.2
    )


def draw(rows: Rows, path: Path) -> None:
    """Draw the rows of ``results.json`` into a file; its suffix says what kind of image."""
    panels = [
        (
            "ratio_to_grami",
            "Speed beside grami_actors",
            "by CPU time per operation, log scale; to the right of the line: faster than grami_actors",
        ),
        (
            "bytes_ratio_to_grami",
            "Memory of an idle actor or connection beside grami_actors",
            "log scale; to the right of the line: leaner than grami_actors",
        ),
    ]
    shown = [(key, title, note, groups) for key, title, note in panels if (groups := _groups(rows, key))]
    if not shown:
        return
    with mpl.rc_context(STYLE):
        heights = [_height(groups) * BAR for *_, groups in shown]
        head, between, foot = 0.6, 1.05, 0.35
        total = sum(heights) + between * len(shown) + head + foot - 0.4
        figure = Figure(figsize=(9.6, total), facecolor="white")
        y = total - head - 0.65
        for (key, title, note, groups), height in zip(shown, heights, strict=True):
            axes = figure.add_axes((0.295, (y - height) / total, 0.685, height / total), facecolor="white")
            _bars(axes, groups, key)
            _dress(axes, [row[key] for group in groups.values() for _, row in group], title, note)
            y -= height + between
        peers = {peer for *_, groups in shown for group in groups.values() for peer, _ in group}
        _legend(figure, peers, 1 - 0.05 / total)
        figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    results = Path(__file__).with_name("results.json")
    draw(json.loads(results.read_text(encoding="utf-8")), results.with_suffix(".svg"))
