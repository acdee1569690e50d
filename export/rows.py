"""Sentence pairs from a tab-separated file: what calibration, the gate and the clock read."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from edgemt.errors import EdgemtError, UsageError

COLUMNS = ("source_lang", "target_lang", "source", "target")


class Row(NamedTuple):
    """A sentence, its reference translation, and the corpus that it came from."""

    source_lang: str
    target_lang: str
    source: str
    target: str
    corpus: str = ""


def read_rows(path: Path, languages: Sequence[Sequence[str]]) -> list[Row]:
    """The rows of `path` whose pair is in `languages`. Raises UsageError for a file of another form."""
    if not path.is_file():
        raise UsageError(f"no such file: {path}; it needs the tab-separated columns {', '.join(COLUMNS)}")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
            if missing:
                raise UsageError(
                    f"{path} has no column {', '.join(missing)} in its first line; "
                    f"it needs the tab-separated columns {', '.join(COLUMNS)}"
                )
            rows = [Row._make(line.get(name) or "" for name in Row._fields) for line in reader]
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 (byte {error.start}); convert it") from None
    except OSError as error:
        raise EdgemtError(f"{path} cannot be read ({error.strerror}); check its rights") from None
    pairs = {tuple(pair) for pair in languages}
    fitting = [row for row in rows if (row.source_lang, row.target_lang) in pairs and row.source.strip()]
    if not fitting:
        wanted = ", ".join(sorted("-".join(pair) for pair in pairs))
        raise UsageError(f"{path} has no sentence in a direction of this model ({wanted}); give another file")
    return fitting


def interleaved(rows: Sequence[Row], most: int) -> list[Row]:
    """At most `most` rows, the directions in turn, each in the order of the file."""
    queues: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        queues.setdefault((row.source_lang, row.target_lang), []).append(row)
    longest = max(map(len, queues.values()), default=0)
    mixed = [queue[i] for i in range(longest) for queue in queues.values() if i < len(queue)]
    return mixed[:most]


def sha256(rows: Sequence[Row]) -> str:
    """SHA-256 of the rows' sources and languages, in order."""
    text = "\n".join("\t".join(row[:3]) for row in rows)
    return hashlib.sha256(text.encode()).hexdigest()
