"""What runs inside the emulated root while instructions are counted: translate each text, warm, marked.

Reads a job as JSON from stdin and writes a result as JSON to stdout (see `job` and `Answer` in blocks.py).
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

BEGIN, END = 77001, 77002  # count.c knows them

Translate = Callable[[dict[str, Any]], tuple[str, int]]  # a text of the job -> translation, target tokens


def mark(what: int) -> None:
    """Tell the plugin; for anybody else this is a close() that fails."""
    with suppress(OSError):
        os.close(-what)


def edgemt_translate(job: dict[str, Any]) -> Translate:
    """The bundle through edgemt, as a user calls it."""
    import edgemt

    translator = edgemt.load(job["model"])

    def translate(text: dict[str, Any]) -> tuple[str, int]:
        if not text.get("count"):
            return translator.translate(
                text["source"],
                source_lang=text["source_lang"],
                target_lang=text["target_lang"],
                beam=job["beam"],
                glossary=text.get("glossary"),
            ), 0
        segments = list(
            translator.segments(
                text["source"],
                source_lang=text["source_lang"],
                target_lang=text["target_lang"],
                beam=job["beam"],
                glossary=text.get("glossary"),
            )
        )
        return "".join(s.target for s in segments), sum(s.target_tokens for s in segments)

    return translate


def ctranslate2_translate(job: dict[str, Any]) -> Translate:
    """A converted model through CTranslate2, by the shortest loop around it that does the job.

    The texts come cut into sentences, which edgemt has to do itself: what is counted here is the least that
    CTranslate2 can need.
    """
    import ctranslate2
    import sentencepiece

    translator = ctranslate2.Translator(
        job["model"], inter_threads=1, intra_threads=1, compute_type=job["compute_type"]
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=job["tokenizer"])
    suppress = [[token] for token in job["suppress"]]

    def translate(text: dict[str, Any]) -> tuple[str, int]:
        targets, tokens = [], 0
        for sentence in text["sentences"]:
            source = pieces.encode(sentence, out_type=str)
            found = translator.translate_batch(
                [[text["prefix"], *source, "</s>"]],
                beam_size=job["beam"],
                suppress_sequences=suppress,
                max_decoding_length=2 * len(source) + 16,
                return_scores=False,
            )[0].hypotheses[0]
            targets.append(pieces.decode_pieces(found).replace("▁", " ").strip())
            tokens += len(found)
        return (" " if text["target_lang"] != "zh" else "").join(targets), tokens

    return translate


ENGINES = {"edgemt": edgemt_translate, "ctranslate2": ctranslate2_translate}


def main() -> None:
    job = json.load(sys.stdin)
    translate = ENGINES[job["engine"]](job)
    answers = [translate({**text, "count": True}) for text in job["texts"]]
    gc.collect()
    gc.freeze()
    gc.disable()
    for text in job["texts"]:  # once more, as the collector has emptied Python's free lists
        translate(text)
    for text in job["texts"]:
        for _ in range(job["repeats"]):
            mark(BEGIN)
            translate(text)
            mark(END)
    tools = {"python": platform.python_version(), "numpy": importlib.metadata.version("numpy")}
    if job["engine"] == "ctranslate2":
        tools["ctranslate2"] = importlib.metadata.version("ctranslate2")
    else:
        tools["onnxruntime"] = importlib.metadata.version("onnxruntime")
    with open("/proc/self/maps") as file:
        maps = file.read()
    json.dump({"answers": answers, "tools": tools, "maps": maps}, sys.stdout)


if __name__ == "__main__":
    main()
