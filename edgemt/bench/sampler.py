"""The board while the clock runs, looked at about twice a second by a process of its own.

Not by a thread: that would take the interpreter's lock from the translation that is being timed.
`python -m edgemt.bench.sampler PID SECONDS` is that process: a line of JSON for each look on stdout, until
its stdin is closed. PID is the measuring process, whose CPU time (with that of its children) is its own.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

from edgemt.bench.conditions import cpu_seconds, frequencies, temperature, throttle_flags
from edgemt.bench.power import watts
from edgemt.bench.process import cpu_s, tree

INTERVAL_S = 0.5
READY_S = 10.0  # at most: how long the first look is waited for


@dataclass(frozen=True)
class Moment:
    """The board at one moment of the run. None: it does not tell."""

    at_s: float  # since the clock started
    temperature_c: float | None
    frequency_mhz: float | None  # of the fastest core
    throttle_flags: list[str] | None  # that hold now
    other_cpus: float | None  # CPUs that other processes used since the moment before
    watts: float | None


class Sampler:
    """The watching process, from the side of the one that measures."""

    def __init__(self, interval_s: float = INTERVAL_S) -> None:
        """Starts it and waits for its first look, so that its own start is over before the clock runs."""
        self._said = tempfile.TemporaryFile("w+", encoding="ascii")  # noqa: SIM115
        words = [sys.executable, "-m", "edgemt.bench.sampler", str(os.getpid()), str(interval_s)]
        self._child = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=self._said, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + READY_S
        while not self.size() and self._child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)

    def stop(self, origin_ns: int) -> list[Moment]:
        """End it; what it saw, in seconds since `origin_ns` of `time.perf_counter_ns` (negative: before)."""
        assert self._child.stdin
        self._child.stdin.close()
        try:
            self._child.wait(READY_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._said.seek(0)
        # The clock is the machine's, the same in every process. A line that was cut off is left out.
        looks = [json.loads(line) for line in self._said if line.endswith("}\n")]
        return [Moment((look.pop("at_ns") - origin_ns) / 1e9, **look) for look in looks]

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._child.stdin
        self._child.stdin.close()
        if self._child.poll() is None:  # the run failed: nobody asks what it saw
            self._child.kill()
            self._child.wait()
        self._said.close()

    def size(self) -> int:
        """Bytes that it has written."""
        return os.fstat(self._said.fileno()).st_size


def main(pid: int, interval_s: float) -> int:
    before: tuple[float, float, float] | None = None
    while True:
        now = time.perf_counter_ns()
        busy, own = cpu_seconds()[0], cpu_s(tree(pid))
        others = None
        if busy is not None:
            if before:
                at, busy_before, own_before = before
                others = max(0.0, (busy - busy_before - own + own_before) / (now / 1e9 - at))
            before = (now / 1e9, busy, own)
        flags = throttle_flags()
        look = {
            "at_ns": now,
            "temperature_c": temperature(),
            "frequency_mhz": max(frequencies(), default=None),
            "throttle_flags": flags and [flag for flag in flags if not flag.endswith(" since boot")],
            "other_cpus": others,
            "watts": watts(),
        }
        print(json.dumps(look), flush=True)
        left = interval_s - (time.perf_counter_ns() - now) / 1e9
        if select.select([sys.stdin], [], [], max(0.0, left))[0]:
            return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2])))
