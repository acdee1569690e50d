"""What is translated while the clock runs: the fixed medical workload, or a file the user gives."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgemt.errors import UsageError

WORKLOAD = Path(__file__).parents[1] / "data" / "workload.tsv"
COLUMNS = ("bucket", "source_lang", "target_lang", "source", "terms", "origin")
WIDE_PER_TOKEN, NARROW_PER_TOKEN = 1.2, 3.3  # characters a token: Chinese, others (the default bundle's)
BUCKETS = (5, 10, 15, 25, 40, 60)  # nominal source tokens


@dataclass(frozen=True)
class Sentence:
    """One text to translate. What the file does not say is None: the language is then found from the text,
    the bucket from the number of source tokens."""

    number: int  # its line in the file, from 1
    source: str
    bucket: int | None = None
    source_lang: str | None = None
    target_lang: str | None = None
    terms: Mapping[str, str] = field(default_factory=dict)  # source term -> target term, for --modes glossary


@dataclass(frozen=True)
class Workload:
    name: str
    sha256: str  # of the file, or of the text
    sentences: list[Sentence]


def one_text(text: str) -> Workload:
    """A single text as a workload. Raises UsageError if there is nothing in it."""
    if not text.strip():
        raise UsageError("--text is empty; give a text to translate")
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return Workload("--text", digest, [Sentence(1, text.strip())])


def bucket_of(tokens: int) -> int:
    """The nominal length nearest to `tokens` by ratio; beyond the last one they go on doubling."""
    buckets: list[int] = list(BUCKETS)
    while buckets[-1] < tokens:
        buckets.append(buckets[-1] * 2)
    return min(buckets, key=lambda bucket: abs(math.log(max(tokens, 1) / bucket)))


def estimated_tokens(text: str) -> int:
    """Source tokens guessed from the characters, for where no bundle counts them."""
    wide = sum(char > "\u2e7f" for char in text)
    return max(1, round(wide / WIDE_PER_TOKEN + (len(text) - wide) / NARROW_PER_TOKEN))


def read_workload(path: Path | None) -> Workload:
    """The shipped workload, or `path`: a text a line, or a TSV whose first line names the column `source`.

    Raises UsageError if the file cannot be read, holds no text, or misnames its columns.
    """
    file = path or WORKLOAD
    try:
        data = file.read_bytes()
        lines = data.decode("utf-8-sig").splitlines()
    except OSError as error:
        raise UsageError(
            f"cannot read the workload {file} ({error.strerror}); give a text file with a sentence a line"
        ) from None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"the workload {file} is not UTF-8 (byte {error.start}); convert it, for instance with iconv"
        ) from None
    rows = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if rows and "\t" in rows[0][1]:
        header = rows[0][1].split("\t")
        if "source" not in header:
            raise UsageError(
                f"the workload {file} has tabs but no column named source in its first line; "
                f"name its columns (of {', '.join(COLUMNS[:-1])}), or give a sentence a line without tabs"
            )
        sentences = [
            _row(file, number, dict(zip(header, line.split("\t"), strict=False))) for number, line in rows[1:]
        ]
    else:
        sentences = [Sentence(number, line.strip()) for number, line in rows]
    if not sentences:
        raise UsageError(f"the workload {file} is empty; put a sentence on each line")
    return Workload(path.name if path else "medical (shipped)", hashlib.sha256(data).hexdigest(), sentences)


def _row(file: Path, number: int, row: dict[str, str]) -> Sentence:
    source = row.get("source", "").strip()
    if not source:
        raise UsageError(
            f"line {number} of the workload {file} has an empty source column; fill or delete that line"
        )
    bucket = row.get("bucket", "").strip()
    if bucket and not (bucket.isascii() and bucket.isdigit() and int(bucket) > 0):
        raise UsageError(
            f"line {number} of the workload {file} has the bucket {bucket!r}; "
            "give source tokens as a whole number"
        )
    return Sentence(
        number,
        source,
        int(bucket) if bucket else None,
        row.get("source_lang", "").strip() or None,
        row.get("target_lang", "").strip() or None,
        _terms(file, number, row.get("terms", "")),
    )


def _terms(file: Path, number: int, text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(";") if part.strip()]
    terms = {source.strip(): target.strip() for source, _, target in pairs}
    if not all(terms) or not all(terms.values()):
        raise UsageError(
            f"line {number} of the workload {file} has the terms {text!r}; write source=target; source=target"
        )
    return terms
