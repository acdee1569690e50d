"""Which contenders there are: a line each.

python -m benchmarks.contenders.registry NAME CHECKPOINT OUT      prepare one: export or convert the model
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Peer:
    name: str
    module: str  # in this package
    packages: tuple[str, ...]  # distributions it needs to translate
    modules: tuple[str, ...]  # modules that must be there, to prepare it too
    install: str  # the command that installs it
    prepare: tuple[Any, ...]  # arguments of the module's `prepare` after checkpoint and folder
    precision: str | None = None  # of edgemt's: the shipped bundle stands in where it has this one
    sentences: bool = True  # is told to cut texts into sentences; edgemt does so itself


DEVICE = ("edgemt", "numpy", "onnxruntime", "sentencepiece", "sentencex")
CT2 = ("ctranslate2", "sentencepiece")
OPTIMUM = ("optimum-onnx", "optimum", "onnxruntime", "torch", "transformers", "sentencepiece")
EXPORT, BENCH = "pip install -e '.[export]'", "pip install -e '.[bench,export]'"
EDGEMT_NEEDS, CT2_NEEDS = ("onnxruntime", "onnxscript"), ("ctranslate2", "transformers")
OPTIMUM_NEEDS = ("optimum.onnxruntime",)
STATIC, DYNAMIC = ("--int8", "--scheme", "static"), ("--int8", "--scheme", "dynamic")
PEERS = (
    Peer("edgemt INT8 dynamic", "edgemt", DEVICE, EDGEMT_NEEDS, EXPORT, DYNAMIC, "int8-dynamic", False),
    Peer("edgemt INT8 static", "edgemt", DEVICE, EDGEMT_NEEDS, EXPORT, STATIC, "int8-static", False),
    Peer("edgemt FP32", "edgemt", DEVICE, EDGEMT_NEEDS, EXPORT, ("--fp32",), "fp32", False),
    Peer("CTranslate2 INT8", "ctranslate2", CT2, CT2_NEEDS, BENCH, ("int8",)),
    Peer("CTranslate2 FP32", "ctranslate2", CT2, CT2_NEEDS, BENCH, (None,)),
    Peer("optimum INT8 dynamic", "optimum", OPTIMUM, OPTIMUM_NEEDS, EXPORT, (True,)),
    Peer("optimum FP32", "optimum", OPTIMUM, OPTIMUM_NEEDS, EXPORT, (False,)),
)


def missing(peer: Peer) -> list[str]:
    """The modules that are not installed."""

    def found(name: str) -> bool:
        try:
            return importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:
            return False

    return [name for name in peer.modules if not found(name)]


def main(name: str, checkpoint: str, out: str) -> None:
    (peer,) = (peer for peer in PEERS if peer.name == name)
    module = importlib.import_module(f"benchmarks.contenders.{peer.module}")
    module.prepare(Path(checkpoint), Path(out), *peer.prepare)


if __name__ == "__main__":
    main(*sys.argv[1:])
