"""BLEU and chrF of greedy translations of a few dev sentences, by corpus and direction."""

from __future__ import annotations

import sacrebleu
import torch
from transformers import MarianMTModel

from edgemt.training.data import Pairs, padded
from edgemt.training.vocabulary import EOS, PAD, Vocabulary


def translate(
    model: MarianMTModel, vocabulary: Vocabulary, texts: list[str], target: str, batch_size: int = 50
) -> list[str]:
    """Greedy translations of `texts` into language `target`, in batches of like length."""
    tag = vocabulary.language_id(target)
    sources = [[tag, *ids[:250], EOS] for ids in vocabulary.encode(texts)]
    order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
    translations = [""] * len(texts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        source = padded([sources[i] for i in chosen]).to(model.device)
        longest = min(255, 2 * source.shape[1] + 20)
        with torch.inference_mode():
            output = model.generate(
                source,
                attention_mask=(source != PAD).long(),
                max_length=longest,
                num_beams=1,
                do_sample=False,
            )
        for i, ids in zip(chosen, output[:, 1:].tolist(), strict=True):
            translations[i] = vocabulary.decode([token for token in ids if token != PAD])
    return translations


def score(translations: list[str], references: list[str], language: str) -> dict[str, float]:
    """Corpus BLEU (sacrebleu's own words for Chinese) and chrF."""
    bleu = sacrebleu.corpus_bleu(translations, [references], tokenize="zh" if language == "zh" else "13a")
    chrf = sacrebleu.corpus_chrf(translations, [references])
    return {"bleu": round(bleu.score, 2), "chrf": round(chrf.score, 2), "sentences": len(references)}


def evaluate(
    model: MarianMTModel, vocabulary: Vocabulary, dev: Pairs, sentences: int
) -> dict[str, dict[str, float]]:
    """Scores by `corpus xx-yy`, on sentences spread evenly over each corpus."""
    scores = {}
    for corpus in sorted(set(dev.corpus)):
        rows = [i for i, name in enumerate(dev.corpus) if name == corpus]
        rows = rows[:: max(1, len(rows) // sentences)][:sentences]
        for side in (0, 1):
            source, target = dev.languages[side], dev.languages[1 - side]
            output = translate(model, vocabulary, [dev.texts[side][i] for i in rows], target)
            scores[f"{corpus} {source}-{target}"] = score(
                output, [dev.texts[1 - side][i] for i in rows], target
            )
    return scores
