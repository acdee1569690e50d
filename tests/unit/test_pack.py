"""`edgemt pack`: what is in a kit, that it repeats, and what it says when there is nothing to pack."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from kits import PYTHON, installer, pack, unpack
from support import Cli, one_sentence

from edgemt.pack.own import own_wheel


@pytest.fixture(scope="module")
def tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("tar") / "usb.tar")


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory, tar: Path) -> Path:
    return unpack(tar, tmp_path_factory.mktemp("kit"))


def test_every_file_is_in_the_manifest_with_its_digest(kit: Path) -> None:
    manifest = json.loads((kit / "manifest.json").read_text())
    there = {p.relative_to(kit).as_posix() for p in kit.rglob("*") if p.is_file()}
    assert there == {*manifest["files"], "manifest.json", "SHA256SUMS"}
    for name, facts in manifest["files"].items():
        data = (kit / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == facts["sha256"] and len(data) == facts["bytes"]
    assert set(manifest["wheels"]) == {PYTHON}
    done = subprocess.run(["sha256sum", "-c", "--strict", "--quiet", "SHA256SUMS"], cwd=kit)
    assert done.returncode == 0


def test_the_packages_are_those_of_the_device_and_no_others(kit: Path) -> None:
    names = {path.name.split("-")[0] for path in (kit / "wheels").iterdir()}
    assert {"edgemt", "numpy", "onnxruntime", "sentencepiece", "sentencex"} <= names
    assert not {"torch", "transformers", "onnx", "jinja2", "matplotlib"} & names


def test_every_package_has_its_licence(kit: Path) -> None:
    rows = [line.split(" | ") for line in (kit / "licences" / "SUMMARY.txt").read_text().splitlines()[1:]]
    named = {row[0] for row in rows}
    for path in (kit / "wheels").iterdir():
        assert path.name.split("-")[0] in named
    assert all(row[2] and row[2] != "not stated" for row in rows), rows
    assert "bundle medical-zh-en" in named
    assert list((kit / "licences").glob("numpy-*/LICENSE*")) and list(
        (kit / "licences").glob("edgemt-*/LICENSE")
    )


def test_the_same_kit_has_the_same_bytes(kit: Path, tar: Path, tmp_path: Path) -> None:
    again = pack(tmp_path / "again.tar", "--wheels", kit / "wheels")
    assert again.read_bytes() == tar.read_bytes()


def test_no_blank_is_left_in_the_texts(kit: Path) -> None:
    for path in [kit / "README.txt", kit / "install.sh", *(kit / "systemd").iterdir()]:
        text = path.read_text()
        words = {word for word in text.replace("@.service", "").split() if word.startswith("@")}
        assert words <= {"@privileged"} and "@PREFIX" not in text and "@PYTHON" not in text, path


def test_the_units_are_what_systemd_takes(kit: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    for path in (kit / "systemd").iterdir():
        text = path.read_text().replace("/opt/edgemt/current/bin/edgemt", "/bin/cat")
        (tmp_path / path.name).write_text(text)
    units = [str(tmp_path / name) for name in ("edgemt.socket", "edgemt@.service")]
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True)
    assert done.returncode == 0 and str(tmp_path) not in done.stderr, done.stderr


def test_another_python_is_told_which_kit_it_needs(kit: Path, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "python3").write_text("#!/bin/sh\necho 3.9\n")
    (programs / "python3").chmod(0o755)
    for tool in ("sh", "sha256sum", "sed", "head", "dirname"):
        (programs / tool).symlink_to(str(shutil.which(tool)))
    done = installer(kit, "--prefix", tmp_path / "prefix", PATH=str(programs))
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "python3 here is 3.9" in done.stderr and "--python 3.9" in done.stderr
    assert not (tmp_path / "prefix").exists()


# The wheel of edgemt itself


def test_an_installation_gives_the_wheel_that_it_came_from(tmp_path: Path) -> None:
    (tmp_path / "built").mkdir()
    built = own_wheel(tmp_path / "built")
    python = installed(built, tmp_path / "venv")
    again = reassembled(python, tmp_path / "again")
    assert again.returncode == 0, again.stderr
    with zipfile.ZipFile(built) as a, zipfile.ZipFile(next((tmp_path / "again").iterdir())) as b:
        assert sorted(a.namelist()) == sorted(b.namelist())
        assert all(a.read(name) == b.read(name) for name in a.namelist() if not name.endswith("/RECORD"))
        record = {line.split(",")[0] for line in b.read("edgemt-0.1.0.dist-info/RECORD").decode().split()}
        assert record == set(b.namelist())


def test_a_changed_installation_gives_no_wheel(tmp_path: Path) -> None:
    (tmp_path / "built").mkdir()
    python = installed(own_wheel(tmp_path / "built"), tmp_path / "venv")
    victim = next((tmp_path / "venv").rglob("edgemt/search.py"))
    victim.write_text(victim.read_text() + "\n")
    done = reassembled(python, tmp_path / "again")
    assert "search.py of the installed edgemt was changed" in done.stderr


def installed(wheel: Path, place: Path) -> Path:
    """A virtual environment with the wheel's files in it and the packages of this one."""
    venv.create(place, with_pip=False, symlinks=True)
    site = next((place / "lib").glob("python*")) / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (site / "others.pth").write_text(str(Path(pytest.__file__).parents[1]) + "\n")
    return place / "bin" / "python"


def reassembled(python: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    folder.mkdir()
    code = (
        f"from pathlib import Path; from edgemt.pack.own import own_wheel; own_wheel(Path({str(folder)!r}))"
    )
    return subprocess.run([python, "-P", "-c", code], capture_output=True, text=True)


# What cannot be packed


def test_no_packages_to_be_had(edgemt: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = edgemt("pack", "--device", "pi5", "-o", tmp_path / "usb.tar", "--wheels", tmp_path / "empty")
    message = one_sentence(result)
    assert result.returncode == 1 and "Raspberry Pi 5" in message and "Python 3.11" in message
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_no_index(edgemt: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    result = edgemt("pack", "--device", "pi5", "-o", tmp_path / "usb.tar")
    assert "no packages for a Raspberry Pi 5" in one_sentence(result)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--device", "pi0", "-o", "x.tar"], "packs for pi5, pi4"),
        (["--device", "pi5", "-o", "no/such/folder/x.tar"], "does not exist"),
        (["--device", "pi5", "-o", "."], "is a folder"),
        (["--device", "pi5", "-o", "x.tar", "--python", "3.9"], "3.11 or newer"),
        (["--device", "pi5", "-o", "x.tar", "--wheels", "none"], "not a folder"),
        (["--device", "pi5", "-o", "x.tar", "-b", "none"], "no bundle"),
    ],
)
def test_a_wrong_request_is_one_sentence(
    edgemt: Cli, tmp_path: Path, arguments: list[str], says: str
) -> None:
    result = edgemt("pack", *arguments, cwd=tmp_path)
    assert says in one_sentence(result) and result.returncode == 2
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_bundle_is_not_packed(edgemt: Cli, toy_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(toy_bundle, tmp_path / "bundle")
    victim = next((tmp_path / "bundle").glob("*.onnx"))
    victim.write_bytes(victim.read_bytes()[:-1])
    result = edgemt("pack", "--device", "pi5", "-o", tmp_path / "usb.tar", "-b", tmp_path / "bundle")
    assert result.returncode == 1 and victim.name in one_sentence(result)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_full_disk_leaves_nothing(toy_bundle: Path, tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys\nfrom pathlib import Path\nfrom edgemt.errors import EdgemtError\n"
        "from edgemt.pack.archive import write_tar\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: write_tar(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "except EdgemtError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, toy_bundle, tmp_path / "usb.tar"],
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert "could not be written" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []
