"""The folder that becomes a kit: wheels, bundle, installer, units, licences, and a manifest of all of it."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from edgemt import bundle as bundles
from edgemt.bundle import Bundle
from edgemt.doctor.system import megabytes
from edgemt.manifest import digest
from edgemt.pack.devices import Device
from edgemt.pack.own import own_wheel
from edgemt.pack.wheels import Wheel, describe, download, licence_files

FORMAT, FORMAT_VERSION = "edgemt-kit", "1.0"
TEMPLATES = Path(__file__).parent / "kit"
PREFIX = "/opt/edgemt"


def assemble(
    folder: Path, name: str, device: Device, pythons: list[str], bundle: Bundle, source: Path | None
) -> dict[str, Any]:
    """Fill `folder` with the kit of the device called `name`; returns its manifest.

    The default bundle is inside edgemt's own wheel; another one is packed as bundle/NAME.edgemt.
    """
    (folder / "wheels").mkdir(parents=True)
    own = own_wheel(folder / "wheels")
    wheels: dict[str, list[str]] = {}
    facts: dict[str, Wheel] = {}
    for python in pythons:
        progress(f"getting the packages for Python {python}")
        found = [own]
        for path in download(own, device, python, folder / "new", source):
            found.append(path.replace(folder / "wheels" / path.name))
        (folder / "new").rmdir()
        wheels[python] = sorted(f"wheels/{path.name}" for path in found)
        facts.update({f"wheels/{path.name}": describe(path) for path in found})

    packed = None
    if bundle.path != bundles.DEFAULT:
        packed = f"bundle/{bundle.manifest.name}.edgemt"
        (folder / "bundle").mkdir()
        bundles.pack(bundle.directory, folder / packed)
    write_licences(folder / "licences", facts, bundle)

    unpacked = {
        python: sum(facts[n].unpacked for n in names) + (size_of(bundle) if packed else 0)
        for python, names in wheels.items()
    }
    version = facts[f"wheels/{own.name}"].version
    write_texts(folder, name, device, version, bundle, packed, unpacked)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "edgemt": version,
        "device": name,
        "title": device.title,
        "machine": device.machine,
        "wheels": wheels,
        "bundle": {"name": bundle.manifest.name, "digest": bundle.manifest.digest, "file": packed},
        "installed_bytes": unpacked,
        "files": {
            path.relative_to(folder).as_posix(): {
                "sha256": bundles.sha256(path),
                "bytes": path.stat().st_size,
            }
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        },
    }
    manifest["digest"] = digest(manifest)
    text = json.dumps(manifest, ensure_ascii=False, indent=1) + "\n"
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    sums = {file: facts["sha256"] for file, facts in manifest["files"].items()}
    sums["manifest.json"] = hashlib.sha256(text.encode()).hexdigest()
    lines = "".join(f"{sums[file]}  {file}\n" for file in sorted(sums))
    (folder / "SHA256SUMS").write_text(lines, encoding="utf-8")
    return manifest


def write_licences(folder: Path, wheels: dict[str, Wheel], bundle: Bundle) -> None:
    """licences/PACKAGE-VERSION/… as the wheels carry them, and SUMMARY.txt with what their metadata says."""
    rows = [("bundle " + bundle.manifest.name, "", bundle.manifest.licence, "in the bundle's manifest")]
    folder.mkdir()
    for name, version in sorted({(wheel.name, wheel.version) for wheel in wheels.values()}):
        wheel = next(w for w in wheels.values() if (w.name, w.version) == (name, version))
        place = folder / f"{name}-{version}"
        count = 0
        for inside, text in licence_files(wheel):
            count += 1
            target = place / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(text)
        where = place.name if count else "its wheel holds no licence text; see the licence named"
        rows.append((name, version, wheel.licence, where))
    lines = [" | ".join(row) + "\n" for row in [("package", "version", "licence", "text"), *rows]]
    (folder / "SUMMARY.txt").write_text("".join(lines), encoding="utf-8")


def write_texts(
    folder: Path,
    name: str,
    device: Device,
    version: str,
    bundle: Bundle,
    packed: str | None,
    unpacked: dict[str, int],
) -> None:
    """The installer, the units and README.txt, their blanks filled in."""
    option = f"-b {PREFIX}/current/bundles/{bundle.manifest.name}" if packed else ""
    sample = {"zh": "我对青霉素过敏。", "en": "I am allergic to penicillin."}
    text = sample.get(bundle.manifest.languages[0][0], "TEXT")
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    blanks = {
        "VERSION": version,
        "TITLE": device.title,
        "DEVICE": name,
        "PYTHONS": " ".join(unpacked),
        "PYTHON_LIST": " or ".join(unpacked),
        "PREFIX": PREFIX,
        "COMMAND": f"{PREFIX}/current/bin/edgemt translate {option}".strip(),
        "EXAMPLE": f'{option} "{text}"'.strip(),
        "KIT_SIZE": megabytes(total),
        "INSTALLED": ", ".join(
            f"{megabytes(count)} with Python {python}" for python, count in unpacked.items()
        ),
        "BUNDLE_LINE": f"bundle/         {bundle.manifest.name}"
        if packed
        else f"(the bundle {bundle.manifest.name} is inside edgemt's own wheel)",
    }
    for template in sorted(TEMPLATES.iterdir()):
        if template.is_file():
            content = template.read_text(encoding="utf-8")
            if template.suffix != ".py":
                for blank, value in blanks.items():
                    content = content.replace(f"@{blank}@", value)
            place = "systemd" if template.suffix in (".service", ".socket") else ""
            (folder / place).mkdir(exist_ok=True)
            (folder / place / template.name).write_text(content, encoding="utf-8")


def size_of(bundle: Bundle) -> int:
    return sum(facts["bytes"] for facts in bundle.manifest.files.values())


def progress(message: str) -> None:
    if sys.stderr.isatty():
        print(f"edgemt pack: {message}", file=sys.stderr)
