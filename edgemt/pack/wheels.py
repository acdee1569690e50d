"""The wheels of a device, got with pip for its processor and its Pythons, and the licences in them."""

from __future__ import annotations

import email
import email.message
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from edgemt.errors import EdgemtError
from edgemt.pack.devices import Device

LICENCE = re.compile(r"(LICEN[CS]E|COPYING|NOTICE|ThirdPartyNotices)[^/]*$", re.IGNORECASE)


class Wheel(NamedTuple):
    """A wheel file; `unpacked` is in bytes."""

    path: Path
    name: str
    version: str
    licence: str  # as its metadata says
    unpacked: int


def pip(*arguments: str, environment: dict[str, str] | None = None) -> str | None:
    """Run pip quietly; None if it went well, else the line in which it says why not."""
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONWARNINGS"}  # are not pip's
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            env={**clean, **(environment or {})},
        )
    except OSError as error:
        return f"pip cannot be started: {error.strerror}"
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or [f"pip ended with code {done.returncode}"])[-1]


def download(own: Path, device: Device, python: str, folder: Path, source: Path | None) -> list[Path]:
    """Get what `own` (edgemt's wheel) needs on `device` with this Python; returns the wheels.

    The versions are those of this machine where the device can have them: they were tested together.
    `source` is a folder of wheels to take instead of asking pip's index.
    Raises EdgemtError if a package is not to be had.
    """
    folder.mkdir(parents=True)
    pins = folder / "pins.txt"
    pins.write_text("".join(f"{name}=={version}\n" for name, version in sorted(tested().items())))
    arguments = ["download", "-q", "-d", str(folder), "--only-binary=:all:", "--implementation=cp"]
    arguments += [f"--python-version={python}", *(f"--platform={tag}" for tag in device.platforms)]
    if source is not None:
        arguments += ["--no-index", f"--find-links={source.resolve()}"]
    wanted = needs(own)
    error = pip(*arguments, "-c", str(pins), *wanted)
    if error is not None:  # this machine's versions may have no wheel for that Python: any that fit will do
        error = pip(*arguments, *wanted)
    pins.unlink()
    if error is not None:
        where = f"in {source}" if source else "from the index that pip is configured for"
        raise EdgemtError(
            f"no packages for {device.title} with Python {python} are to be had {where} ({error}); "
            + ("put the missing wheels there" if source else "check the network and pip's configuration")
        )
    return sorted(folder.glob("*.whl"))


def needs(own: Path) -> list[str]:
    """What the wheel requires besides extras."""
    lines = read_metadata(own).get_all("Requires-Dist") or []
    return [line for line in lines if "extra ==" not in line]


def tested() -> dict[str, str]:
    """The versions here of edgemt's device packages and of what they need in turn."""
    found: dict[str, str] = {}
    waiting = ["edgemt"]
    while waiting:
        name = waiting.pop()
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if name != "edgemt":
            found[name] = distribution.version.split("+")[0]
        for line in distribution.requires or []:
            other = re.match(r"[\w.-]+", line)
            if other and "extra ==" not in line and other[0] not in found:
                waiting.append(other[0])
    return found


def describe(path: Path) -> Wheel:
    """Name, version, licence and size of a wheel. Raises EdgemtError if it is no intact wheel."""
    try:
        facts = read_metadata(path)
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, KeyError, StopIteration) as error:
        raise EdgemtError(f"{path} is not an intact wheel ({error}); get it again") from None
    licence = facts.get("License-Expression") or facts.get("License") or ""
    classifiers = [
        line.split(" :: ")[-1] for line in facts.get_all("Classifier") or [] if "License ::" in line
    ]
    licence = licence.strip().splitlines()[0] if licence.strip() else ", ".join(classifiers) or "not stated"
    return Wheel(path, facts["Name"], facts["Version"], licence, unpacked)


def read_metadata(path: Path) -> email.message.Message:
    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if n.count("/") == 1 and n.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def licence_files(wheel: Wheel) -> Iterator[tuple[str, bytes]]:
    """(name, text) of every licence and notice in the wheel, also those of what it bundles."""
    with zipfile.ZipFile(wheel.path) as archive:
        for name in sorted(archive.namelist()):
            base = name.split("/", 1)[-1]
            inside = ".dist-info/licenses/" in name or LICENCE.search(name)
            if inside and not name.endswith(("/", ".py", ".pyc")):
                yield base.removeprefix("licenses/"), archive.read(name)
