"""The comparison as one HTML file that needs nothing else: the table, and the curves as inline SVG."""

from __future__ import annotations

from typing import Any

import jinja2
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from edgemt.bench.page import COLOURS, STYLE, svg
from edgemt.training.compare import table

SMOOTHED_OVER = 25  # points, or a twelfth of a short curve; the curve itself is drawn thin behind it


def page(data: dict[str, Any]) -> str:
    """`data` (see report.py) as the text of an HTML file."""
    with matplotlib.rc_context(STYLE):
        plots = [
            (name, drawn, caption)
            for name, draw, caption in (
                ("Loss", loss, "Nats a target token, with label smoothing; a cross: the last finite one."),
                ("Loss scale", scale, "Halved when a gradient overflows; a cross where a step was skipped."),
                (
                    "Gradient norm",
                    norm,
                    "After unscaling, before clipping; a gap is a norm that was not finite.",
                ),
                ("Step time", times, "Median, and the middle 80 % of the clocked steps."),
            )
            if (drawn := draw(data))
        ]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader(f"edgemt.{package}", ".") for package in ("training.compare", "bench")]
        ),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(data=data, plots=plots, table=table)


def loss(data: dict[str, Any]) -> str:
    """The axis is that of the modes that finished: a loss on its way to infinity leaves it at the top."""
    figure, axes = panel("step", "nats a token")
    seen = [points(mode, "loss")[1] for mode, _ in trained(data) if mode["status"] == "finished"]
    # The first is the widest, so that curves which lie on each other can all be seen.
    for (mode, colour), width in zip(trained(data), (4.5, 3.0, 1.8, 0.9), strict=False):
        steps, values = points(mode, "loss")
        if mode["status"] == "finished":
            axes.plot(steps, values, color=colour, linewidth=0.5, alpha=0.3)
            axes.plot(steps, smooth(values), color=colour, linewidth=width, label=mode["mode"])
        elif np.isfinite(values).any():
            last = np.flatnonzero(np.isfinite(values))[-1]
            axes.plot(steps, values, color=colour, linewidth=1.2, label=mode["mode"])
            axes.plot(steps[last], values[last], "x", color=colour, markersize=8)
    if seen:
        low, high = np.nanmin(np.concatenate(seen)), np.nanmax(np.concatenate(seen))
        axes.set_ylim(low - 0.05 * (high - low), high + 0.1 * (high - low))
    return svg(figure, axes, "loss") if axes.lines else ""


def scale(data: dict[str, Any]) -> str:
    figure, axes = panel("step", "loss scale")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
    )
    for mode, colour in trained(data):
        if mode["loss_scale"] is not None:
            steps, values = points(mode, "scale")
            axes.step(steps, values, where="post", color=colour, linewidth=1.6, label=mode["mode"])
            lost = ~np.isfinite(points(mode, "gradient_norm")[1])
            axes.plot(steps[lost], values[lost], "x", color=colour, markersize=5)
    return svg(figure, axes, "scale") if axes.lines else ""


def norm(data: dict[str, Any]) -> str:
    figure, axes = panel("step", "norm, log scale")
    axes.set_yscale("log")
    for mode, colour in trained(data):
        axes.plot(*points(mode, "gradient_norm"), color=colour, linewidth=0.8, label=mode["mode"])
    return svg(figure, axes, "norm") if axes.lines else ""


def times(data: dict[str, Any]) -> str:
    clocked = [(mode, colour) for mode, colour in coloured(data) if mode["step_ms"]]
    if not clocked:
        return ""
    figure = Figure(figsize=(4.4, 1.1 + 0.42 * len(clocked)), layout="constrained")
    axes = figure.subplots()
    for place, (mode, colour) in enumerate(clocked):
        found = mode["step_ms"]
        span = [found["p10"], found["p90"]]
        axes.plot(span, [place, place], color=colour, linewidth=5, alpha=0.4, label=mode["mode"])
        axes.plot(found["median"], place, "o", color=colour, markersize=6)
    axes.set_yticks(range(len(clocked)), [mode["mode"] for mode, _ in clocked])
    axes.set_ylim(len(clocked) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("milliseconds a step")
    return svg(figure, axes, "times")


def panel(x: str, y: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(4.4, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return figure, axes


def coloured(data: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    return [(mode, COLOURS[place % len(COLOURS)]) for place, mode in enumerate(data["modes"])]


def trained(data: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    return [(mode, colour) for mode, colour in coloured(data) if mode["curve"]["step"]]


def points(mode: dict[str, Any], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values; NaN where there is none."""
    curve = mode["curve"]
    return np.array(curve["step"]), np.array(curve[key], dtype=np.float64)


def smooth(values: np.ndarray) -> np.ndarray:
    """The mean of the finite values around each; NaN where the value itself is not finite."""
    window = np.ones(max(1, min(SMOOTHED_OVER, len(values) // 12)))
    finite = np.isfinite(values)
    total = np.convolve(np.where(finite, values, 0), window, "same")
    count = np.convolve(finite.astype(float), window, "same")
    return np.where(finite, total / np.maximum(count, 1), np.nan)
