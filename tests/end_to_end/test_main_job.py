"""The main job as a user runs it: the shipped checkpoint to INT8; then translate, inspect, bench with it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import edgemt as package

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "examples" / "medical-zh-en" / "checkpoint"
ACCEPTANCE = "手术应在无菌环境下进行。"
GLOSSARY = ["--glossary", "手术=surgery", "--glossary", "无菌=sterile"]


def edgemt(*arguments: str | Path, python: str | Path = sys.executable) -> str:
    done = subprocess.run(
        [str(python), "-m", "edgemt.cli", *map(str, arguments)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def some_lines(source: Path, target: Path, count: int) -> Path:
    """The header and `count` rows spread over the file (both directions are in it)."""
    header, *rows = source.read_text(encoding="utf-8").splitlines()
    chosen = rows[:: max(1, len(rows) // count)][:count]
    target.write_text("\n".join([header, *chosen]) + "\n", encoding="utf-8")
    return target


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("main-job")
    # Few sentences: this is about the path, not about quality; so the gate may be wide.
    edgemt(
        *("export", CHECKPOINT, "--int8", "--scheme", "static", "-o", work / "bundle"),
        *("--calibration", some_lines(CHECKPOINT / "calibration.tsv", work / "calibration.tsv", 60)),
        *("--heldout", some_lines(CHECKPOINT / "heldout.tsv", work / "heldout.tsv", 60)),
        *("--max-bleu-drop", "15", "--max-new-critical", "60"),
    )
    return work / "bundle"


def test_the_exported_bundle_translates(bundle: Path) -> None:
    answer = edgemt("translate", "-b", bundle, *GLOSSARY, ACCEPTANCE).strip()
    assert "surgery" in answer.lower() and "sterile" in answer.lower()
    assert answer[0].isupper() and answer.endswith(".")


def test_the_acceptance_example_with_the_default_bundle() -> None:
    """Well-formed: a sentence that says so, in any of the usual words."""
    wanted = (
        r"(The )?[Ss]urgery (should|must|needs to|has to|is to) be (done|performed|carried out|conducted) "
        r"(in|under) (a |the )?sterile (environments?|conditions?|settings?|surroundings)\."
    )
    answer = package.load().translate(ACCEPTANCE, glossary={"手术": "surgery", "无菌": "sterile"})
    assert re.fullmatch(wanted, answer), answer
    assert edgemt("translate", *GLOSSARY, ACCEPTANCE).strip() == answer


def test_the_report_holds_what_was_measured(bundle: Path) -> None:
    report = json.loads((bundle / "report.json").read_text(encoding="utf-8"))
    assert report["parity"]["max_abs_error"] <= report["parity"]["tolerance"]
    assert report["variants"]["int8-static"]["bytes"] < 0.3 * report["variants"]["fp32"]["bytes"]
    for cache in ("key", "value"):  # past and new together: real decoding was watched
        assert f"decoder.layers.0.self_attn.{cache}" in report["activations"]
    assert "<html" in (bundle / "report.html").read_text(encoding="utf-8")


def test_inspect_names_the_precision_of_each_layer(bundle: Path) -> None:
    text = edgemt("inspect", bundle, "--layers")
    assert "int8-static" in text and "encoder.layers.0" in text


def test_bench_writes_its_reports(bundle: Path, tmp_path: Path) -> None:
    edgemt(
        *("bench", "-b", bundle, "--budget-ms", "60000", "--rounds", "1"),
        *("--json", tmp_path / "latency.json", "--report", tmp_path / "latency.html"),
    )
    assert json.loads((tmp_path / "latency.json").read_text(encoding="utf-8"))
    assert "<svg" in (tmp_path / "latency.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_clean_install_has_no_torch_and_translates(tmp_path: Path) -> None:
    """pip install . in a new environment, as the README says; then the default bundle, elsewhere."""
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(source)], check=True)
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([str(python), "-m", "pip", "install", "-q", str(source)], check=True)
    installed = subprocess.run(
        [str(python), "-m", "pip", "list"], capture_output=True, text=True, check=True
    ).stdout
    names = {line.split()[0].lower() for line in installed.splitlines()[2:]}
    assert not names & {"torch", "transformers", "optimum", "onnx"}
    done = subprocess.run(
        [str(tmp_path / "venv" / "bin" / "edgemt"), "translate", "我对青霉素过敏。"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0 and "penicillin" in done.stdout.lower(), done.stderr
