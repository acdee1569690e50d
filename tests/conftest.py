"""Fixtures: a small vocabulary of the clinical corpus, a small real bundle made with it, and the CLI."""

from __future__ import annotations

import csv
import gzip
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import CLINICAL, Cli

sys.path.insert(0, str(Path(__file__).parent / "unit"))  # toy.py


@pytest.fixture(scope="session")
def clinical_pairs() -> list[tuple[str, str]]:
    """The committed clinical corpus: Chinese, English."""
    with gzip.open(CLINICAL, "rt", encoding="utf-8", newline="") as file:
        return [(row[3], row[4]) for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory, clinical_pairs: list[tuple[str, str]]) -> Path:
    """A directory with the tokenizer files of a Marian checkpoint: 3,000 pieces."""
    from edgemt.training.vocabulary import train_vocabulary

    directory = tmp_path_factory.mktemp("vocabulary")
    sentences = [side for pair in clinical_pairs[:2000] for side in pair]
    train_vocabulary(sentences, directory, ["zh", "en"], 3000)
    return directory


@pytest.fixture(scope="session")
def toy_bundle(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Path:
    """A sealed bundle for zh and en: real graphs with random weights, and a real tokenizer."""
    from toy import EOS, PAD, UNK, Toy

    from edgemt.bundle import seal
    from edgemt.manifest import Model
    from edgemt.tokenizer import MARIAN_FILES, Tokenizer

    directory = tmp_path_factory.mktemp("toy") / "bundle"
    (directory / "tokenizer").mkdir(parents=True)
    for name in MARIAN_FILES.values():
        (directory / "tokenizer" / name).write_bytes((vocabulary / name).read_bytes())
    tokenizer = Tokenizer(vocabulary)
    suppress = tuple(sorted(tokenizer.control - {EOS}))
    toy = Toy(vocab=len(tokenizer.ids), suppress=suppress, eos_bonus=4.0)
    manifest = toy.write(directory)
    prefixes = {"zh-en": [tokenizer.ids[">>en<<"]], "en-zh": [tokenizer.ids[">>zh<<"]]}
    values = {
        **vars(manifest),
        "languages": [["zh", "en"], ["en", "zh"]],
        "model": Model(toy.vocab, EOS, PAD, UNK, PAD, toy.max_positions, prefixes, list(suppress)),
        "tokenizer": {key: f"tokenizer/{name}" for key, name in MARIAN_FILES.items()},
        "layers": [
            {"name": name, "graph": graph, "op": op, "precision": "fp32", "bytes": 4 * toy.vocab * toy.d}
            for name, graph, op in (("embed", "encoder", "Gather"), ("head", "step", "MatMul"))
        ],
    }
    seal(directory, type(manifest)(**values))
    return directory


@pytest.fixture(scope="session")
def default_bundle() -> Path:
    """The bundle that ships with edgemt."""
    from edgemt.bundle import DEFAULT, MANIFEST

    if not (DEFAULT / MANIFEST).is_file():
        pytest.skip("the default bundle is not committed yet")
    return DEFAULT


@pytest.fixture(scope="session")
def edgemt() -> Cli:
    """Runs `edgemt ARGUMENTS…` in a process of its own; `stdin` gives bytes to it."""

    def run(
        *arguments: str | Path, stdin: bytes = b"", cwd: Path | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "edgemt.cli", *map(str, arguments)]
        environment = {**os.environ, "PYTHONWARNINGS": "error"}
        return subprocess.run(
            command, input=stdin, capture_output=True, env=environment, cwd=cwd, timeout=120
        )

    return run
