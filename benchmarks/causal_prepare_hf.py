"""A GGUF file as a Hugging Face folder, dequantised by transformers: python -m benchmarks.causal_prepare_hf
IN OUT"""

from __future__ import annotations

import sys
from pathlib import Path


def main(gguf: Path, out: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    part = out.with_name(f"{out.name}.part")
    where = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float16)
    model.save_pretrained(part)
    AutoTokenizer.from_pretrained(**where).save_pretrained(part)
    (part / "tokenizer.model").unlink(missing_ok=True)  # a copy of the whole GGUF file
    part.rename(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]))
