"""The result as one HTML file that needs nothing else: no script, no request, plots as inline SVG.

Needs jinja2 and matplotlib (the extra `report`). Plots are drawn for a phone's width; a wide screen shows
several in a row.
"""

from __future__ import annotations

import io
import re
from typing import Any

import jinja2
import matplotlib
import numpy as np

matplotlib.use("svg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from edgemt.bench import table

COLOURS = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
)  # Okabe & Ito: told apart by all eyes
BUDGET = "#b3261e"
POINTS = 1200  # on the timeline, a bundle; the slowest of them are always shown
STYLE: Any = {  # matplotlib rc
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
}


def page(data: dict[str, Any]) -> str:
    """`data` (see results.py) as the text of an HTML file."""
    with matplotlib.rc_context(STYLE):
        plots = [
            (
                "Latency by length",
                distribution(data),
                "Box: the middle half; whiskers: p1 to p99; dot: the slowest.",
            ),
            (
                "Share of texts done in time",
                cumulative(data),
                "All lengths together; the steeper, the steadier.",
            ),
            ("Over the run", timeline(data), "Every text as it was measured; drift or outliers show here."),
        ]
    return fill("page.html", data=data, plots=plots, table=table)


def fill(template: str, **values: Any) -> str:
    """The text of the template of this package with these values in it, escaped for HTML."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("edgemt.bench", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def distribution(data: dict[str, Any]) -> str:
    """Box plots by bucket, one colour a bundle, with the budget as a line."""
    figure, axes = _figure()
    buckets, bundles = data["workload"]["buckets"], data["bundles"]
    width = min(0.8 / len(bundles), 0.5)
    for place, bundle in enumerate(bundles):
        boxes = []
        for bucket in buckets:
            times = np.concatenate([text["ms"] for text in bundle["texts"] if text["bucket"] == bucket])
            low, first, middle, third, high = np.percentile(times, [1, 25, 50, 75, 99], method="inverted_cdf")
            box = {
                "whislo": low,
                "q1": first,
                "med": middle,
                "q3": third,
                "whishi": high,
                "fliers": [times.max()],
            }
            boxes.append(box)
        colour = COLOURS[place % len(COLOURS)]
        axes.bxp(
            boxes,
            positions=[n + (place - (len(bundles) - 1) / 2) * width for n in range(len(buckets))],
            widths=width * 0.8,
            patch_artist=True,
            manage_ticks=False,
            boxprops={"facecolor": colour, "edgecolor": colour, "alpha": 0.75},
            medianprops={"color": "white", "linewidth": 1.2},
            whiskerprops={"color": colour},
            capprops={"color": colour},
            flierprops={"marker": ".", "markersize": 4, "markerfacecolor": colour, "markeredgecolor": colour},
        )
        axes.plot([], [], color=colour, linewidth=5, label=bundle["label"])
    axes.set_xticks(range(len(buckets)), [str(bucket) for bucket in buckets])
    axes.set_xlabel("source tokens")
    _milliseconds(axes.yaxis, axes)
    axes.axhline(
        data["settings"]["budget_ms"], color=BUDGET, linestyle="--", linewidth=1.2, label=_budget(data)
    )
    return svg(figure, axes, "distribution")


def cumulative(data: dict[str, Any]) -> str:
    """The share of all timings that are done within a time."""
    figure, axes = _figure()
    shares = np.concatenate([np.arange(0, 90, 1.0), np.arange(90, 100.01, 0.1)])
    for place, bundle in enumerate(data["bundles"]):
        times = np.concatenate([text["ms"] for text in bundle["texts"]])
        values = np.percentile(times, shares, method="inverted_cdf")
        axes.plot(values, shares, color=COLOURS[place % len(COLOURS)], linewidth=1.8, label=bundle["label"])
    axes.axvline(
        data["settings"]["budget_ms"], color=BUDGET, linestyle="--", linewidth=1.2, label=_budget(data)
    )
    axes.set_ylim(0, 101)
    axes.set_ylabel("% of texts")
    _milliseconds(axes.xaxis, axes)
    return svg(figure, axes, "cumulative")


def timeline(data: dict[str, Any]) -> str:
    """Each timing where it was taken, and the temperature between rounds where the board tells."""
    figure, axes = _figure()
    rng = np.random.default_rng(0)
    for place, bundle in enumerate(data["bundles"]):
        at = np.concatenate([text["at_s"] for text in bundle["texts"]])
        times = np.concatenate([text["ms"] for text in bundle["texts"]])
        if len(times) > POINTS:
            slowest = np.argsort(times)[-POINTS // 10 :]
            kept = np.union1d(slowest, rng.choice(len(times), POINTS - len(slowest), replace=False))
            at, times = at[kept], times[kept]
        colour = COLOURS[place % len(COLOURS)]
        axes.plot(at, times, ".", markersize=2.5, color=colour, alpha=0.6, label=bundle["label"])
    axes.axhline(
        data["settings"]["budget_ms"], color=BUDGET, linestyle="--", linewidth=1.2, label=_budget(data)
    )
    axes.set_xlabel("seconds since the clock started")
    _milliseconds(axes.yaxis, axes)
    moments = data["conditions"]["timeline"]
    heat = [(m["at_s"], m["temperature_c"]) for m in moments if m["temperature_c"] is not None]
    if heat:
        right = axes.twinx()
        right.grid(False)
        right.plot(*zip(*heat, strict=True), color="#555555", linewidth=1.2)
        right.set_ylabel("°C")
        right.set_ylim(min(20, *(t for _, t in heat)), max(90, *(t for _, t in heat)))
        axes.plot([], [], color="#555555", linewidth=1.2, label="temperature")
    return svg(figure, axes, "timeline")


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.4, 3.4), layout="constrained")
    return figure, figure.subplots()


def _milliseconds(axis: Any, axes: Axes) -> None:
    (axes.set_yscale if axis is axes.yaxis else axes.set_xscale)("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter("")
    axis.set_label_text("milliseconds, log scale")


def _budget(data: dict[str, Any]) -> str:
    return f"budget {data['settings']['budget_ms']:g} ms"


def svg(figure: Figure, axes: Axes, name: str) -> str:
    """The figure as an SVG element that scales with its column; ids are made unique to `name`."""
    figure.legend(
        loc="outside upper left", ncols=2, frameon=False, fontsize=8, handlelength=1.4, markerscale=3
    )
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(
            buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\b(id|xlink:href)="(#?)', rf'\1="\2{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    return re.sub(
        r'(<svg [^>]*?)width="[^"]*" height="[^"]*"|(<svg [^>]*?)height="[^"]*"', r"\1\2", text, count=1
    )
