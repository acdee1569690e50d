"""`edgemt prepack`: packed weights give the same bits, are used only where they fit, and leave no trace."""

from __future__ import annotations

import dataclasses
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from causal_bundles import write_bundle
from support import one_sentence

from edgemt import prepack_command, prepack_trial
from edgemt.bundle import MANIFEST, PREPACKED, open_bundle, pack, read_manifest, seal
from edgemt.cli import main
from edgemt.drafts import margin
from edgemt.errors import EdgemtError
from edgemt.prepack_trial import answers
from edgemt.runtimes import onnxruntime as runtime
from edgemt.runtimes import ort_prepack, prepacked
from edgemt.translator import load


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "edgemt" / PREPACKED


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 4-bit bundle that `edgemt prepack` has packed."""
    bundle = write_bundle(tmp_path_factory.mktemp("prepack") / "bundle", "qwen2", "int4")
    assert main(["prepack", str(bundle)]) == 0
    return bundle


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoilt."""
    return Path(shutil.copytree(made, tmp_path / "bundle"))


def packed_in(bundle: Path) -> Path:
    (folder,) = (bundle / PREPACKED).iterdir()
    return folder


def said(bundle: Path, *, plain: bool = False) -> tuple[str, bool]:
    """A digest of the model's logits, and whether packed weights were mapped for them."""
    manifest = read_manifest(bundle / MANIFEST)
    finder = (lambda *_: None) if plain else prepacked.find
    program = runtime.load(bundle, manifest, find=finder)
    digest = answers(program, manifest.model.vocab_size)
    mapped = any(PREPACKED in line for line in Path("/proc/self/maps").read_text().splitlines())
    return digest, mapped


def test_it_tells_room_time_and_memory(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(made, bundle, ignore=shutil.ignore_patterns(PREPACKED))
    assert main(["prepack", str(bundle)]) == 0
    room, result, head, plain, packed, _ = capsys.readouterr().out.splitlines()
    assert "MB are needed in" in room and "MB are free" in room
    assert "answers are the same to the last bit" in result and str(packed_in(bundle)) in result
    assert head.split() == ["load", "own", "memory", "mapped", "files"]
    for line, name in ((plain, "as it is"), (packed, "packed")):
        assert line.startswith(name)
        seconds, _, own, _, mapped, _ = line.removeprefix(name).split()
        assert float(seconds) > 0 and float(own) > 10 and float(mapped) > 10


@pytest.mark.parametrize("precision", ["int4", "int8-blocks", "fp32"])
def test_answers_are_the_same_to_the_last_bit(precision: str, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", "hunyuan_v1_dense", precision)
    plain, mapped = said(bundle)
    assert not mapped
    assert main(["prepack", str(bundle)]) == 0
    assert said(bundle) == (plain, True)


def test_every_packed_weight_is_aligned_and_unchanged(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against what onnxruntime wrote, read by the package onnx."""
    align, before, after = ort_prepack.align, tmp_path / "before", tmp_path / "after"
    after.mkdir()

    def kept(model: Path, data: Path) -> None:
        shutil.copytree(model.parent, before)
        align(model, data)

    monkeypatch.setattr(ort_prepack, "align", kept)
    ort_prepack.write(made / "step.onnx", after, "step")
    old, new = (onnx.load(str(folder / "step.onnx"), load_external_data=False) for folder in (before, after))
    packed, moved = 0, 0
    for was, now in zip(old.graph.initializer, new.graph.initializer, strict=True):
        places = zip(places_of(was), places_of(now), strict=True)
        for (start, size), (then, as_large) in places:
            assert then % 64 == 0 and size == as_large
            moved += start != then
            assert bytes_at(before, start, size) == bytes_at(after, then, size)
        packed += any(entry.key.startswith("prepacked") for entry in now.external_data)
        for tensor in (was, now):
            del tensor.external_data[:]
    assert packed > 10 and moved > 10
    assert old == new


def places_of(tensor: onnx.TensorProto) -> list[tuple[int, int]]:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    found = [(int(entries["offset"]), int(entries["length"]))] if entries else []
    for key in sorted(entries):
        if key.startswith("prepacked"):
            for blob in entries[key].split("|")[1:]:
                start, size, _ = blob.split(";")
                found.append((int(start), int(size)))
    return found


def bytes_at(folder: Path, start: int, size: int) -> bytes:
    with (folder / "step.bin").open("rb") as file:
        file.seek(start)
        return file.read(size)


def other_version(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.99.0")


def other_processor(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = bundle.parent / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU part\t: 0xd0b\n")
    monkeypatch.setattr(prepacked, "CPUINFO", cpuinfo)


def other_bundle(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = read_manifest(bundle / MANIFEST)
    seal(bundle, dataclasses.replace(manifest, licence="another"))


def cut(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = packed_in(bundle) / "step.bin"
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size - 1)


def flipped(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = packed_in(bundle) / "step.bin"
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 2)
        byte = opened.read(1)
        opened.seek(-1, 1)
        opened.write(bytes([byte[0] ^ 1]))


def no_graph(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (packed_in(bundle) / "step.onnx").unlink()


def bad_record(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (packed_in(bundle) / prepacked.RECORD).write_text("[]")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (other_version, "made for another"),
        (other_processor, "made for another"),
        (other_bundle, "made for another"),
        (cut, "is damaged"),
        (flipped, "is damaged"),
        (no_graph, "is damaged"),
        (bad_record, None),
    ],
)
def test_what_does_not_fit_is_not_used(
    spoil, told: str | None, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(bundle) == (said(bundle, plain=True)[0], True)
    spoil(bundle, monkeypatch)
    digest, mapped = said(bundle)
    assert not mapped and digest == said(bundle, plain=True)[0]
    capsys.readouterr()
    assert main(["inspect", str(bundle)]) == 0
    line = next((text for text in capsys.readouterr().out.splitlines() if "packed weights" in text), None)
    assert (line is None) if told is None else (line and "not used" in line and told in line)


def test_it_is_made_anew_where_it_does_not_fit(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = packed_in(bundle)
    other_bundle(bundle, monkeypatch)
    assert main(["prepack", str(bundle)]) == 0
    assert packed_in(bundle) != old and said(bundle)[1]
    flipped(bundle, monkeypatch)
    assert main(["prepack", str(bundle)]) == 0
    assert said(bundle)[1]


def test_a_bundle_with_it_is_the_same_bundle(bundle: Path, tmp_path: Path) -> None:
    manifest = open_bundle(bundle).manifest
    assert seal(bundle, manifest) == manifest
    pack(bundle, tmp_path / "one.edgemt")
    with zipfile.ZipFile(tmp_path / "one.edgemt") as archive:
        assert set(archive.namelist()) == {MANIFEST, *manifest.files}


def test_one_file_has_it_in_the_cache(
    bundle: Path, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed, other = tmp_path / "one.edgemt", tmp_path / "other.edgemt"
    pack(bundle, packed)
    assert main(["prepack", "--remove", str(bundle)]) == 0
    assert not (bundle / PREPACKED).exists()
    assert main(["prepack", str(packed)]) == 0
    (folder,) = cache.iterdir()
    capsys.readouterr()
    assert main(["inspect", str(packed)]) == 0
    assert f"MB in {folder}" in capsys.readouterr().out
    assert load(packed).translate("手术。", source_lang="zh", target_lang="en") == load(bundle).translate(
        "手术。", source_lang="zh", target_lang="en"
    )
    other.write_bytes(packed.read_bytes())
    assert main(["prepack", "--remove", str(other)]) == 0
    assert folder.is_dir()
    capsys.readouterr()
    assert main(["prepack", "--remove", str(packed)]) == 0
    assert capsys.readouterr().out == f"{folder} removed\n" and not cache.exists()
    assert main(["prepack", "--remove", str(packed)]) == 0
    assert "nothing is packed" in capsys.readouterr().out


def test_beside_a_bundle_that_cannot_be_written_it_is_in_the_cache(
    bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["prepack", "--remove", str(bundle)]) == 0
    monkeypatch.setattr(os, "access", lambda *_: False)  # these tests may run as root, who can write anywhere
    assert main(["prepack", str(bundle)]) == 0
    assert len(list(cache.iterdir())) == 1 and not (bundle / PREPACKED).exists()
    assert said(bundle) == (said(bundle, plain=True)[0], True)
    assert main(["prepack", "--remove", str(bundle)]) == 0
    assert not cache.exists()


def test_drafts_are_verified_alike(made: Path) -> None:
    manifest = read_manifest(made / MANIFEST)
    programs: list[Any] = [
        runtime.load(made, manifest, find=find) for find in (lambda *_: None, prepacked.find)
    ]
    plain, packed = (margin(program, manifest.model) for program in programs)
    assert plain == packed


def test_where_there_is_no_room_nothing_is_begun(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepack", "--remove", str(bundle)]) == 0
    usage = shutil.disk_usage(bundle)._replace(free=100_000)
    monkeypatch.setattr(prepack_command.shutil, "disk_usage", lambda _: usage)
    assert main(["prepack", str(bundle)]) == 1
    message = capsys.readouterr().err
    assert "MB are needed" in message and "0 MB are free" in message and message.count("\n") == 1
    assert not (bundle / PREPACKED).exists()


@pytest.mark.parametrize("most", [100_000, 1_000])
def test_where_a_write_fails_nothing_is_left(most: int, bundle: Path) -> None:
    """As on a full disk; the bundle's own file of weights is larger than this."""
    assert main(["prepack", "--remove", str(bundle)]) == 0
    done = subprocess.run(
        [sys.executable, "-m", "edgemt.cli", "prepack", str(bundle)],
        capture_output=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)),
    )
    assert "free some room there" in one_sentence(done)
    assert not (bundle / PREPACKED).exists()


def test_other_answers_are_not_kept(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepack", "--remove", str(bundle)]) == 0
    fresh = prepack_trial.fresh

    def wrong(**job):
        answer = fresh(**job)
        return {**answer, "answers": "other"} if job["what"] == "load" and job["folder"] else answer

    monkeypatch.setattr(prepack_trial, "fresh", wrong)
    assert main(["prepack", str(bundle)]) == 1
    assert "answers otherwise with packed weights" in capsys.readouterr().err
    assert not (bundle / PREPACKED).exists()


def test_interrupted_it_leaves_nothing(bundle: Path) -> None:
    assert main(["prepack", "--remove", str(bundle)]) == 0
    process = subprocess.Popen([sys.executable, "-m", "edgemt.cli", "prepack", str(bundle)])
    until = time.monotonic() + 60
    while not list(bundle.glob(f"{PREPACKED}/{prepack_command.PARTIAL}*")):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert not (bundle / PREPACKED).exists()


def test_what_a_killed_process_left_goes(bundle: Path) -> None:
    left = bundle / PREPACKED / f"{prepack_command.PARTIAL}{2**22 + 1}"  # above the highest process id
    (left / "some").mkdir(parents=True)
    assert main(["prepack", "--remove", str(bundle)]) == 0
    assert not (bundle / PREPACKED).exists()


def test_a_bundle_that_gains_nothing_is_refused(
    default_bundle: Path, capsys: pytest.CaptureFixture[str], cache: Path
) -> None:
    assert main(["prepack", str(default_bundle)]) == 2
    message = capsys.readouterr().err
    assert "not a decoder-only model" in message and message.count("\n") == 1
    assert not cache.exists() and not (default_bundle / PREPACKED).exists()


def test_a_form_that_is_not_known_is_told(tmp_path: Path) -> None:
    model, data = tmp_path / "step.onnx", tmp_path / "step.bin"
    model.write_bytes(b"\x3a\xff\xff\xff\xff\x0f")  # a graph that ends before it should
    data.write_bytes(b"")
    with pytest.raises(ValueError, match="ends early"):
        ort_prepack.align(model, data)
    with pytest.raises(EdgemtError, match="the packed weights of"):
        ort_prepack.write(model, tmp_path, "other")


def test_no_threads_are_too_few(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepack", "--threads", "0", str(made)]) == 2
    assert "give 1 or more" in capsys.readouterr().err
    assert np.isfinite(prepack_trial.memory()["anon"])
