"""A comparison as one HTML file, in the form of page.py: a forest plot for each pair of rows.

Needs jinja2 and matplotlib (the extra `report`).
"""

from __future__ import annotations

from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from edgemt.bench import compare_table
from edgemt.bench.page import STYLE, fill, svg

BASE = "#5c5c5c"
SHOWN = {"slower": "#d55e00", "faster": "#0072b2", "": "#5c5c5c"}  # told apart by all eyes


def page(data: dict[str, Any]) -> str:
    """`data` (see compare.py) as the text of an HTML file."""
    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "x"}):
        plots = [forest(pair, f"forest{number}") for number, pair in enumerate(data["pairs"])]
    return fill("compare.html", data=data, plots=plots, words=compare_table)


def forest(pair: dict[str, Any], name: str) -> str:
    """The ratio of each bucket and of all texts with its interval, beside the line of no difference."""
    figures = [*((str(b["tokens"]), b) for b in pair["buckets"]), ("all", pair["overall"])]
    figure = Figure(figsize=(4.4, 0.9 + 0.32 * len(figures)), layout="constrained")
    axes = figure.subplots()
    other, base = pair["other"]["side"], pair["base"]["side"]
    for place, (_, found) in enumerate(reversed(figures)):
        low, high = found["interval"]
        colour = SHOWN["slower" if low > 1 else "faster" if high < 1 else ""]
        size = 7 if place == 0 else 4.5
        axes.plot([low, high], [place, place], color=colour, linewidth=2.4 if place == 0 else 1.5)
        axes.plot(found["ratio"], place, "D" if place == 0 else "s", color=colour, markersize=size)
    axes.axvline(1, color=BASE, linestyle="--", linewidth=1.2, label="no difference")
    axes.set_yticks(range(len(figures)), [label for label, _ in reversed(figures)])
    axes.set_ylim(-0.6, len(figures) - 0.4)
    axes.set_ylabel("source tokens")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"time of {other} / time of {base}, log scale (left: {other} is faster)")
    return svg(figure, axes, name)
