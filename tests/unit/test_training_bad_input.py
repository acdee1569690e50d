"""What goes wrong in a training is one sentence at the command line, and costs nothing that was written."""

from __future__ import annotations

import gzip
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_fixtures import write_tiny_data

from edgemt.cli import main
from edgemt.training.loop import MODEL
from edgemt.training.state import PREVIOUS, STATE, load_state

CONFIG = """
evaluate_sentences = 2
model = { d_model = 16, encoder_layers = 1, decoder_layers = 1, heads = 2, ffn = 32 }
data = { batch_tokens = 1000 }
schedule = { steps = 3, warmup = 2, cooldown = 0 }
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_data(tmp_path_factory.mktemp("training") / "data")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "train.toml"
    file.write_text(CONFIG)
    return file


@pytest.fixture
def refused(tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]):
    """Runs `edgemt train` with the arguments, and gives the one sentence that it must refuse them with."""

    def run(*arguments: str | Path, code: int = 2) -> str:
        state = tmp_path / "state"
        fresh = [] if "--state" in arguments else ["--state", str(state)]
        assert main(["train", str(config), *fresh, *map(str, arguments)]) == code
        said = capsys.readouterr().err
        assert said.startswith("edgemt train: ") and said.count("\n") == 1, said
        assert not state.exists()
        return said

    return run


HEADER = "corpus\tzh\ten\n"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("train", HEADER + "a\t你好\tHello\na\t你好\n", r"train\.tsv, line 3: 2 columns instead of 3"),
        ("train", HEADER + "a\t你好\tHello\tx\n", r"train\.tsv, line 2: 4 columns instead of 3"),
        ("train", HEADER + "a\t你好\tHello\n\na\t \tHello\n", r"train\.tsv, line 4: the column zh is empty"),
        ("dev", HEADER + "a\t你好\t\n", r"dev\.tsv, line 2: the column en is empty"),
        ("dev", HEADER, r"dev\.tsv has a header and no pairs"),
        ("dev", "", r"dev\.tsv, line 1: the header must be corpus, two language codes"),
        ("train", "zh\ten\n你好\tHello\n", r"train\.tsv, line 1: the header must be corpus"),
        (
            "dev",
            "corpus\tzh\tde\na\t你好\tHallo\n",
            r"dev\.tsv, line 1: the languages are zh, de, but .* zh, en",
        ),
        ("train", HEADER + "a\t你\udcff\tHello\n", r"train\.tsv, line 2: not UTF-8"),
        ("dev", None, r"no training data at .*dev\.tsv: prepare it first"),
    ],
)
def test_broken_data(
    data: Path, tmp_path: Path, refused, name: str, content: str | None, sentence: str
) -> None:
    broken = shutil.copytree(data, tmp_path / "data")
    file = broken / f"{name}.tsv"
    if content is None:
        file.unlink()
    else:
        file.write_text(content, encoding="utf-8", errors="surrogateescape")
    assert re.search(sentence, refused("--data", broken))


def test_compressed_data(data: Path, tmp_path: Path, config: Path, refused) -> None:
    packed = shutil.copytree(data, tmp_path / "data")
    text = (packed / "train.tsv").read_bytes()
    (packed / "train.tsv").unlink()
    (packed / "train.tsv.gz").write_bytes(gzip.compress(text)[:-100])
    assert "train.tsv.gz cannot be read" in refused("--data", packed)
    (packed / "train.tsv.gz").write_bytes(gzip.compress(text))
    assert main(["train", str(config), "--data", str(packed), "--state", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--set", "optimizer.rte=1"], r"unknown key optimizer\.rte; the nearest is optimizer\.rate"),
        (["--set", "presicion=fp32"], r"unknown key presicion; the nearest is precision"),
        (["--set", "data.accumulate=two"], r"data\.accumulate: Input should be a valid integer"),
        (["--set", "schedule=3"], r"schedule: Input should be a valid dictionary"),
        (["--set", "seed"], r"--set seed: write section\.key=value"),
        (["--precision", "int8"], r"precision: Input should be 'fp32', 'bf16', 'fp16-o1' or 'fp16-pure'"),
        (["--clip-norm", "0"], r"optimizer\.clip: Input should be greater than 0"),
        (
            ["--set", "evaluate_sentences=0", "--set", "keep.best=1"],
            r"need dev scores: set evaluate_sentences",
        ),
        (
            ["--set", 'data.directions=["zh-de"]'],
            r"data\.directions: zh-de is not in the data, which has zh-en",
        ),
        (
            ["--set", "data.max_length=2"],
            r"no training pairs: every one has a side longer than data\.max_length",
        ),
        (["--init", "nowhere"], r"no such checkpoint: nowhere"),
        (["--preset", "nothing"], r"there is no preset nothing; choose of"),
        (["--export-checkpoint"], r"--export-checkpoint needs --out and a --state folder that holds a run"),
    ],
)
def test_wrong_settings(data: Path, refused, arguments: list[str], sentence: str) -> None:
    code = 1 if "--init" in arguments else 2
    assert re.search(sentence, refused("--data", data, *arguments, code=code))


def test_no_data(refused) -> None:
    assert "no --data: give the folder with train.tsv and dev.tsv" in refused()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(data: Path, refused) -> None:
    assert 'device = "cuda", but torch finds no GPU here: use --device cpu' in refused(
        "--data", data, "--device", "cuda"
    )


def test_no_compiler(data: Path, refused, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", ("nowhere",))
    said = refused("--data", data, "--set", "compile=true")
    assert "compile = true, but torch.compile does not work here" in said
    assert "install a C++ compiler (g++), or leave it out" in said


def test_a_state_of_another_model(
    data: Path, tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", str(config), "--data", str(data), "--state"]
    one, other = tmp_path / "one", tmp_path / "other"
    assert main([*arguments, str(one)]) == 0
    assert main([*arguments, str(other), "--set", "model.ffn=64"]) == 0
    capsys.readouterr()
    assert main([*arguments, str(one), "--set", "model.ffn=64"]) == 2
    assert f"model.ffn = 64 differs from the run in {one}, which has 32" in capsys.readouterr().err
    state = torch.load(other / STATE, weights_only=True)
    state["config"]["model.ffn"] = 32  # as if the settings agreed
    torch.save(state, one / STATE)
    before = {file: file.read_bytes() for file in one.rglob("*") if file.is_file()}
    assert main([*arguments, str(one)]) == 2
    said = capsys.readouterr().err
    assert re.search(r"of another model: \S+ is \[\d+(, \d+)?\] there and \[\d+(, \d+)?\] here", said)
    assert before == {file: file.read_bytes() for file in one.rglob("*") if file.is_file()}
    shutil.rmtree(one / MODEL)
    assert main([*arguments, str(one)]) == 2
    assert f"{one / MODEL} has no config.json" in capsys.readouterr().err


@pytest.mark.parametrize("step", ["state", "checkpoint"])
def test_no_room_on_the_disk(data: Path, tmp_path: Path, config: Path, step: str) -> None:
    """A limit on the size of files, which fails a write in its middle as a full disk does."""
    state, out = tmp_path / "state", tmp_path / "out"
    arguments = ["train", str(config), "--data", str(data), "--state", str(state), "--out", str(out)]
    assert main(arguments) == 0
    before = {file: file.read_bytes() for file in (*state.glob("*.pt"), *out.iterdir())}
    sizes = {
        "state": (state / STATE).stat().st_size,
        "checkpoint": (out / "model.safetensors").stat().st_size,
    }
    limit = sizes[step] // 2
    more = ["--export-checkpoint"] if step == "checkpoint" else ["--set", "schedule.steps=5"]
    result = subprocess.run(
        [sys.executable, "-m", "edgemt.cli", *arguments, *more],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    (said,) = (line for line in result.stderr.splitlines() if line.startswith("edgemt train: "))
    target = state / STATE if step == "state" else out
    needed = re.search(rf"no room to write {target} \(File too large\): it needs ([\d,]+) bytes", said)
    assert result.returncode == 1 and needed and "Traceback" not in result.stderr
    assert 0.8 * sizes[step] < int(needed.group(1).replace(",", "")) < 1.2 * sizes[step]
    assert before == {file: file.read_bytes() for file in (*state.glob("*.pt"), *out.iterdir())}
    assert not list(tmp_path.rglob("*.tmp")) and not (state / PREVIOUS).exists()
    saved = load_state(state)
    assert saved and saved["progress"]["step"] == 3
