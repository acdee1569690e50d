"""What benchmarks/causal_quality.py makes of the answers: scores, and how far chance explains their
differences."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.causal_quality_jobs import GLOSSARY_WAYS, NUMBER, TAGGED, Job
from edgemt.bench.stats import ratio_interval
from edgemt.calibration.gate import Output, judge
from edgemt.glossary import within

Answers = dict[Job, dict[str, Any]]  # job -> {"text", "tokens", …}
FORMAT, FORMAT_VERSION = "edgemt-causal-quality", "1.1"
SEED, RESAMPLES = 7, 2000


def summary(jobs: Sequence[Job], found: dict[str, Answers]) -> dict[str, Any]:
    """`found`: by the label of the bundle; the first is what the others are compared with."""
    tasks = {task: [job for job in jobs if job.task == task] for task in {job.task for job in jobs}}
    data: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION, "bundles": list(found)}
    base = next(iter(found.values()))
    scores = {
        "plain": lambda own, jobs: plain(jobs, base, own),
        "glossary": lambda own, jobs: glossary(jobs, own),
        "tags": lambda own, jobs: tags(jobs, own),
        "references": lambda own, jobs: references(jobs, base, own),
        "draft": lambda own, jobs: draft(jobs, own),
    }
    for task, score in scores.items():
        if some := tasks.get(task):
            data[task] = {label: score(own, some) for label, own in found.items()}
    return data


def plain(jobs: Sequence[Job], base: Answers, own: Answers) -> dict[str, Any]:
    """By corpus and direction: BLEU, chrF, their drop from the first bundle with bounds, equal outputs."""
    result = {}
    for corpus in dict.fromkeys(job.row.corpus for job in jobs):
        chosen = [job for job in jobs if job.row.corpus == corpus]
        rows = [job.row for job in chosen]
        verdict = judge(rows, outputs(chosen, base), outputs(chosen, own))
        result[corpus] = {name: dataclasses.asdict(one) for name, one in verdict.directions.items()}
        result[corpus]["critical"] = {
            "new": len(verdict.critical),
            "repaired": len(verdict.repaired),
            "p": verdict.critical_p,
        }
    return result


def outputs(jobs: Sequence[Job], answers: Answers) -> list[Output]:
    return [Output(answers[job]["text"], tuple(answers[job]["tokens"])) for job in jobs]


def glossary(jobs: Sequence[Job], own: Answers) -> dict[str, Any]:
    """By direction and way: terms that should be in the answer, those that are, and chrF of the answers."""
    from sacrebleu import corpus_chrf

    result: dict[str, Any] = {}
    for direction in dict.fromkeys(direction_of(job) for job in jobs):
        ways = {}
        for way in GLOSSARY_WAYS:
            chosen = [job for job in jobs if direction_of(job) == direction and job.way == way]
            texts = [own[job]["text"] for job in chosen]
            held = [
                within(to, text)
                for job, text in zip(chosen, texts, strict=True)
                for to in dict(job.row.terms).values()
            ]
            ways[way] = {
                "rows": len(chosen),
                "terms": len(held),
                "present": sum(held),
                "chrf": round(corpus_chrf(texts, [[job.row.target for job in chosen]]).score, 2),
            }
        result[direction] = ways
    return result


def tags(jobs: Sequence[Job], own: Answers) -> dict[str, Any]:
    """By direction: sentences; those whose answer has exactly the tag, around something; around a part of it
    where it was so in the source; and around nothing but the number."""
    result = {}
    for direction in dict.fromkeys(direction_of(job) for job in jobs):
        chosen = [job for job in jobs if direction_of(job) == direction]
        texts = [own[job]["text"] for job in chosen]
        kept = [kept_tag(text) for text in texts]
        inner = [TAGGED.findall(job.row.source)[0] for job in chosen]
        numbers = [(a, b) for a, b in zip(inner, kept, strict=True) if NUMBER.fullmatch(a)]
        parts = [
            around_part(text) for job, text in zip(chosen, texts, strict=True) if around_part(job.row.source)
        ]
        result[direction] = {
            "sentences": len(chosen),
            "kept": sum(found is not None for found in kept),
            "parts": len(parts),
            "around_a_part": sum(parts),
            "numbers": len(numbers),
            "around_the_number": sum(found is not None and found.strip() == a for a, found in numbers),
        }
    return result


def around_part(text: str) -> bool:
    """Whether its tag leaves out some letters of it."""
    found = kept_tag(text)
    return found is not None and any(char.isalnum() for char in TAGGED.sub("", text))


def kept_tag(text: str) -> str | None:
    """What the one <b>…</b> of the text holds; None if there is not exactly one with something in it."""
    found = TAGGED.findall(text)
    whole = text.count("<b>") == text.count("</b>") == 1
    return found[0] if whole and found and found[0].strip() else None


def references(jobs: Sequence[Job], base: Answers, own: Answers) -> dict[str, Any]:
    """By direction: perplexity of the reference translations, how much larger it is than the first bundle's
    (95 % interval, bootstrap over rows), and the share of their tokens before which both expect the same."""
    result = {}
    for direction in dict.fromkeys(direction_of(job) for job in jobs):
        chosen = [job for job in jobs if direction_of(job) == direction]
        sums = np.array([[sum(base[job]["nll"]), sum(own[job]["nll"])] for job in chosen])
        counts = np.array([len(own[job]["nll"]) for job in chosen])
        drawn = np.random.default_rng(SEED).integers(0, len(chosen), (RESAMPLES, len(chosen)))
        more = (sums[:, 1] - sums[:, 0])[drawn].sum(1) / counts[drawn].sum(1)
        low, high = np.exp(np.percentile(more, [2.5, 97.5]))
        before, after = np.exp(sums.sum(0) / counts.sum())
        same = [a == b for job in chosen for a, b in zip(base[job]["best"], own[job]["best"], strict=True)]
        result[direction] = {
            "rows": len(chosen),
            "tokens": int(counts.sum()),
            "perplexity": float(after),
            "ratio": float(after / before),
            "interval": [float(low), float(high)],
            "same": sum(same) / len(same),
        }
    return result


def draft(jobs: Sequence[Job], own: Answers) -> dict[str, Any]:
    """Equal answers, time against decoding without a draft (95 % interval over prompts), acceptance."""
    found = [own[job] for job in jobs]
    plain_s, draft_s = (np.array([[one[f"{name}_s"]] for one in found]) for name in ("plain", "draft"))
    speedup, interval = ratio_interval(plain_s, draft_s)
    totals = {name: sum(one[name] for one in found) for name in ("steps", "proposed", "accepted", "tokens")}
    return {
        "draft": jobs[0].way,
        "prompts": len(found),
        "equal": sum(one["plain_tokens"] == one["draft_tokens"] for one in found),
        "speedup": speedup,
        "interval": interval,
        **totals,
    }


def direction_of(job: Job) -> str:
    return f"{job.row.source_lang}-{job.row.target_lang}"
