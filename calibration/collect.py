"""Ranges from real decoding: what the FP32 graphs compute while they translate calibration sentences.

Static INT8 of a decoder with a cache must see the tensors that decoding produces, past keys and values of
every length included. So the project's own search translates each sentence greedily, one at a time (padding
would pollute the ranges), the runtime hands over the tapped tensors after every run of a graph, and streaming
observers take them in. Memory does not depend on the number of sentences.

A prompt and its answer in one run of a decoder-only model make the same tensors as decoding that answer token
by token, so that a sentence that brings its answer is read that way, in a tenth of the time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from tqdm import tqdm

from edgemt.calibration.observers import OBSERVERS
from edgemt.calibration.quantspec import QuantSpec
from edgemt.errors import EdgemtError, UsageError
from edgemt.family import Request
from edgemt.manifest import Manifest
from edgemt.runtimes import open_program
from edgemt.runtimes.protocol import RoleTensors, Tap, Want
from edgemt.translator import open_family, search_options


class Sentence(NamedTuple):
    """A sentence to translate. With an answer, a decoder-only model reads that instead of making its own."""

    source_lang: str
    target_lang: str
    text: str
    answer: str | None = None


Sentences = Sequence[Sentence | tuple[str, str, str]]


def collect(
    directory: Path,
    manifest: Manifest,
    tensors: RoleTensors,
    sentences: Sentences,
    *,
    observer: str = "minmax",
    threads: int = 1,
    factors: Mapping[str, NDArray[np.float32]] = {},
) -> QuantSpec:
    """Translate `sentences` with the FP32 bundle in `directory`, and find the range of each of `tensors`.

    `tensors` names tensors by the role of their graph ("encoder", "step"); `observer` is a key of OBSERVERS.
    A tensor with `factors` [channels] is divided by them before it is looked at (see smooth.py).
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

    def listen(role: str, arrays: Mapping[str, NDArray[Any]], /) -> None:
        runs[role] += 1
        for name, array in arrays.items():
            observers[name].update(array / factors[name] if name in factors else array)

    decode(directory, manifest, tensors, sentences, listen, threads)
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


def decode(
    directory: Path,
    manifest: Manifest,
    tensors: RoleTensors,
    sentences: Sentences,
    listen: Tap,
    threads: int = 1,
) -> None:
    """Translate `sentences` one by one; `listen` gets `tensors` of every run of a graph."""
    program = open_program(directory, manifest, threads=threads, taps=tensors, on_tap=listen)
    family = open_family(directory, manifest)
    options = dataclasses.replace(search_options(manifest), beam=1)
    for given in tqdm(sentences, desc="calibrating", disable=None):
        sentence = given if isinstance(given, Sentence) else Sentence(*given)
        request = Request(sentence.text, sentence.source_lang, sentence.target_lang)
        if sentence.answer is None or not program.caps.prompts:
            family.generate(program, [request], options, family.limit)
            continue
        answer = [manifest.model.start_id, *family.tokenizer.encode_target(sentence.answer)]
        row = [*family.source(request, family.limit), *answer][: manifest.model.max_positions]
        session = program.open(None, np.zeros(1, np.int32), len(row))
        session.step(np.array([row], np.int32), np.array([len(row)], np.int32), Want(last=True))
        session.close()


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
