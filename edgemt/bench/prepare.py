"""From what the user named to rows that can be measured: languages, fresh processes, tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from edgemt.bench.cold import Start, cold_command, cold_start
from edgemt.bench.contenders import (
    BundleContender,
    CommandContender,
    Mode,
    bundle_labels,
    command_label,
    numbered,
)
from edgemt.bench.foreign import Foreign
from edgemt.bench.measure import Progress, silent
from edgemt.bench.results import Counts, Row
from edgemt.bench.workload import Sentence, Workload
from edgemt.bundle import Bundle
from edgemt.errors import UsageError
from edgemt.text import language_of
from edgemt.translator import Translator

COLD_RUNS = 3  # fresh processes for each row


OTHER = {"zh": "en"}  # what a text is translated into where nobody says; all others into Chinese


def speakable(workload: Workload, bundles: Sequence[Bundle]) -> tuple[Workload, int]:
    """The texts whose languages every bundle has, both languages filled in, and how many were left out.

    Without bundles all texts stay, and Chinese is translated into English, all else into Chinese.
    """
    if not bundles:
        filled = [_guessed(sentence) for sentence in workload.sentences]
        return dataclasses.replace(workload, sentences=filled), 0
    first, *others = [bundle.manifest.languages for bundle in bundles]
    shared = [pair for pair in first if all(pair in languages for languages in others)]
    filled = [_filled(sentence, shared) for sentence in workload.sentences]
    kept = [sentence for sentence in filled if [sentence.source_lang, sentence.target_lang] in shared]
    if not kept:
        pairs = ", ".join("→".join(pair) for pair in shared) or "no common pair"
        raise UsageError(
            f"none of the {len(filled)} texts of the workload {workload.name} is in a language pair "
            f"of every bundle ({pairs}); give texts in these languages with --workload"
        )
    return dataclasses.replace(workload, sentences=kept), len(filled) - len(kept)


def _filled(sentence: Sentence, pairs: Sequence[Sequence[str]]) -> Sentence:
    source, target = sentence.source_lang or language_of(sentence.source), sentence.target_lang
    likely = [pair for pair in pairs if source in (pair[0], None) and target in (pair[1], None)]
    source, target = likely[0] if likely else (source, target)
    return dataclasses.replace(sentence, source_lang=source, target_lang=target)


def _guessed(sentence: Sentence) -> Sentence:
    source = sentence.source_lang or language_of(sentence.source) or "en"
    target = sentence.target_lang or OTHER.get(source, "zh")
    return dataclasses.replace(sentence, source_lang=source, target_lang=target)


def own_mode(bundle: Bundle) -> Mode:
    """The search that the bundle itself asks for."""
    return Mode.of_beam(bundle.manifest.generation.get("beam", 1))


def prepare_bundles(
    bundles: Sequence[Bundle],
    modes: Sequence[Mode],
    sentences: Sequence[Sentence],
    threads: int,
    progress: Progress = silent,
) -> tuple[list[BundleContender], list[Row]]:
    """Start each bundle × mode afresh, load the bundles, count tokens. No modes: each bundle's own."""
    pairs = [(bundle, mode) for bundle in bundles for mode in modes or [own_mode(bundle)]]
    labels = bundle_labels([b for b, _ in pairs], [m for _, m in pairs] if modes else [None] * len(pairs))
    starts: list[list[Start]] = [[] for _ in pairs]
    for attempt in range(COLD_RUNS):
        for place, (bundle, mode) in enumerate(pairs):
            progress("starting fresh processes", (attempt + place / len(pairs)) / COLD_RUNS)
            starts[place].append(cold_start(bundle, threads, mode, _of_start(sentences, attempt)))
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


def prepare_commands(
    foreigns: Sequence[Foreign], sentences: Sequence[Sentence], progress: Progress = silent
) -> tuple[list[CommandContender], list[Row]]:
    """Start each command afresh several times; the last process stays and has seen all texts once."""
    labels = numbered([command_label(foreign.command) for foreign in foreigns])
    contenders, rows = [], []
    for place, (foreign, label) in enumerate(zip(foreigns, labels, strict=True)):
        starts = []
        for attempt in range(COLD_RUNS):
            progress("starting commands", (place + attempt / COLD_RUNS) / len(foreigns))
            starts.append(cold_command(foreign, _of_start(sentences, attempt)))
        contender = CommandContender(label, foreign)
        for sentence in sentences:
            contender.translate(sentence)
        contenders.append(contender)
        rows.append(Row(label, "command", starts))
    return contenders, rows


def _of_start(sentences: Sequence[Sentence], attempt: int) -> Sequence[Sentence]:
    """The first process goes through the whole workload, which shows how much memory that takes."""
    return sentences if attempt == 0 else sentences[:1]


def count_tokens(contender: BundleContender, sentences: Sequence[Sentence]) -> Counts:
    """Translate every text once, off the clock: counts its tokens and touches all of the model's memory."""
    source, target = [], []
    for sentence in sentences:
        segments = list(contender.segments(sentence))
        source.append(sum(segment.source_tokens for segment in segments))
        target.append(sum(segment.target_tokens for segment in segments))
    return Counts(source, target)
