"""LoRA: only adapters are trained and kept, merged checkpoints are plain, resuming is exact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from causal_fixtures import causal_config, write_causal_data
from peft import PeftModel
from safetensors.torch import load_file, save_file
from test_training_causal import stop_after
from training_fixtures import losses, tiny_config, write_tiny_data
from transformers import AutoModelForCausalLM, AutoTokenizer, MarianMTModel

from edgemt.errors import UsageError
from edgemt.training.config import Config
from edgemt.training.families import Origin, make_family
from edgemt.training.loop import Run

LORA = {"rank": 4, "alpha": 8, "dropout": 0.1}


class Base:
    """A checkpoint with random weights, its family's data, and a configuration that adapts it."""

    def __init__(self, directory: Path, family: str) -> None:
        causal = family == "causal"
        self.data = (write_causal_data if causal else write_tiny_data)(directory / "data")
        self.make: Any = causal_config if causal else tiny_config
        self.checkpoint = directory / "checkpoint"
        self.checkpoint.mkdir()
        torch.manual_seed(5)
        made = make_family(self.make(steps=1), Origin(self.data, None))
        made.write_files(self.checkpoint)
        save_file(made.weights(), self.checkpoint / "model.safetensors", metadata={"format": "pt"})

    def config(self, steps: int, **lora: Any) -> Config:
        return self.make(steps=steps, lora={**LORA, **lora})

    def run(self, directory: Path, steps: int, **lora: Any) -> Run:
        return Run(self.config(steps, **lora), self.data, directory, self.checkpoint)


@pytest.fixture(scope="module", params=["causal", "marian"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    return Base(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def trained(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = base.run(tmp_path_factory.mktemp("whole"), 20)
    run.train()
    return run


def test_only_adapters_are_trained_and_kept(base: Base, trained: Run) -> None:
    names = [name for name, p in trained.model.named_parameters() if p.requires_grad]
    assert names and all(".lora_A." in name or ".lora_B." in name for name in names)
    assert list(trained.average.weights) == names
    state = torch.load(trained.directory / "state.pt", weights_only=True)
    assert {name for name in state["model"] if "lora" not in name} <= {"final_logits_bias"}
    assert not any("lm_head" in name for name in names)
    before = load_file(base.checkpoint / "model.safetensors")
    now = {name.replace(".base_layer", ""): p for name, p in trained.model.named_parameters()}
    assert all(torch.equal(now[name], tensor) for name, tensor in before.items() if name in now)
    logged = losses(trained.directory)
    assert logged[20] < logged[1]


def test_a_merged_checkpoint_is_plain_and_peft_reads_the_adapters(
    base: Base, trained: Run, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    trained.write_checkpoint(out)
    kind = MarianMTModel if trained.config.model.family == "marian" else AutoModelForCausalLM
    merged, how = kind.from_pretrained(out, output_loading_info=True)
    assert not how["unexpected_keys"] and not how["mismatched_keys"]
    adapter = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(base.checkpoint)
    assert (adapter["r"], adapter["lora_alpha"]) == (4, 8)
    theirs = PeftModel.from_pretrained(kind.from_pretrained(base.checkpoint), out / "adapter")
    before = load_file(base.checkpoint / "model.safetensors")
    weights = load_file(out / "model.safetensors")
    assert weights.keys() == before.keys()
    changed = [name for name in weights if not torch.equal(weights[name], before[name])]
    assert changed and all("proj" in name or "fc" in name for name in changed)
    unloaded = theirs.merge_and_unload().state_dict()
    for name in changed:
        torch.testing.assert_close(weights[name], unloaded[name])
    AutoTokenizer.from_pretrained(out)
    with trained.average.in_place(trained.model):  # writing changed nothing in the run
        assert all(torch.equal(weights[name], tensor) for name, tensor in trained.family.weights().items())
    assert merged is not None


def test_adapters_alone_are_what_peft_writes(base: Base, tmp_path: Path) -> None:
    run = base.run(tmp_path / "state", 2, merge=False, targets=["q_proj", "v_proj"])
    run.train()
    run.write_checkpoint(tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors").exists()
    adapters = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in adapters} == {"q_proj", "v_proj"}


def test_a_stopped_run_goes_on_bit_for_bit(base: Base, trained: Run, tmp_path: Path) -> None:
    part = base.run(tmp_path, 20)
    stop_after(part, 7)
    part.train()
    rest = base.run(tmp_path, 20)
    rest.train()
    assert losses(tmp_path) == losses(trained.directory)
    pairs = zip(rest.model.parameters(), trained.model.parameters(), strict=True)
    averages = zip(rest.average.weights.values(), trained.average.weights.values(), strict=True)
    assert all(torch.equal(a, b) for a, b in [*pairs, *averages])


def test_what_cannot_be_is_refused(base: Base, trained: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"lora\.rank needs --init"):
        Run(base.config(2), base.data, tmp_path)
    with pytest.raises(UsageError, match=r"lora\.rank needs --init, also to go on"):
        Run(base.config(20), base.data, trained.directory)
    with pytest.raises(UsageError, match=r"lora\.targets: Target modules"):
        base.run(tmp_path, 2, targets=["nothing"])
    with pytest.raises(UsageError, match=r"lora\.rank = 8 differs from the run"):
        base.run(trained.directory, 20, rank=8)
