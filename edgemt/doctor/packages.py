"""Packages: those that the device needs and whether their files are whole; the extras of the workshop."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Iterator
from importlib import metadata
from typing import NamedTuple

from edgemt.doctor.finding import Finding, in_kit, pip_install

# What edgemt needs where its own metadata is not there to say so (a bare copy of the source).
DEVICE = ["numpy>=2.0,<3", "onnxruntime==1.28.0", "sentencepiece==0.2.3", "sentencex==1.0.32"]
EXTRAS = ("report", "export", "train", "openvino", "tvm")
TELEMETRY = (1, 29)  # onnxruntime's wheels from this release on report home unless told otherwise
COMPARISONS = {
    "==": lambda have, want: have[: len(want)] == want,
    ">=": lambda have, want: have >= want,
    "<=": lambda have, want: have <= want,
    "<": lambda have, want: have < want,
    ">": lambda have, want: have > want,
    "!=": lambda have, want: have[: len(want)] != want,
}


class Requirement(NamedTuple):
    name: str
    text: str  # "numpy>=2.0,<3"
    extra: str | None


def requirements() -> list[Requirement]:
    """What edgemt's metadata asks for, the device's needs first; markers other than extras do not occur."""
    try:
        lines = metadata.requires("edgemt") or []
    except metadata.PackageNotFoundError:
        lines = DEVICE
    found = []
    for line in lines:
        text, _, marker = line.partition(";")
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", marker)
        name = re.match(r"[\w.-]+", text.strip())
        if name and name[0] != "edgemt":
            found.append(Requirement(name[0], text.strip().replace(" ", ""), extra[1] if extra else None))
    return found


def device_findings() -> Iterator[Finding]:
    """One finding a package that the device needs: missing, damaged, another version, or in order."""
    for needed in requirements():
        if needed.extra is None:
            yield from device_package(needed)


def device_package(needed: Requirement) -> Iterator[Finding]:
    have = version(needed.name)
    cure = pip_install(needed.text)
    if have is None:
        yield Finding(needed.name, "broken", "is not installed", cure)
        return
    if broken := damaged(needed.name):
        again = cure.replace("pip install", "pip install --force-reinstall --no-deps")
        count = f"{len(broken)} files are" if len(broken) > 1 else "one file is"
        yield Finding(needed.name, "broken", f"{have}: {count} damaged or gone ({broken[0]})", again)
    elif not satisfied(have, needed.text):
        yield Finding(
            needed.name, "warning", f"{have} is installed, edgemt was tested with {needed.text}", cure
        )
    else:
        yield Finding(needed.name, "ok", have)
    if needed.name == "onnxruntime" and numbers(have) >= TELEMETRY:
        yield Finding(
            "telemetry",
            "note" if os.environ.get("ORT_DISABLE_TELEMETRY") == "1" else "warning",
            f"onnxruntime {have} reports its use over the network by default; edgemt sets "
            "ORT_DISABLE_TELEMETRY=1 for itself, other programs that use this package do not",
            f"export ORT_DISABLE_TELEMETRY=1, or: {pip_install('onnxruntime==1.28.0')}",
        )


def extra_findings() -> Iterator[Finding]:
    """One finding an extra. Nothing is imported: torch alone would take seconds."""
    if in_kit():
        yield Finding(
            "extras", "absent", "not part of a kit; they are for the machine that exports and packs"
        )
        return
    wanted = requirements()
    for extra in EXTRAS:
        names = [needed for needed in wanted if needed.extra == extra]
        if not names:
            continue
        missing = [needed.name for needed in names if version(needed.name) is None]
        cure = pip_install(f"edgemt[{extra}]")
        other = [
            n.name for n in names if n.name not in missing and not satisfied(version(n.name) or "", n.text)
        ]
        if len(missing) == len(names):
            yield Finding(extra, "absent", "not installed", cure)
        elif missing:
            yield Finding(extra, "absent", f"incomplete: {', '.join(missing)} is not installed", cure)
        elif other:
            yield Finding(
                extra, "note", f"installed, in other versions than tested: {', '.join(other)}", cure
            )
        else:
            yield Finding(extra, "ok", "installed")


def version(package: str) -> str | None:
    """The installed version; None if there is none, or only the ruins of its metadata."""
    try:
        return metadata.version(package)
    except (metadata.PackageNotFoundError, KeyError, TypeError):
        return None


def damaged(package: str) -> list[str]:
    """The files of a package that are gone or differ from its RECORD; compiled caches are not in it."""
    broken = []
    for file in metadata.distribution(package).files or []:
        if (
            file.hash is None or file.suffix == ".pyc" or file.parts[0] == ".."
        ):  # scripts: nothing imports them
            continue
        try:
            data = file.read_binary()
            padding = "=" * (-len(file.hash.value) % 4)
            want = base64.urlsafe_b64decode(file.hash.value + padding)
            if hashlib.new(file.hash.mode, data).digest() != want:
                broken.append(str(file))
        except (OSError, ValueError, binascii.Error):
            broken.append(str(file))
    return broken


def satisfied(have: str, requirement: str) -> bool:
    """Whether a version is what `name>=1,<2` asks for, by its numbers."""
    parts = re.findall(r"(==|>=|<=|!=|<|>)([\d.]+)", requirement)
    return all(COMPARISONS[sign](numbers(have), numbers(want)) for sign, want in parts)


def numbers(text: str) -> tuple[int, ...]:
    """The release numbers of a version: "2.13.0+cpu" gives (2, 13, 0)."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()
