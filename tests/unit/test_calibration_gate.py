"""The quality gate: the same numbers as sacrebleu, sound bounds, and the verdict on a real bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import sacrebleu

from edgemt.calibration.gate import GateResult, Output, agreement, decode, gate, judge, sign_test
from edgemt.errors import UsageError
from edgemt.translator import load


class Row(NamedTuple):
    source_lang: str
    target_lang: str
    source: str
    target: str


def rows_of(pairs: list[tuple[str, str]], count: int) -> list[Row]:
    """Half of them zh-en, half en-zh."""
    return [
        Row("zh", "en", zh, en) if index % 2 else Row("en", "zh", en, zh)
        for index, (zh, en) in enumerate(pairs[:count])
    ]


def outputs_of(texts: list[str]) -> list[Output]:
    return [Output(text, tuple(map(ord, text))) for text in texts]


def worse(text: str) -> str:
    """A worse translation that changes no fact."""
    half = len(text) // 2
    return text[half:] + text[:half]


@pytest.fixture(scope="module")
def rows(clinical_pairs: list[tuple[str, str]]) -> list[Row]:
    return rows_of(clinical_pairs, 200)


def test_scores_are_sacrebleu_s(rows: list[Row]) -> None:
    same = [row.target for row in rows]
    other = [worse(text) if i % 3 == 0 else text for i, text in enumerate(same)]
    result = judge(rows, outputs_of(same), outputs_of(other)).directions
    for direction, tokenizer in (("zh-en", "13a"), ("en-zh", "zh")):
        chosen = [i for i, row in enumerate(rows) if f"{row.source_lang}-{row.target_lang}" == direction]
        texts, references = [other[i] for i in chosen], [[same[i] for i in chosen]]
        bleu = sacrebleu.corpus_bleu(texts, references, tokenize=tokenizer, force=True).score
        assert result[direction].bleu.candidate == pytest.approx(bleu, abs=1e-9)
        assert result[direction].bleu.reference == pytest.approx(100.0)
        chrf = sacrebleu.corpus_chrf(texts, references).score
        assert result[direction].chrf.candidate == pytest.approx(chrf, abs=1e-9)
        assert result[direction].sentences == len(chosen)


def test_the_same_outputs_pass_without_any_drop(rows: list[Row]) -> None:
    outputs = outputs_of([worse(row.target) for row in rows])
    result = judge(rows, outputs, outputs, max_bleu_drop=0.0)
    assert result.passed and not result.reasons and not result.critical and not result.repaired
    for direction in result.directions.values():
        assert (direction.bleu.drop, direction.bleu.lower, direction.bleu.upper) == (0.0, 0.0, 0.0)
        assert direction.tokens_equal == direction.sentences_identical == 1.0


def test_the_bounds_hold_the_drop_and_shrink_with_more_sentences(
    clinical_pairs: list[tuple[str, str]],
) -> None:
    widths = []
    for count in (100, 1600):
        rows = rows_of(clinical_pairs, count)
        same = [row.target for row in rows]
        other = [worse(text) if i % 20 < 2 else text for i, text in enumerate(same)]
        score = judge(rows, outputs_of(same), outputs_of(other)).directions["zh-en"].bleu
        assert score.lower < score.drop < score.upper
        widths.append(score.upper - score.lower)
    assert widths[1] < widths[0] / 2


def test_a_worse_candidate_fails_and_the_reason_says_where(rows: list[Row]) -> None:
    same = outputs_of([row.target for row in rows])
    other = [Output(worse(o.text), o.tokens) if i % 2 == 0 else o for i, o in enumerate(same)]  # en-zh only
    result = judge(rows, same, other)
    assert not result.passed
    assert all(reason.startswith("en-zh: ") for reason in result.reasons[:2])
    assert judge(rows, other, same).passed, "a better candidate passes"


def test_a_new_critical_error_fails_however_good_the_scores(rows: list[Row]) -> None:
    rows = [*rows, Row("zh", "en", "每次吃三片。", "Take three tablets each time.")]
    right = outputs_of([row.target for row in rows])
    wrong = [*right[:-1], Output("Take four tablets each time.", (1,))]
    result = judge(rows, right, wrong, max_bleu_drop=10.0, max_new_critical=0)
    assert not result.passed and len(result.reasons) == 1 and "(number 1)" in result.reasons[0]
    (change,) = result.critical
    assert (change.row, change.kind, change.fact) == (len(rows), "number", "3 to 4")
    assert result.directions["zh-en"].critical_new == 1 and result.directions["en-zh"].critical_new == 0
    assert judge(rows, right, wrong, max_bleu_drop=10.0, max_new_critical=1).passed
    back = judge(rows, wrong, right, max_bleu_drop=10.0, max_new_critical=0)
    assert back.passed and len(back.repaired) == 1 and not back.critical


def test_without_a_limit_only_more_than_chance_fails(rows: list[Row]) -> None:
    more = [Row("zh", "en", f"每次吃{n}片。", f"Take {n} tablets each time.") for n in range(3, 13)]
    right = outputs_of([row.target for row in more])
    wrong = outputs_of([row.target.replace("Take", "Take 20 of") for row in more])
    for new, repaired, passes in ((4, 4, True), (3, 0, True), (4, 0, False), (9, 1, False), (1, 9, True)):
        one = right[:new] + wrong[new : new + repaired]
        other = wrong[:new] + right[new : new + repaired]
        chosen = more[: new + repaired]
        result = judge(chosen, one, other, max_bleu_drop=100.0)
        assert (len(result.critical), len(result.repaired)) == (new, repaired)
        assert result.passed == passes, (new, repaired, result.critical_p)


@pytest.mark.parametrize(
    ("new", "repaired", "p"), [(0, 0, 1.0), (1, 0, 0.5), (5, 0, 1 / 32), (0, 5, 1.0), (1, 1, 0.75)]
)
def test_the_sign_test(new: int, repaired: int, p: float) -> None:
    assert sign_test(new, repaired) == pytest.approx(p)


def test_agreement_counts_positions_and_the_end() -> None:
    one, other = Output("", (5, 6, 7)), Output("", (5, 9, 7, 8))
    assert agreement([one], [one]) == 1.0
    assert agreement([one], [other]) == pytest.approx(2 / 5)
    assert agreement([Output("", ())], [one]) == 0.0


def test_no_rows_is_an_error() -> None:
    with pytest.raises(UsageError, match="no held-out sentences"):
        judge([], [], [])


def test_a_real_bundle_agrees_with_itself(toy_bundle: Path, rows: list[Row]) -> None:
    translator, some = load(toy_bundle), rows[:6]
    result = gate(translator, translator, some)
    assert result.passed
    assert set(result.directions) == {"zh-en", "en-zh"}
    for row, output in zip(some, decode(translator, some), strict=True):
        assert output.text == translator.translate(
            row.source, source_lang=row.source_lang, target_lang=row.target_lang, beam=1
        )
    text = json.dumps(result.to_json())
    assert json.loads(text)["directions"]["zh-en"]["sentences"] == 3
    assert isinstance(result, GateResult)
