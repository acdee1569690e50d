"""Write the model card of a checkpoint: what it is, its scores on test rows, and forty of its translations.

    python model_card.py --checkpoint DIR --bundle FP32 --bundle INT8 [--parallel FILE]

The scores are of every test row as `edgemt translate` gives it, greedy. Test rows are read here and nowhere
else: nothing is chosen by them.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import corpora
import jinja2
import sacrebleu
from safetensors import safe_open

import edgemt
from edgemt.training.evaluate import score

SHOWN = 40  # translations in the card, half of them in each direction
CORPORA = {
    "clinical": "clinical (this project's)",
    "tatoeba": "tatoeba (everyday)",
    "tico19": "TICO-19 (COVID-19)",
}


class Scored(NamedTuple):
    corpus: str
    direction: str
    sentences: int
    by_bundle: dict[str, dict[str, float]]


class Shown(NamedTuple):
    direction: str
    source: str
    output: str
    reference: str
    chrf: float


def read_test(parallel: Path | None) -> dict[str, list[corpora.Pair]]:
    rows = [*corpora.clinical(), *(corpora.parallel(parallel) if parallel else ())]
    test: dict[str, dict[corpora.Pair, None]] = defaultdict(dict)  # the clinical rows are in both files
    for row in rows:
        if row.split == "test" and row.pair.corpus in CORPORA:
            test[row.pair.corpus][row.pair] = None
    return {corpus: list(pairs) for corpus, pairs in test.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, action="append", required=True, help="the last one is shown")
    parser.add_argument("--parallel", type=Path)
    args = parser.parse_args()
    test = read_test(args.parallel)
    translators = [edgemt.load(path) for path in args.bundle]
    scores: dict[tuple[str, str], dict[str, dict[str, float]]] = defaultdict(dict)
    shown: list[Shown] = []
    for translator in translators:
        precision = translator.bundle.manifest.precision
        for corpus, pairs in test.items():
            zh, en = [pair.zh for pair in pairs], [pair.en for pair in pairs]
            for source, target, texts, references in (("zh", "en", zh, en), ("en", "zh", en, zh)):
                outputs = [translator.translate(t, source_lang=source, target_lang=target) for t in texts]
                result = score(outputs, references, target)
                scores[corpus, f"{source}→{target}"][precision] = result
                print(precision, corpus, f"{source}-{target}", result, flush=True)
                if translator is translators[-1] and corpus == "clinical":
                    for i in sorted(random.Random(13).sample(range(len(texts)), SHOWN // 2)):
                        chrf = sacrebleu.sentence_chrf(outputs[i], [references[i]]).score
                        shown.append(Shown(f"{source}→{target}", texts[i], outputs[i], references[i], chrf))
    facts = json.loads((args.checkpoint / "edgemt.json").read_text(encoding="utf-8"))
    template = jinja2.Template(
        (Path(__file__).parent / "model_card.md.j2").read_text(encoding="utf-8"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    card = template.render(
        facts=facts,
        parameters=count_parameters(args.checkpoint / "model.safetensors"),
        precisions=[translator.bundle.manifest.precision for translator in translators],
        scored=[
            Scored(CORPORA[corpus], direction, len(test[corpus]), by)
            for (corpus, direction), by in scores.items()
        ],
        shown=shown,
    )
    partial = args.checkpoint / "README.md.partial"
    partial.write_text(card, encoding="utf-8")
    partial.rename(args.checkpoint / "README.md")


def count_parameters(file: Path) -> int:
    with safe_open(file, framework="numpy") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118


if __name__ == "__main__":
    main()
