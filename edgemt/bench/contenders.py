"""What is measured: a bundle in one mode of search, or a command. To the clock they are all alike."""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edgemt.bench.foreign import Foreign
from edgemt.bench.workload import Sentence
from edgemt.errors import UsageError

SHOWN = 40  # characters of a command in its label

if TYPE_CHECKING:
    from edgemt.bundle import Bundle
    from edgemt.glossary import Glossary
    from edgemt.translator import Segment, Translator


class Contender(Protocol):
    """Anything that translates. `label` names its row; what `translate` returns is not looked at."""

    @property
    def label(self) -> str: ...
    def translate(self, sentence: Sentence, /) -> object: ...


@dataclass(frozen=True)
class Mode:
    """How a bundle searches: greedily, with a beam, or with the terms of each text."""

    name: str  # "greedy", "beam 4", "glossary"
    beam: int | None = None  # None: the bundle's own
    glossary: bool = False

    @classmethod
    def of_beam(cls, beam: int) -> Mode:
        return cls("greedy" if beam == 1 else f"beam {beam}", beam)

    @classmethod
    def parse(cls, text: str) -> Mode:
        """Raises UsageError for what is no mode."""
        if text == "greedy":
            return cls.of_beam(1)
        if text == "glossary":
            return cls("glossary", glossary=True)
        if (beam := re.fullmatch(r"beam ?([1-9][0-9]{0,3})", text)) is not None:
            return cls.of_beam(int(beam[1]))
        raise UsageError(
            f"there is no mode {text!r}; give some of greedy, beamN (beam4) and glossary, "
            "with commas between them"
        )


class BundleContender:
    """A loaded bundle in one mode. Modes of one bundle may share its translator."""

    kind = "bundle"

    def __init__(self, label: str, translator: Translator, mode: Mode) -> None:
        self.label, self.translator, self.mode = label, translator, mode
        self._glossaries: dict[int, Glossary] = {}

    def translate(self, sentence: Sentence) -> str:
        return self.translator.translate(
            sentence.source,
            source_lang=sentence.source_lang,
            target_lang=sentence.target_lang,
            glossary=self.glossary(sentence),
            beam=self.mode.beam,
        )

    def segments(self, sentence: Sentence) -> Iterator[Segment]:
        """The same translation in segments, which know their tokens."""
        return self.translator.segments(
            sentence.source,
            source_lang=sentence.source_lang,
            target_lang=sentence.target_lang,
            glossary=self.glossary(sentence),
            beam=self.mode.beam,
        )

    def glossary(self, sentence: Sentence) -> Glossary | None:
        """The terms of the text, indexed once (before the clock starts), as one who keeps a glossary does."""
        if not (self.mode.glossary and sentence.terms):
            return None
        from edgemt.glossary import Glossary

        if isinstance(sentence.terms, Glossary):
            return sentence.terms
        found = self._glossaries.get(sentence.number)
        if found is None:
            found = self._glossaries[sentence.number] = Glossary(sentence.terms)
        return found


class CommandContender:
    """A command that is given each text as a line; see foreign.py. Who made the `foreign` closes it."""

    kind = "command"

    def __init__(self, label: str, foreign: Foreign) -> None:
        self.label, self.foreign = label, foreign

    def translate(self, sentence: Sentence) -> str:
        return self.foreign.translate(sentence.source, sentence.source_lang or "", sentence.target_lang or "")

    def faults(self) -> tuple[int, int]:
        return self.foreign.faults()


def bundle_labels(bundles: Sequence[Bundle], modes: Sequence[Mode | None]) -> list[str]:
    """A label for each row, `bundles[i]` in `modes[i]`: name and precision; the folder too where that is not
    enough to tell bundles apart; the mode where there are several."""
    paths = {bundle.path.resolve(): bundle for bundle in bundles}
    plain = Counter(_plain(bundle) for bundle in paths.values())
    several = len({mode.name for mode in modes if mode}) > 1
    labels = [
        _plain(bundle)
        + (f" ({bundle.path.name})" if plain[_plain(bundle)] > 1 else "")
        + (f", {mode.name}" if mode and several else "")
        for bundle, mode in zip(bundles, modes, strict=True)
    ]
    return numbered(labels)


def command_label(command: str) -> str:
    """The command in short, without the folders of its files: a report may be shown to others."""
    words = [Path(word).name if _is_path(word) else word for word in shlex.split(command)]
    label = " ".join(words)
    return label if len(label) <= SHOWN else f"{label[: SHOWN - 1]}…"


def _is_path(word: str) -> bool:
    return word.startswith(("/", "./", "../", "~")) or ("/" in word and os.path.exists(word))


def numbered(labels: Sequence[str]) -> list[str]:
    """The labels, those that are alike with their place behind them."""
    count = Counter(labels)
    return [f"{label} #{n}" if count[label] > 1 else label for n, label in enumerate(labels, 1)]


def _plain(bundle: Bundle) -> str:
    return f"{bundle.manifest.name} {bundle.manifest.precision}"
