"""What became of a part of a text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Segment:
    """A part of the text and what became of it."""

    source: str
    target: str
    direction: str  # "zh-en"
    score: float | None = None  # log-probability per target token; None: copied, or greedy and not asked for
    translated: bool = False
    source_tokens: int = 0
    target_tokens: int = 0
    ms: float = 0.0
    missing: tuple[str, ...] = ()  # glossary terms that could not be placed
    # Of models that take prompts:
    missing_tags: tuple[
        str, ...
    ] = ()  # tags that the model lost: they are around the translation or at an end
    finished: bool = True  # false: the answer went on to the length limit
    doubt: str = ""  # "empty", or "script": hardly a letter of the target language
