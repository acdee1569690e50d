"""A projection in words and as a table; every figure stands under the word projected."""

from __future__ import annotations

from typing import Any

from edgemt.bench.table import ms, percentile_name


def render(data: dict[str, Any]) -> str:
    settings = data["settings"]
    lines = [headline(data)]
    if data["verdict"]:
        lines.append(verdict(data))
    if data["workload"]["skipped"]:
        lines.append(
            f"{data['workload']['skipped']} texts were left out: not every bundle has their languages."
        )
    low, high = settings["range_percent"]
    lines += [
        "",
        f"device    {data['device']['name']}",
        f"run       {data['workload']['texts']} texts of {data['workload']['name']}, one at a time · "
        f"{settings['threads']} thread{'s' * (settings['threads'] > 1)}",
        f"range     middle (p{low}–p{high} of {settings['draws']} devices that the parameters allow)",
    ]
    for row in data["bundles"]:
        read = row["bytes_read"]
        lines += [
            "",
            f"{row['label']}: reads {read['encoder'] / 1e6:.1f} MB of weights to encode, "
            f"{read['step'] / 1e6:.1f} MB a step",
            *rows(data, row),
        ]
    return "\n".join(lines)


def headline(data: dict[str, Any]) -> str:
    return (
        f"Projected for a {data['device']['name']}, not measured: computed from counted instructions "
        "and bytes read (docs/projection.md)."
    )


def verdict(data: dict[str, Any]) -> str:
    settings, over = data["settings"], data["verdict"]["over"]
    wanted = f"{percentile_name(settings['percentile'])}, {settings['budget_ms']:g} ms"
    if not over:
        return f"Projected to be within budget ({wanted}): the slow end of each range is."
    said = "; ".join(f"{o['bundle']} at {o['bucket']} tokens {span(o)}" for o in over)
    return f"Not projected to be within budget ({wanted}): {said}."


def rows(data: dict[str, Any], row: dict[str, Any]) -> list[str]:
    wanted = percentile_name(data["settings"]["percentile"])
    extra = wanted not in ("p50", "p90", "p99")
    names = ["p50", "p90", "p99", *([wanted] if extra else [])]
    table = [["tokens", "texts", "→ tokens", *(f"{name} ms, projected" for name in names)]]
    for name, group in [*((str(b["tokens"]), b) for b in row["buckets"]), ("all", row["overall"])]:
        figures = [group[p] for p in ("p50", "p90", "p99")] + ([group["budget_percentile"]] if extra else [])
        table.append([name, str(group["texts"]), f"{group['target_tokens']:.0f}", *map(span, figures)])
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    return ["  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in table]


def span(figure: dict[str, float]) -> str:
    return f"{ms(figure['middle'])} ({ms(figure['low'])}–{ms(figure['high'])})"
