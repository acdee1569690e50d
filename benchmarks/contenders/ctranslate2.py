"""Contender: CTranslate2, converted from the same checkpoint, with SentencePiece around it.

    python -m benchmarks.contenders.ctranslate2 --model DIR [--beam 1] [--threads 1] [--sentences 28]

Its stock converter for Marian would change our model, silently, in two ways: it drops the last row of the
vocabulary, taking it for <pad> (ours is row 2), and it starts the decoder from zeros instead of <pad>'s
embedding (ours is trained, not zero). `convert` keeps every row where it is and starts from <pad>.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.contenders.serve import Text, limit, loop

END, UNKNOWN, START = "</s>", "<unk>", "<pad>"  # a Marian decoder begins with <pad>


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--beam", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--compute", default="default", help="compute type (default: as the weights are stored)"
    )
    parser.add_argument("--sentences", type=int, help="cut texts into sentences of at most that many tokens")
    args = parser.parse_args()
    import ctranslate2

    text = Text(args.model, args.sentences)
    translator = ctranslate2.Translator(
        str(args.model),
        device="cpu",
        compute_type=args.compute,
        inter_threads=1,
        intra_threads=args.threads,
    )
    facts = json.loads((args.model / "edgemt.json").read_text(encoding="utf-8"))

    def model(tokens: list[str]) -> list[str]:
        (result,) = translator.translate_batch(
            [tokens],
            beam_size=args.beam,
            length_penalty=1.0,
            max_decoding_length=limit(tokens, facts["positions"]),
            suppress_sequences=facts["never"],
        )
        return result.hypotheses[0]

    loop(lambda source, source_lang, target_lang: text.translate(source, source_lang, target_lang, model))


def prepare(checkpoint: Path, out: Path, quantization: str | None) -> None:
    """Write the checkpoint as a CTranslate2 model (`quantization`: "int8", or None for FP32) into `out`."""
    import shutil

    import ctranslate2

    class Exactly(ctranslate2.converters.Converter):
        def _load(self) -> Any:
            return specification(checkpoint)

    Exactly().convert(str(out), quantization=quantization)
    for name in ("source.spm", "target.spm"):
        shutil.copy(checkpoint / name, out / name)
    generation, config = (
        json.loads((checkpoint / name).read_text(encoding="utf-8"))
        for name in ("generation_config.json", "config.json")
    )
    tokens = vocabulary(checkpoint)
    facts = {
        "positions": config["max_position_embeddings"],
        "never": [[tokens[i] for i in ids] for ids in generation["bad_words_ids"]],
    }
    (out / "edgemt.json").write_text(json.dumps(facts), encoding="utf-8")


def specification(checkpoint: Path) -> Any:
    """The model with all rows of its vocabulary, in their order, and the decoder's own first token."""
    import torch
    from ctranslate2.converters.transformers import BartLoader, MarianMTLoader
    from transformers import MarianMTModel

    class Loader(MarianMTLoader):
        def set_decoder(self, spec: Any, decoder: Any) -> None:
            BartLoader.set_decoder(self, spec, decoder)  # not from zeros

        def _remove_pad_weights(self, spec: Any) -> None:
            pass

        def get_vocabulary(self, model: Any, tokenizer: Any) -> list[str]:
            return tokenizer

        def set_config(self, config: Any, model: Any, tokenizer: Any) -> None:
            config.eos_token, config.unk_token, config.decoder_start_token = END, UNKNOWN, START

    with torch.no_grad():
        model = MarianMTModel.from_pretrained(checkpoint)
        return Loader()(model, vocabulary(checkpoint))


def vocabulary(checkpoint: Path) -> list[str]:
    """The tokens by their ids."""
    ids: dict[str, int] = json.loads((checkpoint / "vocab.json").read_text(encoding="utf-8"))
    tokens = sorted(ids, key=ids.__getitem__)
    assert [ids[token] for token in tokens] == list(range(len(tokens))), "ids with gaps"
    return tokens


if __name__ == "__main__":
    main()
