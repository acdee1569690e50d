"""Machine facts and conditions, read from the files of a Raspberry Pi 5, an x86 machine, and this one."""

import dataclasses
import json

import pytest

from edgemt.bench.conditions import compare, frequencies, observe, temperature
from edgemt.bench.facts import emulator, machine_facts

PI5_CORE = """processor\t: {n}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1

"""
PI5 = {
    "proc/cpuinfo": "".join(PI5_CORE.format(n=n) for n in range(4))
    + "Revision\t: c04170\nSerial\t\t: 1122334455667788\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n",
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "proc/device-tree/compatible": "raspberrypi,5-model-b\0brcm,bcm2712\0",
    "proc/device-tree/serial-number": "1122334455667788\0",
    "proc/meminfo": "MemTotal:        8254128 kB\nMemFree:         6400000 kB\nSwapTotal:        524272 kB\n",
    "proc/loadavg": "0.31 0.20 0.10 1/187 2043\n",
    "proc/stat": "cpu  1000 0 500 90000 100 0 20 0 0 0\ncpu0 250 0 125 22500 25 0 5 0 0 0\n",
    "proc/self/comm": "python3\n",
    "etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\n',
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "52350\n",
    "sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled": "0\n",
    **{
        f"sys/devices/system/cpu/cpu{n}/cpufreq/{name}": f"{value}\n"
        for n in range(4)
        for name, value in {
            "scaling_governor": "ondemand",
            "cpuinfo_min_freq": 1500000,
            "cpuinfo_max_freq": 2400000,
            "scaling_cur_freq": 1500000 + 100000 * n,
        }.items()
    },
}
X86_CORE = """processor\t: {n}
model\t\t: 143
model name\t: Some CPU @ 2.00GHz
cpu MHz\t\t: {mhz}
flags\t\t: fpu avx2 avx512f avx512_vnni hypervisor

"""
X86 = {
    "proc/cpuinfo": X86_CORE.format(n=0, mhz=2593.906) + X86_CORE.format(n=1, mhz=2600),
    "proc/self/comm": "qemu-aarch64\n",
    "sys/class/dmi/id/sys_vendor": "QEMU\n",
    "sys/class/dmi/id/product_name": "Standard PC\n",
    "sys/fs/cgroup/cpu.max": "150000 100000\n",
    "sys/fs/cgroup/cpu.stat": "usage_usec 5\nnr_periods 9\nnr_throttled 4\n",
    "sys/class/thermal/thermal_zone0/type": "acpitz\n",
    "sys/class/thermal/thermal_zone0/temp": "99000\n",
    "sys/class/thermal/thermal_zone1/type": "x86_pkg_temp\n",
    "sys/class/thermal/thermal_zone1/temp": "48000\n",
}


@pytest.fixture
def machine(tmp_path):
    def build(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return build


def test_a_pi_5_is_recognised(machine):
    facts = machine_facts(4, machine(PI5))
    assert facts["model"] == "Raspberry Pi 5 Model B Rev 1.0"
    assert facts["soc"] == "brcm,bcm2712"
    assert facts["cpu"] == "Cortex-A76"
    assert facts["cores"] == 4
    assert facts["extensions"] == ["asimd", "asimdhp", "asimddp"]
    assert facts["governor"] == "ondemand"
    assert facts["frequency_mhz"] == {"min": 1500.0, "max": 2400.0}
    assert facts["memory_bytes"] == 8254128 * 1024
    assert facts["os"] == "Debian GNU/Linux 12 (bookworm)"
    assert not facts["virtual"]
    assert facts["threads"] == 4


def test_no_serial_number_gets_into_the_facts(machine):
    assert "1122334455667788" not in json.dumps(machine_facts(1, machine(PI5)))


def test_the_model_is_found_without_a_device_tree(machine):
    files = {name: text for name, text in PI5.items() if "device-tree" not in name}
    assert machine_facts(1, machine(files))["model"] == "Raspberry Pi 5 Model B Rev 1.0"


def test_an_x86_machine(machine):
    root = machine(X86)
    facts = machine_facts(1, root)
    assert facts["model"] == "QEMU Standard PC"
    assert facts["cpu"] == "Some CPU @ 2.00GHz"
    assert facts["cores"] == 2
    assert facts["virtual"]
    assert facts["cpu_quota"] == 1.5
    assert facts["extensions"] == ["avx2", "avx512f", "avx512_vnni"]
    assert frequencies(root) == [2593.906, 2600.0]
    assert temperature(root) == 48.0  # the CPU's zone, not the hotter one of something else
    assert observe(root).throttle_count == 4


def test_an_emulator_is_recognised(machine):
    assert emulator(machine(PI5)) is None
    assert emulator(machine(X86)) == "qemu-aarch64"


def test_a_machine_that_tells_nothing_still_gives_facts(tmp_path):
    facts = machine_facts(1, tmp_path)
    assert facts["model"] is None
    assert facts["cores"] >= 1
    conditions = observe(tmp_path)
    assert conditions.temperature_c is None
    assert conditions.throttle_flags is None
    assert compare(conditions, conditions).other_cpus is None


def test_this_machine_gives_facts():
    facts = machine_facts(1)
    assert facts["versions"]["numpy"]
    assert facts["cores"] >= 1
    json.dumps([facts, dataclasses.asdict(observe())])


def test_conditions_of_a_pi_5(machine):
    conditions = observe(machine(PI5))
    assert conditions.temperature_c == 52.35
    assert conditions.frequency_mhz == [1500.0, 1600.0, 1700.0, 1800.0]
    assert conditions.throttle_flags == []
    assert conditions.load == (0.31, 0.2, 0.1)


def later(before, seconds=10.0, **changes):
    return dataclasses.replace(before, at_s=before.at_s + seconds, **changes)


@pytest.fixture
def quiet(machine):
    return observe(machine(PI5))


def test_a_quiet_run_is_quiet(quiet):
    after = later(quiet, own_s=quiet.own_s + 10, busy_s=quiet.busy_s + 10.2, total_s=quiet.total_s + 40)
    span = compare(quiet, after, 4)
    assert span.disturbed == []
    assert span.own_cpus == pytest.approx(1.0)
    assert span.other_cpus == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"load": (4.5, 1, 1)}, "load average was 4.5 on 4 cores"),
        ({"busy_s": 45.0}, "other processes used"),
        ({"steal_s": 2.0}, "hypervisor took"),
        ({"involuntary": 10**6}, "taken away"),
        ({"throttle_count": 3}, "throttled 3 times"),
        ({"throttle_flags": ["under-voltage"]}, "under-voltage"),
        ({"throttle_flags": ["throttled since boot"]}, "the board reported throttled"),
    ],
)
def test_a_disturbed_run_says_why(quiet, changes, word):
    after = later(quiet, **{"total_s": quiet.total_s + 40, **changes})
    (reason,) = compare(quiet, after, 4).disturbed
    assert word in reason


def test_throttling_long_before_the_run_does_not_count(quiet):
    before = dataclasses.replace(quiet, throttle_flags=["throttled since boot"])
    assert compare(before, later(before), 4).disturbed == []
    hot = later(before, throttle_flags=["throttled", "throttled since boot"])
    assert compare(before, hot, 4).disturbed == ["the board reported throttled"]


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("0", []),
        ("50005", ["under-voltage", "throttled", "under-voltage since boot", "throttled since boot"]),
        ("0x80008", ["soft temperature limit", "soft temperature limit since boot"]),
    ],
)
def test_the_firmware_flags_of_a_pi(machine, text, flags):
    name = "sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled"
    assert observe(machine({**PI5, name: text + "\n"})).throttle_flags == flags
