"""The quality gate: does a smaller variant still translate as well as FP32, on held-out sentences?

It passes if, for every direction, the drop of BLEU and of chrF from FP32 to the candidate is at most
`max_bleu_drop` even at the upper end of what the sample allows (one-sided 95 % bound of a paired bootstrap,
Koehn 2004, https://aclanthology.org/W04-3250), and if the candidate makes no new critical error
(`edgemt.calibration.critical`): at most `max_new_critical`, or, where that is None, no more than chance
explains beside those that it repairs (a sign test).

The strict rule suits a model whose outputs are settled. Where greedy search often has near-ties, any change
of rounding flips some words, for better as often as for worse: then only a surplus of the worse is a defect.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from tqdm import tqdm

from edgemt.calibration import critical
from edgemt.errors import UsageError
from edgemt.translator import Translator

RESAMPLES = 1000
SEED = 1
CONFIDENCE = 95  # per cent, one-sided, of the bootstrap
CRITICAL_P = 0.1  # of the sign test: stricter, for such an error can harm; four new and none repaired fail
BLEU_TOKENIZERS = {"zh": "zh", "ja": "char", "th": "char"}  # 13a elsewhere: words between spaces


class Row(Protocol):
    """A held-out sentence and its reference translation."""

    @property
    def source_lang(self) -> str: ...
    @property
    def target_lang(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def target(self) -> str: ...


@dataclass(frozen=True)
class Output:
    """What a model made of one row, and that in the ids of its vocabulary."""

    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Score:
    """A metric of both models. `lower` and `upper` bound the drop, each at CONFIDENCE per cent, one-sided."""

    reference: float
    candidate: float
    drop: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Direction:
    """The result of one direction. `tokens_equal`: of all positions, the share with the same token."""

    sentences: int
    bleu: Score
    chrf: Score
    tokens_equal: float
    sentences_identical: float
    critical_new: int
    critical_repaired: int


@dataclass(frozen=True)
class Change:
    """A critical error that one of the two models makes and the other does not, in full."""

    direction: str
    row: int  # of the held-out rows, from 1
    kind: str
    change: str
    fact: str
    source: str
    reference: str  # FP32's output
    candidate: str


@dataclass(frozen=True)
class GateResult:
    """`reasons` says why it failed, a sentence each; `critical` lists new errors, `repaired` the reverse."""

    passed: bool
    reasons: list[str]
    directions: dict[str, Direction]  # "zh-en" -> result
    critical: list[Change]
    repaired: list[Change]
    critical_p: (
        float  # how likely so many new ones, or more, would be if new and repaired were a coin's sides
    )
    max_bleu_drop: float
    max_new_critical: int | None
    resamples: int = RESAMPLES

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def gate(
    reference: Translator,
    candidate: Translator,
    rows: Sequence[Row],
    *,
    max_bleu_drop: float = 0.5,
    max_new_critical: int | None = None,
) -> GateResult:
    """Translate `rows` with both and judge. For several candidates, `decode` FP32 once and `judge` each."""
    return judge(
        rows,
        decode(reference, rows),
        decode(candidate, rows),
        max_bleu_drop=max_bleu_drop,
        max_new_critical=max_new_critical,
    )


def decode(translator: Translator, rows: Sequence[Row]) -> list[Output]:
    """Greedy translations of `rows`, in order, as a user gets them: long ones cut into sentences and clauses.

    One sentence at a time, as a device does: the activation scales of dynamic INT8 depend on the batch.
    """
    outputs = []
    for row in tqdm(rows, desc=f"decoding {translator.bundle.manifest.precision}", disable=None):
        segments = translator.segments(
            row.source, source_lang=row.source_lang, target_lang=row.target_lang, beam=1
        )
        text = "".join(segment.target for segment in segments)
        outputs.append(Output(text, tuple(translator.tokenizer.encode_target(text))))
    return outputs


def judge(
    rows: Sequence[Row],
    reference: Sequence[Output],
    candidate: Sequence[Output],
    *,
    max_bleu_drop: float = 0.5,
    max_new_critical: int | None = None,
) -> GateResult:
    """Compare outputs of FP32 and of a candidate. Raises UsageError if there are no rows."""
    if not rows:
        raise UsageError("the quality gate has no held-out sentences; give a file that has some")
    new = changes(rows, reference, candidate, repaired=False)
    repaired = changes(rows, reference, candidate, repaired=True)
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(f"{row.source_lang}-{row.target_lang}", []).append(index)
    directions = {}
    for direction, chosen in groups.items():
        ours, theirs = [reference[i] for i in chosen], [candidate[i] for i in chosen]
        references = [rows[i].target for i in chosen]
        tokenizer = BLEU_TOKENIZERS.get(direction.split("-")[1], "13a")
        directions[direction] = Direction(
            sentences=len(chosen),
            bleu=compare(BLEU(tokenize=tokenizer, force=True), ours, theirs, references),
            chrf=compare(CHRF(), ours, theirs, references),
            tokens_equal=agreement(ours, theirs),
            sentences_identical=identical(ours, theirs),
            critical_new=sum(change.direction == direction for change in new),
            critical_repaired=sum(change.direction == direction for change in repaired),
        )
    reasons = [
        f"{direction}: {name} may drop by {score.upper:.2f} (measured {score.drop:+.2f} on "
        f"{result.sentences} sentences), and {max_bleu_drop:g} is allowed"
        for direction, result in directions.items()
        for name, score in (("BLEU", result.bleu), ("chrF", result.chrf))
        if score.upper > max_bleu_drop
    ]
    p = sign_test(len(new), len(repaired))
    allowed = len(new) <= max_new_critical if max_new_critical is not None else p >= CRITICAL_P
    if not allowed:
        counts = {kind: sum(change.kind == kind for change in new) for kind in critical.KINDS}
        kinds = ", ".join(f"{kind} {count}" for kind, count in counts.items() if count)
        limit = "more than chance explains" if max_new_critical is None else f"{max_new_critical} allowed"
        against = f"against {len(repaired)} repaired (p = {p:.3f})"
        reasons.append(f"{len(new)} new critical errors ({kinds}) {against}, {limit}")
    return GateResult(not reasons, reasons, directions, new, repaired, p, max_bleu_drop, max_new_critical)


def sign_test(new: int, repaired: int) -> float:
    """One-sided: the probability of at least `new` heads in `new + repaired` throws of a fair coin."""
    throws = new + repaired
    return sum(math.comb(throws, heads) for heads in range(new, throws + 1)) / 2**throws


def compare(
    metric: BLEU | CHRF, reference: Sequence[Output], candidate: Sequence[Output], references: list[str]
) -> Score:
    """Corpus scores of two outputs and the bounds of the drop between them, by paired bootstrap.

    Resampling sums precomputed statistics of the sentences: a second for a thousand resamples.
    """
    count = len(references)
    drawn = np.random.default_rng(SEED).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    weights = np.concatenate([np.ones((1, count), np.int64), drawn])  # the sample itself, then resamples
    before, after = (
        np.array([metric._compute_score_from_stats(total).score for total in (weights @ statistics).tolist()])
        for statistics in (sentence_statistics(metric, side, references) for side in (reference, candidate))
    )
    drops = before - after
    lower, upper = np.percentile(drops[1:], [100 - CONFIDENCE, CONFIDENCE])
    return Score(float(before[0]), float(after[0]), float(drops[0]), float(lower), float(upper))


def sentence_statistics(
    metric: BLEU | CHRF, outputs: Sequence[Output], references: list[str]
) -> NDArray[np.int64]:
    """[sentences, counts] that add up to a corpus score (lengths and n-gram matches)."""
    texts = [output.text for output in outputs]
    return np.asarray(metric._extract_corpus_statistics(texts, [references]), np.int64)


def agreement(reference: Sequence[Output], candidate: Sequence[Output]) -> float:
    """Of all positions of the longer of each two outputs, ends included, the share with the same token."""
    equal = total = 0
    for one, other in zip(reference, candidate, strict=True):
        equal += sum(a == b for a, b in zip(one.tokens, other.tokens, strict=False))
        equal += len(one.tokens) == len(other.tokens)  # the end
        total += max(len(one.tokens), len(other.tokens)) + 1
    return equal / total


def identical(reference: Sequence[Output], candidate: Sequence[Output]) -> float:
    """The share of sentences whose tokens are all the same."""
    same = [one.tokens == other.tokens for one, other in zip(reference, candidate, strict=True)]
    return sum(same) / len(same)


def changes(
    rows: Sequence[Row], reference: Sequence[Output], candidate: Sequence[Output], repaired: bool
) -> list[Change]:
    """Critical errors that the candidate makes anew, or those of the reference that it repairs."""
    found = []
    for number, (row, one, other) in enumerate(zip(rows, reference, candidate, strict=True), 1):
        known = {row.source_lang, row.target_lang} <= set(critical.LANGUAGES)
        if not known or one.text == other.text:
            continue
        source = critical.facts(row.source, row.source_lang)
        right, wrong = (critical.facts(output.text, row.target_lang) for output in (one, other))
        if repaired:
            right, wrong = wrong, right
        found += [
            Change(
                f"{row.source_lang}-{row.target_lang}",
                number,
                error.kind,
                error.change,
                error.fact,
                row.source,
                one.text,
                other.text,
            )
            for error in critical.new_errors(source, right, wrong)
        ]
    return found
