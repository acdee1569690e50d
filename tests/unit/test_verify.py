"""The conformance report: of a tiny HunYuan checkpoint and of its bundle, and when all is not well."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from causal_fixtures import clinical_pairs
from causal_models import CASES, SIZES
from test_checkpoint_gguf import write as write_gguf

import edgemt
from edgemt.bundle import MANIFEST
from edgemt.calibration import critical
from edgemt.cli import main
from edgemt.export import parity
from edgemt.export.checkpoints.read import open_checkpoint
from edgemt.export.verify.checkpoint import Subject
from edgemt.text import language_of
from edgemt.training.chat_tokenizer import ASSISTANT, END_OF_TURN, train_chat_tokenizer
from edgemt.verify import endings, expectations
from edgemt.verify.sections import without_folders
from edgemt.verify.texts import Pair, clinic

HOSTS = [name for name in (socket.gethostname(), socket.getfqdn()) if len(name) > 3]
HY_MT = {  # of the 1.8B's config.json
    "head_dim": 128,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_attention_heads": 16,
    "num_hidden_layers": 32,
    "num_key_value_heads": 4,
    "rope_scaling": {"alpha": 1000.0, "factor": 1.0, "type": "dynamic"},
    "rope_theta": 10000.0,
    "vocab_size": 120818,
}
WITHOUT_WORKSHOP = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "onnx", "safetensors", "sacrebleu", "tqdm"):
            raise ModuleNotFoundError(f"{name} is not on the device", name=name)
        if name.startswith(("edgemt.export", "edgemt.calibration", "edgemt.training")):
            raise ModuleNotFoundError(f"{name} is not on the device", name=name)

sys.meta_path.insert(0, Absent())
from edgemt.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    directory = tmp_path_factory.mktemp("models") / "tiny-hunyuan"
    zh, en = clinical_pairs(40).texts
    train_chat_tokenizer([*zh, *en], directory, 700)
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    sizes = SIZES | CASES["hunyuan_v1_dense"] | {"vocab_size": len(tokenizer), "num_hidden_layers": 2}
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    sizes |= {name: getattr(tokenizer, name) for name in names}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("hunyuan_v1_dense", **sizes)).save_pretrained(
        directory
    )
    return directory


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "tiny"
    assert main(["export", str(checkpoint), "--fp32", "-o", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def report(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("report") / "report.json"
    arguments = ["verify-model", str(checkpoint), "-o", str(out), "--quick", "--int4", "--threads", "1"]
    code = main(arguments)
    assert [path.name for path in out.parent.iterdir()] == ["report.json"]  # and no export is left
    text = out.read_text(encoding="utf-8")
    assert code == (0 if json.loads(text)["passed"] else 1)
    private = [str(Path.home()), str(checkpoint.parent), str(out.parent), *HOSTS]
    assert not [name for name in private if name in text]
    return json.loads(text)


def section(report: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [section for section in report["sections"] if section["name"] == name]
    return found


def statuses(report: dict[str, Any]) -> dict[str, str]:
    return {section["name"]: section["status"] for section in report["sections"]}


def test_every_section_of_a_checkpoint_is_run(report: dict[str, Any], checkpoint: Path) -> None:
    # What random weights say has no quality: whether 4 bits make it worse is chance.
    by_name = statuses(report)
    assert report["passed"] == (by_name.pop("gate") == "pass") and set(by_name.values()) == {"pass"}
    identity = section(report, "identity")
    assert identity["facts"]["architecture"] == "HunYuanDenseV1ForCausalLM"
    assert "no expectations known" in identity["facts"]["compared with"]
    listed = {name: size for name, size, _ in identity["tables"][0]["rows"]}
    assert listed == {path.name: path.stat().st_size for path in checkpoint.iterdir()}
    assert section(report, "parity")["facts"]["equal"] >= 100
    tokenizer = section(report, "tokenizer")
    assert END_OF_TURN in tokenizer["facts"]["after a prompt, without generation prompt"]
    assert all(row[-1] == "equal" for table in tokenizer["tables"] for row in table["rows"])
    assert {row[0].split(",")[0] for row in section(report, "answers")["tables"][0]["rows"]} == {
        "plain", "terminology", "context", "formatted",
    }  # fmt: skip
    scores = section(report, "gate")["tables"][0]["rows"]
    assert [row[:2] for row in scores] == [["int4", "zh-en"], ["int4", "en-zh"]]
    speed = section(report, "speed")["tables"][0]["rows"]
    assert [row[:2] for row in speed] == [["fp32", 1], ["int4", 1]]
    assert all(value > 0 for row in speed for value in row[2:])
    assert section(report, "environment")["facts"]["version of torch"][0].isdigit()


def test_the_endings_are_scored_as_transformers_scores_them(checkpoint: Path, bundle: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    translator, pair = edgemt.load(bundle), clinic([["zh", "en"]])[0]
    ending = translator.bundle.manifest.chat["after"]
    mean, first = endings.scored(translator, pair, ending)
    row = endings.source(translator, pair, ending)
    answer = [*translator.tokenizer.encode(pair.target), translator.bundle.manifest.model.eos_id]
    with torch.inference_mode():
        model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
        logp = model(torch.tensor([[*row, *answer]])).logits[0, len(row) - 1 : -1].log_softmax(-1)
    theirs = logp[range(len(answer)), answer]
    assert mean == pytest.approx(float(theirs.mean()), abs=1e-4)
    assert first == pytest.approx(float(theirs[0]), abs=1e-4)


def test_the_ending_is_recommended_by_the_figures(report: dict[str, Any]) -> None:
    found = section(report, "ending")
    (scores, answers) = found["tables"]
    assert [row[2] for row in scores["rows"]] == [6, 6] and len(answers["rows"]) == 12
    sure, near = np.tile([-1.0, -2.0], (9, 1)), np.array([[-1.0, -1.1], [-1.1, -1.0], [-1.0, -1.05]])
    sure[0] = -3.0, -3.5
    assert endings.recommended(["a", "b"], sure)[0] == "a"
    assert endings.recommended(["b", "a"], sure[:, ::-1])[0] == "a"
    choice, why = endings.recommended(["a", "b"], near)
    assert choice == "none" and "keep a" in why


def test_a_device_without_the_workshop_reports_on_a_bundle(bundle: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        WITHOUT_WORKSHOP,
        "verify-model",
        str(bundle),
        "--quick",
        "--threads",
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "passed; report: verify-tiny.html" in done.stdout
    page = (tmp_path / "verify-tiny.html").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["verify-tiny.html"]
    assert page.count("<h2") == 8 and "<script" not in page and "://" not in page
    assert "医生，我从昨天下午开始头疼" in page and "a bundle has no transformers" in page
    assert not [name for name in (str(Path.home()), str(bundle.parent), *HOSTS) if name in page]


def test_an_encoder_decoder_bundle_gets_the_sections_that_apply(toy_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    assert main(["verify-model", str(toy_bundle), "-o", str(out), "--quick", "--threads", "1"]) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    assert [name for name, status in statuses(found).items() if status == "not run"] == [
        "parity",
        "ending",
        "gate",
    ]
    assert section(found, "ending")["reason"] == "an encoder-decoder model has no prompt"
    assert section(found, "speed")["tables"][0]["rows"][0][4] > 0


def test_hy_mts_own_numbers_are_as_expected() -> None:
    architecture = {"architecture": "HunYuanDenseV1ForCausalLM"}
    found = {**architecture, **HY_MT, "rope_base": expectations.rope_base(HY_MT, 128)}
    expected = expectations.expected_of(found)
    assert expected and expected.name == "HY-MT1.5-1.8B"
    assert all(check.holds for check in expectations.compared(found, expected.values))
    in_gguf = {"rope_theta": 11158840.0}  # llama.cpp writes the base that is used
    assert expectations.rope_base(in_gguf, 128) == pytest.approx(found["rope_base"], rel=1e-6)
    found["rope_base"] = expectations.rope_base({**HY_MT, "rope_theta": 500000.0}, 128)
    (wrong,) = [check for check in expectations.compared(found, expected.values) if not check.holds]
    assert wrong.what == "rope_base is different from what was expected" and wrong.required
    assert expectations.expected_of({**architecture, "vocab_size": 151936}) is None


def known(report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **values: Any) -> None:
    """Makes the tiny model one of which something is expected: its own numbers, and `values`."""
    facts = section(report, "identity")["facts"]
    last = facts["vocab_size"] - 1
    own = {"num_key_value_heads": 2, "rope_base": facts["rope_base"], "before": facts["before"]}
    entry = {
        "source": "a test",
        "when": {"architecture": facts["architecture"], "vocab_size": facts["vocab_size"]},
        "values": {**own, **values},
        "tokens": {END_OF_TURN: last},
        "endings": {ASSISTANT: facts["after"], END_OF_TURN: [last]},
        "licence": "none",
    }
    file = tmp_path / "expected"
    file.write_text(json.dumps({"Tiny": entry}), encoding="utf-8")
    monkeypatch.setattr(expectations, "FILE", file)


def test_a_known_model_must_be_as_expected_and_follow_the_templates(
    report: dict[str, Any], bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(report, tmp_path, monkeypatch, num_key_value_heads=4)
    out = tmp_path / "report.json"
    assert main(["verify-model", str(bundle), "-o", str(out), "--quick", "--threads", "1"]) == 1
    found = json.loads(out.read_text(encoding="utf-8"))
    failed = {
        name: section(found, name)["reason"] for name, status in statuses(found).items() if status == "fail"
    }
    assert failed.keys() == {"identity", "answers"}  # random weights do not translate
    assert failed["identity"] == "num_key_value_heads is different from what was expected"
    assert "answers come to an end" in failed["answers"]
    rows = section(found, "ending")["tables"][0]["rows"]
    assert [row[0] for row in rows] == [ASSISTANT, END_OF_TURN]


def test_a_checkpoint_that_differs_fails_and_the_rest_says_why_it_was_not_run(
    report: dict[str, Any], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(report, tmp_path, monkeypatch)
    altered, out = tmp_path / "altered", tmp_path / "report.json"
    shutil.copytree(checkpoint, altered)
    config = json.loads((altered / "config.json").read_text(encoding="utf-8"))
    (altered / "config.json").write_text(json.dumps({**config, "rope_theta": 500000.0}), encoding="utf-8")
    monkeypatch.setattr(parity, "TOLERANCE", 0.0)  # no two programs add up in the same order
    assert main(["verify-model", str(altered), "-o", str(out), "--quick", "--threads", "1"]) == 1
    found = json.loads(out.read_text(encoding="utf-8"))
    assert section(found, "identity")["reason"] == "rope_base is different from what was expected"
    assert "do not compute what torch computes" in section(found, "parity")["reason"]
    assert section(found, "tokenizer")["status"] == "pass"
    for name in ("ending", "answers", "speed"):
        assert section(found, name)["status"] == "not run"
        assert "the section on parity gives" in section(found, name)["reason"]
    assert {path.name for path in tmp_path.iterdir()} == {"altered", "expected", "report.json"}


def test_a_gguf_file_is_told_with_its_quantisation(checkpoint: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", "qwen2")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(checkpoint / name, tmp_path / name)
    made = Subject(open_checkpoint(tmp_path / "model.gguf"), tmp_path, 1, quick=True).identity()
    assert made.facts["form"] == "GGUF" and made.facts["stored as, parameters"]["Q8_0"] > 0
    assert [row[0] for row in made.tables[0].rows] == [
        "model.gguf",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def one_sentence(arguments: list[str | Path], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["verify-model", *map(str, arguments)])
    message = capsys.readouterr().err
    assert message.startswith("edgemt verify-model: ") and message.count("\n") == 1, message
    return code, message


def test_what_is_no_model_is_said_in_one_sentence(
    checkpoint: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, empty = tmp_path / "report.json", tmp_path / "empty"
    empty.mkdir()
    assert one_sentence([tmp_path / "nowhere", "-o", out], capsys)[0] == 2
    code, message = one_sentence([empty, "-o", out], capsys)
    assert code == 2 and "neither a checkpoint" in message
    truncated = tmp_path / "model.gguf"
    truncated.write_bytes(b"GGUF\3\0\0\0")
    code, message = one_sentence([truncated, "-o", out], capsys)
    assert code == 1 and "truncated or damaged" in message
    bare = tmp_path / "bare"
    shutil.copytree(checkpoint, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    code, message = one_sentence([bare, "-o", out], capsys)
    assert code == 2 and "no tokenizer.json" in message
    damaged = tmp_path / "damaged"
    shutil.copytree(bundle, damaged)
    weights = max((file for file in damaged.iterdir() if file.name != MANIFEST), key=os.path.getsize)
    with weights.open("r+b") as file:
        file.seek(weights.stat().st_size // 2)
        file.write(b"\xff\xff\xff\xff")
    code, message = one_sentence([damaged, "-o", out], capsys)
    assert code == 1 and weights.name in message and "damaged" in message
    assert not out.exists()


def test_options_that_cannot_be(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.json"
    assert one_sentence([bundle, "-o", tmp_path / "report.pdf"], capsys)[0] == 2
    assert one_sentence([bundle, "-o", tmp_path / "no" / "report.json"], capsys)[0] == 2
    assert one_sentence([bundle, "-o", out, "--threads", "0"], capsys)[0] == 2
    code, message = one_sentence([bundle, "-o", out, "--int8"], capsys)
    assert code == 2 and "--int8 and --int4" in message
    assert not list(tmp_path.iterdir())


def test_ctrl_c_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgemt.cli", "verify-model", str(checkpoint), "-o", "r.json"]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert child.stderr
    for line in child.stderr:
        if "Parity" in line:
            break
    assert list(tmp_path.iterdir())  # the workspace
    child.send_signal(signal.SIGINT)
    rest = child.communicate(timeout=60)[1]
    assert child.returncode == 130 and "Traceback" not in rest and "interrupted" in rest
    assert not list(tmp_path.iterdir())


def test_the_clinics_sentences() -> None:
    pairs = clinic([["zh", "en"], ["en", "zh"]])
    texts = [text for pair in pairs for text in pair[2:]]
    assert len(pairs) == 80 and len(set(texts)) == 160
    for pair in pairs:
        assert language_of(pair.source) == pair.source_lang and language_of(pair.target) == pair.target_lang
    assert clinic([["zh", "en"]], 2) == pairs[:2] and clinic([["de", "en"]]) == []
    assert not [text for text in texts if "无菌" in text or "sterile" in text.lower()]
    assert not new_errors(pairs)


def new_errors(pairs: list[Pair]) -> list[str]:
    """Numbers, units, negations and sides of a source that its reference has not."""
    return [
        f"{pair.source}: {error.fact}"
        for pair in pairs
        for source in [critical.facts(pair.source, pair.source_lang)]
        for error in critical.new_errors(source, source, critical.facts(pair.target, pair.target_lang))
    ]


def test_folders_are_no_part_of_a_report() -> None:
    assert without_folders("the weights in /srv/models/mine/m.gguf are bad, 160/95") == (
        "the weights in m.gguf are bad, 160/95"
    )
    assert without_folders(f"{Path.home()}/models/x.bin") == "x.bin"
