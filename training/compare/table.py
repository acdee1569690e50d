"""The comparison in words: the table as rows and as Markdown, and what to know before believing it."""

from __future__ import annotations

from statistics import fmean
from typing import Any


def rows(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and cells, one row a mode; columns that nothing is known for are left out."""
    directions = sorted({name.rpartition(" ")[2] for mode in data["modes"] for name in mode["scores"]})
    whole = data["settings"]["timing_rounds"] * data["settings"]["timing_steps"]
    columns = {
        "mode": [mode["mode"] for mode in data["modes"]],
        "outcome": [outcome(mode) for mode in data["modes"]],
        "peak memory, MB": [memory(mode) for mode in data["modes"]],
        "ms a step (p10–p90)": [step(mode["step_ms"], whole) for mode in data["modes"]],
        f"× {data['settings']['base']} (95 %)": [ratio(mode["ratio"]) for mode in data["modes"]],
        "tokens/s": [number(mode["tokens_per_second"]) for mode in data["modes"]],
        "loss": [number(mode["loss"], 3) for mode in data["modes"]],
        **{
            f"BLEU / chrF {direction.replace('-', '→')}": [scores(mode, direction) for mode in data["modes"]]
            for direction in directions
        },
        "skipped": [skipped(mode) for mode in data["modes"]],
        "loss scale": [scale(mode) for mode in data["modes"]],
    }
    known = {name: cells for name, cells in columns.items() if any(cell != NOTHING for cell in cells)}
    return list(known), [list(cells) for cells in zip(*known.values(), strict=True)]


NOTHING = "–"
CPU = "Measured on a CPU. It says nothing of speed or memory on a GPU, whose hardware is made for FP16."


def number(value: float | None, places: int = 0) -> str:
    return NOTHING if value is None else f"{value:,.{places}f}"


def memory(mode: dict[str, Any]) -> str:
    """The peak, and how much of it the steps took above what was held before the first."""
    if not mode["peak_mb"]:
        return NOTHING
    return f"{mode['peak_mb']:,.0f} (+{mode['peak_mb'] - mode['before_mb']:,.0f})"


def step(found: dict[str, Any] | None, whole: int) -> str:
    """`whole`: steps that are counted if none is skipped."""
    if found is None:
        return NOTHING
    places = 0 if found["median"] >= 100 else 1
    few = f" of {found['steps']} steps" if found["steps"] < whole else ""
    return f"{found['median']:,.{places}f} ({found['p10']:,.{places}f}–{found['p90']:,.{places}f}){few}"


def ratio(found: dict[str, float] | None) -> str:
    return NOTHING if found is None else f"{found['ratio']:.2f} ({found['low']:.2f}–{found['high']:.2f})"


def scores(mode: dict[str, Any], direction: str) -> str:
    """The means over the dev corpora."""
    found = [score for name, score in mode["scores"].items() if name.endswith(f" {direction}")]
    if not found:
        return NOTHING
    return " / ".join(f"{fmean(score[metric] for score in found):.1f}" for metric in ("bleu", "chrf"))


def skipped(mode: dict[str, Any]) -> str:
    return f"{mode['skipped_steps']:,} of {mode['steps']:,}" if mode["steps"] else NOTHING


def scale(mode: dict[str, Any]) -> str:
    if mode["loss_scale"] is None:
        return NOTHING
    first, last = (f"{mode[key]:,.0f}" for key in ("first_scale", "loss_scale"))
    return last if first == last else f"{last}, at first {first}"


def outcome(mode: dict[str, Any]) -> str:
    return f"{mode['status']} at step {mode['culprit']['step']:,}" if mode["culprit"] else mode["status"]


def explanation(mode: dict[str, Any]) -> str | None:
    """Why a mode did not finish, in a sentence."""
    if mode["reason"] is None:
        return None
    first = (
        f"; first, at step {mode['culprit']['step']:,}: {mode['culprit']['sentence']}"
        if mode["culprit"]
        else ""
    )
    return f"{mode['mode']}: {mode['reason']}{first}."


def title(data: dict[str, Any]) -> str:
    device = data["device"]
    threads = (
        "" if device["kind"] == "cuda" else f", {device['threads']} thread{'s' * (device['threads'] > 1)}"
    )
    return f"{'GPU' if device['kind'] == 'cuda' else 'CPU'}: {device['name']}{threads}"


def notes(data: dict[str, Any]) -> list[str]:
    """What the figures are, sentence by sentence."""
    settings, model = data["settings"], data["model"]
    found = [text for mode in data["modes"] if (text := explanation(mode))]
    if data["conditions"]:
        found.append(f"Conditions: {data['conditions']}")
    parameters = f"{model['parameters']:,} trained parameters; " if model["parameters"] else ""
    found.append(
        f"{parameters}the same data, order, seed and start in every mode, each in a process of its own; "
        f"torch {data['versions']['torch']}."
    )
    if settings["timing_rounds"]:
        of = "torch's allocator" if data["device"]["kind"] == "cuda" else "the process, torch included"
        found.append(
            f"Step time: {settings['timing_rounds']} rounds in which the modes take turns, each "
            f"{settings['timing_steps']} steps after {settings['warm_up']} that are not counted. The median, "
            f"the middle 80 %, target tokens, and the ratio to {settings['base']} on the same batches with "
            "its interval by bootstrap over batches and rounds."
        )
        found.append(
            f"Memory: of {of}, in those rounds; in brackets, what the steps took above what was held "
            "just before the first, weights included."
        )
    if settings["steps"]:
        found.append(
            "Loss: the mean of the last quarter of the steps, at most 50. BLEU and chrF: greedy translations "
            "of dev sentences with the averaged weights, the mean over the dev corpora."
        )
    return found


def markdown(data: dict[str, Any]) -> str:
    header, cells = rows(data)
    left = {"mode", "outcome"}
    lines = [
        f"| {' | '.join(header)} |",
        f"| {' | '.join('---' if name in left else '---:' for name in header)} |",
        *(f"| {' | '.join(cell.replace('|', '¦') for cell in row)} |" for row in cells),
    ]
    caution = [CPU] if data["device"]["kind"] == "cpu" else []
    return "\n".join([title(data), "", *lines, "", *caution, *notes(data)]) + "\n"
