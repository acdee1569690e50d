"""Kits for tests: packed for this machine, unpacked, and spoiled in the ways that kits get spoiled."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from edgemt.cli import main
from edgemt.manifest import digest
from edgemt.pack.devices import DEVICES, Device

PYTHON = "{}.{}".format(*sys.version_info[:2])


def here() -> Device:
    """This machine as a device: what is tried on it is the same script with the same steps."""
    machine = platform.machine()
    tags = (*(f"manylinux_2_{minor}_{machine}" for minor in (28, 27, 26, 24, 17)), f"manylinux2014_{machine}")
    return Device("this machine", machine, tags, (PYTHON,), ("onnxruntime",))


def pack(path: Path, *arguments: str | Path, device: str = "here") -> Path:
    """Run `edgemt pack`; skips where no package is to be had, as without a network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DEVICES, "here", here())
        code = main(["pack", "--device", device, "-o", str(path), *map(str, arguments)])
    if code != 0:
        pytest.skip("no packages are to be had here")
    return path


def unpack(tar: Path, folder: Path) -> Path:
    """The folder of the kit."""
    with tarfile.open(tar) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.iterdir())


def installer(kit: Path, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = ["sh", str(kit / "install.sh"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=variables or None)


def reseal(kit: Path) -> None:
    """Make the digests of a kit right again after a change of its files."""
    manifest = json.loads((kit / "manifest.json").read_text())
    for name in manifest["files"]:
        data = (kit / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    manifest["digest"] = digest(manifest)
    text = json.dumps(manifest, ensure_ascii=False)
    (kit / "manifest.json").write_text(text)
    sums = {name: facts["sha256"] for name, facts in manifest["files"].items()}
    sums["manifest.json"] = hashlib.sha256(text.encode()).hexdigest()
    (kit / "SHA256SUMS").write_text("".join(f"{value}  {name}\n" for name, value in sums.items()))


def tree(folder: Path) -> dict[str, str]:
    """Everything under a folder: names with contents, and where links lead."""
    return {
        str(path.relative_to(folder)): str(path.readlink())
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }
