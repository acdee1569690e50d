"""`edgemt inspect` of a checkpoint, as a user runs it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import marian
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support import CHECKPOINT, MEASURED
from torch._subclasses.fake_tensor import FakeTensorMode

from edgemt.cli import main

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return marian.student(tmp_path_factory.mktemp("inspect") / "base")


def facts(capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int = 0) -> dict:
    assert main(["inspect", *map(str, arguments), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def sentence(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main(["inspect", *map(str, arguments)]) in (1, 2)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_the_default_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(CHECKPOINT)]) == 0
    text = capsys.readouterr().out
    for part in (
        "edgemt train, safetensors",
        "9,415,440 in 150 tensors",
        "CC-BY-SA-4.0",
        "bf16",
        "problems: none",
    ):
        assert part in text
    found = facts(capsys, CHECKPOINT)
    assert found["exportable"] and found["problems"] == {} and found["notes"] == []
    assert found["dtypes"] == {"float32": {"tensors": 150, "parameters": 9415440, "bytes": 37661760}}
    assert found["training"]["steps"] == 23302


def test_problems_are_listed_and_change_the_exit_code(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "bad"))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.encoder.layers.0.fc1.bias"][0] = torch.nan
    tensors["more"] = torch.zeros(2)
    save_file(tensors, folder / "model.safetensors")
    found = facts(capsys, folder, code=1)
    assert found["problems"] == {
        "unexpected": ["more"],
        "NaN or infinite": ["model.encoder.layers.0.fc1.bias"],
    }
    assert main(["inspect", str(folder)]) == 1
    assert "NaN or infinite (1): the training diverged" in capsys.readouterr().out


@pytest.mark.parametrize(("dtype", "name"), [(torch.float16, "FP16"), (torch.bfloat16, "BF16")])
def test_rounded_weights_are_found_out(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: torch.dtype, name: str
) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "rounded"))
    tensors = {key: tensor.to(dtype) for key, tensor in load_file(folder / "model.safetensors").items()}
    save_file({key: tensor.float() for key, tensor in tensors.items()}, folder / "model.safetensors")
    (note,) = facts(capsys, folder)["notes"]
    assert f"all matrices hold {name} values only" in note
    torch.save({"model": tensors, "step": 5}, folder / "run.pt")
    found = facts(capsys, folder / "run.pt")
    assert found["training"] == {"steps": 5, "masters": f"none found: the weights are rounded to {name}"}
    assert list(found["dtypes"]) == [str(dtype).removeprefix("torch.")]


def test_weights_beyond_fp16(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "large"))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.encoder.layers.0.fc1.weight"][0, 0] = 1e5
    save_file(tensors, folder / "model.safetensors")
    (note,) = facts(capsys, folder)["notes"]
    assert note.startswith("above 65504") and note.endswith(": model.encoder.layers.0.fc1.weight")


def causal(kind: str, **changes: object) -> transformers.PretrainedConfig:
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    values = {**shape, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 90, "tie_word_embeddings": True}
    model = getattr(transformers, kind)
    return model.config_class(**(values | changes), architectures=[kind])


WITHOUT_GRAPHS = "MistralForCausalLM"


@pytest.mark.parametrize("kind", ["HunYuanDenseV1ForCausalLM", "Qwen2ForCausalLM", WITHOUT_GRAPHS])
@pytest.mark.parametrize("tied", [True, False])
def test_decoder_only_architectures_with_and_without_graphs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, tied: bool
) -> None:
    model = getattr(transformers, kind)(causal(kind, tie_word_embeddings=tied)).bfloat16()
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    found = facts(capsys, tmp_path / "model")
    assert found["form"] == "sharded safetensors" and found["architecture"] == kind
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["exportable"] == (kind != WITHOUT_GRAPHS)
    if kind == WITHOUT_GRAPHS:
        assert "no canonical graphs yet" in found["notes"][0]
        assert main(["export", str(tmp_path / "model"), "--fp32", "-o", str(tmp_path / "bundle")]) == 1
        assert f"the architecture {kind}, which has no canonical graphs" in capsys.readouterr().err
    shards = sorted((tmp_path / "model").glob("*.safetensors"))
    shards[0].unlink()
    assert f"lacks {shards[0].name}" in sentence(capsys, tmp_path / "model")


def test_an_architecture_that_transformers_does_not_know(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "other"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["OwnModel"]}))
    assert "transformers does not know OwnModel" in facts(capsys, folder)["notes"][0]


def test_what_is_no_checkpoint(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    assert "is not an intact bundle" in sentence(capsys, tmp_path / "notes.txt")
    (tmp_path / "bundle").mkdir()  # one that lost its manifest
    (tmp_path / "bundle" / "weights.bin").write_bytes(b"\0" * 20)
    assert "is not a bundle (it has no manifest.json)" in sentence(capsys, tmp_path / "bundle")
    (tmp_path / "x.pt").write_text("hello")
    assert "neither safetensors nor a file that torch.save wrote" in sentence(capsys, tmp_path / "x.pt")
    (tmp_path / "x.safetensors").write_bytes(b"\0" * 20)
    assert "truncated or damaged" in sentence(capsys, tmp_path / "x.safetensors")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "x.pt")
    assert "torch.nn.modules.linear.Linear) and could run code" in sentence(capsys, tmp_path / "x.pt")
    torch.save({"optimizer": {}}, tmp_path / "x.pt")
    assert "nor has it one under model_state_dict, model" in sentence(capsys, tmp_path / "x.pt")
    shutil.copy(base / "config.json", tmp_path / "config.json")
    assert "give one file: x.pt?" in sentence(capsys, tmp_path)
    (tmp_path / "config.json").write_text(
        '{"architectures": ["MarianMTModel"], "encoder_attention_heads": 7}'
    )
    torch.save({"w": torch.zeros(2)}, tmp_path / "x.pt")
    assert "is not the configuration of a MarianMTModel" in sentence(capsys, tmp_path / "x.pt")


def test_without_torch_it_says_what_to_install(base: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from edgemt.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "inspect", str(base)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.endswith("run: pip install 'edgemt[export]'\n") and "Traceback" not in result.stderr


def write_safetensors(folder: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """Zeros of 7 GB that take no room on the disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return folder


def write_zip(folder: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    with FakeTensorMode():
        state = {name: torch.empty(shape) for name, shape in shapes.items()}
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save({"model": state}, folder / "run.pt")
    return folder / "run.pt"


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_safetensors, write_zip])
def test_seven_gigabytes_do_not_need_one(tmp_path: Path, write: Callable[[Path, dict], Path]) -> None:
    """HY-MT1.5-1.8B's shape in FP32. Seen: 0.45 GB at the peak, of which torch and transformers take 0.33."""
    config = causal(
        "HunYuanDenseV1ForCausalLM", hidden_size=2048, intermediate_size=6144, num_hidden_layers=32,
        num_attention_heads=16, num_key_value_heads=4, head_dim=128, vocab_size=120818,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = transformers.HunYuanDenseV1ForCausalLM(config)
    path = write(tmp_path, {name: tuple(p.shape) for name, p in model.named_parameters()})
    command = [sys.executable, "-c", MEASURED, "inspect", str(path), "--json"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["dtypes"]["float32"]["bytes"] > 7e9 and found["problems"] == {}
    assert int(result.stderr.split()[-1]) < 1e9
