"""Environments and models of the peers in benchmarks/causal_peers.py, made once and kept.

    python benchmarks/causal_prepare.py MODEL.gguf [--types Q4_0,Q8_0] [--genai] [--work DIR]

- llama.cpp: an environment of its own in WORK/llama-env with llama-cpp-python from source (about five minutes
  on two cores; needs a C++ compiler), and MODEL in other types of llama.cpp's own quantiser.
- onnxruntime-genai: WORK/genai-packages, a folder to import from, since it goes with this environment's
  onnxruntime; MODEL dequantised as a Hugging Face folder (WORK/MODEL.hf), and its builder's INT4 of that.

What is there already is not made again. On the last line are the arguments for causal_peers.py.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORK = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgemt" / "causal-peers"
LLAMA = "llama-cpp-python==0.3.36"
GENAI = "onnxruntime-genai==0.15.0"  # the last that takes onnxruntime 1.28, which has no telemetry
# Its own detection of a virtual x86 machine believes in AMX units that are announced and cannot be used, and
# the first evaluation then ends in a segmentation fault.
X86 = ("AVX2", "FMA", "F16C", "BMI2", "AVX512", "AVX512_VNNI")
X86_FLAGS = {"AVX2": "avx2", "FMA": "fma", "F16C": "f16c", "BMI2": "bmi2", "AVX512": "avx512f"}
X86_FLAGS["AVX512_VNNI"] = "avx512_vnni"
# Of onnxruntime-genai's builder, smaller and faster than its defaults. It shares only tables that are tied.
BUILDER, TIED = ("prune_lm_head=true",), ("shared_embeddings=true",)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("gguf", type=Path, metavar="MODEL.gguf")
    parser.add_argument("--types", default="Q4_0,Q8_0", metavar="T,…", help="default: Q4_0,Q8_0; '' for none")
    parser.add_argument("--genai", action="store_true", help="onnxruntime-genai too")
    parser.add_argument("--work", type=Path, default=WORK, metavar="DIR", help=f"default: {WORK}")
    args = parser.parse_args()
    args.gguf, args.work = args.gguf.resolve(), args.work.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    python = llama_env(args.work / "llama-env")
    words = ["--llama-python", python, "--gguf", args.gguf]
    for kind in filter(None, args.types.split(",")):
        words += ["--gguf", quantised(python, args.gguf, kind, args.work)]
    if args.genai:
        packages = genai_packages(args.work / "genai-packages")
        words += ["--genai-packages", packages, "--genai", genai_model(packages, args.gguf, args.work)]
    print(shlex.join(map(str, words)))
    return 0


def llama_env(folder: Path) -> Path:
    """The python of the environment."""
    python, stamp = folder / "bin" / "python", folder / LLAMA
    if not stamp.exists():
        if not python.exists():
            run([sys.executable, "-m", "venv", folder])
        env = dict(os.environ)
        if platform.machine() == "x86_64":
            env["CMAKE_ARGS"] = " ".join(cmake_arguments(Path("/proc/cpuinfo").read_text(encoding="utf-8")))
        run([python, "-m", "pip", "install", "-q", "numpy", "typing-extensions"])
        run([python, "-m", "pip", "install", "-q", "--no-deps", "--no-binary=:all:", LLAMA], env)
        run([python, "-c", "import llama_cpp"])
        stamp.touch()
    return python


def cmake_arguments(cpuinfo: str) -> list[str]:
    """What the processor has, said to llama.cpp's build one by one, without AMX."""
    flags = set(cpuinfo.split())
    own = [f"-DGGML_{name}={'ON' if X86_FLAGS[name] in flags else 'OFF'}" for name in X86]
    return ["-DGGML_NATIVE=OFF", *own, "-DGGML_AMX_TILE=OFF", "-DGGML_AMX_INT8=OFF"]


def quantised(python: Path, gguf: Path, kind: str, work: Path) -> Path:
    path = work / f"{gguf.stem.rpartition('.')[0] or gguf.stem}.{kind}.gguf"
    if not path.exists():
        run([python, "-m", "benchmarks.contenders.llama_cpp", "--quantize", gguf, path, kind])
    return path


def genai_packages(folder: Path) -> Path:
    if not (folder / "onnxruntime_genai").is_dir():
        run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, GENAI])
    return folder


def genai_model(packages: Path, gguf: Path, work: Path) -> Path:
    folder, hf = work / f"{gguf.stem}-genai-int4", work / f"{gguf.stem}.hf"
    if not (folder / "genai_config.json").exists():
        if not (hf / "config.json").exists():
            run([sys.executable, "-m", "benchmarks.causal_prepare_hf", gguf, hf])
        path = os.pathsep.join([str(packages), str(ROOT)])
        builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", hf, "-o", folder]
        builder += ["-p", "int4", "-e", "cpu", "-c", work / "genai-cache", "--extra_options", *BUILDER]
        config = json.loads((hf / "config.json").read_text(encoding="utf-8"))
        builder += TIED if config["tie_word_embeddings"] else ()
        run(builder, {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"})
    return folder


def run(words: Sequence[str | Path], env: dict[str, str] | None = None) -> None:
    """Its output goes to stderr. Ends this program if it fails."""
    print(f"causal_prepare: {shlex.join(map(str, words))}", file=sys.stderr, flush=True)
    done = subprocess.run(list(map(str, words)), stdout=sys.stderr, env=env, cwd=ROOT)
    if done.returncode:
        sys.exit(f"causal_prepare: `{shlex.join(map(str, words))}` failed with code {done.returncode}")


if __name__ == "__main__":
    sys.exit(main())
