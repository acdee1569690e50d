"""The kit for a Raspberry Pi 5, installed and run on an emulated Cortex-A76.

Under plain user-mode emulation a process starts no other: install.py, which is one process, runs there as it
is; install.sh, which checks digests and finds a Python, is tried on this machine by tests/unit/test_pack*.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import emulate
import pytest
from kits import pack, reseal, tree, unpack

from edgemt.errors import EdgemtError

SENTENCES = ["我对青霉素过敏。", "手术应在无菌环境下进行。", "I have had a fever since Monday."]
AARCH64 = 0xB7  # e_machine of ELF


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        emulate.qemu(), emulate.root()
    except EdgemtError as error:
        if os.environ.get("EDGEMT_EMULATION") == "required":
            raise
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("kit")
    return unpack(pack(folder / "usb.tar", device="pi5"), folder / "pi5")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, kit: Path) -> Path:
    prefix = tmp_path_factory.mktemp("prefix") / "edgemt"
    done = install(kit, prefix)
    assert done.returncode == 0, done.stderr
    return prefix


def emulated(
    python: Path, *arguments: str | Path, cpu: str = emulate.CPU, root: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run an aarch64 Python on the emulated CPU, with nothing of this machine's Python in its way."""
    command = [emulate.qemu(), "-cpu", cpu, "-L", root or emulate.root(), python, "-I", *arguments]
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        env={"LANG": "C.UTF-8", "PATH": "/usr/bin:/bin", "HOME": "/nonexistent"},
        timeout=600,
    )


def install(kit: Path, prefix: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    python = emulate.root() / emulate.PYTHON
    return emulated(python, kit / "install.py", "--prefix", prefix, *arguments)


def edgemt(prefix: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """What `PREFIX/current/bin/edgemt` runs."""
    return emulated(prefix / "current" / "bin" / "python", "-m", "edgemt.cli", *arguments)


def test_every_library_in_the_kit_is_for_aarch64_and_its_python(kit: Path) -> None:
    manifest = json.loads((kit / "manifest.json").read_text())
    assert list(manifest["wheels"]) == ["3.11", "3.13"] and manifest["machine"] == "aarch64"
    for python, wheels in manifest["wheels"].items():
        tag = "cp" + python.replace(".", "")
        libraries = 0
        for name in wheels:
            assert re.search(rf"-({tag}-{tag}|cp3\d+-abi3)-manylinux\S+aarch64|-none-any", name), name
            with zipfile.ZipFile(kit / name) as wheel:
                for entry in wheel.namelist():
                    head = wheel.open(entry).read(20) if ".so" in entry else b""
                    if head.startswith(b"\x7fELF"):
                        libraries += 1
                        assert int.from_bytes(head[18:20], "little") == AARCH64, entry
        assert libraries > 5


def test_the_installed_kit_translates_as_this_machine_does(installed: Path, default_bundle: Path) -> None:
    for sentence in SENTENCES:
        theirs = edgemt(installed, "translate", sentence)
        assert theirs.returncode == 0, theirs.stderr
        command = [sys.executable, "-P", "-m", "edgemt.cli", "translate", sentence]
        ours = subprocess.run(command, capture_output=True, text=True, check=True)
        assert theirs.stdout == ours.stdout != ""


def test_a_pi_4_runs_it_without_dot_products(installed: Path, tmp_path: Path) -> None:
    """The same packages on a Cortex-A72: other kernels, the same sentence."""
    (tmp_path / "proc").mkdir()
    for entry in emulate.root().iterdir():
        if entry.name != "proc":
            (tmp_path / entry.name).symlink_to(entry)
    cpuinfo = (emulate.root() / "proc" / "cpuinfo").read_text()
    older = re.sub(r"^(Features\t: ).*", r"\1fp asimd evtstrm crc32 cpuid", cpuinfo, flags=re.MULTILINE)
    (tmp_path / "proc" / "cpuinfo").write_text(older.replace("0xd0b", "0xd08"))
    python = installed / "current" / "bin" / "python"
    done = emulated(python, "-m", "edgemt.cli", "doctor", "--json", cpu="cortex-a72", root=tmp_path)
    report = json.loads(done.stdout)
    assert done.returncode == 0 and report["machine"]["cpu"] == "Cortex-A72"
    bundle = next(f for f in report["findings"] if f["part"] == "bundle medical-zh-en")
    assert "penicillin" in bundle["says"]


def test_doctor_sees_the_processor_and_that_all_works(installed: Path) -> None:
    done = edgemt(installed, "doctor", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 0 and report["works"]
    assert report["machine"]["cpu"] == "Cortex-A76" and "asimddp" in report["machine"]["extensions"]
    assert report["machine"]["emulator"].startswith("qemu")


def test_nothing_is_measured_under_emulation(installed: Path, tmp_path: Path) -> None:
    python = installed / "current" / "bin" / "python"
    done = emulated(python, "-m", "edgemt.pi_report", "-o", tmp_path / "report.tar.gz")
    assert done.returncode == 2 and "qemu" in done.stderr and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("upgrade", [False, True], ids=["fresh", "upgrade"])
def test_a_tampered_kit_changes_nothing(kit: Path, installed: Path, tmp_path: Path, upgrade: bool) -> None:
    spoiled = Path(shutil.copytree(kit, tmp_path / "spoiled"))
    wheel = next((spoiled / "wheels").glob("onnxruntime-*-cp311-*"))
    data = bytearray(wheel.read_bytes())
    data[len(data) // 2] ^= 1
    wheel.write_bytes(data)
    prefix = installed if upgrade else tmp_path / "prefix"
    before = tree(prefix)
    done = install(spoiled, prefix)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert wheel.name in done.stderr and "nothing was changed" in done.stderr
    assert tree(prefix) == before and prefix.exists() == upgrade


def test_upgrade_and_rollback(kit: Path, installed: Path, toy_bundle: Path, tmp_path: Path) -> None:
    prefix = Path(shutil.copytree(installed, tmp_path / "prefix", symlinks=True))
    first = (prefix / "current").readlink()
    tar = pack(tmp_path / "two.tar", "--wheels", kit / "wheels", "-b", toy_bundle, device="pi5")
    other = unpack(tar, tmp_path / "two")
    assert install(other, prefix).returncode == 0
    second = (prefix / "current").readlink()
    assert second != first and (prefix / "previous").readlink() == first
    name = json.loads((toy_bundle / "manifest.json").read_text())["name"]
    assert edgemt(prefix, "translate", "-b", prefix / "current" / "bundles" / name, "我头疼。").stdout.strip()
    assert install(other, prefix, "--rollback").returncode == 0
    assert (prefix / "current").readlink() == first
    assert "penicillin" in edgemt(prefix, "translate", SENTENCES[0]).stdout


def test_a_python_without_packages_is_refused(kit: Path, tmp_path: Path) -> None:
    spoiled = Path(shutil.copytree(kit, tmp_path / "spoiled"))
    manifest = json.loads((spoiled / "manifest.json").read_text())
    del manifest["wheels"]["3.11"]
    (spoiled / "manifest.json").write_text(json.dumps(manifest))
    reseal(spoiled)
    done = install(spoiled, tmp_path / "prefix")
    assert done.returncode == 1 and "has packages for Python 3.13, and this is Python 3.11" in done.stderr
    assert not (tmp_path / "prefix").exists()
