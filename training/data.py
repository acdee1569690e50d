"""Pairs to batches: the order depends on the seed and the epoch alone, so a run can resume at any batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from edgemt.errors import UsageError
from edgemt.training.vocabulary import EOS, PAD, Vocabulary


class Pairs(NamedTuple):
    """A file of pairs: a header `corpus, xx, yy` names the languages, then one pair a line."""

    languages: tuple[str, str]
    corpus: list[str]
    texts: tuple[list[str], list[str]]


def read_pairs(path: Path) -> Pairs:
    if not path.is_file():
        raise UsageError(f"no training data at {path}: prepare it first (see examples/medical-zh-en)")
    lines = path.read_text(encoding="utf-8").split("\n")
    header = lines[0].split("\t")
    if len(header) != 3 or header[0] != "corpus":
        raise UsageError(
            f"{path}: the first line must be corpus, a language code, a language code (tab-separated)"
        )
    corpus, first, second = [], [], []
    for number, line in enumerate(lines[1:], 2):
        if not line:
            continue
        fields = line.split("\t")
        if len(fields) != 3:
            raise UsageError(f"{path}, line {number}: {len(fields)} fields instead of 3")
        corpus.append(fields[0])
        first.append(fields[1])
        second.append(fields[2])
    return Pairs((header[1], header[2]), corpus, (first, second))


class Batch(NamedTuple):
    """Token ids, [sentences, length], padded with PAD on the right.

    The decoder's input starts with PAD, the labels end in EOS.
    """

    source: torch.Tensor
    mask: torch.Tensor  # 1 where `source` is a token
    decoder_input: torch.Tensor
    labels: torch.Tensor
    target_tokens: int  # labels that are not padding

    def to(self, device: str) -> Batch:
        source, mask, decoder_input, labels = (part.to(device) for part in self[:4])
        return Batch(source, mask, decoder_input, labels, self.target_tokens)


class TrainingData:
    """The encoded pairs and the order in which an epoch shows them, both directions of each."""

    def __init__(
        self,
        pairs: Pairs,
        vocabulary: Vocabulary,
        weights: Mapping[str, float],
        batch_tokens: int,
        max_length: int,
        seed: int,
    ) -> None:
        self.absent = sorted(set(weights) - set(pairs.corpus))  # weighted, but without a single pair
        self.tags = [vocabulary.language_id(language) for language in pairs.languages]
        used = [i for i, name in enumerate(pairs.corpus) if not weights or weights.get(name, 0) > 0]
        ids = [vocabulary.encode([side[i] for i in used]) for side in pairs.texts]
        kept = [k for k in range(len(used)) if all(0 < len(side[k]) < max_length - 1 for side in ids)]
        self.sides = [[np.array(side[k], dtype=np.int32) for k in kept] for side in ids]
        if not kept:
            raise UsageError("no training pairs: every pair is empty, too long or of a corpus without weight")
        self.weights = np.array([weights.get(pairs.corpus[used[k]], 1.0) for k in kept])
        self.lengths = np.array([[len(text) for text in side] for side in self.sides])
        self.batch_tokens = batch_tokens
        self.seed = seed

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """Batches of the epoch in order, each [sentences, 2] of (pair, source side)."""
        random = np.random.default_rng([self.seed, epoch])
        times = np.floor(self.weights + random.random(len(self.weights))).astype(np.int64)
        pair = np.repeat(np.arange(len(times)), times)
        examples = np.concatenate([np.stack([pair, np.full_like(pair, side)], axis=1) for side in (0, 1)])
        source = self.lengths[examples[:, 1], examples[:, 0]] + 2  # language token and end
        target = self.lengths[1 - examples[:, 1], examples[:, 0]] + 1
        # Sorted by length with a little noise: alike in a batch, yet not the same batches in every epoch.
        noise = random.random(len(examples))
        order = np.lexsort((noise, source, target + np.round(noise)))
        batches, start, longest = [], 0, 0
        for position, example in enumerate(order):
            longer = max(longest, int(source[example]), int(target[example]))
            if (position - start + 1) * longer > self.batch_tokens and position > start:
                batches.append(examples[order[start:position]])
                start, longer = position, max(int(source[example]), int(target[example]))
            longest = longer
        batches.append(examples[order[start:]])
        return [batches[i] for i in random.permutation(len(batches))]

    def batch(self, examples: np.ndarray) -> Batch:
        """Token ids of examples [sentences, 2]."""
        sources = [[self.tags[1 - side], *self.sides[side][pair], EOS] for pair, side in examples]
        targets = [[*self.sides[1 - side][pair], EOS] for pair, side in examples]
        source, labels = padded(sources), padded(targets)
        decoder_input = torch.full_like(labels, PAD)
        decoder_input[:, 1:] = labels[:, :-1]
        return Batch(source, (source != PAD).long(), decoder_input, labels, int((labels != PAD).sum()))

    def batches(self, epoch: int, position: int) -> Iterator[Batch]:
        """The rest of an epoch from batch `position` on."""
        for examples in self.epoch(epoch)[position:]:
            yield self.batch(examples)


def padded(rows: list[list[int]]) -> torch.Tensor:
    """Token ids [rows, longest], filled up with PAD."""
    width = max(map(len, rows))
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
