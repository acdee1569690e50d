"""Contender: optimum's ORTModelForSeq2SeqLM with generate(), exported by optimum from the same checkpoint.

python -m benchmarks.contenders.optimum --model DIR [--beam 1] [--threads 1] [--sentences 28]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.contenders.serve import Text, limit, loop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--beam", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sentences", type=int, help="cut texts into sentences of at most that many tokens")
    args = parser.parse_args()
    import onnxruntime
    import torch
    from optimum.onnxruntime import ORTModelForSeq2SeqLM

    text = Text(args.model, args.sentences)
    ids: dict[str, int] = json.loads((args.model / "vocab.json").read_text(encoding="utf-8"))
    pieces = {number: piece for piece, number in ids.items()}
    torch.set_num_threads(args.threads)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = args.threads, 1
    model = ORTModelForSeq2SeqLM.from_pretrained(args.model, session_options=options)
    config = model.generation_config
    config.num_beams, config.do_sample = args.beam, False
    config.length_penalty, config.early_stopping = 1.0, False
    config.max_length = None
    special = {config.pad_token_id, config.eos_token_id}

    def answer(tokens: list[str]) -> list[str]:
        source = torch.tensor([[ids.get(token, ids["<unk>"]) for token in tokens]])
        config.max_new_tokens = limit(tokens, model.config.max_position_embeddings - 1)
        with torch.inference_mode():
            found = model.generate(source, attention_mask=torch.ones_like(source), generation_config=config)
        return [pieces[number] for number in found[0].tolist() if number not in special]

    loop(lambda source, source_lang, target_lang: text.translate(source, source_lang, target_lang, answer))


def prepare(checkpoint: Path, out: Path, int8: bool) -> None:
    """Export with optimum (FP32); with `int8`, quantise every graph with optimum's own dynamic scheme."""
    import platform
    import shutil

    from optimum.exporters.onnx import main_export
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    main_export(
        str(checkpoint),
        out,
        task="text2text-generation-with-past",
        do_validation=False,
        local_files_only=True,
    )
    if int8:
        arm = platform.machine() in ("aarch64", "arm64")
        kind = AutoQuantizationConfig.arm64 if arm else AutoQuantizationConfig.avx512_vnni
        for graph in sorted(out.glob("*.onnx")):
            if "merged" in graph.name:
                graph.unlink()
                continue
            ORTQuantizer.from_pretrained(out, file_name=graph.name).quantize(
                save_dir=out, quantization_config=kind(is_static=False, per_channel=True), file_suffix="int8"
            )
            graph.with_name(f"{graph.stem}_int8.onnx").replace(graph)
    for name in ("source.spm", "target.spm", "vocab.json"):
        shutil.copy(checkpoint / name, out / name)


if __name__ == "__main__":
    main()
