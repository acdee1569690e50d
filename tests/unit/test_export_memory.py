"""What an export needs is told before it starts, and a model that does not fit is looked at in parts."""

from __future__ import annotations

import functools
import json
import re
import tracemalloc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from untrained import hollow, sentences, untrained

from edgemt.bundle import open_bundle
from edgemt.cli import main
from edgemt.doctor.system import memory_available
from edgemt.errors import EdgemtError
from edgemt.export import against_torch, memory
from edgemt.export.checkpoints.read import read_checkpoint
from edgemt.export.checkpoints.tensors import Stored
from edgemt.export.families import causal
from edgemt.export.graphs.graphset import Canonical
from edgemt.export.rows import Row
from edgemt.export.targets.onnxruntime import lower
from edgemt.translator import load

torch.set_num_threads(1)
SEVEN = {  # HY-MT1.5-7B, but for its vocabulary
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentences(untrained(tmp_path_factory.mktemp("memory") / "checkpoint", shards="100KB"))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the memory that this machine says it has, in bytes."""

    def set_available(count: float) -> None:
        root = tmp_path / "root"
        (root / "proc").mkdir(parents=True, exist_ok=True)
        (root / "proc" / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {int(count) // 1024} kB\n")
        monkeypatch.setattr(memory, "memory_available", functools.partial(memory_available, root))

    return set_available


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int = 1) -> str:
    assert main(["export", *map(str, arguments)]) == code
    return capsys.readouterr().err.strip().split("\n")[-1]


def test_a_model_too_large_for_the_machine_is_refused_before_anything_is_read(
    tmp_path: Path, machine: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seven = sentences(hollow(tmp_path / "seven", **SEVEN))
    assert (seven / "model.safetensors").stat().st_size > 13e9
    monkeypatch.setattr(Stored, "load", lambda self: pytest.fail("a weight was read"))
    monkeypatch.setattr("edgemt.export.checkpoints.problems.look", lambda stored: pytest.fail("and here"))
    machine(22e9)
    for arguments, said in (
        (["--int4"], r"--no-gate"),
        (
            ["--int8"],
            r"memory for the calibration in FP32, and 22\.0 GB are available; .* --int4 and --no-gate",
        ),
    ):
        message = refusal(capsys, seven, *arguments, "-o", tmp_path / "out")
        assert re.search(r"needs about 3\d\.\d GB of memory for .*, and 22\.0 GB are available", message)
        assert re.search(said, message), message
    machine(3e9)
    message = refusal(capsys, seven, "--int4", "--no-gate", "-o", tmp_path / "out")
    assert "and 3.0 GB are available; close other programs" in message
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_seven_billion_weights_fit_into_24_gb_in_parts() -> None:
    layer = 218_112_256
    found = memory.Sizes(tables=128167 * 4096, layers=(layer,) * 32, largest=128167 * 4096, vocab=128167)
    plan = memory.plan(found, ["int4"], 4 * 32, calibrates=False, gated=False, available=22_000_000_000)
    assert not plan.whole and sum(layers for _, layers in plan.parts) == 32 and 2 <= len(plan.parts) <= 3
    assert [first for first, _ in plan.parts] == [
        sum(n for _, n in plan.parts[:i]) for i in range(len(plan.parts))
    ]
    assert max(need.bytes for need in plan.needs) < 22e9
    small = memory.Sizes(tables=120818 * 2048, layers=(48_500_000,) * 32, largest=120818 * 2048, vocab=120818)
    plan = memory.plan(small, ["int4"], 4 * 32, calibrates=False, gated=True, available=12_000_000_000)
    assert not plan.parts and plan.whole  # HY-MT1.5-1.8B: all at once, gate included


def test_a_control_group_limits_memory_but_not_by_what_it_has_cached(tmp_path: Path) -> None:
    def told(**files: str) -> int | None:
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/").replace("_of_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return memory_available(tmp_path)

    group = "sys__fs__cgroup__"
    assert told(proc__meminfo="MemAvailable: 8000000 kB\n") == 8_192_000_000
    limited = {f"{group}memory_of_max": "4000\n", f"{group}memory_of_current": "3000\n"}
    assert told(**limited) == 1000
    assert told(**{f"{group}memory_of_stat": "inactive_anon 7\ninactive_file 2000\n"}) == 3000
    first = f"{group}memory__memory_of_"
    assert told(**{f"{first}limit_in_bytes": "500\n", f"{first}usage_in_bytes": "400\n"}) == 100


def test_a_disk_too_small_is_told(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory.shutil, "disk_usage", lambda path: (10**9, 10**9, 300_000))
    message = refusal(capsys, checkpoint, "--fp32", "-o", tmp_path / "out")
    assert f"needs about 1 MB of disk in {tmp_path}, and 0 MB are free; free some space" in message
    assert list(tmp_path.iterdir()) == []


def test_layers_are_compared_a_few_at_a_time_where_memory_is_short(
    checkpoint: Path,
    tmp_path: Path,
    machine: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = memory.sizes(read_checkpoint(checkpoint))
    assert len(found.layers) == 3
    whole = memory.plan(found, [], 512, calibrates=False, gated=False, available=None)
    machine(whole.needs[0].bytes - 100_000)
    assert main(["export", str(checkpoint), "--int4", "--no-gate", "-o", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "2 parts of up to 2 of the 3 layers, each with the embedding and the head" in said.err
    assert "quality gate was not run (--no-gate)" in said.out
    manifest = open_bundle(tmp_path / "out").manifest
    assert manifest.gate["quality"].startswith("not run") and manifest.precision == "int4"
    assert manifest.gate["parity"]["depth"].startswith("2 parts") and manifest.gate["parity"]["passed"]
    assert set(manifest.gate["variants"]) == {"int4"}  # no FP32 bundle was written
    assert isinstance(load(tmp_path / "out").translate("你好。", source_lang="zh"), str)


def test_a_wrong_layer_is_found_in_its_part(checkpoint: Path, tmp_path: Path) -> None:
    opened, written = read_checkpoint(checkpoint), []

    def write(canonical: Canonical) -> Path:
        """As the pipeline does, with a fault in the last layer."""
        if len(written) == 2:
            name = "layers.0.mlp.down_proj.weight"
            canonical.weights[name] = np.asarray(canonical.weights[name]) * np.float32(1.01)
        written.append(tmp_path / f"part{len(written)}")
        written[-1].mkdir()
        bundle(opened, canonical, written[-1])
        return written[-1]

    rows = [Row("zh", "en", "我对青霉素过敏。", "")]
    with pytest.raises(EdgemtError, match="do not compute what torch computes"):
        against_torch.compare(opened, [(0, 1), (1, 1), (2, 1)], rows, None, write)
    assert len(written) == 3 and not written[0].exists()


def bundle(checkpoint: Any, canonical: Canonical, directory: Path) -> None:
    from edgemt.export.bundles import write_bundle

    lowered = lower(canonical, "fp32")
    write_bundle(
        directory, checkpoint, canonical, lowered.graphs, name="part", target="onnxruntime",
        precision="fp32", layers=lowered.layers, languages=[["zh", "en"]],
    )  # fmt: skip


def test_one_weight_at_a_time_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = untrained(tmp_path / "checkpoint", shards="100KB", num_hidden_layers=12)
    assert len(list(checkpoint.glob("*.safetensors"))) > 3
    opened, alive, most = read_checkpoint(checkpoint), set[int](), 0
    load_weight = Stored.load

    def counted(self: Stored) -> Any:
        nonlocal most
        array = load_weight(self)
        if array.ndim > 1:  # norms and biases stay: they are small
            alive.add(id(array))
            weakref.finalize(array, alive.discard, id(array))
            most = max(most, len(alive))
        return array

    monkeypatch.setattr(Stored, "load", counted)
    canonical = causal.build(opened, {})
    largest = max(weight.nbytes for weight in canonical.weights.values())
    assert most == 0  # building reads none
    tracemalloc.start()
    lower(canonical, "fp32").graphs.write(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    total = sum(weight.nbytes for weight in canonical.weights.values())
    assert most == 1 and peak < 3 * largest < total / 2
    assert json.loads((checkpoint / "model.safetensors.index.json").read_text())["weight_map"]
