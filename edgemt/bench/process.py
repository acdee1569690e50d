"""What the kernel tells of processes under /proc: processor time, page faults, memory, descent.

Imported by processes whose start is measured: it needs nothing but the standard library's smallest parts.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

PROC = Path("/proc")


def stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the name (which may hold anything): state, parent, group, …"""
    text = _read(f"{pid}/stat")
    return None if text is None else text.rpartition(")")[2].split()


def cpu_s(pids: Iterable[int]) -> float:
    """CPU seconds that the processes, and children of theirs that have ended, have used together."""
    fields = [found for pid in pids if (found := stat(pid))]
    return sum(int(ticks) for found in fields for ticks in found[11:15]) / os.sysconf("SC_CLK_TCK")


def faults(pids: Iterable[int]) -> tuple[int, int]:
    """Minor and major page faults of the processes so far."""
    fields = [found for pid in pids if (found := stat(pid))]
    return sum(int(found[7]) for found in fields), sum(int(found[9]) for found in fields)


def tree(pid: int) -> list[int]:
    """The process, those it has started, and theirs."""
    found = [pid]
    for member in found:  # grows while it is walked
        for path in sorted(PROC.glob(f"{member}/task/*/children")):
            found += map(int, (_read(str(path.relative_to(PROC))) or "").split())
    return found


def group(leader: int) -> list[int]:
    """The processes of the group that `leader` leads."""
    pids = (int(path.name) for path in PROC.glob("[0-9]*"))
    return [pid for pid in pids if (fields := stat(pid)) and int(fields[2]) == leader]


def peak_rss(pid: int | None = None) -> int | None:
    """The most memory a process (None: this one) has held, in bytes: VmHWM, which a new program starts from
    nought. None where /proc does not tell."""
    return memory("VmHWM", pid)


def memory(field: str, pid: int | None = None) -> int | None:
    """Bytes that a field of a process's (None: this one's) /proc/PID/status gives in kB; None without it."""
    lines = (_read(f"{pid or 'self'}/status") or "").splitlines()
    found = next((line for line in lines if line.startswith(f"{field}:")), None)
    return int(found.split()[1]) * 1024 if found else None


def _read(name: str) -> str | None:
    try:
        return (PROC / name).read_text(encoding="utf-8", errors="replace")
    except OSError:  # it may have ended
        return None
