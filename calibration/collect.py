"""Ranges from real decoding: what the FP32 graphs compute while they translate calibration sentences.

Static INT8 of a decoder with a cache must see the tensors that decoding produces, past keys and values of
every length included. So the project's own search translates each sentence greedily, one at a time (padding
would pollute the ranges), the runtime hands over the tapped tensors after every run of a graph, and streaming
observers take them in. Memory does not depend on the number of sentences.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from tqdm import tqdm

from edgemt.calibration.observers import OBSERVERS
from edgemt.calibration.quantspec import QuantSpec
from edgemt.errors import EdgemtError, UsageError
from edgemt.family import Request
from edgemt.manifest import Manifest
from edgemt.runtimes import open_program
from edgemt.runtimes.protocol import RoleTensors
from edgemt.translator import open_family, search_options

Sentence = tuple[str, str, str]  # source language, target language, text


def collect(
    directory: Path,
    manifest: Manifest,
    tensors: RoleTensors,
    sentences: Sequence[Sentence],
    *,
    observer: str = "minmax",
    threads: int = 1,
) -> QuantSpec:
    """Translate `sentences` with the FP32 bundle in `directory`, and find the range of each of `tensors`.

    `tensors` names tensors by the role of their graph ("encoder", "step"); `observer` is a key of OBSERVERS.
    Raises UsageError without sentences or for another observer, and EdgemtError, naming the tensor, for one
    that took a value that is not finite.
    """
    if not sentences:
        raise UsageError("calibration has no sentences; give a file that has some")
    if observer not in OBSERVERS:
        raise UsageError(f"there is no observer {observer}; choose from {', '.join(OBSERVERS)}")
    roles = {name: role for role, names in tensors.items() for name in names}
    if len(roles) < sum(map(len, tensors.values())):
        raise EdgemtError("two graphs have a tensor of the same name to calibrate; give each its own name")
    observers = {name: OBSERVERS[observer](name) for name in roles}
    runs = dict.fromkeys(manifest.graphs, 0)

    def listen(role: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        runs[role] += 1
        for name, array in arrays.items():
            observers[name].update(array)

    program = open_program(directory, manifest, threads=threads, taps=tensors, on_tap=listen)
    family = open_family(directory, manifest)
    options = dataclasses.replace(search_options(manifest), beam=1)
    for source_lang, target_lang, text in tqdm(sentences, desc="calibrating", disable=None):
        family.generate(program, [Request(text, source_lang, target_lang)], options, family.limit)
    ranges = {name: found.range() for name, found in observers.items()}
    return QuantSpec(
        activations=ranges,
        roles=roles,
        observer=observer,
        sentences=len(sentences),
        steps=runs.get("step", 0),
        source_sha256=_sha256(f"{name} {entry['sha256']}" for name, entry in sorted(manifest.files.items())),
        sentences_sha256=_sha256(map(json.dumps, sentences)),
        sqnr_db={name: found.sqnr_db(*ranges[name]) for name, found in observers.items()},
    )


def quantisable_inputs(model: Path, products: bool = False) -> list[str]:
    """The tensors of an ONNX graph whose ranges a static quantiser needs, each once, in the graph's order.

    These are the activation inputs of MatMul and Gemm nodes that have constant weights. With `products`, also
    both operands of products of two activations (attention: queries, keys, probabilities, values).
    """
    graph = onnx.load(str(model), load_external_data=False).graph
    constant = {initializer.name for initializer in graph.initializer}
    found: dict[str, None] = {}
    for node in graph.node:
        inputs = [name for name in node.input if name]
        if all(name in constant for name in inputs):  # also of constants: a transposed weight
            constant.update(node.output)
        elif node.op_type in ("MatMul", "Gemm"):
            activations = [name for name in inputs[:2] if name not in constant]
            if len(activations) == 1 or products:
                found.update(dict.fromkeys(activations))
    return list(found)


def calibration_tensors(directory: Path, manifest: Manifest, products: bool = False) -> dict[str, list[str]]:
    """`quantisable_inputs` of each graph of a bundle, by role.

    What the encoder hands to every step unchanged (cross keys and values) is watched where it is made, once.
    """
    handed_on = {state.input: state.output for state in manifest.states if state.update == "constant"}
    found: dict[str, list[str]] = {}
    for role, graph in manifest.graphs.items():
        names = quantisable_inputs(directory / graph.file, products)
        found[role] = [name for name in names if role == "encoder" or name not in handed_on]
        if role != "encoder" and "encoder" in found:
            found["encoder"] += [handed_on[name] for name in names if name in handed_on]
    return found


def _sha256(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
