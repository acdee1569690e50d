"""The clinical corpus as a data folder: what `--preset medical-zh-en` trains on."""

from __future__ import annotations

import csv
import gzip
import hashlib
import os
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from edgemt.errors import EdgemtError

CORPUS = Path(__file__).resolve().parents[2] / "examples" / "medical-zh-en" / "data"
CLINICAL, TERMS = "clinical.tsv.gz", "terms.tsv.gz"
FORM = 1  # of what is written: a new number makes it anew


def prepared() -> Path | None:
    """The folder in the user's cache, made at the first call; None without the source's `examples/`."""
    sources = [CORPUS / name for name in (CLINICAL, TERMS)]
    if not all(source.is_file() for source in sources):
        return None
    digest = hashlib.sha256(b"%d" % FORM)
    for source in sources:
        digest.update(source.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgemt"
    folder = cache / f"medical-zh-en-{digest.hexdigest()[:12]}"
    try:
        if not folder.is_dir():
            cache.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=cache) as temporary:
                prepare(CORPUS, Path(temporary) / "data")
                os.rename(Path(temporary) / "data", folder)
    except OSError as error:
        if not folder.is_dir():  # else another process of the run was quicker
            raise EdgemtError(
                f"{folder} cannot be written ({error.strerror}): make room, or set XDG_CACHE_HOME"
            ) from None
    return folder


def prepare(corpus: Path, folder: Path) -> None:
    """Write train.tsv, dev.tsv (a scenario is a document) and terms.tsv into a new `folder`.

    Training rows that share a side with a dev or test row are left out, in either direction.
    """
    scenarios = list(rows(corpus / CLINICAL))
    terms = list(rows(corpus / TERMS))
    held = [(comparable(zh), comparable(en)) for _, _, _, zh, en, split in scenarios if split != "train"]
    held_zh, held_en = {zh for zh, _ in held}, {en for _, en in held}

    def allowed(zh: str, en: str) -> bool:
        return comparable(zh) not in held_zh and comparable(en) not in held_en

    train = [
        ("clinical", zh, en, scenario)
        for scenario, _, _, zh, en, split in scenarios
        if split == "train" and allowed(zh, en)
    ]
    train += [("terms", zh, en, "") for zh, en, *_ in terms if allowed(zh, en)]
    dev = [("clinical", zh, en, scenario) for scenario, _, _, zh, en, split in scenarios if split == "dev"]
    folder.mkdir()
    write(folder / "train.tsv", [("corpus", "zh", "en", "document"), *train])
    write(folder / "dev.tsv", [("corpus", "zh", "en", "document"), *dev])
    write(folder / "terms.tsv", [("zh", "en"), *(pair for term in terms for pair in names(*term))])


def names(zh: str, en: str, category: str, variants: str = "") -> Iterator[tuple[str, str]]:
    """Each Chinese name of a term with each English one; `variants` is "zh:a; b; en:c"."""
    sides: dict[str, list[str]] = {"zh": [zh], "en": [en]}
    language = "zh"
    for variant in filter(None, (part.strip() for part in variants.split(";"))):
        prefix, colon, name = variant.partition(":")
        if colon and prefix in sides:
            language, variant = prefix, name.strip()
        sides[language].append(variant)
    yield from product(sides["zh"], sides["en"])


def rows(path: Path) -> Iterator[list[str]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        yield from csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)


def comparable(text: str) -> str:
    """The text without case, space and punctuation: two sides equal in this form are the same sentence."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return "".join(char for char in text if unicodedata.category(char)[0] in "LNM")


def write(path: Path, lines: Iterable[tuple[str, ...]]) -> None:
    text = "".join("\t".join(line) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8", newline="\n")
