"""llama.cpp for the Cortex-A76, cross-compiled here into one static program: llama_guest.cpp."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgemt.errors import EdgemtError

PACKAGE, VERSION = "llama-cpp-python", "0.3.36"  # llama.cpp's sources are in its source distribution
GUEST = Path(__file__).with_name("llama_guest.cpp")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgemt"
COMPILER, TUNE = "aarch64-linux-gnu", "-mcpu=cortex-a76"
PARTS = ("COMMON", "TESTS", "TOOLS", "EXAMPLES", "SERVER", "APP")
OFF = (
    "GGML_NATIVE",
    "GGML_OPENMP",
    "BUILD_SHARED_LIBS",
    "LLAMA_OPENSSL",
    *(f"LLAMA_BUILD_{p}" for p in PARTS),
)


def program() -> Path:
    """The program, built on first use (four minutes of CPU time) and kept.

    Raises EdgemtError without compiler or sources.
    """
    digest = hashlib.sha256(GUEST.read_bytes() + repr((VERSION, TUNE, OFF)).encode()).hexdigest()[:12]
    built = CACHE / f"llama-aarch64-{digest}"
    if not built.exists():
        for tool in ("cmake", f"{COMPILER}-g++"):
            if shutil.which(tool) is None:
                raise EdgemtError(
                    f"{tool} is not installed; on Debian: apt-get install cmake g++-aarch64-linux-gnu"
                )
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            new = build(Path(folder))
            new.replace(built)
    return built


def build(work: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", f"--no-binary={PACKAGE}"]
    run([*pip, "--dest", work, f"{PACKAGE}=={VERSION}"])  # pip asks the package's build tool for its metadata
    with tarfile.open(next(work.glob("*.tar.gz"))) as archive:
        archive.extractall(work, filter="data")
    sources, objects = next(work.glob("*/vendor/llama.cpp")), work / "objects"
    options = ["CMAKE_BUILD_TYPE=Release", "CMAKE_SYSTEM_NAME=Linux", "CMAKE_SYSTEM_PROCESSOR=aarch64"]
    for language, command in (("C", "gcc"), ("CXX", "g++")):
        options += [f"CMAKE_{language}_COMPILER={COMPILER}-{command}", f"CMAKE_{language}_FLAGS={TUNE}"]
    options += [f"{name}=OFF" for name in OFF]
    run(["cmake", "-S", sources, "-B", objects, *(f"-D{option}" for option in options)])
    run(["cmake", "--build", objects, "--parallel", str(os.cpu_count() or 1), "--target", "llama"])
    libraries = [next(objects.rglob(f"lib{name}.a")) for name in ("llama", "ggml", "ggml-cpu", "ggml-base")]
    includes = [f"-I{sources / 'include'}", f"-I{sources / 'ggml' / 'include'}"]
    line = [f"{COMPILER}-g++", "-O2", TUNE, "-static", "-std=c++17", *includes, GUEST, "-o", work / "program"]
    run([*line, *libraries, "-lpthread", "-ldl", "-lm"])
    return work / "program"


def run(words: Sequence[str | Path]) -> None:
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
        shown = shlex.join(map(str, words))[:120]
        raise EdgemtError(f"`{shown}` failed: {next((s for s in said if 'error' in s.lower()), said[-1])}")


if __name__ == "__main__":
    print(program())
