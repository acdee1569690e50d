"""Packed weights kept in files: a load maps them, where ONNX Runtime would make them anew in memory.

They are made on the device by `edgemt prepack`, since they fit one bundle, one onnxruntime and one kind of
processor: a digest of these is the name of their folder. What does not fit, or is not as it was written, is
not used, and the bundle is loaded as it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from edgemt.bundle import PREPACKED, sha256
from edgemt.errors import EdgemtError
from edgemt.manifest import Manifest

RECORD = "prepacked.json"
VERSION = 1  # of what edgemt writes: a change that an older folder does not have raises it
CPUINFO = Path("/proc/cpuinfo")
# How the names of processor features begin by which kernels, and so the layouts of weights, are chosen.
CHOOSING = re.compile(r"avx|amx|fma|f16c|asimd|fphp|sve|sme|i8mm|bf16")
Loaded = TypeVar("Loaded")


class Packed(NamedTuple):
    """A folder of packed graphs: for each role ROLE.onnx and ROLE.bin. `record` is its prepacked.json."""

    folder: Path
    record: dict[str, Any]

    def whole(self, name: str) -> bool:
        """Whether a file has the size and the SHA-256 that were recorded."""
        facts, file = self.record["files"].get(name), self.folder / name
        try:
            return bool(facts) and file.stat().st_size == facts["bytes"] and sha256(file) == facts["sha256"]
        except OSError:
            return False

    def load(self, role: str, load: Callable[[Path], Loaded]) -> Loaded | None:
        """What `load` makes of the graph; None where something is damaged, or it cannot be loaded.

        The weights are checked by another thread meanwhile: damaged ones are numbers like any other.
        """
        if not self.whole(f"{role}.onnx"):
            return None
        found = list[bool]()
        check = threading.Thread(target=lambda: found.append(self.whole(f"{role}.bin")))
        check.start()
        try:
            loaded = load(self.folder / f"{role}.onnx")
        except EdgemtError:
            return None
        finally:
            check.join()
        return loaded if found == [True] else None

    @property
    def complete(self) -> bool:
        """Whether every file is as it was recorded."""
        return all(self.whole(name) for name in self.record["files"])

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(facts["bytes"] for facts in self.record["files"].values())


def find(directory: Path, manifest: Manifest) -> Packed | None:
    """The packed graphs that fit the bundle in `directory` and this machine, if there are any."""
    places = [place for place in (directory / PREPACKED, cache()) if place.is_dir()]
    if not places:
        return None
    name = key(manifest)
    return next((found for place in places if (found := read(place / name))), None)


def read(folder: Path) -> Packed | None:
    """The packed graphs in `folder`, if it is a whole one of the name that it was made under."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        whole = record["key"] == folder.name and all(
            {"sha256", "bytes"} <= set(facts) for facts in record["files"].values()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Packed(folder, record) if whole else None


def state(directory: Path, manifest: Manifest) -> str | None:
    """One line on the packed graphs of a bundle, for a report; None where there are none."""
    found = find(directory, manifest)
    if found is None:
        if any(made_of(place, manifest) for place in (directory / PREPACKED, cache())):
            return "not used: made for another version of the bundle, onnxruntime or processor"
        return None
    if not found.complete:
        return f"not used: {found.folder} is damaged"
    return f"used: {found.size / 1e6:.1f} MB in {found.folder}"


def made_of(place: Path, manifest: Manifest) -> list[Packed]:
    """All packed graphs in `place` of a bundle of this name, whatever they fit."""
    return [found for found in all_in(place) if found.record.get("bundle") == manifest.name]


def all_in(place: Path) -> Iterator[Packed]:
    if place.is_dir():
        yield from (found for folder in sorted(place.iterdir()) if (found := read(folder)))


def cache() -> Path:
    """Where the packed graphs of bundles lie beside which nothing can be written."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "edgemt" / PREPACKED


def key(manifest: Manifest) -> str:
    """A digest of all that packed weights depend on. The manifest's digest covers every file's SHA-256.

    The number of threads is not in it: it changes neither layouts nor the optimised graph.
    """
    facts = {"edgemt": VERSION, "bundle": manifest.digest, **circumstances()}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def circumstances() -> dict[str, str]:
    """The onnxruntime and the processor, as far as they choose how weights are packed."""
    import onnxruntime

    try:
        text = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    cores = sorted(set(re.findall(r"^CPU (?:implementer|part)\s*:\s*(\S+)", text, re.MULTILINE)))
    return {
        "onnxruntime": onnxruntime.__version__,
        "machine": platform.machine(),
        "cores": " ".join(cores),
        "features": " ".join(
            sorted(name for name in (flags[1] if flags else "").split() if CHOOSING.match(name))
        ),
    }
