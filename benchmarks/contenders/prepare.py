"""From the registry to contenders that can run: who is installed, their models made once and kept."""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.contenders.registry import PEERS, Peer, missing
from edgemt.bundle import DEFAULT, open_bundle
from edgemt.errors import EdgemtError, UsageError

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "examples" / "medical-zh-en" / "checkpoint"
SOURCES = ("export", "calibration", "edgemt/manifest.py", "benchmarks/contenders")  # what a model is made by
MAKERS = ("ctranslate2", "onnx", "onnxruntime", "onnxscript", "optimum-onnx", "torch", "transformers")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Entrant:
    """A contender that is ready to run."""

    peer: Peer
    label: str
    model: Path
    most: int  # tokens of a sentence

    def command(self, beam: int, threads: int, bare: bool = False) -> str:
        """`bare`: without edgemt's text work around it, as slim as the engine can be."""
        words = [
            sys.executable,
            "-m",
            f"benchmarks.contenders.{self.peer.module}",
            "--model",
            str(self.model),
        ]
        words += ["--beam", str(beam), "--threads", str(threads)]
        words += ["--sentences", str(self.most)] if self.peer.sentences and not bare else []
        return shlex.join(words)

    def describe(self) -> dict[str, Any]:
        """Versions, and bytes on disk of the model and of the packages that it needs to run."""
        needed = closure(self.peer.packages)
        return {
            "label": self.label,
            "versions": versions(self.peer.packages),
            "model_bytes": sum(path.stat().st_size for path in self.model.rglob("*") if path.is_file()),
            "packages_bytes": sum(map(installed_bytes, needed)),
            "packages": len(needed),
        }


def prepare(only: Sequence[str], work: Path, say: Say) -> tuple[list[Entrant], list[dict[str, str]]]:
    """The contenders whose names begin with one of `only` (none: all), the shipped bundle first, and those
    left out. Raises EdgemtError if a model cannot be made, UsageError if nobody is left."""
    shipped = open_bundle(None).manifest
    most = shipped.generation["max_source_tokens"]
    entrants: list[Entrant] = []
    skipped = []
    for peer in PEERS:
        if only and not peer.name.startswith(tuple(only)):
            continue
        if peer.precision == shipped.precision:
            entrants.insert(0, Entrant(peer, f"{peer.name} (shipped)", DEFAULT, most))
        elif absent := missing(peer):
            skipped.append({"name": peer.name, "missing": ", ".join(absent), "install": peer.install})
            say(f"{peer.name} is left out: no {', '.join(absent)} here; run: {peer.install}")
        else:
            entrants.append(Entrant(peer, peer.name, made(peer, work, say), most))
    if not entrants:
        raise UsageError(
            f"no contender is left to measure; there are {', '.join(peer.name for peer in PEERS)}"
        )
    return entrants, skipped


def made(peer: Peer, work: Path, say: Say) -> Path:
    """The folder of its model: made now, or the one made earlier of the same checkpoint by the same code."""
    folder = work / f"{peer.name.lower().replace(' ', '-')}-{fingerprint(peer)}"
    if folder.is_dir():
        return folder
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    say(f"preparing {peer.name} …")
    words = [sys.executable, "-m", "benchmarks.contenders.registry", peer.name, str(CHECKPOINT), str(part)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise EdgemtError(f"{peer.name} could not be prepared: {said[-1]}")
    part.rename(folder)
    return folder


def fingerprint(peer: Peer) -> str:
    """A digest of what its model is made of and by: the checkpoint, our code, the packages."""
    digest = hashlib.sha256(repr((peer.prepare, versions(MAKERS))).encode())
    code = [
        path
        for name in SOURCES
        for path in ([ROOT / name] if name.endswith(".py") else (ROOT / name).rglob("*.py"))
    ]
    for path in sorted([*code, *CHECKPOINT.iterdir()]):
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def closure(packages: Iterable[str]) -> list[str]:
    """The packages and all that they require (without extras), as far as they are installed."""
    found: dict[str, None] = {}
    todo = list(packages)
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in found:
            continue
        try:
            required = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # for another platform or Python
        found[name] = None
        plain = [line for line in required if "extra ==" not in line]
        todo += [match[0] for line in plain if (match := re.match(r"[\w.-]+", line))]
    return sorted(found)


def installed_bytes(package: str) -> int:
    """Bytes of its files, byte code apart; an editable package counts the folders it points to."""
    if package == "edgemt":
        return sum(
            path.stat().st_size for name in ("edgemt", "runtimes") for path in (ROOT / name).rglob("*.py")
        )
    files = metadata.files(package) or []
    paths = [Path(str(file.locate())) for file in files if file.suffix != ".pyc"]
    return sum(path.stat().st_size for path in paths if path.is_file())
