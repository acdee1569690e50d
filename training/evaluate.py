"""BLEU and chrF of greedy translations of a few dev sentences, by corpus and direction."""

from __future__ import annotations

from statistics import fmean

import sacrebleu

from edgemt.training.data import Pairs, directions
from edgemt.training.families import Family

Scores = dict[str, dict[str, float]]  # by "corpus xx-yy"


def score(translations: list[str], references: list[str], language: str) -> dict[str, float]:
    """Corpus BLEU (sacrebleu's own words for Chinese) and chrF."""
    bleu = sacrebleu.corpus_bleu(translations, [references], tokenize="zh" if language == "zh" else "13a")
    chrf = sacrebleu.corpus_chrf(translations, [references])
    return {"bleu": round(bleu.score, 2), "chrf": round(chrf.score, 2), "sentences": len(references)}


def evaluate(family: Family, dev: Pairs, sentences: int, asked: list[str]) -> Scores:
    """Scores of the directions asked for (of both if none), on sentences spread evenly over each corpus."""
    scores: Scores = {}
    for corpus in sorted(set(dev.corpus)):
        rows = [i for i, name in enumerate(dev.corpus) if name == corpus]
        rows = rows[:: max(1, len(rows) // sentences)][:sentences]
        for side in directions(dev, asked):
            source, target = dev.languages[side], dev.languages[1 - side]
            output = family.translate([dev.texts[side][i] for i in rows], source, target)
            references = [dev.texts[1 - side][i] for i in rows]
            scores[f"{corpus} {source}-{target}"] = score(output, references, target)
    return scores


def mean_bleu(scores: Scores) -> float:
    """The mean over corpora and directions: what `[keep]` compares."""
    return fmean(entry["bleu"] for entry in scores.values())
