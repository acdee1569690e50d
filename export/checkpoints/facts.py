"""The files beside the weights: configuration, vocabulary, licence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from edgemt.errors import EdgemtError

UNKNOWN = "unknown: the checkpoint names none"  # a licence
TOKENIZER_FILES = {"source": "source.spm", "target": "target.spm", "vocab": "vocab.json"}


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises EdgemtError if there is none."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise EdgemtError(f"{file} cannot be read ({first_line(error)}); copy the checkpoint again") from None
    if not isinstance(data, dict):
        raise EdgemtError(f"{file} is not a JSON object; copy the checkpoint again")
    return data


def vocabulary(directory: Path) -> dict[str, int]:
    """Piece -> id of a Marian tokenizer. Raises EdgemtError if one of its files is missing."""
    missing = [name for name in TOKENIZER_FILES.values() if not (directory / name).is_file()]
    if missing:
        raise EdgemtError(f"{directory} lacks {', '.join(missing)}; copy the tokenizer files of its training")
    return {str(piece): int(i) for piece, i in read_json(directory / "vocab.json").items()}


def licence(directory: Path, config: dict[str, Any]) -> str:
    """From edgemt.json, config.json, or the front matter of the model card."""
    record = directory / "edgemt.json"
    for source in (read_json(record) if record.is_file() else {}, config):
        for key in ("licence", "license"):
            if source.get(key):
                return str(source[key])
    card = directory / "README.md"
    if card.is_file():
        head = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
        named = re.search(r"^licen[sc]e:\s*(\S.*)$", head.group(1), re.MULTILINE) if head else None
        if named:
            return named.group(1).strip()
    return UNKNOWN


def excluded(directory: Path) -> str | None:
    """The sentence of the licence's text that says where it does not apply, if there is one (HY-MT1.5's)."""
    for path in sorted(directory.glob("[Ll][Ii][Cc][Ee][Nn][CcSs][Ee]*")):
        text = " ".join(path.read_text(encoding="utf-8", errors="replace").split()) if path.is_file() else ""
        if found := re.search(r"[^.]*\bdoes not apply in\b[^.]*\.?", text, re.IGNORECASE):
            return found.group().strip()
    return None


def listing(names: list[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
