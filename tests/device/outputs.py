"""What a bundle says on this machine and on another processor, sentence by sentence, and how near they are.

The file is a script for the other processor's Python too: outputs.py BUNDLE < texts > sentences, both JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import edgemt
from edgemt.family import Request
from edgemt.runtimes.protocol import Want
from edgemt.search import SearchOptions
from edgemt.text import pieces
from edgemt.translator import Translator

Text = tuple[str, str, str]  # source language, target language, text
Sentence = tuple[str, str, tuple[int, ...]]  # direction, source, target tokens


@dataclass(frozen=True)
class Difference:
    """A sentence that two processors translate differently."""

    direction: str
    source: str
    here: str
    there: str
    gap: float  # between the logits, here, of the first two tokens that differ; 0 is a tie


def outputs(bundle: Path, texts: Sequence[Text]) -> list[Sentence]:
    """The sentences of the texts and their greedy translations, by this process."""
    translator, options, found = edgemt.load(bundle), SearchOptions(), []
    for source_lang, target_lang, text in texts:
        for piece in pieces(text, source_lang, translator.fits):
            if piece.translate:
                request = Request(piece.text, source_lang, target_lang)
                (answer,) = translator.family.generate(translator.program, [request], options)
                found.append((request.direction, piece.text, tuple(answer.tokens)))
    return found


def read(answer: bytes) -> list[Sentence]:
    return [(direction, source, tuple(tokens)) for direction, source, tokens in json.loads(answer)]


def emulated(bundle: Path, texts: Sequence[Text]) -> list[Sentence]:
    """The same on the emulated Cortex-A76."""
    from tests.device import emulate

    done = emulate.run([__file__, bundle.resolve()], stdin=json.dumps(texts).encode(), timeout=3600)
    assert done.returncode == 0, done.stderr.decode()
    return read(done.stdout)


def without_vnni(bundle: Path, texts: Sequence[Text]) -> list[Sentence]:
    """The same on an emulated x86 processor without VNNI."""
    from tests.device import emulate

    done = subprocess.run(
        emulate.without_vnni([__file__, bundle.resolve()]),
        input=json.dumps(texts).encode(),
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(emulate.REPOSITORY)},
        timeout=3600,
    )
    assert done.returncode == 0, done.stderr.decode()
    return read(done.stdout)


def differences(bundle: Path, here: Sequence[Sentence], there: Sequence[Sentence]) -> list[Difference]:
    """Where the two part, and how narrowly."""
    assert [one[:2] for one in here] == [other[:2] for other in there]
    translator = edgemt.load(bundle)
    say = translator.tokenizer.decode
    return [
        Difference(*one[:2], say(one[2]), say(other[2]), gap(translator, *one, other[2]))
        for one, other in zip(here, there, strict=True)
        if one != other
    ]


def gap(
    translator: Translator, direction: str, source: str, here: Sequence[int], there: Sequence[int]
) -> float:
    """The difference of this processor's logits for the first two tokens in which the outputs differ."""
    model = translator.bundle.manifest.model
    one, other = ([*tokens, model.eos_id] for tokens in (here, there))
    same = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    row = [*model.source_prefix[direction], *translator.tokenizer.encode(source), model.eos_id]
    ids = np.array([row], np.int32)
    encoded = translator.program.encode(ids, np.array([ids.shape[1]], np.int32))
    session = translator.program.open(encoded, np.zeros(1, np.int32), same + 1)
    logits = np.zeros(0)
    for token in [model.start_id, *one[:same]]:  # one at a time, as in the search
        step = session.step(np.array([[token]], np.int32), np.ones(1, np.int32), Want(logits=True))
        assert step.logits is not None
        logits = step.logits[0, -1]
    return float(abs(logits[one[same]] - logits[other[same]]))


def report(title: str, sentences: int, found: Sequence[Difference]) -> None:
    """Print the agreement and every difference."""
    same = sentences - len(found)
    print(f"\n{title}: {same} of {sentences} sentences identical ({same / sentences:.1%})")
    for one in found:
        print(f"  {one.source}\n    here  {one.here}\n    there {one.there}  (logits {one.gap:.3f} apart)")


if __name__ == "__main__":
    json.dump(outputs(Path(sys.argv[1]), json.load(sys.stdin)), sys.stdout)
