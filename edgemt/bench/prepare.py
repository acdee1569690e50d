"""From what the user named to rows that can be measured: languages, fresh processes, tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from edgemt.bench.cold import Start, cold_start
from edgemt.bench.contenders import BundleContender, Mode, bundle_labels
from edgemt.bench.measure import Progress
from edgemt.bench.results import Counts, Row
from edgemt.bench.workload import Sentence, Workload
from edgemt.bundle import Bundle
from edgemt.errors import UsageError
from edgemt.translator import Translator

COLD_RUNS = 3  # fresh processes for each row


def speakable(workload: Workload, bundles: Sequence[Bundle]) -> tuple[Workload, int]:
    """The texts whose languages every bundle has, both languages filled in, and how many were left out."""
    from edgemt.text import language_of

    shared = [
        pair for pair in bundles[0].manifest.languages if all(pair in b.manifest.languages for b in bundles)
    ]

    def fill(sentence: Sentence) -> Sentence:
        source = sentence.source_lang or language_of(sentence.source)
        likely = [
            pair for pair in shared if source in (pair[0], None) and sentence.target_lang in (pair[1], None)
        ]
        pair = likely[0] if likely else [source, sentence.target_lang]
        return dataclasses.replace(sentence, source_lang=pair[0], target_lang=pair[1])

    filled = [fill(sentence) for sentence in workload.sentences]
    kept = [sentence for sentence in filled if [sentence.source_lang, sentence.target_lang] in shared]
    if not kept:
        pairs = ", ".join("→".join(pair) for pair in shared) or "no common pair"
        raise UsageError(
            f"none of the {len(filled)} texts of the workload {workload.name} is in a language pair "
            f"of every bundle ({pairs}); give texts in these languages with --workload"
        )
    return dataclasses.replace(workload, sentences=kept), len(filled) - len(kept)


def own_mode(bundle: Bundle) -> Mode:
    """The search that the bundle itself asks for."""
    return Mode.of_beam(bundle.manifest.generation.get("beam", 1))


def prepare(
    bundles: Sequence[Bundle],
    modes: Sequence[Mode],
    sentences: Sequence[Sentence],
    threads: int,
    progress: Progress,
) -> tuple[list[BundleContender], list[Row]]:
    """Start each bundle × mode afresh, load the bundles, count tokens. No modes: each bundle's own."""
    pairs = [(bundle, mode) for bundle in bundles for mode in modes or [own_mode(bundle)]]
    labels = bundle_labels([b for b, _ in pairs], [m for _, m in pairs] if modes else [None] * len(pairs))
    starts: list[list[Start]] = [[] for _ in pairs]
    for attempt in range(COLD_RUNS):
        for place, (bundle, mode) in enumerate(pairs):
            progress("starting fresh processes", (attempt + place / len(pairs)) / COLD_RUNS)
            # The first process goes through the whole workload, which shows how much memory that takes.
            chosen = sentences if attempt == 0 else sentences[:1]
            starts[place].append(cold_start(bundle, threads, mode, chosen))
    translators = [Translator(bundle, threads=threads) for bundle in bundles]
    contenders, rows = [], []
    for place, (bundle, mode) in enumerate(pairs):
        progress("counting tokens", place / len(pairs))
        translator = translators[place * len(translators) // len(pairs)]
        contender = BundleContender(labels[place], translator, mode)
        contenders.append(contender)
        counts = count_tokens(contender, sentences)
        rows.append(Row(contender.label, "bundle", starts[place], mode, bundle, counts))
    return contenders, rows


def count_tokens(contender: BundleContender, sentences: Sequence[Sentence]) -> Counts:
    """Translate every text once, off the clock: counts its tokens and touches all of the model's memory."""
    source, target = [], []
    for sentence in sentences:
        segments = list(contender.segments(sentence))
        source.append(sum(segment.source_tokens for segment in segments))
        target.append(sum(segment.target_tokens for segment in segments))
    return Counts(source, target)
