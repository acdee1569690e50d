"""The contenders of benchmarks/causal_peers.py: what each argument names, and how its process is started."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from edgemt.bundle import open_bundle
from edgemt.errors import UsageError


@dataclass(frozen=True)
class Entrant:
    """A contender that is ready to run. `words` start it, but for its threads."""

    label: str
    words: tuple[str, ...]
    bytes: int  # of its model on disk

    def command(self, threads: int) -> str:
        return shlex.join([*self.words, "--threads", str(threads)])


def edgemt(spec: str) -> Entrant:
    """BUNDLE, BUNDLE+lookup, BUNDLE+draft=BUNDLE, each also with +prefix. Raises EdgemtError for others."""
    path, *ways = spec.split("+")
    bundle = open_bundle(Path(path))
    if bundle.manifest.family != "causal":
        raise UsageError(f"{path} is a {bundle.manifest.family} model; give bundles of decoder-only ones")
    words, label = ["benchmarks.contenders.edgemt_tokens", "--model", path], [bundle.manifest.precision]
    taken = size(Path(path))
    for way in ways:
        name, _, value = way.partition("=")
        if name == "draft" and value:
            words += ["--draft", value]
            taken += size(Path(value))
            label.append(f"draft {Path(value).name}")
        elif way == "lookup":
            words += ["--draft", "lookup"]
            label.append("look-up")
        elif way == "prefix":
            words.append("--prefix")
            label.append("cached prefix")
        else:
            raise UsageError(f"--bundle {spec}: there is no {way!r}; give lookup, draft=BUNDLE or prefix")
    return Entrant(f"edgemt {', '.join(label)}", (sys.executable, "-m", *words), taken)


def llama(spec: str, python: Path | None) -> Entrant:
    """FILE.gguf, or FILE.gguf+keep. `python`: of the environment that has llama-cpp-python."""
    path, *ways = spec.split("+")
    if ways not in ([], ["keep"]):
        raise UsageError(f"--gguf {spec}: there is only +keep")
    if python is None:
        raise UsageError("--gguf needs --llama-python: the python of the environment with llama-cpp-python")
    kind = Path(path).stem.rpartition(".")[2]
    words = (str(python), "-m", "benchmarks.contenders.llama_cpp", "--model", path)
    label = f"llama.cpp {kind}" + (", kept prompt" if ways else "")
    return Entrant(label, (*words, *(["--keep"] if ways else [])), size(Path(path)))


def genai(path: str, packages: Path | None) -> Entrant:
    """A folder of onnxruntime-genai's builder. `packages`: a folder to import it from; None: installed
    here."""
    python = [sys.executable]
    if packages:
        python = ["env", f"PYTHONPATH={packages}:{Path(__file__).parents[2]}", sys.executable]
    words = (*python, "-m", "benchmarks.contenders.genai", "--model", path)
    return Entrant(f"genai {Path(path).name.rpartition('-')[2]}", words, size(Path(path)))


def size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    if not path.is_dir():
        raise UsageError(f"{path} is not there")
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
