"""ZeRO checkpoints that DeepSpeed itself wrote: the FP32 masters of all ranks are what is exported."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import zero_files
from amp_loops import graph_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from support import MEASURED
from torch._subclasses.fake_tensor import FakeTensorMode

from edgemt.bundle import open_bundle
from edgemt.cli import main
from edgemt.errors import EdgemtError
from edgemt.export.checkpoints.forms import deepspeed
from edgemt.export.checkpoints.read import Checkpoint, read_checkpoint
from edgemt.export.checkpoints.rounding import ROUND
from edgemt.export.graphs.marian import build, sinusoids
from edgemt.export.languages import languages

torch.set_num_threads(1)
TRAINER = "trainer-zero3-bf16/checkpoint-6"
# Fixture -> form, type that the model was trained in, processes.
WRITTEN = {
    "plain-bf16": ("DeepSpeed", "bfloat16", 0),  # without ZeRO: masters without names, in the model's file
    "zero1-bf16": ("DeepSpeed ZeRO-1", "bfloat16", 2),  # by BF16_Optimizer
    "zero1-aligned-bf16": ("DeepSpeed ZeRO-1", "bfloat16", 2),
    "zero2-fp16": ("DeepSpeed ZeRO-2", "float16", 3),
    "zero3-bf16": ("DeepSpeed ZeRO-3", "bfloat16", 2),
    TRAINER: ("DeepSpeed ZeRO-3", "bfloat16", 2),
}


def assert_masters_exported(read: Checkpoint, folder: Path, half: str) -> None:
    """Every trained weight is the optimizer's master, bit for bit, and most are not their own rounding."""
    masters = zero_files.masters(folder)
    assert len(masters) > 40
    for name, expected in masters.items():
        assert zero_files.digest(read.named[name].load()) == expected, name
        assert read.named[name].source.startswith("FP32 masters in ")
    graph = {name: array for name, array in graph_weights(read).items() if name in masters}
    assert len(graph) > 15
    assert {name: zero_files.digest(array) for name, array in graph.items()} == {
        name: masters[name] for name in graph
    }
    assert not any(np.array_equal(ROUND[half](array), array) for array in graph.values())


@pytest.mark.parametrize("case", WRITTEN)
def test_masters_of_all_ranks(case: str, tmp_path: Path) -> None:
    folder = zero_files.copy(case, tmp_path)
    read = read_checkpoint(folder)
    form, half, ranks = WRITTEN[case]
    assert read.form == form
    assert len(read.weights.files) == ranks + (ranks if form == "DeepSpeed ZeRO-3" else 1)
    assert_masters_exported(read, folder, half)
    assert read.amp["steps"] == 6 and read.amp["written_by"] == "DeepSpeed 0.19.8"


def test_the_training_is_told(tmp_path: Path) -> None:
    assert dict(read_checkpoint(zero_files.copy("zero2-fp16", tmp_path)).amp) == {
        "precision": "fp16-o2",
        "steps": 6,
        "skipped_steps": 1,
        "loss_scale": 65536.0,
        "masters": "float32, parts of 3 ranks in global_step6",
        "written_by": "DeepSpeed 0.19.8",
    }
    trainer = dict(read_checkpoint(zero_files.copy(TRAINER, tmp_path)).amp)
    assert trainer["precision"] == "bf16" and "loss_scale" not in trainer
    assert trainer["left_aside"] == "model.safetensors (bfloat16/float32): the FP32 masters are preferred"


def test_frozen_weights_have_no_master(tmp_path: Path) -> None:
    for case in ("zero1-bf16", "zero2-fp16", "zero3-bf16"):
        read = read_checkpoint(zero_files.copy(case, tmp_path))
        frozen = read.named["model.encoder.layers.0.fc2.weight"]
        assert frozen.dtype == WRITTEN[case][1] and "no master" in frozen.source
        assert np.abs(frozen.load()).max() > 0.1


def test_positions_that_were_rounded_come_from_their_formula(tmp_path: Path) -> None:
    read = read_checkpoint(zero_files.copy("zero3-bf16", tmp_path))
    name = "model.encoder.embed_positions.weight"
    assert read.named[name].dtype == "bfloat16" and name not in read.stored
    positions = build(read, languages(read)[1]).weights["embed_positions.weight"]
    np.testing.assert_array_equal(positions, sinusoids(*positions.shape))


def test_export_from_the_trainers_folder(tmp_path: Path) -> None:
    folder = zero_files.copy(TRAINER, tmp_path)
    assert main(["export", str(folder), "--fp32", "-o", str(tmp_path / "out")]) == 0
    bundle = open_bundle(tmp_path / "out")
    training = bundle.manifest.provenance["training"]
    assert training["precision"] == "bf16" and training["steps"] == 6
    assert "FP32 masters in global_step6/*_optim_states.pt" in training["weights"]
    content = b"".join(file.read_bytes() for file in bundle.directory.rglob("weights.bin"))
    master = read_checkpoint(folder).named["model.decoder.layers.0.fc2.weight"].load()
    assert master.T.tobytes() in content
    assert ROUND["bfloat16"](master).T.tobytes() not in content


@pytest.mark.parametrize("inside", ["global_step6", "global_step6/mp_rank_00_model_states.pt"])
@pytest.mark.parametrize("case", ["zero2-fp16", "plain-bf16"])
def test_the_steps_folder_or_a_file_of_it(case: str, inside: str, tmp_path: Path) -> None:
    folder = zero_files.copy(case, tmp_path)
    assert_masters_exported(read_checkpoint(folder / inside, folder), folder, WRITTEN[case][1])


def test_without_zero_a_master_needs_a_proof(tmp_path: Path) -> None:
    folder = zero_files.copy("plain-bf16", tmp_path)
    file = folder / "global_step6" / "mp_rank_00_model_states.pt"
    saved = torch.load(file)
    saved["optimizer"]["fp32_groups"][0][3].data[0, 0] += 1
    torch.save(saved, file)
    with pytest.raises(EdgemtError, match=r"given a name \(no weight of the model is its rounding\)"):
        read_checkpoint(folder)
    saved["optimizer"] = None
    torch.save(saved, file)
    assert read_checkpoint(folder).amp["masters"] == "none: the model itself was trained in bfloat16"
    saved["param_shapes"] = []
    torch.save(saved, file)
    with pytest.raises(EdgemtError, match=r"has no \*_optim_states\.pt"):
        read_checkpoint(folder)


def test_without_latest_the_only_step_is_taken(tmp_path: Path) -> None:
    folder = zero_files.copy("zero3-bf16", tmp_path)
    (folder / "latest").unlink()
    assert read_checkpoint(folder).form == "DeepSpeed ZeRO-3"
    shutil.copytree(folder / "global_step6", folder / "global_step8")
    with pytest.raises(EdgemtError, match=r"several steps \(global_step6, global_step8\)"):
        read_checkpoint(folder)


def test_weights_of_another_step_beside_the_masters(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = zero_files.copy(TRAINER, tmp_path)
    old = {name: tensor * 1.01 for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(old, folder / "model.safetensors")
    state = json.loads((folder / "trainer_state.json").read_text())
    (folder / "trainer_state.json").write_text(json.dumps(state | {"global_step": 9}))
    amp = read_checkpoint(folder).amp
    assert amp["steps"] == 6
    assert amp["note"] == "trainer_state.json is of step 9, the masters are of step 6, and were taken"
    assert amp["left_aside"].endswith("it is of another step")


def test_masters_deleted_and_the_models_weights_kept(tmp_path: Path) -> None:
    folder = zero_files.copy(TRAINER, tmp_path)
    shutil.rmtree(folder / "global_step6")
    read = read_checkpoint(folder)
    assert read.form == "Trainer checkpoint" and read.dtypes == ("bfloat16", "float32")
    assert "`latest` names, are gone" in read.amp["note"]


def remove(pattern: str) -> Callable[[Path], None]:
    return lambda folder: next((folder / "global_step6").glob(pattern)).unlink()


def rewrite(folder: Path, stage: int = 2, bad: dict[str, float] | None = None, **changes: object) -> None:
    """The step again, written without DeepSpeed, with `bad` numbers in weights or `changes` to the layout."""
    named = read_checkpoint(folder).named
    group = {name: torch.from_numpy(named[name].load()) for name in zero_files.masters(folder)}
    for name, number in (bad or {}).items():
        group[name].view(-1)[3] = number
    shutil.rmtree(folder / "global_step6")
    zero_files.write(folder / "global_step6", [group], stage, 2, **changes)


def not_finite(folder: Path) -> None:
    bad = {"model.decoder.layers.0.fc1.weight": np.nan, "model.encoder.layers.0.fc1.bias": np.inf}
    rewrite(folder, stage=3, bad=bad)


def shorter(folder: Path) -> None:
    rewrite(folder)
    file = folder / "global_step6" / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"
    saved = torch.load(file)
    flats = saved["optimizer_state_dict"]["single_partition_of_fp32_groups"]
    flats[0] = flats[0][:-40].clone()
    torch.save(saved, file)


class Evil:
    def __reduce__(self) -> tuple:
        return os.system, ("touch /tmp/edgemt-was-here",)


def truncate(folder: Path) -> None:
    file = folder / "global_step6" / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"
    file.write_bytes(file.read_bytes()[:9000])


def one_more(folder: Path) -> None:
    file = folder / "global_step6" / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"
    shutil.copy(file, file.with_name(file.name.replace("rank_1", "rank_2")))


def tensor_parallel(folder: Path) -> None:
    file = folder / "global_step6" / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"
    shutil.copy(file, file.with_name(file.name.replace("mp_rank_00", "mp_rank_01")))


def universal(folder: Path) -> None:
    shutil.rmtree(folder / "global_step6")
    parameter = folder / "global_step6_universal" / "zero" / "model.shared.weight"
    parameter.mkdir(parents=True)
    torch.save({"param": torch.zeros(2)}, parameter / "fp32.pt")
    (folder / "latest").unlink()
    (folder / "latest_universal").write_text("global_step6_universal")


BAD: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "a rank's masters": (
        remove("*rank_1_*optim*"),
        ["lacks bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt", "trained on 2 ranks", "copy"],
    ),
    "the first rank's masters": (
        remove("*rank_0_*optim*"),
        ["lacks bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"],
    ),
    "a rank's model": (remove("*rank_1_*model*"), ["lacks zero_pp_rank_1_mp_rank_00_model_states.pt"]),
    "all masters": (
        lambda c: [file.unlink() for file in (c / "global_step6").glob("*optim*")],
        ["has no *_optim_states.pt", "copy those of all ranks"],
    ),
    "a rank too many": (one_more, ["masters of 3 ranks but was trained on 2", "two runs are mixed"]),
    "more ranks": (
        lambda c: rewrite(c, partition_count=[4, 4]),
        ["lacks bf16_zero_pp_rank_2_mp_rank_00_optim_states.pt, bf16_zero_pp_rank_3", "trained on 4 ranks"],
    ),
    "latest": (
        lambda c: shutil.rmtree(c / "global_step6"),
        ["latest names global_step6, which is not in", "copy that folder too"],
    ),
    "truncated": (truncate, ["rank_1_mp_rank_00_optim_states.pt is truncated or damaged"]),
    "code": (
        lambda c: rewrite(c, loss_scaler=Evil()),
        ["optim_states.pt was refused", "posix.system", "could run code"],
    ),
    "not finite": (
        not_finite,
        ["NaN or infinite: model.decoder.layers.0.fc1.weight, model.encoder.layers.0.fc1.bias", "earlier"],
    ),
    "short": (shorter, ["does not add up (group 0 ends within model.decoder", "zero_to_fp32.py"]),
    "other layout": (
        lambda c: rewrite(c, single_partition_of_fp32_groups=None),
        ["has no single_partition_of_fp32_groups: it is not laid out as ZeRO is", "zero_to_fp32.py"],
    ),
    "groups": (
        lambda c: rewrite(c, single_partition_of_fp32_groups=[torch.zeros(3)] * 2),
        ["does not add up (1 groups of parameters are named and 2 saved)"],
    ),
    "tensor parallel": (tensor_parallel, ["is split for tensor parallelism", "does not join"]),
    "universal": (universal, ["is a universal checkpoint of DeepSpeed's", "does not join"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_checkpoint_gets_one_sentence(case: str, tmp_path: Path) -> None:
    folder = zero_files.copy("zero3-bf16", tmp_path)
    damage, expected = BAD[case]
    damage(folder)
    with pytest.raises(EdgemtError) as raised:
        read_checkpoint(folder)
    message = str(raised.value)
    assert "\n" not in message and str(folder) in message
    assert all(part in message for part in expected), message
    assert not Path("/tmp/edgemt-was-here").exists()


@settings(deadline=None, max_examples=40)
@given(
    shapes=st.lists(st.lists(st.integers(1, 5), min_size=0, max_size=3), min_size=1, max_size=9),
    stage=st.integers(1, 3),
    ranks=st.integers(1, 5),
    sub_group=st.integers(1, 60),
    split=st.integers(1, 9),
)
def test_any_shapes_on_any_ranks(
    tmp_path_factory: pytest.TempPathFactory,
    shapes: list[list[int]],
    stage: int,
    ranks: int,
    sub_group: int,
    split: int,
) -> None:
    """What the layout makes of tensors of any size comes back as they were."""
    folder = tmp_path_factory.mktemp("zero") / "global_step7"
    named = {
        f"w{i}": torch.randn(shape, generator=torch.Generator().manual_seed(i))
        for i, shape in enumerate(shapes)
    }
    names = list(named)
    groups = [{name: named[name] for name in part} for part in (names[:split], names[split:]) if part]
    zero_files.write(folder, groups, stage, ranks, sub_group)
    read = deepspeed.read(folder)
    assert read.form == f"DeepSpeed ZeRO-{stage}" and read.tensors.keys() == named.keys()
    for name, tensor in named.items():
        assert np.array_equal(read.tensors[name].load(), tensor.numpy()), name


@pytest.mark.slow
def test_seven_gigabytes_on_two_ranks_do_not_need_one(tmp_path: Path) -> None:
    """HY-MT1.5-1.8B's shape under ZeRO-3 with its moments: 21 GB that take no room. Measured: 0.48 GB."""
    config = transformers.HunYuanDenseV1Config(
        hidden_size=2048, intermediate_size=6144, num_hidden_layers=32, num_attention_heads=16,
        num_key_value_heads=4, head_dim=128, vocab_size=120818, tie_word_embeddings=True,
        architectures=["HunYuanDenseV1ForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = transformers.HunYuanDenseV1ForCausalLM(config)
    with FakeTensorMode():
        masters = {name: torch.empty(p.shape) for name, p in model.named_parameters()}
        half = sum(master.numel() for master in masters.values()) // 2
        moments = {"state": {0: {"exp_avg": torch.empty(half), "exp_avg_sq": torch.empty(half)}}}
        with torch.serialization.skip_data(materialize_fake_tensors=True):
            zero_files.write(tmp_path / "global_step7", [masters], 3, 2, 10**8, optimizer_state_dict=moments)
    command = [sys.executable, "-c", MEASURED, "inspect", str(tmp_path), "--json"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["form"] == "DeepSpeed ZeRO-3" and found["problems"] == {}
    assert found["dtypes"]["float32"]["bytes"] > 7e9
    assert int(result.stderr.split()[-1]) < 1e9


@pytest.mark.slow
def test_deepspeed_itself(tmp_path: Path) -> None:
    """Where DeepSpeed is installed, with what it writes now."""
    pytest.importorskip("deepspeed")
    script = zero_files.FIXTURES / "make_deepspeed.py"
    subprocess.run([sys.executable, str(script), str(tmp_path), "zero3-bf16", "zero2-fp16"], check=True)
    for case in ("zero3-bf16", "zero2-fp16"):
        zero_files.tokenizer(tmp_path / case)
        assert_masters_exported(read_checkpoint(tmp_path / case), tmp_path / case, WRITTEN[case][1])
