"""The state of the machine around a run, and what it says of the run: quiet, or disturbed."""

from __future__ import annotations

import os
import re
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgemt.bench.facts import ROOT, cores, read, read_all, vcgencmd
from edgemt.bench.process import cpu_s, tree

if TYPE_CHECKING:
    from edgemt.bench.sampler import Moment

# https://www.raspberrypi.com/documentation/computers/os.html#get_throttled: bit n now, bit n + 16 since boot.
THROTTLE_BITS = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
CPU_ZONES = re.compile(r"cpu|pkg|soc", re.IGNORECASE)
# Limits beyond which a run is called disturbed.
OTHERS = 0.2  # share of all cores that other processes used
INVOLUNTARY = 50.0  # times a second that the kernel took the CPU away from us
BURSTS = 0.05  # share of the looks during a run at which others used more than that
STEAL = 0.01  # share of CPU time that the hypervisor gave to others


@dataclass(frozen=True)
class Conditions:
    """A snapshot. Counters count from the start of the machine or of this process; None: not told here."""

    at_s: float  # monotonic clock
    load: tuple[float, float, float]  # runnable tasks, averaged over 1, 5 and 15 minutes
    temperature_c: float | None
    frequency_mhz: list[float]  # one a core, now
    throttle_flags: list[str] | None  # Raspberry Pi: what holds now, and "… since boot"
    throttle_count: int | None  # x86: thermal events; control group: periods in which it had to wait
    busy_s: float | None  # CPU seconds of all processes
    steal_s: float | None  # CPU seconds that the hypervisor gave to others
    total_s: float | None  # CPU seconds there were
    own_s: float  # CPU seconds of this process and of those it started
    voluntary: int  # context switches of this process
    involuntary: int
    minor_faults: int  # page faults of this process; major ones waited for the disk
    major_faults: int


def observe(root: Path = ROOT) -> Conditions:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    busy, steal, total = cpu_seconds(root)
    return Conditions(
        at_s=time.monotonic(),
        load=_load(root),
        temperature_c=temperature(root),
        frequency_mhz=frequencies(root),
        throttle_flags=throttle_flags(root),
        throttle_count=_throttle_count(root),
        busy_s=busy,
        steal_s=steal,
        total_s=total,
        own_s=cpu_s(tree(os.getpid())) or usage.ru_utime + usage.ru_stime,
        voluntary=usage.ru_nvcsw,
        involuntary=usage.ru_nivcsw,
        minor_faults=usage.ru_minflt,
        major_faults=usage.ru_majflt,
    )


@dataclass(frozen=True)
class Span:
    """What happened between two snapshots."""

    seconds: float
    own_cpus: float  # CPUs this process and those it started used on average
    other_cpus: float | None  # CPUs that other processes used
    steal_share: float | None  # of all CPU time
    involuntary_per_s: float
    voluntary_per_s: float
    minor_faults: int
    major_faults: int
    disturbed: list[str]  # why this run is no quiet measurement; empty: nothing seen


def compare(
    before: Conditions,
    after: Conditions,
    machine_cores: int | None = None,
    during: Sequence[Moment] = (),
    single: bool = True,
) -> Span:
    """What the machine did from `before` to `after`, and every sign that others than we shaped the times.

    `single`: one thread did all the work. Of several, or of two processes that talk, the kernel itself makes
    one wait for the other, so that being interrupted is no sign of others.
    """
    count = machine_cores or cores()
    seconds = max(after.at_s - before.at_s, 1e-9)
    own = (after.own_s - before.own_s) / seconds
    others = steal = None
    if before.busy_s is not None and after.busy_s is not None:
        others = max(0.0, (after.busy_s - before.busy_s) / seconds - own)
    if before.steal_s is not None and after.steal_s is not None and after.total_s != before.total_s:
        steal = (after.steal_s - before.steal_s) / ((after.total_s or 0) - (before.total_s or 0))
    involuntary = (after.involuntary - before.involuntary) / seconds

    reasons = []
    load = max(before.load[0], after.load[0])
    if load > count:
        reasons.append(f"the load average was {load:.1f} on {count} cores")
    if others is not None and others > OTHERS * count:
        reasons.append(f"other processes used {others:.1f} of {count} cores")
    else:
        reasons += _bursts([moment.other_cpus for moment in during], count)
    if steal is not None and steal > STEAL:
        reasons.append(f"the hypervisor took {steal:.0%} of the CPU time")
    if single and involuntary > INVOLUNTARY:
        reasons.append(f"the CPU was taken away {involuntary:.0f} times a second")
    if (after.throttle_count or 0) > (before.throttle_count or 0):
        reasons.append(
            f"the CPU was throttled {(after.throttle_count or 0) - (before.throttle_count or 0)} times"
        )
    flags = [flag for moment in during for flag in moment.throttle_flags or []]
    reasons += _flagged(before.throttle_flags or [], flags, after.throttle_flags or [])
    return Span(
        seconds=seconds,
        own_cpus=own,
        other_cpus=others,
        steal_share=steal,
        involuntary_per_s=involuntary,
        voluntary_per_s=(after.voluntary - before.voluntary) / seconds,
        minor_faults=after.minor_faults - before.minor_faults,
        major_faults=after.major_faults - before.major_faults,
        disturbed=reasons,
    )


def temperature(root: Path = ROOT) -> float | None:
    """Degrees Celsius of the CPU's thermal zone; of the hottest zone where none is named for the CPU."""
    zones = []
    for zone in root.glob("sys/class/thermal/thermal_zone[0-9]*"):
        value = (read(zone, "temp") or "").strip()
        if value.lstrip("-").isdigit():
            zones.append((bool(CPU_ZONES.search(read(zone, "type") or "")), int(value) / 1000))
    return max(zones)[1] if zones else None


def frequencies(root: Path = ROOT) -> list[float]:
    """MHz of each core now; empty where the machine does not tell."""
    scaling = read_all(root, "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")
    if scaling:
        return [int(value) / 1000 for value in scaling if value.isdigit()]
    found = re.findall(r"^cpu MHz\s*:\s*([\d.]+)", read(root, "proc/cpuinfo") or "", re.MULTILINE)
    return [float(value) for value in found]


def _load(root: Path) -> tuple[float, float, float]:
    words = (read(root, "proc/loadavg") or "").split()[:3]
    one, five, fifteen = (float(word) for word in words) if len(words) == 3 else (0.0, 0.0, 0.0)
    return one, five, fifteen


def cpu_seconds(root: Path = ROOT) -> tuple[float | None, float | None, float | None]:
    """(busy, stolen, all) CPU seconds since boot, from the first line of /proc/stat."""
    found = re.match(r"cpu +([\d ]+)", read(root, "proc/stat") or "")
    if not found:
        return None, None, None
    user, nice, system, idle, wait, irq, soft, steal = ([int(v) for v in found[1].split()] + [0] * 8)[:8]
    ticks = os.sysconf("SC_CLK_TCK")
    busy = user + nice + system + irq + soft
    return busy / ticks, steal / ticks, (busy + idle + wait + steal) / ticks


def throttle_flags(root: Path = ROOT) -> list[str] | None:
    """The Raspberry Pi's flags, from vcgencmd, or from the firmware's file where that tool is missing."""
    files = read_all(root, "sys/devices/platform/soc*/soc*firmware/get_throttled")
    text = files[0] if files else ""
    if root == ROOT and (said := vcgencmd("get_throttled")) is not None:
        text = said.strip().removeprefix("throttled=")
    try:
        bits = int(text, 16)
    except ValueError:
        return None
    now = [name for bit, name in THROTTLE_BITS.items() if bits >> bit & 1]
    return now + [f"{name} since boot" for bit, name in THROTTLE_BITS.items() if bits >> bit + 16 & 1]


def _bursts(others: list[float | None], count: int) -> list[str]:
    """A burst of foreign work that the average over a long run hides."""
    known = [cpus for cpus in others if cpus is not None]
    busy = [cpus for cpus in known if cpus > OTHERS * count]
    if len(busy) < 2 or len(busy) < BURSTS * len(known):
        return []
    share = len(busy) / len(known)
    return [f"other processes used up to {max(busy):.1f} of {count} cores in {share:.0%} of the run"]


def _flagged(before: list[str], during: list[str], after: list[str]) -> list[str]:
    """A flag counts if it held at either end or between, or was newly raised during the run."""
    now = {flag for flag in before + during + after if not flag.endswith(" since boot")}
    new = {flag.removesuffix(" since boot") for flag in set(after) - set(before)}
    return [f"the board reported {flag}" for flag in THROTTLE_BITS.values() if flag in now | new]


def _throttle_count(root: Path) -> int | None:
    counts = read_all(root, "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count")
    group = re.search(r"^nr_throttled (\d+)", read(root, "sys/fs/cgroup/cpu.stat") or "", re.MULTILINE)
    found = [int(count) for count in counts if count.isdigit()] + ([int(group[1])] if group else [])
    return sum(found) if found else None
