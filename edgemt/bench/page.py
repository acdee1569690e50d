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

from edgemt.bench import table, words

COLOURS = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
)  # Okabe & Ito: told apart by all eyes
BUDGET = "#b3261e"
STAGES = {"text": "#555555", "encoder": "#56b4e9", "decode": "#0072b2"}
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
            ("Over the run", timeline(data), "Every text as it was measured; below, the board meanwhile."),
        ]
        if any(bundle["overall"]["stages"] for bundle in data["bundles"]):
            caption = "Text: sentences, terms, tokens and back; decode: the graph's steps and the search."
            plots.append(("Where the time goes", shares(data), caption))
    return fill("page.html", data=data, plots=plots, table=table, words=words)


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
    """Each timing where it was taken; below it temperature and frequency, where the board tells them."""
    moments = data["conditions"]["timeline"]
    known = [
        (name, unit, found)
        for name, unit in (("temperature_c", "°C"), ("frequency_mhz", "MHz"))
        if len(found := [(m["at_s"], m[name]) for m in moments if m[name] is not None]) > 1
    ]
    figure = Figure(figsize=(4.4, 3.4 if not known else 4.4), layout="constrained")
    axes, *board = figure.subplots(
        1 + bool(known), sharex=True, height_ratios=[3, 1] if known else None, squeeze=False
    )[:, 0]
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
    _milliseconds(axes.yaxis, axes)
    throttled = [m["at_s"] for m in moments if m["throttle_flags"]]
    for number, at in enumerate(throttled):
        axes.axvline(at, color=BUDGET, alpha=0.25, linewidth=1, label="" if number else "throttled")
    for (name, unit, found), colour in zip(known, ("#555555", "#009e73"), strict=False):
        below = board[0] if name == known[0][0] else board[0].twinx()
        below.plot(*zip(*found, strict=True), color=colour, linewidth=1.2)
        below.set_ylabel(unit, color=colour)
        below.tick_params(axis="y", labelcolor=colour)
        below.grid(False)
        lowest, highest = (20, 90) if name == "temperature_c" else (0, max(v for _, v in found) * 1.1)
        values = [value for _, value in found]
        below.set_ylim(min(lowest, *values), max(highest, *values))
    (board or [axes])[0].set_xlabel("seconds since the clock started")
    return svg(figure, axes, "timeline")


def shares(data: dict[str, Any]) -> str:
    """Bars of the stages' shares: by length for a single bundle, one a row for several."""
    rows = [bundle for bundle in data["bundles"] if bundle["overall"]["stages"]]
    bars = [(bundle["label"], bundle["overall"]["stages"]["shares"]) for bundle in rows]
    if len(rows) == 1:
        bars = [(f"{group['tokens']} tokens", group["stages"]["shares"]) for group in rows[0]["buckets"]]
    figure = Figure(figsize=(4.4, 1.1 + 0.42 * len(bars)), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(bars))
    for (stage, colour), ink in zip(STAGES.items(), ("white", "black", "white"), strict=True):
        width = np.array([100 * parts[stage] for _, parts in bars])
        axes.barh(range(len(bars)), width, left=left, color=colour, label=stage, height=0.7)
        for place, (start, share) in enumerate(zip(left, width, strict=True)):
            if share >= 5:
                axes.text(start + share / 2, place, f"{share:.0f}", ha="center", va="center", color=ink)
        left += width
    names = [
        label if len(label) < 20 else label.replace(", ", ",\n").replace(" ", "\n", 1) for label, _ in bars
    ]
    axes.set_yticks(range(len(bars)), names, fontsize=7.5)
    axes.invert_yaxis()
    axes.grid(False)
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of the time")
    return svg(figure, axes, "shares")


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.4, 3.4), layout="constrained")
    return figure, figure.subplots()


def _milliseconds(axis: Any, axes: Axes) -> None:
    (axes.set_yscale if axis is axes.yaxis else axes.set_xscale)("log")
    low, high = axes.get_ylim() if axis is axes.yaxis else axes.get_xlim()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
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
