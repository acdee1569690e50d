"""The result as tables: for the terminal, and in cells for the page."""

from __future__ import annotations

from typing import Any

from edgemt.bench.words import facts, headline, interval, ms, notes, percentile_name, summary, warnings


def render(data: dict[str, Any]) -> str:
    lines = [headline(data), *warnings(data), "", *(f"{k:<9} {v}" for k, v in summary(data).items())]
    if len(data["bundles"]) > 1:
        lines += ["", *_aligned(*comparison(data))]
    for bundle in data["bundles"]:
        lines += ["", f"{bundle['label']}: " + ", ".join(f"{k} {v}" for k, v in facts(bundle).items())]
        lines += _aligned(*rows(data, bundle))
        lines += notes(bundle)
    return "\n".join(lines)


def rows(data: dict[str, Any], bundle: dict[str, Any]) -> tuple[list[str], list[tuple[list[str], bool]]]:
    """Header and rows of cells, each row with whether it is over the budget: a row for each bucket, each
    direction, and all texts. A column headed "95 %" is the interval of the column before it."""
    wanted = percentile_name(data["settings"]["percentile"])
    extra = wanted not in ("p50", "p90", "p99")
    ratio, stages = "ratio_to_first" in bundle["overall"], bundle["overall"]["stages"]
    header = ["tokens", "n", "p50 ms", "95 %", "p90", "p99", "95 %", *([wanted] if extra else []), "max"]
    header += ["tok/s", "ms/tok", *(["1st tok"] if stages else []), *(["× first", "95 %"] if ratio else [])]
    groups = [(str(g["tokens"]), g) for g in bundle["buckets"]]
    groups += [(d["pair"].replace("-", "→"), d) for d in bundle["directions"]]
    cells = []
    for name, group in [*groups, ("all", bundle["overall"])]:
        p50, p90, p99 = group["p50"], group["p90"], group["p99"]
        row = [
            name,
            str(group["timings"]),
            ms(p50["ms"]),
            interval(p50),
            ms(p90["ms"]),
            ms(p99["ms"]),
            interval(p99),
        ]
        row += [ms(group["budget_percentile"]["ms"])] if extra else []
        per_token = group["ms_per_target_token"]
        row += [
            ms(group["max_ms"]),
            f"{group['target_tokens_per_s']:.0f}" if group["target_tokens_per_s"] is not None else "–",
            ms(per_token) if per_token else "–",
        ]
        row += [ms(group["stages"]["first_token_p50_ms"])] if stages else []
        row += [ms(group["ratio_to_first"]["ratio"]), interval(group["ratio_to_first"])] if ratio else []
        over = "tokens" in group and group["budget_percentile"]["ms"] > data["settings"]["budget_ms"]
        cells.append((row, over))
    return header, cells


def comparison(data: dict[str, Any]) -> tuple[list[str], list[tuple[list[str], bool]]]:
    """Header and rows, one a bundle, in the form of `rows`: all texts together."""
    header = [
        "bundle",
        "p50 ms",
        "p99",
        "× first",
        "95 %",
        "tok/s",
        "on disk",
        "peak RSS",
        "load",
        "cold start",
    ]
    over = {found["bundle"] for found in data["verdict"]["over"]}
    cells = []
    for bundle in data["bundles"]:
        overall, ratio = bundle["overall"], bundle["overall"].get("ratio_to_first")
        row = [bundle["label"], ms(overall["p50"]["ms"]), ms(overall["p99"]["ms"])]
        row += [ms(ratio["ratio"]), interval(ratio)] if ratio else ["1", ""]
        rate = overall["target_tokens_per_s"]
        row.append("–" if rate is None else f"{rate:.0f}")
        known = facts(bundle)
        row += [known.get(name, "–") for name in header[6:]]
        cells.append((row, bundle["label"] in over))
    return header, cells


def _aligned(header: list[str], cells: list[tuple[list[str], bool]]) -> list[str]:
    table = [(header, False), *cells]
    widths = [max(len(row[i]) for row, _ in table) for i in range(len(header))]
    lines = ("  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row, _ in table)
    return [line + "  over" * over for line, (_, over) in zip(lines, table, strict=True)]
