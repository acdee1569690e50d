"""The machine itself: Python and its C library, processor, memory, disk, heat and power."""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgemt.bench.conditions import observe
from edgemt.bench.facts import ROOT, emulator, machine_facts, read
from edgemt.doctor.finding import Finding

OLDEST_PYTHON = (3, 11)
OLDEST_GLIBC = (2, 28)  # of the manylinux_2_28 wheels of numpy, onnxruntime and sentencepiece
MEMORY = 150_000_000  # bytes: the default bundle's process, with a margin
DISK = 50_000_000  # bytes: a .edgemt file is unpacked into the temporary folder
HOT = 80.0  # degrees Celsius: a Pi 5 slows down there
# A control group's limit of memory, and what it uses: of version 2, and of version 1.
CGROUPS = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
GOVERN = "echo ondemand | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
DOT_PRODUCT = {"asimddp", "avx512_vnni", "avx_vnni", "amx_int8"}  # 8-bit products summed in one instruction


def look(root: Path = ROOT) -> dict[str, Any]:
    """Facts of this machine, ready for JSON; bytes, MHz and degrees Celsius, None where it does not tell."""
    now = observe(root)
    facts = machine_facts(1, root)
    del facts["threads"]  # a measurement's, and none is made here
    return {
        **facts,
        "bits": 64 if sys.maxsize > 2**32 else 32,
        "abi": sysconfig.get_config_var("SOABI") or "",
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "emulator": emulator(root),
        "memory_available_bytes": memory_available(root),
        "disk_free_bytes": disk_free(Path(__file__)),
        "temporary_free_bytes": disk_free(Path(tempfile.gettempdir())),
        "temperature_c": now.temperature_c,
        "frequency_now_mhz": max(now.frequency_mhz, default=None),
        "throttle_flags": now.throttle_flags,
    }


def findings(facts: dict[str, Any]) -> Iterator[Finding]:
    yield python(facts)
    yield processor(facts)
    yield memory(facts)
    yield disk(facts)
    yield from power(facts)
    if facts["emulator"]:
        yield Finding("emulator", "note", f"this is {facts['emulator']}: its times are not the device's")


def python(facts: dict[str, Any]) -> Finding:
    """The wheels of numpy, onnxruntime and sentencepiece decide what is needed."""
    version = tuple(int(part) for part in re.findall(r"\d+", facts["python"])[:2])
    libc = facts["libc"] or "unknown C library"
    says = f"{facts['python']}, {facts['bits']} bit, {libc}"
    if version < OLDEST_PYTHON:
        return Finding("python", "broken", f"{says}: Python 3.11 or newer is needed",
                       "install Raspberry Pi OS bookworm or newer, or another Python")  # fmt: skip
    if facts["bits"] != 64:
        return Finding("python", "broken", f"{says}: onnxruntime exists for 64 bit only",
                       "install the 64-bit Raspberry Pi OS")  # fmt: skip
    if "musl" in facts["abi"]:
        return Finding("python", "broken", f"{says}: onnxruntime has no wheels for musl (Alpine Linux)",
                       "use a system with glibc: Debian, or the image python:3.11-slim")  # fmt: skip
    if (found := re.match(r"glibc (\d+)\.(\d+)", libc)) and (int(found[1]), int(found[2])) < OLDEST_GLIBC:
        return Finding("python", "broken", f"{says}: the packages need glibc 2.28 or newer",
                       "upgrade the operating system")  # fmt: skip
    return Finding("python", "ok", says)


def processor(facts: dict[str, Any]) -> Finding:
    names = DOT_PRODUCT & set(facts["extensions"])
    cpu = f"{facts['cores']} x {facts['cpu'] or facts['architecture']}"
    if names:
        return Finding("processor", "ok", f"{cpu}, INT8 dot products: {', '.join(sorted(names))}")
    return Finding("processor", "note", f"{cpu}, no INT8 dot products: INT8 gains less speed here")


def memory(facts: dict[str, Any]) -> Finding:
    free, total = facts["memory_available_bytes"], facts["memory_bytes"]
    if free is None:
        return Finding("memory", "note", "this machine does not tell how much memory is available")
    says = f"{megabytes(free)} available" + (f" of {megabytes(total)}" if total else "")
    if free < MEMORY:
        return Finding("memory", "warning", f"{says}: a translation needs about {megabytes(MEMORY)}",
                       "end other programs, raise this one's limit, or add swap")  # fmt: skip
    return Finding("memory", "ok", says)


def disk(facts: dict[str, Any]) -> Finding:
    free, temporary = facts["disk_free_bytes"], facts["temporary_free_bytes"]
    if temporary is None:
        return Finding("disk", "warning", "no temporary folder can be written, to open .edgemt files in",
                       "set TMPDIR to a folder that can be written")  # fmt: skip
    says = f"{megabytes(free or 0)} free, {megabytes(temporary)} for temporary files"
    if temporary < DISK:
        return Finding("disk", "warning", f"{says}: a .edgemt file may not find room to be unpacked",
                       "free some space, or set TMPDIR to a folder that has it")  # fmt: skip
    return Finding("disk", "ok", says)


def power(facts: dict[str, Any]) -> Iterator[Finding]:
    """Heat, clock and supply: none of them stops a translation, all of them slow it down."""
    if governor := facts["governor"]:
        highest = facts["frequency_mhz"]["max"]
        says = governor + (f", up to {highest:.0f} MHz" if highest else "")
        if governor not in ("performance", "schedutil", "ondemand"):
            yield Finding("governor", "warning", f"{says}: the clock may stay low", GOVERN)
        else:
            yield Finding("governor", "ok", says)
    if (heat := facts["temperature_c"]) is not None:
        if heat >= HOT:
            yield Finding("temperature", "warning", f"{heat:.0f} °C: the clock is lowered at this heat",
                          "fit a cooler, or give the board air")  # fmt: skip
        else:
            yield Finding("temperature", "ok", f"{heat:.0f} °C")
    if (flags := facts["throttle_flags"]) is not None:
        if any("under-voltage" in flag for flag in flags):
            cure = "use the official power supply (5 V, 5 A for a Pi 5) and a short cable"
        else:
            cure = "fit a cooler, or give the board air"
        if flags:
            yield Finding("throttling", "warning", ", ".join(flags), cure)
        else:
            yield Finding("throttling", "ok", "none since boot")


def memory_available(root: Path = ROOT) -> int | None:
    """Bytes this process may still take: what the system, its control group and its own limit leave."""
    lines = read(root, "proc/meminfo") or ""
    found = [int(n) * 1024 for n in re.findall(r"^MemAvailable:\s*(\d+) kB", lines, re.MULTILINE)]
    for highest, current in CGROUPS:  # cached files are given back when memory is asked for
        most, used = ((read(root, f"sys/fs/cgroup/{name}") or "").strip() for name in (highest, current))
        if most.isdigit() and used.isdigit():
            told = read(root, f"sys/fs/cgroup/{Path(highest).with_name('memory.stat')}") or ""
            cached = re.search(r"^(?:total_)?inactive_file (\d+)$", told, re.MULTILINE)
            found.append(max(0, int(most) - int(used) + (int(cached[1]) if cached else 0)))
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        found.append(limit)
    return min(found, default=None)


def disk_free(place: Path) -> int | None:
    """Bytes an ordinary user may still write there."""
    try:
        if place.is_dir() and not os.access(place, os.W_OK):
            return None
        return shutil.disk_usage(place).free
    except OSError:
        return None


def megabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
