"""A comparison in words and as a table for the terminal; the page uses the same words."""

from __future__ import annotations

from typing import Any

from edgemt.bench.table import ms


def render(data: dict[str, Any]) -> str:
    lines = [*headlines(data), *warnings(data), ""]
    lines += [
        f"{side['letter']:<9} {', '.join(run['file'] for run in side['runs'])}" for side in data["sides"]
    ]
    lines.append(f"{'workload':<9} {data['workload']['name']}")
    for pair in data["pairs"]:
        lines += ["", f"{title(pair)}: {basis(pair)}", *_aligned(*rows(pair))]
    return "\n".join(lines)


def headlines(data: dict[str, Any]) -> list[str]:
    """The verdict on each pair in a sentence; labels are named where there are several."""
    several = len(data["pairs"]) > 1
    return [(f"{title(pair)}: " if several else "") + verdict(pair) for pair in data["pairs"]]


def verdict(pair: dict[str, Any]) -> str:
    base, other = pair["base"]["name"], pair["other"]["name"]
    low, high = pair["overall"]["interval"]
    share = percent(abs(pair["overall"]["ratio"] - 1), low, high)
    if pair["verdict"] == "faster":
        return f"{other} is {share} % faster than {base} ({span(1 - high, 1 - low)} % less time)."
    if pair["verdict"] == "slower":
        return f"{other} is {share} % slower than {base} ({span(low - 1, high - 1)} % more time)."
    if pair["verdict"] == "disturbed":
        return f"Disturbed runs, no verdict on {other} against {base} ({signed(low, high)})."
    return f"No difference shown between {base} and {other} ({signed(low, high)})."


def warnings(data: dict[str, Any]) -> list[str]:
    """What a reader must know before believing a verdict; empty if nothing."""
    found = [
        f"Disturbed: {run['file']}: {'; '.join(run['disturbed'])}."
        for side in data["sides"]
        for run in side["runs"]
        if run["disturbed"]
    ]
    letters = [side["letter"] for side in data["sides"]]
    for difference in data["differences"]:
        values = (" or ".join(side) for side in difference["values"])
        said = ", ".join(f"{letter} {value}" for letter, value in zip(letters, values, strict=True))
        found.append(f"Not the same {difference['what']}: {said}.")
    for pair in data["pairs"]:
        ours, theirs = pair["target_tokens"]
        if ours and theirs and abs(theirs / ours - 1) > 0.01:
            found.append(
                f"Answers of other lengths: {title(pair)}: {pair['other']['name']} has "
                f"{100 * (theirs / ours - 1):+.0f} % target tokens, which is in the ratio too."
            )
        if pair["texts_left_out"]:
            found.append(f"Left out: {pair['texts_left_out']} texts that not all runs have, {title(pair)}.")
    if data["left_out"]:
        rows = ", ".join(f"{row['label']} ({row['side']})" for row in data["left_out"])
        found.append(f"Rows without a partner: {rows}.")
    return found


def title(pair: dict[str, Any]) -> str:
    labels = list(dict.fromkeys([pair["base"]["label"], pair["other"]["label"]]))
    return f"{' → '.join(labels)}, {pair['other']['side']} against {pair['base']['side']}"


def basis(pair: dict[str, Any]) -> str:
    """What the interval rests on."""
    between, counts = pair["between_runs"], [pair["base"]["runs"], pair["other"]["runs"]]
    if between["df_from_runs"]:
        source = f"from {sum(counts)} runs and what is assumed of runs"
    else:
        source = "from the drift between rounds" if between["drift"] else "assumed: there is one run each"
    return f"{pair['texts']} texts; runs of one thing differ by {between['sd_percent']:.1f} % ({source})"


def rows(pair: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of cells: a row for each bucket and all texts."""
    base, other = pair["base"]["side"], pair["other"]["side"]
    header = ["tokens", "texts", f"{base} ms", f"{other} ms", f"{other}/{base}", "95 %", ""]
    cells = []
    for name, figure in [*((str(b["tokens"]), b) for b in pair["buckets"]), ("all", pair["overall"])]:
        low, high = figure["interval"]
        mark = "slower" if low > 1 else "faster" if high < 1 else ""
        cells.append(
            [
                name,
                str(figure["texts"]),
                ms(figure["base_ms"]),
                ms(figure["other_ms"]),
                f"{figure['ratio']:.3f}",
                f"{low:.3f}–{high:.3f}",
                "" if pair["disturbed"] else mark,
            ]
        )
    return header, cells


def percent(share: float, low: float, high: float) -> str:
    """A share as per cent, with a decimal only where the interval is narrow enough for one."""
    return f"{100 * share:.{1 if high - low < 0.02 else 0}f}"


def span(least: float, most: float) -> str:
    return f"{percent(least, least, most)}–{percent(most, least, most)}"


def signed(low: float, high: float) -> str:
    values = (f"{'−' if v < 1 else '+'}{percent(abs(v - 1), low, high)}" for v in (low, high))
    return " to ".join(values) + " %"


def _aligned(header: list[str], cells: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in [header, *cells]) for i in range(len(header))]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in [header, *cells]
    ]
    return [line.rstrip() for line in lines]
