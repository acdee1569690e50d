"""The result in words and as a table for the terminal; the page uses the same words."""

from __future__ import annotations

from typing import Any


def render(data: dict[str, Any]) -> str:
    lines = [headline(data), *warnings(data), "", *(f"{k:<9} {v}" for k, v in summary(data).items())]
    if len(data["bundles"]) > 1:
        lines += ["", *_aligned(*comparison(data))]
    for bundle in data["bundles"]:
        lines += ["", f"{bundle['label']}: " + ", ".join(f"{k} {v}" for k, v in facts(bundle).items())]
        lines += _aligned(*rows(data, bundle))
    return "\n".join(lines)


def headline(data: dict[str, Any]) -> str:
    """The verdict in one sentence."""
    settings, over = data["settings"], data["verdict"]["over"]
    name, budget = percentile_name(settings["percentile"]), f"{settings['budget_ms']:g} ms"
    if not over:
        bundle, worst = max(
            ((b, g) for b in data["bundles"] for g in b["buckets"]),
            key=lambda p: p[1]["budget_percentile"]["ms"],
        )
        return (
            f"Within budget ({name}, {budget}): at most {ms(worst['budget_percentile']['ms'])} ms, "
            f"at {worst['tokens']} tokens with {bundle['label']}."
        )
    by_bundle: dict[str, list[str]] = {}
    for found in over:
        by_bundle.setdefault(found["bundle"], []).append(f"{ms(found['ms'])} ms at {found['bucket']} tokens")
    said = "; ".join(f"{label} takes {', '.join(found)}" for label, found in by_bundle.items())
    return f"Over budget ({name}, {budget}): {said}."


def warnings(data: dict[str, Any]) -> list[str]:
    """What a reader must know before believing a figure; empty if nothing."""
    found = []
    if data["verdict"]["disturbed"]:
        found.append(
            f"Disturbed run: {'; '.join(data['verdict']['disturbed'])}. Repeat it on a quiet machine."
        )
    budget = data["settings"]["budget_ms"]
    close = [
        f"{bundle['label']} at {group['tokens']} tokens"
        for bundle in data["bundles"]
        for group in bundle["buckets"]
        if group["budget_percentile"]["interval"][0] <= budget < group["budget_percentile"]["interval"][1]
    ]
    if close:
        found.append(f"Too close to call, the budget lies inside the 95 % interval: {', '.join(close)}.")
    if data["workload"]["skipped"]:
        found.append(
            f"{data['workload']['skipped']} texts were left out: not every bundle has their languages."
        )
    return found


def summary(data: dict[str, Any]) -> dict[str, str]:
    """The run in a few labelled lines."""
    machine, settings, workload = data["machine"], data["settings"], data["workload"]
    span, after = data["conditions"]["span"], data["conditions"]["after"]
    versions = machine["versions"]
    top = machine["frequency_mhz"]["max"]
    parts = {
        "machine": [
            machine["model"],
            f"{machine['cores']} × {machine['cpu'] or machine['architecture']}",
            f"up to {top / 1000:g} GHz" if top else None,
            machine["governor"] and f"governor {machine['governor']}",
            machine["memory_bytes"] and f"{machine['memory_bytes'] / 2**30:.1f} GiB",
            "virtual machine" if machine["virtual"] else None,
        ],
        "software": [
            machine["os"],
            machine["kernel"],
            machine["python"],
            *(f"{name} {versions[name]}" for name in ("edgemt", "onnxruntime", "numpy")),
        ],
        "run": [
            f"{workload['texts']} texts of {workload['name']}, one at a time",
            f"{settings['rounds']} rounds after {settings['warmup']} of warm-up",
            f"{settings['threads']} thread{'s' * (settings['threads'] > 1)}",
        ],
        "state": [
            f"load {data['conditions']['before']['load'][0]:.2f} → {after['load'][0]:.2f}",
            span["other_cpus"] is not None and f"others used {span['other_cpus']:.2f} CPUs",
            after["temperature_c"] is not None
            and f"{data['conditions']['before']['temperature_c'] or 0:.0f} → {after['temperature_c']:.0f} °C",
            f"{span['involuntary_per_s']:.0f} involuntary switches a second",
            f"{span['major_faults']} major page faults",
        ],
    }
    return {key: " · ".join(str(part) for part in values if part) for key, values in parts.items()}


def percentile_name(q: float) -> str:
    return f"p{q:g}"


def ms(value: float) -> str:
    """Milliseconds with three digits that mean something."""
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def interval(figure: dict[str, Any]) -> str:
    low, high = figure["interval"]
    return f"{ms(low)}–{ms(high)}"


def facts(bundle: dict[str, Any]) -> dict[str, str]:
    """Size, memory and start of a bundle in words."""
    rss, size, load = bundle["peak_rss_bytes"], bundle["bytes"], bundle["load_s"]
    terms = f", {bundle['texts_with_terms']} texts with terms" if bundle["texts_with_terms"] else ""
    found = {
        "on disk": f"{size / 1e6:.1f} MB" if size else None,
        "peak RSS": f"{rss / 1e6:.0f} MB" if rss else "not told here",
        "load": None if load is None else f"{load:.2f} s",
        "cold start": f"{bundle['cold_start_s']:.2f} s",
        "search": bundle["mode"] and f"{bundle['mode']}{terms}",
    }
    return {name: value for name, value in found.items() if value is not None}


def rows(data: dict[str, Any], bundle: dict[str, Any]) -> tuple[list[str], list[tuple[list[str], bool]]]:
    """Header and rows of cells, each row with whether it is over the budget: a row for each bucket, each
    direction, and all texts. A column headed "95 %" is the interval of the column before it."""
    wanted = percentile_name(data["settings"]["percentile"])
    extra = wanted not in ("p50", "p90", "p99")
    ratio = "ratio_to_first" in bundle["overall"]
    header = ["tokens", "n", "p50 ms", "95 %", "p90", "p99", "95 %", *([wanted] if extra else []), "max"]
    header += ["tok/s", "ms/tok", *(["× first", "95 %"] if ratio else [])]
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
