"""edgemt: an AMP-trained translation model, made to run on a small device.

import edgemt
print(edgemt.load().translate("我对青霉素过敏。"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from edgemt.translator import Translator

__version__ = "0.1.0"


def load(path: str | Path | None = None, threads: int = 1, draft: str | Path | None = None) -> Translator:
    """Open the bundle at `path` (a folder or .edgemt file; None: the default bundle), ready to translate.

    `draft` (a smaller bundle with the same tokenizer, or "lookup") makes a decoder-only model faster.

    Raises edgemt.errors.EdgemtError, in one sentence, if there is none, or if it is damaged or too new.
    """
    from edgemt.translator import load as load_translator  # `import edgemt` alone stays light

    return load_translator(path, threads=threads, draft=draft)
