"""Stream a translation with this bundle on a GPU, by ONNX Runtime alone: edgemt itself is not needed.

    pip install onnxruntime-gpu tokenizers numpy
    python run_cuda.py "将以下文本翻译为英语，注意只需要输出翻译后的结果，不要额外解释：

    手术应在无菌环境下进行。"

The argument is a whole prompt: the model's template with the text in it. Keys and values stay on the GPU from
step to step. `--provider` takes Tensorrt, CUDA (the default where there is one) or CPU.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prompt")
    parser.add_argument("--provider", choices=("Tensorrt", "CUDA", "CPU"))
    parser.add_argument("--most", type=int, default=256, help="tokens of an answer")
    args = parser.parse_args()
    manifest = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(HERE / manifest["tokenizer"]["bpe"]))
    provider = args.provider or (
        "CUDA" if "CUDAExecutionProvider" in ort.get_available_providers() else "CPU"
    )
    name = f"{provider}ExecutionProvider"
    if name not in ort.get_available_providers():
        sys.exit(f"this ONNX Runtime has no {name}; install onnxruntime-gpu, or use --provider CPU")
    session = ort.InferenceSession(str(HERE / manifest["graphs"]["step"]["file"]), providers=[name])
    encoded = tokenizer.encode(args.prompt, add_special_tokens=False).ids
    ids = [*manifest["chat"]["before"], *encoded, *manifest["chat"]["after"]]
    shown = text = ""
    answer = []
    for token in tokens(session, manifest, ids, "cpu" if provider == "CPU" else "cuda", args.most):
        answer.append(token)
        text = tokenizer.decode(answer)
        if not text.endswith("\ufffd"):  # half of a character
            print(text[len(shown) :], end="", flush=True)
            shown = text
    print(text[len(shown) :])


def tokens(session, manifest, ids, device, most):
    """The model's own choice, token by token, until it ends its answer."""
    states, model = manifest["states"], manifest["model"]
    room = min(len(ids) + most - 1, model["max_positions"])
    caches = {}  # keys and values [room, 1, heads, size], written where they stay
    for spec in states:
        shape = [room if axis == "past" else 1 if axis == "rows" else axis for axis in spec["shape"]]
        caches[spec["input"]] = ort.OrtValue.ortvalue_from_shape_and_type(shape, spec["dtype"], device, 0)
    length = 0
    while length + len(ids) <= room:
        width, total = len(ids), length + len(ids)
        bias = np.zeros((1, 1, width, total), np.float32)
        bias[..., length:] = np.triu(np.full((width, width), -10000.0, np.float32), 1)
        given = {
            "input_ids": np.array([ids], np.int32),
            "position_ids": np.arange(length, total, dtype=np.int32)[None],
            "self_bias": bias,
            "wanted": np.array([[width - 1]], np.int32),
            "top_k": np.array([1], np.int64),
        }
        binding = session.io_binding()
        for name, array in given.items():
            binding.bind_cpu_input(name, array)
        binding.bind_output("top_ids", "cpu")
        for spec in states:
            cache, dtype = caches[spec["input"]], np.dtype(spec["dtype"])
            rest = cache.shape()[1:]
            behind = cache.data_ptr() + length * int(np.prod(rest)) * dtype.itemsize
            binding.bind_input(spec["input"], device, 0, dtype, [length, *rest], cache.data_ptr())
            binding.bind_output(spec["output"], device, 0, dtype, [width, *rest], behind)
        session.run_with_iobinding(binding)
        token = int(binding.get_outputs()[0].numpy()[0, 0, 0])
        if token == model["eos_id"]:
            return
        yield token
        length, ids = total, [token]


if __name__ == "__main__":
    main()
