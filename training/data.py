"""Pairs, examples, batches: their order depends on seed and epoch alone, so a run resumes at any batch."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch

from edgemt.errors import UsageError
from edgemt.training.config import Config


class Pairs(NamedTuple):
    """A file of pairs; `document` is "" where a row belongs to none."""

    languages: tuple[str, str]
    corpus: list[str]
    texts: tuple[list[str], list[str]]
    document: list[str]


class Batch(Protocol):
    """What a family's loss takes: token ids, padded."""

    @property
    def target_tokens(self) -> int:
        """Labels that count."""
        ...

    @property
    def sentences(self) -> int: ...

    @property
    def tokens(self) -> int:
        """All token ids of the longest side, padding included: what memory and time follow."""
        ...

    def to(self, device: str) -> Batch: ...


class Examples(Protocol):
    """What a family made of the pairs."""

    weights: np.ndarray  # [examples]: times an epoch shows each, with a fraction
    lengths: np.ndarray  # [examples, sides], special tokens included: a batch is bounded by the longest
    target_lengths: np.ndarray  # [examples]: labels of each, so that every process knows every batch's count

    def batch(self, chosen: np.ndarray) -> Batch:
        """Token ids of the examples of these numbers [sentences]."""
        ...


class Batches:
    """The batches of a run, one after the other, over the ends of epochs.

    `epoch` and `position` (batches of the epoch that are done) say where it is, and may be set.
    """

    def __init__(self, examples: Examples, batch_tokens: int, seed: int) -> None:
        self.examples = examples
        self.batch_tokens = batch_tokens
        self.seed = seed
        self.epoch = self.position = 0
        self._order: tuple[int, list[np.ndarray]] = (-1, [])

    def take(self, count: int) -> list[np.ndarray]:
        """The next `count` batches, each the numbers of its examples."""
        taken = []
        while len(taken) < count:
            if self._order[0] != self.epoch:
                self._order = (self.epoch, self.order(self.epoch))
            if self.position == len(self._order[1]):
                self.epoch, self.position = self.epoch + 1, 0
                continue
            taken.append(self._order[1][self.position])
            self.position += 1
        return taken

    def order(self, epoch: int) -> list[np.ndarray]:
        """All batches of an epoch: at most `batch_tokens` tokens of the longest side, padding included."""
        examples, random = self.examples, np.random.default_rng([self.seed, epoch])
        times = np.floor(examples.weights + random.random(len(examples.weights))).astype(np.int64)
        shown = np.repeat(np.arange(len(times)), times)
        lengths = examples.lengths[shown]
        # Sorted by length with a little noise: alike in a batch, yet not the same batches in every epoch.
        noise = random.random(len(shown))
        order = np.lexsort((noise, *lengths[:, :-1].T, lengths[:, -1] + np.round(noise)))
        batches, start, longest = [], 0, 0
        for position, length in enumerate(lengths.max(axis=1)[order].tolist()):
            longer = max(longest, length)
            if (position - start + 1) * longer > self.batch_tokens and position > start:
                batches.append(shown[order[start:position]])
                start, longer = position, length
            longest = longer
        if start < len(order):
            batches.append(shown[order[start:]])
        return [batches[i] for i in random.permutation(len(batches))]


def used_rows(pairs: Pairs, weights: Mapping[str, float]) -> list[int]:
    """Numbers of the rows whose corpus has a weight; of all rows if there are no weights."""
    return [i for i, name in enumerate(pairs.corpus) if not weights or weights.get(name, 0) > 0]


def absent(pairs: Pairs, weights: Mapping[str, float]) -> list[str]:
    """The corpora with a weight, but without a single pair."""
    return sorted({name for name, weight in weights.items() if weight > 0} - set(pairs.corpus))


def directions(pairs: Pairs, asked: Iterable[str]) -> list[int]:
    """The source sides (0, 1) of the directions asked for ("zh-en"); of both if none is."""
    first, second = pairs.languages
    sides = {f"{first}-{second}": 0, f"{second}-{first}": 1}
    unknown = [direction for direction in asked if direction not in sides]
    if unknown:
        raise UsageError(f"data.directions: {unknown[0]} is not in the data, which has {', '.join(sides)}")
    return [sides[direction] for direction in asked] or [0, 1]


def padded(rows: list[list[int]], pad: int) -> torch.Tensor:
    """Token ids [rows, longest], filled up on the right."""
    width = max(map(len, rows))
    return torch.tensor([row + [pad] * (width - len(row)) for row in rows])


def read_data(directory: Path, config: Config, say: Callable[[str], None]) -> tuple[Pairs, Pairs]:
    """The training pairs, and those to evaluate with: none if nothing is evaluated."""
    pairs = read_pairs(find_pairs(directory, "train"))
    if missing := absent(pairs, config.data.weights):
        say(f"train.tsv has no pairs of {', '.join(missing)}")
    if not config.evaluate_sentences:
        return pairs, Pairs(pairs.languages, [], ([], []), [])
    file = find_pairs(directory, "dev")
    dev = read_pairs(file)
    if dev.languages != pairs.languages:
        raise UsageError(
            f"{file}, line 1: the languages are {', '.join(dev.languages)}, but the training pairs have "
            f"{', '.join(pairs.languages)}"
        )
    return pairs, dev


def find_pairs(directory: Path, name: str) -> Path:
    """`name`.tsv, or `name`.tsv.gz."""
    plain = directory / f"{name}.tsv"
    found = next((path for path in (plain, plain.with_name(f"{name}.tsv.gz")) if path.is_file()), None)
    if found is None:
        raise UsageError(f"no training data at {plain}: prepare it first (see examples/medical-zh-en)")
    return found


def read_pairs(path: Path) -> Pairs:
    """Tab-separated: a header `corpus, xx, yy[, document]`, then a pair a line, both sides filled.

    Rows of one document, in order, are each other's context. Raises UsageError with file and line.
    """
    lines = read_lines(path)
    header = lines[0].split("\t")
    if (
        header[:1] != ["corpus"]
        or header[3:] not in ([], ["document"])
        or len(set(header)) < max(3, len(header))
    ):
        raise UsageError(
            f"{path}, line 1: the header must be corpus, two language codes and perhaps document, "
            "with tabs between them"
        )
    rows: list[list[str]] = []
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        fields = line.split("\t")
        if len(fields) != len(header):
            raise UsageError(f"{path}, line {number}: {len(fields)} columns instead of {len(header)}")
        empty = [name for name, text in zip(header[1:3], fields[1:3], strict=True) if not text.strip()]
        if empty:
            raise UsageError(
                f"{path}, line {number}: the column {empty[0]} is empty; remove the line or fill it"
            )
        rows.append(fields)
    if not rows:
        raise UsageError(f"{path} has a header and no pairs; put some in")
    corpus, first, second, *document = (list(column) for column in zip(*rows, strict=True))
    return Pairs(
        (header[1], header[2]), corpus, (first, second), document[0] if document else [""] * len(rows)
    )


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, which may be a .gz; only \\n ends one."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise UsageError(f"{path} cannot be read ({error}); write it again") from error
    lines = content.split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(
                f"{path}, line {number}: not UTF-8 ({error.reason}); convert the file"
            ) from error
    return [line.decode("utf-8").removesuffix("\r") for line in lines]
