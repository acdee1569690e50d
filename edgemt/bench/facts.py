"""What machine this is. Readers take the root of the file system, so that a Pi's files can be read anywhere.

Nothing that names a person, a host or a serial number is read: a report can be attached to a public issue.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path("/")
PACKAGES = ("edgemt", "numpy", "onnxruntime", "sentencepiece", "sentencex")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ORT_NUM_THREADS")
# CPU extensions that decide how fast INT8 and FP16 arithmetic is, as /proc/cpuinfo spells them.
EXTENSIONS = [
    "asimd",
    "asimdhp",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
    "sve2",
    "fma",
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
]
# (implementer, part) of /proc/cpuinfo -> core; Arm's MIDR_EL1 numbers.
ARM_CORES = {
    ("0x41", "0xd03"): "Cortex-A53",
    ("0x41", "0xd05"): "Cortex-A55",
    ("0x41", "0xd07"): "Cortex-A57",
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse-N1",
    ("0x41", "0xd40"): "Neoverse-V1",
    ("0x41", "0xd49"): "Neoverse-N2",
    ("0x41", "0xd4f"): "Neoverse-V2",
}


def machine_facts(threads: int, root: Path = ROOT) -> dict[str, Any]:
    """The facts that place a figure, ready for JSON; None is what this machine does not tell.

    Frequencies are in MHz, memory in bytes, `cpu_quota` in CPUs (the control group's limit).
    """
    cpuinfo = read(root, "proc/cpuinfo") or ""
    board = (read(root, "proc/device-tree/model") or "").strip("\0") or _last(cpuinfo, "Model") or _dmi(root)
    compatible = [name for name in (read(root, "proc/device-tree/compatible") or "").split("\0") if name]
    flags = (_first(cpuinfo, "flags") or _first(cpuinfo, "Features") or "").split()
    return {
        "model": board,
        "soc": compatible[-1] if compatible else None,
        "cpu": _first(cpuinfo, "model name") or _arm_cores(cpuinfo),
        "architecture": platform.machine(),
        "cores": cores(root),
        "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "cpu_quota": _cpu_quota(root),
        "extensions": [name for name in EXTENSIONS if name in flags],
        "virtual": "hypervisor" in flags,
        "governor": _governors(root),
        "frequency_mhz": {
            "min": _frequency(root, "cpuinfo_min_freq"),
            "max": _frequency(root, "cpuinfo_max_freq"),
        },
        "memory_bytes": _kib(root, "MemTotal"),
        "swap_bytes": _kib(root, "SwapTotal"),
        "kernel": platform.release(),
        "os": _os_name(root),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": {name: _version(name) for name in PACKAGES},
        "threads": threads,
        "environment": {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
    }


def cores(root: Path = ROOT) -> int:
    """Logical CPUs that are on line."""
    listed = re.findall(r"^processor\s*:", read(root, "proc/cpuinfo") or "", re.MULTILINE)
    return len(listed) or os.cpu_count() or 1


def emulator(root: Path = ROOT) -> str | None:
    """The user-mode emulator this process runs under, if it does: its times are no measurement."""
    name = (read(root, "proc/self/comm") or "").strip()
    return name if name.startswith("qemu-") else None


def vcgencmd(question: str) -> str | None:
    """What the Raspberry Pi's firmware answers; None where its tool is missing or may not talk to it."""
    tool = shutil.which("vcgencmd")
    if tool is None:
        return None
    try:
        return subprocess.run([tool, question], capture_output=True, text=True, timeout=5).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None


def read(root: Path, name: str) -> str | None:
    """The text of root/name, or None where there is no such file or it cannot be read."""
    try:
        return (root / name).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def read_all(root: Path, pattern: str) -> list[str]:
    """The stripped texts of all files under `root` that match the glob pattern, by name."""
    texts = (read(path.parent, path.name) for path in sorted(root.glob(pattern)))
    return [text.strip() for text in texts if text is not None]


def _first(cpuinfo: str, key: str) -> str | None:
    found = re.search(rf"^{key}\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    return found[1].strip() if found else None


def _last(cpuinfo: str, key: str) -> str | None:
    found = re.findall(rf"^{key}\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    return found[-1].strip() if found and not found[-1].strip().isdigit() else None


def _arm_cores(cpuinfo: str) -> str | None:
    pairs = zip(
        re.findall(r"^CPU implementer\s*:\s*(\S+)", cpuinfo, re.MULTILINE),
        re.findall(r"^CPU part\s*:\s*(\S+)", cpuinfo, re.MULTILINE),
        strict=False,
    )
    names = dict.fromkeys(ARM_CORES.get(pair, f"implementer {pair[0]} part {pair[1]}") for pair in pairs)
    return " + ".join(names) or None


def _dmi(root: Path) -> str | None:
    parts = [
        (read(root, f"sys/class/dmi/id/{name}") or "").strip() for name in ("sys_vendor", "product_name")
    ]
    return " ".join(part for part in parts if part) or None


def _governors(root: Path) -> str | None:
    return (
        " + ".join(sorted(set(read_all(root, "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor"))))
        or None
    )


def _frequency(root: Path, name: str) -> float | None:
    found = [
        int(v) for v in read_all(root, f"sys/devices/system/cpu/cpu[0-9]*/cpufreq/{name}") if v.isdigit()
    ]
    return max(found) / 1000 if found else None


def _cpu_quota(root: Path) -> float | None:
    """CPUs the control group (version 2) may use at most; None: no limit."""
    quota, _, period = (read(root, "sys/fs/cgroup/cpu.max") or "").strip().partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _kib(root: Path, key: str) -> int | None:
    found = re.search(rf"^{key}:\s*(\d+) kB", read(root, "proc/meminfo") or "", re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _os_name(root: Path) -> str | None:
    found = re.search(r'^PRETTY_NAME="?([^"\n]*)', read(root, "etc/os-release") or "", re.MULTILINE)
    return found[1] if found else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
