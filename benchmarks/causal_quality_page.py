"""The pages of benchmarks/causal_quality.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.causal_quality_jobs import GLOSSARY_WAYS, Job
from benchmarks.peers_page import table


def page(data: dict[str, Any]) -> str:
    lines = [
        "# Quality of decoder-only bundles",
        "",
        "Written by `benchmarks/causal_quality.py`; do not edit.",
        "",
    ]
    for task, part in PARTS.items():
        if task in data:
            lines += [*part(data[task]), ""]
    return "\n".join(lines)


def plain(found: dict[str, Any]) -> list[str]:
    base = next(iter(found))
    lines = ["## Translation", ""]
    head = ["corpus", "direction", "rows", "bundle", "BLEU", "drop (95 %)", "chrF", "drop (95 %)"]
    head += ["tokens equal", "critical: new, repaired"]
    rows = []
    for corpus, directions in found[base].items():
        for direction in directions:
            if direction == "critical":
                continue
            for label, own in found.items():
                one = own[corpus][direction]
                cells = [corpus, direction.replace("-", "→"), str(one["sentences"]), label]
                for metric in ("bleu", "chrf"):
                    score = one[metric]
                    bounds = f"{score['drop']:+.2f} ({score['lower']:+.2f}…{score['upper']:+.2f})"
                    cells += [f"{score['candidate']:.2f}", "–" if label == base else bounds]
                same = [f"{one['tokens_equal']:.1%}", f"{one['critical_new']}, {one['critical_repaired']}"]
                rows.append(cells + (["–", "–"] if label == base else same))
    note = (
        f"Drops are from {base}; their bounds are each one-sided 95 % of a paired bootstrap (Koehn 2004). "
        "Critical: numbers, units, negations, sides that only one of the two gets wrong."
    )
    return [*lines, *table(head, rows), "", note]


def glossary(found: dict[str, Any]) -> list[str]:
    rows = []
    for label, directions in found.items():
        for direction, ways in directions.items():
            held = [ways[way] for way in GLOSSARY_WAYS]
            shares = [f"{one['present']} of {one['terms']}, chrF {one['chrf']:.1f}" for one in held]
            rows.append([label, direction.replace("-", "→"), str(held[0]["rows"]), *shares])
    head = ["bundle", "direction", "rows", "no glossary", "terms in the prompt alone", "as edgemt does it"]
    return ["## Glossary: terms that are in the answer", "", *table(head, rows)]


def tags(found: dict[str, Any]) -> list[str]:
    rows = []
    for label, directions in found.items():
        for direction, one in directions.items():
            rows.append([label, direction.replace("-", "→"), f"{one['kept']} of {one['sentences']}"])
            rows[-1] += [f"{one['around_a_part']} of {one['parts']}"]
            rows[-1] += [f"{one['around_the_number']} of {one['numbers']}"]
    head = ["bundle", "direction", "tag kept", "around a part, as in the source", "around the number alone"]
    return ["## Tags", "", *table(head, rows)]


def references(found: dict[str, Any]) -> list[str]:
    rows = []
    base = next(iter(found))
    for label, directions in found.items():
        for direction, one in directions.items():
            low, high = one["interval"]
            ratio = "–" if label == base else f"{one['ratio']:.3f} ({low:.3f}–{high:.3f})"
            same = "–" if label == base else f"{one['same']:.1%}"
            counts = f"{one['rows']}, {one['tokens']}"
            rows.append([label, direction.replace("-", "→"), counts, f"{one['perplexity']:.2f}", ratio, same])
    head = [
        "bundle",
        "direction",
        "rows, tokens",
        "perplexity",
        f"times {base}'s (95 %)",
        "same token expected",
    ]
    return ["## Reference translations, read", "", *table(head, rows)]


def draft(found: dict[str, Any]) -> list[str]:
    rows = []
    for label, one in found.items():
        low, high = one["interval"]
        equal = f"{one['equal']} of {one['prompts']}"
        share = f"{one['accepted'] / one['proposed']:.1%}" if one["proposed"] else "–"
        a_step = f"{one['tokens'] / one['steps']:.2f}" if one["steps"] else "–"
        times = f"{one['speedup']:.2f} ({low:.2f}–{high:.2f})"
        rows.append([label, one["draft"], equal, times, share, a_step])
    head = ["bundle", "draft", "equal to greedy", "times as fast (95 %)", "accepted", "tokens a step"]
    return ["## Speculative decoding", "", *table(head, rows)]


PARTS = {"plain": plain, "references": references, "glossary": glossary, "tags": tags, "draft": draft}


def sentences(jobs: Sequence[Job], found: dict[str, Any]) -> str:
    """Each sentence with its reference and every bundle's answer."""
    lines = ["# Clinic sentences, bundle by bundle", ""]
    lines += [
        "Written by `benchmarks/causal_quality.py`; do not edit. Nobody chose them: they are test rows of the"
    ]
    lines += ["open clinical corpus, one in so many.", ""]
    for number, job in enumerate(jobs, 1):
        lines += [f"**{number}. {job.row.source}**", "", f"- reference: {job.row.target}"]
        lines += [f"- {label}: {answers[job]['text']}" for label, answers in found.items()] + [""]
    return "\n".join(lines)
