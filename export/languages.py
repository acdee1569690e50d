"""Which language pairs a checkpoint translates, and the ids that choose the target language."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Protocol

from edgemt.errors import EdgemtError, UsageError

# ISO 639-3 as OPUS-MT writes it -> the code that edgemt uses, preferred spelling first.
SPELLINGS = {"zh": ("zh", "zho", "cmn_Hans", "cmn"), "en": ("en", "eng")}
CODES = {spelling: code for code, spellings in SPELLINGS.items() for spelling in spellings}
TOKEN = re.compile(r">>(.+)<<")


class Named(Protocol):
    """As much of a checkpoint as says its languages."""

    @property
    def directory(self) -> Path: ...
    @property
    def vocab(self) -> dict[str, int]: ...


def languages(checkpoint: Named, asked: str | None = None) -> tuple[list[list[str]], dict[str, list[int]]]:
    """The pairs [[source, target], …] and the prefix ids of each pair ("zh-en" -> ids).

    `asked` ("zh-en,en-zh") overrides what the checkpoint says: source_lang and target_lang of
    tokenizer_config.json, else every pair of its language tokens. A model with one target needs no prefix.
    """
    tokens = {match.group(1): i for piece, i in checkpoint.vocab.items() if (match := TOKEN.fullmatch(piece))}
    pairs = asked_pairs(asked) if asked else _configured(checkpoint)
    if not pairs:
        codes = sorted({CODES.get(token, token) for token in tokens}, reverse=True)
        pairs = [[source, target] for source in codes for target in codes if source != target]
    if not pairs:
        raise UsageError(
            f"{checkpoint.directory} does not say what it translates; add --languages, such as zh-en"
        )
    sources = {source for source, _ in pairs}
    targets = {CODES.get(token, token) for token in tokens} - (sources if len(pairs) == 1 else set())
    several = len(targets) > 1 or len({t for t in tokens if CODES.get(t, t) in targets}) > 1
    prefixes = {
        f"{source}-{target}": _prefix(checkpoint, tokens, target, several) for source, target in pairs
    }
    return pairs, prefixes


def asked_pairs(asked: str) -> list[list[str]]:
    """What --languages names: "zh-en,en-zh". Raises UsageError if it is no list of pairs."""
    pairs = [pair.strip().split("-") for pair in asked.split(",")]
    if not all(len(pair) == 2 and all(pair) for pair in pairs):
        raise UsageError(f"--languages {asked} is not a list of pairs; write for example zh-en,en-zh")
    return pairs


def _configured(checkpoint: Named) -> list[list[str]]:
    file = checkpoint.directory / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    pair = [str(config.get(key) or "") for key in ("source_lang", "target_lang")]
    return [[CODES.get(code, code) for code in pair]] if all(pair) else []


def _prefix(checkpoint: Named, tokens: dict[str, int], target: str, several: bool) -> list[int]:
    if not several:
        return []
    spelling = next((s for s in SPELLINGS.get(target, (target,)) if s in tokens), None)
    if spelling is None:
        known = ", ".join(sorted(tokens))
        raise EdgemtError(
            f"{checkpoint.directory / 'vocab.json'} has no token for the target {target}; it has {known}"
        )
    return [tokens[spelling]]
