"""Contender: llama.cpp with a GGUF file, through the C interface that llama-cpp-python wraps.

    python -m benchmarks.contenders.llama_cpp --model FILE.gguf [--threads 1] [--keep]

Nothing stands between the loop and `llama_decode` but an arg-max over the logits. `--keep` keeps what a
prompt has in common with the one before it, as `llama-server` does with its prompt cache.

    python -m benchmarks.contenders.llama_cpp --quantize IN.gguf OUT.gguf TYPE      TYPE: Q4_0, Q8_0, Q4_K_M,
    …
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.contenders.tokens import loop

POSITIONS = 1024  # of the context
SEQUENCE = 0  # the only one


class LlamaCpp:
    """See `Engine` in tokens.py. Defaults of llama.cpp but for the threads and the length of the context."""

    def __init__(self, model: Path, threads: int, keep: bool) -> None:
        import llama_cpp
        import numpy

        self.api, self.numpy, self.keep = llama_cpp, numpy, keep
        llama_cpp.llama_backend_init()
        loading, using = llama_cpp.llama_model_default_params(), llama_cpp.llama_context_default_params()
        using.n_ctx, using.n_threads, using.n_threads_batch = POSITIONS, threads, threads
        self.model = llama_cpp.llama_model_load_from_file(str(model).encode(), loading)
        if self.model is None:
            sys.exit(f"llama.cpp cannot load {model}")
        self.context = llama_cpp.llama_init_from_model(self.model, using)
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self.size = llama_cpp.llama_vocab_n_tokens(self.vocabulary)
        self.held: list[int] = []  # the tokens whose keys and values the context has

    def generate(self, prompt: list[int], most: int, ends: bool) -> Iterator[int]:
        common = 0
        if self.keep:
            pairs = zip(self.held, prompt[:-1], strict=False)
            common = next(
                (n for n, (a, b) in enumerate(pairs) if a != b), min(len(self.held), len(prompt) - 1)
            )
        self.api.llama_memory_seq_rm(self.memory, SEQUENCE, common, -1)
        self.held = prompt[:common]
        token = self.decode(prompt[common:])
        for place in range(most):
            if ends and self.api.llama_vocab_is_eog(self.vocabulary, token):
                return
            yield token
            if place + 1 < most:
                token = self.decode([token])

    def decode(self, tokens: list[int]) -> int:
        ids = (self.api.llama_token * len(tokens))(*tokens)  # the batch points at them
        if code := self.api.llama_decode(self.context, self.api.llama_batch_get_one(ids, len(ids))):
            sys.exit(f"llama_decode failed with {code}")
        self.held += tokens
        logits = self.api.llama_get_logits_ith(self.context, -1)
        return int(self.numpy.ctypeslib.as_array(logits, shape=(self.size,)).argmax())

    def facts(self) -> dict[str, Any]:
        return {}


def quantize(source: Path, target: Path, kind: str) -> None:
    """Write `source` again in llama.cpp's own type `kind`, from its dequantised values if it is quantised."""
    import llama_cpp

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    settings.allow_requantize, settings.nthread = True, len(os.sched_getaffinity(0))
    part = target.with_name(f"{target.name}.part")
    if code := llama_cpp.llama_model_quantize(
        str(source).encode(), str(part).encode(), ctypes.byref(settings)
    ):
        sys.exit(f"llama.cpp cannot write {source} as {kind} (code {code})")
    part.replace(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--quantize", nargs=3, metavar=("IN", "OUT", "TYPE"))
    args = parser.parse_args()
    if args.quantize:
        quantize(Path(args.quantize[0]), Path(args.quantize[1]), args.quantize[2])
    else:
        loop(LlamaCpp(args.model, args.threads, args.keep))


if __name__ == "__main__":
    main()
