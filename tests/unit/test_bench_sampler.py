"""The board while the clock runs: a process that watches, power, and a run that is not alone."""

import json
import os
import stat
import subprocess
import sys
import time

import numpy as np
import pytest

from edgemt.bench.conditions import compare, observe
from edgemt.bench.energy import energy
from edgemt.bench.measure import Samples, Turn
from edgemt.bench.power import total
from edgemt.bench.process import cpu_s, tree
from edgemt.bench.sampler import Moment, Sampler
from edgemt.bench.threads import candidates, usable_cores

# `vcgencmd pmic_read_adc` of a Raspberry Pi 5, shortened: three rails, and what is no rail.
PMIC = """ 3V7_WL_SW_A current(0)=0.10000000A
   3V3_SYS_A current(1)=0.20000000A
  VDD_CORE_A current(7)=2.00000000A
 3V7_WL_SW_V volt(8)=3.70000000V
   3V3_SYS_V volt(9)=3.30000000V
  VDD_CORE_V volt(15)=0.80000000V
     EXT5V_V volt(24)=5.13256160V
      BATT_V volt(25)=0.00000000V
"""
WATTS = 0.1 * 3.7 + 0.2 * 3.3 + 2 * 0.8
VCGENCMD = f"""#!/bin/sh
case $1 in
pmic_read_adc) cat <<'END'
{PMIC}END
;;
get_throttled) echo throttled=0x4 ;;
esac
"""
NOTES = "我头疼。\nTake two tablets a day.\n"
BUSY = "while True: pass"


@pytest.fixture
def pi_tools(tmp_path, monkeypatch):
    """A folder at the head of PATH with a vcgencmd that answers as a Raspberry Pi 5 does."""
    folder = tmp_path / "bin"
    folder.mkdir()
    tool = folder / "vcgencmd"
    tool.write_text(VCGENCMD)
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_power_is_the_sum_over_rails_with_current_and_voltage():
    assert total(PMIC) == pytest.approx(WATTS)


@pytest.mark.parametrize("text", ["", 'error=1 error_msg="Command not registered"', "EXT5V_V volt(24)=5.1V"])
def test_no_rail_no_power(text):
    assert total(text) is None


def test_the_watching_process_sees_the_board(pi_tools):
    with Sampler(0.05) as sampler:
        origin = time.perf_counter_ns()
        deadline = time.monotonic() + 30
        while sampler.size() < 600 and time.monotonic() < deadline:
            time.sleep(0.02)
        moments = sampler.stop(origin)
    assert len(moments) >= 3
    assert moments[0].at_s < 0 < moments[-1].at_s
    assert [m.at_s for m in moments] == sorted(m.at_s for m in moments)
    for moment in moments:
        assert moment.watts == pytest.approx(WATTS)
        assert moment.throttle_flags == ["throttled"]
    assert moments[0].other_cpus is None  # nothing to compare with yet
    assert all(m.other_cpus is not None for m in moments[1:])


def test_the_cpu_time_of_a_child_is_ours():
    before = cpu_s(tree(os.getpid()))
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import time\nwhile time.process_time() < .5: pass\nprint(flush=True)\n{BUSY}",
        ],
        stdout=subprocess.PIPE,
    )
    assert child.stdout
    child.stdout.readline()
    running = cpu_s(tree(os.getpid()))
    child.kill()
    child.communicate()
    assert running - before > 0.45  # of 0.5 s: /proc counts in hundredths and rounds each part down
    assert cpu_s(tree(os.getpid())) >= running  # what has ended still counts


def moments(others=(), flags=()):
    size = max(len(others), len(flags))
    others, flags = list(others) or [0.0] * size, list(flags) or [[]] * size
    return [Moment(n, None, None, f, o, None) for n, (o, f) in enumerate(zip(others, flags, strict=True))]


def test_a_burst_that_the_average_hides():
    now = observe()
    during = moments([0.1] * 90 + [3.5] * 10)
    (reason,) = [r for r in compare(now, now, 4, during).disturbed if "load" not in r]
    assert reason == "other processes used up to 3.5 of 4 cores in 10% of the run"
    calm = compare(now, now, 4, moments([0.1] * 99 + [3.5])).disturbed
    assert not [r for r in calm if "load" not in r]


def test_throttling_between_two_quiet_ends():
    now = observe()
    during = moments(flags=[[], ["throttled"], []])
    assert "the board reported throttled" in compare(now, now, 4, during).disturbed


def samples(watts, ms=200.0):
    """Two contenders take turns of a second; the board is looked at in the middle of each half of one."""
    turns = [Turn(n % 2, n, n + 1) for n in range(10)]
    looks = [Moment(at, None, None, None, None, w) for at, w in watts]
    times = np.full((2, 3, 2), ms)
    now = observe()
    return Samples(times, np.zeros_like(times), times, np.zeros((2, 2), np.int64), turns, looks, now, now)


def test_energy_is_that_of_the_looks_in_its_own_turns():
    looks = [
        (-1.0, 2.0),
        (-0.5, 2.0),
        *((n + h, 5.0 if n % 2 else 4.0) for n in range(10) for h in (0.25, 0.75)),
    ]
    found = samples(looks)
    first, second = energy(found, 0), energy(found, 1)
    assert first and second
    assert (first["watts"], second["watts"], first["idle_watts"], first["looks"]) == (4.0, 5.0, 2.0, 10)
    assert first["joules_per_text"] == pytest.approx(4.0 * 0.2)
    assert second["joules_per_text_above_idle"] == pytest.approx(3.0 * 0.2)


def test_too_few_looks_tell_no_energy():
    assert energy(samples([(0.5, 4.0), (2.5, 4.0)]), 0) is None
    assert energy(samples([(0.5, None)] * 20), 0) is None


def test_a_run_on_a_board_that_tells_its_power(edgemt, toy_bundle, pi_tools, tmp_path):
    notes, out = tmp_path / "notes.txt", tmp_path / "run.json"
    notes.write_text(NOTES, encoding="utf-8")
    options = ("--soak", "0.1", "--budget-ms", "60000", "--json", out, "--strict")
    result = edgemt("bench", "-b", toy_bundle, "--workload", notes, *options)
    assert result.returncode == 3, result.stderr.decode()  # the board says that it is throttled
    data = json.loads(out.read_text())
    (row,) = data["bundles"]
    mean_s = np.mean([text["ms"] for text in row["texts"]]) / 1000
    assert row["energy"]["joules_per_text"] == pytest.approx(WATTS * mean_s, rel=1e-3)
    assert row["energy"]["idle_watts"] == pytest.approx(WATTS)
    assert row["energy"]["joules_per_text_above_idle"] == pytest.approx(0, abs=1e-9)
    assert "not at the wall" in result.stdout.decode()
    assert "the board reported throttled" in data["verdict"]["disturbed"]
    assert all(moment["at_s"] >= 0 for moment in data["conditions"]["timeline"])


def test_a_machine_that_others_keep_busy_is_recognised(edgemt, toy_bundle, tmp_path):
    """Real busy loops, one a core and one more."""
    notes, out = tmp_path / "notes.txt", tmp_path / "run.json"
    notes.write_text(NOTES, encoding="utf-8")
    # No children of the bench's: they are others.
    loops = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range((os.cpu_count() or 1) + 1)]
    try:
        options = ("--soak", "0.03", "--budget-ms", "60000", "--json", out)
        result = edgemt("bench", "-b", toy_bundle, "--workload", notes, *options, "--strict")
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    assert result.returncode == 3, result.stderr
    reasons = json.loads(out.read_text())["verdict"]["disturbed"]
    assert any(reason.startswith("other processes used") for reason in reasons), reasons
    second = result.stdout.decode().splitlines()[1]
    assert second.startswith("Disturbed run: ") and "other processes used" in second


def test_thread_counts_to_try():
    assert candidates(1) == [1]
    assert candidates(2) == [1, 2]
    assert candidates(4) == [1, 2, 3, 4]
    assert candidates(10) == [1, 2, 3, 4, 6, 8, 10]
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


def test_threads_auto_takes_the_best_of_what_it_measured(edgemt, toy_bundle, tmp_path):
    notes, out = tmp_path / "notes.txt", tmp_path / "run.json"
    notes.write_text(NOTES, encoding="utf-8")
    options = ("--threads", "auto", "--rounds", "1", "--budget-ms", "60000", "--json", out)
    result = edgemt("bench", "-b", toy_bundle, "--workload", notes, *options)
    assert result.returncode == 0, result.stderr.decode()
    settings = json.loads(out.read_text())["settings"]
    tried = {t["threads"]: t["ratio"] for t in settings["threads_tried"]}
    assert list(tried) == candidates(usable_cores())
    assert tried[1] == 1
    assert tried[settings["threads"]] <= min(tried.values()) * 1.02
    assert f"{settings['threads']} thread" in result.stdout.decode()
    assert "tried 1: 1.00×" in result.stdout.decode()
