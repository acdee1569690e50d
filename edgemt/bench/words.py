"""The result in sentences and labelled lines, for the terminal and the page alike."""

from __future__ import annotations

from typing import Any


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
    for bundle in data["bundles"]:
        queue = bundle["open"]
        if queue and queue["overloaded"]:
            found.append(
                f"Overload: {queue['offered_per_s']:g} texts a second came and {bundle['label']} does "
                f"{queue['capacity_per_s']:.3g}, so that they wait the longer, the longer the run."
            )
        if bundle["drift"] and bundle["drift"]["verdict"] == "slower":
            found.append(f"{bundle['label']} got slower during the run: {drift_words(bundle['drift'])}.")
    if data["workload"]["skipped"]:
        found.append(
            f"{data['workload']['skipped']} texts were left out: not every bundle has their languages."
        )
    return found


def summary(data: dict[str, Any]) -> dict[str, str]:
    """The run in a few labelled lines."""
    machine, settings, workload = data["machine"], data["settings"], data["workload"]
    conditions = data["conditions"]
    span, before, after = conditions["span"], conditions["before"], conditions["after"]
    # The board during the run; its state at both ends where nothing was seen between.
    looks = conditions["timeline"] or [{**c, "frequency_mhz": None, "watts": None} for c in (before, after)]
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
            f"{_texts(workload['texts'])} of {workload['name']}",
            _load(data["load"]),
            f"{settings['rounds']} rounds after {settings['warmup']} of warm-up",
            f"{settings['threads']} thread{'s' * (settings['threads'] > 1)}{_tried(settings)}",
        ],
        "state": [
            f"load {before['load'][0]:.2f} → {after['load'][0]:.2f}",
            span["other_cpus"] is not None and f"others used {span['other_cpus']:.2f} CPUs",
            _range([m["temperature_c"] for m in looks], "°C", "{:.0f}"),
            _range([m["frequency_mhz"] for m in looks], "MHz", "{:.0f}"),
            _range([m["watts"] for m in looks], "W", "{:.1f}"),
            f"{span['involuntary_per_s']:.0f} involuntary switches a second",
            f"{span['major_faults']} major page faults",
        ],
    }
    return {key: " · ".join(str(part) for part in values if part) for key, values in parts.items()}


def facts(bundle: dict[str, Any]) -> dict[str, str]:
    """Size, memory and start of a bundle in words."""
    rss, size, load = bundle["peak_rss_bytes"], bundle["bytes"], bundle["load_s"]
    terms = f", {_texts(bundle['texts_with_terms'])} with terms" if bundle["texts_with_terms"] else ""
    found = {
        "on disk": f"{size / 1e6:.1f} MB" if size else None,
        "peak RSS": f"{rss / 1e6:.0f} MB" if rss else "not told here",
        "load": None if load is None else f"{load:.2f} s",
        "cold start": f"{bundle['cold_start_s']:.2f} s",
        "search": bundle["mode"] and f"{bundle['mode']}{terms}",
    }
    return {name: value for name, value in found.items() if value is not None}


def notes(bundle: dict[str, Any]) -> list[str]:
    """What else was found about a row, in sentences."""
    found, stages, faults = [], bundle["overall"]["stages"], bundle["page_faults"]
    if stages:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in stages["shares"].items())
        after = stages["ms_per_next_token"]
        found.append(
            f"first token after {ms(stages['first_token_p50_ms'])} ms (p50)"
            + (f", {ms(after)} ms for each one after it" if after is not None else "")
            + f"; time by stage: {shares}"
        )
    found.append(f"page faults: {faults['minor']} minor, {faults['major']} major")
    if energy := bundle["energy"]:
        idle = energy["idle_watts"]
        above = f" ({energy['joules_per_text_above_idle']:.3g} J above rest)" if idle is not None else ""
        rest = f", {idle:.1f} W at rest" if idle is not None else ""
        found.append(
            f"energy: {energy['joules_per_text']:.3g} J a text{above}; {energy['watts']:.1f} W{rest}, "
            "board power at the PMIC's rails, not at the wall"
        )
    if queue := bundle["open"]:
        found.append(
            f"open loop: {queue['offered_per_s']:g} texts a second offered, "
            f"{queue['capacity_per_s']:.3g} possible, busy {queue['utilisation']:.0%} of the time; "
            f"waited {ms(queue['wait_p50_ms'])} ms (p50), {ms(queue['wait_p99_ms'])} (p99); "
            f"at most {queue['queue_max']} not done when one came"
        )
    if bundle["drift"]:
        found.append(f"soak: {drift_words(bundle['drift'])}")
    return found


def drift_words(drift: dict[str, Any]) -> str:
    """The first minute against the last."""
    sides = [f"p50 {ms(drift[f'{side}_p50_ms'])} ms{_board(drift[side])}" for side in ("first", "last")]
    return (
        f"first {drift['window_s']:.0f} s {sides[0]}, last {sides[1]}: {ms(drift['ratio'])}× "
        f"({interval(drift)}), {drift['verdict']}"
    )


def percentile_name(q: float) -> str:
    return f"p{q:g}"


def interval(figure: dict[str, Any]) -> str:
    low, high = figure["interval"]
    return f"{ms(low)}–{ms(high)}"


def ms(value: float) -> str:
    """Milliseconds, or a ratio, with two or three digits that mean something."""
    if value < 0.0995:
        return f"{value:.2g}"
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def _texts(count: int) -> str:
    return f"{count} text{'s' * (count != 1)}"


def _load(load: dict[str, Any]) -> str:
    if load["kind"] == "open":
        how = "at random" if load["arrivals"] == "poisson" else "evenly"
        return f"{load['rate_per_s']:g} a second, coming {how}; their waiting counts"
    soak = f" for {load['soak_minutes']:g} minutes" if load["kind"] == "soak" else ""
    return f"one at a time{soak}"


def _tried(settings: dict[str, Any]) -> str:
    tried = [f"{t['threads']}: {ms(t['ratio'])}×" for t in settings["threads_tried"]]
    return f" (tried {', '.join(tried)})" if tried else ""


def _range(values: list[float | None], unit: str, form: str) -> str | None:
    """From the lowest to the highest of what was seen during the run."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    low, high = form.format(min(known)), form.format(max(known))
    return f"{low} {unit}" if low == high else f"{low}–{high} {unit}"


def _board(board: dict[str, float | None]) -> str:
    known = [
        f"{value:.0f} {unit}"
        for key, unit in (("temperature_c", "°C"), ("frequency_mhz", "MHz"))
        if (value := board[key]) is not None
    ]
    return f" ({', '.join(known)})" if known else ""
