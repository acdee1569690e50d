"""Count the instructions of warm translations on the emulated Cortex-A76: count.c, run and read."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from edgemt.errors import EdgemtError
from tests.device import emulate

HERE = Path(__file__).parent
BLOCK = np.dtype(
    [
        ("address", "u8"),
        ("count", "u8"),
        ("instructions", "u4"),
        ("dots", "u4"),
        ("fmlas", "u4"),
        ("load", "u4"),
    ]
)
# Where instructions are spent, by a part of the mapped file's name. The C and C++ libraries are called by
# the inference libraries nearly always (memcpy, malloc, exp, iostreams); Python allocates for itself.
NATIVE = ("onnxruntime", "ctranslate2", "libc.so", "libm.so", "libstdc++", "libgcc", "libgomp", "ld-linux")


@dataclass(frozen=True)
class Counts:
    """One warm translation."""

    native: int  # instructions
    python: int  # instructions: the interpreter, numpy, tokenizer, sentence splitter
    dots: int  # SDOT and UDOT among them
    load_bytes: int  # read from memory by native code
    objects: dict[str, int]  # mapped file -> instructions

    @property
    def total(self) -> int:
        return self.native + self.python


@dataclass(frozen=True)
class Answer:
    """What the guest made of the job's texts."""

    counts: list[list[Counts]]  # [texts][repeats]
    translations: list[str]
    target_tokens: list[int]
    tools: dict[str, str]


@cache
def plugin() -> Path:
    """The plugin, built by gcc on first use and kept beside the root. Raises EdgemtError without gcc."""
    source = HERE / "count.c"
    built = emulate.root() / f"count-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}.so"
    if not built.exists():
        new = built.with_suffix(f".{os.getpid()}")
        line = ["gcc", "-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-o", str(new), str(source)]
        try:
            subprocess.run(line, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            raise EdgemtError(
                "gcc is not installed, and the plugin is built by it; apt-get install gcc"
            ) from None
        except subprocess.CalledProcessError as error:
            raise EdgemtError(f"gcc cannot build {source}: {error.stderr.strip().splitlines()[0]}") from None
        new.rename(built)
    return built


def count(job: dict[str, Any], *, timeout: float = 3600) -> Answer:
    """Run guest.py with `job`, counted. Raises EdgemtError in one sentence if that fails.

    job: engine "edgemt" or "ctranslate2", model (a path), beam, repeats, texts [{source, source_lang,
    target_lang}]; for CTranslate2 compute_type, tokenizer, suppress and, in each text, sentences and prefix.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "counts"
        result = guest(job, f"{plugin()},out={out}", timeout)
        intervals = read_intervals(out)
    counted = [summarise(blocks, Maps(result["maps"])) for blocks in intervals]
    repeats = job["repeats"]
    if len(counted) != repeats * len(job["texts"]):
        raise EdgemtError(f"{len(counted)} intervals were counted, of {repeats * len(job['texts'])}")
    return Answer(
        [counted[i : i + repeats] for i in range(0, len(counted), repeats)],
        [text for text, _ in result["answers"]],
        [tokens for _, tokens in result["answers"]],
        result["tools"],
    )


def guest(job: dict[str, Any], plugin: str | None, timeout: float = 3600) -> dict[str, Any]:
    """What guest.py answers to `job`."""
    done = emulate.run(
        [HERE / "guest.py"],
        path=[emulate.peer()] if job["engine"] == "ctranslate2" else [],
        plugin=plugin,
        stdin=json.dumps(job).encode(),
        timeout=timeout,
    )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [
            f"exit status {done.returncode}"
        ]
        reason = next((line for line in lines if "plugin" in line.lower() and "version" in line), lines[-1])
        raise EdgemtError(f"the emulated process failed: {reason}")
    return json.loads(done.stdout)


def read_intervals(file: Path) -> list[np.ndarray]:
    """The executed blocks of each interval, as arrays of BLOCK."""
    data, at, found = file.read_bytes(), 0, []
    while at < len(data):
        number = int.from_bytes(data[at : at + 8], "little")
        at += 8
        found.append(np.frombuffer(data, BLOCK, number, at))
        at += number * BLOCK.itemsize
    return found


class Maps:
    """Which file each address belongs to."""

    def __init__(self, text: str) -> None:
        rows = [line.split(None, 5) for line in text.splitlines()]
        spans = sorted(
            (int(low, 16), int(high, 16), int(row[2], 16), row[5].strip())
            for row in rows
            if len(row) == 6
            for low, high in [row[0].split("-")]
        )
        self._starts = [span[0] for span in spans]
        self._spans = spans

    def file_of(self, address: int) -> tuple[str, int]:
        """The mapped file and the offset in it; ("other", address) for memory without a file."""
        at = bisect_right(self._starts, address) - 1
        if at >= 0:
            low, high, offset, name = self._spans[at]
            if address < high:
                return name, address - low + offset
        return "other", address


def summarise(blocks: np.ndarray, maps: Maps) -> Counts:
    """Add up one interval."""
    executed = blocks["count"] * blocks["instructions"]
    objects: dict[str, int] = {}
    native = np.zeros(len(blocks), bool)
    for i, address in enumerate(blocks["address"].tolist()):
        name = Path(maps.file_of(address)[0]).name
        objects[name] = objects.get(name, 0) + int(executed[i])
        native[i] = any(part in name for part in NATIVE)
    return Counts(
        native=int(executed[native].sum()),
        python=int(executed[~native].sum()),
        dots=int((blocks["count"] * blocks["dots"]).sum()),
        load_bytes=int((blocks["count"] * blocks["load"])[native].sum()),
        objects=objects,
    )


def mean(counts: Sequence[Counts]) -> Counts:
    """The mean of several counts, to whole instructions."""
    names = {name for one in counts for name in one.objects}
    share = len(counts)
    return Counts(
        *(
            sum(getattr(one, field) for one in counts) // share
            for field in ("native", "python", "dots", "load_bytes")
        ),
        objects={name: sum(one.objects.get(name, 0) for one in counts) // share for name in names},
    )
