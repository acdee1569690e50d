"""`edgemt export` from end to end on tiny checkpoints: what it writes, and what it leaves when it fails."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import marian
import pytest

from edgemt.bundle import open_bundle
from edgemt.cli import main
from edgemt.export.choose import Variant, choose
from edgemt.export.clock import Latency
from edgemt.translator import load

LENIENT = ["--max-bleu-drop", "200", "--max-new-critical", "1000"]  # random weights translate nothing


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return marian.student(tmp_path_factory.mktemp("export") / "checkpoint")


def export(*arguments: str | Path, preexec: object = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-m", "edgemt.cli", "export", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, preexec_fn=preexec)  # type: ignore[arg-type]


def only_sentence(result: subprocess.CompletedProcess[str]) -> str:
    """The error, which is the last line of stderr."""
    assert result.returncode in (1, 2) and "Traceback" not in result.stderr, result.stderr
    line = result.stderr.strip().split("\n")[-1]
    assert line.startswith("edgemt export: ")
    return line


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The error of a request that is refused, without the cost of a process."""
    assert main(["export", *map(str, arguments)]) == 2
    return capsys.readouterr().err.strip().split("\n")[-1]


def test_int8_export_makes_a_bundle_that_translates(checkpoint: Path, tmp_path: Path) -> None:
    result = export(checkpoint, "--int8", *LENIENT, "-o", tmp_path / "bundle")
    assert result.returncode == 0, result.stderr
    assert "parity with torch: largest error" in result.stderr
    assert os.listdir(tmp_path) == ["bundle"]
    bundle = open_bundle(tmp_path / "bundle")
    manifest = bundle.manifest
    assert manifest.precision in ("int8-static", "int8-dynamic")
    assert manifest.languages == [["zh", "en"], ["en", "zh"]]
    assert manifest.provenance["checkpoint"]["sha256"] and manifest.provenance["tools"]["onnxruntime"]
    assert manifest.provenance["calibration"]["sentences"] == 48
    assert manifest.gate["passed"] and manifest.gate["parity"]["passed"]
    assert set(manifest.gate["variants"]) == {"fp32", "int8-static", "int8-dynamic"}
    assert {layer["precision"] for layer in manifest.layers} == {"int8", "float32"}  # positions stay FP32
    report = json.loads((tmp_path / "bundle" / "report.json").read_text())
    assert report["chosen"] == manifest.precision
    assert "checkpoint --int8" in report["command"] and str(tmp_path) not in report["command"]
    assert report["variants"]["int8-static"]["latency"]["ratio"] > 0
    assert (tmp_path / "bundle" / "report.html").stat().st_size > 1000
    assert isinstance(load(tmp_path / "bundle").translate("你好吗？"), str)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_float_exports_need_no_sentences(tmp_path: Path, precision: str) -> None:
    checkpoint = marian.opus(tmp_path / "checkpoint")
    for name in ("calibration.tsv", "heldout.tsv"):
        (checkpoint / name).unlink()
    generation = json.loads((checkpoint / "generation_config.json").read_text())
    generation |= {"num_beams": 4, "max_source_tokens": 40}
    (checkpoint / "generation_config.json").write_text(json.dumps(generation))
    result = export(checkpoint, f"--{precision}", "-o", tmp_path / "one.edgemt")
    assert result.returncode == 0, result.stderr
    manifest = open_bundle(tmp_path / "one.edgemt").manifest
    assert manifest.precision == precision and manifest.name == "one"
    assert manifest.generation["beam"] == 4 and manifest.generation["max_source_tokens"] == 40
    assert isinstance(load(tmp_path / "one.edgemt").translate("你好吗？"), str)


def test_failed_gate_names_the_layers_and_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    result = export(checkpoint, "--max-bleu-drop", "-100", "-o", tmp_path / "bundle")
    message = only_sentence(result)
    assert "int8-static" in message and "int8-dynamic" in message and ".layers." in message
    assert os.listdir(tmp_path) == []


def test_interrupted_export_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgemt.cli", "export", checkpoint, "-o", tmp_path / "bundle", *LENIENT]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "comparing with torch" in line:
            assert os.listdir(tmp_path)  # the workspace
            process.send_signal(signal.SIGINT)
            break
    rest = process.stderr.read()
    assert process.wait(60) == 130
    assert "interrupted" in rest and "Traceback" not in rest
    assert os.listdir(tmp_path) == []


def no_large_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))


def test_output_that_cannot_be_written(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for output, part in (
        (tmp_path / "absent" / "bundle", "there is no folder"),
        (checkpoint, "exists and is not a bundle"),
        (checkpoint / "config.json", "exists and is not a bundle"),
    ):
        assert part in refused(capsys, checkpoint, "--fp32", "--force", "-o", output)
    assert "cannot write /proc/b" in only_sentence(export(checkpoint, "--fp32", "-o", "/proc/b"))
    full = export(checkpoint, "--fp32", "-o", tmp_path / "bundle", preexec=no_large_files)
    assert "cannot write" in only_sentence(full)
    assert os.listdir(tmp_path) == []


def test_existing_bundle_is_replaced_only_when_asked(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "bundle"
    bundles = marian.bundle(checkpoint, output)
    before = open_bundle(bundles).manifest.digest
    assert "--force" in refused(capsys, checkpoint, "--fp32", "-o", output)
    assert open_bundle(output).manifest.digest == before
    assert main(["export", *map(str, [checkpoint, "--fp32", "--force", "--name", "new", "-o", output])]) == 0
    assert open_bundle(output).manifest.name == "new"
    assert os.listdir(tmp_path) == ["bundle"]


def test_sentences_of_another_form_are_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare, output = marian.student(tmp_path / "bare"), tmp_path / "bundle"
    (bare / "heldout.tsv").unlink()
    assert "--heldout FILE" in refused(capsys, bare, "-o", output)
    assert "no such file" in refused(capsys, bare, "--heldout", "nowhere", "-o", output)
    table = tmp_path / "table.tsv"
    for content, part in (
        (b"zh\ten\n", "has no column source_lang, target_lang"),
        (b"source_lang\ttarget_lang\tsource\ttarget\nzh\ten\t\xff\xfe\tx\n", "is not UTF-8"),
        (b"source_lang\ttarget_lang\tsource\ttarget\nde\tfr\ta\tb\n", "no sentence in a direction"),
    ):
        table.write_bytes(content)
        message = refused(capsys, checkpoint, "--calibration", table, "-o", output)
        assert part in message and str(table) in message
    assert "below 1" in refused(capsys, checkpoint, "--threads", "0", "-o", output)


def variant(
    name: str, ratio: float, spread: float = 0.02, size: int = 100, agreement: float = 0.9
) -> Variant:
    latency = Latency(1.0, 1.0, 1.0, ratio, ratio - spread, ratio + spread)
    return Variant(name, size, {"passed": True, "directions": {"a-b": {"tokens_equal": agreement}}}, latency)


def test_choice() -> None:
    static, dynamic = variant("static", 0.40, agreement=0.95), variant("dynamic", 0.50)
    assert choose({"static": static, "dynamic": dynamic})[0] == "static"
    assert choose({"dynamic": dynamic})[0] == "dynamic"
    near = variant("dynamic", 0.39)
    name, why = choose({"static": static, "dynamic": near})
    assert name == "static" and "closer to FP32" in why
    small = variant("dynamic", 0.41, size=80)
    name, why = choose({"static": static, "dynamic": small})
    assert name == "dynamic" and "smaller" in why
