"""Run the device side on an emulated Cortex-A76: a Python of aarch64 under qemu's user-mode emulation.

    python -m tests.device.emulate -m edgemt.cli translate "我头疼。"

Under a plain `-L ROOT` a process cannot start another one, so whatever is run must do its work in-process.
Emulated milliseconds mean nothing; outputs and counts of instructions do.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from edgemt.errors import EdgemtError

REPOSITORY = Path(__file__).parents[2]
CPU = "cortex-a76"
PYTHON = "usr/bin/python3.11"
# Not `-cpu max`: with it onnxruntime chooses instructions that qemu 7.2 gets wrong.
QEMU = "qemu-aarch64"


@cache
def qemu(name: str = QEMU) -> str:
    """The emulator's path. Raises EdgemtError if it is not installed."""
    path = shutil.which(name)
    if path is None:
        raise EdgemtError(f"{name} is not installed; on Debian: apt-get install qemu-user")
    return path


@cache
def root() -> Path:
    """The folder of aarch64 files that script/device-root keeps. Raises EdgemtError if it cannot be made."""
    made = subprocess.run([REPOSITORY / "script" / "device-root"], capture_output=True, text=True)
    if made.returncode:
        raise EdgemtError(made.stderr.strip().splitlines()[-1] if made.stderr.strip() else "no device root")
    return Path(made.stdout.splitlines()[-1])


def package(*more: str) -> Path:
    """A folder with `edgemt` in it as the device has it: links to this checkout's edgemt/ and runtimes/.

    `more` names further parts of the checkout, such as "training".
    """
    checkout = hashlib.sha256(str(REPOSITORY).encode()).hexdigest()[:12]
    folder = root() / "checkouts" / "-".join([checkout, *more])
    links = {entry.name: entry for entry in (REPOSITORY / "edgemt").iterdir() if entry.name != "__pycache__"}
    links |= {part: REPOSITORY / part for part in ("runtimes", *more)}
    (folder / "edgemt").mkdir(parents=True, exist_ok=True)
    for name, entry in links.items():
        try:
            (folder / "edgemt" / name).symlink_to(entry)
        except FileExistsError:
            continue
    return folder


def command(argv: Sequence[str | Path], *, cpu: str = CPU, plugin: str | None = None) -> list[str]:
    """The command line of the root's Python with the arguments `argv`; `plugin` is qemu's `-plugin` value."""
    options = ["-plugin", plugin] if plugin else []
    return [qemu(), "-cpu", cpu, *options, "-L", str(root()), str(root() / PYTHON), *map(str, argv)]


def environment(env: Mapping[str, str] | None = None, *, path: Sequence[Path] = ()) -> dict[str, str]:
    """What the emulated process sees: nothing of ours but what repeats; `path` goes before PYTHONPATH."""
    folders = [*path, package(), root() / "site"]
    return {
        "HOME": os.environ.get("HOME", "/"),
        "PATH": os.environ.get("PATH", ""),
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "PYTHONSAFEPATH": "1",  # the working directory may hold another edgemt
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "OMP_NUM_THREADS": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        **(env or {}),
    }


def run(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    path: Sequence[Path] = (),
    plugin: str | None = None,
    stdin: bytes = b"",
    cwd: Path | None = None,
    timeout: float = 600,
) -> subprocess.CompletedProcess[bytes]:
    """Run the root's Python with `argv` (as after `python3`) on the emulated CPU and wait.

    `path`: folders to import from before edgemt and its dependencies; `peer()` is CTranslate2's.
    """
    return subprocess.run(
        command(argv, plugin=plugin),
        input=stdin,
        capture_output=True,
        env=environment(env, path=path),
        cwd=cwd,
        timeout=timeout,
    )


def without_vnni(argv: Sequence[str | Path]) -> list[str]:
    """The command line of this very Python on an emulated x86 processor that has AVX2 and no VNNI."""
    return [qemu("qemu-x86_64"), "-cpu", "Haswell", sys.executable, *map(str, argv)]


def peer() -> Path:
    """The folder to import CTranslate2 from."""
    return root() / "peer"


if __name__ == "__main__":
    try:
        line = command(sys.argv[1:])
        os.execve(line[0], line, environment(path=[peer()]))
    except EdgemtError as error:
        sys.exit(f"emulate: {error}")
