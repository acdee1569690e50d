"""What each contender's translations are worth: BLEU and chrF of test rows, and how many are the same."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemt.bench.contenders import CommandContender

CLINICAL = Path(__file__).parents[1] / "examples" / "medical-zh-en" / "data" / "clinical.tsv.gz"
EXACT = "edgemt FP32"  # whose outputs the others' are compared with
DIRECTIONS = (("zh", "en"), ("en", "zh"))


@dataclass(frozen=True)
class Quality:
    outputs: dict[str, list[str]]  # by direction
    scores: dict[str, dict[str, float]]  # by direction: bleu, chrf
    cpu_ms: float  # of the process, a text; the clock counts in hundredths of a second


def test_rows(count: int) -> list[dict[str, str]]:
    """`count` test rows of the clinical corpus, spread evenly over it; each language's side."""
    with gzip.open(CLINICAL, "rt", encoding="utf-8") as file:
        rows = [line.rstrip("\n").split("\t") for line in file]
    test = [{"zh": row[3], "en": row[4]} for row in rows if row[5] == "test"]
    count = min(count, len(test))
    return [test[number * len(test) // count] for number in range(count)]


def quality(contender: CommandContender, rows: list[dict[str, str]]) -> Quality:
    """Translate the rows both ways. Raises EdgemtError if the contender fails."""
    import sacrebleu

    foreign = contender.foreign
    foreign.translate(rows[0]["zh"], "zh", "en")  # its start is not counted
    before = foreign.cpu_s()
    outputs = {
        f"{source}-{target}": [foreign.translate(row[source], source, target) for row in rows]
        for source, target in DIRECTIONS
    }
    cpu_ms = 1000 * (foreign.cpu_s() - before) / (len(rows) * len(DIRECTIONS))
    scores = {}
    for source, target in DIRECTIONS:
        found, references = outputs[f"{source}-{target}"], [[row[target] for row in rows]]
        bleu = sacrebleu.corpus_bleu(found, references, tokenize="zh" if target == "zh" else "13a")
        chrf = sacrebleu.corpus_chrf(found, references)
        scores[f"{source}-{target}"] = {"bleu": round(bleu.score, 2), "chrf": round(chrf.score, 2)}
    return Quality(outputs, scores, cpu_ms)


def report(found: list[tuple[str, Quality]]) -> list[dict[str, Any]]:
    """Ready for JSON. `same_as_fp32`: the share of texts that are translated as edgemt FP32 does."""
    exact = dict(found).get(EXACT)
    return [
        {
            "label": label,
            "texts": sum(map(len, quality.outputs.values())),
            "cpu_ms": quality.cpu_ms,
            "directions": quality.scores,
            "same_as_fp32": agreement(quality, exact) if exact else None,
        }
        for label, quality in found
    ]


def agreement(one: Quality, other: Quality) -> float:
    """The share of texts whose translations are the same, character by character."""
    pairs = [
        (a, b) for name in one.outputs for a, b in zip(one.outputs[name], other.outputs[name], strict=True)
    ]
    return sum(a == b for a, b in pairs) / len(pairs)
