"""INT8 and INT4 of a checkpoint against its FP32, on the sentences of a clinic that come with edgemt.

Forty sentences a direction can show a defect, not prove that there is none. So a precision fails here where a
drop of more than ALLOWED is proven (the lower 95 % bound of a paired bootstrap lies above it) or where
critical errors are more than chance explains. The gate proper is that of `edgemt export`, on more sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from edgemt.bundle import Bundle
from edgemt.calibration.gate import CRITICAL_P, GateResult, Output, decode, judge
from edgemt.errors import EdgemtError
from edgemt.export.rows import COLUMNS
from edgemt.translator import Translator
from edgemt.verify.report import GATE
from edgemt.verify.sections import Check, NotRun, Section, Table, without_folders
from edgemt.verify.texts import Pair, clinic, first

ALLOWED = 0.5  # points of BLEU and chrF
QUICK = 8  # sentences a direction
SHOWN = 4  # of them, side by side


def sentences(languages: list[list[str]], quick: bool) -> list[Pair]:
    if pairs := clinic(languages, QUICK if quick else None):
        return pairs
    raise NotRun("no sentences are built in for this model's languages")


def section(
    pairs: Sequence[Pair],
    fp32: list[Output],
    export: Callable[[str], Bundle],
    precisions: Sequence[str],
    threads: int,
) -> Section:
    """`fp32`: its translations of the pairs; `export` makes a bundle of a precision."""
    made, outputs = Section(*GATE), {"fp32": fp32}
    scores, changes = [], []
    for precision in precisions:
        try:
            bundle = export(precision)
        except EdgemtError as error:
            made.checks.append(
                Check(f"{precision} is exported", False, without_folders(str(error)), "exported")
            )
            continue
        outputs[precision] = decode(Translator(bundle, threads=threads), pairs)
        result = judge(pairs, outputs["fp32"], outputs[precision])
        made.facts[f"bytes of {precision}"] = sum(facts["bytes"] for facts in bundle.manifest.files.values())
        made.checks += checks(precision, result)
        scores += rows(precision, result)
        changes += [(precision, c.kind, c.fact, c.source, c.reference, c.candidate) for c in result.critical]
    made.facts["sentences"] = f"{len(pairs)}, of edgemt's own clinic sentences"
    made.tables.append(Table("scores against the references", SCORES, scores))
    if changes:
        columns = ("precision", "kind", "what", "source", "FP32", "this")
        made.tables.append(Table("critical errors that FP32 does not make", columns, changes))
    made.tables.append(samples(pairs, outputs))
    made.notes.append(
        f"fails where a drop of more than {ALLOWED} is proven; so few sentences do not prove the opposite, "
        "as edgemt export does with --heldout and more of them"
    )
    return made


SCORES = (
    "precision", "direction", "sentences", "chrF of FP32", "chrF", "drop (95 % bounds)", "BLEU of FP32",
    "BLEU", "drop (95 % bounds)", "tokens equal", "sentences identical", "critical: new, repaired",
)  # fmt: skip


def rows(precision: str, result: GateResult) -> list[tuple]:
    return [
        (
            precision,
            direction,
            found.sentences,
            *(
                value
                for score in (found.chrf, found.bleu)
                for value in (
                    round(score.reference, 2),
                    round(score.candidate, 2),
                    f"{score.drop:+.2f} ({score.lower:+.2f} to {score.upper:+.2f})",
                )
            ),
            f"{found.tokens_equal:.1%}",
            f"{found.sentences_identical:.1%}",
            f"{found.critical_new}, {found.critical_repaired}",
        )
        for direction, found in result.directions.items()
    ]


def checks(precision: str, result: GateResult) -> list[Check]:
    proven = [
        f"{direction}: {name} by {score.lower:.2f} at least"
        for direction, found in result.directions.items()
        for name, score in (("chrF", found.chrf), ("BLEU", found.bleu))
        if score.lower > ALLOWED
    ]
    new, repaired = len(result.critical), len(result.repaired)
    return [
        Check(
            f"{precision}: no drop above {ALLOWED} is proven", not proven, "; ".join(proven) or "none", "none"
        ),
        Check(
            f"{precision}: critical errors are no more than chance explains",
            result.critical_p >= CRITICAL_P,
            f"{new} new, {repaired} repaired (p = {result.critical_p:.3f})",
            f"p at least {CRITICAL_P}",
        ),
    ]


def samples(pairs: Sequence[Pair], outputs: dict[str, list[Output]]) -> Table:
    """The first sentences of each direction, as every precision translates them."""
    shown = [pairs.index(pair) for pair in first(pairs, SHOWN)]
    lines = [(pairs[i].source, pairs[i].target, *(made[i].text for made in outputs.values())) for i in shown]
    return Table("translations", ("source", "reference", *outputs), lines)


def calibration(work: Path, languages: list[list[str]]) -> Path:
    """Sentences to calibrate on, where the checkpoint brings none: the clinic's references, turned around.

    None of them is a source of the comparison.
    """
    file = work / "calibration.tsv"
    turned = clinic([[target, source] for source, target in languages])
    lines = ["\t".join((pair[1], pair[0], pair[3], pair[2])) for pair in turned]
    file.write_text("\n".join(["\t".join(COLUMNS), *lines]) + "\n", encoding="utf-8")
    return file
